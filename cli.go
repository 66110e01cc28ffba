// cli.go: the commands. Each is a client of the operator's API (admin.go) and
// makes one request: over the Unix socket beside the database when a server
// holds the file, in this process when none does. What it prints is the same
// either way, and is printed when the database is free again.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
)

// command is one line of the table in help.
type command struct {
	words    string // "user add"
	min, max int    // how many arguments
	run      func(*cli, []string) error
}

var commands = []command{
	{"user add", 1, 1, (*cli).userAdd},
	{"user invite", 1, 1, func(c *cli, args []string) error { return c.invite("/users/invite", args[0]) }},
	{"user list", 0, 0, (*cli).userList},
	{"user remove", 1, 1, act("/users/remove", "user", "user removed")},
	{"user disable", 1, 1, act("/users/disable", "user", "user disabled")},
	{"user enable", 1, 1, act("/users/enable", "user", "user enabled")},
	{"user unlock", 1, 1, (*cli).userUnlock},
	{"user import", 1, 1, (*cli).userImport},
	{"token add", 2, 2, (*cli).tokenAdd},
	{"token list", 0, 1, (*cli).tokenList},
	{"token remove", 1, 1, act("/tokens/remove", "id", "token removed")},
	{"session list", 0, 1, (*cli).sessionList},
	{"session end", 1, 1, act("/sessions/end", "id", "session ended")},
	{"session end-all", 1, 1, act("/sessions/end-all", "user", "all sessions ended")},
	{"backup", 1, 1, (*cli).backup},
}

// cli is one command.
type cli struct {
	config
	ctx    context.Context
	makes  bool // users, and so the database where there is none
	stdin  io.Reader
	stdout io.Writer
}

// runCommand does what the words say.
func runCommand(ctx context.Context, c config, words []string, stdin io.Reader, stdout, stderr io.Writer) error {
	switch {
	case words[0] == "help":
		_, err := io.WriteString(stdout, help)
		return err
	case len(words) == 1 && words[0] == "version":
		_, err := fmt.Fprintln(stdout, "ringward", version(), runtime.Version())
		return err
	case words[0] == "migrate":
		return migrate(c, words[1:], stdout)
	}
	for _, cmd := range commands {
		n := len(strings.Fields(cmd.words))
		if len(words) < n || strings.Join(words[:n], " ") != cmd.words {
			continue
		}
		args := words[n:]
		if len(args) < cmd.min || len(args) > cmd.max {
			return usagef("ringward %s takes %s; see ringward help", cmd.words, count(cmd.min, cmd.max))
		}
		if c.passwordFromStdin && cmd.words != "user add" || c.asJSON && !strings.HasSuffix(cmd.words, " list") {
			return usagef("ringward %s does not have that flag; see ringward help", cmd.words)
		}
		makes := cmd.words == "user add" || cmd.words == "user import"
		return cmd.run(&cli{c, ctx, makes, stdin, stdout}, args)
	}
	return usagef("there is no command %q; see ringward help", strings.Join(words, " "))
}

// commandFlags takes the flags of commands out of the words.
func (c *config) commandFlags(words []string) (plain []string, err error) {
	for i, word := range words {
		switch {
		case word == "--":
			return append(plain, words[i+1:]...), nil
		case word == "-json", word == "--json":
			c.asJSON = true
		case word == "-password-stdin", word == "--password-stdin":
			c.passwordFromStdin = true
		case word == "-h", word == "-help", word == "--help":
			return []string{"help"}, nil
		case strings.HasPrefix(word, "-"):
			return nil, usagef("%s is not a flag of a command, and other flags come before it (after -- it is no flag); see ringward help", word)
		default:
			plain = append(plain, word)
		}
	}
	return plain, nil
}

func count(least, most int) string {
	switch {
	case most == 0:
		return "no argument"
	case least == most && most == 1:
		return "one argument"
	case least == most:
		return fmt.Sprint(most, " arguments")
	}
	return fmt.Sprint(least, " to ", most, " arguments")
}

