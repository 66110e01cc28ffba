// tools_test.go tests the tools file and what it decides: in process, the same
// way that e2e/doors_test.go tests it with real gateways.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// exampleTools is the file in docs/tools.md, with another upstream.
func exampleTools(t testing.TB, upstream string) string {
	t.Helper()
	page, err := os.ReadFile("docs/tools.md")
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile("(?ms)^```\n(# host .*?)^```$").FindSubmatch(page)
	if block == nil {
		t.Fatal("docs/tools.md has no example of a tools file")
	}
	return regexp.MustCompile(`http://127\.0\.0\.1:300\d`).ReplaceAllString(string(block[1]), upstream)
}

// toolsFile writes one and returns its name.
func toolsFile(t testing.TB, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "tools")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// guarded is ringward before the tools of a file. Every upstream is the same
// one, which keeps what it got.
type guarded struct {
	*accountServer
	got    atomic.Pointer[received]
	people map[string]string // what stands in braces in testdata/doors.txt
}

// newGuarded has frodo in dev, sam in dev and ops, gimli in no group.
func newGuarded(t *testing.T, flags ...string) *guarded {
	t.Helper()
	g := &guarded{people: map[string]string{"password": testPassword}}
	tool := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.got.Store(&received{Method: r.Method, URI: r.RequestURI, Host: r.Host, Header: r.Header})
	}))
	t.Cleanup(tool.Close)
	g.accountServer = newAccountServer(t, append([]string{"-tools", toolsFile(t, exampleTools(t, tool.URL)),
		"-public-url", "https://auth.example.com", "-cookie-domain", "example.com", "-trusted-proxies", "10.0.0.0/8"}, flags...)...)
	frodo, err := g.store.user("frodo")
	if err != nil {
		t.Fatal(err)
	}
	if err := g.store.addUser(User{Name: "gimli", Hash: frodo.Hash, Created: time.Now()}); err != nil {
		t.Fatal(err)
	}
	for _, in := range [][2]string{{"frodo", "dev"}, {"sam", "ops"}, {"sam", "dev"}} {
		if err := g.store.changeGroup(in[0], in[1], true); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"frodo", "sam", "gimli"} {
		token, secret, err := newToken(name, "script", "", time.Now())
		if err == nil {
			err = g.store.addToken(token)
		}
		if err != nil {
			t.Fatal(err)
		}
		g.people[name], g.people[name+".token"] = g.enter(name, testPassword), secret
	}
	ended := g.enter("frodo", testPassword)
	g.want(http.StatusNoContent, nil, "DELETE", "/auth/session", "", "Cookie", ended)
	g.people["broken"], g.people["ended"] = g.people["frodo"]+"x", ended
	g.Handler = g.program
	return g
}

// doorRow is a line of testdata/doors.txt.
type doorRow struct {
	line, request, verdict string
}

func doorRows(t *testing.T, people map[string]string) (rows []doorRow) {
	t.Helper()
	text, err := os.ReadFile("testdata/doors.txt")
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
		request := method + " " + path + " HTTP/1.1\nHost: " + host + "\n" + strings.Join(append(headers, ""), "\n") + "\n"
		request = braces.ReplaceAllStringFunc(request, func(name string) string { return people[name[1:len(name)-1]] })
		request = encoded.ReplaceAllStringFunc(request, func(text string) string {
			kind, plain, _ := strings.Cut(text[1:len(text)-1], ":")
			if kind == "url64" {
				return base64.RawURLEncoding.EncodeToString([]byte(plain))
			}
			return base64.StdEncoding.EncodeToString([]byte(plain))
		})
		rows = append(rows, doorRow{fmt.Sprintf("line %d: %s", n+1, line), request, verdict})
	}
	return rows
}

