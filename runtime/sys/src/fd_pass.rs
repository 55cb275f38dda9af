//! Messages with descriptors over a unix socket.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, recvmsg, sendmsg,
    socket, socketpair,
};

use crate::error::{Error, Result};

/// At most this many descriptors are taken from one message.
pub const MAX_FDS: usize = 16;

/// A connected pair that keeps message boundaries and reports the end of the other side.
pub fn message_pair() -> Result<(OwnedFd, OwnedFd)> {
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
        .map_err(|errno| Error::new("socketpair", "AF_UNIX, SOCK_SEQPACKET", errno as i32))
}

/// Connects to the socket `address`, an abstract one after an `@`. Who listens there but takes no connections, and later
/// who does not read, holds nobody up for longer than `limit` a step.
pub fn connect(address: &Path, limit: Duration) -> io::Result<UnixStream> {
    let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let stream = UnixStream::from(socket);
    // The kernel waits for room in the listener's queue as long as for room to write.
    stream.set_write_timeout(Some(limit))?;
    let bytes = address.as_os_str().as_bytes();
    let target = match bytes.strip_prefix(b"@") {
        Some(name) => UnixAddr::new_abstract(name),
        None => UnixAddr::new(address),
    };
    match nix::sys::socket::connect(stream.as_raw_fd(), &target?) {
        Ok(()) => Ok(stream),
        Err(nix::errno::Errno::EAGAIN) => Err(nix::errno::Errno::ETIMEDOUT.into()),
        Err(errno) => Err(errno.into()),
    }
}

/// Sends one message with descriptors.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let control = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &control[..0] } else { &control[..] };
    loop {
        match sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(bytes)], control, MsgFlags::MSG_NOSIGNAL, None) {
            Ok(sent) if sent == bytes.len() => return Ok(()),
            Ok(_) => return Err(Error::new("sendmsg", "short write", libc::EMSGSIZE)),
            Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => {
                let text = format!("{}, {} bytes, {} descriptors", socket.as_raw_fd(), bytes.len(), fds.len());
                return Err(Error::new("sendmsg", text, errno as i32));
            }
        }
    }
}

/// Receives one message of at most `buffer.len()` bytes; zero bytes mean that the other side is gone.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<(usize, Vec<OwnedFd>)> {
    let mut control = nix::cmsg_space!([RawFd; MAX_FDS]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let (length, truncated, fds) = loop {
        let mut slices = [IoSliceMut::new(buffer)];
        match recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut control), flags) {
            Err(nix::errno::Errno::EINTR) => continue,
            Err(errno) => return Err(Error::new("recvmsg", socket.as_raw_fd().to_string(), errno as i32)),
            Ok(message) => {
                let mut fds = Vec::new();
                let list = message.cmsgs().map_err(|errno| Error::new("recvmsg", "control message", errno as i32))?;
                for entry in list {
                    if let ControlMessageOwned::ScmRights(raw) = entry {
                        // SAFETY: the kernel just installed these descriptors for this message; nobody else owns them.
                        fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
                    }
                }
                let truncated = message.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC);
                break (message.bytes, truncated, fds);
            }
        }
    };
    if truncated {
        return Err(Error::new("recvmsg", format!("a message over {} bytes", buffer.len()), libc::EMSGSIZE));
    }
    Ok((length, fds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn bytes_and_descriptors_arrive_together() {
        let (left, right) = message_pair().expect("pair");
        let file = std::fs::File::open("/dev/null").expect("open");
        send(left.as_fd(), b"hello", &[file.as_fd()]).expect("send");
        let mut buffer = [0; 64];
        let (length, fds) = receive(right.as_fd(), &mut buffer).expect("receive");
        assert_eq!((&buffer[..length], fds.len()), (&b"hello"[..], 1));
        drop(left);
        assert_eq!(receive(right.as_fd(), &mut buffer).expect("end").0, 0);
    }

    #[test]
    fn a_listener_that_takes_nobody_holds_nobody_up() {
        use nix::sys::socket::{Backlog, bind, listen};
        let name = format!("@rung-fd-pass-{}", std::process::id());
        let listener = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("socket");
        bind(listener.as_raw_fd(), &UnixAddr::new_abstract(&name.as_bytes()[1..]).expect("address")).expect("bind");
        listen(&listener, Backlog::new(0).expect("backlog")).expect("listen");
        let attempt = || connect(Path::new(&name), Duration::from_millis(20));
        let mut held = Vec::new();
        let refused = loop {
            match attempt() {
                Ok(stream) if held.len() < 10 => held.push(stream),
                other => break other,
            }
        };
        assert_eq!(refused.expect_err("queue is full").raw_os_error(), Some(libc::ETIMEDOUT));
    }

    #[test]
    fn a_message_that_does_not_fit_is_an_error() {
        let (left, right) = message_pair().expect("pair");
        send(left.as_fd(), b"too long", &[]).expect("send");
        assert_eq!(receive(right.as_fd(), &mut [0; 3]).expect_err("truncated").errno(), libc::EMSGSIZE);
    }
}
