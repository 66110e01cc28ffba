// admin_test.go tests what commands do, and what a backup holds. How commands
// come to a server is in socket_test.go, how they are typed in cli_test.go.
package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/crypto/bcrypt"
)

// command runs one, as a server does it, and returns what it prints.
func (s *accountServer) command(words string, args ...string) (string, error) {
	var out bytes.Buffer
	err := s.operator.run(commandCall{Command: words, Args: args}, &out)
	return out.String(), err
}

// imports runs user import.
func (s *accountServer) imports(file string) (string, error) {
	var out bytes.Buffer
	err := s.operator.run(commandCall{Command: "user import", Args: []string{"FILE"}, Input: []byte(file)}, &out)
	return out.String(), err
}

// printed is command for one that must succeed.
func (s *accountServer) printed(words string, args ...string) string {
	s.Helper()
	out, err := s.command(words, args...)
	if err != nil {
		s.Fatalf("%s %q: %v", words, args, err)
	}
	return out
}

// htpasswd is what htpasswd -B of Debian's apache2-utils 2.4 wrote, and the
// hashes that bcrypt 6.0 of Node's registry made.
const htpasswd = `# people of the old server

Bilbo:$2y$05$WUn6XAjplqXMV7whFe5mPu5p94LsVokw4M12FPLD6RagvOB7iNQqe
rosie:$2y$04$.UGsXl5uVFomnHpt9oRr2e56wRRuiobQdevvCj7KGyrKP2odTTD52
sam@bag-end.example:$2y$05$mOBRNFQvlT3uI0ThPWAXdupW18fpFEbwjECa7lt0CVR2KzTnFco6W
md5man:$apr1$AtOPlBHq$OnutYer8KdH2NEQ3FHLS91
shaman:{SHA}b6X7vBbI+C6keOW5M7NF5G3Sheo=
crypto:UQFpHlAuJiZRM
gimli:$2b$04$44xSmgB3jGJFtxPITuPekOevQjLMMoYk1ErGW6G4SYaN3pWtu2D3u
legolas:$2b$10$PjHk2DQeh0MO/SGz87HGVutFlWefnU0iKcBtHQT4gOHmZ46grj.2O:comment
frodo:$2b$04$44xSmgB3jGJFtxPITuPekOevQjLMMoYk1ErGW6G4SYaN3pWtu2D3u
BILBO:$2b$04$44xSmgB3jGJFtxPITuPekOevQjLMMoYk1ErGW6G4SYaN3pWtu2D3u
no colon
two words:$2b$04$44xSmgB3jGJFtxPITuPekOevQjLMMoYk1ErGW6G4SYaN3pWtu2D3u
slow:$2b$16$44xSmgB3jGJFtxPITuPekOevQjLMMoYk1ErGW6G4SYaN3pWtu2D3u
`

var htpasswdPasswords = map[string]string{
	"bilbo":               "there and back again",
	"rosie":               "Grüße aus dem Auenland 🧝",
	"sam@bag-end.example": "concerning hobbits",
	"gimli":               "and my axe, and my axe",
	"legolas":             "pässwörter sind schwer",
}

// htpasswdLine returns a user's line of the file.
func htpasswdLine(user string) string {
	for line := range strings.Lines(htpasswd) {
		if strings.HasPrefix(line, user+":") {
			return line
		}
	}
	return ""
}

func TestImport(t *testing.T) {
	s := newAccountServer(t)
	s.auth.Cost = 5
	long := strings.Repeat("x", 5000)
	out, err := s.imports(htpasswd + long + "\r\n" + strings.Replace(htpasswdLine("rosie"), "rosie", "pippin", 1) + long[:4096])
	const want = "FILE: lines refused: 10\nline 6: not bcrypt\nline 7: not bcrypt\nline 8: not bcrypt\nline 11: name taken\n" +
		"line 12: name taken\nline 13: malformed\nline 14: malformed name\nline 15: cost outside 4 to 15\nline 16: malformed\nline 18: malformed"
	if out != "users imported: 6\n" || err == nil || err.Error() != want {
		t.Errorf("got %s%v, want %s", out, err, want)
	}
	for name, password := range htpasswdPasswords {
		s.want(http.StatusUnauthorized, nil, "POST", "/auth/session", credentials(name, password+"!"))
		s.enter(name, password)
		u, err := s.store.user(name)
		if err != nil {
			t.Fatal(err)
		}
		if cost, _ := bcrypt.Cost([]byte(u.Hash)); cost < s.auth.Cost {
			t.Errorf("%s: the hash has cost %d after a login", name, cost)
		}
		s.enter(name, password)
	}
	s.enter("frodo", testPassword) // not replaced by the file's
	s.enter("pippin", htpasswdPasswords["rosie"])
}

