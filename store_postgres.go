//go:build postgres

// store_postgres.go: the store in a PostgreSQL database that several servers
// share. Built with -tags postgres only; the tables are in migrate_postgres.go.
//
// Rules of this file: no call waits longer than pgTimeout for anything; now is
// the caller's, never the database's; a transaction locks a user's row before
// what the user owns, so that no two wait for each other; what may not run
// twice runs in a transaction. The SQL is plain: no extension, no function of
// our own, no LISTEN, no right beyond that to the tables.
package main

import (
	"bytes"
	"context"
	"database/sql"
	"database/sql/driver"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"runtime"
	"slices"
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
	pgIdle    = 5 * time.Minute  // after which an unused connection is closed
	pgLife    = 30 * time.Minute // after which any is, to follow a database that moves
	pgTimeout = 2 * time.Second  // from a call to its answer, waiting for a connection included
	pgSweep   = 1000             // records that one statement of a sweep deletes
)

// pgSession is said first on every connection. A query ends in the database
// shortly before we stop waiting for it, and the locks of a server that
// vanished do not outlive it for long.
const pgSession = `set timezone = 'UTC'; set default_transaction_isolation = 'read committed';
	set statement_timeout = '1500ms'; set idle_in_transaction_session_timeout = '5s'`

func init() {
	openPostgres = func(url string) (fullStore, error) {
		p, err := openPG(url)
		if err != nil {
			return nil, err // not a nil *pgStore, which is not a nil fullStore
		}
		return p, nil
	}
}

// pgStore is the store in PostgreSQL.
type pgStore struct {
	db         *sql.DB
	slots      chan struct{} // one for each connection: database/sql itself could wait for ever
	statements []*sql.Stmt   // by statement
	logins     pgShared[Key, map[Key]pgLogin]
	lists      pgShared[struct{}, []Ring]
}

// statement is an SQL text that is prepared when the store is opened.
type statement int

var pgTexts []string // by statement

func prepared(text string) statement {
	pgTexts = append(pgTexts, text)
	return statement(len(pgTexts) - 1)
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
	config.ConnectTimeout = 0 // the deadline of the call that connects counts
	if config.TargetSessionAttrs == "" {
		// A standby may not know yet which sessions have ended.
		config.TargetSessionAttrs = pq.TargetSessionAttrsReadWrite
	}
	p := &pgStore{db: sql.OpenDB(pgConnector{config}), slots: make(chan struct{}, pgConns)}
	p.db.SetMaxIdleConns(pgConns)
	p.db.SetConnMaxIdleTime(pgIdle)
	p.db.SetConnMaxLifetime(pgLife)
	p.logins.init(p.lookUp)
	p.lists.init(p.listRings)
	if err = p.upgrade(); err == nil {
		err = p.until(time.Now().Add(upgradeTimeout), p.prepare)
	}
	if errors.Is(err, pq.ErrSSLNotSupported) {
		err = fmt.Errorf("%w (where nobody can listen in, add ?sslmode=disable)", err)
	}
	if err != nil {
		p.db.Close()
		return nil, fmt.Errorf("PostgreSQL at %s, port %d: %w", config.Host, config.Port, err)
	}
	return p, nil
}

func (p *pgStore) prepare(ctx context.Context) error {
	for _, text := range pgTexts {
		st, err := p.db.PrepareContext(ctx, text)
		if err != nil {
			return err
		}
		p.statements = append(p.statements, st)
	}
	return nil
}

func (p *pgStore) close() error { return p.db.Close() }

