//! Another process in a container that runs.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use oci_spec::runtime::{ContainerState, Process, Spec};
use rung_sys::file;
use rung_sys::namespace::Namespace;

use super::Container;
use super::create::{check_labels, filter};
use super::status::Status;
use crate::bundle;
use crate::cgroups::Cgroup;
use crate::error::{Doing as _, Error, Kind, Result};
use crate::launch::exec::{ExecLaunch, start_exec};
use crate::launch::{NOT_STARTED, Started, cgroup_error, clone};
use crate::log;
use crate::plan::Wishes;
use crate::plan::extensions::{Extensions, is_filtered};
use crate::plan::process::ProcessPlan;
use crate::resctrl;

/// The flags of `exec` that concern the container.
#[derive(Debug, Default)]
pub struct Options {
    /// What the plan has to respect.
    pub wishes: Wishes,
    /// Do it even though the container is paused.
    pub ignore_paused: bool,
    /// Cgroups below the container's: `[controllers:]path`.
    pub cgroups: Vec<String>,
}

/// The process of the bundle as it is now, which an `exec` starts from; that of `recorded`, the record's configuration,
/// when the bundle is gone, or has not changed and so need not be read again.
pub fn base_process(container: &Container, recorded: &Spec) -> Result<Process> {
    let path = container.record.bundle().join("config.json");
    let process = match file::read_to_string(&path) {
        Ok(text) if text.trim_ascii() != container.record.config.spec.get() => {
            bundle::parse(&text, &path)?.process().clone()
        }
        _ => recorded.process().clone(),
    };
    process.ok_or_else(|| Error::invalid("process property must not be empty"))
}

/// Makes the process and takes it to the point where only the exec is left.
pub fn start(container: &Container, spec: &Spec, process: Process, options: &Options) -> Result<Started> {
    match container.status() {
        Status::Creating | Status::Stopped => return Err(stopped()),
        Status::Paused if !options.ignore_paused => {
            return Err(Error::new(
                Kind::Paused,
                "cannot exec in a paused container (use --ignore-paused to override)",
            ));
        }
        Status::Created | Status::Running | Status::Paused => {}
    }
    log::debug(|| format!("exec {:?} in {}", process.args().as_deref().unwrap_or_default(), container.record.id));
    check_labels(&process)?;
    let wishes = Wishes { no_new_keyring: container.record.config.no_new_keyring, ..options.wishes };
    let mut plan = ProcessPlan::new(&container.record.id, process, spec.linux().as_ref(), wishes)?;
    plan.keep_groups = Extensions::read(spec.annotations().as_ref())?.keep_groups;
    let compile = || {
        let (filter, mut listener) = filter(spec)?;
        if let Some(listener) = &mut listener {
            listener.status = ContainerState::Running;
            listener.init_pid = Some(container.record.init_process_pid);
        }
        Ok((filter, listener))
    };
    let cgroup = container.cgroup();
    let (attached, entry) = match cgroup.is_out_of_reach() {
        true => (Some(beyond_reach(container, cgroup, options).doing(|| NOT_STARTED)?), None),
        false => (None, place(container, cgroup, options).doing(|| NOT_STARTED)?),
    };
    let launch = ExecLaunch {
        process: &plan,
        filtered: is_filtered(spec),
        namespaces: namespaces(container, spec)?,
        entry,
        attached,
        rootless: container.record.rootless,
    };
    let started = start_exec(launch, &container.hook_state(), compile).doing(|| NOT_STARTED)?;
    let share = &container.record.intel_rdt_path;
    if !share.is_empty() {
        // By its maker it is in the runtime's.
        let joined = resctrl::join(Path::new(share), &container.record.id, started.pid);
        joined.doing(|| NOT_STARTED).inspect_err(|_| started.abort())?;
    }
    Ok(started)
}

/// Why an exec failed: a container that has ended meanwhile took along what the error names.
pub fn cause(container: &Container, error: Error) -> Error {
    if container.is_ending() { stopped() } else { error }
}

fn stopped() -> Error {
    Error::new(Kind::NotRunning, "cannot exec in a stopped container")
}

/// The cgroup that only systemd may put the process in: the container's, or where the first process is now.
fn beyond_reach(container: &Container, cgroup: Cgroup, options: &Options) -> Result<Cgroup> {
    if !options.cgroups.is_empty() {
        return cgroup.sub_cgroups(&options.cgroups).map_err(cgroup_error);
    }
    if !cgroup.is_divided() {
        return Ok(cgroup);
    }
    let current = Cgroup::of(container.pid()).map_err(cgroup_error)?;
    Ok(current.managed_by(cgroup.unit().cloned()))
}

/// The way into the container's cgroups. Where they are gone, unknown or cannot hold processes (a service manager inside
/// has made sub-cgroups), the process goes where the container's first process is now. That of an ordinary user may have
/// none.
fn place(container: &Container, cgroup: Cgroup, options: &Options) -> Result<Option<crate::cgroups::Entry>> {
    if !options.cgroups.is_empty() {
        return cgroup.sub_cgroups(&options.cgroups).and_then(Cgroup::open_entry).map(Some).map_err(cgroup_error);
    }
    let unknown = cgroup.is_unknown() && !container.record.rootless;
    let entry = if unknown || cgroup.is_divided() { None } else { Some(cgroup.open_entry()) };
    match entry {
        Some(Ok(entry)) => Ok(Some(entry)),
        Some(Err(error)) if container.record.rootless && error.is_denied() => Ok(None),
        _ => {
            let current = Cgroup::of(container.pid()).map_err(cgroup_error)?;
            current.open_entry().map(Some).map_err(cgroup_error)
        }
    }
}

/// The namespaces of the container, by the descriptors of its first process.
fn namespaces(container: &Container, spec: &Spec) -> Result<Vec<(Namespace, OwnedFd)>> {
    let configured = spec.linux().as_ref().and_then(|linux| linux.namespaces().clone()).unwrap_or_default();
    let mut list = Vec::new();
    for entry in &configured {
        let kind = crate::plan::namespaces::kind(entry.typ());
        let path = PathBuf::from(format!("/proc/{}/ns/{}", container.pid(), kind.proc_name()));
        list.push((kind, file::open(&path, OFlag::O_RDONLY).doing(|| format!("open {}", path.display()))?));
    }
    clone::sort(&mut list);
    // Opened by number: were the process gone and its number given away, these would be another container's.
    if !container.is_alive() {
        return Err(stopped());
    }
    debug_assert!(list.iter().all(|(_, fd)| Namespace::of(fd.as_fd()).is_ok()));
    Ok(list)
}
