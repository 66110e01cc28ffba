// rings.go: the resource that RequireLogin guards, and the example to replace
// by your own: the record, where it is kept, its five handlers.
package main

import (
	"encoding/binary"
	"io/fs"
	"net/http"
	"strconv"
	"strings"

	bolt "go.etcd.io/bbolt"
)

// Ring is a ring of power and who bears it.
type Ring struct {
	ID     int    `json:"id"`
	Name   string `json:"name"`
	Bearer string `json:"bearer"`
}

// ringStore keeps rings, with the promises of Store.
type ringStore interface {
	// seedRings puts the twenty rings into a store that never had any.
	seedRings() error
	// rings are in order of id.
	rings() ([]Ring, error)
	ring(id int) (Ring, error)
	// addRing gives the ring an id that no other ever had.
	addRing(Ring) (Ring, error)
	setRing(Ring) error
	removeRing(id int) error
}

var twentyRings = []Ring{
	{Name: "Narya", Bearer: "elves"}, {Name: "Nenya", Bearer: "elves"}, {Name: "Vilya", Bearer: "elves"},
	{Name: "Ring of Durin", Bearer: "dwarves"}, {Name: "Second of the Seven", Bearer: "dwarves"},
	{Name: "Third of the Seven", Bearer: "dwarves"}, {Name: "Fourth of the Seven", Bearer: "dwarves"},
	{Name: "Fifth of the Seven", Bearer: "dwarves"}, {Name: "Sixth of the Seven", Bearer: "dwarves"},
	{Name: "Seventh of the Seven", Bearer: "dwarves"},
	{Name: "First of the Nine", Bearer: "men"}, {Name: "Second of the Nine", Bearer: "men"},
	{Name: "Third of the Nine", Bearer: "men"}, {Name: "Fourth of the Nine", Bearer: "men"},
	{Name: "Fifth of the Nine", Bearer: "men"}, {Name: "Sixth of the Nine", Bearer: "men"},
	{Name: "Seventh of the Nine", Bearer: "men"}, {Name: "Eighth of the Nine", Bearer: "men"},
	{Name: "Ninth of the Nine", Bearer: "men"}, {Name: "The One Ring", Bearer: "sauron"},
}

var bucketRings = []byte("rings")

func ringKey(id int) []byte { return binary.BigEndian.AppendUint64(nil, uint64(id)) }

func getRing(key, record []byte) (Ring, error) {
	f, err := unseal(key, record, 2)
	if err != nil {
		return Ring{}, err
	}
	return Ring{int(binary.BigEndian.Uint64(key)), f[0], f[1]}, nil
}

func putRing(b *bolt.Bucket, ring Ring) error {
	key := ringKey(ring.ID)
	return b.Put(key, seal(key, ring.Name, ring.Bearer))
}

func (b *BoltStore) seedRings() error {
	seeded := false
	if err := b.view(func(tx *bolt.Tx) error { seeded = tx.Bucket(bucketRings) != nil; return nil }); seeded || err != nil {
		return err
	}
	return b.update(func(tx *bolt.Tx) error {
		if tx.Bucket(bucketRings) != nil { // somebody was quicker
			return nil
		}
		bucket, err := tx.CreateBucket(bucketRings)
		for i, ring := range twentyRings {
			if ring.ID = i + 1; err == nil {
				err = putRing(bucket, ring)
			}
		}
		if err == nil {
			err = bucket.SetSequence(uint64(len(twentyRings)))
		}
		return err
	})
}

func (b *BoltStore) rings() (all []Ring, err error) {
	all = make([]Ring, 0, len(twentyRings))
	err = b.view(func(tx *bolt.Tx) error {
		return tx.Bucket(bucketRings).ForEach(func(key, record []byte) error {
			ring, err := getRing(key, record)
			all = append(all, ring)
			return err
		})
	})
	return all, err
}

func (b *BoltStore) ring(id int) (ring Ring, err error) {
	err = b.view(func(tx *bolt.Tx) error {
		ring, err = getRing(ringKey(id), tx.Bucket(bucketRings).Get(ringKey(id)))
		return err
	})
	return ring, err
}

