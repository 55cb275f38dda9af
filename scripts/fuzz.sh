#!/usr/bin/env bash
# Runs every fuzz target for FUZZ_SECONDS (60).
set -euo pipefail
. "$(dirname "$0")/toolchain.sh"

shopt -s nullglob
crates=(*/fuzz/Cargo.toml runtime/*/fuzz/Cargo.toml)
if [[ ${#crates[@]} -eq 0 ]]; then
    echo "error: there are no fuzz crates yet" >&2
    exit 1
fi
cargo fuzz --version >/dev/null 2>&1 || { echo "error: cargo-fuzz is not installed: cargo install cargo-fuzz" >&2; exit 1; }
for crate in "${crates[@]}"; do
    dir=$(dirname "$crate")
    for target in $(cargo fuzz list --fuzz-dir "$dir"); do
        echo "== $dir $target"
        cargo fuzz run --fuzz-dir "$dir" "$target" -- -max_total_time="${FUZZ_SECONDS:-60}"
    done
done
