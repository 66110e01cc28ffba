// metrics.go: figures for Prometheus, in its text format, at an address of
// their own. No user's name is among them, and nothing that a stranger chooses.
package main

import (
	"bytes"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// Metrics counts from the start of the process. A nil one counts nothing.
type Metrics struct {
	requests [6]atomic.Int64 // by status/100
	took     histogram
	reads    histogram // of the store
	writes   histogram
	logins   counters
	swept    atomic.Int64

	mu      sync.Mutex // guards what follows
	counted time.Time
	users   int
	live    int
}

// histogram counts durations up to each of its bounds.
type histogram struct {
	counts [len(bounds) + 1]atomic.Int64
	nanos  atomic.Int64
}

var bounds = [...]time.Duration{100 * time.Microsecond, time.Millisecond, 5 * time.Millisecond, 25 * time.Millisecond,
	100 * time.Millisecond, 500 * time.Millisecond, 2 * time.Second, 10 * time.Second}

func (h *histogram) observe(d time.Duration) {
	i, _ := slices.BinarySearch(bounds[:], d) // a bound belongs to what it bounds
	h.counts[i].Add(1)
	h.nanos.Add(int64(d))
}

// counters are of a few names, all from this program.
type counters struct {
	mu     sync.Mutex
	values map[string]int64
}

// loginOutcomes are events of the log, and what they count as.
var loginOutcomes = map[string]string{"login ok": "ok", "password ok": "pending", "login failed": "failed", "code wrong": "failed",
	"passkey refused": "failed", "login throttled": "throttled"}

// event counts one of the log's events.
func (m *Metrics) event(what string) {
	if m == nil || loginOutcomes[what] == "" {
		return
	}
	m.logins.mu.Lock()
	m.logins.values[loginOutcomes[what]]++
	m.logins.mu.Unlock()
}

func (m *Metrics) request(status int, took time.Duration) {
	if m != nil {
		m.requests[min(max(status/100, 0), 5)].Add(1)
		m.took.observe(took)
	}
}

func (m *Metrics) sweep(n int) {
	if m != nil {
		m.swept.Add(int64(n))
	}
}

func (m *Metrics) store(write bool, took time.Duration) {
	if write {
		m.writes.observe(took)
	} else {
		m.reads.observe(took)
	}
}

func newMetrics() *Metrics {
	m := &Metrics{}
	m.logins.values = map[string]int64{"ok": 0, "pending": 0, "failed": 0, "throttled": 0}
	return m
}

// handler is GET /metrics.
func (m *Metrics) handler(store adminStore) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		m.count(store)
		var b bytes.Buffer
		head := func(name, kind, help string) { fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind) }
		head("ringward_http_requests_total", "counter", "Requests by class of status.")
		for class := 1; class <= 5; class++ {
			fmt.Fprintf(&b, "ringward_http_requests_total{class=\"%dxx\"} %d\n", class, m.requests[class].Load())
		}
		m.took.write(&b, "ringward_http_request_duration_seconds", "How long requests took.")
		head("ringward_logins_total", "counter", "Tries to log in by outcome; pending ones go on to a second factor.")
		m.logins.mu.Lock()
		for _, outcome := range []string{"failed", "ok", "pending", "throttled"} {
			fmt.Fprintf(&b, "ringward_logins_total{outcome=%q} %d\n", outcome, m.logins.values[outcome])
		}
		m.logins.mu.Unlock()
		m.reads.write(&b, "ringward_store_read_duration_seconds", "How long reads of the store took.")
		m.writes.write(&b, "ringward_store_write_duration_seconds", "How long writes to the store took, until they were on disk.")
		head("ringward_swept_records_total", "counter", "Expired records that were deleted.")
		fmt.Fprintf(&b, "ringward_swept_records_total %d\n", m.swept.Load())
		m.mu.Lock()
		head("ringward_users", "gauge", "Users, counted once a minute.")
		fmt.Fprintf(&b, "ringward_users %d\n", m.users)
		head("ringward_sessions", "gauge", "Live sessions, counted once a minute.")
		fmt.Fprintf(&b, "ringward_sessions %d\n", m.live)
		m.mu.Unlock()
		head("ringward_build_info", "gauge", "Which version this is.")
		fmt.Fprintf(&b, "ringward_build_info{version=%q} 1\n", version())
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		w.Write(b.Bytes())
	}
}

func (h *histogram) write(b *bytes.Buffer, name, help string) {
	fmt.Fprintf(b, "# HELP %s %s\n# TYPE %s histogram\n", name, help, name)
	sum := int64(0)
	for i := range h.counts {
		bound := "+Inf"
		if sum += h.counts[i].Load(); i < len(bounds) {
			bound = strconv.FormatFloat(bounds[i].Seconds(), 'g', -1, 64)
		}
		fmt.Fprintf(b, "%s_bucket{le=%q} %d\n", name, bound, sum)
	}
	fmt.Fprintf(b, "%s_sum %g\n%s_count %d\n", name, time.Duration(h.nanos.Load()).Seconds(), name, sum)
}

// count looks at the store when that was long ago.
func (m *Metrics) count(store adminStore) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if time.Since(m.counted) < time.Minute {
		return
	}
	if users, live, err := store.count(); err == nil {
		m.users, m.live, m.counted = users, live, time.Now()
	}
}
