// throttle_test.go holds the throttle against the figures that are promised,
// through the login itself; the clock is synctest's. That a try costs no
// bcrypt is counted where the places for bcrypt are given out.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// throttled is a server whose clients say what their address is.
type throttled struct {
	*testServer
	throttle *Throttle
	hashed   atomic.Int64 // bcrypts, or at least places for one
}

func newThrottled(t testing.TB, users ...string) *throttled {
	s := &throttled{testServer: newTestServer(t), throttle: newThrottle(1)}
	frodo, err := s.store.user("frodo")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range users {
		if err := s.store.addUser(User{Name: name, Hash: frodo.Hash, Created: time.Now()}); err != nil {
			t.Fatal(err)
		}
	}
	s.Auth.throttle = s.throttle.begin
	s.Auth.slot = func(ctx context.Context) (func(), *refusal) {
		s.hashed.Add(1)
		return s.throttle.slot(ctx)
	}
	s.Auth.addr = func(r *http.Request) string { return r.Header.Get("Test-Addr") }
	return s
}

func (s *throttled) try(user, password, addr string) *httptest.ResponseRecorder {
	return s.do("POST", "/auth/session", credentials(user, password), "Test-Addr", addr)
}

// expect tries and compares the status, and what Retry-After says.
func (s *throttled) expect(t *testing.T, user, password, addr string, status int, wait time.Duration) {
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

// What was promised, in the words of the promise.
func TestFiguresOfTheThrottle(t *testing.T) {
	for name, c := range map[string][2]int{
		"wrong tries of a user from an address": {pairLimit, 5},
		"wrong tries from an address":           {addrLimit, 50},
		"wrong tries of a user":                 {userLimit, 50},
		"seconds of the first wait":             {int(firstWait / time.Second), 1},
		"minutes of the longest":                {int(longestWait / time.Minute), 15},
		"entries":                               {maxEntries, 100_000},
		"logins that wait":                      {maxQueue, 64},
	} {
		if c[0] != c[1] {
			t.Errorf("%s: %d, want %d", name, c[0], c[1])
		}
	}
	for cpus, want := range map[int]int{1: 1, 2: 1, 3: 1, 4: 2, 16: 8} {
		if got := cap(newThrottle(cpus / 2).slots); got != want {
			t.Errorf("%d bcrypts at once on %d CPUs, want %d", got, cpus, want)
		}
	}
	if parked+maxHeld >= 2*time.Second {
		t.Errorf("a refusal may take %v", parked+maxHeld)
	}
}

const here, there = "192.0.2.1", "192.0.2.2"

func TestThrottleOfOneUserFromOneAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newThrottled(t)
		for range pairLimit {
			s.expect(t, "frodo", "wrong", here, 401, 0)
		}
		for _, wait := range []time.Duration{1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900, 900} {
			wait *= time.Second
			before := s.hashed.Load()
			s.expect(t, "frodo", "wrong", here, 429, wait)
			time.Sleep(wait - time.Second)
			for range 20 { // tries that lengthen nothing
				s.expect(t, "frodo", "wrong", here, 429, time.Second)
			}
			time.Sleep(time.Second - 1)
			s.expect(t, "frodo", "wrong", here, 429, time.Second)
			if n := s.hashed.Load() - before; n != 0 {
				t.Fatalf("%d bcrypts during a wait", n)
			}
			time.Sleep(time.Nanosecond)
			s.expect(t, "frodo", "wrong", here, 401, 0)
		}
	})
}

