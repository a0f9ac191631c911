#!/usr/bin/env bash
# Compares a table that two servers hold, once identical and once with 100 changed rows: `strangler reconcile` beside the
# plain hash of both sides at once (what no comparison by hashes can beat) and reladiff, in one run on this machine.
#
#   bench/reconcile.sh                        5 M rows, 3 repetitions, medians
#   ROWS=500000 REPS=1 bench/reconcile.sh     quick
#   STRANGLER=path bench/reconcile.sh         that program instead of a release build of this folder
#   RELADIFF=path bench/reconcile.sh          reladiff 0.6 (pip install 'reladiff[postgresql]'); left out when absent
#
# Needs psql beside the server's programs. Three tables: `narrow` (integer key, 4 columns), `scattered` (random uuid key),
# `wide` (40 columns). Figures: wall seconds, CPU seconds of each server and of the client, peak memory of the client.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

ROWS=${ROWS:-5000000} REPS=${REPS:-3} RELADIFF=${RELADIFF:-reladiff} OUT=${OUT:-target/bench-reconcile.tsv}
WIDE=$((ROWS / 10)) SCATTERED=$((ROWS / 5))
BIN=$(scripts/install-postgres.sh 2>&1 | sed -n 's/^Found .* in //p' | tail -n 1)
if [ -z "${STRANGLER:-}" ]; then
  cargo build --release --locked
  STRANGLER=$PWD/target/release/strangler
fi

. bench/servers.sh
declare -A PID

start() { # side
  start_server "$1" "-c shared_buffers=512MB -c max_wal_size=8GB -c checkpoint_timeout=15min -c max_slot_wal_keep_size=20GB"
  PID[$1]=$(head -n 1 "$WORK/$1/data/postmaster.pid")
  sql "$1" postgres "CREATE DATABASE d"
}
link() { echo "postgres://postgres@127.0.0.1:${PORT[$1]}/d"; }
sql() { "$BIN/psql" -XAtq -v ON_ERROR_STOP=1 -h 127.0.0.1 -p "${PORT[$1]}" -U postgres -d "$2" -c "$3"; }

# CPU seconds of a server: of its processes, and of those that have ended.
cpu() {
  local pids="$1 $(pgrep -P "$1" | tr '\n' ' ')" pid sum=0
  for pid in $pids; do
    [ -r "/proc/$pid/stat" ] || continue
    sum=$((sum + $(sed 's/.*) //' "/proc/$pid/stat" | awk -v top="$pid" -v of="$1" '{ print $12 + $13 + (top == of ? $14 + $15 : 0) }')))
  done
  awk -v ticks="$sum" -v hz="$(getconf CLK_TCK)" 'BEGIN { printf "%.2f", ticks / hz }'
}

say() { printf '%s\n' "$*" >&2; }
measure() { # table case repetition command...
  local table=$1 case=$2 rep=$3 a0 b0 a1 b1 wall client memory status=0
  shift 3
  a0=$(cpu "${PID[source]}") b0=$(cpu "${PID[target]}")
  /usr/bin/env bash -c 'TIMEFORMAT="%R %U %S"; time "$@"' _ "$@" >"$WORK/out" 2>"$WORK/err" || status=$?
  a1=$(cpu "${PID[source]}") b1=$(cpu "${PID[target]}")
  read -r wall client < <(tail -n 1 "$WORK/err" | awk '{ printf "%s %.2f\n", $1, $2 + $3 }')
  memory=$(sed -n 's/^peak_kb=//p' "$WORK/err" | tail -n 1)
  printf '%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n' "$table" "$case" "$rep" "$wall" "$(awk -v a="$a0" -v b="$a1" 'BEGIN { printf "%.2f", b - a }')" \
    "$(awk -v a="$b0" -v b="$b1" 'BEGIN { printf "%.2f", b - a }')" "$client" "${memory:--}" "$status" | tee -a "$OUT" >&2
}

say "Loading $ROWS, $SCATTERED and $WIDE rows."
start source
start target
wide=$(for i in $(seq 39); do printf ', c%s text' "$i"; done)
values=$(for i in $(seq 39); do printf ", md5((i * %s)::text)" "$i"; done)
sql source d "CREATE TABLE narrow (aid int PRIMARY KEY, bid int, abalance int, filler char(84));
  INSERT INTO narrow SELECT i, 1 + i / 100000, 0, '' FROM generate_series(1, $ROWS) AS i;
  CREATE TABLE scattered (id uuid PRIMARY KEY, n int, at timestamptz, note text);
  INSERT INTO scattered SELECT gen_random_uuid(), i, now(), md5(i::text) FROM generate_series(1, $SCATTERED) AS i;
  CREATE TABLE wide (id bigint PRIMARY KEY $wide);
  INSERT INTO wide SELECT i $values FROM generate_series(1, $WIDE) AS i"
