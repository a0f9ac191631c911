#!/usr/bin/env bash
# How long writers are kept from committing while the right to write moves: `strangler flip` there and back, beside two ways by
# hand over native logical replication: LOCK TABLE, wait, switch; and REVOKE, end all sessions, wait, switch. In one run, at 200
# and 1,000 transactions per second and at the highest rate that each one sustains.
#
#   bench/pause.sh                               50 flips per rate, 50 switches by hand per rate; about 12 minutes
#   FLIPS=10 RATES=200 bench/pause.sh            quick
#   STRANGLER=path PAUSE=path bench/pause.sh     these programs instead of a release build of this folder
#
# Needs psql beside the server's programs. Eight writers follow the owner as docs/clients.md says (bench/pause/writers.rs). Columns
# of the result: way, rate, number, gap (last commit on the old side to the first on the new one, in ms), longest transaction
# (from its first attempt to its commit, in ms), and what the mover said of itself. Servers sync their commits to disk.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

FLIPS=${FLIPS:-50} SWITCHES=${SWITCHES:-$FLIPS} RATES=${RATES:-200 1000 highest} OUT=${OUT:-target/bench-pause.tsv}
BIN=$(scripts/install-postgres.sh 2>&1 | sed -n 's/^Found .* in //p' | tail -n 1)
if [ -z "${STRANGLER:-}" ]; then
  cargo build --release --locked --bin strangler --example pause
  STRANGLER=$PWD/target/release/strangler PAUSE=$PWD/target/release/examples/pause
fi

. bench/servers.sh

start() { # side
  start_server "$1" "-c shared_buffers=256MB -c max_wal_size=4GB -c checkpoint_timeout=15min -c max_slot_wal_keep_size=8GB"
  sql "$1" postgres "CREATE ROLE app LOGIN; CREATE ROLE strangler_apply LOGIN REPLICATION SUPERUSER"
}
link() { echo "postgres://${3:-postgres}@127.0.0.1:${PORT[$1]}/$2"; }
sql() { "$BIN/psql" -XAtq -v ON_ERROR_STOP=1 -h 127.0.0.1 -p "${PORT[$1]}" -U postgres -d "$2" -c "$3"; }
say() { printf '%s\n' "$*" >&2; }

TABLES="CREATE TABLE accounts (id bigint PRIMARY KEY, balance bigint NOT NULL DEFAULT 0);
  CREATE TABLE orders (id bigserial PRIMARY KEY, account bigint NOT NULL, note text NOT NULL, at timestamptz NOT NULL DEFAULT clock_timestamp());
  GRANT SELECT ON accounts, orders TO app; GRANT USAGE ON SEQUENCE orders_id_seq TO app"
ROWS="INSERT INTO accounts SELECT generate_series(1, 100000); GRANT INSERT, UPDATE, DELETE ON accounts, orders TO app"

start monolith
start service
for side in monolith service; do
  sql "$side" postgres "CREATE DATABASE ours"
  sql "$side" postgres "CREATE DATABASE byhand"
done
sql monolith ours "$TABLES; $ROWS"
for side in monolith service; do sql "$side" byhand "$TABLES"; done
sql monolith byhand "$ROWS; CREATE PUBLICATION bench FOR TABLE accounts, orders"
sql service byhand "CREATE SUBSCRIPTION bench CONNECTION 'host=127.0.0.1 port=${PORT[monolith]} user=postgres dbname=byhand application_name=bench' PUBLICATION bench" 2>/dev/null

cat >"$WORK/plan.yaml" <<PLAN
version: 1
plan: bench
monolith: { url: "$(link monolith ours)", app_roles: [app] }
services: { service: { url: "$(link service ours)", app: app } }
slices: { bench: { service: service, tables: { accounts: {}, orders: {} } } }
policy: { wal_budget: 4GB, min_mirror_time: 0s, write_pause_budget: 2s }
PLAN
"$STRANGLER" provision "$WORK/plan.yaml" >/dev/null 2>&1
"$STRANGLER" mirror "$WORK/plan.yaml" >"$WORK/mirror.log" 2>&1 &
MIRROR=$!
until_true() { # side database query
  for _ in $(seq 300); do
    [ "$(sql "$1" "$2" "$3")" != t ] || return 0
    kill -0 "$MIRROR" || break
    sleep 0.2
  done
  cat "$WORK/mirror.log" >&2
  exit 1
}
until_true service ours "SELECT bool_and(state = 'live') AND NOT EXISTS (SELECT FROM strangler.deferred WHERE done_at IS NULL) FROM strangler.mirror_table"
"$STRANGLER" arm "$WORK/plan.yaml" >"$WORK/arm.log" 2>&1 || { cat "$WORK/arm.log" >&2; exit 1; }
until_true monolith ours "SELECT EXISTS (SELECT FROM strangler.mirror_process WHERE dir = 'reverse' AND stopped_at IS NULL)"
until_true service byhand "SELECT NOT EXISTS (SELECT FROM pg_subscription_rel WHERE srsubstate <> 'r')"

printf 'way\trate\tnumber\tgap_ms\tlongest_ms\tsaid\n' >"$OUT"
measure() { # way rate times database
  for side in monolith service; do sql "$side" "$4" "CHECKPOINT"; done
  "$PAUSE" "$1" "$2" "$3" "$(link monolith "$4" app)" "$(link service "$4" app)" "$(link monolith "$4")" "$(link service "$4")" \
    "$STRANGLER" "$WORK/plan.yaml" >>"$OUT" || { tail -n 20 "$WORK/mirror.log" >&2; exit 1; }
  # The next run's notes are its own.
  [ "$1" = strangler ] || { sql monolith "$4" "TRUNCATE orders"; sql service "$4" "TRUNCATE orders"; }
}
for rate in $RATES; do
  measure strangler "$rate" "$FLIPS" ours
  for way in lock revoke; do measure "$way" "$rate" "$SWITCHES" byhand; done
done

# Quantiles over the moves of each way and rate: of the gap, and of the longest transaction.
tail -n +2 "$OUT" | sort -t $'\t' -k1,1 -k2,2n -k4,4n | awk -F'\t' '
  function at(v, c, share,  i) { i = int(c * share); if (i < c * share) i++; return v[i < 1 ? 1 : i] }
  function print_group(  i, j, t) { if (c == 0) return
    for (i = 2; i <= c; i++) { t = w[i]; for (j = i - 1; j > 0 && w[j] > t; j--) w[j + 1] = w[j]; w[j + 1] = t }
    printf "%-10s %6s/s  %3d moves  gap p50 %7.1f  p90 %7.1f  p99 %7.1f  max %7.1f ms   longest transaction p50 %7.1f  p99 %7.1f ms\n", \
      way, rate, c, at(g, c, .5), at(g, c, .9), at(g, c, .99), g[c], at(w, c, .5), at(w, c, .99); c = 0 }
  $1 != way || $2 != rate { print_group(); way = $1; rate = $2 }
  { c++; g[c] = $4; w[c] = $5 }
  END { print_group() }'
