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

	const round = 200 // requests
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 256}}
	run := func(base string) time.Duration {
		start := time.Now()
		done := make(chan error)
		const clients = 8
		for range clients {
			go func() {
				for range round / clients {
					r, _ := http.NewRequest("GET", base+"/reports?week=3", nil)
					r.Header.Set("Cookie", cookie)
					response, err := client.Do(r)
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
	run(plain.URL)
	run(guarded.URL)
	var through, past time.Duration
	for b.Loop() {
		through += run(guarded.URL)
		past += run(plain.URL)
	}
	b.ReportMetric(float64(b.N*round)/through.Seconds(), "ringward-req/s")
	b.ReportMetric(float64(b.N*round)/past.Seconds(), "plain-req/s")
	b.ReportMetric(past.Seconds()/through.Seconds(), "ratio")
}
