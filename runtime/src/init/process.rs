//! Attributes of the process that outlive its exec.

use nix::sys::stat::{Mode, umask};
use oci_spec::runtime::Process;
use rung_sys::process::Pid;
use rung_sys::procfs::Procfs;
use rung_sys::sched::{self, NumberSet};
use rung_sys::{keyring, lsm, personality, rlimit, signal};
use serde::Serialize;

use crate::error::{Doing as _, Error, Result};
use crate::launch::sync::ChildEnd;
use crate::plan::process::ProcessPlan;

/// A clean start, whatever the caller's process had set. Returned is the mask of file modes that it had.
pub fn begin() -> Result<Mode> {
    // The standard library ignores SIGPIPE, and a daemon under `nohup` SIGHUP; a shell cannot even trap what it inherits so.
    signal::reset_all()?;
    Ok(umask(Mode::empty()))
}

/// Does something with the caller's mask: files and mount points are made with exact modes, but what a hook makes must
/// not be everybody's to write.
pub fn masked<T>(mask: Mode, work: impl FnOnce() -> T) -> T {
    let own = umask(mask);
    let done = work();
    umask(own);
    done
}

/// From here to the exec nobody in the container may look into this process.
pub fn shut_off() -> Result<()> {
    Ok(rung_sys::process::set_dumpable(false)?)
}

/// Lets signals end a created container, which has no program yet that could handle them.
pub fn end_when_told() -> Result<()> {
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM] {
        signal::end_on(signal)?;
    }
    Ok(())
}

/// A session keyring of the container's own, so that keys of the caller stay the caller's. An `exec` joins the one its
/// container has, by the same name.
pub fn join_keyring(process: &ProcessPlan, sync: &ChildEnd) -> Result<()> {
    let Some(name) = &process.keyring else { return Ok(()) };
    let label = process.spec.selinux_label().as_deref().filter(|label| !label.is_empty());
    let labelled = |label: &str| -> Result<()> {
        let proc = Procfs::private().or_else(|_| Procfs::open())?;
        lsm::set_selinux_keys(&proc, label).doing(|| format!("label the session keyring {label:?}"))
    };
    label.map(labelled).transpose()?;
    let joined = keyring::join_session(name);
    // The program's own keys get what the policy says.
    label.map(|_| labelled("")).transpose()?;
    match joined {
        Ok(()) => Ok(()),
        // There are no keyrings to protect: the kernel has none, or a filter forbids them.
        Err(error) if error.is(&[libc::ENOSYS]) => Ok(()),
        Err(error) if error.is(&[libc::EPERM, libc::EACCES, libc::EDQUOT]) => {
            sync.warning(&format!("session keyring: {error}"));
            Ok(())
        }
        Err(error) => Err(error).doing(|| "join a session keyring"),
    }
}

/// Scheduling, personality and memory policy: what needs capabilities that go next.
pub fn limit(process: &ProcessPlan) -> Result<()> {
    let spec = &process.spec;
    if let Some(wanted) = spec.scheduler() {
        let flags = wanted.flags().iter().flatten();
        let flags =
            flags.map(|flag| lookup(&sched::FLAGS, flag)).try_fold(0, |all, flag| Ok::<_, Error>(all | flag?))?;
        let mut attributes = sched::Attributes::default();
        attributes.policy = lookup(&sched::POLICIES, &wanted.policy())?;
        attributes.flags = flags;
        attributes.nice = wanted.nice().unwrap_or(0);
        attributes.priority = u32::try_from(wanted.priority().unwrap_or(0))
            .map_err(|_| Error::invalid("process.scheduler.priority: negative"))?;
        attributes.runtime = wanted.runtime().unwrap_or(0);
        attributes.deadline = wanted.deadline().unwrap_or(0);
        attributes.period = wanted.period().unwrap_or(0);
        sched::set(0, &attributes).map_err(|error| {
            // The kernel refuses some policies to a process that may not use all processors.
            let cause = if process.has_cpuset && error.errno() == libc::EPERM {
                " (process scheduler can't be used together with AllowedCPUs)"
            } else {
                ""
            };
            Error::from(error).while_doing(format!("error setting scheduler{cause}"))
        })?;
    }
    if let Some(wanted) = spec.io_priority() {
        let level = u32::try_from(wanted.priority()).ok().filter(|level| *level < 8);
        let level = level.ok_or_else(|| Error::invalid("process.ioPriority.priority: must be 0 to 7"))?;
        let class = lookup(&sched::IO_CLASSES, &wanted.class())?;
        sched::set_io_priority(0, class, level).doing(|| "set I/O priority")?;
    }
    if let Some(wanted) = &process.personality {
        let domain = lookup(&personality::DOMAINS, &wanted.domain())?;
        personality::set(domain).doing(|| "set personality")?;
    }
    if let Some(wanted) = &process.memory_policy {
        let flags = wanted.flags().iter().flatten();
        let mut flags = flags.map(|flag| lookup(&sched::MEMORY_FLAGS, flag));
        let flags = flags.try_fold(0, |all, flag| Ok::<_, Error>(all | flag?))?;
        let mode = lookup(&sched::MEMORY_MODES, &wanted.mode())?;
        let nodes = match wanted.nodes().as_deref().filter(|nodes| !nodes.is_empty()) {
            Some(text) => NumberSet::parse(text).ok_or_else(|| {
                Error::invalid(format!("invalid memory policy node: linux.memoryPolicy.nodes: {text:?}"))
            })?,
            None => NumberSet::default(),
        };
        sched::set_memory_policy(mode, flags, &nodes).doing(|| "set memory policy")?;
    }
    Ok(())
}

