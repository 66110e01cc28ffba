//go:build gateways

// gateway_test.go is what the documentation says of tools that ringward stands
// in front of, with real parts: nginx, Caddy and HAProxy with its
// configurations, the program itself with -proxy, Chromium, and a tool that
// tells what it gets. Only Traefik is played by a few lines of Go.
package e2e

import (
	"bufio"
	"bytes"
	"crypto/sha1"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"html"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

// gatewayTool is a tool without a login. It tells what it gets.
type gatewayTool struct {
	addr string
	more chan time.Time // has /events?paced send the next one

	mu    sync.Mutex
	paths []string // of the requests that reached it
}

type toolGot struct {
	Method, URI, Host, Body string
	Header                  http.Header
}

func startTool(t *testing.T) *gatewayTool {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	tool := &gatewayTool{addr: listener.Addr().String(), more: make(chan time.Time)}
	server := &http.Server{Handler: tool}
	go server.Serve(listener)
	t.Cleanup(func() { server.Close() })
	return tool
}

func (tool *gatewayTool) reached() int {
	tool.mu.Lock()
	defer tool.mu.Unlock()
	return len(tool.paths)
}

func (tool *gatewayTool) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	tool.mu.Lock()
	tool.paths = append(tool.paths, r.RequestURI)
	tool.mu.Unlock()
	switch r.URL.Path {
	case "/live":
		w.Header().Set("Content-Type", "text/html")
		io.WriteString(w, `<link rel="icon" href="data:,"><main id="page"><p id="events"></p><p id="socket"></p></main><script>
			new EventSource('/events').onmessage = e => events.textContent += e.data + ' '
			const s = new WebSocket('/socket')
			s.onopen = () => s.send('hello')
			s.onmessage = e => socket.textContent += e.data
		</script>`)
	case "/events":
		w.Header().Set("Content-Type", "text/event-stream")
		control := http.NewResponseController(w)
		for r.Context().Err() == nil {
			fmt.Fprint(w, "data: x\n\n")
			control.Flush()
			next := (<-chan time.Time)(tool.more)
			if r.URL.RawQuery != "paced" {
				next = time.After(200 * time.Millisecond)
			}
			select {
			case <-r.Context().Done():
			case <-next:
			}
		}
	case "/socket":
		echoSocket(w, r)
	case "/upload":
		n, err := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, n, err)
	case "/download":
		n, _ := strconv.ParseInt(r.URL.Query().Get("bytes"), 10, 64)
		w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
		block := make([]byte, 64<<10)
		for ; n > 0; n -= int64(len(block)) {
			if _, err := w.Write(block[:min(n, int64(len(block)))]); err != nil {
				return
			}
		}
	default:
		for name, values := range r.URL.Query() {
			if name == "Cache-Control" || name == "Clear-Site-Data" || name == "Set-Cookie" {
				w.Header()[name] = values
			}
		}
		body, _ := io.ReadAll(r.Body)
		got, _ := json.Marshal(toolGot{r.Method, r.RequestURI, r.Host, string(body), r.Header})
		w.Header().Add("Set-Cookie", "tool=1; HttpOnly")
		if strings.Contains(r.Header.Get("Accept"), "text/html") {
			w.Header().Set("Content-Type", "text/html")
			fmt.Fprintf(w, `<link rel="icon" href="data:,"><main id="page">%s</main>`, html.EscapeString(string(got)))
			return
		}
		w.Write(got)
	}
}

// echoSocket is as much of RFC 6455 as one short unfragmented text needs.
func echoSocket(w http.ResponseWriter, r *http.Request) {
	if !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") || r.Header.Get("Sec-WebSocket-Key") == "" {
		http.Error(w, "a WebSocket is here", http.StatusBadRequest)
		return
	}
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer conn.Close()
	sum := sha1.Sum([]byte(r.Header.Get("Sec-WebSocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	fmt.Fprintf(rw, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n",
		base64.StdEncoding.EncodeToString(sum[:]))
	for rw.Flush() == nil {
		head := make([]byte, 6) // opcode, length, mask
		if _, err := io.ReadFull(rw, head); err != nil {
			return
		}
		text := make([]byte, head[1]&0x7f)
		if _, err := io.ReadFull(rw, text); err != nil {
			return
		}
		for i := range text {
			text[i] ^= head[2+i%4]
		}
		rw.Write(append([]byte{head[0], byte(len(text))}, text...))
	}
}

// gateway is one of the ways in which ringward stands before the tool.
type gateway struct {
	*ringward
	tool   *gatewayTool
	addr   string // where browsers reach it
	secure string // where they reach it by https, "" if they cannot

	changes []string // pairs: what an operator writes in place of the documented
}

// documented returns the blocks of the documentation in a language.
func documented(t *testing.T, language string) []string {
	t.Helper()
	var blocks []string
	for _, page := range []string{"gateways", "haproxy"} {
		text, err := os.ReadFile("../docs/" + page + ".md")
		if err != nil {
			t.Fatal(err)
		}
		for _, block := range regexp.MustCompile("(?ms)^```"+language+"\n(.*?)^```$").FindAllStringSubmatch(string(text), -1) {
			blocks = append(blocks, block[1])
		}
	}
	if blocks == nil {
		t.Fatal("there is no block of ", language)
	}
	return blocks
}

// startOther starts a server of others, in a folder, and waits until it listens.
func startOther(t *testing.T, addr, folder, name string, args ...string) {
	t.Helper()
	p := &program{T: t, dir: folder, start: []string{name}, env: append(os.Environ(), "HOME="+folder, "XDG_DATA_HOME="+folder, "XDG_CONFIG_HOME="+folder)}
	s := p.follow(p.command(args...))
	t.Cleanup(func() { s.cmd.Process.Signal(syscall.SIGTERM); <-s.ended })
	eventually(t, func() bool {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			conn.Close()
		} else if s.gone() {
			t.Fatalf("%s ended with %v", name, s.cmd.ProcessState)
		}
		return err == nil
	})
}

