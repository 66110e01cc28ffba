// stream.go: requests through the proxy that take long: uploads, event streams,
// WebSockets. They run for as long as who made them is logged in, and while
// they carry data they renew the session.
package main

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// A request that runs for longer than shortRequest is a stream and loses
	// the time limits of newServer, which must be longer.
	shortRequest = 5 * time.Second
	// recheck is how often somebody must still be logged in to keep a stream.
	// Twice that and lastWords is less than the minute that we promise.
	recheck = 25 * time.Second
	// lastWords is for the rest of a response, or of a request that nobody
	// reads any more.
	lastWords = 5 * time.Second
)

var errSessionOver = errors.New("session over")

// stream is a request that runs. It ends when who made it is no longer logged
// in, or when the store cannot tell twice in a row.
type stream struct {
	gateway *Gateway
	r       *http.Request
	w       http.ResponseWriter
	cancel  context.CancelCauseFunc

	mu      sync.Mutex
	timer   *time.Timer
	long    bool // no time limit any more
	stopped bool // its connection may serve another one by now
	doubts  int  // of the store, in a row

	used atomic.Bool // data went through since the last look
}

// every is d, or less where sessions are short.
func (s *stream) every(d time.Duration) time.Duration { return min(d, s.gateway.auth.Idle/4) }

func (s *stream) start() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.timer = time.AfterFunc(s.every(shortRequest), s.recheck)
}

func (s *stream) recheck() {
	err := s.gateway.still(s.r)
	if err == nil && s.used.Swap(false) {
		err = s.gateway.auth.keepAlive(loginOf(s.r), time.Now())
	}
	var no *refusal
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.doubts++; err == nil {
		s.doubts = 0
	}
	switch {
	case s.stopped:
		return
	case errors.Is(err, fs.ErrNotExist) || errors.As(err, &no) || s.doubts == 2:
		s.cancel(errSessionOver)
		s.limit(time.Now().Add(lastWords)) // a client that neither reads nor writes would hold us
		return
	case !s.long:
		s.long = true
		s.limit(time.Time{})
	}
	s.timer.Reset(s.every(recheck))
}

func (s *stream) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopped = true
	s.timer.Stop()
	if s.long {
		s.limit(time.Now().Add(lastWords))
	}
}

func (s *stream) limit(t time.Time) {
	connection := http.NewResponseController(s.w)
	connection.SetReadDeadline(t)
	if !t.IsZero() {
		t = t.Add(time.Second) // the response to who still sends comes when the read has ended
	}
	connection.SetWriteDeadline(t)
}

// watch notes what comes from the tool, and on a WebSocket what goes to it.
func (s *stream) watch(body io.ReadCloser) io.ReadCloser {
	watched := watchedBody{body, s}
	if conn, ok := body.(io.Writer); ok {
		return watchedConn{watched, conn}
	}
	return watched
}

type watchedBody struct {
	io.ReadCloser
	stream *stream
}

func (b watchedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.stream.used.Store(true)
	return n, err
}

type watchedConn struct {
	watchedBody
	conn io.Writer
}

func (c watchedConn) Write(p []byte) (int, error) {
	c.stream.used.Store(true)
	return c.conn.Write(p)
}

// CloseWrite passes on that one end has nothing more to say.
func (c watchedConn) CloseWrite() error {
	if half, ok := c.conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// upload is the client's body. It remembers what ended it early.
type upload struct {
	watchedBody
	err atomic.Pointer[error]
}

func (u *upload) Read(b []byte) (int, error) {
	n, err := u.watchedBody.Read(b)
	if err != nil && err != io.EOF {
		u.err.Store(&err)
	}
	return n, err
}

// failed returns what ended the body early, or nil.
func (u *upload) failed() error {
	if err := u.err.Load(); err != nil {
		return *err
	}
	return nil
}
