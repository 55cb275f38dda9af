#!/usr/bin/env bash
# Makes what the test machines boot, once, and prints the directory it is in: `root.ext4` (Debian 12 with systemd),
# `vmlinuz` and `initramfs` (Debian's cloud kernel). It is kept in the user's cache directory under a hash of what it is
# made of, and only read afterwards.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

suite=bookworm
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
# What the tests that run there use, and what boots it; what these need comes with them.
packages=(systemd systemd-sysv udev dbus dbus-user-session libpam-systemd kmod busybox-static iproute2 procps
    apparmor uidmap nftables openssl docker-registry skopeo containerd runc podman docker.io
    containernetworking-plugins criu strace)

key=$(cat "$here/image.sh" "$here/initramfs-init" | sha256sum | cut -c1-16)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/gantry/vm
image=$cache/$key
if [[ -f $image/complete ]]; then
    # Says that it is still of use, see the end.
    touch "$image/complete"
    echo "$image"
    exit 0
fi

[[ $(id -u) -eq 0 ]] || { echo "error: making a machine needs root" >&2; exit 1; }
if [[ -z ${GANTRY_VM_IMAGE_LOCKED:-} ]]; then
    "$here/../packages.sh" mmdebstrap debian-archive-keyring e2fsprogs busybox-static
    mkdir -p "$cache"
    # One build at a time: whoever waited finds it done. Its mounts and processes are in namespaces of its own, which end
    # with it however it ends.
    exec env GANTRY_VM_IMAGE_LOCKED=yes flock --no-fork "$cache/lock" \
        unshare --mount --pid --fork --kill-child --mount-proc --propagation private "$0"
fi
# What a build that was killed has left; nobody else builds now.
rm -rf --one-file-system "$cache"/building.*
work=$(mktemp -d "$cache/building.XXXXXX")
trap 'umount -q -R "$work/root/proc" "$work/root/sys" 2>/dev/null || true; rm -rf --one-file-system "$work"' EXIT
trap 'exit 130' INT TERM
begun=$SECONDS
say() { echo "vm image: $* ($((SECONDS - begun)) s)" >&2; }

# Shows what a command said only if it fails.
quietly() {
    if ! "$@" >"$work/log" 2>&1; then
        tail -n 60 "$work/log" >&2
        echo "error: $*" >&2
        return 1
    fi
}

root=$work/root
say "$suite from $mirror: ${packages[*]}"
# The kernel is unpacked, not installed: installing would make an initramfs for hardware that is not there.
# shellcheck disable=SC2016 # The hook is a script of its own.
fetch_kernel='
    export APT_CONFIG=$MMDEBSTRAP_APT_CONFIG
    kernel=$(apt-cache depends linux-image-cloud-amd64 | sed -n "s/.*Depends: \(linux-image-[^ ]*\).*/\1/p" | head -n 1)
    cd "$WORK" && apt-get -qq -o APT::Sandbox::User=root download "$kernel"'
export WORK=$work
# All at once, and nothing but what runs: unpacking and configuring is what this takes, not the network. A root that fails
# is thrown away, so nothing needs to be on disk before the next thing.
options=(--aptopt='APT::Install-Recommends "false"' --aptopt='Acquire::Languages "none"' --dpkgopt=force-unsafe-io)
for directory in doc man info locale lintian; do options+=(--dpkgopt="path-exclude=/usr/share/$directory/*"); done
quietly mmdebstrap --mode=root --format=directory --variant=essential "${options[@]}" \
    --include="$(IFS=,; echo "${packages[*]}")" --customize-hook="$fetch_kernel" "$suite" "$root" \
    "deb $mirror $suite main" "deb $mirror $suite-updates main" \
    "deb http://deb.debian.org/debian-security $suite-security main"

say "kernel"
dpkg-deb -x "$work"/linux-image-*.deb "$work/kernel"
version=$(ls "$work/kernel/lib/modules")
mkdir -p "$root/lib/modules"
cp -a "$work/kernel/lib/modules/$version" "$root/lib/modules/"
chroot "$root" depmod "$version"
cp "$work/kernel/boot/vmlinuz-$version" "$work/vmlinuz"

