//go:build postgres

// conn_postgres.go: connections to PostgreSQL, and how every call on them ends
// in time, whatever becomes of the database.
package main

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/lib/pq"
	"github.com/lib/pq/pqerror"
)

const (
	// pgConns is how many connections one server opens at most: six servers
	// fit into the 100 that PostgreSQL allows unless it is told otherwise.
	pgConns   = 16
	pgTurns   = 2               // queries of pgShared under way; the fewer, the more share one
	pgTimeout = 2 * time.Second // from a call to its return, waiting for a connection included
)

// pgSession is said first on every connection. A query ends in the database
// shortly before we stop waiting for it, and the locks of a server that
// vanished do not outlive it for long.
const pgSession = `set timezone = 'UTC'; set default_transaction_isolation = 'read committed';
	set statement_timeout = '1500ms'; set idle_in_transaction_session_timeout = '5s'`

// pgStore is the store in PostgreSQL.
type pgStore struct {
	*pgPool
	act *Act // that together and change record; nil: none
}

type pgPool struct {
	timed func(write bool, took time.Duration) // is told how long a call took

	db     *sql.DB
	slots  chan struct{} // one for each connection
	turns  chan struct{} // one for each query of a pgShared under way
	logins pgShared[Key, map[Key]pgLogin]
	lists  pgShared[struct{}, []Ring]
}

func init() {
	openPostgres = func(url string) (fullStore, error) { return openPG(url) }
}

// openPG connects, and makes or upgrades the tables.
func openPG(dsn string) (*pgStore, error) {
	if _, err := url.Parse(dsn); err != nil { // which may quote the password
		return nil, errors.New("the PostgreSQL URL is malformed: in the password, write all but letters and digits as %XX")
	}
	config, err := pq.NewConfig(dsn)
	if err != nil {
		return nil, fmt.Errorf("the PostgreSQL URL is wrong: %w", err)
	}
	config.ConnectTimeout = 0      // the deadline of the call that connects counts
	config.BinaryParameters = true // one round trip for a query, and no prepared statements
	if config.TargetSessionAttrs == "" {
		// A standby may not know yet which sessions have ended.
		config.TargetSessionAttrs = pq.TargetSessionAttrsReadWrite
	}
	p := &pgStore{pgPool: &pgPool{db: sql.OpenDB(pgConnector{config}), slots: make(chan struct{}, pgConns), turns: make(chan struct{}, pgTurns),
		timed: func(bool, time.Duration) {}}}
	p.db.SetMaxIdleConns(pgConns)
	p.db.SetConnMaxIdleTime(5 * time.Minute)
	p.db.SetConnMaxLifetime(30 * time.Minute) // to follow a database that moves
	if err := p.upgrade(); err != nil {
		p.db.Close()
		return nil, fmt.Errorf("PostgreSQL at %s, port %d: %w", config.Host, config.Port, err)
	}
	return p, nil
}

func (p *pgStore) Close() error { return p.db.Close() }

func (p *pgStore) as(act Act) Store { return &pgStore{p.pgPool, &act} }

// pgConnector opens connections within the deadline that the context has.
type pgConnector struct{ config pq.Config }

func (c pgConnector) Driver() driver.Driver { return pq.Driver{} }

func (c pgConnector) Connect(ctx context.Context) (driver.Conn, error) {
	connector, err := pq.NewConnectorConfig(c.config)
	if err != nil {
		return nil, err
	}
	// A URL may name several hosts, of which the first must not take all the time.
	end, _ := ctx.Deadline()
	dialer := &pgDialer{each: time.Until(end) / time.Duration(1+len(c.config.Multi))}
	connector.Dialer(dialer)
	opened, err := connector.Connect(ctx)
	if err == nil {
		conn := pgConn{opened.(pqConn), dialer.link}
		if err = conn.ResetSession(ctx); err == nil {
			_, err = conn.ExecContext(ctx, pgSession, nil)
		}
		if err == nil {
			return conn, nil
		}
		conn.Close()
	}
	hint := ""
	if errors.Is(err, pq.ErrSSLNotSupported) {
		hint = " (where nobody can listen in, add ?sslmode=disable)"
	}
	// Without its chain: a socket or a certificate that is not there must not
	// pass for a session that is not.
	return nil, fmt.Errorf("cannot connect: %v%s", err, hint)
}

