// store_test.go: the bbolt store where its promises are hard to keep: files
// that are not whole, many who write at once, records that the disk changed,
// clocks that are put back. What every Store promises is in the conformance
// test; what happens to a real process is in fault_test.go.
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
	"slices"
	"strings"
	"sync"
	"syscall"
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

// tempStore is a new store, closed when the test is over.
func tempStore(t testing.TB) *boltStore {
	t.Helper()
	store, err := openStore(filepath.Join(t.TempDir(), "test.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.close() })
	return store
}

// filledFile is the content of a closed database with users who have three
// sessions each.
func filledFile(t testing.TB, users int) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "test.db")
	store, err := openStore(path)
	if err != nil {
		t.Fatal(err)
	}
	store.db.NoSync = true
	noErr(t, store.seedRings())
	for n := range users {
		u := numberedUser(n)
		noErr(t, store.addUser(u))
		for i := range 3 {
			noErr(t, store.login(u, numberedSession(u, i), Key{}, ""))
		}
	}
	noErr(t, store.close())
	content, err := os.ReadFile(path)
	noErr(t, err)
	return content
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
	store, err := openStore(filepath.Join(f.TempDir(), "fuzz.db"))
	if err != nil {
		f.Fatal(err)
	}
	defer store.close()
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

// TestOpenRefuses: what is not a whole ringward database is refused in words,
// within two seconds, and stays as it is.
func TestOpenRefuses(t *testing.T) {
	whole := filledFile(t, 20)
	page := os.Getpagesize()
	content := func(b []byte) func(t *testing.T, path string) {
		return func(t *testing.T, path string) { noErr(t, os.WriteFile(path, b, 0o600)) }
	}
	changed := func(change func(*bolt.Tx) error) func(t *testing.T, path string) {
		return func(t *testing.T, path string) {
			noErr(t, os.WriteFile(path, whole, 0o600))
			db, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: time.Second})
			noErr(t, err)
			noErr(t, db.Update(change))
			noErr(t, db.Close())
		}
	}
	tests := map[string]struct {
		make func(t *testing.T, path string)
		says string
	}{
		"empty": {content(nil), "is empty"},
		"text":  {content([]byte(strings.Repeat("one ring to rule them all\n", 1000))), "is not a ringward database"},
		"short": {content([]byte("x")), "is not a ringward database"},
		"zeros": {content(make([]byte, len(whole))), "is not a ringward database"},
		"foreign": {func(t *testing.T, path string) {
			db, err := bolt.Open(path, 0o600, nil)
			noErr(t, err)
			noErr(t, db.Update(func(tx *bolt.Tx) error { _, err := tx.CreateBucket([]byte("mordor")); return err }))
			noErr(t, db.Close())
		}, "another program's bbolt file"},
		"foreign and new": {func(t *testing.T, path string) {
			db, err := bolt.Open(path, 0o600, nil)
			noErr(t, err)
			noErr(t, db.Close())
		}, ""},
		"newer format": {changed(func(tx *bolt.Tx) error { return tx.Bucket(bucketRingward).Put(keyFormat, []byte("2")) }), "use a newer ringward"},
		"no format":    {changed(func(tx *bolt.Tx) error { return tx.Bucket(bucketRingward).Delete(keyFormat) }), "format"},
		"no users":     {changed(func(tx *bolt.Tx) error { return tx.DeleteBucket(bucketUsers) }), "damaged"},
		"no index":     {changed(func(tx *bolt.Tx) error { return tx.DeleteBucket(bucketExpiry) }), "damaged"},
		"both metas lost": {content(append(make([]byte, 2*page), whole[2*page:]...)),
			"is not a ringward database"},
		"folder": {func(t *testing.T, path string) { noErr(t, os.Mkdir(path, 0o700)) }, "is not a file"},
		"pipe":   {func(t *testing.T, path string) { noErr(t, syscall.Mkfifo(path, 0o600)) }, "is not a file"},
		"locked": {func(t *testing.T, path string) {
			noErr(t, os.WriteFile(path, whole, 0o600))
			db, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: time.Second})
			noErr(t, err)
			t.Cleanup(func() { db.Close() })
		}, "is held by another process"},
	}
	for _, size := range []int{1, 100, page - 1, page, page + 1, 2*page - 1, 2 * page, 2*page + 1, 3 * page, 4 * page, len(whole) / 4,
		len(whole) / 2, len(whole) * 3 / 4, len(whole) - page, len(whole) - 1} {
		tests[fmt.Sprintf("truncated to %d of %d", size, len(whole))] = struct {
			make func(t *testing.T, path string)
			says string
		}{content(whole[:size]), ""}
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			folder := t.TempDir()
			path := filepath.Join(folder, "test.db")
			test.make(t, path)
			before, _ := os.ReadFile(regular(path))
			stat, err := os.Stat(path)
			noErr(t, err)

			start := time.Now()
			store, err := openStore(path)
			if err == nil {
				store.close()
				t.Fatal("it was opened")
			}
			if took := time.Since(start); took > 2*time.Second {
				t.Errorf("refused after %v", took)
			}
			if !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), test.says) {
				t.Errorf("the error does not name %s and say %q: %v", path, test.says, err)
			}
			if errors.Is(err, errInUse) != (name == "locked") {
				t.Errorf("wraps errInUse: %v", err)
			}
			after, _ := os.ReadFile(regular(path))
			now, err := os.Stat(path)
			noErr(t, err)
			if !bytes.Equal(before, after) || !now.ModTime().Equal(stat.ModTime()) || now.Mode() != stat.Mode() {
				t.Errorf("the file was touched: %v %v, then %v %v", stat.ModTime(), stat.Mode(), now.ModTime(), now.Mode())
			}
			if entries, err := os.ReadDir(folder); err != nil || len(entries) != 1 {
				t.Errorf("left behind: %v, %v", entries, err)
			}
		})
	}
}

