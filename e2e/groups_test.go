//go:build postgres

package e2e

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// Who leaves a group is out on every server: at once with the next request,
// and within a minute with what is open.
func TestPostgresGroups(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "ringward")
	build := exec.Command("go", "build", "-buildvcs=false", "-tags", "postgres", "-o", binary, ".")
	build.Dir = ".."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	tool := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/stream" {
			http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}
		io.WriteString(w, r.Header.Get("Remote-Groups"))
	}))
	t.Cleanup(tool.Close)
	p := newPGProgram(t, binary, pgDatabase(t).String())
	file := filepath.Join(p.dir, "tools")
	if err := os.WriteFile(file, []byte("127.0.0.1 "+tool.URL+" group=dev,ops\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.env = append(p.env, "RINGWARD_TOOLS="+file)
	p.addUser("frodo")
	servers := p.serve(3)
	_, cookie := pgLogIn(servers[0].url, "frodo")
	everywhere := func(want int) {
		t.Helper()
		for _, s := range servers {
			if status, _ := pgAsk("GET", s.url+"/x", "", "Cookie", cookie); status != want {
				t.Errorf("%s: %d, want %d", s.url, status, want)
			}
		}
	}
	everywhere(http.StatusForbidden)
	p.must("", "user", "group", "add", "frodo", "ops")
	everywhere(http.StatusOK)

	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, "GET", servers[1].url+"/stream", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Cookie", cookie)
	stream, err := http.DefaultClient.Do(r)
	if err != nil || stream.StatusCode != http.StatusOK {
		t.Fatal(stream, err)
	}
	defer stream.Body.Close()
	p.must("", "user", "group", "remove", "frodo", "ops")
	removed := time.Now()
	everywhere(http.StatusForbidden)
	io.Copy(io.Discard, stream.Body)
	if took := time.Since(removed); took > time.Minute {
		t.Errorf("the stream ended %v later", took)
	}
}
