#!/usr/bin/env bash
# Measures Gantry beside crun, runc and containerd of this machine. BENCH_ROUNDS (100) says how often. youki comes from
# crates.io into BENCH_CACHE (~/.cache/gantry-bench), once; where it cannot be built it is named as not measured, and
# BENCH_YOUKI=0 leaves it out. BENCH_MACHINE=vm-v2 measures the runtimes in the test machine with cgroup v2 and systemd
# instead: there they compare with one another, not with this machine, which may have to emulate it.
# BENCH_ONLY measures a part: runtimes, daemons, crowds, pods, images or records (which images includes). BENCH_CONTAINERD is the directory of one more
# containerd to pull images with, BENCH_CRIO one with crio and pinns, for which conmon is to be installed, to make pods with.
set -euo pipefail
. "$(dirname "$0")/toolchain.sh"

[[ $(id -u) -eq 0 ]] || { echo "error: the bench makes containers, so it needs root" >&2; exit 1; }
scripts/packages.sh busybox-static docker-registry containerd runc crun podman docker.io containernetworking-plugins curl zstd
scripts/build.sh
cargo build --release --locked --quiet -p rung-sys --examples
musl=${TRIPLE%-gnu}-musl
if [[ -x $(built rung "$musl")/rung ]]; then
    cargo build --profile rung --locked --quiet -p rung-sys --example floor --target "$musl"
    install -m 0755 "$(built rung "$musl")/examples/floor" "$(built release)/examples/floor-musl"
fi
cargo build --release --locked --quiet -p integration-tests --bin bench

# Elsewhere, so that the flags of this workspace are not those of another's program.
cache=${BENCH_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/gantry-bench}
youki=
if [[ ${BENCH_YOUKI:-1} = 1 ]]; then
    youki=$cache/bin/youki
    if [[ ! -x $youki ]]; then
        scripts/packages.sh gcc pkg-config libseccomp-dev
        (cd / && cargo install --quiet --locked youki --no-default-features --features v1,v2,seccomp --root "$cache") ||
            echo "youki cannot be built here: not measured"
    fi
    PATH=$PATH:$cache/bin
fi
bench=$(built release)/bench
if [[ ${BENCH_MACHINE:-} = vm-v2 ]]; then
    exec scripts/vm/bench.sh "$(built release)" "$youki"
elif [[ -n ${BENCH_MACHINE:-} ]]; then
    echo "error: BENCH_MACHINE: there is only vm-v2" >&2
    exit 1
fi
echo "$(nproc) processors, Linux $(uname -r); $(crun --version | head -n 1); $(runc --version | head -n 1)"
# In a mount namespace of their own, all runtimes keep their state in memory, as below /run of a host, and see v1 alone
# where there are both cgroup versions: crun refuses a host with controllers on both.
exec unshare --mount --propagation private sh -euc '
    mount -t tmpfs -o mode=711 state /mnt
    if mountpoint -q /sys/fs/cgroup/unified; then umount /sys/fs/cgroup/unified; fi
    BENCH_STATE=/mnt exec "$0"' "$bench"
