//! Network devices through the kernel's route socket: find one, move it to another namespace, give it its addresses.

use std::io::IoSlice;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendmsg, setsockopt, socket,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

use crate::error::{Error, Result};

const NEW_LINK: u16 = 16;
const GET_LINK: u16 = 18;
const NEW_ADDRESS: u16 = 20;
const GET_ADDRESS: u16 = 22;
const ERROR: u16 = 2;
const DONE: u16 = 3;

const REQUEST: u16 = 1;
const ACKNOWLEDGE: u16 = 4;
const DUMP: u16 = 0x300;
const CREATE_EXCLUSIVELY: u16 = 0x600;
const DUMP_INTERRUPTED: u16 = 0x10;

const IFLA_IFNAME: u16 = 3;
const IFLA_NET_NS_FD: u16 = 28;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const IFA_FLAGS: u16 = 8;

const IFA_F_PERMANENT: u32 = 0x80;
/// What somebody asked for, not what the kernel found out: no duplicate detection, home address, management of temporary
/// addresses, no prefix route, multicast group joined by itself.
const IFA_F_WANTED: u32 = 0x02 | 0x10 | 0x100 | 0x200 | 0x400;

const UP: u32 = 1;

/// A dump that changed while it was read is read again, but not for ever.
const ATTEMPTS: usize = 16;

/// A socket to the network devices of the namespace in which it was opened, wherever its owner goes after that.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
}

/// A network device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// Its number in the namespace.
    pub index: u32,
    /// Whether it is up.
    pub up: bool,
}

/// An address of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    family: u8,
    prefix: u8,
    flags: u32,
    scope: u8,
    /// Type and bytes of local, peer and broadcast address.
    parts: Vec<(u16, Vec<u8>)>,
}

impl Address {
    /// Set by somebody, for as long as they like, and not only for this host or this cable.
    pub fn is_permanent_and_global(&self) -> bool {
        self.flags & IFA_F_PERMANENT != 0 && self.scope == 0
    }
}

impl Netlink {
    /// Opens a socket to the current network namespace.
    pub fn open() -> Result<Self> {
        let failed = |errno| Error::new("socket", "AF_NETLINK, NETLINK_ROUTE", errno as i32);
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket =
            socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute).map_err(failed)?;
        // The kernel answers before it returns from the send; only a message that was lost could be waited for.
        setsockopt(&socket, ReceiveTimeout, &TimeVal::seconds(10)).map_err(failed)?;
        Ok(Self { socket })
    }

    /// Finds a device by name.
    pub fn link(&self, name: &str) -> Result<Link> {
        let what = || format!("RTM_GETLINK {name}");
        let request =
            Message::new(GET_LINK, REQUEST | ACKNOWLEDGE, &link_header(0, 0, 0)).with(IFLA_IFNAME, &text(name));
        let mut found = None;
        self.exchange(&request, &what, |kind, body| {
            if kind == NEW_LINK
                && let (Some(index), Some(flags)) = (number(body, 4), number(body, 8))
            {
                found = Some(Link { index, up: flags & UP != 0 });
            }
        })?;
        found.ok_or_else(|| Error::new("netlink", what(), libc::ENODEV))
    }

    /// The names of all devices.
    pub fn names(&self) -> Result<Vec<String>> {
        let request = Message::new(GET_LINK, REQUEST | DUMP, &link_header(0, 0, 0));
        self.dump(&request, "RTM_GETLINK", |kind, body| {
            let name = attributes(body.get(16..)?).find(|(typ, _)| kind == NEW_LINK && *typ == IFLA_IFNAME)?.1;
            Some(String::from_utf8_lossy(name.strip_suffix(&[0]).unwrap_or(name)).into_owned())
        })
    }

    /// The addresses of a device.
    pub fn addresses(&self, index: u32) -> Result<Vec<Address>> {
        let request = Message::new(GET_ADDRESS, REQUEST | DUMP, &address_header(0, 0, 0, 0, 0));
        self.dump(&request, "RTM_GETADDR", |kind, body| {
            let ([family, prefix, flags, scope], of) = (*body.first_chunk()?, number(body, 4)?);
            if kind != NEW_ADDRESS || of != index {
                return None;
            }
            let mut address = Address { family, prefix, flags: u32::from(flags), scope, parts: Vec::new() };
            for (typ, value) in attributes(body.get(8..)?) {
                match typ {
                    IFA_FLAGS => address.flags = number(value, 0)?,
                    IFA_ADDRESS | IFA_LOCAL | IFA_BROADCAST => address.parts.push((typ, value.to_vec())),
                    _ => {}
                }
            }
            Some(address)
        })
    }

    /// Brings a device up or down.
    pub fn set_up(&self, index: u32, up: bool) -> Result<()> {
        let request = Message::new(NEW_LINK, REQUEST | ACKNOWLEDGE, &link_header(index, u32::from(up) * UP, UP));
        self.exchange(&request, &|| format!("RTM_NEWLINK {index} {}", if up { "up" } else { "down" }), |_, _| {})
    }

    /// Moves a device to another namespace under a new name, in one step: no name is taken for a moment in either.
    pub fn move_link(&self, index: u32, namespace: BorrowedFd<'_>, name: &str) -> Result<()> {
        let request = Message::new(NEW_LINK, REQUEST | ACKNOWLEDGE, &link_header(index, 0, 0))
            .with(IFLA_IFNAME, &text(name))
            .with(IFLA_NET_NS_FD, &namespace.as_raw_fd().to_ne_bytes());
        self.exchange(&request, &|| format!("RTM_NEWLINK {index} to {name} of another namespace"), |_, _| {})
    }

    /// Gives a device an address.
    pub fn add_address(&self, index: u32, address: &Address) -> Result<()> {
        let header = address_header(address.family, address.prefix, 0, address.scope, index);
        let flags = REQUEST | ACKNOWLEDGE | CREATE_EXCLUSIVELY;
        let mut request = Message::new(NEW_ADDRESS, flags, &header);
        for (typ, value) in &address.parts {
            request = request.with(*typ, value);
        }
        let request = request.with(IFA_FLAGS, &(address.flags & IFA_F_WANTED).to_ne_bytes());
        self.exchange(&request, &|| format!("RTM_NEWADDR {index}"), |_, _| {})
    }

    fn dump<T>(&self, request: &Message, what: &str, read: impl Fn(u16, &[u8]) -> Option<T>) -> Result<Vec<T>> {
        for _ in 0..ATTEMPTS {
            let mut found = Vec::new();
            match self.exchange(request, &|| what.to_owned(), |kind, body| found.extend(read(kind, body))) {
                Err(error) if error.errno() == libc::EINTR => {}
                other => return other.map(|()| found),
            }
        }
        Err(Error::new("netlink", format!("{what}: the devices change all the time"), libc::EAGAIN))
    }

    /// Sends a request and reads answers until the last one.
    fn exchange(&self, request: &Message, what: &dyn Fn() -> String, mut each: impl FnMut(u16, &[u8])) -> Result<()> {
        let failed = |errno: i32| Error::new("netlink", what(), errno);
        let bytes = request.finished();
        let kernel = NetlinkAddr::new(0, 0);
        sendmsg(self.socket.as_raw_fd(), &[IoSlice::new(&bytes)], &[], MsgFlags::empty(), Some(&kernel))
            .map_err(|errno| failed(errno as i32))?;
        let mut buffer = vec![0; 64 * 1024];
        let mut interrupted = false;
        loop {
            let length = match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Err(nix::errno::Errno::EINTR) => continue,
                other => other.map_err(|errno| failed(errno as i32))?,
            };
            for (kind, flags, body) in messages(&buffer[..length]) {
                interrupted |= flags & DUMP_INTERRUPTED != 0;
                match kind {
                    DONE if interrupted => return Err(failed(libc::EINTR)),
                    DONE => return Ok(()),
                    ERROR => {
                        let errno = number(body, 0).map_or(libc::EPROTO, |code| i32::from_ne_bytes(code.to_ne_bytes()));
                        return if errno == 0 { Ok(()) } else { Err(failed(-errno)) };
                    }
                    kind => each(kind, body),
                }
            }
        }
    }
}

