// log.go: the log, which never stops what it tells of. Lines are handed to one
// writer; when stderr is slow they wait, when it stays slow they are dropped
// and counted, when it is full or closed they are gone.
package main

import (
	"context"
	"io"
	"log/slog"
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
					time.Sleep(2 * time.Millisecond)
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
