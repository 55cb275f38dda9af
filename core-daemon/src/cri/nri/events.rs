//! What happens to pods and containers, told to plugins, and what they make of it.
//!
//! Pods, containers and limits are not made where a plugin refuses. What has happened already is only told; a plugin that
//! refuses that is named in the log.

use std::sync::Arc;

use gantry_proto::gantry::cri::v1::{ContainerRecord, SandboxRecord};
use gantry_proto::nri::pkg::api::v1alpha1 as api;
use gantry_proto::nri::pkg::api::v1alpha1::Event;
use gantry_proto::runtime::v1;
use oci_spec::runtime::{LinuxResources, Spec};
use prost::Message as _;

use super::merge::{Creation, Updates};
use super::plugin::Subject;
use super::{Told, Window, apply, merge, message, subject, validate};
use crate::cri::{Container, Cri, Sandbox};
use crate::error::{Doing as _, Error, Result};
use crate::image::Resolved;

/// A container that is about to be made.
pub(in crate::cri) struct Making<'a> {
    pub(in crate::cri) id: &'a str,
    pub(in crate::cri) sandbox: &'a Sandbox,
    pub(in crate::cri) image: &'a Resolved,
}

/// Whom plugins want changed besides what they were asked about.
#[derive(Debug, Default)]
pub(in crate::cri) struct Others {
    updates: Vec<api::ContainerUpdate>,
    evictions: Vec<api::ContainerEviction>,
}

/// Limits as plugins want them changed.
#[derive(Debug, Default)]
pub(in crate::cri) struct Limits(pub(super) api::LinuxResources);

impl Cri {
    /// A pod is made, but not stored yet.
    ///
    /// # Errors
    /// A plugin's refusal; all plugins are told that the pod is gone then.
    pub(in crate::cri) async fn nri_run_pod(
        &self,
        window: &Window,
        id: &str,
        record: &SandboxRecord,
        pid: Option<u32>,
    ) -> Result<()> {
        if window.is_empty() {
            return Ok(());
        }
        self.nri().told().insert(id.to_owned(), Told::Live);
        let subject = Subject { pod: self.nri_pod(id, record, pid), container: None };
        let told = self.nri_tell(window, Event::RunPodSandbox, &subject).await;
        if told.is_err() {
            self.nri_forget_pod(window, id, record, pid).await;
        }
        told
    }

    /// A pod that plugins were told of could not be stored.
    pub(in crate::cri) async fn nri_forget_pod(
        &self,
        window: &Window,
        id: &str,
        record: &SandboxRecord,
        pid: Option<u32>,
    ) {
        if window.is_empty() || self.nri().told().remove(id).is_none() {
            return;
        }
        let subject = Subject { pod: self.nri_pod(id, record, pid), container: None };
        self.nri_note(window, Event::StopPodSandbox, &subject).await;
        self.nri_note(window, Event::RemovePodSandbox, &subject).await;
    }

    /// A pod and its containers have stopped; its network is there still. Told once.
    pub(in crate::cri) async fn nri_stop_pod(&self, sandbox: &Sandbox) {
        let window = self.nri_window().await;
        self.nri_stop_pod_in(&window, sandbox).await;
    }

    async fn nri_stop_pod_in(&self, window: &Window, sandbox: &Sandbox) {
        let id = sandbox.id().as_str();
        let is_live = match self.nri().told().get_mut(id) {
            Some(told) => std::mem::replace(told, Told::Stopped) == Told::Live,
            None => false,
        };
        if is_live && !window.idle(Event::StopPodSandbox) {
            let subject = Subject { pod: self.nri_pod(id, &sandbox.record(), sandbox.pid()), container: None };
            self.nri_note(window, Event::StopPodSandbox, &subject).await;
        }
    }

    /// A pod is about to be removed.
    pub(in crate::cri) async fn nri_remove_pod(&self, window: &Window, sandbox: &Sandbox) {
        if window.is_empty() {
            return;
        }
        self.nri_stop_pod_in(window, sandbox).await;
        let id = sandbox.id().as_str();
        if self.nri().told().remove(id).is_some() && !window.idle(Event::RemovePodSandbox) {
            let subject = Subject { pod: self.nri_pod(id, &sandbox.record(), sandbox.pid()), container: None };
            self.nri_note(window, Event::RemovePodSandbox, &subject).await;
        }
    }

