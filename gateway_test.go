// The tests of gateway.go need nothing but Go. A tool, ringward and its clients
// are joined by pipes in a synctest bubble, where waiting costs no time and a
// goroutine that stays behind is a failure. nginx, Caddy and Chromium are in
// e2e/gateway_test.go.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// front is ringward with a tool behind it.
type front struct {
	*testServer
	t        *testing.T
	gateway  *Gateway
	clients  *pipes
	cookie   string // of frodo
	log      *safeBuffer
	inTool   atomic.Int32  // requests
	finished chan struct{} // closed when the test is done
}

// safeBuffer may be read while it is written.
type safeBuffer struct {
	mu sync.Mutex
	bytes.Buffer
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.Write(p)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.String()
}

// pipes is a network: what dial begins, Accept answers.
type pipes struct {
	peer   string // RemoteAddr
	dialed chan net.Conn
	closed chan struct{}
}

func newPipes(peer string) *pipes {
	return &pipes{peer, make(chan net.Conn), make(chan struct{})}
}

type pipeEnd struct {
	net.Conn
	peer string
}

func (p pipeEnd) RemoteAddr() net.Addr { return p }
func (p pipeEnd) Network() string      { return "tcp" }
func (p pipeEnd) String() string       { return p.peer }
func (p pipeEnd) CloseWrite() error    { return nil }

func (p *pipes) dial(context.Context, string, string) (net.Conn, error) {
	here, there := net.Pipe()
	select {
	case p.dialed <- pipeEnd{there, p.peer}:
		return here, nil
	case <-p.closed:
		return nil, errors.New("connection refused")
	}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case conn := <-p.dialed:
		return conn, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { close(p.closed); return nil }
func (p *pipes) Addr() net.Addr { return pipeEnd{} }

const peer = "192.0.2.7:5555"

// inFront runs f with the whole of ringward before the tool, which is echo
// where it is nil, and frodo logged in.
func inFront(t *testing.T, tool http.Handler, set func(*Gateway), f func(t *testing.T, f *front)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := newTestServer(t)
		s.LoginPage = "/auth/login"
		x := &front{testServer: s, t: t, clients: newPipes(peer), log: new(safeBuffer), finished: make(chan struct{})}
		x.gateway = &Gateway{auth: s.Auth, upstream: &url.URL{Scheme: "http", Host: "tool.internal"}}
		if set != nil {
			set(x.gateway)
		}
		s.addr = x.gateway.clientAddr
		tools := newPipes("127.0.0.1:4444")
		if tool == nil {
			tool = http.HandlerFunc(echo)
		}
		behind := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			x.inTool.Add(1)
			defer x.inTool.Add(-1)
			tool.ServeHTTP(w, r)
		})}
		go behind.Serve(tools)
		defer behind.Close()
		s.Auth.Log = slog.New(slog.NewTextHandler(x.log, nil))
		protect := &Protect{next: routesOver(s, x.gateway, tools.dial), log: s.Auth.Log, lines: requestLog{w: x.log}, addr: s.addr,
			public: "ring.example.com", domain: x.gateway.domain}
		server := newServer(protect, s.Auth.Log)
		go server.Serve(tcpListener{x.clients, protect.setHeaders})
		defer server.Close()
		x.cookie = s.login(t)
		f(t, x)
		close(x.finished)
		time.Sleep(time.Minute) // what is left of connections to the tool goes
	})
}

// routesOver is routes with another way to the tool.
func routesOver(s *testServer, g *Gateway, dial func(context.Context, string, string) (net.Conn, error)) http.Handler {
	own := routes(s.Auth, s.store.(fullStore), &Gateway{auth: g.auth, trusted: g.trusted, public: g.public, domain: g.domain})
	tool := s.requireLogin(g.proxyOver(dial))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.EscapedPath(), "/auth/") {
			own.ServeHTTP(w, r)
		} else {
			tool.ServeHTTP(w, r)
		}
	})
}

// received is what echo says of a request.
type received struct {
	Method, URI, Host string
	Header, Trailer   http.Header
	Body              string
}

func echo(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	json.NewEncoder(w).Encode(received{r.Method, r.RequestURI, r.Host, r.Header, r.Trailer, string(body)})
}

// write sends the text of a request. Lines of its head may end in \n, and
// COOKIE stands for frodo's. It does not wait: an early answer leaves some of
// the body unread.
func (f *front) write(conn net.Conn, request string) {
	head, body, _ := strings.Cut(request, "\n\n")
	head = strings.ReplaceAll(strings.ReplaceAll(head, "COOKIE", f.cookie), "\n", "\r\n")
	go io.WriteString(conn, head+"\r\n\r\n"+body)
}

// open answers what comes back to a request.
func (f *front) open(request string) (net.Conn, *http.Response) {
	f.t.Helper()
	conn, err := f.clients.dial(f.t.Context(), "", "")
	if err != nil {
		f.t.Fatal(err)
	}
	f.write(conn, request)
	answer, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: strings.Fields(request)[0]})
	if err != nil {
		f.t.Fatalf("%v\nto %s", err, request)
	}
	return conn, answer
}

func (f *front) send(request string) (*http.Response, string) {
	f.t.Helper()
	conn, answer := f.open(request)
	defer conn.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		f.t.Fatal(err)
	}
	return answer, string(body)
}

// get is a GET of frodo's with more header lines.
func get(path string, headers ...string) string {
	return "GET " + path + " HTTP/1.1\nHost: localhost:8080\nCookie: COOKIE\n" + strings.Join(append(headers, ""), "\n") + "\n"
}

// tool answers what the tool got of a request that must reach it.
func (f *front) tool(request string) (got received) {
	f.t.Helper()
	answer, body := f.send(request)
	if err := json.Unmarshal([]byte(body), &got); err != nil || answer.StatusCode != http.StatusOK {
		f.t.Fatalf("got %s %s\nto %s", answer.Status, body, request)
	}
	return got
}

func trust(list ...string) func(*Gateway) {
	return func(g *Gateway) {
		for _, prefix := range list {
			g.trusted = append(g.trusted, netip.MustParsePrefix(prefix))
		}
	}
}

func TestToolIsToldWhoItIs(t *testing.T) {
	inFront(t, nil, nil, func(t *testing.T, f *front) {
		got := f.tool(get("/reports?week=3", "X-Other: as it was"))
		want := http.Header{
			"Remote-User": {"frodo"}, "X-Forwarded-For": {"192.0.2.7"}, "X-Forwarded-Host": {"localhost:8080"},
			"X-Forwarded-Proto": {"http"}, "X-Other": {"as it was"},
		}
		if fmt.Sprint(got.Header) != fmt.Sprint(want) || got.Host != "localhost:8080" || got.URI != "/reports?week=3" {
			t.Errorf("got %+v, want %v", got, want)
		}
	})
}

// spoofs are lines with which a client says who or where it is.
var spoofs = []string{
	"Remote-User: gandalf", "remote-user: gandalf", "REMOTE-USER: gandalf", "Remote_User: gandalf", "REMOTE_USER: gandalf",
	"Remote.User: gandalf", "remote.user: gandalf", "Remote!User: gandalf", "Remote~User: gandalf", "Remote-User:gandalf",
	"Remote-Groups: gandalf", "Remote_Email: gandalf", "Remote.Name: gandalf", "Remote-Addr: 6.6.6.6",
	"X-Forwarded-For: 6.6.6.6", "X_Forwarded_For: 6.6.6.6", "x.forwarded.for: 6.6.6.6", "X-Forwarded_For: 6.6.6.6",
	"X-Forwarded-Host: evil.test", "X-Forwarded-Proto: gopher", "X-Forwarded-User: gandalf", "X-Forwarded-Port: 666",
	"X-Forwarded-Prefix: /evil", "X-Forwarded-Preferred-Username: gandalf", "X-Forwarded-Uri: /evil", "X-Forwarded-Method: EVIL",
	"Forwarded: for=6.6.6.6", "FORWARDED: for=6.6.6.6", "X-Real-IP: 6.6.6.6", "X_Real_Ip: 6.6.6.6", "x.real.ip: 6.6.6.6",
}

