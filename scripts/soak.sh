#!/usr/bin/env bash
# Tries what depends on chance SOAK_ROUNDS (20) times more often than `make test`, then runs the integration tests over and
# over for SOAK_MINUTES (10). Stops at the first failure.
set -euo pipefail
. "$(dirname "$0")/toolchain.sh"

[[ $(id -u) -eq 0 ]] || { echo "error: the tests make containers, so they need root" >&2; exit 1; }
scripts/packages.sh busybox-static docker-registry containerd runc skopeo iproute2 openssl strace criu
cargo build --workspace --bins --locked
integration=$(scripts/test-program.sh)
for subject in faults racing daemon_restart; do
    echo "== $subject, ${SOAK_ROUNDS:=20} times as often"
    GANTRY_TEST_ROUNDS=$SOAK_ROUNDS GANTRY_TEST_PATIENCE=$SOAK_ROUNDS "$integration" "$subject"
done
end=$((SECONDS + ${SOAK_MINUTES:-10} * 60))
for ((round = 1; SECONDS < end; round++)); do
    echo "== round $round"
    "$integration"
done
echo "soak: $((round - 1)) rounds, none failed"
