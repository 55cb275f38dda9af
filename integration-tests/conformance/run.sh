#!/usr/bin/env bash
# Points checkouts of other projects' conformance suites at rung. They have to be there, built, with their images.
#   run.sh bats CHECKOUT [FILE...]           runc's tests/integration/*.bats; on a terminal of their own
#   run.sh bats-systemd CHECKOUT [FILE...]   the same with the systemd driver
#   run.sh bats-rootless CHECKOUT [FILE...]  the same as the ordinary user that ROOTLESS names
#   run.sh programs CHECKOUT [NAME...]       the validation programs of runtime-tools
# RUNG is the program under test. A line for each file or program; the output is in RESULTS.
set -euo pipefail

usage() { sed -n '2,7s/^# *//p' "$0" >&2; exit 2; }
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
        timeout 900 "${as[@]}" script -qec "bats --tap $file.bats" /dev/null <&3 2>&1 | tr -d '\r' >"$results/$file" || true
        awk -v file="$file" '/^ok .*# skip/ { skipped++; next } /^ok / { passed++ } /^not ok / { failed++ }
            END { printf "%-24s %d passed, %d failed, %d skipped\n", file, passed, failed, skipped }' "$results/$file"
    done
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

case $suite in
    bats) bats_files "$@" ;;
    bats-systemd) RUNC_USE_SYSTEMD=yes bats_files "$@" ;;
    bats-rootless) rootless=${ROOTLESS:?names the user} bats_files "$@" ;;
    programs) programs "$@" ;;
    *) usage ;;
esac
echo "output: $results"
