#!/usr/bin/env bash
# Measures ringward beside a bare net/http server and scs over bbolt, on
# loopback, in turn, and prints a table. Linux; needs Go and nothing else.
#
#   bench/run.sh [--rounds N] [--seconds S] [--million]
#
# The servers have CPU 0, the load has CPU 1. A figure is the median of the
# rounds, a ratio the median of those within a round: machines are noisy, and
# what else they do hits neighbours in time alike. --million adds ringward with
# 1,000,000 sessions (a minute more, 1 GB of disk).
set -euo pipefail
cd "$(dirname "$0")"
rounds=5 seconds=2 million=
while (($#)); do
  case $1 in
    --rounds) rounds=$2; shift ;;
    --seconds) seconds=$2; shift ;;
    --million) million=1 ;;
    *) echo "run.sh: what is $1?" >&2; exit 2 ;;
  esac
  shift
done

dir=$(mktemp -d)
declare -A pid port cookie
cleanup() { for p in "${pid[@]}"; do kill "$p" 2>/dev/null || true; done; wait; rm -rf "$dir"; }
trap cleanup EXIT
say() { printf '%s\n' "$*" >&2; }

say building
go build -o "$dir/" ./bare ./scs ./load
(cd .. && go build -ldflags '-s -w' -o "$dir/ringward" .)
on() { shift; exec "$@"; } # in a subshell
if command -v taskset >/dev/null && taskset -c 0,1 true 2>/dev/null; then
  on() { local cpu=$1; shift; exec taskset -c "$cpu" "$@"; }
  taskset -cp 1 $$ >/dev/null
fi
load() { "$dir/load" "$@"; }

# start NAME COMMAND... sets pid and the milliseconds to the first answer
next=${PORT:-4810}
start() {
  local name=$1 t0
  shift
  t0=$(date +%s%N)
  on 0 "$@" 2>>"$dir/$name.log" &
  pid[$name]=$!
  first=$(load -addr "127.0.0.1:${port[$name]}" -first "$t0") || { say "$name: $(tail -3 "$dir/$name.log")"; exit 1; }
}
stop() { kill "${pid[$1]}"; wait "${pid[$1]}" || true; unset "pid[$1]"; }
for name in bare scs ringward million; do port[$name]=$next next=$((next + 1)); done

export SECRET_KEY=0123456789abcdef0123456789abcdef # that of the benchmarks, which make the 1,000,000 sessions
user='{"username":"frodo","password":"speak-friend-and-enter"}'
serve() { # NAME FILE
  start "$1" "$dir/ringward" -bcrypt-cost 10 -addr "127.0.0.1:${port[$1]}" -db "$2"
}
login() { # NAME
  load -once -addr "127.0.0.1:${port[$1]}" -method POST -path /auth/session -body "$user" |
    tr -d '\r' | sed -n 's/^Set-Cookie: \([^;]*\).*/\1/p'
}
size() { load -d 100ms -c 1 -status 401 "$@" | cut -d' ' -f4; }
memory() { awk '/^RssAnon/ {printf "%.1f", $2 / 1024}' "/proc/${pid[$1]}/status"; }

echo speak-friend-and-enter | "$dir/ringward" -bcrypt-cost 10 -db "$dir/one.db" user add -password-stdin frodo >/dev/null
serve ringward "$dir/one.db"
start scs "$dir/scs" "127.0.0.1:${port[scs]}" "$dir/scs.db"
start bare "$dir/bare" "127.0.0.1:${port[bare]}" 0
padding=$(($(size -addr "127.0.0.1:${port[ringward]}") - $(size -addr "127.0.0.1:${port[bare]}" -path /refused)))
stop bare
start bare "$dir/bare" "127.0.0.1:${port[bare]}" "$padding"
cookie=([bare]=)

if [[ $million ]]; then
  say "making 1,000,000 sessions"
  mkdir "$dir/million"
  (cd .. && BENCH_KEEP="$dir/million" go test -run '^$' -bench '^BenchmarkStore$/^sessions=1000000$/^none$' . >&2)
  serve million "$dir/million/sessions.db"
  million_start=$first
fi

