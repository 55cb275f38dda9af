//! Signals to a container.

use std::os::fd::AsFd as _;

use rung_sys::pidfd;

use super::status::Status;
use super::{Container, not_running};
use crate::error::{Doing as _, Result};
use crate::launch::cgroup_error;
use crate::log;

/// Sends `signal` to the first process; with `all` it is no error that nothing runs. SIGKILL ends all processes: the
/// kernel does that in a PID namespace of the container's own, elsewhere they are killed through the cgroup, if it has one.
pub fn kill(container: &Container, signal: i32, all: bool) -> Result<()> {
    let status = container.status();
    // Whether the cgroup of one that is being made is its own is not known yet.
    if signal == libc::SIGKILL && status != Status::Creating && !has_own_pids(container) {
        let cgroup = container.cgroup();
        let none = cgroup.pids().map_err(cgroup_error)?.is_empty();
        // Its first process may be gone, but in a shared namespace the others live on.
        if status == Status::Stopped && !all && none {
            return Err(not_running());
        }
        cgroup.kill().map_err(cgroup_error)?;
        if none && status.is_alive() {
            let id = &container.record.id;
            log::warning(&format!(
                "container {id} has no cgroup of its own: others than its first process may live on"
            ));
            return signal_first(container, signal);
        }
        return Ok(());
    }
    if !status.is_alive() {
        return if all { Ok(()) } else { Err(not_running()) };
    }
    signal_first(container, signal)?;
    if signal == libc::SIGKILL && status == Status::Paused {
        // A frozen process takes no signal on v1.
        container.cgroup().thaw().map_err(cgroup_error)?;
    }
    Ok(())
}

fn signal_first(container: &Container, signal: i32) -> Result<()> {
    let opened = pidfd::open(container.pid());
    let opened = opened.map_err(|_| not_running())?;
    // Between the look and the descriptor the number may have changed hands.
    container.require_alive()?;
    pidfd::send_signal(opened.as_fd(), signal).doing(|| format!("send {}", rung_sys::signal::name(signal)))
}

/// Whether the kernel ends all other processes when the first one ends.
fn has_own_pids(container: &Container) -> bool {
    container.record.spec().is_ok_and(|spec| {
        let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().clone()).unwrap_or_default();
        namespaces.iter().any(|namespace| {
            let path = namespace.path().as_ref().is_none_or(|path| path.as_os_str().is_empty());
            namespace.typ() == oci_spec::runtime::LinuxNamespaceType::Pid && path
        })
    })
}
