// file.go: the database file: how it is made, what is looked at before it is
// used, and what is refused. bbolt maps the file and trusts what it finds there.
package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

var errInUse = errors.New("is held by another process")

// OpenStore opens the bbolt file at path. It makes the file only when there is
// none. A file that is not a whole ringward database is refused and left as it
// is; one that another process holds is an error that wraps errInUse.
func OpenStore(path string) (*BoltStore, error) {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		if err := createStore(path); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("cannot make the database %s: %w", path, err)
		}
	}
	if err := inspect(path); err != nil {
		return nil, err
	}
	db, file, err := openBolt(path, false)
	if err != nil {
		return nil, err
	}
	if file.Mode().Perm() != 0o600 { // the umask may be anything, and so may whoever restored a backup
		if err := os.Chmod(path, 0o600); err != nil {
			db.Close()
			return nil, fmt.Errorf("cannot keep others from reading the database: %w", err)
		}
	}
	b := &BoltStore{&boltFile{db: db, path: path, file: file, timed: func(bool, time.Duration) {}}, nil}
	old := false
	err = b.view(func(tx *bolt.Tx) error {
		b.nextTx = tx.ID() + 1
		old = string(tx.Bucket(bucketRingward).Get(keyFormat)) != format
		return nil
	})
	if err == nil && old { // it lacks buckets; with them an older version refuses it
		err = b.update(makeBuckets)
	}
	if err != nil {
		b.Close()
		return nil, fmt.Errorf("cannot open %s: %w", path, err)
	}
	return b, nil
}

// createStore makes the file whole under another name first: a process killed
// while bbolt writes its first pages leaves a file that crashes the next one.
func createStore(path string) error {
	temp, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(temp.Name())
	if err := errors.Join(temp.Chmod(0o600), temp.Close()); err != nil { // whatever the umask took away
		return err
	}
	db, err := bolt.Open(temp.Name(), 0o600, &bolt.Options{Timeout: time.Second})
	if err != nil {
		return err
	}
	db.AllocSize = 0 // as in openBolt
	err = db.Update(makeBuckets)
	if err := errors.Join(err, db.Sync(), db.Close()); err != nil {
		return err
	}
	return publish(temp.Name(), path)
}

func makeBuckets(tx *bolt.Tx) error {
	b, err := tx.CreateBucketIfNotExists(bucketRingward)
	if err == nil {
		err = b.Put(keyFormat, []byte(format))
	}
	for _, name := range buckets {
		if err == nil {
			_, err = tx.CreateBucketIfNotExists(name)
		}
	}
	return err
}

// publish gives the finished file temp the name path, never in place of
// another file (fs.ErrExist), and returns when the folder is on disk too.
func publish(temp, path string) error {
	err := os.Link(temp, path)
	if err != nil && !errors.Is(err, fs.ErrExist) { // a file system without hard links
		// What appears between the two is replaced. To hold the name with an
		// empty file is worse: killed there, it keeps every next start out.
		if _, missing := os.Lstat(path); !errors.Is(missing, fs.ErrNotExist) {
			return fs.ErrExist
		}
		err = os.Rename(temp, path)
	}
	if err != nil {
		return err
	}
	os.Remove(temp)
	return syncFolder(path)
}

// syncFolder returns when the name of a file is on disk.
func syncFolder(path string) error {
	folder, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer folder.Close()
	return folder.Sync()
}

// inspect reads the file without ever writing to it.
func inspect(path string) error {
	file, err := os.Stat(path)
	switch {
	case err != nil:
		return err
	case !file.Mode().IsRegular():
		return fmt.Errorf("%s is not a file", path)
	case file.Size() == 0:
		return fmt.Errorf("%s is empty: restore a backup, or remove it to start anew", path)
	}
	db, file, err := openBolt(path, true)
	if err != nil {
		return err
	}
	defer db.Close()
	err = guard(func() error {
		return db.View(func(tx *bolt.Tx) error {
			if file.Size() >= tx.Size() && tx.Bucket(bucketRingward) == nil {
				return fmt.Errorf("%s is another program's bbolt file, not a ringward database", path)
			}
			if whole := tx.Size() + int64(db.Info().PageSize); file.Size() < whole { // bbolt keeps a page in reserve
				return fmt.Errorf("%s is truncated (%d of %d bytes): restore a backup", path, file.Size(), whole)
			}
			if f := string(tx.Bucket(bucketRingward).Get(keyFormat)); f == "1" { // OpenStore upgrades it
				return nil
			} else if f != format {
				return fmt.Errorf("%s has format %.20q, which this version does not know: use a newer ringward", path, f)
			}
			for _, name := range buckets {
				if tx.Bucket(name) == nil {
					return errDamaged
				}
			}
			return nil
		})
	})
	if errors.Is(err, errDamaged) {
		return fmt.Errorf("%s: %w", path, err)
	}
	return err
}

