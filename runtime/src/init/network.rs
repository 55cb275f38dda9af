//! The loopback device of a new network namespace.

use rung_sys::namespace::Namespace;

use crate::error::{Doing as _, Result};
use crate::plan::InitPlan;

/// A new network namespace has `lo`, but down.
pub(super) fn set_up(plan: &InitPlan) -> Result<()> {
    if plan.namespaces.makes(Namespace::Network) {
        rung_sys::network::bring_loopback_up().doing(|| "bring the loopback device up")?;
    }
    Ok(())
}
