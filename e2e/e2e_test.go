// Browser tests: a real ringward, a real Chromium, and nothing between them.
//
// They need Chromium (Debian's package chromium, or name it with CHROME) and
// axe-core, which npm brings:
//
//	npm install --prefix "$TMPDIR/axe" axe-core
//	cd e2e
//	AXE="$TMPDIR/axe/node_modules/axe-core/axe.min.js" go test ./...
//
// The server is built from the folder above, unless RINGWARD names a binary.
// SCREENSHOTS=DIR, with -tags screenshots, also writes every page as a picture, at two widths, light and
// dark. The module is one of its own so that the driver stays out of the
// program's go.mod.
package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/cdproto/target"
	"github.com/chromedp/chromedp"
)

// patience is how long a test waits for what must come. It is only ever used up
// by a failure.
const patience = 20 * time.Second

var (
	binary  string
	browser context.Context
)

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "ringward-e2e")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		if binary = os.Getenv("RINGWARD"); binary == "" {
			binary = filepath.Join(dir, "ringward")
			build := exec.Command("go", "build", "-o", binary, ".")
			build.Dir = ".."
			if out, err := build.CombinedOutput(); err != nil {
				fmt.Fprintf(os.Stderr, "go build: %v\n%s", err, out)
				return 1
			}
		}
		options := append(chromedp.DefaultExecAllocatorOptions[:],
			chromedp.NoSandbox, // Chromium refuses to start as root with one
			chromedp.DisableGPU,
			chromedp.Flag("disable-quic", true),
			chromedp.Flag("disable-component-update", true),
			chromedp.UserDataDir(filepath.Join(dir, "profile")))
		if path := os.Getenv("CHROME"); path != "" {
			options = append(options, chromedp.ExecPath(path))
		}
		allocator, stop := chromedp.NewExecAllocator(context.Background(), options...)
		defer stop()
		var cancel context.CancelFunc
		browser, cancel = chromedp.NewContext(allocator)
		defer cancel()
		if err := chromedp.Do(browser); err != nil {
			fmt.Fprintln(os.Stderr, "Chromium does not start:", err)
			return 1
		}
		return m.Run()
	}())
}

// A ringward is a running server with an empty store of its own.
type ringward struct {
	t      *testing.T
	url    string
	invite string // the link for the first user
	db     string
	secret string
	stop   func()
}

var (
	listening = regexp.MustCompile(`listening on (http://127\.0\.0\.1:\d+)`)
	inviting  = regexp.MustCompile(`http://\S+/auth/invite#\S+`)
)

func start(t *testing.T, flags ...string) *ringward {
	t.Helper()
	rw := &ringward{t: t, db: filepath.Join(t.TempDir(), "ringward.db"), secret: rand.Text() + rand.Text()}
	rw.run(append([]string{"-addr", "127.0.0.1:0", "-db", rw.db}, flags...)...)
	return rw
}

func (rw *ringward) command(args ...string) *exec.Cmd {
	cmd := exec.Command(binary, args...)
	// The lowest cost: these tests are about the pages.
	cmd.Env = append(os.Environ(), "SECRET_KEY="+rw.secret, "RINGWARD_BCRYPT_COST=10")
	return cmd
}

func (rw *ringward) run(args ...string) {
	rw.t.Helper()
	cmd := rw.command(args...)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		rw.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		rw.t.Fatal(err)
	}
	type found struct{ url, invite string }
	ready, done := make(chan found, 1), make(chan struct{})
	var said bytes.Buffer
	go func() {
		defer close(done)
		var f found
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			said.WriteString(lines.Text() + "\n")
			if m := listening.FindStringSubmatch(lines.Text()); m != nil {
				f.url = m[1]
			}
			if m := inviting.FindString(lines.Text()); m != "" {
				f.invite = strings.Trim(m, `"`)
			}
			// A store that has users invites nobody.
			if f.url != "" && (f.invite != "" || rw.invite != "") {
				select {
				case ready <- f:
				default:
				}
			}
		}
	}()
	rw.stop = sync.OnceFunc(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		<-done
		cmd.Wait()
		if rw.t.Failed() {
			rw.t.Logf("the server said:\n%s", said.String())
		}
	})
	rw.t.Cleanup(rw.stop)
	select {
	case f := <-ready:
		rw.url, rw.invite = f.url, f.invite
	case <-done:
		rw.t.Fatalf("the server stopped:\n%s", said.String())
	case <-time.After(patience):
		rw.t.Fatal("the server does not say where it listens and whom it invites")
	}
}

