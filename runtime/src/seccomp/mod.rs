//! System call filters: a profile becomes a BPF program ([`compile`]), which the new process puts itself under, and
//! the listener of a notifying profile is handed to whoever waits for it ([`notify`]).

mod arch;
mod compile;
#[path = "data/numbers.rs"]
mod data;
mod emit;
pub mod notify;

use std::os::fd::OwnedFd;

use oci_spec::runtime::LinuxSeccomp;
use rung_sys::seccomp::{self, Instruction};

pub use compile::compile;

/// Why a profile cannot become a filter; `path` is where in the configuration the reason stands.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {reason}")]
pub struct Error {
    /// The JSON path.
    pub path: String,
    /// What is wrong there.
    pub reason: String,
}

impl Error {
    fn new(path: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { path: path.into(), reason: reason.into() }
    }
}

/// What the functions here return.
pub type Result<T> = std::result::Result<T, Error>;

/// A profile, ready to be installed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// The program. Empty for a profile that says nothing: then nothing is installed.
    pub program: Vec<Instruction>,
    /// Flags that the profile asks for.
    pub flags: u32,
    /// Flags that are good to have where the kernel knows them.
    pub optional_flags: u32,
    /// Whether installing it yields a descriptor for notifications.
    pub listener: bool,
}

impl Filter {
    /// Whether there is nothing to install.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.program.is_empty()
    }

    /// Puts this process under the filter. The descriptor is that of a notifying profile's listener.
    ///
    /// # Errors
    /// When the process may not (neither no-new-privileges nor `CAP_SYS_ADMIN`) or the kernel lacks what is asked for.
    pub fn install(&self) -> rung_sys::Result<Option<OwnedFd>> {
        if self.is_empty() {
            return Ok(None);
        }
        match seccomp::install(&self.program, self.flags | self.optional_flags) {
            Err(e) if self.optional_flags != 0 && e.is(&[libc::EINVAL]) => seccomp::install(&self.program, self.flags),
            other => other,
        }
    }
}

/// A name in the profile that no kernel this build knows of has.
#[must_use]
pub fn unknown_call(profile: &LinuxSeccomp) -> Option<&str> {
    let calls = profile.syscalls().iter().flatten();
    calls.flat_map(|call| call.names()).map(String::as_str).find(|name| arch::Call::find(name).is_none())
}

#[cfg(test)]
mod tests;
