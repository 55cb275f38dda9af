//! Which kernel parameters a container may set: those that belong to a namespace it has for itself.

use crate::config::{LinuxNamespaceType as Type, Spec};

use super::namespaces::of;
use super::{Found, Violation};

/// Those of System V's messages and memory, by their files below `/proc/sys`.
const IPC: [&str; 8] = [
    "kernel/msgmax",
    "kernel/msgmnb",
    "kernel/msgmni",
    "kernel/sem",
    "kernel/shmall",
    "kernel/shmmax",
    "kernel/shmmni",
    "kernel/shm_rmid_forced",
];

/// A kernel parameter that a container can have for itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter {
    /// Its file, below `/proc/sys`.
    pub path: String,
    /// The namespace that it belongs to: without one of its own, the container would set it for the host.
    pub namespace: Type,
}

impl Parameter {
    /// The parameter that `name` names, with dots or with slashes between its parts.
    ///
    /// # Errors
    /// Why no container can have it: what `name` is or does.
    pub fn named(name: &str) -> Result<Self, &'static str> {
        let path = path(name);
        if path.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
            return Err("is not the name of a parameter");
        }
        let namespace = match path.as_str() {
            path if IPC.contains(&path) || path.starts_with("fs/mqueue/") => Type::Ipc,
            path if path.starts_with("net/") => Type::Network,
            path if path.starts_with("user/") => Type::User,
            "kernel/domainname" => Type::Uts,
            "kernel/hostname" => return Err("is not allowed as it conflicts with the OCI \"hostname\" field"),
            _ => return Err("is not in a separate kernel namespace"),
        };
        Ok(Self { path, namespace })
    }

    /// What is said of it where the namespace is the host's: runc's words, which callers may look for.
    #[must_use]
    pub fn refusal(&self) -> &'static str {
        match self.namespace {
            Type::Ipc => "is not allowed in the hosts ipc namespace",
            Type::Network => "not allowed in host network namespace",
            _ => "is not in a separate kernel namespace",
        }
    }
}

/// `net/ipv4/conf/eth0.1/x` and `net.ipv4.conf.eth0/1.x` name the same file: the first separator says which form it is, and
/// the other one stands for a dot in a name.
fn path(name: &str) -> String {
    let dotted = name.find(['.', '/']).is_some_and(|at| name[at..].starts_with('.'));
    let swapped = |letter| match letter {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    if dotted { name.chars().map(swapped).collect() } else { name.to_owned() }
}

pub(super) fn check(spec: &Spec, found: &mut Found) {
    let Some(parameters) = spec.linux().as_ref().and_then(|linux| linux.sysctl().as_ref()) else { return };
    let mut names: Vec<&String> = parameters.keys().collect();
    names.sort();
    for name in names {
        let reason = match Parameter::named(name) {
            Err(reason) => reason,
            Ok(it) if of(spec, it.namespace).is_some() => continue,
            Ok(it) => it.refusal(),
        };
        found.push(Violation::new(format!("linux.sysctl[{name:?}]"), format!("sysctl {name:?} {reason}")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_are_one_parameter() {
        for (name, expected, namespace) in [
            ("net.ipv4.ip_forward", "net/ipv4/ip_forward", Type::Network),
            ("net.ipv4.conf.eth0/1.forwarding", "net/ipv4/conf/eth0.1/forwarding", Type::Network),
            ("net/ipv4/conf/eth0.1/forwarding", "net/ipv4/conf/eth0.1/forwarding", Type::Network),
            ("kernel.shm_rmid_forced", "kernel/shm_rmid_forced", Type::Ipc),
            ("fs/mqueue/msg_max", "fs/mqueue/msg_max", Type::Ipc),
            ("user.max_user_namespaces", "user/max_user_namespaces", Type::User),
            ("kernel/domainname", "kernel/domainname", Type::Uts),
        ] {
            assert_eq!(Parameter::named(name), Ok(Parameter { path: expected.into(), namespace }), "{name}");
        }
    }

    #[test]
    fn what_is_the_hosts_or_leads_elsewhere_is_nobodys() {
        let smuggled = "kernel.shm_rmid_forced=1+kernel.core_pattern";
        let elsewhere = ["net/../kernel/core_pattern", "net.//.kernel.panic", "net/./x", "net..x", "net.", "", "../x"];
        for name in ["kernel.core_pattern", "kernel.hostname", "vm.swappiness", smuggled].iter().chain(&elsewhere) {
            assert!(Parameter::named(name).is_err(), "{name}");
        }
    }
}
