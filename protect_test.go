// protect_test.go tests what stands around every request: names, headers, the
// line in the log, panics, and answers for what is not routed.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// protected answers a server of Protect around next, and its log.
func protected(t *testing.T, next http.HandlerFunc) (*httptest.Server, *lockedBuffer) {
	log := &lockedBuffer{}
	server := httptest.NewServer(&Protect{next: next, log: newLogger(log, true), lines: requestLog{log, true}, addr: func(*http.Request) string { return "addr" }})
	t.Cleanup(server.Close)
	return server, log
}

// eventually waits until what another goroutine does is done.
func eventually(t *testing.T, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !done(); {
		if time.Now().After(deadline) {
			t.Fatal("it does not come to pass")
		}
		<-time.After(time.Millisecond)
	}
}

// logLines answers the lines of a log in JSON.
func logLines(t *testing.T, log string) (all []map[string]any) {
	t.Helper()
	for line := range strings.Lines(log) {
		var fields map[string]any
		if err := json.Unmarshal([]byte(line), &fields); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		all = append(all, fields)
	}
	return all
}

func TestPanic(t *testing.T) {
	failures := map[string]any{"text": "text of the panic", "error": errors.New("text of the panic"), "long": strings.Repeat("long", 1000),
		"slice": []int{1}, "line": "a\nb\x1b"}
	for name, failure := range failures {
		server, log := protected(t, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/panic" {
				return
			}
			w.Header().Set("Set-Cookie", "half=done")
			w.Header().Set("Content-Encoding", "gzip")
			w.Header().Del("X-Content-Type-Options")
			panic(failure)
		})
		answer, err := http.Get(server.URL + "/panic")
		if err != nil {
			t.Fatal(name, err)
		}
		body, _ := io.ReadAll(answer.Body)
		var failed struct {
			Errors []struct {
				Title, Detail string
				Status        int
			}
		}
		if err := json.Unmarshal(body, &failed); err != nil || len(failed.Errors) != 1 {
			t.Fatalf("%s: %s", name, body)
		}
		id, isRequest := strings.CutPrefix(failed.Errors[0].Detail, "request ")
		if e := failed.Errors[0]; answer.StatusCode != 500 || e.Status != 500 || e.Title != "Internal error" || !isRequest || id == "" {
			t.Errorf("%s: %d %s", name, answer.StatusCode, body)
		}
		if bytes.Contains(body, []byte("panic")) || bytes.Contains(body, []byte(".go")) {
			t.Errorf("%s: it tells how it is made: %s", name, body)
		}
		ownHeadersOnce(t, answer)
		if answer.Header.Get("Set-Cookie")+answer.Header.Get("Content-Encoding") != "" {
			t.Errorf("%s: headers of the answer that was not: %v", name, answer.Header)
		}
		lines := logLines(t, log.String())
		if len(lines) != 2 || lines[0]["msg"] != "panic" || lines[0]["level"] != "ERROR" || lines[1]["msg"] != "request" ||
			lines[0]["id"] != id || lines[1]["id"] != id || lines[1]["status"] != 500.0 ||
			!strings.Contains(fmt.Sprint(lines[0]["stack"]), "protect_test.go") || len(fmt.Sprint(lines[0]["error"])) > 600 {
			t.Errorf("%s: %s", name, log)
		}
		if answer, err := http.Get(server.URL + "/"); err != nil || answer.StatusCode != 200 {
			t.Errorf("%s: after it: %v %v", name, answer, err)
		}
	}
}

