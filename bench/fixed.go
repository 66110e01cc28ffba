//go:build copied

package main

import (
	"net/http"
	"strconv"
	"strings"
)

var fixedBody = []byte(strings.Repeat("x", 2048))

// handleFixed costs next to nothing, so that what is around it shows.
func handleFixed(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain")
	w.Header().Set("Content-Length", strconv.Itoa(len(fixedBody)))
	w.Write(fixedBody)
}
