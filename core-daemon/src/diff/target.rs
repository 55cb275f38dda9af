//! Where a snapshot's mounts let a layer be applied: in the directory itself where that is enough, mounted for the
//! time it takes where it is not.

use std::os::fd::AsFd;
use std::path::PathBuf;

use rung_sys::beneath::Root;
use rung_sys::mount_options::MountOptions;
use rung_sys::mount_words;

use super::apply::Mode;
use crate::error::{Doing, Error, Result};
use crate::snapshots::Mount;

/// A directory to work on.
pub struct Target {
    /// Where it is.
    pub path: PathBuf,
    /// How removals are written down in it.
    pub mode: Mode,
    /// Directories of the layers below, newest first, where [`Target::mode`] is [`Mode::Overlay`].
    pub lowers: Vec<PathBuf>,
    mounted: Option<Mounted>,
}

impl Target {
    /// The place that `mounts` show, for writing.
    ///
    /// # Errors
    /// `InvalidArgument` for no mounts, or for an overlay that cannot be written.
    pub fn of(mounts: &[Mount]) -> Result<Self> {
        match mounts {
            [] => Err(Error::invalid("apply: no mounts")),
            [mount] if mount.kind == "overlay" => {
                let upper =
                    option(mount, "upperdir").ok_or_else(|| Error::invalid("apply: the overlay is read-only"))?;
                let lowers = option(mount, "lowerdir").unwrap_or_default();
                let lowers = lowers.split(':').filter(|path| !path.is_empty()).map(PathBuf::from).collect();
                Ok(Self { path: upper.into(), mode: Mode::Overlay, lowers, mounted: None })
            }
            [mount] if is_bind(mount) && mount.target.is_empty() => {
                let path = PathBuf::from(&mount.source);
                Ok(Self { path, mode: Mode::Direct, lowers: Vec::new(), mounted: None })
            }
            mounts => Self::mounted(mounts),
        }
    }

    /// The place that `mounts` show, for reading.
    ///
    /// # Errors
    /// When they cannot be mounted.
    pub fn to_read(mounts: &[Mount]) -> Result<Self> {
        match mounts {
            [mount] if is_bind(mount) && mount.target.is_empty() => {
                let path = PathBuf::from(&mount.source);
                Ok(Self { path, mode: Mode::Direct, lowers: Vec::new(), mounted: None })
            }
            mounts => Self::mounted(mounts),
        }
    }

    /// The directories that `mounts` stack, newest first, without mounting anything: those of a bind or of an overlay.
    pub fn directories(mounts: &[Mount]) -> Vec<PathBuf> {
        let of = |mount: &Mount| -> Vec<PathBuf> {
            if is_bind(mount) {
                return vec![PathBuf::from(&mount.source)];
            }
            let upper = option(mount, "upperdir").into_iter();
            let lowers = option(mount, "lowerdir").unwrap_or_default().split(':').filter(|path| !path.is_empty());
            upper.chain(lowers).map(PathBuf::from).collect()
        };
        mounts.iter().flat_map(of).collect()
    }

    /// Where the changes from `left` to `right` lie apart: in the upper directory of an overlay over just what `left`
    /// shows.
    pub fn changes(left: &[Mount], right: &[Mount]) -> Option<PathBuf> {
        let [mount] = right else { return None };
        let upper = option(mount, "upperdir").filter(|_| mount.kind == "overlay")?;
        let below = Self::directories(right).split_off(1);
        (below == Self::directories(left)).then(|| upper.into())
    }

    fn mounted(mounts: &[Mount]) -> Result<Self> {
        let mounted = Mounted::all(mounts)?;
        let path = mounted.dir.path().to_owned();
        Ok(Self { path, mode: Mode::Direct, lowers: Vec::new(), mounted: Some(mounted) })
    }

    /// Opens the directory.
    ///
    /// # Errors
    /// When it is not there.
    pub fn open(&self) -> Result<Root> {
        Root::open(&self.path).doing(|| format!("open {}", self.path.display()))
    }

    /// Takes down what was mounted.
    ///
    /// # Errors
    /// When that fails.
    pub fn close(self) -> Result<()> {
        self.mounted.map_or(Ok(()), Mounted::close)
    }
}

/// The value of an option.
pub(super) fn option<'a>(mount: &'a Mount, name: &str) -> Option<&'a str> {
    mount.options.iter().find_map(|option| option.strip_prefix(name)?.strip_prefix('='))
}

pub(super) fn is_bind(mount: &Mount) -> bool {
    let is_bind = |option: &String| option == "bind" || option == "rbind";
    mount.kind == "bind" || (matches!(mount.kind.as_str(), "" | "none") && mount.options.iter().any(is_bind))
}

/// Mounts on a directory of their own, taken down when dropped.
struct Mounted {
    dir: tempfile::TempDir,
    count: usize,
}

impl Mounted {
    fn all(mounts: &[Mount]) -> Result<Self> {
        let dir =
            tempfile::Builder::new().prefix("gantryd-diff-").tempdir().doing(|| "make a directory to mount on")?;
        let mut mounted = Self { dir, count: 0 };
        for mount in mounts {
            mounted.add(mount).doing(|| format!("mount {} {}", mount.kind, mount.source))?;
        }
        Ok(mounted)
    }

    fn add(&mut self, mount: &Mount) -> Result<()> {
        if !mount.target.is_empty() {
            return Err(Error::unimplemented("a mount below another"));
        }
        let failed = std::io::Error::from;
        let tree =
            mount_words::make(&mount.kind, &mount.source, &MountOptions::parse(&mount.options)).map_err(failed)?;
        let target = std::fs::File::open(self.dir.path())?;
        rung_sys::mount::attach(tree.as_fd(), target.as_fd()).map_err(failed)?;
        self.count += 1;
        Ok(())
    }

    fn close(mut self) -> Result<()> {
        while self.count > 0 {
            self.count -= 1;
            rung_sys::mount::detach(self.dir.path()).map_err(std::io::Error::from).doing(|| "unmount")?;
        }
        Ok(())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        for _ in 0..self.count {
            if let Err(error) = rung_sys::mount::detach(self.dir.path()) {
                tracing::warn!(%error, "left a mount");
            }
        }
    }
}
