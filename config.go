// config.go: what can be set, by flag or environment, and what is wrong with
// it. Secrets are not set here: a flag is there for everybody to read.
package main

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"os"
	"regexp"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	_ "embed"
)

// config is the flags, and what follows from them.
type config struct {
	addr, db, log            string
	cookieDomain             string
	cookieName, title        string
	prefix, userHeader       string
	secondFactor             string // optional or required
	sessionIdle, sessionMax  time.Duration
	proxyTimeout             time.Duration
	toolsFile, metrics, echo string
	tools                    Tools // never nil
	bcryptCost, passwordMin  int
	hsts                     int      // seconds; 0: none
	public                   *url.URL // nil: not set
	trusted                  []netip.Prefix
	tlsCert, tlsKey          string
	asJSON, yes              bool // of commands
	passwordFromStdin        bool // of user add
	showsPassword            bool // of the database, in the arguments
}

//go:embed help.txt
var help string

// parseConfig returns the words that follow the flags: a command, or none.
func parseConfig(args []string) (c config, words []string, err error) {
	set := flag.NewFlagSet("ringward", flag.ContinueOnError)
	set.SetOutput(io.Discard)
	var public, upstream, trusted string
	set.StringVar(&c.addr, "addr", "localhost:8080", "")
	set.StringVar(&c.db, "db", cmp.Or(os.Getenv("DATABASE_URL"), "ringward.db"), "")
	set.StringVar(&public, "public-url", "", "")
	set.StringVar(&c.cookieDomain, "cookie-domain", "", "")
	set.StringVar(&trusted, "trusted-proxies", "", "")
	set.StringVar(&upstream, "proxy", "", "")
	set.StringVar(&c.toolsFile, "tools", "", "")
	set.StringVar(&c.metrics, "metrics", "", "")
	set.StringVar(&c.tlsCert, "tls-cert", "", "")
	set.StringVar(&c.tlsKey, "tls-key", "", "")
	set.StringVar(&c.cookieName, "cookie-name", "ringward", "")
	set.StringVar(&c.prefix, "prefix", "/auth", "")
	set.StringVar(&c.userHeader, "user-header", "Remote-User", "")
	set.StringVar(&c.title, "title", "ringward", "")
	set.StringVar(&c.secondFactor, "second-factor", "optional", "")
	durationVar(set, &c.sessionIdle, "session-idle", 24*time.Hour)
	durationVar(set, &c.sessionMax, "session-max", 720*time.Hour)
	durationVar(set, &c.proxyTimeout, "proxy-timeout", time.Minute)
	set.IntVar(&c.bcryptCost, "bcrypt-cost", 12, "")
	set.IntVar(&c.passwordMin, "password-min", 15, "")
	set.IntVar(&c.hsts, "hsts", 31536000, "") // a year, as ASVS 3.4.1 asks
	set.StringVar(&c.log, "log", "text", "")
	err = fromEnvironment(set)
	set.BoolVar(&c.asJSON, "json", false, "")
	set.BoolVar(&c.passwordFromStdin, "password-stdin", false, "")
	set.BoolVar(&c.yes, "yes", false, "")
	version := set.Bool("version", false, "")
	if wrong := set.Parse(args); errors.Is(wrong, flag.ErrHelp) {
		return c, []string{"help"}, nil
	} else if wrong != nil {
		var flags []string
		set.VisitAll(func(f *flag.Flag) { flags = append(flags, "-"+f.Name) })
		_, typed, _ := strings.Cut(wrong.Error(), "not defined: ")
		if meant := suggestion(typed, flags); meant != "" {
			return c, nil, usagef("%w%s", wrong, meant)
		}
		return c, nil, usagef("%w; see ringward help", wrong)
	}
	c.showsPassword = slices.ContainsFunc(args, passwordInURL.MatchString)
	words, wrong := c.commandFlags(set.Args())
	if *version {
		words = []string{"version"}
	}

	switch {
	case wrong != nil:
		return c, nil, wrong
	case len(words) > 0 && (words[0] == "help" || words[0] == "version"): // whatever the environment holds
		return c, words, nil
	case err != nil:
		return c, nil, err
	case len(words) == 0 && (c.asJSON || c.passwordFromStdin || c.yes):
		return c, nil, usagef("-json, -yes and -password-stdin belong to a command; see ringward help")
	case isPostgres(c.db) && openPostgres == nil:
		return c, nil, usagef("this ringward has no PostgreSQL: build it with go build -tags postgres")
	case !isPostgres(c.db) && (strings.Contains(c.db, "://") || connectionWords.MatchString(c.db)):
		return c, nil, usagef("-db is a file, or a URL like postgres://user:password@db.example.com/ringward")
	case c.db == "":
		return c, nil, usagef("-db is empty")
	case c.log != "text" && c.log != "json":
		return c, nil, usagef("-log is text or json, not %q", c.log)
	case c.secondFactor != "optional" && c.secondFactor != "required":
		return c, nil, usagef("-second-factor is optional or required, not %q", c.secondFactor)
	case c.bcryptCost < 10 || c.bcryptCost > 15:
		return c, nil, usagef("-bcrypt-cost is 10 to 15, not %d", c.bcryptCost)
	case c.passwordMin < 8 || c.passwordMin > 64:
		return c, nil, usagef("-password-min is 8 to 64, not %d", c.passwordMin)
	case min(c.sessionIdle, c.sessionMax) < time.Second || max(c.sessionIdle, c.sessionMax) > 87600*time.Hour:
		return c, nil, usagef("-session-idle and -session-max are 1s to 87600h (ten years)")
	case c.proxyTimeout <= 0:
		return c, nil, usagef("-proxy-timeout is like 60s, not %v", c.proxyTimeout)
	case c.hsts < 0:
		return c, nil, usagef("-hsts is seconds, 0 for none, not %d", c.hsts)
	case !isToken(c.cookieName) || strings.HasPrefix(c.cookieName, "__"):
		return c, nil, usagef("-cookie-name is letters, digits, - and _, like ringward-wiki, not %q", c.cookieName)
	case !isToken(c.userHeader) || takenHeaders.MatchString(cgiName(c.userHeader)):
		return c, nil, usagef("-user-header is letters, digits and -, like X-WebAuth-User, and no header of another meaning, not %q", c.userHeader)
	case !strings.HasPrefix(c.prefix, "/") || !isToken(c.prefix[1:]):
		return c, nil, usagef("-prefix is like /auth or /ringward, not %q", c.prefix)
	case strings.TrimSpace(c.title) == "" || len(c.title) > 100 || strings.ContainsFunc(c.title, unicode.IsControl):
		return c, nil, usagef("-title is 1 to 100 bytes of text")
	}
	if c.public, err = origin("-public-url", "https://auth.example.com", public); err != nil {
		return c, nil, err
	}
	one := &Tool{timeout: c.proxyTimeout}
	if one.upstream, err = origin("-proxy", "http://127.0.0.1:3000 (without a path)", upstream); err != nil {
		return c, nil, err
	}
	c.tools = Tools{"": one}
	if c.toolsFile != "" && upstream != "" {
		return c, nil, usagef("-tools is in place of -proxy: one of them")
	}
	if c.trusted, err = prefixes(trusted); err != nil {
		return c, nil, err
	}
	if c.cookieDomain, err = domain(c.cookieDomain); err != nil {
		return c, nil, err
	}
	if c.cookieDomain != "" && (c.public == nil || c.public.Scheme != "https") {
		return c, nil, usagef("-cookie-domain needs -public-url https://… under it: the cookie is for https only, and the login has one address")
	}
	if c.cookieDomain != "" && !under(c.public.Hostname(), c.cookieDomain) {
		return c, nil, usagef("-public-url %s is not under -cookie-domain %s: no browser would keep the cookie", c.public, c.cookieDomain)
	}
	if c.toolsFile != "" && (len(words) == 0 || words[0] == "access" || words[0] == "doctor") {
		if c.tools, err = c.readTools(); err != nil {
			return c, nil, usagef("-tools: %w", err)
		}
	}
	if (c.tlsCert == "") != (c.tlsKey == "") {
		return c, nil, usagef("-tls-cert and -tls-key go together")
	}
	for flag, addr := range map[string]string{"-addr": c.addr, "-metrics": cmp.Or(c.metrics, ":0"), "-echo": cmp.Or(c.echo, ":0")} {
		_, port, wrong := net.SplitHostPort(addr) // net.Listen takes "" for any port of every network
		if wrong == nil {
			_, wrong = net.LookupPort("tcp", port)
		}
		if wrong != nil {
			return c, nil, usagef("%s is like localhost:8080, not %q", flag, addr)
		}
	}
	return c, words, nil
}

