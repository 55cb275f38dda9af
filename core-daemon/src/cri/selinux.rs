//! SELinux labels of pods: one level of categories for each pod, so that its containers reach each other's files and no
//! other pod's.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use gantry_proto::gantry::cri::v1::SandboxRecord;
use gantry_proto::runtime::v1;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{Mode, SFlag};
use rung_sys::{beneath, xattr};

use super::Store;
use crate::error::{Doing as _, Error, Result};
use crate::id;

/// Says which policy the machine has.
const SETTINGS: &str = "/etc/selinux/config";
/// Labels of containers, as the package of the policy for containers has them.
const CONTEXTS: &str = "/usr/share/containers/selinux/contexts";
/// Where a file's label is.
const ATTRIBUTE: &[u8] = b"security.selinux";
/// Deepest directory that is labelled.
const MAX_DEPTH: usize = 256;
/// How often a level that nobody has is drawn.
const DRAWS: usize = 100_000;
/// Directories of the machine, which no pod is to take for itself.
const MACHINES: [&str; 23] = [
    "/", "/bin", "/boot", "/dev", "/etc", "/etc/pki", "/home", "/lib", "/lib64", "/media", "/opt", "/proc", "/root",
    "/run", "/sbin", "/srv", "/sys", "/tmp", "/usr", "/var", "/var/lib", "/var/log", "/usr/bin",
];

/// Labels of what runs and of its files; empty where there are none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Labels {
    pub(super) process: String,
    pub(super) mount: String,
}

/// Gives out labels.
#[derive(Default)]
pub(super) struct Selinux {
    /// What containers have without wishes; none where labels are not set.
    usual: Option<Labels>,
    /// Categories of levels are below this.
    categories: u32,
    /// Levels of pods that are being made.
    drawn: Arc<Mutex<BTreeSet<String>>>,
}

/// A level that is a pod's which has no record yet.
#[derive(Default)]
pub(super) struct Held {
    drawn: Arc<Mutex<BTreeSet<String>>>,
    level: String,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.drawn.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.level);
    }
}

impl Selinux {
    /// Gives out what the machine's policy has for containers, if labels are wanted and the kernel has them.
    pub(super) fn look(wanted: bool, categories: u32) -> Self {
        if wanted && !rung_sys::lsm::selinux_enabled() {
            tracing::warn!("cri.selinux: this machine has no SELinux, so pods have no labels");
        }
        let usual = (wanted && rung_sys::lsm::selinux_enabled()).then(|| usual(&read_contexts()));
        Self { usual, categories, drawn: Arc::default() }
    }

    /// The labels of a new pod, whose level nobody else has while it is held or recorded.
    pub(super) fn pod(&self, options: Option<&v1::SeLinuxOption>, store: &Store) -> Result<(Labels, Held)> {
        let Some(usual) = &self.usual else { return Ok(Default::default()) };
        if usual.process.is_empty() {
            return Ok((usual.clone(), Held::default()));
        }
        let mut labels = usual.clone();
        let mut held = Held::default();
        if options.is_none_or(|options| options.level.is_empty()) && level(&usual.process).is_some() {
            held = self.draw(store)?;
            for label in [&mut labels.process, &mut labels.mount] {
                set(label, 3, &held.level);
            }
        }
        Ok((with(labels, options), held))
    }

    /// The labels of a container: its pod's, but for what it says itself.
    pub(super) fn container(&self, options: Option<&v1::SeLinuxOption>, pod: &SandboxRecord) -> Labels {
        match &self.usual {
            None => Labels::default(),
            // Made before labels were wanted.
            Some(usual) if pod.process_label.is_empty() => with(usual.clone(), options),
            Some(_) => {
                let of_pod = Labels { process: pod.process_label.clone(), mount: pod.mount_label.clone() };
                with(of_pod, options)
            }
        }
    }

    fn draw(&self, store: &Store) -> Result<Held> {
        let recorded: BTreeSet<String> = store
            .sandboxes()
            .iter()
            .filter_map(|pod| level(&pod.record().process_label).map(str::to_owned))
            .chain(store.containers().iter().filter_map(|container| own_level(&container.record().config)))
            .collect();
        let mut drawn = self.drawn.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..DRAWS {
            let (one, other) = (category(self.categories)?, category(self.categories)?);
            let level = format!("s0:c{},c{}", one.min(other), one.max(other));
            if one != other && !recorded.contains(&level) && drawn.insert(level.clone()) {
                return Ok(Held { drawn: self.drawn.clone(), level });
            }
        }
        Err(Error::new(crate::error::Kind::ResourceExhausted, "no categories are left for another pod's SELinux level"))
    }
}

