//go:build postgres

// store_postgres.go: the store in a PostgreSQL database that several servers
// share. Built with -tags postgres only; the connections are in
// conn_postgres.go, the tables in migrate_postgres.go.
//
// Rules of this file: now is the caller's, never the database's; a transaction
// locks a user's row before what the user owns, so that no two wait for each
// other; what may not run twice runs in a transaction. The SQL is plain: no
// extension, no function of our own, no LISTEN, no right beyond that to the tables.
package main

import (
	"context"
	"errors"
	"io/fs"
	"time"

	"github.com/lib/pq"
)

// The methods of Store.

// writableColumn is asked for by what decides whether a user is let in.
const writableColumn = `current_setting('transaction_read_only') = 'off'`

var errReadOnly = errors.New("PostgreSQL is read-only: sessions could not be ended now")

func (p *pgStore) ping() error {
	return p.alone(func(c *pgCall) {
		var writable bool
		c.scan([]any{&writable}, `select `+writableColumn+` from ringward`)
		c.refuse(!writable, errReadOnly)
	})
}

const (
	userColumns = `u.name, u.hash, u.disabled, u.created, u.groups`
	selectUser  = `select ` + userColumns + ` from users u where name = $1`
	insertUser  = `insert into users (name, hash, disabled, created, groups) values ($1, $2, $3, $4, $5)`
	updateHash  = `update users set hash = $2 where name = $1`
)

func (u *User) columns() []any {
	return []any{&u.Name, &u.Hash, &u.Disabled, &u.Created, &u.Groups}
}

// lock returns a user who is not disabled, and stays as they are until the
// transaction ends.
func (c *pgCall) lock(name string) (u User) {
	c.scan(u.columns(), selectUser+` for update`, name)
	c.require(!u.Disabled)
	return u
}

// lockVerified is lock for a user whose password was verified and is still theirs.
func (c *pgCall) lockVerified(was User) {
	u := c.lock(was.Name)
	c.require(u.Hash == was.Hash && u.Created.Equal(micros(was.Created)))
}

// lockEmpty says whether there are no users. One transaction at a time asks.
func (c *pgCall) lockEmpty() bool {
	var some bool
	c.exec(`select from ringward for update`) // the one row there always is
	c.scan([]any{&some}, `select exists (select from users)`)
	return !some
}

func (p *pgStore) user(name string) (u User, err error) {
	err = p.alone(func(c *pgCall) { c.scan(u.columns(), selectUser, name) })
	return u, err
}

func (p *pgStore) addUser(u User) error {
	return p.together(func(c *pgCall) { c.refuse(!c.addUsers([]User{u})[0], fs.ErrExist) })
}

const (
	sessionColumns = `s.key, s.username, s.created, s.seen, s.idle, s.ends, s.addr, s.agent`
	// liveSessions has now as $1 and clockSlack after it as $2.
	liveSessions = `select ` + sessionColumns + ` from sessions s where s.expires > $1 and s.created <= $2 `
)

func (s *Session) columns() []any {
	return []any{&s.Key, &s.User, &s.Created, &s.Seen, &s.Idle, &s.End, &s.Addr, &s.Agent}
}

// startSession is for a user who is locked: only one of them counts at a time.
func (c *pgCall) startSession(s Session) {
	if s.User == "" { // none
		return
	}
	c.exec(`delete from sessions where key in (
		select key from sessions where expires > $1 and created <= $2 and username = $3
		order by created desc, key desc offset $4)`, s.Created, s.Created.Add(clockSlack), s.User, maxSessions-1)
	c.exec(`insert into sessions (key, username, created, seen, idle, ends, addr, agent)
		values ($1, $2, $3, $4, $5, $6, $7, $8)`, s.columns()...)
}

func (c *pgCall) endSessions(keys []Key) {
	if len(keys) > 0 {
		c.exec(`delete from sessions where key = any ($1)`, byteas(keys))
	}
}

func byteas(keys []Key) (all pq.ByteaArray) {
	for _, k := range keys {
		all = append(all, k[:])
	}
	return all
}

func (p *pgStore) login(was User, s Session, ends []Key, hash string) error {
	return p.together(func(c *pgCall) {
		c.lockVerified(was)
		if hash != "" {
			c.exec(updateHash, was.Name, hash)
		}
		c.endSessions(ends)
		c.startSession(s)
	})
}

// pgLogin is what a session's key is looked up for.
type pgLogin struct {
	Session
	user     User
	writable bool
}

func (l *pgLogin) columns() []any {
	return append(append(l.Session.columns(), l.user.columns()...), &l.writable)
}

