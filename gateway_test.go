// The tests of gateway.go and stream.go need nothing but Go. A tool, ringward
// and its clients are joined by pipes in a synctest bubble, where waiting costs
// no time and a goroutine that stays behind is a failure.
package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// front is ringward with a tool behind it.
type front struct {
	*accountServer
	clients  *pipes
	cookie   string // of frodo
	log      *lockedBuffer
	inTool   atomic.Int32  // requests
	finished chan struct{} // closed when the test is done
	oneTool  *Tool         // that inFront made
}

// pipes is a network: what dial begins, Accept returns.
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

// inFront runs f with the whole of ringward before the tool, which is echoBack
// where it is nil, and frodo logged in.
func inFront(t *testing.T, tool http.Handler, set func(*Gateway), f func(t *testing.T, f *front)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := newAccountServer(t, "-proxy", "http://tool.internal")
		x := &front{accountServer: s, clients: newPipes(peer), log: new(lockedBuffer), finished: make(chan struct{})}
		s.auth.Log = newLogger(x.log, false)
		s.Protect.log, s.public = s.auth.Log, "ring.example.com"
		if set != nil {
			set(s.gateway)
		}
		tools := newPipes("127.0.0.1:4444")
		if tool == nil {
			tool = http.HandlerFunc(echoBack)
		}
		behind := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			x.inTool.Add(1)
			defer x.inTool.Add(-1)
			tool.ServeHTTP(w, r)
		})}
		go behind.Serve(tools)
		defer behind.Close()
		one := s.gateway.tools.Load().find("")
		one.proxy = s.gateway.proxyOver(one, tools.dial)
		server := newServer(s.program, s.auth.Log)
		go server.Serve(x.clients)
		defer server.Close()
		x.cookie = x.enter("frodo", testPassword)
		f(t, x)
		close(x.finished)
		time.Sleep(time.Minute) // what is left of connections to the tool goes
		s.store.Close()
	})
}

// received is what echoBack says of a request.
type received struct {
	Method, URI, Host string
	Header, Trailer   http.Header
	Body              string
}

func echoBack(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	json.NewEncoder(w).Encode(received{r.Method, r.RequestURI, r.Host, r.Header, r.Trailer, string(body)})
}

// write sends the text of a request. Lines of its head may end in \n, and
// COOKIE stands for frodo's. It does not wait: an early response leaves some of
// the body unread.
func (f *front) write(conn net.Conn, request string) {
	head, body, _ := strings.Cut(request, "\n\n")
	head = strings.ReplaceAll(strings.ReplaceAll(head, "COOKIE", f.cookie), "\n", "\r\n")
	go io.WriteString(conn, head+"\r\n\r\n"+body)
}

// begin sends a request and returns its connection.
func (f *front) begin(request string) net.Conn {
	f.Helper()
	conn, err := f.clients.dial(f.Context(), "", "")
	if err != nil {
		f.Fatal(err)
	}
	f.write(conn, request)
	return conn
}

// open returns what comes back to a request.
func (f *front) open(request string) (net.Conn, *http.Response) {
	f.Helper()
	conn := f.begin(request)
	response, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: strings.Fields(request)[0]})
	if err != nil {
		f.Fatalf("%v\nto %s", err, request)
	}
	return conn, response
}

func (f *front) send(request string) (*http.Response, string) {
	f.Helper()
	conn, response := f.open(request)
	defer conn.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		f.Fatal(err)
	}
	return response, string(body)
}

// get is a GET of frodo's with more header lines.
func get(path string, headers ...string) string {
	return "GET " + path + " HTTP/1.1\nHost: localhost:8080\nCookie: COOKIE\n" + strings.Join(append(headers, ""), "\n") + "\n"
}

// tool returns what the tool got of a request that must reach it.
func (f *front) tool(request string) (got received) {
	f.Helper()
	response, body := f.send(request)
	if err := json.Unmarshal([]byte(body), &got); err != nil || response.StatusCode != http.StatusOK {
		f.Fatalf("got %s %s\nto %s", response.Status, body, request)
	}
	return got
}