func TestNoClientSaysWhoItIs(t *testing.T) {
	for _, trusted := range [][]string{nil, {"192.0.2.0/24"}} {
		inFront(t, nil, trust(trusted...), func(t *testing.T, f *front) {
			for _, spoof := range spoofs {
				name, _, _ := strings.Cut(spoof, ":")
				for _, lines := range [][]string{
					{spoof}, {spoof, spoof}, {"Connection: " + name, spoof}, {"Connection: close, " + name, spoof}, {"Connection: " + name},
					{"Connection: Upgrade, Remote-User", "Upgrade: websocket", spoof}, {"Connection: Remote-User, X-Forwarded-For", spoof},
					{"Transfer-Encoding: chunked", "Trailer: " + name + "\n\n3\r\nabc\r\n0\r\n" + spoof + "\r\n\r\n"},
				} {
					request := get("/", lines...)
					got := f.tool(request)
					all := fmt.Sprint(got.Header, got.Trailer)
					if got.Header["Remote-User"][0] != "frodo" || len(got.Header["Remote-User"]) != 1 || strings.Contains(all, "gandalf") {
						t.Errorf("the tool got %v of\n%s", got, request)
					}
					believed := trusted != nil && (strings.HasPrefix(spoof, "X-Forwarded-For:") || strings.HasPrefix(spoof, "X-Forwarded-Host:"))
					if hit := strings.Contains(all, "6.6.6.6") || strings.Contains(all, "evil") || strings.Contains(all, "EVIL") || strings.Contains(all, "666") || strings.Contains(all, "gopher"); hit && !believed {
						t.Errorf("trusting %v: the tool got %v of\n%s", trusted, got, request)
					}
					for name := range got.Header {
						switch name {
						case "Remote-User", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "Upgrade", "Connection":
						default:
							t.Errorf("the tool got %s of\n%s", name, request)
						}
					}
					for _, name := range []string{"X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"} {
						if len(got.Header[name]) != 1 {
							t.Errorf("the tool got %s: %q of\n%s", name, got.Header[name], request)
						}
					}
				}
			}
		})
	}
}

func TestForwardedByTrustedProxy(t *testing.T) {
	inFront(t, nil, trust("192.0.2.0/24", "10.0.0.0/8"), func(t *testing.T, f *front) {
		got := f.tool(get("/", "X-Forwarded-For: 6.6.6.6, 203.0.113.9", "X-Forwarded-For: 10.0.0.1", "X-Forwarded-Host: ring.example.com", "X-Forwarded-Proto: https"))
		if h := got.Header; h.Get("X-Forwarded-For") != "203.0.113.9, 10.0.0.1, 192.0.2.7" ||
			h.Get("X-Forwarded-Host") != "ring.example.com" || h.Get("X-Forwarded-Proto") != "https" {
			t.Errorf("got %v", got.Header)
		}
	})
}

func TestSchemeIsThatOfThePublicURL(t *testing.T) {
	inFront(t, nil, func(g *Gateway) { g.public, _ = url.Parse("https://ring.example.com") }, func(t *testing.T, f *front) {
		if got := f.tool(get("/", "X-Forwarded-Proto: http")); got.Header.Get("X-Forwarded-Proto") != "https" {
			t.Errorf("got %v", got.Header)
		}
	})
}

// Another protocol than WebSocket would be a tunnel past all of this.
func TestOnlyWebSocketUpgrades(t *testing.T) {
	upgrading := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Got", r.Header.Get("Upgrade")+"/"+r.Header.Get("Connection"))
	})
	inFront(t, upgrading, nil, func(t *testing.T, f *front) {
		for _, upgrade := range []string{"Upgrade: h2c", "Upgrade: h2c\nUpgrade: websocket", "Upgrade: websocket, h2c", "Upgrade: TLS/1.0", "Upgrade: connect-udp"} {
			answer, _ := f.send(get("/", "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAMAAABkAAQAAP__", upgrade))
			if got := answer.Header.Get("Got"); got != "/" {
				t.Errorf("%q: the tool got %q", upgrade, got)
			}
		}
		for _, upgrade := range []string{"Upgrade: websocket", "Upgrade: WebSocket"} {
			answer, _ := f.send(get("/", "Connection: keep-alive, Upgrade", upgrade))
			if got := answer.Header.Get("Got"); !strings.EqualFold(got, "websocket/upgrade") {
				t.Errorf("%q: the tool got %q", upgrade, got)
			}
		}
	})
}