// What is half sent is cut off, so that nobody takes it for whole.
func TestPanicAfterTheAnswerBegan(t *testing.T) {
	for name, begin := range map[string]func(http.ResponseWriter){
		"written":           func(w http.ResponseWriter) { io.WriteString(w, "half"); http.NewResponseController(w).Flush() },
		"flushed":           func(w http.ResponseWriter) { http.NewResponseController(w).Flush() },
		"flushed as before": func(w http.ResponseWriter) { w.(http.Flusher).Flush() },
	} {
		for _, failure := range []any{"text", http.ErrAbortHandler} {
			server, log := protected(t, func(w http.ResponseWriter, r *http.Request) { begin(w); panic(failure) })
			answer, err := http.Get(server.URL)
			if err != nil {
				t.Fatal(name, err)
			}
			if body, err := io.ReadAll(answer.Body); err == nil || len(body) > len("half") {
				t.Errorf("%s, %v: a whole answer: %q", name, failure, body)
			}
			server.Close()
			if got := strings.Count(log.String(), `"msg":"panic"`); (got == 1) != (failure == "text") {
				t.Errorf("%s, %v: %s", name, failure, log)
			}
		}
	}
}

func TestAbortedRequest(t *testing.T) {
	server, log := protected(t, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	if answer, err := http.Get(server.URL); err == nil {
		t.Errorf("an answer: %v", answer)
	}
	server.Close()
	if lines := logLines(t, log.String()); len(lines) == 0 || lines[0]["msg"] != "request" || lines[0]["status"] != 0.0 {
		t.Errorf("log: %s", log)
	}
}

func TestEveryRequestHasItsLine(t *testing.T) {
	server, log := protected(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/silent":
		case "/written":
			io.WriteString(w, "x")
		case "/hints":
			w.WriteHeader(http.StatusEarlyHints)
			w.WriteHeader(http.StatusTeapot)
		case "/user":
			seenUser(r, "frodo")
			w.WriteHeader(http.StatusNoContent)
		case "/upgrade":
			conn, rw, err := w.(http.Hijacker).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
			rw.Flush()
		}
	})
	cases := []struct {
		path   string
		status float64
		user   string
	}{{"/silent", 200, ""}, {"/written", 200, ""}, {"/hints", 418, ""}, {"/user", 204, "frodo"}, {"/upgrade", 101, ""}}
	for _, c := range cases {
		answer, err := http.Get(server.URL + c.path + "?password=secret")
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
	}
	eventually(t, func() bool { return strings.Count(log.String(), "\n") == len(cases) })
	lines := logLines(t, log.String())
	ids := map[any]bool{}
	for i, c := range cases {
		l := lines[i]
		if l["msg"] != "request" || l["method"] != "GET" || l["path"] != c.path || l["status"] != c.status || l["user"] != c.user || l["addr"] != "addr" || l["duration"] == nil {
			t.Errorf("%s: %v", c.path, l)
		}
		ids[l["id"]] = true
	}
	if len(ids) != len(cases) {
		t.Errorf("an id is there twice: %v", ids)
	}
}

// Over HTTP/2 a method is any text.
func TestMethodInTheLog(t *testing.T) {
	for _, method := range append([]string{"GET", "M-SEARCH"}, nastyText...) {
		log := new(bytes.Buffer)
		p := &Protect{next: http.NotFoundHandler(), log: newLogger(log, true), lines: requestLog{log, true}, addr: func(*http.Request) string { return "" }}
		p.ServeHTTP(httptest.NewRecorder(), &http.Request{Method: method, Host: "localhost", URL: &url.URL{Path: "/"}})
		shown, _ := logLines(t, log.String())[0]["method"].(string)
		if strings.Trim(method, "ACEGHMRST-") == "" && shown != method || len(shown) > 100 || strings.ContainsFunc(shown, func(c rune) bool { return c <= ' ' || c > '~' }) {
			t.Errorf("%.20q is shown as %q", method, shown)
		}
	}
}

// A handler may stream as if nothing stood around it.
func TestWriterCanWhatItCould(t *testing.T) {
	server, _ := protected(t, func(w http.ResponseWriter, r *http.Request) {
		control := http.NewResponseController(w)
		if err := errors.Join(control.SetReadDeadline(time.Time{}), control.SetWriteDeadline(time.Time{}), control.EnableFullDuplex()); err != nil {
			t.Error(err)
		}
		io.WriteString(w, "first\n")
		w.(http.Flusher).Flush()
		bufio.NewReader(r.Body).ReadString('\n') // what the client sends when it has the first line
		io.WriteString(w, "second\n")
	})
	reader, writer := io.Pipe()
	answer, err := http.Post(server.URL, "text/plain", reader)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body := bufio.NewReader(answer.Body)
	if line, err := body.ReadString('\n'); line != "first\n" {
		t.Fatal(line, err)
	}
	fmt.Fprintln(writer, "go on")
	writer.Close()
	if line, err := body.ReadString('\n'); line != "second\n" {
		t.Fatal(line, err)
	}
	// A writer that cannot be taken over says so.
	if _, _, err := (&answerWriter{ResponseWriter: httptest.NewRecorder()}).Hijack(); err == nil {
		t.Error("a recorder was taken over")
	}
}

