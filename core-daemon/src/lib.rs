//! gantryd: content, snapshots, images, containers and tasks behind containerd's gRPC API and Gantry's own.
//!
//! Layers, lowest first; a module uses only lower ones (ARCHITECTURE.md has the table):
//! 0 `error`, `context`, `labels`, `filter` · 1 `metadata`, `events` · 2 `content`, `snapshots`, `diff`, `registry` ·
//! 3 `records`, `image`, `tasks`, `shims`, `gc` · 4 `grpc`, `engine`, `ttrpc` · 5 `app`, `serve`, `config`, `args`.
#![cfg_attr(test, allow(clippy::disallowed_methods))]

pub mod content;
pub mod context;
pub mod error;
pub mod events;
pub mod filter;
pub mod image;
pub mod labels;
pub mod metadata;
pub mod records;
pub mod snapshots;
