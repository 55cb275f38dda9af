#!/usr/bin/env bash
# Builds the four programs for use and installs them, their manual pages and completions, and systemd's unit of the daemon:
# PREFIX (/usr/local) and DESTDIR as usual.
set -euo pipefail
. "$(dirname "$0")/toolchain.sh"

prefix=${DESTDIR:-}${PREFIX:-/usr/local}
scripts/build.sh
install -d "$prefix/bin"
for program in rung containerd-shim-rung-v2 gantryd gantry; do
    install -m 0755 "$(built release)/$program" "$prefix/bin/$program"
    echo "$prefix/bin/$program"
done

install -d "$prefix/share/man/man1" "$prefix/share/bash-completion/completions" \
    "$prefix/share/zsh/site-functions" "$prefix/share/fish/vendor_completions.d" "$prefix/lib/systemd/system"
for program in gantry rung; do
    "$prefix/bin/$program" man "$prefix/share/man/man1"
    "$prefix/bin/$program" completion bash >"$prefix/share/bash-completion/completions/$program"
    "$prefix/bin/$program" completion zsh >"$prefix/share/zsh/site-functions/_$program"
    "$prefix/bin/$program" completion fish >"$prefix/share/fish/vendor_completions.d/$program.fish"
done
echo "$prefix/share: manual pages, and completion for bash, zsh and fish"
sed "s|/usr/local/bin/|${PREFIX:-/usr/local}/bin/|" core-daemon/gantryd.service >"$prefix/lib/systemd/system/gantryd.service"
echo "$prefix/lib/systemd/system/gantryd.service: for systemctl enable --now gantryd"
