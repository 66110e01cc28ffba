// gateway.go: ringward in front of other tools. What nginx, Caddy and Traefik
// ask of us, the reverse proxy, whose forwarded headers to believe, and where
// next may lead.
//
// Rules of this file: who somebody is, Auth decides; a forwarded header counts
// only from a trusted proxy; what a client sends never reaches a tool as an
// identity, nor does what our clients log in with.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"
)

// Gateway is ringward in front of other tools.
type Gateway struct {
	auth     *Auth
	trusted  []netip.Prefix // proxies whose X-Forwarded-* are believed
	public   *url.URL       // scheme and host by which browsers reach us; nil: not known
	domain   string         // that the cookie is for, in small letters; "": one host
	upstream *url.URL       // scheme and host of the tool behind us; nil: there is none
}

// hops are the addresses that a request came by, the client's first. A trusted
// proxy says who came to it, so the list is read from its end up to the first
// address that is not trusted: what stands before that, anybody may have
// written. A list that does not parse that far says nothing.
func (g *Gateway) hops(r *http.Request) []string {
	peer, ok := parseAddr(r.RemoteAddr)
	if !ok {
		return []string{r.RemoteAddr}
	}
	hops := []string{peer.String()}
	if !g.trusts(peer) || r.Header["X-Forwarded-For"] == nil {
		return hops
	}
	list := strings.Split(strings.Join(r.Header["X-Forwarded-For"], ","), ",")
	for _, text := range slices.Backward(list) {
		hop, ok := parseAddr(strings.Trim(text, " \t"))
		if !ok {
			return hops[:1]
		}
		hops = append(hops, hop.String())
		if !g.trusts(hop) {
			break
		}
	}
	slices.Reverse(hops)
	return hops
}

// clientAddr is Auth.addr.
func (g *Gateway) clientAddr(r *http.Request) string { return g.hops(r)[0] }

func (g *Gateway) trusts(addr netip.Addr) bool {
	return slices.ContainsFunc(g.trusted, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// parseAddr reads an address with or without a port, and without its zone,
// which could be any text.
func parseAddr(text string) (netip.Addr, bool) {
	var addr netip.Addr
	withPort, err := netip.ParseAddrPort(text)
	if err == nil {
		addr = withPort.Addr()
	} else {
		if inner, ok := strings.CutPrefix(text, "["); ok && strings.HasSuffix(inner, "]") {
			text = strings.TrimSuffix(inner, "]")
		}
		addr, err = netip.ParseAddr(text)
	}
	return addr.Unmap().WithZone(""), err == nil
}

// forwarded is what a trusted proxy says of the request in one line under the
// name; two lines say nothing.
func (g *Gateway) forwarded(r *http.Request, name string) string {
	peer, ok := parseAddr(r.RemoteAddr)
	if lines := r.Header[name]; ok && len(lines) == 1 && g.trusts(peer) {
		return lines[0]
	}
	return ""
}

// host is what the browser asked for, with its port.
func (g *Gateway) host(r *http.Request) string {
	if host := g.forwarded(r, "X-Forwarded-Host"); host != "" {
		return host
	}
	return r.Host
}

// scheme is how the browser asked.
func (g *Gateway) scheme(r *http.Request) string {
	proto := g.forwarded(r, "X-Forwarded-Proto")
	switch {
	case proto == "http" || proto == "https":
		return proto
	case r.TLS != nil:
		return "https"
	case g.public != nil:
		return g.public.Scheme
	}
	return "http"
}

// handleVerify is GET /auth/verify: a gateway asks whether a request may pass,
// and sends that one's headers. Any answer but 204 means that it may not. What
// was asked for is the last parameter, uri, escaped or as nginx has it in
// $request_uri; or else what a trusted proxy forwards.
func (g *Gateway) handleVerify(w http.ResponseWriter, r *http.Request) {
	asked := r.WithContext(r.Context()) // a copy
	asked.Host = g.host(r)
	if method := g.forwarded(r, "X-Forwarded-Method"); method != "" {
		asked.Method = method
	}
	if !g.auth.sameSite(w, asked) {
		return
	}
	l, err := g.auth.identify(w, r)
	if err == nil {
		w.Header().Set("Remote-User", l.User.Name)
		w.WriteHeader(http.StatusNoContent)
		return
	}
	if errors.Is(err, fs.ErrNotExist) {
		query, uri, ok := strings.Cut("&"+r.URL.RawQuery, "&uri=")
		if !ok {
			uri = g.forwarded(r, "X-Forwarded-Uri")
		} else if plain, err := url.QueryUnescape(uri); err == nil && !strings.HasPrefix(uri, "/") {
			uri = plain
		}
		login := g.loginURL(r, uri)
		if strings.Contains(query, "&redirect") && navigates(asked.Method, r.Header) {
			w.Header().Set("Location", login)
			w.WriteHeader(http.StatusSeeOther)
			return
		}
		w.Header().Set("X-Login-URL", login)
	}
	g.auth.deny(w, r, err)
}

// loginURL is the login page that leads back to what a gateway asks about.
// Anybody may have written the uri; next judges it.
func (g *Gateway) loginURL(r *http.Request, uri string) string {
	base, next := "", g.next(uri)
	if g.public != nil {
		base = g.public.String()
		// The login page may be on another host than the tool.
		if host := g.host(r); !strings.EqualFold(host, g.public.Host) {
			if there := g.next(g.scheme(r) + "://" + host + next); there != "/" {
				next = there
			}
		}
	}
	return base + g.auth.LoginPage + "?next=" + url.QueryEscape(next)
}

// handleContinue is GET /auth/continue: on to next, after a login.
func (g *Gateway) handleContinue(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Location", g.next(r.URL.Query().Get("next")))
	w.WriteHeader(http.StatusSeeOther)
}

// unlessLoggedIn is for the login page: who is logged in goes on to next.
func (g *Gateway) unlessLoggedIn(page http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := g.auth.check(r, time.Now()); err == nil {
			g.handleContinue(w, r)
			return
		}
		page.ServeHTTP(w, r)
	})
}

