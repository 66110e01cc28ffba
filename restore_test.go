// restore_test.go tests that a copy takes the place of the database, that
// nobody gets in by it who was put out since it was made, and that what is no
// copy changes nothing.
package main

import (
	"bytes"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
)

// copied writes a copy of the server's database, closes the server, and returns
// the copy's path.
func (s *accountServer) copied() string {
	s.Helper()
	path := filepath.Join(s.TempDir(), "copy.db")
	noErr(s, os.WriteFile(path, []byte(s.printed("backup", "FILE")), 0o600))
	return path
}

// restored stops the server, restores the copy, and opens what is there then.
func (s *accountServer) restored(path string) (after *accountServer, said string) {
	s.Helper()
	noErr(s, s.store.Close())
	var out bytes.Buffer
	noErr(s, restore(testConfig(s, "-db", s.path), path, &out))
	return openAccountServer(s.T, s.path), out.String()
}

func TestRestoreLetsNobodyIn(t *testing.T) {
	s := newAccountServer(t)
	for _, name := range []string{"bilbo", "gimli", "legolas", "merry", "pippin", "rosie"} {
		_, err := s.imports(strings.Replace(htpasswdLine("rosie"), "rosie", name, 1))
		noErr(t, err)
	}
	for _, group := range []string{"dev", "ops"} {
		s.printed("user group add", "bilbo", group)
	}
	change := func(name string, f Factors) {
		u, err := s.store.user(name)
		noErr(t, err)
		noErr(t, s.store.changeFactors(u, func(has *Factors) error { *has = f; return nil }, sessionsAfter{}))
	}
	lost := newKey()
	change("legolas", Factors{Passkeys: []Passkey{{Key: lost, Name: "lost phone"}}})
	cookie := s.enter("frodo", testPassword)
	kept, gone := s.token(cookie, `{"name":"kept"}`), s.token(cookie, `{"name":"gone"}`)
	invite, secret := newInvite("frodo", time.Now())
	noErr(t, s.store.addInvite(invite))
	path := s.copied()

	s.printed("user disable", "sam")
	s.printed("user remove", "merry")
	s.printed("user remove", "pippin")
	s.imports(strings.Replace(htpasswdLine("rosie"), "rosie", "pippin", 1))
	u, err := s.store.user("rosie")
	noErr(t, err)
	noErr(t, s.store.setPassword(u, "another hash", newSession("rosie", time.Now())))
	s.printed("user group remove", "bilbo", "ops")
	change("gimli", Factors{Seed: "sealed"})
	change("legolas", Factors{})
	s.printed("token remove", gone.ID)
	s.printed("user add", "eowyn")
	s.printed("user group add", "gimli", "dev")
	s.printed("token add", "frodo", "new")
	done, err := s.store.acts("")
	noErr(t, err)

	s, said := s.restored(path)
	lines := strings.SplitAfter(said, "\n")
	before, old, _ := strings.Cut(strings.Join(slices.Sorted(slices.Values(lines)), ""), "the database before is now: ")
	want := `
bilbo was taken out of ops since and stays out
eowyn was added since and is gone
gimli was put into dev since and is out of it
merry was removed since and comes back disabled: ringward user enable merry
pippin was removed since and comes back disabled: ringward user enable pippin
restored: ` + path + `; everybody has to log in again
rosie keeps the password of now
sam was disabled since and stays disabled
`
	if got := before + old[strings.Index(old, "\n")+1:]; got != want[1:]+"the token gone of frodo was removed since and stays out\nthe token new of frodo was made since and is gone\n" {
		t.Errorf("it says\n%s", said)
	}
	disabled := map[string]bool{}
	users, err := s.store.users()
	noErr(t, err)
	for _, u := range users {
		disabled[u.Name] = u.Disabled
		if u.Name == "rosie" && u.Hash != "another hash" || u.Name == "bilbo" && u.Groups != "dev" {
			t.Errorf("%+v", u)
		}
	}
	if !maps.Equal(disabled, map[string]bool{"bilbo": false, "frodo": false, "gimli": false, "legolas": false, "merry": true, "pippin": true, "rosie": false, "sam": true}) {
		t.Errorf("users: %v", disabled)
	}
	if f, err := s.store.factors("gimli"); err != nil || f.Seed != "sealed" {
		t.Errorf("the factor that was set up since: %+v, %v", f, err)
	}
	if u, err := s.store.passkeyUser(lost); err == nil {
		t.Errorf("the passkey that was removed opens %+v", u)
	}
	s.want(http.StatusUnauthorized, nil, "GET", "/auth/session", "", "Cookie", cookie)
	s.want(http.StatusNotFound, nil, "GET", "/auth/invites/"+secret, "")
	s.want(http.StatusUnauthorized, nil, "GET", "/ringsofpower", "", "Authorization", "Bearer "+gone.Token)
	s.want(http.StatusOK, nil, "GET", "/ringsofpower", "", "Authorization", "Bearer "+kept.Token)
	s.enter("frodo", testPassword)
	acts, err := s.store.acts("")
	if noErr(t, err); acts[len(acts)-2].What != "restored" || acts[len(acts)-2].By != "operator" { // then the login
		t.Errorf("the last acts: %+v", acts[len(acts)-2:])
	}
	if !slices.Equal(acts[:len(acts)-2], done) {
		t.Errorf("of what was done before,\n%+v\nthere is\n%+v", done, acts)
	}

	old = strings.TrimSpace(old[:strings.Index(old, "\n")])
	for _, path := range []string{old, s.path} {
		if file, err := os.Stat(path); err != nil || file.Mode() != 0o600 {
			t.Errorf("%s: %v, %v", path, file, err)
		}
	}
	was := openAccountServer(t, old)
	was.want(http.StatusOK, nil, "GET", "/auth/session", "", "Cookie", cookie)
}

