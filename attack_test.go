// attack_test.go is the program as a stranger meets it: served whole, and
// spoken to over the wire, where need be byte by byte. Only the cost of bcrypt
// is lower than it could be set. What takes real load is in load_test.go.
package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf16"
	"unicode/utf8"

	"golang.org/x/crypto/bcrypt"
)

// program is one that runs, with the users frodo and sam.
type program struct {
	*testing.T
	config
	addr string // host:port
	log  *lockedBuffer
	stop func() error
	sent int // requests
}

func startProgram(t *testing.T, args ...string) *program {
	t.Helper()
	for _, name := range []string{"DATABASE_URL", "RINGWARD_DB", "RINGWARD_ADDR"} {
		t.Setenv(name, "")
		os.Unsetenv(name)
	}
	c, _, err := parseConfig(append([]string{"-addr", "127.0.0.1:0", "-db", filepath.Join(t.TempDir(), "r.db")}, args...))
	if err != nil {
		t.Fatal(err)
	}
	c.bcryptCost = bcrypt.MinCost
	p := &program{T: t, config: c, log: &lockedBuffer{}}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- serve(ctx, c, []string{testKey}, p.log) }()
	p.stop = func() error { cancel(); return <-ended }
	t.Cleanup(func() { cancel() })
	listening := regexp.MustCompile(`listening on https?://([0-9.:]+)`)
	eventually(t, func() bool {
		if m := listening.FindStringSubmatch(p.log.String()); m != nil {
			p.addr = m[1]
		}
		return p.addr != "" || len(ended) > 0
	})
	if p.addr == "" {
		t.Fatalf("%v\n%s", <-ended, p.log)
	}
	for _, name := range []string{"frodo", "sam"} {
		p.command(testPassword, "-password-stdin", "user", "add", name)
	}
	return p
}

// command runs one of the program's, and answers what it prints.
func (p *program) command(stdin string, args ...string) string {
	p.Helper()
	var stdout, stderr strings.Builder
	if args[0] == "-password-stdin" { // flags of a command follow its words
		args = append(args[1:3:3], append([]string{args[0]}, args[3:]...)...)
	}
	if err := run(p.Context(), append([]string{"-db", p.db}, args...), strings.NewReader(stdin), &stdout, &stderr); err != nil {
		p.Fatalf("%v: %v %s", args, err, &stderr)
	}
	return stdout.String()
}

// dial answers a connection that is closed with the test and answers in time.
func (p *program) dial() net.Conn {
	p.Helper()
	conn, err := net.Dial("tcp", p.addr)
	if err != nil {
		p.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	p.Cleanup(func() { conn.Close() })
	return conn
}

// raw sends bytes and answers what comes back first.
func (p *program) raw(text string) *http.Response {
	p.Helper()
	p.sent++
	conn := p.dial()
	go io.WriteString(conn, text) // the answer may come before all is sent
	method, _, _ := strings.Cut(text, " ")
	answer, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if err != nil {
		p.Fatalf("%.100q: %v", text, err)
	}
	return answer
}

// do sends a request with the headers as they are given ("Name: value"); a
// body makes it JSON unless they say otherwise.
func (p *program) do(method, path, body string, headers ...string) *http.Response {
	p.Helper()
	lines := []string{method + " " + path + " HTTP/1.1"}
	if !slices.ContainsFunc(headers, func(h string) bool { return strings.HasPrefix(h, "Host:") }) {
		lines = append(lines, "Host: "+p.addr)
	}
	if body != "" && !slices.ContainsFunc(headers, func(h string) bool { return strings.HasPrefix(h, "Content-Type:") }) {
		lines = append(lines, "Content-Type: application/json")
	}
	if body != "" {
		lines = append(lines, "Content-Length: "+strconv.Itoa(len(body)))
	}
	return p.raw(strings.Join(append(lines, headers...), "\r\n") + "\r\n\r\n" + body)
}

func (p *program) status(method, path, body string, headers ...string) int {
	p.Helper()
	return p.do(method, path, body, headers...).StatusCode
}

// login answers the line of a header that carries a session of the user.
func (p *program) login(user string) string {
	p.Helper()
	answer := p.do("POST", "/auth/session", credentials(user, testPassword))
	if answer.StatusCode != 201 || len(answer.Header["Set-Cookie"]) != 1 {
		p.Fatalf("login of %s: %d %q", user, answer.StatusCode, answer.Header["Set-Cookie"])
	}
	pair, _, _ := strings.Cut(answer.Header["Set-Cookie"][0], ";")
	return "Cookie: " + pair
}

// token answers the line of a header that carries a token of the session's user.
func (p *program) token(cookie, name string) string {
	p.Helper()
	var made struct{ Data tokenView }
	answer := p.do("POST", "/auth/tokens", `{"name":"`+name+`"}`, cookie)
	if err := json.NewDecoder(answer.Body).Decode(&made); err != nil || answer.StatusCode != 201 {
		p.Fatalf("token: %d %v", answer.StatusCode, err)
	}
	return "Authorization: Bearer " + made.Data.Token
}

// invite answers the path of a new invite of the user.
func (p *program) invite(user string) string {
	p.Helper()
	_, token, _ := strings.Cut(strings.TrimSpace(p.command("", "user", "invite", user)), "#")
	return "/auth/invites/" + token
}

// state is what a refused request must not change, as the session's user sees it.
func (p *program) state(cookie string) string {
	p.Helper()
	var all strings.Builder
	for _, path := range []string{"/auth/sessions", "/auth/tokens", "/ringsofpower"} {
		body, err := io.ReadAll(p.do("GET", path, "", cookie).Body)
		if err != nil {
			p.Fatal(err)
		}
		all.Write(regexp.MustCompile(`"lastSeen":"[^"]*"`).ReplaceAll(body, nil))
	}
	return all.String()
}

// routed is every route: its methods, who may (anybody, a login, or only a
// session), and a body that is right. /INVITE stands for an invite of frodo's.
var routed = map[string]struct {
	methods string // as in Allow
	who     string
	body    string
}{
	"/auth/session":           {"GET, HEAD, POST, DELETE", "anybody", credentials("frodo", testPassword)},
	"/auth/sessions":          {"GET, HEAD, DELETE", "session", ""},
	"/auth/sessions/handle":   {"DELETE", "session", ""},
	"/auth/password":          {"PUT", "session", `{"current":"` + testPassword + `","new":"the road goes ever on"}`},
	"/INVITE":                 {"GET, HEAD, POST", "anybody", `{"password":"the road goes ever on"}`},
	"/auth/tokens":            {"GET, HEAD, POST", "session", `{"name":"a script","expires":"2999-01-01T00:00:00Z"}`},
	"/auth/tokens/handle":     {"DELETE", "session", ""},
	"/auth/verify":            {"GET, HEAD", "anybody", ""},
	"/auth/login":             {"GET, HEAD", "anybody", ""},
	"/auth/invite":            {"GET, HEAD", "anybody", ""},
	"/auth/account":           {"GET, HEAD", "login", ""},
	"/auth/style.css":         {"GET, HEAD", "anybody", ""},
	"/auth/script.js":         {"GET, HEAD", "anybody", ""},
	"/auth/icon.svg":          {"GET, HEAD", "anybody", ""},
	"/healthz":                {"GET, HEAD", "anybody", ""},
	"/":                       {"GET, HEAD", "login", ""},
	"/ringsofpower":           {"GET, HEAD, POST", "login", `{"name":"Sting","bearer":"frodo"}`},
	"/ringsofpower/1":         {"GET, HEAD, PUT, DELETE", "login", `{"name":"Narya","bearer":"gandalf"}`},
	"/ringsofpower/nonsuch":   {"GET, HEAD, PUT, DELETE", "login", ""},
	"/auth/nothing":           {"", "anybody", ""},
	"/auth/session/style.css": {"", "anybody", ""},
	"/auth/":                  {"", "anybody", ""},
	"/auth":                   {"", "anybody", ""},
	"/.git/config":            {"", "anybody", ""},
	"/debug/pprof/":           {"", "anybody", ""},
	"/debug/vars":             {"", "anybody", ""},
	"/metrics":                {"", "anybody", ""},
	"/web/login.html":         {"", "anybody", ""},
	"/auth/login.html":        {"", "anybody", ""},
	"/auth/style.css/":        {"", "anybody", ""},
	"/users":                  {"", "anybody", ""}, // the operator's API is elsewhere
	"/backup":                 {"", "anybody", ""},
	"/import":                 {"", "anybody", ""},
	"/favicon.ico":            {"", "anybody", ""},
}

func (p *program) path(pattern string) string {
	if pattern == "/INVITE" {
		return p.invite("frodo")
	}
	return pattern
}

func TestEveryRouteByEveryMethod(t *testing.T) {
	p := startProgram(t)
	cookie := p.login("sam")
	before := p.state(cookie)
	for pattern, route := range routed {
		path := p.path(pattern)
		for _, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "get"} {
			name := method + " " + pattern
			has := slices.Contains(strings.Split(route.methods, ", "), method)
			if has {
				// Nobody in particular, with nothing to say.
				if got := p.status(method, path, ""); got == 405 || got == 404 && method != "GET" {
					t.Errorf("%s: %d", name, got)
				}
				continue
			}
			want := 405
			if route.methods == "" {
				want = 404
			}
			answer := p.do(method, path, `{}`, cookie, "Origin: http://"+p.addr)
			if allow := strings.Join(answer.Header["Allow"], " and "); allow != route.methods {
				t.Errorf("%s: Allow %q, want %q", name, allow, route.methods)
			}
			if method != "HEAD" {
				envelope(t, answer, want)
			} else if answer.StatusCode != want {
				t.Errorf("%s: %d, want %d", name, answer.StatusCode, want)
			}
			ownHeadersOnce(t, answer)
		}
	}
	if after := p.state(cookie); after != before {
		t.Errorf("it changed something:\n%s\n%s", before, after)
	}
}

