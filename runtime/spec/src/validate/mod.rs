//! The rules of the specification that types cannot express.
//!
//! Every rule is a function that says what is wrong and where, and knows nothing of the host: whether a value can be
//! kept on this kernel is for the runtime to find out. All rules are tried, so that one run shows all mistakes.

mod linux;
mod mounts;
mod namespaces;
mod process;
mod resources;
mod sysctl;

use std::fmt;

pub use process::wrong_variable;
pub use sysctl::Parameter;

use crate::config::{Hook, LinuxResources, Process, Spec};

/// A value that the specification does not allow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Where it stands: `process.rlimits[2].type`.
    pub path: String,
    /// What is wrong with it.
    pub reason: String,
}

impl Violation {
    fn new(path: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { path: path.into(), reason: reason.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.reason)
    }
}

impl std::error::Error for Violation {}

/// What the rules have found so far.
type Found = Vec<Violation>;

/// Holds a configuration against all rules.
///
/// # Errors
/// Every violation, in the order of the rules.
pub fn check(spec: &Spec) -> Result<(), Vec<Violation>> {
    let mut found = Found::new();
    version_is_one(spec, &mut found);
    root_is_named(spec, &mut found);
    annotations_have_keys(spec, &mut found);
    hooks_can_run(spec, &mut found);
    if let Some(process) = spec.process() {
        process::check(process, "process", &mut found);
    }
    mounts::check(spec, &mut found);
    namespaces::check(spec, &mut found);
    linux::check(spec, &mut found);
    if found.is_empty() { Ok(()) } else { Err(found) }
}

/// Holds a process document (`exec --process`) against the rules of processes.
///
/// # Errors
/// Every violation, in the order of the rules.
pub fn check_process(process: &Process) -> Result<(), Vec<Violation>> {
    let mut found = Found::new();
    process::check(process, "process", &mut found);
    if found.is_empty() { Ok(()) } else { Err(found) }
}

/// Holds new limits (`update`) against the rules of limits. Files of the unified hierarchy may be more than limits there.
///
/// # Errors
/// Every violation, in the order of the rules.
pub fn check_limits(resources: &LinuxResources) -> Result<(), Vec<Violation>> {
    let mut found = Found::new();
    resources::limits_have_sense(resources, "linux.resources", &mut found);
    if found.is_empty() { Ok(()) } else { Err(found) }
}

/// Any version 1 is understood: within a major version the specification only grows.
fn version_is_one(spec: &Spec, found: &mut Found) {
    let version = spec.version();
    let mut numbers = version.split(['-', '+']).next().unwrap_or_default().split('.');
    let number = |text: Option<&str>| text.is_some_and(|t| !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit()));
    let major = numbers.next();
    let whole = number(major) && number(numbers.next()) && number(numbers.next()) && numbers.next().is_none();
    if !whole {
        found.push(Violation::new("ociVersion", format!("{version:?} is not a semantic version")));
    } else if major != Some("1") {
        found.push(Violation::new("ociVersion", format!("{version} is not supported, 1.x is")));
    }
}

fn root_is_named(spec: &Spec, found: &mut Found) {
    match spec.root() {
        None => found.push(Violation::new("root", "root must be specified")),
        Some(root) if root.path().as_os_str().is_empty() => {
            found.push(Violation::new("root.path", "must not be empty"))
        }
        Some(_) => {}
    }
}

fn annotations_have_keys(spec: &Spec, found: &mut Found) {
    if spec.annotations().as_ref().is_some_and(|all| all.contains_key("")) {
        found.push(Violation::new("annotations", "has an empty key"));
    }
}

fn hooks_can_run(spec: &Spec, found: &mut Found) {
    let Some(hooks) = spec.hooks() else { return };
    #[allow(deprecated, reason = "prestart hooks are still what tools for GPUs use")]
    let prestart = hooks.prestart();
    let lists: [(&str, &Option<Vec<Hook>>); 6] = [
        ("prestart", prestart),
        ("createRuntime", hooks.create_runtime()),
        ("createContainer", hooks.create_container()),
        ("startContainer", hooks.start_container()),
        ("poststart", hooks.poststart()),
        ("poststop", hooks.poststop()),
    ];
    for (name, list) in lists {
        for (index, hook) in list.iter().flatten().enumerate() {
            let at = |field: &str| format!("hooks.{name}[{index}].{field}");
            if !hook.path().is_absolute() {
                found.push(Violation::new(at("path"), format!("{:?} is not absolute", hook.path())));
            }
            if let Some(timeout) = hook.timeout().filter(|&seconds| seconds <= 0) {
                found.push(Violation::new(at("timeout"), format!("{timeout} is not greater than zero")));
            }
            process::variables_are_named(hook.env().as_deref().unwrap_or_default(), &at("env"), found);
        }
    }
}

#[cfg(test)]
mod tests;
