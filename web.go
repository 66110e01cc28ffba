// web.go: the pages for people, and the login without JavaScript. The pages are
// the files of web/, which call the JSON API with fetch; there is no build step.
// What depends on the configuration is put in once, at the start.
package main

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"embed"
	"errors"
	"fmt"
	"html"
	"io"
	"io/fs"
	"mime"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
	"time"
)

//go:embed web
var webFiles embed.FS

// webTypes is a list of its own: package mime would ask the machine, and a
// machine may call a script text/plain, which nosniff then keeps from running.
var webTypes = map[string]string{
	".html": "text/html; charset=utf-8",
	".css":  "text/css; charset=utf-8",
	".js":   "text/javascript; charset=utf-8",
	".svg":  "image/svg+xml; charset=utf-8",
}

// Web is the pages. In the files, /auth/ is where our own paths begin, and
// words in braces are replaced.
type Web struct {
	prefix  string
	content *strings.Replacer
}

// newWeb is for a login to what has that title, by browsers that reach it at
// the public address, "" if it is not known, and can use passkeys at another.
// minLength is of passwords.
func newWeb(prefix, title, public, passkeys string, minLength int) *Web {
	return &Web{prefix, strings.NewReplacer("/auth/", prefix+"/",
		"{title}", html.EscapeString(title), "{public}", html.EscapeString(public), "{passkeys}", html.EscapeString(passkeys),
		"{min}", strconv.Itoa(minLength))}
}

// file returns what is in web/. It panics for a name that is not there, which
// is a mistake in the route list and shows at the first start.
func (p *Web) file(name string) string {
	b, err := webFiles.ReadFile("web/" + name)
	app, err2 := webFiles.ReadFile("web/app.html") // is in several pages
	if err := cmp.Or(err, err2); err != nil {
		panic(err)
	}
	return p.content.Replace(strings.Replace(string(b), "{app}", string(app), 1))
}

// page serves one file of web/.
func (p *Web) page(name string) http.Handler {
	plain := []byte(p.file(name))
	kind := webTypes[path.Ext(name)]
	if kind == "" {
		panic("web/" + name + ": no Content-Type for this kind of file")
	}
	// Pages are no-store, so each visit brings them again: small pays. They hold
	// no secret that the size of a compressed response could give away.
	var zipped bytes.Buffer
	z, _ := gzip.NewWriterLevel(&zipped, gzip.BestCompression)
	z.Write(plain)
	z.Close()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body := plain
		w.Header().Set("Vary", "Accept-Encoding")
		if acceptsGzip(r.Header.Get("Accept-Encoding")) {
			w.Header().Set("Content-Encoding", "gzip")
			body = zipped.Bytes()
		}
		w.Header().Set("Content-Type", kind)
		w.Header().Set("Content-Length", strconv.Itoa(len(body))) // a HEAD has no body to count
		if r.Method != http.MethodHead {
			w.Write(body)
		}
	})
}

// acceptsGzip reads an Accept-Encoding like "br;q=1, gzip;q=0.5". A q of zero
// means never.
func acceptsGzip(header string) bool {
	for coding := range strings.SplitSeq(header, ",") {
		name, weight, _ := strings.Cut(coding, ";")
		if strings.EqualFold(strings.TrimSpace(name), "gzip") {
			_, q, given := strings.Cut(weight, "=")
			value, err := strconv.ParseFloat(strings.TrimSpace(q), 64)
			return !given || err == nil && value > 0
		}
	}
	return false
}

// respondWith sends a file of web/ with words put in for more names in braces.
func (p *Web) respondWith(w http.ResponseWriter, status int, name string, words ...string) {
	for i := 1; i < len(words); i += 2 {
		words[i] = html.EscapeString(words[i])
	}
	w.Header().Set("Content-Type", webTypes[".html"])
	w.Header().Del("Content-Length")
	w.WriteHeader(status)
	strings.NewReplacer(words...).WriteString(w, p.file(name))
}

