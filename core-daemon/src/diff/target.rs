//! Where a snapshot's mounts let a layer be applied: in the directory itself where that is enough, mounted for the
//! time it takes where it is not.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::PathBuf;

use rung_sys::beneath::Root;
use rung_sys::mount_options::MountOptions;
use rung_sys::mount_words;

use super::apply::Mode;
use crate::error::{Doing, Error, Result};
use crate::snapshots::Mount;

/// A directory to work on.
pub struct Target {
    /// Where it is, as long as this is held.
    pub path: PathBuf,
    /// How removals are written down in it.
    pub mode: Mode,
    /// Directories of the layers below, newest first, where [`Target::mode`] is [`Mode::Overlay`].
    pub lowers: Vec<PathBuf>,
    /// What it is part of, if that is mounted for it alone.
    _mounted: Vec<OwnedFd>,
}

impl Target {
    /// The place that `mounts` show, for writing.
    ///
    /// # Errors
    /// `InvalidArgument` for no mounts, or for what they show read-only: a view's directory is the layer itself, which
    /// others stand on.
    pub fn of(mounts: &[Mount]) -> Result<Self> {
        if let Some(mount) = mounts.last().filter(|mount| is_read_only(mount)) {
            let what = if mount.source.is_empty() { &mount.kind } else { &mount.source };
            return Err(Error::invalid(format!("apply: the mount of {what} is read-only")));
        }
        match mounts {
            [] => Err(Error::invalid("apply: no mounts")),
            [mount] if mount.kind == "overlay" => {
                let upper =
                    option(mount, "upperdir").ok_or_else(|| Error::invalid("apply: the overlay is read-only"))?;
                let lowers = option(mount, "lowerdir").unwrap_or_default();
                let lowers = lowers.split(':').filter(|path| !path.is_empty()).map(PathBuf::from).collect();
                Ok(Self { path: upper.into(), mode: Mode::Overlay, lowers, _mounted: Vec::new() })
            }
            [mount] if is_bind(mount) && mount.target.is_empty() => {
                let path = PathBuf::from(&mount.source);
                Ok(Self { path, mode: Mode::Direct, lowers: Vec::new(), _mounted: Vec::new() })
            }
            mounts => Self::mounted(mounts),
        }
    }

    /// The place that `mounts` show, for reading; no mounts show an empty directory, as in containerd.
    ///
    /// # Errors
    /// When they cannot be mounted.
    pub fn to_read(mounts: &[Mount]) -> Result<Self> {
        match mounts {
            [] => {
                let (kind, options) = ("tmpfs".to_owned(), vec!["ro".to_owned()]);
                Self::mounted(&[Mount { source: kind.clone(), kind, target: String::new(), options }])
            }
            [mount] if is_bind(mount) && mount.target.is_empty() => {
                let path = PathBuf::from(&mount.source);
                Ok(Self { path, mode: Mode::Direct, lowers: Vec::new(), _mounted: Vec::new() })
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

    /// What the mounts show, attached nowhere: it goes with the descriptors, and so with a daemon that is killed.
    fn mounted(mounts: &[Mount]) -> Result<Self> {
        let mount = |mount: &Mount| {
            if !mount.target.is_empty() {
                return Err(Error::unimplemented("a mount below another"));
            }
            let tree = mount_words::make(&mount.kind, &mount.source, &MountOptions::parse(&mount.options));
            tree.map_err(std::io::Error::from).doing(|| format!("mount {} {}", mount.kind, mount.source))
        };
        let mounted = mounts.iter().map(mount).collect::<Result<Vec<_>>>()?;
        let top = mounted.last().ok_or_else(|| Error::invalid("no mounts"))?;
        let path = format!("/proc/self/fd/{}", top.as_raw_fd()).into();
        Ok(Self { path, mode: Mode::Direct, lowers: Vec::new(), _mounted: mounted })
    }

    /// Opens the directory.
    ///
    /// # Errors
    /// When it is not there.
    pub fn open(&self) -> Result<Root> {
        Root::open(&self.path).doing(|| format!("open {}", self.path.display()))
    }
}

/// The value of an option.
pub(super) fn option<'a>(mount: &'a Mount, name: &str) -> Option<&'a str> {
    mount.options.iter().find_map(|option| option.strip_prefix(name)?.strip_prefix('='))
}

/// Whether the last word about writing is that nobody may.
fn is_read_only(mount: &Mount) -> bool {
    let mut words = mount.options.iter().map(String::as_str);
    words.rfind(|option| matches!(*option, "ro" | "rro" | "rw" | "rrw")).is_some_and(|option| option.ends_with("ro"))
}

pub(super) fn is_bind(mount: &Mount) -> bool {
    let is_bind = |option: &String| option == "bind" || option == "rbind";
    mount.kind == "bind" || (matches!(mount.kind.as_str(), "" | "none") && mount.options.iter().any(is_bind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_read_only_is_not_written() {
        let mount = |kind: &str, options: &[&str]| Mount {
            kind: kind.to_owned(),
            source: "/layers/7/fs".to_owned(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
            target: String::new(),
        };
        let view = mount("bind", &["ro", "rbind"]);
        let error = Target::of(std::slice::from_ref(&view)).err().expect("a view's directory is the layer itself");
        assert!(error.to_string().contains("/layers/7/fs is read-only"), "{error}");
        let own = mount("overlay", &["upperdir=/up", "workdir=/work", "lowerdir=/low", "ro"]);
        for other in [own, mount("", &["bind", "rro"]), mount("bind", &["rbind", "rw", "ro"])] {
            assert!(Target::of(std::slice::from_ref(&other)).is_err(), "{other:?}");
        }
        for writable in [mount("bind", &["rbind", "rw"]), mount("bind", &["ro", "rbind", "rw"])] {
            let target = Target::of(std::slice::from_ref(&writable)).expect("an active snapshot");
            assert_eq!(target.path, PathBuf::from("/layers/7/fs"));
        }
        assert!(Target::to_read(&[view]).is_ok());
    }
}
