// cli_test.go tests the commands as they are typed: what they print, beside a
// server and without one, and what is wrong usage.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// Every command of the table: what it prints does not depend on a server.
func TestCommands(t *testing.T) {
	t.Run("beside a server", func(t *testing.T) { testCommands(t, true) })
	t.Run("without one", func(t *testing.T) { testCommands(t, false) })
}

func testCommands(t *testing.T, online bool) {
	table := []struct {
		args   []string // {session}, {token}: the id of one that is there
		stdin  string
		code   int
		stdout string // a regular expression
		stderr string // a part of it
	}{
		{args: []string{"user", "list"}, stdout: `NAME   STATE   CREATED               FACTORS  GROUPS
frodo  active  TIME  -        -
`},
		{args: []string{"user", "add", "Sam"}, stdout: "BASE/auth/invite#SECRET\n"},
		{args: []string{"user", "add", "sam"}, code: 1, stderr: "There is a user sam already"},
		{args: []string{"user", "add", "no name"}, code: 1, stderr: "Username must be"},
		{args: []string{"user", "add", "-password-stdin", "merry"}, stdin: newPassword + "\n", stdout: "user added: merry\n"},
		{args: []string{"-password-stdin", "user", "add", "pippin"}, stdin: newPassword, stdout: "user added: pippin\n"},
		{args: []string{"user", "add", "gollum", "--password-stdin"}, stdin: "precious\n", code: 1, stderr: "Password must have at least 15 characters"},
		{args: []string{"user", "add", "eowyn"}, stdout: "BASE/auth/invite#SECRET\n"},
		{args: []string{"user", "invite", "sam"}, stdout: "BASE/auth/invite#SECRET\n"},
		{args: []string{"-public-url", "https://auth.example.com", "user", "invite", "sam"}, stdout: "https://auth\\.example\\.com/auth/invite#SECRET\n"},
		{args: []string{"user", "invite", "gollum"}, code: 1, stderr: "There is no user gollum"},
		{args: []string{"user", "import", "people.txt"}, code: 1, stdout: "users imported: 5\n",
			stderr: "people.txt: lines refused: 8\nline 6: not bcrypt\nline 7: not bcrypt\nline 8: not bcrypt\nline 11: name taken\n" +
				"line 12: name taken\nline 13: malformed\nline 14: malformed name\nline 15: cost outside 4 to 15"},
		{args: []string{"user", "import", "elves.txt"}, stdout: "users imported: 1\n"},
		{args: []string{"user", "import", "nobody.txt"}, code: 1, stderr: "open nobody.txt: no such file"},
		{args: []string{"user", "import", "."}, code: 1, stderr: "is a directory"},
		{args: []string{"user", "unlock", "frodo"}, stdout: "user unlocked: frodo\n"},
		{args: []string{"user", "disable", "Merry"}, stdout: "user disabled: merry\n"},
		{args: []string{"user", "disable", "merry"}, stdout: "user disabled: merry\n"},
		{args: []string{"user", "invite", "merry"}, code: 1, stderr: "merry is disabled"},
		{args: []string{"token", "add", "merry", "x"}, code: 1, stderr: "merry is disabled"},
		{args: []string{"user", "enable", "merry"}, stdout: "user enabled: merry\n"},
		{args: []string{"user", "disable", "pippin"}, stdout: "user disabled: pippin\n"},
		{args: []string{"user", "group", "add", "Frodo", "ops"}, stdout: "added to ops: frodo\n"},
		{args: []string{"user", "group", "add", "frodo", "Ops!"}, code: 1, stderr: "A group is"},
		{args: []string{"user", "group", "add", "merry", "dev"}, stdout: "added to dev: merry\n"},
		{args: []string{"user", "group", "remove", "merry", "dev"}, stdout: "removed from dev: merry\n"},
		{args: []string{"user", "factor", "reset", "merry"}, stdout: "second factor reset: merry\n"},
		{args: []string{"user", "remove", "eowyn"}, stdout: "user removed: eowyn\n"},
		{args: []string{"user", "remove", "eowyn"}, code: 1, stderr: "There is no user eowyn"},
		{args: []string{"user", "remove", ".."}, code: 1, stderr: "Username must be"},
		{args: []string{"user", "list", "-json"}, stdout: `\[(\{"username":"[^"]+","state":"(active|invited|disabled)","created":"TIME","factors":\[\],"groups":\[("ops")?\]\},?){10}\]
`},
		{args: []string{"user", "list"}, stdout: `NAME                 STATE     CREATED               FACTORS  GROUPS
bilbo                active    TIME  -        -
frodo                active    TIME  -        ops
galadriel            active    TIME  -        -
gimli                active    TIME  -        -
legolas              active    TIME  -        -
merry                active    TIME  -        -
pippin               disabled  TIME  -        -
rosie                active    TIME  -        -
sam                  invited   TIME  -        -
sam@bag-end.example  active    TIME  -        -
`},
		{args: []string{"token", "add", "frodo", "nightly build"}, stdout: "rw_SECRET\n"},
		{args: []string{"token", "add", "frodo", "nightly build"}, code: 1, stderr: "There is a token of that name"},
		{args: []string{"token", "add", "frodo", ""}, code: 1, stderr: "Name must have"},
		{args: []string{"token", "add", "gollum", "x"}, code: 1, stderr: "There is no user gollum"},
		{args: []string{"token", "add", "merry", "--", "-json"}, stdout: "rw_SECRET\n"},
		{args: []string{"token", "list"}, stdout: `ID                    USER   CREATED               EXPIRES  LAST USED  NAME
HANDLE  frodo  TIME  never    never      nightly build
HANDLE  merry  TIME  never    never      -json
`},
		{args: []string{"token", "list", "merry", "-json"}, stdout: `\[\{"id":"HANDLE","username":"merry","name":"-json","created":"TIME","expires":null,"lastUsed":null\}\]
`},
		{args: []string{"token", "list", "gollum"}, code: 1, stderr: "There is no user gollum"},
		{args: []string{"token", "remove", "{token}"}, stdout: "token removed: HANDLE\n"},
		{args: []string{"token", "remove", "0"}, code: 1, stderr: "There is no such token"},
		{args: []string{"token", "list", "frodo"}, stdout: "ID  USER  CREATED  EXPIRES  LAST USED  NAME\n"},
		{args: []string{"session", "list", "Frodo"}, stdout: `ID                    USER   CREATED               LAST SEEN             EXPIRES               ADDRESS    BROWSER
(HANDLE  frodo  TIME  TIME  TIME  192.0.2.1  test of frodo
){3}`},
		{args: []string{"-json", "session", "list"}, stdout: `\[(\{"id":"HANDLE","username":"frodo","current":false,"created":"TIME","lastSeen":"TIME",` +
			`"expires":"TIME","remoteAddr":"192.0.2.1","userAgent":"test of frodo"\},?){3}\]
`},
		{args: []string{"session", "end", "{session}"}, stdout: "session ended: HANDLE\n"},
		{args: []string{"session", "end", "0123456789abcdef0123"}, code: 1, stderr: "There is no such session"},
		{args: []string{"session", "list", "sam"}, stdout: "ID  USER  CREATED  LAST SEEN  EXPIRES  ADDRESS  BROWSER\n"},
		{args: []string{"session", "end-all", "FRODO"}, stdout: "all sessions ended: frodo\n"},
		{args: []string{"session", "list", "-json"}, stdout: "\\[\\]\n"},
		{args: []string{"session", "end-all", "gollum"}, code: 1, stderr: "There is no user gollum"},
		{args: []string{"backup", "copies/copy.db"}, code: 1, stderr: "no such file or directory"},
		{args: []string{"backup", "copy.db"}, stdout: "backup made: copy.db\n"},
		{args: []string{"backup", "copy.db"}, code: 1, stderr: "copy.db is there already"},
		{args: []string{"backup", "people.txt"}, code: 1, stderr: "people.txt is there already"},
		{args: []string{"audit", "eowyn"}, stdout: `\x54IME                  USER   BY        WHAT          FROM
TIME  eowyn  operator  user added    -
TIME  eowyn  operator  invite made   -
TIME  eowyn  operator  user removed  -
`},
		{args: []string{"access"}, stdout: `NAME                 GROUPS  PASSWORD  FACTORS  TOKENS  SESSIONS  LAST USE
bilbo                -       yes       -        0       0         never
frodo                ops     yes       -        0       0         never
galadriel            -       yes       -        0       0         never
gimli                -       yes       -        0       0         never
legolas              -       yes       -        0       0         never
merry                -       yes       -        1       0         never
rosie                -       yes       -        0       0         never
sam@bag-end.example  -       yes       -        0       0         never
`},
		{args: []string{"version"}, stdout: "ringward \\S+ .+ go1\\S+\n"},
		{args: []string{"user", "list", "-h"}, stdout: "Ringward is local login (.|\n)*"},
		{args: []string{"help"}, stdout: "Ringward is local login (.|\n)*"},
	}
	s := inFolder(t)
	s.printed("user remove", "sam")
	base := "http://localhost:8080"
	for range 3 {
		s.enter("frodo", testPassword)
	}
	stop := func() {}
	if online {
		base = "http://test"
		_, stop = s.serveCommands()
	} else {
		s.store.Close()
	}
	t.Setenv("SECRET_KEY", "") // which no command needs
	t.Setenv("RINGWARD_DB", "test.db")
	t.Setenv("RINGWARD_BCRYPT_COST", "10")
	for name, text := range map[string]string{"people.txt": htpasswd, "elves.txt": strings.Replace(htpasswdLine("legolas"), "legolas", "galadriel", 1)} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	firstID := func(what string) string {
		var all []struct{ ID string }
		var stdout bytes.Buffer
		err := run(t.Context(), []string{what, "list", "-json"}, nil, &stdout, io.Discard)
		if err := errors.Join(err, json.Unmarshal(stdout.Bytes(), &all)); err != nil || len(all) == 0 {
			t.Fatal(what, err, all)
		}
		return all[0].ID
	}
	shown := strings.NewReplacer("BASE", regexp.QuoteMeta(base), "SECRET", `[A-Za-z0-9_-]{43}`, "HANDLE", `[0-9a-f]{20}`, "TIME", `20[0-9-]{8}T[0-9:]{8}Z`)
	tried := map[string]bool{}
	for _, c := range table {
		args := slices.Clone(c.args)
		for i, arg := range args {
			switch arg {
			case "{session}":
				args[i] = firstID("session")
			case "{token}":
				args[i] = firstID("token")
			}
		}
		var stdout bytes.Buffer
		err := run(t.Context(), args, strings.NewReader(c.stdin), &stdout, io.Discard)
		stderr := ""
		if err != nil {
			stderr = err.Error()
		}
		if exitCode(err) != c.code || !regexp.MustCompile("^"+shown.Replace(c.stdout)+"$").MatchString(stdout.String()) ||
			(c.stderr == "") != (stderr == "") || !strings.Contains(stderr, c.stderr) {
			t.Errorf("ringward %q\ngot  %d\n%s\n%s\nwant %d\n%s\n%s", c.args, exitCode(err), &stdout, stderr, c.code, c.stdout, c.stderr)
		}
		for i := range args {
			if found, _, ok := findCommand(args[i:]); ok {
				tried[found.words] = true
			}
		}
	}
	for _, c := range commands {
		if !tried[c.words] {
			t.Errorf("%s is not tried", c.words)
		}
	}
	stop()
	var names []string
	files, err := os.ReadDir(".")
	for _, file := range files {
		names = append(names, file.Name())
	}
	if want := []string{"copy.db", "elves.txt", "people.txt", "test.db"}; !slices.Equal(names, want) || err != nil {
		t.Errorf("files: got %v, want %v", names, want)
	}
	if file, err := os.Stat("copy.db"); err != nil || file.Mode() != 0o600 {
		t.Errorf("the copy has mode %v, %v", file.Mode(), err)
	}
	second := openAccountServer(t, "copy.db")
	second.enter("merry", newPassword)
	second.enter("gimli", htpasswdPasswords["gimli"])
}

