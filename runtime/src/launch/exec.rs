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
    mut launch: ExecLaunch<'_>,
    state: &HookState,
    compile: impl FnOnce() -> Result<Compiled>,
) -> Result<Started> {
    let joins_user = launch.namespaces.iter().any(|(kind, _)| *kind == Namespace::User);
    let (parent, child) = sync::pair()?;
    parent.limit_silence()?;
    // What is wished of processors holds from before the cgroup is entered.
    let born_outside = launch.rootless || launch.process.spec.exec_cpu_affinity().is_some();
    let birthplace = launch.entry.as_mut().and_then(Entry::take_birthplace).filter(|_| !born_outside);
    let has_birthplace = birthplace.is_some();
    let inherited = Inherited {
        sync: child,
        cgroup: launch.entry,
        views: Vec::new(),
        namespaces: launch.namespaces,
        sources: Vec::new(),
        gate: None,
        filtered: launch.filtered,
        maps_by_user: false,
    };
    // In two steps, because the container sees the process from its first moment on. With CAP_SYS_PTRACE it can go
    // wherever that is and open what that has open, and so must not find it in the host's root or with its descriptors.
    let placement =
        Placement { flags: 0, joined: &inherited.namespaces, time_offsets: None, cgroup: None, by_another: true };
    // Nor may it find the one in between, where it sees the host's processes: in its user namespace that is its own.
    init::process::shut_off()?;
    let make = |birthplace: Option<OwnedFd>| {
        let born = birthplace.is_some();
        let unshow = || inherited.close_others(launch.process.preserve_fds);
        clone::in_two_steps(&placement, birthplace, &inherited.sync, unshow, |joined| {
            init::run_exec(launch.process, &inherited, joined, born)
        })
    };
    let newborn = match make(birthplace) {
        Err(error) if has_birthplace && error.kind() != Kind::Timeout => make(None),
        made => made,
    }?;
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
