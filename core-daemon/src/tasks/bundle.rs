//! Bundles: the directories in which shims and runtimes find a container.
//!
//! ```text
//! <state>/io.containerd.runtime.v2.task/<namespace>/<id>/     0700, 0710 where root is mapped
//!     config.json           the container's OCI specification
//!     rootfs/               where the shim mounts the root file system
//!     work                  link to <root>/io.containerd.runtime.v2.task/<namespace>/<id>
//!     shim-binary-path      the shim's program
//!     sandbox               the sandbox it is in, or is
//!     snapshot              the snapshot that its root file system is: snapshotter, line break, key
//!     bootstrap.json        where the shim listens; written once it has answered
//!     started               when the container's process was started, in nanoseconds since 1970
//!     held                  there while the daemon has frozen the container for work of its own
//!     log                   FIFO for what the shim logs
//!     …                     what the shim itself keeps: address, init.pid, log.json
//! <state>/io.containerd.runtime.v2.task/<namespace>/.<id>     being removed
//! ```
//!
//! The bundle is there before the shim is started and until it is gone, so a daemon that was killed in between finds every
//! shim by it. Nothing here is synced to disk: after a reboot there are no tasks.

use std::fs;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use gantry_proto::namespace::Namespace;
use rung_sys::atomic_file;

use crate::error::{Doing, Error, Result};
use crate::id::ContainerId;
use crate::shims::Address;

/// Name of the directory of all bundles, which clients and tools of containerd know.
const TASKS: &str = "io.containerd.runtime.v2.task";

/// Where all bundles are.
#[derive(Debug, Clone)]
pub struct Bundles {
    state: PathBuf,
    root: PathBuf,
}

/// One container's bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    path: PathBuf,
    work: PathBuf,
}

impl Bundles {
    /// Bundles under the daemon's state directory, with work directories under its root.
    ///
    /// # Errors
    /// When the directories cannot be made.
    pub fn open(state: &Path, root: &Path) -> Result<Self> {
        let bundles = Self { state: state.join(TASKS), root: root.join(TASKS) };
        for dir in [&bundles.state, &bundles.root] {
            let mut builder = fs::DirBuilder::new();
            // Containers with a user namespace pass through on the way to their root file system.
            builder.recursive(true).mode(0o711);
            builder.create(dir).doing(|| format!("make {}", dir.display()))?;
        }
        Ok(bundles)
    }

    /// The bundle of a container, which need not be there.
    pub fn of(&self, namespace: &Namespace, id: &ContainerId) -> Bundle {
        let name = Path::new(namespace.as_str()).join(id.as_str());
        Bundle { path: self.state.join(&name), work: self.root.join(name) }
    }

    /// Every bundle that is there. What an interrupted removal left is removed on the way.
    ///
    /// # Errors
    /// When the directory of all bundles cannot be read; one that is unreadable is reported and skipped.
    pub fn all(&self) -> Result<Vec<(Namespace, ContainerId, Bundle)>> {
        let mut found = Vec::new();
        for namespace in names(&self.state).doing(|| format!("read {}", self.state.display()))? {
            let Ok(parsed) = Namespace::parse(&namespace) else { continue };
            let dir = self.state.join(&namespace);
            let ids = match names(&dir) {
                Ok(ids) => ids,
                Err(error) => {
                    tracing::warn!(dir = %dir.display(), %error, "read bundles");
                    continue;
                }
            };
            for name in ids {
                if name.starts_with('.') {
                    let path = dir.join(&name);
                    if let Err(error) = remove_tree(&path) {
                        tracing::warn!(path = %path.display(), %error, "remove what is left of a bundle");
                    }
                } else if let Ok(id) = ContainerId::parse(&name) {
                    let bundle = self.of(&parsed, &id);
                    found.push((parsed.clone(), id, bundle));
                }
            }
        }
        Ok(found)
    }

    /// Removes work directories of containers that have no bundle any more.
    pub fn sweep_work(&self) {
        for namespace in names(&self.root).unwrap_or_default() {
            for id in names(&self.root.join(&namespace)).unwrap_or_default() {
                if !self.state.join(&namespace).join(&id).exists() {
                    let path = self.root.join(&namespace).join(&id);
                    if let Err(error) = remove_all(&path) {
                        tracing::warn!(path = %path.display(), %error, "remove a work directory");
                    }
                }
            }
        }
    }
}

fn names(dir: &Path) -> std::io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir()
            && let Ok(name) = entry.file_name().into_string()
        {
            names.push(name);
        }
    }
    Ok(names)
}

