//! Typed values in `Any`.
//!
//! containerd writes the full protobuf name as the type URL, without a host and without a leading slash; readers here
//! take either form. OCI documents travel as JSON under URLs of their own.

use prost::{Message, Name};
use prost_types::Any;

/// Type URL of an OCI runtime specification in JSON.
pub const SPEC: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
/// Type URL of an OCI process in JSON: what Exec carries.
pub const PROCESS: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";
/// Type URL of OCI resource limits in JSON: what Update carries.
pub const LINUX_RESOURCES: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";
/// Type URL of an OCI runtime's features in JSON.
pub const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// An `Any` is not what the caller expects.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// Another type.
    #[error("expected a value of type {expected}, not {found:?}")]
    Type {
        /// Full name of the wanted type.
        expected: String,
        /// The type URL that came.
        found: String,
    },
    /// The right type, but not its encoding.
    #[error("decode {name}: {cause}")]
    Encoding {
        /// Full name of the type.
        name: String,
        /// What the decoder said.
        cause: prost::DecodeError,
    },
}

/// A message as `Any`.
pub fn pack<M: Message + Name>(message: &M) -> Any {
    Any { type_url: M::full_name(), value: message.encode_to_vec() }
}

/// A JSON document as `Any` under one of this module's type URLs.
pub fn json(type_url: &str, document: Vec<u8>) -> Any {
    Any { type_url: type_url.to_owned(), value: document }
}

/// True where `any` carries an `M`.
pub fn is<M: Name>(any: &Any) -> bool {
    name(any) == M::full_name()
}

/// The message in `any`.
///
/// # Errors
/// Where `any` carries another type, or bytes that are not its encoding.
pub fn unpack<M: Message + Name + Default>(any: &Any) -> Result<M, Mismatch> {
    if !is::<M>(any) {
        return Err(Mismatch::Type { expected: M::full_name(), found: any.type_url.clone() });
    }
    M::decode(any.value.as_slice()).map_err(|cause| Mismatch::Encoding { name: M::full_name(), cause })
}

/// The JSON document of type `type_url` in `any`. containerd registers the Go type's short name for some writers, so that
/// an URL counts as the same where it ends in the same last element.
///
/// # Errors
/// Where `any` carries another type.
pub fn json_of<'a>(any: &'a Any, type_url: &str) -> Result<&'a [u8], Mismatch> {
    let last = |url: &str| url.rsplit('/').next().unwrap_or_default().to_owned();
    if last(&any.type_url) == last(type_url) {
        Ok(&any.value)
    } else {
        Err(Mismatch::Type { expected: type_url.to_owned(), found: any.type_url.clone() })
    }
}

/// The full name in a type URL: what follows its last slash.
fn name(any: &Any) -> &str {
    any.type_url.rsplit('/').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containerd::events::{TaskExit, TaskStart};

    #[test]
    fn type_urls() {
        let start = TaskStart { container_id: "a".into(), pid: 7 };
        let mut any = pack(&start);
        assert_eq!(any.type_url, "containerd.events.TaskStart");
        assert_eq!(unpack::<TaskStart>(&any), Ok(start.clone()));
        assert!(matches!(unpack::<TaskExit>(&any), Err(Mismatch::Type { .. })));
        any.type_url = "type.googleapis.com/containerd.events.TaskStart".into();
        assert_eq!(unpack::<TaskStart>(&any), Ok(start));
        any.value = vec![0xff];
        assert!(matches!(unpack::<TaskStart>(&any), Err(Mismatch::Encoding { .. })));
    }

    #[test]
    fn json_documents() {
        let any = json(PROCESS, b"{}".to_vec());
        assert_eq!(json_of(&any, PROCESS), Ok(b"{}".as_slice()));
        assert!(json_of(&any, LINUX_RESOURCES).is_err());
    }
}
