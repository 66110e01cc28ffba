// auth.go: who may come in. Login, logout, who am I, change of password, and
// requireLogin around what is precious; bcrypt; the JSON envelope that all of
// it speaks. No flags, no environment, no goroutines. What a larger program
// adds joins by the fields of Auth that are nil here.
package main

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"net/url"
	"reflect"
	"strconv"
	"strings"
	"time"
	"unicode/utf16"
	"unicode/utf8"

	"golang.org/x/crypto/bcrypt"
)

// Auth lets people in. Set the fields before the first request.
type Auth struct {
	Cost      int          // of new bcrypt hashes; one more is twice the time
	MinLength int          // of new passwords, in characters
	LoginPage string       // where a browser's page navigation goes that needs a login; "" answers 401 like everything else
	Log       *slog.Logger // one line an event

	store    Store
	sessions *Sessions
	dummy    []byte // a hash of nobody's password

	crossOrigin http.CrossOriginProtection

	// throttle says whether a password of the user may be tried from the
	// address now. done must then be called with the outcome.
	throttle func(ctx context.Context, user, addr string) (done func(outcome), no *refusal)
	// slot waits until one more bcrypt may run; done gives the place back.
	slot func(ctx context.Context) (done func(), no *refusal)
	// token answers whose an API token is, or fs.ErrNotExist.
	token func(secret string, now time.Time) (Login, error)
	// weak says which further rule a new password breaks, "" for none.
	weak func(name, password string) string
	// addr answers the client's address where it is not the connection's.
	addr func(r *http.Request) string
	// seen is told who a request comes from.
	seen func(r *http.Request, name string)
}

// outcome is what became of a try to log in.
type outcome int

const (
	unused outcome = iota // no password was compared
	wrong
	right
)

// refusal is a try that has to wait.
type refusal struct {
	status int
	title  string
	wait   time.Duration
}

// newAuth refuses what newSessions refuses.
func newAuth(store Store, keys ...string) (*Auth, error) {
	sessions, err := newSessions(store, keys)
	if err != nil {
		return nil, err
	}
	// Made at the lowest cost, for a quick start; dummyHash sets the cost it claims.
	dummy, err := bcrypt.GenerateFromPassword([]byte(rand.Text()), bcrypt.MinCost)
	if err != nil {
		return nil, err
	}
	return &Auth{
		Cost:      12, // a quarter of a second on a server's core (OWASP: 10 at least)
		MinLength: 15, // a password that is the only factor (NIST SP 800-63B-4 section 3.1.1.2)
		Log:       slog.New(slog.DiscardHandler),
		store:     store, sessions: sessions, dummy: dummy,
	}, nil
}

// requireLogin calls next with the Login in the request's context (loginOf),
// and w as it is. Without a login it answers 401, or sends a browser that
// navigates to the login page; when the store cannot tell, 503.
func (a *Auth) requireLogin(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !a.sameSite(w, r) {
			return
		}
		l, err := a.identify(w, r)
		if errors.Is(err, fs.ErrNotExist) && a.LoginPage != "" && navigates(r.Method, r.Header) {
			w.Header().Set("Location", a.LoginPage+"?next="+url.QueryEscape(r.URL.RequestURI()))
			w.WriteHeader(http.StatusSeeOther)
			return
		}
		if err != nil {
			a.deny(w, r, err)
			return
		}
		if room, ok := r.Context().Value(loginKey{}).(*Login); ok { // somebody around us made it
			*room = l
		} else {
			own := l
			r = r.WithContext(context.WithValue(r.Context(), loginKey{}, &own))
		}
		next.ServeHTTP(w, r)
	})
}

// requireSession is requireLogin for what a token may not do.
func (a *Auth) requireSession(next http.Handler) http.Handler {
	return a.requireLogin(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if loginOf(r).Token {
			writeError(w, http.StatusForbidden, "Not with a token", "log in with the password to manage the account")
			return
		}
		next.ServeHTTP(w, r)
	}))
}

type loginKey struct{}

// loginOf answers who sent a request that came through requireLogin.
func loginOf(r *http.Request) Login {
	if l, ok := r.Context().Value(loginKey{}).(*Login); ok {
		return *l
	}
	return Login{}
}

