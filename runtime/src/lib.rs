//! The `rung` program.

pub mod cgroups;
