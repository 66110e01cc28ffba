// doctor.go: a look at an installation, first from inside, then from outside
// through the gateway as a stranger and as a user who means harm. It says what
// is wrong and what mends it.
package main

import (
	"bytes"
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
)

// echoed is what stands in for the tool says of a request.
type echoed struct {
	Ringward string      `json:"ringwardEcho"` // where it listens
	Method   string      `json:"method"`
	URI      string      `json:"uri"`
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
		fmt.Fprintf(stdout, "%s %s\n", r.Method, url.PathEscape(cut(r.RequestURI, 200)))
		for _, name := range slices.Sorted(maps.Keys(r.Header)) {
			fmt.Fprintf(stdout, "  %s: %q\n", name, r.Header[name])
		}
		if strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
			w.Header().Set("Connection", "Upgrade")
			w.Header().Set("Upgrade", "websocket")
			w.WriteHeader(http.StatusSwitchingProtocols)
			return
		}
		w.Header().Set("Cache-Control", "public, max-age=60")
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(echoed{listener.Addr().String(), r.Method, r.RequestURI, r.Header})
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
	name   string // of the user who is made for it
	cookie string // of their session
}

func (d *doctor) ok(format string, args ...any) {
	fmt.Fprintf(d.out, "ok    "+format+"\n", args...)
}

func (d *doctor) bad(format string, args ...any) {
	d.found++
	fmt.Fprintf(d.out, "WRONG "+format+"\n", args...)
}

// examine is the command doctor.
func examine(ctx context.Context, c config, args []string, stdout io.Writer) error {
	if c.echo != "" {
		return echo(ctx, c.echo, stdout)
	}
	d := &doctor{config: c, ctx: ctx, out: stdout}
	d.inside()
	if len(args) > 0 {
		u, err := origin("the URL", "https://tool.example.com", args[0])
		if err != nil {
			return err
		}
		d.url = u
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
	if _, err := signingKeys(); err != nil {
		d.bad("the key: %v", err)
	} else {
		d.ok("the key is set and long enough")
	}
	private := func(path string) {
		file, err := os.Stat(path)
		if err != nil {
			d.bad("%v", err)
		} else if mode := file.Mode().Perm(); mode&0o077 != 0 {
			d.bad("%s can be read by others (mode %o): chmod 600 %s", path, mode, path)
		} else {
			d.ok("%s is for its owner only", path)
		}
	}
	if path := os.Getenv("SECRET_KEY_FILE"); path != "" {
		private(path)
	}
	if isPostgres(d.db) {
		return
	}
	private(d.db)
	folder := filepath.Dir(d.db)
	if file, err := os.Stat(folder); err == nil && file.Mode().Perm()&0o022 != 0 {
		d.bad("others can write to %s (mode %o), and put another database there: chmod 755 %s", folder, file.Mode().Perm(), folder)
	}
	var disk syscall.Statfs_t
	if err := syscall.Statfs(folder, &disk); err == nil {
		if free := uint64(disk.Bavail) * uint64(disk.Bsize) >> 20; free < 100 {
			d.bad("there are %d MiB free on the disk of %s: without any, nobody can log in", free, d.db)
		} else {
			d.ok("the disk has %d MiB free", free)
		}
	}
	var table bytes.Buffer
	if err := perform(d.ctx, d.config, request{Command: "session list", JSON: true}, &table); err != nil {
		d.bad("the database: %v", err)
		return
	}
	var live []sessionView
	json.Unmarshal(table.Bytes(), &live)
	d.ok("the database can be read")
	for _, s := range live {
		if s.Created.After(time.Now().Add(clockSlack)) {
			d.bad("the clock was put back: there is a session from %s", stamp(&s.Created))
			break
		}
	}
}

// ask sends one request from outside; headers are pairs.
func (d *doctor) ask(method, path, body string, headers ...string) (*http.Response, []byte, error) {
	r, err := http.NewRequestWithContext(d.ctx, method, d.url.String(), strings.NewReader(body))
	if err != nil {
		return nil, nil, err
	}
	r.URL.Opaque = "//" + r.URL.Host + path // as it is spelled
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header[headers[i]] = []string{headers[i+1]} // likewise
	}
	w, err := d.client.Do(r)
	if err != nil {
		return nil, nil, err
	}
	defer w.Body.Close()
	b, err := io.ReadAll(io.LimitReader(w.Body, 1<<20))
	return w, b, err
}

// echoIn returns what the stand-in says, if it was it that responded.
func echoIn(body []byte) (e echoed, ok bool) {
	return e, json.Unmarshal(body, &e) == nil && e.Ringward != ""
}

const (
	mendVerify  = "nginx: auth_request /auth/verify; in every location. Caddy: the route of the documentation. HAProxy: http-request lua.ringward"
	mendHeaders = "nginx: proxy_set_header %[1]s \"\"; Caddy: request_header -%[1]s; HAProxy: http-request del-header %[1]s"
	mendHost    = "nginx: proxy_set_header Host $http_host; and X-Forwarded-Host $http_host; and start ringward with -trusted-proxies and -public-url"
)