// next is where a login may lead: a path of this host or, with a cookie domain,
// an https URL under it. All else is "/". Browsers drop tabs and newlines and
// take a backslash for a slash, so these are refused rather than escaped.
func (g *Gateway) next(raw string) string {
	path, _, _ := strings.Cut(raw, "?")
	if strings.ContainsFunc(raw, unicode.IsControl) || strings.Contains(path, `\`) {
		return "/"
	}
	var b strings.Builder // what a header can hold
	for _, c := range []byte(raw) {
		if c > ' ' && c < 0x7f && c != '\\' {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	next := b.String()
	u, err := url.Parse(next)
	if err != nil || u.User != nil {
		return "/"
	}
	local := u.Scheme == "" && u.Host == "" && strings.HasPrefix(next, "/") && !strings.HasPrefix(next, "//")
	if local || u.Scheme == "https" && g.inDomain(u) {
		return next
	}
	return "/"
}

// inDomain says whether browsers send the cookie of our domain to the URL's
// host, whatever the port.
func (g *Gateway) inDomain(u *url.URL) bool {
	name := strings.ToLower(u.Hostname())
	same, err := domain(name) // is it one that browsers and we read alike
	port, portErr := strconv.ParseUint(cmp.Or(u.Port(), "443"), 10, 16)
	return g.domain != "" && err == nil && same == name && under(name, g.domain) && portErr == nil && port > 0
}

const (
	// slow is how long a tool may take until its answer begins, from when it
	// has the request.
	slow = 60 * time.Second
	// idleUpstream is less than the 5 s after which Node and Apache close an
	// idle connection: on one that is just being closed a POST would fail.
	idleUpstream = 4 * time.Second
	// A request that runs for longer than shortRequest is a stream and loses
	// the time limits of newServer, which must be longer.
	shortRequest = 5 * time.Second
	// recheck is how often somebody must still be logged in to keep a stream.
	// Twice that and lastWords is less than the minute that we promise.
	recheck = 25 * time.Second
	// lastWords is for the rest of an answer, or of a request that nobody
	// reads any more.
	lastWords = 5 * time.Second
)

var errSessionOver = errors.New("session over")

// proxy passes requests on to the tool; it belongs behind requireLogin. What
// the tool answers passes as it is, but for cookies by a session's name, of
// which there is that of a renewed one only, and for Cache-Control where there
// is that or the tool has none.
func (g *Gateway) proxy() http.Handler {
	return g.proxyOver((&net.Dialer{Timeout: 10 * time.Second}).DialContext)
}

func (g *Gateway) proxyOver(dial func(ctx context.Context, network, addr string) (net.Conn, error)) http.Handler {
	shared := httputil.ReverseProxy{
		Rewrite:    g.rewrite,
		BufferPool: &buffers{},
		ErrorLog:   slog.NewLogLogger(g.auth.Log.Handler(), slog.LevelWarn),
		Transport: &http.Transport{ // no Proxy: the environment is about other places
			DialContext:           dial,
			ResponseHeaderTimeout: slow,
			ExpectContinueTimeout: time.Second,
			IdleConnTimeout:       idleUpstream,
			MaxIdleConnsPerHost:   256,
			DisableCompression:    true, // it would unpack answers that the client did not ask for
		},
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodConnect || r.Method == http.MethodTrace {
			w.Header().Set("Allow", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")
			writeError(w, http.StatusMethodNotAllowed, "Method not allowed")
			return
		}
		ctx, cancel := context.WithCancelCause(r.Context())
		defer cancel(nil)
		run := &running{auth: g.auth, r: r, w: w, cancel: cancel}
		run.start()
		defer run.stop()
		out := r.WithContext(ctx)
		body := &upload{ReadCloser: r.Body}
		out.Body = body

		own := maps.Clone(w.Header())
		clear(w.Header()) // not in ModifyResponse: an answer 103 would come before that
		proxy := shared
		proxy.ModifyResponse = func(answer *http.Response) error {
			answer.Header["Set-Cookie"] = slices.DeleteFunc(answer.Header["Set-Cookie"], namesSession)
			if len(own["Set-Cookie"]) > 0 {
				answer.Header["Set-Cookie"] = append(answer.Header["Set-Cookie"], own["Set-Cookie"]...)
			}
			if answer.Header["Cache-Control"] == nil || len(own["Set-Cookie"]) > 0 { // a cache would hand the session to others
				answer.Header["Cache-Control"] = own["Cache-Control"]
			}
			return nil
		}
		proxy.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, err error) {
			clear(w.Header())
			maps.Copy(w.Header(), own)
			switch timeout := net.Error(nil); {
			case context.Cause(ctx) == errSessionOver:
				g.auth.deny(w, r, fs.ErrNotExist)
			case ctx.Err() != nil: // the client has gone
				panic(http.ErrAbortHandler)
			case body.broken.Load():
				writeError(w, http.StatusBadRequest, "Request body cannot be read")
			case errors.As(err, &timeout) && timeout.Timeout():
				g.auth.Log.ErrorContext(ctx, "tool failed", "error", err)
				writeError(w, http.StatusGatewayTimeout, "The tool takes too long to answer")
			default:
				g.auth.Log.ErrorContext(ctx, "tool failed", "error", err)
				writeError(w, http.StatusBadGateway, "The tool does not answer")
			}
		}
		proxy.ServeHTTP(w, out)
	})
}

// upload tells whether it is the client's body that failed.
type upload struct {
	io.ReadCloser
	broken atomic.Bool
}

func (u *upload) Read(b []byte) (int, error) {
	n, err := u.ReadCloser.Read(b)
	if err != nil && err != io.EOF {
		u.broken.Store(true)
	}
	return n, err
}

// running is a request that may run for as long as who made it is logged in.
// It ends when that is over, or when the store cannot tell twice in a row.
type running struct {
	auth   *Auth
	r      *http.Request
	w      http.ResponseWriter
	cancel context.CancelCauseFunc

	mu     sync.Mutex
	timer  *time.Timer
	stream bool // no time limit any more
	done   bool // its connection may serve another one by now
	doubts int  // of the store, in a row
}

func (p *running) start() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.timer = time.AfterFunc(shortRequest, p.recheck)
}

func (p *running) recheck() {
	_, err := p.auth.check(p.r, time.Now())
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.doubts++; err == nil {
		p.doubts = 0
	}
	switch {
	case p.done:
		return
	case errors.Is(err, fs.ErrNotExist) || p.doubts == 2:
		p.cancel(errSessionOver)
		p.limit(time.Now().Add(lastWords)) // a client that neither reads nor writes would hold us
		return
	case !p.stream:
		p.stream = true
		p.limit(time.Time{})
	}
	p.timer.Reset(recheck)
}

func (p *running) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done = true
	p.timer.Stop()
	if p.stream {
		p.limit(time.Now().Add(lastWords))
	}
}

func (p *running) limit(t time.Time) {
	connection := http.NewResponseController(p.w)
	connection.SetReadDeadline(t)
	if !t.IsZero() {
		t = t.Add(time.Second) // the answer to who still sends comes when the read has ended
	}
	connection.SetWriteDeadline(t)
}

// rewrite makes the tool's request from the client's. It runs after hop-by-hop
// headers were removed, so that a client cannot have ours removed by naming
// them in Connection.
func (g *Gateway) rewrite(p *httputil.ProxyRequest) {
	in, out := p.In, p.Out
	out.URL.Scheme, out.URL.Host, out.URL.User = g.upstream.Scheme, g.upstream.Host, nil
	out.URL.RawQuery = noSpace(in.URL.RawQuery) // ReverseProxy cleans it of what net/url cannot read
	// The path as it was sent, with what net/url would have escaped. It would
	// take one that begins with two slashes for a host.
	if path, _, _ := strings.Cut(in.RequestURI, "?"); strings.HasPrefix(path, "/") && !strings.HasPrefix(path, "//") && path != in.URL.EscapedPath() {
		out.URL.Opaque = noSpace(path)
	}
	out.Trailer = nil // may hold what headers may not
	for name := range out.Header {
		if ours(name) {
			delete(out.Header, name)
		}
	}
	// Through another protocol, h2c for one, a client could send the tool
	// further requests that do not come by here.
	if !strings.EqualFold(out.Header.Get("Upgrade"), "websocket") {
		out.Header.Del("Upgrade")
		out.Header.Del("Connection")
	}
	keep(out.Header, "Cookie", withoutSession)
	keep(out.Header, "Authorization", withoutToken)
	out.Header["Remote-User"] = []string{loginOf(in).User.Name}
	out.Header["X-Forwarded-For"] = []string{strings.Join(g.hops(in), ", ")}
	out.Header["X-Forwarded-Host"] = []string{g.host(in)}
	out.Header["X-Forwarded-Proto"] = []string{g.scheme(in)}
}

// noSpace escapes what HTTP/2 lets through, and what would end the address in
// the tool's request line.
func noSpace(uri string) string { return strings.ReplaceAll(uri, " ", "%20") }

// ours says whether a header is one by which proxies say who and where a
// client is.
func ours(name string) bool {
	return spells(name, "remote-", false) || spells(name, "x-forwarded-", false) ||
		spells(name, "x-real-ip", true) || spells(name, "forwarded", true)
}

// spells compares as tools may: CGI and its descendants take all but letters
// and digits for the same character.
func spells(name, want string, whole bool) bool {
	if len(name) < len(want) || whole && len(name) > len(want) {
		return false
	}
	for i := range len(want) {
		c := name[i]
		switch {
		case 'A' <= c && c <= 'Z':
			c += 'a' - 'A'
		case ('a' > c || c > 'z') && ('0' > c || c > '9'):
			c = '-'
		}
		if c != want[i] {
			return false
		}
	}
	return true
}

// keep replaces each line of a header by what f makes of it, if that is not "".
func keep(h http.Header, name string, f func(string) string) {
	var kept []string
	for _, line := range h[name] {
		if line = f(line); line != "" {
			kept = append(kept, line)
		}
	}
	delete(h, name)
	if kept != nil {
		h[name] = kept
	}
}

// withoutSession cuts the session out of a Cookie header, by whatever of its
// names, and leaves the other cookies as they stand.
func withoutSession(line string) string {
	if !strings.Contains(line, "ringward") {
		return line
	}
	return strings.TrimLeft(strings.Join(slices.DeleteFunc(strings.Split(line, ";"), namesSession), ";"), " \t")
}

// namesSession says whether a line of Set-Cookie, or a part of one of Cookie,
// is a session of ours by its name. A cookie that is set without a name comes
// back as its value alone, which may look like a name.
func namesSession(cookie string) bool {
	name, _, _ := strings.Cut(strings.TrimLeft(cookie, "= \t"), "=")
	switch strings.TrimRight(name, " \t") {
	case "ringward", "__Host-ringward", "__Secure-ringward":
		return true
	}
	return false
}

// withoutToken drops an API token of ours.
func withoutToken(line string) string {
	if _, ok := bearer(http.Header{"Authorization": {line}}); ok {
		return ""
	}
	return line
}

// buffers are what answers pass through, 32 KiB each.
type buffers struct{ sync.Pool }

func (b *buffers) Get() []byte {
	if buffer, ok := b.Pool.Get().(*[32 << 10]byte); ok {
		return buffer[:]
	}
	return make([]byte, 32<<10)
}

func (b *buffers) Put(buffer []byte) { b.Pool.Put((*[32 << 10]byte)(buffer)) }
