// admin.go: what an operator does with users, sessions, tokens and backups, as
// one http.Handler. It asks nobody who they are: it is served on the Unix
// socket beside the database, which only the server's own user may open, or
// inside the process of a command when no server runs. Arguments are in the
// query, a password or a file is the body as it is.
package main

import (
	"bufio"
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/crypto/bcrypt"
)

// adminStore is the part of the Store that this file needs, with the same
// promises.
type adminStore interface {
	accountStore
	// users answers all, in order of name.
	users() ([]User, error)
	// removeUser and disableUser end all that the user could get in with:
	// sessions, tokens, invites. Enabling brings none of it back.
	removeUser(name string) error
	disableUser(name string, disabled bool) error
	// findSession answers the live session with that handle.
	findSession(handle string, now time.Time) (Session, error)
	// backup writes a consistent copy to a new file and answers it, read from
	// the start; the file has no name any more or goes with close. It is
	// an error where the database has its own tools.
	backup() (*os.File, error)
}

func (b *boltStore) users() (all []User, err error) {
	err = b.view(func(tx *bolt.Tx) error {
		return tx.Bucket(bucketUsers).ForEach(func(name, _ []byte) error {
			u, err := getUser(tx, string(name))
			all = append(all, u)
			return err
		})
	})
	return all, err
}

func (b *boltStore) removeUser(name string) error {
	return b.update(func(tx *bolt.Tx) error {
		users := tx.Bucket(bucketUsers)
		if users.Get([]byte(name)) == nil {
			return fs.ErrNotExist
		}
		if err := dropOwned(tx, name, kindSession, kindToken, kindInvite); err != nil {
			return err
		}
		return users.Delete([]byte(name))
	})
}

func (b *boltStore) disableUser(name string, disabled bool) error {
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

func (b *boltStore) findSession(handle string, now time.Time) (s Session, err error) {
	err = b.view(func(tx *bolt.Tx) error {
		prefix, err := hex.DecodeString(handle)
		if err != nil {
			return fs.ErrNotExist
		}
		k, _ := tx.Bucket(bucketOf[kindSession]).Cursor().Seek(prefix)
		if len(k) != len(Key{}) || Key(k).handle() != handle {
			return fs.ErrNotExist
		}
		s, err = getLive(tx, Key(k), now)
		return err
	})
	return s, err
}

// backup copies into a file first: a slow reader would hold the transaction
// open, and with it every page that is freed meanwhile.
func (b *boltStore) backup() (*os.File, error) {
	f, err := os.CreateTemp(filepath.Dir(b.path), filepath.Base(b.path)+".backup-*")
	if err != nil {
		return nil, err
	}
	os.Remove(f.Name()) // a killed process leaves nothing behind
	err = b.view(func(tx *bolt.Tx) error {
		if _, err := tx.WriteTo(f); err != nil {
			return err
		}
		return f.Truncate(tx.Size() + int64(b.db.Info().PageSize)) // with the reserve that bbolt keeps, see inspect
	})
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Admin is the operator's API.
type Admin struct {
	*Auth // for its password rules and hashes
	store adminStore
	base  string            // where browsers reach the server, for invite links
	clear func(name string) // forgets the throttle's count against a user; nil where nothing is counted
}

func (a *Admin) handler() http.Handler {
	mux := http.NewServeMux()
	for pattern, fn := range map[string]func(*http.Request) (any, error){
		"GET /users":             a.listUsers,
		"POST /users":            a.makeUser,
		"POST /users/import":     a.importUsers,
		"POST /users/invite":     a.inviteUser,
		"POST /users/remove":     a.onUser("user removed", a.store.removeUser),
		"POST /users/disable":    a.onUser("user disabled", func(name string) error { return a.store.disableUser(name, true) }),
		"POST /users/enable":     a.onUser("user enabled", func(name string) error { return a.store.disableUser(name, false) }),
		"POST /users/unlock":     a.onUser("user unlocked", a.unlock),
		"GET /sessions":          a.listSessions,
		"POST /sessions/end":     a.endSession,
		"POST /sessions/end-all": a.onUser("all sessions ended", a.store.endSessions),
		"GET /tokens":            a.listTokens,
		"POST /tokens":           a.makeToken,
		"POST /tokens/remove":    a.removeToken,
	} {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			data, err := fn(r)
			if err != nil {
				a.fail(w, err)
				return
			}
			writeData(w, http.StatusOK, data)
		})
	}
	mux.HandleFunc("GET /backup", a.handleBackup)
	return mux
}

// fail tells an operator what is wrong, which a stranger would not be told.
func (a *Admin) fail(w http.ResponseWriter, err error) {
	if errors.As(err, new(errInput)) {
		writeError(w, http.StatusUnprocessableEntity, err.Error())
		return
	}
	a.Log.Error("operator's request failed", "error", err)
	writeError(w, http.StatusServiceUnavailable, err.Error())
}

