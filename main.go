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
	log := newLogger(stderr, c.log == "json")
	say := func(format string, args ...any) { // what an operator waits for
		if c.log == "json" {
			log.Info(fmt.Sprintf(format, args...))
		} else {
			fmt.Fprintf(stderr, format+"\n", args...)
		}
	}
	var certificates []tls.Certificate
	if c.tlsCert != "" {
		pair, err := tls.LoadX509KeyPair(c.tlsCert, c.tlsKey)
		if err != nil {
			return usagef("-tls-cert, -tls-key: %w", err)
		}
		certificates = append(certificates, pair)
	}
	store, err := openFullStore(c.db)
	if err != nil {
		return err
	}
	defer store.Close()

	auth, err := NewAuth(store, keys...)
	if err != nil {
		return err
	}
	account := &Account{auth, store, c.passwordMin}
	auth.Idle, auth.Max, auth.Cost, auth.Log = c.sessionIdle, c.sessionMax, c.bcryptCost, log
	auth.Secure, auth.CookieDomain, auth.LoginPage = c.secure(), c.cookieDomain, "/auth/login"
	auth.tokenLogin, auth.seen = account.tokenLogin, seenUser
	gateway := &Gateway{auth: auth, trusted: c.trusted, public: c.public, upstream: c.upstream}
	protect := &Protect{next: routes(auth, account, &Rings{auth, store}, gateway), log: log, arrive: gateway.arrive, domain: c.cookieDomain}
	if c.public != nil {
		protect.public, protect.hsts = c.public.Hostname(), c.public.Scheme == "https"
		if err := auth.crossOrigin.AddTrustedOrigin(c.public.String()); err != nil {
			return err
		}
	}
	if err := store.seedRings(); err != nil {
		return err
	}

	listener, err := net.Listen("tcp", c.addr)
	if err != nil {
		return err
	}
	defer listener.Close()
	server := newServer(protect, log)
	conns := listener
	if certificates != nil {
		conns = tls.NewListener(listener, &tls.Config{Certificates: certificates,
			MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}})
		server.MaxHeaderBytes = 16 << 10 // HTTP/2 adds nothing to it
	}
	operator := &Operator{auth, store, c.passwordMin, c.base(listener.Addr().String())}
	commands := make(chan struct{}) // closed when no command runs
	var socket net.Listener
	if isPostgres(c.db) { // other servers may run on that one: commands open it themselves
		close(commands)
	} else if socket, err = listenSocket(c.db); err != nil { // on a full disk, in a folder that we may only read: logins are still worth serving
		say("warning: commands will not reach this server: %v", err)
		close(commands)
	} else {
		defer socket.Close()
		go func() { defer close(commands); operator.serveCommands(socket) }()
	}
	sweeping, stopSweeping := context.WithCancel(ctx)
	swept := make(chan struct{})
	go func() { defer close(swept); keepSwept(sweeping, store, log) }()
	defer func() { stopSweeping(); <-swept }()

	say("listening on %s://%s", c.scheme(), listener.Addr())
	if warning := c.exposed(listener.Addr()); warning != "" {
		say("warning: %s", warning)
	}
	if err := inviteFirst(operator, say); err != nil {
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

// routes is every path that we serve.
func routes(auth *Auth, account *Account, rings *Rings, gateway *Gateway) http.Handler {
	mux := newJSONMux()
	requireLogin, requireSession := auth.RequireLogin, account.requireSession
	mux.HandleFunc("POST /auth/session", auth.Login)
	mux.HandleFunc("GET /auth/session", auth.WhoAmI)
	mux.HandleFunc("DELETE /auth/session", auth.Logout)
	mux.Handle("PUT /auth/password", requireSession(account.handlePassword))
	mux.Handle("GET /auth/sessions", requireSession(account.handleSessions))
	mux.Handle("DELETE /auth/sessions", requireSession(account.handleEndSessions))
	mux.Handle("DELETE /auth/sessions/{id}", requireSession(account.handleEndSession))
	mux.Handle("GET /auth/tokens", requireSession(account.handleTokens))
	mux.Handle("POST /auth/tokens", requireSession(account.handleAddToken))
	mux.Handle("DELETE /auth/tokens/{id}", requireSession(account.handleRemoveToken))
	mux.HandleFunc("GET /auth/invites/{token}", account.handleInvite)
	mux.HandleFunc("POST /auth/invites/{token}", account.handleAcceptInvite)
	mux.HandleFunc("GET /auth/verify", gateway.handleVerify)
	mux.HandleFunc("GET /auth/continue", gateway.handleContinue)
	mux.HandleFunc("GET /healthz", handleHealth(auth))

	mux.Handle("GET /auth/login", gateway.unlessLoggedIn(page("login.html")))
	mux.Handle("GET /auth/invite", page("invite.html"))
	mux.Handle("GET /auth/account", requireLogin(page("account.html")))
	mux.Handle("GET /auth/style.css", page("style.css"))
	mux.Handle("GET /auth/script.js", page("script.js"))
	mux.Handle("GET /auth/icon.svg", page("icon.svg"))

	if gateway.upstream != nil {
		tool := requireLogin(gateway.proxy())
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			// As it is spelled: what a ServeMux would tidy up is for the tool to judge.
			if path := r.URL.EscapedPath(); strings.HasPrefix(path, "/auth/") || path == "/healthz" {
				mux.ServeHTTP(w, r)
			} else {
				tool.ServeHTTP(w, r)
			}
		})
	}
	mux.Handle("GET /{$}", requireLogin(page("rings.html")))
	mux.Handle("GET /ringsofpower", requireLogin(http.HandlerFunc(rings.handleList)))
	mux.Handle("POST /ringsofpower", requireLogin(http.HandlerFunc(rings.handleAdd)))
	mux.Handle("GET /ringsofpower/{id}", requireLogin(http.HandlerFunc(rings.handleGet)))
	mux.Handle("PUT /ringsofpower/{id}", requireLogin(http.HandlerFunc(rings.handleSet)))
	mux.Handle("DELETE /ringsofpower/{id}", requireLogin(http.HandlerFunc(rings.handleRemove)))
	return mux
}

// handleHealth is GET /healthz.
func handleHealth(auth *Auth) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if err := auth.store.ping(); err != nil {
			auth.fail(w, r, err, 0, "")
			return
		}
		respond(w, http.StatusOK, struct {
			Status string `json:"status"`
		}{"ok"})
	}
}

// newServer has a limit for all that a client could drag out. What streams
// lifts those for body and response.
func newServer(h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:                      h,
		ReadHeaderTimeout:            5 * time.Second,
		ReadTimeout:                  15 * time.Second,
		WriteTimeout:                 30 * time.Second, // longer than maxTurn
		IdleTimeout:                  60 * time.Second,
		MaxHeaderBytes:               12 << 10, // net/http adds 4 KiB
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
}

// keepSwept also says it when the database file is gone.
func keepSwept(ctx context.Context, store Store, log *slog.Logger) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if n, err := store.Sweep(ctx, time.Now()); err != nil && ctx.Err() == nil {
			log.Error("sweep failed", "error", err)
		} else if n > 0 {
			log.Info("swept", "records", n)
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
		return present(err)
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
