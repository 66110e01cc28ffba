// account.go: what people do with their own account over JSON: their sessions,
// their API tokens, and the invites with which they set a first or a lost
// password. The records, their part of the Store, and the handlers.
package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	bolt "go.etcd.io/bbolt"
)

// Token lets a script in without a session.
type Token struct {
	Key     Key
	User    string
	Name    string // unique among the user's tokens, 1 to maxTokenName bytes
	Created time.Time
	Expires time.Time // zero: never
	Used    time.Time // zero: never; kept to the hour
}

// Invite lets a person set a password, once. An empty User is the invite of an
// empty store, whose taker chooses the name.
type Invite struct {
	Key     Key
	User    string
	Created time.Time
	Expires time.Time
}

const (
	maxTokens    = 100 // of one user
	maxTokenName = 64  // bytes
	inviteLife   = 24 * time.Hour
	usedEvery    = time.Hour // how exact Token.Used is, so that reading costs one write an hour
	lastYear     = 2261      // the last whole one that fits into 64 bits of nanoseconds since 1970
)

// errTooMany is a limit that keeps one user from filling the store.
var errTooMany = errors.New("there are too many")

// accountStore is the part of the Store that this file needs, with the same
// promises.
type accountStore interface {
	Store
	// empty says whether there are no users.
	empty() (bool, error)
	// setPassword replaces the hash of a user verified as in login, ends every
	// session and invite of the user, and starts s.
	setPassword(was User, hash string, s Session) error
	// endUserSessions is for everybody's with "".
	endUserSessions(user string) error

	// addToken is fs.ErrExist where the user has a token of that name,
	// errTooMany, and fs.ErrNotExist where there is no such user.
	addToken(t Token) error
	// tokens returns those of one user, the oldest first, or of all for "",
	// expired ones too.
	tokens(user string) ([]Token, error)
	// token returns one that has not expired, and its user, who is not disabled.
	token(k Key, now time.Time) (Token, User, error)
	// useToken keeps when a token was used, and never brings back a removed one.
	useToken(k Key, now time.Time) error
	removeToken(k Key) error

	// addInvite replaces the user's older invites, but leaves those of an empty
	// store. It is fs.ErrNotExist where the user is not there or disabled, or
	// where it has no user and the store has.
	addInvite(i Invite) error
	// invite returns one that can be accepted now.
	invite(k Key, now time.Time) (Invite, error)
	// acceptInvite, in one transaction, uses the invite up, gives u.Hash to its
	// user (or makes u, if the invite has none), ends all that the user could
	// get in with and the sessions under ends, and starts s, unless that is the
	// zero Session.
	acceptInvite(k Key, now time.Time, u User, s Session, ends []Key) error
}

func (b *BoltStore) empty() (yes bool, err error) {
	err = b.view(func(tx *bolt.Tx) error {
		k, _ := tx.Bucket(bucketUsers).Cursor().First()
		yes = k == nil
		return nil
	})
	return yes, err
}

func (b *BoltStore) setPassword(was User, hash string, s Session) error {
	return b.update(func(tx *bolt.Tx) error {
		u, err := getUnchanged(tx, was)
		if err != nil {
			return err
		}
		u.Hash = hash
		if err := putUser(tx, u); err != nil {
			return err
		}
		if err := dropOwned(tx, u.Name, kindSession, kindInvite); err != nil {
			return err
		}
		return startSession(tx, s)
	})
}

func (b *BoltStore) endUserSessions(user string) error {
	return b.update(func(tx *bolt.Tx) error { return dropOwned(tx, user, kindSession) })
}

func (b *BoltStore) addToken(t Token) error {
	return b.update(func(tx *bolt.Tx) error {
		if u, err := getUser(tx, t.User); err != nil || u.Disabled {
			return errors.Join(err, fs.ErrNotExist)
		}
		n := 0
		err := eachKey(tx, kindToken, t.User, func(k Key) error {
			other, err := getToken(tx, k)
			if n++; err == nil && other.Name == t.Name {
				return fs.ErrExist
			}
			return err
		})
		if err != nil {
			return err
		}
		if n >= maxTokens {
			return errTooMany
		}
		return putToken(tx, t)
	})
}

