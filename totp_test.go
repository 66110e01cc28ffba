// totp_test.go tests one-time codes, the seeds that are kept, and recovery
// codes, all of which are functions of their arguments.
package main

import (
	"errors"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// The vectors of RFC 6238 appendix B have eight digits, of which apps show the
// last six. Those of RFC 4226 appendix D are steps.
func TestCodeVectors(t *testing.T) {
	seed := []byte("12345678901234567890")
	for at, want := range map[int64]string{59: "94287082", 1111111109: "07081804", 1111111111: "14050471", 1234567890: "89005924",
		2000000000: "69279037", 20000000000: "65353130"} {
		if got := codeAt(seed, at/codeStep); got != want[2:] {
			t.Errorf("at %d: got %s, want %s", at, got, want[2:])
		}
	}
	for step, want := range []string{"755224", "287082", "359152", "969429", "338314", "254676", "287922", "162583", "399871", "520489"} {
		if got := codeAt(seed, int64(step)); got != want {
			t.Errorf("step %d: got %s, want %s", step, got, want)
		}
	}
}

// A code counts in its own step and in the ones beside it.
func TestStepOf(t *testing.T) {
	seed := []byte("12345678901234567890")
	const step = int64(1_000_000)
	code := codeAt(seed, step)
	begins := time.Unix(step*codeStep, 0)
	for after, want := range map[time.Duration]int64{-31 * time.Second: 0, -30 * time.Second: step, -time.Nanosecond: step, 0: step,
		30 * time.Second: step, 60*time.Second - time.Nanosecond: step, 60 * time.Second: 0} {
		if got := stepOf(seed, code, begins.Add(after)); got != want {
			t.Errorf("%v after its step begins: got %d, want %d", after, got, want)
		}
	}
	for _, other := range []string{"", code[:5], code + "0", " " + code, "abcdef", "-" + code[1:], "１２３４５６"} {
		if got := stepOf(seed, other, begins); got != 0 {
			t.Errorf("%q: got %d", other, got)
		}
	}
}

func TestPlainCode(t *testing.T) {
	for code, want := range map[string]string{"123456": "123456", "123 456": "123456", " 123-456 ": "123456", "": "", "ABCDEF-GHIJKL": "ABCDEFGHIJKL",
		"123456" + strings.Repeat(" ", maxCodeSize-6): "123456", "123456" + strings.Repeat(" ", maxCodeSize-5): "", strings.Repeat("1", 100_000): ""} {
		if got := plainCode(code); got != want {
			t.Errorf("%.20q: got %q, want %q", code, got, want)
		}
	}
}

// FuzzCode: whatever is sent for a code, it is right only where it is the code
// of a step that is near, and a recovery code only where it has the same
// letters and digits.
func FuzzCode(f *testing.F) {
	seed := []byte("12345678901234567890")
	now := time.Unix(1_000_000*codeStep, 0)
	codes, hashes := newRecoveryCodes("frodo")
	f.Add(codeAt(seed, 1_000_000))
	f.Add(codes[0])
	f.Add(strings.ToLower(codes[1]))
	f.Add(hashes[0])
	f.Add("\x00\xff")
	letters := regexp.MustCompile(`[^A-Z0-9+/=]`)
	f.Fuzz(func(t *testing.T, sent string) {
		code := plainCode(sent)
		if step := stepOf(seed, code, now); step != 0 && (codeAt(seed, step) != code || step < 999_999 || step > 1_000_001) {
			t.Errorf("%q is the code of step %d", sent, step)
		}
		if i := slices.Index(hashes, recoveryHash("frodo", code)); i >= 0 {
			if plain := letters.ReplaceAllString(strings.ToUpper(sent), ""); plain != strings.ReplaceAll(codes[i], "-", "") {
				t.Errorf("%q is taken for %q", sent, codes[i])
			}
		}
	})
}

func TestSealedSeed(t *testing.T) {
	seed := []byte("12345678901234567890")
	first, second := newSigningKey(testKey), newSigningKey(strings.Repeat("k", minKey))
	sealed := sealSeed(first, "frodo", seed)
	if sealed == sealSeed(first, "frodo", seed) {
		t.Error("sealed twice it is the same text")
	}
	for name, test := range map[string]struct {
		keys   []*signingKey
		user   string
		sealed string
		old    bool
		err    error
	}{
		"same key":          {keys: []*signingKey{first}, user: "frodo", sealed: sealed},
		"older key":         {keys: []*signingKey{second, first}, user: "frodo", sealed: sealed, old: true},
		"key of long ago":   {keys: []*signingKey{second}, user: "frodo", sealed: sealed, err: errOtherKey},
		"of another user":   {keys: []*signingKey{first}, user: "sam", sealed: sealed, err: errOtherKey},
		"changed":           {keys: []*signingKey{first}, user: "frodo", sealed: "A" + sealed[1:len(sealed)-1] + "A", err: errOtherKey},
		"cut short":         {keys: []*signingKey{first}, user: "frodo", sealed: sealed[:8], err: errOtherKey},
		"not what we wrote": {keys: []*signingKey{first}, user: "frodo", sealed: "*", err: errDamaged},
		"none":              {keys: []*signingKey{first}, user: "frodo", err: errOtherKey},
	} {
		got, old, err := openSeed(test.keys, test.user, test.sealed)
		if old != test.old || !errors.Is(err, test.err) || (err == nil) != (string(got) == string(seed)) {
			t.Errorf("%s: got %q, %v, %v", name, got, old, err)
		}
	}
}

func TestRecoveryCodes(t *testing.T) {
	codes, hashes := newRecoveryCodes("frodo")
	seen := map[string]bool{}
	for i, code := range codes {
		if !regexp.MustCompile(`^[A-Z2-7]{6}(-[A-Z2-7]{6}){3}$`).MatchString(code) || seen[code] {
			t.Errorf("got %q", code)
		}
		seen[code] = true
		for _, typed := range []string{code, strings.ToLower(code), strings.ReplaceAll(code, "-", ""), strings.ReplaceAll(code, "-", " ") + " "} {
			if recoveryHash("frodo", plainCode(typed)) != hashes[i] {
				t.Errorf("%q is not %q", typed, code)
			}
		}
		if recoveryHash("sam", plainCode(code)) == hashes[i] || recoveryHash("frodo", hashes[i]) == hashes[i] {
			t.Errorf("the hash of %q is another's too", code)
		}
	}
	if len(codes) != codeCount || len(hashes) != codeCount {
		t.Errorf("got %d codes, %d hashes", len(codes), len(hashes))
	}
}

// What an app reads has the name of its user in it, whatever that and the
// title are, and is never too long for the QR code.
func TestAppURI(t *testing.T) {
	seed := []byte("12345678901234567890")
	longest := strings.Repeat("frodo.b@", 8)
	for _, issuer := range []string{"ringward", "Bag End: guests & friends?", strings.Repeat("w", 64), strings.Repeat("ß", 64), strings.Repeat("🧝", 300), ":"} {
		for _, user := range []string{"frodo", longest} {
			uri := appURI(issuer, user, seed)
			u, err := url.Parse(uri)
			if err != nil {
				t.Fatal(err)
			}
			label, ok := strings.CutSuffix(strings.TrimPrefix(u.Path, "/"), ":"+user)
			shown := u.Query().Get("issuer")
			if u.Scheme != "otpauth" || u.Host != "totp" || !ok || label != shown || !strings.HasPrefix(strings.ReplaceAll(issuer, ":", " "), shown) {
				t.Errorf("%.20q, %s: got %s", issuer, user, uri)
			}
			if u.Query().Get("secret") != "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ" {
				t.Errorf("%s: another secret", uri)
			}
			if len(uri) > 213 || qrCode(uri) == nil {
				t.Errorf("%.20q, %s: %d bytes do not fit into a QR code", issuer, user, len(uri))
			}
		}
	}
	if got, want := appURI("ringward", "frodo", seed), "otpauth://totp/ringward:frodo?secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ&issuer=ringward"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
