// log_test.go tests that the log tells on one line what happened, and that
// whatever becomes of it stops nothing.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// writerFunc is an io.Writer.
type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestLinesAreWrittenInOrderToTheEnd(t *testing.T) {
	lines, out := newLineWriter(), new(bytes.Buffer)
	var want strings.Builder
	for i := range maxLines / len("line 12345\n") {
		line := []byte(fmt.Sprintf("line %d\n", i))
		want.Write(line)
		if n, err := lines.Write(line); n != len(line) || err != nil {
			t.Fatal(n, err)
		}
		clear(line) // it is the caller's again
	}
	lines.end()
	lines.run(out)
	if out.String() != want.String() {
		t.Errorf("%d bytes of %d", out.Len(), want.Len())
	}
}

func TestLinesGoOutWhileMoreCome(t *testing.T) {
	lines, out := newLineWriter(), &lockedBuffer{}
	finished := make(chan struct{})
	go func() { lines.run(out); close(finished) }()
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 500 {
				lines.Write([]byte("x\n"))
			}
		})
	}
	all.Wait()
	lines.end()
	<-finished
	if got := strings.Count(out.String(), "x\n"); got != 4000 {
		t.Errorf("%d lines, want 4000", got)
	}
}

// A stderr that nobody reads: no line waits for it, and what is lost is said
// when it is read again, in the format of the log.
func TestStuckStderrStopsNothing(t *testing.T) {
	for _, asJSON := range []bool{false, true} {
		lines, out := newLineWriter(), new(bytes.Buffer)
		stuck, finished := make(chan struct{}), make(chan struct{})
		go func() {
			lines.run(writerFunc(func(p []byte) (int, error) { <-stuck; return out.Write(p) }))
			close(finished)
		}()
		log := newLogger(lines, asJSON)
		const sent = 3 * maxLines / len("time=2006-01-02T15:04:05.000Z level=INFO msg=request i=0\n")
		for i := range sent { // run may have taken a batch already
			log.Info("request", "i", i)
		}
		lines.mu.Lock()
		dropped := lines.dropped
		lines.mu.Unlock()
		if dropped < sent/4 {
			t.Fatalf("%d dropped", dropped)
		}
		close(stuck)
		lines.end()
		<-finished
		written, noted := 0, 0
		for line := range strings.Lines(out.String()) {
			written++
			if asJSON && !json.Valid([]byte(line)) {
				t.Fatalf("not JSON: %s", line)
			}
			if strings.Contains(line, "log lines were dropped") {
				noted++
				if !strings.Contains(strings.ReplaceAll(line, `"`, ""), fmt.Sprint(dropped)) || !strings.Contains(line, "WARN") {
					t.Errorf("not that %d were dropped: %s", dropped, line)
				}
			}
		}
		if noted != 1 || written != sent-dropped+1 {
			t.Errorf("%d lines of which %d tell of those dropped, want %d and 1", written, noted, sent-dropped+1)
		}
	}
}

func TestFailingStderrStopsNothing(t *testing.T) {
	lines, calls := newLineWriter(), 0
	log := newLogger(lines, false)
	finished := make(chan struct{})
	go func() {
		lines.run(writerFunc(func([]byte) (int, error) { calls++; return 0, errors.New("no space left on device") }))
		close(finished)
	}()
	for range 2 * maxLines / 50 {
		log.Info("request")
	}
	lines.end()
	<-finished
	if calls == 0 {
		t.Error("nothing was tried")
	}
}

// A request that outlives the server logs into the void.
func TestLineAfterTheEnd(t *testing.T) {
	lines := newLineWriter()
	lines.end()
	lines.run(io.Discard)
	for range 2 * maxLines / 5 {
		lines.Write([]byte("late\n"))
	}
	if len(lines.lines) > maxLines {
		t.Errorf("%d bytes wait", len(lines.lines))
	}
}

func TestRequestIDIsOnEveryLineOfTheRequest(t *testing.T) {
	out := new(bytes.Buffer)
	ctx := context.WithValue(t.Context(), infoKey{}, &requestInfo{id: "REQUEST"})
	for _, asJSON := range []bool{false, true} {
		log := newLogger(out, asJSON)
		for _, log := range []*slog.Logger{log, log.With("a", 1), log.WithGroup("g")} {
			out.Reset()
			log.InfoContext(ctx, "event", "b", 2)
			if got := out.String(); strings.Count(got, "REQUEST") != 1 || strings.Count(got, "\n") != 1 {
				t.Errorf("got %q", got)
			}
			out.Reset()
			log.Info("event")
			if got := out.String(); strings.Contains(got, "id") {
				t.Errorf("outside of a request: %q", got)
			}
		}
	}
}

