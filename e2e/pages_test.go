//go:build browser

package e2e

import (
	"context"
	"fmt"
	"html"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// From the first start to the second device that is put out.
func TestPageStory(t *testing.T) {
	rw := start(t)
	laptop := rw.device()
	laptop.refused("404 /auth/invites/")
	laptop.open(rw.invite)
	laptop.sees("You are the first here")
	laptop.focusOn(field("Username"))
	laptop.become("frodo")
	laptop.sees("frodo")
	laptop.sees("Narya")

	laptop.fill("Name", "Barahir's ring")
	laptop.fill("Bearer", "Aragorn <b>& heirs</b>")
	laptop.press("Add")
	laptop.sees("Barahir's ring is added.")
	laptop.sees("Aragorn <b>& heirs</b>")
	laptop.focusOn(field("Name"))
	laptop.press("Change Narya")
	laptop.until(`document.activeElement.value === 'Narya'`)
	laptop.do(chromedp.KeyEvent("Narya the Great"), chromedp.KeyEvent(kb.Enter))
	laptop.sees("Narya the Great is saved.")
	laptop.focusOn(button("Change Narya the Great"))
	laptop.press("Throw The One Ring into Mount Doom")
	laptop.sees("It does not come back.")
	laptop.press("Cancel")
	laptop.focusOn(button("Throw The One Ring into Mount Doom"))
	laptop.press("Throw The One Ring into Mount Doom")
	laptop.press("Throw it in")
	laptop.sees("The One Ring is gone.")
	laptop.focusOn(button("Change Barahir's ring"))
	laptop.do(chromedp.Reload())
	laptop.at("/")
	laptop.sees("Narya the Great")
	laptop.sees("Aragorn <b>& heirs</b>")
	laptop.seesNot("The One Ring")

	// The link has done its work.
	stranger := rw.device()
	stranger.refused("404 /auth/invites/")
	stranger.open(rw.invite)
	stranger.sees("This link does not work")
	laptop.open(rw.invite)
	laptop.sees("This link does not work")

	phone := rw.device()
	phone.as("Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0")
	phone.do(chromedp.Navigate(rw.url + "/auth/account?from=phone"))
	phone.at("/auth/login?next=%2Fauth%2Faccount%3Ffrom%3Dphone")
	phone.login("Frodo", password)
	phone.at("/auth/account?from=phone")
	phone.sees("Firefox on Linux")
	phone.sees("Chrome on Linux")
	phone.until(`document.querySelector('#devices li').innerText.match(/Firefox on Linux[^]*this device[^]*127\.0\.0\.1/)`)

	laptop.open("/auth/account")
	laptop.until(`document.querySelectorAll('#devices li').length === 2`)
	laptop.press("Log out Firefox on Linux, 127.0.0.1")
	laptop.sees("Firefox on Linux is logged out.")
	laptop.until(`document.querySelectorAll('#devices li').length === 1`)
	laptop.focusOn(button("Log out here"))

	phone.do(chromedp.Reload())
	phone.at("/auth/login?next=%2Fauth%2Faccount%3Ffrom%3Dphone")
	phone.login("frodo", password)
	phone.at("/auth/account?from=phone")

	// One's own end is the login page, and all devices can be ended at once.
	laptop.press("Log out here")
	laptop.at("/auth/login?out")
	laptop.login("frodo", password)
	laptop.at("/")
	phone.do(chromedp.Reload())
	phone.until(`document.querySelectorAll('#devices li').length === 2`)
	phone.press("Log out everywhere")
	phone.press("Cancel")
	phone.press("Log out everywhere")
	phone.press("Log out everywhere")
	phone.at("/auth/login?out")
	laptop.do(chromedp.Reload())
	laptop.at("/auth/login?next=%2F")
}

// A second person gets a link from the operator: the name stands in it.
func TestPageInvite(t *testing.T) {
	rw := start(t)
	rw.device().become("frodo")
	sams := rw.must("", "user", "add", "sam")
	d := rw.device()
	d.refused("422 /auth/invites/")
	d.open(strings.TrimSpace(sams))
	d.sees("This link works once, until ")
	d.focusOn(field("New password"))
	d.until(`document.querySelector('#username').value === 'sam' && document.querySelector('#username').readOnly`)
	d.press("Set password and log in")
	d.errorBeside("New password", "New password is missing.")
	d.fill("New password", "potatoes")
	d.press("Set password and log in")
	d.errorBeside("New password", "Password must have at least 15 characters")
	d.fill("New password", "po-ta-toes boil em mash em")
	d.press("Set password and log in")
	d.at("/")
	d.sees("sam")

	// The first user's name can be wrong as well.
	other := start(t)
	d = other.device()
	d.refused("422 /auth/invites/")
	d.open(other.invite)
	d.fill("Username", "Frodo Baggins")
	d.fill("New password", password)
	d.press("Set password and log in")
	d.errorBeside("Username", "Username must be")
	d.do(chromedp.Reload())
	d.at("/auth/invite")
	d.become("frodo")
}

func TestPagePassword(t *testing.T) {
	rw := start(t)
	d := rw.device()
	d.become("frodo")
	other := rw.device()
	other.open("/auth/login")
	other.login("frodo", password)
	other.at("/")

	d.refused("403 /auth/password", "422 /auth/password", "401 /auth/session")
	d.open("/auth/account")
	d.until(`document.querySelectorAll('#devices li').length === 2`)
	d.until(`document.querySelector('#password').username.value === 'frodo'`) // for password managers
	const better = "speak friend and enter, 3 times"
	d.fill("New password", better)
	d.press("Change password")
	d.errorBeside("Current password", "Current password is missing.")
	d.fill("Current password", "mellon mellon mellon")
	d.press("Change password")
	d.errorBeside("Current password", "Current password is wrong")
	d.fill("Current password", password)
	d.fill("New password", "short")
	d.press("Change password")
	d.errorBeside("New password", "Password must have at least 15 characters")
	d.fill("New password", better)
	d.press("Show new password")
	d.until(`document.querySelector('#new').type === 'text'`)
	d.press("Hide new password")
	d.until(`document.querySelector('#new').type === 'password'`)
	d.press("Show new password")
	d.press("Change password")
	d.sees("Your password is changed.")
	d.until(`document.querySelector('#new').type === 'password'`)
	d.until(`document.querySelector('#new').value + document.querySelector('#current').value === ''`)
	d.until(`document.querySelectorAll('#devices li').length === 1`)

	other.do(chromedp.Reload())
	other.at("/auth/login?next=%2F")
	d.press("Log out")
	d.at("/auth/login?out")
	d.login("frodo", password)
	d.errorBeside("Password", "Username or password is wrong")
	d.login("frodo", better)
	d.at("/")
}

func TestPageToken(t *testing.T) {
	rw := start(t)
	d := rw.device()
	d.become("frodo")
	d.refused("422 /auth/tokens", "403 /auth/tokens", "403 /auth/confirm")
	d.open("/auth/account")
	d.press("Make token")
	d.errorBeside("Name", "Name is missing.")
	d.fill("Name", "backup")
	d.press("Make token")
	d.sees("Confirm that it is you")
	d.fill("Your password", "not mine")
	d.press("Confirm")
	d.sees("password is wrong")
	d.fill("Your password", password)
	d.press("Confirm")
	d.sees("Copy this token now.")
	d.focusOn(field("New token"))
	token := d.eval(node(field("New token")) + `.value`)
	if !strings.HasPrefix(token, "rw_") || len(token) != 46 {
		t.Fatalf("the page shows %q as a token", token)
	}
	if got := rw.curl("GET", "/ringsofpower", token); got != 200 {
		t.Errorf("the token gets %d", got)
	}
	d.press("Copy")
	d.sees("Copied.")
	d.press("Done")
	d.seesNot("Copy this token now.")
	d.focusOn(field("Name"))
	d.do(paste)
	d.until(`document.activeElement.value === %s`, js(token))
	d.fill("Name", "backup")
	d.press("Make token")
	d.errorBeside("Name", "There is a token of that name")

	d.do(chromedp.Reload())
	d.at("/auth/account")
	if page := d.eval(`document.documentElement.outerHTML + [...document.querySelectorAll('input')].map(i => i.value)`); strings.Contains(page, token) {
		t.Error("the token is there a second time")
	}
	d.until(`document.querySelector('#tokens').innerText.match(/ · made .* · expires /) && !document.querySelector('#tokens').innerText.match(/not used yet/)`)
	d.press("Revoke backup")
	d.press("Revoke")
	d.sees("backup is revoked.")
	d.until(`getComputedStyle(document.querySelector('#tokens'), '::before').content.includes('There are none.')`)
	if got := rw.curl("GET", "/ringsofpower", token); got != 401 {
		t.Errorf("the revoked token gets %d", got)
	}
}

// paste is Ctrl+V. A page that a driver types into needs the command named.
var paste = chromedp.KeyEvent("v", chromedp.KeyModifiers(kb.ModifierCtrl),
	func(p *input.DispatchKeyEventParams) { p.Commands = []string{"paste"} })

func TestPageThrottle(t *testing.T) {
	t.Parallel() // it mostly waits
	rw := start(t)
	rw.device().become("frodo")
	d := rw.device()
	d.refused("401 /auth/session", "429 /auth/session")
	d.open("/auth/login")
	for range 5 {
		d.login("frodo", "no")
		d.errorBeside("Password", "Username or password is wrong")
	}
	// From here on the waits double; one of some seconds is long enough to watch.
	label := `document.querySelector('[data-busy]').innerText`
	for d.eval(label+`.match(/Wait [34] s/)`) == "null" {
		d.until(label + ` === 'Log in'`)
		d.login("frodo", "no")
		d.until(label + ` !== 'Logging in…'`)
		if d.count("POST /auth/session") > 20 {
			t.Fatal("no wait of 4 seconds")
		}
	}
	before := d.count("POST /auth/session")
	d.until(`document.querySelector('.error:not(:empty)').innerText.includes('Too many wrong passwords')`)
	d.until(`document.querySelector('.error:not(:empty) .sr').innerText.includes('seconds')`)
	d.until(label + ` === 'Wait 2 s'`)
	d.do(chromedp.KeyEvent(kb.Enter))
	d.press("Wait 2 s")
	d.until(label + ` === 'Wait 1 s'`)
	d.sees("You can try again now.")
	d.until(label + ` === 'Log in'`)
	if got := d.count("POST /auth/session"); got != before {
		t.Errorf("%d tries were sent while the page said to wait", got-before)
	}
	d.login("frodo", password)
	d.at("/")
}

// What next may say, and where the browser then is. A device fails its test
// when it asks any other server for anything.
func TestPageNext(t *testing.T) {
	t.Parallel() // it mostly waits
	rw := start(t)
	d := rw.device()
	d.become("frodo")
	for _, c := range []struct{ next, at string }{
		{"/auth/account", "/auth/account"},
		{"/auth/account?a=1&b=%2F%2F#c", "/auth/account?a=1&b=%2F%2F"},
		{"/?q=//evil.example", "/?q=//evil.example"},
		{"/?q=https://evil.example/", "/?q=https://evil.example/"},
		{"", "/"},
		{"//evil.example", "/"},
		{"///evil.example", "/"},
		{"////evil.example/%2e%2e", "/"},
		{"https://evil.example", "/"},
		{"https:evil.example", "/"},
		{"https:/evil.example", "/"},
		{"HTTPS://evil.example", "/"},
		{"http://127.0.0.1.evil.example/", "/"},
		{"//127.0.0.1@evil.example/", "/"},
		{"http://evil.example#@127.0.0.1/", "/"},
		{`/\evil.example`, "/"},
		{`\/evil.example`, "/"},
		{`\\evil.example`, "/"},
		{`/\/evil.example`, "/"},
		{`/.\evil.example`, "/"},
		{"/\t/evil.example", "/"},
		{"/\n/evil.example", "/"},
		{"/\r\n/evil.example", "/"},
		{"\t//evil.example", "/"},
		{" //evil.example", "/"},
		{"/\x00/evil.example", "/"},
		{"/ok\r\nLocation: https://evil.example", "/"},
		{"javascript:alert(1)", "/"},
		{"java\nscript:alert(1)", "/"},
		{"JavaScript:alert(document.domain)//", "/"},
		{"data:text/html,<script>alert(1)</script>", "/"},
		{"blob:http://evil.example/x", "/"},
		{"ftp://evil.example", "/"},
		{"evil.example", "/"},
		{"@evil.example", "/"},
		{".evil.example", "/"},
		{":80@evil.example", "/"},
		{"?next=//evil.example", "/"},
		{"#//evil.example", "/"},
		{"%2F%2Fevil.example", "/"},
		{"//evil%E3%80%82example", "/"},
		{"//evil\u3002example", "/"},
		{"/\u2028/evil.example", ""},
		{"/%09/evil.example", ""},
		{"/%5cevil.example", ""},
		{"/%2f%2fevil.example", ""},
		{"/%2e%2e//evil.example", ""},
		{"/..//evil.example", ""},
		{"/.//evil.example", ""},
		{"/a/..//evil.example", ""},
		{"/;@evil.example", ""},
		{"/%0d%0aLocation:%20https://evil.example", ""},
	} {
		path := "/auth/login?next=" + url.QueryEscape(c.next)
		d.do(chromedp.Navigate(rw.url + path))
		if c.at != "" {
			d.at(c.at)
		} else {
			// A path like any other, that may not be there: what counts is
			// that the browser asks this server and nobody else.
			d.until(`location.origin === %s && location.pathname !== '/auth/login' && location.pathname !== '/auth/continue' && document.readyState === 'complete'`, js(rw.url))
		}
	}
	// These end nowhere on this server, which is an answer too.
	d.mu.Lock()
	for _, r := range d.refusals {
		if strings.HasPrefix(r, "404 ") || strings.HasPrefix(r, "400 ") {
			d.expected[r] = true
		}
	}
	d.mu.Unlock()

	// The same after a real login, not only for those who are logged in.
	for _, c := range []struct{ next, at string }{
		{"/auth/account?x=1&y=%3F", "/auth/account?x=1&y=%3F"},
		{"//evil.example", "/"},
		{`/\evil.example`, "/"},
		{"javascript:alert(1)", "/"},
	} {
		d := rw.device()
		d.open("/auth/login?next=" + url.QueryEscape(c.next))
		d.login("frodo", password)
		d.at(c.at)
	}
}

// In front of another tool, logging in leads to the tool's page that was asked
// for, and the account page leads back to the tool.
func TestPageProxy(t *testing.T) {
	tool := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprintf(w, `<link rel="icon" href="data:,"><main id="page">%s asks for %s</main>`,
			html.EscapeString(r.Header.Get("Remote-User")), html.EscapeString(r.URL.String()))
	}))
	defer tool.Close()
	rw := start(t, "-proxy", tool.URL)
	d := rw.device()
	d.become("frodo")
	d.sees("frodo asks for /")
	d.open("/auth/account")
	d.do(chromedp.Click(`//a[.='Back']`, chromedp.NodeVisible))
	d.at("/")
	d.sees("frodo asks for /")

	d = rw.device()
	d.do(chromedp.Navigate(rw.url + "/reports?week=48&q=a%26b"))
	d.at("/auth/login?next=%2Freports%3Fweek%3D48%26q%3Da%2526b")
	d.login("frodo", password)
	d.at("/reports?week=48&q=a%26b")
	d.sees("frodo asks for /reports?week=48&q=a%26b")
}