func TestToolGetsNoSecretOfOurs(t *testing.T) {
	inFront(t, nil, nil, func(t *testing.T, f *front) {
		for _, c := range []struct{ sent, want string }{
			{"COOKIE", "[]"},
			{"a=1; COOKIE; b=2", "[a=1; b=2]"},
			{"COOKIE;b=2", "[b=2]"},
			{"a=1;COOKIE", "[a=1]"},
			{"a=1\nCookie: COOKIE\nCookie: b=\"2\"; c", "[a=1 b=\"2\"; c]"},
			{"__Host-ringward=x; COOKIE; __Secure-ringward=y; z=ringward=1", "[z=ringward=1]"},
			{" \tringward =x; COOKIE", "[]"},
			{"xringward=1; ringward2=2; Ringward=3; COOKIE;; ringwar=4", "[xringward=1; ringward2=2; Ringward=3;; ringwar=4]"},
		} {
			got := f.tool("GET / HTTP/1.1\nHost: localhost\nCookie: " + c.sent + "\n\n")
			if s := fmt.Sprint(got.Header["Cookie"]); s != c.want {
				t.Errorf("of Cookie: %s the tool got %s, want %s", c.sent, s, c.want)
			}
		}
		token, secret, err := newToken("frodo", "script", "", time.Now())
		if err == nil {
			err = f.store.(accountStore).addToken(token)
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct{ sent, want string }{
			{"Bearer TOKEN", "[]"},
			{"bearer  TOKEN ", "[]"},
			{"Basic YTpi", "[Basic YTpi]"},
			{"Bearer other", "[Bearer other]"},
			{"Basic YTpi\nAuthorization: Bearer TOKEN", "[Basic YTpi]"},
		} {
			got := f.tool(get("/", "Authorization: "+strings.ReplaceAll(c.sent, "TOKEN", secret)))
			if s := fmt.Sprint(got.Header["Authorization"]); s != c.want {
				t.Errorf("of Authorization: %s the tool got %s, want %s", c.sent, s, c.want)
			}
		}
	})
}

// odd are request targets for which the tool answers, as they are spelled.
var odd = []string{
	"/", "//", "//x", "//auth/login", "/%2e%2e/", "/x/../auth/session", "/../auth/session", "/./auth/session", "/auth", "/AUTH/session",
	"/Auth/login", "/;/auth/session", "/auth;x/session", "/a%2Fb%2fc", "/a;b=c;d?e;f=g&h", "/?a=%zz&b;c&&=", "/x?", "/%2fauth/session", "/auth%2fsession", "/%61uth/session",
	"/healthz/", "/HEALTHZ", "/a\"b<c>d|e{f}`g^h", "/a\\b", "/caf\xc3\xa9", "/a//b/./c/", "/x?u=http://y/z", "/x#y", "/x?next=//evil.test/%0d%0a", "/%00", "/ringsofpower",
}

func TestPathsReachTheToolAsSent(t *testing.T) {
	inFront(t, nil, nil, func(t *testing.T, f *front) {
		for _, path := range odd {
			if got := f.tool(get(path)); got.URI != path {
				t.Errorf("the tool got %q of %q", got.URI, path)
			}
		}
		// A path that begins with two slashes and holds what no URL may: the
		// same in other words.
		if got := f.tool(get(`//a"b`)); got.URI != `//a%22b` {
			t.Errorf(`the tool got %q of //a"b`, got.URI)
		}
		if got := f.tool(get("http://localhost/a?b")); got.URI != "/a?b" {
			t.Errorf("the tool got %q of an absolute request target", got.URI)
		}
	})
}

// HTTP/2 lets spaces through that would end the address in the tool's request line.
func TestSpacesOfHTTP2(t *testing.T) {
	tool := httptest.NewServer(http.HandlerFunc(echo))
	defer tool.Close()
	upstream, err := url.Parse(tool.URL)
	if err != nil {
		t.Fatal(err)
	}
	s := newTestServer(t)
	gateway := &Gateway{auth: s.Auth, upstream: upstream}
	server := httptest.NewUnstartedServer(s.requireLogin(gateway.proxy()))
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	for _, c := range [][2]string{
		{"/a b", "/a%20b"},
		{"/x HTTP/1.0", "/x%20HTTP/1.0"},
		{"/a?b c", "/a?b%20c"},
		{"/a b\"c?d=%zz e", "/a%20b\"c?d=%zz%20e"},
		{"/a%20b?c+d", "/a%20b?c+d"},
	} {
		r, err := http.NewRequest("GET", server.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.URL.Opaque = c[0]
		r.Header.Set("Cookie", s.login(t))
		answer, err := server.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		var got received
		if err := json.NewDecoder(answer.Body).Decode(&got); answer.ProtoMajor != 2 || err != nil || got.URI != c[1] {
			t.Errorf("the tool got %q of %q: %s %s %v", got.URI, c[0], answer.Proto, answer.Status, err)
		}
		answer.Body.Close()
	}
}

func TestNothingReachesTheToolWithoutLogin(t *testing.T) {
	reached := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { t.Errorf("the tool got %s %s", r.Method, r.RequestURI) })
	inFront(t, reached, trust("192.0.2.0/24"), func(t *testing.T, f *front) {
		for _, path := range append(odd, "http://localhost/x", "http://ring.example.com/x", "http://evil.test/x", "/auth/../x", "/auth/%2e%2e/x", "/healthz") {
			for _, method := range []string{"GET", "POST", "HEAD", "OPTIONS", "TRACE", "PROPFIND", "CONNECT"} {
				for _, more := range []string{"", "Remote-User: frodo\n", "Connection: Upgrade\nUpgrade: websocket\n", "X-Forwarded-For: 127.0.0.1\nX-Forwarded-Uri: /auth/login\n"} {
					answer, body := f.send(method + " " + path + " HTTP/1.1\nHost: localhost\n" + more + "\n")
					if answer.StatusCode == http.StatusOK && path != "/healthz" {
						t.Errorf("%s %s: %s %s", method, path, answer.Status, body)
					}
				}
			}
		}
	})
}

func TestMethodsNoToolNeeds(t *testing.T) {
	inFront(t, nil, nil, func(t *testing.T, f *front) {
		for _, method := range []string{"TRACE", "CONNECT"} {
			answer, body := f.send(method + get("/x")[3:])
			if answer.StatusCode != http.StatusMethodNotAllowed || answer.Header.Get("Allow") == "" || method != "CONNECT" && !strings.Contains(body, `"status":405`) {
				t.Errorf("%s: %s %s", method, answer.Status, body)
			}
		}
		if got := f.tool("PROPFIND" + get("/x")[3:]); got.Method != "PROPFIND" {
			t.Errorf("the tool got %s", got.Method)
		}
	})
}

func TestOtherSitesDoNotReachTheTool(t *testing.T) {
	reached := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.Header().Set("Reached", "yes") })
	inFront(t, reached, nil, func(t *testing.T, f *front) {
		for _, c := range []struct {
			method, headers string
			want            bool
		}{
			{"POST", "Origin: http://evil.test", false},
			{"POST", "Sec-Fetch-Site: cross-site", false},
			{"DELETE", "Sec-Fetch-Site: same-site", false},
			{"POST", "Origin: null", false},
			{"GET", "Connection: Upgrade\nUpgrade: websocket\nOrigin: http://evil.test", false},
			{"GET", "Connection: Upgrade\nUpgrade: websocket\nSec-Fetch-Site: same-site", false},
			{"GET", "Connection: Upgrade\nUpgrade: websocket\nOrigin: http://localhost:8080", true},
			{"POST", "Origin: http://localhost:8080", true},
			{"GET", "Sec-Fetch-Site: cross-site", true},
			{"POST", "", true},
		} {
			answer, body := f.send(c.method + get("/", c.headers)[3:])
			if reached := answer.Header.Get("Reached") != ""; reached != c.want || !reached && (answer.StatusCode != http.StatusForbidden || !strings.Contains(body, `"status":403`)) {
				t.Errorf("%s %s: %s %s", c.method, c.headers, answer.Status, body)
			}
		}
	})
}

func TestAnswersPassAsTheyAre(t *testing.T) {
	tool := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/hints":
			w.Header().Set("Link", "</x.css>")
			w.Header().Set("Set-Cookie", "ringward=forged")
			w.WriteHeader(http.StatusEarlyHints)
			w.Header().Del("Set-Cookie")
		case "/cached":
			w.Header().Set("Cache-Control", "public, max-age=60")
		case "/trailer":
			w.Header().Set("Trailer", "Sum")
			defer w.Header().Set("Sum", "42")
		case "/zipped":
			w.Header().Set("Content-Encoding", "gzip")
		}
		w.Header().Add("Set-Cookie", "tool=1; Path=/reports")
		for _, name := range []string{"ringward", "__Host-ringward", "__Secure-ringward", " =\tringward\t", "=ringward"} {
			w.Header().Add("Set-Cookie", name+"=forged; Path=/")
		}
		w.Header().Add("Set-Cookie", "other=2")
		w.Header().Set("Content-Security-Policy", "default-src *")
		w.Header().Set("Server", "tool/1")
		w.WriteHeader(http.StatusTeapot)
		io.WriteString(w, "short and stout"+r.Header.Get("Accept-Encoding"))
	})
	inFront(t, tool, nil, func(t *testing.T, f *front) {
		time.Sleep(f.sessions.Idle * 2 / 3) // the session will be renewed
		for _, path := range []string{"/", "/hints", "/cached", "/trailer", "/zipped"} {
			f.cookie = f.login(t)
			time.Sleep(f.sessions.Idle * 2 / 3)
			conn, err := f.clients.dial(t.Context(), "", "")
			if err != nil {
				t.Fatal(err)
			}
			f.write(conn, get(path))
			reader := bufio.NewReader(conn)
			answer, err := http.ReadResponse(reader, nil)
			if err != nil {
				t.Fatal(err)
			}
			if path == "/hints" {
				if answer.StatusCode != http.StatusEarlyHints || answer.Header.Get("Link") == "" || answer.Header.Get("Set-Cookie") != "" {
					t.Errorf("%s: got %s %v", path, answer.Status, answer.Header)
				}
				if answer, err = http.ReadResponse(reader, nil); err != nil {
					t.Fatal(err)
				}
			}
			body, _ := io.ReadAll(answer.Body)
			conn.Close()
			if answer.StatusCode != http.StatusTeapot || string(body) != "short and stout" {
				t.Errorf("%s: got %s %q", path, answer.Status, body)
			}
			for _, own := range ownHeaders {
				name := own.name
				if name == "Cache-Control" {
					continue
				}
				if v := answer.Header[name]; name == "Content-Security-Policy" && fmt.Sprint(v) != "[default-src *]" || name != "Content-Security-Policy" && v != nil {
					t.Errorf("%s: got %s: %q", path, name, v)
				}
			}
			cookies := answer.Header["Set-Cookie"]
			if len(cookies) != 3 || cookies[0] != "tool=1; Path=/reports" || cookies[1] != "other=2" || !strings.HasPrefix(cookies[2], f.cookie+";") {
				t.Errorf("%s: got cookies %q", path, cookies)
			}
			if got := answer.Header["Cache-Control"]; len(got) != 1 || got[0] != "no-store" { // a cache would hand the session to others
				t.Errorf("%s: got Cache-Control %q", path, got)
			}
			if answer, _ := f.send(get("/cached")); answer.Header.Get("Cache-Control") != "public, max-age=60" || len(answer.Header["Set-Cookie"]) != 2 {
				t.Errorf("without a session in it: %v", answer.Header)
			}
			if path == "/trailer" && answer.Trailer.Get("Sum") != "42" {
				t.Errorf("got trailer %v", answer.Trailer)
			}
		}
	})
}