// apiToken makes one of frodo's.
func (f *front) apiToken() (Token, string) {
	f.Helper()
	token, secret, err := newToken("frodo", "script", "", time.Now())
	if err == nil {
		err = f.store.addToken(token)
	}
	if err != nil {
		f.Fatal(err)
	}
	return token, secret
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
	"X-Forwarded-Host: 6.6.6.6", "X-Forwarded-Proto: gopher", "X-Forwarded-User: gandalf", "X-Forwarded-Port: 666",
	"X-Forwarded-Prefix: /evil", "X-Forwarded-Preferred-Username: gandalf", "X-Forwarded-Uri: /evil", "X-Forwarded-Method: EVIL",
	"X-Remote-User: gandalf", "x_remote_user: gandalf", "X-Remote-Group: gandalf", "X-WebAuth-User: gandalf", "X.WebAuth.User: gandalf", "X-Auth-User: gandalf",
	"X-Auth-Username: gandalf", "X-Auth-Request-User: gandalf", "X_Auth_Request_Email: gandalf", "X-Authenticated-User: gandalf", "X-Authenticated-Userid: gandalf",
	"X-Authentik-Username: gandalf", "X-Forwarded-Access-Token: gandalf", "X-Auth-Email: gandalf", "X-Forwarded: for=6.6.6.6", "X-User: gandalf", "x_user: gandalf",
	"X-Username: gandalf", "X-Email: gandalf", "X-Authelia-Username: gandalf", "X-Token-User-Name: gandalf", "X-Token-User-Email: gandalf", "X-Consumer-Username: gandalf",
	"X-Goog-Authenticated-User-Email: gandalf", "Cf-Access-Authenticated-User-Email: gandalf", "X-SSL-Client-S-DN: gandalf", "X_SSL_Client_Verify: gandalf",
	"X-Proxy-User: gandalf", "Auth-User: gandalf", "Auth_User: gandalf", "Http-Remote-User: gandalf", "True-Client-IP: 6.6.6.6", "X-Client-IP: 6.6.6.6",
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

func TestSchemeInCapitals(t *testing.T) {
	g := plainGateway()
	trust("10.0.0.0/8")(g)
	for sent, want := range map[string]string{"HTTPS": "https", "Http": "http", "wss": "http"} {
		r := asked("", "/", "10.0.0.1:80", "X-Forwarded-Proto", sent)
		g.arrive(r)
		if got := g.scheme(r); got != want {
			t.Errorf("%s is %s", sent, got)
		}
	}
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
			response, _ := f.send(get("/", "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAMAAABkAAQAAP__", upgrade))
			if got := response.Header.Get("Got"); got != "/" {
				t.Errorf("%q: the tool got %q", upgrade, got)
			}
		}
		for _, upgrade := range []string{"Upgrade: websocket", "Upgrade: WebSocket"} {
			response, _ := f.send(get("/", "Connection: keep-alive, Upgrade", upgrade))
			if got := response.Header.Get("Got"); !strings.EqualFold(got, "websocket/upgrade") {
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
			{"xringward=1; ringward-wiki=2; __HOST-Ringward=3; COOKIE;; ringwar=4", "[xringward=1;; ringwar=4]"}, // those of another ringward on this host go too
			{"COOKIE; __Host-ringward=x; ringward=y; __Secure-ringward=z; ringward=q; b=\"2; ringward=w\"", "[b=\"2]"},
		} {
			got := f.tool("GET / HTTP/1.1\nHost: localhost\nCookie: " + c.sent + "\n\n")
			if s := fmt.Sprint(got.Header["Cookie"]); s != c.want {
				t.Errorf("of Cookie: %s the tool got %s, want %s", c.sent, s, c.want)
			}
		}
		_, secret := f.apiToken()
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

// odd are request targets that are the tool's, as they are spelled.
var odd = []string{
	"/", "//", "//x", "//auth/login", "/%2e%2e/", "/x/../auth/session", "/../auth/session", "/./auth/session", "/auth", "/AUTH/session",
	"/Auth/login", "/;/auth/session", "/auth;x/session", "/a%2Fb%2fc", "/a;b=c;d?e;f=g&h", "/?a=%zz&b;c&&=", "/x?", "/%2fauth/session", "/auth%2fsession", "/%61uth/session",
	"/healthz/", "/HEALTHZ", "/a\"b<c>d|e{f}`g^h", "/a\\b", "/caf\xc3\xa9", "/a//b/./c/", "/x?u=http://y/z", "/x#y", "/x?next=//evil.test/%0d%0a", "/%00", "/ringsofpower",
}

// beforeTool is the program with its own route list before a tool.
func beforeTool(t *testing.T, tool http.HandlerFunc, set func(*Gateway)) *accountServer {
	t.Helper()
	behind := httptest.NewServer(tool)
	t.Cleanup(behind.Close)
	s := newAccountServer(t, "-proxy", behind.URL)
	if set != nil {
		set(s.gateway)
	}
	s.Handler, s.public = s.program, "example.com"
	return s
}

// raw returns the response to a request as it would come over the wire, or nil
// where net/http refuses it.
func (s *accountServer) raw(request string) *httptest.ResponseRecorder {
	r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(strings.ReplaceAll(request, "\n", "\r\n"))))
	if err != nil {
		return nil
	}
	r.RemoteAddr = peer
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return w
}