// regular is path, if reading it ends.
func regular(path string) string {
	if info, err := os.Stat(path); err != nil || !info.Mode().IsRegular() {
		return os.DevNull
	}
	return path
}

func TestOpenMakesNothingInVain(t *testing.T) {
	folder := t.TempDir()
	for _, path := range []string{filepath.Join(folder, "missing", "test.db"), filepath.Join(folder, "gone")} {
		if strings.HasSuffix(path, "gone") { // a link to a file that is not there is not ours to replace
			noErr(t, os.Symlink(filepath.Join(folder, "nowhere"), path))
		}
		if store, err := openStore(path); err == nil {
			store.close()
			t.Errorf("%s was opened", path)
		}
	}
	if _, _, err := openBolt(filepath.Join(folder, "removed meanwhile"), false); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that was removed after it was looked at: %v", err)
	}
	if entries, _ := os.ReadDir(folder); len(entries) != 1 {
		t.Errorf("left behind: %v", entries)
	}
}

// TestOpenOneMetaLost: of bbolt's two meta pages one may be torn by a power
// failure. The other is the state before the last commit, or after it.
func TestOpenOneMetaLost(t *testing.T) {
	whole := filledFile(t, 3)
	for meta := range 2 {
		path := filepath.Join(t.TempDir(), "test.db")
		content := bytes.Clone(whole)
		clear(content[meta*os.Getpagesize():][:os.Getpagesize()])
		noErr(t, os.WriteFile(path, content, 0o600))
		store, err := openStore(path)
		if err != nil {
			t.Fatalf("without meta %d: %v", meta, err)
		}
		last := numberedUser(2)
		for i := range 2 { // the third session may be gone with the last commit
			if _, _, err := store.session(numberedSession(last, i).Key, midday); err != nil {
				t.Errorf("without meta %d: %v", meta, err)
			}
		}
		noErr(t, store.endSession(numberedSession(last, 0).Key))
		noErr(t, store.close())
	}
}

