// json_test.go: what is read of a body, and how responses look.
package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"
	"time"
	"unicode/utf16"
	"unicode/utf8"
)

func TestReadJSON(t *testing.T) {
	type object struct{ name, note string }
	padded := func(n int) string { return `{"name":"` + strings.Repeat("x", n-len(`{"name":""}`)) + `"}` }
	cases := []struct {
		body, media string
		status      int // 0: accepted
		want        object
	}{
		{body: `{"name":"a"}`, want: object{name: "a"}},
		{body: " {\"name\" :\t\"a\",\n\"note\":\"b\"} \n", want: object{"a", "b"}},
		{body: `{"name":""}`},
		{body: `{"name":"\u0041\ud83d\ude00\ufffd"}`, want: object{name: "A😀\ufffd"}},
		{body: `{"name":"\\ud800"}`, want: object{name: `\ud800`}},
		{body: "{\"name\":\"\ufffd\"}", want: object{name: "\ufffd"}},
		{body: `{"name":"a"}`, media: "application/json; charset=UTF-8", want: object{name: "a"}},
		{body: padded(maxBody), want: object{name: strings.Repeat("x", maxBody-11)}},
		{body: padded(maxBody + 1), status: 413},
		{body: "", status: 400}, {body: "null", status: 400}, {body: "[]", status: 400}, {body: `"name"`, status: 400}, {body: "{", status: 400},
		{body: "{}", status: 400}, {body: `{"note":"b"}`, status: 400},
		{body: `{"name":"a","name":"b"}`, status: 400}, {body: `{"name":"a","name":"a"}`, status: 400},
		{body: `{"Name":"a"}`, status: 400}, {body: `{"name":"a","Name":"b"}`, status: 400}, {body: `{"ſame":"a"}`, status: 400},
		{body: `{"name":"a","role":"admin"}`, status: 400}, {body: `{"name":"a","":""}`, status: 400},
		{body: `{"name":1}`, status: 400}, {body: `{"name":null}`, status: 400}, {body: `{"name":["a"]}`, status: 400},
		{body: `{"name":{}}`, status: 400}, {body: `{"name":true}`, status: 400}, {body: `{"name":1e400}`, status: 400}, {body: `{"name":"a","note":null}`, status: 400},
		{body: `{"name":"a"}{}`, status: 400}, {body: `{"name":"a"}}`, status: 400}, {body: `{"name":"a"} x`, status: 400},
		{body: "\ufeff" + `{"name":"a"}`, status: 400}, {body: "{\"name\":\"\xff\"}", status: 400}, {body: "{\"name\":\"a\x00\"}", status: 400},
		{body: `{"name":"\ud800"}`, status: 400}, {body: `{"name":"\udc00"}`, status: 400}, {body: `{"name":"\ud800x"}`, status: 400},
		{body: `{"name":"\ud800\ud800"}`, status: 400}, {body: `{"name":"\ud83d\\ude00"}`, status: 400}, {body: `{"\ud800":"a"}`, status: 400},
		{body: strings.Repeat("[", 20000), status: 400},
		{body: `{"name":"a"}`, media: "text/plain", status: 415}, {body: `{"name":"a"}`, media: "-", status: 415},
		{body: `{"name":"a"}`, media: "application/x-www-form-urlencoded", status: 415},
		{body: `{"name":"a"}`, media: "application/json; charset=latin1", status: 415},
	}
	for _, c := range cases {
		r := httptest.NewRequest("POST", "/", strings.NewReader(c.body))
		switch c.media {
		case "":
			r.Header.Set("Content-Type", "application/json")
		case "-":
		default:
			r.Header.Set("Content-Type", c.media)
		}
		w := httptest.NewRecorder()
		var got object
		if ok := readJSON(w, r, fields{"name": &got.name}, fields{"note": &got.note}); ok != (c.status == 0) {
			t.Errorf("%.40q: read %t, status %d, want %d", c.body, ok, w.Code, c.status)
		} else if ok && got != c.want {
			t.Errorf("%.40q: got %.60v, want %.60v", c.body, got, c.want)
		} else if !ok && (w.Code != c.status || !strings.Contains(w.Body.String(), fmt.Sprintf(`"status":%d`, c.status))) {
			t.Errorf("%.40q: %d %s, want %d", c.body, w.Code, w.Body, c.status)
		}
	}
}

