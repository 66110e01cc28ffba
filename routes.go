// routes.go: how the parts are joined, and the list of all routes.
package main

import (
	"log/slog"
	"net/http"
	"strings"
	"sync"
)

// program is all that a request may meet.
type program struct {
	*Protect
	auth     *Auth
	factor   *Factor
	operator *Operator
}

// newProgram joins the parts. Browsers reach it at base, as far as is known.
func newProgram(c config, store fullStore, keys []string, log *slog.Logger, base string) (*program, error) {
	auth, err := NewAuth(store, keys...)
	if err != nil {
		return nil, err
	}
	auth.Idle, auth.Max, auth.Cost, auth.Log = c.sessionIdle, c.sessionMax, c.bcryptCost, log
	auth.Secure, auth.CookieName, auth.CookieDomain, auth.LoginPage = c.secure(), c.cookieName, c.cookieDomain, c.prefix+"/login"
	account := &Account{auth, store, c.passwordMin}
	factor := &Factor{account, store, c.title, c.secondFactor == "required", c.public, sync.Map{}}
	gateway := &Gateway{auth: auth, trusted: c.trusted, public: c.public, prefix: c.prefix, userHeader: c.userHeader}
	gateway.setTools(c.tools)
	auth.tokenLogin, auth.seen, auth.factor = account.tokenLogin, seenUser, factor
	protect := &Protect{log: log, gateway: gateway, domain: c.cookieDomain}
	if c.metrics != "" {
		protect.metrics = new(Metrics)
		auth.counted = protect.metrics.event
		store.timeWith(protect.metrics.store)
	}
	public := ""
	if c.public != nil {
		public, protect.public = c.public.String(), c.public.Hostname()
		if c.public.Scheme == "https" {
			protect.hsts = c.hsts
		}
		if err := auth.crossOrigin.AddTrustedOrigin(c.public.String()); err != nil {
			return nil, err
		}
	}
	protect.web = newWeb(c.prefix, c.title, public, base, c.passwordMin)
	operator := &Operator{auth, store, c.passwordMin, base + c.prefix, func() Tools { return *gateway.tools.Load() }}
	p := &program{protect, auth, factor, operator}
	protect.next = p.routes(&Rings{auth, store})
	return p, nil
}

// routes is every path that we serve. /auth stands for the prefix.
func (p *program) routes(rings *Rings) http.Handler {
	auth, account, factor, gateway, web := p.auth, p.factor.Account, p.factor, p.gateway, p.web
	mux := newJSONMux()
	requireLogin := auth.RequireLogin
	handle := func(pattern string, h http.Handler) {
		mux.Handle(strings.Replace(pattern, "/auth", gateway.prefix, 1), h)
	}
	anybody := func(h http.HandlerFunc) http.Handler { return h }
	session := func(h http.HandlerFunc) http.Handler { return gateway.onPublicHost(account.requireSession(h)) }
	proof := func(h http.HandlerFunc) http.Handler { return gateway.onPublicHost(account.requireProof(h)) }

	handle("POST /auth/session", anybody(auth.Login))
	handle("GET /auth/session", anybody(auth.WhoAmI))
	handle("DELETE /auth/session", anybody(auth.Logout))
	handle("POST /auth/session/code", anybody(factor.handleCode))
	handle("POST /auth/passkey/options", gateway.onPublicHost(http.HandlerFunc(factor.handleLoginOptions)))
	handle("POST /auth/passkey", gateway.onPublicHost(http.HandlerFunc(factor.handlePasskey)))
	handle("POST /auth/confirm", session(factor.handleConfirm))
	handle("PUT /auth/password", session(account.handlePassword))
	handle("GET /auth/sessions", session(account.handleSessions))
	handle("DELETE /auth/sessions", session(account.handleEndSessions))
	handle("DELETE /auth/sessions/{id}", session(account.handleEndSession))
	handle("GET /auth/tokens", session(account.handleTokens))
	handle("POST /auth/tokens", proof(account.handleAddToken))
	handle("DELETE /auth/tokens/{id}", session(account.handleRemoveToken))
	handle("GET /auth/factors", session(factor.handleFactors))
	handle("POST /auth/totp", gateway.onPublicHost(http.HandlerFunc(factor.handleApp)))
	handle("PUT /auth/totp", gateway.onPublicHost(http.HandlerFunc(factor.handleApp)))
	handle("DELETE /auth/totp", proof(factor.handleRemoveApp))
	handle("POST /auth/recovery-codes", proof(factor.handleRecoveryCodes))
	handle("POST /auth/passkeys/options", proof(factor.handleAddOptions))
	handle("POST /auth/passkeys", proof(factor.handleAddPasskey))
	handle("DELETE /auth/passkeys/{id}", proof(factor.handleRemovePasskey))
	handle("GET /auth/invites/{token}", anybody(account.handleInvite))
	handle("POST /auth/invites/{token}", anybody(account.handleAcceptInvite))
	handle("GET /auth/verify", anybody(gateway.handleVerify))
	handle("GET /auth/continue", anybody(gateway.handleContinue))
	mux.Handle("GET /healthz", handleHealth(auth))

	handle("GET /auth/login", web.handleLoginPage(gateway, account.accounts))
	handle("POST /auth/login", web.handleLoginForm(gateway, factor))
	handle("GET /auth/logout", web.page("logout.html"))
	handle("POST /auth/logout", web.handleLogoutForm(auth))
	handle("GET /auth/invite", web.page("invite.html"))
	handle("GET /auth/account", gateway.onPublicHost(requireLogin(web.page("account.html"))))
	handle("GET /auth/style.css", web.page("style.css"))
	handle("GET /auth/script.js", web.page("script.js"))
	handle("GET /auth/icon.svg", web.page("icon.svg"))

	if one := (*gateway.tools.Load())[""]; one == nil || one.upstream != nil {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			// As it is spelled: what a ServeMux would tidy up is for the tool to judge.
			if path := r.URL.EscapedPath(); strings.HasPrefix(path, gateway.prefix+"/") || path == "/healthz" {
				mux.ServeHTTP(w, r)
			} else {
				gateway.serve(w, r)
			}
		})
	}
	mux.Handle("GET /{$}", requireLogin(web.page("rings.html")))
	mux.Handle("GET /ringsofpower", requireLogin(http.HandlerFunc(rings.handleList)))
	mux.Handle("POST /ringsofpower", requireLogin(http.HandlerFunc(rings.handleAdd)))
	mux.Handle("GET /ringsofpower/{id}", requireLogin(http.HandlerFunc(rings.handleGet)))
	mux.Handle("PUT /ringsofpower/{id}", requireLogin(http.HandlerFunc(rings.handleSet)))
	mux.Handle("DELETE /ringsofpower/{id}", requireLogin(http.HandlerFunc(rings.handleRemove)))
	return mux
}

// handleHealth is GET /healthz.
func handleHealth(auth *Auth) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if err := auth.store.ping(); err != nil {
			auth.fail(w, r, err, 0, "")
			return
		}
		respond(w, http.StatusOK, struct {
			Status string `json:"status"`
		}{"ok"})
	}
}