// The session ends while somebody writes: nothing that was typed is lost.
func TestPageLostSession(t *testing.T) {
	rw := start(t)
	d := rw.device()
	d.become("frodo")
	other := rw.device()
	other.open("/auth/login?next=/auth/account")
	other.login("frodo", password)
	other.at("/auth/account")

	d.refused("401 /ringsofpower")
	d.fill("Name", "a long and well thought name")
	d.fill("Bearer", "Bombadil")
	other.press("Log out everywhere")
	other.press("Log out everywhere")
	other.at("/auth/login?out")
	d.press("Add")
	d.sees("Your session has ended, nothing was changed. What you typed is still here.")
	d.until(`document.querySelector('[role=alert] a') === document.activeElement`)
	beside := d.tab(`//*[@role='alert']/a`)
	beside.at("/auth/login?next=%2F")
	beside.login("frodo", password)
	beside.at("/")
	beside.seesNot("Bombadil")

	// Coming back is an event that a headless window does not get by itself.
	d.eval(`dispatchEvent(new Event('focus'))`)
	d.sees("You are logged in again.")
	d.focusOn(button("Add"))
	d.press("Add")
	d.sees("a long and well thought name is added.")

	// Somebody else came back: this page is no longer theirs.
	sams := rw.must("", "user", "add", "sam")
	d.refused("401 /ringsofpower")
	d.press("Change Narya")
	beside.open("/auth/account")
	beside.press("Log out everywhere")
	beside.press("Log out everywhere")
	beside.at("/auth/login?out")
	d.press("Save")
	d.refused("401 /ringsofpower/1")
	d.sees("Your session has ended")
	beside.open(strings.TrimSpace(sams))
	beside.fill("New password", "po-ta-toes boil em mash em")
	beside.press("Set password and log in")
	beside.at("/")
	d.eval(`dispatchEvent(new Event('focus'))`)
	d.until(`document.querySelector('#who').innerText === 'sam'`)
	d.seesNot("frodo")
}

