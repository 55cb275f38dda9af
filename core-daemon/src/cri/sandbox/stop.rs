//! Stopping and removing pods. Each step may be repeated, and the record goes last.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::future::join_all;
use gantry_proto::runtime::v1;

use crate::blocking::blocking;
use crate::cri::{Container, Cri, Sandbox};
use crate::error::{Doing as _, Kind, Result};
use crate::failpoint;

impl Cri {
    pub(in crate::cri) async fn stop_pod_sandbox(
        &self,
        request: v1::StopPodSandboxRequest,
    ) -> Result<v1::StopPodSandboxResponse> {
        if let Some(sandbox) = self.sandbox_if_there(&request.pod_sandbox_id)? {
            self.stop_sandbox(&sandbox).await?;
        }
        Ok(v1::StopPodSandboxResponse {})
    }

    pub(in crate::cri) async fn remove_pod_sandbox(
        &self,
        request: v1::RemovePodSandboxRequest,
    ) -> Result<v1::RemovePodSandboxResponse> {
        if let Some(sandbox) = self.sandbox_if_there(&request.pod_sandbox_id)? {
            self.remove_sandbox(&sandbox).await?;
        }
        Ok(v1::RemovePodSandboxResponse {})
    }

    /// The sandbox; none where there is none, which is no error for who wants it gone.
    fn sandbox_if_there(&self, id: &str) -> Result<Option<Arc<Sandbox>>> {
        match self.store().sandbox(id) {
            Ok(sandbox) => Ok(Some(sandbox)),
            Err(error) if error.kind() == Kind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn stop_sandbox(&self, sandbox: &Arc<Sandbox>) -> Result<()> {
        let _turn = sandbox.turn.lock().await;
        self.stop_sandbox_now(sandbox).await.doing(|| format!("stop pod sandbox {}", sandbox.id()))
    }

    async fn stop_sandbox_now(&self, sandbox: &Arc<Sandbox>) -> Result<()> {
        let record = sandbox.record();
        if !record.stopped {
            // From here on nothing is made in it.
            self.edit_sandbox(sandbox, |record| record.stopped = true).await?;
        }
        failpoint::hit("cri.stopping");
        let stop = |container: Arc<Container>| async move {
            // One that is being started is stopped once it runs.
            let _turn = container.turn.lock().await;
            self.stop_now(&container, 0).await
        };
        // All of them, also where one cannot be stopped.
        let stopped = join_all(self.store().containers_of(sandbox.id().as_str()).into_iter().map(stop)).await;
        stopped.into_iter().collect::<Result<()>>()?;
        if record.has_shim {
            self.end_pod(sandbox.id().as_str()).await?;
        }
        // Its network is there still.
        self.nri_stop_pod(sandbox).await;
        if record.network.as_ref().is_some_and(|network| !network.removed) {
            self.shared.cni.disconnect(sandbox.id().as_str()).await?;
        }
        failpoint::hit("cri.disconnected");
        let places = self.places(sandbox.id().as_str());
        let (cri, hidden, handler) = (self.clone(), sandbox.clone(), record.runtime_handler.clone());
        let unmake = move || {
            cri.hide_pod(&hidden);
            cri.unlink_logs(&hidden)?;
            places.unmake()?;
            cri.release_images(hidden.id().as_str(), &handler)
        };
        blocking(unmake).await?;
        failpoint::hit("cri.unmade");
        if record.network.as_ref().is_some_and(|network| !network.removed) {
            self.edit_sandbox(sandbox, |record| {
                if let Some(network) = &mut record.network {
                    network.removed = true;
                }
            })
            .await?;
        }
        // Also where an earlier try got only as far as the record.
        if !sandbox.stop_told.swap(true, Ordering::SeqCst) {
            self.announce_pod(sandbox, v1::ContainerEventType::ContainerStoppedEvent);
        }
        Ok(())
    }

    pub(super) async fn remove_sandbox(&self, sandbox: &Arc<Sandbox>) -> Result<()> {
        let _turn = sandbox.turn.lock().await;
        let doing = || format!("remove pod sandbox {}", sandbox.id());
        self.stop_sandbox_now(sandbox).await.doing(doing)?;
        for container in self.store().containers_of(sandbox.id().as_str()) {
            self.remove_now(&container).await.doing(doing)?;
        }
        let places = self.places(sandbox.id().as_str());
        blocking(move || places.remove()).await.doing(doing)?;
        failpoint::hit("cri.removed");
        let window = self.nri_window().await;
        self.nri_remove_pod(&window, sandbox).await;
        let (cri, gone) = (self.clone(), sandbox.clone());
        blocking(move || cri.store().remove_sandbox(&gone)).await.doing(doing)?;
        drop(window);
        self.stats().forget(sandbox.id().as_str());
        self.announce_pod(sandbox, v1::ContainerEventType::ContainerDeletedEvent);
        Ok(())
    }

    pub(super) fn announce_pod(&self, sandbox: &Sandbox, kind: v1::ContainerEventType) {
        self.announce_of(Some(sandbox), sandbox.id().as_str(), sandbox.id().as_str(), kind);
    }

    pub(in crate::cri) async fn edit_sandbox(
        &self,
        sandbox: &Arc<Sandbox>,
        edit: impl FnOnce(&mut gantry_proto::gantry::cri::v1::SandboxRecord) + Send + 'static,
    ) -> Result<()> {
        let (cri, sandbox) = (self.clone(), sandbox.clone());
        blocking(move || cri.store().edit_sandbox(&sandbox, edit)).await
    }
}
