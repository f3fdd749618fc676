# Every target works right after `git clone` on a machine with Rust; what else it needs is installed, and said.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# Nothing async may be in the normal dependency tree, on any platform.
ASYNC := ^(tokio|async-|smol|futures)

CHAOS_MINUTES ?= 5
SOAK_MINUTES ?= 10
FUZZ_SECONDS ?= 60
FUZZ_TARGETS ?= reply entries url pem
# cargo-fuzz needs a nightly compiler; another one can be named here.
NIGHTLY ?= nightly

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: setup
setup: ## install a Redis server and openssl where they are missing (done by the targets that need them)
	@.ci/install-redis

.PHONY: servers
servers: ## bring the servers that the tests are run against into target/servers (Redis 6.2 to 8.0, Valkey 8 and 9)
	@.ci/servers

# The dev profile: the shortest way from a fresh clone to a running demo, and `make test` goes on from what it built.
.PHONY: demo
demo: setup ## publish and receive 10 messages through a private server
	cargo run --example stream_demo -- --count 10

.PHONY: test
test: setup ## run every test, with and without default features, and those of TLS alone
	cargo test --no-fail-fast
	cargo test --no-fail-fast --no-default-features
	cargo test --no-fail-fast --no-default-features --features tls --lib

.PHONY: lint
lint: ## formatting, clippy, documentation, and no async crate in the tree
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings
	cargo clippy --all-targets --no-default-features -- -D warnings
	cargo clippy --all-targets --no-default-features --features tls -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps
	@tree=$$(cargo tree --edges normal --target all --all-features --prefix none); \
	found=$$(grep -E '$(ASYNC)' <<<"$$tree" || true); \
	if [ -n "$$found" ]; then printf 'async crates in the dependency tree:\n%s\n' "$$found" >&2; exit 1; fi; \
	echo "no async crate among $$(cut -d ' ' -f 1,2 <<<"$$tree" | sort -u | wc -l) crates"

.PHONY: neighbours
neighbours: ## build crates that depend on this one and on redis with other features
	@.ci/neighbours

# In a folder of its own, so that nothing else is built again because of it.
.PHONY: model
model: ## try every order in which threads can take their steps (2 minutes)
	RUSTFLAGS="--cfg step_redis_loom" cargo test --release --no-default-features --lib --target-dir target/model model::

.PHONY: bench
bench: setup ## run the benchmarks (under 5 minutes); table and chart in target/bench (`make bench-record` keeps them)
	cargo bench $(foreach bench,publish receive latency connect footprint,--bench $(bench))
	cargo bench --bench report

.PHONY: bench-record
bench-record: bench
	cargo bench --bench footprint -- --all --clean
	cargo bench --bench instructions
	cargo bench --bench report -- --record

.PHONY: chaos
chaos: setup ## torture server, network and consumers for CHAOS_MINUTES=5 and count every entry (CHAOS_SEED repeats a run)
	CHAOS_MINUTES=$(CHAOS_MINUTES) $(if $(CHAOS_SEED),CHAOS_SEED=$(CHAOS_SEED)) \
		cargo test --release --test chaos every_entry -- --nocapture

.PHONY: soak
soak: setup ## watch memory and file descriptors for SOAK_MINUTES=10
	SOAK_MINUTES=$(SOAK_MINUTES) cargo test --release --test soak -- --nocapture

# libFuzzer writes what it finds interesting into the first folder; the seeds in the second stay as they are.
.PHONY: fuzz
fuzz: ## fuzz every target for FUZZ_SECONDS=60 each (needs nightly and cargo-fuzz)
	@cargo fuzz --version >/dev/null 2>&1 || { echo "cargo-fuzz is missing: cargo install cargo-fuzz" >&2; exit 1; }
	@cargo +$(NIGHTLY) --version >/dev/null 2>&1 || \
		{ echo "no $(NIGHTLY) compiler: rustup toolchain install nightly --profile minimal" >&2; exit 1; }
	@for target in $(FUZZ_TARGETS); do \
		echo "fuzzing $$target for $(FUZZ_SECONDS) s"; \
		mkdir -p "tests/fuzz/target/corpus/$$target"; \
		cargo +$(NIGHTLY) fuzz run --fuzz-dir tests/fuzz "$$target" \
			"tests/fuzz/target/corpus/$$target" "tests/fuzz/corpus/$$target" \
			-- -max_total_time=$(FUZZ_SECONDS) -timeout=10 -rss_limit_mb=1024 -verbosity=0 -print_final_stats=1; \
	done
