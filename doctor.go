// doctor.go: a look at an installation, first from inside, then from outside
// through the gateway as a stranger and as a user who means harm. It says what
// is wrong and what mends it.
package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/crypto/bcrypt"
)

// echoed is what stands in for the tool says of a request.
type echoed struct {
	Ringward string      `json:"ringwardEcho"` // where it listens
	Header   http.Header `json:"header"`
}

// echo stands in for a tool, and invites caches to keep what it responds.
func echo(ctx context.Context, addr string, stdout io.Writer) error {
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "standing in for the tool on %s; run ringward doctor URL, and end this with Ctrl-C\n", listener.Addr())
	server := &http.Server{ReadHeaderTimeout: 5 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var lines bytes.Buffer
		fmt.Fprintf(&lines, "%s %q\n", r.Method, cut(r.RequestURI, 200))
		for _, name := range slices.Sorted(maps.Keys(r.Header)) {
			fmt.Fprintf(&lines, "  %s: %q\n", name, r.Header[name])
		}
		stdout.Write(lines.Bytes())
		if strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
			w.Header().Set("Connection", "Upgrade")
			w.Header().Set("Upgrade", "websocket")
			w.WriteHeader(http.StatusSwitchingProtocols)
			return
		}
		w.Header().Set("Cache-Control", "public, max-age=60")
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(echoed{listener.Addr().String(), r.Header})
	})}
	context.AfterFunc(ctx, func() { server.Close() })
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// doctor is one examination.
type doctor struct {
	config
	ctx    context.Context
	out    io.Writer
	found  int   // what is wrong
	err    error // that it cannot go on; nothing is found after it
	url    *url.URL
	client *http.Client
}

// check prints one finding: what is as it should be, or what is wrong.
func (d *doctor) check(ok bool, good, bad string, args ...any) {
	if d.err == nil && ok && good != "" {
		fmt.Fprintln(d.out, "ok    "+good)
	} else if d.err == nil && !ok {
		d.found++
		fmt.Fprintf(d.out, "WRONG "+bad+"\n", args...)
	}
}

// examine is the command doctor.
func examine(ctx context.Context, c config, args []string, stdout io.Writer) (err error) {
	if c.echo != "" {
		return echo(ctx, c.echo, stdout)
	}
	d := &doctor{config: c, ctx: ctx, out: stdout}
	d.inside()
	if len(args) > 0 && d.err == nil {
		if d.url, err = origin("the URL", "https://tool.example.com", args[0]); err != nil {
			return err
		}
		plain := new(http.Protocols)
		plain.SetHTTP1(true) // HTTP/2 has no upgrades, and changes the spelling of names
		d.client = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{Protocols: plain},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
		if d.asStranger() {
			d.asUser()
		}
	}
	if d.err == nil && d.found > 0 {
		d.err = fmt.Errorf("things that are wrong: %d", d.found)
	}
	return d.err
}

func (d *doctor) inside() {
	_, err := signingKeys()
	d.check(err == nil, "the key is set and long enough", "the key: %v", err)
	private := func(path string) {
		file, err := os.Stat(path)
		d.check(err == nil && file.Mode().Perm()&0o077 == 0, "", "%s must be there, and for its owner only: chmod 600 %[1]s", path)
	}
	if path := os.Getenv("SECRET_KEY_FILE"); path != "" {
		private(path)
	}
	if !isPostgres(d.db) {
		private(d.db)
		folder := filepath.Dir(d.db)
		if file, err := os.Stat(folder); err == nil {
			d.check(file.Mode().Perm()&0o022 == 0, "", "others can write to %s, and put another database there: chmod 755 %[1]s", folder)
		}
		var disk syscall.Statfs_t
		if err := syscall.Statfs(folder, &disk); err == nil {
			free := uint64(disk.Bavail) * uint64(disk.Bsize) >> 20
			d.check(free >= 100, "", "there are %d MiB free on the disk of %s: without any, nobody can log in", free, d.db)
		}
	}
	ahead := slices.ContainsFunc(d.acts(), func(a actView) bool { return a.At.After(time.Now().Add(clockSlack)) })
	d.check(!ahead, "the database can be read", "the clock was put back: the audit has entries that are yet to come")
}

