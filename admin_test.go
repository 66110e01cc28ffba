// admin_test.go tests the operator's API, and what it keeps and copies.
package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"
)

// operator sends one request to the operator's API and answers status and title
// of the failure, if any. data, if not nil, gets the answer's.
func (s *accountServer) operator(method, path string, query url.Values, body string, data any) (int, string) {
	s.Helper()
	w := httptest.NewRecorder()
	s.admin.handler().ServeHTTP(w, httptest.NewRequest(method, path+"?"+query.Encode(), strings.NewReader(body)))
	answer := struct {
		Data   any
		Errors []struct{ Title string }
	}{Data: data}
	if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil {
		s.Fatalf("%s %s: %d %s: %v", method, path, w.Code, w.Body, err)
	}
	if len(answer.Errors) > 0 {
		return w.Code, answer.Errors[0].Title
	}
	return w.Code, ""
}

// htpasswd is what htpasswd -B of Debian's apache2-utils 2.4 wrote, and the
// hashes that bcrypt 6.0 of Node's registry made.
const htpasswd = `# people of the old server

Bilbo:$2y$05$WUn6XAjplqXMV7whFe5mPu5p94LsVokw4M12FPLD6RagvOB7iNQqe
rosie:$2y$04$.UGsXl5uVFomnHpt9oRr2e56wRRuiobQdevvCj7KGyrKP2odTTD52
sam@bag-end.example:$2y$05$mOBRNFQvlT3uI0ThPWAXdupW18fpFEbwjECa7lt0CVR2KzTnFco6W
md5man:$apr1$AtOPlBHq$OnutYer8KdH2NEQ3FHLS91
shaman:{SHA}b6X7vBbI+C6keOW5M7NF5G3Sheo=
crypto:UQFpHlAuJiZRM
gimli:$2b$04$44xSmgB3jGJFtxPITuPekOevQjLMMoYk1ErGW6G4SYaN3pWtu2D3u
legolas:$2b$10$PjHk2DQeh0MO/SGz87HGVutFlWefnU0iKcBtHQT4gOHmZ46grj.2O:comment
frodo:$2b$04$44xSmgB3jGJFtxPITuPekOevQjLMMoYk1ErGW6G4SYaN3pWtu2D3u
BILBO:$2b$04$44xSmgB3jGJFtxPITuPekOevQjLMMoYk1ErGW6G4SYaN3pWtu2D3u
no colon
two words:$2b$04$44xSmgB3jGJFtxPITuPekOevQjLMMoYk1ErGW6G4SYaN3pWtu2D3u
slow:$2b$16$44xSmgB3jGJFtxPITuPekOevQjLMMoYk1ErGW6G4SYaN3pWtu2D3u
`

var htpasswdPasswords = map[string]string{
	"bilbo":               "there and back again",
	"rosie":               "Grüße aus dem Auenland 🧝",
	"sam@bag-end.example": "concerning hobbits",
	"gimli":               "and my axe, and my axe",
	"legolas":             "pässwörter sind schwer",
}

func TestImport(t *testing.T) {
	s := newAccountServer(t)
	s.auth.Cost = 5
	long := strings.Repeat("x", 5000)
	file := htpasswd + long + "\r\n" + strings.ReplaceAll(htpasswd[strings.Index(htpasswd, "rosie"):][:66], "rosie", "pippin") + "\r\n" + long[:4096]
	var done importView
	if status, title := s.operator("POST", "/users/import", nil, file, &done); status != http.StatusOK {
		t.Fatal(status, title)
	}
	want := importView{Imported: 6, Refused: []string{
		"line 6: not bcrypt",
		"line 7: not bcrypt",
		"line 8: not bcrypt",
		"line 11: name taken",
		"line 12: name taken",
		"line 13: malformed",
		"line 14: malformed name",
		"line 15: cost outside 4 to 15",
		"line 16: malformed",
		"line 18: malformed",
	}}
	if fmt.Sprint(done) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", done, want)
	}
	for name, password := range htpasswdPasswords {
		s.want(http.StatusUnauthorized, nil, "POST", "/auth/session", credentials(name, password+"!"))
		s.enter(name, password)
		u, err := s.store.user(name)
		if err != nil {
			t.Fatal(err)
		}
		if cost, _ := bcrypt.Cost([]byte(u.Hash)); cost < s.auth.Cost {
			t.Errorf("%s: the hash has cost %d after a login", name, cost)
		}
		s.enter(name, password)
	}
	s.enter("frodo", testPassword) // not replaced by the file's
	s.enter("pippin", htpasswdPasswords["rosie"])
}

