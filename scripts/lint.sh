#!/usr/bin/env bash
# Format, clippy, the tidy test, the runtime's code for the other architecture, and cargo-deny where it is installed.
set -euo pipefail
. "$(dirname "$0")/toolchain.sh"

cargo fmt --all --check
cargo clippy --workspace --all-targets --locked -- -D warnings
cargo test --workspace --locked --quiet --test tidy
# Only checked: nothing is linked, so it takes no C compiler for that architecture. The crates that speak with the kernel
# are those whose code differs.
case $TRIPLE in
    x86_64-*) other=aarch64-unknown-linux-gnu ;;
    *) other=x86_64-unknown-linux-gnu ;;
esac
if has_target "$other"; then
    cargo check --package rung --package rung-sys --locked --quiet --target "$other"
else
    echo "the standard library for $other is not to be had here: the code for it was NOT checked"
fi
if cargo deny --version >/dev/null 2>&1; then
    cargo deny --locked check
else
    echo "cargo-deny is not installed: advisories were NOT checked (licences, sources and duplicates were, by the tidy test)"
fi
