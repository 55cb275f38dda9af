#!/usr/bin/env bash
# Builds the four programs for use. `rung` is built against musl, which starts faster
# (docs/decisions/0016-rung-and-musl.md); where that cannot be had, against glibc like the others.
set -euo pipefail
. "$(dirname "$0")/toolchain.sh"

# What `rung --version` says it was built from.
if GANTRY_COMMIT=$(git rev-parse HEAD 2>/dev/null); then export GANTRY_COMMIT; fi

cargo build --release --locked --quiet --bins -p containerd-shim-rung-v2 -p gantryd -p gantry
musl=${TRIPLE%-gnu}-musl
if has_target "$musl" &&
    cargo build --profile rung --locked --quiet -p rung --target "$musl"; then
    install -m 0755 "$(built rung "$musl")/rung" "$(built release)/rung"
else
    echo "note: rung cannot be built for $musl here; it is built against glibc and starts slower" >&2
    cargo build --release --locked --quiet -p rung
fi
