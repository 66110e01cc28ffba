#!/usr/bin/env bash
# Measures what a login costs, on loopback, and prints tables: the same handlers
# over the same store without a login (bare), behind RequireLogin alone, in
# ringward as it is, and behind scs over bbolt. Linux with two CPUs; needs Go
# and nothing else.
#
#   bench/run.sh [--rounds N] [--seconds S] [--million]
#
# The servers have CPU 0, the load has CPU 1. --million adds ringward with
# 1,000,000 sessions (a minute and 1 GB of disk more).
set -euo pipefail
cd "$(dirname "$0")"
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
export SECRET_KEY=0123456789abcdef0123456789abcdef # that of the benchmarks, which make the 1,000,000 sessions
export GOGC=400                                    # as ringward has it, for all

echo building >&2
mkdir "$dir/src" "$dir/src/peer" "$dir/src/ringward"
cp ../{store,record,file,cache,session,throttle,auth,json,rings}.go peer.go fixed.go go.mod go.sum "$dir/src/peer"
cp -r ../*.go ../go.mod ../go.sum ../web ../help.txt ../passwords.txt ../completion.bash fixed.go "$dir/src/ringward"
rm -f "$dir"/src/ringward/*_test.go
sed -i 's|^\tmux.Handle("GET /{$}"|\tmux.Handle("GET /fixed", requireLogin(http.HandlerFunc(handleFixed)))\n&|' "$dir/src/ringward/routes.go"
(cd "$dir/src/peer" && go build -tags copied -o "$dir/peer")
(cd "$dir/src/ringward" && go build -tags copied -ldflags '-s -w' -o "$dir/ringward")
go build -o "$dir/bench"

echo speak-friend-and-enter | "$dir/ringward" -bcrypt-cost 10 -db "$dir/ringward.db" user add -password-stdin frodo >&2
if [[ " $* " = *" --million "* ]]; then
  echo "making 1,000,000 sessions" >&2
  mkdir "$dir/million"
  (cd .. && BENCH_KEEP="$dir/million" go test -run '^$' -bench '^BenchmarkStore$/^sessions=1000000$/^none$' . >&2)
fi
taskset -c 1 "$dir/bench" -dir "$dir" "$@"