func (b *BoltStore) tokens(user string) (all []Token, err error) {
	err = b.view(func(tx *bolt.Tx) error {
		return eachKey(tx, kindToken, user, func(k Key) error {
			t, err := getToken(tx, k)
			if err == nil {
				all = append(all, t)
			}
			return present(err)
		})
	})
	return all, err
}

func (b *BoltStore) token(k Key, now time.Time) (t Token, u User, err error) {
	err = b.view(func(tx *bolt.Tx) error {
		if t, err = getToken(tx, k); err != nil {
			return err
		}
		u, err = getUser(tx, t.User)
		if err == nil && (u.Disabled || !t.Expires.IsZero() && !now.Before(t.Expires)) {
			err = fs.ErrNotExist
		}
		return err
	})
	return t, u, err
}

func (b *BoltStore) useToken(k Key, now time.Time) error {
	return b.update(func(tx *bolt.Tx) error {
		t, err := getToken(tx, k)
		if err != nil {
			return err
		}
		t.Used = now
		return putToken(tx, t)
	})
}

func (b *BoltStore) removeToken(k Key) error {
	return b.update(func(tx *bolt.Tx) error { return drop(tx, kindToken, k) })
}

func (b *BoltStore) addInvite(i Invite) error {
	return b.update(func(tx *bolt.Tx) error {
		if err := invitable(tx, i.User); err != nil {
			return err
		}
		if i.User != "" {
			if err := dropOwned(tx, i.User, kindInvite); err != nil {
				return err
			}
		}
		return put(tx, kindInvite, i.Key, i.User, i.Created, i.Expires)
	})
}

func (b *BoltStore) invite(k Key, now time.Time) (i Invite, err error) {
	err = b.view(func(tx *bolt.Tx) error { i, err = getInvite(tx, k, now); return err })
	return i, err
}

func (b *BoltStore) acceptInvite(k Key, now time.Time, u User, s Session, ends []Key) error {
	return b.update(func(tx *bolt.Tx) error {
		i, err := getInvite(tx, k, now)
		if err != nil {
			return err
		}
		if i.User != "" {
			old, err := getUser(tx, i.User)
			if err != nil {
				return err
			}
			u.Name, u.Created = old.Name, old.Created
		}
		// For an empty store that is every invite there is.
		if err := dropOwned(tx, i.User, kindSession, kindToken, kindInvite); err != nil {
			return err
		}
		if err := putUser(tx, u); err != nil {
			return err
		}
		if err := drop(tx, kindSession, ends...); err != nil || s.User == "" {
			return err
		}
		return startSession(tx, s)
	})
}

func getToken(tx *bolt.Tx, k Key) (Token, error) {
	f, err := unseal(k[:], tx.Bucket(bucketOf[kindToken]).Get(k[:]), ownedFields+3)
	if err != nil {
		return Token{}, err
	}
	return Token{Key: k, User: f[0], Created: instant(f[1]), Expires: instant(f[3]), Used: instant(f[4]), Name: f[5]}, nil
}

// putToken keeps an expired token where its owner sees it: the sweep is not
// told of its end.
func putToken(tx *bolt.Tx, t Token) error {
	return put(tx, kindToken, t.Key, t.User, t.Created, time.Time{}, nanos(t.Expires), nanos(t.Used), t.Name)
}

func getInvite(tx *bolt.Tx, k Key, now time.Time) (Invite, error) {
	f, err := unseal(k[:], tx.Bucket(bucketOf[kindInvite]).Get(k[:]), ownedFields)
	if err != nil {
		return Invite{}, err
	}
	i := Invite{Key: k, User: f[0], Created: instant(f[1]), Expires: instant(f[2])}
	if !now.Before(i.Expires) || i.Created.After(now.Add(clockSlack)) {
		return Invite{}, fs.ErrNotExist
	}
	return i, invitable(tx, i.User)
}