// curl is a script's way in: a request without cookies, with a token or none.
func (rw *ringward) curl(method, path, token string) int {
	rw.t.Helper()
	req, err := http.NewRequest(method, rw.url+path, nil)
	if err != nil {
		rw.t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		rw.t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}

// A device is a browser profile with one window, and the person before it.
// When its test ends it has seen no console error and no CSP violation, was
// nowhere but on the server, and keeps nothing that a script could read.
type device struct {
	t   *testing.T
	rw  *ringward
	ctx context.Context

	mu       sync.Mutex
	wrong    []string // console errors, exceptions, CSP violations
	refusals []string // "401 /auth/session": what the browser logs of failed requests
	requests []string // "POST /auth/session"
	bytes    float64  // over the wire
	expected map[string]bool
}

func (rw *ringward) device() *device {
	rw.t.Helper()
	d := &device{t: rw.t, rw: rw, expected: map[string]bool{}}
	ctx, cancel := chromedp.NewContext(browser, chromedp.WithNewBrowserContext(), chromedp.WithListener(d.listen))
	rw.t.Cleanup(cancel)
	d.attach(ctx)
	rw.t.Cleanup(d.leaveClean)
	return d
}

func (d *device) attach(ctx context.Context) {
	d.t.Helper()
	d.ctx = ctx
	// The tab lives as long as the context of its first use, so that one has
	// no time limit.
	if err := chromedp.Do(ctx); err != nil {
		d.t.Fatal(err)
	}
	d.do(chromedp.EmulateViewport(1280, 900))
	_, err := chromedp.Call(ctx, page.AddScriptToEvaluateOnNewDocument, page.AddScriptToEvaluateOnNewDocumentParams{
		Source: `addEventListener('securitypolicyviolation', e => console.error('CSP: ' + e.violatedDirective + ' ' + e.blockedURI))
			window.shifted = 0
			new PerformanceObserver(list => list.getEntries().forEach(e => shifted += e.value)).observe({type: 'layout-shift', buffered: true})`,
	})
	if err != nil {
		d.t.Fatal(err)
	}
}

var failedRequest = regexp.MustCompile(`the server responded with a status of (\d+)`)

func (d *device) listen(event any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch e := event.(type) {
	case *runtime.EventExceptionThrown:
		d.wrong = append(d.wrong, fmt.Sprint("exception: ", e.ExceptionDetails.Text, " ", e.ExceptionDetails.Exception))
	case *runtime.EventConsoleAPICalled:
		for _, arg := range e.Args {
			d.wrong = append(d.wrong, fmt.Sprintf("console.%s: %s", e.Type, arg.Value))
		}
	case *log.EventEntryAdded:
		at, _ := url.Parse(e.Entry.URL)
		if m := failedRequest.FindStringSubmatch(e.Entry.Text); m != nil && at != nil {
			path := at.Path
			if strings.HasPrefix(path, "/auth/invites/") {
				path = "/auth/invites/"
			}
			if strings.HasPrefix(path, "/auth/tokens/") {
				path = "/auth/tokens/"
			}
			d.refusals = append(d.refusals, m[1]+" "+path)
		} else if e.Entry.Level != log.EntryLevelVerbose && e.Entry.Level != log.EntryLevelInfo {
			d.wrong = append(d.wrong, fmt.Sprintf("%s %s: %s %s", e.Entry.Source, e.Entry.Level, e.Entry.Text, e.Entry.URL))
		}
	case *network.EventRequestWillBeSent:
		at, err := url.Parse(e.Request.URL)
		if err != nil || at.Scheme+"://"+at.Host != d.rw.url {
			d.wrong = append(d.wrong, "left the server for "+e.Request.URL)
		} else {
			d.requests = append(d.requests, e.Request.Method+" "+at.Path)
		}
	case *network.EventLoadingFinished:
		d.bytes += e.EncodedDataLength
	}
}

// refused says which failed requests belong to the test; each must happen.
func (d *device) refused(what ...string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, w := range what {
		d.expected[w] = true
	}
	d.t.Cleanup(func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		for _, w := range what {
			if !slices.Contains(d.refusals, w) {
				d.t.Errorf("no request was answered with %s", w)
			}
		}
	})
}