impl Bundle {
    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory of what does not fit into memory; it goes with the bundle.
    pub fn work(&self) -> &Path {
        &self.work
    }

    /// Where a checkpoint is unpacked to be restored from.
    pub fn checkpoint(&self) -> PathBuf {
        self.work.join("checkpoint")
    }

    /// Makes the bundle with the container's specification in it; a sandbox may have none.
    ///
    /// # Errors
    /// `AlreadyExists` when it is there; otherwise nothing of it is left behind.
    pub fn create(&self, spec: Option<&[u8]>, shim: &Path) -> Result<()> {
        self.make_directory().doing(|| format!("make bundle {}", self.path.display()))?;
        self.fill(spec, shim).inspect_err(|_| self.remove()).doing(|| format!("make bundle {}", self.path.display()))
    }

    fn make_directory(&self) -> Result<()> {
        for (path, mode) in [(&self.path, 0o700), (&self.work, 0o711)] {
            let mut builder = fs::DirBuilder::new();
            builder.mode(mode);
            let made = match builder.create(path) {
                // The first container of a namespace makes the namespace's directory too.
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    let parent = path.parent().ok_or_else(|| Error::internal("bundle has no parent"))?;
                    fs::DirBuilder::new().recursive(true).mode(0o711).create(parent)?;
                    builder.create(path)
                }
                made => made,
            };
            match made {
                // A work directory holds nothing that a new container wants.
                Err(error) if error.kind() == ErrorKind::AlreadyExists && path == &self.work => {}
                made => made?,
            }
        }
        Ok(())
    }

    fn fill(&self, spec: Option<&[u8]>, shim: &Path) -> Result<()> {
        fs::DirBuilder::new().mode(0o711).create(self.path.join("rootfs"))?;
        std::os::unix::fs::symlink(&self.work, self.path.join("work"))?;
        if let Some(spec) = spec {
            self.write("config.json", spec)?;
            self.admit_mapped_root(spec)?;
        }
        self.name_program(shim)
    }

    /// Notes the shim's program.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn name_program(&self, shim: &Path) -> Result<()> {
        self.write("shim-binary-path", shim.as_os_str().as_encoded_bytes())
    }

    /// Lets the root user of a container with a user namespace pass through the bundle to its root file system: the
    /// bundle gets the group that the container's root has on the host. The directory `rootfs` itself gets that user
    /// too, for containers where nothing is mounted on it.
    fn admit_mapped_root(&self, spec: &[u8]) -> Result<()> {
        // Most containers have none, and searching the text is faster than parsing it.
        if !std::str::from_utf8(spec).is_ok_and(|text| text.contains("gidMappings")) {
            return Ok(());
        }
        let spec = serde_json::from_slice::<serde_json::Value>(spec).ok();
        let number = |mapping: &serde_json::Value, key: &str| mapping.get(key).and_then(serde_json::Value::as_u64);
        let root = |mappings: &str| {
            let all = spec.as_ref()?.pointer(mappings)?.as_array()?;
            let one = all.iter().find(|one| number(one, "containerID") == Some(0))?;
            u32::try_from(number(one, "hostID")?).ok()
        };
        let Some(group) = root("/linux/gidMappings") else { return Ok(()) };
        std::os::unix::fs::chown(&self.path, None, Some(group))?;
        fs::set_permissions(&self.path, fs::Permissions::from_mode(0o710))?;
        std::os::unix::fs::chown(self.path.join("rootfs"), root("/linux/uidMappings"), Some(group))?;
        Ok(())
    }

    /// Writes down where the shim listens, for the daemon's next life.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn record(&self, address: &Address) -> Result<()> {
        let text = serde_json::to_vec(address).map_err(|error| Error::internal(format!("bootstrap.json: {error}")))?;
        let written = atomic_file::write_volatile(&self.path.join("bootstrap.json"), &text, 0o600);
        written.map_err(std::io::Error::from).doing(|| format!("record the shim's address in {}", self.path.display()))
    }

    fn write(&self, name: &str, content: &[u8]) -> Result<()> {
        let path = self.path.join(name);
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600).custom_flags(nix::libc::O_NOFOLLOW);
        let written = options.open(&path).and_then(|mut file| file.write_all(content));
        written.doing(|| format!("write {}", path.display()))
    }

    /// Notes the sandbox that the bundle's container is in, or is itself.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn mark_sandbox(&self, sandbox: &str) -> Result<()> {
        self.write("sandbox", sandbox.as_bytes())
    }

    /// The sandbox that the bundle's container is in, as far as it is noted.
    pub fn sandbox(&self) -> Option<ContainerId> {
        ContainerId::parse(&fs::read_to_string(self.path.join("sandbox")).ok()?).ok()
    }

    /// Notes the snapshot that the root file system is; an empty key: there is none.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn note_rootfs(&self, snapshotter: &str, key: &str) -> Result<()> {
        if key.is_empty() { Ok(()) } else { self.write("snapshot", format!("{snapshotter}\n{key}").as_bytes()) }
    }

    /// The snapshotter and the key of the root file system, where they are noted.
    pub fn rootfs(&self) -> Option<(String, String)> {
        let text = fs::read_to_string(self.path.join("snapshot")).ok()?;
        text.split_once('\n').map(|(snapshotter, key)| (snapshotter.to_owned(), key.to_owned()))
    }

    /// Whether it is a sandbox's own, not a container's.
    pub fn is_sandbox(&self) -> bool {
        let name = self.path.file_name().map(std::ffi::OsStr::as_encoded_bytes);
        name == fs::read(self.path.join("sandbox")).ok().as_deref()
    }

    /// The shim's program, where it was recorded.
    pub fn shim_program(&self) -> Option<PathBuf> {
        let text = fs::read_to_string(self.path.join("shim-binary-path")).ok()?;
        Some(PathBuf::from(text.trim_end())).filter(|path| path.is_absolute())
    }

    /// Notes when the container's process was started. The bundle lives exactly as long as the run.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn note_started(&self, at: SystemTime) -> Result<()> {
        let path = self.path.join("started");
        let nanos = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let written = atomic_file::write_volatile(&path, nanos.to_string().as_bytes(), 0o600);
        written.map_err(std::io::Error::from).doing(|| format!("write {}", path.display()))
    }

    /// When the container's process was started, as far as it is noted.
    pub fn started_at(&self) -> Option<SystemTime> {
        let nanos = fs::read_to_string(self.path.join("started")).ok()?.parse().ok()?;
        UNIX_EPOCH.checked_add(Duration::from_nanos(nanos))
    }

    /// Notes that the daemon has frozen the container for work of its own.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn note_held(&self) -> Result<()> {
        self.write("held", b"")
    }

    /// Whether that is noted.
    pub fn is_held(&self) -> bool {
        self.path.join("held").exists()
    }

    /// Takes the note back.
    pub fn forget_held(&self) {
        told(&self.path, fs::remove_file(self.path.join("held")));
    }

    /// When it was made; now, where that is not known.
    pub fn created_at(&self) -> SystemTime {
        let written = fs::metadata(self.path.join("shim-binary-path")).and_then(|metadata| metadata.modified());
        written.unwrap_or_else(|_| SystemTime::now())
    }

    /// Whether the container's specification is there.
    pub fn has_config(&self) -> bool {
        self.path.join("config.json").is_file()
    }

    /// Removes the bundle. It is renamed first, so that what an interruption leaves is recognised as being removed.
    /// When this returns the name is free and nothing is mounted in the bundle; inside a tokio runtime its files are
    /// removed later, in the background.
    pub fn remove(&self) {
        told(&self.work, remove_work(&self.work));
        let hidden = match self.hide() {
            Ok(hidden) => hidden,
            Err(error) => return told(&self.path, Err(error)),
        };
        if let Err(error) = detach_root(&hidden) {
            return told(&hidden, Err(error));
        }
        let files = move || told(&hidden, remove_all(&hidden));
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(files)),
            Err(_) => files(),
        }
    }

    /// Renames it to a hidden name, by which [`Bundles::all`] recognises what is being removed.
    fn hide(&self) -> std::io::Result<PathBuf> {
        let (parent, name) = (self.path.parent(), self.path.file_name().and_then(|name| name.to_str()));
        let (Some(parent), Some(name)) = (parent, name) else { return Err(ErrorKind::InvalidInput.into()) };
        // An earlier one of the name may not be removed yet.
        for number in 0_u32.. {
            let hidden = parent.join(if number == 0 { format!(".{name}") } else { format!(".{name}.{number}") });
            match fs::rename(&self.path, &hidden) {
                Err(error) if matches!(error.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists) => {}
                renamed => return renamed.map(|()| hidden),
            }
        }
        Err(ErrorKind::AlreadyExists.into())
    }
}

