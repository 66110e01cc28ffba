// throttle.go: how many passwords who may try, and how many bcrypts run at
// once. All of it is in memory, bounded, and gone with the process.
//
// A wrong password counts against the pair of user and address, against the
// address, and against the user. Past its limit each makes the next try wait,
// twice as long after every further wrong one. A pair is stopped early, so
// that one address cannot lock a user out of another; the user's own limit
// stops many addresses, and ends by itself.
package main

import (
	"context"
	"hash/maphash"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"
)

const (
	pairLimit   = 5  // wrong tries of one user from one address before the first wait
	addrLimit   = 50 // of all users from one address (IPv6: from one /64)
	userLimit   = 50 // of one user from all addresses (NIST SP 800-63B-4 section 3.2.2 allows 100)
	firstWait   = time.Second
	longestWait = 15 * time.Minute
	forgiven    = 15 * time.Minute // after so long one wrong try less is counted
	maxEntries  = 100_000

	maxQueue   = 64               // who wait for a bcrypt
	maxWaiting = 20 * time.Second // and for how long; with pairParked less than the server's WriteTimeout

	// A try that is too many only if those in flight are all wrong waits for
	// their outcome. A pair's are few; the other limits are met by floods.
	maxParked  = 64
	pairParked = 8 * time.Second
	parked     = 1500 * time.Millisecond

	// A client that tries again as soon as it is refused would keep a CPU busy
	// with refusals: past so many in a second each is held back for a moment.
	refusals = 1000
	maxHeld  = 400 * time.Millisecond
)

// Throttle counts tries. The zero value is not ready; see newThrottle.
type Throttle struct {
	seed    maphash.Seed
	slots   chan struct{} // holds one value for each bcrypt that runs
	mu      sync.Mutex    // guards what follows
	queue   int           // who wait for a slot
	took    time.Duration // by the last bcrypt
	parked  []*parkedTry  // the longest first
	turn    time.Time     // of the last refusal
	entries map[entryKey]*entry
}

// entryKey is the hashes of user and address; the pair has both, the others
// have one and 0.
type entryKey struct{ user, addr uint64 }

type entry struct {
	wrong    int
	inFlight int       // tries whose outcome is open: each may be one more wrong one
	until    time.Time // no try before
	counted  time.Time // when wrong was last right
}

// limits are the pair's, the address's and the user's, in that order.
type limits [3]struct {
	key entryKey
	max int
}

// parkedTry waits for the outcome of others.
type parkedTry struct {
	by     limits
	answer chan time.Duration // 0: it may go on, and is counted
}

// newThrottle lets so many bcrypts run at once.
func newThrottle(parallel int) *Throttle {
	return &Throttle{seed: maphash.MakeSeed(), slots: make(chan struct{}, max(1, parallel)), entries: map[entryKey]*entry{}}
}

func (t *Throttle) limits(user, addr string) limits {
	u, a := maphash.String(t.seed, "u"+user), maphash.String(t.seed, "a"+network(addr))
	return limits{{entryKey{u, a}, pairLimit}, {entryKey{0, a}, addrLimit}, {entryKey{u, 0}, userLimit}}
}

// network is what one client can be expected to have: an IPv4 address, or an
// IPv6 /64.
func network(addr string) string {
	ip, err := netip.ParseAddr(addr)
	if err != nil {
		return addr
	}
	ip = ip.Unmap()
	if ip.Is4() {
		return ip.String()
	}
	prefix, _ := ip.Prefix(64)
	return prefix.String()
}

// begin is Auth.throttle. A try that has to wait is not counted.
func (t *Throttle) begin(ctx context.Context, user, addr string) (done func(outcome), no *refusal) {
	by := t.limits(user, addr)
	t.mu.Lock()
	wait, patience := t.admit(by)
	p := &parkedTry{by, make(chan time.Duration, 1)}
	switch {
	case patience > 0 && len(t.parked) < maxParked:
		t.parked = append(t.parked, p)
	case patience > 0:
		wait, patience = firstWait, 0
	}
	t.mu.Unlock()
	if patience > 0 {
		wait = t.park(ctx, p, patience)
	}
	if wait > 0 {
		t.hold(ctx)
		return nil, &refusal{http.StatusTooManyRequests, "Too many wrong passwords, try again later", wait}
	}
	return func(o outcome) { t.end(by, o) }, nil
}

// admit counts one more try in flight; or says how long it has to wait, or how
// long it may be parked. t.mu is held.
func (t *Throttle) admit(by limits) (wait, patience time.Duration) {
	now := time.Now()
	for i, l := range by {
		e := t.entries[l.key]
		if e == nil {
			continue
		}
		wait = max(wait, min(longestWait, e.until.Sub(now)))
		e.forgive(now)
		if e.inFlight > 0 && e.wrong+e.inFlight >= l.max {
			if patience = parked; i == 0 {
				patience = pairParked
			}
		}
	}
	if wait > 0 || patience > 0 {
		return wait, patience
	}
	for _, l := range by {
		e := t.entries[l.key]
		if e == nil {
			t.makeRoom()
			e = &entry{}
			t.entries[l.key] = e
		}
		e.inFlight++
	}
	return 0, 0
}

