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
	found  int // what is wrong
	url    *url.URL
	client *http.Client
}

// check prints one finding: what is as it should be, or what is wrong.
func (d *doctor) check(ok bool, good, bad string, args ...any) {
	if ok && good != "" {
		fmt.Fprintln(d.out, "ok    "+good)
	} else if !ok {
		d.found++
		fmt.Fprintf(d.out, "WRONG "+bad+"\n", args...)
	}
}

// examine is the command doctor.
func examine(ctx context.Context, c config, args []string, stdout io.Writer) error {
	if c.echo != "" {
		return echo(ctx, c.echo, stdout)
	}
	d := &doctor{config: c, ctx: ctx, out: stdout}
	d.inside()
	if len(args) > 0 {
		var err error
		if d.url, err = origin("the URL", "https://tool.example.com", args[0]); err != nil {
			return err
		}
		if err := d.outside(); err != nil {
			return err
		}
	}
	if d.found > 0 {
		return fmt.Errorf("things that are wrong: %d", d.found)
	}
	return nil
}

func (d *doctor) inside() {
	_, err := signingKeys()
	d.check(err == nil, "the key is set and long enough", "the key: %v", err)
	private := func(path string) {
		mode := os.FileMode(0)
		file, err := os.Stat(path)
		if err == nil {
			mode = file.Mode().Perm()
		}
		d.check(err == nil, "", "%v", err)
		d.check(mode&0o077 == 0, "", "%s can be read by others (mode %o): chmod 600 %[1]s", path, mode)
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
	acts, err := d.acts()
	d.check(err == nil, "the database can be read", "the database: %v", err)
	ahead := slices.ContainsFunc(acts, func(a actView) bool { return a.At.After(time.Now().Add(clockSlack)) })
	d.check(!ahead, "", "the clock was put back: the audit has entries that are yet to come")
}

// command runs one, also when we are told to stop: it may be the one that tidies up.
func (d *doctor) command(out io.Writer, input []byte, words string, args ...string) error {
	return perform(context.WithoutCancel(d.ctx), d.config, request{Command: words, Args: args, Input: input, JSON: true}, out)
}

// acts is the audit.
func (d *doctor) acts(user ...string) (all []actView, err error) {
	var table bytes.Buffer
	if err = d.command(&table, nil, "audit", user...); err == nil {
		err = json.Unmarshal(table.Bytes(), &all)
	}
	return all, err
}

// reply is what came back from outside.
type reply struct {
	*http.Response
	body   []byte
	echo   echoed // of what stands in for the tool
	passed bool   // it was that which responded
}

// ask sends one request from outside; headers are pairs.
func (d *doctor) ask(method, path, body string, headers ...string) (reply, error) {
	r, err := http.NewRequestWithContext(d.ctx, method, d.url.String(), strings.NewReader(body))
	if err != nil {
		return reply{}, err
	}
	if r.URL.Opaque = path; strings.HasPrefix(path, "//") { // as it is spelled
		r.URL.Opaque = "//" + r.URL.Host + path
	}
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header[headers[i]] = []string{headers[i+1]} // likewise
	}
	w, err := d.client.Do(r)
	if err != nil {
		return reply{}, err
	}
	defer w.Body.Close()
	if w.StatusCode == http.StatusSwitchingProtocols {
		return reply{Response: w}, nil
	}
	got := reply{Response: w}
	got.body, err = io.ReadAll(io.LimitReader(w.Body, 1<<20))
	got.passed = json.Unmarshal(got.body, &got.echo) == nil && got.echo.Ringward != ""
	return got, err
}