func TestParseHtpasswd(t *testing.T) {
	const hash = "$2y$05$WUn6XAjplqXMV7whFe5mPu5p94LsVokw4M12FPLD6RagvOB7iNQqe"
	for line, want := range map[string]string{
		"":                            "",
		"   \t":                       "",
		"# comment":                   "",
		"frodo:" + hash:               "frodo",
		"Frodo:" + hash + " \r":       "frodo",
		"frodo:" + hash + ":x:y":      "frodo",
		"frodo":                       "malformed",
		":" + hash:                    "malformed name",
		" frodo:" + hash:              "malformed name",
		"\ufefffrodo:" + hash:         "malformed name",
		"frodo: " + hash:              "not bcrypt",
		"frodo:":                      "not bcrypt",
		"frodo:" + hash[:59]:          "not bcrypt",
		"frodo:" + hash + "x":         "not bcrypt",
		"frodo:$2x" + hash[3:]:        "not bcrypt", // of a crypt_blowfish that got some characters wrong
		"frodo:$2" + hash[3:]:         "not bcrypt",
		"frodo:$2y$03" + hash[6:]:     "cost outside 4 to 15",
		"frodo:$2y$04" + hash[6:]:     "frodo",
		"frodo:$2y$15" + hash[6:]:     "frodo",
		"frodo:$2y$16" + hash[6:]:     "cost outside 4 to 15",
		"frodo:$2y$5" + hash[6:]:      "not bcrypt",
		"frodo:$2y$ 5" + hash[6:]:     "not bcrypt",
		"frodo\x00x:" + hash:          "malformed name",
		"frodo:" + hash[:59] + "\xff": "not bcrypt",
	} {
		u, why := parseHtpasswd(line)
		if why+u.Name != want && why != want {
			t.Errorf("%q: got %q, %q, want %q", line, u.Name, why, want)
		}
	}
}

func FuzzParseHtpasswd(f *testing.F) {
	for line := range strings.Lines(htpasswd) {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, line string) {
		u, why := parseHtpasswd(line)
		if why != "" || u.Name == "" {
			if u.Hash != "" {
				t.Errorf("refused with a hash: %q", line)
			}
			return
		}
		if name, ok := canonicalName(u.Name); !ok || name != u.Name {
			t.Errorf("%q: name %q", line, u.Name)
		}
		cost, err := bcrypt.Cost([]byte(u.Hash))
		if err != nil || cost < bcrypt.MinCost || cost > maxImportCost || !strings.Contains(line, u.Hash) {
			t.Errorf("%q: hash %q of cost %d, %v", line, u.Hash, cost, err)
		}
		if cost > bcrypt.MinCost {
			return // the comparison would take long
		}
		if err := bcrypt.CompareHashAndPassword([]byte(u.Hash), nil); err != nil && err != bcrypt.ErrMismatchedHashAndPassword {
			t.Errorf("%q: a hash that bcrypt cannot compare: %v", line, err)
		}
	})
}

// What is answered before a backup begins is in it, and a server starts with it.
func TestBackupUnderLoad(t *testing.T) {
	s := newAccountServer(t)
	var (
		mu       sync.Mutex
		answered []string
		stop     = make(chan struct{})
		wait     sync.WaitGroup
	)
	for range 4 {
		wait.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				cookie := s.enter("frodo", testPassword)
				mu.Lock()
				answered = append(answered, cookie)
				mu.Unlock()
			}
		})
	}
	copies := 0
	for before := 0; copies < 5; {
		mu.Lock()
		seen := slices.Clone(answered)
		mu.Unlock()
		if len(seen) < before+5 {
			continue
		}
		before = len(seen)
		copies++
		w := httptest.NewRecorder()
		s.admin.handler().ServeHTTP(w, httptest.NewRequest("GET", "/backup", nil))
		path := filepath.Join(t.TempDir(), "copy.db")
		if err := os.WriteFile(path, w.Body.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		second := openAccountServer(t, path)
		for _, cookie := range seen[max(0, len(seen)-maxSessions/2):] { // older ones may have made room
			second.want(http.StatusOK, nil, "GET", "/auth/session", "", "Cookie", cookie)
		}
		second.enter("sam", testPassword)
	}
	close(stop)
	wait.Wait()
	if left, _ := filepath.Glob(s.path + "?*"); len(left) > 0 {
		t.Errorf("backups left %v behind", left)
	}
}

