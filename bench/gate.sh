#!/usr/bin/env bash
# What an open gate costs a statement: single-row INSERTs and UPDATEs in a loop inside the server, on a table that `strangler arm`
# has armed and on one like it without a gate, in turns.
#
#   bench/gate.sh                             15 runs of 100,000 statements each, medians; about three minutes
#   STATEMENTS=20000 RUNS=5 bench/gate.sh     quick
#   STRANGLER=path bench/gate.sh              that program instead of a release build of this folder
#
# Once with all statements in one transaction, and once with a transaction for each (without waiting for the disk), in which
# each takes the gate's lock anew. Microseconds are those that the session's process was on a CPU (Linux), so that other work on
# the machine does not count. Needs psql beside the server's programs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

STATEMENTS=${STATEMENTS:-100000} RUNS=${RUNS:-15} OUT=${OUT:-target/bench-gate.tsv}
BIN=$(scripts/install-postgres.sh 2>&1 | sed -n 's/^Found .* in //p' | tail -n 1)
if [ -z "${STRANGLER:-}" ]; then
  cargo build --release --locked --bin strangler
  STRANGLER=$PWD/target/release/strangler
fi

. bench/servers.sh

start() { # side
  start_server "$1" "-c shared_buffers=256MB -c max_wal_size=8GB -c checkpoint_timeout=30min -c autovacuum=off -c max_slot_wal_keep_size=20GB"
  sql "$1" postgres postgres "CREATE ROLE app LOGIN; ALTER ROLE app SET synchronous_commit = off; CREATE ROLE strangler_apply LOGIN REPLICATION SUPERUSER"
  sql "$1" postgres postgres "CREATE DATABASE d"
}
link() { echo "postgres://postgres@127.0.0.1:${PORT[$1]}/d"; }
sql() { "$BIN/psql" -XAtq -v ON_ERROR_STOP=1 -h 127.0.0.1 -p "${PORT[$1]}" -U "$3" -d "$2" -c "$4"; }

start monolith
start service
sql monolith d postgres "GRANT pg_read_server_files TO app; GRANT EXECUTE ON FUNCTION pg_read_file(text) TO app;
  CREATE FUNCTION on_cpu() RETURNS float8 LANGUAGE sql AS \$\$ SELECT split_part(pg_read_file('/proc/self/schedstat'), ' ', 1)::float8 \$\$"
for table in gated plain; do
  sql monolith d postgres "CREATE TABLE $table (id bigint PRIMARY KEY, n bigint NOT NULL, note text);
    GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON $table TO app"
  for one in update:"UPDATE $table SET n = n + 1 WHERE id = 1 + i % 10000" insert:"INSERT INTO $table VALUES (100000 + i, i, 'a row')"; do
    for way in "together:" "apart:COMMIT;"; do
      sql monolith d postgres "CREATE PROCEDURE ${one%%:*}_${table}_${way%%:*}(statements int, INOUT us float8) LANGUAGE plpgsql AS \$\$
        DECLARE begun float8 := on_cpu();
        BEGIN
          FOR i IN 1..statements LOOP ${one#*:}; ${way#*:} END LOOP;
          us := (on_cpu() - begun) / 1e3 / statements;
        END \$\$"
    done
  done
done
cat >"$WORK/plan.yaml" <<PLAN
version: 1
plan: bench
monolith: { url: "$(link monolith)", app_roles: [app] }
services: { service: { url: "$(link service)", app: app } }
slices: { bench: { service: service, tables: { gated: {} } } }
policy: { wal_budget: 10GB }
PLAN
"$STRANGLER" provision "$WORK/plan.yaml" >/dev/null 2>&1
"$STRANGLER" mirror "$WORK/plan.yaml" >"$WORK/mirror.log" 2>&1 &
MIRROR=$!
until [ "$(sql service d postgres "SELECT coalesce(bool_and(state = 'live'), false) FROM strangler.mirror_table")" = t ]; do
  kill -0 "$MIRROR" || { cat "$WORK/mirror.log" >&2; exit 1; }
  sleep 0.2
done
"$STRANGLER" arm "$WORK/plan.yaml" >"$WORK/arm.log" 2>&1 || { cat "$WORK/arm.log" >&2; exit 1; }
# The mirror would take a share of the machine.
kill "$MIRROR" && wait "$MIRROR" 2>/dev/null || true
MIRROR=

printf 'statement\ttransactions\ttable\trun\tus\n' >"$OUT"
for run in $(seq "$RUNS"); do
  for way in together apart; do
    for table in plain gated; do
      sql monolith d app "TRUNCATE $table; INSERT INTO $table SELECT i, 0, 'a row' FROM generate_series(1, 10000) AS i"
      for statement in update insert; do
        us=$(sql monolith d app "CALL ${statement}_${table}_$way($STATEMENTS, NULL)")
        printf '%s\t%s\t%s\t%s\t%s\n' "$statement" "$way" "$table" "$run" "$us" >>"$OUT"
      done
    done
  done
  sql monolith d postgres CHECKPOINT
done

tail -n +2 "$OUT" | sort -t $'\t' -k1,3 -k5,5g | awk -F'\t' '
  { k = $1 "\t" $2 "\t" $3; n[k]++; v[k, n[k]] = $5 }
  function median(k) { return v[k, int((n[k] + 1) / 2)] }
  END { split("update insert", s, " "); split("together apart", w, " ")
    words["together"] = "in one transaction"; words["apart"] = "a transaction each"
    for (i = 1; i <= 2; i++) for (j = 1; j <= 2; j++) { p = s[i] "\t" w[j] "\tplain"; g = s[i] "\t" w[j] "\tgated"
      printf "%-7s %-19s  without gate %6.2f us  with gate %6.2f us  the gate costs %5.2f us (medians of %d)\n",
        s[i], words[w[j]], median(p), median(g), median(g) - median(p), n[g] } }'
