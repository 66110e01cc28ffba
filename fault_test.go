//go:build linux

// fault_test.go: faults that are made for real, in real processes: killed at
// any instant, a full file system, files that are not ours, too few file
// descriptors, a log that nobody reads. Faults that take a superuser's means
// are in fault_parts_test.go.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/crypto/bcrypt"
)

// TestFaults builds the program once.
func TestFaults(t *testing.T) {
	p := buildFaultProgram(t)
	t.Run("killed under load", func(t *testing.T) { p.killedUnderLoad(t, faultRounds(3)) })
	t.Run("killed at first start", func(t *testing.T) { p.killedAtFirstStart(t, faultRounds(2)*4) })
	t.Run("many first starts", p.manyFirstStarts)
	t.Run("file full", p.fileFull)
	t.Run("first start on a full disk", p.firstStartOnFullDisk)
	t.Run("second server", p.secondServer)
	t.Run("files that are not ours", p.foreignFiles)
	t.Run("folder that we may not write to", p.foreignFolder)
	t.Run("stopped while logins wait", p.stoppedWhileLoginsWait)
	t.Run("stderr", p.stderr)
	t.Run("file gone", p.fileGone)
	t.Run("no file descriptors", p.noDescriptors)
}

// faultRounds is n, or what RINGWARD_FAULT_ROUNDS says.
func faultRounds(n int) int {
	if more, err := strconv.Atoi(os.Getenv("RINGWARD_FAULT_ROUNDS")); err == nil {
		return more
	}
	return n
}

// faultProgram is the built program, in a folder that everybody may enter.
type faultProgram struct{ path string }

func buildFaultProgram(t *testing.T) faultProgram {
	t.Helper()
	folder, err := os.MkdirTemp("", "ringward")
	noErr(t, err)
	t.Cleanup(func() { os.RemoveAll(folder) })
	noErr(t, os.Chmod(folder, 0o755))
	p := faultProgram{filepath.Join(folder, "ringward")}
	if out, err := exec.Command("go", "build", "-o", p.path, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return p
}

const faultPassword = "correct horse battery staple"

// command runs the program on a database, with a signing key.
func (p faultProgram) command(db string, args ...string) *exec.Cmd {
	return withKey(exec.Command(p.path, append([]string{"-db", db, "-addr", "127.0.0.1:0", "-bcrypt-cost", "10"}, args...)...))
}

// withKey gives the environment that the program needs.
func withKey(cmd *exec.Cmd) *exec.Cmd {
	cmd.Env = append(os.Environ(), "SECRET_KEY=0123456789abcdef0123456789abcdef")
	return cmd
}

// shell is command after a line of sh.
func (p faultProgram) shell(line, db string) *exec.Cmd {
	direct := p.command(db)
	return withKey(exec.Command("sh", append([]string{"-c", line + `; exec "$0" "$@"`}, direct.Args...)...))
}

// users puts users with faultPassword into a database that is not open.
func (p faultProgram) users(t *testing.T, db string, names ...string) {
	t.Helper()
	hash, err := bcrypt.GenerateFromPassword([]byte(faultPassword), bcrypt.MinCost)
	noErr(t, err)
	store, err := openStore(db)
	noErr(t, err)
	for _, name := range names {
		noErr(t, store.addUser(User{Name: name, Hash: string(hash), Created: time.Now()}))
	}
	noErr(t, store.close())
}

// faultServer is a process that serves.
type faultServer struct {
	*exec.Cmd
	url    string
	stderr *faultOutput
	client *http.Client
	exited chan struct{}
}

// faultOutput is read while it is written to.
type faultOutput struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *faultOutput) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}
func (l *faultOutput) String() string { l.mu.Lock(); defer l.mu.Unlock(); return l.b.String() }

