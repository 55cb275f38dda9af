//! The container and the task that clients of containerd look for under a pod's id.

use gantry_proto::any;
use gantry_proto::containerd::services::containers::v1::{Container as Wire, container};
use gantry_proto::namespace::Namespace;
use gantry_proto::time;
use rung_spec::defaults;
use serde_json::json;

use crate::cri::{Cri, Sandbox, labels};
use crate::error::{Error, Result};
use crate::id::ContainerId;
use crate::records::Pods;

impl Pods for Cri {
    fn are_in(&self, namespace: &Namespace) -> bool {
        *namespace == self.context().namespace
    }

    fn has(&self, namespace: &Namespace, id: &ContainerId) -> bool {
        self.pod_with(namespace, id).is_some()
    }

    fn container(&self, namespace: &Namespace, id: &ContainerId) -> Result<Option<Wire>> {
        let Some(sandbox) = self.pod_with(namespace, id) else { return Ok(None) };
        self.filled(&sandbox, self.bare_container(&sandbox)).map(Some)
    }

    fn containers(&self, namespace: &Namespace, wanted: &dyn Fn(&Wire) -> bool) -> Result<Vec<Wire>> {
        if !self.are_in(namespace) {
            return Ok(Vec::new());
        }
        let all = self.store().sandboxes().into_iter().map(|sandbox| (self.bare_container(&sandbox), sandbox));
        all.filter(|(container, _)| wanted(container))
            .map(|(container, sandbox)| self.filled(&sandbox, container))
            .collect()
    }

    fn pid(&self, namespace: &Namespace, id: &ContainerId) -> Option<u32> {
        self.pod_with(namespace, id)?.pid_in_network()
    }

    fn pids(&self, namespace: &Namespace) -> Vec<(ContainerId, u32)> {
        if !self.are_in(namespace) {
            return Vec::new();
        }
        let pods = self.store().sandboxes();
        pods.iter().filter_map(|sandbox| Some((sandbox.id().clone(), sandbox.pid_in_network()?))).collect()
    }
}

impl Cri {
    fn pod_with(&self, namespace: &Namespace, id: &ContainerId) -> Option<std::sync::Arc<Sandbox>> {
        if !self.are_in(namespace) {
            return None;
        }
        // A part of an id names a pod only to clients of the container runtime interface.
        self.store().sandbox(id.as_str()).ok().filter(|sandbox| sandbox.id() == id)
    }

    /// All that filters look at.
    fn bare_container(&self, sandbox: &Sandbox) -> Wire {
        let record = sandbox.record();
        let runtime = match self.config().handler(&record.runtime_handler) {
            Ok(handler) => self.runtime(handler, None),
            // It is gone from the configuration.
            Err(_) => container::Runtime { name: self.parts().config.runtime.default.clone(), options: None },
        };
        let none = Default::default();
        let wanted = record.config.as_ref().map_or(&none, |config| &config.labels);
        let made = u64::try_from(record.created_at).unwrap_or(0);
        let made = Some(time::timestamp(std::time::UNIX_EPOCH + std::time::Duration::from_nanos(made)));
        Wire {
            id: sandbox.id().to_string(),
            labels: labels::of(wanted, labels::SANDBOX),
            runtime: Some(runtime),
            created_at: made,
            updated_at: made,
            ..Wire::default()
        }
    }

    /// The container with the rest.
    fn filled(&self, sandbox: &Sandbox, mut container: Wire) -> Result<Wire> {
        let (id, record) = (sandbox.id().as_str(), sandbox.record());
        // The keys of these values are in order, so that the answer is the same each time.
        let spec = match self.config().handler(&record.runtime_handler) {
            Ok(handler) => serde_json::to_value(self.spec_of_pod(id, &record, handler)?.0)
                .map_err(|error| Error::internal(format!("encode: {error}")))?,
            // Its handler is gone from the configuration. There are clients that end where there is none.
            Err(_) => json!({"ociVersion": defaults::OCI_VERSION, "process": {"env": [], "cwd": "/"}}),
        };
        container.spec = Some(any::json(any::SPEC, spec.to_string().into_bytes()));
        let result = self.shared.cni.describe_container(id)?;
        let metadata = self.sandbox_metadata(id, &record, &result);
        let metadata = any::json(labels::SANDBOX_METADATA_TYPE, metadata.to_string().into_bytes());
        container.extensions.insert(labels::SANDBOX_METADATA.to_owned(), metadata);
        Ok(container)
    }
}
