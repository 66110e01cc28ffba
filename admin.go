// admin.go: what an operator does with users, sessions, tokens and backups: the
// commands themselves. They ask nobody who they are: they run in a process
// that may open the database, or in the server for one that may open the Unix
// socket beside it.
package main

import (
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	bolt "go.etcd.io/bbolt"
)

// adminStore is the part of the Store that this file needs, with the same
// promises.
type adminStore interface {
	factorStore
	// users returns all, in order of name.
	users() ([]User, error)
	// addUsers adds those whose name is not taken, with the apps of those who
	// have one, by name, and says which these are. It records the act of each.
	addUsers(all []User, apps map[string]Factors, act Act) (added []bool, err error)
	// acts returns those of one user's account, the oldest first, or all for "".
	acts(user string) ([]Act, error)
	// count returns how many users and sessions there are, expired ones that
	// were not swept included.
	count() (users, sessions int, err error)
	// timeWith has how long each transaction takes told.
	timeWith(func(write bool, took time.Duration))
	// nothing changes nothing, for an act that is only recorded.
	nothing() error
	// removeUser and disableUser end all that the user could get in with:
	// sessions, tokens, invites. Enabling brings none of it back.
	removeUser(name string) error
	disableUser(name string, disabled bool) error
	// changeGroup puts the user into a group, or takes them out of it.
	changeGroup(name, group string, in bool) error
	// findSession returns the live session with that handle.
	findSession(handle string, now time.Time) (Session, error)
	// backup writes a consistent copy. It is an error where the database has
	// its own tools.
	backup(to io.Writer) error
}

func (b *BoltStore) users() (all []User, err error) {
	err = b.view(func(tx *bolt.Tx) error {
		return tx.Bucket(bucketUsers).ForEach(func(name, _ []byte) error {
			u, err := getUser(tx, string(name))
			all = append(all, u)
			return err
		})
	})
	return all, err
}

func (b *BoltStore) count() (users, sessions int, err error) {
	err = b.view(func(tx *bolt.Tx) error {
		users, sessions = tx.Bucket(bucketUsers).Stats().KeyN, tx.Bucket(bucketOf[kindSession]).Stats().KeyN
		return nil
	})
	return users, sessions, err
}

func (b *BoltStore) timeWith(timed func(bool, time.Duration)) { b.timed = timed }

func (b *BoltStore) addUsers(all []User, apps map[string]Factors, act Act) (added []bool, err error) {
	err = b.update(func(tx *bolt.Tx) error {
		added = make([]bool, len(all))
		for i, u := range all {
			err := addUser(tx, u)
			if app, ok := apps[u.Name]; ok && err == nil {
				err = putFactors(tx, u.Name, app)
			}
			if act.User = u.Name; err == nil {
				err = record(tx, act)
			}
			if added[i] = err == nil; err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
		}
		return nil
	})
	return added, err
}

func (b *BoltStore) removeUser(name string) error {
	return b.update(func(tx *bolt.Tx) error {
		users := tx.Bucket(bucketUsers)
		if users.Get([]byte(name)) == nil {
			return fs.ErrNotExist
		}
		if err := dropOwned(tx, name, kindSession, kindToken, kindInvite); err != nil {
			return err
		}
		err := putFactors(tx, name, Factors{})
		if err == nil {
			err = tx.Bucket(bucketFactors).Delete([]byte(name))
		}
		if err != nil {
			return err
		}
		return users.Delete([]byte(name))
	})
}

func (b *BoltStore) disableUser(name string, disabled bool) error {
	return b.update(func(tx *bolt.Tx) error {
		u, err := getUser(tx, name)
		if err != nil {
			return err
		}
		if disabled {
			if err := dropOwned(tx, name, kindSession, kindToken, kindInvite); err != nil {
				return err
			}
		}
		u.Disabled = disabled
		return putUser(tx, u)
	})
}

