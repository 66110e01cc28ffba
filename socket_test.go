// socket_test.go tests the way of a command to the server that holds the
// database, and what becomes of it when either breaks off.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// acceptor is a listener of which one can see that nobody accepts any more.
type acceptor struct {
	net.Listener
	over chan struct{} // closed when that is so
}

func (a acceptor) Accept() (net.Conn, error) {
	conn, err := a.Listener.Accept()
	if errors.Is(err, net.ErrClosed) {
		close(a.over)
	}
	return conn, err
}

// serveCommands does so beside the database until stop, which returns when the
// last command is done.
func (s *accountServer) serveCommands() (listener acceptor, stop func()) {
	s.Helper()
	l, err := listenSocket(s.path)
	if err != nil {
		s.Fatal(err)
	}
	listener = acceptor{l, make(chan struct{})}
	done := make(chan struct{})
	go func() { s.operator.serveCommands(listener); close(done) }()
	stop = sync.OnceFunc(func() { l.Close(); <-done })
	s.Cleanup(stop)
	return listener, stop
}

// inFolder has its database in the folder that the test is in: the path of a
// socket must be short.
func inFolder(t *testing.T) *accountServer {
	t.Helper()
	t.Chdir(t.TempDir())
	return newAccountServerAt(t, "test.db")
}

// greeted connects and waits for the first message.
func greeted(t *testing.T, path string) (net.Conn, *json.Decoder) {
	t.Helper()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	messages := json.NewDecoder(conn)
	var first message
	if err := messages.Decode(&first); err != nil || first.Output != nil || first.Done || first.Error != "" {
		t.Fatalf("greeted with %+v, %v", first, err)
	}
	return conn, messages
}

func TestSocketIsItsOwnersOnly(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, umask := range []int{0, 0o022, 0o777} {
		old := syscall.Umask(umask)
		l, err := listenSocket("test.db")
		syscall.Umask(old)
		if err != nil {
			t.Fatal(err)
		}
		if file, err := os.Lstat("test.db.sock"); err != nil || file.Mode() != fs.ModeSocket|0o600 {
			t.Errorf("umask %o: %v, %v", umask, file.Mode(), err)
		}
		l.Close()
		if _, err := os.Lstat("test.db.sock"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("it is left behind: %v", err)
		}
	}
}

