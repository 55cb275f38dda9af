#!/usr/bin/env bash
# Removes what scripts/install.sh has installed: PREFIX (/usr/local) and DESTDIR as there.
set -euo pipefail

prefix=${DESTDIR:-}${PREFIX:-/usr/local}
rm -f "$prefix"/bin/{rung,containerd-shim-rung-v2,gantryd,gantry} "$prefix/lib/systemd/system/gantryd.service"
for program in gantry rung; do
    rm -f "$prefix/share/man/man1/$program".1 "$prefix/share/man/man1/$program"-*.1 \
        "$prefix/share/bash-completion/completions/$program" "$prefix/share/zsh/site-functions/_$program" \
        "$prefix/share/fish/vendor_completions.d/$program.fish"
done
echo "removed from $prefix; images and containers are left in /var/lib/gantry, settings in /etc/gantry"
