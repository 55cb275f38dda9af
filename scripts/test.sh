#!/usr/bin/env bash
# Everything that must hold before a change is merged, on this machine and in two virtual ones. It takes no input, leaves
# nothing on the machine however it ends, and its last lines say how much ran where and how long each step took.
#   GANTRY_TEST_VM=no           without the virtual machines
#   GANTRY_TEST_SECONDS=1680    the machines get what is left of this, and do not run if that is not enough for anything
set -euo pipefail
. "$(dirname "$0")/toolchain.sh"

[[ $(id -u) -eq 0 ]] || { echo "error: the tests make containers, so they need root" >&2; exit 1; }
exec </dev/null
scripts/packages.sh busybox-static docker-registry containerd runc skopeo iproute2 openssl e2fsprogs podman docker.io \
    strace criu containernetworking-plugins iptables uidmap mmdebstrap debian-archive-keyring qemu-system-x86 binutils xz-utils bzip2

work=$(mktemp -d)
begun=$SECONDS
# By this everything that a test of this run makes can be found, see integration-tests/src/leaks.rs.
GANTRY_TEST_RUN=$(printf '%06x' $$)
export GANTRY_TEST_RUN

# Steps are process groups of their own, so that all of a step can be ended.
set -m
groups=()
finish() {
    local code=$? group
    trap '' EXIT INT TERM HUP
    for group in "${groups[@]}"; do kill -TERM -- "-$group" 2>/dev/null || true; done
    wait
    for group in "${groups[@]}"; do kill -KILL -- "-$group" 2>/dev/null || true; done
    if [[ -n ${integration:-} ]] && ! "$integration" sweep; then code=1; fi
    rm -rf "$work"
    exit "$code"
}
trap finish EXIT
trap 'exit 130' INT TERM HUP

# step TITLE COMMAND...: runs it, remembers how long it took, and gives its status.
step() {
    local title=$1 from=$SECONDS status=0
    shift
    echo "== $title ($((SECONDS - begun)) s)"
    "$@" &
    groups+=($!)
    wait $! || status=$?
    unset 'groups[-1]'
    printf '%6d s  %s\n' $((SECONDS - from)) "$title" >>"$work/steps"
    return "$status"
}
# At once: programs and tests of the largest crate take a processor each.
build() { cargo build --workspace --bins --tests --locked --quiet; }
here() {
    # This shell and tee outlive a signal until everybody who writes has ended: tests that clean up are waited for.
    trap : INT TERM HUP
    # Unit tests wait more than they work; the integration tests' program counts the processors itself.
    RUST_TEST_THREADS=4 GANTRY_TEST_RESULTS=$work/host cargo test --workspace --tests --locked --no-fail-fast 2>&1 |
        (trap '' INT TERM HUP; exec tee "$work/log")
}

machines=${GANTRY_TEST_VM:-yes}
budget=${GANTRY_TEST_SECONDS:-1680}
if [[ $machines != no ]]; then
    # Made beside what comes first, if it is not there. Whoever needs it waits for this, and says why it failed.
    scripts/vm/image.sh >/dev/null 2>&1 &
    groups+=($!)
fi

step "format" cargo fmt --all --check
step "clippy" cargo clippy --workspace --all-targets --locked --quiet -- -D warnings
step "the code for the other architecture" scripts/other-architecture.sh
step "build" build
integration=$(scripts/test-program.sh)

failed=0
step "unit tests, lints and integration tests on this machine" here || failed=1
step "integration tests on this machine as an ordinary user" scripts/test-user.sh "$work/user" || failed=1
not_run="GANTRY_TEST_VM=no"
if [[ $machines != no ]]; then
    code=0
    GANTRY_TEST_VM_SECONDS=$((budget - SECONDS)) \
        step "integration tests in virtual machines" scripts/test-vm.sh "$work/vm" || code=$?
    case $code in
        0) ;;
        75) machines=no not_run="too little was left of $budget s" ;;
        *) failed=1 ;;
    esac
fi

echo "== steps"
cat "$work/steps"
echo "== what ran where"
if ! cargo deny --version >/dev/null 2>&1; then
    echo "cargo-deny is not installed: advisories were not checked"
fi
results=("$work/host")
[[ ! -f $work/user ]] || results+=("$work/user")
[[ ! -f $work/vm ]] || results+=("$work/vm")
[[ $machines != no ]] || echo "the virtual machines were NOT RUN: $not_run"
# What needs another machine is skipped everywhere where there is none; a failed test has failed above already.
"$integration" summary "${results[@]}" | tee "$work/summary" || [[ $machines == no ]] || failed=1
awk -v where="units and lints" '
    /^test result:/ { passed += $4; failed += $6; skipped += $8 }
    END { printf "%-14s %d passed, %d failed, %d skipped\n", where, passed, failed, skipped }' "$work/log" | tee -a "$work/summary"
awk '
    function add(i) { passed += $(i - 1); failed += $(i + 1); skipped += $(i + 3) }
    /^integration:|^units/ { for (i = 2; i <= NF; i++) if ($i == "passed,") add(i) }
    END { printf "%d passed, %d failed, %d skipped\n", passed, failed, skipped }' "$work/summary"
"$integration" sweep || failed=1
if [[ $failed -ne 0 ]]; then
    echo "make test: FAILED after $((SECONDS - begun)) s"
    exit 1
fi
echo "make test: all is well after $((SECONDS - begun)) s"