// What a killed server left is replaced; nothing else is.
func TestSocketTakesNobodysPlace(t *testing.T) {
	const path = "test.db.sock"
	listens := func(c io.Closer, err error) error {
		if err == nil {
			t.Cleanup(func() { c.Close() })
		}
		return err
	}
	for name, put := range map[string]func() error{
		"a file":                   func() error { return os.WriteFile(path, []byte("of another"), 0o644) },
		"a folder":                 func() error { return os.Mkdir(path, 0o755) },
		"a link":                   func() error { return os.Symlink("elsewhere", path) },
		"a pipe":                   func() error { return syscall.Mkfifo(path, 0o644) },
		"another program's socket": func() error { return listens(net.Listen("unix", path)) },
		"one of another kind":      func() error { return listens(net.Listen("unixpacket", path)) },
		"one for datagrams": func() error {
			return listens(net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"}))
		},
		"what a killed server left": func() error {
			l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
			if err == nil {
				l.SetUnlinkOnClose(false)
				err = l.Close()
			}
			return err
		},
	} {
		t.Chdir(t.TempDir())
		err := put()
		was, failed := os.Lstat(path)
		if err := errors.Join(err, failed); err != nil {
			t.Fatal(name, err)
		}
		l, err := listenSocket("test.db")
		if name == "what a killed server left" {
			if err != nil {
				t.Fatal(name, err)
			}
			if conn, err := net.Dial("unix", path); err != nil {
				t.Errorf("%s: %v", name, err)
			} else {
				conn.Close()
			}
			l.Close()
			continue
		}
		is, gone := os.Lstat(path)
		if err == nil || gone != nil || !os.SameFile(was, is) || is.Mode() != was.Mode() || is.ModTime() != was.ModTime() {
			t.Errorf("%s: %v; was %v, is %v, %v", name, err, was, is, gone)
		}
	}
}

// A server starts whatever is in the place of its socket, says so, and leaves it.
func TestServerWithoutItsSocket(t *testing.T) {
	t.Chdir(t.TempDir())
	for name, text := range map[string]string{"libtool.so": "a library", "libtool.sock": "a file of another"} {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	base, stderr, stop := serveForTest(t, "-db", "libtool")
	if response, err := http.Get(base + "/healthz"); err != nil || response.Body.Close() != nil || response.StatusCode != http.StatusOK {
		t.Errorf("got %v, %v", response, err)
	}
	synctest.Test(t, func(t *testing.T) {
		err := run(t.Context(), []string{"-db", "libtool", "user", "list"}, nil, io.Discard, io.Discard)
		if !errors.Is(err, errInUse) || !errors.Is(err, errNoServer) || exitCode(err) != 1 {
			t.Errorf("a command: %v", err)
		}
	})
	if err := stop(); err != nil || !strings.Contains(stderr.String(), "warning: commands will not reach this server: ") {
		t.Errorf("%v, and it said\n%s", err, stderr)
	}
	for name, want := range map[string]string{"libtool.so": "a library", "libtool.sock": "a file of another"} {
		if text, err := os.ReadFile(name); string(text) != want || err != nil {
			t.Errorf("%s: %q, %v", name, text, err)
		}
	}
	if err := run(t.Context(), []string{"-db", "libtool", "user", "list"}, nil, io.Discard, io.Discard); err != nil {
		t.Errorf("after the server: %v", err)
	}
}

func TestSocketPathTooLong(t *testing.T) {
	folder, err := os.MkdirTemp("", "rw")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(folder)
	for length, fits := range map[int]bool{107: true, 108: false} { // sun_path of Linux
		db := filepath.Join(folder, strings.Repeat("x", length-len(folder)-len("/.sock")))
		l, err := listenSocket(db)
		if (err == nil) != fits || !fits && !errors.Is(err, errSocketPath) {
			t.Errorf("%d bytes: got %v", length, err)
		}
		if err == nil {
			l.Close()
		}
		if fits {
			continue
		}
		store, err := OpenStore(db)
		if err != nil {
			t.Fatal(err)
		}
		begun := lastCommit(t, store)
		synctest.Test(t, func(t *testing.T) { // a command does not wait for what will not be
			start := time.Now()
			err := run(t.Context(), []string{"-db", db, "user", "add", "frodo"}, nil, io.Discard, io.Discard)
			if !errors.Is(err, errInUse) || !errors.Is(err, errSocketPath) || strings.Contains(err.Error(), "\n") || time.Since(start) > 2*time.Second {
				t.Errorf("got %v after %v", err, time.Since(start))
			}
		})
		if n := lastCommit(t, store) - begun; n != 0 {
			t.Errorf("%d transactions", n)
		}
		store.Close()
	}
}

// A database has one socket, whatever links lead to it.
func TestCommandByALink(t *testing.T) {
	s := inFolder(t)
	s.serveCommands()
	if err := errors.Join(os.Symlink("test.db", "link.db"), os.Symlink("link.db", "link2.db")); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := perform(t.Context(), config{db: "link2.db"}, commandCall{Command: "user list"}, &out); err != nil || !strings.Contains(out.String(), "frodo") {
		t.Error(out.String(), err)
	}
}

// A server that is told to stop has greeted some commands, which it does; those
// that wait in the queue of its listener do it themselves.
func TestCommandsMeetAStop(t *testing.T) {
	s := inFolder(t)
	listener, stop := s.serveCommands()
	conn, messages := greeted(t, "test.db.sock")
	listener.Close()
	<-listener.over
	if err := json.NewEncoder(conn).Encode(commandCall{Command: "user add", Args: []string{"merry"}}); err != nil {
		t.Fatal(err)
	}
	var output, last message
	if err := errors.Join(messages.Decode(&output), messages.Decode(&last)); err != nil || !strings.Contains(string(output.Output), "/auth/invite#") || !last.Done || last.Error != "" {
		t.Errorf("got %s, %+v, %v", output.Output, last, err)
	}
	stop()
	if _, err := s.store.user("merry"); err != nil {
		t.Error(err)
	}
	s.store.Close()

	// Nobody accepts: when the command has connected, it waits in the queue.
	l, err := listenSocket("test.db")
	if err != nil {
		t.Fatal(err)
	}
	queued := false
	ctx := askedContext{t.Context(), func() { queued = true; l.Close() }}
	if err := perform(ctx, config{db: "test.db", bcryptCost: 10}, commandCall{Command: "user add", Args: []string{"pippin"}}, io.Discard); err != nil || !queued {
		t.Errorf("%v, in the queue: %t", err, queued)
	}
	if _, err := openAccountServer(t, "test.db").store.user("pippin"); err != nil {
		t.Error(err)
	}
}

// askedContext tells when somebody wants to know of its end, which ask does
// when it has a connection.
type askedContext struct {
	context.Context
	asked func()
}

func (c askedContext) Done() <-chan struct{} {
	c.asked()
	return c.Context.Done()
}

// Whatever comes instead of a request, the others are served.
func TestHalfRequests(t *testing.T) {
	s := inFolder(t)
	_, stop := s.serveCommands()
	for _, sent := range []string{"", "{", `{"Command":"user add","Args":["mer`, "GET / HTTP/1.1\r\n\r\n", "\x00\xff", `"user list"`, `{"Command":7}`,
		`{"Command":"user list"`, strings.Repeat("[", 100_000)} {
		conn, messages := greeted(t, "test.db.sock")
		io.WriteString(conn, sent)
		conn.(*net.UnixConn).CloseWrite()
		var m message
		if err := messages.Decode(&m); err == nil {
			t.Errorf("%.40q: got %+v", sent, m)
		}
	}
	// These are whole, and of a program that knows another table of commands.
	for _, sent := range []string{`{}`, `{"Command":""}`, `{"Command":"user"}`, `{"Command":"user explode","Args":["x"]}`, `{"Command":"user list all"}`,
		`{"Command":"user add"}`, `{"Command":"user add","Args":["a","b"]}`, `{"Command":"user import","Input":""}`, `{"Command":"token add","Args":["frodo"]}`,
		`{"Command":"token list","Args":["a","b"]}`, `{"Command":"session end"}`} {
		conn, messages := greeted(t, "test.db.sock")
		io.WriteString(conn, sent)
		var m message
		if err := messages.Decode(&m); err != nil || !m.Done || !strings.Contains(m.Error, "another version") {
			t.Errorf("%s: got %+v, %v", sent, m, err)
		}
	}
	var out bytes.Buffer
	if err := perform(t.Context(), config{db: "test.db"}, commandCall{Command: "user list"}, &out); err != nil || strings.Count(out.String(), "\n") != 3 {
		t.Error(out.String(), err)
	}
	stop()
	if s.log.Len() > 0 {
		t.Errorf("the log has %s", s.log)
	}
}

// Who connects and says nothing is not waited for.
func TestSilentCommand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newAccountServer(t)
		here, there := net.Pipe()
		start := time.Now()
		go func() { s.operator.serveCommand(there); there.Close() }()
		io.Copy(io.Discard, here)
		if took := time.Since(start); took != patience {
			t.Errorf("held for %v", took)
		}
		s.store.Close()
	})
}

