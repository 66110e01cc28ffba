// Package e2e tests the program as it is built: its commands, the wire, faults,
// and real parts around it. It is a module of its own, so that what drives a
// browser stays out of the program's go.mod.
//
//	go test ./...                     needs Go and Linux
//	go test -tags faults ./...        also a superuser, strace and e2fsprogs (.ci/faults)
//	go test -tags browser ./...       also Chromium and axe-core (.ci/browser)
//	go test -tags gateways ./...      also nginx, Caddy, HAProxy and Chromium (.ci/gateway)
//	                                  and tools of others (.ci/tools)
//	go test -tags operation ./...     also nginx, Caddy, HAProxy, Prometheus, systemd, zsh (.ci/operation)
//	go test -tags attack ./...        also wrk and slowhttptest (.ci/attack)
//	go test -tags screenshots ./...   draws the pages, for eyes
//
// Each script in .ci installs what its suite needs; without that the suite
// fails. RINGWARD names a binary to test; else the folder above is built.
package e2e

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

const (
	// patience is how long a test waits for what must come. It is only ever
	// used up by a failure.
	patience = 20 * time.Second

	secretKey = "0123456789abcdef0123456789abcdef"
	password  = "the eagles are coming at last"
)

var binary string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "ringward-e2e")
		if err == nil {
			defer os.RemoveAll(dir)
			err = os.Chmod(dir, 0o755) // some tests run it as another user
		}
		if binary = os.Getenv("RINGWARD"); binary == "" && err == nil {
			binary = filepath.Join(dir, "ringward")
			build := exec.Command("go", "build", "-buildvcs=false", "-o", binary, ".")
			build.Dir, build.Stderr = "..", os.Stderr
			err = build.Run()
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer func() {
			for _, end := range atEnd {
				end()
			}
		}()
		return m.Run()
	}())
}

var atEnd []func() // when all tests are over

// program is the built program in a folder of its own, which holds its
// database test.db.
type program struct {
	*testing.T
	dir   string
	env   []string // all that it has
	start []string // the words that start it
	attr  *syscall.SysProcAttr
}

func newProgram(t *testing.T) *program {
	// The lowest cost: few tests are about that of a password.
	env := []string{"RINGWARD_BCRYPT_COST=10", "RINGWARD_DB=test.db", "PATH=" + os.Getenv("PATH"), "GOMAXPROCS=" + os.Getenv("GOMAXPROCS")}
	return &program{T: t, dir: t.TempDir(), env: env, start: []string{binary}}
}

func (p *program) path(name string) string { return filepath.Join(p.dir, name) }

// after starts the program by a line of sh.
func (p *program) after(line string) *program {
	later := *p
	later.start = append([]string{"sh", "-c", line + `; exec "$0" "$@"`}, p.start...)
	return &later
}

func (p *program) command(args ...string) *exec.Cmd {
	cmd := exec.Command(p.start[0], append(slices.Clone(p.start[1:]), args...)...)
	cmd.Dir, cmd.Env, cmd.SysProcAttr = p.dir, slices.Clone(p.env), p.attr
	return cmd
}

// result is what became of a command.
type result struct {
	code           int
	stdout, stderr string
}

