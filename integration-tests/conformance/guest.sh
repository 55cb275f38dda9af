#!/bin/bash
# Runs inside a test machine, from the second disk: runc's tests with run.sh, a file at a time, so that each result has left
# the machine when the next begins.
set -uo pipefail

# On a busy host udev may name the ports later than this begins.
until [[ -e /dev/virtio-ports/gantry.out ]]; do sleep 0.1; done
exec >/dev/virtio-ports/gantry.out 2>&1 </dev/null
mount -o remount,rw /gantry
tar -C / -xf /gantry/packages.tar
export PATH=/gantry/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb
export RUNG=/gantry/bin/rung RESULTS=/tmp/results ROOTLESS=tester
mkdir -p "$RESULTS"
parameter() { sed -n "s/.*\bgantry\.$1=\([^ ]*\).*/\1/p" /proc/cmdline; }
# Of the time that the machine has.
left() { echo $(($(parameter seconds) - $(sed 's/[. ].*//' /proc/uptime))); }
IFS=, read -ra modes <<<"$(parameter modes)"
IFS=, read -ra files <<<"$(parameter files)"
[[ ${#files[@]} -gt 0 ]] || files=($(cd /gantry/checkout/tests/integration && basename -s .bats -- *.bats))
for module in dummy loop overlay; do modprobe "$module"; done
for mode in "${modes[@]}"; do
    for file in "${files[@]}"; do
        # What was reached before the machine's time is over is told, and a test that hangs costs its own file.
        export FILE_SECONDS=$(($(left) - 60))
        [[ $FILE_SECONDS -le 1200 ]] || FILE_SECONDS=1200
        [[ $FILE_SECONDS -gt 0 ]] || { echo "$mode $file: not begun"; continue; }
        (
            until log=$(ls -t /tmp/tmp.*/"${file%:*}.log" 2>/dev/null | head -n 1) && [[ -n $log ]]; do sleep 1; done
            tail -n +1 -f "$log" | sed -u 's|\r$||' | grep --line-buffered '^\(not \)\?ok'
        ) &
        echo "$mode $(/gantry/run.sh "$mode" /gantry/checkout "$file" 2>&1 | head -n 1), ${SECONDS} s"
        kill $! 2>/dev/null
        { echo "== $mode ${file%:*}"; cat "$RESULTS/${file%:*}"; } >/dev/virtio-ports/gantry.results
    done
done
echo 0 >/dev/virtio-ports/gantry.status
