//! The owner of one container and its mailbox.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use gantry_proto::any;
use gantry_proto::containerd::runc::v1::ProcessDetails;
use gantry_proto::containerd::v1::types::ProcessInfo;
use tokio::sync::{mpsc, oneshot};

use crate::bootstrap::Setting;
use crate::containers::Containers;
use crate::events::Events;
use crate::io::streams::Streams;
use crate::lifetime::{Hold, Lifetime};
use crate::oom;
use crate::options::Options;
use crate::reaper::{Exited, Reaper};
use crate::rung::{Ends, Runtime};
use crate::stats::cgroup::Cgroup;
use crate::task::create::Restore;
use crate::task::process::Process;
use crate::{Error, Result};

/// A future of a job on a container.
pub type JobFuture<'a, R> = Pin<Box<dyn Future<Output = R> + Send + 'a>>;
type Job = Box<dyn for<'a> FnOnce(&'a mut Container) -> JobFuture<'a, ()> + Send>;
type Peek = Box<dyn FnOnce(&mut Container) + Send>;

/// What all containers of a shim share.
#[derive(Debug)]
pub struct Shim {
    /// Who started us, and for what.
    pub setting: Setting,
    /// Collects exits.
    pub reaper: Reaper,
    /// Tells the daemon.
    pub events: Events,
    /// All mailboxes.
    pub containers: Containers,
    /// What clients have opened for standard streams.
    pub streams: Streams,
    /// Keeps the shim alive.
    pub lifetime: Lifetime,
    /// Set once the socket's file has been removed: another shim may listen at that path since.
    pub has_left: AtomicBool,
}

impl Shim {
    /// Removes the shim's socket, once, and ends the shim. It comes before the answer of the call that ends the shim:
    /// the caller may then start another shim for a group of the same name, which listens at the same path. That start
    /// must not find this shim there, and this shim must not remove the socket of that one.
    pub fn leave(&self) {
        if !self.has_left.swap(true, Ordering::Relaxed) {
            let _ = std::fs::remove_file(&self.setting.socket);
        }
        self.lifetime.stop();
    }
}

/// Where requests and exits of a container go. The queue needs no bound of its own: it holds calls, whose number each
/// connection limits, and exits, of which there is one for each process.
#[derive(Clone)]
pub struct Mailbox {
    jobs: mpsc::UnboundedSender<Job>,
    peeks: mpsc::UnboundedSender<Peek>,
}

impl fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mailbox").finish_non_exhaustive()
    }
}

