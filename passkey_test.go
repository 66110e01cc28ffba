// passkey_test.go tests passkeys with an authenticator of its own, which says
// what a test tells it to: the server must refuse all that is not right.
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
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// testPasskey is a passkey, and the browser around it.
type testPasskey struct {
	key    crypto.Signer
	id     []byte
	count  uint32
	party  string // RP ID
	origin string
}

func newTestPasskey(t testing.TB) *testPasskey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &testPasskey{key: key, id: []byte("id " + rand.Text()), party: "localhost", origin: "http://example.com"}
}

// said is what a browser and an authenticator say in one ceremony.
type said struct {
	kind   string
	client struct {
		Type        string `json:"type"`
		Challenge   string `json:"challenge"`
		Origin      string `json:"origin"`
		CrossOrigin bool   `json:"crossOrigin"`
	}
	party    string
	flags    byte
	count    uint32
	attested []byte // id; nil: none follows
	id       []byte
	key      crypto.Signer

	clientData, authData, signature []byte // "": made of all that
	public                          []byte
}

func (p *testPasskey) says(kind, challenge string) *said {
	p.count++
	s := &said{kind: kind, party: p.party, flags: flagPresent | flagVerified, count: p.count, id: p.id, key: p.key}
	s.client.Type, s.client.Challenge, s.client.Origin = kind, challenge, p.origin
	if kind == "webauthn.create" {
		s.attested = p.id
		s.flags |= flagAttested
	}
	return s
}

// sent is the body that the page makes of it.
func (s *said) sent(more ...string) string {
	if s.clientData == nil {
		s.clientData, _ = json.Marshal(s.client)
	}
	if s.authData == nil {
		party := sha256.Sum256([]byte(s.party))
		s.authData = binary.BigEndian.AppendUint32(append(party[:], s.flags), s.count)
		if s.attested != nil {
			s.authData = append(s.authData, make([]byte, 16)...)
			s.authData = append(binary.BigEndian.AppendUint16(s.authData, uint16(len(s.attested))), s.attested...)
			s.authData = append(s.authData, "the public key in COSE, which nobody reads"...)
		}
	}
	hash := sha256.Sum256(s.clientData)
	if s.signature == nil && s.kind == "webauthn.get" {
		s.signature = sign(s.key, append(bytes.Clone(s.authData), hash[:]...))
	}
	if s.public == nil && s.kind == "webauthn.create" {
		s.public, _ = x509.MarshalPKIXPublicKey(s.key.Public())
	}
	text := base64.RawURLEncoding.EncodeToString
	return object(append(more, "id", text(s.id), "clientDataJSON", text(s.clientData), "authenticatorData", text(s.authData),
		"signature", text(s.signature), "publicKey", text(s.public))...)
}

func sign(key crypto.Signer, message []byte) []byte {
	hash := sha256.Sum256(message)
	signed, options := hash[:], crypto.SignerOpts(crypto.SHA256)
	if _, ok := key.(ed25519.PrivateKey); ok {
		signed, options = message, crypto.Hash(0)
	}
	signature, err := key.Sign(rand.Reader, signed, options)
	if err != nil {
		panic(err)
	}
	return signature
}

// challenge asks for the options of a login.
func (s *accountServer) challenge() string {
	s.Helper()
	var o passkeyOptions
	s.want(http.StatusCreated, &o, "POST", "/auth/passkey/options", "")
	return o.Challenge
}

func (s *accountServer) addOptions(cookie, proof string) (o passkeyOptions) {
	s.Helper()
	s.want(http.StatusCreated, &o, "POST", "/auth/passkeys/options", "", "Cookie", cookie, "Ringward-Proof", proof)
	return o
}

// withPasskey adds one.
func (s *accountServer) withPasskey(cookie string) *testPasskey {
	s.Helper()
	p := newTestPasskey(s)
	proof := s.proof(cookie)
	s.want(http.StatusCreated, nil, "POST", "/auth/passkeys", p.says("webauthn.create", s.addOptions(cookie, proof).Challenge).sent("name", "laptop"),
		"Cookie", cookie, "Ringward-Proof", proof)
	return p
}

func (s *accountServer) passkeys(user string) []Passkey {
	s.Helper()
	has, err := s.store.factors(user)
	if err != nil {
		s.Fatal(err)
	}
	return has.Passkeys
}

func (s *accountServer) byPasskey(p *testPasskey) string {
	return p.says("webauthn.get", s.challenge()).sent()
}