/// A request: a header, a structure, attributes.
struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: u16, structure: &[u8]) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        // One request at a time on a socket of our own: neither a sequence nor a port number is needed.
        bytes.extend([0; 8]);
        bytes.extend(structure);
        Self(bytes)
    }

    fn with(mut self, typ: u16, value: &[u8]) -> Self {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(typ.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn finished(&self) -> Vec<u8> {
        let mut bytes = self.0.clone();
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        bytes[..4].copy_from_slice(&length.to_ne_bytes());
        bytes
    }
}

/// `struct ifinfomsg`.
fn link_header(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    bytes[8..12].copy_from_slice(&flags.to_ne_bytes());
    bytes[12..].copy_from_slice(&change.to_ne_bytes());
    bytes
}

/// `struct ifaddrmsg`.
fn address_header(family: u8, prefix: u8, flags: u8, scope: u8, index: u32) -> [u8; 8] {
    let mut bytes = [family, prefix, flags, scope, 0, 0, 0, 0];
    bytes[4..].copy_from_slice(&index.to_ne_bytes());
    bytes
}

fn text(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

/// Type, flags and body of each message.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::try_from(number(bytes, 0)?).ok()?;
        let message = bytes.get(..length)?;
        let (kind, flags) = (message.get(4..6)?, message.get(6..8)?);
        let pair = |bytes: &[u8]| bytes.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes));
        let body = message.get(16..)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((pair(kind)?, pair(flags)?, body))
    })
}

/// Type and value of each attribute.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let pair = |at: usize| bytes.get(at..)?.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes));
        let (length, typ) = (usize::from(pair(0)?), pair(2)?);
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        // The two highest bits are flags.
        Some((typ & 0x3fff, value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_found() {
        let netlink = Netlink::open().expect("socket");
        let lo = netlink.link("lo").expect("lo");
        assert_eq!(lo.index, 1);
        assert!(netlink.names().expect("names").contains(&"lo".to_owned()));
        for address in netlink.addresses(lo.index).expect("addresses") {
            // 127.0.0.1 and ::1 are of this host only.
            assert!(!address.is_permanent_and_global(), "{address:?}");
        }
        assert_eq!(netlink.link("no-such-dev").expect_err("missing").errno(), libc::ENODEV);
    }

    #[test]
    fn attributes_are_padded_and_read_back() {
        let message = Message::new(NEW_LINK, REQUEST, &link_header(7, 1, 1)).with(3, b"eth0\0").with(28, &[1, 0, 0, 0]);
        let bytes = message.finished();
        let all: Vec<_> = messages(&bytes).collect();
        assert_eq!((all.len(), all[0].0, all[0].1), (1, NEW_LINK, REQUEST));
        let found: Vec<_> = attributes(&all[0].2[16..]).collect();
        assert_eq!(found, [(3, &b"eth0\0"[..]), (28, &[1, 0, 0, 0][..])]);
        // Whatever the lengths say, nothing is read beyond the end.
        for length in 0..bytes.len() {
            assert!(messages(&bytes[..length]).count() <= 1);
            assert!(attributes(&bytes[..length]).count() < bytes.len());
        }
    }
}
