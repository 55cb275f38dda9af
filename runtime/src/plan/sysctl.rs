//! Kernel settings a container may have: only those that belong to a namespace of its own.

use oci_spec::runtime::Linux;
use rung_spec::validate::IPC_SYSCTLS;
use rung_sys::namespace::Namespace;

use super::namespaces::NamespacePlan;
use crate::error::{Error, Result};

/// The settings as paths below `/proc/sys`, sorted.
pub fn plan(linux: Option<&Linux>, namespaces: &NamespacePlan) -> Result<Vec<(String, String)>> {
    let settings = linux.and_then(|linux| linux.sysctl().as_ref());
    let mut planned = Vec::new();
    for (key, value) in settings.into_iter().flatten() {
        let path = path_of(key);
        allowed(key, &path, namespaces)?;
        planned.push((path, value.clone()));
    }
    planned.sort();
    Ok(planned)
}

/// `net.ipv4.ip_forward` and `net/ipv4/ip_forward` name the same file; whichever separator comes first is the one.
fn path_of(key: &str) -> String {
    match key.find(['.', '/']) {
        Some(at) if key.as_bytes()[at] == b'.' => key
            .chars()
            .map(|c| {
                if c == '.' {
                    '/'
                } else if c == '/' {
                    '.'
                } else {
                    c
                }
            })
            .collect(),
        _ => key.to_owned(),
    }
}

fn allowed(key: &str, path: &str, namespaces: &NamespacePlan) -> Result<()> {
    let refuse = |why: &str| Err(Error::invalid(format!("linux.sysctl: sysctl {key:?} {why}")));
    if path.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
        return refuse("is no setting's name");
    }
    let needs = |kind: Namespace, name: &str| {
        if namespaces.has(kind) {
            return Ok(());
        }
        refuse(&format!("is not allowed in the hosts {name} namespace"))
    };
    if IPC_SYSCTLS.iter().any(|name| name.split('.').eq(path.split('/'))) || path.starts_with("fs/mqueue/") {
        return needs(Namespace::Ipc, "ipc");
    }
    if path.starts_with("net/") {
        needs(Namespace::Network, "network")?;
        return if is_hosts(namespaces) { refuse("is not allowed in the hosts network namespace") } else { Ok(()) };
    }
    if path.starts_with("user/") {
        return needs(Namespace::User, "user");
    }
    match path {
        "kernel/domainname" => needs(Namespace::Uts, "uts"),
        "kernel/hostname" => refuse("conflicts with the hostname of the configuration: set hostname instead"),
        _ => refuse("is not in a separate kernel namespace"),
    }
}

/// Whether the network namespace that is joined by path is the runtime's own. One that cannot be looked at is refused
/// where it is opened.
fn is_hosts(namespaces: &NamespacePlan) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let same = |path: &std::path::Path| {
        let (its, own) = (std::fs::metadata(path).ok()?, std::fs::metadata("/proc/self/ns/net").ok()?);
        Some((its.dev(), its.ino()) == (own.dev(), own.ino()))
    };
    namespaces.join.iter().any(|(kind, path)| *kind == Namespace::Network && same(path) == Some(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn namespaces(make: &[Namespace]) -> NamespacePlan {
        NamespacePlan { make: make.to_vec(), ..NamespacePlan::default() }
    }

    #[test]
    fn both_spellings_are_one_setting() {
        assert_eq!(path_of("net.ipv4.conf.eth0/1.forwarding"), "net/ipv4/conf/eth0.1/forwarding");
        assert_eq!(path_of("net/ipv4/conf/eth0.1/forwarding"), "net/ipv4/conf/eth0.1/forwarding");
    }

    #[test]
    fn only_own_namespaces() {
        let own = namespaces(&[Namespace::Ipc, Namespace::Network]);
        for good in ["kernel.msgmax", "fs.mqueue.msg_max", "net.core.somaxconn"] {
            assert!(allowed(good, &path_of(good), &own).is_ok(), "{good}");
            assert!(allowed(good, &path_of(good), &namespaces(&[])).is_err(), "{good}");
        }
        let hosts =
            NamespacePlan { join: vec![(Namespace::Network, "/proc/self/ns/net".into())], ..NamespacePlan::default() };
        assert!(allowed("net.core.somaxconn", &path_of("net.core.somaxconn"), &hosts).is_err());
        let smuggled = "kernel.shm_rmid_forced=1+kernel.core_pattern";
        for bad in ["kernel.core_pattern", "kernel.hostname", "net/../kernel/core_pattern", "vm.swappiness", smuggled] {
            assert!(allowed(bad, &path_of(bad), &own).is_err(), "{bad}");
        }
    }
}