// A copied database opens no door: no secret is in its bytes.
func TestNothingSecretIsKept(t *testing.T) {
	s := newAccountServer(t)
	secrets := []string{testPassword, newPassword, "of the operator's choice"}
	for i := range 3 {
		cookie := s.enter("frodo", testPassword)
		id, signature, _ := strings.Cut(strings.TrimPrefix(cookie, "ringward="), ".")
		token := s.token(cookie, fmt.Sprintf(`{"name":"%d"}`, i)).Token
		secrets = append(secrets, id, signature, token, strings.TrimPrefix(token, "rw_"), s.invite("frodo"), s.invite("sam"))
	}
	cookie := s.enter("sam", testPassword)
	s.want(http.StatusNoContent, nil, "PUT", "/auth/password", `{"current":"`+testPassword+`","new":"`+newPassword+`"}`, "Cookie", cookie)
	s.operator("POST", "/users", url.Values{"user": {"merry"}, "password": {"body"}}, "of the operator's choice", nil)

	backup := httptest.NewRecorder()
	s.admin.handler().ServeHTTP(backup, httptest.NewRequest("GET", "/backup", nil))
	if !bytes.Contains(backup.Body.Bytes(), []byte("merry")) {
		t.Fatal("that is no backup")
	}
	s.store.close()
	file, err := os.ReadFile(s.path)
	if err != nil || !bytes.Contains(file, []byte("merry")) {
		t.Fatal("that is not the database", err)
	}
	for _, secret := range secrets {
		raw, _ := base64.RawURLEncoding.DecodeString(secret) // as far as it is that
		for _, form := range [][]byte{[]byte(secret), raw} {
			form = form[:min(len(form), 16)]
			if len(form) == 16 && (bytes.Contains(file, form) || bytes.Contains(backup.Body.Bytes(), form)) {
				t.Errorf("the database has %q of %q", form, secret)
			}
		}
	}
}

