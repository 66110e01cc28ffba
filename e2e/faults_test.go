//go:build linux

package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"
)

// rounds is n, or what FAULT_ROUNDS says.
func rounds(n int) int {
	if more, err := strconv.Atoi(os.Getenv("FAULT_ROUNDS")); err == nil {
		return more
	}
	return n
}

func noErr(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func ringBody(name string) string { return object(map[string]string{"name": name, "bearer": "men"}) }

const firstRings = 20 // that are there on first start

type ring struct {
	ID           int
	Name, Bearer string
}

// ledger is what one client was told, and what it asked for last without being
// told how that went.
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
func (l *ledger) work(t *testing.T, s *server, random *rand.Rand, answered *atomic.Int32) {
	for ; ; answered.Add(1) {
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
		var r reply
		var want int
		switch choice := random.IntN(20); {
		case cookie == "" || choice < 2 && len(l.live) < 30:
			l.asked, want = "login", 201
			if r = s.do("POST", "/auth/session", credentials(l.user, l.password)); r.status == want {
				l.live = append(l.live, r.cookie())
			}
		case choice < 4:
			l.asked, l.arg, want = "logout", cookie, 204
			if r = s.do("DELETE", "/auth/session", "", cookie); r.status == want {
				l.end(cookie)
			}
		case choice == 4:
			l.asked, l.arg, want = "password", fmt.Sprintf("a new password, number %d", l.n), 204
			if r = s.do("PUT", "/auth/password", object(map[string]string{"current": l.password, "new": l.arg}), cookie); r.status == want {
				l.password = l.arg
				l.end(l.live...)
				l.live = append(l.live, r.cookie())
			}
		case choice == 5:
			l.asked, want = "logout everywhere", 204
			if r = s.do("DELETE", "/auth/sessions", "", cookie); r.status == want {
				l.end(l.live...)
			}
		case len(own) == 0 || choice < 10:
			l.asked, want = "add", 201
			if r = s.do("POST", "/ringsofpower", ringBody(l.name), cookie); r.status == want {
				var added struct{ Data ring }
				json.Unmarshal([]byte(r.body), &added)
				l.rings[added.Data.ID] = l.name
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
			return
		default:
			t.Errorf("%s: %s was answered %d %s", l.user, l.asked, r.status, r.body)
			return
		}
	}
}

func (l *ledger) end(cookies ...string) {
	l.dead = append(l.dead, cookies...)
	l.live = slices.DeleteFunc(slices.Clone(l.live), func(c string) bool { return slices.Contains(cookies, c) })
}

// verify compares the store after a restart with what was answered. What was
// asked for and not answered may have happened or not, but not by half.
func (l *ledger) verify(t *testing.T, s *server) {
	lives := func(cookie string) bool {
		r := s.do("GET", "/auth/session", "", cookie)
		if r.status != 200 && r.status != 401 {
			t.Errorf("%s: who am I: %d %v", l.user, r.status, r.err)
		}
		return r.status == 200
	}
	r := s.do("POST", "/auth/session", credentials(l.user, l.password))
	changed := false
	if l.asked == "password" && r.status == 401 {
		changed = true
		l.password = l.arg
		r = s.do("POST", "/auth/session", credentials(l.user, l.password))
	}
	if r.status != 201 {
		t.Errorf("%s cannot log in (%d) with the password that was set, after %q", l.user, r.status, l.asked)
		return
	}
	cookie := r.cookie()
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
	var all struct{ Data []ring }
	if err := json.Unmarshal([]byte(r.body), &all); err != nil || len(all.Data) < firstRings {
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

// The server is killed while clients work, again and again; after each restart
// all is as it was answered.
func TestKilledUnderLoad(t *testing.T) {
	p := newProgram(t)
	clients := make([]*ledger, 8)
	for i := range clients {
		clients[i] = &ledger{user: fmt.Sprint("hobbit", i), password: password, rings: map[int]string{}}
		p.addUser(clients[i].user)
	}
	total := int32(0)
	for round := range rounds(3) {
		s := p.serve()
		var work sync.WaitGroup
		var answered atomic.Int32
		for _, l := range clients {
			random := rand.New(rand.NewPCG(rand.Uint64(), 0))
			work.Go(func() { l.work(t, s, random, &answered) })
		}
		enough := 20 + rand.Int32N(100)
		eventually(t, func() bool { return answered.Load() >= enough || t.Failed() })
		s.kill()
		work.Wait()
		total += answered.Load()
		s = p.serve()
		for _, l := range clients {
			work.Go(func() { l.verify(t, s) })
		}
		work.Wait()
		if round%2 == 0 {
			s.kill()
		} else {
			s.stop()
		}
		if t.Failed() {
			t.FailNow()
		}
	}
	t.Logf("%d requests that changed something were answered and are kept", total)
}

// startsAnew finds an empty store that works.
func (p *program) startsAnew() {
	p.Helper()
	s := p.serve()
	s.want(200, "GET", "/healthz", "")
	token := s.says(`/auth/invite#(\S+)`)
	r := s.want(201, "POST", "/auth/invites/"+token, credentials("frodo", password))
	if all := data[[]ring](p.T, s.want(200, "GET", "/ringsofpower", "", r.cookie())); len(all) != firstRings {
		p.Errorf("there are %d rings", len(all))
	}
	s.kill()
}

// Of processes that start at once on no file one serves, and the others say
// why they do not.
func TestManyFirstStarts(t *testing.T) {
	p := newProgram(t)
	var all []*server
	for range 4 {
		all = append(all, p.launch())
	}
	serving := func() (n int) {
		for _, s := range all {
			if !s.gone() {
				n++
			}
		}
		return n
	}
	eventually(t, func() bool { return serving() <= 1 })
	for _, s := range all {
		if !s.gone() {
			s.says(`listening on`)
		} else if !strings.Contains(s.exits(1), "is held by another process") {
			t.Errorf("it says %s", s.log)
		}
	}
	if left, _ := filepath.Glob(p.path("*.new*")); serving() != 1 || len(left) > 0 {
		t.Errorf("%d serve, left behind: %v", serving(), left)
	}
}

// limitFile sets the size that a file of the process may have. Past it writes
// fail as on a full disk.
func limitFile(t *testing.T, s *server, bytes uint64) {
	t.Helper()
	limit := syscall.Rlimit{Cur: bytes, Max: ^uint64(0)}
	if _, _, errno := syscall.RawSyscall6(syscall.SYS_PRLIMIT64, uintptr(s.cmd.Process.Pid), syscall.RLIMIT_FSIZE, uintptr(unsafe.Pointer(&limit)), 0, 0, 0); errno != 0 {
		t.Fatal(errno)
	}
}

func TestFileFull(t *testing.T) {
	p := newProgram(t)
	p.addUser("frodo", "sam")
	s := p.serve()
	s.fillAndFree(func() {
		info, err := os.Stat(p.path("test.db"))
		noErr(t, err)
		limitFile(t, s, uint64(info.Size()))
	}, func() { limitFile(t, s, ^uint64(0)) })
}

// fillAndFree works while the disk is full, and after that. It ends the server.
func (s *server) fillAndFree(fill, free func()) {
	s.Helper()
	cookie, other := s.login("frodo"), s.login("sam")
	kept := map[string]bool{}
	add := func() reply {
		name := fmt.Sprintf("ring %d %s", len(kept), strings.Repeat("x", 150))
		r := s.do("POST", "/ringsofpower", ringBody(name), cookie)
		if r.status == 201 {
			kept[name] = true
		}
		return r
	}
	fill()
	r := add()
	for n := 0; r.status == 201 && n < 20000; n++ {
		r = add()
	}
	r.refusal(s.T, "a ring on a full disk", 503)
	reads := func() {
		s.Helper()
		for _, path := range []string{"/healthz", "/auth/session", "/ringsofpower", "/ringsofpower/1", "/auth/sessions", "/auth/verify", "/"} {
			if r := s.do("GET", path, "", cookie); r.status != 200 && r.status != 204 {
				s.Errorf("GET %s: %d %s", path, r.status, r.body)
			}
		}
	}
	reads()
	// A small write may find a page to use, so whatever is answered must be true.
	for range 10 {
		r := s.do("POST", "/auth/session", credentials("sam", password))
		if r.status != 201 && r.status != 503 || (r.status == 201) != (r.cookie() != "") {
			s.Fatalf("login: %d %s %q", r.status, r.body, r.cookie())
		}
	}
	gone := s.do("DELETE", "/auth/session", "", other).status
	if now := s.do("GET", "/auth/session", "", other).status; !(gone == 204 && now == 401 || gone == 503 && now == 200) {
		s.Errorf("logout was answered %d, then the session %d", gone, now)
	}
	reads()

	free()
	if r := add(); r.status != 201 {
		s.Errorf("after space was freed: %d %s", r.status, r.body)
	}
	s.login("sam")
	s.want(204, "DELETE", "/auth/session", "", other)
	s.kill()
	again := s.serve()
	r = again.want(200, "GET", "/ringsofpower", "", cookie)
	for name := range kept {
		if !strings.Contains(r.body, name) {
			s.Errorf("%.20s was answered and is gone", name)
		}
	}
	if n := len(data[[]ring](s.T, r)); n != firstRings+len(kept) {
		s.Errorf("%d rings, not %d", n, firstRings+len(kept))
	}
	again.stop()
}

// What cannot be made whole is not there at all.
func TestFirstStartOnAFullDisk(t *testing.T) {
	for _, blocks := range []int{0, 8, 20, 40} { // of 512 bytes
		p := newProgram(t)
		p.after(fmt.Sprint("ulimit -f ", blocks)).refuses("cannot make the database test.db")
		if entries, err := os.ReadDir(p.dir); err != nil || len(entries) > 0 {
			t.Errorf("with %d blocks was left behind: %v, %v", blocks, entries, err)
		}
		p.startsAnew()
	}
}

func TestSecondServer(t *testing.T) {
	p := newProgram(t)
	p.addUser("frodo")
	first := p.serve()
	cookie := first.login("frodo")
	p.refuses("test.db is held by another process")
	first.want(200, "GET", "/auth/session", "", cookie)
	first.want(201, "POST", "/ringsofpower", ringBody("one more"), cookie)
	first.stop()
}

// refuses wants the server to end with exit 1 and one sentence.
func (p *program) refuses(says string, args ...string) {
	p.Helper()
	begun := time.Now()
	s := p.launch(args...)
	if log := s.exits(1); !strings.Contains(log, says) || strings.Count(log, "\n") != 1 || strings.Contains(log, "goroutine") {
		p.Errorf("it says %q, not a sentence with %q", log, says)
	}
	if took := time.Since(begun); took > 4*time.Second { // 2 s are promised, of a machine that does nothing else
		p.Errorf("%s: after %v", says, took)
	}
}

// asNobody keeps what p starts from being the superuser, who may do everything.
func (p *program) asNobody(file string) {
	p.Helper()
	if os.Getuid() != 0 {
		return
	}
	const nobody = 65534
	noErr(p.T, os.Chown(file, nobody, nobody))
	noErr(p.T, os.Chmod(filepath.Dir(p.dir), 0o755))
	p.attr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
}

func TestFilesThatAreNotOurs(t *testing.T) {
	whole := func() []byte {
		p := newProgram(t)
		p.addUser("frodo", "sam", "merry")
		p.serve().stop()
		content, err := os.ReadFile(p.path("test.db"))
		noErr(t, err)
		return content
	}()
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
		p := newProgram(t)
		db := p.path("test.db")
		noErr(t, os.WriteFile(db, test.content, 0o600))
		noErr(t, os.Chmod(db, test.mode))
		before, err := os.Stat(db)
		noErr(t, err)
		if test.mode != 0o600 {
			p.asNobody(db)
		}
		p.refuses(test.says)
		after, err := os.Stat(db)
		noErr(t, err)
		noErr(t, os.Chmod(db, 0o600))
		content, err := os.ReadFile(db)
		if err != nil || !bytes.Equal(content, test.content) || !before.ModTime().Equal(after.ModTime()) || before.Mode() != after.Mode() {
			t.Errorf("%s: the file was touched, %v", test.says, err)
		}
		if entries, err := os.ReadDir(p.dir); err != nil || len(entries) != 1 {
			t.Errorf("%s: there is %v, %v", test.says, entries, err)
		}
	}
}

// In a folder that we may not write to there is no socket for commands, and
// logins all the same.
func TestFolderThatIsNotOurs(t *testing.T) {
	p := newProgram(t)
	p.addUser("frodo")
	p.asNobody(p.path("test.db"))
	noErr(t, os.Chmod(p.dir, 0o555))
	defer os.Chmod(p.dir, 0o755)
	s := p.serve()
	s.says("commands will not reach this server: .*permission denied")
	s.login("frodo")
	s.stop()
}

// A login that is under way when the server is told to stop is finished, and
// kept. A second signal ends the server at once, whatever it does.
func TestStoppedDuringALogin(t *testing.T) {
	p := newProgram(t)
	p.addUser("frodo")
	body := credentials("frodo", password)
	begin := func(s *server) (net.Conn, *bufio.Reader) { // a login of which the body is still to come
		conn := s.dial()
		fmt.Fprintf(conn, "POST /auth/session HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n", len(body))
		from := bufio.NewReader(conn)
		if line, err := from.ReadString('\n'); err != nil || !strings.Contains(line, " 100 ") {
			t.Fatal(line, err)
		}
		from.ReadString('\n')
		s.cmd.Process.Signal(os.Interrupt)
		eventually(t, func() bool { // it is told to stop
			conn, err := net.Dial("tcp", s.addr())
			if err == nil {
				conn.Close()
			}
			return err != nil
		})
		return conn, from
	}
	s := p.serve()
	conn, from := begin(s)
	io.WriteString(conn, body)
	r := read(from, "POST")
	if r.status != 201 {
		t.Errorf("%d %s %v", r.status, r.body, r.err)
	}
	s.exits(0)
	s = p.serve()
	s.want(200, "GET", "/auth/session", "", r.cookie())
	begin(s)
	eventually(t, func() bool { // one that comes before the first was looked at is one with it
		s.cmd.Process.Signal(syscall.SIGTERM)
		return s.gone()
	})
	if !s.cmd.ProcessState.Sys().(syscall.WaitStatus).Signaled() {
		t.Errorf("two signals, and it ended with %v", s.cmd.ProcessState)
	}
}

// The log is full, closed, or not read by anybody, and the server goes on, and
// stops when it is told to.
func TestStderr(t *testing.T) {
	for _, name := range []string{"full", "closed", "unread"} {
		t.Run(name, func(t *testing.T) {
			p := newProgram(t)
			p.addUser("frodo")
			addr := ownAddr() // nobody hears which one was picked
			cmd := p.command("-addr", addr)
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
			s := p.follow(cmd)
			write.Close()
			s.url = "http://" + addr
			eventually(t, func() bool { return s.do("GET", "/healthz", "").status == 200 })
			requests := 100
			if name == "unread" {
				requests = 6000 // more lines than wait in the process, and in the pipe
			}
			client := &http.Client{Timeout: patience}
			defer client.CloseIdleConnections()
			for n := range requests {
				answer, err := client.Get(s.url + "/auth/session")
				if err != nil || answer.StatusCode != 401 {
					t.Fatalf("request %d: %v %v", n, answer, err)
				}
				io.Copy(io.Discard, answer.Body)
				answer.Body.Close()
			}
			s.login("frodo")
			s.stop()
		})
	}
}

// A file that was removed, replaced or emptied under the running server makes
// it unhealthy, and it can still be stopped.
func TestFileGone(t *testing.T) {
	for name, change := range map[string]func(p *program) error{
		"removed":  func(p *program) error { return os.Remove(p.path("test.db")) },
		"replaced": func(p *program) error { return os.Rename(p.path("copy.db"), p.path("test.db")) },
		"emptied":  func(p *program) error { return os.Truncate(p.path("test.db"), 0) },
	} {
		t.Run(name, func(t *testing.T) {
			p := newProgram(t)
			p.addUser("frodo")
			p.must("", "backup", "copy.db")
			s := p.serve()
			s.want(200, "GET", "/healthz", "")
			noErr(t, change(p))
			for range 3 {
				s.want(503, "GET", "/healthz", "")
			}
			if name == "emptied" {
				s.want(503, "POST", "/auth/session", credentials("frodo", password))
			}
			s.stop()
			if name == "emptied" {
				p.refuses("is empty")
			}
		})
	}
}

// More connections than the process may open: it recovers when they go.
func TestNoFileDescriptors(t *testing.T) {
	p := newProgram(t)
	p.addUser("frodo")
	s := p.after("ulimit -n 48").serve()
	cookie := s.login("frodo")
	open := s.dial()
	from := bufio.NewReader(open)
	write := func() {
		t.Helper()
		body := ringBody("held")
		fmt.Fprintf(open, "POST /ringsofpower HTTP/1.1\r\nHost: localhost\r\n%s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", cookie, len(body), body)
		if r := read(from, "POST"); r.status != 201 {
			t.Errorf("on a connection that is open: %d %s %v", r.status, r.body, r.err)
		}
	}
	write()
	var held []net.Conn
	for range 100 { // the system takes them, and keeps them for who does not
		held = append(held, s.dial())
	}
	s.says("too many open files")
	write()
	for _, conn := range append(held, open) {
		conn.Close()
	}
	s.want(201, "POST", "/ringsofpower", ringBody("freed"), cookie)
	if lines := strings.Count(s.stop(), "too many open files"); lines > 200 {
		t.Errorf("%d log lines", lines)
	}
}
