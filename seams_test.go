// seams_test.go is about what lies between a browser, ringward and a tool, and
// belongs to none of them: whose header it is, which host was asked for, what a
// cache keeps, and who is told what to do.
package main

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// request returns the response to one that came from peer and asked for that
// URL. headers are pairs.
func (s *accountServer) request(method, target string, headers ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, nil)
	r.RemoteAddr = peer
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	s.program.ServeHTTP(w, r)
	return w
}

// got reads what echoBack said.
func got(t *testing.T, w *httptest.ResponseRecorder) (r received) {
	t.Helper()
	if err := json.Unmarshal(w.Body.Bytes(), &r); err != nil || w.Code != http.StatusOK {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	return r
}

// Forty addresses that try to get into one account all day keep its owner out
// for less than a minute.
func TestNobodyLocksTheOwnerOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		throttle := newThrottle(1)
		try := func(addr string, result outcome) time.Duration {
			limits := throttle.loginLimits("frodo", addr)
			wait, _ := throttle.begin(limits)
			if wait == 0 {
				throttle.end(limits, result)
			}
			return wait
		}
		var since, next time.Time // of the owner's tries
		entered := 0
		for n := range 24 * 60 * 60 * 2 {
			time.Sleep(500 * time.Millisecond)
			try(fmt.Sprintf("203.0.113.%d", n%40), tryWrong)
			now := time.Now()
			if since.IsZero() && n%600 == 0 { // every five minutes they come anew
				since, next = now, now
			}
			if since.IsZero() || now.Before(next) {
				continue
			}
			wait := try(fmt.Sprintf("2001:db8:%x::1", entered), tryRight) // where they never were before
			if next = now.Add(wait); wait == 0 {
				entered++
				since = time.Time{}
			} else if now.Sub(since) > time.Minute {
				t.Fatalf("kept out for %v, and told to wait %v more", now.Sub(since), wait)
			}
		}
		if entered != 24*12 {
			t.Errorf("the owner got in %d times", entered)
		}
	})
}

func TestLogoutClearsTheCache(t *testing.T) {
	s := newAccountServer(t)
	cookie := s.enter("frodo", testPassword)
	for _, sent := range []string{cookie, "a=1"} {
		if w := s.want(http.StatusNoContent, nil, "DELETE", "/auth/session", "", "Cookie", sent); w.Header().Get("Clear-Site-Data") != `"cache"` {
			t.Errorf("%q", w.Header()["Clear-Site-Data"])
		}
	}
}

func TestToolCannotLogItsUsersOut(t *testing.T) {
	for sent, want := range map[string]string{
		`"cookies"`: "", `"cache", "cookies"`: "", `"*"`: "", `"cache"`: `"cache"`, `"storage", "cache"`: `"storage", "cache"`,
		`"cache"|"cookies"`: `"cache"`, `"cookies"|"storage"|"*"`: `"storage"`, // lines
	} {
		s := beforeTool(t, func(w http.ResponseWriter, r *http.Request) { w.Header()["Clear-Site-Data"] = strings.Split(sent, "|") }, nil)
		w := s.request("GET", "http://localhost/", "Cookie", s.enter("frodo", testPassword))
		if got := strings.Join(w.Header()["Clear-Site-Data"], "|"); got != want {
			t.Errorf("of %s there passes %q, want %q", sent, got, want)
		}
	}
}