// ownHeadersOnce fails unless all headers that protect are there, once, and
// none that tell.
func ownHeadersOnce(t *testing.T, answer *http.Response) {
	t.Helper()
	for name, want := range map[string]string{
		"X-Content-Type-Options":       "^nosniff$",
		"Content-Security-Policy":      "^default-src 'none'; (.*; )?frame-ancestors 'none'$",
		"X-Frame-Options":              "^DENY$",
		"Referrer-Policy":              "^same-origin$",
		"Cross-Origin-Opener-Policy":   "^same-origin$",
		"Cross-Origin-Resource-Policy": "^same-origin$",
		"Cache-Control":                "^no-store$",
	} {
		if got := answer.Header[name]; len(got) != 1 || !regexp.MustCompile(want).MatchString(got[0]) {
			t.Errorf("%s: %q", name, got)
		}
	}
	if csp := answer.Header.Get("Content-Security-Policy"); strings.Contains(csp, "unsafe") || strings.Contains(csp, "*") || strings.Contains(csp, "http") {
		t.Errorf("Content-Security-Policy: %s", csp)
	}
	for name := range answer.Header {
		if strings.HasPrefix(name, "Access-Control-") || name == "Server" || strings.HasPrefix(name, "X-Powered") || strings.Contains(name, "Version") {
			t.Errorf("%s: %s", name, answer.Header.Get(name))
		}
	}
}

func TestStrictTransportSecurity(t *testing.T) {
	for _, hsts := range []bool{false, true} {
		p := &Protect{next: http.NotFoundHandler(), log: slog.New(slog.DiscardHandler), lines: requestLog{w: io.Discard}, addr: func(*http.Request) string { return "" }, hsts: hsts}
		for _, path := range []string{"http://localhost/", "http://evil.test/"} {
			w := httptest.NewRecorder()
			p.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
			if got := w.Header().Get("Strict-Transport-Security"); (got == "max-age=31536000; includeSubDomains") != hsts || !hsts && got != "" {
				t.Errorf("%s with hsts %v: %q", path, hsts, got)
			}
		}
	}
}

func TestHost(t *testing.T) {
	plain := &Protect{}
	public := &Protect{public: "auth.example.com"}
	domain := &Protect{public: "auth.example.com", domain: "example.com"}
	for _, c := range []struct {
		host                  string
		plain, public, domain bool
	}{
		{"localhost", true, true, true},
		{"localhost:8080", true, true, true},
		{"LOCALHOST:8080", true, true, true},
		{"localhost.", true, true, true},
		{"tool.localhost:1", true, true, true},
		{"127.0.0.1", true, true, true},
		{"127.0.0.1:8080", true, true, true},
		{"10.1.2.3", true, true, true},
		{"[::1]", true, true, true},
		{"[::1]:8080", true, true, true},
		{"[fe80::1%evil.test]", false, false, false},
		{"::%[", false, false, false},
		{"[2001:db8::1]:80", true, true, true},
		{"auth.example.com", false, true, true},
		{"AUTH.Example.COM.:443", false, true, true},
		{"example.com", false, false, true},
		{"tool.example.com:8443", false, false, true},
		{"a.b.example.com", false, false, true},
		{"", false, false, false},
		{":8080", false, false, false},
		{".", false, false, false},
		{"evil.test", false, false, false},
		{"evil.test:8080", false, false, false},
		{"127.0.0.1.evil.test", false, false, false},
		{"127.0.0.1.nip.io", false, false, false},
		{"localhost.evil.test", false, false, false},
		{"evillocalhost", false, false, false},
		{"badexample.com", false, false, false},
		{"auth.example.com.evil.test", false, false, false},
		{"auth.example.comx", false, false, false},
		{"example.com@evil.test", false, false, false},
		{"evil.test#example.com:80", false, false, false},
		{"2130706433", false, false, false},
		{"0x7f.1", false, false, false},
		{"localhost, evil.test", false, false, false},
		{"localhost:", true, true, true},
		{"localhost:,evil.test", false, false, false},
		{"localhost:80/evil.test", false, false, false},
		{"127.0.0.1:\"><script>", false, false, false},
		{"[::1]:a b", false, false, false},
		{"evil.test localhost", false, false, false},
		{"loсalhost", false, false, false},
	} {
		for name, p := range map[string]struct {
			*Protect
			want bool
		}{"plain": {plain, c.plain}, "public": {public, c.public}, "domain": {domain, c.domain}} {
			if got := p.names(c.host); got != p.want {
				t.Errorf("%s: %q: %v, want %v", name, c.host, got, p.want)
			}
		}
	}
}

