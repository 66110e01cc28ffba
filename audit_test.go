// audit_test.go tests what an operator looks up later: that each act is recorded
// once, with what it did or not at all, and who is said to be able to get in.
package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/crypto/bcrypt"
)

// actors is a server with people on it: frodo has two sessions, a token, an
// invite and a passkey, sam an authenticator app.
type actors struct {
	*accountServer
	all     fullStore
	cookie  string // of one of frodo's sessions
	sam     string // that of sam's session
	session string // id of the other
	token   string // id
	invite  string
	spare   string // a recovery code of sam's
	passkey *ecdsa.PrivateKey
}

const passkeyID = "Zm9ybG9naW4" // base64url

// newActors works on the store of the build.
func newActors(t *testing.T) *actors {
	t.Helper()
	store := openTestStore(t).(fullStore)
	a := &actors{accountServer: &accountServer{T: t, log: new(bytes.Buffer)}, all: store}
	if onBolt, ok := store.(*BoltStore); ok {
		onBolt.db.NoSync = true // what the disk has after a crash is not for these tests
	}
	a.program = newTestProgram(t, store, a.log, "-public-url", "http://example.com")
	a.Handler = a.next
	hash, err := bcrypt.GenerateFromPassword([]byte(testPassword), bcrypt.MinCost)
	noErr(t, err)
	for _, name := range []string{"frodo", "sam"} {
		noErr(t, store.addUser(User{Name: name, Hash: string(hash), Created: time.Now()}))
	}
	a.enter("frodo", testPassword)
	live, err := store.sessions("frodo", time.Now())
	noErr(t, err)
	a.session = live[0].Key.handle()
	a.cookie = a.enter("frodo", testPassword)
	a.sam = a.enter("sam", testPassword)
	a.token = a.accountServer.token(a.cookie, `{"name":"kept"}`).ID
	invite, secret := newInvite("frodo", time.Now())
	noErr(t, store.addInvite(invite))
	a.invite = secret

	a.passkey, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	noErr(t, err)
	raw, err := base64.RawURLEncoding.DecodeString(passkeyID)
	noErr(t, err)
	frodo, err := store.user("frodo")
	noErr(t, err)
	noErr(t, store.changeFactors(frodo, func(f *Factors) error {
		f.Passkeys = []Passkey{{Key: sha256.Sum256(raw), ID: passkeyID, Name: "laptop", PublicKey: a.publicKey(a.passkey), Created: time.Now()}}
		return nil
	}, sessionsAfter{}))
	sam, err := store.user("sam")
	noErr(t, err)
	codes, hashes := newRecoveryCodes("sam")
	a.spare = codes[0]
	noErr(t, store.changeFactors(sam, func(f *Factors) error {
		f.Seed, f.Created, f.Codes = sealSeed(a.auth.keys[0], "sam", []byte("12345678901234567890")), time.Now(), hashes
		return nil
	}, sessionsAfter{}))
	return a
}

func (a *actors) publicKey(key *ecdsa.PrivateKey) []byte {
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	noErr(a, err)
	return der
}

// api sends a request with frodo's cookie and proof.
func (a *actors) api(method, path, body string) int {
	return a.do(method, path, body, "Cookie", a.cookie, "Ringward-Proof", a.proof(a.cookie)).Code
}

// run is a command, as a status.
func (a *actors) run(r commandCall) int {
	var out bytes.Buffer
	if err := a.operator.run(r, &out); err != nil {
		a.Log(r.Command, err)
		return http.StatusInternalServerError
	}
	return http.StatusOK
}

func operates(words string, args ...string) func(*actors) int {
	return func(a *actors) int { return a.run(commandCall{Command: words, Args: args}) }
}

// pending begins sam's login.
func (a *actors) pending() string {
	var p pendingLogin
	a.want(http.StatusAccepted, &p, "POST", "/auth/session", credentials("sam", testPassword))
	return p.Pending
}

