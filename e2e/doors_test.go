//go:build gateways

// doors_test.go puts the requests of testdata/doors.txt through every way to a
// tool: ringward with -tools, and nginx, Caddy and HAProxy that ask it. The
// same table is tested in process by tools_test.go.
package e2e

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

// guarded is ringward before the tools of the example in docs/tools.md. Every
// upstream is the same one, which keeps what it got.
type guarded struct {
	*server
	tool   *httptest.Server
	got    atomic.Pointer[toolGot]
	people map[string]string // what stands in braces in testdata/doors.txt
}

func startGuarded(t *testing.T) *guarded {
	t.Helper()
	g := &guarded{people: map[string]string{"password": password}}
	g.tool = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.got.Store(&toolGot{Method: r.Method, URI: r.RequestURI, Host: r.Host, Header: r.Header})
	}))
	t.Cleanup(g.tool.Close)
	page, err := os.ReadFile("../docs/tools.md")
	if err != nil {
		t.Fatal(err)
	}
	example := regexp.MustCompile("(?ms)^```\n(# host .*?)^```$").FindSubmatch(page)
	if example == nil {
		t.Fatal("docs/tools.md has no example of a tools file")
	}
	p := newProgram(t)
	file := regexp.MustCompile(`http://127\.0\.0\.1:300\d`).ReplaceAll(example[1], []byte(g.tool.URL))
	if err := os.WriteFile(p.path("tools"), file, 0o600); err != nil {
		t.Fatal(err)
	}
	p.addUser("frodo", "sam", "gimli")
	for _, in := range [][]string{{"frodo", "dev"}, {"sam", "ops"}, {"sam", "dev"}} {
		p.must("", append([]string{"user", "group", "add"}, in...)...)
	}
	g.server = p.serve("-tools", "tools", "-public-url", "https://auth.example.com", "-cookie-domain", "example.com", "-trusted-proxies", "127.0.0.1/32")
	for _, name := range []string{"frodo", "sam", "gimli"} {
		g.people[name] = strings.TrimPrefix(g.loginOf(name), "Cookie: ")
		g.people[name+".token"] = strings.TrimSpace(g.must("", "token", "add", name, "script"))
	}
	ended := g.loginOf("frodo")
	g.want(204, "DELETE", "/auth/session", "", "Host: auth.example.com", ended)
	g.people["broken"], g.people["ended"] = g.people["frodo"]+"x", strings.TrimPrefix(ended, "Cookie: ")
	return g
}

// loginOf is login on the host of the login.
func (g *guarded) loginOf(name string) string {
	g.Helper()
	return g.want(201, "POST", "/auth/session", credentials(name, password), "Host: auth.example.com").cookie()
}

// doorRow is a line of testdata/doors.txt.
type doorRow struct {
	line, method, path, request, verdict string
}

func doorRows(t *testing.T, people map[string]string) (rows []doorRow) {
	t.Helper()
	text, err := os.ReadFile("../testdata/doors.txt")
	if err != nil {
		t.Fatal(err)
	}
	braces := regexp.MustCompile(`\{([a-z.]+)\}`)
	encoded := regexp.MustCompile(`\{(b64|url64):([^}]*)\}`)
	for n, line := range strings.Split(string(text), "\n") {
		if line == "" || line[0] == '#' {
			continue
		}
		fields := strings.Split(line, " | ")
		for i := range fields {
			fields[i] = strings.TrimSpace(fields[i])
		}
		who, method, host, path, verdict, headers := fields[0], fields[1], fields[2], fields[3], fields[4], fields[5:]
		name, secret, basic := strings.Cut(who, ":")
		switch {
		case basic && people[secret+".token"] != "":
			headers = append(headers, "Authorization: Basic {b64:"+name+":{"+secret+".token}}")
		case basic && secret == "password":
			headers = append(headers, "Authorization: Basic {b64:"+name+":{password}}")
		case basic:
			headers = append(headers, "Authorization: Basic {b64:"+name+":}")
		case strings.HasSuffix(who, ".token"):
			headers = append(headers, "Authorization: Bearer {"+who+"}")
		case who != "nobody":
			headers = append(headers, "Cookie: a=1; {"+who+"}")
		}
		request := method + " " + path + " HTTP/1.1\r\nHost: " + host + "\r\n" + strings.Join(append(headers, ""), "\r\n") + "\r\n"
		request = braces.ReplaceAllStringFunc(request, func(name string) string { return people[name[1:len(name)-1]] })
		request = encoded.ReplaceAllStringFunc(request, func(text string) string {
			kind, plain, _ := strings.Cut(text[1:len(text)-1], ":")
			if kind == "url64" {
				return base64.RawURLEncoding.EncodeToString([]byte(plain))
			}
			return base64.StdEncoding.EncodeToString([]byte(plain))
		})
		rows = append(rows, doorRow{fmt.Sprintf("line %d: %s", n+1, line), method, path, request, verdict})
	}
	return rows
}