func selectLogins(c *pgCall, keys []Key) map[Key]pgLogin {
	found := map[Key]pgLogin{}
	for _, l := range collect(c, (*pgLogin).columns, `select `+sessionColumns+`, `+userColumns+`, `+writableColumn+`
		from sessions s join users u on u.name = s.username where s.key = any ($1)`, byteas(keys)) {
		found[l.Key] = l
	}
	return found
}

func (p *pgStore) session(k Key, now time.Time) (Session, User, error) {
	all, err := p.logins.get(p, k, selectLogins)
	l, ok := all[k]
	switch {
	case err != nil:
	case !ok || l.user.Disabled || !l.live(now):
		err = fs.ErrNotExist
	case !l.writable:
		err = errReadOnly
	default:
		return l.Session, l.user, nil
	}
	return Session{}, User{}, err
}

func (p *pgStore) sessions(user string, now time.Time) (live []Session, err error) {
	err = p.alone(func(c *pgCall) {
		live = collect(c, (*Session).columns, liveSessions+`and ($3 = '' or s.username = $3) order by s.created, s.key`, now, now.Add(clockSlack), user)
	})
	return live, err
}

func (p *pgStore) renew(k Key, now, seen, idle time.Time) error {
	return p.alone(func(c *pgCall) {
		c.require(c.exec(`update sessions set seen = $4, idle = $5
			where expires > $1 and created <= $2 and key = $3`, now, now.Add(clockSlack), k, seen, idle) > 0)
	})
}

func (p *pgStore) endSessions(keys ...Key) error {
	return p.change(func(c *pgCall) { c.endSessions(keys) })
}

// Sweep deletes a thousand at a time. Servers that sweep at the same time take
// different rows, and none waits for a row that somebody uses.
func (p *pgStore) Sweep(ctx context.Context, now time.Time) (swept int, err error) {
	for _, table := range []string{"sessions", "invites"} {
		for n := 1; n > 0; swept += n {
			if err = ctx.Err(); err == nil {
				err = p.alone(func(c *pgCall) {
					n = int(c.exec(`delete from `+table+` where key in (select key from `+table+`
						where expires <= $1 order by expires limit 1000 for update skip locked)`, now))
				})
			}
			if err != nil {
				return swept, err
			}
		}
	}
	return swept, nil
}

// The methods of accountStore.

func (p *pgStore) setPassword(was User, hash string, s Session) error {
	return p.together(func(c *pgCall) {
		c.lockVerified(was)
		c.exec(updateHash, was.Name, hash)
		c.deleteOwned(was.Name, "sessions", "invites")
		c.startSession(s)
	})
}

func (p *pgStore) endUserSessions(user string) error {
	return p.together(func(c *pgCall) {
		c.exec(`select from users where $1 = '' or name = $1 order by name for update`, user)
		c.exec(`delete from sessions where $1 = '' or username = $1`, user)
	})
}

func (p *pgStore) empty() (yes bool, err error) {
	err = p.alone(func(c *pgCall) { c.scan([]any{&yes}, `select not exists (select from users)`) })
	return yes, err
}

// tokenColumns have the zero time for NULL.
const tokenColumns = `t.key, t.username, t.name, t.created,
	coalesce(t.expires, '0001-01-01'), coalesce(t.used, '0001-01-01')`

func (t *Token) columns() []any {
	return []any{&t.Key, &t.User, &t.Name, &t.Created, &t.Expires, &t.Used}
}

func (p *pgStore) addToken(t Token) error {
	return p.together(func(c *pgCall) {
		n, same := 0, 0
		c.lock(t.User)
		c.scan([]any{&n, &same}, `select count(*), count(*) filter (where name = $2) from tokens where username = $1`, t.User, t.Name)
		c.refuse(same > 0, fs.ErrExist)
		c.refuse(n >= maxTokens, errTooMany)
		c.exec(`insert into tokens (key, username, name, created, expires, used)
			values ($1, $2, $3, $4, nullif($5, timestamptz '0001-01-01'), nullif($6, timestamptz '0001-01-01'))`, t.columns()...)
	})
}

func (p *pgStore) tokens(user string) (all []Token, err error) {
	err = p.alone(func(c *pgCall) {
		all = collect(c, (*Token).columns, `select `+tokenColumns+` from tokens t where $1 = '' or t.username = $1 order by t.created, t.key`, user)
	})
	return all, err
}