// A path of ours never reaches the tool, and every other does, as it was sent.
func TestPathsReachTheToolAsSent(t *testing.T) {
	s := beforeTool(t, echoBack, nil)
	cookie := s.enter("frodo", testPassword)
	expect := map[string]string{
		`//a"b`:                  "//a%22b", // begins with two slashes and holds what no URL may: the same in other words
		"http://localhost/a?b":   "/a?b",
		"/auth/":                 "",
		"/auth/nothing":          "",
		"/auth/login":            "",
		"/auth/../x":             "",
		"/auth/%2e%2e/x":         "",
		"/auth//":                "",
		"/healthz":               "",
		"/healthz?x":             "",
		"http://localhost/auth/": "",
	}
	for _, path := range odd {
		expect[path] = path
	}
	for target, want := range expect {
		var got received
		w := s.raw("GET " + target + " HTTP/1.1\nHost: localhost\nCookie: " + cookie + "\n\n")
		json.Unmarshal(w.Body.Bytes(), &got)
		if got.URI != want {
			t.Errorf("the tool got %q of %q, want %q", got.URI, target, want)
		}
	}
}

// overHTTP2 is beforeTool, reached by HTTP/2.
func overHTTP2(t *testing.T, tool http.HandlerFunc) (*accountServer, *httptest.Server) {
	t.Helper()
	s := beforeTool(t, tool, nil)
	server := httptest.NewUnstartedServer(s)
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(server.Close)
	return s, server
}

// HTTP/2 lets spaces through that would end the address in the tool's request line.
func TestSpacesOfHTTP2(t *testing.T) {
	s, server := overHTTP2(t, echoBack)
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
		r.Header.Set("Cookie", s.enter("frodo", testPassword))
		response, err := server.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		var got received
		if err := json.NewDecoder(response.Body).Decode(&got); response.ProtoMajor != 2 || err != nil || got.URI != c[1] {
			t.Errorf("the tool got %q of %q: %s %s %v", got.URI, c[0], response.Proto, response.Status, err)
		}
		response.Body.Close()
	}
}

func TestNothingReachesTheToolWithoutLogin(t *testing.T) {
	s := beforeTool(t, func(w http.ResponseWriter, r *http.Request) { t.Errorf("the tool got %s %s", r.Method, r.RequestURI) }, trust("192.0.2.0/24"))
	for _, path := range append(odd, "http://localhost/x", "http://ring.example.com/x", "http://evil.test/x", "/auth/../x", "/auth/%2e%2e/x", "/healthz") {
		for _, method := range []string{"GET", "POST", "HEAD", "OPTIONS", "TRACE", "PROPFIND", "CONNECT"} {
			for _, more := range []string{"", "Remote-User: frodo\n", "Connection: Upgrade\nUpgrade: websocket\n", "X-Forwarded-For: 127.0.0.1\nX-Forwarded-Uri: /auth/login\n",
				"X-Forwarded-Host: localhost\nX-Forwarded-Method: GET\n", "Cookie: ringward=x.y\n", "Authorization: Bearer rw_x\n"} {
				w := s.raw(method + " " + path + " HTTP/1.1\nHost: localhost\n" + more + "\n")
				if w != nil && w.Code == http.StatusOK && path != "/healthz" {
					t.Errorf("%s %s: %d %s", method, path, w.Code, w.Body)
				}
			}
		}
	}
}