type pgDialer struct {
	pq.Dialer // nil: lib/pq prefers DialContext
	each      time.Duration
	link      pgLink // the latest that was dialled
}

func (d *pgDialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	end := time.Now().Add(d.each)
	conn, err := (&net.Dialer{Deadline: end}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	d.link = pgLink{conn}
	return d.link, conn.SetDeadline(end)
}

type pgLink struct{ net.Conn }

// Read makes the end of a connection io.EOF, however it ends. lib/pq makes
// driver.ErrBadConn of that, after which database/sql repeats a BEGIN or a call
// of alone elsewhere.
func (l pgLink) Read(b []byte) (int, error) {
	n, err := l.Conn.Read(b)
	if err != nil {
		l.Close() // what comes late must never pass for the answer to another query
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			err = io.EOF
		}
	}
	return n, err
}

// pqConn is the part of lib/pq's connection that database/sql may use. It lacks
// BeginTx, which would write to a database that is configured read-only.
type pqConn interface {
	driver.Conn
	driver.ConnPrepareContext
	driver.ExecerContext
	driver.QueryerContext
	driver.NamedValueChecker
	driver.SessionResetter
	driver.Validator
}

// pgConn has the deadline of the call that uses it. lib/pq by itself only asks
// the database to cancel then, and reads on: for ever, if the database is stalled.
type pgConn struct {
	pqConn
	link pgLink
}

// ResetSession is called when a call takes an open connection.
func (c pgConn) ResetSession(ctx context.Context) error {
	end, _ := ctx.Deadline()
	if c.link.SetDeadline(end) != nil {
		return driver.ErrBadConn
	}
	return c.pqConn.ResetSession(ctx)
}

// CheckNamedValue sees each argument of each query, or a pointer to it.
// PostgreSQL takes no NUL and nothing but UTF-8, and would round times up to
// the microsecond.
func (c pgConn) CheckNamedValue(arg *driver.NamedValue) error {
	if p := reflect.ValueOf(arg.Value); p.Kind() == reflect.Pointer {
		arg.Value = p.Elem().Interface()
	}
	switch v := arg.Value.(type) {
	case string:
		arg.Value = strings.ReplaceAll(strings.ToValidUTF8(v, "\uFFFD"), "\x00", " ")
	case time.Time:
		arg.Value = micros(v)
	case Key:
		arg.Value = v[:]
	default:
		return c.pqConn.CheckNamedValue(arg)
	}
	return nil
}

// micros is the time as the database has it: rounded down, so that nothing
// lives longer than it should.
func micros(t time.Time) time.Time { return t.UTC().Truncate(time.Microsecond) }

// Scan makes Key an sql.Scanner.
func (k *Key) Scan(column any) error {
	b, ok := column.([]byte)
	if !ok || len(b) != len(k) {
		return errDamaged
	}
	copy(k[:], b)
	return nil
}

// pgCall is one call of a method. After the first error it does nothing more.
type pgCall struct {
	ctx context.Context
	on  interface { // a *sql.Tx, or the *sql.DB for one statement by itself
		PrepareContext(context.Context, string) (*sql.Stmt, error)
		ExecContext(context.Context, string, ...any) (sql.Result, error)
		QueryContext(context.Context, string, ...any) (*sql.Rows, error)
		QueryRowContext(context.Context, string, ...any) *sql.Row
	}
	err error
}

// alone runs fn, of one statement that may run twice: database/sql repeats it
// where the connection turns out to be dead. Without a transaction, it is one
// round trip instead of three.
func (p *pgStore) alone(fn func(*pgCall)) error {
	defer func(from time.Time) { p.timed(false, time.Since(from)) }(time.Now())
	return p.call(pgTimeout, func(ctx context.Context) error {
		c := &pgCall{ctx: ctx, on: p.db}
		fn(c)
		return c.err
	})
}

// change is alone for an act that is not recorded, and together for one that is.
func (p *pgStore) change(fn func(*pgCall)) error {
	if p.act == nil {
		return p.alone(fn)
	}
	return p.together(fn)
}

