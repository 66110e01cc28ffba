//go:build gateways

// seams_test.go is about what gets lost or gets through between a browser, a
// gateway, ringward and the tool.
package e2e

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
)

// forTrusted runs f before every gateway, as the documentation has it started.
func forTrusted(t *testing.T, f func(t *testing.T, mode string, g *gateway)) {
	for _, mode := range gatewayModes {
		t.Run(mode, func(t *testing.T) { f(t, mode, startGateway(t, mode, "-trusted-proxies", "127.0.0.1")) })
	}
}

// sent returns what the tool got of a request that must reach it.
func (g *gateway) sent(request string) (got toolGot) {
	g.Helper()
	answer, body := g.raw(request)
	if err := json.Unmarshal([]byte(body), &got); err != nil || answer.StatusCode != http.StatusOK {
		g.Fatalf("%s %s\nto %s", answer.Status, body, request)
	}
	return got
}

// Of cookies in every order, number and spelling the tool gets its own, and
// none that could be ours.
func TestGatewayCookies(t *testing.T) {
	forTrusted(t, func(t *testing.T, mode string, g *gateway) {
		session := g.login()
		_, value, _ := strings.Cut(session, "=")
		ours := []string{"ringward=x", "ringward=x.y", `ringward="x"`, "ringward=", "ringward", "__Host-ringward=x", "__Secure-ringward=" + value, "__host-Ringward=" + value,
			"RINGWARD=" + value, "ringward =x", "ringward-wiki=" + value, "__Host-ringward-wiki=x", "=ringward=x", "\tringward=x"}
		tools := []string{"a=1", "theme=dark", "xringward=3", "ring=4", `q="5"`, "empty=", "ringwar=6", "e=ringward=7", "_ringward=8", "bare"}
		random := rand.New(rand.NewPCG(1, 2)) // the same in each run
		for range 150 {
			cookies := []string{session}
			for range random.IntN(6) {
				cookies = append(cookies, ours[random.IntN(len(ours))])
			}
			for range random.IntN(5) {
				cookies = append(cookies, tools[random.IntN(len(tools))])
			}
			random.Shuffle(len(cookies), func(i, j int) { cookies[i], cookies[j] = cookies[j], cookies[i] })
			separator := []string{"; ", ";", " ; "}[random.IntN(3)]
			header := strings.Join(cookies, separator)
			if at := random.IntN(len(cookies)); at > 0 {
				header = strings.Join(cookies[:at], separator) + "\nCookie: " + strings.Join(cookies[at:], separator)
			}

			got := g.sent(g.get("/", header))
			var kept []string
			for _, part := range strings.Split(strings.Join(got.Header["Cookie"], ";"), ";") {
				if part = strings.Trim(part, " "); part != "" {
					kept = append(kept, part)
				}
			}
			want := slices.DeleteFunc(cookies, func(cookie string) bool { return !slices.Contains(tools, cookie) })
			if !slices.Equal(kept, want) || strings.Contains(fmt.Sprint(got), value) || got.Header.Get("Remote-User") != "frodo" {
				t.Errorf("of Cookie: %s\nthe tool got %q, want %q", header, got.Header, want)
			}
		}
	})
}

// A token comes in any of three headers. Authorization is the tool's, unless
// the token is in it.
func TestGatewayTokens(t *testing.T) {
	forTrusted(t, func(t *testing.T, mode string, g *gateway) {
		token := strings.TrimSpace(g.must("", "token", "add", "frodo", "script"))
		basic := func(name, password string) string {
			return "Basic " + base64.StdEncoding.EncodeToString([]byte(name+":"+password))
		}
		session := g.login()
		for _, c := range []struct {
			cookie string
			lines  []string
			want   string
		}{
			{"a=1", []string{"Authorization: Bearer " + token}, ""},
			{"a=1", []string{"authorization: BEARER   " + token}, ""},
			{"a=1", []string{"X-Ringward-Token: " + token, "Authorization: " + basic("a", "b")}, basic("a", "b")},
			{"a=1", []string{"x-ringward-token: " + token, "Authorization: Bearer other"}, "Bearer other"},
			{"a=1", []string{"Proxy-Authorization: Bearer " + token, "Authorization: " + basic("a", "b")}, basic("a", "b")},
			{session, []string{"Authorization: " + basic("a", "b")}, basic("a", "b")},
			{session, []string{"Authorization: " + basic("frodo", token)}, ""},
			{session, []string{"Authorization: Digest username=a"}, "Digest username=a"},
			{session, []string{"Proxy-Authorization: " + basic("frodo", token)}, ""},
			{session, []string{"Ringward-Proof: secret"}, ""},
		} {
			if strings.HasPrefix(c.lines[0], "Proxy-Authorization: Bearer") && (mode == "caddy" || mode == "traefik") {
				continue // they take it for their own, and drop it
			}
			got := g.sent(g.get("/", c.cookie, c.lines...))
			if got.Header.Get("Authorization") != c.want || len(got.Header["Authorization"]) > 1 || got.Header.Get("Remote-User") != "frodo" ||
				strings.Contains(fmt.Sprint(got), token) || strings.Contains(fmt.Sprint(got), basic("frodo", token)[6:]) || strings.Contains(fmt.Sprint(got), "secret") {
				t.Errorf("of %q the tool got %q", c.lines, got.Header)
			}
		}
	})
}

