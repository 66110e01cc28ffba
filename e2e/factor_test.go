//go:build browser

package e2e

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/webauthn"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// startLocal is a server with frodo, at the address that its log names: where
// browsers have passkeys.
func startLocal(t *testing.T, flags ...string) *ringward {
	t.Helper()
	rw := start(t, flags...)
	rw.url = strings.Replace(rw.url, "127.0.0.1", "localhost", 1)
	rw.addUser("frodo")
	return rw
}

// authenticator is one that Chromium plays, which is touched at once.
func (d *device) authenticator() webauthn.AuthenticatorID {
	d.t.Helper()
	if _, err := chromedp.Call(d.ctx, webauthn.Enable, webauthn.EnableParams{}); err != nil {
		d.t.Fatal(err)
	}
	added, err := chromedp.Call(d.ctx, webauthn.AddVirtualAuthenticator, webauthn.AddVirtualAuthenticatorParams{
		Options: &webauthn.VirtualAuthenticatorOptions{Protocol: "ctap2", Transport: "internal", HasResidentKey: true,
			HasUserVerification: true, IsUserVerified: true, AutomaticPresenceSimulation: true}})
	if err != nil {
		d.t.Fatal(err)
	}
	return added.AuthenticatorID
}

func (d *device) call(what string, err error) {
	d.t.Helper()
	if err != nil {
		d.t.Fatalf("%s: %v", what, err)
	}
}

// touched has the authenticator wait for a touch, or not.
func (d *device) touched(id webauthn.AuthenticatorID, yes bool) {
	d.t.Helper()
	_, err := chromedp.Call(d.ctx, webauthn.SetAutomaticPresenceSimulation, webauthn.SetAutomaticPresenceSimulationParams{AuthenticatorID: id, Enabled: yes})
	d.call("presence", err)
}

// confirms types the password into the dialog that asks who is there.
func (d *device) confirms() {
	d.t.Helper()
	d.sees("Confirm that it is you")
	d.fill("Your password", password)
	d.press("Confirm")
	d.until(`!document.querySelector('dialog')`)
}

// secret is what the page shows for who cannot scan.
func (d *device) secret() string {
	d.t.Helper()
	d.until(`document.querySelector('.qr path')?.getAttribute('d')`)
	return d.eval(`document.querySelector('#app code').textContent`)
}

// codes are those that the page shows.
func (d *device) codes() []string {
	d.t.Helper()
	d.until(`document.querySelectorAll('.codes li').length === 8`)
	return strings.Fields(d.eval(`[...document.querySelectorAll('.codes code')].map(c => c.textContent).join(' ')`))
}

// An app is set up, asked for, replaced by a recovery code, and removed.
func TestPageApp(t *testing.T) {
	rw := startLocal(t)
	d := rw.device()
	d.refused("403 /auth/totp", "401 /auth/session/code", "403 /auth/recovery-codes")
	d.open("/auth/login?next=%2Fauth%2Faccount")
	d.login("frodo", password)
	d.at("/auth/account")
	d.press("Set up an authenticator app")
	d.press("Cancel")
	d.until(`!document.querySelector('dialog')`)
	d.focusOn(button("Set up an authenticator app"))
	d.press("Set up an authenticator app")
	d.confirms()
	d.secret()
	d.press("Cancel")
	d.until(`document.querySelector('#app').hidden`)
	d.focusOn(button("Set up an authenticator app"))
	d.press("Set up an authenticator app")
	secret := d.secret()
	d.focusOn(field("Code from the app"))
	d.fill("Code from the app", "000000")
	d.press("Turn it on")
	d.errorBeside("Code from the app", "Code is wrong")
	d.fill("Code from the app", appCode(t, secret, 0))
	d.press("Turn it on")
	codes := d.codes()
	d.press("Copy all")
	d.sees("Copied.")
	d.eval(`window.print = () => window.printed = true`)
	d.press("Print")
	d.until(`window.printed`)
	d.eval(`URL.createObjectURL = blob => (window.saved = blob, 'blob:nothing')`)
	d.eval(`HTMLAnchorElement.prototype.click = function () { window.named = this.download }`)
	d.press("Save")
	d.until(`window.named === 'recovery-codes.txt'`)
	if saved := strings.Fields(d.eval(`saved.text()`)); !slices.Equal(saved, codes) {
		t.Errorf("saved %q, not %q", saved, codes)
	}
	d.press("I have kept them")
	d.sees("An authenticator app is set up since")
	d.sees("8 recovery codes are left.")
	d.until(`!document.body.innerText.includes(%s)`, js(codes[0]))

	d.press("Log out")
	d.at("/auth/login?out")
	d.login("frodo", password)
	d.focusOn(field("Code"))
	d.until(`document.activeElement.autocomplete === 'one-time-code' && document.activeElement.inputMode === 'numeric'`)
	d.fill("Code", "12345")
	d.press("Verify")
	d.errorBeside("Code", "Code is wrong")
	code := appCode(t, secret, 1)
	d.fill("Code", code[:3]+" "+code[3:]) // the last digit sends it
	d.at("/")

	d.open("/auth/account")
	d.press("Log out")
	d.at("/auth/login?out")
	d.login("frodo", password)
	d.press("Use a recovery code")
	d.focusOn(field("Recovery code"))
	d.fill("Recovery code", strings.ToLower(codes[0]))
	d.do(chromedp.KeyEvent(kb.Enter))
	d.at("/")

	d.open("/auth/account")
	d.sees("7 recovery codes are left.")
	d.press("New recovery codes")
	d.press("Make new ones")
	d.confirms()
	if fresh := d.codes(); slices.Contains(fresh, codes[1]) {
		t.Error("the new recovery codes are the old ones")
	}
	d.press("I have kept them")
	d.sees("8 recovery codes are left.")
	d.press("Remove the app")
	d.press("Remove")
	d.sees("The authenticator app is removed.")
	d.press("Log out")
	d.at("/auth/login?out")
	d.login("frodo", password)
	d.at("/")
}

