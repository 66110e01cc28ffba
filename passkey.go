// passkey.go: passkeys (WebAuthn Level 2). A browser gives the public key as
// SubjectPublicKeyInfo and the authenticator data as it is, so that no CBOR has
// to be read; who makes a key available is not asked (attestation none).
package main

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"slices"
	"time"
)

// Passkey is a WebAuthn credential.
type Passkey struct {
	Key       Key       `json:"key"`  // SHA-256 of the id
	ID        string    `json:"id"`   // base64url
	Name      string    `json:"name"` // 1 to maxTokenName bytes
	PublicKey []byte    `json:"publicKey"`
	Count     uint32    `json:"count"` // of the authenticator, when it was last used; 0: it does not count
	Created   time.Time `json:"created"`
	Used      time.Time `json:"used"` // zero: never
}

const maxPasskeys = 20 // of one user

const challengeLife = 5 * time.Minute

// relyingParty is what passkeys are bound to: the widest name that has the
// session's cookie.
func (f *Factor) relyingParty() string {
	switch {
	case f.CookieDomain != "":
		return f.CookieDomain
	case f.public != nil:
		return f.public.Hostname()
	}
	return "localhost"
}

// origin is that of the pages which may use passkeys.
func (f *Factor) origin(r *http.Request) string {
	switch {
	case f.public != nil:
		return f.public.String()
	case r.TLS != nil:
		return "https://" + r.Host
	}
	return "http://" + r.Host
}

// ceremony is what a browser sends of either kind, base64url, after it was
// checked.
type ceremony struct {
	credential []byte // id
	challenge  string
	until      time.Time // the challenge counts until then
	count      uint32
	signed     []byte // what the authenticator signs
}

const (
	flagPresent  = 1 << 0
	flagVerified = 1 << 2
	flagAttested = 1 << 6 // a new passkey follows
)

var errCeremony = fmt.Errorf("passkey refused: %w", fs.ErrNotExist)

// readCeremony returns errCeremony for what is not a passkey's answer to one of our
// challenges for the purpose, from a page of ours, by a verified person.
func (f *Factor) readCeremony(r *http.Request, kind, purpose, id, clientData, authData string, now time.Time) (c ceremony, err error) {
	raw, err := base64.RawURLEncoding.DecodeString(id)
	client, err2 := base64.RawURLEncoding.DecodeString(clientData)
	auth, err3 := base64.RawURLEncoding.DecodeString(authData)
	var said struct {
		Type, Challenge, Origin string
		CrossOrigin             bool
	}
	if err != nil || err2 != nil || err3 != nil || len(raw) == 0 || len(raw) > 1023 || len(auth) < 37 || json.Unmarshal(client, &said) != nil {
		return c, errCeremony
	}
	challenge, err := base64.RawURLEncoding.DecodeString(said.Challenge)
	c.credential, c.challenge, c.count = raw, string(challenge), binary.BigEndian.Uint32(auth[33:])
	c.until, err2 = f.signedUntil("challenge "+purpose, c.challenge, now)
	if err != nil || err2 != nil {
		return c, errCeremony
	}
	party, flags := sha256.Sum256([]byte(f.relyingParty())), auth[32]
	// What may follow is 16 bytes of the authenticator's model, then the id with
	// its length, then more.
	follows := append(binary.BigEndian.AppendUint16(nil, uint16(len(raw))), raw...)
	attested := len(auth) > 53 && bytes.HasPrefix(auth[53:], follows)
	if said.Type != kind || said.CrossOrigin || said.Origin != f.origin(r) || !bytes.Equal(auth[:32], party[:]) ||
		flags&flagPresent == 0 || flags&flagVerified == 0 || (flags&flagAttested != 0) != attested || kind == "webauthn.create" && !attested {
		return c, errCeremony
	}
	hash := sha256.Sum256(client)
	c.signed = append(auth, hash[:]...)
	return c, nil
}