// park answers what admit says of p once it is decided, or firstWait.
func (t *Throttle) park(ctx context.Context, p *parkedTry, patience time.Duration) (wait time.Duration) {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case wait = <-p.answer:
		return wait
	case <-timer.C:
	case <-ctx.Done():
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if i := slices.Index(t.parked, p); i >= 0 {
		t.parked = slices.Delete(t.parked, i, i+1)
		return firstWait
	}
	return <-p.answer // decided just now
}

// unpark decides on those whom the last outcome concerns. t.mu is held.
func (t *Throttle) unpark() {
	t.parked = slices.DeleteFunc(t.parked, func(p *parkedTry) bool {
		wait, patience := t.admit(p.by)
		decided := wait > 0 || patience == 0
		if decided {
			p.answer <- wait
		}
		return decided
	})
}

func (t *Throttle) end(by limits, o outcome) {
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	defer t.unpark()
	for i, l := range by {
		e := t.entries[l.key]
		if e == nil { // forgotten by clear meanwhile
			continue
		}
		e.inFlight = max(0, e.inFlight-1)
		if o == wrong {
			e.forgive(now)
			if e.wrong == 0 || e.wrong >= l.max { // past the limit only quiet is forgiven
				e.counted = now
			}
			e.wrong++
			if over := e.wrong - l.max; over >= 0 {
				e.until = now.Add(min(longestWait, firstWait<<min(over, 20)))
			}
		}
		if o == right && i == 0 {
			e.wrong = 0
		}
		if e.wrong == 0 && e.inFlight == 0 {
			delete(t.entries, l.key)
		}
	}
}

func (e *entry) forgive(now time.Time) {
	if n := now.Sub(e.counted) / forgiven; n > 0 {
		e.wrong, e.counted = max(0, e.wrong-int(n)), e.counted.Add(n*forgiven)
	}
}

// makeRoom forgets, of a few entries at random, the one with the fewest wrong
// tries: names that somebody invents do not push out the count of a user who
// is under attack.
func (t *Throttle) makeRoom() {
	if len(t.entries) < maxEntries {
		return
	}
	var least entryKey
	fewest, looked := -1, 0
	for k, e := range t.entries { // Go begins at random
		if e.inFlight == 0 && (fewest < 0 || e.wrong < fewest) {
			least, fewest = k, e.wrong
		}
		if looked++; looked >= 32 && fewest >= 0 {
			break
		}
	}
	delete(t.entries, least)
}

// clear forgets what counts against a user.
func (t *Throttle) clear(user string) {
	u := t.limits(user, "")[2].key.user
	t.mu.Lock()
	defer t.mu.Unlock()
	for k := range t.entries {
		if k.user == u {
			delete(t.entries, k)
		}
	}
}

// hold delays a refusal until its turn.
func (t *Throttle) hold(ctx context.Context) {
	now := time.Now()
	t.mu.Lock()
	if earliest := now.Add(-time.Second); t.turn.Before(earliest) {
		t.turn = earliest
	}
	t.turn = earlier(t.turn.Add(time.Second/refusals), now.Add(maxHeld))
	delay := t.turn.Sub(now)
	t.mu.Unlock()
	if delay <= 0 {
		return
	}
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// slot is Auth.slot.
func (t *Throttle) slot(ctx context.Context) (done func(), no *refusal) {
	select {
	case t.slots <- struct{}{}:
		return t.hashing(), nil
	default:
	}
	t.mu.Lock()
	full := t.queue >= maxQueue || time.Duration(t.queue)*t.took/time.Duration(cap(t.slots)) > maxWaiting
	if !full {
		t.queue++
	}
	t.mu.Unlock()
	if !full {
		defer func() {
			t.mu.Lock()
			t.queue--
			t.mu.Unlock()
		}()
		patience := time.NewTimer(maxWaiting)
		defer patience.Stop()
		select {
		case t.slots <- struct{}{}:
			return t.hashing(), nil
		case <-patience.C:
		case <-ctx.Done():
		}
	} else {
		t.hold(ctx)
	}
	return nil, &refusal{http.StatusServiceUnavailable, "Too many logins at once, try again soon", 2 * time.Second}
}

// hashing answers what gives a slot back.
func (t *Throttle) hashing() (done func()) {
	start := time.Now()
	return func() {
		t.mu.Lock()
		t.took = time.Since(start)
		t.mu.Unlock()
		<-t.slots
	}
}
