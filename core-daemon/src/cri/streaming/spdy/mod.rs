//! SPDY/3.1, the server's end, as much of it as Kubernetes' streaming uses: the client opens streams, nobody pushes.

mod connection;
mod dictionary;
mod frame;
mod headers;
mod window;

pub(super) use connection::{Connection, Stream};

#[cfg(test)]
pub(super) mod tests;
