// store_test.go: the bbolt store where its promises are hard to keep: many who
// write at once, records that the disk changed, times far away. What every
// Store promises is in conformance_test.go.
package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
)

// midday is when these tests happen.
var midday = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

func numberedUser(n int) User {
	return User{Name: fmt.Sprintf("user%d", n), Hash: fmt.Sprintf("hash%d", n), Created: midday.Add(-time.Hour)}
}

// numberedSession begins at midday and lasts an hour unless it is renewed.
func numberedSession(u User, n int) Session {
	return Session{Key: sha256.Sum256(fmt.Append(nil, u.Name, n)), User: u.Name, Created: midday, Seen: midday,
		Idle: midday.Add(time.Hour), End: midday.Add(24 * time.Hour), Addr: "192.0.2.1", Agent: "test"}
}

// tempStore is a new store, closed when the test is over. What the disk has
// after a crash is not for these tests.
func tempStore(t testing.TB) *BoltStore {
	t.Helper()
	store, err := OpenStore(filepath.Join(t.TempDir(), "test.db"))
	noErr(t, err)
	t.Cleanup(func() { store.Close() })
	store.db.NoSync = true
	return store
}

func noErr(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// addRecords are the seeds of the fuzz targets: records as we write them.
func addRecords(f *testing.F) {
	u := numberedUser(1)
	s := numberedSession(u, 1)
	f.Add([]byte(u.Name), seal([]byte(u.Name), u.Hash, "enabled", nanos(u.Created)), 0)
	f.Add(s.Key[:], seal(s.Key[:], s.User, nanos(s.Created), nanos(s.Idle), nanos(s.Seen), nanos(s.Idle), nanos(s.End), s.Addr, s.Agent), 9)
	f.Add(ringKey(3), seal(ringKey(3), "Vilya", "elves"), 40)
	f.Add([]byte{}, []byte{}, 0)
	f.Add([]byte("frodo"), []byte("1\x00\x00\x00"), 2)
}

// FuzzRecord reads arbitrary bytes as a record. What is read is written the
// same, and no change goes unnoticed.
func FuzzRecord(f *testing.F) {
	addRecords(f)
	f.Fuzz(func(t *testing.T, key, record []byte, at int) {
		if _, err := unseal(key, record, 0); err != nil && !errors.Is(err, errDamaged) && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		parts := strings.Split(string(record), "\x00")
		for _, record := range [][]byte{record, seal(key, parts...)} {
			fields, err := unseal(key, record, 0)
			if err != nil {
				continue
			}
			if again := seal(key, fields...); !bytes.Equal(again, record) {
				t.Fatalf("%q was read as %q, which is written as %q", record, fields, again)
			}
			if at >= 0 && at < len(record) {
				for bit := range 8 {
					changed := bytes.Clone(record)
					changed[at] ^= 1 << bit
					if fields, err := unseal(key, changed, 0); err == nil {
						t.Fatalf("a changed bit goes unnoticed: %q", fields)
					}
				}
			}
			if _, err := unseal(append(bytes.Clone(key), 'x'), record, 0); err == nil {
				t.Fatal("the record passes under another key")
			}
			getRing(ringKey(1), record)
		}
		sealed := seal(key, parts...)
		if fields, err := unseal(key, sealed, len(parts)); err != nil || !slices.Equal(fields, parts) {
			t.Fatalf("%q is read as %q, %v", parts, fields, err)
		}
		if _, err := unseal(key, sealed, len(parts)+1); !errors.Is(err, errDamaged) {
			t.Fatalf("%d fields pass for more: %v", len(parts), err)
		}
	})
}

// FuzzStoredRecord puts arbitrary bytes where records are kept, as they are and
// with a checksum that fits, and reads and drops them as every kind of record.
func FuzzStoredRecord(f *testing.F) {
	addRecords(f)
	store, err := OpenStore(filepath.Join(f.TempDir(), "fuzz.db"))
	if err != nil {
		f.Fatal(err)
	}
	defer store.Close()
	undo := errors.New("undo")
	f.Fuzz(func(t *testing.T, key, record []byte, _ int) {
		if len(key) == 0 || len(key) > 1000 {
			return
		}
		secret := Key(sha256.Sum256(key))
		parts := strings.Split(string(record), "\x00")
		err := store.db.Update(func(tx *bolt.Tx) error { // as the store's methods do, but undone
			for _, record := range [][]byte{record, seal(key, parts...), seal(secret[:], parts...)} {
				if err := tx.Bucket(bucketUsers).Put(key, record); err != nil {
					return err
				}
				getUser(tx, string(key))
				for _, kd := range []kind{kindSession, kindToken, kindInvite} {
					if err := tx.Bucket(bucketOf[kd]).Put(secret[:], record); err != nil {
						return err
					}
				}
				getSession(tx, secret)
				getToken(tx, secret)
				getInvite(tx, secret, midday)
				for _, kd := range []kind{kindSession, kindToken, kindInvite} {
					if err := drop(tx, kd, secret); err != nil {
						return fmt.Errorf("it cannot be dropped: %w", err)
					}
				}
			}
			return undo
		})
		if err != undo {
			t.Fatal(err)
		}
	})
}

// TestSweepEnds: keys that the disk put out of order can be seen and not be
// deleted.
func TestSweepEnds(t *testing.T) {
	path := filepath.Join(t.TempDir(), "test.db")
	content := filledFile(t, 2)
	first := Key{}
	for n := range 2 {
		for i := range 3 {
			if k := numberedSession(numberedUser(n), i).Key; first == (Key{}) || bytes.Compare(k[:], first[:]) < 0 {
				first = k
			}
		}
	}
	entry := expiryKey(kindSession, first, midday.Add(time.Hour))
	if !bytes.Contains(content, entry) {
		t.Fatal("the entry is not there")
	}
	for rest := content; ; {
		i := bytes.Index(rest, entry)
		if i < 0 {
			break
		}
		rest[i], rest = 0xff, rest[i+1:]
	}
	noErr(t, os.WriteFile(path, content, 0o600))
	store, err := OpenStore(path)
	noErr(t, err)
	defer store.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if n, err := store.Sweep(ctx, midday.Add(48*time.Hour)); !errors.Is(err, errDamaged) {
		t.Errorf("swept %d, %v", n, err)
	}
}

// TestWritesShareCommits: writes that come while another one commits share the
// next commit, and one that fails or panics harms none of the others.
func TestWritesShareCommits(t *testing.T) {
	store := tempStore(t)
	const writes, fails, panics = 64, 7, 23
	broken := errors.New("broken")
	holding, release := make(chan bool), make(chan bool)
	var all sync.WaitGroup
	all.Go(func() {
		store.update(func(*bolt.Tx) error { holding <- true; <-release; return nil })
	})
	<-holding
	before := lastWrite(t, store)
	var errs [writes]error
	for n := range writes {
		all.Go(func() {
			errs[n] = store.update(func(tx *bolt.Tx) error {
				if err := putUser(tx, numberedUser(n)); err != nil {
					return err
				}
				switch n {
				case fails:
					return broken
				case panics:
					panic("in a write")
				}
				return nil
			})
		})
	}
	for waiting := 0; waiting < writes; runtime.Gosched() {
		store.queueing.Lock()
		waiting = len(store.queue)
		store.queueing.Unlock()
	}
	close(release)
	all.Wait()
	if n := lastWrite(t, store) - before; n != 2 {
		t.Errorf("a write and %d after it, of which two fail, took %d commits, want 2", writes, n)
	}
	for n, err := range errs {
		_, found := store.user(numberedUser(n).Name)
		want := error(nil)
		switch n {
		case fails:
			want = broken
		case panics:
			want = errDamaged
		}
		if !errors.Is(err, want) || errors.Is(found, fs.ErrNotExist) != (want != nil) {
			t.Errorf("write %d: %v, then %v; want %v", n, err, found, want)
		}
	}
	noErr(t, store.addUser(numberedUser(writes))) // no lock was left held
}

// lastWrite is the id of the last write transaction.
func lastWrite(t testing.TB, store *BoltStore) (id int) {
	t.Helper()
	noErr(t, store.view(func(tx *bolt.Tx) error { id = tx.ID(); return nil }))
	return id
}

// countEntries counts the records and index entries of a store.
func countEntries(t testing.TB, store *BoltStore) map[string]int {
	t.Helper()
	n := map[string]int{}
	noErr(t, store.view(func(tx *bolt.Tx) error {
		for _, name := range buckets {
			tx.Bucket(name).ForEach(func(k, v []byte) error { n[string(name)]++; return nil })
		}
		return nil
	}))
	return n
}

// TestSweepIsExact compares the store with a map, after operations at random.
func TestSweepIsExact(t *testing.T) {
	store := tempStore(t)
	random := rand.New(rand.NewPCG(4, 2))
	u := numberedUser(0)
	noErr(t, store.addUser(u))
	live := map[Key]time.Time{} // what is in the store, and until when
	now := midday
	pick := func() (Key, bool) {
		for k := range live {
			return k, true
		}
		return Key{}, false
	}
	for step := range 600 {
		switch random.IntN(6) {
		case 0, 1, 2:
			if len(live) >= maxSessions-1 { // the cap has its own test
				break
			}
			s := numberedSession(u, step)
			s.Created, s.Seen = now, now
			s.Idle = now.Add(time.Duration(random.IntN(60)) * time.Second)
			s.End = now.Add(time.Duration(30+random.IntN(60)) * time.Second)
			noErr(t, store.login(u, s, nil, ""))
			live[s.Key] = s.expires()
		case 3:
			if k, ok := pick(); ok {
				s, _, err := store.session(k, now)
				if wants := now.Before(live[k]); wants != (err == nil) {
					t.Fatalf("step %d: a session with %v left: %v", step, live[k].Sub(now), err)
				}
				idle := earlier(now.Add(time.Minute), s.End)
				if err == nil {
					noErr(t, store.renew(k, now, now, idle))
					live[k] = idle
				} else if err := store.renew(k, now, now, now.Add(time.Hour)); !errors.Is(err, fs.ErrNotExist) {
					t.Fatalf("step %d: a session that is over was renewed: %v", step, err)
				}
			}
		case 4:
			if k, ok := pick(); ok {
				noErr(t, store.endSessions(k))
				delete(live, k)
			}
		case 5:
			now = now.Add(time.Duration(random.IntN(20)) * time.Second)
			due := 0
			for k, expires := range live {
				if !now.Before(expires) {
					due++
					delete(live, k)
				}
			}
			if n, err := store.Sweep(t.Context(), now); n != due || err != nil {
				t.Fatalf("step %d: swept %d of %d, %v", step, n, due, err)
			}
			for k := range live {
				if _, _, err := store.session(k, now); err != nil {
					t.Fatalf("step %d: a live session was swept: %v", step, err)
				}
			}
		}
		if n := countEntries(t, store); n["sessions"] != len(live) || n["expiry"] != len(live) || n["owned"] != len(live) {
			t.Fatalf("step %d: %d sessions, but in the file are %v", step, len(live), n)
		}
	}
}

// TestSweepTakesEveryKind: sessions and invites, in many transactions. Tokens
// stay: their owner is shown which have expired.
func TestSweepTakesEveryKind(t *testing.T) {
	store := tempStore(t)
	const each = 60
	for n := range each {
		u := numberedUser(n)
		noErr(t, store.addUser(u))
		noErr(t, store.login(u, numberedSession(u, 0), nil, "")) // an hour
		noErr(t, store.addToken(Token{Key: sha256.Sum256([]byte(u.Name + "t")), User: u.Name, Name: "a", Created: midday, Expires: midday.Add(time.Hour)}))
		noErr(t, store.addToken(Token{Key: sha256.Sum256([]byte(u.Name + "e")), User: u.Name, Name: "b", Created: midday}))
		noErr(t, store.addInvite(Invite{Key: sha256.Sum256([]byte(u.Name + "i")), User: u.Name, Created: midday, Expires: midday.Add(time.Hour)}))
	}
	for _, test := range []struct {
		at    time.Time
		swept int
	}{{midday.Add(time.Hour - 1), 0}, {midday.Add(time.Hour), 2 * each}, {midday.Add(10000 * time.Hour), 0}} {
		if n, err := store.Sweep(t.Context(), test.at); n != test.swept || err != nil {
			t.Errorf("swept %d at %v, %v; want %d", n, test.at.Sub(midday), err, test.swept)
		}
	}
	if n := countEntries(t, store); n["tokens"] != 2*each || n["owned"] != 2*each || n["expiry"] != 0 || n["sessions"] != 0 || n["invites"] != 0 || n["users"] != each {
		t.Errorf("what is left: %v", n)
	}
}

// spoil changes a byte of a record, as the disk may.
func spoil(t testing.TB, store *BoltStore, bucket, key []byte) {
	t.Helper()
	noErr(t, store.update(func(tx *bolt.Tx) error {
		record := bytes.Clone(tx.Bucket(bucket).Get(key))
		record[len(record)/2] ^= 0x40
		return tx.Bucket(bucket).Put(key, record)
	}))
}

// TestDamagedRecord: it stands for itself. It is never taken for one that is
// not there, and it goes when it is ended or swept.
func TestDamagedRecord(t *testing.T) {
	failed := func(err error) bool { return err != nil && !errors.Is(err, fs.ErrNotExist) }
	store := tempStore(t)
	frodo, sam := numberedUser(1), numberedUser(2)
	noErr(t, store.addUser(frodo))
	noErr(t, store.addUser(sam))
	var of [4]Session
	for i := range of {
		of[i] = numberedSession(frodo, i)
		noErr(t, store.login(frodo, of[i], nil, ""))
	}
	other := numberedSession(sam, 0)
	noErr(t, store.login(sam, other, nil, ""))
	for i := range 3 {
		spoil(t, store, bucketOf[kindSession], of[i].Key[:])
	}

	if _, _, err := store.session(of[0].Key, midday); !failed(err) {
		t.Errorf("a damaged session: %v", err)
	}
	if err := store.renew(of[0].Key, midday, midday, midday.Add(2*time.Hour)); !failed(err) {
		t.Errorf("renewing a damaged session: %v", err)
	}
	for _, s := range []Session{of[3], other} {
		if _, _, err := store.session(s.Key, midday); err != nil {
			t.Errorf("a session beside it: %v", err)
		}
	}
	noErr(t, store.endSessions(of[0].Key))
	if _, _, err := store.session(of[0].Key, midday); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a damaged session that was ended: %v", err)
	}
	noErr(t, store.login(frodo, numberedSession(frodo, 9), []Key{of[1].Key}, ""))
	if _, _, err := store.session(of[1].Key, midday); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a damaged session that a login replaced: %v", err)
	}
	if _, err := store.Sweep(t.Context(), midday.Add(48*time.Hour)); err != nil {
		t.Error(err)
	}
	if n := countEntries(t, store); n["sessions"] != 0 || n["expiry"] != 0 {
		t.Errorf("what the sweep left: %v", n)
	}

	noErr(t, store.login(frodo, of[0], nil, ""))
	noErr(t, store.login(sam, other, nil, ""))
	spoil(t, store, bucketUsers, []byte(frodo.Name))
	if _, err := store.user(frodo.Name); !failed(err) {
		t.Errorf("a damaged user: %v", err)
	}
	if _, _, err := store.session(of[0].Key, midday); !failed(err) {
		t.Errorf("a session of a damaged user: %v", err)
	}
	if err := store.login(frodo, of[1], nil, ""); !failed(err) {
		t.Errorf("a login of a damaged user: %v", err)
	}
	if err := store.addToken(Token{User: frodo.Name}); !failed(err) {
		t.Errorf("a token of a damaged user: %v", err)
	}
	if err := store.addUser(frodo); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a damaged user was made again: %v", err)
	}
	if _, u, err := store.session(other.Key, midday); err != nil || u.Name != sam.Name {
		t.Errorf("the user beside: %v, %v", u, err)
	}
}

