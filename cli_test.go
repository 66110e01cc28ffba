// cli_test.go tests the commands and the running server as an operator meets
// them.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// TestProgram runs real processes. They are not built with -race, under which
// one bcrypt takes a second.
func TestProgram(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "ringward")
	if out, err := exec.Command("go", "build", "-buildvcs=false", "-o", binary, ".").CombinedOutput(); err != nil {
		t.Fatal(err, string(out))
	}
	for name, test := range map[string]func(*shell){
		"commands beside a server":           func(p *shell) { testCommands(p, true) },
		"commands without one":               func(p *shell) { testCommands(p, false) },
		"commands reach the server":          testCommandsReachTheServer,
		"killed after a password change":     testKilledAfterPasswordChange,
		"a stop lets commands finish":        testStopLetsCommandsFinish,
		"stale socket":                       testStaleSocket,
		"socket path too long":               testSocketPathTooLong,
		"modes":                              testModes,
		"the password is read first":         testPasswordIsReadFirst,
		"commands at once":                   testCommandsAtOnce,
		"commands while servers come and go": testCommandsWhileServersComeAndGo,
	} {
		t.Run(name, func(t *testing.T) {
			test(&shell{t, t.TempDir(), []string{"RINGWARD_BCRYPT_COST=10", "RINGWARD_DB=test.db"}, []string{binary}})
		})
	}
}

// shell runs the program in a folder of its own, with no more environment than said.
type shell struct {
	*testing.T
	dir   string
	env   []string
	start []string // the words that start it
}

func (p *shell) command(args ...string) *exec.Cmd {
	cmd := exec.Command(p.start[0], append(slices.Clone(p.start[1:]), args...)...)
	cmd.Dir, cmd.Env = p.dir, p.env
	return cmd
}

type shellResult struct {
	stdout, stderr string
	code           int
}

