//! Pods as clients of containerd know them: under a pod's id there is a container and a task, which are the process that holds
//! the pod's namespaces. Here a pod has neither a record of that kind nor such a task; what clients see of them follows from
//! the pod itself, so that it cannot be wrong, and only who made the pod changes it.

use gantry_proto::containerd::services::containers::v1::Container;
use gantry_proto::namespace::Namespace;

use crate::error::{Error, Result};
use crate::id::ContainerId;

/// Those who know the pods.
pub trait Pods: Send + Sync {
    /// Whether pods are in this namespace, if there are any.
    fn are_in(&self, namespace: &Namespace) -> bool;

    /// Whether a pod has this id.
    fn has(&self, namespace: &Namespace, id: &ContainerId) -> bool;

    /// The container that a pod is; none without such a pod.
    ///
    /// # Errors
    /// When what is kept of its network cannot be read.
    fn container(&self, namespace: &Namespace, id: &ContainerId) -> Result<Option<Container>>;

    /// Those that `wanted` picks by all but their specification and extensions, by id.
    ///
    /// # Errors
    /// As of one of them.
    fn containers(&self, namespace: &Namespace, wanted: &dyn Fn(&Container) -> bool) -> Result<Vec<Container>>;

    /// Whose network, as `/proc` shows it, is the pod's; none where there is nobody, or no pod.
    fn pid(&self, namespace: &Namespace, id: &ContainerId) -> Option<u32>;

    /// All of those, by the pod's id.
    fn pids(&self, namespace: &Namespace) -> Vec<(ContainerId, u32)>;
}

/// The answer to who would change what follows from a pod.
pub fn refusal(id: &ContainerId) -> Error {
    Error::precondition(format!(
        "{id}: is a pod, which only the container runtime interface changes (crictl stopp, rmp)"
    ))
}