// Nobody reads on with the back button.
func TestPageBackAfterLogout(t *testing.T) {
	rw := start(t)
	d := rw.device()
	d.become("frodo")
	d.open("/auth/account")
	d.sees("frodo")
	d.do(chromedp.Navigate(rw.url + "/"))
	d.at("/")
	d.press("Log out")
	d.at("/auth/login?out")
	d.do(chromedp.NavigateBack())
	d.at("/auth/login?next=%2Fauth%2Faccount")
	d.seesNot("frodo")
	d.login("frodo", password)
	d.at("/auth/account")

	// A page that the browser kept whole, where it does so, is empty when it
	// goes and asks again when it comes back.
	d.eval(`dispatchEvent(new PageTransitionEvent('pagehide', {persisted: true}))`)
	d.until(`document.body.hidden`)
	d.eval(`fetch('/auth/session', {method: 'DELETE'})`)
	d.eval(`dispatchEvent(new PageTransitionEvent('pageshow', {persisted: true}))`)
	d.at("/auth/login?next=%2Fauth%2Faccount")
	d.seesNot("frodo")

	// And who is logged in has nothing to do on the login page.
	d.login("frodo", password)
	d.at("/auth/account")
	d.do(chromedp.Navigate(rw.url + "/auth/login"))
	d.at("/")
}

