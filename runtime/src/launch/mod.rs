//! The parent's story of a start: open, clone, converse.

pub mod clone;
pub mod exec;
pub mod gate;
pub mod idmap;
pub mod network;
pub mod notify;
pub mod sources;
pub mod sync;

use std::collections::VecDeque;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use oci_spec::runtime::{Hooks, Process};
use rung_sys::namespace::Namespace;
use rung_sys::pidfd;
use rung_sys::process::{Exit, Pid, Target};

use crate::cgroups::{Cgroup, Entry};
use crate::error::{Doing as _, Error, Kind, Result};
use crate::hooks::{self, HookState};
use crate::init::{self, Inherited, binds};
use crate::log;
use crate::plan::InitPlan;
use crate::seccomp::Filter;
use clone::Placement;
use sync::{Order, ParentEnd, Report};

/// The words that begin the error of a failed start. They are runc's: callers look for them.
pub const NOT_STARTED: &str = "unable to start container process";

/// As [`NOT_STARTED`], for what failed in the container's first process.
pub const IN_INIT: &str = "error during container init";

/// How often a cgroup that somebody removes before the process is in it is made again.
const RENEWALS: usize = 5;

/// How long a killed process may take to end.
pub const DYING: Duration = Duration::from_secs(10);

/// What a start needs beside the plan.
#[derive(Debug)]
pub struct Launch<'a> {
    /// What the process will do.
    pub plan: &'a InitPlan,
    /// What hooks are told.
    pub state: &'a HookState,
    /// The hooks of the runtime's side.
    pub hooks: Option<&'a Hooks>,
    /// The gate, for `create`.
    pub gate: Option<OwnedFd>,
    /// Made without root.
    pub rootless: bool,
    /// There is a profile, for which a filter will be compiled.
    pub filtered: bool,
}

/// A compiled profile: the filter, and where its listener goes.
pub type Compiled = (Option<Filter>, Option<notify::Destination>);

/// A process that was made; once [`Started::converse`] has returned it waits for nothing but `go`.
#[derive(Debug)]
pub struct Started {
    /// Its number.
    pub pid: Pid,
    /// Its descriptor.
    pub pidfd: OwnedFd,
    /// The master of its terminal.
    pub console: Option<OwnedFd>,
    sync: ParentEnd,
    /// It was let go.
    gone_on: bool,
    /// What it reported before the process in between had told of it.
    early: VecDeque<Report>,
}

/// Makes the first process of a container, and works beside it: while the process makes its namespaces, `provide` makes
/// its cgroups (it is told whether the process is in the v2 one); while the process mounts, `compile` makes
/// its seccomp filter. The second value is where the listener of that filter goes.
pub fn start_init(
    launch: Launch<'_>,
    cgroup: &mut Cgroup,
    provide: impl FnOnce(&mut Cgroup, bool) -> Result<Entry>,
    compile: impl FnOnce() -> Result<Compiled>,
) -> Result<(Started, Option<notify::Destination>)> {
    let plan = launch.plan;
    let joined = clone::open_joined(&plan.namespaces)?;
    if let Some(stated) = &plan.stated_ids {
        idmap::verify(stated, &joined)?;
    }
    let sources = sources::open(plan, &joined)?;
    let network = network_for_devices(plan, &joined)?;
    let (parent, child) = sync::pair()?;
    if !runs_hooks_inside(launch.hooks) {
        parent.limit_silence()?;
    }
    let time_offsets = plan.namespaces.time_offsets.as_deref().filter(|_| !plan.namespaces.makes(Namespace::User));
    let for_children = plan.namespaces.joins(Namespace::Pid) || time_offsets.is_some();
    let by_another = plan.namespaces.joins(Namespace::User) || launch.rootless && for_children;
    let attached = cgroup.is_out_of_reach();
    let born_into = if by_another || attached { None } else { cgroup.clone_into() };
    let inherited = Inherited {
        sync: child,
        cgroup: None,
        views: cgroup.views(),
        namespaces: joined,
        sources,
        gate: launch.gate,
        filtered: launch.filtered,
        maps_by_user: plan.ids.is_some() && !nix::unistd::geteuid().is_root(),
    };
    let is_in = born_into.is_some() || attached;
    if !inherited.maps_by_user {
        // The process begins as this one is: others may see it from its first moment on.
        init::process::shut_off()?;
    }
    let placement = Placement {
        flags: clone_flags(plan),
        joined: &inherited.namespaces,
        time_offsets,
        cgroup: born_into,
        by_another,
    };
    let newborn = clone::make_process(&placement, &inherited.sync, |joined| {
        parent.close_copy();
        init::run(plan, &inherited, launch.state, joined)
    })?;
    drop(inherited);
    let mut early = VecDeque::new();
    let (pid, pidfd) = clone::claim(newborn, || announced(&parent, &mut early))?;
    let started = Started { pid, pidfd, console: None, sync: parent, gone_on: false, early };
    let outcome = settle(&started, plan, network, launch.rootless).and_then(|()| {
        if attached {
            cgroup.attach(pid).map_err(cgroup_error)?;
        }
        let entry = provide(cgroup, is_in)?;
        started.sync.prepared(&entry.descriptors())?;
        started.hand_over(launch.filtered, compile)
    });
    match outcome {
        Ok(listener) => Ok((started, listener)),
        Err(error) => {
            started.abort();
            Err(error)
        }
    }
}