// A page of a tool on another host has the session's cookie, and no account.
func TestAccountIsOnThePublicHost(t *testing.T) {
	s := newAccountServer(t, "-cookie-domain", "example.com", "-public-url", "https://auth.example.com", "-proxy", "http://127.0.0.1:1")
	cookie := s.enter("frodo", testPassword)
	for _, route := range []string{
		"GET /auth/account", "GET /auth/sessions", "DELETE /auth/sessions", "DELETE /auth/sessions/x", "PUT /auth/password", "GET /auth/tokens", "POST /auth/tokens",
		"DELETE /auth/tokens/x", "POST /auth/confirm", "GET /auth/factors", "POST /auth/totp", "PUT /auth/totp", "DELETE /auth/totp", "POST /auth/recovery-codes",
		"POST /auth/passkeys/options", "POST /auth/passkeys", "DELETE /auth/passkeys/x",
	} {
		method, path, _ := strings.Cut(route, " ")
		for host, elsewhere := range map[string]bool{"auth.example.com": false, "AUTH.example.com": false, "wiki.example.com": true, "auth.example.com:444": true, "localhost": true,
			"auth.example.com:443": false, "auth.example.com.": false, "auth.example.com.:443": false, "auth.example.com:80": true} {
			w := s.request(method, "https://"+host+path, "Cookie", cookie)
			if (w.Code == http.StatusMisdirectedRequest) != elsewhere || w.Code == http.StatusMethodNotAllowed {
				t.Errorf("%s on %s: %d %s", route, host, w.Code, w.Body)
			}
			if method != "GET" && !elsewhere {
				cookie = s.enter("frodo", testPassword) // it may have ended
			}
		}
	}
}

// The token may come where Authorization is the tool's.
func TestTokenBesideTheToolsOwnLogin(t *testing.T) {
	s := beforeTool(t, echoBack, nil)
	token := s.token(s.enter("frodo", testPassword), `{"name":"script"}`).Token
	basic := "Basic " + base64.StdEncoding.EncodeToString([]byte("admin:of the tool"))
	for _, headers := range [][]string{
		{"Proxy-Authorization", "Bearer " + token}, {"Proxy-Authorization", "bearer  " + token}, {"X-Ringward-Token", token}, {"x-ringward-token", token},
	} {
		r := got(t, s.request("GET", "http://localhost/", append(headers, "Authorization", basic)...))
		if r.Header.Get("Remote-User") != "frodo" || r.Header.Get("Authorization") != basic || strings.Contains(fmt.Sprint(r), token) {
			t.Errorf("of %q the tool got %q", headers, r.Header)
		}
	}
	// No site can make a browser send a token, so the rule against other sites is not for it.
	for _, origin := range []string{"https://evil.test", "null", "http://localhost:1"} {
		r := got(t, s.request("POST", "http://localhost/", "Authorization", "Bearer "+token, "Origin", origin, "Sec-Fetch-Site", "cross-site"))
		if r.Header.Get("Remote-User") != "frodo" || r.Header.Get("Authorization") != "" {
			t.Errorf("from %s the tool got %q", origin, r.Header)
		}
	}
	if w := s.request("POST", "http://localhost/", "Cookie", s.enter("frodo", testPassword), "Origin", "https://evil.test"); w.Code != http.StatusForbidden {
		t.Errorf("with a cookie: %d", w.Code)
	}
}

// RFC 9110 section 11.6.1: a 401 says how to log in. A browser's navigation is
// sent to the login page, and nothing makes a browser open a dialog.
func TestRefusedScriptsAreTold(t *testing.T) {
	s := beforeTool(t, echoBack, nil)
	for _, c := range []struct {
		headers []string
		status  int
	}{
		{nil, 401}, {[]string{"Accept", "*/*"}, 401}, {[]string{"Authorization", "Bearer rw_nonsense"}, 401},
		{[]string{"Accept", "text/html, */*", "X-Requested-With", "XMLHttpRequest"}, 401},
		{[]string{"Accept", "text/html", "Sec-Fetch-Mode", "cors"}, 401},
		{[]string{"Accept", "text/html"}, 303}, {[]string{"Accept", "text/html", "Sec-Fetch-Mode", "navigate"}, 303},
	} {
		for _, path := range []string{"/v2/", "/auth/verify?redirect", "/auth/session"} {
			w := s.request("GET", "http://localhost"+path, c.headers...)
			status := c.status
			if path == "/auth/session" {
				status = 401
			}
			challenge := w.Header().Get("WWW-Authenticate")
			if w.Code != status || status == 401 && c.status == 401 && challenge != `Bearer realm="ringward"` || strings.Contains(challenge, "Basic") {
				t.Errorf("%s with %q: %d, WWW-Authenticate: %q", path, c.headers, w.Code, challenge)
			}
		}
	}
}

