// auth.go: login, logout, "who am I", and RequireLogin around protected
// handlers; bcrypt. No flags, no environment, no goroutines. What a larger
// program adds joins by the unexported functions among the fields of Auth, of
// which factor alone may be nil.
package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha512"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/bcrypt"
)

// Auth authenticates requests. NewAuth makes one that is safe as it is; set the
// fields before the first request.
type Auth struct {
	Idle         time.Duration // a session ends when it is not used for so long (24h)
	Max          time.Duration // and so long after login in any case (720h)
	CookieName   string        // without the prefix that Secure adds ("ringward")
	CookieDomain string        // the cookie goes to every host under this domain; "" is this host only
	Secure       bool          // browsers reach us by https: the cookie is for https only
	Cost         int           // of new bcrypt hashes; one more is twice the time (12)
	LoginPage    string        // where a browser's page navigation goes that needs a login; "": 401 as for everything else
	Log          *slog.Logger  // one line an event (nowhere)

	store       Store
	keys        []*signingKey
	throttle    *throttle
	dummy       []byte // a hash of nobody's password
	crossOrigin http.CrossOriginProtection

	// factor is asked after a right password; nil: there is no second factor.
	factor secondFactor
	// tokenLogin returns whose an API token is, or fs.ErrNotExist.
	tokenLogin func(token string, now time.Time) (Login, error)
	// seen is told who a request comes from.
	seen func(r *http.Request, name string)
	// counted is told of each event.
	counted func(what string)
}

// secondFactor is what a right password may lead to besides a session.
type secondFactor interface {
	// pendingFor returns what to respond in place of a session, or nil.
	pendingFor(u User, now time.Time) (any, error)
}

// minKey is the least length of a signing key in bytes, as long as its MAC
// (RFC 2104 section 3).
const minKey = 32

// NewAuth signs cookies with the first key and verifies them with all. A key
// is used as its text stands; one of fewer than 32 bytes is refused, and so is
// none.
func NewAuth(store Store, keys ...string) (*Auth, error) {
	// Made at the lowest cost, for a quick start; dummyHash sets the cost it claims.
	dummy, err := bcrypt.GenerateFromPassword([]byte(rand.Text()), bcrypt.MinCost)
	if err != nil {
		return nil, err
	}
	a := &Auth{
		Idle: 24 * time.Hour, Max: 720 * time.Hour, CookieName: "ringward",
		Cost:  12, // a quarter of a second on a server's core (OWASP: 10 at least)
		Log:   slog.New(slog.DiscardHandler),
		store: store, throttle: newThrottle(runtime.GOMAXPROCS(0) / 2), dummy: dummy,
		tokenLogin: func(string, time.Time) (Login, error) { return Login{}, fs.ErrNotExist },
		seen:       func(*http.Request, string) {},
		counted:    func(string) {},
	}
	for i, key := range keys {
		if len(key) < minKey {
			return nil, fmt.Errorf("signing key %d of %d has %d bytes, at least %d are needed", i+1, len(keys), len(key), minKey)
		}
		a.keys = append(a.keys, newSigningKey(key))
	}
	if len(keys) == 0 {
		return nil, errors.New("no signing key")
	}
	return a, nil
}

var wrongLogin = &refusal{http.StatusUnauthorized, "Username or password is wrong", "", 0}

// Login is POST /auth/session.
func (a *Auth) Login(w http.ResponseWriter, r *http.Request) {
	var username, password string
	if !a.readSameSite(w, r, fields{"username": &username, "password": &password}, nil) {
		return
	}
	s, id, pending, err := a.login(r, username, password)
	switch {
	case err != nil:
		a.fail(w, r, err, wrongLogin.status, wrongLogin.title)
	case pending != nil:
		respond(w, http.StatusAccepted, pending)
	default:
		a.respondLoggedIn(w, r, s, id)
	}
}

// login starts a session, or returns what is pending of a second factor,
// fs.ErrNotExist, a refusal, or that the store failed.
func (a *Auth) login(r *http.Request, username, password string) (s Session, id string, pending any, err error) {
	name, _ := canonicalName(username)
	err = a.withPassword(r, name, password, a.throttle.loginLimits(name, clientAddr(r)), func(u User) (err error) {
		hash := ""
		if cost, err := bcrypt.Cost([]byte(u.Hash)); err == nil && cost < a.Cost {
			if hash, err = a.hashPassword(r.Context(), password); err != nil {
				return err
			}
		}
		if a.factor != nil {
			changed := u // what is pending is bound to the hash as it will be kept
			changed.Hash = cmp.Or(hash, u.Hash)
			if pending, err = a.factor.pendingFor(changed, time.Now()); err != nil || pending != nil && hash == "" {
				return err
			} else if pending != nil {
				return a.store.login(u, Session{}, nil, hash)
			}
		}
		s, id = a.newSession(u.Name, r, time.Now())
		return a.store.as(act(r, "login ok", u.Name)).login(u, s, a.sessionKeys(r), hash)
	})
	what := "login ok"
	if pending != nil {
		what = "password ok"
	}
	if err == nil {
		a.seen(r, name)
		a.event(r, what, name)
	}
	return s, id, pending, err
}

