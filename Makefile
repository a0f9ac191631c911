# `make` alone lists what there is. Nothing here needs more than Rust, git, a C compiler and make; a PostgreSQL server
# is looked for, and installed by scripts/install-postgres.sh where there is none.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help demo test lint soak bench postgres

# The test runner's own output stays visible. A run in which no test ran is a failure.
TOTAL = awk '/^test result: ok/ { passed += $$4 } END { print passed + 0, "tests passed"; exit passed == 0 }'

# Tests wait for servers, time limits and each other about a third of their time: with two more than there are cores these are busy. Still more only
# make each of them late.
THREADS = $$(($$(nproc) + 2))

help: ## Lists the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: postgres ## Walks the journey on servers of its own; make demo ARGS="--keep" to look around
	cargo run --profile demo -- demo $(ARGS)

test: postgres ## Runs the tests, in under 20 minutes on 2 cores
	@mkdir -p target
	set -o pipefail; RUST_TEST_THREADS=$${RUST_TEST_THREADS:-$(THREADS)} cargo test --features failpoints 2>&1 \
	  | tee target/test.log
	@$(TOTAL) target/test.log

lint: ## Checks formatting, lints and documentation; dependencies too where cargo-deny is installed
	cargo fmt --check
	cargo clippy --all-targets --features failpoints,containers,s3 -- -D warnings
	cargo clippy --features containers,s3 -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --document-private-items --features failpoints,containers,s3
	@if command -v cargo-deny >/dev/null; then cargo deny --offline check bans licenses sources; \
	else echo "cargo-deny is not installed: dependencies were not checked against deny.toml"; fi

# The test of archives in a store needs a store: moto, a Python package.
STORE = $(shell command -v moto_server >/dev/null && echo ,s3)

# One test is the process that another one kills; a build without the feature has a stand-in for the test with a store.
SKIPPED = --skip cluster::owner_of_a_cluster $(if $(STORE),,--skip retire::an_archive_in_a_store)

soak: postgres ## Runs every test in full, the long ones too, in about an hour; make soak ONLY="crash:: flip::" runs some
	@mkdir -p target
	@$(if $(STORE),,echo "moto_server is not installed (pip install 'moto[server]'): archives in a store are NOT tested")
	set -o pipefail; STRANGLER_SOAK=1 cargo test --features failpoints$(STORE) --test it -- $(ONLY) --include-ignored $(SKIPPED) 2>&1 \
	  | tee target/soak.log; status=$$?; echo "The line for docs/soak.md:"; scripts/soak-line.sh target/soak.log; exit $$status
	@$(TOTAL) target/soak.log

bench: postgres ## Measures beside peers, in one run on this machine; see bench/README.md
	bench/reconcile.sh
	bench/pause.sh
	bench/gate.sh

postgres:
	@scripts/install-postgres.sh