// invitable says whether an invite for that name makes sense: of a user who is
// there, or of nobody in a store without users.
func invitable(tx *bolt.Tx, name string) error {
	if name == "" {
		if k, _ := tx.Bucket(bucketUsers).Cursor().First(); k != nil {
			return fs.ErrNotExist
		}
		return nil
	}
	u, err := getUser(tx, name)
	if err == nil && u.Disabled {
		err = fs.ErrNotExist
	}
	return err
}

// Account is the handlers of this file. All but those of invites belong behind
// requireSession.
type Account struct {
	*Auth
	accounts  accountStore
	minLength int // of new passwords, in characters
}

// requireSession is RequireLogin for what a token may not do.
func (a *Account) requireSession(next http.HandlerFunc) http.Handler {
	return a.RequireLogin(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if loginOf(r).Token {
			respondError(w, http.StatusForbidden, "Not with a token", "log in with the password to manage the account")
			return
		}
		next(w, r)
	}))
}

// handlePassword is PUT /auth/password.
func (a *Account) handlePassword(w http.ResponseWriter, r *http.Request) {
	var current, chosen string
	l := loginOf(r)
	if !readJSON(w, r, fields{"current": &current, "new": &chosen}, nil) || !a.checkNewPassword(w, l.User.Name, chosen) {
		return
	}
	if chosen == current {
		respondError(w, http.StatusUnprocessableEntity, "Password must not be the one that you have")
		return
	}
	now := time.Now()
	s, id := a.newSession(l.User.Name, r, now)
	err := a.withPassword(r, l.User.Name, current, a.throttle.session(l.Session.Key), func(u User) error {
		hash, err := a.hashPassword(r.Context(), chosen)
		if err == nil {
			err = recording(a.accounts, act(r, "password set", u.Name)).setPassword(u, hash, s)
		}
		return err
	})
	if err != nil {
		a.fail(w, r, err, http.StatusForbidden, wrongCurrent)
		return
	}
	a.event(r, "password set", l.User.Name)
	a.setCookie(w, id, s, now)
	w.WriteHeader(http.StatusNoContent)
}

const wrongCurrent = "Current password is wrong"

// proofLife is how long a person who has confirmed who they are need not do it
// again for what changes the account.
const proofLife = 5 * time.Minute

// confirmByPassword responds with a proof that the person is there, and not the
// page of a tool on the same host, which has the session too. It is a signature
// that the page keeps in its memory.
func (a *Account) confirmByPassword(w http.ResponseWriter, r *http.Request, l Login, password string) {
	err := a.withPassword(r, l.User.Name, password, a.throttle.session(l.Session.Key), func(User) error { return nil })
	if err != nil {
		a.fail(w, r, err, http.StatusForbidden, wrongCurrent)
		return
	}
	a.respondConfirmed(w, r, l)
}

func (a *Account) respondConfirmed(w http.ResponseWriter, r *http.Request, l Login) {
	a.event(r, "confirmed", l.User.Name)
	expires := seconds(time.Now().Add(proofLife))
	respond(w, http.StatusCreated, struct {
		Proof   string    `json:"proof"`
		Expires time.Time `json:"expires"`
	}{a.signUntil("proof "+l.id.id, "", expires), expires})
}

// requireProof is requireSession for what a session alone may not do.
func (a *Account) requireProof(next http.HandlerFunc) http.Handler {
	return a.requireSession(func(w http.ResponseWriter, r *http.Request) {
		if _, err := a.signedUntil("proof "+loginOf(r).id.id, r.Header.Get("Ringward-Proof"), time.Now()); err != nil {
			respondError(w, http.StatusForbidden, "Confirm that it is you")
			return
		}
		next(w, r)
	})
}

