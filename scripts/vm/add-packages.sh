#!/usr/bin/env bash
# Makes an archive of what Debian packages add to the test machines' root, and prints its path: a guest unpacks it over its
# root. It is kept beside the image that it is for. Usage: add-packages.sh PACKAGE...
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
if [[ -z ${GANTRY_VM_OVERLAY:-} ]]; then
    image=$("$here/image.sh")
    archive=$image/packages-$(printf '%s\n' "$@" | sort | sha256sum | cut -c1-16).tar
    if [[ ! -f $archive ]]; then
        GANTRY_VM_OVERLAY=$(mktemp -d) && export GANTRY_VM_OVERLAY
        trap 'rm -rf --one-file-system "$GANTRY_VM_OVERLAY"' EXIT
        # Its mounts are in a namespace of its own and end with it.
        unshare --mount --pid --fork --kill-child --mount-proc --propagation private "$0" "$image" "$archive" "$@" >&2
    fi
    echo "$archive"
    exit 0
fi

image=$1 archive=$2
shift 2
cd "$GANTRY_VM_OVERLAY"
mkdir disk lower new
mount -t tmpfs -o size=4g tmpfs new
mkdir new/upper new/work new/root
mount -o loop,ro "$image/root.ext4" lower
mount -t overlay -o "lowerdir=lower,upperdir=new/upper,workdir=new/work" overlay new/root
mount -t proc proc new/root/proc
root=$PWD/new/root
# The root has no apt of its own; dpkg runs the packages' scripts in it.
apt() {
    DEBIAN_FRONTEND=noninteractive apt-get -qq -o "Dir=$root" -o Dir::Etc::TrustedParts=/etc/apt/trusted.gpg.d \
        -o APT::Sandbox::User=root -o Acquire::Languages=none -o "DPkg::Options::=--root=$root" -o Dpkg::Use-Pty=0 "$@"
}
mkdir -p "$root/var/lib/apt/lists/partial" "$root/var/cache/apt/archives/partial"
{ apt update && apt install -y --no-install-recommends "$@"; } </dev/null >new/log 2>&1 || { tail -n 40 new/log >&2; exit 1; }
umount new/root/proc
rm -rf new/upper/{tmp,run,var/cache,var/lib/apt,var/log,usr/share/{doc,man,locale,lintian}}
tar -C new/upper -cf "$archive.new" .
mv "$archive.new" "$archive"