// What a tool says of caching passes, and it cannot log its users out.
func TestGatewayToolsHeaders(t *testing.T) {
	forTrusted(t, func(t *testing.T, mode string, g *gateway) {
		if mode == "traefik" {
			return // which leaves the response as it is
		}
		cookie := g.login()
		for _, c := range []struct{ query, cache string }{
			{"", "[private, no-cache]"},
			{"?Cache-Control=public,max-age=60", "[public,max-age=60]"},
			{"?Cache-Control=no-store", "[no-store]"},
			{"?Clear-Site-Data=%22cookies%22", "[private, no-cache]"},
			{"?Clear-Site-Data=%22*%22", "[private, no-cache]"},
			{"?Clear-Site-Data=%22cache%22,%20%22cookies%22", "[private, no-cache]"},
		} {
			answer, _ := g.raw(g.get("/"+c.query, cookie))
			if got := fmt.Sprint(answer.Header["Cache-Control"]); got != c.cache || answer.Header["Clear-Site-Data"] != nil {
				t.Errorf("%s: got %v", c.query, answer.Header)
			}
		}
		answer, _ := g.raw(strings.Replace(g.get("/auth/session", cookie), "GET", "DELETE", 1))
		if answer.StatusCode != http.StatusNoContent || answer.Header.Get("Clear-Site-Data") != `"cache"` {
			t.Errorf("logout: %s %v", answer.Status, answer.Header)
		}
	})
}

// Bodies of any size pass, and nobody gets one past the login.
func TestGatewayUploads(t *testing.T) {
	const size = 3 << 20
	forTrusted(t, func(t *testing.T, mode string, g *gateway) {
		for cookie, want := range map[string]int{g.login(): http.StatusOK, "a=1": http.StatusUnauthorized} {
			for _, length := range []int64{size, -1} {
				request, _ := http.NewRequest("POST", g.url+"/upload", io.LimitReader(zeros{}, size))
				request.ContentLength = length
				request.Header.Set("Cookie", cookie)
				request.Header.Set("Expect", "100-continue") // or the connection may be gone before the response is read
				answer, err := http.DefaultClient.Do(request)
				if err != nil {
					t.Errorf("length %d, want %d: %v", length, want, err)
					continue
				}
				body, _ := io.ReadAll(answer.Body)
				answer.Body.Close()
				if answer.StatusCode != want || want == http.StatusOK && string(body) != fmt.Sprint(size, nil) {
					t.Errorf("length %d, want %d: %s %s", length, want, answer.Status, body)
				}
			}
		}
	})
}

func TestGatewayUpgradeInAnyCase(t *testing.T) {
	forTrusted(t, func(t *testing.T, mode string, g *gateway) {
		cookie := g.login()
		for _, upgrade := range []string{"websocket", "WebSocket", "WEBSOCKET"} {
			conn, answer := g.open(g.get("/socket", cookie, "Connection: keep-alive, Upgrade", "Upgrade: "+upgrade, "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="))
			if answer.StatusCode != http.StatusSwitchingProtocols {
				t.Errorf("Upgrade: %s: %s", upgrade, answer.Status)
			}
			conn.Close()
		}
	})
}

