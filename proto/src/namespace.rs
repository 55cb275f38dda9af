//! The namespace that a call acts in, and the headers that carry it.

use std::fmt;

/// gRPC header of the namespace.
pub const NAMESPACE_HEADER: &str = "containerd-namespace";
/// gRPC header of the lease that holds what the call makes.
pub const LEASE_HEADER: &str = "containerd-lease";
/// ttrpc metadata key of the namespace.
pub const NAMESPACE_TTRPC: &str = "containerd-namespace-ttrpc";

/// Longest identifier containerd accepts, in bytes.
const MAX_LENGTH: usize = 76;

/// A valid namespace name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Namespace(String);

impl Namespace {
    /// Accepts what containerd accepts as an identifier.
    ///
    /// # Errors
    /// As [`check_identifier`].
    pub fn parse(name: &str) -> Result<Self, InvalidIdentifier> {
        check_identifier(name)?;
        Ok(Self(name.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A name that is not an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidIdentifier {
    /// No characters at all.
    #[error("identifier must not be empty")]
    Empty,
    /// Longer than 76 bytes.
    #[error("identifier {0:?} is longer than {MAX_LENGTH} characters")]
    TooLong(String),
    /// Not runs of letters and digits joined by single `.`, `_` or `-`.
    #[error("identifier {0:?} must be letters and digits, joined by single '.', '_' or '-'")]
    Malformed(String),
}

/// Checks a container, namespace, lease or sandbox identifier: runs of ASCII letters and digits joined by single
/// `.`, `_` or `-`, at most 76 bytes.
///
/// # Errors
/// Says which of the rules is broken.
pub fn check_identifier(name: &str) -> Result<(), InvalidIdentifier> {
    if name.is_empty() {
        return Err(InvalidIdentifier::Empty);
    }
    if name.len() > MAX_LENGTH {
        return Err(InvalidIdentifier::TooLong(name.to_owned()));
    }
    let well_formed =
        name.split(['.', '_', '-']).all(|run| !run.is_empty() && run.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    if well_formed { Ok(()) } else { Err(InvalidIdentifier::Malformed(name.to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers() {
        for good in ["default", "k8s.io", "a-b_c.d", "0", &"x".repeat(76)] {
            assert_eq!(check_identifier(good), Ok(()), "{good}");
        }
        for bad in ["", ".", "a..b", "-a", "a-", "a/b", "a b", "ä", &"x".repeat(77)] {
            assert!(check_identifier(bad).is_err(), "{bad}");
        }
    }
}
