// password_change_test.go: how a person replaces the own password, what a new
// one must be, and whether the server is well.
package main

import (
	"encoding/json"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// change is PUT /auth/password.
func (s *accountServer) change(cookie, current, next string) *httptest.ResponseRecorder {
	b, _ := json.Marshal(map[string]string{"current": current, "new": next})
	return s.do("PUT", "/auth/password", string(b), "Cookie", cookie)
}

const nextPassword = "the road goes ever on"

func TestChangePassword(t *testing.T) {
	s := newAccountServer(t)
	other, own, foreign := s.enter("frodo", testPassword), s.enter("frodo", testPassword), s.enter("sam", testPassword)
	for _, c := range []struct {
		name, cookie, current, next string
		status                      int
		title                       string
	}{
		{"nobody", "", testPassword, nextPassword, 401, "Login required"},
		{"wrong password", own, "wrong", nextPassword, 403, "Current password is wrong"},
		{"too short", own, testPassword, "fourteen chars", 422, "Password must have at least 15 characters"},
		{"too easy", own, testPassword, "frodo-of-the-shire", 422, "Password must not contain the username"},
	} {
		w := s.change(c.cookie, c.current, c.next)
		if w.Code != c.status || !strings.Contains(w.Body.String(), `"title":"`+c.title+`"`) {
			t.Errorf("%s: %d %s", c.name, w.Code, w.Body)
		}
	}
	w := s.change(own, testPassword, nextPassword)
	if w.Code != 204 {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	for cookie, want := range map[string]int{other: 401, own: 401, cookieOf(t, w): 200, foreign: 200} {
		s.want(want, nil, "GET", "/auth/session", "", "Cookie", cookie)
	}
	for password, want := range map[string]int{testPassword: 401, nextPassword: 201} {
		s.want(want, nil, "POST", "/auth/session", credentials("frodo", password))
	}
}

// As with a login, the hash may change while the password is compared with it.
func TestHashChangesDuringAChange(t *testing.T) {
	const others = "not all those who wander"
	for meanwhile, c := range map[string]struct {
		status int
		holds  string // the password afterwards
	}{testPassword: {204, nextPassword}, others: {403, others}} {
		s := newAccountServer(t)
		cookie := s.enter("frodo", testPassword)
		s.auth.replaceHashMeanwhile(t, meanwhile)
		if w := s.change(cookie, testPassword, nextPassword); w.Code != c.status {
			t.Errorf("%q meanwhile: %d %s, want %d", meanwhile, w.Code, w.Body, c.status)
		}
		for _, password := range []string{testPassword, nextPassword, others} {
			want := 401
			if password == c.holds {
				want = 201
			}
			if w := s.do("POST", "/auth/session", credentials("frodo", password)); w.Code != want {
				t.Errorf("%q meanwhile: login with %q afterwards: %d, want %d", meanwhile, password, w.Code, want)
			}
		}
	}
}

func TestWrongCurrentPasswordsAreThrottled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newAccountServer(t)
		cookie := s.enter("frodo", testPassword)
		for range 5 {
			if w := s.change(cookie, "wrong", nextPassword); w.Code != 403 {
				t.Fatalf("a wrong password: %d, want 403", w.Code)
			}
		}
		for _, current := range []string{"wrong", testPassword} {
			if w := s.change(cookie, current, nextPassword); w.Code != 429 || w.Header().Get("Retry-After") != "1" {
				t.Errorf("during the wait: %d, Retry-After %q; want 429, 1", w.Code, w.Header().Get("Retry-After"))
			}
		}
		time.Sleep(time.Second)
		if w := s.change(cookie, testPassword, nextPassword); w.Code != 204 {
			t.Errorf("after the wait: %d, want 204", w.Code)
		}
	})
}

func TestPasswordProblem(t *testing.T) {
	for _, c := range []struct {
		password  string
		minLength int
		says      string // "": it is good
	}{
		{"fifteen letters", 15, ""},
		{"fourteen chars", 15, "at least 15 characters"},
		{"fourteen chars", 14, ""},
		{strings.Repeat("aé", 7), 15, "at least 15 characters"},
		{strings.Repeat("aéü", 5), 15, ""},
		{strings.Repeat("xyzzy and more. ", 64), 15, ""},
		{strings.Repeat("xyzzy and more. ", 64) + "x", 15, "at most 1024 bytes"},
		{"nul in it \x00 and more", 15, "NUL"},
		{"not utf-8 \xff and more", 15, "text"},
		{"  spaces are kept as they are  ", 15, ""},
		{strings.Repeat("😀💍", 8), 15, ""},
		{"one of frodo's own", 15, "username"},
	} {
		if got := passwordProblem("frodo", c.password, c.minLength); c.says == "" && got != "" || !strings.Contains(got, c.says) {
			t.Errorf("%.20q of at least %d: %q, want %q", c.password, c.minLength, got, c.says)
		}
	}
}

func TestHealth(t *testing.T) {
	s := newAccountServer(t)
	if w := s.do("GET", "/healthz", ""); w.Code != 200 || w.Body.String() != `{"data":{"status":"ok"}}` {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	s.store.Close()
	if w := s.do("GET", "/healthz", ""); w.Code != 503 || w.Header().Get("Retry-After") == "" || strings.Contains(w.Body.String(), "database") {
		t.Errorf("with a closed store: %d %v %s", w.Code, w.Header(), w.Body)
	}
}
