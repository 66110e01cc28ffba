// import.go: users from an htpasswd file.
package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/crypto/bcrypt"
)

const importBatch = 200 // users whom one transaction adds: a few milliseconds

func (o *Operator) userImport(r commandCall, out io.Writer) error {
	var users []User
	var lines []int // on which they stand
	names, apps, refused := map[string]bool{}, map[string]Factors{}, map[int]string{}
	n := 0
	for line := range bytes.Lines(bytes.TrimPrefix(r.Input, []byte("\ufeff"))) {
		n++
		u, seed, why := parseHtpasswd(string(line))
		switch {
		case why == "" && u.Name == "": // blank, or a comment
			continue
		case why == "" && names[u.Name]:
			why = "name taken"
		case why == "" && seed != nil && o.keys == nil:
			why = "totp needs the key: start the server first, or set SECRET_KEY"
		}
		if why != "" {
			refused[n] = why
			continue
		}
		if seed != nil {
			apps[u.Name] = Factors{Seed: sealSeed(o.keys[0], u.Name, seed), Created: time.Now()}
		}
		u.Created, names[u.Name] = time.Now(), true
		users, lines = append(users, u), append(lines, n)
	}
	imported := 0
	for start := 0; start < len(users); start += importBatch {
		batch := users[start:min(start+importBatch, len(users))]
		added, err := o.store.addUsers(batch, apps, o.act("user added", ""))
		if err != nil {
			return fmt.Errorf("line %d: %w (%d imported)", lines[start], err, imported)
		}
		for i, u := range batch {
			if !added[i] {
				refused[lines[start+i]] = "name taken"
				continue
			}
			imported++
			o.logDone("user added", u.Name)
		}
		if r.Progress {
			fmt.Fprintf(out, "users imported: %d\r", imported)
			if buffered, ok := out.(*bufio.Writer); ok { // on the way to the command
				buffered.Flush()
			}
		}
	}
	if _, err := fmt.Fprintf(out, "users imported: %d\n", imported); err != nil || len(refused) == 0 {
		return err
	}
	var why strings.Builder
	for line := range n {
		if refused[line+1] != "" {
			fmt.Fprintf(&why, "\nline %d: %s", line+1, refused[line+1])
		}
	}
	return errInput(fmt.Sprintf("%s: lines refused: %d%s", r.Args[0], len(refused), why.String()))
}

// bcryptHash is what htpasswd -B ($2y$), Node's bcrypt ($2b$) and Go ($2a$)
// write. Go's own parser takes more, of which nothing can be verified.
var bcryptHash = regexp.MustCompile(`^\$2[aby]\$([0-9]{2})\$[./A-Za-z0-9]{53}$`)

const maxImportCost = 15 // over two seconds for one login

// parseHtpasswd returns a user without Name for a line that says nothing, or
// why the line is refused. A third field may be the secret of an authenticator
// app in base32, as tinyauth has it; what is too short for that is a remark.
func parseHtpasswd(line string) (u User, seed []byte, why string) {
	line = strings.TrimRight(line, " \t\r\n")
	if line == "" || strings.HasPrefix(line, "#") {
		return User{}, nil, ""
	}
	name, hash, ok := strings.Cut(line, ":")
	if !ok {
		return User{}, nil, "malformed"
	}
	hash, secret, _ := strings.Cut(hash, ":")
	if u.Name, ok = canonicalName(name); !ok {
		return User{}, nil, "malformed name"
	}
	cost := bcryptHash.FindStringSubmatch(hash)
	if cost == nil {
		return User{}, nil, "not bcrypt"
	}
	if n, _ := strconv.Atoi(cost[1]); n < bcrypt.MinCost || n > maxImportCost {
		return User{}, nil, fmt.Sprintf("cost outside %d to %d", bcrypt.MinCost, maxImportCost)
	}
	if len(secret) >= 16 {
		var err error
		if seed, err = seedText.DecodeString(strings.ToUpper(strings.TrimRight(secret, "="))); err != nil || len(seed) > 64 {
			return User{}, nil, "totp is not a secret in base32"
		}
	}
	u.Hash = hash
	return u, seed, ""
}
