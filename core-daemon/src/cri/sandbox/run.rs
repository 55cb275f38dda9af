//! `RunPodSandbox`: namespaces, network, files; the record comes last, so a pod that is there is whole.

use gantry_proto::containerd::types::{Sandbox as Stored, sandbox};
use gantry_proto::gantry::cri::v1::{Network, SandboxRecord};
use gantry_proto::runtime::v1;
use prost::Message as _;
use rung_sys::namespace::Namespace;

use super::check::{self, Namespaces};
use crate::blocking::blocking;
use crate::config::RuntimeHandler;
use crate::cri::flights::Stage;
use crate::cri::granted::{Agreed, Drawn};
use crate::cri::store::{boot_id, now};
use crate::cri::{Cri, labels};
use crate::error::{Doing as _, Error, Result};
use crate::failpoint;
use crate::id;
use crate::net::namespaces::{self, Wishes};

impl Cri {
    pub(in crate::cri) async fn run_pod_sandbox(
        &self,
        request: v1::RunPodSandboxRequest,
    ) -> Result<v1::RunPodSandboxResponse> {
        let config = request.config.as_ref().ok_or_else(|| Error::invalid("config: is required"))?;
        let namespaces = check::config(config)?;
        let settings = self.config();
        let handler = settings.handler(&request.runtime_handler)?;
        if namespaces.user.is_some() && !self.features(handler).user_namespaces {
            let field = "config.linux.security_context.namespace_options.userns_options";
            return Err(Error::precondition(format!("{field}: the runtime handler or this machine cannot map ids")));
        }
        let name = name(check::metadata(config)?);
        let (asked, cri) = (request.encode_to_vec(), self.clone());
        let reserved = name.clone();
        let work = |stage| async move { cri.run_named(reserved, request, namespaces, stage).await };
        let pod_sandbox_id = self.shared.flights.join(&name, &asked, work).await?;
        Ok(v1::RunPodSandboxResponse { pod_sandbox_id })
    }

    pub(super) async fn run_named(
        &self,
        name: String,
        request: v1::RunPodSandboxRequest,
        namespaces: Namespaces,
        stage: Stage,
    ) -> Result<String> {
        let config = request.config.unwrap_or_default();
        if let Some(there) = self.store().sandboxes().into_iter().find(|sandbox| sandbox.record().name == name) {
            let record = there.record();
            // The answer to an earlier request was lost.
            let same = record.config.as_ref() == Some(&config) && record.runtime_handler == request.runtime_handler;
            if same && there.state() == v1::PodSandboxState::SandboxReady {
                return Ok(there.id().to_string());
            }
            return Err(Error::precondition(format!("name {name}: is the pod sandbox {}", there.id())));
        }
        let doing = || format!("run pod sandbox {}", config.metadata.clone().unwrap_or_default().name);
        let id = id::random::<32>()?;
        let settings = self.config();
        let handler = settings.handler(&request.runtime_handler)?;
        let agreed = self.agree(&config, handler, &namespaces).doing(doing)?;
        self.log_ignored(&id, handler, &config.annotations);
        let made = self.make_pod(&id, name.clone(), &config, &request.runtime_handler, &agreed, &stage).await;
        if let Err(error) = made {
            if let Some(left) = self.unmake_pod(&id, &namespaces).await {
                let record = SandboxRecord {
                    name,
                    config: Some(config.clone()),
                    runtime_handler: request.runtime_handler.clone(),
                    // Until its files and namespaces are gone, nobody else may be these.
                    users: agreed.users.as_ref().map(Drawn::namespace),
                    ..left
                };
                self.keep_broken(&id, record).await;
            }
            return Err(error.context(doing()));
        }
        self.announce(&id, &id, v1::ContainerEventType::ContainerCreatedEvent);
        self.announce(&id, &id, v1::ContainerEventType::ContainerStartedEvent);
        Ok(id)
    }

