// protect.go: what stands around every request, whoever answers it: which
// hosts we are, security headers, a log line, and what happens on a panic.
package main

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"runtime/debug"
	"strconv"
	"strings"
	"time"
)

// Protect wraps the program's handler.
type Protect struct {
	next   http.Handler
	log    *slog.Logger
	lines  requestLog
	addr   func(*http.Request) string
	public string // host of -public-url, "" without
	domain string // -cookie-domain, "" without
	hsts   bool   // browsers reach us by https under the public name
}

// requestInfo is the context of a request, and what is known of it besides.
type requestInfo struct {
	context.Context
	id    string // no secret; also in the answer to a request that failed, for the operator to find
	user  string // "" until somebody is logged in
	login Login  // room for that of requireLogin
}

type infoKey struct{}

func (i *requestInfo) Value(key any) any {
	switch key {
	case infoKey{}:
		return i
	case loginKey{}:
		return &i.login
	}
	return i.Context.Value(key)
}

func infoOf(ctx context.Context) *requestInfo {
	info, _ := ctx.Value(infoKey{}).(*requestInfo)
	return info
}

// seenUser is Auth.seen.
func seenUser(r *http.Request, name string) {
	if info := infoOf(r.Context()); info != nil {
		info.user = name
	}
}

// ownHeaders are on every answer of our own; a tool behind us sets its own.
var ownHeaders = []struct {
	name  string
	value []string
}{
	{"Cache-Control", noStore},
	{"Content-Security-Policy", []string{"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
		"form-action 'self'; base-uri 'none'; frame-ancestors 'none'"}},
	{"Cross-Origin-Opener-Policy", []string{"same-origin"}},
	{"Cross-Origin-Resource-Policy", []string{"same-origin"}},
	{"Referrer-Policy", []string{"same-origin"}},
	{"X-Content-Type-Options", []string{"nosniff"}},
	{"X-Frame-Options", []string{"DENY"}}, // frame-ancestors for browsers older than that
}

func (p *Protect) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	info := &requestInfo{Context: r.Context(), id: strconv.FormatUint(rand.Uint64(), 36)}
	r = r.WithContext(info)
	answer := &answerWriter{ResponseWriter: w}
	p.setHeaders(w.Header())
	defer func() {
		failure := recover()
		if failure != nil && failure != http.ErrAbortHandler {
			p.log.ErrorContext(r.Context(), "panic", "error", cut(fmt.Sprint(failure), 500), "stack", string(debug.Stack()))
			if answer.status == 0 {
				clear(w.Header()) // of what was to be answered
				p.setHeaders(w.Header())
				writeError(answer, http.StatusInternalServerError, "Internal error", "request "+info.id)
				failure = nil
			}
		}
		if failure == nil {
			answer.begun(http.StatusOK) // as net/http does for a handler that answered nothing
		}
		took := time.Since(start)
		p.lines.write(requestLine{at: start.Add(took), method: url.PathEscape(cut(r.Method, 16)), path: shownPath(r.URL.Path),
			status: answer.status, took: took, user: info.user, addr: p.addr(r), id: info.id})
		if failure != nil {
			panic(http.ErrAbortHandler) // half an answer must not look like a whole one
		}
	}()
	switch {
	case !p.names(r.Host):
		writeError(answer, http.StatusMisdirectedRequest, "This server does not go by that name",
			"if it should, start it with -public-url and the address that browsers use")
	case !strings.HasPrefix(r.URL.Path, "/"): // OPTIONS * and CONNECT; a ServeMux would answer in its own words
		writeError(answer, http.StatusNotFound, "Not found")
	default:
		p.next.ServeHTTP(answer, r)
	}
}

func (p *Protect) setHeaders(h http.Header) {
	for _, own := range ownHeaders {
		h[own.name] = own.value
	}
	if p.hsts {
		h.Set("Strict-Transport-Security", "max-age=31536000; includeSubDomains") // a year, as ASVS 3.4.1 asks
	}
}

// names says whether a Host header means us. A page of another site may have
// had its name resolve to our address, and is then no stranger to the browser.
func (p *Protect) names(hostport string) bool {
	host := hostport
	if h, port, err := net.SplitHostPort(hostport); err == nil {
		if strings.Trim(port, "0123456789") != "" { // net/http takes anything, of HTTP/2 even spaces, and tools are told it
			return false
		}
		host = h
	} else {
		host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if addr, err := netip.ParseAddr(host); err == nil {
		return addr.Zone() == "" // RFC 6874: a zone is not sent, and it may hold anything
	}
	return host != "" && (host == "localhost" || strings.HasSuffix(host, ".localhost") ||
		host == p.public || p.domain != "" && under(host, p.domain))
}

// under says whether host is domain or a name below it. Both are in small letters.
func under(host, domain string) bool {
	return host == domain || strings.HasSuffix(host, "."+domain)
}

// secretInPath is an invite, also where somebody spelled its path or link
// wrong, or an API token, and what follows it.
var secretInPath = regexp.MustCompile(`(?is)(/invites?[^a-z]|rw_).+`)

// shownPath is the path for the log: cut, without secrets, and escaped again,
// because JSON lets through what is an end of line or a command to a terminal.
func shownPath(path string) string {
	shown := url.URL{Path: cut(path, 200)}
	if low := strings.ToLower(path); strings.Contains(low, "invite") || strings.Contains(low, "rw_") { // else it cannot match
		shown.Path = secretInPath.ReplaceAllString(shown.Path, "${1}...")
	}
	return shown.EscapedPath()
}

// cut keeps what strangers send from filling the log.
func cut(s string, n int) string {
	if len(s) > n {
		return s[:n] + "..."
	}
	return s
}

// answerWriter remembers the status. It can do what net/http's own can, also
// for handlers that ask without http.ResponseController.
type answerWriter struct {
	http.ResponseWriter
	status int // 0: nothing was answered yet
}

func (w *answerWriter) begun(status int) {
	if w.status == 0 {
		w.status = status
	}
}

func (w *answerWriter) WriteHeader(status int) {
	if status >= 200 || status == http.StatusSwitchingProtocols {
		w.begun(status)
	} else {
		w.Header().Del("Set-Cookie") // hints come from tools, and before the gateway looks at their cookies
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *answerWriter) Write(b []byte) (int, error) {
	w.begun(http.StatusOK)
	return w.ResponseWriter.Write(b)
}

func (w *answerWriter) Flush() { w.FlushError() }

func (w *answerWriter) FlushError() error {
	w.begun(http.StatusOK)
	return http.NewResponseController(w.ResponseWriter).Flush()
}

func (w *answerWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err == nil {
		w.begun(http.StatusSwitchingProtocols)
	}
	return conn, rw, err
}

func (w *answerWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// jsonMux is a ServeMux whose 404 and 405 are in the envelope.
type jsonMux struct{ *http.ServeMux }

func newJSONMux() jsonMux {
	mux := jsonMux{http.NewServeMux()}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		var allowed []string
		for _, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"} {
			if _, pattern := mux.Handler(&http.Request{Method: method, Host: r.Host, URL: r.URL}); pattern != "/" {
				allowed = append(allowed, method)
			}
		}
		if allowed == nil {
			writeError(w, http.StatusNotFound, "Not found")
			return
		}
		w.Header().Set("Allow", strings.Join(allowed, ", "))
		writeError(w, http.StatusMethodNotAllowed, "Method not allowed")
	})
	return mux
}