// FuzzHost: whatever is sent as Host, only our own names pass.
func FuzzHost(f *testing.F) {
	for _, host := range []string{"localhost:80", "auth.example.com", "x.example.com.", "[::1]:1", "[localhost]", "::1", "evil.test", "", ":", "[", "a:b:c", "::%["} {
		f.Add(host)
	}
	f.Fuzz(func(t *testing.T, host string) {
		if !(&Protect{public: "auth.example.org", domain: "example.com"}).names(host) {
			return
		}
		name := host
		if h, _, err := net.SplitHostPort(host); err == nil {
			name = h
		}
		name = strings.TrimSuffix(strings.ToLower(strings.Trim(name, "[]")), ".")
		if addr, err := netip.ParseAddr(name); err == nil && addr.Zone() == "" {
			return
		}
		for _, ours := range []string{"localhost", "example.com", "auth.example.org"} {
			if name == ours || ours != "auth.example.org" && strings.HasSuffix(name, "."+ours) {
				return
			}
		}
		t.Errorf("%q is taken for one of our names", host)
	})
}

func TestPathInTheLog(t *testing.T) {
	const secret = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFG"
	for _, c := range [][2]string{
		{"/auth/session", "/auth/session"},
		{"/auth/invites/" + secret, "/auth/invites/..."},
		{"/auth/invites/" + secret + "/more", "/auth/invites/..."},
		{"/AUTH/Invites/" + secret, "/AUTH/Invites/..."},
		{"/auth/invite/" + secret, "/auth/invite/..."},
		{"/auth//invites//" + secret, "/auth//invites/..."},
		{"/auth/invites/\n" + secret, "/auth/invites/..."},
		{"/auth/invite#" + secret, "/auth/invite%23..."}, // of a link whose # was escaped on its way
		{"/auth/invite%23" + secret, "/auth/invite%25..."},
		{"/auth/invites%2F" + secret, "/auth/invites%25..."},
		{"/auth/invite\u00a0" + secret, "/auth/invite%C2%A0..."},
		{"/auth/invitees", "/auth/invitees"},
		{"/ȺȺȺȺȺȺȺȺȺȺȺȺȺȺȺȺȺȺȺȺ/invites/" + secret, "/%C8%BA%C8%BA%C8%BA%C8%BA%C8%BA%C8%BA%C8%BA%C8%BA%C8%BA%C8%BA%C8%BA%C8%BA%C8%BA%C8%BA%C8%BA%C8%BA%C8%BA%C8%BA%C8%BA%C8%BA/invites/..."},
		{"/auth/tokens/rw_" + secret, "/auth/tokens/rw_..."},
		{"/auth/invite", "/auth/invite"},
		{"/auth/invites/", "/auth/invites/"},
		{"/auth/sessions/0123456789abcdef0123", "/auth/sessions/0123456789abcdef0123"},
		{"*", "*"},
		{"", ""},
	} {
		if got := shownPath(c[0]); got != c[1] {
			t.Errorf("%q is shown as %q, want %q", c[0], got, c[1])
		}
	}
	for _, text := range nastyText {
		got := shownPath("/" + text)
		if len(got) > 700 || strings.Trim(got, "!#$%&'()*+,-./0123456789:;=?@ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz~") != "" {
			t.Errorf("%.20q is shown as %q", text, got)
		}
	}
}

