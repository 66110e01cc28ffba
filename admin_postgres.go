//go:build postgres

// admin_postgres.go: what operators and the second factor need of the store in
// PostgreSQL.
package main

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"slices"
	"time"
)

// The methods of adminStore.

func (p *pgStore) users() (all []User, err error) {
	const selectUsers = `select ` + userColumns + ` from users u order by name collate "C"`
	err = p.alone(func(c *pgCall) { all = collect(c, (*User).columns, selectUsers) })
	return all, err
}

func (p *pgStore) addUsers(all []User, apps map[string]Factors, act Act) (added []bool, err error) {
	more := 50 * time.Millisecond * time.Duration(3*len(all)) // each is a few round trips
	err = p.togetherFor(pgTimeout+more, func(c *pgCall) {
		added = c.addUsers(all)
		for i, u := range all {
			if added[i] {
				if app, ok := apps[u.Name]; ok {
					c.putFactors(u.Name, app)
				}
				act.User = u.Name
				c.record(act)
			}
		}
	})
	return added, err
}

func (c *pgCall) addUsers(all []User) (added []bool) {
	added = make([]bool, len(all))
	c.lockEmpty()
	for i, u := range all {
		added[i] = c.exec(insertUser+` on conflict do nothing`, u.columns()...) > 0
	}
	if slices.Contains(added, true) {
		c.exec(deleteFirstInvites)
	}
	return added
}

func (p *pgStore) removeUser(name string) error {
	// What the user owns goes with them.
	return p.together(func(c *pgCall) { c.require(c.exec(`delete from users where name = $1`, name) > 0) })
}

func (p *pgStore) disableUser(name string, disabled bool) error {
	return p.together(func(c *pgCall) {
		c.require(c.exec(`update users set disabled = $2 where name = $1`, name, disabled) > 0)
		if disabled {
			c.deleteOwned(name, "sessions", "tokens", "invites")
		}
	})
}

func (p *pgStore) changeGroup(name, group string, in bool) error {
	return p.together(func(c *pgCall) {
		var u User
		c.scan(u.columns(), selectUser+` for update`, name)
		c.exec(`update users set groups = $2 where name = $1`, name, withGroup(u.Groups, group, in))
	})
}

func (p *pgStore) findSession(handle string, now time.Time) (s Session, err error) {
	from, err := hex.DecodeString(handle)
	if err != nil {
		return s, fs.ErrNotExist
	}
	err = p.alone(func(c *pgCall) {
		c.scan(s.columns(), liveSessions+`and s.key >= $3 order by s.key limit 1`, now, now.Add(clockSlack), from)
		c.require(s.Key.handle() == handle)
	})
	return s, err
}

func (p *pgStore) count() (users, sessions int, err error) {
	err = p.alone(func(c *pgCall) {
		c.scan([]any{&users, &sessions}, `select (select count(*) from users), (select count(*) from sessions)`)
	})
	return users, sessions, err
}

func (p *pgStore) timeWith(timed func(bool, time.Duration)) { p.timed = timed }

func (p *pgStore) nothing() error { return p.change(func(*pgCall) {}) }

func (p *pgStore) backup(io.Writer) error {
	return errors.New("a PostgreSQL database is backed up with pg_dump")
}

func (a *Act) columns() []any { return []any{&a.At, &a.User, &a.By, &a.What, &a.Addr} }

// record keeps at most maxActs.
func (c *pgCall) record(act Act) {
	number := 0
	c.scan([]any{&number}, `insert into acts (at, username, actor, what, addr) values ($1, $2, $3, $4, $5) returning number`, act.columns()...)
	c.exec(`delete from acts where number <= $1`, number-maxActs)
}

func (p *pgStore) acts(user string) (all []Act, err error) {
	err = p.alone(func(c *pgCall) {
		all = collect(c, (*Act).columns, `select at, username, actor, what, addr from acts where $1 = '' or username = $1 order by number`, user)
	})
	return all, err
}

// The methods of factorStore.

// userFactors is a row of the table.
type userFactors struct{ name, data string }

func (f *userFactors) columns() []any { return []any{&f.name, &f.data} }

func (f userFactors) factors() (has Factors, err error) {
	if json.Unmarshal([]byte(f.data), &has) != nil {
		err = errDamaged
	}
	return has, err
}

func (c *pgCall) factors(user string) (has Factors) {
	for _, f := range collect(c, (*userFactors).columns, `select username, data from factors where username = $1`, user) {
		has, c.err = f.factors()
	}
	return has
}

// putFactors also keeps the index of passkeys.
func (c *pgCall) putFactors(user string, has Factors) {
	data, err := json.Marshal(has)
	c.refuse(err != nil, err)
	c.exec(`insert into factors (username, data) values ($1, $2) on conflict (username) do update set data = $2`, user, string(data))
	c.exec(`delete from passkeys where username = $1`, user)
	for _, p := range has.Passkeys {
		c.refuse(c.exec(`insert into passkeys (key, username) values ($1, $2) on conflict do nothing`, p.Key, user) == 0, fs.ErrExist)
	}
}

func (p *pgStore) factors(user string) (has Factors, err error) {
	err = p.alone(func(c *pgCall) { has = c.factors(user) })
	return has, err
}

func (p *pgStore) everybodysFactors() (all map[string]Factors, err error) {
	all = map[string]Factors{}
	err = p.alone(func(c *pgCall) {
		for _, f := range collect(c, (*userFactors).columns, `select username, data from factors`) {
			has, err := f.factors()
			c.refuse(err != nil, err)
			all[f.name] = has
		}
	})
	return all, err
}

func (p *pgStore) passkeyUser(k Key) (u User, err error) {
	err = p.alone(func(c *pgCall) {
		c.scan(u.columns(), `select `+userColumns+` from passkeys p join users u on u.name = p.username where p.key = $1 and not u.disabled`, k)
	})
	return u, err
}

func (p *pgStore) changeFactors(was User, change func(*Factors) error, after sessionsAfter) error {
	return p.together(func(c *pgCall) {
		var u User
		c.scan(u.columns(), selectUser+` for update`, was.Name)
		was.Created = micros(was.Created)
		c.require(u.same(was))
		has := c.factors(was.Name)
		if c.err == nil {
			c.err = change(&has)
		}
		c.putFactors(was.Name, has)
		for _, kd := range after.endKinds {
			c.deleteOwned(was.Name, string(bucketOf[kd]))
		}
		c.endSessions(after.ends)
		c.startSession(after.start)
	})
}