func (p *pgStore) token(k Key, now time.Time) (t Token, u User, err error) {
	err = p.alone(func(c *pgCall) {
		var writable bool
		c.scan(append(append(t.columns(), u.columns()...), &writable), `
			select `+tokenColumns+`, `+userColumns+`, `+writableColumn+`
			from tokens t join users u on u.name = t.username
			where t.key = $1 and (t.expires is null or t.expires > $2) and not u.disabled`, k, now)
		c.refuse(!writable, errReadOnly)
	})
	return t, u, err
}

func (p *pgStore) useToken(k Key, now time.Time) error {
	return p.alone(func(c *pgCall) { c.require(c.exec(`update tokens set used = $2 where key = $1`, k, now) > 0) })
}

func (p *pgStore) removeToken(k Key) error {
	return p.change(func(c *pgCall) { c.exec(`delete from tokens where key = $1`, k) })
}

const deleteFirstInvites = `delete from invites where username is null`

func (i *Invite) columns() []any { return []any{&i.Key, &i.User, &i.Created, &i.Expires} }

func (c *pgCall) invite(k Key, now time.Time) (i Invite) {
	c.scan(i.columns(), `
		select i.key, coalesce(i.username, ''), i.created, i.expires
		from invites i left join users u on u.name = i.username
		where i.expires > $1 and i.created <= $2 and i.key = $3
		and case when i.username is null then not exists (select from users) else not u.disabled end`,
		now, now.Add(clockSlack), k)
	return i
}

func (p *pgStore) addInvite(i Invite) error {
	return p.together(func(c *pgCall) {
		if i.User == "" {
			c.require(c.lockEmpty())
		} else {
			c.lock(i.User)
			c.deleteOwned(i.User, "invites")
		}
		c.exec(`insert into invites (key, username, created, expires) values ($1, nullif($2, ''), $3, $4)`, i.columns()...)
	})
}

func (p *pgStore) invite(k Key, now time.Time) (i Invite, err error) {
	err = p.alone(func(c *pgCall) { i = c.invite(k, now) })
	return i, err
}

func (p *pgStore) acceptInvite(k Key, now time.Time, u User, s Session, ends []Key) error {
	return p.together(func(c *pgCall) {
		i := c.invite(k, now)
		if i.User == "" {
			c.require(c.lockEmpty())
		} else {
			c.lock(i.User)
		}
		c.require(c.exec(`delete from invites where key = $1`, k) > 0) // it may be gone since we read it
		if i.User == "" {
			c.exec(deleteFirstInvites)
			c.exec(insertUser, u.columns()...)
		} else {
			c.exec(updateHash, i.User, u.Hash)
			c.deleteOwned(i.User, "sessions", "tokens", "invites")
		}
		c.endSessions(ends)
		c.startSession(s)
	})
}

// deleteOwned ends what a user who is locked could get in with.
func (c *pgCall) deleteOwned(name string, tables ...string) {
	for _, table := range tables {
		c.exec(`delete from `+table+` where username = $1`, name)
	}
}

// The methods of ringStore.

func (r *Ring) columns() []any { return []any{&r.ID, &r.Name, &r.Bearer} }

const insertRing = `insert into rings (id, name, bearer) values ($1, $2, $3)`

func (p *pgStore) seedRings() error {
	return p.together(func(c *pgCall) {
		if c.exec(`update ringward set last_ring = $1 where last_ring = 0`, len(twentyRings)) == 0 {
			return
		}
		for i, ring := range twentyRings {
			ring.ID = i + 1
			c.exec(insertRing, ring.columns()...)
		}
	})
}

func selectRings(c *pgCall, _ []struct{}) []Ring {
	return collect(c, (*Ring).columns, `select id, name, bearer from rings order by id`)
}

func (p *pgStore) rings() ([]Ring, error) {
	all, err := p.lists.get(p, struct{}{}, selectRings)
	return append([]Ring{}, all...), err
}

func (p *pgStore) ring(id int) (ring Ring, err error) {
	err = p.alone(func(c *pgCall) { c.scan(ring.columns(), `select id, name, bearer from rings where id = $1`, id) })
	return ring, err
}

func (p *pgStore) addRing(ring Ring) (Ring, error) {
	err := p.together(func(c *pgCall) {
		c.scan([]any{&ring.ID}, `update ringward set last_ring = last_ring + 1 returning last_ring`)
		c.exec(insertRing, ring.columns()...)
	})
	return ring, err
}

func (p *pgStore) setRing(ring Ring) error {
	const updateRing = `update rings set name = $2, bearer = $3 where id = $1`
	return p.alone(func(c *pgCall) { c.require(c.exec(updateRing, ring.columns()...) > 0) })
}

func (p *pgStore) removeRing(id int) error {
	return p.together(func(c *pgCall) { c.require(c.exec(`delete from rings where id = $1`, id) > 0) })
}