func TestRightPasswordDuringTheWaitIsAnsweredLikeAWrongOne(t *testing.T) {
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
		for range addrLimit / (pairLimit - 1) {
			for range pairLimit - 1 {
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
		for i := range userLimit {
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

func TestThrottleOfManyUsersFromOneAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newThrottled(t)
		for i := range addrLimit {
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

func TestChangeOfPasswordSharesTheCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newThrottled(t)
		cookie := s.login(t, "Test-Addr", here)
		change := func(current string) int {
			body, _ := json.Marshal(map[string]string{"current": current, "new": "the road goes ever on"})
			return s.do("PUT", "/auth/password", string(body), "Cookie", cookie, "Test-Addr", here).Code
		}
		for range 3 {
			s.expect(t, "frodo", "wrong", here, 401, 0)
		}
		for range 2 {
			if got := change("wrong"); got != 403 {
				t.Fatalf("change with a wrong password: %d, want 403", got)
			}
		}
		if got := change(testPassword); got != 429 {
			t.Errorf("change during the wait: %d, want 429", got)
		}
		s.expect(t, "frodo", testPassword, here, 429, time.Second)
		time.Sleep(time.Second)
		if got := change(testPassword); got != 204 {
			t.Errorf("change after the wait: %d, want 204", got)
		}
	})
}

// together sends the same try n times at once and counts the answers.
func (s *throttled) together(n int, user, password string) map[int]int {
	var mu sync.Mutex
	var all sync.WaitGroup
	counts := map[int]int{}
	for range n {
		all.Go(func() {
			status := s.try(user, password, here).Code
			mu.Lock()
			defer mu.Unlock()
			counts[status]++
		})
	}
	all.Wait()
	return counts
}

func TestTriesInFlightCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, start := newThrottled(t), time.Now()
		if got := s.together(50, "frodo", "wrong"); got[401] != pairLimit || got[429] != 50-pairLimit {
			t.Errorf("50 wrong ones at once: %v, want %d times 401", got, pairLimit)
		}
		if n := s.hashed.Load(); n != pairLimit || time.Since(start) != 0 {
			t.Errorf("%d bcrypts, want %d; the last answer after %v, want at once", n, pairLimit, time.Since(start))
		}
		time.Sleep(longestWait)
		for range 3 {
			before := s.hashed.Load()
			if got := s.together(50, "frodo", "wrong"); got[401] != 1 || s.hashed.Load()-before != 1 {
				t.Errorf("50 at once after a wait: %v and %d bcrypts, want one", got, s.hashed.Load()-before)
			}
			time.Sleep(longestWait - 1)
		}
	})
}

// Nobody who knows the password is refused because they know it often; and
// who came first goes first.
func TestRightTriesInFlightWaitForEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newThrottled(t)
		if got := s.together(pairLimit+maxParked, "frodo", testPassword); got[201] != pairLimit+maxParked {
			t.Errorf("right ones at once: %v", got)
		}
		if n := len(s.throttle.entries) + len(s.throttle.parked); n != 0 {
			t.Errorf("%d are left", n)
		}
		throttle := newThrottle(1)
		const clients = pairLimit + 20
		order := make(chan int, clients)
		for i := range clients {
			go func() {
				done, no := throttle.begin(t.Context(), "frodo", here)
				if no != nil {
					t.Error(no)
					return
				}
				order <- i
				time.Sleep(100 * time.Millisecond)
				done(right)
			}()
			time.Sleep(time.Millisecond)
		}
		for want := range clients {
			if got := <-order; got != want {
				t.Errorf("number %d went as number %d", got, want)
			}
		}
		time.Sleep(time.Second) // the last one's
	})
}

func TestAWaitForOthersIsShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		throttle := newThrottle(1)
		hang := func(n int, user string) { // tries whose outcome does not come
			for i := range n {
				if _, no := throttle.begin(t.Context(), user+strconv.Itoa(i/pairLimit), here); no != nil {
					t.Fatal(no)
				}
			}
		}
		hang(pairLimit, "frodo")
		start := time.Now()
		_, no := throttle.begin(t.Context(), "frodo0", here)
		if no == nil || no.status != 429 || time.Since(start) != pairParked {
			t.Errorf("after %v: %+v", time.Since(start), no)
		}
		gone, leave := context.WithCancel(t.Context())
		leave()
		start = time.Now()
		if _, no := throttle.begin(gone, "frodo0", here); no == nil || time.Since(start) != 0 {
			t.Errorf("a client that left: after %v: %+v", time.Since(start), no)
		}
		var refused atomic.Int64
		for range maxParked + 5 {
			go func() {
				if _, no := throttle.begin(t.Context(), "frodo0", here); no != nil {
					refused.Add(1)
				}
			}()
		}
		synctest.Wait()
		if n := refused.Load(); n != 5 {
			t.Errorf("%d were refused at once, want those over %d", n, maxParked)
		}
		time.Sleep(pairParked)
		synctest.Wait()
		if refused.Load() != maxParked+5 || len(throttle.parked) != 0 {
			t.Errorf("%d wait for ever", len(throttle.parked))
		}
		hang(addrLimit-pairLimit, "sam")
		start = time.Now()
		if _, no := throttle.begin(t.Context(), "merry", here); no == nil || time.Since(start) != parked {
			t.Errorf("the address is at its limit: after %v: %+v", time.Since(start), no)
		}
	})
}

func TestTryThatComparedNothingIsNotCounted(t *testing.T) {
	throttle := newThrottle(1)
	for range 3 * pairLimit {
		done, no := throttle.begin(t.Context(), "frodo", here)
		if no != nil {
			t.Fatal(no)
		}
		done(unused)
	}
	if n := len(throttle.entries); n != 0 {
		t.Errorf("%d entries are left", n)
	}
}

func TestTimeForgives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newThrottled(t)
		// Somebody mistypes every ten minutes, all day: an office, not an attack.
		for i := range 2 * addrLimit {
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
		fail := func(user, addr string) *refusal {
			done, no := throttle.begin(t.Context(), user, addr)
			if no == nil {
				done(wrong)
			}
			return no
		}
		for range pairLimit {
			fail("frodo", here)
		}
		for i := range userLimit {
			fail("sam", netip.AddrFrom4([4]byte{10, 1, 0, byte(i)}).String())
		}
		for i := range 100_000 {
			addr := netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, byte(i >> 16), byte(i >> 8), byte(i)}).String()
			if no := fail("invented"+strconv.Itoa(i), addr); no != nil {
				t.Fatalf("name %d: %+v", i, no)
			}
		}
		if n := len(throttle.entries); n != maxEntries {
			t.Errorf("%d entries, want %d", n, maxEntries)
		}
		if no := fail("frodo", here); no == nil {
			t.Error("the count against the pair is gone")
		}
		if no := fail("sam", there); no == nil {
			t.Error("the count against the user is gone")
		}
		for i := range addrLimit {
			fail("another"+strconv.Itoa(i), there)
		}
		if no := fail("another", there); no == nil {
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
		one, other := throttle.limits(user, addr), throttle.limits(otherUser, otherAddr)
		if again := throttle.limits(user, addr); one != again {
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

func TestSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		throttle := newThrottle(2)
		take := func(ctx context.Context) chan *refusal {
			answer := make(chan *refusal, 1)
			go func() {
				done, no := throttle.slot(ctx)
				if no == nil {
					time.Sleep(100 * time.Millisecond) // a bcrypt
					done()
				}
				answer <- no
			}()
			synctest.Wait()
			return answer
		}
		var all []chan *refusal
		for range 2 + maxQueue {
			all = append(all, take(t.Context()))
		}
		if n := len(throttle.slots); n != 2 {
			t.Fatalf("%d run at once, want 2", n)
		}
		start := time.Now()
		no := <-take(t.Context())
		if no == nil || no.status != 503 || no.wait <= 0 || time.Since(start) != 0 {
			t.Errorf("one more than wait: %+v after %v", no, time.Since(start))
		}
		for i, answer := range all {
			if no := <-answer; no != nil {
				t.Errorf("%d: %+v", i, no)
			}
			if want := time.Duration(i/2+1) * 100 * time.Millisecond; time.Since(start) != want {
				t.Errorf("%d is done after %v, want %v", i, time.Since(start), want)
			}
		}
		if throttle.queue != 0 || len(throttle.slots) != 0 {
			t.Errorf("%d wait and %d run after it", throttle.queue, len(throttle.slots))
		}
	})
}

func TestAWaitForASlotEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		throttle := newThrottle(1)
		done, _ := throttle.slot(t.Context())
		start := time.Now()
		if _, no := throttle.slot(t.Context()); no == nil || no.status != 503 || time.Since(start) != maxWaiting {
			t.Errorf("%+v after %v", no, time.Since(start))
		}
		ctx, leave := context.WithTimeout(t.Context(), time.Second)
		defer leave()
		start = time.Now()
		if _, no := throttle.slot(ctx); no == nil || time.Since(start) != time.Second {
			t.Errorf("a client that left: %+v after %v", no, time.Since(start))
		}
		if throttle.queue != 0 {
			t.Errorf("%d wait for ever", throttle.queue)
		}
		done() // it took over 20 s, so one may wait and the second would wait in vain
		done, _ = throttle.slot(t.Context())
		waits := make(chan *refusal)
		go func() {
			done, no := throttle.slot(t.Context())
			done()
			waits <- no
		}()
		synctest.Wait()
		start = time.Now()
		if _, no := throttle.slot(t.Context()); no == nil || time.Since(start) != 0 {
			t.Errorf("a wait that would be in vain: %+v after %v", no, time.Since(start))
		}
		done()
		if no := <-waits; no != nil {
			t.Error(no)
		}
	})
}

// A client that tries again at once, and again, costs little; who does not is
// refused at once.
func TestRefusalsAreHeldBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		throttle := newThrottle(1)
		throttle.entries[throttle.limits("frodo", here)[0].key] = &entry{until: time.Now().Add(time.Hour)}
		start := time.Now()
		for range 100 {
			throttle.begin(t.Context(), "frodo", here)
		}
		if took := time.Since(start); took != 0 {
			t.Errorf("100 refusals took %v", took)
		}
		var answered atomic.Int64
		for range 600 {
			go func() {
				for time.Since(start) < 10*time.Second {
					begun := time.Now()
					if _, no := throttle.begin(t.Context(), "frodo", here); no == nil {
						t.Error("not refused")
					}
					answered.Add(1)
					if took := time.Since(begun); took > maxHeld {
						t.Errorf("a refusal after %v", took)
					}
				}
			}()
		}
		for range 10 {
			before := answered.Load()
			time.Sleep(time.Second)
			if n := answered.Load() - before; n > 3*refusals {
				t.Errorf("%d refusals in a second", n)
			}
		}
	})
}

func TestClockPutBackLocksNobodyOut(t *testing.T) {
	e := &entry{wrong: pairLimit, until: time.Now().Add(365 * 24 * time.Hour).Round(0), counted: time.Now()}
	throttle := newThrottle(1)
	by := throttle.limits("frodo", here)
	throttle.entries[by[0].key] = e
	if wait, _ := throttle.admit(by); wait != longestWait {
		t.Errorf("wait %v, want %v", wait, longestWait)
	}
}

// Whoever it is who does not get in, it is one comparison at one place.
func TestEveryRefusedLoginLooksTheSame(t *testing.T) {
	s := newThrottled(t)
	hash, _ := s.hashPassword(testPassword)
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
		before := s.hashed.Load()
		got := s.try(c[0], c[1], fmt.Sprintf("198.51.100.%d", i))
		if fmt.Sprint(got.Code, got.Header(), got.Body) != fmt.Sprint(want.Code, want.Header(), want.Body) {
			t.Errorf("%.20q %.40q: %d %v %s", c[0], c[1], got.Code, got.Header(), got.Body)
		}
		if n := s.hashed.Load() - before; n != 1 {
			t.Errorf("%.20q %.40q: %d places for bcrypt, want 1", c[0], c[1], n)
		}
	}
}
