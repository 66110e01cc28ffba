//go:build browser || gateways || screenshots

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
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

// chromium starts a Chromium, which ends with the tests. CHROME names one that
// is not Debian's.
func chromium(flags ...chromedp.ExecAllocatorOption) (context.Context, error) {
	dir, err := os.MkdirTemp("", "ringward-chromium")
	if err != nil {
		return nil, err
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.NoSandbox, // Chromium refuses to start as root with one
		chromedp.DisableGPU,
		chromedp.Flag("disable-quic", true),
		chromedp.Flag("disable-component-update", true),
		chromedp.UserDataDir(dir))
	if path := os.Getenv("CHROME"); path != "" {
		options = append(options, chromedp.ExecPath(path))
	}
	allocator, stop := chromedp.NewExecAllocator(context.Background(), append(options, flags...)...)
	ctx, cancel := chromedp.NewContext(allocator)
	atEnd = append(atEnd, func() { cancel(); stop(); os.RemoveAll(dir) })
	return ctx, chromedp.Do(ctx)
}

var browser = sync.OnceValues(func() (context.Context, error) { return chromium() })

// inviting matches the link for a user who has no password yet.
var inviting = regexp.MustCompile(`http://\S+/auth/invite#[\w-]{43}`)

// ringward is a running server with an empty store of its own.
type ringward struct {
	*server
	invite string // the link for the first user
}

func start(t *testing.T, flags ...string) *ringward {
	t.Helper()
	s := newProgram(t).serve(flags...)
	s.url = strings.Replace(s.url, "127.0.0.1", "localhost", 1) // as the link that a person opens
	return &ringward{s, s.says("(" + inviting.String() + ")")}
}

// curl is a script's way in: a request without cookies, with a token or none.
func (rw *ringward) curl(method, path, token string) int {
	return rw.do(method, path, "", "Authorization: Bearer "+token).status
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
	rw.Helper()
	d := &device{t: rw.T, rw: rw, expected: map[string]bool{}}
	browser, err := browser()
	if err != nil {
		rw.Fatal("Chromium does not start: ", err)
	}
	ctx, cancel := chromedp.NewContext(browser, chromedp.WithNewBrowserContext(), chromedp.WithListener(d.listen))
	rw.Cleanup(cancel)
	d.attach(ctx)
	rw.Cleanup(d.leaveClean)
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
			window.shifted = []
			new PerformanceObserver(list => list.getEntries().forEach(e => shifted.push(e.sources.map(s => (s.node?.outerHTML || '').slice(0, 100))))).observe({type: 'layout-shift', buffered: true})`,
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
	return fmt.Sprintf(`//button[normalize-space()=%q or @aria-label=%q][ancestor::dialog or not(//dialog)][not(ancestor-or-self::*[@hidden])]`, name, name)
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