// From the first passkey to the last, in the words of the API.
func TestPasskey(t *testing.T) {
	s := newAccountServer(t)
	cookie := s.enter("frodo", testPassword)
	s.want(http.StatusForbidden, nil, "POST", "/auth/passkeys/options", "", "Cookie", cookie)
	s.want(http.StatusForbidden, nil, "POST", "/auth/passkeys", "{}", "Cookie", cookie)
	p := s.withPasskey(cookie)
	w := s.want(http.StatusCreated, nil, "POST", "/auth/passkey", s.byPasskey(p))
	mine := cookieOf(t, w)
	if got := s.passkeys("frodo")[0]; got.Count != p.count || got.Used.IsZero() {
		t.Errorf("kept: %+v", got)
	}
	stands := p.says("webauthn.get", s.challenge())
	stands.count--
	s.want(http.StatusUnauthorized, nil, "POST", "/auth/passkey", stands.sent())
	if s.want(http.StatusOK, nil, "GET", "/auth/session", "", "Cookie", mine); !strings.Contains(w.Body.String(), `"username":"frodo"`) {
		t.Errorf("got %s", w.Body)
	}
	s.want(http.StatusOK, nil, "GET", "/auth/session", "", "Cookie", cookie) // another device
	s.want(http.StatusCreated, nil, "POST", "/auth/passkey", s.byPasskey(p), "Cookie", mine)
	s.want(http.StatusUnauthorized, nil, "GET", "/auth/session", "", "Cookie", mine) // the same one

	// It confirms that it is the person too, but only its own.
	var confirmed struct{ Proof string }
	s.want(http.StatusCreated, &confirmed, "POST", "/auth/confirm", s.byPasskey(p), "Cookie", cookie)
	s.token(cookie, `{"name":"script"}`)
	s.want(http.StatusForbidden, nil, "POST", "/auth/confirm", s.byPasskey(p), "Cookie", s.enter("sam", testPassword))
	for _, body := range []string{"{}", `{"password":""}`, object("id", "eA")} {
		s.want(http.StatusForbidden, nil, "POST", "/auth/confirm", body, "Cookie", cookie)
	}

	second := s.withPasskey(cookie)
	var factors struct{ Passkeys []passkeyView }
	s.want(http.StatusOK, &factors, "GET", "/auth/factors", "", "Cookie", cookie)
	if len(factors.Passkeys) != 2 || factors.Passkeys[0].LastUsed == nil || factors.Passkeys[1].LastUsed != nil || factors.Passkeys[0].Name != "laptop" {
		t.Fatalf("got %+v", factors)
	}
	if list := s.printed("user list"); !strings.Contains(list, "passkey,passkey") {
		t.Errorf("got %s", list)
	}
	mineToo := []string{"Cookie", cookie, "Ringward-Proof", confirmed.Proof}
	path := "/auth/passkeys/" + factors.Passkeys[0].ID
	s.want(http.StatusForbidden, nil, "DELETE", path, "", "Cookie", cookie)
	sams := s.enter("sam", testPassword)
	s.want(http.StatusNotFound, nil, "DELETE", path, "", "Cookie", sams, "Ringward-Proof", s.proof(sams))
	s.want(http.StatusNoContent, nil, "DELETE", path, "", mineToo...)
	s.want(http.StatusNotFound, nil, "DELETE", path, "", mineToo...)
	s.want(http.StatusUnauthorized, nil, "POST", "/auth/passkey", s.byPasskey(p))
	s.want(http.StatusCreated, nil, "POST", "/auth/passkey", s.byPasskey(second))
	s.printed("user factor reset", "frodo")
	s.want(http.StatusUnauthorized, nil, "POST", "/auth/passkey", s.byPasskey(second))
}

