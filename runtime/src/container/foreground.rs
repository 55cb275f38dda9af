//! Staying with a process until it ends: signals go to it, its terminal comes here, its exit code is ours.

use std::os::fd::AsFd as _;

use rung_sys::pidfd;
use rung_sys::poll::{self, Interest};
use rung_sys::process::{Exit, Pid, Target, wait};
use rung_sys::signal::Signals;

use super::readiness::Readiness;
use super::terminal::Terminal;
use crate::error::Result;
use crate::launch::Started;
use crate::log;

/// Ready to stay: signals wait from here on instead of acting on this program.
#[derive(Debug)]
pub struct Foreground {
    signals: Signals,
}

impl Foreground {
    /// Must be called before the process is made, so that no signal is lost in between.
    pub fn prepare(subreaper: bool) -> Result<Self> {
        if subreaper {
            rung_sys::process::set_child_subreaper(true)?;
        }
        rung_sys::signal::block_all()?;
        Ok(Self { signals: Signals::open()? })
    }

    /// Stays until the process has ended. What it says through `readiness` is told on. Where that cannot be done, the
    /// process is ended: nobody else would collect it.
    pub fn stay(&self, started: &mut Started, readiness: Option<&Readiness>) -> Result<Exit> {
        self.stay_with(started, readiness).inspect_err(|_| started.abort())
    }

    fn stay_with(&self, started: &mut Started, readiness: Option<&Readiness>) -> Result<Exit> {
        let mut readiness = readiness;
        let mut terminal = started.console.take().map(Terminal::attach).transpose()?;
        loop {
            if let Some(exit) = self.handle_signals(started, terminal.as_ref())? {
                if let Some(terminal) = &mut terminal {
                    terminal.copy_rest();
                }
                return Ok(exit);
            }
            self.wait_and_copy(terminal.as_mut(), readiness)?;
            if let Some((ready, line)) = readiness.and_then(|ready| Some((ready, ready.ready_line()?))) {
                // The manager is to watch this process, which ends with the program's exit code. As this process stays,
                // nobody has to wait at the barrier.
                ready.tell(&line, Pid::this().as_raw())?;
                readiness = None;
            }
        }
    }

    /// Waits until there is something to do, and copies what there is to copy.
    fn wait_and_copy(&self, terminal: Option<&mut Terminal>, readiness: Option<&Readiness>) -> Result<()> {
        let mut watched = vec![(self.signals.as_fd(), Interest::Read)];
        let mut roles = vec![Role::Other];
        if let Some(readiness) = readiness {
            watched.push((readiness.as_fd(), Interest::Read));
            roles.push(Role::Other);
        }
        let Some(terminal) = terminal else {
            poll::wait(&watched, None)?;
            return Ok(());
        };
        let stdin = std::io::stdin();
        if terminal.is_open() {
            watched.push((terminal.master(), if terminal.has_pending() { Interest::Both } else { Interest::Read }));
            roles.push(Role::Master);
        }
        if terminal.is_open() && terminal.wants_input() {
            watched.push((stdin.as_fd(), Interest::Read));
            roles.push(Role::Input);
        }
        let ready = poll::wait(&watched, None)?;
        for entry in ready {
            match roles[entry.index] {
                Role::Other => {}
                Role::Master => {
                    terminal.flush();
                    terminal.copy_output();
                }
                Role::Input => terminal.read_input(),
            }
        }
        Ok(())
    }

    fn handle_signals(&self, started: &Started, terminal: Option<&Terminal>) -> Result<Option<Exit>> {
        let mut exit = reap(started)?;
        if exit.is_some() {
            return Ok(exit);
        }
        while let Some(signal) = self.signals.next()? {
            match signal {
                libc::SIGCHLD => exit = exit.or(reap(started)?),
                libc::SIGURG => {}
                libc::SIGWINCH if terminal.is_some() => terminal.into_iter().for_each(Terminal::resize),
                signal => match pidfd::send_signal(started.pidfd.as_fd(), signal) {
                    // A program that has gained privileges need not take a signal of ours; that is no reason to leave it.
                    Err(error) if error.errno() != libc::ESRCH => {
                        log::warning(&format!("forward {}: {error}", rung_sys::signal::name(signal)));
                    }
                    _ => {}
                },
            }
        }
        Ok(exit)
    }
}

#[derive(Clone, Copy)]
enum Role {
    /// Looked at by the caller.
    Other,
    Master,
    Input,
}

/// Reaps all children that have ended; orphans of the container come here too.
fn reap(started: &Started) -> Result<Option<Exit>> {
    let mut exit = None;
    loop {
        match wait(Target::Any, false) {
            Ok(Some((pid, how))) if pid == started.pid => exit = Some(how),
            Ok(Some(_)) => {}
            Ok(None) => return Ok(exit),
            Err(error) if error.errno() == libc::ECHILD => return Ok(exit),
            Err(error) => return Err(error.into()),
        }
    }
}
