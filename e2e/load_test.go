//go:build attack

// load_test.go puts the real program under the load of somebody who wants it
// down, or who listens to how long it takes. It needs wrk, slowhttptest and
// 12,000 open files; .ci/attack brings them and runs it.
package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// process is a program that serves, at the cost that a password has by default.
type process struct{ *server }

func startProcess(t *testing.T, args ...string) process {
	t.Helper()
	p := newProgram(t)
	p.env = append(p.env, "RINGWARD_BCRYPT_COST=12")
	s := p.serve(args...)
	t.Cleanup(func() { s.stop() })
	return process{s}
}

// try sends a login from an address, which is one of loopback.
func (p process) try(user, password, addr string) (status int, retry string, took time.Duration) {
	p.Helper()
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(addr)}}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: dialer.DialContext}}
	start := time.Now()
	answer, err := client.Post(p.url+"/auth/session", "application/json", strings.NewReader(credentials(user, password)))
	if err != nil {
		p.Error(err)
		return
	}
	io.Copy(io.Discard, answer.Body)
	answer.Body.Close()
	return answer.StatusCode, answer.Header.Get("Retry-After"), time.Since(start)
}

// rss is the program's memory in MiB.
func (p process) rss() int {
	p.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	m := regexp.MustCompile(`VmRSS:\s+(\d+) kB`).FindSubmatch(text)
	if err != nil || m == nil {
		p.Error(err, string(text))
		return 0
	}
	kb, _ := strconv.Atoi(string(m[1]))
	return kb / 1024
}

// alive fails the test for every answer that takes over a second, until stop.
func (p process) alive() (stop func()) {
	ended, stopped := make(chan struct{}), make(chan struct{})
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	asked, slowest := 0, time.Duration(0)
	go func() {
		defer close(stopped)
		for tick := time.Tick(100 * time.Millisecond); ; asked++ {
			select {
			case <-ended:
				return
			case <-tick:
			}
			start := time.Now()
			answer, err := client.Get(p.url + "/auth/login")
			if err != nil {
				p.Errorf("after %d answers: %v", asked, err)
				continue
			}
			answer.Body.Close()
			slowest = max(slowest, time.Since(start))
			if answer.StatusCode != 200 {
				p.Errorf("after %d answers: %d", asked, answer.StatusCode)
			}
		}
	}()
	return func() {
		close(ended)
		<-stopped
		p.Logf("meanwhile %d answers, the slowest after %v", asked, slowest)
		if asked < 10 {
			p.Error("too few answers")
		}
	}
}

func median(all []time.Duration) time.Duration {
	sorted := slices.Sorted(slices.Values(all))
	return sorted[len(sorted)/2]
}

// Who does not get in learns nothing from how long it took.
func TestLoadTimeTellsNothing(t *testing.T) {
	p := startProcess(t, "-bcrypt-cost", "10")
	for _, name := range []string{"wrong", "disabled", "long", "longer", "longest", "empty", "nul"} {
		p.addUser(name)
	}
	p.must("", "user", "add", "invited")
	p.must("", "user", "disable", "disabled")
	if err := os.WriteFile(p.path("htpasswd"), []byte("imported:"+rosiesHash+"\n"), 0o600); err != nil { // of low cost
		t.Fatal(err)
	}
	p.must("", "user", "import", "htpasswd")

	type kind struct{ name, user, password string }
	kinds := []kind{
		{"wrong password", "wrong", "wrong"},
		{"unknown user", "unknown", "wrong"},
		{"no username", "not a username", "wrong"},
		{"username of 10,000 bytes", strings.Repeat("u", 10_000), "wrong"},
		{"disabled user, right password", "disabled", password},
		{"invited user", "invited", password},
		{"imported hash of low cost", "imported", "wrong"},
		{"73 bytes", "long", strings.Repeat("x", 73)},
		{"1,025 bytes", "longer", strings.Repeat("x", 1025)},
		{"60,000 bytes", "longest", strings.Repeat("x", 60_000)},
		{"empty password", "empty", ""},
		{"NUL", "nul", password + "\x00"},
	}
	const rounds = 40 // less than userLimit
	took := map[string][]time.Duration{}
	for round := range rounds {
		mathrand.Shuffle(len(kinds), func(i, j int) { kinds[i], kinds[j] = kinds[j], kinds[i] })
		for i, k := range kinds {
			status, _, d := p.try(k.user, k.password, fmt.Sprintf("127.1.%d.%d", round, i+1))
			if status != 401 {
				t.Fatalf("%s: %d", k.name, status)
			}
			took[k.name] = append(took[k.name], d)
		}
	}
	one := median(took["wrong password"])
	for _, k := range kinds {
		off := float64(median(took[k.name])-one) / float64(one)
		t.Logf("%-30s %8v %+6.2f %%", k.name, median(took[k.name]).Round(10*time.Microsecond), 100*off)
		if math.Abs(off) > 0.05 {
			t.Errorf("%s: %.1f %% off", k.name, 100*off)
		}
	}
}

