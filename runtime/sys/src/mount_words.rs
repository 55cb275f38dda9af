//! A file system or bind mount made from words as in fstab, detached, whatever the words do not fit into.
//!
//! Two things in it are more than the kernel's own option strings: an overlay may have more layers than fit into one page,
//! and `uidmap=`/`gidmap=` (ranges as `inside:outside:count`, joined by commas) translate the ids of what is mounted; of an
//! overlay those of its lower layers.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::idmap::{self, Range};
use crate::loop_device;
use crate::mount::{self, Change, FileSystem, attribute};
use crate::mount_options::MountOptions;

/// mount(2) takes one page of options, less one byte.
const MAX_DATA: usize = 4095;

/// Makes the mount that `kind`, `source` and `options` describe. The attributes of the mount itself are set, propagation is
/// the caller's, because only an attached mount has any.
pub fn make(kind: &str, source: &str, options: &MountOptions) -> Result<OwnedFd> {
    let (ids, words) = take_id_maps(&options.data)?;
    if is_bind(kind, options) {
        return bind(kind, source, options, ids.as_ref());
    }
    let translated = ids.is_some();
    match by_words(kind, source, options, ids, &words) {
        // Kernels before 6.7 know no `lowerdir+`, and those before 6.5 no overlay by words at all.
        Err(newer) if kind == "overlay" && !translated && newer.is(&[libc::EINVAL, libc::EOPNOTSUPP]) => {
            // Where that fails too, the newer call's error is the better one.
            by_string(kind, source, options).map_err(|_| newer)
        }
        other => other,
    }
}

fn by_words(
    kind: &str,
    source: &str,
    options: &MountOptions,
    ids: Option<OwnedFd>,
    words: &[String],
) -> Result<OwnedFd> {
    if kind != "overlay" {
        // The kernel says itself where it wants a device.
        let words: Vec<String> = words.iter().filter(|word| *word != "loop").cloned().collect();
        let tree = match file_system(kind, source, options, &words, |_| Ok(())) {
            Err(error) if error.is(&[libc::ENOTBLK]) => on_devices(kind, source, options, &words)?,
            other => other?,
        };
        if let Some(ids) = &ids {
            translate(tree.as_fd(), false, ids)?;
        }
        return Ok(tree);
    }
    let is_lower = |word: &&String| word.starts_with("lowerdir=");
    let layers: Vec<String> = words.iter().filter(is_lower).flat_map(|word| split_layers(&word[9..])).collect();
    let others: Vec<String> = words.iter().filter(|word| !is_lower(word)).cloned().collect();
    let Some(ids) = ids else {
        // One option a layer: together they may be longer than any option can be.
        return file_system(kind, source, options, &others, |context| {
            layers.iter().try_for_each(|layer| context.set("lowerdir+", layer))
        });
    };
    let translated = layers.iter().map(|layer| {
        let tree = mount::open_tree_at_path(Path::new(layer), false)?;
        translate(tree.as_fd(), false, &ids)?;
        Ok(tree)
    });
    let translated = translated.collect::<Result<Vec<_>>>()?;
    let by_descriptor = file_system(kind, source, options, &others, |context| {
        translated.iter().try_for_each(|tree| context.set_fd("lowerdir+", tree.as_fd()))
    });
    match by_descriptor {
        // Kernels before 6.15 take no layers that are mounted nowhere.
        Err(error) if error.is(&[libc::EINVAL]) => {
            let places = Places::attach(&translated)?;
            file_system(kind, source, options, &others, |context| {
                places.paths.iter().try_for_each(|path| context.set("lowerdir+", &path.to_string_lossy()))
            })
        }
        other => other,
    }
}

/// The same where the source, and what `device=` names, are files, and the kernel or the file system wants devices.
fn on_devices(kind: &str, source: &str, options: &MountOptions, words: &[String]) -> Result<OwnedFd> {
    let writable = options.set & attribute::RDONLY == 0 && !matches!(kind, "erofs" | "squashfs");
    let device = |path: &str| {
        let file = std::fs::OpenOptions::new().read(true).write(writable).open(path);
        let file = file.map_err(|error| Error::from_io("open", format!("{path:?}"), &error))?;
        loop_device::attach(file.as_fd(), writable)
    };
    let first = device(source)?;
    let mut others = Vec::new();
    let mut given = Vec::new();
    for word in words {
        match word.strip_prefix("device=") {
            Some(path) => {
                let other = device(path)?;
                given.push(format!("device={}", other.path.display()));
                others.push(other);
            }
            None => given.push(word.clone()),
        }
    }
    file_system(kind, &first.path.to_string_lossy(), options, &given, |_| Ok(()))
}

