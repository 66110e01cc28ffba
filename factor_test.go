// factor_test.go tests the second factor through the whole route list: the step
// after a right password, an authenticator app from its offer to its end, and
// what an operator does about it. Passkeys are in passkey_test.go.
package main

import (
	"bytes"
	"encoding/base32"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	bolt "go.etcd.io/bbolt"
)

// testApp is an authenticator app on a person's phone, and the recovery codes
// on their desk.
type testApp struct {
	seed  []byte
	codes []string
}

// code is what the app shows, or will show so many steps later.
func (a testApp) code(later int64) string { return codeAt(a.seed, time.Now().Unix()/codeStep+later) }

// offer asks for a seed: with a cookie and its proof, or with a pending login.
func (s *accountServer) offer(body string, headers ...string) testApp {
	s.Helper()
	var offered struct {
		Secret, URI string
		QR          []string
	}
	s.want(http.StatusCreated, &offered, "POST", "/auth/totp", body, headers...)
	seed, err := base32.StdEncoding.DecodeString(offered.Secret)
	if err != nil || len(seed) != seedBytes || !strings.Contains(offered.URI, offered.Secret) || !slices.Equal(offered.QR, qrCode(offered.URI)) {
		s.Fatalf("got %+v, %v", offered, err)
	}
	return testApp{seed: seed}
}

// accept sends the app's code. A login at once needs the next one.
func (s *accountServer) accept(app *testApp, pending string, headers ...string) (cookie string) {
	s.Helper()
	var kept struct{ RecoveryCodes []string }
	w := s.want(http.StatusOK, &kept, "PUT", "/auth/totp", object("pending", pending, "code", app.code(0)), headers...)
	if app.codes = kept.RecoveryCodes; len(app.codes) != codeCount {
		s.Fatalf("got %s", w.Body)
	}
	return cookieOf(s, w)
}

// withApp sets up an app for a user.
func (s *accountServer) withApp(user string) (app testApp, cookie string) {
	s.Helper()
	cookie = s.enter(user, testPassword)
	proof := s.proof(cookie)
	app = s.offer("", "Cookie", cookie, "Ringward-Proof", proof)
	return app, s.accept(&app, "", "Cookie", cookie, "Ringward-Proof", proof)
}

// object is JSON of the names and values that are not empty.
func object(pairs ...string) string {
	fields := map[string]string{}
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			fields[pairs[i]] = pairs[i+1]
		}
	}
	b, _ := json.Marshal(fields)
	return string(b)
}

// pend sends the right password of who has a second step to do.
func (s *accountServer) pend(user string) pendingLogin {
	s.Helper()
	var p pendingLogin
	w := s.want(http.StatusAccepted, &p, "POST", "/auth/session", credentials(user, testPassword))
	if p.Username != user || p.Pending == "" || w.Header()["Set-Cookie"] != nil {
		s.Fatalf("got %s, %v", w.Body, w.Header())
	}
	return p
}

// sendCode is the second step.
func (s *accountServer) sendCode(pending, code string, headers ...string) *httptest.ResponseRecorder {
	return s.do("POST", "/auth/session/code", object("pending", pending, "code", code), headers...)
}

// wantCode sends a code that must have that status.
func (s *accountServer) wantCode(what string, status int, pending, code string) *httptest.ResponseRecorder {
	s.Helper()
	w := s.sendCode(pending, code)
	if w.Code != status || (w.Header()["Set-Cookie"] != nil) != (status == http.StatusCreated) {
		s.Fatalf("%s: got %d %s, want %d", what, w.Code, w.Body, status)
	}
	return w
}

func (s *accountServer) live(user string) int {
	s.Helper()
	all, err := s.auth.store.sessions(user, time.Now())
	if err != nil {
		s.Fatal(err)
	}
	return len(all)
}

