// json.go: what goes over the wire. The envelope, {"data": …} or
// {"errors": [{"title", "status", "detail"}]}, and the strict reading of a body.
package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

func respond(w http.ResponseWriter, status int, data any) {
	respondJSON(w, status, struct {
		Data any `json:"data"`
	}{data})
}

// respondError has one title and, at most, one detail. A writer may say it in
// another form.
func respondError(w http.ResponseWriter, status int, title string, detail ...string) {
	if status == http.StatusUnauthorized && w.Header().Get("WWW-Authenticate") == "" { // which wants one (RFC 9110 section 11.6.1); of this one browsers make no dialog
		w.Header().Set("WWW-Authenticate", `Bearer realm="ringward"`)
	}
	if page, ok := w.(interface {
		respondPage(int, string, string) bool
	}); ok && page.respondPage(status, title, strings.Join(detail, " ")) {
		return
	}
	type failure struct {
		Title  string `json:"title"`
		Status int    `json:"status"`
		Detail string `json:"detail,omitempty"`
	}
	respondJSON(w, status, struct {
		Errors []failure `json:"errors"`
	}{[]failure{{title, status, strings.Join(detail, " ")}}})
}

func respondJSON(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		panic(err) // a type that JSON does not have: not the request's fault
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	w.Write(body)
}

// refusal is an error that says what to respond.
type refusal struct {
	status int
	title  string
	detail string
	wait   time.Duration // for Retry-After; 0: there is none
}

func (no *refusal) Error() string { return no.title }

// retryAfter is the seconds to wait.
func (no *refusal) retryAfter() string {
	return strconv.Itoa(int((no.wait + time.Second - 1) / time.Second))
}

func (no *refusal) respond(w http.ResponseWriter) {
	if no.wait > 0 {
		w.Header().Set("Retry-After", no.retryAfter())
	}
	respondError(w, no.status, no.title, no.detail)
}

// seconds is how times are shown: RFC 3339 in UTC.
func seconds(t time.Time) time.Time { return t.UTC().Truncate(time.Second) }

func orNull(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = seconds(t)
	return &t
}

const maxBody = 64 << 10 // bytes

// fields are names in a JSON object, and where their strings go.
type fields map[string]*string

// readJSON reads the request's body, or has responded. Fields that are optional
// stay what they are where the body lacks them.
func readJSON(w http.ResponseWriter, r *http.Request, required, optional fields) bool {
	media, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	charset := params["charset"]
	if err != nil || media != "application/json" || charset != "" && !strings.EqualFold(charset, "utf-8") ||
		r.Header.Get("Content-Encoding") != "" {
		respondError(w, http.StatusUnsupportedMediaType, "Content-Type must be application/json")
		return false
	}
	body, err := io.ReadAll(http.MaxBytesReader(innermost(w), r.Body, maxBody))
	var tooLarge *http.MaxBytesError
	var no *refusal
	switch {
	case errors.As(err, &tooLarge):
		respondError(w, http.StatusRequestEntityTooLarge, "Request body is too large", fmt.Sprintf("at most %d bytes", maxBody))
	case errors.As(err, &no): // of a judgedBody
		no.respond(w)
	case err != nil:
		respondError(w, http.StatusBadRequest, "Request body cannot be read")
	default:
		if err = decodeObject(body, required, optional); err != nil {
			respondError(w, http.StatusBadRequest, "Malformed request body", err.Error())
		}
	}
	return err == nil
}

// innermost returns net/http's own writer, the only one that MaxBytesReader can
// tell to close the connection rather than wait for the rest of a body.
func innermost(w http.ResponseWriter) http.ResponseWriter {
	for {
		wrapper, ok := w.(interface{ Unwrap() http.ResponseWriter })
		if !ok {
			return w
		}
		w = wrapper.Unwrap()
	}
}

// wholePairs matches JSON in which no half of a UTF-16 pair is escaped alone.
var wholePairs = regexp.MustCompile(`(?s)^(?:[^\\]|\\(?:[^u]|u(?:[0-9a-cefA-CEF]|[dD](?:[0-7]|[89abAB]..\\u[dD][c-fC-F]))))*$`)

// decodeObject is encoding/json without its leniency: that one replaces what
// is not UTF-8, ignores the case of names and takes the last of two, and a
// password must be verified as it was sent.
func decodeObject(body []byte, required, optional fields) error {
	if !utf8.Valid(body) || !json.Valid(body) || !wholePairs.Match(body) {
		return errors.New("not valid JSON in UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(body))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return errors.New("not a JSON object")
	}
	there := map[string]bool{}
	for d.More() {
		token, err := d.Token()
		name, _ := token.(string)
		field := cmp.Or(required[name], optional[name])
		if err != nil || field == nil {
			return errors.New("unknown field")
		}
		if there[name] {
			return fmt.Errorf("field %s is there twice", name)
		}
		there[name] = true
		value, err := d.Token()
		text, ok := value.(string)
		if err != nil || !ok {
			return fmt.Errorf("field %s must be a string", name)
		}
		*field = text
	}
	for name := range required {
		if !there[name] {
			return fmt.Errorf("field %s is missing", name)
		}
	}
	return nil
}
