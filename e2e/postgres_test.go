//go:build postgres

// postgres_test.go: the program built with -tags postgres: several servers on
// one database, and what becomes of them without it. .ci/postgres starts a
// PostgreSQL and runs these tests:
//
//	TEST_POSTGRES  postgres:// URL of a server where they may create databases
//	TEST_PGBIN     folder of psql
package e2e

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

const (
	pgPassword  = "speak-friend-and-enter"
	pgImpatient = 2500 * time.Millisecond // the 2 s that are promised, and what a busy machine adds
	pgHealing   = 6 * time.Second         // the same of the 5 s in which a server works again by itself
)

func TestPostgres(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "ringward")
	build := exec.Command("go", "build", "-buildvcs=false", "-tags", "postgres", "-o", binary, ".")
	build.Dir = ".."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	for name, test := range map[string]func(*testing.T, string){
		"several servers":   pgTestServers,
		"servers killed":    pgTestServersKilled,
		"database fails":    pgTestDatabaseFails,
		"commands, migrate": pgTestCommands,
	} {
		t.Run(name, func(t *testing.T) { test(t, binary) })
	}
}

// pgDatabase makes an empty database for the test.
func pgDatabase(t *testing.T) *url.URL {
	t.Helper()
	server, bin := os.Getenv("TEST_POSTGRES"), os.Getenv("TEST_PGBIN")
	if server == "" || bin == "" {
		t.Fatal("TEST_POSTGRES or TEST_PGBIN is not set: run .ci/postgres, which starts a PostgreSQL and these tests")
	}
	psql := func(statement string) {
		t.Helper()
		if out, err := exec.Command(bin+"/psql", "-qc", statement, server).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", statement, err, out)
		}
	}
	name := "e2e_" + strings.ToLower(rand.Text())
	psql("create database " + name)
	t.Cleanup(func() { psql("drop database " + name + " with (force)") })
	where, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	where.Path = "/" + name
	return where
}

// pgWithin waits until fn has no error.
func pgWithin(t *testing.T, limit time.Duration, fn func() error) {
	t.Helper()
	var err error
	for begin := time.Now(); time.Since(begin) < limit; time.Sleep(10 * time.Millisecond) {
		if err = fn(); err == nil {
			return
		}
	}
	t.Fatalf("after %v: %v", limit, err)
}

// pgProxy takes connections and passes them on, or does not.
type pgProxy struct {
	addr string
	mode atomic.Int32
}

const (
	pgPasses int32 = iota
	pgStalls       // takes all and passes on nothing
	pgAway         // ends connections
)

func newPGProxy(t *testing.T, dial func() (net.Conn, error)) *pgProxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	p := &pgProxy{addr: l.Addr().String()}
	forward := func(from, to net.Conn) {
		defer from.Close()
		defer to.Close()
		b := make([]byte, 64<<10)
		for {
			n, err := from.Read(b)
			if err != nil || p.mode.Load() == pgAway {
				return
			}
			if p.mode.Load() == pgPasses {
				to.Write(b[:n])
			}
		}
	}
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				server, err := dial()
				if err != nil || p.mode.Load() == pgAway {
					client.Close()
					return
				}
				go forward(client, server)
				forward(server, client)
			}()
		}
	}()
	return p
}

// pgProgram is the program in a folder and with an environment of its own.
type pgProgram struct {
	*testing.T
	binary, dir string
	env         []string
}

func newPGProgram(t *testing.T, binary, db string) *pgProgram {
	return &pgProgram{t, binary, t.TempDir(), []string{"RINGWARD_DB=" + db, "RINGWARD_BCRYPT_COST=10",
		"SECRET_KEY=0123456789abcdef0123456789abcdef"}}
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

// must returns what a command printed, which must succeed.
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
	p.must(pgPassword+"\n", "user", "add", "-password-stdin", name)
}

type pgServer struct {
	*testing.T
	cmd *exec.Cmd
	url string
}

// serve starts n servers at the same time.
func (p *pgProgram) serve(n int) (all []*pgServer) {
	p.Helper()
	for range n {
		s := &pgServer{T: p.T, cmd: exec.Command(p.binary, "-addr", "127.0.0.1:0")}
		log, err := os.CreateTemp(p.dir, "log-")
		if err != nil {
			p.Fatal(err)
		}
		defer log.Close()
		s.cmd.Dir, s.cmd.Env, s.cmd.Stderr = p.dir, p.env, log
		if err := s.cmd.Start(); err != nil {
			p.Fatal(err)
		}
		p.Cleanup(s.kill)
		all = append(all, s)
	}
	for _, s := range all {
		pgWithin(p.T, time.Minute, func() error {
			log, err := os.ReadFile(s.cmd.Stderr.(*os.File).Name())
			_, rest, _ := strings.Cut(string(log), "listening on ")
			address, _, ok := strings.Cut(rest, "\n")
			if s.url = address; !ok {
				return fmt.Errorf("it does not listen: %s %v", log, err)
			}
			return nil
		})
	}
	return all
}