// From the offer to the removal, in the words of the API.
func TestApp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newAccountServer(t)
		before, elsewhere := s.enter("frodo", testPassword), s.enter("frodo", testPassword)
		proof := s.proof(before)
		mine := []string{"Cookie", before, "Ringward-Proof", proof}
		for _, call := range []string{"POST /auth/totp", "PUT /auth/totp", "DELETE /auth/totp", "POST /auth/recovery-codes"} {
			method, path, _ := strings.Cut(call, " ")
			body := map[string]string{"PUT": `{"code":"12345x"}`}[method]
			if w := s.want(http.StatusForbidden, nil, method, path, body, "Cookie", before); !strings.Contains(w.Body.String(), "Confirm that it is you") {
				t.Errorf("%s without a proof: %s", call, w.Body)
			}
			s.want(http.StatusForbidden, nil, method, path, body, "Cookie", elsewhere, "Ringward-Proof", proof)
			s.want(http.StatusUnauthorized, nil, method, path, body, "Ringward-Proof", proof)
		}
		s.want(http.StatusNotFound, nil, "DELETE", "/auth/totp", "", mine...)
		s.want(http.StatusNotFound, nil, "POST", "/auth/recovery-codes", "", mine...)

		app := s.offer("", mine...)
		if again := s.offer("{}", mine...); !bytes.Equal(again.seed, app.seed) {
			t.Error("a page that is loaded again offers another seed than the one that was scanned")
		}
		if other := s.offer("", "Cookie", elsewhere, "Ringward-Proof", s.proof(elsewhere)); bytes.Equal(other.seed, app.seed) {
			t.Error("another session is offered the same seed")
		}
		s.enter("frodo", testPassword) // nothing is active before the first code
		w := s.want(http.StatusForbidden, nil, "PUT", "/auth/totp", object("code", app.code(2)), mine...)
		if !strings.Contains(w.Body.String(), wrongCode) {
			t.Errorf("got %s", w.Body)
		}
		cookie := s.accept(&app, "", mine...)
		for what, old := range map[string]string{"this session": before, "another": elsewhere} {
			if s.do("GET", "/auth/session", "", "Cookie", old).Code != http.StatusUnauthorized {
				t.Errorf("%s goes on under its old id", what)
			}
		}
		if n := s.live("frodo"); n != 1 {
			t.Errorf("%d sessions are live", n)
		}
		mine = []string{"Cookie", cookie, "Ringward-Proof", s.proof(cookie)}

		p := s.pend("frodo")
		s.wantCode("the code that set it up", http.StatusUnauthorized, p.Pending, app.code(0))
		s.wantCode("the next, a little early", http.StatusCreated, p.Pending, app.code(1))
		s.wantCode("the same again", http.StatusUnauthorized, p.Pending, app.code(1))
		s.wantCode("one of before", http.StatusUnauthorized, p.Pending, app.code(-1))
		s.wantCode("one too early", http.StatusUnauthorized, p.Pending, app.code(2))
		time.Sleep(2 * codeStep * time.Second)
		typed := app.code(0)
		s.wantCode("with more behind it", http.StatusUnauthorized, p.Pending, typed+strings.Repeat(" ", maxCodeSize)+"x")
		s.wantCode("with a space", http.StatusCreated, p.Pending, typed[:3]+" "+typed[3:]+" ")
		var factors struct {
			TOTP          *struct{ Created time.Time }
			RecoveryCodes int
			Passkeys      []passkeyView
		}
		s.want(http.StatusOK, &factors, "GET", "/auth/factors", "", "Cookie", cookie)
		if factors.TOTP == nil || factors.RecoveryCodes != codeCount || len(factors.Passkeys) != 0 {
			t.Errorf("got %+v", factors)
		}

		var fresh struct{ RecoveryCodes []string }
		s.want(http.StatusCreated, &fresh, "POST", "/auth/recovery-codes", "", mine...)
		s.wantCode("a recovery code of before", http.StatusUnauthorized, p.Pending, app.codes[0])
		s.wantCode("a fresh one", http.StatusCreated, p.Pending, fresh.RecoveryCodes[0])
		s.want(http.StatusNoContent, nil, "DELETE", "/auth/totp", "", mine...)
		s.want(http.StatusNotFound, nil, "DELETE", "/auth/totp", "", mine...)
		s.wantCode("a login that was pending", http.StatusUnauthorized, p.Pending, fresh.RecoveryCodes[1])
		s.enter("frodo", testPassword)
		for _, secret := range append([]string{p.Pending, base32.StdEncoding.EncodeToString(app.seed), app.code(0)}, fresh.RecoveryCodes...) {
			if strings.Contains(s.log.String(), secret) {
				t.Errorf("the log has %s", secret)
			}
		}
	})
}

// A body that nobody needs is judged like any other.
func TestBodyOfNothing(t *testing.T) {
	s := newAccountServer(t)
	_, cookie := s.withApp("frodo")
	proof := s.proof(cookie)
	for _, path := range []string{"/auth/passkey/options", "/auth/passkeys/options", "/auth/recovery-codes"} {
		for _, test := range []struct {
			kind, body string
			status     int
		}{
			{"", "", 201}, {"application/json", "", 201}, {"application/json", "{}", 201},
			{"", "{}", 415}, {"text/plain", "{}", 415}, {"application/json", `{"user":"sam"}`, 400}, {"application/json", "[]", 400},
			{"application/json", "{}" + strings.Repeat(" ", maxBody), 413},
		} {
			w := s.do("POST", path, test.body, "Content-Type", test.kind, "Cookie", cookie, "Ringward-Proof", proof)
			if w.Code != test.status {
				t.Errorf("%s with %q, %.20q: got %d %.100s, want %d", path, test.kind, test.body, w.Code, w.Body, test.status)
			}
		}
	}
}

// A recovery code is for its user, once, and what the database has of it is
// none.
func TestRecoveryCodeLogin(t *testing.T) {
	s := newAccountServer(t)
	frodo, _ := s.withApp("frodo")
	sam, _ := s.withApp("sam")
	has, err := s.store.factors("frodo")
	if err != nil {
		t.Fatal(err)
	}
	hash, err := base64.RawStdEncoding.DecodeString(has.Codes[0])
	if err != nil {
		t.Fatal(err)
	}
	pending := s.pend("frodo").Pending
	for what, code := range map[string]string{"of another user": sam.codes[0], "its hash": has.Codes[0], "its hash in base32": base32.StdEncoding.EncodeToString(hash),
		"a part": frodo.codes[0][:20], "nothing": " ", "two": frodo.codes[0] + frodo.codes[1]} {
		s.wantCode(what, http.StatusUnauthorized, pending, code)
	}
	s.wantCode("another user's code", http.StatusUnauthorized, s.pend("sam").Pending, frodo.codes[0])
	for i, code := range frodo.codes {
		if i%2 == 1 {
			code = strings.ToLower(strings.ReplaceAll(code, "-", " "))
		}
		s.wantCode(code, http.StatusCreated, pending, code)
		s.wantCode(code+" again", http.StatusUnauthorized, pending, code)
		s.printed("user unlock", "frodo")
	}
	s.wantCode("the app goes on", http.StatusCreated, pending, frodo.code(1))
	if has, _ := s.store.factors("frodo"); len(has.Codes) != 0 {
		t.Errorf("%d are left", len(has.Codes))
	}
}