// A passkey logs in where a second factor is required, and the password beside
// it does not, not even to set up an app.
func TestPasskeyIsBothFactors(t *testing.T) {
	path := t.TempDir() + "/test.db"
	s := newAccountServerAt(t, path)
	cookie := s.enter("frodo", testPassword)
	p := s.withPasskey(cookie)
	s.enter("frodo", testPassword) // it is not required here
	if err := s.store.Close(); err != nil {
		t.Fatal(err)
	}
	s = openAccountServer(t, path, "-second-factor", "required")
	s.want(http.StatusCreated, nil, "POST", "/auth/passkey", s.byPasskey(p))
	w := s.want(http.StatusForbidden, nil, "POST", "/auth/session", credentials("frodo", testPassword))
	if !strings.Contains(w.Body.String(), "passkey") {
		t.Errorf("got %s", w.Body)
	}

	// A lost password is replaced, and opens nothing either.
	invite := "/auth/invites/" + s.invite("frodo")
	var set passkeyLogin
	w = s.want(http.StatusAccepted, &set, "POST", invite, object("password", newPassword))
	if set != (passkeyLogin{"frodo", true}) || w.Header()["Set-Cookie"] != nil || s.live("frodo") != 0 {
		t.Errorf("got %s, %v, %d sessions", w.Body, w.Header(), s.live("frodo"))
	}
	s.want(http.StatusNotFound, nil, "GET", invite, "")
	s.want(http.StatusUnauthorized, nil, "POST", "/auth/session", credentials("frodo", testPassword))
	s.want(http.StatusForbidden, nil, "POST", "/auth/session", credentials("frodo", newPassword))
	cookie = cookieOf(t, s.want(http.StatusCreated, nil, "POST", "/auth/passkey", s.byPasskey(p)))

	s.want(http.StatusNoContent, nil, "PUT", "/auth/password", object("current", newPassword, "new", testPassword), "Cookie", cookie)
	cookie = cookieOf(t, s.want(http.StatusCreated, nil, "POST", "/auth/passkey", s.byPasskey(p)))
	s.withAppBesides(cookie)
	s.want(http.StatusCreated, nil, "POST", "/auth/passkey", s.byPasskey(p))
	s.pend("frodo")
	s.printed("user disable", "frodo")
	s.want(http.StatusUnauthorized, nil, "POST", "/auth/passkey", s.byPasskey(p))
}

// withAppBesides sets up an app in a session that is there.
func (s *accountServer) withAppBesides(cookie string) testApp {
	s.Helper()
	proof := s.proof(cookie)
	app := s.offer("", "Cookie", cookie, "Ringward-Proof", proof)
	s.accept(&app, "", "Cookie", cookie, "Ringward-Proof", proof)
	return app
}

