#!/usr/bin/env bash
# Writes runtime/hot-functions.ld anew: which functions of `rung` a start, an exec and a delete run. Needs root and x86-64.
# See docs/decisions/0019-hot-functions.md.
set -euo pipefail
. "$(dirname "$0")/toolchain.sh"

[[ $(id -u) -eq 0 ]] || { echo "error: this makes containers, so it needs root" >&2; exit 1; }
scripts/packages.sh busybox-static binutils
musl=${TRIPLE%-gnu}-musl
cargo build --locked --quiet -p rung-sys --example reached
cargo rustc --locked --quiet --profile rung -p rung --bin rung --target "$musl" -- -C strip=none
rung=$(built rung "$musl")/rung
reached=$(built debug)/examples/reached
work=$(mktemp -d)
run() { "$rung" --root "$work/state" "$@" </dev/null >/dev/null 2>&1; }
trap 'run delete --force hot; rm -rf "$work"' EXIT

mkdir -p "$work"/bundle/rootfs/{bin,dev,proc,sys} "$work/state"
cp "$(command -v busybox)" "$work/bundle/rootfs/bin/sleep"
"$rung" spec --bundle "$work/bundle"
# A filter as large as those that containers have: every call is allowed, one of them for some arguments.
names=$(sed -n 's/^ *("\([a-z0-9_]*\)", .*/"\1"/p' runtime/spec/src/syscalls/numbers.rs | grep -v '"personality"' | paste -sd,)
archs='"SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"'
rule='{"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]}'
rules="{\"names\": [$names], \"action\": \"SCMP_ACT_ALLOW\"}, $rule"
filter="{\"defaultAction\": \"SCMP_ACT_ERRNO\", \"architectures\": [$archs], \"syscalls\": [$rules]}"
sed -i "s/\"terminal\": true/\"terminal\": false/; s/\"sh\"/\"sleep\", \"9\"/; s/\"linux\": {/&\"seccomp\": $filter,/" \
    "$work/bundle/config.json"
nm "$rung" | sort >"$work/symbols"
awk '$2 ~ /[tTwW]/ { print $1 }' "$work/symbols" | uniq >"$work/addresses"
watch() { timeout 60 "$reached" "$work/addresses" "$rung" --root "$work/state" "$@" >>"$work/reached"; }

# What is left of a container by a command that is watched ends with it: the next one begins with one that is not.
watch run --bundle "$work/bundle" hot
watch create --bundle "$work/bundle" hot
run delete --force hot
run create --bundle "$work/bundle" hot
watch exec hot sleep 0
watch start hot
watch state hot
watch kill hot KILL
watch delete --force hot

# The same on a host that has cgroup v2 only, where devices are the business of a program for the kernel.
export -f watch run
export rung reached work
unshare --mount --propagation private bash -euc '
    umount -R /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup
    watch run --bundle "$work/bundle" hot
    run create --bundle "$work/bundle" hot
    watch exec hot sleep 0
    watch delete --force hot'

# First what most of them need. The hashes in the names change with every build, so they are left open. What is marked as cold
# in the source has a section of another name.
{
    echo "/* The functions that a start, an exec and a delete run, side by side: docs/decisions/0019-hot-functions.md."
    echo "   Written by scripts/hot-functions.sh. A name that is not there any more does no harm. */"
    # Functions of the C library that are written in assembler have no section of their own.
    printf 'SECTIONS\n{\n  .text.hot :\n  {\n    *crt1.o(.text .text.*)\n    *libc.a:*(.text)\n'
    awk '{ sub(/^0+/, "", $1) } NR == FNR { count[$1]++; next } $1 in count { print count[$1], $3 }' \
        "$work/reached" "$work/symbols" | sort -s -k1,1nr | cut -d' ' -f2 |
        sed -E 's/17h[0-9a-f]{16}E$/17h*/; s/Cs[0-9A-Za-z]+_/Cs*_/g; s/[^A-Za-z0-9_.*$]/?/g' |
        awk '!seen[$0]++ { print "    *(.text." $0 " .text.unlikely." $0 ")" }'
    printf '  }\n}\nINSERT BEFORE .text;\n\n'
    echo "/* Memory that the allocator hands out goes last, so that it begins on a page that is written anyway. */"
    printf 'SECTIONS\n{\n  .heap (NOLOAD) : { *(.bss._RNvCs*_4rung9ALLOCATOR) }\n}\nINSERT AFTER .bss;\n'
} >"$work/hot-functions.ld"
install -m 0644 "$work/hot-functions.ld" runtime/hot-functions.ld
echo "runtime/hot-functions.ld names $(grep -c 'text\._' runtime/hot-functions.ld) functions"
