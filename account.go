// account.go: what people do with their own account over JSON: their sessions,
// their password, and showing once more who they are.
package main

import (
	"io/fs"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	bolt "go.etcd.io/bbolt"
)

// accountStore is the part of the Store that this file needs, with the same
// promises.
type accountStore interface {
	Store
	tokenStore
	inviteStore
	// empty says whether there are no users.
	empty() (bool, error)
	// setPassword replaces the hash of a user verified as in login, ends every
	// session and invite of the user, and starts s.
	setPassword(was User, hash string, s Session) error
	// endUserSessions is for everybody's with "".
	endUserSessions(user string) error
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
	err := a.withPassword(r, l.User.Name, current, a.throttle.sessionLimits(l.Session.Key), func(u User) error {
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
	err := a.withPassword(r, l.User.Name, password, a.throttle.sessionLimits(l.Session.Key), func(User) error { return nil })
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

// errInput is a value that breaks a rule, said to the person who gave it.
type errInput string

func (e errInput) Error() string { return string(e) }

const nameProblem = "Username must be small letters, digits, and . _ @ -, beginning with a letter or digit, at most 64"
