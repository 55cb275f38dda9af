//! Where a process's standard streams go: chosen by the text of the request, one transport a file.
//!
//! | stdio value | transport |
//! |---|---|
//! | empty | the null device |
//! | path, `fifo://` | [`fifo`]: named pipes the client made |
//! | `file://` | appended to a file |
//! | `binary://`, `binary-v2://` | [`log_binary`]: a logger program reads the pipes itself |
//! | `ttrpc+unix://…?streaming_id=…` | [`streams`]: a stream that the client opens at our own socket |
//! | `log://` | [`log_file`], [`journal`] and [`attach`]: the shim writes the logs and serves attached clients |

pub mod attach;
pub mod copy;
pub mod fifo;
pub mod input;
pub mod journal;
pub mod lines;
pub mod log_binary;
pub mod log_file;
pub mod output;
pub mod rotate;
pub mod streams;
pub mod terminal;

use std::fs::{DirBuilder, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use gantry_proto::stdio::{LogUri, StreamUri};
use nix::fcntl::OFlag;
use nix::unistd::{Gid, Uid, pipe2};
use rung_sys::tty::WindowSize;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::reaper::Reaper;
use crate::rung::Ends;
use crate::{Doing, Error, Result};

use copy::Sink;
use input::Input;
use log_binary::Logger;
use output::{Output, Stream};
use streams::{Claim, Streams};
use terminal::Console;

/// The stdio part of a Create or Exec request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stdio {
    /// Standard input.
    pub stdin: String,
    /// Standard output; all output where there is a terminal.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// The process gets a terminal.
    pub terminal: bool,
}

/// Whose process this is; loggers are told, and pipes get their owner.
#[derive(Debug, Clone)]
pub struct Owner<'a> {
    /// Namespace of the container.
    pub namespace: &'a str,
    /// The container.
    pub id: &'a str,
    /// Its bundle, where the console socket is made.
    pub bundle: &'a Path,
    /// Owner of the pipes.
    pub uid: u32,
    /// Group of the pipes.
    pub gid: u32,
    /// Collects helpers.
    pub reaper: &'a Reaper,
    /// What clients have opened.
    pub streams: &'a Streams,
    /// Where they open it.
    pub socket: &'a Path,
}

impl Owner<'_> {
    /// The name of the stream that `text` means; `None` where it means something else.
    fn stream(&self, text: &str) -> Result<Option<String>> {
        let Some(uri) = StreamUri::parse(text) else { return Ok(None) };
        let uri = uri.map_err(|error| Error::invalid(format!("{text:?}: {error}")))?;
        if Path::new(&uri.socket) != self.socket {
            let (theirs, ours) = (uri.socket, self.socket.display());
            return Err(Error::invalid(format!("{theirs}: streams are opened at the shim's own socket, {ours}")));
        }
        Ok(Some(uri.id))
    }
}

/// What the runtime gets for a process, and what the shim keeps.
#[derive(Debug)]
pub struct Opened {
    /// The process's ends.
    pub ends: Ends,
    /// Where the runtime shall send the terminal.
    pub console: Option<Console>,
    /// Our ends.
    pub io: Io,
}

/// The shim's side of a process's standard streams.
#[derive(Debug)]
pub struct Io {
    input: Option<Arc<Input>>,
    /// A writer of the client's FIFO, so that the input does not end when the client closes it. Dropped by CloseIO.
    held_open: Option<OwnedFd>,
    /// The client's stream for the input, where it is one.
    stream: Option<Arc<Claim>>,
    /// All streams of the process.
    claims: Vec<Arc<Claim>>,
    output: Option<Arc<Output>>,
    terminal: Option<OwnedFd>,
    /// Where a terminal's output will go, until the terminal is there.
    waiting: Option<Sink>,
    /// What will be copied once there is a process. A runtime that fails may have written its complaint there, which is not
    /// the container's output.
    held: Vec<(AsyncFd<OwnedFd>, Sink)>,
    logger: Option<Logger>,
    /// Held by whatever still copies output.
    copying: Option<watch::Sender<()>>,
    done: watch::Receiver<()>,
    tasks: Vec<AbortHandle>,
}

impl Io {
    fn new() -> Self {
        let (copying, done) = watch::channel(());
        Self {
            input: None,
            held_open: None,
            stream: None,
            claims: Vec::new(),
            output: None,
            terminal: None,
            waiting: None,
            held: Vec::new(),
            logger: None,
            copying: Some(copying),
            done,
            tasks: Vec::new(),
        }
    }

