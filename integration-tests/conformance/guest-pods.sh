#!/bin/bash
# Runs inside a test machine, from the second disk: critest once for each line of `focus`, or a kubelet. What they say leaves
# the machine while they say it.
set -uo pipefail

# On a busy host udev may name the ports later than this begins.
until [[ -e /dev/virtio-ports/gantry.out ]]; do sleep 0.1; done
exec >/dev/virtio-ports/gantry.out 2>&1 </dev/null
mount -o remount,rw /gantry
tar -C / -xf /gantry/packages.tar
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb RUNG=/gantry/bin/rung
parameter() { sed -n "s/.*\bgantry\.$1=\([^ ]*\).*/\1/p" /proc/cmdline; }
export PATIENCE=$(parameter patience)
[[ ! -d /gantry/containerd ]] || export CONTAINERD=/gantry/containerd
for module in overlay bridge veth br_netfilter loop; do modprobe "$module"; done

# leaving NAME FILE ARGUMENT...: run.sh with these arguments; what it writes to FILE leaves as NAME.
leaving() {
    export RESULTS=$(mktemp -d)
    (/gantry/run.sh "${@:3}" 2>&1 | grep -v '^output: ' | sed "s|^|$1: |") &
    local running=$!
    { echo "== $1"; tail --pid="$running" -n +1 -F "$RESULTS/$2" 2>/dev/null; } >/dev/virtio-ports/gantry.results
    { echo "== ${1% *} ${1#* }.gantryd"; tail -n 500 "$RESULTS/gantryd.log"; } >/dev/virtio-ports/gantry.results
}

if [[ -f /gantry/kubelet ]]; then
    leaving "kubelet log" kubelet.log kubelet /gantry/kubelet
else
    mapfile -t focuses </gantry/focus
    for number in "${!focuses[@]}"; do
        leaving "critest $number" critest critest /gantry/critest /gantry/images "${focuses[$number]}"
    done
fi
echo 0 >/dev/virtio-ports/gantry.status
