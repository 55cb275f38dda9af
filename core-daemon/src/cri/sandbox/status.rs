//! How a pod is.

use gantry_proto::runtime::v1;
use serde_json::{Value, json};

use crate::blocking::blocking;
use crate::cri::container::status_of;
use crate::cri::{Cri, Sandbox};
use crate::error::Result;

impl Cri {
    pub(in crate::cri) async fn pod_sandbox_status(
        &self,
        request: v1::PodSandboxStatusRequest,
    ) -> Result<v1::PodSandboxStatusResponse> {
        let sandbox = self.store().sandbox(&request.pod_sandbox_id)?;
        let containers = self.store().containers_of(sandbox.id().as_str());
        let mut info = std::collections::BTreeMap::new();
        if request.verbose {
            info.insert("info".to_owned(), self.sandbox_info(&sandbox));
        }
        let cri = self.clone();
        let names = blocking(move || Ok(cri.image_names())).await?;
        Ok(v1::PodSandboxStatusResponse {
            status: Some(sandbox_status(&sandbox)),
            info,
            containers_statuses: containers.iter().map(|container| status_of(container, &names)).collect(),
            timestamp: crate::cri::store::now(),
        })
    }

    fn sandbox_info(&self, sandbox: &Sandbox) -> String {
        let (record, places) = (sandbox.record(), self.places(sandbox.id().as_str()));
        let namespace = |kind: rung_sys::namespace::Namespace| {
            let path = places.namespace(kind);
            path.exists().then(|| path.display().to_string())
        };
        let runtime = self.config().handler(&record.runtime_handler).map(|handler| self.runtime(handler, None));
        let limits = |limits: &Option<v1::LinuxContainerResources>| limits.as_ref().map(limits_json);
        json!({
            "pid": sandbox.pid().unwrap_or(0),
            "runtimeHandler": record.runtime_handler,
            "runtimeType": runtime.map(|runtime| runtime.name).unwrap_or_default(),
            "overhead": limits(&record.overhead),
            "resources": limits(&record.resources),
            "directory": places.dir(),
            "networkNamespace": namespace(rung_sys::namespace::Namespace::Network),
            "ipcNamespace": namespace(rung_sys::namespace::Namespace::Ipc),
            "utsNamespace": namespace(rung_sys::namespace::Namespace::Uts),
            "userNamespace": namespace(rung_sys::namespace::Namespace::User),
            "networkClosed": record.network.as_ref().is_some_and(|network| network.removed),
            "addresses": record.network.as_ref().map(|network| &network.addresses),
        })
        .to_string()
    }
}

/// Limits, under their names in this interface; those that are not set are left out.
fn limits_json(limits: &v1::LinuxContainerResources) -> Value {
    let hugepages: Vec<Value> = limits
        .hugepage_limits
        .iter()
        .map(|limit| json!({"page_size": limit.page_size, "limit": limit.limit}))
        .collect();
    let mut all = json!({
        "cpu_period": limits.cpu_period,
        "cpu_quota": limits.cpu_quota,
        "cpu_shares": limits.cpu_shares,
        "memory_limit_in_bytes": limits.memory_limit_in_bytes,
        "oom_score_adj": limits.oom_score_adj,
        "cpuset_cpus": limits.cpuset_cpus,
        "cpuset_mems": limits.cpuset_mems,
        "hugepage_limits": hugepages,
        "unified": limits.unified,
        "memory_swap_limit_in_bytes": limits.memory_swap_limit_in_bytes,
    });
    if let Some(all) = all.as_object_mut() {
        let unset = [json!(0), json!(""), json!([]), json!({})];
        all.retain(|_, value| !unset.contains(value));
    }
    all
}

/// How a sandbox is, as this interface says it.
pub(in crate::cri) fn sandbox_status(sandbox: &Sandbox) -> v1::PodSandboxStatus {
    let record = sandbox.record();
    let config = record.config.clone().unwrap_or_default();
    let context = config.linux.and_then(|linux| linux.security_context);
    let options = context.and_then(|context| context.namespace_options).unwrap_or_default();
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