// inFolder writes a file into a folder of its own.
func inFolder(t *testing.T, name, text string) (folder string) {
	t.Helper()
	folder = t.TempDir()
	if err := os.WriteFile(filepath.Join(folder, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return folder
}

// ownPlaces replaces the addresses and files of the documentation.
func (g *gateway) ownPlaces(block string) string {
	cert, key := certificate(g.T, "*.example.com")
	host, port, _ := net.SplitHostPort(g.addr)
	site := " {\n\tbind " + host + "\n"
	block = strings.NewReplacer(g.changes...).Replace(block)
	return strings.NewReplacer("127.0.0.1:8080", g.server.addr(), "127.0.0.1:3000", g.tool.addr,
		// nginx
		"listen 80;", "listen "+g.addr+";", "listen 443 ssl;", "listen "+g.secure+" ssl;",
		"/etc/ssl/tool.example.com.crt", cert, "/etc/ssl/tool.example.com.key", key,
		// Caddy
		":80 {", ":"+port+site, "tool.example.com {", "tool.example.com"+site+"\ttls "+cert+" "+key+"\n",
		// HAProxy
		"bind :80", "bind "+g.addr, "bind :443 ssl crt /etc/haproxy/tool.example.com.pem", "bind "+g.secure+" ssl crt "+together(g.T, cert, key),
		"/etc/haproxy/ringward.lua", "ringward.lua",
	).Replace(block)
}

func together(t *testing.T, files ...string) string {
	t.Helper()
	var all []byte
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, text...)
	}
	return filepath.Join(inFolder(t, "all.pem", string(all)), "all.pem")
}

func startNginx(t *testing.T, addr, block string) {
	t.Helper()
	config := "daemon off;\nuser root;\npid nginx.pid;\nerror_log stderr warn;\nevents {}\nhttp {\naccess_log off;\n"
	for _, part := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		config += part + "_temp_path " + part + ";\n"
	}
	folder := inFolder(t, "nginx.conf", config+block+"}\n")
	startOther(t, addr, folder, "nginx", "-p", folder, "-c", "nginx.conf", "-e", "stderr")
}

// startCaddy starts Caddy, which at last listens on waits.
func startCaddy(t *testing.T, waits, addr, secure, block string) {
	t.Helper()
	_, port, _ := net.SplitHostPort(addr)
	_, securePort, _ := net.SplitHostPort(secure)
	folder := inFolder(t, "Caddyfile", "{\n\tadmin off\n\thttp_port "+port+"\n\thttps_port "+securePort+"\n}\n"+block)
	startOther(t, waits, folder, "caddy", "run", "--config", "Caddyfile", "--adapter", "caddyfile")
}

var gatewayModes = []string{"nginx", "caddy", "haproxy", "traefik", "proxy"}

func startGateway(t *testing.T, mode string, flags ...string) *gateway {
	t.Helper()
	g := &gateway{tool: startTool(t)}
	if mode == "proxy" {
		g.ringward = &ringward{server: newProgram(t).serve(append(flags, "-proxy", "http://"+g.tool.addr)...)}
		g.addr = g.server.addr()
	} else {
		g.ringward = &ringward{server: newProgram(t).serve(flags...)}
		g.before(mode)
	}
	g.url = "http://" + g.addr // for browsers
	g.addUser("frodo")
	return g
}

