package e2e

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

const maxBody = 64 << 10

// routed is every route: its methods, who may (anybody, a login, only a
// session, a login that is pending, or anybody who sends a form), and the fields of a body that is right; those
// in brackets may be missing. /INVITE stands for an invite of sam's.
var routed = map[string]struct {
	methods string // as in Allow
	who     string
	fields  string
}{
	"/auth/session":           {"GET, HEAD, POST, DELETE", "anybody", "username password"},
	"/auth/sessions":          {"GET, HEAD, DELETE", "session", ""},
	"/auth/sessions/handle":   {"DELETE", "session", ""},
	"/auth/password":          {"PUT", "session", "current new"},
	"/INVITE":                 {"GET, HEAD, POST", "anybody", "password [username]"},
	"/auth/tokens":            {"GET, HEAD, POST", "session", "name [expires]"},
	"/auth/confirm":           {"POST", "session", "[password]"},
	"/auth/session/code":      {"POST", "anybody", "pending code"},
	"/auth/passkey":           {"POST", "anybody", "id clientDataJSON authenticatorData signature"},
	"/auth/passkey/options":   {"POST", "anybody", ""},
	"/auth/factors":           {"GET, HEAD", "session", ""},
	"/auth/totp":              {"POST, PUT, DELETE", "pending", ""},
	"/auth/recovery-codes":    {"POST", "session", ""},
	"/auth/passkeys":          {"POST", "session", ""},
	"/auth/passkeys/options":  {"POST, DELETE", "session", ""},
	"/auth/passkeys/handle":   {"DELETE", "session", ""},
	"/auth/tokens/handle":     {"DELETE", "session", ""},
	"/auth/verify":            {"GET, HEAD", "anybody", ""},
	"/auth/continue":          {"GET, HEAD", "anybody", ""},
	"/auth/login":             {"GET, HEAD, POST", "form", ""},
	"/auth/logout":            {"GET, HEAD, POST", "form", ""},
	"/auth/invite":            {"GET, HEAD", "anybody", ""},
	"/auth/account":           {"GET, HEAD", "login", ""},
	"/auth/style.css":         {"GET, HEAD", "anybody", ""},
	"/auth/script.js":         {"GET, HEAD", "anybody", ""},
	"/auth/icon.svg":          {"GET, HEAD", "anybody", ""},
	"/healthz":                {"GET, HEAD", "anybody", ""},
	"/":                       {"GET, HEAD", "login", ""},
	"/ringsofpower":           {"GET, HEAD, POST", "login", "[name] [bearer]"},
	"/ringsofpower/1":         {"GET, HEAD, PUT, DELETE", "login", "[name] [bearer]"},
	"/ringsofpower/nonsuch":   {"GET, HEAD, PUT, DELETE", "login", ""},
	"/auth/nothing":           {},
	"/auth/session/style.css": {},
	"/auth/":                  {},
	"/auth":                   {},
	"/.git/config":            {},
	"/debug/pprof/":           {},
	"/metrics":                {},
	"/web/login.html":         {},
	"/auth/login.html":        {},
	"/favicon.ico":            {},
}