func TestTimesOfTheLogAreUTC(t *testing.T) {
	out := new(bytes.Buffer)
	newLogger(out, true).Info("event")
	var line struct{ Time string }
	if err := json.Unmarshal(out.Bytes(), &line); err != nil || !strings.HasSuffix(line.Time, "Z") {
		t.Errorf("%v %q", err, line.Time)
	}
}

func TestOneLineWhateverTheInput(t *testing.T) {
	out := new(bytes.Buffer)
	for _, input := range nastyText {
		for _, asJSON := range []bool{false, true} {
			out.Reset()
			newLogger(out, asJSON).Info("event", "user", input, "msg", input)
			oneLine(t, out.String(), asJSON)
		}
	}
}

// The line of a request is the one that slog would have written.
func TestRequestLine(t *testing.T) {
	at := time.Date(2026, 2, 3, 4, 5, 6, 7_890_000, time.FixedZone("", 3600))
	fields := []string{"method", "path", "user", "addr", "id"}
	for _, text := range append(nastyText, "frodo", "/a/%20b;c=d", "2001:db8::1") {
		for n, took := range []time.Duration{0, 999, 1500 * time.Microsecond, time.Hour} {
			for i, field := range fields {
				values := []string{"GET", "/", "frodo", "192.0.2.1", "xyz"}
				values[i] = text
				r := requestLine{at.Add(time.Duration(n) * 400 * time.Millisecond), values[0], values[1], 200 + n, took, values[2], values[3], values[4]}
				for _, asJSON := range []bool{false, true} {
					got, want := new(bytes.Buffer), new(bytes.Buffer)
					requestLog{got, asJSON}.write(r)
					line := slog.NewRecord(r.at, slog.LevelInfo, "request", 0)
					line.Add("method", r.method, "path", r.path, "status", r.status, "duration", r.took, "user", r.user, "addr", r.addr, "id", r.id)
					newLogger(want, asJSON).Handler().Handle(t.Context(), line)
					oneLine(t, got.String(), asJSON)
					if asJSON {
						if g, w := logLines(t, got.String()), logLines(t, want.String()); len(g) != 1 || !sameTime(g[0], w[0]) || !reflect.DeepEqual(g, w) {
							t.Errorf("%s %q: got %s want %s", field, text, got, want)
						}
					} else if got.String() != want.String() {
						t.Errorf("%s %q: got %s want %s", field, text, got, want)
					}
				}
			}
		}
	}
}

// sameTime drops the times of two lines, if they are one.
func sameTime(a, b map[string]any) bool {
	var times [2]time.Time
	for i, line := range []map[string]any{a, b} {
		text, _ := line["time"].(string)
		times[i], _ = time.Parse(time.RFC3339Nano, text)
		delete(line, "time")
	}
	return !times[0].IsZero() && times[0].Equal(times[1])
}

// nastyText is what somebody may send to write lines of their own.
var nastyText = []string{
	"a\nlevel=ERROR msg=forged", "a\r\nb", "\x1b[2J\x1b]0;title\x07", "\u2028\u2029\u0085", "\x00\x7f\x9b", "\xff\xfe\xc0\xaf",
	`a" msg="forged`, `","msg":"forged`, "\u202egnp", "a b=c", strings.Repeat("x", 10_000), "",
}

// oneLine fails unless text is one line. Text for a terminal has nothing in it
// that moves the cursor or the reader's eye; JSON escapes less.
func oneLine(t *testing.T, text string, asJSON bool) {
	t.Helper()
	line, ok := strings.CutSuffix(text, "\n")
	if !ok || strings.ContainsFunc(line, func(c rune) bool { return c < ' ' || !asJSON && !strconv.IsPrint(c) }) {
		t.Errorf("not one clean line: %q", text)
	}
	if asJSON && !json.Valid([]byte(line)) {
		t.Errorf("not JSON: %q", text)
	}
}
