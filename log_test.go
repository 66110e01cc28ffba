// log_test.go tests that the log tells on one line what happened, and that
// whatever becomes of it stops nothing.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// chunks is what a lineWriter writes to.
type chunks []string

func (c *chunks) Write(b []byte) (int, error) {
	*c = append(*c, string(b))
	return len(b), nil
}

func TestLinesOfAMillisecondGoOutAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lines, out := newLineWriter(), new(chunks)
		go lines.run(out)
		line := []byte("line 0\n")
		for i := range 3 {
			for range 2 {
				line[5] = '0' + byte(i)
				if n, err := lines.Write(line); n != len(line) || err != nil {
					t.Fatal(n, err)
				}
				line[5] = '-' // it is the caller's again
				synctest.Wait()
			}
			time.Sleep(2 * time.Millisecond)
		}
		lines.Write([]byte("last\n"))
		start := time.Now()
		lines.end()
		if got, want := fmt.Sprintf("%q", *out), `["line 0\nline 0\n" "line 1\nline 1\n" "line 2\nline 2\n" "last\n"]`; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		if took := time.Since(start); took > 2*time.Millisecond {
			t.Errorf("the end took %v", took)
		}
	})
}

func TestLinesOfManyAreWhole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lines, out := newLineWriter(), new(chunks)
		var all sync.WaitGroup
		for writer := range 8 { // together as many as can wait
			all.Go(func() {
				for i := range maxLines / 8 {
					fmt.Fprintf(lines, "writer %d line %d of %s\n", writer, i, strings.Repeat("x", i%300))
				}
			})
		}
		all.Wait()
		go lines.run(out)
		lines.end()
		next := [8]int{}
		for line := range strings.Lines(strings.Join(*out, "")) {
			var writer, i int
			var rest string
			if n, err := fmt.Sscanf(line, "writer %d line %d of %s\n", &writer, &i, &rest); n < 2 || i != next[writer] || len(rest) != i%300 {
				t.Fatalf("%v: after %d lines of a writer came %q", err, next[writer], line)
			}
			next[writer]++
		}
		for writer, n := range next {
			if n != maxLines/8 {
				t.Errorf("%d lines of writer %d", n, writer)
			}
		}
	})
}

// A stderr that nobody reads: no line waits for it, and what is lost is said
// when it is read again, in the format of the log.
func TestStuckStderrStopsNothing(t *testing.T) {
	for _, asJSON := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			lines := newLineWriter()
			reader, writer := io.Pipe()
			go func() { lines.run(writer); writer.Close() }()
			log := newLogger(lines, asJSON)
			log.Info("first")
			time.Sleep(time.Second)
			const lost = 100
			for i := range maxLines + lost {
				log.Info("request", "i", i)
			}
			ended := make(chan time.Duration)
			go func() {
				start := time.Now()
				lines.end()
				ended <- time.Since(start)
			}()
			if took := <-ended; took != time.Second {
				t.Errorf("the end waited for %v", took)
			}
			go func() {
				time.Sleep(time.Minute) // it has been written by then
				lines.end()
			}()
			text, err := io.ReadAll(reader)
			if err != nil {
				t.Fatal(err)
			}
			written, notes := 0, []string{}
			for line := range strings.Lines(string(text)) {
				oneLine(t, line, asJSON)
				if written++; strings.Contains(line, "dropped") {
					notes = append(notes, strings.ReplaceAll(line, `"`, ""))
				}
			}
			if len(notes) != 1 || !strings.Contains(notes[0], "WARN") || !regexp.MustCompile(`log lines were dropped.*lines[=:]100\b`).MatchString(notes[0]) || written != 1+maxLines+1 {
				t.Errorf("%d lines, and of those that are lost: %q", written, notes)
			}
		})
	}
}

func TestFailingStderrStopsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lines, calls := newLineWriter(), 0
		go lines.run(writerFunc(func([]byte) (int, error) { calls++; return 0, errors.New("no space left on device") }))
		log := newLogger(lines, false)
		for range 3 {
			log.Info("request")
			time.Sleep(time.Second)
		}
		lines.end()
		if calls < 3 {
			t.Errorf("%d lines were tried", calls)
		}
	})
}

