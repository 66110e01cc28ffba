//go:build operation

// operation_parts_test.go is what doctor finds, with real gateways: nothing in
// the documented configurations, and each mistake that somebody may make in
// them, with the line that mends it.
package e2e

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// documentedBlock returns the block of the documentation that holds a word.
func documentedBlock(t *testing.T, word string) string {
	t.Helper()
	pages, err := filepath.Glob("../docs/*.md")
	noErr(t, err)
	for _, page := range pages {
		text, err := os.ReadFile(page)
		noErr(t, err)
		for _, block := range regexp.MustCompile("(?ms)^```[a-z]+\n(.*?)^```$").FindAllStringSubmatch(string(text), -1) {
			if strings.Contains(block[1], word) {
				return block[1]
			}
		}
	}
	t.Fatalf("there is no block with %s", word)
	return ""
}

// addressCertificate writes one for an address, and its key, into one file.
func addressCertificate(t *testing.T, folder, ip string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	noErr(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), IPAddresses: []net.IP{net.ParseIP(ip)}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	noErr(t, err)
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	noErr(t, err)
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	key := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})
	for name, content := range map[string][]byte{"tool.crt": cert, "tool.key": key, "tool.pem": slices.Concat(cert, key)} {
		noErr(t, os.WriteFile(filepath.Join(folder, name), content, 0o600))
	}
}

// ownNetworkAddr is an address of this machine that others can reach.
func ownNetworkAddr(t *testing.T) string {
	t.Helper()
	all, err := net.InterfaceAddrs()
	noErr(t, err)
	for _, addr := range all {
		if ip, ok := addr.(*net.IPNet); ok && ip.IP.To4() != nil && !ip.IP.IsLoopback() {
			return ip.IP.String()
		}
	}
	t.Fatal("this machine has no address but those of loopback")
	return ""
}

// examined is a gateway before what stands in for a tool.
type examined struct {
	gateway string   // nginx, caddy, haproxy
	edit    []string // regular expressions for pieces of the configuration, and what takes their place
	flags   []string // more of the server's, or others
	network bool     // the gateway is not on loopback
	http    bool     // and without TLS
	open    bool     // the tool can be reached without it
}

// doctor starts all, and returns what doctor says.
func (e examined) doctor(t *testing.T) string {
	p := newProgram(t)
	p.addUser("frodo")
	addr, plain, toolAddr := ownAddr(), ownAddr(), ownAddr()
	if e.network {
		ip := ownNetworkAddr(t)
		_, port, _ := net.SplitHostPort(addr)
		_, plainPort, _ := net.SplitHostPort(plain)
		addr, plain = net.JoinHostPort(ip, port), net.JoinHostPort(ip, plainPort)
	}
	if e.open {
		_, port, _ := net.SplitHostPort(toolAddr)
		toolAddr = net.JoinHostPort(ownNetworkAddr(t), port)
	}
	host, _, _ := net.SplitHostPort(addr)
	addressCertificate(t, p.dir, host)
	url := "https://" + addr
	if e.http {
		url = "http://" + plain
	}
	flags := append([]string{"-public-url", url}, e.flags...)
	if e.flags == nil {
		flags = append(flags, "-trusted-proxies", "127.0.0.0/8")
	}
	s := p.serve(flags...)

	tool := p.command("doctor", "-echo", toolAddr)
	said := &output{}
	tool.Stdout = said
	p.follow(tool)
	eventually(t, func() bool { return strings.Contains(said.String(), "standing in") })

	if e.gateway == "" { // ringward itself
		s.stop()
		p.serve(append(flags, "-addr", addr, "-tls-cert", "tool.crt", "-tls-key", "tool.key", "-proxy", "http://"+toolAddr)...)
	} else {
		e.start(t, p.dir, addr, plain, s.addr(), toolAddr)
	}
	later := *p
	later.env = append(slices.Clone(p.env), "SECRET_KEY="+secretKey, "SSL_CERT_FILE="+p.path("tool.crt"))
	r := later.try("", "doctor", url)
	if want := strings.Contains(r.stdout, "WRONG"); r.code != 0 != want || (r.stderr == "") == want {
		t.Errorf("exit %d, %s", r.code, r.stderr)
	}
	if users := p.must("", "user", "list"); strings.Contains(users, "doctor") {
		t.Errorf("the user of the examination is there still: %s", users)
	}
	return r.stdout
}

