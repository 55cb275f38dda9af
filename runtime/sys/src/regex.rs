//! POSIX extended regular expressions, as the C library has them.

use std::ffi::CString;
use std::mem::MaybeUninit;

use crate::error::{Error, Result};

/// A compiled expression.
pub struct Regex(libc::regex_t);

impl Regex {
    /// Compiles `pattern`.
    ///
    /// # Errors
    /// When it is no regular expression.
    pub fn new(pattern: &str) -> Result<Self> {
        let refused = || Error::new("regcomp", format!("{pattern:?}"), libc::EINVAL);
        let text = CString::new(pattern).map_err(|_| refused())?;
        let mut compiled = MaybeUninit::<libc::regex_t>::zeroed();
        // SAFETY: the pattern is a live, terminated string, and there is room for what is compiled.
        let code = unsafe { libc::regcomp(compiled.as_mut_ptr(), text.as_ptr(), libc::REG_EXTENDED | libc::REG_NOSUB) };
        if code != 0 {
            return Err(refused());
        }
        // SAFETY: regcomp has filled it in.
        Ok(Self(unsafe { compiled.assume_init() }))
    }

    /// Whether it matches somewhere in `text`.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        let Ok(text) = CString::new(text) else { return false };
        // SAFETY: it is compiled, without places of matches to be written, and the text is a live, terminated string.
        unsafe { libc::regexec(&raw const self.0, text.as_ptr(), 0, std::ptr::null_mut(), 0) == 0 }
    }
}

impl Drop for Regex {
    fn drop(&mut self) {
        // SAFETY: regcomp made it, and it is freed once.
        unsafe { libc::regfree(&raw mut self.0) }
    }
}

impl std::fmt::Debug for Regex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Regex")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions() {
        let regex = Regex::new("^web-[0-9]+$").unwrap();
        assert!(regex.matches("web-12") && !regex.matches("web-") && !regex.matches("my-web-1"));
        assert!(Regex::new("a|b").unwrap().matches("xb"));
        assert_eq!(Regex::new("(").unwrap_err().errno(), libc::EINVAL);
    }
}
