// session_test.go: which cookies count and how they look, and when a session
// ends.
package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

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
		s.Secure, s.CookieDomain = c.secure, c.domain
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
	if w := s.do("GET", "/tool?ringward="+value, "", "X-Session", value, "Authorization", "Bearer "+value); w.Code != 401 {
		t.Errorf("the value where no cookie is: %d, want 401", w.Code)
	}
	if got := s.status("/tool", good); got != 200 {
		t.Errorf("the cookie after all that: %d", got)
	}
}

// signed returns the cookie of an id as the first key signs it.
func (a *Auth) signed(id string) string {
	name := a.cookieName()
	return name + "=" + id + "." + a.keys[0].sign(name, id)
}

// Any page on the host can set cookies of our name: what we did not sign is as
// if it were not there.
func TestJunkBesideACookie(t *testing.T) {
	s := newTestServer(t)
	good := s.login(t)
	_, value, _ := strings.Cut(good, "=")
	other := byte('A')
	if strings.HasSuffix(good, "A") {
		other = 'B'
	}
	for _, junk := range []string{"ringward=", "ringward=x", "ringward=x.y", "ringward", `ringward="` + value + `"`, good + "x",
		good[:len(good)-1] + string(other), "ringward=" + strings.Repeat("x", 8<<10), "__Host-ringward=" + value} {
		many := strings.Repeat(junk+"; ", 50)
		for _, lines := range [][]string{
			{junk + "; " + good}, {good + "; " + junk}, {many + good}, {good + "; " + many}, {many + good + "; " + many},
			{junk, good}, {good, junk}, {junk, junk, good, junk},
		} {
			r := httptest.NewRequest("GET", "/tool", nil)
			r.Header["Cookie"] = lines
			w := httptest.NewRecorder()
			if s.ServeHTTP(w, r); w.Code != 200 {
				t.Errorf("%.60q: %d, want 200", lines, w.Code)
			}
		}
	}
	if w := s.do("DELETE", "/auth/session", "", "Cookie", "ringward=x; "+good+"; ringward=y"); w.Code != 204 {
		t.Errorf("logout: %d", w.Code)
	}
	if got := s.status("/tool", good); got != 401 {
		t.Errorf("after logout with junk beside the cookie: %d, want 401", got)
	}
}

// Of two that we signed, one may be somebody else's: neither counts, and a
// logout and a login end both.
func TestTwoCookiesThatVerify(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestServer(t)
		expired := s.login(t)
		time.Sleep(s.Idle)
		id, _ := newSecret()
		live := func() string { return s.login(t) }
		for name, second := range map[string]func(first string) string{
			"another session": func(string) string { return live() },
			"the same":        func(first string) string { return first },
			"expired":         func(string) string { return expired },
			"unknown":         func(string) string { return s.signed(id) },
		} {
			for _, how := range []string{"one line", "two lines", "one line, junk between", "the other way round"} {
				for _, method := range []string{"DELETE", "POST"} {
					first := live()
					second := second(first)
					headers := map[string][]string{
						"one line":               {"Cookie", first + "; " + second},
						"two lines":              {"Cookie", first, "Cookie", second},
						"one line, junk between": {"Cookie", first + "; ringward=x; a=b; " + second},
						"the other way round":    {"Cookie", second + "; " + first},
					}[how]
					if w := s.do("GET", "/tool", "", headers...); w.Code != 401 {
						t.Errorf("%s, %s: %d, want 401", name, how, w.Code)
					}
					if got := s.status("/tool", first); got != 200 {
						t.Errorf("%s, %s: the first alone: %d, want 200", name, how, got)
					}
					want, body := 204, ""
					if method == "POST" {
						want, body = 201, credentials("frodo", testPassword)
					}
					if w := s.do(method, "/auth/session", body, headers...); w.Code != want {
						t.Errorf("%s, %s: %s: %d", name, how, method, w.Code)
					}
					for _, cookie := range []string{first, second} {
						if got := s.status("/tool", cookie); got != 401 {
							t.Errorf("%s, %s: after %s: %d, want 401", name, how, method, got)
						}
					}
				}
			}
		}
	})
}

