#!/usr/bin/env bash
# Installs the Debian packages named as arguments that are not here yet.
set -euo pipefail

missing=()
for package in "$@"; do
    status=$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null || true)
    [[ $status == installed ]] || missing+=("$package")
done
[[ ${#missing[@]} -gt 0 ]] || exit 0

if [[ $(id -u) -ne 0 ]]; then
    echo "error: these packages are missing and only root can install them: ${missing[*]}" >&2
    exit 1
fi
# Not an answer: some callers of callers take what is printed for a path.
echo "installing ${missing[*]}" >&2
export DEBIAN_FRONTEND=noninteractive
# Another program may hold the lock for a while: wait for it instead of failing.
apt=(apt-get -qq -o DPkg::Lock::Timeout=600 -o Dpkg::Use-Pty=0)
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! { "${apt[@]}" update && "${apt[@]}" install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
    cat "$log" >&2
    echo "error: apt-get could not install ${missing[*]}" >&2
    exit 1
fi
