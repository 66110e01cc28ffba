package main

import (
	"bytes"
	"compress/gzip"
	"embed"
	"net/http"
	"path"
	"strconv"
	"strings"
)

// The pages for people: static files that call the JSON API with fetch. There
// is no template and no build step, so what is in web/ is what a browser gets.

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

// page serves one file of web/. It panics for a name that is not there, which
// is a mistake in the route list and shows at the first start.
func page(name string) http.Handler {
	plain, err := webFiles.ReadFile("web/" + name)
	if err != nil {
		panic(err)
	}
	kind := webTypes[path.Ext(name)]
	if kind == "" {
		panic("web/" + name + ": no Content-Type for this kind of file")
	}
	// Pages are no-store, so each visit brings them again: small pays. They hold
	// no secret that the size of a compressed answer could give away.
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