// before starts the gateway before ringward and the tool.
func (g *gateway) before(mode string) {
	g.Helper()
	if g.secure == "" {
		g.addr, g.secure = ownAddr(), ownAddr()
	}
	switch mode {
	case "nginx":
		startNginx(g.T, g.addr, g.ownPlaces(documented(g.T, "nginx")[0]))
	case "caddy":
		startCaddy(g.T, g.addr, g.addr, g.secure, g.ownPlaces(documented(g.T, "caddyfile")[0]))
	case "haproxy":
		folder := inFolder(g.T, "haproxy.cfg", g.ownPlaces(documented(g.T, "haproxy")[0]))
		if err := os.WriteFile(filepath.Join(folder, "ringward.lua"), []byte(g.ownPlaces(documented(g.T, "lua")[0])), 0o600); err != nil {
			g.Fatal(err)
		}
		startOther(g.T, g.addr, folder, "haproxy", "-db", "-f", "haproxy.cfg")
	case "traefik":
		g.secure = ""
		startTraefik(g)
	}
}

// startTraefik plays Traefik 3 with the documented configuration: what its
// ForwardAuth sends, and what it does with the response.
func startTraefik(g *gateway) {
	g.Helper()
	config := g.ownPlaces(documented(g.T, "yaml")[0])
	value := func(pattern string) string {
		m := regexp.MustCompile(pattern).FindStringSubmatch(config)
		if m == nil {
			g.Fatalf("the configuration has no %s", pattern)
		}
		return m[1]
	}
	address := value(`address: (\S+)`)
	replaced := regexp.MustCompile(value(`authResponseHeadersRegex: "(.*)"`))
	cookies := strings.Split(value(`addAuthCookiesToResponse: \[(.*)\]`), ", ")
	value(`trustForwardHeader: (false)`)
	prefix := value("PathPrefix\\(`(/[a-z]+/)`\\)")

	to := func(addr string) *httputil.ReverseProxy {
		return &httputil.ReverseProxy{ErrorLog: log.New(io.Discard, "", 0), FlushInterval: -1, Rewrite: func(p *httputil.ProxyRequest) {
			p.Out.URL.Scheme, p.Out.URL.Host = "http", addr
			p.Out.URL.RawQuery = p.In.URL.RawQuery
			p.Out.Header.Set("X-Forwarded-For", hostOf(p.In.RemoteAddr))
			p.Out.Header.Set("X-Forwarded-Host", p.In.Host)
			p.Out.Header.Set("X-Forwarded-Proto", "http")
			p.Out.Header.Set("X-Real-Ip", hostOf(p.In.RemoteAddr))
		}}
	}
	own := to(g.server.addr())
	// What Traefik itself takes from clients that it does not trust.
	forwarded := regexp.MustCompile(`^X-(Forwarded-(Proto|For|Host|Port|Server|Uri|Method|Prefix|Tls-Client-Cert(-Info)?)|Real-Ip)$`)
	listener, err := net.Listen("tcp", g.addr)
	if err != nil {
		g.Fatal(err)
	}
	server := &http.Server{ErrorLog: log.New(io.Discard, "", 0), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		maps.DeleteFunc(r.Header, func(name string, _ []string) bool { return forwarded.MatchString(name) })
		r.Trailer = nil
		for _, name := range strings.Split(r.Header.Get("Connection"), ",") {
			if name = strings.TrimSpace(name); !strings.EqualFold(name, "Upgrade") {
				r.Header.Del(name)
			}
		}
		delete(r.Header, "Connection")
		if strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
			r.Header.Set("Connection", "Upgrade")
		}
		if strings.HasPrefix(r.URL.Path, prefix) {
			own.ServeHTTP(w, r)
			return
		}
		ask, _ := http.NewRequestWithContext(r.Context(), "GET", address, nil)
		ask.Header = r.Header.Clone()
		for _, name := range []string{"Connection", "Keep-Alive", "Proxy-Authorization", "Te", "Transfer-Encoding", "Upgrade"} {
			ask.Header.Del(name)
		}
		ask.Header.Set("X-Forwarded-For", hostOf(r.RemoteAddr))
		ask.Header.Set("X-Forwarded-Method", r.Method)
		ask.Header.Set("X-Forwarded-Proto", "http")
		ask.Header.Set("X-Forwarded-Host", r.Host)
		ask.Header.Set("X-Forwarded-Uri", r.URL.RequestURI())
		answer, err := http.DefaultTransport.RoundTrip(ask)
		if err != nil {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		defer answer.Body.Close()
		if answer.StatusCode/100 != 2 {
			maps.Copy(w.Header(), answer.Header)
			w.WriteHeader(answer.StatusCode)
			io.Copy(w, answer.Body)
			return
		}
		maps.DeleteFunc(r.Header, func(name string, _ []string) bool { return replaced.MatchString(name) })
		for name, values := range answer.Header {
			if replaced.MatchString(name) {
				r.Header[name] = values
			}
		}
		tool := to(g.tool.addr)
		tool.ModifyResponse = func(response *http.Response) error {
			for _, cookie := range answer.Cookies() {
				if slices.Contains(cookies, cookie.Name) {
					response.Header.Add("Set-Cookie", cookie.String())
				}
			}
			return nil
		}
		tool.ServeHTTP(w, r)
	})}
	go server.Serve(listener)
	g.Cleanup(func() { server.Close() })
}

