//! `CheckpointPod`: containers of a pod as all of them were at one moment, in a directory of the caller's.
//!
//! Each has an archive as `CheckpointContainer` makes it; `pod.checkpoint` says which is whose, and is written last. All are
//! frozen before the first is written down, and none is frozen any more when the caller has its answer.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Seek as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::Arc;

use gantry_proto::gantry::cri::v1::{CheckpointedContainer, PodCheckpoint, SandboxRecord};
use gantry_proto::runtime::v1;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, fsync, unlinkat};
use prost::Message as _;
use rung_spec::digest::{Algorithm, Digest, HashingReader};
use rung_sys::beneath::{self, Root};
use tempfile::TempDir;

use crate::blocking::blocking;
use crate::config::RuntimeHandler;
use crate::cri::container::{checkpoint_work, pack, ready};
use crate::cri::flights::Stage;
use crate::cri::granted::namespace_options;
use crate::cri::{Container, Cri, Sandbox};
use crate::error::{Doing as _, Error, Result};
use crate::tasks::Task;

/// Form of the directory.
pub(super) const VERSION: u32 = 1;
/// What says which archive is whose.
pub(super) const INDEX: &str = "pod.checkpoint";
/// The same while it is written.
const DRAFT: &str = ".pod.checkpoint";

/// A container that is written down, and its process.
type Chosen = (Arc<Container>, Arc<Task>);

impl Cri {
    pub(in crate::cri) async fn checkpoint_pod(
        &self,
        request: v1::CheckpointPodRequest,
    ) -> Result<v1::CheckpointPodResponse> {
        no_options(&request.options)?;
        if !Path::new(&request.output_path).is_absolute() {
            return Err(Error::invalid(format!("output_path: {:?} is not an absolute path", request.output_path)));
        }
        let sandbox = self.store().sandbox(&request.pod_sandbox_id)?;
        let name = format!("checkpoint/{}", sandbox.id());
        let (cri, asked) = (self.clone(), request.encode_to_vec());
        // Whoever goes away, or whose deadline passes, has it undone at the next step.
        let work = |stage| async move { cri.checkpoint_into(&sandbox, &request, &stage).await };
        self.shared.flights.join(&name, &asked, work).await?;
        Ok(v1::CheckpointPodResponse {})
    }

    async fn checkpoint_into(
        &self,
        sandbox: &Arc<Sandbox>,
        request: &v1::CheckpointPodRequest,
        stage: &Stage,
    ) -> Result<String> {
        let doing = || format!("checkpoint pod sandbox {}", sandbox.id());
        ready(sandbox)?;
        let chosen = self.chosen(sandbox, &request.container_ids)?;
        let path = request.output_path.clone();
        let output = Arc::new(blocking(move || empty(Path::new(&path))).await.doing(doing)?);
        let made = self.checkpoint_all(sandbox, &chosen, &output, stage).await;
        if made.is_err() {
            let mut names: Vec<String> = chosen.iter().map(|(container, _)| archive_name(container)).collect();
            names.extend([DRAFT.to_owned(), INDEX.to_owned()]);
            blocking(move || clear(&output, &names)).await.doing(doing)?;
        }
        made.doing(doing).map(|()| sandbox.id().to_string())
    }

    /// The containers of the request, each by its name, all of them running, always in the same order.
    fn chosen(&self, sandbox: &Sandbox, ids: &[String]) -> Result<Vec<Chosen>> {
        if ids.is_empty() {
            return Err(Error::invalid("container_ids: names none"));
        }
        let mut chosen: Vec<Chosen> = Vec::with_capacity(ids.len());
        for (index, id) in ids.iter().enumerate() {
            let container = self.store().container(id)?;
            let refused = |why: &str| Err(Error::invalid(format!("container_ids[{index}]: {id} {why}")));
            if container.record().sandbox_id != sandbox.id().as_str() {
                return refused("is not in this pod");
            }
            if chosen.iter().any(|(other, _)| other.id() == container.id()) {
                return refused("is there twice");
            }
            if chosen.iter().any(|(other, _)| name_of(other) == name_of(&container)) {
                return refused("has the name of another one");
            }
            let task = container.task().doing(|| format!("container_ids[{index}]"))?;
            chosen.push((container, task));
        }
        chosen.sort_by(|(a, _), (b, _)| a.id().cmp(b.id()));
        Ok(chosen)
    }

