//go:build screenshots

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/chromedp/chromedp"
)

// TestScreenshots is for eyes: it draws every page and every state that a page
// can be in, at the width of a phone and of a desk, light and dark.
func TestScreenshots(t *testing.T) {
	dir := os.Getenv("SCREENSHOTS")
	if dir == "" {
		t.Fatal("SCREENSHOTS names no folder for the pictures")
	}
	rw := start(t)
	d := rw.device()
	shots := func(name string) {
		t.Helper()
		for _, width := range []int64{320, 1280} {
			for _, scheme := range []string{"light", "dark"} {
				d.scheme(scheme)
				d.resize(width, 800)
				shot, err := chromedp.Run(d.ctx, chromedp.CaptureScreenshot())
				if name == "account" || name == "account-token" || name == "rings" {
					shot, err = chromedp.Run(d.ctx, chromedp.FullScreenshot(100))
				}
				if err != nil {
					t.Fatal(err)
				}
				file := filepath.Join(dir, fmt.Sprintf("%s-%d-%s.png", name, width, scheme))
				if err := os.WriteFile(file, shot, 0o644); err != nil {
					t.Fatal(err)
				}
			}
		}
		d.resize(1280, 900)
	}
	d.open(rw.invite)
	shots("invite-first")
	d.become("frodo")
	d.eval(`document.activeElement.blur()`)
	shots("rings")
	d.press("Change Nenya")
	d.focusOn(field("Name"))
	shots("rings-change")
	d.press("Cancel")
	d.press("Throw Vilya into Mount Doom")
	shots("rings-throw")
	d.press("Cancel")

	phone := rw.device()
	phone.as("Mozilla/5.0 (iPhone; CPU iPhone OS 19_0 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/19.0 Mobile/15E148 Safari/604.1")
	phone.open("/auth/login")
	phone.login("frodo", password)
	phone.at("/")
	desk := rw.device()
	desk.as("Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0")
	desk.open("/auth/login")
	desk.login("frodo", password)
	desk.at("/")

	d.open("/auth/account")
	d.fill("Name", "nightly backup")
	d.press("Make token")
	d.focusOn(field("Your password"))
	d.refused("403 /auth/tokens")
	shots("account-confirm")
	d.fill("Your password", password)
	d.press("Confirm")
	d.focusOn(field("New token"))
	shots("account-token")
	d.press("Done")
	d.fill("Name", "deploy")
	d.press("Make token")
	d.focusOn(field("New token"))
	d.press("Done")
	d.open("/auth/account")
	shots("account")
	d.fill("Current password", "not this one at all")
	d.fill("New password", "something else that is long")
	d.press("Change password")
	d.errorBeside("Current password", "Current password is wrong")
	d.refused("403 /auth/password")
	shots("account-wrong")
	desk.open("/auth/account")
	desk.press("Log out everywhere")
	desk.press("Log out everywhere")
	d.press("Revoke deploy")
	d.press("Revoke")
	d.sees("Your session has ended")
	d.refused("401 /auth/tokens/")
	shots("account-lost")

	d.open("/auth/login")
	shots("login")
	d.refused("401 /auth/session")
	for range 5 {
		d.login("frodo", "no")
		d.errorBeside("Password", "Username or password is wrong")
	}
	d.login("frodo", "no")
	d.sees("Wait")
	d.refused("429 /auth/session")
	shots("login-wrong")
	d.open(rw.url + "/auth/invite#gone")
	d.refused("404 /auth/invites/")
	shots("invite-gone")
}
