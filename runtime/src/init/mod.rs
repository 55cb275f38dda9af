//! The first process of a container: what it does between its clone and its exec, in order.
//!
//! | # | Step | Why here |
//! |---|---|---|
//! | 1 | default signals | |
//! | 2 | ids of a user namespace | everything below needs the capabilities inside it |
//! | 3 | namespaces, loopback, root file system | while the runtime makes the cgroups, unless it had to write the ids first |
//! | 4 | cgroups, cgroup namespace | the mounts below are counted; the cgroup namespace shows as its root where the process is when it is made |
//! | 5 | mounts, devices | mounts of proc, sysfs and mqueue show the namespaces the mounter is in; the host's tree can still be reached for bind sources |
//! | 6 | hooks of the runtime and createContainer hooks | they see the whole tree, before the old root is gone |
//! | 7 | change of root, console | from here on no host path can be reached |
//! | 8 | names, settings, read-only and hidden paths | settings need `/proc/sys` writable, so they come before it is locked |
//! | 9 | limits, scheduling | need capabilities that step 10 gives up |
//! | 10 | filter, ids, groups, capabilities | before waiting, so that a bad user or profile fails `create`, not `start` |
//! | 11 | look the program up | as the user that will execute it |
//! | 12 | wait, startContainer hooks, exec | |
//!
//! The seccomp filter is loaded in step 10 before capabilities go when the process may gain privileges (loading needs
//! `CAP_SYS_ADMIN` then), and as the very last thing before the wait when it may not.

pub mod binds;
mod cgroup_mount;
mod console;
mod copy_up;
mod credentials;
pub mod devices;
pub mod exec;
mod harden;
mod hint;
mod join;
pub mod mounts;
mod network;
mod pivot;
pub mod process;
pub mod rootfs;
mod stdio;
mod sysctl;
pub mod target;

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use nix::errno::Errno;
use rung_sys::namespace::{self, Namespace};

use crate::cgroups::Entry;
use crate::error::{Doing as _, Error, Result};
use crate::hooks::{self, HookState};
use crate::launch::gate;
use crate::launch::sources::Source;
use crate::launch::sync::ChildEnd;
use crate::plan::InitPlan;
use crate::seccomp::Filter;

/// What the parent opened for the child.
#[derive(Debug)]
pub struct Inherited {
    /// The process's end of the conversation.
    pub sync: ChildEnd,
    /// The way into the cgroups, where they are there already.
    pub cgroup: Option<Entry>,
    /// Namespaces to join, by descriptor.
    pub namespaces: Vec<(Namespace, OwnedFd)>,
    /// Where the sources of bind mounts come from, in the order of the mounts.
    pub sources: Vec<Source>,
    /// The hierarchies as the container will see them.
    pub views: Vec<crate::cgroups::View>,
    /// The gate, for `create`.
    pub gate: Option<OwnedFd>,
    /// The runtime will hand over a filter.
    pub filtered: bool,
    /// The runtime, which is an ordinary user's, will write the id maps.
    pub maps_by_user: bool,
}

impl Inherited {
    /// Closes all other descriptors but the first three and as many more as are wished.
    pub fn close_others(&self, preserved: u32) -> Result<()> {
        let mut keep = vec![self.sync.as_fd()];
        keep.extend(self.namespaces.iter().map(|(_, namespace)| namespace.as_fd()));
        keep.extend(self.cgroup.iter().flat_map(Entry::descriptors));
        Ok(rung_sys::process::close_others(preserved.saturating_add(3), &keep)?)
    }

    fn filter(&self) -> Result<Option<&Filter>> {
        if self.filtered { self.sync.filter() } else { Ok(None) }
    }
}

