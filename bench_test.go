// bench_test.go measures the functions on the way of a request, and how their
// cost grows with what is kept:
//
//	go test -run '^$' -bench . -benchmem
//
// bench/run.sh measures the program itself, against others.
package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
)

// nowhere is a ResponseWriter that keeps the status only.
type nowhere struct {
	header http.Header
	status int
}

func (n *nowhere) Header() http.Header         { return n.header }
func (n *nowhere) WriteHeader(status int)      { n.status = status }
func (n *nowhere) Write(b []byte) (int, error) { return len(b), nil }

// statusOf is the status of h's response.
func (n *nowhere) statusOf(h http.Handler, r *http.Request) int {
	n.header, n.status = make(http.Header, 8), http.StatusOK
	h.ServeHTTP(n, r)
	return n.status
}

// benchServer is the whole program but for its listener and the writing of its
// log.
type benchServer struct {
	http.Handler
	auth  *Auth
	store *BoltStore
}

func newBenchServer(b *testing.B, path string) *benchServer {
	b.Helper()
	store, err := OpenStore(path)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { store.Close() })
	p := newTestProgram(b, store, io.Discard)
	return &benchServer{p, p.auth, store}
}

func (s *benchServer) addUsers(b *testing.B, n int) {
	b.Helper()
	hash, err := s.auth.hashPassword(b.Context(), testPassword)
	if err != nil {
		b.Fatal(err)
	}
	err = s.store.update(func(tx *bolt.Tx) error {
		for i := range n {
			if err := putUser(tx, User{Name: fmt.Sprint("user", i), Hash: hash, Created: time.Now()}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
}

// addSessions puts n live sessions, shared out among the first of so many
// users, into the store and returns the cookies of up to 50,000 of them: more
// than are remembered, so that most reads are of the file.
func (s *benchServer) addSessions(b *testing.B, n, users int, now time.Time) (cookies []string) {
	b.Helper()
	defer func(was bool) { s.store.db.NoSync = was }(s.store.db.NoSync)
	s.store.db.NoSync = true
	every := max(1, n/50_000)
	r := benchRequest("GET", "/", "", "User-Agent", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0)")
	for done := 0; done < n; {
		err := s.store.update(func(tx *bolt.Tx) error {
			for range min(2_000, n-done) { // larger commits would leave a larger file
				session, id := s.auth.newSession(fmt.Sprint("user", done%users), r, now)
				if err := putSession(tx, session); err != nil {
					return err
				}
				if done%every == 0 {
					cookies = append(cookies, s.auth.signed(id))
				}
				done++
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	return cookies
}

func benchRequest(method, path, body string, headers ...string) *http.Request {
	r := httptest.NewRequest(method, "http://localhost"+path, strings.NewReader(body))
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	return r
}

// BenchmarkRequest is GET /ringsofpower. "encoding alone" is what a handler
// without anything around it pays.
func BenchmarkRequest(b *testing.B) {
	s := newBenchServer(b, filepath.Join(b.TempDir(), "bench.db"))
	s.addUsers(b, 1)
	cookie := s.addSessions(b, 1, 1, time.Now())[0]
	rings := append([]Ring(nil), twentyRings...)
	encode := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { respond(w, http.StatusOK, rings) })
	for _, c := range []struct {
		name, cookie string
		h            http.Handler
		status       int
	}{
		{"session", cookie, s, 200},
		{"no cookie", "", s, 401},
		{"bad signature", cookie[:len(cookie)-2] + "~~", s, 401},
		{"encoding alone", "", encode, 200},
	} {
		b.Run(c.name, func(b *testing.B) {
			r, w := benchRequest("GET", "/ringsofpower", "", "Cookie", c.cookie), &nowhere{}
			b.ReportAllocs()
			for b.Loop() {
				if status := w.statusOf(c.h, r); status != c.status {
					b.Fatal(status)
				}
			}
		})
	}
}

// BenchmarkCheck is who a request comes from, for a session in use.
func BenchmarkCheck(b *testing.B) {
	s := newBenchServer(b, filepath.Join(b.TempDir(), "bench.db"))
	s.addUsers(b, 1)
	now := time.Now()
	r := benchRequest("GET", "/", "", "Cookie", s.addSessions(b, 1, 1, now)[0])
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.auth.check(r, now); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkVerifySignature(b *testing.B) {
	key := newSigningKey(testKey)
	id, _ := newSecret()
	signature := key.sign("ringward", id)
	b.ReportAllocs()
	for b.Loop() {
		if !key.verify("ringward", id, signature) {
			b.Fatal("not verified")
		}
	}
}

// BenchmarkStore is what depends on how many sessions there are. With
// BENCH_KEEP=FOLDER it leaves the largest store and its cookies there.
func BenchmarkStore(b *testing.B) {
	for _, n := range []int{1, 1000, 100_000, 1_000_000} {
		b.Run(fmt.Sprint("sessions=", n), func(b *testing.B) {
			path, users := filepath.Join(b.TempDir(), "bench.db"), min(n, 10_000)
			s := newBenchServer(b, path)
			s.addUsers(b, users+1)
			now := time.Now()
			cookies := s.addSessions(b, n, users, now)
			if err := s.store.db.Sync(); err != nil {
				b.Fatal(err)
			}
			requests := make([]*http.Request, len(cookies))
			for i, cookie := range cookies {
				requests[i] = benchRequest("GET", "/ringsofpower", "", "Cookie", cookie)
			}
			if folder := os.Getenv("BENCH_KEEP"); folder != "" && n == 1_000_000 {
				keepCopy(b, s.store, cookies, folder)
			}

			b.Run("check", func(b *testing.B) {
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					if _, err := s.auth.check(requests[i%len(requests)], now); err != nil {
						b.Fatal(err)
					}
				}
			})
			b.Run("GET", func(b *testing.B) {
				b.ReportAllocs()
				w := &nowhere{}
				for i := 0; b.Loop(); i++ {
					if status := w.statusOf(s, requests[i%len(requests)]); status != 200 {
						b.Fatal(status)
					}
				}
			})
			b.Run("login", func(b *testing.B) { // at cost 4: one commit, hardly any bcrypt
				body, w := credentials(fmt.Sprint("user", users), testPassword), &nowhere{}
				for b.Loop() {
					if status := w.statusOf(s, benchRequest("POST", "/auth/session", body)); status != 201 {
						b.Fatal(status)
					}
				}
			})
			b.Run("sweep of nothing", func(b *testing.B) {
				for b.Loop() {
					if n, err := s.store.Sweep(context.Background(), now); n != 0 || err != nil {
						b.Fatal(n, err)
					}
				}
			})
			b.Run("sweep of 1000", func(b *testing.B) {
				ago := now.Add(-48 * time.Hour)
				for b.Loop() {
					b.StopTimer()
					s.addSessions(b, 1000, users, ago)
					b.StartTimer()
					if n, err := s.store.Sweep(context.Background(), now); n != 1000 || err != nil {
						b.Fatal(n, err)
					}
				}
			})
			if err := s.store.Close(); err != nil {
				b.Fatal(err)
			}
			b.Run("start", func(b *testing.B) {
				for b.Loop() {
					store, err := OpenStore(path)
					if err == nil {
						err = store.Close()
					}
					if err != nil {
						b.Fatal(err)
					}
				}
				file, err := os.Stat(path)
				if err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(file.Size())/(1<<20), "MiB-file")
			})
		})
	}
}

func keepCopy(b *testing.B, store *BoltStore, cookies []string, folder string) {
	file, err := os.Create(filepath.Join(folder, "sessions.db"))
	if err != nil {
		b.Fatal(err)
	}
	defer file.Close()
	if err = store.backup(file); err == nil {
		err = os.WriteFile(filepath.Join(folder, "cookies"), []byte(strings.Join(cookies, "\n")+"\n"), 0o600)
	}
	if err != nil {
		b.Fatal(err)
	}
}

// BenchmarkWrite is one client, and 64 at a time, whose writes share commits.
func BenchmarkWrite(b *testing.B) {
	s := newBenchServer(b, filepath.Join(b.TempDir(), "bench.db"))
	s.addUsers(b, 1)
	now := time.Now()
	cookie := s.addSessions(b, 1, 1, now)[0]
	measure := func(b *testing.B, clients, status int, next func(i int64) *http.Request) {
		before := lastWrite(b, s.store)
		var done atomic.Int64
		write := func(w *nowhere) {
			if got := w.statusOf(s, next(done.Add(1)-1)); got != status {
				b.Error(got)
			}
		}
		b.ResetTimer()
		if clients == 1 {
			for w := (&nowhere{}); done.Load() < int64(b.N); {
				write(w)
			}
		} else {
			b.SetParallelism(max(1, clients/runtime.GOMAXPROCS(0)))
			b.RunParallel(func(pb *testing.PB) {
				for w := (&nowhere{}); pb.Next(); {
					write(w)
				}
			})
		}
		b.StopTimer()
		b.ReportMetric(float64(lastWrite(b, s.store)-before)/float64(b.N), "commits/op")
	}
	for _, clients := range []int{1, 64} {
		b.Run(fmt.Sprint("logout/clients=", clients), func(b *testing.B) {
			var cookies []string
			for len(cookies) < b.N {
				cookies = append(cookies, s.addSessions(b, min(b.N-len(cookies), 50_000), 1, now)...)
			}
			measure(b, clients, http.StatusNoContent, func(i int64) *http.Request {
				return benchRequest("DELETE", "/auth/session", "", "Cookie", cookies[i])
			})
		})
		b.Run(fmt.Sprint("ring/clients=", clients), func(b *testing.B) {
			measure(b, clients, http.StatusOK, func(int64) *http.Request {
				return benchRequest("PUT", "/ringsofpower/20", `{"name":"The One Ring","bearer":"frodo"}`, "Cookie", cookie)
			})
		})
	}
}

// BenchmarkChurn is a day in a minute: 1,000,000 sessions of an hour each, made
// over 24 hours and swept every minute. It reports the file's size, as a
// multiple of the live data at their peak too, and the heap at the end.
func BenchmarkChurn(b *testing.B) {
	for b.Loop() {
		path := filepath.Join(b.TempDir(), "bench.db")
		s := newBenchServer(b, path)
		s.addUsers(b, 1000)
		s.store.db.NoSync = true
		s.auth.Idle = time.Hour
		const minutes, logins, commits = 24 * 60, 700, 10
		start, peak := time.Now().Add(-24*time.Hour), 0
		for minute := range minutes {
			now := start.Add(time.Duration(minute) * time.Minute)
			for range commits { // as logins come: few to a commit
				s.addSessions(b, logins/commits, 1000, now)
			}
			if _, err := s.store.Sweep(context.Background(), now); err != nil {
				b.Fatal(err)
			}
			if minute%60 == 59 {
				peak = max(peak, liveBytes(b, s.store))
			}
		}
		if n, err := s.store.Sweep(context.Background(), start.Add(48*time.Hour)); n < logins || err != nil {
			b.Fatal(n, err)
		}
		file, err := os.Stat(path)
		if err != nil {
			b.Fatal(err)
		}
		runtime.GC()
		var memory runtime.MemStats
		runtime.ReadMemStats(&memory)
		b.ReportMetric(float64(peak)/(1<<20), "MiB-peak-data")
		b.ReportMetric(float64(file.Size())/(1<<20), "MiB-file")
		b.ReportMetric(float64(file.Size())/float64(peak), "file/peak")
		b.ReportMetric(float64(memory.HeapAlloc)/(1<<20), "MiB-heap")
	}
}

// liveBytes is the length of all keys and values.
func liveBytes(b *testing.B, store *BoltStore) (n int) {
	b.Helper()
	err := store.db.View(func(tx *bolt.Tx) error {
		return tx.ForEach(func(_ []byte, bucket *bolt.Bucket) error {
			return bucket.ForEach(func(k, v []byte) error { n += len(k) + len(v); return nil })
		})
	})
	if err != nil {
		b.Fatal(err)
	}
	return n
}