/// Whether the options are words that a label can be made of.
///
/// # Errors
/// `InvalidArgument` naming the field.
pub(super) fn check(field: &str, options: Option<&v1::SeLinuxOption>) -> Result<()> {
    let Some(options) = options else { return Ok(()) };
    for (name, text) in [("user", &options.user), ("role", &options.role), ("type", &options.r#type)] {
        if !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-')) {
            return Err(Error::invalid(format!("{field}.{name}: {text:?} is not a {name} of SELinux")));
        }
    }
    match options.level.is_empty() || is_level(&options.level) {
        true => Ok(()),
        false => Err(Error::invalid(format!("{field}.level: {:?} is not a level of SELinux", options.level))),
    }
}

/// Labels what is at a path, and everything below it where that is a directory, without following any link.
///
/// # Errors
/// `InvalidArgument` for a directory of the machine's own.
pub(super) fn relabel(path: &Path, label: &str) -> Result<()> {
    let doing = || format!("label {} for SELinux", path.display());
    if MACHINES.iter().any(|place| Path::new(place) == path) {
        return Err(Error::invalid("is a directory of the machine's own")).doing(doing);
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    // The path was looked at before, and had no links in it then.
    let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
    let parent = openat2(AT_FDCWD, parent, how).map_err(io::Error::from).doing(doing)?;
    let stat = beneath::stat(parent.as_fd(), name).doing(doing)?;
    match stat.is_some_and(|stat| beneath::file_type(&stat) == SFlag::S_IFDIR) {
        true => label_tree(parent.as_fd(), name, label.as_bytes(), 0),
        false => label_one(parent.as_fd(), name, label.as_bytes()),
    }
    .doing(doing)
}

/// Whether what is at a path has a label already, which is given last to a directory.
pub(super) fn is_labelled(path: &Path, label: &str) -> bool {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return false };
    openat2(AT_FDCWD, parent, how).is_ok_and(|parent| has_label(parent.as_fd(), name, label.as_bytes()))
}

fn label_tree(directory: BorrowedFd<'_>, name: &OsStr, label: &[u8], depth: usize) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(Errno::ELOOP.into());
    }
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let fd = match openat(directory, name, flags, Mode::empty()) {
        Ok(fd) => fd,
        // Gone, or another thing by now.
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    for entry in beneath::entries(fd.as_fd())? {
        let Some(stat) = beneath::stat(fd.as_fd(), &entry)? else { continue };
        match beneath::file_type(&stat) {
            SFlag::S_IFDIR => label_tree(fd.as_fd(), &entry, label, depth + 1)?,
            _ => label_one(fd.as_fd(), &entry, label)?,
        }
    }
    // Itself last: who finds it labelled may take it that all of it is.
    label_one(fd.as_fd(), OsStr::new(""), label)
}

fn label_one(directory: BorrowedFd<'_>, name: &OsStr, label: &[u8]) -> io::Result<()> {
    if has_label(directory, name, label) {
        return Ok(());
    }
    match xattr::set(directory, name, ATTRIBUTE, label) {
        // Removed meanwhile, or on a file system that keeps no labels.
        Err(error) if matches!(error.raw_os_error(), Some(nix::libc::ENOENT | nix::libc::ENOTSUP)) => Ok(()),
        set => set,
    }
}