func (p *shell) try(stdin string, args ...string) shellResult {
	cmd := p.command(args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	if err := cmd.Run(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		p.Error(err)
	}
	return shellResult{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// must is try for what must succeed. It answers what was printed.
func (p *shell) must(stdin string, args ...string) string {
	p.Helper()
	r := p.try(stdin, args...)
	if r.code != 0 || r.stderr != "" {
		p.Fatalf("ringward %q: exit %d, %s", args, r.code, r.stderr)
	}
	return r.stdout
}

// shellServer is a server. Its log is to be read when it has ended.
type shellServer struct {
	*shell
	cmd  *exec.Cmd
	url  string
	log  bytes.Buffer
	read chan struct{} // closed at the end of the log
}

func (p *shell) serve(args ...string) *shellServer {
	p.Helper()
	s := &shellServer{shell: p, cmd: p.command(append([]string{"-addr", "127.0.0.1:0"}, args...)...), read: make(chan struct{})}
	s.cmd.Env = append(slices.Clone(p.env), "SECRET_KEY="+testKey)
	out, in, err := os.Pipe()
	if err != nil {
		p.Fatal(err)
	}
	s.cmd.Stderr = in
	if err := s.cmd.Start(); err != nil {
		p.Fatal(err)
	}
	in.Close()
	p.Cleanup(func() { s.cmd.Process.Kill(); s.cmd.Wait() })
	listens := make(chan string, 1)
	go func() {
		defer close(s.read)
		defer close(listens)
		lines := bufio.NewReader(out)
		for {
			line, err := lines.ReadString('\n')
			s.log.WriteString(line)
			if url, ok := strings.CutPrefix(line, "listening on "); ok {
				listens <- strings.TrimSpace(url)
			}
			if err != nil {
				return
			}
		}
	}()
	if s.url = <-listens; s.url == "" {
		<-s.read
		p.Fatalf("the server did not start: %s", s.log.String())
	}
	return s
}

// stop ends the server in order and answers its log.
func (s *shellServer) stop() string {
	s.Helper()
	s.cmd.Process.Signal(syscall.SIGTERM)
	return s.ended()
}

func (s *shellServer) ended() string {
	s.Helper()
	<-s.read
	if err := s.cmd.Wait(); err != nil {
		s.Errorf("the server ended with %v: %s", err, s.log.String())
	}
	return s.log.String()
}

func (s *shellServer) kill() {
	s.cmd.Process.Kill()
	<-s.read
	s.cmd.Wait()
}

// request answers status and cookie, name=value.
func (s *shellServer) request(method, path, body, cookie string) (int, string) {
	s.Helper()
	r, err := http.NewRequest(method, s.url+path, strings.NewReader(body))
	if err != nil {
		s.Fatal(err)
	}
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	if cookie != "" {
		r.Header.Set("Cookie", cookie)
	}
	w, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		s.Fatal(err)
	}
	defer w.Body.Close()
	if _, err := io.Copy(io.Discard, w.Body); err != nil {
		s.Fatal(err)
	}
	for _, c := range w.Cookies() {
		cookie = c.Name + "=" + c.Value
	}
	return w.StatusCode, cookie
}

func (s *shellServer) login(user, password string) string {
	s.Helper()
	status, cookie := s.request("POST", "/auth/session", credentials(user, password), "")
	if status != http.StatusCreated {
		s.Fatalf("login of %s: %d", user, status)
	}
	return cookie
}

func (s *shellServer) wantStatus(want int, method, path, body, cookie string) string {
	s.Helper()
	status, cookie := s.request(method, path, body, cookie)
	if status != want {
		s.Fatalf("%s %s: got %d, want %d", method, path, status, want)
	}
	return cookie
}

// Every command of the table: what it prints does not depend on a server.
func testCommands(p *shell, online bool) {
	table := []struct {
		args   []string // {session}, {token}: the id of one that is there
		stdin  string
		code   int
		stdout string // a regular expression
		stderr string // a part of it
	}{
		{args: []string{"user", "list"}, stdout: `NAME   STATE   CREATED
frodo  active  TIME
`},
		{args: []string{"user", "add", "Sam"}, stdout: "BASE/auth/invite#SECRET\n"},
		{args: []string{"user", "add", "sam"}, code: 1, stderr: "There is a user sam already"},
		{args: []string{"user", "add", "no name"}, code: 1, stderr: "Username must be"},
		{args: []string{"user", "add", "-password-stdin", "merry"}, stdin: newPassword + "\n", stdout: "user added: merry\n"},
		{args: []string{"-password-stdin", "user", "add", "pippin"}, stdin: newPassword, stdout: "user added: pippin\n"},
		{args: []string{"user", "add", "gollum", "--password-stdin"}, stdin: "precious\n", code: 1, stderr: "Password must have at least 15 characters"},
		{args: []string{"-password-min", "8", "user", "add", "eowyn"}, stdout: "BASE/auth/invite#SECRET\n"},
		{args: []string{"user", "invite", "sam"}, stdout: "BASE/auth/invite#SECRET\n"},
		{args: []string{"-public-url", "https://auth.example.com", "user", "invite", "sam"}, stdout: "https://auth\\.example\\.com/auth/invite#SECRET\n"},
		{args: []string{"user", "invite", "gollum"}, code: 1, stderr: "There is no user gollum"},
		{args: []string{"user", "import", "people.txt"}, code: 1, stdout: "users imported: 5\n",
			stderr: "people.txt: lines refused: 8\nline 6: not bcrypt\nline 7: not bcrypt\nline 8: not bcrypt\nline 11: name taken\n" +
				"line 12: name taken\nline 13: malformed\nline 14: malformed name\nline 15: cost outside 4 to 15\n"},
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
		{args: []string{"user", "remove", "eowyn"}, stdout: "user removed: eowyn\n"},
		{args: []string{"user", "remove", "eowyn"}, code: 1, stderr: "There is no user eowyn"},
		{args: []string{"user", "remove", ".."}, code: 1, stderr: "Username must be"},
		{args: []string{"user", "list", "-json"}, stdout: `\[(\{"username":"[^"]+","state":"(active|invited|disabled)","created":"TIME"\},?){10}\]
`},
		{args: []string{"user", "list"}, stdout: `NAME                 STATE     CREATED
bilbo                active    TIME
frodo                active    TIME
galadriel            active    TIME
gimli                active    TIME
legolas              active    TIME
merry                active    TIME
pippin               disabled  TIME
rosie                active    TIME
sam                  invited   TIME
sam@bag-end.example  active    TIME
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
(HANDLE  frodo  TIME  TIME  TIME  127.0.0.1  Go-http-client/1.1
){3}`},
		{args: []string{"-json", "session", "list"}, stdout: `\[(\{"id":"HANDLE","username":"frodo","current":false,"created":"TIME","lastSeen":"TIME",` +
			`"expires":"TIME","remoteAddr":"127.0.0.1","userAgent":"Go-http-client/1.1"\},?){3}\]
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
		{args: []string{"version"}, stdout: "ringward \\S+ go1\\S+\n"},
		{args: []string{"user", "list", "-h"}, stdout: "Ringward is local login (.|\n)*"},
		{args: []string{"help"}, stdout: "Ringward is local login (.|\n)*"},
	}
	shown := strings.NewReplacer("BASE", `http://[a-z0-9.]+:[0-9]+`, "SECRET", `[A-Za-z0-9_-]{43}`,
		"HANDLE", `[0-9a-f]{20}`, "TIME", `20[0-9-]{8}T[0-9:]{8}Z`)
	for name, text := range map[string]string{"people.txt": htpasswd, "elves.txt": strings.Replace(htpasswdLine("legolas"), "legolas", "galadriel", 1)} {
		if err := os.WriteFile(filepath.Join(p.dir, name), []byte(text), 0o600); err != nil {
			p.Fatal(err)
		}
	}
	p.must(testPassword, "user", "add", "-password-stdin", "frodo")
	server := p.serve()
	for range 3 {
		server.login("frodo", testPassword)
	}
	if !online {
		server.stop()
	}
	for _, c := range table {
		args := slices.Clone(c.args)
		for i, arg := range args {
			switch arg {
			case "{session}":
				args[i] = p.firstID("session")
			case "{token}":
				args[i] = p.firstID("token")
			}
		}
		r := p.try(c.stdin, args...)
		if r.code != c.code || !regexp.MustCompile("^"+shown.Replace(c.stdout)+"$").MatchString(r.stdout) ||
			(c.stderr == "") != (r.stderr == "") || !strings.Contains(r.stderr, c.stderr) {
			p.Errorf("ringward %q\ngot  %d\n%s\n%s\nwant %d\n%s\n%s", c.args, r.code, r.stdout, r.stderr, c.code, c.stdout, c.stderr)
		}
	}
	if online {
		server.stop()
	}
	names := []string{}
	files, err := os.ReadDir(p.dir)
	for _, file := range files {
		names = append(names, file.Name())
	}
	if want := []string{"copy.db", "elves.txt", "people.txt", "test.db"}; !slices.Equal(names, want) || err != nil {
		p.Errorf("files: got %v, want %v", names, want)
	}

	// The copy is a database: a second server starts with it.
	second := p.serve("-db", "copy.db")
	second.login("merry", newPassword)
	second.login("gimli", htpasswdPasswords["gimli"])
	second.stop()
}

// What is wrong in itself is said without a look at the database.
func TestWrongUsage(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, c := range []struct {
		args   []string
		stderr string // a part of it
	}{
		{[]string{"user", "add"}, "ringward user add takes one argument; see ringward help"},
		{[]string{"user", "list", "frodo"}, "takes no argument"},
		{[]string{"token", "add", "frodo"}, "takes 2 arguments"},
		{[]string{"session", "list", "a", "b"}, "takes 0 to 1 arguments"},
		{[]string{"user", "remove", "-json", "frodo"}, "does not have that flag"},
		{[]string{"user", "invite", "-password-stdin", "frodo"}, "does not have that flag"},
		{[]string{"user", "list", "-db", "other.db"}, "-db is not a flag of a command"},
		{[]string{"-dbb", "other.db", "user", "list"}, "not defined"},
		{[]string{"user"}, `there is no command "user"`},
		{[]string{"frodo", "add"}, `there is no command "frodo add"`},
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
		if words := strings.Fields(line); strings.HasPrefix(line, "  ") && !slices.Contains([]string{"migrate", "version", "help"}, words[0]) {
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

// htpasswdLine is a user's line of the file.
func htpasswdLine(user string) string {
	for line := range strings.Lines(htpasswd) {
		if strings.HasPrefix(line, user+":") {
			return line
		}
	}
	return ""
}

func (p *shell) firstID(what string) string {
	p.Helper()
	var all []struct{ ID string }
	if err := json.Unmarshal([]byte(p.must("", what, "list", "-json")), &all); err != nil || len(all) == 0 {
		p.Fatal(what, err, all)
	}
	return all[0].ID
}

// What a command ends is over at the very next request of the running server,
// and the server's log says so.
func testCommandsReachTheServer(p *shell) {
	server := p.serve()
	p.must(testPassword, "user", "add", "-password-stdin", "frodo")
	p.must(testPassword, "user", "add", "-password-stdin", "sam")
	frodo, sam := server.login("frodo", testPassword), server.login("sam", testPassword)
	server.wantStatus(http.StatusOK, "GET", "/ringsofpower", "", frodo)
	p.must("", "session", "end-all", "frodo")
	server.wantStatus(http.StatusUnauthorized, "GET", "/ringsofpower", "", frodo)
	p.must("", "session", "end", p.firstID("session"))
	server.wantStatus(http.StatusUnauthorized, "GET", "/ringsofpower", "", sam)
	frodo = server.login("frodo", testPassword)
	p.must("", "user", "disable", "frodo")
	server.wantStatus(http.StatusUnauthorized, "GET", "/ringsofpower", "", frodo)
	server.wantStatus(http.StatusUnauthorized, "POST", "/auth/session", credentials("frodo", testPassword), "")
	p.must("", "user", "enable", "frodo")
	server.wantStatus(http.StatusUnauthorized, "GET", "/ringsofpower", "", frodo)
	frodo = server.login("frodo", testPassword)
	link := p.must("", "user", "invite", "frodo")
	if !strings.HasPrefix(link, server.url+"/auth/invite#") {
		p.Errorf("link: got %s for the server at %s", link, server.url)
	}
	_, invite, _ := strings.Cut(strings.TrimSpace(link), "#")
	server.wantStatus(http.StatusCreated, "POST", "/auth/invites/"+invite, `{"password":"`+newPassword+`"}`, "")
	server.wantStatus(http.StatusUnauthorized, "GET", "/ringsofpower", "", frodo)
	frodo = server.login("frodo", newPassword)
	for range pairLimit {
		server.wantStatus(http.StatusUnauthorized, "POST", "/auth/session", credentials("frodo", testPassword), "")
	}
	server.wantStatus(http.StatusTooManyRequests, "POST", "/auth/session", credentials("frodo", newPassword), "")
	p.must("", "user", "unlock", "frodo")
	server.login("frodo", newPassword)
	p.must("", "user", "remove", "frodo")
	server.wantStatus(http.StatusUnauthorized, "GET", "/ringsofpower", "", frodo)

	log := server.stop()
	for _, line := range []string{`msg="user added" user=sam by=operator`, `msg="password set" user=sam by=operator`, `msg="all sessions ended" user=frodo by=operator`,
		`msg="session ended" user=sam by=operator`, `msg="user disabled" user=frodo by=operator`, `msg="user enabled" user=frodo by=operator`,
		`msg="invite made" user=frodo by=operator`, `msg="invite used" user=frodo addr=127.0.0.1`, `msg="user unlocked" user=frodo by=operator`,
		`msg="user removed" user=frodo by=operator`} {
		if !strings.Contains(log, line) {
			p.Errorf("no line %s in the log:\n%s", line, log)
		}
	}
	for _, secret := range []string{invite, testPassword, newPassword, strings.TrimPrefix(sam, "ringward=")} {
		if strings.Contains(log, secret) {
			p.Errorf("the log has %q", secret)
		}
	}
}

// A password change that was answered is on disk with all that belongs to it.
func testKilledAfterPasswordChange(p *shell) {
	p.must(testPassword, "user", "add", "-password-stdin", "frodo")
	passwords := [2]string{testPassword, newPassword}
	server := p.serve()
	for range 3 {
		mine, other := server.login("frodo", passwords[0]), server.login("frodo", passwords[0])
		body, _ := json.Marshal(map[string]string{"current": passwords[0], "new": passwords[1]})
		fresh := server.wantStatus(http.StatusNoContent, "PUT", "/auth/password", string(body), mine)
		server.kill()
		server = p.serve()
		server.wantStatus(http.StatusOK, "GET", "/auth/session", "", fresh)
		server.wantStatus(http.StatusUnauthorized, "GET", "/auth/session", "", mine)
		server.wantStatus(http.StatusUnauthorized, "GET", "/auth/session", "", other)
		server.wantStatus(http.StatusUnauthorized, "POST", "/auth/session", credentials("frodo", passwords[0]), "")
		passwords[0], passwords[1] = passwords[1], passwords[0]
	}
	server.stop()
}

// A server that is told to stop lets a command end that has begun.
func testStopLetsCommandsFinish(p *shell) {
	server := p.serve()
	conn, err := net.Dial("unix", filepath.Join(p.dir, "test.db.sock"))
	if err != nil {
		p.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil { // see greeter
		p.Fatal(err)
	}
	line := htpasswdLine("rosie")
	fmt.Fprintf(conn, "POST /users/import HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s", 2*len(line), line)
	for !strings.Contains(p.must("", "user", "list"), "rosie") { // it has begun
	}
	server.cmd.Process.Signal(syscall.SIGTERM)
	for { // until it stops
		probe, err := net.Dial("tcp", strings.TrimPrefix(server.url, "http://"))
		if err != nil {
			break
		}
		probe.Close()
	}
	io.WriteString(conn, strings.Replace(line, "rosie", "poppy", 1))
	answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || answer.StatusCode != http.StatusOK {
		p.Errorf("a command met a stop: got %v, %v", answer, err)
	}
	server.ended()
	if !strings.Contains(p.must("", "user", "list"), "poppy") {
		p.Error("and it has not done what it was to do")
	}
}

// A killed server leaves its socket behind, which is no obstacle.
func testStaleSocket(p *shell) {
	p.serve().kill()
	socket := filepath.Join(p.dir, "test.db.sock")
	if _, err := os.Lstat(socket); err != nil {
		p.Fatal("a killed server took its socket along:", err)
	}
	p.must("", "user", "add", "frodo")
	server := p.serve()
	p.must("", "user", "list")
	if err := os.Symlink("test.db", filepath.Join(p.dir, "link.db")); err != nil {
		p.Fatal(err)
	}
	p.must("", "-db", "link.db", "user", "list")
	server.stop()
	if _, err := os.Lstat(socket); !errors.Is(err, fs.ErrNotExist) {
		p.Error("a server that was stopped left its socket:", err)
	}
}

func testSocketPathTooLong(p *shell) {
	folder := filepath.Join(p.dir, strings.Repeat("x", 120))
	if err := os.Mkdir(folder, 0o700); err != nil {
		p.Fatal(err)
	}
	db := filepath.Join(folder, "test.db")
	server := p.serve("-db", db)
	r := p.try("", "-db", db, "user", "list")
	if r.code != 1 || !strings.Contains(r.stderr, "too long for a Unix socket") || strings.Count(r.stderr, "\n") != 1 {
		p.Errorf("got %d %s", r.code, r.stderr)
	}
	if log := server.stop(); !strings.Contains(log, "too long for a Unix socket") {
		p.Errorf("the server does not say so: %s", log)
	}
	p.must("", "-db", db, "user", "list")

	// The longest path that fits, and one more.
	for length, fits := range map[int]bool{107: true, 108: false} {
		name := strings.Repeat("x", length-len(p.dir)-len("/.sock"))
		listener, err := listenSocket(filepath.Join(p.dir, name))
		if (err == nil) != fits || !fits && !errors.Is(err, errSocketPath) {
			p.Errorf("%d bytes: got %v", length, err)
		}
		if err == nil {
			listener.Close()
		}
	}
}

// Whatever the umask, others read nothing.
func testModes(p *shell) {
	for _, umask := range []string{"0000", "0022", "0777"} {
		p := *p
		p.dir = p.TempDir()
		p.start = []string{"/bin/sh", "-c", "umask " + umask + `; exec "$0" "$@"`, p.start[0]}
		p.must("", "user", "add", "frodo")
		server := p.serve()
		p.must("", "backup", "copy.db")
		for _, name := range []string{"test.db", "copy.db", "test.db.sock"} {
			file, err := os.Lstat(filepath.Join(p.dir, name))
			if err != nil {
				p.Fatal(err)
			}
			if file.Mode().Perm() != 0o600 {
				p.Errorf("umask %s: %s has mode %o", umask, name, file.Mode().Perm())
			}
		}
		server.stop()
	}
}

// A command that waits for somebody to type holds nothing up, and ends when it
// is told to.
func testPasswordIsReadFirst(p *shell) {
	p.must("", "user", "add", "sam")
	cmd := p.command("user", "add", "-password-stdin", "frodo")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		p.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		p.Fatal(err)
	}
	// More than a pipe takes: when it is written, the command reads.
	if _, err := stdin.Write(make([]byte, 100_000)); err != nil {
		p.Fatal(err)
	}
	p.must("", "user", "list")
	server := p.serve()
	server.stop()
	cmd.Process.Signal(os.Interrupt)
	cmd.Wait() // its standard input is still open
	if status := cmd.ProcessState.Sys().(syscall.WaitStatus); !status.Signaled() {
		p.Errorf("an interrupted command ended with exit status %d", status.ExitStatus())
	}
	if out := p.must("", "user", "list"); strings.Contains(out, "frodo") {
		p.Error("an interrupted command added its user")
	}
}

func testCommandsAtOnce(p *shell) {
	var wait sync.WaitGroup
	for i := range 6 {
		wait.Go(func() {
			if r := p.try("", "user", "add", fmt.Sprint("user", i)); r.code != 0 {
				p.Errorf("exit %d: %s", r.code, r.stderr)
			}
		})
	}
	wait.Wait()
	if out := p.must("", "user", "list"); strings.Count(out, "user") != 6 {
		p.Errorf("got %s", out)
	}
}

// Commands meet servers that start and stop.
func testCommandsWhileServersComeAndGo(p *shell) {
	p.must("", "user", "add", "frodo")
	stop := make(chan struct{})
	done := 0
	var wait sync.WaitGroup
	wait.Go(func() {
		for ; ; done++ {
			select {
			case <-stop:
				return
			default:
			}
			if r := p.try("", "user", "invite", "frodo"); r.code != 0 {
				p.Errorf("exit %d: %s", r.code, r.stderr)
			}
		}
	})
	for range 5 {
		p.serve().stop()
	}
	close(stop)
	wait.Wait()
	if done == 0 {
		p.Error("no command ran")
	}
}

// Only what makes users makes a database, so that a mistyped name is noticed.
func TestCommandsMakeNoDatabase(t *testing.T) {
	t.Setenv("RINGWARD_DB", filepath.Join(t.TempDir(), "test.db"))
	for _, c := range commands {
		args := append(strings.Fields(c.words), "frodo", "x")[:len(strings.Fields(c.words))+c.min]
		if c.words == "user add" || c.words == "user import" {
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
			store, err := openStore(db)
			if err != nil {
				t.Fatal(err)
			}
			time.AfterFunc(held, func() { store.close() })
			start := time.Now()
			err = run(t.Context(), []string{"-db", db, "user", "list"}, nil, io.Discard, io.Discard)
			if succeeds && err != nil || !succeeds && (!errors.Is(err, errInUse) || exitCode(err) != 1) || time.Since(start) > 8*time.Second {
				t.Errorf("held for %v: got %v after %v", held, err, time.Since(start))
			}
			time.Sleep(held)
			if store, err = openStore(db); err != nil { // the command let go of it
				t.Fatal(err)
			}
			store.close()
		})
	}
}

// The tables line up whatever is in them, and have as many columns in each row.
func TestTables(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // it is the first of January 2000
		db := filepath.Join(t.TempDir(), "test.db")
		store, err := openStore(db)
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
			err = errors.Join(err, store.login(frodo, s, Key{}, ""))
			now = now.Add(time.Second)
		}
		if err := errors.Join(err, store.close()); err != nil {
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
			"user": `NAME   STATE   CREATED
frodo  active  2000-01-01T00:00:00Z
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
		if got, want := list("user", "list", "-json"), `[{"username":"frodo","state":"active","created":"2000-01-01T00:00:00Z"}]`+"\n"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	})
}

// fakeServer answers commands on the database at the path it answers.
func fakeServer(t *testing.T, handler http.HandlerFunc) (db string) {
	t.Helper()
	db = filepath.Join(t.TempDir(), "test.db")
	listener, err := listenSocket(db)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: handler}
	go server.Serve(listener)
	t.Cleanup(func() { server.Close() })
	return db
}

// A server that goes before it has taken a command loses nothing.
func TestServerThatGoes(t *testing.T) {
	db := filepath.Join(t.TempDir(), "test.db")
	listener, err := net.Listen("unix", socketPath(db))
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		if conn, err := listener.Accept(); err == nil {
			conn.Close()
		}
		listener.Close()
	}()
	if err := run(t.Context(), []string{"-db", db, "user", "add", "frodo"}, nil, io.Discard, io.Discard); err != nil {
		t.Error(err)
	}
}

func TestBackupNeverOverwrites(t *testing.T) {
	var copy string
	db := fakeServer(t, func(w http.ResponseWriter, r *http.Request) {
		if err := os.WriteFile(copy, []byte("of another"), 0o600); err != nil { // it appears meanwhile
			t.Error(err)
		}
		io.WriteString(w, "backup")
	})
	copy = db + ".copy"
	for range 2 {
		err := run(t.Context(), []string{"-db", db, "backup", copy}, nil, io.Discard, io.Discard)
		if exitCode(err) != 1 {
			t.Errorf("got %v", err)
		}
		if text, _ := os.ReadFile(copy); string(text) != "of another" {
			t.Errorf("the file now has %q", text)
		}
	}
	link := db + ".link"
	if err := os.Symlink(db+".target", link); err != nil {
		t.Fatal(err)
	}
	if err := run(t.Context(), []string{"-db", db, "backup", link}, nil, io.Discard, io.Discard); exitCode(err) != 1 {
		t.Errorf("to a link that leads nowhere: got %v", err)
	}
	if left, _ := filepath.Glob(db + "*.new-*"); left != nil {
		t.Errorf("left %v", left)
	}
}

func TestBackupOfPostgreSQL(t *testing.T) {
	for name, db := range map[string]string{
		"away":           "postgres://127.0.0.1:1/ringward",
		"the other name": "postgresql://127.0.0.1:1/ringward",
	} {
		path := filepath.Join(t.TempDir(), "copy.db")
		c := &cli{config: config{db: db}, ctx: t.Context(), stdout: io.Discard}
		if err := c.backup([]string{path}); exitCode(err) != 1 || !strings.Contains(err.Error(), "pg_dump") {
			t.Errorf("%s: %v, want exit 1 and pg_dump", name, err)
		}
	}
}

// Half a backup is none.
func TestBackupThatBreaksOff(t *testing.T) {
	for name, end := range map[string]func(r *http.Request, interrupt func()){
		"by the server": func(*http.Request, func()) {},
		"by Ctrl-C":     func(r *http.Request, interrupt func()) { interrupt(); <-r.Context().Done() },
	} {
		ctx, cancel := context.WithCancel(t.Context())
		db := fakeServer(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "100")
			io.WriteString(w, "half")
			w.(http.Flusher).Flush()
			end(r, cancel)
		})
		if err := run(ctx, []string{"-db", db, "backup", db + ".copy"}, nil, io.Discard, io.Discard); err == nil {
			t.Errorf("%s: no error", name)
		}
		if left, _ := filepath.Glob(db + ".copy*"); left != nil {
			t.Errorf("%s: left %v", name, left)
		}
		cancel()
	}
}
