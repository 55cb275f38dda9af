//! Noticing the end of sandboxes: their process's, or their shim's.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use gantry_proto::containerd::events::SandboxExit;
use gantry_proto::containerd::runtime::sandbox::v1 as wire;
use gantry_proto::containerd::task::v3 as task;
use gantry_proto::time;

use super::super::delete::TRIES;
use super::{Exit, Held, Sandbox, Sandboxes, Slot};
use crate::error::Result;

impl Sandboxes {
    /// Puts a sandbox into the table and watches over its shim from now on.
    pub(super) fn adopt(&self, sandbox: Arc<Sandbox>) {
        self.tasks.sandboxes().insert(sandbox.key(), Slot::Live(sandbox.clone()));
        let sandboxes = self.clone();
        tokio::spawn(async move {
            sandbox.shim.closed().await;
            let _turn = sandbox.ending.lock().await;
            if !sandbox.leaving.load(Ordering::SeqCst) {
                tracing::warn!(namespace = %sandbox.namespace, id = %sandbox.id, "sandbox's shim is gone; cleaning up");
                // What is not cleaned up now is when the sandbox is shut down.
                let _ = sandboxes.clean_up(&sandbox).await;
            }
        });
    }

    /// Waits for the end of a started sandbox, and tells the world.
    pub(super) fn watch_end(&self, sandbox: Arc<Sandbox>) {
        let sandboxes = self.clone();
        tokio::spawn(async move {
            // Where it fails the shim is gone, which is noticed otherwise.
            if let Ok(exit) = sandbox.wait_in_shim().await {
                sandboxes.ended(&sandbox, exit);
            }
        });
    }

    /// Cleans up after a dead shim, and tells the end whether or not that succeeds.
    ///
    /// # Errors
    /// Then processes, a cgroup or mounts may be left.
    pub(super) async fn clean_up(&self, sandbox: &Sandbox) -> Result<()> {
        let pid = sandbox.pid.load(Ordering::Relaxed);
        let cleaned = self.tasks.clean_up_dead(sandbox.instance(), pid, TRIES).await;
        self.ended(sandbox, cleaned.as_ref().map_or_else(|_| Exit::unseen(pid), |exit| *exit));
        cleaned.map(drop)
    }

    /// Notes and announces the end; the first one stands.
    pub(super) fn ended(&self, sandbox: &Sandbox, exit: Exit) {
        let first = sandbox.ended.send_if_modified(|ended| {
            let first = ended.is_none();
            ended.get_or_insert(exit);
            first
        });
        if first {
            let message = SandboxExit {
                sandbox_id: sandbox.id.to_string(),
                exit_status: exit.status,
                exited_at: Some(time::timestamp(exit.at)),
            };
            self.tasks.parts().events.announce(&sandbox.namespace, "/sandboxes/exit", &message);
        }
    }
}

impl Sandbox {
    async fn wait_in_shim(&self) -> Result<Exit> {
        let pid = self.pid.load(Ordering::Relaxed);
        match self.held {
            Held::Service => {
                let request = wire::WaitSandboxRequest { sandbox_id: self.id.to_string() };
                let exit: wire::WaitSandboxResponse = self.ask("WaitSandbox", &request, None).await?;
                Ok(Exit::of(pid, exit.exit_status, exit.exited_at.as_ref()))
            }
            Held::Task => {
                let request = task::WaitRequest { id: self.id.to_string(), exec_id: String::new() };
                let exit: task::WaitResponse = self.shim.wait("Wait", &request).await?;
                Ok(Exit::of(pid, exit.exit_status, exit.exited_at.as_ref()))
            }
        }
    }
}