func hostOf(addr string) string {
	host, _, _ := net.SplitHostPort(addr)
	return host
}

// raw sends the text of a request, whose lines may end in \n, over a connection
// of its own.
func (g *gateway) raw(request string) (*http.Response, string) {
	g.T.Helper()
	conn, answer := g.open(request)
	defer conn.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		g.T.Fatalf("%v\nto %s", err, request)
	}
	return answer, string(body)
}

func (g *gateway) open(request string) (net.Conn, *http.Response) {
	g.T.Helper()
	conn, err := net.Dial("tcp", g.addr)
	if err != nil {
		g.T.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(2 * patience))
	head, body, _ := strings.Cut(request, "\n\n")
	io.WriteString(conn, strings.ReplaceAll(head, "\n", "\r\n")+"\r\n\r\n"+body)
	answer, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: strings.Fields(request)[0]})
	if err != nil {
		g.T.Fatalf("%v\nto %s", err, request)
	}
	return conn, answer
}

// login answers a Cookie header.
func (g *gateway) login() string {
	g.T.Helper()
	body := fmt.Sprintf(`{"username":"frodo","password":%q}`, password)
	answer, said := g.raw(fmt.Sprintf("POST /auth/session HTTP/1.1\nHost: %s\nConnection: close\nContent-Type: application/json\nContent-Length: %d\n\n%s", g.addr, len(body), body))
	if answer.StatusCode != http.StatusCreated {
		g.T.Fatalf("login: %s %s", answer.Status, said)
	}
	cookie, _, _ := strings.Cut(answer.Header.Get("Set-Cookie"), ";")
	return cookie
}

func (g *gateway) get(path, cookie string, lines ...string) string {
	return "GET " + path + " HTTP/1.1\nHost: " + g.addr + "\nCookie: " + cookie + "\n" + strings.Join(append(lines, ""), "\n") + "\n"
}

// forGateways runs f before every gateway, when it is trusted and, but for
// Traefik, when not.
func forGateways(t *testing.T, f func(t *testing.T, mode string, flags []string)) {
	for _, mode := range gatewayModes {
		for name, flags := range map[string][]string{"trusted": {"-trusted-proxies", "127.0.0.1/32"}, "untrusted": nil} {
			if mode == "traefik" && flags == nil {
				continue // it says only in X-Forwarded-Host which host was asked
			}
			t.Run(mode+"/"+name, func(t *testing.T) { f(t, mode, flags) })
		}
	}
}

func TestGatewayBrowser(t *testing.T) {
	forGateways(t, func(t *testing.T, mode string, flags []string) {
		g := startGateway(t, mode, flags...)
		d := g.device()
		for _, path := range []string{"/reports?week=3&x=a%26b", "/reports?week=3", "/a%2Fb//c;d?q=%2B+%25&redirect&uri=//evil.test#/workloads/42"} {
			asked, fragment, _ := strings.Cut(path, "#")
			d.do(chromedp.Navigate(g.url + path))
			d.until(`location.pathname === '/auth/login' && !document.querySelector('#page').hidden`)
			d.login("frodo", password)
			d.until(`location.pathname + location.search === %s && location.hash.slice(1) === %s && document.readyState === 'complete'`, js(asked), js(fragment))
			var got toolGot
			if err := json.Unmarshal([]byte(d.eval(`document.querySelector('#page').innerText`)), &got); err != nil {
				t.Fatal(err)
			}
			if got.URI != asked || got.Header.Get("Remote-User") != "frodo" || got.Host != g.addr {
				t.Errorf("the tool got %+v", got)
			}
			d.open("/live")
			d.until(`socket.textContent === 'hello' && events.textContent.split(' ').length > 3`)
			if d.eval(`fetch('/auth/session', {method: 'DELETE'}).then(r => r.status)`) != "204" {
				t.Fatal("no logout")
			}
		}
	})
}

