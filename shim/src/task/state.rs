//! The states of a process and the ways between them.
//!
//! ```text
//! init:  Created ──start──► Running ◄──resume── Paused
//!           │                 │  └────pause──────▲ │
//!           └───────exit──────┴───────────exit─────┘──► Stopped ──delete──► (gone)
//!
//! exec:  Created ──start──► Running ──exit──► Stopped ──delete──► (gone)
//!        ▲  └─────────────kill─────────────────▲
//!        └─ a start that failed
//! ```

use gantry_proto::containerd::v1::types::Status;

use crate::{Error, Result};

/// Where a process is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Made (the first process waits for Start) or only announced (an exec).
    Created,
    /// Its program runs.
    Running,
    /// Its cgroup is frozen.
    Paused,
    /// It has ended and its exit has been announced.
    Stopped,
}

impl State {
    /// The state on the wire.
    pub fn status(self) -> Status {
        match self {
            Self::Created => Status::Created,
            Self::Running => Status::Running,
            Self::Paused => Status::Paused,
            Self::Stopped => Status::Stopped,
        }
    }

    /// Accepts one of `wanted`.
    ///
    /// # Errors
    /// `FailedPrecondition` that says what cannot be done and why.
    pub fn require(self, wanted: &[Self], doing: &str) -> Result<()> {
        if wanted.contains(&self) {
            return Ok(());
        }
        Err(Error::precondition(format!("cannot {doing} a process that is {}", self.word())))
    }

    /// The state for people.
    pub fn word(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}
