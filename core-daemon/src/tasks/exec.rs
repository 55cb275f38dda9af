//! One more process in a container, from its addition until nothing of it is left in the shim.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::net::UnixStream;
use tokio::sync::watch;

use super::{ExecTask, Exit, Task, Tasks, streams};
use crate::error::{Error, Kind, Result};
use crate::id::ExecId;
use crate::signals::SIGKILL;

/// A process that was started beside a container's own.
pub struct StartedExec {
    /// The container it is in.
    pub task: Arc<Task>,
    /// What it is called there.
    pub id: ExecId,
    /// Its streams from the first byte on, unless nobody is to see them.
    stream: Option<UnixStream>,
    /// When it was about to be started.
    pub started_at: SystemTime,
    ended: watch::Receiver<Option<Exit>>,
}

impl StartedExec {
    /// Its streams, of one that has any.
    ///
    /// # Errors
    /// Where somebody else has them.
    pub fn take_stream(&mut self) -> Result<UnixStream> {
        self.stream.take().ok_or_else(|| Error::internal("the streams of a process are missing"))
    }

    /// Waits for its end.
    pub fn end(&self) -> impl Future<Output = Result<Exit>> + Send + use<> {
        let mut ended = self.ended.clone();
        async move {
            let end = ended.wait_for(Option::is_some).await;
            end.ok().and_then(|end| *end).ok_or_else(|| Error::internal("the end of the process is unknown"))
        }
    }
}

impl Tasks {
    /// Adds a process, joins its streams at `socket`, where there is one, and starts it. This is carried out to the end
    /// even if the caller stops waiting, so that no start is left half done. When the process ends it is removed from
    /// its shim.
    ///
    /// # Errors
    /// Why it cannot be started; then nothing of it is left.
    pub async fn run_exec(
        &self,
        task: &Arc<Task>,
        id: ExecId,
        request: ExecTask,
        socket: Option<PathBuf>,
    ) -> Result<StartedExec> {
        let starting = tokio::spawn(self.clone().start_exec(task.clone(), id, request, socket));
        starting.await.map_err(|error| Error::internal(format!("start a process: {error}")))?
    }

    async fn start_exec(
        self,
        task: Arc<Task>,
        id: ExecId,
        request: ExecTask,
        socket: Option<PathBuf>,
    ) -> Result<StartedExec> {
        task.exec(&id, request).await?;
        let started = async {
            let stream = match socket {
                Some(path) => Some(streams::join(&path).await?),
                None => None,
            };
            let started_at = SystemTime::now();
            task.start(Some(&id)).await?;
            Ok::<_, Error>((stream, started_at))
        };
        let (stream, started_at) = match started.await {
            Ok(started) => started,
            // The shim may start it yet.
            Err(error) if error.kind() == Kind::DeadlineExceeded => {
                tokio::spawn(async move {
                    let _ = task.kill(Some(&id), SIGKILL, false).await;
                    self.see_off(&task, &id, None).await;
                });
                return Err(error);
            }
            Err(error) => {
                let _ = self.delete_exec(task.namespace(), task.id(), &id).await;
                return Err(error);
            }
        };
        let (ending, ended) = watch::channel(None);
        let (exec, of) = (id.clone(), task.clone());
        tokio::spawn(async move { self.see_off(&of, &exec, Some(ending)).await });
        Ok(StartedExec { task, id, stream, started_at, ended })
    }

    /// Waits for the end of a process, tells it, and removes the process from its shim. The shim keeps the exit until
    /// then, so it cannot be missed. The removal comes last, because it takes a while where a child holds the output
    /// open.
    async fn see_off(&self, task: &Task, id: &ExecId, tell: Option<watch::Sender<Option<Exit>>>) {
        let exit = task.wait(Some(id)).await;
        let exit =
            exit.inspect_err(|error| tracing::warn!(id = %task.id(), exec = %id, %error, "end of an exec is unknown"));
        if let (Ok(exit), Some(tell)) = (exit, tell) {
            tell.send_replace(Some(exit));
        }
        let _ = self.delete_exec(task.namespace(), task.id(), id).await;
    }
}
