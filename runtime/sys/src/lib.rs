//! Safe functions over kernel calls: the fence of Gantry.
//!
//! Only this crate may contain `unsafe`. Each block carries a SAFETY comment that names the invariant it leans on,
//! and every function here is safe to call with any argument. The crate knows nothing of OCI, containers or gRPC.
//!
//! A failed call returns [`Error`], which reads like a line of strace: call, arguments, cause.
#![cfg_attr(test, allow(clippy::disallowed_methods))]
#![allow(unsafe_code)]

pub mod allocator;
pub mod atomic_file;
pub mod beneath;
pub mod bpf;
pub mod capabilities;
pub mod cgroupfs;
pub mod credentials;
pub mod error;
pub mod fd_pass;
pub mod file;
pub mod footprint;
pub mod holes;
pub mod idmap;
pub mod keyring;
pub mod loop_device;
pub mod lsm;
pub mod mount;
pub mod mount_options;
pub mod mount_words;
pub mod mountinfo;
pub mod namespace;
pub mod netlink;
pub mod network;
pub mod parked;
pub mod pause;
pub mod personality;
pub mod pidfd;
pub mod poll;
pub mod process;
pub mod procfs;
pub mod project_quota;
pub mod regex;
pub mod rlimit;
pub mod sched;
pub mod seccomp;
pub mod seccomp_notify;
pub mod signal;
pub mod socket_path;
pub mod spawn;
pub mod tty;
pub mod verity;
pub mod writeback;
pub mod xattr;

pub use error::{Error, Result};