// wantError says whether an answer is an error of our own with all its headers.
func wantError(t *testing.T, answer *http.Response, body string, status int) {
	t.Helper()
	if answer.StatusCode != status || !strings.Contains(body, fmt.Sprintf(`"status":%d`, status)) ||
		answer.Header.Get("X-Content-Type-Options") == "" || answer.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("got %s %v %s, want %d", answer.Status, answer.Header, body, status)
	}
}

func TestToolAway(t *testing.T) {
	tool := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/hang":
			<-r.Context().Done()
		case "/hints":
			w.WriteHeader(http.StatusEarlyHints)
			panic(http.ErrAbortHandler)
		case "/die":
			panic(http.ErrAbortHandler)
		case "/half":
			w.Header().Set("Content-Length", "100")
			io.WriteString(w, "half")
			http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		case "/unasked":
			conn, rw, _ := http.NewResponseController(w).Hijack()
			rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
			rw.Flush()
			conn.Close()
		case "/nonsense":
			conn, rw, _ := http.NewResponseController(w).Hijack()
			rw.WriteString("it is late\r\n\r\n")
			rw.Flush()
			conn.Close()
		}
	})
	inFront(t, tool, nil, func(t *testing.T, f *front) {
		for _, path := range []string{"/die", "/nonsense", "/unasked"} {
			answer, body := f.send(get(path))
			wantError(t, answer, body, http.StatusBadGateway)
		}
		start := time.Now()
		answer, body := f.send(get("/hang"))
		wantError(t, answer, body, http.StatusGatewayTimeout)
		if took := time.Since(start); took != slow {
			t.Errorf("504 after %v", took)
		}
		conn, err := f.clients.dial(t.Context(), "", "")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		f.write(conn, get("/half"))
		if got, err := http.ReadResponse(bufio.NewReader(conn), nil); err == nil {
			if b, err := io.ReadAll(got.Body); err == nil {
				t.Errorf("half an answer passed for a whole one: %s %q", got.Status, b)
			}
		}
		if !strings.Contains(f.log.String(), "tool failed") {
			t.Errorf("the log says nothing of it:\n%s", f.log)
		}
		if n := strings.Count(f.log.String(), "panic"); n != 0 {
			t.Errorf("%d panics:\n%s", n, f.log)
		}
	})
}

func TestToolRefuses(t *testing.T) {
	inFront(t, nil, nil, func(t *testing.T, f *front) {
		refuse := func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("connection refused") }
		hang := func(ctx context.Context, _, _ string) (net.Conn, error) {
			time.Sleep(10 * time.Second)
			return nil, &net.OpError{Op: "dial", Err: os.ErrDeadlineExceeded}
		}
		ask := func(ctx context.Context, dial func(context.Context, string, string) (net.Conn, error)) (answer *http.Response, failure any) {
			w := httptest.NewRecorder()
			r := httptest.NewRequestWithContext(ctx, "GET", "/", nil)
			r.Header.Set("Cookie", f.cookie)
			defer func() { failure = recover() }()
			(&Protect{next: f.requireLogin(f.gateway.proxyOver(dial)), log: f.Auth.Log, lines: requestLog{w: f.log}, addr: f.addr, public: "example.com"}).ServeHTTP(w, r)
			return w.Result(), nil
		}
		for status, dial := range map[int]func(context.Context, string, string) (net.Conn, error){502: refuse, 504: hang} {
			answer, _ := ask(t.Context(), dial)
			body, _ := io.ReadAll(answer.Body)
			wantError(t, answer, string(body), status)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second) // the client goes
		defer cancel()
		if _, failure := ask(ctx, hang); failure != http.ErrAbortHandler {
			t.Errorf("got %v when the client had gone", failure)
		}
	})
}

// A client that breaks off is not a tool that failed.
func TestClientBreaksOff(t *testing.T) {
	inFront(t, nil, nil, func(t *testing.T, f *front) {
		answer, body := f.send("POST / HTTP/1.1\nHost: localhost\nCookie: COOKIE\nTransfer-Encoding: chunked\n\n3\r\nabc\r\nnonsense\r\n")
		wantError(t, answer, body, http.StatusBadRequest)
		conn, err := f.clients.dial(t.Context(), "", "")
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: localhost\r\nCookie: %s\r\nContent-Length: 10\r\n\r\nabc", f.cookie)
		conn.Close()
		synctest.Wait()
		if strings.Contains(f.log.String(), "tool failed") {
			t.Errorf("the log says:\n%s", f.log)
		}
	})
}

// streams is a tool with all that stays open.
func streams(w http.ResponseWriter, r *http.Request) {
	control := http.NewResponseController(w)
	switch r.URL.Path {
	case "/socket":
		conn, rw, err := control.Hijack()
		if err != nil {
			panic(err)
		}
		defer conn.Close()
		rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		rw.Flush()
		io.Copy(conn, rw)
	case "/events":
		w.Header().Set("Content-Type", "text/event-stream")
		control.Flush()
		for n := 0; r.Context().Err() == nil; n++ {
			fmt.Fprintf(w, "data: %d\n\n", n)
			control.Flush()
			select {
			case <-time.After(time.Second):
			case <-r.Context().Done():
			}
		}
	case "/silent":
		w.Header().Set("Content-Type", "text/event-stream")
		control.Flush()
		<-r.Context().Done()
	case "/endless":
		w.Header().Set("Content-Length", "1000000000000")
		for b := make([]byte, 1<<10); r.Context().Err() == nil; {
			if _, err := w.Write(b); err != nil {
				return
			}
		}
	case "/upload":
		n, _ := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, n)
	case "/early":
		w.WriteHeader(http.StatusRequestEntityTooLarge)
	}
}

const socket = "GET /socket HTTP/1.1\nHost: localhost\nCookie: COOKIE\nConnection: Upgrade\nUpgrade: websocket\nOrigin: http://localhost\n\n"

func TestWebSocket(t *testing.T) {
	inFront(t, http.HandlerFunc(streams), nil, func(t *testing.T, f *front) {
		conn, answer := f.open(socket)
		defer conn.Close()
		if answer.StatusCode != http.StatusSwitchingProtocols || answer.Header.Get("X-Content-Type-Options") != "" {
			t.Fatalf("got %s %v", answer.Status, answer.Header)
		}
		for n := range 100 {
			said := fmt.Sprintf("message %3d", n)
			go io.WriteString(conn, said)
			heard := make([]byte, len(said))
			if _, err := io.ReadFull(conn, heard); err != nil || string(heard) != said {
				t.Fatalf("got %q, %v, want %q", heard, err, said)
			}
			time.Sleep(time.Minute)
		}
	})
}

func TestEventsComeAtOnce(t *testing.T) {
	inFront(t, http.HandlerFunc(streams), nil, func(t *testing.T, f *front) {
		start := time.Now()
		conn, answer := f.open(get("/events"))
		defer conn.Close()
		for n := range 200 {
			event := make([]byte, len(fmt.Sprintf("data: %d\n\n", n)))
			if _, err := io.ReadFull(answer.Body, event); err != nil || string(event) != fmt.Sprintf("data: %d\n\n", n) {
				t.Fatalf("got %q, %v", event, err)
			}
			if late := time.Since(start) - time.Duration(n)*time.Second; late > 0 {
				t.Fatalf("event %d came %v late", n, late)
			}
		}
		// and its headers before the first one
		silent, _ := f.open(get("/silent"))
		silent.Close()
	})
}

