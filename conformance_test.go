// conformance_test.go: what every store promises, and nothing that only one of
// them does. Times are whole microseconds: PostgreSQL keeps no more.
package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestStoreConformance(t *testing.T) {
	conformance(t, func(t *testing.T) fullStore { return tempStore(t) })
}

// conformance runs every promise against an empty store of its own.
func conformance(t *testing.T, open func(*testing.T) fullStore) {
	for _, promise := range []struct {
		name string
		run  func(conformed)
	}{
		{"user", conformed.testUser},
		{"users are in order of name", conformed.testUsers},
		{"one name is added once", conformed.testAddUserRace},
		{"many users", conformed.testAddUsers},
		{"a removed user is out", conformed.testRemoveUser},
		{"a disabled user is out", conformed.testDisableUser},
		{"login", conformed.testLogin},
		{"login after the password was replaced", conformed.testLoginLate},
		{"login replaces a weak hash", conformed.testLoginRehash},
		{"login meets a password change", conformed.testLoginRace},
		{"the oldest session makes room", conformed.testRoom},
		{"sessions that ended take no room", conformed.testRoomOfEnded},
		{"never more sessions than there is room", conformed.testRoomRace},
		{"password", conformed.testSetPassword},
		{"one of many password changes wins", conformed.testSetPasswordRace},
		{"session", conformed.testSession},
		{"a session ends at the instant", conformed.testSessionEnds},
		{"renewal", conformed.testRenew},
		{"renewal meets logout", conformed.testRenewRace},
		{"logout", conformed.testEndSession},
		{"sessions", conformed.testSessions},
		{"find a session", conformed.testFindSession},
		{"sweep", conformed.testSweep},
		{"sweeps at the same time", conformed.testSweepRace},
		{"sweep stops when told", conformed.testSweepStops},
		{"token", conformed.testToken},
		{"a token ends at the instant", conformed.testTokenEnds},
		{"tokens are limited", conformed.testTokenLimits},
		{"use of a token", conformed.testUseToken},
		{"invite", conformed.testInvite},
		{"an invite ends at the instant", conformed.testInviteEnds},
		{"accept an invite", conformed.testAcceptInvite},
		{"one of many accepts an invite", conformed.testAcceptInviteRace},
		{"the first user", conformed.testFirstUser},
		{"one of many is the first user", conformed.testFirstUserRace},
		{"factors", conformed.testFactors},
		{"factors and sessions", conformed.testFactorSessions},
		{"a code or challenge is used once", conformed.testCodeRace},
		{"passkeys", conformed.testPasskeys},
		{"acts", conformed.testActs},
		{"everything at once", conformed.testEverything},
		{"rings", conformed.testRings},
		{"ring ids are never used again", conformed.testRingIDs},
		{"rings are seeded once", conformed.testSeedRace},
		{"odd text", conformed.testOddText},
		{"what is returned belongs to the caller", conformed.testOwned},
	} {
		t.Run(promise.name, func(t *testing.T) { promise.run(conformed{t, open(t)}) })
	}
}

// conformed is a store under test.
type conformed struct {
	*testing.T
	fullStore
}

// noon is when the tests of the conformance begin.
var noon = time.Date(2030, 1, 2, 12, 0, 0, 123456000, time.UTC)

// is fails the test unless err is that: nil, fs.ErrNotExist, fs.ErrExist, errTooMany.
func (c conformed) is(what string, err, want error) {
	c.Helper()
	if want == nil && err != nil || !errors.Is(err, want) {
		c.Errorf("%.80q: got %v, want %v", what, err, want)
	}
}

func (c conformed) must(err error) {
	c.Helper()
	if err != nil {
		c.Fatal(err)
	}
}

// add makes a user whose hash is their name.
func (c conformed) add(name string) User {
	c.Helper()
	u := User{Name: name, Hash: "hash of " + name, Created: noon}
	c.must(c.addUser(u))
	return u
}

func newKey() Key { _, k := newSecret(); return k }

// newSession lives for an hour from created, or two with renewal.
func newSession(user string, created time.Time) Session {
	return Session{Key: newKey(), User: user, Created: created, Seen: created, Idle: created.Add(time.Hour),
		End: created.Add(2 * time.Hour), Addr: "192.0.2.1", Agent: "test"}
}

// in logs the user in.
func (c conformed) in(u User, created time.Time) Session {
	c.Helper()
	s := newSession(u.Name, created)
	c.must(c.login(u, s, nil, ""))
	return s
}

func (c conformed) isLive(what string, k Key, now time.Time, want bool) {
	c.Helper()
	_, _, err := c.session(k, now)
	if want {
		c.is(what, err, nil)
	} else {
		c.is(what, err, fs.ErrNotExist)
	}
}

// newToken of a user never expires.
func (c conformed) addNewToken(user, name string) Token {
	c.Helper()
	t := Token{Key: newKey(), User: user, Name: name, Created: noon}
	c.must(c.addToken(t))
	return t
}

func (c conformed) addNewInvite(user string) Invite {
	c.Helper()
	i := Invite{Key: newKey(), User: user, Created: noon, Expires: noon.Add(time.Hour)}
	c.must(c.addInvite(i))
	return i
}

// together runs fn n times at once and counts how often it succeeds. Every error
// must be one of those that are allowed.
func (c conformed) together(n int, fn func(i int) error, allowed ...error) (ok int) {
	c.Helper()
	var succeeded atomic.Int64
	var all sync.WaitGroup
	begin := make(chan struct{})
	for i := range n {
		all.Go(func() {
			<-begin
			err := fn(i)
			if err == nil {
				succeeded.Add(1)
			} else if !slices.ContainsFunc(allowed, func(a error) bool { return errors.Is(err, a) }) {
				c.Errorf("call %d of %d at once: %v", i, n, err)
			}
		})
	}
	close(begin)
	all.Wait()
	return int(succeeded.Load())
}

func (c conformed) testUser() {
	c.must(c.ping())
	_, err := c.user("frodo")
	c.is("nobody", err, fs.ErrNotExist)
	want := User{Name: "frodo", Hash: "$2a$12$abc", Created: noon}
	c.must(c.addUser(want))
	c.must(c.addUser(User{Name: "sam", Disabled: true, Created: noon}))
	got, err := c.user("frodo")
	c.is("user", err, nil)
	if got != want {
		c.Errorf("got %+v, want %+v", got, want)
	}
	if got, err := c.user("sam"); err != nil || !got.Disabled || got.Hash != "" {
		c.Errorf("a disabled user without password: %+v, %v", got, err)
	}
	for _, name := range []string{"Frodo", "frod", "frodo ", ""} {
		_, err := c.user(name)
		c.is(name, err, fs.ErrNotExist)
	}
	c.is("a name that is taken", c.addUser(User{Name: "frodo", Hash: "other", Created: noon}), fs.ErrExist)
	if got, _ := c.user("frodo"); got != want {
		c.Errorf("after that: %+v, want %+v", got, want)
	}
}

func (c conformed) testUsers() {
	names := []string{"b", "a.b", "a_b", "a-b", "ab", "a@b", "0"}
	for _, name := range names {
		c.add(name)
	}
	all, err := c.users()
	c.must(err)
	var got []string
	for _, u := range all {
		got = append(got, u.Name)
		if u.Hash != "hash of "+u.Name || !u.Created.Equal(noon) {
			c.Errorf("got %+v", u)
		}
	}
	slices.Sort(names)
	if !slices.Equal(got, names) {
		c.Errorf("got %q, want %q", got, names)
	}
}

func (c conformed) testAddUserRace() {
	ok := c.together(20, func(i int) error {
		return c.addUser(User{Name: "frodo", Hash: fmt.Sprint(i), Created: noon})
	}, fs.ErrExist)
	if ok != 1 {
		c.Errorf("%d of 20 succeeded", ok)
	}
	if all, err := c.users(); err != nil || len(all) != 1 {
		c.Errorf("users: %v, %v", all, err)
	}
}

