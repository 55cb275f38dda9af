//! The files of a container: all of them as an archive, what has changed, and copies in and out.
//!
//! A running container's files are reached through the root of its process, opened once, beneath which the kernel
//! resolves every path, so that no link leads out and volumes are where the container sees them. Those of one that does
//! not run are mounted for the time it takes.

use std::ffi::OsStr;
use std::io::{BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gantry_proto::gantry::images::v1 as api;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, SFlag};
use rung_sys::beneath::{self, Root};
use tokio::sync::OwnedMutexGuard;

use super::create::OURS;
use super::etc::PLACES;
use super::{Engine, Known};
use crate::blocking::{blocking, with_client};
use crate::context::Context;
use crate::diff::{self, Change, Changes, Target};
use crate::error::{Doing, Error, Result};
use crate::id;
use crate::labels::{GC_ROOT, Labels};
use crate::snapshots::Mount;

/// Bytes of one copy into a container at most: 16 TiB, so that the file system is the limit.
const MAX_COPY: u64 = 1 << 44;

/// A container's files, as long as it is held.
struct Files {
    root: Root,
    _mounted: Option<Target>,
    /// Keeps a container that does not run from being started: two overlays on one directory would not see each other.
    _turn: Option<OwnedMutexGuard<()>>,
}

impl Engine {
    /// Writes a container's whole file system as a tar, without what is mounted into it.
    ///
    /// # Errors
    /// `NotFound` for the container; what reading or writing fails with.
    pub async fn export_files(&self, context: &Context, name: &str, to: impl Write + Send + 'static) -> Result<()> {
        let known = self.find(context, name)?;
        let (engine, context) = (self.clone(), context.clone());
        let what = known.record.name.clone();
        with_client(move || {
            let mounts = engine.mounts(&context, &known)?;
            let target = Target::to_read(&[read_only(&mounts)])?;
            let root = target.open()?;
            diff::create(&Changes::All(&root), diff::Wanted::default(), to).and_then(|mut to| Ok(to.flush()?))?;
            engine.note(&context.namespace, &known, "export", &[]);
            Ok(())
        })
        .await
        .doing(|| format!("export {what}"))
    }

    /// What a container has changed.
    ///
    /// # Errors
    /// `NotFound` for the container; what reading fails with.
    pub async fn changes(&self, context: &Context, name: &str) -> Result<Vec<api::Change>> {
        let known = self.find(context, name)?;
        let (engine, context) = (self.clone(), context.clone());
        blocking(move || {
            let mut directories = Target::directories(&engine.mounts(&context, &known)?);
            if directories.is_empty() {
                return Err(Error::unimplemented("its snapshotter has no directories that could be compared"));
            }
            let upper = directories.remove(0);
            let is_overlay = !directories.is_empty();
            if !is_overlay {
                directories = engine.parent_directories(&context, &known)?;
            }
            let found = diff::changes(&Root::open(&upper)?, &directories, is_overlay, &PLACES)?;
            Ok(found.into_iter().map(change).collect())
        })
        .await
        .doing(|| format!("diff {name}"))
    }

    fn mounts(&self, context: &Context, known: &Known) -> Result<Vec<Mount>> {
        let snapshotter = self.parts().snapshotters.get(&known.container.snapshotter)?;
        snapshotter.mounts(context, &known.container.snapshot_key)
    }

    fn parent_directories(&self, context: &Context, known: &Known) -> Result<Vec<PathBuf>> {
        let snapshotter = self.parts().snapshotters.get(&known.container.snapshotter)?;
        let parent = snapshotter.stat(context, &known.container.snapshot_key)?.parent;
        if parent.is_empty() {
            return Ok(Vec::new());
        }
        let key = format!("changes-{}", id::random::<8>()?);
        // The first label keeps the snapshot from being collected, the second lets the next daemon find and remove it
        // if this one is killed.
        let labels = [GC_ROOT, OURS].map(|label| (label.to_owned(), "yes".to_owned()));
        let mounts = snapshotter.view(context, &key, &parent, Labels::from(labels))?;
        snapshotter.remove(context, &key)?;
        Ok(Target::directories(&mounts))
    }

    async fn files(&self, context: &Context, known: &Known) -> Result<Files> {
        let key = (context.namespace.clone(), known.id.clone());
        loop {
            if let Some(live) = self.running(&key.0, &key.1) {
                let root = running_root(live.task.pid());
                // The process may have ended meanwhile, and another have its number: then the root is not to be trusted.
                if self.running(&key.0, &key.1).is_some_and(|now| Arc::ptr_eq(&now, &live)) {
                    return Ok(Files { root: root?, _mounted: None, _turn: None });
                }
            }
            let turn = self.shared.turns.take(key.clone()).await;
            if self.running(&key.0, &key.1).is_some() {
                continue;
            }
            let mounts = self.mounts(context, known)?;
            return blocking(move || {
                let target = Target::to_read(&mounts)?;
                Ok(Files { root: target.open()?, _mounted: Some(target), _turn: Some(turn) })
            })
            .await;
        }
    }

