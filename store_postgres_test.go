//go:build postgres

// store_postgres_test.go: the store in a real PostgreSQL. .ci/postgres starts one
// and runs these tests:
//
//	TEST_POSTGRES  postgres:// URL of a server where they may create databases
//	TEST_PGBIN     folder of initdb and postgres, of which they start their own to make fail
package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"database/sql"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/big"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lib/pq"
	"github.com/lib/pq/pqerror"
)

// Every test of the inner circle runs on PostgreSQL too.
func init() {
	openTestStore = func(t testing.TB) Store { return openTestPG(t, testDatabase(t)) }
}

// fromEnv fails without the variable: a test that was skipped proves nothing.
func fromEnv(t testing.TB, name string) string {
	t.Helper()
	value := os.Getenv(name)
	if value == "" {
		t.Fatalf("%s is not set: run .ci/postgres, which starts a PostgreSQL and these tests", name)
	}
	return value
}

// testDatabase makes an empty database for the test.
func testDatabase(t testing.TB) (dsn string) {
	t.Helper()
	return databaseOn(t, fromEnv(t, "TEST_POSTGRES"))
}

// databaseOn is testDatabase on the server of that URL.
func databaseOn(t testing.TB, server string) (dsn string) {
	t.Helper()
	u, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	_, key := newSecret()
	name := "test_" + key.handle()
	// With settings that are not those the store wants.
	execPG(t, server, "create database "+name, "alter database "+name+" set timezone = 'Asia/Kolkata'",
		"alter database "+name+" set default_transaction_isolation = 'serializable'")
	t.Cleanup(func() { execPG(t, server, "drop database if exists "+name+" with (force)") })
	u.Path = "/" + name
	return u.String()
}