// start starts the gateway with the documented configuration, edited.
func (e examined) start(t *testing.T, folder, addr, plain, ringward, tool string) {
	t.Helper()
	host, _, _ := net.SplitHostPort(addr)
	_, plainPort, _ := net.SplitHostPort(plain)
	write := func(name, text string) {
		t.Helper()
		noErr(t, os.WriteFile(filepath.Join(folder, name), []byte(text), 0o600))
	}
	places := strings.NewReplacer("127.0.0.1:8080", ringward, "127.0.0.1:3000", tool,
		"listen 80;", "listen "+plain+";", "listen 443 ssl;", "listen "+addr+" ssl;", "/etc/ssl/tool.example.com", folder+"/tool",
		":80 {", ":"+plainPort+" {\n\tbind "+host, "tool.example.com {", "https://"+addr+" {\n\tbind "+host+"\n\ttls "+folder+"/tool.crt "+folder+"/tool.key",
		"bind :80\n", "bind "+plain+"\n", "bind :443 ssl", "bind "+addr+" ssl", "/etc/haproxy/tool.example.com.pem", folder+"/tool.pem", "/etc/haproxy/ringward.lua", folder+"/ringward.lua")
	edits := 0
	block := func(word string) string {
		text := documentedBlock(t, word)
		for i := 0; i+1 < len(e.edit); i += 2 {
			if old := regexp.MustCompile(e.edit[i]); old.MatchString(text) {
				text, edits = old.ReplaceAllLiteralString(text, e.edit[i+1]), edits+1
			}
		}
		return places.Replace(text)
	}
	var args []string
	switch e.gateway {
	case "nginx":
		config := "daemon off;\nuser root;\npid nginx.pid;\nerror_log stderr warn;\nevents {}\nhttp {\naccess_log off;\nproxy_cache_path cache keys_zone=kept:1m;\n"
		for _, part := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
			config += part + "_temp_path " + part + ";\n"
		}
		write("nginx.conf", config+block("auth_request ")+"}\n")
		args = []string{"nginx", "-p", folder, "-c", "nginx.conf", "-e", "stderr"}
	case "caddy":
		write("Caddyfile", "{\n\tadmin off\n\tskip_install_trust\n\tauto_https disable_redirects\n}\n"+block("handle_response"))
		args = []string{"caddy", "run", "--config", "Caddyfile", "--adapter", "caddyfile"}
	case "haproxy":
		write("ringward.lua", block("core.register_action"))
		write("haproxy.cfg", block("frontend "))
		args = []string{"haproxy", "-f", "haproxy.cfg", "-db"}
	}
	if edits < len(e.edit)/2 {
		t.Fatalf("%d edits were made, of %q", edits, e.edit)
	}
	part := &program{T: t, dir: folder, start: args[:1], env: append(os.Environ(), "HOME="+folder, "XDG_DATA_HOME="+folder, "XDG_CONFIG_HOME="+folder)}
	s := part.follow(part.command(args[1:]...))
	t.Cleanup(func() { s.cmd.Process.Signal(syscall.SIGTERM); <-s.ended })
	eventually(t, func() bool {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			conn.Close()
		} else if s.gone() {
			t.Fatalf("%s ended: %s", e.gateway, s.log)
		}
		return err == nil
	})
}

func TestDoctorFindsNothing(t *testing.T) {
	for _, e := range []examined{{gateway: "nginx"}, {gateway: "caddy"}, {gateway: "haproxy"}, {flags: []string{}},
		{gateway: "nginx", network: true}, {gateway: "caddy", network: true}, {gateway: "haproxy", network: true}} {
		t.Run(fmt.Sprint(e.gateway, e.network), func(t *testing.T) {
			if said := e.doctor(t); strings.Contains(said, "WRONG") || !strings.Contains(said, "ok    the tool cannot be reached") {
				t.Errorf("it says\n%s", said)
			}
		})
	}
}

