// session.go: sessions and their cookie. Nothing here knows passwords or reads
// configuration.
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
	"fmt"
	"hash"
	"io/fs"
	"net/http"
	"strings"
	"sync"
	"time"
)

// newSecret returns 256 random bits as 43 characters of base64url, and the key
// under which the store knows them.
func newSecret() (string, Key) {
	var b [32]byte
	rand.Read(b[:])
	secret := base64.RawURLEncoding.EncodeToString(b[:])
	return secret, keyOf(secret)
}

func keyOf(secret string) Key { return sha256.Sum256([]byte(secret)) }

// cookieName has the prefix that makes browsers refuse the cookie from a
// sibling host or over http (RFC 6265bis section 4.1.3).
func (a *Auth) cookieName() string {
	switch {
	case a.Secure && a.CookieDomain != "":
		return "__Secure-" + a.CookieName
	case a.Secure:
		return "__Host-" + a.CookieName
	}
	return a.CookieName
}

// newSession makes a session that is not in the store yet, and its id.
func (a *Auth) newSession(user string, r *http.Request, now time.Time) (Session, string) {
	id, key := newSecret()
	agent, end := r.UserAgent(), now.Add(a.Max)
	return Session{Key: key, User: user, Created: now, Seen: now, Idle: earlier(now.Add(a.Idle), end), End: end,
		Addr: clientAddr(r), Agent: strings.ToValidUTF8(agent[:min(len(agent), maxAgent)], "")}, id
}

// fromCookie returns who the request's cookie belongs to, or fs.ErrNotExist.
func (a *Auth) fromCookie(r *http.Request, now time.Time) (Login, error) {
	ids := a.signedIDs(r)
	if len(ids) > 1 { // one of them may be somebody else's
		return Login{}, errSeveralCookies
	} else if len(ids) == 0 {
		return Login{}, fs.ErrNotExist
	}
	s, u, err := a.store.session(keyOf(ids[0].id), now)
	return Login{User: u, Session: s, Created: s.Created, Expires: s.expires(), id: ids[0]}, err
}

// renew moves the idle end of a session whose cookie was set more than half of
// the idle time ago, and sets the cookie again after that or where an older key
// signed it. A session that ended meanwhile is fs.ErrNotExist. After any other
// error the session is what it was, which is no reason to refuse the request.
func (a *Auth) renew(w http.ResponseWriter, l *Login, now time.Time) (err error) {
	idle := earlier(now.Add(a.Idle), l.Session.End)
	due := now.Sub(l.Session.Seen) > a.Idle/2 && !idle.Before(l.Session.Idle)
	if due {
		if err = a.store.renew(l.Session.Key, now, now, idle); err == nil {
			l.Session.Seen, l.Session.Idle, l.Expires = now, idle, idle
		}
	}
	if due && err == nil || l.id.oldKey {
		a.setCookie(w, l.id.id, l.Session, now)
	}
	return err
}

// keepAlive moves the idle end of a session in use where no cookie can be set.
// Seen stays, so that the next request that can sets it.
func (a *Auth) keepAlive(l Login, now time.Time) error {
	if l.Session.User == "" { // a token, or nobody
		return nil
	}
	s, _, err := a.store.session(l.Session.Key, now)
	if err == nil && s.Idle.Sub(now) < a.Idle/2 {
		err = a.store.renew(s.Key, now, s.Seen, earlier(now.Add(a.Idle), s.End))
	}
	return err
}

// errSeveralCookies is a case of fs.ErrNotExist.
var errSeveralCookies = fmt.Errorf("several cookies of a session: %w", fs.ErrNotExist)

func (a *Auth) setCookie(w http.ResponseWriter, id string, s Session, now time.Time) {
	name := a.cookieName()
	a.writeCookie(w, name, id+"."+a.keys[0].sign(name, id), max(1, int(s.expires().Sub(now)/time.Second)))
}

// clearCookie also has the browser forget what it has kept of pages.
func (a *Auth) clearCookie(w http.ResponseWriter) {
	a.writeCookie(w, a.cookieName(), "", -1)
	w.Header().Set("Clear-Site-Data", `"cache"`)
}

// writeCookie takes the place of a cookie of that name that is there already.
func (a *Auth) writeCookie(w http.ResponseWriter, name, value string, maxAge int) {
	others := w.Header()["Set-Cookie"]
	w.Header().Del("Set-Cookie")
	for _, c := range others {
		if !strings.HasPrefix(c, name+"=") {
			w.Header().Add("Set-Cookie", c)
		}
	}
	http.SetCookie(w, &http.Cookie{Name: name, Value: value, Path: "/", Domain: a.CookieDomain, MaxAge: maxAge,
		HttpOnly: true, Secure: a.Secure, SameSite: http.SameSiteLaxMode})
}

// signedID is the id of a cookie that one of our keys signed.
type signedID struct {
	id     string
	oldKey bool // not by the first key: the cookie has to be signed anew
}

// signedIDs returns those of all cookies of our name. What anybody else put
// there is as if it were not there.
func (a *Auth) signedIDs(r *http.Request) (ids []signedID) {
	name := a.cookieName()
	for _, line := range r.Header["Cookie"] {
		for part := range strings.SplitSeq(line, ";") {
			value, named := strings.CutPrefix(strings.Trim(part, " \t"), name)
			if !named || !strings.HasPrefix(value, "=") {
				continue
			}
			id, signature, _ := strings.Cut(value[1:], ".")
			for i, key := range a.keys {
				if key.verify(name, id, signature) {
					ids = append(ids, signedID{id, i > 0})
					break
				}
			}
		}
	}
	return ids
}

// sessionKeys returns what the store knows the request's cookies by.
func (a *Auth) sessionKeys(r *http.Request) (keys []Key) {
	for _, signed := range a.signedIDs(r) {
		keys = append(keys, keyOf(signed.id))
	}
	return keys
}

// signingKey keeps HMAC states that have taken in the key already.
type signingKey struct {
	text string
	macs sync.Pool
}

type mac struct {
	hash.Hash
	buf []byte
}

func newSigningKey(key string) *signingKey {
	return &signingKey{key, sync.Pool{New: func() any { return &mac{Hash: hmac.New(sha256.New, []byte(key))} }}}
}

func (k *signingKey) sign(name, id string) string {
	m := k.macs.Get().(*mac)
	defer k.macs.Put(m)
	return string(m.signature(name, id))
}

// verify takes the same time wherever a signature is wrong. Only the exact
// text counts: decoding it first would let several texts pass.
func (k *signingKey) verify(name, id, signature string) bool {
	m := k.macs.Get().(*mac)
	defer k.macs.Put(m)
	return hmac.Equal(m.signature(name, id), []byte(signature))
}

// signature is valid until the next call.
func (m *mac) signature(name, id string) []byte {
	m.Reset()
	m.buf = append(append(append(m.buf[:0], name...), '='), id...)
	m.Write(m.buf)
	m.buf = m.Sum(m.buf[:0])
	n := len(m.buf)
	m.buf = base64.RawURLEncoding.AppendEncode(m.buf, m.buf)
	return m.buf[n:]
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}
