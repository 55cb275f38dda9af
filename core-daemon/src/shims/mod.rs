//! Shims: the processes that hold containers and outlive the daemon. Finding their program, running it, and talking to
//! what it leaves running.

mod address;
mod client;
mod launch;
mod log;

pub use address::Address;
pub use client::{Patience, Shim};
pub use launch::{Instance, Launcher, locate};
pub use log::ShimLog;
