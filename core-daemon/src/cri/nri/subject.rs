//! What plugins are told of pods and containers: what the records say.

use std::collections::BTreeMap;
use std::sync::Arc;

use gantry_proto::gantry::cri::v1::{ContainerRecord, SandboxRecord};
use gantry_proto::nri::pkg::api::v1alpha1 as api;
use gantry_proto::runtime::v1;
use oci_spec::runtime::Spec;
use rung_sys::namespace::Namespace;

use super::message;
use super::plugin::Subject;
use crate::blocking::blocking;
use crate::cri::{Container, Cri, labels, spec};
use crate::error::{Doing as _, Error, Kind, Result};

impl Cri {
    /// A pod, which need not be in the store.
    pub(super) fn nri_pod(&self, id: &str, record: &SandboxRecord, pid: Option<u32>) -> api::PodSandbox {
        let config = record.config.clone().unwrap_or_default();
        let metadata = config.metadata.clone().unwrap_or_default();
        let linux = config.linux.clone().unwrap_or_default();
        let mut annotations = config.annotations.clone();
        if let Ok(handler) = self.config().handler(&record.runtime_handler) {
            annotations.extend(spec::sandbox_annotations(id, &config, handler));
        }
        let places = self.places(id);
        let kinds = [("network", Namespace::Network), ("uts", Namespace::Uts), ("ipc", Namespace::Ipc)];
        let kinds = kinds.into_iter().chain([("user", Namespace::User)]);
        let namespaces = kinds.map(|(name, kind)| (name, places.namespace(kind))).filter(|(_, path)| path.exists());
        let cgroup = record.has_shim.then(|| spec::cgroup_of(self.config().cgroup_driver, &config, id));
        api::PodSandbox {
            id: id.to_owned(),
            name: metadata.name,
            uid: metadata.uid,
            namespace: metadata.namespace,
            labels: all_labels(&config.labels, labels::SANDBOX),
            annotations,
            runtime_handler: record.runtime_handler.clone(),
            linux: Some(api::LinuxPodSandbox {
                pod_overhead: record.overhead.as_ref().map(message::wanted_resources),
                pod_resources: record.resources.as_ref().map(message::wanted_resources),
                cgroup_parent: linux.cgroup_parent,
                cgroups_path: cgroup.as_ref().map(message::text).unwrap_or_default(),
                namespaces: namespaces
                    .map(|(name, path)| api::LinuxNamespace { r#type: name.to_owned(), path: message::text(&path) })
                    .collect(),
                resources: None,
            }),
            pid: pid.unwrap_or_default(),
            ips: record.network.iter().flat_map(|network| network.addresses.clone()).collect(),
        }
    }

    /// A pod by its id, or as much as is known of one that is gone.
    pub(super) fn nri_pod_of(&self, id: &str) -> api::PodSandbox {
        match self.store().sandbox(id) {
            Ok(sandbox) => self.nri_pod(id, &sandbox.record(), sandbox.pid()),
            Err(_) => api::PodSandbox { id: id.to_owned(), ..api::PodSandbox::default() },
        }
    }

    /// A container and its pod, as they are now.
    pub(super) async fn nri_subject(&self, container: &Arc<Container>) -> Result<Subject> {
        let (cri, container) = (self.clone(), container.clone());
        blocking(move || {
            let pod = cri.nri_pod_of(&container.record().sandbox_id);
            Ok(Subject { pod, container: Some(cri.nri_container(&container)?) })
        })
        .await
    }

    /// All pods, and the containers that have not ended.
    pub(super) async fn nri_everything(&self) -> Result<(Vec<api::PodSandbox>, Vec<api::Container>)> {
        let cri = self.clone();
        blocking(move || {
            let pods = cri.store().sandboxes();
            let pods = pods.iter().map(|pod| cri.nri_pod(pod.id().as_str(), &pod.record(), pod.pid())).collect();
            let mut containers = Vec::new();
            for container in cri.store().containers() {
                use v1::ContainerState::{ContainerCreated, ContainerRunning};
                if !matches!(container.state(), ContainerCreated | ContainerRunning) {
                    continue;
                }
                match cri.nri_container(&container) {
                    Ok(container) => containers.push(container),
                    Err(error) if error.kind() == Kind::NotFound => {}
                    Err(error) => return Err(error.context(format!("container {}", container.id()))),
                }
            }
            Ok((pods, containers))
        })
        .await
    }

    /// What the record of a container says; it waits for the disk.
    fn nri_container(&self, container: &Container) -> Result<api::Container> {
        let stored = self.parts().containers.get(&self.context().namespace, container.id())?;
        let document = stored.spec.as_ref().map(|spec| spec.value.as_slice()).unwrap_or_default();
        let spec: Spec = serde_json::from_slice(document)
            .map_err(|error| Error::internal(error.to_string()))
            .doing(|| "configuration")?;
        let record = container.record();
        let end = record.end.clone().unwrap_or_default();
        let names = self.image_names();
        let digest = names.digest(&record.image_id).and_then(|name| Some(name.split_once('@')?.1.to_owned()));
        Ok(api::Container {
            state: state(container.state()).into(),
            pid: container.task().map_or(0, |task| task.pid()),
            created_at: record.created_at,
            started_at: container.started_at(),
            finished_at: end.finished_at,
            exit_code: end.exit_code,
            status_reason: end.reason,
            status_message: end.message,
            image: Some(api::Image {
                name: stored.image,
                digest: digest.unwrap_or_default(),
                config_digest: record.image_id.clone(),
            }),
            ..described(container.id().as_str(), &record, &spec)
        })
    }
}

/// What is known of a container from its making on.
pub(super) fn described(id: &str, record: &ContainerRecord, spec: &Spec) -> api::Container {
    let config = record.config.clone().unwrap_or_default();
    let mut told = message::container(spec);
    told.id = id.to_owned();
    told.pod_sandbox_id.clone_from(&record.sandbox_id);
    told.name = config.metadata.map(|metadata| metadata.name).unwrap_or_default();
    told.labels = all_labels(&config.labels, labels::CONTAINER);
    told.annotations.extend(config.annotations);
    told.cdi_devices = config.cdi_devices.iter().map(|device| api::CdiDevice { name: device.name.clone() }).collect();
    let context = config.linux.and_then(|linux| linux.security_context);
    let profile = context.and_then(|context| context.seccomp);
    if let Some(linux) = &mut told.linux {
        linux.seccomp_profile = profile.map(|profile| api::SecurityProfile {
            profile_type: profile.profile_type,
            localhost_ref: profile.localhost_ref,
        });
    }
    told
}

fn all_labels(wanted: &BTreeMap<String, String>, kind: &str) -> BTreeMap<String, String> {
    let mut all: BTreeMap<String, String> = labels::of(wanted, kind).into_iter().collect();
    all.extend(wanted.clone());
    all
}

fn state(state: v1::ContainerState) -> api::ContainerState {
    match state {
        v1::ContainerState::ContainerCreated => api::ContainerState::ContainerCreated,
        v1::ContainerState::ContainerRunning => api::ContainerState::ContainerRunning,
        v1::ContainerState::ContainerExited => api::ContainerState::ContainerStopped,
        v1::ContainerState::ContainerUnknown => api::ContainerState::ContainerUnknown,
    }
}
