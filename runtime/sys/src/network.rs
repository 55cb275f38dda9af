//! The loopback device.

use std::os::fd::{AsRawFd, OwnedFd};

use crate::error::{Result, check};
use crate::pidfd::owned;

const SIOCSIFFLAGS: libc::Ioctl = 0x8914;

/// Brings `lo` of the current network namespace up.
pub fn bring_loopback_up() -> Result<()> {
    let socket = control_socket()?;
    // SAFETY: `ifreq` is plain data, for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (slot, byte) in request.ifr_name.iter_mut().zip(b"lo") {
        *slot = libc::c_char::from_ne_bytes([*byte]);
    }
    let up = libc::IFF_UP | libc::IFF_RUNNING;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(up).unwrap_or_default();
    // SAFETY: SIOCSIFFLAGS reads one ifreq, which outlives the call.
    let returned = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCSIFFLAGS, &raw const request) };
    check(returned, "ioctl", || "SIOCSIFFLAGS, lo, IFF_UP".into()).map(drop)
}

fn control_socket() -> Result<OwnedFd> {
    // A unix socket answers interface requests as well as an internet one, and costs the namespace nothing.
    // SAFETY: socket takes three numbers and returns a new descriptor or an error.
    let returned = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    owned(check(returned, "socket", || "AF_UNIX, SOCK_DGRAM".into())?, "socket")
}