// migrate copies a bbolt file into a PostgreSQL database.
func migrate(c config, args []string, stdout io.Writer) error {
	if len(args) != 1 || !isPostgres(args[0]) {
		return usagef("ringward migrate takes one argument, a postgres:// URL")
	}
	if migrateTo == nil {
		return usagef("this ringward has no PostgreSQL: build it with go build -tags postgres")
	}
	if isPostgres(c.db) {
		return usagef("-db names the file to migrate, not a postgres:// URL")
	}
	if _, err := os.Stat(c.db); err != nil {
		return err
	}
	from, err := openStore(c.db) // what a running server would still write must not be left behind
	if errors.Is(err, errInUse) {
		return fmt.Errorf("stop the server first: %w", err)
	} else if err != nil {
		return err
	}
	defer from.close()
	report, err := migrateTo(from, args[0])
	if err == nil {
		_, err = fmt.Fprintln(stdout, report)
	}
	return err
}

// send does one request and copies what it answers. The database is free again
// when it returns.
func (c *cli) send(method, path string, query url.Values, body io.Reader, answer io.Writer) error {
	conn, stop, err := c.connect()
	if err != nil {
		return err
	}
	defer stop()
	client := http.Client{Transport: &http.Transport{
		DialContext: func(context.Context, string, string) (net.Conn, error) { return conn, nil },
	}}
	r, err := http.NewRequestWithContext(c.ctx, method, "http://localhost"+path+"?"+query.Encode(), body)
	if err != nil {
		return err
	}
	w, err := client.Do(r)
	if err != nil {
		return fmt.Errorf("no answer from the server: %w", errors.Unwrap(err)) // which names the address
	}
	defer w.Body.Close()
	if w.StatusCode == http.StatusOK {
		if _, err := io.Copy(answer, w.Body); err != nil {
			return fmt.Errorf("the server's answer: %w", err)
		}
		return nil
	}
	var failure struct{ Errors []struct{ Title string } }
	if err := json.NewDecoder(w.Body).Decode(&failure); err != nil || len(failure.Errors) == 0 {
		return errors.New(w.Status)
	}
	return errors.New(failure.Errors[0].Title)
}

// ask is send for an answer in the envelope.
func (c *cli) ask(method, path string, query url.Values, body io.Reader, data any) error {
	var answer bytes.Buffer
	if err := c.send(method, path, query, body, &answer); err != nil {
		return err
	}
	return json.Unmarshal(answer.Bytes(), &struct{ Data any }{data})
}

// act is a command that does one thing to what its argument names.
func act(path, names, done string) func(*cli, []string) error {
	return func(c *cli, args []string) error {
		if err := c.ask("POST", path, url.Values{names: args}, nil, nil); err != nil {
			return err
		}
		return c.done(done, args[0])
	}
}

func (c *cli) done(what, whom string) error {
	_, err := fmt.Fprintf(c.stdout, "%s: %s\n", what, strings.ToLower(whom))
	return err
}

// link is the invite's, at the public address if we are told one.
func (i inviteView) link(base string) string {
	if base == "" {
		base = i.Base
	}
	return base + "/auth/invite#" + i.Token
}

func (c *cli) invite(path, user string) error {
	var i inviteView
	if err := c.ask("POST", path, url.Values{"user": {user}}, nil, &i); err != nil {
		return err
	}
	base := ""
	if c.public != nil {
		base = c.public.String()
	}
	_, err := fmt.Fprintln(c.stdout, i.link(base))
	return err
}

func (c *cli) userAdd(args []string) error {
	if !c.passwordFromStdin {
		return c.invite("/users", args[0])
	}
	signal.Reset(os.Interrupt, syscall.SIGTERM)          // who waits for a password has nothing to finish
	b, err := io.ReadAll(io.LimitReader(c.stdin, 1<<20)) // far over maxPassword
	if err != nil {
		return err
	}
	query := url.Values{"user": args, "password": {"body"}}
	if err := c.ask("POST", "/users", query, strings.NewReader(trimNewline(string(b))), nil); err != nil {
		return err
	}
	return c.done("user added", args[0])
}