// A proof is of one session, for five minutes, and made by its own password.
func TestProof(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newAccountServer(t)
		cookie := s.enter("frodo", testPassword)
		var confirmed struct {
			Proof   string
			Expires time.Time
		}
		s.want(http.StatusCreated, &confirmed, "POST", "/auth/confirm", object("password", testPassword), "Cookie", cookie)
		if want := seconds(time.Now().Add(proofLife)); !confirmed.Expires.Equal(want) || proofLife != 5*time.Minute {
			t.Errorf("it expires %v, want %v", confirmed.Expires, want)
		}
		try := func(what string, status int, cookie, proof string) {
			t.Helper()
			w := s.do("POST", "/auth/totp", "", "Cookie", cookie, "Ringward-Proof", proof)
			if w.Code != status || status == http.StatusForbidden && !strings.Contains(w.Body.String(), "Confirm that it is you") {
				t.Errorf("%s: got %d %s", what, w.Code, w.Body)
			}
		}
		expires, signature, _ := strings.Cut(confirmed.Proof, ".")
		try("it", http.StatusCreated, cookie, confirmed.Proof)
		try("it again", http.StatusCreated, cookie, confirmed.Proof)
		try("none", http.StatusForbidden, cookie, "")
		try("made to last", http.StatusForbidden, cookie, expires+"0."+signature)
		try("unsigned", http.StatusForbidden, cookie, expires+".")
		try("signed as a cookie", http.StatusForbidden, cookie, expires+cookie[strings.Index(cookie, "."):])
		try("of another session", http.StatusForbidden, s.enter("frodo", testPassword), confirmed.Proof)
		try("of another user", http.StatusForbidden, s.enter("sam", testPassword), confirmed.Proof)
		time.Sleep(proofLife - time.Nanosecond)
		try("just in time", http.StatusCreated, cookie, confirmed.Proof)
		time.Sleep(time.Nanosecond)
		try("too old", http.StatusForbidden, cookie, confirmed.Proof)

		for range pairLimit {
			w := s.want(http.StatusForbidden, nil, "POST", "/auth/confirm", object("password", "not it"), "Cookie", cookie)
			if !strings.Contains(w.Body.String(), wrongCurrent) {
				t.Errorf("got %s", w.Body)
			}
		}
		s.want(http.StatusTooManyRequests, nil, "POST", "/auth/confirm", object("password", testPassword), "Cookie", cookie)
		other := s.enter("frodo", testPassword)
		proof := s.proof(other) // of another session it is not counted
		s.want(http.StatusNoContent, nil, "DELETE", "/auth/session", "", "Cookie", other)
		try("of a session that ended", http.StatusUnauthorized, other, proof)
	})
}

// With a cookie domain the account is answered on the public host only.
func TestFactorsOnThePublicHostOnly(t *testing.T) {
	s := newAccountServer(t, "-public-url", "https://auth.example.com", "-cookie-domain", "example.com")
	cookie := cookieOf(t, s.want(http.StatusCreated, nil, "POST", "https://auth.example.com/auth/session", credentials("frodo", testPassword)))
	for _, call := range []string{"POST /auth/confirm", "GET /auth/factors", "POST /auth/totp", "PUT /auth/totp", "DELETE /auth/totp", "POST /auth/recovery-codes",
		"POST /auth/passkeys/options", "POST /auth/passkeys", "DELETE /auth/passkeys/x", "POST /auth/passkey/options", "POST /auth/passkey"} {
		method, path, _ := strings.Cut(call, " ")
		s.want(http.StatusMisdirectedRequest, nil, method, "https://wiki.example.com"+path, "{}", "Cookie", cookie)
		if w := s.do(method, "https://auth.example.com"+path, "{}", "Cookie", cookie); w.Code == http.StatusMisdirectedRequest {
			t.Errorf("%s on the public host: %d", call, w.Code)
		}
	}
	s.want(http.StatusCreated, nil, "POST", "https://wiki.example.com/auth/session", credentials("sam", testPassword))
	s.want(http.StatusUnauthorized, nil, "POST", "https://wiki.example.com/auth/session/code", object("pending", "x", "code", "123456"))
}

// What a right password gives is good for the code and for nothing else, on no
// route that there is, wherever it is put.
func TestPendingLoginOpensNoRoute(t *testing.T) {
	source, err := os.ReadFile("routes.go")
	if err != nil {
		t.Fatal(err)
	}
	routes := regexp.MustCompile(`(?:handle|mux\.Handle)\("([A-Z]+) (/[^"]*)"`).FindAllStringSubmatch(string(source), -1)
	if len(routes) < 40 {
		t.Fatalf("found %d routes only", len(routes))
	}
	for _, flags := range [][]string{nil, {"-second-factor", "required"}, {"-proxy", "http://127.0.0.1:1"}} {
		s := newAccountServer(t, flags...)
		enrol := flags != nil && flags[1] == "required"
		if !enrol {
			s.withApp("frodo")
		}
		p := s.pend("frodo")
		if p.Enrol != enrol {
			t.Fatalf("got %+v", p)
		}
		sessions, err := s.store.factors("frodo")
		if err != nil {
			t.Fatal(err)
		}
		before, live := fmt.Sprint(sessions), s.live("frodo")
		signature := p.Pending[strings.LastIndex(p.Pending, ".")+1:]
		for _, route := range append(routes, []string{"", "GET", "/"}, []string{"", "GET", "/a/tool"}) {
			method := route[1]
			path := strings.NewReplacer("{$}", "", "{id}", "1", "{token}", p.Pending).Replace(route[2])
			if method == "PUT" && path == "/auth/totp" && enrol {
				continue // what it is for
			}
			if method == "POST" && path == "/auth/totp" && enrol {
				continue
			}
			body := map[bool]string{true: "{}"}[method == "POST" || method == "PUT"]
			if path == "/auth/totp" {
				body = object("pending", p.Pending)
				if method == "PUT" {
					body = object("pending", p.Pending, "code", "12345x")
				}
			}
			s.auth.throttle = newThrottle(1)
			without := s.do(method, path, strings.ReplaceAll(body, p.Pending, "x"))
			for _, headers := range [][]string{
				{"Cookie", "ringward=" + p.Pending}, {"Cookie", "ringward=" + signature}, {"Authorization", "Bearer " + p.Pending},
				{"Authorization", "Bearer rw_" + p.Pending}, {"X-Ringward-Token", p.Pending}, {"Ringward-Proof", p.Pending},
				{"Cookie", "ringward=" + p.Pending, "Ringward-Proof", p.Pending}, {"Remote-User", "frodo"},
				{"Authorization", "Basic " + base64.StdEncoding.EncodeToString([]byte("frodo:"+p.Pending))},
				{"Authorization", "Basic " + base64.StdEncoding.EncodeToString([]byte("frodo:"+testPassword))},
			} {
				s.auth.throttle = newThrottle(1)
				w := s.do(method, path, body, headers...)
				token := strings.Contains(strings.Join(headers, " "), "rw_") || headers[0] == "X-Ringward-Token" || strings.HasPrefix(headers[1], "Bearer")
				if w.Code != without.Code && !(token && w.Code >= 400) || w.Header().Get("Remote-User") != "" {
					t.Errorf("%v %s %s with %v: got %d %s, without it %d", flags, method, path, headers, w.Code, w.Body, without.Code)
				}
				for _, cookie := range w.Header()["Set-Cookie"] {
					if !strings.Contains(cookie, "Max-Age=0") {
						t.Errorf("%v %s %s with %v sets %s", flags, method, path, headers, cookie)
					}
				}
			}
		}
		after, err := s.store.factors("frodo")
		if err != nil || fmt.Sprint(after) != before || s.live("frodo") != live {
			t.Errorf("%v: the factors were %s and are %v, %v; %d sessions, then %d", flags, before, after, err, live, s.live("frodo"))
		}
	}
}

