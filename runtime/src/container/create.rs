//! Making a container: everything up to, and not including, the exec of its program.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use oci_spec::runtime::{ContainerState, LinuxResources, LinuxSeccomp, LinuxSeccompAction, LinuxSyscall, Spec};
use rung_sys::namespace::Namespace;
use rung_sys::process::Pid;
use rung_sys::seccomp::{FLAG_TSYNC, FLAG_TSYNC_ESRCH};

use super::birth::Birth;
use super::id::ContainerId;
use super::readiness::Readiness;
use super::record::{CgroupConfig, Config, Json, Record};
use super::store::Entry;
use super::{Settings, host_root};
use crate::bundle::Bundle;
use crate::cgroups::Cgroup;
use crate::clock;
use crate::error::{Doing as _, Error, Result};
use crate::exe;
use crate::hooks::{self, HookState};
use crate::launch::{self, Compiled, Started, notify};
use crate::log;
use crate::plan::extensions::Extensions;
use crate::plan::namespaces::record_key;
use crate::plan::{InitPlan, Wishes};
use crate::resctrl::Resctrl;
use crate::seccomp;

/// The flags of `create` and `run`.
#[derive(Debug, Default, Clone)]
pub struct Options {
    /// The bundle.
    pub bundle: PathBuf,
    /// Another configuration than the bundle's.
    pub config: Option<PathBuf>,
    /// Gets the master of the terminal.
    pub console_socket: Option<PathBuf>,
    /// Gets the descriptor of the first process.
    pub pidfd_socket: Option<PathBuf>,
    /// Gets the number of the first process.
    pub pid_file: Option<PathBuf>,
    /// What the plan has to respect.
    pub wishes: Wishes,
    /// The socket of the service manager that waits for the program to be ready.
    pub readiness: Option<PathBuf>,
    /// The caller does not stay with the container.
    pub detached: bool,
    /// The process waits for `start`.
    pub gated: bool,
}

/// A container whose process waits for `go`.
#[derive(Debug)]
pub struct Made {
    /// Its directory.
    pub entry: Entry,
    /// Its record, saved.
    pub record: Record,
    /// Its process.
    pub started: Started,
    /// Its cgroups.
    pub cgroup: Cgroup,
    /// Its configuration.
    pub spec: Spec,
    /// What hooks are told.
    pub state: HookState,
    /// What the program says to the service manager; of a gated one, `start` listens.
    pub readiness: Option<Readiness>,
}

/// How long removing the cgroup of a container may take.
pub const REMOVAL: Duration = Duration::from_secs(10);

/// Makes a container. On failure nothing of it is left.
pub fn make(settings: &Settings, id: &ContainerId, options: &Options) -> Result<Made> {
    let bundle = Bundle::open(&options.bundle, options.config.as_deref())?;
    let rootfs = bundle.rootfs()?;
    let mut plan = InitPlan::new(id.as_str(), &bundle.path, rootfs, &bundle.spec, options.wishes)?;
    check(&plan, options, settings.rootless)?;
    plan.process.visible = options.gated && exe::is_of_another_user();
    // Processes of others will see the new one. With `--debug` time is no matter, and the log says what protects it.
    if !plan.namespaces.makes(Namespace::Pid) || log::is_debug() {
        exe::protect()?;
    }
    let linux = bundle.spec.linux().as_ref();
    let cgroups_path = linux.and_then(|linux| linux.cgroups_path().as_deref());
    let mut cgroup = plan_cgroup(settings, id, &bundle.spec, &plan)?;
    log::debug(|| format!("bundle {} is planned: {} mounts", bundle.path.display(), plan.mounts.len()));
    let mut resctrl = plan_resctrl(&bundle.spec, id)?;
    let state = hook_state(id, &bundle, &plan)?;
    let record = first_record(settings, id, &bundle, &plan, &cgroup, cgroups_path)?;
    let mut record = with_group(record, resctrl.as_ref());
    let entry = settings.store.claim(id)?;
    // Before the first cgroup is made: a run that is killed from here on leaves what `delete --force` needs.
    let begun = entry.plan(&record).and_then(|()| {
        let resources = linux.and_then(|linux| linux.resources().as_ref());
        cgroup.begin(resources.filter(|_| !settings.without_cgroup), None).map_err(launch::cgroup_not_made)
    });
    let wanted = match begun {
        Ok(wanted) => wanted,
        Err(error) => {
            // What it had made is gone again; what was there before, perhaps another container's, is not ours to touch.
            if let Err(error) = entry.remove() {
                log::warning(&error.to_string());
            }
            return Err(error.while_doing(launch::NOT_STARTED));
        }
    };
    let mut birth = Birth {
        spec: &bundle.spec,
        plan: &mut plan,
        options,
        rootless: settings.rootless,
        entry: &entry,
        cgroup: &mut cgroup,
        wanted: &wanted,
        resctrl: resctrl.as_mut(),
        record: &mut record,
        state: &state,
        begun: false,
    };
    match birth.run() {
        Ok((started, readiness)) => Ok(Made { entry, record, started, cgroup, spec: bundle.spec, state, readiness }),
        Err(error) => {
            let spec = Some(&bundle.spec).filter(|_| birth.begun);
            let error = match cgroup.ran_out_of_memory() {
                // Whichever step has failed, this is the reason.
                true => error.while_doing("container init was OOM-killed (memory limit too low?)"),
                false => error,
            };
            undo(&entry, &cgroup, spec, &state);
            if let Some(Err(error)) = record.host_mount.map(|before| host_root::release(&plan.root.path, before)) {
                log::warning(&error.to_string());
            }
            if let Some(group) = &mut resctrl {
                group.take_back();
            }
            Err(error.while_doing(launch::NOT_STARTED))
        }
    }
}

