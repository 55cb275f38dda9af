//! A terminal attached to a process: what is typed goes in, what is written comes out, signals and sizes follow.
//!
//! Three things run side by side so that none waits for another: a thread that reads standard input, tasks that hand on
//! input and signals, and a thread that writes. The session ends with the process's exit, with the detach keys, or when
//! nobody reads our output any more.

mod input;
mod output;
mod signals;
mod terminal;

pub use terminal::{check_input_is_terminal, size};

use std::sync::Arc;

use gantry_proto::gantry::engine::v1::{Exit, SessionInput, SessionOutput, session_input, session_output};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::{Stream, StreamExt};

use crate::client::Input;
use crate::error::{Failure, Result};
use crate::parse::keys::DetachKeys;

use output::Piece;

/// What of our terminal the process gets.
#[derive(Debug, Clone)]
pub struct Options {
    /// The process has a terminal of its own, which ours becomes a window to.
    pub terminal: bool,
    /// Hand on standard input.
    pub stdin: bool,
    /// Hand on the signals we are sent.
    pub signals: bool,
    /// Keys that leave the session; only in a terminal.
    pub detach: DetachKeys,
}

/// How a session ended.
#[derive(Debug)]
pub enum End {
    /// The process ended.
    Exit(Exit),
    /// The detach keys were typed; the process goes on.
    Detached,
}

/// What ends a session from our side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leave {
    Detach,
    /// The third interrupt: whoever sends it does not want to wait for the process.
    Force,
}

impl Leave {
    fn end(self) -> Result<End> {
        match self {
            Self::Detach => Ok(End::Detached),
            Self::Force => Err(Failure::new("left after three interrupts; the process goes on")),
        }
    }
}

/// Connects this terminal to a process until one of them ends it.
///
/// # Errors
/// Where the connection or our own output breaks.
pub async fn drive(
    options: Options,
    Input { queue: input, ahead }: Input,
    mut from_process: impl Stream<Item = Result<SessionOutput, tonic::Status>> + Unpin,
) -> Result<End> {
    let raw = if options.terminal && options.stdin { terminal::RawMode::enter()? } else { None };
    let (leave, mut left) = mpsc::channel(2);
    let room = Arc::new(Semaphore::new(ahead));
    if options.stdin {
        let detach = options.terminal.then_some(options.detach);
        let to_process = input::ToProcess { input: input.clone(), room: room.clone() };
        tokio::spawn(input::forward(input::read_stdin(), to_process, detach, leave.clone()));
    }
    signals::forward(options.signals, options.terminal, &input, &leave)?;
    // The queue's own end stays here: the daemon takes the end of input for our going away.
    let _input = input;

    let mut writer = output::Writer::start()?;
    let end = loop {
        let message = tokio::select! {
            biased;
            Some(leave) = left.recv() => break leave.end(),
            error = writer.failed() => break Err(error),
            message = from_process.next() => message,
        };
        let piece = match message {
            Some(Ok(SessionOutput { event: Some(session_output::Event::Stdout(bytes)) })) => Piece::Stdout(bytes),
            Some(Ok(SessionOutput { event: Some(session_output::Event::Stderr(bytes)) })) => Piece::Stderr(bytes),
            Some(Ok(SessionOutput { event: Some(session_output::Event::Exit(exit)) })) => {
                break writer.finish().await.map(|()| End::Exit(exit));
            }
            Some(Ok(SessionOutput { event: Some(session_output::Event::StdinTaken(_)) })) => {
                room.add_permits(1);
                continue;
            }
            Some(Ok(SessionOutput { event: None })) => continue,
            Some(Err(status)) => break writer.finish().await.and(Err(status.into())),
            None => {
                let ended = Failure::new("the connection ended before the process did");
                break writer.finish().await.and(Err(ended));
            }
        };
        // Whoever reads us may have paused; leaving must work all the same.
        tokio::select! {
            biased;
            Some(leave) = left.recv() => break leave.end(),
            written = writer.piece(piece) => written?,
        }
    };
    drop(raw);
    if matches!(end, Ok(End::Detached)) {
        // The shell's prompt should not continue the process's line.
        crate::output::error_bytes(b"\n");
    }
    end
}

/// Queues one input; false where the session is over.
async fn send(input: &mpsc::Sender<SessionInput>, event: session_input::Event) -> bool {
    input.send(SessionInput { event: Some(event) }).await.is_ok()
}
