// Load sends one and the same request over connections that stay open, the
// next as soon as the last was answered, and prints what came of it:
//
//	requests/s  p50 µs  p99 µs  bytes of an answer  answers of another status
//
// With -once it prints the answer itself, with -first the milliseconds to the
// first answer. It speaks just enough HTTP/1.1 for that, to be faster than what
// it measures.
package main

import (
	"bufio"
	"bytes"
	"flag"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("load: ")
	addr := flag.String("addr", "127.0.0.1:8080", "where the server listens")
	connections := flag.Int("c", 32, "connections")
	duration := flag.Duration("d", time.Second, "how long")
	once := flag.Bool("once", false, "send one request and print the answer")
	first := flag.Int64("first", 0, "wait for an answer and print the milliseconds since then (nanoseconds since 1970)")
	method := flag.String("method", "GET", "")
	path := flag.String("path", "/ringsofpower", "")
	cookie := flag.String("cookie", "", "the Cookie header")
	cookies := flag.String("cookies", "", "a file of Cookie headers, one a line; each request has one of them at random")
	body := flag.String("body", "", "a JSON body")
	want := flag.Int("status", 200, "that every answer should have")
	flag.Parse()

	lines := []string{*cookie}
	if *cookies != "" {
		b, err := os.ReadFile(*cookies)
		if err != nil {
			log.Fatal(err)
		}
		lines = strings.Split(strings.TrimSpace(string(b)), "\n")
	}
	var requests [][]byte
	for _, line := range lines {
		requests = append(requests, request(*method, *path, *addr, line, *body))
	}
	if *first > 0 {
		for range 10_000 {
			if conn, err := net.Dial("tcp", *addr); err == nil {
				conn.Write(requests[0])
				if _, _, err := (&client{r: bufio.NewReader(conn)}).answer(); err == nil {
					fmt.Printf("%.1f\n", float64(time.Since(time.Unix(0, *first)).Microseconds())/1000)
					return
				}
			}
			time.Sleep(500 * time.Microsecond)
		}
		log.Fatal("no answer within 5 s")
	}
	if *once {
		conn, err := net.Dial("tcp", *addr)
		if err != nil {
			log.Fatal(err)
		}
		conn.Write(requests[0])
		c := &client{r: bufio.NewReader(io.TeeReader(conn, os.Stdout))}
		if _, _, err := c.answer(); err != nil {
			log.Fatal(err)
		}
		return
	}

	clients := make([]*client, *connections)
	for i := range clients {
		conn, err := net.Dial("tcp", *addr)
		if err != nil {
			log.Fatal(err)
		}
		clients[i] = &client{conn: conn, r: bufio.NewReader(conn)}
	}
	start := time.Now()
	var all sync.WaitGroup
	for _, c := range clients {
		all.Go(func() { c.run(requests, *want, start.Add(*duration)) })
	}
	all.Wait()
	took := time.Since(start)
	var times []time.Duration
	size, others := 0, 0
	for _, c := range clients {
		times, size, others = append(times, c.times...), max(size, c.size), others+c.others
	}
	if len(times) == 0 {
		log.Fatal("no answer")
	}
	slices.Sort(times)
	at := func(share float64) int64 { return times[int(share*float64(len(times)-1))].Microseconds() }
	fmt.Printf("%.1f %d %d %d %d\n", float64(len(times))/took.Seconds(), at(0.5), at(0.99), size, others)
}

func request(method, path, host, cookie, body string) []byte {
	b := fmt.Appendf(nil, "%s %s HTTP/1.1\r\nHost: %s\r\n", method, path, host)
	if cookie != "" {
		b = fmt.Appendf(b, "Cookie: %s\r\n", cookie)
	}
	if body != "" {
		b = fmt.Appendf(b, "Content-Type: application/json\r\nContent-Length: %d\r\n", len(body))
	}
	return append(append(b, "\r\n"...), body...)
}

type client struct {
	conn   net.Conn
	r      *bufio.Reader
	times  []time.Duration
	size   int // of the longest answer, in bytes
	others int // answers of another status, and connections that broke
}

func (c *client) run(requests [][]byte, want int, end time.Time) {
	c.conn.SetDeadline(end.Add(10 * time.Second))
	for begun := time.Now(); begun.Before(end); {
		if _, err := c.conn.Write(requests[rand.IntN(len(requests))]); err != nil {
			c.others++
			return
		}
		status, size, err := c.answer()
		if err != nil {
			c.others++
			return
		}
		if status != want {
			c.others++
		}
		now := time.Now()
		c.times = append(c.times, now.Sub(begun))
		c.size, begun = max(c.size, size), now
	}
}

// answer reads one answer, whose length must be known.
func (c *client) answer() (status, size int, err error) {
	length := 0
	for {
		line, err := c.r.ReadSlice('\n')
		if err != nil {
			return 0, 0, err
		}
		size += len(line)
		switch {
		case status == 0:
			if len(line) < len("HTTP/1.1 200") {
				return 0, 0, fmt.Errorf("not HTTP: %q", line)
			}
			if status, err = strconv.Atoi(string(line[9:12])); err != nil {
				return 0, 0, err
			}
		case bytes.HasPrefix(line, []byte("Content-Length: ")):
			if length, err = strconv.Atoi(string(bytes.TrimSpace(line[16:]))); err != nil {
				return 0, 0, err
			}
		case bytes.HasPrefix(line, []byte("Transfer-Encoding: ")):
			return 0, 0, fmt.Errorf("an answer of unknown length")
		case len(line) == 2:
			_, err := c.r.Discard(length)
			return status, size + length, err
		}
	}
}
