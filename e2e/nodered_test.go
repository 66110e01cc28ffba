//go:build gateways && tools

package e2e

import (
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Node-RED with a login of its own asks under /auth/, and has its own Bearer
// tokens. TOOLS is the folder that .ci/tools has installed it in.
func TestRealToolNodeRED(t *testing.T) {
	modules := filepath.Join(os.Getenv("TOOLS"), "node_modules")
	addr := ownAddr()
	host, port, _ := net.SplitHostPort(addr)
	folder := inFolder(t, "settings.js", `module.exports = {uiHost: '`+host+`', uiPort: `+port+`, flowFile: 'flows.json', adminAuth: {type: 'credentials', users: [
		{username: 'admin', password: require('`+modules+`/bcryptjs').hashSync('of the tool', 8), permissions: '*'}]}}`)
	startOther(t, addr, folder, "node", filepath.Join(modules, "node-red", "red.js"), "-u", folder, "-s", filepath.Join(folder, "settings.js"))
	for _, mode := range []string{"proxy", "nginx"} {
		t.Run(mode, func(t *testing.T) {
			g := &gateway{tool: &gatewayTool{addr: addr}, changes: []string{"/auth/", "/ringward/"}}
			g.ringward = &ringward{server: newProgram(t).serve("-trusted-proxies", "127.0.0.1", "-prefix", "/ringward", "-proxy", "http://"+addr)}
			g.addr = g.server.addr()
			if mode != "proxy" {
				g.before(mode)
			}
			g.addUser("frodo")
			token := strings.TrimSpace(g.must("", "token", "add", "frodo", "script"))
			ask := func(method, path, own string, form url.Values) (int, string) {
				request, _ := http.NewRequest(method, "http://"+g.addr+path, strings.NewReader(form.Encode()))
				request.Header.Set("X-Ringward-Token", token)
				request.Header.Set("Accept", "application/json")
				if form != nil {
					request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
				}
				if own != "" {
					request.Header.Set("Authorization", "Bearer "+own)
				}
				answer, err := http.DefaultClient.Do(request)
				if err != nil {
					t.Fatal(err)
				}
				defer answer.Body.Close()
				body, _ := io.ReadAll(answer.Body)
				return answer.StatusCode, string(body)
			}
			if status, body := ask("GET", "/auth/login", "", nil); status != 200 || !strings.Contains(body, `"credentials"`) {
				t.Errorf("%d %s", status, body)
			}
			if status, body := ask("GET", "/flows", "", nil); status != 401 || strings.Contains(body, "errors") {
				t.Errorf("without its own login: %d %s", status, body)
			}
			status, body := ask("POST", "/auth/token", "", url.Values{"client_id": {"node-red-admin"}, "grant_type": {"password"}, "scope": {"*"}, "username": {"admin"}, "password": {"of the tool"}})
			_, own, _ := strings.Cut(body, `"access_token":"`)
			own, _, _ = strings.Cut(own, `"`)
			if status != 200 || own == "" {
				t.Fatalf("its login: %d %s", status, body)
			}
			if status, body := ask("GET", "/flows", own, nil); status != 200 {
				t.Errorf("with its own login: %d %s", status, body)
			}
			conn, answer := g.open(g.get("/comms", "a=1", "X-Ringward-Token: "+token, "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="))
			if answer.StatusCode != http.StatusSwitchingProtocols {
				t.Error(answer.Status)
			}
			conn.Close()
		})
	}
}
