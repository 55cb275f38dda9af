//! The overlay snapshotter: one directory of changes for each snapshot, stacked by the kernel when mounted.
//!
//! ```text
//! <root>/snapshots/<number>/fs     the changes: upper directory while active, lower directory once committed
//!                          /work   the kernel's, while active
//! ```

use std::os::unix::fs::{DirBuilderExt, MetadataExt, chown};
use std::path::{Path, PathBuf};

use super::{Driver, Kind, Mount, Unpacking, Usage, disk_usage};
use crate::error::{Doing, Error, Result};
use crate::labels::Labels;

/// On a snapshot: user and group id maps of the container, as `inside:outside:length`, several joined by commas.
const UID_MAPPING: &str = "containerd.io/snapshot/uidmapping";
const GID_MAPPING: &str = "containerd.io/snapshot/gidmapping";

/// Keeps snapshots as directories for overlay mounts.
pub struct Overlay {
    root: PathBuf,
    /// Options that every overlay mount gets, found by asking the kernel once.
    options: Vec<String>,
}

impl Overlay {
    /// Keeps its directories below `root`, which is made.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn open(root: &Path) -> Result<Self> {
        let snapshots = root.join("snapshots");
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&snapshots)
            .doing(|| format!("make {}", snapshots.display()))?;
        // The index would keep a layer from being shared by containers that are mounted at the same time.
        let has_index = Path::new("/sys/module/overlay/parameters/index").exists();
        let options = if has_index { vec!["index=off".to_owned()] } else { Vec::new() };
        Ok(Self { root: root.to_owned(), options })
    }

    fn fs(&self, number: u64) -> PathBuf {
        self.dir(number).join("fs")
    }
}

impl Driver for Overlay {
    fn root(&self) -> &Path {
        &self.root
    }

    fn create(&self, number: u64, kind: Kind, parents: &[u64], labels: &Labels) -> Result<()> {
        let dir = self.dir(number);
        let make = |path: &Path, mode| {
            let mut builder = std::fs::DirBuilder::new();
            builder.mode(mode).create(path).doing(|| format!("make {}", path.display()))
        };
        make(&dir, 0o700)?;
        let fs = self.fs(number);
        make(&fs, 0o755)?;
        if kind == Kind::Active {
            make(&dir.join("work"), 0o711)?;
        }
        let mapped = mapped_root(labels)?;
        // The root of an overlay is the upper directory's: it must look like the image's.
        let image = match parents.first().map(|parent| self.fs(*parent)) {
            Some(lower) => Some(std::fs::metadata(&lower).doing(|| format!("read {}", lower.display()))?),
            None => None,
        };
        if let Some((uid, gid)) = mapped.or(image.as_ref().map(|image| (image.uid(), image.gid()))) {
            chown(&fs, Some(uid), Some(gid)).doing(|| format!("chown {}", fs.display()))?;
        }
        if let Some(image) = image {
            std::fs::set_permissions(&fs, image.permissions()).doing(|| format!("chmod {}", fs.display()))?;
        }
        Ok(())
    }

    fn mounts(&self, number: u64, kind: Kind, parents: &[u64], labels: &Labels) -> Vec<Mount> {
        let shown = |number: u64| self.fs(number).to_string_lossy().into_owned();
        let mut options: Vec<String> = Vec::new();
        let mapping = [("uidmap", UID_MAPPING), ("gidmap", GID_MAPPING)];
        options.extend(mapping.iter().filter_map(|(option, label)| Some(format!("{option}={}", labels.get(*label)?))));
        let bind = |mut options: Vec<String>, source: String, access: &str| {
            options.extend([access.to_owned(), "rbind".to_owned()]);
            vec![Mount { kind: "bind".into(), source, target: String::new(), options }]
        };
        match (kind, parents) {
            (Kind::Active, []) => return bind(options, shown(number), "rw"),
            (_, []) => return bind(options, shown(number), "ro"),
            (Kind::View, [parent]) => return bind(options, shown(*parent), "ro"),
            _ => {}
        }
        if kind == Kind::Active {
            options.push(format!("workdir={}", self.dir(number).join("work").display()));
            options.push(format!("upperdir={}", shown(number)));
        }
        let lower: Vec<String> = parents.iter().map(|parent| shown(*parent)).collect();
        options.push(format!("lowerdir={}", lower.join(":")));
        options.extend(self.options.iter().cloned());
        vec![Mount { kind: "overlay".into(), source: "overlay".into(), target: String::new(), options }]
    }

    fn usage(&self, number: u64) -> Result<Usage> {
        disk_usage(&self.fs(number))
    }

    fn unpacking(&self) -> Unpacking {
        Unpacking::Apart
    }
}

/// Who root inside the container is outside of it, where labels map ids.
fn mapped_root(labels: &Labels) -> Result<Option<(u32, u32)>> {
    let root_of = |label: &str| -> Result<Option<u32>> {
        let Some(map) = labels.get(label) else { return Ok(None) };
        let invalid = || Error::invalid(format!("label {label}: {map:?} is not inside:outside:length"));
        for range in map.split(',') {
            let numbers: Vec<u32> =
                range.split(':').map(|part| part.parse().map_err(|_| invalid())).collect::<Result<_>>()?;
            let [inside, outside, length] = numbers[..] else { return Err(invalid()) };
            if inside == 0 && length > 0 {
                return Ok(Some(outside));
            }
        }
        Err(invalid())
    };
    Ok(match (root_of(UID_MAPPING)?, root_of(GID_MAPPING)?) {
        (None, None) => None,
        (uid, gid) => Some((uid.unwrap_or(0), gid.unwrap_or(0))),
    })
}
