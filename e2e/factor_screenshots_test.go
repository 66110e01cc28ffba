//go:build screenshots

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/webauthn"
	"github.com/chromedp/chromedp"
)

// TestScreenshotsFactor draws the states of the second factor, each whole.
func TestScreenshotsFactor(t *testing.T) {
	dir := os.Getenv("SCREENSHOTS")
	if dir == "" {
		t.Fatal("SCREENSHOTS names no folder for the pictures")
	}
	rw := start(t, "-second-factor", "required")
	rw.url = strings.Replace(rw.url, "127.0.0.1", "localhost", 1)
	rw.addUser("frodo")
	d := rw.device()
	shots := func(name string) {
		t.Helper()
		for _, width := range []int64{320, 1280} {
			for _, scheme := range []string{"light", "dark"} {
				d.scheme(scheme)
				d.resize(width, 800)
				shot, err := chromedp.Run(d.ctx, chromedp.FullScreenshot(100))
				if err == nil {
					err = os.WriteFile(filepath.Join(dir, fmt.Sprintf("factor-%s-%d-%s.png", name, width, scheme)), shot, 0o644)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
		}
		d.resize(1280, 900)
	}
	if _, err := chromedp.Call(d.ctx, webauthn.Enable, webauthn.EnableParams{}); err != nil {
		t.Fatal(err)
	}
	virtual, err := chromedp.Call(d.ctx, webauthn.AddVirtualAuthenticator, webauthn.AddVirtualAuthenticatorParams{
		Options: &webauthn.VirtualAuthenticatorOptions{Protocol: "ctap2", Transport: "internal", HasResidentKey: true,
			HasUserVerification: true, IsUserVerified: true, AutomaticPresenceSimulation: true}})
	if err != nil {
		t.Fatal(err)
	}
	d.refused("403 /auth/passkeys/options", "401 /auth/session/code")
	d.open("/auth/login?next=%2Fauth%2Faccount")
	shots("login")
	d.login("frodo", password)
	d.until(`document.querySelector('.qr path')`)
	secret := d.eval(`document.querySelector('#app code').textContent`)
	shots("enrolment")
	d.fill("Code from the app", appCode(t, secret, 0))
	d.press("Turn it on")
	d.sees("Your recovery codes")
	shots("recovery-codes")
	d.press("I have kept them")
	d.at("/auth/account")
	for _, name := range []string{"My laptop", "The key on my key ring"} {
		if d.fill("Passkey name", name); name == "My laptop" {
			d.press("Add a passkey")
			d.sees("Confirm that it is you")
			shots("confirm")
			d.fill("Your password", password)
			d.press("Confirm")
		} else {
			if _, err := chromedp.Call(d.ctx, webauthn.ClearCredentials, webauthn.ClearCredentialsParams(virtual)); err != nil {
				t.Fatal(err)
			}
			d.press("Add a passkey")
		}
		d.sees(name + " is added.")
	}
	d.press("Close")
	shots("account")
	d.press("Set up another app")
	d.until(`document.querySelector('.qr path')`)
	shots("account-another-app")
	if _, err := chromedp.Call(d.ctx, webauthn.RemoveVirtualAuthenticator, webauthn.RemoveVirtualAuthenticatorParams(virtual)); err != nil {
		t.Fatal(err)
	}
	d.press("Log out")
	d.at("/auth/login?out")
	d.login("frodo", password)
	d.sees("The six digits")
	shots("code")
	d.fill("Code", "000000")
	d.errorBeside("Code", "wrong")
	shots("code-wrong")
	d.press("Use a recovery code")
	shots("code-recovery")
}
