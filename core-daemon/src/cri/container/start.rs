//! Starting a container, and seeing its run through to what follows from its end.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use gantry_proto::gantry::cri::v1::End;
use gantry_proto::runtime::v1;
use gantry_proto::stdio::{LogFormat, LogUri};

use super::create::ready;
use super::limits;
use crate::blocking::blocking;
use crate::cri::store::{Run, nanos, now};
use crate::cri::{Container, Cri, Sandbox, spec};
use crate::error::{Doing as _, Error, Kind, Result};
use crate::failpoint;
use crate::tasks::{Checkpoint, CreateTask, Exit, Task};

/// How long a process's end waits for the word whether memory was the reason.
const OOM_WORD: Duration = Duration::from_secs(1);
/// How long to wait before asking a shim again that did not answer.
const AGAIN: Duration = Duration::from_secs(5);
/// What a container ends with that could not be started.
const NOT_STARTED: i32 = 128;
/// The status of a process that SIGKILL has ended.
const KILLED: u32 = 128 + 9;
/// Why a container has ended that used forbidden system calls, as CRI-O says it.
const CALLS: &str = "seccomp killed";
/// What a container is said to have ended with when nobody saw its end.
const UNKNOWN: i32 = 255;

impl Cri {
    pub(in crate::cri) async fn start_container(
        &self,
        request: v1::StartContainerRequest,
    ) -> Result<v1::StartContainerResponse> {
        let container = self.store().container(&request.container_id)?;
        self.start_now(&container).await?;
        Ok(v1::StartContainerResponse {})
    }

    async fn start_now(&self, container: &Arc<Container>) -> Result<()> {
        let _turn = container.turn.lock().await;
        match container.state() {
            v1::ContainerState::ContainerCreated => {}
            // The answer to an earlier request was lost.
            v1::ContainerState::ContainerRunning => return Ok(()),
            state => {
                let state = state.as_str_name().trim_start_matches("CONTAINER_").to_lowercase();
                return Err(Error::precondition(format!("start container {}: is {state}", container.id())));
            }
        }
        let started = self.run(container).await;
        if let Err(error) = &started {
            self.not_started(container, error).await;
        }
        started.doing(|| format!("start container {}", container.id()))
    }

    async fn run(&self, container: &Arc<Container>) -> Result<()> {
        let record = container.record();
        let sandbox = self.store().sandbox(&record.sandbox_id)?;
        ready(&sandbox)?;
        if spec::wants_default_apparmor(&record.config.clone().unwrap_or_default(), &self.config()) {
            self.load_apparmor().await?;
        }
        self.unlimit_pod(container, &sandbox.record()).await?;
        self.watch_calls(container)?;
        let tasks = &self.parts().tasks;
        let task = tasks.create(self.context(), container.id(), self.task_request(container, &sandbox)).await?;
        failpoint::hit("cri.created");
        if let Err(error) = self.settle_interrupts_of(container).await {
            tasks.discard(&task).await;
            return Err(error);
        }
        let window = self.nri_window().await;
        let started_at = SystemTime::now();
        let started = async {
            self.nri_start(&window, container).await?;
            task.bundle().note_started(started_at)?;
            failpoint::hit("cri.noted");
            task.start(None).await
        };
        if let Err(error) = started.await {
            tasks.discard(&task).await;
            return Err(error);
        }
        failpoint::hit("cri.started");
        container.set_run(Run::Going { task: task.clone(), started_at: nanos(started_at) });
        // Before its end can be seen.
        self.announce_container(container, v1::ContainerEventType::ContainerStartedEvent);
        self.record_start(container, nanos(started_at));
        if self.checkpoint_images(container.id().as_str()).is_some() {
            self.forget_checkpoint(container.id().as_str());
        }
        // Before they hear of its end.
        self.nri_started(window, container).await;
        self.supervise(container, task, nanos(started_at));
        Ok(())
    }

