// file_test.go: database files that are not there, not whole, not ours, taken,
// or changed while they are open. What happens to a real process is in
// fault_test.go.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	bolt "go.etcd.io/bbolt"
)

// filledFile is the content of a closed database with users who have three
// sessions each.
func filledFile(t testing.TB, users int) []byte {
	t.Helper()
	store := tempStore(t)
	noErr(t, store.seedRings())
	for n := range users {
		u := numberedUser(n)
		noErr(t, store.addUser(u))
		for i := range 3 {
			noErr(t, store.login(u, numberedSession(u, i), nil, ""))
		}
	}
	noErr(t, store.Close())
	content, err := os.ReadFile(store.path)
	noErr(t, err)
	return content
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
	foreign := func(pageSize int, fill func(*bolt.Tx) error) func(t *testing.T, path string) {
		return func(t *testing.T, path string) {
			db, err := bolt.Open(path, 0o600, &bolt.Options{PageSize: pageSize})
			noErr(t, err)
			db.Update(fill)
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
		"foreign": {foreign(0, func(tx *bolt.Tx) error { _, err := tx.CreateBucket([]byte("mordor")); return err }),
			"another program's bbolt file"},
		"foreign, small pages": {foreign(1024, func(tx *bolt.Tx) error { _, err := tx.CreateBucket([]byte("mordor")); return err }),
			"another program's bbolt file"},
		"foreign and new": {foreign(0, func(*bolt.Tx) error { return errors.New("nothing is written") }), "another program's bbolt file"},
		"newer format":    {changed(func(tx *bolt.Tx) error { return tx.Bucket(bucketRingward).Put(keyFormat, []byte("3")) }), "use a newer ringward"},
		"no format":       {changed(func(tx *bolt.Tx) error { return tx.Bucket(bucketRingward).Delete(keyFormat) }), "format"},
		"no users":        {changed(func(tx *bolt.Tx) error { return tx.DeleteBucket(bucketUsers) }), "damaged"},
		"no index":        {changed(func(tx *bolt.Tx) error { return tx.DeleteBucket(bucketExpiry) }), "damaged"},
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
		}{content(whole[:size]), map[bool]string{true: "is truncated", false: ""}[size >= 4*page]}
	}
	for _, size := range []int{page, 2*page - 1} {
		tests[fmt.Sprintf("cut to %d", size)] = struct {
			make func(t *testing.T, path string)
			says string
		}{content(whole[:size]), "is damaged or not a whole ringward database: restore a backup"}
	}
	for _, size := range []int{100, 1024, page - 1, page, page + 1, 2*page - 1, 2 * page} {
		tests[fmt.Sprintf("text of %d", size)] = struct {
			make func(t *testing.T, path string)
			says string
		}{content(bytes.Repeat([]byte("x"), size)), "is not a ringward database"}
	}
	for name, test := range tests {
		run := func(t *testing.T) {
			folder := t.TempDir()
			path := filepath.Join(folder, "test.db")
			test.make(t, path)
			before, _ := os.ReadFile(regular(path))
			stat, err := os.Stat(path)
			noErr(t, err)

			start := time.Now()
			store, err := OpenStore(path)
			if err == nil {
				store.Close()
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
		}
		t.Run(name, func(t *testing.T) { synctest.Test(t, run) }) // a file that is held costs no real second
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
		if store, err := OpenStore(path); err == nil {
			store.Close()
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
		store, err := OpenStore(path)
		if err != nil {
			t.Fatalf("without meta %d: %v", meta, err)
		}
		last := numberedUser(2)
		for i := range 2 { // the third session may be gone with the last commit
			if _, _, err := store.session(numberedSession(last, i).Key, midday); err != nil {
				t.Errorf("without meta %d: %v", meta, err)
			}
		}
		noErr(t, store.endSessions(numberedSession(last, 0).Key))
		noErr(t, store.Close())
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
		store, err := OpenStore(path)
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
			store.setPassword(u, "new", numberedSession(u, 3)) // may fail, and not crash
		}
		store.rings()
		store.addRing(Ring{Name: "Narya", Bearer: "elves"})
		store.Sweep(t.Context(), midday.Add(48*time.Hour))
		store.Close()
	}
	t.Logf("of 100 files %d were opened; %d sessions in them could not be read, %d were not found", opened, failed, lost)
	if opened == 0 || failed == 0 {
		t.Error("this test tests nothing")
	}
}

// TestOpenAtOnce: of many who find no file one makes it, and what one writes
// another never replaces.
func TestOpenAtOnce(t *testing.T) {
	folder := t.TempDir()
	path := filepath.Join(folder, "test.db")
	const n = 8
	synctest.Test(t, func(t *testing.T) { // who finds it held tries again after a while that costs nothing
		var all sync.WaitGroup
		for i := range n {
			all.Go(func() {
				for range 20 * n {
					store, err := OpenStore(path)
					if err == nil {
						if err := errors.Join(store.addUser(numberedUser(i)), store.Close()); err != nil {
							t.Error(err)
						}
						return
					}
					if !errors.Is(err, errInUse) {
						t.Error(err)
						return
					}
				}
				t.Error("somebody never gets it")
			})
		}
		all.Wait()
	})
	store, err := OpenStore(path)
	noErr(t, err)
	defer store.Close()
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
	store, err := OpenStore(path)
	noErr(t, err)
	defer store.Close()
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

// TestBackupIsWhole: the copy opens, nothing that was removed is in it, and one
// that lost its end is found out.
func TestBackupIsWhole(t *testing.T) {
	store := tempStore(t)
	noErr(t, store.seedRings())
	for n := range 40 {
		noErr(t, store.addUser(numberedUser(n)))
		noErr(t, store.login(numberedUser(n), numberedSession(numberedUser(n), 0), nil, ""))
	}
	gone := User{Name: "gollum", Hash: "the hash of somebody who is gone"}
	noErr(t, store.addUser(gone))
	noErr(t, store.removeUser(gone.Name))
	var copied bytes.Buffer
	noErr(t, store.backup(&copied))
	content := copied.Bytes()
	if bytes.Contains(content, []byte(gone.Hash)) {
		t.Error("the hash of a user who was removed is in the copy")
	}
	path := filepath.Join(t.TempDir(), "copy.db")
	noErr(t, os.WriteFile(path, content, 0o600))
	restored, err := OpenStore(path)
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
	noErr(t, restored.Close())
	noErr(t, os.WriteFile(path, content[:len(content)-1], 0o600))
	if store, err := OpenStore(path); err == nil {
		store.Close()
		t.Error("a copy that lost its end was opened")
	}
	if left, err := filepath.Glob(store.path + ".*"); err != nil || len(left) > 0 {
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

// TestFileGoneWhileOpen: ping notices that what is written would be lost.
func TestFileGoneWhileOpen(t *testing.T) {
	for name, change := range map[string]func(path string) error{
		"removed": os.Remove,
		"replaced": func(path string) error {
			return errors.Join(os.Rename(path, path+".old"), os.WriteFile(path, filledFile(t, 1), 0o600))
		},
	} {
		store := tempStore(t)
		noErr(t, store.addUser(numberedUser(0)))
		noErr(t, store.ping())
		noErr(t, change(store.path))
		if err := store.ping(); err == nil || errors.Is(err, fs.ErrNotExist) { // which would not mean that the store failed
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestFileChangedWhileOpen: what the open store knows of free pages is not true
// of another database that is copied over it, and of a file that is cut short
// nothing can be read. Every write fails and leaves the file as it is; nobody
// waits for ever.
func TestFileChangedWhileOpen(t *testing.T) {
	tests := map[string]func(store *BoltStore) error{
		"emptied":              func(store *BoltStore) error { return os.Truncate(store.path, 0) },
		"truncated to a page":  func(store *BoltStore) error { return os.Truncate(store.path, int64(os.Getpagesize())) },
		"truncated to the end": func(store *BoltStore) error { return os.Truncate(store.path, 2*int64(os.Getpagesize())) },
		"another database": func(store *BoltStore) error {
			other := store.path + ".other"
			return errors.Join(os.WriteFile(other, filledFile(t, 20), 0o600), copyOver(other, store.path))
		},
	}
	for older := range 4 { // by so many writes
		tests[fmt.Sprint("a copy, ", older+1, " writes older")] = func(store *BoltStore) error {
			copied := copyOver(store.path, store.path+".copy")
			for n := range older + 1 {
				copied = errors.Join(copied, store.addUser(numberedUser(n+1)))
			}
			return errors.Join(copied, copyOver(store.path+".copy", store.path))
		}
	}
	for name, change := range tests {
		for _, written := range []bool{false, true} { // since it was opened
			t.Run(fmt.Sprint(name, ", written ", written), func(t *testing.T) {
				store := tempStore(t)
				if written {
					noErr(t, store.addUser(numberedUser(0)))
				}
				noErr(t, change(store))
				before, err := os.ReadFile(store.path)
				noErr(t, err)
				for range 3 {
					for name, write := range map[string]func() error{
						"addUser":     func() error { return store.addUser(numberedUser(30)) },
						"endSessions": func() error { return store.endSessions(Key{}) },
					} {
						if err := write(); err == nil || errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "the database ") {
							t.Errorf("%s: %v", name, err)
						}
					}
					if err := store.ping(); err == nil {
						t.Error("ping finds nothing")
					}
					if _, err := store.user("nobody"); errors.Is(err, fs.ErrNotExist) {
						t.Error("somebody is not there, says a file that is not ours")
					}
				}
				store.Close()
				if after, err := os.ReadFile(store.path); err != nil || !bytes.Equal(after, before) {
					t.Errorf("the file was changed, %v", err)
				}
			})
		}
	}
}