/// Runs the whole of it; returns only to report why it failed, and to end.
pub fn run(plan: &InitPlan, inherited: &Inherited, state: &HookState, joined: &[Namespace]) -> u8 {
    let sync = &inherited.sync;
    match set_up(plan, inherited, state, joined) {
        Err(error) => {
            sync.failed(&error);
            1
        }
        Ok(program) => {
            if let Some(gate) = &inherited.gate {
                // The runtime that made the container must not wait for a program that starts tomorrow.
                let error = behind_gate(gate, plan, state, &program);
                gate::leave_reason(gate, &error);
                return error.exit_code();
            }
            let error = start(plan, state, &program);
            sync.not_executed(&error);
            error.exit_code()
        }
    }
}

fn behind_gate(gate: &OwnedFd, plan: &InitPlan, state: &HookState, program: &exec::Program) -> Error {
    match gate::wait(gate) {
        Ok(()) => start(plan, state, program),
        Err(error) => error,
    }
}

fn start(plan: &InitPlan, state: &HookState, program: &exec::Program) -> Error {
    let hooks = &plan.start_container_hooks;
    if let Err(error) = hooks::run_inside("startContainer", hooks, state, "created", Some(&program.variables)) {
        return error;
    }
    program.execute()
}

fn set_up(plan: &InitPlan, inherited: &Inherited, state: &HookState, joined: &[Namespace]) -> Result<exec::Program> {
    let sync = &inherited.sync;
    let mask = process::begin()?;
    // An ordinary user could not write the id maps of a process that is shut off. Root can, and must not leave it open:
    // to whoever is root of the host's user namespace, the process of a new one is his, even without a capability.
    if !inherited.maps_by_user {
        process::shut_off()?;
    }
    if inherited.gate.is_some() {
        process::end_when_told()?;
    }
    sync.debug(|| "nsexec container setup".into());
    let goes_ahead = plan.goes_ahead();
    if !goes_ahead {
        enter_cgroups(sync)?;
    }
    if plan.ids.is_some() {
        // Before `shut_off` where that is to come: it gives the files of /proc that this writes to to root of the host.
        join::time_namespace(plan)?;
        process::shut_off()?;
    }
    join::namespaces(plan, inherited, joined)?;
    sync.debug(|| "child process in init()".into());
    rung_sys::process::new_session()?;
    if plan.process.keyring.is_some() {
        process::join_keyring(&plan.process, sync)?;
    }
    network::set_up(plan)?;
    let root = rootfs::prepare(plan)?;
    // The runtime has been making the cgroups until here. It makes the filter while this process mounts.
    if goes_ahead {
        enter_cgroups(sync)?;
    }
    process::reset_affinity();
    new_cgroup_namespace(plan)?;
    let read_only_later = mounts::mount_all(plan, inherited, &root)?;
    devices::set_up(plan, &root)?;
    // A profile that makes no filter fails the start before any hook could know of it.
    let filter = inherited.filter()?;
    if plan.stops_for_runtime_hooks {
        sync.at_hooks()?;
    }
    if !plan.create_container_hooks.is_empty() {
        // The working directory tells such a hook where the root is.
        nix::unistd::fchdir(&root).doing(|| "change to the root for hooks")?;
    }
    let hooks = &plan.create_container_hooks;
    process::masked(mask, || hooks::run_inside("createContainer", hooks, state, "creating", None))?;
    credentials::make_directory(root.as_fd(), plan.process.spec.cwd())?;
    pivot::change_root(plan, &root)?;
    if plan.process.terminal() {
        console::set_up(&plan.process, plan.devices.is_some(), sync)?;
    }
    set_names(plan)?;
    sysctl::write(plan)?;
    harden::apply(plan, &read_only_later)?;
    // `finish` closes descriptors by number, so their owners are dropped before it.
    drop((root, read_only_later));
    // With `run` a failure can be reported until the exec, so the runtime may publish the record beside the last steps,
    // unless it has to fetch a listener. With `create` all steps are done when that returns.
    let early = inherited.gate.is_none() && !filter.is_some_and(|filter| filter.listener);
    if early {
        sync.ready()?;
    }
    let program = finish(&plan.process, filter, &state.outputs(), inherited)?;
    sync.debug(|| "init: closing the pipe to signal completion".into());
    if !early {
        sync.ready()?;
    }
    sync.go()?;
    Ok(program)
}

