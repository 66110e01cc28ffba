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
	"hash/crc32"
	"io/fs"
	"math"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	bolt "go.etcd.io/bbolt"
)

// Key is the SHA-256 of a secret (a session's id, a token, an invite). The
// secret itself is never kept, so a copied database opens no door.
type Key [32]byte

// handle is the public name of a record: enough of its key (80 bits) to be
// unique, and of no use as the secret.
func (k Key) handle() string { return hex.EncodeToString(k[:10]) }

// User is a person who may log in.
type User struct {
	Name     string // as canonicalName makes it
	Hash     string // bcrypt; "": no password is set, and nobody can log in
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
	clockSlack  = 5 * time.Minute // a record from further in the future than this was made before the clock was put back
)

// Store keeps users and sessions. Every method is safe for concurrent use, is
// one transaction, and returns values that the caller owns. Absent, ended and
// expired are one error, fs.ErrNotExist; a name that is taken is fs.ErrExist;
// any other error means that the store failed, nothing was changed, and nobody
// may conclude that somebody is not logged in.
type Store interface {
	// user returns disabled users too.
	user(name string) (User, error)
	// addUser also deletes the invites that would make a first user.
	addUser(u User) error

	// login starts s for a user whose password was compared with was.Hash. It
	// is fs.ErrNotExist if the user has another hash by now or was disabled.
	// The sessions under ends are over. A hash that is not empty replaces the
	// user's (same password, higher cost).
	login(was User, s Session, ends []Key, hash string) error
	// session returns a live session and its user, who is not disabled.
	session(k Key, now time.Time) (Session, User, error)
	// sessions returns the live sessions of one user, the oldest first, or of
	// all users for "".
	sessions(user string, now time.Time) ([]Session, error)
	// renew moves the idle end of a session that is still live, and never
	// brings back one that is not.
	renew(k Key, now, idle time.Time) error
	// endSessions ends those that are not over yet.
	endSessions(keys ...Key) error

	// ping reads from the store.
	ping() error
	// Sweep deletes what expired before now and returns how many records that
	// were. Its cost grows with their number, not with what is kept, and its
	// transactions are short.
	Sweep(ctx context.Context, now time.Time) (int, error)
	Close() error
}

// BoltStore is the Store in one file. Its buckets:
//
//	ringward  "format" -> "1"
//	users     name -> User
//	sessions, tokens, invites
//	          Key -> owner, created, expires, and what else the record holds
//	owned     owner 0x00 kind created Key -> nothing (a user's records, oldest first)
//	expiry    expires kind Key -> nothing (what the sweep deletes, soonest first)
//
// Times in keys are big-endian nanoseconds since 1970.
type BoltStore struct {
	db     *bolt.DB
	path   string
	file   os.FileInfo // of the file as it was opened
	lastTx int         // id of the last write transaction; guarded by bbolt's lock of writers
	broken atomic.Bool // bbolt has panicked and keeps its locks: who came after would wait for ever
	cache  sessionCache
}

const format = "1"

var (
	bucketRingward = []byte("ringward")
	bucketUsers    = []byte("users")
	bucketOwned    = []byte("owned")
	bucketExpiry   = []byte("expiry")
	keyFormat      = []byte("format")
)

// kind tells apart the records that have an owner and an end.
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

var errDamaged = errors.New("the database is damaged: restore a backup")

// Close waits for what runs.
func (b *BoltStore) Close() error {
	if b.broken.Load() {
		return errDamaged
	}
	return b.db.Close()
}

// ping also notices a file that was removed or replaced under the running
// process: writes to it would succeed and then be lost.
func (b *BoltStore) ping() error {
	if err := b.inPlace(); err != nil {
		return err
	}
	return b.view(func(tx *bolt.Tx) error {
		if string(tx.Bucket(bucketRingward).Get(keyFormat)) != format {
			return errDamaged
		}
		return nil
	})
}

func (b *BoltStore) view(fn func(*bolt.Tx) error) error {
	if b.broken.Load() {
		return errDamaged
	}
	ended := false
	err := guard(func() error {
		err := b.db.View(func(tx *bolt.Tx) error { return guard(func() error { return fn(tx) }) })
		ended = true
		return err
	})
	if !ended {
		b.broken.Store(true)
	}
	return err
}

// update runs fn in a write transaction and returns when it is on disk. Calls
// of the same millisecond share one transaction and its fsync, so fn may run
// more than once; its changes are undone when it returns an error.
func (b *BoltStore) update(fn func(*bolt.Tx) error) error {
	defer b.cache.invalidate()                                          // after a failure too: it may show only when the change can be read already
	if err := b.view(func(*bolt.Tx) error { return nil }); err != nil { // Batch runs where no panic of bbolt is caught
		return err
	}
	return b.db.Batch(func(tx *bolt.Tx) error {
		return guard(func() error {
			if id := tx.ID(); b.lastTx == 0 || id == b.lastTx || id == b.lastTx+1 {
				b.lastTx = id
				return fn(tx)
			}
			return errors.New("the database file was overwritten while it was open: start again, if need be with a backup")
		})
	})
}

func (b *BoltStore) user(name string) (u User, err error) {
	err = b.view(func(tx *bolt.Tx) error { u, err = getUser(tx, name); return err })
	return u, err
}

func (b *BoltStore) addUser(u User) error {
	return b.update(func(tx *bolt.Tx) error { return addUser(tx, u) })
}

