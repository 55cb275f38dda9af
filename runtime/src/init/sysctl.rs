//! Kernel settings of the container's namespaces.

use std::os::fd::AsFd as _;
use std::path::Path;

use nix::fcntl::OFlag;
use rung_sys::mount::FileSystem;

use super::target;
use crate::error::{Doing as _, Result};
use crate::plan::InitPlan;

/// Writes them through a procfs of our own: whatever the image or another container put at `/proc` is never touched.
pub(super) fn write(plan: &InitPlan) -> Result<()> {
    if plan.sysctl.is_empty() {
        return Ok(());
    }
    let proc = FileSystem::open("proc").and_then(|proc| proc.mount(0)).doing(|| "mount a private proc for sysctl")?;
    for (path, value) in &plan.sysctl {
        let file = Path::new("sys").join(path);
        let opened = target::open(proc.as_fd(), &file, OFlag::O_WRONLY).doing(|| format!("sysctl {path}: open"))?;
        nix::unistd::write(&opened, value.as_bytes()).doing(|| format!("sysctl {path}: write {value:?}"))?;
    }
    Ok(())
}