// Who may do what, for every route and method there is.
func TestEveryRouteForEverybody(t *testing.T) {
	p := startProgram(t)
	anonymous, session := "X-Nobody: 1", p.login("frodo")
	token, sams := p.token(session, "script"), p.login("sam")
	p.command("", "user", "add", "gone")
	p.do("POST", p.invite("gone"), `{"password":"`+testPassword+`"}`)
	disabled := p.login("gone")
	p.command("", "user", "disable", "gone")
	for pattern, route := range routed {
		for method := range strings.SplitSeq(route.methods, ", ") {
			if route.methods == "" || method == "HEAD" {
				continue
			}
			for who, header := range map[string]string{"anonymous": anonymous, "disabled": disabled, "token": token} {
				got := p.status(method, p.path(pattern), "", header)
				name := fmt.Sprintf("%s %s as %s: %d", method, pattern, who, got)
				switch {
				case route.who == "anybody":
				case who != "token" && got != 401:
					t.Errorf("%s, want 401", name)
				case who == "token" && route.who == "session" && got != 403:
					t.Errorf("%s, want 403", name)
				case who == "token" && route.who == "login" && (got == 401 || got == 403):
					t.Errorf("%s", name)
				}
			}
		}
	}
	// What is frodo's, sam does not reach.
	var mine struct{ Data []sessionView }
	json.NewDecoder(p.do("GET", "/auth/sessions", "", session).Body).Decode(&mine)
	var tokens struct{ Data []tokenView }
	json.NewDecoder(p.do("GET", "/auth/tokens", "", session).Body).Decode(&tokens)
	if len(mine.Data) != 1 || len(tokens.Data) != 1 {
		t.Fatal(mine, tokens)
	}
	for _, path := range []string{"/auth/sessions/" + mine.Data[0].ID, "/auth/tokens/" + tokens.Data[0].ID} {
		if got := p.status("DELETE", path, "", sams); got != 404 {
			t.Errorf("DELETE %s by another user: %d, want 404", path, got)
		}
	}
	if p.status("GET", "/auth/session", "", session) != 200 || p.status("GET", "/ringsofpower", "", token) != 200 {
		t.Error("it was ended")
	}
}

func TestOnlyOurOwnNames(t *testing.T) {
	p := startProgram(t)
	for _, c := range []struct {
		request string
		status  int
	}{
		{"GET /auth/session HTTP/1.1\r\nHost: localhost\r\n\r\n", 401},
		{"GET /auth/session HTTP/1.1\r\nHost: localhost:1\r\n\r\n", 401},
		{"GET /auth/session HTTP/1.1\r\nHost: [::1]:99\r\n\r\n", 401},
		{"GET /auth/session HTTP/1.1\r\nHost: 10.9.8.7\r\n\r\n", 401},
		{"GET http://localhost/auth/session HTTP/1.1\r\nHost: evil.test\r\n\r\n", 401},
		{"GET http://evil.test/auth/session HTTP/1.1\r\nHost: localhost\r\n\r\n", 421},
		{"GET /auth/session HTTP/1.1\r\nHost: evil.test\r\n\r\n", 421},
		{"GET /auth/session HTTP/1.1\r\nHost: 127.0.0.1.evil.test\r\n\r\n", 421},
		{"GET /auth/session HTTP/1.1\r\nHost: \r\n\r\n", 421},
		{"GET /auth/session HTTP/1.0\r\n\r\n", 421},
		{"POST /auth/session HTTP/1.1\r\nHost: evil.test\r\nContent-Length: 0\r\n\r\n", 421},
		{"GET /nothing HTTP/1.1\r\nHost: evil.test\r\n\r\n", 421},
		{"CONNECT evil.test:443 HTTP/1.1\r\nHost: evil.test:443\r\n\r\n", 421},
		{"GET /healthz HTTP/1.1\r\nHost: evil.test\r\nX-Forwarded-Host: localhost\r\n\r\n", 421},
		{"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost:80\r\n\r\n", 404},
		{"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", 404},
	} {
		answer := p.raw(c.request)
		_, detail := envelope(t, answer, c.status)
		if c.status == 421 && !strings.Contains(detail, "-public-url") {
			t.Errorf("%.60q: detail %q", c.request, detail)
		}
		ownHeadersOnce(t, answer)
	}
	for _, request := range []string{ // net/http refuses these by itself
		"GET /auth/session HTTP/1.1\r\n\r\n",
		"GET /auth/session HTTP/1.1\r\nHost: localhost\r\nHost: evil.test\r\n\r\n",
		"GET /auth/session HTTP/1.1\r\nHost: evil.test/localhost\r\n\r\n",
	} {
		if answer := p.raw(request); answer.StatusCode != 400 && answer.StatusCode != 421 {
			t.Errorf("%q: %d", request, answer.StatusCode)
		}
	}
}