// check is the one decision: who is this request? It only reads. Nobody is
// fs.ErrNotExist; any other error says nothing about who it is.
func (a *Auth) check(r *http.Request, now time.Time) (Login, error) {
	if a.token != nil {
		if secret, ok := bearer(r.Header); ok { // counts even where a cookie is there too
			return a.token(secret, now)
		}
	}
	return a.sessions.find(r, now)
}

// bearer answers the API token in the Authorization header. Whatever else may
// be in there belongs to others.
func bearer(h http.Header) (secret string, ok bool) {
	for _, line := range h["Authorization"] {
		scheme, credentials, _ := strings.Cut(line, " ")
		credentials = strings.Trim(credentials, " ")
		if strings.EqualFold(scheme, "Bearer") && strings.HasPrefix(credentials, "rw_") {
			return credentials, true
		}
	}
	return "", false
}

// identify is check and what follows from it: the session is renewed.
func (a *Auth) identify(w http.ResponseWriter, r *http.Request) (Login, error) {
	w.Header()["Cache-Control"] = noStore
	now := time.Now()
	l, err := a.check(r, now)
	if err != nil {
		return l, err
	}
	if !l.Token {
		if err := a.sessions.keep(w, &l, now); errors.Is(err, fs.ErrNotExist) {
			return l, err
		} else if err != nil {
			a.Log.ErrorContext(r.Context(), "session not renewed", "error", err)
		}
	}
	if a.seen != nil {
		a.seen(r, l.User.Name)
	}
	return l, nil
}

// deny answers a request that identify did not let in.
func (a *Auth) deny(w http.ResponseWriter, r *http.Request, err error) {
	if errors.Is(err, fs.ErrNotExist) {
		writeBody(w, http.StatusUnauthorized, loginRequired)
		return
	}
	a.unavailable(w, r, err)
}

var loginRequired = errorBody(http.StatusUnauthorized, "Login required")

// unavailable answers a request that the store failed.
func (a *Auth) unavailable(w http.ResponseWriter, r *http.Request, err error) {
	a.Log.ErrorContext(r.Context(), "store failed", "error", err)
	w.Header().Set("Retry-After", "2")
	writeError(w, http.StatusServiceUnavailable, "Temporarily unavailable", "the store cannot be read or written now")
}

// sameSite refuses what another site makes a browser send: writes, and
// upgrades, which go on to carry writes.
func (a *Auth) sameSite(w http.ResponseWriter, r *http.Request) bool {
	judged := r
	// A gateway that asks about a WebSocket keeps Upgrade to itself, as nginx does.
	if r.Header["Upgrade"] != nil || r.Header["Sec-Websocket-Version"] != nil {
		judged = &http.Request{Method: http.MethodPost, Host: r.Host, Header: r.Header, URL: r.URL}
	}
	err := a.crossOrigin.Check(judged)
	if err != nil {
		a.Log.WarnContext(r.Context(), "cross-site request refused", "addr", a.clientAddr(r))
		writeError(w, http.StatusForbidden, "Cross-site request refused")
	}
	return err == nil
}

// navigates tells a person who opens a page from a program that calls an API.
func navigates(method string, h http.Header) bool {
	mode := h.Get("Sec-Fetch-Mode")
	return (method == http.MethodGet || method == http.MethodHead) &&
		strings.Contains(h.Get("Accept"), "text/html") && (mode == "" || mode == "navigate")
}

func (a *Auth) clientAddr(r *http.Request) string {
	if a.addr != nil {
		return a.addr(r)
	}
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return host
}