// What is wrong in itself is said without a look at the database.
func TestWrongUsage(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, c := range []struct {
		args   []string
		stderr string // a part of it
	}{
		{[]string{"user", "add"}, "usage: ringward user add NAME"},
		{[]string{"user", "list", "frodo"}, "usage: ringward user list"},
		{[]string{"token", "add", "frodo"}, "usage: ringward token add NAME LABEL"},
		{[]string{"session", "list", "a", "b"}, "usage: ringward session list [NAME]"},
		{[]string{"user", "remove", "-json", "frodo"}, "does not have that flag"},
		{[]string{"user", "invite", "-password-stdin", "frodo"}, "does not have that flag"},
		{[]string{"user", "list", "-db", "other.db"}, "-db is not a flag of a command"},
		{[]string{"-dbb", "other.db", "user", "list"}, "not defined"},
		{[]string{"-metrcs", "x"}, "-metrcs: did you mean -metrics?"},
		{[]string{"-bcrypt-cost", "x"}, `invalid value "x" for flag -bcrypt-cost: parse error; see ringward help`},
		{[]string{"user"}, "it is one of: user add, user invite,"},
		{[]string{"usr", "ad"}, `there is no command "usr ad": did you mean user add?`},
		{[]string{"backupp", "x"}, `there is no command "backupp x": did you mean backup?`},
		{[]string{"frodo", "add"}, `there is no command "frodo add"; see ringward help`},
		{[]string{"session", "end-all"}, "say -yes"},
		{[]string{"user", "list", "-yes"}, "does not have that flag"},
		{[]string{"restore"}, "usage: ringward restore FILE"},
		{[]string{"doctor", "a", "b"}, "usage: ringward doctor [URL]"},
		{[]string{"version", "x"}, "usage: ringward version"},
		{[]string{"completion"}, "usage: ringward completion bash|zsh"},
		{[]string{"completion", "fish"}, "usage: ringward completion bash|zsh"},
		{[]string{"doktor"}, "did you mean doctor?"},
		{[]string{"migrate", "postgres://u:p@h/d"}, "it is: DATABASE_URL=postgres://… ringward -db FILE migrate"},
	} {
		var stdout bytes.Buffer
		err := run(t.Context(), c.args, nil, &stdout, io.Discard)
		if exitCode(err) != 2 || !strings.Contains(err.Error(), c.stderr) || stdout.Len() > 0 {
			t.Errorf("ringward %q: got %v and %q, want %q", c.args, err, stdout.String(), c.stderr)
		}
	}
	if files, err := os.ReadDir("."); len(files) > 0 || err != nil {
		t.Errorf("left %v, %v", files, err)
	}
}