/// Logs what could not be removed.
fn told(path: &Path, removed: std::io::Result<()>) {
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "remove bundle");
        }
        _ => {}
    }
}

/// Removes a work directory, in which there is hardly ever something.
fn remove_work(path: &Path) -> std::io::Result<()> {
    match fs::remove_dir(path) {
        Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => remove_all(path),
        removed => removed,
    }
}

/// Removes a directory of the daemon's own; links in it are not followed.
#[expect(clippy::disallowed_methods, reason = "only root writes there")]
fn remove_all(path: &Path) -> std::io::Result<()> {
    fs::remove_dir_all(path)
}

/// Removes a bundle's directory, but never what is mounted in it: a root file system that cannot be unmounted stays, and
/// the bundle with it.
fn remove_tree(path: &Path) -> std::io::Result<()> {
    detach_root(path)?;
    match remove_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Unmounts what is left at the root of a bundle, and removes that where it is empty.
fn detach_root(path: &Path) -> std::io::Result<()> {
    let rootfs = path.join("rootfs");
    // Detaching succeeds even while something in it is in use; where nothing is mounted it fails, which is as well.
    let flags = nix::mount::MntFlags::MNT_DETACH | nix::mount::MntFlags::UMOUNT_NOFOLLOW;
    while nix::mount::umount2(&rootfs, flags).is_ok() {}
    // A root that is not empty is the bundle's own, such as that of a pod's process, and is removed with the bundle.
    match fs::remove_dir(&rootfs) {
        Err(error) if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty) => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_is_made_found_and_removed() {
        let dir = tempfile::tempdir().expect("directory");
        let bundles = Bundles::open(&dir.path().join("state"), &dir.path().join("root")).expect("bundles");
        let (namespace, id) = (Namespace::parse("n").expect("namespace"), ContainerId::parse("c").expect("id"));
        let bundle = bundles.of(&namespace, &id);
        bundle.create(Some(b"{}"), Path::new("/bin/shim")).expect("create");
        assert!(bundle.has_config());
        assert_eq!(bundle.shim_program(), Some(PathBuf::from("/bin/shim")));
        assert_eq!(
            bundle.create(Some(b"{}"), Path::new("/bin/shim")).expect_err("twice").kind(),
            crate::error::Kind::AlreadyExists
        );
        assert!(bundle.has_config(), "a failed second creation leaves the first alone");
        let address = Address { version: 3, address: "unix:///a".into(), protocol: "ttrpc".into() };
        bundle.record(&address).expect("record");
        assert_eq!(Address::load(bundle.path()).expect("load"), Some(address));
        assert_eq!(bundle.started_at(), None);
        let at = SystemTime::now();
        bundle.note_started(at).expect("note");
        assert_eq!(bundle.started_at(), Some(at));
        assert_eq!(bundles.all().expect("all").len(), 1);
        bundle.remove();
        assert!(bundles.all().expect("all").is_empty());
        assert!(!bundle.work.exists());
    }

    #[test]
    fn what_is_in_a_root_of_its_own_goes_with_a_bundle() {
        let dir = tempfile::tempdir().expect("directory");
        let bundle = dir.path().join("pod");
        fs::create_dir_all(bundle.join("rootfs/dev")).expect("root of a pod's process");
        remove_tree(&bundle).expect("removed without complaint");
        assert!(!bundle.exists());
    }

    #[test]
    fn a_name_is_free_whatever_is_left_of_earlier_bundles() {
        let dir = tempfile::tempdir().expect("directory");
        let bundles = Bundles::open(&dir.path().join("state"), &dir.path().join("root")).expect("bundles");
        let (namespace, id) = (Namespace::parse("n").expect("namespace"), ContainerId::parse("c").expect("id"));
        let bundle = bundles.of(&namespace, &id);
        for left in [".c", ".c.1"] {
            fs::create_dir_all(bundles.state.join("n").join(left).join("files")).expect("leftover");
        }
        for _ in 0..2 {
            bundle.create(Some(b"{}"), Path::new("/bin/shim")).expect("create");
            fs::write(bundle.work.join("file"), "").expect("work");
            bundle.remove();
            assert!(!bundle.path.exists() && !bundle.work.exists());
        }
        assert!(bundles.all().expect("all").is_empty());
        assert_eq!(fs::read_dir(bundles.state.join("n")).expect("names").count(), 0);
    }

    #[test]
    fn interrupted_removals_are_finished() {
        let dir = tempfile::tempdir().expect("directory");
        let bundles = Bundles::open(&dir.path().join("state"), &dir.path().join("root")).expect("bundles");
        let hidden = bundles.state.join("n/.c");
        fs::create_dir_all(hidden.join("rootfs")).expect("leftover");
        fs::create_dir_all(bundles.root.join("n/c")).expect("leftover work");
        assert!(bundles.all().expect("all").is_empty());
        assert!(!hidden.exists());
        bundles.sweep_work();
        assert!(!bundles.root.join("n/c").exists());
    }
}
