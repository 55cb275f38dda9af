//! A conversation with criu: one request, its notifications, one answer.
//!
//! The program runs as `criu swrk`, a service for one client at the other end of a socket that keeps message boundaries.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rung_sys::poll::{self, Interest};
use rung_sys::process::{CStringArray, Pid, Target};
use rung_sys::spawn::{self, Program};
use rung_sys::{fd_pass, pidfd, signal};

use super::wire::{Message, Value, fields};
use crate::error::{Doing as _, Error, Kind, Result};
use crate::log;

/// The number at which criu finds the socket.
const SOCKET: u16 = 3;

/// criu's own limit of a message is below this.
const LONGEST: usize = 64 * 1024;

/// How long criu may work without a word: the memory of a big container takes minutes.
pub const PATIENCE: Duration = Duration::from_mins(30);

/// How long a question may take that needs no work.
const QUESTION: Duration = Duration::from_secs(60);

/// How long criu may take to end when it is not needed any more.
const PARTING: Duration = Duration::from_secs(10);

/// The last point of a restore at which the processes are held. criu lets them go whatever it is answered.
pub const LAST_HELD: &str = "pre-resume";

/// What criu is asked for; the numbers are those of its `criu_req_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Verb {
    /// Write the processes to disk.
    Dump = 1,
    /// Bring them back.
    Restore = 2,
    /// Write their memory only, and let them go on.
    PreDump = 4,
    /// Answered to a notification.
    Notify = 6,
    /// Say what the kernel can do.
    Features = 9,
    /// Say which version it is.
    Version = 10,
}

/// A point in criu's work at which something of ours is to be done.
#[derive(Debug)]
pub struct Notification {
    /// criu's name of the point.
    pub point: String,
    /// The process it is about.
    pub pid: i32,
    /// Descriptors that came with it.
    pub fds: Vec<OwnedFd>,
}

/// What processes that come back have from criu, whose children they are.
#[derive(Debug, Default)]
pub struct Bequest<'a> {
    /// What criu finds from number [`FIRST_INHERITED`](super::options::FIRST_INHERITED) on.
    pub descriptors: Vec<BorrowedFd<'a>>,
    /// Before 3.19 criu forgets about theirs: with its own they have it all the same.
    pub no_new_privileges: bool,
    /// Namespaces, as `CLONE_NEW…`, that criu leaves as it finds them.
    pub namespaces: u64,
}

/// criu, running.
#[derive(Debug)]
pub struct Session {
    socket: OwnedFd,
    pid: Pid,
    process: OwnedFd,
    done: bool,
}

impl Session {
    /// Starts criu with the first three descriptors of this program.
    pub fn start() -> Result<Self> {
        Self::start_for(&Bequest::default(), |_| Ok(()))
    }

    /// Starts criu to restore processes, once `prepare` has put it where they are to be.
    pub fn start_for(bequest: &Bequest<'_>, prepare: impl FnOnce(Pid) -> Result<()>) -> Result<Self> {
        let path = find()?;
        let (ours, theirs) = fd_pass::message_pair()?;
        let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
        let mut places = vec![(stdin.as_fd(), 0), (stdout.as_fd(), 1), (stderr.as_fd(), 2), (theirs.as_fd(), SOCKET)];
        places.extend(bequest.descriptors.iter().copied().zip(SOCKET + 1..));
        let argv = CStringArray::new(["criu", "swrk", "3"].map(|word| word.as_bytes().to_vec()))?;
        let search = std::env::var_os("PATH").unwrap_or_default();
        let env = CStringArray::new([[b"PATH=", search.as_bytes()].concat()])?;
        let Bequest { no_new_privileges, namespaces, .. } = *bequest;
        let program = Program { path: &path, argv: &argv, env: &env, no_new_privileges };
        let pid = spawn::spawn_prepared(&program, &places, namespaces, prepare).doing(|| "start criu")?;
        let process = pidfd::open(pid).inspect_err(|_| drop(signal::send(pid, libc::SIGKILL)))?;
        Ok(Self { socket: ours, pid, process, done: false })
    }