// What mends it in each gateway.
const (
	mendVerify = `nginx: auth_request /auth/verify; in every location before the tool. Caddy: no handle or route before the documented one. ` +
		`HAProxy: http-request lua.ringward if !ours, with no other condition`
	mendHeaders = `nginx: proxy_set_header %[1]s ""; Caddy: request_header -%[1]s; HAProxy: its beginning in the list drop of ringward.lua`
	mendHost    = `nginx: proxy_set_header X-Forwarded-Host $http_host; Caddy: no header_up X-Forwarded-Host; ` +
		`HAProxy: http-request set-header X-Forwarded-Host %%[req.hdr(Host)]; and start ringward with -trusted-proxies and -public-url`
	mendAsked = `nginx: proxy_pass_request_headers must be on in location = /auth/verify, without proxy_set_header of %s there; ` +
		`Caddy: no header_up of it where /auth/verify is asked; HAProxy: ringward.lua sends all headers`
	mendCache = `nginx: no proxy_cache in the location of the tool; Caddy: no cache; HAProxy: no http-request cache-use`
)

func (d *doctor) outside() error {
	plain := new(http.Protocols)
	plain.SetHTTP1(true) // HTTP/2 has no upgrades, and changes the spelling of names
	d.client = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{Protocols: plain},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	w, err := d.ask("GET", "/", "")
	if err != nil {
		d.check(false, "", "%v", err)
		return nil
	}
	loopback := d.url.Hostname() == "localhost" || net.ParseIP(d.url.Hostname()).IsLoopback()
	d.check(d.url.Scheme == "https" || loopback, "", "passwords cross the network in the clear: "+
		"let the gateway serve https (nginx: listen 443 ssl; Caddy: the host name before the block; HAProxy: bind :443 ssl crt), and start ringward with -public-url https://%s", d.url.Host)
	if date, err := http.ParseTime(w.Header.Get("Date")); err == nil {
		d.check(time.Since(date).Abs() <= clockSlack, "", "the clock here and that of the gateway differ by %v", time.Since(date).Round(time.Second))
	}
	if w.StatusCode == http.StatusMisdirectedRequest || w.StatusCode >= 500 { // which nginx makes of it
		d.check(false, "", "ringward cannot be asked, or not by the name %s (%s): "+mendHost, d.url.Host, w.Status)
		return nil
	}
	d.check(w.StatusCode == http.StatusUnauthorized, "a stranger gets 401", "a stranger gets %s, not 401: %s", w.Status, mendVerify)
	w, err = d.ask("GET", "/doctor?x=1", "", "Accept", "text/html", "Sec-Fetch-Mode", "navigate")
	if err != nil {
		return err
	}
	login, err := w.Location()
	if err != nil || w.StatusCode != http.StatusSeeOther {
		d.check(false, "", "a browser gets %s, not the login page: nginx: error_page 401 = @login; Caddy and HAProxy: ask /auth/verify?redirect", w.Status)
	} else {
		next, err := url.Parse(login.Query().Get("next"))
		d.check(err == nil && (next.Host == "" || next.Host == d.url.Host) && next.Path == "/doctor", "a browser is sent to the login page and comes back",
			"after the login a browser would come to %q, not back to %s: "+mendHost, login.Query().Get("next"), d.url)
	}
	return d.asUser()
}

