//! From an image's configuration and a person's wishes to a runtime configuration.

mod environment;
mod extras;
pub mod profile;

use std::collections::HashMap;
use std::path::PathBuf;

use oci_spec::runtime::{
    BoxBuilder, Capabilities, Linux, LinuxCapabilities, LinuxCpu, LinuxDevice, LinuxMemory, LinuxNamespace,
    LinuxNamespaceType, LinuxPids, LinuxResources, Mount, PosixRlimit, PosixRlimitBuilder, PosixRlimitType, Process,
    Root, Spec,
};

use crate::defaults::{self, capabilities};
use crate::image::ContainerConfig;
use crate::user::User;
use environment::environment;
pub use environment::merge_environment;
pub use extras::{Extras, Tmpfs, Ulimit, confine, reserve, weigh};

/// What is wished of a container beyond its image. `Default` wishes nothing.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Replaces the image's command, or follows the entrypoint.
    pub args: Vec<String>,
    /// Replaces the image's entrypoint and drops its command; an empty list clears both.
    pub entrypoint: Option<Vec<String>>,
    /// `KEY=VALUE` replaces or adds, `KEY` removes.
    pub env: Vec<String>,
    /// Replaces the image's working directory.
    pub workdir: Option<String>,
    /// Who it runs as; see [`crate::user::resolve`] with [`user_text`].
    pub user: User,
    /// Name of the machine as the container sees it; not set with the host's network.
    pub hostname: Option<String>,
    /// The process has a terminal.
    pub terminal: bool,
    /// Columns and rows of that terminal.
    pub console_size: Option<(u16, u16)>,
    /// Ceilings on what it uses.
    pub limits: Limits,
    /// Directories and files of the host in the container.
    pub binds: Vec<Bind>,
    /// Whose network it has.
    pub network: Network,
    /// Root file system, relative to the bundle.
    pub rootfs: PathBuf,
    /// Nothing may be written to the root file system.
    pub read_only: bool,
    /// Everything the host's root may do.
    pub privileged: bool,
    /// Nodes made in `/dev` beyond the usual; a privileged container gets the host's.
    pub devices: Vec<LinuxDevice>,
    /// Capabilities beyond the default ones.
    pub cap_add: Vec<String>,
    /// Capabilities taken away.
    pub cap_drop: Vec<String>,
    /// Capabilities the daemon itself can give; `None`: all.
    pub available_capabilities: Option<Capabilities>,
    /// Most open files the daemon itself may allow; `None`: as many as wanted.
    pub nofile_ceiling: Option<u64>,
    /// Path of the cgroup.
    pub cgroups_path: PathBuf,
    /// Notes for the runtime and its hooks.
    pub annotations: HashMap<String, String>,
    /// What few wish for.
    pub extras: Extras,
}

/// Ceilings; 0 is none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of memory.
    pub memory: i64,
    /// Bytes of memory and swap together; 0: twice the memory, -1: any.
    pub memory_swap: i64,
    /// Billionths of a processor.
    pub nano_cpus: i64,
    /// Processes and threads; -1: any.
    pub pids: i64,
    /// Microseconds of processor time in each period, in place of `nano_cpus`.
    pub cpu_quota: i64,
    /// Microseconds of a period; the usual number where there is a quota.
    pub cpu_period: i64,
}

/// A part of the host's file system in the container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bind {
    /// Absolute path on the host.
    pub source: String,
    /// Absolute path in the container.
    pub destination: String,
    /// Not to be written through.
    pub read_only: bool,
    /// Propagation of later mounts; empty: `rprivate`.
    pub propagation: String,
    /// What is mounted below the source is not shown.
    pub shallow: bool,
    /// Where it is not to be written through, what is mounted below it is neither.
    pub all_read_only: bool,
}

/// Whose network a container has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Network {
    /// Its own, with nothing but loopback.
    #[default]
    Private,
    /// The host's.
    Host,
    /// An existing network namespace.
    Join(PathBuf),
}

