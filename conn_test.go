// conn_test.go tests when the server gives up on a client, to the second, and
// that nothing but the first answer of a connection can be taken for a refusal.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// Who says nothing, or too slowly, or does not listen, is let go in time, on a
// new connection as on one that was used before.
func TestSlowClients(t *testing.T) {
	const get, long, post = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "GET /long HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n"
	listens := func(conn net.Conn) { io.Copy(io.Discard, conn) }
	dribbles := func(conn net.Conn) {
		go listens(conn)
		for err := error(nil); err == nil; time.Sleep(time.Second) {
			_, err = conn.Write([]byte("x"))
		}
	}
	for name, c := range map[string]struct {
		says  string
		then  func(net.Conn)
		limit time.Duration
	}{
		"stops in headers":  {get[:20], listens, 5 * time.Second},
		"dribbles headers":  {get[:16], dribbles, 5 * time.Second},
		"stops in body":     {post + "xyz", listens, 15 * time.Second},
		"dribbles body":     {post, dribbles, 15 * time.Second},
		"does not listen":   {long, func(net.Conn) {}, 30 * time.Second},
		"listens to little": {long, func(conn net.Conn) { io.CopyN(io.Discard, conn, 10_000) }, 30 * time.Second},
		"listens slowly": {long, func(conn net.Conn) {
			for err := error(nil); err == nil; time.Sleep(time.Second) {
				_, err = io.CopyN(io.Discard, conn, 100)
			}
		}, 30 * time.Second},
		"says nothing more": {"", listens, 60 * time.Second},
	} {
		for _, before := range []int{0, 1, 2, 9} {
			limit := c.limit
			if before == 0 && c.says == "" {
				limit = 5 * time.Second // headers are due from the beginning
			}
			t.Run(fmt.Sprintf("%s after %d", name, before), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					clients := newPipes(peer)
					server := newServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						if _, err := io.Copy(io.Discard, r.Body); err != nil {
							panic(http.ErrAbortHandler)
						}
						if r.URL.Path == "/long" {
							w.Write(make([]byte, 1<<20))
						}
					}), newLogger(io.Discard, false))
					closed := make(chan time.Time, 1)
					server.ConnState = func(_ net.Conn, state http.ConnState) {
						if state == http.StateClosed {
							closed <- time.Now()
						}
					}
					go server.Serve(tcpListener{clients, func(http.Header) {}})
					defer server.Close()
					conn, err := clients.dial(t.Context(), "", "")
					if err != nil {
						t.Fatal(err)
					}
					answers := bufio.NewReader(conn)
					for i := range before {
						time.Sleep(time.Duration(i) * 3900 * time.Millisecond)
						io.WriteString(conn, get)
						answer, err := http.ReadResponse(answers, nil)
						if err != nil {
							t.Fatal(err)
						}
						io.Copy(io.Discard, answer.Body)
					}
					if before > 0 && c.says != "" {
						time.Sleep(50 * time.Second) // longer than any limit but that of idle connections
					}
					start := time.Now()
					io.WriteString(conn, c.says)
					var client sync.WaitGroup
					defer client.Wait()
					client.Go(func() { c.then(conn) })
					if took := (<-closed).Sub(start); took < limit-time.Second || took > limit+time.Second {
						t.Errorf("let go after %v, want %v", took, limit)
					}
				})
			})
		}
	}
}

