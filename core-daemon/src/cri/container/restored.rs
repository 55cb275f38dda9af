//! Containers that go on from a checkpoint: an archive on this machine, an image that has one for its layer, or a part of
//! a pod's checkpoint.
//!
//! The archive gives memory and changed files, and names the image that those are changes of. Everything else, such as
//! mounts, devices and annotations, is the request's. The processes come back as criu's images have them, with whatever
//! privileges those say: that is why an administrator has to allow it.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use rung_spec::digest::Digest;
use rung_sys::beneath;
use serde::Deserialize;

use super::checkpoint::{CHANGES, CONFIG, IMAGES, create};
use crate::cri::Cri;
use crate::diff::tar::{Kind as EntryKind, Reader};
use crate::diff::{self, Target};
use crate::error::{Doing as _, Error, Kind, Result};
use crate::image::Resolved;
use crate::image::layers::unpacked_limit;
use crate::snapshots::Mount as SnapshotMount;

/// On the manifest of an image whose layer is a checkpoint.
const ANNOTATION: &str = "org.criu.checkpoint.container.name";
/// Paths that the container had removed, where an archive lists them beside the changes.
const DELETED: &str = "deleted.files";
/// Largest document in an archive.
const MAX_DOCUMENT: u64 = 4 << 20;
/// Most files of an archive.
const MAX_FILES: usize = 100_000;

/// Where a checkpoint is.
#[derive(Debug)]
pub(in crate::cri) enum Source {
    /// A file of this machine.
    Archive(PathBuf),
    /// A layer.
    Layer(Digest),
    /// An open file, which is to be of this image.
    Opened { file: File, image_id: String },
}

/// What an archive says of the container that this one goes on from.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct Config {
    rootfs_image_ref: String,
    rootfs_image_name: String,
    rootfs_image: String,
}

impl Cri {
    /// The image of the request, or the checkpoint that it is instead.
    pub(super) fn image_or_checkpoint(&self, text: &str) -> Result<std::result::Result<Resolved, Source>> {
        let source = if text.starts_with('/') {
            Source::Archive(PathBuf::from(text))
        } else {
            let image = self.find_image(text)?;
            match image.manifest.layers.as_slice() {
                [layer] if image.manifest.annotations.contains_key(ANNOTATION) => Source::Layer(layer.digest.clone()),
                _ => {
                    image.check_root()?;
                    return Ok(Ok(image));
                }
            }
        };
        if !self.config().restore_checkpoints {
            return Err(Error::precondition(format!(
                "image {text:?}: is a checkpoint, and cri.restore_checkpoints is off"
            )));
        }
        Ok(Err(source))
    }

