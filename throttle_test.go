// throttle_test.go holds the throttle against the figures that are promised,
// through the login itself; the clock is synctest's.
package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// throttled is a server whose clients say what their address is, and where one
// bcrypt runs at a time.
type throttled struct{ *testServer }

func newThrottled(t testing.TB, users ...string) throttled {
	s := throttled{newTestServer(t)}
	s.throttle = newThrottle(1)
	frodo, err := s.store.user("frodo")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range users {
		if err := s.store.addUser(User{Name: name, Hash: frodo.Hash, Created: time.Now()}); err != nil {
			t.Fatal(err)
		}
	}
	handler := s.Handler
	s.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.RemoteAddr = net.JoinHostPort(r.Header.Get("Test-Addr"), "1")
		handler.ServeHTTP(w, r)
	})
	return s
}

func (s throttled) try(user, password, addr string) *httptest.ResponseRecorder {
	return s.do("POST", "/auth/session", credentials(user, password), "Test-Addr", addr)
}

// expect tries and compares the status, and what Retry-After says.
func (s throttled) expect(t *testing.T, user, password, addr string, status int, wait time.Duration) {
	t.Helper()
	w := s.try(user, password, addr)
	said := w.Header().Get("Retry-After")
	want := ""
	if wait > 0 {
		want = strconv.Itoa(int(wait / time.Second))
	}
	if w.Code != status || said != want {
		t.Fatalf("%s from %s: %d, Retry-After %q; want %d, %q", user, addr, w.Code, said, status, want)
	}
}

// hold keeps every bcrypt from running until release. In between, hashing is
// how many wait for one.
func (s throttled) hold()        { s.throttle.running <- struct{}{} }
func (s throttled) release()     { <-s.throttle.running }
func (s throttled) hashing() int { synctest.Wait(); return len(s.throttle.queue) }

const here, there = "192.0.2.1", "192.0.2.2"

func TestThrottleOfOneUserFromOneAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newThrottled(t)
		for range 5 {
			s.expect(t, "frodo", "wrong", here, 401, 0)
		}
		for _, wait := range []time.Duration{1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900, 900} {
			wait *= time.Second
			s.hold() // who wants a bcrypt would be refused otherwise, and much later
			s.expect(t, "frodo", "wrong", here, 429, wait)
			time.Sleep(wait - time.Second)
			for range 20 { // tries that lengthen nothing
				s.expect(t, "frodo", "wrong", here, 429, time.Second)
			}
			time.Sleep(time.Second - 1)
			s.expect(t, "frodo", "wrong", here, 429, time.Second)
			s.release()
			time.Sleep(time.Nanosecond)
			s.expect(t, "frodo", "wrong", here, 401, 0)
		}
	})
}

func TestRightPasswordDuringTheWaitIsRefusedLikeAWrongOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newThrottled(t)
		for range pairLimit {
			s.try("frodo", "wrong", here)
		}
		wrong, right := s.try("frodo", "wrong", here), s.try("frodo", testPassword, here)
		if fmt.Sprint(wrong.Code, wrong.Header(), wrong.Body) != fmt.Sprint(right.Code, right.Header(), right.Body) {
			t.Errorf("%d %v %s\n%d %v %s", wrong.Code, wrong.Header(), wrong.Body, right.Code, right.Header(), right.Body)
		}
		s.expect(t, "frodo", testPassword, there, 201, 0) // the victim, meanwhile
		s.expect(t, "frodo", testPassword, here, 429, time.Second)
		time.Sleep(time.Second)
		s.expect(t, "frodo", testPassword, here, 201, 0)
		for range pairLimit { // nothing is left of what was counted
			s.expect(t, "frodo", "wrong", here, 401, 0)
		}
		s.expect(t, "frodo", "wrong", here, 429, time.Second)
	})
}

func TestRightPasswordClearsOnlyThePair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newThrottled(t)
		for range 50 / 4 {
			for range 4 {
				s.expect(t, "frodo", "wrong", here, 401, 0)
			}
			s.expect(t, "frodo", testPassword, here, 201, 0)
		}
		s.expect(t, "frodo", "wrong", here, 401, 0)
		s.expect(t, "frodo", "wrong", here, 401, 0) // the 50th of the address, and of the user
		s.expect(t, "frodo", testPassword, here, 429, time.Second)
		s.expect(t, "sam", "wrong", here, 429, time.Second)
		s.expect(t, "frodo", testPassword, there, 429, time.Second)
	})
}

func TestThrottleOfOneUserFromManyAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newThrottled(t, "sam")
		addr := func(i int) string { return fmt.Sprintf("198.51.100.%d", i) }
		for i := range 50 {
			s.expect(t, "frodo", "wrong", addr(i), 401, 0)
		}
		s.expect(t, "frodo", testPassword, there, 429, time.Second)
		s.expect(t, "sam", testPassword, there, 201, 0)
		time.Sleep(time.Second)
		s.expect(t, "frodo", "wrong", there, 401, 0)
		s.expect(t, "frodo", testPassword, here, 429, 2*time.Second)
		time.Sleep(2 * time.Second)
		s.expect(t, "frodo", testPassword, here, 201, 0)
	})
}

// However many addresses somebody has, they do not keep a user out of where the
// user has logged in before, whether or not a session is left.
func TestThrottleOfOneUserWhereTheyHaveLoggedIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newThrottled(t)
		s.expect(t, "frodo", testPassword, here, 201, 0)
		live, err := s.store.sessions("frodo", time.Now())
		if err != nil || s.store.endSessions(live[0].Key) != nil {
			t.Fatal(err)
		}
		for i := range userLimit + 20 {
			if i >= userLimit {
				time.Sleep(ownWait)
			}
			s.expect(t, "frodo", "wrong", fmt.Sprintf("198.51.100.%d", i), 401, 0)
		}
		s.expect(t, "frodo", testPassword, there, 429, ownWait)
		s.expect(t, "frodo", testPassword, here, 201, 0)
		for range pairLimit {
			s.expect(t, "frodo", "wrong", here, 401, 0)
		}
		s.expect(t, "frodo", testPassword, here, 429, time.Second)
	})
}

func TestThrottleOfManyUsersFromOneAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newThrottled(t)
		for i := range 50 {
			s.expect(t, "user"+strconv.Itoa(i), "wrong", here, 401, 0)
		}
		s.expect(t, "frodo", testPassword, here, 429, time.Second)
		s.expect(t, "frodo", testPassword, there, 201, 0)
		time.Sleep(time.Second)
		s.expect(t, "one more", "wrong", here, 401, 0)
		s.expect(t, "frodo", testPassword, here, 429, 2*time.Second)
	})
}

func TestSpellingsOfANameAreOneUser(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newThrottled(t)
		for _, name := range []string{"frodo", "Frodo", "FRODO", "fRoDo", "frodO"} {
			s.expect(t, name, "wrong", here, 401, 0)
		}
		for _, name := range []string{"frodo", "FRodo"} {
			s.expect(t, name, testPassword, here, 429, time.Second)
		}
		for _, name := range []string{"frodo ", " frodo", "frodo\u200b", "frodо", "ｆrodo", "frodo\x00", "FRODİ"} { // nobody
			s.expect(t, name, testPassword, there, 401, 0)
		}
	})
}

// Tries whose outcome is open count as wrong ones: no more bcrypts run than
// there are tries left, however many come at once.
func TestTriesInFlightCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newThrottled(t)
		for _, left := range []int{5, 1, 1} { // after the first five, one after each wait
			s.hold()
			statuses := make(chan int, 50)
			for range cap(statuses) {
				go func() { statuses <- s.try("frodo", "wrong", here).Code }()
			}
			if n := s.hashing(); n != left || len(statuses) != cap(statuses)-left {
				t.Fatalf("of %d at once %d want a bcrypt, %d are refused; want %d", cap(statuses), n, len(statuses), left)
			}
			s.expect(t, "frodo", testPassword, here, 429, time.Second)
			s.expect(t, "frodo", "wrong", here, 429, time.Second)
			s.release()
			counts := map[int]int{}
			for range cap(statuses) {
				counts[<-statuses]++
			}
			if counts[401] != left || counts[429] != cap(statuses)-left {
				t.Errorf("%v, want %d times 401", counts, left)
			}
			time.Sleep(longestWait - 1)
		}
	})
}

