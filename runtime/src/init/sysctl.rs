//! Kernel settings of the container's namespaces.

use rung_sys::procfs::Procfs;

use crate::error::{Doing as _, Result};
use crate::plan::InitPlan;

/// Writes them through a procfs of our own: whatever the image or another container put at `/proc` is never touched. Where
/// the process ids are not those of our user namespace, none can be made, and the one at `/proc` is checked.
pub(super) fn write(plan: &InitPlan) -> Result<()> {
    if plan.sysctl.is_empty() {
        return Ok(());
    }
    let proc = match Procfs::private() {
        Err(error) if error.errno() == libc::EPERM => Procfs::open(),
        made => made,
    };
    let proc = proc.doing(|| "open /proc for sysctl")?;
    for (path, value) in &plan.sysctl {
        proc.write(&format!("sys/{path}"), value).doing(|| format!("sysctl {path}"))?;
    }
    Ok(())
}
