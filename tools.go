// tools.go: the tools behind ringward or behind a gateway that asks it, one line
// of a file each: which host, which upstream, who may use it, and what passes
// without a login. What cannot be read is not let through.
package main

import (
	"cmp"
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Tool is one line of the file.
type Tool struct {
	host      string   // in small letters, without port
	upstream  *url.URL // scheme and host; nil: a gateway only asks
	groups    []string // whose members may use it; nil: every user
	public    []string // paths, or what they begin with if it ends with a slash, that need no login
	basic     bool     // a user's token is a login as the password of Basic
	preflight bool     // CORS preflights pass
	timeout   time.Duration
	proxy     http.Handler // to upstream; nil without one
}

// Tools are all of them, by host. With one tool for every host it is under "".
type Tools map[string]*Tool

// readTools returns what a file says, or the line that is wrong. A timeout that
// is not given is that one.
func readTools(path string, timeout time.Duration) (Tools, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	tools := Tools{}
	for i, line := range strings.Split(strings.TrimPrefix(string(text), "\ufeff"), "\n") { // some editors put that before the text
		line, _, _ = strings.Cut(line, "#")
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		tool, err := readTool(words, timeout)
		if err == nil && tools[tool.host] != nil {
			err = fmt.Errorf("there is a line for %s already", tool.host)
		}
		if err != nil {
			return nil, fmt.Errorf("%s, line %d: %w", path, i+1, err)
		}
		tools[tool.host] = tool
	}
	if len(tools) == 0 {
		return nil, fmt.Errorf("%s has no tool in it", path)
	}
	return tools, nil
}

func readTool(words []string, timeout time.Duration) (*Tool, error) {
	if len(words) < 2 {
		return nil, fmt.Errorf("a line is: host upstream options, as in wiki.example.com http://127.0.0.1:3000 group=ops")
	}
	tool := &Tool{host: strings.ToLower(words[0]), timeout: timeout}
	if strings.Trim(tool.host, "abcdefghijklmnopqrstuvwxyz0123456789-._") != "" || strings.Trim(tool.host, ".-") != tool.host {
		return nil, fmt.Errorf("a host is like wiki.example.com, without a port, not %q", words[0])
	}
	if words[1] != "-" {
		upstream, err := origin("the upstream", "http://127.0.0.1:3000 (without a path), or - for a gateway that only asks", words[1])
		if err != nil {
			return nil, err
		}
		tool.upstream = upstream
	}
	given := map[string]bool{}
	for _, option := range words[2:] {
		name, _, _ := strings.Cut(option, "=")
		if given[name] {
			return nil, fmt.Errorf("%s is there twice", name)
		}
		given[name] = true
		if err := tool.set(option); err != nil {
			return nil, err
		}
	}
	return tool, nil
}

func (t *Tool) set(option string) (err error) {
	name, value, given := strings.Cut(option, "=")
	switch {
	case name == "basic" && !given:
		t.basic = true
	case name == "preflight" && !given:
		t.preflight = true
	case name == "group":
		t.groups = strings.Split(value, ",")
		for _, group := range t.groups {
			if !isGroup(group) {
				return fmt.Errorf("a group is %s, not %q", groupRule, group)
			}
		}
	case name == "public":
		t.public = strings.Split(value, ",")
		for _, path := range t.public {
			if u, err := url.ParseRequestURI(path); err != nil || path == "/" || strings.Contains(path, "*") || !plainPath(path) || u.EscapedPath() != path {
				return fmt.Errorf("a public path is like /api/health, or /static/ with all below it, not %q", path)
			}
		}
	case name == "timeout":
		if t.timeout, err = time.ParseDuration(value); err != nil || t.timeout <= 0 {
			return fmt.Errorf("a timeout is like 60s or 5m, not %q", value)
		}
	default:
		return fmt.Errorf("%q is no option: they are group=, public=, timeout=, basic, preflight", option)
	}
	return nil
}

const groupRule = "up to 32 of a-z 0-9 . _ -, beginning with a letter or digit"

func isGroup(name string) bool {
	return name != "" && len(name) <= 32 && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789._-") == "" &&
		strings.IndexByte("._-", name[0]) < 0
}

// find returns the tool of a host as a request names it, or nil.
func (t Tools) find(hostport string) *Tool {
	if one := t[""]; one != nil {
		return one
	}
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		host = hostport
	}
	return t[strings.ToLower(strings.TrimSuffix(host, "."))]
}

