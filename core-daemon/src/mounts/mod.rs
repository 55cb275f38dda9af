//! Mounts that somebody else than their user makes: file systems out of files, loop devices, directories and images that
//! are made first, overlays of what was mounted before them.
//!
//! ```text
//! <state>/io.containerd.mount-manager.v1.bolt/<namespace>/<hash of name>/
//!     0, 1, …         what is mounted; a link to its device for a loop device
//!     boot            the machine's run in which this is true
//!     lease           what it ends with
//!     activation      the answer to whoever asked; written last
//! ```
//!
//! An activation takes the first of a list of mounts, as many as only the daemon can make, and answers with the rest, which
//! are the caller's. Nothing is left of one that was interrupted.

mod make;
mod words;

use std::collections::HashMap;
use std::fs::{self, DirBuilder};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};

pub use gantry_proto::containerd::types::{ActivationInfo, Mount};
use gantry_proto::namespace::Namespace;
use prost::Message as _;
use rung_spec::digest::Digest;
use rung_sys::atomic_file;

use crate::context::Context;
use crate::error::{Doing, Error, Result};
use crate::id;
use crate::labels::{self, Labels};

/// Name of the directory of all activations.
const DIRECTORY: &str = "io.containerd.mount-manager.v1.bolt";
/// The label by which an activation goes with a container.
pub const OF_CONTAINER: &str = "containerd.io/gc.bref.container";
/// Longest name.
const MAX_NAME: usize = 256;
/// Most mounts in one activation.
const MAX_MOUNTS: usize = 255;

/// What to activate.
#[derive(Debug, Clone, Default)]
pub struct Wish {
    /// Its name in the namespace.
    pub name: String,
    /// The mounts, in order.
    pub mounts: Vec<Mount>,
    /// Labels; see [`OF_CONTAINER`].
    pub labels: Labels,
    /// All of them are made, and the one that is left is a bind of the result.
    pub temporary: bool,
    /// Types that the caller makes itself; `format/*` stands for all with that prefix.
    pub allowed: Vec<String>,
}

/// All activations. Clones are the same. Calls block.
#[derive(Clone)]
pub struct Mounts(Arc<Manager>);

struct Manager {
    directory: PathBuf,
    /// Where directories and images may be made.
    roots: Vec<PathBuf>,
    boot: String,
    /// Who changes which activation now.
    turns: Mutex<HashMap<PathBuf, Arc<Mutex<()>>>>,
}

impl Mounts {
    /// Keeps activations under `state`, and makes things only there and under `root`. What an earlier daemon left
    /// unfinished is undone.
    ///
    /// # Errors
    /// When the directory cannot be made or read.
    pub fn open(state: &Path, root: &Path) -> Result<Self> {
        let directory = state.join(DIRECTORY);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&directory);
        made.doing(|| format!("make {}", directory.display()))?;
        let boot = id::boot()?;
        let roots = vec![directory.clone(), root.to_owned()];
        let mounts = Self(Arc::new(Manager { directory, roots, boot, turns: Mutex::default() }));
        for (_, dir) in mounts.0.directories()? {
            if mounts.0.read(&dir).is_none() {
                // What cannot be taken down, such as a mount of a server that is gone, must not keep the daemon from
                // starting. It is tried again before the name is used again.
                if let Err(error) = mounts.0.undo(&dir) {
                    tracing::warn!(path = %dir.display(), %error, "undo mounts of an earlier daemon");
                }
            }
        }
        Ok(mounts)
    }

    /// Makes the mounts that only the daemon can make.
    ///
    /// # Errors
    /// `Unimplemented` where there are none, `AlreadyExists` for the name, `InvalidArgument` for malformed options; what
    /// mounting fails with. Then nothing is left.
    pub fn activate(&self, context: &Context, wish: Wish) -> Result<ActivationInfo> {
        check(&wish)?;
        let count = words::count(&wish.mounts, wish.temporary, &wish.allowed)
            .ok_or_else(|| Error::unimplemented(format!("activate {}: all mounts are the caller's", wish.name)))?;
        let dir = self.0.place(&context.namespace, &wish.name);
        let turn = self.0.turn(&dir);
        let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
        let doing = || format!("activate {}", wish.name);
        if dir.exists() {
            if self.0.read(&dir).is_some() {
                return Err(Error::already_exists(format!("mount {}: already exists", wish.name)));
            }
            self.0.undo(&dir).doing(doing)?;
        }
        DirBuilder::new().recursive(true).mode(0o700).create(&dir).doing(doing)?;
        let lease = context.lease.as_deref();
        let made = self.0.make(&dir, &wish, count).and_then(|info| self.0.record(&dir, &info, lease).map(|()| info));
        made.doing(doing).inspect_err(|_| {
            if let Err(error) = self.0.undo(&dir) {
                tracing::warn!(name = wish.name, %error, "undo mounts");
            }
        })
    }

    /// Takes an activation's mounts down.
    ///
    /// # Errors
    /// `NotFound`; what unmounting fails with.
    pub fn deactivate(&self, namespace: &Namespace, name: &str) -> Result<()> {
        let dir = self.0.place(namespace, name);
        let turn = self.0.turn(&dir);
        let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
        if !dir.exists() {
            return Err(missing(name));
        }
        self.0.undo(&dir).doing(|| format!("deactivate {name}"))
    }

    /// An activation.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn info(&self, namespace: &Namespace, name: &str) -> Result<ActivationInfo> {
        self.0.read(&self.0.place(namespace, name)).map(|(info, _)| info).ok_or_else(|| missing(name))
    }

    /// Whether there is something of that name, be it unfinished.
    pub fn holds(&self, namespace: &Namespace, name: &str) -> bool {
        self.0.place(namespace, name).exists()
    }

    /// Changes the labels that `paths` name, or all of them; answers with the result.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` for a field that cannot change.
    pub fn update(&self, namespace: &Namespace, wanted: &ActivationInfo, paths: &[String]) -> Result<ActivationInfo> {
        let dir = self.0.place(namespace, &wanted.name);
        let turn = self.0.turn(&dir);
        let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut info, lease) = self.0.read(&dir).ok_or_else(|| missing(&wanted.name))?;
        labels::update(&mut info.labels, &wanted.labels, paths, |path| {
            Err(Error::invalid(format!("cannot update field {path:?} of mount {}", wanted.name)))
        })?;
        self.0.record(&dir, &info, lease.as_deref())?;
        Ok(info)
    }

    /// Every activation of a namespace, by name.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub fn list(&self, namespace: &Namespace) -> Result<Vec<ActivationInfo>> {
        let all = self.0.directories()?.into_iter().filter(|(of, _)| of == namespace);
        let mut all: Vec<_> = all.filter_map(|(_, dir)| self.0.read(&dir)).map(|(info, _)| info).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    /// Takes down the activations of which `is_wanted` says that what they go with is gone: it is asked with the
    /// namespace, the labels and the lease. Answers with how many could not be taken down.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub fn sweep(&self, is_wanted: impl Fn(&Namespace, &Labels, Option<&str>) -> bool) -> Result<usize> {
        let mut failed = 0;
        for (namespace, dir) in self.0.directories()? {
            let turn = self.0.turn(&dir);
            // Somebody makes it, or takes it down: it is not for this sweep.
            let _turn = match turn.try_lock() {
                Err(TryLockError::WouldBlock) => continue,
                Err(TryLockError::Poisoned(turn)) => turn.into_inner(),
                Ok(turn) => turn,
            };
            let Some((info, lease)) = self.0.read(&dir) else { continue };
            if is_wanted(&namespace, &info.labels, lease.as_deref()) {
                continue;
            }
            tracing::info!(%namespace, name = info.name, "mounts that nobody refers to; taking them down");
            if let Err(error) = self.0.undo(&dir) {
                tracing::warn!(%namespace, name = info.name, %error, "take mounts down");
                failed += 1;
            }
        }
        Ok(failed)
    }
}