sql source d "VACUUM ANALYZE"
cat >"$WORK/plan.yaml" <<PLAN
version: 1
plan: bench
monolith: { url: "$(link source)" }
services: { service: { url: "$(link target)" } }
slices: { bench: { service: service, tables: { narrow: {}, scattered: {}, wide: {} } } }
policy: { wal_budget: 10GB }
PLAN
"$STRANGLER" provision "$WORK/plan.yaml" >/dev/null 2>&1
"$STRANGLER" mirror "$WORK/plan.yaml" >"$WORK/mirror.log" 2>&1 &
MIRROR=$!
until [ "$(sql target d "SELECT bool_and(state = 'live') AND NOT EXISTS (SELECT FROM strangler.deferred WHERE done_at IS NULL) FROM strangler.mirror_table")" = t ]; do
  kill -0 "$MIRROR" || { cat "$WORK/mirror.log" >&2; exit 1; }
  sleep 1
done
for side in source target; do sql "$side" d "VACUUM ANALYZE"; sql "$side" d CHECKPOINT; done

columns() { # table
  case $1 in narrow) echo "-c bid -c abalance -c filler" ;; scattered) echo "-c n -c note" ;;
  wide) for i in $(seq 39); do printf -- '-c c%s ' "$i"; done ;; esac
}
hash_both() { # table
  local query="SELECT count(*), sum(hash_record_extended(t, 0)) FROM $1 AS t" one=0
  PGOPTIONS='-c max_parallel_workers_per_gather=0' sql source d "$query" >"$WORK/a" &
  PGOPTIONS='-c max_parallel_workers_per_gather=0' sql target d "$query" >"$WORK/b" || one=1
  wait "$!" && [ "$one" = 0 ]
}
export -f hash_both sql
export BIN WORK
ours() { # table differences
  python3 -c 'import resource, subprocess, sys
ended = subprocess.run(sys.argv[2:], stdout=open(sys.argv[1], "w"))
print("peak_kb=%d" % resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
sys.exit(ended.returncode)' "$WORK/report.json" "$STRANGLER" reconcile "$WORK/plan.yaml" --table "$1" --fresh --format json --list 1000 || local status=$?
  [ "${status:-0}" = "$([ "$2" = 0 ] && echo 0 || echo 1)" ] && [ "$(grep -c '"kind": "differs"' "$WORK/report.json")" -ge "$2" ]
}
peer() { # table key differences
  local found
  # shellcheck disable=SC2046
  found=$("$RELADIFF" "$(link source | sed s/postgres:/postgresql:/)" "$1" "$(link target | sed s/postgres:/postgresql:/)" "$1" \
    -k "$2" $(columns "$1") --threads 2 | grep -c '^[+-]' || true)
  [ "$found" = $((2 * $3)) ]
}

printf 'table\tcase\trep\twall_s\tcpu_source_s\tcpu_target_s\tcpu_client_s\tpeak_kb\tfailed\n' >"$OUT"
cat "$OUT" >&2
round() { # word differences
  for rep in $(seq "$REPS"); do
    for of in narrow:aid scattered:id wide:id; do
      table=${of%:*} key=${of#*:}
      for case in hash ours peer; do
        [ "$case" != peer ] || command -v "$RELADIFF" >/dev/null || continue
        [ "$case" != hash ] || [ "$2" = 0 ] || continue
        case $case in hash) body="hash_both $table" ;; ours) body="ours $table $2" ;; peer) body="peer $table $key $2" ;; esac
        measure "$table" "$1-$case" "$rep" bash -c "$(declare -p PORT); $(declare -f ours peer hash_both sql link columns); \
          STRANGLER='$STRANGLER' RELADIFF='$RELADIFF'; $body"
      done
    done
  done
}
round identical 0
# The gate lets the mirror's role write.
sql target d "SET SESSION AUTHORIZATION strangler_apply;
  UPDATE narrow SET abalance = abalance + 1 WHERE aid % ($ROWS / 100) = 7;
  UPDATE scattered SET n = -n WHERE n % ($SCATTERED / 100) = 7;
  UPDATE wide SET c7 = c7 || 'x' WHERE id % ($WIDE / 100) = 7"
round differs 100

awk -F'\t' 'NR > 1 { k = $1 " " $2; n[k]++; w[k, n[k]] = $4; bad[k] += $9 != 0; if (n[k] == 1) order[++m] = k }
  function median(k,  i, j, t, c) { c = n[k]; for (i = 1; i <= c; i++) v[i] = w[k, i];
    for (i = 1; i <= c; i++) for (j = i + 1; j <= c; j++) if (v[j] < v[i]) { t = v[i]; v[i] = v[j]; v[j] = t }
    return v[int((c + 1) / 2)] }
  END { for (i = 1; i <= m; i++) { k = order[i]; med[k] = median(k) }
    for (i = 1; i <= m; i++) { k = order[i]; split(k, p, /[ -]/); base = p[1] " identical-hash"
      printf "%-10s %-16s median %7.2f s%s%s\n", p[1], substr(k, length(p[1]) + 2), med[k],
        (base in med && k != base) ? sprintf("  %.2fx the hash", med[k] / med[base]) : "", bad[k] ? "  WRONG RESULT" : "" } }' "$OUT"