    /// The number of the running criu.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Sends a request and answers notifications until criu has carried it out. Without a `deadline`, which is for each
    /// step, it waits for whoever criu waits for.
    pub fn ask(
        &mut self,
        verb: Verb,
        parts: &Message,
        deadline: Option<Duration>,
        mut notified: impl FnMut(Notification) -> Result<()>,
    ) -> Result<Vec<u8>> {
        self.send(&[Message::default().number(1, verb as u64).encoded(), parts.encoded()].concat())?;
        loop {
            if poll::wait(&[(self.socket.as_fd(), Interest::Read)], deadline)?.is_empty() {
                let seconds = deadline.unwrap_or_default().as_secs();
                self.kill();
                return Err(Error::new(Kind::Timeout, format!("criu {verb:?}: it has said nothing for {seconds} s")));
            }
            let mut buffer = vec![0; LONGEST];
            let (length, fds) = fd_pass::receive(self.socket.as_fd(), &mut buffer).doing(|| "listen to criu")?;
            buffer.truncate(length);
            if length == 0 {
                return Err(Error::new(Kind::Internal, format!("criu {verb:?}: it ended without an answer")));
            }
            let answer = Answer::read(&buffer)
                .ok_or_else(|| Error::new(Kind::Internal, format!("criu {verb:?}: its answer cannot be read")))?;
            if !answer.success {
                return Err(Error::new(Kind::Internal, answer.failure(verb)));
            }
            let Some((point, pid)) = answer.notification else {
                if answer.verb == verb as u64 {
                    return Ok(buffer);
                }
                return Err(Error::new(Kind::Internal, format!("criu {verb:?}: it answers something else")));
            };
            log::debug(|| format!("criu: {point} ({pid})"));
            let last = point == LAST_HELD;
            let outcome = notified(Notification { point, pid, fds });
            if last && outcome.is_err() {
                self.kill();
                return outcome.map(|()| Vec::new());
            }
            // A refusal makes criu take back what it has done.
            let reply = Message::default().number(1, Verb::Notify as u64).number(3, outcome.is_ok().into());
            self.send(reply.encoded())?;
            outcome?;
        }
    }

    fn send(&self, bytes: &[u8]) -> Result<()> {
        fd_pass::send(self.socket.as_fd(), bytes, &[]).doing(|| "speak to criu")
    }

    /// Hangs up and waits for the end of criu.
    pub fn finish(mut self) -> Result<()> {
        self.done = true;
        let socket = std::os::fd::AsRawFd::as_raw_fd(&self.socket);
        nix::sys::socket::shutdown(socket, nix::sys::socket::Shutdown::Write).doing(|| "hang up on criu")?;
        self.part();
        Ok(())
    }

    /// Ends criu in the middle of its work.
    fn kill(&mut self) {
        self.done = true;
        drop(signal::send(self.pid, libc::SIGKILL));
        self.part();
    }

    /// Waits until criu, to which nobody speaks any more, has ended.
    fn part(&self) {
        if !pidfd::wait_exit(self.process.as_fd(), PARTING).unwrap_or(false) {
            drop(signal::send(self.pid, libc::SIGKILL));
        }
        drop(rung_sys::process::wait(Target::Pid(self.pid), true));
    }
}

impl Drop for Session {
    /// criu ends when its client is gone; nothing of it may outlive the command.
    fn drop(&mut self) {
        if !self.done {
            let socket = std::os::fd::AsRawFd::as_raw_fd(&self.socket);
            let _ = nix::sys::socket::shutdown(socket, nix::sys::socket::Shutdown::Both);
            self.part();
        }
    }
}

struct Answer {
    verb: u64,
    success: bool,
    notification: Option<(String, i32)>,
    errno: i32,
    text: String,
}

impl Answer {
    fn read(bytes: &[u8]) -> Option<Self> {
        let mut answer = Self { verb: 0, success: false, notification: None, errno: 0, text: String::new() };
        for (field, value) in fields(bytes)? {
            match (field, value) {
                (1, Value::Number(verb)) => answer.verb = verb,
                (2, Value::Number(success)) => answer.success = success != 0,
                (5, Value::Bytes(bytes)) => answer.notification = Some(notification(bytes)?),
                (7, Value::Number(errno)) => answer.errno = i32::try_from(errno).unwrap_or_default(),
                (9, Value::Bytes(bytes)) => answer.text = String::from_utf8_lossy(bytes).into_owned(),
                _ => {}
            }
        }
        Some(answer)
    }