func (b *BoltStore) addRing(ring Ring) (Ring, error) {
	err := b.update(func(tx *bolt.Tx) error {
		id, err := tx.Bucket(bucketRings).NextSequence()
		if err != nil {
			return err
		}
		ring.ID = int(id)
		return putRing(tx.Bucket(bucketRings), ring)
	})
	return ring, err
}

func (b *BoltStore) setRing(ring Ring) error {
	return b.update(func(tx *bolt.Tx) error {
		bucket := tx.Bucket(bucketRings)
		if bucket.Get(ringKey(ring.ID)) == nil {
			return fs.ErrNotExist
		}
		return putRing(bucket, ring)
	})
}

func (b *BoltStore) removeRing(id int) error {
	return b.update(func(tx *bolt.Tx) error {
		bucket := tx.Bucket(bucketRings)
		if bucket.Get(ringKey(id)) == nil {
			return fs.ErrNotExist
		}
		return bucket.Delete(ringKey(id))
	})
}

// Rings is the handlers, to be put behind RequireLogin.
type Rings struct {
	*Auth // responds where the store fails
	store ringStore
}

// handleList is GET /ringsofpower.
func (h *Rings) handleList(w http.ResponseWriter, r *http.Request) {
	all, err := h.store.rings()
	if err != nil {
		h.fail(w, r, err, 0, "")
		return
	}
	respond(w, http.StatusOK, all)
}

const noRing = "No such ring"

// handleGet is GET /ringsofpower/{id}.
func (h *Rings) handleGet(w http.ResponseWriter, r *http.Request) {
	ring, err := h.store.ring(ringID(r))
	if err != nil {
		h.fail(w, r, err, http.StatusNotFound, noRing)
		return
	}
	respond(w, http.StatusOK, ring)
}

// handleAdd is POST /ringsofpower.
func (h *Rings) handleAdd(w http.ResponseWriter, r *http.Request) {
	ring, ok := readRing(w, r)
	if !ok {
		return
	}
	ring, err := h.store.addRing(ring)
	if err != nil {
		h.fail(w, r, err, 0, "")
		return
	}
	w.Header().Set("Location", "/ringsofpower/"+strconv.Itoa(ring.ID))
	respond(w, http.StatusCreated, ring)
}

// handleSet is PUT /ringsofpower/{id}.
func (h *Rings) handleSet(w http.ResponseWriter, r *http.Request) {
	ring, ok := readRing(w, r)
	if !ok {
		return
	}
	ring.ID = ringID(r)
	if err := h.store.setRing(ring); err != nil {
		h.fail(w, r, err, http.StatusNotFound, noRing)
		return
	}
	respond(w, http.StatusOK, ring)
}

// handleRemove is DELETE /ringsofpower/{id}: into Mount Doom.
func (h *Rings) handleRemove(w http.ResponseWriter, r *http.Request) {
	if err := h.store.removeRing(ringID(r)); err != nil {
		h.fail(w, r, err, http.StatusNotFound, noRing)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// ringID is 0, which no ring has, for what is not an id as we write it.
func ringID(r *http.Request) int {
	id, err := strconv.Atoi(r.PathValue("id"))
	if err != nil || id < 0 || strconv.Itoa(id) != r.PathValue("id") {
		return 0
	}
	return id
}

const maxRingText = 200 // bytes

// readRing reads name and bearer, or has responded.
func readRing(w http.ResponseWriter, r *http.Request) (ring Ring, ok bool) {
	if !readJSON(w, r, nil, fields{"name": &ring.Name, "bearer": &ring.Bearer}) {
		return ring, false
	}
	for _, text := range []string{ring.Name, ring.Bearer} {
		if strings.TrimSpace(text) == "" || len(text) > maxRingText || strings.Contains(text, "\x00") {
			respondError(w, http.StatusUnprocessableEntity, "Name and bearer must have 1 to 200 bytes each and no NUL")
			return ring, false
		}
	}
	return ring, true
}
