// tools.go: the tools behind ringward or behind a gateway that asks it, one line
// of a file each: which host, which upstream, who may use it, and what passes
// without a login. What cannot be read is not let through.
package main

import (
	"bufio"
	"encoding/base64"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"
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
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	tools := Tools{}
	lines := bufio.NewScanner(file)
	for n := 1; lines.Scan(); n++ {
		text, _, _ := strings.Cut(lines.Text(), "#")
		words := strings.Fields(text)
		if len(words) == 0 {
			continue
		}
		tool, err := readTool(words, timeout)
		if err == nil && tools[tool.host] != nil {
			err = fmt.Errorf("there is a line for %s already", tool.host)
		}
		if err != nil {
			return nil, fmt.Errorf("%s, line %d: %w", path, n, err)
		}
		tools[tool.host] = tool
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
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
	if strings.Trim(tool.host, "abcdefghijklmnopqrstuvwxyz0123456789-._") != "" || tool.host[0] == '.' || tool.host[0] == '-' {
		return nil, fmt.Errorf("a host is like wiki.example.com, without a port, not %q", words[0])
	}
	if words[1] != "-" {
		upstream, err := origin("the upstream", "http://127.0.0.1:3000 (without a path), or - for a gateway that only asks", words[1])
		if err != nil {
			return nil, err
		}
		tool.upstream = upstream
	}
	for _, word := range words[2:] {
		if err := tool.set(word); err != nil {
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
	case name == "group" && t.groups == nil:
		t.groups = strings.Split(value, ",")
		for _, group := range t.groups {
			if !isGroup(group) {
				return fmt.Errorf("a group is %s, not %q", groupRule, group)
			}
		}
	case name == "public" && t.public == nil:
		t.public = strings.Split(value, ",")
		for _, path := range t.public {
			if !strings.HasPrefix(path, "/") || path == "/" || !plainPath(path) {
				return fmt.Errorf("a public path is like /api/health, or /static/ with all below it, not %q", path)
			}
		}
	case name == "timeout":
		if t.timeout, err = time.ParseDuration(value); err != nil || t.timeout <= 0 {
			return fmt.Errorf("a timeout is like 60s or 5m, not %q", value)
		}
	default:
		return fmt.Errorf("%q is no option, or is there twice: they are group=, public=, timeout=, basic, preflight", option)
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
	return err == nil && strings.HasPrefix(path, "/") && !strings.Contains(low, "%2f") && !strings.Contains(low, "%5c") && !strings.Contains(low, "%25") &&
		!strings.ContainsFunc(decoded, func(c rune) bool { return c < ' ' || c == 0x7F || c == ';' || c == '\\' }) &&
		!strings.Contains(decoded, "//") && !slices.ContainsFunc(strings.Split(decoded, "/"), func(part string) bool { return part == "." || part == ".." })
}

// opens says whether a request passes to the tool without a login.
func (t *Tool) opens(r *http.Request) bool {
	if t.preflight && r.Method == http.MethodOptions && r.Header.Get("Origin") != "" && r.Header.Get("Access-Control-Request-Method") != "" {
		return true
	}
	path := r.URL.EscapedPath()
	return plainPath(path) && slices.ContainsFunc(t.public, func(open string) bool {
		return path == open || strings.HasSuffix(open, "/") && strings.HasPrefix(path, open)
	})
}

// admits says whether a user may use the tool.
func (t *Tool) admits(u User) bool {
	return t.groups == nil || slices.ContainsFunc(t.groups, func(group string) bool { return slices.Contains(strings.Fields(u.Groups), group) })
}

// decide is what a request for a tool comes to, whether we pass it on or a
// gateway asks: whose it is, nobody's where the tool is open to all, or an
// error: fs.ErrNotExist where somebody has to log in, or a refusal.
func (g *Gateway) decide(r *http.Request, tool *Tool, now time.Time) (Login, error) {
	if tool.opens(r) {
		return Login{}, nil
	}
	if err := g.auth.sameSite(r); err != nil {
		return Login{}, err
	}
	var l Login
	var err error
	if name, password, ok := basicLogin(r.Header); tool.basic && ok && tokenIn(r.Header) == "" {
		if !strings.HasPrefix(password, "rw_") { // a real password does not belong here, and costs no bcrypt
			return l, fs.ErrNotExist
		}
		if l, err = g.auth.tokenLogin(password, now); err == nil && l.User.Name != name {
			err = fs.ErrNotExist
		}
	} else {
		l, err = g.auth.check(r, now)
	}
	if err == nil && !tool.admits(l.User) {
		err = &refusal{http.StatusForbidden, "Not for you", "this needs a group that you are not in", 0}
	}
	return l, err
}

// basicLogin reads the one Authorization of the kind Basic.
func basicLogin(h http.Header) (name, password string, ok bool) {
	lines := h["Authorization"]
	if len(lines) != 1 {
		return "", "", false
	}
	scheme, text, _ := strings.Cut(lines[0], " ")
	decoded, err := base64.StdEncoding.DecodeString(strings.Trim(text, " "))
	name, password, ok = strings.Cut(string(decoded), ":")
	name, _ = canonicalName(name)
	return name, password, ok && err == nil && strings.EqualFold(scheme, "Basic")
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

// serve passes requests for tools on, or responds.
func (g *Gateway) serve(w http.ResponseWriter, r *http.Request) {
	tool := g.tools.Load().find(r.Host)
	if tool == nil || tool.proxy == nil {
		if r.URL.Path == "/" && tool == nil && (g.public == nil || strings.EqualFold(r.Host, g.public.Host)) {
			w.Header().Set("Location", g.prefix+"/account")
			w.WriteHeader(http.StatusSeeOther)
			return
		}
		respondError(w, http.StatusMisdirectedRequest, "There is no tool of that name here")
		return
	}
	w.Header().Set("Cache-Control", "no-store")
	l, err := g.decide(r, tool, time.Now())
	if err == nil && l.User.Name != "" {
		err = g.auth.welcome(w, r, &l)
	}
	if err != nil {
		g.refuse(w, r, tool, g.loginURL(r, r.URL.RequestURI()), err)
		return
	}
	tool.proxy.ServeHTTP(w, withLogin(r, l, func() error { return g.still(r) }))
}

// still decides again, by the tools and groups as they are now.
func (g *Gateway) still(r *http.Request) error {
	tool := g.tools.Load().find(r.Host)
	if tool == nil {
		return fs.ErrNotExist
	}
	_, err := g.decide(r, tool, time.Now())
	return err
}
