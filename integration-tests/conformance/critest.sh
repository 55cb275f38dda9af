#!/usr/bin/env bash
# Points critest at a gantryd of its own: critest.sh CRITEST PROGRAMS IMAGES RESULTS [FOCUS [SKIP]]
# IMAGES is the directory of a registry with the images that critest wants, under the names it wants them by, whatever the
# host. Cgroups are systemd's where that is process 1, else the daemon's. Where CONTAINERD is the directory of a containerd
# and its shim, critest is pointed at that instead. Called by run.sh, in namespaces of mounts and of the network of its own.
set -euo pipefail
critest=$1 programs=$2 images=$3 results=$4 focus=${5:-} skip=${6:-}
export PATH=$programs:$PATH
work=$(mktemp -d) && state=/run/gantry-critest-$$
children=()
finish() {
    for child in "${children[@]}"; do kill "$child" 2>/dev/null || true; done
    wait
    while read -r place; do umount -l "$place" || true; done < <(awk -v dir="$state/" 'index($2, dir) == 1 { print $2 }' /proc/mounts | sort -r)
    rm -rf --one-file-system "$work" "$state"
}
trap finish EXIT

address=127.0.0.1:5917
mkdir -p "$work"/{net.d,hosts/_default}
cat >"$work/registry.yml" <<YML
version: 0.1
storage: {filesystem: {rootdirectory: "$images"}}
http: {addr: "$address"}
log: {level: error}
YML
printf 'server = "http://%s"\n' "$address" >"$work/hosts/_default/hosts.toml"
cat >"$work/net.d/10-critest.conflist" <<JSON
{"cniVersion": "1.0.0", "name": "critest", "plugins": [
    {"type": "bridge", "bridge": "critest0", "isGateway": true, "hairpinMode": true, "ipam": {"type": "host-local",
        "dataDir": "$work/ipam", "ranges": [[{"subnet": "10.187.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
    {"type": "portmap", "capabilities": {"portMappings": true}}]}
JSON
driver=cgroupfs
[[ ! -d /run/systemd/system ]] || driver=systemd
if [[ -z ${CONTAINERD:-} ]]; then
    daemon=gantryd
    cat >"$work/config.toml" <<TOML
root = "$work/root"
state = "$state"
[grpc]
address = "$state/s"
[ttrpc]
address = "$state/t"
[registry]
config_path = "$work/hosts"
[cri]
cgroup_driver = "$driver"
[cri.nri]
socket = "$state/n"
[cri.cni]
conf_dir = "$work/net.d"
bin_dirs = ["/usr/lib/cni", "/opt/cni/bin"]
timeout = $((60 * ${PATIENCE:-1}))
TOML
else
    daemon=$CONTAINERD/containerd
    export PATH=$CONTAINERD:$PATH
    cat >"$work/config.toml" <<TOML
version = 3
root = "$work/root"
state = "$state"
[grpc]
address = "$state/s"
[plugins."io.containerd.nri.v1.nri"]
socket_path = "$state/n"
[plugins."io.containerd.cri.v1.images"]
snapshotter = "overlayfs"
[plugins."io.containerd.cri.v1.images".registry]
config_path = "$work/hosts"
[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["/usr/lib/cni", "/opt/cni/bin"]
conf_dir = "$work/net.d"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
SystemdCgroup = $([[ $driver == systemd ]] && echo true || echo false)
TOML
fi
docker-registry serve "$work/registry.yml" >"$results/registry.log" 2>&1 &
children+=($!)
"$daemon" --config "$work/config.toml" >"$results/gantryd.log" 2>&1 &
children+=($!)
until [[ -S $state/s ]]; do kill -0 "${children[1]}"; sleep 0.2; done
: >"$work/crictl.yaml"
cd "$work"
: "${focus:=.}"
chosen=(--ginkgo.focus "$focus")
[[ -z $skip ]] || chosen+=(--ginkgo.skip "$skip")
# Its plugins connect here; older versions have none.
! "$critest" --help 2>&1 | grep -q nri-socket || chosen+=(--nri-socket "$state/n")
code=0
"$critest" --config "$work/crictl.yaml" --runtime-endpoint "unix://$state/s" --image-endpoint "unix://$state/s" \
    --runtime-service-timeout $((120 * ${PATIENCE:-1}))s --image-service-timeout $((120 * ${PATIENCE:-1}))s --ginkgo.timeout 3h --ginkgo.v --ginkgo.no-color "${chosen[@]}" >"$results/critest" 2>&1 || code=$?
echo "cgroups of $driver: $(grep -aE '^(SUCCESS|FAIL)! ' "$results/critest" || echo "no end, status $code")"
sed -n '/^Summarizing/,/^Ran /p' "$results/critest" | grep -a '\[FAIL\]' || true
exit "$code"
