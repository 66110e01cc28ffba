//go:build postgres

// store_postgres_test.go: the store in a real PostgreSQL. .ci/postgres starts one
// and runs these tests:
//
//	RINGWARD_TEST_POSTGRES  postgres:// URL of a server where they may create databases
//	RINGWARD_TEST_PGBIN     folder of initdb and postgres, of which they start their own to make fail
package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"database/sql"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/lib/pq"
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
	return databaseOn(t, fromEnv(t, "RINGWARD_TEST_POSTGRES"))
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
	execPG(t, server, "create database "+name)
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
	t.Cleanup(func() { p.close() })
	return p
}

func TestPostgresConformance(t *testing.T) {
	fromEnv(t, "RINGWARD_TEST_POSTGRES") // said once, not by every promise
	conformance(t, func(t *testing.T) fullStore { return openTestPG(t, testDatabase(t)) })
}

// What a store says when it cannot tell is an error, and never that something
// is not there.
func cannotTell(err error) bool {
	return err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrExist)
}

// impatient is the 2 s that are promised, and what a busy machine adds.
const impatient = 2500 * time.Millisecond

// healing is how long a store may take until it works again by itself.
const healing = 5 * time.Second

// heals waits until fn has no error.
func heals(t *testing.T, fn func() error) {
	t.Helper()
	within(t, healing, fn)
}

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

// inUse is a store with the user frodo, who is logged in.
type inUse struct {
	conformed
	p     *pgStore
	frodo User
	own   Session
	now   time.Time
}

func putToUse(t *testing.T, dsn string) *inUse {
	p := openTestPG(t, dsn)
	now := time.Now().Truncate(time.Second)
	u := &inUse{conformed{t, p}, p, User{Name: "frodo", Hash: "hash", Created: now}, newSession("frodo", now), now}
	for _, err := range []error{p.addUser(u.frodo), p.login(u.frodo, u.own, Key{}, ""), p.seedRings()} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return u
}

// calls are some of each kind: shared, single and in a transaction.
func (u *inUse) calls() map[string]func() error {
	return map[string]func() error{
		"ping":    u.p.ping,
		"session": func() error { _, _, err := u.p.session(u.own.Key, u.now); return err },
		"rings":   func() error { _, err := u.p.rings(); return err },
		"user":    func() error { _, err := u.p.user("frodo"); return err },
		"renew":   func() error { return u.p.renew(u.own.Key, u.now, u.now.Add(time.Hour)) },
		"login":   func() error { return u.p.login(u.frodo, newSession("frodo", u.now), Key{}, "") },
		"invite":  func() error { return u.p.addInvite(Invite{newKey(), "frodo", u.now, u.now.Add(time.Hour)}) },
	}
}

// allFail makes each call ten times at once, more than there are connections.
func (u *inUse) allFail(what string) {
	u.Helper()
	calls := u.calls()
	names := slices.Sorted(maps.Keys(calls))
	u.together(10*len(names), func(i int) error {
		begin, name := time.Now(), names[i%len(names)]
		err := calls[name]()
		if took := time.Since(begin); took > impatient || !cannotTell(err) {
			return fmt.Errorf("%s: %s: got %v after %v", what, name, err, took)
		}
		return nil
	})
}

// allHeal waits until each call works, and then wants no more errors.
func (u *inUse) allHeal(what string) {
	u.Helper()
	calls := u.calls()
	for name, call := range calls {
		heals(u.T, func() error {
			if err := call(); err != nil {
				return fmt.Errorf("%s: %s: %w", what, name, err)
			}
			return nil
		})
	}
	u.allWork(what)
}

func (u *inUse) allWork(what string) {
	u.Helper()
	calls := u.calls()
	names := slices.Sorted(maps.Keys(calls))
	u.together(10*len(names), func(i int) error {
		if err := calls[names[i%len(names)]](); err != nil {
			return fmt.Errorf("%s: %s: %w", what, names[i%len(names)], err)
		}
		return nil
	})
}