// A pending login is one user's, for five minutes, and over when the password
// or the app changes.
func TestPendingLoginEnds(t *testing.T) {
	for name, test := range map[string]struct {
		end    func(s *accountServer, app testApp, cookie string, p *string)
		status int
	}{
		"nothing happens": {func(*accountServer, testApp, string, *string) {}, http.StatusCreated},
		"just in time":    {func(*accountServer, testApp, string, *string) { time.Sleep(pendingLife - time.Nanosecond) }, http.StatusCreated},
		"time":            {func(*accountServer, testApp, string, *string) { time.Sleep(pendingLife) }, http.StatusUnauthorized},
		"another user": {func(s *accountServer, _ testApp, _ string, p *string) {
			*p = base64.RawURLEncoding.EncodeToString([]byte("sam")) + (*p)[strings.Index(*p, ":"):]
		}, http.StatusUnauthorized},
		"made to last": {func(s *accountServer, _ testApp, _ string, p *string) {
			parts := strings.SplitN(*p, ":", 2)
			*p = parts[0] + ":9" + parts[1]
		}, http.StatusUnauthorized},
		"signature cut": {func(s *accountServer, _ testApp, _ string, p *string) { *p = (*p)[:len(*p)-1] }, http.StatusUnauthorized},
		"no signature":  {func(s *accountServer, _ testApp, _ string, p *string) { *p, _, _ = strings.Cut(*p, ".") }, http.StatusUnauthorized},
		"signed for something else": {func(s *accountServer, _ testApp, cookie string, p *string) {
			text, _, _ := strings.Cut(*p, ".")
			*p = text + cookie[strings.Index(cookie, "."):]
		}, http.StatusUnauthorized},
		"nothing at all": {func(s *accountServer, _ testApp, _ string, p *string) { *p = "." }, http.StatusUnauthorized},
		"the password changes": {func(s *accountServer, _ testApp, cookie string, _ *string) {
			s.want(http.StatusNoContent, nil, "PUT", "/auth/password", object("current", testPassword, "new", newPassword), "Cookie", cookie)
		}, http.StatusUnauthorized},
		"an invite is used": {func(s *accountServer, _ testApp, _ string, _ *string) {
			s.want(http.StatusAccepted, nil, "POST", "/auth/invites/"+s.invite("frodo"), object("password", newPassword))
		}, http.StatusUnauthorized},
		"another app": {func(s *accountServer, app testApp, cookie string, p *string) {
			time.Sleep(2 * codeStep * time.Second)
			proof := s.proof(cookie)
			other := s.offer("", "Cookie", cookie, "Ringward-Proof", proof)
			s.accept(&other, "", "Cookie", cookie, "Ringward-Proof", proof)
			s.wantCode("its code", http.StatusUnauthorized, *p, other.code(1))
		}, http.StatusUnauthorized},
		"disabled": {func(s *accountServer, _ testApp, _ string, _ *string) { s.printed("user disable", "frodo") }, http.StatusUnauthorized},
		"removed":  {func(s *accountServer, _ testApp, _ string, _ *string) { s.printed("user remove", "frodo") }, http.StatusUnauthorized},
		"removed and made anew": {func(s *accountServer, _ testApp, _ string, _ *string) {
			s.printed("user remove", "frodo")
			s.printed("user add", "frodo")
		}, http.StatusUnauthorized},
		"reset": {func(s *accountServer, _ testApp, _ string, _ *string) { s.printed("user factor reset", "frodo") }, http.StatusUnauthorized},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newAccountServer(t)
				app, cookie := s.withApp("frodo")
				p := s.pend("frodo")
				if want := seconds(time.Now().Add(pendingLife)); !p.Expires.Equal(want) {
					t.Errorf("it expires %v, want %v", p.Expires, want)
				}
				test.end(s, app, cookie, &p.Pending)
				s.wantCode(name, test.status, p.Pending, app.codes[0])
			})
		})
	}
}

