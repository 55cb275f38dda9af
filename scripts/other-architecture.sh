#!/usr/bin/env bash
# Checks the runtime's code for the other architecture and for musl, against which it is built for use. Nothing is linked, so
# it takes no C compiler for that one. The crates that speak with the kernel are those whose code differs.
set -euo pipefail
. "$(dirname "$0")/toolchain.sh"

case $TRIPLE in
    x86_64-*) other=aarch64-unknown-linux-musl ;;
    *) other=x86_64-unknown-linux-musl ;;
esac
if has_target "$other"; then
    cargo check --package rung --package rung-sys --package containerd-shim-rung-v2 --locked --quiet --target "$other"
else
    echo "the standard library for $other is not to be had here: the code for it was NOT checked"
fi
