//! The overlay snapshotter: one directory of changes for each snapshot, stacked by the kernel when mounted.
//!
//! ```text
//! <root>/snapshots/<number>/fs     the changes: upper directory while active, lower directory once committed
//!                          /work   the kernel's, while active
//!                          /boot   which boot of the machine a volatile snapshot belongs to
//! ```

use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, chown};
use std::path::{Path, PathBuf};

use rung_sys::idmap::Range;

use super::driver::{flush, flush_names, missing};
use super::{Driver, Kind, Made, Mount, REBASE, REMAP_IDS, Unpacking, Usage, disk_usage, quota};
use crate::config::Volatile;
use crate::error::{Doing, Error, Result};
use crate::id;
use crate::labels::{Labels, SHORT_LIVED};

/// On a snapshot: user and group id maps of the container, as `inside:outside:length`, several joined by commas.
const UID_MAPPING: &str = "containerd.io/snapshot/uidmapping";
const GID_MAPPING: &str = "containerd.io/snapshot/gidmapping";
/// On a snapshot as clients see it: where its changes are.
const UPPERDIR: &str = "containerd.io/snapshot/overlay.upperdir";
/// Where the kernel notes that a volatile overlay was mounted, so that it is not mounted again after a crash.
const VOLATILE_MARK: &str = "work/work/incompat/volatile";

/// Keeps snapshots as directories for overlay mounts.
pub struct Overlay {
    root: PathBuf,
    /// Options that every overlay mount gets, found by asking the kernel once.
    options: Vec<String>,
    volatile: Volatile,
    upperdir_label: bool,
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
        Ok(Self { root: root.to_owned(), options: overlay_options(), volatile: Volatile::Never, upperdir_label: false })
    }

    /// Says which snapshots are mounted so that nothing of them is ever flushed.
    #[must_use]
    pub fn volatile(mut self, which: Volatile) -> Self {
        self.volatile = which;
        self
    }

    /// Says whether clients are told where the changes of a snapshot are.
    #[must_use]
    pub fn upperdir_label(mut self, told: bool) -> Self {
        self.upperdir_label = told;
        self
    }

    fn fs(&self, number: u64) -> PathBuf {
        self.dir(number).join("fs")
    }

    fn is_volatile(&self, labels: &Labels) -> bool {
        match self.volatile {
            Volatile::Never => false,
            Volatile::ShortLived => labels.contains_key(SHORT_LIVED),
            Volatile::Always => true,
        }
    }

    /// Notes of a volatile snapshot in which boot it was made. That is not flushed: what loses it is what it is about.
    fn note_boot(&self, dir: &Path, labels: &Labels) -> Result<()> {
        if !self.is_volatile(labels) {
            return Ok(());
        }
        let boot = id::boot()?;
        let mut options = std::fs::OpenOptions::new();
        let noted = options.write(true).create_new(true).mode(0o600).open(dir.join("boot"));
        noted.and_then(|mut file| file.write_all(boot.as_bytes())).doing(|| "note the boot of a volatile snapshot")
    }

    /// A volatile overlay can be mounted again only in the boot that it was made in: a crash of the machine may have
    /// lost anything of it.
    fn renew(&self, number: u64) -> Result<()> {
        let dir = self.dir(number);
        let made = std::fs::read(dir.join("boot")).doing(|| "read the boot of a volatile snapshot")?;
        if made.trim_ascii_end() != id::boot()?.as_bytes() {
            let problem = "it was volatile, and the machine was started again since: its contents are not whole";
            return Err(Error::precondition(format!("snapshot: {problem}; remove it")));
        }
        rung_sys::beneath::remove(&dir.join(VOLATILE_MARK)).doing(|| "take back the mark of a volatile mount")
    }
}

/// What every overlay on this machine needs to be told.
pub(super) fn overlay_options() -> Vec<String> {
    // The index would keep a layer from being shared by containers that are mounted at the same time.
    let has_index = Path::new("/sys/module/overlay/parameters/index").exists();
    let index = has_index.then(|| "index=off".to_owned());
    // Only the first user namespace may set trusted attributes.
    let user = rung_sys::namespace::in_user_namespace().then(|| "userxattr".to_owned());
    index.into_iter().chain(user).collect()
}