// signUntil returns what shows until then that we wrote the text for a purpose,
// so that nothing has to be kept of it. No cookie has a space in its name.
func (a *Account) signUntil(purpose, text string, until time.Time) string {
	text += ":" + strconv.FormatInt(until.Unix(), 10)
	return text + "." + a.keys[0].sign("ringward "+purpose, text)
}

// signedUntil returns until when what signUntil wrote for that purpose counts. It
// is fs.ErrNotExist for what does not, or not any more.
func (a *Account) signedUntil(purpose, signed string, now time.Time) (until time.Time, err error) {
	text, signature, _ := strings.Cut(signed, ".")
	_, unix, _ := strings.Cut(text, ":")
	n, err := strconv.ParseInt(unix, 10, 64)
	until = time.Unix(n, 0)
	ours := slices.ContainsFunc(a.keys, func(key *signingKey) bool { return key.verify("ringward "+purpose, text, signature) })
	if err != nil || !ours || !now.Before(until) {
		return until, fs.ErrNotExist
	}
	return until, nil
}

// checkNewPassword responds with the rule that a new password breaks, if any.
func (a *Account) checkNewPassword(w http.ResponseWriter, name, password string) bool {
	problem := passwordProblem(name, password, a.minLength)
	if problem != "" {
		respondError(w, http.StatusUnprocessableEntity, problem)
	}
	return problem == ""
}

// handleSessions is GET /auth/sessions.
func (a *Account) handleSessions(w http.ResponseWriter, r *http.Request) {
	l, now := loginOf(r), time.Now()
	live, err := a.accounts.sessions(l.User.Name, now)
	if err != nil {
		a.fail(w, r, err, 0, "")
		return
	}
	shown := []sessionView{}
	for _, s := range live {
		v := viewSession(s)
		if v.Current = s.Key == l.Session.Key; v.Current {
			v.LastSeen = seconds(now)
		}
		shown = append(shown, v)
	}
	respond(w, http.StatusOK, shown)
}

type sessionView struct {
	ID         string    `json:"id"`
	User       string    `json:"username,omitempty"`
	Current    bool      `json:"current"`
	Created    time.Time `json:"created"`
	LastSeen   time.Time `json:"lastSeen"`
	Expires    time.Time `json:"expires"`
	RemoteAddr string    `json:"remoteAddr"`
	UserAgent  string    `json:"userAgent"`
}

func viewSession(s Session) sessionView {
	return sessionView{ID: s.Key.handle(), Created: seconds(s.Created), LastSeen: seconds(s.Seen),
		Expires: seconds(s.expires()), RemoteAddr: s.Addr, UserAgent: printable(s.Agent)}
}

// handleEndSession is DELETE /auth/sessions/{id}.
func (a *Account) handleEndSession(w http.ResponseWriter, r *http.Request) {
	l := loginOf(r)
	own, err := a.accounts.sessions(l.User.Name, time.Now())
	i := slices.IndexFunc(own, func(s Session) bool { return s.Key.handle() == r.PathValue("id") })
	if err == nil && i < 0 {
		err = fs.ErrNotExist
	}
	if err == nil {
		err = recording(a.accounts, act(r, "session ended", l.User.Name)).endSessions(own[i].Key)
	}
	if err != nil {
		a.fail(w, r, err, http.StatusNotFound, "No such session")
		return
	}
	a.event(r, "session ended", l.User.Name)
	if own[i].Key == l.Session.Key {
		a.clearCookie(w)
	}
	w.WriteHeader(http.StatusNoContent)
}

// handleEndSessions is DELETE /auth/sessions.
func (a *Account) handleEndSessions(w http.ResponseWriter, r *http.Request) {
	name := UserOf(r)
	if err := recording(a.accounts, act(r, "all sessions ended", name)).endUserSessions(name); err != nil {
		a.fail(w, r, err, 0, "")
		return
	}
	a.event(r, "all sessions ended", name)
	a.clearCookie(w)
	w.WriteHeader(http.StatusNoContent)
}