func TestBodyThatCannotBeRead(t *testing.T) {
	for _, c := range []struct {
		encoding string
		body     io.Reader
		status   int
	}{
		{"gzip", strings.NewReader(`{"name":"a"}`), 415},
		{"", io.MultiReader(strings.NewReader(`{"name":`), iotest.ErrReader(io.ErrUnexpectedEOF)), 400},
		{"", iotest.ErrReader(fmt.Errorf("wrapped: %w", loginRequired)), 401},
	} {
		r := httptest.NewRequest("POST", "/", c.body)
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Content-Encoding", c.encoding)
		w, name := httptest.NewRecorder(), ""
		if readJSON(w, r, fields{"name": &name}, nil) || w.Code != c.status {
			t.Errorf("%d %s, want %d", w.Code, w.Body, c.status)
		}
	}
}

func TestResponses(t *testing.T) {
	for _, c := range []struct {
		respond     func(w http.ResponseWriter)
		status      int
		retry, body string
	}{
		{func(w http.ResponseWriter) { respond(w, 201, []int{}) }, 201, "", `{"data":[]}`},
		{func(w http.ResponseWriter) { respondError(w, 404, "Not found") }, 404, "", `{"errors":[{"title":"Not found","status":404}]}`},
		{func(w http.ResponseWriter) { respondError(w, 400, "Malformed", "so and so") }, 400, "",
			`{"errors":[{"title":"Malformed","status":400,"detail":"so and so"}]}`},
		{(&refusal{403, "No", "", 0}).respond, 403, "", `{"errors":[{"title":"No","status":403}]}`},
		{(&refusal{429, "Later", "", time.Second}).respond, 429, "1", `{"errors":[{"title":"Later","status":429}]}`},
		{(&refusal{429, "Later", "", time.Second + 1}).respond, 429, "2", `{"errors":[{"title":"Later","status":429}]}`},
		{(&refusal{429, "Later", "", 1}).respond, 429, "1", `{"errors":[{"title":"Later","status":429}]}`},
	} {
		w := httptest.NewRecorder()
		c.respond(w)
		if h := w.Header(); w.Code != c.status || w.Body.String() != c.body || h.Get("Retry-After") != c.retry ||
			h.Get("Content-Type") != "application/json" || h.Get("Content-Length") != strconv.Itoa(len(c.body)) {
			t.Errorf("%d %v %s, want %d %s", w.Code, w.Header(), w.Body, c.status, c.body)
		}
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
		"\ufeff{}", `null`, `[]`, `{}`, ``, `{"username":"a","password":"b",}`, `{"note":"","username":"a","password":"b"}`, "{\"username\":\"\ufffd\",\"password\":\"\\ufffd\"}",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var username, password, note string
		err := decodeObject([]byte(text), fields{"username": &username, "password": &password}, fields{"note": &note})
		want, ok := strictObject(text)
		for name := range want {
			ok = ok && slices.Contains([]string{"username", "password", "note"}, name)
		}
		_, hasName := want["username"]
		_, hasPassword := want["password"]
		if ok = ok && hasName && hasPassword; (err == nil) != ok {
			t.Fatalf("%q: %v, want an error: %v", text, err, !ok)
		}
		if ok && (username != want["username"] || password != want["password"] || note != want["note"]) {
			t.Fatalf("%q: %q, %q, %q, want %q", text, username, password, note, want)
		}
	})
}

// A body that is too large is not waited for, and the connection ends with it.
func TestTooLargeEndsTheConnection(t *testing.T) {
	server := httptest.NewServer(newAccountServer(t).program)
	defer server.Close()
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	fmt.Fprintf(conn, "POST /auth/session HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
		100000, strings.Repeat(" ", 70000))
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	if response.StatusCode != http.StatusRequestEntityTooLarge || !response.Close {
		t.Errorf("%s, close: %v", response.Status, response.Close)
	}
}
