//! `ExecSync`: one more process in a container, with its output in the answer.

use std::sync::Arc;
use std::time::Duration;

use gantry_proto::runtime::v1;
use gantry_proto::stdio::FrameKind;
use nix::sys::signal::Signal;

use super::Cri;
use super::process::{Wanted, check_command};
use crate::error::{Error, Kind, Result};
use crate::id::ExecId;
use crate::tasks::streams::{self, until_end};
use crate::tasks::{StartedExec, Task};

/// Largest message that kubelets take.
const KUBELET: usize = 16 << 20;
/// What an answer may have besides output.
const AROUND: usize = 1 << 10;

impl Cri {
    pub(super) async fn exec_sync(&self, request: v1::ExecSyncRequest) -> Result<v1::ExecSyncResponse> {
        check_command(&request.cmd)?;
        let container = self.store().container(&request.container_id)?;
        let wanted = Wanted { command: request.cmd, terminal: false, stdin: false };
        let mut started = self.start_process(&container, wanted).await?;
        let mut held = Held::of(&started);
        let mut answer = v1::ExecSyncResponse::default();
        let ended = in_time(request.timeout, started.end());
        // What is more of both streams together is read and dropped, so that the process can go on.
        let most = self.parts().config.grpc.max_message.min(KUBELET) - AROUND;
        let (output, _input) = streams::split(started.take_stream()?);
        let collect = async |mut frames: streams::Frames| {
            while let Some((kind, bytes)) = frames.next().await {
                let room = most.saturating_sub(answer.stdout.len() + answer.stderr.len()).min(bytes.len());
                let all = if kind == FrameKind::Stderr { &mut answer.stderr } else { &mut answer.stdout };
                all.extend_from_slice(&bytes[..room]);
            }
        };
        let exit = until_end(output, collect, ended, Duration::from_secs(self.config().exec_drain)).await?;
        answer.exit_code = i32::try_from(exit.status).unwrap_or(i32::MAX);
        held.let_go();
        Ok(answer)
    }
}

/// What `end` gives within so many seconds; 0 and less are no limit. It is for the process alone: output that is still held
/// open after its end is waited for `cri.exec_drain` seconds.
async fn in_time<T>(seconds: i64, end: impl Future<Output = Result<T>>) -> Result<T> {
    match u64::try_from(seconds) {
        Ok(seconds @ 1..) => tokio::time::timeout(Duration::from_secs(seconds), end)
            .await
            .map_err(|_| Error::new(Kind::DeadlineExceeded, format!("exec: still ran after {seconds} s")))?,
        _ => end.await,
    }
}

/// A process that ends with the call that it was started for: with its time, or with the client.
struct Held {
    process: Option<(Arc<Task>, ExecId)>,
}

impl Held {
    fn of(started: &StartedExec) -> Self {
        Self { process: Some((started.task.clone(), started.id.clone())) }
    }

    fn let_go(&mut self) {
        self.process = None;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let Some((task, exec)) = self.process.take() else { return };
        tokio::spawn(async move {
            let kill = u32::try_from(Signal::SIGKILL as i32).unwrap_or_default();
            if let Err(error) = task.kill(Some(&exec), kill, false).await {
                tracing::debug!(id = %task.id(), %exec, %error, "kill a process whose time is over");
            }
        });
    }
}
