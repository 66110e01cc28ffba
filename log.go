// log.go: the log, which never stops what it tells of. Lines are handed to one
// writer; when stderr is slow they wait, when it stays slow they are dropped
// and counted, when it is full or closed they are gone.
package main

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"strconv"
	"sync"
	"time"
)

// lineWriter is an io.Writer that does not block, and that takes lines even
// after its end. A Write is one line or more.
type lineWriter struct {
	mu      sync.Mutex
	lines   []byte // that wait to be written
	dropped int
	more    chan struct{} // there are lines where there were none
	ended   chan struct{}
}

const maxLines = 1 << 20 // bytes

func newLineWriter() *lineWriter {
	return &lineWriter{more: make(chan struct{}, 1), ended: make(chan struct{})}
}

func (l *lineWriter) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.lines)+len(line) > maxLines {
		l.dropped++
		return len(line), nil
	}
	if len(l.lines) == 0 {
		select {
		case l.more <- struct{}{}:
		default:
		}
	}
	l.lines = append(l.lines, line...)
	return len(line), nil
}

// end lets run return when what was written before is out.
func (l *lineWriter) end() { close(l.ended) }

// run writes what comes until the end, as many lines at a time as are there.
func (l *lineWriter) run(w io.Writer) {
	var batch []byte
	for ended := false; ; {
		if !ended {
			select {
			case <-l.more:
				if len(batch) > 1<<10 { // many lines came last time: one write takes along those that come meanwhile
					time.Sleep(10 * time.Millisecond)
				}
			case <-l.ended:
				ended = true
			}
		}
		var dropped int
		l.mu.Lock()
		batch, l.lines = l.lines, batch[:0]
		dropped, l.dropped = l.dropped, 0
		l.mu.Unlock()
		if len(batch) == 0 && ended {
			return
		}
		w.Write(batch)
		if dropped > 0 {
			newLogger(w, batch[0] == '{').Warn("log lines were dropped", "lines", dropped)
		}
	}
}

// requestLog writes the line of each request, like slog, which takes three
// times as long for it, a thirtieth of the whole request. What slog would not
// quote and is not plain ASCII is quoted too.
type requestLog struct {
	w    io.Writer
	json bool
}

type requestLine struct {
	at           time.Time
	method, path string
	status       int
	took         time.Duration
	user, addr   string
	id           string
}

func (l requestLog) write(r requestLine) {
	line := make([]byte, 0, 256)
	if l.json {
		line = append(line, `{"time":"`...)
		line = append(appendMillis(line, r.at), `","level":"INFO","msg":"request"`...)
	} else {
		line = append(line, "time="...)
		line = append(appendMillis(line, r.at), " level=INFO msg=request"...)
	}
	line = l.text(line, "method", r.method)
	line = l.text(line, "path", r.path)
	line = strconv.AppendInt(l.key(line, "status"), int64(r.status), 10)
	line = l.key(line, "duration")
	if l.json {
		line = strconv.AppendInt(line, int64(r.took), 10)
	} else {
		line = append(line, r.took.String()...)
	}
	line = l.text(line, "user", r.user)
	line = l.text(line, "addr", r.addr)
	line = l.text(line, "id", r.id)
	if l.json {
		line = append(line, '}')
	}
	l.w.Write(append(line, '\n'))
}

func (l requestLog) key(line []byte, key string) []byte {
	if l.json {
		return append(append(append(line, `,"`...), key...), `":`...)
	}
	return append(append(append(line, ' '), key...), '=')
}

func (l requestLog) text(line []byte, key, value string) []byte {
	line = l.key(line, key)
	switch {
	case !l.json && isPlain(value):
		return append(line, value...)
	case !l.json:
		return strconv.AppendQuote(line, value)
	case isPlain(value):
		return append(append(append(line, '"'), value...), '"')
	}
	quoted, _ := json.Marshal(value) // no string fails
	return append(line, quoted...)
}

func isPlain(s string) bool {
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c > '~' || c == '=' || c == '"' || c == '\\' {
			return false
		}
	}
	return s != ""
}

// appendMillis appends RFC 3339 in UTC with three digits of a second.
func appendMillis(b []byte, t time.Time) []byte {
	b = t.UTC().AppendFormat(b, time.RFC3339)
	ms := t.Nanosecond() / int(time.Millisecond)
	return append(b[:len(b)-1], '.', byte('0'+ms/100), byte('0'+ms/10%10), byte('0'+ms%10), 'Z')
}

// newLogger logs as text, or as JSON, with the id of the request that a line
// belongs to.
func newLogger(w io.Writer, json bool) *slog.Logger {
	if json {
		return slog.New(requestHandler{slog.NewJSONHandler(w, nil)})
	}
	return slog.New(requestHandler{slog.NewTextHandler(w, nil)})
}

type requestHandler struct{ slog.Handler }

func (h requestHandler) Handle(ctx context.Context, record slog.Record) error {
	record.Time = record.Time.UTC().Truncate(time.Millisecond)
	if info := infoOf(ctx); info != nil {
		record.AddAttrs(slog.String("id", info.id))
	}
	return h.Handler.Handle(ctx, record)
}

func (h requestHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return requestHandler{h.Handler.WithAttrs(attrs)}
}

func (h requestHandler) WithGroup(name string) slog.Handler {
	return requestHandler{h.Handler.WithGroup(name)}
}