// Requests without a pause that is longer than newServer's limits, and with.
func TestLongBodiesPass(t *testing.T) {
	inFront(t, http.HandlerFunc(streams), nil, func(t *testing.T, f *front) {
		conn, err := f.clients.dial(t.Context(), "", "")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		f.write(conn, "POST /upload HTTP/1.1\nHost: localhost\nCookie: COOKIE\nContent-Length: 300\n\n")
		go func() {
			for n := range 300 {
				time.Sleep(time.Duration(1+n%40) * time.Second)
				conn.Write([]byte("x"))
			}
		}()
		answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatalf("%v\n%s", err, f.log)
		}
		if body, _ := io.ReadAll(answer.Body); string(body) != "300" {
			t.Errorf("got %s %q", answer.Status, body)
		}
	})
}

// stream begins a request and leaves the rest of it to client. The answer says
// when ringward was done with it.
func (f *front) stream(request string, client func(*front, net.Conn)) (over <-chan time.Time) {
	f.t.Helper()
	conn, err := f.clients.dial(f.t.Context(), "", "")
	if err != nil {
		f.t.Fatal(err)
	}
	done := func() int { return strings.Count(f.log.String(), "msg=request ") }
	n, c := done(), make(chan time.Time, 1)
	f.write(conn, request)
	go func() {
		client(f, conn)
		conn.Close()
	}()
	go func() {
		for done() == n {
			time.Sleep(time.Second)
		}
		c <- time.Now()
	}()
	return c
}

func isOver(over <-chan time.Time) bool {
	synctest.Wait()
	return len(over) > 0
}

var (
	listens = func(_ *front, conn net.Conn) { io.Copy(io.Discard, conn) }
	stalls  = func(f *front, _ net.Conn) { <-f.finished }
	slowly  = func(f *front, conn net.Conn) {
		for err := error(nil); err == nil; time.Sleep(time.Second) {
			_, err = io.CopyN(io.Discard, conn, 1<<10)
		}
	}
)

// What stays open ends within a minute after its session has, whatever the
// client does, and not before.
func TestStreamsEndWithTheSession(t *testing.T) {
	for name, c := range map[string]struct {
		request string
		client  func(*front, net.Conn)
	}{
		"socket":         {socket, listens},
		"stalled socket": {socket, stalls},
		"stuffed socket": {socket, func(f *front, conn net.Conn) {
			conn.Read(make([]byte, 1))           // the answer has begun
			for err := error(nil); err == nil; { // and the echo is not heard
				_, err = conn.Write(make([]byte, 1<<10))
			}
			stalls(f, conn)
		}},
		"events": {get("/events"), listens},
		"stalled events": {get("/events"), func(f *front, conn net.Conn) {
			// While the first bytes wait for the client, a goroutine of
			// ReverseProxy waits for a mutex, which to synctest is not waiting.
			io.CopyN(io.Discard, conn, 1000)
			stalls(f, conn)
		}},
		"silent events":    {get("/silent"), listens},
		"slow download":    {get("/endless"), slowly},
		"stalled download": {get("/endless"), stalls},
		"slow upload": {"POST /upload HTTP/1.1\nHost: localhost\nCookie: COOKIE\nContent-Length: 1000000\n\n", func(f *front, conn net.Conn) {
			for err := error(nil); err == nil; {
				time.Sleep(time.Second)
				_, err = conn.Write([]byte("x"))
			}
		}},
		"stalled upload": {"POST /upload HTTP/1.1\nHost: localhost\nCookie: COOKIE\nTransfer-Encoding: chunked\n\n3\r\nabc\r\n", stalls},
	} {
		t.Run(name, func(t *testing.T) {
			inFront(t, http.HandlerFunc(streams), nil, func(t *testing.T, f *front) {
				over := f.stream(c.request, c.client)
				time.Sleep(20 * time.Minute)
				if isOver(over) {
					t.Fatalf("ended while the session lived:\n%s", f.log)
				}
				f.do("DELETE", "/auth/session", "", "Cookie", f.cookie)
				logout := time.Now()
				if took := (<-over).Sub(logout); took > time.Minute {
					t.Errorf("ended %v after its session", took)
				}
				synctest.Wait()
				if n := f.inTool.Load(); n != 0 {
					t.Errorf("the tool still has %d requests", n)
				}
			})
		})
	}
}

// Who still sends is told why it is over.
func TestUploadIsToldOfItsEnd(t *testing.T) {
	inFront(t, http.HandlerFunc(streams), nil, func(t *testing.T, f *front) {
		told := make(chan string, 1)
		f.stream("POST /upload HTTP/1.1\nHost: localhost\nCookie: COOKIE\nContent-Length: 100\n\n", func(_ *front, conn net.Conn) {
			b, _ := io.ReadAll(conn)
			told <- string(b)
		})
		time.Sleep(time.Hour)
		f.do("DELETE", "/auth/session", "", "Cookie", f.cookie)
		logout := time.Now()
		if got := <-told; !strings.HasPrefix(got, "HTTP/1.1 401 ") || time.Since(logout) > time.Minute {
			t.Errorf("after %v: %q", time.Since(logout), got)
		}
	})
}

// A stream is not use: it does not keep its session alive.
func TestStreamRenewsNothing(t *testing.T) {
	inFront(t, http.HandlerFunc(streams), nil, func(t *testing.T, f *front) {
		start := time.Now()
		over := f.stream(get("/silent"), listens)
		if took := (<-over).Sub(start); took < f.sessions.Idle || took > f.sessions.Idle+time.Minute {
			t.Errorf("ended after %v of a session that idles for %v", took, f.sessions.Idle)
		}
	})
}

func TestStreamEndsWithItsToken(t *testing.T) {
	inFront(t, http.HandlerFunc(streams), nil, func(t *testing.T, f *front) {
		token, secret, err := newToken("frodo", "script", "", time.Now())
		if err == nil {
			err = f.store.(accountStore).addToken(token)
		}
		if err != nil {
			t.Fatal(err)
		}
		over := f.stream("GET /silent HTTP/1.1\nHost: localhost\nAuthorization: Bearer "+secret+"\n\n", listens)
		time.Sleep(time.Hour)
		if isOver(over) {
			t.Fatal("ended while the token lived")
		}
		f.store.(accountStore).removeToken(token.Key)
		gone := time.Now()
		if took := (<-over).Sub(gone); took > time.Minute {
			t.Errorf("ended %v after its token", took)
		}
	})
}

// shaky is a Store that fails as told.
type shaky struct {
	Store
	fails atomic.Bool
}

func (s *shaky) session(k Key, now time.Time) (Session, User, error) {
	if s.fails.Load() {
		return Session{}, User{}, errors.New("disk on fire")
	}
	return s.Store.session(k, now)
}

func TestStreamWhenTheStoreFails(t *testing.T) {
	inFront(t, http.HandlerFunc(streams), nil, func(t *testing.T, f *front) {
		store := &shaky{Store: f.store}
		f.sessions.store = store
		over := f.stream(get("/silent"), listens)
		synctest.Wait()
		for range 10 {
			store.fails.Store(true)
			time.Sleep(recheck)
			store.fails.Store(false)
			time.Sleep(recheck)
		}
		if isOver(over) {
			t.Fatal("ended after one doubt")
		}
		store.fails.Store(true)
		failed := time.Now()
		if took := (<-over).Sub(failed); took > time.Minute {
			t.Errorf("ended %v after the store failed", took)
		}
	})
}

// The answer is there while the client still sends, and it sends no more.
func TestEarlyAnswer(t *testing.T) {
	inFront(t, http.HandlerFunc(streams), nil, func(t *testing.T, f *front) {
		start := time.Now()
		over := f.stream("POST /early HTTP/1.1\nHost: localhost\nCookie: COOKIE\nContent-Length: 1000000\n\nabc", func(f *front, conn net.Conn) {
			answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil || answer.StatusCode != http.StatusRequestEntityTooLarge {
				t.Errorf("got %v, %v", answer, err)
			}
			stalls(f, conn)
		})
		if took := (<-over).Sub(start); took > 20*time.Second {
			t.Errorf("held for %v", took)
		}
	})
}

