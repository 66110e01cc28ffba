// protect_test.go tests what stands around every request: names, headers,
// panics, and responses for what is not routed. Its line in the log is in
// log_test.go.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"
)

// plainGateway has no upstream, and trusts nobody.
func plainGateway() *Gateway {
	g := &Gateway{prefix: "/auth", userHeader: "Remote-User"}
	g.setTools(Tools{"": {}})
	return g
}

var plainWeb = newWeb("/auth", "ringward", "", "", 15)

// protected returns Protect around next, and its log in JSON.
func protected(next http.HandlerFunc) (*Protect, *bytes.Buffer) {
	log := new(bytes.Buffer)
	return &Protect{next: next, log: newLogger(log, true), gateway: plainGateway(), web: plainWeb}, log
}

// logLines returns the lines of a log in JSON.
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
	for name, failure := range map[string]any{"text": "text of the panic", "error": errors.New("text of the panic"), "long": strings.Repeat("long", 1000),
		"slice": []int{1}, "line": "a\nb\x1b"} {
		p, log := protected(func(w http.ResponseWriter, r *http.Request) {
			seenUser(r, "frodo")
			w.Header().Set("Set-Cookie", "half=done")
			w.Header().Set("Content-Encoding", "gzip")
			w.Header().Del("X-Content-Type-Options")
			panic(failure)
		})
		w := httptest.NewRecorder()
		p.ServeHTTP(w, httptest.NewRequest("GET", "http://localhost/", nil))
		body := w.Body.String()
		title, detail := envelope(t, w.Result(), http.StatusInternalServerError)
		id, isRequest := strings.CutPrefix(detail, "request ")
		if title != "Internal error" || !isRequest || id == "" || strings.Contains(body, "panic") || strings.Contains(body, ".go") {
			t.Errorf("%s: %s", name, body)
		}
		ownHeadersOnce(t, w.Result())
		if w.Header().Get("Set-Cookie")+w.Header().Get("Content-Encoding") != "" {
			t.Errorf("%s: headers of the response that was not sent: %v", name, w.Header())
		}
		lines := logLines(t, log.String())
		if len(lines) != 2 || lines[0]["msg"] != "panic" || lines[0]["level"] != "ERROR" || lines[1]["msg"] != "request" ||
			lines[0]["id"] != id || lines[1]["id"] != id || lines[1]["status"] != 500.0 || lines[1]["user"] != "frodo" ||
			!strings.Contains(fmt.Sprint(lines[0]["stack"]), "protect_test.go") || len(fmt.Sprint(lines[0]["error"])) > 600 {
			t.Errorf("%s: %s", name, log)
		}
	}
}

// hijackable is a recorder whose connection can be taken over.
type hijackable struct{ *httptest.ResponseRecorder }

func (h hijackable) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	here, there := net.Pipe()
	there.Close()
	return here, nil, nil
}

// What is half sent is cut off, so that nobody takes it for whole.
func TestPanicAfterTheResponseBegan(t *testing.T) {
	for name, c := range map[string]struct {
		begin  func(http.ResponseWriter)
		status float64
	}{
		"written":               {func(w http.ResponseWriter) { io.WriteString(w, "half") }, 200},
		"header written":        {func(w http.ResponseWriter) { w.WriteHeader(http.StatusTeapot) }, 418},
		"flushed":               {func(w http.ResponseWriter) { http.NewResponseController(w).Flush() }, 200},
		"taken over":            {func(w http.ResponseWriter) { http.NewResponseController(w).Hijack() }, 101},
		"aborted, nothing sent": {func(http.ResponseWriter) {}, 0},
	} {
		for _, failure := range []any{"text", http.ErrAbortHandler} {
			if c.status == 0 && failure == "text" {
				continue // TestPanic
			}
			p, log := protected(func(w http.ResponseWriter, r *http.Request) { c.begin(w); panic(failure) })
			w := hijackable{httptest.NewRecorder()}
			func() {
				defer func() {
					if again := recover(); again != http.ErrAbortHandler {
						t.Errorf("%s, %v: net/http gets %v", name, failure, again)
					}
				}()
				p.ServeHTTP(w, httptest.NewRequest("GET", "http://localhost/", nil))
			}()
			if strings.Contains(w.Body.String(), "Internal error") {
				t.Errorf("%s, %v: the response goes on with %s", name, failure, w.Body)
			}
			lines := logLines(t, log.String())
			last := lines[len(lines)-1]
			if told := lines[0]["msg"] == "panic"; told != (failure == "text") || len(lines) > 2 || last["msg"] != "request" || last["status"] != c.status {
				t.Errorf("%s, %v: %s", name, failure, log)
			}
		}
	}
	p, _ := protected(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "half")
		http.NewResponseController(w).Flush()
		panic("text")
	})
	server := httptest.NewServer(p)
	defer server.Close()
	response, err := http.Get(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if body, err := io.ReadAll(response.Body); err == nil || string(body) != "half" {
		t.Errorf("over the wire: %q, %v", body, err)
	}
}