// execPG runs an operator's statements, past the store.
func execPG(t testing.TB, dsn string, statements ...string) {
	t.Helper()
	db, err := sql.Open("postgres", dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for _, s := range statements {
		if _, err := db.Exec(s); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
}

func openTestPG(t testing.TB, dsn string) *pgStore {
	t.Helper()
	p, err := openPG(dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func TestPostgresConformance(t *testing.T) {
	fromEnv(t, "TEST_POSTGRES") // said once, not by every promise
	conformance(t, func(t *testing.T) fullStore { return openTestPG(t, testDatabase(t)) })
}

// What a store says when it cannot tell is an error, and never that something
// is not there.
func cannotTell(err error) bool {
	return err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrExist)
}

const (
	impatient = 2500 * time.Millisecond // the 2 s that are promised, and what a busy machine adds
	healing   = 6 * time.Second         // the same of the 5 s in which a store works again by itself
)

// within waits until fn has no error.
func within(t *testing.T, limit time.Duration, fn func() error) {
	t.Helper()
	var err error
	for begin := time.Now(); time.Since(begin) < limit; time.Sleep(10 * time.Millisecond) {
		if err = fn(); err == nil {
			return
		}
	}
	t.Errorf("after %v: %v", limit, err)
}

// inUse is a store with three users who are logged in.
type inUse struct {
	conformed
	p     *pgStore
	users []User
	own   []Session
	now   time.Time
}

func putToUse(t *testing.T, dsn string) *inUse {
	t.Helper()
	p := openTestPG(t, dsn)
	u := &inUse{conformed: conformed{t, p}, p: p, now: time.Now().Truncate(time.Second)}
	for _, name := range []string{"frodo", "sam", "merry"} {
		u.users = append(u.users, u.add(name))
		s := newSession(name, u.now)
		u.must(p.login(u.users[len(u.own)], s, nil, ""))
		u.own = append(u.own, s)
	}
	u.must(p.seedRings())
	return u
}

// calls are some of each kind for one of the users: shared, single and in a transaction.
func (u *inUse) calls(i int) map[string]func() error {
	user, own := u.users[i], u.own[i]
	return map[string]func() error{
		"ping":    u.p.ping,
		"session": func() error { _, _, err := u.p.session(own.Key, u.now); return err },
		"rings":   func() error { _, err := u.p.rings(); return err },
		"user":    func() error { _, err := u.p.user(user.Name); return err },
		"renew":   func() error { return u.p.renew(own.Key, u.now, u.now, u.now.Add(time.Hour)) },
		"login":   func() error { return u.p.login(user, newSession(user.Name, u.now), []Key{newKey()}, "") },
		"invite":  func() error { return u.p.addInvite(Invite{newKey(), user.Name, u.now, u.now.Add(time.Hour)}) },
	}
}

// atOnce makes each call for each user at the same time, more than there are
// connections, and hands what came of it to check.
func (u *inUse) atOnce(what string, check func(err error, took time.Duration) bool) {
	u.Helper()
	names := slices.Sorted(maps.Keys(u.calls(0)))
	u.together(len(u.users)*len(names), func(i int) error {
		name := names[i%len(names)]
		begin, err := time.Now(), u.calls(i / len(names))[name]()
		if took := time.Since(begin); !check(err, took) {
			return fmt.Errorf("%s: %s: got %v after %v", what, name, err, took)
		}
		return nil
	})
}

func (u *inUse) allFail(what string) {
	u.Helper()
	u.atOnce(what, func(err error, took time.Duration) bool { return cannotTell(err) && took < impatient })
}

func (u *inUse) allWork(what string) {
	u.Helper()
	u.atOnce(what, func(err error, _ time.Duration) bool { return err == nil })
}

// allHeal waits until each call works, and then wants no more errors.
func (u *inUse) allHeal(what string) {
	u.Helper()
	for name, call := range u.calls(0) {
		within(u.T, healing, func() error {
			if err := call(); err != nil {
				return fmt.Errorf("%s: %s: %w", what, name, err)
			}
			return nil
		})
	}
	u.allWork(what)
}

// disconnect closes all connections that are not in use.
func (u *inUse) disconnect() {
	u.p.db.SetMaxIdleConns(0)
	u.p.db.SetMaxIdleConns(pgConns)
}

// pgCluster is a PostgreSQL of the test's own, on a loopback address that nobody
// else listens on.
type pgCluster struct {
	bin, dir, host string
	settings       []string
	as             *syscall.SysProcAttr
	server         *exec.Cmd
}

func newCluster(t *testing.T, settings ...string) *pgCluster {
	t.Helper()
	dir, err := os.MkdirTemp("", "ringward-pg-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	_, k := newSecret()
	c := &pgCluster{bin: fromEnv(t, "TEST_PGBIN"), dir: dir, host: fmt.Sprintf("127.%d.%d.%d", 1+k[0]/2, k[1], 1+k[2]/2),
		settings: settings, as: &syscall.SysProcAttr{}}
	if os.Getuid() == 0 { // as which PostgreSQL does not run
		u, err := user.Lookup("postgres")
		if err != nil {
			t.Fatal(err)
		}
		uid, _ := strconv.Atoi(u.Uid)
		gid, _ := strconv.Atoi(u.Gid)
		c.as.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		if err := os.Chown(dir, uid, gid); err != nil {
			t.Fatal(err)
		}
	}
	initdb := exec.Command(c.bin+"/initdb", "-D", c.data(), "-U", "postgres", "-A", "trust", "--no-sync", "--no-instructions")
	initdb.SysProcAttr, initdb.Dir = c.as, dir
	if out, err := initdb.CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
	t.Cleanup(func() { c.stop() })
	c.start(t)
	return c
}

const pgPort = "20432"

func (c *pgCluster) data() string { return filepath.Join(c.dir, "data") }

func (c *pgCluster) url() string {
	return "postgres://postgres@" + c.host + ":" + pgPort + "/postgres?sslmode=disable"
}

func (c *pgCluster) start(t *testing.T) {
	t.Helper()
	args := []string{"-D", c.data(), "-p", pgPort, "-k", c.dir, "-c", "listen_addresses=" + c.host, "-c", "fsync=off"}
	for _, s := range c.settings {
		args = append(args, "-c", s)
	}
	c.server = exec.Command(c.bin+"/postgres", args...)
	c.server.SysProcAttr, c.server.Dir = c.as, c.dir
	var log bytes.Buffer
	c.server.Stdout, c.server.Stderr = &log, &log
	if err := c.server.Start(); err != nil {
		t.Fatal(err)
	}
	if c.ready(t); t.Failed() {
		c.stop()
		t.Fatalf("PostgreSQL does not start:\n%s", log.String())
	}
}

// ready returns when the server takes connections.
func (c *pgCluster) ready(t *testing.T) {
	t.Helper()
	db, err := sql.Open("postgres", c.url())
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	within(t, time.Minute, db.Ping)
}

// stop is pg_ctl stop -m immediate: without a goodbye, and with crash recovery
// at the next start.
func (c *pgCluster) stop() {
	if c.server != nil {
		c.signal(syscall.SIGCONT)
		c.server.Process.Signal(syscall.SIGQUIT)
		c.server.Wait()
		c.server = nil
	}
}

// backends are the server's child processes.
func (c *pgCluster) backends() (all []int) {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		stat, _ := os.ReadFile(path)
		_, rest, _ := strings.Cut(string(stat), ") ") // pid (name) state ppid …
		fields := strings.Fields(rest)
		if len(fields) > 1 && fields[1] == strconv.Itoa(c.server.Process.Pid) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			all = append(all, pid)
		}
	}
	return all
}

// signal reaches all processes of the server.
func (c *pgCluster) signal(s syscall.Signal) {
	c.server.Process.Signal(s)
	for _, pid := range c.backends() {
		syscall.Kill(pid, s)
	}
}

func TestPostgresRestarts(t *testing.T) {
	c := newCluster(t)
	u := putToUse(t, databaseOn(t, c.url()))
	u.allWork("before") // which opens connections

	c.stop()
	u.allFail("stopped")
	c.start(t)
	u.allHeal("started again")

	// All connections are dead now, and nobody has noticed: that costs no call.
	c.stop()
	c.start(t)
	u.allWork("restarted")

	// A backend that dies takes all others with it: PostgreSQL starts over.
	db, err := sql.Open("postgres", c.url())
	u.must(err)
	defer db.Close()
	other, err := db.Conn(t.Context())
	u.must(err)
	syscall.Kill(c.backends()[0], syscall.SIGKILL)
	within(t, time.Minute, func() error {
		if other.PingContext(t.Context()) == nil {
			return errors.New("other backends live")
		}
		return nil
	})
	c.ready(t)
	u.allHeal("a process killed")
}

// A file that is not there must not pass for a session that is not.
func TestPostgresSocketIsGone(t *testing.T) {
	c := newCluster(t)
	where, _ := url.Parse(databaseOn(t, c.url()))
	where.Host, where.RawQuery = "", url.Values{"host": {c.dir}, "port": {pgPort}}.Encode()
	u := putToUse(t, where.String())
	u.allWork("before")
	c.stop()
	u.allFail("stopped")
	c.start(t)
	u.allHeal("started again")
}

// writeCertificate makes a certificate for the server that signs itself.
func (c *pgCluster) writeCertificate(t *testing.T, name string) (file string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true,
		BasicConstraintsValid: true, IPAddresses: []net.IP{net.ParseIP(c.host)}}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(c.dir, name)
	for suffix, block := range map[string]*pem.Block{".crt": {Type: "CERTIFICATE", Bytes: certificate}, ".key": {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(file+suffix, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
		if as := c.as.Credential; as != nil {
			if err := os.Chown(file+suffix, int(as.Uid), int(as.Gid)); err != nil {
				t.Fatal(err)
			}
		}
	}
	return file
}

func TestPostgresTLS(t *testing.T) {
	c := newCluster(t)
	own, other := c.writeCertificate(t, "own"), c.writeCertificate(t, "other")
	c.stop()
	c.settings = []string{"ssl=on", "ssl_cert_file=" + own + ".crt", "ssl_key_file=" + own + ".key"}
	c.start(t)
	verified := func(root string) string {
		where, _ := url.Parse(databaseOn(t, c.url()))
		where.RawQuery = url.Values{"sslmode": {"verify-full"}, "sslrootcert": {root}}.Encode()
		return where.String()
	}
	if p, err := openPG(verified(other + ".crt")); err == nil {
		p.Close()
		t.Error("it trusts a stranger's certificate")
	} else if !strings.Contains(err.Error(), "certificate") {
		t.Errorf("a stranger's certificate: %v", err)
	}
	u := putToUse(t, verified(own+".crt"))
	u.allWork("before")
	c.signal(syscall.SIGSTOP)
	u.allFail("stalled")
	c.signal(syscall.SIGCONT)
	u.allHeal("goes on")
	c.stop()
	c.start(t)
	u.allWork("restarted")
	u.disconnect()
	if err := os.Rename(own+".crt", own+".away"); err != nil {
		t.Fatal(err)
	}
	u.allFail("the certificate to check with is gone")
	if err := os.Rename(own+".away", own+".crt"); err != nil {
		t.Fatal(err)
	}
	u.allHeal("it is there again")
}

func TestPostgresStalls(t *testing.T) {
	c := newCluster(t)
	u := putToUse(t, databaseOn(t, c.url()))
	u.allWork("before")
	c.server.Process.Signal(syscall.SIGSTOP) // connections that are open go on without the postmaster
	for name, call := range u.calls(0) {
		if err := call(); err != nil {
			t.Errorf("no new connections: %s: %v", name, err)
		}
	}
	c.signal(syscall.SIGCONT)
	for _, opened := range []bool{true, false} {
		if !opened { // and none can be
			u.disconnect()
		}
		c.signal(syscall.SIGSTOP)
		u.allFail("stalled")
		u.allFail("still stalled")
		c.signal(syscall.SIGCONT)
		u.allHeal("goes on")
	}
}

func TestPostgresOutOfConnections(t *testing.T) {
	c := newCluster(t, "max_connections=25")
	u := putToUse(t, databaseOn(t, c.url()))
	u.allWork("before")
	u.disconnect()
	others, err := sql.Open("postgres", c.url())
	if err != nil {
		t.Fatal(err)
	}
	defer others.Close()
	var held []*sql.Conn
	within(t, time.Minute, func() error { // those that were closed are gone a little later
		for {
			conn, err := others.Conn(t.Context())
			if pq.As(err, pqerror.TooManyConnections) != nil && len(held) == 25 {
				return nil
			} else if err != nil {
				return fmt.Errorf("%d connections taken: %w", len(held), err)
			}
			held = append(held, conn)
		}
	})
	u.allFail("out of connections")
	for _, conn := range held {
		conn.Close()
	}
	others.Close()
	u.allHeal("connections again")
}

func TestPostgresReadOnly(t *testing.T) {
	c := newCluster(t)
	u := putToUse(t, databaseOn(t, c.url()))
	u.allWork("before")
	execPG(t, c.url(), "alter system set default_transaction_read_only = on", "select pg_reload_conf()")
	within(t, time.Minute, func() error { // until the connection that is used next has heard of it
		if u.p.ping() == nil {
			return errors.New("ping works")
		}
		return nil
	})
	for name, call := range u.calls(0) {
		if name == "rings" || name == "user" { // let nobody in
			continue
		}
		if err := call(); !cannotTell(err) {
			t.Errorf("configured read-only: %s: got %v", name, err)
		}
	}
	if _, _, err := u.p.session(newKey(), u.now); err == nil {
		t.Error("a session that never was")
	}
	execPG(t, c.url()+"&default_transaction_read_only=off", "alter system reset default_transaction_read_only", "select pg_reload_conf()")
	within(t, healing, func() error { u.disconnect(); return u.p.ping() })
	u.allWork("read-write again")

	// A server that was made a standby, until it is promoted.
	c.stop()
	if err := os.WriteFile(filepath.Join(c.data(), "standby.signal"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	c.start(t)
	u.allFail("standby")
	execPG(t, c.url(), "select pg_promote()")
	u.allHeal("promoted")
}

// filter sees all that either side of a connection sends, passes on what it
// likes, and says whether the connection stays open.
type filter func(fromServer bool, sent []byte, pass func([]byte)) (open bool)

// through is the URL of a database by way of a proxy. newFilter makes one for
// each connection.
func through(t *testing.T, dsn string, newFilter func() filter) string {
	t.Helper()
	where, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	server := where.Host
	where.Host = l.Addr().String()
	forward := func(from, to net.Conn, f filter, fromServer bool) {
		defer from.Close()
		defer to.Close()
		from.(*net.TCPConn).SetLinger(0) // ends with a reset, which a client can take for worse than the end of a stream
		b := make([]byte, 64<<10)
		for open := true; open; {
			n, err := from.Read(b)
			if err != nil {
				return
			}
			open = f(fromServer, b[:n], func(part []byte) { to.Write(part) })
		}
	}
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			database, err := net.Dial("tcp", server)
			if err != nil {
				client.Close()
				continue
			}
			f := newFilter()
			go forward(client, database, f, false)
			go forward(database, client, f, true)
		}
	}()
	return where.String()
}

// That all connections have ended costs no call, however they did.
func TestPostgresConnectionsEnd(t *testing.T) {
	dsn := testDatabase(t)
	var age atomic.Int64 // connections that are older are reset when they are used
	u := putToUse(t, through(t, dsn, func() filter {
		made := age.Load()
		return func(fromServer bool, sent []byte, pass func([]byte)) bool {
			if made < age.Load() {
				return false
			}
			pass(sent)
			return true
		}
	}))
	for range 5 {
		u.allWork("before")
		age.Add(1)
		u.allWork("after connections were reset")
		execPG(t, dsn, "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()")
		u.allWork("after connections were ended")
	}
}

// The network swallows all that one side sends, while connections stay open.
func TestPostgresSilence(t *testing.T) {
	var silent [2]atomic.Bool // the client, the server
	u := putToUse(t, through(t, testDatabase(t), func() filter {
		return func(fromServer bool, sent []byte, pass func([]byte)) bool {
			if fromServer && !silent[1].Load() || !fromServer && !silent[0].Load() {
				pass(sent)
			}
			return true
		}
	}))
	for side, name := range []string{"the client is not heard", "the server is not heard"} {
		u.allWork("before")
		silent[side].Store(true)
		u.allFail(name)
		silent[side].Store(false)
		u.allHeal(name + ", for a time")
	}
}

// A commit that has no answer may have happened. It must not pass for success,
// nor be tried again.
func TestPostgresCommitUnknown(t *testing.T) {
	for _, test := range []struct {
		name    string
		arrives bool // at the database
		open    bool // the connection is, and there is no more to be heard
	}{
		{"sent and cut off", true, false},
		{"sent and not answered", true, true},
		{"cut off", false, false},
		{"lost", false, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			dsn := testDatabase(t)
			u := putToUse(t, dsn)
			var on atomic.Bool
			p := openTestPG(t, through(t, dsn, func() filter {
				var committed atomic.Bool
				return func(fromServer bool, sent []byte, pass func([]byte)) bool {
					if fromServer && committed.Load() {
						return test.open
					}
					if !fromServer && on.Load() && bytes.Contains(sent, []byte("COMMIT")) {
						committed.Store(true)
						if !test.arrives {
							return test.open
						}
					}
					pass(sent)
					return true
				}
			}))
			s := newSession("frodo", u.now)
			calls := []func() error{
				func() error { return p.login(u.users[0], s, nil, "") },
				func() error { _, err := p.addRing(Ring{Name: "new", Bearer: "none"}); return err },
				func() error { return p.addUser(User{Name: "pippin", Created: u.now}) },
				func() error { return p.removeRing(1) },
			}
			on.Store(true)
			u.together(len(calls), func(i int) error {
				begin, err := time.Now(), calls[i]()
				if took := time.Since(begin); !cannotTell(err) || took > impatient {
					return fmt.Errorf("got %v after %v", err, took)
				}
				return nil
			})
			on.Store(false)
			u.is("after that", p.ping(), nil)

			u.isLive("the session", s.Key, u.now, test.arrives)
			_, err := u.user("pippin")
			if u.is("the user", unlessAbsent(err), nil); (err == nil) != test.arrives {
				t.Errorf("the user: %v", err)
			}
			first, last := 1, 20
			if test.arrives {
				first, last = 2, 21
			}
			if all, err := u.rings(); err != nil || len(all) != 20 || all[0].ID != first || all[19].ID != last {
				t.Errorf("rings: %v, %v", all, err)
			}
		})
	}
}

// What comes after a call was given up must not pass for an answer to another.
func TestPostgresLateEnd(t *testing.T) {
	dsn := testDatabase(t)
	u := putToUse(t, dsn)
	late := make(chan struct{})
	p := openTestPG(t, through(t, dsn, func() filter {
		over := false // there was an error; its end follows
		return func(fromServer bool, sent []byte, pass func([]byte)) bool {
			if fromServer && over {
				<-late
			} else if over = fromServer && bytes.Contains(sent, []byte("statement timeout")); over {
				if end := bytes.LastIndex(sent, []byte{'Z', 0, 0, 0, 5}); end >= 0 {
					pass(sent[:end])
					sent = sent[end:]
					<-late
				}
			}
			pass(sent)
			return true
		}
	}))
	defer lock(t, dsn, "sessions")()
	begin := time.Now()
	if err := p.renew(u.own[0].Key, u.now, u.now, u.now.Add(time.Hour)); pq.As(err, pqerror.QueryCanceled) == nil || time.Since(begin) > impatient {
		t.Errorf("renewal: %v after %v", err, time.Since(begin))
	}
	close(late)
	for range 3 {
		u.is("after that", p.ping(), nil)
	}
}

// lock locks rows of a table until unlock is called.
func lock(t *testing.T, dsn, rows string) (unlock func()) {
	t.Helper()
	db, err := sql.Open("postgres", dsn)
	if err != nil {
		t.Fatal(err)
	}
	tx, err := db.Begin()
	if err == nil {
		_, err = tx.Exec("select from " + rows + " for update")
	}
	if err != nil {
		t.Fatal(err)
	}
	return func() { tx.Rollback(); db.Close() }
}

func TestPostgresLockedRow(t *testing.T) {
	dsn := testDatabase(t)
	u := putToUse(t, dsn)
	unlock := lock(t, dsn, "users")
	begin := time.Now()
	// It is the database that gives up, so the connection can go on.
	if err := u.calls(0)["login"](); pq.As(err, pqerror.QueryCanceled) == nil || time.Since(begin) > impatient {
		t.Errorf("login: %v after %v", err, time.Since(begin))
	}
	if err := u.calls(0)["session"](); err != nil {
		t.Errorf("reading meanwhile: %v", err)
	}
	unlock()
	u.allWork("after that")
}

// What the database undid to resolve a deadlock is done again.
func TestPostgresDeadlock(t *testing.T) {
	dsn := testDatabase(t)
	execPG(t, dsn, "do $$ begin execute format('alter database %I set deadlock_timeout = ''10ms''', current_database()); end $$")
	u := putToUse(t, dsn)
	db, err := sql.Open("postgres", dsn)
	u.must(err)
	defer db.Close()
	tx, err := db.Begin()
	u.must(err)
	for _, statement := range []string{"set deadlock_timeout = '1h'", "select from users where name = 'sam' for update"} {
		_, err := tx.Exec(statement)
		u.must(err)
	}
	tries, other := 0, make(chan error, 1)
	err = u.p.togetherFor(time.Minute, func(c *pgCall) {
		if tries++; tries == 2 {
			u.is("the other transaction", <-other, nil)
		}
		c.lock("frodo")
		if tries == 1 {
			go func() {
				_, err := tx.Exec("select from users where name = 'frodo' for update")
				other <- errors.Join(err, tx.Commit())
			}()
			within(t, time.Minute, func() error {
				waits := false
				err := db.QueryRow("select exists (select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock')").Scan(&waits)
				if err == nil && !waits {
					err = errors.New("the other transaction does not wait")
				}
				return err
			})
		}
		c.lock("sam")
	})
	if err != nil || tries != 2 {
		t.Errorf("%d tries, %v", tries, err)
	}
}

func TestPostgresFirstStarts(t *testing.T) {
	dsn := testDatabase(t)
	c := conformed{T: t}
	c.together(4, func(int) error {
		p, err := openPG(dsn)
		if err == nil {
			err = errors.Join(p.seedRings(), p.ping(), p.Close())
		}
		return err
	})
	p := openTestPG(t, dsn)
	if all, err := p.rings(); err != nil || len(all) != 20 {
		t.Errorf("rings: %v, %v", all, err)
	}
}

func TestPostgresRefusesToOpen(t *testing.T) {
	open := func(dsn, want string) {
		t.Helper()
		begin := time.Now()
		p, err := openPG(dsn)
		if err == nil {
			p.Close()
			t.Errorf("want %q", want)
		} else if !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hush") || time.Since(begin) > impatient {
			t.Errorf("got %v after %v, want %q", err, time.Since(begin), want)
		}
	}
	dsn := testDatabase(t)
	openTestPG(t, dsn).Close()
	execPG(t, dsn, "update ringward set schema_version = 99")
	open(dsn, "version 99, this ringward knows up to 2")

	other := testDatabase(t)
	execPG(t, other, "create table users (x int)")
	open(other, "another program")
	execPG(t, other, "drop table users")
	openTestPG(t, other)

	_, key := newSecret()
	latin := "test_" + key.handle()
	execPG(t, dsn, "create database "+latin+" encoding latin1 locale 'C' template template0")
	t.Cleanup(func() { execPG(t, dsn, "drop database "+latin) })
	where, _ := url.Parse(dsn)
	where.Path = "/" + latin
	open(where.String(), "LATIN1")
	where.Path = "/nosuch"
	open(where.String(), "does not exist")
	open("postgres://frodo:hu/sh@127.0.0.1/db", "malformed")
	open("postgres://frodo:hush@127.0.0.1:port/db", "malformed")
	open("postgres://frodo:hush%zz@127.0.0.1/db", "malformed")
	open("postgres://frodo:hush@127.0.0.1/db?sslmode=hope", "sslmode")
	open("postgres://frodo:hush@127.0.0.1:1/db", "refused")
	where.User, where.RawQuery = url.UserPassword("frodo", "hush"), "sslmode=require"
	open(where.String(), "?sslmode=disable")

	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	var all sync.WaitGroup
	for _, more := range []string{"disable", "require", "disable&connect_timeout=60"} {
		all.Go(func() { open("postgres://frodo:hush@"+silent.Addr().String()+"/db?sslmode="+more, "timeout") })
	}
	all.Wait()
}

// The first of two hosts takes connections and never answers.
func TestPostgresSecondHost(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	where, _ := url.Parse(testDatabase(t))
	query := where.Query()
	query.Set("port", strings.TrimPrefix(silent.Addr().String(), "127.0.0.1:")+","+where.Port())
	where.Host, where.RawQuery = "127.0.0.1,"+where.Hostname(), query.Encode()
	openTestPG(t, where.String())
}

// The server's role needs no right to make tables once they are there.
func TestPostgresLeastPrivilege(t *testing.T) {
	dsn := testDatabase(t)
	openTestPG(t, dsn).Close()
	_, key := newSecret()
	role := "role_" + key.handle()
	execPG(t, dsn, "create role "+role+" login", "revoke create on schema public from public",
		"grant select, insert, update, delete on all tables in schema public to "+role)
	t.Cleanup(func() { execPG(t, dsn, "drop owned by "+role, "drop role "+role) })
	where, _ := url.Parse(dsn)
	where.User = url.User(role)
	u := putToUse(t, where.String())
	u.allWork("with no right but that to the rows")
}

// Servers that sweep at the same time share the work, and none waits for a row
// that somebody uses.
func TestPostgresSweeps(t *testing.T) {
	dsn := testDatabase(t)
	u := putToUse(t, dsn)
	const over = 5000
	execPG(t, dsn, fmt.Sprintf(`insert into sessions (key, username, created, seen, idle, ends, addr, agent)
		select sha256(i::text::bytea), case i when 0 then 'sam' else 'frodo' end, t, t, t, t, '', ''
		from generate_series(0, %d) i, (select timestamptz '2020-01-01' t) t`, over))
	unlock := lock(t, dsn, "sessions where username = 'sam'")
	var swept atomic.Int64
	sweep := func(int) error {
		n, err := u.p.Sweep(context.Background(), u.now)
		swept.Add(int64(n))
		return err
	}
	if u.together(3, sweep); swept.Load() != over {
		t.Errorf("swept %d of %d", swept.Load(), over)
	}
	unlock()
	if u.together(1, sweep); swept.Load() != over+1 {
		t.Errorf("swept %d in all", swept.Load())
	}
	u.isLive("a live session", u.own[1].Key, u.now, true)
}

// Calls that wait share queries, and each gets the answer to its own.
func TestPostgresSharesQueries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &pgStore{pgPool: &pgPool{slots: make(chan struct{}, pgConns), turns: make(chan struct{}, pgTurns), timed: func(bool, time.Duration) {}}}
		var s pgShared[int, []int]
		var queries atomic.Int64
		query := func(_ *pgCall, asked []int) []int {
			queries.Add(1)
			time.Sleep(time.Second)
			return slices.Clone(asked)
		}
		var all sync.WaitGroup
		for i := range 200 {
			all.Go(func() {
				if got, err := s.get(p, i, query); err != nil || !slices.Contains(got, i) {
					t.Errorf("call %d: got %v, %v", i, got, err)
				}
			})
		}
		all.Wait()
		if n := queries.Load(); n > pgTurns+1 {
			t.Errorf("%d queries for 200 calls", n)
		}

		// Nobody waits longer than the one who asked first may.
		p.turns <- struct{}{}
		p.turns <- struct{}{}
		begin := time.Now()
		for i := range 2 {
			all.Go(func() {
				if _, err := s.get(p, i, query); !cannotTell(err) || time.Since(begin) != pgTimeout {
					t.Errorf("all turns are taken: %v after %v", err, time.Since(begin))
				}
			})
		}
		all.Wait()
		for range pgConns {
			p.slots <- struct{}{}
		}
		if err := p.alone(func(*pgCall) {}); !cannotTell(err) || time.Since(begin) != 2*pgTimeout {
			t.Errorf("all connections are taken: %v after %v", err, time.Since(begin))
		}
	})
}

