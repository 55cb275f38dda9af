//! How a pod is.

use gantry_proto::any;
use gantry_proto::containerd::runc::v1::Options as RuncOptions;
use gantry_proto::containerd::services::containers::v1::container;
use gantry_proto::gantry::cri::v1::SandboxRecord;
use gantry_proto::runtime::v1;
use oci_spec::runtime::Spec;
use rung_sys::namespace::Namespace;
use serde_json::{Value, json};

use super::check;
use crate::blocking::blocking;
use crate::config::RuntimeHandler;
use crate::cri::container::status_of;
use crate::cri::granted::namespace_options;
use crate::cri::selinux::Labels;
use crate::cri::shown::shown;
use crate::cri::{Cri, Sandbox};
use crate::error::Result;
use crate::net::namespaces::is_bound;

impl Cri {
    pub(in crate::cri) async fn pod_sandbox_status(
        &self,
        request: v1::PodSandboxStatusRequest,
    ) -> Result<v1::PodSandboxStatusResponse> {
        let sandbox = self.store().sandbox(&request.pod_sandbox_id)?;
        let containers = self.store().containers_of(sandbox.id().as_str());
        let mut info = std::collections::BTreeMap::new();
        if request.verbose {
            let (cri, looked) = (self.clone(), sandbox.clone());
            info.insert("info".to_owned(), blocking(move || cri.sandbox_info(&looked)).await?);
        }
        let names = self.names_of_images().await;
        Ok(v1::PodSandboxStatusResponse {
            status: Some(sandbox_status(&sandbox)),
            info,
            containers_statuses: containers.iter().map(|container| status_of(container, &names)).collect(),
            timestamp: crate::cri::store::now(),
        })
    }

    /// What people look at; it waits for the disk.
    fn sandbox_info(&self, sandbox: &Sandbox) -> Result<String> {
        let (id, record, places) = (sandbox.id().as_str(), sandbox.record(), self.places(sandbox.id().as_str()));
        let namespace = |kind: Namespace| {
            let path = places.namespace(kind);
            path.exists().then(|| path.display().to_string())
        };
        // A handler may be gone from the configuration.
        let settings = self.config();
        let handler = settings.handler(&record.runtime_handler).ok();
        let runtime = handler.map(|handler| self.runtime(handler, None));
        let limits = |limits: &Option<v1::LinuxContainerResources>| {
            limits.as_ref().map(|limits| json!({"linux": shown(limits)}))
        };
        let config = record.config.as_ref().map(shown);
        let result = self.shared.cni.describe_container(id)?;
        Ok(json!({
            "pid": sandbox.pid().unwrap_or(0),
            "processStatus": if sandbox.pid().is_some() { "running" } else { "deleted" },
            "netNamespaceClosed": record.network.is_some() && !is_bound(&places.namespace(Namespace::Network)),
            "runtimeHandler": record.runtime_handler,
            "runtimeType": runtime.as_ref().map(|runtime| runtime.name.clone()).unwrap_or_default(),
            "runtimeOptions": runtime.as_ref().and_then(options_json),
            "config": config,
            "runtimeSpec": handler.map(|handler| self.sandbox_spec(id, &record, handler)).transpose()?,
            "cniResult": result,
            "sandboxMetadata": self.sandbox_metadata(id, &record, &result),
            "overhead": limits(&record.overhead),
            "resources": limits(&record.resources),
            "directory": places.dir(),
            "ipcNamespace": namespace(Namespace::Ipc),
            "utsNamespace": namespace(Namespace::Uts),
            "userNamespace": namespace(Namespace::User),
        })
        .to_string())
    }

