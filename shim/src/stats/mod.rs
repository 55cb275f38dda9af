//! A container's cgroup counters as the metrics message of its cgroup version.

pub mod cgroup;
mod legacy;
mod unified;

use gantry_proto::any;
use prost_types::Any;

use crate::Result;
use cgroup::Cgroup;

/// The metrics of `cgroup`. Files that the kernel does not have are left out.
///
/// # Errors
/// `NotFound` where the cgroup is gone.
pub fn read(cgroup: &Cgroup) -> Result<Any> {
    match cgroup {
        Cgroup::Unified(dir) => Ok(any::pack(&unified::read(dir)?)),
        Cgroup::Legacy(_) => Ok(any::pack(&legacy::read(cgroup)?)),
    }
}