// handleLogin is POST /auth/session.
func (a *Auth) handleLogin(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Username string `json:"username"`
		Password string `json:"password"`
	}
	if !a.sameSite(w, r) || !readJSON(w, r, &in) {
		return
	}
	const wrongLogin = "Username or password is wrong"
	u, ok := a.verify(w, r, in.Username, in.Password, http.StatusUnauthorized, wrongLogin)
	if !ok {
		return
	}
	upgraded := ""
	if cost, err := bcrypt.Cost([]byte(u.Hash)); err == nil && cost < a.Cost {
		if upgraded, ok = a.hash(w, r, in.Password); !ok {
			return
		}
	}
	now := time.Now()
	old, _ := a.sessions.find(r, now)
	s, id := a.sessions.next(u.Name, a.clientAddr(r), r.UserAgent(), now)
	err := a.store.login(u, s, old.Session.Key, upgraded)
	if errors.Is(err, fs.ErrNotExist) { // the hash is another now, of the same password if a login rewrote it
		if u, ok = a.verify(w, r, in.Username, in.Password, http.StatusUnauthorized, wrongLogin); !ok {
			return
		}
		err = a.store.login(u, s, old.Session.Key, "")
	}
	if errors.Is(err, fs.ErrNotExist) {
		writeError(w, http.StatusUnauthorized, wrongLogin)
		return
	} else if err != nil {
		a.unavailable(w, r, err)
		return
	}
	a.event(r, "login ok", u.Name)
	a.welcome(w, r, s, id, now)
}

// welcome answers a request that started a session.
func (a *Auth) welcome(w http.ResponseWriter, r *http.Request, s Session, id string, now time.Time) {
	if a.seen != nil {
		a.seen(r, s.User)
	}
	a.sessions.setCookie(w, id, s, now)
	writeData(w, http.StatusCreated, struct {
		Username string `json:"username"`
	}{s.User})
}

// handleWhoAmI is GET /auth/session.
func (a *Auth) handleWhoAmI(w http.ResponseWriter, r *http.Request) {
	l, err := a.identify(w, r)
	if err != nil {
		a.deny(w, r, err)
		return
	}
	writeData(w, http.StatusOK, struct {
		Username string     `json:"username"`
		Created  time.Time  `json:"created"`
		Expires  *time.Time `json:"expires"`
	}{l.User.Name, seconds(l.Created), orNull(l.Expires)})
}

// handleLogout is DELETE /auth/session.
func (a *Auth) handleLogout(w http.ResponseWriter, r *http.Request) {
	if !a.sameSite(w, r) {
		return
	}
	l, err := a.check(r, time.Now())
	if err == nil && a.seen != nil {
		a.seen(r, l.User.Name)
	}
	if err == nil && l.Token {
		writeError(w, http.StatusForbidden, "Not with a token", "a token ends by DELETE /auth/tokens/{id}")
		return
	}
	if err == nil {
		err = a.store.endSession(l.Session.Key)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		a.unavailable(w, r, err)
		return
	}
	if err == nil {
		a.event(r, "logout", l.User.Name)
	}
	a.sessions.clearCookie(w)
	w.WriteHeader(http.StatusNoContent)
}

// handlePassword is PUT /auth/password, behind requireSession.
func (a *Auth) handlePassword(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Current string `json:"current"`
		New     string `json:"new"`
	}
	name := loginOf(r).User.Name
	if !readJSON(w, r, &in) || !a.accepts(w, name, in.New) {
		return
	}
	const refused = "Current password is wrong"
	u, ok := a.verify(w, r, name, in.Current, http.StatusForbidden, refused)
	if !ok {
		return
	}
	hash, ok := a.hash(w, r, in.New)
	if !ok {
		return
	}
	now := time.Now()
	s, id := a.sessions.next(name, a.clientAddr(r), r.UserAgent(), now)
	err := a.store.setPassword(u, hash, s)
	if errors.Is(err, fs.ErrNotExist) { // as in handleLogin
		if u, ok = a.verify(w, r, name, in.Current, http.StatusForbidden, refused); !ok {
			return
		}
		err = a.store.setPassword(u, hash, s)
	}
	if errors.Is(err, fs.ErrNotExist) {
		writeError(w, http.StatusForbidden, refused)
		return
	} else if err != nil {
		a.unavailable(w, r, err)
		return
	}
	a.event(r, "password set", name)
	a.sessions.setCookie(w, id, s, now)
	w.WriteHeader(http.StatusNoContent)
}

// handleHealth is GET /healthz.
func (a *Auth) handleHealth(w http.ResponseWriter, r *http.Request) {
	if err := a.store.ping(); err != nil {
		a.unavailable(w, r, err)
		return
	}
	writeData(w, http.StatusOK, struct {
		Status string `json:"status"`
	}{"ok"})
}