func TestNext(t *testing.T) {
	for raw, want := range map[string]string{
		// a path of this host stays as it is
		"/":                          "/",
		"/reports":                   "/reports",
		"/reports?week=3&x=a%26b":    "/reports?week=3&x=a%26b",
		"/a//b/../c;d=e?f#g":         "/a//b/../c;d=e?f#g",
		"/?next=//evil.test":         "/?next=//evil.test",
		"/https://evil.test":         "/https://evil.test",
		"/%2f%2fevil.test":           "/%2f%2fevil.test",
		"/%5cevil.test":              "/%5cevil.test",
		"/%09/evil.test%0d%0aX-A:%0": "/", // not an escape
		"/@evil.test":                "/@evil.test",
		"/x?q=C:\\temp":              "/x?q=C:%5Ctemp",
		"/two words\u00e9":           "/two%20words%C3%A9",
		"/\uff0fevil.test":           "/%EF%BC%8Fevil.test",
		"/.//evil.test":              "/.//evil.test",
		// what is none
		"":                                        "/",
		"reports":                                 "/",
		"?week=3":                                 "/",
		"#top":                                    "/",
		"..":                                      "/",
		"//evil.test":                             "/",
		"///evil.test":                            "/",
		"////evil.test/%2f..":                     "/",
		"//\u3002evil.test":                       "/",
		"//user:pw@evil.test":                     "/",
		"/\\evil.test":                            "/",
		"\\/evil.test":                            "/",
		"\\\\evil.test":                           "/",
		"/x\\evil.test":                           "/",
		"/\t/evil.test":                           "/",
		"/\n/evil.test":                           "/",
		"\r\n/evil.test":                          "/",
		"/\x00/evil.test":                         "/",
		"/\u0085/evil.test":                       "/",
		" //evil.test":                            "/",
		" /reports":                               "/",
		"\u2000//evil.test":                       "/",
		"http://evil.test":                        "/",
		"https://evil.test":                       "/",
		"https:evil.test":                         "/",
		"https:/evil.test":                        "/",
		"https:///evil.test":                      "/",
		"HTTPS://EVIL.TEST":                       "/",
		"http:////evil.test":                      "/",
		"ftp://tool.example.com":                  "/",
		"javascript:alert(1)":                     "/",
		"java\tscript:alert(1)":                   "/",
		"data:text/html,x":                        "/",
		"evil.test":                               "/",
		"evil.test:80/x":                          "/",
		"%2f%2fevil.test":                         "/",
		"%68ttps://evil.test":                     "/",
		"/%zz":                                    "/",
		"localhost:8080/x":                        "/",
		"http://localhost:8080/x":                 "/",
		"https://tool.example.com/x":              "https://tool.example.com/x", // under the cookie domain
		"https://example.com":                     "https://example.com",
		"https://example.com:8443/":               "https://example.com:8443/",
		"hTTps://A.Tool.EXAMPLE.com?b=c%26d#e":    "hTTps://A.Tool.EXAMPLE.com?b=c%26d#e",
		"http://tool.example.com/x":               "/",
		"https://badexample.com":                  "/",
		"https://example.com.evil.test":           "/",
		"https://example.com@evil.test":           "/",
		"https://evil.test#example.com":           "/",
		"https://evil.test?.example.com":          "/",
		"https://evil.test/.example.com":          "/",
		"https://evil.test\\.example.com":         "/",
		"https://evil.test%2f.example.com":        "/",
		"https://evil.test%00.example.com":        "/",
		"https://user@tool.example.com":           "/",
		"https://@tool.example.com":               "/",
		"https://tool.example.com:99999":          "/",
		"https://tool.example.com:0":              "/",
		"https://tool.example.com:80:81":          "/",
		"https://.example.com":                    "/",
		"https://a..example.com":                  "/",
		"https://example.com.":                    "/",
		"https://example\uff0ecom":                "/",
		"https://evil.test\u3002example.com":      "/",
		"https://ex\u0430mple.com":                "/",
		"https://[::1]":                           "/",
		"https://[example.com]":                   "/",
		"https://tool.example.com/\\evil.test":    "/",
		"https://tool.example.com/ x\u00e9?\\":    "https://tool.example.com/%20x%C3%A9?%5C",
		"//tool.example.com":                      "/",
		"https:tool.example.com":                  "/",
		"https:/tool.example.com":                 "/",
		"https:\\\\tool.example.com":              "/",
		"blob:https://tool.example.com":           "/",
		"https://tool.example.com, //evil.test":   "/",
		"/reports, https://evil.test":             "/reports,%20https://evil.test",
		"https://tool.example.com\r\nSet-Cookie:": "/",
	} {
		g := Gateway{domain: "example.com"}
		if got := g.next(raw); got != want {
			t.Errorf("next(%q) = %q, want %q", raw, got, want)
		}
		if strings.HasPrefix(want, "h") {
			want = "/"
		}
		if got := (&Gateway{}).next(raw); got != want {
			t.Errorf("without a domain next(%q) = %q, want %q", raw, got, want)
		}
	}
}

