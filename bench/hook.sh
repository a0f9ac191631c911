#!/usr/bin/env bash
# Takes part in another harness's comparison: `bench/hook.sh diff` compares the table TABLE (key KEY) of SRC_URI and DST_URI,
# both of which hold it already, and ends well when EXPECT_DIFFS rows were found to differ and no others.
#
# The first call for a pair of databases prepares it: the copy is emptied, adopted and filled by a mirror, which then goes on in
# the background until the source's server has gone. That call's time is not one of a comparison; leave it out, as a median does.
# The harness may write to the copy, so the gate's trigger is taken off there. STRANGLER names the program.
set -euo pipefail
[ "${1:-}" = diff ] || { echo "usage: SRC_URI=… DST_URI=… TABLE=… EXPECT_DIFFS=… $0 diff" >&2; exit 2; }
STRANGLER=${STRANGLER:-$(dirname "${BASH_SOURCE[0]}")/../target/release/strangler}
HOME_OF_PAIR=${TMPDIR:-/tmp}/strangler-hook.$(printf '%s %s' "$SRC_URI" "$DST_URI" | md5sum | cut -c1-12)
plan=$HOME_OF_PAIR/plan.yaml
sql() { psql -XAtq -v ON_ERROR_STOP=1 -d "$1" -c "$2"; }

prepare() {
  mkdir -p "$HOME_OF_PAIR"
  cat >"$plan" <<PLAN
version: 1
plan: hook
monolith: { url: "$SRC_URI" }
services: { service: { url: "$DST_URI", ddl: adopt } }
slices: { hook: { service: service, tables: { $TABLE: {} } } }
policy: { wal_budget: 10GB }
PLAN
  sql "$DST_URI" "TRUNCATE $TABLE"
  "$STRANGLER" provision "$plan" >&2
  setsid "$STRANGLER" mirror "$plan" >"$HOME_OF_PAIR/mirror.log" 2>&1 </dev/null &
  local mirror=$!
  (while sleep 1; do psql -XAtq -d "$SRC_URI" -c '' 2>/dev/null || break; done
    kill "$mirror" 2>/dev/null; sleep 1; kill -9 "$mirror" 2>/dev/null; rm -rf "$HOME_OF_PAIR") >/dev/null 2>&1 </dev/null &
  until [ "$(sql "$DST_URI" "SELECT bool_and(state = 'live') AND NOT EXISTS (SELECT FROM strangler.deferred WHERE done_at IS NULL) FROM strangler.mirror_table")" = t ]; do
    kill -0 "$mirror" || { cat "$HOME_OF_PAIR/mirror.log" >&2; exit 1; }
    sleep 0.5
  done
  sql "$DST_URI" "ALTER TABLE $TABLE DISABLE TRIGGER aa_strangler_gate"
  # One at a time: neither can be part of a list.
  sql "$DST_URI" "VACUUM ANALYZE $TABLE"
  sql "$DST_URI" CHECKPOINT
  touch "$HOME_OF_PAIR/ready"
}

[ -e "$HOME_OF_PAIR/ready" ] || prepare
status=0
"$STRANGLER" reconcile "$plan" --fresh --format json --list 1000 >"$HOME_OF_PAIR/report.json" 2>"$HOME_OF_PAIR/words" || status=$?
[ "$status" = "$([ "$EXPECT_DIFFS" = 0 ] && echo 0 || echo 1)" ] || { cat "$HOME_OF_PAIR/words" >&2; exit 1; }
[ "$(grep -c '"kind": "differs"' "$HOME_OF_PAIR/report.json" || true)" = "$EXPECT_DIFFS" ]