// tokenLogin is Auth.tokenLogin.
func (a *Account) tokenLogin(secret string, now time.Time) (Login, error) {
	t, u, err := a.accounts.token(keyOf(secret), now)
	if err != nil {
		return Login{}, err
	}
	used := now.Truncate(usedEvery)
	if used.Before(t.Created) {
		used = t.Created
	}
	if used.After(t.Used) {
		if err := a.accounts.useToken(t.Key, used); errors.Is(err, fs.ErrNotExist) {
			return Login{}, err
		} else if err != nil {
			a.Log.Error("use of token not kept", "error", err)
		}
	}
	return Login{User: u, Token: true, Created: t.Created, Expires: t.Expires}, nil
}

type tokenView struct {
	ID       string     `json:"id"`
	User     string     `json:"username,omitempty"`
	Name     string     `json:"name"`
	Created  time.Time  `json:"created"`
	Expires  *time.Time `json:"expires"`
	LastUsed *time.Time `json:"lastUsed"`
	Token    string     `json:"token,omitempty"` // the secret, when it has just been made
}

func viewToken(t Token) tokenView {
	return tokenView{ID: t.Key.handle(), Name: t.Name, Created: seconds(t.Created), Expires: orNull(t.Expires), LastUsed: orNull(t.Used)}
}

// printable keeps what a browser called itself from writing to a terminal.
func printable(s string) string {
	return strings.Map(func(c rune) rune {
		if unicode.IsPrint(c) {
			return c
		}
		return '?'
	}, s)
}

// handleTokens is GET /auth/tokens.
func (a *Account) handleTokens(w http.ResponseWriter, r *http.Request) {
	own, err := a.accounts.tokens(UserOf(r))
	if err != nil {
		a.fail(w, r, err, 0, "")
		return
	}
	shown := []tokenView{}
	for _, t := range own {
		shown = append(shown, viewToken(t))
	}
	respond(w, http.StatusOK, shown)
}

// handleAddToken is POST /auth/tokens.
func (a *Account) handleAddToken(w http.ResponseWriter, r *http.Request) {
	var name, expires string
	if !readJSON(w, r, fields{"name": &name}, fields{"expires": &expires}) {
		return
	}
	t, secret, err := newToken(UserOf(r), name, expires, time.Now())
	if err == nil {
		err = recording(a.accounts, act(r, "token made", t.User)).addToken(t)
	}
	if problem := tokenProblem(err); problem != "" {
		respondError(w, http.StatusUnprocessableEntity, problem)
		return
	} else if err != nil {
		a.deny(w, r, err) // the user went this instant, or the store failed
		return
	}
	a.event(r, "token made", t.User)
	v := viewToken(t)
	v.Token = secret
	respond(w, http.StatusCreated, v)
}

// errInput is a value that breaks a rule, said to the person who gave it.
type errInput string

func (e errInput) Error() string { return string(e) }

// newToken refuses with errInput. expires is RFC 3339, or "" for never.
func newToken(user, name, expires string, now time.Time) (Token, string, error) {
	if problem := labelProblem(name); problem != "" {
		return Token{}, "", errInput(problem)
	}
	secret, _ := newSecret()
	secret = "rw_" + secret
	t := Token{Key: keyOf(secret), User: user, Name: name, Created: now}
	if expires != "" {
		at, err := time.Parse(time.RFC3339, expires)
		if at = seconds(at); err != nil || !at.After(now) || at.Year() > lastYear {
			return Token{}, "", errInput(fmt.Sprintf("Expires must be an RFC 3339 time that is yet to come, in %d at the latest", lastYear))
		}
		t.Expires = at
	}
	return t, secret, nil
}

// labelProblem returns the rule that a token's or a passkey's name breaks, or "".
func labelProblem(name string) string {
	if strings.TrimSpace(name) == "" || len(name) > maxTokenName || !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl) {
		return fmt.Sprintf("Name must have 1 to %d bytes and no control characters", maxTokenName)
	}
	return ""
}