func TestWhatIsNotRouted(t *testing.T) {
	mux := newJSONMux()
	ok := func(w http.ResponseWriter, r *http.Request) { writeData(w, 200, r.PathValue("id")) }
	mux.HandleFunc("GET /things", ok)
	mux.HandleFunc("POST /things", ok)
	mux.HandleFunc("DELETE /things/{id}", ok)
	mux.HandleFunc("GET /{$}", ok)
	for _, c := range []struct {
		method, path string
		status       int
		allow        string
	}{
		{"GET", "/things", 200, ""},
		{"HEAD", "/things", 200, ""},
		{"POST", "/things", 200, ""},
		{"DELETE", "/things", 405, "GET, HEAD, POST"},
		{"TRACE", "/things", 405, "GET, HEAD, POST"},
		{"OPTIONS", "/things", 405, "GET, HEAD, POST"},
		{"get", "/things", 405, "GET, HEAD, POST"},
		{"DELETE", "/things/1", 200, ""},
		{"GET", "/things/1", 405, "DELETE"},
		{"POST", "/", 405, "GET, HEAD"},
		{"GET", "/things/", 404, ""},
		{"GET", "/things/1/2", 404, ""},
		{"GET", "/nothing", 404, ""},
		{"TRACE", "/nothing", 404, ""},
	} {
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequest(c.method, c.path, nil))
		if w.Code != c.status || w.Header().Get("Allow") != c.allow {
			t.Errorf("%s %s: %d, Allow %q; want %d, %q", c.method, c.path, w.Code, w.Header().Get("Allow"), c.status, c.allow)
		}
		if c.status >= 400 {
			envelope(t, w.Result(), c.status)
		}
	}
}

// envelope fails unless the answer is one failure in the envelope, and answers
// its title and detail.
func envelope(t *testing.T, answer *http.Response, status int) (title, detail string) {
	t.Helper()
	body, err := io.ReadAll(answer.Body)
	var failed struct {
		Errors []struct {
			Title, Detail string
			Status        int
		}
		Data any
	}
	if err == nil {
		d := json.NewDecoder(bytes.NewReader(body))
		d.DisallowUnknownFields()
		err = d.Decode(&failed)
	}
	if err != nil || answer.StatusCode != status || len(failed.Errors) != 1 || failed.Errors[0].Status != status ||
		failed.Errors[0].Title == "" || failed.Data != nil || answer.Header.Get("Content-Type") != "application/json" {
		t.Errorf("%d %s %.200q (%v), want the envelope with %d", answer.StatusCode, answer.Header.Get("Content-Type"), body, err, status)
		return "", ""
	}
	return failed.Errors[0].Title, failed.Errors[0].Detail
}

// What a handler answers is no refusal, whatever it looks like: another answer
// in its place would shift all that come after it on the connection.
func TestBodyThatLooksLikeARefusal(t *testing.T) {
	body := strings.Repeat("HTTP/1.1 400 Bad Request\r\n"+string(bareHeaders)+"400 Bad Request", 100)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		http.NewResponseController(w).Flush() // what follows is too long to be buffered
		io.WriteString(w, body)
	}))
	server.Listener = tcpListener{server.Listener, func(http.Header) {}}
	server.Start()
	defer server.Close()
	client := server.Client()
	client.Timeout = 5 * time.Second // for what never comes
	for range 2 {
		answer, err := client.Get(server.URL)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(answer.Body)
		answer.Body.Close()
		if err != nil || string(got) != body {
			t.Errorf("%d bytes of %d, %v: %.60q", len(got), len(body), err, got)
		}
	}
}
