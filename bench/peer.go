//go:build copied

// Peer is three servers that differ in who may come in, and in nothing else:
// the same handlers, over the same store, whose code run.sh copies beside this
// file.
//
//	peer bare ADDR FILE   everybody may
//	peer login ADDR FILE  RequireLogin decides
//	peer scs ADDR FILE    github.com/alexedwards/scs/v2 decides, its sessions in the bbolt file FILE.scs
package main

import (
	"encoding/binary"
	"log"
	"net/http"
	"os"
	"time"

	"github.com/alexedwards/scs/v2"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/crypto/bcrypt"
)

func main() {
	mode, addr, path := os.Args[1], os.Args[2], os.Args[3]
	store, err := OpenStore(path)
	check(err)
	check(store.seedRings())
	auth, err := NewAuth(store, os.Getenv("SECRET_KEY"))
	check(err)
	auth.Cost = 10 // the least that ringward takes
	hash, err := bcrypt.GenerateFromPassword([]byte("speak-friend-and-enter"), auth.Cost)
	check(err)
	check(store.addUser(User{Name: "frodo", Hash: string(hash), Created: time.Now()}))

	mux := http.NewServeMux()
	handler := http.Handler(mux)
	protect := func(h http.HandlerFunc) http.Handler { return h }
	refuse := func(w http.ResponseWriter, _ *http.Request) {
		respondError(w, http.StatusUnauthorized, "Login required")
	}
	// login does one bcrypt and, if the password is right, what start does.
	login := func(start func(*http.Request)) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			var username, password string
			if !readJSON(w, r, fields{"username": &username, "password": &password}, nil) {
				return
			}
			if username != "frodo" || bcrypt.CompareHashAndPassword(hash, []byte(password)) != nil {
				refuse(w, r)
				return
			}
			start(r)
			respond(w, http.StatusCreated, map[string]string{"username": username})
		}
	}
	switch mode {
	case "bare":
		mux.HandleFunc("GET /refused", refuse)
		mux.HandleFunc("POST /auth/session", login(func(*http.Request) {}))
	case "login":
		protect = func(h http.HandlerFunc) http.Handler { return auth.RequireLogin(h) }
		mux.HandleFunc("POST /auth/session", auth.Login)
	case "scs":
		sessions := scs.New()
		sessions.Store = openSCS(path + ".scs")
		handler = sessions.LoadAndSave(mux)
		protect = func(h http.HandlerFunc) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if sessions.GetString(r.Context(), "username") == "" {
					refuse(w, r)
					return
				}
				h(w, r)
			})
		}
		mux.HandleFunc("POST /auth/session", login(func(r *http.Request) {
			check(sessions.RenewToken(r.Context()))
			sessions.Put(r.Context(), "username", "frodo")
		}))
	default:
		log.Fatal("what is ", mode, "?")
	}
	mux.Handle("GET /fixed", protect(handleFixed))
	mux.Handle("GET /ringsofpower", protect((&Rings{auth, store}).handleList))
	check(http.ListenAndServe(addr, handler))
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

// scsStore is a store of scs: token -> 8 bytes of expiry, data.
type scsStore struct{ db *bolt.DB }

var bucketSCS = []byte("sessions")

func openSCS(path string) scsStore {
	db, err := bolt.Open(path, 0o600, nil)
	check(err)
	check(db.Update(func(tx *bolt.Tx) error { _, err := tx.CreateBucketIfNotExists(bucketSCS); return err }))
	return scsStore{db}
}

func (s scsStore) Find(token string) (data []byte, found bool, err error) {
	err = s.db.View(func(tx *bolt.Tx) error {
		v := tx.Bucket(bucketSCS).Get([]byte(token))
		if len(v) >= 8 && time.Now().UnixNano() < int64(binary.BigEndian.Uint64(v)) {
			data, found = append(data, v[8:]...), true
		}
		return nil
	})
	return data, found, err
}

func (s scsStore) Commit(token string, data []byte, expiry time.Time) error {
	return s.db.Update(func(tx *bolt.Tx) error {
		v := binary.BigEndian.AppendUint64(nil, uint64(expiry.UnixNano()))
		return tx.Bucket(bucketSCS).Put([]byte(token), append(v, data...))
	})
}

func (s scsStore) Delete(token string) error {
	return s.db.Update(func(tx *bolt.Tx) error { return tx.Bucket(bucketSCS).Delete([]byte(token)) })
}
