//! A pod's own cgroup below that of the kubelet's pod, with nobody in it where the pod has no process.
//!
//! The cAdvisor in a kubelet finds pods by it: it takes the last part of each cgroup's path for a container's id, asks
//! containerd's services for that container and its task, and counts the network in which the task's process is.

use std::path::{Path, PathBuf};

use gantry_proto::runtime::v1;
use rung_sys::cgroupfs::{CgroupDir, Version, is_missing, version_at};
use rung_sys::namespace::Namespace;

use super::check;
use crate::cri::stats::slice_path;
use crate::cri::{Cri, Sandbox, spec};
use crate::net::namespaces;

/// Where cgroups are.
const MOUNT: &str = "/sys/fs/cgroup";
/// The one hierarchy of version 1 in which it is made. cAdvisor watches several, and finds what is in any; each takes time.
const HIERARCHY: &str = "cpu";

impl Cri {
    /// Lets the pod be found by what looks for its network. `pid` is its process, or what stands for it. It waits for the
    /// kernel.
    pub(in crate::cri) fn show_pod(&self, sandbox: &Sandbox, pid: u32) {
        let network = self.own_network(sandbox).unwrap_or_else(|| PathBuf::from("/proc/self/ns/net"));
        let shown = PathBuf::from(format!("/proc/{pid}/ns/{}", Namespace::Network.proc_name()));
        // Shims of others name themselves, who have the machine's network.
        let shows = namespaces::is_same(&network, &shown);
        sandbox.set_shows_network(shows);
        let Some((parent, name)) = self.cgroup_of_pod(sandbox).filter(|_| shows) else { return };
        match CgroupDir::open(&parent).and_then(|parent| parent.make_child(name.as_ref())) {
            Ok(()) => {}
            // Without a kubelet there may be no such pod yet, and then nobody looks for it.
            Err(error) if is_missing(&error) => {}
            Err(error) => tracing::warn!(id = %sandbox.id(), %error, "make the cgroup by which a pod is found"),
        }
        // It may have been stopped meanwhile.
        if sandbox.record().stopped {
            self.hide_pod(sandbox);
        }
    }

    /// Takes that back. May be repeated.
    pub(in crate::cri) fn hide_pod(&self, sandbox: &Sandbox) {
        let Some((parent, name)) = self.cgroup_of_pod(sandbox) else { return };
        match CgroupDir::open(&parent).and_then(|parent| parent.remove_child(name.as_ref())) {
            Err(error) if !is_missing(&error) => {
                tracing::warn!(id = %sandbox.id(), %error, "remove the cgroup by which a pod was found");
            }
            _ => {}
        }
    }

    /// The directory in which it is, and its name. None where the pod has no cgroup of its own, or a process whose cgroup it
    /// is.
    fn cgroup_of_pod(&self, sandbox: &Sandbox) -> Option<(PathBuf, String)> {
        let record = sandbox.record();
        let linux = record.config.as_ref()?.linux.as_ref()?;
        let parent = linux.cgroup_parent.as_str();
        let options = linux.security_context.as_ref().and_then(|context| context.namespace_options.as_ref());
        let has_process = check::namespaces(options).is_ok_and(|namespaces| namespaces.pid == v1::NamespaceMode::Pod);
        if has_process || parent.trim_matches('/').is_empty() {
            return None;
        }
        let mount = match version_at(Path::new(MOUNT)) {
            Some(Version::V2) => PathBuf::from(MOUNT),
            _ => Path::new(MOUNT).join(HIERARCHY),
        };
        let parent = mount.join(slice_path(parent).trim_start_matches('/'));
        Some((parent, spec::cgroup_name(self.config().cgroup_driver, sandbox.id().as_str())))
    }
}
