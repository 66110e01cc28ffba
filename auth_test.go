// auth_test.go tests the inner circle through its handlers and is copied with
// it. Nothing here sleeps: time is synctest's.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"
)

// openTestStore is another one in builds that have another Store.
var openTestStore = func(t testing.TB) Store {
	t.Helper()
	store, err := OpenStore(filepath.Join(t.TempDir(), "test.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	return store
}

const (
	testKey      = "0123456789abcdef0123456789abcdef"
	testPassword = "speak-friend-and-enter"
)

// testServer is an Auth with the user frodo, and the handler of a small tool.
type testServer struct {
	*Auth
	http.Handler
}

func newTestServer(t testing.TB, keys ...string) *testServer {
	t.Helper()
	return newTestServerOn(t, openTestStore(t), keys...)
}

func newTestServerOn(t testing.TB, store Store, keys ...string) *testServer {
	t.Helper()
	if len(keys) == 0 {
		keys = []string{testKey}
	}
	auth, err := NewAuth(store, keys...)
	if err != nil {
		t.Fatal(err)
	}
	auth.Cost = bcrypt.MinCost
	hash, err := auth.hashPassword(context.Background(), testPassword)
	if err != nil {
		t.Fatal(err)
	}
	err = store.addUser(User{Name: "frodo", Hash: hash, Created: time.Now()})
	if err != nil && !errors.Is(err, fs.ErrExist) {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /auth/session", auth.Login)
	mux.HandleFunc("GET /auth/session", auth.WhoAmI)
	mux.HandleFunc("DELETE /auth/session", auth.Logout)
	mux.Handle("/", auth.RequireLogin(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "hello "+UserOf(r))
	})))
	return &testServer{auth, mux}
}

// do sends one request. headers are pairs; a body makes it JSON.
func (s *testServer) do(method, path, body string, headers ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return w
}

func credentials(username, password string) string {
	b, _ := json.Marshal(map[string]string{"username": username, "password": password})
	return string(b)
}

// login returns the Cookie header of a new session.
func (s *testServer) login(t testing.TB, headers ...string) string {
	t.Helper()
	w := s.do("POST", "/auth/session", credentials("frodo", testPassword), headers...)
	if w.Code != http.StatusCreated {
		t.Fatalf("login: %d %s", w.Code, w.Body)
	}
	return cookieOf(t, w)
}

// cookieOf returns the one cookie that a response sets, as name=value.
func cookieOf(t testing.TB, w *httptest.ResponseRecorder) string {
	t.Helper()
	cookies := w.Header()["Set-Cookie"]
	if len(cookies) != 1 {
		t.Fatalf("Set-Cookie: got %q, want one", cookies)
	}
	pair, _, _ := strings.Cut(cookies[0], ";")
	return pair
}

func (s *testServer) status(path, cookie string) int {
	return s.do("GET", path, "", "Cookie", cookie).Code
}

// hookedStore is a store with which something happens where a test says so.
type hookedStore struct {
	Store
	userRead  func()       // after user
	onSession func() error // before session, which returns its error
	onRenew   func() error // before renew, likewise
}

func (h *hookedStore) user(name string) (User, error) {
	u, err := h.Store.user(name)
	if h.userRead != nil {
		h.userRead()
	}
	return u, err
}

func (h *hookedStore) session(k Key, now time.Time) (Session, User, error) {
	if h.onSession != nil {
		if err := h.onSession(); err != nil {
			return Session{}, User{}, err
		}
	}
	return h.Store.session(k, now)
}

func (h *hookedStore) renew(k Key, now, seen, idle time.Time) error {
	if h.onRenew != nil {
		if err := h.onRenew(); err != nil {
			return err
		}
	}
	return h.Store.renew(k, now, seen, idle)
}