// startFault waits until the process listens.
func startFault(t *testing.T, cmd *exec.Cmd) *faultServer {
	t.Helper()
	s := &faultServer{Cmd: cmd, stderr: &faultOutput{}, exited: make(chan struct{}),
		client: &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 64}}}
	pipe, err := cmd.StderrPipe()
	noErr(t, err)
	noErr(t, cmd.Start())
	listens := make(chan string, 1)
	go func() {
		defer close(s.exited)
		lines := bufio.NewReader(pipe)
		for {
			line, err := lines.ReadString('\n')
			s.stderr.Write([]byte(line))
			if _, url, ok := strings.Cut(strings.TrimSpace(line), "listening on "); ok {
				select {
				case listens <- url:
				default:
				}
			}
			if err != nil {
				cmd.Wait()
				return
			}
		}
	}()
	t.Cleanup(func() { cmd.Process.Kill(); <-s.exited; s.client.CloseIdleConnections() })
	select {
	case s.url = <-listens:
	case <-s.exited:
		t.Fatalf("the server did not start: %s", s.stderr)
	case <-time.After(20 * time.Second):
		t.Fatalf("the server does not listen: %s", s.stderr)
	}
	return s
}

// kill is kill -9.
func (s *faultServer) kill() { s.Process.Kill(); <-s.exited; s.client.CloseIdleConnections() }

// stop ends the server as an operator does.
func (s *faultServer) stop(t *testing.T) {
	t.Helper()
	s.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.exited:
		if code := s.ProcessState.ExitCode(); code != 0 {
			t.Errorf("exit %d: %s", code, s.stderr)
		}
	case <-time.After(20 * time.Second):
		t.Errorf("the server does not stop: %s", s.stderr)
	}
}

// faultReply is what a server answered. Status 0 is no answer.
type faultReply struct {
	status int
	cookie string // NAME=VALUE, "" if none was set
	body   string
	err    error
}

func (s *faultServer) do(method, path, body, cookie string) faultReply {
	r, err := http.NewRequest(method, s.url+path, strings.NewReader(body))
	if err != nil {
		return faultReply{err: err}
	}
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	if cookie != "" {
		r.Header.Set("Cookie", cookie)
	}
	answer, err := s.client.Do(r)
	if err != nil {
		return faultReply{err: err}
	}
	defer answer.Body.Close()
	b, err := io.ReadAll(answer.Body)
	if err != nil {
		return faultReply{err: err}
	}
	set, _, _ := strings.Cut(answer.Header.Get("Set-Cookie"), ";")
	return faultReply{answer.StatusCode, set, string(b), nil}
}

func (s *faultServer) login(user, password string) faultReply {
	return s.do("POST", "/auth/session", fmt.Sprintf(`{"username":%q,"password":%q}`, user, password), "")
}

func ringBody(name string) string { return fmt.Sprintf(`{"name":%q,"bearer":"men"}`, name) }

// ledger is what one client was answered, and what it asked for last without
// being answered.
type ledger struct {
	user     string
	password string
	live     []string       // cookies
	dead     []string       // cookies of sessions that were ended
	rings    map[int]string // id to name; "" was removed
	n        int            // makes names and passwords new

	asked string // "", or the kind of request that was not answered
	arg   string // its cookie or new password
	ring  int
	name  string
}

// work sends requests until one is not answered.
func (l *ledger) work(t *testing.T, s *faultServer, random *rand.Rand) (answered int) {
	for ; ; answered++ {
		cookie := ""
		if len(l.live) > 0 {
			cookie = l.live[random.IntN(len(l.live))]
		}
		l.n++
		l.name = fmt.Sprintf("%s %d", l.user, l.n)
		var own []int
		for id, name := range l.rings {
			if name != "" {
				own = append(own, id)
			}
		}
		slices.Sort(own)
		var r faultReply
		var want int
		switch choice := random.IntN(20); {
		case cookie == "" || choice < 2 && len(l.live) < 30:
			l.asked, want = "login", 201
			if r = s.login(l.user, l.password); r.status == want {
				l.live = append(l.live, r.cookie)
			}
		case choice < 4:
			l.asked, l.arg, want = "logout", cookie, 204
			if r = s.do("DELETE", "/auth/session", "", cookie); r.status == want {
				l.end(cookie)
			}
		case choice == 4:
			l.asked, l.arg, want = "password", fmt.Sprintf("a new password, number %d", l.n), 204
			if r = s.do("PUT", "/auth/password", fmt.Sprintf(`{"current":%q,"new":%q}`, l.password, l.arg), cookie); r.status == want {
				l.password = l.arg
				l.end(l.live...)
				l.live = append(l.live, r.cookie)
			}
		case choice == 5:
			l.asked, want = "logout everywhere", 204
			if r = s.do("DELETE", "/auth/sessions", "", cookie); r.status == want {
				l.end(l.live...)
			}
		case len(own) == 0 || choice < 10:
			l.asked, want = "add", 201
			if r = s.do("POST", "/ringsofpower", ringBody(l.name), cookie); r.status == want {
				var ring struct{ Data Ring }
				json.Unmarshal([]byte(r.body), &ring)
				l.rings[ring.Data.ID] = l.name
			}
		case choice < 17:
			l.asked, l.ring, want = "set", own[random.IntN(len(own))], 200
			if r = s.do("PUT", fmt.Sprint("/ringsofpower/", l.ring), ringBody(l.name), cookie); r.status == want {
				l.rings[l.ring] = l.name
			}
		default:
			l.asked, l.ring, want = "remove", own[random.IntN(len(own))], 204
			if r = s.do("DELETE", fmt.Sprint("/ringsofpower/", l.ring), "", cookie); r.status == want {
				l.rings[l.ring] = ""
			}
		}
		switch r.status {
		case want:
			l.asked = ""
		case 0:
			return answered
		default:
			t.Errorf("%s: %s was answered %d %s", l.user, l.asked, r.status, r.body)
			return answered
		}
	}
}

