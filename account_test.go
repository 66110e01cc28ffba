// account_test.go tests what people do with their own account, through the
// whole route list and over the bbolt store.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/crypto/bcrypt"
)

// accountServer is the program without its listeners.
type accountServer struct {
	*testing.T
	http.Handler // the routes, without Protect
	*program
	path  string
	store *BoltStore
	log   *bytes.Buffer // read it when no request runs
}

// testConfig is what flags make of the configuration.
func testConfig(t testing.TB, flags ...string) config {
	t.Helper()
	c, _, err := parseConfig(flags)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// newTestProgram joins the parts over a store, with cheap hashes.
func newTestProgram(t testing.TB, store fullStore, log io.Writer, flags ...string) *program {
	t.Helper()
	p, err := newProgram(testConfig(t, flags...), store, []string{testKey}, newLogger(log, false), "http://test")
	if err != nil {
		t.Fatal(err)
	}
	p.auth.Cost = bcrypt.MinCost
	if err := store.seedRings(); err != nil {
		t.Fatal(err)
	}
	return p
}

// newAccountServer has the users frodo and sam, both with testPassword.
func newAccountServer(t *testing.T, flags ...string) *accountServer {
	t.Helper()
	return newAccountServerAt(t, filepath.Join(t.TempDir(), "test.db"), flags...)
}

func newAccountServerAt(t *testing.T, path string, flags ...string) *accountServer {
	t.Helper()
	s := openAccountServer(t, path, flags...)
	hash, err := s.auth.hashPassword(s.Context(), testPassword)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"frodo", "sam"} {
		if err := s.store.addUser(User{Name: name, Hash: hash, Created: time.Now()}); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func openAccountServer(t *testing.T, path string, flags ...string) *accountServer {
	t.Helper()
	store, err := OpenStore(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	store.db.NoSync = true // what the disk has after a crash is not for these tests
	s := &accountServer{T: t, path: path, store: store, log: new(bytes.Buffer)}
	s.program = newTestProgram(t, store, s.log, flags...)
	s.Handler = s.next
	return s
}

// do sends one request and returns the response. headers are pairs.
func (s *accountServer) do(method, path, body string, headers ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return w
}

// want is do for what must have that status; data, if not nil, gets the response's.
func (s *accountServer) want(status int, data any, method, path, body string, headers ...string) *httptest.ResponseRecorder {
	s.Helper()
	w := s.do(method, path, body, headers...)
	if w.Code != status {
		s.Fatalf("%s %s %s: got %d %s, want %d", method, path, body, w.Code, w.Body, status)
	}
	if data != nil {
		if err := json.Unmarshal(w.Body.Bytes(), &struct{ Data any }{data}); err != nil {
			s.Fatal(err)
		}
	}
	return w
}

// enter logs in and returns the cookie, name=value.
func (s *accountServer) enter(user, password string) string {
	s.Helper()
	return cookieOf(s, s.want(http.StatusCreated, nil, "POST", "/auth/session", credentials(user, password), "User-Agent", "test of "+user))
}

// token makes one over the API and returns it.
func (s *accountServer) token(cookie, body string) (t tokenView) {
	s.Helper()
	s.want(http.StatusCreated, &t, "POST", "/auth/tokens", body, "Cookie", cookie, "Ringward-Proof", s.proof(cookie))
	return t
}

// proof confirms that it is the person, with testPassword.
func (s *accountServer) proof(cookie string) string {
	s.Helper()
	var confirmed struct{ Proof string }
	s.want(http.StatusCreated, &confirmed, "POST", "/auth/confirm", `{"password":"`+testPassword+`"}`, "Cookie", cookie)
	return confirmed.Proof
}

// invite makes one and returns its secret.
func (s *accountServer) invite(user string) string {
	s.Helper()
	link, err := s.operator.invite(User{Name: user}, "")
	if err != nil {
		s.Fatal(err)
	}
	return strings.TrimPrefix(link, "http://test/auth/invite#")
}

const newPassword = "one does not simply walk in"

func TestOwnSessions(t *testing.T) {
	s := newAccountServer(t)
	mine, other, foreign := s.enter("frodo", testPassword), s.enter("frodo", testPassword), s.enter("sam", testPassword)
	list := func(cookie string) (all []sessionView) {
		t.Helper()
		w := s.want(http.StatusOK, &all, "GET", "/auth/sessions", "", "Cookie", cookie)
		for _, secret := range []string{mine, other, foreign} {
			id, _, _ := strings.Cut(strings.TrimPrefix(secret, "ringward="), ".")
			if strings.Contains(w.Body.String(), id) {
				t.Errorf("the list shows the secret of a session: %s", w.Body)
			}
		}
		return all
	}
	all := list(mine)
	if len(all) != 2 || !all[0].Current || all[1].Current || all[0].UserAgent != "test of frodo" ||
		all[0].RemoteAddr != "192.0.2.1" || all[0].User != "" || !all[0].Expires.After(all[0].Created) {
		t.Fatalf("own sessions: got %+v", all)
	}
	s.want(http.StatusNotFound, nil, "DELETE", "/auth/sessions/"+list(foreign)[0].ID, "", "Cookie", mine)
	s.want(http.StatusNotFound, nil, "DELETE", "/auth/sessions/0", "", "Cookie", mine)
	s.want(http.StatusOK, nil, "GET", "/auth/session", "", "Cookie", foreign)

	if w := s.want(http.StatusNoContent, nil, "DELETE", "/auth/sessions/"+all[1].ID, "", "Cookie", mine); w.Header().Get("Set-Cookie") != "" {
		t.Error("ending another session touched the cookie")
	}
	s.want(http.StatusUnauthorized, nil, "GET", "/auth/session", "", "Cookie", other)
	if w := s.want(http.StatusNoContent, nil, "DELETE", "/auth/sessions/"+all[0].ID, "", "Cookie", mine); !strings.Contains(w.Header().Get("Set-Cookie"), "Max-Age=0") {
		t.Error("ending the own session left the cookie")
	}
	s.want(http.StatusUnauthorized, nil, "GET", "/auth/session", "", "Cookie", mine)

	mine, other = s.enter("frodo", testPassword), s.enter("frodo", testPassword)
	if late, err := s.store.sessions("frodo", time.Now().Add(s.auth.Idle)); len(late) > 0 || err != nil {
		t.Errorf("sessions that expired, swept or not: %v, %v", late, err)
	}
	if w := s.want(http.StatusNoContent, nil, "DELETE", "/auth/sessions", "", "Cookie", mine); !strings.Contains(w.Header().Get("Set-Cookie"), "Max-Age=0") {
		t.Error("ending all sessions left the cookie")
	}
	for _, cookie := range []string{mine, other} {
		s.want(http.StatusUnauthorized, nil, "GET", "/auth/sessions", "", "Cookie", cookie)
	}
	s.want(http.StatusOK, nil, "GET", "/auth/session", "", "Cookie", foreign)
}

// A list that cannot be read whole is not shown in part, to its user alone,
// and all sessions can be ended.
func TestDamagedSessionInTheList(t *testing.T) {
	s := newAccountServer(t)
	s.enter("frodo", testPassword)
	mine, foreign := s.enter("frodo", testPassword), s.enter("sam", testPassword)
	own, err := s.store.sessions("frodo", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	spoil(t, s.store, bucketOf[kindSession], own[0].Key[:])
	s.want(http.StatusServiceUnavailable, nil, "GET", "/auth/sessions", "", "Cookie", mine)
	s.want(http.StatusOK, nil, "GET", "/auth/sessions", "", "Cookie", foreign)
	s.want(http.StatusNoContent, nil, "DELETE", "/auth/sessions", "", "Cookie", mine)
	s.want(http.StatusOK, nil, "GET", "/auth/sessions", "", "Cookie", s.enter("frodo", testPassword))
}

func TestUserAgentCannotWriteToATerminal(t *testing.T) {
	s := newAccountServer(t)
	agent := "\u009b31mred \u202e\x1b]0;title\a \U0001F9DD"
	w := s.want(http.StatusCreated, nil, "POST", "/auth/session", credentials("frodo", testPassword), "User-Agent", agent)
	var all []sessionView
	s.want(http.StatusOK, &all, "GET", "/auth/sessions", "", "Cookie", cookieOf(t, w))
	if want := "?31mred ??]0;title? \U0001F9DD"; all[0].UserAgent != want {
		t.Errorf("got %q, want %q", all[0].UserAgent, want)
	}
}

// renewing is a store in which something happens between the reading of a
// session and its renewal.
type renewing struct {
	Store
	meanwhile func()
}

func (r renewing) renew(k Key, now, seen, idle time.Time) error {
	r.meanwhile()
	return r.Store.renew(k, now, seen, idle)
}

// Whatever ends a session while a request of it is in flight, the request does
// not bring it back.
func TestNoRequestRevivesAnEndedSession(t *testing.T) {
	s := newAccountServer(t)
	frodo, err := s.store.user("frodo")
	if err != nil {
		t.Fatal(err)
	}
	session := func(idle time.Duration) (Session, string) {
		now := time.Now()
		fresh, id := s.auth.newSession("frodo", httptest.NewRequest("GET", "/", nil), now)
		fresh.Idle, fresh.Seen = now.Add(idle), now.Add(idle-s.auth.Idle)
		return fresh, id
	}
	for name, end := range map[string]func(cookie string, ended Session) error{
		"nothing": nil,
		"logout": func(cookie string, _ Session) error {
			s.want(http.StatusNoContent, nil, "DELETE", "/auth/session", "", "Cookie", cookie)
			return nil
		},
		"end all": func(string, Session) error { return s.store.endUserSessions("frodo") },
		"disable": func(string, Session) error {
			return errors.Join(s.store.disableUser("frodo", true), s.store.disableUser("frodo", false))
		},
		"remove": func(string, Session) error {
			return errors.Join(s.store.removeUser("frodo"), s.store.addUser(frodo))
		},
		"password": func(string, Session) error {
			fresh, _ := session(time.Hour)
			return s.store.setPassword(frodo, frodo.Hash, fresh)
		},
		"invite": func(string, Session) error {
			i, _ := newInvite("frodo", time.Now())
			fresh, _ := session(time.Hour)
			return errors.Join(s.store.addInvite(i), s.store.acceptInvite(i.Key, time.Now(), frodo, fresh, nil))
		},
		"expiry": func(_ string, ended Session) error { // as the sweep of a server whose clock is ahead sees it
			_, err := s.store.Sweep(t.Context(), ended.Idle)
			return err
		},
	} {
		due, id := session(time.Minute) // less than half of Idle is left
		if err := s.store.login(frodo, due, nil, ""); err != nil {
			t.Fatal(err)
		}
		cookie := "ringward=" + id + "." + s.auth.keys[0].sign("ringward", id)
		happened := false
		s.auth.store = renewing{s.store, func() {
			happened = true
			s.auth.store = s.store
			if end != nil {
				if err := end(cookie, due); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
		}}
		want := http.StatusUnauthorized
		if end == nil {
			want = http.StatusOK
		}
		w := s.do("GET", "/ringsofpower/1", "", "Cookie", cookie)
		if w.Code != want || (w.Header().Get("Set-Cookie") != "") != (end == nil) || !happened {
			t.Errorf("%s: the request in flight got %d %v, want %d", name, w.Code, w.Header(), want)
		}
		if w := s.do("GET", "/ringsofpower/1", "", "Cookie", cookie); w.Code != want {
			t.Errorf("%s: the next request got %d, want %d", name, w.Code, want)
		}
		live, err := s.store.sessions("frodo", due.Created)
		if err != nil {
			t.Fatal(err)
		}
		if there := slices.ContainsFunc(live, func(l Session) bool { return l.Key == due.Key }); there != (end == nil) {
			t.Errorf("%s: the session is there: %t", name, there)
		}
	}
}

func TestInviteReplacesThePassword(t *testing.T) {
	s := newAccountServer(t)
	cookie, foreign := s.enter("frodo", testPassword), s.enter("sam", testPassword)
	token, foreignToken := s.token(cookie, `{"name":"script"}`), s.token(foreign, `{"name":"script"}`)
	older, invite := s.invite("frodo"), s.invite("frodo")
	path := "/auth/invites/" + invite

	s.want(http.StatusNotFound, nil, "GET", "/auth/invites/"+older, "") // a newer one replaces it
	s.want(http.StatusNotFound, nil, "GET", "/auth/invites/nonsense", "")
	var shown struct {
		Username string
		Expires  time.Time
	}
	s.want(http.StatusOK, &shown, "GET", path, "")
	if left := time.Until(shown.Expires); shown.Username != "frodo" || left > inviteLife || left < inviteLife-time.Minute {
		t.Fatalf("invite: got %+v", shown)
	}
	s.want(http.StatusUnprocessableEntity, nil, "POST", path, `{"password":"short"}`)
	s.want(http.StatusUnprocessableEntity, nil, "POST", path, `{"password":"`+strings.Repeat("frodo", 3)+`"}`)
	s.want(http.StatusBadRequest, nil, "POST", path, `{"password":"`+newPassword+`","username":"sam"}`)
	s.want(http.StatusForbidden, nil, "POST", path, `{"password":"`+newPassword+`"}`, "Sec-Fetch-Site", "cross-site")
	s.want(http.StatusOK, nil, "GET", "/auth/session", "", "Cookie", cookie) // nothing has happened yet

	w := s.want(http.StatusCreated, &shown, "POST", path, `{"password":"`+newPassword+`"}`)
	s.want(http.StatusOK, nil, "GET", "/auth/session", "", "Cookie", cookieOf(t, w))
	for _, method := range []string{"GET", "POST"} {
		body := ""
		if method == "POST" {
			body = `{"password":"` + newPassword + `"}`
		}
		s.want(http.StatusNotFound, nil, method, path, body) // used
	}
	s.want(http.StatusUnauthorized, nil, "GET", "/auth/session", "", "Cookie", cookie)
	s.want(http.StatusUnauthorized, nil, "GET", "/ringsofpower", "", "Authorization", "Bearer "+token.Token)
	s.want(http.StatusUnauthorized, nil, "POST", "/auth/session", credentials("frodo", testPassword))
	s.enter("frodo", newPassword)
	s.want(http.StatusOK, nil, "GET", "/auth/session", "", "Cookie", foreign)
	s.want(http.StatusOK, nil, "GET", "/ringsofpower", "", "Authorization", "Bearer "+foreignToken.Token)
}

func TestInviteOfAnEmptyStore(t *testing.T) {
	accept := func(s *accountServer, status int, invite, body string) *httptest.ResponseRecorder {
		s.Helper()
		return s.want(status, nil, "POST", "/auth/invites/"+invite, body)
	}
	body := `{"username":"Bilbo","password":"` + newPassword + `"}`
	empty := func(t *testing.T) (s *accountServer, first, second string) {
		s = openAccountServer(t, filepath.Join(t.TempDir(), "test.db"))
		return s, s.invite(""), s.invite("")
	}
	t.Run("taken", func(t *testing.T) {
		s, first, second := empty(t)
		var shown struct{ Username string }
		s.want(http.StatusOK, &shown, "GET", "/auth/invites/"+first, "")
		if shown.Username != "" {
			t.Errorf("username: got %q", shown.Username)
		}
		accept(s, http.StatusUnprocessableEntity, first, `{"password":"`+newPassword+`"}`)
		accept(s, http.StatusUnprocessableEntity, first, `{"username":"no name","password":"`+newPassword+`"}`)
		accept(s, http.StatusUnprocessableEntity, first, `{"username":"simply","password":"`+newPassword+`"}`)
		w := accept(s, http.StatusCreated, second, body)
		s.want(http.StatusOK, &shown, "GET", "/auth/session", "", "Cookie", cookieOf(t, w))
		if shown.Username != "bilbo" {
			t.Errorf("username: got %q", shown.Username)
		}
		accept(s, http.StatusNotFound, first, body)
		accept(s, http.StatusNotFound, second, body)
		s.enter("BILBO", newPassword)
	})
	t.Run("a user was added", func(t *testing.T) {
		s, first, second := empty(t)
		if err := s.store.addUser(User{Name: "frodo", Created: time.Now()}); err != nil {
			t.Fatal(err)
		}
		accept(s, http.StatusNotFound, first, body)
		if err := s.store.removeUser("frodo"); err != nil {
			t.Fatal(err)
		}
		accept(s, http.StatusNotFound, second, body) // they do not come back
		accept(s, http.StatusCreated, s.invite(""), body)
	})
	t.Run("no more when there is a user", func(t *testing.T) {
		s := newAccountServer(t)
		if _, err := s.operator.invite(User{}, ""); err == nil {
			t.Error("a store with users gave away an invite for the first one")
		}
	})
}

func TestInviteEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newAccountServer(t)
		secret, made := s.invite("frodo"), time.Now()
		path := "/auth/invites/" + secret
		i, err := s.store.invite(keyOf(secret), made)
		if left := i.Expires.Sub(made); err != nil || left > 24*time.Hour || left < 24*time.Hour-time.Second {
			t.Errorf("got %v, %v", i, err)
		}
		time.Sleep(time.Until(i.Expires) - 1)
		s.want(http.StatusOK, nil, "GET", path, "")
		time.Sleep(time.Nanosecond)
		s.want(http.StatusNotFound, nil, "GET", path, "")
		s.want(http.StatusNotFound, nil, "POST", path, `{"password":"`+newPassword+`"}`)
		if n, err := s.store.Sweep(t.Context(), time.Now()); n != 1 || err != nil {
			t.Errorf("sweep: got %d, %v", n, err)
		}
		s.store.Close()
	})
}

func TestInviteIsUsedOnce(t *testing.T) {
	for _, user := range []string{"frodo", ""} {
		s, body := (*accountServer)(nil), `{"password":"%s %d"}`
		if user == "" {
			s, body = openAccountServer(t, filepath.Join(t.TempDir(), "test.db")), `{"password":"%s %d","username":"frodo"}`
		} else {
			s = newAccountServer(t)
		}
		path := "/auth/invites/" + s.invite(user)
		responses := make([]*httptest.ResponseRecorder, 20)
		var wait sync.WaitGroup
		start := make(chan struct{})
		for i := range responses {
			wait.Go(func() { <-start; responses[i] = s.do("POST", path, fmt.Sprintf(body, newPassword, i)) })
		}
		close(start)
		wait.Wait()
		winner := -1
		for i, w := range responses {
			if w.Code == http.StatusCreated && winner < 0 {
				winner = i
			} else if w.Code != http.StatusNotFound {
				t.Errorf("%q: number %d got %d %s", user, i, w.Code, w.Body)
			}
		}
		if winner < 0 {
			t.Fatalf("%q: nobody won", user)
		}
		s.enter("frodo", fmt.Sprintf("%s %d", newPassword, winner))
	}
}

func TestInviteSurvivesARestart(t *testing.T) {
	s := newAccountServer(t)
	invite := s.invite("frodo")
	s.store.Close()
	s = openAccountServer(t, s.path)
	s.want(http.StatusCreated, nil, "POST", "/auth/invites/"+invite, `{"password":"`+newPassword+`"}`)
}

func TestInviteOfADisabledUser(t *testing.T) {
	s := newAccountServer(t)
	path := "/auth/invites/" + s.invite("frodo")
	if err := s.store.disableUser("frodo", true); err != nil {
		t.Fatal(err)
	}
	if err := s.store.disableUser("frodo", false); err != nil {
		t.Fatal(err)
	}
	s.want(http.StatusNotFound, nil, "GET", path, "") // enabling brings nothing back
}

func TestTokens(t *testing.T) {
	s := newAccountServer(t)
	cookie := s.enter("frodo", testPassword)
	token := s.token(cookie, `{"name":"nightly build"}`)
	if !regexp.MustCompile(`^rw_[A-Za-z0-9_-]{43}$`).MatchString(token.Token) || token.Name != "nightly build" ||
		token.ID == "" || token.Expires != nil || token.LastUsed != nil {
		t.Fatalf("token: got %+v", token)
	}
	bearer := "Bearer " + token.Token
	for _, bad := range []string{`{"name":""}`, `{"name":" "}`, `{"name":"nightly build"}`, `{"name":"a\u0000b"}`, `{"name":"\u009b31m"}`,
		`{"name":"` + strings.Repeat("x", 65) + `"}`, `{"name":"` + strings.Repeat("é", 33) + `"}`,
		`{"name":"x","expires":"tomorrow"}`, `{"name":"x","expires":"2001-01-01T00:00:00Z"}`, `{"name":"x","expires":"2262-01-01T00:00:00Z"}`} {
		s.want(http.StatusUnprocessableEntity, nil, "POST", "/auth/tokens", bad, "Cookie", cookie, "Ringward-Proof", s.proof(cookie))
	}
	s.token(cookie, `{"name":"`+strings.Repeat("é", 32)+`"}`)
	foreign := s.enter("sam", testPassword)
	s.token(foreign, `{"name":"nightly build"}`) // a name is taken for its user only

	var who struct {
		Username string
		Created  time.Time
		Expires  *time.Time
	}
	s.want(http.StatusOK, &who, "GET", "/auth/session", "", "Authorization", bearer)
	if who.Username != "frodo" || !who.Created.Equal(token.Created) || who.Expires != nil {
		t.Errorf("who am I with a token: got %+v", who)
	}
	s.want(http.StatusOK, nil, "GET", "/ringsofpower", "", "Authorization", "bearer  "+token.Token)
	s.want(http.StatusCreated, nil, "POST", "/ringsofpower", `{"name":"a","bearer":"b"}`, "Authorization", bearer)
	for _, request := range []struct{ method, path, body string }{
		{"PUT", "/auth/password", `{"current":"` + testPassword + `","new":"` + newPassword + `"}`},
		{"GET", "/auth/sessions", ""},
		{"DELETE", "/auth/sessions", ""},
		{"DELETE", "/auth/sessions/0", ""},
		{"GET", "/auth/tokens", ""},
		{"POST", "/auth/tokens", `{"name":"another"}`},
		{"DELETE", "/auth/tokens/" + token.ID, ""},
		{"DELETE", "/auth/session", ""},
	} {
		s.want(http.StatusForbidden, nil, request.method, request.path, request.body, "Authorization", bearer)
		s.want(http.StatusForbidden, nil, request.method, request.path, request.body, "Authorization", bearer, "Cookie", cookie)
	}
	unknown := "Bearer rw_" + strings.Repeat("A", 43)
	s.want(http.StatusUnauthorized, nil, "GET", "/ringsofpower", "", "Authorization", unknown, "Cookie", cookie)
	s.want(http.StatusOK, nil, "GET", "/ringsofpower", "", "Authorization", bearer, "Cookie", "ringward=nonsense")
	s.want(http.StatusUnauthorized, nil, "GET", "/ringsofpower", "", "Authorization", bearer+"x")

	var all []tokenView
	w := s.want(http.StatusOK, &all, "GET", "/auth/tokens", "", "Cookie", cookie)
	if len(all) != 2 || all[0].ID != token.ID || all[0].LastUsed == nil || all[1].LastUsed != nil ||
		strings.Contains(w.Body.String(), strings.TrimPrefix(token.Token, "rw_")) {
		t.Errorf("own tokens: got %s", w.Body)
	}
	s.want(http.StatusNotFound, nil, "DELETE", "/auth/tokens/"+token.ID, "", "Cookie", foreign)

	w = s.want(http.StatusNoContent, nil, "PUT", "/auth/password", `{"current":"`+testPassword+`","new":"`+newPassword+`"}`, "Cookie", cookie)
	cookie = cookieOf(t, w)
	s.want(http.StatusOK, nil, "GET", "/ringsofpower", "", "Authorization", bearer) // a password change leaves tokens alone
	s.want(http.StatusNoContent, nil, "DELETE", "/auth/tokens/"+token.ID, "", "Cookie", cookie)
	s.want(http.StatusUnauthorized, nil, "GET", "/ringsofpower", "", "Authorization", bearer)
	s.want(http.StatusNotFound, nil, "DELETE", "/auth/tokens/"+token.ID, "", "Cookie", cookie)
	if !errors.Is(s.store.useToken(keyOf(token.Token), time.Now()), fs.ErrNotExist) {
		t.Error("a use brought a removed token back")
	}
	s.want(http.StatusUnprocessableEntity, nil, "PUT", "/auth/password", `{"current":"`+newPassword+`","new":"`+newPassword+`"}`, "Cookie", cookie)
	s.want(http.StatusNoContent, nil, "PUT", "/auth/password", `{"current":"`+newPassword+`","new":"`+testPassword+`"}`, "Cookie", cookie)
	s.token(s.enter("frodo", testPassword), `{"name":"nightly build"}`) // the name is free again
}

// Of twenty at once who make the same, one does; likewise one of twenty
// password changes that all know the current one.
func TestOneOfTwenty(t *testing.T) {
	s := newAccountServer(t)
	cookie := s.enter("frodo", testPassword)
	proof := s.proof(cookie)
	sam, err := s.store.user("sam")
	if err != nil {
		t.Fatal(err)
	}
	for name, act := range map[string]func(i int) int{
		"user": func(int) int {
			if _, err := s.command("user add", "merry"); err != nil {
				return http.StatusUnprocessableEntity
			}
			return http.StatusCreated
		},
		"token": func(int) int {
			return s.do("POST", "/auth/tokens", `{"name":"x"}`, "Cookie", cookie, "Ringward-Proof", proof).Code
		},
		"password": func(i int) int { // all have verified the current one
			fresh, _ := s.auth.newSession("sam", httptest.NewRequest("GET", "/", nil), time.Now())
			if err := s.store.setPassword(sam, fmt.Sprint(i), fresh); err != nil {
				return http.StatusForbidden
			}
			return http.StatusNoContent
		},
	} {
		codes := make([]int, 20)
		var wait sync.WaitGroup
		for i := range codes {
			wait.Go(func() { codes[i] = act(i) })
		}
		wait.Wait()
		won := 0
		for _, code := range codes {
			switch {
			case code < 300:
				won++
			case code >= 500:
				t.Errorf("%s: %d", name, code)
			}
		}
		if won != 1 {
			t.Errorf("%s: %d of %v", name, won, codes)
		}
	}
	for kd, want := range map[kind]int{kindSession: 1, kindToken: 1, kindInvite: 0} {
		if n := s.records(kd, "frodo"); n != want {
			t.Errorf("%c: %d records of frodo", kd, n)
		}
	}
	if n := s.records(kindSession, "sam"); n != 1 {
		t.Errorf("%d sessions of sam", n)
	}
}

func TestTokensOfOneUserAreBounded(t *testing.T) {
	s := newAccountServer(t)
	for i := range maxTokens {
		token, _, _ := newToken("frodo", fmt.Sprint(i), "", time.Now())
		if err := s.store.addToken(token); err != nil {
			t.Fatal(err)
		}
	}
	cookie := s.enter("frodo", testPassword)
	s.want(http.StatusUnprocessableEntity, nil, "POST", "/auth/tokens", `{"name":"one more"}`, "Cookie", cookie, "Ringward-Proof", s.proof(cookie))
}

func TestTokenEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newAccountServer(t)
		cookie := s.enter("frodo", testPassword)
		token := s.token(cookie, fmt.Sprintf(`{"name":"x","expires":%q}`, time.Now().Add(3*time.Hour+900*time.Millisecond).Format(time.RFC3339Nano)))
		use := func(status int, hour time.Duration) {
			t.Helper()
			s.want(status, nil, "GET", "/ringsofpower", "", "Authorization", "Bearer "+token.Token)
			var all []tokenView
			s.want(http.StatusOK, &all, "GET", "/auth/tokens", "", "Cookie", cookie)
			if want := token.Created.Truncate(time.Hour).Add(hour); !all[0].LastUsed.Equal(want) {
				t.Errorf("last used: got %v, want %v", all[0].LastUsed, want)
			}
		}
		use(http.StatusOK, 0)
		time.Sleep(59 * time.Minute)
		use(http.StatusOK, 0)
		time.Sleep(2 * time.Minute)
		use(http.StatusOK, time.Hour)
		time.Sleep(time.Until(*token.Expires) - 1)
		use(http.StatusOK, 2*time.Hour)
		time.Sleep(time.Nanosecond) // synctest began at a full second
		use(http.StatusUnauthorized, 2*time.Hour)
		if token.Expires.Sub(token.Created) != 3*time.Hour {
			t.Errorf("shown end: got %v after %v", token.Expires, token.Created)
		}
		s.store.Close()
	})
}

