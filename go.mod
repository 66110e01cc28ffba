module ringward

go 1.26.0

require (
	github.com/lib/pq v1.12.3
	go.etcd.io/bbolt v1.5.0
	golang.org/x/crypto v0.58.0
)

require golang.org/x/sys v0.49.0 // indirect