    /// What a pod may use is about to change.
    ///
    /// # Errors
    /// A plugin's refusal.
    pub(in crate::cri) async fn nri_update_pod(
        &self,
        window: &Window,
        sandbox: &Sandbox,
        request: &v1::UpdatePodSandboxResourcesRequest,
    ) -> Result<()> {
        if window.idle(Event::UpdatePodSandbox) {
            return Ok(());
        }
        let request = api::UpdatePodSandboxRequest {
            pod: Some(self.nri_pod(sandbox.id().as_str(), &sandbox.record(), sandbox.pid())),
            overhead_linux_resources: request.overhead.as_ref().map(message::wanted_resources),
            linux_resources: request.resources.as_ref().map(message::wanted_resources),
        };
        let request = request.encode_to_vec();
        let _turn = self.nri().turn.lock().await;
        for plugin in window.plugins.iter() {
            let _: Option<api::UpdatePodSandboxResponse> = plugin.ask(Event::UpdatePodSandbox, &request).await?;
        }
        Ok(())
    }

    /// What a pod may use has changed.
    pub(in crate::cri) async fn nri_pod_updated(&self, window: &Window, sandbox: &Sandbox) {
        if !window.idle(Event::PostUpdatePodSandbox) {
            let pod = self.nri_pod(sandbox.id().as_str(), &sandbox.record(), sandbox.pid());
            self.nri_note(window, Event::PostUpdatePodSandbox, &Subject { pod, container: None }).await;
        }
    }

    /// A container is made, but not stored yet: plugins may change its configuration, and the limits that are reported.
    ///
    /// # Errors
    /// A plugin's refusal, or what is wrong with the changes; all plugins are told that the container is gone then.
    pub(in crate::cri) async fn nri_create(
        &self,
        window: &Window,
        making: &Making<'_>,
        record: &mut ContainerRecord,
        spec: &mut Spec,
    ) -> Result<Others> {
        if window.is_empty() && !self.nri().settings.validator.enable {
            return Ok(Others::default());
        }
        if !window.is_empty() {
            self.nri().told().insert(making.id.to_owned(), Told::Live);
        }
        let created = self.nri_change(window, making, record, spec).await;
        if created.is_err() {
            self.nri_forget(window, making, record, spec).await;
        }
        created
    }

    async fn nri_change(
        &self,
        window: &Window,
        making: &Making<'_>,
        record: &mut ContainerRecord,
        spec: &mut Spec,
    ) -> Result<Others> {
        let (pod, container) = (self.nri_pod_of(making.sandbox.id().as_str()), shown(making, record, spec));
        let before = (pod.clone(), container.clone());
        let mut creation = Creation::new(api::CreateContainerRequest { pod: Some(pod), container: Some(container) });
        let created = {
            let _turn = self.nri().turn.lock().await;
            for plugin in window.plugins.iter() {
                let request = creation.shown.encode_to_vec();
                if let Some(answer) = plugin.ask(Event::CreateContainer, &request).await? {
                    creation.add(answer, &plugin.name.to_string())?;
                }
            }
            let created = creation.done();
            self.nri_validate(window, before, &created).await?;
            created
        };
        if created.adjust != api::ContainerAdjustment::default() {
            apply::adjust(spec, &created.adjust, &self.config()).doing(|| "what plugins want of it")?;
            let linux = created.adjust.linux.unwrap_or_default();
            if let Some(limits) = &linux.resources {
                message::to_wanted(limits, record.resources.get_or_insert_default());
            }
            if let Some(score) = &linux.oom_score_adj {
                record.resources.get_or_insert_default().oom_score_adj = score.value;
            }
        }
        Ok(Others { updates: created.updates, evictions: created.evictions })
    }

    /// Asks those who decide whether the changes may be.
    async fn nri_validate(
        &self,
        window: &Window,
        (pod, container): (api::PodSandbox, api::Container),
        created: &merge::Created,
    ) -> Result<()> {
        let settings = &self.nri().settings.validator;
        if window.idle(Event::ValidateContainerAdjustment) && !settings.enable {
            return Ok(());
        }
        let instance = |plugin: &Arc<super::Plugin>| api::PluginInstance {
            name: plugin.name.base.clone(),
            index: plugin.name.index.clone(),
        };
        let request = api::ValidateContainerAdjustmentRequest {
            pod: Some(pod),
            container: Some(container),
            adjust: Some(created.adjust.clone()),
            update: created.updates.clone(),
            owners: Some(created.owners.clone()),
            plugins: window.plugins.iter().map(instance).collect(),
        };
        if settings.enable {
            validate::check(settings, &request)?;
        }
        let bytes = request.encode_to_vec();
        for plugin in window.plugins.iter() {
            let event = Event::ValidateContainerAdjustment;
            let answer: Option<api::ValidateContainerAdjustmentResponse> = plugin.ask(event, &bytes).await?;
            if let Some(answer) = answer.filter(|answer| answer.reject) {
                let reason = if answer.reason.is_empty() { "it says not why" } else { &answer.reason };
                return Err(Error::refused(format!("plugin {} does not allow the changes: {reason}", plugin.name)));
            }
        }
        Ok(())
    }