// A request that outlives the server logs into the void.
func TestLineAfterTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lines := newLineWriter()
		var out bytes.Buffer
		go lines.run(&out)
		lines.end()
		for range 2 * maxLines {
			fmt.Fprintln(lines, "late")
		}
		lines.end() // a second one returns too
		if out.Len() > 0 {
			t.Errorf("got %.100s", &out)
		}
	})
}

func TestRequestIDIsOnEveryLineOfTheRequest(t *testing.T) {
	out := new(bytes.Buffer)
	ctx := context.WithValue(t.Context(), infoKey{}, &requestInfo{id: "REQUEST"})
	for _, asJSON := range []bool{false, true} {
		log := newLogger(out, asJSON)
		for _, log := range []*slog.Logger{log, log.With("a", 1), log.WithGroup("g")} {
			out.Reset()
			log.InfoContext(ctx, "event", "b", 2)
			if got := out.String(); strings.Count(got, "REQUEST") != 1 || strings.Count(got, "\n") != 1 {
				t.Errorf("got %q", got)
			}
			out.Reset()
			log.Info("event")
			if got := out.String(); strings.Contains(got, "id") {
				t.Errorf("outside of a request: %q", got)
			}
		}
	}
}

func TestTimesOfTheLogAreUTC(t *testing.T) {
	out := new(bytes.Buffer)
	at := time.Date(2026, 2, 3, 0, 5, 6, 7_899_999, time.FixedZone("", 3600))
	newLogger(out, true).Handler().Handle(t.Context(), slog.NewRecord(at, slog.LevelInfo, "event", 0))
	if got := out.String(); !strings.Contains(got, `"time":"2026-02-02T23:05:06.007Z"`) {
		t.Errorf("got %s", got)
	}
}

// nastyText is what somebody may send to write lines of their own.
var nastyText = []string{
	"a\nlevel=ERROR msg=forged", "a\r\nb", "\x1b[2J\x1b]0;title\x07", "\u2028\u2029\u0085", "\x00\x7f\x9b", "\xff\xfe\xc0\xaf",
	`a" msg="forged`, `","msg":"forged`, "\u202egnp", "a b=c", strings.Repeat("x", 10_000), strings.Repeat("\u202e", 10_000), "",
}

// oneLine fails unless text is one line. Text for a terminal has nothing in it
// that moves the cursor or the reader's eye; JSON escapes less.
func oneLine(t *testing.T, text string, asJSON bool) {
	t.Helper()
	line, ok := strings.CutSuffix(text, "\n")
	if !ok || strings.ContainsFunc(line, func(c rune) bool { return c < ' ' || !asJSON && !strconv.IsPrint(c) }) {
		t.Errorf("not one clean line: %q", text)
	}
	if asJSON && !json.Valid([]byte(line)) {
		t.Errorf("not JSON: %q", text)
	}
}

func TestOneLineWhateverTheInput(t *testing.T) {
	out := new(bytes.Buffer)
	for _, input := range nastyText {
		for _, asJSON := range []bool{false, true} {
			out.Reset()
			newLogger(out, asJSON).Info("event", "user", input, "msg", input)
			oneLine(t, out.String(), asJSON)
		}
	}
}

