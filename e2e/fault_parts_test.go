//go:build linux && faults

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// Faults that take a superuser, strace and file systems of their own.
func TestFaultParts(t *testing.T) {
	t.Run("killed at each system call of the first start", killedAtEachCall)
	t.Run("first start is synced in order", syncedInOrder)
	t.Run("commits are synced before they are answered", syncedBeforeAnswered)
	t.Run("full tmpfs", func(t *testing.T) { fullFileSystem(t, tmpfs(t, "1m")) })
	t.Run("full ext4", func(t *testing.T) { fullFileSystem(t, ext4(t)) })
	t.Run("read-only file system", readOnly)
	t.Run("immutable file", immutable)
	t.Run("without hard links", withoutLinks)
}

func runTool(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

// mounted returns the program in a folder on a file system of its own.
func mounted(t *testing.T, args ...string) *program {
	t.Helper()
	p := newProgram(t)
	runTool(t, "mount", append(args, p.dir)...)
	t.Cleanup(func() { runTool(t, "umount", p.dir) })
	return p
}

func tmpfs(t *testing.T, size string) *program {
	t.Helper()
	return mounted(t, "-t", "tmpfs", "-o", "size="+size, "tmpfs")
}

func ext4(t *testing.T) *program {
	t.Helper()
	image := newProgram(t).path("image")
	noErr(t, os.WriteFile(image, nil, 0o600))
	noErr(t, os.Truncate(image, 8<<20))
	runTool(t, "mkfs.ext4", "-q", "-m", "0", image)
	p := mounted(t, "-o", "loop", image)
	noErr(t, os.Remove(p.path("lost+found")))
	return p
}

// fullFileSystem fills it with a file of somebody else's.
func fullFileSystem(t *testing.T, p *program) {
	p.addUser("frodo", "sam")
	ballast := p.path("ballast")
	fill := func() {
		f, err := os.Create(ballast)
		noErr(t, err)
		defer f.Close()
		for size := 64 << 10; size > 0; size /= 2 { // up to the last byte
			for {
				if n, err := f.Write(make([]byte, size)); err != nil || n < size {
					break
				}
			}
		}
		f.Sync()
		if err := os.WriteFile(p.path("more"), make([]byte, 8192), 0o600); err == nil {
			t.Fatal("it is not full")
		}
		os.Remove(p.path("more"))
	}
	p.serve().fillAndFree(fill, func() { noErr(t, os.Remove(ballast)) })

	// A server that is started while it is full reads as before.
	s := p.serve()
	cookie := s.login("frodo")
	s.kill()
	fill()
	s = p.serve()
	s.want(200, "GET", "/ringsofpower", "", cookie)
	s.stop()
	noErr(t, os.Remove(ballast))
	s = p.serve()
	s.want(201, "POST", "/ringsofpower", ringBody("after all that"), cookie)
	s.stop()
	if files, err := os.ReadDir(p.dir); err != nil || len(files) != 1 {
		t.Errorf("there is %v, %v", files, err)
	}
}

// traced runs the program under strace, in as few threads as can be, because
// strace counts the calls of each.
func (p *program) traced(args ...string) *program {
	later := *p
	later.start = slices.Concat([]string{"strace", "-f", "-q"}, args, p.start)
	later.env = append(slices.Clone(p.env), "GOMAXPROCS=1")
	later.attr = &syscall.SysProcAttr{Setpgid: true}
	return &later
}

// killedAtEachCall kills the first start at the first, second, … call of every
// kind that it makes, until one start gets through.
func killedAtEachCall(t *testing.T) {
	kills := 0
	for _, call := range []string{"openat", "flock", "pwrite64", "pread64", "ftruncate", "fdatasync", "fsync", "mmap", "munmap", "fstat", "newfstatat",
		"linkat", "unlinkat", "renameat", "mkdirat", "fchmodat", "close", "bind", "listen"} {
		for n, misses := 1, 0; misses < 2 && n < 60; n++ {
			p := newProgram(t)
			s := p.traced("-o", "/dev/null", "-e", "trace="+call, "-e", fmt.Sprintf("inject=%s:signal=KILL:when=%d", call, n)).launch()
			eventually(t, func() bool { return s.gone() || strings.Contains(s.log.String(), "msg=start") })
			if s.gone() {
				kills++
			} else {
				misses++
			}
			s.kill()
			if strings.Contains(s.log.String(), "ringward: ") {
				t.Errorf("it was not killed: %s", s.log)
			}
			p.startsAnew()
			if t.Failed() {
				t.Fatalf("after a kill at %s number %d", call, n)
			}
		}
	}
	t.Logf("killed at %d places", kills)
	if kills < 60 {
		t.Error("at too few places")
	}
}

// calls returns the system calls of a start, in order, until it listens and
// then is over.
func (p *program) calls(then func(s *server)) []string {
	p.Helper()
	trace := newProgram(p.T).path("trace")
	s := p.traced("-y", "-o", trace, "-e", "trace=pwrite64,ftruncate,fdatasync,fsync,linkat,renameat,unlinkat,write").serve()
	s.says("msg=start")
	then(s)
	s.kill()
	content, err := os.ReadFile(trace)
	noErr(p.T, err)
	var calls []string
	pending := map[string]string{} // by thread: a call that began and has not ended
	for line := range strings.Lines(string(content)) {
		pid, call, _ := strings.Cut(strings.TrimSpace(line), " ")
		call = strings.TrimSpace(call)
		if begun, ok := strings.CutSuffix(call, " <unfinished ...>"); ok {
			pending[pid] = begun
			continue
		}
		if strings.HasPrefix(call, "<... ") {
			_, rest, _ := strings.Cut(call, " resumed>")
			call = pending[pid] + rest
		}
		calls = append(calls, call)
	}
	return calls
}

// syncedInOrder: the new file is on disk before it has its name, and its name
// before anybody is told that the server is there.
func syncedInOrder(t *testing.T) {
	p := newProgram(t)
	calls := p.calls(func(*server) {})
	find := func(what string) (first, last int) {
		pattern := regexp.MustCompile(what)
		first = slices.IndexFunc(calls, pattern.MatchString)
		for i, call := range calls {
			if pattern.MatchString(call) {
				last = i
			}
		}
		if first < 0 {
			t.Fatalf("no %s in\n%s", what, strings.Join(calls, "\n"))
		}
		return first, last
	}
	_, written := find(`^(pwrite64|ftruncate)\(\d+<[^>]*test\.db\.new-`)
	_, synced := find(`^f(data)?sync\(\d+<[^>]*test\.db\.new-[^>]*>\) += 0`)
	named, _ := find(`^linkat\(.*test\.db\.new-.*= 0`)
	folderSynced, _ := find(`^fsync\(\d+<` + regexp.QuoteMeta(p.dir) + `>\) += 0`)
	told, _ := find(`^write\(2.*listening on`)
	if !(written < synced && synced < named && named < folderSynced && folderSynced < told) {
		t.Errorf("last write %d, last sync %d, named %d, folder synced %d, told %d in\n%s", written, synced, named, folderSynced, told, strings.Join(calls, "\n"))
	}
}

// syncedBeforeAnswered: between the first write of a change and its answer the
// data is synced, then the meta page written and synced.
func syncedBeforeAnswered(t *testing.T) {
	p := newProgram(t)
	p.addUser("frodo")
	calls := p.calls(func(s *server) {
		s.want(201, "POST", "/ringsofpower", ringBody("a marker of its own"), s.login("frodo"))
	})
	answered := -1 // the last one: the login before it is a 201 too
	for i, call := range calls {
		if strings.Contains(call, "HTTP/1.1 201") {
			answered = i
		}
	}
	if answered < 0 {
		t.Fatalf("no answer in\n%s", strings.Join(calls, "\n"))
	}
	var order []string
	for _, call := range slices.Backward(calls[:answered]) {
		name, _, _ := strings.Cut(call, "(")
		if name == "write" && strings.Contains(call, "HTTP/1.1 201") {
			break
		}
		if !strings.Contains(call, "test.db") || len(order) > 0 && order[0] == name {
			continue
		}
		order = append([]string{name}, order...)
	}
	if got := strings.Join(order, " "); !strings.HasSuffix(got, "pwrite64 fdatasync pwrite64 fdatasync") {
		t.Errorf("before the answer came: %s", got)
	}
}

func readOnly(t *testing.T) {
	p := tmpfs(t, "4m")
	p.addUser("frodo")
	runTool(t, "mount", "-o", "remount,ro", p.dir)
	p.refuses("read-only file system")
	p.refuses("read-only file system", "-db", "new.db")
}

func immutable(t *testing.T) {
	p := ext4(t)
	p.addUser("frodo")
	runTool(t, "chattr", "+i", p.path("test.db"))
	defer runTool(t, "chattr", "-i", p.path("test.db"))
	p.refuses("not permitted")
}

// withoutLinks: where there are no hard links the file is made too.
func withoutLinks(t *testing.T) {
	p := newProgram(t)
	s := p.traced("-o", "/dev/null", "-e", "trace=linkat", "-e", "inject=linkat:error=EPERM").serve()
	s.want(200, "GET", "/healthz", "")
	s.kill()
	if files, err := os.ReadDir(p.dir); err != nil || len(files) != 2 { // and the socket
		t.Errorf("there is %v, %v", files, err)
	}
	p.startsAnew()
}