// Every route by every method, for everybody, from another site, and with
// bodies that are not right.
func TestEveryRoute(t *testing.T) {
	p := newProgram(t)
	p.addUser("frodo", "sam", "gone")
	s := p.serve()
	session, sams, disabled := s.login("frodo"), s.login("sam"), s.login("gone")
	token := "Authorization: Bearer " + strings.TrimSpace(p.must("", "token", "add", "frodo", "script"))
	p.must("", "user", "disable", "gone")
	proof, invite := s.proof(session, password), p.invite("sam")
	state := func() string { // which a refused request does not change
		var all strings.Builder
		for _, cookie := range []string{session, sams} {
			for _, path := range []string{"/auth/sessions", "/auth/tokens", "/ringsofpower"} {
				all.WriteString(regexp.MustCompile(`"last(Seen|Used)":("[^"]*"|null)`).ReplaceAllString(s.want(200, "GET", path, "", cookie).body, ""))
			}
		}
		return all.String()
	}
	before := state()
	for path, route := range routed {
		has := strings.Split(route.methods, ", ")
		path = strings.Replace(path, "/INVITE", invite, 1)
		for _, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "get"} {
			name := method + " " + path
			if !slices.Contains(has, method) {
				want := 405
				if route.methods == "" {
					want = 404
				}
				r := s.do(method, path, "{}", session)
				if allow := strings.Join(r.header["Allow"], " and "); allow != route.methods {
					t.Errorf("%s: Allow %q, want %q", name, allow, route.methods)
				}
				if method != "HEAD" {
					r.refusal(t, name, want)
				} else if r.status != want {
					t.Errorf("%s: %d, want %d", name, r.status, want)
				}
				continue
			}
			for who, line := range map[string]string{"nobody": "X-Nobody: 1", "disabled": disabled} {
				r := s.do(method, path, "", line)
				if r.status == 405 || r.status == 404 || (route.who == "login" || route.who == "session") && r.status != 401 {
					t.Errorf("%s as %s: %d", name, who, r.status)
				}
			}
			if route.who == "session" && s.do(method, path, "", token).status != 403 {
				t.Errorf("%s with a token is not 403", name)
			}
			if method == "GET" || method == "HEAD" || route.who == "form" {
				continue
			}
			body := right(route.fields)
			for _, line := range []string{"Origin: http://evil.test", "Sec-Fetch-Site: same-site"} {
				r := s.do(method, path, body, session, line)
				r.refusal(t, name+" with "+line, 403)
				if r.header["Set-Cookie"] != nil {
					t.Errorf("%s with %s: %q", name, line, r.header["Set-Cookie"])
				}
			}
			if route.fields == "" || method == "DELETE" {
				continue
			}
			for what, body := range wrongBodies(route.fields) {
				s.do(method, path, body, session, proof).refusal(t, name+": "+what, 400)
			}
			s.do(method, path, body, session, proof, "Content-Type: text/plain").refusal(t, name, 415)
			s.do(method, path, body+strings.Repeat(" ", maxBody), session, proof).refusal(t, name, 413)
		}
	}
	// What is frodo's, sam does not reach.
	own := data[[]struct{ ID string }](t, s.want(200, "GET", "/auth/sessions", "", session))
	s.want(404, "DELETE", "/auth/sessions/"+own[0].ID, "", sams)
	s.want(404, "DELETE", "/auth/tokens/"+p.firstID("token"), "", sams)
	if after := state(); after != before {
		t.Errorf("it changed something:\n%s\n%s", before, after)
	}
	for path, route := range routed {
		if route.who == "login" {
			if r := s.do("GET", path, "", token); r.status != 200 && !strings.HasSuffix(path, "/nonsuch") {
				t.Errorf("GET %s with a token: %d", path, r.status)
			}
		}
	}
	s.want(201, "POST", invite, object(map[string]string{"password": newPassword})) // it was not used up
}

func right(fields string) string {
	if fields == "" {
		return ""
	}
	all := map[string]string{}
	for _, field := range strings.Fields(fields) {
		all[strings.Trim(field, "[]")] = "the road goes ever on"
	}
	return object(all)
}

// wrongBodies has one for each rule: one object, known fields spelled exactly,
// each once and of its type, nothing after it, in UTF-8.
func wrongBodies(fields string) map[string]string {
	whole := right(fields)
	first, _, _ := strings.Cut(fields, " ")
	name := `"` + strings.Trim(first, "[]") + `":`
	both := name + `"the road goes ever on"`
	wrong := map[string]string{
		"null": "null", "array": "[" + whole + "]", "two": whole + whole, "unknown field": strings.TrimSuffix(whole, "}") + `,"role":"admin"}`,
		"twice":     strings.Replace(whole, both, both+","+both, 1),
		"capitals":  strings.Replace(whole, name, strings.ToUpper(name), 1),
		"number":    strings.Replace(whole, both, name+"1", 1),
		"not UTF-8": strings.Replace(whole, "road", "\xff", 1),
	}
	if name[1] == first[0] { // it may not be missing
		wrong["missing"] = strings.NewReplacer(both+",", "", ","+both, "", both, "").Replace(whole)
	}
	return wrong
}

