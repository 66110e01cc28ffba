// factor.go: the second factor. What a user has besides the password, its part
// of the Store, the step between a right password and a session, and what
// people do with their factors over JSON. The app's codes are in totp.go,
// passkeys in passkey.go.
package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"
)

// Factors is what a user has besides the password. It is kept as JSON.
type Factors struct {
	Seed     string    `json:"seed,omitempty"` // of the authenticator app, sealed (sealSeed); "": there is none
	Created  time.Time `json:"created"`        // when the app was set up
	Step     int64     `json:"step"`           // whose code was accepted last: none up to it is accepted again
	Codes    []string  `json:"codes"`          // recoveryHash of those that are left
	Passkeys []Passkey `json:"passkeys"`
	// Used has the challenges that would still count, and until when.
	Used map[string]time.Time `json:"used"`
}

// sessionsAfter is what a change of factors means for who is logged in.
type sessionsAfter struct {
	endKinds []kind  // of the user's records: all of them
	ends     []Key   // sessions
	start    Session // the zero Session starts nothing
}

// factorStore is the part of the Store that this file needs, with the same
// promises.
type factorStore interface {
	accountStore
	// factors returns the zero Factors for who has none.
	factors(user string) (Factors, error)
	// everybodysFactors returns those of all who have some.
	everybodysFactors() (map[string]Factors, error)
	// passkeyUser returns whose passkey that is. They are not disabled.
	passkeyUser(k Key) (User, error)
	// changeFactors has change change the factors of a user who is still the
	// same, and keeps them, unless change returns an error. It is fs.ErrExist
	// where a passkey is somebody else's. change may run more than once.
	changeFactors(was User, change func(*Factors) error, after sessionsAfter) error
}

func getFactors(tx *bolt.Tx, user string) (f Factors, err error) {
	key := []byte(user)
	fields, err := unseal(key, tx.Bucket(bucketFactors).Get(key), 1)
	if err == nil && json.Unmarshal([]byte(fields[0]), &f) != nil {
		err = errDamaged
	}
	return f, unlessAbsent(err)
}

// putFactors also keeps the index of passkeys.
func putFactors(tx *bolt.Tx, user string, f Factors) error {
	old, err := getFactors(tx, user)
	if err != nil {
		return err
	}
	index := tx.Bucket(bucketPasskeys)
	for _, p := range old.Passkeys {
		if err := index.Delete(p.Key[:]); err != nil {
			return err
		}
	}
	for _, p := range f.Passkeys {
		if index.Get(p.Key[:]) != nil {
			return fs.ErrExist
		}
		if err := index.Put(p.Key[:], seal(p.Key[:], user)); err != nil {
			return err
		}
	}
	text, err := json.Marshal(f)
	if err != nil {
		return err
	}
	key := []byte(user)
	return tx.Bucket(bucketFactors).Put(key, seal(key, string(text)))
}

func (b *BoltStore) factors(user string) (f Factors, err error) {
	err = b.view(func(tx *bolt.Tx) error { f, err = getFactors(tx, user); return err })
	return f, err
}

func (b *BoltStore) everybodysFactors() (all map[string]Factors, err error) {
	all = map[string]Factors{}
	err = b.view(func(tx *bolt.Tx) error {
		return tx.Bucket(bucketFactors).ForEach(func(name, _ []byte) error {
			f, err := getFactors(tx, string(name))
			all[string(name)] = f
			return err
		})
	})
	return all, err
}

func (b *BoltStore) passkeyUser(k Key) (u User, err error) {
	err = b.view(func(tx *bolt.Tx) error {
		fields, err := unseal(k[:], tx.Bucket(bucketPasskeys).Get(k[:]), 1)
		if err == nil {
			u, err = getUser(tx, fields[0])
		}
		if err == nil && u.Disabled {
			err = fs.ErrNotExist
		}
		return err
	})
	return u, err
}

func (b *BoltStore) changeFactors(was User, change func(*Factors) error, after sessionsAfter) error {
	return b.update(func(tx *bolt.Tx) error {
		u, err := getUser(tx, was.Name)
		if err == nil && !u.same(was) {
			err = fs.ErrNotExist
		}
		if err != nil {
			return err
		}
		f, err := getFactors(tx, was.Name)
		if err == nil {
			err = change(&f)
		}
		if err != nil {
			return err
		}
		if err := putFactors(tx, was.Name, f); err != nil {
			return err
		}
		if err := dropOwned(tx, was.Name, after.endKinds...); err != nil {
			return err
		}
		return startSession(tx, after.start, after.ends...)
	})
}

