package main

import (
	"bytes"
	"compress/gzip"
	"io"
	"io/fs"
	"net/http/httptest"
	"net/url"
	"path"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

func webFile(t *testing.T, name string) string {
	t.Helper()
	b, err := webFiles.ReadFile("web/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func webNames(t *testing.T) (names []string) {
	t.Helper()
	entries, err := fs.ReadDir(webFiles, "web")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestPageIsServed(t *testing.T) {
	types := map[string]string{".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
	for _, name := range webNames(t) {
		h, want := plainWeb.page(name), plainWeb.file(name)
		for _, method := range []string{"GET", "HEAD"} {
			for _, accept := range []string{"", "br", "gzip, deflate, br", "br;q=1, GZIP ; q=0.5", "gzip;q=0", "gzip;q=none"} {
				w := httptest.NewRecorder()
				r := httptest.NewRequest(method, "/", nil)
				r.Header.Set("Accept-Encoding", accept)
				h.ServeHTTP(w, r)
				header, body := w.Result().Header, w.Body.Bytes()
				if got := header.Get("Content-Type"); got != types[path.Ext(name)]+"; charset=utf-8" {
					t.Errorf("%s is %s", name, got)
				}
				if header.Get("Vary") != "Accept-Encoding" {
					t.Errorf("%s does not say that it varies", name)
				}
				zipped := header.Get("Content-Encoding") == "gzip"
				if zipped != (accept == "gzip, deflate, br" || accept == "br;q=1, GZIP ; q=0.5") {
					t.Errorf("%s with Accept-Encoding %q: gzip is %v", name, accept, zipped)
				}
				length, _ := strconv.Atoi(header.Get("Content-Length"))
				if method == "HEAD" {
					if len(body) != 0 || length == 0 {
						t.Errorf("HEAD of %s: a body of %d, Content-Length %d", name, len(body), length)
					}
					continue
				}
				if length != len(body) {
					t.Errorf("%s: Content-Length %d for %d bytes", name, length, len(body))
				}
				if zipped {
					z, err := gzip.NewReader(bytes.NewReader(body))
					if err != nil {
						t.Fatal(err)
					}
					if body, err = io.ReadAll(z); err != nil {
						t.Fatal(err)
					}
				}
				if string(body) != want {
					t.Errorf("%s arrives changed", name)
				}
			}
		}
	}
}

func TestPageThatIsNotThere(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("a route to a page that is not there does not stop the start")
		}
	}()
	plainWeb.page("nothing.html")
}

var (
	reTag   = regexp.MustCompile(`<([a-z0-9]+)((?:\s+[a-z-]+(?:="[^"]*")?)*)\s*/?>`)
	reAttr  = regexp.MustCompile(`([a-z-]+)(?:="([^"]*)")?`)
	reAsset = regexp.MustCompile(`(?:src|href)="(/auth/[a-z.]+\.(?:css|js|svg))"`)
)

type tag struct {
	name  string
	attrs map[string]string
}

func tags(html string) (all []tag) {
	for _, m := range reTag.FindAllStringSubmatch(html, -1) {
		one := tag{m[1], map[string]string{}}
		for _, a := range reAttr.FindAllStringSubmatch(m[2], -1) {
			one.attrs[a[1]] = a[2]
		}
		all = append(all, one)
	}
	return all
}

var webPages = []string{"login.html", "invite.html", "rings.html", "account.html"}

// Uncompressed, with all that a page brings along: under 40 KB.
func TestPageSizes(t *testing.T) {
	for _, name := range webPages {
		html := webFile(t, name)
		size := len(html)
		seen := map[string]bool{}
		for _, m := range reAsset.FindAllStringSubmatch(html, -1) {
			if !seen[m[1]] {
				seen[m[1]] = true
				size += len(webFile(t, path.Base(m[1])))
			}
		}
		if len(seen) != 3 {
			t.Errorf("%s brings %v, not a style, a script and an icon", name, seen)
		}
		if size >= 40_000 {
			t.Errorf("%s is %d bytes in all", name, size)
		}
	}
}

// What the Content-Security-Policy forbids, and what would reach elsewhere.
func TestPagesAreStatic(t *testing.T) {
	for _, name := range webNames(t) {
		text := webFile(t, name)
		for _, bad := range []string{"innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function",
			"localStorage", "sessionStorage", "document.cookie", "postMessage", "@import", "url(", "data:", "javascript:"} {
			if strings.Contains(text, bad) {
				t.Errorf("%s has %s", name, bad)
			}
		}
		if rest := strings.ReplaceAll(text, "http://www.w3.org/2000/svg", ""); strings.Contains(rest, "://") || strings.Contains(rest, `="//`) {
			t.Errorf("%s has an address elsewhere", name)
		}
	}
	for _, name := range webPages {
		html := webFile(t, name)
		if strings.Contains(html, "<style") {
			t.Errorf("%s has a style of its own", name)
		}
		for _, one := range tags(html) {
			for attr := range one.attrs {
				if attr == "style" || strings.HasPrefix(attr, "on") {
					t.Errorf("%s: <%s> has %s", name, one.name, attr)
				}
			}
			if one.name == "script" && one.attrs["src"] != "/auth/script.js" {
				t.Errorf("%s has a script of its own", name)
			}
		}
		if !strings.Contains(html, "<noscript>") || !strings.Contains(html, `<html lang="en">`) {
			t.Errorf("%s lacks a noscript line or its language", name)
		}
	}
}

func TestFormsAreForPeople(t *testing.T) {
	secrets := map[string][]string{
		"login.html":   {"current-password"},
		"invite.html":  {"new-password"},
		"account.html": {"current-password", "new-password", "current-password"},
		"rings.html":   nil,
	}
	for _, name := range webPages {
		html := webFile(t, name)
		labels, ids := map[string]bool{}, map[string]bool{}
		for _, one := range tags(html) {
			if one.name == "label" {
				labels[one.attrs["for"]] = true
			}
			if id := one.attrs["id"]; id != "" {
				if ids[id] {
					t.Errorf("%s has the id %s twice", name, id)
				}
				ids[id] = true
			}
		}
		var passwords []string
		usernames := 0
		for _, one := range tags(html) {
			switch one.name {
			case "form":
				// A browser that submits before the script runs must not put a
				// password into the address.
				if name != "rings.html" && one.attrs["method"] != "post" {
					t.Errorf("%s: form %s would send its fields in the address", name, one.attrs["id"])
				}
			case "input", "select":
				if !labels[one.attrs["id"]] && one.attrs["aria-label"] == "" {
					t.Errorf("%s: nothing labels %v", name, one.attrs)
				}
				if one.name == "input" && one.attrs["autocomplete"] == "" {
					t.Errorf("%s: %v does not say what may fill it", name, one.attrs)
				}
				if one.attrs["type"] == "password" {
					passwords = append(passwords, one.attrs["autocomplete"])
				}
				if strings.HasPrefix(one.attrs["autocomplete"], "username") {
					usernames++
				}
				if one.attrs["maxlength"]+one.attrs["pattern"] != "" || (one.attrs["minlength"] == "{min}") != (one.attrs["autocomplete"] == "new-password") {
					t.Errorf("%s: %v has a rule of its own, the API has them", name, one.attrs)
				}
			}
		}
		if strings.Join(passwords, " ") != strings.Join(secrets[name], " ") {
			t.Errorf("%s asks for %v", name, passwords)
		}
		if want := map[string]int{"login.html": 1, "invite.html": 1, "account.html": 2}[name]; usernames != want {
			t.Errorf("%s has %d usernames for a password manager", name, usernames)
		}
	}
}

// A form that is none is refused before anybody's password is looked at.
func TestLoginFormBody(t *testing.T) {
	const form = "application/x-www-form-urlencoded"
	good := "username=frodo&password=" + url.QueryEscape(testPassword)
	padded := good + "&more=" + strings.Repeat("x", maxBody-len(good+"&more="))
	for name, test := range map[string]struct {
		kind, body string
		status     int
	}{
		"good":            {form, good, 303},
		"with a charset":  {form + "; charset=utf-8", good, 303},
		"as large as may": {form, padded, 303},
		"too large":       {form, padded + "x", 413},
		"no type":         {"", good, 415},
		"text":            {"text/plain", good, 415},
		"JSON":            {"application/json", credentials("frodo", testPassword), 415},
		"multipart":       {"multipart/form-data; boundary=x", "--x\r\nContent-Disposition: form-data; name=\"username\"\r\n\r\nfrodo\r\n--x--", 415},
		"malformed":       {form, good + "%", 400},
	} {
		s := newAccountServer(t)
		w := s.do("POST", "/auth/login?next=%zz", test.body, "Content-Type", test.kind)
		if w.Code != test.status || (w.Header()["Set-Cookie"] != nil) != (test.status == 303) {
			t.Errorf("%s: got %d %s, want %d", name, w.Code, w.Body, test.status)
		}
		if test.status != 303 && s.log.Len() != 0 {
			t.Errorf("%s: somebody's login was tried: %s", name, s.log)
		}
	}
}