// startDoor starts a gateway before ringward and the tool, and returns where
// it listens.
func (g *guarded) startDoor(name string) (addr string) {
	g.Helper()
	door := &gateway{ringward: &ringward{server: g.server}, tool: &gatewayTool{addr: strings.TrimPrefix(g.tool.URL, "http://")}}
	door.before(name)
	return door.addr
}

// through sends a request to where a door listens, from an address that
// ringward does not trust.
func (g *guarded) through(addr, request, method string) (answer reply, got *toolGot) {
	g.got.Store(nil)
	conn, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 9, 9, 9)}}).Dial("tcp", addr)
	if err != nil {
		return reply{err: err}, nil
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	io.WriteString(conn, request)
	answer = read(bufio.NewReader(conn), method)
	return answer, g.got.Load()
}

// doorVerdict says what a response means, in the words of the table.
func doorVerdict(r reply) string {
	asks := r.header.Get("WWW-Authenticate")
	switch {
	case r.status == 401 && strings.HasPrefix(asks, "Basic "):
		return "login basic"
	case r.status == 401:
		return "login"
	case r.status == 303:
		return "login page"
	case r.status == 403 && strings.Contains(r.body, "Not for you"):
		return "not for you"
	case r.status == 403 && strings.Contains(r.body, "Cross-site"):
		return "cross-site"
	case (r.status == 403 || r.status == 421) && (strings.Contains(r.body, "no tool of that name") || strings.Contains(r.body, "does not go by that name")):
		return "no tool"
	}
	return fmt.Sprint(r.status, r.body, r.err)
}

func TestGatewayDoors(t *testing.T) {
	g := startGuarded(t)
	rows := doorRows(t, g.people)
	groups := map[string]string{"frodo": "dev", "sam": "dev,ops"}
	var secrets []string
	for name, secret := range g.people {
		if name != "broken" {
			secrets = append(secrets, secret)
		}
	}
	for _, door := range []string{"tools", "nginx", "caddy", "haproxy", "traefik"} {
		t.Run(door, func(t *testing.T) {
			addr := g.addr()
			if door != "tools" {
				addr = g.startDoor(door)
			}
			for _, row := range rows {
				want := row.verdict
				if door == "tools" && strings.Contains(row.request, "\r\nHost: hooks") {
					want = "no tool" // here is no upstream
				}
				answer, got := g.through(addr, row.request, row.method)
				verdict := doorVerdict(answer)
				if got != nil {
					verdict = "as nobody"
					if user := got.Header["Remote-User"]; len(user) == 1 && user[0] != "" {
						verdict = "as " + user[0]
					}
				}
				if answer.status == 400 && got == nil && !strings.HasPrefix(want, "as ") {
					continue // nginx reads neither such a host nor a path with a NUL in it, or above the root
				}
				if verdict != want {
					t.Errorf("%s\n%s", verdict, row.line)
					continue
				}
				if want == "login page" {
					back, _ := url.Parse(answer.header.Get("Location"))
					if back.Host != "auth.example.com" || !strings.HasSuffix(back.Query().Get("next"), row.path) {
						t.Errorf("the login page is %s\n%s", back, row.line)
					}
				}
				if got == nil {
					continue
				}
				all, _ := json.Marshal(got.Header)
				for _, secret := range secrets {
					if strings.Contains(string(all), secret) {
						t.Errorf("the tool gets %s\n%s", all, row.line)
					}
				}
				if told := strings.Join(got.Header["Remote-Groups"], "|"); told != groups[strings.TrimPrefix(want, "as ")] {
					t.Errorf("the groups are %q\n%s", told, row.line)
				}
				// Traefik copies a header that is empty too.
				if want == "as nobody" && door != "traefik" && (slices.Contains(got.Header["Remote-User"], "") || got.Header["Remote-Groups"] != nil) {
					t.Errorf("the tool is told %s of nobody\n%s", all, row.line)
				}
			}
		})
	}
}

