#!/usr/bin/env bash
# Tries every fuzz target for FUZZ_SECONDS (60) with inputs that `make test` has not seen; FUZZ_SEED repeats a run.
set -euo pipefail
. "$(dirname "$0")/toolchain.sh"

export FUZZ_SECONDS=${FUZZ_SECONDS:-60}
cargo test --locked -p gantryd --test fuzz -- --nocapture --test-threads 1