// command runs one, also when we are told to stop: it may be the one that tidies up.
func (d *doctor) command(out io.Writer, input []byte, words string, args ...string) {
	err := perform(context.WithoutCancel(d.ctx), d.config, commandCall{Command: words, Args: args, Input: input, JSON: true}, out)
	d.err = cmp.Or(d.err, err)
}

// acts is the audit.
func (d *doctor) acts(user ...string) (all []actView) {
	var table bytes.Buffer
	d.command(&table, nil, "audit", user...)
	json.Unmarshal(table.Bytes(), &all)
	return all
}

// reply is what came back from outside.
type reply struct {
	*http.Response
	body   []byte
	echo   echoed // of what stands in for the tool
	passed bool   // it was that which responded
}

// ask sends one request from outside; headers are pairs.
func (d *doctor) ask(method, path, body string, headers ...string) (got reply) {
	got.Response = new(http.Response)
	r, err := http.NewRequestWithContext(d.ctx, method, d.url.String(), strings.NewReader(body))
	if err == nil {
		if r.URL.Opaque = path; strings.HasPrefix(path, "//") { // as it is spelled
			r.URL.Opaque = "//" + r.URL.Host + path
		}
		for i := 0; i+1 < len(headers); i += 2 {
			r.Header[headers[i]] = []string{headers[i+1]} // likewise
		}
		var w *http.Response
		if w, err = d.client.Do(r); err == nil {
			defer w.Body.Close()
			got.Response = w
		} else {
			err = fmt.Errorf("%s: %w", d.url, errors.Unwrap(err)) // of a url.Error, which would name the path alone
		}
	}
	if err == nil && got.StatusCode != http.StatusSwitchingProtocols {
		got.body, err = io.ReadAll(io.LimitReader(got.Body, 1<<20))
		got.passed = json.Unmarshal(got.body, &got.echo) == nil && got.echo.Ringward != ""
	}
	d.err = cmp.Or(d.err, err)
	return got
}

// What mends it in each gateway.
const (
	mendVerify = `nginx: auth_request /auth/verify; in every location before the tool. Caddy: no handle or route before the documented one. ` +
		`HAProxy: http-request lua.ringward unless ours, with no other condition`
	mendHeaders = `nginx: proxy_set_header %[1]s ""; Caddy: request_header -%[1]s; HAProxy: its beginning in the list drop of ringward.lua`
	mendHost    = `nginx: proxy_set_header X-Forwarded-Host $http_host; Caddy: no header_up X-Forwarded-Host; ` +
		`HAProxy: http-request set-header X-Forwarded-Host %%[req.hdr(Host)]; and start ringward with -trusted-proxies and -public-url`
	mendAsked = `nginx: proxy_pass_request_headers must be on in location = /auth/verify, without proxy_set_header of %s there; ` +
		`Caddy: no header_up of it where /auth/verify is asked; HAProxy: ringward.lua sends all headers`
	mendCache = `nginx: no proxy_cache in the location of the tool; Caddy: no cache; HAProxy: no http-request cache-use`
)

// asStranger says whether it makes sense to go on.
func (d *doctor) asStranger() bool {
	w := d.ask("GET", "/", "")
	loopback := d.url.Hostname() == "localhost" || net.ParseIP(d.url.Hostname()).IsLoopback()
	d.check(d.url.Scheme == "https" || loopback, "", "passwords cross the network in the clear: "+
		"let the gateway serve https (nginx: listen 443 ssl; Caddy: the host name before the block; HAProxy: bind :443 ssl crt), and start ringward with -public-url https://%s", d.url.Host)
	if date, err := http.ParseTime(w.Header.Get("Date")); err == nil {
		d.check(time.Since(date).Abs() <= clockSlack, "", "the clock here and that of the gateway differ by %v", time.Since(date).Round(time.Second))
	}
	if w.StatusCode == http.StatusMisdirectedRequest || w.StatusCode >= 500 { // which nginx makes of it
		d.check(false, "", "ringward cannot be asked, or not by the name %s (%s): "+mendHost, d.url.Host, w.Status)
		return false
	}
	d.check(w.StatusCode == http.StatusUnauthorized, "a stranger gets 401", "a stranger gets %s, not 401: %s", w.Status, mendVerify)
	w = d.ask("GET", "/?doctor", "", "Accept", "text/html", "Sec-Fetch-Mode", "navigate")
	login, err := w.Location()
	if err != nil || w.StatusCode != http.StatusSeeOther {
		d.check(false, "", "a browser gets %s, not the login page: nginx: error_page 401 = @login; Caddy and HAProxy: ask /auth/verify?redirect", w.Status)
	} else {
		next, err := url.Parse(login.Query().Get("next"))
		d.check(err == nil && (next.Host == "" || next.Host == d.url.Host) && next.RequestURI() == "/?doctor", "a browser is sent to the login page and comes back",
			"after the login a browser would come to %q, not back to %s: "+mendHost, login.Query().Get("next"), d.url)
	}
	return d.err == nil
}

