//! Starting a container, and seeing its run through to what follows from its end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use gantry_proto::namespace::Namespace;
use gantry_proto::stdio::{LogFormat, LogPolicy, LogUri};
use tokio::net::UnixStream;
use tokio::sync::watch;

use super::health::{Check, Health};
use super::{Ended, Engine, Known, Live};
use crate::blocking::blocking;
use crate::config;
use crate::context::Context;
use crate::error::{Doing, Error, Kind, Result};
use crate::failpoint;
use crate::id::ContainerId;
use crate::tasks::{Begun, CreateTask, Exit, Task};

/// How long the end of a process waits for the shim's event that says whether memory ran out.
const OOM_WORD: Duration = Duration::from_secs(1);
/// How long an end waits for the answer to the start, which comes another way and may be later.
const START_WORD: Duration = Duration::from_secs(1);
/// Seconds between attempts to record how a container ended.
const RECORD_PAUSES: [u64; 5] = [1, 2, 4, 8, 15];
/// Seconds between all further attempts.
const LAST_RECORD_PAUSE: u64 = 30;
/// Pause before a shim that did not answer is asked again how its container ends.
const AGAIN: Duration = Duration::from_secs(2);
/// The exit code of a container that could not be started, where that is not its program's fault.
const NOT_STARTED: u8 = 128;
/// The exit code of a process that SIGKILL has ended.
const KILLED: u32 = 137;

impl Engine {
    /// Starts a container that does not run, and returns its pid.
    ///
    /// # Errors
    /// `NotFound` without such a container, `FailedPrecondition` when it runs, else why its process cannot be started.
    pub async fn start(&self, context: &Context, reference: &str) -> Result<u32> {
        let known = self.find(context, reference)?;
        let (live, _) = self.start_known(&context.namespace, &known.id, false).await?;
        Ok(live.task.pid())
    }

    /// Starts a container because somebody wants it and, where `attached`, connects to its streams before it has written
    /// anything. One that is removed at its end is removed where it does not start.
    pub(super) async fn start_known(
        &self,
        namespace: &Namespace,
        id: &ContainerId,
        attached: bool,
    ) -> Result<(Arc<Live>, Option<UnixStream>)> {
        self.start_begun(namespace, id, attached, None).await
    }

    /// As [`Engine::start_known`], where the task may have been begun already.
    pub(super) async fn start_begun(
        &self,
        namespace: &Namespace,
        id: &ContainerId,
        attached: bool,
        begun: Option<Begun>,
    ) -> Result<(Arc<Live>, Option<UnixStream>)> {
        let _turn = self.shared.turns.take((namespace.clone(), id.clone())).await;
        self.clear_earlier_run(namespace, id).await?;
        // It may have been changed, or removed, while this waited.
        let known = self.known(namespace, id)?;
        self.mark_started(namespace, &known).await?;
        let started = self.start_held(namespace, &known, attached, begun).await;
        if started.is_err() && known.record.auto_remove {
            self.remove_unwanted(namespace, id).await;
        }
        started
    }

    /// Starts a container whose turn the caller has.
    pub(super) async fn start_held(
        &self,
        namespace: &Namespace,
        known: &Known,
        attached: bool,
        begun: Option<Begun>,
    ) -> Result<(Arc<Live>, Option<UnixStream>)> {
        let context = Context::new(namespace.clone());
        let created = async {
            let request = self.task_request(namespace, known)?;
            self.shared.journal.learn(namespace, known);
            if attached {
                self.note(namespace, known, "attach", &[]);
            }
            let (etc, directory) = (known.record.etc.clone(), self.directory(namespace, &known.id));
            blocking(move || etc.write(&directory)).await?;
            self.parts().tasks.create_begun(&context, &known.id, request, begun).await
        };
        let task = match created.await {
            Ok(task) => task,
            Err(error) => return Err(self.not_started(namespace, &known.id, error).await),
        };
        failpoint::hit("engine.created");
        let started = async {
            let stream = match attached {
                true => Some(self.connect(&self.socket(&known.id)).await?),
                false => None,
            };
            let started_at = SystemTime::now();
            task.bundle().note_started(started_at)?;
            // The wait begins before the start, so that it cannot miss the end.
            let live = self.supervise(task.clone(), started_at, known.record.health.clone(), false);
            task.start(None).await.inspect_err(|_| live.abandon())?;
            self.shared.journal.of_run(namespace, &known.id, "start", &[]);
            live.told.send_replace(true);
            Ok((live, stream))
        };
        match started.await {
            Ok(started) => {
                failpoint::hit("engine.started");
                Ok(started)
            }
            Err(error) => {
                self.live().remove(&(namespace.clone(), known.id.clone()));
                self.parts().tasks.discard(&task).await;
                Err(self.not_started(namespace, &known.id, error).await)
            }
        }
    }

    /// Refuses a container that runs, and waits for what follows from the end of one that has just ended.
    async fn clear_earlier_run(&self, namespace: &Namespace, id: &ContainerId) -> Result<()> {
        let live = self.live().get(&(namespace.clone(), id.clone())).cloned();
        let Some(live) = live else { return Ok(()) };
        if live.ended.borrow().is_none() {
            return Err(Error::precondition(format!("container {}: is already running", super::names::short(id))));
        }
        let mut settled = live.settled.subscribe();
        let _ = settled.wait_for(|settled| *settled).await;
        Ok(())
    }