func TestLoginAndLogoutOverTheWire(t *testing.T) {
	server := httptest.NewServer(newTestServer(t))
	defer server.Close()
	jar, _ := cookiejar.New(nil)
	client := &http.Client{Jar: jar}
	call := func(method, path, body, cookie string) (int, string) {
		t.Helper()
		r, err := http.NewRequest(method, server.URL+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		if body != "" {
			r.Header.Set("Content-Type", "application/json")
		}
		c := client
		if cookie != "" {
			r.Header.Set("Cookie", cookie)
			c = http.DefaultClient
		}
		response, err := c.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		b, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		return response.StatusCode, string(b)
	}
	const required = `{"errors":[{"title":"Login required","status":401}]}`
	steps := []struct {
		method, path, body string
		status             int
		want               string
	}{
		{"GET", "/tool", "", 401, required},
		{"GET", "/auth/session", "", 401, required},
		{"POST", "/auth/session", credentials("frodo", "wrong"), 401, `{"errors":[{"title":"Username or password is wrong","status":401}]}`},
		{"GET", "/tool", "", 401, required},
		{"POST", "/auth/session", credentials("Frodo", testPassword), 201, `{"data":{"username":"frodo"}}`},
		{"GET", "/tool", "", 200, "hello frodo"},
	}
	for _, s := range steps {
		if status, body := call(s.method, s.path, s.body, ""); status != s.status || body != s.want {
			t.Fatalf("%s %s: got %d %s, want %d %s", s.method, s.path, status, body, s.status, s.want)
		}
	}
	address := httptest.NewRequest("GET", server.URL, nil).URL
	old := jar.Cookies(address)[0]
	if status, body := call("GET", "/auth/session", "", ""); status != 200 || !strings.Contains(body, `"username":"frodo","created":"`) {
		t.Errorf("who am I: %d %s", status, body)
	}
	for range 2 {
		if status, body := call("DELETE", "/auth/session", "", ""); status != 204 || body != "" {
			t.Errorf("logout: %d %s", status, body)
		}
	}
	if left := jar.Cookies(address); len(left) != 0 {
		t.Errorf("after logout the browser still has %v", left)
	}
	if status, _ := call("GET", "/tool", "", old.String()); status != 401 {
		t.Errorf("the old cookie after logout: %d, want 401", status)
	}
}

func TestLoginStartsAnew(t *testing.T) {
	s := newTestServer(t)
	first := s.login(t)
	second := s.login(t, "Cookie", first)
	if first == second {
		t.Error("the id is the same")
	}
	if got := s.status("/tool", first); got != 401 {
		t.Errorf("the session before: %d, want 401", got)
	}
	if got := s.status("/tool", second); got != 200 {
		t.Errorf("the new one: %d", got)
	}
	if w := s.do("POST", "/auth/session", credentials("frodo", "wrong"), "Cookie", second); w.Code != 401 || len(w.Header()["Set-Cookie"]) != 0 {
		t.Errorf("a failed login: %d %q", w.Code, w.Header()["Set-Cookie"])
	}
	if got := s.status("/tool", second); got != 200 {
		t.Errorf("after a failed login: %d", got)
	}
}

// The hash may change while a password is compared with it: one that is still
// right is right, and one that is not anymore changes nothing.
func TestHashChangesMeanwhile(t *testing.T) {
	const others = "not all those who wander"
	for _, c := range []struct {
		name, meanwhile string // the password whose hash is written
		status          int
	}{{"rewritten", testPassword, 201}, {"replaced", others, 401}} {
		t.Run(c.name, func(t *testing.T) {
			s := newTestServer(t)
			s.replaceHashMeanwhile(t, c.meanwhile)
			if w := s.do("POST", "/auth/session", credentials("frodo", testPassword)); w.Code != c.status {
				t.Errorf("%d %s, want %d", w.Code, w.Body, c.status)
			}
			for _, password := range []string{testPassword, others} {
				want := 401
				if password == c.meanwhile {
					want = 201
				}
				if w := s.do("POST", "/auth/session", credentials("frodo", password)); w.Code != want {
					t.Errorf("login with %q afterwards: %d, want %d", password, w.Code, want)
				}
			}
		})
	}
}

// replaceHashMeanwhile gives frodo another hash when the user has been read for
// the next time, and before any password is compared.
func (a *Auth) replaceHashMeanwhile(t *testing.T, password string) {
	store := &hookedStore{Store: a.store}
	a.store = store
	store.userRead = func() {
		store.userRead = nil
		was, err := a.store.user("frodo")
		hash, failed := a.hashPassword(t.Context(), password)
		s, _ := a.newSession("frodo", httptest.NewRequest("GET", "/", nil), time.Now())
		if err := errors.Join(err, failed, a.store.login(was, s, nil, hash)); err != nil {
			t.Error(err)
		}
	}
}

func TestPasswordsAreVerifiedAsSent(t *testing.T) {
	s := newTestServer(t)
	long := strings.Repeat("語", 24) // 72 bytes
	set := func(password string) {
		t.Helper()
		hash, err := s.hashPassword(t.Context(), password)
		if err != nil {
			t.Fatal(err)
		}
		u, err := s.store.user("frodo")
		if err != nil {
			t.Fatal(err)
		}
		n, _ := s.newSession("frodo", httptest.NewRequest("GET", "/", nil), time.Now())
		if err := s.store.login(u, n, nil, hash); err != nil {
			t.Fatal(err)
		}
	}
	cases := []struct {
		set     string
		refused []string
	}{
		{testPassword, []string{"", " " + testPassword, testPassword + " ", strings.ToUpper(testPassword), testPassword + "\x00", testPassword + "\x00" + testPassword}},
		{long, []string{long + "x", long[:71], long + long}},
		{long + "x", []string{long, long + "y", long + "x ", string(bcryptInput(long + "y"))}},
		{strings.Repeat("x", 1024), []string{strings.Repeat("x", 72), strings.Repeat("x", 1025), strings.Repeat("x", 60<<10)}},
		{"caf\u00e9 caf\u00e9 caf\u00e9", []string{"cafe\u0301 cafe\u0301 cafe\u0301"}},
	}
	for _, c := range cases {
		set(c.set)
		if w := s.do("POST", "/auth/session", credentials("frodo", c.set)); w.Code != 201 {
			t.Errorf("%.20q: %d", c.set, w.Code)
		}
		for _, other := range c.refused {
			s.throttle.clear("frodo")
			if w := s.do("POST", "/auth/session", credentials("frodo", other)); w.Code != 401 {
				t.Errorf("%.20q of %d bytes for %.20q: %d, want 401", other, len(other), c.set, w.Code)
			}
		}
	}
}

func TestLoginRewritesWeakHash(t *testing.T) {
	s := newTestServer(t)
	s.Cost = bcrypt.MinCost + 1
	for range 2 {
		s.login(t)
		u, err := s.store.user("frodo")
		if err != nil {
			t.Fatal(err)
		}
		if cost, err := bcrypt.Cost([]byte(u.Hash)); cost != s.Cost {
			t.Errorf("cost %d (%v), want %d", cost, err, s.Cost)
		}
	}
}

func TestDummyHashCostsWhatItSays(t *testing.T) {
	s := newTestServer(t)
	for cost := bcrypt.MinCost; cost <= 15; cost++ {
		if got, err := bcrypt.Cost(s.dummyHash(cost)); got != cost {
			t.Errorf("cost %d (%v), want %d", got, err, cost)
		}
	}
	if err := bcrypt.CompareHashAndPassword(s.dummyHash(bcrypt.MinCost), []byte("x")); !errors.Is(err, bcrypt.ErrMismatchedHashAndPassword) {
		t.Errorf("comparing: %v: bcrypt did not compute", err)
	}
}

// TestNobodyMatches: whoever cannot log in costs a comparison all the same, with
// a hash of nobody's password, and so does an old hash of lower cost.
func TestNobodyMatches(t *testing.T) {
	s := newTestServer(t)
	hash, _ := s.hashPassword(t.Context(), testPassword)
	empty, _ := bcrypt.GenerateFromPassword(nil, bcrypt.MinCost)
	dummy := s.dummy
	compares := func(u User, password string) (withDummy bool) {
		s.dummy = nil // to use it is a panic
		defer func() { s.dummy, withDummy = dummy, recover() != nil }()
		s.matches(u, password)
		return false
	}
	for name, u := range map[string]User{
		"no user": {}, "no password yet": {Name: "sam"}, "disabled": {Name: "sam", Hash: hash, Disabled: true},
		"not a hash": {Name: "sam", Hash: "x"}, "hash of nothing": {Name: "sam", Hash: string(empty)},
	} {
		for _, password := range []string{testPassword, "", "\x00"} {
			if s.matches(u, password) {
				t.Errorf("%s: %q matches", name, password)
			}
			if !compares(u, password) && (name != "hash of nothing" || password != testPassword) {
				t.Errorf("%s: %q is refused without a comparison", name, password)
			}
		}
	}
	frodo := User{Name: "frodo", Hash: hash}
	if !s.matches(frodo, testPassword) || compares(frodo, testPassword) {
		t.Error("the right password does not match at once")
	}
	if s.matches(frodo, "wrong") || compares(frodo, "wrong") {
		t.Error("a wrong password matches, or not at once")
	}
	s.Cost++
	if s.matches(frodo, "wrong") || !compares(frodo, "wrong") {
		t.Error("a wrong password for a hash of lower cost takes less time")
	}
}

func TestCanonicalName(t *testing.T) {
	for in, want := range map[string]string{
		"frodo": "frodo", "Frodo": "frodo", "F": "f", "0": "0", "a.b_c@d-e": "a.b_c@d-e", strings.Repeat("a", 64): strings.Repeat("a", 64),
		"": "", " frodo": "", "frodo ": "", ".a": "", "-a": "", "@a": "", "_a": "", strings.Repeat("a", 65): "", "fro/do": "",
		"аlice": "", "al\u200bice": "", "ALİCE": "", "\u212aelvin": "", "a\x00": "", "a\n": "", "\xff": "",
	} {
		got, ok := canonicalName(in)
		if ok != (want != "") || ok && got != want {
			t.Errorf("%q: %q %t, want %q", in, got, ok, want)
		}
	}
}

func TestNavigationGoesToTheLoginPage(t *testing.T) {
	s := newTestServer(t)
	const html = "text/html,application/xhtml+xml"
	cases := []struct {
		method, path, accept, mode string
		location                   string // "": 401
	}{
		{"GET", "/a?b=c&d=%26", html, "navigate", "/auth/login?next=%2Fa%3Fb%3Dc%26d%3D%2526"},
		{"HEAD", "/", html, "", "/auth/login?next=%2F"},
		{"GET", "/", html, "cors", ""},
		{"GET", "/", "application/json", "navigate", ""},
		{"GET", "/", "*/*", "", ""},
		{"POST", "/", html, "navigate", ""},
		{"GET", "/auth/session", html, "navigate", ""},
	}
	for _, page := range []string{"/auth/login", ""} {
		s.LoginPage = page
		for _, c := range cases {
			headers := []string{"Accept", c.accept}
			if c.mode != "" {
				headers = append(headers, "Sec-Fetch-Mode", c.mode)
			}
			w := s.do(c.method, c.path, "", headers...)
			want, location := 401, ""
			if page != "" && c.location != "" {
				want, location = 303, c.location
			}
			if w.Code != want || w.Header().Get("Location") != location {
				t.Errorf("page %q: %v: %d %q", page, c, w.Code, w.Header().Get("Location"))
			}
		}
	}
}

func TestCrossSiteWritesAreRefused(t *testing.T) {
	s := newTestServer(t)
	cookie := s.login(t)
	for _, c := range []struct {
		name, method, path string
		headers            []string
		status             int
	}{
		{"login", "POST", "/auth/session", []string{"Sec-Fetch-Site", "cross-site"}, 403},
		{"login from a sibling", "POST", "/auth/session", []string{"Sec-Fetch-Site", "same-site"}, 403},
		{"logout", "DELETE", "/auth/session", []string{"Sec-Fetch-Site", "cross-site"}, 403},
		{"write", "POST", "/tool", []string{"Origin", "https://evil.test"}, 403},
		{"write from nowhere", "POST", "/tool", []string{"Origin", "null"}, 403},
		{"upgrade", "GET", "/tool", []string{"Origin", "https://evil.test", "Upgrade", "websocket"}, 403},
		{"upgrade of our own", "GET", "/tool", []string{"Origin", "http://example.com", "Upgrade", "websocket"}, 200},
		{"link", "GET", "/tool", []string{"Sec-Fetch-Site", "cross-site"}, 200},
		{"own page", "POST", "/tool", []string{"Sec-Fetch-Site", "same-origin"}, 200},
		{"script", "POST", "/tool", nil, 200},
	} {
		w := s.do(c.method, c.path, "", append(c.headers, "Cookie", cookie)...)
		if w.Code != c.status {
			t.Errorf("%s: %d %s, want %d", c.name, w.Code, w.Body, c.status)
		}
	}
	if got := s.status("/tool", cookie); got != 200 {
		t.Errorf("the session after it: %d", got)
	}
}

// What the store cannot tell is never a statement about who somebody is.
func TestClosedStore(t *testing.T) {
	s := newTestServer(t)
	cookie := s.login(t)
	s.store.Close()
	for _, c := range []struct {
		method, path, body, cookie string
		status                     int
	}{
		{"GET", "/tool", "", cookie, 503},
		{"GET", "/auth/session", "", cookie, 503},
		{"DELETE", "/auth/session", "", cookie, 503},
		{"POST", "/auth/session", credentials("frodo", testPassword), "", 503},
		{"POST", "/auth/session", credentials("nobody", testPassword), "", 503},
		{"GET", "/tool", "", "", 401},
		{"GET", "/tool", "", "ringward=x.y", 401},
		{"DELETE", "/auth/session", "", "", 204},
	} {
		w := s.do(c.method, c.path, c.body, "Cookie", c.cookie)
		if w.Code != c.status {
			t.Errorf("%s %s: %d, want %d", c.method, c.path, w.Code, c.status)
		}
		if w.Code == 503 && (w.Header().Get("Retry-After") == "" || w.Header().Get("Set-Cookie") != "" || strings.Contains(w.Body.String(), "database")) {
			t.Errorf("%s %s: %v %s", c.method, c.path, w.Header(), w.Body)
		}
	}
}

// A handler gets the writer that the server made: streams and upgrades need it.
func TestWriterIsHandedThrough(t *testing.T) {
	s := newTestServer(t)
	cookie := s.login(t)
	w := httptest.NewRecorder()
	r := httptest.NewRequest("GET", "/", nil)
	r.Header.Set("Cookie", cookie)
	s.RequireLogin(http.HandlerFunc(func(got http.ResponseWriter, r *http.Request) {
		if got != http.ResponseWriter(w) {
			t.Errorf("got a %T", got)
		}
		if r.Header.Get("Cookie") != cookie {
			t.Error("the request is another")
		}
		if UserOf(r) != "frodo" {
			t.Errorf("it comes from %q", UserOf(r))
		}
	})).ServeHTTP(w, r)
	if UserOf(r) != "" {
		t.Errorf("a request that did not come through RequireLogin is from %q", UserOf(r))
	}
	if w.Header().Get("Cache-Control") != "no-store" {
		t.Errorf("Cache-Control: %q", w.Header().Get("Cache-Control"))
	}
}

// Who is logged in is judged when the body has been read to its end.
func TestBodyHeldBack(t *testing.T) {
	type held struct {
		*testServer
		cookie          string
		removed, broken atomic.Bool // the token; the store
	}
	nothing := func(*held) {}
	logout := func(h *held) {
		if w := h.do("DELETE", "/auth/session", "", "Cookie", h.cookie); w.Code != 204 {
			t.Errorf("logout: %d", w.Code)
		}
	}
	for _, c := range []struct {
		name      string
		token     bool
		meanwhile func(*held)
		status    int
	}{
		{"nothing happens", false, nothing, 201},
		{"nothing happens to the token", true, nothing, 201},
		{"logout", false, logout, 401},
		{"the token is removed", true, func(h *held) { h.removed.Store(true) }, 401},
		{"the store fails", false, func(h *held) { h.broken.Store(true) }, 503},
	} {
		for _, chunked := range []bool{false, true} {
			t.Run(fmt.Sprint(c.name, ", chunked ", chunked), func(t *testing.T) {
				h := &held{testServer: newTestServer(t)}
				h.cookie = h.login(t)
				h.store = &hookedStore{Store: h.store, onSession: func() error {
					if h.broken.Load() {
						return io.ErrUnexpectedEOF
					}
					return nil
				}}
				h.tokenLogin = func(token string, _ time.Time) (Login, error) {
					if token != "rw_secret" || h.removed.Load() {
						return Login{}, fs.ErrNotExist
					}
					return Login{User: User{Name: "frodo"}, Token: true}, nil
				}
				begun, written := make(chan bool), atomic.Bool{}
				server := httptest.NewServer(h.RequireLogin(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					begun <- true
					var name string
					if readJSON(w, r, fields{"name": &name}, nil) {
						written.Store(true)
						respond(w, http.StatusCreated, name)
					}
				})))
				defer server.Close()
				conn, err := net.Dial("tcp", server.Listener.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				header, half, rest := "Cookie: "+h.cookie, `{"name":`, `"Narya"}`
				if c.token {
					header = "Authorization: Bearer rw_secret"
				}
				length := fmt.Sprint("Content-Length: ", len(half+rest))
				if chunked {
					length = "Transfer-Encoding: chunked"
					half, rest = fmt.Sprintf("%x\r\n%s\r\n", len(half), half), fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(rest), rest)
				}
				fmt.Fprintf(conn, "POST /tool HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n%s\r\n%s\r\n\r\n%s", header, length, half)
				<-begun
				c.meanwhile(h)
				io.WriteString(conn, rest)
				response, err := http.ReadResponse(bufio.NewReader(conn), nil)
				if err != nil {
					t.Fatal(err)
				}
				defer response.Body.Close()
				body, err := io.ReadAll(response.Body)
				if err != nil || response.StatusCode != c.status || written.Load() != (c.status == 201) ||
					!strings.Contains(string(body), map[int]string{201: `{"data":"Narya"}`, 401: `"title":"Login required"`, 503: `"title":"Temporarily unavailable"`}[c.status]) {
					t.Errorf("%d %s (%v), written %t; want %d", response.StatusCode, body, err, written.Load(), c.status)
				}
				if got := response.Header.Get("Retry-After") != ""; got != (c.status == 503) {
					t.Errorf("Retry-After: %q", response.Header.Get("Retry-After"))
				}
			})
		}
	}
}