// A deadline counts as it stands when something waits for it, whenever it was
// moved. A minute is when the other side does what was waited for.
func TestDeadline(t *testing.T) {
	const none, past = -1, 0
	type move struct{ at, to time.Duration } // to is counted from the beginning
	for name, c := range map[string]struct {
		moves      []move
		begin, end time.Duration
	}{
		"never moved":                    {nil, 5, 60},
		"before":                         {[]move{{0, 20}}, 5, 20},
		"twice before":                   {[]move{{0, 20}, {1, 30}}, 5, 30},
		"back before":                    {[]move{{0, 30}, {1, 20}}, 5, 20},
		"lifted before":                  {[]move{{0, 20}, {1, none}}, 5, 60},
		"past":                           {[]move{{0, 3}}, 5, 5},
		"long past":                      {[]move{{0, past}}, 5, 5},
		"long past, lifted":              {[]move{{0, past}, {1, none}}, 5, 60},
		"meanwhile":                      {[]move{{10, 20}}, 5, 20},
		"later meanwhile":                {[]move{{0, 20}, {10, 30}}, 5, 30},
		"back meanwhile":                 {[]move{{0, 30}, {10, 20}}, 5, 20},
		"lifted meanwhile":               {[]move{{0, 20}, {10, none}}, 5, 60},
		"broken off meanwhile":           {[]move{{0, 20}, {10, past}}, 5, 10},
		"lifted and set again":           {[]move{{0, 20}, {1, none}, {2, 20}}, 5, 20},
		"lifted and set again meanwhile": {[]move{{0, 20}, {10, none}, {12, 20}}, 5, 20},
	} {
		for side, s := range map[string]struct {
			set func(net.Conn, time.Time) error
			do  func(net.Conn, []byte) (int, error)
			let func(net.Conn, []byte) (int, error)
		}{
			"read":           {net.Conn.SetReadDeadline, net.Conn.Read, net.Conn.Write},
			"write":          {net.Conn.SetWriteDeadline, net.Conn.Write, net.Conn.Read},
			"read, of both":  {net.Conn.SetDeadline, net.Conn.Read, net.Conn.Write},
			"write, of both": {net.Conn.SetDeadline, net.Conn.Write, net.Conn.Read},
		} {
			t.Run(side+" "+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					here, there := net.Pipe()
					defer there.Close()
					clock := make(chan net.Conn, 1)
					clock <- pipeEnd{here, peer}
					accepted, err := tcpListener{&pipes{dialed: clock}, nil}.Accept()
					if err != nil {
						t.Fatal(err)
					}
					start := time.Now()
					at := func(seconds time.Duration, f func()) {
						time.AfterFunc(seconds*time.Second, f)
					}
					for _, m := range c.moves {
						at(m.at, func() {
							deadline := start.Add(m.to * time.Second)
							switch m.to {
							case none:
								deadline = time.Time{}
							case past:
								deadline = time.Unix(1, 0) // as net/http says it
							}
							if err := s.set(accepted, deadline); err != nil {
								t.Error(err)
							}
						})
					}
					at(60, func() { s.let(there, []byte("x")) })
					time.Sleep(c.begin * time.Second)
					for range 2 { // what is over stays over
						n, err := s.do(accepted, []byte("x"))
						took := time.Since(start)
						if took != c.end*time.Second || (c.end < 60) != errors.Is(err, os.ErrDeadlineExceeded) || c.end == 60 && n != 1 {
							t.Fatalf("%d bytes and %v after %v, want it after %ds", n, err, took, c.end)
						}
						if c.end == 60 {
							return
						}
					}
					time.Sleep(2 * time.Minute)
				})
			})
		}
	}
}

// moves counts how often the deadlines of a connection are really moved.
type moves struct {
	pipeEnd
	reads, writes int
}

func (m *moves) SetReadDeadline(t time.Time) error { m.reads++; return m.pipeEnd.SetReadDeadline(t) }

func (m *moves) SetWriteDeadline(t time.Time) error { m.writes++; return m.pipeEnd.SetWriteDeadline(t) }

func TestBrokenOffBeforeItBegan(t *testing.T) {
	here, there := net.Pipe()
	defer there.Close()
	counted := &moves{pipeEnd: pipeEnd{here, peer}}
	c := &conn{tcpConn: counted}
	c.SetDeadline(time.Unix(1, 0))
	for what, do := range map[string]func([]byte) (int, error){"read": c.Read, "write": c.Write} {
		n, err := do([]byte("x"))
		if failed, ok := err.(net.Error); n != 0 || !ok || !failed.Timeout() || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: %d bytes and %v", what, n, err)
		}
	}
	if counted.reads+counted.writes > 0 {
		t.Error("the deadlines were moved for nothing")
	}
}

func TestDeadlinesAreSeldomMoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		here, there := net.Pipe()
		counted := &moves{pipeEnd: pipeEnd{here, peer}}
		clients := newPipes(peer)
		server := newServer(http.NotFoundHandler(), newLogger(io.Discard, false))
		go server.Serve(tcpListener{clients, nil})
		defer server.Close()
		clients.dialed <- counted
		answers := bufio.NewReader(there)
		const requests = 100
		for range requests {
			io.WriteString(there, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
			answer, err := http.ReadResponse(answers, nil)
			if err != nil {
				t.Fatal(err)
			}
			io.Copy(io.Discard, answer.Body)
		}
		synctest.Wait()
		// At most to wait for the client to go while it is answered, to break
		// that off, and to wait for what it asks next.
		if counted.reads > 3*requests || counted.writes > 1 {
			t.Errorf("%d times for reads and %d times for writes, in %d requests", counted.reads, counted.writes, requests)
		}
	})
}