// A request must name this server, in whichever way it is named.
func TestNamesOnTheWire(t *testing.T) {
	s := newProgram(t).serve()
	for request, status := range map[string]int{
		"GET /auth/session HTTP/1.1\r\nHost: localhost:1":                     401,
		"GET http://localhost/auth/session HTTP/1.1\r\nHost: evil.test":       401,
		"GET http://evil.test/auth/session HTTP/1.1\r\nHost: localhost":       421,
		"GET /auth/session HTTP/1.1\r\nHost: evil.test":                       421,
		"GET / HTTP/1.1\r\nHost: evil.test\r\nX-Forwarded-Host: localhost":    421,
		"GET /auth/session HTTP/1.1\r\nHost: ":                                421,
		"GET /auth/session HTTP/1.0":                                          421,
		"POST /auth/session HTTP/1.1\r\nHost: evil.test\r\nContent-Length: 0": 421,
		"CONNECT evil.test:443 HTTP/1.1\r\nHost: evil.test:443":               421,
		"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost:80":                 404,
		"OPTIONS * HTTP/1.1\r\nHost: localhost":                               404,
	} {
		r := s.send(request + "\r\n\r\n")
		r.refusal(t, request, status)
		if (status == 421) != strings.Contains(r.body, "-public-url") {
			t.Errorf("%.60q: %s", request, r.body)
		}
	}
	s.want(200, "GET", "/healthz", "", "Host: evil.test")
	for _, request := range []string{ // net/http refuses these by itself
		"GET /auth/session HTTP/1.1\r\n\r\n",
		"GET /auth/session HTTP/1.1\r\nHost: localhost\r\nHost: evil.test\r\n\r\n",
		"GET /auth/session HTTP/1.1\r\nHost: evil.test/localhost\r\n\r\n",
	} {
		if r := s.send(request); r.status != 400 && r.status != 421 {
			t.Errorf("%q: %d", request, r.status)
		}
	}
}

func TestSizeOfBodies(t *testing.T) {
	p := newProgram(t)
	p.addUser("frodo")
	s := p.serve()
	body := credentials("frodo", password)
	full := body + strings.Repeat(" ", maxBody-len(body))
	const head = "POST /auth/session HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
	chunked := func(body string) string {
		return fmt.Sprintf("%sTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", head, len(body), body)
	}
	s.want(201, "POST", "/auth/session", full)
	if r := s.send(chunked(full)); r.status != 201 {
		t.Errorf("%d bytes in a chunk: %d", len(full), r.status)
	}
	for name, request := range map[string]string{
		"a byte more":           head + "Content-Length: 65537\r\n\r\n" + full + " ",
		"a byte more, in chunk": chunked(full + " "),
		"much more":             chunked(strings.Repeat(full, 3)),
		"a long one":            head + "Content-Length: 9000000000000000000\r\n\r\n" + full + full,
	} {
		s.send(request).refusal(t, name, 413)
	}
	// An endless one is not read to its end, which never comes.
	conn := s.dial()
	fmt.Fprint(conn, head+"Transfer-Encoding: chunked\r\n\r\n")
	sent, chunk := 0, fmt.Sprintf("10000\r\n%s\r\n", strings.Repeat(" ", 0x10000))
	for err := error(nil); err == nil && sent < 100<<20; sent += len(chunk) {
		_, err = io.WriteString(conn, chunk)
	}
	if sent >= 100<<20 {
		t.Errorf("it takes %d bytes", sent)
	}
}

