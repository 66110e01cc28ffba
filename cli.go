// cli.go: the command line. Each command is done in this process when no
// server holds the database, and by the server when one does (socket.go), by
// the same code.
package main

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// command is one line of the table in help.
type command struct {
	words string // "user add"
	args  string // "NAME"; in brackets what may be left out
	flag  string // "-json"; "": none
	run   func(o *Operator, r commandCall, out io.Writer) error
}

var commands = []command{
	{"user add", "NAME", "-password-stdin", (*Operator).userAdd},
	{"user invite", "NAME", "", (*Operator).userInvite},
	{"user list", "", "-json", (*Operator).userList},
	{"user remove", "NAME", "", onUser("user removed", func(_ *Operator, store adminStore, u User) error { return store.removeUser(u.Name) })},
	{"user disable", "NAME", "", onUser("user disabled", func(_ *Operator, store adminStore, u User) error { return store.disableUser(u.Name, true) })},
	{"user enable", "NAME", "", onUser("user enabled", func(_ *Operator, store adminStore, u User) error { return store.disableUser(u.Name, false) })},
	{"user unlock", "NAME", "", onUser("user unlocked", func(o *Operator, store adminStore, u User) error { o.throttle.clear(u.Name); return store.nothing() })},
	{"user group add", "NAME GROUP", "", group("added to", true)},
	{"user group remove", "NAME GROUP", "", group("removed from", false)},
	{"user factor reset", "NAME", "", onUser("second factor reset", (*Operator).resetFactors)},
	{"user import", "FILE", "", (*Operator).userImport},
	{"token add", "NAME LABEL", "", (*Operator).tokenAdd},
	{"token list", "[NAME]", "-json", (*Operator).tokenList},
	{"token remove", "ID", "", (*Operator).tokenRemove},
	{"session list", "[NAME]", "-json", (*Operator).sessionList},
	{"session end", "ID", "", (*Operator).sessionEnd},
	{"session end-all", "[NAME]", "-yes", (*Operator).endAll},
	{"backup", "FILE", "", (*Operator).backup},
	{"audit", "[NAME]", "-json", (*Operator).auditList},
	{"access", "[HOST]", "-json", (*Operator).access},
}

// alone are the commands that are no business of the server, and what they take.
var alone = map[string]string{"help": "", "version": "", "migrate": "", "restore": "FILE", "doctor": "[URL]", "healthcheck": "", "completion": "bash|zsh"}

// findCommand returns the command that the words begin with, and the rest.
func findCommand(words []string) (found command, args []string, ok bool) {
	for _, c := range commands {
		n := strings.Count(c.words, " ") + 1
		if len(words) >= n && strings.Join(words[:n], " ") == c.words {
			return c, words[n:], true
		}
	}
	return command{}, nil, false
}

func (c command) takes(args []string) bool {
	n := len(strings.Fields(c.args))
	return len(args) == n || len(args) < n && strings.HasPrefix(c.args, "[")
}

