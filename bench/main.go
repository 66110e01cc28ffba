// Bench measures servers on this machine in turn and prints what came of it in
// Markdown. run.sh builds it and what it measures.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

var (
	dir     = flag.String("dir", "", "the folder of the programs, for the databases too")
	rounds  = flag.Int("rounds", 9, "a figure is the median of so many")
	seconds = flag.Float64("seconds", 0.5, "that a measurement takes")
	million = flag.Bool("million", false, "also ringward with 1,000,000 sessions")
)

// Servers end with the thread that started them.
func init() { runtime.LockOSThread() }

const (
	fixed  = "2 KB of fixed bytes"
	rings  = "the twenty rings"
	logins = "logins at bcrypt cost 10"
	user   = `{"username":"frodo","password":"speak-friend-and-enter"}`
	tries  = 4 // logins under way at once: more of one user are refused
)

var rows = []struct {
	name, path, cookie string // the cookie: "right", "wrong" or "none"
	status             int
}{
	{fixed, "/fixed", "right", 200},
	{rings, "/ringsofpower", "right", 200},
	{"refused without a cookie", "/ringsofpower", "none", 401},
	{"refused for a wrong cookie", "/ringsofpower", "wrong", 401},
	{logins, "/auth/session", "none", 201},
}

// cell is what a row gives for a server.
type cell struct{ row, server string }

var results = map[cell][]figures{} // one a round

func main() {
	log.SetFlags(0)
	flag.Parse()
	bare, scs := start("bare", "peer bare ADDR bare.db"), start("scs", "peer scs ADDR scs.db")
	login := start("RequireLogin", "peer login ADDR login.db")
	ringward := start("ringward", ringwardAt+"ringward.db")
	servers := []*server{bare, login, ringward, scs}
	if *million {
		random := start("1,000,000 sessions at random", ringwardAt+"million/sessions.db")
		cookies, err := os.ReadFile(filepath.Join(*dir, "million/cookies")) // of 50,000 of them
		check(err)
		random.cookies = strings.Fields(string(cookies))
		one := *random
		one.name, one.cookies = "one of 1,000,000 sessions", random.cookies[:1]
		servers = append(servers, &one, random)
	}
	for round := range *rounds + 1 { // round 0 warms up
		log.Printf("round %d of %d", round, *rounds)
		for _, s := range []*server{login, ringward, scs} { // anew: of a user's many sessions the oldest end
			s.login()
		}
		bare.cookies = login.cookies // so that it has as many bytes to read
		for _, row := range rows {
			for i, s := range servers {
				if i >= 4 && row.name != rings {
					continue
				}
				method, path, body, connections := "GET", row.path, "", 32
				if row.name == logins {
					method, body, connections = "POST", user, tries
				}
				if row.status == 401 && s == bare {
					path = "/refused"
				}
				var requests [][]byte
				for _, cookie := range s.cookies {
					switch row.cookie {
					case "none":
						cookie = ""
					case "wrong":
						cookie += "x"
					}
					requests = append(requests, request(method, path, s.addr, cookie, body))
				}
				f := load(s, connections, requests, row.status, time.Duration(*seconds*float64(time.Second)))
				if c := (cell{row.name, s.name}); round > 0 {
					results[c] = append(results[c], f)
				}
			}
		}
	}
	report(servers)
}

type server struct {
	name    string
	addr    string
	cookies []string // of sessions
	cmd     *exec.Cmd
	first   float64 // ms from its start to its first response
}

const ringwardAt = "ringward -bcrypt-cost 10 -addr ADDR -db "

// start returns when the server responds that the command starts.
func start(name, command string) *server {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	s := &server{name: name, addr: listener.Addr().String()}
	check(listener.Close())
	s.cmd = exec.Command("taskset", strings.Fields("-c 0 ./"+strings.Replace(command, "ADDR", s.addr, 1))...)
	s.cmd.Dir, s.cmd.SysProcAttr = *dir, &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	path := filepath.Join(*dir, name+".log")
	s.cmd.Stderr, err = os.Create(path)
	check(err)
	begun := time.Now()
	check(s.cmd.Start())
	for time.Since(begun) < 5*time.Second {
		if response, err := http.Get("http://" + s.addr + "/ringsofpower"); err == nil {
			s.first = micros(time.Since(begun)) / 1000
			response.Body.Close()
			return s
		}
		time.Sleep(500 * time.Microsecond)
	}
	said, _ := os.ReadFile(path)
	log.Fatalf("%s does not respond: %s", name, said)
	return nil
}

func (s *server) login() {
	response, err := http.Post("http://"+s.addr+"/auth/session", "application/json", strings.NewReader(user))
	check(err)
	response.Body.Close()
	if response.StatusCode != http.StatusCreated {
		log.Fatal(s.name, ": login: ", response.Status)
	}
	cookie := response.Cookies()[0]
	s.cookies = []string{cookie.Name + "=" + cookie.Value}
}

