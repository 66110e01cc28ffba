// stream_test.go tests requests through the proxy that take long, and when they
// end. See gateway_test.go for the pipes.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// A client that breaks off is not a tool that failed.
func TestClientBreaksOff(t *testing.T) {
	inFront(t, nil, nil, func(t *testing.T, f *front) {
		response, body := f.send("POST / HTTP/1.1\nHost: localhost\nCookie: COOKIE\nTransfer-Encoding: chunked\n\n3\r\nabc\r\nnonsense\r\n")
		wantError(t, response, body, http.StatusBadRequest)
		conn := f.begin("POST / HTTP/1.1\nHost: localhost\nCookie: COOKIE\nContent-Length: 10\n\nabc")
		synctest.Wait()
		conn.Close()
		synctest.Wait()
		if strings.Contains(f.log.String(), "tool failed") {
			t.Errorf("the log says:\n%s", f.log)
		}
	})
}

// streams is a tool with all that stays open.
func streams(w http.ResponseWriter, r *http.Request) {
	control := http.NewResponseController(w)
	switch r.URL.Path {
	case "/socket":
		conn, rw, err := control.Hijack()
		if err != nil {
			panic(err)
		}
		defer conn.Close()
		rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		rw.Flush()
		io.Copy(conn, rw)
	case "/events":
		w.Header().Set("Content-Type", "text/event-stream")
		control.Flush()
		for n := 0; r.Context().Err() == nil; n++ {
			fmt.Fprintf(w, "data: %d\n\n", n)
			control.Flush()
			select {
			case <-time.After(time.Second):
			case <-r.Context().Done():
			}
		}
	case "/silent":
		w.Header().Set("Content-Type", "text/event-stream")
		control.Flush()
		<-r.Context().Done()
	case "/endless":
		w.Header().Set("Content-Length", "1000000000000")
		for b := make([]byte, 1<<10); r.Context().Err() == nil; {
			if _, err := w.Write(b); err != nil {
				return
			}
		}
	case "/upload":
		n, _ := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, n)
	case "/early":
		w.WriteHeader(http.StatusRequestEntityTooLarge)
	}
}

const socket = "GET /socket HTTP/1.1\nHost: localhost\nCookie: COOKIE\nConnection: Upgrade\nUpgrade: websocket\nOrigin: http://localhost\n\n"

func TestWebSocket(t *testing.T) {
	inFront(t, http.HandlerFunc(streams), nil, func(t *testing.T, f *front) {
		conn, response := f.open(socket)
		defer conn.Close()
		if response.StatusCode != http.StatusSwitchingProtocols || response.Header.Get("X-Content-Type-Options") != "" {
			t.Fatalf("got %s %v", response.Status, response.Header)
		}
		for n := range 100 {
			said := fmt.Sprintf("message %3d", n)
			go io.WriteString(conn, said)
			heard := make([]byte, len(said))
			if _, err := io.ReadFull(conn, heard); err != nil || string(heard) != said {
				t.Fatalf("got %q, %v, want %q", heard, err, said)
			}
			time.Sleep(time.Minute)
		}
	})
}

func TestEventsComeAtOnce(t *testing.T) {
	inFront(t, http.HandlerFunc(streams), nil, func(t *testing.T, f *front) {
		start := time.Now()
		conn, response := f.open(get("/events"))
		defer conn.Close()
		for n := range 200 {
			event := make([]byte, len(fmt.Sprintf("data: %d\n\n", n)))
			if _, err := io.ReadFull(response.Body, event); err != nil || string(event) != fmt.Sprintf("data: %d\n\n", n) {
				t.Fatalf("got %q, %v", event, err)
			}
			if late := time.Since(start) - time.Duration(n)*time.Second; late > 0 {
				t.Fatalf("event %d came %v late", n, late)
			}
		}
		// and its headers before the first one
		silent, _ := f.open(get("/silent"))
		silent.Close()
	})
}

// Requests without a pause that is longer than newServer's limits, and with.
func TestLongBodiesPass(t *testing.T) {
	inFront(t, http.HandlerFunc(streams), nil, func(t *testing.T, f *front) {
		conn := f.begin("POST /upload HTTP/1.1\nHost: localhost\nCookie: COOKIE\nContent-Length: 300\n\n")
		defer conn.Close()
		go func() {
			for n := range 300 {
				time.Sleep(time.Duration(1+n%40) * time.Second)
				conn.Write([]byte("x"))
			}
		}()
		response, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatalf("%v\n%s", err, f.log)
		}
		if body, _ := io.ReadAll(response.Body); string(body) != "300" {
			t.Errorf("got %s %q", response.Status, body)
		}
	})
}

// stream begins a request and leaves the rest of it to client. What it returns says
// when ringward was done with it.
func (f *front) stream(request string, client func(*front, net.Conn)) (over <-chan time.Time) {
	f.Helper()
	done := func() int { return strings.Count(f.log.String(), "msg=request ") }
	n, c := done(), make(chan time.Time, 1)
	conn := f.begin(request)
	go func() {
		client(f, conn)
		conn.Close()
	}()
	go func() {
		for done() == n {
			time.Sleep(time.Second)
		}
		c <- time.Now()
	}()
	return c
}

