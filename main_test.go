// main_test.go tests the command line, the configuration, and a whole start
// and stop in this process.
package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestConfiguration(t *testing.T) {
	for _, c := range []struct {
		args string
		env  []string // pairs
		ok   func(config) bool
		says string // of what is refused
	}{
		{args: "", ok: func(c config) bool {
			return c.addr == "localhost:8080" && c.db == "ringward.db" && c.bcryptCost == 12 && c.passwordMin == 15 &&
				c.sessionIdle == 24*time.Hour && c.sessionMax == 720*time.Hour && c.log == "text" && !c.secure()
		}},
		{args: "", env: []string{"DATABASE_URL", "other.db"}, ok: func(c config) bool { return c.db == "other.db" }},
		{args: "", env: []string{"DATABASE_URL", "other.db", "RINGWARD_DB", "third.db"}, ok: func(c config) bool { return c.db == "third.db" }},
		{args: "-db x.db", env: []string{"RINGWARD_DB", "y.db"}, ok: func(c config) bool { return c.db == "x.db" }},
		{args: "", env: []string{"RINGWARD_BCRYPT_COST", "10", "RINGWARD_SESSION_IDLE", "1h"}, ok: func(c config) bool {
			return c.bcryptCost == 10 && c.sessionIdle == time.Hour
		}},
		{args: "", env: []string{"RINGWARD_BCRYPT_COST", "ten"}, says: "RINGWARD_BCRYPT_COST"},
		{args: "-public-url https://Auth.Example.com/", ok: func(c config) bool {
			return c.public.String() == "https://auth.example.com" && c.secure() && c.base("127.0.0.1:1") == "https://auth.example.com"
		}},
		{args: "-public-url http://auth.example.com:8080", ok: func(c config) bool { return !c.secure() && c.public.Port() == "8080" }},
		{args: "-public-url https://auth.example.com:443", ok: func(c config) bool { return c.public.String() == "https://auth.example.com" }},
		{args: "-public-url http://[::1]:80", ok: func(c config) bool { return c.public.String() == "http://[::1]" }},
		{args: "-public-url https://auth.example.com:80", ok: func(c config) bool { return c.public.String() == "https://auth.example.com:80" }},
		{args: "-public-url auth.example.com", says: "-public-url"},
		{args: "-public-url ftp://auth.example.com", says: "-public-url"},
		{args: "-public-url https://auth.example.com/path", says: "-public-url"},
		{args: "-public-url https://u:p@auth.example.com", says: "-public-url"},
		{args: "-public-url https://auth.example.com?x", says: "-public-url"},
		{args: "-cookie-domain .Example.com -public-url https://auth.example.com", ok: func(c config) bool { return c.cookieDomain == "example.com" }},
		{args: "-cookie-domain com", says: "-cookie-domain"},
		{args: "-cookie-domain 10.0.0.1", says: "-cookie-domain"},
		{args: "-cookie-domain a..b", says: "-cookie-domain"},
		{args: "-cookie-domain example.com -public-url https://auth.example.com", ok: func(config) bool { return true }},
		{args: "-cookie-domain example.com -public-url https://badexample.com", says: "no browser would keep the cookie"},
		{args: "-trusted-proxies 10.0.0.0/8,192.0.2.1,::1", ok: func(c config) bool { return len(c.trusted) == 3 && c.trusted[1].Bits() == 32 }},
		{args: "-trusted-proxies ::ffff:192.0.2.0/120,::ffff:10.0.0.1", ok: func(c config) bool { return fmt.Sprint(c.trusted) == "[192.0.2.0/24 10.0.0.1/32]" }},
		{args: "-trusted-proxies ::ffff:0.0.0.0/95,::/0", ok: func(c config) bool { return fmt.Sprint(c.trusted) == "[::fffe:0:0/95 ::/0]" }},
		{args: "-trusted-proxies 10.0.0.0/8,nonsense", says: "nonsense"},
		{args: "-proxy http://127.0.0.1:3000", ok: func(c config) bool { return c.tools[""].upstream.Host == "127.0.0.1:3000" }},
		{args: "-proxy http://127.0.0.1:", says: "-proxy"},
		{args: "-proxy http://127.0.0.1:00", says: "-proxy"},
		{args: "-proxy http://[::1]:65536", says: "-proxy"},
		{args: "-proxy http://127.0.0.1:65535", ok: func(c config) bool { return c.tools[""].upstream.Host == "127.0.0.1:65535" }},
		{args: "-proxy 127.0.0.1:3000", says: "-proxy"},
		{args: "-tls-cert a.pem", says: "go together"},
		{args: "-tls-cert a.pem -tls-key b.pem", ok: func(c config) bool { return c.secure() && c.base("127.0.0.1:1") == "https://localhost:1" }},
		{args: "-bcrypt-cost 9", says: "10 to 15"},
		{args: "-bcrypt-cost 16", says: "10 to 15"},
		{args: "-password-min 7", says: "8 to 64"},
		{args: "-password-min 8", ok: func(c config) bool { return c.passwordMin == 8 }},
		{args: "-session-idle 0s", says: "-session-idle"},
		{args: "-session-max -1h", says: "-session-max"},
		{args: "-session-max 900000h", says: "ten years"},
		{args: "-addr :http", ok: func(c config) bool { return c.addr == ":http" }},
		{args: "-addr localhost", says: "-addr"},
		{args: "-addr localhost:65536", says: "-addr"},
		{args: "", env: []string{"RINGWARD_ADDR", ""}, says: "-addr"},
		{args: "-metrics foo", says: `-metrics is like localhost:8080, not "foo"`},
		{args: "-metrics :65536", says: "-metrics is like"},
		{args: "-metrics :0", ok: func(c config) bool { return c.metrics == ":0" }},
		{args: "doctor -echo foo", says: "-echo is like"},
		{args: "-log xml", says: "text or json"},
		{args: "-db mysql://x", says: "a URL like postgres://"},
		{args: "-secret-key x", says: "not defined"},
		{args: "-json", says: "belong to a command"},
	} {
		t.Run(c.args+strings.Join(c.env, " "), func(t *testing.T) {
			t.Setenv("DATABASE_URL", "")
			for i := 0; i < len(c.env); i += 2 {
				t.Setenv(c.env[i], c.env[i+1])
			}
			got, _, err := parseConfig(strings.Fields(c.args))
			if c.ok != nil && (err != nil || !c.ok(got)) {
				t.Errorf("got %+v, %v", got, err)
			}
			if c.ok == nil && (exitCode(err) != 2 || !strings.Contains(err.Error(), c.says)) {
				t.Errorf("got %v (exit %d), want exit 2 and %q", err, exitCode(err), c.says)
			}
		})
	}
}