// All that a browser or an authenticator may say otherwise is refused, in the
// same words whether the passkey exists or not.
func TestPasskeyRefused(t *testing.T) {
	s := newAccountServer(t)
	cookie := s.enter("frodo", testPassword)
	p, other := s.withPasskey(cookie), s.withPasskey(s.enter("sam", testPassword))
	forAnother := s.withKeys(strings.Repeat("n", minKey))
	for name, change := range map[string]func(*said){
		"nothing":                      nil,
		"type":                         func(s *said) { s.client.Type = "webauthn.create" },
		"origin":                       func(s *said) { s.client.Origin = "http://evil.example" },
		"origin with a port":           func(s *said) { s.client.Origin += ":8080" },
		"origin of https":              func(s *said) { s.client.Origin = "https://example.com" },
		"origin below":                 func(s *said) { s.client.Origin = "http://www.example.com" },
		"no origin":                    func(s *said) { s.client.Origin = "" },
		"in a frame of another site":   func(s *said) { s.client.CrossOrigin = true },
		"challenge made up":            func(s *said) { s.client.Challenge = base64.RawURLEncoding.EncodeToString([]byte("x:9999999999.y")) },
		"challenge of another server":  func(s *said) { s.client.Challenge = forAnother.challenge() },
		"challenge to add one":         func(said *said) { said.client.Challenge = s.addOptions(cookie, s.proof(cookie)).Challenge },
		"challenge with a later end":   func(s *said) { s.client.Challenge = alter(s.client.Challenge, ":1", ":9") },
		"no challenge":                 func(s *said) { s.client.Challenge = "" },
		"challenge not in base64":      func(s *said) { s.client.Challenge = "*" },
		"RP ID":                        func(s *said) { s.party = "example.com" },
		"nobody there":                 func(s *said) { s.flags &^= flagPresent },
		"nobody verified":              func(s *said) { s.flags &^= flagVerified },
		"no flags":                     func(s *said) { s.flags = 0 },
		"says it has a credential":     func(s *said) { s.flags |= flagAttested },
		"has another credential":       func(s *said) { s.flags |= flagAttested; s.attested = []byte("another") },
		"counter went back":            func(s *said) { s.count = 1 },
		"counter stands":               func(said *said) { said.count = s.passkeys("frodo")[0].Count },
		"counter is gone":              func(s *said) { s.count = 0 },
		"signed by another key":        func(s *said) { s.key = other.key },
		"signed by nobody":             func(s *said) { s.signature = []byte("no signature") },
		"id of another user's":         func(s *said) { s.id = other.id },
		"id of nobody":                 func(s *said) { s.id = []byte("nobody's") },
		"id too long":                  func(s *said) { s.id = bytes.Repeat([]byte("x"), 1024) },
		"client data changed":          func(s *said) { s.sent(); s.clientData = append(s.clientData, ' ') },
		"client data is not JSON":      func(s *said) { s.clientData = []byte("{") },
		"client data is a list":        func(s *said) { s.clientData = []byte("[]") },
		"authenticator data changed":   func(s *said) { s.sent(); s.authData[36]++ },
		"authenticator data cut":       func(s *said) { s.sent(); s.authData = s.authData[:36]; s.signature = nil },
		"authenticator data goes on":   func(s *said) { s.sent(); s.authData = append(s.authData, 0) },
		"signature changed":            func(s *said) { s.sent(); s.signature[len(s.signature)-1]++ },
		"signature goes on":            func(s *said) { s.sent(); s.signature = append(s.signature, 0) },
		"verified said after the fact": func(s *said) { s.flags &^= flagVerified; s.sent(); s.authData[32] |= flagVerified },
		"right origin after the fact": func(s *said) {
			o := s.client.Origin
			s.client.Origin = "http://evil"
			s.sent()
			s.clientData = []byte(alterText(string(s.clientData), "http://evil", o))
		},
		"right RP ID after the fact": func(s *said) {
			s.party = "evil"
			s.sent()
			h := sha256.Sum256([]byte("localhost"))
			copy(s.authData, h[:])
		},
		"lower counter after the fact": func(s *said) { s.count = 2; s.sent(); binary.BigEndian.PutUint32(s.authData[33:], 9999) },
	} {
		says := p.says("webauthn.get", s.challenge())
		if change != nil {
			change(says)
		}
		body := says.sent()
		live := s.live("frodo") + s.live("sam")
		if change == nil {
			s.want(http.StatusCreated, nil, "POST", "/auth/passkey", body)
			continue
		}
		w := s.do("POST", "/auth/passkey", body)
		if w.Code != http.StatusUnauthorized || !strings.Contains(w.Body.String(), `"`+passkeyRefused+`"`) || w.Header()["Set-Cookie"] != nil {
			t.Errorf("%s: got %d %s", name, w.Code, w.Body)
		}
		if s.live("frodo")+s.live("sam") != live {
			t.Errorf("%s: a session began", name)
		}
		if w := s.do("POST", "/auth/confirm", body, "Cookie", cookie); w.Code != http.StatusForbidden {
			t.Errorf("%s, to confirm: got %d %s", name, w.Code, w.Body)
		}
	}
	for _, field := range []string{"id", "clientDataJSON", "authenticatorData", "signature"} {
		var sent map[string]string
		json.Unmarshal([]byte(s.byPasskey(p)), &sent)
		value := sent[field]
		for status, values := range map[int][]any{401: {"", "*", value + "=", " " + value, value + "AAAA", value[1:], value[:len(value)-2]}, 400: {nil, 1, []string{value}}} {
			for _, v := range values {
				changed := map[string]any{}
				for k, v := range sent {
					changed[k] = v
				}
				changed[field] = v
				body, _ := json.Marshal(changed)
				if w := s.do("POST", "/auth/passkey", string(body)); w.Code != status {
					t.Errorf("%s is %.40v: got %d %s", field, v, w.Code, w.Body)
				}
			}
		}
	}
	if log := s.log.String(); strings.Count(log, "passkey counter went back") != 6 { // three of the table, each tried twice
		t.Errorf("the log tells %d times that a counter went back", strings.Count(log, "passkey counter went back"))
	}
	s.want(http.StatusCreated, nil, "POST", "/auth/passkey", s.byPasskey(p))
}

// alter changes text inside of base64url.
func alter(encoded, old, new string) string {
	text, err := base64.RawURLEncoding.DecodeString(encoded)
	if err != nil {
		panic(err)
	}
	return base64.RawURLEncoding.EncodeToString([]byte(alterText(string(text), old, new)))
}

func alterText(text, old, new string) string {
	if !strings.Contains(text, old) {
		panic(fmt.Sprintf("there is no %q in %q", old, text))
	}
	return strings.Replace(text, old, new, 1)
}