    /// Unpacks a checkpoint for a container, and answers with the image that it is of.
    pub(super) fn unpack_checkpoint(&self, id: &str, source: Source) -> Result<Resolved> {
        let dir = self.checkpoint_dir(id);
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir.join(IMAGES)).doing(|| "make a directory")?;
        let (file, image_id) = match source {
            Source::Archive(path) => (File::open(path)?, None),
            Source::Layer(digest) => (self.parts().images.content.reader(self.context(), &digest)?.file, None),
            Source::Opened { file, image_id } => (file, Some(image_id)),
        };
        let limit = unpacked_limit(file.metadata()?.len());
        let (plain, _) = diff::decompress(BufReader::with_capacity(256 << 10, file))?;
        unpack(BufReader::new(plain), limit, &dir)?;
        let config: Config = document(&dir.join(CONFIG))?
            .ok_or_else(|| Error::invalid(format!("is no checkpoint of a container: it has no {CONFIG}")))?;
        let names = [config.rootfs_image_ref, config.rootfs_image_name, config.rootfs_image];
        for name in names.iter().filter(|name| !name.is_empty()) {
            match self.find_image(name) {
                Err(error) if matches!(error.kind(), Kind::NotFound | Kind::InvalidArgument) => {}
                Ok(image) if image_id.as_ref().is_some_and(|id| id != image.config_digest.as_str()) => {
                    return Err(Error::invalid(format!("is a checkpoint of a container of another image, {name}")));
                }
                found => return found,
            }
        }
        let name = names.iter().find(|name| !name.is_empty()).map_or("", String::as_str);
        Err(Error::not_found(format!(
            "is a checkpoint of a container of image {name:?}, which is not here; pull it first"
        )))
    }

    /// Makes the changes of files that the checkpoint has.
    pub(super) fn apply_checkpoint(&self, id: &str, rootfs: &[SnapshotMount]) -> Result<()> {
        let dir = self.checkpoint_dir(id);
        let file = match File::open(dir.join(CHANGES)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            opened => Some(opened?),
        };
        if let Some(file) = file {
            let limit = unpacked_limit(file.metadata()?.len());
            let (plain, _) = diff::decompress(BufReader::with_capacity(256 << 10, file))?;
            apply(BufReader::with_capacity(256 << 10, plain), limit, rootfs).doing(|| CHANGES)?;
        }
        if let Some(deleted) = document::<Vec<String>>(&dir.join(DELETED))? {
            let removals = diff::removals(deleted.iter().map(|path| beneath::lexical(Path::new(path))), Vec::new())?;
            apply(removals.as_slice(), removals.len() as u64, rootfs).doing(|| DELETED)?;
        }
        Ok(())
    }

    /// criu's images for a container that is to go on from them.
    pub(in crate::cri) fn checkpoint_images(&self, id: &str) -> Option<PathBuf> {
        Some(self.checkpoint_dir(id).join(IMAGES)).filter(|images| images.exists())
    }

    /// Removes what a container has gone on from: a copy of its memory, which nobody needs any more.
    pub(super) fn forget_checkpoint(&self, id: &str) {
        let dir = self.checkpoint_dir(id);
        tokio::task::spawn_blocking(move || {
            if let Err(error) = beneath::remove(&dir) {
                tracing::warn!(path = %dir.display(), %error, "remove a restored checkpoint");
            }
        });
    }

    fn checkpoint_dir(&self, id: &str) -> PathBuf {
        self.container_dir(id).join("checkpoint")
    }
}

/// Unpacks what a restore needs of an archive: plain files, because criu follows links.
fn unpack(from: impl BufRead, limit: u64, dir: &Path) -> Result<()> {
    let mut reader = Reader::new(from, limit);
    let mut files = 0;
    while let Some(entry) = reader.next_entry()? {
        let path = beneath::lexical(Path::new(OsStr::from_bytes(&entry.path)));
        let parts: Vec<&[u8]> = path.iter().map(OsStrExt::as_bytes).collect();
        let wanted = match parts.as_slice() {
            [name] => [CHANGES, CONFIG, DELETED].iter().any(|one| one.as_bytes() == *name),
            [within, _] => *within == IMAGES.as_bytes(),
            _ => false,
        };
        if !wanted || entry.kind == EntryKind::Directory {
            continue;
        }
        let doing = || format!("unpack {}", path.display());
        if entry.kind != EntryKind::File || entry.pieces.is_some() {
            return Err(Error::invalid("is not a plain file")).doing(doing);
        }
        files += 1;
        if files > MAX_FILES {
            return Err(Error::invalid(format!("archive of more than {MAX_FILES} files")));
        }
        let mut file = create(&dir.join(&path))?;
        reader.data(entry.size, &mut |bytes| Ok(file.write_all(bytes)?)).doing(doing)?;
    }
    reader.finish().map(drop)
}

fn document<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Option<T>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let document = serde_json::from_reader(BufReader::new(file.take(MAX_DOCUMENT)));
    document.map(Some).map_err(|error| Error::invalid(format!("{name}: {error}")))
}

fn apply(tar: impl BufRead, limit: u64, rootfs: &[SnapshotMount]) -> Result<()> {
    let target = Target::of(rootfs)?;
    let applied = diff::apply(target.open()?, tar, target.mode, limit)?;
    diff::settle(&target.open()?, &target.lowers, applied.deferred)
}