// lateBody is one before whose last bytes something else happens.
type lateBody struct {
	io.Reader
	first func()
}

func (s *lateBody) Read(b []byte) (int, error) {
	if s.first != nil {
		s.first()
		s.first = nil
	}
	return s.Reader.Read(b)
}

// A session that ends while it asks for a token would live on in it.
func TestNoTokenForAnEndedSession(t *testing.T) {
	for _, end := range []struct {
		status             int
		method, path, body string
	}{
		{204, "DELETE", "/auth/session", ""},
		{204, "DELETE", "/auth/sessions", ""},
		{204, "PUT", "/auth/password", `{"current":"` + testPassword + `","new":"` + newPassword + `"}`},
		{201, "POST", "/auth/invites/", `{"password":"` + newPassword + `"}`},
	} {
		s := newAccountServer(t)
		cookie := s.enter("frodo", testPassword)
		if end.status == 201 {
			end.path += s.invite("frodo")
		}
		r := httptest.NewRequest("POST", "/auth/tokens", &lateBody{strings.NewReader(`{"name":"x"}`), func() {
			s.want(end.status, nil, end.method, end.path, end.body, "Cookie", cookie)
		}})
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Cookie", cookie)
		r.Header.Set("Ringward-Proof", s.proof(cookie))
		w := httptest.NewRecorder()
		s.Handler.ServeHTTP(w, r)
		if n := s.records(kindToken, "frodo"); w.Code != http.StatusUnauthorized || n != 0 {
			t.Errorf("%s %s: got %d %s, tokens: %d", end.method, end.path, w.Code, w.Body, n)
		}
	}
}

