//! JSON as docker prints it: four spaces for people, one line for programs.

use serde::Serialize;
use serde_json::Value;

/// Indented by four.
pub fn pretty(value: &Value) -> String {
    let mut out = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, formatter);
    match value.serialize(&mut serializer) {
        Ok(()) => String::from_utf8_lossy(&out).into_owned(),
        // A `Value` always serialises to memory; its compact form is as good an answer.
        Err(_) => value.to_string(),
    }
}
