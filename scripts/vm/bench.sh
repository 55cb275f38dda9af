#!/usr/bin/env bash
# The part of the bench about runtimes, in a test machine with cgroup v2 and systemd, beside the crun and runc of Debian.
# Usage: bench.sh DIRECTORY-OF-BUILT-PROGRAMS [YOUKI]. BENCH_ROUNDS (20) says how often, BENCH_SECONDS (3600) how long at most.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
programs=$1 youki=${2:-}

"$here/../packages.sh" qemu-system-x86 e2fsprogs binutils
image=$("$here/image.sh")
work=$(mktemp -d)
machine=
trap 'kill $machine 2>/dev/null || true; wait; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM HUP
mkdir -p "$work/disk/bin/examples"
for program in rung bench examples/{floor,floor-musl,peak}; do
    [[ ! -x $programs/$program ]] || strip -o "$work/disk/bin/$program" "$programs/$program"
done
[[ ! -x $youki ]] || cp "$youki" "$work/disk/bin/youki"
cp "$("$here/add-packages.sh" crun libseccomp2 libgcc-s1)" "$work/disk/packages.tar"
cat >"$work/disk/guest.sh" <<'GUEST'
#!/bin/bash
exec >/dev/virtio-ports/gantry.out 2>&1 </dev/null
mount -o remount,rw /gantry
tar -C / -xf /gantry/packages.tar
export PATH=/usr/sbin:/usr/bin:/sbin:/bin:/gantry/bin GANTRY_BIN_DIR=/gantry/bin BENCH_ONLY=runtimes BENCH_STATE=/run/bench
BENCH_ROUNDS=$(sed -n 's/.*\bgantry\.rounds=\([^ ]*\).*/\1/p' /proc/cmdline)
export BENCH_ROUNDS
mkdir -m 711 "$BENCH_STATE"
echo "$(nproc) processors, Linux $(uname -r), cgroup v2; $(crun --version | head -n 1); $(runc --version | head -n 1)"
status=0
/gantry/bin/bench || status=$?
echo "$status" >/dev/virtio-ports/gantry.status
GUEST
chmod 755 "$work/disk/guest.sh"
. "$here/boot.sh"
make_disk "$work/disk" 256
choose_accelerator
echo "the machine runs with ${accelerator[1]}"
boot "$work/vm" "${BENCH_SECONDS:-3600}" "gantry.rounds=${BENCH_ROUNDS:-20}" &
machine=$!
until [[ -f $work/vm/out ]]; do sleep 0.2; done
tail --pid="$machine" -n +1 -f "$work/vm/out"
status=$(cat "$work/vm/status")
[[ -n $status ]] || tail -n 40 "$work/vm/qemu" "$work/vm/console"
exit "${status:-1}"