// respondLoggedIn is for a request that started a session.
func (a *Auth) respondLoggedIn(w http.ResponseWriter, r *http.Request, s Session, id string) {
	a.seen(r, s.User)
	a.setCookie(w, id, s, s.Created)
	respond(w, http.StatusCreated, struct {
		Username string `json:"username"`
	}{s.User})
}

// withPassword calls use with the user whose name and password these are, if
// the limits let it be tried. For all others it returns fs.ErrNotExist, after
// the same time, or a refusal, or that the store failed. Where use finds that
// the user's hash has changed, and returns fs.ErrNotExist, all of it is done
// once more: another login may have replaced the hash by one of higher cost.
func (a *Auth) withPassword(r *http.Request, name, password string, limits []limit, use func(User) error) error {
	for again := false; ; again = true {
		u, err := a.store.user(name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		wait, by := a.throttle.begin(limits)
		if wait > 0 && by == userLimitAt && a.isIn(name, clientAddr(r)) {
			limits = limits[:userLimitAt]
			wait, _ = a.throttle.begin(limits)
		}
		if wait > 0 {
			a.event(r, "login throttled", u.Name)
			return &refusal{http.StatusTooManyRequests, "Too many wrong passwords, try again later", "", wait}
		}
		became := tryUnused
		err = a.throttle.hash(r.Context(), func() {
			if became = tryWrong; a.matches(u, password) {
				became = tryRight
			}
		})
		a.throttle.end(limits, became)
		if err != nil {
			return err
		}
		if became == tryWrong {
			a.event(r, "login failed", u.Name)
			return fs.ErrNotExist
		}
		if err = use(u); again || !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
}

// isIn says whether the user has a live session that began at the address.
func (a *Auth) isIn(name, addr string) bool {
	live, _ := a.store.sessions(name, time.Now()) // where the store fails, the limit holds
	return slices.ContainsFunc(live, func(s Session) bool { return network(s.Addr) == network(addr) })
}

// matches takes as long for a user who is not there, is disabled, has no
// password yet or an older hash of lower cost, as for any other: one
// comparison at a.Cost.
func (a *Auth) matches(u User, password string) bool {
	// bcrypt would take ab and ab NUL ab for the same, and an imported hash
	// may be that of nothing.
	possible := !u.Disabled && password != "" && !strings.Contains(password, "\x00")
	cost, err := bcrypt.Cost([]byte(u.Hash))
	hash := []byte(u.Hash)
	if err != nil || !possible {
		possible, cost, hash = false, a.Cost, a.dummyHash(a.Cost)
	}
	input := bcryptInput(password)
	if bcrypt.CompareHashAndPassword(hash, input) == nil && possible {
		return true
	}
	for ; cost < a.Cost; cost++ { // 2^c + (2^c + … + 2^(Cost-1)) = 2^Cost
		bcrypt.CompareHashAndPassword(a.dummyHash(cost), input)
	}
	return false
}

func (a *Auth) dummyHash(cost int) []byte {
	hash := bytes.Clone(a.dummy)
	copy(hash[len("$2a$"):], fmt.Sprintf("%02d", cost))
	return hash
}

// hashPassword makes the hash of a password that was found good, or returns a
// refusal.
func (a *Auth) hashPassword(ctx context.Context, password string) (string, error) {
	var hash []byte
	var err error
	if busy := a.throttle.hash(ctx, func() { hash, err = bcrypt.GenerateFromPassword(bcryptInput(password), a.Cost) }); busy != nil {
		return "", busy
	}
	return string(hash), err
}

// bcryptInput is the password as it is up to the 72 bytes that bcrypt reads.
// Longer ones are reduced to 64 characters, under a label that keeps hashes
// leaked elsewhere from being of use here (OWASP Password Storage).
func bcryptInput(password string) []byte {
	if len(password) <= 72 {
		return []byte(password)
	}
	m := hmac.New(sha512.New384, []byte("ringward password over 72 bytes"))
	m.Write([]byte(password))
	return []byte(base64.StdEncoding.EncodeToString(m.Sum(nil)))
}

// canonicalName is the one form in which a username is kept, compared, counted
// and handed on: [a-z0-9][a-z0-9._@-]{0,63}, ASCII capitals made small.
func canonicalName(s string) (name string, ok bool) {
	b := []byte(s)
	ok = len(b) >= 1 && len(b) <= 64
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
			b[i] = c
		}
		ok = ok && ('a' <= c && c <= 'z' || '0' <= c && c <= '9' || i > 0 && strings.IndexByte("._@-", c) >= 0)
	}
	return string(b), ok
}