func (p *program) try(stdin string, args ...string) result {
	cmd := p.command(args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	if err := cmd.Run(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		p.Error(err)
		return result{code: -1}
	}
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// must is try for what must succeed. It returns what was printed.
func (p *program) must(stdin string, args ...string) string {
	p.Helper()
	r := p.try(stdin, args...)
	if r.code != 0 || r.stderr != "" {
		p.Fatalf("ringward %q: exit %d, %s", args, r.code, r.stderr)
	}
	return r.stdout
}

// addUser makes users who have the password of all tests.
func (p *program) addUser(names ...string) {
	p.Helper()
	for _, name := range names {
		p.must(password, "user", "add", "-password-stdin", name)
	}
}

// invite returns the path of a new invite of the user in the API.
func (p *program) invite(name string) string {
	p.Helper()
	_, token, _ := strings.Cut(strings.TrimSpace(p.must("", "user", "invite", name)), "#")
	return "/auth/invites/" + token
}

// server is a process that serves.
type server struct {
	*program
	cmd   *exec.Cmd
	url   string
	log   *output
	ended chan struct{} // closed when the process is gone and log is whole
	sent  atomic.Int32  // requests by send
}

// output is written and read at once.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// launch starts a process that is to serve on a port of its own choice, unless
// args say otherwise.
func (p *program) launch(args ...string) *server {
	p.Helper()
	return p.follow(p.command(append([]string{"-addr", "127.0.0.1:0"}, args...)...))
}

// serve is launch, and returns when the server listens.
func (p *program) serve(args ...string) *server {
	p.Helper()
	s := p.launch(args...)
	s.url = s.says(`listening on (https?://[0-9.:]+)["\n]`)
	return s
}

// follow starts a process that is to serve. Its log is read unless cmd.Stderr
// is set.
func (p *program) follow(cmd *exec.Cmd) *server {
	p.Helper()
	s := &server{program: p, cmd: cmd, log: &output{}, ended: make(chan struct{})}
	cmd.Env = append(cmd.Env, "SECRET_KEY="+secretKey)
	if cmd.Stderr == nil {
		cmd.Stderr = s.log
	}
	if err := cmd.Start(); err != nil {
		p.Fatal(err)
	}
	go func() { cmd.Wait(); close(s.ended) }()
	p.Cleanup(func() {
		s.kill()
		if text := s.log.String(); p.Failed() {
			p.Logf("%q said:\n%s", cmd.Args, text[max(0, len(text)-5000):])
		}
	})
	return s
}

// says returns what the log has of a pattern (its last group), as soon as it
// has. It is not for a server that ends before that.
func (s *server) says(pattern string) string {
	s.Helper()
	var found []string
	eventually(s.T, func() bool {
		gone := s.gone()
		found = regexp.MustCompile(pattern).FindStringSubmatch(s.log.String())
		if found == nil && gone {
			s.Fatalf("the server ended (%v) and did not say %s", s.cmd.ProcessState, pattern)
		}
		return found != nil
	})
	return found[len(found)-1]
}

func (s *server) gone() bool {
	select {
	case <-s.ended:
		return true
	default:
		return false
	}
}

// stop ends the server as an operator does. It returns the log.
func (s *server) stop() string {
	s.Helper()
	s.cmd.Process.Signal(syscall.SIGTERM)
	return s.exits(0)
}

// exits waits until the process has ended, with that code.
func (s *server) exits(code int) string {
	s.Helper()
	select {
	case <-s.ended:
	case <-time.After(patience):
		s.Fatal("the server does not end")
	}
	if got := s.cmd.ProcessState.ExitCode(); got != code {
		s.Errorf("the server ended with %v", s.cmd.ProcessState)
	}
	return s.log.String()
}

// kill is kill -9.
func (s *server) kill() {
	if attr := s.cmd.SysProcAttr; attr != nil && attr.Setpgid && !s.gone() {
		syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL) // and what it has started
	}
	s.cmd.Process.Kill()
	<-s.ended
}

func (s *server) addr() string {
	_, addr, _ := strings.Cut(s.url, "://")
	return addr
}

// dial returns a connection that the test's end closes.
func (s *server) dial() net.Conn {
	s.Helper()
	conn, err := net.Dial("tcp", s.addr())
	if err != nil {
		s.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(patience))
	s.Cleanup(func() { conn.Close() })
	return conn
}

// reply is what came back; its status is 0 if nothing did.
type reply struct {
	status int
	header http.Header
	body   string
	closed bool // by the server, after it
	err    error
}

// send sends the bytes of one request over a connection of its own. It is for
// any goroutine.
func (s *server) send(text string) reply {
	s.sent.Add(1)
	conn, err := net.Dial("tcp", s.addr())
	if err != nil {
		return reply{err: err}
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	go io.WriteString(conn, text) // the response may come before all is sent
	method, _, _ := strings.Cut(text, " ")
	return read(bufio.NewReader(conn), method)
}

func read(from *bufio.Reader, method string) reply {
	response, err := http.ReadResponse(from, &http.Request{Method: method})
	if err != nil {
		return reply{err: err}
	}
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return reply{err: err}
	}
	return reply{response.StatusCode, response.Header, string(body), response.Close, nil}
}

// do sends a request with header lines as they are given ("Name: value"). A
// body makes it JSON unless they say otherwise.
func (s *server) do(method, path, body string, lines ...string) reply {
	text := method + " " + path + " HTTP/1.1\r\n"
	named := func(name string) bool {
		return slices.ContainsFunc(lines, func(line string) bool { return strings.HasPrefix(line, name+":") })
	}
	if !named("Host") {
		text += "Host: " + s.addr() + "\r\n"
	}
	if body != "" && !named("Content-Type") {
		text += "Content-Type: application/json\r\n"
	}
	if body != "" {
		text += "Content-Length: " + strconv.Itoa(len(body)) + "\r\n"
	}
	return s.send(text + strings.Join(append(lines, "", ""), "\r\n") + body)
}

// want is do for what must have that status.
func (s *server) want(status int, method, path, body string, lines ...string) reply {
	s.Helper()
	r := s.do(method, path, body, lines...)
	if r.status != status {
		s.Fatalf("%s %s: %d %s %v, want %d", method, path, r.status, r.body, r.err, status)
	}
	return r
}

// data reads what a response holds.
func data[T any](t *testing.T, r reply) T {
	t.Helper()
	var in struct{ Data T }
	if err := json.Unmarshal([]byte(r.body), &in); err != nil {
		t.Fatalf("%d %s %v: %v", r.status, r.body, r.err, err)
	}
	return in.Data
}

// cookie returns the header line that sends the cookie back, or "".
func (r reply) cookie() string {
	if len(r.header["Set-Cookie"]) != 1 {
		return ""
	}
	pair, _, _ := strings.Cut(r.header.Get("Set-Cookie"), ";")
	return "Cookie: " + pair
}

// refusal wants the response to be a failure in the envelope.
func (r reply) refusal(t *testing.T, what any, status int) {
	t.Helper()
	envelope := fmt.Sprintf(`^\{"errors":\[\{"title":"[^"]+","status":%d(,"detail":".+")?\}\]\}$`, status)
	if r.status != status || !regexp.MustCompile(envelope).MatchString(r.body) || r.header.Get("Content-Type") != "application/json" {
		t.Errorf("%.300v: %d %.200s %v, want the envelope with %d", what, r.status, r.body, r.err, status)
	}
}

func credentials(user, password string) string {
	return object(map[string]string{"username": user, "password": password})
}

func object(fields map[string]string) string {
	b, _ := json.Marshal(fields)
	return string(b)
}

// login returns the header line with a new session of the user.
func (s *server) login(user string) string {
	s.Helper()
	r := s.want(201, "POST", "/auth/session", credentials(user, password))
	if r.cookie() == "" {
		s.Fatalf("login of %s: %q", user, r.header["Set-Cookie"])
	}
	return r.cookie()
}

// proof returns the header line that says that the person is there.
func (s *server) proof(cookie, password string) string {
	s.Helper()
	r := s.want(201, "POST", "/auth/confirm", object(map[string]string{"password": password}), cookie)
	return "Ringward-Proof: " + data[struct{ Proof string }](s.T, r).Proof
}

// eventually waits for what another process does.
func eventually(t *testing.T, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !done(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it does not come to pass")
		}
	}
}

var ports atomic.Int32

// ownAddr returns an address to listen on, for who must know it before. Nobody
// else takes it: this process's id is in the host, and the port is not one
// that systems hand out.
func ownAddr() string {
	pid := os.Getpid()
	return fmt.Sprintf("127.%d.%d.%d:%d", 64+pid>>16, pid>>8&255, pid&255, 20_000+ports.Add(1))
}

// certificate writes one for the names, signed by itself.
func certificate(t *testing.T, names ...string) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: names, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	cert, key = filepath.Join(folder, "cert.pem"), filepath.Join(folder, "key.pem")
	for name, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(name, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

// zeros is an endless body.
type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }
