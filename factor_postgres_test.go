//go:build postgres

package main

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"
)

// A code, a passkey's answer and an enrolment count once on two servers too,
// which know of each other by the database alone.
func TestPostgresOneCodeOnTwoServers(t *testing.T) {
	dsn := testDatabase(t)
	var servers []*accountServer
	for range 2 {
		s := &accountServer{T: t, log: new(bytes.Buffer)}
		s.program = newTestProgram(t, openTestPG(t, dsn), io.Discard)
		s.Handler = s.next
		servers = append(servers, s)
	}
	s := servers[0]
	hash, err := s.auth.hashPassword(t.Context(), testPassword)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.auth.store.addUser(User{Name: "frodo", Hash: hash, Created: time.Now()}); err != nil {
		t.Fatal(err)
	}
	var n atomic.Int64
	send := func(method, path, body string, headers ...string) func() *httptest.ResponseRecorder {
		return func() *httptest.ResponseRecorder { return servers[n.Add(1)%2].do(method, path, body, headers...) }
	}
	cookie := s.enter("frodo", testPassword)
	p := s.withPasskey(cookie)
	s.atOnce(100, 2, send("POST", "/auth/passkey", s.byPasskey(p)))

	mine := []string{"Cookie", cookie, "Ringward-Proof", s.proof(cookie)}
	app := s.offer("", mine...)
	s.atOnce(100, 1, send("PUT", "/auth/totp", object("code", app.code(0)), mine...))

	pending := s.pend("frodo").Pending
	s.atOnce(100, 2, send("POST", "/auth/session/code", object("pending", pending, "code", app.code(1))))
}

// The first user enrols too: their login is pending before the database has
// cut the time at which they were made.
func TestPostgresFirstUserEnrols(t *testing.T) {
	s := &accountServer{T: t, log: new(bytes.Buffer)}
	s.program = newTestProgram(t, openTestPG(t, testDatabase(t)), io.Discard, "-second-factor", "required")
	s.Handler = s.next
	var p pendingLogin
	s.want(http.StatusAccepted, &p, "POST", "/auth/invites/"+s.invite(""), object("username", "frodo", "password", testPassword))
	app := s.offer(object("pending", p.Pending))
	s.want(http.StatusOK, nil, "GET", "/auth/session", "", "Cookie", s.accept(&app, p.Pending))
}