// The table in help is that of the commands.
func TestHelp(t *testing.T) {
	_, table, _ := strings.Cut(help, "\nCommands")
	var listed []string
	for line := range strings.Lines(table) {
		if words := strings.Fields(line); strings.HasPrefix(line, "  ") && !slices.Contains([]string{"migrate", "restore", "doctor", "healthcheck", "completion", "version", "help"}, words[0]) && !strings.HasPrefix(line, "    ") {
			listed = append(listed, line)
		}
	}
	for _, c := range commands {
		i := slices.IndexFunc(listed, func(line string) bool { return strings.HasPrefix(line+" ", "  "+c.words+" ") })
		if i < 0 {
			t.Errorf("help does not have %s", c.words)
			continue
		}
		for i >= 0 && i < len(listed) && strings.HasPrefix(listed[i], "  "+c.words+" ") {
			listed = slices.Delete(listed, i, i+1)
		}
	}
	if len(listed) > 0 {
		t.Errorf("help has what is no command: %q", listed)
	}
}

// Who is lost gets help, whatever is set.
func TestHelpIsNeverRefused(t *testing.T) {
	for _, env := range [][2]string{{"RINGWARD_BCRYPT_COST", "99"}, {"RINGWARD_BCRYPT_COST", "ten"}, {"DATABASE_URL", "mysql://x"}} {
		t.Run(env[0]+"="+env[1], func(t *testing.T) {
			t.Setenv(env[0], env[1])
			for line, want := range map[string]string{"help": help, "help me": help, "-h": help, "-help": help,
				"user add -h": help, "version": "ringward " + version()} {
				var stdout bytes.Buffer
				err := run(t.Context(), strings.Fields(line), nil, &stdout, io.Discard)
				if err != nil || !strings.HasPrefix(stdout.String(), want) {
					t.Errorf("ringward %s: %v, %q", line, err, stdout.String())
				}
			}
			if err := run(t.Context(), []string{"user", "list"}, nil, io.Discard, io.Discard); exitCode(err) != 2 {
				t.Errorf("a command: %v (exit %d), want exit 2", err, exitCode(err))
			}
		})
	}
}

