// metrics.go: figures for Prometheus, in its text format, at an address of
// their own. No user's name is among them, and nothing that a stranger chooses.
package main

import (
	"fmt"
	"io"
	"net/http"
	"slices"
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
	logins   [len(outcomes)]atomic.Int64
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

// outcomes of logins. A pending one goes on to a second factor.
var outcomes = [...]string{"failed", "ok", "pending", "throttled"}

// outcomeOf says which events of the log are outcomes.
var outcomeOf = map[string]int{"login failed": 0, "code wrong": 0, "passkey refused": 0, "login ok": 1, "password ok": 2, "login throttled": 3}

// event counts one of the log's events.
func (m *Metrics) event(what string) {
	if i, ok := outcomeOf[what]; ok {
		m.logins[i].Add(1)
	}
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

// handler is GET /metrics.
func (m *Metrics) handler(store adminStore) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		head := func(name, kind, help string) string {
			fmt.Fprintf(w, "# HELP %s %s\n# TYPE %[1]s %[3]s\n", name, help, kind)
			return name
		}
		one := func(name, kind, help string, value any) { fmt.Fprintf(w, "%s %v\n", head(name, kind, help), value) }

		name := head("ringward_http_requests_total", "counter", "Requests by class of status.")
		for class := 1; class <= 5; class++ {
			fmt.Fprintf(w, "%s{class=\"%dxx\"} %d\n", name, class, m.requests[class].Load())
		}
		name = head("ringward_logins_total", "counter", "Tries to log in by outcome; pending ones go on to a second factor.")
		for i, outcome := range outcomes {
			fmt.Fprintf(w, "%s{outcome=%q} %d\n", name, outcome, m.logins[i].Load())
		}
		m.took.write(w, head("ringward_http_request_duration_seconds", "histogram", "How long requests took."))
		m.reads.write(w, head("ringward_store_read_duration_seconds", "histogram", "How long reads of the store took."))
		m.writes.write(w, head("ringward_store_write_duration_seconds", "histogram", "How long writes to the store took, until they were on disk."))
		one("ringward_swept_records_total", "counter", "Expired records that were deleted.", m.swept.Load())
		users, live := m.count(store)
		one("ringward_users", "gauge", "Users, counted once a minute.", users)
		one("ringward_sessions", "gauge", "Sessions that were not swept, counted once a minute.", live)
		name = head("ringward_build_info", "gauge", "Which version this is.")
		fmt.Fprintf(w, "%s{version=%q,commit=%q} 1\n", name, version(), commit())
	}
}

func (h *histogram) write(w io.Writer, name string) {
	sum := int64(0)
	for i := range bounds {
		sum += h.counts[i].Load()
		fmt.Fprintf(w, "%s_bucket{le=\"%g\"} %d\n", name, bounds[i].Seconds(), sum)
	}
	sum += h.counts[len(bounds)].Load()
	fmt.Fprintf(w, "%s_bucket{le=\"+Inf\"} %d\n%[1]s_sum %[3]g\n%[1]s_count %[2]d\n", name, sum, time.Duration(h.nanos.Load()).Seconds())
}

// count looks at the store when that was long ago.
func (m *Metrics) count(store adminStore) (users, live int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if time.Since(m.counted) >= time.Minute {
		if users, live, err := store.count(); err == nil {
			m.users, m.live, m.counted = users, live, time.Now()
		}
	}
	return m.users, m.live
}