// together runs fn in a transaction, and records the act. A commit without an
// answer is an error.
func (p *pgStore) together(fn func(*pgCall)) error { return p.togetherFor(pgTimeout, fn) }

func (p *pgStore) togetherFor(limit time.Duration, fn func(*pgCall)) error {
	defer func(from time.Time) { p.timed(true, time.Since(from)) }(time.Now())
	return p.call(limit, func(ctx context.Context) error {
		tx, err := p.db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer tx.Rollback()
		c := &pgCall{ctx: ctx, on: tx}
		if fn(c); p.act != nil {
			c.record(*p.act)
		}
		if c.err != nil {
			return c.err
		}
		return tx.Commit()
	})
}

// call runs fn, which uses one connection, and again where the database undid
// it to resolve a deadlock. All of that ends within limit.
func (p *pgStore) call(limit time.Duration, fn func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	// With database/sql's own limit, a call that waited may get a connection that
	// was opened for another: without ResetSession, and so with the other's deadline.
	if err := take(ctx, p.slots); err != nil {
		return err
	}
	defer func() { <-p.slots }()
	err := fn(ctx)
	for pq.As(err, pqerror.TRDeadlockDetected) != nil && ctx.Err() == nil {
		err = fn(ctx)
	}
	if errors.Is(err, sql.ErrNoRows) {
		return fs.ErrNotExist
	}
	return err
}

func take(ctx context.Context, slots chan struct{}) error {
	select {
	case slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return errors.New("all connections to PostgreSQL are busy")
	}
}

// exec returns how many rows it was.
func (c *pgCall) exec(query string, args ...any) (rows int64) {
	var result sql.Result
	if c.err == nil {
		result, c.err = c.on.ExecContext(c.ctx, query, args...)
	}
	if c.err == nil {
		rows, c.err = result.RowsAffected()
	}
	return rows
}

// refuse ends the call with err if no is true.
func (c *pgCall) refuse(no bool, err error) {
	if c.err == nil && no {
		c.err = err
	}
}

func (c *pgCall) require(ok bool) { c.refuse(!ok, fs.ErrNotExist) }

// collect returns all rows, each scanned to the columns of a T.
func collect[T any](c *pgCall, columns func(*T) []any, query string, args ...any) (all []T) {
	if c.err != nil {
		return nil
	}
	rows, err := c.on.QueryContext(c.ctx, query, args...)
	if c.err = err; err != nil {
		return nil
	}
	defer rows.Close()
	for c.err == nil && rows.Next() {
		var row T
		c.err = rows.Scan(columns(&row)...)
		all = append(all, row)
	}
	if c.err == nil {
		c.err = rows.Err()
	}
	return all
}

// scan reads the one row that there is into where.
func (c *pgCall) scan(where []any, query string, args ...any) {
	if c.err == nil {
		c.err = c.on.QueryRowContext(c.ctx, query, args...).Scan(where...)
	}
}

// pgShared asks in one query what is asked for while others are under way. 32
// clients at once get three times as many responses as with a query for each.
type pgShared[Q, A any] struct {
	mu   sync.Mutex
	next *pgQuery[Q, A] // not under way yet; nil: there is none
}

type pgQuery[Q, A any] struct {
	asked []Q
	done  chan struct{} // closed when there is an answer
	all   A
	err   error
}

// get returns what was true after it was called, to all who asked: only to be read.
func (s *pgShared[Q, A]) get(p *pgStore, q Q, query func(*pgCall, []Q) A) (A, error) {
	s.mu.Lock()
	if shared := s.next; shared != nil {
		shared.asked = append(shared.asked, q)
		s.mu.Unlock()
		<-shared.done
		return shared.all, shared.err
	}
	shared := &pgQuery[Q, A]{asked: []Q{q}, done: make(chan struct{}), err: errors.New("the query broke off")}
	defer close(shared.done)
	s.next = shared
	s.mu.Unlock()
	begin := sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.next = nil
	})
	defer begin() // also without a connection
	shared.err = p.alone(func(c *pgCall) {
		if c.err = take(c.ctx, p.turns); c.err == nil {
			defer func() { <-p.turns }()
			runtime.Gosched() // those about to ask join in: worth half of the gain
			begin()
			shared.all = query(c, shared.asked)
		}
	})
	return shared.all, shared.err
}