// ceremony is what the page sends of the passkey for what begins at options.
func (a *actors) ceremony(kind, options string) string {
	var o passkeyOptions
	a.want(http.StatusCreated, &o, "POST", options, "", "Cookie", a.cookie, "Ringward-Proof", a.proof(a.cookie))
	client, err := json.Marshal(map[string]string{"type": kind, "challenge": o.Challenge, "origin": "http://example.com"})
	noErr(a, err)
	party := sha256.Sum256([]byte(o.RPID))
	data := binary.BigEndian.AppendUint32(append(party[:], flagPresent|flagVerified), 0)
	id := passkeyID
	if kind == "webauthn.create" {
		id = "YW5vdGhlcg"
		raw, err := base64.RawURLEncoding.DecodeString(id)
		noErr(a, err)
		data[32] |= flagAttested
		data = append(binary.BigEndian.AppendUint16(append(data, make([]byte, 16)...), uint16(len(raw))), raw...)
	}
	sum := sha256.Sum256(client)
	signed := sha256.Sum256(append(bytes.Clone(data), sum[:]...))
	signature, err := ecdsa.SignASN1(rand.Reader, a.passkey, signed[:])
	noErr(a, err)
	text := base64.RawURLEncoding.EncodeToString
	all := map[string]string{"id": id, "clientDataJSON": text(client), "authenticatorData": text(data)}
	if kind == "webauthn.create" {
		all["name"], all["publicKey"] = "phone", text(a.publicKey(a.passkey))
	} else {
		all["signature"] = text(signature)
	}
	body, err := json.Marshal(all)
	noErr(a, err)
	return string(body)
}

// everyAct is what people and operators do to accounts. Each returns a status.
var everyAct = []struct {
	what, user, by string
	do             func(a *actors) int
}{
	{"login ok", "frodo", "frodo", func(a *actors) int {
		return a.do("POST", "/auth/session", credentials("Frodo", testPassword), "Cookie", a.cookie).Code
	}},
	{"login ok", "sam", "sam", func(a *actors) int {
		return a.do("POST", "/auth/session/code", textOf("pending", a.pending(), "code", a.spare)).Code
	}},
	{"login ok", "frodo", "frodo", func(a *actors) int {
		return a.do("POST", "/auth/passkey", a.ceremony("webauthn.get", "/auth/passkey/options")).Code
	}},
	{"logout", "frodo", "frodo", func(a *actors) int { return a.do("DELETE", "/auth/session", "", "Cookie", a.cookie).Code }},
	{"session ended", "frodo", "frodo", func(a *actors) int { return a.api("DELETE", "/auth/sessions/"+a.session, "") }},
	{"all sessions ended", "frodo", "frodo", func(a *actors) int { return a.api("DELETE", "/auth/sessions", "") }},
	{"password set", "frodo", "frodo", func(a *actors) int {
		return a.api("PUT", "/auth/password", textOf("current", testPassword, "new", newPassword))
	}},
	{"invite used", "frodo", "frodo", func(a *actors) int {
		return a.do("POST", "/auth/invites/"+a.invite, textOf("password", newPassword)).Code
	}},
	{"token made", "frodo", "frodo", func(a *actors) int { return a.api("POST", "/auth/tokens", `{"name":"new"}`) }},
	{"token removed", "frodo", "frodo", func(a *actors) int { return a.api("DELETE", "/auth/tokens/"+a.token, "") }},
	{"second factor set up", "frodo", "frodo", func(a *actors) int {
		var app struct{ Secret string }
		a.want(http.StatusCreated, &app, "POST", "/auth/totp", "{}", "Cookie", a.cookie, "Ringward-Proof", a.proof(a.cookie))
		seed, err := seedText.DecodeString(app.Secret)
		noErr(a, err)
		return a.api("PUT", "/auth/totp", textOf("code", codeAt(seed, time.Now().Unix()/codeStep)))
	}},
	{"recovery codes made", "sam", "sam", asSam("POST", "/auth/recovery-codes")},
	{"second factor removed", "sam", "sam", asSam("DELETE", "/auth/totp")},
	{"passkey added", "frodo", "frodo", func(a *actors) int {
		return a.api("POST", "/auth/passkeys", a.ceremony("webauthn.create", "/auth/passkeys/options"))
	}},
	{"passkey removed", "frodo", "frodo", func(a *actors) int {
		raw, err := base64.RawURLEncoding.DecodeString(passkeyID)
		noErr(a, err)
		return a.api("DELETE", "/auth/passkeys/"+Key(sha256.Sum256(raw)).handle(), "")
	}},
	{"user added", "merry", "operator", func(a *actors) int {
		return a.run(commandCall{Command: "user add", Args: []string{"Merry"}, Input: []byte(newPassword)})
	}},
	{"user added", "rosie", "operator", func(a *actors) int {
		return a.run(commandCall{Command: "user import", Args: []string{"FILE"}, Input: []byte(htpasswdLine("rosie"))})
	}},
	{"invite made", "frodo", "operator", operates("user invite", "Frodo")},
	{"user removed", "frodo", "operator", operates("user remove", "Frodo")},
	{"user disabled", "frodo", "operator", operates("user disable", "frodo")},
	{"user enabled", "frodo", "operator", operates("user enable", "frodo")},
	{"user unlocked", "frodo", "operator", operates("user unlock", "frodo")},
	{"added to ops", "frodo", "operator", operates("user group add", "frodo", "ops")},
	{"removed from ops", "frodo", "operator", operates("user group remove", "frodo", "ops")},
	{"second factor reset", "sam", "operator", operates("user factor reset", "sam")},
	{"token made", "frodo", "operator", operates("token add", "frodo", "new")},
	{"token removed", "frodo", "operator", func(a *actors) int { return operates("token remove", a.token)(a) }},
	{"session ended", "frodo", "operator", func(a *actors) int { return operates("session end", a.session)(a) }},
	{"all sessions ended", "frodo", "operator", operates("session end-all", "frodo")},
	{"all sessions ended", "", "operator", operates("session end-all")},
	{"backup made", "", "operator", operates("backup", "FILE")},
}