say "initramfs"
mkdir -p "$work/initramfs"/{bin,dev,proc,sys,root,modules}
cp /bin/busybox "$work/initramfs/bin/busybox"
install -m 0755 "$here/initramfs-init" "$work/initramfs/init"
for module in virtio_pci virtio_blk virtio_console; do
    chroot "$root" modprobe --set-version "$version" --show-depends "$module"
done | sed -n 's/^insmod //p' | awk '!seen[$1]++ { print $1 }' | while read -r file; do
    cp "$root/$file" "$work/initramfs/modules/"
    basename "$file"
done >"$work/initramfs/modules/order"
(cd "$work/initramfs" && find . | busybox cpio -o -H newc 2>/dev/null | gzip -1) >"$work/initramfs.gz"

say "configuration"
chroot "$root" useradd --create-home --shell /bin/bash tester
grep -q '^tester:' "$root/etc/subuid" || echo 'tester:100000:65536' | tee "$root/etc/subuid" >"$root/etc/subgid"
install -d "$root/var/lib/systemd/linger" "$root/etc/systemd/system/user@.service.d" "$root/gantry"
touch "$root/var/lib/systemd/linger/tester"
printf '[Service]\nDelegate=cpu cpuset io memory pids\n' >"$root/etc/systemd/system/user@.service.d/delegate.conf"
cat >"$root/etc/systemd/system/gantry-tests.service" <<UNIT
[Unit]
Description=Tests from the second disk
After=multi-user.target
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'mount -o ro /dev/disk/by-id/virtio-tests /gantry && exec /gantry/guest.sh'
ExecStopPost=/bin/systemctl poweroff --force
StandardOutput=journal+console
StandardError=journal+console
TimeoutStartSec=infinity
UNIT
install -d "$root/etc/systemd/system/default.target.wants"
ln -s ../gantry-tests.service "$root/etc/systemd/system/default.target.wants/"
ln -sf /usr/lib/systemd/system/multi-user.target "$root/etc/systemd/system/default.target"
# Only what tests use is started: in an emulated machine every unit is a second.
for unit in containerd.service docker.service docker.socket docker-registry.service podman.service podman.socket \
    podman-auto-update.service podman-auto-update.timer podman-restart.service e2scrub_reap.service e2scrub_all.timer \
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer fstrim.timer systemd-timesyncd.service \
    getty@tty1.service serial-getty@ttyS0.service systemd-update-utmp.service systemd-update-utmp-runlevel.service \
    modprobe@configfs.service modprobe@drm.service modprobe@dm_mod.service modprobe@efi_pstore.service \
    sys-kernel-config.mount systemd-pstore.service systemd-random-seed.service; do
    ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
rm -f "$root"/etc/apparmor.d/{lsb_release,nvidia_modprobe}
for module in aesni_intel ghash_clmulni_intel crc32_pclmul crct10dif_pclmul sha512_ssse3 psmouse evdev button intel_rapl_msr; do
    echo "blacklist $module"
done >"$root/etc/modprobe.d/unused.conf"
install -d "$root/etc/systemd/journald.conf.d"
printf '[Journal]\nStorage=volatile\nRateLimitBurst=0\n' >"$root/etc/systemd/journald.conf.d/volatile.conf"
echo gantry-vm >"$root/etc/hostname"
printf '127.0.0.1 localhost gantry-vm\n' >"$root/etc/hosts"
: >"$root/etc/machine-id"
: >"$root/etc/fstab"

say "file system"
size=$(($(du -sm "$root" | cut -f1) + 1500))
quietly mkfs.ext4 -q -F -L root -O ^has_journal -d "$root" "$work/root.ext4" "${size}M"

install -d "$work/out"
mv "$work/root.ext4" "$work/vmlinuz" "$work/out/"
mv "$work/initramfs.gz" "$work/out/initramfs"
touch "$work/out/complete"
rm -rf "$image"
mv "$work/out" "$image"
# Images that nobody has used for a fortnight, those of earlier recipes, are of no more use.
find "$cache" -mindepth 2 -maxdepth 2 -name complete -mtime +14 -printf '%h\0' | xargs -0 -r rm -rf
say "kept in $image"
echo "$image"
