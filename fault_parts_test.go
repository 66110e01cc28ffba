//go:build linux && faults

// fault_parts_test.go: faults that take a superuser, strace and file systems of
// their own: .ci/faults installs what is needed and runs them. What is missing
// fails.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
)

func TestFaultParts(t *testing.T) {
	p := buildFaultProgram(t)
	t.Run("killed at each system call of the first start", p.killedAtEachCall)
	t.Run("first start is synced in order", p.syncedInOrder)
	t.Run("commits are synced before they are answered", p.syncedBeforeAnswered)
	t.Run("full tmpfs", func(t *testing.T) { p.fullFileSystem(t, tmpfs(t, "1m")) })
	t.Run("full ext4", func(t *testing.T) { p.fullFileSystem(t, ext4(t)) })
	t.Run("read-only file system", p.readOnly)
	t.Run("immutable file", p.immutable)
	t.Run("without hard links", p.withoutLinks)
}

func runTool(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// mountAt answers a folder on a file system of its own.
func mountAt(t *testing.T, args ...string) string {
	t.Helper()
	folder := t.TempDir()
	runTool(t, "mount", append(args, folder)...)
	t.Cleanup(func() { runTool(t, "umount", folder) })
	return folder
}

func tmpfs(t *testing.T, size string) string {
	t.Helper()
	return mountAt(t, "-t", "tmpfs", "-o", "size="+size, "tmpfs")
}

func ext4(t *testing.T) string {
	t.Helper()
	image := filepath.Join(t.TempDir(), "image")
	noErr(t, os.WriteFile(image, nil, 0o600))
	noErr(t, os.Truncate(image, 8<<20))
	runTool(t, "mkfs.ext4", "-q", "-m", "0", image)
	return mountAt(t, "-o", "loop", image)
}

// fullFileSystem fills it with a file of somebody else's.
func (p faultProgram) fullFileSystem(t *testing.T, folder string) {
	db := filepath.Join(folder, "test.db")
	p.users(t, db, "frodo", "sam")
	s := startFault(t, p.command(db))
	ballast := filepath.Join(folder, "ballast")
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
		if err := os.WriteFile(filepath.Join(folder, "more"), make([]byte, 8192), 0o600); err == nil {
			t.Fatal("it is not full")
		}
		os.Remove(filepath.Join(folder, "more"))
	}
	p.fillAndFree(t, db, s, fill, func() { noErr(t, os.Remove(ballast)) })

	// A server that is started while it is full reads as before.
	s = startFault(t, p.command(db))
	cookie := s.login("frodo", faultPassword).cookie
	s.kill()
	fill()
	s = startFault(t, p.command(db))
	if r := s.do("GET", "/ringsofpower", "", cookie); r.status != 200 {
		t.Errorf("started on a full disk: %d %s", r.status, r.body)
	}
	s.stop(t)
	noErr(t, os.Remove(ballast))
	s = startFault(t, p.command(db))
	if r := s.do("POST", "/ringsofpower", ringBody("after all that"), cookie); r.status != 201 {
		t.Errorf("after space was freed: %d %s", r.status, r.body)
	}
	s.stop(t)
	store, err := openStore(db)
	noErr(t, err)
	defer store.close()
	if left, _ := filepath.Glob(db + ".*"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// traced runs the program's first start under strace, in as few threads as can
// be, because strace counts the calls of each.
func (p faultProgram) traced(db string, args ...string) *exec.Cmd {
	direct := p.command(db)
	cmd := withKey(exec.Command("strace", append(append([]string{"-f", "-q"}, args...), direct.Args...)...))
	cmd.Env = append(cmd.Env, "GOMAXPROCS=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd
}

// killedAtEachCall kills the first start at the first, second, … call of every
// kind that it makes, until one start gets through.
func (p faultProgram) killedAtEachCall(t *testing.T) {
	kills, refusals := 0, map[string]int{}
	for _, call := range []string{"openat", "flock", "pwrite64", "pread64", "ftruncate", "fdatasync", "fsync", "mmap", "munmap", "fstat", "newfstatat",
		"linkat", "unlinkat", "renameat", "mkdirat", "fchmodat", "close", "bind", "listen"} {
		misses := 0
		for n := 1; misses < 2 && n < 60; n++ {
			db := filepath.Join(t.TempDir(), "test.db")
			cmd := p.traced(db, "-o", "/dev/null", "-e", "trace="+call, "-e", fmt.Sprintf("inject=%s:signal=KILL:when=%d", call, n))
			out := &faultOutput{}
			cmd.Stderr = out
			noErr(t, cmd.Start())
			ended := make(chan struct{})
			go func() { cmd.Wait(); close(ended) }()
			eventuallyTrue(t, func() bool {
				select {
				case <-ended:
					return true
				default:
					return strings.Contains(out.String(), "msg=start")
				}
			})
			if strings.Contains(out.String(), "msg=start") {
				misses++
			} else {
				kills++
			}
			syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
			<-ended
			if strings.Contains(out.String(), "ringward: ") {
				refusals[out.String()]++
			}
			p.startsAnew(t, db)
			if t.Failed() {
				t.Fatalf("after a kill at %s number %d: %s", call, n, out)
			}
		}
	}
	t.Logf("killed at %d places", kills)
	if kills < 60 || len(refusals) > 0 {
		t.Errorf("killed at %d places only; refusals: %v", kills, refusals)
	}
}

// calls answers the system calls of a first start, in order, until it listens.
func (p faultProgram) calls(t *testing.T, db string, then func(s *faultServer)) []string {
	t.Helper()
	trace := filepath.Join(t.TempDir(), "trace")
	s := startFault(t, p.traced(db, "-y", "-o", trace, "-e", "trace=pwrite64,ftruncate,fdatasync,fsync,linkat,renameat,unlinkat,write"))
	eventuallyTrue(t, func() bool { return strings.Contains(s.stderr.String(), "msg=start") })
	if then != nil {
		then(s)
	}
	syscall.Kill(-s.Process.Pid, syscall.SIGKILL)
	<-s.exited
	content, err := os.ReadFile(trace)
	noErr(t, err)
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
func (p faultProgram) syncedInOrder(t *testing.T) {
	folder := t.TempDir()
	db := filepath.Join(folder, "test.db")
	calls := p.calls(t, db, nil)
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
	folderSynced, _ := find(`^fsync\(\d+<` + regexp.QuoteMeta(folder) + `>\) += 0`)
	told, _ := find(`^write\(2.*listening on`)
	if !(written < synced && synced < named && named < folderSynced && folderSynced < told) {
		t.Errorf("last write %d, last sync %d, named %d, folder synced %d, told %d in\n%s", written, synced, named, folderSynced, told, strings.Join(calls, "\n"))
	}
}

// syncedBeforeAnswered: between the first write of a change and its answer the
// data is synced, then the meta page written and synced.
func (p faultProgram) syncedBeforeAnswered(t *testing.T) {
	db := filepath.Join(t.TempDir(), "test.db")
	p.users(t, db, "frodo")
	calls := p.calls(t, db, func(s *faultServer) {
		cookie := s.login("frodo", faultPassword).cookie
		if r := s.do("POST", "/ringsofpower", ringBody("a marker of its own"), cookie); r.status != 201 {
			t.Errorf("%d %v", r.status, r.err)
		}
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

func (p faultProgram) readOnly(t *testing.T) {
	folder := tmpfs(t, "4m")
	db := filepath.Join(folder, "test.db")
	p.users(t, db, "frodo")
	runTool(t, "mount", "-o", "remount,ro", folder)
	p.refuses(t, p.command(db), "read-only file system")
	p.refuses(t, p.command(filepath.Join(folder, "new.db")), "read-only file system")
}

func (p faultProgram) immutable(t *testing.T) {
	db := filepath.Join(ext4(t), "test.db")
	p.users(t, db, "frodo")
	runTool(t, "chattr", "+i", db)
	defer runTool(t, "chattr", "-i", db)
	p.refuses(t, p.command(db), "not permitted")
}

// withoutLinks: where there are no hard links the file is made too.
func (p faultProgram) withoutLinks(t *testing.T) {
	db := filepath.Join(t.TempDir(), "test.db")
	s := startFault(t, p.traced(db, "-o", "/dev/null", "-e", "trace=linkat", "-e", "inject=linkat:error=EPERM"))
	if r := s.do("GET", "/healthz", "", ""); r.status != 200 {
		t.Errorf("/healthz: %d", r.status)
	}
	if left, _ := filepath.Glob(db + ".new*"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	syscall.Kill(-s.Process.Pid, syscall.SIGKILL)
	<-s.exited
	p.startsAnew(t, db)
}
