//go:build linux

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	newPassword = "one does not simply walk in"
	rosiesHash  = "$2y$04$.UGsXl5uVFomnHpt9oRr2e56wRRuiobQdevvCj7KGyrKP2odTTD52" // of low cost
)

// A command prints what it was asked for on standard output and what is wrong
// on standard error, and its exit code says which; with a server and without.
func TestCommandLine(t *testing.T) {
	for _, online := range []bool{true, false} {
		p := newProgram(t)
		p.addUser("frodo")
		if err := os.WriteFile(p.path("people.txt"), []byte("rosie:"+rosiesHash+"\nno colon\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		s := p.serve()
		if !online {
			s.stop()
		}
		for _, c := range []struct {
			args   string
			code   int
			stdout string // a regular expression
			stderr string // likewise
		}{
			{"user add sam", 0, `http://[a-z0-9.]+:[0-9]+/auth/invite#[\w-]{43}\n`, ""},
			{"user add sam", 1, "", `ringward: There is a user sam already\n`},
			{"user import people.txt", 1, `users imported: 1\n`, `ringward: people.txt: lines refused: 1\nline 2: malformed\n`},
			{"user list", 0, `NAME   STATE    CREATED +FACTORS  GROUPS\nfrodo  active   \S+Z  -        -\nrosie  active   \S+Z  -        -\nsam    invited  \S+Z  -        -\n`, ""},
			{"token add frodo script", 0, `rw_[\w-]{43}\n`, ""},
			{"backup copy.db", 0, `backup made: copy\.db\n`, ""},
			{"backup copy.db", 1, "", `ringward: copy\.db is there already\n`},
			{"user remove", 2, "", `ringward: usage: ringward user remove NAME\n`},
			{"version", 0, `ringward \S+ \(unknown commit\) go1\S+\n`, ""},
		} {
			r := p.try("", strings.Fields(c.args)...)
			if r.code != c.code || !regexp.MustCompile("^"+c.stdout+"$").MatchString(r.stdout) || !regexp.MustCompile("^"+c.stderr+"$").MatchString(r.stderr) {
				t.Errorf("ringward %s, with a server: %v\ngot  %d %q %q\nwant %d %q %q", c.args, online, r.code, r.stdout, r.stderr, c.code, c.stdout, c.stderr)
			}
		}
		if online {
			s.stop()
		}
	}
}

func (p *program) firstID(what string) string {
	p.Helper()
	var all []struct{ ID string }
	if err := json.Unmarshal([]byte(p.must("", what, "list", "-json")), &all); err != nil || len(all) == 0 {
		p.Fatal(what, err, all)
	}
	return all[0].ID
}

// What a command ends is over at the very next request of the running server.
func TestCommandsReachTheServer(t *testing.T) {
	p := newProgram(t)
	s := p.serve()
	p.addUser("frodo", "sam")
	frodo, sam := s.login("frodo"), s.login("sam")
	s.want(200, "GET", "/ringsofpower", "", frodo)
	p.must("", "session", "end-all", "frodo")
	s.want(401, "GET", "/ringsofpower", "", frodo)
	p.must("", "session", "end", p.firstID("session"))
	s.want(401, "GET", "/ringsofpower", "", sam)
	frodo = s.login("frodo")
	p.must("", "user", "disable", "frodo")
	s.want(401, "GET", "/ringsofpower", "", frodo)
	s.want(401, "POST", "/auth/session", credentials("frodo", password))
	p.must("", "user", "enable", "frodo")
	s.want(401, "GET", "/ringsofpower", "", frodo)
	frodo = s.login("frodo")
	token := "Authorization: Bearer " + strings.TrimSpace(p.must("", "token", "add", "frodo", "script"))
	s.want(200, "GET", "/ringsofpower", "", token)
	link := strings.TrimSpace(p.must("", "user", "invite", "frodo"))
	_, invite, _ := strings.Cut(link, "/auth/invite#")
	s.want(201, "POST", "/auth/invites/"+invite, object(map[string]string{"password": newPassword}))
	s.want(401, "GET", "/ringsofpower", "", frodo)
	s.want(401, "GET", "/ringsofpower", "", token)
	for range 5 {
		s.want(401, "POST", "/auth/session", credentials("frodo", password))
	}
	s.want(429, "POST", "/auth/session", credentials("frodo", newPassword))
	p.must("", "user", "unlock", "Frodo")
	frodo = s.want(201, "POST", "/auth/session", credentials("frodo", newPassword)).cookie()
	p.must("", "user", "remove", "frodo")
	s.want(401, "GET", "/ringsofpower", "", frodo)
	s.stop()
}

// A server that has greeted a command does what it asks, though it was told to
// stop before it was asked.
func TestStopLetsCommandsFinish(t *testing.T) {
	p := newProgram(t)
	s := p.serve()
	socket := p.path("test.db.sock")
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	messages := json.NewDecoder(conn)
	var m struct {
		Output []byte
		Done   bool
		Error  string
	}
	if err := messages.Decode(&m); err != nil || m.Done {
		t.Fatal(m, err)
	}
	s.cmd.Process.Signal(syscall.SIGTERM)
	eventually(t, func() bool { _, err := os.Lstat(socket); return errors.Is(err, fs.ErrNotExist) })
	json.NewEncoder(conn).Encode(map[string]any{"Command": "user import", "Args": []string{"FILE"}, "Input": []byte("rosie:" + rosiesHash)})
	for !m.Done {
		if err := messages.Decode(&m); err != nil || m.Error != "" {
			t.Fatalf("the command met a stop: %q %v", m.Error, err)
		}
	}
	s.exits(0)
	if !strings.Contains(p.must("", "user", "list"), "rosie") {
		t.Error("it was said to be done, and was not")
	}
}

// Whatever the umask, others read nothing.
func TestModes(t *testing.T) {
	for _, umask := range []string{"0000", "0022", "0777"} {
		p := newProgram(t).after("umask " + umask)
		p.must("", "user", "add", "frodo")
		s := p.serve()
		p.must("", "backup", "copy.db")
		for _, name := range []string{"test.db", "copy.db", "test.db.sock"} {
			if file, err := os.Lstat(p.path(name)); err != nil || file.Mode().Perm() != 0o600 {
				t.Errorf("umask %s: %s has mode %v, %v", umask, name, file.Mode(), err)
			}
		}
		s.stop()
	}
}

// A command that waits for somebody to type holds nothing up, and ends when it
// is told to.
func TestPasswordIsReadFirst(t *testing.T) {
	p := newProgram(t)
	p.must("", "user", "add", "sam")
	cmd := p.command("user", "add", "-password-stdin", "frodo")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	typing := p.follow(cmd)
	if _, err := stdin.Write(make([]byte, 100_000)); err != nil { // more than a pipe takes: when it is written, the command reads
		t.Fatal(err)
	}
	p.must("", "user", "list")
	p.serve().stop()
	cmd.Process.Signal(os.Interrupt)
	eventually(t, typing.gone) // its standard input is still open
	if status := cmd.ProcessState.Sys().(syscall.WaitStatus); !status.Signaled() {
		t.Errorf("an interrupted command ended with exit status %d", status.ExitStatus())
	}
	if strings.Contains(p.must("", "user", "list"), "frodo") {
		t.Error("an interrupted command added its user")
	}
}

// Commands meet servers that start, stop and are killed. Each is done exactly
// once, or says that it was not done. That it does not know, it may say only of
// a server that was killed.
func TestCommandsWhileServersComeAndGo(t *testing.T) {
	p := newProgram(t)
	clerks := []*clerk{{kinds: []string{"import"}}, {kinds: clerkKinds}, {kinds: clerkKinds}}
	for i, c := range clerks {
		c.program, c.name, c.known = p, fmt.Sprintf("clerk%d-", i), world{}
		for c.n < len(c.kinds) { // once when all is quiet
			c.work(false)
		}
	}
	reconcile(p, clerks)
	for round := range rounds(12) {
		killed := round%3 == 2
		s := p.launch()
		if round%4 > 0 { // else commands are there before it
			s.says("msg=start")
		}
		var work sync.WaitGroup
		for _, c := range clerks {
			work.Go(func() {
				for range 4 {
					c.work(killed)
				}
			})
		}
		time.Sleep(rand.N(60 * time.Millisecond))
		if round%2 == 0 { // commands wait for it when it goes
			s.cmd.Process.Signal(syscall.SIGSTOP)
			time.Sleep(rand.N(30 * time.Millisecond))
		}
		if killed {
			s.kill()
		} else {
			s.cmd.Process.Signal(syscall.SIGTERM)
			s.cmd.Process.Signal(syscall.SIGCONT)
			eventually(t, s.gone)
			early := s.cmd.ProcessState.Sys().(syscall.WaitStatus).Signaled() && s.log.String() == ""
			held := s.cmd.ProcessState.ExitCode() == 1 && strings.Contains(s.log.String(), "test.db is held by another process") // a command had it
			if !s.cmd.ProcessState.Success() && !early && !held {
				t.Errorf("the server ended with %v", s.cmd.ProcessState)
			}
		}
		work.Wait()
		reconcile(p, clerks)
		if t.Failed() {
			t.Fatalf("in round %d", round)
		}
	}
}

// clerk runs commands about users, tokens and copies of its own, and knows what
// is there because of them.
type clerk struct {
	*program
	name  string // with which all names begin
	kinds []string
	n     int
	known world
	maybe world // nil, or what is there if the last command was done, which it could not tell
}

// world is "user NAME" and its state, "import NAME" and how many users it made,
// "token USER LABEL" and its id, "copy FILE"; each may be "" for any.
type world map[string]string

var clerkKinds = []string{"user add", "user add with password", "user add, another", "token add", "token add, another", "backup", "token remove",
	"user invite", "user unlock", "user disable", "user enable", "session end-all", "list", "user remove"}

const imported = 600 // by one command: in several transactions

// work runs one command.
func (c *clerk) work(killed bool) {
	if c.maybe != nil {
		return
	}
	c.n++
	kind, name := c.kinds[c.n%len(c.kinds)], fmt.Sprint(c.name, c.n)
	would := maps.Clone(c.known)
	user, disabled, token := "", "", "" // some that are there
	for thing, state := range c.known {
		sort, rest, _ := strings.Cut(thing, " ")
		switch {
		case sort == "user" && state == "active":
			user = rest
		case sort == "user" && state == "disabled":
			disabled = rest
		case sort == "token" && state != "": // its id is known
			token = rest
		}
	}
	forget := func(prefix string) {
		maps.DeleteFunc(would, func(thing, _ string) bool { return strings.HasPrefix(thing, prefix) })
	}
	stdin, args := "", strings.Fields(kind)
	switch {
	case kind == "import":
		var text strings.Builder
		for i := range imported {
			fmt.Fprintf(&text, "%s-%d:%s\n", name, i, rosiesHash)
		}
		if err := os.WriteFile(c.path(name+".txt"), []byte(text.String()), 0o600); err != nil {
			c.Error(err)
		}
		args = []string{"user", "import", name + ".txt"}
		would["import "+name] = fmt.Sprint(imported)
	case kind == "backup":
		args = []string{"backup", name + ".db"}
		would["copy "+name+".db"] = ""
	case kind == "user add with password", user == "":
		stdin, args = password, []string{"user", "add", "-password-stdin", name}
		would["user "+name] = "active"
	case strings.HasPrefix(kind, "user add"):
		args = []string{"user", "add", name}
		would["user "+name] = "invited"
	case strings.HasPrefix(kind, "token add"):
		args = []string{"token", "add", user, name}
		would["token "+user+" "+name] = ""
	case kind == "token remove" && token != "":
		args = append(args, c.known["token "+token])
		forget("token " + token)
	case kind == "user enable" && disabled != "":
		args = append(args, disabled)
		would["user "+disabled] = "active"
	case kind == "user disable":
		args = append(args, user)
		would["user "+user] = "disabled"
		forget("token " + user + " ")
	case kind == "user remove":
		args = append(args, user)
		delete(would, "user "+user)
		forget("token " + user + " ")
	case kind == "user invite", kind == "user unlock", kind == "session end-all":
		args = append(args, user)
	default:
		args = []string{"session", "list"}
	}
	begun := time.Now()
	r := c.try(stdin, args...)
	switch {
	case r.code == 0 && r.stderr == "":
		c.known = would
	case r.code == 1 && strings.Contains(r.stderr, "test.db is held by another process"):
	case r.code == 1 && strings.Contains(r.stderr, "look whether it was done") && (killed || time.Since(begun) > 2*time.Second): // for which a server waits
		if c.maybe = would; kind == "import" {
			would["import "+name] = "" // one transaction may be done, and the next not
		}
	default:
		c.Errorf("ringward %q: exit %d: %s", args, r.code, r.stderr)
	}
}

// reconcile compares what the clerks know with what is there when nothing runs.
func reconcile(p *program, clerks []*clerk) {
	p.Helper()
	there, made := world{}, map[string]int{}
	for _, what := range []string{"user", "token"} {
		var all []struct{ ID, Username, State, Name string }
		if err := json.Unmarshal([]byte(p.must("", what, "list", "-json")), &all); err != nil {
			p.Fatal(err)
		}
		for _, one := range all {
			if name, ok := importedBy(one.Username); ok {
				made[name]++
				there["import "+name] = fmt.Sprint(made[name])
			} else {
				there[strings.TrimSpace(what+" "+one.Username+" "+one.Name)] = one.State + one.ID
			}
		}
	}
	copies, err := filepath.Glob(p.path("clerk*.db"))
	if err != nil {
		p.Fatal(err)
	}
	for _, path := range copies {
		there["copy "+filepath.Base(path)] = ""
	}
	for _, c := range clerks {
		own := maps.Clone(there)
		maps.DeleteFunc(own, func(thing, _ string) bool { return !strings.Contains(thing, " "+c.name) })
		same := func(want world) bool {
			return maps.EqualFunc(own, want, func(got, want string) bool { return got == want || want == "" })
		}
		if !same(c.known) && (c.maybe == nil || !same(c.maybe)) {
			p.Errorf("there is %v\nafter what was said there is %v\nor %v", own, c.known, c.maybe)
		}
		c.known, c.maybe = own, nil
	}
	if left, _ := filepath.Glob(p.path("*.new-*")); left != nil {
		p.Errorf("left behind: %v", left)
	}
}

// importedBy returns the name of the import that made a user: clerk0-1 made
// clerk0-1-17.
func importedBy(user string) (name string, ok bool) {
	i := strings.LastIndex(user, "-")
	return user[:max(i, 0)], strings.Count(user, "-") == 2
}
