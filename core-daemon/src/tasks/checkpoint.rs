//! Checkpoints in the content store: the directory that the runtime writes becomes a tar there, and the tar a directory
//! again for whoever restores from it.

use std::fs::DirBuilder;
use std::io::{BufReader, BufWriter, Read, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gantry_proto::containerd::types::Descriptor;
use prost::Message as _;
use prost_types::Any;
use rung_sys::beneath::Root;

use super::{Bundle, Task, Tasks};
use crate::blocking::blocking;
use crate::content::{Content, IngestWriter, parse};
use crate::context::Context;
use crate::diff::{self, Changes, Mode};
use crate::error::{Doing, Error, Result};
use crate::labels::Labels;

/// Media type of the tar of a checkpoint's directory.
const IMAGES: &str = "application/vnd.containerd.container.criu.checkpoint.criu.tar";
/// Media type of the container's specification beside it.
const CONFIG: &str = "application/vnd.containerd.container.checkpoint.config.v1+proto";

/// Where a task is restored from.
#[derive(Debug, Clone, PartialEq)]
pub enum Checkpoint {
    /// A directory of the host.
    Directory(String),
    /// A tar in the content store.
    Stored(Descriptor),
}

impl Tasks {
    /// Writes the container's processes, and its specification, into the content store; answers with both. `options` name
    /// no directory.
    ///
    /// # Errors
    /// What the shim says; those of the content store.
    pub async fn checkpoint(
        &self,
        context: &Context,
        task: &Arc<Task>,
        options: Option<Any>,
    ) -> Result<Vec<Descriptor>> {
        let container = self.parts().containers.get(&context.namespace, &task.id)?;
        // On the disk: it is as large as the container's memory.
        let dir = tempfile::Builder::new().prefix("checkpoint-").tempdir_in(task.bundle.work());
        let dir = dir.doing(|| format!("checkpoint task {}: make a directory", task.id))?;
        task.checkpoint(&dir.path().to_string_lossy(), options).await?;
        let (content, context, id) = (self.parts().content.clone(), context.clone(), task.id.to_string());
        blocking(move || {
            let images = store_directory(&content, &context, dir.path());
            let images = images.doing(|| format!("checkpoint task {id}"))?;
            let spec = container.spec.unwrap_or_default().encode_to_vec();
            let size = i64::try_from(spec.len()).unwrap_or(i64::MAX);
            let digest = content.put(&context, &spec, Labels::new())?;
            Ok(vec![images, descriptor(CONFIG, digest.to_string(), size)])
        })
        .await
    }

    /// The same checkpoint as a directory: one that is stored is unpacked into the bundle's work directory.
    pub(super) async fn unpacked(
        &self,
        context: &Context,
        bundle: &Bundle,
        checkpoint: Option<Checkpoint>,
    ) -> Result<Option<Checkpoint>> {
        let stored = match checkpoint {
            Some(Checkpoint::Stored(stored)) => stored,
            directory => return Ok(directory),
        };
        if stored.media_type != IMAGES {
            return Err(Error::invalid(format!("checkpoint: media type {:?} is not {IMAGES}", stored.media_type)));
        }
        let (content, context, dir) = (self.parts().content.clone(), context.clone(), bundle.checkpoint());
        let path = dir.to_string_lossy().into_owned();
        blocking(move || unpack(&content, &context, &stored, &dir)).await?;
        Ok(Some(Checkpoint::Directory(path)))
    }
}

impl Task {
    /// Removes what the task was restored from: a copy of its memory, which nobody needs any more.
    pub(super) fn forget_checkpoint(&self) {
        let dir = self.bundle.checkpoint();
        if dir.exists() {
            tokio::task::spawn_blocking(move || {
                if let Err(error) = rung_sys::beneath::remove(&dir) {
                    tracing::warn!(path = %dir.display(), %error, "remove a restored checkpoint");
                }
            });
        }
    }
}

fn store_directory(content: &Content, context: &Context, dir: &Path) -> Result<Descriptor> {
    let mut ingest = content.writer_once(context, &dir.to_string_lossy(), 0, None)?;
    let made = Root::open(dir).map_err(Error::from).and_then(|root| {
        let to = BufWriter::with_capacity(256 << 10, IngestWriter(&mut ingest));
        Ok(diff::create(&Changes::All(&root), diff::Wanted::default(), to)?.flush()?)
    });
    if let Err(error) = made {
        ingest.abort();
        return Err(error);
    }
    let size = ingest.offset();
    let digest = ingest.store(size, None, Labels::new())?;
    Ok(descriptor(IMAGES, digest.to_string(), i64::try_from(size).unwrap_or(i64::MAX)))
}

fn unpack(content: &Content, context: &Context, stored: &Descriptor, dir: &PathBuf) -> Result<()> {
    let doing = || format!("unpack checkpoint {}", stored.digest);
    let blob = content.reader(context, &parse(&stored.digest)?)?;
    DirBuilder::new().mode(0o700).create(dir).doing(doing)?;
    let root = Root::open(dir).doing(doing)?;
    // It is not compressed, so that it cannot unpack to more than it is.
    let tar = BufReader::with_capacity(256 << 10, blob.file.take(blob.size));
    diff::apply(root, tar, Mode::Lowest, blob.size).doing(doing).map(drop)
}

fn descriptor(media_type: &str, digest: String, size: i64) -> Descriptor {
    Descriptor { media_type: media_type.to_owned(), digest, size, ..Descriptor::default() }
}
