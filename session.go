// session.go: sessions and their cookie. Nothing here knows passwords, writes
// answers or reads configuration.
//
// The cookie is NAME=ID.SIGNATURE. ID is 256 random bits, SIGNATURE is
// HMAC-SHA256 over NAME=ID, both base64url without padding. The signature is
// verified before the store is asked, so strangers cost no read and make no
// record.
package main

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"net/http"
	"strings"
	"sync"
	"time"
)

// minKey is the least length of a signing key in bytes, as long as its MAC
// (RFC 2104 section 3).
const minKey = 32

// Sessions says how long sessions last and what their cookie looks like. Set
// the fields before the first request.
type Sessions struct {
	Idle   time.Duration // a session ends when it is not used for so long
	Max    time.Duration // and so long after login in any case
	Secure bool          // browsers reach us by https: the cookie is for https only
	Domain string        // the cookie goes to every host under this domain; "" is this host only

	store Store
	keys  []*signingKey
}

// newSessions signs with the first key and verifies with all of them. A key is
// used as its text stands.
func newSessions(store Store, keys []string) (*Sessions, error) {
	s := &Sessions{Idle: 24 * time.Hour, Max: 720 * time.Hour, store: store}
	for i, key := range keys {
		if len(key) < minKey {
			return nil, fmt.Errorf("signing key %d of %d has %d bytes, at least %d are needed", i+1, len(keys), len(key), minKey)
		}
		s.keys = append(s.keys, newSigningKey(key))
	}
	if len(s.keys) == 0 {
		return nil, errors.New("no signing key")
	}
	return s, nil
}

// cookieName has the prefix that makes browsers refuse the cookie from a
// sibling host or over http (RFC 6265bis section 4.1.3).
func (s *Sessions) cookieName() string {
	switch {
	case s.Secure && s.Domain != "":
		return "__Secure-ringward"
	case s.Secure:
		return "__Host-ringward"
	}
	return "ringward"
}

// newSecret answers 256 random bits as 43 characters of base64url, and the key
// under which the store knows them.
func newSecret() (string, Key) {
	var b [32]byte
	rand.Read(b[:])
	secret := base64.RawURLEncoding.EncodeToString(b[:])
	return secret, keyOf(secret)
}

func keyOf(secret string) Key { return sha256.Sum256([]byte(secret)) }

// next makes a session that is not in the store yet, and its id.
func (s *Sessions) next(user, addr, agent string, now time.Time) (Session, string) {
	id, key := newSecret()
	end := now.Add(s.Max)
	return Session{Key: key, User: user, Created: now, Seen: now, Idle: earlier(now.Add(s.Idle), end), End: end,
		Addr: addr, Agent: strings.ToValidUTF8(agent[:min(len(agent), maxAgent)], "")}, id
}

// Login is who a request comes from, by cookie or by token.
type Login struct {
	User    User
	Session Session   // zero where a token let them in
	Token   bool      // let in by an API token, which may not manage the account
	Created time.Time // of the session or the token
	Expires time.Time // likewise; zero: never

	id    string // the secret of the session
	stale bool   // its cookie must be signed anew: an older key did it
}

// find answers who the request's cookie belongs to, or fs.ErrNotExist.
func (s *Sessions) find(r *http.Request, now time.Time) (Login, error) {
	id, stale, ok := s.readID(r)
	if !ok {
		return Login{}, fs.ErrNotExist
	}
	found, u, err := s.store.session(keyOf(id), now)
	return Login{User: u, Session: found, Created: found.Created, Expires: found.expires(), id: id, stale: stale}, err
}

// keep renews a session of which less than half of the idle time is left, and
// sets the cookie again after that or where an older key signed it. A session
// that ended meanwhile is fs.ErrNotExist. After any other error the session is
// what it was, which is no reason to refuse the request.
func (s *Sessions) keep(w http.ResponseWriter, l *Login, now time.Time) (err error) {
	idle := earlier(now.Add(s.Idle), l.Session.End)
	if l.Session.Idle.Sub(now) < s.Idle/2 && idle.After(l.Session.Idle) {
		if err = s.store.renew(l.Session.Key, now, idle); err == nil {
			l.Session.Seen, l.Session.Idle, l.Expires, l.stale = now, idle, idle, true
		}
	}
	if l.stale {
		s.setCookie(w, l.id, l.Session, now)
	}
	return err
}

// setCookie is the only cookie of its name in the answer.
func (s *Sessions) setCookie(w http.ResponseWriter, id string, found Session, now time.Time) {
	name := s.cookieName()
	s.writeCookie(w, name, id+"."+s.keys[0].sign(name, id), max(1, int(found.expires().Sub(now)/time.Second)))
}

func (s *Sessions) clearCookie(w http.ResponseWriter) { s.writeCookie(w, s.cookieName(), "", -1) }

func (s *Sessions) writeCookie(w http.ResponseWriter, name, value string, maxAge int) {
	others := w.Header()["Set-Cookie"]
	w.Header().Del("Set-Cookie")
	for _, c := range others {
		if !strings.HasPrefix(c, name+"=") {
			w.Header().Add("Set-Cookie", c)
		}
	}
	http.SetCookie(w, &http.Cookie{Name: name, Value: value, Path: "/", Domain: s.Domain, MaxAge: maxAge,
		HttpOnly: true, Secure: s.Secure, SameSite: http.SameSiteLaxMode})
}

// readID answers the id of a cookie that one of our keys signed.
func (s *Sessions) readID(r *http.Request) (id string, stale, ok bool) {
	name := s.cookieName()
	value, ok := soleCookie(r.Header["Cookie"], name)
	if !ok {
		return "", false, false
	}
	id, signature, ok := strings.Cut(value, ".")
	if !ok {
		return "", false, false
	}
	for i, key := range s.keys {
		if key.verify(name, id, signature) {
			return id, i > 0, true
		}
	}
	return "", false, false
}

// soleCookie answers the value of the cookie of that name as it stands. Two of
// the name are none: a sibling host or a man in the middle may have added one.
func soleCookie(lines []string, name string) (value string, ok bool) {
	for _, line := range lines {
		for len(line) > 0 {
			var part string
			part, line, _ = strings.Cut(line, ";")
			part = strings.Trim(part, " \t")
			if rest, named := strings.CutPrefix(part, name); named && strings.HasPrefix(rest, "=") {
				if ok {
					return "", false
				}
				value, ok = rest[1:], true
			}
		}
	}
	return value, ok
}

// signingKey keeps HMAC states that have taken in the key already.
type signingKey struct{ macs sync.Pool }

type mac struct {
	hash.Hash
	message []byte
	text    [43]byte // base64url of 32 bytes
}

func newSigningKey(key string) *signingKey {
	return &signingKey{sync.Pool{New: func() any { return &mac{Hash: hmac.New(sha256.New, []byte(key))} }}}
}

func (k *signingKey) sign(name, value string) string {
	m := k.macs.Get().(*mac)
	defer k.macs.Put(m)
	return string(m.signature(name, value))
}

// verify takes the same time wherever a signature is wrong. Only the exact
// text counts: decoding it first would let several texts pass.
func (k *signingKey) verify(name, value, signature string) bool {
	m := k.macs.Get().(*mac)
	defer k.macs.Put(m)
	return hmac.Equal(m.signature(name, value), []byte(signature))
}

func (m *mac) signature(name, value string) []byte {
	m.Reset()
	m.message = append(append(append(m.message[:0], name...), '='), value...)
	m.Write(m.message)
	m.message = m.Sum(m.message[:0])
	base64.RawURLEncoding.Encode(m.text[:], m.message)
	return m.text[:]
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}
