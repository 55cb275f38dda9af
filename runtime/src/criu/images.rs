//! What may be in a directory of images before criu reads it as root.
//!
//! criu opens the files by name, follows links, and writes its log beside them. In an archive from elsewhere a link would
//! make it read, or overwrite, a file of the host.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::dir::Dir;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{Mode, SFlag, fstat, fstatat, mkdirat};
use nix::unistd::symlinkat;
use rung_sys::mount::{self, FileSystem, attribute};

use crate::error::{Doing as _, Error, Result};

/// The link from a directory of images to the older one that it only adds to.
const PARENT: &str = "parent";

/// The file with the names of the descriptors that were open to something outside.
pub const DESCRIPTORS: &str = "descriptors.json";

/// More older images than this nobody keeps.
const DEPTH: usize = 64;

const DIRECTORY: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

/// Text of descriptors is short.
const LONGEST: u64 = 16 * 1024;

/// Refuses a directory in which is anything but files, and the link to an older one of the same kind.
pub fn check(directory: BorrowedFd<'_>, path: &Path) -> Result<()> {
    let mut directory = directory.try_clone_to_owned()?;
    for _ in 0..DEPTH {
        let Some(parent) = check_one(directory.as_fd(), path)? else { return Ok(()) };
        directory = openat(&directory, &parent, DIRECTORY | OFlag::O_NOFOLLOW, Mode::empty())
            .doing(|| format!("checkpoint {}: open older images {}", path.display(), parent.display()))?;
    }
    Err(Error::invalid(format!("checkpoint {}: more than {DEPTH} older images", path.display())))
}

fn check_one(directory: BorrowedFd<'_>, path: &Path) -> Result<Option<PathBuf>> {
    let doing = || format!("read checkpoint {}", path.display());
    let mut parent = None;
    let own = openat(directory, ".", DIRECTORY, Mode::empty());
    for entry in Dir::from_fd(own.doing(doing)?).doing(doing)?.iter() {
        let entry = entry.doing(doing)?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let found = fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW).doing(doing)?;
        match SFlag::from_bits_truncate(found.st_mode & SFlag::S_IFMT.bits()) {
            SFlag::S_IFREG => {}
            SFlag::S_IFLNK if name.to_bytes() == PARENT.as_bytes() => {
                parent = Some(older(PathBuf::from(readlinkat(directory, name).doing(doing)?), path)?);
            }
            _ => {
                let name = name.to_string_lossy();
                return Err(Error::invalid(format!(
                    "checkpoint {}: {name:?} is refused: only files are images",
                    path.display()
                )));
            }
        }
    }
    Ok(parent)
}