// wrk runs it, and answers what its script says at the end: requests a
// second, p99 in ms, answers that are not 2xx or 3xx, errors of sockets.
func wrk(t *testing.T, script string, args ...string) (rate, p99 float64, refused, broken int) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "script.lua")
	script += `
function done(s, latency)
  local e = s.errors
  io.write(string.format("RESULT %f %f %d %d\n", s.requests / (s.duration / 1e6), latency:percentile(99) / 1000,
    e.status, e.connect + e.read + e.write))
end`
	if err := os.WriteFile(file, []byte(script), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("wrk", append([]string{"--timeout", "60s", "-s", file}, args...)...).CombinedOutput()
	i := bytes.Index(out, []byte("RESULT "))
	if err != nil || i < 0 {
		t.Fatalf("wrk: %v\n%s", err, out)
	}
	if _, err := fmt.Sscanf(string(out[i:]), "RESULT %f %f %d %d", &rate, &p99, &refused, &broken); err != nil {
		t.Fatal(err)
	}
	return rate, p99, refused, broken
}

// 256 clients that do nothing but log in leave the rest of the API answering.
func TestLoadFloodOfLogins(t *testing.T) {
	for _, from := range []struct {
		name, header string
		seconds      int
	}{
		{"one address", "", 10},
		{"many addresses", `wrk.headers["X-Forwarded-For"] = "10." .. math.random(255) .. "." .. math.random(255) .. "." .. math.random(255)`, 30},
	} {
		t.Run(from.name, func(t *testing.T) {
			p := startProcess(t, "-trusted-proxies", "127.0.0.1")
			p.addUser("frodo")
			get := []string{"-t1", "-c4", "-H", "Cookie: " + strings.TrimPrefix(p.login("frodo"), "Cookie: "), p.url + "/auth/session"}
			wrk(t, "", append([]string{"-d1s"}, get...)...)
			quiet, quietP99, _, _ := wrk(t, "", append([]string{"-d5s"}, get...)...)
			memory := p.rss()

			flooded := make(chan struct{})
			go func() {
				defer close(flooded)
				rate, _, refused, broken := wrk(t, `
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
local n, thread = 0, 0
function setup(t) t:set("thread", thread); thread = thread + 1 end
function request()
  n = n + 1
  `+from.header+`
  return wrk.format(nil, nil, nil, '{"username":"user' .. thread .. "-" .. n .. '","password":"wrong"}')
end`, "-t2", "-c256", fmt.Sprintf("-d%ds", from.seconds), p.url+"/auth/session")
				t.Logf("flood: %.0f tries a second, %d refused", rate, refused)
				if refused == 0 || broken > 0 {
					t.Errorf("flood: %d refused, %d errors of sockets", refused, broken)
				}
			}()
			throttled, early := 0, 0
			measured := make(chan struct{})
			go func() { // somebody who looks at how it refuses
				defer close(measured)
				for start, tick := time.Now(), time.Tick(200*time.Millisecond); time.Since(start) < time.Duration(from.seconds-2)*time.Second; <-tick {
					status, retry, took := p.try("sam", "wrong", "127.0.0.1")
					if status == 429 || status == 503 {
						if throttled++; retry == "" || took > 2*time.Second {
							t.Errorf("%d after %v with Retry-After %q", status, took, retry)
						}
					}
					if time.Since(start) < 5*time.Second {
						early = p.rss()
					}
				}
			}()
			rate, p99, refused, broken := wrk(t, "", append([]string{fmt.Sprintf("-d%ds", from.seconds-2)}, get...)...)
			<-measured
			<-flooded
			late := p.rss()
			t.Logf("GET: %.0f a second, p99 %.1f ms; before %.0f and %.1f ms: %.0f %%", rate, p99, quiet, quietP99, 100*rate/quiet)
			t.Logf("memory: %d MiB before, %d in its first seconds, %d after it; %d tries of the observer were refused", memory, early, late, throttled)
			if p99 >= 100 || rate < 0.4*quiet || refused+broken > 0 {
				t.Errorf("GET suffers: %d were not answered well, %d not at all", refused, broken)
			}
			if late > memory+64 || late > early+16 {
				t.Errorf("memory grows: %d MiB, %d, %d", memory, early, late)
			}
			if throttled == 0 {
				t.Error("nobody was refused")
			}
			p.addUser("merry") // and then it is as before
			if status, _, _ := p.try("merry", password, "127.2.0.1"); status != 201 {
				t.Errorf("a login after it: %d", status)
			}
		})
	}
}