// asUser makes a user for the rest, who is gone afterwards. An authenticator app
// is there in case that a password alone lets nobody in.
func (d *doctor) asUser() {
	name, password, seed := "doctor-"+strings.ToLower(rand.Text()[:8]), rand.Text()+rand.Text(), []byte(rand.Text()[:seedBytes])
	hash, err := bcrypt.GenerateFromPassword([]byte(password), d.bcryptCost)
	d.err = cmp.Or(d.err, err)
	d.command(io.Discard, fmt.Appendf(nil, "%s:%s:%s", name, hash, seedText.EncodeToString(seed)), "user import", "doctor")
	defer d.command(io.Discard, nil, "user remove", name)
	if tool := d.tools.find(d.url.Host); tool != nil && tool.groups != nil {
		d.command(io.Discard, nil, "user group add", name, tool.groups[0])
	}
	post := func(path string, fields map[string]string) reply {
		body, _ := json.Marshal(fields)
		return d.ask("POST", d.prefix+path, string(body), "Content-Type", "application/json", "Origin", d.url.String(), "X-Forwarded-For", spoofedAddr)
	}
	var first struct{ Data pendingLogin }
	w := post("/session", map[string]string{"username": name, "password": password})
	if json.Unmarshal(w.body, &first) == nil && first.Data.Pending != "" {
		w = post("/session/code", map[string]string{"pending": first.Data.Pending, "code": codeAt(seed, time.Now().Unix()/codeStep)})
	}
	if w.StatusCode != http.StatusCreated || len(w.Cookies()) != 1 {
		d.check(false, "", "a login gets %s %s: "+mendHost, w.Status, cut(string(w.body), 200))
		return
	}
	cookie := w.Cookies()[0]
	d.check(d.url.Scheme != "https" || cookie.Secure, "a login works", "the cookie goes over http too: start ringward with -public-url %s", d.url)
	spoofed := slices.ContainsFunc(d.acts(name), func(a actView) bool { return a.From == spoofedAddr })
	d.check(!spoofed, "", "a client can say which address it has, and guess passwords without a limit: nginx: proxy_set_header X-Forwarded-For $remote_addr; "+
		"Caddy: no trusted_proxies that are clients; HAProxy: http-request set-header X-Forwarded-For %%[src]")
	d.throughTool(name, cookie.Name+"="+cookie.Value)
}

const spoofedAddr = "203.0.113.77"

// spellings are names under which tools look for who is there.
var spellings = []string{"Remote-User", "Remote_User", "Remote.User", "REMOTE-USER", "remote-user", "Remote-Groups", "Remote-Email", "X-Remote-User", "X_Remote_User",
	"X-WebAuth-User", "X-Forwarded-User", "X_Forwarded_User", "X-Auth-Request-User", "X-Authenticated-User", "X-Auth-User", "Forwarded"}

// around are ways past a rule for a path.
var around = []string{"/", "//", "/./", "/x", "//x", "/x/../y", "/%2e%2e/x", "/..%2fx", "/%2fx", "/x;y", "/auth", "/AUTH/x", "/auth%2fx", "/%61uth/x", "/auth/../x",
	"/auth/%2e%2e/x", "/auth/..%2fx", "/healthz/../x", "/static/x", "/api/x", "/favicon.ico", "/robots.txt", "/.well-known/x"}

