//go:build postgres

// migrate_postgres.go: the tables of the store in PostgreSQL, how they are made
// and upgraded when a server starts, and how a bbolt store is copied into them.
package main

import (
	"context"
	"database/sql"
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
	);`,
}

// upgrade makes the tables or adds to them what they lack. Where they lack
// nothing it needs no right to make any.
func (p *pgStore) upgrade() error {
	const selectVersion = `select schema_version from ringward`
	version := 0
	err := p.until(soon(), func(ctx context.Context) error {
		return p.db.QueryRowContext(ctx, selectVersion).Scan(&version)
	})
	if err == nil && version == len(pgSchema) || err != nil && pq.As(err, pqerror.UndefinedTable) == nil {
		return err
	}
	return p.until(time.Now().Add(upgradeTimeout), func(ctx context.Context) error {
		tx, err := p.db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer tx.Rollback()
		// The number means nothing but us. One server upgrades, the others wait.
		if _, err := tx.ExecContext(ctx, `set local statement_timeout = '1min'; select pg_advisory_xact_lock(7260152061)`); err != nil {
			return err
		}
		exists, encoding := false, ""
		err = tx.QueryRowContext(ctx, `select to_regclass('ringward') is not null, current_setting('server_encoding')`).Scan(&exists, &encoding)
		if err != nil {
			return err
		}
		if encoding != "UTF8" && encoding != "SQL_ASCII" { // any other lacks characters that people type
			return fmt.Errorf("the database has the encoding %s, make it with encoding UTF8", encoding)
		}
		if version = 0; exists {
			if err := tx.QueryRowContext(ctx, selectVersion).Scan(&version); err != nil {
				return err
			}
		}
		if version > len(pgSchema) {
			return fmt.Errorf("the tables have version %d, this ringward knows up to %d: use a newer one", version, len(pgSchema))
		}
		for ; version < len(pgSchema); version++ {
			_, err := tx.ExecContext(ctx, pgSchema[version])
			if pq.As(err, pqerror.DuplicateTable) != nil {
				return fmt.Errorf("another program keeps tables there, give ringward a database of its own: %w", err)
			} else if err != nil {
				return err
			}
		}
		if _, err := tx.ExecContext(ctx, fmt.Sprintf(`update ringward set schema_version = %d`, version)); err != nil {
			return err
		}
		return tx.Commit()
	})
}

func init() {
	migrateTo = func(from *boltStore, url string) (string, error) {
		p, err := openPG(url)
		if err != nil {
			return "", err
		}
		defer p.close()
		return p.migrate(from, time.Now())
	}
}

// migrate copies everything but what has expired, or nothing. What a database
// without users may hold, the twenty rings and invites for the first user, is
// replaced.
func (p *pgStore) migrate(from *boltStore, now time.Time) (report string, err error) {
	err = p.until(now.Add(migrateTimeout), func(ctx context.Context) error {
		tx, err := p.db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer tx.Rollback()
		if _, err := tx.ExecContext(ctx, `set local statement_timeout = 0`); err != nil {
			return err
		}
		c := &pgCall{ctx: ctx, p: p, tx: tx}
		if !c.lockEmpty() && c.err == nil {
			return errors.New("the PostgreSQL database has users already: nothing was copied")
		}
		if c.err != nil {
			return c.err
		}
		if _, err := tx.ExecContext(ctx, `delete from rings; delete from invites`); err != nil {
			return err
		}
		if report, err = copyAll(c, from, now); err != nil {
			return err
		}
		return tx.Commit()
	})
	return report, err
}

// copyAll reads one state of the bbolt store.
func copyAll(c *pgCall, from *boltStore, now time.Time) (report string, err error) {
	var counts []string
	err = from.view(func(b *bolt.Tx) error {
		// of calls fn with the live records of a kind.
		of := func(kd kind, fn func(Key) error) error {
			return eachKey(b, kd, "", func(k Key) error { return present(fn(k)) })
		}
		tables := []struct {
			name, columns string
			read          func(put func(...any) error) error
		}{
			{"users", "name, hash, disabled, created", func(put func(...any) error) error {
				return b.Bucket(bucketUsers).ForEach(func(name, _ []byte) error {
					u, err := getUser(b, string(name))
					if err != nil {
						return err
					}
					return put(u.Name, u.Hash, u.Disabled, u.Created)
				})
			}},
			{"sessions", "key, username, created, seen, idle, ends, addr, agent", func(put func(...any) error) error {
				return of(kindSession, func(k Key) error {
					s, err := getLive(b, k, now)
					if err != nil {
						return err
					}
					return put(k, s.User, s.Created, s.Seen, s.Idle, s.End, s.Addr, s.Agent)
				})
			}},
			{"tokens", "key, username, name, created, expires, used", func(put func(...any) error) error {
				return of(kindToken, func(k Key) error {
					t, err := getToken(b, k)
					if err != nil {
						return err
					}
					return put(k, t.User, t.Name, t.Created, orNULL(t.Expires), orNULL(t.Used))
				})
			}},
			{"invites", "key, username, created, expires", func(put func(...any) error) error {
				return of(kindInvite, func(k Key) error {
					i, err := getInvite(b, k, now)
					if err != nil {
						return err
					}
					return put(k, sql.NullString{String: i.User, Valid: i.User != ""}, i.Created, i.Expires)
				})
			}},
			{"rings", "id, name, bearer", func(put func(...any) error) error {
				bucket := b.Bucket(bucketRings)
				if bucket == nil { // there never were any
					return nil
				}
				return bucket.ForEach(func(key, record []byte) error {
					ring, err := getRing(key, record)
					if err != nil {
						return err
					}
					return put(ring.ID, ring.Name, ring.Bearer)
				})
			}},
		}
		for _, t := range tables {
			n, err := c.copy(t.name, t.columns, t.read)
			if err != nil {
				return fmt.Errorf("%s: %w", t.name, err)
			}
			counts = append(counts, fmt.Sprintf("%d %s", n, t.name))
		}
		if bucket := b.Bucket(bucketRings); bucket != nil {
			c.exec(setLastRing, bucket.Sequence())
		}
		return c.err
	})
	return "copied " + strings.Join(counts, ", "), err
}

var setLastRing = prepared(`update ringward set last_ring = $1`)

// copy fills a table that is empty with what read puts, and counts what is in
// it then.
func (c *pgCall) copy(table, columns string, read func(put func(...any) error) error) (n int, err error) {
	st, err := c.tx.PrepareContext(c.ctx, `copy `+table+` (`+columns+`) from stdin`)
	if err != nil {
		return 0, err
	}
	defer st.Close()
	err = read(func(row ...any) error {
		n++
		_, err := st.ExecContext(c.ctx, row...)
		return err
	})
	if err == nil {
		_, err = st.ExecContext(c.ctx) // what is buffered
	}
	there := 0
	if err == nil {
		err = c.tx.QueryRowContext(c.ctx, `select count(*) from `+table).Scan(&there)
	}
	if err == nil && there != n {
		err = fmt.Errorf("%d of %d arrived", there, n)
	}
	return n, err
}