func (d *device) count(request string) (n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, r := range d.requests {
		if r == request {
			n++
		}
	}
	return n
}

func (d *device) leaveClean() {
	if d.t.Failed() {
		d.mu.Lock()
		last := d.requests[max(0, len(d.requests)-10):]
		d.mu.Unlock()
		d.t.Logf("the page was %s after %s, with the focus on %s\n%s", d.eval(`location.href`), last,
			d.eval(`document.activeElement.outerHTML`), d.eval(`document.body.innerText`))
	}
	d.nothingKept()
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, w := range d.wrong {
		d.t.Error(w)
	}
	for _, r := range d.refusals {
		if !d.expected[r] {
			d.t.Error("a request failed: ", r)
		}
	}
}

func (d *device) nothingKept() {
	d.t.Helper()
	if kept := d.eval(`document.cookie + Object.keys(localStorage) + Object.keys(sessionStorage)`); kept != "" {
		d.t.Errorf("a script can read %q", kept)
	}
}

func (d *device) do(steps ...chromedp.Action[chromedp.Void]) {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.ctx, patience)
	defer cancel()
	if err := chromedp.Do(ctx, steps...); err != nil {
		d.t.Fatal(err)
	}
}

// eval answers with what a JavaScript expression gives, as text. A page that is
// just going away gives "".
func (d *device) eval(expression string) string {
	ctx, cancel := context.WithTimeout(d.ctx, patience)
	defer cancel()
	got, err := chromedp.Run(ctx, chromedp.Evaluate[string](`(async () => String(await (`+expression+`)))()`, chromedp.EvalAwaitPromise))
	if err != nil {
		return ""
	}
	return got
}

// until polls the page until a JavaScript expression is true.
func (d *device) until(expression string, args ...any) {
	d.t.Helper()
	expression = fmt.Sprintf(expression, args...)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(patience); time.Now().Before(end); <-tick.C {
		if d.eval(`!!(`+expression+`)`) == "true" {
			return
		}
	}
	d.t.Fatalf("this never came true: %s", expression)
}

func js(text string) string {
	quoted, _ := json.Marshal(text)
	return string(quoted)
}

// as makes the device say that it is another one.
func (d *device) as(userAgent string) {
	d.t.Helper()
	if _, err := chromedp.Call(d.ctx, emulation.SetUserAgentOverride, emulation.SetUserAgentOverrideParams{UserAgent: userAgent}); err != nil {
		d.t.Fatal(err)
	}
}

// resize changes the window and waits until the page has noticed.
func (d *device) resize(width, height int64) {
	d.t.Helper()
	d.do(chromedp.EmulateViewport(width, height))
	d.until(`innerWidth === %d && innerHeight === %d`, width, height)
}

func (d *device) scheme(name string) {
	d.t.Helper()
	if _, err := chromedp.Call(d.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: name}},
	}); err != nil {
		d.t.Fatal(err)
	}
}

