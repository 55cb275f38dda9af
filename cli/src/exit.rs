//! Exit codes, as docker's users know them.

/// What the program leaves with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Code(pub u8);

impl Code {
    /// All is well.
    pub const SUCCESS: Self = Self(0);
    /// Something asked for could not be done.
    pub const FAILURE: Self = Self(1);
    /// The container could not be made or started, or the command line is wrong.
    pub const DAEMON: Self = Self(125);
    /// Somebody pressed ctrl-C, as if SIGINT had ended us.
    pub const INTERRUPTED: Self = Self(128 + 2);
    /// Whoever read our output went away, as if SIGPIPE had ended us.
    pub const BROKEN_PIPE: Self = Self(128 + 13);

    /// A process's own exit code.
    pub fn of_process(code: u32) -> Self {
        // A code above 255 cannot come from a process; the daemon could not find it out.
        Self(u8::try_from(code).unwrap_or(255))
    }
}

impl From<Code> for std::process::ExitCode {
    fn from(code: Code) -> Self {
        Self::from(code.0)
    }
}