    async fn checkpoint_all(
        &self,
        sandbox: &Arc<Sandbox>,
        chosen: &[Chosen],
        output: &Arc<Root>,
        stage: &Stage,
    ) -> Result<()> {
        let mut turns = Vec::with_capacity(chosen.len());
        for (container, _) in chosen {
            // One checkpoint after the other: each would thaw what the other has frozen.
            turns.push(container.checkpoints.lock().await);
        }
        let mut dirs = Vec::with_capacity(chosen.len());
        for (_, task) in chosen {
            dirs.push(checkpoint_work(task)?);
        }
        let mut held = Vec::new();
        let collected = self.freeze_and_collect(chosen, &dirs, stage, &mut held).await;
        let mut released = Ok(());
        for task in held {
            // The others are thawed all the same.
            released = task.release().await.and(released);
        }
        collected.and(released)?;
        drop(turns);
        let record = sandbox.record();
        let settings = self.config();
        let handler = settings.handler(&record.runtime_handler)?;
        let mut index = PodCheckpoint {
            version: VERSION,
            runtime: self.restorer(handler),
            config: with_users(&record),
            containers: Vec::with_capacity(chosen.len()),
        };
        for ((container, _), dir) in chosen.iter().zip(dirs) {
            stage.enter("archives")?;
            let (archive, to) = (archive_name(container), output.clone());
            let name = archive.clone();
            let digest =
                blocking(move || write_archive(&dir, &to, &name)).await.doing(|| format!("write {archive}"))?;
            let record = container.record();
            index.containers.push(CheckpointedContainer {
                config: record.config.clone(),
                image_id: record.image_id.clone(),
                archive,
                digest: digest.to_string(),
            });
        }
        stage.enter("index")?;
        let (to, index) = (output.clone(), index.encode_to_vec());
        blocking(move || write_index(&to, &index).doing(|| format!("write {INDEX}"))).await
    }

    /// Whom this has frozen is in `held` then, also where it fails.
    async fn freeze_and_collect(
        &self,
        chosen: &[Chosen],
        dirs: &[TempDir],
        stage: &Stage,
        held: &mut Vec<Arc<Task>>,
    ) -> Result<()> {
        for (_, task) in chosen {
            stage.enter("freeze")?;
            if task.hold().await? {
                held.push(task.clone());
            }
        }
        for ((container, task), dir) in chosen.iter().zip(dirs) {
            stage.enter("processes")?;
            self.collect(container, task, dir).await.doing(|| format!("container {}", container.id()))?;
        }
        Ok(())
    }

    /// What makes checkpoints of a handler's containers, and so has to restore them: images of one do not fit the other.
    pub(super) fn restorer(&self, handler: &RuntimeHandler) -> String {
        let runtime = self.runtime(handler, None).name;
        if handler.binary.is_empty() { runtime } else { format!("{runtime} {}", handler.binary) }
    }
}

/// Options are the runtime's own to name, and there are none.
pub(super) fn no_options(options: &std::collections::BTreeMap<String, String>) -> Result<()> {
    match options.keys().next() {
        Some(key) => Err(Error::invalid(format!("options: {key:?} is unknown"))),
        None => Ok(()),
    }
}

/// A pod's configuration, with the users that it has by annotation: what goes on from a checkpoint has to have the same.
fn with_users(record: &SandboxRecord) -> Option<v1::PodSandboxConfig> {
    let mut config = record.config.clone()?;
    if record.users.is_some() {
        let context = config.linux.get_or_insert_default().security_context.get_or_insert_default();
        context.namespace_options = namespace_options(record);
    }
    Some(config)
}

fn name_of(container: &Container) -> String {
    let metadata = container.record().config.as_ref().and_then(|config| config.metadata.clone());
    metadata.unwrap_or_default().name
}

fn archive_name(container: &Container) -> String {
    format!("{}.tar", container.id())
}

/// Opens the directory, which has to be there and without anything in it.
fn empty(path: &Path) -> Result<Root> {
    let doing = || format!("output_path {}", path.display());
    let output = Root::open(path).doing(doing)?;
    match beneath::entries(output.as_fd()).doing(doing)?.first() {
        Some(name) => Err(Error::precondition(format!("is not empty: it has {}", name.display()))).doing(doing),
        None => Ok(output),
    }
}

fn create(within: &Root, name: &str) -> Result<File> {
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let made = openat(within, name, flags, Mode::from_bits_truncate(0o600));
    Ok(made.map_err(std::io::Error::from)?.into())
}

fn write_archive(dir: &TempDir, output: &Root, name: &str) -> Result<Digest> {
    let mut file = create(output, name)?;
    pack(dir, &file)?;
    file.rewind()?;
    digest_of(&file)
}

/// What is in a file from where it stands on.
pub(super) fn digest_of(file: &File) -> Result<Digest> {
    let mut reader = HashingReader::new(file, Algorithm::Sha256);
    std::io::copy(&mut reader, &mut std::io::sink())?;
    Ok(reader.finish())
}

fn write_index(output: &Root, index: &[u8]) -> Result<()> {
    let mut file = create(output, DRAFT)?;
    file.write_all(index)?;
    file.sync_all()?;
    renameat(output, DRAFT, output, INDEX).map_err(std::io::Error::from)?;
    Ok(fsync(output).map_err(std::io::Error::from)?)
}

/// Removes what was written: the directory is the caller's.
fn clear(output: &Root, names: &[String]) -> Result<()> {
    for name in names {
        match unlinkat(output, OsStr::new(name), UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(error) => return Err(std::io::Error::from(error)).doing(|| format!("remove {name}")),
        }
    }
    Ok(())
}
