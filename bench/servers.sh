# Servers of a bench, for its scripts to source: they live in $WORK and end with the script. $BIN has the server's programs.

[ -x "$BIN/psql" ] || { echo "$0: psql is not in $BIN; install the client programs too" >&2; exit 1; }
WORK=$(mktemp -d "${TMPDIR:-/tmp}/strangler-bench.XXXXXX")
chmod 755 "$WORK"
declare -A PORT
# The process of a mirror that runs, to be ended first.
MIRROR=

as_server() { if [ "$(id -u)" = 0 ]; then setpriv --reuid=65534 --regid=65534 --clear-groups -- "$@"; else "$@"; fi; }

finish() {
  [ -z "$MIRROR" ] || { kill "$MIRROR" 2>/dev/null; wait "$MIRROR" 2>/dev/null || true; }
  for side in "${!PORT[@]}"; do as_server "$BIN/pg_ctl" -D "$WORK/$side/data" -m immediate stop >/dev/null 2>&1 || true; done
  rm -rf "$WORK"
}
trap finish EXIT

start_server() { # side settings
  mkdir -p "$WORK/$1"
  [ "$(id -u)" != 0 ] || chown 65534:65534 "$WORK/$1"
  as_server "$BIN/initdb" -D "$WORK/$1/data" -U postgres -A trust -E UTF8 --locale=C --no-sync >/dev/null
  PORT[$1]=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
  as_server "$BIN/pg_ctl" -D "$WORK/$1/data" -l "$WORK/$1/log" -w \
    -o "-p ${PORT[$1]} -k $WORK/$1 -c wal_level=logical $2" start >/dev/null
}