// A server that is told to stop waits for the commands that it has greeted.
func TestServerWaitsForItsCommands(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newAccountServer(t)
		here, there := net.Pipe()
		accepted, ended := false, false
		go func() {
			s.operator.serveCommands(acceptFunc(func() (net.Conn, error) {
				if accepted {
					return nil, net.ErrClosed
				}
				accepted = true
				return there, nil
			}))
			ended = true
		}()
		messages := json.NewDecoder(here)
		var m message
		if err := messages.Decode(&m); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if ended {
			t.Error("it has ended before its command")
		}
		json.NewEncoder(here).Encode(commandCall{Command: "user unlock", Args: []string{"frodo"}})
		for err := error(nil); err == nil && !m.Done; {
			err = messages.Decode(&m)
		}
		synctest.Wait()
		if !m.Done || m.Error != "" || !ended {
			t.Errorf("got %+v, ended: %t", m, ended)
		}
		s.store.Close()
	})
}

// Too many open files pass.
func TestAcceptThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newAccountServer(t)
		failures := 3
		s.operator.serveCommands(acceptFunc(func() (net.Conn, error) {
			if failures--; failures < 0 {
				return nil, net.ErrClosed
			}
			return nil, syscall.EMFILE
		}))
		if n := strings.Count(s.log.String(), "too many open files"); n != 3 {
			t.Errorf("%d lines:\n%s", n, s.log)
		}
		s.store.Close()
	})
}

type acceptFunc func() (net.Conn, error)

func (f acceptFunc) Accept() (net.Conn, error) { return f() }
func (f acceptFunc) Close() error              { return nil }
func (f acceptFunc) Addr() net.Addr            { return nil }