    /// Writes into the record that a container was started, for after a restart of the machine; for one of the daemon
    /// there is the note in the bundle, so nobody needs to wait for this.
    fn record_start(&self, container: &Arc<Container>, started_at: i64) {
        let (cri, container) = (self.clone(), container.clone());
        tokio::spawn(async move {
            let id = container.id().clone();
            let edit = move || {
                cri.store().edit_container(&container, |record, _| {
                    record.started_at = started_at;
                    Ok(())
                })
            };
            match blocking(edit).await {
                // Removed meanwhile.
                Err(error) if error.kind() != Kind::NotFound => tracing::error!(%id, %error, "record a start"),
                _ => {}
            }
        });
    }

    fn task_request(&self, container: &Container, sandbox: &Sandbox) -> CreateTask {
        let record = container.record();
        let config = record.config.clone().unwrap_or_default();
        let settings = self.config();
        let uri = LogUri {
            // A container that sees the pod's logs in a volume could put links there.
            root: if record.log_path.is_empty() { String::new() } else { sandbox.log_directory() },
            format: LogFormat::Cri,
            max_line: settings.max_log_line,
            journal: if settings.log_to_journald { journal_name(&config, sandbox) } else { String::new() },
            attach: self.attach_socket(container.id().as_str()).to_string_lossy().into_owned(),
            ..LogUri::new(record.log_path.clone())
        };
        let images = self.checkpoint_images(container.id().as_str());
        CreateTask {
            stdin: if config.stdin { uri.to_string() } else { String::new() },
            stdout: uri.to_string(),
            terminal: config.tty,
            checkpoint: images.map(|images| Checkpoint::Directory(images.to_string_lossy().into_owned())),
            ..CreateTask::default()
        }
    }

    /// Waits for the end of a container's process from now on, and does what follows from it.
    pub(in crate::cri) fn supervise(&self, container: &Arc<Container>, task: Arc<Task>, started_at: i64) {
        let (cri, container) = (self.clone(), container.clone());
        tokio::spawn(async move {
            let exit = wait(&container, &task, started_at).await;
            // The shim reports memory kills and then the exit, both on another connection than the one waited on. Whatever
            // the exit says: the kernel may have ended a child of the process that ends well.
            let _ = tokio::time::timeout(OOM_WORD, task.exit_reported()).await;
            let killed = task.oom_killed();
            // It may have ended by itself just before it was killed.
            let calls = container.ended_for.get().filter(|_| exit.status == KILLED);
            let (reason, message) = match (calls, killed) {
                (Some(calls), _) => (CALLS, calls.clone()),
                (None, true) => (reason(exit.status, true), cri.limit_reached(&container).await),
                (None, false) => (reason(exit.status, false), String::new()),
            };
            let end = End {
                started_at,
                finished_at: nanos(exit.at),
                exit_code: i32::try_from(exit.status).unwrap_or(UNKNOWN),
                reason: reason.to_owned(),
                message,
            };
            cri.settle(&container, Some(&task), end).await;
        });
    }

    /// Why the kernel killed a process of a container whose cgroup is still there.
    async fn limit_reached(&self, container: &Container) -> String {
        let Ok(sandbox) = self.store().sandbox(&container.record().sandbox_id) else { return String::new() };
        let pod = sandbox.record().config.clone().unwrap_or_default();
        let cgroup = limits::path_of(&spec::cgroup_of(self.config().cgroup_driver, &pod, container.id().as_str()));
        blocking(move || Ok(limits::reached(&cgroup))).await.unwrap_or_default()
    }

