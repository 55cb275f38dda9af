//! What every integration test stands on; `README.md` says how to write one.
//!
//! The tests are one program, `tests/main.rs`, run by [`runner`] instead of the standard test harness: each test is a
//! process of its own with a deadline, its unmet requirements are counted as skips, and after it nothing that carries
//! its token may be left on the machine ([`leaks`]). The same program, built once, runs on the host and in the virtual
//! machines of `scripts/test-vm.sh`.
#![allow(clippy::disallowed_methods)]

pub mod bundle;
pub mod chance;
pub mod changes;
pub mod daemon;
pub mod disk;
pub mod engines;
pub mod env;
pub mod http;
pub mod image;
pub mod leaks;
pub mod nri;
pub mod output;
pub mod pods;
pub mod pty;
pub mod registry;
pub mod requires;
pub mod runner;
pub mod stack;
pub mod summary;
pub mod supervisor;
pub mod tar;
pub mod wait;

pub use anyhow::Result;
pub use bundle::Bundle;
pub use chance::Chance;
pub use daemon::Daemon;
pub use env::Env;
pub use image::Image;
pub use output::Ran;
pub use pty::Pty;
pub use registry::Registry;
pub use requires::Need;
pub use stack::Stack;

/// One test: made by [`tests!`](crate::tests), run by [`runner::main`].
#[derive(Debug, Clone, Copy)]
pub struct Test {
    /// Path of the module that holds it.
    pub module: &'static str,
    /// Name of its function.
    pub name: &'static str,
    /// What the machine must offer; otherwise the test is skipped, and the skip is counted.
    pub needs: &'static [Need],
    /// The test itself. An error or a panic is a failure.
    pub body: fn(&Env) -> Result<()>,
}

impl Test {
    /// `rung_lifecycle::runs_a_command`: the name that filters, results and output use.
    pub fn full_name(&self) -> String {
        let module = self.module.split_once("::").map_or(self.module, |(_, inner)| inner);
        format!("{module}::{}", self.name)
    }

    /// Whether what it looks at depends on the kind of host (cgroup version, systemd, security modules), so that it is
    /// worth its time on every kind: tests of the runtime where it meets the kernel, tests that say so, and those that ask for
    /// a kind.
    pub fn host_matters(&self) -> bool {
        let name = self.full_name();
        let areas = ["cgroups", "checkpoint", "escapes", "lifecycle", "mounts", "network", "seccomp"];
        areas.iter().any(|area| name.strip_prefix("rung_").is_some_and(|rest| rest.starts_with(area)))
            || self.needs.iter().any(|need| *need == Need::EveryHost || need.is_kind_of_host())
    }
}

/// Lists the tests of a module: `pub(crate) const TESTS: &[Test] = tests![runs [Root], lists [Root, Overlay], parses []];`
///
/// A function left out of the list is dead code, which clippy refuses: a test cannot be forgotten.
#[macro_export]
macro_rules! tests {
    ($($name:ident [$($need:ident),* $(,)?]),* $(,)?) => {
        &[$($crate::Test {
            module: module_path!(),
            name: stringify!($name),
            needs: &[$($crate::Need::$need),*],
            body: $name,
        }),*]
    };
}