// openBolt opens a file that exists. A damaged one may fault or panic: that is
// an error here.
func openBolt(path string, readOnly bool) (db *bolt.DB, file os.FileInfo, err error) {
	var opened *os.File
	magic := make([]byte, 4)
	options := bolt.Options{
		Timeout:      time.Second, // 0 would wait for ever
		ReadOnly:     readOnly,
		FreelistType: bolt.FreelistMapType,
		NoStatistics: true,
		OpenFile: func(path string, flag int, mode os.FileMode) (_ *os.File, err error) {
			opened, err = os.OpenFile(path, flag&^os.O_CREATE, mode)
			opened.ReadAt(magic, 16) // of the first page; bbolt does not look there in a short file
			return opened, err
		},
	}
	if !readOnly && strconv.IntSize == 64 {
		// Address space only. A writer that outgrows the map waits for every
		// open read transaction, and new readers wait for it.
		options.InitialMmapSize = 1 << 30
	}
	err = guard(func() (err error) {
		if db, err = bolt.Open(path, 0o600, &options); err == nil {
			file, err = opened.Stat() // with the lock: who had it before may have let the file grow
		}
		return err
	})
	var system *fs.PathError
	switch {
	case err == nil:
		db.AllocSize = 0 // grow by what is needed, so that a file without its end is known from a whole one
	case errors.Is(err, bolterrors.ErrTimeout):
		err = fmt.Errorf("%s %w", path, errInUse)
	case errors.Is(err, bolterrors.ErrInvalid), errors.Is(err, bolterrors.ErrVersionMismatch),
		!errors.As(err, &system) && string(magic) != "\xed\xda\x0c\xed":
		err = fmt.Errorf("%s is not a ringward database", path)
	case errors.As(err, &system):
	case string(magic) != "\xed\xda\x0c\xed":
		err = fmt.Errorf("%s is not a ringward database", path)
	default:
		err = fmt.Errorf("%s is damaged or not a whole ringward database: restore a backup (%w)", path, err)
	}
	return db, file, err
}

// guard turns a panic or a fault of the mapped file into errDamaged.
func guard(fn func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w (%v)", errDamaged, p)
		}
	}()
	return fn()
}

// inPlace says whether path is the file that was opened still.
func (b *BoltStore) inPlace() error {
	now, err := os.Stat(b.path)
	if err == nil && !os.SameFile(now, b.file) {
		err = errors.New("another file has taken its place")
	}
	if err != nil {
		return fmt.Errorf("the database file is gone; save what it held with the command backup: %v", err) // not that it is fs.ErrNotExist
	}
	return nil
}

func (b *BoltStore) view(fn func(*bolt.Tx) error) error {
	defer b.time(false, time.Now())
	return b.transact(b.db.View, fn)
}

// transact runs fn in a transaction that begin begins. Where not fn but bbolt
// itself panics it keeps its locks, and all who come after would wait for ever.
func (b *BoltStore) transact(begin func(func(*bolt.Tx) error) error, fn func(*bolt.Tx) error) error {
	if b.broken.Load() {
		return errChanged
	}
	ended := false
	err := guard(func() error {
		err := begin(func(tx *bolt.Tx) error { return guard(func() error { return fn(tx) }) })
		ended = true
		return err
	})
	if !ended {
		b.broken.Store(true)
	}
	return err
}

// write is a change that waits for its commit.
type write struct {
	fn   func(*bolt.Tx) error
	err  error
	done bool
}

// update runs fn in a write transaction and returns when it is on disk. Calls
// that come while another one commits share the next commit and its fsync, so
// fn may run more than once; its changes are undone when it returns an error.
// (bolt.DB.Batch does the same in a goroutine of its own, where a fault of the
// mapped file or a panic over a damaged page ends the process.)
func (b *BoltStore) update(fn func(*bolt.Tx) error) error {
	defer b.time(true, time.Now())
	w := &write{fn: fn}
	if b.act != nil {
		w.fn = func(tx *bolt.Tx) error {
			if err := fn(tx); err != nil {
				return err
			}
			return record(tx, *b.act)
		}
	}
	b.queueing.Lock()
	b.queue = append(b.queue, w)
	b.queueing.Unlock()

	b.committing.Lock()
	defer b.committing.Unlock()
	if w.done {
		return w.err
	}
	b.queueing.Lock()
	batch := b.queue
	b.queue = nil
	b.queueing.Unlock()
	defer b.cache.invalidate() // after a failure too: it may show only when the change can be read already
	for len(batch) > 0 {
		failed, id := -1, 0
		err := b.transact(b.db.Update, func(tx *bolt.Tx) error {
			if id = tx.ID(); b.nextTx != 0 && id != b.nextTx {
				b.broken.Store(true) // what bbolt knows of free pages is not true of this file
				return errChanged
			}
			for i, w := range batch {
				if err := guard(func() error { return w.fn(tx) }); err != nil {
					failed = i
					return err
				}
			}
			return nil
		})
		if failed >= 0 { // its changes are undone; the others get another transaction
			batch[failed].err, batch[failed].done = err, true
			batch = slices.Delete(batch, failed, failed+1)
			continue
		}
		if b.nextTx = id + 1; err != nil { // it may be in the file all the same
			b.nextTx = 0
		}
		for _, w := range batch {
			w.err, w.done = err, true
		}
		break
	}
	return w.err
}

func (b *BoltStore) time(write bool, from time.Time) { b.timed(write, time.Since(from)) }