    /// Opens what `stdio` names. Nothing of this waits for the other end.
    ///
    /// # Errors
    /// Names the stream that cannot be opened.
    pub fn open(stdio: &Stdio, owner: &Owner<'_>) -> Result<Opened> {
        let mut io = Self::new();
        let mut ends = Ends::default();
        if let Some(uri) = LogUri::parse(&stdio.stdout) {
            let uri = uri.map_err(|error| Error::invalid(format!("stdout: {error}")))?;
            let input = (!stdio.stdin.is_empty()).then(Arc::<Input>::default);
            io.output = Some(Output::open(uri, input.clone(), owner).doing(|| "stdout")?);
            io.input = input;
        } else if let Some(id) = owner.stream(&stdio.stdin).doing(|| "stdin")? {
            let input = Arc::<Input>::default();
            let claim = owner.streams.input(&id, input.clone()).doing(|| "stdin")?;
            (io.input, io.stream) = (Some(input), Some(claim.clone()));
            io.claims.push(claim);
        } else if !stdio.stdin.is_empty() {
            let path = stdio.stdin.strip_prefix("fifo://").unwrap_or(&stdio.stdin);
            let (source, writer) = fifo::open_input(Path::new(path)).doing(|| "stdin")?;
            io.held_open = Some(writer);
            let input = Arc::<Input>::default();
            io.input = Some(input.clone());
            io.tasks.push(tokio::spawn(copy::input(source, input)).abort_handle());
        }
        if stdio.terminal {
            io.waiting = Some(if stdio.stdout.starts_with("binary") {
                io.terminal_logger(&stdio.stdout, owner)?
            } else {
                io.sink(&stdio.stdout, Stream::Stdout, owner).doing(|| "stdout")?
            });
            let console = Some(Console::listen(owner.bundle)?);
            return Ok(Opened { ends, console, io });
        }
        if let Some(input) = &io.input {
            let (read, write) = pipe(owner)?;
            input.open(write)?;
            ends.stdin = Some(read);
        }
        if stdio.stdout.starts_with("binary") || stdio.stderr.starts_with("binary") {
            io.open_logger(stdio, owner, &mut ends)?;
            io.copying = None;
        } else {
            io.open_outputs(stdio, owner, &mut ends)?;
        }
        Ok(Opened { ends, console: None, io })
    }

    fn open_logger(&mut self, stdio: &Stdio, owner: &Owner<'_>, ends: &mut Ends) -> Result<()> {
        let uri = if stdio.stdout.is_empty() { &stdio.stderr } else { &stdio.stdout };
        let (stdout_read, stdout) = pipe(owner)?;
        let (stderr_read, stderr) = pipe(owner)?;
        let guard = self.copying.clone();
        let logger = Logger::start(uri, owner, stdout_read, stderr_read, guard).doing(|| "logger")?;
        self.logger = Some(logger);
        ends.stdout = (!stdio.stdout.is_empty()).then_some(stdout);
        ends.stderr = (!stdio.stderr.is_empty()).then_some(stderr);
        Ok(())
    }

    /// A logger program that reads what a terminal shows; there is nothing on its other stream.
    fn terminal_logger(&mut self, uri: &str, owner: &Owner<'_>) -> Result<Sink> {
        let (stdout_read, stdout) = pipe(owner)?;
        let (stderr_read, _) = pipe(owner)?;
        let guard = self.copying.clone();
        self.logger = Some(Logger::start(uri, owner, stdout_read, stderr_read, guard).doing(|| "logger")?);
        Ok(Sink::Fifo(source(stdout)?))
    }

    fn open_outputs(&mut self, stdio: &Stdio, owner: &Owner<'_>, ends: &mut Ends) -> Result<()> {
        let both = self.output.is_some();
        for (text, stream) in [(&stdio.stdout, Stream::Stdout), (&stdio.stderr, Stream::Stderr)] {
            if text.is_empty() && !both {
                continue;
            }
            let sink = self.sink(text, stream, owner).doing(|| stream.name())?;
            let (read, write) = pipe(owner)?;
            match stream {
                Stream::Stdout => ends.stdout = Some(write),
                Stream::Stderr => {
                    ends.stderr = Some(write);
                    ends.complaints = Some(read.try_clone().doing(|| stream.name())?);
                }
            }
            self.held.push((source(read)?, sink));
        }
        Ok(())
    }

    fn sink(&mut self, text: &str, stream: Stream, owner: &Owner<'_>) -> Result<Sink> {
        if let Some(output) = &self.output {
            return Ok(Sink::Log(output.clone(), stream));
        }
        if text.is_empty() {
            return Ok(Sink::Null);
        }
        if let Some(id) = owner.stream(text)? {
            let claim = owner.streams.output(&id)?;
            self.claims.push(claim.clone());
            return Ok(Sink::Stream(claim));
        }
        if let Some(path) = text.strip_prefix("file://") {
            return open_file(Path::new(path)).map(Sink::File);
        }
        let path = text.strip_prefix("fifo://").unwrap_or(text);
        if !path.starts_with('/') {
            return Err(Error::invalid(format!(
                "{text:?} is neither an absolute path nor a known kind of destination"
            )));
        }
        fifo::open_output(Path::new(path))
    }

    /// One task copies all output of the process, then ends the log and releases who waits for the end.
    fn spawn_copies(&mut self, copies: Vec<(AsyncFd<OwnedFd>, Sink)>) {
        let guard = self.copying.take();
        let output = self.output.clone();
        let mut copies = copies.into_iter();
        let (first, second) = (copies.next(), copies.next());
        let run = |copy: Option<(AsyncFd<OwnedFd>, Sink)>| async move {
            if let Some((source, sink)) = copy {
                copy::output(source, sink).await;
            }
        };
        let task = tokio::spawn(async move {
            tokio::join!(run(first), run(second));
            if let Some(output) = output {
                output.finish().await;
            }
            drop(guard);
        });
        self.tasks.push(task.abort_handle());
    }

