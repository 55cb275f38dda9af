//! Safe functions over kernel calls: the fence of Gantry.
//!
//! Only this crate may contain `unsafe`. Each block carries a SAFETY comment that names the invariant it leans on,
//! and every function here is safe to call with any argument. The crate knows nothing of OCI, containers or gRPC.
//!
//! A failed call returns [`Error`], which reads like a line of strace: call, arguments, cause.
#![cfg_attr(test, allow(clippy::disallowed_methods))]
#![allow(unsafe_code)]

pub mod credentials;
pub mod error;
pub mod fd_pass;
pub mod idmap;
pub mod mount;
pub mod mount_options;
pub mod namespace;
pub mod network;
pub mod pidfd;
pub mod poll;
pub mod process;
pub mod signal;
pub mod tty;

pub use error::{Error, Result};