// same says whether a user who was read before has neither another password nor
// been disabled or enabled since. It is false for another of the name.
func (u User) same(was User) bool {
	return u.Hash == was.Hash && u.Disabled == was.Disabled && u.Created.Equal(was.Created)
}

const maxUsed = 1000 // challenges of one user that would still count

// use makes a challenge count no more; it is fs.ErrNotExist the second time.
func (f *Factors) use(challenge string, until, now time.Time) error {
	if _, again := f.Used[challenge]; again {
		return fs.ErrNotExist
	}
	maps.DeleteFunc(f.Used, func(_ string, until time.Time) bool { return !now.Before(until) })
	if len(f.Used) >= maxUsed {
		return &refusal{http.StatusTooManyRequests, "Too many logins with passkeys, try again later", "", challengeLife}
	}
	if f.Used == nil {
		f.Used = map[string]time.Time{}
	}
	f.Used[challenge] = until
	return nil
}

// Factor is the handlers of this file and of passkey.go.
type Factor struct {
	*Account
	store    factorStore
	issuer   string   // what an authenticator app shows beside the name
	required bool     // nobody gets in by a password alone
	public   *url.URL // scheme and host by which browsers reach us; nil: not known
	usedBy   sync.Map // challenge to user, while it would count: it is nobody else's
}

const pendingLife = 5 * time.Minute

// pendingLogin is what a right password leads to where a second step is needed.
type pendingLogin struct {
	Username string    `json:"username"`
	Pending  string    `json:"pending"` // shows that the password was right
	Expires  time.Time `json:"expires"`
	Enrol    bool      `json:"enrol,omitempty"` // the step is to set up an app
}

// none says whether nothing but the password is there.
func (f Factors) none() bool { return f.Seed == "" && len(f.Passkeys) == 0 }

// pendingFor is the secondFactor of Auth.
func (f *Factor) pendingFor(u User, now time.Time) (any, error) {
	has, err := f.store.factors(u.Name)
	if err != nil || has.Seed == "" && !f.required {
		return nil, err
	}
	if has.Seed == "" && !has.none() { // who knows the password must not set up an app in its place
		return nil, &refusal{http.StatusForbidden, "Log in with your passkey", "the password alone is not enough here", 0}
	}
	expires := seconds(now.Add(pendingLife))
	name := base64.RawURLEncoding.EncodeToString([]byte(u.Name))
	return pendingLogin{u.Name, f.signUntil(pendingPurpose(u, has), name, expires), expires, has.none()}, nil
}

// pendingPurpose is another one when the password or the factors change. A
// store may keep no more of a time than microseconds.
func pendingPurpose(u User, has Factors) string {
	return fmt.Sprint("pending ", u.Name, " ", u.Hash, " ", u.Created.UnixMicro(), " ", has.Created.UnixMicro(), " ", has.none())
}

var pendingOver = &refusal{http.StatusUnauthorized, "This login has taken too long: begin again", "", 0}

// fromPending returns whose login it is and what they have, or a refusal.
// enrol is for who has no factor yet.
func (f *Factor) fromPending(pending string, enrol bool, now time.Time) (u User, has Factors, err error) {
	encoded, _, _ := strings.Cut(pending, ":")
	name, _ := base64.RawURLEncoding.DecodeString(encoded)
	if u, err = f.store.user(string(name)); err == nil {
		has, err = f.store.factors(u.Name)
	}
	if err == nil {
		_, err = f.signedUntil(pendingPurpose(u, has), pending, now)
	}
	if err == nil && (u.Disabled || has.none() != enrol) || errors.Is(err, fs.ErrNotExist) {
		err = pendingOver
	}
	return u, has, err
}

const wrongCode = "Code is wrong"

var seedLost = &refusal{http.StatusForbidden, "Your second factor cannot be read any more",
	"the server's key was replaced: use a recovery code, or ask whoever runs it to reset your second factor", 0}

// handleCode is POST /auth/session/code.
func (f *Factor) handleCode(w http.ResponseWriter, r *http.Request) {
	var pending, code string
	if !f.readSameSite(w, r, fields{"pending": &pending, "code": &code}, nil) {
		return
	}
	s, id, err := f.loginByCode(r, pending, code)
	if err != nil {
		f.fail(w, r, err, http.StatusUnauthorized, wrongCode)
		return
	}
	f.respondLoggedIn(w, r, s, id)
}