// A thousand guesses from two hundred addresses: ten are looked at, and the
// right password in between changes nothing. Then each wait is twice as long.
func TestWrongCodesWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newAccountServer(t)
		app, _ := s.withApp("frodo")
		evaluated, waiting := 0, 0
		var p pendingLogin
		for i := range 1000 {
			if i%10 == 0 {
				p = s.pend("frodo")
			}
			from := fmt.Sprintf("203.0.113.%d:4000", i%200)
			if i >= 200 {
				from = fmt.Sprintf("[2001:db8:0:%x::1]:4000", i%200)
			}
			r := httptest.NewRequest("POST", "/auth/session/code", strings.NewReader(object("pending", p.Pending, "code", fmt.Sprintf("%05dx", i))))
			r.Header.Set("Content-Type", "application/json")
			r.RemoteAddr = from
			w := httptest.NewRecorder()
			s.ServeHTTP(w, r)
			switch w.Code {
			case http.StatusUnauthorized:
				evaluated++
			case http.StatusTooManyRequests:
				if waiting++; w.Header().Get("Retry-After") != "1" {
					t.Fatalf("Retry-After: %s", w.Header().Get("Retry-After"))
				}
			default:
				t.Fatalf("got %d %s", w.Code, w.Body)
			}
		}
		if evaluated != 10 || waiting != 990 || strings.Count(s.log.String(), "code wrong") != 10 {
			t.Errorf("%d were looked at, %d had to wait", evaluated, waiting)
		}
		for wait := time.Second; wait < 20*time.Minute; wait *= 2 {
			wait = min(wait, longestWait)
			time.Sleep(wait - time.Nanosecond)
			p = s.pend("frodo")
			s.wantCode(fmt.Sprint("the right one within ", wait), http.StatusTooManyRequests, p.Pending, app.code(0))
			time.Sleep(time.Nanosecond)
			if wait == longestWait {
				break
			}
			s.wantCode(fmt.Sprint("a wrong one after ", wait), http.StatusUnauthorized, p.Pending, "x")
		}
		s.wantCode("the right one", http.StatusCreated, p.Pending, app.code(0))
		for range codeLimit { // a right code has cleared the count
			s.wantCode("a wrong one", http.StatusUnauthorized, p.Pending, "x")
		}
		s.wantCode("one more", http.StatusTooManyRequests, p.Pending, "x")
		s.printed("user unlock", "frodo")
		s.wantCode("after unlock", http.StatusUnauthorized, p.Pending, "x")
	})
}

// One code sent a hundred times at once is one session.
func TestOneCodeAtOnce(t *testing.T) {
	s := newAccountServer(t)
	app, _ := s.withApp("frodo")
	before := s.live("frodo")
	for _, code := range []string{app.code(1), app.codes[0]} {
		pending := s.pend("frodo").Pending
		before++
		s.atOnce(100, before, func() *httptest.ResponseRecorder { return s.sendCode(pending, code) })
		s.printed("user unlock", "frodo")
	}
}

// atOnce calls request n times at once, of which one succeeds, and frodo has so
// many sessions then.
func (s *accountServer) atOnce(n, sessions int, request func() *httptest.ResponseRecorder) {
	s.Helper()
	var all sync.WaitGroup
	status := make(chan int, n)
	begin := make(chan struct{})
	for range n {
		all.Go(func() { <-begin; status <- request().Code })
	}
	close(begin)
	all.Wait()
	close(status)
	ok := 0
	for code := range status {
		if code < 300 {
			ok++
		} else if code >= 500 && code != http.StatusServiceUnavailable {
			s.Errorf("got %d", code)
		}
	}
	if live := s.live("frodo"); ok != 1 || live != sessions {
		s.Errorf("%d succeeded, %d sessions are live; want 1, %d", ok, live, sessions)
	}
}

// Where a second factor is required, there is no session before there is one.
func TestRequiredFactor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newAccountServer(t, "-second-factor", "required", "-password-min", "8")
		p := s.pend("frodo")
		if !p.Enrol {
			t.Fatalf("got %+v", p)
		}
		s.wantCode("a code of nothing", http.StatusUnauthorized, p.Pending, "12345x")
		app := s.offer(object("pending", p.Pending))
		s.want(http.StatusForbidden, nil, "PUT", "/auth/totp", object("pending", p.Pending, "code", "12345x"))
		other := s.pend("sam")
		s.want(http.StatusForbidden, nil, "PUT", "/auth/totp", object("pending", other.Pending, "code", app.code(0)))
		if s.live("frodo") != 0 {
			t.Fatal("there is a session before there is a second factor")
		}
		s.want(http.StatusOK, nil, "GET", "/auth/session", "", "Cookie", s.accept(&app, p.Pending))
		for _, late := range []string{p.Pending, s.pend("frodo").Pending} {
			s.want(http.StatusUnauthorized, nil, "POST", "/auth/totp", object("pending", late))
			s.want(http.StatusUnauthorized, nil, "PUT", "/auth/totp", object("pending", late, "code", app.code(0)))
		}
		s.wantCode("then a login", http.StatusCreated, s.pend("frodo").Pending, app.code(1))

		late := s.pend("sam").Pending
		time.Sleep(pendingLife)
		s.want(http.StatusUnauthorized, nil, "POST", "/auth/totp", object("pending", late))

		late = s.pend("sam").Pending
		sam := s.user("sam")
		s.printed("user remove", "sam")
		sam.Created = time.Now().Add(time.Microsecond)
		if err := s.store.addUser(sam); err != nil { // another one, with the same password
			t.Fatal(err)
		}
		s.want(http.StatusUnauthorized, nil, "POST", "/auth/totp", object("pending", late))

		// A first or lost password is no way round.
		var invited pendingLogin
		w := s.want(http.StatusAccepted, &invited, "POST", "/auth/invites/"+s.invite("sam"), object("password", newPassword))
		if !invited.Enrol || w.Header()["Set-Cookie"] != nil || s.live("sam") != 0 {
			t.Errorf("got %s, %v", w.Body, w.Header())
		}
		app = s.offer(object("pending", invited.Pending))
		s.accept(&app, invited.Pending)
		if s.live("sam") != 1 {
			t.Error("nobody is in after enrolment")
		}
	})
}

// One enrolment is one session, however often its code is sent at once: with a
// pending login, and with a session.
func TestOneEnrolmentAtOnce(t *testing.T) {
	s := newAccountServer(t, "-second-factor", "required")
	p := s.pend("frodo")
	app := s.offer(object("pending", p.Pending))
	s.atOnce(50, 1, func() *httptest.ResponseRecorder {
		return s.do("PUT", "/auth/totp", object("pending", p.Pending, "code", app.code(0)))
	})
	s = newAccountServer(t)
	cookie := s.enter("frodo", testPassword)
	proof := s.proof(cookie)
	app = s.offer("", "Cookie", cookie, "Ringward-Proof", proof)
	s.atOnce(50, 1, func() *httptest.ResponseRecorder {
		return s.do("PUT", "/auth/totp", object("code", app.code(0)), "Cookie", cookie, "Ringward-Proof", proof)
	})
}

// meantime is a store with which something happens before a change of factors.
type meantime struct {
	fullStore
	happens func()
}

