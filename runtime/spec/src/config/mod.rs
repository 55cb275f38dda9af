//! `config.json`: the types, which are `oci-spec`'s, and reading it.
//!
//! [`parse`] reads what the specification allows, not what the crate happens to take: capabilities that this build
//! does not know are set aside instead of refused, absent limits stay absent, and a refusal names the JSON path.

mod keys;
mod read;

pub use oci_spec::runtime::*;

pub use keys::fold_resource_keys;
pub use read::{Parsed, ReadError, parse, parse_process, parse_resources};
