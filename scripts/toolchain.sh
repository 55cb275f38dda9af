# Sourced by the other scripts: cargo in PATH, or a clear error; a C compiler for the few packages that need one.
if ! command -v cargo >/dev/null && [[ -x $HOME/.cargo/bin/cargo ]]; then
    PATH=$HOME/.cargo/bin:$PATH
fi
if ! command -v cargo >/dev/null; then
    echo "error: cargo is not installed; get Rust 1.95 or newer from https://rustup.rs and run this again" >&2
    exit 1
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/packages.sh gcc libc6-dev
TRIPLE=$(rustc -vV | sed -n 's/^host: //p')
# Whether the standard library for a target is there, or rustup can get it.
has_target() { [[ -d $(rustc --print target-libdir --target "$1") ]] || rustup --quiet target add "$1" 2>/dev/null; }
# Where cargo puts what it builds for PROFILE (debug or release) and, if not this machine's own, for a target.
built() { echo "${CARGO_TARGET_DIR:-$PWD/target}/${2:-$TRIPLE}/$1"; }
