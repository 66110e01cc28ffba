// doctor_test.go tests the examination of ringward before a tool. With gateways
// it is in e2e.
package main

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"
)

// standIn is what stands in for a tool, until the test ends.
func standIn(t *testing.T) (addr string) {
	t.Helper()
	r, w := io.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { err := echo(ctx, "127.0.0.1:0", w); w.Close(); done <- err }()
	said := make(chan string)
	go func() {
		b := make([]byte, 200)
		n, _ := r.Read(b)
		said <- string(b[:n])
		io.Copy(io.Discard, r)
	}()
	found := regexp.MustCompile(`standing in for the tool on (\S+);`).FindStringSubmatch(<-said)
	if found == nil {
		t.Fatal("it does not say where it listens")
	}
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return found[1]
}

// examined runs doctor on a server before the stand-in, or with "none" before no tool.
func examined(t *testing.T, tools string, flags ...string) string {
	t.Helper()
	t.Setenv("SECRET_KEY", testKey)
	t.Chdir(t.TempDir())
	upstream := "http://" + standIn(t)
	switch tools {
	case "none":
	case "":
		flags = append(flags, "-proxy", upstream)
	default:
		noErr(t, os.WriteFile("tools", []byte(strings.ReplaceAll(tools, "UPSTREAM", upstream)), 0o600))
		flags = append(flags, "-tools", "tools")
	}
	s := newAccountServerAt(t, "test.db", flags...)
	s.serveCommands()
	server := httptest.NewServer(s.program)
	defer server.Close()
	_, port, err := net.SplitHostPort(server.Listener.Addr().String())
	noErr(t, err)
	var out bytes.Buffer
	err = examine(t.Context(), testConfig(t, append(flags, "-db", "test.db", "-bcrypt-cost", "10")...), []string{"http://localhost:" + port}, &out)
	if (err != nil) != strings.Contains(out.String(), "WRONG") {
		t.Errorf("%v\n%s", err, &out)
	}
	if users := s.printed("user list"); strings.Contains(users, "doctor") {
		t.Errorf("its user is there still: %s", users)
	}
	return out.String()
}

func TestDoctorFindsNothingInFrontOfATool(t *testing.T) {
	for name, c := range map[string]struct {
		tools string
		flags []string
	}{
		"plain":          {"", nil},
		"second factor":  {"", []string{"-second-factor", "required"}},
		"prefix, header": {"", []string{"-prefix", "/login", "-user-header", "X-User"}},
		"tools":          {"localhost UPSTREAM group=ops,dev public=/static/,/robots.txt basic\n", nil},
	} {
		t.Run(name, func(t *testing.T) {
			said := examined(t, c.tools, c.flags...)
			for _, want := range []string{"a stranger gets 401", "a login works", "the tool gets its own cookies", "no WebSocket", "write nothing", "cannot be reached"} {
				if !strings.Contains(said, "ok    ") || !strings.Contains(said, want) || strings.Contains(said, "WRONG") {
					t.Fatalf("no %q in\n%s", want, said)
				}
			}
		})
	}
}

func TestDoctorWithoutATool(t *testing.T) {
	if said := examined(t, "none"); strings.Contains(said, "WRONG") || !strings.Contains(said, "a browser is sent to the login page and comes back") {
		t.Error(said)
	}
}

func TestDoctorSaysWhatItCannotReach(t *testing.T) {
	t.Setenv("SECRET_KEY", testKey)
	s := inFolder(t)
	s.store.Close()
	err := examine(t.Context(), testConfig(t, "-db", s.path), []string{"http://localhost:1"}, io.Discard) // where nobody listens
	if err == nil || !strings.HasPrefix(err.Error(), "http://localhost:1: dial tcp ") {
		t.Error(err)
	}
}

func TestDoctorInside(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(s *accountServer)
		want  string // "": nothing
	}{
		"nothing": {func(*accountServer) {}, ""},
		"database": {func(s *accountServer) { noErr(s, os.Chmod(s.path, 0o644)) },
			"WRONG test.db must be there, and for its owner only: chmod 600 test.db\n"},
		"folder": {func(s *accountServer) { noErr(s, os.Chmod(".", 0o777)) },
			"WRONG others can write to ., and put another database there: chmod 755 .\n"},
		"key": {func(s *accountServer) { s.Setenv("SECRET_KEY", "short") }, "WRONG the key: "},
		"key file": {func(s *accountServer) {
			s.Setenv("SECRET_KEY", "")
			s.Setenv("SECRET_KEY_FILE", "key")
			noErr(s, os.WriteFile("key", []byte(testKey), 0o600))
			noErr(s, os.Chmod("key", 0o640))
		}, "WRONG key must be there, and for its owner only: chmod 600 key\n"},
		"clock": {func(s *accountServer) {
			noErr(s, recording(adminStore(s.store), Act{At: time.Now().Add(time.Hour)}).nothing())
		}, "WRONG the clock was put back"},
		"no database": {func(s *accountServer) { s.store.Close(); noErr(s, os.Remove(s.path)) }, "WRONG test.db must be there"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("SECRET_KEY", testKey)
			s := inFolder(t)
			c.spoil(s)
			s.store.Close()
			var out bytes.Buffer
			err := examine(t.Context(), testConfig(t, "-db", s.path), nil, &out)
			if (err == nil) != (c.want == "") || !strings.Contains(out.String(), c.want) || c.want == "" && strings.Contains(out.String(), "WRONG") {
				t.Errorf("%v\n%s", err, &out)
			}
		})
	}
}