func TestStatusInTheLog(t *testing.T) {
	for name, c := range map[string]struct {
		handle http.HandlerFunc
		status float64
	}{
		"silent":  {func(http.ResponseWriter, *http.Request) {}, 200},
		"written": {func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "x"); w.WriteHeader(http.StatusTeapot) }, 200},
		"status":  {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }, 204},
		"flushed": {func(w http.ResponseWriter, _ *http.Request) {
			http.NewResponseController(w).Flush()
			w.WriteHeader(http.StatusTeapot)
		}, 200},
		"taken over": {func(w http.ResponseWriter, _ *http.Request) { http.NewResponseController(w).Hijack() }, 101},
	} {
		p, log := protected(c.handle)
		p.ServeHTTP(hijackable{httptest.NewRecorder()}, httptest.NewRequest("GET", "http://localhost/", nil))
		if lines := logLines(t, log.String()); len(lines) != 1 || lines[0]["status"] != c.status {
			t.Errorf("%s: %s", name, log)
		}
	}
}

// A handler may stream, give hints and take over the connection as if nothing
// stood around it.
func TestWriterCanWhatItCould(t *testing.T) {
	p, _ := protected(func(w http.ResponseWriter, r *http.Request) {
		control := http.NewResponseController(w)
		if r.Header.Get("Upgrade") != "" {
			conn, rw, err := control.Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nhello")
			rw.Flush()
			return
		}
		w.Header().Set("Link", "</x.css>")
		w.Header().Set("Set-Cookie", "a=b")
		w.WriteHeader(http.StatusEarlyHints)
		if err := errors.Join(control.SetReadDeadline(time.Time{}), control.SetWriteDeadline(time.Time{}), control.EnableFullDuplex()); err != nil {
			t.Error(err)
		}
		io.WriteString(w, "first\n")
		if err := control.Flush(); err != nil {
			t.Error(err)
		}
		bufio.NewReader(r.Body).ReadString('\n') // what the client sends when it has the first line
		io.WriteString(w, "second\n")
	})
	server := httptest.NewServer(p)
	defer server.Close()
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	reader := bufio.NewReader(conn)
	io.WriteString(conn, "POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
	hints, err := http.ReadResponse(reader, nil)
	if err != nil || hints.StatusCode != http.StatusEarlyHints || hints.Header.Get("Link") == "" || hints.Header.Get("Set-Cookie") != "" {
		t.Fatalf("%v, %v", hints, err)
	}
	response, err := http.ReadResponse(reader, nil)
	if err != nil {
		t.Fatal(err)
	}
	body := bufio.NewReader(response.Body)
	if line, err := body.ReadString('\n'); line != "first\n" {
		t.Fatal(line, err)
	}
	io.WriteString(conn, "3\r\ngo\n\r\n0\r\n\r\n")
	if line, err := body.ReadString('\n'); line != "second\n" {
		t.Fatal(line, err)
	}
	io.Copy(io.Discard, body)
	io.WriteString(conn, "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
	if rest, err := io.ReadAll(reader); !strings.HasPrefix(string(rest), "HTTP/1.1 101 ") || !strings.HasSuffix(string(rest), "hello") {
		t.Errorf("%q, %v", rest, err)
	}
	// A writer that cannot do it says so.
	plain := http.NewResponseController(&statusWriter{ResponseWriter: httptest.NewRecorder()})
	if _, _, err := plain.Hijack(); !errors.Is(err, http.ErrNotSupported) {
		t.Errorf("a recorder was taken over: %v", err)
	}
	if err := plain.SetReadDeadline(time.Time{}); !errors.Is(err, http.ErrNotSupported) {
		t.Errorf("a recorder has a deadline: %v", err)
	}
}

// ownHeadersOnce fails unless all headers that protect are there, once, and
// none that tell.
func ownHeadersOnce(t *testing.T, response *http.Response) {
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
		if got := response.Header[name]; len(got) != 1 || !regexp.MustCompile(want).MatchString(got[0]) {
			t.Errorf("%s: %q", name, got)
		}
	}
	if csp := response.Header.Get("Content-Security-Policy"); strings.Contains(csp, "unsafe") || strings.Contains(csp, "*") || strings.Contains(csp, "http") {
		t.Errorf("Content-Security-Policy: %s", csp)
	}
	for name := range response.Header {
		if strings.HasPrefix(name, "Access-Control-") || name == "Server" || strings.HasPrefix(name, "X-Powered") || strings.Contains(name, "Version") {
			t.Errorf("%s: %s", name, response.Header.Get(name))
		}
	}
}

// Every response of our own has them, whatever it is.
func TestOwnHeaders(t *testing.T) {
	s := newAccountServer(t)
	s.auth.LoginPage = "/auth/login"
	cookie := s.enter("frodo", testPassword)
	s.Handler = &Protect{next: s.Handler, log: s.auth.Log, gateway: plainGateway(), web: plainWeb, hsts: 31536000}
	responds := func(status int, method, path, body string, headers ...string) {
		t.Helper()
		w := s.want(status, nil, method, path, body, append(headers, "Cookie", cookie)...)
		ownHeadersOnce(t, w.Result())
		if got := w.Header()["Strict-Transport-Security"]; len(got) != 1 || got[0] != "max-age=31536000" {
			t.Errorf("%s %s: HSTS %q", method, path, got)
		}
		if status >= 400 {
			envelope(t, w.Result(), status)
		}
	}
	for _, path := range []string{"/", "/auth/account", "/auth/invite", "/auth/style.css", "/auth/script.js", "/auth/icon.svg", "/ringsofpower", "/auth/sessions", "/healthz"} {
		responds(200, "GET", "http://localhost"+path, "")
		responds(200, "HEAD", "http://localhost"+path, "")
	}
	responds(201, "POST", "http://localhost/ringsofpower", `{"name":"a","bearer":"b"}`)
	responds(204, "DELETE", "http://localhost/ringsofpower/21", "")
	responds(204, "GET", "http://localhost/auth/verify", "")
	responds(303, "GET", "http://localhost/auth/login?next=/x", "")
	responds(307, "GET", "http://localhost/ringsofpower//1", "")
	responds(400, "POST", "http://localhost/ringsofpower", `{`)
	responds(403, "POST", "http://localhost/ringsofpower", `{}`, "Sec-Fetch-Site", "cross-site")
	responds(404, "GET", "http://localhost/ringsofpower/99", "")
	responds(404, "GET", "http://localhost/nothing", "")
	responds(405, "PATCH", "http://localhost/ringsofpower", "")
	responds(405, "TRACE", "http://localhost/auth/session", "")
	responds(413, "POST", "http://localhost/ringsofpower", `{"name":"`+strings.Repeat("x", maxBody)+`"}`)
	responds(415, "POST", "http://localhost/ringsofpower", `{}`, "Content-Type", "text/plain")
	responds(421, "GET", "http://evil.test/", "")
	responds(422, "POST", "http://localhost/ringsofpower", `{"name":"","bearer":"b"}`)
	s.store.Close()
	responds(503, "GET", "http://localhost/ringsofpower", "")
	responds(503, "GET", "http://localhost/healthz", "")
	cookie = "x=y"
	responds(303, "GET", "http://localhost/", "", "Accept", "text/html")
	responds(401, "GET", "http://localhost/ringsofpower", "")
	responds(401, "GET", "http://localhost/auth/verify", "")

	s.Handler.(*Protect).hsts = 0
	if w := s.do("GET", "http://localhost/", ""); w.Header()["Strict-Transport-Security"] != nil {
		t.Errorf("without https: %v", w.Header())
	}
	public := []string{"-public-url", "https://auth.example.com"}
	for want, flags := range map[int][]string{31536000: public, 60: append(public, "-hsts", "60"), 0: append(public, "-hsts", "0")} {
		if got := newAccountServer(t, flags...).hsts; got != want {
			t.Errorf("%v: HSTS for %d s", flags, got)
		}
	}
}

func TestHost(t *testing.T) {
	plain := &Protect{gateway: plainGateway()}
	public := &Protect{gateway: plainGateway(), public: "auth.example.com"}
	domain := &Protect{gateway: plainGateway(), public: "auth.example.com", domain: "example.com"}
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
		if !(&Protect{gateway: plainGateway(), public: "auth.example.org", domain: "example.com"}).names(host) {
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

// Who asks for another host than ours is told which flag would mend it.
func TestWrongHost(t *testing.T) {
	s := newAccountServer(t)
	p := &Protect{next: s.Handler, log: s.auth.Log, gateway: plainGateway(), web: plainWeb}
	for target, status := range map[string]int{
		"http://evil.test/":             421,
		"http://evil.test/auth/login":   421,
		"http://evil.test/ringsofpower": 421,
		"http://evil.test/healthz/":     421,
		"http://evil.test/%68ealthz":    421,
		"http://evil.test/x/../healthz": 421,
		"http://ringward:8080/healthz":  200, // as containers ask each other
		"http://evil.test/healthz?x":    200,
		"http://localhost/healthz":      200,
		"http://127.0.0.1:8080/healthz": 200,
	} {
		w := httptest.NewRecorder()
		p.ServeHTTP(w, httptest.NewRequest("GET", target, nil))
		if w.Code != status {
			t.Errorf("%s: %d, want %d", target, w.Code, status)
		}
		if status != http.StatusOK {
			if _, detail := envelope(t, w.Result(), status); !strings.Contains(detail, "-public-url") {
				t.Errorf("%s: detail %q", target, detail)
			}
		}
	}
}

func TestWhatIsNotRouted(t *testing.T) {
	mux := newJSONMux()
	ok := func(w http.ResponseWriter, r *http.Request) { respond(w, 200, r.PathValue("id")) }
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
	// A ServeMux has words of its own for these.
	p, _ := protected(mux.ServeHTTP)
	for _, line := range []string{"OPTIONS * HTTP/1.1", "CONNECT localhost:80 HTTP/1.1"} {
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(line + "\r\nHost: localhost:80\r\n\r\n")))
		if err != nil {
			t.Fatal(err)
		}
		w := httptest.NewRecorder()
		p.ServeHTTP(w, r)
		envelope(t, w.Result(), http.StatusNotFound)
	}
}

// envelope fails unless the response is one failure in the envelope, and
// returns its title and detail.
func envelope(t *testing.T, response *http.Response, status int) (title, detail string) {
	t.Helper()
	body, err := io.ReadAll(response.Body)
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
	if err != nil || response.StatusCode != status || len(failed.Errors) != 1 || failed.Errors[0].Status != status ||
		failed.Errors[0].Title == "" || failed.Data != nil || response.Header.Get("Content-Type") != "application/json" {
		t.Errorf("%d %s %.200q (%v), want the envelope with %d", response.StatusCode, response.Header.Get("Content-Type"), body, err, status)
		return "", ""
	}
	return failed.Errors[0].Title, failed.Errors[0].Detail
}