// readTools reads the tools file, of which each host gets the cookie of a login
// at the public address.
func (c config) readTools() (Tools, error) {
	tools, err := readTools(c.toolsFile, c.proxyTimeout)
	for host := range tools {
		if c.public != nil && host != c.public.Hostname() && (c.cookieDomain == "" || !under(host, c.cookieDomain)) {
			return nil, fmt.Errorf("the login at %s is for %s too only with a -cookie-domain above both", c.public, host)
		}
	}
	return tools, err
}

// durationVar is DurationVar that says what a duration looks like.
func durationVar(set *flag.FlagSet, d *time.Duration, name string, preset time.Duration) {
	*d = preset
	set.Func(name, "", func(text string) (err error) {
		if *d, err = time.ParseDuration(text); err != nil {
			err = errors.New("it is like 24h, 30m or 90s")
		}
		return err
	})
}

var passwordInURL = regexp.MustCompile(`postgres(ql)?://[^/@]*:[^/@]+@`)

// connectionWords is PostgreSQL's other form of an address.
var connectionWords = regexp.MustCompile(`(^|\s)(host|hostaddr|port|dbname|user|password|sslmode)\s*=`)

// takenHeaders have another meaning, to a tool, a gateway or us.
var takenHeaders = regexp.MustCompile(`^(remote-groups|host|authorization|connection|upgrade|te|trailer|transfer-encoding|keep-alive|expect|origin|location|` +
	`forwarded|x-real-ip|x-forwarded-(for|host|proto|uri|method)|x-login-url|x-ringward-token|ringward-proof|(set-)?cookie|(proxy|content|sec)-.*)$`)