// runCommand does what the words say.
func runCommand(ctx context.Context, c config, words []string, stdin io.Reader, stdout io.Writer) error {
	switch {
	case words[0] == "help":
		_, err := io.WriteString(stdout, help)
		return err
	case len(words) == 1 && words[0] == "version":
		_, err := fmt.Fprintln(stdout, "ringward", version(), cmp.Or(commit(), "(unknown commit)"), runtime.Version())
		return err
	case words[0] == "completion" && len(words) == 2:
		return completion(words[1], stdout)
	case words[0] == "doctor" && len(words) <= 2:
		return examine(ctx, c, words[1:], stdout)
	case words[0] == "healthcheck" && len(words) == 1:
		return healthcheck(c)
	case words[0] == "restore" && len(words) == 2:
		return restore(c, words[1], stdout)
	case words[0] == "migrate":
		return migrate(c, words[1:], stdout)
	}
	if args, ok := alone[words[0]]; ok {
		return usagef("usage: ringward %s", strings.TrimSpace(words[0]+" "+args))
	}
	found, args, ok := findCommand(words)
	if !ok {
		return noCommand(words)
	}
	if !found.takes(args) {
		return usagef("usage: ringward %s", strings.TrimSpace(found.words+" "+found.args))
	}
	for flag, given := range map[string]bool{"-password-stdin": c.passwordFromStdin, "-yes": c.yes, "-json": c.asJSON} {
		if given && flag != found.flag {
			return usagef("ringward %s does not have that flag; see ringward help", found.words)
		}
	}
	r := commandCall{Command: found.words, Args: args, JSON: c.asJSON}
	if c.public != nil {
		r.AuthURL = c.public.String() + c.prefix
	}
	var err error
	switch {
	case c.passwordFromStdin:
		r.Input, err = readPassword(ctx, stdin)
	case found.words == "user import":
		ctx = context.WithoutCancel(ctx) // a moment's work, better whole than half
		r.Progress = isTerminal(stdout)
		if args[0] == "-" {
			r.Input, err = io.ReadAll(stdin)
		} else {
			r.Input, err = os.ReadFile(args[0])
		}
	case found.words == "backup":
		return saveBackup(ctx, c, r, stdout)
	case found.words == "session end-all" && len(args) == 0 && !c.yes:
		err = confirm(stdin, "Log everybody out, on every device?")
	case found.words == "user unlock" && isPostgres(c.db):
		return errors.New("wrong passwords are counted in the memory of each server on a PostgreSQL database, " +
			"which no command reaches: wait 15 minutes, or restart the servers")
	}
	if err == nil {
		err = perform(ctx, c, r, stdout)
	}
	if err == nil && r.Input == nil && (found.words == "user add" || found.words == "user invite") && isTerminal(stdout) {
		fmt.Fprintln(os.Stderr, "Who opens this link sets the password. It works once, within 24 hours.")
	}
	return err
}

// noCommand says what was probably meant.
func noCommand(words []string) error {
	known, begun := slices.Sorted(maps.Keys(alone)), []string(nil)
	for _, c := range commands {
		known = append(known, c.words)
		if strings.HasPrefix(c.words, words[0]+" ") {
			begun = append(begun, c.words)
		}
	}
	if len(words) == 1 && begun != nil {
		return usagef("it is one of: %s; see ringward help", strings.Join(begun, ", "))
	}
	said := strings.Join(words[:min(len(words), 2)], " ")
	return usagef("there is no command %q%s", said, cmp.Or(suggestion(said, known), suggestion(words[0], known), "; see ringward help"))
}

func isTerminal(f any) bool {
	file, ok := f.(*os.File)
	if !ok {
		return false
	}
	mode, err := file.Stat()
	null, err2 := os.Stat(os.DevNull)
	return err == nil && err2 == nil && mode.Mode()&os.ModeCharDevice != 0 && !os.SameFile(mode, null)
}

// confirm asks on a terminal; a script says -yes.
func confirm(stdin io.Reader, question string) error {
	if !isTerminal(stdin) {
		return usagef("this ends everybody's sessions: name a user, or say -yes")
	}
	fmt.Fprint(os.Stderr, question, " [y/N] ")
	line, _ := bufio.NewReader(stdin).ReadString('\n')
	if answer := strings.ToLower(strings.TrimSpace(line)); answer != "y" && answer != "yes" {
		return errors.New("nothing was done")
	}
	return nil
}