func (s *pgServer) kill() {
	s.cmd.Process.Kill()
	s.cmd.Wait()
}

func (s *pgServer) stop() {
	s.Helper()
	s.cmd.Process.Signal(syscall.SIGTERM)
	if err := s.cmd.Wait(); err != nil {
		s.Errorf("a server ended with %v", err)
	}
}

// pgAsk makes a connection for each request. A status of 0 is no answer.
// headers are pairs.
func pgAsk(method, address, body string, headers ...string) (status int, header http.Header) {
	r, err := http.NewRequest(method, address, strings.NewReader(body))
	if err != nil {
		return 0, nil
	}
	r.Close = true
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
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

func pgRings(base, cookie string) int {
	status, _ := pgAsk("GET", base+"/ringsofpower", "", "Cookie", cookie)
	return status
}

func pgCredentials(user string) string {
	return fmt.Sprintf(`{"username":%q,"password":%q}`, user, pgPassword)
}

func pgLogIn(base, user string) (status int, cookie string) {
	status, header := pgAsk("POST", base+"/auth/session", pgCredentials(user))
	cookie, _, _ = strings.Cut(header.Get("Set-Cookie"), ";")
	return status, cookie
}

// pgBalancer hands each connection to the next server that takes it.
type pgBalancer struct {
	mu    sync.Mutex
	hosts []string
	turn  int
}

// pgBalance starts a balancer for the servers.
func pgBalance(t *testing.T, servers []*pgServer) (b *pgBalancer, base string) {
	t.Helper()
	b = &pgBalancer{hosts: make([]string, len(servers))}
	for i, s := range servers {
		b.set(i, s)
	}
	return b, "http://" + newPGProxy(t, b.dial).addr
}

func (b *pgBalancer) set(i int, s *pgServer) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.hosts[i] = strings.TrimPrefix(s.url, "http://")
}

