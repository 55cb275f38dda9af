//! Removing a container and everything that belongs to it.

use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rung_sys::pidfd;
use rung_sys::process::Pid;

use super::create::REMOVAL;
use super::id::ContainerId;
use super::record::Record;
use super::status::Status;
use super::store::Store;
use super::{Container, host_root};
use crate::cgroups::Cgroup;
use crate::error::{Error, Kind, Result};
use crate::hooks;
use crate::launch::{DYING, cgroup_error};
use crate::log;

/// `delete`. With `force` it is no error if there is no such container.
pub fn delete(store: &Store, id: &ContainerId, force: bool) -> Result<()> {
    let entry = match store.entry(id) {
        Err(error) if force && error.kind() == Kind::NotFound => return end_unrecorded(&store.path(id)).map(drop),
        other => other?,
    };
    let container = match entry.load() {
        Ok(record) => Container { entry, record },
        // The record is damaged, but the planned one still says where the processes are.
        Err(error) if force && let Some(record) = entry.planned() => {
            log::debug(|| format!("no usable record: {error}"));
            return destroy(&Container { entry, record });
        }
        // A run that was killed before it wrote a record had made nothing else either, so the directory can go. But a
        // record that is damaged or another runtime's may be the only trace of a process that runs: then it stays.
        Err(error) if force && (end_unrecorded(entry.path())? || !entry.may_run()) => {
            log::debug(|| format!("no usable record: {error}"));
            return entry.remove();
        }
        Err(error) => return Err(error),
    };
    let status = container.status();
    match status {
        Status::Stopped => {}
        Status::Created => end(&container)?,
        // Nothing runs yet that could be ended first; what was made until now is found below.
        Status::Creating if force => {}
        _ if force => end(&container)?,
        _ => {
            let message = format!("cannot delete container {id} that is not stopped: {status}");
            return Err(Error::new(Kind::WrongState, message));
        }
    }
    destroy(&container)
}

/// Ends a container of which there is no record, if a cgroup has its mark; says whether one had.
fn end_unrecorded(entry: &Path) -> Result<bool> {
    let found = Cgroup::find_marked(entry).unwrap_or_else(|error| {
        log::debug(|| format!("look for a cgroup of {}: {error}", entry.display()));
        None
    });
    let Some(cgroup) = found else { return Ok(false) };
    cgroup.kill().map_err(cgroup_error)?;
    cgroup.remove(REMOVAL).map_err(cgroup_error)?;
    Ok(true)
}

/// Ends a container that runs, and removes it.
pub fn end_and_destroy(container: &Container) -> Result<()> {
    end(container)?;
    destroy(container)
}

fn end(container: &Container) -> Result<()> {
    if let Ok(process) = pidfd::open(container.pid())
        && container.is_alive()
    {
        drop(pidfd::send_signal(process.as_fd(), libc::SIGKILL));
        // Kills what shares our process numbers too, and thaws: a frozen process does not die on v1.
        container.cgroup().kill().map_err(cgroup_error)?;
        if !pidfd::wait_exit(process.as_fd(), DYING)? {
            return Err(Error::new(
                Kind::Timeout,
                format!("container init (pid {}) still running after SIGKILL", container.pid()),
            ));
        }
    }
    Ok(())
}

/// How long removing the cgroup of a container that is being made is tried before its processes are looked for again.
const ATTEMPT: Duration = Duration::from_millis(50);

/// Ends and removes what a `create` that may still be at work has made until now: its process may come into the cgroups
/// after they were looked at, into one before the others. Once they are gone nothing can be made in them, and without its
/// directory that `create` fails and takes back the rest.
fn clear_unfinished(container: &Container) -> Result<()> {
    let cgroup = container.cgroup();
    let begun = Instant::now();
    let mut ours = false;
    loop {
        let found: Vec<_> =
            cgroup.pids_anywhere().into_iter().filter_map(|pid| Some((pid, pidfd::open(pid).ok()?))).collect();
        // The cgroup may be somebody else's, which that `create` did not get for its container.
        ours = ours || found.iter().any(|(pid, _)| is_of(*pid, &container.record));
        if ours {
            for (_, process) in &found {
                drop(pidfd::send_signal(process.as_fd(), libc::SIGKILL));
            }
            cgroup.kill().map_err(cgroup_error)?;
        }
        match cgroup.remove(ATTEMPT) {
            Err(_) if begun.elapsed() < REMOVAL => {}
            outcome => return outcome.map_err(cgroup_error),
        }
    }
}

/// Whether a process is this program on its way to become the first one of container `id`: then it has the command line
/// of the run that made it. It ends by itself when that run is gone, but a hook of the container may keep it.
///
/// Later it has another program, and is known by its root, which is the container's and nobody else's.
fn is_of(pid: Pid, record: &Record) -> bool {
    let same = |one: &Path, other: &Path| match (std::fs::metadata(one), std::fs::metadata(other)) {
        (Ok(one), Ok(other)) => (one.dev(), one.ino()) == (other.dev(), other.ino()),
        _ => false,
    };
    let (rootfs, its) = (&record.config.rootfs, PathBuf::from(format!("/proc/{pid}/root")));
    is_unfinished(pid, &record.id) || (same(&its, rootfs) && !same(Path::new("/"), rootfs))
}

fn is_unfinished(pid: Pid, id: &str) -> bool {
    let (Ok(own), Ok(its)) = (std::fs::metadata("/proc/self/exe"), std::fs::metadata(format!("/proc/{pid}/exe")))
    else {
        return false;
    };
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    (own.dev(), own.ino()) == (its.dev(), its.ino()) && line.split(|byte| *byte == 0).any(|word| word == id.as_bytes())
}

/// Removes what is left of a container whose first process is gone: all of it is tried, the first failure is reported.
pub fn destroy(container: &Container) -> Result<()> {
    let mut failure = None;
    let mut note = |outcome: Result<()>| {
        if let Err(error) = outcome {
            if failure.is_none() {
                failure = Some(error);
            } else {
                log::warning(&error.to_string());
            }
        }
    };
    let cgroup = container.cgroup();
    if container.record.init_process_pid == 0 {
        note(clear_unfinished(container));
    } else {
        if !cgroup.remove_if_vacant() && !cgroup.pids().unwrap_or_default().is_empty() {
            note(cgroup.kill().map_err(cgroup_error));
        }
        note(cgroup.remove(REMOVAL).map_err(cgroup_error));
    }
    if let Some(before) = container.record.host_mount {
        note(host_root::release(&container.record.config.rootfs, before));
    }
    let record = &container.record;
    if !record.intel_rdt_path.is_empty() {
        note(crate::resctrl::remove(Path::new(&record.intel_rdt_path), &record.id, record.intel_rdt_owned));
    }
    if let Some(error) = failure {
        return Err(error);
    }
    let state = container.hook_state();
    let hooks = container.record.hooks().unwrap_or_default();
    container.entry.remove()?;
    hooks::run_last(hooks.poststop().as_deref(), &state)
}