// readPassword reads all that comes, or one line that is typed unseen.
func readPassword(ctx context.Context, stdin io.Reader) ([]byte, error) {
	if !isTerminal(stdin) {
		signal.Reset(os.Interrupt, syscall.SIGTERM)        // who waits for a password has nothing to finish
		b, err := io.ReadAll(io.LimitReader(stdin, 1<<20)) // far over maxPassword
		return []byte(trimNewline(string(b))), err
	}
	echo := func(set string) error {
		stty := exec.Command("stty", set)
		stty.Stdin = stdin
		return stty.Run()
	}
	if err := echo("-echo"); err != nil {
		return nil, fmt.Errorf("cannot hide what is typed: %w", err)
	}
	defer echo("echo")
	defer context.AfterFunc(ctx, func() { echo("echo"); os.Exit(1) })()
	fmt.Fprint(os.Stderr, "Password: ")
	line, err := bufio.NewReader(stdin).ReadString('\n')
	fmt.Fprintln(os.Stderr)
	return []byte(trimNewline(line)), err
}

// commandFlags takes the flags of commands out of the words.
func (c *config) commandFlags(words []string) (plain []string, err error) {
	for len(words) > 0 {
		word := words[0]
		words = words[1:]
		flag := strings.Replace(word, "--", "-", 1)
		switch {
		case word == "--":
			return append(plain, words...), nil
		case flag == "-json":
			c.asJSON = true
		case flag == "-password-stdin":
			c.passwordFromStdin = true
		case flag == "-yes":
			c.yes = true
		case flag == "-echo" && len(words) > 0:
			c.echo, words = words[0], words[1:]
		case flag == "-h", flag == "-help":
			return []string{"help"}, nil
		case strings.HasPrefix(word, "-") && word != "-":
			return nil, usagef("%s is not a flag of a command, and other flags come before it (after -- it is no flag); see ringward help", word)
		default:
			plain = append(plain, word)
		}
	}
	return plain, nil
}

//go:embed completion.bash
var completionBash string

// completion prints what a shell has to read to complete our words.
func completion(shell string, stdout io.Writer) error {
	words := slices.Sorted(maps.Keys(alone))
	for _, c := range commands {
		words = append(words, c.words)
	}
	before := map[string]string{"bash": "", "zsh": "(( $+functions[compdef] )) || { autoload -U compinit && compinit }\nautoload -U bashcompinit && bashcompinit\n"}
	start, ok := before[shell]
	if !ok {
		return usagef("usage: ringward completion bash|zsh")
	}
	_, err := io.WriteString(stdout, start+strings.Replace(completionBash, "COMMANDS", strings.Join(words, "\n"), 1))
	return err
}

// healthcheck asks the server on this machine, for containers that have nothing
// else to ask with.
func healthcheck(c config) error {
	host, port, err := net.SplitHostPort(c.addr)
	if err != nil {
		return err
	}
	if ip := net.ParseIP(host); host == "" || ip.IsUnspecified() {
		host = "127.0.0.1" // a container may know no localhost
	}
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}} // of this machine, whatever name the certificate has
	w, err := client.Get(c.scheme() + "://" + net.JoinHostPort(host, port) + "/healthz")
	if err == nil && w.StatusCode != http.StatusOK {
		err = errors.New(w.Status)
	}
	return err
}

// migrate copies a bbolt file into a PostgreSQL database. That one's URL has a
// password in it, which an argument would show to everybody on the machine.
func migrate(c config, args []string, stdout io.Writer) error {
	to := os.Getenv("DATABASE_URL")
	if len(args) > 0 || !isPostgres(to) {
		return usagef("it is: DATABASE_URL=postgres://… ringward -db FILE migrate")
	}
	if migrateTo == nil {
		return usagef("this ringward has no PostgreSQL: build it with go build -tags postgres")
	}
	if isPostgres(c.db) {
		return usagef("-db names the file to migrate, which DATABASE_URL does not: ringward -db ringward.db migrate")
	}
	if _, err := os.Stat(c.db); err != nil {
		return err
	}
	from, err := OpenStore(c.db) // what a running server would still write must not be left behind
	if errors.Is(err, errInUse) {
		return fmt.Errorf("stop the server first: %w", err)
	} else if err != nil {
		return err
	}
	defer from.Close()
	report, err := migrateTo(from, to)
	if err == nil {
		_, err = fmt.Fprintln(stdout, report)
	}
	return err
}
