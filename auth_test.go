// auth_test.go tests the inner circle (auth.go, session.go, store.go) and is
// copied with it. Nothing here sleeps: time is synctest's.
package main

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/bcrypt"
)

// openTestStore is another one in builds that have another Store.
var openTestStore = func(t testing.TB) Store {
	t.Helper()
	store, err := openStore(filepath.Join(t.TempDir(), "test.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.close() })
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
	auth, err := newAuth(store, keys...)
	if err != nil {
		t.Fatal(err)
	}
	auth.Cost = bcrypt.MinCost
	hash, err := auth.hashPassword(testPassword)
	if err != nil {
		t.Fatal(err)
	}
	err = store.addUser(User{Name: "frodo", Hash: hash, Created: time.Now()})
	if err != nil && !errors.Is(err, fs.ErrExist) {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /auth/session", auth.handleLogin)
	mux.HandleFunc("GET /auth/session", auth.handleWhoAmI)
	mux.HandleFunc("DELETE /auth/session", auth.handleLogout)
	mux.Handle("PUT /auth/password", auth.requireSession(http.HandlerFunc(auth.handlePassword)))
	mux.HandleFunc("GET /healthz", auth.handleHealth)
	mux.Handle("/", auth.requireLogin(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "hello "+loginOf(r).User.Name)
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

// login answers the Cookie header of a new session.
func (s *testServer) login(t testing.TB, headers ...string) string {
	t.Helper()
	w := s.do("POST", "/auth/session", credentials("frodo", testPassword), headers...)
	if w.Code != http.StatusCreated {
		t.Fatalf("login: %d %s", w.Code, w.Body)
	}
	return cookieOf(t, w)
}

// cookieOf answers the one cookie of an answer as name=value.
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
		answer, err := c.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		b, err := io.ReadAll(answer.Body)
		if err != nil {
			t.Fatal(err)
		}
		return answer.StatusCode, string(b)
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

func TestCookie(t *testing.T) {
	cases := []struct {
		secure bool
		domain string
		want   string
	}{
		{false, "", "ringward=V; Path=/; Max-Age=86400; HttpOnly; SameSite=Lax"},
		{true, "", "__Host-ringward=V; Path=/; Max-Age=86400; HttpOnly; Secure; SameSite=Lax"},
		{true, "example.com", "__Secure-ringward=V; Path=/; Domain=example.com; Max-Age=86400; HttpOnly; Secure; SameSite=Lax"},
		{false, "example.com", "ringward=V; Path=/; Domain=example.com; Max-Age=86400; HttpOnly; SameSite=Lax"},
	}
	for _, c := range cases {
		s := newTestServer(t)
		s.sessions.Secure, s.sessions.Domain = c.secure, c.domain
		w := s.do("POST", "/auth/session", credentials("frodo", testPassword))
		name, value, _ := strings.Cut(cookieOf(t, w), "=")
		if got := strings.Replace(w.Header().Get("Set-Cookie"), value, "V", 1); got != c.want {
			t.Errorf("secure %t domain %q:\n got %s\nwant %s", c.secure, c.domain, got, c.want)
		}
		id, signature, _ := strings.Cut(value, ".")
		mac := hmac.New(sha256.New, []byte(testKey))
		io.WriteString(mac, name+"="+id)
		if want := base64.RawURLEncoding.EncodeToString(mac.Sum(nil)); signature != want {
			t.Errorf("%s: signature %s, want %s", name, signature, want)
		}
		if raw, err := base64.RawURLEncoding.DecodeString(id); err != nil || len(raw) != 32 {
			t.Errorf("id %q is not 256 bits (%v)", id, err)
		}
		if w := s.do("DELETE", "/auth/session", "", "Cookie", name+"="+value); !strings.HasPrefix(w.Header().Get("Set-Cookie"), name+"=; ") ||
			!strings.Contains(w.Header().Get("Set-Cookie"), "Max-Age=0") {
			t.Errorf("logout sets %q", w.Header().Get("Set-Cookie"))
		}
	}
}

func TestOnlyTheExactCookieCounts(t *testing.T) {
	s := newTestServer(t)
	good := s.login(t)
	if got := s.status("/tool", good); got != 200 {
		t.Fatalf("the cookie as it was set: %d", got)
	}
	_, value, _ := strings.Cut(good, "=")
	id, signature, _ := strings.Cut(value, ".")
	strange, _ := newSecret()
	elsewhere := func(name, id string) string { return name + "=" + id + "." + newSigningKey(testKey).sign(name, id) }
	accepted := map[string]string{
		"among others":   "a=b; " + good + "; c=d",
		"without spaces": "a=b;" + good + ";c=d",
		"a longer name":  good + "; ringward2=x; xringward=y",
	}
	refused := map[string]string{
		"nothing":                 "",
		"no value":                "ringward=",
		"no name":                 value,
		"id alone":                "ringward=" + id,
		"no signature":            "ringward=" + id + ".",
		"no id":                   "ringward=." + signature,
		"another's signature":     "ringward=" + strange + "." + signature,
		"signed, not in store":    elsewhere("ringward", strange),
		"signed, nothing":         elsewhere("ringward", ""),
		"signed for another name": "ringward=" + strings.SplitN(elsewhere("__Host-ringward", id), "=", 2)[1],
		"another name":            elsewhere("__Host-ringward", id),
		"other case":              "Ringward=" + value,
		"quoted":                  `ringward="` + value + `"`,
		"padded":                  good + "=",
		"more after it":           good + ".x",
		"space in it":             "ringward=" + id + ". " + signature,
		"newline in it":           "ringward=" + id + ".\n" + signature,
		"twice":                   good + "; " + good,
		"bad one first":           "ringward=x; " + good,
		"bad one last":            good + "; ringward=",
		"very long":               "ringward=" + strings.Repeat("x", 8<<10),
		"$Version":                "$Version=1; ringward" + value,
		"unicode space":           "\u2000" + good,
	}
	for i := range len(value) {
		other := byte('A')
		if value[i] == other {
			other = 'B'
		}
		refused[fmt.Sprintf("character %d", i)] = "ringward=" + value[:i] + string(other) + value[i+1:]
		refused[fmt.Sprintf("without character %d", i)] = "ringward=" + value[:i] + value[i+1:]
	}
	// The last character of 43 carries two bits that decoders ignore.
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	last := strings.IndexByte(alphabet, signature[42])
	for i := range 4 {
		if c := alphabet[last&^3|i]; c != signature[42] {
			refused["last character "+string(c)] = good[:len(good)-1] + string(c)
		}
	}
	for name, cookie := range accepted {
		if got := s.status("/tool", cookie); got != 200 {
			t.Errorf("%s: %d, want 200", name, got)
		}
	}
	for name, cookie := range refused {
		if got := s.status("/tool", cookie); got != 401 {
			t.Errorf("%s: %d, want 401", name, got)
		}
	}
	if w := s.do("GET", "/tool", "", "Cookie", good, "Cookie", "ringward=x"); w.Code != 401 {
		t.Errorf("a second one in a line of its own: %d, want 401", w.Code)
	}
	if w := s.do("GET", "/tool?ringward="+value, "", "X-Session", value, "Authorization", "Bearer "+value); w.Code != 401 {
		t.Errorf("the value where no cookie is: %d, want 401", w.Code)
	}
	if got := s.status("/tool", good); got != 200 {
		t.Errorf("the cookie after all that: %d", got)
	}
}

func TestKeyRotation(t *testing.T) {
	const newKey = "fedcba9876543210fedcba9876543210"
	store := openTestStore(t)
	before := newTestServerOn(t, store, testKey)
	during := newTestServerOn(t, store, newKey, testKey)
	after := newTestServerOn(t, store, newKey)
	old := before.login(t)
	if got := after.status("/tool", old); got != 401 {
		t.Errorf("a key that is gone: %d, want 401", got)
	}
	w := during.do("GET", "/tool", "", "Cookie", old)
	if w.Code != 200 {
		t.Fatalf("an older key: %d", w.Code)
	}
	renewed := cookieOf(t, w)
	if renewed == old {
		t.Error("the cookie was not signed anew")
	}
	if got := after.status("/tool", renewed); got != 200 {
		t.Errorf("signed anew: %d", got)
	}
	if w := during.do("GET", "/tool", "", "Cookie", renewed); len(w.Header()["Set-Cookie"]) != 0 {
		t.Errorf("signed by the first key, and set again: %q", w.Header()["Set-Cookie"])
	}
	for _, keys := range [][]string{{}, {""}, {testKey[:31]}, {testKey, "short"}} {
		if _, err := newAuth(store, keys...); err == nil {
			t.Errorf("keys %q were accepted", keys)
		}
	}
}

func TestTwoEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestServer(t)
		idle, end := s.sessions.Idle, s.sessions.Max
		unused, used := s.login(t), s.login(t)
		time.Sleep(idle - time.Microsecond)
		if got := s.status("/auth/session", unused); got != 200 {
			t.Errorf("just before the idle end: %d", got)
		}
		unused = s.login(t)
		time.Sleep(idle)
		for name, cookie := range map[string]string{"at the idle end": unused, "after it": used} {
			if got := s.status("/tool", cookie); got != 401 {
				t.Errorf("%s: %d, want 401", name, got)
			}
		}
		used = s.login(t)
		for start := time.Now(); time.Since(start) < end-time.Hour; time.Sleep(time.Hour) {
			if got := s.status("/tool", used); got != 200 {
				t.Fatalf("in use for %v: %d", time.Since(start), got)
			}
		}
		time.Sleep(time.Hour - time.Microsecond)
		w := s.do("GET", "/auth/session", "", "Cookie", used)
		if w.Code != 200 {
			t.Errorf("just before the absolute end: %d", w.Code)
		}
		time.Sleep(time.Microsecond)
		if got := s.status("/tool", used); got != 401 {
			t.Errorf("at the absolute end: %d, want 401", got)
		}
	})
}

func TestRenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestServer(t)
		s.sessions.Max = 100 * time.Hour
		cookie, start := s.login(t), time.Now()
		set := map[time.Duration]string{}
		for time.Since(start) < s.sessions.Max {
			w := s.do("GET", "/tool", "", "Cookie", cookie)
			if c := w.Header().Get("Set-Cookie"); c != "" {
				age := c[strings.Index(c, "Max-Age="):]
				set[time.Since(start)], _, _ = strings.Cut(age, ";")
				if cookieOf(t, w) != cookie {
					t.Error("a renewal changed the cookie")
				}
			}
			time.Sleep(time.Hour)
		}
		// Less than half of 24 h is left every 13th hour; the end comes at 100 h.
		want := map[time.Duration]string{13 * time.Hour: "Max-Age=86400", 26 * time.Hour: "Max-Age=86400",
			39 * time.Hour: "Max-Age=86400", 52 * time.Hour: "Max-Age=86400", 65 * time.Hour: "Max-Age=86400",
			78 * time.Hour: "Max-Age=79200"}
		if !maps.Equal(set, want) {
			t.Errorf("cookies set at %v, want %v", set, want)
		}
	})
}

