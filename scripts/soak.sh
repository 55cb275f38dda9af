#!/usr/bin/env bash
# Tries what faults and chance do to containers in full: every round that there is, at the sizes that operators have (1,000
# rounds of execs racing the end, 200 containers through 50 restarts, …), which takes hours. What has no size of its own is
# tried SOAK_ROUNDS (20) times more often than by `make test`. Then the integration tests run over and over for
# SOAK_MINUTES (10). SOAK_ONLY names some of the subjects, and SOAK_PERCENT (100) says how much of each is tried. All this is on
# this machine's cgroups; what depends on their version is then tried in the machine with version 2, SOAK_V2_PERCENT (2) of it
# as that is slow, for at most SOAK_V2_SECONDS (7200). Stops at the first failure.
set -euo pipefail
. "$(dirname "$0")/toolchain.sh"

[[ $(id -u) -eq 0 ]] || { echo "error: the tests make containers, so they need root" >&2; exit 1; }
scripts/packages.sh busybox-static docker-registry containerd runc skopeo iproute2 openssl strace criu e2fsprogs docker.io xz-utils bzip2
cargo build --workspace --bins --locked
integration=$(scripts/test-program.sh)
export GANTRY_TEST_ROUNDS=${SOAK_ROUNDS:=20}
for subject in ${SOAK_ONLY:-racing memory_kills slow_reader rung_races full_disk shim_faults daemon_restart daemon_storage
    daemon_killed daemon_damage daemon_full daemon_pull daemon_power daemon_disk cri_streaming}; do
    echo "== $subject, in full"
    GANTRY_TEST_FULL=${SOAK_PERCENT:-100} "$integration" "$subject"
done
echo "== damaged metadata and pulls that are given up, $SOAK_ROUNDS times as often"
cargo test --locked --quiet -p gantryd --lib -- metadata image::tests::pulls
unset GANTRY_TEST_ROUNDS
if [[ -z ${SOAK_ONLY:-} ]]; then
    echo "== supervision on cgroup v2, ${SOAK_V2_PERCENT:=2} percent"
    GANTRY_TEST_MACHINES=vm-v2 GANTRY_TEST_FULL=$SOAK_V2_PERCENT GANTRY_TEST_VM_SECONDS=${SOAK_V2_SECONDS:-7200} \
        GANTRY_TEST_FILTER=shim_exit_order,shim_faults,shim_io,a_killed_shim,daemon_restart scripts/test-vm.sh
fi
end=$((SECONDS + ${SOAK_MINUTES:-10} * 60))
for ((round = 1; SECONDS < end; round++)); do
    echo "== round $round"
    "$integration"
done
echo "soak: $((round - 1)) rounds, none failed"
