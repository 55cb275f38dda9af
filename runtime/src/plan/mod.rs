//! What the container's first process will do, decided before it exists.
//!
//! The configuration is turned into an [`InitPlan`] in the parent: pure, testable without root, and every refusal comes
//! before anything on the host was touched. The child inherits the plan through the fork and only carries it out.

pub mod devices;
pub mod extensions;
pub mod ids;
pub mod mounts;
pub mod namespaces;
pub mod process;
pub mod sysctl;

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Hook, Linux, Spec};
use rung_sys::mount::{Propagation, attribute};
use rung_sys::namespace::Namespace;

use crate::container::readiness;
use crate::error::{Error, Result};
use devices::DevicePlan;
use extensions::Extensions;
use ids::IdMaps;
use mounts::{MountKind, MountPlan};
use namespaces::NamespacePlan;
use process::ProcessPlan;

/// Everything the child does between its clone and its exec.
#[derive(Debug)]
pub struct InitPlan {
    /// Namespaces to make and to join.
    pub namespaces: NamespacePlan,
    /// Id maps of a new user namespace.
    pub ids: Option<IdMaps>,
    /// Id maps that the configuration says a joined user namespace has.
    pub stated_ids: Option<IdMaps>,
    /// The root file system.
    pub root: RootPlan,
    /// Mounts, in the order of the configuration.
    pub mounts: Vec<MountPlan>,
    /// Device nodes; `None` where `/dev` comes from the host.
    pub devices: Option<DevicePlan>,
    /// Paths to hide.
    pub masked: Vec<PathBuf>,
    /// Paths to make read-only.
    pub read_only: Vec<PathBuf>,
    /// Kernel settings: path below `/proc/sys`, value.
    pub sysctl: Vec<(String, String)>,
    /// Network devices to move: name on the host, name in the container.
    pub net_devices: Vec<(String, String)>,
    /// The host name.
    pub hostname: Option<String>,
    /// The NIS domain name.
    pub domainname: Option<String>,
    /// SELinux label of mounts, and the option that carries it.
    pub mount_label: Option<String>,
    /// What annotations ask for beyond the specification.
    pub extensions: Extensions,
    /// The program.
    pub process: ProcessPlan,
    /// Hooks that run in the container's namespaces before the root is changed.
    pub create_container_hooks: Vec<Hook>,
    /// Hooks that run in the container just before its program.
    pub start_container_hooks: Vec<Hook>,
    /// Whether the parent has hooks to run while the namespaces exist and the root is not changed yet.
    pub stops_for_runtime_hooks: bool,
}

/// The root file system.
#[derive(Debug)]
pub struct RootPlan {
    /// Where it is on the host, with links resolved.
    pub path: PathBuf,
    /// Read-only in the end.
    pub read_only: bool,
    /// What the configuration asked for; `None` means slave while it is made.
    pub propagation: Option<(Propagation, bool)>,
    /// Change the root without pivot_root(2), for roots in an initial ramdisk.
    pub no_pivot: bool,
}

/// What the command line adds to the configuration.
#[derive(Debug, Default, Clone, Copy)]
pub struct Wishes {
    /// `--no-pivot`.
    pub no_pivot: bool,
    /// `--no-new-keyring`.
    pub no_new_keyring: bool,
    /// `--preserve-fds` (and `LISTEN_FDS`).
    pub preserve_fds: u32,
    /// The systemd socket protocol was used: the container's LISTEN_PID becomes 1.
    pub listen_fds: Option<u32>,
}

impl InitPlan {
    /// Decides everything that can be decided from the configuration alone.
    pub fn new(id: &str, bundle: &Path, rootfs: PathBuf, spec: &Spec, wishes: Wishes) -> Result<Self> {
        let linux = spec.linux().as_ref();
        let namespaces = NamespacePlan::new(linux)?;
        let has_mount_namespace = namespaces.has(Namespace::Mount);
        let masked = paths(linux.and_then(|linux| linux.masked_paths().as_ref()));
        let read_only = paths(linux.and_then(|linux| linux.readonly_paths().as_ref()));
        let restricts = !masked.is_empty() || !read_only.is_empty();
        if restricts && !has_mount_namespace {
            return Err(Error::invalid("unable to restrict sys entries without a private MNT namespace"));
        }
        let own_uts = namespaces.has(Namespace::Uts);
        if !own_uts && spec.hostname().as_ref().is_some_and(|name| !name.is_empty()) {
            return Err(Error::invalid("unable to set hostname without a private UTS namespace"));
        }
        if !own_uts && spec.domainname().as_ref().is_some_and(|name| !name.is_empty()) {
            return Err(Error::invalid("unable to set domainname without a private UTS namespace"));
        }
        let propagation = root_propagation(linux.and_then(|linux| linux.rootfs_propagation().as_deref()))?;
        if wishes.no_pivot && matches!(propagation, Some((Propagation::Private, _))) {
            return Err(Error::invalid("rootfsPropagation of [r]private is not safe without pivot_root"));
        }
        let ids = IdMaps::new(linux, &namespaces)?;
        let stated_ids = IdMaps::stated(linux, &namespaces)?;
        let mapped = ids.as_ref().or(stated_ids.as_ref());
        let mut mounts =
            mounts::plan(spec, mounts::Context { bundle, rootfs: &rootfs, namespaces: &namespaces, ids: mapped })?;
        let devices = devices::plan(linux, &mounts)?;
        let hooks = spec.hooks().as_ref();
        #[allow(deprecated, reason = "prestart hooks are deprecated for authors of bundles, not for runtimes")]
        let prestart = hooks.and_then(|hooks| hooks.prestart().as_ref());
        let create_runtime = hooks.and_then(|hooks| hooks.create_runtime().as_ref());
        let list = |hooks: Option<&Vec<Hook>>| hooks.cloned().unwrap_or_default();
        let extensions = Extensions::read(spec.annotations().as_ref())?;
        if let Some(place) = &extensions.named_hierarchy {
            mounts::show_named_hierarchy(&mut mounts, place)?;
        }
        let mut process = ProcessPlan::for_init(id, spec, wishes)?;
        process.keep_groups = extensions.keep_groups;
        Ok(Self {
            ids,
            stated_ids,
            root: RootPlan {
                path: rootfs,
                read_only: spec.root().as_ref().and_then(oci_spec::runtime::Root::readonly).unwrap_or(false),
                propagation,
                no_pivot: wishes.no_pivot,
            },
            mounts,
            devices,
            masked,
            read_only,
            sysctl: sysctl::plan(linux, &namespaces)?,
            hostname: spec.hostname().clone().filter(|name| !name.is_empty()),
            domainname: spec.domainname().clone().filter(|name| !name.is_empty()),
            mount_label: linux.and_then(|linux| linux.mount_label().clone()).filter(|label| !label.is_empty()),
            process,
            extensions,
            create_container_hooks: list(hooks.and_then(|hooks| hooks.create_container().as_ref())),
            start_container_hooks: list(hooks.and_then(|hooks| hooks.start_container().as_ref())),
            stops_for_runtime_hooks: [prestart, create_runtime].into_iter().flatten().any(|list| !list.is_empty()),
            net_devices: net_devices(linux),
            namespaces,
        })
    }

