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

/// The kind of a method by its path `/package.Service/Method`: `unary`, `client_stream`, `server_stream` or `bidi_stream`, as
/// metrics of gRPC servers name it.
pub fn kind_of_method(path: &str) -> &'static str {
    const STREAMING: &[(&str, &str)] = include!("generated/streaming.rs");
    STREAMING.binary_search_by_key(&path, |(path, _)| path).map_or("unary", |found| STREAMING[found].1)
}

pub use generated::{containerd, gantry, google, io, nri, runtime, runtimeoptions};

#[cfg(test)]
mod tests {
    use super::kind_of_method;

    #[test]
    fn streams_have_their_kinds() {
        for (path, kind) in [
            ("/containerd.services.content.v1.Content/Write", "bidi_stream"),
            ("/containerd.services.content.v1.Content/Read", "server_stream"),
            ("/gantry.images.v1.Images/Load", "client_stream"),
            ("/containerd.services.content.v1.Content/Info", "unary"),
            ("/no/such", "unary"),
        ] {
            assert_eq!(kind_of_method(path), kind, "{path}");
        }
    }
}