// Every request has one line, with these fields in this order.
func TestRequestLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // it is the first of January 2000
		for _, asJSON := range []bool{false, true} {
			out := new(bytes.Buffer)
			p := &Protect{log: newLogger(out, asJSON), gateway: plainGateway(), web: plainWeb, next: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				time.Sleep(1500 * time.Microsecond)
				seenUser(r, "frodo")
				w.WriteHeader(http.StatusTeapot)
			})}
			time.Sleep(12345 * time.Microsecond)
			p.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "http://localhost/a/%20b;c=d?password=secret", nil))
			stamp := time.Now().UTC().Format("2006-01-02T15:04:05.000Z")
			want := `^time=` + stamp + ` level=INFO msg=request method=GET path="/a/%20b;c=d" status=418 duration=1.5ms user=frodo addr=192.0.2.1 id=[a-z0-9]{1,13}\n$`
			if asJSON {
				want = `^{"time":"` + strings.TrimSuffix(strings.TrimRight(strings.TrimSuffix(stamp, "Z"), "0"), ".") + `Z","level":"INFO","msg":"request","method":"GET","path":"/a/%20b;c=d","status":418,"duration":1500000,"user":"frodo","addr":"192.0.2.1","id":"[a-z0-9]{1,13}"}\n$`
			}
			if got := out.String(); !regexp.MustCompile(want).MatchString(got) {
				t.Errorf("got %swant %s", got, want)
			}
		}
	})
}

// Whatever strangers send is escaped and cut, in either format.
func TestRequestLineOfNastyRequests(t *testing.T) {
	out := new(bytes.Buffer)
	for _, text := range append(nastyText, "M-SEARCH") {
		for _, asJSON := range []bool{false, true} {
			for field, r := range map[string]*http.Request{
				"method": {Method: text, URL: &url.URL{Path: "/"}}, // over HTTP/2 it is any text
				"path":   {Method: "GET", URL: &url.URL{Path: "/" + text}},
				"host":   {Method: "GET", URL: &url.URL{Path: "/"}, Host: text},
				"query":  {Method: "GET", URL: &url.URL{Path: "/", RawQuery: text}},
				"agent":  {Method: "GET", URL: &url.URL{Path: "/"}, Header: http.Header{"User-Agent": {text}, "Referer": {text}, "X-Forwarded-For": {text}}},
			} {
				if r.Host == "" && field != "host" {
					r.Host = "localhost"
				}
				out.Reset()
				gateway := plainGateway()
				trust("0.0.0.0/0")(gateway)
				r.RemoteAddr = "192.0.2.1:80"
				(&Protect{next: http.NotFoundHandler(), log: newLogger(out, asJSON), gateway: gateway, web: plainWeb}).ServeHTTP(httptest.NewRecorder(), r)
				oneLine(t, out.String(), asJSON)
				line := strings.Replace(out.String(), "µs", "us", 1)
				if n := len(line); n > 1100 || strings.ContainsFunc(line, func(c rune) bool { return c > '~' }) || strings.Count(line, " msg=")+strings.Count(line, `"msg":`) != 1 {
					t.Errorf("%s %.20q: %d bytes: %s", field, text, n, out)
				}
				if field == "method" && text == "M-SEARCH" && !strings.Contains(out.String(), text) {
					t.Errorf("%s is shown as %s", text, out)
				}
			}
		}
	}
}

