# Sourced by what boots test machines. It wants `work`, a directory for all of them, and `image`, what scripts/vm/image.sh
# printed. A machine runs /guest.sh of the disk that make_disk makes, and then ends.

# make_disk DIRECTORY FREE-MEGABYTES: the second disk of the machines, with what is in the directory, which is removed.
make_disk() {
    mkfs.ext4 -q -F -O ^has_journal -d "$1" "$work/tests.ext4" $(($(du -sm "$1" | cut -f1) + $2))M >/dev/null
    rm -rf "$1"
}

# boot DIRECTORY SECONDS KERNEL-PARAMETERS: becomes a machine, which ends with this script at the latest. What it writes to
# its virtio ports is in DIRECTORY/out, results and status.
boot() {
    local dir=$1 limit=$2 parameters=$3
    mkdir -p "$dir"
    exec </dev/null >"$dir/qemu" 2>&1
    TMPDIR=$work exec setpriv --pdeathsig TERM timeout --kill-after=5 "$limit" qemu-system-x86_64 \
        -nodefaults -no-user-config -no-reboot -display none -nic none -machine q35 "${accelerator[@]}" -smp 2 -m 2048 \
        -kernel "$image/vmlinuz" -initrd "$image/initramfs" \
        -append "console=ttyS0 quiet panic=-1 systemd.show_status=0 mitigations=off $tuning $parameters" \
        -drive "file=$image/root.ext4,if=none,id=root,format=raw,snapshot=on,cache=unsafe" -device virtio-blk-pci,drive=root \
        -drive "file=$work/tests.ext4,if=none,id=tests,format=raw,snapshot=on" \
        -device virtio-blk-pci,drive=tests,serial=tests \
        -serial "file:$dir/console" -device virtio-serial-pci \
        -chardev "file,id=out,path=$dir/out" -device virtserialport,chardev=out,name=gantry.out \
        -chardev "file,id=results,path=$dir/results" -device virtserialport,chardev=results,name=gantry.results \
        -chardev "file,id=status,path=$dir/status" -device virtserialport,chardev=status,name=gantry.status
}

# Emulation always works. KVM is used where it does, which a machine that only boots and leaves shows.
probe() {
    [[ -w /dev/kvm ]] || return 1
    # QEMU may abort where the kernel refuses it: that is an answer too, and no news for the reader.
    (ulimit -c 0; boot "$work/probe" 20 gantry.probe) 2>/dev/null || return 1
    grep -q "gantry probe: booted" "$work/probe/console"
}

# Sets `accelerator`, `tuning` and `patience`: how many times longer than usual such a machine may take.
choose_accelerator() {
    accelerator=(-accel kvm -cpu host)
    tuning=
    patience=2
    if ! probe; then
        accelerator=(-accel "tcg,thread=multi" -cpu max)
        # A busy host lets the kernel's test of the timer fail, and the time stamp counter is the clock that costs no exit.
        # Code is translated anew for every address it is seen at, which takes most of the time where these differ each
        # time.
        tuning="no_timer_check tsc=reliable norandmaps no5lvl"
        # The counter is the host's. On a busy host the kernel measures it wrongly, and its clock then runs many times too
        # fast: every wait in the machine would be shorter than it says. Where the host's processors change their clock,
        # /proc says that instead.
        [[ -d /sys/devices/system/cpu/cpu0/cpufreq ]] ||
            tuning+=$(awk '/^cpu MHz/ { printf " tsc_early_khz=%.0f", $4 * 1000; exit }' /proc/cpuinfo)
        patience=8
    fi
}