// records counts a user's, expired or not.
func (s *accountServer) records(kd kind, user string) (n int) {
	s.Helper()
	if err := s.store.view(func(tx *bolt.Tx) error {
		return eachKey(tx, kd, user, func(Key) error { n++; return nil })
	}); err != nil {
		s.Fatal(err)
	}
	return n
}

// What ends with a user ends at once, tokens too.
func TestOutAtTheNextRequest(t *testing.T) {
	for name, act := range map[string]func(*BoltStore) error{
		"removed":  func(b *BoltStore) error { return b.removeUser("frodo") },
		"disabled": func(b *BoltStore) error { return b.disableUser("frodo", true) },
		"disabled and enabled": func(b *BoltStore) error {
			return errors.Join(b.disableUser("frodo", true), b.disableUser("frodo", false))
		},
		"removed and added": func(b *BoltStore) error {
			return errors.Join(b.removeUser("frodo"), b.addUser(User{Name: "frodo", Created: time.Now()}))
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newAccountServer(t)
			cookie, foreign := s.enter("frodo", testPassword), s.enter("sam", testPassword)
			token := s.token(cookie, `{"name":"x"}`)
			s.invite("frodo")
			if err := act(s.store); err != nil {
				t.Fatal(err)
			}
			s.want(http.StatusUnauthorized, nil, "GET", "/ringsofpower", "", "Cookie", cookie)
			s.want(http.StatusUnauthorized, nil, "GET", "/ringsofpower", "", "Authorization", "Bearer "+token.Token)
			s.want(http.StatusOK, nil, "GET", "/ringsofpower", "", "Cookie", foreign)
			for _, kd := range []kind{kindSession, kindToken, kindInvite} {
				if left := s.records(kd, "frodo"); left != 0 {
					t.Errorf("%c: %d records are left", kd, left)
				}
			}
		})
	}
}