    fn task_request(&self, namespace: &Namespace, known: &Known) -> Result<CreateTask> {
        let log = self.log_path(namespace, &known.id);
        make_parents(&log)?;
        let (usual, own) = (&self.parts().config.container_log, &known.record.log);
        let drops = own.drop.unwrap_or(usual.policy == config::LogPolicy::Drop);
        let uri = LogUri {
            format: LogFormat::Json,
            attach: self.socket(&known.id).to_string_lossy().into_owned(),
            max_size: own.max_size.unwrap_or(usual.max_size),
            max_files: own.max_files.unwrap_or(usual.max_files),
            compress: own.compress.unwrap_or(usual.compress),
            policy: if drops { LogPolicy::Drop } else { LogPolicy::Block },
            ..LogUri::new(log.to_string_lossy())
        };
        Ok(CreateTask {
            stdin: if known.record.open_stdin { uri.to_string() } else { String::new() },
            stdout: uri.to_string(),
            terminal: known.record.terminal,
            ..CreateTask::default()
        })
    }

    /// Connects to an attach socket.
    pub(super) async fn connect(&self, path: &std::path::Path) -> Result<UnixStream> {
        crate::tasks::streams::join(path).await
    }

    /// Records why a container did not start, and returns it.
    async fn not_started(&self, namespace: &Namespace, id: &ContainerId, error: Error) -> Error {
        let (engine, namespace, id, message) = (self.clone(), namespace.clone(), id.clone(), error.to_string());
        let code = error.exit_code().unwrap_or(NOT_STARTED);
        let written = blocking(move || {
            engine.edit_record(&namespace, &id, |record| (record.error, record.error_code) = (message, code))
        });
        let written = written.await;
        if let Err(left) = written
            && left.kind() != Kind::NotFound
        {
            tracing::warn!(error = %left, "record a failed start");
        }
        error
    }

    /// Waits for the end of a task in the background, and does what follows from it. `told`: the start has been
    /// announced already, because an earlier daemon has made it.
    pub(super) fn supervise(
        &self,
        task: Arc<Task>,
        started_at: SystemTime,
        health: Option<Check>,
        told: bool,
    ) -> Arc<Live> {
        let live = Arc::new(Live {
            task: task.clone(),
            started_at,
            health: health.map(Health::of),
            goes_on: AtomicBool::new(false),
            told: watch::Sender::new(told),
            ended: watch::Sender::new(None),
            settled: watch::Sender::new(false),
        });
        let key = (task.namespace().clone(), task.id().clone());
        self.live().insert(key.clone(), live.clone());
        if self.shared.cap.begun(&key) {
            let engine = self.clone();
            tokio::spawn(async move { engine.end_earlier_cut(&key).await });
        }
        let (engine, watched) = (self.clone(), live.clone());
        tokio::spawn(async move {
            let exit = end_of(&watched.task).await;
            engine.run_ended(&watched, exit).await;
        });
        if live.health.is_some() {
            let (engine, watched) = (self.clone(), live.clone());
            tokio::spawn(async move { engine.watch_health(&watched).await });
        }
        live
    }

    async fn run_ended(&self, live: &Arc<Live>, exit: Exit) {
        let task = &live.task;
        // The shim reports memory kills and then the exit, both on another connection than the one waited on. The kernel may
        // have ended a child of a process that ends well; of a container that goes with its end nobody can ask that.
        if exit.status == KILLED || !self.is_removed_at_end(task.namespace(), task.id()).unwrap_or(false) {
            let _ = tokio::time::timeout(OOM_WORD, task.exit_reported()).await;
        }
        let ended =
            Ended { started_at: live.started_at, at: exit.at, code: exit.status, oom_killed: task.oom_killed() };
        let mut told = live.told.subscribe();
        let _ = tokio::time::timeout(START_WORD, told.wait_for(|told| *told)).await;
        if live.ended.borrow().is_some() {
            return;
        }
        let code = ended.code.to_string();
        self.shared.journal.of_run(task.namespace(), task.id(), "die", &[("exitCode", &code)]);
        live.ended.send_replace(Some(ended));
        failpoint::hit("engine.ended");
        let goes_on = live.goes_on.load(Ordering::Relaxed);
        if let Err(error) = self.settle(task, ended, goes_on).await {
            tracing::warn!(namespace = %task.namespace(), id = %task.id(), %error, "after the end of a container");
            self.settle_later(task.clone());
        }
        self.forget_live(live);
        live.settled.send_replace(true);
        if !goes_on {
            self.restart_later(task.namespace(), task.id(), ended);
        }
    }