// A script is told how to log in, a page's script is not sent to the login
// page, and a browser is.
func TestGatewayRefusals(t *testing.T) {
	forTrusted(t, func(t *testing.T, mode string, g *gateway) {
		for _, c := range []struct {
			lines     []string
			status    int
			challenge string
		}{
			{nil, http.StatusUnauthorized, `Bearer realm="ringward"`},
			{[]string{"Accept: application/vnd.docker.distribution.manifest.v2+json"}, http.StatusUnauthorized, `Bearer realm="ringward"`},
			{[]string{"Accept: text/html, */*", "X-Requested-With: XMLHttpRequest"}, http.StatusUnauthorized, `Bearer realm="ringward"`},
			{[]string{"Accept: text/html", "Sec-Fetch-Mode: cors"}, http.StatusUnauthorized, `Bearer realm="ringward"`},
			{[]string{"Accept: text/html"}, http.StatusSeeOther, ""},
			{[]string{"Accept: text/html", "Sec-Fetch-Mode: navigate"}, http.StatusSeeOther, ""},
		} {
			answer, body := g.raw(g.get("/v2/", "a=1", append(c.lines, "Connection: close")...))
			if answer.StatusCode != c.status || c.challenge != "" && answer.Header.Get("WWW-Authenticate") != c.challenge {
				t.Errorf("%q: %s %v %s", c.lines, answer.Status, answer.Header, body)
			}
		}
	})
}

// The paths of ours can be moved, and those under /auth/ are then the tool's.
func TestGatewayPrefix(t *testing.T) {
	for _, mode := range gatewayModes {
		t.Run(mode, func(t *testing.T) {
			g := &gateway{tool: startTool(t), changes: []string{"/auth/", "/ringward/"}}
			g.ringward = &ringward{server: newProgram(t).serve("-trusted-proxies", "127.0.0.1", "-prefix", "/ringward", "-proxy", "http://"+g.tool.addr)}
			g.addr = g.server.addr()
			if mode != "proxy" {
				g.before(mode)
			}
			g.addUser("frodo")
			body := credentials("frodo", password)
			answer, said := g.raw(fmt.Sprintf("POST /ringward/session HTTP/1.1\nHost: %s\nConnection: close\nContent-Type: application/json\nContent-Length: %d\n\n%s", g.addr, len(body), body))
			if answer.StatusCode != http.StatusCreated {
				t.Fatalf("login: %s %s", answer.Status, said)
			}
			cookie, _, _ := strings.Cut(answer.Header.Get("Set-Cookie"), ";")
			for _, path := range []string{"/auth/login", "/auth/session", "/auth/verify", "/auth/"} {
				if got := g.sent(g.get(path, cookie)); got.URI != path || got.Header.Get("Remote-User") != "frodo" {
					t.Errorf("%s: the tool got %+v", path, got)
				}
			}
			answer, _ = g.raw(g.get("/auth/login", "a=1", "Accept: text/html", "Connection: close"))
			if !strings.HasPrefix(answer.Header.Get("Location"), "/ringward/login?next=%2Fauth%2Flogin") {
				t.Errorf("%s %v", answer.Status, answer.Header)
			}
		})
	}
}

// mapped is a browser that finds every name of ours at that address.
func mapped(t *testing.T, rw *ringward, host string) *device {
	t.Helper()
	ctx, err := chromium(chromedp.Flag("ignore-certificate-errors", true), chromedp.Flag("host-resolver-rules", "MAP *.com "+host))
	if err != nil {
		t.Fatal("Chromium does not start: ", err)
	}
	d := &device{t: t, rw: rw, expected: map[string]bool{}}
	d.attach(ctx)
	return d
}

