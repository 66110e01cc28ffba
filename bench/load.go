package main

import (
	"bufio"
	"bytes"
	"fmt"
	"log"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"
)

// figures are what a measurement gives.
type figures [4]float64

const (
	rate = iota // responses a second
	p50         // µs
	p99         // µs
	cpu         // of the server, µs a request
)

// load sends requests, taken at random, over connections that stay open, the
// next as soon as the last has its response. It speaks just enough HTTP/1.1
// for that, to be faster than what it measures.
func load(s *server, connections int, requests [][]byte, want int, d time.Duration) figures {
	clients := make([]client, connections)
	for i := range clients {
		conn, err := net.Dial("tcp", s.addr)
		if err != nil {
			log.Fatal(err)
		}
		defer conn.Close()
		clients[i] = client{conn: conn, r: bufio.NewReader(conn)}
	}
	before, start := s.cpu(), time.Now()
	var all sync.WaitGroup
	for i := range clients {
		all.Go(func() {
			if err := clients[i].run(requests, want, start.Add(d)); err != nil {
				log.Fatalf("%s: %q: %v", s.name, requests[0], err)
			}
		})
	}
	all.Wait()
	took, used := time.Since(start), s.cpu()-before
	var times []time.Duration
	for _, c := range clients {
		times = append(times, c.times...)
	}
	slices.Sort(times)
	at := func(share float64) float64 { return micros(times[int(share*float64(len(times)-1))]) }
	n := float64(len(times))
	return figures{n / took.Seconds(), at(0.5), at(0.99), micros(used) / n}
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// cpu is what the server's threads have used so far.
func (s *server) cpu() (used time.Duration) {
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", s.cmd.Process.Pid))
	for _, path := range threads {
		b, err := os.ReadFile(path)
		if err != nil {
			log.Fatal(err)
		}
		onCPU, _, _ := bytes.Cut(b, []byte(" "))
		ns, _ := strconv.ParseInt(string(onCPU), 10, 64)
		used += time.Duration(ns)
	}
	return used
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
	conn  net.Conn
	r     *bufio.Reader
	times []time.Duration
}

func (c *client) run(requests [][]byte, want int, end time.Time) error {
	c.conn.SetDeadline(end.Add(10 * time.Second))
	for begun := time.Now(); begun.Before(end); {
		if _, err := c.conn.Write(requests[rand.IntN(len(requests))]); err != nil {
			return err
		}
		if status, err := c.response(); err != nil || status != want {
			return fmt.Errorf("status %d instead of %d (%v)", status, want, err)
		}
		now := time.Now()
		c.times = append(c.times, now.Sub(begun))
		begun = now
	}
	return nil
}

// response reads a response, whose length must be known, and returns its status.
func (c *client) response() (status int, err error) {
	length := 0
	for {
		line, err := c.r.ReadSlice('\n')
		if err != nil {
			return 0, err
		}
		switch {
		case status == 0:
			if len(line) < len("HTTP/1.1 200") {
				return 0, fmt.Errorf("not HTTP: %q", line)
			}
			if status, err = strconv.Atoi(string(line[9:12])); err != nil {
				return 0, err
			}
		case bytes.HasPrefix(line, []byte("Content-Length: ")):
			if length, err = strconv.Atoi(string(bytes.TrimSpace(line[16:]))); err != nil {
				return 0, err
			}
		case bytes.HasPrefix(line, []byte("Transfer-Encoding: ")):
			return 0, fmt.Errorf("a response of unknown length")
		case len(line) == 2:
			_, err := c.r.Discard(length)
			return status, err
		}
	}
}
