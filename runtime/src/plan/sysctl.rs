//! Kernel settings a container may have: only those that belong to a namespace of its own.

use oci_spec::runtime::{Linux, LinuxNamespaceType};
use rung_spec::validate::Parameter;
use rung_sys::namespace::Namespace;

use super::namespaces::{NamespacePlan, kind};
use crate::error::{Error, Result};

/// The settings as paths below `/proc/sys`, sorted.
pub fn plan(linux: Option<&Linux>, namespaces: &NamespacePlan) -> Result<Vec<(String, String)>> {
    let settings = linux.and_then(|linux| linux.sysctl().as_ref());
    let mut planned = Vec::new();
    for (key, value) in settings.into_iter().flatten() {
        let refuse = |why: &str| Error::invalid(format!("linux.sysctl: sysctl {key:?} {why}"));
        let parameter = Parameter::named(key).map_err(refuse)?;
        let is_its = namespaces.has(kind(parameter.namespace))
            && !(parameter.namespace == LinuxNamespaceType::Network && is_hosts(namespaces));
        if !is_its {
            return Err(refuse(parameter.refusal()));
        }
        planned.push((parameter.path, value.clone()));
    }
    planned.sort();
    Ok(planned)
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

    fn planned(key: &str, namespaces: &NamespacePlan) -> Result<Vec<(String, String)>> {
        let mut linux = Linux::default();
        linux.set_sysctl(Some([(key.to_owned(), "1".to_owned())].into()));
        plan(Some(&linux), namespaces)
    }

    #[test]
    fn only_own_namespaces() {
        let own = NamespacePlan { make: vec![Namespace::Ipc, Namespace::Network], ..NamespacePlan::default() };
        let hosts =
            NamespacePlan { join: vec![(Namespace::Network, "/proc/self/ns/net".into())], ..NamespacePlan::default() };
        for (key, path) in [("kernel.msgmax", "kernel/msgmax"), ("net/core/somaxconn", "net/core/somaxconn")] {
            assert_eq!(planned(key, &own).expect(key), [(path.to_owned(), "1".to_owned())]);
            assert!(planned(key, &NamespacePlan::default()).is_err() && planned(key, &hosts).is_err(), "{key}");
        }
        for (key, says) in [
            ("kernel.msgmax", "\"kernel.msgmax\" is not allowed in the hosts ipc namespace"),
            ("net.core.somaxconn", "\"net.core.somaxconn\" not allowed in host network namespace"),
        ] {
            let said = planned(key, &NamespacePlan::default()).expect_err(key).to_string();
            assert!(said.ends_with(says), "{said}");
        }
        for bad in ["user.max_user_namespaces", "kernel.core_pattern", "net/../kernel/core_pattern"] {
            assert!(planned(bad, &own).is_err(), "{bad}");
        }
    }
}