// Where it is required, the pages enrol before there is a session: at login and
// with an invite.
func TestPageEnrol(t *testing.T) {
	rw := startLocal(t, "-second-factor", "required")
	d := rw.device()
	enrol := func() {
		t.Helper()
		d.sees("Set up a second factor")
		if d.eval(`fetch('/auth/sessions').then(r => r.status)`) != "401" {
			t.Error("there is a session before the second factor")
		}
		d.fill("Code from the app", appCode(t, d.secret(), 0))
		d.press("Turn it on")
		d.codes()
		d.press("I have kept them")
	}
	d.refused("401 /auth/sessions")
	d.open("/auth/login?next=%2Fauth%2Faccount")
	d.login("frodo", password)
	enrol()
	d.at("/auth/account")
	d.sees("8 recovery codes are left.")
	d.press("Log out")
	d.at("/auth/login?out")
	link := strings.Replace(strings.TrimSpace(rw.must("", "user", "add", "sam")), "127.0.0.1", "localhost", 1)
	d.open(link)
	d.fill("New password", password)
	d.press("Set password and log in")
	enrol()
	d.at("/")
	d.sees("sam")

	// Who logs in by passkey only gets a new password, and is told that.
	d.refused("403 /auth/passkeys/options")
	d.authenticator()
	d.open("/auth/account")
	d.fill(passkeyName, "laptop")
	d.press("Add a passkey")
	d.confirms()
	d.press("Remove the app")
	d.press("Remove")
	d.sees("The authenticator app is removed.")
	d.open(strings.Replace(strings.TrimSpace(rw.must("", "user", "invite", "sam")), "127.0.0.1", "localhost", 1))
	d.fill("New password", password)
	d.press("Set password and log in")
	d.sees("Your password is set")
	d.do(chromedp.Click(`//a[.="Go to the login"]`, chromedp.NodeVisible))
	d.at("/")
	d.sees("sam")
}