func (m meantime) as(act Act) Store { return meantime{m.fullStore.as(act).(fullStore), m.happens} }

func (m meantime) changeFactors(was User, change func(*Factors) error, after sessionsAfter) error {
	m.happens()
	return m.fullStore.changeFactors(was, change, after)
}

// Who was first to set up a factor keeps it, also against who knows the
// password and comes at the same instant.
func TestFirstFactorIsKept(t *testing.T) {
	for name, first := range map[string]Factors{"app": {Seed: "the first"}, "passkey": {Passkeys: []Passkey{newPasskey("the first")}}} {
		s := newAccountServer(t, "-second-factor", "required")
		p := s.pend("frodo")
		app := s.offer(object("pending", p.Pending))
		s.factor.store = meantime{s.store, func() {
			conformed{t, s.store}.change(s.user("frodo"), func(f *Factors) { *f = first })
		}}
		s.want(http.StatusUnauthorized, nil, "PUT", "/auth/totp", object("pending", p.Pending, "code", app.code(0)))
		if has, err := s.store.factors("frodo"); err != nil || has.Seed != first.Seed || len(has.Passkeys) != len(first.Passkeys) || s.live("frodo") != 0 {
			t.Errorf("%s: got %+v, %v, %d sessions", name, has, err, s.live("frodo"))
		}
	}
}

// What changes between a right code and its session counts: the code of an app
// that is gone is none, nor is one after the password.
func TestCodeMeetsChange(t *testing.T) {
	for name, happens := range map[string]func(s *accountServer){
		"app removed": func(s *accountServer) {
			conformed{t, s.store}.change(s.user("frodo"), func(f *Factors) { *f = Factors{} })
		},
		"another app": func(s *accountServer) {
			conformed{t, s.store}.change(s.user("frodo"), func(f *Factors) { f.Seed, f.Step = "another", 0 })
		},
		"another password": func(s *accountServer) {
			if err := s.store.setPassword(s.user("frodo"), "another", newSession("frodo", time.Now())); err != nil {
				t.Fatal(err)
			}
		},
		"disabled": func(s *accountServer) { s.printed("user disable", "frodo") },
	} {
		s := newAccountServer(t)
		app, _ := s.withApp("frodo")
		pending := s.pend("frodo").Pending
		before := s.live("frodo")
		s.factor.store = meantime{s.store, func() { happens(s) }}
		s.wantCode(name, http.StatusUnauthorized, pending, app.code(1))
		if live := s.live("frodo"); live > before {
			t.Errorf("%s: %d sessions, then %d", name, before, live)
		}
	}
}

func (s *accountServer) user(name string) User {
	s.Helper()
	u, err := s.store.user(name)
	if err != nil {
		s.Fatal(err)
	}
	return u
}

// Nothing else that lets somebody in goes round the factor: an invite does not,
// a Basic login with the password does not, a token is made with a proof only.
func TestNoWayRoundTheFactor(t *testing.T) {
	s := newAccountServer(t)
	app, cookie := s.withApp("frodo")
	token := s.token(cookie, `{"name":"script"}`)
	s.want(http.StatusForbidden, nil, "POST", "/auth/tokens", `{"name":"other"}`, "Cookie", cookie)
	s.want(http.StatusOK, nil, "GET", "/ringsofpower", "", "Authorization", "Bearer "+token.Token)
	for _, path := range []string{"/auth/totp", "/auth/recovery-codes", "/auth/passkeys/options"} {
		s.want(http.StatusForbidden, nil, "POST", path, "", "Authorization", "Bearer "+token.Token, "Ringward-Proof", s.proof(cookie))
	}
	var p pendingLogin
	w := s.want(http.StatusAccepted, &p, "POST", "/auth/invites/"+s.invite("frodo"), object("password", newPassword))
	if p.Enrol || w.Header()["Set-Cookie"] != nil || s.live("frodo") != 0 {
		t.Errorf("an invite: got %s, %v, %d sessions", w.Body, w.Header(), s.live("frodo"))
	}
	s.want(http.StatusUnauthorized, nil, "GET", "/ringsofpower", "", "Authorization", "Bearer "+token.Token)
	s.wantCode("then the code", http.StatusCreated, p.Pending, app.code(1))
	s.want(http.StatusAccepted, nil, "POST", "/auth/session", credentials("FRODO", newPassword))
}

// A hash of lower cost is replaced at the first step, and the second goes on.
func TestPendingAfterRehash(t *testing.T) {
	s := newAccountServer(t)
	app, _ := s.withApp("frodo")
	s.auth.Cost++
	s.wantCode("a code", http.StatusCreated, s.pend("frodo").Pending, app.code(1))
}

// The form for browsers without JavaScript takes the code too.
func TestCodeForm(t *testing.T) {
	s := newAccountServer(t)
	app, _ := s.withApp("frodo")
	form := func(body string) *httptest.ResponseRecorder {
		r := httptest.NewRequest("POST", "/auth/login?next=%2Fa", strings.NewReader(body))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		return w
	}
	w := form("username=frodo&password=" + strings.ReplaceAll(testPassword, " ", "+"))
	pending := regexp.MustCompile(`name="pending" value="([^"]+)"`).FindStringSubmatch(w.Body.String())
	if w.Code != http.StatusOK || pending == nil || w.Header()["Set-Cookie"] != nil || strings.Contains(w.Body.String(), "{") {
		t.Fatalf("got %d %v %s", w.Code, w.Header(), w.Body)
	}
	if w = form("pending=" + pending[1] + "&code=00000x"); w.Code != http.StatusUnauthorized || !strings.Contains(w.Body.String(), wrongCode) {
		t.Errorf("a wrong code: %d %s", w.Code, w.Body)
	}
	if w = form("pending=x&code=" + app.code(1)); w.Code != http.StatusUnauthorized || !strings.Contains(w.Body.String(), pendingOver.title) {
		t.Errorf("a login of long ago: %d %s", w.Code, w.Body)
	}
	w = form("pending=" + pending[1] + "&code=" + app.code(1))
	if w.Code != http.StatusSeeOther || w.Header().Get("Location") != "/a" {
		t.Errorf("got %d %v", w.Code, w.Header())
	}
	s.want(http.StatusOK, nil, "GET", "/auth/session", "", "Cookie", cookieOf(t, w))
}

