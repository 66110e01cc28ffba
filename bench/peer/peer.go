// Package peer is what the peers share: the rings, the one user and the
// answers, so that they differ only in how they keep sessions.
package peer

import (
	"encoding/json"
	"log"
	"net/http"
	"os"
	"strings"

	"golang.org/x/crypto/bcrypt"
)

const (
	username = "frodo"
	password = "speak-friend-and-enter"
	cost     = 10 // of bcrypt, the least that ringward takes
)

type ring struct {
	ID     int    `json:"id"`
	Name   string `json:"name"`
	Bearer string `json:"bearer"`
}

var rings = func() (all []ring) {
	for _, line := range []string{"elves:Narya,Nenya,Vilya",
		"dwarves:Ring of Durin,Second of the Seven,Third of the Seven,Fourth of the Seven,Fifth of the Seven," +
			"Sixth of the Seven,Seventh of the Seven",
		"men:First of the Nine,Second of the Nine,Third of the Nine,Fourth of the Nine,Fifth of the Nine," +
			"Sixth of the Nine,Seventh of the Nine,Eighth of the Nine,Ninth of the Nine",
		"sauron:The One Ring"} {
		bearer, names, _ := strings.Cut(line, ":")
		for name := range strings.SplitSeq(names, ",") {
			all = append(all, ring{len(all) + 1, name, bearer})
		}
	}
	return all
}()

// Rings answers the twenty rings, encoded for this request.
func Rings(w http.ResponseWriter) { answer(w, http.StatusOK, map[string]any{"data": rings}) }

// LoggedIn is the answer to a good login.
func LoggedIn(w http.ResponseWriter) {
	answer(w, http.StatusCreated, map[string]any{"data": map[string]string{"username": username}})
}

// Refuse answers 401.
func Refuse(w http.ResponseWriter) {
	type failure struct {
		Title  string `json:"title"`
		Status int    `json:"status"`
	}
	answer(w, http.StatusUnauthorized, map[string]any{"errors": []failure{{"Login required", http.StatusUnauthorized}}})
}

func answer(w http.ResponseWriter, status int, body any) {
	b, err := json.Marshal(body)
	if err != nil {
		panic(err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(b)
}

// Checker answers whose credentials a request carries, "" for nobody's.
func Checker() func(*http.Request) string {
	hash, err := bcrypt.GenerateFromPassword([]byte(password), cost)
	if err != nil {
		log.Fatal(err)
	}
	return func(r *http.Request) string {
		var in struct{ Username, Password string }
		if json.NewDecoder(r.Body).Decode(&in) != nil || in.Username != username ||
			bcrypt.CompareHashAndPassword(hash, []byte(in.Password)) != nil {
			return ""
		}
		return username
	}
}

// Serve listens at the address that is the first argument.
func Serve(h http.Handler) {
	log.Fatal(http.ListenAndServe(os.Args[1], h))
}