// A tool reads something else from some headers, and others do not reach it.
func TestUserHeaders(t *testing.T) {
	for name, fits := range map[string]bool{
		"X-WebAuth-User": true, "x_user": true, "X-Forwarded-User": true, "Remote-Name": true, "Auth-User": true, "X-Content-User": true,
		"Remote-Groups": false, "remote_groups": false, "Host": false, "COOKIE": false, "Set-Cookie": false, "Authorization": false, "Proxy-Authorization": false,
		"Connection": false, "Upgrade": false, "TE": false, "Keep-Alive": false, "Trailer": false, "Content-Length": false, "Content-Type": false,
		"Transfer-Encoding": false, "Expect": false, "Origin": false, "Sec-Fetch-Site": false, "Location": false, "Forwarded": false, "X-Real-IP": false,
		"X-Forwarded-For": false, "X-Forwarded-Host": false, "X_Forwarded_Proto": false, "X-Forwarded-Uri": false, "X-Forwarded-Method": false,
		"X-Login-URL": false, "X-Ringward-Token": false, "Ringward-Proof": false, "X.User": false, "": false,
	} {
		_, _, err := parseConfig([]string{"-user-header", name})
		if fits && err != nil || !fits && (exitCode(err) != 2 || !strings.Contains(err.Error(), "-user-header")) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSigningKeys(t *testing.T) {
	file := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(file, []byte(testKey+","+testKey+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		text, file string
		keys       int
		says       string
	}{
		{text: testKey, keys: 1},
		{text: testKey + "," + testKey + "x", keys: 2},
		{file: file, keys: 2},
		{says: "openssl rand -hex 32"},
		{text: testKey[:31], says: "openssl rand -hex 32"},
		{text: testKey + ",", says: "key 2 of 2"},
		{text: testKey + ", " + testKey, says: "white space"},
		{text: testKey, file: file, says: "both"},
		{file: file + "x", says: "SECRET_KEY_FILE"},
	} {
		t.Setenv("SECRET_KEY", c.text)
		t.Setenv("SECRET_KEY_FILE", c.file)
		keys, err := signingKeys()
		if c.says == "" && (err != nil || len(keys) != c.keys || keys[0] != testKey) {
			t.Errorf("%+v: %q, %v", c, keys, err)
		}
		if c.says != "" && (exitCode(err) != 2 || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), testKey[:8])) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func mustOrigin(t *testing.T, text string) *url.URL {
	t.Helper()
	u, err := origin("-public-url", "https://auth.example.com", text)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestAddressesThatAreWarnedOf(t *testing.T) {
	lan := &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1)}
	for name, c := range map[string]struct {
		config
		addr net.Addr
		warn bool
	}{
		"loopback":         {config{}, &net.TCPAddr{IP: net.IPv6loopback}, false},
		"network":          {config{}, lan, true},
		"everywhere":       {config{}, &net.TCPAddr{IP: net.IPv6unspecified}, true},
		"behind https":     {config{public: mustOrigin(t, "https://a.test")}, lan, false},
		"behind plain URL": {config{public: mustOrigin(t, "http://a.test")}, lan, true},
	} {
		if got := c.exposed(c.addr) != ""; got != c.warn {
			t.Errorf("%s: warned %t, want %t", name, got, c.warn)
		}
	}
	for addr, want := range map[string]string{
		"127.0.0.1:80": "http://localhost:80", "[::]:80": "http://localhost:80", "0.0.0.0:80": "http://localhost:80",
		":80": "http://localhost:80", "[::1]:80": "http://localhost:80", "tool.lan:80": "http://tool.lan:80",
	} {
		if got := (config{}).base(addr); got != want {
			t.Errorf("base of %s: %s, want %s", addr, got, want)
		}
	}
}

// lockedBuffer is what a server that runs writes to.
type lockedBuffer struct {
	mu      sync.Mutex
	text    strings.Builder
	awaited string
	said    chan struct{}
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.text.Write(p)
	b.look()
	return len(p), nil
}

func (b *lockedBuffer) look() {
	if b.said != nil && strings.Contains(b.text.String(), b.awaited) {
		close(b.said)
		b.said = nil
	}
}

// await returns when the text has been written.
func (b *lockedBuffer) await(text string) {
	b.mu.Lock()
	said := make(chan struct{})
	b.awaited, b.said = text, said
	b.look()
	b.mu.Unlock()
	<-said
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// serveForTest runs the program until stop, which returns run's error.
func serveForTest(t *testing.T, args ...string) (base string, stderr *lockedBuffer, stop func() error) {
	t.Helper()
	t.Setenv("SECRET_KEY", testKey)
	ctx, cancel := context.WithCancel(context.Background())
	stderr = &lockedBuffer{}
	line := regexp.MustCompile(`listening on (https?://127\.0\.0\.1:[0-9]+)`)
	listens, ended := make(chan string, 1), make(chan error, 1)
	go func() {
		ended <- run(ctx, append([]string{"-addr", "127.0.0.1:0", "-bcrypt-cost", "10"}, args...), strings.NewReader(""), io.Discard, writerFunc(func(b []byte) (int, error) {
			if m := line.FindSubmatch(b); m != nil {
				listens <- string(m[1])
			}
			return stderr.Write(b)
		}))
	}()
	stop = sync.OnceValue(func() error { cancel(); return <-ended })
	t.Cleanup(func() { stop() })
	select {
	case base = <-listens:
	case err := <-ended:
		ended <- err
		t.Fatalf("it ended: %v\n%s", err, stderr)
	}
	return base, stderr, stop
}

func TestStartAndStop(t *testing.T) {
	db := filepath.Join(t.TempDir(), "r.db")
	link := regexp.MustCompile(`(?m)^(http://localhost:[0-9]+)/auth/invite#([A-Za-z0-9_-]{43})$`)
	var first, second []string
	for _, found := range []*[]string{&first, &second} {
		base, stderr, stop := serveForTest(t, "-db", db)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		stderr.await("msg=stop")
		if *found = link.FindStringSubmatch(stderr.String()); *found == nil || (*found)[1] != strings.Replace(base, "127.0.0.1", "localhost", 1) {
			t.Fatalf("no invite in:\n%s", stderr)
		}
		for _, event := range []string{"msg=start", "msg=stop"} {
			if strings.Count(stderr.String(), event) != 1 {
				t.Errorf("%s is not there once:\n%s", event, stderr)
			}
		}
		if _, err := os.Stat(socketPath(db)); !os.IsNotExist(err) {
			t.Errorf("the socket is left: %v", err)
		}
	}
	if first[2] == second[2] {
		t.Error("the invite is not a new one")
	}
	// Either link works after a restart, and the first use ends both.
	base, _, stop := serveForTest(t, "-db", db, "-log", "json")
	accept := func(token string) int {
		response, err := http.Post(base+"/auth/invites/"+token, "application/json",
			strings.NewReader(`{"username":"frodo","password":"`+testPassword+`"}`))
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		return response.StatusCode
	}
	if got := accept(first[2]); got != 201 {
		t.Errorf("the first link: %d", got)
	}
	if got := accept(second[2]); got != 404 {
		t.Errorf("the second link after it: %d, want 404", got)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	_, stderr, _ := serveForTest(t, "-db", db)
	stderr.await("msg=start")
	if strings.Contains(stderr.String(), "invite") {
		t.Errorf("there are users, and it invites:\n%s", stderr)
	}
}

// A request that has begun is responded to, whatever it still has to send.
func TestStopLetsRequestsEnd(t *testing.T) {
	db := filepath.Join(t.TempDir(), "r.db")
	base, stderr, stop := serveForTest(t, "-db", db)
	conn, err := net.Dial("tcp", strings.TrimPrefix(base, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	const body = `{"username":"frodo"}`
	fmt.Fprintf(conn, "POST /auth/session HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n", len(body))
	responses := bufio.NewReader(conn)
	if response, err := http.ReadResponse(responses, nil); err != nil || response.StatusCode != http.StatusContinue {
		t.Fatal(response, err) // it reads the body now
	}
	ended := make(chan error)
	go func() { ended <- stop() }()
	stderr.await("msg=stop")
	io.WriteString(conn, body)
	if response, err := http.ReadResponse(responses, nil); err != nil || response.StatusCode != http.StatusBadRequest {
		t.Errorf("%v, %v, want 400", response, err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// Once a minute what has expired goes, and a database that is gone is told of.
func TestSweepOfARunningServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newAccountServer(t)
		s.enter("frodo", testPassword)
		log := new(lockedBuffer)
		ctx, stop := context.WithCancel(t.Context())
		go keepUp(ctx, s.store, newLogger(log, false), nil, nil, nil)
		time.Sleep(s.auth.Idle + sweepEvery)
		synctest.Wait()
		if n := s.records(kindSession, "frodo"); n != 0 || strings.Count(log.String(), "msg=swept records=1") != 1 || strings.Count(log.String(), "\n") != 1 {
			t.Errorf("%d sessions are left, and the log has\n%s", n, log)
		}
		if err := os.Remove(s.path); err != nil {
			t.Fatal(err)
		}
		time.Sleep(sweepEvery)
		synctest.Wait()
		if !strings.Contains(log.String(), "the database file is gone") {
			t.Errorf("the log has\n%s", log)
		}
		stop()
		s.store.Close()
	})
}

func TestStartFails(t *testing.T) {
	t.Setenv("SECRET_KEY", testKey)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	folder := t.TempDir()
	db := filepath.Join(folder, "r.db")
	for name, args := range map[string][]string{
		"port in use": {"-addr", taken.Addr().String(), "-db", db},
		"no folder":   {"-addr", "127.0.0.1:0", "-db", filepath.Join(folder, "none", "r.db")},
		"a folder":    {"-addr", "127.0.0.1:0", "-db", folder},
	} {
		if err := run(t.Context(), args, nil, io.Discard, io.Discard); exitCode(err) != 1 {
			t.Errorf("%s: %v (exit %d), want exit 1", name, err, exitCode(err))
		}
	}
	tls := []string{"-addr", "127.0.0.1:0", "-db", db, "-tls-cert", filepath.Join(folder, "none.pem"), "-tls-key", "none.key"}
	if err := run(t.Context(), tls, nil, io.Discard, io.Discard); exitCode(err) != 2 || !strings.Contains(err.Error(), "none.pem") {
		t.Errorf("no certificate: %v (exit %d), want exit 2", err, exitCode(err))
	}
	if err := run(t.Context(), append(tls, "user", "list"), nil, io.Discard, io.Discard); err != nil {
		t.Errorf("a command, which needs none: %v", err)
	}
	store, err := OpenStore(db) // it let go of the file
	if err != nil {
		t.Fatal(err)
	}
	store.Close()
}

func TestMetricsAddress(t *testing.T) {
	_, stderr, _ := serveForTest(t, "-db", filepath.Join(t.TempDir(), "r.db"), "-metrics", "127.0.0.1:0")
	base := regexp.MustCompile(`metrics on (http://127\.0\.0\.1:[0-9]+)/metrics`).FindStringSubmatch(stderr.String())
	if base == nil {
		t.Fatalf("it does not say where metrics are:\n%s", stderr)
	}
	for request, status := range map[string]int{"GET /metrics": 200, "GET /": 404, "GET /auth/session": 404, "POST /metrics": 405, "TRACE /metrics": 405} {
		method, path, _ := strings.Cut(request, " ")
		r, err := http.NewRequestWithContext(t.Context(), method, base[1]+path, nil)
		noErr(t, err)
		response, err := http.DefaultClient.Do(r)
		noErr(t, err)
		body, err := io.ReadAll(response.Body)
		response.Body.Close()
		noErr(t, err)
		if response.StatusCode != status || status > 200 && !strings.Contains(string(body), fmt.Sprintf(`"status":%d`, status)) {
			t.Errorf("%s: %s %.100s, want %d", request, response.Status, body, status)
		}
	}
}