impl Manager {
    /// Names are the client's own, and so not those of files.
    fn place(&self, namespace: &Namespace, name: &str) -> PathBuf {
        self.directory.join(namespace.as_str()).join(Digest::of(name.as_bytes()).hex())
    }

    /// One thing at a time is done to an activation; what takes long, such as making a file system, keeps only those
    /// waiting who want the same one.
    fn turn(&self, dir: &Path) -> Arc<Mutex<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever has a turn or waits for it has a reference; the others are done with.
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        turns.entry(dir.to_owned()).or_default().clone()
    }

    fn directories(&self) -> Result<Vec<(Namespace, PathBuf)>> {
        let mut found = Vec::new();
        for namespace in subdirectories(&self.directory)? {
            let name = namespace.file_name().and_then(|name| name.to_str());
            let Some(parsed) = name.and_then(|name| Namespace::parse(name).ok()) else { continue };
            found.extend(subdirectories(&namespace)?.into_iter().map(|dir| (parsed.clone(), dir)));
        }
        Ok(found)
    }

    /// An activation that is whole and of this run of the machine, and its lease.
    fn read(&self, dir: &Path) -> Option<(ActivationInfo, Option<String>)> {
        let info = ActivationInfo::decode(fs::read(dir.join("activation")).ok()?.as_slice()).ok()?;
        let lease = fs::read_to_string(dir.join("lease")).ok();
        (fs::read_to_string(dir.join("boot")).ok()?.trim_end() == self.boot).then_some((info, lease))
    }

    fn record(&self, dir: &Path, info: &ActivationInfo, lease: Option<&str>) -> Result<()> {
        let write = |name: &str, content: &[u8]| {
            atomic_file::write_volatile(&dir.join(name), content, 0o600).map_err(std::io::Error::from)
        };
        write("boot", self.boot.as_bytes())?;
        if let Some(lease) = lease {
            write("lease", lease.as_bytes())?;
        }
        Ok(write("activation", &info.encode_to_vec())?)
    }
}

fn check(wish: &Wish) -> Result<()> {
    if wish.name.is_empty() || wish.name.len() > MAX_NAME {
        return Err(Error::invalid(format!("mount name: must have 1 to {MAX_NAME} bytes")));
    }
    if wish.mounts.len() > MAX_MOUNTS {
        return Err(Error::invalid(format!("activate {}: more than {MAX_MOUNTS} mounts", wish.name)));
    }
    labels::check(&wish.labels)
}

fn subdirectories(dir: &Path) -> Result<Vec<PathBuf>> {
    let doing = || format!("read {}", dir.display());
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.doing(doing)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.doing(doing)?;
        if entry.file_type().doing(doing)?.is_dir() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

fn missing(name: &str) -> Error {
    Error::not_found(format!("mount {name}: not found"))
}

#[cfg(test)]
mod tests;
