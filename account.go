// account.go: what people do with their own account over JSON: their sessions,
// their API tokens, and the invites with which they set a first or a lost
// password. The records, their part of the Store, and the handlers.
package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
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
	By      Key       // the session that asks for it; zero: the operator; not kept
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
	// sessions answers the live sessions of one user, the oldest first, or of
	// all for "".
	sessions(user string, now time.Time) ([]Session, error)
	endSessions(user string) error

	// addToken is fs.ErrExist where the user has a token of that name,
	// errTooMany, and fs.ErrNotExist where t.By has ended: it must not live on
	// in a token.
	addToken(t Token) error
	// tokens answers those of one user, the oldest first, or of all for "",
	// expired ones too.
	tokens(user string) ([]Token, error)
	// token answers one that has not expired, and its user, who is not disabled.
	token(k Key, now time.Time) (Token, User, error)
	// useToken keeps when a token was used, and never brings back a removed one.
	useToken(k Key, now time.Time) error
	removeToken(k Key) error

	// addInvite replaces the user's older invites, but leaves those of an empty
	// store. It is fs.ErrNotExist where the user is not there or disabled, or
	// where it has no user and the store has.
	addInvite(i Invite) error
	// invite answers one that can be accepted now.
	invite(k Key, now time.Time) (Invite, error)
	// acceptInvite, in one transaction, uses the invite up, gives u.Hash to its
	// user (or makes u, if the invite has none), ends all that the user could
	// get in with and the session under ends, and starts s.
	acceptInvite(k Key, u User, s Session, ends Key) error
}

func (b *boltStore) sessions(user string, now time.Time) (live []Session, err error) {
	err = b.view(func(tx *bolt.Tx) error {
		return eachKey(tx, kindSession, user, func(k Key) error {
			s, err := getLive(tx, k, now)
			if err == nil {
				live = append(live, s)
			}
			return present(err)
		})
	})
	return live, err
}