// asSam sends a request with sam's cookie and proof.
func asSam(method, path string) func(*actors) int {
	return func(a *actors) int {
		return a.do(method, path, "", "Cookie", a.sam, "Ringward-Proof", a.proof(a.sam)).Code
	}
}

// textOf is a JSON object.
func textOf(pairs ...string) string {
	all := map[string]string{}
	for i := 0; i+1 < len(pairs); i += 2 {
		all[pairs[i]] = pairs[i+1]
	}
	b, _ := json.Marshal(all)
	return string(b)
}

// snapshot is all that an act may change, as text.
func (a *actors) snapshot() string {
	a.Helper()
	users, err := a.all.users()
	noErr(a, err)
	live, err := a.all.sessions("", time.Now())
	noErr(a, err)
	tokens, err := a.all.tokens("")
	noErr(a, err)
	factors, err := a.all.everybodysFactors()
	noErr(a, err)
	_, invited := a.all.invite(keyOf(a.invite), time.Now())
	return fmt.Sprint(users, live, tokens, factors, invited)
}

// runs says whether the act can be done on the store of the build.
func (a *actors) runs(what string) bool {
	_, onBolt := a.all.(*BoltStore)
	return onBolt || what != "backup made" && what != "user unlocked" // which PostgreSQL has no command for
}

func TestEveryActIsRecordedOnce(t *testing.T) {
	for _, row := range everyAct {
		t.Run(row.by+" "+row.what, func(t *testing.T) {
			a := newActors(t)
			if !a.runs(row.what) {
				return
			}
			before, err := a.all.acts("")
			noErr(t, err)
			writes := 0
			a.all.timeWith(func(write bool, _ time.Duration) {
				if write {
					writes++
				}
			})
			begin := time.Now().Add(-time.Millisecond) // PostgreSQL rounds to microseconds
			if status := row.do(a); status >= 300 {
				t.Fatalf("status %d", status)
			}
			after, err := a.all.acts("")
			noErr(t, err)
			if len(after) != len(before)+1 || !slices.Equal(after[:len(before)], before) {
				t.Fatalf("%d entries more: %v", len(after)-len(before), after[min(len(before), len(after)):])
			}
			addr := "192.0.2.1"
			if row.by == "operator" {
				addr = ""
			}
			got := after[len(before)]
			if at := got.At; at.Before(begin) || at.After(time.Now().Add(time.Millisecond)) {
				t.Errorf("at %v, it is %v", at, time.Now())
			}
			if got.At = (time.Time{}); got != (Act{User: row.user, By: row.by, What: row.what, Addr: addr}) {
				t.Errorf("recorded as %+v", got)
			}
			if writes != 1 {
				t.Errorf("%d transactions", writes)
			}
		})
	}
}