impl Mailbox {
    /// Starts the owner of a container that is yet to be created.
    pub fn start(shim: Arc<Shim>, id: &str, bundle: PathBuf, options: Options) -> Self {
        let (jobs, mut queue) = mpsc::unbounded_channel::<Job>();
        let (peeks, peeked) = mpsc::unbounded_channel::<Peek>();
        let runtime = Runtime::new(&options, &shim.setting.namespace, &bundle, shim.reaper.clone());
        let mut container = Container {
            _hold: shim.lifetime.container(),
            shim,
            id: id.to_owned(),
            bundle,
            runtime,
            options,
            private_pids: true,
            init: Process::new("", crate::io::Stdio::default(), Vec::new()),
            execs: BTreeMap::new(),
            restore: None,
            cgroup: None,
            oom: None,
            oom_killed: Arc::default(),
            held_exit: None,
            init_is_gone: false,
            left: false,
            mailbox: (jobs.downgrade(), peeks.downgrade()),
            peeked,
        };
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    biased;
                    Some(peek) = container.peeked.recv() => peek(&mut container),
                    job = queue.recv() => match job {
                        Some(job) => job(&mut container).await,
                        None => return,
                    },
                }
            }
        });
        Self { jobs, peeks }
    }

    /// Asks the container's owner to do `job`, after everything that was asked before. It is done even where the asker
    /// stops waiting.
    ///
    /// # Errors
    /// `NotFound` where the container is gone; those of the job.
    pub async fn ask<R: Send + 'static>(
        &self,
        job: impl for<'a> FnOnce(&'a mut Container) -> JobFuture<'a, Result<R>> + Send + 'static,
    ) -> Result<R> {
        let (sender, answer) = oneshot::channel();
        self.tell(move |container| {
            Box::pin(async move {
                let _ = sender.send(job(container).await);
            })
        });
        answer.await.unwrap_or_else(|_| Err(Error::not_found("the container is gone")))
    }

    /// As [`Mailbox::ask`], for a job that does not wait for anything itself.
    ///
    /// # Errors
    /// As [`Mailbox::ask`].
    pub async fn look<R: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Container) -> Result<R> + Send + 'static,
    ) -> Result<R> {
        self.ask(move |container| Box::pin(std::future::ready(job(container)))).await
    }

    /// Asks without waiting for a turn: `look` runs at once, even in the middle of a job whose runtime call is under
    /// way. This is for requests that only read, and for those that must get through to a container whose runtime
    /// hangs.
    ///
    /// # Errors
    /// As [`Mailbox::ask`].
    pub async fn peek<R: Send + 'static>(
        &self,
        look: impl FnOnce(&mut Container) -> Result<R> + Send + 'static,
    ) -> Result<R> {
        let (sender, answer) = oneshot::channel();
        self.interrupt(move |container| {
            let _ = sender.send(look(container));
        });
        answer.await.unwrap_or_else(|_| Err(Error::not_found("the container is gone")))
    }

    /// As [`Mailbox::peek`], without an answer.
    pub fn interrupt(&self, look: impl FnOnce(&mut Container) + Send + 'static) {
        // Fails only where the owner is gone.
        let _ = self.peeks.send(Box::new(look));
    }

    /// Leaves a job without waiting for it.
    pub fn tell(&self, job: impl for<'a> FnOnce(&'a mut Container) -> JobFuture<'a, ()> + Send + 'static) {
        // Fails only where the owner is gone, and with it what the job is about.
        let _ = self.jobs.send(Box::new(job));
    }
}

/// A container and everything the shim knows about it.
#[derive(Debug)]
pub struct Container {
    pub(super) shim: Arc<Shim>,
    pub(super) id: String,
    pub(super) bundle: PathBuf,
    pub(super) runtime: Runtime,
    pub(super) options: Options,
    /// The kernel ends every process of the container with the first.
    pub(super) private_pids: bool,
    pub(super) init: Process,
    pub(super) execs: BTreeMap<String, Process>,
    /// Set between a Create from a checkpoint and its Start.
    pub(super) restore: Option<Restore>,
    pub(super) cgroup: Option<Cgroup>,
    pub(super) oom: Option<oom::Watch>,
    /// The kernel has ended processes for want of memory.
    pub(super) oom_killed: Arc<AtomicBool>,
    /// The first process's exit while it waits for the exits of execs to be announced.
    pub(super) held_exit: Option<Exited>,
    /// The first process has been reaped. [`Container::init_exited`] may still be in the queue.
    pub(super) init_is_gone: bool,
    /// A Create failed, and the runtime could not delete what it had made.
    pub(super) left: bool,
    mailbox: (mpsc::WeakUnboundedSender<Job>, mpsc::WeakUnboundedSender<Peek>),
    peeked: mpsc::UnboundedReceiver<Peek>,
    /// Keeps the shim alive until the container is dropped.
    _hold: Hold,
}

impl Container {
    /// The process of `exec_id`; the first process where that is empty.
    ///
    /// # Errors
    /// `NotFound` where there is no such exec.
    pub fn process(&mut self, exec_id: &str) -> Result<&mut Process> {
        if exec_id.is_empty() {
            return Ok(&mut self.init);
        }
        let missing = || Error::not_found(format!("exec {exec_id} of container {} does not exist", self.id));
        match self.execs.get_mut(exec_id) {
            Some(process) => Ok(process),
            None => Err(missing()),
        }
    }

    /// Whether the kernel has ended processes for want of memory.
    pub fn was_oom_killed(&self) -> bool {
        self.oom_killed.load(Ordering::Relaxed)
    }

    /// The bundle directory.
    pub fn bundle(&self) -> &std::path::Path {
        &self.bundle
    }

