//! A container's name, parsed once.

use std::fmt;

use crate::error::{Error, Result};

/// The id names a directory, and that is the longest name of a file.
const LONGEST: usize = 255;

/// A name that is safe as one path component.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ContainerId(String);

impl ContainerId {
    /// Letters, digits and `_ + . -`, but neither `.` nor `..`.
    pub fn parse(text: &str) -> Result<Self> {
        if text.is_empty() {
            return Err(Error::invalid("container id cannot be empty"));
        }
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_+.-".contains(&byte);
        if text == "." || text == ".." || !text.bytes().all(plain) {
            return Err(Error::invalid(format!(
                "invalid container ID format: {text:?} (use letters, digits and _+.-)"
            )));
        }
        if text.len() > LONGEST {
            return Err(Error::invalid(format!(
                "container id has {} characters, at most {LONGEST} are possible",
                text.len()
            )));
        }
        Ok(Self(text.to_owned()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_path_components() {
        for good in ["a", "web-1", "A_b+c.d", ".hidden", "..."] {
            assert_eq!(ContainerId::parse(good).expect(good).as_str(), good);
        }
        assert!(ContainerId::parse(&"a".repeat(255)).is_ok());
        assert!(ContainerId::parse(&"a".repeat(256)).is_err());
        for bad in ["", ".", "..", "a/b", "a b", "ä", "a\0"] {
            assert!(ContainerId::parse(bad).is_err(), "{bad:?}");
        }
    }
}
