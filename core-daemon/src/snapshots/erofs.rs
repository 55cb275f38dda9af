//! The EROFS snapshotter: a committed snapshot is one image file, which the kernel mounts; overlay stacks the mounts.
//!
//! ```text
//! <root>/snapshots/<number>/layer.erofs   the image, once committed
//!                          /fs            the changes while active; the image is mounted here once committed
//!                          /work          overlay's, while active
//!                          /sealed.erofs  the image of `fs`, until the record says that the snapshot is committed
//! ```
//!
//! Clients of containerd can mount directories and overlays, but not files. So the daemon mounts the images of parents
//! itself, when somebody asks for mounts that need them, and takes them down with the snapshot. A layer that is pulled is
//! never unpacked into files: it is written as an image while it comes in.

use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rung_sys::mount_options::MountOptions;
use rung_sys::{mount, mount_words};

use super::driver::missing;
use super::overlay::{keep_both, look_like, make, overlay_options, renewed, stacked};
use super::{Driver, Kind, Made, Mount, REBASE, REMAP_IDS, Unpacking, Usage, disk_usage, quota};
use crate::erofs;
use crate::error::{Doing, Result};
use crate::labels::Labels;

const IMAGE: &str = "layer.erofs";
const SEALED: &str = "sealed.erofs";

/// Keeps snapshots as EROFS images.
pub struct Erofs {
    root: PathBuf,
    /// Options that every overlay mount gets.
    options: Vec<String>,
    /// Held while an image takes its place or is mounted, so that both are done once.
    mounting: Mutex<()>,
}

impl Erofs {
    /// Keeps its files below `root`, which is made.
    ///
    /// # Errors
    /// `Unavailable` where the kernel does not mount such images; when the directory cannot be made.
    pub fn open(root: &Path) -> Result<Self> {
        let snapshots = root.join("snapshots");
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(&snapshots).doing(|| format!("make {}", snapshots.display()))?;
        erofs::probe(root)?;
        Ok(Self { root: root.to_owned(), options: overlay_options(), mounting: Mutex::new(()) })
    }

    /// The directory that shows a committed snapshot, mounted where it is not yet.
    fn shown(&self, number: u64) -> Result<PathBuf> {
        let dir = self.dir(number);
        let (fs, image) = (dir.join("fs"), dir.join(IMAGE));
        let doing = || format!("mount {}", image.display());
        let _alone = self.mounting.lock().unwrap_or_else(PoisonError::into_inner);
        unseal(&dir)?;
        // Nothing is in it but the mount.
        if !fs.exists() {
            make(&fs, 0o755)?;
        }
        if is_mounted(&dir, &fs)? {
            return Ok(fs);
        }
        // Its devices are for containers, by way of an overlay, and not for who looks at it here.
        let options = MountOptions::parse(["ro", "nodev"]);
        let tree = mount_words::make("erofs", &image.to_string_lossy(), &options).map_err(std::io::Error::from);
        let (tree, target) = (tree.doing(doing)?, std::fs::File::open(&fs).doing(doing)?);
        mount::attach(tree.as_fd(), target.as_fd()).map_err(std::io::Error::from).doing(doing)?;
        Ok(fs)
    }
}

/// Lets the image of a committed snapshot take the place of its files, if it has not yet.
fn unseal(dir: &Path) -> Result<()> {
    let (fs, work, sealed) = (dir.join("fs"), dir.join("work"), dir.join(SEALED));
    if !sealed.exists() {
        return Ok(());
    }
    for path in [&fs, &work] {
        rung_sys::beneath::remove(path).doing(|| format!("remove {}", path.display()))?;
    }
    make(&fs, 0o755)?;
    std::fs::rename(&sealed, dir.join(IMAGE)).doing(|| format!("store {}", sealed.display()))
}

fn is_mounted(dir: &Path, fs: &Path) -> Result<bool> {
    let device = |path: &Path| std::fs::metadata(path).map(|it| it.dev()).doing(|| format!("read {}", path.display()));
    Ok(device(dir)? != device(fs)?)
}

impl Driver for Erofs {
    /// What uses an image has a mount of its own: those of an ended daemon are only in the way.
    fn close(&self) {
        let Ok(entries) = std::fs::read_dir(self.root.join("snapshots")) else { return };
        for dir in entries.flatten().map(|entry| entry.path()) {
            let fs = dir.join("fs");
            if is_mounted(&dir, &fs).unwrap_or(false) {
                let _ = mount::detach(&fs);
            }
        }
    }

    fn root(&self) -> &Path {
        &self.root
    }

    fn create(&self, number: u64, kind: Kind, parents: &[u64], labels: &Labels) -> Result<Made> {
        let dir = self.dir(number);
        make(&dir, 0o700)?;
        quota::apply(&dir, number, labels)?;
        let fs = dir.join("fs");
        make(&fs, 0o755)?;
        if kind == Kind::Active {
            make(&dir.join("work"), 0o711)?;
        }
        let below = parents.first().map(|parent| self.shown(*parent)).transpose()?;
        look_like(&fs, below.as_deref(), labels)?;
        Ok(Made::Fresh)
    }

    fn keep(&self, number: u64) -> Result<()> {
        keep_both(&self.dir(number))
    }

    fn is_renewable(&self) -> bool {
        true
    }

    fn renew(&self, number: u64, kind: Kind, parents: &[u64], labels: &Labels) -> Result<()> {
        let below = parents.first().map(|parent| self.shown(*parent)).transpose()?;
        renewed(&self.dir(number), number, kind, below.as_deref(), labels).map(drop)
    }

