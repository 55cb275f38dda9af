//! One container: its first process, the processes executed in it, and everything that is asked of them.
//!
//! Requests and exits go through one mailbox and are handled one after the other ([`actor`]). That is the whole of the
//! ordering: whatever a request announces is announced before an exit that came in meanwhile is even looked at. Waiting
//! for a process never occupies the mailbox; it is a subscription that the service awaits by itself.

pub mod actor;
pub mod checkpoint;
pub mod control;
pub mod create;
pub mod delete;
pub mod exec;
pub mod exit;
pub mod kill;
pub mod process;
pub mod start;
pub mod state;

pub use actor::{Container, Mailbox, Shim};