func TestRenewalNeverRevives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestServer(t)
		for round := range 50 {
			cookie := s.login(t)
			time.Sleep(s.sessions.Idle * 3 / 4) // every request renews
			var requests sync.WaitGroup
			for i := range 8 {
				requests.Go(func() {
					if i == 3 {
						s.do("DELETE", "/auth/session", "", "Cookie", cookie)
						return
					}
					if w := s.do("GET", "/tool", "", "Cookie", cookie); w.Code != 200 && w.Code != 401 {
						t.Errorf("round %d: %d", round, w.Code)
					}
				})
			}
			requests.Wait()
			if got := s.status("/tool", cookie); got != 401 {
				t.Fatalf("round %d: after logout %d, want 401", round, got)
			}
		}
	})
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

func TestCapOfSessions(t *testing.T) {
	s := newTestServer(t)
	var all []string
	for range maxSessions + 2 {
		all = append(all, s.login(t))
	}
	for i, cookie := range all {
		want := 200
		if i < 2 {
			want = 401
		}
		if got := s.status("/tool", cookie); got != want {
			t.Errorf("session %d of %d: %d, want %d", i, len(all), got, want)
		}
	}
}

func TestChangePassword(t *testing.T) {
	s := newTestServer(t)
	const next = "the road goes ever on"
	other, own := s.login(t), s.login(t)
	change := func(cookie, current, next string) *httptest.ResponseRecorder {
		b, _ := json.Marshal(map[string]string{"current": current, "new": next})
		return s.do("PUT", "/auth/password", string(b), "Cookie", cookie)
	}
	for _, c := range []struct {
		name, cookie, current, next string
		status                      int
		title                       string
	}{
		{"nobody", "", testPassword, next, 401, "Login required"},
		{"wrong password", own, "wrong", next, 403, "Current password is wrong"},
		{"too short", own, testPassword, "fourteen chars", 422, "Password must have at least 15 characters"},
	} {
		w := change(c.cookie, c.current, c.next)
		if w.Code != c.status || !strings.Contains(w.Body.String(), `"title":"`+c.title+`"`) {
			t.Errorf("%s: %d %s", c.name, w.Code, w.Body)
		}
	}
	w := change(own, testPassword, next)
	if w.Code != 204 {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	renewed := cookieOf(t, w)
	for name, want := range map[string]int{other: 401, own: 401, renewed: 200} {
		if got := s.status("/tool", name); got != want {
			t.Errorf("session %.12s…: %d, want %d", name, got, want)
		}
	}
	for password, want := range map[string]int{testPassword: 401, next: 201} {
		if w := s.do("POST", "/auth/session", credentials("frodo", password)); w.Code != want {
			t.Errorf("login with %q: %d, want %d", password, w.Code, want)
		}
	}
}

// Whoever verified the password before it was replaced must not get in after.
func TestLoginMeetsPasswordChange(t *testing.T) {
	s := newTestServer(t)
	was, err := s.store.user("frodo")
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	session := func() Session { n, _ := s.sessions.next("frodo", "", "", now); return n }
	if err := s.store.setPassword(was, "new hash", session()); err != nil {
		t.Fatal(err)
	}
	late := session()
	if err := s.store.login(was, late, Key{}, ""); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("login after it: %v, want fs.ErrNotExist", err)
	}
	if err := s.store.setPassword(was, "another", session()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a second change: %v, want fs.ErrNotExist", err)
	}
	if _, _, err := s.store.session(late.Key, now); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("its session: %v, want fs.ErrNotExist", err)
	}
}