// A button that is pressed twice asks once.
func TestPageOnce(t *testing.T) {
	rw := start(t)
	rw.device().become("frodo")
	d := rw.device()
	d.refused("401 /auth/session")
	d.open("/auth/login")
	d.fill("Username", "frodo")
	d.fill("Password", "no")
	d.eval(`(b => { b.click(); b.click(); b.form.requestSubmit() })(document.querySelector('[type=submit]'))`)
	d.until(`document.querySelector('[data-busy]').innerText === 'Logging in…' && document.querySelector('[aria-disabled]')`)
	d.errorBeside("Password", "Username or password is wrong")
	if got := d.count("POST /auth/session"); got != 1 {
		t.Errorf("two clicks and a submit sent %d logins", got)
	}
	// An empty field is no try.
	d.fill("Username", "")
	d.do(chromedp.KeyEvent("\b"))
	d.press("Log in")
	d.errorBeside("Username", "Username is missing.")
	if got := d.count("POST /auth/session"); got != 1 {
		t.Error("an empty username was sent")
	}
	d.login("frodo", password)
	d.at("/")
}

// A password comes by the clipboard as well.
func TestPagePaste(t *testing.T) {
	rw := start(t)
	rw.device().become("frodo")
	d := rw.device()
	d.open("/auth/login")
	d.fill("Username", password)
	d.eval(`document.querySelector('#username').select(), document.execCommand('copy')`)
	d.fill("Username", "frodo")
	d.do(chromedp.Focus(field("Password")), paste)
	d.until(`document.querySelector('#password').value === %s`, js(password))
	d.press("Log in")
	d.at("/")
}

