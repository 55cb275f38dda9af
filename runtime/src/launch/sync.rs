//! The conversation between the runtime and the process it makes.
//!
//! ```text
//! runtime                                    new process
//!    │ ── clone ───────────────────────────────▶ │
//!    │ (writes id maps, makes cgroups)           │ makes its namespaces, unless something has to be done
//!    │                                           │ to them from outside first
//!    │ ── Prepared + ways in ──────────────────▶ │ enters the cgroups, mounts
//!    │ ◀───────────────────────── CgroupGone ─── │ only where somebody removes empty cgroups, as systemd does on v1
//!    │ ── Prepared + ways in ──────────────────▶ │
//!    │ (compiles the system call filter)         │
//!    │ ── Filter + filter ─────────────────────▶ │ only with a profile; fetched before the hooks
//!    │ ◀──────────────── Translate + mount, maps │ only with id-mapped mounts of what is in the root itself
//!    │ ── Translated ──────────────────────────▶ │
//!    │ ◀────────────────────────────── AtHooks ─ │ only with prestart or createRuntime hooks
//!    │ ── HooksDone ───────────────────────────▶ │ changes its root, becomes the container's user
//!    │ ◀────────────────────── Console + master ─ │ only with a terminal
//!    │ ◀──────────────────── Listener(number) ── │ only with a seccomp listener; fetched from the living process
//!    │ ── ListenerTaken ───────────────────────▶ │
//!    │ ◀──────────────────────────────── Ready ─ │ create: waits, nothing is left but the exec; run: becomes the
//!    │ (shows the record)                        │ user and loads the filter, and then waits
//!    │ ── Go ──────────────────────────────────▶ │ run: executes; create: waits at the gate
//!    │ ◀────────────────────── end of the socket ─ │ it executed (or waits at the gate)
//! ```
//!
//! In place of any of its messages the process may send `Failed`, and then it ends; `NotExecuted` when all that failed was
//! the program. The end of the socket at any other
//! point means that the other side is gone. A message out of turn is an error.

use std::cell::OnceCell;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::time::{TimeVal, TimeValLike as _};
use rung_sys::fd_pass;

use crate::error::{Error, Kind, Result};
use crate::log;
use crate::seccomp::Filter;

/// From the runtime to the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Order {
    /// Ids are mapped, network devices and cgroups are there.
    Prepared = 1,
    /// The hooks of the runtime have run.
    HooksDone = 2,
    /// The seccomp listener has been handed over.
    ListenerTaken = 3,
    /// The record is written.
    Go = 4,
    /// The ids of a mount are translated.
    Translated = 5,
    /// The filter is compiled.
    Filter = 6,
}

/// From the process to the runtime.
#[derive(Debug)]
pub enum Report {
    /// A process in between tells the number of the one that counts.
    Forked(i32),
    /// It waits for the ids of a detached mount to go through the maps of a user namespace.
    Translate {
        /// The mount.
        tree: OwnedFd,
        /// The user namespace.
        namespace: OwnedFd,
        /// With all below it.
        recursive: bool,
    },
    /// Somebody has removed a cgroup before it was in there. It waits for `Prepared` once more.
    CgroupGone,
    /// It waits for the hooks of the runtime.
    AtHooks,
    /// The master of its terminal.
    Console(OwnedFd),
    /// The number of its seccomp listener.
    Listener(i32),
    /// It needs nothing of the runtime any more, but for `Go`.
    Ready,
    /// It is gone, and has not read the last order. What it said before follows.
    Deaf,
    /// It gave up.
    Failed(Error),
    /// All was well but the program, or a hook just before it.
    NotExecuted(Error),
    /// Something was ignored.
    Warning(String),
    /// How far it is, with `--debug`.
    Debug(String),
}

const FORKED: u8 = 1;
const AT_HOOKS: u8 = 2;
const CONSOLE: u8 = 3;
const LISTENER: u8 = 4;
const READY: u8 = 5;
const FAILED: u8 = 6;
const WARNING: u8 = 7;
const DEBUG: u8 = 8;
const TRANSLATE: u8 = 9;
const NOT_EXECUTED: u8 = 10;
const CGROUP_GONE: u8 = 11;

/// Longer texts are cut: the socket takes no message beyond its buffer.
const MAX_TEXT: usize = 4000;

/// The runtime's end.
#[derive(Debug)]
pub struct ParentEnd(OwnedFd);

/// The process's end.
#[derive(Debug)]
pub struct ChildEnd {
    socket: OwnedFd,
    /// What came with [`Order::Filter`].
    filter: OnceCell<Option<Filter>>,
}

/// How long a process may take from one report to the next: less than supervisors give a runtime.
pub const SILENCE: Duration = Duration::from_secs(240);

