// token.go: API tokens, with which scripts come in without a session.
package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	bolt "go.etcd.io/bbolt"
)

const (
	maxTokens    = 100       // of one user
	maxTokenName = 64        // bytes
	usedEvery    = time.Hour // how exact Token.Used is, so that reading costs one write an hour
	lastYear     = 2261      // the last whole one that fits into 64 bits of nanoseconds since 1970
)

// errTooMany is a limit that keeps one user from filling the store.
var errTooMany = errors.New("there are too many")

// Token lets a script in without a session.
type Token struct {
	Key     Key
	User    string
	Name    string // unique among the user's tokens, 1 to maxTokenName bytes
	Created time.Time
	Expires time.Time // zero: never
	Used    time.Time // zero: never; kept to the hour
}

// tokenStore is the part of the Store that this file needs, with the same
// promises.
type tokenStore interface {
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
}

func (b *BoltStore) addToken(t Token) error {
	return b.update(func(tx *bolt.Tx) error {
		if err := mayLogIn(tx, t.User); err != nil {
			return err
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
			return unlessAbsent(err)
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