// open goes to a path and waits until the page shows what it has.
func (d *device) open(path string) {
	d.t.Helper()
	if !strings.HasPrefix(path, "http") {
		path = d.rw.url + path
	}
	d.do(chromedp.Navigate(path))
	d.until(`!document.querySelector('#page').hidden`)
}

// at waits for a page that is there and ready.
func (d *device) at(path string) {
	d.t.Helper()
	d.until(`location.pathname + location.search === %s && document.readyState === 'complete' && !document.querySelector('#page').hidden`, js(path))
}

func (d *device) sees(text string) {
	d.t.Helper()
	d.until(`document.body.innerText.includes(%s)`, js(text))
}

func (d *device) seesNot(text string) {
	d.t.Helper()
	d.until(`!document.body.innerText.includes(%s)`, js(text))
}

// The person's words for a field are its label, and for a button what it says
// or, where several say the same, its accessible name.
func field(label string) string {
	return fmt.Sprintf(`//*[@id=//label[normalize-space()=%q]/@for]`, label)
}

func button(name string) string {
	// While a dialog asks, the page behind it cannot be pressed.
	return fmt.Sprintf(`//button[normalize-space()=%q or @aria-label=%q][ancestor::dialog or not(//dialog)]`, name, name)
}

func node(xpath string) string {
	return fmt.Sprintf(`document.evaluate(%s, document, null, XPathResult.FIRST_ORDERED_NODE_TYPE).singleNodeValue`, js(xpath))
}

func (d *device) fill(label, text string) {
	d.t.Helper()
	d.do(chromedp.WaitVisible(field(label)), chromedp.Focus(field(label)))
	d.until(`%s === document.activeElement`, node(field(label)))
	d.eval(`document.activeElement.select()`)
	d.do(chromedp.KeyEvent("\b"), chromedp.KeyEvent(text))
}

func (d *device) press(name string) {
	d.t.Helper()
	d.do(chromedp.Click(button(name), chromedp.NodeVisible))
}

// errorBeside waits for words beside a field: visible, tied to the field for a
// screen reader, and with the focus there.
func (d *device) errorBeside(label, words string) {
	d.t.Helper()
	f := node(field(label))
	d.until(`!document.querySelector('[aria-disabled]')`)
	d.until(`(f => f.ariaInvalid === 'true' && f === document.activeElement &&
		f.getAttribute('aria-describedby').split(' ').some(id => document.getElementById(id)?.innerText.includes(%s)))(%s)`, js(words), f)
}

func (d *device) focusOn(xpath string) {
	d.t.Helper()
	d.until(`%s === document.activeElement`, node(xpath))
}

const password = "the eagles are coming at last"

// become is the first start: the printed link, a name, a password.
func (d *device) become(name string) {
	d.t.Helper()
	d.open(d.rw.invite)
	d.fill("Username", name)
	d.fill("New password", password)
	d.press("Set password and log in")
	d.at("/")
}

func (d *device) login(name, password string) {
	d.t.Helper()
	d.fill("Username", name)
	d.fill("Password", password)
	d.press("Log in")
}

// tab follows a link that opens a tab beside this one and answers with it.
func (d *device) tab(xpath string) *device {
	d.t.Helper()
	opened := chromedp.WaitNewTarget(d.ctx, func(info *target.Info) bool { return info.URL != "" })
	d.do(chromedp.Click(xpath, chromedp.NodeVisible))
	select {
	case id := <-opened:
		other := &device{t: d.t, rw: d.rw, expected: maps.Clone(d.expected)}
		ctx, cancel := chromedp.NewContext(d.ctx, chromedp.WithTargetID(id), chromedp.WithListener(other.listen))
		d.t.Cleanup(cancel)
		other.attach(ctx)
		d.t.Cleanup(other.leaveClean)
		return other
	case <-time.After(patience):
		d.t.Fatal("no tab opened")
		return nil
	}
}
