#!/usr/bin/env bash
# Points checkouts of other projects' conformance suites at rung. They have to be there, built, with their images.
#   run.sh bats CHECKOUT [FILE[:FROM]...]    runc's tests/integration/*.bats, or what is in them from the FROMth test on; on
#                                            a terminal of their own, each for FILE_SECONDS (900) at most
#   run.sh bats-systemd CHECKOUT [FILE...]   the same with the systemd driver
#   run.sh bats-rootless CHECKOUT [FILE...]  the same as the ordinary user that ROOTLESS names
#   run.sh bats-vm CHECKOUT [FILE...]        bats and bats-systemd in a machine with cgroup v2 and systemd; MODES chooses
#                                            others, VM_SECONDS how long all may take
#   run.sh programs CHECKOUT [NAME...]       the validation programs of runtime-tools
#   run.sh contest CHECKOUT [GROUP...]       youki's contest
#   run.sh crun CHECKOUT [NAME...]           crun's tests/test_NAME.py, each for FILE_SECONDS at most; RUN_TESTS names some of them
#   run.sh kubelet KUBELET                   a kubelet with a static pod on the gantryd beside RUNG
#   run.sh kubelet-vm KUBELET                in a machine with cgroup v2 and systemd
#   run.sh critest CRITEST IMAGES [FOCUS [SKIP]]  critest on the gantryd beside RUNG, with images from a registry's directory
#   run.sh critest-vm CRITEST IMAGES [FOCUS...]  in a machine with cgroup v2, systemd and AppArmor, once for each FOCUS
# CONTAINERD is a directory with a containerd and its shim for critest to be pointed at, to see what that says.
# RUNG is the program under test. A line for each file or program; the output is in RESULTS.
set -euo pipefail