// lastCommit is the number of the last transaction that wrote.
func lastCommit(t *testing.T, store *BoltStore) (n int) {
	t.Helper()
	if err := store.view(func(tx *bolt.Tx) error { n = tx.ID(); return nil }); err != nil {
		t.Fatal(err)
	}
	return n
}

// A user a transaction would be minutes of fsync.
func TestImportOfManyIsAFewTransactions(t *testing.T) {
	s := newAccountServer(t)
	before := lastCommit(t, s.store)
	if out, err := s.imports(manyUsers("user", 2000)); out != "users imported: 2000\n" || err != nil {
		t.Fatal(out, err)
	}
	if n := lastCommit(t, s.store) - before; n > 20 {
		t.Errorf("%d transactions", n)
	}
}

// manyUsers is a file of n users.
func manyUsers(name string, n int) string {
	var file strings.Builder
	for i := range n {
		file.WriteString(strings.Replace(htpasswdLine("rosie"), "rosie", fmt.Sprintf("%s%d", name, i), 1))
	}
	return file.String()
}

func TestParseHtpasswd(t *testing.T) {
	const hash = "$2y$05$WUn6XAjplqXMV7whFe5mPu5p94LsVokw4M12FPLD6RagvOB7iNQqe"
	for line, want := range map[string]string{
		"":                            "",
		"   \t":                       "",
		"# comment":                   "",
		"frodo:" + hash:               "frodo",
		"Frodo:" + hash + " \r":       "frodo",
		"frodo:" + hash + ":x:y":      "frodo",
		"frodo":                       "malformed",
		":" + hash:                    "malformed name",
		" frodo:" + hash:              "malformed name",
		"\ufefffrodo:" + hash:         "malformed name",
		"frodo: " + hash:              "not bcrypt",
		"frodo:":                      "not bcrypt",
		"frodo:" + hash[:59]:          "not bcrypt",
		"frodo:" + hash + "x":         "not bcrypt",
		"frodo:$2x" + hash[3:]:        "not bcrypt", // of a crypt_blowfish that got some characters wrong
		"frodo:$2" + hash[3:]:         "not bcrypt",
		"frodo:$2y$03" + hash[6:]:     "cost outside 4 to 15",
		"frodo:$2y$04" + hash[6:]:     "frodo",
		"frodo:$2y$15" + hash[6:]:     "frodo",
		"frodo:$2y$16" + hash[6:]:     "cost outside 4 to 15",
		"frodo:$2y$5" + hash[6:]:      "not bcrypt",
		"frodo:$2y$ 5" + hash[6:]:     "not bcrypt",
		"frodo\x00x:" + hash:          "malformed name",
		"frodo:" + hash[:59] + "\xff": "not bcrypt",
	} {
		u, _, why := parseHtpasswd(line)
		if why+u.Name != want && why != want {
			t.Errorf("%q: got %q, %q, want %q", line, u.Name, why, want)
		}
	}
}

func FuzzParseHtpasswd(f *testing.F) {
	for line := range strings.Lines(htpasswd) {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, line string) {
		u, _, why := parseHtpasswd(line)
		if why != "" || u.Name == "" {
			if u.Hash != "" {
				t.Errorf("refused with a hash: %q", line)
			}
			return
		}
		if name, ok := canonicalName(u.Name); !ok || name != u.Name {
			t.Errorf("%q: name %q", line, u.Name)
		}
		cost, err := bcrypt.Cost([]byte(u.Hash))
		if err != nil || cost < bcrypt.MinCost || cost > maxImportCost || !strings.Contains(line, u.Hash) {
			t.Errorf("%q: hash %q of cost %d, %v", line, u.Hash, cost, err)
		}
		if cost > bcrypt.MinCost {
			return // the comparison would take long
		}
		if err := bcrypt.CompareHashAndPassword([]byte(u.Hash), nil); err != nil && err != bcrypt.ErrMismatchedHashAndPassword {
			t.Errorf("%q: a hash that bcrypt cannot compare: %v", line, err)
		}
	})
}