// passkeyStory adds a passkey, logs in by it in each way, and sees the server
// refuse what is not right.
func passkeyStory(t *testing.T, d *device) {
	t.Helper()
	d.refused("403 /auth/passkeys/options", "401 /auth/passkey")
	id := d.authenticator()
	d.open("/auth/login?next=%2Fauth%2Faccount")
	d.login("frodo", password)
	d.at("/auth/account")
	d.fill(passkeyName, "My laptop")
	d.press("Add a passkey")
	d.confirms()
	d.sees("My laptop is added.")
	d.sees("not used yet")
	d.fill(passkeyName, "again")
	d.press("Add a passkey")
	d.sees("This device has a passkey here already.")

	// By autofill, without a name: the page's own offer is touched at once.
	d.press("Log out")
	d.at("/")
	d.open("/auth/account")
	d.sees("used ")

	// By the button, in a browser that has no autofill of them.
	_, err := chromedp.Call(d.ctx, page.AddScriptToEvaluateOnNewDocument, page.AddScriptToEvaluateOnNewDocumentParams{
		Source: `PublicKeyCredential.isConditionalMediationAvailable = null`})
	d.call("script", err)
	d.press("Log out")
	d.at("/auth/login?out")
	d.press("Log in with a passkey")
	d.at("/")

	yes := true
	for _, wrong := range []webauthn.SetResponseOverrideBitsParams{{IsBogusSignature: &yes}, {IsBadUV: &yes}, {IsBadUP: &yes}} {
		d.open("/auth/account")
		d.press("Log out")
		d.at("/auth/login?out")
		wrong.AuthenticatorID = id
		_, err := chromedp.Call(d.ctx, webauthn.SetResponseOverrideBits, wrong)
		d.call("override", err)
		d.press("Log in with a passkey")
		d.sees("Passkey refused")
		if d.eval(`fetch('/auth/session').then(r => r.status)`) != "401" {
			t.Errorf("%+v: somebody is in", wrong)
		}
		d.refused("401 /auth/session")
		_, err = chromedp.Call(d.ctx, webauthn.SetResponseOverrideBits, webauthn.SetResponseOverrideBitsParams{AuthenticatorID: id})
		d.call("override", err)
		d.press("Log in with a passkey")
		d.at("/")
	}

	// It confirms that it is the person.
	d.open("/auth/account")
	d.fill("Name", "script")
	d.press("Make token")
	d.press("Use a passkey")
	d.sees("Copy this token now.")
	d.refused("403 /auth/tokens")
	d.press("Remove My laptop")
	d.press("Remove")
	d.sees("My laptop is removed.")
}

// passkeyName is told from the token's name by what it belongs to.
const passkeyName = "Passkey name"

func TestPagePasskey(t *testing.T) {
	passkeyStory(t, startLocal(t).device())
}

// The same on an https name, alone and under a cookie domain.
func TestPagePasskeyHTTPS(t *testing.T) {
	cert, key := certificate(t, "auth.example.test")
	for _, flags := range [][]string{nil, {"-cookie-domain", "example.test"}} {
		addr := ownAddr()
		host, port, _ := net.SplitHostPort(addr)
		public := "https://auth.example.test:" + port
		rw := &ringward{server: newProgram(t).serve(append(flags, "-addr", addr, "-tls-cert", cert, "-tls-key", key, "-public-url", public)...)}
		rw.url = public
		rw.addUser("frodo")
		ctx, err := chromium(chromedp.Flag("ignore-certificate-errors", true), chromedp.Flag("host-resolver-rules", "MAP *.test "+host))
		if err != nil {
			t.Fatal("Chromium does not start: ", err)
		}
		d := &device{t: t, rw: rw, expected: map[string]bool{}}
		tab, cancel := chromedp.NewContext(ctx, chromedp.WithListener(d.listen))
		t.Cleanup(cancel)
		d.attach(tab)
		passkeyStory(t, d)

		// On another name the login page leads to the one where they are taken.
		if flags != nil {
			one := "https://one.example.test:" + port
			d.press("Log out")
			d.at("/auth/login?out")
			d.open(one + "/auth/login?next=%2Fx%3Fy")
			d.until(`document.querySelector('#passkey').hidden && [...document.links].some(a => a.href === %s)`,
				js(public+"/auth/login?next="+url.QueryEscape(one+"/x?y")))
			d.mu.Lock()
			d.wrong = slices.DeleteFunc(d.wrong, func(w string) bool { return strings.HasPrefix(w, "left the server for "+one) })
			d.mu.Unlock()
		}
	}
}

// Where a browser has no passkeys the page names the address where it has.
func TestPageNoPasskeysHere(t *testing.T) {
	rw := startLocal(t)
	there := rw.url
	rw.url = strings.Replace(rw.url, "localhost", "127.0.0.1", 1)
	d := rw.device()
	d.open("/auth/login?next=%2Fauth%2Faccount")
	d.until(`document.querySelector('#passkey').hidden`)
	d.login("frodo", password)
	d.at("/auth/account")
	d.sees("Open " + there + " to add one.")
	d.until(`document.querySelector('#passkey').hidden`)
}

