//! The small languages of option values: sizes, variables, binds, times, patterns, detach keys. Pure, apart from the environment
//! that variables come from.

pub mod bind;
pub mod container;
pub mod env;
pub mod filter;
pub mod keys;
pub mod pattern;
pub mod size;
pub mod time;
