// totp.go: one-time codes of an authenticator app (RFC 6238) as functions of
// seed and time, how a seed is kept, and recovery codes.
package main

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base32"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"
	"unicode/utf8"
)

const (
	codeStep    = 30 // seconds that a code is shown
	seedBytes   = 20 // as long as SHA-1, which is what all apps know (RFC 4226 section 4)
	codeCount   = 8  // recovery codes of a user
	maxCodeSize = 64 // bytes of what is taken for a code
)

var seedText = base32.StdEncoding.WithPadding(base32.NoPadding)

// codeAt returns the code of a step.
func codeAt(seed []byte, step int64) string {
	mac := hmac.New(sha1.New, seed)
	mac.Write(binary.BigEndian.AppendUint64(nil, uint64(step)))
	sum := mac.Sum(nil)
	value := binary.BigEndian.Uint32(sum[sum[len(sum)-1]&15:]) & 0x7FFFFFFF
	return fmt.Sprintf("%06d", value%1_000_000)
}

// stepOf returns the step whose code this is, of the one that now is in and its
// neighbours (RFC 6238 section 5.2), or 0.
func stepOf(seed []byte, code string, now time.Time) (step int64) {
	for at := now.Unix()/codeStep - 1; at <= now.Unix()/codeStep+1; at++ {
		if hmac.Equal([]byte(codeAt(seed, at)), []byte(code)) {
			step = at
		}
	}
	return step
}

// appURI is what an authenticator app reads from the QR code. The issuer loses
// its end where the code cannot hold it all.
func appURI(issuer, user string, seed []byte) string {
	// A colon would end it, and some apps show a plus as it is.
	escaped := strings.ReplaceAll(url.QueryEscape(strings.ReplaceAll(issuer, ":", " ")), "+", "%20")
	uri := "otpauth://totp/" + escaped + ":" + user + "?secret=" + seedText.EncodeToString(seed) + "&issuer=" + escaped
	if len(uri) > maxQR {
		_, last := utf8.DecodeLastRuneInString(issuer)
		return appURI(issuer[:len(issuer)-last], user, seed)
	}
	return uri
}

// sealSeed encrypts a seed for the database, where only who has the key of the
// server can read it, and only under the name of its user.
func sealSeed(key *signingKey, user string, seed []byte) string {
	return base64.RawStdEncoding.EncodeToString(seedBox(key).Seal(nil, nil, seed, []byte(user)))
}

var errOtherKey = errors.New("the second factor was kept under another SECRET_KEY: put that one behind the comma, or use the command user factor reset")

// openSeed also says whether an older key did it.
func openSeed(keys []*signingKey, user, sealed string) (seed []byte, old bool, err error) {
	text, err := base64.RawStdEncoding.DecodeString(sealed)
	if err != nil {
		return nil, false, errDamaged
	}
	for i, key := range keys {
		if seed, err := seedBox(key).Open(nil, nil, text, []byte(user)); err == nil {
			return seed, i > 0, nil
		}
	}
	return nil, false, errOtherKey
}

// derive makes a key for one purpose from one of the server's.
func derive(key *signingKey, purpose string, n int) []byte {
	derived, err := hkdf.Key(sha256.New, []byte(key.text), nil, purpose, n)
	if err != nil {
		panic(err) // a length that HKDF does not have
	}
	return derived
}

// seedBox puts a random nonce in front.
func seedBox(key *signingKey) (box cipher.AEAD) {
	block, err := aes.NewCipher(derive(key, "ringward totp seed", 32))
	if err == nil {
		box, err = cipher.NewGCMWithRandomNonce(block)
	}
	if err != nil {
		panic(err) // a length that AES does not have
	}
	return box
}

// newRecoveryCodes returns codes of 120 bits each, and what is kept of them.
func newRecoveryCodes(user string) (codes, hashes []string) {
	for range codeCount {
		var b [15]byte
		rand.Read(b[:])
		text := seedText.EncodeToString(b[:])
		codes = append(codes, text[:6]+"-"+text[6:12]+"-"+text[12:18]+"-"+text[18:])
		hashes = append(hashes, recoveryHash(user, text))
	}
	return codes, hashes
}

// recoveryHash is of a plainCode, in small letters too.
func recoveryHash(user, code string) string {
	sum := sha256.Sum256([]byte("recovery code of " + user + ": " + strings.ToUpper(code)))
	return base64.RawStdEncoding.EncodeToString(sum[:])
}

// plainCode is a code without what people and apps put between its parts, or ""
// for what is too long to be one.
func plainCode(code string) string {
	if len(code) > maxCodeSize {
		return ""
	}
	return strings.NewReplacer(" ", "", "-", "").Replace(code)
}