/// Whether the process runs hooks itself, which may take as long as they like.
fn runs_hooks_inside(hooks: Option<&Hooks>) -> bool {
    let some = |list: &Option<Vec<oci_spec::runtime::Hook>>| list.as_ref().is_some_and(|list| !list.is_empty());
    hooks.is_some_and(|hooks| some(hooks.create_container()) || some(hooks.start_container()))
}

/// The number of the container's process, as the process in between tells it. Reports that the container's process
/// itself sends before that are kept in `early`.
fn announced(parent: &ParentEnd, early: &mut VecDeque<Report>) -> Result<i32> {
    loop {
        match parent.receive()? {
            Some(Report::Forked(pid)) => return Ok(pid),
            Some(Report::Failed(error)) => return Err(error),
            Some(report) => early.push_back(report),
            None => return Err(Error::new(Kind::Internal, "the process in between ended without a word")),
        }
    }
}

/// The new namespaces that the process is cloned into. Not among them: the cgroup namespace, which the process makes
/// once it is in its cgroup; a time namespace with offsets, which the parent makes because they are written before
/// anybody is in it; and those of [`InitPlan::makes_itself`].
fn clone_flags(plan: &InitPlan) -> u64 {
    let by_clone = |kind: &&Namespace| match kind {
        Namespace::Cgroup => false,
        Namespace::Time => plan.namespaces.time_offsets.is_none(),
        kind => !plan.makes_itself(**kind),
    };
    plan.namespaces.make.iter().filter(by_clone).fold(0, |flags, kind| flags | kind.flag())
}

/// The joined network namespace, when there are devices to move into it.
fn network_for_devices(plan: &InitPlan, joined: &[(Namespace, OwnedFd)]) -> Result<Option<OwnedFd>> {
    let found = joined.iter().find(|(kind, _)| *kind == Namespace::Network && !plan.net_devices.is_empty());
    Ok(found.map(|(_, namespace)| namespace.try_clone()).transpose()?)
}

/// What the new process cannot do for itself.
fn settle(started: &Started, plan: &InitPlan, network: Option<OwnedFd>, rootless: bool) -> Result<()> {
    set_oom_score(started.pid, &plan.process.spec, rootless)?;
    if plan.namespaces.has(Namespace::User) {
        init::process::raise_limits(started.pid, &plan.process.spec)?;
    }
    if let Some(maps) = &plan.ids {
        idmap::write(started.pid, maps, rootless)?;
    }
    if !plan.net_devices.is_empty() {
        let namespace = network::namespace_of(plan, network, started.pid)?;
        network::move_devices(plan, namespace.as_fd())?;
    }
    Ok(())
}