func TestGatewayAPI(t *testing.T) {
	forGateways(t, func(t *testing.T, mode string, flags []string) {
		g := startGateway(t, mode, flags...)
		for _, request := range []string{
			"GET /reports?week=3 HTTP/1.1\nHost: HOST\nAccept: */*\n\n",
			"GET /reports HTTP/1.1\nHost: HOST\nAccept: text/html\nSec-Fetch-Mode: cors\n\n",
			"POST /reports HTTP/1.1\nHost: HOST\nContent-Length: 5\nContent-Type: application/json\n\nhello",
			"GET /reports HTTP/1.1\nHost: HOST\nAuthorization: Bearer rw_nonsense\nUser-Agent: Mozilla/5.0\n\n",
			"GET /reports HTTP/1.1\nHost: HOST\nCookie: ringward=a.b\nRemote-User: frodo\n\n",
		} {
			answer, body := g.raw(strings.ReplaceAll(request, "HOST", g.addr))
			if answer.StatusCode != http.StatusUnauthorized || answer.Header.Get("Content-Type") != "application/json" ||
				body != `{"errors":[{"title":"Login required","status":401}]}` {
				t.Errorf("%s: %s %v %s", request, answer.Status, answer.Header, body)
			}
		}
		if n := g.tool.reached(); n != 0 {
			t.Errorf("%d requests reached the tool: %s", n, g.tool.paths)
		}
		token := strings.TrimSpace(g.must("", "token", "add", "frodo", "script"))
		answer, body := g.raw(g.get("/", "a=1", "Authorization: Bearer "+token))
		if answer.StatusCode != http.StatusOK || !strings.Contains(body, `"Remote-User":["frodo"]`) || strings.Contains(body, token) {
			t.Errorf("with a token: %s %s", answer.Status, body)
		}
	})
}

