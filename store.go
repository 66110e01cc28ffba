// store.go: what is kept: the types, what every Store promises, and the Store in
// one bbolt file. No HTTP, no cookies, no goroutines, no logging.
//
// Rules of this file: nothing slow happens inside a transaction; what leaves a
// transaction is a copy, because bbolt's bytes die with it; what must be true
// together is written in one transaction.
package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"sync"
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
	Groups   string // sorted, a space between two
}

// Session is one login on one device.
type Session struct {
	Key     Key
	User    string
	Created time.Time // when this id was made
	Seen    time.Time // login or last renewal, when the cookie was set
	Idle    time.Time // refused from this instant on, unless renewed before
	End     time.Time // refused from this instant on, renewed or not
	Addr    string    // of the client that logged in, without port
	Agent   string    // its User-Agent, at most maxAgent bytes
}

// expires is the nearer of the session's two ends.
func (s Session) expires() time.Time { return earlier(s.Idle, s.End) }

// live is false from either end on.
func (s Session) live(now time.Time) bool {
	return now.Before(s.expires()) && !s.Created.After(now.Add(clockSlack))
}

// Act is something that was done to an account, for the record of such.
type Act struct {
	At   time.Time
	User string // whose account; "": nobody's
	By   string // the user who did it, or "operator"
	What string
	Addr string // of the client; "": a command
}

const (
	maxActs     = 100_000         // that are recorded; the oldest makes room
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
	// as returns the store whose next change is recorded as that act, in the
	// same transaction.
	as(act Act) Store

	// user returns disabled users too.
	user(name string) (User, error)
	// addUser also deletes the invites that would make a first user.
	addUser(u User) error

	// login starts s for a user whose password was compared with was.Hash. It
	// is fs.ErrNotExist if the user has another hash by now or was disabled.
	// The sessions under ends are over. A hash that is not empty replaces the
	// user's (same password, higher cost). Nothing starts with the zero Session.
	login(was User, s Session, ends []Key, hash string) error
	// session returns a live session and its user, who is not disabled.
	session(k Key, now time.Time) (Session, User, error)
	// sessions returns the live sessions of one user, the oldest first, or of
	// all users for "".
	sessions(user string, now time.Time) ([]Session, error)
	// renew moves Seen and the idle end of a session that is still live, and
	// never brings back one that is not.
	renew(k Key, now, seen, idle time.Time) error
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
//	ringward  "format" -> format
//	users     name -> User
//	sessions, tokens, invites
//	          Key -> owner, created, expires, and what else the record holds
//	factors   name -> what a user has besides the password
//	passkeys  Key -> name
//	audit     number -> Act
//	rings     number -> Ring (rings.go)
//	owned     owner 0x00 kind created Key -> nothing (a user's records, oldest first)
//	expiry    expires kind Key -> nothing (what the sweep deletes, soonest first)
//
// Times in keys are big-endian nanoseconds since 1970.
type BoltStore struct {
	*boltFile
	act *Act // that update records; nil: none
}

type boltFile struct {
	db     *bolt.DB
	path   string
	file   os.FileInfo // of the file as it was opened
	cache  sessionCache
	timed  func(write bool, took time.Duration) // is told how long a transaction took
	broken atomic.Bool                          // not to be used any more

	queueing   sync.Mutex // guards queue
	queue      []*write
	committing sync.Mutex // guards nextTx
	nextTx     int        // id that the next write transaction has; 0: not known
}

const format = "2"

var (
	bucketRingward = []byte("ringward")
	bucketUsers    = []byte("users")
	bucketOwned    = []byte("owned")
	bucketFactors  = []byte("factors")
	bucketPasskeys = []byte("passkeys")
	bucketAudit    = []byte("audit")
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

var buckets = [][]byte{bucketUsers, bucketFactors, bucketPasskeys, bucketAudit, bucketOwned, bucketExpiry,
	bucketOf[kindSession], bucketOf[kindToken], bucketOf[kindInvite]}

var (
	errDamaged = errors.New("the database is damaged: restore a backup")
	errChanged = errors.New("the database file was overwritten while it was open: start again, if need be with a backup")
)

// Close waits for what runs.
func (b *BoltStore) Close() error {
	if b.broken.Load() { // bbolt would wait for its own locks
		return errChanged
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

func (b *BoltStore) as(act Act) Store { return &BoltStore{b.boltFile, &act} }

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
		return startSession(tx, s, ends...)
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
			return unlessAbsent(err)
		})
	})
	return live, err
}

// unlessAbsent is err unless that says that something is not there.
func unlessAbsent(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (b *BoltStore) renew(k Key, now, seen, idle time.Time) error {
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
		s.Seen, s.Idle = seen, idle
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