/// A start must not inherit the processors that its caller was bound to; the cgroup alone decides.
pub fn reset_affinity() {
    // A kernel that refuses (a cpuset of ours is being changed) leaves what there was, which is no failure of a start.
    drop(sched::reset_affinity(0));
}

/// The processors of an `exec`: those for the way into the cgroup, then those for the program.
pub fn set_affinity(process: &ProcessPlan, initial: bool) -> Result<()> {
    let wanted = process.spec.exec_cpu_affinity().as_ref();
    let given = |list: Option<&String>| list.filter(|list| !list.is_empty()).cloned();
    let first = given(wanted.and_then(|wanted| wanted.initial().as_ref()));
    let last = given(wanted.and_then(|wanted| wanted.cpu_affinity_final().as_ref()));
    let list = match (initial, first, last) {
        (true, first, _) => first,
        (false, _, Some(last)) => Some(last),
        // What the way in was bound to stays, unless nothing was said at all.
        (false, Some(_), None) => None,
        (false, None, None) => {
            reset_affinity();
            None
        }
    };
    let Some(list) = list else { return Ok(()) };
    let processors = NumberSet::parse(&list)
        .ok_or_else(|| Error::invalid(format!("process.execCPUAffinity: {list:?} is no list of processors")))?;
    sched::set_affinity(0, &processors).doing(|| format!("process.execCPUAffinity: bind to {list}"))
}

/// The processors this process is bound to, for the log.
pub fn affinity_mask() -> u64 {
    sched::affinity(0).map(|processors| processors.low_bits()).unwrap_or_default()
}

/// The kernel's number for a word of the configuration.
fn lookup<N: Copy, W: Serialize>(table: &[(&str, N)], word: &W) -> Result<N> {
    let text = serde_json::to_value(word).unwrap_or_default();
    let text = text.as_str().unwrap_or_default();
    let found = table.iter().find(|(name, _)| *name == text);
    found.map(|(_, number)| *number).ok_or_else(|| Error::unsupported(format!("{text}: not known to this build")))
}

/// Sets the resource limits of the calling process, which are at most what they were.
pub fn set_limits(process: &Process) -> Result<()> {
    for (name, number, soft, hard) in limits(process) {
        rlimit::set(0, number?, soft, hard).doing(|| format!("error setting rlimits for {name}"))?;
    }
    Ok(())
}

/// Raises hard limits for a process that loses the right to do so in its user namespace. Limits that only get lower are
/// left to the process, which applies them when its preparations are done.
pub fn raise_limits(pid: Pid, process: &Process) -> Result<()> {
    for (name, number, _, hard) in limits(process) {
        let number = number?;
        let (soft, before) = rlimit::get(pid.as_raw(), number).doing(|| format!("read the limit {name}"))?;
        if hard > before {
            rlimit::set(pid.as_raw(), number, soft, hard).doing(|| format!("error setting rlimits for {name}"))?;
        }
    }
    Ok(())
}

fn limits(process: &Process) -> impl Iterator<Item = (String, Result<u32>, u64, u64)> {
    process.rlimits().iter().flatten().map(|limit| {
        let name = limit.typ().to_string();
        let number = rlimit::number(&name);
        let number = number.ok_or_else(|| Error::invalid(format!("process.rlimits: unknown type {name}")));
        (name, number, limit.soft(), limit.hard())
    })
}