func (c conformed) testAddUsers() {
	sam := c.add("sam")
	first := c.addNewInvite("sam")
	added, err := c.addUsers([]User{{Name: "frodo", Hash: "a", Created: noon}, {Name: "sam", Hash: "b", Created: noon},
		{Name: "merry", Hash: "c", Created: noon}, {Name: "frodo", Hash: "d", Created: noon}}, nil, Act{At: noon})
	if err != nil || !slices.Equal(added, []bool{true, false, true, false}) {
		c.Errorf("added %v, %v", added, err)
	}
	for name, hash := range map[string]string{"frodo": "a", "sam": sam.Hash, "merry": "c"} {
		if u, err := c.user(name); err != nil || u.Hash != hash {
			c.Errorf("%s: %+v, %v", name, u, err)
		}
	}
	_, err = c.invite(first.Key, noon)
	c.is("an invite of a user who was there", err, nil)
	if added, err := c.addUsers(nil, nil, Act{At: noon}); err != nil || len(added) != 0 {
		c.Errorf("none: added %v, %v", added, err)
	}
}

// isOut checks that nothing lets the user in any more.
func (c conformed) isOut(name string, s Session, t Token, i Invite) {
	c.Helper()
	c.isLive("session", s.Key, noon, false)
	_, _, err := c.token(t.Key, noon)
	c.is("token", err, fs.ErrNotExist)
	_, err = c.invite(i.Key, noon)
	c.is("invite", err, fs.ErrNotExist)
	c.is("accept", c.acceptInvite(i.Key, noon, User{Hash: "new"}, newSession(name, noon), nil), fs.ErrNotExist)
	if all, err := c.sessions(name, noon); err != nil || len(all) != 0 {
		c.Errorf("sessions: %v, %v", all, err)
	}
	if all, err := c.tokens(name); err != nil || len(all) != 0 {
		c.Errorf("tokens: %v, %v", all, err)
	}
}

func (c conformed) testRemoveUser() {
	c.is("nobody", c.removeUser("frodo"), fs.ErrNotExist)
	frodo, sam := c.add("frodo"), c.add("sam")
	s, t, i := c.in(frodo, noon), c.addNewToken("frodo", "t"), c.addNewInvite("frodo")
	others := c.in(sam, noon)
	c.must(c.removeUser("frodo"))
	_, err := c.user("frodo")
	c.is("user", err, fs.ErrNotExist)
	c.isOut("frodo", s, t, i)
	c.is("login", c.login(frodo, newSession("frodo", noon), nil, ""), fs.ErrNotExist)
	c.is("again", c.removeUser("frodo"), fs.ErrNotExist)
	c.isLive("another user's session", others.Key, noon, true)
	c.add("frodo")
	c.isOut("frodo", s, t, i)
}

func (c conformed) testDisableUser() {
	c.is("nobody", c.disableUser("frodo", true), fs.ErrNotExist)
	c.is("nobody", c.disableUser("frodo", false), fs.ErrNotExist)
	frodo, sam := c.add("frodo"), c.add("sam")
	s, t, i := c.in(frodo, noon), c.addNewToken("frodo", "t"), c.addNewInvite("frodo")
	others := c.in(sam, noon)
	for range 2 {
		c.must(c.disableUser("frodo", true))
		u, err := c.user("frodo")
		if want := (User{"frodo", frodo.Hash, true, noon, ""}); err != nil || u != want {
			c.Errorf("got %+v, %v, want %+v", u, err, want)
		}
	}
	c.isOut("frodo", s, t, i)
	for _, was := range []User{frodo, {Name: "frodo", Hash: frodo.Hash, Disabled: true, Created: noon}} {
		c.is("login", c.login(was, newSession("frodo", noon), nil, ""), fs.ErrNotExist)
		c.is("password", c.setPassword(was, "new", newSession("frodo", noon)), fs.ErrNotExist)
	}
	c.is("token", c.addToken(Token{Key: newKey(), User: "frodo", Name: "new", Created: noon}), fs.ErrNotExist)
	c.is("invite", c.addInvite(Invite{newKey(), "frodo", noon, noon.Add(time.Hour)}), fs.ErrNotExist)
	c.isLive("another user's session", others.Key, noon, true)
	c.must(c.disableUser("frodo", false))
	c.isOut("frodo", s, t, i)
	c.isLive("a new session", c.in(frodo, noon).Key, noon, true)
	kept := c.in(frodo, noon)
	c.must(c.disableUser("frodo", false))
	c.isLive("of a user who was enabled twice", kept.Key, noon, true)
}

func (c conformed) testLogin() {
	frodo, sam := c.add("frodo"), c.add("sam")
	first, others := c.in(frodo, noon), c.in(sam, noon)
	second := newSession("frodo", noon)
	c.must(c.login(frodo, second, []Key{first.Key}, ""))
	c.isLive("the session before", first.Key, noon, false)
	c.isLive("the new session", second.Key, noon, true)
	third := newSession("frodo", noon)
	c.must(c.login(frodo, third, []Key{others.Key}, "")) // one browser, another user
	c.isLive("another user's session before", others.Key, noon, false)
	c.isLive("a session elsewhere", second.Key, noon, true)
	c.must(c.login(frodo, newSession("frodo", noon), []Key{newKey()}, ""))
	c.must(c.login(frodo, newSession("frodo", noon), []Key{second.Key, newKey(), third.Key}, "")) // one browser, two cookies
	c.isLive("the first of two sessions before", second.Key, noon, false)
	c.isLive("the second", third.Key, noon, false)
}

func (c conformed) testLoginLate() {
	frodo := c.add("frodo")
	other := frodo
	other.Hash = "replaced"
	again := frodo
	again.Created = noon.Add(time.Second)
	nobody := User{Name: "gollum", Hash: frodo.Hash, Created: noon}
	before := c.in(frodo, noon)
	for name, was := range map[string]User{"another hash": other, "another user of the name": again, "nobody": nobody} {
		s := newSession(was.Name, noon)
		c.is("login, "+name, c.login(was, s, []Key{before.Key}, "new hash"), fs.ErrNotExist)
		c.isLive(name, s.Key, noon, false)
		c.is("password, "+name, c.setPassword(was, "new hash", s), fs.ErrNotExist)
		c.isLive(name, s.Key, noon, false)
		c.isLive(name+": the session before", before.Key, noon, true)
	}
	if u, err := c.user("frodo"); err != nil || u != frodo {
		c.Errorf("after all that: %+v, %v", u, err)
	}
	// Created may have more digits where it never went through the store.
	frodo.Created = frodo.Created.Add(time.Nanosecond)
	sam := User{Name: "sam", Hash: "x", Created: noon.Add(999)}
	c.must(c.addUser(sam))
	c.is("with the user as added", c.login(sam, newSession("sam", noon), nil, ""), nil)
	stored, err := c.user("sam")
	c.must(err)
	c.is("with the user as stored", c.login(stored, newSession("sam", noon), nil, ""), nil)
}

func (c conformed) testLoginRehash() {
	frodo := c.add("frodo")
	before := c.in(frodo, noon)
	s := newSession("frodo", noon)
	c.must(c.login(frodo, s, nil, "costlier"))
	want := frodo
	want.Hash = "costlier"
	if u, err := c.user("frodo"); err != nil || u != want {
		c.Errorf("got %+v, %v", u, err)
	}
	c.isLive("the session", s.Key, noon, true)
	c.isLive("the session before", before.Key, noon, true)
	c.is("with the old hash", c.login(frodo, newSession("frodo", noon), nil, ""), fs.ErrNotExist)
}

