//go:build postgres

// migrate_postgres.go: the tables of the store in PostgreSQL, how they are made
// and upgraded when a server starts, and how a bbolt store is copied into them.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/lib/pq"
	"github.com/lib/pq/pqerror"
	bolt "go.etcd.io/bbolt"
)

const (
	upgradeTimeout = time.Minute      // other servers may be at it too
	migrateTimeout = 15 * time.Minute // a million sessions take less than one
)

// pgSchema is what each version of the tables adds to the one before. A server
// names the columns it wants, so that an older one goes on with a newer schema
// that only adds to it.
var pgSchema = []string{`
	create table ringward ( -- one row
		schema_version integer not null,
		last_ring      bigint not null -- the highest id a ring ever had; 0: there never was one
	);
	insert into ringward values (0, 0);
	create table users (
		name     text primary key,
		hash     text not null, -- bcrypt; '': no password yet
		disabled boolean not null,
		created  timestamptz not null
	);
	create table sessions (
		key      bytea primary key, -- SHA-256 of the id in the cookie
		username text not null references users on delete cascade,
		created  timestamptz not null,
		seen     timestamptz not null,
		idle     timestamptz not null,
		ends     timestamptz not null,
		expires  timestamptz not null generated always as (least(idle, ends)) stored,
		addr     text not null,
		agent    text not null
	);
	create index sessions_expires on sessions (expires);
	create index sessions_username on sessions (username, created);
	create table tokens (
		key      bytea primary key, -- SHA-256 of the token
		username text not null references users on delete cascade,
		name     text not null,
		created  timestamptz not null,
		expires  timestamptz, -- null: never
		used     timestamptz, -- null: never
		unique (username, name)
	);
	create table invites (
		key      bytea primary key, -- SHA-256 of what the link holds
		username text references users on delete cascade, -- null: makes the first user
		created  timestamptz not null,
		expires  timestamptz not null
	);
	create index invites_expires on invites (expires);
	create index invites_username on invites (username);
	create table rings (
		id     bigint primary key,
		name   text not null,
		bearer text not null
	);`, `
	alter table users add groups text not null default ''; -- a space between two
	create table factors (
		username text primary key references users on delete cascade,
		data     jsonb not null -- the authenticator app's seed in it is encrypted
	);
	create table passkeys (
		key      bytea primary key, -- SHA-256 of the credential's id
		username text not null references users on delete cascade
	);
	create index passkeys_username on passkeys (username);
	create table acts (
		number   bigint primary key generated always as identity,
		at       timestamptz not null,
		username text not null, -- '': nobody's account
		actor    text not null, -- a user, or operator
		what     text not null,
		addr     text not null
	);`,
}

// upgrade makes the tables or adds to them what they lack. Where they lack
// nothing it needs no right to make any.
func (p *pgStore) upgrade() error {
	version := 0
	readVersion := func(c *pgCall) { c.scan([]any{&version}, `select schema_version from ringward`) }
	err := p.alone(readVersion)
	if err == nil && version == len(pgSchema) || err != nil && pq.As(err, pqerror.UndefinedTable) == nil {
		return err
	}
	return p.togetherFor(upgradeTimeout, func(c *pgCall) {
		// The number means nothing but us. One server upgrades, the others wait.
		c.exec(`set local statement_timeout = '1min'; select pg_advisory_xact_lock(7260152061)`)
		exists, encoding := false, ""
		c.scan([]any{&exists, &encoding}, `select to_regclass('ringward') is not null, current_setting('server_encoding')`)
		c.refuse(encoding != "UTF8" && encoding != "SQL_ASCII", // any other lacks characters that people type
			fmt.Errorf("the database has the encoding %s, make it with encoding UTF8", encoding))
		if version = 0; exists {
			readVersion(c)
		}
		c.refuse(version > len(pgSchema),
			fmt.Errorf("the tables have version %d, this ringward knows up to %d: use a newer one", version, len(pgSchema)))
		for ; c.err == nil && version < len(pgSchema); version++ {
			c.exec(pgSchema[version])
		}
		if pq.As(c.err, pqerror.DuplicateTable) != nil {
			c.err = fmt.Errorf("another program keeps tables there, give ringward a database of its own: %w", c.err)
		}
		c.exec(`update ringward set schema_version = $1`, version)
	})
}