func TestHeadersOnEveryKindOfAnswer(t *testing.T) {
	for _, args := range [][]string{nil, {"-public-url", "https://auth.example.com"}} {
		p := startProgram(t, args...)
		cookie := p.login("frodo")
		seen := map[int]bool{}
		for _, c := range []struct {
			status             int
			method, path, body string
			headers            []string
		}{
			{200, "GET", "/healthz", "", nil},
			{200, "HEAD", "/healthz", "", nil},
			{200, "GET", "/auth/login", "", nil},
			{200, "GET", "/auth/script.js", "", nil},
			{200, "GET", "/ringsofpower", "", []string{cookie}},
			{201, "POST", "/ringsofpower", `{"name":"a","bearer":"b"}`, []string{cookie}},
			{204, "DELETE", "/ringsofpower/20", "", []string{cookie}},
			{303, "GET", "/?x=%22%3Cscript%3E", "", []string{"Accept: text/html"}},
			{307, "GET", "/auth//login", "", nil},
			{400, "POST", "/auth/session", `{`, nil},
			{401, "GET", "/ringsofpower", "", nil},
			{401, "POST", "/auth/session", credentials("nobody", "wrong"), nil},
			{403, "POST", "/auth/session", `{}`, []string{"Sec-Fetch-Site: cross-site"}},
			{404, "GET", "/nothing", "", nil},
			{404, "GET", "/auth/invites/nothing", "", nil},
			{405, "PATCH", "/auth/session", "", nil},
			{413, "POST", "/auth/session", strings.Repeat(" ", maxBody+1), nil},
			{415, "POST", "/auth/session", `{}`, []string{"Content-Type: text/plain"}},
			{421, "GET", "/", "", []string{"Host: evil.test"}},
			{422, "POST", "/ringsofpower", `{"name":"","bearer":"b"}`, []string{cookie}},
		} {
			answer := p.do(c.method, c.path, c.body, append(c.headers, "Origin: http://"+p.addr)...)
			if answer.StatusCode != c.status {
				t.Errorf("%s %s: %d, want %d", c.method, c.path, answer.StatusCode, c.status)
			}
			ownHeadersOnce(t, answer)
			if c.status >= 400 {
				envelope(t, answer, c.status)
			}
			if got := answer.Header.Get("Strict-Transport-Security") != ""; got != (args != nil) {
				t.Errorf("%s %s with %v: HSTS %v", c.method, c.path, args, got)
			}
			seen[c.status] = true
		}
		for range pairLimit {
			p.do("POST", "/auth/session", credentials("sam", "wrong"))
		}
		answer := p.do("POST", "/auth/session", credentials("sam", "wrong"))
		envelope(t, answer, 429)
		ownHeadersOnce(t, answer)
		if answer.Header.Get("Retry-After") == "" {
			t.Error("429 without Retry-After")
		}
	}
}

// bodies are the requests that carry a body, by name; the cookie is sam's.
func (p *program) bodies(t *testing.T, cookie string, do func(name string, send func(body string, headers ...string) *http.Response, right map[string]string)) {
	for pattern, route := range routed {
		if route.body == "" {
			continue
		}
		var right map[string]string
		if err := json.Unmarshal([]byte(route.body), &right); err != nil {
			t.Fatal(err)
		}
		method := "POST"
		if !strings.Contains(route.methods, method) {
			method = "PUT"
		}
		path := p.path(pattern)
		do(method+" "+pattern, func(body string, headers ...string) *http.Response {
			return p.do(method, path, body, append(headers, cookie)...)
		}, right)
	}
}

func object(fields map[string]string) string {
	b, _ := json.Marshal(fields)
	return string(b)
}

// One object, known fields spelled exactly, each once and of its type, nothing
// after it, in UTF-8; or else nothing at all.
func TestBodiesAreReadStrictly(t *testing.T) {
	p := startProgram(t)
	cookie := p.login("sam")
	before := p.state(cookie)
	p.bodies(t, cookie, func(name string, send func(string, ...string) *http.Response, right map[string]string) {
		whole := object(right)
		inner := strings.Trim(whole, "{}")
		wrong := map[string]string{
			"nothing after Content-Type": " ",
			"null":                       "null", "array": "[]", "array of it": "[" + whole + "]", "text": `"x"`, "number": "1", "true": "true",
			"unknown field": `{` + inner + `,"role":"admin"}`, "empty name": `{` + inner + `,"":""}`,
			"trailing brace": whole + "}", "trailing text": whole + " x", "two objects": whole + whole, "trailing comma": `{` + inner + `,}`,
			"trailing NUL": whole + "\x00", "byte order mark": "\ufeff" + whole, "not closed": strings.TrimSuffix(whole, "}"),
			"comment": "/**/" + whole, "deep array": strings.Repeat("[", 20_000), "deep object": strings.Repeat(`{"a":`, 10_000),
			"UTF-16": "\xff\xfe{\x00}\x00", "form": "username=frodo&password=x",
		}
		for field, value := range right {
			quoted, _ := json.Marshal(value)
			without := maps.Clone(right)
			delete(without, field)
			with := func(name, value string) string {
				return strings.Replace(strings.TrimSuffix(object(without), "}")+","+`"`+name+`":`+value+"}", "{,", "{", 1)
			}
			for kind, odd := range map[string]string{
				"null": "null", "number": "1", "big number": "1e400", "true": "true", "array": "[" + string(quoted) + "]", "object": "{}",
				"lone surrogate": `"\ud800"`, "other lone surrogate": `"a\udc00b"`, "swapped surrogates": `"\udc00\ud800"`,
				"invalid UTF-8": "\"\xff\"", "overlong UTF-8": "\"\xc0\x80\"", "surrogate in UTF-8": "\"\xed\xa0\x80\"",
				"raw newline": "\"a\nb\"", "bad escape": `"\x41"`, "single quotes": `'x'`, "deep": strings.Repeat("[", 9000) + strings.Repeat("]", 9000),
				"NaN": "NaN", "twice": string(quoted) + `,"` + field + `":` + string(quoted), "twice, escaped": string(quoted) + fmt.Sprintf(`,"\u%04x%s":%s`, field[0], field[1:], quoted),
			} {
				wrong[field+": "+kind] = with(field, odd)
			}
			for _, spelled := range []string{strings.ToUpper(field), strings.ToUpper(field[:1]) + field[1:], field + " ", " " + field, field + `\u0000`,
				strings.NewReplacer("s", "ſ", "k", "\u212a").Replace(field)} {
				if spelled != field {
					wrong[fmt.Sprintf("%s spelled %q", field, spelled)] = with(spelled, string(quoted))
				}
			}
			if required := !strings.Contains(name, "ringsofpower") && field != "expires"; required {
				wrong[field+" missing"] = object(without)
			}
		}
		for kind, body := range wrong {
			answer := send(body)
			if answer.StatusCode != 400 {
				t.Errorf("%s: %s: %d, want 400: %.100q", name, kind, answer.StatusCode, body)
			} else if title, detail := envelope(t, answer, 400); strings.Contains(title+detail, "json:") || strings.Contains(title+detail, "Go ") {
				t.Errorf("%s: %s: it speaks Go: %s %s", name, kind, title, detail)
			}
		}
	})
	if after := p.state(cookie); after != before {
		t.Errorf("it changed something:\n%s\n%s", before, after)
	}
	p.login("frodo") // whose password and invite were in all of it
}