// Nobody asks for a name before the passkey, and the options tell nothing of
// who exists.
func TestPasskeyOptionsTellNothing(t *testing.T) {
	s := newAccountServer(t)
	options := func() string {
		t.Helper()
		var o map[string]any
		w := s.want(http.StatusCreated, &o, "POST", "/auth/passkey/options", "")
		if len(o) != 3 || o["rpId"] != "localhost" {
			t.Errorf("got %s", w.Body)
		}
		return strings.ReplaceAll(w.Body.String(), o["challenge"].(string), "")
	}
	before := options()
	s.withPasskey(s.enter("frodo", testPassword))
	if after := options(); after != before {
		t.Errorf("got %q, then %s", before, after)
	}
	s.want(http.StatusBadRequest, nil, "POST", "/auth/passkey/options", `{"username":"frodo"}`)
	s.want(http.StatusForbidden, nil, "POST", "/auth/passkey/options", "", "Sec-Fetch-Site", "cross-site")
	s.want(http.StatusForbidden, nil, "POST", "/auth/passkey", "{}", "Sec-Fetch-Site", "cross-site")
}

// A challenge counts once, for five minutes, also where a hundred answers to it
// come at once.
func TestChallengeCountsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newAccountServer(t)
		p := s.withPasskey(s.enter("frodo", testPassword))
		challenge := s.challenge()
		first := p.says("webauthn.get", challenge).sent()
		s.want(http.StatusCreated, nil, "POST", "/auth/passkey", first)
		s.want(http.StatusUnauthorized, nil, "POST", "/auth/passkey", first)
		s.want(http.StatusUnauthorized, nil, "POST", "/auth/passkey", p.says("webauthn.get", challenge).sent())

		late, justInTime := s.challenge(), s.challenge()
		time.Sleep(challengeLife - time.Nanosecond)
		s.want(http.StatusCreated, nil, "POST", "/auth/passkey", p.says("webauthn.get", justInTime).sent())
		s.want(http.StatusUnauthorized, nil, "POST", "/auth/passkey", p.says("webauthn.get", challenge).sent()) // is kept as long as it would count
		time.Sleep(time.Nanosecond)
		s.want(http.StatusUnauthorized, nil, "POST", "/auth/passkey", p.says("webauthn.get", late).sent())
		s.want(http.StatusCreated, nil, "POST", "/auth/passkey", s.byPasskey(p))
		if has, err := s.store.factors("frodo"); err != nil || len(has.Used) != 1 {
			t.Errorf("%d challenges are kept, %v", len(has.Used), err)
		}

		sams := s.withPasskey(s.enter("sam", testPassword))
		challenge = s.challenge()
		s.want(http.StatusCreated, nil, "POST", "/auth/passkey", sams.says("webauthn.get", challenge).sent())
		s.want(http.StatusUnauthorized, nil, "POST", "/auth/passkey", p.says("webauthn.get", challenge).sent())
		s.want(http.StatusForbidden, nil, "POST", "/auth/confirm", p.says("webauthn.get", challenge).sent(), "Cookie", s.enter("frodo", testPassword))
		if live := s.live("frodo") + s.live("sam"); live != 7 {
			t.Errorf("%d sessions are live", live)
		}
		time.Sleep(challengeLife)
		synctest.Wait()
		s.factor.usedBy.Range(func(challenge, user any) bool { t.Errorf("%s of %s is kept", challenge, user); return true })
	})
	s := newAccountServer(t)
	p := s.withPasskey(s.enter("frodo", testPassword))
	body := s.byPasskey(p)
	s.atOnce(100, 2, func() *httptest.ResponseRecorder { return s.do("POST", "/auth/passkey", body) })

	// An authenticator that does not count shows that the challenge does.
	p2 := newTestPasskey(t)
	cookie := s.enter("frodo", testPassword)
	proof := s.proof(cookie)
	add := p2.says("webauthn.create", s.addOptions(cookie, proof).Challenge)
	add.count = 0
	s.want(http.StatusCreated, nil, "POST", "/auth/passkeys", add.sent("name", "phone"), "Cookie", cookie, "Ringward-Proof", proof)
	uncounted := p2.says("webauthn.get", s.challenge())
	uncounted.count = 0
	body = uncounted.sent()
	s.atOnce(100, 4, func() *httptest.ResponseRecorder { return s.do("POST", "/auth/passkey", body) })
}

// No user fills the store with challenges.
func TestChallengesAreLimited(t *testing.T) {
	now := time.Now()
	var f Factors
	for i := range maxUsed {
		if err := f.use(fmt.Sprint(i), now.Add(challengeLife), now); err != nil {
			t.Fatal(err)
		}
	}
	var no *refusal
	if err := f.use("one more", now.Add(challengeLife), now); !errors.As(err, &no) || no.status != http.StatusTooManyRequests {
		t.Errorf("got %v", err)
	}
	if err := f.use("later", now.Add(2*challengeLife), now.Add(challengeLife)); err != nil || len(f.Used) != 1 {
		t.Errorf("%v, %d are kept", err, len(f.Used))
	}
}