func TestMigrate(t *testing.T) {
	from, err := OpenStore(filepath.Join(t.TempDir(), "old.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	b := conformed{t, from}
	now := noon.Add(30 * time.Minute)
	frodo, sam := b.add("frodo"), b.add("sam")
	b.must(b.disableUser("sam", true))
	sam.Disabled = true
	has := Factors{Seed: "sealed", Created: noon, Step: 7, Codes: []string{"a", "b"}, Passkeys: []Passkey{{Key: newKey(), ID: "x", Name: "laptop", PublicKey: []byte{1}, Created: noon}}}
	b.must(b.changeFactors(frodo, func(f *Factors) error { *f = has; return nil }, sessionsAfter{}))
	done := []Act{{noon, "frodo", "operator", "user added", ""}, {now, "frodo", "frodo", "login ok", "192.0.2.7"}}
	for _, act := range done {
		b.must(recording[fullStore](b.fullStore, act).disableUser("frodo", false))
	}
	s, over := b.in(frodo, noon), b.in(frodo, noon.Add(-time.Hour))
	s.Seen, s.Idle = now, noon.Add(90*time.Minute)
	b.must(b.renew(s.Key, s.Seen, s.Seen, s.Idle))
	tok := b.addNewToken("frodo", "ever")
	expired := Token{Key: newKey(), User: "frodo", Name: "over", Created: noon, Expires: noon.Add(time.Minute), Used: noon.Add(time.Second)}
	b.must(b.addToken(expired))
	i := b.addNewInvite("frodo")
	b.must(b.seedRings())
	b.must(b.setRing(Ring{3, "Vilya", "elrond\t\\N"}))
	b.must(b.removeRing(20))
	added, err := b.addRing(Ring{Name: "new", Bearer: "none"})
	b.must(err)
	b.must(b.removeRing(added.ID))

	dsn := testDatabase(t)
	p := openTestPG(t, dsn)
	c := conformed{t, p}
	c.must(p.seedRings()) // a server has been started on it before
	first := c.addNewInvite("")
	report, err := p.migrate(from, now)
	if want := "copied 2 users, 1 sessions, 2 tokens, 1 invites, 1 factors, 1 passkeys, 2 acts, 19 rings"; err != nil || report != want {
		t.Fatalf("got %q, %v, want %q", report, err, want)
	}
	if all, err := c.users(); err != nil || !slices.Equal(all, []User{frodo, sam}) {
		t.Errorf("users: %+v, %v", all, err)
	}
	if all, err := c.sessions("", now); err != nil || !slices.Equal(all, []Session{s}) {
		t.Errorf("sessions: %+v, %v, want %+v", all, err, s)
	}
	c.isLive("a session that was over", over.Key, noon.Add(-time.Minute), false)
	if all, err := c.tokens("frodo"); err != nil || len(all) != 2 || !slices.Contains(all, tok) || !slices.Contains(all, expired) {
		t.Errorf("tokens: %+v, %v", all, err)
	}
	_, _, err = c.token(tok.Key, now)
	c.is("a token that never expires", err, nil)
	if got, err := c.invite(i.Key, now); err != nil || got != i {
		t.Errorf("invite: %+v, %v", got, err)
	}
	if got, err := c.factors("frodo"); err != nil || !reflect.DeepEqual(got, has) {
		t.Errorf("factors: %+v, %v, want %+v", got, err, has)
	}
	if u, err := c.passkeyUser(has.Passkeys[0].Key); err != nil || u.Name != "frodo" {
		t.Errorf("passkey: %+v, %v", u, err)
	}
	c.must(c.removeUser("frodo"))
	c.must(c.removeUser("sam"))
	_, err = c.invite(first.Key, now)
	c.is("the first user's invite from before", err, fs.ErrNotExist)
	if all, err := c.acts(""); err != nil || !slices.Equal(all, done) {
		t.Errorf("acts: %+v, %v, want %+v", all, err, done)
	}
	old, err := b.rings()
	b.must(err)
	if all, err := c.rings(); err != nil || !slices.Equal(all, old) {
		t.Errorf("rings: %+v, %v, want %+v", all, err, old)
	}
	if next, err := c.addRing(Ring{Name: "newer", Bearer: "none"}); err != nil || next.ID != added.ID+1 {
		t.Errorf("the next ring: %+v, %v", next, err)
	}

	c.add("merry")
	if report, err := p.migrate(from, now); err == nil || !strings.Contains(err.Error(), "users already") {
		t.Errorf("into a database with users: %q, %v", report, err)
	}
	if all, err := c.users(); err != nil || len(all) != 1 {
		t.Errorf("after that: %+v, %v", all, err)
	}

	empty, err := OpenStore(filepath.Join(t.TempDir(), "empty.db"))
	b.must(err)
	defer empty.Close()
	into := openTestPG(t, testDatabase(t))
	if report, err := into.migrate(empty, now); err != nil || report != "copied 0 users, 0 sessions, 0 tokens, 0 invites, 0 factors, 0 passkeys, 0 acts, 0 rings" {
		t.Errorf("of nothing: %q, %v", report, err)
	}
	if err := into.backup(io.Discard); err == nil || !strings.Contains(err.Error(), "pg_dump") {
		t.Errorf("backup: %v", err)
	}
	c.must(into.seedRings())
	if all, err := into.rings(); err != nil || len(all) != 20 {
		t.Errorf("rings after that: %v, %v", all, err)
	}
}
