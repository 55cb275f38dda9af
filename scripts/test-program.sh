#!/usr/bin/env bash
# Builds the integration tests if need be and prints the path of their program.
set -euo pipefail
. "$(dirname "$0")/toolchain.sh"

cargo test --workspace --test integration --locked --quiet --no-run --message-format=json |
    sed -n 's/.*"name":"integration",.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1