// The server is away for a while: the page says so and keeps what was typed.
func TestPageServerAway(t *testing.T) {
	addr := ownAddr()
	rw := start(t, "-addr", addr)
	d := rw.device()
	d.become("frodo")
	d.fill("Name", "kept")
	d.fill("Bearer", "kept too")
	rw.stop()
	d.press("Add")
	d.sees("The server does not answer.")
	d.until(`document.querySelector('#name').value === 'kept'`)
	rw.serve("-addr", addr)
	d.press("Add")
	d.sees("kept is added.")
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.wrong) != 1 || !strings.Contains(d.wrong[0], "ERR_CONNECTION_REFUSED") {
		t.Errorf("the browser logs %q", d.wrong)
	}
	d.wrong = nil
}

// The whole of it without a mouse: what is reached by Tab, is pressed by Enter
// or space, and shows its focus.
func TestPageKeyboard(t *testing.T) {
	rw := start(t)
	d := rw.device()
	d.refused("403 /auth/tokens")
	d.become("frodo")
	d.eval(`fetch('/auth/session', {method: 'DELETE'})`)
	d.open("/auth/login")

	tabTo := func(xpath string) {
		t.Helper()
		for range 80 {
			if d.eval(node(xpath)+` === document.activeElement`) == "true" {
				// Keyboard focus can be seen, and nothing lies over it.
				d.until(`(e => { const r = e.getBoundingClientRect()
					return getComputedStyle(e).outlineStyle === 'solid' && parseFloat(getComputedStyle(e).outlineWidth) >= 2
						&& e.contains(document.elementFromPoint(r.x + r.width / 2, r.y + r.height / 2)) })(document.activeElement)`)
				return
			}
			d.do(chromedp.KeyEvent(kb.Tab))
		}
		t.Fatalf("Tab does not come to %s", xpath)
	}
	enter, space := chromedp.KeyEvent(kb.Enter), chromedp.KeyEvent(" ")

	tabTo(field("Username")) // it has the focus from the start
	d.do(chromedp.KeyEvent("frodo"))
	tabTo(field("Password"))
	d.do(chromedp.KeyEvent(password))
	tabTo(button("Show password"))
	d.do(space)
	d.until(`document.querySelector('#password').type === 'text'`)
	tabTo(button("Log in"))
	d.do(enter)
	d.at("/")

	tabTo(button("Change Nenya"))
	d.do(enter)
	d.until(`document.activeElement.value === 'Nenya'`)
	d.do(chromedp.KeyEvent("Nenya of Adamant"), enter)
	d.sees("Nenya of Adamant is saved.")
	tabTo(button("Throw Nenya of Adamant into Mount Doom"))
	d.do(space)
	d.until(`document.activeElement.innerText === 'Cancel' && document.activeElement.closest('dialog')`)
	d.do(chromedp.KeyEvent(kb.Escape))
	d.focusOn(button("Throw Nenya of Adamant into Mount Doom"))
	d.do(space)
	tabTo(button("Throw it in"))
	d.do(enter)
	d.sees("Nenya of Adamant is gone.")
	d.focusOn(button("Change Vilya"))

	tabTo(`//a[.='Account']`)
	d.do(enter)
	d.at("/auth/account")
	tabTo(field("Current password"))
	d.do(chromedp.KeyEvent(password))
	tabTo(field("New password"))
	d.do(chromedp.KeyEvent("speak friend and enter, 3 times"), enter)
	d.sees("Your password is changed.")
	tabTo(field("Name"))
	d.do(chromedp.KeyEvent("cron"))
	tabTo(field("Expires"))
	d.do(chromedp.KeyEvent(kb.ArrowDown))
	tabTo(button("Make token"))
	d.do(space)
	d.focusOn(field("Your password"))
	d.do(chromedp.KeyEvent("speak friend and enter, 3 times"), enter)
	d.focusOn(field("New token"))
	tabTo(button("Copy"))
	d.do(enter)
	d.sees("Copied.")
	tabTo(button("Done"))
	d.do(enter)
	tabTo(button("Revoke cron"))
	d.do(enter)
	tabTo(button("Revoke"))
	d.do(enter)
	d.sees("cron is revoked.")
	tabTo(button("Log out"))
	d.do(enter)
	d.at("/auth/login?out")
}