/// Waits for the cgroups and goes into them.
fn enter_cgroups(sync: &ChildEnd) -> Result<()> {
    let mut ways_in = sync.prepared()?;
    loop {
        match Entry::received(ways_in).enter(false) {
            // Removed meanwhile: on v1 systemd takes away whatever is empty. The runtime says when it is enough.
            Err((_, Errno::ENODEV)) => ways_in = sync.cgroup_gone()?,
            entered => return entered.map_err(not_entered),
        }
    }
}

/// The kernel's answer is told as runc tells it: callers look for these words.
fn not_entered((path, errno): (PathBuf, Errno)) -> Error {
    let pid = nix::unistd::getpid();
    Error::from(errno).while_doing(format!("error adding pid {pid} to cgroups: {}", path.display()))
}

/// Steps 9 to 11, which an `exec` takes too.
fn finish(
    process: &crate::plan::process::ProcessPlan,
    filter: Option<&Filter>,
    outputs: &[BorrowedFd<'_>],
    inherited: &Inherited,
) -> Result<exec::Program> {
    stdio::prepare(process)?;
    let mut keep = vec![inherited.sync.as_fd()];
    keep.extend(inherited.gate.as_ref().map(OwnedFd::as_fd));
    keep.extend(outputs);
    rung_sys::process::close_others(process.preserve_fds.saturating_add(3), &keep)?;
    process::limit(process)?;
    process::set_limits(&process.spec)?;
    credentials::become_user(process, filter, &inherited.sync)
}

/// Runs an `exec`ed program to its exec; returns only to report why it failed. `born`: it is in its v2 cgroup already.
pub fn run_exec(
    process: &crate::plan::process::ProcessPlan,
    inherited: &Inherited,
    joined: &[Namespace],
    born: bool,
) -> u8 {
    let attempt = || -> Result<Error> {
        let sync = &inherited.sync;
        process::begin()?;
        process::shut_off()?;
        sync.debug(|| "nsexec container setup".into());
        process::set_affinity(process, true)?;
        sync.debug(|| format!("nsexec: affinity: {:#x}", process::affinity_mask()));
        inherited.cgroup.as_ref().map_or(Ok(()), |entry| entry.enter(born)).map_err(not_entered)?;
        process::set_affinity(process, false)?;
        join::all(inherited, joined)?;
        sync.debug(|| "child process in init()".into());
        rung_sys::process::new_session()?;
        if process.keyring.is_some() {
            process::join_keyring(process, sync)?;
        }
        if process.terminal() {
            console::set_up_exec(process, sync)?;
        }
        let program = finish(process, inherited.filter()?, &[], inherited)?;
        sync.ready()?;
        sync.go()?;
        sync.debug(|| "setns_init: about to exec".into());
        Ok(program.execute())
    };
    let error = attempt().unwrap_or_else(|error| error);
    inherited.sync.failed(&error);
    error.exit_code()
}

fn set_names(plan: &InitPlan) -> Result<()> {
    if let Some(name) = &plan.hostname {
        nix::unistd::sethostname(name).doing(|| format!("set hostname {name:?}"))?;
    }
    if let Some(name) = &plan.domainname {
        rung_sys::process::set_domain_name(name).doing(|| format!("set domainname {name:?}"))?;
    }
    Ok(())
}

fn new_cgroup_namespace(plan: &InitPlan) -> Result<()> {
    if plan.namespaces.makes(Namespace::Cgroup) {
        namespace::leave(Namespace::Cgroup.flag()).doing(|| "make a cgroup namespace")?;
    }
    Ok(())
}