// Neither the file nor a copy holds a seed or a recovery code, as bytes or in
// any spelling of them.
func TestCopyHoldsNoFactor(t *testing.T) {
	s := newAccountServer(t)
	app, cookie := s.withApp("frodo")
	proof := s.proof(cookie)
	s.offer("", "Cookie", cookie, "Ringward-Proof", proof) // made anew, and not accepted
	file, err := os.ReadFile(s.path)
	if err != nil {
		t.Fatal(err)
	}
	secrets := [][]byte{app.seed}
	for _, code := range app.codes {
		raw, err := base32.StdEncoding.DecodeString(strings.ReplaceAll(code, "-", ""))
		if err != nil {
			t.Fatal(err)
		}
		secrets = append(secrets, raw, []byte(code))
	}
	for what, content := range map[string][]byte{"the file": file, "a copy": []byte(s.printed("backup", "FILE"))} {
		content = bytes.ToUpper(content)
		if !bytes.Contains(content, []byte("FRODO")) {
			t.Fatalf("%s holds nobody, so this test shows nothing", what)
		}
		for _, secret := range secrets {
			for spelling, text := range map[string]string{"raw": string(secret), "base32": base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(secret),
				"base64": base64.RawStdEncoding.EncodeToString(secret), "base64url": base64.RawURLEncoding.EncodeToString(secret), "hex": hex.EncodeToString(secret)} {
				if bytes.Contains(content, bytes.ToUpper([]byte(text))) {
					t.Errorf("%s holds %s: %s", what, spelling, text)
				}
			}
		}
	}
}

// withKeys is the server after a restart with other keys.
func (s *accountServer) withKeys(keys ...string) *accountServer {
	s.Helper()
	p, err := newProgram(testConfig(s), s.store, keys, newLogger(s.log, false), "http://test")
	if err != nil {
		s.Fatal(err)
	}
	p.auth.Cost = s.auth.Cost
	return &accountServer{s.T, p.next, p, s.path, s.store, s.log}
}

// A new key in front of the old one: everybody is still in. Without the old one
// whoever did not log in meanwhile is told what to do.
func TestKeyRotationAndLoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first := newAccountServer(t)
		frodo, cookie := first.withApp("frodo")
		sam, _ := first.withApp("sam")
		pending := first.pend("frodo").Pending
		newer := strings.Repeat("n", minKey)

		rotated := first.withKeys(newer, testKey)
		rotated.want(http.StatusOK, nil, "GET", "/auth/session", "", "Cookie", cookie)
		before, _ := first.store.factors("frodo")
		rotated.wantCode("a login that was pending", http.StatusCreated, pending, frodo.codes[0])
		if after, _ := first.store.factors("frodo"); after.Seed != before.Seed {
			t.Error("a recovery code sealed the seed anew, which it never showed to be right")
		}
		rotated.wantCode("a login", http.StatusCreated, rotated.pend("frodo").Pending, frodo.code(1))
		time.Sleep(2 * codeStep * time.Second)

		lost := first.withKeys(newer)
		lost.wantCode("whose seed was sealed anew", http.StatusCreated, lost.pend("frodo").Pending, frodo.code(0))
		for _, code := range []string{sam.code(0), "12345x", testApp{}.code(0)} {
			w := lost.wantCode("whose was not", http.StatusForbidden, lost.pend("sam").Pending, code)
			if !strings.Contains(w.Body.String(), "reset your second factor") {
				t.Errorf("got %s", w.Body)
			}
		}
		if !strings.Contains(lost.log.String(), "user factor reset") {
			t.Error("the log does not say what to do")
		}
		lost.wantCode("a recovery code", http.StatusCreated, lost.pend("sam").Pending, sam.codes[0])
		lost.wantCode("the same again", http.StatusForbidden, lost.pend("sam").Pending, sam.codes[0])
		for range codeLimit - 1 {
			lost.wantCode("a guess", http.StatusForbidden, lost.pend("sam").Pending, "x")
		}
		lost.wantCode("a guess too many", http.StatusTooManyRequests, lost.pend("sam").Pending, sam.codes[1])
		lost.printed("user factor reset", "sam")
		lost.enter("sam", testPassword)
	})
}

// What an operator sees of it, and can do.
func TestFactorReset(t *testing.T) {
	s := newAccountServer(t)
	_, cookie := s.withApp("frodo")
	token := s.token(cookie, `{"name":"script"}`)
	others := s.enter("sam", testPassword)
	if list := s.printed("user list"); !regexp.MustCompile(`(?m)^frodo .* totp +-$`).MatchString(list) || !regexp.MustCompile(`(?m)^sam .* - +-$`).MatchString(list) {
		t.Errorf("got %s", list)
	}
	if out := s.printed("user factor reset", "Frodo"); out != "second factor reset: frodo\n" {
		t.Errorf("got %q", out)
	}
	s.want(http.StatusUnauthorized, nil, "GET", "/auth/session", "", "Cookie", cookie)
	s.want(http.StatusUnauthorized, nil, "GET", "/auth/session", "", "Authorization", "Bearer "+token.Token)
	s.want(http.StatusOK, nil, "GET", "/auth/session", "", "Cookie", others)
	s.enter("frodo", testPassword)
	if list := s.printed("user list"); strings.Contains(list, "totp") {
		t.Errorf("got %s", list)
	}
	s.printed("user factor reset", "frodo") // there is nothing left to take, which is what was asked for

	// A disabled user comes back without the lost phone.
	s.withApp("sam")
	s.printed("user disable", "sam")
	s.printed("user factor reset", "sam")
	s.printed("user enable", "sam")
	s.enter("sam", testPassword)
	if _, err := s.command("user factor reset", "gollum"); err == nil || err.Error() != "There is no user gollum" {
		t.Errorf("got %v", err)
	}
}