/// The same by mount(2), which mounts at a place only: at one of its own, from where it is taken.
fn by_string(kind: &str, source: &str, options: &MountOptions) -> Result<OwnedFd> {
    let (flags, others) = options.to_flags(options.set);
    let data = options.data.iter().map(String::as_str).chain(others).collect::<Vec<_>>().join(",");
    if data.len() > MAX_DATA {
        return Err(Error::new("mount", format!("{} bytes of options", data.len()), libc::E2BIG));
    }
    let mut place = Places::new()?;
    let path = place.add()?;
    mount::mount(Some(Path::new(source)), &path, Some(kind), flags, Some(&data))?;
    mount::open_tree_at_path(&path, false)
}

/// Whether the words ask for a bind mount.
pub fn is_bind(kind: &str, options: &MountOptions) -> bool {
    options.bind || matches!(kind, "bind" | "rbind")
}

/// Splits the layers of an overlay at colons; `\:` is a colon of a path.
pub fn split_layers(text: &str) -> Vec<String> {
    let mut layers = vec![String::new()];
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        let taken = match character {
            ':' => {
                layers.push(String::new());
                continue;
            }
            '\\' => characters.next(),
            other => Some(other),
        };
        if let (Some(last), Some(character)) = (layers.last_mut(), taken) {
            last.push(character);
        }
    }
    layers.retain(|layer| !layer.is_empty());
    layers
}

fn bind(kind: &str, source: &str, options: &MountOptions, ids: Option<&OwnedFd>) -> Result<OwnedFd> {
    let recursive = options.recursive_bind || kind == "rbind";
    let tree = mount::open_tree_at_path(Path::new(source), recursive)?;
    if let Some(ids) = ids {
        translate(tree.as_fd(), recursive, ids)?;
    }
    if options.changes_attributes() {
        // Of the mount alone, as mount(8) has it: what is below may be locked, or read-only for its own reasons. The words
        // with an `r` before them are for all of it.
        let change = Change { set: options.set, clear: options.clear, ..Change::default() };
        mount::set_attributes(tree.as_fd(), false, &change)?;
    }
    if options.changes_recursively() {
        let change = Change { set: options.set_recursive, clear: options.clear_recursive, ..Change::default() };
        mount::set_attributes(tree.as_fd(), true, &change)?;
    }
    Ok(tree)
}

fn file_system(
    kind: &str,
    source: &str,
    options: &MountOptions,
    words: &[String],
    layers: impl FnOnce(&FileSystem) -> Result<()>,
) -> Result<OwnedFd> {
    let context = FileSystem::open(kind)?;
    if !source.is_empty() {
        context.set("source", source)?;
    }
    for word in &options.superblock {
        context.set_flag(word)?;
    }
    if options.set & attribute::RDONLY != 0 {
        context.set_flag("ro")?;
    }
    layers(&context)?;
    for word in words {
        match unquoted_label(word) {
            Some((key, label)) => context.set(key, label)?,
            None => context.set_word(word)?,
        }
    }
    context.mount(options.set)
}

/// A label of SELinux, whose categories are between quotes where options are one string, because of the comma in them.
fn unquoted_label(word: &str) -> Option<(&str, &str)> {
    let (key, value) = word.split_once('=')?;
    let label = value.strip_prefix('"')?.strip_suffix('"')?;
    matches!(key, "context" | "fscontext" | "defcontext" | "rootcontext").then_some((key, label))
}

/// Takes `uidmap=` and `gidmap=` out of the words, as a user namespace with these maps.
fn take_id_maps(words: &[String]) -> Result<(Option<OwnedFd>, Vec<String>)> {
    let find = |name: &str| words.iter().find_map(|word| word.strip_prefix(name));
    let ids = match (find("uidmap="), find("gidmap=")) {
        (None, None) => return Ok((None, words.to_vec())),
        (Some(uids), Some(gids)) => idmap::empty_namespace(&ranges(uids)?, &ranges(gids)?)?,
        (one, other) => {
            let given = one.or(other).unwrap_or_default();
            return Err(Error::new("mount_setattr", format!("only one of uidmap and gidmap: {given}"), libc::EINVAL));
        }
    };
    let rest = words.iter().filter(|word| !word.starts_with("uidmap=") && !word.starts_with("gidmap=")).cloned();
    Ok((Some(ids), rest.collect()))
}