/// Older images are beside the newer ones: `../NAME`, or inside, but nowhere else.
fn older(link: PathBuf, path: &Path) -> Result<PathBuf> {
    let parts: Vec<_> = link.components().filter(|part| *part != Component::CurDir).collect();
    let inside = |parts: &[Component<'_>]| parts.iter().all(|part| matches!(part, Component::Normal(_)));
    match &parts[..] {
        [Component::ParentDir, rest @ ..] | rest if !rest.is_empty() && inside(rest) => Ok(link),
        _ => Err(Error::invalid(format!(
            "checkpoint {}: older images at {} are refused: they must be beside it",
            path.display(),
            link.display()
        ))),
    }
}

/// Shows the files of a checked directory, and of the older ones, below directories that everybody may pass. Each file
/// keeps its mode. The mounts cover the directory, in whose place the answer is to be used.
pub fn expose(directory: BorrowedFd<'_>) -> Result<OwnedFd> {
    let stage = FileSystem::open("tmpfs")?;
    stage.set("mode", "711")?;
    let stage = stage.mount(attribute::NOSUID | attribute::NODEV | attribute::NOEXEC)?;
    mount::attach(stage.as_fd(), directory)?;
    let first = make_directory(stage.as_fd(), Path::new("exposed"))?;
    let (mut source, mut place) = (directory.try_clone_to_owned()?, first.try_clone()?);
    for _ in 0..=DEPTH {
        bind_files(source.as_fd(), place.as_fd())?;
        let Ok(parent) = readlinkat(&source, PARENT) else { return Ok(first) };
        symlinkat(parent.as_os_str(), &place, PARENT)?;
        source = openat(&source, parent.as_os_str(), DIRECTORY | OFlag::O_NOFOLLOW, Mode::empty())?;
        place = make_directory(place.as_fd(), Path::new(&parent))?;
    }
    Err(Error::invalid(format!("more than {DEPTH} older images")))
}

fn bind_files(source: BorrowedFd<'_>, place: BorrowedFd<'_>) -> Result<()> {
    for entry in Dir::from_fd(openat(source, ".", DIRECTORY, Mode::empty())?)?.iter() {
        let entry = entry?;
        let name = entry.file_name();
        let path = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = openat(source, name, path, Mode::empty())?;
        if fstat(&file)?.st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFREG.bits() {
            continue;
        }
        let create = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        let point = openat(place, name, create, Mode::empty())?;
        let tree = mount::open_tree(file.as_fd(), Path::new(""), false)?;
        mount::attach(tree.as_fd(), point.as_fd())?;
    }
    Ok(())
}

fn make_directory(above: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd> {
    let mut directory = above.try_clone_to_owned()?;
    for part in path.components() {
        if matches!(part, Component::Normal(_)) {
            mkdirat(&directory, part.as_os_str(), Mode::from_bits_truncate(0o711))?;
        }
        directory = openat(&directory, part.as_os_str(), DIRECTORY, Mode::empty())?;
    }
    Ok(directory)
}

/// The names of the first three descriptors, as the checkpoint recorded them.
pub fn descriptors(directory: BorrowedFd<'_>, path: &Path) -> Result<Vec<String>> {
    let doing = || format!("read {}", path.join(DESCRIPTORS).display());
    let file = openat(directory, DESCRIPTORS, OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty());
    let mut text = String::new();
    let file = std::fs::File::from(file.doing(doing)?);
    std::io::Read::read_to_string(&mut std::io::Read::take(file, LONGEST), &mut text).doing(doing)?;
    let mut names: Vec<String> =
        serde_json::from_str(&text).map_err(|error| Error::invalid(error.to_string())).doing(doing)?;
    // Whatever the file says: of ours, a container gets the first three and no others.
    names.truncate(3);
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn outcome(prepare: impl FnOnce(&Path)) -> std::result::Result<(), String> {
        let temporary = tempfile::tempdir().unwrap();
        let (images, older) = (temporary.path().join("images"), temporary.path().join("older"));
        std::fs::create_dir(&images).unwrap();
        std::fs::create_dir(&older).unwrap();
        std::fs::write(images.join("pages-1.img"), "x").unwrap();
        prepare(&images);
        let directory = std::fs::File::open(&images).unwrap();
        check(directory.as_fd(), &images).map_err(|error| error.to_string())
    }

    #[test]
    fn files_and_older_images_are_accepted() {
        outcome(|_| {}).unwrap();
        outcome(|images| symlink("../older", images.join("parent")).unwrap()).unwrap();
    }

    #[test]
    fn what_leads_elsewhere_is_refused() {
        for (name, target) in
            [("restore.log", "/etc/passwd"), ("parent", "/etc"), ("parent", "../../etc"), ("parent", "../older/../..")]
        {
            let said = outcome(|images| symlink(target, images.join(name)).unwrap()).unwrap_err();
            assert!(said.contains("refused"), "{said}");
        }
        let said = outcome(|images| {
            symlink("../older", images.join("parent")).unwrap();
            symlink("/etc/passwd", images.join("../older/core-1.img")).unwrap();
        });
        assert!(said.unwrap_err().contains("core-1.img"));
        assert!(outcome(|images| std::fs::create_dir(images.join("sub")).unwrap()).is_err());
        // A loop of older images ends.
        assert!(
            outcome(|images| {
                symlink("../older", images.join("parent")).unwrap();
                symlink("../images", images.join("../older/parent")).unwrap();
            })
            .unwrap_err()
            .contains("more than")
        );
    }

    #[test]
    fn only_three_descriptors_count() {
        let temporary = tempfile::tempdir().unwrap();
        std::fs::write(temporary.path().join(DESCRIPTORS), r#"["a","b","c","pipe:[4]"]"#).unwrap();
        let directory = std::fs::File::open(temporary.path()).unwrap();
        assert_eq!(descriptors(directory.as_fd(), temporary.path()).unwrap(), ["a", "b", "c"]);
    }
}