// Nobody who knows the password is kept out because they know it often: a
// dozen devices that try at the same instant, and again as they are told.
func TestRightTriesAtTheSameInstant(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, start := newThrottled(t), time.Now()
		const devices = 12
		in, refused := make(chan time.Duration, devices), make(chan bool, 10*devices)
		s.hold()
		for range devices {
			go func() {
				for {
					w := s.try("frodo", testPassword, here)
					if w.Code == 201 {
						in <- time.Since(start)
						return
					}
					wait, _ := strconv.Atoi(w.Header().Get("Retry-After"))
					if w.Code != 429 || wait != 1 {
						t.Errorf("%d, Retry-After %d", w.Code, wait)
					}
					refused <- true
					time.Sleep(time.Duration(wait) * time.Second)
				}
			}()
		}
		for len(in) < devices { // a bcrypt that takes its time
			time.Sleep(400 * time.Millisecond)
			s.release()
			synctest.Wait()
			s.hold()
		}
		s.release()
		for range devices {
			if took := <-in; took > 3*time.Second {
				t.Errorf("in after %v", took)
			}
		}
		if len(refused) == 0 {
			t.Error("this test tests nothing")
		}
		if n := len(s.throttle.counts); n != 1 {
			t.Errorf("%d counts are left, want only that the user has logged in here", n)
		}
	})
}

// A try for which there was no bcrypt says nothing about the password.
func TestTryThatComparedNothingIsNotCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newThrottled(t)
		s.hold()
		for range 3 * pairLimit {
			start := time.Now()
			s.expect(t, "frodo", "wrong", here, 503, 2*time.Second)
			if took := time.Since(start); took != maxQueueWait {
				t.Errorf("refused after %v, want %v", took, maxQueueWait)
			}
		}
		for range cap(s.throttle.queue) {
			s.throttle.queue <- struct{}{}
		}
		for range 3 * pairLimit {
			s.expect(t, "frodo", "wrong", here, 503, 2*time.Second)
		}
		if n := len(s.throttle.counts); n != 0 {
			t.Errorf("%d counts are left", n)
		}
	})
}

func TestTimeForgives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newThrottled(t)
		// Somebody mistypes every ten minutes, all day: an office, not an attack.
		for i := range 100 {
			s.expect(t, "user"+strconv.Itoa(i), "wrong", here, 401, 0)
			time.Sleep(10 * time.Minute)
		}
		for range pairLimit {
			s.expect(t, "sam", "wrong", here, 401, 0)
		}
		time.Sleep(2 * forgiven)
		s.expect(t, "sam", "wrong", here, 401, 0)
		s.expect(t, "sam", "wrong", here, 401, 0)
		s.expect(t, "sam", "wrong", here, 429, time.Second)
		time.Sleep(100 * 24 * time.Hour)
		for range pairLimit {
			s.expect(t, "sam", "wrong", here, 401, 0)
		}
		s.expect(t, "sam", "wrong", here, 429, time.Second)
	})
}

func TestUnlock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newThrottled(t, "sam")
		for i := range userLimit - pairLimit {
			s.expect(t, "frodo", "wrong", fmt.Sprintf("198.51.100.%d", i), 401, 0)
		}
		for range pairLimit {
			s.expect(t, "frodo", "wrong", here, 401, 0)
			s.expect(t, "sam", "wrong", here, 401, 0)
		}
		s.expect(t, "frodo", testPassword, here, 429, time.Second)
		s.throttle.clear("frodo")
		s.expect(t, "sam", testPassword, here, 429, time.Second)
		s.expect(t, "frodo", testPassword, here, 201, 0)
	})
}