// verifier returns what says whether a signature is by the key, or nil for a key
// of none of the kinds that the page asks for: ES256, EdDSA, RS256.
func verifier(der []byte) func(signed, signature []byte) bool {
	key, err := x509.ParsePKIXPublicKey(der)
	if err != nil { // then the key may be one that is nil
		return nil
	}
	switch key := key.(type) {
	case *ecdsa.PublicKey:
		if key.Curve == elliptic.P256() {
			return func(signed, signature []byte) bool {
				hash := sha256.Sum256(signed)
				return ecdsa.VerifyASN1(key, hash[:], signature)
			}
		}
	case ed25519.PublicKey:
		return func(signed, signature []byte) bool { return ed25519.Verify(key, signed, signature) }
	case *rsa.PublicKey:
		if bits := key.N.BitLen(); 2048 <= bits && bits <= 4096 {
			return func(signed, signature []byte) bool {
				hash := sha256.Sum256(signed)
				return rsa.VerifyPKCS1v15(key, crypto.SHA256, hash[:], signature) == nil
			}
		}
	}
	return nil
}

// passkeyOptions is what the page needs to call the browser.
type passkeyOptions struct {
	Challenge string   `json:"challenge"` // base64url, as the ids
	RPID      string   `json:"rpId"`
	Timeout   int64    `json:"timeout"` // milliseconds
	UserID    string   `json:"userId,omitempty"`
	Username  string   `json:"username,omitempty"`
	Exclude   []string `json:"exclude,omitempty"` // keys that the user has
}

func (f *Factor) options(purpose string) passkeyOptions {
	challenge := f.signUntil("challenge "+purpose, rand.Text(), time.Now().Add(challengeLife))
	return passkeyOptions{Challenge: base64.RawURLEncoding.EncodeToString([]byte(challenge)), RPID: f.relyingParty(), Timeout: challengeLife.Milliseconds()}
}

const forLogin = "login"

func forAdding(l Login) string { return "add " + l.id.id }

// handleLoginOptions is POST /auth/passkey/options.
func (f *Factor) handleLoginOptions(w http.ResponseWriter, r *http.Request) {
	if err := f.sameSite(r); err != nil {
		f.fail(w, r, err, 0, "")
		return
	}
	if !readNothing(w, r) {
		return
	}
	respond(w, http.StatusCreated, f.options(forLogin))
}

// handleAddOptions is POST /auth/passkeys/options.
func (f *Factor) handleAddOptions(w http.ResponseWriter, r *http.Request) {
	if !readNothing(w, r) {
		return
	}
	l := loginOf(r)
	has, err := f.store.factors(l.User.Name)
	if err != nil {
		f.fail(w, r, err, 0, "")
		return
	}
	o := f.options(forAdding(l))
	// No name of a person, since whoever has the authenticator can read it.
	handle := sha256.Sum256([]byte("ringward user " + l.User.Name + " " + nanos(l.User.Created)))
	o.UserID, o.Username = base64.RawURLEncoding.EncodeToString(handle[:]), l.User.Name
	for _, p := range has.Passkeys {
		o.Exclude = append(o.Exclude, p.ID)
	}
	respond(w, http.StatusCreated, o)
}

type passkeyView struct {
	ID       string     `json:"id"`
	Name     string     `json:"name"`
	Created  time.Time  `json:"created"`
	LastUsed *time.Time `json:"lastUsed"`
}

func viewPasskey(p Passkey) passkeyView {
	return passkeyView{p.Key.handle(), p.Name, seconds(p.Created), orNull(p.Used)}
}

// handleAddPasskey is POST /auth/passkeys.
func (f *Factor) handleAddPasskey(w http.ResponseWriter, r *http.Request) {
	var name, id, clientData, authData, public string
	if !readJSON(w, r, fields{"name": &name, "id": &id, "clientDataJSON": &clientData, "authenticatorData": &authData, "publicKey": &public}, nil) {
		return
	}
	if problem := labelProblem(name); problem != "" {
		respondError(w, http.StatusUnprocessableEntity, problem)
		return
	}
	now := time.Now()
	c, err := f.readCeremony(r, "webauthn.create", forAdding(loginOf(r)), id, clientData, authData, now)
	der, wrong := base64.RawURLEncoding.DecodeString(public)
	if err != nil || wrong != nil || verifier(der) == nil {
		respondError(w, http.StatusUnauthorized, passkeyRefused)
		return
	}
	p := Passkey{Key: sha256.Sum256(c.credential), ID: id, Name: name, PublicKey: der, Count: c.count, Created: now}
	if f.change(w, r, "passkey added", http.StatusUnauthorized, passkeyRefused, func(has *Factors) error {
		if len(has.Passkeys) >= maxPasskeys {
			return &refusal{http.StatusUnprocessableEntity, fmt.Sprintf("There are %d passkeys already", maxPasskeys), "", 0}
		}
		has.Passkeys = append(has.Passkeys, p)
		return has.use(c.challenge, c.until, now)
	}) {
		respond(w, http.StatusCreated, viewPasskey(p))
	}
}

