//! The messages of every wire Gantry speaks, and ttrpc over them.
//!
//! The module tree mirrors the protobuf packages: `gantry_proto::containerd::services::content::v1` and so on.
#![cfg_attr(test, allow(clippy::disallowed_methods))]

pub mod any;
pub mod exit;
mod json;
pub mod namespace;
pub mod status;
pub mod stdio;
pub mod time;
pub mod ttrpc;

/// Code that `protos` compile to; `tests/generated_is_current.rs` keeps it true and rewrites it.
#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all, clippy::pedantic)]
#[rustfmt::skip]
mod generated {
    include!("generated/mod.rs");
}

pub use generated::{containerd, gantry, google, io, runtime, runtimeoptions};