// asUser makes a user for the rest, who is gone afterwards. An authenticator app
// is there in case that a password alone lets nobody in.
func (d *doctor) asUser() error {
	name, password, seed := "doctor-"+strings.ToLower(rand.Text()[:8]), rand.Text()+rand.Text(), []byte(rand.Text()[:seedBytes])
	hash, err := bcrypt.GenerateFromPassword([]byte(password), d.bcryptCost)
	if err == nil {
		err = d.command(io.Discard, fmt.Appendf(nil, "%s:%s:%s", name, hash, seedText.EncodeToString(seed)), "user import", "doctor")
	}
	if err != nil {
		return err
	}
	defer d.command(io.Discard, nil, "user remove", name)
	if tool := d.tools.find(d.url.Host); tool != nil && tool.groups != nil {
		if err := d.command(io.Discard, nil, "user group add", name, tool.groups[0]); err != nil {
			return err
		}
	}
	var first struct{ Data pendingLogin }
	w, err := d.post("/session", map[string]string{"username": name, "password": password})
	if err == nil && json.Unmarshal(w.body, &first) == nil && first.Data.Pending != "" {
		w, err = d.post("/session/code", map[string]string{"pending": first.Data.Pending, "code": codeAt(seed, time.Now().Unix()/codeStep)})
	}
	if err != nil {
		return err
	}
	if w.StatusCode != http.StatusCreated || len(w.Cookies()) != 1 {
		d.check(false, "", "a login gets %s %s: "+mendHost, w.Status, cut(string(w.body), 200))
		return nil
	}
	cookie := w.Cookies()[0]
	d.check(d.url.Scheme != "https" || cookie.Secure, "a login works", "the cookie goes over http too: start ringward with -public-url %s", d.url)
	acts, err := d.acts(name)
	spoofed := slices.ContainsFunc(acts, func(a actView) bool { return a.From == spoofedAddr })
	d.check(err == nil && !spoofed, "", "a client can say which address it has, and guess passwords without a limit: nginx: proxy_set_header X-Forwarded-For $remote_addr; "+
		"Caddy: no trusted_proxies that are clients; HAProxy: http-request set-header X-Forwarded-For %%[src] (%v)", err)
	return d.throughTool(name, cookie.Name+"="+cookie.Value)
}

const spoofedAddr = "203.0.113.77"

// post sends JSON as a page of ours does.
func (d *doctor) post(path string, fields map[string]string) (reply, error) {
	body, _ := json.Marshal(fields)
	return d.ask("POST", d.prefix+path, string(body), "Content-Type", "application/json", "Origin", d.url.String(), "X-Forwarded-For", spoofedAddr)
}

// spellings are names under which tools look for who is there.
var spellings = []string{"Remote-User", "Remote_User", "Remote.User", "REMOTE-USER", "remote-user", "Remote-Groups", "Remote-Email", "X-Remote-User", "X_Remote_User",
	"X-WebAuth-User", "X-Forwarded-User", "X_Forwarded_User", "X-Auth-Request-User", "X-Authenticated-User", "X-Auth-User", "Forwarded"}

// around are ways past a rule for a path.
var around = []string{"/", "//", "/./", "/x", "//x", "/x/../y", "/%2e%2e/x", "/..%2fx", "/%2fx", "/x;y", "/auth", "/AUTH/x", "/auth%2fx", "/%61uth/x", "/auth/../x",
	"/auth/%2e%2e/x", "/auth/..%2fx", "/healthz/../x", "/static/x", "/api/x", "/favicon.ico", "/robots.txt", "/.well-known/x"}

