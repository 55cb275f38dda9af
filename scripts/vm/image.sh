#!/usr/bin/env bash
# Makes what the test machines boot, once, and prints the directory it is in: `root.ext4` (Debian 12 with systemd),
# `vmlinuz` and `initramfs` (Debian's cloud kernel). It is kept in the user's cache directory under a hash of what it is
# made of, and only read afterwards.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

suite=bookworm
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
base=systemd,systemd-sysv,udev,dbus,libpam-systemd,kmod,busybox-static,iproute2,procps
extra=(dbus-user-session apparmor uidmap nftables docker-registry containerd runc skopeo crun)

key=$({ echo "$suite $base ${extra[*]}"; cat "$here/image.sh" "$here/initramfs-init"; } | sha256sum | cut -c1-16)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/gantry/vm
image=$cache/$key
if [[ -f $image/complete ]]; then
    echo "$image"
    exit 0
fi

[[ $(id -u) -eq 0 ]] || { echo "error: debootstrap needs root" >&2; exit 1; }
"$here/../packages.sh" debootstrap e2fsprogs busybox-static
mkdir -p "$cache"
# One build at a time; whoever waited finds it done.
exec 9>"$cache/lock"
flock 9
if [[ -f $image/complete ]]; then
    echo "$image"
    exit 0
fi
work=$(mktemp -d "$cache/building.XXXXXX")
trap 'umount -q "$work/root/proc" "$work/root/sys" 2>/dev/null || true; rm -rf --one-file-system "$work"' EXIT
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
say "debootstrap $suite from $mirror"
quietly debootstrap --variant=minbase --include="$base" "$suite" "$root" "$mirror"
say "packages: ${extra[*]} and the cloud kernel"
cat >"$root/etc/apt/sources.list" <<SOURCES
deb $mirror $suite main
deb $mirror $suite-updates main
deb http://deb.debian.org/debian-security $suite-security main
SOURCES
# Packages must not start anything here.
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
chmod 0755 "$root/usr/sbin/policy-rc.d"
apt=(env DEBIAN_FRONTEND=noninteractive chroot "$root" apt-get -qq -o Dpkg::Use-Pty=0)
quietly "${apt[@]}" update
quietly "${apt[@]}" install -y --no-install-recommends "${extra[@]}"

say "kernel"
# Unpacked, not installed: installing would make an initramfs for hardware that is not there.
kernel=$(chroot "$root" apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \(linux-image-[^ ]*\).*/\1/p' | head -n 1)
quietly "${apt[@]}" -o Dir::Cache::archives=/tmp install -y --download-only --no-install-recommends "$kernel"
mkdir "$work/kernel"
dpkg-deb -x "$root"/tmp/"$kernel"_*.deb "$work/kernel"
version=${kernel#linux-image-}
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
for unit in containerd docker-registry e2scrub_reap apt-daily.timer apt-daily-upgrade.timer getty@tty1 \
    dpkg-db-backup.timer e2scrub_all.timer fstrim.timer systemd-timesyncd; do
    [[ $unit == *.timer ]] || unit=$unit.service
    ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
echo gantry-vm >"$root/etc/hostname"
printf '127.0.0.1 localhost gantry-vm\n' >"$root/etc/hosts"
: >"$root/etc/machine-id"
: >"$root/etc/fstab"
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/tmp/* "$root"/usr/share/{doc,man,locale} \
    "$root/usr/sbin/policy-rc.d"

say "file system"
size=$(($(du -sm "$root" | cut -f1) + 1500))
quietly mkfs.ext4 -q -F -L root -O ^has_journal -d "$root" "$work/root.ext4" "${size}M"

install -d "$work/out"
mv "$work/root.ext4" "$work/vmlinuz" "$work/out/"
mv "$work/initramfs.gz" "$work/out/initramfs"
touch "$work/out/complete"
rm -rf "$image"
mv "$work/out" "$image"
# Images of earlier recipes are of no more use.
find "$cache" -mindepth 1 -maxdepth 1 -type d ! -name "$key" ! -name 'building.*' -mtime +30 -exec rm -rf {} +
say "kept in $image"
echo "$image"
