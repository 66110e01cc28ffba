// record.go: the records in the database file and their indexes. All of it works
// inside a transaction that somebody else has begun.
package main

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"io/fs"
	"math"
	"strconv"
	"strings"
	"time"

	bolt "go.etcd.io/bbolt"
)

func getUser(tx *bolt.Tx, name string) (User, error) {
	key := []byte(name)
	f, err := unseal(key, tx.Bucket(bucketUsers).Get(key), 3)
	if err != nil {
		return User{}, err
	}
	u := User{Name: name, Hash: f[0], Disabled: f[1] == "disabled", Created: instant(f[2])}
	if len(f) > 3 {
		u.Groups = f[3]
	}
	return u, nil
}

func putUser(tx *bolt.Tx, u User) error {
	state := "enabled"
	if u.Disabled {
		state = "disabled"
	}
	key := []byte(u.Name)
	return tx.Bucket(bucketUsers).Put(key, seal(key, u.Hash, state, nanos(u.Created), u.Groups))
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

func record(tx *bolt.Tx, act Act) error {
	acts := tx.Bucket(bucketAudit)
	n, err := acts.NextSequence()
	if err != nil {
		return err
	}
	if n > maxActs {
		if err := acts.Delete(binary.BigEndian.AppendUint64(nil, n-maxActs)); err != nil {
			return err
		}
	}
	key := binary.BigEndian.AppendUint64(nil, n)
	return acts.Put(key, seal(key, nanos(act.At), act.User, act.By, act.What, act.Addr))
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

// startSession ends the sessions under ends, makes room for s, and puts it,
// unless s is the zero Session.
func startSession(tx *bolt.Tx, s Session, ends ...Key) error {
	if err := drop(tx, kindSession, ends...); err != nil || s.User == "" {
		return err
	}
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
