//! Pod sandboxes: what the containers of a pod have in common.
//!
//! A sandbox is made of namespaces, a network and files; no process is needed to hold them, and no image. Only where the
//! containers share one view of processes is there a first process. One shim holds all containers of a pod. Who knows pods only
//! as containers and tasks finds one of each for every pod (`stand_in`).

mod cgroup;
pub(super) mod check;
mod checkpoint;
mod list;
pub(super) mod localtime;
mod network;
pub(super) mod places;
mod process;
mod resources;
mod restore;
pub(super) mod run;
mod stand_in;
pub(super) mod status;
mod stop;