// breakAudit has every record of an act fail. Builds with another Store have
// another one.
var breakAudit = func(t *testing.T, store Store) {
	b := store.(*BoltStore)
	noErr(t, b.update(func(tx *bolt.Tx) error { return tx.DeleteBucket(bucketAudit) }))
}

func TestWhatCannotBeRecordedIsNotDone(t *testing.T) {
	a := newActors(t)
	breakAudit(t, a.all)
	before := a.snapshot()
	for _, row := range everyAct {
		if !a.runs(row.what) || row.what == "backup made" { // a copy is no change
			continue
		}
		if status := row.do(a); status < 500 {
			t.Errorf("%s %s: status %d", row.by, row.what, status)
		}
		if after := a.snapshot(); after != before {
			t.Fatalf("%s %s was done: before\n%s\nafter\n%s", row.by, row.what, before, after)
		}
	}
}

// fillAudit records as many acts as are kept.
var fillAudit = func(t *testing.T, store Store) {
	noErr(t, store.(*BoltStore).update(func(tx *bolt.Tx) error {
		for range maxActs {
			if err := record(tx, Act{At: time.Unix(1, 0), By: "operator", What: "filler"}); err != nil {
				return err
			}
		}
		return nil
	}))
}

func TestAuditIsBounded(t *testing.T) {
	a := newActors(t)
	there, err := a.all.acts("")
	noErr(t, err)
	fillAudit(t, a.all)
	const acts = 5
	for range acts {
		a.enter("frodo", testPassword)
	}
	all, err := a.all.acts("")
	noErr(t, err)
	if len(all) != maxActs {
		t.Errorf("%d entries are kept", len(all))
	}
	if first, last := all[0], all[len(all)-acts]; first.What != "filler" || last.What != "login ok" || len(there) == 0 {
		t.Errorf("from %+v to %+v", first, last)
	}
	full := all

	// What strangers fail at pushes nothing out.
	for n := range 60 {
		name := []string{"frodo", "sam", "nobody"}[n%3]
		from := fmt.Sprintf("192.0.2.%d:1", n)
		for _, r := range []*http.Request{
			benchRequest("POST", "/auth/session", credentials(name, "wrong")),
			benchRequest("POST", "/auth/session/code", textOf("pending", "x", "code", "000000")),
			benchRequest("POST", "/auth/invites/unknown", textOf("password", newPassword)),
			benchRequest("POST", "/auth/passkey", textOf("id", "x", "clientDataJSON", "x", "authenticatorData", "x", "signature", "x")),
			benchRequest("DELETE", "/auth/session", "", "Cookie", "ringward=x.y"),
			benchRequest("GET", "/auth/verify", "", "Authorization", "Bearer rw_unknown"),
			benchRequest("DELETE", "/auth/sessions/x", ""),
		} {
			r.RemoteAddr = from
			a.ServeHTTP(httptest.NewRecorder(), r)
		}
	}
	a.want(http.StatusUnauthorized, nil, "POST", "/auth/session/code", textOf("pending", a.pending(), "code", "000000"))
	a.run(commandCall{Command: "user remove", Args: []string{"nobody"}})
	if all, err := a.all.acts(""); err != nil || !slices.Equal(all, full) {
		t.Errorf("the record changed: %d entries, the last %+v, %v", len(all), all[len(all)-1], err)
	}
}

func TestAuditList(t *testing.T) {
	s := newAccountServer(t)
	s.printed("user add", "merry")
	s.enter("frodo", testPassword)
	s.printed("user remove", "merry")
	list := func(args ...string) (all []actView) {
		t.Helper()
		var out bytes.Buffer
		noErr(t, s.operator.run(commandCall{Command: "audit", Args: args, JSON: true}, &out))
		noErr(t, json.Unmarshal(out.Bytes(), &all))
		for i := range all {
			if since := time.Since(all[i].At); since < 0 || since > time.Minute {
				t.Errorf("at %v", all[i].At)
			}
			all[i].At = time.Time{}
		}
		return all
	}
	added := actView{User: "merry", By: "operator", What: "user added"}
	invited, removed := added, added
	invited.What, removed.What = "invite made", "user removed"
	in := actView{User: "frodo", By: "frodo", What: "login ok", From: "192.0.2.1"}
	for _, c := range []struct {
		of   []string
		want []actView
	}{
		{nil, []actView{added, invited, in, removed}},
		{[]string{"Merry"}, []actView{added, invited, removed}}, // who is there no more
		{[]string{"frodo"}, []actView{in}},
		{[]string{"nobody"}, []actView{}},
	} {
		if got := list(c.of...); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%q: got %+v, want %+v", c.of, got, c.want)
		}
	}
	if _, err := s.command("audit", "no name"); err == nil {
		t.Error("a name that is none")
	}
}

