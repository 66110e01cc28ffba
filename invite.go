// invite.go: one-time links with which a person sets a password.
package main

import (
	"errors"
	"io/fs"
	"net/http"
	"time"

	bolt "go.etcd.io/bbolt"
)

// Invite lets a person set a password, once. An empty User is the invite of an
// empty store, whose taker chooses the name.
type Invite struct {
	Key     Key
	User    string
	Created time.Time
	Expires time.Time
}

// inviteStore is the part of the Store that this file needs, with the same
// promises.
type inviteStore interface {
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

const inviteLife = 24 * time.Hour

func (b *BoltStore) addInvite(i Invite) error {
	return b.update(func(tx *bolt.Tx) error {
		if err := mayLogIn(tx, i.User); err != nil {
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
		return startSession(tx, s, ends...)
	})
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
	return i, mayLogIn(tx, i.User)
}

// mayLogIn is fs.ErrNotExist for a user who is not there or disabled, and for
// the first one ("") where there are users.
func mayLogIn(tx *bolt.Tx, name string) error {
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

// newInvite makes an invite that is not in the store yet, and its secret.
func newInvite(user string, now time.Time) (Invite, string) {
	secret, key := newSecret()
	return Invite{Key: key, User: user, Created: now, Expires: now.Add(inviteLife)}, secret
}

// passkeyLogin is in place of a pending login where the password alone opens
// nothing.
type passkeyLogin struct {
	Username string `json:"username"`
	Passkey  bool   `json:"passkey"`
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
		var no *refusal
		if pending, err = a.factor.pendingFor(u, now); errors.As(err, &no) { // the password is set all the same: it is not what is refused
			pending, err = passkeyLogin{name, true}, nil
		}
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
