//! Attributes of the process that outlive its exec.

use nix::sys::stat::{Mode, umask};
use rung_sys::{keyring, mempolicy, personality, sched};

use crate::error::{Doing as _, Result};
use crate::launch::sync::ChildEnd;
use crate::plan::process::ProcessPlan;

/// A clean start, whatever the caller's process had set.
pub fn begin() -> Result<()> {
    super::default_signals()?;
    // From here to the exec nobody in the container may look into this process.
    rung_sys::process::set_dumpable(false)?;
    umask(Mode::empty());
    Ok(())
}

/// A session keyring of the container's own, so that keys of the caller stay the caller's.
pub fn new_keyring(process: &ProcessPlan, sync: &ChildEnd) -> Result<()> {
    let Some(name) = &process.keyring else { return Ok(()) };
    match keyring::join_session(name) {
        Ok(()) => Ok(()),
        // A kernel without keyrings, or a filter around us, has nothing to protect.
        Err(error) if error.is(&[libc::ENOSYS]) => Ok(()),
        Err(error) if error.is(&[libc::EPERM, libc::EDQUOT]) => {
            sync.warning(&format!("session keyring: {error}"));
            Ok(())
        }
        Err(error) => Err(error).doing(|| "join a session keyring"),
    }
}

/// An `exec` joins the container's keyring; one that cannot keeps none of the caller's either way.
pub fn join_keyring(process: &ProcessPlan, sync: &ChildEnd) {
    if let Err(error) = new_keyring(process, sync) {
        sync.warning(&error.to_string());
    }
}

/// Scheduling, personality and memory policy: what needs capabilities that go next.
pub fn limit(process: &ProcessPlan, _own_user_namespace: bool) -> Result<()> {
    let spec = &process.spec;
    if let Some(scheduler) = spec.scheduler() {
        sched::set(scheduler)?;
    }
    Ok(())
}