// TestClosedFile: every method fails, and none says that something is not
// there.
func TestClosedFile(t *testing.T) {
	store := tempStore(t)
	u := numberedUser(0)
	s := numberedSession(u, 0)
	noErr(t, store.addUser(u))
	noErr(t, store.seedRings())
	noErr(t, store.login(u, s, nil, ""))
	noErr(t, store.Close())
	calls := map[string]func() error{
		"user":            func() error { _, err := store.user(u.Name); return err },
		"addUser":         func() error { return store.addUser(numberedUser(1)) },
		"login":           func() error { return store.login(u, s, nil, "") },
		"setPassword":     func() error { return store.setPassword(u, "new", s) },
		"session":         func() error { _, _, err := store.session(s.Key, midday); return err },
		"renew":           func() error { return store.renew(s.Key, midday, midday, midday.Add(time.Hour)) },
		"sweep":           func() error { _, err := store.Sweep(t.Context(), midday); return err },
		"ping":            store.ping,
		"sessions":        func() error { _, err := store.sessions(u.Name, midday); return err },
		"endSessions":     func() error { return store.endSessions(s.Key) },
		"endUserSessions": func() error { return store.endUserSessions(u.Name) },
		"addUsers":        func() error { _, err := store.addUsers([]User{u}, nil, Act{}); return err },
		"addToken":        func() error { return store.addToken(Token{User: u.Name, Name: "a"}) },
		"tokens":          func() error { _, err := store.tokens(u.Name); return err },
		"token":           func() error { _, _, err := store.token(Key{}, midday); return err },
		"useToken":        func() error { return store.useToken(Key{}, midday) },
		"removeToken":     func() error { return store.removeToken(Key{}) },
		"addInvite":       func() error { return store.addInvite(Invite{User: u.Name}) },
		"invite":          func() error { _, err := store.invite(Key{}, midday); return err },
		"acceptInvite":    func() error { return store.acceptInvite(Key{}, midday, u, s, nil) },
		"users":           func() error { _, err := store.users(); return err },
		"removeUser":      func() error { return store.removeUser(u.Name) },
		"disableUser":     func() error { return store.disableUser(u.Name, true) },
		"findSession":     func() error { _, err := store.findSession(s.Key.handle(), midday); return err },
		"backup":          func() error { return store.backup(io.Discard) },
		"seedRings":       store.seedRings,
		"rings":           func() error { _, err := store.rings(); return err },
		"ring":            func() error { _, err := store.ring(1); return err },
		"addRing":         func() error { _, err := store.addRing(Ring{}); return err },
		"setRing":         func() error { return store.setRing(Ring{ID: 1}) },
		"removeRing":      func() error { return store.removeRing(1) },
	}
	for name, call := range calls {
		if err := call(); err == nil || errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := store.Close(); err != nil {
		t.Errorf("closed again: %v", err)
	}
}

// TestFarTimes: what ends in centuries is kept as well as what ends tomorrow.
func TestFarTimes(t *testing.T) {
	store := tempStore(t)
	u := numberedUser(0)
	noErr(t, store.addUser(u))
	far := time.Date(2500, 1, 1, 0, 0, 0, 0, time.UTC)
	s := numberedSession(u, 0)
	s.Idle, s.End = far, far
	noErr(t, store.login(u, s, nil, ""))
	k := Key{1}
	noErr(t, store.addToken(Token{Key: k, User: u.Name, Name: "a", Created: midday, Expires: far}))
	if n, err := store.Sweep(t.Context(), midday.Add(time.Hour)); n != 0 || err != nil {
		t.Errorf("swept %d, %v", n, err)
	}
	if _, _, err := store.session(s.Key, midday); err != nil {
		t.Errorf("session: %v", err)
	}
	if _, _, err := store.token(k, midday); err != nil {
		t.Errorf("token: %v", err)
	}
}

// TestWhatIsReadOutlivesTheFile: bbolt's bytes are gone when the file is unmapped.
func TestWhatIsReadOutlivesTheFile(t *testing.T) {
	store := tempStore(t)
	u := numberedUser(0)
	noErr(t, store.addUser(u))
	noErr(t, store.login(u, numberedSession(u, 0), nil, ""))
	noErr(t, store.addToken(Token{Key: Key{1}, User: u.Name, Name: "label", Created: midday}))
	noErr(t, store.addInvite(Invite{Key: Key{2}, User: u.Name, Created: midday, Expires: midday.Add(time.Hour)}))
	noErr(t, store.seedRings())
	s, user, err := store.session(numberedSession(u, 0).Key, midday)
	noErr(t, err)
	token, _, err := store.token(Key{1}, midday)
	noErr(t, err)
	invite, err := store.invite(Key{2}, midday)
	noErr(t, err)
	users, err := store.users()
	noErr(t, err)
	rings, err := store.rings()
	noErr(t, err)
	noErr(t, store.Close())
	got := fmt.Sprint(s.User, s.Addr, s.Agent, user.Name, user.Hash, token.User, token.Name, invite.User, users[0].Name, rings[2].Name)
	if want := "user0192.0.2.1testuser0hash0user0labeluser0user0Vilya"; got != want {
		t.Errorf("%q, not %q", got, want)
	}
}

// TestReaderHoldsUpNobody: a reader of the file does not stop those who make
// it grow (bbolt remaps a file that outgrows its map, and waits for readers).
func TestReaderHoldsUpNobody(t *testing.T) {
	store := tempStore(t)
	noErr(t, store.seedRings())
	noErr(t, store.view(func(*bolt.Tx) error {
		written := make(chan error, 1)
		go func() {
			for range 200 { // past 32 KiB, where the smallest map ends, several times
				if _, err := store.addRing(Ring{Name: strings.Repeat("a", 200), Bearer: strings.Repeat("b", 200)}); err != nil {
					written <- err
					return
				}
			}
			written <- nil
		}()
		select {
		case err := <-written:
			return err
		case <-time.After(20 * time.Second):
			return errors.New("the writer waits for the reader")
		}
	}))
}

// TestFileStaysSmall: sessions come and go, and the file does not grow with
// them: pages are used again.
func TestFileStaysSmall(t *testing.T) {
	store := tempStore(t)
	size := func() int64 {
		info, err := os.Stat(store.db.Path())
		noErr(t, err)
		return info.Size()
	}
	for n := range 10 {
		noErr(t, store.addUser(numberedUser(n)))
	}
	now, first := midday, int64(0)
	for day := range 8 {
		for n := range 200 {
			u := numberedUser(n % 10)
			s := numberedSession(u, day*1000+n)
			s.Created, s.Seen, s.Idle, s.End = now, now, now.Add(time.Hour), now.Add(time.Hour)
			noErr(t, store.login(u, s, nil, ""))
		}
		if day == 0 {
			first = size()
		}
		now = now.Add(2 * time.Hour)
		if n, err := store.Sweep(t.Context(), now); n != 200 || err != nil {
			t.Fatalf("swept %d, %v", n, err)
		}
	}
	if last := size(); last > 2*first {
		t.Errorf("the file has %d bytes after a day and %d after eight", first, last)
	}
}