func (l *ledger) end(cookies ...string) {
	l.dead = append(l.dead, cookies...)
	l.live = slices.DeleteFunc(slices.Clone(l.live), func(c string) bool { return slices.Contains(cookies, c) })
}

// verify compares the store after a restart with what was answered. What was
// asked for and not answered may have happened or not, but not by half.
func (l *ledger) verify(t *testing.T, s *faultServer) {
	t.Helper()
	lives := func(cookie string) bool {
		r := s.do("GET", "/auth/session", "", cookie)
		if r.status != 200 && r.status != 401 {
			t.Errorf("%s: who am I: %d %v", l.user, r.status, r.err)
		}
		return r.status == 200
	}
	r := s.login(l.user, l.password)
	changed := false
	if l.asked == "password" && r.status == 401 {
		changed = true
		l.password = l.arg
		r = s.login(l.user, l.password)
	}
	if r.status != 201 {
		t.Errorf("%s cannot log in (%d) with the password that was set, after %q", l.user, r.status, l.asked)
		return
	}
	cookie := r.cookie
	alive := 0
	var still []string
	for _, c := range l.live {
		if lives(c) {
			alive++
			still = append(still, c)
		} else if l.asked != "logout everywhere" && !(l.asked == "logout" && l.arg == c) && !changed {
			t.Errorf("%s: a session that was answered is gone, after %q", l.user, l.asked)
		}
	}
	if (changed && alive > 0) || (l.asked == "logout everywhere" && alive > 0 && alive < len(l.live)) {
		t.Errorf("%s: %d of %d sessions live, half of %q was done", l.user, alive, len(l.live), l.asked)
	}
	l.live = append(still, cookie)
	for _, c := range l.dead {
		if lives(c) {
			t.Errorf("%s: a session that was ended is back, after %q", l.user, l.asked)
		}
	}
	l.dead = nil

	r = s.do("GET", "/ringsofpower", "", cookie)
	var all struct{ Data []Ring }
	if err := json.Unmarshal([]byte(r.body), &all); err != nil || len(all.Data) < len(twentyRings) {
		t.Errorf("rings: %d %s %v", r.status, r.body, r.err)
		return
	}
	kept := map[int]string{}
	for _, ring := range all.Data {
		if ring.Bearer == "men" && strings.HasPrefix(ring.Name, l.user+" ") {
			kept[ring.ID] = ring.Name
		}
	}
	for id, name := range l.rings {
		now := kept[id]
		if now != name && !(l.ring == id && (l.asked == "set" && now == l.name || l.asked == "remove" && now == "")) {
			t.Errorf("%s: ring %d is %q, was answered as %q, after %q of %d", l.user, id, now, name, l.asked, l.ring)
		}
	}
	for id, name := range kept {
		if _, known := l.rings[id]; !known && !(l.asked == "add" && name == l.name) {
			t.Errorf("%s: ring %d %q was never asked for", l.user, id, name)
		}
	}
	l.rings, l.asked = kept, ""
}

