#!/bin/bash
# Runs inside a test machine, from the second disk: the tests as root, and on cgroup v2 the rootless ones as an ordinary
# user in a systemd user session. Output, results and status leave through virtio ports.
set -uo pipefail

# On a busy host udev may name the ports later than this begins.
until [[ -e /dev/virtio-ports/gantry.out ]]; do sleep 0.1; done
exec >/dev/virtio-ports/gantry.out 2>&1 </dev/null
# The programs lie on a disk that can be written, as they do elsewhere; what is written is forgotten.
mount -o remount,rw /gantry
parameter() { sed -n "s/.*\bgantry\.$1=\([^ ]*\).*/\1/p" /proc/cmdline; }
place=$(parameter place)
results=$(mktemp -d)
variables=(GANTRY_BIN_DIR=/gantry/bin GANTRY_TEST_PATIENCE="$(parameter patience)")
full=$(parameter full)
[[ -z $full ]] || variables+=(GANTRY_TEST_FULL="$full")
# Words to choose tests by, with commas between.
IFS=, read -ra arguments <<<"$(parameter arguments)"

echo "$(uname -r), $(systemctl --version | head -n 1), cgroup $(stat -f -c %T /sys/fs/cgroup), $(nproc) processors"
status=0
env "${variables[@]}" GANTRY_TEST_PLACE="$place" GANTRY_TEST_RESULTS="$results/root" \
    /gantry/integration "${arguments[@]}" || status=1

if [[ $(stat -f -c %T /sys/fs/cgroup) == cgroup2fs ]]; then
    echo "as an ordinary user:"
    install -d -o tester -g tester "$results/user"
    chmod 0711 "$results"
    runtime=/run/user/$(id -u tester)
    settings=(--setenv=XDG_RUNTIME_DIR="$runtime" --setenv=GANTRY_TEST_PLACE="$place-user"
        --setenv=GANTRY_TEST_RESULTS="$results/user/results")
    for variable in "${variables[@]}"; do settings+=(--setenv="$variable"); done
    runuser -u tester -- env XDG_RUNTIME_DIR="$runtime" \
        systemd-run --user --quiet --wait --collect --pipe --property=Delegate=yes "${settings[@]}" \
        /gantry/integration --needing Rootless "${arguments[@]}" || status=1
fi
cat "$results/root" "$results"/user/* >/dev/virtio-ports/gantry.results 2>/dev/null
echo "$status" >/dev/virtio-ports/gantry.status