// A client is who ringward says, and where the gateway sees it.
func TestGatewayIdentity(t *testing.T) {
	forGateways(t, func(t *testing.T, mode string, flags []string) {
		g := startGateway(t, mode, flags...)
		cookie := g.login()
		for _, spoof := range []string{
			"Remote-User: gandalf", "remote-user: gandalf", "REMOTE_USER: gandalf", "Remote_User: gandalf", "Remote.User: gandalf", "remote.user: gandalf",
			"Remote-Groups: gandalf", "Remote-Email: gandalf", "Remote-Name: gandalf", "Remote_Groups: gandalf",
			"X-Forwarded-For: 6.6.6.6", "X_Forwarded_For: 6.6.6.6", "X-Forwarded-Host: gandalf", "X-Forwarded-Proto: gandalf",
			"X-Forwarded-User: gandalf", "X-Forwarded-Email: gandalf", "X-Forwarded-Groups: gandalf", "X-Forwarded-Preferred-Username: gandalf",
			"X-Forwarded-Access-Token: gandalf", "X-Forwarded-Port: 6.6.6.6", "X-Forwarded-Prefix: /gandalf", "X-Forwarded-Uri: /gandalf",
			"X-Forwarded-Method: GANDALF", "X-Forwarded-Server: gandalf", "Forwarded: for=6.6.6.6", "X-Real-IP: 6.6.6.6",
			"X-Remote-User: gandalf", "X_Remote_User: gandalf", "X-Remote-Group: gandalf", "X-Remote-Groups: gandalf", "X-Remote-Email: gandalf", "X-Remote-Name: gandalf",
			"X-WebAuth-User: gandalf", "X.WebAuth.User: gandalf", "X-WebAuth-Name: gandalf", "X-WebAuth-Email: gandalf", "X-WebAuth-Role: gandalf", "X-WebAuth-Groups: gandalf",
			"X-Auth-User: gandalf", "X-Auth-Username: gandalf", "X-Auth-Request-User: gandalf", "X-Auth-Request-Email: gandalf", "X-Auth-Request-Groups: gandalf",
			"X-Auth-Request-Preferred-Username: gandalf", "X-Auth-Request-Access-Token: gandalf",
			"X-Authenticated-User: gandalf", "X-Authenticated-Userid: gandalf", "X-Authenticated-Email: gandalf", "X-Authenticated-Groups: gandalf",
			"X-Authentik-Username: gandalf", "X-Authentik-Groups: gandalf", "X-Authentik-Email: gandalf",
		} {
			name, _, _ := strings.Cut(spoof, ":")
			for _, lines := range [][]string{
				{spoof}, {spoof, spoof}, {"Connection: " + name, spoof}, {"Connection: " + name}, {"Connection: close, Remote-User", spoof},
				{"Connection: Upgrade, " + name, "Upgrade: h2c", spoof}, {"Connection: Upgrade, Remote-User", "Upgrade: websocket", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", spoof},
				{"Transfer-Encoding: chunked", "Trailer: " + name + "\n\n3\r\nabc\r\n0\r\n" + spoof + "\r\n\r\n"},
			} {
				request := g.get("/", "a=1; "+cookie+"; b=2", lines...)
				answer, body := g.raw(request)
				if mode == "proxy" && flags != nil && strings.HasPrefix(spoof, "X-Forwarded-") {
					continue // here the client is the trusted proxy
				}
				var got toolGot
				if err := json.Unmarshal([]byte(body), &got); err != nil {
					t.Errorf("%s %s\nto %s", answer.Status, body, request)
					continue
				}
				h := got.Header
				if fmt.Sprint(h["Remote-User"], h["X-Forwarded-For"], h["X-Forwarded-Host"], h["X-Forwarded-Proto"]) != "[frodo] [127.0.0.1] ["+g.addr+"] [http]" {
					t.Errorf("the tool got %v of\n%s", h, request)
				}
				all := strings.ToLower(fmt.Sprint(h))
				for _, evil := range []string{"gandalf", "6.6.6.6", "h2c", "ringward"} {
					if strings.Contains(all, evil) {
						t.Errorf("the tool got %v of\n%s", h, request)
					}
				}
			}
		}
	})
}

// Of a gateway that is not trusted, ringward cannot know that a request writes.
func TestGatewayOtherSites(t *testing.T) {
	forGateways(t, func(t *testing.T, mode string, flags []string) {
		g := startGateway(t, mode, flags...)
		cookie := g.login()
		const upgrade = "Connection: Upgrade\nUpgrade: websocket\nSec-WebSocket-Version: 13\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="
		for _, other := range []string{"Origin: http://evil.test", "Origin: null", "Origin: http://localhost:1", "Sec-Fetch-Site: same-site", "Sec-Fetch-Site: cross-site"} {
			requests := []string{g.get("/socket", cookie, upgrade, other)}
			if flags != nil || mode == "proxy" {
				requests = append(requests, strings.Replace(g.get("/", cookie, "Content-Length: 0", other), "GET", "POST", 1))
			}
			for _, request := range requests {
				conn, answer := g.open(request)
				if answer.StatusCode != http.StatusForbidden {
					t.Errorf("%s\n%s", answer.Status, request)
				}
				conn.Close()
			}
		}
		if n := g.tool.reached(); n != 0 {
			t.Errorf("%d requests reached the tool: %s", n, g.tool.paths)
		}
		conn, answer := g.open(g.get("/socket", cookie, upgrade, "Origin: http://"+g.addr))
		if answer.StatusCode != http.StatusSwitchingProtocols {
			t.Errorf("our own: %s", answer.Status)
		}
		conn.Close()
	})
}

// Whatever the spelling, nothing reaches the tool without a login.
func TestGatewayPaths(t *testing.T) {
	paths := []string{
		"/", "//", "//x", "//auth/login", "/%2e%2e/", "/x/../auth/session", "/auth/../x", "/auth/%2e%2e/x", "/auth/..%2fx", "/auth%2f..%2fx", "/auth/login/../../x",
		"/./auth/session", "/auth", "/AUTH/session", "/Auth/login", "/;/auth/session", "/auth;x/session", "/auth/;/../x", "/a%2Fb", "/a;b?c;d", "/%61uth/../x",
		"/healthz", "/healthz/", "/x?/auth/login", "/x#/auth/login", "/auth/login#/../x", "/auth/verify/../../x", "/%00", "/x%0d%0aRemote-User:%20frodo",
		"http://HOST/x", "HTTP://HOST//x", "http://HOST/auth/../x", "http://evil.test/x", "/auth\\..\\x", "/auth/\\../x", "/x?uri=/auth/login&redirect",
	}
	forGateways(t, func(t *testing.T, mode string, flags []string) {
		g := startGateway(t, mode, flags...)
		for _, path := range paths {
			for _, method := range []string{"GET", "POST", "HEAD", "OPTIONS", "TRACE", "PROPFIND"} {
				for _, line := range []string{"", "X-Forwarded-Uri: /auth/login\nX-Original-URL: /auth/login\n", "Remote-User: frodo\n"} {
					path := strings.ReplaceAll(path, "HOST", g.addr)
					g.raw(method + " " + path + " HTTP/1.1\nHost: " + g.addr + "\nConnection: close\n" + line + "\n")
				}
			}
		}
		if n := g.tool.reached(); n != 0 {
			t.Errorf("%d requests reached the tool: %s", n, g.tool.paths)
		}
		cookie := g.login()
		for _, path := range []string{"/", "//x", "/a%2Fb%2fc", "/a;b=c?d;e=%26&f", "/AUTH/session", "/auth;x/session", "/auth", "/ringsofpower", "/x?", "/healthz/"} {
			_, body := g.raw(g.get(path, cookie))
			var got toolGot
			if json.Unmarshal([]byte(body), &got); got.URI != path {
				t.Errorf("the tool got %q of %q: %s", got.URI, path, body)
			}
		}
	})
}

// A session that is used lives on, and so must its cookie. No cache may keep
// the two together.
func TestGatewayRenewal(t *testing.T) {
	for _, mode := range gatewayModes {
		t.Run(mode, func(t *testing.T) {
			g := startGateway(t, mode, "-session-idle", "6s")
			cookie := g.login()
			for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
				answer, body := g.raw(g.get("/?Cache-Control=public,max-age=600", cookie))
				if answer.StatusCode != http.StatusOK {
					t.Fatalf("%s %s", answer.Status, body)
				}
				cookies, cache := answer.Header["Set-Cookie"], fmt.Sprint(answer.Header["Cache-Control"])
				if len(cookies) == 1 && strings.HasPrefix(cookies[0], "tool=1") {
					if cache != "[public,max-age=600]" {
						t.Errorf("without a renewed cookie Cache-Control is %s", cache)
					}
					continue
				}
				if cache != "[no-store]" && mode != "traefik" {
					t.Errorf("with a renewed cookie Cache-Control is %s", cache)
				}
				if !slices.ContainsFunc(cookies, func(c string) bool { return strings.HasPrefix(c, cookie+";") }) || len(cookies) != 2 {
					t.Errorf("got the cookies %q", cookies)
				}
				return
			}
			t.Error("the cookie is not renewed")
		})
	}
}