// verdictOf says what a response means, in the words of the table, and where to
// log in. noTool is the status for a host without one.
func verdictOf(w *httptest.ResponseRecorder, noTool int) string {
	body := w.Body.String()
	switch {
	case w.Code == http.StatusUnauthorized && strings.HasPrefix(w.Header().Get("WWW-Authenticate"), "Basic "):
		return "login basic"
	case w.Code == http.StatusUnauthorized:
		return "login"
	case w.Code == http.StatusSeeOther:
		return "login page"
	case w.Code == http.StatusForbidden && strings.Contains(body, "Not for you"):
		return "not for you"
	case w.Code == http.StatusForbidden && strings.Contains(body, "Cross-site"):
		return "cross-site"
	case w.Code == noTool && (strings.Contains(body, "no tool of that name") || strings.Contains(body, "does not go by that name")):
		return "no tool"
	}
	return fmt.Sprint(w.Code, " ", body)
}

// fate is what a request comes to.
type fate struct {
	verdict string
	login   string      // the page
	kind    string      // Content-Type of a refusal
	tool    http.Header // of what the tool gets, by what ringward says
}

// serves is ringward with -tools, which passes requests on itself.
func (g *guarded) serves(r *http.Request) (o fate) {
	g.got.Store(nil)
	r.RemoteAddr = peer
	w := httptest.NewRecorder()
	g.ServeHTTP(w, r)
	if got := g.got.Load(); got != nil {
		return fate{verdict: "as " + told(got.Header), tool: got.Header}
	}
	return fate{verdict: verdictOf(w, http.StatusMisdirectedRequest), login: w.Header().Get("Location"), kind: w.Header().Get("Content-Type")}
}

// told is who a tool is told is there.
func told(h http.Header) string {
	if len(h["Remote-User"]) == 1 && h["Remote-User"][0] != "" {
		return h["Remote-User"][0]
	}
	return "nobody"
}

// asks returns a door that asks ringward, by the requests that shape makes of
// the client's, the later ones where the one before has got a 401.
func (g *guarded) asks(shape func(client *http.Request) []*http.Request) func(*http.Request) fate {
	return func(client *http.Request) (o fate) {
		for _, r := range shape(client) {
			r.RemoteAddr = "10.0.0.1:80"
			for name := range r.Header { // what gateways set, and what the documented configurations take away
				if isIdentityHeader(name) && name != "X-Ringward-Token" {
					delete(r.Header, name)
				}
			}
			for name, value := range map[string]string{"For": "192.0.2.7", "Host": client.Host, "Proto": "https", "Method": client.Method} {
				r.Header.Set("X-Forwarded-"+name, value)
			}
			uri := client.RequestURI
			if r.Header.Get("Uri-As-Read") != "" {
				uri = client.URL.RequestURI()
			}
			r.Header.Del("Uri-As-Read")
			r.Header.Set("X-Forwarded-Uri", uri)
			for _, name := range []string{"Connection", "Upgrade", "Content-Length"} {
				r.Header.Del(name)
			}
			w := httptest.NewRecorder()
			g.ServeHTTP(w, r)
			if w.Code == http.StatusNoContent {
				return fate{verdict: "as " + told(w.Header()), tool: w.Header()}
			}
			o = fate{verdict: verdictOf(w, http.StatusForbidden), login: w.Header().Get("Location"), kind: w.Header().Get("Content-Type")}
			if w.Code != http.StatusUnauthorized {
				return o
			}
		}
		return o
	}
}

// question is a GET of ours with the client's headers.
func question(client *http.Request, host, target string) *http.Request {
	r := httptest.NewRequest("GET", "http://"+host+target, nil)
	r.Header = client.Header.Clone()
	return r
}

// doors is every way to a tool.
func (g *guarded) doors() map[string]func(*http.Request) fate {
	return map[string]func(*http.Request) fate{
		"tools": g.serves,
		"nginx": g.asks(func(c *http.Request) []*http.Request {
			return []*http.Request{question(c, c.Host, "/auth/verify"), question(c, c.Host, "/auth/verify?redirect&uri="+c.RequestURI)}
		}),
		"caddy": g.asks(func(c *http.Request) []*http.Request {
			r := question(c, c.Host, "/auth/verify?redirect&uri="+url.QueryEscape(c.URL.RequestURI()))
			r.Header.Set("Uri-As-Read", "yes")
			return []*http.Request{r}
		}),
		"traefik": g.asks(func(c *http.Request) []*http.Request {
			r := question(c, "127.0.0.1:8080", "/auth/verify?redirect")
			r.Header.Set("Uri-As-Read", "yes")
			return []*http.Request{r}
		}),
		"haproxy": g.asks(func(c *http.Request) []*http.Request {
			return []*http.Request{question(c, "127.0.0.1:8080", "/auth/verify?redirect")}
		}),
	}
}

