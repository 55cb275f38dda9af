//! Stopping containers.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use gantry_proto::runtime::v1;

use crate::blocking::blocking;
use crate::cri::{Container, Cri};
use crate::error::{Doing as _, Error, Kind, Result};
use crate::tasks::Task;

/// How long a killed container may take to end.
const AFTER_KILL: Duration = Duration::from_secs(60);
const KILL: u32 = 9;

impl Cri {
    pub(in crate::cri) async fn stop_container(
        &self,
        request: v1::StopContainerRequest,
    ) -> Result<v1::StopContainerResponse> {
        match self.store().container(&request.container_id) {
            Ok(container) => self.stop_now(&container, request.timeout).await?,
            Err(error) if error.kind() == Kind::NotFound => {}
            Err(error) => return Err(error),
        }
        Ok(v1::StopContainerResponse {})
    }

    /// Asks a container to stop and kills it if it does not within `timeout` seconds; at once for 0. One that has ended
    /// is stopped already.
    pub(in crate::cri) async fn stop_now(&self, container: &Arc<Container>, timeout: i64) -> Result<()> {
        self.stop_process(container, timeout).await?;
        if container.state() == v1::ContainerState::ContainerExited {
            // Whoever sees its end may be about to tell them.
            self.nri_stopped(container).await;
        }
        Ok(())
    }

    async fn stop_process(&self, container: &Arc<Container>, timeout: i64) -> Result<()> {
        let doing = || format!("stop container {}", container.id());
        let task = match container.state() {
            v1::ContainerState::ContainerCreated | v1::ContainerState::ContainerExited => return Ok(()),
            v1::ContainerState::ContainerRunning => match container.task() {
                Ok(task) => task,
                // It ended just now.
                Err(_) => return Ok(()),
            },
            v1::ContainerState::ContainerUnknown => {
                self.parts().tasks.get(&self.context().namespace, container.id()).doing(doing)?
            }
        };
        if task.paused() {
            // A frozen process cannot answer a signal.
            task.thaw().await.doing(doing)?;
        }
        if let Ok(grace @ 1..) = u64::try_from(timeout) {
            self.ask_to_stop(container, &task).await.doing(doing)?;
            if tokio::time::timeout(Duration::from_secs(grace), container.ended()).await.is_ok() {
                return Ok(());
            }
        }
        task.kill_unless_ended(KILL, true).await.doing(doing)?;
        tokio::time::timeout(AFTER_KILL, container.ended()).await.map_err(|_| {
            let waited = AFTER_KILL.as_secs();
            Error::new(Kind::DeadlineExceeded, format!("{}: still there {waited} s after SIGKILL", doing()))
        })
    }

    /// Sends the signal that asks to stop, once in a container's life: a repeat only waits.
    async fn ask_to_stop(&self, container: &Arc<Container>, task: &Task) -> Result<()> {
        if container.asked_to_stop.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        let sent = task.kill_unless_ended(container.record().stop_signal, false).await;
        if sent.is_err() {
            container.asked_to_stop.store(false, Ordering::SeqCst);
            return sent;
        }
        let (cri, asked) = (self.clone(), container.clone());
        let edit = move || {
            cri.store().edit_container(&asked, |record, _| {
                record.stop_requested = true;
                Ok(())
            })
        };
        match blocking(edit).await {
            // Removed meanwhile: then it has ended.
            Err(error) if error.kind() == Kind::NotFound => Ok(()),
            edited => edited,
        }
    }
}