// The second factor by keyboard alone.
func TestPageFactorKeyboard(t *testing.T) {
	rw := startLocal(t)
	d := rw.device()
	d.authenticator()
	d.refused("403 /auth/totp", "403 /auth/passkeys/options")
	enter := chromedp.KeyEvent(kb.Enter)
	tabTo := func(xpath string) {
		t.Helper()
		for range 60 {
			if d.eval(node(xpath)+` === document.activeElement`) == "true" {
				return
			}
			d.do(chromedp.KeyEvent(kb.Tab))
		}
		t.Fatalf("the keyboard does not reach %s", xpath)
	}
	d.open("/auth/login?next=%2Fauth%2Faccount")
	d.focusOn(field("Username"))
	d.do(chromedp.KeyEvent("frodo"), chromedp.KeyEvent(kb.Tab), chromedp.KeyEvent(password), enter)
	d.at("/auth/account")
	tabTo(button("Set up an authenticator app"))
	d.do(enter)
	d.focusOn(field("Your password"))
	d.do(chromedp.KeyEvent(password), enter)
	secret := d.secret()
	d.focusOn(field("Code from the app"))
	d.do(chromedp.KeyEvent(appCode(t, secret, 0)), enter)
	d.codes()
	d.until(`document.activeElement.textContent === 'Your recovery codes'`)
	tabTo(button("I have kept them"))
	d.do(enter)
	d.sees("8 recovery codes are left.")
	tabTo(field(passkeyName))
	d.do(chromedp.KeyEvent("laptop"), enter)
	d.focusOn(field("Your password")) // the session has a new id
	d.do(chromedp.KeyEvent(password), enter)
	d.sees("laptop is added.")
	d.eval(`fetch('/auth/session', {method: 'DELETE'})`)
	d.do(chromedp.Navigate(rw.url + "/auth/login?next=%2Fauth%2Faccount"))
	d.until(`location.pathname === '/auth/account'`) // by autofill
}

// Every state of the second factor, on a phone, at 200 % zoom and on a desk,
// light and dark: no findings, and nothing wider than the screen.
func TestPageFactorAxe(t *testing.T) {
	path := os.Getenv("AXE")
	axe, err := os.ReadFile(path)
	if err != nil {
		t.Fatal("AXE must name axe.min.js of npm's package axe-core (.ci/browser installs it): ", err)
	}
	rw := startLocal(t, "-second-factor", "required")
	d := rw.device()
	id := d.authenticator()
	look := func(state string) {
		t.Helper()
		if d.eval(`typeof axe`) != "object" {
			d.do(chromedp.Func(func(ctx context.Context, _ *chromedp.Target) error {
				_, err := chromedp.Run(ctx, chromedp.Evaluate[string](string(axe)+"\n;'loaded'"))
				return err
			}))
		}
		for _, scheme := range []string{"light", "dark"} {
			d.scheme(scheme)
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
	d.refused("401 /auth/session/code", "403 /auth/recovery-codes")
	d.open("/auth/login")
	d.login("frodo", password)
	secret := d.secret()
	look("enrolment")
	d.press("Turn it on")
	look("enrolment, nothing typed")
	d.fill("Code from the app", appCode(t, secret, 0))
	d.press("Turn it on")
	d.codes()
	look("recovery codes")
	d.press("I have kept them")
	d.at("/")
	d.open("/auth/account")
	look("account with an app")
	d.press("New recovery codes")
	look("account, asked")
	d.press("Make new ones")
	d.sees("Confirm that it is you")
	look("account, who is there")
	d.confirms()
	d.codes()
	look("account, recovery codes")
	d.press("I have kept them")
	d.fill(passkeyName, strings.Repeat("w", 64))
	d.press("Add a passkey")
	d.sees("is added.")
	look("account with a passkey")
	d.touched(id, false)
	d.press("Log out")
	d.at("/auth/login?out")
	look("login with passkeys")
	d.login("frodo", password)
	d.focusOn(field("Code"))
	look("code")
	d.press("Verify")
	look("code, nothing typed")
	d.fill("Code", "000000")
	d.errorBeside("Code", "wrong")
	look("code, a wrong one")
	d.press("Use a recovery code")
	look("recovery code")
}