func TestAccess(t *testing.T) {
	folder := t.TempDir()
	toolsFile := filepath.Join(folder, "tools")
	noErr(t, os.WriteFile(toolsFile, []byte("wiki.example.com http://127.0.0.1:1\nops.example.com http://127.0.0.1:1 group=ops,root\n"), 0o600))
	s := openAccountServer(t, filepath.Join(folder, "test.db"), "-tools", toolsFile, "-public-url", "https://auth.example.com", "-cookie-domain", "example.com")
	now := time.Now()
	ago := func(d time.Duration) time.Time { return now.Add(-d).UTC().Truncate(time.Second) }
	for _, u := range []User{
		{Name: "all", Hash: "x", Groups: "dev ops"},
		{Name: "disabled", Hash: "x", Groups: "ops", Disabled: true},
		{Name: "expired", Groups: "ops"},
		{Name: "invited", Groups: "ops"},
		{Name: "key", Groups: "root"},
		{Name: "password", Hash: "x"},
		{Name: "script", Groups: "ops"},
	} {
		u.Created = now
		noErr(t, s.store.addUser(u))
	}
	factors := func(name string, f Factors) {
		u, err := s.store.user(name)
		noErr(t, err)
		noErr(t, s.store.changeFactors(u, func(has *Factors) error { *has = f; return nil }, sessionsAfter{}))
	}
	factors("all", Factors{Seed: "sealed", Passkeys: []Passkey{{Key: newKey(), Used: ago(5 * time.Hour)}, {Key: newKey()}}})
	factors("key", Factors{Passkeys: []Passkey{{Key: newKey(), Used: ago(time.Hour)}}})
	factors("invited", Factors{Seed: "sealed"}) // opens nothing without a password
	token := func(user, name string, used, expires time.Time) {
		noErr(t, s.store.addToken(Token{Key: newKey(), User: user, Name: name, Created: now, Used: used, Expires: expires}))
	}
	token("all", "a", ago(2*time.Hour), time.Time{})
	token("all", "b", ago(time.Minute), ago(time.Second)) // over
	token("script", "a", time.Time{}, now.Add(time.Hour))
	token("expired", "a", time.Time{}, ago(time.Second))
	session := func(user string, seen, idle time.Time) {
		u, err := s.store.user(user)
		noErr(t, err)
		noErr(t, s.store.login(u, Session{Key: newKey(), User: user, Created: seen, Seen: seen, Idle: idle, End: now.Add(time.Hour)}, nil, ""))
	}
	session("all", ago(3*time.Hour), now.Add(time.Hour))
	session("expired", ago(time.Hour), ago(time.Second))

	everybody := []accessView{
		{"all", []string{"dev", "ops"}, true, []string{"totp", "passkey", "passkey"}, 1, 1, at(ago(2 * time.Hour))},
		{"key", []string{"root"}, false, []string{"passkey"}, 0, 0, at(ago(time.Hour))},
		{"password", []string{}, true, []string{}, 0, 0, nil},
		{"script", []string{"ops"}, false, []string{}, 1, 0, nil},
	}
	for host, want := range map[string][]accessView{
		"":                  everybody,
		"wiki.example.com":  everybody,
		"WIKI.example.com":  everybody,
		"ops.example.com":   {everybody[0], everybody[1], everybody[3]},
		"other.example.com": nil,
	} {
		var args []string
		if host != "" {
			args = []string{host}
		}
		var out bytes.Buffer
		err := s.operator.run(commandCall{Command: "access", Args: args, JSON: true}, &out)
		if want == nil {
			if err == nil || !strings.Contains(err.Error(), "There is no tool "+host) {
				t.Errorf("%s: %v", host, err)
			}
			continue
		}
		noErr(t, err)
		var got []accessView
		noErr(t, json.Unmarshal(out.Bytes(), &got))
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, want %+v", host, got, want)
		}
	}
}

func at(t time.Time) *time.Time { return &t }