    /// Shows the container a directory with a socket, and tells its program of it.
    pub fn show_readiness(&mut self, directory: PathBuf) {
        self.mounts.push(MountPlan::shown(directory, readiness::DIRECTORY));
        let socket = format!("{}/{}", readiness::DIRECTORY, readiness::SOCKET);
        process::replace(&mut self.process.env, "NOTIFY_SOCKET", &socket);
    }

    /// The user, as the host counts, who may make cgroups below the container's: that of the program, where it has a
    /// cgroup namespace of its own and can write to the file system that shows it.
    pub fn cgroup_owner(&self) -> Option<u32> {
        let usual = |step: &MountPlan| step.destination == Path::new("/sys/fs/cgroup") && shows_cgroups_writable(step);
        if !self.namespaces.makes(Namespace::Cgroup) || !self.mounts.iter().any(usual) {
            return None;
        }
        let user = self.process.spec.user().uid();
        match &self.ids {
            Some(ids) => ids.host_uid(user),
            None if self.namespaces.joins(Namespace::User) => None,
            None => Some(user),
        }
    }

    /// Whether the first process can go on without the runtime until it needs its cgroups: nobody has to write its id
    /// maps or move network devices to it first.
    pub fn goes_ahead(&self) -> bool {
        self.ids.is_none() && self.net_devices.is_empty() && !self.namespaces.joins(Namespace::User)
    }

    /// Whether the first process makes the new namespace of this kind itself, rather than being cloned into it. Then the
    /// runtime does not have to wait while the kernel makes it; and `/dev/mqueue` belongs to whoever makes an IPC
    /// namespace, who must be root of the container's user namespace by then.
    pub fn makes_itself(&self, kind: Namespace) -> bool {
        match kind {
            Namespace::Ipc => self.goes_ahead() || self.namespaces.has(Namespace::User),
            Namespace::Mount | Namespace::Network | Namespace::Uts => self.goes_ahead(),
            _ => false,
        }
    }

    /// Whether the container can write where it sees its cgroups.
    pub fn shows_cgroups_writable(&self) -> bool {
        self.mounts.iter().any(shows_cgroups_writable)
    }
}

fn shows_cgroups_writable(step: &MountPlan) -> bool {
    step.kind == MountKind::Cgroup && (step.options.set | step.options.set_recursive) & attribute::RDONLY == 0
}

fn net_devices(linux: Option<&Linux>) -> Vec<(String, String)> {
    let devices = linux.and_then(|linux| linux.net_devices().as_ref()).into_iter().flatten();
    let renamed = devices.map(|(name, device)| {
        let new = device.name().clone().filter(|new| !new.is_empty());
        (name.clone(), new.unwrap_or_else(|| name.clone()))
    });
    let mut list: Vec<_> = renamed.collect();
    // The order of a map says nothing; that of templated names should.
    list.sort();
    list
}

fn paths(texts: Option<&Vec<String>>) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = Vec::new();
    for path in texts.into_iter().flatten().map(PathBuf::from) {
        // A path named twice would be covered twice. Compared as text: comparing by components takes longer than the
        // rest of the plan.
        if !paths.iter().any(|known| known.as_os_str() == path.as_os_str()) {
            paths.push(path);
        }
    }
    paths
}

fn root_propagation(text: Option<&str>) -> Result<Option<(Propagation, bool)>> {
    Ok(Some(match text {
        None | Some("") => return Ok(None),
        Some("shared") => (Propagation::Shared, false),
        Some("rshared") => (Propagation::Shared, true),
        Some("slave") => (Propagation::Slave, false),
        Some("rslave") => (Propagation::Slave, true),
        Some("private") => (Propagation::Private, false),
        Some("rprivate") => (Propagation::Private, true),
        Some("unbindable") => (Propagation::Unbindable, false),
        Some("runbindable") => (Propagation::Unbindable, true),
        Some(other) => {
            return Err(Error::invalid(format!("linux.rootfsPropagation: rootfsPropagation={other} is not supported")));
        }
    }))
}
