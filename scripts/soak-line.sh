#!/bin/sh
# Sums a log of `make soak` up as the line of docs/soak.md: scripts/soak-line.sh target/soak.log
set -eu

commit=$(git rev-parse --short HEAD)
git diff --quiet HEAD -- src tests Cargo.lock || commit="$commit, changed"
awk -v date="$(date -u +%F)" -v commit="$commit" '
  function value(name) { return match($0, " " name "=[^ ;]*") ? substr($0, RSTART + length(name) + 2, RLENGTH - length(name) - 2) : "" }
  # The runner writes the name of a test before its output where it runs one at a time.
  /soak: seed=/ { seed = value("seed") }
  /soak: .* kills=/ {
    kills += value("kills"); in_flight += value("in_flight"); restarts += value("restarts")
    freezes += value("freezes"); transactions += value("transactions")
    # Tests between versions name two; the others the one that was chosen.
    if ($0 !~ /versions::/) { split(value("postgresql"), versions, "/"); version = versions[1] }
  }
  /^test result: ok/ { result = "passed: " $4 " tests" }
  /^test result: FAILED/ { result = "failed: " $6 " of " $4 + $6 " tests" }
  /^test result: / { match($0, /finished in [0-9.]*/); hours = substr($0, RSTART + 12, RLENGTH - 12) / 3600 }
  END {
    printf "| %s | %s | %s | %d, %d in flight | %d | %d | %d | %s | %.2f | %s |\n", date, commit, version, kills, in_flight,
      restarts, freezes, transactions, seed, hours, result == "" ? "no result" : result
  }
' "$1"
