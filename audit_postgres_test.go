//go:build postgres

package main

import "testing"

// The tests of the audit run on PostgreSQL too.
func init() {
	breakAudit = func(t *testing.T, store Store) {
		_, err := store.(*pgStore).db.Exec(`drop table acts`)
		noErr(t, err)
	}
	fillAudit = func(t *testing.T, store Store) {
		_, err := store.(*pgStore).db.Exec(`insert into acts (at, username, actor, what, addr)
			select '1970-01-01', '', 'operator', 'filler', '' from generate_series(1, $1)`, maxActs)
		noErr(t, err)
	}
}