    /// Records how a run ended and deletes its task. The shim goes last: until the end is on disk, only the shim knows
    /// it.
    async fn settle(&self, task: &Arc<Task>, ended: Ended, goes_on: bool) -> Result<()> {
        let (namespace, id) = (task.namespace().clone(), task.id().clone());
        let auto_remove = self.record_end_surely(&namespace, &id, ended, goes_on).await;
        failpoint::hit("engine.recorded");
        if !auto_remove {
            return match self.parts().tasks.delete(&namespace, &id).await {
                Err(error) if error.kind() != Kind::NotFound => Err(error),
                _ => Ok(()),
            };
        }
        let (engine, of) = (self.clone(), (namespace.clone(), id.clone()));
        let removal = async move { engine.remove_ended(&of.0, &of.1).await };
        match self.parts().tasks.delete_and(&namespace, &id, removal).await {
            Ok((_, removed)) => removed,
            Err(error) if error.kind() == Kind::NotFound => self.remove_ended(&namespace, &id).await,
            Err(error) => Err(error),
        }
    }

    /// Has a task deleted whose deletion failed, and then the container removed that was to go with it.
    fn settle_later(&self, task: Arc<Task>) {
        let engine = self.clone();
        tokio::spawn(async move {
            let (namespace, id) = (task.namespace(), task.id());
            engine.parts().tasks.delete_in_the_end(&task).await;
            let _turn = engine.shared.turns.take((namespace.clone(), id.clone())).await;
            let runs = engine.live().contains_key(&(namespace.clone(), id.clone()));
            if !runs && engine.is_removed_at_end(namespace, id).unwrap_or(false) {
                engine.remove_unwanted(namespace, id).await;
            }
        });
    }

    /// As [`Engine::record_end`], but repeats it while it fails, as on a full disk. Returns whether the container is to
    /// be removed now; then nothing is recorded.
    async fn record_end_surely(&self, namespace: &Namespace, id: &ContainerId, ended: Ended, goes_on: bool) -> bool {
        let mut pauses = RECORD_PAUSES.into_iter();
        loop {
            let recorded = match self.is_removed_at_end(namespace, id).map(|removed| removed && !goes_on) {
                Ok(false) => {
                    let (engine, of) = (self.clone(), (namespace.clone(), id.clone()));
                    blocking(move || engine.record_end(&of.0, &of.1, ended)).await.map(|()| false)
                }
                other => other,
            };
            match recorded {
                Ok(auto_remove) => return auto_remove,
                // Another client removed the record; the task has to go all the same.
                Err(error) if error.kind() == Kind::NotFound => return false,
                Err(error) => tracing::error!(%namespace, %id, %error, "record the end of a container"),
            }
            tokio::time::sleep(Duration::from_secs(pauses.next().unwrap_or(LAST_RECORD_PAUSE))).await;
        }
    }

    /// Whether the container is to be removed when its process has ended.
    fn is_removed_at_end(&self, namespace: &Namespace, id: &ContainerId) -> Result<bool> {
        let container = self.parts().containers.get(namespace, id)?;
        Ok(super::Record::of(&container)?.unwrap_or_default().auto_remove)
    }

    /// Writes down how a run ended.
    pub(super) fn record_end(&self, namespace: &Namespace, id: &ContainerId, ended: Ended) -> Result<()> {
        self.edit_record(namespace, id, |record| {
            record.ended = Some(ended);
            record.error.clear();
        })
    }

    fn forget_live(&self, live: &Arc<Live>) {
        let key = (live.task.namespace().clone(), live.task.id().clone());
        let mut table = self.live();
        if table.get(&key).is_some_and(|other| Arc::ptr_eq(other, live)) {
            table.remove(&key);
            drop(table);
            self.shared.cap.ended(&key);
        }
    }
}

/// Waits for the end of a task's process. While its shim does not answer the process counts as running.
async fn end_of(task: &Task) -> Exit {
    loop {
        match task.wait(None).await {
            Ok(exit) => return exit,
            Err(error) => {
                tracing::warn!(namespace = %task.namespace(), id = %task.id(), %error, "wait for the end of a container");
                if error.kind() == Kind::NotFound {
                    return Exit::unseen(task.pid());
                }
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}

impl Live {
    /// The start failed, so the end of this run means nothing.
    fn abandon(&self) {
        let Exit { status: code, at, .. } = Exit::unseen(0);
        self.ended.send_replace(Some(Ended { started_at: at, at, code, oom_killed: false }));
        self.told.send_replace(true);
        self.settled.send_replace(true);
    }

    /// Waits for the end of the run.
    pub(super) async fn end(&self) -> Result<Ended> {
        let mut ended = self.ended.subscribe();
        let end = ended.wait_for(Option::is_some).await;
        end.ok().and_then(|end| *end).ok_or_else(|| Error::internal("the container's end is unknown"))
    }

    /// Waits until everything that follows from the end is done.
    pub(super) async fn settled(&self) {
        let mut settled = self.settled.subscribe();
        let _ = settled.wait_for(|settled| *settled).await;
    }
}

pub(super) fn make_parents(path: &std::path::Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    let Some(parent) = path.parent() else { return Ok(()) };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(parent).doing(|| format!("make {}", parent.display()))
}

/// Whether a process of this task is known to have been paused.
pub(super) fn is_paused(live: &Live) -> bool {
    live.task.paused()
}