func (d *doctor) throughTool(name, cookie string) error {
	w, err := d.ask("GET", "/", "", "Cookie", "a=b; "+cookie, "Authorization", "Bearer of-the-tool")
	if err != nil {
		return err
	}
	if !w.passed {
		fmt.Fprintf(d.out, "      what arrives at the tool cannot be seen (%s): stop it, run ringward doctor -echo ADDR in its place, and this again, with the -tools of the server\n", w.Status)
		return nil
	}
	tool := w.echo.Ringward
	d.check(w.echo.Header.Get(d.userHeader) == name, "", "the tool is not told who is there: nginx: auth_request_set $tool_user $upstream_http_remote_user; and proxy_set_header %[1]s $tool_user; "+
		"Caddy: request_header %[1]s {rp.header.%[1]s}; HAProxy: the last list of ringward.lua", d.userHeader)
	text := strings.Join(w.echo.Header["Cookie"], "; ")
	d.check(!strings.Contains(text, cookie), "", "the tool gets the session cookie: nginx: proxy_set_header Cookie $tool_cookie; Caddy: request_header Cookie {rp.header.Cookie}; HAProxy: the last list of ringward.lua")
	d.check(strings.Contains(text, "a=b") && w.echo.Header.Get("Authorization") != "", "the tool gets its own cookies and Authorization",
		"the tool gets no cookies or Authorization of its own: start ringward with -trusted-proxies and the gateway's address, and let that send X-Forwarded-Method")

	for _, header := range spellings {
		w, err := d.ask("GET", "/", "", "Cookie", cookie, header, "spoofed-by-doctor")
		if err != nil {
			return err
		}
		d.check(!strings.Contains(string(w.body), "spoofed-by-doctor"), "", "a client can send the tool %s: "+mendHeaders, header)
	}
	fmt.Fprintf(d.out, "      identity headers were tried in %d spellings\n", len(spellings))
	for _, path := range around {
		w, err := d.ask("GET", path, "")
		if err != nil {
			return err
		}
		target, err := url.ParseRequestURI(path)
		public := err == nil && d.tools.find(d.url.Host) != nil && d.tools.find(d.url.Host).opens(&http.Request{URL: target})
		d.check(!w.passed || public, "", "%s passes by the login: %s", path, mendVerify)
	}
	fmt.Fprintf(d.out, "      paths were tried in %d spellings without a login\n", len(around))

	path := "/doctor-" + rand.Text()
	first, err := d.ask("GET", path, "", "Cookie", cookie, "X-Doctor", "first")
	second, err2 := d.ask("GET", path, "", "Cookie", cookie, "X-Doctor", "second")
	stranger, err3 := d.ask("GET", path, "")
	shown := first.passed && second.passed && second.echo.Header.Get("X-Doctor") == "first"
	d.check(!shown && !stranger.passed, "", "the gateway keeps what a user has seen, and shows it to others: "+mendCache)
	upgrade, err4 := d.ask("GET", "/", "", "Cookie", cookie, "Connection", "Upgrade", "Upgrade", "websocket", "Sec-Websocket-Version", "13",
		"Sec-Websocket-Key", "MDEyMzQ1Njc4OWFiY2RlZg==", "Origin", "https://elsewhere.invalid", "Sec-Fetch-Site", "cross-site")
	write, err5 := d.ask("POST", "/", "x", "Cookie", cookie, "Origin", "https://elsewhere.invalid", "Sec-Fetch-Site", "cross-site")
	if err := cmp.Or(err, err2, err3, err4, err5); err != nil {
		return err
	}
	d.check(upgrade.StatusCode != http.StatusSwitchingProtocols, "a page of another site can open no WebSocket",
		"a page of another site can open a WebSocket as the user: "+mendAsked, "Sec-WebSocket-Version, Origin or Sec-Fetch-Site")
	d.check(!write.passed, "a page of another site can write nothing", "a page of another site can write as the user: "+
		"let the gateway send X-Forwarded-Method, and start ringward with -trusted-proxies and the gateway's address; "+mendAsked, "Origin or Sec-Fetch-Site")
	d.reachable(tool)
	return nil
}

// reachable looks whether the tool answers without us.
func (d *doctor) reachable(tool string) {
	hosts := []string{d.url.Hostname()}
	addrs, _ := net.InterfaceAddrs()
	for _, addr := range addrs {
		if ip, ok := addr.(*net.IPNet); ok {
			hosts = append(hosts, ip.IP.String())
		}
	}
	_, port, err := net.SplitHostPort(tool)
	open, gateway := "", d.url
	for _, host := range hosts {
		if ip := net.ParseIP(host); err != nil || host == "localhost" || ip != nil && (ip.IsLoopback() || ip.IsLinkLocalUnicast()) {
			continue
		}
		d.url = &url.URL{Scheme: "http", Host: net.JoinHostPort(host, port)}
		if w, err := d.ask("GET", "/", ""); err == nil && w.passed {
			open = d.url.Host
		}
	}
	d.url = gateway
	d.check(open == "", "the tool cannot be reached without ringward", "the tool can be reached without ringward at %s: let it listen on 127.0.0.1", open)
}