// present is err unless that says that something is not there.
func present(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (b *boltStore) endSessions(user string) error {
	return b.update(func(tx *bolt.Tx) error { return dropOwned(tx, user, kindSession) })
}

func (b *boltStore) addToken(t Token) error {
	return b.update(func(tx *bolt.Tx) error {
		if u, err := getUser(tx, t.User); err != nil || u.Disabled {
			return errors.Join(err, fs.ErrNotExist)
		}
		if t.By != (Key{}) {
			if _, err := getLive(tx, t.By, t.Created); err != nil {
				return err
			}
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

func (b *boltStore) tokens(user string) (all []Token, err error) {
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

func (b *boltStore) token(k Key, now time.Time) (t Token, u User, err error) {
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

func (b *boltStore) useToken(k Key, now time.Time) error {
	return b.update(func(tx *bolt.Tx) error {
		t, err := getToken(tx, k)
		if err != nil {
			return err
		}
		t.Used = now
		return putToken(tx, t)
	})
}

func (b *boltStore) removeToken(k Key) error {
	return b.update(func(tx *bolt.Tx) error { return drop(tx, kindToken, k) })
}

func (b *boltStore) addInvite(i Invite) error {
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

func (b *boltStore) invite(k Key, now time.Time) (i Invite, err error) {
	err = b.view(func(tx *bolt.Tx) error { i, err = getInvite(tx, k, now); return err })
	return i, err
}

func (b *boltStore) acceptInvite(k Key, u User, s Session, ends Key) error {
	return b.update(func(tx *bolt.Tx) error {
		i, err := getInvite(tx, k, s.Created)
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
		if err := drop(tx, kindSession, ends); err != nil {
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

// Account is the handlers of this file.
type Account struct {
	*Auth
	store accountStore
}

// newAccount also teaches auth to let tokens in.
func newAccount(auth *Auth, store accountStore) *Account {
	a := &Account{auth, store}
	auth.token = a.tokenLogin
	return a
}

// handleSessions is GET /auth/sessions.
func (a *Account) handleSessions(w http.ResponseWriter, r *http.Request) {
	l, now := loginOf(r), time.Now()
	live, err := a.store.sessions(l.User.Name, now)
	if err != nil {
		a.unavailable(w, r, err)
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
	writeData(w, http.StatusOK, shown)
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
	own, err := a.store.sessions(l.User.Name, time.Now())
	if err != nil {
		a.unavailable(w, r, err)
		return
	}
	for _, s := range own {
		if s.Key.handle() != r.PathValue("id") {
			continue
		}
		if err := a.store.endSession(s.Key); err != nil {
			a.unavailable(w, r, err)
			return
		}
		a.event(r, "session ended", l.User.Name)
		if s.Key == l.Session.Key {
			a.Auth.sessions.clearCookie(w)
		}
		w.WriteHeader(http.StatusNoContent)
		return
	}
	writeError(w, http.StatusNotFound, "No such session")
}

// handleEndSessions is DELETE /auth/sessions.
func (a *Account) handleEndSessions(w http.ResponseWriter, r *http.Request) {
	name := loginOf(r).User.Name
	if err := a.store.endSessions(name); err != nil {
		a.unavailable(w, r, err)
		return
	}
	a.event(r, "all sessions ended", name)
	a.Auth.sessions.clearCookie(w)
	w.WriteHeader(http.StatusNoContent)
}

// tokenLogin is Auth.token.
func (a *Account) tokenLogin(secret string, now time.Time) (Login, error) {
	t, u, err := a.store.token(keyOf(secret), now)
	if err != nil {
		return Login{}, err
	}
	if used := now.Truncate(usedEvery); used.After(t.Used) {
		if err := a.store.useToken(t.Key, used); errors.Is(err, fs.ErrNotExist) {
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
	own, err := a.store.tokens(loginOf(r).User.Name)
	if err != nil {
		a.unavailable(w, r, err)
		return
	}
	shown := []tokenView{}
	for _, t := range own {
		shown = append(shown, viewToken(t))
	}
	writeData(w, http.StatusOK, shown)
}

// handleAddToken is POST /auth/tokens.
func (a *Account) handleAddToken(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Name    string `json:"name"`
		Expires string `json:"expires,omitempty"`
	}
	if !readJSON(w, r, &in) {
		return
	}
	l := loginOf(r)
	t, secret, err := newToken(l.User.Name, in.Name, in.Expires, time.Now())
	if t.By = l.Session.Key; err == nil {
		err = a.store.addToken(t)
	}
	if problem := tokenProblem(err); problem != "" {
		writeError(w, http.StatusUnprocessableEntity, problem)
		return
	} else if errors.Is(err, fs.ErrNotExist) { // the user went or the session ended while the body came
		a.deny(w, r, err)
		return
	} else if err != nil {
		a.unavailable(w, r, err)
		return
	}
	a.event(r, "token made", t.User)
	v := viewToken(t)
	v.Token = secret
	writeData(w, http.StatusCreated, v)
}

// errInput is a value that breaks a rule, said to the person who gave it.
type errInput string

func (e errInput) Error() string { return string(e) }

// newToken refuses with errInput. expires is RFC 3339, or "" for never.
func newToken(user, name, expires string, now time.Time) (Token, string, error) {
	if strings.TrimSpace(name) == "" || len(name) > maxTokenName || !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl) {
		return Token{}, "", errInput(fmt.Sprintf("Name must have 1 to %d bytes and no control characters", maxTokenName))
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
	name := loginOf(r).User.Name
	own, err := a.store.tokens(name)
	if err != nil {
		a.unavailable(w, r, err)
		return
	}
	for _, t := range own {
		if t.Key.handle() != r.PathValue("id") {
			continue
		}
		if err := a.store.removeToken(t.Key); err != nil {
			a.unavailable(w, r, err)
			return
		}
		a.event(r, "token removed", name)
		w.WriteHeader(http.StatusNoContent)
		return
	}
	writeError(w, http.StatusNotFound, "No such token")
}

// newInvite makes an invite that is not in the store yet, and its secret.
func newInvite(user string, now time.Time) (Invite, string) {
	secret, key := newSecret()
	return Invite{Key: key, User: user, Created: now, Expires: now.Add(inviteLife)}, secret
}

// findInvite answers the invite in the path, or has answered the request.
func (a *Account) findInvite(w http.ResponseWriter, r *http.Request) (Invite, bool) {
	i, err := a.store.invite(keyOf(r.PathValue("token")), time.Now())
	if err != nil {
		a.refuseInvite(w, r, err)
	}
	return i, err == nil
}

func (a *Account) refuseInvite(w http.ResponseWriter, r *http.Request, err error) {
	if errors.Is(err, fs.ErrNotExist) {
		writeError(w, http.StatusNotFound, "This invite is unknown, used or expired")
		return
	}
	a.unavailable(w, r, err)
}

// handleInvite is GET /auth/invites/{token}.
func (a *Account) handleInvite(w http.ResponseWriter, r *http.Request) {
	i, ok := a.findInvite(w, r)
	if !ok {
		return
	}
	writeData(w, http.StatusOK, struct {
		Username string    `json:"username"`
		Expires  time.Time `json:"expires"`
	}{i.User, seconds(i.Expires)})
}

// handleAcceptInvite is POST /auth/invites/{token}.
func (a *Account) handleAcceptInvite(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Password string `json:"password"`
		Username string `json:"username,omitempty"`
	}
	if !a.sameSite(w, r) || !readJSON(w, r, &in) {
		return
	}
	i, ok := a.findInvite(w, r)
	if !ok {
		return
	}
	name := i.User
	if name == "" {
		if name, ok = canonicalName(in.Username); !ok {
			writeError(w, http.StatusUnprocessableEntity, nameProblem)
			return
		}
	} else if in.Username != "" {
		writeError(w, http.StatusBadRequest, "Malformed request body", "this invite has its username")
		return
	}
	if !a.accepts(w, name, in.Password) {
		return
	}
	hash, ok := a.hash(w, r, in.Password)
	if !ok {
		return
	}
	now := time.Now()
	old, _ := a.Auth.sessions.find(r, now)
	s, id := a.Auth.sessions.next(name, a.clientAddr(r), r.UserAgent(), now)
	if err := a.store.acceptInvite(i.Key, User{Name: name, Hash: hash, Created: now}, s, old.Session.Key); err != nil {
		a.refuseInvite(w, r, err)
		return
	}
	if i.User == "" {
		a.event(r, "user added", name)
	}
	a.event(r, "invite used", name)
	a.event(r, "password set", name)
	a.welcome(w, r, s, id, now)
}

const nameProblem = "Username must be 1 to 64 of a-z 0-9 . _ @ - and begin with a letter or digit"
