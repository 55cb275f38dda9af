//! Signals.

use nix::libc;
use rung_sys::process::Pid;

use crate::reaper::Exited;
use crate::rung::Ends;
use crate::task::Container;
use crate::task::state::State;
use crate::{Error, Result};

impl Container {
    /// Sends `signal` to the process of `exec_id`, or with `all` to every process of the container.
    ///
    /// The shim collects these processes, so that a number in its books cannot have been given to another: a signal needs
    /// no run of the runtime, except where only that can do it (all processes, or a frozen container).
    ///
    /// # Errors
    /// `NotFound` where the process has ended already.
    pub async fn kill(&mut self, exec_id: &str, signal: u32, all: bool) -> Result<()> {
        let number = i32::try_from(signal).ok().filter(|signal| (0..=64).contains(signal));
        let number = number.ok_or_else(|| Error::invalid(format!("signal {signal} does not exist")))?;
        if exec_id.is_empty() && (all || self.init.state == State::Paused) {
            return self.kill_by_runtime(number, all).await;
        }
        let held = self.held_exit.is_some() && exec_id.is_empty();
        let process = self.process(exec_id)?;
        if process.state == State::Stopped || held {
            return Err(finished());
        }
        if process.pid == 0 {
            // Announced, not started: it will not be. Nobody was told of a start, so that nobody is told of an exit.
            let status = 128_u32.saturating_add(signal);
            process.stop(Exited { status, at: std::time::SystemTime::now() });
            return Ok(());
        }
        match rung_sys::signal::send(Pid::from_raw(process.pid), number) {
            Ok(()) => Ok(()),
            Err(error) if error.errno() == libc::ESRCH => Err(finished()),
            Err(error) => Err(error.into()),
        }
    }

    async fn kill_by_runtime(&mut self, signal: i32, all: bool) -> Result<()> {
        if self.init.state == State::Stopped && !all {
            return Err(finished());
        }
        let signal = signal.to_string();
        let mut arguments = vec!["kill"];
        if all {
            arguments.push("--all");
        }
        arguments.extend([self.id.as_str(), signal.as_str()]);
        let sent = self.runtime.run(&arguments, Ends::default()).await;
        // Whether there was anybody to signal is asked of the kernel, not read out of the runtime's words.
        if sent.is_err() && !self.exists() {
            return Err(finished());
        }
        sent
    }

    fn exists(&self) -> bool {
        let left = self.cgroup.as_ref().and_then(|cgroup| cgroup.processes().ok());
        left.is_some_and(|left| !left.is_empty()) || self.init.is_alive()
    }
}

fn finished() -> Error {
    Error::not_found("process already finished")
}
