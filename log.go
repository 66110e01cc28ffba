// log.go: the log, which never stops what it tells of. Lines are handed to one
// writer; when stderr is slow they wait, when it stays slow they are dropped
// and counted, when it is full or closed they are gone.
package main

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"sync/atomic"
	"time"
)

// lineWriter is an io.Writer that does not block. Each Write is one line; one
// that comes after the end is gone.
type lineWriter struct {
	lines   chan []byte
	dropped atomic.Int64
	written chan struct{} // closed when run has returned
}

const maxLines = 4096 // that wait to be written

func newLineWriter() *lineWriter {
	return &lineWriter{lines: make(chan []byte, maxLines), written: make(chan struct{})}
}

func (l *lineWriter) Write(line []byte) (int, error) {
	select {
	case l.lines <- bytes.Clone(line):
	default:
		l.dropped.Add(1)
	}
	return len(line), nil
}

// run writes to w until the end, all lines of a millisecond at once.
func (l *lineWriter) run(w io.Writer) {
	defer close(l.written)
	var batch []byte
	for line := range l.lines {
		if len(batch) == 0 && line != nil {
			time.Sleep(time.Millisecond)
		}
		batch = append(batch, line...)
		if line != nil && len(l.lines) > 0 && len(batch) < 64<<10 {
			continue
		}
		w.Write(batch)
		if dropped := l.dropped.Swap(0); dropped > 0 {
			newLogger(w, len(batch) > 0 && batch[0] == '{').Warn("log lines were dropped", "lines", dropped)
		}
		if line == nil {
			return
		}
		batch = batch[:0]
	}
}

// end returns when what was written before is out, or after a second where
// nobody reads.
func (l *lineWriter) end() {
	late := time.After(time.Second)
	select {
	case l.lines <- nil:
	case <-late:
		return
	}
	select {
	case <-l.written:
	case <-late:
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