fn plan_cgroup(settings: &Settings, id: &ContainerId, spec: &Spec, plan: &InitPlan) -> Result<Cgroup> {
    let linux = spec.linux().as_ref();
    if settings.without_cgroup {
        check_without_cgroup(plan, linux.and_then(|linux| linux.resources().as_ref()))?;
        return Ok(Cgroup::none());
    }
    let path = linux.and_then(|linux| linux.cgroups_path().as_deref());
    let cgroup = Cgroup::plan(path, id.as_str(), settings.systemd, settings.rootless)
        .map_err(launch::cgroup_error)?
        .with_annotations(spec.annotations().as_ref())
        .below(plan.extensions.subgroup.as_deref())
        .shown_writable(plan.shows_cgroups_writable());
    if plan.extensions.delegated.is_some() {
        check_delegation(plan, &cgroup)?;
    }
    Ok(cgroup)
}

/// The share of cache and memory bandwidth, where the configuration speaks of it.
pub(super) fn plan_resctrl(spec: &Spec, id: &ContainerId) -> Result<Option<Resctrl>> {
    let wanted = spec.linux().as_ref().and_then(|linux| linux.intel_rdt().as_ref());
    wanted.map(|wanted| Resctrl::plan(wanted, id.as_str())).transpose()
}

/// Records the resctrl group before it is made, so that `delete` finds it even if this run is killed in between.
fn with_group(mut record: Record, group: Option<&Resctrl>) -> Record {
    if let Some(group) = group {
        record.intel_rdt_owned = group.will_be_owned();
        record.intel_rdt_path = group.path().display().to_string();
    }
    record
}

pub(super) fn enter_resctrl(resctrl: Option<&mut Resctrl>, pids: &[Pid], record: &mut Record) -> Result<()> {
    if let Some(group) = resctrl {
        record.intel_rdt_owned = group.enter(pids)?;
        record.intel_rdt_path = group.path().display().to_string();
    }
    Ok(())
}

/// Adds to a record what is known once the first process is there.
pub(super) fn complete(record: &mut Record, pid: Pid, start_time: u64, cgroup: &Cgroup) {
    record.init_process_pid = pid.as_raw();
    record.init_process_start = start_time;
    record.cgroup_paths = cgroup.paths();
    record.namespace_paths = Namespace::ALL
        .iter()
        .map(|kind| (record_key(*kind).to_owned(), PathBuf::from(format!("/proc/{pid}/ns/{}", kind.proc_name()))))
        .collect();
    let described = |number: u8| std::fs::read_link(format!("/proc/{pid}/fd/{number}")).unwrap_or_default();
    record.external_descriptors = (0..3).map(|number| described(number).to_string_lossy().into_owned()).collect();
}

/// Takes back what a failed start has made. The failure itself is reported by the caller; what goes wrong here is only
/// warned of. Without `spec` no hooks run: nobody has been told of the container yet.
pub(super) fn undo(entry: &Entry, cgroup: &Cgroup, spec: Option<&Spec>, state: &HookState) {
    let warn = |outcome: Result<()>| {
        if let Err(error) = outcome {
            log::warning(&error.to_string());
        }
    };
    warn(cgroup.kill().map_err(launch::cgroup_error));
    warn(cgroup.remove(REMOVAL).map_err(launch::cgroup_error));
    let poststop = spec.and_then(|spec| spec.hooks().as_ref()).and_then(|hooks| hooks.poststop().as_deref());
    warn(hooks::run_last(poststop, state));
    warn(entry.remove());
}