// until runs fn, which uses one connection at most, and all of it ends by end.
// fn runs again where the database undid it to resolve a conflict.
func (p *pgStore) until(end time.Time, fn func(context.Context) error) error {
	if err := take(p.slots, end); err != nil {
		return err
	}
	defer func() { <-p.slots }()
	// A context that is never done: lib/pq answers a done one by asking the
	// database to cancel, in vain if that is stalled, and pays a goroutine a
	// query for it. The connection has the deadline instead.
	ctx := context.WithValue(context.Background(), pgDeadline{}, end)
	err := fn(ctx)
	for try := 1; try < 4 && pq.As(err, pqerror.TRSerializationFailure, pqerror.TRDeadlockDetected) != nil; try++ {
		err = fn(ctx)
	}
	if errors.Is(err, sql.ErrNoRows) {
		return fs.ErrNotExist
	}
	if pq.As(err, pqerror.UniqueViolation) != nil {
		return fs.ErrExist
	}
	if err != fs.ErrNotExist && err != fs.ErrExist && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrExist)) {
		// A socket or a certificate that is not there is not a session that is not.
		return fmt.Errorf("PostgreSQL cannot be reached: %v", err)
	}
	return err
}

type pgDeadline struct{}

// soon is when a call that begins now ends.
func soon() time.Time { return time.Now().Add(pgTimeout) }

func take(slots chan struct{}, end time.Time) error {
	select {
	case slots <- struct{}{}:
		return nil
	default:
	}
	late := time.NewTimer(time.Until(end))
	defer late.Stop()
	select {
	case slots <- struct{}{}:
		return nil
	case <-late.C:
		return errors.New("all connections to PostgreSQL are busy")
	}
}

// pgConnector opens connections that heed pgDeadline.
type pgConnector struct{ config pq.Config }

func (c pgConnector) Driver() driver.Driver { return pq.Driver{} }

func (c pgConnector) Connect(ctx context.Context) (driver.Conn, error) {
	connector, err := pq.NewConnectorConfig(c.config)
	if err != nil {
		return nil, err
	}
	end, ok := ctx.Value(pgDeadline{}).(time.Time)
	if !ok {
		end = soon()
	}
	// A URL may name several hosts, of which the first must not take all the time.
	d := &pgDialer{each: time.Until(end) / time.Duration(1+len(c.config.Multi))}
	connector.Dialer(d)
	opened, err := connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	conn := pgConn{opened.(pqConn), d.link}
	conn.link.SetDeadline(end)
	if _, err := conn.ExecContext(ctx, pgSession, nil); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
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

// pgLink is closed by its first error: what comes late must never pass for the
// answer to another query.
type pgLink struct{ net.Conn }

// Read calls whatever ends a connection io.EOF, except the deadline. lib/pq
// makes driver.ErrBadConn of it, after which database/sql repeats a BEGIN or a
// call of alone elsewhere.
func (l pgLink) Read(b []byte) (int, error) {
	n, err := l.Conn.Read(b)
	if err != nil {
		l.Close()
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			err = io.EOF
		}
	}
	return n, err
}

