//! Tasks as messages.

use gantry_proto::any;
use gantry_proto::containerd::runc::v1::Options;
use gantry_proto::containerd::services::tasks::v1 as wire;
use gantry_proto::containerd::types::Descriptor;
use gantry_proto::containerd::v1::types::Process;
use gantry_proto::time;

use crate::error::{Error, Result};
use crate::id::{ContainerId, ExecId, exec_field};
use crate::shims::Address;
use crate::tasks::{Checkpoint, CreateTask, ExecTask, Exit, ProcessState};

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

/// What Create asks for. A shim that runs already is named by its address and version, which older clients put among
/// the runtime's options.
///
/// # Errors
/// `InvalidArgument` for malformed options; `Unimplemented` for an address that is not a unix socket.
pub fn create(request: wire::CreateTaskRequest) -> Result<CreateTask> {
    let options = match &request.options {
        Some(options) if any::is::<Options>(options) => {
            any::unpack(options).map_err(|error| Error::invalid(format!("options: {error}")))?
        }
        _ => Options::default(),
    };
    let checkpoint = restored_from(&options.criu_image_path, request.checkpoint);
    #[expect(deprecated, reason = "older clients know no other place")]
    let (old_address, old_version) = (options.task_api_address, options.task_api_version);
    let (address, version) = match request.task_api_address {
        address if address.is_empty() => (old_address, old_version),
        address => (address, request.task_api_version),
    };
    let shim = match address.as_str() {
        "" => None,
        address => {
            let shim = Address {
                version: version.max(2),
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

/// What a task is restored from: the directory in its options, the one in the descriptor, or the descriptor's content.
fn restored_from(path: &str, descriptor: Option<Descriptor>) -> Option<Checkpoint> {
    if !path.is_empty() {
        return Some(Checkpoint::Directory(path.to_owned()));
    }
    descriptor.map(|descriptor| match descriptor.annotations.get("RestoreFromPath") {
        Some(path) => Checkpoint::Directory(path.clone()),
        None => Checkpoint::Stored(descriptor),
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
