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
	temp, err := copyOf(path, c.db)
	if err != nil {
		return err
	}
	defer os.Remove(temp)
	copied, err := OpenStore(temp) // which upgrades an older format
	if err != nil {
		return err
	}
	defer copied.Close()
	now, err := OpenStore(c.db)
	switch {
	case errors.Is(err, errInUse):
		return fmt.Errorf("stop the server first: %w", err)
	case err != nil:
		fmt.Fprintf(stdout, "the present database says nothing of who was put out since: %v\n", err)
	default:
		defer now.Close()
		err = keepOut(copied, now, stdout)
	}
	if now == nil {
		err = nil
	}
	if err == nil {
		err = copied.update(func(tx *bolt.Tx) error {
			if err := dropOwned(tx, "", kindSession, kindInvite); err != nil {
				return err
			}
			return record(tx, Act{At: time.Now(), By: "operator", What: "restored"})
		})
	}
	if err == nil {
		err = copied.Close()
	}
	if err != nil {
		return err
	}
	old := c.db + ".before-" + time.Now().UTC().Format("20060102T150405Z")
	if now != nil { // else somebody may use the file until its name is gone
		now.Close()
	}
	if err := os.Link(c.db, old); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Rename(temp, c.db); err != nil {
		return err
	}
	if err := syncFolder(c.db); err != nil {
		return err
	}
	_, err = fmt.Fprintf(stdout, "restored: %s; the database before is %s; everybody has to log in again\n", path, old)
	return err
}

// copyOf makes a compacted copy of a database beside another one.
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
	temp.Close()
	if err := compact(from, temp.Name()); err != nil {
		os.Remove(temp.Name())
		return "", fmt.Errorf("%s: %w", path, err)
	}
	return temp.Name(), nil
}

// keepOut takes from the copy what people have lost since it was made, and says
// what is different.
func keepOut(copied, now *BoltStore, stdout io.Writer) error {
	present := map[string]User{}
	tokens := map[Key]bool{}
	factors, err := now.everybodysFactors()
	users, err2 := now.users()
	kept, err3 := now.tokens("")
	old, err4 := copied.users()
	copies, err5 := copied.tokens("")
	if err := errors.Join(err, err2, err3, err4, err5); err != nil {
		return err
	}
	for _, u := range users {
		present[u.Name] = u
	}
	for _, t := range kept {
		tokens[t.Key] = true
	}
	return copied.update(func(tx *bolt.Tx) error {
		for _, u := range old {
			was, there := present[u.Name]
			delete(present, u.Name)
			if !there || !was.Created.Equal(u.Created) {
				u.Disabled = true
				fmt.Fprintf(stdout, "%s was removed since and comes back disabled: ringward user enable %s\n", u.Name, u.Name)
			} else {
				if u.Disabled = was.Disabled; u.Hash != was.Hash {
					fmt.Fprintf(stdout, "%s keeps the password of now\n", u.Name)
				}
				u.Hash = was.Hash
				for _, group := range strings.Fields(u.Groups) {
					if !slices.Contains(strings.Fields(was.Groups), group) {
						u.Groups = withGroup(u.Groups, group, false)
					}
				}
				if err := putFactors(tx, u.Name, factors[u.Name]); err != nil {
					return err
				}
			}
			if err := putUser(tx, u); err != nil {
				return err
			}
		}
		for name := range present {
			fmt.Fprintf(stdout, "%s was added since and is gone\n", name)
		}
		for _, t := range copies {
			if !tokens[t.Key] {
				fmt.Fprintf(stdout, "the token %s of %s was removed since and stays out\n", printable(t.Name), t.User)
				if err := drop(tx, kindToken, t.Key); err != nil {
					return err
				}
			}
		}
		return nil
	})
}