/// The labels with what the options say in place of their parts.
fn with(mut labels: Labels, options: Option<&v1::SeLinuxOption>) -> Labels {
    let Some(options) = options.filter(|_| !labels.process.is_empty()) else { return labels };
    // The type and the role of files are not those of processes.
    for (part, text, of_files) in
        [(0, &options.user, true), (1, &options.role, false), (2, &options.r#type, false), (3, &options.level, true)]
    {
        if text.is_empty() {
            continue;
        }
        set(&mut labels.process, part, text);
        if of_files {
            set(&mut labels.mount, part, text);
        }
    }
    labels
}

/// Replaces a part of a label: user, role, type, level.
fn set(label: &mut String, part: usize, text: &str) {
    if label.is_empty() {
        return;
    }
    let mut parts: Vec<&str> = label.splitn(4, ':').collect();
    match parts.get_mut(part) {
        Some(there) => *there = text,
        None => parts.push(text),
    }
    *label = parts.join(":");
}

fn level(label: &str) -> Option<&str> {
    label.splitn(4, ':').nth(3)
}

fn own_level(config: &Option<v1::ContainerConfig>) -> Option<String> {
    let context = config.as_ref()?.linux.as_ref()?.security_context.as_ref()?;
    Some(context.selinux_options.as_ref()?.level.clone())
}

/// `s0`, `s0-s1`, and either with categories: `:c1`, `:c1.c3,c7`.
fn is_level(text: &str) -> bool {
    let number = |text: &str, begin: char, most: usize| {
        text.strip_prefix(begin)
            .is_some_and(|digits| (1..=most).contains(&digits.len()) && digits.bytes().all(|it| it.is_ascii_digit()))
    };
    let (sensitivities, categories) = match text.split_once(':') {
        Some((sensitivities, categories)) => (sensitivities, Some(categories)),
        None => (text, None),
    };
    let (low, high) = sensitivities.split_once('-').map_or((sensitivities, None), |(low, high)| (low, Some(high)));
    let ranges = categories.into_iter().flat_map(|categories| categories.split(','));
    number(low, 's', 1)
        && high.is_none_or(|high| number(high, 's', 1))
        && ranges.into_iter().all(|range| {
            let (first, last) = range.split_once('.').map_or((range, None), |(first, last)| (first, Some(last)));
            number(first, 'c', 4) && last.is_none_or(|last| number(last, 'c', 4))
        })
}

fn has_label(directory: BorrowedFd<'_>, name: &OsStr, label: &[u8]) -> bool {
    let has = xattr::get(directory, name, ATTRIBUTE);
    has.is_ok_and(|has| has.is_some_and(|has| has.strip_suffix(b"\0").unwrap_or(&has) == label))
}

/// A number below `categories`.
fn category(categories: u32) -> Result<u32> {
    let random = u32::from_str_radix(&id::random::<4>()?, 16).map_err(|error| Error::internal(error.to_string()))?;
    Ok(random % categories.max(2))
}

/// What the policy says of containers; empty where it says nothing.
fn read_contexts() -> String {
    let of_policy = || {
        let settings = std::fs::read_to_string(SETTINGS).unwrap_or_default();
        let policy = value(&settings, "SELINUXTYPE")?.to_owned();
        std::fs::read_to_string(PathBuf::from("/etc/selinux").join(policy).join("contexts/lxc_contexts")).ok()
    };
    std::fs::read_to_string(CONTEXTS).ok().or_else(of_policy).unwrap_or_default()
}

fn usual(contexts: &str) -> Labels {
    let of = |key| value(contexts, key).unwrap_or_default().to_owned();
    let labels = Labels { process: of("process"), mount: of("file") };
    match labels.mount.is_empty() {
        true => Labels::default(),
        false => labels,
    }
}

/// What a line `key = "value"` gives a key.
fn value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';']));
    let mut pairs = lines.filter_map(|line| line.split_once('='));
    pairs.find(|(name, _)| name.trim() == key).map(|(_, value)| value.trim().trim_matches('"'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = "# of containers\nprocess = \"system_u:system_r:container_t:s0\"\n\
                          file = \"system_u:object_r:container_file_t:s0\"\n";

    fn options(user: &str, role: &str, kind: &str, level: &str) -> v1::SeLinuxOption {
        v1::SeLinuxOption { user: user.into(), role: role.into(), r#type: kind.into(), level: level.into() }
    }

    fn pod(labels: &Labels) -> SandboxRecord {
        let Labels { process, mount } = labels.clone();
        SandboxRecord { process_label: process, mount_label: mount, ..SandboxRecord::default() }
    }

    #[test]
    fn labels_of_containers_are_those_of_their_pod_but_for_what_they_say() {
        let selinux = Selinux { usual: Some(usual(POLICY)), categories: 1024, drawn: Arc::default() };
        let mut of_pod = usual(POLICY);
        assert_eq!(of_pod.process, "system_u:system_r:container_t:s0");
        for label in [&mut of_pod.process, &mut of_pod.mount] {
            set(label, 3, "s0:c1,c2");
        }
        assert_eq!(selinux.container(None, &pod(&of_pod)), of_pod);
        let other = selinux.container(Some(&options("user_u", "user_r", "spc_t", "")), &pod(&of_pod));
        assert_eq!(other.process, "user_u:user_r:spc_t:s0:c1,c2");
        assert_eq!(other.mount, "user_u:object_r:container_file_t:s0:c1,c2");
        let level = selinux.container(Some(&options("", "", "", "s0:c3,c4")), &pod(&of_pod));
        assert_eq!(level.process, "system_u:system_r:container_t:s0:c3,c4");
        assert_eq!(level.mount, "system_u:object_r:container_file_t:s0:c3,c4");
        assert_eq!(Selinux::default().container(Some(&options("", "", "a", "")), &pod(&of_pod)), Labels::default());
    }

    #[test]
    fn policies_without_containers_have_no_labels() {
        assert_eq!(usual(""), Labels::default());
        assert_eq!(usual("process = \"a:b:c:s0\""), Labels::default());
        let files = usual("file = \"a:b:c:s0\"");
        assert_eq!((files.process.as_str(), files.mount.as_str()), ("", "a:b:c:s0"));
        assert_eq!(with(files.clone(), Some(&options("u", "", "", ""))), files);
    }

    #[test]
    fn levels_and_words() {
        for level in ["s0", "s0-s1", "s0:c1", "s0:c1,c2", "s0-s3:c0.c1023", "s0:c1.c2,c5.c6"] {
            assert!(check("f", Some(&options("", "", "", level))).is_ok(), "{level}");
        }
        for level in
            ["s", "0", "s10", "s0:", "s0:c", "s0:c12345", "s0,c1", "s0:c1.c2.c3", "s0:c1,", "s0-", " s0", "s0\n"]
        {
            assert!(check("f", Some(&options("", "", "", level))).is_err(), "{level:?}");
        }
        assert!(check("f", Some(&options("system_u", "system_r", "container_t", ""))).is_ok());
        for wrong in ["a:b", "a b", "a,b", "a\0", "a\""] {
            let error = check("f", Some(&options("", "", wrong, ""))).expect_err("refused");
            assert!(error.to_string().contains("f.type"), "{error}");
        }
    }

    #[test]
    fn files_are_labelled_and_links_are_not_followed() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let volume = dir.path().join("volume");
        std::fs::create_dir_all(volume.join("a/b")).expect("directories");
        std::fs::write(volume.join("a/f"), b"").expect("file");
        std::fs::write(dir.path().join("outside"), b"").expect("file");
        std::os::unix::fs::symlink("../../outside", volume.join("a/link")).expect("link");
        let outer = std::fs::File::open(dir.path()).expect("open");
        match xattr::set(outer.as_fd(), OsStr::new("outside"), ATTRIBUTE, b"before") {
            // Not root, or a file system without labels.
            Err(error) if matches!(error.raw_os_error(), Some(nix::libc::ENOTSUP | nix::libc::EPERM)) => return,
            other => other.expect("set"),
        }
        assert!(!is_labelled(&volume, "u:r:t:s0:c1,c2"));
        relabel(&volume, "u:r:t:s0:c1,c2").expect("label");
        assert!(is_labelled(&volume, "u:r:t:s0:c1,c2") && !is_labelled(&volume, "u:r:t:s0:c1,c3"));
        relabel(&volume, "u:r:t:s0:c1,c2").expect("again");
        let of = |dir: &Path, name: &str| {
            let dir = std::fs::File::open(dir).expect("open");
            xattr::get(dir.as_fd(), OsStr::new(name), ATTRIBUTE).expect("get")
        };
        for (dir, name) in [(dir.path(), "volume"), (&volume, "a"), (&volume.join("a"), "b"), (&volume.join("a"), "f")]
        {
            assert_eq!(of(dir, name).as_deref(), Some(&b"u:r:t:s0:c1,c2"[..]), "{name}");
        }
        assert_eq!(of(dir.path(), "outside").as_deref(), Some(&b"before"[..]));
        relabel(&dir.path().join("outside"), "u:r:t").expect("a file");
        assert_eq!(of(dir.path(), "outside").as_deref(), Some(&b"u:r:t"[..]));
        assert!(relabel(Path::new("/etc"), "u:r:t").is_err());
    }
}