// loginByCode starts a session, or returns fs.ErrNotExist for a code that is
// wrong or was used, a refusal, or that the store failed.
func (f *Factor) loginByCode(r *http.Request, pending, code string) (s Session, id string, err error) {
	now := time.Now()
	u, has, err := f.fromPending(pending, false, now)
	if err != nil {
		return s, id, err
	}
	limits := f.throttle.codeLimits(u.Name)
	if wait, _ := f.throttle.begin(limits); wait > 0 {
		f.event(r, "login throttled", u.Name)
		return s, id, &refusal{http.StatusTooManyRequests, "Too many wrong codes, try again later", "", wait}
	}
	became := tryUnused
	defer func() { f.throttle.end(limits, became) }()
	hash := recoveryHash(u.Name, plainCode(code)) // counts also where the seed is lost
	step, no := int64(0), error(fs.ErrNotExist)
	seed, old, err := openSeed(f.keys, u.Name, has.Seed)
	switch {
	case err == nil:
		step = stepOf(seed, plainCode(code), now)
	case errors.Is(err, errOtherKey):
		f.Log.ErrorContext(r.Context(), "second factor cannot be read", "user", u.Name, "error", err)
		no = seedLost
	default:
		return s, id, err
	}
	s, id = f.newSession(u.Name, r, now)
	err = recording(f.store, act(r, "login ok", u.Name)).changeFactors(u, func(kept *Factors) error {
		spare := slices.Index(kept.Codes, hash)
		switch {
		case step > kept.Step && kept.Seed == has.Seed:
			if kept.Step = step; old {
				kept.Seed = sealSeed(f.keys[0], u.Name, seed)
			}
		case spare >= 0:
			kept.Codes = slices.Delete(kept.Codes, spare, spare+1)
		default:
			return no
		}
		return nil
	}, sessionsAfter{ends: f.sessionKeys(r), start: s})
	switch {
	case err == nil:
		became = tryRight
		f.event(r, "login ok", u.Name)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, seedLost):
		became = tryWrong
		f.event(r, "code wrong", u.Name)
	}
	return s, id, err
}

// handleApp is POST and PUT /auth/totp: the offer of a seed, and its acceptance
// by a code. Who may is a session with a proof, or a pending login to which
// nothing else is open.
func (f *Factor) handleApp(w http.ResponseWriter, r *http.Request) {
	var pending, code string
	step, required := f.offerApp, fields(nil)
	if r.Method == http.MethodPut {
		step, required = f.acceptApp, fields{"code": &code}
	}
	if (required != nil || r.ContentLength != 0) && !f.readSameSite(w, r, required, fields{"pending": &pending}) {
		return
	}
	if pending == "" {
		f.requireProof(func(w http.ResponseWriter, r *http.Request) {
			step(w, r, enrolment{loginOf(r).User, f.offeredSeed(loginOf(r).id.id), false}, code)
		}).ServeHTTP(w, r)
		return
	}
	u, _, err := f.fromPending(pending, true, time.Now())
	if err != nil {
		f.fail(w, r, err, 0, "")
		return
	}
	step(w, r, enrolment{u, f.offeredSeed(pending), true}, code)
}

// enrolment is one that is under way.
type enrolment struct {
	User
	seed  []byte
	first bool // there must be no factor yet
}

// offeredSeed is one for one session or pending login, so that nothing has to
// be kept of an offer.
func (f *Factor) offeredSeed(secret string) []byte {
	return derive(f.keys[0], "ringward totp offer "+secret, seedBytes)
}

func (f *Factor) offerApp(w http.ResponseWriter, r *http.Request, e enrolment, _ string) {
	uri := appURI(f.issuer, e.Name, e.seed)
	respond(w, http.StatusCreated, struct {
		Secret string   `json:"secret"`
		URI    string   `json:"uri"`
		QR     []string `json:"qr"` // rows of the code, 1 is dark
	}{seedText.EncodeToString(e.seed), uri, qrCode(uri)})
}