cpu() { cat /proc/"${pid[$1]}"/task/*/schedstat | awk '{s += $1} END {printf "%.0f", s}'; }
# measure ROUND ROW NAME [load's options]: req/s, p50 and p99 in µs, CPU µs of the server per request, wrong answers
measure() {
  local round=$1 row=$2 name=$3 before after result
  shift 3
  before=$(cpu "$name")
  result=$(load -addr "127.0.0.1:${port[$name]}" -d "${seconds}s" "$@")
  after=$(cpu "$name")
  echo "$round $row $name $result $before $after" | awk -v s="$seconds" \
    '{print $1, $2, $3, $4, $5, $6, ($10 - $9) / 1000 / ($4 * s), $8}' >>"$dir/results"
}
for ((round = 0; round <= rounds; round++)); do # round 0 warms up
  say "round $round of $rounds"
  cookie[ringward]=$(login ringward) cookie[scs]=$(login scs) # a user has 100 sessions at most
  for name in bare ringward scs; do measure $round get $name -cookie "${cookie[$name]}"; done
  if [[ $million ]]; then
    measure $round get million -cookies "$dir/million/cookies"
    measure $round same million -cookie "$(head -1 "$dir/million/cookies")"
  fi
  measure $round nocookie bare -path /refused -status 401
  measure $round nocookie ringward -status 401
  measure $round nocookie scs -status 401
  measure $round badsignature bare -path /refused -status 401 -cookie "${cookie[ringward]}x"
  measure $round badsignature ringward -status 401 -cookie "${cookie[ringward]}x"
  for name in bare ringward scs; do measure $round login $name -c 8 -method POST -path /auth/session -body "$user" -status 201; done
done
loaded=$(memory ringward) million_loaded=
if [[ $million ]]; then million_loaded=$(memory million) million_size=$(($(stat -c %s "$dir/million/sessions.db") >> 20)); fi
stop ringward
starts= idle=
for ((i = 0; i < 5; i++)); do
  serve ringward "$dir/one.db"
  starts+="$first "
  idle=$(memory ringward)
  stop ringward
done

awk '
function median(list,   a, n, i, j, t) {
  n = split(list, a, " ")
  for (i = 2; i <= n; i++) { t = a[i] + 0; for (j = i - 1; j > 0 && a[j] + 0 > t; j--) a[j + 1] = a[j]; a[j + 1] = t }
  return n % 2 ? a[(n + 1) / 2] : (a[n / 2] + a[n / 2 + 1]) / 2
}
$1 > 0 {
  if ($8 > 0) wrong = wrong " " $2 "/" $3 ": " $8
  for (k = 4; k <= 7; k++) {
    value[$2, $3, k] = value[$2, $3, k] " " $k
    if ($3 == "bare") bare[k] = $k
    else if (bare[k] > 0) ratio[$2, $3, k] = ratio[$2, $3, k] " " $k / bare[k]
  }
}
function line(title, row, k, form,   n, i, s, found) {
  s = "| " title
  n = split("bare ringward million scs", name, " ")
  for (i = 1; i <= n; i++) {
    if (name[i] == "million" && !("get" SUBSEP "million" SUBSEP 4 in value)) continue
    if (!((row, name[i], k) in value)) { s = s " | "; continue }
    found = 1
    s = s " | " sprintf(form, median(value[row, name[i], k]))
    if (name[i] != "bare") s = s sprintf(" (%.2f)", median(ratio[row, name[i], k]))
  }
  if (found) print s " |"
}
END {
  if ("get" SUBSEP "million" SUBSEP 4 in value) print "| | bare | ringward | 1,000,000 sessions at random | scs |\n| --- | --: | --: | --: | --: |"
  else print "| | bare | ringward | scs |\n| --- | --: | --: | --: |"
  line("GET with a session, /s", "get", 4, "%.0f")
  line("p50, µs", "get", 5, "%.0f")
  line("p99, µs", "get", 6, "%.0f")
  line("CPU of the server, µs per GET", "get", 7, "%.1f")
  line("GET with always the same session, /s", "same", 4, "%.0f")
  line("refused, no cookie, /s", "nocookie", 4, "%.0f")
  line("CPU of the server, µs", "nocookie", 7, "%.1f")
  line("refused, bad signature, /s", "badsignature", 4, "%.0f")
  line("CPU of the server, µs", "badsignature", 7, "%.1f")
  line("logins at cost 10, /s", "login", 4, "%.1f")
  if (wrong) { print "\nwrong answers:" wrong; exit 1 }
}' "$dir/results"
echo
echo "In brackets: the ratio to bare. ringward: start to first answer $(tr ' ' '\n' <<<"$starts" | grep . | sort -n | sed -n 3p) ms," \
  "anonymous memory $idle MiB idle, $loaded MiB after the load, stripped binary $(awk -v n="$(stat -c %s "$dir/ringward")" 'BEGIN {printf "%.1f", n / 1e6}') MB."
if [[ $million ]]; then
  echo "With 1,000,000 sessions: start $million_start ms, anonymous memory after the load $million_loaded MiB, file $million_size MiB."
fi