// pgCluster is a PostgreSQL of the test's own.
type pgCluster struct {
	bin, dir, port string
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
	c := &pgCluster{bin: fromEnv(t, "RINGWARD_TEST_PGBIN"), dir: dir, port: freePort(t), settings: settings, as: &syscall.SysProcAttr{}}
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

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

func (c *pgCluster) data() string { return filepath.Join(c.dir, "data") }

func (c *pgCluster) url() string {
	return "postgres://postgres@127.0.0.1:" + c.port + "/postgres?sslmode=disable"
}

// start returns when the server takes connections.
func (c *pgCluster) start(t *testing.T) {
	t.Helper()
	args := []string{"-D", c.data(), "-p", c.port, "-k", c.dir, "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"}
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
	db, err := sql.Open("postgres", c.url())
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for begin := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		if err = db.Ping(); err == nil {
			return
		}
		if time.Since(begin) > 30*time.Second {
			c.stop()
			t.Fatalf("PostgreSQL does not start: %v\n%s", err, log.String())
		}
	}
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

// backends answers the server's child processes.
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
	u.allWork("before") // which opens every connection there may be

	c.stop()
	u.allFail("stopped")
	c.start(t)
	u.allHeal("started again")

	// All connections are dead now, and nobody has noticed: that costs no call.
	u.allWork("before")
	c.stop()
	c.start(t)
	u.allWork("restarted")

	// A backend that dies takes all others with it: PostgreSQL starts over.
	syscall.Kill(c.backends()[0], syscall.SIGKILL)
	u.allHeal("a process killed")
}

// A file that is not there must not pass for a session that is not.
func TestPostgresSocketIsGone(t *testing.T) {
	c := newCluster(t)
	where, _ := url.Parse(databaseOn(t, c.url()))
	where.Host, where.RawQuery = "", url.Values{"host": {c.dir}, "port": {c.port}}.Encode()
	u := putToUse(t, where.String())
	u.allWork("before")
	c.stop()
	u.allFail("stopped")
	c.start(t)
	u.allHeal("started again")
}

// writeCertificate makes a certificate for 127.0.0.1 that signs itself.
func (c *pgCluster) writeCertificate(t *testing.T, name string) (file string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true,
		BasicConstraintsValid: true, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
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
		p.close()
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
	u.p.db.SetMaxIdleConns(0) // closes all
	u.p.db.SetMaxIdleConns(pgConns)
	if err := os.Rename(own+".crt", own+".away"); err != nil {
		t.Fatal(err)
	}
	u.allFail("the certificate to check with is gone")
	if err := os.Rename(own+".away", own+".crt"); err != nil {
		t.Fatal(err)
	}
	u.allHeal("it is there again")
}

func TestPostgresConnectionsEnd(t *testing.T) {
	dsn := testDatabase(t)
	u := putToUse(t, dsn)
	for range 5 {
		u.allWork("before")
		execPG(t, dsn, "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()")
		u.allWork("after connections were ended")
	}
}

