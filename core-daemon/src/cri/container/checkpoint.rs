//! `CheckpointContainer`: a container's processes, the changes of its files, its configuration and its log in one archive,
//! laid out as Kubernetes' runtimes agreed on:
//!
//! | Entry | What it is |
//! |---|---|
//! | `checkpoint/` | criu's images of the processes |
//! | `rootfs-diff.tar` | what changed in the root file system, as a layer |
//! | `spec.dump` | the runtime's configuration |
//! | `config.dump` | what the container and its image are called |
//! | `status.dump`, `status` | how it was: as this interface has it, and the short form that tools look for |
//! | `container.log` | its log so far |
//! | `dump.log`, `stats-dump` | what criu said |

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use gantry_proto::any;
use gantry_proto::containerd::runc::v1::CheckpointOptions;
use gantry_proto::runtime::v1;
use nix::fcntl::OFlag;
use rung_sys::beneath::Root;
use serde_json::{Value, json};
use tempfile::{NamedTempFile, TempDir};

use crate::blocking::blocking;
use crate::cri::store::now;
use crate::cri::{Container, Cri};
use crate::diff::{self, Changes};
use crate::error::{Doing as _, Error, Kind, Result};
use crate::failpoint;
use crate::image::layers::write_changes_of;
use crate::tasks::Task;

/// How long a checkpoint may take where the request does not say.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10 * 60);
/// What the changes of files are compared with is held for no longer than this.
const LEASE_HOURS: i64 = 1;
/// Begin of the name of a directory in which a checkpoint is made.
const PREFIX: &str = "checkpoint-";
/// Entries of the archive that a restore looks at.
pub(super) const IMAGES: &str = "checkpoint";
pub(super) const CHANGES: &str = "rootfs-diff.tar";
pub(super) const CONFIG: &str = "config.dump";

impl Cri {
    pub(in crate::cri) async fn checkpoint_container(
        &self,
        request: v1::CheckpointContainerRequest,
    ) -> Result<v1::CheckpointContainerResponse> {
        let location = PathBuf::from(&request.location);
        if !location.is_absolute() || location.file_name().is_none() {
            return Err(Error::invalid(format!("location: {:?} is not an absolute path of a file", request.location)));
        }
        let patience = match u64::try_from(request.timeout) {
            Ok(0) => DEFAULT_TIMEOUT,
            Ok(seconds) => Duration::from_secs(seconds),
            Err(_) => return Err(Error::invalid(format!("timeout: {} s is negative", request.timeout))),
        };
        let container = self.store().container(&request.container_id)?;
        let doing = || format!("checkpoint container {}", container.id());
        let task = container.task().doing(doing)?;
        let (cri, held, target) = (self.clone(), container.clone(), location.clone());
        // Whoever stops waiting leaves nothing behind: the archive gets its name only here.
        let work = tokio::spawn(async move { cri.checkpoint_now(&held, &task, &target).await });
        let Ok(made) = tokio::time::timeout(patience, work).await else {
            return Err(Error::new(Kind::DeadlineExceeded, format!("not done after {} s", patience.as_secs())))
                .doing(doing);
        };
        let archive = made.map_err(|error| Error::internal(format!("background work: {error}")))?.doing(doing)?;
        archive.persist(&location).map_err(|failed| Error::from(failed.error)).doing(doing)?;
        Ok(v1::CheckpointContainerResponse {})
    }

    async fn checkpoint_now(
        &self,
        container: &Arc<Container>,
        task: &Arc<Task>,
        target: &Path,
    ) -> Result<NamedTempFile> {
        // One after the other: each would thaw what the other has frozen.
        let _turn = container.checkpoints.lock().await;
        let dir = checkpoint_work(task)?;
        // Memory and files are to be of the same moment.
        let held = task.hold().await?;
        failpoint::hit("cri.frozen");
        let made = self.collect(container, task, &dir).await;
        if held {
            task.release().await?;
        }
        made?;
        let target = target.to_owned();
        blocking(move || archive(&dir, &target)).await
    }

    /// Removes what a daemon left that was ended while it made a checkpoint: a copy of the container's memory.
    pub(in crate::cri) fn forget_checkpoints(&self, task: &Task) {
        let entries = std::fs::read_dir(task.bundle().work()).into_iter().flatten().flatten();
        for entry in entries.filter(|entry| entry.file_name().as_bytes().starts_with(PREFIX.as_bytes())) {
            if let Err(error) = rung_sys::beneath::remove(&entry.path()) {
                tracing::warn!(id = %task.id(), %error, "remove a checkpoint that was cut short");
            }
        }
    }

    /// Writes the processes of a container that is frozen, and what belongs to them, into a directory.
    pub(in crate::cri) async fn collect(
        &self,
        container: &Arc<Container>,
        task: &Arc<Task>,
        dir: &TempDir,
    ) -> Result<()> {
        let (images, work) = (dir.path().join(IMAGES), dir.path().join("criu"));
        std::fs::create_dir(&images).doing(|| "make a directory")?;
        let options = CheckpointOptions {
            image_path: images.to_string_lossy().into_owned(),
            work_path: work.to_string_lossy().into_owned(),
            ..CheckpointOptions::default()
        };
        task.checkpoint(&options.image_path, Some(any::pack(&options))).await?;
        let (cri, container, task, dir) = (self.clone(), container.clone(), task.clone(), dir.path().to_owned());
        blocking(move || cri.describe(&container, &task, &dir)).await
    }