// Every page, in every state that axe can look at, on a phone, at 200 % zoom
// and on a desk, light and dark: no findings, and nothing wider than the screen.
func TestPageAxe(t *testing.T) {
	path := os.Getenv("AXE")
	if path == "" {
		t.Fatal("AXE must name axe.min.js of npm's package axe-core (.ci/browser installs it)")
	}
	axe, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	rw := start(t)
	d := rw.device()
	states := 0
	look := func(state string) {
		t.Helper()
		states++
		if d.eval(`typeof axe`) != "object" {
			d.do(chromedp.Func(func(ctx context.Context, _ *chromedp.Target) error {
				_, err := chromedp.Run(ctx, chromedp.Evaluate[string](string(axe)+"\n;'loaded'"))
				return err
			}))
		}
		for _, scheme := range []string{"light", "dark"} {
			d.scheme(scheme)
			// 640 is what a window of 1280 has left at 200 % zoom.
			for _, width := range []int64{320, 640, 1280} {
				d.resize(width, 900)
				if wide := d.eval(`document.documentElement.scrollWidth`); wide != fmt.Sprint(width) {
					t.Errorf("%s is %s wide on a screen of %d", state, wide, width)
				}
				found := d.eval(`axe.run().then(r => JSON.stringify(r.violations.concat(r.incomplete.filter(v => v.id !== 'color-contrast'))
					.map(v => v.id + ': ' + v.help + ' ' + v.nodes.map(n => n.html).join(' '))))`)
				if found != "[]" {
					t.Errorf("%s, %s, %d wide: %s", state, scheme, width, found)
				}
			}
		}
	}
	d.refused("404 /auth/invites/", "401 /auth/session", "403 /auth/password", "403 /auth/tokens", "401 /ringsofpower")

	d.open("/auth/invite#nothing")
	look("dead invite")
	d.open(rw.invite)
	look("first invite")
	d.become("frodo")
	look("rings")
	d.press("Change Narya")
	d.press("Change Vilya")
	look("rings, changing two")
	d.press("Throw The One Ring into Mount Doom")
	look("rings, throwing one")
	d.press("Cancel")
	d.open("/auth/account")
	look("account")
	d.press("Change password")
	look("account, nothing typed")
	d.fill("Current password", "not the current one")
	d.fill("New password", "nor the one to come")
	d.press("Change password")
	d.errorBeside("Current password", "wrong")
	look("account, wrong password")
	d.fill("Name", strings.Repeat("w", 64))
	d.press("Make token")
	d.sees("Confirm that it is you")
	look("account, to be confirmed")
	d.fill("Your password", password)
	d.press("Confirm")
	d.sees("Copy this token now.")
	look("account, new token")
	d.press("Copy")
	look("account, copied")
	d.open("/")
	d.eval(`fetch('/auth/session', {method: 'DELETE'})`)
	d.fill("Name", "x")
	d.fill("Bearer", "x")
	d.press("Add")
	d.sees("Your session has ended")
	look("rings, session lost")
	d.open("/auth/login")
	look("login")
	d.login("frodo", "no")
	d.errorBeside("Password", "wrong")
	look("login, wrong password")
	t.Logf("%d states, each at 3 widths, light and dark", states)
}