// memory returns a line of /proc/PID/status in MiB.
func (s *server) memory(line string) float64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	check(err)
	_, rest, _ := bytes.Cut(b, []byte(line+":"))
	kB, err := strconv.Atoi(string(bytes.Fields(rest)[0]))
	check(err)
	return float64(kB) / 1024
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func median(list []float64) float64 {
	slices.Sort(list)
	n := len(list)
	return (list[n/2] + list[(n-1)/2]) / 2
}

// of returns the median over the rounds.
func of(row, server string, figure int) float64 {
	var list []float64
	for _, f := range results[cell{row, server}] {
		list = append(list, f[figure])
	}
	return median(list)
}

// ratio returns the median of the ratios within a round: what else the machine
// does hits neighbours in time alike.
func ratio(row, a, b string, figure int) float64 {
	var list []float64
	for i, f := range results[cell{row, a}] {
		list = append(list, f[figure]/results[cell{row, b}][i][figure])
	}
	return median(list)
}

func report(servers []*server) {
	fmt.Print("| ")
	for _, s := range servers {
		fmt.Print("| ", s.name, " ")
	}
	fmt.Println("|\n| ---", strings.Repeat("| --: ", len(servers))+"|")
	for _, row := range rows {
		for figure, title := range []string{row.name + ", /s", "p50, µs", "p99, µs", "CPU of the server, µs"} {
			if row.status != 200 && (figure == p50 || figure == p99) || row.name == logins && figure != rate {
				continue
			}
			fmt.Print("| ", title, " ")
			for _, s := range servers {
				fmt.Print("| ")
				if results[cell{row.name, s.name}] == nil {
					continue
				}
				if v := of(row.name, s.name, figure); v < 100 {
					fmt.Printf("%.1f ", v)
				} else {
					fmt.Printf("%.0f ", v)
				}
				if s.name != "bare" {
					fmt.Printf("(%.2f) ", ratio(row.name, s.name, "bare", figure))
				}
			}
			fmt.Println("|")
		}
	}
	var bare []float64
	for _, f := range results[cell{fixed, "bare"}] {
		bare = append(bare, f[rate])
	}
	fmt.Printf("\nIn brackets: the ratio to bare. On a quiet machine its first row hardly differs over the rounds: %.0f to %.0f.\n", slices.Min(bare), slices.Max(bare))

	ringward := servers[2]
	loaded := ringward.memory("RssAnon")
	var firsts, anonymous, resident []float64
	for range 5 {
		check(ringward.cmd.Process.Signal(syscall.SIGTERM))
		ringward.cmd.Wait()
		ringward = start("ringward", ringwardAt+"ringward.db")
		firsts = append(firsts, ringward.first)
		anonymous = append(anonymous, ringward.memory("RssAnon"))
		resident = append(resident, ringward.memory("VmRSS"))
	}
	fmt.Printf("ringward: anonymous memory %.1f MiB after the load; resident %.1f MiB idle, with the pages of its files; binary %.1f MB.\n",
		loaded, median(resident), size("ringward")/1e6)
	if *million {
		s := servers[5]
		fmt.Printf("With 1,000,000 sessions: first response after %.1f ms, anonymous memory %.1f MiB after the load, database %.0f MiB.\n",
			s.first, s.memory("RssAnon"), size("million/sessions.db")/(1<<20))
	}

	fmt.Println("\n| | is | wanted | | by CPU time |\n| --- | --: | --: | --- | --: |")
	wanted := func(what string, is float64, sign string, limit float64, byCPU string) {
		met := "met"
		if (sign == "≥") == (is < limit) {
			met = "not met"
		}
		fmt.Printf("| %s | %.2f | %s %g | %s | %s |\n", what, is, sign, limit, met, byCPU)
	}
	compare := func(row, a, b string, limit float64) {
		wanted(row+": "+a+" to "+b, ratio(row, a, b, rate), "≥", limit, fmt.Sprintf("%.2f", ratio(row, b, a, cpu)))
	}
	compare(fixed, "RequireLogin", "bare", 0.8)
	compare(rings, "RequireLogin", "bare", 0.85)
	compare(fixed, "RequireLogin", "scs", 2)
	compare(rings, "RequireLogin", "scs", 2)
	if *million {
		compare(rings, servers[5].name, servers[4].name, 0.7)
	}
	wanted("anonymous memory idle, MiB", median(anonymous), "<", 12, "")
	wanted("first response, ms", median(firsts), "<", 30, "")
}

func size(name string) float64 {
	file, err := os.Stat(filepath.Join(*dir, name))
	check(err)
	return float64(file.Size())
}