func TestPostgresStalls(t *testing.T) {
	c := newCluster(t)
	u := putToUse(t, databaseOn(t, c.url()))
	for _, opened := range []bool{true, false} {
		if opened {
			u.allWork("before")
		} else { // and none can be opened
			u.p.db.SetMaxIdleConns(0)
			u.p.db.SetMaxIdleConns(pgConns)
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
	dsn := databaseOn(t, c.url())
	u := putToUse(t, dsn)
	u.allWork("before")
	u.p.db.SetMaxIdleConns(0) // closes all
	u.p.db.SetMaxIdleConns(pgConns)
	others, err := sql.Open("postgres", c.url())
	if err != nil {
		t.Fatal(err)
	}
	defer others.Close()
	var held []*sql.Conn
	heals(t, func() error { // those that were closed are gone a little later
		for {
			conn, err := others.Conn(context.Background())
			if pq.As(err, "53300") != nil {
				if len(held) < 25 {
					return fmt.Errorf("only %d connections taken", len(held))
				}
				return nil
			} else if err != nil {
				return err
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
	deny := func(what string) {
		t.Helper()
		for name, call := range u.calls() {
			if name == "rings" || name == "user" { // let nobody in
				continue
			}
			if begin, err := time.Now(), call(); !cannotTell(err) || time.Since(begin) > impatient {
				t.Errorf("%s: %s: got %v", what, name, err)
			}
		}
	}
	u.allWork("before")
	execPG(t, c.url(), "alter system set default_transaction_read_only = on", "select pg_reload_conf()")
	heals(t, func() error { // until every connection has heard of it
		for range 2 * pgConns {
			if u.p.ping() == nil {
				return errors.New("ping works")
			}
		}
		return nil
	})
	deny("configured read-only")
	if _, _, err := u.p.session(newKey(), u.now); err == nil {
		t.Error("a session that never was")
	}
	execPG(t, c.url()+"&default_transaction_read_only=off", "alter system reset default_transaction_read_only", "select pg_reload_conf()")
	u.allHeal("read-write again")

	// A server that was made a standby, until it is promoted.
	c.stop()
	signal := filepath.Join(c.data(), "standby.signal")
	if err := os.WriteFile(signal, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	c.start(t)
	deny("standby")
	u.allFail("standby")
	execPG(t, c.url(), "select pg_promote()")
	u.allHeal("promoted")
}

// tcpProxy passes connections on to where pick says. It asks cut about all that
// clients send, and where cut says so, passes that on and no answer to it.
func tcpProxy(t *testing.T, pick func() (net.Conn, error), cut func([]byte) bool) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer client.Close()
				server, err := pick()
				if err != nil {
					return
				}
				defer server.Close()
				var silent atomic.Bool
				go func() {
					defer client.Close()
					b := make([]byte, 64<<10)
					for {
						n, err := server.Read(b)
						if err != nil || silent.Load() { // the answer to what was cut: it is done
							return
						}
						if _, err := client.Write(b[:n]); err != nil {
							return
						}
					}
				}()
				b := make([]byte, 64<<10)
				for {
					n, err := client.Read(b)
					if err != nil {
						return
					}
					if cut(b[:n]) {
						silent.Store(true)
					}
					if _, err := server.Write(b[:n]); err != nil {
						return
					}
				}
			}()
		}
	}()
	return l.Addr().String()
}

// A connection that ends after the commit was sent leaves open whether it
// happened. It must not pass for success, nor be tried again.
func TestPostgresCommitUnknown(t *testing.T) {
	dsn := testDatabase(t)
	u := putToUse(t, dsn)
	where, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	server := where.Host
	var after atomic.Value // the text that is the last to get through
	after.Store("")
	where.Host = tcpProxy(t, func() (net.Conn, error) { return net.Dial("tcp", server) }, func(sent []byte) bool {
		text := after.Load().(string)
		return text != "" && bytes.Contains(sent, []byte(text))
	})
	p := openTestPG(t, where.String())
	s := newSession("frodo", u.now)
	for name, call := range map[string]func() error{
		"login":       func() error { return p.login(u.frodo, s, Key{}, "") },
		"add a ring":  func() error { _, err := p.addRing(Ring{Name: "new", Bearer: "none"}); return err },
		"add a user":  func() error { return p.addUser(User{Name: "sam", Created: u.now}) },
		"remove ring": func() error { return p.removeRing(1) },
	} {
		after.Store("COMMIT")
		if err := call(); !cannotTell(err) {
			t.Errorf("%s: %v after a commit without an answer", name, err)
		}
		after.Store("")
		if err := p.ping(); err != nil {
			t.Errorf("after that: %v", err)
		}
	}
	// Every one of them happened, and once.
	if _, _, err := u.p.session(s.Key, u.now); err != nil {
		t.Errorf("session: %v", err)
	}
	if all, err := u.p.rings(); err != nil || len(all) != 20 || all[19].ID != 21 || all[0].ID != 2 {
		t.Errorf("rings: %v, %v", all, err)
	}
	if _, err := u.p.user("sam"); err != nil {
		t.Errorf("user: %v", err)
	}
}

func TestPostgresLockedRow(t *testing.T) {
	dsn := testDatabase(t)
	u := putToUse(t, dsn)
	db, err := sql.Open("postgres", dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	tx, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec("select from users for update"); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	// It is the database that gives up, so the connection can go on.
	if err := u.calls()["login"](); pq.As(err, "57014") == nil || !cannotTell(err) || time.Since(begin) > impatient {
		t.Errorf("login: %v after %v", err, time.Since(begin))
	}
	if err := u.calls()["session"](); err != nil {
		t.Errorf("reading meanwhile: %v", err)
	}
	tx.Rollback()
	u.allWork("after that")
}

func TestPostgresFirstStarts(t *testing.T) {
	dsn := testDatabase(t)
	c := conformed{T: t}
	c.together(4, func(int) error {
		p, err := openPG(dsn)
		if err == nil {
			err = errors.Join(p.seedRings(), p.ping(), p.close())
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
			p.close()
			t.Errorf("want %q", want)
		} else if !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hush") || time.Since(begin) > impatient {
			t.Errorf("got %v after %v, want %q", err, time.Since(begin), want)
		}
	}
	dsn := testDatabase(t)
	openTestPG(t, dsn).close()
	execPG(t, dsn, "update ringward set schema_version = 99")
	open(dsn, "version 99, this ringward knows up to 1")

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
	open("postgres://frodo:hush@127.0.0.1:"+freePort(t)+"/db", "refused")
	where.User, where.RawQuery = url.UserPassword("frodo", "hush"), "sslmode=require"
	open(where.String(), "?sslmode=disable")

	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	for _, more := range []string{"disable", "require", "disable&connect_timeout=60"} {
		open("postgres://frodo:hush@"+silent.Addr().String()+"/db?sslmode="+more, "timeout")
	}
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
	where.Host, where.RawQuery = "127.0.0.1,127.0.0.1", query.Encode()
	openTestPG(t, where.String())
}

// The server's role needs no right to make tables once they are there.
func TestPostgresLeastPrivilege(t *testing.T) {
	dsn := testDatabase(t)
	openTestPG(t, dsn).close()
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

func TestPostgresSweepsInBatches(t *testing.T) {
	dsn := testDatabase(t)
	u := putToUse(t, dsn)
	execPG(t, dsn, fmt.Sprintf(`insert into sessions (key, username, created, seen, idle, ends, addr, agent)
		select sha256(i::text::bytea), 'frodo', t, t, t, t, '', '' from generate_series(1, %d) i, (select timestamptz '2020-01-01' t) t`, 5*pgSweep))
	var swept atomic.Int64
	u.together(3, func(int) error {
		n, err := u.p.sweep(context.Background(), u.now)
		swept.Add(int64(n))
		return err
	})
	if n := swept.Load(); n != 5*pgSweep {
		t.Errorf("swept %d of %d", n, 5*pgSweep)
	}
	u.isLive("a live session", u.own.Key, u.now, true)
}

// Calls that wait share queries, and each gets the answer to its own.
func TestPostgresSharesQueries(t *testing.T) {
	var s pgShared[int, []int]
	queries, underWay, failed, release := atomic.Int64{}, atomic.Int64{}, atomic.Int64{}, make(chan struct{})
	s.init(func(_ time.Time, asked []int) ([]int, error) {
		queries.Add(1)
		underWay.Add(int64(len(asked)))
		<-release
		return slices.Clone(asked), nil
	})
	const calls = 200
	var all sync.WaitGroup
	for i := range calls {
		all.Go(func() {
			if got, err := s.get(i); err != nil || !slices.Contains(got, i) {
				failed.Add(1)
				t.Errorf("call %d: got %v, %v", i, got, err)
			}
		})
	}
	within(t, time.Minute, func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		n := int(underWay.Load() + failed.Load())
		if s.next != nil {
			n += len(s.next.asked)
		}
		if n < calls {
			return fmt.Errorf("%d have asked", n)
		}
		return nil
	})
	close(release)
	all.Wait()
	if n := int(queries.Load()); n > pgConns/2+1 {
		t.Errorf("%d queries for %d calls", n, calls)
	}
}

func TestMigrate(t *testing.T) {
	from, err := openStore(filepath.Join(t.TempDir(), "old.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer from.close()
	b := conformed{t, from}
	now := noon.Add(30 * time.Minute)
	frodo, sam := b.add("frodo"), b.add("sam")
	b.must(b.disableUser("sam", true))
	sam.Disabled = true
	s, over := b.in(frodo, noon), b.in(frodo, noon.Add(-time.Hour))
	s.Seen, s.Idle = now, noon.Add(90*time.Minute)
	b.must(b.renew(s.Key, s.Seen, s.Idle))
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
	if want := "copied 2 users, 1 sessions, 2 tokens, 1 invites, 19 rings"; err != nil || report != want {
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
	if got, err := c.invite(i.Key, now); err != nil || got != i {
		t.Errorf("invite: %+v, %v", got, err)
	}
	c.must(c.removeUser("frodo"))
	c.must(c.removeUser("sam"))
	_, err = c.invite(first.Key, now)
	c.is("the first user's invite from before", err, fs.ErrNotExist)
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

	empty, err := openStore(filepath.Join(t.TempDir(), "empty.db"))
	b.must(err)
	defer empty.close()
	into := openTestPG(t, testDatabase(t))
	if report, err := into.migrate(empty, now); err != nil || report != "copied 0 users, 0 sessions, 0 tokens, 0 invites, 0 rings" {
		t.Errorf("of nothing: %q, %v", report, err)
	}
	c.must(into.seedRings())
	if all, err := into.rings(); err != nil || len(all) != 20 {
		t.Errorf("rings after that: %v, %v", all, err)
	}
}

// pgProgram is the program as it is built for PostgreSQL, in a folder and with
// an environment of its own.
type pgProgram struct {
	*testing.T
	binary, dir string
	env         []string
}

// The program as an operator runs it.
func TestPostgresProgram(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "ringward")
	if out, err := exec.Command("go", "build", "-tags", "postgres", "-o", binary, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	for name, test := range map[string]func(*testing.T, string){
		"several servers":   testServers,
		"servers killed":    testServersKilled,
		"database fails":    testServerWithoutDatabase,
		"commands, migrate": testPGCommands,
	} {
		t.Run(name, func(t *testing.T) { test(t, binary) })
	}
}

func newPGProgram(t *testing.T, binary, db string) *pgProgram {
	return &pgProgram{t, binary, t.TempDir(), []string{"RINGWARD_DB=" + db, "RINGWARD_BCRYPT_COST=10", "SECRET_KEY=" + testKey}}
}

func (p *pgProgram) command(stdin string, args ...string) (code int, stdout, stderr string) {
	p.Helper()
	cmd := exec.Command(p.binary, args...)
	var out, errs bytes.Buffer
	cmd.Dir, cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = p.dir, p.env, strings.NewReader(stdin), &out, &errs
	if err := cmd.Run(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		p.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// must answers what a command printed, which must succeed.
func (p *pgProgram) must(stdin string, args ...string) string {
	p.Helper()
	code, stdout, stderr := p.command(stdin, args...)
	if code != 0 {
		p.Fatalf("ringward %q: exit %d, %s", args, code, stderr)
	}
	return stdout
}

func (p *pgProgram) addUser(name string) {
	p.Helper()
	p.must(testPassword+"\n", "user", "add", "-password-stdin", name)
}

// pgServer is a server that runs.
type pgServer struct {
	cmd *exec.Cmd
	url string
}

// serve starts n servers at the same time.
func (p *pgProgram) serve(n int) (all []*pgServer) {
	p.Helper()
	var logs []*os.File
	for range n {
		log, err := os.CreateTemp(p.dir, "log-")
		if err != nil {
			p.Fatal(err)
		}
		s := &pgServer{cmd: exec.Command(p.binary, "-addr", "127.0.0.1:0")}
		s.cmd.Dir, s.cmd.Env, s.cmd.Stderr = p.dir, p.env, log
		if err := s.cmd.Start(); err != nil {
			p.Fatal(err)
		}
		p.Cleanup(s.kill)
		all, logs = append(all, s), append(logs, log)
	}
	for i, s := range all {
		within(p.T, 20*time.Second, func() error {
			log, err := os.ReadFile(logs[i].Name())
			_, rest, _ := strings.Cut(string(log), "listening on ")
			address, _, ok := strings.Cut(rest, "\n")
			if s.url = address; !ok {
				return fmt.Errorf("it does not listen: %s %v", log, err)
			}
			return nil
		})
		logs[i].Close()
	}
	if p.Failed() {
		p.FailNow()
	}
	return all
}

func (s *pgServer) kill() {
	s.cmd.Process.Kill()
	s.cmd.Wait()
}

func (s *pgServer) stop(t *testing.T) {
	t.Helper()
	s.cmd.Process.Signal(syscall.SIGTERM)
	if err := s.cmd.Wait(); err != nil {
		t.Errorf("a server ended with %v", err)
	}
}

// balancer hands each connection to the next server that takes it.
type balancer struct {
	mu    sync.Mutex
	hosts []string
	turn  int
}

func (b *balancer) set(i int, s *pgServer) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.hosts[i] = strings.TrimPrefix(s.url, "http://")
}

func (b *balancer) dial() (conn net.Conn, err error) {
	b.mu.Lock()
	hosts := slices.Clone(b.hosts)
	b.turn++
	turn := b.turn
	b.mu.Unlock()
	for i := range hosts {
		if conn, err = net.Dial("tcp", hosts[(turn+i)%len(hosts)]); err == nil {
			break
		}
	}
	return conn, err
}

func balance(t *testing.T, servers []*pgServer) (*balancer, string) {
	b := &balancer{hosts: make([]string, len(servers))}
	for i, s := range servers {
		b.set(i, s)
	}
	return b, "http://" + tcpProxy(t, b.dial, func([]byte) bool { return false })
}

// ask makes a connection for each request. A status of 0 is no answer.
func ask(method, address, body, cookie string) (status int, header http.Header) {
	r, err := http.NewRequest(method, address, strings.NewReader(body))
	if err != nil {
		return 0, nil
	}
	r.Close = true
	r.Header.Set("Cookie", cookie)
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	w, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		return 0, nil
	}
	defer w.Body.Close()
	if _, err := io.Copy(io.Discard, w.Body); err != nil {
		return 0, nil
	}
	return w.StatusCode, w.Header
}

func logIn(base, user string) (status int, cookie string) {
	status, header := ask("POST", base+"/auth/session", credentials(user, testPassword), "")
	cookie, _, _ = strings.Cut(header.Get("Set-Cookie"), ";")
	return status, cookie
}

func testServers(t *testing.T, binary string) {
	p := newPGProgram(t, binary, testDatabase(t))
	servers := p.serve(4) // the first starts of an empty database
	p.addUser("frodo")
	servers[3].stop(t)
	_, base := balance(t, servers[:3])
	status, cookie := logIn(base, "frodo")
	if status != 201 {
		t.Fatalf("login: %d", status)
	}
	for range 6 {
		if status, _ := ask("GET", base+"/ringsofpower", "", cookie); status != 200 {
			t.Errorf("logged in on another: %d", status)
		}
	}
	everywhere := func(what string, want int) {
		t.Helper()
		for i, s := range servers[:3] {
			if status, _ := ask("GET", s.url+"/ringsofpower", "", cookie); status != want {
				t.Errorf("%s, server %d: %d, want %d", what, i, status, want)
			}
		}
	}
	everywhere("logged in", 200)
	if status, _ := ask("DELETE", base+"/auth/session", "", cookie); status != 204 {
		t.Errorf("logout: %d", status)
	}
	everywhere("logged out on one", 401)
	_, cookie = logIn(base, "frodo")
	everywhere("logged in", 200)
	p.must("", "user", "disable", "frodo")
	everywhere("disabled by a command", 401)
	for _, s := range servers[:3] {
		s.stop(t)
	}
}

func testServersKilled(t *testing.T, binary string) {
	p := newPGProgram(t, binary, testDatabase(t))
	servers := p.serve(3)
	b, base := balance(t, servers)
	const people = 6
	for i := range people {
		p.addUser(fmt.Sprint("user", i))
	}
	var mu sync.Mutex
	in, out := map[string]bool{}, map[string]bool{} // cookies, as the answers left them
	stop := make(chan struct{})
	var all sync.WaitGroup
	for i := range people {
		all.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				status, cookie := logIn(base, fmt.Sprint("user", i))
				if status != 201 {
					continue // killed, or no answer in time
				}
				if status, _ := ask("GET", base+"/ringsofpower", "", cookie); status == 401 {
					t.Error("an answered login is lost")
				}
				leaves, left := n%2 == 1, false
				if leaves {
					status, _ := ask("DELETE", base+"/auth/session", "", cookie)
					left = status == 204
				}
				mu.Lock()
				if left {
					out[cookie] = true
				} else if !leaves {
					in[cookie] = true
				}
				mu.Unlock()
			}
		})
	}
	enough := func(n int) {
		within(t, time.Minute, func() error {
			mu.Lock()
			defer mu.Unlock()
			if len(in) < n || len(out) < n {
				return fmt.Errorf("only %d logins and %d logouts", len(in), len(out))
			}
			return nil
		})
	}
	for i, s := range servers {
		enough(2 + 4*i)
		s.kill()
		enough(4 + 4*i)
		b.set(i, p.serve(1)[0])
	}
	enough(14)
	close(stop)
	all.Wait()
	for want, cookies := range map[int]map[string]bool{200: in, 401: out} {
		for cookie := range cookies {
			if status, _ := ask("GET", base+"/ringsofpower", "", cookie); status != want {
				t.Errorf("got %d, want %d", status, want)
			}
		}
	}
	t.Logf("%d logins, %d logouts", len(in), len(out))
}

func testServerWithoutDatabase(t *testing.T, binary string) {
	c := newCluster(t)
	p := newPGProgram(t, binary, databaseOn(t, c.url()))
	s := p.serve(1)[0]
	p.addUser("frodo")
	_, cookie := logIn(s.url, "frodo")
	requests := []struct{ method, path, body, cookie string }{
		{"GET", "/ringsofpower", "", cookie},
		{"GET", "/auth/session", "", cookie},
		{"GET", "/auth/verify", "", cookie},
		{"GET", "/healthz", "", ""},
		{"POST", "/auth/session", credentials("frodo", testPassword), ""},
		{"POST", "/auth/session", credentials("nobody", testPassword), ""},
		{"DELETE", "/auth/session", "", cookie},
		{"GET", "/auth/invites/" + strings.Repeat("a", 43), "", ""},
	}
	fails := func(what string) {
		t.Helper()
		var all sync.WaitGroup
		for _, r := range requests {
			all.Go(func() {
				begin := time.Now()
				status, header := ask(r.method, s.url+r.path, r.body, r.cookie)
				if took := time.Since(begin); status != 503 || header.Get("Retry-After") == "" || header.Get("Set-Cookie") != "" || took > impatient {
					t.Errorf("%s: %s %s: %d %v after %v", what, r.method, r.path, status, header, took)
				}
			})
		}
		all.Wait()
	}
	works := func(what string) {
		t.Helper()
		heals(t, func() error {
			for path, want := range map[string]int{"/healthz": 200, "/ringsofpower": 200, "/auth/verify": 204} {
				if status, _ := ask("GET", s.url+path, "", cookie); status != want {
					return fmt.Errorf("%s: %s: %d", what, path, status)
				}
			}
			if status, _ := logIn(s.url, "frodo"); status != 201 {
				return fmt.Errorf("%s: login: %d", what, status)
			}
			return nil
		})
	}
	works("before")
	c.signal(syscall.SIGSTOP)
	fails("stalled")
	c.signal(syscall.SIGCONT)
	works("goes on")
	c.stop()
	fails("stopped")
	c.start(t)
	works("started again")
	s.stop(t)
}

func testPGCommands(t *testing.T, binary string) {
	dsn := testDatabase(t)
	status := func(s *pgServer, header, value string) int {
		r, err := http.NewRequest("GET", s.url+"/ringsofpower", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set(header, value)
		w, err := http.DefaultTransport.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		w.Body.Close()
		return w.StatusCode
	}
	p := newPGProgram(t, binary, "old.db") // a bbolt file, to begin with
	p.addUser("frodo")
	token := "Bearer " + strings.TrimSpace(p.must("", "token", "add", "frodo", "backup"))
	s := p.serve(1)[0]
	_, cookie := logIn(s.url, "frodo")
	if code, _, stderr := p.command("", "migrate", dsn); code != 1 || !strings.Contains(stderr, "stop the server first") {
		t.Errorf("migrate while a server runs: exit %d, %s", code, stderr)
	}
	s.stop(t)
	if got, want := p.must("", "migrate", dsn), "copied 1 users, 1 sessions, 1 tokens, 0 invites, 20 rings\n"; got != want {
		t.Errorf("migrate: %q, want %q", got, want)
	}
	if code, stdout, stderr := p.command("", "migrate", dsn); code != 1 || !strings.Contains(stderr, "users already") || stdout != "" {
		t.Errorf("migrate again: exit %d, %s%s", code, stdout, stderr)
	}

	p = newPGProgram(t, binary, dsn)
	s = p.serve(1)[0]
	for what, got := range map[string]int{"cookie": status(s, "Cookie", cookie), "token": status(s, "Authorization", token)} {
		if got != 200 {
			t.Errorf("%s from before: %d", what, got)
		}
	}
	var users []userView
	if err := json.Unmarshal([]byte(p.must("", "user", "list", "-json")), &users); err != nil || len(users) != 1 || users[0].State != "active" {
		t.Errorf("user list: %+v, %v", users, err)
	}
	copied := filepath.Join(t.TempDir(), "copy")
	if code, _, stderr := p.command("", "backup", copied); code != 1 || !strings.Contains(stderr, "pg_dump") {
		t.Errorf("backup: exit %d, %s", code, stderr)
	}
	if _, err := os.Stat(copied); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("backup left a file: %v", err)
	}
	p.must("", "session", "end-all", "frodo")
	if got := status(s, "Cookie", cookie); got != 401 {
		t.Errorf("after session end-all: %d", got)
	}
	s.stop(t)
}