// openCopy starts a server with the database that these bytes are.
func openCopy(t *testing.T, copied []byte) *accountServer {
	t.Helper()
	path := filepath.Join(t.TempDir(), "copy.db")
	if err := os.WriteFile(path, copied, 0o600); err != nil {
		t.Fatal(err)
	}
	return openAccountServer(t, path)
}

// What was removed is on pages of the file that were freed, and not in a copy.
func TestBackupHoldsWhatIsLive(t *testing.T) {
	s := newAccountServer(t)
	const mark = "MARKMARKMARKMARKMARKMARKMARKMARKMARKMARKMARKMARKMARKM" // in the place of a hash
	if _, err := s.imports(manyUsers("removed", 500) + "marked:$2b$10$" + mark + "\n"); err != nil {
		t.Fatal(err)
	}
	cookie, token := s.enter("sam", testPassword), strings.TrimSpace(s.printed("token add", "sam", "script"))
	for i := range 500 {
		s.printed("user remove", fmt.Sprintf("removed%d", i))
	}
	s.printed("user remove", "marked")
	file, err := os.ReadFile(s.path)
	copied := []byte(s.printed("backup", "FILE"))
	if err != nil || !bytes.Contains(file, []byte(mark)) {
		t.Fatal("the database has nothing of it either, so this test shows nothing", err)
	}
	if bytes.Contains(copied, []byte(mark)) || len(copied) > len(file)/2 {
		t.Errorf("%d bytes of %d, and the marked hash is in them: %t", len(copied), len(file), bytes.Contains(copied, []byte(mark)))
	}
	second := openCopy(t, copied)
	if err := second.store.db.View(func(tx *bolt.Tx) error {
		for err := range tx.Check() {
			return err
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	if got, want := second.printed("user list"), s.printed("user list"); got != want {
		t.Errorf("got users %s, want %s", got, want)
	}
	second.want(http.StatusOK, nil, "GET", "/auth/session", "", "Cookie", cookie)
	second.want(http.StatusOK, nil, "GET", "/ringsofpower", "", "Authorization", "Bearer "+token)
	second.enter("frodo", testPassword)
}

// A bucket of any size is copied whole, with its sequence, and an empty one too.
func TestCompactCopiesAll(t *testing.T) {
	from, path := tempStore(t).db, filepath.Join(t.TempDir(), "copy.db")
	noErr(t, from.Update(func(tx *bolt.Tx) error {
		for _, n := range []int{0, 1, 10_000, 10_001, 20_001} {
			b, err := tx.CreateBucket([]byte(fmt.Sprint("of ", n)))
			if err != nil {
				return err
			}
			for i := range n {
				if err := b.Put([]byte(fmt.Sprint(i)), []byte(fmt.Sprint("value ", i))); err != nil {
					return err
				}
			}
			if err := b.SetSequence(uint64(n)); err != nil {
				return err
			}
		}
		return nil
	}))
	noErr(t, compact(from, path))
	to, err := bolt.Open(path, 0o600, &bolt.Options{ReadOnly: true})
	noErr(t, err)
	defer to.Close()
	all := func(db *bolt.DB) string {
		var text strings.Builder
		noErr(t, db.View(func(tx *bolt.Tx) error {
			return tx.ForEach(func(name []byte, b *bolt.Bucket) error {
				fmt.Fprintf(&text, "%s %d\n", name, b.Sequence())
				return b.ForEach(func(k, v []byte) error { fmt.Fprintf(&text, "%q %q\n", k, v); return nil })
			})
		}))
		return text.String()
	}
	if got, want := all(to), all(from); got != want {
		t.Errorf("the copy has %d bytes, not the same %d", len(got), len(want))
	}
}

// What was done before a backup began is in the copy, nothing is in it by
// half, and who reads it slowly holds nothing up.
func TestBackupUnderLoad(t *testing.T) {
	s := newAccountServer(t)
	const batch = 10
	imported, stop := make(chan string), make(chan struct{})
	var load sync.WaitGroup
	defer load.Wait()
	defer close(stop)
	for i := range 4 {
		load.Go(func() {
			for n := 0; ; n++ {
				name := fmt.Sprintf("u%d-%d-", i, n)
				if _, err := s.imports(manyUsers(name, batch)); err != nil {
					t.Error(err)
				}
				select {
				case imported <- name:
				case <-stop:
					return
				}
			}
		})
	}
	var before []string
	for range 5 {
		for range 8 {
			before = append(before, <-imported)
		}
		reader, writer := io.Pipe()
		go func() {
			writer.CloseWithError(s.operator.run(commandCall{Command: "backup", Args: []string{"FILE"}}, writer))
		}()
		copied := make([]byte, 1)
		if _, err := io.ReadFull(reader, copied); err != nil {
			t.Fatal(err)
		}
		var meanwhile []string
		for range 8 {
			meanwhile = append(meanwhile, <-imported)
		}
		rest, err := io.ReadAll(reader)
		if err != nil {
			t.Fatal(err)
		}
		second := openCopy(t, append(copied, rest...))
		users, err := second.store.users()
		if err != nil {
			t.Fatal(err)
		}
		there := map[string]int{}
		for _, u := range users {
			there[u.Name[:strings.LastIndex(u.Name, "-")+1]]++
		}
		for _, name := range before {
			if there[name] != batch {
				t.Errorf("%d of %s were added before, and %d are in the copy", batch, name, there[name])
			}
		}
		for name, n := range there {
			if n != batch && name != "" { // frodo and sam
				t.Errorf("the copy has %d of %s, which were added as one: %d", n, name, batch)
			}
		}
		before = append(before, meanwhile...)
	}
	if left, _ := filepath.Glob(s.path + "?*"); len(left) > 0 {
		t.Errorf("backups left %v behind", left)
	}
}

// A copied database opens no door: no secret is in its bytes.
func TestNothingSecretIsKept(t *testing.T) {
	s := newAccountServer(t)
	const ofOperator = "of the operator's choice"
	secrets := []string{testPassword, newPassword, ofOperator}
	for i := range 3 {
		cookie := s.enter("frodo", testPassword)
		id, signature, _ := strings.Cut(strings.TrimPrefix(cookie, "ringward="), ".")
		token := s.token(cookie, fmt.Sprintf(`{"name":"%d"}`, i)).Token
		secrets = append(secrets, id, signature, token, strings.TrimPrefix(token, "rw_"), s.invite("frodo"), s.invite("sam"))
	}
	cookie := s.enter("sam", testPassword)
	s.want(http.StatusNoContent, nil, "PUT", "/auth/password", `{"current":"`+testPassword+`","new":"`+newPassword+`"}`, "Cookie", cookie)
	if err := s.operator.run(commandCall{Command: "user add", Args: []string{"merry"}, Input: []byte(ofOperator)}, io.Discard); err != nil {
		t.Fatal(err)
	}
	copied := []byte(s.printed("backup", "FILE"))
	s.store.Close()
	file, err := os.ReadFile(s.path)
	if err != nil || !bytes.Contains(file, []byte("merry")) || !bytes.Contains(copied, []byte("merry")) {
		t.Fatal("that is not the database, or no backup", err)
	}
	for _, secret := range secrets {
		raw, _ := base64.RawURLEncoding.DecodeString(secret) // as far as it is that
		for _, form := range [][]byte{[]byte(secret), raw} {
			form = form[:min(len(form), 16)]
			if len(form) == 16 && (bytes.Contains(file, form) || bytes.Contains(copied, form)) {
				t.Errorf("the database has %q of %q", form, secret)
			}
		}
	}
}

// Each act leaves a line that says what and whom, and no secret.
func TestOperatorsAudit(t *testing.T) {
	s := newAccountServer(t)
	cookie := s.enter("frodo", testPassword)
	token := s.token(cookie, `{"name":"x"}`)
	var own []sessionView
	s.want(http.StatusOK, &own, "GET", "/auth/sessions", "", "Cookie", cookie)
	for _, act := range []struct {
		commandCall
		user  string
		lines []string
	}{
		{commandCall{Command: "user add", Args: []string{"Merry"}}, "merry", []string{"user added", "invite made"}},
		{commandCall{Command: "user add", Args: []string{"pippin"}, Input: []byte(newPassword)}, "pippin", []string{"user added", "password set"}},
		{commandCall{Command: "user import", Args: []string{"FILE"}, Input: []byte(htpasswdLine("rosie"))}, "rosie", []string{"user added"}},
		{commandCall{Command: "user invite", Args: []string{"Frodo"}}, "frodo", []string{"invite made"}},
		{commandCall{Command: "token add", Args: []string{"frodo", "y"}}, "frodo", []string{"token made"}},
		{commandCall{Command: "token remove", Args: []string{token.ID}}, "frodo", []string{"token removed"}},
		{commandCall{Command: "session end", Args: []string{own[0].ID}}, "frodo", []string{"session ended"}},
		{commandCall{Command: "session end-all", Args: []string{"Frodo"}}, "frodo", []string{"all sessions ended"}},
		{commandCall{Command: "user unlock", Args: []string{"Frodo"}}, "frodo", []string{"user unlocked"}},
		{commandCall{Command: "user disable", Args: []string{"Frodo"}}, "frodo", []string{"user disabled"}},
		{commandCall{Command: "user enable", Args: []string{"Frodo"}}, "frodo", []string{"user enabled"}},
		{commandCall{Command: "user remove", Args: []string{"Frodo"}}, "frodo", []string{"user removed"}},
		{commandCall{Command: "backup", Args: []string{"FILE"}}, "", []string{"backup made"}},
		{commandCall{Command: "user list"}, "", nil},
		{commandCall{Command: "session list"}, "", nil},
		{commandCall{Command: "token list"}, "", nil},
	} {
		s.log.Reset()
		var out bytes.Buffer
		if err := s.operator.run(act.commandCall, &out); err != nil {
			t.Errorf("%s: %v", act.Command, err)
		}
		var got []string
		for line := range strings.Lines(s.log.String()) {
			_, message, _ := strings.Cut(strings.TrimSpace(line), " msg=")
			got = append(got, message)
		}
		var want []string
		for _, line := range act.lines {
			if act.user != "" {
				want = append(want, fmt.Sprintf("%q user=%s by=operator", line, act.user))
			} else {
				want = append(want, fmt.Sprintf("%q by=operator", line))
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: log %q, want %q", act.Command, got, want)
		}
	}
}

// The list is of one user's, in an order that stays.
func TestOperatorsLists(t *testing.T) {
	s := newAccountServer(t)
	for i := range 3 {
		for _, name := range []string{"sam", "frodo"} {
			s.want(http.StatusCreated, nil, "POST", "/auth/session", credentials(name, testPassword), "User-Agent", fmt.Sprint(i))
			s.printed("token add", name, fmt.Sprint(i))
		}
	}
	for _, c := range []struct {
		of   []string
		want string
	}{
		{nil, "frodo0 frodo1 frodo2 sam0 sam1 sam2 "},
		{[]string{"SAM"}, "sam0 sam1 sam2 "},
	} {
		for _, what := range []string{"session", "token"} {
			var all []struct{ Username, Name, UserAgent string }
			var out bytes.Buffer
			err := s.operator.run(commandCall{Command: what + " list", Args: c.of, JSON: true}, &out)
			if err := errors.Join(err, json.Unmarshal(out.Bytes(), &all)); err != nil {
				t.Fatal(err)
			}
			got := ""
			for _, item := range all {
				got += item.Username + item.Name + item.UserAgent + " "
			}
			if got != c.want {
				t.Errorf("%ss of %q: got %s, want %s", what, c.of, got, c.want)
			}
		}
	}
}

func TestUserUnlock(t *testing.T) {
	s := newAccountServer(t)
	for range pairLimit {
		s.want(http.StatusUnauthorized, nil, "POST", "/auth/session", credentials("frodo", "wrong"))
	}
	s.want(http.StatusTooManyRequests, nil, "POST", "/auth/session", credentials("frodo", testPassword))
	s.printed("user unlock", "Frodo")
	s.enter("frodo", testPassword)
}

// A store that fails is never said to lack what was asked for.
func TestCommandsWithoutTheirStore(t *testing.T) {
	s := newAccountServer(t)
	s.store.Close()
	for _, c := range commands {
		var out bytes.Buffer
		err := s.operator.run(commandCall{Command: c.words, Args: []string{"frodo", "x"}[:len(strings.Fields(c.args))], Input: []byte(htpasswdLine("rosie"))}, &out)
		if err == nil || errors.As(err, new(errInput)) || out.Len() > 0 {
			t.Errorf("%s: got %q, %v", c.words, out.String(), err)
		}
	}
}