impl Driver for Overlay {
    fn root(&self) -> &Path {
        &self.root
    }

    fn create(&self, number: u64, kind: Kind, parents: &[u64], labels: &Labels) -> Result<Made> {
        let dir = self.dir(number);
        make(&dir, 0o700)?;
        quota::apply(&dir, number, labels)?;
        let fs = self.fs(number);
        make(&fs, 0o755)?;
        if kind == Kind::Active {
            make(&dir.join("work"), 0o711)?;
            self.note_boot(&dir, labels)?;
        }
        // The root of an overlay is the upper directory's: it must look like the image's.
        look_like(&fs, parents.first().map(|parent| self.fs(*parent)).as_deref(), labels)?;
        Ok(Made::Fresh)
    }

    fn keep(&self, number: u64) -> Result<()> {
        keep_both(&self.dir(number))
    }

    fn is_renewable(&self) -> bool {
        true
    }

    fn renew(&self, number: u64, kind: Kind, parents: &[u64], labels: &Labels) -> Result<()> {
        let (dir, below) = (self.dir(number), parents.first().map(|parent| self.fs(*parent)));
        if renewed(&dir, number, kind, below.as_deref(), labels)? && kind == Kind::Active {
            rung_sys::beneath::remove(&dir.join("boot")).doing(|| "forget the boot of a volatile snapshot")?;
            self.note_boot(&dir, labels)?;
        }
        Ok(())
    }

    fn mounts(&self, number: u64, kind: Kind, parents: &[u64], labels: &Labels) -> Result<Vec<Mount>> {
        let volatile = kind == Kind::Active && !parents.is_empty() && self.is_volatile(labels);
        if volatile {
            self.renew(number)?;
        }
        let fs = |number: u64| self.fs(number);
        let parents: Vec<PathBuf> = parents.iter().map(|parent| fs(*parent)).collect();
        let mut options = self.options.clone();
        options.extend(volatile.then(|| "volatile".to_owned()));
        Ok(stacked(&self.dir(number), kind, &parents, labels, options))
    }

    fn flush(&self, number: u64, labels: &Labels) -> Result<()> {
        if self.is_volatile(labels) { Ok(()) } else { flush(&self.dir(number)) }
    }

    fn usage(&self, number: u64) -> Result<Usage> {
        disk_usage(&self.fs(number))
    }

    fn damage(&self, number: u64, kind: Kind) -> Option<String> {
        let work = (kind == Kind::Active).then(|| self.dir(number).join("work"));
        [Some(self.fs(number)), work].into_iter().flatten().find_map(|dir| missing(&dir))
    }

    fn labels(&self, number: u64, kind: Kind) -> Labels {
        let is_told = self.upperdir_label && kind == Kind::Active;
        is_told.then(|| (UPPERDIR.to_owned(), self.fs(number).to_string_lossy().into_owned())).into_iter().collect()
    }

    fn unpacking(&self) -> Unpacking {
        Unpacking::Apart
    }

    fn capabilities(&self) -> Vec<String> {
        vec![REMAP_IDS.to_owned(), REBASE.to_owned()]
    }
}

/// The mounts of a snapshot in `dir`, with its changes in `fs` and the directories of its parents, newest first.
pub(super) fn stacked(
    dir: &Path,
    kind: Kind,
    parents: &[PathBuf],
    labels: &Labels,
    more: impl IntoIterator<Item = String>,
) -> Vec<Mount> {
    let shown = |path: &Path| path.to_string_lossy().into_owned();
    let mut options: Vec<String> = Vec::new();
    let mapping = [("uidmap", UID_MAPPING), ("gidmap", GID_MAPPING)];
    options.extend(mapping.iter().filter_map(|(option, label)| Some(format!("{option}={}", labels.get(*label)?))));
    let bind = |mut options: Vec<String>, source: &Path, access: &str| {
        options.extend([access.to_owned(), "rbind".to_owned()]);
        vec![Mount { kind: "bind".into(), source: shown(source), target: String::new(), options }]
    };
    let fs = dir.join("fs");
    match (kind, parents) {
        // Its directory belongs to the mapped root already: nothing is left to translate.
        (Kind::Active, []) => return bind(Vec::new(), &fs, "rw"),
        (_, []) => return bind(Vec::new(), &fs, "ro"),
        (Kind::View, [parent]) => return bind(options, parent, "ro"),
        _ => {}
    }
    if kind == Kind::Active {
        options.push(format!("workdir={}", shown(&dir.join("work"))));
        options.push(format!("upperdir={}", shown(&fs)));
    }
    let lower: Vec<String> = parents.iter().map(|parent| shown(parent)).collect();
    options.push(format!("lowerdir={}", lower.join(":")));
    options.extend(more);
    vec![Mount { kind: "overlay".into(), source: "overlay".into(), target: String::new(), options }]
}

