//! The parent's story of an `exec`.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use rung_sys::namespace::Namespace;

use super::clone::{self, Placement};
use super::sync;
use super::{Answers, Compiled, Started, announced, cgroup_error, set_oom_score};
use crate::cgroups::{Cgroup, Entry};
use crate::error::{Error, Kind, Result};
use crate::hooks::HookState;
use crate::init::process::raise_limits;
use crate::init::{self, Inherited};
use crate::plan::process::ProcessPlan;

/// What an `exec` needs.
#[derive(Debug)]
pub struct ExecLaunch<'a> {
    /// The program.
    pub process: &'a ProcessPlan,
    /// There is a profile, for which a filter will be compiled.
    pub filtered: bool,
    /// The namespaces of the container, in the order of [`clone::sort`].
    pub namespaces: Vec<(Namespace, OwnedFd)>,
    /// The way into the cgroups.
    pub entry: Option<Entry>,
    /// The cgroup that only systemd may put it in.
    pub attached: Option<Cgroup>,
    /// Made without root.
    pub rootless: bool,
}

/// Makes the process in the container's namespaces and takes it to the point where only the exec is left. Its filter is
/// compiled while it joins them; hooks and the receiver of a listener are told `state`.
pub fn start_exec(
    launch: ExecLaunch<'_>,
    state: &HookState,
    compile: impl FnOnce() -> Result<Compiled>,
) -> Result<Started> {
    let joins_user = launch.namespaces.iter().any(|(kind, _)| *kind == Namespace::User);
    let (parent, child) = sync::pair()?;
    parent.limit_silence()?;
    let inherited = Inherited {
        sync: child,
        cgroup: launch.entry,
        views: Vec::new(),
        namespaces: launch.namespaces,
        sources: Vec::new(),
        gate: None,
        filtered: launch.filtered,
    };
    // Not cloned into a v2 cgroup, though that would not wait for the kernel: the container sees this process from its
    // first moment on, and a directory of the host among its descriptors is a way out.
    let placement = Placement {
        flags: 0,
        joined: &inherited.namespaces,
        time_offsets: None,
        cgroup: None,
        by_another: launch.rootless,
    };
    let newborn = clone::make_process(&placement, &inherited.sync, |joined| {
        parent.close_copy();
        init::run_exec(launch.process, &inherited, joined)
    })?;
    drop(inherited);
    let mut early = VecDeque::new();
    let (pid, pidfd) = clone::claim(newborn, || announced(&parent, &mut early))?;
    let mut started = Started { pid, pidfd, console: None, sync: parent, gone_on: false, early };
    let limits = || if joins_user { raise_limits(pid, &launch.process.spec) } else { Ok(()) };
    let attach = || launch.attached.map_or(Ok(()), |cgroup| cgroup.attach(pid)).map_err(cgroup_error);
    let outcome = set_oom_score(pid, &launch.process.spec, launch.rootless)
        .and_then(|()| limits())
        .and_then(|()| attach())
        .and_then(|()| started.hand_over(launch.filtered, compile))
        .and_then(|listener| {
            let answers = Answers { hooks: None, state, listener };
            started.converse(&answers, || Err(Error::new(Kind::Internal, "an exec makes no cgroup")))
        });
    match outcome {
        Ok(()) => Ok(started),
        Err(error) => {
            started.abort();
            Err(error)
        }
    }
}
