//! The logs of the system: journald and syslog, a datagram for each line.

use std::os::unix::net::UnixDatagram;

use crate::error::{Doing as _, Result};

/// A daemon that keeps a log, and the name that this program has in it.
#[derive(Debug)]
pub(super) struct Daemon {
    socket: UnixDatagram,
    name: String,
    journald: bool,
}

impl Daemon {
    pub(super) fn journald(name: &str) -> Result<Self> {
        Self::connect("/run/systemd/journal/socket", name, true)
    }

    pub(super) fn syslog(name: &str) -> Result<Self> {
        Self::connect("/dev/log", name, false)
    }

    fn connect(path: &str, name: &str, journald: bool) -> Result<Self> {
        let open = || -> std::io::Result<UnixDatagram> {
            let socket = UnixDatagram::unbound()?;
            // A daemon that hangs loses lines rather than stopping a container.
            socket.set_nonblocking(true)?;
            socket.connect(path)?;
            Ok(socket)
        };
        let socket = open().doing(|| format!("open the log {path}"))?;
        let name = if name.is_empty() { crate::cli::program() } else { name.to_owned() };
        Ok(Self { socket, name, journald })
    }

    /// A line that the daemon does not take is lost; one that ends the run reaches stderr too.
    pub(super) fn write(&self, level: &str, message: &str) {
        let priority = priority(level);
        let text =
            if self.journald { journal(priority, &self.name, message) } else { line(priority, &self.name, message) };
        drop(self.socket.send(&text));
    }
}

/// As in syslog(3).
fn priority(level: &str) -> u8 {
    match level {
        "error" => 3,
        "warning" => 4,
        _ => 7,
    }
}

/// A record of the journal's protocol. A value may hold anything, because its length stands before it.
fn journal(priority: u8, name: &str, message: &str) -> Vec<u8> {
    let mut text = format!("PRIORITY={priority}\n").into_bytes();
    for (key, value) in [("SYSLOG_IDENTIFIER", name), ("MESSAGE", message)] {
        text.extend_from_slice(key.as_bytes());
        text.push(b'\n');
        text.extend_from_slice(&(value.len() as u64).to_le_bytes());
        text.extend_from_slice(value.as_bytes());
        text.push(b'\n');
    }
    text
}

/// A line of a daemon's own (facility 3), without the time, which the receiver adds.
fn line(priority: u8, name: &str, message: &str) -> Vec<u8> {
    format!("<{}>{name}[{}]: {}", 3 * 8 + priority, std::process::id(), message.replace('\n', " ")).into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagrams() {
        let record = journal(3, "web", "a\nMESSAGE=b");
        let told = b"PRIORITY=3\nSYSLOG_IDENTIFIER\n\x03\0\0\0\0\0\0\0web\nMESSAGE\n\x0b\0\0\0\0\0\0\0a\nMESSAGE=b\n";
        assert_eq!(record, told);
        let text = String::from_utf8(line(4, "web", "a\nb")).unwrap();
        assert!(text.starts_with("<28>web[") && text.ends_with("]: a b"), "{text}");
    }
}
