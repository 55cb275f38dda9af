//! Which namespaces the container makes, and which of the pod's it joins.

use std::path::{Path, PathBuf};

use gantry_proto::runtime::v1::NamespaceMode;
use oci_spec::runtime::{LinuxIdMapping, LinuxIdMappingBuilder, LinuxNamespace, LinuxNamespaceType as Type};
use rung_sys::cgroupfs::{Version, version_at};
use rung_sys::idmap::Range;
use rung_sys::namespace::Namespace;

use super::{Making, invalid};
use crate::error::Result;

const CGROUPS: &str = "/sys/fs/cgroup";

pub(super) fn make(making: &Making<'_>) -> Result<Vec<LinuxNamespace>> {
    let join = |kind| Some(making.places.namespace(kind));
    let wanted = making.namespaces;
    let mut namespaces = vec![namespace(Type::Mount, None)];
    if wanted.user.is_some() {
        namespaces.push(namespace(Type::User, join(Namespace::User)));
    }
    if !wanted.host_network {
        namespaces.push(namespace(Type::Network, join(Namespace::Network)));
        namespaces.push(namespace(Type::Uts, join(Namespace::Uts)));
    }
    if !wanted.host_ipc {
        namespaces.push(namespace(Type::Ipc, join(Namespace::Ipc)));
    }
    match (wanted.pid, making.pid_of) {
        (NamespaceMode::Node, _) => {}
        (NamespaceMode::Container, _) => namespaces.push(namespace(Type::Pid, None)),
        (NamespaceMode::Pod | NamespaceMode::Target, Some(pid)) => {
            namespaces.push(namespace(Type::Pid, Some(PathBuf::from(format!("/proc/{pid}/ns/pid")))));
        }
        (mode, None) => {
            let what = format!("{}: no process to share a pid namespace with", mode.as_str_name());
            return Err(invalid("linux.security_context.namespace_options.pid", what));
        }
    }
    // With version 1, whoever looks for a container's cgroup in its own view of them would not find it.
    if !making.privileged() && version_at(Path::new(CGROUPS)) == Some(Version::V2) {
        namespaces.push(namespace(Type::Cgroup, None));
    }
    Ok(namespaces)
}

fn namespace(kind: Type, path: Option<PathBuf>) -> LinuxNamespace {
    let mut namespace = LinuxNamespace::default();
    namespace.set_typ(kind).set_path(path);
    namespace
}

/// Id maps as the runtime configuration has them.
pub(in crate::cri) fn ranges(ranges: &[Range]) -> Vec<LinuxIdMapping> {
    let mapping = |range: &Range| {
        let builder = LinuxIdMappingBuilder::default();
        let built = builder.container_id(range.inside).host_id(range.outside).size(range.count).build();
        built.expect("each field of a mapping has a default")
    };
    ranges.iter().map(mapping).collect()
}
