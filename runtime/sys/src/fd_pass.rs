//! Messages with descriptors over a unix socket.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, sendmsg, socket, socketpair,
};

use crate::error::{Error, Result, check};
use crate::socket_path::SocketPath;

/// At most this many descriptors are taken from one message.
pub const MAX_FDS: usize = 32;

/// A connected pair that keeps message boundaries and reports the end of the other side.
pub fn message_pair() -> Result<(OwnedFd, OwnedFd)> {
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
        .map_err(|errno| Error::new("socketpair", "AF_UNIX, SOCK_SEQPACKET", errno as i32))
}

/// Connects to the socket `address`, a path of any length or an abstract one after an `@`. Who listens there but takes no connections, and later
/// who does not read, holds nobody up for longer than `limit` a step.
pub fn connect(address: &Path, limit: Duration) -> io::Result<UnixStream> {
    let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let stream = UnixStream::from(socket);
    // The kernel waits for room in the listener's queue as long as for room to write.
    stream.set_write_timeout(Some(limit))?;
    let short;
    let target = match address.as_os_str().as_bytes().strip_prefix(b"@") {
        Some(name) => UnixAddr::new_abstract(name),
        None => {
            short = SocketPath::of(address)?;
            UnixAddr::new(short.as_ref())
        }
    };
    match nix::sys::socket::connect(stream.as_raw_fd(), &target?) {
        Ok(()) => Ok(stream),
        Err(nix::errno::Errno::EAGAIN) => Err(nix::errno::Errno::ETIMEDOUT.into()),
        Err(errno) => Err(errno.into()),
    }
}

/// How many of the sent bytes the other side has not read, with what the kernel adds to each message.
pub fn unread(stream: &UnixStream) -> Result<libc::c_int> {
    let mut left = 0;
    // SAFETY: the descriptor is open, and the kernel writes one number.
    let returned = unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut left) };
    check(returned, "ioctl", || format!("{}, TIOCOUTQ", stream.as_raw_fd()))?;
    Ok(left)
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
    let mut slice = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: `msghdr` is plain data, for which all zeroes is a value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut slice;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = control.capacity() as _;
    let length = loop {
        // SAFETY: the header describes `buffer` and the whole of `control`, which outlive the call.
        let returned = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
        match usize::try_from(returned) {
            Ok(length) => break length,
            Err(_) => match nix::errno::Errno::last() {
                nix::errno::Errno::EINTR => {}
                errno => return Err(Error::new("recvmsg", socket.as_raw_fd().to_string(), errno as i32)),
            },
        }
    };
    // Owned before anything is judged: a message that is refused must not leave its descriptors open.
    // SAFETY: the kernel has just filled the header and what it describes.
    let fds = unsafe { take_descriptors(&message) };
    if message.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0 {
        let text = format!("a message over {} bytes or {MAX_FDS} descriptors", buffer.len());
        return Err(Error::new("recvmsg", text, libc::EMSGSIZE));
    }
    Ok((length, fds))
}

/// The descriptors that came with a message.
///
/// # Safety
/// recvmsg(2) has filled `message`, its control buffer is still there, and nobody else takes the descriptors.
unsafe fn take_descriptors(message: &libc::msghdr) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    // SAFETY: the macros stay within the control buffer, whose filled length the kernel has written.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !header.is_null() {
        // SAFETY: a header that is not null lies whole within the buffer.
        let entry = unsafe { header.read_unaligned() };
        if (entry.cmsg_level, entry.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            // SAFETY: as above; its data are the descriptors, as many as its length says.
            let data = unsafe { libc::CMSG_DATA(header) }.cast::<RawFd>();
            // SAFETY: arithmetic on a number.
            let empty = unsafe { libc::CMSG_LEN(0) } as usize;
            let length: usize = entry.cmsg_len as _;
            let count = length.saturating_sub(empty) / size_of::<RawFd>();
            // SAFETY: the kernel has just installed these descriptors for this message; nobody else owns them.
            fds.extend((0..count).map(|index| unsafe { OwnedFd::from_raw_fd(data.add(index).read_unaligned()) }));
        }
        // SAFETY: as for the first.
        header = unsafe { libc::CMSG_NXTHDR(message, header) };
    }
    fds
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
    fn a_listener_may_lie_deep() {
        let directory = tempfile::tempdir().expect("directory");
        let deep = directory.path().join("d".repeat(200)).join("socket");
        std::fs::create_dir(deep.parent().expect("parent")).expect("directory");
        let short = SocketPath::of(&deep).expect("path");
        let _listener = std::os::unix::net::UnixListener::bind(short.as_ref()).expect("bind");
        connect(&deep, Duration::from_secs(10)).expect("connect");
    }

    #[test]
    fn a_message_that_does_not_fit_is_an_error() {
        let (left, right) = message_pair().expect("pair");
        send(left.as_fd(), b"too long", &[]).expect("send");
        assert_eq!(receive(right.as_fd(), &mut [0; 3]).expect_err("truncated").errno(), libc::EMSGSIZE);
    }

    #[test]
    fn descriptors_that_do_not_fit_are_closed() {
        let (left, right) = message_pair().expect("pair");
        let (reader, writer) = io::pipe().expect("pipe");
        send(left.as_fd(), b"x", &[writer.as_fd(); MAX_FDS + 4]).expect("send");
        drop(writer);
        assert_eq!(receive(right.as_fd(), &mut [0; 3]).expect_err("truncated").errno(), libc::EMSGSIZE);
        // Nobody holds the other end any more.
        let woken = crate::poll::wait(&[(reader.as_fd(), crate::poll::Interest::Hangup)], Some(Duration::ZERO));
        assert_eq!(woken.expect("poll").len(), 1);
    }
}