func isOver(over <-chan time.Time) bool {
	synctest.Wait()
	return len(over) > 0
}

var (
	listens = func(_ *front, conn net.Conn) { io.Copy(io.Discard, conn) }
	stalls  = func(f *front, _ net.Conn) { <-f.finished }
	slowly  = func(f *front, conn net.Conn) {
		for err := error(nil); err == nil; time.Sleep(time.Second) {
			_, err = io.CopyN(io.Discard, conn, 1<<10)
		}
	}
)

// What stays open ends within a minute after its session has, whatever the
// client does, and not before.
func TestStreamsEndWithTheSession(t *testing.T) {
	for name, c := range map[string]struct {
		request string
		client  func(*front, net.Conn)
	}{
		"socket":         {socket, listens},
		"stalled socket": {socket, stalls},
		"stuffed socket": {socket, func(f *front, conn net.Conn) {
			conn.Read(make([]byte, 1))           // the response has begun
			for err := error(nil); err == nil; { // and the echo is not heard
				_, err = conn.Write(make([]byte, 1<<10))
			}
			stalls(f, conn)
		}},
		"events": {get("/events"), listens},
		"stalled events": {get("/events"), func(f *front, conn net.Conn) {
			// While the first bytes wait for the client, a goroutine of
			// ReverseProxy waits for a mutex, which to synctest is not waiting.
			io.CopyN(io.Discard, conn, 1000)
			stalls(f, conn)
		}},
		"silent events":    {get("/silent"), listens},
		"slow download":    {get("/endless"), slowly},
		"stalled download": {get("/endless"), stalls},
		"slow upload": {"POST /upload HTTP/1.1\nHost: localhost\nCookie: COOKIE\nContent-Length: 1000000\n\n", func(f *front, conn net.Conn) {
			for err := error(nil); err == nil; {
				time.Sleep(time.Second)
				_, err = conn.Write([]byte("x"))
			}
		}},
		"stalled upload": {"POST /upload HTTP/1.1\nHost: localhost\nCookie: COOKIE\nTransfer-Encoding: chunked\n\n3\r\nabc\r\n", stalls},
	} {
		t.Run(name, func(t *testing.T) {
			inFront(t, http.HandlerFunc(streams), nil, func(t *testing.T, f *front) {
				over := f.stream(c.request, c.client)
				time.Sleep(20 * time.Minute)
				if isOver(over) {
					t.Fatalf("ended while the session lived:\n%s", f.log)
				}
				f.do("DELETE", "/auth/session", "", "Cookie", f.cookie)
				logout := time.Now()
				if took := (<-over).Sub(logout); took > time.Minute {
					t.Errorf("ended %v after its session", took)
				}
				synctest.Wait()
				if n := f.inTool.Load(); n != 0 {
					t.Errorf("the tool still has %d requests", n)
				}
			})
		})
	}
}

// Who still sends is told why it is over.
func TestUploadIsToldOfItsEnd(t *testing.T) {
	inFront(t, http.HandlerFunc(streams), nil, func(t *testing.T, f *front) {
		told := make(chan string, 1)
		f.stream("POST /upload HTTP/1.1\nHost: localhost\nCookie: COOKIE\nContent-Length: 100\n\n", func(_ *front, conn net.Conn) {
			b, _ := io.ReadAll(conn)
			told <- string(b)
		})
		time.Sleep(time.Hour)
		f.do("DELETE", "/auth/session", "", "Cookie", f.cookie)
		logout := time.Now()
		if got := <-told; !strings.HasPrefix(got, "HTTP/1.1 401 ") || time.Since(logout) > time.Minute {
			t.Errorf("after %v: %q", time.Since(logout), got)
		}
	})
}

// A body that is held back while its sender logs out never reaches the tool as
// a whole one.
func TestUploadHeldBack(t *testing.T) {
	for name, c := range map[string]struct{ head, first, rest string }{
		"with its length":         {"Content-Length: 6", "abc", "def"},
		"chunked":                 {"Transfer-Encoding: chunked", "3\r\nabc\r\n", "3\r\ndef\r\n0\r\n\r\n"},
		"chunked, but its end":    {"Transfer-Encoding: chunked", "6\r\nabcdef\r\n", "0\r\n\r\n"},
		"chunked, with a trailer": {"Transfer-Encoding: chunked\nTrailer: A", "6\r\nabcdef\r\n", "0\r\nA: b\r\n\r\n"},
	} {
		got := make(chan error, 1)
		inFront(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, err := io.Copy(io.Discard, r.Body)
			got <- err
		}), nil, func(t *testing.T, f *front) {
			conn := f.begin("POST / HTTP/1.1\nHost: localhost\nCookie: COOKIE\n" + c.head + "\n\n" + c.first)
			defer conn.Close()
			synctest.Wait() // until all of it is read
			f.do("DELETE", "/auth/session", "", "Cookie", f.cookie)
			go io.WriteString(conn, c.rest)
			response, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(response.Body)
			wantError(t, response, string(body), http.StatusUnauthorized)
			synctest.Wait()
			select {
			case err := <-got:
				if err == nil {
					t.Errorf("%s: the tool got a whole body", name)
				}
			default: // it got no header either
			}
		})
	}
}

