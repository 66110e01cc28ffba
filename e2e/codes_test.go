package e2e

import (
	"crypto/hmac"
	"crypto/sha1"
	"encoding/base32"
	bigendian "encoding/binary"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
)

// appCode is what an authenticator app shows for a secret, or will show so many
// steps later.
func appCode(t *testing.T, secret string, later int64) string {
	t.Helper()
	seed, err := base32.StdEncoding.DecodeString(strings.ReplaceAll(secret, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	mac := hmac.New(sha1.New, seed)
	bigendian.Write(mac, bigendian.BigEndian, time.Now().Unix()/30+later)
	sum := mac.Sum(nil)
	return fmt.Sprintf("%06d", bigendian.BigEndian.Uint32(sum[sum[19]&15:])&0x7FFFFFFF%1_000_000)
}

// enrol sets up an app for the user and returns its secret and recovery codes.
func (s *server) enrol(user string) (secret string, recovery []string) {
	s.Helper()
	cookie := s.login(user)
	proof := s.proof(cookie, password)
	secret = data[struct{ Secret string }](s.T, s.want(201, "POST", "/auth/totp", "", cookie, proof)).Secret
	r := s.want(200, "PUT", "/auth/totp", object(map[string]string{"code": appCode(s.T, secret, 0)}), cookie, proof)
	return secret, data[struct{ RecoveryCodes []string }](s.T, r).RecoveryCodes
}

// A server that is killed while it takes a code has taken it or has not: sent
// again to the next one it never makes a second session.
func TestCodeAndKill(t *testing.T) {
	p := newProgram(t)
	p.addUser("frodo", "sam")
	s := p.serve()
	for _, user := range []string{"frodo", "sam"} {
		secret, codes := s.enrol(user)
		codes = append(codes, appCode(t, secret, 1))
		sessions := func() int {
			var all []struct{}
			if err := json.Unmarshal([]byte(p.must("", "session", "list", "-json", user)), &all); err != nil {
				t.Fatal(err)
			}
			return len(all)
		}
		for i, code := range codes {
			pending := data[struct{ Pending string }](t, s.want(202, "POST", "/auth/session", credentials(user, password))).Pending
			body := object(map[string]string{"pending": pending, "code": code})
			before := sessions()
			first := make(chan reply, 1)
			go func() { first <- s.do("POST", "/auth/session/code", body) }()
			time.Sleep(time.Duration(i) * 500 * time.Microsecond) // of the few milliseconds that it takes
			s.kill()
			answered := <-first
			s = p.serve()
			accepted := sessions() - before
			if accepted > 1 || accepted == 0 && answered.status == 201 {
				t.Fatalf("%d: a response of %d, and %d sessions more", i, answered.status, accepted)
			}
			again := s.do("POST", "/auth/session/code", body)
			if want := map[int]int{0: 201, 1: 401}[accepted]; again.status != want || sessions() != before+1 {
				t.Errorf("%d: sent again after %d sessions more: %d %s, %d more", i, accepted, again.status, again.body, sessions()-before)
			}
		}
	}
}