    /// A container that plugins were told of could not be stored.
    pub(in crate::cri) async fn nri_forget(
        &self,
        window: &Window,
        making: &Making<'_>,
        record: &ContainerRecord,
        spec: &Spec,
    ) {
        if window.is_empty() || self.nri().told().remove(making.id).is_none() {
            return;
        }
        let pod = self.nri_pod_of(making.sandbox.id().as_str());
        let subject = Subject { pod, container: Some(shown(making, record, spec)) };
        self.nri_tell_stop(window, &subject).await;
        self.nri_note(window, Event::RemoveContainer, &subject).await;
    }

    /// A container is stored. The window need not be open any more.
    pub(in crate::cri) async fn nri_created(&self, mut window: Window, container: &Arc<Container>, others: Others) {
        window.close();
        self.nri_note_container(&window, Event::PostCreateContainer, container).await;
        if !others.updates.is_empty() || !others.evictions.is_empty() {
            self.nri_apply("create", others.updates, others.evictions).await;
        }
    }

    /// A container is about to be started.
    ///
    /// # Errors
    /// A plugin's refusal.
    pub(in crate::cri) async fn nri_start(&self, window: &Window, container: &Arc<Container>) -> Result<()> {
        if window.idle(Event::StartContainer) {
            return Ok(());
        }
        let subject = self.nri_subject(container).await?;
        self.nri_tell(window, Event::StartContainer, &subject).await
    }

    /// A container is started.
    pub(in crate::cri) async fn nri_started(&self, mut window: Window, container: &Arc<Container>) {
        window.close();
        self.nri_note_container(&window, Event::PostStartContainer, container).await;
    }

    /// A container has ended. Told once.
    pub(in crate::cri) async fn nri_stopped(&self, container: &Arc<Container>) {
        let window = self.nri_window().await;
        self.nri_stopped_in(&window, container).await;
    }

    async fn nri_stopped_in(&self, window: &Window, container: &Arc<Container>) {
        if window.is_empty() {
            return;
        }
        // Whoever comes second waits until plugins have been told.
        let turn = self.nri().turn.lock().await;
        let is_live = match self.nri().told().get_mut(container.id().as_str()) {
            Some(told) => std::mem::replace(told, Told::Stopped) == Told::Live,
            None => false,
        };
        if !is_live || window.idle(Event::StopContainer) {
            return;
        }
        match self.nri_subject(container).await {
            Ok(subject) => self.nri_tell_stop_now(window, &subject).await,
            Err(error) => tracing::warn!(id = %container.id(), %error, "tell plugins of the end of a container"),
        }
        drop(turn);
    }

    /// A container is about to be removed.
    pub(in crate::cri) async fn nri_remove(&self, window: &Window, container: &Arc<Container>) {
        if window.is_empty() {
            return;
        }
        self.nri_stopped_in(window, container).await;
        if self.nri().told().remove(container.id().as_str()).is_some() {
            self.nri_note_container(window, Event::RemoveContainer, container).await;
        }
    }

    /// A container's limits are about to change, by what `wanted` says, which plugins may change.
    ///
    /// # Errors
    /// A plugin's refusal.
    pub(in crate::cri) async fn nri_update(
        &self,
        window: &Window,
        container: &Arc<Container>,
        wanted: &mut v1::LinuxContainerResources,
    ) -> Result<(Limits, Others)> {
        if window.idle(Event::UpdateContainer) {
            return Ok(Default::default());
        }
        let subject = self.nri_subject(container).await?;
        let mut request = api::UpdateContainerRequest {
            pod: Some(subject.pod),
            container: subject.container,
            linux_resources: Some(message::wanted_resources(wanted)),
        };
        let (id, mut updates) = (container.id().as_str(), Updates::default());
        let turn = self.nri().turn.lock().await;
        for plugin in window.plugins.iter() {
            let answer: Option<api::UpdateContainerResponse> =
                plugin.ask(Event::UpdateContainer, &request.encode_to_vec()).await?;
            let Some(answer) = answer else { continue };
            for update in answer.update {
                updates.add(update, &plugin.name.to_string())?;
            }
            updates.evict(answer.evict);
            if let Some(own) = updates.of(id) {
                merge::lay_over(request.linux_resources.get_or_insert_default(), own);
            }
        }
        drop(turn);
        let own = updates.of(id).cloned().unwrap_or_default();
        message::to_wanted(&own, wanted);
        let (updates, evictions) = updates.of_others(id);
        Ok((Limits(own), Others { updates, evictions }))
    }