    /// The first process's state and the execs, for a person who debugs a shim.
    pub fn describe(&self) -> String {
        let one = |process: &Process| format!("{:?}:{}:{}", process.id, process.pid, process.state.word());
        let execs: Vec<_> = self.execs.values().map(one).collect();
        format!("{} init {} execs {}", self.id, one(&self.init), execs.join(" "))
    }

    /// Has exits of `pid` delivered to this mailbox, as those of `exec_id`.
    pub(super) fn claim(&self, exec_id: &str, pid: i32) {
        let Some(mailbox) = upgrade(&self.mailbox) else { return };
        let exec_id = exec_id.to_owned();
        self.shim.reaper.claim(pid, move |exited| {
            if exec_id.is_empty() {
                mailbox.interrupt(|container| container.init_is_gone = true);
                mailbox.tell(move |container| Box::pin(async move { container.init_exited(exited).await }));
            } else {
                // No job in progress changes what is announced for an exec that runs, so this need not wait.
                mailbox.interrupt(move |container| container.exec_exited(&exec_id, exited));
            }
        });
    }

    /// Leaves a job for this container after `delay`.
    pub(super) fn later(
        &self,
        delay: std::time::Duration,
        job: impl for<'a> FnOnce(&'a mut Container) -> JobFuture<'a, ()> + Send + 'static,
    ) {
        let mailbox = self.mailbox.clone();
        tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            if let Some(mailbox) = upgrade(&mailbox) {
                mailbox.tell(job);
            }
        });
    }

    /// Runs a command of the runtime, and answers peeks meanwhile.
    ///
    /// # Errors
    /// As [`Runtime::run`].
    pub(super) async fn run<S: AsRef<OsStr>>(&mut self, arguments: &[S], ends: Ends) -> Result<()> {
        self.run_while(arguments, ends, |_| true).await
    }

    /// As [`Container::run`], for a command that is pointless once `wanted` is false: then it is killed.
    ///
    /// # Errors
    /// As [`Runtime::run`]; `FailedPrecondition` where it was killed.
    pub(super) async fn run_while<S: AsRef<OsStr>>(
        &mut self,
        arguments: &[S],
        ends: Ends,
        wanted: fn(&Self) -> bool,
    ) -> Result<()> {
        let runtime = self.runtime.clone();
        let call = runtime.run(arguments, ends);
        tokio::pin!(call);
        loop {
            tokio::select! {
                biased;
                done = &mut call => return done,
                Some(peek) = self.peeked.recv() => peek(self),
            }
            if !wanted(self) {
                return Err(Error::precondition("the container ended"));
            }
        }
    }

    /// Every process in the container; none where only the runtime can tell.
    ///
    /// # Errors
    /// Where the cgroup is gone.
    pub fn pids(&self) -> Result<Option<Vec<ProcessInfo>>> {
        let pids = self.cgroup.as_ref().map(Cgroup::processes).transpose()?;
        Ok(pids.map(|pids| self.named(pids)))
    }

    /// As [`Container::pids`], but the runtime is asked.
    ///
    /// # Errors
    /// Those of the runtime.
    pub async fn pids_by_runtime(&self) -> Result<Vec<ProcessInfo>> {
        let text = self.runtime.output(&["ps", "--format", "json", &self.id]).await?;
        let pids = serde_json::from_slice(&text);
        pids.map(|pids| self.named(pids)).map_err(|error| Error::internal(format!("read process list: {error}")))
    }

    /// Adds to each process that is an exec the identifier of that exec.
    fn named(&self, pids: Vec<u32>) -> Vec<ProcessInfo> {
        let info = |pid: u32| {
            let exec = self.execs.values().find(|exec| exec.wire_pid() == pid);
            let details = exec.map(|exec| any::pack(&ProcessDetails { exec_id: exec.id.clone() }));
            ProcessInfo { pid, info: details }
        };
        pids.into_iter().map(info).collect()
    }
}

fn upgrade((jobs, peeks): &(mpsc::WeakUnboundedSender<Job>, mpsc::WeakUnboundedSender<Peek>)) -> Option<Mailbox> {
    Some(Mailbox { jobs: jobs.upgrade()?, peeks: peeks.upgrade()? })
}