// An output of many messages is the same as one written in this process.
func TestLargeOutput(t *testing.T) {
	s := inFolder(t)
	if _, err := s.imports(manyUsers("user", 5000)); err != nil {
		t.Fatal(err)
	}
	s.serveCommands()
	for _, r := range []commandCall{{Command: "user list"}, {Command: "user list", JSON: true}} {
		var here, there bytes.Buffer
		err := errors.Join(s.operator.run(r, &here), perform(t.Context(), config{db: "test.db"}, r, &there))
		if err != nil || there.Len() < 2*64<<10 || !bytes.Equal(here.Bytes(), there.Bytes()) {
			t.Errorf("%v: %d bytes here, %d there, %v", r, here.Len(), there.Len(), err)
		}
	}
}

// What a client has asked for is done, and whatever it does meanwhile, others
// are served.
func TestClientThatGoes(t *testing.T) {
	s := inFolder(t)
	_, stop := s.serveCommands()
	if _, err := s.imports(manyUsers("user", 5000)); err != nil { // a list of more than a socket takes
		t.Fatal(err)
	}
	s.log.Reset()
	for _, r := range []commandCall{
		{Command: "user list"},
		{Command: "user add", Args: []string{"merry"}},
		{Command: "user import", Args: []string{"FILE"}, Input: []byte(manyUsers("late", 1000))},
	} {
		conn, _ := greeted(t, "test.db.sock")
		if err := json.NewEncoder(conn).Encode(r); err != nil {
			t.Fatal(err)
		}
		conn.Close()
	}
	stalled, _ := greeted(t, "test.db.sock") // and one that does not read
	if err := json.NewEncoder(stalled).Encode(commandCall{Command: "user list"}); err != nil {
		t.Fatal(err)
	}
	if err := perform(t.Context(), config{db: "test.db"}, commandCall{Command: "user add", Args: []string{"pippin"}}, io.Discard); err != nil {
		t.Error(err)
	}
	// A command whose own output fails says that.
	full := errors.New("no space left on device")
	err := perform(t.Context(), config{db: "test.db"}, commandCall{Command: "user list"}, writerFunc(func([]byte) (int, error) { return 0, full }))
	if !errors.Is(err, full) {
		t.Errorf("got %v", err)
	}
	stalled.Close()
	stop()
	for _, name := range []string{"merry", "pippin", "late0", "late999"} {
		if _, err := s.store.user(name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if strings.Contains(s.log.String(), "panic") {
		t.Error(s.log)
	}
}

// fakeServer has serve respond to each command at the socket of the database
// whose path it returns.
func fakeServer(t *testing.T, serve func(conn net.Conn)) (db string) {
	t.Helper()
	t.Chdir(t.TempDir())
	l, err := listenSocket("test.db")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for conn, err := l.Accept(); err == nil; conn, err = l.Accept() {
			serve(conn)
			conn.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return "test.db"
}

// takes is a server that greets and reads the request.
func takes(conn net.Conn) (responses *json.Encoder) {
	responses = json.NewEncoder(conn)
	responses.Encode(message{})
	json.NewDecoder(conn).Decode(&commandCall{})
	return responses
}

// Before a server has taken the request nothing is lost, after that nobody
// knows.
func TestServerThatGoes(t *testing.T) {
	add := func(ctx context.Context, db string) error {
		return run(ctx, []string{"-db", db, "user", "add", "frodo"}, nil, io.Discard, io.Discard)
	}
	for name, c := range map[string]struct {
		serve func(net.Conn)
		want  error
	}{
		"at once":               {func(net.Conn) {}, nil},
		"in what is no message": {func(conn net.Conn) { io.WriteString(conn, "HTTP/1.1 400 Bad Request\r\n\r\n") }, nil},
		"with the request":      {func(conn net.Conn) { takes(conn) }, errBroken},
		"after a part":          {func(conn net.Conn) { takes(conn).Encode(message{Output: []byte("half")}) }, errBroken},
		"in a message":          {func(conn net.Conn) { takes(conn); io.WriteString(conn, `{"Done":tr`) }, errBroken},
	} {
		db := fakeServer(t, c.serve)
		err := add(t.Context(), db)
		if !errors.Is(err, c.want) || c.want != nil && exitCode(err) != 1 {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
		if _, err := os.Lstat(db); (err == nil) != (c.want == nil) {
			t.Errorf("%s: the command did it itself: %t", name, err == nil)
		}
	}
	// One that takes the request and says nothing is waited for until Ctrl-C.
	ctx, interrupt := context.WithCancel(t.Context())
	db := fakeServer(t, func(conn net.Conn) { takes(conn); interrupt(); io.Copy(io.Discard, conn) })
	if err := add(ctx, db); err == nil || !strings.Contains(err.Error(), "interrupted") {
		t.Errorf("interrupted: got %v", err)
	}
}