/// What a plan and the flags must have in common.
pub(super) fn check(plan: &InitPlan, options: &Options, rootless: bool) -> Result<()> {
    if rootless && !plan.net_devices.is_empty() {
        return Err(Error::invalid("linux.netDevices: network devices are not supported for rootless containers"));
    }
    if !nix::unistd::geteuid().is_root() && !plan.namespaces.has(Namespace::User) {
        let needed =
            "a container of an ordinary user needs a user namespace (`spec --rootless` writes such a config.json)";
        return Err(Error::invalid(format!("linux.namespaces: {needed}")));
    }
    check_console(options.detached, plan.process.terminal(), options.console_socket.as_deref())?;
    if let Some(ids) = plan.ids.as_ref().or(plan.stated_ids.as_ref()) {
        let user = plan.process.spec.user();
        if ids.host_uid(user.uid()).is_none() || ids.host_uid(0).is_none() {
            return Err(Error::invalid("process.user.uid: cannot set uid to unmapped user in user namespace"));
        }
        if ids.host_gid(user.gid()).is_none() || ids.host_gid(0).is_none() {
            return Err(Error::invalid("process.user.gid: cannot set gid to unmapped user in user namespace"));
        }
        let others = user.additional_gids().as_deref().unwrap_or_default();
        if let Some(index) = others.iter().position(|gid| ids.host_gid(*gid).is_none()) {
            let what =
                format!("process.user.additionalGids[{index}]: {} is not mapped in the user namespace", others[index]);
            return Err(Error::invalid(what));
        }
    }
    check_labels(&plan.process.spec)
}

/// A console socket is given exactly where there is a terminal and nobody stays to serve it.
pub fn check_console(detached: bool, terminal: bool, socket: Option<&Path>) -> Result<()> {
    match (detached && terminal, socket) {
        (true, None) => Err(Error::invalid("cannot allocate tty if runc will detach without setting console socket")),
        (false, Some(_)) => Err(Error::invalid("cannot use console socket if runc will not detach or allocate tty")),
        _ => Ok(()),
    }
}

/// Without a cgroup only a pid namespace tells what belongs to a container, and nothing is limited.
fn check_without_cgroup(plan: &InitPlan, resources: Option<&LinuxResources>) -> Result<()> {
    if !plan.namespaces.makes(Namespace::Pid) {
        let reason = "needs a container with a pid namespace of its own, or what it leaves running could not be found";
        return Err(Error::unsupported(format!("--cgroup-manager disabled: {reason}")));
    }
    if plan.extensions.delegated.is_some() {
        return Err(Error::unsupported("annotations[\"run.oci.delegate-cgroup\"]: not with --cgroup-manager disabled"));
    }
    // Rules of devices are in every configuration.
    let limits = resources.is_some_and(|limits| {
        let mut limits = limits.clone();
        limits.set_devices(None);
        limits != LinuxResources::default()
    });
    if limits {
        log::warning("linux.resources: with --cgroup-manager disabled nothing is limited");
    }
    Ok(())
}

/// A cgroup can be given away on v2 alone, and below one whose limits the container cannot lift.
fn check_delegation(plan: &InitPlan, cgroup: &Cgroup) -> Result<()> {
    if cgroup.is_unified() && cgroup.unit().is_some() && plan.extensions.subgroup.is_some() {
        return Ok(());
    }
    let needed = "only on cgroup v2, with --systemd-cgroup and run.oci.systemd.subgroup";
    Err(Error::unsupported(format!("annotations[\"run.oci.delegate-cgroup\"]: {needed}")))
}

/// A label that would silently not be applied is refused at `create`.
pub fn check_labels(process: &oci_spec::runtime::Process) -> Result<()> {
    let given = |label: &Option<String>| label.as_ref().is_some_and(|label| !label.is_empty());
    if given(process.apparmor_profile()) && !rung_sys::lsm::apparmor_enabled() {
        return Err(Error::unsupported(
            "process.apparmorProfile: apparmor: config provided but apparmor not supported",
        ));
    }
    if given(process.selinux_label()) && !rung_sys::lsm::selinux_enabled() {
        return Err(Error::unsupported(
            "process.selinuxLabel: selinux label is specified in config, but selinux is disabled or not supported",
        ));
    }
    Ok(())
}