func TestContentTypeOfBodies(t *testing.T) {
	p := startProgram(t)
	cookie := p.login("sam")
	before := p.state(cookie)
	p.bodies(t, cookie, func(name string, send func(string, ...string) *http.Response, right map[string]string) {
		for _, headers := range [][]string{
			{"Content-Type: text/plain"}, {"Content-Type: text/plain; x=application/json"}, {"Content-Type: application/x-www-form-urlencoded"},
			{"Content-Type: multipart/form-data; boundary=x"}, {"Content-Type: application/json5"}, {"Content-Type: application/json; charset=utf-16"},
			{"Content-Type: application/json, text/plain"}, {"Content-Type: "}, {"Content-Type: text/json"}, {"Content-Type: application/jsonp"},
			{"Content-Type: text/plain", "Content-Type: application/json"},
			{"Content-Type: application/json", "Content-Encoding: gzip"}, {"Content-Type: application/json", "Content-Encoding: deflate"},
		} {
			envelope(t, send(object(right), headers...), 415)
		}
	})
	if after := p.state(cookie); after != before {
		t.Errorf("it changed something:\n%s\n%s", before, after)
	}
	for _, kind := range []string{"application/json", "application/json; charset=utf-8", "Application/JSON;charset=UTF-8"} {
		if got := p.status("POST", "/auth/session", credentials("frodo", testPassword), "Content-Type: "+kind); got != 201 {
			t.Errorf("%s: %d, want 201", kind, got)
		}
	}
}

