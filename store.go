// store.go: what is kept, and how. The records, what every Store promises, and
// the Store in one bbolt file. No HTTP, no cookies, no goroutines, no logging.
//
// Rules of this file: nothing slow happens inside a transaction; what leaves a
// transaction is a copy, because bbolt's bytes die with it; what must be true
// together is written in one transaction.
package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// Key is the SHA-256 of a secret (a session's id, a token, an invite). The
// secret itself is never kept, so a copied database opens no door.
type Key [32]byte

// handle is the public name of a record: enough of its key (80 bits) to be
// unique, and of no use as the secret.
func (k Key) handle() string { return hex.EncodeToString(k[:handleBytes]) }

const handleBytes = 10

// User is a person who may log in. Name is canonical (canonicalName). An empty
// Hash means that no password is set yet: nobody can log in as this user.
type User struct {
	Name     string
	Hash     string
	Disabled bool
	Created  time.Time
}

// Session is one login on one device.
type Session struct {
	Key     Key
	User    string
	Created time.Time // when this id was made
	Seen    time.Time // login or last renewal
	Idle    time.Time // refused from this instant on, unless renewed before
	End     time.Time // refused from this instant on, renewed or not
	Addr    string    // of the client that logged in, without port
	Agent   string    // its User-Agent, at most maxAgent bytes
}

// expires is the nearer of the session's two ends.
func (s Session) expires() time.Time {
	if s.End.Before(s.Idle) {
		return s.End
	}
	return s.Idle
}

// live is false from either end on.
func (s Session) live(now time.Time) bool {
	return now.Before(s.expires()) && !s.Created.After(now.Add(clockSlack))
}

const (
	maxSessions = 100             // live ones of one user; the oldest makes room
	maxAgent    = 256             // bytes of a User-Agent that are kept
	clockSlack  = 5 * time.Minute // a record made later than this from now was made by a clock since put back
)

// Store keeps users and sessions. Every method is safe for concurrent use, is
// one transaction, and returns values that the caller owns. Absent, ended and
// expired are one answer, fs.ErrNotExist; a name that is taken is fs.ErrExist;
// any other error means that the store failed, nothing was changed, and nobody
// may conclude that somebody is not logged in.
type Store interface {
	// user answers disabled users too.
	user(name string) (User, error)
	// addUser also voids the invites with which anybody could have become the
	// first user.
	addUser(u User) error

	// login starts s for a user whose password was verified against was.Hash.
	// If that is no longer the user's hash, or the user was disabled, it is
	// fs.ErrNotExist: the password was replaced while it was verified. The
	// session under ends, if any, is over. A hash that is not empty replaces
	// the user's (same password, higher cost).
	login(was User, s Session, ends Key, hash string) error
	// setPassword replaces the hash of a user verified as in login, ends every
	// session and invite of the user, and starts s.
	setPassword(was User, hash string, s Session) error

	// session answers a live session and its user, who is not disabled.
	session(k Key, now time.Time) (Session, User, error)
	// renew moves the idle end of a session that is still live, and never
	// brings back one that is not.
	renew(k Key, now, idle time.Time) error
	// endSession is nil for a session that is already over.
	endSession(k Key) error

	// sweep deletes what expired before now and says how many records it was.
	// It costs what it deletes, not what is kept, in short transactions.
	sweep(ctx context.Context, now time.Time) (int, error)
	// ping reads from the store.
	ping() error
	close() error
}

// boltStore is the Store in one file. Its buckets:
//
//	ringward  "format" -> "1"
//	users     name -> User
//	sessions, tokens, invites
//	          Key -> owner, created, expires, and what else the record holds
//	owned     owner 0x00 kind created Key -> nothing (a user's records, oldest first)
//	expiry    expires kind Key -> nothing (what the sweep deletes, soonest first)
//
// Times in keys are big-endian nanoseconds since 1970.
type boltStore struct {
	db     *bolt.DB
	path   string
	file   os.FileInfo // of the file as it was opened
	broken atomic.Bool // bbolt cannot go on with the file, see errChanged
	next   uint64      // id of the next write transaction, 0: any; guarded by committing

	seen atomic.Pointer[reads] // what was read since the last write

	queueing   sync.Mutex // guards queue
	queue      []*write   // writes that the next commit takes along
	committing sync.Mutex // held by the one who commits
}

