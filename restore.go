// restore.go: a copy of the database takes the place of the one that is there.
// Nobody gets in by it who was put out since: sessions and invites end, and
// what the present database says against somebody holds.
package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
)

// restore is a command of its own, because it needs the server stopped.
func restore(c config, path string, stdout io.Writer) error {
	if isPostgres(c.db) {
		return errors.New("a PostgreSQL database is restored with pg_restore or psql")
	}
	if err := inspect(path); err != nil {
		return err
	}
	if target, err := filepath.EvalSymlinks(c.db); err == nil {
		c.db = target
	}
	temp, err := copyOf(path, c.db)
	defer os.Remove(temp)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	copied, err := OpenStore(temp) // which upgrades an older format
	if err != nil {
		return err
	}
	defer copied.Close()
	if err := readable(copied); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	old := ""
	if _, err := os.Stat(c.db); err == nil {
		old = c.db + ".before-" + time.Now().UTC().Format("20060102T150405.000Z")
		now, err := OpenStore(c.db)
		if errors.Is(err, errInUse) {
			return fmt.Errorf("stop the server first: %w", err)
		}
		if err == nil {
			defer now.Close() // when another file has its name
			err = readable(now)
		}
		if err != nil {
			fmt.Fprintf(stdout, "who was put out since the copy was made is in again, look at ringward access: the present database does not tell (%v)\n", err)
		} else if err := keepOut(copied, now, stdout); err != nil {
			return err
		}
	}
	err = copied.update(func(tx *bolt.Tx) error {
		if err := dropOwned(tx, "", kindSession, kindInvite); err != nil {
			return err
		}
		return record(tx, Act{At: time.Now(), By: "operator", What: "restored"})
	})
	if err = errors.Join(err, copied.Close()); err == nil && old != "" {
		err = os.Link(c.db, old)
	}
	if err == nil {
		err = errors.Join(os.Rename(temp, c.db), syncFolder(c.db))
	}
	if err == nil && old != "" {
		err = say(stdout, "the database before is now", old)
	}
	if err == nil {
		_, err = fmt.Fprintf(stdout, "restored: %s; everybody has to log in again\n", path)
	}
	return err
}

// copyOf makes a compacted copy of a database beside another one, for the same
// owner: root may restore for a server that is not root.
func copyOf(path, beside string) (name string, err error) {
	from, _, err := openBolt(path, true)
	if err != nil {
		return "", err
	}
	defer from.Close()
	temp, err := os.CreateTemp(filepath.Dir(beside), filepath.Base(beside)+".new-*")
	if err != nil {
		return "", err
	}
	defer temp.Close()
	like, err := os.Stat(beside)
	if err != nil {
		like, err = os.Stat(filepath.Dir(beside))
	}
	if err == nil {
		owner := like.Sys().(*syscall.Stat_t)
		err = temp.Chown(int(owner.Uid), int(owner.Gid))
	}
	if err == nil {
		err = compact(from, temp.Name())
	}
	return temp.Name(), err
}

// readable reads what a restored database is needed for.
func readable(b *BoltStore) error {
	_, err := b.users()
	_, err2 := b.everybodysFactors()
	_, err3 := b.tokens("")
	_, err4 := b.acts("")
	return errors.Join(err, err2, err3, err4)
}

// keepOut takes from the copy what people have lost since it was made, says what
// is different, and adds what was done since to the copy's acts.
func keepOut(copied, now *BoltStore, stdout io.Writer) error {
	users, err := now.users()
	factors, err2 := now.everybodysFactors()
	kept, err3 := now.tokens("")
	old, err4 := copied.users()
	copies, err5 := copied.tokens("")
	done, err6 := now.acts("")
	known, err7 := copied.acts("")
	if err := errors.Join(err, err2, err3, err4, err5, err6, err7); err != nil {
		return err
	}
	present, still, had, told := map[string]User{}, map[Key]bool{}, map[Key]bool{}, map[Act]bool{}
	for _, u := range users {
		present[u.Name] = u
	}
	for _, t := range kept {
		still[t.Key] = true
	}
	for _, t := range copies {
		had[t.Key] = true
	}
	for _, act := range known {
		told[act] = true
	}
	return copied.update(func(tx *bolt.Tx) error {
		for _, u := range old {
			was, there := present[u.Name]
			if there = there && was.Created.Equal(u.Created); there {
				if was.Disabled && !u.Disabled {
					fmt.Fprintf(stdout, "%s was disabled since and stays disabled\n", u.Name)
				}
				u.Disabled = was.Disabled
				if u.Hash != was.Hash {
					fmt.Fprintf(stdout, "%s keeps the password of now\n", u.Name)
				}
				u.Hash = was.Hash
				for _, group := range strings.Fields(u.Groups) {
					if !slices.Contains(strings.Fields(was.Groups), group) {
						fmt.Fprintf(stdout, "%s was taken out of %s since and stays out\n", u.Name, group)
						u.Groups = withGroup(u.Groups, group, false)
					}
				}
				for _, group := range strings.Fields(was.Groups) {
					if !slices.Contains(strings.Fields(u.Groups), group) {
						fmt.Fprintf(stdout, "%s was put into %s since and is out of it\n", u.Name, group)
					}
				}
				if err := putFactors(tx, u.Name, factors[u.Name]); err != nil {
					return err
				}
			} else {
				u.Disabled = true
				fmt.Fprintf(stdout, "%s was removed since and comes back disabled: ringward user enable %s\n", u.Name, u.Name)
			}
			if err := putUser(tx, u); err != nil {
				return err
			}
		}
		for _, u := range users {
			if _, err := getUser(tx, u.Name); errors.Is(err, fs.ErrNotExist) {
				fmt.Fprintf(stdout, "%s was added since and is gone\n", u.Name)
			}
		}
		for _, t := range copies {
			if !still[t.Key] {
				fmt.Fprintf(stdout, "the token %s of %s was removed since and stays out\n", printable(t.Name), t.User)
				if err := drop(tx, kindToken, t.Key); err != nil {
					return err
				}
			}
		}
		for _, t := range kept {
			if !had[t.Key] {
				fmt.Fprintf(stdout, "the token %s of %s was made since and is gone\n", printable(t.Name), t.User)
			}
		}
		for _, act := range done {
			if told[act] {
				continue
			}
			if err := record(tx, act); err != nil {
				return err
			}
		}
		return nil
	})
}
