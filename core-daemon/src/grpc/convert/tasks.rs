//! Tasks as messages.

use gantry_proto::containerd::services::tasks::v1 as wire;
use gantry_proto::containerd::v1::types::Process;
use gantry_proto::time;

use crate::error::Result;
use crate::id::{ContainerId, ExecId, exec_field};
use crate::shims::Address;
use crate::tasks::{CreateTask, ExecTask, Exit, ProcessState};

/// A process as Get and List report it.
pub fn process(container: &ContainerId, exec: Option<&ExecId>, state: ProcessState) -> Process {
    Process {
        container_id: String::new(),
        // containerd names the process here: the exec, else the container.
        id: exec.map_or_else(|| container.to_string(), ExecId::to_string),
        pid: state.pid,
        status: state.status.into(),
        stdin: state.stdin,
        stdout: state.stdout,
        stderr: state.stderr,
        terminal: state.terminal,
        exit_status: state.exit_status,
        // Go's zero time where it has not ended; clients print it.
        exited_at: Some(state.exited_at.map_or(prost_types::Timestamp { seconds: ZERO, nanos: 0 }, time::timestamp)),
    }
}

/// Seconds of Go's zero time, 1 January of the year 1.
const ZERO: i64 = -62_135_596_800;

/// How a process ended, as Delete reports it.
pub fn deleted(exec: Option<&ExecId>, exit: Exit) -> wire::DeleteResponse {
    wire::DeleteResponse {
        id: exec_field(exec),
        pid: exit.pid,
        exit_status: exit.status,
        exited_at: Some(time::timestamp(exit.at)),
    }
}

/// How a process ended, as Wait reports it.
pub fn waited(exit: Exit) -> wire::WaitResponse {
    wire::WaitResponse { exit_status: exit.status, exited_at: Some(time::timestamp(exit.at)) }
}

/// What Create asks for. A shim that runs already is named by its address and version.
///
/// # Errors
/// `Unimplemented` for an address that is not a unix socket.
pub fn create(request: wire::CreateTaskRequest, checkpoint: String) -> Result<CreateTask> {
    let shim = match request.task_api_address.as_str() {
        "" => None,
        address => {
            let shim = Address {
                version: request.task_api_version.max(2),
                address: address.strip_prefix("ttrpc+").unwrap_or(address).to_owned(),
                protocol: "ttrpc".to_owned(),
            };
            shim.socket()?;
            Some(shim)
        }
    };
    Ok(CreateTask {
        rootfs: request.rootfs,
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
        terminal: request.terminal,
        checkpoint,
        options: request.options,
        runtime: request.runtime_path,
        shim,
    })
}

/// What Exec asks for.
pub fn exec(request: wire::ExecProcessRequest) -> ExecTask {
    ExecTask {
        spec: request.spec,
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
        terminal: request.terminal,
    }
}