func TestSizeOfHeaders(t *testing.T) {
	p := newProgram(t)
	p.addUser("frodo")
	s := p.serve()
	get := "GET /auth/session HTTP/1.1\r\nHost: localhost\r\n" + s.login("frodo") + "\r\n"
	for name, c := range map[string]struct {
		request string
		status  int
	}{
		"10,000 bytes":        {get + "X: " + strings.Repeat("x", 10_000) + "\r\n\r\n", 200},
		"1,500 cookies":       {get + "Cookie: " + strings.Repeat("a=b; ", 1500) + "\r\n\r\n", 200},
		"one of 20,000 bytes": {get + "X: " + strings.Repeat("x", 20_000) + "\r\n\r\n", 431},
		"many":                {get + strings.Repeat("X: x\r\n", 5000) + "\r\n", 431},
		"3,500 cookies":       {get + "Cookie: " + strings.Repeat("abc=def; ", 3500) + "\r\n\r\n", 431},
		"path":                {"GET /" + strings.Repeat("x", 20_000) + " HTTP/1.1\r\nHost: localhost\r\n\r\n", 431},
		"never ending":        {get + "X: " + strings.Repeat("x", 200_000), 431},
	} {
		if r := s.send(c.request); r.status != c.status || r.closed != (c.status == 431) {
			t.Errorf("%s: %d %v, the connection is closed: %v; want %d", name, r.status, r.err, r.closed, c.status)
		}
	}
}

// HTTP/2 has a limit of its own, of the same size.
func TestSizeOfHeadersOverHTTP2(t *testing.T) {
	cert, key := certificate(t, "localhost")
	s := newProgram(t).serve("-tls-cert", cert, "-tls-key", key)
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: patience}
	for size, fits := range map[int]bool{10_000: true, 15_000: true, 17_000: false} {
		r, err := http.NewRequest("GET", s.url+"/healthz", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("X", strings.Repeat("x", size))
		answer, err := client.Do(r)
		if err != nil {
			if fits {
				t.Errorf("%d bytes: %v", size, err)
			}
			continue // the client knows the limit
		}
		answer.Body.Close()
		if answer.ProtoMajor != 2 || (answer.StatusCode == 200) != fits {
			t.Errorf("%d bytes: %s %s", size, answer.Proto, answer.Status)
		}
	}
}

// Who sends a header or a body by half, and then nothing, is sent away.
func TestSlowClients(t *testing.T) {
	t.Parallel() // it only waits
	s := newProgram(t).serve()
	for name, half := range map[string]string{
		"nothing":     "",
		"half a line": "GET /healthz HT",
		"half a head": "GET /healthz HTTP/1.1\r\nHost: localhost\r\n",
		"half a body": "POST /auth/session HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn := s.dial()
			io.WriteString(conn, half)
			if _, err := io.ReadAll(conn); err != nil { // not a time limit of ours
				t.Error(err)
			}
		})
	}
}

func TestOwnPublicNameIsNoOtherSite(t *testing.T) {
	p := newProgram(t)
	p.addUser("frodo")
	s := p.serve("-public-url", "https://auth.example.com", "-cookie-domain", "example.com")
	body := credentials("frodo", password)
	for origin, want := range map[string]int{
		"https://auth.example.com": 201, "http://auth.example.com": 403, "https://tool.example.com": 403, "https://auth.example.com.evil.test": 403,
	} {
		// A proxy that keeps the name, and one that does not.
		for _, host := range []string{"auth.example.com", s.addr()} {
			want := want
			if origin == "http://auth.example.com" && host == "auth.example.com" {
				want = 201 // Host does not tell http from https; Sec-Fetch-Site does
			}
			if r := s.do("POST", "/auth/session", body, "Host: "+host, "Origin: "+origin); r.status != want {
				t.Errorf("from %s to %s: %d, want %d", origin, host, r.status, want)
			}
		}
	}
	if r := s.do("POST", "/auth/session", body, "Host: auth.example.com", "Origin: http://auth.example.com", "Sec-Fetch-Site: cross-site"); r.status != 403 {
		t.Errorf("from http to https: %d, want 403", r.status)
	}
}