pub(super) fn make(path: &Path, mode: u32) -> Result<()> {
    std::fs::DirBuilder::new().mode(mode).create(path).doing(|| format!("make {}", path.display()))
}

/// Brings the directories of a snapshot in `dir` to the disk, and its name: where a flush brings no directories above along
/// that is asked for by itself, and where it does it costs nothing.
pub(super) fn keep_both(dir: &Path) -> Result<()> {
    if let Some(all) = dir.parent() {
        flush_names(all)?;
    }
    flush_names(dir)?;
    flush_names(&dir.join("fs"))
}

/// Makes what `dir` lacks of the directories of a snapshot, and says whether nothing is in that of its changes. Only then it
/// is made to look as when it was made: it may belong to somebody by now.
pub(super) fn renewed(dir: &Path, number: u64, kind: Kind, below: Option<&Path>, labels: &Labels) -> Result<bool> {
    let (fs, work) = (dir.join("fs"), dir.join("work"));
    let remade = |path: &Path, mode: u32| {
        if path.exists() {
            return Ok(());
        }
        tracing::warn!(path = %path.display(), "a power failure took a directory of a new snapshot, which is made again");
        make(path, mode)
    };
    remade(dir, 0o700)?;
    let is_empty = match std::fs::read_dir(&fs) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => true,
        entries => entries.doing(|| format!("list {}", fs.display()))?.next().is_none(),
    };
    if is_empty {
        // What is made below from now on is limited, too.
        quota::apply(dir, number, labels)?;
    }
    remade(&fs, 0o755)?;
    if kind == Kind::Active {
        remade(&work, 0o711)?;
    }
    if is_empty {
        look_like(&fs, below, labels)?;
    }
    Ok(is_empty)
}

/// Gives the directory of a snapshot's changes the owner that id maps or the layer below ask for, and its permissions.
pub(super) fn look_like(fs: &Path, below: Option<&Path>, labels: &Labels) -> Result<()> {
    let mapped = mapped_root(labels)?;
    let image = match below {
        Some(lower) => Some(std::fs::metadata(lower).doing(|| format!("read {}", lower.display()))?),
        None => None,
    };
    if let Some((uid, gid)) = mapped.or(image.as_ref().map(|image| (image.uid(), image.gid()))) {
        chown(fs, Some(uid), Some(gid)).doing(|| format!("chown {}", fs.display()))?;
    }
    if let Some(image) = image {
        std::fs::set_permissions(fs, image.permissions()).doing(|| format!("chmod {}", fs.display()))?;
    }
    Ok(())
}

/// Who root inside the container is outside of it, where labels map ids.
fn mapped_root(labels: &Labels) -> Result<Option<(u32, u32)>> {
    let root_of = |label: &str| -> Result<Option<u32>> {
        let Some(map) = labels.get(label) else { return Ok(None) };
        let ranges = Range::parse_all(map)
            .ok_or_else(|| Error::invalid(format!("label {label}: {map:?} is not inside:outside:length")))?;
        let root = ranges.iter().find(|range| range.inside == 0);
        root.map(|range| Some(range.outside))
            .ok_or_else(|| Error::invalid(format!("label {label}: {map:?} maps no root")))
    };
    match (root_of(UID_MAPPING)?, root_of(GID_MAPPING)?) {
        (None, None) => Ok(None),
        (Some(uid), Some(gid)) => Ok(Some((uid, gid))),
        _ => Err(Error::invalid(format!("labels {UID_MAPPING} and {GID_MAPPING}: only one is there"))),
    }
}
