// sweep_bench_test.go: what the sweep costs at scale, and who waits for it.
//
//	go test -run '^$' -bench Sweep -benchtime 1x
//
// It fills a database of 400 MB with a million sessions first, twice.
package main

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
)

const (
	benchSessions = 1_000_000
	benchExpired  = 10_000
	benchUsers    = 20_000
	sweepPatience = 50 * time.Millisecond // of a request, for the sweep
)

// crowd is a store with benchSessions, of which expired ones, at random, are
// over at the instant now.
func crowd(b *testing.B, expired int, now time.Time) (*BoltStore, []Key) {
	b.Helper()
	store, err := OpenStore(filepath.Join(b.TempDir(), "crowd.db"))
	noErr(b, err)
	b.Cleanup(func() { store.Close() })
	store.db.NoSync = true
	noErr(b, store.update(func(tx *bolt.Tx) error {
		for n := range benchUsers {
			if err := putUser(tx, User{Name: crowdName(n), Hash: "-", Created: now}); err != nil {
				return err
			}
		}
		return nil
	}))
	random := rand.New(rand.NewPCG(1, 2))
	all := make([]Session, benchSessions)
	for n := range all {
		created := now.Add(-time.Duration(random.Int64N(int64(20 * time.Hour))))
		all[n] = Session{Key: sha256.Sum256(binary.BigEndian.AppendUint64(nil, uint64(n))), User: crowdName(n % benchUsers),
			Created: created, Seen: created, Idle: created.Add(24 * time.Hour), End: created.Add(720 * time.Hour),
			Addr: "192.0.2.17", Agent: "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"}
		if n < expired {
			all[n].Idle = now.Add(-time.Duration(random.Int64N(int64(time.Minute))))
		}
	}
	// Bucket by bucket, each in its order: bbolt appends.
	type entry struct{ bucket, key, value []byte }
	entries := make([]entry, 0, benchSessions)
	fill := func(of func(Session) entry) {
		entries = entries[:0]
		for _, s := range all {
			entries = append(entries, of(s))
		}
		slices.SortFunc(entries, func(a, b entry) int { return bytes.Compare(a.key, b.key) })
		for part := range slices.Chunk(entries, 50_000) {
			noErr(b, store.update(func(tx *bolt.Tx) error {
				for _, e := range part {
					bucket := tx.Bucket(e.bucket)
					bucket.FillPercent = 0.7 // as insertion at random leaves it
					if err := bucket.Put(e.key, e.value); err != nil {
						return err
					}
				}
				return nil
			}))
		}
	}
	fill(func(s Session) entry {
		return entry{bucketOf[kindSession], s.Key[:], seal(s.Key[:], s.User, nanos(s.Created), nanos(s.expires()),
			nanos(s.Seen), nanos(s.Idle), nanos(s.End), s.Addr, s.Agent)}
	})
	fill(func(s Session) entry { return entry{bucketOwned, ownedKey(kindSession, s.Key, s.User, s.Created), nil} })
	fill(func(s Session) entry { return entry{bucketExpiry, expiryKey(kindSession, s.Key, s.expires()), nil} })
	store.db.NoSync = false
	noErr(b, store.db.Sync())
	live := make([]Key, 0, benchSessions-expired)
	for _, s := range all[expired:] {
		live = append(live, s.Key)
	}
	all, entries = nil, nil
	runtime.GC() // what was needed to fill it would be marked while we measure
	return store, live
}

func crowdName(n int) string { return fmt.Sprintf("user%05d", n) }

// waits are how long calls took.
type waits struct {
	mu  sync.Mutex
	all []time.Duration
}

// keepCalling calls once every pace until stop.
func (w *waits) keepCalling(stop <-chan struct{}, pace time.Duration, call func(n int)) {
	tick := time.NewTicker(pace)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-stop:
			return
		case <-tick.C:
		}
		start := time.Now()
		call(n)
		took := time.Since(start)
		w.mu.Lock()
		w.all = append(w.all, took)
		w.mu.Unlock()
	}
}

// take returns the median, the 99th percentile and the longest so far, and
// begins anew.
func (w *waits) take() (median, p99, longest time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	slices.SortFunc(w.all, cmp.Compare[time.Duration])
	n := len(w.all)
	median, p99, longest = w.all[n/2], w.all[n*99/100], w.all[n-1]
	w.all = nil
	return median, p99, longest
}

// BenchmarkSweep reads and writes while it sweeps, 2,000 reads and 400 logins a
// second, and for three seconds before that. It fails when somebody waits for
// more than 50 ms, unless the disk was as slow before: a write waits for the
// sweep's commit and for its own.
func BenchmarkSweep(b *testing.B) {
	for b.Loop() {
		b.StopTimer()
		now := time.Now()
		store, live := crowd(b, benchExpired, now)
		var reads, writes waits
		stop := make(chan struct{})
		var callers sync.WaitGroup
		for i := range 4 {
			callers.Go(func() {
				random := rand.New(rand.NewPCG(3, uint64(i)))
				reads.keepCalling(stop, 2*time.Millisecond, func(int) {
					if _, _, err := store.session(live[random.IntN(len(live))], now); err != nil {
						b.Error(err)
					}
				})
			})
		}
		for i := range 2 {
			callers.Go(func() {
				me := User{Name: crowdName(i), Hash: "-", Created: now}
				var last []Key
				writes.keepCalling(stop, 5*time.Millisecond, func(n int) {
					s := Session{Key: sha256.Sum256(fmt.Append(nil, i, n)), User: me.Name, Created: now, Seen: now,
						Idle: now.Add(time.Hour), End: now.Add(time.Hour)}
					if err := store.login(me, s, last, ""); err != nil {
						b.Error(err)
					}
					last = []Key{s.Key}
				})
			})
		}
		<-time.After(3 * time.Second)
		_, _, quietRead := reads.take()
		_, _, quietWrite := writes.take()
		b.StartTimer()
		swept, err := store.Sweep(b.Context(), now)
		b.StopTimer()
		close(stop)
		callers.Wait()
		if err != nil || swept != benchExpired {
			b.Fatalf("swept %d, %v", swept, err)
		}
		report := func(name string, w *waits, quiet time.Duration) {
			ms := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
			median, p99, longest := w.take()
			b.ReportMetric(ms(median), name+"-median-ms")
			b.ReportMetric(ms(p99), name+"-p99-ms")
			b.ReportMetric(ms(longest), name+"-max-ms")
			b.ReportMetric(ms(quiet), name+"-max-ms-before")
			if longest > sweepPatience && longest > 3*quiet {
				b.Errorf("a %s waited %v for the sweep, %v are allowed; before it began the longest was %v", name, longest, sweepPatience, quiet)
			}
		}
		report("read", &reads, quietRead)
		report("write", &writes, quietWrite)
		b.StartTimer()
	}
}

// BenchmarkSweepIdle is a sweep with nothing to do.
func BenchmarkSweepIdle(b *testing.B) {
	now := time.Now()
	store, _ := crowd(b, 0, now)
	for b.Loop() {
		if n, err := store.Sweep(b.Context(), now); n != 0 || err != nil {
			b.Fatal(n, err)
		}
	}
}
