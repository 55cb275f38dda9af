//! Identifiers of containers, processes and sandboxes: parsed once at the edge, then safe in paths.

use std::fmt;

use gantry_proto::namespace::check_identifier;

use crate::error::{Doing, Error, Result};

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// Accepts what containerd accepts as an identifier.
            ///
            /// # Errors
            /// `InvalidArgument` saying which rule is broken.
            pub fn parse(text: &str) -> Result<Self> {
                check_identifier(text).map_err(|error| Error::invalid(format!(concat!($what, " id: {}"), error)))?;
                Ok(Self(text.to_owned()))
            }

            /// As `parse`, of something that is looked for: what is no identifier is not there.
            ///
            /// # Errors
            /// `NotFound` saying which rule is broken.
            pub fn known(text: &str) -> Result<Self> {
                Self::parse(text).map_err(|error| Error::not_found(format!("not found: {error}")))
            }

            /// The identifier.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

identifier! {
    /// Names a container, and its task, within a namespace.
    ContainerId, "container"
}

identifier! {
    /// Names one more process of a container.
    ExecId, "exec"
}

impl ExecId {
    /// One that nobody else has.
    ///
    /// # Errors
    /// When the kernel gives no random numbers.
    pub fn new() -> Result<Self> {
        random::<16>().map(Self)
    }

    /// Reads a field in which an empty text means the container's init process.
    ///
    /// # Errors
    /// As [`ExecId::parse`].
    pub fn optional(text: &str) -> Result<Option<Self>> {
        if text.is_empty() { Ok(None) } else { Self::parse(text).map(Some) }
    }
}

/// A random identifier of 2 × `N` hexadecimal digits.
///
/// # Errors
/// When the kernel gives no random numbers.
pub fn random<const N: usize>() -> Result<String> {
    let mut bytes = [0_u8; N];
    getrandom::fill(&mut bytes).map_err(|error| Error::internal(format!("random number: {error}")))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The run of the machine that this is, which no other has.
///
/// # Errors
/// When the kernel does not say.
pub fn boot() -> Result<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").doing(|| "identify the boot")?;
    Ok(text.trim().to_owned())
}

/// The exec id as messages carry it, where init's is empty.
pub fn exec_field(exec: Option<&ExecId>) -> String {
    exec.map(ExecId::to_string).unwrap_or_default()
}
