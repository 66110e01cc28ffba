// socket.go: the way of a command to the server that holds the database, which
// lets one process in: a Unix socket beside it that only its owner may open.
//
// On a connection the server first sends an empty message, which says that it
// will do what it is asked, also if it is told to stop meanwhile. The command
// then sends its request, and the server messages with output, the last of
// which says how it went.
package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

type message struct {
	Output []byte `json:",omitempty"`
	Done   bool   `json:",omitempty"`
	Error  string `json:",omitempty"`
}

// patience is how long a command waits for another command to let go of the
// file, or for a server that starts, stops or hangs.
const patience = 5 * time.Second

// socketPath is one for one database, whatever links lead to it.
func socketPath(db string) string {
	if target, err := filepath.EvalSymlinks(db); err == nil {
		db = target
	}
	return db + ".sock"
}

// listenSocket makes the socket with mode 0600, in place of one that a killed
// server has left. The caller holds the database.
func listenSocket(db string) (net.Listener, error) {
	path := socketPath(db)
	if there, err := os.Lstat(path); err == nil && there.Mode().Type() == fs.ModeSocket {
		conn, err := net.Dial("unix", path)
		if err == nil {
			conn.Close()
		}
		if !errors.Is(err, syscall.ECONNREFUSED) { // another program's, since ours is dead without the database
			return nil, fmt.Errorf("another program listens on %s", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	private := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { syscall.Fchmod(int(fd), 0o600) }) // before it has a name; Linux only
	}}
	listener, err := private.Listen(context.Background(), "unix", path)
	if errors.Is(err, syscall.EINVAL) {
		return nil, fmt.Errorf("%s: %w", path, errSocketPath)
	} else if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		listener.Close()
		return nil, err
	}
	return listener, nil
}

var errSocketPath = errors.New("the path is too long for a Unix socket: keep the database under a shorter one, or start in its folder")

// serveCommands returns when the listener is closed and the last command has
// its answer.
func (o *Operator) serveCommands(l net.Listener) {
	var running sync.WaitGroup
	defer running.Wait()
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		} else if err != nil { // too many open files
			o.Log.Error("no command can be accepted", "error", err)
			time.Sleep(time.Second)
			continue
		}
		running.Go(func() {
			defer conn.Close()
			o.serveCommand(conn)
		})
	}
}

func (o *Operator) serveCommand(conn net.Conn) {
	answer := json.NewEncoder(conn)
	var r commandCall
	conn.SetReadDeadline(time.Now().Add(patience))
	if answer.Encode(message{}) != nil || json.NewDecoder(conn).Decode(&r) != nil {
		return
	}
	out := bufio.NewWriterSize(writerFunc(func(b []byte) (int, error) {
		return len(b), answer.Encode(message{Output: b})
	}), 64<<10)
	err := o.run(r, out)
	err = cmp.Or(err, out.Flush())
	last := message{Done: true}
	if err != nil {
		last.Error = err.Error()
		if !errors.As(err, new(errInput)) {
			o.Log.Error("command failed", "command", r.Command, "error", err)
		}
	}
	answer.Encode(last)
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

func (o *Operator) run(r commandCall, out io.Writer) (err error) {
	found, more, ok := findCommand(strings.Fields(r.Command))
	if !ok || len(more) > 0 || !found.takes(r.Args) {
		return errInput("The server does not know this command: it has another version")
	}
	return found.run(o, r, out)
}

var (
	errNoServer = errors.New("no server answers at its socket")
	errBroken   = errors.New("the server broke off: look whether it was done")
)

// ask has a server do the request. It is errNoServer where none has begun.
func ask(ctx context.Context, path string, r commandCall, out io.Writer) error {
	conn, err := net.Dial("unix", path)
	if errors.Is(err, syscall.EINVAL) {
		return fmt.Errorf("%w: %w", errNoServer, errSocketPath)
	} else if err != nil {
		return errNoServer
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	conn.SetReadDeadline(time.Now().Add(patience))
	messages := json.NewDecoder(conn)
	var m message
	if messages.Decode(&m) != nil {
		return errNoServer
	}
	conn.SetReadDeadline(time.Time{})
	if json.NewEncoder(conn).Encode(r) != nil {
		return errBroken
	}
	for {
		m = message{}
		if messages.Decode(&m) != nil {
			if ctx.Err() != nil {
				return errors.New("interrupted: the server goes on with what it was asked to do")
			}
			return errBroken
		}
		if _, err := out.Write(m.Output); err != nil {
			return err
		}
		if m.Error != "" {
			return errors.New(m.Error)
		}
		if m.Done {
			return nil
		}
	}
}

// perform does the request with the database, or has the server do it.
func perform(ctx context.Context, c config, r commandCall, out io.Writer) error {
	if isPostgres(c.db) { // servers do not hold it
		return performHere(c, r, out)
	}
	for deadline := time.Now().Add(patience); ; { // each round takes a second: openBolt waits that long for the lock
		noAnswer := ask(ctx, socketPath(c.db), r, out)
		if !errors.Is(noAnswer, errNoServer) {
			return noAnswer
		}
		err := performHere(c, r, out)
		if !errors.Is(err, errInUse) {
			return err
		}
		if time.Now().After(deadline) || errors.Is(noAnswer, errSocketPath) || ctx.Err() != nil {
			return fmt.Errorf("%w, and %w", err, noAnswer)
		}
	}
}

func performHere(c config, r commandCall, out io.Writer) error {
	createsDB := r.Command == "user add" || r.Command == "user import"
	if _, err := os.Stat(c.db); errors.Is(err, fs.ErrNotExist) && !createsDB && !isPostgres(c.db) {
		return fmt.Errorf("there is no database %s (-db names another)", c.db)
	}
	store, err := openFullStore(c.db)
	if err != nil {
		return err
	}
	defer store.Close()
	auth, err := NewAuth(store, strings.Repeat("-", minKey)) // NewAuth wants a key, but commands start no session
	if err != nil {
		return err
	}
	auth.Cost, auth.keys = c.bcryptCost, nil
	if keys, err := signingKeys(); err == nil { // for the apps in a file of users; userImport refuses them without
		for _, key := range keys {
			auth.keys = append(auth.keys, newSigningKey(key))
		}
	}
	return (&Operator{auth, store, c.passwordMin, c.base(c.addr) + c.prefix, func() Tools { return c.tools }}).run(r, out)
}