func (f *Factor) acceptApp(w http.ResponseWriter, r *http.Request, e enrolment, code string) {
	now := time.Now()
	step := stepOf(e.seed, plainCode(code), now)
	if step == 0 {
		respondError(w, http.StatusForbidden, wrongCode)
		return
	}
	codes, hashes := newRecoveryCodes(e.Name)
	s, id := f.newSession(e.Name, r, now)
	err := recording(f.store, act(r, "second factor set up", e.Name)).changeFactors(e.User, func(has *Factors) error {
		kept, _, _ := openSeed(f.keys, e.Name, has.Seed)
		if bytes.Equal(kept, e.seed) || e.first && !has.none() { // it was accepted a moment ago
			return fs.ErrNotExist
		}
		has.Seed, has.Created, has.Step, has.Codes = sealSeed(f.keys[0], e.Name, e.seed), now, step, hashes
		return nil
	}, sessionsAfter{endKinds: []kind{kindSession}, start: s})
	if err != nil {
		f.fail(w, r, err, pendingOver.status, pendingOver.title)
		return
	}
	f.seen(r, e.Name)
	f.event(r, "second factor set up", e.Name)
	f.setCookie(w, id, s, now)
	respond(w, http.StatusOK, recoveryCodes{codes})
}

// handleConfirm is POST /auth/confirm, with a password or a passkey.
func (f *Factor) handleConfirm(w http.ResponseWriter, r *http.Request) {
	var password string
	var a assertion
	optional := a.fields()
	optional["password"] = &password
	if !readJSON(w, r, nil, optional) {
		return
	}
	l := loginOf(r)
	if a.id == "" {
		f.confirmByPassword(w, r, l, password)
		return
	}
	u, use, err := f.usePasskey(r, a, time.Now())
	if err == nil && u.Name != l.User.Name {
		err = fs.ErrNotExist
	}
	if err == nil {
		err = f.store.changeFactors(u, use, sessionsAfter{})
	}
	if err != nil {
		f.fail(w, r, err, http.StatusForbidden, passkeyRefused)
		return
	}
	f.respondConfirmed(w, r, l)
}

type recoveryCodes struct {
	Codes []string `json:"recoveryCodes"`
}

// change changes the factors of who is logged in, which is done then, or
// responds: with what is missing, where change returns fs.ErrNotExist.
func (f *Factor) change(w http.ResponseWriter, r *http.Request, done string, status int, missing string, change func(*Factors) error) bool {
	u := loginOf(r).User
	err := recording(f.store, act(r, done, u.Name)).changeFactors(u, change, sessionsAfter{})
	if errors.Is(err, fs.ErrExist) {
		err = &refusal{http.StatusUnprocessableEntity, "This passkey is there already", "", 0}
	}
	if err != nil {
		f.fail(w, r, err, status, missing)
		return false
	}
	f.event(r, done, u.Name)
	return true
}

// readNothing is readJSON for what takes no fields and needs no body.
func readNothing(w http.ResponseWriter, r *http.Request) bool {
	return r.ContentLength == 0 || readJSON(w, r, nil, nil)
}

const noApp = "There is no authenticator app"

// handleRecoveryCodes is POST /auth/recovery-codes.
func (f *Factor) handleRecoveryCodes(w http.ResponseWriter, r *http.Request) {
	if !readNothing(w, r) {
		return
	}
	codes, hashes := newRecoveryCodes(UserOf(r))
	if f.change(w, r, "recovery codes made", http.StatusNotFound, noApp, func(has *Factors) error {
		has.Codes = hashes
		return has.needApp()
	}) {
		respond(w, http.StatusCreated, recoveryCodes{codes})
	}
}

// handleRemoveApp is DELETE /auth/totp.
func (f *Factor) handleRemoveApp(w http.ResponseWriter, r *http.Request) {
	if f.change(w, r, "second factor removed", http.StatusNotFound, noApp, func(has *Factors) error {
		err := has.needApp()
		*has = Factors{Passkeys: has.Passkeys, Used: has.Used}
		return err
	}) {
		w.WriteHeader(http.StatusNoContent)
	}
}

func (f *Factors) needApp() error {
	if f.Seed == "" {
		return fs.ErrNotExist
	}
	return nil
}

// handleFactors is GET /auth/factors.
func (f *Factor) handleFactors(w http.ResponseWriter, r *http.Request) {
	type app struct {
		Created time.Time `json:"created"`
	}
	var shown struct {
		App      *app          `json:"totp"`
		Codes    int           `json:"recoveryCodes"`
		Passkeys []passkeyView `json:"passkeys"`
	}
	has, err := f.store.factors(UserOf(r))
	if err != nil {
		f.fail(w, r, err, 0, "")
		return
	}
	if has.Seed != "" {
		shown.App, shown.Codes = &app{seconds(has.Created)}, len(has.Codes)
	}
	shown.Passkeys = []passkeyView{}
	for _, p := range has.Passkeys {
		shown.Passkeys = append(shown.Passkeys, viewPasskey(p))
	}
	respond(w, http.StatusOK, shown)
}