// handleLoginPage is GET /auth/login: who is logged in goes on to next, and
// anybody else is told why they are here.
func (p *Web) handleLoginPage(gateway *Gateway, accounts accountStore) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		_, err := gateway.auth.check(r, time.Now())
		if err == nil {
			gateway.handleContinue(w, r)
			return
		}
		why := ""
		first, _ := accounts.empty() // where the store fails, the login will say so
		switch {
		case first:
			why = "There are no users yet. The link for the first one is in the server's log."
		case errors.Is(err, errSeveralCookies):
			why = "This browser sends several cookies named " + gateway.auth.cookieName() + ", of which none counts. Delete the cookies of this site."
		case len(gateway.auth.signedIDs(r)) > 0:
			why = "Your session has ended."
		case r.URL.Query().Has("out"):
			why = "You are logged out."
		}
		p.respondWith(w, http.StatusOK, "login.html", "{why}", why, "{error}", "", "{name}", "")
	}
}

// readForm reads the request's body, not its query, or has responded.
func readForm(w http.ResponseWriter, r *http.Request) (url.Values, bool) {
	const kind = "application/x-www-form-urlencoded"
	media, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	form, malformed := url.ParseQuery(string(body))
	var tooLarge *http.MaxBytesError
	switch {
	case media != kind:
		respondError(w, http.StatusUnsupportedMediaType, "Content-Type must be "+kind)
	case errors.As(err, &tooLarge):
		respondError(w, http.StatusRequestEntityTooLarge, "Request body is too large", fmt.Sprintf("at most %d bytes", maxBody))
	case err != nil || malformed != nil:
		respondError(w, http.StatusBadRequest, "Malformed request body")
	default:
		return form, true
	}
	return nil, false
}

// handleLoginForm is POST /auth/login: the login of a browser without
// JavaScript, with a form for a body and a page or a redirect for a response.
func (p *Web) handleLoginForm(gateway *Gateway, factor *Factor) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if err := gateway.auth.sameSite(r); err != nil {
			gateway.auth.fail(w, r, err, 0, "")
			return
		}
		form, ok := readForm(w, r)
		if !ok {
			return
		}
		name := strings.TrimSpace(form.Get("username"))
		var s Session
		var id string
		var next any
		var err error
		pending := form.Get("pending")
		if pending != "" {
			s, id, err = factor.loginByCode(r, pending, form.Get("code"))
		} else {
			s, id, next, err = gateway.auth.login(r, name, form.Get("password"))
		}
		if login, ok := next.(pendingLogin); ok {
			if login.Enrol {
				p.respondWith(w, http.StatusForbidden, "error.html", "{what}", "Set up a second factor", "{detail}", "That needs JavaScript: open the login page in a browser that has it.")
				return
			}
			p.respondWith(w, http.StatusOK, "code.html", "{pending}", login.Pending, "{error}", "")
			return
		}
		if err == nil {
			gateway.auth.setCookie(w, id, s, s.Created)
			gateway.handleContinue(w, r)
			return
		}
		no := unavailable
		if errors.Is(err, fs.ErrNotExist) && pending != "" {
			no = &refusal{http.StatusUnauthorized, wrongCode, "", 0}
		} else if errors.Is(err, fs.ErrNotExist) {
			no = wrongLogin
		} else if !errors.As(err, &no) {
			gateway.auth.Log.ErrorContext(r.Context(), "store failed", "error", err)
		}
		words := no.title + "."
		if no.wait > 0 {
			words += " Wait " + no.retryAfter() + " seconds."
			w.Header().Set("Retry-After", no.retryAfter())
		}
		if pending != "" && no != pendingOver {
			p.respondWith(w, no.status, "code.html", "{pending}", pending, "{error}", words)
			return
		}
		p.respondWith(w, no.status, "login.html", "{why}", "", "{error}", words, "{name}", name)
	}
}

// handleLogoutForm is POST /auth/logout: the button of a page for tools to link.
func (p *Web) handleLogoutForm(auth *Auth) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if err := auth.logout(w, r); err != nil {
			auth.fail(w, r, err, 0, "")
			return
		}
		w.Header().Set("Location", p.prefix+"/login?out")
		w.WriteHeader(http.StatusSeeOther)
	}
}
