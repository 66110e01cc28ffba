// throttle.go: limits tries of passwords and codes, and how many bcrypts run at
// once. All of it is in memory, bounded, and gone with the process.
//
// A wrong password counts against the pair of user and address, against the
// address, and against the user. Past its limit each makes the next try wait,
// twice as long after every further wrong one. A pair is stopped early, so
// that one address cannot lock a user out of another. The user's own limit
// stops many addresses, but none at which the user has logged in: its wait is
// short, and then it is the turn of the address that was wrong the longest time
// ago, or never.
package main

import (
	"context"
	"hash/maphash"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

const (
	pairLimit   = 5  // wrong tries of one user from one address before the first wait
	addrLimit   = 50 // of all users from one address (IPv6: from one /64)
	userLimit   = 50 // of one user from all addresses (NIST SP 800-63B-4 section 3.2.2 allows 100)
	codeLimit   = 10 // wrong codes of a second factor, over all logins and addresses
	firstWait   = time.Second
	longestWait = 15 * time.Minute
	ownWait     = 30 * time.Second // the longest of the user's own limit
	turnLasts   = 10 * time.Second // after that wait
	forgiven    = 15 * time.Minute // after so long one wrong try less is counted
	maxCounts   = 100_000

	maxQueue     = 64               // who wait for a bcrypt
	maxQueueWait = 20 * time.Second // and for how long, with the bcrypt less than a server's WriteTimeout
)

// throttle counts tries; see newThrottle.
type throttle struct {
	seed   maphash.Seed
	mu     sync.Mutex // guards counts
	counts map[countKey]*count

	running chan struct{} // holds one value for each bcrypt that runs
	queue   chan struct{} // and one for each that runs or waits
}

// countKey is the hashes of user and address; the pair has both, the others
// have one and 0. Under a session's hash addr is 1, under a user's for codes 2.
type countKey struct{ user, addr uint64 }

type count struct {
	wrong    int
	inFlight int       // tries whose outcome is open: each may be one more wrong one
	until    time.Time // no try before
	changed  time.Time // up to when forgive has taken the time into account
	last     time.Time // wrong try; zero: there was none
	known    bool      // of a pair: that user has logged in at that address

	turn     uint64    // of a user: the address that may try first when the wait is over; 0: any
	turnLast time.Time // last of that address
}

// limit is how many wrong tries count under a key before the first wait.
type limit struct {
	key     countKey
	max     int
	longest time.Duration // wait
}

// userLimitAt is which of the limits of login is the user's userLimitAt.
const userLimitAt = 2

// newThrottle lets so many bcrypts run at once.
func newThrottle(parallel int) *throttle {
	parallel = max(1, parallel)
	return &throttle{seed: maphash.MakeSeed(), counts: map[countKey]*count{},
		running: make(chan struct{}, parallel), queue: make(chan struct{}, parallel+maxQueue)}
}

// loginLimits returns what limits the tries to log in.
func (t *throttle) loginLimits(user, addr string) []limit {
	u, a := maphash.String(t.seed, "user "+user), maphash.String(t.seed, "addr "+network(addr))
	return []limit{{countKey{u, a}, pairLimit, longestWait}, {countKey{0, a}, addrLimit, longestWait}, {countKey{u, 0}, userLimit, ownWait}}
}

// sessionLimits returns what limits the tries of a user who is logged in already: to
// change the password, and to confirm who it is (account.go).
func (t *throttle) sessionLimits(k Key) []limit {
	return []limit{{countKey{maphash.Bytes(t.seed, k[:]), 1}, pairLimit, longestWait}}
}

// codeLimits returns what limits the tries of a user's second factor. A right
// password does not reset this count, only a right code does.
func (t *throttle) codeLimits(user string) []limit {
	return []limit{{countKey{maphash.String(t.seed, "user "+user), 2}, codeLimit, longestWait}}
}

// network is what one client can be expected to have: an IPv4 address, or an
// IPv6 /64.
func network(addr string) string {
	ip, err := netip.ParseAddr(addr)
	if err != nil {
		return addr
	}
	if ip = ip.Unmap(); ip.Is4() {
		return ip.String()
	}
	prefix, _ := ip.Prefix(64)
	return prefix.String()
}

// begin counts one more try in flight, or returns how long it has to wait, and
// the last of the limits that make it wait.
func (t *throttle) begin(limits []limit) (wait time.Duration, by int) {
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	pair := t.counts[limits[0].key]
	for i, l := range limits {
		c := t.counts[l.key]
		if c == nil || i == userLimitAt && pair != nil && pair.known {
			continue
		}
		c.forgive(now)
		more := min(l.longest, c.until.Sub(now)) // the clock may have been put back
		if i == userLimitAt {
			more = max(more, c.waitForTurn(limits[0].key.addr, pair, now))
		}
		if c.inFlight > 0 && c.wrong+c.inFlight >= l.max { // too many, if those in flight are wrong
			more = max(more, firstWait)
		}
		if more > 0 {
			wait, by = max(wait, more), i
		}
	}
	if wait > 0 {
		return wait, by
	}
	for _, l := range limits {
		c := t.counts[l.key]
		if c == nil {
			t.makeRoom()
			c = &count{}
			t.counts[l.key] = c
		}
		c.inFlight++
	}
	return 0, 0
}

// waitForTurn returns how long an address has to let another go first.
func (c *count) waitForTurn(addr uint64, pair *count, now time.Time) time.Duration {
	left := c.until.Add(turnLasts).Sub(now)
	if left <= 0 {
		return 0
	}
	var last time.Time
	if pair != nil {
		last = pair.last
	}
	if c.turn == 0 || last.Before(c.turnLast) {
		c.turn, c.turnLast = addr, last
	}
	if c.turn == addr {
		return 0
	}
	return min(left, turnLasts)
}

// outcome is what became of a try.
type outcome int

const (
	tryUnused outcome = iota // no password was compared
	tryWrong
	tryRight
)

// end is for a try that begin has counted.
func (t *throttle) end(limits []limit, o outcome) {
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	for i, l := range limits {
		c := t.counts[l.key]
		if c == nil { // forgotten by clear meanwhile
			continue
		}
		c.inFlight = max(0, c.inFlight-1)
		if i == userLimitAt && c.turn == limits[0].key.addr {
			c.turn = 0
		}
		switch {
		case o == tryWrong:
			c.forgive(now)
			if c.wrong == 0 || c.wrong >= l.max { // past the limit only quiet is forgiven
				c.changed = now
			}
			c.wrong++
			c.last = now
			if over := c.wrong - l.max; over >= 0 {
				c.until = now.Add(min(l.longest, firstWait<<min(over, 20)))
			}
		case o == tryRight && i == 0:
			c.wrong, c.known = 0, len(limits) > userLimitAt
		}
		if c.wrong == 0 && c.inFlight == 0 && !c.known {
			delete(t.counts, l.key)
		}
	}
}

func (c *count) forgive(now time.Time) {
	if n := now.Sub(c.changed) / forgiven; n > 0 {
		c.wrong, c.changed = max(0, c.wrong-int(n)), c.changed.Add(n*forgiven)
	}
}

// makeRoom forgets, of a few counts at random, the one with the fewest wrong
// tries: names that somebody invents push out neither the count of a user who
// is under attack nor where that user has logged in.
func (t *throttle) makeRoom() {
	if len(t.counts) < maxCounts {
		return
	}
	var least countKey
	fewest, looked := -1, 0
	for k, c := range t.counts { // Go begins at random
		tries := c.wrong
		if c.known {
			tries += pairLimit
		}
		if c.inFlight == 0 && (fewest < 0 || tries < fewest) {
			least, fewest = k, tries
		}
		if looked++; looked >= 32 && fewest >= 0 {
			break
		}
	}
	delete(t.counts, least)
}

// clear forgets what counts against a user.
func (t *throttle) clear(user string) {
	u := t.loginLimits(user, "")[userLimitAt].key.user
	t.mu.Lock()
	defer t.mu.Unlock()
	for k := range t.counts {
		if k.user == u {
			delete(t.counts, k)
		}
	}
}

// hash runs fn, which is one bcrypt, when it is its turn. Where too many wait
// it returns a refusal instead.
func (t *throttle) hash(ctx context.Context, fn func()) error {
	busy := &refusal{http.StatusServiceUnavailable, "Too many logins at once, try again soon", "", 2 * time.Second}
	select {
	case t.queue <- struct{}{}:
		defer func() { <-t.queue }()
	default:
		return busy
	}
	ctx, cancel := context.WithTimeout(ctx, maxQueueWait)
	defer cancel()
	select {
	case t.running <- struct{}{}:
		defer func() { <-t.running }()
	case <-ctx.Done():
		return busy
	}
	fn()
	return nil
}