// On another path there is nobody to compare with: all are as they were.
func TestRestoreElsewhere(t *testing.T) {
	s := newAccountServer(t)
	path := s.copied()
	s.path = filepath.Join(t.TempDir(), "elsewhere.db")
	s, said := s.restored(path)
	if said != "restored: "+path+"; everybody has to log in again\n" {
		t.Errorf("it says %s", said)
	}
	s.enter("frodo", testPassword)
	onlyFile(t, s.path)
}

// onlyFile checks that nothing else is left in the folder.
func onlyFile(t *testing.T, path string) {
	t.Helper()
	if all, err := filepath.Glob(filepath.Join(filepath.Dir(path), "*")); err != nil || !slices.Equal(all, []string{path}) {
		t.Errorf("there are %v, %v", all, err)
	}
}

// A link to the database stays one.
func TestRestoreThroughALink(t *testing.T) {
	s := newAccountServer(t)
	path := s.copied()
	target := s.path
	s.path = filepath.Join(t.TempDir(), "link.db")
	noErr(t, os.Symlink(target, s.path))
	s, _ = s.restored(path)
	if got, err := os.Readlink(s.path); err != nil || got != target {
		t.Errorf("the link leads to %s, %v", got, err)
	}
	acts, err := s.store.acts("")
	if noErr(t, err); len(acts) == 0 || acts[len(acts)-1].What != "restored" {
		t.Errorf("%+v", acts)
	}
}

// asFirstFormat makes of a database one as the first version wrote it: without
// groups, factors and the record of acts.
func asFirstFormat(t *testing.T, path string) {
	t.Helper()
	edit(t, path, func(tx *bolt.Tx) error {
		for _, name := range [][]byte{bucketFactors, bucketPasskeys, bucketAudit} {
			if err := tx.DeleteBucket(name); err != nil {
				return err
			}
		}
		c := tx.Bucket(bucketUsers).Cursor()
		for name, _ := c.First(); name != nil; name, _ = c.Next() {
			u, err := getUser(tx, string(name))
			if err != nil {
				return err
			}
			if err := tx.Bucket(bucketUsers).Put(name, seal(name, u.Hash, "enabled", nanos(u.Created))); err != nil {
				return err
			}
		}
		return tx.Bucket(bucketRingward).Put(keyFormat, []byte("1"))
	})
}

func edit(t *testing.T, path string, fn func(*bolt.Tx) error) {
	t.Helper()
	db, err := bolt.Open(path, 0o600, nil)
	noErr(t, err)
	db.AllocSize = 0 // as in openBolt
	noErr(t, db.Update(fn))
	noErr(t, db.Close())
}

