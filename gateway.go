// gateway.go: ringward in front of other tools: the decision about a request for
// one, what nginx, Caddy, HAProxy and Traefik ask of us, the reverse proxy, whose
// forwarded headers to believe, and where a login may lead.
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
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"
)

// Gateway is ringward in front of other tools.
type Gateway struct {
	auth       *Auth
	tools      atomic.Pointer[Tools]
	trusted    []netip.Prefix // proxies whose X-Forwarded-* are believed
	public     *url.URL       // scheme and host by which browsers reach us; nil: not known
	userHeader string         // that tells a tool who is there
	prefix     string         // where our own paths begin

	untrusted sync.Once
}

// setTools makes these the tools from the next request on.
func (g *Gateway) setTools(tools Tools) {
	for _, tool := range tools {
		if tool.upstream != nil {
			tool.proxy = g.proxyOver(tool, (&net.Dialer{Timeout: min(10*time.Second, tool.timeout)}).DialContext)
		}
	}
	g.tools.Store(&tools)
}

// arrive makes of a request what a trusted proxy says that it was: it has the
// client's address and the host that the browser asked for. What anybody else
// says under these names is dropped, so that they can be believed from here on.
func (g *Gateway) arrive(r *http.Request) {
	const addrs, host = "X-Forwarded-For", "X-Forwarded-Host"
	peer, ok := parseAddr(r.RemoteAddr)
	ok = ok && g.trusts(peer)
	for _, name := range []string{host, "X-Forwarded-Proto", "X-Forwarded-Uri", "X-Forwarded-Method"} {
		if lines := r.Header[name]; lines != nil && !ok {
			delete(r.Header, name)
		} else if len(lines) > 1 {
			r.Header[name] = []string{""} // two say nothing, and handleVerify refuses them
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

// scheme is how the browser asked. Where our own name is https, so are those
// that share its cookie, whatever a gateway says that has another one in front.
func (g *Gateway) scheme(r *http.Request) string {
	proto := strings.ToLower(r.Header.Get("X-Forwarded-Proto"))
	switch {
	case g.public != nil && g.public.Scheme == "https" && (g.isPublic(r.Host) || g.inDomain(&url.URL{Host: r.Host})):
		return "https"
	case proto == "http" || proto == "https":
		return proto
	case r.TLS != nil:
		return "https"
	case g.public != nil:
		return g.public.Scheme
	}
	return "http"
}

// isVerify says whether a request is for handleVerify, which with a tools file
// decides on every host.
func (g *Gateway) isVerify(r *http.Request) bool {
	return r.URL.Path == g.prefix+"/verify" && (*g.tools.Load())[""] == nil
}

// decide is what a request for a tool comes to, whether we pass it on or a
// gateway asks: whose it is, nobody's where the tool is open to all, or an
// error: fs.ErrNotExist where somebody has to log in, or a refusal.
func (g *Gateway) decide(r *http.Request, tool *Tool, now time.Time) (Login, error) {
	if tool.opens(r) {
		return Login{}, nil
	}
	if err := g.auth.sameSite(r); err != nil {
		return Login{}, err
	}
	var l Login
	var err error
	if name, token, ok := basicLogin(r.Header); tool.basic && ok && tokenIn(r.Header) == "" {
		if l, err = g.auth.tokenLogin(token, now); err == nil && l.User.Name != name {
			err = fs.ErrNotExist
		}
	} else {
		l, err = g.auth.check(r, now)
	}
	if err == nil && !tool.admits(l.User) {
		g.auth.seen(r, l.User.Name)
		err = &refusal{http.StatusForbidden, "Not for you", "this needs a group that you are not in", 0}
	}
	return l, err
}

// serve passes requests for tools on, or responds.
func (g *Gateway) serve(w http.ResponseWriter, r *http.Request) {
	tool := g.tools.Load().find(r.Host)
	if tool == nil || tool.proxy == nil {
		if r.URL.Path == "/" && tool == nil && (g.public == nil || g.isPublic(r.Host)) {
			w.Header().Set("Location", g.prefix+"/account")
			w.WriteHeader(http.StatusSeeOther)
			return
		}
		respondError(w, http.StatusMisdirectedRequest, "There is no tool of that name here")
		return
	}
	w.Header().Set("Cache-Control", "no-store")
	l, err := g.decide(r, tool, time.Now())
	if err == nil && l.User.Name != "" {
		err = g.auth.welcome(w, r, &l)
	}
	if err != nil {
		g.refuse(w, r, tool, g.loginURL(r, r.URL.RequestURI()), err)
		return
	}
	tool.proxy.ServeHTTP(w, withLogin(r, l, func() error { return g.still(r) }))
}

// still decides again, by the tools and groups as they are now.
func (g *Gateway) still(r *http.Request) error {
	tool := g.tools.Load().find(r.Host)
	if tool == nil {
		return fs.ErrNotExist
	}
	_, err := g.decide(r, tool, time.Now())
	return err
}

// handleVerify is GET /auth/verify: a gateway asks whether a request may pass,
// and sends that one's headers. Any status but 204 means that it may not. What
// was asked for is the last parameter, uri, escaped or as nginx has it in
// $request_uri; or else what a trusted proxy forwards. A trusted gateway is also
// told what of Cookie and Authorization the tool may get; a page that asks
// itself is not, because it must not read cookies that are HttpOnly.
func (g *Gateway) handleVerify(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	forwarded := r.Header.Get("X-Forwarded-Uri")
	query, uri, ok := strings.Cut("&"+r.URL.RawQuery, "&uri=")
	if !ok {
		uri = forwarded
	} else if plain, err := url.QueryUnescape(uri); err == nil && !strings.HasPrefix(uri, "/") {
		uri = plain
	}
	conflict := forwarded != "" && forwarded != uri
	for _, name := range []string{"X-Forwarded-Host", "X-Forwarded-Uri", "X-Forwarded-Method"} {
		conflict = conflict || r.Header[name] != nil && r.Header.Get(name) == ""
	}
	if conflict {
		respondError(w, http.StatusForbidden, "The gateway says two things of one request")
		return
	}
	asked := r.WithContext(r.Context()) // a copy
	asked.Method = cmp.Or(r.Header.Get("X-Forwarded-Method"), r.Method)
	if asked.URL, _ = url.ParseRequestURI(uri); asked.URL == nil {
		asked.URL = &url.URL{} // of which nothing is public
	}
	tool := g.tools.Load().find(r.Host)
	if tool == nil {
		respondError(w, http.StatusForbidden, "There is no tool of that name here")
		return
	}
	l, err := g.decide(asked, tool, time.Now())
	if err == nil && l.User.Name != "" {
		err = g.auth.welcome(w, r, &l)
	}
	if err != nil {
		login := g.loginURL(r, uri)
		if !strings.Contains(query, "&redirect") {
			asked.Method = "" // which is no navigation
		}
		if errors.Is(err, fs.ErrNotExist) {
			w.Header().Set("X-Login-URL", login)
		}
		g.refuse(w, asked, tool, login, err)
		return
	}
	g.tell(w.Header(), l) // also of nobody: Caddy would put words of its own where there is no header
	if r.Header["X-Forwarded-Method"] != nil {
		h := http.Header{"Cookie": {strings.Join(r.Header["Cookie"], "; ")}, "Authorization": r.Header["Authorization"]}
		g.dropCredentials(h)
		maps.Copy(w.Header(), h)
	} else {
		g.untrusted.Do(func() {
			g.auth.Log.WarnContext(r.Context(), "asked by what is not in -trusted-proxies: a tool behind it gets no cookies", "addr", clientAddr(r))
		})
	}
	w.WriteHeader(http.StatusNoContent)
}

// refuse responds to a request for a tool that decide did not let through.
func (g *Gateway) refuse(w http.ResponseWriter, asked *http.Request, tool *Tool, login string, err error) {
	if errors.Is(err, fs.ErrNotExist) && navigates(asked) {
		w.Header().Set("Location", login)
		w.WriteHeader(http.StatusSeeOther)
		return
	}
	if errors.Is(err, fs.ErrNotExist) {
		tool.challenge(w, asked)
	}
	g.auth.deny(w, asked, err)
}

// tell puts into the headers for a tool who is there.
func (g *Gateway) tell(h http.Header, l Login) {
	h.Set(g.userHeader, l.User.Name)
	h.Set("Remote-Groups", strings.ReplaceAll(l.User.Groups, " ", ","))
}

// loginURL is the login page that leads back to what a gateway asks about.
// Anybody may have written the uri; next judges it.
func (g *Gateway) loginURL(r *http.Request, uri string) string {
	base, next := "", g.target(uri)
	if g.public != nil {
		base = g.public.String()
		there := strings.TrimSuffix((&url.URL{Host: r.Host}).Hostname(), ".")
		if next[0] == '/' && !strings.EqualFold(there, g.public.Hostname()) { // the login page is on another host
			next = g.target(g.scheme(r) + "://" + r.Host + next)
		}
	}
	return base + g.auth.LoginPage + "?next=" + url.QueryEscape(next)
}

// isPublic says whether a Host header names the public address, also with the
// port that goes without saying, and with the dot at the end of a whole name.
func (g *Gateway) isPublic(host string) bool {
	host = strings.TrimSuffix(strings.Replace(host, ".:", ":", 1), ".")
	asked, err := origin("", "", g.public.Scheme+"://"+host)
	return err == nil && asked.Host == g.public.Host
}

// onPublicHost keeps the account to the host of the public address where tools
// on other hosts have the session's cookie too.
func (g *Gateway) onPublicHost(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if g.auth.CookieDomain != "" && g.public != nil && !g.isPublic(r.Host) {
			respondError(w, http.StatusMisdirectedRequest, "The account is elsewhere", "it is at "+g.public.String()+g.prefix+"/account")
			return
		}
		next.ServeHTTP(w, r)
	})
}

// handleContinue is GET /auth/continue: on to next, after a login.
func (g *Gateway) handleContinue(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Location", g.target(r.URL.Query().Get("next")))
	w.WriteHeader(http.StatusSeeOther)
}

// target is where a login may lead: a path of this host or, with a cookie domain,
// an https URL under it. All else is "/". Browsers drop tabs and newlines and
// take a backslash for a slash, so these are refused rather than escaped.
func (g *Gateway) target(raw string) string {
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
	return g.auth.CookieDomain != "" && err == nil && same == name && under(name, g.auth.CookieDomain) && goodPort(u)
}

// idleUpstream is less than the 5 s after which Node and Apache close an idle
// connection: on one that is just being closed a POST would fail.
const idleUpstream = 4 * time.Second

// proxyOver passes requests on to a tool. What the tool responds passes as it is,
// but for what would end the session in the browser, and for Cache-Control where
// the session is renewed or the tool has none.
func (g *Gateway) proxyOver(tool *Tool, dial func(ctx context.Context, network, addr string) (net.Conn, error)) http.Handler {
	shared := httputil.ReverseProxy{
		Rewrite:    func(p *httputil.ProxyRequest) { g.rewrite(p, tool.upstream) },
		BufferPool: &buffers{},
		ErrorLog:   slog.NewLogLogger(g.auth.Log.Handler(), slog.LevelWarn),
		Transport: &http.Transport{ // no Proxy: the environment is about other places
			DialContext:           dial,
			TLSHandshakeTimeout:   tool.timeout,
			ResponseHeaderTimeout: tool.timeout,
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
		s := &stream{gateway: g, r: r, w: w, cancel: cancel}
		s.start()
		defer s.stop()
		out := r.WithContext(ctx)
		body := &upload{watchedBody: watchedBody{r.Body, s}}
		out.Body = body

		own := maps.Clone(w.Header())
		clear(w.Header()) // not in ModifyResponse: a 103 would come before that
		proxy := shared
		proxy.ModifyResponse = func(response *http.Response) error {
			h := response.Header
			h["Set-Cookie"] = append(slices.DeleteFunc(h["Set-Cookie"], g.namesSession), own["Set-Cookie"]...)
			h["Clear-Site-Data"] = slices.DeleteFunc(h["Clear-Site-Data"], func(line string) bool { return strings.Contains(line, "cookies") || strings.Contains(line, "*") })
			if len(own["Set-Cookie"]) > 0 { // a cache would hand the session to others
				h["Cache-Control"] = own["Cache-Control"]
			} else if h["Cache-Control"] == nil {
				h.Set("Cache-Control", "private, no-cache")
			}
			response.Body = s.watch(response.Body)
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
func (g *Gateway) rewrite(p *httputil.ProxyRequest, upstream *url.URL) {
	in, out := p.In, p.Out
	out.URL.Scheme, out.URL.Host, out.URL.User = upstream.Scheme, upstream.Host, nil
	out.URL.RawQuery = noSpace(in.URL.RawQuery) // ReverseProxy cleans it of what net/url cannot read
	// The path as it was sent, with what net/url would have escaped. It would
	// take one that begins with two slashes for a host.
	if path, _, _ := strings.Cut(in.RequestURI, "?"); strings.HasPrefix(path, "/") && !strings.HasPrefix(path, "//") && path != in.URL.EscapedPath() {
		out.URL.Opaque = noSpace(path)
	}
	out.Trailer = nil // may hold what headers may not
	user := cgiName(g.userHeader)
	for name := range out.Header {
		if plain := cgiName(name); isIdentityHeader(plain) || plain == user {
			delete(out.Header, name)
		}
	}
	g.dropCredentials(out.Header)
	// Through another protocol, h2c for one, a client could send the tool
	// further requests that do not come by here.
	if !strings.EqualFold(out.Header.Get("Upgrade"), "websocket") {
		out.Header.Del("Upgrade")
		out.Header.Del("Connection")
	}
	if l := loginOf(in); l.User.Name != "" {
		g.tell(out.Header, l)
		if l.User.Groups == "" {
			out.Header.Del("Remote-Groups")
		}
	}
	out.Header["X-Forwarded-For"] = []string{cmp.Or(in.Header.Get("X-Forwarded-For"), clientAddr(in))}
	out.Header["X-Forwarded-Host"] = []string{in.Host}
	out.Header["X-Forwarded-Proto"] = []string{g.scheme(in)}
}

// noSpace escapes what HTTP/2 lets through, and what would end the address in
// the tool's request line.
func noSpace(uri string) string { return strings.ReplaceAll(uri, " ", "%20") }

// By identityHeaders proxies say who and where a client is, and our clients who
// they are: what the names begin with, and whole names.
var identityHeaders = []string{"remote-", "http-remote-", "x-remote-", "x-forwarded-", "x-webauth-", "x-auth-request-", "x-auth-user", "x-auth-email",
	"x-authenticated-", "x-authentik-", "x-authelia-", "x-token-user-", "x-consumer-", "x-goog-authenticated-user-", "cf-access-authenticated-user-",
	"x-ssl-client-", "x-proxy-user", "x-ringward-", "ringward-"}
var identityNames = []string{"x-real-ip", "x-client-ip", "true-client-ip", "forwarded", "x-forwarded", "auth-user", "x-user", "x-username", "x-email"}

func isIdentityHeader(name string) bool {
	name = cgiName(name)
	return slices.Contains(identityNames, name) ||
		slices.ContainsFunc(identityHeaders, func(start string) bool { return strings.HasPrefix(name, start) })
}

// cgiName is a header's name as tools may take it: to CGI and its descendants
// all but letters and digits is the same character.
func cgiName(name string) string {
	return strings.Map(func(c rune) rune {
		if 'a' <= c && c <= 'z' || '0' <= c && c <= '9' {
			return c
		}
		return '-'
	}, strings.ToLower(name))
}

// dropCredentials leaves of the headers what is not ours to read.
func (g *Gateway) dropCredentials(h http.Header) {
	mapLines(h, "Cookie", g.withoutSession)
	mapLines(h, "Authorization", withoutToken)
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

// withoutSession cuts sessions out of a Cookie header, and leaves the other
// cookies as they stand.
func (g *Gateway) withoutSession(line string) string {
	return strings.TrimLeft(strings.Join(slices.DeleteFunc(strings.Split(line, ";"), g.namesSession), ";"), " \t")
}

// namesSession says whether a line of Set-Cookie, or a part of one of Cookie,
// is a session by its name: ours, or that of another ringward on this host,
// whose names begin as ours by default. A cookie that is set without a name
// comes back as its value alone, which may look like a name.
func (g *Gateway) namesSession(cookie string) bool {
	name, _, _ := strings.Cut(strings.TrimLeft(cookie, "= \t"), "=")
	name = strings.ToLower(strings.TrimRight(name, " \t"))
	name = strings.TrimPrefix(strings.TrimPrefix(name, "__host-"), "__secure-")
	return strings.HasPrefix(name, "ringward") || name == strings.ToLower(g.auth.CookieName)
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