func (b *BoltStore) changeGroup(name, group string, in bool) error {
	return b.update(func(tx *bolt.Tx) error {
		u, err := getUser(tx, name)
		if err != nil {
			return err
		}
		u.Groups = withGroup(u.Groups, group, in)
		return putUser(tx, u)
	})
}

// withGroup returns groups with one more, or one less.
func withGroup(groups, group string, in bool) string {
	all := slices.DeleteFunc(strings.Fields(groups), func(g string) bool { return g == group })
	if in {
		all = append(all, group)
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

func (b *BoltStore) findSession(handle string, now time.Time) (s Session, err error) {
	err = b.view(func(tx *bolt.Tx) error {
		prefix, err := hex.DecodeString(handle)
		if err != nil {
			return fs.ErrNotExist
		}
		k, _ := tx.Bucket(bucketOf[kindSession]).Cursor().Seek(prefix)
		if len(k) != len(Key{}) || Key(k).handle() != handle {
			return fs.ErrNotExist
		}
		if s, err = getSession(tx, Key(k)); err == nil && !s.live(now) {
			err = fs.ErrNotExist
		}
		return err
	})
	return s, err
}

// Operator does what commands ask for.
type Operator struct {
	*Auth
	store     adminStore
	minLength int    // of new passwords, in characters
	authURL   string // where our own paths begin for browsers, for invite links
	tools     func() Tools
}

// commandCall is one command, as it goes to the server.
type commandCall struct {
	Command  string   // "user add"
	Args     []string // NAME
	JSON     bool     // print JSON
	Input    []byte   // a password or a file; nil: none was asked for
	Progress bool     // print how far it is, over and over on one line
	AuthURL  string   // where our own paths begin for browsers, if the command was told; or ""
}

func (o *Operator) logDone(what, name string) { o.Log.Info(what, "user", name, "by", "operator") }

// act is what an operator does to an account.
func (o *Operator) act(what, name string) Act {
	return Act{At: time.Now(), User: name, By: "operator", What: what}
}

// doing returns the store that records what an operator does.
func (o *Operator) doing(what, name string) adminStore { return recording(o.store, o.act(what, name)) }

// onUser is a command that does one thing to the user that it names.
func onUser(done string, do func(o *Operator, store adminStore, u User) error) func(*Operator, commandCall, io.Writer) error {
	return func(o *Operator, r commandCall, out io.Writer) error {
		u, err := o.user(r.Args)
		if err == nil {
			err = do(o, o.doing(done, u.Name), u)
		}
		if errors.Is(err, fs.ErrNotExist) { // went meanwhile
			err = noUser(u.Name)
		}
		if err != nil {
			return err
		}
		o.logDone(done, u.Name)
		return say(out, done, u.Name)
	}
}

func say(out io.Writer, what, whom string) error {
	_, err := fmt.Fprintf(out, "%s: %s\n", what, whom)
	return err
}

// userName returns the first argument in the one form of names, or errInput.
func userName(args []string) (string, error) {
	name, ok := canonicalName(args[0])
	if !ok {
		return "", errInput(nameProblem)
	}
	return name, nil
}

func noUser(name string) error { return errInput("There is no user " + name) }

// user returns the user that the first argument names, or errInput.
func (o *Operator) user(args []string) (User, error) {
	name, err := userName(args)
	if err != nil {
		return User{}, err
	}
	u, err := o.store.user(name)
	if errors.Is(err, fs.ErrNotExist) {
		err = noUser(name)
	}
	return u, err
}

// filter returns the user that a list is asked for, "" for all.
func (o *Operator) filter(args []string) (string, error) {
	if len(args) == 0 {
		return "", nil
	}
	u, err := o.user(args)
	return u.Name, err
}

// userAdd makes an invite too, unless it is given a password.
func (o *Operator) userAdd(r commandCall, out io.Writer) error {
	name, err := userName(r.Args)
	if err != nil {
		return err
	}
	u := User{Name: name, Created: time.Now()}
	if r.Input != nil {
		if problem := passwordProblem(name, string(r.Input), o.minLength); problem != "" {
			return errInput(problem)
		}
		if u.Hash, err = o.hashPassword(context.Background(), string(r.Input)); err != nil {
			return err
		}
	}
	if err := o.doing("user added", name).addUser(u); errors.Is(err, fs.ErrExist) {
		return errInput("There is a user " + name + " already")
	} else if err != nil {
		return err
	}
	o.logDone("user added", name)
	if r.Input == nil {
		return o.printInvite(u, r, out)
	}
	o.logDone("password set", name)
	return say(out, "user added", name)
}

func (o *Operator) userInvite(r commandCall, out io.Writer) error {
	u, err := o.user(r.Args)
	if err != nil {
		return err
	}
	return o.printInvite(u, r, out)
}

func (o *Operator) printInvite(u User, r commandCall, out io.Writer) error {
	link, err := o.invite(u, r.AuthURL)
	if errors.Is(err, fs.ErrNotExist) {
		return errInput(u.Name + " is disabled")
	}
	if err == nil {
		_, err = fmt.Fprintln(out, link)
	}
	return err
}

// invite returns the link of a new invite for a user, or for the first user
// with User{}; it is fs.ErrNotExist where there is none to invite.
func (o *Operator) invite(u User, base string) (link string, err error) {
	i, secret := newInvite(u.Name, time.Now())
	if err := o.doing("invite made", u.Name).addInvite(i); err != nil {
		return "", err
	}
	o.logDone("invite made", u.Name)
	return cmp.Or(base, o.authURL) + "/invite#" + secret, nil
}

type userView struct {
	Username string    `json:"username"`
	State    string    `json:"state"` // active, invited (no password yet) or disabled
	Created  time.Time `json:"created"`
	Factors  []string  `json:"factors"` // totp, and passkey as often as there is one
	Groups   []string  `json:"groups"`
}

func (o *Operator) userList(r commandCall, out io.Writer) error {
	all, err := o.store.users()
	factors, failed := o.store.everybodysFactors()
	err = cmp.Or(err, failed)
	shown := []userView{}
	for _, u := range all {
		v := userView{u.Name, "active", seconds(u.Created), factors[u.Name].names(), strings.Fields(u.Groups)}
		if u.Hash == "" {
			v.State = "invited"
		}
		if u.Disabled {
			v.State = "disabled"
		}
		shown = append(shown, v)
	}
	return list(out, r.JSON, err, shown, "NAME\tSTATE\tCREATED\tFACTORS\tGROUPS", func(u userView) []string {
		return []string{u.Username, u.State, stamp(&u.Created), strings.Join(u.Factors, ","), strings.Join(u.Groups, ",")}
	})
}

// group is a command that puts a user into a group, or takes them out of it.
func group(done string, in bool) func(*Operator, commandCall, io.Writer) error {
	return func(o *Operator, r commandCall, out io.Writer) error {
		name := r.Args[1]
		if !isGroup(name) {
			return errInput("A group is " + groupRule)
		}
		return onUser(done+" "+name, func(_ *Operator, store adminStore, u User) error { return store.changeGroup(u.Name, name, in) })(o, r, out)
	}
}

// names says what there is: totp, and passkey for each.
func (f Factors) names() []string {
	all := []string{}
	if f.Seed != "" {
		all = append(all, "totp")
	}
	return append(all, slices.Repeat([]string{"passkey"}, len(f.Passkeys))...)
}

// resetFactors takes all factors from a user, and ends sessions and tokens.
func (o *Operator) resetFactors(store adminStore, u User) error {
	return store.changeFactors(u, func(f *Factors) error { *f = Factors{}; return nil }, sessionsAfter{endKinds: []kind{kindSession, kindToken}})
}

func (o *Operator) sessionList(r commandCall, out io.Writer) error {
	name, err := o.filter(r.Args)
	if err != nil {
		return err
	}
	live, err := o.store.sessions(name, time.Now())
	slices.SortFunc(live, func(a, b Session) int {
		return cmp.Or(cmp.Compare(a.User, b.User), a.Created.Compare(b.Created))
	})
	shown := []sessionView{}
	for _, s := range live {
		v := viewSession(s)
		v.User = s.User
		shown = append(shown, v)
	}
	return list(out, r.JSON, err, shown, "ID\tUSER\tCREATED\tLAST SEEN\tEXPIRES\tADDRESS\tBROWSER", func(s sessionView) []string {
		return []string{s.ID, s.User, stamp(&s.Created), stamp(&s.LastSeen), stamp(&s.Expires), s.RemoteAddr, strings.ToValidUTF8(cut(s.UserAgent, 60), "")}
	})
}

// endAll is for one user, or for all.
func (o *Operator) endAll(r commandCall, out io.Writer) error {
	name, err := o.filter(r.Args)
	if err == nil {
		err = o.doing("all sessions ended", name).endUserSessions(name)
	}
	if err != nil {
		return err
	}
	o.logDone("all sessions ended", name)
	return say(out, "all sessions ended", cmp.Or(name, "everybody"))
}

func (o *Operator) sessionEnd(r commandCall, out io.Writer) error {
	s, err := o.store.findSession(r.Args[0], time.Now())
	if err == nil {
		err = o.doing("session ended", s.User).endSessions(s.Key)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return errInput("There is no such session")
	} else if err != nil {
		return err
	}
	o.logDone("session ended", s.User)
	return say(out, "session ended", r.Args[0])
}

func (o *Operator) tokenAdd(r commandCall, out io.Writer) error {
	u, err := o.user(r.Args)
	if err != nil {
		return err
	}
	t, secret, err := newToken(u.Name, r.Args[1], "", time.Now())
	if err == nil {
		err = o.doing("token made", u.Name).addToken(t)
	}
	if problem := tokenProblem(err); problem != "" {
		return errInput(problem)
	} else if errors.Is(err, fs.ErrNotExist) {
		return errInput(u.Name + " is disabled")
	} else if err != nil {
		return err
	}
	o.logDone("token made", u.Name)
	_, err = fmt.Fprintln(out, secret)
	return err
}

func (o *Operator) tokenList(r commandCall, out io.Writer) error {
	name, err := o.filter(r.Args)
	if err != nil {
		return err
	}
	all, err := o.store.tokens(name)
	slices.SortFunc(all, func(a, b Token) int {
		return cmp.Or(cmp.Compare(a.User, b.User), a.Created.Compare(b.Created))
	})
	shown := []tokenView{}
	for _, t := range all {
		v := viewToken(t)
		v.User = t.User
		shown = append(shown, v)
	}
	return list(out, r.JSON, err, shown, "ID\tUSER\tCREATED\tEXPIRES\tLAST USED\tNAME", func(t tokenView) []string {
		return []string{t.ID, t.User, stamp(&t.Created), stamp(t.Expires), stamp(t.LastUsed), printable(t.Name)}
	})
}

func (o *Operator) tokenRemove(r commandCall, out io.Writer) error {
	all, err := o.store.tokens("")
	if err != nil {
		return err
	}
	i := slices.IndexFunc(all, func(t Token) bool { return t.Key.handle() == r.Args[0] })
	if i < 0 {
		return errInput("There is no such token")
	}
	if err := o.doing("token removed", all[i].User).removeToken(all[i].Key); err != nil {
		return err
	}
	o.logDone("token removed", all[i].User)
	return say(out, "token removed", r.Args[0])
}

// list prints a table, or JSON.
func list[T any](out io.Writer, asJSON bool, err error, all []T, heads string, row func(T) []string) error {
	if err != nil {
		return err
	}
	if asJSON {
		return json.NewEncoder(out).Encode(all)
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, heads)
	for _, item := range all {
		cells := row(item)
		for i, cell := range cells {
			cells[i] = cmp.Or(cell, "-") // so that a script can count columns
		}
		fmt.Fprintln(table, strings.Join(cells, "\t"))
	}
	return table.Flush()
}

func stamp(t *time.Time) string {
	if t == nil {
		return "never"
	}
	return t.UTC().Format(time.RFC3339)
}