// The hash may change while a password is compared with it: one that is still
// right is right, and one that is not anymore changes nothing.
func TestHashChangesMeanwhile(t *testing.T) {
	const next, others = "the road goes ever on", "not all those who wander"
	change, _ := json.Marshal(map[string]string{"current": testPassword, "new": next})
	for _, c := range []struct {
		name, method, path, body string
		meanwhile                string // the password of the hash that is written
		status                   int
		holds                    string // the password afterwards
	}{
		{"login, rewritten", "POST", "/auth/session", credentials("frodo", testPassword), testPassword, 201, testPassword},
		{"login, replaced", "POST", "/auth/session", credentials("frodo", testPassword), others, 401, others},
		{"change, rewritten", "PUT", "/auth/password", string(change), testPassword, 204, next},
		{"change, replaced", "PUT", "/auth/password", string(change), others, 403, others},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newTestServer(t)
			cookie := s.login(t)
			var once sync.Once
			s.slot = func(context.Context) (func(), *refusal) { // the user was read, and nothing compared yet
				once.Do(func() {
					was, err := s.store.user("frodo")
					hash, failed := s.hashPassword(c.meanwhile)
					session, _ := s.sessions.next("frodo", "", "", time.Now())
					if err := errors.Join(err, failed, s.store.login(was, session, Key{}, hash)); err != nil {
						t.Error(err)
					}
				})
				return func() {}, nil
			}
			if w := s.do(c.method, c.path, c.body, "Cookie", cookie); w.Code != c.status {
				t.Errorf("%d %s, want %d", w.Code, w.Body, c.status)
			}
			for _, password := range []string{testPassword, next, others} {
				want := 401
				if password == c.holds {
					want = 201
				}
				if w := s.do("POST", "/auth/session", credentials("frodo", password)); w.Code != want {
					t.Errorf("login with %q afterwards: %d, want %d", password, w.Code, want)
				}
			}
		})
	}
}

