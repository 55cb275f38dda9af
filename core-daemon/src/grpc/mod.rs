//! containerd's gRPC services, one file each: decode, call, encode.

pub mod containers;
pub mod content;
pub mod convert;
pub mod diff;
pub mod engine;
pub mod engine_images;
pub mod engine_system;
pub mod events;
pub mod images;
mod incoming;
pub mod introspection;
pub mod leases;
pub mod mounts;
pub mod namespaces;
pub mod sandbox_controller;
pub mod sandboxes;
pub mod snapshots;
pub mod streams;
pub mod tasks;
pub mod transfer;
pub mod version;

use std::pin::Pin;

use futures_util::Stream;

/// What a streaming call answers with.
pub type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, tonic::Status>> + Send>>;