// With an https address the tool is there over https, and over http the login
// page says where to go.
func TestGatewayHTTPS(t *testing.T) {
	for _, mode := range []string{"nginx", "caddy", "haproxy"} {
		t.Run(mode, func(t *testing.T) {
			g := &gateway{tool: startTool(t), addr: ownAddr(), secure: ownAddr()}
			host, port, _ := net.SplitHostPort(g.secure)
			_, plainPort, _ := net.SplitHostPort(g.addr)
			public := "https://tool.example.com:" + port
			g.ringward = &ringward{server: newProgram(t).serve("-trusted-proxies", "127.0.0.1", "-public-url", public)}
			g.before(mode)
			g.addUser("frodo")

			d := mapped(t, g.ringward, host)
			d.do(chromedp.Navigate(public + "/app?x=1#/workloads/42"))
			d.until(`location.pathname === '/auth/login' && !document.querySelector('#page').hidden`)
			d.login("frodo", password)
			d.until(`location.href === %s && document.readyState === 'complete'`, js(public+"/app?x=1#/workloads/42"))
			var got toolGot
			if err := json.Unmarshal([]byte(d.eval(`document.querySelector('#page').innerText`)), &got); err != nil {
				t.Fatal(err)
			}
			if got.Header.Get("X-Forwarded-Proto") != "https" || got.Header.Get("Remote-User") != "frodo" {
				t.Errorf("the tool got %v", got.Header)
			}
			if mode == "caddy" {
				return // which sends everybody to https
			}
			d = mapped(t, g.ringward, host)
			d.do(chromedp.Navigate("http://tool.example.com:" + plainPort + "/auth/login"))
			d.until(`document.querySelector('#page')?.hidden === false`)
			d.login("frodo", password)
			d.sees("this browser did not keep the cookie. Open " + public + " instead.")
		})
	}
}

// Another ringward on a name above this one gives the browser a second cookie of
// the same name.
func TestGatewayTwoCookies(t *testing.T) {
	addr := ownAddr()
	host, port, _ := net.SplitHostPort(addr)
	public := "http://tool.example.com:" + port
	rw := &ringward{server: newProgram(t).serve("-addr", addr, "-public-url", public)}
	rw.addUser("frodo")
	other := strings.TrimPrefix(rw.login("frodo"), "Cookie: ")
	d := mapped(t, rw, host)
	d.do(chromedp.Navigate(public + "/auth/login"))
	d.until(`document.querySelector('#page')?.hidden === false`)
	d.eval(`document.cookie = ` + js(other+"; domain=example.com; path=/"))
	d.login("frodo", password)
	d.sees("this browser did not keep the cookie")
	d.sees("several")
}

// One login for the documented tools behind Caddy.
func TestGatewaySeveral(t *testing.T) {
	addr, secure := ownAddr(), ownAddr()
	host, port, _ := net.SplitHostPort(secure)
	at := func(name string) string { return "https://" + name + ".example.com:" + port }
	wiki, git := startTool(t), startTool(t)
	rw := &ringward{server: newProgram(t).serve("-trusted-proxies", "127.0.0.1", "-public-url", at("auth"), "-cookie-domain", "example.com")}
	g := &gateway{ringward: rw, tool: wiki, addr: addr, secure: secure}
	g.addUser("frodo")
	cert, key := certificate(t, "*.example.com")
	blocks := documented(t, "caddyfile")
	block := strings.NewReplacer("127.0.0.1:8080", g.server.addr(), "127.0.0.1:3000", wiki.addr, "127.0.0.1:3001", git.addr,
		".example.com {", ".example.com {\n\tbind "+host+"\n\ttls "+cert+" "+key).Replace(blocks[0][:strings.Index(blocks[0], ":80 {")] + blocks[1])
	startCaddy(t, g.secure, g.addr, g.secure, block)

	d := mapped(t, g.ringward, host)
	is := func(url string) {
		t.Helper()
		d.until(`location.href === %s && document.querySelector('#page')?.innerText.includes('"Remote-User":["frodo"]')`, js(url))
	}
	d.do(chromedp.Navigate(at("wiki") + "/page?x=1"))
	d.until(`location.origin === %s && location.pathname === '/auth/login' && !document.querySelector('#page').hidden`, js(at("auth")))
	d.login("frodo ", password) // as phones write it
	is(at("wiki") + "/page?x=1")
	d.do(chromedp.Navigate(at("git") + "/repo"))
	is(at("git") + "/repo")
	if got := d.eval(`fetch('/auth/tokens').then(r => r.status)`); got != "421" {
		t.Errorf("the account is on a tool's host: %s", got)
	}
	d.do(chromedp.Navigate(at("git") + "/auth/logout"))
	d.press("Log out")
	d.until(`location.pathname === '/auth/login'`)
	for _, tool := range []string{"wiki", "git"} {
		d.do(chromedp.Navigate(at(tool) + "/"))
		d.until(`location.origin === %s && location.pathname === '/auth/login'`, js(at("auth")))
	}
	if wiki.reached() != 1 || git.reached() != 1 {
		t.Errorf("%v and %v reached the tools", wiki.paths, git.paths)
	}
}