func TestMethodsNoToolNeeds(t *testing.T) {
	inFront(t, nil, nil, func(t *testing.T, f *front) {
		for _, method := range []string{"TRACE", "CONNECT"} {
			response, body := f.send(method + get("/x")[3:])
			if response.StatusCode != http.StatusMethodNotAllowed || response.Header.Get("Allow") == "" || method != "CONNECT" && !strings.Contains(body, `"status":405`) {
				t.Errorf("%s: %s %s", method, response.Status, body)
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
			response, body := f.send(c.method + get("/", c.headers)[3:])
			if reached := response.Header.Get("Reached") != ""; reached != c.want || !reached && (response.StatusCode != http.StatusForbidden || !strings.Contains(body, `"status":403`)) {
				t.Errorf("%s %s: %s %s", c.method, c.headers, response.Status, body)
			}
		}
	})
}

func TestResponsesPassAsTheyAre(t *testing.T) {
	tool := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/hints":
			w.Header().Set("Link", "</x.css>")
			w.Header().Set("Set-Cookie", "ringward=forged")
			w.Header().Set("Clear-Site-Data", `"cookies"`)
			w.WriteHeader(http.StatusEarlyHints)
			w.Header().Del("Set-Cookie")
			w.Header().Del("Clear-Site-Data")
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
		time.Sleep(f.auth.Idle * 2 / 3) // the session will be renewed
		for _, path := range []string{"/", "/hints", "/cached", "/trailer", "/zipped"} {
			f.cookie = f.enter("frodo", testPassword)
			time.Sleep(f.auth.Idle * 2 / 3)
			conn := f.begin(get(path))
			reader := bufio.NewReader(conn)
			response, err := http.ReadResponse(reader, nil)
			if err != nil {
				t.Fatal(err)
			}
			if path == "/hints" {
				if response.StatusCode != http.StatusEarlyHints || response.Header.Get("Link") == "" || response.Header["Set-Cookie"] != nil || response.Header["Clear-Site-Data"] != nil {
					t.Errorf("%s: got %s %v", path, response.Status, response.Header)
				}
				if response, err = http.ReadResponse(reader, nil); err != nil {
					t.Fatal(err)
				}
			}
			body, _ := io.ReadAll(response.Body)
			conn.Close()
			if response.StatusCode != http.StatusTeapot || string(body) != "short and stout" {
				t.Errorf("%s: got %s %q", path, response.Status, body)
			}
			for name := range ownHeaders {
				if name == "Cache-Control" {
					continue
				}
				if v := response.Header[name]; name == "Content-Security-Policy" && fmt.Sprint(v) != "[default-src *]" || name != "Content-Security-Policy" && v != nil {
					t.Errorf("%s: got %s: %q", path, name, v)
				}
			}
			cookies := response.Header["Set-Cookie"]
			if len(cookies) != 3 || cookies[0] != "tool=1; Path=/reports" || cookies[1] != "other=2" || !strings.HasPrefix(cookies[2], f.cookie+";") {
				t.Errorf("%s: got cookies %q", path, cookies)
			}
			if got := response.Header["Cache-Control"]; len(got) != 1 || got[0] != "no-store" { // a cache would hand the session to others
				t.Errorf("%s: got Cache-Control %q", path, got)
			}
			if response, _ := f.send(get("/cached")); response.Header.Get("Cache-Control") != "public, max-age=60" || len(response.Header["Set-Cookie"]) != 2 {
				t.Errorf("without a session in it: %v", response.Header)
			}
			if path == "/trailer" && response.Trailer.Get("Sum") != "42" {
				t.Errorf("got trailer %v", response.Trailer)
			}
		}
	})
}