/// Makes both ends.
pub fn pair() -> Result<(ParentEnd, ChildEnd)> {
    let (parent, child) = fd_pass::message_pair()?;
    Ok((ParentEnd(parent), ChildEnd { socket: child, filter: OnceCell::new() }))
}

/// A process was silent for [`SILENCE`].
pub fn silent() -> Error {
    let seconds = SILENCE.as_secs();
    let text = format!("the container's process has not got on for {seconds} s; a file system may not answer");
    Error::new(Kind::Timeout, text)
}

impl ParentEnd {
    /// In the process: closes its copy of this end. Else it would keep its own conversation open, and wait for ever for
    /// a runtime that was killed.
    pub fn close_copy(&self) {
        // A forked child that executes or exits: the value that owns the number is never dropped here.
        let _ = nix::unistd::close(self.0.as_raw_fd());
    }

    /// Has [`Self::receive`] give up a process that is silent for too long: one that waits for a file system that does not
    /// answer waits for ever.
    pub fn limit_silence(&self) -> Result<()> {
        Ok(setsockopt(&self.0, ReceiveTimeout, &TimeVal::seconds(SILENCE.as_secs().cast_signed()))?)
    }

    /// Tells the process to go on; `false` when it is gone, and its last report says why.
    pub fn send(&self, order: Order) -> Result<bool> {
        self.tell(&[order as u8], &[])
    }