const passkeyRefused = "Passkey refused"

// handleRemovePasskey is DELETE /auth/passkeys/{id}.
func (f *Factor) handleRemovePasskey(w http.ResponseWriter, r *http.Request) {
	if f.change(w, r, "passkey removed", http.StatusNotFound, "No such passkey", func(has *Factors) error {
		i := slices.IndexFunc(has.Passkeys, func(p Passkey) bool { return p.Key.handle() == r.PathValue("id") })
		if i < 0 {
			return fs.ErrNotExist
		}
		has.Passkeys = slices.Delete(has.Passkeys, i, i+1)
		return nil
	}) {
		w.WriteHeader(http.StatusNoContent)
	}
}

// assertion is a passkey's answer, as the page sends it.
type assertion struct{ id, clientData, authData, signature string }

func (a *assertion) fields() fields {
	return fields{"id": &a.id, "clientDataJSON": &a.clientData, "authenticatorData": &a.authData, "signature": &a.signature}
}

// passkey returns where that one is, or -1.
func (f *Factors) passkey(k Key) int {
	return slices.IndexFunc(f.Passkeys, func(p Passkey) bool { return p.Key == k })
}

// usePasskey returns whose passkey's answer that is, and the change that accepts
// it, once. What is wrong with it is fs.ErrNotExist.
func (f *Factor) usePasskey(r *http.Request, a assertion, now time.Time) (u User, use func(*Factors) error, err error) {
	c, err := f.readCeremony(r, "webauthn.get", forLogin, a.id, a.clientData, a.authData, now)
	if err != nil {
		return u, nil, err
	}
	key := Key(sha256.Sum256(c.credential))
	if u, err = f.store.passkeyUser(key); err != nil {
		return u, nil, err
	}
	has, err := f.store.factors(u.Name)
	if err != nil {
		return u, nil, err
	}
	i := has.passkey(key)
	signature, err := base64.RawURLEncoding.DecodeString(a.signature)
	if i < 0 || err != nil || !verifier(has.Passkeys[i].PublicKey)(c.signed, signature) {
		return u, nil, errCeremony
	}
	public := has.Passkeys[i].PublicKey
	return u, func(has *Factors) error {
		i := has.passkey(key)
		if i < 0 || !bytes.Equal(has.Passkeys[i].PublicKey, public) {
			return errCeremony
		}
		p := &has.Passkeys[i]
		if (c.count > 0 || p.Count > 0) && c.count <= p.Count { // two authenticators have one key
			f.event(r, "passkey counter went back", u.Name)
			return errCeremony
		}
		p.Count, p.Used = c.count, now
		if err := has.use(c.challenge, c.until, now); err != nil {
			return err
		}
		by, used := f.usedBy.LoadOrStore(c.challenge, u.Name)
		if !used {
			time.AfterFunc(c.until.Sub(now), func() { f.usedBy.Delete(c.challenge) })
		} else if by != u.Name { // what the factors of one user cannot tell
			return errCeremony
		}
		return nil
	}, nil
}

// handlePasskey is POST /auth/passkey: a login without name and password.
func (f *Factor) handlePasskey(w http.ResponseWriter, r *http.Request) {
	var a assertion
	if !f.readSameSite(w, r, a.fields(), nil) {
		return
	}
	now := time.Now()
	u, use, err := f.usePasskey(r, a, now)
	s, id := f.newSession(u.Name, r, now)
	if err == nil {
		err = recording(f.store, act(r, "login ok", u.Name)).changeFactors(u, use, sessionsAfter{ends: f.sessionKeys(r), start: s})
	}
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			f.event(r, "passkey refused", u.Name)
		}
		f.fail(w, r, err, http.StatusUnauthorized, passkeyRefused)
		return
	}
	f.event(r, "login ok", u.Name)
	f.respondLoggedIn(w, r, s, id)
}