// tokenProblem is what a person can mend about a token that was not added.
func tokenProblem(err error) string {
	var input errInput
	switch {
	case errors.As(err, &input):
		return string(input)
	case errors.Is(err, fs.ErrExist):
		return "There is a token of that name"
	case errors.Is(err, errTooMany):
		return fmt.Sprintf("There are %d tokens already", maxTokens)
	}
	return ""
}

// handleRemoveToken is DELETE /auth/tokens/{id}.
func (a *Account) handleRemoveToken(w http.ResponseWriter, r *http.Request) {
	name := UserOf(r)
	own, err := a.accounts.tokens(name)
	i := slices.IndexFunc(own, func(t Token) bool { return t.Key.handle() == r.PathValue("id") })
	if err == nil && i < 0 {
		err = fs.ErrNotExist
	}
	if err == nil {
		err = recording(a.accounts, act(r, "token removed", name)).removeToken(own[i].Key)
	}
	if err != nil {
		a.fail(w, r, err, http.StatusNotFound, "No such token")
		return
	}
	a.event(r, "token removed", name)
	w.WriteHeader(http.StatusNoContent)
}

// newInvite makes an invite that is not in the store yet, and its secret.
func newInvite(user string, now time.Time) (Invite, string) {
	secret, key := newSecret()
	return Invite{Key: key, User: user, Created: now, Expires: now.Add(inviteLife)}, secret
}

const noInvite = "This invite is unknown, used or expired"

// handleInvite is GET /auth/invites/{token}.
func (a *Account) handleInvite(w http.ResponseWriter, r *http.Request) {
	i, err := a.accounts.invite(keyOf(r.PathValue("token")), time.Now())
	if err != nil {
		a.fail(w, r, err, http.StatusNotFound, noInvite)
		return
	}
	respond(w, http.StatusOK, struct {
		Username string    `json:"username"`
		Expires  time.Time `json:"expires"`
	}{i.User, seconds(i.Expires)})
}

// handleAcceptInvite is POST /auth/invites/{token}.
func (a *Account) handleAcceptInvite(w http.ResponseWriter, r *http.Request) {
	var password, username string
	if !a.readSameSite(w, r, fields{"password": &password}, fields{"username": &username}) {
		return
	}
	i, err := a.accounts.invite(keyOf(r.PathValue("token")), time.Now())
	if err != nil {
		a.fail(w, r, err, http.StatusNotFound, noInvite)
		return
	}
	name, ok := i.User, true
	if name == "" {
		if name, ok = canonicalName(username); !ok {
			respondError(w, http.StatusUnprocessableEntity, nameProblem)
			return
		}
	} else if username != "" {
		respondError(w, http.StatusBadRequest, "Malformed request body", "this invite has its username")
		return
	}
	if !a.checkNewPassword(w, name, password) {
		return
	}
	now := time.Now()
	u := User{Name: name, Created: now}
	if i.User != "" {
		u, err = a.accounts.user(name)
	}
	if err == nil {
		u.Hash, err = a.hashPassword(r.Context(), password)
	}
	var pending any
	if err == nil && a.factor != nil {
		pending, err = a.factor.next(u, now)
	}
	s, id := Session{}, ""
	if pending == nil {
		s, id = a.newSession(name, r, now)
	}
	if err == nil {
		err = recording(a.accounts, act(r, "invite used", name)).acceptInvite(i.Key, now, u, s, a.sessionKeys(r))
	}
	if err != nil {
		a.fail(w, r, err, http.StatusNotFound, noInvite)
		return
	}
	if i.User == "" {
		a.event(r, "user added", name)
	}
	a.event(r, "invite used", name)
	a.event(r, "password set", name)
	if pending != nil {
		respond(w, http.StatusAccepted, pending)
		return
	}
	a.respondLoggedIn(w, r, s, id)
}

const nameProblem = "Username must be small letters, digits, and . _ @ -, beginning with a letter or digit, at most 64"
