// cache.go: sessions that were read since the last write, so that a request of
// a user at work costs no read of the file.
package main

import (
	"encoding/binary"
	"sync/atomic"
)

// sessionCache is usable as it is. Each session has one place, which a session
// that was read later may take. Every write makes all of it void, which is
// simpler than to know what a write has changed, and reading again costs 4 µs.
type sessionCache struct {
	writes atomic.Uint64
	places [4096]atomic.Pointer[cachedSession] // about 2 MiB when full
}

type cachedSession struct {
	writes  uint64 // before it was read
	session Session
	user    User
}

// get returns what read returned for the session, maybe earlier.
func (c *sessionCache) get(k Key, read func() (Session, User, error)) (Session, User, error) {
	writes := c.writes.Load() // before the read: what is written meanwhile makes it void
	place := &c.places[binary.LittleEndian.Uint16(k[:])%uint16(len(c.places))]
	if found := place.Load(); found != nil && found.writes == writes && found.session.Key == k {
		return found.session, found.user, nil
	}
	s, u, err := read()
	if err == nil {
		place.Store(&cachedSession{writes, s, u})
	}
	return s, u, err
}

func (c *sessionCache) invalidate() { c.writes.Add(1) }
