// config.go: what can be set, by flag or environment, and what is wrong with
// it. Secrets are not set here: a flag is there for everybody to read.
package main

import (
	"errors"
	"flag"
	"io"
	"net"
	"net/netip"
	"net/url"
	"os"
	"runtime/debug"
	"strings"
	"time"

	_ "embed"
)

// config is the flags, and what follows from them.
type config struct {
	addr, db, log             string
	cookieDomain              string
	sessionIdle, sessionMax   time.Duration
	bcryptCost, passwordMin   int
	public, upstream          *url.URL // nil: not set
	trusted                   []netip.Prefix
	tlsCert, tlsKey           string
	asJSON, passwordFromStdin bool // of commands
}

//go:embed help.txt
var help string

// parseConfig answers the words that follow the flags: a command, or none.
func parseConfig(args []string) (c config, words []string, err error) {
	set := flag.NewFlagSet("ringward", flag.ContinueOnError)
	set.SetOutput(io.Discard)
	db := os.Getenv("DATABASE_URL")
	if db == "" {
		db = "ringward.db"
	}
	var public, upstream, trusted string
	set.StringVar(&c.addr, "addr", "localhost:8080", "")
	set.StringVar(&c.db, "db", db, "")
	set.StringVar(&public, "public-url", "", "")
	set.StringVar(&c.cookieDomain, "cookie-domain", "", "")
	set.StringVar(&trusted, "trusted-proxies", "", "")
	set.StringVar(&upstream, "proxy", "", "")
	set.StringVar(&c.tlsCert, "tls-cert", "", "")
	set.StringVar(&c.tlsKey, "tls-key", "", "")
	set.DurationVar(&c.sessionIdle, "session-idle", 24*time.Hour, "")
	set.DurationVar(&c.sessionMax, "session-max", 720*time.Hour, "")
	set.IntVar(&c.bcryptCost, "bcrypt-cost", 12, "")
	set.IntVar(&c.passwordMin, "password-min", 15, "")
	set.StringVar(&c.log, "log", "text", "")
	set.VisitAll(func(f *flag.Flag) {
		name := "RINGWARD_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		value, ok := os.LookupEnv(name)
		if !ok || err != nil {
			return
		}
		if set.Set(f.Name, value) != nil {
			err = usagef("%s=%q is not a value for -%s", name, value, f.Name)
		}
	})
	set.BoolVar(&c.asJSON, "json", false, "")
	set.BoolVar(&c.passwordFromStdin, "password-stdin", false, "")
	if wrong := set.Parse(args); errors.Is(wrong, flag.ErrHelp) {
		return c, []string{"help"}, nil
	} else if wrong != nil {
		return c, nil, usagef("%w; see ringward help", wrong)
	}
	words, wrong := c.commandFlags(set.Args())

	switch {
	case wrong != nil:
		return c, nil, wrong
	case len(words) > 0 && (words[0] == "help" || words[0] == "version"): // whatever the environment holds
		return c, words, nil
	case err != nil:
		return c, nil, err
	case len(words) == 0 && (c.asJSON || c.passwordFromStdin):
		return c, nil, usagef("-json and -password-stdin belong to a command; see ringward help")
	case isPostgres(c.db) && openPostgres == nil:
		return c, nil, usagef("this ringward has no PostgreSQL: build it with go build -tags postgres")
	case !isPostgres(c.db) && strings.Contains(c.db, "://"):
		return c, nil, usagef("-db is a file or a postgres:// URL")
	case c.db == "":
		return c, nil, usagef("-db is empty")
	case c.log != "text" && c.log != "json":
		return c, nil, usagef("-log is text or json, not %q", c.log)
	case c.bcryptCost < 10 || c.bcryptCost > 15:
		return c, nil, usagef("-bcrypt-cost is 10 to 15, not %d", c.bcryptCost)
	case c.passwordMin < 8 || c.passwordMin > 64:
		return c, nil, usagef("-password-min is 8 to 64, not %d", c.passwordMin)
	case min(c.sessionIdle, c.sessionMax) < time.Second || max(c.sessionIdle, c.sessionMax) > 87600*time.Hour:
		return c, nil, usagef("-session-idle and -session-max are 1s to 87600h (ten years)")
	}
	if c.public, err = origin("-public-url", public); err != nil {
		return c, nil, err
	}
	if c.upstream, err = origin("-proxy", upstream); err != nil {
		return c, nil, err
	}
	if c.trusted, err = prefixes(trusted); err != nil {
		return c, nil, err
	}
	if c.cookieDomain, err = domain(c.cookieDomain); err != nil {
		return c, nil, err
	}
	if c.cookieDomain != "" && c.public != nil && !under(c.public.Hostname(), c.cookieDomain) {
		return c, nil, usagef("-public-url %s is not under -cookie-domain %s: no browser would keep the cookie", c.public, c.cookieDomain)
	}
	if (c.tlsCert == "") != (c.tlsKey == "") {
		return c, nil, usagef("-tls-cert and -tls-key go together")
	}
	_, port, wrong := net.SplitHostPort(c.addr) // net.Listen takes "" for any port of every network
	if wrong == nil {
		_, wrong = net.LookupPort("tcp", port)
	}
	if wrong != nil {
		return c, nil, usagef("-addr is like localhost:8080, not %q", c.addr)
	}
	return c, words, nil
}