const format = "1"

var (
	bucketRingward = []byte("ringward")
	bucketUsers    = []byte("users")
	bucketOwned    = []byte("owned")
	bucketExpiry   = []byte("expiry")
	keyFormat      = []byte("format")
)

// kind is what a record with an owner and an end is.
type kind byte

const (
	kindSession kind = 's'
	kindToken   kind = 't'
	kindInvite  kind = 'i'
)

var bucketOf = map[kind][]byte{
	kindSession: []byte("sessions"),
	kindToken:   []byte("tokens"),
	kindInvite:  []byte("invites"),
}

var buckets = [][]byte{bucketUsers, bucketOwned, bucketExpiry,
	bucketOf[kindSession], bucketOf[kindToken], bucketOf[kindInvite]}

var (
	errInUse   = errors.New("is held by another process")
	errDamaged = errors.New("the database is damaged: restore a backup")
	errChanged = errors.New("the database file was changed while it was open: start again, if need be with a backup")
)

// openStore opens the bbolt file at path. It makes the file only when there is
// none. A file that is not a whole ringward database is refused and left as it
// is; one that another process holds is an error that wraps errInUse.
func openStore(path string) (*boltStore, error) {
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
	b := &boltStore{db: db, path: path, file: file}
	b.seen.Store(new(reads))
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
	err = db.Update(func(tx *bolt.Tx) error {
		b, err := tx.CreateBucket(bucketRingward)
		if err == nil {
			err = b.Put(keyFormat, []byte(format))
		}
		for _, name := range buckets {
			if err == nil {
				_, err = tx.CreateBucket(name)
			}
		}
		return err
	})
	if err := errors.Join(err, db.Sync(), db.Close()); err != nil {
		return err
	}
	return publish(temp.Name(), path)
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
			if whole := tx.Size() + int64(db.Info().PageSize); file.Size() < whole { // bbolt keeps a page in reserve
				return fmt.Errorf("%s is truncated (%d of %d bytes): restore a backup", path, file.Size(), whole)
			}
			b := tx.Bucket(bucketRingward)
			if b == nil {
				return fmt.Errorf("%s is another program's bbolt file, not a ringward database", path)
			}
			if f := b.Get(keyFormat); string(f) != format {
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

// openBolt opens a file that exists. bbolt maps the file and trusts what it
// finds, so a damaged one may fault or panic: that is an error here.
func openBolt(path string, readOnly bool) (db *bolt.DB, file os.FileInfo, err error) {
	var opened *os.File
	options := bolt.Options{
		Timeout:      time.Second, // 0 would wait for ever
		ReadOnly:     readOnly,
		FreelistType: bolt.FreelistMapType,
		NoStatistics: true,
		OpenFile: func(path string, flag int, mode os.FileMode) (_ *os.File, err error) {
			opened, err = os.OpenFile(path, flag&^os.O_CREATE, mode)
			return opened, err
		},
	}
	if !readOnly && strconv.IntSize == 64 && runtime.GOOS != "windows" {
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
	case errors.Is(err, bolterrors.ErrInvalid), errors.Is(err, bolterrors.ErrVersionMismatch):
		err = fmt.Errorf("%s is not a ringward database", path)
	case !errors.As(err, &system):
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

func (b *boltStore) close() error {
	if b.broken.Load() { // bbolt would wait for its own locks
		return errChanged
	}
	return b.db.Close()
}

// ping also notices a file that was removed or replaced under the running
// process: writes to it would be answered and then lost.
func (b *boltStore) ping() error {
	now, err := os.Stat(b.path)
	if err == nil && !os.SameFile(now, b.file) {
		err = errors.New("another file has taken its place")
	}
	if err != nil {
		return fmt.Errorf("the database file is gone; save what it held with the command backup: %w", err)
	}
	return b.view(func(tx *bolt.Tx) error {
		if string(tx.Bucket(bucketRingward).Get(keyFormat)) != format {
			return errDamaged
		}
		return nil
	})
}

func (b *boltStore) view(fn func(*bolt.Tx) error) error { return b.transact(b.db.View, fn) }

// transact runs fn in a transaction that begin begins. Where not fn but bbolt
// itself panics, it keeps its locks, and all who come after would wait for ever.
func (b *boltStore) transact(begin func(func(*bolt.Tx) error) error, fn func(*bolt.Tx) error) error {
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

// reads remembers sessions with their users. Every write of this process, the
// only one that has the file, begins a new one.
type reads struct {
	logins [maxLogins]atomic.Pointer[read] // each in one of the four places that its key names
	users  sync.Map                        // name -> User; when full it takes no more
	nUsers atomic.Int64
	lists  sync.Map // name -> []byte, what remembered answers
}

type read struct {
	session Session
	user    User
}

const (
	maxLogins = 2048  // about 1 MiB
	maxUsers  = 16384 // about 4 MiB
)

// login answers what is remembered of a session, or nil and the place to
// remember it: one that is free, or else one that another has to leave.
func (r *reads) login(k Key) (*read, *atomic.Pointer[read]) {
	var place *atomic.Pointer[read]
	for i := range 4 {
		p := &r.logins[binary.LittleEndian.Uint16(k[2*i:])%maxLogins]
		found := p.Load()
		if found != nil && found.session.Key == k {
			return found, nil
		}
		if found == nil || place == nil {
			place = p
		}
	}
	return nil, place
}

// remembered answers what read made of the store, anew after every write. The
// name is that of what is read; nobody may change the bytes.
func (b *boltStore) remembered(name string, read func() ([]byte, error)) ([]byte, error) {
	seen := b.seen.Load() // before the file is read: what a write changes meanwhile goes into the old one
	if made, ok := seen.lists.Load(name); ok {
		return made.([]byte), nil
	}
	made, err := read()
	if err == nil {
		seen.lists.Store(name, made)
	}
	return made, err
}

// write is a change that waits for its commit.
type write struct {
	fn   func(*bolt.Tx) error
	err  error
	done bool
}

// update runs fn in a write transaction and returns when it is on disk. Writes
// that wait for the same disk share one commit: a write alone pays one commit
// at once, a hundred at the same time pay two. fn may run more than once, and
// not at all after it has failed; it must look before it changes anything.
func (b *boltStore) update(fn func(*bolt.Tx) error) error {
	w := &write{fn: fn}
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
	defer b.seen.Store(new(reads)) // whether or not it succeeds: a commit may fail after it can be read
	for len(batch) > 0 {
		failed := -1
		var id uint64
		err := b.transact(b.db.Update, func(tx *bolt.Tx) error {
			if id = uint64(tx.ID()); b.next != 0 && b.next != id {
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
		if failed >= 0 { // its changes are rolled back; the others get another transaction
			batch[failed].err, batch[failed].done = err, true
			batch = append(batch[:failed:failed], batch[failed+1:]...)
			continue
		}
		if b.next = id + 1; err != nil { // it may be in the file all the same
			b.next = 0
		}
		for _, w := range batch {
			w.err, w.done = err, true
		}
		break
	}
	return w.err
}

func (b *boltStore) user(name string) (u User, err error) {
	err = b.view(func(tx *bolt.Tx) error { u, err = getUser(tx, name); return err })
	return u, err
}

func (b *boltStore) addUser(u User) error {
	return b.update(func(tx *bolt.Tx) error {
		users := tx.Bucket(bucketUsers)
		if users.Get([]byte(u.Name)) != nil {
			return fs.ErrExist
		}
		if k, _ := users.Cursor().First(); k == nil { // what invites there are would make the first user
			if err := dropOwned(tx, "", kindInvite); err != nil {
				return err
			}
		}
		return putUser(tx, u)
	})
}

func (b *boltStore) login(was User, s Session, ends Key, hash string) error {
	return b.update(func(tx *bolt.Tx) error {
		u, err := getVerified(tx, was)
		if err != nil {
			return err
		}
		if hash != "" {
			u.Hash = hash
			if err := putUser(tx, u); err != nil {
				return err
			}
		}
		if err := drop(tx, kindSession, ends); err != nil {
			return err
		}
		return startSession(tx, s)
	})
}

func (b *boltStore) setPassword(was User, hash string, s Session) error {
	return b.update(func(tx *bolt.Tx) error {
		u, err := getVerified(tx, was)
		if err != nil {
			return err
		}
		u.Hash = hash
		if err := putUser(tx, u); err != nil {
			return err
		}
		if err := dropOwned(tx, u.Name, kindSession, kindInvite); err != nil {
			return err
		}
		return startSession(tx, s)
	})
}

func (b *boltStore) session(k Key, now time.Time) (Session, User, error) {
	seen := b.seen.Load() // before the file is read: what a write changes meanwhile goes into the old one
	r, place := seen.login(k)
	if r == nil {
		r = new(read)
		err := b.view(func(tx *bolt.Tx) (err error) {
			if r.session, err = getSession(tx, k); err != nil {
				return err
			}
			if u, ok := seen.users.Load(r.session.User); ok {
				r.user = u.(User)
				return nil
			}
			if r.user, err = getUser(tx, r.session.User); err == nil && seen.nUsers.Add(1) <= maxUsers {
				seen.users.Store(r.user.Name, r.user)
			}
			return err
		})
		if err != nil {
			return Session{}, User{}, err
		}
		place.Store(r)
	}
	if !r.session.live(now) || r.user.Disabled {
		return Session{}, User{}, fs.ErrNotExist
	}
	return r.session, r.user, nil
}

func (b *boltStore) renew(k Key, now, idle time.Time) error {
	return b.update(func(tx *bolt.Tx) error {
		s, err := getLive(tx, k, now)
		if err != nil {
			return err
		}
		if err := drop(tx, kindSession, k); err != nil {
			return err
		}
		s.Seen, s.Idle = now, idle
		return putSession(tx, s)
	})
}

func (b *boltStore) endSession(k Key) error {
	return b.update(func(tx *bolt.Tx) error { return drop(tx, kindSession, k) })
}

// A transaction of the sweep takes along as many records as sweepTime allows
// on this disk, at least sweepLeast: each lies on pages of its own, which are
// written anew, and a request that writes waits for that.
const (
	sweepTime  = 5 * time.Millisecond
	sweepLeast = 8
)

func (b *boltStore) sweep(ctx context.Context, now time.Time) (swept int, err error) {
	most := sweepLeast
	due := func(tx *bolt.Tx) (keys [][]byte) {
		c := tx.Bucket(bucketExpiry).Cursor()
		for k, _ := c.First(); k != nil && len(keys) < most && !keyTime(k).After(now); k, _ = c.Next() {
			keys = append(keys, bytes.Clone(k))
		}
		return keys
	}
	for ctx.Err() == nil {
		idle := false
		if err := b.view(func(tx *bolt.Tx) error { idle = len(due(tx)) == 0; return nil }); idle || err != nil {
			return swept, err
		}
		n, begun := 0, time.Time{}
		err := b.update(func(tx *bolt.Tx) error {
			begun = time.Now()
			keys := due(tx) // those of this transaction: a session may have been renewed since
			n = len(keys)
			for _, k := range keys {
				if len(k) == 8+1+len(Key{}) {
					if err := drop(tx, kind(k[8]), Key(k[9:])); err != nil {
						return err
					}
				}
				if err := tx.Bucket(bucketExpiry).Delete(k); err != nil { // also where its record is gone
					return err
				}
			}
			if k, _ := tx.Bucket(bucketExpiry).Cursor().First(); n > 0 && bytes.Equal(k, keys[0]) {
				return errDamaged // keys out of order cannot be deleted, and would be due for ever
			}
			return nil
		})
		if err != nil {
			return swept, err
		}
		swept += n
		took := time.Since(begun)
		if took < sweepTime {
			most++
		} else {
			most = max(sweepLeast, most/2)
		}
		select { // the writes that waited go first
		case <-ctx.Done():
		case <-time.After(took):
		}
	}
	return swept, ctx.Err()
}

// The rest of this file works inside a transaction.

func getUser(tx *bolt.Tx, name string) (User, error) {
	key := []byte(name)
	f, err := unseal(key, tx.Bucket(bucketUsers).Get(key), 3)
	if err != nil {
		return User{}, err
	}
	return User{Name: name, Hash: f[0], Disabled: f[1] == "disabled", Created: instant(f[2])}, nil
}

func putUser(tx *bolt.Tx, u User) error {
	state := "enabled"
	if u.Disabled {
		state = "disabled"
	}
	key := []byte(u.Name)
	return tx.Bucket(bucketUsers).Put(key, seal(key, u.Hash, state, nanos(u.Created)))
}

// getVerified answers the user as they are now, if the password that was
// verified is still theirs.
func getVerified(tx *bolt.Tx, was User) (User, error) {
	u, err := getUser(tx, was.Name)
	if err == nil && (u.Hash != was.Hash || u.Disabled || !u.Created.Equal(was.Created)) {
		err = fs.ErrNotExist
	}
	return u, err
}

func getLive(tx *bolt.Tx, k Key, now time.Time) (Session, error) {
	s, err := getSession(tx, k)
	if err == nil && !s.live(now) {
		return Session{}, fs.ErrNotExist
	}
	return s, err
}

func getSession(tx *bolt.Tx, k Key) (Session, error) {
	f, err := unseal(k[:], tx.Bucket(bucketOf[kindSession]).Get(k[:]), ownedFields+5)
	if err != nil {
		return Session{}, err
	}
	return Session{Key: k, User: f[0], Created: instant(f[1]),
		Seen: instant(f[3]), Idle: instant(f[4]), End: instant(f[5]), Addr: f[6], Agent: f[7]}, nil
}

func putSession(tx *bolt.Tx, s Session) error {
	return put(tx, kindSession, s.Key, s.User, s.Created, s.expires(),
		nanos(s.Seen), nanos(s.Idle), nanos(s.End), s.Addr, s.Agent)
}

// startSession makes room for s and puts it.
func startSession(tx *bolt.Tx, s Session) error {
	var own []Key
	if err := eachKey(tx, kindSession, s.User, func(k Key) error { own = append(own, k); return nil }); err != nil {
		return err
	}
	if len(own) >= maxSessions {
		live := own[:0]
		for _, k := range own {
			if _, err := getLive(tx, k, s.Created); err == nil {
				live = append(live, k)
			} else if err := drop(tx, kindSession, k); err != nil {
				return err
			}
		}
		for ; len(live) >= maxSessions; live = live[1:] {
			if err := drop(tx, kindSession, live[0]); err != nil {
				return err
			}
		}
	}
	return putSession(tx, s)
}

// eachKey calls fn with the keys of an owner's records of a kind, the oldest
// first, or of everybody's, in no order that means anything, for the owner "".
// fn must not write.
func eachKey(tx *bolt.Tx, kd kind, owner string, fn func(Key) error) error {
	if owner == "" {
		return tx.Bucket(bucketOf[kd]).ForEach(func(k, _ []byte) error {
			if len(k) != len(Key{}) {
				return errDamaged
			}
			return fn(Key(k))
		})
	}
	prefix := append([]byte(owner), 0, byte(kd))
	c := tx.Bucket(bucketOwned).Cursor()
	for k, _ := c.Seek(prefix); bytes.HasPrefix(k, prefix); k, _ = c.Next() {
		if len(k) != len(prefix)+8+len(Key{}) {
			return errDamaged
		}
		if err := fn(Key(k[len(prefix)+8:])); err != nil {
			return err
		}
	}
	return nil
}

func ownedKey(kd kind, k Key, owner string, created time.Time) []byte {
	return append(appendTime(append([]byte(owner), 0, byte(kd)), created), k[:]...)
}

func expiryKey(kd kind, k Key, expires time.Time) []byte {
	return append(append(appendTime(nil, expires), byte(kd)), k[:]...)
}

func keyTime(k []byte) time.Time {
	if len(k) < 8 {
		return time.Time{}
	}
	return time.Unix(0, int64(binary.BigEndian.Uint64(k)))
}

// ownedFields is how many fields every record with an owner begins with: the
// owner, when it was made, when it expires (zero: never).
const ownedFields = 3

// put writes a record and its index entries.
func put(tx *bolt.Tx, kd kind, k Key, owner string, created, expires time.Time, more ...string) error {
	fields := append([]string{owner, nanos(created), nanos(expires)}, more...)
	err := tx.Bucket(bucketOf[kd]).Put(k[:], seal(k[:], fields...))
	if err == nil {
		err = tx.Bucket(bucketOwned).Put(ownedKey(kd, k, owner, created), nil)
	}
	if err == nil && !expires.IsZero() {
		err = tx.Bucket(bucketExpiry).Put(expiryKey(kd, k, expires), nil)
	}
	return err
}

// drop deletes a record and its index entries; there may be none. The entries
// of a record that cannot be read are left to the sweep.
func drop(tx *bolt.Tx, kd kind, k Key) error {
	bucket := tx.Bucket(bucketOf[kd])
	f, err := unseal(k[:], bucket.Get(k[:]), ownedFields)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		if err := tx.Bucket(bucketOwned).Delete(ownedKey(kd, k, f[0], instant(f[1]))); err != nil {
			return err
		}
		if err := tx.Bucket(bucketExpiry).Delete(expiryKey(kd, k, instant(f[2]))); err != nil {
			return err
		}
	}
	return bucket.Delete(k[:])
}

func dropOwned(tx *bolt.Tx, owner string, kinds ...kind) error {
	for _, kd := range kinds {
		var keys []Key
		if err := eachKey(tx, kd, owner, func(k Key) error { keys = append(keys, k); return nil }); err != nil {
			return err
		}
		for _, k := range keys {
			if err := drop(tx, kd, k); err != nil {
				return err
			}
		}
	}
	return nil
}

// A record is a version, its fields, and a CRC-32C over its key and all of
// that: bbolt does not notice a page that the disk has changed, and one user's
// record must never be read as another's. Fields hold no NUL, which parts them.

const recordVersion = "1"

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(key, record []byte) uint32 {
	return crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, record)
}

func seal(key []byte, fields ...string) []byte {
	record := []byte(recordVersion)
	for _, f := range fields {
		record = append(append(record, 0), strings.ReplaceAll(f, "\x00", " ")...)
	}
	return binary.BigEndian.AppendUint32(record, checksum(key, record))
}

// unseal copies the fields of a record, n or more, out of the transaction. No
// record is fs.ErrNotExist.
func unseal(key, record []byte, n int) ([]string, error) {
	if record == nil {
		return nil, fs.ErrNotExist
	}
	end := len(record) - 4
	if end < 0 || binary.BigEndian.Uint32(record[end:]) != checksum(key, record[:end]) {
		return nil, errDamaged
	}
	fields := strings.Split(string(record[:end]), "\x00")
	if len(fields) <= n || fields[0] != recordVersion {
		return nil, errDamaged
	}
	return fields[1:], nil
}

// Times are kept as nanoseconds since 1970; 0 is the zero time, and what is
// before 1970 or after lastInstant is moved there.

var lastInstant = time.Unix(0, math.MaxInt64) // in 2262

func unixNano(t time.Time) int64 {
	if t.After(lastInstant) {
		return math.MaxInt64
	}
	return max(1, t.UnixNano())
}

func nanos(t time.Time) string {
	if t.IsZero() {
		return "0"
	}
	return strconv.FormatInt(unixNano(t), 10)
}

func instant(nanos string) time.Time {
	n, err := strconv.ParseInt(nanos, 10, 64)
	if err != nil || n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n).UTC()
}

func appendTime(b []byte, t time.Time) []byte {
	return binary.BigEndian.AppendUint64(b, uint64(unixNano(t)))
}
