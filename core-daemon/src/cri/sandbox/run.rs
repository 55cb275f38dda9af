//! `RunPodSandbox`: namespaces, network, files; the record comes last, so a pod that is there is whole.

use gantry_proto::containerd::types::{Sandbox as Stored, sandbox};
use gantry_proto::gantry::cri::v1::SandboxRecord;
use gantry_proto::runtime::v1;
use prost::Message as _;
use rung_sys::namespace::Namespace;

use super::check::{self, Namespaces};
use crate::blocking::blocking;
use crate::config::RuntimeHandler;
use crate::cri::flights::Stage;
use crate::cri::store::{boot_id, now};
use crate::cri::{Cri, labels};
use crate::error::{Error, Result};
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
        self.config().handler(&request.runtime_handler)?;
        if namespaces.user.is_some() {
            let field = "config.linux.security_context.namespace_options.userns_options";
            return Err(Error::unimplemented(format!("{field}: shims cannot map the ids of an image's layers yet")));
        }
        let name = name(check::metadata(config)?);
        let (asked, cri) = (request.encode_to_vec(), self.clone());
        let reserved = name.clone();
        let work = |stage| async move { cri.run_named(reserved, request, namespaces, stage).await };
        let pod_sandbox_id = self.shared.flights.join(&name, &asked, work).await?;
        Ok(v1::RunPodSandboxResponse { pod_sandbox_id })
    }

    async fn run_named(
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
            return Err(Error::already_exists(format!("name {name}: is the pod sandbox {}", there.id())));
        }
        let id = id::random::<32>()?;
        let made = self.make_pod(&id, name, &config, &request.runtime_handler, &namespaces, &stage).await;
        if let Err(error) = made {
            self.unmake_pod(&id).await;
            return Err(error.context(format!("run pod sandbox {}", check::metadata(&config)?.name)));
        }
        self.announce(&id, v1::ContainerEventType::ContainerCreatedEvent);
        self.announce(&id, v1::ContainerEventType::ContainerStartedEvent);
        Ok(id)
    }

    async fn make_pod(
        &self,
        id: &str,
        name: String,
        config: &v1::PodSandboxConfig,
        handler: &str,
        namespaces: &Namespaces,
        stage: &Stage,
    ) -> Result<()> {
        stage.enter("namespaces")?;
        let (places, copied, hostname) = (self.places(id), config.clone(), hostname(config)?);
        let name_file = hostname.clone();
        blocking(move || places.make(&copied, &name_file)).await?;
        namespaces::make(self.wishes(id, config, namespaces, hostname), &self.parts().tasks.launcher().daemon).await?;
        failpoint::hit("cri.namespaces");
        let network = match namespaces.host_network {
            true => None,
            false => {
                stage.enter("network")?;
                Some(stage.unless_cancelled(self.connect(id, config)).await?)
            }
        };
        failpoint::hit("cri.network");
        stage.enter("shim")?;
        let pid = self.start_pod(id, config, handler, namespaces).await?;
        failpoint::hit("cri.shim");
        stage.enter("files")?;
        if !namespaces.host_ipc {
            let (places, owner) = (self.places(id), root_outside(namespaces));
            blocking(move || places.make_shm(owner)).await?;
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
            overhead: config.linux.as_ref().and_then(|linux| linux.overhead.clone()),
            resources: config.linux.as_ref().and_then(|linux| linux.resources.clone()),
            ..SandboxRecord::default()
        };
        let stored = self.stored(id, config, self.config().handler(handler)?);
        let cri = self.clone();
        let sandbox = blocking(move || cri.store().add_sandbox(stored, record)).await?;
        if let Some(pid) = pid {
            self.watch_pod(&sandbox, pid);
        }
        failpoint::hit("cri.pod");
        Ok(())
    }

    /// Takes down what there is of a pod that could not be made.
    async fn unmake_pod(&self, id: &str) {
        if let Err(error) = self.end_pod(id).await {
            tracing::warn!(id, %error, "end the shim of a pod that could not be made");
        }
        if let Err(error) = self.shared.cni.disconnect(id).await {
            tracing::warn!(id, %error, "take back the network of a pod that could not be made");
        }
        let places = self.places(id);
        if let Err(error) = blocking(move || places.unmake().and_then(|()| places.remove())).await {
            tracing::warn!(id, %error, "remove a pod that could not be made");
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
        let mut sysctls = Vec::new();
        if !namespaces.host_network {
            let defaults = rung_spec::defaults::NETWORK_SYSCTLS.iter();
            let wanted = defaults.filter(|(name, _)| match name.ends_with("ping_group_range") {
                // The range has groups in it that a user namespace does not know.
                true => self.config().unprivileged_icmp && namespaces.user.is_none(),
                false => self.config().unprivileged_ports,
            });
            sysctls.extend(wanted.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        }
        sysctls.extend(config.linux.iter().flat_map(|linux| linux.sysctls.clone()));
        Wishes {
            bound: kinds.into_iter().map(|kind| (kind, places.namespace(kind))).collect(),
            user: namespaces.user.clone(),
            hostname,
            sysctls,
        }
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
