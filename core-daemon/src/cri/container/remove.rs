//! Removing containers. Each step may be repeated, and the record goes last.

use std::sync::Arc;

use gantry_proto::runtime::v1;

use crate::blocking::blocking;
use crate::cri::{Container, Cri};
use crate::error::{Doing as _, Kind, Result};
use crate::failpoint;

impl Cri {
    pub(in crate::cri) async fn remove_container(
        &self,
        request: v1::RemoveContainerRequest,
    ) -> Result<v1::RemoveContainerResponse> {
        match self.store().container(&request.container_id) {
            Ok(container) => self.remove_now(&container).await?,
            Err(error) if error.kind() == Kind::NotFound => {}
            Err(error) => return Err(error),
        }
        Ok(v1::RemoveContainerResponse {})
    }

    /// Removes a container, killing it first where it runs. Its log is left to the kubelet.
    pub(in crate::cri) async fn remove_now(&self, container: &Arc<Container>) -> Result<()> {
        let _turn = container.turn.lock().await;
        self.stop_now(container, 0).await?;
        let doing = || format!("remove container {}", container.id());
        self.parts().tasks.delete_left(&self.context().namespace, container.id()).await.doing(doing)?;
        let window = self.nri_window().await;
        self.nri_remove(&window, container).await;
        let (cri, gone) = (self.clone(), container.clone());
        blocking(move || cri.remove_files(&gone)).await.doing(doing)?;
        drop(window);
        if let Err(error) = self.settle_interrupts_of(container).await {
            tracing::warn!(id = %container.id(), %error, "give back what interrupts kept off");
        }
        self.announce_container(container, v1::ContainerEventType::ContainerDeletedEvent);
        Ok(())
    }

    fn remove_files(&self, container: &Container) -> Result<()> {
        let id = container.id().as_str();
        let snapshotter = self.snapshotter_of(container.id());
        match snapshotter.and_then(|snapshotter| snapshotter.remove(self.context(), id)) {
            Err(error) if error.kind() != Kind::NotFound => return Err(error),
            _ => {}
        }
        self.remove_container_dir(id)?;
        if let Ok(sandbox) = self.store().sandbox(&container.record().sandbox_id) {
            self.unlink_log(&sandbox.record(), id);
        }
        // The shim removes its socket; a dead one did not.
        let _ = std::fs::remove_file(self.attach_socket(id));
        failpoint::hit("cri.removed.files");
        self.store().remove_container(container)?;
        self.stats().forget(id);
        self.parts().gc.changed();
        Ok(())
    }
}
