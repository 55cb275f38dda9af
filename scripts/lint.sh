#!/usr/bin/env bash
# Format, clippy, the tidy test, the runtime's code for the other architecture, and cargo-deny where it is installed.
set -euo pipefail
. "$(dirname "$0")/toolchain.sh"

cargo fmt --all --check
cargo clippy --workspace --all-targets --locked -- -D warnings
cargo test --workspace --locked --quiet --test tidy
scripts/other-architecture.sh
if cargo deny --version >/dev/null 2>&1; then
    cargo deny --locked check
else
    echo "cargo-deny is not installed: advisories were NOT checked (licences, sources and duplicates were, by the tidy test)"
fi
