#!/usr/bin/env bash
# Everything that must hold before a change is merged. The last lines say how much ran where.
# GANTRY_TEST_VM=yes runs the integration tests in the virtual machines too, until all of them hold there.
set -euo pipefail
. "$(dirname "$0")/toolchain.sh"

[[ $(id -u) -eq 0 ]] || { echo "error: the tests make containers, so they need root" >&2; exit 1; }
scripts/packages.sh busybox-static docker-registry containerd runc skopeo iproute2 openssl e2fsprogs podman docker.io strace criu

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
begun=$SECONDS
step() { echo "== $* ($((SECONDS - begun)) s)"; }

step "format"
cargo fmt --all --check
step "clippy"
cargo clippy --workspace --all-targets --locked --quiet -- -D warnings
step "build"
cargo build --workspace --bins --locked --quiet
cargo test --workspace --tests --locked --quiet --no-run

failed=0
step "unit tests, lints and integration tests on this machine"
GANTRY_TEST_RESULTS=$work/host cargo test --workspace --tests --locked --no-fail-fast 2>&1 |
    tee "$work/log" || failed=1

machines=${GANTRY_TEST_VM:-no}
if [[ $machines == no ]]; then
    step "virtual machines: NOT RUN, GANTRY_TEST_VM=yes or make test-vm runs them"
else
    step "integration tests in virtual machines"
    scripts/test-vm.sh "$work/vm" || failed=1
fi

step "what ran where"
if ! cargo deny --version >/dev/null 2>&1; then
    echo "cargo-deny is not installed: advisories were not checked"
fi
integration=$(scripts/test-program.sh)
results=("$work/host")
[[ ! -f $work/vm ]] || results+=("$work/vm")
# What needs another machine is skipped everywhere where there is none; a failed test has failed above already.
"$integration" summary "${results[@]}" | tee "$work/summary" || [[ $machines == no ]] || failed=1
awk -v where="units and lints" '
    /^test result:/ { passed += $4; failed += $6; skipped += $8 }
    END { printf "%-14s %d passed, %d failed, %d skipped\n", where, passed, failed, skipped }' "$work/log" | tee -a "$work/summary"
awk '
    function add(i) { passed += $(i - 1); failed += $(i + 1); skipped += $(i + 3) }
    /^integration:|^units/ { for (i = 2; i <= NF; i++) if ($i == "passed,") add(i) }
    END { printf "%d passed, %d failed, %d skipped\n", passed, failed, skipped }' "$work/summary"
if [[ $failed -ne 0 ]]; then
    echo "make test: FAILED after $((SECONDS - begun)) s"
    exit 1
fi
echo "make test: all is well after $((SECONDS - begun)) s"