func TestSizeOfBodies(t *testing.T) {
	p := startProgram(t)
	body := credentials("frodo", testPassword)
	full := body + strings.Repeat(" ", maxBody-len(body))
	if got := p.status("POST", "/auth/session", full); got != 201 {
		t.Errorf("%d bytes: %d, want 201", len(full), got)
	}
	chunked := func(body string) string {
		return fmt.Sprintf("POST /auth/session HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", len(body), body)
	}
	if got := p.raw(chunked(full)).StatusCode; got != 201 {
		t.Errorf("%d bytes in a chunk: %d, want 201", len(full), got)
	}
	for name, request := range map[string]string{
		"a byte more":       "POST /auth/session HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 65537\r\n\r\n" + full + " ",
		"a byte more, sent": chunked(full + " "),
		"much more":         chunked(strings.Repeat(full, 3)),
		"a long one":        "POST /auth/session HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9000000000000000000\r\n\r\n" + full + full,
	} {
		answer := p.raw(request)
		t.Run(name, func(t *testing.T) { envelope(t, answer, 413) })
	}
	// An endless one is not read to its end, which never comes.
	conn := p.dial()
	fmt.Fprint(conn, "POST /auth/session HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
	sent, chunk := 0, fmt.Sprintf("10000\r\n%s\r\n", strings.Repeat(" ", 0x10000))
	for err := error(nil); err == nil && sent < 100<<20; sent += len(chunk) {
		_, err = io.WriteString(conn, chunk)
	}
	if sent >= 100<<20 {
		t.Errorf("it takes %d bytes", sent)
	}
}

func TestSizeOfHeaders(t *testing.T) {
	p := startProgram(t)
	cookie := p.login("frodo")
	get := "GET /auth/session HTTP/1.1\r\nHost: localhost\r\n" + cookie + "\r\n"
	if got := p.raw(get + "X: " + strings.Repeat("x", 10_000) + "\r\n\r\n").StatusCode; got != 200 {
		t.Errorf("10,000 bytes: %d, want 200", got)
	}
	for name, request := range map[string]string{
		"one of 20,000 bytes": get + "X: " + strings.Repeat("x", 20_000) + "\r\n\r\n",
		"many":                get + strings.Repeat("X: x\r\n", 5000) + "\r\n",
		"3,500 cookies":       get + "Cookie: " + strings.Repeat("abc=def; ", 3500) + "\r\n\r\n",
		"path":                "GET /" + strings.Repeat("x", 20_000) + " HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"never ending":        get + "X: " + strings.Repeat("x", 200_000),
	} {
		if answer := p.raw(request); answer.StatusCode != 431 || !answer.Close {
			t.Errorf("%s: %d, want 431 and the end", name, answer.StatusCode)
		}
	}
	if got := p.status("GET", "/auth/session", "", cookie, "Cookie: "+strings.Repeat("a=b; ", 1500)); got != 200 {
		t.Errorf("1,500 other cookies: %d, want 200", got)
	}
}

// What another site makes a browser send changes nothing, and tells nothing.
func TestCrossSiteRequestsOverTheWire(t *testing.T) {
	p := startProgram(t)
	cookie := p.login("frodo")
	before := p.state(cookie)
	own := "Origin: http://" + p.addr
	foreign := [][]string{
		{"Sec-Fetch-Site: cross-site"}, {"Sec-Fetch-Site: same-site"}, {"Sec-Fetch-Site: nonsense"}, {"Sec-Fetch-Site: cross-site", own},
		{"Origin: http://evil.test"}, {"Origin: null"}, {"Origin: http://" + p.addr + ".evil.test"}, {"Origin: http://127.0.0.1"},
		{"Origin: " + p.addr}, {"Origin: http://evil.test", "Origin: http://" + p.addr},
	}
	for pattern, route := range routed {
		for method := range strings.SplitSeq(route.methods, ", ") {
			if route.methods == "" || method == "GET" || method == "HEAD" {
				continue
			}
			path := p.path(pattern)
			for _, headers := range foreign {
				answer := p.do(method, path, route.body, append(headers, cookie)...)
				if answer.StatusCode != 403 {
					t.Errorf("%s %s with %v: %d, want 403", method, pattern, headers, answer.StatusCode)
				} else {
					envelope(t, answer, 403)
				}
				ownHeadersOnce(t, answer)
				if got := answer.Header["Set-Cookie"]; got != nil {
					t.Errorf("%s %s with %v: %q", method, pattern, headers, got)
				}
			}
		}
	}
	for _, headers := range foreign {
		upgrade := append(slices.Clone(headers), cookie, "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
		if got := p.status("GET", "/ringsofpower", "", upgrade...); got != 403 {
			t.Errorf("upgrade with %v: %d, want 403", headers, got)
		}
		// A link from there is none of that.
		if got := p.status("GET", "/ringsofpower", "", append(headers, cookie)...); got != 200 {
			t.Errorf("GET with %v: %d, want 200", headers, got)
		}
		preflight := p.do("OPTIONS", "/auth/session", "", append(headers, "Access-Control-Request-Method: POST", "Access-Control-Request-Headers: content-type")...)
		if preflight.StatusCode != 405 {
			t.Errorf("preflight with %v: %d, want 405", headers, preflight.StatusCode)
		}
		ownHeadersOnce(t, preflight)
	}
	if after := p.state(cookie); after != before {
		t.Errorf("it changed something:\n%s\n%s", before, after)
	}
	for _, headers := range [][]string{{own}, {"Sec-Fetch-Site: same-origin"}, {"Sec-Fetch-Site: none"}, {"X-Script: 1"}} {
		if got := p.status("POST", "/ringsofpower", routed["/ringsofpower"].body, append(headers, cookie)...); got != 201 {
			t.Errorf("our own with %v: %d, want 201", headers, got)
		}
	}
}

func TestOwnPublicNameIsNoOtherSite(t *testing.T) {
	p := startProgram(t, "-public-url", "https://auth.example.com", "-cookie-domain", "example.com")
	body := credentials("frodo", testPassword)
	for origin, want := range map[string]int{
		"https://auth.example.com": 201, "http://auth.example.com": 403, "https://tool.example.com": 403, "https://auth.example.com.evil.test": 403,
	} {
		// A proxy that keeps the name, and one that does not.
		for _, host := range []string{"auth.example.com", p.addr} {
			want := want
			if origin == "http://auth.example.com" && host == "auth.example.com" {
				want = 201 // Host does not tell http from https; Sec-Fetch-Site does
			}
			if got := p.status("POST", "/auth/session", body, "Host: "+host, "Origin: "+origin); got != want {
				t.Errorf("from %s to %s: %d, want %d", origin, host, got, want)
			}
		}
	}
	if got := p.status("POST", "/auth/session", body, "Host: auth.example.com", "Origin: http://auth.example.com", "Sec-Fetch-Site: cross-site"); got != 403 {
		t.Errorf("from http to https: %d, want 403", got)
	}
}

// The throttle believes a header about an address only from whom it was told to.
func TestThrottleAndForwardedFor(t *testing.T) {
	spoofs := []string{
		"X-Forwarded-For: 198.51.100.%d", "X-Real-Ip: 198.51.100.%d", "Forwarded: for=198.51.100.%d", "X_Forwarded_For: 198.51.100.%d",
		"X-Forwarded-For: 198.51.100.%[1]d, 198.51.100.%[1]d", "True-Client-Ip: 198.51.100.%d", "CF-Connecting-IP: 198.51.100.%d",
	}
	p := startProgram(t)
	for i := range pairLimit {
		if got := p.status("POST", "/auth/session", credentials("frodo", "wrong"), fmt.Sprintf(spoofs[i], i)); got != 401 {
			t.Fatalf("try %d: %d", i, got)
		}
	}
	for i, spoof := range spoofs {
		if got := p.status("POST", "/auth/session", credentials("frodo", testPassword), fmt.Sprintf(spoof, 100+i)); got != 429 {
			t.Errorf("%s: %d, want 429", spoof, got)
		}
	}
	p = startProgram(t, "-trusted-proxies", "127.0.0.1")
	for i := range pairLimit { // what is left of the last address is the client's own tale
		if got := p.status("POST", "/auth/session", credentials("frodo", "wrong"), fmt.Sprintf("X-Forwarded-For: 203.0.113.%d, 198.51.100.7", i)); got != 401 {
			t.Fatalf("try %d: %d", i, got)
		}
	}
	if got := p.status("POST", "/auth/session", credentials("frodo", testPassword), "X-Forwarded-For: 203.0.113.200", "X-Forwarded-For: 198.51.100.7"); got != 429 {
		t.Errorf("the same client: %d, want 429", got)
	}
	if got := p.status("POST", "/auth/session", credentials("frodo", testPassword), "X-Forwarded-For: 198.51.100.7, 198.51.100.8"); got != 201 {
		t.Errorf("another client: %d, want 201", got)
	}
}

func TestUnlockWhileItRuns(t *testing.T) {
	p := startProgram(t)
	for range pairLimit {
		p.do("POST", "/auth/session", credentials("frodo", "wrong"))
	}
	if got := p.status("POST", "/auth/session", credentials("frodo", testPassword)); got != 429 {
		t.Fatalf("%d, want 429", got)
	}
	p.command("", "user", "unlock", "Frodo")
	p.login("frodo")
}

// However the path of something precious is spelled, it does not open.
func TestPathsOfWhatIsProtected(t *testing.T) {
	p := startProgram(t)
	for _, path := range []string{
		"/ringsofpower", "//ringsofpower", "/ringsofpower/", "/ringsofpower/1", "/ringsofpower//1", "/./ringsofpower", "/auth/../ringsofpower",
		"/auth/login/../../ringsofpower", "/%72ingsofpower", "/ringsofpower%2f1", "/ringsofpower%2F1", "/ringsofpower;x", "/ringsofpower?x=/auth/login",
		"/ringsofpower%00", "/RINGSOFPOWER", "/auth/%2e%2e/ringsofpower", "/auth/login%2f..%2f..%2fringsofpower", "/ringsofpower/%31", "/%2572ingsofpower",
		"/healthz/../ringsofpower", "/\\ringsofpower", "/ringsofpower.css", "http://localhost/ringsofpower", "/", "/auth/account", "/auth/account/", "/%2e/",
	} {
		for _, headers := range [][]string{nil, {"Accept: text/html"}, {"Accept: text/html", "User-Agent: kube-probe/1.0"}, {"X-Original-URL: /healthz"},
			{"X-Rewrite-URL: /healthz"}, {"X-Forwarded-Uri: /healthz"}, {"X-HTTP-Method-Override: OPTIONS"}, {"Remote-User: frodo"}, {"Remote_User: frodo"},
			{"Connection: close, Cookie"}, {"X-Forwarded-User: frodo"}, {"Authorization: Basic ZnJvZG86eA=="}} {
			for _, method := range []string{"GET", "HEAD", "POST", "DELETE"} {
				answer := p.do(method, path, "", headers...)
				location := answer.Header.Get("Location")
				switch answer.StatusCode {
				case 401, 404, 405, 415:
				case 303, 307:
					if !strings.HasPrefix(location, "/") || strings.HasPrefix(location, "//") || strings.HasPrefix(location, "/\\") {
						t.Errorf("%s %s: to %q", method, path, location)
					}
				default:
					t.Errorf("%s %s with %v: %d", method, path, headers, answer.StatusCode)
				}
			}
		}
	}
}

// Nothing but the cookie and the Authorization header says who somebody is.
func TestCredentialsElsewhereAreNone(t *testing.T) {
	p := startProgram(t)
	cookie := p.login("frodo")
	token := strings.TrimPrefix(p.token(cookie, "script"), "Authorization: ")
	pair := strings.TrimPrefix(cookie, "Cookie: ")
	name, value, _ := strings.Cut(pair, "=")
	secret := strings.TrimPrefix(token, "Bearer ")
	for _, c := range []struct {
		path    string
		headers []string
	}{
		{"/ringsofpower?" + pair, nil}, {"/ringsofpower?sid=" + value + "&access_token=" + secret + "&token=" + secret, nil}, {"/ringsofpower;" + pair, nil},
		{"/ringsofpower", []string{"Authorization: Bearer " + value}}, {"/ringsofpower", []string{"Authorization: Basic " + secret}},
		{"/ringsofpower", []string{"Authorization: " + secret}}, {"/ringsofpower", []string{"X-Session: " + value, "X-Auth-Token: " + secret, "Proxy-Authorization: " + token}},
		{"/ringsofpower", []string{"Cookie: token=" + secret + "; Authorization=" + secret}}, {"/ringsofpower", []string{"Cookie: " + strings.ToUpper(name) + "=" + value}},
		{"/ringsofpower", []string{"Cookie: __Host-" + pair}}, {"/ringsofpower", []string{"Cookie: " + pair + "x"}},
		{"/ringsofpower", []string{"Cookie: " + name + "=\"" + value + "\""}}, {"/ringsofpower", []string{"Cookie2: " + pair}},
		{"/ringsofpower", []string{cookie, "Cookie: " + name + "=other"}}, {"/ringsofpower", []string{"Cookie: " + name + "=other", cookie}},
		{"/ringsofpower", []string{"Cookie: " + pair + "; " + pair}},
		{"/ringsofpower", []string{cookie, "Authorization: Bearer rw_0123456789abcdefghijklmnopqrstuvwxyzABCDEFG"}}, // the token counts
		{"/ringsofpower", []string{"Authorization: Bearer " + secret + "x"}}, {"/ringsofpower", []string{"Authorization: Bearer  x " + secret}},
	} {
		if got := p.status("GET", c.path, "", c.headers...); got != 401 && got != 404 {
			t.Errorf("%s with %q: %d", c.path, c.headers, got)
		}
	}
	if p.status("GET", "/ringsofpower", "", cookie) != 200 || p.status("GET", "/ringsofpower", "", "Authorization: "+token) != 200 {
		t.Error("cookie or token alone do not open")
	}
}

// Nobody who is not logged in makes the store write a byte.
func TestStrangersLeaveNothing(t *testing.T) {
	p := startProgram(t)
	cookie := p.login("frodo")
	invite := p.invite("sam")
	before, err := os.ReadFile(p.db)
	if err != nil {
		t.Fatal(err)
	}
	nobody := "Cookie: ringward=" + strings.Repeat("A", 43) + "." + strings.Repeat("A", 43)
	for pattern, route := range routed {
		if pattern == "/INVITE" {
			pattern = invite + "x"
		}
		for _, method := range []string{"GET", "POST", "PUT", "DELETE"} {
			body := strings.ReplaceAll(route.body, testPassword, "wrong")
			p.do(method, pattern, body, nobody)
			p.do(method, pattern, body, "Authorization: Bearer rw_"+strings.Repeat("A", 43))
		}
	}
	p.do("GET", invite, "")
	p.do("POST", "/auth/session", credentials("nobody", "wrong"), cookie)
	p.do("POST", invite, `{"password":"short"}`)
	p.do("POST", invite, `{"password":"`+testPassword+`","username":"other"}`)
	after, err := os.ReadFile(p.db)
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("the file has changed (%v)", err)
	}
}

// HTTP/2 has a limit of its own, of the same size.
func TestSizeOfHeadersOverHTTP2(t *testing.T) {
	certificate := httptest.NewUnstartedServer(nil)
	certificate.EnableHTTP2 = true // its client speaks it too
	certificate.StartTLS()
	defer certificate.Close()
	key, err := x509.MarshalPKCS8PrivateKey(certificate.TLS.Certificates[0].PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	for name, block := range map[string]*pem.Block{
		"cert": {Type: "CERTIFICATE", Bytes: certificate.Certificate().Raw},
		"key":  {Type: "PRIVATE KEY", Bytes: key},
	} {
		if err := os.WriteFile(filepath.Join(folder, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p := startProgram(t, "-tls-cert", filepath.Join(folder, "cert"), "-tls-key", filepath.Join(folder, "key"))
	for size, fits := range map[int]bool{10_000: true, 15_000: true, 17_000: false} {
		r, err := http.NewRequest("GET", "https://"+p.addr+"/healthz", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("X", strings.Repeat("x", size))
		answer, err := certificate.Client().Do(r)
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

func TestRefusalsOfNetHTTP(t *testing.T) {
	p := startProgram(t)
	for request, status := range map[string]int{
		"GET /%zz HTTP/1.1\r\nHost: localhost\r\n\r\n":                           400,
		"GET healthz HTTP/1.1\r\nHost: localhost\r\n\r\n":                        400,
		"GET /healthz HTTP/1.1\r\n\r\n":                                          400,
		"GET /healthz HTTP/1.1\r\nHost: a b\r\n\r\n":                             400,
		"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n":                    400,
		"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: \x01\r\n\r\n":            400,
		"POST /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n": 400,
		"nonsense\r\n\r\n": 400,
		"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: " + strings.Repeat("x", 20_000) + "\r\n\r\n": 431,
		"POST /healthz HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n":               501,
		"GET /healthz HTTP/2.0\r\nHost: localhost\r\n\r\n":                                           505,
	} {
		answer := p.raw(request)
		envelope(t, answer, status)
		if !answer.Close || answer.Header.Get("X-Content-Type-Options") != "nosniff" || answer.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("%.100q: %+v", request, answer.Header)
		}
	}
}

func TestUserInTheLog(t *testing.T) {
	p := startProgram(t)
	cookie := p.login("frodo")
	token := p.token(cookie, "script")
	for _, c := range []struct {
		method, path, header string
		want                 string
	}{
		{"GET", "/ringsofpower", cookie, "user=frodo"},
		{"GET", "/ringsofpower", token, "user=frodo"},
		{"GET", "/auth/verify", cookie, "user=frodo"},
		{"DELETE", "/auth/session", token, "user=frodo"},
		{"DELETE", "/auth/session", cookie, "user=frodo"},
		{"DELETE", "/auth/session", cookie, `user=""`},
	} {
		from := len(p.log.String())
		status := p.status(c.method, c.path, "", c.header)
		line := fmt.Sprintf("msg=request method=%s path=%s status=%d ", c.method, c.path, status)
		var got string
		eventually(t, func() bool {
			_, after, ok := strings.Cut(p.log.String()[from:], line)
			got, _, _ = strings.Cut(after, "\n")
			return ok
		})
		if !strings.Contains(got, " "+c.want+" ") {
			t.Errorf("%s %s: %q, want %s", c.method, c.path, got, c.want)
		}
	}
}

// The log of a run that did everything: each event once, each request once,
// each on one line, and no secret anywhere.
func TestLogOfEverything(t *testing.T) {
	for _, format := range []string{"text", "json"} {
		t.Run(format, func(t *testing.T) { logOfEverything(t, format) })
	}
}

func logOfEverything(t *testing.T, format string) {
	p := startProgram(t, "-log", format)
	const nextPassword, wrongPassword, otherPassword, typedAsName = "the road goes ever on", "mellon mellon mellon", "not all who wander are lost", "hunter2hunter2hunter2"
	secrets := []string{testKey, testPassword, nextPassword, wrongPassword, otherPassword, typedAsName}
	cookie := func(line string) string { // keeps what is secret in it
		_, value, _ := strings.Cut(line, "=")
		id, signature, _ := strings.Cut(value, ".")
		secrets = append(secrets, id, signature)
		return line
	}
	cookieIn := func(answer *http.Response, status int) string {
		t.Helper()
		if answer.StatusCode != status || len(answer.Header["Set-Cookie"]) != 1 {
			t.Fatalf("%d %q", answer.StatusCode, answer.Header["Set-Cookie"])
		}
		pair, _, _ := strings.Cut(answer.Header["Set-Cookie"][0], ";")
		return cookie("Cookie: " + pair)
	}
	invite := func(user string) string {
		path := p.invite(user)
		secrets = append(secrets, path[strings.LastIndex(path, "/")+1:])
		return path
	}
	want := map[string]int{"start": 1, "stop": 1, "user added": 2, "password set": 2} // by startProgram
	expect := func(status int, answer *http.Response, events ...string) {
		t.Helper()
		if answer.StatusCode != status {
			t.Fatalf("%d, want %d", answer.StatusCode, status)
		}
		for _, event := range events {
			want[event]++
		}
	}

	first := cookie(p.login("frodo"))
	want["login ok"]++
	expect(200, p.do("GET", "/auth/session?password="+otherPassword[:3]+"&"+strings.TrimPrefix(first, "Cookie: "), "", first, "Referer: http://"+p.addr+"/?"+first, "User-Agent: "+first))
	expect(401, p.do("POST", "/auth/session", credentials("frodo", wrongPassword)), "login failed")
	expect(401, p.do("POST", "/auth/session", credentials(typedAsName, "frodo")), "login failed")
	expect(401, p.do("POST", "/auth/session", credentials("sam "+otherPassword, "x")), "login failed")
	expect(400, p.do("POST", "/auth/session", `{"username":"frodo","password":"`+otherPassword+`"`))
	expect(400, p.do("POST", "/auth/session", `{"username":"frodo","password":"x","`+otherPassword+`":1}`))
	expect(415, p.do("POST", "/auth/session", "password="+otherPassword, "Content-Type: application/x-www-form-urlencoded"))
	expect(403, p.do("POST", "/auth/session", credentials("frodo", testPassword), "Origin: http://evil.test"), "cross-site request refused")
	expect(403, p.do("PUT", "/auth/password", `{"current":"`+wrongPassword+`","new":"`+nextPassword+`"}`, first), "login failed")
	expect(422, p.do("PUT", "/auth/password", `{"current":"`+testPassword+`","new":"short"}`, first))
	second := cookieIn(p.do("PUT", "/auth/password", `{"current":"`+testPassword+`","new":"`+nextPassword+`"}`, first), 204)
	want["password set"]++
	third := cookieIn(p.do("POST", "/auth/session", credentials("frodo", nextPassword)), 201)
	want["login ok"]++

	token := p.token(second, "script")
	secrets = append(secrets, strings.TrimPrefix(token, "Authorization: Bearer "))
	want["token made"]++
	expect(200, p.do("GET", "/ringsofpower", "", token))
	expect(403, p.do("GET", "/auth/tokens", "", token))
	expect(404, p.do("GET", "/"+strings.TrimPrefix(token, "Authorization: Bearer "), ""))
	handle := func(path string, i int) string {
		var list struct{ Data []struct{ ID string } }
		if err := json.NewDecoder(p.do("GET", path, "", second).Body).Decode(&list); err != nil || len(list.Data) <= i {
			t.Fatal(err, list)
		}
		return path + "/" + list.Data[i].ID
	}
	expect(204, p.do("DELETE", handle("/auth/tokens", 0), "", second), "token removed")
	expect(204, p.do("DELETE", handle("/auth/sessions", 1), "", second), "session ended")
	expect(401, p.do("GET", "/auth/session", "", third))
	expect(201, p.do("POST", "/ringsofpower", `{"name":"`+otherPassword+`","bearer":"x"}`, second))
	expect(200, p.do("PUT", "/ringsofpower/1", `{"name":"`+otherPassword+`","bearer":"x"}`, second))
	expect(204, p.do("DELETE", "/ringsofpower/1", "", second))
	expect(204, p.do("DELETE", "/auth/session", "", second), "logout")
	expect(204, p.do("DELETE", "/auth/session", "", second)) // there was none
	fourth := cookieIn(p.do("POST", "/auth/session", credentials("frodo", nextPassword)), 201)
	want["login ok"]++
	expect(204, p.do("DELETE", "/auth/sessions", "", fourth), "all sessions ended")

	link := invite("sam")
	want["invite made"]++
	expect(200, p.do("GET", link, ""))
	expect(404, p.do("GET", strings.Replace(link, "invites", "invite", 1), ""))
	expect(404, p.do("GET", strings.Replace(link, "invites", "INVITES", 1), ""))
	expect(307, p.do("GET", strings.Replace(link, "/invites/", "//invites//", 1), ""))
	expect(200, p.do("GET", strings.Replace(link, "invites", "%69nvites", 1), ""))
	expect(404, p.do("GET", strings.Replace(link, "invites/", "invites%2f", 1), ""))
	expect(405, p.do("DELETE", link, ""))
	expect(421, p.do("GET", link, "", "Host: evil.test"))
	expect(422, p.do("POST", link, `{"password":"`+otherPassword[:5]+`"}`))
	cookieIn(p.do("POST", link, `{"password":"`+otherPassword+`"}`), 201)
	want["invite used"]++
	want["password set"]++
	expect(404, p.do("POST", link, `{"password":"`+otherPassword+`"}`))
	for range pairLimit {
		expect(401, p.do("POST", "/auth/session", credentials("sam", wrongPassword)), "login failed")
	}
	expect(429, p.do("POST", "/auth/session", credentials("sam", otherPassword)), "login throttled")
	p.command("", "user", "unlock", "sam")
	want["user unlocked"]++
	cookieIn(p.do("POST", "/auth/session", credentials("sam", otherPassword)), 201)
	want["login ok"]++

	var live struct{ Data []sessionView }
	json.Unmarshal([]byte(`{"data":`+p.command("", "-json", "session", "list", "sam")+`}`), &live)
	p.command("", "session", "end", live.Data[0].ID)
	p.command("", "session", "end-all", "sam")
	secrets = append(secrets, strings.TrimSpace(p.command("", "token", "add", "sam", "robot")))
	var tokens struct{ Data []tokenView }
	json.Unmarshal([]byte(`{"data":`+p.command("", "-json", "token", "list", "sam")+`}`), &tokens)
	p.command("", "token", "remove", tokens.Data[0].ID)
	_, link, _ = strings.Cut(p.command("", "user", "add", "merry"), "#")
	secrets = append(secrets, strings.TrimSpace(link))
	p.command("", "user", "disable", "sam")
	p.command("", "user", "enable", "sam")
	p.command("", "user", "remove", "sam")
	hash, _ := bcrypt.GenerateFromPassword([]byte(otherPassword), bcrypt.MinCost)
	secrets = append(secrets, string(hash))
	file := filepath.Join(t.TempDir(), "htpasswd")
	if err := os.WriteFile(file, []byte("pippin:"+string(hash)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.command("", "user", "import", file)
	p.command("", "backup", filepath.Join(t.TempDir(), "copy.db"))
	for _, event := range []string{"session ended", "all sessions ended", "token made", "token removed", "user added", "invite made", "user disabled",
		"user enabled", "user removed", "user added", "backup made"} {
		want[event]++
	}
	for _, text := range nastyText {
		expect(401, p.do("POST", "/auth/session", credentials(text, text)), "login failed")
		text = text[:min(len(text), 3000)]
		expect(404, p.do("GET", "/nothing/"+(&url.URL{Path: text}).EscapedPath(), "", "User-Agent: "+strings.Map(func(c rune) rune {
			if c < ' ' && c != '\t' || c == 0x7f {
				return 'x' // net/http refuses it
			}
			return c
		}, text)))
	}
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}

	log := p.log.String()
	for _, secret := range secrets {
		if secret == "" {
			t.Fatal("a secret that is not known")
		}
		for _, spelled := range []string{secret, url.QueryEscape(secret), url.PathEscape(secret), strconv.Quote(secret)} {
			if i := strings.Index(log, spelled); i >= 0 {
				t.Errorf("%q is in the log: %.300s", secret, log[max(0, i-150):])
			}
		}
	}
	got, requests := map[string]int{}, 0
	event := regexp.MustCompile(` msg=(?:"([^"]*)"|(\S*))`)
	for line := range strings.Lines(log) {
		oneLine(t, line, format == "json")
		msg := ""
		if format == "json" {
			msg = fmt.Sprint(logLines(t, line)[0]["msg"])
		} else if m := event.FindStringSubmatch(line); m != nil {
			msg = m[1] + m[2]
		}
		switch {
		case msg == "request":
			requests++
		case strings.HasPrefix(msg, "listening on "), strings.HasPrefix(msg, "there are no users yet"), strings.HasPrefix(msg, "http://127.0.0.1"):
		case msg == "" && !strings.HasPrefix(line, "time="): // the same as text
		default:
			got[msg]++
		}
		if user := map[string]string{"login ok": "frodo|sam", "logout": "frodo", "invite used": "sam", "user removed": "sam"}[msg]; user != "" &&
			!regexp.MustCompile(`"?user"?[=:]"?(`+user+`)"?[ ,}]`).MatchString(line) {
			t.Errorf("not about whom: %s", line)
		}
		if len(line) > 1000 {
			t.Errorf("%d bytes: %.200s", len(line), line)
		}
	}
	want["invite made"]++ // that of the empty store
	if !maps.Equal(got, want) {
		for name := range got {
			want[name] += 0
		}
		for name, n := range want {
			if got[name] != n {
				t.Errorf("event %q: %d times, want %d", name, got[name], n)
			}
		}
	}
	if requests != p.sent {
		t.Errorf("%d requests in the log, %d sent", requests, p.sent)
	}
}

// strictObject reads an object whose values are text, by RFC 8259 and nothing
// besides; a name that is there twice, or half of a surrogate pair, is an error.
func strictObject(text string) (fields map[string]string, ok bool) {
	fields = map[string]string{}
	next := func(what string) bool {
		text = strings.TrimLeft(text, " \t\r\n")
		rest, found := strings.CutPrefix(text, what)
		if found {
			text = rest
		}
		return found
	}
	hex := func() (unit rune, ok bool) {
		if len(text) < 6 || text[:2] != `\u` || strings.Trim(text[2:6], "0123456789abcdefABCDEF") != "" {
			return 0, false
		}
		n, _ := strconv.ParseUint(text[2:6], 16, 16)
		text = text[6:]
		return rune(n), true
	}
	str := func() (string, bool) {
		if !next(`"`) {
			return "", false
		}
		var s strings.Builder
		for text != "" {
			c, size := utf8.DecodeRuneInString(text)
			switch {
			case c == '"':
				text = text[1:]
				return s.String(), true
			case c < ' ', c == utf8.RuneError && size == 1:
				return "", false
			case c != '\\':
				s.WriteRune(c)
				text = text[size:]
			case strings.HasPrefix(text, `\u`):
				unit, ok := hex()
				if utf16.IsSurrogate(unit) {
					low, _ := hex()
					unit = utf16.DecodeRune(unit, low)
					ok = unit != utf8.RuneError
				}
				if !ok {
					return "", false
				}
				s.WriteRune(unit)
			default:
				i := -1
				if len(text) > 1 {
					i = strings.IndexByte(`"\/bfnrt`, text[1])
				}
				if i < 0 {
					return "", false
				}
				s.WriteByte("\"\\/\b\f\n\r\t"[i])
				text = text[2:]
			}
		}
		return "", false
	}
	if !next("{") {
		return nil, false
	}
	for first := true; !next("}"); first = false {
		if !first && !next(",") {
			return nil, false
		}
		name, isName := str()
		if _, twice := fields[name]; !isName || twice || !next(":") {
			return nil, false
		}
		if fields[name], ok = str(); !ok {
			return nil, false
		}
	}
	return fields, strings.Trim(text, " \t\r\n") == ""
}

// FuzzDecodeObject: what is taken is what was sent, whole and unrepaired, and
// all that is well-formed is taken.
func FuzzDecodeObject(f *testing.F) {
	for _, text := range []string{
		`{"username":"a","password":"b"}`, ` {"password" : "\u00e9\ud83d\udc8d\"\\\/\b\f\n\r\t", "username":"\u0000"} `, `{"username":"a"}`,
		`{"username":"a","password":"b","username":"c"}`, `{"Username":"a","password":"b"}`, `{"u\u0073ername":"a","password":"b"}`,
		`{"username":"a","password":"\ud800"}`, `{"username":"a","password":"\ud800\u0041"}`, `{"username":"a","password":"\\ud800"}`,
		`{"username":"\udc8d\ud83d","password":""}`, "{\"username\":\"\xff\",\"password\":\"b\"}", `{"username":null,"password":1}`, `{"username":"a","password":"b"}{}`,
		"\ufeff{}", `null`, `[]`, `{}`, ``, `{"username":"a","password":"b",}`, "{\"username\":\"\ufffd\",\"password\":\"\\ufffd\"}",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var in struct {
			Username string `json:"username"`
			Password string `json:"password"`
		}
		err := decodeObject([]byte(text), &in)
		fields, ok := strictObject(text)
		username, hasName := fields["username"]
		password, hasPassword := fields["password"]
		ok = ok && hasName && hasPassword && len(fields) == 2
		if (err == nil) != ok {
			t.Fatalf("%q: %v, want an error: %v", text, err, !ok)
		}
		if ok && (in.Username != username || in.Password != password) {
			t.Fatalf("%q: %q, want %q and %q", text, in, username, password)
		}
	})
}

// FuzzCookie: of all that may be in the headers, only one cookie of the name,
// with the very text that we signed, is a session.
func FuzzCookie(f *testing.F) {
	sessions, err := newSessions(nil, []string{testKey})
	if err != nil {
		f.Fatal(err)
	}
	id, _ := newSecret()
	value := id + "." + sessions.keys[0].sign("ringward", id)
	for _, lines := range [][2]string{
		{"ringward=VALUE", ""}, {"a=b; ringward=VALUE", "c=d"}, {"ringward=VALUE; ringward=VALUE", ""}, {"ringward=VALUE", "ringward=x"}, {"ringward=\"VALUE\"", ""},
		{"$Version=1; ringward=VALUE", ""}, {"ringward =VALUE", ""}, {"ringward= VALUE", ""}, {"RINGWARD=VALUE", ""}, {"\u2000ringward=VALUE", ""}, {";;ringward=VALUE;", ";"},
		{"ringward=VALUEx", ""}, {"ringward=xVALUE", ""}, {"ringward", "=VALUE"}, {"ringward=VALUE,ringward=x", ""}, {"\tringward=VALUE\t", ""},
	} {
		f.Add(lines[0], lines[1])
	}
	named := regexp.MustCompile(`(?s)(?:^|;)[ \t]*ringward=([^;]*)`)
	f.Fuzz(func(t *testing.T, one, two string) {
		lines := []string{strings.ReplaceAll(one, "VALUE", value), strings.ReplaceAll(two, "VALUE", value)}
		found := append(named.FindAllStringSubmatch(lines[0], -1), named.FindAllStringSubmatch(lines[1], -1)...)
		got, stale, ok := sessions.readID(&http.Request{Header: http.Header{"Cookie": lines}})
		want := len(found) == 1 && strings.TrimRight(found[0][1], " \t") == value
		if ok != want || stale || ok && got != id {
			t.Fatalf("%q: %q %v %v, want %v", lines, got, stale, ok, want)
		}
	})
}