func (d *doctor) outside() error {
	d.client = &http.Client{Timeout: 20 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	w, body, err := d.ask("GET", "/", "")
	if err != nil {
		d.bad("%v", err)
		return nil
	}
	if loopback := net.ParseIP(d.url.Hostname()); d.url.Scheme != "https" && (loopback == nil || !loopback.IsLoopback()) && d.url.Hostname() != "localhost" {
		d.bad("passwords cross the network in the clear: let the gateway serve https, and start ringward with -public-url https://%s", d.url.Host)
	}
	if date, err := http.ParseTime(w.Header.Get("Date")); err == nil && time.Since(date).Abs() > clockSlack {
		d.bad("the clock here and that of the gateway differ by %v", time.Since(date).Round(time.Second))
	}
	switch {
	case w.StatusCode == http.StatusMisdirectedRequest:
		d.bad("ringward does not know that it is %s: %s", d.url.Host, mendHost)
		return nil
	case w.StatusCode != http.StatusUnauthorized:
		d.bad("a stranger gets %s, not 401: %s", w.Status, mendVerify)
	default:
		d.ok("a stranger gets 401")
	}
	w, _, err = d.ask("GET", "/doctor?x=1", "", "Accept", "text/html", "Sec-Fetch-Mode", "navigate")
	if err != nil {
		return err
	}
	login, err := url.Parse(w.Header.Get("Location"))
	if err != nil || w.StatusCode != http.StatusSeeOther {
		d.bad("a browser gets %s, not the login page: nginx: error_page 401 403 = @login; others: ask /auth/verify?redirect", w.Status)
	} else {
		next, err := url.Parse(login.Query().Get("next"))
		if err != nil || next.Host != "" && next.Host != d.url.Host || !strings.HasSuffix(next.Path, "/doctor") {
			d.bad("after the login a browser would come to %q, not back to %s: %s", login.Query().Get("next"), d.url, mendHost)
		} else {
			d.ok("a browser is sent to %s://%s and comes back", login.Scheme, login.Host)
		}
	}
	_, there := echoIn(body)
	if there {
		d.bad("the tool responds to strangers: %s", mendVerify)
	}
	return d.asUser()
}

// asUser makes a user for the rest, who is gone afterwards.
func (d *doctor) asUser() error {
	d.name = "doctor-" + strings.ToLower(rand.Text()[:8])
	password := rand.Text() + rand.Text()
	ask := func(command string, input []byte, args ...string) error {
		return perform(d.ctx, d.config, request{Command: command, Args: args, Input: input}, io.Discard)
	}
	if err := ask("user add", []byte(password), d.name); err != nil {
		return err
	}
	defer ask("user remove", nil, d.name)
	if tool := d.tools.find(d.url.Host); tool != nil && tool.groups != nil {
		if err := ask("user group add", nil, d.name, tool.groups[0]); err != nil {
			return err
		}
	}
	body, _ := json.Marshal(map[string]string{"username": d.name, "password": password})
	w, b, err := d.ask("POST", d.prefix+"/session", string(body), "Content-Type", "application/json", "X-Forwarded-For", "203.0.113.77")
	if err != nil {
		return err
	}
	cookies := w.Cookies()
	if w.StatusCode != http.StatusCreated || len(cookies) != 1 {
		d.bad("a login gets %s %s: %s", w.Status, cut(string(b), 200), mendHost)
		return nil
	}
	d.cookie = cookies[0].Name + "=" + cookies[0].Value
	if d.url.Scheme == "https" && !cookies[0].Secure {
		d.bad("the cookie goes over http too: start ringward with -public-url %s", d.url)
	} else {
		d.ok("a login works, by the cookie %s", cookies[0].Name)
	}
	var list bytes.Buffer
	if err := perform(d.ctx, d.config, request{Command: "session list", Args: []string{d.name}, JSON: true}, &list); err == nil && strings.Contains(list.String(), "203.0.113.77") {
		d.bad("a client can say which address it has, and guess passwords without a limit: nginx: proxy_set_header X-Forwarded-For $remote_addr; HAProxy: http-request set-header X-Forwarded-For %%[src]")
	}
	return d.throughTool()
}

// spellings are names under which tools look for who is there.
var spellings = []string{"Remote-User", "Remote_User", "Remote.User", "REMOTE-USER", "remote-user", "Remote-Groups", "Remote-Email", "X-Remote-User", "X_Remote_User",
	"X-WebAuth-User", "X-Forwarded-User", "X_Forwarded_User", "X-Auth-Request-User", "X-Authenticated-User", "X-Auth-User", "Forwarded"}

func (d *doctor) throughTool() error {
	_, body, err := d.ask("GET", "/", "", "Cookie", "a=b; "+d.cookie, "Authorization", "Bearer of-the-tool")
	if err != nil {
		return err
	}
	e, ok := echoIn(body)
	if !ok {
		fmt.Fprintf(d.out, "      what arrives at the tool cannot be seen: stop it, run ringward doctor -echo ADDR in its place, and this again\n")
		return nil
	}
	if e.Header.Get(d.userHeader) != d.name {
		d.bad("the tool is not told who is there: nginx: auth_request_set $tool_user $upstream_http_remote_user; and proxy_set_header %s $tool_user;", d.userHeader)
	}
	if text := strings.Join(e.Header["Cookie"], "; "); strings.Contains(text, d.cookie) {
		d.bad("the tool gets the session cookie: nginx: proxy_set_header Cookie $tool_cookie; Caddy: request_header Cookie {rp.header.Cookie}")
	} else if !strings.Contains(text, "a=b") || e.Header.Get("Authorization") == "" {
		d.bad("the tool gets no cookies or Authorization of its own: start ringward with -trusted-proxies and the gateway's address, and let that send X-Forwarded-Method")
	} else {
		d.ok("the tool gets its own cookies, and not the session")
	}
	for _, name := range spellings {
		_, body, err := d.ask("GET", "/", "", "Cookie", d.cookie, name, "spoofed-by-doctor")
		if err != nil {
			return err
		}
		if strings.Contains(string(body), "spoofed-by-doctor") {
			d.bad("a client can send the tool %s: "+mendHeaders, name)
		}
	}
	d.ok("identity headers were tried in %d spellings", len(spellings))
	paths := []string{"/", "//", "/./", "/x", "//x", "/x/../y", "/%2e%2e/x", "/..%2fx", "/%2fx", "/x;y", "/auth", "/AUTH/x", "/auth%2fx", "/%61uth/x", "/auth/../x",
		"/auth/%2e%2e/x", "/auth/..%2fx", "/healthz/../x", "/static/x", "/api/x", "/favicon.ico", "/robots.txt", "/.well-known/x"}
	for _, path := range paths {
		_, body, err := d.ask("GET", path, "")
		if err != nil {
			return err
		}
		if _, passed := echoIn(body); passed {
			d.bad("%s passes by the login: %s", path, mendVerify)
		}
	}
	d.ok("paths were tried in %d spellings without a login", len(paths))
	path := "/doctor-" + rand.Text()
	for _, cookie := range []string{d.cookie, ""} {
		_, body, err := d.ask("GET", path, "", "Cookie", cookie)
		if err != nil {
			return err
		}
		if _, cached := echoIn(body); cached && cookie == "" {
			d.bad("the gateway keeps what a user has seen, and shows it to strangers: nginx: no proxy_cache in the tool's location; others likewise")
		}
	}
	w, _, err := d.ask("GET", "/", "", "Cookie", d.cookie, "Connection", "Upgrade", "Upgrade", "websocket", "Sec-Websocket-Version", "13",
		"Sec-Websocket-Key", "MDEyMzQ1Njc4OWFiY2RlZg==", "Origin", "https://elsewhere.invalid", "Sec-Fetch-Site", "cross-site")
	if err == nil && w.StatusCode == http.StatusSwitchingProtocols {
		d.bad("a page of another site can open a WebSocket as the user: the gateway must send Sec-WebSocket-Version, Origin and Host on to /auth/verify")
	}
	w, body, err = d.ask("POST", "/", "x", "Cookie", d.cookie, "Origin", "https://elsewhere.invalid", "Sec-Fetch-Site", "cross-site")
	if _, passed := echoIn(body); err == nil && passed {
		d.bad("a page of another site can write as the user: the gateway must send X-Forwarded-Method, and ringward know it by -trusted-proxies (%s)", w.Status)
	}
	d.reachable(e)
	return nil
}

// reachable looks whether the tool answers without us.
func (d *doctor) reachable(e echoed) {
	_, port, err := net.SplitHostPort(e.Ringward)
	if err != nil {
		return
	}
	direct := http.Client{Timeout: 3 * time.Second}
	hosts := []string{d.url.Hostname()}
	if addrs, err := net.InterfaceAddrs(); err == nil {
		for _, addr := range addrs {
			if ip, ok := addr.(*net.IPNet); ok && !ip.IP.IsLoopback() && !ip.IP.IsLinkLocalUnicast() {
				hosts = append(hosts, ip.IP.String())
			}
		}
	}
	for _, host := range hosts {
		if ip := net.ParseIP(host); host == "localhost" || ip != nil && ip.IsLoopback() {
			continue
		}
		w, err := direct.Get("http://" + net.JoinHostPort(host, port) + "/")
		if err != nil {
			continue
		}
		body, _ := io.ReadAll(io.LimitReader(w.Body, 1<<20))
		w.Body.Close()
		if _, passed := echoIn(body); passed {
			d.bad("the tool can be reached without ringward at %s: let it listen on 127.0.0.1", net.JoinHostPort(host, port))
			return
		}
	}
	d.ok("the tool cannot be reached without ringward")
}
