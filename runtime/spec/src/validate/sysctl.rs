//! Which kernel parameters a container may set: those that belong to a namespace it has for itself.

use crate::config::{LinuxNamespaceType as Type, Spec};

use super::namespaces::of;
use super::{Found, Violation};

/// Those of System V's messages and memory, which belong to a namespace of their own.
pub const IPC_SYSCTLS: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

pub(super) fn check(spec: &Spec, found: &mut Found) {
    let Some(parameters) = spec.linux().as_ref().and_then(|linux| linux.sysctl().as_ref()) else { return };
    let mut names: Vec<&String> = parameters.keys().collect();
    names.sort();
    for name in names {
        if let Err(reason) = allowed(spec, &dotted(name)) {
            found.push(Violation::new(format!("linux.sysctl[{name:?}]"), reason));
        }
    }
}

/// `net/ipv4/conf/eth0.1/x` and `net.ipv4.conf.eth0/1.x` name the same file: the first separator says which form it is.
fn dotted(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(at) if name[at..].starts_with('/') => name
            .chars()
            .map(|c| {
                if c == '/' {
                    '.'
                } else if c == '.' {
                    '/'
                } else {
                    c
                }
            })
            .collect(),
        _ => name.to_owned(),
    }
}

fn allowed(spec: &Spec, name: &str) -> Result<(), String> {
    let parts: Vec<&str> = name.split('.').collect();
    if parts.iter().any(|part| part.is_empty() || *part == "/" || *part == "//") {
        return Err("is not the name of a parameter".into());
    }
    let own = |typ: Type, what: &str| {
        let namespace = of(spec, typ);
        if namespace.is_some() {
            Ok(())
        } else {
            Err(format!("sysctl {name:?} is not allowed in the host's {what} namespace"))
        }
    };
    if IPC_SYSCTLS.contains(&name) || name.starts_with("fs.mqueue.") {
        return own(Type::Ipc, "IPC");
    }
    if name.starts_with("net.") {
        return own(Type::Network, "network");
    }
    if name.starts_with("user.") {
        return own(Type::User, "user");
    }
    match name {
        "kernel.domainname" => own(Type::Uts, "UTS"),
        "kernel.hostname" => {
            Err(format!("sysctl {name:?} is not allowed as it conflicts with the OCI \"hostname\" field"))
        }
        _ => Err(format!("sysctl {name:?} is not in a separate kernel namespace")),
    }
}