// The lines of tinyauth, with and without an app.
func TestImportApps(t *testing.T) {
	s := newAccountServer(t)
	hash := strings.TrimSpace(strings.TrimPrefix(htpasswdLine("gimli"), "gimli:"))
	const seed = "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP"
	out, err := s.imports("merry:" + hash + ":" + seed + "\npippin:" + hash + ":" + strings.ToLower(seed[:16]) + "\nrosie:" + hash + ":comment\n" +
		"bilbo:" + hash + ":" + seed + "1\nfrodo:" + hash + ":" + seed + "\nrosie:" + hash + ":" + seed + "\n")
	want := "FILE: lines refused: 3\nline 4: totp is not a secret in base32\nline 5: name taken\nline 6: name taken"
	if out != "users imported: 3\n" || err == nil || err.Error() != want {
		t.Errorf("got %q, %v", out, err)
	}
	for user, secret := range map[string]string{"merry": seed, "pippin": seed[:16]} {
		var p pendingLogin
		s.want(http.StatusAccepted, &p, "POST", "/auth/session", credentials(user, htpasswdPasswords["gimli"]))
		raw, err := base32.StdEncoding.DecodeString(secret)
		if err != nil {
			t.Fatal(err)
		}
		s.wantCode(user, http.StatusCreated, p.Pending, testApp{seed: raw}.code(0))
	}
	s.enter("rosie", htpasswdPasswords["gimli"])

	// The line that is refused gives its app to nobody.
	out, err = s.imports("fatty:" + hash + "\nFATTY:" + hash + ":" + seed + "\n")
	if out != "users imported: 1\n" || err == nil || err.Error() != "FILE: lines refused: 1\nline 2: name taken" {
		t.Errorf("got %q, %v", out, err)
	}
	s.enter("fatty", htpasswdPasswords["gimli"])
	s.enter("frodo", testPassword)
}

// TestUpgradeKeepsEverybodyIn opens a file as the version before wrote it:
// without groups, factors and acts.
func TestUpgradeKeepsEverybodyIn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "test.db")
	old := newAccountServerAt(t, path)
	cookie := old.enter("frodo", testPassword)
	token := old.token(cookie, `{"name":"script"}`)
	invite := old.invite("sam")
	if err := old.store.db.Update(func(tx *bolt.Tx) error {
		for _, bucket := range [][]byte{bucketFactors, bucketPasskeys, bucketAudit} {
			if err := tx.DeleteBucket(bucket); err != nil {
				return err
			}
		}
		for _, name := range []string{"frodo", "sam"} {
			u, err := getUser(tx, name)
			if err != nil {
				return err
			}
			key := []byte(name)
			if err := tx.Bucket(bucketUsers).Put(key, seal(key, u.Hash, "enabled", nanos(u.Created))); err != nil {
				return err
			}
		}
		return tx.Bucket(bucketRingward).Put(keyFormat, []byte("1"))
	}); err != nil {
		t.Fatal(err)
	}
	if err := old.store.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 { // upgraded, then as it is
		s := openAccountServer(t, path)
		s.want(http.StatusOK, nil, "GET", "/auth/session", "", "Cookie", cookie)
		s.want(http.StatusOK, nil, "GET", "/auth/session", "", "Authorization", "Bearer "+token.Token)
		s.want(http.StatusOK, nil, "GET", "/auth/invites/"+invite, "")
		s.withApp("sam")
		s.printed("user factor reset", "sam")
		if acts, err := s.store.acts("sam"); err != nil || len(acts) == 0 {
			t.Errorf("acts: %v, %v", acts, err)
		}
		if err := s.store.view(func(tx *bolt.Tx) error {
			if got := tx.Bucket(bucketRingward).Get(keyFormat); string(got) != format || format == "1" {
				t.Errorf("its format is %q, which a version that knows no factors would take", got)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		invite = s.invite("sam")
		if err := s.store.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// Where the store fails, nobody gets in, and nobody is told that a code is
// wrong.
func TestFactorStoreFails(t *testing.T) {
	s := newAccountServer(t)
	app, cookie := s.withApp("frodo")
	proof := s.proof(cookie)
	pending := s.pend("frodo").Pending
	if err := s.store.Close(); err != nil {
		t.Fatal(err)
	}
	for _, call := range []struct{ method, path, body string }{
		{"POST", "/auth/session/code", object("pending", pending, "code", app.code(1))},
		{"POST", "/auth/session", credentials("frodo", testPassword)},
		{"POST", "/auth/totp", object("pending", pending)},
		{"GET", "/auth/factors", ""}, {"POST", "/auth/recovery-codes", ""}, {"DELETE", "/auth/totp", ""},
		{"POST", "/auth/passkeys/options", ""},
	} {
		w := s.want(http.StatusServiceUnavailable, nil, call.method, call.path, call.body, "Cookie", cookie, "Ringward-Proof", proof)
		if w.Header().Get("Retry-After") == "" {
			t.Errorf("%s %s does not say when to come again", call.method, call.path)
		}
	}
	if _, err := s.store.factors("frodo"); err == nil || err == fs.ErrNotExist {
		t.Errorf("got %v", err)
	}
}

// FuzzPending: what a stranger makes up, or makes of a login that is theirs, is
// none.
func FuzzPending(f *testing.F) {
	store := tempStore(f)
	p := newTestProgram(f, store, new(bytes.Buffer), "-second-factor", "required")
	u := User{Name: "frodo", Hash: "a hash", Created: time.Unix(1, 0)}
	if err := store.addUser(u); err != nil {
		f.Fatal(err)
	}
	now := time.Now()
	next, err := p.factor.pendingFor(u, now)
	if err != nil {
		f.Fatal(err)
	}
	own := next.(pendingLogin).Pending
	f.Add(own)
	f.Add(strings.Replace(own, ":", ":1", 1))
	f.Add("..::")
	f.Add("Znjvz.")
	f.Fuzz(func(t *testing.T, text string) {
		if _, _, err := p.factor.fromPending(text, true, now); (err == nil) != (text == own) {
			t.Errorf("%q: %v", text, err)
		}
	})
}
