//! Making what an activation is of, and taking it down.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use gantry_proto::containerd::types::{ActivationInfo, ActiveMount, Mount};
use gantry_proto::time;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, fchmod, mkdirat};
use nix::unistd::{Gid, Uid, fchown, ftruncate, linkat};
use rung_sys::beneath::{self, Root};
use rung_sys::mount_options::MountOptions;
use rung_sys::{loop_device, mount, mount_words};

use super::words::{Step, format, steps};
use super::{Manager, Wish};
use crate::error::{Doing, Error, Result};
use crate::labels;

const MAKE_DIRECTORY: &str = "X-containerd.mkdir.";
const MAKE_IMAGE: &str = "X-containerd.mkfs.";
/// How long making a file system may take.
const PATIENCE: Duration = Duration::from_secs(60);

impl Manager {
    /// Makes the first `count` mounts in `dir`, and the words of the one after them.
    pub(super) fn make(&self, dir: &Path, wish: &Wish, count: usize) -> Result<ActivationInfo> {
        let mut active: Vec<ActiveMount> = Vec::new();
        for (number, one) in wish.mounts[..count].iter().enumerate() {
            let doing = || format!("mount {number} of type {:?}", one.r#type);
            let one = self.prepare(one.clone(), &active).doing(doing)?;
            let place = dir.join(number.to_string());
            mount_at(&one, &place).doing(doing)?;
            let mount_point = place.to_string_lossy().into_owned();
            let mounted_at = Some(time::timestamp(SystemTime::now()));
            active.push(ActiveMount { mount: Some(one), mounted_at, mount_point, ..ActiveMount::default() });
        }
        let mut system = wish.mounts[count..].to_vec();
        if let Some(first) = system.first_mut() {
            *first =
                self.prepare(first.clone(), &active).doing(|| format!("mount {count} of type {:?}", first.r#type))?;
        }
        if let (true, Some(last)) = (wish.temporary, active.last()) {
            let options = vec!["rbind".to_owned()];
            system.push(Mount { r#type: "bind".into(), source: last.mount_point.clone(), options, ..Mount::default() });
        }
        Ok(ActivationInfo { name: wish.name.clone(), active, system, labels: wish.labels.clone() })
    }

    /// Does what the mount's type asks for before it is mounted.
    fn prepare(&self, mut one: Mount, before: &[ActiveMount]) -> Result<Mount> {
        let kind = one.r#type.clone();
        let (steps, rest) = steps(&kind);
        rest.clone_into(&mut one.r#type);
        for step in steps {
            match step {
                Step::Format => one = format(one, before)?,
                Step::MakeDirectories => {
                    for option in take(&mut one.options, MAKE_DIRECTORY) {
                        self.make_directory(&option).doing(|| format!("option {MAKE_DIRECTORY}{option}"))?;
                    }
                }
                Step::MakeImage => {
                    let options = take(&mut one.options, MAKE_IMAGE);
                    self.make_image(&one.source, &options).doing(|| format!("make image {}", one.source))?;
                }
            }
        }
        Ok(one)
    }

    /// `path=PATH[:MODE[:UID:GID]]`
    fn make_directory(&self, option: &str) -> Result<()> {
        let malformed = || Error::invalid("expected path=PATH[:MODE[:UID:GID]]");
        let parts: Vec<&str> = option.strip_prefix("path=").ok_or_else(malformed)?.split(':').collect();
        let number = |text: &str, radix| u32::from_str_radix(text, radix).map_err(|_| malformed());
        let (path, mode, owner) = match parts.as_slice() {
            [path] => (path, 0o700, None),
            [path, mode] => (path, number(mode, 8)?, None),
            [path, mode, uid, gid] => (path, number(mode, 8)?, Some((number(uid, 10)?, number(gid, 10)?))),
            _ => return Err(malformed()),
        };
        let mode = Mode::from_bits(mode).filter(|mode| mode.bits() <= 0o777).ok_or_else(malformed)?;
        let (parent, name) = self.beneath(Path::new(path))?;
        match mkdirat(&parent, name.as_os_str(), mode) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => return Err(io::Error::from(error).into()),
        }
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let made = openat(&parent, name.as_os_str(), flags, Mode::empty()).map_err(io::Error::from)?;
        if let Some((uid, gid)) = owner {
            fchown(&made, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))).map_err(io::Error::from)?;
        }
        Ok(fchmod(&made, mode).map_err(io::Error::from)?)
    }

    /// Makes a file of `size=` with the file system `fs=` in it, unless it is there.
    fn make_image(&self, path: &str, options: &[String]) -> Result<()> {
        let (mut size, mut kind, mut uuid) = (None, "ext4", None);
        for option in options {
            match option.split_once('=') {
                Some(("size", value)) => size = labels::size(value).and_then(|size| i64::try_from(size).ok()),
                Some(("fs", value)) => kind = value,
                Some(("uuid", value)) => uuid = Some(value),
                _ => return Err(Error::invalid(format!("unknown option {MAKE_IMAGE}{option}"))),
            }
        }
        let size =
            size.ok_or_else(|| Error::invalid(format!("option {MAKE_IMAGE}size: a number of bytes is missing")))?;
        let mut arguments = match (kind, uuid) {
            ("ext2" | "ext3" | "ext4" | "xfs", None) => vec!["-q".to_owned()],
            ("ext2" | "ext3" | "ext4", Some(uuid)) => vec!["-q".to_owned(), "-U".to_owned(), uuid.to_owned()],
            ("xfs", Some(uuid)) => vec!["-q".to_owned(), "-m".to_owned(), format!("uuid={uuid}")],
            _ => return Err(Error::invalid(format!("option {MAKE_IMAGE}fs={kind}: neither ext2, ext3, ext4 nor xfs"))),
        };
        let (parent, name) = self.beneath(Path::new(path))?;
        if beneath::stat(parent.as_fd(), &name)?.is_some() {
            return Ok(());
        }
        // Without a name until it is whole: whatever ends this leaves nothing.
        let flags = OFlag::O_RDWR | OFlag::O_TMPFILE | OFlag::O_CLOEXEC;
        let file = openat(&parent, ".", flags, Mode::from_bits_truncate(0o640)).map_err(io::Error::from)?;
        let unnamed = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
        ftruncate(&file, size).map_err(io::Error::from)?;
        arguments.push(unnamed.clone());
        run(&format!("mkfs.{kind}"), &arguments)?;
        match linkat(AT_FDCWD, unnamed.as_str(), &parent, name.as_os_str(), AtFlags::AT_SYMLINK_FOLLOW) {
            // Another activation was first, and its image may be mounted.
            Err(Errno::EEXIST) => Ok(()),
            named => Ok(named.map_err(io::Error::from)?),
        }
    }

    /// The directory of `path`, opened beneath the root that it is in, and its name there.
    fn beneath(&self, path: &Path) -> Result<(OwnedFd, std::ffi::OsString)> {
        let root = self.roots.iter().find_map(|root| Some((root, path.strip_prefix(root).ok()?)));
        let (root, inner) = root
            .ok_or_else(|| Error::unimplemented(format!("{} is not in a directory of the daemon's", path.display())))?;
        let inner = beneath::lexical(inner);
        let name = inner.file_name().ok_or_else(|| Error::invalid("it is the daemon's own directory"))?;
        let parent = Root::open(root)?.directory(inner.parent().unwrap_or(Path::new("")))?;
        Ok((parent, name.to_owned()))
    }

    /// Takes down what is mounted in `dir`, the last first, and removes it. What is not there is no error.
    pub(super) fn undo(&self, dir: &Path) -> Result<()> {
        let number = |path: &PathBuf| path.file_name().and_then(OsStr::to_str)?.parse::<u32>().ok();
        let entries = fs::read_dir(dir).doing(|| format!("read {}", dir.display()))?;
        let mut places: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        places.retain(|path| number(path).is_some());
        places.sort_by_key(|path| std::cmp::Reverse(number(path)));
        for place in places {
            let doing = || format!("take down {}", place.display());
            if place.is_symlink() {
                // The device of another run of the machine is another's.
                if fs::read_to_string(dir.join("boot")).is_ok_and(|boot| boot == self.boot)
                    || !dir.join("boot").exists()
                {
                    let device = fs::read_link(&place).doing(doing)?;
                    loop_device::release(&device).map_err(io::Error::from).doing(doing)?;
                }
                fs::remove_file(&place).doing(doing)?;
                continue;
            }
            match mount::detach(&place) {
                Err(error) if !error.is(&[nix::libc::EINVAL]) => return Err(io::Error::from(error)).doing(doing),
                _ => fs::remove_dir(&place).doing(doing)?,
            }
        }
        beneath::remove(dir).doing(|| format!("remove {}", dir.display()))
    }
}

/// Takes the options with a prefix out of the others; they come without it.
fn take(options: &mut Vec<String>, prefix: &str) -> Vec<String> {
    let taken = options.iter().filter_map(|option| option.strip_prefix(prefix)).map(str::to_owned).collect();
    options.retain(|option| !option.starts_with(prefix));
    taken
}

fn mount_at(one: &Mount, place: &Path) -> Result<()> {
    if one.r#type == "loop" {
        let writable = !one.options.iter().any(|option| option == "ro");
        let file = fs::OpenOptions::new().read(true).write(writable).open(&one.source);
        let file = file.doing(|| format!("open {}", one.source))?;
        let device = loop_device::attach(file.as_fd(), writable).map_err(io::Error::from)?;
        // A device that goes by itself until there is something to find it by.
        symlink(&device.path, place)?;
        return Ok(device.keep().map_err(io::Error::from)?);
    }
    if !one.target.is_empty() {
        return Err(Error::unimplemented("a mount below another"));
    }
    fs::create_dir(place)?;
    let tree = mount_words::make(&one.r#type, &one.source, &MountOptions::parse(&one.options));
    let tree = tree.map_err(io::Error::from)?;
    let target = File::open(place)?;
    Ok(mount::attach(tree.as_fd(), target.as_fd()).map_err(io::Error::from)?)
}

fn run(program: &str, arguments: &[String]) -> Result<()> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().doing(|| format!("start {program}"))?;
    let started = Instant::now();
    loop {
        match child.try_wait()? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => return Err(Error::internal(format!("{program} failed with {status}"))),
            None if started.elapsed() > PATIENCE => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(Error::internal(format!("{program}: not done within {} s", PATIENCE.as_secs())));
            }
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}
