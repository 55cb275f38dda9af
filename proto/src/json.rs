//! How the fields of messages are written that JSON has no type for.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serializer;

/// Bytes, in base64.
pub(crate) fn base64<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&STANDARD.encode(bytes))
}