// wantError says whether a response is an error of our own with all its headers.
func wantError(t *testing.T, response *http.Response, body string, status int) {
	t.Helper()
	if response.StatusCode != status || !strings.Contains(body, fmt.Sprintf(`"status":%d`, status)) ||
		response.Header.Get("X-Content-Type-Options") == "" || response.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("got %s %v %s, want %d", response.Status, response.Header, body, status)
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
			response, body := f.send(get(path))
			wantError(t, response, body, http.StatusBadGateway)
		}
		start := time.Now()
		response, body := f.send(get("/hang"))
		wantError(t, response, body, http.StatusGatewayTimeout)
		if took := time.Since(start); took != time.Minute {
			t.Errorf("504 after %v", took)
		}
		conn := f.begin(get("/half"))
		defer conn.Close()
		if got, err := http.ReadResponse(bufio.NewReader(conn), nil); err == nil {
			if b, err := io.ReadAll(got.Body); err == nil {
				t.Errorf("half a response passed for a whole one: %s %q", got.Status, b)
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
		ask := func(ctx context.Context, dial func(context.Context, string, string) (net.Conn, error)) (response *http.Response, failure any) {
			w := httptest.NewRecorder()
			r := httptest.NewRequestWithContext(ctx, "GET", "/", nil)
			r.Header.Set("Cookie", f.cookie)
			defer func() { failure = recover() }()
			one := f.gateway.tools.Load().find("")
			one.proxy = f.gateway.proxyOver(one, dial)
			f.public = "example.com"
			f.program.ServeHTTP(w, r)
			return w.Result(), nil
		}
		for status, dial := range map[int]func(context.Context, string, string) (net.Conn, error){502: refuse, 504: hang} {
			response, _ := ask(t.Context(), dial)
			body, _ := io.ReadAll(response.Body)
			wantError(t, response, string(body), status)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second) // the client goes
		defer cancel()
		if _, failure := ask(ctx, hang); failure != http.ErrAbortHandler {
			t.Errorf("got %v when the client had gone", failure)
		}
	})
}

// A tool that accepts and then says nothing, not even in TLS, is given up when
// its time is over, and so is one that cannot be reached.
func TestToolSaysNothing(t *testing.T) {
	inFront(t, nil, nil, func(t *testing.T, f *front) {
		silent := newPipes("127.0.0.1:443")
		defer silent.Close()
		go func() {
			for conn, err := silent.Accept(); err == nil; conn, err = silent.Accept() {
				go io.Copy(io.Discard, conn)
			}
		}()
		one := f.gateway.tools.Load().find("")
		one.upstream = mustOrigin(t, "https://tool.internal")
		one.proxy = f.gateway.proxyOver(one, silent.dial)
		start := time.Now()
		response, body := f.send(get("/"))
		wantError(t, response, body, http.StatusGatewayTimeout)
		if took := time.Since(start); took != one.timeout {
			t.Errorf("504 after %v", took)
		}
	})
	s := newAccountServer(t, "-proxy", "http://127.0.0.1:1") // where nobody listens
	one := s.gateway.tools.Load().find("")
	one.timeout = -1 // over before it begins
	s.gateway.setTools(Tools{"": one})
	s.Handler, s.public = s.program, "example.com"
	s.want(http.StatusGatewayTimeout, nil, "GET", "http://localhost/", "", "Cookie", s.enter("frodo", testPassword))
}

func TestArrive(t *testing.T) {
	g := plainGateway()
	trust("127.0.0.1/32", "10.0.0.0/8", "2001:db8::/32", "fe80::/10")(g)
	for _, c := range []struct {
		peer, lines, want string // lines of X-Forwarded-For, joined by |; the client's address
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
		r := httptest.NewRequest("GET", "/", nil)
		r.RemoteAddr = c.peer
		if c.lines != "" {
			r.Header["X-Forwarded-For"] = strings.Split(c.lines, "|")
		}
		g.arrive(r)
		if got := clientAddr(r); got != c.want {
			t.Errorf("from %s with %q: got %s, want %s", c.peer, c.lines, got, c.want)
		}
		// What is left is what a tool may be told: the client first, the peer last.
		if lines := r.Header["X-Forwarded-For"]; lines != nil {
			hops := strings.Split(lines[0], ", ")
			from, _ := parseAddr(c.peer)
			if last := hops[len(hops)-1]; len(lines) > 1 || hops[0] != c.want || last != from.String() || hops[0] == last && len(hops) > 1 {
				t.Errorf("from %s with %q: kept %q", c.peer, c.lines, lines)
			}
		}
	}
}