func (c *cli) userUnlock(args []string) error {
	if isPostgres(c.db) {
		return errors.New("wrong passwords are counted in the memory of each server on a PostgreSQL database, " +
			"which no command reaches: wait 15 minutes, or restart the servers")
	}
	return act("/users/unlock", "user", "user unlocked")(c, args)
}

func (c *cli) userImport(args []string) error {
	file, err := os.ReadFile(args[0])
	if err != nil {
		return err
	}
	var result importView
	if err := c.ask("POST", "/users/import", nil, bytes.NewReader(file), &result); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(c.stdout, "users imported: %d\n", result.Imported); err != nil {
		return err
	}
	if n := len(result.Refused); n > 0 {
		return fmt.Errorf("%s: lines refused: %d\n%s", args[0], n, strings.Join(result.Refused, "\n"))
	}
	return nil
}

func (c *cli) tokenAdd(args []string) error {
	var t tokenView
	if err := c.ask("POST", "/tokens", url.Values{"user": args[:1], "name": args[1:]}, nil, &t); err != nil {
		return err
	}
	_, err := fmt.Fprintln(c.stdout, t.Token)
	return err
}

func (c *cli) userList([]string) error {
	return list(c, "/users", nil, "NAME\tSTATE\tCREATED", func(u userView) []string {
		return []string{u.Username, u.State, stamp(&u.Created)}
	})
}

func (c *cli) tokenList(user []string) error {
	return list(c, "/tokens", user, "ID\tUSER\tCREATED\tEXPIRES\tLAST USED\tNAME", func(t tokenView) []string {
		return []string{t.ID, t.User, stamp(&t.Created), stamp(t.Expires), stamp(t.LastUsed), printable(t.Name)}
	})
}

func (c *cli) sessionList(user []string) error {
	return list(c, "/sessions", user, "ID\tUSER\tCREATED\tLAST SEEN\tEXPIRES\tADDRESS\tBROWSER", func(s sessionView) []string {
		return []string{s.ID, s.User, stamp(&s.Created), stamp(&s.LastSeen), stamp(&s.Expires), s.RemoteAddr, strings.ToValidUTF8(cut(s.UserAgent, 60), "")}
	})
}

// list prints a table, or with -json the array as the API has it.
func list[T any](c *cli, path string, user []string, heads string, row func(T) []string) error {
	query := url.Values{}
	if len(user) > 0 {
		query["user"] = user
	}
	var data json.RawMessage
	if err := c.ask("GET", path, query, nil, &data); err != nil {
		return err
	}
	if c.asJSON {
		_, err := fmt.Fprintf(c.stdout, "%s\n", data)
		return err
	}
	var all []T
	if err := json.Unmarshal(data, &all); err != nil {
		return err
	}
	table := tabwriter.NewWriter(c.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, heads)
	for _, item := range all {
		cells := row(item)
		for i, cell := range cells {
			if cell == "" {
				cells[i] = "-" // so that a script can count columns
			}
		}
		fmt.Fprintln(table, strings.Join(cells, "\t"))
	}
	return table.Flush()
}

func stamp(t *time.Time) string {
	if t == nil {
		return "never"
	}
	return t.UTC().Format(time.RFC3339)
}

func (c *cli) backup(args []string) error {
	if isPostgres(c.db) { // whether or not it can be reached
		return errors.New("a PostgreSQL database is backed up with pg_dump")
	}
	path := args[0]
	if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("%s is there already", path)
	}
	temp, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(temp.Name())
	err = temp.Chmod(0o600) // whatever the umask took away
	if err == nil {
		err = c.send("GET", "/backup", nil, nil, temp)
	}
	if err := errors.Join(err, temp.Sync(), temp.Close()); err != nil {
		return err
	}
	if err := publish(temp.Name(), path); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	_, err = fmt.Fprintf(c.stdout, "backup made: %s\n", path)
	return err
}

// The way to the operator's API.

// socketPath is one for one database, whatever links lead to it.
func socketPath(db string) string {
	if target, err := filepath.EvalSymlinks(db); err == nil {
		db = target
	}
	return db + ".sock"
}

var errSocketPath = errors.New("the path is too long for a Unix socket: keep the database under a shorter one, or start in its folder")