/// Wishes that cannot be met.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidOptions {
    /// Neither the image nor the person names a program.
    #[error("no command: the image has none, so give one after the image's name")]
    NoCommand,
    /// A working directory that depends on another.
    #[error("working directory {0:?} is not an absolute path")]
    Workdir(String),
    /// A bind that cannot be.
    #[error("bind {source_path}:{destination}: {reason}")]
    Bind {
        /// Host side.
        source_path: String,
        /// Container side.
        destination: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A limit that cannot be.
    #[error("{0}")]
    Limit(&'static str),
    /// A capability that is not one.
    #[error(transparent)]
    Capability(#[from] capabilities::UnknownCapability),
    /// One of the wishes that few have.
    #[error("{0}")]
    Extra(String),
    /// An environment entry without a name.
    #[error("environment variable {0:?} has no name")]
    Env(String),
    /// A NUL byte, which no argument or variable can hold.
    #[error("{0} contains a NUL byte")]
    Nul(&'static str),
}

/// Whom the container runs as before lookup: the wish, else the image's.
pub fn user_text<'a>(image: &'a ContainerConfig, wish: &'a str) -> &'a str {
    if wish.is_empty() { &image.user } else { wish }
}

/// The whole command line: an entrypoint wished for drops the image's command, a command wished for replaces it.
///
/// # Errors
/// Where nothing is left to run.
pub fn command_line(image: &ContainerConfig, options: &Options) -> Result<Vec<String>, InvalidOptions> {
    let (entrypoint, image_command): (&[String], &[String]) = match &options.entrypoint {
        Some(entrypoint) => (entrypoint, &[]),
        None => (&image.entrypoint, &image.cmd),
    };
    let command = if options.args.is_empty() { image_command } else { &options.args };
    let line: Vec<String> = entrypoint.iter().chain(command).cloned().collect();
    match line.first() {
        Some(program) if !program.is_empty() => Ok(line),
        // An empty word of the person is looked for as any other, and not found.
        Some(_) if entrypoint.is_empty() && !options.args.is_empty() => Ok(line),
        _ => Err(InvalidOptions::NoCommand),
    }
}

/// The runtime configuration of a container of `image` with `options`.
///
/// # Errors
/// Names the wish that cannot be met.
pub fn build(image: &ContainerConfig, options: &Options) -> Result<Spec, InvalidOptions> {
    let available =
        options.available_capabilities.clone().unwrap_or_else(|| capabilities::ALL.iter().copied().collect());
    let bounding = if options.privileged {
        available
    } else {
        capabilities::adjust(&options.cap_add, &options.cap_drop, &available)?
    };
    let mut root = Root::default();
    let rootfs = if options.rootfs.as_os_str().is_empty() { PathBuf::from("rootfs") } else { options.rootfs.clone() };
    root.set_path(rootfs).set_readonly(Some(options.read_only));
    let mut spec = Spec::default();
    spec.set_version(defaults::OCI_VERSION.to_owned())
        .set_root(Some(root))
        .set_hostname(options.hostname.clone())
        .set_process(Some(process(image, options, &bounding)?))
        .set_mounts(Some(mounts(options)?))
        .set_annotations((!options.annotations.is_empty()).then(|| options.annotations.clone()))
        .set_linux(Some(linux(options, &bounding)?));
    options.extras.apply(&mut spec, &options.network)?;
    Ok(spec)
}

fn process(image: &ContainerConfig, options: &Options, bounding: &Capabilities) -> Result<Process, InvalidOptions> {
    let args = command_line(image, options)?;
    let env = environment(image, options)?;
    for (what, texts) in [("command", &args), ("environment", &env)] {
        if texts.iter().any(|text| text.contains('\0')) {
            return Err(InvalidOptions::Nul(what));
        }
    }
    let mut user = oci_spec::runtime::User::default();
    user.set_uid(options.user.uid)
        .set_gid(options.user.gid)
        .set_additional_gids((!options.user.additional_gids.is_empty()).then(|| options.user.additional_gids.clone()));
    let console = options.console_size.map(|(width, height)| {
        BoxBuilder::default().width(width).height(height).build().expect("each field of a console size has a default")
    });
    let mut process = Process::default();
    process
        .set_terminal(Some(options.terminal))
        .set_console_size(console.filter(|_| options.terminal))
        .set_user(user)
        .set_args(Some(args))
        .set_env(Some(env))
        .set_cwd(workdir(image, options)?)
        .set_capabilities(Some(capability_sets(options.user.uid, bounding)))
        .set_rlimits(Some(vec![nofile(options.nofile_ceiling)]))
        .set_no_new_privileges(Some(false));
    Ok(process)
}

/// Root gets what is allowed; others could get it through a set-user-id program, but do not start with it.
fn capability_sets(uid: u32, bounding: &Capabilities) -> LinuxCapabilities {
    let held = (uid == 0).then(|| bounding.clone());
    let mut sets = LinuxCapabilities::default();
    sets.set_bounding(Some(bounding.clone()))
        .set_effective(held.clone())
        .set_permitted(held)
        .set_inheritable(None)
        .set_ambient(None);
    sets
}

/// The limit on open files that programs expect, as far as `ceiling` lets it be.
pub fn nofile(ceiling: Option<u64>) -> PosixRlimit {
    let (soft, hard) = defaults::NOFILE;
    let hard = ceiling.map_or(hard, |ceiling| hard.min(ceiling));
    let limit = PosixRlimitBuilder::default().typ(PosixRlimitType::RlimitNofile).soft(soft.min(hard)).hard(hard);
    limit.build().expect("each field of a limit has a default")
}

fn workdir(image: &ContainerConfig, options: &Options) -> Result<PathBuf, InvalidOptions> {
    let text = match options.workdir.as_deref().filter(|text| !text.is_empty()) {
        Some(text) => text,
        None if image.working_dir.is_empty() => "/",
        None => &image.working_dir,
    };
    if !text.starts_with('/') {
        return Err(InvalidOptions::Workdir(text.to_owned()));
    }
    Ok(PathBuf::from(text))
}

/// The default mounts less those a bind takes the place of, then the binds, outer ones before inner ones.
fn mounts(options: &Options) -> Result<Vec<Mount>, InvalidOptions> {
    let mut binds: Vec<(String, Mount)> = Vec::with_capacity(options.binds.len());
    for wish in &options.binds {
        let (destination, mount) = bind(wish)?;
        if binds.iter().any(|(other, _)| *other == destination) {
            return Err(bind_error(wish, "another bind has the same place in the container"));
        }
        binds.push((destination, mount));
    }
    let replaced = |mount: &Mount| {
        let place = mount.destination().to_string_lossy();
        binds.iter().any(|(bind, _)| *bind == place || (bind == "/dev" && place.starts_with("/dev/")))
    };
    let mut mounts: Vec<Mount> =
        defaults::mounts::default(options.privileged).into_iter().filter(|mount| !replaced(mount)).collect();
    binds.sort_by_key(|(destination, _)| destination.matches('/').count());
    mounts.extend(binds.into_iter().map(|(_, mount)| mount));
    Ok(mounts)
}

fn bind_error(wish: &Bind, reason: &'static str) -> InvalidOptions {
    InvalidOptions::Bind { source_path: wish.source.clone(), destination: wish.destination.clone(), reason }
}

fn bind(wish: &Bind) -> Result<(String, Mount), InvalidOptions> {
    if !wish.source.starts_with('/') {
        return Err(bind_error(wish, "the host's path is not absolute"));
    }
    if !wish.destination.starts_with('/') {
        return Err(bind_error(wish, "the path in the container is not absolute"));
    }
    if wish.source.contains('\0') || wish.destination.contains('\0') {
        return Err(bind_error(wish, "a path contains a NUL byte"));
    }
    let parts: Vec<&str> = wish.destination.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    if parts.contains(&"..") {
        return Err(bind_error(wish, "the path in the container has '..' in it"));
    }
    if parts.is_empty() {
        return Err(bind_error(wish, "the container's root cannot be replaced"));
    }
    let propagation = match wish.propagation.as_str() {
        "" => "rprivate",
        known @ ("private" | "rprivate" | "shared" | "rshared" | "slave" | "rslave") => known,
        _ => return Err(bind_error(wish, "unknown propagation")),
    };
    let mut flags = vec![if wish.shallow { "bind" } else { "rbind" }.to_owned(), propagation.to_owned()];
    if wish.read_only {
        flags.push(if wish.all_read_only { "rro" } else { "ro" }.to_owned());
    }
    let destination = format!("/{}", parts.join("/"));
    let mount = defaults::mounts::mount(&destination, "bind", &wish.source, flags);
    Ok((destination, mount))
}

fn linux(options: &Options, bounding: &Capabilities) -> Result<Linux, InvalidOptions> {
    let list = |paths: &[&str]| (!options.privileged).then(|| paths.iter().map(|path| (*path).to_owned()).collect());
    let sysctl = (options.network == Network::Private).then(|| {
        defaults::NETWORK_SYSCTLS.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    });
    let mut linux = Linux::default();
    linux
        .set_namespaces(Some(namespaces(&options.network, options.hostname.is_some())))
        .set_cgroups_path(Some(options.cgroups_path.clone()))
        .set_resources(Some(resources(options)?))
        .set_devices((!options.devices.is_empty()).then(|| options.devices.clone()))
        .set_sysctl(sysctl)
        .set_masked_paths(list(defaults::paths::MASKED))
        .set_readonly_paths(list(defaults::paths::READONLY))
        .set_seccomp((!options.privileged).then(|| defaults::seccomp::default(bounding)));
    Ok(linux)
}

fn namespaces(network: &Network, is_named: bool) -> Vec<LinuxNamespace> {
    let namespace = |kind, path: Option<PathBuf>| {
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(kind).set_path(path);
        namespace
    };
    let mut namespaces: Vec<_> =
        [LinuxNamespaceType::Mount, LinuxNamespaceType::Pid, LinuxNamespaceType::Ipc, LinuxNamespaceType::Cgroup]
            .into_iter()
            .map(|kind| namespace(kind, None))
            .collect();
    // The host's network comes with the host's name, which programs look up to find their own address, unless the
    // container was given one.
    match network {
        Network::Host => {}
        Network::Private => namespaces.push(namespace(LinuxNamespaceType::Network, None)),
        Network::Join(path) => namespaces.push(namespace(LinuxNamespaceType::Network, Some(path.clone()))),
    }
    if *network != Network::Host || is_named {
        namespaces.push(namespace(LinuxNamespaceType::Uts, None));
    }
    namespaces
}

/// The kernel counts processor time in periods of this many microseconds.
const CPU_PERIOD: u64 = 100_000;
/// The periods and the smallest quota that the kernel takes, in microseconds.
const CPU_PERIODS: std::ops::RangeInclusive<i64> = 1_000..=1_000_000;
const MIN_CPU_QUOTA: i64 = 1_000;
/// Below this a container cannot even start.
const MIN_MEMORY: i64 = 6 << 20;

fn resources(options: &Options) -> Result<LinuxResources, InvalidOptions> {
    let mut resources = limited(options.limits)?;
    let rules = if options.privileged { defaults::devices::everything() } else { defaults::devices::default() };
    resources.set_devices(Some(rules));
    Ok(resources)
}

/// Limits alone, as a running container is given them: without rules about devices.
///
/// # Errors
/// Names a limit that cannot be.
pub fn limited(limits: Limits) -> Result<LinuxResources, InvalidOptions> {
    let mut resources = LinuxResources::default();
    resources.set_devices(None).set_memory(memory(limits)?);
    resources.set_cpu(cpu(limits)?);
    match limits.pids {
        0 => {}
        limit if limit >= -1 => {
            let mut pids = LinuxPids::default();
            pids.set_limit(limit);
            resources.set_pids(Some(pids));
        }
        _ => return Err(InvalidOptions::Limit("pids limit: must be -1 (any) or more")),
    }
    Ok(resources)
}

fn cpu(limits: Limits) -> Result<Option<LinuxCpu>, InvalidOptions> {
    let mut cpu = LinuxCpu::default();
    match (limits.nano_cpus, limits.cpu_quota, limits.cpu_period) {
        (0, 0, 0) => return Ok(None),
        (..0, _, _) => return Err(InvalidOptions::Limit("cpus: must not be negative")),
        (1.., 0, 0) => {
            let quota = (limits.nano_cpus / 10_000).max(MIN_CPU_QUOTA);
            cpu.set_period(Some(CPU_PERIOD)).set_quota(Some(quota));
        }
        (1.., _, _) => return Err(InvalidOptions::Limit("cpus: cannot be given together with a cpu quota or period")),
        (0, quota, period) => {
            if quota != 0 && quota != -1 && quota < MIN_CPU_QUOTA {
                return Err(InvalidOptions::Limit("cpu quota: must be at least 1000 microseconds, or -1 for any"));
            }
            if period != 0 && !CPU_PERIODS.contains(&period) {
                return Err(InvalidOptions::Limit("cpu period: must be between 1000 and 1000000 microseconds"));
            }
            let period = u64::try_from(period).ok().filter(|period| *period > 0).unwrap_or(CPU_PERIOD);
            cpu.set_period(Some(period)).set_quota(Some(quota).filter(|quota| *quota != 0));
        }
    }
    Ok(Some(cpu))
}

fn memory(limits: Limits) -> Result<Option<LinuxMemory>, InvalidOptions> {
    let swap = match (limits.memory, limits.memory_swap) {
        (0, 0 | -1) => return Ok(None),
        (0, _) => return Err(InvalidOptions::Limit("memory and swap: needs a memory limit too")),
        (memory, _) if memory < MIN_MEMORY => return Err(InvalidOptions::Limit("memory: must be at least 6 MiB")),
        (memory, 0) => memory.saturating_mul(2),
        (_, -1) => -1,
        (memory, swap) if swap < memory => {
            return Err(InvalidOptions::Limit(
                "memory and swap: must be at least the memory limit, or -1 for any swap",
            ));
        }
        (_, swap) => swap,
    };
    let mut memory = LinuxMemory::default();
    memory.set_limit(Some(limits.memory)).set_swap(Some(swap));
    Ok(Some(memory))
}

#[cfg(test)]
mod tests;
