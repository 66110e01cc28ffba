// cache_test.go: a session that is remembered is the one that is kept.
package main

import (
	"errors"
	"io/fs"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
)

func TestSessionCache(t *testing.T) {
	var cache sessionCache
	reads := 0
	get := func(k Key) {
		t.Helper()
		s, u, err := cache.get(k, func() (Session, User, error) {
			reads++
			return Session{Key: k, Agent: string(k[:])}, User{Name: string(k[:])}, nil
		})
		if err != nil || s.Key != k || s.Agent != string(k[:]) || u.Name != string(k[:]) {
			t.Fatalf("%v: got %v of %v, %v", k, s, u, err)
		}
	}
	wantReads := func(what string, n int) {
		t.Helper()
		if reads != n {
			t.Errorf("%s: read %d times, want %d", what, reads, n)
		}
		reads = 0
	}
	one, elsewhere := Key{1}, Key{2}
	samePlace := Key{1, 0, 1}
	get(one)
	get(elsewhere)
	get(one)
	get(elsewhere)
	wantReads("two places", 2)
	for range 3 {
		get(one)
		get(samePlace)
	}
	wantReads("two in one place", 5)
	cache.invalidate()
	get(samePlace)
	get(samePlace)
	wantReads("after a write", 1)
	for range 2 {
		cache.get(one, func() (Session, User, error) {
			reads++
			cache.invalidate() // what was read may be older than this write
			return Session{Key: one}, User{}, nil
		})
	}
	get(one)
	wantReads("a write during the read", 3)
	broken := errors.New("broken")
	if _, _, err := cache.get(elsewhere, func() (Session, User, error) { return Session{Key: elsewhere}, User{}, broken }); err != broken {
		t.Errorf("an error of the file: %v", err)
	}
	get(elsewhere)
	wantReads("after an error", 1)
	for i := range 1 << 16 { // every place
		get(Key{byte(i), byte(i >> 8)})
	}
	wantReads("every place", 1<<16-2) // two are there already
}

// TestWriteMakesTheCacheVoid: a session is remembered until the next write of
// whatever kind, and judged each time all the same.
func TestWriteMakesTheCacheVoid(t *testing.T) {
	store := tempStore(t)
	u := numberedUser(0)
	noErr(t, store.addUser(u))
	s := numberedSession(u, 0)
	noErr(t, store.login(u, s, nil, ""))
	live := func(what string, now time.Time, want bool) {
		t.Helper()
		_, _, err := store.session(s.Key, now)
		if (err == nil) != want || err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", what, err)
		}
	}
	behind := func(change func(tx *bolt.Tx) error) { // a write of which the cache is not told
		t.Helper()
		noErr(t, store.update(change))
		store.cache.writes.Add(^uint64(0))
	}
	live("read", midday, true)
	behind(func(tx *bolt.Tx) error { return drop(tx, kindSession, s.Key) })
	live("remembered", midday, true)
	live("remembered, at its end", s.Idle, false)
	live("remembered, long before it was made", midday.Add(-clockSlack-1), false)
	noErr(t, store.addUser(numberedUser(1)))
	live("after a write", midday, false)

	behind(func(tx *bolt.Tx) error { return putSession(tx, s) })
	live("one that was not there is not remembered", midday, true)
	noErr(t, store.update(func(tx *bolt.Tx) error { u.Disabled = true; return putUser(tx, u) }))
	for range 2 {
		live("of a disabled user", midday, false)
	}
	noErr(t, store.update(func(tx *bolt.Tx) error { u.Disabled = false; return putUser(tx, u) }))
	live("enabled again", midday, true)
	behind(func(tx *bolt.Tx) error { return drop(tx, kindSession, s.Key) })
	if err := store.update(func(*bolt.Tx) error { return errors.New("broken") }); err == nil {
		t.Error("no error")
	}
	live("after a write that failed", midday, false)
}

// TestCacheMeetsWrites: who asks after a logout has returned never finds the
// session, whatever others read meanwhile.
func TestCacheMeetsWrites(t *testing.T) {
	store := tempStore(t)
	u := numberedUser(0)
	noErr(t, store.addUser(u))
	var ended atomic.Int64 // sessions below this number are over
	var readers sync.WaitGroup
	const sessions = 200
	for range 4 {
		readers.Go(func() {
			for ; ; runtime.Gosched() {
				over := ended.Load()
				for n := max(0, over-2); n <= over; n++ {
					s, who, err := store.session(numberedSession(u, int(n)).Key, midday)
					if err == nil && (n < over || s.User != u.Name || who != u) || err != nil && !errors.Is(err, fs.ErrNotExist) {
						t.Errorf("session %d, where %d are over: %v of %v, %v", n, over, s, who, err)
						return
					}
				}
				if over == sessions {
					return
				}
			}
		})
	}
	for n := range sessions {
		s := numberedSession(u, n)
		noErr(t, store.login(u, s, nil, ""))
		if _, _, err := store.session(s.Key, midday); err != nil {
			t.Errorf("session %d after the login: %v", n, err)
		}
		noErr(t, store.endSessions(s.Key))
		ended.Add(1)
	}
	readers.Wait()
}
