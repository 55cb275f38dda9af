//! `containerd-shim-rung-v2`: one supervisor per container or pod, which owns stdio, logs and exit statuses and outlives
//! the daemon.
//!
//! Reading order: [`args`] and [`bootstrap`] (how a daemon starts it), [`server`] and [`service`] (how it is asked),
//! [`task`] (one actor per container: everything that happens to a container is a message in one mailbox, so that the
//! order of events is the order of messages), [`io`] (where output goes), [`reaper`] and [`events`] (how an exit gets
//! out). The process is single-threaded.
#![cfg_attr(test, allow(clippy::disallowed_methods))]

pub mod args;
pub mod bootstrap;
pub mod bundle;
pub mod cleanup;
pub mod compress;
pub mod containers;
pub mod error;
pub mod events;
pub mod info;
pub mod io;
pub mod lifetime;
pub mod log;
pub mod memory_file;
pub mod oom;
pub mod options;
pub mod reaper;
pub mod rootfs;
pub mod rung;
pub mod sandbox;
pub mod server;
pub mod service;
pub mod stats;
pub mod task;

pub use error::{Doing, Error, Result};
