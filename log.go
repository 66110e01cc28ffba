// log.go: the log, which never stops what it tells of. Lines are handed to one
// writer; when stderr is slow they wait, when it stays slow they are dropped
// and counted, when it is full or closed they are gone.
package main

import (
	"context"
	"io"
	"log/slog"
	"runtime"
	"sync/atomic"
	"time"
)

// lineWriter is an io.Writer that does not block, and that takes lines even
// after its end. A Write is one line or more.
type lineWriter struct {
	lines   chan []byte
	ended   chan struct{}
	dropped atomic.Int64
}

const maxLines = 4096 // that wait to be written

func newLineWriter() *lineWriter {
	return &lineWriter{lines: make(chan []byte, maxLines), ended: make(chan struct{})}
}

func (l *lineWriter) Write(line []byte) (int, error) {
	select {
	case l.lines <- append([]byte(nil), line...):
	default:
		l.dropped.Add(1)
	}
	return len(line), nil
}

// end lets run return when what was written before is out.
func (l *lineWriter) end() { close(l.ended) }

// run writes what comes until the end, as many lines at a time as are there.
func (l *lineWriter) run(w io.Writer) {
	var batch []byte
	for ended := false; ; {
		batch = batch[:0]
		if !ended {
			select {
			case line := <-l.lines:
				batch = append(batch, line...)
				runtime.Gosched() // requests that can go on do so first, and one write takes their lines along
			case <-l.ended:
				ended = true
			}
		}
		for more := len(l.lines); more > 0 && len(batch) < 64<<10; more-- {
			batch = append(batch, <-l.lines...) // nobody else takes any
		}
		if len(batch) == 0 {
			return
		}
		w.Write(batch)
		if n := l.dropped.Swap(0); n > 0 {
			newLogger(w, batch[0] == '{').Warn("log lines were dropped", "lines", n)
		}
	}
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