// holdsSecret says whether a text has one of the secrets in it, also in Base64.
func holdsSecret(text string, people map[string]string) bool {
	for _, secret := range people {
		if strings.Contains(text, secret) {
			return true
		}
	}
	for word := range strings.FieldsSeq(text) {
		word = strings.NewReplacer("-", "+", "_", "/", "=", "", "[", "", "]", "").Replace(word)
		decoded, _ := base64.RawStdEncoding.DecodeString(word)
		for _, secret := range people {
			if bytes.Contains(decoded, []byte(secret)) {
				return true
			}
		}
	}
	return false
}

// One decision, whoever passes the request on.
func TestDoors(t *testing.T) {
	g := newGuarded(t)
	secrets := maps.Clone(g.people)
	delete(secrets, "broken") // which is none
	rows := doorRows(t, g.people)
	if len(rows) < 300 {
		t.Errorf("there are %d rows", len(rows))
	}
	groups := map[string]string{"frodo": "dev", "sam": "dev,ops"}
	for name, door := range g.doors() {
		for _, row := range rows {
			r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(strings.ReplaceAll(row.request, "\n", "\r\n"))))
			if err != nil {
				t.Fatalf("%v\n%s", err, row.line)
			}
			want := row.verdict
			if name == "tools" && strings.HasPrefix(row.request[strings.Index(row.request, "Host: ")+6:], "hooks") {
				want = "no tool" // here is no upstream
			}
			o := door(r)
			if o.verdict != want {
				t.Errorf("%s: %q\n%s", name, o.verdict, row.line)
				continue
			}
			path := strings.Fields(row.request)[1]
			if strings.HasPrefix(want, "as ") && name == "tools" && g.got.Load().URI != path {
				t.Errorf("the tool gets %q\n%s", g.got.Load().URI, row.line)
			}
			back, _ := url.Parse(o.login)
			if want == "login page" && (!strings.HasPrefix(o.login, "https://auth.example.com/auth/login?next=") || back.Query().Get("next") != "https://"+r.Host+path) {
				t.Errorf("%s: the login page is %s\n%s", name, o.login, row.line)
			}
			if page := strings.HasPrefix(o.kind, "text/html"); want == "not for you" && page != navigates(r) {
				t.Errorf("%s: the refusal is %s\n%s", name, o.kind, row.line)
			}
			if !strings.HasPrefix(want, "as ") {
				continue
			}
			if got := strings.Join(o.tool["Remote-Groups"], "|"); got != groups[strings.TrimPrefix(want, "as ")] {
				t.Errorf("%s: the groups are %q\n%s", name, got, row.line)
			}
			if name == "tools" && (want == "as nobody" || want == "as gimli") && o.tool["Remote-Groups"] != nil || want == "as nobody" && name == "tools" && o.tool["Remote-User"] != nil {
				t.Errorf("the tool is told %v\n%s", o.tool, row.line)
			}
			sent := slices.DeleteFunc(r.Header["Authorization"], func(line string) bool { return holdsSecret(line, secrets) })
			if fmt.Sprint(o.tool["Authorization"]) != fmt.Sprint(sent) {
				t.Errorf("%s: the tool gets the Authorization %q\n%s", name, o.tool["Authorization"], row.line)
			}
			if cookie := o.tool.Get("Cookie"); holdsSecret(fmt.Sprint(o.tool), secrets) || r.Header["Cookie"] != nil && cookie != "a=1" {
				t.Errorf("%s: the tool gets %v\n%s", name, o.tool, row.line)
			}
		}
	}
}