// Logout is DELETE /auth/session.
func (a *Auth) Logout(w http.ResponseWriter, r *http.Request) {
	if err := a.logout(w, r); err != nil {
		a.fail(w, r, err, 0, "")
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// logout ends the session of every cookie of ours that the browser sent, since
// any page on this host may have added one, and clears the cookie.
func (a *Auth) logout(w http.ResponseWriter, r *http.Request) error {
	if err := a.sameSite(r); err != nil {
		return err
	}
	if tokenIn(r.Header) != "" {
		return &refusal{http.StatusForbidden, "Not with a token", "a token ends where it was made", 0}
	}
	for _, key := range a.sessionKeys(r) {
		s, _, err := a.store.session(key, time.Now())
		if err == nil {
			a.seen(r, s.User)
			err = a.store.as(act(r, "logout", s.User)).endSessions(key)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err == nil {
			a.event(r, "logout", s.User)
		}
	}
	a.clearCookie(w)
	return nil
}

// WhoAmI is GET /auth/session.
func (a *Auth) WhoAmI(w http.ResponseWriter, r *http.Request) {
	l, err := a.identify(w, r)
	if err != nil {
		a.deny(w, r, err)
		return
	}
	respond(w, http.StatusOK, struct {
		Username string     `json:"username"`
		Created  time.Time  `json:"created"`
		Expires  *time.Time `json:"expires"`
	}{l.User.Name, seconds(l.Created), orNull(l.Expires)})
}

// Login is who a request comes from, by cookie or by token.
type Login struct {
	User    User
	Session Session   // zero where a token let them in
	Token   bool      // let in by an API token, which may not manage the account
	Created time.Time // of the session or the token
	Expires time.Time // likewise; zero: never

	id signedID // the secret of the session
}

// RequireLogin calls next, with w as it is, if the request is logged in (see
// UserOf). Otherwise it responds with 401, or sends a browser that navigates to
// the login page; if the store cannot tell, it responds with 503. Reading the
// body to its end fails if the login is over by then.
func (a *Auth) RequireLogin(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var l Login
		err := a.sameSite(r)
		if err == nil {
			l, err = a.identify(w, r)
		}
		if errors.Is(err, fs.ErrNotExist) && a.LoginPage != "" && navigates(r) {
			w.Header().Set("Location", a.LoginPage+"?next="+url.QueryEscape(r.URL.RequestURI()))
			w.WriteHeader(http.StatusSeeOther)
			return
		}
		if err != nil {
			a.deny(w, r, err)
			return
		}
		next.ServeHTTP(w, withLogin(r, l, func() error { _, err := a.check(r, time.Now()); return err }))
	})
}

// withLogin returns the request with its login. again says whether that still
// holds.
func withLogin(r *http.Request, l Login, again func() error) *http.Request {
	r = r.WithContext(context.WithValue(r.Context(), loginKey{}, &l))
	if r.Body != nil && r.Body != http.NoBody {
		r.Body = &judgedBody{r.Body, again, r.ContentLength}
	}
	return r
}

type loginKey struct{}

// loginOf returns who sent a request that came through RequireLogin.
func loginOf(r *http.Request) Login {
	if l, ok := r.Context().Value(loginKey{}).(*Login); ok {
		return *l
	}
	return Login{}
}

// UserOf returns the name of the user who sent a request that came through
// RequireLogin, and "" for any other.
func UserOf(r *http.Request) string { return loginOf(r).User.Name }

// judgedBody checks the login again when it has been read: a request whose body
// came slowly is acted on long after its headers.
type judgedBody struct {
	io.ReadCloser
	again func() error
	left  int64 // bytes, as far as the request tells its length
}

func (b *judgedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.left -= int64(n)
	if err == io.EOF || b.left == 0 && n > 0 { // who knows the length, as a tool does, does not wait for EOF
		no := unavailable
		if gone := b.again(); errors.Is(gone, fs.ErrNotExist) {
			return 0, loginRequired
		} else if gone != nil {
			errors.As(gone, &no)
			return 0, no
		}
	}
	return n, err
}

var (
	loginRequired = &refusal{http.StatusUnauthorized, "Login required", "", 0}
	unavailable   = &refusal{http.StatusServiceUnavailable, "Temporarily unavailable", "", 2 * time.Second}
)

// check is the one decision: who is this request? It only reads. Nobody is
// fs.ErrNotExist; any other error says nothing about who it is.
func (a *Auth) check(r *http.Request, now time.Time) (Login, error) {
	if token := tokenIn(r.Header); token != "" { // counts even where a cookie is there too
		return a.tokenLogin(token, now)
	}
	return a.fromCookie(r, now)
}

// tokenIn returns the API token that a request carries: in a header of its own
// where Authorization is another program's, or in Authorization. What else may
// be in there belongs to others.
func tokenIn(h http.Header) (token string) {
	if bare := h.Get("X-Ringward-Token"); bare != "" {
		return bare
	}
	for _, name := range []string{"Proxy-Authorization", "Authorization"} {
		for _, line := range h[name] {
			if token := bearerToken(line); token != "" {
				return token
			}
		}
	}
	return ""
}

func bearerToken(credentials string) string {
	scheme, token, _ := strings.Cut(credentials, " ")
	token = strings.Trim(token, " ")
	if strings.EqualFold(scheme, "Bearer") && strings.HasPrefix(token, "rw_") {
		return token
	}
	return ""
}

// identify is check and what follows from it: the session is renewed.
func (a *Auth) identify(w http.ResponseWriter, r *http.Request) (Login, error) {
	w.Header().Set("Cache-Control", "no-store")
	l, err := a.check(r, time.Now())
	if err == nil {
		err = a.welcome(w, r, &l)
	}
	return l, err
}

// welcome renews the session of an admitted request.
func (a *Auth) welcome(w http.ResponseWriter, r *http.Request, l *Login) error {
	if !l.Token {
		if err := a.renew(w, l, time.Now()); errors.Is(err, fs.ErrNotExist) {
			return err
		} else if err != nil {
			a.Log.ErrorContext(r.Context(), "session not renewed", "error", err)
		}
	}
	a.seen(r, l.User.Name)
	return nil
}

// deny responds to a request that identify did not let in.
func (a *Auth) deny(w http.ResponseWriter, r *http.Request, err error) {
	if errors.Is(err, errSeveralCookies) {
		respondError(w, loginRequired.status, loginRequired.title, "there are several cookies named "+a.cookieName()+": delete those of this site")
		return
	}
	a.fail(w, r, err, loginRequired.status, loginRequired.title)
}

// fail responds with what err is: a refusal, or that something is not there,
// which has the status and title given, or else that the store failed.
func (a *Auth) fail(w http.ResponseWriter, r *http.Request, err error, status int, title string) {
	no := unavailable
	if errors.Is(err, fs.ErrNotExist) {
		no = &refusal{status, title, "", 0}
	} else if !errors.As(err, &no) {
		a.Log.ErrorContext(r.Context(), "store failed", "error", err)
	}
	no.respond(w)
}

// sameSite refuses what another site makes a browser send: writes, and
// upgrades, which go on to carry writes. A token no site can make it send.
func (a *Auth) sameSite(r *http.Request) error {
	if tokenIn(r.Header) != "" {
		return nil
	}
	judged := r
	// A gateway that asks about a WebSocket keeps Upgrade to itself, as nginx does.
	if r.Header["Upgrade"] != nil || r.Header["Sec-Websocket-Version"] != nil {
		judged = &http.Request{Method: http.MethodPost, Host: r.Host, Header: r.Header, URL: r.URL}
	}
	if a.crossOrigin.Check(judged) == nil {
		return nil
	}
	a.Log.WarnContext(r.Context(), "cross-site request refused", "addr", clientAddr(r))
	return &refusal{http.StatusForbidden, "Cross-site request refused",
		"if the page is on this site, a gateway in between has changed the Host header: let it pass that on, or set -public-url", 0}
}

// readSameSite is readJSON of what no other site made a browser send.
func (a *Auth) readSameSite(w http.ResponseWriter, r *http.Request, required, optional fields) bool {
	if err := a.sameSite(r); err != nil {
		a.fail(w, r, err, 0, "")
		return false
	}
	return readJSON(w, r, required, optional)
}

// navigates tells a person who opens a page from a program that calls an API.
func navigates(r *http.Request) bool {
	mode := r.Header.Get("Sec-Fetch-Mode") // over http browsers send none
	return (r.Method == http.MethodGet || r.Method == http.MethodHead) &&
		strings.Contains(r.Header.Get("Accept"), "text/html") && (mode == "" || mode == "navigate") &&
		r.Header.Get("X-Requested-With") == "" && r.Header.Get("Hx-Request") == ""
}

// clientAddr returns where a request comes from, without the port.
func clientAddr(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return host
}

// event logs what an operator may have to answer for. name is empty where no
// such user exists: people type passwords into the wrong field.
func (a *Auth) event(r *http.Request, what, name string) {
	a.counted(what)
	a.Log.InfoContext(r.Context(), what, "user", name, "addr", clientAddr(r))
}

// act is what a user does with their own account.
func act(r *http.Request, what, name string) Act {
	return Act{At: time.Now(), User: name, By: name, What: what, Addr: clientAddr(r)}
}
