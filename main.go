// Ringward is local login for small internal tools: one process, one file.
//
//	SECRET_KEY=$(openssl rand -hex 32) go run .
//
// Users and sessions are kept in an embedded bbolt database, sessions travel
// in a signed cookie, and RequireLogin stands around what is precious.
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends us at once
	signal.Ignore(syscall.SIGPIPE)
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(400) // of a few MB: 100 takes a tenth of the CPU under load
	}
	err := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	if err != nil {
		fmt.Fprintln(os.Stderr, "ringward:", err)
	}
	os.Exit(exitCode(err))
}

// errUsage is a wrong command line or configuration.
type errUsage struct{ error }

func usagef(format string, args ...any) error { return errUsage{fmt.Errorf(format, args...)} }

func exitCode(err error) int {
	switch {
	case err == nil:
		return 0
	case errors.As(err, &errUsage{}):
		return 2
	}
	return 1
}

// run is the program. It serves until ctx is done, or runs one command.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	c, words, err := parseConfig(args)
	if err != nil {
		return err
	}
	if len(words) > 0 {
		return runCommand(ctx, c, words, stdin, stdout)
	}
	keys, err := signingKeys()
	if err != nil {
		return err
	}
	lines := newLineWriter()
	go lines.run(stderr)
	defer lines.end()
	return serve(ctx, c, keys, lines)
}

// fullStore is all that the server needs of its store.
type fullStore interface {
	adminStore
	factorStore
	ringStore
}

var (
	// openPostgres is set by the build tag postgres.
	openPostgres func(url string) (fullStore, error)
	// migrateTo, set likewise, copies all that a bbolt store holds into an
	// empty PostgreSQL database and says what it copied.
	migrateTo func(from *BoltStore, url string) (report string, err error)
)

func isPostgres(db string) bool {
	return strings.HasPrefix(db, "postgres://") || strings.HasPrefix(db, "postgresql://")
}

func openFullStore(db string) (fullStore, error) {
	if isPostgres(db) {
		return openPostgres(db) // parseConfig has seen that there is one
	}
	return OpenStore(db)
}

const (
	drain      = 10 * time.Second // for requests that run when we are told to stop
	sweepEvery = time.Minute
)

// serve listens, and undoes what it began in the order opposite to that in
// which it began it, also when it fails half-way.
func serve(ctx context.Context, c config, keys []string, stderr io.Writer) (err error) {
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP) // before all that may take long: it would end us
	defer signal.Stop(hangup)
	log := newLogger(stderr, c.log == "json")
	say := func(format string, args ...any) { // what an operator waits for
		if c.log == "json" {
			log.Info(fmt.Sprintf(format, args...))
		} else {
			fmt.Fprintf(stderr, format+"\n", args...)
		}
	}
	var certificate atomic.Pointer[tls.Certificate]
	if c.tlsCert != "" {
		pair, err := tls.LoadX509KeyPair(c.tlsCert, c.tlsKey)
		if err != nil {
			return usagef("-tls-cert, -tls-key: %w", err)
		}
		certificate.Store(&pair)
	}
	store, err := openFullStore(c.db)
	if err != nil {
		return err
	}
	defer store.Close()

	listener, err := net.Listen("tcp", c.addr)
	if err != nil {
		return err
	}
	defer listener.Close()
	base := c.base(listener.Addr().String())
	program, err := newProgram(c, store, keys, log, base)
	if err != nil {
		return err
	}
	if err := store.seedRings(); err != nil {
		return err
	}

	if c.metrics != "" {
		private, err := net.Listen("tcp", c.metrics)
		if err != nil {
			return fmt.Errorf("-metrics: %w", err)
		}
		mux := newJSONMux()
		mux.Handle("GET /metrics", program.metrics.handler(store))
		figures := newServer(mux, log)
		defer figures.Close()
		say("metrics on http://%s/metrics", private.Addr())
		go figures.Serve(private)
	}
	server := newServer(program, log)
	conns := listener
	if certificate.Load() != nil {
		conns = tls.NewListener(listener, &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"},
			GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return certificate.Load(), nil }})
		server.MaxHeaderBytes = 16 << 10 // HTTP/2 adds nothing to it
	}
	commands := make(chan struct{}) // closed when no command runs
	var socket net.Listener
	if isPostgres(c.db) { // other servers may run on the same database: commands open it themselves
		close(commands)
	} else if socket, err = listenSocket(c.db); err != nil { // on a full disk, in a folder that we may only read: logins are still worth serving
		say("warning: commands will not reach this server: %v", err)
		close(commands)
	} else {
		defer socket.Close()
		go func() { defer close(commands); program.operator.serveCommands(socket) }()
	}
	reload := func() {
		var err, err2 error
		if c.tlsCert != "" {
			var pair tls.Certificate
			if pair, err = tls.LoadX509KeyPair(c.tlsCert, c.tlsKey); err == nil {
				certificate.Store(&pair)
			}
		}
		if c.toolsFile != "" {
			var tools Tools
			if tools, err2 = c.readTools(); err2 == nil {
				program.gateway.setTools(tools)
			}
		}
		if err := errors.Join(err, err2); err != nil {
			log.Error("not read again", "error", err)
		} else {
			log.Info("reload")
		}
	}
	working, stopWorking := context.WithCancel(ctx)
	stopped := make(chan struct{})
	go func() { defer close(stopped); keepUp(working, store, log, program.metrics, hangup, reload) }()
	defer func() { stopWorking(); <-stopped }()

	say("listening on %s://%s", c.scheme(), listener.Addr())
	if base != c.scheme()+"://"+listener.Addr().String() {
		say("open %s", base)
	}
	if warning := c.exposed(listener.Addr()); warning != "" {
		say("warning: %s", warning)
	}
	if c.showsPassword {
		say("warning: everybody on this machine can read the password in -db: put the URL into DATABASE_URL")
	}
	if err := inviteFirst(program.operator, say); err != nil {
		return err
	}
	log.Info("start", "version", version(), "addr", listener.Addr().String())
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(conns) }()

	select {
	case err = <-ended:
		server.Close()
		return err
	case <-ctx.Done():
	}
	log.Info("stop")
	last, cancel := context.WithTimeout(context.Background(), drain)
	defer cancel()
	if server.Shutdown(last) != nil {
		server.Close()
	}
	if socket != nil {
		socket.Close() // after the requests: commands are done as long as they run
	}
	select {
	case <-commands:
	case <-time.After(2 * time.Second):
	}
	return nil
}