func TestPasswordsAreVerifiedAsSent(t *testing.T) {
	s := newTestServer(t)
	long := strings.Repeat("語", 24) // 72 bytes
	set := func(password string) {
		t.Helper()
		hash, err := s.hashPassword(password)
		if err != nil {
			t.Fatal(err)
		}
		u, err := s.store.user("frodo")
		if err != nil {
			t.Fatal(err)
		}
		n, _ := s.sessions.next("frodo", "", "", time.Now())
		if err := s.store.setPassword(u, hash, n); err != nil {
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
		{strings.Repeat("x", maxPassword), []string{strings.Repeat("x", 72), strings.Repeat("x", maxPassword+1), strings.Repeat("x", 60<<10)}},
		{"caf\u00e9 caf\u00e9 caf\u00e9", []string{"cafe\u0301 cafe\u0301 cafe\u0301"}},
	}
	for _, c := range cases {
		set(c.set)
		if w := s.do("POST", "/auth/session", credentials("frodo", c.set)); w.Code != 201 {
			t.Errorf("%.20q: %d", c.set, w.Code)
		}
		for _, other := range c.refused {
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

func TestNobodyMatches(t *testing.T) {
	s := newTestServer(t)
	hash, _ := s.hashPassword(testPassword)
	empty, _ := bcrypt.GenerateFromPassword(nil, bcrypt.MinCost)
	for name, u := range map[string]User{
		"no user": {}, "no password yet": {Name: "sam"}, "disabled": {Name: "sam", Hash: hash, Disabled: true},
		"not a hash": {Name: "sam", Hash: "x"}, "hash of nothing": {Name: "sam", Hash: string(empty)},
	} {
		for _, password := range []string{testPassword, "", "\x00"} {
			if s.matches(u, password) {
				t.Errorf("%s: %q matches", name, password)
			}
		}
	}
	if !s.matches(User{Hash: hash}, testPassword) {
		t.Error("the right password does not match")
	}
}

func TestPasswordProblem(t *testing.T) {
	s := newTestServer(t)
	for password, want := range map[string]string{
		"fifteen letters":                 "",
		"fourteen chars":                  "at least 15",
		strings.Repeat("é", 14):           "at least 15",
		strings.Repeat("é", 15):           "",
		strings.Repeat("x", 1024):         "",
		strings.Repeat("x", 1025):         "at most 1024",
		"nul in it \x00 and more":         "NUL",
		"not utf-8 \xff and more":         "text",
		"  spaces are kept as they are  ": "",
		"😀😀😀😀😀😀😀😀😀😀😀😀😀😀😀": "",
	} {
		got := s.passwordProblem("frodo", password)
		if want == "" && got != "" || !strings.Contains(got, want) {
			t.Errorf("%.20q: %q, want %q", password, got, want)
		}
	}
	s.weak = func(name, password string) string { return "it is " + name }
	if got := s.passwordProblem("frodo", "fifteen letters"); got != "it is frodo" {
		t.Errorf("a further rule: %q", got)
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

func TestReadJSON(t *testing.T) {
	type object struct {
		Name string `json:"name"`
		Note string `json:"note,omitempty"`
		N    int    `json:"n,omitempty"`
	}
	padded := func(n int) string { return `{"name":"` + strings.Repeat("x", n-len(`{"name":""}`)) + `"}` }
	cases := []struct {
		body, media string
		status      int // 0: accepted
		want        object
	}{
		{body: `{"name":"a"}`, want: object{Name: "a"}},
		{body: " {\"name\" :\t\"a\",\n\"note\":\"b\",\"n\":3} \n", want: object{"a", "b", 3}},
		{body: `{"name":""}`},
		{body: `{"name":"\u0041\ud83d\ude00\ufffd"}`, want: object{Name: "A😀\ufffd"}},
		{body: `{"name":"\\ud800"}`, want: object{Name: `\ud800`}},
		{body: "{\"name\":\"\ufffd\"}", want: object{Name: "\ufffd"}},
		{body: `{"name":"a"}`, media: "application/json; charset=UTF-8", want: object{Name: "a"}},
		{body: padded(maxBody), want: object{Name: strings.Repeat("x", maxBody-11)}},
		{body: padded(maxBody + 1), status: 413},
		{body: "", status: 400}, {body: "null", status: 400}, {body: "[]", status: 400}, {body: `"name"`, status: 400}, {body: "{", status: 400},
		{body: "{}", status: 400}, {body: `{"note":"b"}`, status: 400},
		{body: `{"name":"a","name":"b"}`, status: 400}, {body: `{"name":"a","name":"a"}`, status: 400},
		{body: `{"Name":"a"}`, status: 400}, {body: `{"name":"a","Name":"b"}`, status: 400}, {body: `{"ſame":"a"}`, status: 400},
		{body: `{"name":"a","role":"admin"}`, status: 400}, {body: `{"name":"a","":""}`, status: 400},
		{body: `{"name":1}`, status: 400}, {body: `{"name":null}`, status: 400}, {body: `{"name":["a"]}`, status: 400},
		{body: `{"name":{}}`, status: 400}, {body: `{"name":"a","n":"3"}`, status: 400}, {body: `{"name":"a","n":1e400}`, status: 400},
		{body: `{"name":"a"}{}`, status: 400}, {body: `{"name":"a"}}`, status: 400}, {body: `{"name":"a"} x`, status: 400},
		{body: "\ufeff" + `{"name":"a"}`, status: 400}, {body: "{\"name\":\"\xff\"}", status: 400}, {body: "{\"name\":\"a\x00\"}", status: 400},
		{body: `{"name":"\ud800"}`, status: 400}, {body: `{"name":"\udc00"}`, status: 400}, {body: `{"name":"\ud800x"}`, status: 400},
		{body: `{"name":"\ud800\ud800"}`, status: 400}, {body: `{"name":"\ud83d\\ude00"}`, status: 400}, {body: `{"\ud800":"a"}`, status: 400},
		{body: strings.Repeat("[", 20000), status: 400},
		{body: `{"name":"a"}`, media: "text/plain", status: 415}, {body: `{"name":"a"}`, media: "-", status: 415},
		{body: `{"name":"a"}`, media: "application/x-www-form-urlencoded", status: 415},
		{body: `{"name":"a"}`, media: "application/json; charset=latin1", status: 415},
	}
	for _, c := range cases {
		r := httptest.NewRequest("POST", "/", strings.NewReader(c.body))
		switch c.media {
		case "":
			r.Header.Set("Content-Type", "application/json")
		case "-":
		default:
			r.Header.Set("Content-Type", c.media)
		}
		w := httptest.NewRecorder()
		var got object
		if ok := readJSON(w, r, &got); ok != (c.status == 0) {
			t.Errorf("%.40q: read %t, status %d, want %d", c.body, ok, w.Code, c.status)
		} else if ok && got != c.want {
			t.Errorf("%.40q: got %.60v, want %.60v", c.body, got, c.want)
		} else if !ok && (w.Code != c.status || !strings.Contains(w.Body.String(), fmt.Sprintf(`"status":%d`, c.status))) {
			t.Errorf("%.40q: %d %s, want %d", c.body, w.Code, w.Body, c.status)
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

// What the store cannot tell is never an answer about who somebody is.
func TestClosedStore(t *testing.T) {
	s := newTestServer(t)
	cookie := s.login(t)
	s.store.close()
	for _, c := range []struct {
		method, path, body, cookie string
		status                     int
	}{
		{"GET", "/tool", "", cookie, 503},
		{"GET", "/auth/session", "", cookie, 503},
		{"DELETE", "/auth/session", "", cookie, 503},
		{"POST", "/auth/session", credentials("frodo", testPassword), "", 503},
		{"POST", "/auth/session", credentials("nobody", testPassword), "", 503},
		{"GET", "/healthz", "", "", 503},
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
	s.requireLogin(http.HandlerFunc(func(got http.ResponseWriter, r *http.Request) {
		if got != http.ResponseWriter(w) {
			t.Errorf("got a %T", got)
		}
		if r.Header.Get("Cookie") != cookie {
			t.Error("the request is another")
		}
	})).ServeHTTP(w, r)
	if w.Header().Get("Cache-Control") != "no-store" {
		t.Errorf("Cache-Control: %q", w.Header().Get("Cache-Control"))
	}
}

func TestOthersCookiesStay(t *testing.T) {
	s := newTestServer(t)
	w := httptest.NewRecorder()
	w.Header()["Set-Cookie"] = []string{"a=b", "ringward=old", "ringwards=c"}
	s.sessions.clearCookie(w)
	got := w.Header()["Set-Cookie"]
	if len(got) != 3 || !slices.Equal(got[:2], []string{"a=b", "ringwards=c"}) || !strings.HasPrefix(got[2], "ringward=;") {
		t.Errorf("got %q", got)
	}
}
