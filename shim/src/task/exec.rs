//! More processes in a running container.

use std::ffi::OsString;
use std::os::fd::AsRawFd;

use gantry_proto::any;
use gantry_proto::containerd::events::{TaskExecAdded, TaskExecStarted};
use gantry_proto::containerd::task::v3::ExecProcessRequest;
use gantry_proto::namespace::check_identifier;
use gantry_proto::stdio::LogUri;
use rung_sys::process::Pid;

use crate::arguments;
use crate::bundle;
use crate::error::Kind;
use crate::io::terminal::Console;
use crate::io::{Io, Opened, Stdio};
use crate::task::Container;
use crate::task::process::Process;
use crate::task::state::State;
use crate::{Error, Result, memory_file};

impl Container {
    /// Announces a process that a later Start starts.
    ///
    /// # Errors
    /// `AlreadyExists` where the identifier is taken; `Unknown` where the container is not in a state for it; where the
    /// identifier or the process is malformed.
    pub fn add_exec(&mut self, request: ExecProcessRequest) -> Result<()> {
        let id = request.exec_id;
        check_identifier(&id).map_err(|error| Error::invalid(format!("exec_id: {error}")))?;
        if self.execs.contains_key(&id) {
            return Err(Error::already_exists(format!("exec {id} of container {} already exists", self.id)));
        }
        self.takes_execs()?;
        let spec = request.spec.ok_or_else(|| Error::invalid("spec: the process is missing"))?;
        let spec = any::json_of(&spec, any::PROCESS).map_err(|error| Error::invalid(format!("spec: {error}")))?;
        let spec = with_terminal(spec, request.terminal)
            .map_err(|error| Error::invalid(format!("spec: the process is not JSON: {error}")))?;
        let stdio =
            Stdio { stdin: request.stdin, stdout: request.stdout, stderr: request.stderr, terminal: request.terminal };
        let mut process = Process::new(&id, stdio, spec);
        // Clients of a FIFO open it when they start the process; those of an attach socket connect to it before.
        if LogUri::parse(&process.stdio.stdout).is_some() {
            process.opened = Some(self.open_streams(&process.stdio)?);
        }
        self.execs.insert(id.clone(), process);
        let event = TaskExecAdded { container_id: self.id.clone(), exec_id: id };
        self.shim.events.publish("/tasks/exec-added", &event);
        Ok(())
    }

    /// Refuses where the container has ended, is frozen, or is yet to be restored. One that has ended without the end
    /// being announced yet still accepts: the client finds out at the start.
    fn takes_execs(&self) -> Result<()> {
        let state = match self.init.state {
            State::Stopped | State::Paused => self.init.state.word(),
            State::Created if self.restore.is_some() => State::Created.word(),
            State::Created | State::Running => return Ok(()),
        };
        // As containerd's shim does: its clients expect this code, not `FailedPrecondition`.
        Err(Error::new(Kind::Unknown, format!("cannot exec in a {state} container: {}", self.id)))
    }

    pub(super) async fn start_exec(&mut self, id: &str) -> Result<u32> {
        self.process(id)?;
        // An exit of the first process that is held back counts: whatever is started now would not live.
        let gone = self.init_is_gone || self.init.state == State::Stopped || self.init.pid == 0;
        if gone {
            return Err(not_running());
        }
        if self.init.state == State::Paused {
            return Err(Error::precondition("the container is paused"));
        }
        let process = self.process(id)?;
        process.state.require(&[State::Created], "start")?;
        let (stdio, spec) = (process.stdio.clone(), process.spec.clone());
        let opened = match process.opened.take() {
            Some(opened) => opened,
            None => self.open_io(&stdio).await?,
        };
        let Opened { ends, console, mut io } = opened;
        io.before_start();
        // In memory: the runtime opens it through our descriptor, and no file has to be removed.
        let spec_file = memory_file::holding(c"process", &spec)?;
        let pid_file = self.bundle.join(format!("{id}.pid"));
        let _expecting = self.shim.reaper.expect();
        let spec_path = format!("/proc/{}/fd/{}", std::process::id(), spec_file.as_raw_fd());
        let mut arguments = arguments!["exec", "--process", spec_path, "--pid-file", &pid_file, "--detach"];
        if let Some(console) = &console {
            arguments.extend(arguments!["--console-socket", console.path()]);
        }
        arguments.push(OsString::from(&self.id));
        self.process(id)?.begin();
        // A runtime that hangs must not delay the announcement of the container's end.
        let ran = self.run_while(&arguments, ends, |container| !container.init_is_gone).await;
        self.process(id)?.starting = false;
        let taken = ran.and_then(|()| take(console, &mut io, &pid_file));
        let _ = std::fs::remove_file(&pid_file);
        let pid = match taken {
            Ok(pid) => pid,
            Err(error) => {
                self.process(id)?.give_up();
                // The error has its cause in the container's end, whatever the runtime says.
                if self.ended_with_init(&error).await {
                    return Err(not_running().context(error));
                }
                return Err(error);
            }
        };
        let process = self.process(id)?;
        process.io = Some(io);
        process.pid = pid;
        process.state = State::Running;
        let wire_pid = process.wire_pid();
        let event = TaskExecStarted { container_id: self.id.clone(), exec_id: id.to_owned(), pid: wire_pid };
        self.shim.events.publish("/tasks/exec-started", &event);
        self.claim(id, pid);
        Ok(wire_pid)
    }
}

/// The process with `terminal` set as the request has it, which counts more than what the process itself says.
fn with_terminal(spec: &[u8], terminal: bool) -> serde_json::Result<Vec<u8>> {
    let mut process: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(spec)?;
    if process.get("terminal").and_then(serde_json::Value::as_bool).unwrap_or(false) == terminal {
        return Ok(spec.to_vec());
    }
    process.insert("terminal".to_owned(), terminal.into());
    serde_json::to_vec(&process)
}

fn not_running() -> Error {
    Error::precondition("the container's init process is not running")
}

/// Takes over what the runtime has made.
fn take(console: Option<Console>, io: &mut Io, pid_file: &std::path::Path) -> Result<i32> {
    let pid = bundle::read_pid(pid_file)?;
    let begun = console.map(Console::receive).transpose().and_then(|master| io.begin(master));
    // The process runs already. After an error nobody would know of it, so it is killed.
    begun.map(|()| pid).inspect_err(|_| drop(rung_sys::signal::send(Pid::from_raw(pid), nix::libc::SIGKILL)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_says_whether_there_is_a_terminal() {
        let said =
            |spec: &[u8], terminal| String::from_utf8(with_terminal(spec, terminal).expect("JSON")).expect("text");
        assert_eq!(said(br#"{"args":["sh"]}"#, false), r#"{"args":["sh"]}"#);
        assert_eq!(said(br#"{"args":["sh"]}"#, true), r#"{"args":["sh"],"terminal":true}"#);
        assert_eq!(said(br#"{"terminal":true}"#, false), r#"{"terminal":false}"#);
        assert!(with_terminal(b"[]", true).is_err());
    }
}
