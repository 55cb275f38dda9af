//! What shims call.

pub mod events;
mod publish;

pub use publish::publish;
