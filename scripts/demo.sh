#!/usr/bin/env bash
# Shows the whole stack at work: makes an image from Debian's busybox, serves it from Debian's registry on loopback, and
# has Gantry pull and run it. Everything is in a temporary directory; nothing is left behind.
set -euo pipefail
. "$(dirname "$0")/toolchain.sh"

[[ $(id -u) -eq 0 ]] || { echo "error: the demo starts the daemon, which needs root" >&2; exit 1; }

now() { date +%s%N; }
# step TITLE COMMAND...: says what is done, does it, and says how long it took.
step() {
    local title=$1 begun
    shift
    echo "==> $title"
    begun=$(now)
    "$@"
    printf '    (%d ms)\n' $((($(now) - begun) / 1000000))
}
# Runs gantry, showing the command line as one would type it and its output indented.
gantry() {
    echo "    \$ gantry $*"
    "$programs/gantry" "$@" 2>&1 | sed 's/^/    /'
}
wait_for() {
    local what=$1 tries
    shift
    for ((tries = 0; tries < 200; tries++)); do
        if "$@" >/dev/null 2>&1; then return; fi
        sleep 0.05
    done
    echo "error: waited 10 s for $what" >&2
    return 1
}

work=$(mktemp -d /tmp/gantry-demo.XXXXXX)
export GANTRY_ADDRESS=$work/gantryd.sock GANTRY_NAMESPACE=demo-$$
daemon= registry=
finish() {
    local code=$?
    trap - EXIT INT TERM
    if [[ $code -ne 0 ]]; then
        echo "demo: FAILED" >&2
        if [[ -s $work/gantryd.log ]]; then
            echo "the end of the daemon's log:" >&2
            tail -n 20 "$work/gantryd.log" >&2
        fi
    fi
    for name in hello web; do "$programs/gantry" rm --force "$name" >/dev/null 2>&1 || true; done
    for pid in $daemon $registry; do kill "$pid" 2>/dev/null || true; done
    wait
    # Nothing should be mounted any more; what is would make the removal dangerous.
    while read -r point; do umount -l "$point" || true; done < <(awk -v w="$work/" 'index($5, w) == 1 { print $5 }' /proc/self/mountinfo | tac)
    find /sys/fs/cgroup -depth -type d -path "*/gantry/$GANTRY_NAMESPACE*" -exec rmdir {} + 2>/dev/null || true
    find /sys/fs/cgroup -depth -type d -name gantry -exec rmdir {} + 2>/dev/null || true
    rm -rf --one-file-system "$work"
    exit "$code"
}
programs=$(built release)
trap finish EXIT
trap 'exit 130' INT TERM

step "install what is missing" scripts/packages.sh busybox-static docker-registry curl
step "build the programs" scripts/build.sh

# --- an image ---------------------------------------------------------------------------------------------------------

digest() { echo "sha256:$(sha256sum "$1" | cut -d' ' -f1)"; }
size() { stat -c %s "$1"; }
upload() { # a blob
    local location
    location=$(curl -sSf -X POST -o /dev/null -D - "$base/blobs/uploads/" | tr -d '\r' | sed -n 's/^[Ll]ocation: //p')
    [[ $location == http* ]] || location=http://$host$location
    local join='?'
    [[ $location != *'?'* ]] || join='&'
    curl -sSf -o /dev/null -X PUT -H 'content-type: application/octet-stream' --data-binary "@$1" "$location${join}digest=$(digest "$1")"
}
make_image() {
    local root=$work/image/root name
    mkdir -p "$root"/{bin,etc,proc,sys,dev,tmp}
    cp /bin/busybox "$root/bin/busybox"
    for name in sh echo cat ls ps sleep id hostname uname true; do ln -s busybox "$root/bin/$name"; done
    echo 'root:x:0:0:root:/:/bin/sh' >"$root/etc/passwd"
    tar -C "$root" --sort=name --owner=0 --group=0 --numeric-owner -cf "$work/image/layer.tar" .
    gzip -n -k "$work/image/layer.tar"
    printf '{"architecture":"%s","os":"linux","config":{"Cmd":["sh"],"Env":["PATH=/bin"]},"rootfs":{"type":"layers","diff_ids":["%s"]}}' \
        "$(dpkg --print-architecture)" "$(digest "$work/image/layer.tar")" >"$work/image/config"
    printf '{"schemaVersion":2,"mediaType":"%s","config":{"mediaType":"%s","digest":"%s","size":%d},"layers":[{"mediaType":"%s","digest":"%s","size":%d}]}' \
        application/vnd.oci.image.manifest.v1+json \
        application/vnd.oci.image.config.v1+json "$(digest "$work/image/config")" "$(size "$work/image/config")" \
        application/vnd.oci.image.layer.v1.tar+gzip "$(digest "$work/image/layer.tar.gz")" "$(size "$work/image/layer.tar.gz")" \
        >"$work/image/manifest"
}
answers() { curl -sf "http://$1/v2/"; }
start_registry() {
    local port try
    for try in 1 2 3 4 5; do
        port=$((20000 + (RANDOM + $$ + try) % 20000))
        host=127.0.0.1:$port
        if answers "$host" >/dev/null; then continue; fi
        printf 'version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: %s}\n' \
            "$work/registry" "$host" >"$work/registry.yml"
        docker-registry serve "$work/registry.yml" >"$work/registry.log" 2>&1 &
        registry=$!
        if wait_for "the registry" answers "$host" && kill -0 "$registry" 2>/dev/null; then return; fi
    done
    cat "$work/registry.log" >&2
    return 1
}
push_image() {
    base=http://$host/v2/busybox
    upload "$work/image/layer.tar.gz"
    upload "$work/image/config"
    curl -sSf -o /dev/null -X PUT -H 'content-type: application/vnd.oci.image.manifest.v1+json' \
        --data-binary "@$work/image/manifest" "$base/manifests/latest"
    echo "    pushed $host/busybox:latest"
}

step "make an image from Debian's busybox" make_image
step "start Debian's registry on loopback" start_registry
step "push the image" push_image
image=$host/busybox:latest

# --- the stack --------------------------------------------------------------------------------------------------------

start_daemon() {
    "$programs/gantryd" --address "$GANTRY_ADDRESS" --root "$work/root" --state "$work/state" >"$work/gantryd.log" 2>&1 &
    daemon=$!
    wait_for "gantryd" "$programs/gantry" version
}
limit='cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max'
logged() { "$programs/gantry" logs web | grep -q "$1"; }

step "start gantryd" start_daemon
step "pull the image" gantry pull "$image"
step "run a command" gantry run --rm --name hello "$image" sh -c 'echo "hello from $(hostname), process $$ of $(uname -s) $(uname -r)"'
step "run one detached, with 64 MiB of memory" \
    gantry run --detach --name web --memory 64m "$image" sh -c "echo memory limit: \$($limit); exec sleep 600"
step "wait for its log" wait_for "the log line" logged "memory limit: 67108864"
step "read its log" gantry logs web
step "list containers" gantry ps
step "run a second command inside" gantry exec web ps
step "stop it" gantry stop --time 1 web
step "remove it" gantry rm web
echo "==> done; cleaning up"