func (b *pgBalancer) dial() (conn net.Conn, err error) {
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

func pgTestServers(t *testing.T, binary string) {
	p := newPGProgram(t, binary, pgDatabase(t).String())
	servers := p.serve(4) // the first starts of an empty database
	p.addUser("frodo")
	servers[3].stop()
	servers = servers[:3]
	_, base := pgBalance(t, servers)
	cookie := ""
	logIn := func() {
		t.Helper()
		status := 0
		if status, cookie = pgLogIn(base, "frodo"); status != 201 {
			t.Errorf("login: %d", status)
		}
	}
	everywhere := func(what string, want int) {
		t.Helper()
		for i, s := range servers {
			if status := pgRings(s.url, cookie); status != want {
				t.Errorf("%s, server %d: %d, want %d", what, i, status, want)
			}
		}
	}
	logIn()
	everywhere("logged in on one", 200)
	if status, _ := pgAsk("DELETE", base+"/auth/session", "", "Cookie", cookie); status != 204 {
		t.Errorf("logout: %d", status)
	}
	everywhere("logged out on one", 401)
	logIn()
	everywhere("logged in again", 200)
	p.must("", "user", "disable", "frodo")
	everywhere("disabled by a command", 401)
	for _, s := range servers {
		s.stop()
	}
}

func pgTestServersKilled(t *testing.T, binary string) {
	p := newPGProgram(t, binary, pgDatabase(t).String())
	servers := p.serve(3)
	b, base := pgBalance(t, servers)
	const people = 6
	for i := range people {
		p.addUser(fmt.Sprint("user", i))
	}
	var mu sync.Mutex
	in, out := map[string]bool{}, map[string]bool{} // cookies, as the responses left them
	var stop atomic.Bool
	var all sync.WaitGroup
	for i := range people {
		all.Go(func() {
			for n := 0; n < 150 && !stop.Load(); n++ { // half of them stay, and there is room for 100
				status, cookie := pgLogIn(base, fmt.Sprint("user", i))
				if status != 201 {
					continue // killed, or no response in time
				}
				if pgRings(base, cookie) == 401 {
					t.Error("a login that was confirmed is lost")
				}
				leaves, left := n%2 == 1, false
				if leaves {
					status, _ := pgAsk("DELETE", base+"/auth/session", "", "Cookie", cookie)
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
		t.Helper()
		pgWithin(t, time.Minute, func() error {
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
	stop.Store(true)
	all.Wait()
	for want, cookies := range map[int]map[string]bool{200: in, 401: out} {
		for cookie := range cookies {
			if status := pgRings(base, cookie); status != want {
				t.Errorf("got %d, want %d", status, want)
			}
		}
	}
	t.Logf("%d logins, %d logouts", len(in), len(out))
}

func pgTestDatabaseFails(t *testing.T, binary string) {
	db := pgDatabase(t)
	real := db.Host
	database := newPGProxy(t, func() (net.Conn, error) { return net.Dial("tcp", real) })
	db.Host = database.addr
	p := newPGProgram(t, binary, db.String())
	p.addUser("frodo")
	s := p.serve(1)[0]
	_, cookie := pgLogIn(s.url, "frodo")
	requests := []struct{ method, path, body, cookie string }{
		{"GET", "/ringsofpower", "", cookie},
		{"GET", "/auth/session", "", cookie},
		{"GET", "/auth/verify", "", cookie},
		{"GET", "/healthz", "", ""},
		{"POST", "/auth/session", pgCredentials("frodo"), ""},
		{"POST", "/auth/session", pgCredentials("nobody"), ""},
		{"DELETE", "/auth/session", "", cookie},
		{"GET", "/auth/invites/" + strings.Repeat("a", 43), "", ""},
	}
	for what, mode := range map[string]int32{"stalled": pgStalls, "away": pgAway} {
		database.mode.Store(mode)
		var all sync.WaitGroup
		for _, r := range requests {
			all.Go(func() {
				begin := time.Now()
				status, header := pgAsk(r.method, s.url+r.path, r.body, "Cookie", r.cookie)
				if took := time.Since(begin); status != 503 || header.Get("Retry-After") == "" || header.Get("Set-Cookie") != "" || took > pgImpatient {
					t.Errorf("%s: %s %s: %d %v after %v", what, r.method, r.path, status, header, took)
				}
			})
		}
		all.Wait()
		database.mode.Store(pgPasses)
		pgWithin(t, pgHealing, func() error {
			for path, want := range map[string]int{"/healthz": 200, "/ringsofpower": 200, "/auth/verify": 204} {
				if status, _ := pgAsk("GET", s.url+path, "", "Cookie", cookie); status != want {
					return fmt.Errorf("after it was %s: %s: %d", what, path, status)
				}
			}
			if status, _ := pgLogIn(s.url, "frodo"); status != 201 {
				return fmt.Errorf("after it was %s: login: %d", what, status)
			}
			return nil
		})
	}
	s.stop()
}

func pgTestCommands(t *testing.T, binary string) {
	dsn := pgDatabase(t).String()
	p := newPGProgram(t, binary, "old.db") // a bbolt file, to begin with
	p.addUser("frodo")
	token := strings.TrimSpace(p.must("", "token", "add", "frodo", "backup"))
	migrating := *p
	migrating.env = append(slices.Clone(p.env), "DATABASE_URL="+dsn)
	s := p.serve(1)[0]
	_, cookie := pgLogIn(s.url, "frodo")
	if code, _, stderr := migrating.command("", "migrate"); code != 1 || !strings.Contains(stderr, "stop the server first") {
		t.Errorf("migrate while a server runs: exit %d, %s", code, stderr)
	}
	s.stop()
	if got, want := migrating.must("", "migrate"), "copied 1 users, 1 sessions, 1 tokens, 0 invites, 0 factors, 0 passkeys, 3 acts, 20 rings\n"; got != want {
		t.Errorf("migrate: %q, want %q", got, want)
	}
	if code, stdout, stderr := migrating.command("", "migrate"); code != 1 || !strings.Contains(stderr, "users already") || stdout != "" {
		t.Errorf("migrate again: exit %d, %s%s", code, stdout, stderr)
	}

	p = newPGProgram(t, binary, dsn)
	s = p.serve(1)[0]
	if got := pgRings(s.url, cookie); got != 200 {
		t.Errorf("a session from before: %d", got)
	}
	if got, _ := pgAsk("GET", s.url+"/ringsofpower", "", "Authorization", "Bearer "+token); got != 200 {
		t.Errorf("a token from before: %d", got)
	}
	var users []struct{ Username, State string }
	if err := json.Unmarshal([]byte(p.must("", "user", "list", "-json")), &users); err != nil || len(users) != 1 || users[0].State != "active" {
		t.Errorf("user list: %+v, %v", users, err)
	}
	const hash = "$2y$10$abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZ01234"
	if err := os.WriteFile(filepath.Join(p.dir, "old"), []byte("sam:"+hash+"\nfrodo:"+hash+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, stdout, stderr := p.command("", "user", "import", "old"); code != 1 || stdout != "users imported: 1\n" || !strings.Contains(stderr, "line 2: name taken") {
		t.Errorf("user import: exit %d, %s%s", code, stdout, stderr)
	}
	copied := filepath.Join(t.TempDir(), "copy")
	if code, _, stderr := p.command("", "backup", copied); code != 1 || !strings.Contains(stderr, "pg_dump") {
		t.Errorf("backup: exit %d, %s", code, stderr)
	}
	if _, err := os.Stat(copied); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("backup left a file: %v", err)
	}
	p.must("", "session", "end-all", "frodo")
	if got := pgRings(s.url, cookie); got != 401 {
		t.Errorf("after session end-all: %d", got)
	}
	s.stop()
}
