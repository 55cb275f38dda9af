//! Containers of pods, one file for each family of calls.
//!
//! `created` → `running` → `exited`: a container is made once, started once, and ends once. Its shim owns the exit; what
//! follows from it is written into the record before the shim is let go ([`start`]).

mod artifact;
mod checkpoint;
mod create;
mod limits;
mod links;
mod list;
mod log;
mod profile;
mod record;
mod remove;
mod restored;
mod start;
mod status;
mod stop;
mod tree;
mod update;
mod volumes;

pub(super) use checkpoint::{checkpoint_work, pack};
pub(super) use create::{OURS, check_config, container_name, ready};
pub(super) use restored::Source;
pub(super) use start::{lost, unseen};
pub(super) use status::status_of;