// A request that names two hosts is judged by the one whose tool would get it.
func TestGatewayTwoHosts(t *testing.T) {
	g := startGuarded(t)
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		t.Errorf("the tool of the group got %s %s%s", r.Method, r.Host, r.RequestURI)
	}))
	t.Cleanup(other.Close)
	addr := ownAddr()
	page, err := os.ReadFile("../docs/tools.md")
	if err != nil {
		t.Fatal(err)
	}
	maps, server, _ := strings.Cut(documented(t, "nginx")[0], "\nserver {\n")
	_, included, _ := strings.Cut(server, "    proxy_http_version")
	included = "    proxy_http_version" + strings.TrimSuffix(strings.TrimRight(included, "\n"), "}")
	folder := inFolder(t, "ringward.conf", strings.NewReplacer("proxy_pass http://127.0.0.1:3000;", "proxy_pass $tool;", "127.0.0.1:8080", g.addr()).Replace(included))
	cert, key := certificate(t, "*.example.com")
	config := maps + regexp.MustCompile("(?ms)^```nginx\n(.*?)^```$").FindStringSubmatch(string(page))[1]
	startNginx(t, addr, strings.NewReplacer("listen 80", "listen "+ownAddr(), "listen 443 ssl", "listen "+addr, "include ", "include "+folder+"/",
		"/etc/ssl/example.com.crt", cert, "/etc/ssl/example.com.key", key,
		"127.0.0.1:8080", g.addr(), "http://127.0.0.1:3000", g.tool.URL, "http://127.0.0.1:3001", other.URL).Replace(config))
	doors := map[string]string{"nginx": addr, "tools": g.addr(), "caddy": g.startDoor("caddy"), "haproxy": g.startDoor("haproxy"), "traefik": g.startDoor("traefik")}
	for door, addr := range doors {
		for _, c := range []struct {
			line, host string
			pass       bool
		}{
			{"/x", "wiki.example.com", true},
			{"/x", "WIKI.example.com.:8443", true},
			{"http://wiki.example.com/x", "wiki.example.com", true},
			{"/x", "grafana.example.com", false},
			{"http://grafana.example.com/x", "wiki.example.com", false},
			{"http://GRAFANA.example.com:80/x", "wiki.example.com", false},
			{"http://other.example.com/x", "wiki.example.com", false},
			{"/x", "other.example.com", false},
			{"/x", "hooks.example.com", false},
		} {
			answer, got := g.through(addr, "GET "+c.line+" HTTP/1.1\r\nHost: "+c.host+"\r\nCookie: "+g.people["frodo"]+"\r\n\r\n", "GET")
			if pass := got != nil; pass != c.pass || !pass && answer.status < 400 {
				t.Errorf("%s, %s of %s: %d %.100s %v", door, c.line, c.host, answer.status, answer.body, answer.err)
			}
		}
	}
}