// isToken says whether text is safe in a cookie's or a header's name and a path.
func isToken(text string) bool {
	return text != "" && len(text) <= 64 && strings.Trim(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") == ""
}

// orchestrated are variables that Kubernetes and Docker make up for a service
// called ringward.
var orchestrated = regexp.MustCompile(`^RINGWARD_(SERVICE_.*|PORT(_.*)?|NAME|ENV_.*)$`)

// fromEnvironment sets the flags that a variable names, and refuses a variable
// that names none.
func fromEnvironment(set *flag.FlagSet) error {
	names := map[string]string{}
	set.VisitAll(func(f *flag.Flag) {
		names["RINGWARD_"+strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))] = f.Name
	})
	for _, variable := range os.Environ() {
		name, value, _ := strings.Cut(variable, "=")
		switch flag, known := names[name]; {
		case known && set.Set(flag, value) != nil:
			return usagef("%s=%q is not a value for -%s", name, value, flag)
		case !known && strings.HasPrefix(name, "RINGWARD_") && !orchestrated.MatchString(name):
			return usagef("there is no %s%s", name, suggestion(name, slices.Sorted(maps.Keys(names))))
		}
	}
	return nil
}

// suggestion is the one of the known words that a word is most like, if it is
// like one at all, for the end of a message.
func suggestion(word string, known []string) string {
	best, most := "", 3 // letters to change
	for _, candidate := range known {
		if n := distance(word, candidate); n < most {
			best, most = candidate, n
		}
	}
	if best == "" {
		return ""
	}
	return ": did you mean " + best + "?"
}

// distance is how many letters to put in, take out or change make b of a
// (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// origin is scheme, host and port, if it is not that of the scheme, and nothing
// else.
func origin(flag, example, text string) (*url.URL, error) {
	if text == "" {
		return nil, nil
	}
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil || !goodPort(u) ||
		u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "" {
		return nil, usagef("%s is like %s, not %q", flag, example, text)
	}
	standard := map[string]string{"http": ":80", "https": ":443"}[u.Scheme]
	return &url.URL{Scheme: u.Scheme, Host: strings.TrimSuffix(strings.ToLower(u.Host), standard)}, nil
}

// goodPort says whether a URL names a port that there can be, or none.
func goodPort(u *url.URL) bool {
	port, err := strconv.ParseUint(cmp.Or(u.Port(), "80"), 10, 16)
	return err == nil && port > 0 && !strings.HasSuffix(u.Host, ":")
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
		if bits := prefix.Bits() - 96; prefix.Addr().Is4In6() && bits >= 0 { // as addresses are compared
			prefix = netip.PrefixFrom(prefix.Addr().Unmap(), bits)
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
	host, port, _ := net.SplitHostPort(addr)
	if ip, err := netip.ParseAddr(host); host == "" || host == "127.0.0.1" || host == "::1" || err == nil && ip.IsUnspecified() {
		host = "localhost" // where passkeys work too
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
	info, _ := debug.ReadBuildInfo()
	return cmp.Or(info.Main.Version, "(devel)")
}

// commit is what the program was built from, or "".
func commit() string {
	info, _ := debug.ReadBuildInfo()
	for _, setting := range info.Settings {
		if setting.Key == "vcs.revision" {
			return setting.Value
		}
	}
	return ""
}