// killedUnderLoad kills the server at a random moment while clients work, again
// and again, and looks after each restart whether all is as it was answered.
func (p faultProgram) killedUnderLoad(t *testing.T, rounds int) {
	db := filepath.Join(t.TempDir(), "test.db")
	clients := make([]*ledger, 8)
	for i := range clients {
		clients[i] = &ledger{user: fmt.Sprint("hobbit", i), password: faultPassword, rings: map[int]string{}}
		p.users(t, db, clients[i].user)
	}
	random := rand.New(rand.NewPCG(rand.Uint64(), 0))
	answered := make([]int, len(clients))
	slowest := time.Duration(0)
	for round := range rounds {
		s := startFault(t, p.command(db))
		var work sync.WaitGroup
		for i, l := range clients {
			random := rand.New(rand.NewPCG(random.Uint64(), 0))
			work.Go(func() { answered[i] += l.work(t, s, random) })
		}
		work.Go(func() {
			<-time.After(300*time.Millisecond + time.Duration(random.Int64N(int64(time.Second))))
			s.kill()
		})
		work.Wait()
		begun := time.Now()
		s = startFault(t, p.command(db))
		slowest = max(slowest, time.Since(begun))
		for _, l := range clients {
			work.Go(func() { l.verify(t, s) })
		}
		work.Wait()
		if round%2 == 0 {
			s.kill()
		} else {
			s.stop(t)
		}
		if t.Failed() {
			return
		}
	}
	total := 0
	for _, n := range answered {
		total += n
	}
	t.Logf("%d rounds, %d requests that changed something were answered and are kept; slowest restart %v", rounds, total, slowest)
	if total < 10*rounds {
		t.Error("too few requests to show anything")
	}
}

// killedAtFirstStart kills the first process that would make the database.
func (p faultProgram) killedAtFirstStart(t *testing.T, rounds int) {
	made := 0
	for range rounds {
		db := filepath.Join(t.TempDir(), "test.db")
		cmd := p.command(db)
		noErr(t, cmd.Start())
		<-time.After(time.Duration(rand.Float64() * rand.Float64() * float64(60*time.Millisecond))) // more often early
		cmd.Process.Kill()
		cmd.Wait()
		if _, err := os.Stat(db); err == nil {
			made++
		}
		p.startsAnew(t, db)
	}
	t.Logf("%d of %d had made the file before they were killed", made, rounds)
}

// startsAnew finds an empty store that works.
func (p faultProgram) startsAnew(t *testing.T, db string) {
	t.Helper()
	s := startFault(t, p.command(db))
	if r := s.do("GET", "/healthz", "", ""); r.status != 200 {
		t.Errorf("/healthz: %d %v", r.status, r.err)
	}
	eventuallyTrue(t, func() bool { return strings.Contains(s.stderr.String(), "/auth/invite#") })
	_, token, _ := strings.Cut(s.stderr.String(), "/auth/invite#")
	token, _, _ = strings.Cut(token, "\n")
	r := s.do("POST", "/auth/invites/"+token, fmt.Sprintf(`{"username":"frodo","password":%q}`, faultPassword), "")
	if r.status != 201 {
		t.Fatalf("the first user: %d %s %v\n%s", r.status, r.body, r.err, s.stderr)
	}
	if r := s.do("GET", "/ringsofpower", "", r.cookie); r.status != 200 || strings.Count(r.body, `"id"`) != len(twentyRings) {
		t.Errorf("rings: %d %s", r.status, r.body)
	}
	s.kill()
}

// eventuallyTrue waits for what another process does.
func eventuallyTrue(t *testing.T, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !condition(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatal("it does not come true")
		}
	}
}