// On a slow line a page says that it loads, and then nothing on it moves.
func TestPageStill(t *testing.T) {
	t.Parallel() // it mostly waits
	rw := start(t)
	rw.device().become("frodo")
	other := start(t)
	slow := func(d *device) {
		t.Helper()
		d.do(chromedp.Func(func(ctx context.Context, _ *chromedp.Target) error {
			_, err := chromedp.Call(ctx, network.EmulateNetworkConditionsByRule, network.EmulateNetworkConditionsByRuleParams{
				MatchedNetworkConditions: []*network.Conditions{{Latency: 600, DownloadThroughput: -1, UploadThroughput: -1}},
			})
			return err
		}))
	}
	for _, width := range []int64{320, 1280} {
		d := rw.device()
		d.open("/auth/login")
		d.login("frodo", password)
		d.at("/")
		d.resize(width, 900)
		slow(d)
		still := func(path string) {
			t.Helper()
			// Not Navigate: that comes back when all is loaded.
			d.eval(`location.href = ` + js(d.rw.url+path))
			if path != "/auth/login" {
				d.until(`location.href === %s && document.querySelector('#wait').checkVisibility({opacityProperty: true})`, js(d.rw.url+path))
			}
			d.at(strings.Split(path, "#")[0])
			d.until(`!document.querySelector('#wait')`)
			// Two frames later all that was drawn has been measured.
			d.eval(`new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))`)
			if moved := d.eval(`shifted.join('\n')`); moved != "" {
				t.Errorf("%s, %d wide: the layout shifts: %s", path, width, moved)
			}
		}
		still("/")
		still("/auth/account")
		d.press("Log out")
		d.at("/auth/login?out")
		still("/auth/login")
		d = other.device()
		d.resize(width, 900)
		slow(d)
		still("/auth/invite#" + strings.Split(other.invite, "#")[1])
	}
}