// A password by Basic, the right one too, costs no bcrypt: none could run here.
func TestBasicCostsNoBcrypt(t *testing.T) {
	g := newGuarded(t)
	for range cap(g.auth.throttle.queue) {
		g.auth.throttle.queue <- struct{}{}
	}
	w := g.do("GET", "http://git.example.com/", "", "Authorization", basic("frodo", testPassword))
	if verdictOf(w, 0) != "login basic" {
		t.Errorf("the right password: %d %s", w.Code, w.Body)
	}
	w = g.do("POST", "http://auth.example.com/auth/session", credentials("frodo", testPassword))
	if w.Code != http.StatusServiceUnavailable {
		t.Errorf("a login found a bcrypt to run: %d %s", w.Code, w.Body)
	}
}

// A browser's preflight asks, and brings nothing with it.
func TestPreflightIsBare(t *testing.T) {
	g := newGuarded(t)
	for more, passes := range map[string]bool{
		"": true, "Content-Length: 0\n": true, "Upgrade: websocket\nConnection: Upgrade\n": false, "Upgrade: h2c\n": false,
		"Sec-WebSocket-Version: 13\n": false, "Content-Length: 1\n": false, "Transfer-Encoding: chunked\n": false,
	} {
		g.got.Store(nil)
		w := g.raw("OPTIONS /api HTTP/1.1\nHost: git.example.com\nOrigin: https://evil.test\nAccess-Control-Request-Method: POST\n" + more + "\n0\n\n")
		if reached := g.got.Load() != nil; reached != passes || !passes && w.Code != http.StatusUnauthorized && w.Code != http.StatusForbidden {
			t.Errorf("%q: the tool got it: %t, %d %s", more, reached, w.Code, w.Body)
		}
	}
}

// Where no tool is, the public host leads to the account, however it is written.
func TestPublicHostWithoutATool(t *testing.T) {
	g := newGuarded(t)
	for host, want := range map[string]int{"auth.example.com": 303, "auth.example.com:443": 303, "AUTH.example.com.": 303, "auth.example.com:444": 421, "other.example.com": 421} {
		w := g.request("GET", "https://"+host+"/")
		if w.Code != want || want == 303 && w.Header().Get("Location") != "/auth/account" {
			t.Errorf("%s: %d %v", host, w.Code, w.Header())
		}
	}
}

func basic(name, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(name+":"+password))
}