    /// Tells the process to go on, and gives it the ways into its cgroups.
    pub fn prepared(&self, ways_in: &[BorrowedFd<'_>]) -> Result<bool> {
        self.tell(&[Order::Prepared as u8], ways_in)
    }

    /// Gives the process its filter, which may be none after all. It may be at work on anything meanwhile.
    pub fn filter(&self, filter: Option<&Filter>) -> Result<bool> {
        let filter = filter.map(Filter::to_bytes).unwrap_or_default();
        let length = u32::try_from(filter.len()).unwrap_or(u32::MAX).to_ne_bytes();
        self.tell(&[&[Order::Filter as u8], &length[..]].concat(), &[])?;
        if filter.is_empty() { Ok(true) } else { self.tell(&filter, &[]) }
    }

    fn tell(&self, message: &[u8], fds: &[BorrowedFd<'_>]) -> Result<bool> {
        match fd_pass::send(self.0.as_fd(), message, fds) {
            Err(error) if error.is(&[libc::EPIPE, libc::ECONNRESET]) => Ok(false),
            other => Ok(other.map(|()| true)?),
        }
    }

    /// The next report; `None` when the process closed its end, by executing or by ending.
    pub fn receive(&self) -> Result<Option<Report>> {
        let mut buffer = [0; MAX_TEXT + 16];
        let (length, mut fds) = match fd_pass::receive(self.0.as_fd(), &mut buffer) {
            Err(error) if error.errno() == libc::ECONNRESET => return Ok(Some(Report::Deaf)),
            Err(error) if error.errno() == libc::EAGAIN => return Err(silent()),
            other => other?,
        };
        let number = || buffer.get(1..5).and_then(|bytes| bytes.try_into().ok()).map(i32::from_le_bytes);
        let text = |from: usize| String::from_utf8_lossy(buffer.get(from..length).unwrap_or_default()).into_owned();
        let report = match (buffer.first().copied(), length) {
            (_, 0) => return Ok(None),
            (Some(FORKED), 5) => number().map(Report::Forked),
            (Some(CGROUP_GONE), 1) => Some(Report::CgroupGone),
            (Some(AT_HOOKS), 1) => Some(Report::AtHooks),
            (Some(CONSOLE), 1) => fds.pop().map(Report::Console),
            (Some(TRANSLATE), 2) => fds.pop().zip(fds.pop()).map(|(namespace, tree)| Report::Translate {
                tree,
                namespace,
                recursive: buffer[1] != 0,
            }),
            (Some(LISTENER), 5) => number().map(Report::Listener),
            (Some(READY), 1) => Some(Report::Ready),
            (Some(tag @ (FAILED | NOT_EXECUTED)), 3..) => {
                let error = Error::new(Kind::from_code(buffer[1]), text(3)).with_exit_code(buffer[2]);
                Some(if tag == FAILED { Report::Failed(error) } else { Report::NotExecuted(error) })
            }
            (Some(WARNING), _) => Some(Report::Warning(text(1))),
            (Some(DEBUG), _) => Some(Report::Debug(text(1))),
            _ => None,
        };
        report.map(Some).ok_or_else(|| Error::new(Kind::Internal, "container process: message out of turn"))
    }
}

impl ChildEnd {
    /// The socket: the one descriptor a process keeps until it executes.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Waits for an order, and for no other one. By a plain read, for which see [`Self::write`].
    pub fn expect(&self, order: Order) -> Result<()> {
        let read = |buffer: &mut [u8]| match nix::unistd::read(&self.socket, buffer) {
            Err(nix::errno::Errno::EINTR) => Ok(None),
            other => Ok(Some((other?, Vec::new()))),
        };
        self.wait(order, read).map(drop)
    }

    /// Waits for [`ParentEnd::prepared`].
    pub fn prepared(&self) -> Result<Vec<OwnedFd>> {
        self.wait(Order::Prepared, |buffer| Ok(Some(fd_pass::receive(self.socket.as_fd(), buffer)?)))
    }

    /// Waits for an order; the answer is what came with it. Only the filter may come before it is asked for.
    fn wait(
        &self,
        order: Order,
        receive: impl Fn(&mut [u8]) -> Result<Option<(usize, Vec<OwnedFd>)>>,
    ) -> Result<Vec<OwnedFd>> {
        loop {
            let mut buffer = [0; 8];
            let Some((length, fds)) = receive(&mut buffer)? else { continue };
            match buffer[..length] {
                [code] if code == order as u8 => return Ok(fds),
                [code, a, b, c, d] if code == Order::Filter as u8 && self.filter.get().is_none() => {
                    let size = u32::from_ne_bytes([a, b, c, d]) as usize;
                    let filter = if size == 0 { None } else { Some(self.receive_filter(size)?) };
                    self.filter.get_or_init(|| filter);
                    if order == Order::Filter {
                        return Ok(fds);
                    }
                }
                [] => return Err(gone()),
                _ => {
                    let text = format!("order out of turn while waiting for {order:?}");
                    return Err(Error::new(Kind::Internal, text));
                }
            }
        }
    }

    /// What [`ParentEnd::filter`] has given; waits for it.
    pub fn filter(&self) -> Result<Option<&Filter>> {
        if self.filter.get().is_none() {
            self.expect(Order::Filter)?;
        }
        Ok(self.filter.get().and_then(Option::as_ref))
    }

    fn receive_filter(&self, size: usize) -> Result<Filter> {
        let mut bytes = vec![0; size];
        let (length, _) = fd_pass::receive(self.socket.as_fd(), &mut bytes)?;
        bytes.get(..length).filter(|whole| whole.len() == size).and_then(Filter::from_bytes).ok_or_else(gone)
    }

    /// Has the runtime make the cgroups again, which somebody has removed; the answer is the ways into them.
    pub fn cgroup_gone(&self) -> Result<Vec<OwnedFd>> {
        self.write(&[CGROUP_GONE])?;
        self.prepared()
    }

    /// Tells the number of the process that counts.
    pub fn forked(&self, pid: i32) -> Result<()> {
        self.send_number(FORKED, pid)
    }

    /// Waits until the ids of a mount are translated, which only the runtime may do.
    pub fn translate(&self, tree: BorrowedFd<'_>, namespace: BorrowedFd<'_>, recursive: bool) -> Result<()> {
        fd_pass::send(self.socket.as_fd(), &[TRANSLATE, u8::from(recursive)], &[tree, namespace])?;
        self.expect(Order::Translated)
    }

    /// Waits until the hooks of the runtime have run.
    pub fn at_hooks(&self) -> Result<()> {
        self.write(&[AT_HOOKS])?;
        self.expect(Order::HooksDone)
    }

    /// Hands the master of the terminal over.
    pub fn console(&self, master: BorrowedFd<'_>) -> Result<()> {
        Ok(fd_pass::send(self.socket.as_fd(), &[CONSOLE], &[master])?)
    }

    /// Waits until the seccomp listener with this number was taken.
    pub fn listener(&self, number: i32) -> Result<()> {
        self.send_number(LISTENER, number)?;
        self.expect(Order::ListenerTaken)
    }

    /// Tells that the runtime need not wait for what is left to do.
    pub fn ready(&self) -> Result<()> {
        self.write(&[READY])
    }

    /// Waits until the record is there.
    pub fn go(&self) -> Result<()> {
        self.expect(Order::Go)
    }

    /// Reports why the process gives up. Nobody is left to tell when that fails too.
    pub fn failed(&self, error: &Error) {
        self.send_error(FAILED, error);
    }

    /// As [`Self::failed`], when the program could not be executed.
    pub fn not_executed(&self, error: &Error) {
        self.send_error(NOT_EXECUTED, error);
    }

    fn send_error(&self, tag: u8, error: &Error) {
        let mut message = vec![tag, error.kind().code(), error.exit_code()];
        message.extend(shortened(&error.to_string()));
        drop(self.write(&message));
    }

    /// Reports something that was ignored.
    pub fn warning(&self, text: &str) {
        self.send_text(WARNING, text);
    }

    /// Tells how far the process is, with `--debug`; the text is not made otherwise. The phases have the names they
    /// have in runc's log, where people and tests look for them.
    pub fn debug(&self, text: impl FnOnce() -> String) {
        if log::is_debug() {
            self.send_text(DEBUG, &text());
        }
    }

    fn send_text(&self, tag: u8, text: &str) {
        let mut message = vec![tag];
        message.extend(shortened(text));
        drop(self.write(&message));
    }

    fn send_number(&self, tag: u8, number: i32) -> Result<()> {
        let mut message = [tag, 0, 0, 0, 0];
        message[1..].copy_from_slice(&number.to_le_bytes());
        self.write(&message)
    }

    /// A plain write: by the time of the last messages the container's own seccomp filter is in force, and the fewer
    /// kinds of system calls it has to admit the better.
    fn write(&self, message: &[u8]) -> Result<()> {
        Ok(nix::unistd::write(&self.socket, message).map(drop)?)
    }
}

fn gone() -> Error {
    Error::new(Kind::Internal, "the runtime is gone")
}

/// A text that fits: what is left out is in the middle, for the cause is at the end.
pub fn shortened(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    if bytes.len() <= MAX_TEXT {
        return bytes.to_vec();
    }
    let half = MAX_TEXT / 2 - 2;
    [&bytes[..half], b"...", &bytes[bytes.len() - half..]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_arrive_as_they_were_sent() {
        let (parent, child) = pair().expect("pair");
        child.send_number(FORKED, -7).expect("send");
        assert!(matches!(parent.receive().expect("report"), Some(Report::Forked(-7))));
        child.failed(&Error::new(Kind::CannotExecute, "exec: x").with_exit_code(127));
        let Some(Report::Failed(error)) = parent.receive().expect("report") else { panic!("no failure") };
        assert_eq!(
            (error.kind(), error.exit_code(), error.to_string().as_str()),
            (Kind::CannotExecute, 127, "exec: x")
        );
        drop(child);
        assert!(parent.receive().expect("end").is_none());
    }

    #[test]
    fn an_order_that_is_not_read_is_noticed() {
        let (parent, child) = pair().expect("pair");
        assert!(parent.send(Order::Go).expect("send"));
        child.failed(&Error::invalid("why"));
        drop(child);
        let mut reports = [parent.receive().expect("first"), parent.receive().expect("second")];
        reports.sort_by_key(|report| matches!(report, Some(Report::Deaf)));
        assert!(matches!(reports, [Some(Report::Failed(_)), Some(Report::Deaf)]), "{reports:?}");
        assert!(!parent.send(Order::Go).expect("send"));
    }

    #[test]
    fn a_long_text_keeps_its_cause() {
        let (parent, child) = pair().expect("pair");
        child.failed(&Error::invalid(format!("mount {}: no such file", "a".repeat(100_000))));
        let Some(Report::Failed(error)) = parent.receive().expect("report") else { panic!("no failure") };
        let text = error.to_string();
        assert!(text.starts_with("mount aaa") && text.ends_with("no such file"));
    }

    #[test]
    fn filters_arrive_as_they_were_compiled() {
        let (parent, child) = pair().expect("pair");
        let text = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["reboot"],"action":"SCMP_ACT_KILL"}]}"#;
        let filter = crate::seccomp::compile(&serde_json::from_str(text).expect("profile")).expect("filter");
        parent.filter(Some(&filter)).expect("send");
        // Asked for when the order after it was awaited.
        parent.send(Order::Translated).expect("send");
        child.expect(Order::Translated).expect("order");
        assert_eq!(child.filter().expect("received"), Some(&filter));
        parent.filter(None).expect("send");
        assert!(child.expect(Order::Go).is_err(), "there is one filter");
        let (parent, child) = pair().expect("pair");
        parent.filter(None).expect("send");
        assert_eq!(child.filter().expect("received"), None);
    }

    #[test]
    fn ways_in_arrive() {
        let (parent, child) = pair().expect("pair");
        let file = std::fs::File::open("/dev/null").expect("open");
        parent.prepared(&[file.as_fd()]).expect("send");
        assert_eq!(child.prepared().expect("received").len(), 1);
        parent.send(Order::Go).expect("send");
        assert!(child.prepared().is_err());
    }

    #[test]
    fn ways_into_cgroups_are_given_again() {
        let (parent, child) = pair().expect("pair");
        let file = std::fs::File::open("/dev/null").expect("open");
        parent.filter(None).expect("send");
        parent.prepared(&[file.as_fd()]).expect("send");
        assert_eq!(child.cgroup_gone().expect("received").len(), 1);
        assert!(matches!(parent.receive().expect("report"), Some(Report::CgroupGone)));
    }

    #[test]
    fn orders_out_of_turn_are_refused() {
        let (parent, child) = pair().expect("pair");
        parent.send(Order::Go).expect("send");
        assert!(child.expect(Order::Prepared).is_err());
        drop(parent);
        assert!(child.expect(Order::Go).is_err());
    }
}