// listenSocket makes the socket with mode 0600 in place of what a killed server
// left there. The caller holds the database.
func listenSocket(db string) (net.Listener, error) {
	path := socketPath(db)
	// Made where nobody else may enter, because its mode is set when it is
	// there. This path is as long as the other: both fit or neither.
	folder := strings.TrimSuffix(path, "ck")
	temp := folder + "/k"
	os.Remove(temp)
	os.Remove(folder)
	err := os.Mkdir(folder, 0o700)
	if err == nil {
		err = os.Chmod(folder, 0o700) // whatever the umask took away
	}
	if err != nil {
		return nil, err
	}
	defer os.Remove(folder)
	listener, err := net.Listen("unix", temp)
	if errors.Is(err, syscall.EINVAL) {
		return nil, fmt.Errorf("%s: %w", path, errSocketPath)
	} else if err != nil {
		return nil, err
	}
	listener.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(temp, 0o600), os.Rename(temp, path)); err != nil {
		listener.Close()
		os.Remove(temp)
		return nil, err
	}
	return greeter{listener}, nil
}

// greeter sends a byte to whoever is accepted. A command that has read it is
// answered even by a server that stops just then; one that waits for it in the
// queue of a listener that closes has asked for nothing yet, and tries again.
type greeter struct{ net.Listener }

func (l greeter) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err == nil {
		conn.Write([]byte{'!'})
	}
	return conn, err
}

func greeted(path string, deadline time.Time) (net.Conn, error) {
	conn, err := net.Dial("unix", path)
	if err != nil {
		return nil, err
	}
	conn.SetReadDeadline(deadline)
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		conn.Close()
		return nil, err
	}
	conn.SetReadDeadline(time.Time{})
	return conn, nil
}

// patience is how long a command waits for another command to let go of the
// file, or for a server that starts, stops or hangs.
const patience = 5 * time.Second

// connect answers a connection to the operator's API, and what ends it.
func (c *cli) connect() (net.Conn, func(), error) {
	if isPostgres(c.db) {
		return c.inProcess()
	}
	path := socketPath(c.db)
	for deadline := time.Now().Add(patience); ; {
		conn, away := greeted(path, deadline)
		if away == nil {
			return conn, func() { conn.Close() }, nil
		}
		conn, stop, err := c.inProcess()
		switch {
		case !errors.Is(err, errInUse):
			return conn, stop, err
		case errors.Is(away, syscall.EINVAL):
			return nil, nil, fmt.Errorf("%w, and cannot be reached at %s: %w", err, path, errSocketPath)
		case time.Now().After(deadline) || c.ctx.Err() != nil:
			return nil, nil, fmt.Errorf("%w, which does not answer: %w", err, away)
		}
	}
}

// inProcess serves the operator's API to ourselves.
func (c *cli) inProcess() (net.Conn, func(), error) {
	if _, err := os.Stat(c.db); errors.Is(err, fs.ErrNotExist) && !c.makes && !isPostgres(c.db) {
		return nil, nil, fmt.Errorf("there is no database %s (-db names another)", c.db)
	}
	store, err := openFullStore(c.db)
	if err != nil {
		return nil, nil, err
	}
	auth, err := newAuth(store, strings.Repeat("-", minKey)) // signs nothing: commands start no session
	if err != nil {
		store.close()
		return nil, nil, err
	}
	auth.Cost, auth.MinLength, auth.weak = c.bcryptCost, c.passwordMin, weakPassword
	admin := &Admin{Auth: auth, store: store, base: c.base(c.addr)}
	server := &http.Server{Handler: admin.handler()}
	ours, theirs := net.Pipe()
	listener := make(oneConn, 1)
	listener <- theirs
	go server.Serve(listener)
	return ours, func() { server.Close(); store.close() }, nil
}

// oneConn is a net.Listener that accepts the connection it holds, and no other.
type oneConn chan net.Conn

func (l oneConn) Accept() (net.Conn, error) {
	if conn, ok := <-l; ok {
		return conn, nil
	}
	return nil, net.ErrClosed
}

func (l oneConn) Close() error   { close(l); return nil }
func (l oneConn) Addr() net.Addr { return &net.UnixAddr{Net: "pipe"} }