// throughTool looks at what comes through to the tool, and who.
func (d *doctor) throughTool(name, cookie string) {
	w := d.ask("GET", "/", "", "Cookie", "a=b; "+cookie, "Authorization", "Bearer of-the-tool")
	if !w.passed {
		fmt.Fprintf(d.out, "      what arrives at the tool cannot be seen (%s): stop it, run ringward doctor -echo ADDR in its place, and this again, with the -tools of the server\n", w.Status)
		return
	}
	tool := w.echo
	d.check(tool.Header.Get(d.userHeader) == name, "", "the tool is not told who is there: nginx: auth_request_set $tool_user $upstream_http_remote_user; and proxy_set_header %[1]s $tool_user; "+
		"Caddy: request_header %[1]s {rp.header.%[1]s}; HAProxy: the last list of ringward.lua", d.userHeader)
	text := strings.Join(tool.Header["Cookie"], "; ")
	d.check(!strings.Contains(text, cookie), "", "the tool gets the session cookie: nginx: proxy_set_header Cookie $tool_cookie; Caddy: request_header Cookie {rp.header.Cookie}; HAProxy: the last list of ringward.lua")
	d.check(strings.Contains(text, "a=b") && tool.Header.Get("Authorization") != "", "the tool gets its own cookies and Authorization",
		"the tool gets no cookies or Authorization of its own: start ringward with -trusted-proxies and the gateway's address, and let that send X-Forwarded-Method")
	for _, header := range spellings {
		w := d.ask("GET", "/", "", "Cookie", cookie, header, "spoofed-by-doctor")
		d.check(!strings.Contains(string(w.body), "spoofed-by-doctor"), "", "a client can send the tool %s: "+mendHeaders, header)
	}
	for _, path := range around {
		target, err := url.ParseRequestURI(path)
		tool := d.tools.find(d.url.Host)
		public := err == nil && tool != nil && tool.opens(&http.Request{URL: target})
		d.check(!d.ask("GET", path, "").passed || public, "", "%s passes by the login: %s", path, mendVerify)
	}
	d.check(true, fmt.Sprintf("identity headers were tried in %d spellings, and paths without a login in %d", len(spellings), len(around)), "")

	path := "/doctor-" + rand.Text()
	d.ask("GET", path, "", "Cookie", cookie, "X-Doctor", "first")
	again, stranger := d.ask("GET", path, "", "Cookie", cookie, "X-Doctor", "second"), d.ask("GET", path, "")
	d.check(again.echo.Header.Get("X-Doctor") != "first" && !stranger.passed, "", "the gateway keeps what a user has seen, and shows it to others: "+mendCache)
	elsewhere := []string{"Cookie", cookie, "Origin", "https://elsewhere.invalid", "Sec-Fetch-Site", "cross-site"}
	upgrade := d.ask("GET", "/", "", append(elsewhere, "Connection", "Upgrade", "Upgrade", "websocket", "Sec-Websocket-Version", "13", "Sec-Websocket-Key", "MDEyMzQ1Njc4OWFiY2RlZg==")...)
	d.check(upgrade.StatusCode != http.StatusSwitchingProtocols, "a page of another site can open no WebSocket",
		"a page of another site can open a WebSocket as the user: "+mendAsked, "Sec-WebSocket-Version, Origin or Sec-Fetch-Site")
	d.check(!d.ask("POST", "/", "x", elsewhere...).passed, "a page of another site can write nothing", "a page of another site can write as the user: "+
		"let the gateway send X-Forwarded-Method, and start ringward with -trusted-proxies and the gateway's address; "+mendAsked, "Origin or Sec-Fetch-Site")
	open := d.reach(tool.Ringward)
	d.check(open == "", "the tool cannot be reached without ringward", "the tool can be reached without ringward at %s: let it listen on 127.0.0.1", open)
}

// reach returns where others can reach the tool itself, or "".
func (d *doctor) reach(tool string) (open string) {
	_, port, _ := net.SplitHostPort(tool)
	addrs, _ := net.InterfaceAddrs()
	if host := d.url.Hostname(); host != "localhost" {
		named, _ := net.LookupIP(host)
		for _, ip := range named {
			addrs = append(addrs, &net.IPNet{IP: ip})
		}
	}
	for _, addr := range addrs {
		if ip, ok := addr.(*net.IPNet); ok && !ip.IP.IsLoopback() && !ip.IP.IsLinkLocalUnicast() {
			direct := *d
			direct.url = &url.URL{Scheme: "http", Host: net.JoinHostPort(ip.IP.String(), port)}
			if direct.ask("GET", "/", "").passed {
				open = direct.url.Host
			}
		}
	}
	return open
}
