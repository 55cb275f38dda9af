//! A pod's logs in one of its own volumes, for a pod that asks for that by annotation: CRI-O's `LinkLogs`.
//!
//! ```text
//! <kubelet>/pods/<uid>/volumes/kubernetes.io~empty-dir/<volume>/logs      the pod's directory of logs, mounted read-only
//!                                                              /<id>.log  leads to that of a container
//! ```
//!
//! Containers may write to the volume, so nothing in it is trusted. The mount goes when the pod is stopped, before the kubelet
//! removes the volume.

use std::ffi::OsStr;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use gantry_proto::gantry::cri::v1::SandboxRecord;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, symlinkat, unlinkat};
use rung_sys::beneath::Root;
use rung_sys::mount::{self, Change, Propagation, attribute};
use rung_sys::mountinfo;

use crate::cri::granted::volume_of_logs;
use crate::cri::{Cri, Sandbox, host, selinux};
use crate::error::{Doing as _, Error, Result};

/// Where the kubelet keeps volumes of this kind.
const VOLUMES: &str = "volumes/kubernetes.io~empty-dir";
/// The directory of logs in the volume.
const LOGS: &str = "logs";

impl Cri {
    /// Has a pod's logs shown in its volume, and leads to the log of the container `id` there. It waits for the disk, and may
    /// be repeated.
    ///
    /// # Errors
    /// Names the annotation, and what is not there.
    pub(super) fn link_log(&self, pod: &SandboxRecord, volume: &str, id: &str, log_path: &str) -> Result<()> {
        let logs = pod.config.as_ref().map(|config| config.log_directory.as_str()).unwrap_or_default();
        let Ok(inside) = Path::new(log_path).strip_prefix(logs) else { return Ok(()) };
        if log_path.is_empty() || logs.is_empty() {
            return Ok(());
        }
        let doing = || format!("annotation link-logs.crio.io: volume {volume}");
        let dir = self.volume_of(pod, volume).doing(doing)?;
        let absent = |error| Error::invalid(format!("{}: {error}", dir.display()));
        let root = Root::open(&dir).map_err(absent).doing(doing)?;
        if mounts_in(&dir, logs).doing(doing)?.is_empty() {
            if !pod.mount_label.is_empty() {
                selinux::relabel(Path::new(logs), &pod.mount_label).doing(doing)?;
            }
            show(&root, Path::new(logs)).map_err(|error| Error::invalid(format!("{LOGS}: {error}"))).doing(doing)?;
        }
        match symlinkat(&Path::new(LOGS).join(inside), &root, OsStr::new(&format!("{id}.log"))) {
            Ok(()) | Err(Errno::EEXIST) => Ok(()),
            Err(error) => Err(std::io::Error::from(error)).doing(doing),
        }
    }

    /// Takes a pod's logs out of its volume. It waits for the disk, and may be repeated.
    pub(in crate::cri) fn unlink_logs(&self, sandbox: &Sandbox) -> Result<()> {
        let record = sandbox.record();
        let config = record.config.clone().unwrap_or_default();
        // What is not allowed any more may have been.
        let Some(volume) = volume_of_logs(&config.annotations) else { return Ok(()) };
        let Ok(dir) = self.volume_of(&record, volume) else { return Ok(()) };
        let doing = || format!("logs in volume {volume}");
        for point in mounts_in(&dir, &config.log_directory).doing(doing)?.iter().rev() {
            mount::detach(point).map_err(std::io::Error::from).doing(doing)?;
        }
        Ok(())
    }

    /// Takes away what leads to a container's log, if there is such a thing. It waits for the disk.
    pub(super) fn unlink_log(&self, pod: &SandboxRecord, id: &str) {
        let annotations = pod.config.as_ref().map(|config| &config.annotations);
        let Some(volume) = annotations.and_then(volume_of_logs) else { return };
        if let Ok(root) = self.volume_of(pod, volume).and_then(|dir| Ok(Root::open(&dir)?)) {
            let _ = unlinkat(&root, OsStr::new(&format!("{id}.log")), UnlinkatFlags::NoRemoveDir);
        }
    }

    fn volume_of(&self, pod: &SandboxRecord, volume: &str) -> Result<PathBuf> {
        let settings = self.config();
        let uid = pod.config.as_ref().and_then(|config| config.metadata.as_ref()).map_or("", |pod| pod.uid.as_str());
        if uid.is_empty() || uid.contains('/') || [".", ".."].contains(&uid) {
            return Err(Error::invalid(format!("config.metadata.uid: {uid:?} is not that of a pod of a kubelet")));
        }
        let dir = settings.kubelet_dir.join("pods").join(uid).join(VOLUMES).join(volume);
        Ok(host::below(&settings.bind_mount_prefix, &dir))
    }
}

/// Mounts a directory of logs in a volume, read-only. A link in its place would lead elsewhere in the container than here.
fn show(volume: &Root, logs: &Path) -> std::io::Result<()> {
    match mkdirat(volume, LOGS, Mode::from_bits_truncate(0o755)) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let place = openat(volume, LOGS, flags, Mode::empty())?;
    let tree = mount::open_tree_at_path(logs, false)?;
    let set = attribute::RDONLY | attribute::NOSUID | attribute::NODEV | attribute::NOEXEC;
    let change = Change { set, propagation: Some(Propagation::Private), ..Change::default() };
    mount::set_attributes(tree.as_fd(), false, &change)?;
    Ok(mount::attach(tree.as_fd(), place.as_fd())?)
}

/// Where `logs` is mounted in a volume. Others may have mounted other things there.
fn mounts_in(volume: &Path, logs: &str) -> std::io::Result<Vec<PathBuf>> {
    let name = Path::new(logs).file_name();
    let is_ours = |mount: &mountinfo::Mounted| {
        mount.point.starts_with(volume) && mount.point != volume && name.is_some() && mount.root.file_name() == name
    };
    let all = mountinfo::read("self")?.into_iter().filter(is_ours);
    Ok(all.map(|mount| mount.point).collect())
}
