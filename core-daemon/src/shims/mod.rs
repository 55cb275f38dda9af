//! Shims: the processes that hold containers and outlive the daemon. Finding their program, running it, and talking to
//! what it leaves running.

mod address;
mod client;
mod launch;
mod log;
mod processes;

pub use address::Address;
pub use client::{Patience, Shim};
pub use launch::{Instance, Launcher, is_ours, locate, raise_open_files};
pub use log::ShimLog;
pub use processes::{Running, running};