// Only what makes users makes a database, so that a mistyped name is noticed.
func TestCommandsMakeNoDatabase(t *testing.T) {
	t.Setenv("RINGWARD_DB", filepath.Join(t.TempDir(), "test.db"))
	for _, c := range commands {
		args := append(strings.Fields(c.words), "frodo", "x")
		if args = args[:len(args)-2+len(strings.Fields(c.args))]; c.words == "user add" || c.words == "user import" {
			continue
		}
		if c.words == "backup" {
			args[1] = filepath.Join(t.TempDir(), "copy.db")
		}
		err := run(t.Context(), args, nil, io.Discard, io.Discard)
		if err == nil || !strings.Contains(err.Error(), "there is no database") || exitCode(err) != 1 {
			t.Errorf("%s: got %v", c.words, err)
		}
		if c.words == "backup" {
			if left, _ := filepath.Glob(args[1] + "*"); left != nil {
				t.Errorf("backup left %v", left)
			}
		}
	}
	if _, err := os.Lstat(os.Getenv("RINGWARD_DB")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a command made a database")
	}
}

// A command waits for another to let go of the file, but not for ever.
func TestCommandWaits(t *testing.T) {
	for held, succeeds := range map[time.Duration]bool{3 * time.Second: true, time.Hour: false} {
		synctest.Test(t, func(t *testing.T) { // bbolt looks at the lock again and again
			db := filepath.Join(t.TempDir(), "test.db")
			store, err := OpenStore(db)
			if err != nil {
				t.Fatal(err)
			}
			time.AfterFunc(held, func() { store.Close() })
			start := time.Now()
			err = run(t.Context(), []string{"-db", db, "user", "list"}, nil, io.Discard, io.Discard)
			if succeeds && err != nil || !succeeds && (!errors.Is(err, errInUse) || exitCode(err) != 1) || time.Since(start) > 8*time.Second {
				t.Errorf("held for %v: got %v after %v", held, err, time.Since(start))
			}
			time.Sleep(held)
			if store, err = OpenStore(db); err != nil { // the command let go of it
				t.Fatal(err)
			}
			store.Close()
		})
	}
}

