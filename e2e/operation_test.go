//go:build linux

package e2e

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// actor is a client that counts what it was told was done, by the name that the
// audit has for it.
type actor struct {
	user   string
	cookie string            // of a session that stays
	proof  string            // that goes with it
	done   map[string]int    // acts
	asked  string            // the act that was asked for last, if that was not answered
	others []string          // cookies of more sessions
	tokens map[string]string // secrets by id
	n      int
}

// work sends requests until one is not answered.
func (a *actor) work(t *testing.T, s *server, random *rand.Rand, answered *atomic.Int32) {
	for ; ; answered.Add(1) {
		var r reply
		var then func()
		want := 204
		switch choice := random.IntN(4); {
		case a.cookie == "" || choice == 0 && len(a.others) < 3:
			a.asked, want = "login ok", 201
			r = s.do("POST", "/auth/session", credentials(a.user, password))
			then = func() { a.others = append(a.others, r.cookie()) }
			if a.cookie == "" {
				then = func() { a.cookie = r.cookie(); a.proof = s.proof(a.cookie, password) }
			}
		case choice == 1 && len(a.others) > 0:
			a.asked = "logout"
			r = s.do("DELETE", "/auth/session", "", a.others[0])
			then = func() { a.others = a.others[1:] }
		case choice == 2 && len(a.tokens) > 0:
			a.asked = "token removed"
			for id := range a.tokens {
				r = s.do("DELETE", "/auth/tokens/"+id, "", a.cookie)
				then = func() { delete(a.tokens, id) }
				break
			}
		case len(a.tokens) < 50:
			a.asked, want = "token made", 201
			a.n++
			r = s.do("POST", "/auth/tokens", object(map[string]string{"name": fmt.Sprint("token ", a.n)}), a.cookie, a.proof)
			then = func() {
				made := data[struct{ ID, Token string }](t, r)
				a.tokens[made.ID] = made.Token
			}
		default:
			continue
		}
		if r.status == 0 {
			return
		} else if r.status != want {
			t.Errorf("%s: %s was answered %d %s", a.user, a.asked, r.status, r.body)
			return
		}
		a.done[a.asked]++
		a.asked = ""
		then()
	}
}

// listed is what a list of the command line has.
type listed struct{ Username, By, What, ID, Name string }

func (p *program) listed(words ...string) (all []listed) {
	p.Helper()
	if err := json.Unmarshal([]byte(p.must("", append(words, "-json")...)), &all); err != nil {
		p.Fatal(err)
	}
	return all
}

// The server is killed while clients work, again and again: an act is there
// with its entry in the audit, or neither is.
func TestActsAreKeptWithTheirEntries(t *testing.T) {
	p := newProgram(t)
	actors := make([]*actor, 8)
	for i := range actors {
		actors[i] = &actor{user: fmt.Sprint("hobbit", i), done: map[string]int{}, tokens: map[string]string{}}
		p.addUser(actors[i].user)
	}
	total := int32(0)
	for range rounds(3) {
		s := p.serve()
		var work sync.WaitGroup
		var answered atomic.Int32
		for _, a := range actors {
			random := rand.New(rand.NewPCG(rand.Uint64(), 0))
			a.cookie = "" // the proof may be over
			work.Go(func() { a.work(t, s, random, &answered) })
		}
		enough := 100 + rand.Int32N(200)
		eventually(t, func() bool { return answered.Load() >= enough || t.Failed() })
		s.kill()
		work.Wait()
		total += answered.Load()

		acts, sessions, tokens := map[string]map[string]int{}, map[string]int{}, map[string]int{}
		for _, a := range actors {
			acts[a.user] = map[string]int{}
		}
		for _, act := range p.listed("audit") {
			acts[act.Username][act.What]++
		}
		for _, session := range p.listed("session", "list") {
			sessions[session.Username]++
		}
		for _, token := range p.listed("token", "list") {
			tokens[token.Username]++
		}
		for _, a := range actors {
			of := acts[a.user]
			if n := of["login ok"] - of["logout"]; n != sessions[a.user] {
				t.Errorf("%s: %d sessions by the audit, there are %d, after %q", a.user, n, sessions[a.user], a.asked)
			}
			if n := of["token made"] - of["token removed"]; n != tokens[a.user] {
				t.Errorf("%s: %d tokens by the audit, there are %d, after %q", a.user, n, tokens[a.user], a.asked)
			}
			for what, n := range of {
				more := n - a.done[what]
				if what != "user added" && (more < 0 || more > 1 || more == 1 && a.asked != what) {
					t.Errorf("%s: %q is there %d times, %d were answered, after %q", a.user, what, n, a.done[what], a.asked)
				}
				if what != "user added" {
					a.done[what] = n
				}
			}
			// What was not answered is as it is now.
			a.tokens, a.others = map[string]string{}, nil
			a.n += 1000
		}
		for _, token := range p.listed("token", "list") {
			for _, a := range actors {
				if a.user == token.Username {
					a.tokens[token.ID] = ""
				}
			}
		}
		if t.Failed() {
			t.FailNow()
		}
	}
	t.Logf("%d acts were answered and have their entries", total)
}

