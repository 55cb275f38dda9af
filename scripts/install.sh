#!/usr/bin/env bash
# Builds the four programs for use and installs them: PREFIX (/usr/local) and DESTDIR as usual.
set -euo pipefail
. "$(dirname "$0")/toolchain.sh"

prefix=${DESTDIR:-}${PREFIX:-/usr/local}
cargo build --release --locked --bins
install -d "$prefix/bin"
for program in rung containerd-shim-rung-v2 gantryd gantry; do
    install -m 0755 "$(built release)/$program" "$prefix/bin/$program"
    echo "$prefix/bin/$program"
done