// What is added is a passkey of a kind that was asked for, in answer to this
// session, and nobody else's.
func TestAddPasskey(t *testing.T) {
	s := newAccountServer(t)
	cookie := s.enter("frodo", testPassword)
	proof := s.proof(cookie)
	mine := []string{"Cookie", cookie, "Ringward-Proof", proof}
	o := s.addOptions(cookie, proof)
	if o.RPID != "localhost" || o.Username != "frodo" || o.UserID == "" || strings.Contains(o.UserID, "frodo") || len(o.Exclude) != 0 {
		t.Errorf("got %+v", o)
	}
	elsewhere := s.enter("frodo", testPassword)
	foreign := s.addOptions(elsewhere, s.proof(elsewhere)).Challenge
	ed := func() crypto.Signer { _, key, _ := ed25519.GenerateKey(rand.Reader); return key }
	rs, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	other384, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	der := func(key any) []byte {
		b, err := x509.MarshalPKIXPublicKey(key)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	short := new(big.Int).SetBit(big.NewInt(1), 1023, 1)
	long := new(big.Int).SetBit(big.NewInt(1), 8191, 1)
	for name, test := range map[string]struct {
		status int
		name   string
		change func(*said)
	}{
		"ES256":                       {201, "laptop", func(*said) {}},
		"EdDSA":                       {201, "phone", func(s *said) { s.key = ed() }},
		"RS256":                       {201, strings.Repeat("ü", 32), func(s *said) { s.key = rs }},
		"P-384":                       {401, "x", func(s *said) { s.key = other384 }},
		"RSA too short":               {401, "x", func(s *said) { s.public = der(&rsa.PublicKey{N: short, E: 65537}) }},
		"RSA too long":                {401, "x", func(s *said) { s.public = der(&rsa.PublicKey{N: long, E: 65537}) }},
		"no key":                      {401, "x", func(s *said) { s.public = []byte("no key") }},
		"key goes on":                 {401, "x", func(s *said) { s.public = append(der(s.key.Public()), 0) }},
		"type":                        {401, "x", func(s *said) { s.client.Type = "webauthn.get" }},
		"origin":                      {401, "x", func(s *said) { s.client.Origin = "http://evil.example" }},
		"RP ID":                       {401, "x", func(s *said) { s.party = "evil.example" }},
		"nobody verified":             {401, "x", func(s *said) { s.flags &^= flagVerified }},
		"nobody there":                {401, "x", func(s *said) { s.flags &^= flagPresent }},
		"challenge to log in":         {401, "x", func(said *said) { said.client.Challenge = s.challenge() }},
		"challenge of another device": {401, "x", func(s *said) { s.client.Challenge = foreign }},
		"no credential":               {401, "x", func(s *said) { s.attested = nil; s.flags &^= flagAttested }},
		"credential cut":              {401, "x", func(s *said) { s.sent(); s.authData = s.authData[:54] }},
		"credential cut in the id":    {401, "x", func(s *said) { s.sent(); s.authData = s.authData[:56] }},
		"another credential":          {401, "x", func(s *said) { s.attested = []byte("another id") }},
		"id too long":                 {401, "x", func(s *said) { s.id = bytes.Repeat([]byte("x"), 1024); s.attested = s.id }},
		"no name":                     {422, " ", func(*said) {}},
		"name too long":               {422, strings.Repeat("x", 65), func(*said) {}},
		"name for a terminal":         {422, "\x1b[31m", func(*said) {}},
	} {
		p := newTestPasskey(t)
		says := p.says("webauthn.create", s.addOptions(cookie, proof).Challenge)
		test.change(says)
		body := says.sent("name", test.name)
		w := s.do("POST", "/auth/passkeys", body, mine...)
		if w.Code != test.status {
			t.Errorf("%s: got %d %s", name, w.Code, w.Body)
		}
		if test.status != http.StatusCreated {
			continue
		}
		s.want(http.StatusUnauthorized, nil, "POST", "/auth/passkeys", body, mine...) // the challenge is used
		p.key = says.key
		s.want(http.StatusCreated, nil, "POST", "/auth/passkey", s.byPasskey(p))
		again := p.says("webauthn.create", s.addOptions(cookie, proof).Challenge).sent("name", "again")
		s.want(http.StatusUnprocessableEntity, nil, "POST", "/auth/passkeys", again, mine...)
		sams := s.enter("sam", testPassword)
		samsProof := s.proof(sams)
		theirs := p.says("webauthn.create", s.addOptions(sams, samsProof).Challenge).sent("name", "theirs")
		s.want(http.StatusUnprocessableEntity, nil, "POST", "/auth/passkeys", theirs, "Cookie", sams, "Ringward-Proof", samsProof)
		if o := s.addOptions(cookie, proof); !strings.Contains(strings.Join(o.Exclude, " "), base64.RawURLEncoding.EncodeToString(p.id)) {
			t.Errorf("%s: %q does not keep the browser from adding it again", name, o.Exclude)
		}
	}
	for range maxPasskeys - 3 {
		s.withPasskey(cookie)
	}
	w := s.want(http.StatusUnprocessableEntity, nil, "POST", "/auth/passkeys",
		newTestPasskey(t).says("webauthn.create", s.addOptions(cookie, proof).Challenge).sent("name", "one too many"), mine...)
	if !strings.Contains(w.Body.String(), "20 passkeys") {
		t.Errorf("got %s", w.Body)
	}
}

// What passkeys are bound to, by how browsers reach the server.
func TestRelyingParty(t *testing.T) {
	for _, test := range []struct {
		flags               []string
		base, party, origin string
	}{
		{nil, "http://localhost:8080", "localhost", "http://localhost:8080"},
		{nil, "https://localhost", "localhost", "https://localhost"},
		{[]string{"-public-url", "https://auth.example.com"}, "https://auth.example.com", "auth.example.com", "https://auth.example.com"},
		{[]string{"-public-url", "https://auth.example.com:8443"}, "https://auth.example.com:8443", "auth.example.com", "https://auth.example.com:8443"},
		{[]string{"-public-url", "https://auth.example.com", "-cookie-domain", "example.com"}, "https://auth.example.com", "example.com", "https://auth.example.com"},
	} {
		s := newAccountServer(t, test.flags...)
		cookie := cookieOf(t, s.want(http.StatusCreated, nil, "POST", test.base+"/auth/session", credentials("frodo", testPassword)))
		var confirmed struct{ Proof string }
		s.want(http.StatusCreated, &confirmed, "POST", test.base+"/auth/confirm", object("password", testPassword), "Cookie", cookie)
		var o passkeyOptions
		s.want(http.StatusCreated, &o, "POST", test.base+"/auth/passkeys/options", "", "Cookie", cookie, "Ringward-Proof", confirmed.Proof)
		p := newTestPasskey(t)
		p.party, p.origin = test.party, test.origin
		if o.RPID != test.party {
			t.Errorf("%v: the RP ID is %s", test.flags, o.RPID)
		}
		s.want(http.StatusCreated, nil, "POST", test.base+"/auth/passkeys", p.says("webauthn.create", o.Challenge).sent("name", "laptop"),
			"Cookie", cookie, "Ringward-Proof", confirmed.Proof)
		login := func() string {
			s.want(http.StatusCreated, &o, "POST", test.base+"/auth/passkey/options", "")
			return p.says("webauthn.get", o.Challenge).sent()
		}
		s.want(http.StatusCreated, nil, "POST", test.base+"/auth/passkey", login())
		for _, origin := range []string{"https://wiki.example.com", "http://auth.example.com", "http://localhost"} {
			if p.origin = origin; origin == test.origin {
				continue
			}
			s.want(http.StatusUnauthorized, nil, "POST", test.base+"/auth/passkey", login())
		}
	}
}

// A key in front of the old one, and challenges that were made before count on.
func TestPasskeyKeyRotation(t *testing.T) {
	s := newAccountServer(t)
	p := s.withPasskey(s.enter("frodo", testPassword))
	body := s.byPasskey(p)
	s.withKeys(strings.Repeat("n", minKey), testKey).want(http.StatusCreated, nil, "POST", "/auth/passkey", body)
	s.withKeys(strings.Repeat("n", minKey)).want(http.StatusUnauthorized, nil, "POST", "/auth/passkey", s.byPasskey(p))
}

// FuzzCeremony: whatever is sent for client data and authenticator data, it
// passes only where both are what the server asked for.
func FuzzCeremony(f *testing.F) {
	store := tempStore(f)
	p := newTestProgram(f, store, io.Discard)
	now := time.Now()
	r := httptest.NewRequest("POST", "http://localhost/auth/passkey", nil)
	text := base64.RawURLEncoding.EncodeToString
	key := newTestPasskey(f)
	key.origin = "http://localhost"
	for _, kind := range []string{"webauthn.get", "webauthn.create"} {
		says := key.says(kind, text([]byte(p.factor.signUntil("challenge "+forLogin, rand.Text(), now.Add(challengeLife)))))
		says.sent()
		f.Add(says.clientData, says.authData, kind == "webauthn.create")
		f.Add(bytes.ToUpper(says.clientData), says.authData[:37], false)
		f.Add(says.clientData, says.authData[:len(says.authData)-1], true)
	}
	f.Add([]byte(`{"challenge":null}`), make([]byte, 37), true)
	party := sha256.Sum256([]byte("localhost"))
	f.Fuzz(func(t *testing.T, client, auth []byte, create bool) {
		kind := map[bool]string{true: "webauthn.create", false: "webauthn.get"}[create]
		c, err := p.factor.readCeremony(r, kind, forLogin, text(key.id), text(client), text(auth), now)
		if err != nil {
			return
		}
		if !bytes.HasPrefix(auth, party[:]) || auth[32]&5 != 5 || c.count != binary.BigEndian.Uint32(auth[33:37]) ||
			!bytes.Equal(c.credential, key.id) || create && !bytes.Contains(auth[37:], key.id) {
			t.Errorf("taken: %q", auth)
		}
		hash := sha256.Sum256(client)
		if !bytes.Equal(c.signed, append(bytes.Clone(auth), hash[:]...)) {
			t.Errorf("%q is signed", c.signed)
		}
		if !bytes.Contains(client, []byte(kind)) && !bytes.Contains(client, []byte(`\`)) {
			t.Errorf("taken: %q", client)
		}
	})
}

// FuzzPublicKey: what is taken for a key can be used for one, and nothing is its
// signature by chance.
func FuzzPublicKey(f *testing.F) {
	key := newTestPasskey(f)
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	for _, public := range []any{key.key.Public(), ed.Public(), &rsa.PublicKey{N: new(big.Int).SetBit(big.NewInt(1), 2047, 1), E: 3}} {
		der, err := x509.MarshalPKIXPublicKey(public)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(der, []byte("signature"))
	}
	// No point of the curve: the standard library returns a nil key beside its error.
	f.Add([]byte("0Y0\x13\x06\a*\x86H\xce=\x02\x01\x06\b*\x86H\xce=\x03\x01\a\x03B\x00\x04"+strings.Repeat("0", 64)), []byte("signature"))
	f.Fuzz(func(t *testing.T, der, signature []byte) {
		if verify := verifier(der); verify != nil && verify([]byte("what is signed"), signature) {
			t.Errorf("%q is signed by %q", signature, der)
		}
	})
}

// BenchmarkPasskeyLogin is one login from its challenge to its session, but for
// what the disk takes: of many users, as in a morning.
func BenchmarkPasskeyLogin(b *testing.B) {
	s := newBenchServer(b, b.TempDir()+"/bench.db")
	s.store.db.NoSync = true
	s.addUsers(b, 100)
	var keys []*testPasskey
	for i := range 100 {
		p := newTestPasskey(b)
		p.origin = "http://localhost"
		name := fmt.Sprint("user", i)
		u, err := s.store.user(name)
		if err != nil {
			b.Fatal(err)
		}
		der, _ := x509.MarshalPKIXPublicKey(p.key.Public())
		if err := s.store.changeFactors(u, func(f *Factors) error {
			f.Passkeys = []Passkey{{Key: sha256.Sum256(p.id), ID: base64.RawURLEncoding.EncodeToString(p.id), Name: "x", PublicKey: der}}
			return nil
		}, sessionsAfter{}); err != nil {
			b.Fatal(err)
		}
		keys = append(keys, p)
	}
	var n nowhere
	for i := 0; b.Loop(); i++ {
		w := httptest.NewRecorder()
		s.ServeHTTP(w, benchRequest("POST", "/auth/passkey/options", ""))
		var o struct{ Data passkeyOptions }
		json.Unmarshal(w.Body.Bytes(), &o)
		body := keys[i%len(keys)].says("webauthn.get", o.Data.Challenge).sent()
		if status := n.statusOf(s, benchRequest("POST", "/auth/passkey", body)); status != http.StatusCreated {
			b.Fatalf("got %d", status)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "logins/s")
}
