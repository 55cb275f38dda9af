#!/usr/bin/env bash
# Builds the four programs for use and installs them: PREFIX (/usr/local) and DESTDIR as usual.
set -euo pipefail
. "$(dirname "$0")/toolchain.sh"

prefix=${DESTDIR:-}${PREFIX:-/usr/local}
scripts/build.sh
install -d "$prefix/bin"
for program in rung containerd-shim-rung-v2 gantryd gantry; do
    install -m 0755 "$(built release)/$program" "$prefix/bin/$program"
    echo "$prefix/bin/$program"
done

gantry=$prefix/bin/gantry
install -d "$prefix/share/man/man1" "$prefix/share/bash-completion/completions" "$prefix/share/zsh/site-functions" \
    "$prefix/share/fish/vendor_completions.d"
"$gantry" man "$prefix/share/man/man1"
"$gantry" completion bash >"$prefix/share/bash-completion/completions/gantry"
"$gantry" completion zsh >"$prefix/share/zsh/site-functions/_gantry"
"$gantry" completion fish >"$prefix/share/fish/vendor_completions.d/gantry.fish"
echo "$prefix/share: manual pages, and completion for bash, zsh and fish"