func TestDoctorFinds(t *testing.T) {
	for _, c := range []struct {
		name string
		examined
		wrong string // what each finding is, a regular expression
		mend  string // what one of them says
	}{
		{"X-Remote-User", examined{gateway: "nginx", edit: []string{`proxy_set_header X-Remote-User "";`, ""}},
			`a client can send the tool X-Remote-User`, `proxy_set_header X-Remote-User "";`},
		{"X-Forwarded-User", examined{gateway: "nginx", edit: []string{`proxy_set_header X-Forwarded-User "";`, ""}},
			`a client can send the tool X-Forwarded-User`, `proxy_set_header X-Forwarded-User "";`},
		{"Remote_User", examined{gateway: "nginx", edit: []string{"listen 80;", "listen 80; underscores_in_headers on;"}},
			`a client can send the tool \w+_User`, `proxy_set_header Remote_User "";`},
		{"Remote-Email", examined{gateway: "caddy", edit: []string{`request_header -\S*Remote\S*`, ""}},
			`a client can send the tool (X.)?Remote[-_.](User|Groups|Email)`, `request_header -Remote-Email;`},
		{"X-WebAuth-User", examined{gateway: "caddy", edit: []string{`request_header -\S*Auth[-_*]\S*`, ""}},
			`a client can send the tool X-(Web)?Auth`, `request_header -X-WebAuth-User;`},
		{"Remote.User", examined{gateway: "haproxy", edit: []string{`"remote", `, ""}},
			`a client can send the tool Remote[-_.](User|Groups|Email)`, `a client can send the tool Remote.User: `},
		{"X-Authenticated-User", examined{gateway: "haproxy", edit: []string{`, "xauthenti\w*"`, ""}},
			`a client can send the tool X-Authenticated-User`, `list drop of ringward.lua`},
		{"path past the login, nginx", examined{gateway: "nginx", edit: []string{"    location / {", "    location /static/ { proxy_pass http://127.0.0.1:3000; }\n    location / {"}},
			`/static/x passes by the login`, "auth_request /auth/verify; in every location"},
		{"path past the login, Caddy", examined{gateway: "caddy", edit: []string{"	route {", "	handle /api/* {\n		reverse_proxy 127.0.0.1:3000\n	}\n	route {"}},
			`/api/x passes by the login`, "no handle or route before the documented one"},
		{"path past the login, HAProxy", examined{gateway: "haproxy", edit: []string{"lua.ringward unless ours", "lua.ringward if !ours !{ path_end .ico }"}},
			`/favicon\.ico passes by the login`, "lua.ringward unless ours, with no other condition"},
		{"the tool is open", examined{gateway: "nginx", open: true},
			`the tool can be reached without ringward at `, "let it listen on 127.0.0.1"},
		{"no https", examined{gateway: "caddy", network: true, http: true},
			`passwords cross the network in the clear`, "the host name before the block"},
		{"cookie over http", examined{gateway: "haproxy", flags: []string{"-public-url", "", "-trusted-proxies", "127.0.0.0/8"}, edit: []string{`%\[ssl_fc,iif\(https,http\)\]`, "http"}},
			`the cookie goes over http too`, "-public-url https://127."},
		{"another host, nginx", examined{gateway: "nginx", edit: []string{`proxy_set_header X-Forwarded-Host \$http_host;`, "proxy_set_header X-Forwarded-Host backend.internal;"}},
			`ringward cannot be asked, or not by the name 127\.`, "proxy_set_header X-Forwarded-Host $http_host;"},
		{"another host, HAProxy", examined{gateway: "haproxy", edit: []string{`X-Forwarded-Host %\[req.hdr\(Host\)\]`, "X-Forwarded-Host backend.internal", `\{ txn.f:req_fhdr\("host"\) \}`, `{ "backend.internal" }`}},
			`ringward cannot be asked, or not by the name 127\.`, "set-header X-Forwarded-Host %[req.hdr(Host)]"},
		{"cached, nginx", examined{gateway: "nginx", edit: []string{"proxy_buffering off;", "proxy_cache kept; proxy_cache_valid 200 1m;"}},
			`(the gateway keeps what a user has seen|the tool gets|a client can send)`, "no proxy_cache in the location of the tool"},
		{"cached, HAProxy", examined{gateway: "haproxy", edit: []string{"defaults\n", "cache kept\n    total-max-size 4\n    max-age 60\n\ndefaults\n",
			"    acl ours path_beg /auth/\n", "    acl ours path_beg /auth/\n    http-request cache-use kept if !ours\n    http-response cache-store kept\n"}},
			`(the gateway keeps what a user has seen|\S+ passes by the login|the tool gets)`, "no http-request cache-use"},
		{"WebSocket, nginx", examined{gateway: "nginx", edit: []string{"        internal;", "        internal;\n        proxy_pass_request_headers off;\n        proxy_set_header Cookie $http_cookie;"}},
			`(a page of another site can (open a WebSocket|write)|the tool gets no cookies or Authorization)`, "proxy_pass_request_headers must be on"},
		{"WebSocket, HAProxy", examined{gateway: "haproxy", edit: []string{`if not own\[name\] and`, `if name ~= "origin" and name ~= "sec-fetch-site" and not own[name] and`}},
			`a page of another site can (open a WebSocket|write)`, "ringward.lua sends all headers"},
		{"WebSocket, Caddy", examined{gateway: "caddy", edit: []string{"header_up X-Forwarded-Method {method}", "header_up X-Forwarded-Method {method}\n			header_up -Sec-Websocket-Version\n			header_up -Upgrade"}},
			`a page of another site can open a WebSocket`, "no header_up of it"},
		{"own address", examined{gateway: "nginx", edit: []string{`proxy_set_header X-Forwarded-For \$remote_addr;`, "proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;"}},
			`a client can say which address it has`, "proxy_set_header X-Forwarded-For $remote_addr;"},
	} {
		t.Run(c.name, func(t *testing.T) {
			said := c.doctor(t)
			n, mend := 0, false
			for line := range strings.Lines(said) {
				if finding, ok := strings.CutPrefix(line, "WRONG "); ok {
					n++
					mend = mend || strings.Contains(finding, c.mend)
					if !regexp.MustCompile("^" + c.wrong).MatchString(finding) {
						t.Errorf("that is not wrong: %s", finding)
					}
				}
			}
			if n == 0 || !mend {
				t.Errorf("%d findings, one with %q: %t\n%s", n, c.mend, mend, said)
			}
		})
	}
}

