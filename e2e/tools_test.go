// tools_test.go: what SIGHUP does to a server with a tools file.
package e2e

import (
	"bufio"
	"crypto/tls"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
)

// reload sends SIGHUP and waits until it has been done.
func (s *server) reload() {
	s.Helper()
	done := func() int {
		log := s.log.String()
		return strings.Count(log, " msg=reload") + strings.Count(log, ` msg="not read again"`)
	}
	before := done()
	s.cmd.Process.Signal(syscall.SIGHUP)
	eventually(s.T, func() bool { return done() > before })
}

// Reading the files again loses no request and no stream that is still allowed,
// and what has a mistake in it changes nothing.
func TestReload(t *testing.T) {
	more := make(chan bool)
	tool := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/events" {
			io.Copy(w, r.Body)
			return
		}
		for n := 0; r.Context().Err() == nil; n++ {
			fmt.Fprintf(w, "event %d\n", n)
			http.NewResponseController(w).Flush()
			select {
			case <-more:
			case <-r.Context().Done():
			}
		}
	}))
	t.Cleanup(tool.Close)
	p := newProgram(t)
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(p.path(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	renew := func() string {
		t.Helper()
		cert, key := certificate(t, "localhost")
		for name, from := range map[string]string{"cert.pem": cert, "key.pem": key} {
			text, err := os.ReadFile(from)
			if err != nil {
				t.Fatal(err)
			}
			write(name, string(text))
		}
		text, _ := os.ReadFile(cert)
		return string(text)
	}
	line := "127.0.0.1 " + tool.URL + "\n"
	write("tools", line)
	renew()
	p.addUser("frodo")
	s := p.serve("-tools", "tools", "-tls-cert", "cert.pem", "-tls-key", "key.pem")
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, MaxIdleConnsPerHost: 4}
	client := &http.Client{Transport: transport}
	login, err := client.Post(s.url+"/auth/session", "application/json", strings.NewReader(credentials("frodo", password)))
	if err != nil || login.StatusCode != 201 {
		t.Fatal(login, err)
	}
	cookie, _, _ := strings.Cut(login.Header.Get("Set-Cookie"), ";")
	send := func(host, path, body string) (*http.Response, error) {
		r, err := http.NewRequest("POST", s.url+path, strings.NewReader(body))
		if err != nil {
			return nil, err
		}
		r.Host = host
		r.Header.Set("Cookie", cookie)
		return client.Do(r)
	}
	status := func(host string) int {
		t.Helper()
		response, err := send(host, "/x", "")
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		return response.StatusCode
	}

	stream, err := send("127.0.0.1", "/events", "")
	if err != nil || stream.StatusCode != 200 {
		t.Fatal(stream, err)
	}
	defer stream.Body.Close()
	events := bufio.NewScanner(stream.Body)
	var load sync.WaitGroup
	var over atomic.Bool
	var sent atomic.Int32
	for range 4 {
		load.Go(func() {
			for !over.Load() {
				response, err := send("127.0.0.1", "/x", "hello")
				if err != nil {
					t.Error(err)
					return
				}
				body, err := io.ReadAll(response.Body)
				response.Body.Close()
				if response.StatusCode != 200 || string(body) != "hello" || err != nil {
					t.Errorf("%s %q %v", response.Status, body, err)
					return
				}
				sent.Add(1)
			}
		})
	}
	for n := range 20 {
		write("tools", fmt.Sprintf("%slocalhost %s timeout=%ds\n", line, tool.URL, n+1))
		s.reload()
		before := sent.Load()
		eventually(t, func() bool { return t.Failed() || sent.Load() > before+20 })
	}
	over.Store(true)
	load.Wait()
	for n := range 3 {
		if !events.Scan() || events.Text() != fmt.Sprint("event ", n) {
			t.Fatalf("the stream: %q, %v", events.Text(), events.Err())
		}
		more <- true
	}
	if got := status("localhost"); got != 200 {
		t.Errorf("the tool that was added: %d", got)
	}

	write("tools", "localhost "+tool.URL+"\nwiki.example.com http://127.0.0.1:3000/wiki\n")
	s.reload()
	s.says(`msg="not read again" error="tools, line 2: the upstream is like .*"`)
	for _, host := range []string{"127.0.0.1", "localhost"} {
		if got := status(host); got != 200 {
			t.Errorf("%s, after a file with a mistake: %d", host, got)
		}
	}
	write("tools", line)
	s.reload()
	if one, other := status("127.0.0.1"), status("localhost"); one != 200 || other != 421 {
		t.Errorf("without the line for localhost: %d, %d", one, other)
	}

	served := func() string {
		t.Helper()
		conn, err := tls.Dial("tcp", s.addr(), &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: conn.ConnectionState().PeerCertificates[0].Raw}))
	}
	first, second := served(), renew()
	if served() != first {
		t.Error("a certificate is served that no signal told of")
	}
	s.reload()
	if served() != second {
		t.Error("the renewed certificate is not served")
	}
	write("cert.pem", "nonsense")
	s.reload()
	s.says(`msg="not read again" error=.*`)
	if served() != second {
		t.Error("a certificate with a mistake took the old one away")
	}
}

// A signal to reload does not end a server that still starts.
func TestReloadWhileStarting(t *testing.T) {
	p := newProgram(t)
	cert, key := certificate(t, "localhost")
	text, err := os.ReadFile(cert)
	if err == nil {
		err = os.WriteFile(p.path("cert.new"), text, 0o600)
	}
	if err == nil {
		err = syscall.Mkfifo(p.path("cert.pem"), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	s := p.launch("-tls-cert", "cert.pem", "-tls-key", key)
	pipe, err := os.OpenFile(p.path("cert.pem"), os.O_WRONLY, 0) // waits until the server reads
	if err != nil {
		t.Fatal(err)
	}
	s.cmd.Process.Signal(syscall.SIGHUP)
	if err := os.Rename(p.path("cert.new"), p.path("cert.pem")); err != nil { // for the second time
		t.Fatal(err)
	}
	pipe.Write(text)
	pipe.Close()
	s.says("listening on (https://.*)")
	s.says("(msg=reload)")
	s.stop()
}
