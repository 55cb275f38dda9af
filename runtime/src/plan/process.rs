//! The program of a container, or of an `exec`, as decided before the process exists.

use std::collections::BTreeMap;

use oci_spec::runtime::{Linux, LinuxMemoryPolicy, LinuxPersonality, Process, Spec};
use rung_spec::validate;

use super::Wishes;
use crate::error::{Error, Result};
use crate::log;

/// Everything about the program.
#[derive(Debug)]
pub struct ProcessPlan {
    /// The process of the configuration.
    pub spec: Process,
    /// The program and its arguments; never empty.
    pub args: Vec<String>,
    /// The environment, each name once.
    pub env: Vec<String>,
    /// Supplementary groups: exactly these. It is for engines to have the primary one among them, as gantryd does.
    pub groups: Vec<u32>,
    /// The groups of the runtime's caller are kept instead.
    pub keep_groups: bool,
    /// The user who runs the runtime may look at the process while it waits for `start`. Root may anyway.
    pub visible: bool,
    /// Descriptors after the first three that the program gets.
    pub preserve_fds: u32,
    /// The name of a new session keyring; `None` keeps the caller's.
    pub keyring: Option<String>,
    /// The execution domain.
    pub personality: Option<LinuxPersonality>,
    /// The container is bound to some of the processors.
    pub has_cpuset: bool,
    /// Where memory is taken from.
    pub memory_policy: Option<LinuxMemoryPolicy>,
}

impl ProcessPlan {
    /// The first process of a container.
    pub fn for_init(id: &str, spec: &Spec, wishes: Wishes) -> Result<Self> {
        let process = spec.process().as_ref().ok_or_else(|| Error::invalid("process property must not be empty"))?;
        Self::new(id, process.clone(), spec.linux().as_ref(), wishes)
    }

    /// Any process of a container.
    pub fn new(id: &str, process: Process, linux: Option<&Linux>, wishes: Wishes) -> Result<Self> {
        let args = process.args().clone().unwrap_or_default();
        if args.is_empty() {
            return Err(Error::invalid("process.args: args must not be empty"));
        }
        if process.cwd().as_os_str().is_empty() {
            return Err(Error::invalid("process.cwd: Cwd property must not be empty"));
        }
        if !process.cwd().is_absolute() {
            return Err(Error::invalid("process.cwd: Cwd must be an absolute path"));
        }
        let mut env = environment(process.env().as_deref().unwrap_or_default())?;
        if let Some(count) = wishes.listen_fds {
            replace(&mut env, "LISTEN_FDS", &count.to_string());
            replace(&mut env, "LISTEN_PID", "1");
        }
        let personality = linux.and_then(|linux| linux.personality().clone());
        if personality.as_ref().and_then(|found| found.flags().as_ref()).is_some_and(|flags| !flags.is_empty()) {
            log::warning("linux.personality.flags: none is supported, all are ignored");
        }
        let resources = linux.and_then(|linux| linux.resources().as_ref());
        let cpus = resources.and_then(|resources| resources.cpu().as_ref()).and_then(|cpu| cpu.cpus().as_deref());
        Ok(Self {
            args,
            env,
            groups: process.user().additional_gids().clone().unwrap_or_default(),
            keep_groups: false,
            visible: false,
            preserve_fds: wishes.preserve_fds,
            keyring: (!wishes.no_new_keyring).then(|| format!("_ses.{id}")),
            personality,
            has_cpuset: cpus.is_some_and(|cpus| !cpus.is_empty()),
            memory_policy: linux.and_then(|linux| linux.memory_policy().clone()),
            spec: process,
        })
    }

    /// The value of a variable of the program's environment.
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.env.iter().find_map(|entry| entry.strip_prefix(name)?.strip_prefix('='))
    }

    /// Whether the program gets a terminal of its own.
    pub fn terminal(&self) -> bool {
        self.spec.terminal().unwrap_or(false)
    }
}

/// Checks the entries. Where two have the same name, the value of the last one stands at the place of the first.
fn environment(entries: &[String]) -> Result<Vec<String>> {
    let mut kept: Vec<String> = Vec::with_capacity(entries.len());
    // Found by name: a bundle may have tens of thousands, and comparing each with each takes half a minute then.
    let mut places = BTreeMap::new();
    for entry in entries {
        if let Some(reason) = validate::wrong_variable(entry) {
            return Err(Error::invalid(format!("process.env: {reason}")));
        }
        let Some((name, _)) = entry.split_once('=') else { continue };
        let place = *places.entry(name).or_insert(kept.len());
        match kept.get_mut(place) {
            Some(known) => known.clone_from(entry),
            None => kept.push(entry.clone()),
        }
    }
    Ok(kept)
}

/// Sets one variable.
pub fn replace(env: &mut Vec<String>, name: &str, value: &str) {
    let entry = format!("{name}={value}");
    match env.iter_mut().find(|known| known.strip_prefix(name).is_some_and(|rest| rest.starts_with('='))) {
        Some(known) => *known = entry,
        None => env.push(entry),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_entry_of_a_name_wins() {
        let entries = ["A=1", "B=2", "A=3"].map(String::from);
        assert_eq!(environment(&entries).expect("valid"), ["A=3", "B=2"]);
        let many: Vec<String> =
            (0..50_000).flat_map(|number| ["x", "y"].map(|word| format!("V{number}={word}"))).collect();
        let begun = std::time::Instant::now();
        assert_eq!(environment(&many).expect("valid").len(), many.len() / 2);
        assert!(begun.elapsed() < std::time::Duration::from_secs(20), "{:?}", begun.elapsed());
        for bad in ["A", "=x", ""] {
            assert!(environment(&[bad.to_owned()]).is_err(), "{bad:?}");
        }
    }
}