/// The profile with a listener path, where it uses `SCMP_ACT_NOTIFY` and has none: the path comes from the annotation
/// or, as with crun, from the environment. `None` where the profile is complete as it is.
fn with_receiver(profile: &LinuxSeccomp, annotated: Option<PathBuf>) -> Option<LinuxSeccomp> {
    let notifies = |call: &LinuxSyscall| call.action() == LinuxSeccompAction::ScmpActNotify;
    let named = profile.listener_path().as_ref().is_some_and(|path| !path.as_os_str().is_empty());
    if named || !profile.syscalls().iter().flatten().any(notifies) {
        return None;
    }
    let receiver = annotated.or_else(|| std::env::var_os("RUN_OCI_SECCOMP_RECEIVER").map(PathBuf::from))?;
    let mut profile = profile.clone();
    profile.set_listener_path(Some(receiver));
    Some(profile)
}

/// Compiles the seccomp profile of a configuration.
pub fn filter(spec: &Spec) -> Result<Compiled> {
    let extensions = Extensions::read(spec.annotations().as_ref())?;
    if let Some(program) = &extensions.seccomp_program {
        let reason = "annotations[\"run.oci.seccomp_bpf_data\"]: no whole number of instructions";
        return Ok((Some(seccomp::Filter::from_program(program).ok_or_else(|| Error::invalid(reason))?), None));
    }
    let Some(profile) = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref()) else {
        return Ok((None, None));
    };
    let own = with_receiver(profile, extensions.seccomp_receiver);
    let profile = own.as_ref().unwrap_or(profile);
    if extensions.strict_seccomp
        && let Some(name) = seccomp::unknown_call(profile)
    {
        return Err(Error::invalid(format!("linux.seccomp.syscalls: unknown system call {name:?}")));
    }
    let filter = seccomp::compile(profile).map_err(|error| Error::invalid(error.to_string()))?;
    let destination = profile.listener_path().clone().filter(|path| !path.as_os_str().is_empty());
    let destination = destination.map(|path| notify::Destination {
        path,
        metadata: profile.listener_metadata().clone().unwrap_or_default(),
        status: ContainerState::Creating,
        init_pid: None,
    });
    log::debug(|| {
        // Without TSYNC, which changes nothing for a process of one thread: runc does not print it either.
        let flags = (filter.flags | filter.optional_flags) & !(FLAG_TSYNC | FLAG_TSYNC_ESRCH);
        format!("seccomp filter flags: {flags}")
    });
    Ok((Some(filter).filter(|filter| !filter.is_empty()), destination))
}

/// What hooks of a container that is being made are told.
pub(super) fn hook_state(id: &ContainerId, bundle: &Bundle, plan: &InitPlan) -> Result<HookState> {
    let annotations = bundle.spec.annotations().clone().unwrap_or_default();
    Ok(HookState {
        version: bundle.spec.version().clone(),
        id: id.as_str().to_owned(),
        bundle: bundle.path.clone(),
        annotations: annotations.into_iter().collect::<BTreeMap<_, _>>(),
        output: hooks::open_output(&plan.extensions.hook_output)?,
    })
}

/// The record of a container of which nothing was made yet.
pub(super) fn first_record(
    settings: &Settings,
    id: &ContainerId,
    bundle: &Bundle,
    plan: &InitPlan,
    cgroup: &Cgroup,
    cgroups_path: Option<&Path>,
) -> Result<Record> {
    let has_mounts = plan.namespaces.has(Namespace::Mount);
    let mut labels: Vec<String> =
        bundle.spec.annotations().iter().flatten().map(|(key, value)| format!("{key}={value}")).collect();
    labels.sort();
    labels.push(format!("bundle={}", bundle.path.display()));
    Ok(Record {
        id: id.as_str().to_owned(),
        init_process_pid: 0,
        init_process_start: 0,
        created: clock::rfc3339_nanos(SystemTime::now()),
        config: Config {
            rootfs: plan.root.path.clone(),
            labels,
            version: bundle.spec.version().clone(),
            cgroups: CgroupConfig {
                path: cgroups_path.map(Path::to_owned).unwrap_or_default(),
                systemd: settings.systemd,
                rootless: settings.rootless,
            },
            no_new_keyring: plan.process.keyring.is_none(),
            spec: Json::new(&bundle.text),
        },
        rootless: settings.rootless,
        cgroup_paths: cgroup.planned_paths(),
        namespace_paths: BTreeMap::new(),
        external_descriptors: Vec::new(),
        intel_rdt_path: String::new(),
        intel_rdt_owned: false,
        host_mount: if has_mounts { None } else { Some(host_root::mount_id(&plan.root.path)?) },
    })
}

/// Writes the number without a newline, and whole: who waits for the file must never read half.
pub fn write_pid_file(path: &Path, pid: i32) -> Result<()> {
    let written = rung_sys::atomic_file::write_volatile(path, pid.to_string().as_bytes(), 0o666);
    written.doing(|| format!("write pid file {}", path.display()))
}