// event logs what an operator may have to answer for. name is empty where no
// such user exists: people type passwords into the wrong field.
func (a *Auth) event(r *http.Request, what, name string) {
	a.Log.InfoContext(r.Context(), what, "user", name, "addr", a.clientAddr(r))
}

// verify answers the user whose name and password these are. For all others it
// has answered the request, with the same words after the same time.
func (a *Auth) verify(w http.ResponseWriter, r *http.Request, username, password string, status int, refused string) (User, bool) {
	name, valid := canonicalName(username)
	u, err := User{}, error(fs.ErrNotExist)
	if valid {
		u, err = a.store.user(name)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		a.unavailable(w, r, err)
		return User{}, false
	}
	done := func(outcome) {}
	if a.throttle != nil {
		var no *refusal
		if done, no = a.throttle(r.Context(), name, a.clientAddr(r)); no != nil {
			a.event(r, "login throttled", u.Name)
			no.write(w)
			return User{}, false
		}
	}
	free, ok := a.hashing(w, r)
	if !ok {
		done(unused)
		return User{}, false
	}
	matches := a.matches(u, password)
	free()
	if !matches {
		done(wrong)
		a.event(r, "login failed", u.Name)
		writeError(w, status, refused)
		return User{}, false
	}
	done(right)
	return u, true
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

// hash is the bcrypt hash of a new password, or has answered the request.
func (a *Auth) hash(w http.ResponseWriter, r *http.Request, password string) (string, bool) {
	free, ok := a.hashing(w, r)
	if !ok {
		return "", false
	}
	defer free()
	hash, err := a.hashPassword(password)
	if err != nil {
		panic(err) // a cost that bcrypt does not have
	}
	return hash, true
}

func (a *Auth) hashPassword(password string) (string, error) {
	hash, err := bcrypt.GenerateFromPassword(bcryptInput(password), a.Cost)
	return string(hash), err
}

// hashing takes a place for one bcrypt, or has answered the request.
func (a *Auth) hashing(w http.ResponseWriter, r *http.Request) (free func(), ok bool) {
	if a.slot == nil {
		return func() {}, true
	}
	free, no := a.slot(r.Context())
	if no != nil {
		no.write(w)
	}
	return free, no == nil
}

func (no *refusal) write(w http.ResponseWriter) {
	w.Header().Set("Retry-After", strconv.Itoa(int((no.wait+time.Second-1)/time.Second)))
	writeError(w, no.status, no.title)
}

// accepts answers 422 with the rule that a new password breaks.
func (a *Auth) accepts(w http.ResponseWriter, name, password string) bool {
	problem := a.passwordProblem(name, password)
	if problem != "" {
		writeError(w, http.StatusUnprocessableEntity, problem)
	}
	return problem == ""
}

// maxPassword is in bytes; NIST SP 800-63B-4 wants 64 characters at least.
const maxPassword = 1024

func (a *Auth) passwordProblem(name, password string) string {
	switch {
	case utf8.RuneCountInString(password) < a.MinLength:
		return fmt.Sprintf("Password must have at least %d characters", a.MinLength)
	case len(password) > maxPassword:
		return fmt.Sprintf("Password must have at most %d bytes", maxPassword)
	case !utf8.ValidString(password), strings.Contains(password, "\x00"):
		return "Password must be text without a NUL character"
	case a.weak != nil:
		return a.weak(name, password)
	}
	return ""
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

// The envelope: {"data": …} or {"errors": [{"title", "status", "detail"}]}.

func writeData(w http.ResponseWriter, status int, data any) {
	writeBody(w, status, encodeData(data))
}

func encodeData(data any) []byte {
	return encode(struct {
		Data any `json:"data"`
	}{data})
}

func writeError(w http.ResponseWriter, status int, title string, detail ...string) {
	writeBody(w, status, errorBody(status, title, detail...))
}

func errorBody(status int, title string, detail ...string) []byte {
	type failure struct {
		Title  string `json:"title"`
		Status int    `json:"status"`
		Detail string `json:"detail,omitempty"`
	}
	return encode(struct {
		Errors []failure `json:"errors"`
	}{[]failure{{title, status, strings.Join(detail, " ")}}})
}

func encode(v any) []byte {
	body, err := json.Marshal(v)
	if err != nil {
		panic(err) // a type that JSON does not have: not the request's fault
	}
	return body
}

// Header values that answers share, which saves making them for each.
var (
	jsonType = []string{"application/json"}
	noStore  = []string{"no-store"}
)

func writeBody(w http.ResponseWriter, status int, body []byte) {
	w.Header()["Content-Type"] = jsonType
	if len(body) > 2<<10 { // net/http counts what its buffer holds
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	}
	w.WriteHeader(status)
	w.Write(body)
}

// seconds is how times are shown: RFC 3339 in UTC.
func seconds(t time.Time) time.Time { return t.UTC().Truncate(time.Second) }

func orNull(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = seconds(t)
	return &t
}

const maxBody = 64 << 10 // bytes

// readJSON reads the request's body into the struct that v points to, or has
// answered the request. Fields need json tags; omitempty is for those that may
// be absent.
func readJSON(w http.ResponseWriter, r *http.Request, v any) bool {
	media, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	charset := params["charset"]
	if err != nil || media != "application/json" || charset != "" && !strings.EqualFold(charset, "utf-8") ||
		r.Header.Get("Content-Encoding") != "" {
		writeError(w, http.StatusUnsupportedMediaType, "Content-Type must be application/json")
		return false
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		writeError(w, http.StatusRequestEntityTooLarge, "Request body is too large", fmt.Sprintf("at most %d bytes", maxBody))
		return false
	}
	if err != nil {
		writeError(w, http.StatusBadRequest, "Request body cannot be read")
		return false
	}
	if err := decodeObject(body, v); err != nil {
		writeError(w, http.StatusBadRequest, "Malformed request body", err.Error())
		return false
	}
	return true
}

// decodeObject is encoding/json without its leniency: that one replaces what
// is not UTF-8, ignores the case of names and takes the last of two, and a
// password must be verified as it was sent. v is a struct of plain fields.
func decodeObject(body []byte, v any) error {
	if !utf8.Valid(body) || !json.Valid(body) || loneSurrogate(body) {
		return errors.New("not valid JSON in UTF-8")
	}
	absent, optional := map[string]reflect.Value{}, map[string]bool{}
	fields := reflect.ValueOf(v).Elem()
	for i := range fields.NumField() {
		name, options, _ := strings.Cut(fields.Type().Field(i).Tag.Get("json"), ",")
		absent[name], optional[name] = fields.Field(i), options == "omitempty"
	}
	d := json.NewDecoder(bytes.NewReader(body))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return errors.New("not a JSON object")
	}
	for d.More() {
		token, err := d.Token()
		if err != nil {
			return err
		}
		name, _ := token.(string)
		field, ok := absent[name]
		if _, known := optional[name]; !known {
			return errors.New("unknown field")
		} else if !ok {
			return fmt.Errorf("field %s is there twice", name)
		}
		delete(absent, name)
		var value json.RawMessage
		if err := d.Decode(&value); err != nil || string(value) == "null" ||
			json.Unmarshal(value, field.Addr().Interface()) != nil {
			return fmt.Errorf("field %s has the wrong type", name)
		}
	}
	for name := range absent {
		if !optional[name] {
			return fmt.Errorf("field %s is missing", name)
		}
	}
	return nil
}

// loneSurrogate finds an escaped half of a UTF-16 pair in valid JSON.
func loneSurrogate(text []byte) bool {
	unit := func(i int) rune { // of the escape \uXXXX at i, or 0
		if i+6 > len(text) || text[i] != '\\' || text[i+1] != 'u' {
			return 0
		}
		n, _ := strconv.ParseUint(string(text[i+2:i+6]), 16, 16)
		return rune(n)
	}
	for i := 0; i < len(text); i++ {
		if text[i] != '\\' {
			continue
		}
		if r := unit(i); utf16.IsSurrogate(r) {
			if utf16.DecodeRune(r, unit(i+6)) == utf8.RuneError {
				return true
			}
			i += 6
		}
		i++ // the character that is escaped
	}
	return false
}