// Host, scheme, method and path of the request that a trusted proxy got.
func TestForwardedIsBelievedOfTrustedProxiesOnly(t *testing.T) {
	names := []string{"X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Uri", "X-Forwarded-Method"}
	for _, c := range []struct {
		peer, sent string // the values of all of these, joined by |
		believed   bool
	}{
		{"10.0.0.1:80", "value", true},
		{"[::ffff:10.0.0.1]:80", "value", true},
		{"10.0.0.1:80", "", false},
		{"10.0.0.1:80", "one|two", false}, // two say nothing
		{"10.0.0.1:80", "one|one", false},
		{"192.0.2.7:80", "value", false},
		{"@", "value", false},
	} {
		g := plainGateway()
		trust("10.0.0.0/8")(g)
		for _, name := range names {
			r := httptest.NewRequest("GET", "http://localhost/", nil)
			r.RemoteAddr = c.peer
			if c.sent != "" {
				r.Header[name] = strings.Split(c.sent, "|")
			}
			g.arrive(r)
			want, host := "", "localhost"
			if c.believed {
				want = c.sent
			}
			if c.believed && name == "X-Forwarded-Host" {
				host = c.sent
			}
			if r.Header.Get(name) != want || len(r.Header[name]) > 1 || r.Host != host {
				t.Errorf("from %s, %s: %s is believed as %q, Host %s", c.peer, name, c.sent, r.Header[name], r.Host)
			}
		}
		nobody := httptest.NewRequest("GET", "http://localhost/", nil)
		nobody.RemoteAddr = c.peer
		for _, name := range append(names, "X-Forwarded-For") {
			nobody.Header[name] = []string{"203.0.113.9"}
		}
		plainGateway().arrive(nobody)
		if len(nobody.Header) > 0 || nobody.Host != "localhost" || nobody.RemoteAddr != c.peer {
			t.Errorf("without trusted proxies: %v, %s, %s", nobody.Header, nobody.Host, nobody.RemoteAddr)
		}
	}
}

// The host that a trusted proxy forwards is the host everywhere.
func TestForwardedHost(t *testing.T) {
	s := newAccountServer(t, "-cookie-domain", "example.com", "-public-url", "https://auth.example.com", "-trusted-proxies", "10.0.0.0/8")
	s.Handler = s.program
	const proxy, stranger = "10.0.0.1:80", "192.0.2.7:80"
	for _, c := range []struct {
		what, from, method, target, forwarded, origin string
		status                                        int
		login                                         string // X-Login-URL
	}{
		{"of ours", proxy, "GET", "http://ringward:8080/auth/style.css", "tool.example.com", "", 200, ""},
		{"of another", proxy, "GET", "http://auth.example.com/auth/style.css", "evil.test", "", 421, ""},
		{"of a stranger's", stranger, "GET", "http://ringward:8080/auth/style.css", "tool.example.com", "", 421, ""},
		{"of a stranger's other", stranger, "GET", "http://auth.example.com/auth/style.css", "evil.test", "", 200, ""},
		{"a write of the same site", proxy, "POST", "http://ringward:8080/auth/session", "auth.example.com", "https://auth.example.com", 415, ""},
		{"a write of another site", proxy, "POST", "http://ringward:8080/auth/session", "auth.example.com", "https://ringward:8080", 403, ""},
		{"a write that a stranger says is of the same site", stranger, "POST", "http://auth.example.com/auth/session", "tool.example.com", "https://tool.example.com", 403, ""},
		{"verify", proxy, "GET", "http://ringward:8080/auth/verify", "tool.example.com", "", 401, "https://auth.example.com/auth/login?next=https%3A%2F%2Ftool.example.com%2Fx"},
		{"verify of another", proxy, "GET", "http://ringward:8080/auth/verify", "evil.test", "", 421, ""},
		{"verify for a stranger", stranger, "GET", "http://auth.example.com/auth/verify", "tool.example.com", "", 401, "https://auth.example.com/auth/login?next=%2F"},
	} {
		r := httptest.NewRequest(c.method, c.target, nil)
		r.RemoteAddr = c.from
		r.Header.Set("X-Forwarded-Host", c.forwarded)
		r.Header.Set("X-Forwarded-Proto", "https")
		r.Header.Set("X-Forwarded-Uri", "/x")
		if c.origin != "" {
			r.Header.Set("Origin", c.origin)
		}
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		if w.Code != c.status || w.Header().Get("X-Login-URL") != c.login {
			t.Errorf("%s: %d %q, want %d %q", c.what, w.Code, w.Header().Get("X-Login-URL"), c.status, c.login)
		}
	}
}

