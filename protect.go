// protect.go: what stands around every request, whoever responds: which hosts
// we are, security headers, a log line, and what happens on a panic.
package main

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"path"
	"regexp"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Protect wraps the program's handler.
type Protect struct {
	next    http.Handler
	log     *slog.Logger
	gateway *Gateway
	metrics *Metrics
	web     *Web   // has the page that says what went wrong
	public  string // host of -public-url, "" without
	domain  string // -cookie-domain, "" without
	hsts    int    // seconds, where browsers reach us by https under the public name
}

// requestInfo is what the log says of a request besides what it asks for.
type requestInfo struct {
	id   string // no secret; also in the response to a request that failed, for the operator to find
	user string // "" until somebody is logged in
}

type infoKey struct{}

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

// ownHeaders are on every response of our own; a tool behind us sets its own.
var ownHeaders = http.Header{
	"Cache-Control": {"no-store"},
	"Content-Security-Policy": {"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
		"form-action 'self'; base-uri 'none'; frame-ancestors 'none'"},
	"Cross-Origin-Opener-Policy":   {"same-origin"},
	"Cross-Origin-Resource-Policy": {"same-origin"},
	"Referrer-Policy":              {"same-origin"},
	"X-Content-Type-Options":       {"nosniff"},
	"X-Frame-Options":              {"DENY"}, // frame-ancestors for browsers older than that
}

func (p *Protect) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	info := &requestInfo{id: strconv.FormatUint(rand.Uint64(), 36)}
	r = r.WithContext(context.WithValue(r.Context(), infoKey{}, info))
	p.gateway.arrive(r)
	status := &statusWriter{ResponseWriter: w, r: r, web: p.web}
	p.setHeaders(w.Header())
	defer func() {
		failure := recover()
		if failure != nil && failure != http.ErrAbortHandler {
			p.log.ErrorContext(r.Context(), "panic", "error", cut(fmt.Sprint(failure), 500), "stack", string(debug.Stack()))
			if status.code == 0 {
				clear(w.Header()) // of what was about to be sent
				p.setHeaders(w.Header())
				respondError(status, http.StatusInternalServerError, "Internal error", "request "+info.id)
				failure = nil
			}
		}
		if failure == nil {
			status.begun(http.StatusOK) // as net/http does for a handler that wrote nothing
		}
		took := time.Since(start)
		p.metrics.request(status.code, took)
		p.log.LogAttrs(r.Context(), slog.LevelInfo, "request",
			slog.String("method", url.PathEscape(cut(r.Method, 16))),
			slog.String("path", shownPath(r, p.web.prefix)),
			slog.Int("status", status.code),
			slog.Duration("duration", took),
			slog.String("user", info.user),
			slog.String("addr", clientAddr(r)))
		if failure != nil {
			panic(http.ErrAbortHandler) // half a response must not look like a whole one
		}
	}()
	switch {
	case !p.names(r.Host) && r.URL.EscapedPath() != "/healthz" && !p.gateway.isVerify(r):
		respondError(status, http.StatusMisdirectedRequest, "This server does not go by that name",
			"if it should, start it with -public-url and the address that browsers use")
	case !strings.HasPrefix(r.URL.Path, "/"): // OPTIONS * and CONNECT; a ServeMux would respond in its own words
		respondError(status, http.StatusNotFound, "Not found")
	default:
		p.next.ServeHTTP(status, r)
	}
}

func (p *Protect) setHeaders(h http.Header) {
	maps.Copy(h, ownHeaders)
	if p.hsts > 0 {
		h.Set("Strict-Transport-Security", "max-age="+strconv.Itoa(p.hsts))
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
		host == p.public || p.domain != "" && under(host, p.domain) || (*p.gateway.tools.Load())[host] != nil)
}

// under says whether host is domain or a name below it. Both are in small letters.
func under(host, domain string) bool {
	return host == domain || strings.HasSuffix(host, "."+domain)
}

var tokenText = regexp.MustCompile(`rw_[\w-]+`)

// shownPath is the path for the log: cut, and escaped again, because JSON lets
// through what is an end of line or a command to a terminal. Of our own paths
// it is the route: in the path may be an invite, also one that was spelled wrong.
func shownPath(r *http.Request, prefix string) string {
	if !strings.HasPrefix(strings.ToLower(path.Clean(r.URL.Path)), strings.ToLower(prefix)+"/") {
		shown := url.URL{Path: tokenText.ReplaceAllString(cut(r.URL.Path, 200), "rw_...")}
		return shown.EscapedPath()
	}
	_, route, _ := strings.Cut(r.Pattern, " ")
	if route == "" {
		route = prefix + "/..."
	}
	return route
}

// cut keeps what strangers send from filling the log.
func cut(s string, n int) string {
	if len(s) > n {
		return s[:n] + "..."
	}
	return s
}

// statusWriter remembers the status. What else net/http's own can do is
// reached by http.ResponseController.
type statusWriter struct {
	http.ResponseWriter
	code int // 0: nothing was sent yet
	r    *http.Request
	web  *Web
}

// inWords are the statuses that a person may meet who opens a page.
var inWords = []int{http.StatusForbidden, http.StatusNotFound, http.StatusMisdirectedRequest, http.StatusBadGateway, http.StatusGatewayTimeout}

// respondPage is for a person who opens a page in a browser.
func (w *statusWriter) respondPage(code int, title, detail string) bool {
	if w.web == nil || !navigates(w.r) || !slices.Contains(inWords, code) {
		return false
	}
	w.web.respondWith(w, code, "error.html", "{what}", title, "{detail}", detail)
	return true
}

func (w *statusWriter) begun(code int) {
	if w.code == 0 {
		w.code = code
	}
}

func (w *statusWriter) WriteHeader(code int) {
	if code >= 200 || code == http.StatusSwitchingProtocols {
		w.begun(code)
	} else {
		w.Header().Del("Set-Cookie") // hints come from tools, and before the gateway looks at their headers
		w.Header().Del("Clear-Site-Data")
	}
	w.ResponseWriter.WriteHeader(code)
}

func (w *statusWriter) Write(b []byte) (int, error) {
	w.begun(http.StatusOK)
	return w.ResponseWriter.Write(b)
}

func (w *statusWriter) FlushError() error {
	w.begun(http.StatusOK)
	return http.NewResponseController(w.ResponseWriter).Flush()
}

func (w *statusWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err == nil {
		w.begun(http.StatusSwitchingProtocols)
	}
	return conn, rw, err
}

func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

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
			respondError(w, http.StatusNotFound, "Not found")
			return
		}
		w.Header().Set("Allow", strings.Join(allowed, ", "))
		respondError(w, http.StatusMethodNotAllowed, "Method not allowed")
	})
	return mux
}
