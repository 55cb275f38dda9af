//! A process of a container, as the shim knows it.

use tokio::sync::watch;

use crate::io::{Io, Opened, Stdio};
use crate::reaper::Exited;
use crate::task::state::State;

/// The first process or an exec.
#[derive(Debug)]
pub struct Process {
    /// The exec's identifier; empty for the first process.
    pub id: String,
    /// What the client asked for.
    pub stdio: Stdio,
    /// Its number; zero until it exists.
    pub pid: i32,
    /// Where it is in its life.
    pub state: State,
    /// Our side of its standard streams.
    pub io: Option<Io>,
    /// For an exec with an attach socket: its streams, opened before the start so that clients see the first byte.
    pub opened: Option<Opened>,
    /// The runtime is making it right now.
    pub starting: bool,
    /// For an exec: the process as OCI JSON.
    pub spec: Vec<u8>,
    exit: watch::Sender<Option<Exited>>,
}

impl Process {
    /// A process that does not exist yet.
    pub fn new(id: &str, stdio: Stdio, spec: Vec<u8>) -> Self {
        let exit = watch::Sender::default();
        Self {
            id: id.to_owned(),
            stdio,
            pid: 0,
            state: State::Created,
            io: None,
            opened: None,
            starting: false,
            spec,
            exit,
        }
    }

    /// The number on the wire.
    pub fn wire_pid(&self) -> u32 {
        u32::try_from(self.pid).unwrap_or(0)
    }

    /// How it ended, once it has.
    pub fn exited(&self) -> Option<Exited> {
        *self.exit.borrow()
    }

    /// A subscription to its end.
    pub fn waiter(&self) -> watch::Receiver<Option<Exited>> {
        self.exit.subscribe()
    }

    /// Records the end and wakes who waits for it.
    pub fn stop(&mut self, exited: Exited) {
        self.state = State::Stopped;
        self.exit.send_replace(Some(exited));
    }

    /// Wakes those who wait for a process that could not be started: it will never end. The process stays in its state
    /// and can be started again or deleted.
    pub fn give_up(&mut self) {
        self.exit.send_replace(Some(Exited::unseen()));
    }

    /// The process is about to be started, for the first time or after a start that failed.
    pub fn begin(&mut self) {
        self.exit.send_replace(None);
        self.starting = true;
    }

    /// True while a process of this number is there, or was and has not been announced as gone.
    pub fn is_alive(&self) -> bool {
        self.pid > 0 && self.state != State::Stopped
    }
}
