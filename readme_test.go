// readme_test.go runs what the README says: its example is built from it with
// the three files, in a folder with nothing else, and logged into.
package main

import (
	"bufio"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// fenced answers the README's blocks of a language.
func fenced(t *testing.T, language string) (blocks []string) {
	t.Helper()
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile("(?ms)^```"+language+"\n(.*?)^```$").FindAllStringSubmatch(string(text), -1) {
		blocks = append(blocks, m[1])
	}
	return blocks
}

func TestReadmeExample(t *testing.T) {
	var source string
	for _, block := range fenced(t, "go") {
		if strings.HasPrefix(block, "package main\n") && strings.Contains(block, "requireLogin") {
			source = block
		}
	}
	if source == "" {
		t.Fatal("the README has no example")
	}
	probe, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := probe.Addr().String()
	probe.Close()
	source = strings.ReplaceAll(source, "localhost:8080", address)

	folder := t.TempDir()
	for _, name := range []string{"auth.go", "session.go", "store.go", "go.mod", "go.sum"} {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if name == "go.mod" { // of a tool that has never heard of the rest
			b = []byte(strings.Replace(string(b), "module ringward", "module example.com/tool", 1))
		}
		if err := os.WriteFile(filepath.Join(folder, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(folder, "main.go"), []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "build", "-o", "tool", ".")
	build.Dir = folder
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}

	file := regexp.MustCompile(`openStore\("([^"]+\.db)"\)`).FindStringSubmatch(source)
	if file == nil {
		t.Fatal("the example opens no database")
	}
	store, err := openStore(filepath.Join(folder, file[1]))
	if err != nil {
		t.Fatal(err)
	}
	newTestServerOn(t, store) // adds frodo
	if err := store.close(); err != nil {
		t.Fatal(err)
	}

	tool := exec.Command("./tool")
	tool.Dir = folder
	tool.Env = append(os.Environ(), "SECRET_KEY="+testKey)
	out, err := tool.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := tool.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tool.Process.Kill(); tool.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || !strings.Contains(line, "http://"+address) {
		t.Fatalf("it printed %q (%v)", line, err)
	}
	client := &http.Client{Timeout: 10 * time.Second}
	call := func(method, path, body, cookie string) *http.Response {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); ; {
			r, err := http.NewRequest(method, "http://"+address+path, strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Content-Type", "application/json")
			r.Header.Set("Cookie", cookie)
			answer, err := client.Do(r)
			if err == nil {
				answer.Body.Close()
				return answer
			}
			if time.Now().After(deadline) { // it prints just before it listens
				t.Fatal(err)
			}
		}
	}
	if got := call("GET", "/", "", "").StatusCode; got != 401 {
		t.Errorf("without a login: %d", got)
	}
	login := call("POST", "/auth/session", credentials("frodo", testPassword), "")
	if login.StatusCode != 201 || len(login.Cookies()) != 1 {
		t.Fatalf("login: %d %v", login.StatusCode, login.Cookies())
	}
	cookie := login.Cookies()[0].Name + "=" + login.Cookies()[0].Value
	if got := call("GET", "/", "", cookie).StatusCode; got != 200 {
		t.Errorf("with the cookie: %d", got)
	}
	if got := call("DELETE", "/auth/session", "", cookie).StatusCode; got != 204 {
		t.Errorf("logout: %d", got)
	}
	if got := call("GET", "/", "", cookie).StatusCode; got != 401 {
		t.Errorf("after logout: %d", got)
	}
}

// The default build links the modules that were agreed on, and no other.
func TestModules(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "-f", "{{with .Module}}{{.Path}}{{end}}", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	agreed := map[string]bool{"ringward": true, "go.etcd.io/bbolt": true, "golang.org/x/crypto": true, "golang.org/x/sys": true}
	for _, module := range strings.Fields(string(out)) {
		if !agreed[module] {
			t.Errorf("the default build links %s", module)
		}
	}
}

// Who copies three files must find that they need no fourth.
func TestInnerCircleStandsAlone(t *testing.T) {
	for _, args := range [][]string{
		{"vet", "auth.go", "session.go", "store.go"},
		{"vet", "auth.go", "session.go", "store.go", "auth_test.go"},
	} {
		if out, err := exec.Command("go", args...).CombinedOutput(); err != nil {
			t.Errorf("go %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}