    /// A container's limits have changed.
    pub(in crate::cri) async fn nri_updated(&self, window: &Window, container: &Arc<Container>) {
        self.nri_note_container(window, Event::PostUpdateContainer, container).await;
    }

    /// Changes the others whom plugins want changed. Nobody may have the turn of any of them.
    pub(in crate::cri) async fn nri_change_others(&self, others: Others) {
        if !others.updates.is_empty() || !others.evictions.is_empty() {
            self.nri_apply("update", others.updates, others.evictions).await;
        }
    }

    /// The limits that the runtime is told, with what plugins say of them.
    ///
    /// # Errors
    /// `InvalidArgument` naming what cannot be.
    pub(in crate::cri) fn nri_limits(&self, told: &mut LinuxResources, limits: &Limits) -> Result<()> {
        let fields = [("rdt_class", limits.0.rdt_class.is_some()), ("devices", !limits.0.devices.is_empty())];
        if let Some((field, _)) = fields.iter().find(|(_, is_said)| *is_said) {
            let text = format!("linux.resources.{field}: cannot be changed of a container that is made");
            return Err(Error::unimplemented(text));
        }
        apply::lay_over_resources(told, &limits.0, &self.config())
    }

    async fn nri_note_container(&self, window: &Window, event: Event, container: &Arc<Container>) {
        if window.idle(event) {
            return;
        }
        match self.nri_subject(container).await {
            Ok(subject) => self.nri_note(window, event, &subject).await,
            Err(error) => tracing::warn!(id = %container.id(), %error, "tell plugins of a container"),
        }
    }

    /// Tells all plugins, up to the first that refuses.
    async fn nri_tell(&self, window: &Window, event: Event, subject: &Subject) -> Result<()> {
        let request = subject.request();
        let _turn = self.nri().turn.lock().await;
        for plugin in window.plugins.iter() {
            plugin.tell(event, subject, &request).await?;
        }
        Ok(())
    }

    /// Tells all plugins what has happened already.
    async fn nri_note(&self, window: &Window, event: Event, subject: &Subject) {
        let request = subject.request();
        let _turn = self.nri().turn.lock().await;
        for plugin in window.plugins.iter() {
            if let Err(error) = plugin.tell(event, subject, &request).await {
                tracing::warn!(%error, "plugin of the node resource interface");
            }
        }
    }

    async fn nri_tell_stop(&self, window: &Window, subject: &Subject) {
        let _turn = self.nri().turn.lock().await;
        self.nri_tell_stop_now(window, subject).await;
    }

    /// The same of a container's end, to which plugins may answer with changes of others. Whoever calls this has the turn.
    async fn nri_tell_stop_now(&self, window: &Window, subject: &Subject) {
        let (request, mut updates) = (subject.request(), Updates::default());
        for plugin in window.plugins.iter() {
            match plugin.ask::<api::StopContainerResponse>(Event::StopContainer, &request).await {
                Ok(Some(answer)) => {
                    let added =
                        answer.update.into_iter().try_for_each(|update| updates.add(update, &plugin.name.to_string()));
                    if let Err(error) = added {
                        tracing::warn!(%error, "plugin of the node resource interface");
                    }
                }
                Ok(None) => {}
                Err(error) => tracing::warn!(%error, "plugin of the node resource interface"),
            }
        }
        let (updates, evictions) = updates.of_others("");
        self.nri_apply_later("stop".to_owned(), updates, evictions);
    }

    /// Plugins know of all pods, and of these containers.
    pub(super) fn nri_is_told(&self, containers: Vec<String>) {
        let mut told = self.nri().told();
        for pod in self.store().sandboxes() {
            let state = if pod.record().stopped { Told::Stopped } else { Told::Live };
            told.entry(pod.id().to_string()).or_insert(state);
        }
        for id in containers {
            told.entry(id).or_insert(Told::Live);
        }
    }
}

/// What plugins are told of a container that is not stored yet.
fn shown(making: &Making<'_>, record: &ContainerRecord, spec: &Spec) -> api::Container {
    api::Container {
        image: Some(api::Image {
            name: making.image.name.clone(),
            digest: making.image.target.digest.to_string(),
            config_digest: making.image.config_digest.to_string(),
        }),
        ..subject::described(making.id, record, spec)
    }
}