// Whoever got in with the old password while it was replaced is out after it.
func (c conformed) testLoginRace() {
	was := c.add("frodo")
	for round := range 20 {
		next, last := was, newSession("frodo", noon)
		next.Hash = fmt.Sprint("hash ", round)
		c.together(9, func(i int) error {
			if i == 4 {
				return c.setPassword(was, next.Hash, last)
			}
			return c.login(was, newSession("frodo", noon), nil, "")
		}, fs.ErrNotExist)
		live, err := c.sessions("frodo", noon)
		if err != nil || len(live) != 1 || live[0].Key != last.Key {
			c.Fatalf("round %d: %d sessions are live, %v; want that of the new password", round, len(live), err)
		}
		was = next
	}
}

func (c conformed) testRoom() {
	frodo, sam := c.add("frodo"), c.add("sam")
	others := c.in(sam, noon.Add(-time.Minute))
	var all []Session
	for i := range maxSessions {
		// The order in which they are made is not that of their age.
		all = append(all, c.in(frodo, noon.Add(time.Duration((i*37)%maxSessions)*time.Microsecond)))
	}
	slices.SortFunc(all, func(a, b Session) int { return a.Created.Compare(b.Created) })
	now := noon.Add(time.Second)
	last := newSession("frodo", now)
	c.must(c.login(frodo, last, []Key{all[maxSessions-1].Key}, ""))
	c.isLive("the oldest, where the login ended another", all[0].Key, now, true)
	all[maxSessions-1] = last
	for n := 1; n <= 2; n++ {
		c.in(frodo, now)
		for i, s := range all {
			c.isLive(fmt.Sprintf("%d more, session %d", n, i), s.Key, now, i >= n)
		}
	}
	if live, err := c.sessions("frodo", now); err != nil || len(live) != maxSessions {
		c.Errorf("%d sessions are live, %v", len(live), err)
	}
	c.isLive("another user's session", others.Key, now, true)
}

func (c conformed) testRoomOfEnded() {
	frodo := c.add("frodo")
	now := noon.Add(90 * time.Minute)
	var live []Session
	for i := range maxSessions - 1 {
		if i%3 == 0 { // is over now, and is the oldest or one of the youngest
			over := newSession("frodo", noon)
			if i%2 == 0 {
				over = newSession("frodo", now.Add(-time.Second))
				over.Idle = now
			}
			c.must(c.login(frodo, over, nil, ""))
		} else {
			live = append(live, c.in(frodo, noon.Add(time.Hour+time.Duration(i)*time.Second)))
		}
	}
	for range 20 {
		live = append(live, c.in(frodo, now))
	}
	for i, s := range live {
		c.isLive(fmt.Sprint("session ", i), s.Key, now, true)
	}
}

func (c conformed) testRoomRace() {
	frodo := c.add("frodo")
	c.together(maxSessions+20, func(int) error {
		return c.login(frodo, newSession("frodo", noon), nil, "")
	})
	if live, err := c.sessions("frodo", noon); err != nil || len(live) != maxSessions {
		c.Errorf("%d sessions are live, %v", len(live), err)
	}
}

func (c conformed) testSetPassword() {
	frodo, sam := c.add("frodo"), c.add("sam")
	before, t, i := c.in(frodo, noon), c.addNewToken("frodo", "t"), c.addNewInvite("frodo")
	others, othersInvite := c.in(sam, noon), c.addNewInvite("sam")
	s := newSession("frodo", noon)
	c.must(c.setPassword(frodo, "new hash", s))
	want := frodo
	want.Hash = "new hash"
	if u, err := c.user("frodo"); err != nil || u != want {
		c.Errorf("got %+v, %v", u, err)
	}
	c.isLive("the session before", before.Key, noon, false)
	c.isLive("the new session", s.Key, noon, true)
	c.isLive("another user's session", others.Key, noon, true)
	_, _, err := c.token(t.Key, noon)
	c.is("token", err, nil)
	_, err = c.invite(i.Key, noon)
	c.is("invite", err, fs.ErrNotExist)
	_, err = c.invite(othersInvite.Key, noon)
	c.is("another user's invite", err, nil)
}

func (c conformed) testSetPasswordRace() {
	was := c.add("frodo")
	for round := range 5 {
		var sessions [50]Session
		ok := c.together(len(sessions), func(i int) error {
			sessions[i] = newSession("frodo", noon)
			sessions[i].Addr = fmt.Sprint(round, i)
			return c.setPassword(was, sessions[i].Addr, sessions[i])
		}, fs.ErrNotExist)
		if ok != 1 {
			c.Fatalf("round %d: %d of %d succeeded", round, ok, len(sessions))
		}
		c.onlyIn("frodo")
		was, _ = c.user("frodo")
	}
}

// onlyIn checks that the user has one session, whose Addr is the hash.
func (c conformed) onlyIn(name string) {
	c.Helper()
	u, err := c.user(name)
	c.must(err)
	live, err := c.sessions(name, noon)
	if err != nil || len(live) != 1 || live[0].Addr != u.Hash {
		c.Errorf("hash %q with sessions %+v, %v", u.Hash, live, err)
	}
}

func (c conformed) testSession() {
	frodo := c.add("frodo")
	want := newSession("frodo", noon)
	want.Agent = "Mozilla/5.0 (ünïcode; 語) \"quoted\" \\backslash"
	c.must(c.login(frodo, want, nil, ""))
	got, u, err := c.session(want.Key, noon)
	c.must(err)
	if got != want || u != frodo {
		c.Errorf("got %+v of %+v, want %+v of %+v", got, u, want, frodo)
	}
	c.isLive("another key", newKey(), noon, false)
	c.isLive("no key", Key{}, noon, false)
	near := want.Key
	near[31]++
	c.isLive("a key that ends otherwise", near, noon, false)
	c.together(50, func(i int) error { // at once, each with a result of its own
		k, found := want.Key, error(nil)
		if i%2 == 1 {
			k, found = newKey(), fs.ErrNotExist
		}
		s, _, err := c.session(k, noon)
		if !errors.Is(err, found) || err == nil && s != want {
			return fmt.Errorf("got %+v, %v", s, err)
		}
		return nil
	})
}

func (c conformed) testSessionEnds() {
	frodo := c.add("frodo")
	s := c.in(frodo, noon)
	for _, at := range []struct {
		when time.Time
		want bool
	}{
		{noon, true}, {s.Idle.Add(-time.Microsecond), true}, {s.Idle, false}, {s.Idle.Add(time.Microsecond), false},
		{noon.Add(-clockSlack), true}, {noon.Add(-clockSlack - time.Microsecond), false},
		{noon.AddDate(-10, 0, 0), false}, {noon.AddDate(80, 0, 0), false}, {time.Unix(1, 0), false},
	} {
		c.isLive(fmt.Sprintf("idle end, %v after login", at.when.Sub(noon)), s.Key, at.when, at.want)
		live, err := c.sessions("frodo", at.when)
		if err != nil || len(live) == 1 != at.want {
			c.Errorf("%v after login: %d sessions, %v", at.when.Sub(noon), len(live), err)
		}
		_, err = c.findSession(s.Key.handle(), at.when)
		if (err == nil) != at.want {
			c.Errorf("%v after login: find: %v", at.when.Sub(noon), err)
		}
	}
	c.is("renewal at the idle end", c.renew(s.Key, s.Idle, s.Idle, s.End), fs.ErrNotExist)
	c.is("renewal before", c.renew(s.Key, s.Idle.Add(-time.Microsecond), s.Idle.Add(-time.Microsecond), s.End.Add(time.Hour)), nil)
	c.isLive("before the absolute end", s.Key, s.End.Add(-time.Microsecond), true)
	c.isLive("at the absolute end", s.Key, s.End, false)
	c.is("renewal at the absolute end", c.renew(s.Key, s.End, s.End, s.End.Add(time.Hour)), fs.ErrNotExist)
	c.isLive("at the absolute end, after that", s.Key, s.End, false)
}

