//! Whom a container runs as, looked up in the image's own files.
//!
//! The root file system is not mounted for that: its layers are looked at as they would show once it is, because what they
//! hold, links and removals included, is the image's.

use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use rung_spec::user::{self, User};
use rung_sys::beneath::Root;

use crate::diff::Lowers;
use crate::error::{Doing, Error, Result};
use crate::snapshots::Mount;

/// Most bytes read of such a file.
const MAX_FILE: u64 = 1 << 20;
const USERS: &str = "etc/passwd";
const GROUPS: &str = "etc/group";

/// Looks `text` up in the root file system that `mounts` make.
///
/// # Errors
/// `InvalidArgument` for a user or group that is not there.
pub fn resolve(text: &str, mounts: &[Mount]) -> Result<User> {
    let layers = layers(mounts)?;
    found(text, &of_layers(layers.as_ref(), USERS)?, &of_layers(layers.as_ref(), GROUPS)?)
}

/// Looks groups up in the root file system that `mounts` make.
///
/// # Errors
/// `InvalidArgument` for a group that is not there.
pub fn groups(names: &[String], mounts: &[Mount]) -> Result<Vec<u32>> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let group = of_layers(layers(mounts)?.as_ref(), GROUPS)?;
    let id = |name: &String| user::group_id(name, &group).map_err(|error| Error::invalid(error.to_string()));
    names.iter().map(id).collect()
}

/// Looks `text` up in the root file system of a running process.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_running(text: &str, pid: u32) -> Result<User> {
    let root = PathBuf::from(format!("/proc/{pid}/root"));
    found(text, &of_process(&root, USERS)?, &of_process(&root, GROUPS)?)
}

fn found(text: &str, passwd: &str, group: &str) -> Result<User> {
    user::resolve(text, passwd, group).map_err(|error| Error::invalid(error.to_string()))
}

/// The layers that a mount stacks; none of what has to be mounted to be seen.
fn layers(mounts: &[Mount]) -> Result<Option<Lowers>> {
    let Some(mount) = mounts.first() else { return Ok(None) };
    match Lowers::open(&directories(mount)) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        opened => opened.map(Some).doing(|| "open the layers of the image"),
    }
}

/// The directories that a mount stacks, topmost first.
fn directories(mount: &Mount) -> Vec<PathBuf> {
    if mount.kind != "overlay" {
        return vec![PathBuf::from(&mount.source)];
    }
    let option = |name: &str| mount.options.iter().find_map(|option| option.strip_prefix(name));
    let lower = option("lowerdir=").unwrap_or_default().split(':');
    option("upperdir=").into_iter().chain(lower).filter(|dir| !dir.is_empty()).map(PathBuf::from).collect()
}

fn of_layers(layers: Option<&Lowers>, path: &str) -> Result<String> {
    let doing = || format!("read /{path} of the image");
    match layers.map(|layers| layers.file(Path::new(path))).transpose().doing(doing)?.flatten() {
        Some(file) => text(file).doing(doing),
        None => Ok(String::new()),
    }
}

fn of_process(root: &Path, path: &str) -> Result<String> {
    let doing = || format!("read /{path} of the container");
    let opened = Root::open(root).and_then(|root| root.resolve(Path::new(path), OFlag::O_RDONLY | OFlag::O_NONBLOCK));
    match opened {
        Ok(fd) => text(File::from(fd)).doing(doing),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(String::new()),
        // A socket, or a device without a driver.
        Err(error) if error.raw_os_error() == Some(nix::libc::ENXIO) => Ok(String::new()),
        Err(error) => Err(error).doing(doing),
    }
}

/// What is in a file; what is none, such as a pipe, holds nobody.
fn text(file: File) -> std::io::Result<String> {
    if !file.metadata()?.is_file() {
        return Ok(String::new());
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use nix::sys::stat::{Mode, SFlag, mknod};

    use super::*;

    #[test]
    fn users_are_those_that_the_image_shows() {
        let dir = tempfile::tempdir().expect("directory");
        let at = |path: &str| dir.path().join(path);
        let app = |uid: u32| format!("app:x:{uid}:{uid}::/:/bin/sh\n");
        for layer in ["top", "low/etc", "low/usr"] {
            std::fs::create_dir_all(at(layer)).expect("directory");
        }
        std::fs::write(at("low/etc/passwd"), app(1000)).expect("file");
        std::fs::write(at("low/usr/passwd"), app(2000)).expect("file");
        let options = vec![format!("lowerdir={}:{}", at("top").display(), at("low").display())];
        let mount = Mount { kind: "overlay".into(), source: "overlay".into(), target: String::new(), options };
        let uid = || resolve("app", std::slice::from_ref(&mount)).map(|user| user.uid);
        assert_eq!(uid().expect("of a layer below"), 1000);
        // A link whose file another layer has, one to somewhere else, and one that leads out of the image.
        std::fs::create_dir(at("top/etc")).expect("directory");
        for (link, wanted) in [("../usr/passwd", Some(2000)), ("/usr/passwd", Some(2000)), ("../../../x", None)] {
            symlink(link, at("top/etc/passwd")).expect("link");
            assert_eq!(uid().ok(), wanted, "{link}");
            std::fs::remove_file(at("top/etc/passwd")).expect("remove");
        }
        // What is removed is not there, nor what is in a directory that is, or that hides it.
        let whiteout = |path: &str| mknod(&at(path), SFlag::S_IFCHR, Mode::empty(), 0).expect("whiteout");
        whiteout("top/etc/passwd");
        assert!(uid().is_err());
        std::fs::remove_dir_all(at("top/etc")).expect("remove");
        whiteout("top/etc");
        assert!(uid().is_err());
        std::fs::remove_file(at("top/etc")).expect("remove");
        std::fs::create_dir(at("top/etc")).expect("directory");
        let top = File::open(at("top")).expect("open");
        let opaque =
            rung_sys::xattr::set(std::os::fd::AsFd::as_fd(&top), "etc".as_ref(), b"trusted.overlay.opaque", b"y");
        opaque.expect("opaque");
        assert!(uid().is_err());
    }
}