func (b *BoltStore) login(was User, s Session, ends []Key, hash string) error {
	return b.update(func(tx *bolt.Tx) error {
		u, err := getUnchanged(tx, was)
		if err != nil {
			return err
		}
		if hash != "" {
			u.Hash = hash
			if err := putUser(tx, u); err != nil {
				return err
			}
		}
		if err := drop(tx, kindSession, ends...); err != nil {
			return err
		}
		return startSession(tx, s)
	})
}

func (b *BoltStore) session(k Key, now time.Time) (Session, User, error) {
	s, u, err := b.cache.get(k, func() (s Session, u User, err error) {
		err = b.view(func(tx *bolt.Tx) error {
			if s, err = getSession(tx, k); err == nil {
				u, err = getUser(tx, s.User)
			}
			return err
		})
		return s, u, err
	})
	if err == nil && (!s.live(now) || u.Disabled) {
		err = fs.ErrNotExist
	}
	if err != nil {
		return Session{}, User{}, err
	}
	return s, u, nil
}

func (b *BoltStore) sessions(user string, now time.Time) (live []Session, err error) {
	err = b.view(func(tx *bolt.Tx) error {
		return eachKey(tx, kindSession, user, func(k Key) error {
			s, err := getSession(tx, k)
			if err == nil && s.live(now) {
				live = append(live, s)
			}
			return present(err)
		})
	})
	return live, err
}

// present is err unless that says that something is not there.
func present(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (b *BoltStore) renew(k Key, now, idle time.Time) error {
	return b.update(func(tx *bolt.Tx) error {
		s, err := getSession(tx, k)
		if err == nil && !s.live(now) {
			err = fs.ErrNotExist
		}
		if err == nil {
			err = drop(tx, kindSession, k)
		}
		if err != nil {
			return err
		}
		s.Seen, s.Idle = now, idle
		return putSession(tx, s)
	})
}

func (b *BoltStore) endSessions(keys ...Key) error {
	return b.update(func(tx *bolt.Tx) error { return drop(tx, kindSession, keys...) })
}

// sweepBatch is how many records one transaction of the sweep deletes. Each
// lies on pages of its own, which are written anew: half a millisecond on a
// slow disk. A request that writes waits for one transaction at most.
const sweepBatch = 32

func (b *BoltStore) Sweep(ctx context.Context, now time.Time) (swept int, err error) {
	due := func(tx *bolt.Tx) (keys [][]byte) {
		c := tx.Bucket(bucketExpiry).Cursor()
		for k, _ := c.First(); k != nil && len(keys) < sweepBatch && !keyTime(k).After(now); k, _ = c.Next() {
			keys = append(keys, bytes.Clone(k))
		}
		return keys
	}
	for ctx.Err() == nil {
		var keys [][]byte
		err := b.view(func(tx *bolt.Tx) error { keys = due(tx); return nil })
		if err != nil || len(keys) == 0 { // without a transaction that writes, and an fsync, for nothing
			return swept, err
		}
		err = b.update(func(tx *bolt.Tx) error {
			keys = due(tx) // those of this transaction: a session may have been renewed since
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
			if k, _ := tx.Bucket(bucketExpiry).Cursor().First(); len(keys) > 0 && bytes.Equal(k, keys[0]) {
				return errDamaged // keys out of order cannot be deleted, and would be due for ever
			}
			return nil
		})
		if err != nil {
			return swept, err
		}
		swept += len(keys)
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

func addUser(tx *bolt.Tx, u User) error {
	users := tx.Bucket(bucketUsers)
	if users.Get([]byte(u.Name)) != nil {
		return fs.ErrExist
	}
	if k, _ := users.Cursor().First(); k == nil {
		if err := dropOwned(tx, "", kindInvite); err != nil {
			return err
		}
	}
	return putUser(tx, u)
}

// getUnchanged returns the user if the password that was verified is theirs
// still.
func getUnchanged(tx *bolt.Tx, was User) (User, error) {
	u, err := getUser(tx, was.Name)
	if err == nil && (u.Hash != was.Hash || u.Disabled || !u.Created.Equal(was.Created)) {
		err = fs.ErrNotExist
	}
	return u, err
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
	var own, live []Key
	if err := eachKey(tx, kindSession, s.User, func(k Key) error { own = append(own, k); return nil }); err != nil {
		return err
	}
	if len(own) >= maxSessions {
		for _, k := range own {
			if other, err := getSession(tx, k); err == nil && other.live(s.Created) {
				live = append(live, k)
			} else if err := drop(tx, kindSession, k); err != nil {
				return err
			}
		}
		if over := len(live) + 1 - maxSessions; over > 0 {
			if err := drop(tx, kindSession, live[:over]...); err != nil {
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

// drop deletes records and their index entries; there may be none. The entries
// of a record that cannot be read are left to the sweep.
func drop(tx *bolt.Tx, kd kind, keys ...Key) error {
	bucket := tx.Bucket(bucketOf[kd])
	for _, k := range keys {
		f, err := unseal(k[:], bucket.Get(k[:]), ownedFields)
		if err == nil {
			if err := tx.Bucket(bucketOwned).Delete(ownedKey(kd, k, f[0], instant(f[1]))); err != nil {
				return err
			}
			if err := tx.Bucket(bucketExpiry).Delete(expiryKey(kd, k, instant(f[2]))); err != nil {
				return err
			}
		}
		if err := bucket.Delete(k[:]); err != nil {
			return err
		}
	}
	return nil
}

func dropOwned(tx *bolt.Tx, owner string, kinds ...kind) error {
	for _, kd := range kinds {
		var keys []Key
		if err := eachKey(tx, kd, owner, func(k Key) error { keys = append(keys, k); return nil }); err != nil {
			return err
		}
		if err := drop(tx, kd, keys...); err != nil {
			return err
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
