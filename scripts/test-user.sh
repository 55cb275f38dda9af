#!/usr/bin/env bash
# Runs the integration tests that need an ordinary user (`Rootless`) on this machine, as a user who exists only for them:
# no account is made. Usage: test-user.sh RESULTS-FILE
set -euo pipefail
. "$(dirname "$0")/toolchain.sh"

results=$1
[[ $(id -u) -eq 0 ]] || { echo "error: becoming another user needs root" >&2; exit 1; }
scripts/packages.sh uidmap
user=gantry-tester id=64123 range=1879048192
work=$(mktemp -d)
finish() {
    local code=$?
    [[ ! -f $work/runtime/results ]] || cat "$work/runtime/results" >>"$results"
    rm -rf "$work"
    exit "$code"
}
trap finish EXIT
trap 'exit 130' INT TERM HUP

# The user may not be able to reach where the programs were built.
chmod 0711 "$work"
install -m 0755 "$(built debug)/rung" "$work/rung"
install -m 0755 "$(scripts/test-program.sh)" "$work/integration"
install -d -m 0700 -o "$id" -g "$id" "$work/runtime"
mkdir "$work/etc"
for file in passwd group subuid subgid; do
    cat "/etc/$file" >"$work/etc/$file"
done
echo "$user:x:$id:$id::/tmp:/bin/sh" >>"$work/etc/passwd"
echo "$user:x:$id:" >>"$work/etc/group"
for file in subuid subgid; do echo "$user:$range:65536" >>"$work/etc/$file"; done

# What is mounted here is gone with the last process.
unshare --mount --propagation private bash -euc '
    work=$1 id=$2
    for file in passwd group subuid subgid; do mount --bind "$work/etc/$file" "/etc/$file"; done
    cd /
    exec setpriv --reuid "$id" --regid "$id" --clear-groups env HOME=/tmp XDG_RUNTIME_DIR="$work/runtime" \
        GANTRY_BIN_DIR="$work" GANTRY_TEST_PLACE=host-user GANTRY_TEST_RESULTS="$work/runtime/results" \
        "$work/integration" --needing Rootless
' bash "$work" "$id"
