//! Whom a container runs as, looked up in the image's own files.
//!
//! The root file system is not mounted for that: its layers are looked at from the top down, each beneath its own
//! directory, because what they hold, links included, is the image's.

use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use rung_spec::user::{self, User};
use rung_sys::beneath::Root;

use crate::error::{Doing, Error, Result};
use crate::snapshots::Mount;

/// Most bytes read of such a file.
const MAX_FILE: u64 = 1 << 20;

/// Looks `text` up in the root file system that `mounts` make.
///
/// # Errors
/// `InvalidArgument` for a user or group that is not there.
pub fn resolve(text: &str, mounts: &[Mount]) -> Result<User> {
    let layers: Vec<PathBuf> = mounts.first().map(layers).unwrap_or_default();
    let read = |path: &str| layers.iter().find_map(|layer| read_beneath(layer, path).transpose()).transpose();
    let (passwd, group) = (read("etc/passwd")?.unwrap_or_default(), read("etc/group")?.unwrap_or_default());
    user::resolve(text, &passwd, &group).map_err(|error| Error::invalid(error.to_string()))
}

/// Looks groups up in the root file system that `mounts` make.
///
/// # Errors
/// `InvalidArgument` for a group that is not there.
pub fn groups(names: &[String], mounts: &[Mount]) -> Result<Vec<u32>> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let layers: Vec<PathBuf> = mounts.first().map(layers).unwrap_or_default();
    let group = layers.iter().find_map(|layer| read_beneath(layer, "etc/group").transpose()).transpose()?;
    let group = group.unwrap_or_default();
    let id = |name: &String| user::group_id(name, &group).map_err(|error| Error::invalid(error.to_string()));
    names.iter().map(id).collect()
}

/// Looks `text` up in the root file system of a running process.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_running(text: &str, pid: u32) -> Result<User> {
    let root = PathBuf::from(format!("/proc/{pid}/root"));
    let read = |path: &str| read_beneath(&root, path).map(Option::unwrap_or_default);
    let (passwd, group) = (read("etc/passwd")?, read("etc/group")?);
    user::resolve(text, &passwd, &group).map_err(|error| Error::invalid(error.to_string()))
}

/// The directories that a mount stacks, topmost first.
fn layers(mount: &Mount) -> Vec<PathBuf> {
    if mount.kind != "overlay" {
        return vec![PathBuf::from(&mount.source)];
    }
    let option = |name: &str| mount.options.iter().find_map(|option| option.strip_prefix(name));
    let lower = option("lowerdir=").unwrap_or_default().split(':');
    option("upperdir=").into_iter().chain(lower).filter(|dir| !dir.is_empty()).map(PathBuf::from).collect()
}

fn read_beneath(root: &Path, path: &str) -> Result<Option<String>> {
    let doing = || format!("read /{path} of the image");
    let opened = Root::open(root).and_then(|root| root.resolve(Path::new(path), OFlag::O_RDONLY | OFlag::O_NONBLOCK));
    let file = match opened {
        Ok(fd) => File::from(fd),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
        // A device without a driver: an upper layer's word that the file is deleted.
        Err(error) if error.raw_os_error() == Some(nix::libc::ENXIO) => return Ok(Some(String::new())),
        Err(error) => return Err(error).doing(doing),
    };
    // What is not a file holds no users, and hides what lies under it.
    if !file.metadata().doing(doing)?.is_file() {
        return Ok(Some(String::new()));
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut bytes).doing(doing)?;
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}