// FuzzCookie: of all that may be in the headers, only cookies of the name with
// the very text that we signed are found, and all of them.
func FuzzCookie(f *testing.F) {
	auth, err := NewAuth(nil, testKey)
	if err != nil {
		f.Fatal(err)
	}
	id, _ := newSecret()
	_, value, _ := strings.Cut(auth.signed(id), "=")
	for _, lines := range [][2]string{
		{"ringward=VALUE", ""}, {"a=b; ringward=VALUE", "c=d"}, {"ringward=VALUE; ringward=VALUE", ""}, {"ringward=VALUE", "ringward=x"}, {"ringward=\"VALUE\"", ""},
		{"$Version=1; ringward=VALUE", ""}, {"ringward =VALUE", ""}, {"ringward= VALUE", ""}, {"RINGWARD=VALUE", ""}, {"\u2000ringward=VALUE", ""}, {";;ringward=VALUE;", ";"},
		{"ringward=VALUEx", ""}, {"ringward=xVALUE", ""}, {"ringward", "=VALUE"}, {"ringward=VALUE,ringward=x", ""}, {"\tringward=VALUE\t", ""},
	} {
		f.Add(lines[0], lines[1])
	}
	named := regexp.MustCompile(`(?s)(?:^|;)[ \t]*ringward=([^;]*)`)
	f.Fuzz(func(t *testing.T, one, two string) {
		var want []signedID
		lines := []string{strings.ReplaceAll(one, "VALUE", value), strings.ReplaceAll(two, "VALUE", value)}
		for _, line := range lines {
			for _, found := range named.FindAllStringSubmatch(line, -1) {
				if strings.TrimRight(found[1], " \t") == value {
					want = append(want, signedID{id, false})
				}
			}
		}
		if got := auth.signedIDs(&http.Request{Header: http.Header{"Cookie": lines}}); !slices.Equal(got, want) {
			t.Fatalf("%q: %v, want %v", lines, got, want)
		}
	})
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
		if _, err := NewAuth(store, keys...); err == nil {
			t.Errorf("keys %q were accepted", keys)
		}
	}
}

func TestTwoEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestServer(t)
		idle, end := s.Idle, s.Max
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
		s.Max = 100 * time.Hour
		cookie, start := s.login(t), time.Now()
		set := map[time.Duration]string{}
		for time.Since(start) < s.Max {
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
			78 * time.Hour: "Max-Age=79200", 91 * time.Hour: "Max-Age=32400"}
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
			time.Sleep(s.Idle * 3 / 4) // every request renews
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

// A session that cannot be renewed is what it was, unless it ended meanwhile.
func TestRenewalFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestServer(t)
		cookie := s.login(t)
		time.Sleep(s.Idle * 3 / 4)
		store := &hookedStore{Store: s.store}
		s.store = store
		store.onRenew = func() error { return errors.New("the disk is full") }
		if w := s.do("GET", "/tool", "", "Cookie", cookie); w.Code != 200 || w.Header().Get("Set-Cookie") != "" {
			t.Errorf("the store fails: %d, Set-Cookie %q", w.Code, w.Header().Get("Set-Cookie"))
		}
		store.onRenew = func() error { return s.store.endSessions(s.sessionKeys(cookieRequest(cookie))...) }
		if w := s.do("GET", "/tool", "", "Cookie", cookie); w.Code != 401 || w.Header().Get("Set-Cookie") != "" {
			t.Errorf("it ended meanwhile: %d, Set-Cookie %q", w.Code, w.Header().Get("Set-Cookie"))
		}
	})
}

func cookieRequest(cookie string) *http.Request {
	return &http.Request{Header: http.Header{"Cookie": {cookie}}}
}

func TestAgentOfASession(t *testing.T) {
	s := newTestServer(t)
	for agent, want := range map[string]string{
		"":                             "",
		"curl/8.0":                     "curl/8.0",
		strings.Repeat("x", 300):       strings.Repeat("x", 256),
		strings.Repeat("é", 150):       strings.Repeat("é", 128),
		"x" + strings.Repeat("é", 150): "x" + strings.Repeat("é", 127),
		"not \xff UTF-8":               "not  UTF-8",
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("User-Agent", agent)
		if got, _ := s.newSession("frodo", r, time.Now()); got.Agent != want || got.Addr != "192.0.2.1" {
			t.Errorf("%.20q: %.20q from %s, want %.20q", agent, got.Agent, got.Addr, want)
		}
	}
}

func TestOthersCookiesStay(t *testing.T) {
	s := newTestServer(t)
	w := httptest.NewRecorder()
	w.Header()["Set-Cookie"] = []string{"a=b", "ringward=old", "ringwards=c"}
	s.clearCookie(w)
	got := w.Header()["Set-Cookie"]
	if len(got) != 3 || !slices.Equal(got[:2], []string{"a=b", "ringwards=c"}) || !strings.HasPrefix(got[2], "ringward=;") {
		t.Errorf("got %q", got)
	}
}