    /// Writes everything but the processes.
    fn describe(&self, container: &Container, task: &Task, dir: &Path) -> Result<()> {
        for name in ["dump.log", "stats-dump"] {
            // criu writes statistics only where it was asked to.
            let _ = std::fs::rename(dir.join("criu").join(name), dir.join(name));
        }
        rung_sys::beneath::remove(&dir.join("criu"))?;
        let stored = self.parts().containers.get(&self.context().namespace, container.id())?;
        let snapshotter = self.parts().snapshotters.get(&stored.snapshotter)?;
        let leases = &self.parts().images.leases;
        let lease = leases.temporary(self.context(), "checkpoint", LEASE_HOURS)?;
        let held = self.context().clone().with_lease(&lease.id);
        let mut changes = BufWriter::with_capacity(256 << 10, create(&dir.join(CHANGES))?);
        let written = write_changes_of(&held, snapshotter.as_ref(), &stored.snapshot_key, &mut changes);
        leases.end(self.context(), &lease.id)?;
        written.and_then(|()| Ok(changes.flush()?)).doing(|| "changes of the root file system")?;
        let spec = stored.spec.clone().unwrap_or_default().value;
        create(&dir.join("spec.dump"))?.write_all(&spec).doing(|| "write spec.dump")?;
        let status = super::status_of(container, &self.image_names());
        write_json(dir, CONFIG, &config(container, &status, &stored.runtime.unwrap_or_default().name))?;
        write_json(dir, "status.dump", &long_status(&status))?;
        write_json(dir, "status", &short_status(&status, task.pid()))?;
        let record = container.record();
        let root = self.store().sandbox(&record.sandbox_id)?.log_directory();
        copy_log(Path::new(&root), Path::new(&record.log_path), &dir.join("container.log"))
    }
}

/// A directory for a checkpoint that is being made. On the disk: it is as large as the container's memory.
pub(in crate::cri) fn checkpoint_work(task: &Task) -> Result<TempDir> {
    let dir = tempfile::Builder::new().prefix(PREFIX).tempdir_in(task.bundle().work());
    dir.doing(|| "make a directory")
}

fn config(container: &Container, status: &v1::ContainerStatus, runtime: &str) -> Value {
    let image = status.image.clone().unwrap_or_default().image;
    json!({
        "id": status.id,
        "name": container.record().name,
        "rootfsImage": image,
        "rootfsImageRef": status.image_ref,
        "rootfsImageName": image,
        "runtime": runtime,
        "createdTime": time(status.created_at),
        "checkpointedTime": time(now()),
        "restoredTime": "0001-01-01T00:00:00Z",
        "restored": false,
    })
}

/// The status as other runtimes write it: with the names of the interface's fields.
fn long_status(status: &v1::ContainerStatus) -> Value {
    let metadata = status.metadata.clone().unwrap_or_default();
    let mount = |mount: &v1::Mount| {
        json!({
            "container_path": mount.container_path,
            "host_path": mount.host_path,
            "readonly": mount.readonly,
            "propagation": mount.propagation,
        })
    };
    json!({
        "id": status.id,
        "metadata": {"name": metadata.name, "attempt": metadata.attempt},
        "state": status.state,
        "created_at": status.created_at,
        "started_at": status.started_at,
        "image": {"image": status.image.clone().unwrap_or_default().image},
        "image_ref": status.image_ref,
        "image_id": status.image_id,
        "labels": status.labels,
        "annotations": status.annotations,
        "mounts": status.mounts.iter().map(mount).collect::<Vec<_>>(),
        "log_path": status.log_path,
    })
}

fn short_status(status: &v1::ContainerStatus, pid: u32) -> Value {
    json!({
        "CreatedAt": status.created_at,
        "StartedAt": status.started_at,
        "FinishedAt": 0,
        "ExitCode": 0,
        "Pid": pid,
        "Reason": "",
        "Message": "",
    })
}

fn time(nanos: i64) -> String {
    jiff::Timestamp::from_nanosecond(nanos.into()).map(|time| time.to_string()).unwrap_or_default()
}

pub(super) fn create(path: &Path) -> Result<File> {
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    made.doing(|| format!("make {}", path.display()))
}

fn write_json(dir: &Path, name: &str, value: &Value) -> Result<()> {
    create(&dir.join(name))?.write_all(value.to_string().as_bytes()).doing(|| format!("write {name}"))
}

/// A container without a log has none in its checkpoint either, nor one whose log is not a file in the directory `root`.
fn copy_log(root: &Path, log: &Path, to: &Path) -> Result<()> {
    let Ok(inside) = log.strip_prefix(root) else { return Ok(()) };
    let doing = || format!("copy {}", log.display());
    // Neither a link nor a pipe that somebody has put there.
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let mut from = match Root::open(root).and_then(|root| root.resolve(inside, flags)) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        opened => File::from(opened.doing(doing)?),
    };
    if from.metadata().doing(doing)?.is_file() {
        std::io::copy(&mut from, &mut create(to)?).doing(doing)?;
    }
    Ok(())
}

/// Packs the directory into a file beside `target`.
fn archive(dir: &TempDir, target: &Path) -> Result<NamedTempFile> {
    let beside = target.parent().unwrap_or(Path::new("/"));
    let doing = || format!("write an archive in {}", beside.display());
    let file = tempfile::Builder::new().prefix(".checkpoint-").tempfile_in(beside).doing(doing)?;
    pack(dir, file.as_file()).doing(doing)?;
    Ok(file)
}

/// Packs the directory into a file, and has that on the disk.
pub(in crate::cri) fn pack(dir: &TempDir, file: &File) -> Result<()> {
    let root = Root::open(dir.path())?;
    let to = BufWriter::with_capacity(256 << 10, file);
    diff::create(&Changes::All(&root), diff::Wanted::default(), to)?.flush()?;
    Ok(file.sync_all()?)
}
