#!/usr/bin/env bash
# Runs the integration tests in two virtual machines: Debian 12 with systemd on cgroup v2 (with AppArmor, as root and as
# an ordinary user), and the same on cgroup v1. Usage: test-vm.sh [RESULTS-FILE]
#   GANTRY_TEST_FILTER=a,b         the tests with one of these in their names (integration-tests/README.md says which
#                                  others run here; "::" chooses all)
#   GANTRY_TEST_MACHINES=vm-v2     not both machines
#   GANTRY_TEST_FULL=10            how much of all faults is tried, in percent (integration-tests/README.md)
#   GANTRY_TEST_VM_SECONDS=1800    how long all of this may take: then a machine is ended, its console shown, and this fails
# It gives 75 and runs nothing if making the machines' image leaves too little of that time.
set -euo pipefail
. "$(dirname "$0")/toolchain.sh"

results=${1:-}
limit=${GANTRY_TEST_VM_SECONDS:-900}
least=240
[[ $(uname -m) == x86_64 ]] || { echo "error: the test machines are x86_64 only" >&2; exit 1; }
scripts/packages.sh qemu-system-x86 e2fsprogs binutils
cargo build --workspace --bins --locked --quiet
integration=$(scripts/test-program.sh)
work=$(mktemp -d)
machines=()
finish() {
    local code=$?
    trap '' EXIT INT TERM HUP
    for machine in "${machines[@]}"; do kill "$machine" 2>/dev/null || true; done
    wait
    rm -rf "$work"
    exit "$code"
}
trap finish EXIT
trap 'exit 130' INT TERM HUP

# Gives up unless enough of the time is left to boot and test.
in_time() {
    left=$((limit - SECONDS))
    [[ $left -lt $least ]] || return 0
    echo "the virtual machines were NOT RUN: $left s are left for them, and they need $least s${1:-}"
    exit 75
}
in_time
code=0
timeout --foreground --kill-after=5 "$left" scripts/vm/image.sh >"$work/image" || code=$?
[[ $code -eq 0 || $code -eq 124 || $code -eq 137 ]] || exit "$code"
in_time ", which making their image took"
image=$(cat "$work/image")

# The disk with what is tested. Without debug information it is a tenth of the size.
mkdir -p "$work/disk/bin"
for program in rung containerd-shim-rung-v2 gantryd gantry; do
    strip --strip-debug -o "$work/disk/bin/$program" "$(built debug)/$program"
done
strip --strip-debug -o "$work/disk/integration" "$integration"
install -m 0755 scripts/vm/guest.sh "$work/disk/guest.sh"
. scripts/vm/boot.sh
make_disk "$work/disk" 32
choose_accelerator
echo "machines run with ${accelerator[1]}"

begun=$SECONDS
filter=${GANTRY_TEST_FILTER:-}
# Both have the same kernel, so on v1 run the tests that have to do with cgroups. Where this machine has v1 too, they have
# run here, but for those that want systemd or criu.
v1=--host-matters,systemd,goes_on_where,goes_on_under,memory_is_written
[[ -d /sys/fs/cgroup/memory ]] || v1+=,rung_cgroups,rung_updates,shim_,memory,limits,counters,a_task_from,metrics,statistics
declare -A parameters=(
    [vm-v2]="gantry.arguments=${filter:---host-matters}"
    [vm-v1]="gantry.arguments=${filter:-$v1} systemd.unified_cgroup_hierarchy=0"
)
places=(${GANTRY_TEST_MACHINES:-vm-v2 vm-v1})
for place in "${places[@]}"; do
    boot "$work/$place" $((limit - SECONDS)) \
        "gantry.place=$place gantry.patience=$patience gantry.full=${GANTRY_TEST_FULL:-} ${parameters[$place]}" &
    machines+=($!)
done
if [[ -z ${GANTRY_TEST_MACHINES:-}$filter ]]; then
    # Beside them one that hangs, to see that a hang is ended and shown. It costs nothing while it does.
    boot "$work/hang" 90 gantry.hang &
    machines+=($!)
fi
for machine in "${machines[@]}"; do wait "$machine" || true; done
machines=()

# report PLACE: what the machine said, or its console if it did not come to an end. Fails unless all is well.
report() {
    local dir=$work/$1 status
    echo "-- $1"
    cat "$dir/out" 2>/dev/null || true
    [[ -z $results || ! -s $dir/results ]] || cat "$dir/results" >>"$results"
    status=$(cat "$dir/status" 2>/dev/null || true)
    [[ $status != 0 ]] || return 0
    if [[ $status != 1 ]]; then
        echo "-- $1 was ended or ended early, after $((SECONDS - begun)) s, without a status; its console:"
        cat "$dir/qemu" "$dir/console" 2>/dev/null | tr -d '\r' | tail -n 80
    fi
    return 1
}

failed=0
for place in "${places[@]}"; do report "$place" || failed=1; done
if [[ -d $work/hang ]]; then
    if said=$(report hang) || [[ $said != *"gantry: hangs, as it was asked to"* ]]; then
        failed=1
        echo "error: a machine that hangs is not ended with its console shown:"
        echo "$said"
    fi
fi
echo "virtual machines: $((SECONDS - begun)) s"
exit "$failed"