func FuzzForwardedFor(f *testing.F) {
	f.Add("203.0.113.9", "10.1.2.3", true)
	f.Add("a, [::1]:80", "::ffff:10.0.0.1%x", true)
	f.Fuzz(func(t *testing.T, first, second string, fromProxy bool) {
		g := plainGateway()
		trust("10.0.0.0/8", "fd00::/8")(g)
		r := httptest.NewRequest("GET", "/", nil) // from 192.0.2.1:1234
		if fromProxy {
			r.RemoteAddr = "10.0.0.1:80"
		}
		r.Header["X-Forwarded-For"] = []string{first, second}
		g.arrive(r)
		if !fromProxy {
			if r.RemoteAddr != "192.0.2.1:1234" || r.Header["X-Forwarded-For"] != nil {
				t.Errorf("%s, %q", r.RemoteAddr, r.Header)
			}
			return
		}
		hops := strings.Split(r.Header.Get("X-Forwarded-For"), ", ")
		for i, hop := range hops {
			addr, err := netip.ParseAddr(hop)
			if err != nil || addr.Zone() != "" || addr.Is4In6() {
				t.Errorf("%q is no address of ours", hop)
			}
			if i > 0 && !g.trusts(addr) {
				t.Errorf("%q: behind the client there is %s, which is not trusted", hops, hop)
			}
		}
		if hops[0] != clientAddr(r) || hops[len(hops)-1] != "10.0.0.1" {
			t.Errorf("%q for %s", hops, r.RemoteAddr)
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
		g := Gateway{auth: &Auth{CookieDomain: "example.com"}}
		if got := g.target(raw); got != want {
			t.Errorf("next(%q) = %q, want %q", raw, got, want)
		}
		if strings.HasPrefix(want, "h") {
			want = "/"
		}
		if got := (&Gateway{auth: &Auth{}}).target(raw); got != want {
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
			g := Gateway{auth: &Auth{CookieDomain: domain}}
			next := g.target(raw)
			if again := g.target(next); again != next {
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
	s := newAccountServer(t)
	s.auth.LoginPage = "/auth/login"
	cookie := s.enter("frodo", testPassword)
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
		{what: "told two paths", target: "/auth/verify", from: proxy, cookie: cookie, status: 403,
			headers: []string{"X-Forwarded-Uri", "/a", "X-Forwarded-Uri", "/b"}},
		{what: "told two methods", target: "/auth/verify?redirect", from: proxy, cookie: cookie, status: 403,
			headers: []string{"Accept", page, "X-Forwarded-Uri", "/a", "X-Forwarded-Method", "GET", "X-Forwarded-Method", "POST"}},
		{what: "told two hosts", target: "/auth/verify", from: proxy, cookie: cookie, status: 403,
			headers: []string{"X-Forwarded-Host", "localhost", "X-Forwarded-Host", "localhost"}},
		{what: "told another path than asked", target: "/auth/verify?uri=/a", from: proxy, cookie: cookie, status: 403,
			headers: []string{"X-Forwarded-Uri", "/b"}},
		{what: "told two paths beside one asked", target: "/auth/verify?uri=/a", from: proxy, cookie: cookie, status: 403,
			headers: []string{"X-Forwarded-Uri", "/a", "X-Forwarded-Uri", "/a"}},
		{what: "told the path that is asked", target: "/auth/verify?uri=%2Fa%3Fb%2520c", from: proxy, cookie: cookie, status: 204,
			headers: []string{"X-Forwarded-Uri", "/a?b%20c", "X-Forwarded-Method", "GET"}},
		{what: "told two things by a stranger", target: "/auth/verify?uri=/a", from: stranger, cookie: cookie, status: 204,
			headers: []string{"X-Forwarded-Uri", "/b", "X-Forwarded-Method", "GET", "X-Forwarded-Method", "POST"}},
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
		{what: "with a port and a dot", public: "https://ring.example.com", target: "/auth/verify", from: proxy, status: 401, where: "https://ring.example.com/auth/login?next=%2Fx",
			headers: []string{"X-Forwarded-Uri", "/x", "X-Forwarded-Host", "ring.example.com.:443"}},
		{what: "for another host of the domain", public: "https://auth.example.com", domain: "example.com", target: "/auth/verify?redirect", from: proxy, status: 303,
			where:   "https://auth.example.com/auth/login?next=https%3A%2F%2Ftool.example.com%3A8443%2Fx%3Fy",
			headers: []string{"Accept", page, "X-Forwarded-Uri", "/x?y", "X-Forwarded-Host", "tool.example.com:8443", "X-Forwarded-Proto", "https"}},
		{what: "for another host, which nobody is trusted to name", public: "https://auth.example.com", domain: "example.com", target: "/auth/verify?uri=https://tool.example.com/x?y", from: stranger, status: 401,
			where: "https://auth.example.com/auth/login?next=https%3A%2F%2Ftool.example.com%2Fx%3Fy"},
		{what: "for a host of the domain by http", public: "https://auth.example.com", domain: "example.com", target: "/auth/verify", from: proxy, status: 401,
			where:   "https://auth.example.com/auth/login?next=https%3A%2F%2Ftool.example.com%2Fx",
			headers: []string{"X-Forwarded-Uri", "/x", "X-Forwarded-Host", "tool.example.com", "X-Forwarded-Proto", "http"}},
		{what: "for a host of another domain", public: "https://auth.example.com", domain: "example.com", target: "/auth/verify", from: proxy, status: 401,
			where:   "https://auth.example.com/auth/login?next=%2F",
			headers: []string{"X-Forwarded-Uri", "/x", "X-Forwarded-Host", "tool.example.com.evil.test", "X-Forwarded-Proto", "https"}},
		{what: "for a host that is none", public: "https://auth.example.com", domain: "example.com", target: "/auth/verify", from: proxy, status: 401,
			where:   "https://auth.example.com/auth/login?next=%2F",
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
		g := plainGateway()
		g.auth = s.auth
		s.auth.CookieDomain = c.domain
		trust("10.0.0.0/8")(g)
		if c.public != "" {
			g.public, _ = url.Parse(c.public)
		}
		w, r := httptest.NewRecorder(), asked(c.cookie, c.target, c.from, c.headers...)
		g.arrive(r)
		g.handleVerify(w, r)
		h := w.Header()
		user, where := h["Remote-User"], cmp.Or(h.Get("Location"), h.Get("X-Login-URL"))
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
	s := newAccountServer(t)
	g := plainGateway()
	g.auth = s.auth
	cookie := s.enter("frodo", testPassword)
	store := &shaky{Store: s.store}
	store.fails.Store(true)
	s.auth.store = store
	w := httptest.NewRecorder()
	g.handleVerify(w, asked(cookie, "/auth/verify?redirect", peer, "Accept", "text/html"))
	if w.Code != http.StatusServiceUnavailable || w.Header().Get("Remote-User") != "" || w.Header().Get("Retry-After") == "" {
		t.Errorf("got %d %v", w.Code, w.Header())
	}
}

func TestVerifyRenews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newAccountServer(t)
		g := plainGateway()
		g.auth = s.auth
		cookie := s.enter("frodo", testPassword)
		time.Sleep(s.auth.Idle * 2 / 3)
		w := httptest.NewRecorder()
		g.handleVerify(w, asked(cookie, "/auth/verify", peer))
		if w.Code != http.StatusNoContent || cookieOf(t, w) != cookie {
			t.Errorf("got %d %v", w.Code, w.Header())
		}
		s.store.Close()
	})
}

func TestContinue(t *testing.T) {
	g := plainGateway()
	g.auth = &Auth{CookieDomain: "example.com"}
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