    async fn make_pod(
        &self,
        id: &str,
        name: String,
        config: &v1::PodSandboxConfig,
        handler: &str,
        agreed: &Agreed,
        stage: &Stage,
    ) -> Result<()> {
        let namespaces = &agreed.namespaces;
        let context = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
        let options = context.and_then(|context| context.selinux_options.as_ref());
        let (labels, _held) = self.shared.selinux.pod(options, self.store())?;
        stage.enter("namespaces")?;
        let (places, copied, hostname) = (self.places(id), config.clone(), hostname(config)?);
        let (name_file, zone) = (hostname.clone(), self.config().timezone.clone());
        blocking(move || places.make(&copied, &name_file).and_then(|()| places.make_localtime(&zone))).await?;
        namespaces::make(self.wishes(id, config, namespaces, hostname), &self.parts().tasks.launcher().daemon).await?;
        failpoint::hit("cri.namespaces");
        let network = match namespaces.host_network {
            true => None,
            false => {
                stage.enter("network")?;
                let network = self.connect(id, config, self.config().handler(handler)?, stage).await?;
                let settings = self.network_sysctls(config, namespaces);
                namespaces::set(self.places(id).namespace(Namespace::Network), settings).await?;
                Some(network)
            }
        };
        failpoint::hit("cri.network");
        stage.enter("shim")?;
        let pid = self.start_pod(id, config, handler, namespaces, &labels).await?;
        failpoint::hit("cri.shim");
        stage.enter("files")?;
        if !namespaces.host_ipc {
            let (places, owner, size) = (self.places(id), root_outside(namespaces), agreed.granted.shm_size);
            blocking(move || places.make_shm(owner, size)).await?;
        }
        stage.enter("record")?;
        let record = SandboxRecord {
            name,
            config: Some(config.clone()),
            runtime_handler: handler.to_owned(),
            created_at: now(),
            boot_id: boot_id().to_owned(),
            network,
            has_shim: pid.is_some(),
            process_label: labels.process,
            mount_label: labels.mount,
            overhead: config.linux.as_ref().and_then(|linux| linux.overhead.clone()),
            resources: config.linux.as_ref().and_then(|linux| linux.resources.clone()),
            users: agreed.users.as_ref().map(Drawn::namespace),
            ..SandboxRecord::default()
        };
        let stored = self.stored(id, config, self.config().handler(handler)?);
        self.record_pod(id, record, stored, pid).await?;
        failpoint::hit("cri.pod");
        Ok(())
    }

    /// Writes down a pod that is whole, if plugins have nothing against it.
    async fn record_pod(&self, id: &str, record: SandboxRecord, stored: Stored, pid: Option<u32>) -> Result<()> {
        let window = self.nri_window().await;
        self.nri_run_pod(&window, id, &record, pid).await?;
        let (cri, added) = (self.clone(), record.clone());
        let add = move || {
            let sandbox = cri.store().add_sandbox(stored, added)?;
            sandbox.set_pid(pid);
            // Who finds the cgroup looks for the rest.
            if let Some(pid) = pid {
                cri.show_pod(&sandbox, pid);
            }
            Ok(sandbox)
        };
        let sandbox = match blocking(add).await {
            Ok(sandbox) => sandbox,
            Err(error) => {
                self.nri_forget_pod(&window, id, &record, pid).await;
                return Err(error);
            }
        };
        drop(window);
        if let Some(pid) = pid {
            self.watch_pod(&sandbox, pid);
        }
        Ok(())
    }

    /// Takes down what there is of a pod that could not be made, and answers with what is left of it.
    async fn unmake_pod(&self, id: &str, namespaces: &Namespaces) -> Option<SandboxRecord> {
        let warn = |error: &Error| tracing::warn!(id, %error, "take down a pod that could not be made");
        let ended = self.end_pod(id).await.inspect_err(warn).is_ok();
        // Plugins find what they made by the namespace, which goes last therefore.
        let disconnected = self.shared.cni.disconnect(id).await.inspect_err(warn).is_ok();
        let places = self.places(id);
        let removed = ended
            && disconnected
            && blocking(move || places.unmake().and_then(|()| places.remove())).await.inspect_err(warn).is_ok();
        (!removed).then(|| SandboxRecord {
            created_at: now(),
            boot_id: boot_id().to_owned(),
            stopped: true,
            has_shim: !ended,
            network: (!namespaces.host_network).then(Network::default),
            ..SandboxRecord::default()
        })
    }

