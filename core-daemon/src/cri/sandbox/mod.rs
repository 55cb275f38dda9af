//! Pod sandboxes: what the containers of a pod have in common.
//!
//! A sandbox is made of namespaces, a network and files; no process is needed to hold them, and no image. Only where the
//! containers share one view of processes is there a first process. One shim holds all containers of a pod.

pub(super) mod check;
mod checkpoint;
mod list;
mod network;
pub(super) mod places;
mod process;
mod resources;
mod restore;
pub(super) mod run;
pub(super) mod status;
mod stop;