func TestToolGetsTheNameUnderItsOwnHeader(t *testing.T) {
	behind := httptest.NewServer(http.HandlerFunc(echoBack))
	t.Cleanup(behind.Close)
	s := newAccountServer(t, "-proxy", behind.URL, "-user-header", "X-My-User")
	cookie := s.enter("frodo", testPassword)
	for _, spoof := range []string{"X-My-User", "x_my_user", "X.My.User", "Remote-User", "X-WebAuth-User"} {
		r := got(t, s.request("GET", "http://localhost/", "Cookie", cookie, spoof, "gandalf"))
		if r.Header.Get("X-My-User") != "frodo" || strings.Contains(fmt.Sprint(r.Header), "gandalf") {
			t.Errorf("%s: the tool got %q", spoof, r.Header)
		}
	}
	if w := s.request("GET", "http://localhost/auth/verify", "Cookie", cookie); w.Header().Get("X-My-User") != "frodo" {
		t.Errorf("a gateway is told %q", w.Header())
	}
}

func TestToolMayTakeItsTime(t *testing.T) {
	slow := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { time.Sleep(63 * time.Second) })
	for timeout, want := range map[time.Duration]int{time.Minute: http.StatusGatewayTimeout, 2 * time.Minute: http.StatusOK} {
		inFront(t, slow, func(g *Gateway) { g.tools.Load().find("").timeout = timeout }, func(t *testing.T, f *front) {
			if response, body := f.send(get("/")); response.StatusCode != want {
				t.Errorf("with a timeout of %v: %s %s", timeout, response.Status, body)
			}
			time.Sleep(time.Minute)
		})
	}
}