// The tables line up whatever is in them, and have as many columns in each row.
func TestTables(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // it is the first of January 2000
		db := filepath.Join(t.TempDir(), "test.db")
		store, err := OpenStore(db)
		if err != nil {
			t.Fatal(err)
		}
		now := time.Now()
		frodo := User{Name: "frodo", Hash: "x", Created: now}
		token, _, err := newToken("frodo", "of Rivendell \u202e", "2030-01-01T00:00:00Z", now)
		if err != nil {
			t.Fatal(err)
		}
		token.Key, token.Used = keyOf("token"), now
		err = errors.Join(store.addUser(frodo), store.addToken(token))
		for i, agent := range []string{"", strings.Repeat("é", 80), "a\x1b[2Jb"} {
			s := Session{Key: keyOf(agent), User: "frodo", Created: now, Seen: now, Idle: now.Add(time.Hour), End: now.Add(2 * time.Hour), Agent: agent}
			if i == 2 {
				s.Addr = "2001:db8::1"
			}
			err = errors.Join(err, store.login(frodo, s, nil, ""))
			now = now.Add(time.Second)
		}
		if err := errors.Join(err, store.Close()); err != nil {
			t.Fatal(err)
		}
		list := func(args ...string) string {
			var stdout strings.Builder
			if err := run(t.Context(), append([]string{"-db", db}, args...), nil, &stdout, io.Discard); err != nil {
				t.Error(err)
			}
			return stdout.String()
		}
		for what, want := range map[string]string{
			"user": `NAME   STATE   CREATED               FACTORS  GROUPS
frodo  active  2000-01-01T00:00:00Z  -        -
`,
			"token": `ID                    USER   CREATED               EXPIRES               LAST USED             NAME
3c469e9d6c5875d37a43  frodo  2000-01-01T00:00:00Z  2030-01-01T00:00:00Z  2000-01-01T00:00:00Z  of Rivendell ?
`,
			"session": `ID                    USER   CREATED               LAST SEEN             EXPIRES               ADDRESS      BROWSER
e3b0c44298fc1c149afb  frodo  2000-01-01T00:00:00Z  2000-01-01T00:00:00Z  2000-01-01T01:00:00Z  -            -
aaaaaaaaaaaaaaaaaaaa  frodo  2000-01-01T00:00:01Z  2000-01-01T00:00:01Z  2000-01-01T01:00:01Z  -            ` + strings.Repeat("é", 30) + `...
bbbbbbbbbbbbbbbbbbbb  frodo  2000-01-01T00:00:02Z  2000-01-01T00:00:02Z  2000-01-01T01:00:02Z  2001:db8::1  a?[2Jb
`,
		} {
			want = strings.NewReplacer("aaaaaaaaaaaaaaaaaaaa", keyOf(strings.Repeat("é", 80)).handle(), "bbbbbbbbbbbbbbbbbbbb", keyOf("a\x1b[2Jb").handle()).Replace(want)
			if got := list(what, "list"); got != want {
				t.Errorf("%s list: got\n%s\nwant\n%s", what, got, want)
			}
		}
		if got, want := list("user", "list", "-json"), `[{"username":"frodo","state":"active","created":"2000-01-01T00:00:00Z","factors":[],"groups":[]}]`+"\n"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	})
}

