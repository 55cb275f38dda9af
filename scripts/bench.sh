#!/usr/bin/env bash
# Measures Gantry beside crun, runc and containerd of this machine. BENCH_ROUNDS (100) says how often.
set -euo pipefail
. "$(dirname "$0")/toolchain.sh"

[[ $(id -u) -eq 0 ]] || { echo "error: the bench makes containers, so it needs root" >&2; exit 1; }
scripts/packages.sh busybox-static docker-registry containerd runc crun podman docker.io curl zstd
cargo build --release --locked --quiet --bins
cargo build --release --locked --quiet -p rung-sys --examples
cargo build --release --locked --quiet -p integration-tests --bin bench
bench=$(built release)/bench
echo "$(nproc) processors, Linux $(uname -r); $(crun --version | head -n 1); $(runc --version | head -n 1)"
# crun refuses a host with controllers on both cgroup versions: all of them see v1 alone, in a mount namespace of their own.
if mountpoint -q /sys/fs/cgroup/unified; then
    exec unshare --mount --propagation private sh -c 'umount /sys/fs/cgroup/unified && exec "$0"' "$bench"
fi
exec "$bench"
