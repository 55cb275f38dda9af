#!/usr/bin/env bash
# Builds the four programs for use. Those that start for every container or command are built against musl, with which they
# start faster (docs/decisions/0016-rung-and-musl.md); where that cannot be had, against glibc like the daemon.
set -euo pipefail
. "$(dirname "$0")/toolchain.sh"

[[ -e $(built release)/gantryd ]] || echo "building; the first time takes some ten minutes on two processors" >&2
cargo build --release --locked --quiet --bins -p gantryd
musl=${TRIPLE%-gnu}-musl
if has_target "$musl" &&
    cargo build --profile rung --locked --quiet -p rung --target "$musl" &&
    cargo build --release --locked --quiet --bins -p containerd-shim-rung-v2 -p gantry --target "$musl"; then
    install -m 0755 "$(built rung "$musl")/rung" "$(built release "$musl")"/{containerd-shim-rung-v2,gantry} \
        "$(built release)/"
else
    echo "note: nothing can be built for $musl here; all is built against glibc, and containers start slower" >&2
    cargo build --release --locked --quiet --bins -p rung -p containerd-shim-rung-v2 -p gantry
fi
