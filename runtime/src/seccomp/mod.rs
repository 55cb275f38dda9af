//! System call filters: a profile becomes a BPF program ([`compile`]), which the new process puts itself under, and
//! the listener of a notifying profile is handed to whoever waits for it ([`notify`]).

mod arch;
mod compile;
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

    /// In a form that [`Self::from_bytes`] understands, on the same machine.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEAD + self.program.len() * size_of::<Instruction>());
        bytes.extend(self.flags.to_ne_bytes());
        bytes.extend(self.optional_flags.to_ne_bytes());
        bytes.extend(u32::from(self.listener).to_ne_bytes());
        for Instruction { code, when_true, when_false, operand } in &self.program {
            let ([low, high], [a, b, c, d]) = (code.to_ne_bytes(), operand.to_ne_bytes());
            bytes.extend([low, high, *when_true, *when_false, a, b, c, d]);
        }
        bytes
    }

    /// The filter that became these bytes; `None` for others.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (head, rest) = bytes.split_first_chunk::<HEAD>()?;
        let (instructions, []) = rest.as_chunks::<{ size_of::<Instruction>() }>() else { return None };
        let [f0, f1, f2, f3, o0, o1, o2, o3, l0, l1, l2, l3] = *head;
        let program = instructions.iter().map(|&[low, high, when_true, when_false, a, b, c, d]| Instruction {
            code: u16::from_ne_bytes([low, high]),
            when_true,
            when_false,
            operand: u32::from_ne_bytes([a, b, c, d]),
        });
        Some(Self {
            program: program.collect(),
            flags: u32::from_ne_bytes([f0, f1, f2, f3]),
            optional_flags: u32::from_ne_bytes([o0, o1, o2, o3]),
            listener: u32::from_ne_bytes([l0, l1, l2, l3]) != 0,
        })
    }

    /// The filter of a program as seccomp(2) takes it; `None` for what is none. Whether it is a good one is for the kernel
    /// to say.
    #[must_use]
    pub fn from_program(bytes: &[u8]) -> Option<Self> {
        Self::from_bytes(&[&[0; HEAD], bytes].concat()).filter(|filter| !filter.is_empty())
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

/// Three numbers come before the program when a filter is passed on.
const HEAD: usize = 3 * size_of::<u32>();

/// A name in the profile that no kernel this build knows of has.
#[must_use]
pub fn unknown_call(profile: &LinuxSeccomp) -> Option<&str> {
    let calls = profile.syscalls().iter().flatten();
    calls.flat_map(|call| call.names()).map(String::as_str).find(|name| arch::Call::find(name).is_none())
}

#[cfg(test)]
mod tests;
