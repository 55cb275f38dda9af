//! OCI artifacts as volumes: a directory with a file for each layer that has a name.
//!
//! The files are the blobs themselves, mounted one by one into a small file system in memory: nothing is copied, however
//! large a blob is, the content store stays the only one that has a name for its files, and it may be on any file system. A
//! blob is never written again, anybody may read it, and each of these mounts is read-only.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Component, Path, PathBuf};

use nix::sys::statvfs::{FsFlags, fstatvfs};
use rung_spec::image::{Descriptor, Manifest};
use rung_sys::beneath::Root;
use rung_sys::mount::{self, Change, FileSystem, attribute};
use rung_sys::mountinfo;

use crate::content::Content;
use crate::context::Context;
use crate::cri::sandbox::places::unmount;
use crate::error::{Doing as _, Error, Result};
use crate::failpoint;
use crate::image::Resolved;

/// What a layer's file is called, and the same in the specification of models.
const NAMES: [&str; 2] = ["org.opencontainers.image.title", "org.cncf.model.filepath"];
/// Most files of an artifact that is a volume: each is a mount.
const MAX_FILES: usize = 512;
/// Most files of all artifacts of a pod: the host's kernel has a bound for the mounts of everybody (`fs.mount-max`).
const MAX_MOUNTS: usize = 2048;
/// Longest name, and longest part of it, in bytes.
const MAX_NAME: usize = 1024;
const MAX_PART: usize = 255;
/// Most directories around a file.
const MAX_DEPTH: usize = 16;
/// Nobody runs, or becomes somebody else by, what comes as data.
const HARMLESS: u64 = attribute::NOSUID | attribute::NODEV | attribute::NOEXEC;

/// Mounts the files of an artifact at the directory `target`, unless they are there.
///
/// # Errors
/// `InvalidArgument` where its layers have no names that can be used; what reading blobs and mounting fails with. Nothing is
/// mounted then.
pub(super) fn mount(content: &Content, context: &Context, image: &Resolved, target: &Path) -> Result<()> {
    if is_whole(target)? {
        return Ok(());
    }
    // What an earlier daemon was killed over.
    unmount(target)?;
    let files = files(&image.manifest)?;
    let taken = mounts_beside(target)?;
    if taken + files.len() > MAX_MOUNTS {
        return Err(Error::invalid(format!("artifacts of the pod: have more than {MAX_MOUNTS} files")));
    }
    let mounted = mount_files(content, context, &files, target);
    if mounted.is_err() {
        unmount(target)?;
    }
    mounted
}

/// Whether everything is mounted: the directory itself becomes read-only last of all.
fn is_whole(target: &Path) -> Result<bool> {
    if !super::volumes::is_mounted(target)? {
        return Ok(false);
    }
    let doing = || format!("read {}", target.display());
    let place = Root::open(target).doing(doing)?;
    let status = fstatvfs(place.as_fd()).map_err(std::io::Error::from).doing(doing)?;
    Ok(status.flags().contains(FsFlags::ST_RDONLY))
}

/// How many mounts there are below the directory that `target` is in.
fn mounts_beside(target: &Path) -> Result<usize> {
    let mounts = mountinfo::read("self").doing(|| "read the mounts")?;
    let Some(all) = target.parent() else { return Ok(0) };
    Ok(mounts.iter().filter(|mount| mount.point.starts_with(all)).count())
}

fn mount_files(
    content: &Content,
    context: &Context,
    files: &BTreeMap<PathBuf, &Descriptor>,
    target: &Path,
) -> Result<()> {
    let doing = || format!("mount {}", target.display());
    let system = |error: rung_sys::Error| std::io::Error::from(error);
    std::fs::DirBuilder::new().recursive(true).mode(0o711).create(target).doing(doing)?;
    let place = Root::open(target).doing(doing)?;
    let tree = memory().map_err(system).doing(doing)?;
    mount::attach(tree.as_fd(), place.as_fd()).map_err(system).doing(doing)?;
    for (name, layer) in files {
        let doing = || format!("file {}", name.display());
        let blob = content.reader(context, &layer.digest).doing(doing)?;
        // The directory is new, in memory, and only ours: no link in it leads anywhere.
        let path = target.join(name);
        make_around(target, name).doing(doing)?;
        let empty = std::fs::File::options().write(true).create_new(true).mode(0o444).open(&path).doing(doing)?;
        let file = mount::open_tree(blob.file.as_fd(), Path::new(""), false).map_err(system).doing(doing)?;
        let change = Change { set: attribute::RDONLY | HARMLESS, ..Change::default() };
        mount::set_attributes(file.as_fd(), false, &change).map_err(system).doing(doing)?;
        mount::attach(file.as_fd(), empty.as_fd()).map_err(system).doing(doing)?;
        failpoint::hit("cri.artifact.mounting");
    }
    let change = Change { set: attribute::RDONLY, ..Change::default() };
    mount::set_attributes(tree.as_fd(), false, &change).map_err(system).doing(doing)
}