    /// What is known of a pod as containerd keeps it, and its tools read it. `result` is what the network's plugins said.
    pub(super) fn sandbox_metadata(&self, id: &str, record: &SandboxRecord, result: &Value) -> Value {
        let addresses = record.network.iter().flat_map(|network| &network.addresses);
        let network = self.places(id).namespace(Namespace::Network);
        let network = if network.exists() { network.display().to_string() } else { String::new() };
        json!({
            "Version": "v1",
            "Metadata": {
                "ID": id,
                "Name": record.name,
                "Config": record.config.as_ref().map(shown),
                "RuntimeHandler": record.runtime_handler,
                "NetNSPath": network,
                "IP": addresses.clone().next(),
                "AdditionalIPs": addresses.skip(1).collect::<Vec<_>>(),
                "CNIResult": result,
                "ProcessLabel": record.process_label,
            },
        })
    }

    /// The configuration of the pod's process. A pod without one has its namespaces all the same.
    fn sandbox_spec(&self, id: &str, record: &SandboxRecord, handler: &RuntimeHandler) -> Result<Spec> {
        let (mut spec, has_process) = self.spec_of_pod(id, record, handler)?;
        if !has_process {
            spec.set_process(None).set_mounts(None).set_root(None);
            if let Some(linux) = spec.linux_mut() {
                linux.set_cgroups_path(None);
            }
        }
        Ok(spec)
    }

    /// The same with the process that there would be, and whether there is one.
    pub(super) fn spec_of_pod(
        &self,
        id: &str,
        record: &SandboxRecord,
        handler: &RuntimeHandler,
    ) -> Result<(Spec, bool)> {
        let config = record.config.clone().unwrap_or_default();
        let namespaces = check::namespaces(namespace_options(record).as_ref())?;
        let labels = Labels { process: record.process_label.clone(), mount: record.mount_label.clone() };
        let mut spec = self.pause(id, &config, handler, &namespaces, &labels);
        let has_process = namespaces.pid == v1::NamespaceMode::Pod;
        if !has_process {
            if let Some(linux) = spec.linux_mut() {
                let bound = linux.namespaces().iter().flatten().filter(|one| one.path().is_some()).cloned().collect();
                linux.set_namespaces(Some(bound));
            }
            return Ok((spec, false));
        }
        // A file of a profile may be gone by now, or an artifact.
        let profile = self.profile_of_pod_here(&record.runtime_handler, &config);
        let confined = profile.and_then(|profile| self.confine(&mut spec, &config, profile.as_deref()));
        if let Err(error) = confined {
            tracing::debug!(id, %error, "read the filter of a pod's process");
        }
        Ok((spec, true))
    }
}

/// The options of a runtime, under their names in its configuration.
pub(in crate::cri) fn options_json(runtime: &container::Runtime) -> Option<Value> {
    let options: RuncOptions = any::unpack(runtime.options.as_ref()?).ok()?;
    Some(json!({"BinaryName": options.binary_name, "SystemdCgroup": options.systemd_cgroup}))
}

/// How a sandbox is, as this interface says it.
pub(in crate::cri) fn sandbox_status(sandbox: &Sandbox) -> v1::PodSandboxStatus {
    let record = sandbox.record();
    let config = record.config.clone().unwrap_or_default();
    let options = namespace_options(&record).unwrap_or_default();
    let ready = sandbox.state() == v1::PodSandboxState::SandboxReady;
    let mut addresses = record.network.iter().filter(|_| ready).flat_map(|network| network.addresses.clone());
    v1::PodSandboxStatus {
        id: sandbox.id().to_string(),
        metadata: config.metadata,
        state: sandbox.state().into(),
        created_at: record.created_at,
        network: Some(v1::PodSandboxNetworkStatus {
            ip: addresses.next().unwrap_or_default(),
            additional_ips: addresses.map(|ip| v1::PodIp { ip }).collect(),
        }),
        linux: Some(v1::LinuxPodSandboxStatus { namespaces: Some(v1::Namespace { options: Some(options) }) }),
        labels: config.labels,
        annotations: config.annotations,
        runtime_handler: record.runtime_handler.clone(),
    }
}