func (l pgLink) Write(b []byte) (int, error) {
	n, err := l.Conn.Write(b)
	if err != nil {
		l.Close()
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

type pgConn struct {
	pqConn
	link pgLink
}

// ResetSession is called when a call takes an open connection.
func (c pgConn) ResetSession(ctx context.Context) error {
	if end, ok := ctx.Value(pgDeadline{}).(time.Time); ok && c.link.SetDeadline(end) != nil {
		return driver.ErrBadConn
	}
	return c.pqConn.ResetSession(ctx)
}

// CheckNamedValue sees each argument of each query. PostgreSQL takes no NUL and
// nothing but UTF-8, and would round times up to the microsecond.
func (c pgConn) CheckNamedValue(arg *driver.NamedValue) error {
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

// orNULL is NULL for the zero time.
func orNULL(t time.Time) sql.NullTime { return sql.NullTime{Time: micros(t), Valid: !t.IsZero()} }

// pgCall is one call of a method. After the first error it does nothing more.
type pgCall struct {
	ctx context.Context
	p   *pgStore
	tx  *sql.Tx // nil: each statement by itself
	err error
}

// alone runs fn, of one statement that may run twice: database/sql repeats it
// where the connection turns out to be dead. Without a transaction, it is one
// round trip instead of three.
func (p *pgStore) alone(end time.Time, fn func(*pgCall)) error {
	return p.until(end, func(ctx context.Context) error {
		c := &pgCall{ctx: ctx, p: p}
		fn(c)
		return c.err
	})
}

// together runs fn in a transaction. A commit without an answer is an error.
func (p *pgStore) together(fn func(*pgCall)) error {
	return p.until(soon(), func(ctx context.Context) error {
		tx, err := p.db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer tx.Rollback()
		c := &pgCall{ctx: ctx, p: p, tx: tx}
		if fn(c); c.err != nil {
			return c.err
		}
		return tx.Commit()
	})
}

func (c *pgCall) statement(s statement) *sql.Stmt {
	if c.tx != nil {
		return c.tx.StmtContext(c.ctx, c.p.statements[s])
	}
	return c.p.statements[s]
}

// exec says how many rows it was.
func (c *pgCall) exec(s statement, args ...any) (rows int64) {
	var result sql.Result
	if c.err == nil {
		result, c.err = c.statement(s).ExecContext(c.ctx, args...)
	}
	if c.err == nil {
		rows, c.err = result.RowsAffected()
	}
	return rows
}

// some is exec that wants a row, or it is fs.ErrNotExist.
func (c *pgCall) some(s statement, args ...any) {
	if c.exec(s, args...) == 0 {
		c.require(false)
	}
}

func (c *pgCall) require(ok bool) {
	if c.err == nil && !ok {
		c.err = fs.ErrNotExist
	}
}

// scan reads the one row of an answer into where.
func (c *pgCall) scan(where []any, s statement, args ...any) {
	if c.err == nil {
		c.err = c.statement(s).QueryRowContext(c.ctx, args...).Scan(where...)
	}
}

// columns is where the columns of a row are scanned to.
type columns[T any] interface {
	*T
	columns() []any
}

// collect answers all rows.
func collect[T any, P columns[T]](c *pgCall, s statement, args ...any) (all []T) {
	if c.err != nil {
		return nil
	}
	var rows *sql.Rows
	if rows, c.err = c.statement(s).QueryContext(c.ctx, args...); c.err != nil {
		return nil
	}
	defer rows.Close()
	for c.err == nil && rows.Next() {
		var row T
		c.err = rows.Scan(P(&row).columns()...)
		all = append(all, row)
	}
	if c.err == nil {
		c.err = rows.Err()
	}
	return all
}

// pgShared answers with one query what is asked while others are under way: a
// call alone pays for one, and a hundred at the same time for a few.
type pgShared[Q, A any] struct {
	query func(end time.Time, asked []Q) (A, error)
	turns chan struct{} // queries under way; the fewer, the more share one

	mu   sync.Mutex
	next *pgQuery[Q, A] // not under way yet; nil: there is none
}

type pgQuery[Q, A any] struct {
	asked []Q
	done  chan struct{} // closed when there is an answer
	all   A
	err   error
}

func (s *pgShared[Q, A]) init(query func(time.Time, []Q) (A, error)) {
	// Half of the connections are left to writes.
	s.query, s.turns = query, make(chan struct{}, pgConns/2)
}

// get answers with what was true after it was called, to all who asked: only
// to be read.
func (s *pgShared[Q, A]) get(q Q) (A, error) {
	s.mu.Lock()
	query, leads := s.next, s.next == nil
	if leads {
		query = &pgQuery[Q, A]{done: make(chan struct{}), err: errors.New("the query broke off")}
		s.next = query
	}
	query.asked = append(query.asked, q)
	s.mu.Unlock()
	if !leads {
		<-query.done
		return query.all, query.err
	}
	defer close(query.done)
	end := soon()
	err := take(s.turns, end)
	runtime.Gosched() // who is about to ask comes along
	s.mu.Lock()
	s.next = nil
	s.mu.Unlock()
	if err == nil {
		defer func() { <-s.turns }()
		query.all, err = s.query(end, query.asked)
	}
	query.err = err
	return query.all, err
}

// The methods of Store.

// writableColumn is asked for by what decides who is let in.
const writableColumn = `current_setting('transaction_read_only') = 'off'`

var errReadOnly = errors.New("PostgreSQL is read-only: sessions could not be ended now")

func (c *pgCall) writable(yes bool) {
	if c.err == nil && !yes {
		c.err = errReadOnly
	}
}

var selectPing = prepared(`select ` + writableColumn + ` from ringward`)

func (p *pgStore) ping() error {
	return p.alone(soon(), func(c *pgCall) {
		var yes bool
		c.scan([]any{&yes}, selectPing)
		c.writable(yes)
	})
}

var (
	selectUser = prepared(`select name, hash, disabled, created from users where name = $1`)
	lockUser   = prepared(`select name, hash, disabled, created from users where name = $1 for update`)
	insertUser = prepared(`insert into users (name, hash, disabled, created) values ($1, $2, $3, $4)`)
	updateHash = prepared(`update users set hash = $2 where name = $1`)
	lockFirst  = prepared(`select last_ring from ringward for update`) // the one row there always is
	anyUser    = prepared(`select exists (select 1 from users)`)
)

func (u *User) columns() []any { return []any{&u.Name, &u.Hash, &u.Disabled, &u.Created} }

func (c *pgCall) insertUser(u User) {
	c.exec(insertUser, u.Name, u.Hash, u.Disabled, u.Created)
}

// lock answers a user who is not disabled, and stays as they are until the
// transaction ends.
func (c *pgCall) lock(name string) (u User) {
	c.scan(u.columns(), lockUser, name)
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
	c.exec(lockFirst)
	c.scan([]any{&some}, anyUser)
	return !some
}

func (p *pgStore) user(name string) (u User, err error) {
	err = p.alone(soon(), func(c *pgCall) { c.scan(u.columns(), selectUser, name) })
	return u, err
}

func (p *pgStore) addUser(u User) error {
	return p.together(func(c *pgCall) {
		if c.lockEmpty() {
			c.exec(deleteFirstInvites)
		}
		c.insertUser(u)
	})
}

const (
	sessionColumns = `s.key, s.username, s.created, s.seen, s.idle, s.ends, s.addr, s.agent`
	// liveSessions has now as $1 and clockSlack after it as $2.
	liveSessions = `select ` + sessionColumns + ` from sessions s where s.expires > $1 and s.created <= $2 `
)

var (
	selectLogins = prepared(`select ` + sessionColumns + `, u.name, u.hash, u.disabled, u.created, ` + writableColumn + `
		from sessions s join users u on u.name = s.username where s.key = any ($1)`)
	selectSession     = prepared(liveSessions + `and s.key = $3`)
	selectSessions    = prepared(liveSessions + `and s.username = $3 order by s.created, s.key`)
	selectAllSessions = prepared(liveSessions)
	selectNextSession = prepared(liveSessions + `and s.key >= $3 order by s.key limit 1`)
	insertSession     = prepared(`insert into sessions (key, username, created, seen, idle, ends, addr, agent)
		values ($1, $2, $3, $4, $5, $6, $7, $8)`)
	makeRoom = prepared(`delete from sessions where key in (
		select key from sessions where expires > $1 and created <= $2 and username = $3
		order by created desc, key desc offset $4)`)
	updateSession  = prepared(`update sessions set seen = $1, idle = $4 where expires > $1 and created <= $2 and key = $3`)
	deleteSession  = prepared(`delete from sessions where key = $1`)
	deleteSessions = prepared(`delete from sessions where username = $1`)
)

func (s *Session) columns() []any {
	return []any{&s.Key, &s.User, &s.Created, &s.Seen, &s.Idle, &s.End, &s.Addr, &s.Agent}
}

// startSession is for a user who is locked: only one of them counts at a time.
func (c *pgCall) startSession(s Session) {
	c.exec(makeRoom, s.Created, s.Created.Add(clockSlack), s.User, maxSessions-1)
	c.exec(insertSession, s.Key, s.User, s.Created, s.Seen, s.Idle, s.End, s.Addr, s.Agent)
}

func (p *pgStore) login(was User, s Session, ends Key, hash string) error {
	return p.together(func(c *pgCall) {
		c.lockVerified(was)
		if hash != "" {
			c.exec(updateHash, was.Name, hash)
		}
		c.exec(deleteSession, ends)
		c.startSession(s)
	})
}

func (p *pgStore) setPassword(was User, hash string, s Session) error {
	return p.together(func(c *pgCall) {
		c.lockVerified(was)
		c.exec(updateHash, was.Name, hash)
		c.exec(deleteSessions, was.Name)
		c.exec(deleteInvites, was.Name)
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

func (p *pgStore) lookUp(end time.Time, keys []Key) (map[Key]pgLogin, error) {
	slices.SortFunc(keys, func(a, b Key) int { return bytes.Compare(a[:], b[:]) })
	var distinct pq.ByteaArray
	for _, k := range slices.Compact(keys) {
		distinct = append(distinct, k[:])
	}
	found := make(map[Key]pgLogin, len(distinct))
	err := p.alone(end, func(c *pgCall) {
		for _, l := range collect[pgLogin](c, selectLogins, distinct) {
			found[l.Key] = l
		}
	})
	return found, err
}

func (p *pgStore) session(k Key, now time.Time) (Session, User, error) {
	all, err := p.logins.get(k)
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

func (p *pgStore) renew(k Key, now, idle time.Time) error {
	return p.alone(soon(), func(c *pgCall) { c.some(updateSession, now, now.Add(clockSlack), k, idle) })
}

func (p *pgStore) endSession(k Key) error {
	return p.alone(soon(), func(c *pgCall) { c.exec(deleteSession, k) })
}

// Servers that sweep at the same time take different rows, and none waits for
// a row that somebody uses.
var sweeps = []statement{
	prepared(`delete from sessions where key in (
		select key from sessions where expires <= $1 order by expires limit $2 for update skip locked)`),
	prepared(`delete from invites where key in (
		select key from invites where expires <= $1 order by expires limit $2 for update skip locked)`),
}

func (p *pgStore) sweep(ctx context.Context, now time.Time) (swept int, err error) {
	for _, s := range sweeps {
		for n := int64(pgSweep); n == pgSweep; swept += int(n) {
			if err = ctx.Err(); err == nil {
				err = p.alone(soon(), func(c *pgCall) { n = c.exec(s, now, pgSweep) })
			}
			if err != nil {
				return swept, err
			}
		}
	}
	return swept, nil
}

// The methods of accountStore.

func (p *pgStore) sessions(user string, now time.Time) (live []Session, err error) {
	s, args := selectAllSessions, []any{now, now.Add(clockSlack)}
	if user != "" {
		s, args = selectSessions, append(args, user)
	}
	err = p.alone(soon(), func(c *pgCall) { live = collect[Session](c, s, args...) })
	return live, err
}

func (p *pgStore) endSessions(user string) error {
	return p.together(func(c *pgCall) {
		c.exec(lockUser, user)
		c.exec(deleteSessions, user)
	})
}

const tokenColumns = `t.key, t.username, t.name, t.created, t.expires, t.used`

var (
	selectToken = prepared(`select ` + tokenColumns + `, u.name, u.hash, u.disabled, u.created, ` + writableColumn + `
		from tokens t join users u on u.name = t.username
		where t.key = $1 and (t.expires is null or t.expires > $2) and not u.disabled`)
	selectTokens    = prepared(`select ` + tokenColumns + ` from tokens t where t.username = $1 order by t.created, t.key`)
	selectAllTokens = prepared(`select ` + tokenColumns + ` from tokens t`)
	countTokens     = prepared(`select count(*), count(*) filter (where name = $2) from tokens where username = $1`)
	insertToken     = prepared(`insert into tokens (key, username, name, created, expires, used) values ($1, $2, $3, $4, $5, $6)`)
	updateToken     = prepared(`update tokens set used = $2 where key = $1`)
	deleteToken     = prepared(`delete from tokens where key = $1`)
	deleteTokens    = prepared(`delete from tokens where username = $1`)
)

// zeroTime reads NULL as the zero time.
type zeroTime struct{ *time.Time }

func (z zeroTime) Scan(column any) error {
	var t sql.NullTime
	err := t.Scan(column)
	*z.Time = t.Time
	return err
}

func (t *Token) columns() []any {
	return []any{&t.Key, &t.User, &t.Name, &t.Created, zeroTime{&t.Expires}, zeroTime{&t.Used}}
}

func (p *pgStore) addToken(t Token) error {
	return p.together(func(c *pgCall) {
		n, same := 0, 0
		c.lock(t.User)
		if t.By != (Key{}) {
			c.scan(new(Session).columns(), selectSession, t.Created, t.Created.Add(clockSlack), t.By)
		}
		c.scan([]any{&n, &same}, countTokens, t.User, t.Name)
		if c.err == nil && same > 0 {
			c.err = fs.ErrExist
		} else if c.err == nil && n >= maxTokens {
			c.err = errTooMany
		}
		c.exec(insertToken, t.Key, t.User, t.Name, t.Created, orNULL(t.Expires), orNULL(t.Used))
	})
}

func (p *pgStore) tokens(user string) (all []Token, err error) {
	s, args := selectAllTokens, []any(nil)
	if user != "" {
		s, args = selectTokens, []any{user}
	}
	err = p.alone(soon(), func(c *pgCall) { all = collect[Token](c, s, args...) })
	return all, err
}

func (p *pgStore) token(k Key, now time.Time) (t Token, u User, err error) {
	err = p.alone(soon(), func(c *pgCall) {
		var yes bool
		c.scan(append(append(t.columns(), u.columns()...), &yes), selectToken, k, now)
		c.writable(yes)
	})
	return t, u, err
}

func (p *pgStore) useToken(k Key, now time.Time) error {
	return p.alone(soon(), func(c *pgCall) { c.some(updateToken, k, now) })
}

func (p *pgStore) removeToken(k Key) error {
	return p.alone(soon(), func(c *pgCall) { c.exec(deleteToken, k) })
}

var (
	selectInvite = prepared(`select i.key, coalesce(i.username, ''), i.created, i.expires
		from invites i left join users u on u.name = i.username
		where i.expires > $1 and i.created <= $2 and i.key = $3
		and case when i.username is null then not exists (select 1 from users) else not u.disabled end`)
	insertInvite       = prepared(`insert into invites (key, username, created, expires) values ($1, nullif($2, ''), $3, $4)`)
	deleteInvite       = prepared(`delete from invites where key = $1`)
	deleteInvites      = prepared(`delete from invites where username = $1`)
	deleteFirstInvites = prepared(`delete from invites where username is null`)
)

func (c *pgCall) invite(k Key, now time.Time) (i Invite) {
	c.scan([]any{&i.Key, &i.User, &i.Created, &i.Expires}, selectInvite, now, now.Add(clockSlack), k)
	return i
}

func (p *pgStore) addInvite(i Invite) error {
	return p.together(func(c *pgCall) {
		if i.User == "" {
			c.require(c.lockEmpty())
		} else {
			c.lock(i.User)
			c.exec(deleteInvites, i.User)
		}
		c.exec(insertInvite, i.Key, i.User, i.Created, i.Expires)
	})
}

func (p *pgStore) invite(k Key, now time.Time) (i Invite, err error) {
	err = p.alone(soon(), func(c *pgCall) { i = c.invite(k, now) })
	return i, err
}

func (p *pgStore) acceptInvite(k Key, u User, s Session, ends Key) error {
	return p.together(func(c *pgCall) {
		i := c.invite(k, s.Created)
		if i.User == "" {
			c.require(c.lockEmpty())
			c.some(deleteInvite, k) // it may be gone since we read it
			c.exec(deleteFirstInvites)
			c.insertUser(u)
		} else {
			c.lock(i.User)
			c.some(deleteInvite, k)
			c.exec(updateHash, i.User, u.Hash)
			c.deleteOwned(i.User)
		}
		c.exec(deleteSession, ends)
		c.startSession(s)
	})
}

// deleteOwned ends all that a user who is locked could get in with.
func (c *pgCall) deleteOwned(name string) {
	c.exec(deleteSessions, name)
	c.exec(deleteTokens, name)
	c.exec(deleteInvites, name)
}

// The methods of adminStore.

var (
	selectUsers = prepared(`select name, hash, disabled, created from users`)
	disableUser = prepared(`update users set disabled = $2 where name = $1`)
	deleteUser  = prepared(`delete from users where name = $1`) // and all that the user owns
)

func (p *pgStore) users() (all []User, err error) {
	err = p.alone(soon(), func(c *pgCall) { all = collect[User](c, selectUsers) })
	// The database would sort by the rules of some language.
	slices.SortFunc(all, func(a, b User) int { return strings.Compare(a.Name, b.Name) })
	return all, err
}

func (p *pgStore) removeUser(name string) error {
	return p.together(func(c *pgCall) { c.some(deleteUser, name) })
}

func (p *pgStore) disableUser(name string, disabled bool) error {
	return p.together(func(c *pgCall) {
		c.some(disableUser, name, disabled)
		if disabled {
			c.deleteOwned(name)
		}
	})
}

func (p *pgStore) findSession(handle string, now time.Time) (s Session, err error) {
	from, err := hex.DecodeString(handle)
	if err != nil {
		return s, fs.ErrNotExist
	}
	err = p.alone(soon(), func(c *pgCall) {
		c.scan(s.columns(), selectNextSession, now, now.Add(clockSlack), from)
		c.require(s.Key.handle() == handle)
	})
	return s, err
}

// remembered reads anew: other servers write too.
func (p *pgStore) remembered(_ string, read func() ([]byte, error)) ([]byte, error) { return read() }

func (p *pgStore) backup() (*os.File, error) {
	return nil, errors.New("a PostgreSQL database is backed up with pg_dump")
}

// The methods of ringStore.

var (
	selectRings = prepared(`select id, name, bearer from rings order by id`)
	selectRing  = prepared(`select id, name, bearer from rings where id = $1`)
	firstRings  = prepared(`update ringward set last_ring = $1 where last_ring = 0`)
	nextRing    = prepared(`update ringward set last_ring = last_ring + 1 returning last_ring`)
	insertRing  = prepared(`insert into rings (id, name, bearer) values ($1, $2, $3)`)
	updateRing  = prepared(`update rings set name = $2, bearer = $3 where id = $1`)
	deleteRing  = prepared(`delete from rings where id = $1`)
)

func (r *Ring) columns() []any { return []any{&r.ID, &r.Name, &r.Bearer} }

func (p *pgStore) seedRings() error {
	return p.together(func(c *pgCall) {
		if c.exec(firstRings, len(twentyRings)) == 0 {
			return
		}
		for i, ring := range twentyRings {
			c.exec(insertRing, i+1, ring.Name, ring.Bearer)
		}
	})
}

func (p *pgStore) listRings(end time.Time, _ []struct{}) (all []Ring, err error) {
	err = p.alone(end, func(c *pgCall) { all = collect[Ring](c, selectRings) })
	return all, err
}

func (p *pgStore) rings() ([]Ring, error) {
	all, err := p.lists.get(struct{}{})
	return append([]Ring{}, all...), err
}

func (p *pgStore) ring(id int) (ring Ring, err error) {
	err = p.alone(soon(), func(c *pgCall) { c.scan(ring.columns(), selectRing, id) })
	return ring, err
}

func (p *pgStore) addRing(ring Ring) (Ring, error) {
	err := p.together(func(c *pgCall) {
		c.scan([]any{&ring.ID}, nextRing)
		c.exec(insertRing, ring.ID, ring.Name, ring.Bearer)
	})
	return ring, err
}

func (p *pgStore) setRing(ring Ring) error {
	return p.alone(soon(), func(c *pgCall) { c.some(updateRing, ring.ID, ring.Name, ring.Bearer) })
}

func (p *pgStore) removeRing(id int) error {
	return p.together(func(c *pgCall) { c.some(deleteRing, id) })
}