func TestAdminAudit(t *testing.T) {
	s := newAccountServer(t)
	s.auth.Log = newLogger(s.log, true)
	cleared := ""
	s.admin.clear = func(name string) { cleared = name }
	cookie := s.enter("frodo", testPassword)
	session, err := s.store.sessions("frodo", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	token := s.token(cookie, `{"name":"x"}`)
	user := url.Values{"user": {"Frodo"}}
	var invite inviteView
	var made tokenView
	for _, act := range []struct {
		path  string
		query url.Values
		body  string
		lines []string
		data  any
	}{
		{"/users", url.Values{"user": {"Merry"}}, "", []string{"user added", "invite made"}, &invite},
		{"/users", url.Values{"user": {"pippin"}, "password": {"body"}}, newPassword, []string{"user added", "password set"}, nil},
		{"/users/import", nil, htpasswd[strings.Index(htpasswd, "rosie"):][:66], []string{"user added"}, nil},
		{"/users/invite", user, "", []string{"invite made"}, &invite},
		{"/tokens", url.Values{"user": {"frodo"}, "name": {"y"}}, "", []string{"token made"}, &made},
		{"/tokens/remove", url.Values{"id": {token.ID}}, "", []string{"token removed"}, nil},
		{"/sessions/end", url.Values{"id": {session[0].Key.handle()}}, "", []string{"session ended"}, nil},
		{"/sessions/end-all", user, "", []string{"all sessions ended"}, nil},
		{"/users/unlock", user, "", []string{"user unlocked"}, nil},
		{"/users/disable", user, "", []string{"user disabled"}, nil},
		{"/users/enable", user, "", []string{"user enabled"}, nil},
		{"/users/remove", user, "", []string{"user removed"}, nil},
	} {
		s.log.Reset()
		if status, title := s.operator("POST", act.path, act.query, act.body, act.data); status != http.StatusOK {
			t.Errorf("%s: %d %s", act.path, status, title)
		}
		name := "frodo"
		switch {
		case act.query == nil:
			name = "rosie"
		case act.query["user"] != nil:
			name = strings.ToLower(act.query["user"][0])
		}
		for _, line := range act.lines {
			if !strings.Contains(s.log.String(), fmt.Sprintf(`"msg":%q,"user":%q,"by":"operator"`, line, name)) {
				t.Errorf("%s: no line %q of %s in\n%s", act.path, line, name, s.log)
			}
		}
		for _, secret := range []string{newPassword, "$2y$", invite.Token, made.Token} {
			if secret != "" && strings.Contains(s.log.String(), secret) {
				t.Errorf("%s: the log has a secret:\n%s", act.path, s.log)
			}
		}
	}
	if cleared != "frodo" {
		t.Errorf("unlock: the throttle was told %q", cleared)
	}
	s.log.Reset()
	s.admin.handler().ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/backup", nil))
	if !strings.Contains(s.log.String(), `"msg":"backup made"`) {
		t.Errorf("backup: log %s", s.log)
	}
}

// What an operator is told, which is what the command prints.
func TestOperatorsMistakes(t *testing.T) {
	s := newAccountServer(t)
	s.operator("POST", "/users/disable", url.Values{"user": {"sam"}}, "", nil)
	user := func(name string) url.Values { return url.Values{"user": {name}} }
	for _, mistake := range []struct {
		method, path string
		query        url.Values
		body, title  string
	}{
		{"POST", "/users", nil, "", nameProblem},
		{"POST", "/users", user("-x"), "", nameProblem},
		{"POST", "/users", user("FRODO"), "", "There is a user frodo already"},
		{"POST", "/users", url.Values{"user": {"merry"}, "password": {""}}, "short", "Password must have at least 15 characters"},
		{"POST", "/users", url.Values{"user": {"merry"}, "password": {""}}, strings.Repeat("x\xff", 10), "Password must be text without a NUL character"},
		{"POST", "/users/invite", user("gollum"), "", "There is no user gollum"},
		{"POST", "/users/invite", user("sam"), "", "sam is disabled"},
		{"POST", "/users/remove", user("gollum"), "", "There is no user gollum"},
		{"POST", "/users/remove", user(".."), "", nameProblem},
		{"POST", "/users/unlock", user("gollum"), "", "There is no user gollum"},
		{"POST", "/sessions/end-all", user("gollum"), "", "There is no user gollum"},
		{"GET", "/sessions", user("gollum"), "", "There is no user gollum"},
		{"GET", "/tokens", user(""), "", nameProblem},
		{"POST", "/sessions/end", url.Values{"id": {"no"}}, "", "There is no such session"},
		{"POST", "/sessions/end", nil, "", "There is no such session"},
		{"POST", "/tokens/remove", nil, "", "There is no such token"},
		{"POST", "/tokens", url.Values{"user": {"frodo"}}, "", "Name must have 1 to 64 bytes and no control characters"},
		{"POST", "/tokens", url.Values{"user": {"frodo"}, "name": {"\xff"}}, "", "Name must have 1 to 64 bytes and no control characters"},
		{"POST", "/tokens", url.Values{"user": {"sam"}, "name": {"x"}}, "", "sam is disabled"},
	} {
		status, title := s.operator(mistake.method, mistake.path, mistake.query, mistake.body, nil)
		if status != http.StatusUnprocessableEntity || title != mistake.title {
			t.Errorf("%s %s %v: got %d %q, want %q", mistake.method, mistake.path, mistake.query, status, title, mistake.title)
		}
	}
}

func TestOperatorsLists(t *testing.T) {
	s := newAccountServer(t)
	s.operator("POST", "/users", url.Values{"user": {"merry"}}, "", nil)
	s.operator("POST", "/users/disable", url.Values{"user": {"sam"}}, "", nil)
	var users []userView
	s.operator("GET", "/users", nil, "", &users)
	shown := ""
	for _, u := range users {
		shown += u.Username + " " + u.State + ", "
	}
	if want := "frodo active, merry invited, sam disabled, "; shown != want {
		t.Errorf("users: got %s, want %s", shown, want)
	}

	s.operator("POST", "/users/enable", url.Values{"user": {"sam"}}, "", nil)
	const order = "frodo012sam012"
	for i := range 3 {
		for _, name := range []string{"sam", "frodo"} {
			s.want(http.StatusCreated, nil, "POST", "/auth/session", credentials(name, testPassword), "User-Agent", fmt.Sprint(i))
			s.operator("POST", "/tokens", url.Values{"user": {name}, "name": {fmt.Sprint(i)}}, "", nil)
		}
	}
	var sessions []sessionView
	var tokens []tokenView
	s.operator("GET", "/sessions", nil, "", &sessions)
	s.operator("GET", "/tokens", nil, "", &tokens)
	gotSessions, gotTokens, last := "", "", ""
	for i := range sessions {
		if sessions[i].User != last {
			last = sessions[i].User
			gotSessions, gotTokens = gotSessions+last, gotTokens+tokens[i].User
		}
		gotSessions, gotTokens = gotSessions+sessions[i].UserAgent, gotTokens+tokens[i].Name
	}
	if gotSessions != order || gotTokens != order {
		t.Errorf("order: got %s and %s, want %s", gotSessions, gotTokens, order)
	}
	s.operator("GET", "/sessions", url.Values{"user": {"SAM"}}, "", &sessions)
	if len(sessions) != 3 || sessions[0].User != "sam" {
		t.Errorf("sessions of sam: got %v", sessions)
	}
}

func TestAdminWithoutItsStore(t *testing.T) {
	s := newAccountServer(t)
	s.store.close()
	for _, request := range []string{"GET /users", "POST /users", "POST /users/import", "POST /users/invite", "POST /users/remove", "POST /users/disable",
		"POST /users/enable", "POST /users/unlock", "GET /sessions", "POST /sessions/end", "POST /sessions/end-all",
		"GET /tokens", "POST /tokens", "POST /tokens/remove", "GET /backup"} {
		method, path, _ := strings.Cut(request, " ")
		status, title := s.operator(method, path, url.Values{"user": {"frodo"}, "id": {"00"}, "name": {"x"}}, strings.TrimSpace(htpasswd), nil)
		if status != http.StatusServiceUnavailable || title == "" {
			t.Errorf("%s: got %d %q", request, status, title)
		}
	}
}
