//! Handing the descriptor of a notifying filter to the listener that the profile names.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use oci_spec::runtime::{ContainerProcessStateBuilder, State};
use rung_sys::fd_pass;

use super::{Error, Result};

/// A listener that does not read must not hold up the start of a container for ever.
const DEADLINE: Duration = Duration::from_secs(10);

/// Sends `listener` to the socket of the profile, with the state of the container and the process, in the one message
/// that the specification describes. `pid` is the process as the host sees it.
///
/// # Errors
/// When nobody listens there, or the message cannot be delivered.
pub fn hand_over(path: &Path, metadata: Option<&str>, state: State, pid: i32, listener: BorrowedFd<'_>) -> Result<()> {
    let failed = |what: &str, e: &io::Error| {
        let cause = e.raw_os_error().map_or_else(|| e.to_string(), rung_sys::error::describe);
        Error::new("linux.seccomp.listenerPath", format!("{what} {}: {cause}", path.display()))
    };
    let hand = "hand the notify descriptor to";
    let message = message(metadata, state, pid).map_err(|e| failed(hand, &e))?;
    let socket = fd_pass::connect(path, DEADLINE).map_err(|e| failed("failed to connect with seccomp agent", &e))?;
    send(&socket, &message, listener).map_err(|e| failed(hand, &e))
}

/// The `ContainerProcessState` of one descriptor.
fn message(metadata: Option<&str>, state: State, pid: i32) -> io::Result<Vec<u8>> {
    let mut builder = ContainerProcessStateBuilder::default()
        .version(state.version().clone())
        .fds(vec![oci_spec::runtime::SECCOMP_FD_NAME.to_owned()])
        .pid(pid)
        .state(state);
    if let Some(metadata) = metadata.filter(|text| !text.is_empty()) {
        builder = builder.metadata(metadata.to_owned());
    }
    let message = builder.build().map_err(io::Error::other)?;
    serde_json::to_vec(&message).map_err(io::Error::other)
}

fn send(socket: &UnixStream, message: &[u8], listener: BorrowedFd<'_>) -> io::Result<()> {
    let descriptors = [listener.as_raw_fd()];
    let mut control = vec![ControlMessage::ScmRights(&descriptors)];
    let mut rest = message;
    while !rest.is_empty() {
        let parts = [io::IoSlice::new(rest)];
        // A listener that has gone away is an error to report, not a signal to die from.
        let sent = sendmsg::<()>(socket.as_raw_fd(), &parts, &control, MsgFlags::MSG_NOSIGNAL, None)?;
        // The descriptor travels with the first bytes.
        control.clear();
        rest = &rest[sent..];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn the_message_arrives_with_the_descriptor() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("listener");
        let server = UnixListener::bind(&path).unwrap();
        let state = oci_spec::runtime::StateBuilder::default()
            .version("1.3.0")
            .id("web")
            .status(oci_spec::runtime::ContainerState::Creating)
            .bundle("/b")
            .build()
            .unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        hand_over(&path, Some("tag"), state, 42, file.as_fd()).unwrap();
        let (mut peer, _) = server.accept().unwrap();
        let mut text = String::new();
        peer.read_to_string(&mut text).unwrap();
        let found: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(found["fds"], serde_json::json!(["seccompFd"]));
        assert_eq!(found["pid"], 42);
        assert_eq!(found["metadata"], "tag");
        assert_eq!(found["state"]["status"], "creating");
    }

    #[test]
    fn nobody_listening_is_named() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let refused = hand_over(Path::new("/nonexistent/socket"), None, State::default(), 1, file.as_fd()).unwrap_err();
        assert!(
            refused
                .to_string()
                .starts_with("linux.seccomp.listenerPath: failed to connect with seccomp agent /nonexistent/socket")
        );
    }
}