func (a *Admin) audit(what, name string) { a.Log.Info(what, "user", name, "by", "operator") }

// onUser is a handler that does one thing to the user that the query names.
func (a *Admin) onUser(done string, do func(name string) error) func(*http.Request) (any, error) {
	return func(r *http.Request) (any, error) {
		u, err := a.user(r)
		if err == nil {
			err = do(u.Name)
		}
		if errors.Is(err, fs.ErrNotExist) { // went meanwhile
			err = noUser(u.Name)
		}
		if err == nil {
			a.audit(done, u.Name)
		}
		return nil, err
	}
}

// userName answers the name in the query in its one form, or errInput.
func userName(r *http.Request) (string, error) {
	name, ok := canonicalName(r.URL.Query().Get("user"))
	if !ok {
		return "", errInput(nameProblem)
	}
	return name, nil
}

func noUser(name string) error { return errInput("There is no user " + name) }

// user answers the user that the query names, or errInput.
func (a *Admin) user(r *http.Request) (User, error) {
	name, err := userName(r)
	if err != nil {
		return User{}, err
	}
	u, err := a.store.user(name)
	if errors.Is(err, fs.ErrNotExist) {
		err = noUser(name)
	}
	return u, err
}

type userView struct {
	Username string    `json:"username"`
	State    string    `json:"state"` // active, invited (no password yet) or disabled
	Created  time.Time `json:"created"`
}

func (a *Admin) listUsers(*http.Request) (any, error) {
	all, err := a.store.users()
	shown := []userView{}
	for _, u := range all {
		v := userView{u.Name, "active", seconds(u.Created)}
		if u.Hash == "" {
			v.State = "invited"
		}
		if u.Disabled {
			v.State = "disabled"
		}
		shown = append(shown, v)
	}
	return shown, err
}

// inviteView is a link in two parts: the command may know the server's public
// address where the server does not.
type inviteView struct {
	Base  string `json:"base"`
	Token string `json:"token"`
}

// makeUser makes an invite too, unless the body is the password.
func (a *Admin) makeUser(r *http.Request) (any, error) {
	name, err := userName(r)
	if err != nil {
		return nil, err
	}
	u := User{Name: name, Created: time.Now()}
	if !r.URL.Query().Has("password") {
		if err := a.addUser(u); err != nil {
			return nil, err
		}
		return a.invite(u)
	}
	password, err := io.ReadAll(io.LimitReader(r.Body, maxBody))
	if err != nil {
		return nil, err
	}
	if problem := a.passwordProblem(name, string(password)); problem != "" {
		return nil, errInput(problem)
	}
	if u.Hash, err = a.hashPassword(string(password)); err != nil {
		return nil, err
	}
	if err := a.addUser(u); err != nil {
		return nil, err
	}
	a.audit("password set", name)
	return nil, nil
}

func (a *Admin) addUser(u User) error {
	err := a.store.addUser(u)
	if errors.Is(err, fs.ErrExist) {
		return errInput("There is a user " + u.Name + " already")
	}
	if err == nil {
		a.audit("user added", u.Name)
	}
	return err
}

func (a *Admin) inviteUser(r *http.Request) (any, error) {
	u, err := a.user(r)
	if err != nil {
		return nil, err
	}
	return a.invite(u)
}

// invite makes one for a user, or for the first user with User{}.
func (a *Admin) invite(u User) (inviteView, error) {
	i, secret := newInvite(u.Name, time.Now())
	err := a.store.addInvite(i)
	if u.Name != "" && errors.Is(err, fs.ErrNotExist) {
		return inviteView{}, errInput(u.Name + " is disabled")
	}
	if err != nil {
		return inviteView{}, err
	}
	a.audit("invite made", u.Name)
	return inviteView{a.base, secret}, nil
}

func (a *Admin) unlock(name string) error {
	if a.clear != nil {
		a.clear(name)
	}
	return nil
}

// filter answers the user that a list is asked for, "" for all.
func (a *Admin) filter(r *http.Request) (string, error) {
	if !r.URL.Query().Has("user") {
		return "", nil
	}
	u, err := a.user(r)
	return u.Name, err
}

func (a *Admin) listSessions(r *http.Request) (any, error) {
	name, err := a.filter(r)
	if err != nil {
		return nil, err
	}
	live, err := a.store.sessions(name, time.Now())
	slices.SortFunc(live, func(a, b Session) int {
		return cmp.Or(cmp.Compare(a.User, b.User), a.Created.Compare(b.Created))
	})
	shown := []sessionView{}
	for _, s := range live {
		v := viewSession(s)
		v.User = s.User
		shown = append(shown, v)
	}
	return shown, err
}

func (a *Admin) endSession(r *http.Request) (any, error) {
	s, err := a.store.findSession(r.URL.Query().Get("id"), time.Now())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errInput("There is no such session")
	}
	if err == nil {
		err = a.store.endSession(s.Key)
	}
	if err == nil {
		a.audit("session ended", s.User)
	}
	return nil, err
}

