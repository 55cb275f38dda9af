//! `rung`: one bundle in, one container out; no daemon.
//!
//! Read in this order: [`cli`] → [`commands`] → [`container`] (the life of a container) → [`bundle`] and [`plan`] (what
//! will be done, as a value) → [`launch`] (the parent's story) → [`init`] (the child's story).
#![cfg_attr(test, allow(clippy::disallowed_methods))]

pub mod bundle;
pub mod cgroups;
pub mod cli;
pub mod clock;
pub mod commands;
pub mod container;
pub mod criu;
pub mod error;
pub mod exe;
pub mod hooks;
pub mod init;
pub mod launch;
pub mod log;
pub mod plan;
pub mod resctrl;
pub mod seccomp;
mod subids;