// Without its script one can log in, and each other page says what it lacks.
func TestPageWithoutScript(t *testing.T) {
	rw := start(t)
	rw.device().become("frodo")
	d := rw.device()
	d.do(chromedp.Func(func(ctx context.Context, _ *chromedp.Target) error {
		_, err := chromedp.Call(ctx, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})
		return err
	}))
	d.refused("401 /auth/login")
	d.do(chromedp.Navigate(rw.url + "/auth/account"))
	d.at("/auth/login?next=%2Fauth%2Faccount")
	d.sees("Passkeys, and setting up a second factor, need JavaScript.")
	d.login("frodo", "no")
	d.sees("Username or password is wrong")
	d.until(`document.querySelector('#username').value === 'frodo'`)
	d.login("frodo", password)
	for _, path := range []string{"/auth/account", "/", "/auth/invite"} {
		d.until(`location.pathname === %s && document.readyState === 'complete'`, js(path))
		d.sees("needs JavaScript")
		d.do(chromedp.Navigate(rw.url + map[string]string{"/auth/account": "/", "/": "/auth/invite", "/auth/invite": "/"}[path]))
	}
}

// What each page costs, with its headers and its data.
func TestPageWeight(t *testing.T) {
	rw := start(t)
	d := rw.device()
	d.become("frodo")
	weigh := func(path string) {
		t.Helper()
		d.do(chromedp.Navigate("about:blank"))
		d.mu.Lock()
		d.wrong = nil // about:blank is no other server
		d.bytes = 0
		d.mu.Unlock()
		d.open(path)
		d.until(`document.readyState === 'complete'`)
		d.mu.Lock()
		defer d.mu.Unlock()
		t.Logf("%-16s %6.0f bytes over the wire", path, d.bytes)
		if d.bytes == 0 || d.bytes > 20_000 {
			t.Errorf("%s costs %.0f bytes", path, d.bytes)
		}
	}
	weigh("/")
	weigh("/auth/account")
	d.press("Log out")
	d.at("/auth/login?out")
	weigh("/auth/login")
}

// The tests above lean on a device that sees what goes wrong: it does.
func TestPageDeviceSees(t *testing.T) {
	rw := start(t)
	d := rw.device()
	d.open("/auth/login")
	d.eval(`document.body.setAttribute('style', 'color: red')`)
	d.eval(`document.body.append(Object.assign(document.createElement('script'), {textContent: 'x = 1'}))`)
	d.eval(`setTimeout(() => { throw new Error('thrown') })`)
	d.eval(`console.error('logged')`)
	d.eval(`fetch('http://127.0.0.1:9/').catch(() => {})`)
	d.eval(`sessionStorage.kept = 1, document.cookie = 'seen=1'`)
	d.until(`document.cookie + sessionStorage.kept === 'seen=11'`)
	d.eval(`sessionStorage.clear(), document.cookie = 'seen=; max-age=0'`)
	d.mu.Lock()
	all := strings.Join(d.wrong, "\n")
	d.wrong = nil
	d.mu.Unlock()
	for _, want := range []string{"CSP: style-src", "CSP: script-src", "CSP: connect-src", "thrown", "logged"} {
		if !strings.Contains(all, want) {
			t.Errorf("nobody saw %q in\n%s", want, all)
		}
	}
}