/// How the parent answers what the process asks.
#[derive(Debug)]
pub struct Answers<'a> {
    /// The hooks of the runtime's side.
    pub hooks: Option<&'a Hooks>,
    /// What they are told.
    pub state: &'a HookState,
    /// Where a seccomp listener goes.
    pub listener: Option<notify::Destination>,
}

impl Started {
    /// Compiles the seccomp filter and, for a process that is `filtered`, sends it; returns where its listener goes.
    fn hand_over(
        &self,
        filtered: bool,
        compile: impl FnOnce() -> Result<Compiled>,
    ) -> Result<Option<notify::Destination>> {
        let (filter, listener) = compile()?;
        if filtered {
            self.sync.filter(filter.as_ref())?;
        }
        Ok(listener)
    }

    /// A process that runs already, such as a restored one: there is no conversation to be had with it.
    pub fn adopted(pid: Pid, pidfd: OwnedFd, console: Option<OwnedFd>) -> Result<Self> {
        Ok(Self { pid, pidfd, console, sync: sync::pair()?.0, gone_on: true, early: VecDeque::new() })
    }

    /// Answers until the process needs nothing any more. With `renew` cgroups that were removed before it was in them are
    /// made again.
    pub fn converse(&mut self, answers: &Answers<'_>, mut renew: impl FnMut() -> Result<Entry>) -> Result<()> {
        let mut renewals = 0;
        loop {
            let report = match self.early.pop_front() {
                Some(report) => Some(report),
                None => self.sync.receive()?,
            };
            match report {
                Some(Report::Ready) => return Ok(()),
                Some(Report::Failed(error) | Report::NotExecuted(error)) => return Err(error),
                Some(Report::Warning(text)) => log::warnings(&text),
                Some(Report::Debug(text)) => log::debug(|| text),
                Some(Report::Console(master)) => self.console = Some(master),
                Some(Report::CgroupGone) if renewals < RENEWALS => {
                    renewals += 1;
                    self.sync.prepared(&renew()?.descriptors())?;
                }
                Some(Report::CgroupGone) => {
                    let cause = "the cgroup of the container is removed again and again before its process is in it";
                    return Err(Error::new(Kind::Internal, cause));
                }
                Some(Report::AtHooks) => {
                    self.run_hooks(answers)?;
                    self.sync.send(Order::HooksDone)?;
                }
                Some(Report::Translate { tree, namespace, recursive }) => {
                    binds::translate(tree.as_fd(), namespace.as_fd(), recursive)?;
                    self.sync.send(Order::Translated)?;
                }
                Some(Report::Listener(number)) => {
                    let fd = pidfd::get_fd(self.pidfd.as_fd(), number).doing(|| "take the seccomp listener")?;
                    notify::send(answers, self.pid.as_raw(), &fd)?;
                    self.sync.send(Order::ListenerTaken)?;
                }
                Some(Report::Forked(_)) => {
                    return Err(Error::new(Kind::Internal, "container process: message out of turn"));
                }
                Some(Report::Deaf) => {}
                None => return Err(self.obituary()),
            }
        }
    }

    fn run_hooks(&self, answers: &Answers<'_>) -> Result<()> {
        let pid = Some(self.pid.as_raw());
        #[allow(deprecated, reason = "prestart hooks are deprecated for authors of bundles, not for runtimes")]
        let prestart = answers.hooks.and_then(|hooks| hooks.prestart().as_ref());
        let create_runtime = answers.hooks.and_then(|hooks| hooks.create_runtime().as_ref());
        hooks::run("prestart", prestart.map(Vec::as_slice).unwrap_or_default(), answers.state, "creating", pid)?;
        let list = create_runtime.map(Vec::as_slice).unwrap_or_default();
        hooks::run("createRuntime", list, answers.state, "creating", pid)
    }

    /// Lets the process go on to its exec (or to the gate).
    pub fn go(&mut self) -> Result<()> {
        self.gone_on = self.sync.send(Order::Go)?;
        Ok(())
    }

