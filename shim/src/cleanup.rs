//! `delete`: clean up where the supervisor is gone or never was. All it knows comes from the bundle.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use gantry_proto::containerd::task::v3::DeleteResponse;
use gantry_proto::time::now;
use prost::Message;

use crate::args::Flags;
use crate::bootstrap::is_answered;
use crate::bundle;
use crate::options::Options;
use crate::rung::run_alone;
use crate::{Error, Result, rootfs};

/// The status of a container whose end nobody saw: as if ended by SIGKILL, which is what `delete --force` sends.
const KILLED: u32 = 128 + 9;

/// How long the runtime may take.
const DEADLINE: Duration = Duration::from_secs(30);

/// Ends the container, unmounts its root, removes the dead supervisor's socket. Answers with an encoded response.
///
/// # Errors
/// Where the runtime cannot end it.
pub fn delete(flags: &Flags) -> Result<Vec<u8>> {
    let bundle = flags.bundle()?;
    let pid = bundle::read_pid(&bundle.join("init.pid")).unwrap_or(0);
    let ended = delete_by_runtime(flags, &bundle);
    rootfs::unmount(&bundle.join("rootfs"));
    remove_socket(&bundle);
    ended?;
    let pid = u32::try_from(pid).unwrap_or(0);
    Ok(DeleteResponse { pid, exit_status: KILLED, exited_at: Some(now()) }.encode_to_vec())
}

fn delete_by_runtime(flags: &Flags, bundle: &Path) -> Result<()> {
    let options = Options::load(bundle);
    let mut command = Command::new(options.program());
    command.args(options.global_flags(&flags.namespace, bundle));
    // The working directory is the bundle, which is about to be removed.
    command.args(["delete", "--force", &flags.id]).current_dir("/");
    let finished = run_alone(command, DEADLINE)?;
    if finished.success {
        return Ok(());
    }
    Err(Error::internal(format!("delete container {}: {}", flags.id, finished.complaints)))
}

/// A socket whose supervisor still answers belongs to other containers of the group.
fn remove_socket(bundle: &Path) {
    let Ok(address) = std::fs::read_to_string(bundle.join("address")) else { return };
    let Some(path) = address.trim().strip_prefix("unix://") else { return };
    if !is_answered(Path::new(path)) {
        let _ = std::fs::remove_file(path);
    }
}