// The throttle believes a header about an address only from whom it was told to.
func TestThrottleAndForwardedFor(t *testing.T) {
	p := newProgram(t)
	p.addUser("frodo")
	try := func(s *server, want int, password, line string) {
		t.Helper()
		if r := s.do("POST", "/auth/session", credentials("frodo", password), line); r.status != want {
			t.Errorf("%s: %d, want %d", line, r.status, want)
		}
	}
	s := p.serve()
	for _, name := range []string{"X-Forwarded-For: ", "X-Real-Ip: ", "Forwarded: for=", "X_Forwarded_For: ", "CF-Connecting-IP: "} {
		try(s, 401, "wrong", name+"198.51.100.1")
	}
	try(s, 429, password, "X-Forwarded-For: 198.51.100.2")
	s.stop()
	s = p.serve("-trusted-proxies", "127.0.0.1")
	for i := range 5 { // what is left of the last address is the client's own tale
		try(s, 401, "wrong", fmt.Sprintf("X-Forwarded-For: 203.0.113.%d, 198.51.100.7", i))
	}
	try(s, 429, password, "X-Forwarded-For: 203.0.113.200\r\nX-Forwarded-For: 198.51.100.7")
	try(s, 201, password, "X-Forwarded-For: 198.51.100.7, 198.51.100.8")
}

// However the path of something precious is spelled, it does not open.
func TestPathsOfWhatIsProtected(t *testing.T) {
	s := newProgram(t).serve()
	for _, path := range []string{
		"/ringsofpower", "//ringsofpower", "/ringsofpower/", "/ringsofpower//1", "/./ringsofpower", "/auth/../ringsofpower",
		"/auth/login/../../ringsofpower", "/%72ingsofpower", "/ringsofpower%2f1", "/ringsofpower;x", "/ringsofpower?x=/auth/login",
		"/ringsofpower%00", "/RINGSOFPOWER", "/auth/%2e%2e/ringsofpower", "/auth/login%2f..%2f..%2fringsofpower", "/ringsofpower/%31", "/%2572ingsofpower",
		"/healthz/../ringsofpower", "/\\ringsofpower", "/ringsofpower.css", "http://localhost/ringsofpower", "/", "/auth/account", "/auth/account/", "/%2e/",
	} {
		for _, line := range []string{"Accept: */*", "Accept: text/html", "X-Original-URL: /healthz", "X-Forwarded-Uri: /healthz",
			"X-HTTP-Method-Override: OPTIONS", "Remote-User: frodo", "Connection: close, Cookie", "Authorization: Basic ZnJvZG86eA=="} {
			for _, method := range []string{"GET", "POST"} {
				r := s.do(method, path, "", line)
				location := r.header.Get("Location")
				switch r.status {
				case 401, 404, 405, 415:
				case 303, 307:
					if !strings.HasPrefix(location, "/") || strings.HasPrefix(location, "//") || strings.HasPrefix(location, "/\\") {
						t.Errorf("%s %s: to %q", method, path, location)
					}
				default:
					t.Errorf("%s %s with %s: %d", method, path, line, r.status)
				}
			}
		}
	}
}