    /// Waits until the program was executed. `Ok(Some(error))` says why the exec failed, `Err` that the process failed
    /// before it came to the exec.
    pub fn executed(&mut self) -> Result<Option<Error>> {
        loop {
            match self.sync.receive()? {
                // It reads the order to go when nothing is left to be done but the exec.
                None if self.gone_on => return Ok(None),
                None => return Err(self.obituary()),
                Some(Report::Deaf) => self.gone_on = false,
                Some(Report::Failed(error)) => return Err(error),
                Some(Report::NotExecuted(error)) => return Ok(Some(error)),
                Some(Report::Warning(text)) => log::warnings(&text),
                Some(Report::Debug(text)) => log::debug(|| text),
                Some(_) => return Err(Error::new(Kind::Internal, "container process: message out of turn")),
            }
        }
    }

    /// Ends the process and reaps it: nothing may be left of a start that failed.
    pub fn abort(&self) {
        drop(pidfd::send_signal(self.pidfd.as_fd(), libc::SIGKILL));
        self.reap();
    }

    /// Reaps the process. One in an uninterruptible sleep does not die even of SIGKILL, so the wait has a deadline.
    fn reap(&self) -> Option<Exit> {
        if !pidfd::wait_exit(self.pidfd.as_fd(), DYING).unwrap_or(true) {
            log::warning(&format!("process {} of the container does not end", self.pid));
            return None;
        }
        rung_sys::process::wait(Target::Pidfd(self.pidfd.as_fd()), false).ok().flatten().map(|(_, exit)| exit)
    }

    fn obituary(&self) -> Error {
        let how = match self.reap() {
            Some(Exit::Signal(signal)) => {
                format!(
                    "was killed by {} (too little memory, or a filter that forbids what a start needs)",
                    rung_sys::signal::name(signal)
                )
            }
            Some(Exit::Code(code)) => format!("ended with code {code}"),
            None => "is gone".to_owned(),
        };
        Error::new(Kind::Internal, format!("the container's process {how} before it was ready"))
    }
}

/// The badness for the out-of-memory killer; absent means untouched.
pub fn set_oom_score(pid: Pid, process: &Process, rootless: bool) -> Result<()> {
    let Some(score) = process.oom_score_adj() else { return Ok(()) };
    let path = format!("/proc/{pid}/oom_score_adj");
    let written = std::fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .and_then(|mut file| std::io::Write::write_all(&mut file, score.to_string().as_bytes()));
    match written {
        Err(error) if rootless && matches!(error.raw_os_error(), Some(libc::EACCES | libc::EPERM)) => Ok(()),
        other => other.doing(|| format!("process.oomScoreAdj: write {score} to {path}")),
    }
}

/// A cgroup that could not be made, in the words that callers look for.
pub fn cgroup_not_made(error: crate::cgroups::Error) -> Error {
    let error = cgroup_error(error);
    match error.kind() {
        Kind::Invalid => error,
        _ => error.while_doing("unable to apply cgroup configuration"),
    }
}

/// A failed cgroup operation as an error of the runtime.
pub fn cgroup_error(error: crate::cgroups::Error) -> Error {
    let kind = match &error {
        crate::cgroups::Error::Invalid { .. } => Kind::Invalid,
        crate::cgroups::Error::Deadline { .. } | crate::cgroups::Error::Silent => Kind::Timeout,
        error if error.is_denied() => Kind::Permission,
        _ => Kind::Internal,
    };
    match kind {
        Kind::Invalid => Error::new(kind, format!("invalid configuration: {error}")),
        _ => Error::new(kind, format!("cgroup: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_may_be_faster_than_the_one_that_tells_of_it() {
        let (parent, child) = sync::pair().expect("pair");
        child.warning("early");
        child.forked(7).expect("send");
        let mut early = VecDeque::new();
        assert_eq!(announced(&parent, &mut early).expect("number"), 7);
        assert!(matches!(&early.make_contiguous()[..], [Report::Warning(text)] if text == "early"));
        drop(child);
        assert!(announced(&parent, &mut early).is_err());
    }
}