func TestBackupNeverOverwrites(t *testing.T) {
	db := fakeServer(t, func(conn net.Conn) {
		responses := takes(conn)
		if err := os.WriteFile("copy.db", []byte("of another"), 0o600); err != nil { // it appears meanwhile
			t.Error(err)
		}
		responses.Encode(message{Output: []byte("backup")})
		responses.Encode(message{Done: true})
	})
	if err := os.Symlink("nowhere", "link"); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"copy.db", "copy.db", "link", "."} {
		if err := run(t.Context(), []string{"-db", db, "backup", path}, nil, io.Discard, io.Discard); exitCode(err) != 1 {
			t.Errorf("to %s: got %v", path, err)
		}
		if text, _ := os.ReadFile("copy.db"); string(text) != "of another" {
			t.Errorf("the file now has %q", text)
		}
	}
	if files, _ := filepath.Glob("*"); !slices.Equal(files, []string{"copy.db", "link", "test.db.sock"}) {
		t.Errorf("there are %v", files)
	}
}

// Half a backup is none.
func TestBackupThatBreaksOff(t *testing.T) {
	for words, end := range map[string]func(conn net.Conn, interrupt func()){
		errBroken.Error():                      func(net.Conn, func()) {},
		"interrupted: the server goes on with": func(conn net.Conn, interrupt func()) { interrupt(); io.Copy(io.Discard, conn) },
	} {
		ctx, cancel := context.WithCancel(t.Context())
		db := fakeServer(t, func(conn net.Conn) { takes(conn).Encode(message{Output: []byte("half")}); end(conn, cancel) })
		if err := run(ctx, []string{"-db", db, "backup", "copy.db"}, nil, io.Discard, io.Discard); err == nil || !strings.HasPrefix(err.Error(), words) {
			t.Errorf("got %v, want %s", err, words)
		}
		if files, _ := filepath.Glob("*"); !slices.Equal(files, []string{"test.db.sock"}) {
			t.Errorf("%s: there are %v", words, files)
		}
		cancel()
	}
}

func TestBackupOfPostgreSQL(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, db := range []string{"postgres://127.0.0.1:1/ringward", "postgresql://127.0.0.1:1/ringward"} { // away
		err := saveBackup(t.Context(), config{db: db}, commandCall{Command: "backup", Args: []string{"copy.db"}}, io.Discard)
		if exitCode(err) != 1 || !strings.Contains(err.Error(), "pg_dump") {
			t.Errorf("%s: %v, want exit 1 and pg_dump", db, err)
		}
	}
}