    /// Waits until a logger program reads; nothing where there is none.
    ///
    /// # Errors
    /// Where the logger does not become ready.
    pub async fn logger_ready(&mut self) -> Result<()> {
        match &mut self.logger {
            Some(logger) => logger.ready().await,
            None => Ok(()),
        }
    }

    /// Starts to copy: there is a process now, with the terminal that the runtime sent if it has one.
    ///
    /// # Errors
    /// Where the terminal cannot be watched.
    pub fn begin(&mut self, terminal: Option<OwnedFd>) -> Result<()> {
        if let Some(master) = terminal {
            return self.attach_terminal(master);
        }
        let held = std::mem::take(&mut self.held);
        if self.copying.is_some() {
            self.spawn_copies(held);
        }
        Ok(())
    }

    fn attach_terminal(&mut self, master: OwnedFd) -> Result<()> {
        let sink = self.waiting.take().unwrap_or(Sink::Null);
        self.terminal = Some(master.try_clone().doing(|| "keep the terminal")?);
        if let Some(input) = &self.input {
            input.open_terminal(master.try_clone().doing(|| "keep the terminal")?)?;
        }
        let source = source(master)?;
        self.spawn_copies(vec![(source, sink)]);
        Ok(())
    }

    /// Everybody who connected to the attach socket until now is served from the first byte.
    pub fn before_start(&self) {
        if let Some(output) = &self.output {
            output.accept_waiting();
        }
    }

    /// Changes the terminal's size; nothing where there is no terminal.
    ///
    /// # Errors
    /// Those of the terminal.
    pub fn resize(&self, width: u32, height: u32) -> Result<()> {
        let Some(terminal) = &self.terminal else { return Ok(()) };
        let narrow = |number: u32| u16::try_from(number).unwrap_or(u16::MAX);
        let size = WindowSize { rows: narrow(height), columns: narrow(width) };
        rung_sys::tty::set_window_size(terminal.as_fd(), size).doing(|| "resize the terminal")
    }

    /// Ends the process's standard input, after what clients have written; nothing where it has none.
    pub fn close_stdin(&mut self) {
        // With a FIFO or a stream, what is in it is copied first, and then the copy closes the input.
        match (&self.stream, self.held_open.take(), &self.input) {
            (Some(stream), _, _) => stream.close_input(),
            (None, None, Some(input)) => input.close(),
            _ => {}
        }
    }

    /// Opens the log file again under its path.
    ///
    /// # Errors
    /// `FailedPrecondition` where the process has no log; those of opening.
    pub fn reopen_log(&self) -> Result<()> {
        match &self.output {
            Some(output) => output.reopen(),
            None => Err(Error::precondition("the process has no log:// output")),
        }
    }

    /// Resolves when all output has been copied: every process that had the streams is gone.
    pub fn drained(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut done = self.done.clone();
        async move { while done.changed().await.is_ok() {} }
    }
}

impl Drop for Io {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        // What was aborted lets go of it later, when another process may listen at the same place.
        if let Some(output) = &self.output {
            output.close();
        }
        self.claims.iter().for_each(|claim| claim.release());
        if let Some(logger) = self.logger.take() {
            logger.stop();
        }
    }
}

/// A pipe whose ends belong to the container's user, so that it may open `/dev/stdout` again.
fn pipe(owner: &Owner<'_>) -> Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC).doing(|| "make a pipe")?;
    if owner.uid != 0 || owner.gid != 0 {
        let (uid, gid) = (Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)));
        nix::unistd::fchown(&read, uid, gid).doing(|| "give the pipe to the container's user")?;
    }
    Ok((read, write))
}

/// Our end of a pipe or terminal, watched and never blocking.
fn source(fd: OwnedFd) -> Result<AsyncFd<OwnedFd>> {
    set_nonblocking(&fd)?;
    watch(fd).doing(|| "watch an output")
}

/// Has the event loop watch a descriptor. Every owned descriptor goes through here.
#[allow(
    deprecated,
    reason = "deprecated for types whose descriptor may change; those that own theirs keep it for life"
)]
pub(crate) fn watch<T: AsRawFd + Into<OwnedFd>>(owner: T) -> std::io::Result<AsyncFd<T>> {
    AsyncFd::new(owner)
}

pub(crate) fn set_nonblocking(fd: &OwnedFd) -> Result<()> {
    use nix::fcntl::{FcntlArg, fcntl};
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

fn open_file(path: &Path) -> Result<std::fs::File> {
    if let Some(dir) = path.parent() {
        let made = DirBuilder::new().recursive(true).mode(0o755).create(dir);
        made.doing(|| format!("create {}", dir.display()))?;
    }
    let opened = OpenOptions::new().append(true).create(true).mode(0o644).open(path);
    opened.doing(|| format!("open {}", path.display()))
}
