// gateway_bench_test.go measures what the proxy costs beside a plain one.
package main

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"testing"
	"time"
)

// BenchmarkProxy asks a tool through the whole of ringward, and through the
// same ReverseProxy and nothing else. Rounds alternate, so that whatever else
// the machine does meets both; ratio is the requests per second of the first
// by those of the second.
func BenchmarkProxy(b *testing.B) {
	tool := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "a page of a tool\n")
	}))
	defer tool.Close()
	upstream, _ := url.Parse(tool.URL)

	plain := httptest.NewServer(&httputil.ReverseProxy{
		Rewrite:    func(p *httputil.ProxyRequest) { p.SetURL(upstream) },
		Transport:  &http.Transport{MaxIdleConnsPerHost: 256, DisableCompression: true},
		BufferPool: &buffers{},
	})
	defer plain.Close()
	store, err := OpenStore(filepath.Join(b.TempDir(), "test.db"))
	if err != nil {
		b.Fatal(err)
	}
	s := newTestServerOn(b, store) // adds frodo
	lines := newLineWriter()
	go lines.run(io.Discard)
	defer lines.end()
	guarded := httptest.NewUnstartedServer(nil)
	guarded.Config = newServer(newTestProgram(b, store, lines, "-proxy", tool.URL), newLogger(lines, false))
	guarded.Start()
	defer guarded.Close()
	cookie := s.login(b)

	run := func(base string) time.Duration { return benchRound(b, base, cookie) }
	run(plain.URL)
	run(guarded.URL)
	var through, past time.Duration
	for b.Loop() {
		through += run(guarded.URL)
		past += run(plain.URL)
	}
	b.ReportMetric(float64(b.N*benchRequests)/through.Seconds(), "ringward-req/s")
	b.ReportMetric(float64(b.N*benchRequests)/past.Seconds(), "plain-req/s")
	b.ReportMetric(past.Seconds()/through.Seconds(), "ratio")
}

// BenchmarkTools is BenchmarkProxy for -tools beside -proxy.
func BenchmarkTools(b *testing.B) {
	tool := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "a page of a tool\n")
	}))
	defer tool.Close()
	file := "127.0.0.1 " + tool.URL + " group=ops,dev public=/api/health,/public/ basic preflight timeout=5m\n"
	for n := range 50 {
		file += fmt.Sprintf("tool%d.example.com %s group=ops\n", n, tool.URL)
	}
	lines := newLineWriter()
	go lines.run(io.Discard)
	defer lines.end()
	begin := func(flags ...string) func() time.Duration {
		store, err := OpenStore(filepath.Join(b.TempDir(), "test.db"))
		if err != nil {
			b.Fatal(err)
		}
		s := newTestServerOn(b, store) // adds frodo
		if err := store.changeGroup("frodo", "dev", true); err != nil {
			b.Fatal(err)
		}
		server := httptest.NewUnstartedServer(nil)
		server.Config = newServer(newTestProgram(b, store, lines, flags...), newLogger(lines, false))
		server.Start()
		b.Cleanup(server.Close)
		cookie := s.login(b)
		return func() time.Duration { return benchRound(b, server.URL, cookie) }
	}
	one, several := begin("-proxy", tool.URL), begin("-tools", toolsFile(b, file))
	one()
	several()
	var through, past time.Duration
	for b.Loop() {
		through += several()
		past += one()
	}
	b.ReportMetric(float64(b.N*benchRequests)/through.Seconds(), "tools-req/s")
	b.ReportMetric(float64(b.N*benchRequests)/past.Seconds(), "proxy-req/s")
	b.ReportMetric(past.Seconds()/through.Seconds(), "ratio")
}

const benchRequests = 200 // of a round

var benchClient = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 256}}

// benchRound returns how long eight clients take for a round.
func benchRound(b *testing.B, base, cookie string) time.Duration {
	start := time.Now()
	done := make(chan error)
	const clients = 8
	for range clients {
		go func() {
			for range benchRequests / clients {
				r, _ := http.NewRequest("GET", base+"/reports?week=3", nil)
				r.Header.Set("Cookie", cookie)
				response, err := benchClient.Do(r)
				if err == nil {
					_, err = io.Copy(io.Discard, response.Body)
					response.Body.Close()
					if response.StatusCode != http.StatusOK {
						err = fmt.Errorf("%s: %s", base, response.Status)
					}
				}
				if err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	for range clients {
		if err := <-done; err != nil {
			b.Error(err)
		}
	}
	return time.Since(start)
}