// Prometheus's own tool finds nothing in the metrics, also when there is
// something to count.
func TestOperationMetrics(t *testing.T) {
	p := newProgram(t)
	p.addUser("frodo")
	s := p.serve("-metrics", "127.0.0.1:0")
	s.login("frodo")
	s.want(401, "POST", "/auth/session", credentials("frodo", "wrong"))
	url := s.says(`metrics on (http://[0-9.:]+/metrics)\n`)
	w, err := http.Get(url)
	noErr(t, err)
	defer w.Body.Close()
	text, err := io.ReadAll(w.Body)
	noErr(t, err)
	promtool := exec.Command("promtool", "check", "metrics")
	promtool.Stdin = bytes.NewReader(text)
	if said, err := promtool.CombinedOutput(); err != nil || len(said) > 0 {
		t.Errorf("promtool: %v, %s\n%s", err, said, text)
	}
	if !strings.Contains(string(text), "ringward_logins_total{outcome=\"failed\"} 1\n") || strings.Contains(string(text), "frodo") {
		t.Errorf("the metrics are\n%s", text)
	}
	s.want(404, "GET", "/metrics", "", s.login("frodo")) // not where users are
}

func TestOperationCompletion(t *testing.T) {
	p := newProgram(t)
	for _, c := range []struct {
		line string // up to the cursor
		want string
	}{
		{"ringward us", "user"},
		{"ringward user gro", "group"},
		{"ringward user group ", "add remove"},
		{"ringward -db x session end", "end end-all"},
		{"ringward --json tok", "token"},
		{"ringward -db=x tok", "token"},
		{"ringward -db ", ""}, // files, which the shell completes
		{"ringward user add ", ""},
		{"ringward restore ", ""},
	} {
		for _, shell := range [][]string{{"bash", "--norc"}, {"zsh", "-f"}} {
			words := strings.Split(c.line, " ")
			script := `source <("$0" completion ` + shell[0] + `); COMP_WORDS=("$@"); COMP_CWORD=$((${#} - 1)); COMPREPLY=()
				_ringward ringward "${@: -1}"; printf '%s\n' "${COMPREPLY[@]}" | sort -u`
			cmd := exec.Command(shell[0], append([]string{shell[1], "-c", script, binary}, words...)...)
			cmd.Dir, cmd.Env = p.dir, append(os.Environ(), "HOME="+p.dir)
			said, err := cmd.CombinedOutput()
			// zsh itself leaves out what does not begin so.
			fits := slices.DeleteFunc(strings.Fields(string(said)), func(word string) bool { return !strings.HasPrefix(word, words[len(words)-1]) })
			if got := strings.Join(fits, " "); err != nil || got != c.want {
				t.Errorf("%s, %q: got %q of %s, %v, want %q", shell[0], c.line, got, said, err, c.want)
			}
		}
	}
}

// The unit is as closed as it can be. That it runs so has been seen under a
// systemd of its own.
func TestOperationUnit(t *testing.T) {
	said, err := exec.Command("systemd-analyze", "security", "--offline=true", "--threshold=20", "../contrib/ringward.service").CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, said)
	}
}

// Who imports many users on a terminal sees how far it is.
func TestOperationProgress(t *testing.T) {
	p := newProgram(t)
	var file strings.Builder
	for n := range 1000 {
		fmt.Fprintf(&file, "user%d:$2y$04$.UGsXl5uVFomnHpt9oRr2e56wRRuiobQdevvCj7KGyrKP2odTTD52\n", n)
	}
	noErr(t, os.WriteFile(p.path("people.txt"), []byte(file.String()), 0o600))
	want := "users imported: 200\rusers imported: 400\rusers imported: 600\rusers imported: 800\rusers imported: 1000\rusers imported: 1000\r\n"
	for _, beside := range []string{"without a server", "beside a server"} {
		onTerminal := exec.Command("script", "-qec", binary+" -db '"+beside+".db' user import people.txt", "/dev/null")
		onTerminal.Dir = p.dir
		if beside == "beside a server" {
			p.serve("-db", beside+".db")
		}
		if said, err := onTerminal.Output(); err != nil || string(said) != want {
			t.Errorf("%s: %q, %v", beside, said, err)
		}
	}
	if said := p.must("", "-db", "piped.db", "user", "import", "people.txt"); said != "users imported: 1000\n" {
		t.Errorf("to a pipe: %q", said)
	}
}