// Under /auth/ the log has the route: what is in a path may be the secret of
// an invite, also where the path was spelled wrong.
func TestPathInTheLog(t *testing.T) {
	const secret = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFG"
	s := newAccountServer(t)
	own := s.Handler
	proxied := newTestProgram(t, s.store, io.Discard, "-proxy", "http://127.0.0.1:1").next
	for _, c := range []struct{ method, path, want string }{
		{"POST", "/auth/session", "/auth/session"},
		{"GET", "/auth/invites/" + secret, "/auth/invites/{token}"},
		{"POST", "/auth/invites/" + secret, "/auth/invites/{token}"},
		{"PUT", "/auth/invites/" + secret, "/auth/..."},
		{"GET", "/auth/invites/" + secret + "/more", "/auth/..."},
		{"GET", "/auth/invite" + secret, "/auth/..."}, // of a link whose # was lost on its way
		{"GET", "/auth/invite%23" + secret, "/auth/..."},
		{"GET", "/auth/invite%2523" + secret, "/auth/..."},
		{"GET", "/auth/invites%2F" + secret, "/auth/..."},
		{"GET", "/auth%2Finvites/" + secret, "/auth/..."},
		{"GET", "/auth/Invites/" + secret, "/auth/..."},
		{"GET", "/AUTH/invites/" + secret, "/auth/..."},
		{"GET", "//auth/invites/" + secret, "/auth/invites/{token}"}, // of a base URL that ends in a slash
		{"GET", "/auth//invites/" + secret, "/auth/invites/{token}"},
		{"GET", "/x/../auth/invites/" + secret, "/auth/invites/{token}"},
		{"GET", "/./auth/invites/" + secret, "/auth/invites/{token}"},
		{"GET", "/auth/invites/%0A" + secret, "/auth/invites/{token}"},
		{"DELETE", "/auth/sessions/" + secret, "/auth/sessions/{id}"},
		{"DELETE", "/auth/tokens/rw_" + secret, "/auth/tokens/{id}"},
		{"GET", "/auth/verify?redirect&uri=/" + secret, "/auth/verify"},
		{"GET", "/auth/", "/auth/"},
		{"GET", "/healthz", "/healthz"},
		{"GET", "/authors/x", "/authors/x"},
		{"GET", "/x/rw_" + secret, "/x/rw_..."},
		{"GET", "/x%2Frw%5F" + secret, "/x/rw_..."},
		{"GET", "/" + strings.Repeat("x", 190) + "rw_" + secret, "/" + strings.Repeat("x", 190) + "rw_......"},
		{"OPTIONS", "*", "*"},
	} {
		for name, next := range map[string]http.Handler{"alone": own, "before a tool": proxied} {
			for _, asJSON := range []bool{false, true} {
				out := new(bytes.Buffer)
				p := &Protect{next: next, log: newLogger(out, asJSON), gateway: plainGateway(), web: plainWeb}
				s.auth.Log = p.log
				r := httptest.NewRequest(c.method, "http://localhost", nil)
				target, err := url.ParseRequestURI(c.path)
				if err != nil {
					t.Fatal(err)
				}
				r.URL, r.RequestURI = target, c.path
				p.ServeHTTP(httptest.NewRecorder(), r)
				if strings.Contains(out.String(), secret[:20]) {
					t.Errorf("%s %s, %s: the log has %s", c.method, c.path, name, out)
				}
				if shown := regexp.MustCompile(`path("?[=:]"?)([^" ]*)`).FindStringSubmatch(out.String()); name == "alone" && (shown == nil || shown[2] != c.want) {
					t.Errorf("%s %s is shown as %q, want %s", c.method, c.path, shown, c.want)
				}
			}
		}
	}
}

// The line of a request has who it is of, however they were let in.
func TestUserInTheLog(t *testing.T) {
	s := newAccountServer(t)
	out := new(bytes.Buffer)
	s.Handler = &Protect{next: s.Handler, log: newLogger(out, false), gateway: plainGateway(), web: plainWeb, public: "example.com"}
	cookie := s.enter("frodo", testPassword)
	token := s.token(cookie, `{"name":"x"}`).Token
	for _, c := range []struct{ method, path, body, name, value, want string }{
		{"GET", "/ringsofpower", "", "Cookie", cookie, "frodo"},
		{"GET", "/ringsofpower", "", "Authorization", "Bearer " + token, "frodo"},
		{"GET", "/auth/verify", "", "Cookie", cookie, "frodo"},
		{"POST", "/auth/session", credentials("SAM", testPassword), "X-Nothing", "", "sam"},
		{"POST", "/auth/session", credentials("frodo", "wrong"), "X-Nothing", "", `""`},
		{"POST", "/auth/invites/" + s.invite("sam"), `{"password":"` + newPassword + `"}`, "X-Nothing", "", "sam"},
		{"GET", "/healthz", "", "Cookie", cookie, `""`},
		{"DELETE", "/auth/session", "", "Cookie", cookie, "frodo"},
		{"DELETE", "/auth/session", "", "Cookie", cookie, `""`},
	} {
		out.Reset()
		s.do(c.method, c.path, c.body, c.name, c.value)
		if !strings.Contains(out.String(), " user="+c.want+" ") {
			t.Errorf("%s %s: want user %s in %s", c.method, c.path, c.want, out)
		}
	}
}
