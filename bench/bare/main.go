// Bare is net/http and nothing else: what a Go server can reach that knows
// nobody, keeps nothing and logs nothing.
//
//	bare ADDR [BYTES]
//
// BYTES is the length of a header that makes its 401 as long as ringward's.
package main

import (
	"log"
	"net/http"
	"os"
	"strconv"
	"strings"

	"ringward/bench/peer"
)

func main() {
	padding := ""
	if len(os.Args) > 2 {
		n, err := strconv.Atoi(os.Args[2])
		if err != nil {
			log.Fatal(err)
		}
		padding = strings.Repeat("x", n)
	}
	check := peer.Checker()
	http.HandleFunc("GET /ringsofpower", func(w http.ResponseWriter, _ *http.Request) { peer.Rings(w) })
	http.HandleFunc("GET /refused", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Padding", padding)
		peer.Refuse(w)
	})
	http.HandleFunc("POST /auth/session", func(w http.ResponseWriter, r *http.Request) { // bcrypt and nothing else
		if check(r) == "" {
			peer.Refuse(w)
			return
		}
		peer.LoggedIn(w)
	})
	peer.Serve(http.DefaultServeMux)
}