// TestOpenDamagedAnywhere: 64 bytes at random are overwritten. The file is
// refused, or what was hit fails; nobody sees what belongs to another, and
// nothing waits for ever.
func TestOpenDamagedAnywhere(t *testing.T) {
	const users = 12
	whole := filledFile(t, users)
	random := rand.New(rand.NewPCG(9, 9))
	opened, failed, lost := 0, 0, 0
	for range 100 {
		content := bytes.Clone(whole)
		at := random.IntN(len(content) - 64)
		for i := range 64 {
			content[at+i] = byte(random.Uint32())
		}
		path := filepath.Join(t.TempDir(), "test.db")
		noErr(t, os.WriteFile(path, content, 0o600))
		store, err := openStore(path)
		if err != nil {
			continue
		}
		opened++
		store.db.NoSync = true
		if all, err := store.users(); err == nil && len(all) == 0 {
			t.Errorf("at %d: there seem to be no users, which would let in the first who comes", at)
		}
		for n := range users {
			u := numberedUser(n)
			for i := range 3 {
				s, found, err := store.session(numberedSession(u, i).Key, midday)
				if errors.Is(err, fs.ErrNotExist) {
					lost++
				} else if err != nil {
					failed++
				}
				if err == nil && (found.Hash != u.Hash || s.User != u.Name || !s.End.Equal(midday.Add(24*time.Hour))) {
					t.Errorf("at %d: %s's session was read as %+v of %+v", at, u.Name, s, found)
				}
			}
			store.setPassword(u, "new", numberedSession(u, 3))
		}
		store.rings()
		store.addRing(Ring{Name: "Narya", Bearer: "elves"})
		store.sweep(t.Context(), midday.Add(48*time.Hour))
		store.close()
	}
	t.Logf("of 100 files %d were opened; %d sessions in them could not be read, %d were not found", opened, failed, lost)
	if opened == 0 || failed == 0 {
		t.Error("this test tests nothing")
	}
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
	store, err := openStore(path)
	noErr(t, err)
	defer store.close()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if n, err := store.sweep(ctx, midday.Add(48*time.Hour)); !errors.Is(err, errDamaged) {
		t.Errorf("swept %d, %v", n, err)
	}
}

// TestOpenAtOnce: of many who find no file one makes it, and what one writes
// another never replaces.
func TestOpenAtOnce(t *testing.T) {
	folder := t.TempDir()
	path := filepath.Join(folder, "test.db")
	const n = 8
	var all sync.WaitGroup
	begin := make(chan struct{})
	for i := range n {
		all.Go(func() {
			<-begin
			for deadline := time.Now().Add(20 * time.Second); ; {
				store, err := openStore(path)
				if err == nil {
					if err := errors.Join(store.addUser(numberedUser(i)), store.close()); err != nil {
						t.Error(err)
					}
					return
				}
				if !errors.Is(err, errInUse) || time.Now().After(deadline) {
					t.Error(err)
					return
				}
			}
		})
	}
	close(begin)
	all.Wait()
	store, err := openStore(path)
	noErr(t, err)
	defer store.close()
	if users, err := store.users(); err != nil || len(users) != n {
		t.Errorf("%d of %d users are there, %v", len(users), n, err)
	}
	entries, err := os.ReadDir(folder)
	if err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

func TestOpenMakesModePrivate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "test.db")
	noErr(t, os.WriteFile(path, filledFile(t, 1), 0o644))
	noErr(t, os.Chmod(path, 0o644))
	store, err := openStore(path)
	noErr(t, err)
	defer store.close()
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