    /// Writes down how a container ended and takes down what held it. The shim goes last: until the end is on disk, it is
    /// the one who knows it. What fails is tried again, because a kubelet waits for this.
    pub(in crate::cri) async fn settle(&self, container: &Arc<Container>, task: Option<&Arc<Task>>, end: End) {
        let mut pause = Duration::from_millis(100);
        loop {
            let (cri, ended, written) = (self.clone(), container.clone(), end.clone());
            let edit = move || {
                cri.store().edit_container(&ended, |record, _| {
                    record.end = Some(written);
                    Ok(())
                })
            };
            match blocking(edit).await {
                Ok(()) => break,
                // Removed meanwhile.
                Err(error) if error.kind() == Kind::NotFound => break,
                Err(error) => tracing::error!(id = %container.id(), %error, "record the end of a container"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(30));
        }
        failpoint::hit("cri.ended");
        self.unwatch_calls(container);
        if let Err(error) = self.settle_interrupts_of(container).await {
            tracing::warn!(id = %container.id(), %error, "give back what interrupts kept off");
        }
        if let Some(task) = task
            && let Err(error) = self.parts().tasks.delete_left(task.namespace(), task.id()).await
        {
            tracing::warn!(id = %container.id(), %error, "delete the task of a container that ended");
            let (tasks, task) = (self.parts().tasks.clone(), task.clone());
            tokio::spawn(async move { tasks.delete_in_the_end(&task).await });
        }
        container.set_run(Run::None);
        container.set_ended();
        self.announce_container(container, v1::ContainerEventType::ContainerStoppedEvent);
        self.nri_stopped(container).await;
    }

    pub(super) fn announce_container(&self, container: &Container, kind: v1::ContainerEventType) {
        self.announce(container.id().as_str(), &container.record().sandbox_id, kind);
    }

    /// A container that could not be started has ended, and says why.
    async fn not_started(&self, container: &Arc<Container>, error: &Error) {
        let end = End {
            started_at: 0,
            finished_at: now(),
            exit_code: NOT_STARTED,
            reason: "StartError".to_owned(),
            message: error.to_string(),
        };
        self.settle(container, None, end).await;
    }
}

/// Waits for the end of a container's process. While the shim does not answer, nobody knows how the container is.
async fn wait(container: &Container, task: &Arc<Task>, started_at: i64) -> Exit {
    loop {
        let error = match task.wait(None).await {
            Ok(exit) => return exit,
            Err(error) => error,
        };
        tracing::warn!(id = %container.id(), %error, "wait for a container");
        if error.kind() == Kind::NotFound {
            return Exit { pid: task.pid(), status: UNKNOWN.unsigned_abs(), at: SystemTime::now() };
        }
        container.set_run(Run::Unknown);
        loop {
            tokio::time::sleep(AGAIN).await;
            match task.state(None).await {
                Err(error) if error.kind() != Kind::NotFound => {}
                _ => break,
            }
        }
        container.set_run(Run::Going { task: task.clone(), started_at });
    }
}

/// The end of a container that nobody saw.
pub(in crate::cri) fn unseen(started_at: i64, finished_at: i64) -> End {
    End { started_at, finished_at, exit_code: UNKNOWN, reason: "Unknown".to_owned(), message: String::new() }
}

/// The end of a container whose shim died, and what cleaning up after it came to.
pub(in crate::cri) fn lost(started_at: i64, exit: Exit) -> End {
    End {
        started_at,
        finished_at: nanos(exit.at),
        exit_code: i32::try_from(exit.status).unwrap_or(UNKNOWN),
        reason: reason(exit.status, false).to_owned(),
        message: String::new(),
    }
}

/// What a container is called in the journal: as CRI-O's and docker's users look for it there.
fn journal_name(container: &v1::ContainerConfig, sandbox: &Sandbox) -> String {
    let (own, pod) =
        (container.metadata.clone().unwrap_or_default(), sandbox.record().config.clone().unwrap_or_default());
    let pod = pod.metadata.unwrap_or_default();
    format!("k8s_{}_{}_{}_{}_{}", own.name, pod.name, pod.namespace, pod.uid, own.attempt)
}

fn reason(status: u32, oom_killed: bool) -> &'static str {
    match status {
        _ if oom_killed => "OOMKilled",
        0 => "Completed",
        _ => "Error",
    }
}
