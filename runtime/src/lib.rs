//! The `rung` program.
#![cfg_attr(test, allow(clippy::disallowed_methods))]

pub mod cgroups;
pub mod seccomp;
