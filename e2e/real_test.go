//go:build gateways

// real_test.go puts tools that others have written behind ringward, and uses
// them with their own clients (.ci/tools installs them).
package e2e

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// forReal runs f with ringward before the tool, and a token of frodo's.
func forReal(t *testing.T, addr string, flags []string, f func(t *testing.T, g *gateway, token string)) {
	for _, mode := range []string{"proxy", "nginx"} {
		t.Run(mode, func(t *testing.T) {
			g := &gateway{tool: &gatewayTool{addr: addr}}
			if len(flags) > 0 { // -user-header X-Remote-User
				g.changes = []string{"$upstream_http_remote_user", "$upstream_http_x_remote_user", "proxy_set_header Remote-User ", "proxy_set_header X-Remote-User ",
					`proxy_set_header X-Remote-User "";`, `proxy_set_header Remote-User "";`}
			}
			g.ringward = &ringward{server: newProgram(t).serve(append(flags, "-trusted-proxies", "127.0.0.1", "-proxy", "http://"+addr)...)}
			g.addr = g.server.addr()
			if mode != "proxy" {
				g.before(mode)
			}
			g.url = "http://" + g.addr
			g.addUser("frodo")
			f(t, g, strings.TrimSpace(g.must("", "token", "add", "frodo", "script")))
		})
	}
}

// run runs a client in a folder, which is its home, and returns what it printed.
func run(t *testing.T, folder, name string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = folder
	cmd.Env = append(os.Environ(), "HOME="+folder, "XDG_CONFIG_HOME="+folder, "XDG_RUNTIME_DIR="+folder, "GIT_TERMINAL_PROMPT=0", "GIT_CONFIG_NOSYSTEM=1")
	said, err := cmd.CombinedOutput()
	return string(said), err
}

func mustRun(t *testing.T, folder, name string, args ...string) string {
	t.Helper()
	said, err := run(t, folder, name, args...)
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, said)
	}
	return said
}

// Radicale knows its users by X-Remote-User.
func TestRealToolRadicale(t *testing.T) {
	addr, folder := ownAddr(), t.TempDir()
	startOther(t, addr, folder, "radicale", "--config", "", "--server-hosts", addr, "--auth-type", "http_x_remote_user",
		"--rights-type", "owner_only", "--storage-filesystem-folder", folder)
	forReal(t, addr, []string{"-user-header", "X-Remote-User"}, func(t *testing.T, g *gateway, token string) {
		const event = "BEGIN:VCALENDAR\r\nVERSION:2.0\r\nPRODID:x\r\nBEGIN:VEVENT\r\nUID:1\r\nDTSTAMP:30190325T000000Z\r\nDTSTART:30190325T000000Z\r\nSUMMARY:The ring is destroyed\r\nEND:VEVENT\r\nEND:VCALENDAR\r\n"
		ask := func(method, path, body, name string) int {
			request, _ := http.NewRequest(method, g.url+path, strings.NewReader(body))
			request.Header.Set("Authorization", "Bearer "+token)
			request.Header.Set("X-Remote-User", name) // whoever the client says it is
			answer, err := http.DefaultClient.Do(request)
			if err != nil {
				t.Fatal(err)
			}
			answer.Body.Close()
			return answer.StatusCode
		}
		ask("DELETE", "/frodo/calendar/", "", "frodo")
		for _, c := range []struct {
			method, path, body, name string
			want                     int
		}{
			{"MKCALENDAR", "/frodo/calendar/", "", "gandalf", 201},
			{"PUT", "/frodo/calendar/1.ics", event, "gandalf", 201},
			{"GET", "/frodo/calendar/1.ics", "", "gandalf", 200},
			{"PROPFIND", "/frodo/", "", "gandalf", 207},
			{"MKCALENDAR", "/gandalf/calendar/", "", "gandalf", 403},
		} {
			if got := ask(c.method, c.path, c.body, c.name); got != c.want {
				t.Errorf("%s %s: %d, want %d", c.method, c.path, got, c.want)
			}
		}
	})
}