// manyFirstStarts: of processes that start at once on no file one serves, and
// the others say why they do not.
func (p faultProgram) manyFirstStarts(t *testing.T) {
	db := filepath.Join(t.TempDir(), "test.db")
	const n = 4
	type result struct {
		code   int
		stderr string
	}
	ended := make(chan result, n)
	var all []*exec.Cmd
	for range n {
		cmd := p.command(db)
		var stderr faultOutput
		cmd.Stderr = &stderr
		noErr(t, cmd.Start())
		all = append(all, cmd)
		go func() { cmd.Wait(); ended <- result{cmd.ProcessState.ExitCode(), stderr.String()} }()
	}
	defer func() {
		for _, cmd := range all {
			cmd.Process.Kill()
		}
	}()
	for range n - 1 {
		select {
		case r := <-ended:
			if r.code != 1 || !strings.Contains(r.stderr, "is held by another process") {
				t.Errorf("exit %d: %s", r.code, r.stderr)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("more than one of them serve, or wait")
		}
	}
	select {
	case r := <-ended:
		t.Errorf("none of them serves: %d %s", r.code, r.stderr)
	default:
	}
	if left, _ := filepath.Glob(db + ".new*"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// limitFile sets the size that a file of the process may have. Past it writes
// fail as on a full disk.
func limitFile(t *testing.T, pid int, bytes uint64) {
	t.Helper()
	limit := syscall.Rlimit{Cur: bytes, Max: ^uint64(0)}
	if _, _, errno := syscall.RawSyscall6(syscall.SYS_PRLIMIT64, uintptr(pid), syscall.RLIMIT_FSIZE, uintptr(unsafe.Pointer(&limit)), 0, 0, 0); errno != 0 {
		t.Fatal(errno)
	}
}

func (p faultProgram) fileFull(t *testing.T) {
	db := filepath.Join(t.TempDir(), "test.db")
	p.users(t, db, "frodo", "sam")
	s := startFault(t, p.command(db))
	p.fillAndFree(t, db, s, func() {
		info, err := os.Stat(db)
		noErr(t, err)
		limitFile(t, s.Process.Pid, uint64(info.Size()))
	}, func() { limitFile(t, s.Process.Pid, ^uint64(0)) })
}

// fillAndFree works while the disk is full, and after that.
func (p faultProgram) fillAndFree(t *testing.T, db string, s *faultServer, fill, free func()) {
	t.Helper()
	cookie := s.login("frodo", faultPassword).cookie
	other := s.login("sam", faultPassword).cookie
	kept := map[string]bool{}
	add := func(s *faultServer) faultReply {
		name := fmt.Sprintf("ring %d %s", len(kept), strings.Repeat("x", 150))
		r := s.do("POST", "/ringsofpower", ringBody(name), cookie)
		if r.status == 201 {
			kept[name] = true
		}
		return r
	}
	fill()
	r := add(s)
	for n := 0; r.status == 201 && n < 20000; n++ {
		r = add(s)
	}
	if r.status != 503 || !strings.Contains(r.body, `"status":503`) {
		t.Fatalf("on a full disk: %d %s %v", r.status, r.body, r.err)
	}
	reads := func() {
		t.Helper()
		for _, path := range []string{"/healthz", "/auth/session", "/ringsofpower", "/ringsofpower/1", "/auth/sessions", "/auth/verify", "/"} {
			if r := s.do("GET", path, "", cookie); r.status != 200 && r.status != 204 {
				t.Errorf("GET %s: %d %s", path, r.status, r.body)
			}
		}
	}
	reads()
	// While it is full a small write may find a page to use, so these are tried
	// until one fails, and whatever is answered must be true.
	refused := false
	for range 50 {
		r := s.login("sam", faultPassword)
		if r.status == 503 {
			if refused = true; r.cookie != "" {
				t.Error("a cookie for a session that was not kept")
			}
			break
		}
		if r.status != 201 {
			t.Fatalf("login: %d %s", r.status, r.body)
		}
	}
	if !refused {
		t.Log("every login found room")
	}
	gone := s.do("DELETE", "/auth/session", "", other)
	if gone.status != 204 && gone.status != 503 {
		t.Errorf("logout: %d %s", gone.status, gone.body)
	}
	if now := s.do("GET", "/auth/session", "", other); now.status == 200 != (gone.status == 503) {
		t.Errorf("logout was answered %d, then the session %d", gone.status, now.status)
	}
	reads()

	free()
	if r := add(s); r.status != 201 {
		t.Errorf("after space was freed: %d %s", r.status, r.body)
	}
	if r := s.login("sam", faultPassword); r.status != 201 {
		t.Errorf("login after space was freed: %d %s", r.status, r.body)
	}
	if r := s.do("DELETE", "/auth/session", "", other); r.status != 204 {
		t.Errorf("logout after space was freed: %d %s", r.status, r.body)
	}
	s.kill()
	s = startFault(t, p.command(db))
	r = s.do("GET", "/ringsofpower", "", cookie)
	for name := range kept {
		if !strings.Contains(r.body, name) {
			t.Errorf("%.20s was answered and is gone", name)
		}
	}
	if n := strings.Count(r.body, `"id"`); n != len(twentyRings)+len(kept) {
		t.Errorf("%d rings, not %d", n, len(twentyRings)+len(kept))
	}
	s.stop(t)
}

// firstStartOnFullDisk: what cannot be made whole is not there at all.
func (p faultProgram) firstStartOnFullDisk(t *testing.T) {
	for _, blocks := range []int{0, 8, 20, 40} { // of 512 bytes
		folder := t.TempDir()
		db := filepath.Join(folder, "test.db")
		cmd := p.shell(fmt.Sprint("ulimit -f ", blocks), db)
		out, _ := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); code != 1 || !strings.Contains(string(out), "cannot make the database "+db) {
			t.Errorf("with %d blocks: exit %d: %s", blocks, code, out)
		}
		if entries, err := os.ReadDir(folder); err != nil || len(entries) > 0 {
			t.Errorf("with %d blocks was left behind: %v, %v", blocks, entries, err)
		}
		p.startsAnew(t, db)
	}
}

func (p faultProgram) secondServer(t *testing.T) {
	db := filepath.Join(t.TempDir(), "test.db")
	p.users(t, db, "frodo")
	first := startFault(t, p.command(db))
	cookie := first.login("frodo", faultPassword).cookie
	p.refuses(t, p.command(db), db+" is held by another process")
	if r := first.do("GET", "/auth/session", "", cookie); r.status != 200 {
		t.Errorf("the first server: %d %v", r.status, r.err)
	}
	if r := first.do("POST", "/ringsofpower", ringBody("one more"), cookie); r.status != 201 {
		t.Errorf("the first server: %d %v", r.status, r.err)
	}
	if out, err := p.command(db, "user", "list").CombinedOutput(); err != nil || !strings.Contains(string(out), "frodo") {
		t.Errorf("a command to the first server: %v %s", err, out)
	}
	first.stop(t)
}

// refuses wants exit 1 and one sentence within two seconds.
func (p faultProgram) refuses(t *testing.T, cmd *exec.Cmd, says string) {
	t.Helper()
	begun := time.Now()
	timer := time.AfterFunc(20*time.Second, func() { cmd.Process.Kill() })
	defer timer.Stop()
	out, _ := cmd.CombinedOutput()
	if code := cmd.ProcessState.ExitCode(); code != 1 || !strings.Contains(string(out), says) ||
		strings.Count(string(out), "\n") != 1 || strings.Contains(string(out), "goroutine") {
		t.Errorf("exit %d, not 1 and a sentence with %q: %s", code, says, out)
	}
	if took := time.Since(begun); took > 2*time.Second {
		t.Errorf("after %v", took)
	}
}

// notAsRoot keeps cmd from being the superuser, who may do everything, and
// gives it the file.
func notAsRoot(t *testing.T, cmd *exec.Cmd, file string) {
	t.Helper()
	if os.Getuid() == 0 {
		const nobody = 65534
		noErr(t, os.Chown(file, nobody, nobody))
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
}

func (p faultProgram) foreignFiles(t *testing.T) {
	folder, err := os.MkdirTemp("", "ringward")
	noErr(t, err)
	defer os.RemoveAll(folder)
	noErr(t, os.Chmod(folder, 0o755))
	db := filepath.Join(folder, "test.db")
	whole := filledFile(t, 3)
	for _, test := range []struct {
		content []byte
		mode    os.FileMode
		says    string
	}{
		{nil, 0o600, "is empty"},
		{[]byte("one ring to rule them all\n"), 0o600, "is not a ringward database"},
		{whole[:len(whole)/2], 0o600, "is truncated"},
		{whole[:2*os.Getpagesize()], 0o600, "is truncated"},
		{whole, 0, "permission denied"},
		{whole, 0o400, "permission denied"},
	} {
		noErr(t, os.WriteFile(db, test.content, 0o600))
		noErr(t, os.Chmod(db, test.mode))
		before, err := os.Stat(db)
		noErr(t, err)
		cmd := p.command(db)
		if test.mode != 0o600 {
			notAsRoot(t, cmd, db)
		}
		p.refuses(t, cmd, test.says)
		after, err := os.Stat(db)
		noErr(t, err)
		noErr(t, os.Chmod(db, 0o600))
		content, err := os.ReadFile(db)
		if err != nil || !bytes.Equal(content, test.content) || !before.ModTime().Equal(after.ModTime()) || before.Mode() != after.Mode() {
			t.Errorf("%s: the file was touched, %v", test.says, err)
		}
		noErr(t, os.Remove(db))
	}
	if entries, err := os.ReadDir(folder); err != nil || len(entries) > 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

// foreignFolder: there is no socket for commands, and logins all the same.
func (p faultProgram) foreignFolder(t *testing.T) {
	folder, err := os.MkdirTemp("", "ringward")
	noErr(t, err)
	defer os.RemoveAll(folder)
	db := filepath.Join(folder, "test.db")
	p.users(t, db, "frodo")
	cmd := p.command(db)
	notAsRoot(t, cmd, db)
	noErr(t, os.Chmod(folder, 0o555))
	defer os.Chmod(folder, 0o755)
	s := startFault(t, cmd)
	if log := s.stderr.String(); !strings.Contains(log, "commands will not reach this server") || !strings.Contains(log, "permission denied") {
		t.Errorf("it does not warn: %s", log)
	}
	if r := s.login("frodo", faultPassword); r.status != 201 {
		t.Errorf("login: %d %v", r.status, r.err)
	}
	s.stop(t)
}

// stoppedWhileLoginsWait: who has been let in is answered, who is answered is
// kept, and the process ends by itself.
func (p faultProgram) stoppedWhileLoginsWait(t *testing.T) {
	db := filepath.Join(t.TempDir(), "test.db")
	p.users(t, db, "frodo")
	s := startFault(t, p.command(db))
	s.login("frodo", faultPassword) // writes the hash anew
	const logins = 12
	replies := make(chan faultReply, logins)
	for range logins {
		go func() { replies <- s.login("frodo", faultPassword) }()
	}
	first := <-replies // the others are on their way
	begun := time.Now()
	s.Process.Signal(syscall.SIGTERM)
	all := []faultReply{first}
	for range logins - 1 {
		all = append(all, <-replies)
	}
	<-s.exited
	if code, took := s.ProcessState.ExitCode(), time.Since(begun); code != 0 || took > 12*time.Second {
		t.Errorf("exit %d after %v: %s", code, took, s.stderr)
	}
	if _, err := net.DialTimeout("tcp", strings.TrimPrefix(s.url, "http://"), time.Second); err == nil {
		t.Error("somebody still listens")
	}
	s = startFault(t, p.command(db))
	let := 0
	for _, r := range all {
		switch {
		case r.status == 201:
			let++
			if now := s.do("GET", "/auth/session", "", r.cookie); now.status != 200 {
				t.Errorf("a login that was answered is gone: %d", now.status)
			}
		case r.err == nil:
			t.Errorf("login: %d %s", r.status, r.body)
		case !errors.Is(r.err, syscall.ECONNREFUSED) && !errors.Is(r.err, syscall.ECONNRESET) && !errors.Is(r.err, io.EOF):
			t.Errorf("login: %v", r.err)
		}
	}
	t.Logf("%d of %d logins came before the door was shut", let, logins)
	if let < 2 {
		t.Error("no login was under way")
	}
	// A second signal ends it at once, whatever it does.
	hold, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
	noErr(t, err)
	defer hold.Close()
	fmt.Fprint(hold, "POST /auth/session HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
	eventuallyTrue(t, func() bool { return s.do("GET", "/healthz", "", "").status == 200 })
	s.Process.Signal(syscall.SIGTERM)
	eventuallyTrue(t, func() bool { return strings.Contains(s.stderr.String(), "msg=stop") })
	begun = time.Now()
	for again := true; again; {
		s.Process.Signal(syscall.SIGTERM)
		select {
		case <-s.exited:
			again = false
		case <-time.After(10 * time.Millisecond):
		}
	}
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("a second signal took %v", took)
	}
}

// stderr: the log is full, closed, or not read by anybody, and the server goes
// on, and stops when it is told to.
func (p faultProgram) stderr(t *testing.T) {
	for _, name := range []string{"full", "closed", "unread"} {
		t.Run(name, func(t *testing.T) {
			folder := t.TempDir()
			db := filepath.Join(folder, "test.db")
			p.users(t, db, "frodo")
			listener, err := net.Listen("tcp", "127.0.0.1:0") // a port to name: nobody hears which one was picked
			noErr(t, err)
			addr := listener.Addr().String()
			noErr(t, listener.Close())
			cmd := p.command(db, "-addr", addr)
			read, write, err := os.Pipe()
			noErr(t, err)
			defer read.Close()
			cmd.Stderr = write
			switch name {
			case "full":
				full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
				noErr(t, err)
				defer full.Close()
				cmd.Stderr = full
			case "closed":
				read.Close()
			}
			noErr(t, cmd.Start())
			write.Close()
			s := &faultServer{Cmd: cmd, url: "http://" + addr, client: &http.Client{Timeout: 20 * time.Second}, exited: make(chan struct{})}
			go func() { cmd.Wait(); close(s.exited) }()
			defer func() { cmd.Process.Kill(); <-s.exited }()
			eventuallyTrue(t, func() bool { return s.do("GET", "/healthz", "", "").status == 200 })
			requests := 100
			if name == "unread" {
				requests = 2 * maxLines / 150 // bytes of a line; more than wait in the process, and in the pipe (64 KiB)
			}
			for n := range requests {
				if r := s.do("GET", "/auth/session", "", ""); r.status != 401 {
					t.Fatalf("request %d: %d %v", n, r.status, r.err)
				}
			}
			if r := s.login("frodo", faultPassword); r.status != 201 {
				t.Errorf("login: %d %v", r.status, r.err)
			}
			cmd.Process.Signal(syscall.SIGTERM)
			select {
			case <-s.exited:
				if code := cmd.ProcessState.ExitCode(); code != 0 {
					t.Errorf("exit %d", code)
				}
			case <-time.After(15 * time.Second):
				t.Error("it does not stop")
			}
		})
	}
}

// fileGone: a file that was removed, replaced or emptied under the running
// server makes it unhealthy, and it can still be stopped.
func (p faultProgram) fileGone(t *testing.T) {
	for name, change := range map[string]func(db string) error{
		"removed":  os.Remove,
		"replaced": func(db string) error { return os.Rename(db+".copy", db) },
		"emptied":  func(db string) error { return os.Truncate(db, 0) },
	} {
		t.Run(name, func(t *testing.T) {
			db := filepath.Join(t.TempDir(), "test.db")
			p.users(t, db, "frodo")
			p.users(t, db+".copy", "frodo")
			s := startFault(t, p.command(db))
			if r := s.do("GET", "/healthz", "", ""); r.status != 200 {
				t.Errorf("before: %d", r.status)
			}
			noErr(t, change(db))
			for range 3 {
				if r := s.do("GET", "/healthz", "", ""); r.status != 503 {
					t.Errorf("after: %d %v", r.status, r.err)
				}
			}
			if name == "emptied" {
				for range 3 {
					if r := s.login("frodo", faultPassword); r.status != 503 {
						t.Errorf("login: %d %v", r.status, r.err)
					}
				}
			}
			s.stop(t)
			if name == "emptied" {
				p.refuses(t, p.command(db), "is empty")
			}
		})
	}
}

// noDescriptors: more connections than the process may open, and it recovers
// when they go.
func (p faultProgram) noDescriptors(t *testing.T) {
	db := filepath.Join(t.TempDir(), "test.db")
	p.users(t, db, "frodo")
	s := startFault(t, p.shell("ulimit -n 48", db))
	cookie := s.login("frodo", faultPassword).cookie
	var held []net.Conn
	for range 100 {
		conn, err := net.DialTimeout("tcp", strings.TrimPrefix(s.url, "http://"), time.Second)
		if err != nil {
			break
		}
		held = append(held, conn)
	}
	eventuallyTrue(t, func() bool { return strings.Contains(s.stderr.String(), "too many open files") })
	if r := s.do("POST", "/ringsofpower", ringBody("held"), cookie); r.status != 201 { // on a connection that is open
		t.Errorf("meanwhile: %d %v", r.status, r.err)
	}
	for _, conn := range held {
		conn.Close()
	}
	s.client.CloseIdleConnections()
	eventuallyTrue(t, func() bool { return s.do("GET", "/auth/session", "", cookie).status == 200 })
	if r := s.do("POST", "/ringsofpower", ringBody("freed"), cookie); r.status != 201 {
		t.Errorf("after that: %d %v", r.status, r.err)
	}
	if lines := strings.Count(s.stderr.String(), "too many open files"); lines > 200 {
		t.Errorf("%d log lines", lines)
	}
	s.stop(t)
}