// A mistake anywhere refuses the whole file, and says where it is and what.
func TestToolsFileMistakes(t *testing.T) {
	const fine = "# a comment\n\nwiki.example.com http://127.0.0.1:3000 # another\n"
	long := strings.Repeat("x", 100_000)
	for line, want := range map[string]string{
		"git.example.com":                        "a line is: host upstream options",
		"-":                                      "a line is: host upstream options",
		"WIKI.example.com http://127.0.0.1:3001": "there is a line for wiki.example.com already",
		"wiki.example.com -":                     "there is a line for wiki.example.com already",
		"git.example.com:443 -":                  "a host is like wiki.example.com, without a port",
		"https://git.example.com -":              "a host is like",
		"*.example.com -":                        "a host is like",
		".example.com -":                         "a host is like",
		"git.example.com. -":                     "a host is like",
		"-git.example.com -":                     "a host is like",
		"g\u00eft.example.com -":                 "a host is like",
		"\ufeffgit.example.com -":                "a host is like",
		"git.example.com\x00 -":                  "a host is like",
		"[::1] -":                                "a host is like",
		". -":                                    "a host is like",
		"git.example.com 127.0.0.1:3000":         "the upstream is like http://127.0.0.1:3000",
		"git.example.com http://127.0.0.1:3000/git":                     "the upstream is like",
		"git.example.com http://u:p@127.0.0.1:3000":                     "the upstream is like",
		"git.example.com http://":                                       "the upstream is like",
		"git.example.com ftp://127.0.0.1":                               "the upstream is like",
		"git.example.com http://127.0.0.1:x":                            "the upstream is like",
		"git.example.com http://127.0.0.1:3000?x":                       "the upstream is like",
		"git.example.com --":                                            "the upstream is like",
		"git.example.com http://127.0.0.1:":                             "the upstream is like",
		"git.example.com http://127.0.0.1:0":                            "the upstream is like",
		"git.example.com https://127.0.0.1:99999":                       "the upstream is like",
		"git.example.com - public=/a/*":                                 "a public path is like",
		"git.example.com http://127.0.0.1:3000 ops":                     `"ops" is no option`,
		"git.example.com - groups=ops":                                  `"groups=ops" is no option`,
		"git.example.com - group":                                       "a group is",
		"git.example.com - group=":                                      "a group is",
		"git.example.com - group=ops,":                                  "a group is",
		"git.example.com - group=ops, dev":                              "a group is",
		"git.example.com - group=Ops":                                   "a group is",
		"git.example.com - group=-ops":                                  "a group is",
		"git.example.com - group=" + strings.Repeat("x", 33):            "a group is",
		"git.example.com - group=ops group=dev":                         "group is there twice",
		"git.example.com - public=/x/ public=/y/":                       "public is there twice",
		"git.example.com - timeout=5s timeout=6s":                       "timeout is there twice",
		"git.example.com - basic basic":                                 "basic is there twice",
		"git.example.com - basic=yes":                                   `"basic=yes" is no option`,
		"git.example.com - preflight=":                                  `"preflight=" is no option`,
		"git.example.com - Basic":                                       `"Basic" is no option`,
		"git.example.com - public":                                      "a public path is like",
		"git.example.com - public=":                                     "a public path is like",
		"git.example.com - public=/":                                    "a public path is like",
		"git.example.com - public=x":                                    "a public path is like",
		"git.example.com - public=*":                                    "a public path is like",
		"git.example.com - public=/x,":                                  "a public path is like",
		"git.example.com - public=/x,/y/../z":                           "a public path is like",
		"git.example.com - public=//x":                                  "a public path is like",
		"git.example.com - public=/x;y":                                 "a public path is like",
		"git.example.com - public=/x?y":                                 "a public path is like",
		"git.example.com - public=/x%2fy":                               "a public path is like",
		"git.example.com - public=/%zz":                                 "a public path is like",
		"git.example.com - public=/caf\u00e9/":                          "a public path is like",
		"git.example.com - public=/\xff/":                               "a public path is like",
		"git.example.com - public=http://git.example.com/x":             "a public path is like",
		"git.example.com - public=/a\\b":                                "a public path is like",
		"git.example.com - timeout":                                     "a timeout is like 60s or 5m",
		"git.example.com - timeout=60":                                  "a timeout is like",
		"git.example.com - timeout=0s":                                  "a timeout is like",
		"git.example.com - timeout=-5m":                                 "a timeout is like",
		"git.example.com http://127.0.0.1:3000 timeout=5m" + long + "x": "a timeout is like",
	} {
		path := toolsFile(t, fine+line+"\nlast.example.com -\n")
		tools, err := readTools(path, time.Minute)
		if err == nil || tools != nil || !strings.HasPrefix(err.Error(), path+", line 4: "+want) {
			t.Errorf("%.80q: %v, %.150v", line, tools, err)
		}
		if c, _, err := parseConfig([]string{"-tools", path}); exitCode(err) != 2 || !strings.Contains(err.Error(), "line 4: "+want) {
			t.Errorf("%.80q: %v, %.150v", line, c.tools, err)
		}
	}
	for text, want := range map[string]string{"": "has no tool in it", "# nothing\n\n  \n": "has no tool in it"} {
		if tools, err := readTools(toolsFile(t, text), time.Minute); err == nil || tools != nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, %v", text, tools, err)
		}
	}
	if _, err := readTools(t.TempDir()+"/none", time.Minute); err == nil {
		t.Error("a file that is not there is read")
	}
	if _, _, err := parseConfig([]string{"-tools", toolsFile(t, fine), "-proxy", "http://127.0.0.1:3000"}); exitCode(err) != 2 {
		t.Errorf("-tools with -proxy: %v", err)
	}
}

