// conn.go: two things that net/http does to a connection, done otherwise: what
// it refuses itself is put into the envelope, and the deadlines that it moves
// all the time cost a timer only where something waits for them.
package main

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// tcpListener makes a conn of each TCP connection. Above it there may be TLS:
// then what is written first is never a refusal.
type tcpListener struct {
	net.Listener
	headers func(http.Header) // of a refusal
}

func (l tcpListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if tcp, ok := c.(tcpConn); ok {
		return &conn{tcpConn: tcp, headers: l.headers}, err
	}
	return c, err
}

// tcpConn is what net/http uses of a *net.TCPConn, but for ReadFrom and
// WriteTo, which would pass by Read and Write.
type tcpConn interface {
	net.Conn
	CloseWrite() error
}

type conn struct {
	tcpConn
	headers func(http.Header)
	begun   atomic.Bool // something was written
	toRead  deadline
	toWrite deadline
}

func (c *conn) SetReadDeadline(t time.Time) error { return c.toRead.want(t, c.tcpConn.SetReadDeadline) }
func (c *conn) SetWriteDeadline(t time.Time) error {
	return c.toWrite.want(t, c.tcpConn.SetWriteDeadline)
}

func (c *conn) SetDeadline(t time.Time) error {
	if err := c.SetReadDeadline(t); err != nil {
		return err
	}
	return c.SetWriteDeadline(t)
}

func (c *conn) Read(b []byte) (int, error) {
	if err := c.toRead.begin(c.tcpConn.SetReadDeadline); err != nil {
		return 0, err
	}
	defer c.toRead.end()
	return c.tcpConn.Read(b)
}

func (c *conn) Write(b []byte) (int, error) {
	if err := c.toWrite.begin(c.tcpConn.SetWriteDeadline); err != nil {
		return 0, err
	}
	defer c.toWrite.end()
	if answer := c.enveloped(b); answer != nil {
		if _, err := c.tcpConn.Write(answer); err != nil {
			return 0, err
		}
		return len(b), nil
	}
	return c.tcpConn.Write(b)
}

// past is long ago: a deadline before that is net/http's word for "no further".
var past = time.Unix(1e8, 0)

// deadline is one of a connection's two. net/http moves them nine times a
// request, mostly while nothing is read or written: then it is only noted.
type deadline struct {
	mu      sync.Mutex
	noted   time.Time // zero: none
	set     time.Time // that the connection has
	waiting int       // reads or writes under way
}

func (d *deadline) want(t time.Time, set func(time.Time) error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.noted = t
	if d.waiting == 0 {
		return nil
	}
	return d.move(set)
}

func (d *deadline) begin(set func(time.Time) error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.noted.IsZero() && d.noted.Before(past) {
		return os.ErrDeadlineExceeded
	}
	d.waiting++
	d.move(set) // on a connection on which this fails, what begins now fails too
	return nil
}

func (d *deadline) end() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.waiting--
}

func (d *deadline) move(set func(time.Time) error) error {
	if later := d.noted.Sub(d.set); 0 <= later && later < time.Second { // so much too early does no harm
		return nil
	}
	d.set = d.noted
	return set(d.noted)
}

// bareHeaders are all headers of a refusal of net/http itself; an answer of a
// handler has at least a Date too.
var bareHeaders = []byte("Content-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n")

// enveloped answers what to write instead of a refusal of net/http itself, of
// what is no request that a handler could be asked, and nil for all else. Only
// what is written first can be one: later on it may be what somebody has put
// into an answer, and must pass as it is.
func (c *conn) enveloped(b []byte) []byte {
	if c.begun.Swap(true) {
		return nil
	}
	line, rest, _ := bytes.Cut(b, []byte("\r\n"))
	var status int
	if _, err := fmt.Sscanf(string(line), "HTTP/1.1 %d", &status); err != nil || !bytes.HasPrefix(rest, bareHeaders) {
		return nil
	}
	body := errorBody(status, http.StatusText(status))
	header := http.Header{"Content-Type": jsonType, "Content-Length": {strconv.Itoa(len(body))}, "Connection": {"close"}}
	c.headers(header)
	var answer bytes.Buffer
	fmt.Fprintf(&answer, "HTTP/1.1 %d %s\r\n", status, http.StatusText(status))
	header.Write(&answer)
	answer.WriteString("\r\n")
	answer.Write(body)
	return answer.Bytes()
}