func (c conformed) testRenew() {
	frodo := c.add("frodo")
	want, other := c.in(frodo, noon), c.in(frodo, noon)
	now, idle := noon.Add(50*time.Minute), noon.Add(100*time.Minute)
	c.must(c.renew(want.Key, now, now, idle))
	want.Seen, want.Idle = now, idle
	if got, _, err := c.session(want.Key, now); err != nil || got != want {
		c.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	c.is("at the same time", c.renew(want.Key, now, now, idle), nil)
	c.isLive("another session", other.Key, noon.Add(time.Hour), false)
	if n, err := c.Sweep(context.Background(), noon.Add(time.Hour)); err != nil || n != 1 {
		c.Errorf("swept %d, %v, want the session that was not renewed", n, err)
	}
	c.isLive("after the sweep", want.Key, noon.Add(time.Hour), true)
	c.is("nothing", c.renew(newKey(), now, now, idle), fs.ErrNotExist)
	c.must(c.endSessions(want.Key))
	c.is("after logout", c.renew(want.Key, now, now, idle), fs.ErrNotExist)
	c.isLive("after logout", want.Key, now, false)
	early := c.in(frodo, noon)
	c.is("before it was made", c.renew(early.Key, noon.Add(-clockSlack-time.Microsecond), noon.Add(-clockSlack-time.Microsecond), idle), fs.ErrNotExist)
}

func (c conformed) testRenewRace() {
	frodo := c.add("frodo")
	for round := range 30 {
		s := c.in(frodo, noon)
		c.together(6, func(i int) error {
			if i == 3 {
				return c.endSessions(s.Key)
			}
			return c.renew(s.Key, noon, noon, noon.Add(90*time.Minute+time.Duration(i)))
		}, fs.ErrNotExist)
		if c.isLive(fmt.Sprint("round ", round), s.Key, noon, false); c.Failed() {
			return
		}
	}
}

func (c conformed) testEndSession() {
	frodo := c.add("frodo")
	s, other := c.in(frodo, noon), c.in(frodo, noon)
	for range 2 {
		c.must(c.endSessions(s.Key))
		c.isLive("it", s.Key, noon, false)
	}
	c.must(c.endSessions(newKey()))
	c.must(c.endSessions(Key{}))
	c.isLive("another", other.Key, noon, true)
	third := c.in(frodo, noon)
	c.must(c.endSessions(other.Key, newKey(), third.Key))
	c.isLive("the first of two", other.Key, noon, false)
	c.isLive("the second", third.Key, noon, false)
}

func (c conformed) testSessions() {
	frodo, sam := c.add("frodo"), c.add("sam")
	c.add("frodo.b") // whose name begins with another's
	var want []Session
	for _, after := range []time.Duration{3, 1, 2} {
		want = append(want, c.in(frodo, noon.Add(after*time.Minute)))
	}
	others := c.in(sam, noon)
	slices.SortFunc(want, func(a, b Session) int { return a.Created.Compare(b.Created) })
	got, err := c.sessions("frodo", noon)
	if err != nil || !slices.Equal(got, want) {
		c.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	keys := func(all []Session) map[Key]bool {
		m := map[Key]bool{}
		for _, s := range all {
			m[s.Key] = true
		}
		return m
	}
	all, err := c.sessions("", noon)
	if err != nil || len(all) != 4 || !maps.Equal(keys(all), keys(append(want, others))) {
		c.Errorf("of all: %+v, %v", all, err)
	}
	if got, err := c.sessions("frodo", noon.Add(62*time.Minute)); err != nil || !slices.Equal(got, want[2:]) {
		c.Errorf("later: %+v, %v, want %+v", got, err, want[2:])
	}
	for _, name := range []string{"frodo.b", "nobody"} {
		if got, err := c.sessions(name, noon); err != nil || len(got) != 0 {
			c.Errorf("of %s: %+v, %v", name, got, err)
		}
	}
	c.must(c.endUserSessions("frodo"))
	c.must(c.endUserSessions("nobody"))
	if all, err := c.sessions("", noon); err != nil || len(all) != 1 || all[0] != others {
		c.Errorf("after frodo's have ended: %+v, %v", all, err)
	}
}

func (c conformed) testFindSession() {
	frodo := c.add("frodo")
	for range 10 {
		want := c.in(frodo, noon)
		got, err := c.findSession(want.Key.handle(), noon)
		if err != nil || got != want {
			c.Errorf("got %+v, %v, want %+v", got, err, want)
		}
		for _, handle := range []string{"", "0", "00", newKey().handle(), want.Key.handle()[2:], want.Key.handle() + "00",
			strings.ToUpper(want.Key.handle()) + "X", "zz", strings.Repeat("f", 200), want.Key.handle()[:18], "' or 1=1 --"} {
			_, err := c.findSession(handle, noon)
			c.is(handle, err, fs.ErrNotExist)
		}
	}
}

// fill logs users in n times in all, a quarter each.
func (c conformed) fill(n int, created time.Time) (all []Session) {
	c.Helper()
	var us [4]User
	for i := range us {
		us[i].Name = fmt.Sprint("user", i)
		if u, err := c.user(us[i].Name); err == nil {
			us[i] = u
		} else {
			us[i] = c.add(us[i].Name)
		}
	}
	all = make([]Session, n)
	c.together(n, func(i int) error {
		all[i] = newSession(us[i%len(us)].Name, created)
		return c.login(us[i%len(us)], all[i], nil, "")
	})
	return all
}

func (c conformed) testSweep() {
	background := context.Background()
	over, live := c.fill(250, noon), c.fill(30, noon.Add(time.Microsecond))
	c.must(c.addInvite(Invite{newKey(), "user0", noon, noon.Add(time.Hour)}))
	kept := Invite{newKey(), "user1", noon, noon.Add(time.Hour + time.Microsecond)}
	c.must(c.addInvite(kept))
	expired := Token{Key: newKey(), User: "user0", Name: "t", Created: noon, Expires: noon.Add(time.Minute)}
	c.must(c.addToken(expired))
	if n, err := c.Sweep(background, noon.Add(time.Hour-time.Microsecond)); err != nil || n != 0 {
		c.Errorf("too early: swept %d, %v", n, err)
	}
	now := noon.Add(time.Hour)
	if n, err := c.Sweep(background, now); err != nil || n != len(over)+1 {
		c.Errorf("swept %d, %v, want %d sessions and an invite", n, err, len(over))
	}
	// What was swept does not show at an earlier time either.
	all, err := c.sessions("", noon)
	if err != nil || len(all) != len(live) {
		c.Errorf("%d sessions are left, %v, want %d", len(all), err, len(live))
	}
	for _, s := range live {
		c.isLive("one that is not due", s.Key, now, true)
	}
	_, err = c.invite(kept.Key, now)
	c.is("an invite that is not due", err, nil)
	if all, err := c.tokens("user0"); err != nil || len(all) != 1 {
		c.Errorf("expired tokens: %v, %v, want it to stay where its owner sees it", all, err)
	}
	if n, err := c.Sweep(background, now); err != nil || n != 0 {
		c.Errorf("again: swept %d, %v", n, err)
	}
}

func (c conformed) testSweepRace() {
	over := c.fill(200, noon)
	now := noon.Add(time.Hour)
	var swept atomic.Int64
	c.together(7, func(i int) error {
		if i == 3 { // a login meanwhile
			frodo := c.add("frodo")
			return c.login(frodo, newSession("frodo", now), []Key{over[0].Key}, "")
		}
		n, err := c.Sweep(context.Background(), now)
		swept.Add(int64(n))
		return err
	})
	// The login may have ended one of them.
	if n := int(swept.Load()); n != len(over) && n != len(over)-1 {
		c.Errorf("swept %d, want each of %d once", n, len(over))
	}
	if all, err := c.sessions("", now); err != nil || len(all) != 1 {
		c.Errorf("%d sessions are left, %v, want one", len(all), err)
	}
}

func (c conformed) testSweepStops() {
	s := c.fill(10, noon)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := c.Sweep(ctx, noon.Add(time.Hour))
	c.is("sweep", err, context.Canceled)
	c.isLive("a session", s[0].Key, noon, true)
}

func (c conformed) testToken() {
	frodo := c.add("frodo")
	c.add("sam")
	want := Token{Key: newKey(), User: "frodo", Name: "backup 語 '\"\\", Created: noon, Expires: noon.Add(time.Hour)}
	c.must(c.addToken(want))
	got, u, err := c.token(want.Key, noon)
	if err != nil || got != want || u != frodo {
		c.Errorf("got %+v of %+v, %v, want %+v of %+v", got, u, err, want, frodo)
	}
	_, _, err = c.token(newKey(), noon)
	c.is("another key", err, fs.ErrNotExist)
	s := c.in(frodo, noon)
	_, _, err = c.token(s.Key, noon)
	c.is("a session's key", err, fs.ErrNotExist)
	c.isLive("a token's key", want.Key, noon, false)

	older := Token{Key: newKey(), User: "frodo", Name: "older", Created: noon.Add(-time.Minute)}
	others := Token{Key: newKey(), User: "sam", Name: "older", Created: noon}
	c.must(c.addToken(older))
	c.must(c.addToken(others))
	if got, err := c.tokens("frodo"); err != nil || !slices.Equal(got, []Token{older, want}) {
		c.Errorf("got %+v, %v", got, err)
	}
	if got, err := c.tokens(""); err != nil || len(got) != 3 || !slices.Contains(got, others) {
		c.Errorf("of all: %+v, %v", got, err)
	}
	for range 2 {
		c.must(c.removeToken(want.Key))
		_, _, err = c.token(want.Key, noon)
		c.is("removed", err, fs.ErrNotExist)
	}
	_, _, err = c.token(older.Key, noon)
	c.is("another", err, nil)
}

func (c conformed) testTokenEnds() {
	c.add("frodo")
	t := Token{Key: newKey(), User: "frodo", Name: "t", Created: noon, Expires: noon.Add(time.Hour)}
	c.must(c.addToken(t))
	ever := c.addNewToken("frodo", "ever")
	_, _, err := c.token(t.Key, t.Expires.Add(-time.Microsecond))
	c.is("before", err, nil)
	_, _, err = c.token(t.Key, t.Expires)
	c.is("at the instant", err, fs.ErrNotExist)
	if all, err := c.tokens("frodo"); err != nil || len(all) != 2 {
		c.Errorf("got %+v, %v, want the expired one too", all, err)
	}
	got, _, err := c.token(ever.Key, noon.AddDate(1000, 0, 0))
	if c.is("one that never expires", err, nil); got != ever {
		c.Errorf("got %+v, want %+v", got, ever)
	}
}

func (c conformed) testTokenLimits() {
	c.add("frodo")
	c.add("sam")
	add := func(user, name string) error {
		return c.addToken(Token{Key: newKey(), User: user, Name: name, Created: noon})
	}
	c.is("nobody", add("gollum", "t"), fs.ErrNotExist)
	ok := c.together(20, func(int) error { return add("frodo", "same") }, fs.ErrExist)
	if ok != 1 {
		c.Errorf("%d of 20 of one name", ok)
	}
	ok = c.together(maxTokens+10, func(i int) error { return add("frodo", fmt.Sprint(i)) }, errTooMany)
	if ok != maxTokens-1 {
		c.Errorf("%d beside one", ok)
	}
	c.is("one more", add("frodo", "more"), errTooMany)
	c.is("one more of the same name", add("frodo", "same"), fs.ErrExist)
	c.is("another user", add("sam", "same"), nil)
	all, err := c.tokens("frodo")
	if err != nil || len(all) != maxTokens {
		c.Fatalf("%d tokens, %v", len(all), err)
	}
	c.must(c.removeToken(all[0].Key))
	c.is("after one was removed", add("frodo", "more"), nil)
}

func (c conformed) testUseToken() {
	c.add("frodo")
	t := c.addNewToken("frodo", "t")
	t.Used = noon.Add(time.Minute)
	c.must(c.useToken(t.Key, t.Used))
	if got, _, err := c.token(t.Key, noon); err != nil || got != t {
		c.Errorf("got %+v, %v, want %+v", got, err, t)
	}
	c.must(c.removeToken(t.Key))
	c.is("removed", c.useToken(t.Key, noon), fs.ErrNotExist)
	_, _, err := c.token(t.Key, noon)
	c.is("removed", err, fs.ErrNotExist)
	for round := range 20 {
		t := c.addNewToken("frodo", "t")
		c.together(5, func(i int) error {
			if i == 2 {
				return c.removeToken(t.Key)
			}
			return c.useToken(t.Key, noon)
		}, fs.ErrNotExist)
		if _, _, err := c.token(t.Key, noon); !errors.Is(err, fs.ErrNotExist) {
			c.Fatalf("round %d: a removed token came back: %v", round, err)
		}
	}
}

func (c conformed) testInvite() {
	c.add("frodo")
	c.add("sam")
	older, others := c.addNewInvite("frodo"), c.addNewInvite("sam")
	if got, err := c.invite(older.Key, noon); err != nil || got != older {
		c.Errorf("got %+v, %v, want %+v", got, err, older)
	}
	newer := c.addNewInvite("frodo")
	for k, want := range map[Key]error{older.Key: fs.ErrNotExist, newer.Key: nil, others.Key: nil, newKey(): fs.ErrNotExist} {
		_, err := c.invite(k, noon)
		c.is("invite", err, want)
	}
	c.is("nobody", c.addInvite(Invite{newKey(), "gollum", noon, noon.Add(time.Hour)}), fs.ErrNotExist)
	c.is("a first user, where there are users", c.addInvite(Invite{newKey(), "", noon, noon.Add(time.Hour)}), fs.ErrNotExist)
}

func (c conformed) testInviteEnds() {
	c.add("frodo")
	i := c.addNewInvite("frodo")
	for _, at := range []struct {
		when time.Time
		want error
	}{
		{i.Expires.Add(-time.Microsecond), nil}, {i.Expires, fs.ErrNotExist},
		{noon.Add(-clockSlack), nil}, {noon.Add(-clockSlack - time.Microsecond), fs.ErrNotExist},
	} {
		_, err := c.invite(i.Key, at.when)
		c.is(fmt.Sprint(at.when.Sub(noon)), err, at.want)
		if at.want != nil {
			err := c.acceptInvite(i.Key, at.when, User{Hash: "new"}, newSession("frodo", at.when), nil)
			c.is(fmt.Sprint("accept, ", at.when.Sub(noon)), err, at.want)
		}
	}
	if u, err := c.user("frodo"); err != nil || u.Hash == "new" {
		c.Errorf("got %+v, %v", u, err)
	}
	s := newSession("frodo", i.Expires.Add(-time.Microsecond))
	c.is("accept in time", c.acceptInvite(i.Key, s.Created, User{Hash: "new"}, s, nil), nil)
}

func (c conformed) testAcceptInvite() {
	frodo, sam := c.add("frodo"), c.add("sam")
	before, others, elsewhere := c.in(frodo, noon), c.in(sam, noon), c.in(sam, noon)
	t, othersToken := c.addNewToken("frodo", "t"), c.addNewToken("sam", "t")
	i, othersInvite := c.addNewInvite("frodo"), c.addNewInvite("sam")
	s := newSession("frodo", noon)
	// What the caller takes the user for does not count, but the hash.
	u := User{Name: "frodo", Hash: "new", Created: noon.Add(time.Hour)}
	c.must(c.acceptInvite(i.Key, noon, u, s, []Key{others.Key}))
	want := frodo
	want.Hash = "new"
	if got, err := c.user("frodo"); err != nil || got != want {
		c.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	c.isLive("the new session", s.Key, noon, true)
	c.isLive("the session before", before.Key, noon, false)
	c.isLive("this browser's session before", others.Key, noon, false)
	c.isLive("another's session", elsewhere.Key, noon, true)
	_, _, err := c.token(t.Key, noon)
	c.is("token", err, fs.ErrNotExist)
	_, _, err = c.token(othersToken.Key, noon)
	c.is("another's token", err, nil)
	_, err = c.invite(i.Key, noon)
	c.is("the invite", err, fs.ErrNotExist)
	_, err = c.invite(othersInvite.Key, noon)
	c.is("another's invite", err, nil)
	c.is("again", c.acceptInvite(i.Key, noon, u, newSession("frodo", noon), nil), fs.ErrNotExist)
	c.is("nothing", c.acceptInvite(newKey(), noon, u, newSession("frodo", noon), nil), fs.ErrNotExist)
	c.isLive("the new session, after that", s.Key, noon, true)
}

func (c conformed) testAcceptInviteRace() {
	c.add("frodo")
	for round := range 5 {
		i := c.addNewInvite("frodo")
		ok := c.together(20, func(n int) error {
			s := newSession("frodo", noon)
			s.Addr = fmt.Sprint(round, n)
			return c.acceptInvite(i.Key, noon, User{Name: "frodo", Hash: s.Addr}, s, nil)
		}, fs.ErrNotExist)
		if ok != 1 {
			c.Fatalf("round %d: %d of 20 accepted it", round, ok)
		}
		c.onlyIn("frodo")
	}
}

func (c conformed) testFirstUser() {
	one, other := c.addNewInvite(""), c.addNewInvite("")
	for _, i := range []Invite{one, other} {
		if got, err := c.invite(i.Key, noon); err != nil || got != i {
			c.Errorf("got %+v, %v, want %+v", got, err, i)
		}
	}
	want := User{Name: "frodo", Hash: "hash", Created: noon}
	s := newSession("frodo", noon)
	c.must(c.acceptInvite(one.Key, noon, want, s, nil))
	if got, err := c.user("frodo"); err != nil || got != want {
		c.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	c.isLive("the session", s.Key, noon, true)
	void := func(what string, k Key) {
		c.Helper()
		_, err := c.invite(k, noon)
		c.is(what, err, fs.ErrNotExist)
		sam := User{Name: "sam", Hash: "hash", Created: noon}
		c.is(what+", accept", c.acceptInvite(k, noon, sam, newSession("sam", noon), nil), fs.ErrNotExist)
	}
	void("the other invite", other.Key)
	// Not even where there are no users any more.
	c.must(c.removeUser("frodo"))
	void("the other invite, in a store that has lost its users", other.Key)
	third := c.addNewInvite("")
	c.add("merry")
	void("an invite older than a user", third.Key)
	c.must(c.removeUser("merry"))
	void("an invite older than a user who is gone", third.Key)
	_, err := c.invite(c.addNewInvite("").Key, noon)
	c.is("a new invite", err, nil)
}

func (c conformed) testFirstUserRace() {
	for round := range 5 {
		invites := make([]Invite, 10)
		for i := range invites {
			invites[i] = c.addNewInvite("")
		}
		ok := c.together(2*len(invites), func(n int) error {
			name := fmt.Sprint("user", n)
			u := User{Name: name, Hash: "hash", Created: noon}
			return c.acceptInvite(invites[n/2].Key, noon, u, newSession(name, noon), nil)
		}, fs.ErrNotExist)
		if ok != 1 {
			c.Errorf("round %d: %d were the first", round, ok)
		}
		all, err := c.users()
		if err != nil || len(all) != 1 {
			c.Fatalf("round %d: users: %+v, %v", round, all, err)
		}
		if live, err := c.sessions("", noon); err != nil || len(live) != 1 {
			c.Errorf("round %d: sessions: %+v, %v", round, live, err)
		}
		c.must(c.removeUser(all[0].Name))
	}
}

// Whatever happens to a user at the same time, none of it fails the store.
func (c conformed) testEverything() {
	names := []string{"frodo", "sam"}
	for _, name := range names {
		c.add(name)
	}
	now := noon.Add(time.Hour) // the sessions of noon are over
	c.together(32, func(n int) (err error) {
		for round := range 5 {
			name, other := names[(n+round)%2], names[(n+round+1)%2]
			u, err := c.user(name)
			if unlessAbsent(err) != nil {
				return err
			}
			kept := newKey()
			if live, err := c.sessions(other, now); err != nil {
				return err
			} else if len(live) > 0 {
				kept = live[0].Key
			}
			i := Invite{newKey(), name, now, now.Add(time.Hour)}
			for _, err := range []error{
				c.login(u, newSession(name, noon), []Key{kept}, ""),
				c.login(u, newSession(name, now), []Key{kept}, "hash "+name+" again"),
				c.addInvite(i),
				c.addToken(Token{Key: newKey(), User: name, Name: fmt.Sprint(n, round), Created: now}),
				c.renew(kept, now, now, now.Add(time.Hour)),
				c.setPassword(u, fmt.Sprint(n, round), newSession(name, now)),
				c.acceptInvite(i.Key, now, User{Hash: fmt.Sprint(n)}, newSession(name, now), []Key{kept}),
				recording(c.fullStore, Act{At: now, User: name}).changeFactors(u, func(f *Factors) error {
					f.Passkeys = []Passkey{newPasskey("laptop")}
					return nil
				}, sessionsAfter{endKinds: []kind{kindToken}, ends: []Key{kept}, start: newSession(name, now)}),
			} {
				if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, errTooMany) {
					return err
				}
			}
			switch n % 8 {
			case 0:
				_, err = c.Sweep(context.Background(), now)
			case 1:
				err = c.endUserSessions(name)
			case 2:
				err = errors.Join(c.disableUser(name, true), c.disableUser(name, false))
			case 3:
				err = c.removeUser(name)
			case 4:
				err = c.addUser(User{Name: name, Hash: "h", Created: now})
			}
			if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrExist) {
				return err
			}
		}
		return nil
	})
}

func (c conformed) testRings() {
	c.must(c.seedRings())
	all, err := c.rings()
	c.must(err)
	want := slices.Clone(twentyRings)
	for i := range want {
		want[i].ID = i + 1
	}
	if !slices.Equal(all, want) {
		c.Errorf("got %v, want %v", all, want)
	}
	if got, err := c.ring(20); err != nil || got != (Ring{20, "The One Ring", "sauron"}) {
		c.Errorf("ring 20: %+v, %v", got, err)
	}
	changed := Ring{20, "The One Ring", "frodo"}
	c.must(c.setRing(changed))
	c.must(c.setRing(changed))
	if got, err := c.ring(20); err != nil || got != changed {
		c.Errorf("after a change: %+v, %v", got, err)
	}
	c.must(c.removeRing(20))
	for _, id := range []int{20, 21, 0, -1, 1 << 62} {
		_, err := c.ring(id)
		c.is(fmt.Sprint("ring ", id), err, fs.ErrNotExist)
		c.is(fmt.Sprint("change of ring ", id), c.setRing(Ring{id, "a", "b"}), fs.ErrNotExist)
		c.is(fmt.Sprint("removal of ring ", id), c.removeRing(id), fs.ErrNotExist)
	}
	c.must(c.seedRings())
	if all, err := c.rings(); err != nil || !slices.Equal(all, want[:19]) {
		c.Errorf("got %v, %v, want all but the last", all, err)
	}
	for i := range 19 {
		c.must(c.removeRing(i + 1))
	}
	c.must(c.seedRings())
	if all, err := c.rings(); err != nil || all == nil || len(all) != 0 {
		c.Errorf("got %#v, %v, want an empty list", all, err)
	}
}

func (c conformed) testRingIDs() {
	c.must(c.seedRings())
	ids := map[int]bool{}
	for range 3 {
		got, err := c.addRing(Ring{ID: 7, Name: "new", Bearer: "none"})
		c.must(err)
		if got.Name != "new" || got.Bearer != "none" || got.ID <= 20 || ids[got.ID] {
			c.Errorf("got %+v, where there had been %v", got, ids)
		}
		ids[got.ID] = true
		if stored, err := c.ring(got.ID); err != nil || stored != got {
			c.Errorf("stored %+v, %v, want %+v", stored, err, got)
		}
		c.must(c.removeRing(got.ID))
	}
	var mu sync.Mutex
	c.together(20, func(int) error {
		got, err := c.addRing(Ring{Name: "new", Bearer: "none"})
		mu.Lock()
		defer mu.Unlock()
		if ids[got.ID] {
			return fmt.Errorf("id %d twice", got.ID)
		}
		ids[got.ID] = true
		return err
	})
	if all, err := c.rings(); err != nil || len(all) != 40 || !slices.IsSortedFunc(all, func(a, b Ring) int { return a.ID - b.ID }) {
		c.Errorf("got %v, %v", all, err)
	}
}

func (c conformed) testSeedRace() {
	if ok := c.together(5, func(int) error { return c.seedRings() }); ok != 5 {
		c.Errorf("%d of 5 succeeded", ok)
	}
	if all, err := c.rings(); err != nil || len(all) != len(twentyRings) {
		c.Errorf("%d rings, %v", len(all), err)
	}
}

// What no user typed is not there; what a store cannot keep does not fail it.
func (c conformed) testOddText() {
	frodo := c.add("frodo")
	c.must(c.seedRings())
	for _, odd := range []string{"fro\x00do", "\x00", "fro\xffdo", "'; drop table users; --", "$1", "%", "\u2028", strings.Repeat("a", 10000)} {
		_, err := c.user(odd)
		c.is(odd, err, fs.ErrNotExist)
		c.is(odd, c.login(User{Name: odd}, newSession(odd, noon), nil, ""), fs.ErrNotExist)
		c.is(odd, c.removeUser(odd), fs.ErrNotExist)
		c.is(odd, c.endUserSessions(odd), nil)
		all, err := c.sessions(odd, noon)
		if c.is(odd, err, nil); len(all) != 0 {
			c.Errorf("sessions of %q: %v", odd, all)
		}
		_, err = c.findSession(odd, noon)
		c.is(odd, err, fs.ErrNotExist)

		s := newSession("frodo", noon)
		s.Addr, s.Agent = odd, odd
		c.is(odd, c.login(frodo, s, nil, ""), nil)
		c.isLive(odd, s.Key, noon, true)
		c.is(odd, c.addToken(Token{Key: newKey(), User: "frodo", Name: odd, Created: noon}), nil)
		added, err := c.addRing(Ring{Name: odd, Bearer: odd})
		c.is(odd, err, nil)
		_, err = c.ring(added.ID)
		c.is(odd, err, nil)
	}
	if u, err := c.user("frodo"); err != nil || u != frodo {
		c.Errorf("after all that: %+v, %v", u, err)
	}
}

func (c conformed) testOwned() {
	frodo := c.add("frodo")
	c.in(frodo, noon)
	c.addNewToken("frodo", "t")
	c.must(c.seedRings())
	for range 2 {
		c.together(8, func(int) error {
			rings, err := c.rings()
			if err != nil {
				return err
			}
			for i := range rings {
				if rings[i].Name == "" {
					return errors.New("somebody else's change shows")
				}
				rings[i] = Ring{}
			}
			return nil
		})
		live, err := c.sessions("frodo", noon)
		if err != nil || len(live) != 1 || live[0].User != "frodo" {
			c.Fatalf("sessions: %+v, %v", live, err)
		}
		live[0] = Session{}
		tokens, err := c.tokens("frodo")
		if err != nil || len(tokens) != 1 || tokens[0].User != "frodo" {
			c.Fatalf("tokens: %+v, %v", tokens, err)
		}
		tokens[0] = Token{}
	}
}

// change changes a user's factors.
func (c conformed) change(u User, change func(*Factors)) {
	c.Helper()
	c.must(c.changeFactors(u, func(f *Factors) error { change(f); return nil }, sessionsAfter{}))
}

func newPasskey(name string) Passkey {
	return Passkey{Key: newKey(), ID: "id", Name: name, PublicKey: []byte{1, 0, 2}, Count: 1 << 31, Created: noon, Used: noon.Add(time.Hour)}
}

func (c conformed) testFactors() {
	frodo, sam := c.add("frodo"), c.add("sam")
	for _, name := range []string{"frodo", "gollum"} {
		if has, err := c.factors(name); err != nil || !reflect.DeepEqual(has, Factors{}) {
			c.Errorf("%s, who has none: %+v, %v", name, has, err)
		}
	}
	want := Factors{Seed: "sealed", Created: noon.Add(123), Step: 1 << 40, Codes: []string{"a", "b"}, Passkeys: []Passkey{newPasskey("laptop"), newPasskey("ß")}}
	c.must(want.use("a challenge", noon.Add(time.Minute), noon))
	c.change(frodo, func(f *Factors) { *f = want })
	got, err := c.factors("frodo")
	if err != nil || !reflect.DeepEqual(got, want) {
		c.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	refused := errors.New("refused")
	c.is("a change that is refused", c.changeFactors(frodo, func(f *Factors) error {
		f.Codes, f.Passkeys, f.Seed = f.Codes[:1], nil, "other"
		return refused
	}, sessionsAfter{}), refused)
	if got, err := c.factors("frodo"); err != nil || !reflect.DeepEqual(got, want) {
		c.Errorf("after a change that was refused: %+v, %v", got, err)
	}
	all, err := c.everybodysFactors()
	if err != nil || len(all) != 1 || !reflect.DeepEqual(all["frodo"], want) {
		c.Errorf("everybody's: %+v, %v", all, err)
	}
	other, again := frodo, frodo
	other.Hash, again.Created = "replaced", noon.Add(time.Second)
	for what, was := range map[string]User{"another password": other, "another of the name": again, "nobody": {Name: "gollum"}} {
		c.is(what, c.changeFactors(was, func(f *Factors) error { f.Step++; return nil }, sessionsAfter{}), fs.ErrNotExist)
	}
	c.must(c.disableUser("frodo", true))
	c.is("disabled meanwhile", c.changeFactors(frodo, func(f *Factors) error { return nil }, sessionsAfter{start: newSession("frodo", noon)}), fs.ErrNotExist)
	disabled, err := c.user("frodo")
	c.must(err)
	c.change(disabled, func(f *Factors) { *f = Factors{} })
	c.must(c.disableUser("frodo", false))
	c.is("enabled meanwhile", c.changeFactors(disabled, func(f *Factors) error { return nil }, sessionsAfter{}), fs.ErrNotExist)
	c.change(sam, func(f *Factors) { f.Codes = []string{"sam's"} })
	if got, err := c.factors("frodo"); err != nil || got.Seed != "" || len(got.Passkeys)+len(got.Codes) != 0 {
		c.Errorf("after a reset: %+v, %v", got, err)
	}
}

// What a change of factors means for who is logged in.
func (c conformed) testFactorSessions() {
	frodo, sam := c.add("frodo"), c.add("sam")
	first, second, others := c.in(frodo, noon), c.in(frodo, noon), c.in(sam, noon)
	token := c.addNewToken("frodo", "t")
	fresh := newSession("frodo", noon)
	nothing := func(*Factors) error { return nil }
	c.must(c.changeFactors(frodo, nothing, sessionsAfter{ends: []Key{first.Key, newKey()}, start: fresh}))
	c.isLive("the one before", first.Key, noon, false)
	c.isLive("another", second.Key, noon, true)
	c.isLive("the fresh one", fresh.Key, noon, true)
	c.is("a change that is refused", c.changeFactors(frodo, func(*Factors) error { return errTooMany },
		sessionsAfter{endKinds: []kind{kindSession}, start: first}), errTooMany)
	c.isLive("after that", fresh.Key, noon, true)
	c.isLive("what it would have started", first.Key, noon, false)
	last := newSession("frodo", noon)
	c.must(c.changeFactors(frodo, nothing, sessionsAfter{endKinds: []kind{kindSession}, start: last}))
	for _, s := range []Session{second, fresh} {
		c.isLive("all of them", s.Key, noon, false)
	}
	c.isLive("the last", last.Key, noon, true)
	_, _, err := c.token(token.Key, noon)
	c.is("a token goes on", err, nil)
	c.must(c.changeFactors(frodo, nothing, sessionsAfter{endKinds: []kind{kindSession, kindToken}}))
	_, _, err = c.token(token.Key, noon)
	c.is("until it is ended too", err, fs.ErrNotExist)
	c.isLive("and the last", last.Key, noon, false)
	c.isLive("another user's", others.Key, noon, true)
}

// One code at once, from as many requests as there are, is one session.
func (c conformed) testCodeRace() {
	frodo := c.add("frodo")
	c.change(frodo, func(f *Factors) { f.Seed, f.Codes = "s", []string{"one", "two"} })
	for round := range 3 {
		ok := c.together(30, func(int) error {
			return c.changeFactors(frodo, func(f *Factors) error {
				if f.Step > int64(round) {
					return fs.ErrNotExist
				}
				f.Step = int64(round) + 1
				return nil
			}, sessionsAfter{start: newSession("frodo", noon)})
		}, fs.ErrNotExist)
		if live, err := c.sessions("frodo", noon); err != nil || ok != 1 || len(live) != round+1 {
			c.Fatalf("round %d: %d succeeded, %d sessions, %v", round, ok, len(live), err)
		}
	}
	ok := c.together(30, func(int) error {
		return c.changeFactors(frodo, func(f *Factors) error { return f.use("a challenge", noon.Add(time.Minute), noon) }, sessionsAfter{})
	}, fs.ErrNotExist)
	if ok != 1 {
		c.Errorf("a challenge was used %d times", ok)
	}
}

func (c conformed) testPasskeys() {
	frodo, sam := c.add("frodo"), c.add("sam")
	first, second := newPasskey("first"), newPasskey("second")
	owner := func(what string, p Passkey, want string) {
		c.Helper()
		u, err := c.passkeyUser(p.Key)
		if want == "" {
			c.is(what, err, fs.ErrNotExist)
		} else if err != nil || u.Name != want || u.Hash != "hash of "+want {
			c.Errorf("%s: got %+v, %v, want %s", what, u, err, want)
		}
	}
	owner("not added", first, "")
	c.change(frodo, func(f *Factors) { f.Passkeys = []Passkey{first, second} })
	owner("added", first, "frodo")
	theft := func(f *Factors) error { f.Passkeys = append(f.Passkeys, newPasskey("own"), second); return nil }
	c.is("another user's", c.changeFactors(sam, theft, sessionsAfter{}), fs.ErrExist)
	if has, err := c.factors("sam"); err != nil || len(has.Passkeys) != 0 {
		c.Errorf("after that: %+v, %v", has, err)
	}
	c.is("twice", c.changeFactors(frodo, func(f *Factors) error { f.Passkeys = append(f.Passkeys, first); return nil }, sessionsAfter{}), fs.ErrExist)
	owner("after that", second, "frodo")
	c.change(frodo, func(f *Factors) { f.Passkeys = f.Passkeys[1:] })
	owner("removed", first, "")
	owner("left", second, "frodo")
	c.change(sam, func(f *Factors) { f.Passkeys = []Passkey{first} })
	owner("free for another", first, "sam")
	c.must(c.disableUser("frodo", true))
	owner("of a disabled user", second, "")
	c.must(c.disableUser("frodo", false))
	owner("of an enabled one", second, "frodo")
	c.must(c.removeUser("frodo"))
	owner("of a removed one", second, "")
	if all, err := c.everybodysFactors(); err != nil || len(all) != 1 {
		c.Errorf("everybody's: %+v, %v", all, err)
	}
	c.add("frodo")
	if has, err := c.factors("frodo"); err != nil || !reflect.DeepEqual(has, Factors{}) {
		c.Errorf("of a new user of the name: %+v, %v", has, err)
	}
	owner("of that one", second, "")
	added, err := c.addUsers([]User{{Name: "merry", Hash: "m", Created: noon}, {Name: "sam", Hash: "x", Created: noon}},
		map[string]Factors{"merry": {Seed: "merry's"}, "sam": {Seed: "theft"}}, Act{At: noon})
	if err != nil || !slices.Equal(added, []bool{true, false}) {
		c.Errorf("added %v, %v", added, err)
	}
	for name, want := range map[string]string{"merry": "merry's", "sam": ""} {
		if has, err := c.factors(name); err != nil || has.Seed != want {
			c.Errorf("%s: %+v, %v", name, has, err)
		}
	}
}

// What is recorded is what was done, in the transaction that did it.
func (c conformed) testActs() {
	act := func(what, user string) Act {
		return Act{At: noon, User: user, By: "operator", What: what, Addr: "192.0.2.1"}
	}
	frodo := User{Name: "frodo", Hash: "hash of frodo", Created: noon}
	c.must(recording(c.fullStore, act("added", "frodo")).addUser(frodo))
	c.is("a name that is taken", recording(c.fullStore, act("added again", "frodo")).addUser(frodo), fs.ErrExist)
	none := sessionsAfter{}
	c.must(recording(c.fullStore, act("factor", "frodo")).changeFactors(frodo, func(f *Factors) error { f.Step = 7; return nil }, none))
	c.is("refused", recording(c.fullStore, act("refused", "frodo")).changeFactors(frodo, func(*Factors) error { return fs.ErrNotExist }, none), fs.ErrNotExist)
	c.must(recording(c.fullStore, act("ended", "frodo")).endSessions(newKey()))
	c.must(c.endSessions(newKey())) // by nobody
	_, err := c.addUsers([]User{{Name: "sam", Created: noon}, frodo}, nil, act("imported", ""))
	c.must(err)
	c.must(recording(c.fullStore, act("copied", "")).nothing())
	c.must(recording(c.fullStore, act("removed", "frodo")).removeUser("frodo"))
	for user, want := range map[string][]string{"frodo": {"added", "factor", "ended", "removed"}, "sam": {"imported"}, "merry": nil,
		"": {"added", "factor", "ended", "imported", "copied", "removed"}} {
		all, err := c.acts(user)
		c.must(err)
		var got []string
		for _, a := range all {
			got = append(got, a.What)
			whole := act(a.What, a.User)
			if a != whole || user != "" && a.User != user {
				c.Errorf("got %+v, want %+v", a, whole)
			}
		}
		if !slices.Equal(got, want) {
			c.Errorf("of %q: got %q, want %q", user, got, want)
		}
	}
}
