// audit.go: what an operator looks up on the day when something is wrong: what
// was done to accounts, and who can get in now, and how.
package main

import (
	"cmp"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	bolt "go.etcd.io/bbolt"
)

// recording is Store.as for a store that can do more.
func recording[S Store](store S, act Act) S { return any(store.as(act)).(S) }

func (b *BoltStore) nothing() error { return b.update(func(*bolt.Tx) error { return nil }) }

func (b *BoltStore) acts(user string) (all []Act, err error) {
	err = b.view(func(tx *bolt.Tx) error {
		return tx.Bucket(bucketAudit).ForEach(func(key, value []byte) error {
			f, err := unseal(key, value, 5)
			if err == nil && (user == "" || f[1] == user) {
				all = append(all, Act{instant(f[0]), f[1], f[2], f[3], f[4]})
			}
			return err
		})
	})
	return all, err
}

type actView struct {
	At   time.Time `json:"at"`
	User string    `json:"username"`
	By   string    `json:"by"`
	What string    `json:"what"`
	From string    `json:"remoteAddr"`
}

// auditList also finds users who are there no more.
func (o *Operator) auditList(r commandCall, out io.Writer) error {
	name := ""
	if len(r.Args) > 0 {
		var err error
		if name, err = userName(r.Args); err != nil {
			return err
		}
	}
	all, err := o.store.acts(name)
	shown := []actView{}
	for _, a := range all {
		shown = append(shown, actView{seconds(a.At), a.User, a.By, a.What, a.Addr})
	}
	return list(out, r.JSON, err, shown, "TIME\tUSER\tBY\tWHAT\tFROM", func(a actView) []string {
		return []string{stamp(&a.At), a.User, a.By, a.What, a.From}
	})
}

type accessView struct {
	Username string     `json:"username"`
	Groups   []string   `json:"groups"`
	Password bool       `json:"password"` // logs in, with a factor if there is one
	Factors  []string   `json:"factors"`
	Tokens   int        `json:"tokens"`   // that count
	Sessions int        `json:"sessions"` // that are live
	LastUse  *time.Time `json:"lastUse"`  // of any of these; of a token to the hour
}

// access lists who can get in, to all or to one tool, and how. Who is disabled,
// or has nothing to get in with, is not in it.
func (o *Operator) access(r commandCall, out io.Writer) error {
	tool := &Tool{}
	if len(r.Args) > 0 {
		if tool = o.tools().find(r.Args[0]); tool == nil {
			return errInput("There is no tool " + r.Args[0] + " in the file of -tools")
		}
	}
	users, err := o.store.users()
	factors, err2 := o.store.everybodysFactors()
	tokens, err3 := o.store.tokens("")
	now := time.Now()
	live, err4 := o.store.sessions("", now)
	byUser := map[string]*accessView{}
	use := func(v *accessView, at time.Time) {
		if !at.IsZero() && (v.LastUse == nil || at.After(*v.LastUse)) {
			at = seconds(at)
			v.LastUse = &at
		}
	}
	shown := []accessView{}
	for _, u := range users {
		if !u.Disabled && tool.admits(u) {
			byUser[u.Name] = &accessView{Username: u.Name, Groups: strings.Fields(u.Groups), Password: u.Hash != "", Factors: factors[u.Name].names()}
			for _, p := range factors[u.Name].Passkeys {
				use(byUser[u.Name], p.Used)
			}
		}
	}
	for _, t := range tokens {
		if v := byUser[t.User]; v != nil && (t.Expires.IsZero() || now.Before(t.Expires)) {
			v.Tokens++
			use(v, t.Used)
		}
	}
	for _, s := range live {
		if v := byUser[s.User]; v != nil {
			v.Sessions++
			use(v, s.Seen)
		}
	}
	for _, u := range users {
		if v := byUser[u.Name]; v != nil && (v.Password || v.Tokens+v.Sessions > 0 || slices.Contains(v.Factors, "passkey")) {
			shown = append(shown, *v)
		}
	}
	return list(out, r.JSON, cmp.Or(err, err2, err3, err4), shown, "NAME\tGROUPS\tPASSWORD\tFACTORS\tTOKENS\tSESSIONS\tLAST USE", func(v accessView) []string {
		password := "no"
		if v.Password {
			password = "yes"
		}
		return []string{v.Username, strings.Join(v.Groups, ","), password, strings.Join(v.Factors, ","), strconv.Itoa(v.Tokens), strconv.Itoa(v.Sessions), stamp(v.LastUse)}
	})
}