fn ranges(text: &str) -> Result<Vec<Range>> {
    Range::parse_all(text).ok_or_else(|| Error::new("mount_setattr", format!("id map {text:?}"), libc::EINVAL))
}

fn translate(tree: BorrowedFd<'_>, recursive: bool, ids: &OwnedFd) -> Result<()> {
    let change = Change { set: attribute::IDMAP, user_namespace: Some(ids.as_fd()), ..Change::default() };
    mount::set_attributes(tree, recursive, &change)
}

/// Where something is mounted for a moment, for kernels that know it only by path.
struct Places {
    dir: PathBuf,
    paths: Vec<PathBuf>,
}

impl Places {
    fn new() -> Result<Self> {
        let template = std::env::temp_dir().join("layers-XXXXXX");
        let failed = |errno: nix::errno::Errno| Error::new("mkdir", format!("{template:?}"), errno as i32);
        Ok(Self { dir: nix::unistd::mkdtemp(&template).map_err(failed)?, paths: Vec::new() })
    }

    fn add(&mut self) -> Result<PathBuf> {
        let path = self.dir.join(self.paths.len().to_string());
        std::fs::create_dir(&path).map_err(|error| Error::from_io("mkdir", format!("{path:?}"), &error))?;
        self.paths.push(path.clone());
        Ok(path)
    }

    fn attach(layers: &[OwnedFd]) -> Result<Self> {
        let mut places = Self::new()?;
        for layer in layers {
            let path = places.add()?;
            let target =
                std::fs::File::open(&path).map_err(|error| Error::from_io("open", format!("{path:?}"), &error))?;
            mount::attach(layer.as_fd(), target.as_fd())?;
        }
        Ok(places)
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        for path in &self.paths {
            // The overlay has clones of its own; what cannot be removed is an empty directory.
            let _ = mount::detach(path);
            let _ = std::fs::remove_dir(path);
        }
        let _ = std::fs::remove_dir(&self.dir);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers() {
        assert_eq!(split_layers("/a:/b\\:c:/d\\\\e"), ["/a", "/b:c", "/d\\e"]);
        assert_eq!(split_layers("/a"), ["/a"]);
    }

    #[test]
    fn labels_lose_their_quotes() {
        assert_eq!(unquoted_label("context=\"a:b:c:s0:c1,c2\""), Some(("context", "a:b:c:s0:c1,c2")));
        assert_eq!(unquoted_label("context=a:b:c"), None);
        assert_eq!(unquoted_label("upperdir=\"x\""), None);
    }

    #[test]
    fn half_an_id_map_is_refused() {
        let options = MountOptions::parse(["uidmap=0:1:1"]);
        assert!(make("bind", "/", &options).is_err());
    }

    #[test]
    fn an_overlay_is_made_by_the_older_call_too() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        for layer in ["a", "b"] {
            std::fs::create_dir(dir.path().join(layer)).unwrap();
            std::fs::write(dir.path().join(layer).join(layer), "").unwrap();
        }
        let lower = format!("lowerdir={0}/a:{0}/b", dir.path().display());
        let options = MountOptions::parse([lower.as_str(), "ro", "nodev"]);
        let tree = by_string("overlay", "overlay", &options).unwrap();
        let mut names = crate::beneath::entries(tree.as_fd()).unwrap();
        names.sort();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(mount::attributes(tree.as_fd()).unwrap() & attribute::NODEV, attribute::NODEV);
    }

    #[test]
    fn words_without_r_are_for_the_mount_alone() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("inner");
        std::fs::create_dir(&inner).unwrap();
        let tmpfs = make("tmpfs", "tmpfs", &MountOptions::default()).unwrap();
        mount::attach(tmpfs.as_fd(), std::fs::File::open(&inner).unwrap().as_fd()).unwrap();
        let read_only = |words: &[&str]| {
            let tree = make("bind", &dir.path().to_string_lossy(), &MountOptions::parse(words)).unwrap();
            let below = mount::open_tree(tree.as_fd(), Path::new("inner"), false).unwrap();
            [&tree, &below].map(|one| mount::attributes(one.as_fd()).unwrap() & attribute::RDONLY != 0)
        };
        let found = [read_only(&["rbind", "ro"]), read_only(&["rbind", "rro"])];
        mount::detach(&inner).unwrap();
        assert_eq!(found, [[true, false], [true, true]]);
    }
}