// plainPath says whether there are not two ways to read a path, as it was sent.
func plainPath(path string) bool {
	decoded, err := url.PathUnescape(path)
	low := strings.ToLower(path)
	return err == nil && utf8.ValidString(decoded) && strings.HasPrefix(path, "/") &&
		!strings.Contains(low, "%2f") && !strings.Contains(low, "%25") &&
		!strings.ContainsFunc(decoded, func(c rune) bool { return unicode.IsControl(c) || c == ';' || c == '\\' }) &&
		!strings.Contains(decoded, "//") && // and no part is dots only, with spaces, which Windows drops
		!slices.ContainsFunc(strings.Split(decoded, "/"), func(part string) bool { return part != "" && strings.Trim(part, ". ") == "" })
}

// opens says whether a request passes to the tool without a login.
func (t *Tool) opens(r *http.Request) bool {
	if t.preflight && r.Method == http.MethodOptions && r.Header.Get("Origin") != "" && r.Header.Get("Access-Control-Request-Method") != "" &&
		r.ContentLength == 0 && r.Header["Upgrade"] == nil && r.Header["Sec-Websocket-Version"] == nil { // which no browser sends there
		return true
	}
	path := cmp.Or(r.URL.RawPath, r.URL.EscapedPath()) // as it was sent, also what EscapedPath would put right
	return slices.ContainsFunc(t.public, func(open string) bool {
		return path == open || strings.HasSuffix(open, "/") && strings.HasPrefix(path, open)
	}) && plainPath(path)
}

// admits says whether a user may use the tool.
func (t *Tool) admits(u User) bool {
	return t.groups == nil || slices.ContainsFunc(t.groups, func(group string) bool { return slices.Contains(strings.Fields(u.Groups), group) })
}

// basicLogin reads the one Authorization of the kind Basic.
func basicLogin(h http.Header) (name, password string, ok bool) {
	lines := h["Authorization"]
	if len(lines) != 1 {
		return "", "", false
	}
	scheme, text, _ := strings.Cut(lines[0], " ")
	name, password, _ = strings.Cut(anyBase64(text), ":")
	name, _ = canonicalName(name)
	return name, password, strings.EqualFold(scheme, "Basic")
}

// anyBase64 decodes what the laxest of tools could: either alphabet, with or
// without padding, and what belongs to neither is not there.
func anyBase64(text string) string {
	decoded, _ := base64.RawStdEncoding.DecodeString(strings.Map(func(c rune) rune {
		switch {
		case c == '-':
			return '+'
		case c == '_':
			return '/'
		case c == '+' || c == '/' || '0' <= c && c <= '9' || 'A' <= c && c <= 'Z' || 'a' <= c && c <= 'z':
			return c
		}
		return -1
	}, text))
	return string(decoded)
}

// withoutToken returns a line of Authorization, or "" where a tool could find
// one of our tokens in it, also one that we would not take there.
func withoutToken(line string) string {
	_, text, _ := strings.Cut(strings.ReplaceAll(line, "\t", " "), " ")
	words := strings.FieldsFunc(line+" "+anyBase64(text), func(c rune) bool { return strings.ContainsRune(" \t:,;=\"'", c) })
	if slices.ContainsFunc(words, func(word string) bool { return strings.HasPrefix(word, "rw_") }) {
		return ""
	}
	return line
}

// challenge asks for what a tool takes for a login. Of Basic, browsers would
// make a dialog.
func (t *Tool) challenge(w http.ResponseWriter, r *http.Request) {
	browser := strings.Contains(r.Header.Get("Accept"), "text/html")
	for name := range r.Header {
		browser = browser || strings.HasPrefix(name, "Sec-Fetch-")
	}
	if t.basic && !browser {
		w.Header().Set("WWW-Authenticate", `Basic realm="ringward"`)
	}
}