// Where the tool says nothing, the browser asks each time, and may be told that
// nothing has changed.
func TestToolsFilesStayInTheBrowser(t *testing.T) {
	s := beforeTool(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"1"`)
		if r.Header.Get("If-None-Match") == `"1"` {
			w.WriteHeader(http.StatusNotModified)
		}
	}, nil)
	w := s.request("GET", "http://localhost/", "Cookie", s.enter("frodo", testPassword), "If-None-Match", `"1"`)
	if w.Code != http.StatusNotModified || w.Header().Get("Cache-Control") != "private, no-cache" || w.Header().Get("ETag") != `"1"` {
		t.Errorf("%d %v", w.Code, w.Header())
	}
}

// A stream that carries data keeps its session, and the silent one beside it.
func TestBusyStreamRenews(t *testing.T) {
	inFront(t, http.HandlerFunc(streams), func(g *Gateway) { g.auth.Idle = 30 * time.Second }, func(t *testing.T, f *front) {
		busy := f.stream(get("/events"), listens)
		time.Sleep(10 * time.Minute)
		if isOver(busy) {
			t.Fatalf("ended although in use:\n%s", f.log)
		}
		f.do("DELETE", "/auth/session", "", "Cookie", f.cookie)
		<-busy
	})
}

// Two ringwards on one host keep their sessions apart by the cookie's name.
func TestCookieOfAnotherName(t *testing.T) {
	one := newAccountServer(t, "-cookie-name", "ringward-one")
	two := newAccountServerAt(t, filepath.Join(t.TempDir(), "two.db"), "-cookie-name", "ringward-two")
	first, second := one.enter("frodo", testPassword), two.enter("frodo", testPassword)
	if !strings.HasPrefix(first, "ringward-one=") || !strings.HasPrefix(second, "ringward-two=") {
		t.Fatal(first, second)
	}
	one.want(http.StatusCreated, nil, "POST", "/auth/session", credentials("sam", testPassword), "Cookie", first+"; "+second)
	two.want(http.StatusOK, nil, "GET", "/auth/session", "", "Cookie", first+"; "+second)
	// The signature is over the name as well.
	renamed := strings.Replace(first, "ringward-one", "ringward-two", 1)
	two.want(http.StatusUnauthorized, nil, "GET", "/auth/session", "", "Cookie", renamed)
}

// Flags with which nobody could log in, or which mean something else than they say.
func TestFlagsThatWouldLoop(t *testing.T) {
	tools := toolsFile(t, "wiki.example.com -\nwiki.example.org -\n")
	for args, says := range map[string][]string{
		"-cookie-domain example.com":                                     {"-cookie-domain", "-public-url"},
		"-cookie-domain example.com -public-url http://auth.example.com": {"-cookie-domain", "https"},
		"-db|host=localhost password=secret dbname=ringward":             {"-db", "postgres://"},
		"-db|user=ringward":                                              {"-db", "postgres://"},
		"-proxy foo":                                                     {"-proxy", "http://127.0.0.1:3000"},
		"-proxy http://127.0.0.1:3000/sub":                               {"-proxy", "http://127.0.0.1:3000", "without a path"},
		"-proxy unix:/run/tool.sock":                                     {"-proxy", "http://127.0.0.1:3000"},
		"-prefix auth":                                                   {"-prefix", "/auth"},
		"-prefix /a/b":                                                   {"-prefix"},
		"-cookie-name a=b":                                               {"-cookie-name"},
		"-user-header a:b":                                               {"-user-header"},
		"-hsts -1":                                                       {"-hsts"},
		"-proxy-timeout 0s":                                              {"-proxy-timeout"},
		"-public-url https://auth.example.com -tools " + tools:           {"-tools", "wiki.example.", "-cookie-domain"},
		"-public-url https://auth.example.com -cookie-domain example.com -tools " + tools: {"-tools", "wiki.example.org", "-cookie-domain"},
		"-session-idle 5": {"-session-idle", "24h"},
	} {
		words := strings.Fields(args)
		if strings.Contains(args, "|") {
			words = strings.Split(args, "|")
		}
		_, _, err := parseConfig(words)
		if exitCode(err) != 2 || slices.ContainsFunc(says, func(word string) bool { return !strings.Contains(err.Error(), word) }) {
			t.Errorf("%s: exit %d, %v, want words like %q", args, exitCode(err), err, says)
		}
	}
}

// Behind a gateway that has the upstream's name in Host, the host is the one
// that the gateway forwards.
func TestHostThatAGatewayForwards(t *testing.T) {
	s := newAccountServer(t, "-trusted-proxies", "192.0.2.7")
	login := func(headers ...string) *httptest.ResponseRecorder {
		r := httptest.NewRequest("POST", "http://localhost:8080/auth/session", strings.NewReader(credentials("frodo", testPassword)))
		r.RemoteAddr = peer
		r.Header.Set("Content-Type", "application/json")
		for i := 0; i+1 < len(headers); i += 2 {
			r.Header.Set(headers[i], headers[i+1])
		}
		w := httptest.NewRecorder()
		s.program.ServeHTTP(w, r)
		return w
	}
	if w := login("X-Forwarded-Host", "192.168.1.5", "Origin", "http://192.168.1.5"); w.Code != http.StatusCreated {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if w := login("Origin", "http://192.168.1.5"); w.Code != http.StatusForbidden || !strings.Contains(w.Body.String(), "-trusted-proxies") && !strings.Contains(w.Body.String(), "-public-url") {
		t.Errorf("the flag that mends it is not named: %d %s", w.Code, w.Body)
	}
	for target, status := range map[string]int{"http://ringward:8080/healthz": http.StatusOK, "http://ringward:8080/auth/login": http.StatusMisdirectedRequest} {
		if w := s.request("GET", target); w.Code != status {
			t.Errorf("%s: %d", target, w.Code)
		}
	}
	if w := s.request("GET", "http://ringward:8080/auth/verify", "X-Forwarded-Host", "192.168.1.5", "X-Forwarded-Uri", "/x"); w.Code != http.StatusUnauthorized {
		t.Errorf("verify for a host that is ours: %d %s", w.Code, w.Body)
	}
}

// A balancer that speaks TLS stands before a gateway that says http.
func TestSchemeBehindABalancer(t *testing.T) {
	s := newAccountServer(t, "-trusted-proxies", "192.0.2.7", "-public-url", "https://auth.example.com", "-cookie-domain", "example.com")
	w := s.request("GET", "http://127.0.0.1:8080/auth/verify?redirect", "Accept", "text/html",
		"X-Forwarded-Host", "wiki.example.com", "X-Forwarded-Proto", "http", "X-Forwarded-Uri", "/page?x=1")
	if got := w.Header().Get("Location"); got != "https://auth.example.com/auth/login?next=https%3A%2F%2Fwiki.example.com%2Fpage%3Fx%3D1" {
		t.Errorf("%d %q", w.Code, got)
	}
}

// A person in a browser gets words and a way back, everybody else JSON.
func TestErrorsForPeople(t *testing.T) {
	s := newAccountServer(t, "-proxy", "http://127.0.0.1:1") // where nobody listens
	cookie := s.enter("frodo", testPassword)
	for target, status := range map[string]int{
		"http://localhost/auth/nothing":       http.StatusNotFound,
		"http://evil.test/":                   http.StatusMisdirectedRequest,
		"http://localhost/":                   http.StatusBadGateway,
		"http://localhost/auth/verify/more/x": http.StatusNotFound,
	} {
		page := s.request("GET", target, "Cookie", cookie, "Accept", "text/html", "Sec-Fetch-Mode", "navigate")
		if body := page.Body.String(); page.Code != status || !strings.HasPrefix(page.Header().Get("Content-Type"), "text/html") || strings.Contains(body, `{"errors"`) || !strings.Contains(body, "<a ") {
			t.Errorf("%s: %d %s %s", target, page.Code, page.Header().Get("Content-Type"), body)
		}
		script := s.request("GET", target, "Cookie", cookie)
		if script.Code != status || script.Header().Get("Content-Type") != "application/json" || !strings.HasPrefix(script.Body.String(), `{"errors":[{`) {
			t.Errorf("%s: %d %v", target, script.Code, script.Header())
		}
	}
	s.store.Close()
	for target, status := range map[string]int{
		"http://localhost/auth/session":  http.StatusUnauthorized,
		"http://localhost/auth/passkey":  http.StatusMethodNotAllowed,
		"http://localhost/auth/sessions": http.StatusServiceUnavailable,
		"http://localhost/healthz":       http.StatusServiceUnavailable,
	} {
		c := cookie
		if status == http.StatusUnauthorized {
			c = "x=y"
		}
		w := s.request("GET", target, "Cookie", c, "Accept", "text/html", "Sec-Fetch-Mode", "navigate")
		if w.Code != status || w.Header().Get("Content-Type") != "application/json" || !strings.HasPrefix(w.Body.String(), `{"errors":[{`) {
			t.Errorf("%s: %d %v", target, w.Code, w.Header())
		}
	}
}

// A password in the arguments is there for everybody on the machine to read.
func TestPasswordOfTheDatabaseInTheArguments(t *testing.T) {
	for args, want := range map[string]bool{
		"-db postgres://ring:secret@db/ring":        true,
		"-db=postgresql://ring:secret@db/ring":      true,
		"migrate postgres://ring:secret@db/ring":    true,
		"-db postgres://ring@db/ring":               false,
		"migrate postgres://ring@db/ring?sslmode=x": false,
		"-db ring.db user list":                     false,
	} {
		if c, _, _ := parseConfig(strings.Fields(args)); c.showsPassword != want {
			t.Errorf("%s: %v", args, c.showsPassword)
		}
	}
}