// Names that somebody invents fill the memory only so far, and do not make the
// server forget whom they attack.
func TestInventedNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		throttle := newThrottle(1)
		fail := func(user, addr string) (wait time.Duration) {
			limits := throttle.loginLimits(user, addr)
			if wait, _ = throttle.begin(limits); wait == 0 {
				throttle.end(limits, tryWrong)
			}
			return wait
		}
		for range pairLimit {
			fail("frodo", here)
		}
		for i := range userLimit {
			fail("sam", netip.AddrFrom4([4]byte{10, 1, 0, byte(i)}).String())
		}
		known := throttle.loginLimits("frodo", there)
		throttle.begin(known)
		throttle.end(known, tryRight)
		for i := range 100_000 {
			addr := netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, byte(i >> 16), byte(i >> 8), byte(i)}).String()
			if wait := fail("invented"+strconv.Itoa(i), addr); wait != 0 {
				t.Fatalf("name %d: %v", i, wait)
			}
		}
		if n := len(throttle.counts); n != 100_000 {
			t.Errorf("%d counts, want 100,000", n)
		}
		if fail("frodo", here) == 0 {
			t.Error("the count against the pair is gone")
		}
		if fail("sam", there) == 0 {
			t.Error("the count against the user is gone")
		}
		if throttle.counts[known[0].key] == nil {
			t.Error("nobody knows any more where frodo has logged in")
		}
		for i := range addrLimit {
			fail("another"+strconv.Itoa(i), there)
		}
		if fail("another", there) == 0 {
			t.Error("the count against the address is gone")
		}
	})
}

func TestNetwork(t *testing.T) {
	for _, c := range [][2]string{
		{"192.0.2.1", "192.0.2.1"},
		{"::ffff:192.0.2.1", "192.0.2.1"},
		{"::ffff:c000:201", "192.0.2.1"},
		{"2001:db8:0:1::1", "2001:db8:0:1::/64"},
		{"2001:db8:0:1:ffff:ffff:ffff:ffff", "2001:db8:0:1::/64"},
		{"2001:0DB8:0:1:0:0:0:1", "2001:db8:0:1::/64"},
		{"2001:db8:0:2::1", "2001:db8:0:2::/64"},
		{"fe80::1%eth0", "fe80::/64"},
		{"fe80::2%eth1", "fe80::/64"},
		{"::1", "::/64"},
		{"@", "@"},
		{"", ""},
	} {
		if got := network(c[0]); got != c[1] {
			t.Errorf("network(%q) = %q, want %q", c[0], got, c[1])
		}
	}
}

func TestNeighboursInANetworkAreOneAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newThrottled(t)
		for i := range pairLimit {
			s.expect(t, "frodo", "wrong", fmt.Sprintf("2001:db8::%x:1", i), 401, 0)
		}
		s.expect(t, "frodo", testPassword, "2001:db8::ffff", 429, time.Second)
		s.expect(t, "frodo", testPassword, "2001:db8:0:1::ffff", 201, 0)
		for range pairLimit - 1 {
			s.expect(t, "frodo", "wrong", here, 401, 0)
		}
		s.expect(t, "frodo", "wrong", "::ffff:"+here, 401, 0)
		s.expect(t, "frodo", testPassword, here, 429, time.Second)
	})
}

// FuzzThrottleKey: one client has one key, and nobody's name and address are
// taken for another's.
func FuzzThrottleKey(f *testing.F) {
	for _, addr := range []string{"192.0.2.1", "::ffff:192.0.2.1", "2001:db8::1", "fe80::1%lo", "a", "", "1.2.3.4:5"} {
		f.Add("frodo", addr, "sam", there)
	}
	f.Fuzz(func(t *testing.T, user, addr, otherUser, otherAddr string) {
		throttle := newThrottle(1)
		one, other := throttle.loginLimits(user, addr), throttle.loginLimits(otherUser, otherAddr)
		if again := throttle.loginLimits(user, addr); !slices.Equal(one, again) {
			t.Fatalf("%v, then %v", one, again)
		}
		sameUser, sameAddr := user == otherUser, network(addr) == network(otherAddr)
		for i, same := range []bool{sameUser && sameAddr, sameAddr, sameUser} {
			if got := one[i].key == other[i].key; got != same {
				t.Fatalf("limit %d of %q %q and %q %q: same %v", i, user, addr, otherUser, otherAddr, got)
			}
		}
		if n := network(addr); n != addr {
			ip := netip.MustParseAddr(addr)
			if prefix, err := netip.ParsePrefix(n); err == nil && (prefix.Bits() != 64 || !prefix.Contains(ip.WithZone(""))) {
				t.Fatalf("network(%q) = %q", addr, n)
			} else if err != nil && n != ip.Unmap().String() {
				t.Fatalf("network(%q) = %q", addr, n)
			}
		}
	})
}