func TestToolsFile(t *testing.T) {
	text := "\ufeff" + exampleTools(t, "http://127.0.0.1:9") + "CI.Example.com\t https://10.0.0.1 \tpublic=/caf%C3%A9/,/a(b) preflight\tgroup=a.b_c-1 \r\nlocalhost - #x\n127.0.0.1 http://tool/"
	tools, err := readTools(toolsFile(t, text), 7*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, host := range slices.Sorted(maps.Keys(tools)) {
		tool := *tools[host]
		got = append(got, fmt.Sprint(host, " ", tool.upstream, tool.groups, tool.public, tool.basic, tool.preflight, tool.timeout))
	}
	want := []string{
		"127.0.0.1 http://tool [] [] false false 7s",
		"ci.example.com https://10.0.0.1 [a.b_c-1] [/caf%C3%A9/ /a(b)] false true 7s",
		"git.example.com http://127.0.0.1:9 [dev ops] [] true true 7s",
		"grafana.example.com http://127.0.0.1:9 [ops] [/api/health /public/] false false 5m0s",
		"hooks.example.com <nil> [ops] [] false false 7s",
		"localhost <nil> [] [] false false 7s",
		"wiki.example.com http://127.0.0.1:9 [] [] false false 7s",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// What the documentation shows as a tools file is one.
func TestDocumentedToolsFiles(t *testing.T) {
	for _, page := range []string{"docs/tools.md", "docs/moving.md"} {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		found := 0
		for _, block := range regexp.MustCompile("(?ms)^```(\\w*)\n(.*?)^```$").FindAllStringSubmatch(string(text), -1) {
			if block[1] != "" {
				continue
			}
			found++
			if _, err := readTools(toolsFile(t, block[2]), time.Minute); err != nil {
				t.Errorf("%s: %v\n%s", page, err, block[2])
			}
		}
		if found == 0 {
			t.Errorf("%s has no block", page)
		}
	}
}

func FuzzReadTool(f *testing.F) {
	for line := range strings.Lines(exampleTools(f, "http://127.0.0.1:3000")) {
		f.Add(line)
	}
	f.Add(". - public=/x?y,/%2e/ group=a,,b timeout=1ns basic basic")
	f.Fuzz(func(t *testing.T, line string) {
		words := strings.Fields(line)
		tool, err := readTool(words, time.Minute)
		if err != nil {
			if tool != nil {
				t.Errorf("%q: both a tool and %v", line, err)
			}
			return
		}
		// What a line allows, a request for just that gets, and nothing else does.
		if tool.host == "" || (Tools{tool.host: tool}).find(tool.host+".:443") != tool || tool.timeout <= 0 {
			t.Errorf("%q: %+v", line, tool)
		}
		if tool.admits(User{}) != (tool.groups == nil) {
			t.Errorf("%q: the groups are %q", line, tool.groups)
		}
		for _, group := range tool.groups {
			if !tool.admits(User{Groups: "aa " + group}) {
				t.Errorf("%q: who is in %q is not admitted", line, group)
			}
		}
		for _, path := range tool.public {
			if u, err := url.ParseRequestURI(path); err != nil || !tool.opens(&http.Request{Method: "GET", URL: u}) {
				t.Errorf("%q: %q is not open: %v", line, path, err)
			}
		}
		for _, path := range []string{"/", "/secret", "*", ""} {
			if tool.opens(&http.Request{Method: "GET", URL: &url.URL{Path: path}}) && !slices.Contains(tool.public, "/secret") {
				t.Errorf("%q: %q is open", line, path)
			}
		}
	})
}

// However a path is read, what is public is below the folder that the line names.
func FuzzPublicPath(f *testing.F) {
	text, err := os.ReadFile("testdata/doors.txt")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(`/public/a%2fb"`)
	f.Add(`/%70ublic/"`)
	for line := range strings.Lines(string(text)) {
		if fields := strings.Split(line, " | "); len(fields) > 4 && strings.Contains(fields[2], "grafana") {
			f.Add(strings.TrimSpace(fields[3]))
		}
	}
	tool := &Tool{public: []string{"/public/", "/api/health"}}
	encoded := regexp.MustCompile(`(?i)%(2f|5c|00|25|0a|0d|3b)`)
	f.Fuzz(func(t *testing.T, target string) {
		u, err := url.ParseRequestURI(target)
		if err != nil || !strings.HasPrefix(target, "/") || !tool.opens(&http.Request{Method: "GET", URL: u}) {
			return
		}
		sent, _, _ := strings.Cut(target, "?") // what the tool gets
		if encoded.MatchString(sent) {
			t.Errorf("%q is public", target)
		}
		for _, readings := range []string{sent, strings.ToLower(sent)} {
			for range 3 { // decoded never, once, twice, as proxies and tools do
				for _, read := range []string{readings, strings.ReplaceAll(readings, `\`, "/"), dropParameters(readings)} {
					parts := strings.Split(read, "/")
					for i := range parts {
						parts[i] = strings.TrimRight(parts[i], " ") // as Windows does
					}
					read = strings.Join(parts, "/")
					if clean := path.Clean(read); clean != "/api/health" && clean != "/public" && !strings.HasPrefix(clean, "/public/") || strings.ContainsAny(read, "\x00\r\n") {
						t.Errorf("%q is public, and may be read as %q", target, clean)
					}
				}
				if readings, err = url.PathUnescape(readings); err != nil {
					break
				}
			}
		}
	})
}

// dropParameters reads a path as Java's servlets do: from a semicolon to the
// next slash are parameters.
func dropParameters(path string) string {
	return regexp.MustCompile(`;[^/]*`).ReplaceAllString(path, "")
}

// withTools makes these the tools, in place of inFront's one and reached as it
// is.
func (f *front) withTools(file string) {
	f.Helper()
	tools, err := readTools(toolsFile(f, file), time.Minute)
	if err != nil {
		f.Fatal(err)
	}
	if f.oneTool == nil {
		f.oneTool = f.gateway.tools.Load().find("")
	}
	for _, tool := range tools {
		tool.proxy = f.oneTool.proxy
	}
	f.gateway.tools.Store(&tools)
}

// Who may not use a tool any more is out: at once with the next request, and
// within a minute with what is open. Who still may keeps what is open.
func TestStreamsEndWithWhatAllowedThem(t *testing.T) {
	const line = "localhost http://127.0.0.1:3000 group=dev,ops basic public=/silent"
	type changed func(f *front, token Key)
	group := func(group string, in bool) changed {
		return func(f *front, _ Key) {
			if err := f.store.changeGroup("frodo", group, in); err != nil {
				f.Error(err)
			}
		}
	}
	reload := func(file string) changed { return func(f *front, _ Key) { f.withTools(file) } }
	for name, c := range map[string]struct {
		as     string // nobody, the cookie or a token by Basic
		change changed
		status int // of the next request; 200: streams stay
	}{
		"left the group":               {"cookie", group("dev", false), 403},
		"left it, with a token":        {"token", group("dev", false), 403},
		"in another group too":         {"cookie", group("ops", true), 200},
		"left a group of no tool":      {"cookie", group("zoo", false), 200},
		"the token is gone":            {"token", func(f *front, token Key) { f.store.removeToken(token) }, 401},
		"nobody is public":             {"nobody", group("dev", false), 200},
		"disabled":                     {"cookie", func(f *front, _ Key) { f.store.disableUser("frodo", true) }, 401},
		"file: as it was":              {"cookie", reload(line), 200},
		"file: as it was, nobody":      {"nobody", reload(line), 200},
		"file: another upstream":       {"cookie", reload("localhost http://127.0.0.1:3001 group=dev"), 200},
		"file: for every user":         {"cookie", reload("localhost http://127.0.0.1:3001"), 200},
		"file: another group":          {"cookie", reload("localhost http://127.0.0.1:3000 group=ops"), 403},
		"file: no such host":           {"cookie", reload("other.example.com http://127.0.0.1:3000"), 421},
		"file: not public, nobody":     {"nobody", reload("localhost http://127.0.0.1:3000"), 401},
		"file: no Basic, with a token": {"token", reload("localhost http://127.0.0.1:3000"), 401},
		"file: a mistake changes nothing": {"cookie", func(f *front, _ Key) {
			if _, err := readTools(toolsFile(f, "localhost http://127.0.0.1:3000 group=ops\nlocalhost -"), time.Minute); err == nil {
				f.Error("a mistake is read")
			}
		}, 200},
	} {
		t.Run(name, func(t *testing.T) {
			inFront(t, http.HandlerFunc(streams), nil, func(t *testing.T, f *front) {
				f.withTools(line)
				group("dev", true)(f, Key{})
				token, secret := f.apiToken()
				path, who := "/events", "Cookie: COOKIE"
				switch c.as {
				case "token":
					who = "Authorization: " + basic("frodo", secret)
				case "nobody":
					path, who = "/silent", "A: b"
				}
				request := "GET " + path + " HTTP/1.1\nHost: localhost\n" + who + "\n\n"
				conn, response := f.open(request)
				defer conn.Close()
				over := make(chan time.Time, 1)
				go func() {
					io.Copy(io.Discard, response.Body)
					over <- time.Now()
				}()
				time.Sleep(10 * time.Minute)
				if isOver(over) {
					t.Fatalf("ended while it was allowed:\n%s", f.log)
				}
				c.change(f, token.Key)
				changed := time.Now()
				again, next := f.open(request)
				again.Close()
				if next.StatusCode != c.status {
					t.Errorf("the next request: %s, want %d", next.Status, c.status)
				}
				if c.status == http.StatusOK {
					time.Sleep(10 * time.Minute)
					if isOver(over) {
						t.Errorf("ended:\n%s", f.log)
					}
					return
				}
				select {
				case end := <-over:
					if took := end.Sub(changed); took > time.Minute {
						t.Errorf("ended %v later", took)
					}
				case <-time.After(10 * time.Minute):
					t.Errorf("still open:\n%s", f.log)
				}
			})
		})
	}
}

// timeout= is how long a tool may take to begin its response.
func TestToolTimeout(t *testing.T) {
	inFront(t, nil, nil, func(t *testing.T, f *front) {
		f.withTools("localhost http://127.0.0.1:3000 timeout=5m\nring.example.com http://127.0.0.1:3000")
		for host, tool := range *f.gateway.tools.Load() {
			tool.proxy = f.gateway.proxyOver(tool, func(context.Context, string, string) (net.Conn, error) {
				here, there := net.Pipe()
				go io.Copy(io.Discard, there)
				return here, nil
			})
			start := time.Now()
			response, body := f.send("GET / HTTP/1.1\nHost: " + host + "\nCookie: COOKIE\n\n")
			if took := time.Since(start); response.StatusCode != http.StatusGatewayTimeout || took != tool.timeout {
				t.Errorf("%s: %s %s after %v, want a 504 after %v", host, response.Status, body, took, tool.timeout)
			}
		}
	})
}

// A tool may link to /auth/logout: to look at the page ends nothing, its one
// button ends the session for all tools.
func TestLogoutPage(t *testing.T) {
	g := newGuarded(t)
	const page = "https://wiki.example.com/auth/logout"
	cookie := g.people["frodo"]
	w := g.want(http.StatusOK, nil, "GET", page, "", "Cookie", cookie)
	if n := strings.Count(w.Body.String(), "<button"); n != 1 {
		t.Errorf("the page has %d buttons", n)
	}
	g.want(http.StatusForbidden, nil, "POST", page, "", "Cookie", cookie, "Origin", "https://evil.test")
	g.want(http.StatusOK, nil, "GET", "https://wiki.example.com/x", "", "Cookie", cookie)
	g.want(http.StatusSeeOther, nil, "POST", page, "", "Cookie", cookie, "Origin", "https://wiki.example.com")
	for _, host := range []string{"wiki", "git"} {
		g.want(http.StatusUnauthorized, nil, "GET", "https://"+host+".example.com/x", "", "Cookie", cookie)
	}
}