// browse is where a browser at base goes by a Location header, after the URL
// Standard in so far as it is about origins.
func browse(base, location string) (origin string) {
	location = strings.TrimFunc(location, func(c rune) bool { return c <= ' ' })
	location = strings.NewReplacer("\t", "", "\n", "", "\r", "").Replace(location)
	scheme := base[:strings.Index(base, ":")]
	end := strings.IndexFunc(location, func(c rune) bool {
		return !('a' <= c|0x20 && c|0x20 <= 'z') && !strings.ContainsRune("0123456789+-.", c)
	})
	slashes := func(s string) int { return len(s) - len(strings.TrimLeft(s, `/\`)) }
	if end > 0 && location[end] == ':' && 'a' <= location[0]|0x20 && location[0]|0x20 <= 'z' {
		other := strings.ToLower(location[:end])
		location = location[end+1:]
		if other == scheme && slashes(location) < 2 {
			return base
		}
		scheme = other
	} else if slashes(location) < 2 {
		return base
	}
	location = strings.TrimLeft(location, `/\`)
	if end := strings.IndexAny(location, `/\?#`); end >= 0 {
		location = location[:end]
	}
	return scheme + "://" + strings.ToLower(location[strings.LastIndex(location, "@")+1:])
}

func FuzzNext(f *testing.F) {
	for _, seed := range []string{"/reports?week=3", "//evil.test", "/\\evil.test", "https://tool.example.com/x", "https://evil.test\\.example.com", "/\t/x", "https:x", "/%5c"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		for _, domain := range []string{"", "example.com"} {
			g := Gateway{domain: domain}
			next := g.next(raw)
			if again := g.next(next); again != next {
				t.Errorf("next(%q) = %q, and next of that %q", raw, next, again)
			}
			if strings.ContainsFunc(next, func(c rune) bool { return c <= ' ' || c >= 0x7f || c == '\\' }) {
				t.Errorf("next(%q) = %q, which a header cannot hold", raw, next)
			}
			const home = "http://localhost:8080"
			where := browse(home, next)
			there, err := url.Parse(where)
			if where != home && (domain == "" || err != nil || there.Scheme != "https" || !under(there.Hostname(), domain)) {
				t.Errorf("next(%q) = %q, which leads to %s", raw, next, where)
			}
		}
	})
}

func TestClientAddr(t *testing.T) {
	trusted := func(g *Gateway) {
		trust("127.0.0.1/32", "10.0.0.0/8", "2001:db8::/32", "fe80::/10")(g)
	}
	for _, c := range []struct {
		peer, lines, want string // lines of X-Forwarded-For, joined by |
	}{
		{"192.0.2.7:5555", "", "192.0.2.7"},
		{"192.0.2.7:5555", "6.6.6.6", "192.0.2.7"},
		{"192.0.2.7:5555", "10.0.0.1", "192.0.2.7"},
		{"[2001:db9::1]:5555", "6.6.6.6", "2001:db9::1"},
		{"127.0.0.1:1", "", "127.0.0.1"},
		{"127.0.0.1:1", "203.0.113.9", "203.0.113.9"},
		{"[::ffff:127.0.0.1]:1", "203.0.113.9", "203.0.113.9"},
		{"[2001:db8::1]:1", "203.0.113.9", "203.0.113.9"},
		{"[fe80::1%eth0]:1", "203.0.113.9", "203.0.113.9"},
		{"127.0.0.1:1", "6.6.6.6, 203.0.113.9", "203.0.113.9"},
		{"127.0.0.1:1", "6.6.6.6, 203.0.113.9, 10.1.2.3", "203.0.113.9"},
		{"127.0.0.1:1", "6.6.6.6|203.0.113.9|10.1.2.3,127.0.0.1", "203.0.113.9"},
		{"127.0.0.1:1", "10.9.9.9|6.6.6.6", "6.6.6.6"},
		{"127.0.0.1:1", "\t203.0.113.9 ,\t10.1.2.3 ", "203.0.113.9"},
		{"127.0.0.1:1", "203.0.113.9:5555", "203.0.113.9"},
		{"127.0.0.1:1", "[2001:db9::9]:5555", "2001:db9::9"},
		{"127.0.0.1:1", "[2001:db9::9]", "2001:db9::9"},
		{"127.0.0.1:1", "2001:DB9:0::9", "2001:db9::9"},
		{"127.0.0.1:1", "2001:db9::9%<script>", "2001:db9::9"},
		{"127.0.0.1:1", "::ffff:203.0.113.9", "203.0.113.9"},
		{"127.0.0.1:1", "6.6.6.6, ::ffff:10.1.2.3", "6.6.6.6"},
		{"127.0.0.1:1", strings.Repeat("6.6.6.6, ", 200) + "203.0.113.9", "203.0.113.9"},
		{"127.0.0.1:1", "10.1.2.3", "10.1.2.3"}, // all are trusted: the farthest
		{"127.0.0.1:1", "10.1.2.3, 10.4.5.6", "10.1.2.3"},
		{"127.0.0.1:1", "nonsense, 203.0.113.9", "203.0.113.9"}, // a client's, not a proxy's
		{"127.0.0.1:1", "a", "127.0.0.1"},
		{"127.0.0.1:1", "6.6.6.6, a", "127.0.0.1"},
		{"127.0.0.1:1", "6.6.6.6, a, 10.1.2.3", "127.0.0.1"},
		{"127.0.0.1:1", "6.6.6.6,", "127.0.0.1"},
		{"127.0.0.1:1", "|", "127.0.0.1"},
		{"127.0.0.1:1", "unknown", "127.0.0.1"},
		{"127.0.0.1:1", "1.2.3", "127.0.0.1"},
		{"127.0.0.1:1", "1.2.3.4.5", "127.0.0.1"},
		{"127.0.0.1:1", "01.2.3.4", "127.0.0.1"},
		{"127.0.0.1:1", "1.2.3.4:99999", "127.0.0.1"},
		{"127.0.0.1:1", "[1.2.3.4", "127.0.0.1"},
		{"127.0.0.1:1", "localhost", "127.0.0.1"},
		{"127.0.0.1:1", "203.0.113.9;10.1.2.3", "127.0.0.1"},
		{"127.0.0.1:1", "\"[2001:db9::9]\"", "127.0.0.1"},
		{"@", "6.6.6.6", "@"}, // a Unix socket
	} {
		g := &Gateway{}
		trusted(g)
		r := httptest.NewRequest("GET", "/", nil)
		r.RemoteAddr = c.peer
		for line := range strings.SplitSeq(c.lines, "|") {
			if c.lines != "" {
				r.Header.Add("X-Forwarded-For", line)
			}
		}
		if got := g.clientAddr(r); got != c.want {
			t.Errorf("from %s with %q: got %s, want %s", c.peer, c.lines, got, c.want)
		}
	}
}

func FuzzForwardedFor(f *testing.F) {
	f.Add("203.0.113.9", "10.1.2.3", true)
	f.Add("a, [::1]:80", "::ffff:10.0.0.1%x", true)
	f.Fuzz(func(t *testing.T, first, second string, fromProxy bool) {
		g := &Gateway{}
		trust("10.0.0.0/8", "fd00::/8")(g)
		r := httptest.NewRequest("GET", "/", nil)
		if fromProxy {
			r.RemoteAddr = "10.0.0.1:80"
		}
		r.Header["X-Forwarded-For"] = []string{first, second}
		hops := g.hops(r)
		for i, hop := range hops {
			addr, err := netip.ParseAddr(hop)
			if err != nil || addr.Zone() != "" || addr.Is4In6() {
				t.Errorf("%q is no address of ours", hop)
			}
			if trusted := g.trusts(addr); i > 0 && !trusted {
				t.Errorf("%q: behind the client there is %s, which is not trusted", hops, hop)
			}
		}
		if last := hops[len(hops)-1]; last+":80" != r.RemoteAddr && last+":1234" != r.RemoteAddr || !fromProxy && len(hops) != 1 {
			t.Errorf("%q from %s", hops, r.RemoteAddr)
		}
	})
}

// asked is a gateway's question.
func asked(cookie, target, from string, headers ...string) *http.Request {
	r := httptest.NewRequest("GET", target, nil)
	r.Host = "localhost:8080"
	r.RemoteAddr = from
	if cookie != "" {
		r.Header.Set("Cookie", cookie)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	return r
}

func TestVerify(t *testing.T) {
	s := newTestServer(t)
	s.LoginPage = "/auth/login"
	cookie := s.login(t)
	const proxy, stranger = "10.0.0.1:80", "192.0.2.7:80"
	const page = "text/html,*/*"
	for _, c := range []struct {
		what, public, domain string
		target, from         string
		cookie               string
		headers              []string
		status               int
		where                string // X-Login-URL or Location
	}{
		{what: "logged in", target: "/auth/verify", from: stranger, cookie: cookie, status: 204},
		{what: "logged in, redirecting", target: "/auth/verify?redirect", from: proxy, cookie: cookie, headers: []string{"Accept", page}, status: 204},
		{what: "claims to be", target: "/auth/verify", from: proxy, headers: []string{"Remote-User", "gandalf"}, status: 401, where: "/auth/login?next=%2F"},
		{what: "a wrong cookie", target: "/auth/verify", from: proxy, cookie: cookie + "x", status: 401, where: "/auth/login?next=%2F"},
		{what: "nobody", target: "/auth/verify", from: proxy, status: 401, where: "/auth/login?next=%2F",
			headers: []string{"Accept", page}},
		{what: "told by a trusted proxy", target: "/auth/verify", from: proxy, status: 401, where: "/auth/login?next=%2Freports%3Fweek%3D3%26x%3Da%2526b",
			headers: []string{"X-Forwarded-Uri", "/reports?week=3&x=a%26b"}},
		{what: "told by a stranger", target: "/auth/verify", from: stranger, status: 401, where: "/auth/login?next=%2F",
			headers: []string{"X-Forwarded-Uri", "/reports?week=3"}},
		{what: "told two things", target: "/auth/verify", from: proxy, status: 401, where: "/auth/login?next=%2F",
			headers: []string{"X-Forwarded-Uri", "/a", "X-Forwarded-Uri", "/b"}},
		{what: "told to leave", target: "/auth/verify", from: proxy, status: 401, where: "/auth/login?next=%2F",
			headers: []string{"X-Forwarded-Uri", "//evil.test"}},
		{what: "uri as nginx has it", target: "/auth/verify?redirect&uri=/reports?week=3&x=a%26b", from: stranger, status: 401, where: "/auth/login?next=%2Freports%3Fweek%3D3%26x%3Da%2526b"},
		{what: "uri as Caddy has it", target: "/auth/verify?redirect&uri=%2Freports%3Fweek%3D3%26x%3Da%2526b", from: stranger, status: 401, where: "/auth/login?next=%2Freports%3Fweek%3D3%26x%3Da%2526b"},
		{what: "uri that leaves", target: "/auth/verify?&uri=https://evil.test/x", from: stranger, status: 401, where: "/auth/login?next=%2F"},
		{what: "uri with redirect in it", target: "/auth/verify?uri=/x?a&redirect", from: stranger, headers: []string{"Accept", page}, status: 401, where: "/auth/login?next=%2Fx%3Fa%26redirect"},
		{what: "a page", target: "/auth/verify?redirect", from: proxy, status: 303, where: "/auth/login?next=%2Freports%3Fweek%3D3",
			headers: []string{"Accept", page, "Sec-Fetch-Mode", "navigate", "X-Forwarded-Method", "GET", "X-Forwarded-Uri", "/reports?week=3"}},
		{what: "a page, to an old browser", target: "/auth/verify?redirect", from: stranger, status: 303, where: "/auth/login?next=%2F",
			headers: []string{"Accept", page}},
		{what: "a page that is posted", target: "/auth/verify?redirect", from: proxy, status: 401, where: "/auth/login?next=%2F",
			headers: []string{"Accept", page, "X-Forwarded-Method", "POST"}},
		{what: "a page, a stranger says posted", target: "/auth/verify?redirect", from: stranger, status: 303, where: "/auth/login?next=%2F",
			headers: []string{"Accept", page, "X-Forwarded-Method", "POST"}},
		{what: "an API", target: "/auth/verify?redirect", from: proxy, status: 401, where: "/auth/login?next=%2F",
			headers: []string{"Accept", "*/*", "User-Agent", "Mozilla/5.0"}},
		{what: "fetch", target: "/auth/verify?redirect", from: proxy, status: 401, where: "/auth/login?next=%2F",
			headers: []string{"Accept", page, "Sec-Fetch-Mode", "cors"}},
		{what: "with a public URL", public: "https://ring.example.com", target: "/auth/verify", from: proxy, status: 401, where: "https://ring.example.com/auth/login?next=%2Fx",
			headers: []string{"X-Forwarded-Uri", "/x", "X-Forwarded-Host", "ring.example.com", "X-Forwarded-Proto", "https"}},
		{what: "for another host of the domain", public: "https://auth.example.com", domain: "example.com", target: "/auth/verify?redirect", from: proxy, status: 303,
			where:   "https://auth.example.com/auth/login?next=https%3A%2F%2Ftool.example.com%3A8443%2Fx%3Fy",
			headers: []string{"Accept", page, "X-Forwarded-Uri", "/x?y", "X-Forwarded-Host", "tool.example.com:8443", "X-Forwarded-Proto", "https"}},
		{what: "for another host, which nobody is trusted to name", public: "https://auth.example.com", domain: "example.com", target: "/auth/verify?uri=https://tool.example.com/x?y", from: stranger, status: 401,
			where: "https://auth.example.com/auth/login?next=https%3A%2F%2Ftool.example.com%2Fx%3Fy"},
		{what: "for a host of the domain by http", public: "https://auth.example.com", domain: "example.com", target: "/auth/verify", from: proxy, status: 401,
			where:   "https://auth.example.com/auth/login?next=%2Fx",
			headers: []string{"X-Forwarded-Uri", "/x", "X-Forwarded-Host", "tool.example.com", "X-Forwarded-Proto", "http"}},
		{what: "for a host of another domain", public: "https://auth.example.com", domain: "example.com", target: "/auth/verify", from: proxy, status: 401,
			where:   "https://auth.example.com/auth/login?next=%2Fx",
			headers: []string{"X-Forwarded-Uri", "/x", "X-Forwarded-Host", "tool.example.com.evil.test", "X-Forwarded-Proto", "https"}},
		{what: "for a host that is none", public: "https://auth.example.com", domain: "example.com", target: "/auth/verify", from: proxy, status: 401,
			where:   "https://auth.example.com/auth/login?next=%2Fx",
			headers: []string{"X-Forwarded-Uri", "/x", "X-Forwarded-Host", "evil.test/.example.com", "X-Forwarded-Proto", "https"}},
		{what: "a write of another site", target: "/auth/verify?redirect", from: proxy, cookie: cookie, status: 403,
			headers: []string{"X-Forwarded-Method", "POST", "X-Forwarded-Host", "localhost:8080", "Origin", "http://evil.test"}},
		{what: "a write of the same site", target: "/auth/verify?redirect", from: proxy, cookie: cookie, status: 204,
			headers: []string{"X-Forwarded-Method", "POST", "X-Forwarded-Host", "tool.example.com", "Origin", "https://tool.example.com"}},
		{what: "an upgrade of another site", target: "/auth/verify?redirect", from: proxy, cookie: cookie, status: 403,
			headers: []string{"Upgrade", "websocket", "Sec-Fetch-Site", "cross-site"}},
		{what: "a WebSocket of another site", target: "/auth/verify?redirect", from: proxy, cookie: cookie, status: 403,
			headers: []string{"Sec-Websocket-Version", "13", "Origin", "http://evil.test"}},
		{what: "a WebSocket of our own", target: "/auth/verify?redirect", from: proxy, cookie: cookie, status: 204,
			headers: []string{"Sec-Websocket-Version", "13", "X-Forwarded-Host", "tool.example.com", "Origin", "https://tool.example.com"}},
	} {
		g := &Gateway{auth: s.Auth, domain: c.domain}
		trust("10.0.0.0/8")(g)
		if c.public != "" {
			g.public, _ = url.Parse(c.public)
		}
		w := httptest.NewRecorder()
		g.handleVerify(w, asked(c.cookie, c.target, c.from, c.headers...))
		h := w.Header()
		user, where := h["Remote-User"], h.Get("Location")+h.Get("X-Login-URL")
		if w.Code != c.status || where != c.where || (c.status == 204) != (len(user) == 1 && user[0] == "frodo") {
			t.Errorf("%s: got %d %v %s, want %d %s", c.what, w.Code, h, w.Body, c.status, c.where)
		}
		if c.status >= 400 && !strings.Contains(w.Body.String(), fmt.Sprintf(`"status":%d`, c.status)) || c.status != 403 && h.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: got %v %s", c.what, h, w.Body)
		}
	}
}

// What cannot be known is no login.
func TestVerifyWhenTheStoreFails(t *testing.T) {
	s := newTestServer(t)
	g := &Gateway{auth: s.Auth}
	cookie := s.login(t)
	store := &shaky{Store: s.store}
	store.fails.Store(true)
	s.sessions.store = store
	w := httptest.NewRecorder()
	g.handleVerify(w, asked(cookie, "/auth/verify?redirect", peer, "Accept", "text/html"))
	if w.Code != http.StatusServiceUnavailable || w.Header().Get("Remote-User") != "" || w.Header().Get("Retry-After") == "" {
		t.Errorf("got %d %v", w.Code, w.Header())
	}
}

func TestVerifyRenews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestServer(t)
		g := &Gateway{auth: s.Auth}
		cookie := s.login(t)
		time.Sleep(s.sessions.Idle * 2 / 3)
		w := httptest.NewRecorder()
		g.handleVerify(w, asked(cookie, "/auth/verify", peer))
		if w.Code != http.StatusNoContent || cookieOf(t, w) != cookie {
			t.Errorf("got %d %v", w.Code, w.Header())
		}
	})
}

func TestContinue(t *testing.T) {
	g := &Gateway{domain: "example.com"}
	for query, want := range map[string]string{
		"?next=%2Freports%3Fweek%3D3%26x%3Da%2526b": "/reports?week=3&x=a%26b",
		"?next=https%3A%2F%2Ftool.example.com%2Fx":  "https://tool.example.com/x",
		"?next=%2F%2Fevil.test":                     "/",
		"?next=%2F%5Cevil.test":                     "/",
		"?next=%2F%0D%0ASet-Cookie:%20a=b":          "/",
		"?next=/a&next=//evil.test":                 "/a",
		"?next=/a%3Bb;c":                            "/",
		"?next=%zz":                                 "/",
		"":                                          "/",
	} {
		w := httptest.NewRecorder()
		g.handleContinue(w, httptest.NewRequest("GET", "/auth/continue"+query, nil))
		if got := w.Header().Get("Location"); w.Code != http.StatusSeeOther || got != want || w.Header().Get("Cache-Control") != "no-store" {
			t.Errorf("%s: got %d %q, want %q", query, w.Code, got, want)
		}
	}
}
