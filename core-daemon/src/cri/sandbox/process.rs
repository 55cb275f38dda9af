//! The pod's shim, which holds all of its containers; and its first process, where those share one view of processes.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use gantry_proto::any;
use gantry_proto::runtime::v1;
use oci_spec::runtime::{Linux, LinuxNamespace, LinuxNamespaceType as Type, Mount, Process, Root, Spec};
use rung_spec::defaults::{self, mounts::mount};
use rung_sys::namespace::Namespace;
use tokio::task::spawn_blocking;

use super::check::Namespaces;
use crate::config::RuntimeHandler;
use crate::cri::selinux::Labels;
use crate::cri::{Cri, Sandbox, spec};
use crate::error::{Error, Kind, Result};
use crate::id::ContainerId;
use crate::tasks::{CreateSandbox, Sandboxes};

/// The pod's process is among the last that the kernel ends for want of memory.
const OOM_SCORE: i32 = -998;
/// How long the pod's process may take to end by itself.
const GRACE: Duration = Duration::from_secs(2);
/// How long to wait before asking a shim again that did not answer.
const AGAIN: Duration = Duration::from_secs(5);

impl Cri {
    fn pods(&self) -> Sandboxes {
        Sandboxes::new(self.parts().tasks.clone())
    }

    /// Starts the pod's shim, and its process where it needs one. Answers with the pid of that, or of what of the shim stands
    /// for it; none where the shim is of a kind that knows no pods, and one is started for each container.
    pub(super) async fn start_pod(
        &self,
        id: &str,
        config: &v1::PodSandboxConfig,
        handler_name: &str,
        namespaces: &Namespaces,
        labels: &Labels,
    ) -> Result<Option<u32>> {
        let key = ContainerId::parse(id)?;
        let settings = self.config();
        let handler = settings.handler(handler_name)?;
        let runtime = self.runtime(handler, None);
        let needs_process = namespaces.pid == v1::NamespaceMode::Pod;
        let spec = match needs_process {
            true => {
                let mut spec = self.pause(id, config, handler, namespaces, labels);
                let profile = self.annotated_profile_of_pod(handler_name, config).await?;
                self.confine(&mut spec, config, profile.as_deref())?;
                let document =
                    serde_json::to_vec(&spec).map_err(|error| Error::internal(format!("encode: {error}")))?;
                Some(any::json(any::SPEC, document))
            }
            false => None,
        };
        let request = CreateSandbox {
            runtime: runtime.name,
            runtime_options: runtime.options,
            as_task: needs_process,
            spec,
            netns_path: match namespaces.host_network {
                true => String::new(),
                false => self.places(id).namespace(Namespace::Network).to_string_lossy().into_owned(),
            },
            ..CreateSandbox::default()
        };
        match self.pods().create(self.context(), &key, request).await {
            Err(error) if error.kind() == Kind::Unimplemented && !needs_process => return Ok(None),
            created => created?,
        }
        let started = self.pods().start(&self.context().namespace, &key).await?;
        Ok(Some(started.pid))
    }