func (a *Admin) listTokens(r *http.Request) (any, error) {
	name, err := a.filter(r)
	if err != nil {
		return nil, err
	}
	all, err := a.store.tokens(name)
	slices.SortFunc(all, func(a, b Token) int {
		return cmp.Or(cmp.Compare(a.User, b.User), a.Created.Compare(b.Created))
	})
	shown := []tokenView{}
	for _, t := range all {
		v := viewToken(t)
		v.User = t.User
		shown = append(shown, v)
	}
	return shown, err
}

func (a *Admin) makeToken(r *http.Request) (any, error) {
	u, err := a.user(r)
	if err != nil {
		return nil, err
	}
	t, secret, err := newToken(u.Name, r.URL.Query().Get("name"), "", time.Now())
	if err == nil {
		err = a.store.addToken(t)
	}
	if problem := tokenProblem(err); problem != "" {
		return nil, errInput(problem)
	} else if errors.Is(err, fs.ErrNotExist) {
		return nil, errInput(u.Name + " is disabled")
	} else if err != nil {
		return nil, err
	}
	a.audit("token made", u.Name)
	v := viewToken(t)
	v.Token = secret
	return v, nil
}

func (a *Admin) removeToken(r *http.Request) (any, error) {
	all, err := a.store.tokens("")
	if err != nil {
		return nil, err
	}
	for _, t := range all {
		if t.Key.handle() == r.URL.Query().Get("id") {
			if err := a.store.removeToken(t.Key); err != nil {
				return nil, err
			}
			a.audit("token removed", t.User)
			return nil, nil
		}
	}
	return nil, errInput("There is no such token")
}

// importView is what became of an htpasswd file.
type importView struct {
	Imported int      `json:"imported"`
	Refused  []string `json:"refused"` // line number and why
}

func (a *Admin) importUsers(r *http.Request) (any, error) {
	done := importView{Refused: []string{}}
	lines := bufio.NewReader(r.Body)
	for n := 1; ; n++ {
		line, cut, err := lines.ReadLine() // 4,096 bytes at most: a name and a hash have 125
		for more := cut; more && err == nil; {
			_, more, err = lines.ReadLine()
		}
		if err == io.EOF && !cut {
			return done, nil
		} else if err != nil && err != io.EOF {
			return nil, fmt.Errorf("line %d: %w (%d imported)", n, err, done.Imported)
		}
		u, why := parseHtpasswd(string(line))
		if cut {
			why = "malformed"
		}
		if why == "" && u.Name == "" { // blank or a comment
			continue
		}
		if why == "" {
			u.Created = time.Now()
			if err := a.addUser(u); errors.As(err, new(errInput)) {
				why = "name taken"
			} else if err != nil {
				return nil, fmt.Errorf("line %d: %w (%d imported)", n, err, done.Imported)
			} else {
				done.Imported++
			}
		}
		if why != "" {
			done.Refused = append(done.Refused, fmt.Sprintf("line %d: %s", n, why))
		}
	}
}

// bcryptHash is what htpasswd -B ($2y$), Node's bcrypt ($2b$) and Go ($2a$)
// write. Go's own parser takes more, of which nothing can be verified.
var bcryptHash = regexp.MustCompile(`^\$2[aby]\$([0-9]{2})\$[./A-Za-z0-9]{53}$`)

const maxImportCost = 15 // over two seconds for one login

// parseHtpasswd answers a user without Name for a line that says nothing, or
// why the line is refused.
func parseHtpasswd(line string) (u User, why string) {
	line = strings.TrimRight(line, " \t\r")
	if line == "" || strings.HasPrefix(line, "#") {
		return User{}, ""
	}
	name, hash, ok := strings.Cut(line, ":")
	if !ok {
		return User{}, "malformed"
	}
	hash, _, _ = strings.Cut(hash, ":") // Apache ignores what follows
	if u.Name, ok = canonicalName(name); !ok {
		return User{}, "malformed name"
	}
	cost := bcryptHash.FindStringSubmatch(hash)
	if cost == nil {
		return User{}, "not bcrypt"
	}
	if n, _ := strconv.Atoi(cost[1]); n < bcrypt.MinCost || n > maxImportCost {
		return User{}, fmt.Sprintf("cost outside %d to %d", bcrypt.MinCost, maxImportCost)
	}
	u.Hash = hash
	return u, ""
}

// handleBackup is GET /backup: the file as it is.
func (a *Admin) handleBackup(w http.ResponseWriter, r *http.Request) {
	f, err := a.store.backup()
	if err != nil {
		a.fail(w, err)
		return
	}
	defer f.Close()
	file, err := f.Stat()
	if err != nil {
		a.fail(w, err)
		return
	}
	a.Log.Info("backup made", "bytes", file.Size(), "by", "operator")
	w.Header().Set("Content-Length", strconv.FormatInt(file.Size(), 10))
	io.Copy(w, f)
}