// A copy that was made while clients worked is restored after a crash: what was
// done before it began is there, what was taken away since stays away, and the
// old database is beside it.
func TestRestoreOfACopyMadeUnderLoad(t *testing.T) {
	p := newProgram(t)
	p.addUser("frodo", "sam", "merry")
	s := p.serve()
	busy := &actor{user: "merry", done: map[string]int{}, tokens: map[string]string{}}
	var work sync.WaitGroup
	var answered atomic.Int32
	work.Go(func() { busy.work(t, s, rand.New(rand.NewPCG(1, 2)), &answered) })
	eventually(t, func() bool { return answered.Load() >= 20 || t.Failed() })
	kept, lost := strings.TrimSpace(p.must("", "token", "add", "frodo", "kept")), strings.TrimSpace(p.must("", "token", "add", "frodo", "lost"))
	cookie := s.login("frodo")
	p.must("", "backup", "copy.db")
	for _, token := range p.listed("token", "list", "frodo") {
		if token.Name == "lost" {
			p.must("", "token", "remove", token.ID)
		}
	}
	p.must("", "user", "disable", "sam")
	more := answered.Load() + 20
	eventually(t, func() bool { return answered.Load() >= more || t.Failed() })
	if r := p.try("", "restore", "copy.db"); r.code != 1 || !strings.Contains(r.stderr, "stop the server first") {
		t.Errorf("beside the server: exit %d, %s", r.code, r.stderr)
	}
	s.kill()
	work.Wait()
	said := p.must("", "restore", "copy.db")
	if !strings.Contains(said, "restored: copy.db") || !strings.Contains(said, "the token lost of frodo was removed since and stays out\n") {
		t.Errorf("it says %s", said)
	}
	s = p.serve()
	s.want(200, "GET", "/ringsofpower", "", "Authorization: Bearer "+kept)
	s.want(401, "GET", "/ringsofpower", "", "Authorization: Bearer "+lost)
	s.want(401, "GET", "/auth/session", "", cookie)
	s.want(401, "POST", "/auth/session", credentials("sam", password))
	s.login("merry")
	for _, token := range p.listed("token", "list", "merry") {
		if secret := busy.tokens[token.ID]; secret == "" {
			t.Errorf("the token %s is back, which was removed", token.Name)
		}
	}
	s.stop()
	old, err := filepath.Glob(p.path("test.db.before-*"))
	if err != nil || len(old) != 1 {
		t.Fatalf("there are %v, %v", old, err)
	}
	if file, err := os.Stat(old[0]); err != nil || file.Mode() != 0o600 {
		t.Errorf("%v, %v", file, err)
	}
	if all := p.must("", "-db", old[0], "user", "list"); !strings.Contains(all, "sam    disabled") {
		t.Errorf("the old database has %s", all)
	}
}

func TestHealthcheck(t *testing.T) {
	p := newProgram(t)
	p.addUser("frodo")
	for _, c := range []struct{ listens, asks string }{{ownAddr(), ""}, {"127.0.0.1:0", ":"}, {"127.0.0.1:0", "0.0.0.0:"}} {
		s := p.serve("-addr", c.listens)
		if _, port, _ := net.SplitHostPort(s.addr()); c.asks == "" {
			c.asks = c.listens
		} else {
			c.asks += port
		}
		if r := p.try("", "-addr", c.asks, "healthcheck"); r.code != 0 || r.stdout+r.stderr != "" {
			t.Errorf("%s: exit %d, %s%s", c.asks, r.code, r.stdout, r.stderr)
		}
		s.stop()
		if r := p.try("", "-addr", c.asks, "healthcheck"); r.code != 1 || !strings.Contains(r.stderr, "connection refused") {
			t.Errorf("%s without a server: exit %d, %s", c.asks, r.code, r.stderr)
		}
	}
}
