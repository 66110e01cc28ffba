// backup.go: a consistent copy of the database while it is in use.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	bolt "go.etcd.io/bbolt"
)

// backup makes the copy in a file first: whoever reads it slowly would hold a
// transaction open, and with it every page that is freed meanwhile. Only what
// is live is copied: pages that were freed hold what was removed.
func (b *BoltStore) backup(to io.Writer) error {
	temp, err := os.CreateTemp(filepath.Dir(b.path), filepath.Base(b.path)+".backup-*")
	if err != nil {
		return err
	}
	defer temp.Close()
	err = compact(b.db, temp.Name())
	os.Remove(temp.Name())
	if err == nil {
		_, err = io.Copy(to, temp)
	}
	return err
}

// compact copies what is live into a file that is there and empty. bolt.Compact
// is not for a database that is written to: it writes its last values after the
// transaction that they are in has ended, when their pages may hold others.
func compact(from *bolt.DB, path string) error {
	to, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: time.Second})
	if err != nil {
		return err
	}
	to.AllocSize = 0 // as in openBolt
	err = guard(func() error {
		return from.View(func(tx *bolt.Tx) error {
			return tx.ForEach(func(name []byte, b *bolt.Bucket) error { return copyBucket(to, name, b) })
		})
	})
	return errors.Join(err, to.Close())
}

// copyBucket needs no more memory for a large bucket than for a small one.
func copyBucket(to *bolt.DB, name []byte, from *bolt.Bucket) error {
	c := from.Cursor()
	for k, v := c.First(); ; {
		err := to.Update(func(tx *bolt.Tx) error {
			b, err := tx.CreateBucketIfNotExists(name)
			if err != nil {
				return err
			}
			b.FillPercent = 1 // keys come in order
			for n := 0; n < 10_000 && k != nil && err == nil; n++ {
				err = b.Put(k, v)
				k, v = c.Next()
			}
			return errors.Join(err, b.SetSequence(from.Sequence()))
		})
		if err != nil || k == nil {
			return err
		}
	}
}

func (o *Operator) backup(r commandCall, out io.Writer) error {
	if err := o.store.backup(out); err != nil {
		return err
	}
	o.Log.Info("backup made", "by", "operator")
	return o.doing("backup made", "").nothing()
}

// saveBackup gives the copy its name when it is whole.
func saveBackup(ctx context.Context, c config, r commandCall, stdout io.Writer) error {
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
