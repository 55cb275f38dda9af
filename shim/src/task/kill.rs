//! Signals.

use nix::libc;
use rung_sys::process::Pid;

use crate::reaper::Exited;
use crate::rung::{Ends, Runtime};
use crate::task::state::State;
use crate::task::{Container, Mailbox};
use crate::{Error, Result};

/// What became of a signal.
#[derive(Debug)]
pub enum Signalled {
    /// It is sent.
    Sent,
    /// Only the runtime can send it.
    ByRuntime(RuntimeKill),
    /// It has to wait until the process is there.
    Later,
}

/// A signal for the runtime to send; it waits for nothing that the container does.
#[derive(Debug)]
pub struct RuntimeKill {
    runtime: Runtime,
    id: String,
    signal: i32,
    all: bool,
}

/// Sends `signal` to the process of `exec_id`, or with `all` to every process of the container.
///
/// # Errors
/// `NotFound` where the process has ended already.
pub async fn kill(mailbox: &Mailbox, exec_id: String, signal: u32, all: bool) -> Result<()> {
    let id = exec_id.clone();
    let mut signalled = mailbox.peek(move |container| container.signal(&id, signal, all)).await?;
    if let Signalled::Later = signalled {
        signalled = mailbox.look(move |container| container.signal(&exec_id, signal, all)).await?;
    }
    let Signalled::ByRuntime(kill) = signalled else { return Ok(()) };
    let sent = kill.send().await;
    // Whether there was a process to signal is looked up in the cgroup, not read out of the runtime's error text.
    if sent.is_err() && !mailbox.peek(|container| Ok(container.exists())).await? {
        return Err(finished());
    }
    sent
}

impl RuntimeKill {
    async fn send(&self) -> Result<()> {
        let signal = self.signal.to_string();
        let mut arguments = vec!["kill"];
        if self.all {
            arguments.push("--all");
        }
        arguments.extend([self.id.as_str(), signal.as_str()]);
        self.runtime.run(&arguments, Ends::default()).await
    }
}

impl Container {
    /// Sends `signal` to the process of `exec_id`, or with `all` to every process of the container.
    ///
    /// The shim collects these processes, so that the number of one that runs cannot have been given to another: a signal needs
    /// no run of the runtime, except where only that can do it (all processes, or a frozen container).
    ///
    /// # Errors
    /// `NotFound` where the process has ended already.
    fn signal(&mut self, exec_id: &str, signal: u32, all: bool) -> Result<Signalled> {
        let number = i32::try_from(signal).ok().filter(|signal| (0..=64).contains(signal));
        let number = number.ok_or_else(|| Error::invalid(format!("signal {signal} does not exist")))?;
        if exec_id.is_empty() && (all || self.init.state == State::Paused) {
            if self.init.state == State::Stopped && !all {
                return Err(finished());
            }
            let (runtime, id) = (self.runtime.clone(), self.id.clone());
            return Ok(Signalled::ByRuntime(RuntimeKill { runtime, id, signal: number, all }));
        }
        // Reaped already, even if its exit is not announced yet: the number may belong to another process.
        let gone = exec_id.is_empty() && (self.held_exit.is_some() || self.init_is_gone);
        let process = self.process(exec_id)?;
        if process.state == State::Stopped || gone {
            return Err(finished());
        }
        if process.starting {
            return Ok(Signalled::Later);
        }
        if process.pid == 0 {
            // An exec that was added and not started: it never will be. No start was announced, so no exit is either.
            let status = 128_u32.saturating_add(signal);
            process.stop(Exited { status, at: std::time::SystemTime::now() });
            return Ok(Signalled::Sent);
        }
        match rung_sys::signal::send(Pid::from_raw(process.pid), number) {
            Ok(()) => Ok(Signalled::Sent),
            Err(error) if error.errno() == libc::ESRCH => Err(finished()),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether there is somebody to signal. The end of the first process may be known to the runtime before it is known here.
    fn exists(&self) -> bool {
        let left = self.cgroup.as_ref().and_then(|cgroup| cgroup.processes().ok());
        left.is_some_and(|left| !left.is_empty()) || (self.init.is_alive() && !self.init_has_ended())
    }
}

fn finished() -> Error {
    Error::not_found("process already finished")
}