// Nobody who is not logged in makes the store write a byte.
func TestStrangersLeaveNothing(t *testing.T) {
	p := newProgram(t)
	p.addUser("frodo", "sam")
	s := p.serve()
	cookie, invite := s.login("frodo"), p.invite("sam")
	content := func() []byte {
		b, err := os.ReadFile(p.path("test.db"))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	before := content()
	for path, route := range routed {
		path = strings.Replace(path, "/INVITE", invite+"x", 1)
		for _, method := range []string{"GET", "POST", "PUT", "DELETE"} {
			for _, line := range []string{"Cookie: ringward=" + strings.Repeat("A", 43) + "." + strings.Repeat("A", 43), "Authorization: Bearer rw_" + strings.Repeat("A", 43)} {
				s.do(method, path, right(route.fields), line)
			}
		}
	}
	s.want(200, "GET", invite, "")
	s.want(401, "POST", "/auth/session", credentials("nobody", "wrong"), cookie)
	s.want(422, "POST", invite, object(map[string]string{"password": "short"}))
	if !bytes.Equal(before, content()) {
		t.Error("the file has changed")
	}
}

// The log of a run that did everything: each event once, each request once,
// each on one line, and no secret anywhere.
func TestLogOfEverything(t *testing.T) {
	p := newProgram(t)
	s := p.serve("-log", "json")
	p.addUser("frodo", "sam")
	const wrong, other, typedAsName = "mellon mellon mellon", "not all who wander are lost", "hunter2hunter2hunter2"
	secrets := []string{secretKey, password, newPassword, wrong, other, typedAsName, rosiesHash}
	want := map[string]int{"start": 1, "stop": 1, "user added": 2, "password set": 2, "invite made": 1} // that of the empty store
	expect := func(status int, method, path, body string, lines ...string) reply {
		t.Helper()
		return s.want(status, method, path, body, lines...)
	}
	// cookie returns that of a response, and keeps what is secret in it.
	cookie := func(r reply) string {
		t.Helper()
		_, value, _ := strings.Cut(r.cookie(), "=")
		id, signature, _ := strings.Cut(value, ".")
		secrets = append(secrets, id, signature)
		return r.cookie()
	}
	login := func(user, password string) string {
		t.Helper()
		want["login ok"]++
		return cookie(expect(201, "POST", "/auth/session", credentials(user, password)))
	}
	change := func(current, next string) string { return object(map[string]string{"current": current, "new": next}) }
	id := func(path, cookie string, i int) string {
		t.Helper()
		return path + "/" + data[[]struct{ ID string }](t, expect(200, "GET", path, "", cookie))[i].ID
	}

	first := login("frodo", password)
	expect(200, "GET", "/auth/session?password="+other[:3]+"&"+strings.TrimPrefix(first, "Cookie: "), "", first, "Referer: http://"+s.addr()+"/?"+first, "User-Agent: "+first)
	expect(401, "POST", "/auth/session", credentials("frodo", wrong))
	expect(401, "POST", "/auth/session", credentials(typedAsName, "frodo"))
	expect(400, "POST", "/auth/session", `{"username":"frodo","password":"x","`+other+`":1}`)
	expect(415, "POST", "/auth/session", "password="+other, "Content-Type: application/x-www-form-urlencoded")
	expect(403, "POST", "/auth/session", credentials("frodo", password), "Origin: http://evil.test")
	expect(403, "PUT", "/auth/password", change(wrong, newPassword), first)
	expect(422, "PUT", "/auth/password", change(password, "short"), first)
	want["login failed"], want["cross-site request refused"] = 3, 1
	second := cookie(expect(204, "PUT", "/auth/password", change(password, newPassword), first))
	want["password set"]++
	third := login("frodo", newPassword)

	expect(403, "POST", "/auth/tokens", `{"name":"script"}`, second)
	want["confirmed"]++
	made := expect(201, "POST", "/auth/tokens", `{"name":"script"}`, second, s.proof(second, newPassword))
	token := data[struct{ Token string }](t, made).Token
	secrets = append(secrets, token)
	expect(200, "GET", "/ringsofpower", "", "Authorization: Bearer "+token)
	expect(404, "GET", "/"+token, "")
	expect(204, "DELETE", id("/auth/tokens", second, 0), "", second)
	expect(204, "DELETE", id("/auth/sessions", second, 1), "", second)
	expect(401, "GET", "/auth/session", "", third)
	expect(200, "PUT", "/ringsofpower/1", `{"name":"`+other+`","bearer":"x"}`, second)
	expect(204, "DELETE", "/auth/session", "", second)
	expect(204, "DELETE", "/auth/session", "", second) // there was none
	expect(204, "DELETE", "/auth/sessions", "", login("frodo", newPassword))
	for _, event := range []string{"token made", "token removed", "session ended", "logout", "all sessions ended"} {
		want[event]++
	}

	link := p.invite("sam")
	secrets = append(secrets, link[strings.LastIndex(link, "/")+1:])
	expect(200, "GET", link, "")
	expect(404, "GET", strings.Replace(link, "invites", "invite", 1), "")
	expect(404, "GET", strings.Replace(link, "invites/", "invite", 1), "")
	expect(200, "GET", strings.Replace(link, "invites", "%69nvites", 1), "")
	expect(404, "GET", strings.Replace(link, "invites/", "invites%2f", 1), "")
	expect(405, "DELETE", link, "")
	expect(421, "GET", link, "", "Host: evil.test")
	expect(422, "POST", link, object(map[string]string{"password": other[:5]}))
	cookie(expect(201, "POST", link, object(map[string]string{"password": other})))
	expect(404, "POST", link, object(map[string]string{"password": other}))
	for range 5 {
		expect(401, "POST", "/auth/session", credentials("sam", wrong))
		want["login failed"]++
	}
	expect(429, "POST", "/auth/session", credentials("sam", other))
	p.must("", "user", "unlock", "sam")
	login("sam", other)
	for _, event := range []string{"invite made", "invite used", "password set", "login throttled", "user unlocked"} {
		want[event]++
	}

	p.must("", "session", "end", p.firstID("session"))
	p.must("", "session", "end-all", "sam")
	secrets = append(secrets, strings.TrimSpace(p.must("", "token", "add", "sam", "robot")))
	p.must("", "token", "remove", p.firstID("token"))
	_, link, _ = strings.Cut(p.must("", "user", "add", "merry"), "#")
	secrets = append(secrets, strings.TrimSpace(link))
	for _, act := range []string{"disable", "enable", "remove"} {
		p.must("", "user", act, "sam")
	}
	if err := os.WriteFile(p.path("htpasswd"), []byte("pippin:"+rosiesHash), 0o600); err != nil {
		t.Fatal(err)
	}
	p.must("", "user", "import", "htpasswd")
	p.must("", "backup", "copy.db")
	for _, event := range []string{"session ended", "all sessions ended", "token made", "token removed", "user added", "invite made", "user disabled",
		"user enabled", "user removed", "user added", "backup made"} {
		want[event]++
	}
	for _, text := range []string{"a\nb", "\x1b[2J", "\u2028\u0085", `","msg":"forged`, "\u202egnp", strings.Repeat("x", 3000)} {
		expect(401, "POST", "/auth/session", credentials(text, text))
		want["login failed"]++
		expect(404, "GET", "/nothing/"+(&url.URL{Path: text}).EscapedPath(), "", "User-Agent: "+strings.Map(func(c rune) rune { return max(c, ' ') }, text))
	}
	log := s.stop()

	for _, secret := range secrets {
		if len(secret) < 15 {
			t.Fatalf("%q is no secret", secret)
		}
		for _, spelled := range []string{secret, url.QueryEscape(secret), url.PathEscape(secret), strconv.Quote(secret)} {
			if i := strings.Index(log, spelled); i >= 0 {
				t.Errorf("%q is in the log: %.300s", secret, log[max(0, i-150):])
			}
		}
	}
	got, requests := map[string]int{}, int32(0)
	for lines := bufio.NewScanner(strings.NewReader(log)); lines.Scan(); {
		var line struct {
			Time                     time.Time
			Msg, Method, Path, ID    string
			Status                   int
			Duration                 int64
			User, Addr, Level, Error string
		}
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil || len(lines.Bytes()) > 1000 || line.Time.IsZero() {
			t.Errorf("%v: %.1000s", err, lines.Text())
		}
		switch msg := line.Msg; {
		case msg == "request":
			if requests++; line.Method == "" || line.Path == "" || line.Status == 0 || line.Duration == 0 || line.Addr != "127.0.0.1" || line.ID == "" {
				t.Errorf("not all of a request: %s", lines.Text())
			}
			if line.Path == "/ringsofpower" && line.Status == 200 && line.User != "frodo" {
				t.Errorf("not whose request it was: %s", lines.Text())
			}
		case strings.HasPrefix(msg, "listening on "), strings.HasPrefix(msg, "there are no users yet"), strings.HasPrefix(msg, "http://localhost:"), strings.HasPrefix(msg, "open http://localhost:"):
		default:
			got[msg]++
		}
		if user := map[string]string{"login ok": "frodo sam", "logout": "frodo", "invite used": "sam", "user removed": "sam"}[line.Msg]; user != "" && !slices.Contains(strings.Fields(user), line.User) {
			t.Errorf("not about whom: %s", lines.Text())
		}
	}
	if !maps.Equal(got, want) {
		t.Errorf("events: %v\nwant    %v", got, want)
	}
	if requests != s.sent.Load() {
		t.Errorf("%d requests in the log, %d sent", requests, s.sent.Load())
	}
}