// Three tools on three names with one login, over https, for a browser, a
// webhook and git.
func TestGatewayToolsFile(t *testing.T) {
	tool := startTool(t)
	repositories := t.TempDir()
	run := func(name string, args ...string) (string, error) {
		cmd := exec.Command(name, args...)
		cmd.Env = append(os.Environ(), "HOME="+repositories, "GIT_TERMINAL_PROMPT=0", "GIT_CONFIG_NOSYSTEM=1")
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	must := func(name string, args ...string) {
		t.Helper()
		if out, err := run(name, args...); err != nil {
			t.Fatalf("%s %q: %v\n%s", name, args, err, out)
		}
	}
	must("git", "init", "-q", "--bare", repositories+"/shire.git")
	execPath, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		t.Fatal(err)
	}
	var leaked atomic.Pointer[string] // of what the tool got, the first that was there
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if all := fmt.Sprint(r.Header["Authorization"], r.Header["Cookie"]); all != "[] []" {
			leaked.CompareAndSwap(nil, &all)
		}
		handler := cgi.Handler{Path: strings.TrimSpace(string(execPath)) + "/git-http-backend", Stderr: io.Discard, Env: []string{
			"GIT_PROJECT_ROOT=" + repositories, "GIT_HTTP_EXPORT_ALL=1", "REMOTE_USER=" + r.Header.Get("Remote-User")}}
		handler.ServeHTTP(w, r) // takes pushes from a REMOTE_USER only
	}))
	t.Cleanup(backend.Close)

	cert, key := certificate(t, "*.example.test")
	addr := ownAddr()
	host, port, _ := net.SplitHostPort(addr)
	at := func(name string) string { return "https://" + name + ".example.test:" + port }
	p := newProgram(t)
	file := fmt.Sprintf("wiki.example.test http://%s\nbuild.example.test http://%[1]s group=ops public=/hooks/push\ngit.example.test %s group=dev basic\n", tool.addr, backend.URL)
	if err := os.WriteFile(p.path("tools"), []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	p.addUser("frodo", "sam")
	p.must("", "user", "group", "add", "frodo", "dev")
	rw := &ringward{server: p.serve("-addr", addr, "-tls-cert", cert, "-tls-key", key, "-public-url", at("auth"), "-cookie-domain", "example.test", "-tools", "tools")}
	rw.url = at("auth")

	ctx, err := chromium(chromedp.Flag("ignore-certificate-errors", true), chromedp.Flag("host-resolver-rules", "MAP *.test "+host))
	if err != nil {
		t.Fatal("Chromium does not start: ", err)
	}
	d := &device{t: t, rw: rw, expected: map[string]bool{}}
	d.attach(ctx)
	d.do(chromedp.Navigate(at("wiki") + "/reports?week=3"))
	d.until(`location.origin === %s && location.pathname === '/auth/login' && !document.querySelector('#page').hidden`, js(at("auth")))
	d.login("frodo", password)
	d.until(`location.href === %s && document.querySelector('#page')?.innerText.includes('"Remote-User":["frodo"]')`, js(at("wiki")+"/reports?week=3"))
	d.do(chromedp.Navigate(at("build") + "/x")) // no second login, and no way in
	d.until(`location.href === %s && document.body.innerText.includes('Not for you')`, js(at("build")+"/x"))
	p.must("", "user", "group", "add", "frodo", "ops")
	d.do(chromedp.Navigate(at("build") + "/x"))
	d.until(`document.querySelector('#page')?.innerText.includes('"Remote-Groups":["dev,ops"]')`)

	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, addr)
		}}}
	for path, status := range map[string]int{"/hooks/push": 200, "/hooks/push/x": 401, "/hooks": 401} {
		r, _ := http.NewRequest("POST", at("build")+path, strings.NewReader(`{"ref":"main"}`))
		r.Header.Set("Remote-User", "sam")
		response, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(response.Body)
		response.Body.Close()
		if response.StatusCode != status || strings.Contains(string(body), "Remote-") || status == 200 && !strings.Contains(string(body), "main") {
			t.Errorf("the webhook %s: %s %s", path, response.Status, body)
		}
	}

	token, other := strings.TrimSpace(p.must("", "token", "add", "frodo", "git")), strings.TrimSpace(p.must("", "token", "add", "sam", "git"))
	work := t.TempDir() + "/work"
	git := func(args ...string) []string {
		return append([]string{"-c", "http.sslVerify=false", "-c", "http.curloptResolve=git.example.test:" + port + ":" + host, "-c", "user.name=frodo", "-c", "user.email=f@example.test"}, args...)
	}
	remote := func(user, secret string) string {
		return "https://" + user + ":" + url.QueryEscape(secret) + "@git.example.test:" + port + "/shire.git"
	}
	must("git", git("clone", "-q", remote("frodo", token), work)...)
	if err := os.WriteFile(work+"/bag-end", make([]byte, 2<<20), 0o600); err != nil { // more than git sends in one piece
		t.Fatal(err)
	}
	must("git", git("-C", work, "add", ".")...)
	must("git", git("-C", work, "commit", "-qm", "a door")...)
	must("git", git("-C", work, "push", "-q", "origin", "HEAD:main")...)
	must("git", git("clone", "-qb", "main", remote("frodo", token), work+"2")...)
	for user, secret := range map[string]string{"frodo": password, "sam": token} {
		if out, err := run("git", git("ls-remote", remote(user, secret))...); err == nil || !strings.Contains(out, "Authentication failed") {
			t.Errorf("%s with what is not that user's token: %v\n%s", user, err, out)
		}
	}
	if out, err := run("git", git("ls-remote", remote("sam", other))...); err == nil || !strings.Contains(out, "403") {
		t.Errorf("sam is not in the group: %v\n%s", err, out)
	}
	if got := leaked.Load(); got != nil {
		t.Errorf("the tool got the credentials %s", *got)
	}

	// A page of the tool that asks after the logout gets no dialog for a password.
	d.do(chromedp.Navigate(at("git") + "/shire.git/HEAD"))
	d.until(`document.readyState === 'complete' && location.origin === %s`, js(at("git")))
	if got := d.eval(`fetch('/auth/session', {method: 'DELETE'}).then(() => fetch('/shire.git/HEAD')).then(r => r.status + ' ' + r.headers.get('WWW-Authenticate'))`); got != `"401 Bearer realm=\"ringward\""` && got != `401 Bearer realm="ringward"` {
		t.Errorf("after the logout: %s", got)
	}
	for _, name := range []string{"wiki", "build", "git"} {
		d.do(chromedp.Navigate(at(name) + "/x"))
		d.until(`location.href === %s`, js(at("auth")+"/auth/login?next="+url.QueryEscape(at(name)+"/x")))
	}
}
