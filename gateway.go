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
	"time"
	"unicode"
)

// Gateway is ringward in front of other tools.
type Gateway struct {
	auth     *Auth
	trusted  []netip.Prefix // proxies whose X-Forwarded-* are believed
	public   *url.URL       // scheme and host by which browsers reach us; nil: not known
	upstream *url.URL       // scheme and host of the tool behind us; nil: there is none
}

// arrive makes of a request what a trusted proxy says that it was: it has the
// client's address and the host that the browser asked for. What anybody else
// says under these names is dropped, so that they can be believed from here on.
func (g *Gateway) arrive(r *http.Request) {
	const addrs, host = "X-Forwarded-For", "X-Forwarded-Host"
	peer, ok := netip.Addr{}, false
	if len(g.trusted) > 0 {
		peer, ok = parseAddr(r.RemoteAddr)
		ok = ok && g.trusts(peer)
	}
	for _, name := range []string{host, "X-Forwarded-Proto", "X-Forwarded-Uri", "X-Forwarded-Method"} {
		if lines := r.Header[name]; lines != nil && (!ok || len(lines) != 1) { // two say nothing
			delete(r.Header, name)
		}
	}
	if lines := r.Header[addrs]; !ok {
		delete(r.Header, addrs)
	} else if lines != nil {
		hops := g.hops(peer, strings.Split(strings.Join(lines, ","), ","))
		r.RemoteAddr = hops[0]
		r.Header[addrs] = []string{strings.Join(hops, ", ")}
	}
	r.Host = cmp.Or(r.Header.Get(host), r.Host)
}