usage() { sed -n '2,17s/^# *//p' "$0" >&2; exit 2; }
[[ $# -ge 2 ]] || usage
suite=$1 checkout=$(realpath "$2")
shift 2
here=$(dirname "$(realpath "$0")")
rung=$(realpath "${RUNG:-$(find "$here/../../target" -path '*/debug/rung' -type f | head -1)}")
results=${RESULTS:-$(mktemp -d)}
rootless=
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
# Called runc it is runc, also in what it says of itself.
ln -s "$rung" "$work/runc"

# tally NAME: a line of what the results of this name say, which are in TAP's form.
tally() {
    awk -v name="$1" -F '[. ]+' '/^1[.][.]/ { all = $2 } /^ok .*# ?(skip|SKIP)/ { skipped++; next } /^ok / { passed++ } /^not ok / { failed++ }
        END { printf "%-24s %d passed, %d failed, %d skipped", name, passed, failed, skipped
              left = all - passed - failed - skipped; if (left > 0) printf ", %d not reached", left; print "" }' "$results/$1"
}

bats_files() {
    cd "$checkout/tests/integration"
    [[ $# -gt 0 ]] || set -- *.bats
    # Never at its end: the terminal would tell the programs on it.
    mkfifo "$work/stdin"
    exec 3<>"$work/stdin"
    export RUNC=$work/runc TMPDIR=$work
    local as=()
    if [[ -n $rootless ]]; then
        as=(runuser --user "$rootless" -- env "PATH=$PATH")
        export HOME XDG_RUNTIME_DIR ROOTLESS_FEATURES=${ROOTLESS_FEATURES:-}
        HOME=$(getent passwd "$rootless" | cut -d: -f6)
        XDG_RUNTIME_DIR=/run/user/$(id -u "$rootless")
        chown -R "$rootless" "$work"
    fi
    for file in "${@%.bats}"; do
        from=1
        [[ $file != *:* ]] || from=${file#*:} file=${file%:*}
        names=$(sed -n 's/^@test "\(.*\)" {$/\1/p' "$file.bats" | tail -n "+$from" | sed 's/[][(){}.*^$+?|\/]/\\&/g' | paste -sd '|')
        # Flushed line by line: what a test that hangs has said before is there.
        timeout --kill-after=10 "${FILE_SECONDS:-900}" "${as[@]}" script -qfec "bats --tap --filter $(printf %q "^($names)\$") $file.bats" \
            "$work/$file.log" <&3 >/dev/null 2>&1 || true
        tr -d '\r' <"$work/$file.log" | grep -v '^Script [a-z]* on ' >"$results/$file" || true
        tally "$file"
    done
}

# in_machine GUEST PARAMETERS PACKAGE...: boots a machine of scripts/vm with the disk that is in $work/disk and runs the
# script GUEST in it, shows what it says, and makes files of what leaves it.
in_machine() {
    "$here/../../scripts/packages.sh" qemu-system-x86 e2fsprogs
    image=$("$here/../../scripts/vm/image.sh")
    cp "$("$here/../../scripts/vm/add-packages.sh" "${@:3}")" "$work/disk/packages.tar"
    cp "$here"/{run.sh,critest.sh,kubelet.py} "$work/disk/"
    cp "$here/$1" "$work/disk/guest.sh"
    . "$here/../../scripts/vm/boot.sh"
    make_disk "$work/disk" 2048
    choose_accelerator
    (boot "$work/vm" "${VM_SECONDS:-7200}" "gantry.seconds=${VM_SECONDS:-7200} gantry.patience=$patience $2") &
    trap 'kill "$machine" 2>/dev/null || true; wait; rm -rf "$work"' EXIT
    machine=$!
    until [[ -f $work/vm/out ]]; do sleep 0.2; done
    tail --pid="$machine" -f "$work/vm/out"
    awk -v to="$results" '/^== / { file = to "/" $2 "." $3; next } { sub(/\r$/, ""); print >file }' "$work/vm/results"
    [[ -s $work/vm/status ]] || tail -n 40 "$work/vm/qemu" "$work/vm/console"
}

# The checkout, this script and bats go to the machine, which runs one file after another.
bats_machine() {
    mkdir -p "$work/disk"/{bin,checkout/tests}
    cp -a "$checkout"/tests/{cmd,integration} "$work/disk/checkout/tests/"
    # Each test unpacks one of these, and unpacking what is compressed takes an emulated machine seconds.
    for archive in "$work"/disk/checkout/tests/integration/testdata/*.tar.xz; do
        ! xz --test "$archive" 2>/dev/null || { xz --decompress --stdout "$archive" >"$work/tar" && mv "$work/tar" "$archive"; }
    done
    cp -L "$rung" "$work/disk/bin/rung"
    # All that runc's tests ask of it is the name of the architecture.
    printf '#!/bin/sh\necho amd64\n' >"$work/disk/bin/go"
    chmod 755 "$work/disk/bin/go"
    files=("${@%.bats}")
    in_machine guest.sh "gantry.modes=${MODES:-bats,bats-systemd} gantry.files=$(IFS=,; echo "${files[*]}")" bats jq xz-utils gcc libc6-dev sudo
}

# pods_machine MODE FOCUS...: the programs that make pods, and what is pointed at them.
pods_machine() {
    mkdir -p "$work/disk/bin"
    for program in rung containerd-shim-rung-v2 gantryd gantry; do
        strip --strip-debug -o "$work/disk/bin/$program" "$(dirname "$rung")/$program"
    done
    [[ -z ${CONTAINERD:-} ]] || cp -r "$CONTAINERD" "$work/disk/containerd"
    cp "$checkout" "$work/disk/$1"
    [[ $# -eq 1 ]] || printf '%s\n' "${@:2}" >"$work/disk/focus"
    in_machine guest-pods.sh "" iptables python3 sudo
}

programs() {
    cd "$checkout"
    [[ $# -gt 0 ]] || set -- $(basename -a -s .t validation/*/*.t)
    export RUNTIME=$work/runc TMPDIR=$work
    for name in "$@"; do
        code=0
        timeout 150 "validation/$name/$name.t" >"$results/$name" 2>"$results/$name.stderr" </dev/null || code=$?
        failed=$(grep -c '^ *not ok' "$results/$name" || true)
        if [[ $code -eq 0 && $failed -eq 0 ]]; then echo "passed $name"; else echo "FAILED $name"; fi
    done
}

# A panic in one group would end those after it.
contest() {
    cp "$checkout/tests/contest/contest/bundle.tar.gz" "$work"
    cd "$work"
    [[ $# -gt 0 ]] || set -- $("$checkout/contest" list)
    for group in "$@"; do
        RUNTIME_KIND=runc timeout 300 "$checkout/contest" run --runtime "$work/runc" --runtimetest "$checkout/runtimetest" \
            --tests "$group" >"$results/$group" 2>&1 </dev/null || true
        awk -v group="$group" '/ : ok$/ { passed++ } / : not ok$/ { failed++ } / : skipped$/ { skipped++ }
            END { printf "%-24s %d passed, %d failed, %d skipped", group, passed, failed, skipped
                  print (passed + failed + skipped > 0 ? "" : ", ended by a panic") }' "$results/$group"
    done
}

crun_files() {
    cd "$work"
    export INIT=$checkout/tests/init OCI_RUNTIME=$rung PYTHONDONTWRITEBYTECODE=1
    [[ $# -gt 0 ]] || set -- $(basename -a -s .py "$checkout"/tests/test_*.py)
    for name in "${@#test_}"; do
        timeout --kill-after=10 "${FILE_SECONDS:-900}" python3 "$checkout/tests/test_$name.py" \
            >"$results/$name" 2>"$results/$name.stderr" </dev/null || true
        tally "$name"
    done
}

case $suite in
    bats) bats_files "$@" ;;
    bats-systemd) RUNC_USE_SYSTEMD=yes bats_files "$@" ;;
    bats-rootless) rootless=${ROOTLESS:?names the user} bats_files "$@" ;;
    bats-vm) bats_machine "$@" ;;
    programs) programs "$@" ;;
    contest) contest "$@" ;;
    crun) crun_files "$@" ;;
    kubelet) unshare --net --mount --propagation slave python3 "$here/kubelet.py" "$checkout" "$(dirname "$rung")" "$results" ;;
    kubelet-vm) pods_machine kubelet ;;
    critest-vm)
        [[ $# -ge 1 ]] || usage
        mkdir -p "$work/disk"
        cp -r "$(realpath "$1")" "$work/disk/images"
        [[ $# -gt 1 ]] || set -- "$1" .
        pods_machine critest "${@:2}"
        ;;
    critest)
        [[ $# -ge 1 ]] || usage
        unshare --net --mount --propagation slave bash -c 'ip link set lo up; exec "$@"' - \
            "$here/critest.sh" "$checkout" "$(dirname "$rung")" "$(realpath "$1")" "$results" "${@:2}" || true
        ;;
    *) usage ;;
esac
echo "output: $results"