// An image goes into a registry and comes back.
func TestRealToolRegistry(t *testing.T) {
	addr, folder := ownAddr(), t.TempDir()
	config := inFolder(t, "registry.yml", "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: "+folder+"\nhttp:\n  addr: "+addr+"\n")
	startOther(t, addr, folder, "docker-registry", "serve", filepath.Join(config, "registry.yml"))
	forReal(t, addr, nil, func(t *testing.T, g *gateway, token string) {
		home := t.TempDir()
		image := filepath.Join(home, "image")
		if err := os.Mkdir(image, 0o700); err != nil {
			t.Fatal(err)
		}
		blob := func(content []byte) string {
			sum := fmt.Sprintf("%x", sha256.Sum256(content))
			if err := os.WriteFile(filepath.Join(image, sum), content, 0o600); err != nil {
				t.Fatal(err)
			}
			return sum
		}
		layer := bytes.Repeat([]byte{0}, 3<<20) // an empty archive, and larger than what nginx lets pass by default
		layerSum := blob(layer)
		settings := []byte(`{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["sha256:` + layerSum + `"]},"history":[{"created_by":"test"}]}`)
		for name, text := range map[string]string{
			"version": "Directory Transport Version: 1.1\n",
			"manifest.json": fmt.Sprintf(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","size":%d,"digest":"sha256:%s"},`+
				`"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","size":%d,"digest":"sha256:%s"}]}`, len(settings), blob(settings), len(layer), layerSum),
		} {
			if err := os.WriteFile(filepath.Join(image, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		there := "docker://" + g.addr + "/rings/one:latest"
		copyTo := func(token string) (string, error) {
			return run(t, home, "skopeo", "--insecure-policy", "copy", "--preserve-digests", "--dest-tls-verify=false", "--dest-registry-token", token, "dir:"+image, there)
		}
		if said, err := copyTo(token); err != nil {
			t.Fatal(err, said)
		}
		if said, err := copyTo("rw_nonsense"); err == nil {
			t.Errorf("a wrong token got in: %s", said)
		}
		mustRun(t, home, "skopeo", "--insecure-policy", "copy", "--src-tls-verify=false", "--src-registry-token", token, there, "dir:"+filepath.Join(home, "back"))
		if got, err := os.ReadFile(filepath.Join(home, "back", layerSum)); err != nil || !bytes.Equal(got, layer) {
			t.Errorf("%d bytes came back: %v", len(got), err)
		}
	})
}

// A repository is cloned and pushed to.
func TestRealToolGit(t *testing.T) {
	root := t.TempDir()
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		git := cgi.Handler{Path: "/usr/lib/git-core/git-http-backend", Env: []string{"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1",
			"REMOTE_USER=" + r.Header.Get("Remote-User"), "HOME=" + root, "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*"}}
		body, err := io.ReadAll(r.Body) // which CGI cannot have in chunks
		if err != nil {
			return
		}
		r.Body, r.ContentLength, r.TransferEncoding = io.NopCloser(bytes.NewReader(body)), int64(len(body)), nil
		git.ServeHTTP(w, r)
	}))
	defer backend.Close()
	forReal(t, backend.Listener.Addr().String(), nil, func(t *testing.T, g *gateway, token string) {
		name := filepath.Base(t.Name()) + ".git"
		mustRun(t, root, "git", "init", "-q", "--bare", name)
		home := t.TempDir()
		git := func(args ...string) (string, error) {
			return run(t, home, "git", append([]string{"-c", "http.extraHeader=Authorization: Bearer " + token, "-c", "user.name=f", "-c", "user.email=f@example.com", "-c", "http.postBuffer=65536"}, args...)...)
		}
		must := func(args ...string) {
			t.Helper()
			if said, err := git(args...); err != nil {
				t.Fatalf("git %q: %v %s", args, err, said)
			}
		}
		must("clone", "-q", g.url+"/"+name, "work")
		content := make([]byte, 3<<20) // which does not get smaller, and goes in chunks
		for i, sum := 0, sha256.Sum256(nil); i < len(content); i, sum = i+len(sum), sha256.Sum256(sum[:]) {
			copy(content[i:], sum[:])
		}
		if err := os.WriteFile(filepath.Join(home, "work", "file"), content, 0o600); err != nil {
			t.Fatal(err)
		}
		must("-C", "work", "add", "file")
		must("-C", "work", "commit", "-q", "-m", "one")
		must("-C", "work", "push", "-q", "origin", "HEAD:refs/heads/main")
		must("clone", "-q", "-b", "main", g.url+"/"+name, "again")
		if got, err := os.ReadFile(filepath.Join(home, "again", "file")); err != nil || !bytes.Equal(got, content) {
			t.Errorf("%d bytes came back: %v", len(got), err)
		}
		if said, err := run(t, home, "git", "clone", "-q", g.url+"/"+name, "stranger"); err == nil {
			t.Errorf("without a token: %s", said)
		}
	})
}

// Files go by WebDAV, under names that have to be escaped.
func TestRealToolWebDAV(t *testing.T) {
	addr, folder := ownAddr(), t.TempDir()
	startOther(t, addr, folder, "rclone", "serve", "webdav", folder, "--addr", addr)
	forReal(t, addr, nil, func(t *testing.T, g *gateway, token string) {
		home := t.TempDir()
		here := filepath.Join(home, "here")
		files := map[string]int{"small": 10, "with space & 100% + #.txt": 20, "caf\u00e9/empty": 0, "big": 5 << 20}
		for name, size := range files {
			path := filepath.Join(here, name)
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, bytes.Repeat([]byte("x"), size), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		dav := func(args ...string) (string, error) {
			return run(t, home, "rclone", append([]string{"--retries", "1", "--low-level-retries", "1", "--webdav-url", g.url, "--webdav-bearer-token", token}, args...)...)
		}
		place := ":webdav:" + filepath.Base(t.Name())
		for _, args := range [][]string{{"sync", here, place}, {"check", "--download", here, place}, {"moveto", place + "/small", place + "/moved"}, {"cat", place + "/moved"}, {"purge", place}} {
			if said, err := dav(args...); err != nil {
				t.Fatalf("rclone %q: %v\n%s", args, err, said)
			}
		}
		if said, err := run(t, home, "rclone", "--retries", "1", "--low-level-retries", "1", "--webdav-url", g.url, "lsf", ":webdav:"); err == nil {
			t.Errorf("without a token: %s", said)
		}
	})
}
