// Scs is net/http with github.com/alexedwards/scs/v2, its sessions in a bbolt
// file.
//
//	scs ADDR FILE
package main

import (
	"encoding/binary"
	"log"
	"net/http"
	"os"
	"time"

	"github.com/alexedwards/scs/v2"
	"go.etcd.io/bbolt"

	"ringward/bench/peer"
)

func main() {
	db, err := bbolt.Open(os.Args[2], 0o600, nil)
	if err != nil {
		log.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		_, err := tx.CreateBucketIfNotExists(bucket)
		return err
	})
	if err != nil {
		log.Fatal(err)
	}
	sessions := scs.New()
	sessions.Store = store{db}
	check := peer.Checker()
	failed := func(w http.ResponseWriter, err error) bool {
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
		return err != nil
	}

	mux := http.NewServeMux()
	mux.HandleFunc("POST /auth/session", func(w http.ResponseWriter, r *http.Request) {
		name := check(r)
		if name == "" {
			peer.Refuse(w)
			return
		}
		if failed(w, sessions.RenewToken(r.Context())) {
			return
		}
		sessions.Put(r.Context(), "username", name)
		peer.LoggedIn(w)
	})
	mux.HandleFunc("DELETE /auth/session", func(w http.ResponseWriter, r *http.Request) {
		if !failed(w, sessions.Destroy(r.Context())) {
			w.WriteHeader(http.StatusNoContent)
		}
	})
	mux.HandleFunc("GET /ringsofpower", func(w http.ResponseWriter, r *http.Request) {
		if sessions.GetString(r.Context(), "username") == "" {
			peer.Refuse(w)
			return
		}
		peer.Rings(w)
	})
	peer.Serve(sessions.LoadAndSave(mux))
}

// store is an scs.Store: token -> 8 bytes of expiry, data.
type store struct{ db *bbolt.DB }

var bucket = []byte("sessions")

func (s store) Find(token string) (data []byte, found bool, err error) {
	err = s.db.View(func(tx *bbolt.Tx) error {
		v := tx.Bucket(bucket).Get([]byte(token))
		if len(v) >= 8 && time.Now().UnixNano() < int64(binary.BigEndian.Uint64(v)) {
			data, found = append(data, v[8:]...), true
		}
		return nil
	})
	return data, found, err
}

func (s store) Commit(token string, data []byte, expiry time.Time) error {
	return s.db.Update(func(tx *bbolt.Tx) error {
		v := binary.BigEndian.AppendUint64(nil, uint64(expiry.UnixNano()))
		return tx.Bucket(bucket).Put([]byte(token), append(v, data...))
	})
}

func (s store) Delete(token string) error {
	return s.db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(bucket).Delete([]byte(token)) })
}