// Nobody is told "not logged in" because the disk is gone.
func TestAccountWithoutItsStore(t *testing.T) {
	s := newAccountServer(t)
	cookie := s.enter("frodo", testPassword)
	token := s.token(cookie, `{"name":"x"}`)
	invite := s.invite("frodo")
	s.store.Close()
	for _, request := range []struct{ method, path, body string }{
		{"GET", "/auth/sessions", ""},
		{"DELETE", "/auth/sessions", ""},
		{"DELETE", "/auth/sessions/0", ""},
		{"GET", "/auth/tokens", ""},
		{"POST", "/auth/tokens", `{"name":"y"}`},
		{"DELETE", "/auth/tokens/0", ""},
		{"GET", "/auth/invites/" + invite, ""},
		{"POST", "/auth/invites/" + invite, `{"password":"` + newPassword + `"}`},
	} {
		w := s.want(http.StatusServiceUnavailable, nil, request.method, request.path, request.body, "Cookie", cookie)
		if w.Header().Get("Retry-After") == "" || w.Header().Get("Set-Cookie") != "" {
			t.Errorf("%s %s: headers %v", request.method, request.path, w.Header())
		}
	}
	s.want(http.StatusServiceUnavailable, nil, "GET", "/ringsofpower", "", "Authorization", "Bearer "+token.Token)

	// The handlers themselves, which RequireLogin does not reach here.
	account := &Account{s.auth, s.store, 15}
	for name, handle := range map[string]http.HandlerFunc{
		"sessions": account.handleSessions, "end session": account.handleEndSession, "end sessions": account.handleEndSessions,
		"tokens": account.handleTokens, "remove token": account.handleRemoveToken,
	} {
		w := httptest.NewRecorder()
		handle(w, httptest.NewRequest("GET", "/", nil))
		if w.Code != http.StatusServiceUnavailable {
			t.Errorf("%s: got %d", name, w.Code)
		}
	}
}