    fn mounts(&self, number: u64, kind: Kind, parents: &[u64], labels: &Labels) -> Result<Vec<Mount>> {
        let parents = parents.iter().map(|parent| self.shown(*parent)).collect::<Result<Vec<_>>>()?;
        Ok(stacked(&self.dir(number), kind, &parents, labels, self.options.iter().cloned()))
    }

    fn layer(&self, number: u64, _labels: &Labels) -> Result<Vec<Mount>> {
        let source = self.dir(number).join(IMAGE).to_string_lossy().into_owned();
        Ok(vec![Mount { kind: "erofs".into(), source, target: String::new(), options: vec!["ro".into()] }])
    }

    fn commit(&self, number: u64, _parents: &[u64], _labels: &Labels) -> Result<()> {
        let dir = self.dir(number);
        // A layer that came in as an image is one already.
        if dir.join(IMAGE).exists() {
            return Ok(());
        }
        let (sealed, partial) = (dir.join(SEALED), dir.join("partial.erofs"));
        for path in [&sealed, &partial] {
            rung_sys::beneath::remove(path).doing(|| format!("remove {}", path.display()))?;
        }
        erofs::from_directory(&dir.join("fs"), &partial)?;
        let store = || -> std::io::Result<()> {
            std::fs::File::open(&partial)?.sync_all()?;
            std::fs::rename(&partial, &sealed)?;
            Ok(rung_sys::atomic_file::sync_directory(&dir)?)
        };
        store().doing(|| format!("store {}", sealed.display()))
    }

    fn flush(&self, _number: u64, _labels: &Labels) -> Result<()> {
        // The image is made of the files, and is on disk already.
        Ok(())
    }

    fn committed(&self, number: u64) {
        let _alone = self.mounting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = unseal(&self.dir(number)) {
            tracing::warn!(number, %error, "left what only an active snapshot needs");
        }
    }

    fn damage(&self, number: u64, kind: Kind) -> Option<String> {
        // Nobody shall move the image while it is looked for.
        let _alone = self.mounting.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = self.dir(number);
        let image = dir.join(IMAGE);
        match kind {
            // Its image may not have taken its place yet.
            Kind::Committed => match dir.join(SEALED) {
                sealed if sealed.is_file() => erofs::damage(&sealed),
                _ => erofs::damage(&image),
            },
            _ => missing(&dir),
        }
    }

    fn usage(&self, number: u64) -> Result<Usage> {
        let dir = self.dir(number);
        match std::fs::metadata(dir.join(IMAGE)).or_else(|_| std::fs::metadata(dir.join(SEALED))) {
            Ok(image) => Ok(Usage { size: image.blocks() * 512, inodes: 1 }),
            Err(_) => disk_usage(&dir.join("fs")),
        }
    }

    fn remove(&self, number: u64) -> Result<()> {
        let dir = self.dir(number);
        let fs = dir.join("fs");
        if fs.exists() && is_mounted(&dir, &fs)? {
            mount::detach(&fs).map_err(std::io::Error::from).doing(|| format!("unmount {}", fs.display()))?;
        }
        rung_sys::beneath::remove(&dir).doing(|| format!("remove {}", dir.display()))
    }

    fn unpacking(&self) -> Unpacking {
        Unpacking::Converted
    }

    fn capabilities(&self) -> Vec<String> {
        vec![REMAP_IDS.to_owned(), REBASE.to_owned()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_takes_the_place_of_the_files_once_they_are_recorded() {
        let dir = tempfile::tempdir().expect("directory");
        let dir = dir.path();
        for name in ["fs", "work"] {
            std::fs::create_dir(dir.join(name)).expect("directory");
        }
        std::fs::write(dir.join("fs/file"), "").expect("file");
        unseal(dir).expect("nothing to do");
        assert!(dir.join("fs/file").exists());
        std::fs::write(dir.join(SEALED), "image").expect("file");
        for _ in 0..2 {
            unseal(dir).expect("unseal");
            assert!(dir.join("fs").is_dir() && !dir.join("fs/file").exists() && !dir.join("work").exists());
            assert_eq!(std::fs::read(dir.join(IMAGE)).expect("image"), b"image");
        }
    }

    #[test]
    fn an_image_that_is_none_or_cut_off_is_damage() {
        let root = tempfile::tempdir().expect("directory");
        let it = Erofs { root: root.path().to_owned(), options: Vec::new(), mounting: Mutex::new(()) };
        let dir = it.dir(1);
        let damage = || it.damage(1, Kind::Committed).unwrap_or_default();
        assert!(damage().ends_with("is gone"), "{}", damage());
        std::fs::create_dir_all(&dir).expect("directory");
        let image = erofs::Image::create(&dir.join(SEALED)).expect("image");
        let whole = image.finish(&erofs::Tree::new()).expect("finish");
        // The daemon may have ended before the image took its place.
        assert_eq!(damage(), "");
        std::fs::rename(dir.join(SEALED), dir.join(IMAGE)).expect("rename");
        assert_eq!(damage(), "");
        let length = whole.metadata().expect("metadata").len();
        for (length, said) in [(length - 1, "bytes, not"), (1100, "is no image"), (0, "is no image")] {
            whole.set_len(length).expect("damage");
            assert!(damage().contains(said), "{length}: {}", damage());
        }
    }
}