// When ringward is away nobody gets in.
func TestGatewayWithoutRingward(t *testing.T) {
	for _, mode := range gatewayModes[:4] {
		t.Run(mode, func(t *testing.T) {
			g := startGateway(t, mode)
			cookie := g.login()
			g.stop()
			answer, _ := g.raw(g.get("/", cookie, "Remote-User: frodo"))
			if answer.StatusCode < 500 || g.tool.reached() != 0 {
				t.Errorf("got %s", answer.Status)
			}
		})
	}
}

// kilobytes answers a line of /proc/PID/status.
func kilobytes(t *testing.T, proc, name string) int {
	t.Helper()
	status, err := os.ReadFile(proc + "/status")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(name + `:\s+(\d+) kB`).FindSubmatch(status)
	n, _ := strconv.Atoi(string(m[1]))
	return n
}

const gibibyte = 1 << 30

func TestGatewayBigBodies(t *testing.T) {
	g := startGateway(t, "proxy")
	cookie := g.login()
	proc := fmt.Sprint("/proc/", g.cmd.Process.Pid)
	warm := func(n int64) {
		for _, chunked := range []bool{false, true} {
			up, _ := http.NewRequest("POST", g.url+"/upload", io.LimitReader(zeros{}, n))
			if !chunked {
				up.ContentLength = n
			}
			down, _ := http.NewRequest("GET", fmt.Sprintf("%s/download?bytes=%d", g.url, n), nil)
			for _, r := range []*http.Request{up, down} {
				r.Header.Set("Cookie", cookie)
				answer, err := http.DefaultClient.Do(r)
				if err != nil {
					t.Fatal(err)
				}
				var head bytes.Buffer
				got, err := io.Copy(io.Discard, io.TeeReader(answer.Body, &limited{&head, 100}))
				answer.Body.Close()
				if err != nil || r == down && got != n || r == up && head.String() != fmt.Sprint(n, nil) {
					t.Fatalf("%s: got %d bytes, %q, %v", r.URL, got, head.String(), err)
				}
			}
		}
	}
	warm(1 << 20)
	before := kilobytes(t, proc, "VmRSS")
	if err := os.WriteFile(proc+"/clear_refs", []byte("5"), 0); err != nil { // the peak counts from here
		t.Fatal(err)
	}
	start := time.Now()
	warm(gibibyte)
	grown := kilobytes(t, proc, "VmHWM") - before
	t.Logf("4 GiB in %v, resident set %d kB and %d kB more", time.Since(start).Round(time.Millisecond), before, grown)
	if grown >= 16<<10 {
		t.Errorf("the resident set grew by %d kB", grown)
	}
}

// limited keeps the first bytes.
type limited struct {
	io.Writer
	left int
}

func (l *limited) Write(b []byte) (int, error) {
	n := min(l.left, len(b))
	l.left -= n
	l.Writer.Write(b[:n])
	return len(b), nil
}

// Each event is there before the next one is sent.
func TestGatewayEvents(t *testing.T) {
	for _, mode := range gatewayModes {
		t.Run(mode, func(t *testing.T) {
			g := startGateway(t, mode)
			conn, answer := g.open(g.get("/events?paced", g.login(), "Accept: text/event-stream"))
			defer conn.Close()
			lines := bufio.NewScanner(answer.Body)
			for range 20 {
				for lines.Scan() && lines.Text() != "data: x" {
				}
				if lines.Err() != nil {
					t.Fatal(lines.Err())
				}
				g.tool.more <- time.Time{}
			}
		})
	}
}