    /// Sends what is at a path of a container: first what it is, then a tar of it, whose paths begin with its name.
    ///
    /// # Errors
    /// `NotFound` for the container or the path; what reading or writing fails with.
    pub async fn copy_out(
        &self,
        context: &Context,
        request: api::CopyOutRequest,
        stat: impl FnOnce(api::PathStat) -> Result<()> + Send + 'static,
        to: impl Write + Send + 'static,
    ) -> Result<()> {
        let known = self.find(context, &request.r#ref)?;
        let doing = format!("copy {}:{}", known.record.name, request.path);
        let files = self.files(context, &known).await.doing(|| &doing)?;
        self.note(&context.namespace, &known, "archive-path", &[("path", &request.path)]);
        with_client(move || send(&files.root, &request, stat, to)).await.doing(|| doing)
    }

    /// Unpacks a tar into a directory of a container.
    ///
    /// # Errors
    /// `NotFound` for the container or the directory; what writing fails with.
    pub async fn copy_in(
        &self,
        context: &Context,
        options: api::CopyInOptions,
        archive: impl Read + Send + 'static,
    ) -> Result<()> {
        let known = self.find(context, &options.r#ref)?;
        let doing = format!("copy to {}:{}", known.record.name, options.path);
        let files = self.files(context, &known).await.doing(|| &doing)?;
        self.note(&context.namespace, &known, "extract-to-dir", &[("path", &options.path)]);
        with_client(move || {
            let path = Path::new(&options.path);
            let directory = files.root.resolve(relative(path), OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
            let archive = BufReader::with_capacity(256 << 10, archive);
            diff::apply(Root::from_fd(directory), archive, diff::Mode::Files, MAX_COPY).map(drop)
        })
        .await
        .doing(|| doing)
    }
}

/// The root of a running process.
fn running_root(pid: u32) -> Result<Root> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = open(format!("/proc/{pid}/root").as_str(), flags, Mode::empty()).map_err(std::io::Error::from);
    root.doing(|| "open the container's root").map(Root::from_fd)
}

/// All that the mounts show, with nothing to write to: so it can be looked at while the container runs.
fn read_only(mounts: &[Mount]) -> Mount {
    let directories = Target::directories(mounts);
    let text = |path: &PathBuf| path.display().to_string();
    match &directories[..] {
        [one] => Mount {
            kind: "bind".to_owned(),
            source: text(one),
            target: String::new(),
            options: vec!["ro".to_owned(), "rbind".to_owned()],
        },
        several => {
            let lowers: Vec<String> = several.iter().map(text).collect();
            let options = vec!["ro".to_owned(), format!("lowerdir={}", lowers.join(":"))];
            Mount { kind: "overlay".to_owned(), source: "overlay".to_owned(), target: String::new(), options }
        }
    }
}

fn change((kind, path): (Change, PathBuf)) -> api::Change {
    let kind = match kind {
        Change::Added => api::ChangeKind::Added,
        Change::Modified => api::ChangeKind::Modified,
        Change::Deleted => api::ChangeKind::Deleted,
    };
    api::Change { kind: kind.into(), path: format!("/{}", path.display()) }
}

fn relative(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

fn send(
    root: &Root,
    request: &api::CopyOutRequest,
    stat: impl FnOnce(api::PathStat) -> Result<()>,
    to: impl Write,
) -> Result<()> {
    let asked = Path::new(&request.path);
    let lexical = beneath::lexical(asked);
    let missing = || Error::not_found(format!("{}: no such file or directory", request.path));
    let Some(name) = lexical.file_name() else {
        stat(api::PathStat { name: "/".to_owned(), is_directory: true, size: 0 })?;
        return finish(diff::create(&Changes::All(root), diff::Wanted::default(), to)?);
    };
    let (within, name) = match request.follow {
        true => resolved(root, &lexical)?,
        false => (parent(root, &lexical)?, name.to_owned()),
    };
    let found = beneath::stat(within.as_fd(), &name)?.ok_or_else(missing)?;
    let is_directory = beneath::file_type(&found) == SFlag::S_IFDIR;
    if request.path.ends_with('/') && !is_directory {
        return Err(Error::precondition(format!("{}: not a directory", request.path)));
    }
    let size = u64::try_from(found.st_size).unwrap_or(0);
    stat(api::PathStat { name: name.to_string_lossy().into_owned(), is_directory, size })?;
    finish(diff::create(&Changes::One(&within, &name), diff::Wanted::default(), to)?)
}

fn finish(mut to: impl Write) -> Result<()> {
    Ok(to.flush()?)
}

fn parent(root: &Root, path: &Path) -> Result<OwnedFd> {
    let parent = path.parent().unwrap_or(Path::new(""));
    root.resolve(parent, OFlag::O_RDONLY | OFlag::O_DIRECTORY).doing(|| format!("open /{}", parent.display()))
}

/// The directory and name that a path leads to in the end.
fn resolved(root: &Root, path: &Path) -> Result<(OwnedFd, std::ffi::OsString)> {
    const MAX_LINKS: usize = 40;
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        let within = parent(root, &path)?;
        let Some(name) = path.file_name().map(OsStr::to_owned) else { break };
        let stat = beneath::stat(within.as_fd(), &name)?;
        if stat.is_none_or(|stat| beneath::file_type(&stat) != SFlag::S_IFLNK) {
            return Ok((within, name));
        }
        let target = nix::fcntl::readlinkat(&within, name.as_os_str()).map_err(std::io::Error::from)?;
        let target = Path::new(OsStr::from_bytes(target.as_bytes())).to_owned();
        path = beneath::lexical(&path.parent().unwrap_or(Path::new("")).join(target));
    }
    Err(Error::invalid("too many links, or a link to the root"))
}
