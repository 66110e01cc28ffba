// cli.go: the command line. Each command is done in this process when no
// server holds the database, and by the server when one does (socket.go), by
// the same code.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
)

// command is one line of the table in help.
type command struct {
	words string // "user add"
	args  string // "NAME"; in brackets what may be left out
	run   func(o *Operator, r request, out io.Writer) error
}

var commands = []command{
	{"user add", "NAME", (*Operator).userAdd},
	{"user invite", "NAME", (*Operator).userInvite},
	{"user list", "", (*Operator).userList},
	{"user remove", "NAME", onUser("user removed", func(o *Operator, name string) error { return o.store.removeUser(name) })},
	{"user disable", "NAME", onUser("user disabled", func(o *Operator, name string) error { return o.store.disableUser(name, true) })},
	{"user enable", "NAME", onUser("user enabled", func(o *Operator, name string) error { return o.store.disableUser(name, false) })},
	{"user unlock", "NAME", onUser("user unlocked", func(o *Operator, name string) error { o.throttle.clear(name); return nil })},
	{"user import", "FILE", (*Operator).userImport},
	{"token add", "NAME LABEL", (*Operator).tokenAdd},
	{"token list", "[NAME]", (*Operator).tokenList},
	{"token remove", "ID", (*Operator).tokenRemove},
	{"session list", "[NAME]", (*Operator).sessionList},
	{"session end", "ID", (*Operator).sessionEnd},
	{"session end-all", "NAME", onUser("all sessions ended", func(o *Operator, name string) error { return o.store.endUserSessions(name) })},
	{"backup", "FILE", (*Operator).backup},
}

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
		_, err := fmt.Fprintln(stdout, "ringward", version(), runtime.Version())
		return err
	case words[0] == "migrate":
		return migrate(c, words[1:], stdout)
	}
	found, args, ok := findCommand(words)
	if !ok {
		return usagef("there is no command %q; see ringward help", strings.Join(words, " "))
	}
	if !found.takes(args) {
		return usagef("it is: ringward %s", strings.TrimSpace(found.words+" "+found.args))
	}
	if c.passwordFromStdin && found.words != "user add" || c.asJSON && !strings.HasSuffix(found.words, " list") {
		return usagef("ringward %s does not have that flag; see ringward help", found.words)
	}
	r := request{Command: found.words, Args: args, JSON: c.asJSON}
	if c.public != nil {
		r.Base = c.public.String()
	}
	var err error
	switch {
	case c.passwordFromStdin:
		signal.Reset(os.Interrupt, syscall.SIGTERM)             // who waits for a password has nothing to finish
		r.Input, err = io.ReadAll(io.LimitReader(stdin, 1<<20)) // far over maxPassword
		r.Input = []byte(trimNewline(string(r.Input)))
	case found.words == "user import":
		r.Input, err = os.ReadFile(args[0])
	case found.words == "backup":
		return saveBackup(ctx, c, r, stdout)
	case found.words == "user unlock" && isPostgres(c.db):
		return errors.New("wrong passwords are counted in the memory of each server on a PostgreSQL database, " +
			"which no command reaches: wait 15 minutes, or restart the servers")
	}
	if err != nil {
		return err
	}
	return perform(ctx, c, r, stdout)
}

// commandFlags takes the flags of commands out of the words.
func (c *config) commandFlags(words []string) (plain []string, err error) {
	for i, word := range words {
		switch {
		case word == "--":
			return append(plain, words[i+1:]...), nil
		case word == "-json", word == "--json":
			c.asJSON = true
		case word == "-password-stdin", word == "--password-stdin":
			c.passwordFromStdin = true
		case word == "-h", word == "-help", word == "--help":
			return []string{"help"}, nil
		case strings.HasPrefix(word, "-"):
			return nil, usagef("%s is not a flag of a command, and other flags come before it (after -- it is no flag); see ringward help", word)
		default:
			plain = append(plain, word)
		}
	}
	return plain, nil
}

// saveBackup gives the copy its name when it is whole.
func saveBackup(ctx context.Context, c config, r request, stdout io.Writer) error {
	if isPostgres(c.db) { // whether or not it can be reached
		return errors.New("a PostgreSQL database is backed up with pg_dump")
	}
	path := r.Args[0]
	if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("%s is there already", path)
	}
	temp, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(temp.Name())
	err = temp.Chmod(0o600) // whatever the umask took away
	if err == nil {
		err = perform(ctx, c, r, temp)
	}
	if err := errors.Join(err, temp.Sync(), temp.Close()); err != nil {
		return err
	}
	if err := publish(temp.Name(), path); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return say(stdout, "backup made", path)
}

// migrate copies a bbolt file into a PostgreSQL database.
func migrate(c config, args []string, stdout io.Writer) error {
	if len(args) != 1 || !isPostgres(args[0]) {
		return usagef("ringward migrate takes one argument, a postgres:// URL")
	}
	if migrateTo == nil {
		return usagef("this ringward has no PostgreSQL: build it with go build -tags postgres")
	}
	if isPostgres(c.db) {
		return usagef("-db names the file to migrate, not a postgres:// URL")
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
	report, err := migrateTo(from, args[0])
	if err == nil {
		_, err = fmt.Fprintln(stdout, report)
	}
	return err
}