    /// Takes down all there is of a pod that has no record. May be repeated.
    pub(in crate::cri) async fn take_down(&self, id: &str) -> Result<()> {
        self.end_pod(id).await?;
        // Plugins find what they made by the namespace, which goes last therefore.
        self.shared.cni.disconnect(id).await?;
        let places = self.places(id);
        blocking(move || places.unmake().and_then(|()| places.remove())).await
    }

    /// Keeps what is left of a pod as one that is not ready, so that the kubelet stops it until nothing is left.
    async fn keep_broken(&self, id: &str, record: SandboxRecord) {
        let config = record.config.clone().unwrap_or_default();
        let kept = match self.config().handler(&record.runtime_handler) {
            Ok(handler) => {
                let (cri, stored) = (self.clone(), self.stored(id, &config, handler));
                blocking(move || cri.store().add_sandbox(stored, record)).await.map(drop)
            }
            Err(error) => Err(error),
        };
        if let Err(error) = kept {
            tracing::error!(id, %error, "keep what is left of a pod that could not be made");
        }
    }

    fn wishes(&self, id: &str, config: &v1::PodSandboxConfig, namespaces: &Namespaces, hostname: String) -> Wishes {
        let places = self.places(id);
        let mut kinds = Vec::new();
        if namespaces.user.is_some() {
            kinds.push(Namespace::User);
        }
        if !namespaces.host_network {
            // The name goes with the network: programs look it up to find their own address.
            kinds.extend([Namespace::Network, Namespace::Uts]);
        }
        if !namespaces.host_ipc {
            kinds.push(Namespace::Ipc);
        }
        let sysctls = config.linux.iter().flat_map(|linux| linux.sysctls.clone());
        let sysctls = sysctls.filter(|(name, _)| !check::is_of_network(name)).collect();
        Wishes {
            bound: kinds.into_iter().map(|kind| (kind, places.namespace(kind))).collect(),
            user: namespaces.user.clone(),
            hostname,
            sysctls,
        }
    }

    /// Settings of a pod's own network. Those of interfaces make sense only once the plugins have made them.
    fn network_sysctls(&self, config: &v1::PodSandboxConfig, namespaces: &Namespaces) -> Vec<(String, String)> {
        let defaults = rung_spec::defaults::NETWORK_SYSCTLS.iter();
        let usual = defaults.filter(|(name, _)| match name.ends_with("ping_group_range") {
            // The range has groups in it that a user namespace does not know.
            true => {
                self.config().unprivileged_icmp
                    && namespaces.user.is_none()
                    && !rung_sys::namespace::in_user_namespace()
            }
            false => self.config().unprivileged_ports,
        });
        let usual = usual.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let wanted = config.linux.iter().flat_map(|linux| linux.sysctls.clone());
        usual.chain(wanted.filter(|(name, _)| check::is_of_network(name))).collect()
    }

    fn stored(&self, id: &str, config: &v1::PodSandboxConfig, handler: &RuntimeHandler) -> Stored {
        let runtime = match handler.runtime.as_str() {
            "" => self.parts().config.runtime.default.clone(),
            name => name.to_owned(),
        };
        Stored {
            sandbox_id: id.to_owned(),
            runtime: Some(sandbox::Runtime { name: runtime, options: None }),
            labels: labels::of(&config.labels, labels::SANDBOX),
            ..Stored::default()
        }
    }
}

/// What a pod's name is reserved under.
pub(super) fn name(metadata: &v1::PodSandboxMetadata) -> String {
    [&metadata.name, &metadata.namespace, &metadata.uid, &metadata.attempt.to_string()].map(String::as_str).join("_")
}

/// Who root of the pod is outside of it, where that is another.
pub(in crate::cri) fn root_outside(namespaces: &Namespaces) -> Option<(u32, u32)> {
    let (users, groups) = namespaces.user.as_ref()?;
    Some((users.first()?.outside, groups.first()?.outside))
}

/// The name of the machine as the pod sees it: the host's, where it has none of its own.
fn hostname(config: &v1::PodSandboxConfig) -> Result<String> {
    if !config.hostname.is_empty() {
        return Ok(config.hostname.clone());
    }
    let name = nix::unistd::gethostname().map_err(std::io::Error::from)?;
    Ok(name.to_string_lossy().into_owned())
}
