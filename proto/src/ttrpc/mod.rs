//! ttrpc over prost: the protocol between the daemon and its shims.
//!
//! A connection carries many calls at once, each on a stream that the client numbers with ascending odd identifiers.
//! A call is one request frame and one response frame. A streaming call is a request, data frames both ways, and for its end an
//! empty one, or a response that carries an error; only the answering end has them.
//! Why not one of the crates: `docs/decisions/0002-own-ttrpc.md`.

pub mod client;
pub mod context;
pub mod frame;
pub mod mux;
pub mod server;
pub mod stream;

pub use client::Client;
pub use context::Context;
pub use mux::multiplex;
pub use server::{Service, serve_connection};
pub use stream::{Outlet, Stream};

pub use crate::generated::ttrpc::*;