    /// Ends the pod's process and its shim. One that is gone is no error.
    pub(super) async fn end_pod(&self, id: &str) -> Result<()> {
        let (key, namespace) = (ContainerId::parse(id)?, &self.context().namespace);
        self.pods().stop(namespace, &key, Some(GRACE)).await?;
        match self.pods().shutdown(namespace, &key).await {
            Err(error) if error.kind() != Kind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Notes that the pod's shim is there, and when it is not any more.
    pub(in crate::cri) fn watch_pod(&self, sandbox: &Arc<Sandbox>, pid: u32) {
        sandbox.set_pid(Some(pid));
        let (cri, sandbox) = (self.clone(), sandbox.clone());
        tokio::spawn(async move {
            let _ = cri.pods().wait(&cri.context().namespace, sandbox.id()).await;
            sandbox.set_pid(None);
            // Its number may soon be somebody else's.
            let (hiding, gone) = (cri.clone(), sandbox.clone());
            let _ = spawn_blocking(move || hiding.hide_pod(&gone)).await;
            if !sandbox.record().stopped {
                tracing::warn!(id = %sandbox.id(), "pod's shim or process ended");
                cri.announce_pod(&sandbox, v1::ContainerEventType::ContainerStoppedEvent);
            }
        });
    }

    /// Finds the pod's shim again after a restart of the daemon.
    pub(in crate::cri) async fn find_pod(&self, sandbox: &Arc<Sandbox>) {
        let (pods, namespace) = (self.pods(), &self.context().namespace);
        while pods.holds(namespace, sandbox.id()) {
            match pods.status(namespace, sandbox.id(), false).await {
                Ok(status) if status.ready => {
                    sandbox.set_pid(Some(status.pid));
                    let (cri, found) = (self.clone(), sandbox.clone());
                    let _ = spawn_blocking(move || cri.show_pod(&found, status.pid)).await;
                    return self.watch_pod(sandbox, status.pid);
                }
                Ok(_) => return,
                Err(error) => tracing::debug!(id = %sandbox.id(), %error, "look for a pod's shim"),
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// The configuration of the process that holds the pod's view of processes, and does nothing else.
    pub(super) fn pause(
        &self,
        id: &str,
        config: &v1::PodSandboxConfig,
        handler: &RuntimeHandler,
        namespaces: &Namespaces,
        labels: &Labels,
    ) -> Spec {
        let context = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
        let privileged = context.is_some_and(|context| context.privileged);
        let mut process = Process::default();
        process
            .set_args(Some(vec![rung_sys::pause::PATH.to_owned()]))
            .set_cwd(PathBuf::from("/"))
            .set_env(Some(vec![defaults::PATH.to_owned()]))
            .set_no_new_privileges(Some(true))
            .set_capabilities(None)
            .set_rlimits(None)
            .set_selinux_label(Some(labels.process.clone()).filter(|label| !label.is_empty() && !privileged))
            .set_oom_score_adj(Some(self.shared.host.oom_score(OOM_SCORE)));
        let mut root = Root::default();
        root.set_path(PathBuf::from("rootfs")).set_readonly(Some(true));
        let mut linux = Linux::default();
        let driver = self.config().cgroup_driver;
        linux
            .set_namespaces(Some(self.pause_namespaces(id, namespaces)))
            .set_cgroups_path(Some(spec::cgroup_of(driver, config, id)))
            .set_masked_paths(None)
            .set_readonly_paths(None)
            .set_mount_label(Some(labels.mount.clone()).filter(|label| !label.is_empty()))
            .set_resources(None);
        if let Some((users, groups)) = &namespaces.user {
            linux.set_uid_mappings(Some(spec::ranges(users))).set_gid_mappings(Some(spec::ranges(groups)));
        }
        let mut mounts = Vec::from_iter(labelled(&labels.mount));
        if !self.runs_rung(handler) {
            // runc looks there for what the process must not inherit. The pod's containers may see what this one sees, through
            // its root in their own, and so it is closed as theirs is.
            mounts.push(proc());
            let list = |paths: &[&str]| Some(paths.iter().map(|path| (*path).to_owned()).collect::<Vec<_>>());
            linux.set_masked_paths(list(defaults::paths::MASKED)).set_readonly_paths(list(defaults::paths::READONLY));
        }
        let mut pause = Spec::default();
        let annotations = spec::sandbox_annotations(id, config, handler);
        pause
            .set_version(defaults::OCI_VERSION.to_owned())
            .set_root(Some(root))
            .set_hostname(None)
            .set_process(Some(process))
            .set_mounts(Some(mounts))
            .set_annotations(Some(annotations))
            .set_linux(Some(linux));
        pause
    }

    /// Gives the pod's process the filter of system calls that the pod asks for, or that its annotations name. It needs none
    /// itself, but a container that sees it and has a filter could have it make any call.
    pub(super) fn confine(
        &self,
        pause: &mut Spec,
        config: &v1::PodSandboxConfig,
        annotated: Option<&str>,
    ) -> Result<()> {
        let context = config.linux.as_ref().and_then(|linux| linux.security_context.clone()).unwrap_or_default();
        let seccomp = spec::seccomp_of_pod(&context, &self.config(), annotated)?;
        if let Some(linux) = pause.linux_mut() {
            linux.set_seccomp(seccomp);
        }
        Ok(())
    }

    fn pause_namespaces(&self, id: &str, namespaces: &Namespaces) -> Vec<LinuxNamespace> {
        let places = self.places(id);
        let namespace = |kind, path: Option<PathBuf>| {
            let mut namespace = LinuxNamespace::default();
            namespace.set_typ(kind).set_path(path);
            namespace
        };
        let mut all = vec![namespace(Type::Mount, None), namespace(Type::Pid, None)];
        let mut join = |wanted: bool, kind, bound| {
            if wanted {
                all.push(namespace(kind, Some(places.namespace(bound))));
            }
        };
        join(namespaces.user.is_some(), Type::User, Namespace::User);
        join(!namespaces.host_network, Type::Network, Namespace::Network);
        join(!namespaces.host_network, Type::Uts, Namespace::Uts);
        join(!namespaces.host_ipc, Type::Ipc, Namespace::Ipc);
        all
    }
}

fn proc() -> Mount {
    mount("/proc", "proc", "proc", ["nosuid", "noexec", "nodev"].map(str::to_owned).to_vec())
}

/// Whoever looks for the label of a pod's files looks at what its first process has mounted, and that needs nothing.
fn labelled(label: &str) -> Option<Mount> {
    let options = ["nosuid", "noexec", "mode=755", "size=64k"].map(str::to_owned).to_vec();
    (!label.is_empty()).then(|| mount("/dev", "tmpfs", "tmpfs", options))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pods_process_has_something_labelled_mounted() {
        assert_eq!(labelled(""), None);
        let mount = labelled("system_u:object_r:container_file_t:s0:c1,c2").expect("a mount");
        assert_eq!(
            (mount.destination().as_path(), mount.typ().as_deref()),
            (std::path::Path::new("/dev"), Some("tmpfs"))
        );
        // What rung gives a label where the configuration has one: a file system, and no bind mount.
        assert!(!mount.options().iter().flatten().any(|option| option.contains("bind")));
    }
}