    fn failure(&self, verb: Verb) -> String {
        let cause = match (self.text.as_str(), self.errno) {
            ("", 0) => "see its log".to_owned(),
            ("", errno) => rung_sys::error::describe(errno),
            (text, _) => text.trim_end().to_owned(),
        };
        // The words that callers of runc look for.
        format!("criu failed: type {} errno {}: {cause}", verb.name(), self.errno)
    }
}

impl Verb {
    fn name(self) -> &'static str {
        match self {
            Self::Dump => "DUMP",
            Self::Restore => "RESTORE",
            Self::PreDump => "PRE_DUMP",
            Self::Notify => "NOTIFY",
            Self::Features => "FEATURE_CHECK",
            Self::Version => "VERSION",
        }
    }
}

fn notification(bytes: &[u8]) -> Option<(String, i32)> {
    let (mut point, mut pid) = (String::new(), 0);
    for (field, value) in fields(bytes)? {
        match (field, value) {
            (1, Value::Bytes(bytes)) => point = String::from_utf8_lossy(bytes).into_owned(),
            (2, Value::Number(number)) => pid = i32::try_from(number).ok()?,
            _ => {}
        }
    }
    Some((point, pid))
}

/// The program in PATH, as runc finds it.
fn find() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let candidates = std::env::split_paths(&path).map(|directory| directory.join("criu"));
    let executable = |path: &Path| nix::unistd::access(path, nix::unistd::AccessFlags::X_OK).is_ok() && path.is_file();
    candidates.filter(|path| path.is_absolute()).find(|path| executable(path)).ok_or_else(|| {
        Error::unsupported("criu is not installed: checkpoints need the criu program in PATH (Debian's package criu)")
    })
}

/// What the installed criu and this kernel can do.
pub fn version() -> Result<u64> {
    let mut session = Session::start()?;
    let answer = session.ask(Verb::Version, &Message::default(), Some(QUESTION), |_| Ok(()))?;
    session.finish()?;
    let numbers = |bytes| -> Option<u64> {
        let (_, Value::Bytes(version)) = fields(bytes)?.into_iter().find(|(field, _)| *field == 10)? else {
            return None;
        };
        let version = fields(version)?;
        let part = |wanted| {
            version.iter().find_map(|(field, value)| match value {
                Value::Number(number) if *field == wanted => Some(*number),
                _ => None,
            })
        };
        Some(part(1)? * 10_000 + part(2)? * 100 + part(4).unwrap_or(0))
    };
    numbers(&answer).ok_or_else(|| Error::new(Kind::Internal, "criu does not say its version"))
}

/// A feature of the kernel that criu knows how to look for.
#[derive(Debug, Clone, Copy)]
pub enum Feature {
    /// Which pages of memory were written since the last look.
    MemoryTracking = 1,
    /// Pages that are fetched when they are touched.
    LazyPages = 2,
}

/// Refuses when the kernel or criu does not have `feature`.
pub fn require(feature: Feature) -> Result<()> {
    let mut session = Session::start()?;
    let wanted = Message::default().flag(feature as u32, true);
    let answer = session.ask(Verb::Features, &Message::default().message(5, &wanted), Some(QUESTION), |_| Ok(()))?;
    session.finish()?;
    let all = fields(&answer).unwrap_or_default();
    let found = all.iter().find_map(|(field, value)| match value {
        Value::Bytes(bytes) if *field == 8 => fields(bytes),
        _ => None,
    });
    let has = found.unwrap_or_default().contains(&(feature as u32, Value::Number(1)));
    if has { Ok(()) } else { Err(Error::unsupported(format!("criu is missing features: {feature:?}"))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read() {
        let notify = Message::default().text(1, "post-restore").number(2, 42);
        let bytes = Message::default().number(1, 6).number(2, 1).message(5, &notify);
        let answer = Answer::read(bytes.encoded()).unwrap();
        assert_eq!((answer.success, answer.notification), (true, Some(("post-restore".to_owned(), 42))));
        let bytes = Message::default().number(1, 1).number(2, 0).number(7, 1).text(9, "no room\n");
        let answer = Answer::read(bytes.encoded()).unwrap();
        assert_eq!(answer.failure(Verb::Dump), "criu failed: type DUMP errno 1: no room");
        assert!(Answer::read(&[0x2a, 9]).is_none());
    }
}