// TestWritesShareCommits: writes that wait for the same commit share the next
// one, and one that fails or panics harms none of the others.
func TestWritesShareCommits(t *testing.T) {
	store := tempStore(t)
	put := func(tx *bolt.Tx, n int) error { return putUser(tx, numberedUser(n)) }
	holding, release := make(chan struct{}), make(chan struct{})
	var all sync.WaitGroup
	all.Go(func() {
		store.update(func(*bolt.Tx) error { close(holding); <-release; return nil })
	})
	<-holding

	const writes, fails, panics = 40, 7, 23
	broken := errors.New("broken")
	var mu sync.Mutex
	lastRun, runs := map[int]int{}, map[int]int{} // transaction in which each write ran last, and how often it ran
	answers := make([]error, writes)
	for n := range writes {
		all.Go(func() {
			answers[n] = store.update(func(tx *bolt.Tx) error {
				mu.Lock()
				lastRun[n] = tx.ID()
				runs[n]++
				mu.Unlock()
				if err := put(tx, n); err != nil {
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
	for deadline := time.Now().Add(10 * time.Second); ; {
		store.queueing.Lock()
		waiting := len(store.queue)
		store.queueing.Unlock()
		if waiting == writes {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d writes wait", waiting, writes)
		}
	}
	close(release)
	all.Wait()

	commits := map[int]bool{}
	for n, err := range answers {
		_, found := store.user(numberedUser(n).Name)
		switch n {
		case fails:
			if err != broken || runs[n] != 1 || !errors.Is(found, fs.ErrNotExist) {
				t.Errorf("the write that fails: %v, ran %d times, then %v", err, runs[n], found)
			}
		case panics:
			if !errors.Is(err, errDamaged) || runs[n] != 1 || !errors.Is(found, fs.ErrNotExist) {
				t.Errorf("the write that panics: %v, ran %d times, then %v", err, runs[n], found)
			}
		default:
			if err != nil || found != nil {
				t.Errorf("write %d: %v, then %v", n, err, found)
			}
			commits[lastRun[n]] = true
		}
	}
	if len(commits) != 1 {
		t.Errorf("%d writes took %d commits", writes, len(commits))
	}
	noErr(t, store.addUser(numberedUser(writes))) // no lock was left held
}

// countEntries counts the records and index entries of a store.
func countEntries(t testing.TB, store *boltStore) map[string]int {
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
	store.db.NoSync = true
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
			noErr(t, store.login(u, s, Key{}, ""))
			live[s.Key] = s.expires()
		case 3:
			if k, ok := pick(); ok {
				s, _, err := store.session(k, now)
				if wants := now.Before(live[k]); wants != (err == nil) {
					t.Fatalf("step %d: a session with %v left: %v", step, live[k].Sub(now), err)
				}
				idle := earlier(now.Add(time.Minute), s.End)
				if err == nil {
					noErr(t, store.renew(k, now, idle))
					live[k] = idle
				} else if err := store.renew(k, now, now.Add(time.Hour)); !errors.Is(err, fs.ErrNotExist) {
					t.Fatalf("step %d: a session that is over was renewed: %v", step, err)
				}
			}
		case 4:
			if k, ok := pick(); ok {
				noErr(t, store.endSession(k))
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
			if n, err := store.sweep(t.Context(), now); n != due || err != nil {
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
	store.db.NoSync = true
	const each = 60
	for n := range each {
		u := numberedUser(n)
		noErr(t, store.addUser(u))
		noErr(t, store.login(u, numberedSession(u, 0), Key{}, "")) // an hour
		noErr(t, store.addToken(Token{Key: sha256.Sum256([]byte(u.Name + "t")), User: u.Name, Name: "a", Created: midday, Expires: midday.Add(time.Hour)}))
		noErr(t, store.addToken(Token{Key: sha256.Sum256([]byte(u.Name + "e")), User: u.Name, Name: "b", Created: midday}))
		noErr(t, store.addInvite(Invite{Key: sha256.Sum256([]byte(u.Name + "i")), User: u.Name, Created: midday, Expires: midday.Add(time.Hour)}))
	}
	for _, test := range []struct {
		at    time.Time
		swept int
	}{{midday.Add(time.Hour - 1), 0}, {midday.Add(time.Hour), 2 * each}, {midday.Add(10000 * time.Hour), 0}} {
		if n, err := store.sweep(t.Context(), test.at); n != test.swept || err != nil {
			t.Errorf("swept %d at %v, %v; want %d", n, test.at.Sub(midday), err, test.swept)
		}
	}
	if n := countEntries(t, store); n["tokens"] != 2*each || n["owned"] != 2*each || n["expiry"] != 0 || n["sessions"] != 0 || n["invites"] != 0 || n["users"] != each {
		t.Errorf("what is left: %v", n)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := store.sweep(ctx, midday); !errors.Is(err, context.Canceled) {
		t.Errorf("a sweep that is to stop: %v", err)
	}
}

// spoil changes a byte of a record, as the disk may.
func spoil(t testing.TB, store *boltStore, bucket, key []byte) {
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
		noErr(t, store.login(frodo, of[i], Key{}, ""))
	}
	other := numberedSession(sam, 0)
	noErr(t, store.login(sam, other, Key{}, ""))
	for i := range 3 {
		spoil(t, store, bucketOf[kindSession], of[i].Key[:])
	}

	if _, _, err := store.session(of[0].Key, midday); !failed(err) {
		t.Errorf("a damaged session: %v", err)
	}
	if err := store.renew(of[0].Key, midday, midday.Add(2*time.Hour)); !failed(err) {
		t.Errorf("renewing a damaged session: %v", err)
	}
	for _, s := range []Session{of[3], other} {
		if _, _, err := store.session(s.Key, midday); err != nil {
			t.Errorf("a session beside it: %v", err)
		}
	}
	noErr(t, store.endSession(of[0].Key))
	if _, _, err := store.session(of[0].Key, midday); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a damaged session that was ended: %v", err)
	}
	noErr(t, store.login(frodo, numberedSession(frodo, 9), of[1].Key, ""))
	if _, _, err := store.session(of[1].Key, midday); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a damaged session that a login replaced: %v", err)
	}
	if _, err := store.sweep(t.Context(), midday.Add(48*time.Hour)); err != nil {
		t.Error(err)
	}
	if n := countEntries(t, store); n["sessions"] != 0 || n["expiry"] != 0 {
		t.Errorf("what the sweep left: %v", n)
	}

	noErr(t, store.login(frodo, of[0], Key{}, ""))
	noErr(t, store.login(sam, other, Key{}, ""))
	spoil(t, store, bucketUsers, []byte(frodo.Name))
	if _, err := store.user(frodo.Name); !failed(err) {
		t.Errorf("a damaged user: %v", err)
	}
	if _, _, err := store.session(of[0].Key, midday); !failed(err) {
		t.Errorf("a session of a damaged user: %v", err)
	}
	if err := store.login(frodo, of[1], Key{}, ""); !failed(err) {
		t.Errorf("a login of a damaged user: %v", err)
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
	noErr(t, store.login(u, s, Key{}, ""))
	noErr(t, store.close())
	calls := map[string]func() error{
		"user":         func() error { _, err := store.user(u.Name); return err },
		"addUser":      func() error { return store.addUser(numberedUser(1)) },
		"login":        func() error { return store.login(u, s, Key{}, "") },
		"setPassword":  func() error { return store.setPassword(u, "new", s) },
		"session":      func() error { _, _, err := store.session(s.Key, midday); return err },
		"renew":        func() error { return store.renew(s.Key, midday, midday.Add(time.Hour)) },
		"endSession":   func() error { return store.endSession(s.Key) },
		"sweep":        func() error { _, err := store.sweep(t.Context(), midday); return err },
		"ping":         store.ping,
		"sessions":     func() error { _, err := store.sessions(u.Name, midday); return err },
		"endSessions":  func() error { return store.endSessions(u.Name) },
		"addToken":     func() error { return store.addToken(Token{User: u.Name, Name: "a"}) },
		"tokens":       func() error { _, err := store.tokens(u.Name); return err },
		"token":        func() error { _, _, err := store.token(Key{}, midday); return err },
		"useToken":     func() error { return store.useToken(Key{}, midday) },
		"removeToken":  func() error { return store.removeToken(Key{}) },
		"addInvite":    func() error { return store.addInvite(Invite{User: u.Name}) },
		"invite":       func() error { _, err := store.invite(Key{}, midday); return err },
		"acceptInvite": func() error { return store.acceptInvite(Key{}, u, s, Key{}) },
		"users":        func() error { _, err := store.users(); return err },
		"removeUser":   func() error { return store.removeUser(u.Name) },
		"disableUser":  func() error { return store.disableUser(u.Name, true) },
		"findSession":  func() error { _, err := store.findSession(s.Key.handle(), midday); return err },
		"backup":       func() error { _, err := store.backup(); return err },
		"seedRings":    store.seedRings,
		"rings":        func() error { _, err := store.rings(); return err },
		"ring":         func() error { _, err := store.ring(1); return err },
		"addRing":      func() error { _, err := store.addRing(Ring{}); return err },
		"setRing":      func() error { return store.setRing(Ring{ID: 1}) },
		"removeRing":   func() error { return store.removeRing(1) },
	}
	for name, call := range calls {
		if err := call(); err == nil || errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := store.close(); err != nil {
		t.Errorf("closed again: %v", err)
	}
}

// TestClockPutBack: a session that a wrong clock dated ahead does not count
// until that time has come, and none outlives its end.
func TestClockPutBack(t *testing.T) {
	store := tempStore(t)
	u := numberedUser(0)
	noErr(t, store.addUser(u))
	s := numberedSession(u, 0)
	noErr(t, store.login(u, s, Key{}, ""))
	for _, test := range []struct {
		now  time.Duration // from midday, when the session began
		live bool
	}{
		{0, true}, {-clockSlack, true}, {-clockSlack - 1, false}, {-24 * time.Hour, false},
		{-midday.Sub(time.Unix(1, 0)), false}, {time.Hour - 1, true}, {time.Hour, false},
		{80 * 365 * 24 * time.Hour, false}, {-24 * 365 * 10 * time.Hour, false},
	} {
		now := midday.Add(test.now)
		_, _, err := store.session(s.Key, now)
		if (err == nil) != test.live || err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("at midday%+v: %v", test.now, err)
		}
		if renewed := store.renew(s.Key, now, s.Idle); (renewed == nil) != test.live {
			t.Errorf("renewed at midday%+v: %v", test.now, renewed)
		}
	}
	// Renewed until its last day, then the clock is put back: its end stays.
	noErr(t, store.renew(s.Key, midday, s.End))
	if _, _, err := store.session(s.Key, s.End); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("at its end: %v", err)
	}
	if n, err := store.sweep(t.Context(), midday.Add(-24*time.Hour)); n != 0 || err != nil {
		t.Errorf("a clock that is put back sweeps %d, %v", n, err)
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
	noErr(t, store.login(u, s, Key{}, ""))
	k := Key{1}
	noErr(t, store.addToken(Token{Key: k, User: u.Name, Name: "a", Created: midday, Expires: far}))
	if n, err := store.sweep(t.Context(), midday.Add(time.Hour)); n != 0 || err != nil {
		t.Errorf("swept %d, %v", n, err)
	}
	if _, _, err := store.session(s.Key, midday); err != nil {
		t.Errorf("session: %v", err)
	}
	if _, _, err := store.token(k, midday); err != nil {
		t.Errorf("token: %v", err)
	}
}

func TestOldestSessionMakesRoom(t *testing.T) {
	store := tempStore(t)
	store.db.NoSync = true
	u, other := numberedUser(0), numberedUser(1)
	noErr(t, store.addUser(u))
	noErr(t, store.addUser(other))
	noErr(t, store.login(other, numberedSession(other, 0), Key{}, ""))
	session := func(n int) Session {
		s := numberedSession(u, n)
		s.Created = midday.Add(time.Duration(n) * time.Second)
		s.Idle = s.Created.Add(time.Hour)
		return s
	}
	live := func(from, to int, now time.Time) {
		t.Helper()
		for n := range to {
			if _, _, err := store.session(session(n).Key, now); (err == nil) != (n >= from) {
				t.Errorf("after %d logins session %d: %v", to, n, err)
			}
		}
	}
	for n := range maxSessions {
		noErr(t, store.login(u, session(n), Key{}, ""))
	}
	now := session(maxSessions).Created
	live(0, maxSessions, now)
	// A login that ends an old session needs no more room.
	noErr(t, store.login(u, session(maxSessions), session(maxSessions-1).Key, ""))
	if _, _, err := store.session(session(0).Key, now); err != nil {
		t.Errorf("the oldest had to go where there was room: %v", err)
	}
	noErr(t, store.login(u, session(maxSessions-1), Key{}, ""))
	for n := maxSessions + 1; n < maxSessions+5; n++ {
		noErr(t, store.login(u, session(n), Key{}, ""))
	}
	live(5, maxSessions+5, session(maxSessions+5).Created)
	// What has expired is no live session: it goes first, however young.
	short := session(maxSessions + 5)
	short.Idle = short.Created.Add(time.Second)
	noErr(t, store.login(u, short, Key{}, ""))
	noErr(t, store.login(u, session(maxSessions+9), Key{}, ""))
	live(6, maxSessions+5, session(maxSessions+9).Created)
	if n := countEntries(t, store); n["sessions"] != maxSessions+1 || n["owned"] != maxSessions+1 || n["expiry"] != maxSessions+1 {
		t.Errorf("in the file: %v", n)
	}
	if _, _, err := store.session(numberedSession(other, 0).Key, midday); err != nil {
		t.Errorf("the other user's: %v", err)
	}
}

// TestAnswersOutliveTheFile: bbolt's bytes are gone when the file is unmapped.
func TestAnswersOutliveTheFile(t *testing.T) {
	store := tempStore(t)
	u := numberedUser(0)
	noErr(t, store.addUser(u))
	noErr(t, store.login(u, numberedSession(u, 0), Key{}, ""))
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
	noErr(t, store.close())
	got := fmt.Sprint(s.User, s.Addr, s.Agent, user.Name, user.Hash, token.User, token.Name, invite.User, users[0].Name, rings[2].Name)
	if want := "user0192.0.2.1testuser0hash0user0labeluser0user0Vilya"; got != want {
		t.Errorf("%q, not %q", got, want)
	}
}

// TestReaderHoldsUpNobody: a reader of the file does not stop those who make
// it grow (bbolt remaps a file that outgrows its map, and waits for readers).
func TestReaderHoldsUpNobody(t *testing.T) {
	store := tempStore(t)
	store.db.NoSync = true
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
	store.db.NoSync = true
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
			noErr(t, store.login(u, s, Key{}, ""))
		}
		if day == 0 {
			first = size()
		}
		now = now.Add(2 * time.Hour)
		if n, err := store.sweep(t.Context(), now); n != 200 || err != nil {
			t.Fatalf("swept %d, %v", n, err)
		}
	}
	if last := size(); last > 2*first {
		t.Errorf("the file has %d bytes after a day and %d after eight", first, last)
	}
}

// TestBackupIsWhole: the copy opens, and one that lost its end is found out.
func TestBackupIsWhole(t *testing.T) {
	store := tempStore(t)
	noErr(t, store.seedRings())
	noErr(t, store.addUser(numberedUser(0)))
	f, err := store.backup()
	noErr(t, err)
	content, err := io.ReadAll(f)
	noErr(t, errors.Join(err, f.Close()))
	path := filepath.Join(t.TempDir(), "copy.db")
	noErr(t, os.WriteFile(path, content, 0o600))
	restored, err := openStore(path)
	noErr(t, err)
	_, err = restored.user(numberedUser(0).Name)
	noErr(t, err)
	noErr(t, restored.view(func(tx *bolt.Tx) error {
		var all []error
		for err := range tx.Check() {
			all = append(all, err)
		}
		return errors.Join(all...)
	}))
	noErr(t, restored.close())
	noErr(t, os.WriteFile(path, content[:len(content)-1], 0o600))
	if store, err := openStore(path); err == nil {
		store.close()
		t.Error("a copy that lost its end was opened")
	}
	if left, err := filepath.Glob(store.db.Path() + ".*"); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// copyOver is what cp does: the file stays the same one.
func copyOver(from, to string) error {
	content, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(content, 0)
	return errors.Join(err, f.Truncate(int64(len(content))), f.Close())
}

// TestFileChangedWhileOpen: the store notices, and nobody waits for ever.
func TestFileChangedWhileOpen(t *testing.T) {
	u := numberedUser(0)
	tests := map[string]struct {
		change func(t *testing.T, path string)
		writes bool // writes fail too
	}{
		"removed": {func(t *testing.T, path string) { noErr(t, os.Remove(path)) }, false},
		"replaced": {func(t *testing.T, path string) {
			noErr(t, os.Rename(path, path+".old"))
			noErr(t, os.WriteFile(path, filledFile(t, 1), 0o600))
		}, false},
		"emptied":                 {func(t *testing.T, path string) { noErr(t, os.Truncate(path, 0)) }, true},
		"truncated to the metas":  {func(t *testing.T, path string) { noErr(t, os.Truncate(path, 2*int64(os.Getpagesize()))) }, true},
		"overwritten by a backup": {func(t *testing.T, path string) { noErr(t, copyOver(path+".copy", path)) }, true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			store := tempStore(t)
			noErr(t, store.seedRings())
			noErr(t, copyOver(store.db.Path(), store.db.Path()+".copy"))
			noErr(t, store.addUser(u))
			noErr(t, store.addUser(numberedUser(1))) // after an even number bbolt itself would notice nothing
			noErr(t, store.ping())
			test.change(t, store.db.Path())
			done := make(chan struct{})
			go func() {
				defer close(done)
				for range 3 {
					_, err := store.addRing(Ring{Name: "a", Bearer: "b"})
					if test.writes && (err == nil || errors.Is(err, fs.ErrNotExist)) {
						t.Errorf("a write: %v", err)
					}
					if err := store.ping(); err == nil {
						t.Error("ping finds nothing")
					}
					if _, err := store.user("nobody"); test.writes && errors.Is(err, fs.ErrNotExist) {
						t.Error("a file that cannot be read says that somebody is not there")
					}
				}
				store.close()
			}()
			select {
			case <-done:
			case <-time.After(20 * time.Second):
				t.Fatal("somebody waits for ever")
			}
		})
	}
}

// What is remembered is bounded: a session takes another's place, a user for
// whom there is no room is read each time.
func TestFullMemory(t *testing.T) {
	store := tempStore(t)
	store.db.NoSync = true // what the disk has after a crash is not for this test
	u := numberedUser(1)
	noErr(t, store.addUser(u))
	const sessions = 20
	for i := range sessions {
		noErr(t, store.login(u, numberedSession(u, i), Key{}, ""))
	}
	seen := store.seen.Load()
	for i := range seen.logins {
		seen.logins[i].Store(&read{session: Session{User: "other"}, user: User{Name: "other"}})
	}
	seen.nUsers.Store(maxUsers)
	for i := range sessions {
		key := numberedSession(u, i).Key
		for range 2 {
			if s, who, err := store.session(key, midday); err != nil || s.Key != key || s.User != u.Name || who.Hash != u.Hash {
				t.Errorf("got %v of %v, %v", s, who, err)
			}
			if r, _ := seen.login(key); r == nil {
				t.Error("it is not remembered")
			}
		}
	}
	seen.users.Range(func(name, _ any) bool { t.Errorf("%s is one more than there is room for", name); return true })
}

// Sessions stay apart, however many want the same places.
func TestPlacesOfSessions(t *testing.T) {
	const sessions = 3 * maxLogins
	var seen reads
	var keys [sessions]Key
	for i := range keys {
		keys[i] = sha256.Sum256(fmt.Append(nil, i))
		if i%2 == 1 {
			copy(keys[i][:8], keys[i-1][:8])
		}
		r, place := seen.login(keys[i])
		if r != nil {
			t.Fatal("found what was never there")
		}
		place.Store(&read{session: Session{Key: keys[i]}})
		if i == maxLogins/16 {
			for _, key := range keys[:i] {
				if r, _ := seen.login(key); r == nil {
					t.Error("one had to leave although there was room")
				}
			}
		}
	}
	there := 0
	for _, key := range keys {
		if r, _ := seen.login(key); r != nil {
			there++
			if r.session.Key != key {
				t.Fatal("found another's session")
			}
		}
	}
	if there < maxLogins/2 {
		t.Errorf("only %d are remembered", there)
	}
}