func TestRestoreOfTheFirstFormat(t *testing.T) {
	s := newAccountServer(t)
	token := s.token(s.enter("frodo", testPassword), `{"name":"x"}`)
	path := s.copied()
	asFirstFormat(t, path)
	asRead, err := os.ReadFile(path)
	noErr(t, err)
	s.printed("user disable", "sam")
	s, _ = s.restored(path)
	s.enter("frodo", testPassword)
	s.want(http.StatusOK, nil, "GET", "/ringsofpower", "", "Authorization", "Bearer "+token.Token)
	s.want(http.StatusUnauthorized, nil, "POST", "/auth/session", credentials("sam", testPassword))
	if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, asRead) {
		t.Errorf("the copy has changed, %v", err)
	}

	// Likewise where the first version wrote the database itself.
	path = s.copied()
	s.store.Close()
	asFirstFormat(t, s.path)
	s, _ = s.restored(path)
	s.enter("frodo", testPassword)
}

func TestRestoreRefuses(t *testing.T) {
	s := newAccountServer(t)
	s.enter("frodo", testPassword)
	good := s.copied()
	var out bytes.Buffer
	for i, args := range [][]string{{"-db", s.path}, {"-db", filepath.Join(t.TempDir(), "no", "folder.db")}} {
		err := restore(testConfig(t, args...), good, &out)
		if want := []string{"stop the server first", "no such file"}[i]; err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", args, err)
		}
	}
	noErr(t, s.store.Close())
	whole, err := os.ReadFile(s.path)
	noErr(t, err)

	hash := []byte("$2a$04$")
	damaged := func(b []byte) []byte {
		b = bytes.Clone(b)
		for i := bytes.Index(b, hash); i >= 0; i = bytes.Index(b, hash) {
			b[i] = '!' // the disk has changed a record
		}
		return b
	}
	copied, err := os.ReadFile(good)
	noErr(t, err)
	folder := t.TempDir()
	for name, c := range map[string]struct {
		content []byte
		change  func(*bolt.Tx) error
		want    string
	}{
		"missing":   {nil, nil, "no such file"},
		"empty":     {[]byte{}, nil, "is empty"},
		"text":      {bytes.Repeat([]byte("not a database\n"), 4000), nil, "is not a ringward database"},
		"truncated": {copied[:len(copied)/2], nil, "is truncated"},
		"damaged":   {damaged(copied), nil, "damaged"},
		"foreign":   {copied, func(tx *bolt.Tx) error { return tx.DeleteBucket(bucketRingward) }, "not a ringward database"},
		"newer": {copied, func(tx *bolt.Tx) error {
			return tx.Bucket(bucketRingward).Put(keyFormat, []byte("9"))
		}, "use a newer ringward"},
	} {
		path := filepath.Join(folder, name)
		if c.content != nil {
			noErr(t, os.WriteFile(path, c.content, 0o600))
		}
		if c.change != nil {
			edit(t, path, c.change)
		}
		err := restore(testConfig(t, "-db", s.path), path, &out)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
		if now, err := os.ReadFile(s.path); err != nil || !bytes.Equal(now, whole) {
			t.Fatalf("%s: the database has changed, %v", name, err)
		}
	}
	onlyFile(t, s.path)
	if out.Len() > 0 {
		t.Errorf("it says %s", &out)
	}
	if err := restore(config{db: "postgres://x/y"}, good, &out); err == nil || !strings.Contains(err.Error(), "pg_restore") {
		t.Error(err)
	}
}

// A damaged database is what one has copies for. It tells nothing of who was
// put out.
func TestRestoreInPlaceOfADamagedDatabase(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, s *accountServer){
		"a record": func(t *testing.T, s *accountServer) { spoil(t, s.store, bucketUsers, []byte("sam")) },
		"the file": func(t *testing.T, s *accountServer) {
			s.store.Close()
			noErr(t, os.WriteFile(s.path, []byte("nothing of it is left"), 0o600))
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newAccountServer(t)
			path := s.copied()
			damage(t, s)
			s, said := s.restored(path)
			if !strings.HasPrefix(said, "who was put out since the copy was made is in again") || !strings.Contains(said, "the database before is now: "+s.path+".before-") {
				t.Errorf("it says %s", said)
			}
			s.enter("sam", testPassword)
		})
	}
}