// origin is scheme, host and port, and nothing else.
func origin(flag, text string) (*url.URL, error) {
	if text == "" {
		return nil, nil
	}
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil ||
		u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "" {
		return nil, usagef("%s is like https://auth.example.com, not %q", flag, text)
	}
	return &url.URL{Scheme: u.Scheme, Host: strings.ToLower(u.Host)}, nil
}

func prefixes(list string) (all []netip.Prefix, err error) {
	for text := range strings.SplitSeq(list, ",") {
		if text = strings.TrimSpace(text); text == "" {
			continue
		}
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			ip, err := netip.ParseAddr(text)
			if err != nil {
				return nil, usagef("-trusted-proxies is a list like 10.0.0.0/8,192.0.2.1, not %q", text)
			}
			prefix = netip.PrefixFrom(ip, ip.BitLen())
		}
		all = append(all, prefix.Masked())
	}
	return all, nil
}

// domain is a name with a dot in it: browsers keep no cookie for less.
func domain(text string) (string, error) {
	text = strings.ToLower(strings.TrimPrefix(text, "."))
	if text == "" {
		return "", nil
	}
	_, err := netip.ParseAddr(text)
	valid := err != nil && strings.Contains(text, ".")
	for label := range strings.SplitSeq(text, ".") {
		valid = valid && label != "" && strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
	}
	if !valid {
		return "", usagef("-cookie-domain is like example.com, not %q", text)
	}
	return text, nil
}

// scheme is what the server itself speaks.
func (c config) scheme() string {
	if c.tlsCert != "" {
		return "https"
	}
	return "http"
}

// secure says whether browsers reach us by https.
func (c config) secure() bool {
	return c.tlsCert != "" || c.public != nil && c.public.Scheme == "https"
}

// base is where browsers reach us, as far as we know.
func (c config) base(addr string) string {
	if c.public != nil {
		return c.public.String()
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return c.scheme() + "://" + addr
	}
	if ip, err := netip.ParseAddr(host); host == "" || err == nil && ip.IsUnspecified() {
		host = "localhost"
	}
	return c.scheme() + "://" + net.JoinHostPort(host, port)
}

// exposed is the warning for passwords that cross a network in the clear.
func (c config) exposed(addr net.Addr) string {
	tcp, ok := addr.(*net.TCPAddr)
	if c.secure() || !ok || tcp.IP.IsLoopback() {
		return ""
	}
	return "passwords and cookies can be read on the network: use -tls-cert and -tls-key, or -public-url https://… behind a proxy"
}

func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "(devel)"
	}
	return info.Main.Version
}