// What stays open ends within a minute after its session.
func TestGatewayStreamsEnd(t *testing.T) {
	g := startGateway(t, "proxy")
	cookie := g.login()
	ended := make(chan string, 4)
	begin := func(name, request string, reads bool) {
		conn, _ := g.open(request)
		t.Cleanup(func() { conn.Close() })
		go func() {
			if reads {
				io.Copy(io.Discard, conn)
			} else {
				conn.(*net.TCPConn).SetReadBuffer(4096)
				for { // a reset shows in writing, without reading
					time.Sleep(500 * time.Millisecond)
					if _, err := conn.Write([]byte("x")); err != nil {
						break
					}
				}
			}
			ended <- name
		}()
	}
	begin("events", g.get("/events", cookie), true)
	begin("socket", g.get("/socket", cookie, "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="), true)
	begin("stalled download", g.get("/download?bytes=1000000000000", cookie), false)
	time.Sleep(8 * time.Second) // longer than a request that is none of these
	select {
	case name := <-ended:
		t.Fatalf("%s ended while its session lived", name)
	default:
	}
	answer, _ := g.raw(strings.Replace(g.get("/auth/session", cookie), "GET", "DELETE", 1))
	if answer.StatusCode != http.StatusNoContent {
		t.Fatal(answer.Status)
	}
	logout := time.Now()
	for range 3 {
		select {
		case name := <-ended:
			t.Logf("%s ended %v after its session", name, time.Since(logout).Round(time.Second))
		case <-time.After(time.Until(logout.Add(time.Minute))):
			t.Fatal("something is still open a minute after its session")
		}
	}
}

// One login serves two tools on two names, behind a login page on a third.
func TestGatewayDomain(t *testing.T) {
	cert, key := certificate(t, "*.example.test")
	tool := startTool(t)
	authAddr, nginxAddr := ownAddr(), ownAddr()
	host, authPort, _ := net.SplitHostPort(authAddr)
	_, nginxPort, _ := net.SplitHostPort(nginxAddr)

	public := "https://auth.example.test:" + authPort
	rw := &ringward{server: newProgram(t).serve("-addr", authAddr, "-tls-cert", cert, "-tls-key", key, "-public-url", public,
		"-cookie-domain", "example.test", "-trusted-proxies", "127.0.0.1/32", "-proxy", "http://"+tool.addr)}
	rw.url = public
	rw.addUser("frodo")
	startNginx(t, nginxAddr, strings.NewReplacer("http://127.0.0.1:8080", "https://"+authAddr, "127.0.0.1:3000", tool.addr,
		"listen 80;", "", "listen 443 ssl;", "listen "+nginxAddr+" ssl;",
		"/etc/ssl/tool.example.com.crt", cert, "/etc/ssl/tool.example.com.key", key).Replace(documented(t, "nginx")[0]))

	ctx, err := chromium(chromedp.Flag("ignore-certificate-errors", true), chromedp.Flag("host-resolver-rules", "MAP *.test "+host))
	if err != nil {
		t.Fatal("Chromium does not start: ", err)
	}
	d := &device{t: t, rw: rw, expected: map[string]bool{}}
	d.attach(ctx)
	login := func(at string) {
		t.Helper()
		d.until(`location.origin === %s && location.pathname === '/auth/login' && !document.querySelector('#page').hidden`, js(at))
		d.login("frodo", password)
	}
	lands := func(url string) {
		t.Helper()
		d.until(`location.href === %s && document.querySelector('#page')?.innerText.includes('"Remote-User":["frodo"]')`, js(url))
	}
	asks := func(url string) { d.do(chromedp.Navigate(url)) }
	logout := func() {
		t.Helper()
		if d.eval(`fetch('/auth/session', {method: 'DELETE'}).then(r => r.status)`) != "204" {
			t.Fatal("no logout")
		}
	}
	one, two, three := "https://one.example.test:"+authPort, "https://two.example.test:"+authPort, "https://three.example.test:"+nginxPort

	asks(one + "/reports?week=3&x=a%26b") // whose login page is on another name
	login(rw.url)
	lands(one + "/reports?week=3&x=a%26b")
	asks(two + "/x") // no second login
	lands(two + "/x")
	asks(three + "/y?z")
	lands(three + "/y?z")
	logout()
	for _, tool := range []string{one, two} {
		asks(tool + "/x")
		d.until(`location.href === %s`, js(rw.url+"/auth/login?next="+url.QueryEscape(tool+"/x")))
	}
	asks(three + "/reports?week=3&x=a%26b")
	login(rw.url)
	lands(three + "/reports?week=3&x=a%26b")
	asks(one + "/")
	lands(one + "/")
	logout()
	asks(three + "/x")
	d.until(`location.origin === %s && location.pathname === '/auth/login'`, js(rw.url))

	for next, want := range map[string]string{
		two + "/x?y=%26":                              two + "/x?y=%26",
		"http://two.example.test/":                    rw.url + "/",
		"https://evil.test/":                          rw.url + "/",
		"https://badexample.test/":                    rw.url + "/",
		"https://two.example.test@evil.test/":         rw.url + "/",
		`https://evil.test\.example.test/`:            rw.url + "/",
		"https://evil.test/.example.test":             rw.url + "/",
		"//two.example.test/":                         rw.url + "/",
		"https://evil.test%2f.example.test/":          rw.url + "/",
		"https://two.example.test:" + authPort + `\@`: rw.url + "/",
	} {
		asks(rw.url + "/auth/login?next=" + url.QueryEscape(next))
		login(rw.url)
		lands(want)
		logout()
	}
}