func TestBcryptsThatRunAtOnce(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	for cpus, want := range map[int]int{1: 1, 2: 1, 3: 1, 4: 2, 16: 8} {
		runtime.GOMAXPROCS(cpus)
		auth, err := NewAuth(nil, testKey)
		if err != nil {
			t.Fatal(err)
		}
		if got := cap(auth.throttle.running); got != want {
			t.Errorf("%d on %d CPUs, want %d", got, cpus, want)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		throttle := newThrottle(2)
		hash := func(ctx context.Context) chan error {
			done := make(chan error, 1)
			go func() { done <- throttle.hash(ctx, func() { time.Sleep(100 * time.Millisecond) }) }()
			synctest.Wait()
			return done
		}
		var all []chan error
		for range 2 + 64 {
			all = append(all, hash(t.Context()))
		}
		if n := len(throttle.running); n != 2 {
			t.Fatalf("%d run at once, want 2", n)
		}
		start := time.Now()
		no, ok := (<-hash(t.Context())).(*refusal)
		if !ok || no.status != 503 || no.wait <= 0 || time.Since(start) != 0 {
			t.Errorf("one more than may wait: %+v after %v", no, time.Since(start))
		}
		for i, done := range all {
			if err := <-done; err != nil {
				t.Errorf("%d: %v", i, err)
			}
			if want := time.Duration(i/2+1) * 100 * time.Millisecond; time.Since(start) != want {
				t.Errorf("%d is done after %v, want %v", i, time.Since(start), want)
			}
		}
		all = []chan error{hash(t.Context()), hash(t.Context())}
		gone, leave := context.WithCancel(t.Context())
		waits := hash(gone)
		leave()
		if no, ok := (<-waits).(*refusal); !ok || no.status != 503 {
			t.Errorf("a client that left: %+v", no)
		}
		for _, done := range all {
			<-done
		}
		if len(throttle.queue) != 0 || len(throttle.running) != 0 {
			t.Errorf("%d wait and %d run after it", len(throttle.queue), len(throttle.running))
		}
	})
}

func TestClockPutBackLocksNobodyOut(t *testing.T) {
	throttle := newThrottle(1)
	limits := throttle.loginLimits("frodo", here)
	throttle.counts[limits[0].key] = &count{wrong: pairLimit, until: time.Now().Add(365 * 24 * time.Hour).Round(0), changed: time.Now()}
	if wait, _ := throttle.begin(limits); wait != longestWait {
		t.Errorf("wait %v, want %v", wait, longestWait)
	}
}

// Whoever it is who does not get in, it is one bcrypt's place and one response.
func TestEveryRefusedLoginLooksTheSame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newThrottled(t)
		hash, _ := s.hashPassword(t.Context(), testPassword)
		for _, u := range []User{{Name: "disabled", Hash: hash, Disabled: true}, {Name: "invited"}, {Name: "odd", Hash: "$2a$31$"}} {
			if err := s.store.addUser(u); err != nil {
				t.Fatal(err)
			}
		}
		want := s.try("frodo", "wrong", here)
		if want.Code != 401 {
			t.Fatalf("a wrong password: %d", want.Code)
		}
		for i, c := range [][2]string{
			{"nobody", testPassword},
			{"disabled", testPassword},
			{"invited", testPassword},
			{"invited", ""},
			{"odd", testPassword},
			{"frodo", ""},
			{"frodo", testPassword + "\x00"},
			{"frodo", strings.Repeat("x", 73)},
			{"frodo", strings.Repeat("x", 1025)},
			{"frodo", strings.Repeat("x", 60_000)},
			{"frodo\x00", testPassword},
			{"", testPassword},
			{strings.Repeat("x", 65), testPassword},
			{strings.Repeat("x", 60_000), testPassword},
		} {
			s.hold()
			tried := make(chan *httptest.ResponseRecorder, 1)
			go func() { tried <- s.try(c[0], c[1], fmt.Sprintf("198.51.100.%d", i)) }()
			if n := s.hashing(); n != 1 {
				t.Errorf("%.20q %.40q: %d bcrypts, want 1", c[0], c[1], n)
			}
			s.release()
			got := <-tried
			if fmt.Sprint(got.Code, got.Header(), got.Body) != fmt.Sprint(want.Code, want.Header(), want.Body) {
				t.Errorf("%.20q %.40q: %d %v %s", c[0], c[1], got.Code, got.Header(), got.Body)
			}
		}
	})
}