// Each act leaves a line that says what, who and from where, and no secret.
func TestAccountAudit(t *testing.T) {
	s := newAccountServer(t)
	var secrets []string
	secret := func(text string) string { secrets = append(secrets, text); return text }
	logged := func(what, user string) {
		t.Helper()
		want := regexp.MustCompile(fmt.Sprintf(`msg="?%s"? user=%s addr=192\.0\.2\.1`, what, user))
		if !want.MatchString(s.log.String()) {
			t.Errorf("no line %q of %s in:\n%s", what, user, s.log)
		}
		for _, text := range secrets {
			if strings.Contains(s.log.String(), text) {
				t.Errorf("the log has a secret:\n%s", s.log)
			}
		}
		s.log.Reset()
	}
	enter := func() string {
		t.Helper()
		cookie := s.enter("frodo", secret(testPassword))
		secret(strings.TrimPrefix(cookie, "ringward="))
		id, signature, _ := strings.Cut(strings.TrimPrefix(cookie, "ringward="), ".")
		secret(id)
		secret(signature)
		logged("login ok", "frodo")
		return cookie
	}
	cookie := enter()
	token := s.token(cookie, `{"name":"x"}`)
	secret(token.Token)
	logged("token made", "frodo")
	s.want(http.StatusNoContent, nil, "DELETE", "/auth/tokens/"+token.ID, "", "Cookie", cookie)
	logged("token removed", "frodo")
	var all []sessionView
	s.want(http.StatusOK, &all, "GET", "/auth/sessions", "", "Cookie", cookie)
	s.want(http.StatusNoContent, nil, "DELETE", "/auth/sessions/"+all[0].ID, "", "Cookie", cookie)
	logged("session ended", "frodo")
	s.want(http.StatusNoContent, nil, "DELETE", "/auth/sessions", "", "Cookie", enter())
	logged("all sessions ended", "frodo")
	s.want(http.StatusNoContent, nil, "DELETE", "/auth/session", "", "Cookie", enter())
	logged("logout", "frodo")
	s.want(http.StatusUnauthorized, nil, "POST", "/auth/session", credentials("frodo", secret("a wrong password")))
	logged("login failed", "frodo")
	s.want(http.StatusUnauthorized, nil, "POST", "/auth/session", credentials(secret("passwordinthewrongfield"), secret("x-y-z")))
	logged("login failed", `""`)
	s.want(http.StatusNoContent, nil, "PUT", "/auth/password", `{"current":"`+testPassword+`","new":"`+secret(newPassword)+`"}`, "Cookie", enter())
	logged("password set", "frodo")
	invite := secret(s.invite("frodo"))
	s.want(http.StatusCreated, nil, "POST", "/auth/invites/"+invite, `{"password":"`+newPassword+`"}`)
	logged("invite used", "frodo")

	s = openAccountServer(t, filepath.Join(t.TempDir(), "empty.db"))
	invite = secret(s.invite(""))
	s.want(http.StatusCreated, nil, "POST", "/auth/invites/"+invite, `{"password":"`+newPassword+`","username":"bilbo"}`)
	logged("user added", "bilbo")
}