/// Makes the directories around a file, which whoever runs in the container can look into whatever the daemon's mask is.
fn make_around(target: &Path, name: &Path) -> std::io::Result<()> {
    let mut around: Vec<&Path> = name.ancestors().skip(1).filter(|dir| !dir.as_os_str().is_empty()).collect();
    around.reverse();
    for dir in around.into_iter().map(|dir| target.join(dir)).filter(|dir| !dir.exists()) {
        std::fs::create_dir(&dir)?;
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

/// An empty file system in memory, mounted nowhere, with room for nothing but names.
fn memory() -> rung_sys::Result<OwnedFd> {
    let memory = FileSystem::open("tmpfs")?;
    memory.set("mode", "0755")?;
    memory.set("size", "1m")?;
    memory.set("nr_inodes", &(MAX_FILES * (MAX_DEPTH + 1) + 1).to_string())?;
    memory.mount(HARMLESS)
}

/// The files of an artifact by their names. A layer without a name is none of them.
fn files(manifest: &Manifest) -> Result<BTreeMap<PathBuf, &Descriptor>> {
    let named = manifest.layers.iter().filter_map(|layer| {
        let title = NAMES.iter().find_map(|name| layer.annotations.get(*name))?;
        Some((title, layer))
    });
    let mut files = BTreeMap::new();
    for (title, layer) in named {
        if files.len() == MAX_FILES {
            return Err(Error::invalid(format!("artifact: has more than {MAX_FILES} files")));
        }
        let refuse = |problem: &str| Err(Error::invalid(format!("artifact: file {title:?}: {problem}")));
        let name = match path(title) {
            Ok(name) => name,
            Err(problem) => return refuse(problem),
        };
        if files.insert(name, layer).is_some() {
            return refuse("is there twice");
        }
    }
    if files.is_empty() {
        return Err(Error::invalid(format!("artifact: no layer of it has a name ({})", NAMES[0])));
    }
    let inside = files.keys().find(|name| name.ancestors().skip(1).any(|outer| files.contains_key(outer)));
    if let Some(name) = inside {
        return Err(Error::invalid(format!("artifact: file {name:?}: is inside of another file")));
    }
    Ok(files)
}

/// The place in the directory of the file that is called so, or what is wrong with the name.
fn path(title: &str) -> std::result::Result<PathBuf, &'static str> {
    if title.len() > MAX_NAME || title.contains('\0') {
        return Err("is no name of a file");
    }
    let mut path = PathBuf::new();
    for part in Path::new(title).components() {
        match part {
            Component::Normal(part) if part.as_bytes().len() <= MAX_PART => path.push(part),
            Component::CurDir => {}
            Component::Normal(_) => return Err("is no name of a file"),
            _ => return Err("leads out of the volume"),
        }
    }
    match path.components().count() {
        0 => Err("is no name of a file"),
        // A name with a slash at its end is a directory's.
        _ if title.ends_with('/') => Err("is no name of a file"),
        count if count > MAX_DEPTH + 1 => Err("is too deep"),
        _ => Ok(path),
    }
}

#[cfg(test)]
mod tests {
    use rung_spec::digest::Digest;

    use super::*;

    fn manifest(titles: &[Option<&str>]) -> Manifest {
        let layer = |(number, title): (usize, &Option<&str>)| {
            let mut layer = Descriptor::new("text/plain", Digest::of(number.to_string()), 1);
            layer.annotations = title.iter().map(|title| (NAMES[0].to_owned(), (*title).to_owned())).collect();
            layer
        };
        let config = Descriptor::new("application/vnd.oci.empty.v1+json", Digest::of("{}"), 2);
        let text = serde_json::json!({"schemaVersion": 2, "artifactType": "a/b", "config": config, "layers": []});
        let mut manifest: Manifest = serde_json::from_value(text).expect("manifest");
        manifest.layers = titles.iter().enumerate().map(layer).collect();
        manifest
    }

    #[test]
    fn names_are_those_of_files_in_the_volume() {
        let names = |titles: &[&str]| -> Result<Vec<String>> {
            let titles: Vec<Option<&str>> = titles.iter().copied().map(Some).collect();
            let manifest = manifest(&titles);
            Ok(files(&manifest)?.into_keys().map(|name| name.to_string_lossy().into_owned()).collect())
        };
        assert_eq!(names(&["b", "./d//a", "..."]).expect("good"), ["...", "b", "d/a"]);
        let (long, deep) = ("x".repeat(MAX_PART + 1), "d/".repeat(MAX_DEPTH + 1) + "x");
        for bad in ["", ".", "..", "/etc/passwd", "../x", "d/../../x", "d/../x", "x\0y", "d/", &long, &deep] {
            let refused = names(&["good", bad]).expect_err(bad).to_string();
            assert!(refused.contains("artifact: file"), "{refused}");
        }
        for twice in [["x", "./x"], ["d", "d/x"], ["d/e/x", "d/e"]] {
            names(&twice).expect_err(twice[0]);
        }
        // Nothing that sorts between a file and what is inside of it hides that.
        names(&["d", "d-", "d/x"]).expect_err("inside");
        let many: Vec<String> = (0..=MAX_FILES).map(|number| number.to_string()).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(names(&many[1..]).is_ok() && names(&many).is_err());
    }

    #[test]
    fn a_layer_without_a_name_is_no_file() {
        let some = manifest(&[None, Some("x"), None]);
        assert_eq!(files(&some).expect("one").into_values().collect::<Vec<_>>(), [&some.layers[1]]);
        files(&manifest(&[None])).expect_err("none");
        let mut model = manifest(&[None]);
        model.layers[0].annotations.insert(NAMES[1].to_owned(), "model.safetensors".to_owned());
        assert_eq!(files(&model).expect("model").len(), 1);
    }
}
