// metrics_test.go tests the figures for Prometheus.
package main

import (
	"errors"
	"maps"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// figures asks for the metrics, and returns their text and the value of each series.
func (s *accountServer) figures() (text string, series map[string]string) {
	w := httptest.NewRecorder()
	s.metrics.handler(s.store)(w, httptest.NewRequest("GET", "/metrics", nil))
	series = map[string]string{}
	for line := range strings.Lines(w.Body.String()) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), " "); ok && name != "#" {
			series[name] = value
		}
	}
	return w.Body.String(), series
}

func TestMetrics(t *testing.T) {
	s := newAccountServer(t, "-metrics", "localhost:0", "-public-url", "http://example.com")
	s.Handler = s.program // with Protect, which counts
	first, before := s.figures()
	line := regexp.MustCompile(`^(# HELP ringward_\w+ .+|# TYPE ringward_\w+ (counter|gauge|histogram)|ringward_\w+(\{\w+="[^"]*"(,\w+="[^"]*")*\})? [0-9.e+-]+)\n$`)
	for text := range strings.Lines(first) {
		if !line.MatchString(text) {
			t.Errorf("the line %q", text)
		}
	}
	if before["ringward_users"] != "2" || before["ringward_sessions"] != "0" {
		t.Errorf("at first %v", before)
	}

	cookie := s.enter("frodo", testPassword)
	for range pairLimit {
		s.want(http.StatusUnauthorized, nil, "POST", "/auth/session", credentials("sam", "wrong"))
	}
	s.want(http.StatusTooManyRequests, nil, "POST", "/auth/session", credentials("sam", testPassword))
	s.want(http.StatusOK, nil, "GET", "/ringsofpower", "", "Cookie", cookie)
	s.want(http.StatusSeeOther, nil, "GET", "/", "", "Accept", "text/html", "Cookie", "frodo=frodo")
	s.want(http.StatusNotFound, nil, "GET", "/frodo/with/a/path", "")
	s.metrics.sweep(7)
	s.store.Close()
	s.want(http.StatusServiceUnavailable, nil, "GET", "/healthz", "")

	after, series := s.figures()
	for name, want := range map[string]string{
		`ringward_http_requests_total{class="1xx"}`:    "0",
		`ringward_http_requests_total{class="2xx"}`:    "2",
		`ringward_http_requests_total{class="3xx"}`:    "1",
		`ringward_http_requests_total{class="4xx"}`:    "7",
		`ringward_http_requests_total{class="5xx"}`:    "1",
		`ringward_http_request_duration_seconds_count`: "11",
		`ringward_logins_total{outcome="ok"}`:          "1",
		`ringward_logins_total{outcome="failed"}`:      "5",
		`ringward_logins_total{outcome="throttled"}`:   "1",
		`ringward_logins_total{outcome="pending"}`:     "0",
		`ringward_store_write_duration_seconds_count`:  "4",
		`ringward_swept_records_total`:                 "7",
		`ringward_users`:                               "2",
		`ringward_sessions`:                            "0", // as counted less than a minute ago
	} {
		if series[name] != want {
			t.Errorf("%s is %s, want %s", name, series[name], want)
		}
	}
	if strings.Contains(after, "frodo") || !slices.Equal(slices.Sorted(maps.Keys(before)), slices.Sorted(maps.Keys(series))) {
		t.Errorf("what people and strangers do makes series:\n%s", after)
	}
	if n := len(series); n > 60 {
		t.Errorf("there are %d series", n)
	}
}

func TestHistogram(t *testing.T) {
	var h histogram
	for _, took := range []time.Duration{0, 100 * time.Microsecond, 101 * time.Microsecond, time.Second, time.Minute} {
		h.observe(took)
	}
	var out strings.Builder
	h.write(&out, "x")
	const want = `x_bucket{le="0.0001"} 2
x_bucket{le="0.001"} 3
x_bucket{le="0.005"} 3
x_bucket{le="0.025"} 3
x_bucket{le="0.1"} 3
x_bucket{le="0.5"} 3
x_bucket{le="2"} 4
x_bucket{le="10"} 4
x_bucket{le="+Inf"} 5
x_sum 61.000201
x_count 5
`
	if out.String() != want {
		t.Errorf("got %s", out.String())
	}
}

// countedStore says how often it was counted.
type countedStore struct {
	adminStore
	n   int
	err error
}

func (c *countedStore) count() (int, int, error) {
	c.n++
	return c.n, 10 * c.n, c.err
}

// To count a million sessions takes a while, so that is done once a minute.
func TestSessionsAreCountedOnceAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &countedStore{}
		m := new(Metrics)
		for _, c := range []struct {
			after time.Duration
			err   error
			users int
		}{
			{0, nil, 1}, {59 * time.Second, nil, 1}, {time.Second, nil, 2}, {time.Hour, errors.New("away"), 2}, {0, nil, 4}, {0, nil, 4},
		} {
			time.Sleep(c.after)
			store.err = c.err
			if users, live := m.count(store); users != c.users || live != 10*c.users {
				t.Errorf("after %v more: %d users, %d sessions, want %d", c.after, users, live, c.users)
			}
		}
	})
}

// BenchmarkMetrics is GET /ringsofpower with figures and without.
func BenchmarkMetrics(b *testing.B) {
	s := newBenchServer(b, filepath.Join(b.TempDir(), "bench.db"))
	s.addUsers(b, 1)
	cookie := s.addSessions(b, 1, 1, time.Now())[0]
	for _, m := range []*Metrics{nil, new(Metrics)} {
		b.Run(map[bool]string{true: "off", false: "on"}[m == nil], func(b *testing.B) {
			s.Handler.(*program).metrics = m
			r, w := benchRequest("GET", "/ringsofpower", "", "Cookie", cookie), &nowhere{}
			for b.Loop() {
				if status := w.statusOf(s, r); status != http.StatusOK {
					b.Fatal(status)
				}
			}
		})
	}
}