// Clients that send their headers or their body, or read their answer, as
// slowly as they can: they are sent away, and nobody else notices. Slow readers
// do not see it while there is something left to read.
func TestLoadSlowClients(t *testing.T) {
	p := startProcess(t)
	files := p.files()
	stop := p.alive()
	var all sync.WaitGroup
	for name, args := range map[string][]string{
		"headers": {"-c", "1000", "-H", "-i", "5", "-r", "300", "-t", "GET", "-u", p.url + "/auth/login", "-x", "24", "-p", "3", "-l", "25"},
		"bodies": {"-c", "300", "-B", "-i", "5", "-r", "200", "-s", "8192", "-t", "POST", "-f", "application/json", "-u", p.url + "/auth/session",
			"-x", "10", "-p", "3", "-l", "40"},
		"readers": {"-X", "-c", "300", "-r", "200", "-w", "10", "-y", "20", "-n", "5", "-z", "32", "-k", "3", "-u", p.url + "/auth/login", "-p", "3", "-l", "70"},
	} {
		all.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
			defer cancel()
			out, err := exec.CommandContext(ctx, "slowhttptest", args...).CombinedOutput()
			text := regexp.MustCompile("\x1b\\[[0-9;]*[A-Za-z]").ReplaceAllString(string(out), "")
			if i := strings.LastIndex(text, "slow HTTP test status"); i >= 0 {
				text = text[i:]
			}
			t.Logf("%s: %s", name, text)
			if err != nil || strings.Contains(text, "service available:   NO") || name != "readers" && !strings.Contains(text, "No open connections left") {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
	most, freed, start := 0, time.Duration(0), time.Now()
	for tick := time.Tick(100 * time.Millisecond); time.Since(start) < 68*time.Second; <-tick {
		switch n := p.files(); {
		case n > most:
			most = n
		case n > files+10:
			freed = 0
		case freed == 0:
			freed = time.Since(start)
		}
	}
	all.Wait()
	stop()
	t.Logf("open files: %d, %d at most, %d again after %v", files, most, p.files(), freed)
	if most < 1000 || freed == 0 {
		t.Error("they were not sent away")
	}
}

// files is how many the program has open.
func (p process) files() int {
	p.Helper()
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.cmd.Process.Pid))
	if err != nil {
		p.Fatal(err)
	}
	return len(open)
}

func TestLoadIdleConnections(t *testing.T) {
	p := startProcess(t)
	before := p.rss()
	for range 10_000 {
		conn, err := net.Dial("tcp", strings.TrimPrefix(p.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if n, err := conn.Read(make([]byte, 4096)); n == 0 {
			t.Fatal(err)
		}
	}
	var took []time.Duration
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for range 100 {
		start := time.Now()
		answer, err := client.Get(p.url + "/auth/login")
		if err != nil || answer.StatusCode != 200 {
			t.Fatal(answer, err)
		}
		answer.Body.Close()
		took = append(took, time.Since(start))
	}
	t.Logf("10,000 idle connections: %d MiB more; one more is answered after %v, the slowest of 100 after %v", p.rss()-before, median(took), slices.Max(took))
	if slices.Max(took) > 100*time.Millisecond || p.rss()-before > 400 {
		t.Error("too slow, or too much")
	}
}

func TestLoadGiantBodies(t *testing.T) {
	p := startProcess(t)
	before := p.rss()
	stop := p.alive()
	for name, length := range map[string]int64{"with its length": 1 << 30, "in chunks": -1} {
		for range 5 {
			r, err := http.NewRequest("POST", p.url+"/auth/session", io.LimitReader(zeros{}, 1<<30))
			if err != nil {
				t.Fatal(err)
			}
			r.ContentLength = length
			r.Header.Set("Content-Type", "application/json")
			answer, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Errorf("1 GiB %s: %v", name, err)
				continue
			}
			answer.Body.Close()
			if answer.StatusCode != 413 {
				t.Errorf("1 GiB %s: %d, want 413", name, answer.StatusCode)
			}
		}
	}
	for start := time.Now(); time.Since(start) < 1500*time.Millisecond; { // alive needs a moment
		p.try("nobody", "wrong", "127.0.0.1")
	}
	stop()
	t.Logf("memory: %d MiB, after it %d", before, p.rss())
	if p.rss() > before+20 {
		t.Errorf("memory grows: %d MiB, %d", before, p.rss())
	}
}
