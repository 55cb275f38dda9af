//! What can go wrong with a cgroup.

use rung_sys::cgroupfs::{is_denied, is_missing};

/// Why a cgroup operation did not happen.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused a file operation.
    #[error(transparent)]
    File(#[from] rung_sys::Error),
    /// An ordinary user asked for limits where he may make no cgroup.
    #[error("rootless needs no limits + no cgrouppath when no permission is granted for cgroups: {0}")]
    Rootless(rung_sys::Error),
    /// A value of the configuration cannot be applied; `path` is where it stands there.
    #[error("{path}: {reason}")]
    Invalid {
        /// The JSON path of the value.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The host has no cgroup file system that can be used.
    #[error("find the cgroup file system: {0}")]
    Host(String),
    /// The cgroup is in use by something else.
    #[error("{0}")]
    Occupied(String),
    /// A wait ran into its deadline.
    #[error("{doing}: not done within {seconds} s{hint}")]
    Deadline {
        /// What was waited for.
        doing: String,
        /// How long.
        seconds: u64,
        /// What is known about the reason.
        hint: String,
    },
    /// Systemd could not be reached or understood.
    #[error("systemd: {0}")]
    Systemd(String),
    /// A call was answered with an error of this name.
    #[error("systemd: {doing}: {name}: {text}")]
    Refused {
        /// The call.
        doing: String,
        /// The name, which says what is wrong.
        name: String,
        /// The same for people.
        text: String,
    },
    /// Nothing came by the deadline.
    #[error("systemd: no answer in time; is it stopped or overloaded?")]
    Silent,
}

impl Error {
    pub(super) fn invalid(path: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Invalid { path: path.into(), reason: reason.into() }
    }

    /// The cgroup does not exist (any more).
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::File(e) if is_missing(e))
    }

    /// The call was answered with the error `name`.
    pub(super) fn is_named(&self, wanted: &str) -> bool {
        matches!(self, Self::Refused { name, .. } if name == wanted)
    }

    /// The caller lacks a permission; a rootless runtime may go on.
    #[must_use]
    pub fn is_denied(&self) -> bool {
        matches!(self, Self::File(e) | Self::Rootless(e) if is_denied(e))
    }
}

/// What the operations here return.
pub type Result<T> = std::result::Result<T, Error>;
