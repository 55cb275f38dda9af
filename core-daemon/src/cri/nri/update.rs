//! Changes of containers that plugins ask for: limits, and that one is to end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use gantry_proto::nri::pkg::api::v1alpha1 as api;
use gantry_proto::runtime::v1;

use super::events::Limits;
use super::message;
use crate::cri::{Container, Cri};
use crate::error::{Error, Kind, Result};

/// How long a container may have its turn elsewhere.
const TURN: Duration = Duration::from_secs(10);

impl Cri {
    /// Makes the changes, and answers with those that failed. Nobody may have the turn of any of the containers. `who` asks for
    /// them.
    pub(super) async fn nri_apply(
        &self,
        who: &str,
        updates: Vec<api::ContainerUpdate>,
        evictions: Vec<api::ContainerEviction>,
    ) -> Vec<api::ContainerUpdate> {
        for eviction in evictions {
            let (id, reason) = (eviction.container_id.as_str(), eviction.reason.as_str());
            // One that is gone is as good as ended.
            let Some(container) = self.nri_find(id) else { continue };
            tracing::info!(plugin = who, id, reason, "plugin ends a container");
            if let Err(error) = self.stop_now(&container, 0).await {
                tracing::warn!(plugin = who, id, %error, "end a container for a plugin");
            }
        }
        let mut failed = Vec::new();
        for update in updates {
            let id = update.container_id.as_str();
            let Some(container) = self.nri_find(id) else { continue };
            let resources = update.linux.clone().and_then(|linux| linux.resources).unwrap_or_default();
            match self.nri_apply_one(&container, resources).await {
                Ok(()) => {}
                Err(error) if update.ignore_failure => {
                    tracing::debug!(plugin = who, id, %error, "update a container for a plugin");
                }
                Err(error) => {
                    tracing::warn!(plugin = who, id, %error, "update a container for a plugin");
                    failed.push(update);
                }
            }
        }
        failed
    }

    /// The same in the background.
    pub(super) fn nri_apply_later(
        &self,
        who: String,
        updates: Vec<api::ContainerUpdate>,
        evictions: Vec<api::ContainerEviction>,
    ) {
        if updates.is_empty() && evictions.is_empty() {
            return;
        }
        let cri = self.clone();
        tokio::spawn(async move { cri.nri_apply(&who, updates, evictions).await });
    }

    async fn nri_apply_one(&self, container: &Arc<Container>, resources: api::LinuxResources) -> Result<()> {
        let late = |_| Error::new(Kind::DeadlineExceeded, format!("it was busy for {TURN:?}"));
        let _turn = tokio::time::timeout(TURN, container.turn.lock()).await.map_err(late)?;
        let mut wanted = v1::LinuxContainerResources::default();
        message::to_wanted(&resources, &mut wanted);
        self.change_limits(container, &wanted, &Limits(resources), BTreeMap::new()).await
    }

    /// The container with exactly this id.
    fn nri_find(&self, id: &str) -> Option<Arc<Container>> {
        self.store().container(id).ok().filter(|container| container.id().as_str() == id)
    }
}