// newServer has a limit for all that a client could drag out. What streams
// lifts those for body and response.
func newServer(h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:                      h,
		ReadHeaderTimeout:            5 * time.Second,
		ReadTimeout:                  15 * time.Second,
		WriteTimeout:                 30 * time.Second, // longer than maxQueueWait
		IdleTimeout:                  60 * time.Second,
		MaxHeaderBytes:               12 << 10, // net/http adds 4 KiB
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
}

// keepUp sweeps, says it when the database file is gone, and reloads when told
// to by SIGHUP.
func keepUp(ctx context.Context, store Store, log *slog.Logger, metrics *Metrics, hangup <-chan os.Signal, reload func()) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangup:
			reload()
			continue
		case <-tick.C:
		}
		if n, err := store.Sweep(ctx, time.Now()); err != nil && ctx.Err() == nil {
			log.Error("sweep failed", "error", err)
		} else if n > 0 {
			log.Info("swept", "records", n)
			metrics.sweep(n)
		}
		if err := store.ping(); err != nil {
			log.Error("store failed", "error", err)
		}
	}
}

// inviteFirst prints the link with which the first user is made.
func inviteFirst(operator *Operator, say func(string, ...any)) error {
	link, err := operator.invite(User{}, "")
	if err != nil { // fs.ErrNotExist: there are users
		return unlessAbsent(err)
	}
	say("there are no users yet: who opens this link first chooses the first username and password (once, within 24 hours)")
	say("%s", link)
	return nil
}

// signingKeys reads SECRET_KEY, or the file that SECRET_KEY_FILE names.
func signingKeys() ([]string, error) {
	const hint = "make a good one with: export SECRET_KEY=$(openssl rand -hex 32)"
	text, file := os.Getenv("SECRET_KEY"), os.Getenv("SECRET_KEY_FILE")
	switch {
	case text != "" && file != "":
		return nil, usagef("SECRET_KEY and SECRET_KEY_FILE are both set, one is needed")
	case file != "":
		b, err := os.ReadFile(file)
		if err != nil {
			return nil, usagef("SECRET_KEY_FILE: %w", err)
		}
		text = trimNewline(string(b))
	}
	if text == "" {
		return nil, usagef("SECRET_KEY is not set; %s", hint)
	}
	keys := strings.Split(text, ",")
	for i, key := range keys {
		if len(key) < minKey {
			return nil, usagef("key %d of %d in SECRET_KEY has %d bytes, at least %d are needed; %s", i+1, len(keys), len(key), minKey, hint)
		}
		if strings.TrimSpace(key) != key {
			return nil, usagef("key %d of %d in SECRET_KEY begins or ends with white space, which would be part of it", i+1, len(keys))
		}
	}
	return keys, nil
}

// trimNewline drops one newline at the end.
func trimNewline(s string) string {
	if line, ok := strings.CutSuffix(s, "\n"); ok {
		return strings.TrimSuffix(line, "\r")
	}
	return s
}