func init() {
	migrateTo = func(from *BoltStore, url string) (string, error) {
		p, err := openPG(url)
		if err != nil {
			return "", err
		}
		defer p.Close()
		return p.migrate(from, time.Now())
	}
}

// migrate copies everything but what has expired, or nothing. What a database
// without users may hold, the twenty rings and invites for the first user, is
// replaced. Nobody writes to from meanwhile: another process cannot open it.
func (p *pgStore) migrate(from *BoltStore, now time.Time) (report string, err error) {
	var (
		rings   []Ring
		invites []Invite
		factors []userFactors
		keys    []userPasskey
		ringIDs uint64 // given so far; 0: there never were any rings
	)
	err = from.view(func(tx *bolt.Tx) error {
		if bucket := tx.Bucket(bucketRings); bucket != nil {
			ringIDs = bucket.Sequence()
		}
		return eachKey(tx, kindInvite, "", func(k Key) error {
			i, err := getInvite(tx, k, now)
			if err == nil && i.User != "" { // a server that finds no users makes new ones for the first
				invites = append(invites, i)
			}
			return unlessAbsent(err)
		})
	})
	if err == nil && ringIDs > 0 {
		rings, err = from.rings()
	}
	users, err1 := from.users()
	sessions, err2 := from.sessions("", now)
	tokens, err3 := from.tokens("")
	acts, err4 := from.acts("")
	everybodys, err5 := from.everybodysFactors()
	if err := errors.Join(err, err1, err2, err3, err4, err5); err != nil {
		return "", err
	}
	for name, has := range everybodys {
		data, err := json.Marshal(has)
		if err != nil {
			return "", err
		}
		factors = append(factors, userFactors{name, string(data)})
		for _, p := range has.Passkeys {
			keys = append(keys, userPasskey{p.Key, name})
		}
	}
	err = p.togetherFor(migrateTimeout, func(c *pgCall) {
		c.exec(`set local statement_timeout = 0`)
		c.refuse(!c.lockEmpty(), errors.New("the PostgreSQL database has users already: nothing was copied"))
		c.exec(`delete from rings; delete from invites; delete from acts`)
		report = "copied " + strings.Join([]string{
			copyAll(c, "users", "name, hash, disabled, created, groups", users, (*User).columns),
			copyAll(c, "sessions", "key, username, created, seen, idle, ends, addr, agent", sessions, (*Session).columns),
			copyAll(c, "tokens", "key, username, name, created, expires, used", tokens, (*Token).columns),
			copyAll(c, "invites", "key, username, created, expires", invites, (*Invite).columns),
			copyAll(c, "factors", "username, data", factors, (*userFactors).columns),
			copyAll(c, "passkeys", "key, username", keys, (*userPasskey).columns),
			copyAll(c, "acts", "at, username, actor, what, addr", acts, (*Act).columns),
			copyAll(c, "rings", "id, name, bearer", rings, (*Ring).columns),
		}, ", ")
		c.exec(`update tokens set expires = nullif(expires, '0001-01-01'), used = nullif(used, '0001-01-01')`)
		c.exec(`update ringward set last_ring = $1`, ringIDs)
	})
	return report, err
}

type userPasskey struct {
	key  Key
	user string
}

func (p *userPasskey) columns() []any { return []any{&p.key, &p.user} }

// copyAll fills a table that is empty, and says what is in it then.
func copyAll[T any](c *pgCall, table, names string, all []T, columns func(*T) []any) string {
	if c.err != nil {
		return ""
	}
	st, err := c.on.PrepareContext(c.ctx, `copy `+table+` (`+names+`) from stdin`)
	if c.err = err; err != nil {
		return ""
	}
	defer st.Close()
	for i := 0; c.err == nil && i < len(all); i++ {
		_, c.err = st.ExecContext(c.ctx, columns(&all[i])...)
	}
	if c.err == nil {
		_, c.err = st.ExecContext(c.ctx) // what is buffered
	}
	there := 0
	c.scan([]any{&there}, `select count(*) from `+table)
	c.refuse(there != len(all), fmt.Errorf("%s: %d of %d arrived", table, there, len(all)))
	return fmt.Sprintf("%d %s", there, table)
}