func TestUploadHeldBackOverHTTP2(t *testing.T) {
	const size = 100_000
	for _, length := range []int64{2 * size, -1} {
		begun, got := make(chan bool), make(chan error)
		s, server := overHTTP2(t, func(w http.ResponseWriter, r *http.Request) {
			_, err := io.CopyN(io.Discard, r.Body, size/2)
			begun <- err == nil
			_, err = io.Copy(io.Discard, r.Body)
			got <- err
		})
		cookie := s.enter("frodo", testPassword)
		reader, writer := io.Pipe()
		r, err := http.NewRequest("POST", server.URL+"/x", reader)
		if err != nil {
			t.Fatal(err)
		}
		r.ContentLength = length
		r.Header.Set("Cookie", cookie)
		statuses := make(chan int, 1)
		go func() {
			response, err := server.Client().Do(r)
			if err != nil {
				t.Error(err)
				statuses <- 0
				return
			}
			response.Body.Close()
			statuses <- response.StatusCode
		}()
		writer.Write(make([]byte, size))
		if !<-begun {
			t.Error("the tool got no body")
		}
		s.want(http.StatusNoContent, nil, "DELETE", "http://localhost/auth/session", "", "Cookie", cookie)
		writer.Write(make([]byte, size))
		writer.Close()
		if err := <-got; err == nil {
			t.Errorf("Content-Length %d: the tool got a whole body", length)
		}
		if status := <-statuses; status != http.StatusUnauthorized {
			t.Errorf("Content-Length %d: %d, want 401", length, status)
		}
	}
}

// A stream that carries nothing is not use: it does not keep its session alive.
func TestSilentStreamRenewsNothing(t *testing.T) {
	inFront(t, http.HandlerFunc(streams), nil, func(t *testing.T, f *front) {
		start := time.Now()
		over := f.stream(get("/silent"), listens)
		if took := (<-over).Sub(start); took < f.auth.Idle || took > f.auth.Idle+time.Minute {
			t.Errorf("ended after %v of a session that idles for %v", took, f.auth.Idle)
		}
	})
}

func TestStreamEndsWithItsToken(t *testing.T) {
	inFront(t, http.HandlerFunc(streams), nil, func(t *testing.T, f *front) {
		token, secret := f.apiToken()
		over := f.stream("GET /silent HTTP/1.1\nHost: localhost\nAuthorization: Bearer "+secret+"\n\n", listens)
		time.Sleep(time.Hour)
		if isOver(over) {
			t.Fatal("ended while the token lived")
		}
		f.store.removeToken(token.Key)
		gone := time.Now()
		if took := (<-over).Sub(gone); took > time.Minute {
			t.Errorf("ended %v after its token", took)
		}
	})
}

// shaky is a Store that fails as told.
type shaky struct {
	Store
	fails atomic.Bool
}

func (s *shaky) session(k Key, now time.Time) (Session, User, error) {
	if s.fails.Load() {
		return Session{}, User{}, errors.New("disk on fire")
	}
	return s.Store.session(k, now)
}

func TestStreamWhenTheStoreFails(t *testing.T) {
	inFront(t, http.HandlerFunc(streams), nil, func(t *testing.T, f *front) {
		store := &shaky{Store: f.store}
		f.auth.store = store
		over := f.stream(get("/silent"), listens)
		synctest.Wait()
		for range 10 {
			store.fails.Store(true)
			time.Sleep(recheck)
			store.fails.Store(false)
			time.Sleep(recheck)
		}
		if isOver(over) {
			t.Fatal("ended after one doubt")
		}
		store.fails.Store(true)
		failed := time.Now()
		if took := (<-over).Sub(failed); took > time.Minute {
			t.Errorf("ended %v after the store failed", took)
		}
	})
}

// The response is there while the client still sends, and it sends no more.
func TestEarlyAnswer(t *testing.T) {
	inFront(t, http.HandlerFunc(streams), nil, func(t *testing.T, f *front) {
		start := time.Now()
		over := f.stream("POST /early HTTP/1.1\nHost: localhost\nCookie: COOKIE\nContent-Length: 1000000\n\nabc", func(f *front, conn net.Conn) {
			response, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil || response.StatusCode != http.StatusRequestEntityTooLarge {
				t.Errorf("got %v, %v", response, err)
			}
			stalls(f, conn)
		})
		if took := (<-over).Sub(start); took > 20*time.Second {
			t.Errorf("held for %v", took)
		}
	})
}