// hops are the addresses that a request came by, the client's first. A trusted
// proxy says who came to it, so the list is read from its end up to the first
// address that is not trusted: what stands before that, anybody may have
// written. A list that does not parse that far says nothing.
func (g *Gateway) hops(peer netip.Addr, list []string) []string {
	hops := []string{peer.String()}
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

// scheme is how the browser asked.
func (g *Gateway) scheme(r *http.Request) string {
	proto := r.Header.Get("X-Forwarded-Proto")
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
// and sends that one's headers. Any status but 204 means that it may not. What
// was asked for is the last parameter, uri, escaped or as nginx has it in
// $request_uri; or else what a trusted proxy forwards.
func (g *Gateway) handleVerify(w http.ResponseWriter, r *http.Request) {
	asked := r.WithContext(r.Context()) // a copy
	asked.Method = cmp.Or(r.Header.Get("X-Forwarded-Method"), r.Method)
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
			uri = r.Header.Get("X-Forwarded-Uri")
		} else if plain, err := url.QueryUnescape(uri); err == nil && !strings.HasPrefix(uri, "/") {
			uri = plain
		}
		login := g.loginURL(r, uri)
		if strings.Contains(query, "&redirect") && navigates(asked) {
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
		if !strings.EqualFold(r.Host, g.public.Host) {
			if there := g.next(g.scheme(r) + "://" + r.Host + next); there != "/" {
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
	return g.auth.CookieDomain != "" && err == nil && same == name && under(name, g.auth.CookieDomain) && portErr == nil && port > 0
}

const (
	// slow is how long a tool may take until its response begins, from when it
	// has the request.
	slow = 60 * time.Second
	// idleUpstream is less than the 5 s after which Node and Apache close an
	// idle connection: on one that is just being closed a POST would fail.
	idleUpstream = 4 * time.Second
)

// proxy passes requests on to the tool; it belongs behind RequireLogin. What
// the tool responds passes as it is, but for cookies by a session's name, of
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
			DisableCompression:    true, // it would unpack what the client did not ask to have packed
		},
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodConnect || r.Method == http.MethodTrace {
			w.Header().Set("Allow", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")
			respondError(w, http.StatusMethodNotAllowed, "Method not allowed")
			return
		}
		ctx, cancel := context.WithCancelCause(r.Context())
		defer cancel(nil)
		s := &stream{auth: g.auth, r: r, w: w, cancel: cancel}
		s.start()
		defer s.stop()
		out := r.WithContext(ctx)
		body := &upload{ReadCloser: r.Body}
		out.Body = body

		own := maps.Clone(w.Header())
		clear(w.Header()) // not in ModifyResponse: a 103 would come before that
		proxy := shared
		proxy.ModifyResponse = func(response *http.Response) error {
			response.Header["Set-Cookie"] = slices.DeleteFunc(response.Header["Set-Cookie"], namesSession)
			if len(own["Set-Cookie"]) > 0 {
				response.Header["Set-Cookie"] = append(response.Header["Set-Cookie"], own["Set-Cookie"]...)
			}
			if response.Header["Cache-Control"] == nil || len(own["Set-Cookie"]) > 0 { // a cache would hand the session to others
				response.Header["Cache-Control"] = own["Cache-Control"]
			}
			return nil
		}
		proxy.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, err error) {
			clear(w.Header())
			maps.Copy(w.Header(), own)
			var no *refusal
			switch timeout := net.Error(nil); {
			case context.Cause(ctx) == errSessionOver:
				g.auth.deny(w, r, fs.ErrNotExist)
			case ctx.Err() != nil: // the client has gone
				panic(http.ErrAbortHandler)
			case errors.As(body.failed(), &no): // of a judgedBody
				no.respond(w)
			case body.failed() != nil:
				respondError(w, http.StatusBadRequest, "Request body cannot be read")
			case errors.As(err, &timeout) && timeout.Timeout():
				g.auth.Log.ErrorContext(ctx, "tool failed", "error", err)
				respondError(w, http.StatusGatewayTimeout, "The tool takes too long to answer")
			default:
				g.auth.Log.ErrorContext(ctx, "tool failed", "error", err)
				respondError(w, http.StatusBadGateway, "The tool does not answer")
			}
		}
		proxy.ServeHTTP(w, out)
	})
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
		if isIdentityHeader(name) {
			delete(out.Header, name)
		}
	}
	// Through another protocol, h2c for one, a client could send the tool
	// further requests that do not come by here.
	if !strings.EqualFold(out.Header.Get("Upgrade"), "websocket") {
		out.Header.Del("Upgrade")
		out.Header.Del("Connection")
	}
	mapLines(out.Header, "Cookie", withoutSession)
	mapLines(out.Header, "Authorization", withoutToken)
	out.Header["Remote-User"] = []string{UserOf(in)}
	out.Header["X-Forwarded-For"] = []string{cmp.Or(in.Header.Get("X-Forwarded-For"), clientAddr(in))}
	out.Header["X-Forwarded-Host"] = []string{in.Host}
	out.Header["X-Forwarded-Proto"] = []string{g.scheme(in)}
}

// noSpace escapes what HTTP/2 lets through, and what would end the address in
// the tool's request line.
func noSpace(uri string) string { return strings.ReplaceAll(uri, " ", "%20") }

// isIdentityHeader says whether a header is one by which proxies say who and
// where a client is.
func isIdentityHeader(name string) bool {
	return matchesCGI(name, "remote-", false) || matchesCGI(name, "x-forwarded-", false) ||
		matchesCGI(name, "x-real-ip", true) || matchesCGI(name, "forwarded", true)
}

// matchesCGI compares as tools may: CGI and its descendants take all but
// letters and digits for the same character.
func matchesCGI(name, want string, whole bool) bool {
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

// mapLines replaces each line of a header by what f makes of it, if that is
// not "".
func mapLines(h http.Header, name string, f func(string) string) {
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
	if bearer(http.Header{"Authorization": {line}}) != "" {
		return ""
	}
	return line
}

// buffers are what responses pass through, 32 KiB each.
type buffers struct{ sync.Pool }

func (b *buffers) Get() []byte {
	if buffer, ok := b.Pool.Get().(*[32 << 10]byte); ok {
		return buffer[:]
	}
	return make([]byte, 32<<10)
}

func (b *buffers) Put(buffer []byte) { b.Pool.Put((*[32 << 10]byte)(buffer)) }
