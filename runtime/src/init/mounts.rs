//! Carrying out the mounts of the plan, in its order.

use std::ffi::OsStr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::stat::fstat;
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};
use rung_sys::mount::{self, FileSystem, attribute};
use rung_sys::mount_options::MountOptions;
use rung_sys::xattr;

use super::binds::Behalf;
use super::rootfs::Root;
use super::target::{self, Make};
use super::{Inherited, binds, cgroup_mount, copy_up};
use crate::error::{Doing as _, Error, Result};
use crate::launch::sources::Source;
use crate::plan::InitPlan;
use crate::plan::mounts::{MountKind, MountPlan};

/// File systems that take their options one by one and have no device behind them. All others go through mount(2),
/// whose option string may be longer than the 255 bytes the newer call takes for a value.
const CONFIGURED: &[&str] = &["proc", "sysfs", "tmpfs", "devpts", "mqueue"];

/// Bytes of an option up to which fsconfig(2) is used: below its limit, because the limit counts the value alone.
const MAX_WORD: usize = 200;

/// Mounts everything; returns the mounts that become read-only once their content is there.
pub(super) fn mount_all(plan: &InitPlan, inherited: &Inherited, root: &Root) -> Result<Vec<OwnedFd>> {
    let mut read_only_later = Vec::new();
    for (index, step) in plan.mounts.iter().enumerate() {
        let mounted = match &step.kind {
            MountKind::Bind { source } => {
                let opened = inherited.sources.get(index).unwrap_or(&Source::Own);
                bind(step, source, opened, inherited, root).map(|()| None)
            }
            MountKind::Cgroup => cgroup_mount::mount(step, inherited, plan, root).map(|()| None),
            MountKind::FileSystem { name, source } => file_system(step, name, source, plan, root),
        };
        read_only_later.extend(mounted.doing(|| describe(step))?);
    }
    Ok(read_only_later)
}

/// What a failed mount is told as, in runc's words: callers look for them.
pub fn describe(step: &MountPlan) -> String {
    let what = match &step.kind {
        MountKind::Bind { source } => source.display().to_string(),
        MountKind::Cgroup => "cgroup".to_owned(),
        MountKind::FileSystem { name, .. } => name.clone(),
    };
    let place = step.destination.display().to_string();
    format!("error mounting {what:?} to rootfs at {place:?}")
}

fn bind(step: &MountPlan, source: &Path, opened: &Source, inherited: &Inherited, root: &Root) -> Result<()> {
    if step.options.copy_symlink && copy_symlink(step, source, root)? {
        return Ok(());
    }
    let own;
    let tree = match opened {
        Source::Opened(tree) => tree,
        Source::Own => {
            own = binds::open_source(step, source, None, Behalf::Own, None)?;
            &own
        }
        Source::Translated(namespace) => {
            own = binds::open_source(step, source, None, Behalf::Own, None)?;
            let recursive = step.options.idmap == Some(true);
            inherited
                .sync
                .translate(own.as_fd(), namespace.as_fd(), recursive)
                .doing(|| format!("map the ids of {}", source.display()))?;
            &own
        }
    };
    let make = if target::is_directory(tree.as_fd())? { Make::Directory } else { Make::File };
    let place = if step.options.destination_nofollow {
        let (parent, name) = target::parent_of(root.as_fd(), &step.destination)?;
        target::find_or_make_last(parent.as_fd(), &name, make)?
    } else {
        target::find_or_make(root.as_fd(), &step.destination, make)?
    };
    refuse_in_proc(step, &place)?;
    Ok(mount::attach(tree.as_fd(), place.as_fd())?)
}

/// A link of the image may lead into `/proc`, where the configuration's own words were looked at already.
pub fn refuse_in_proc(step: &MountPlan, place: &OwnedFd) -> Result<()> {
    if step.destination.starts_with("/proc") || fstatfs(place)?.filesystem_type() != PROC_SUPER_MAGIC {
        return Ok(());
    }
    let destination = step.destination.display();
    Err(Error::invalid(format!("{destination} cannot be mounted because it is inside /proc")))
}

/// Makes a link at the source again at the destination; `false` when the source is no link.
fn copy_symlink(step: &MountPlan, source: &Path, root: &Root) -> Result<bool> {
    let Ok(text) = std::fs::read_link(source) else { return Ok(false) };
    let (parent, name) = target::parent_of(root.as_fd(), &step.destination)?;
    match nix::unistd::symlinkat(&text, parent.as_fd(), &name) {
        Ok(()) => Ok(true),
        Err(Errno::EEXIST) if nix::fcntl::readlinkat(parent.as_fd(), &name).is_ok_and(|found| *found == *text) => {
            Ok(true)
        }
        Err(errno) => Err(errno).doing(|| format!("make link {}", step.destination.display())),
    }
}

fn file_system(step: &MountPlan, name: &str, source: &Path, plan: &InitPlan, root: &Root) -> Result<Option<OwnedFd>> {
    let shows_kernel = matches!(name, "proc" | "sysfs");
    let (place, existed) = place(step, root, shows_kernel)?;
    refuse_in_proc(step, &place)?;
    if step.options.remount {
        binds::set_attributes(place.as_fd(), &step.options)?;
        return Ok(None);
    }
    let deferred =
        step.options.set & attribute::RDONLY != 0 && (name == "tmpfs" || step.destination == Path::new("/dev"));
    let attributes = if deferred { step.options.set & !attribute::RDONLY } else { step.options.set };
    let Some(words) = words(step, name, existed.then_some(place.as_fd()), plan)? else {
        // Read-only at once: nothing that is mounted this way is filled afterwards.
        if name == "tmpfs" && (step.options.copy_up || deferred) {
            return Err(Error::unsupported(format!(
                "options: with a word of over {MAX_WORD} bytes, neither tmpcopyup nor ro is possible"
            )));
        }
        mount_by_string(step, name, source, step.options.set, &place, plan)?;
        if !step.options.propagation.is_empty() || step.options.changes_recursively() {
            // The place is what is covered now. The new mount is found as the place was.
            let mounted = target::find(root.as_fd(), &step.destination, true).doing(|| "open the new mount")?;
            binds::set_attributes(mounted.as_fd(), &step.options)?;
        }
        return Ok(None);
    };
    // One system call where nothing remains to be done to the mount. Where that fails, the long way says at which word.
    let plain = !deferred && !step.options.copy_up && plan.mount_label.is_none() && is_plain(&step.options);
    if plain && mount_here(name, source, step.options.to_flags(attributes).0, &words.join(","), &place).is_ok() {
        return Ok(None);
    }
    let file_system = FileSystem::open(name)?;
    if !source.as_os_str().is_empty() {
        file_system.set("source", &source.to_string_lossy())?;
    }
    // Flags of mount(2) alone; they change nothing for these file systems.
    for flag in step.options.superblock.iter().filter(|flag| !matches!(**flag, "silent" | "iversion")) {
        file_system.set_flag(flag)?;
    }
    for word in &words {
        file_system.set_word(word)?;
    }
    let mounted = file_system.mount(attributes)?;
    if step.options.copy_up && name == "tmpfs" {
        copy_up::copy(place.as_fd(), mounted.as_fd())?;
    }
    mount::attach(mounted.as_fd(), place.as_fd())?;
    if let Some(label) = plan.mount_label.as_ref().filter(|_| name == "mqueue") {
        // It takes no label when it is mounted, and gets it as a file does.
        let set = xattr::set(mounted.as_fd(), OsStr::new(""), b"security.selinux", label.as_bytes());
        set.doing(|| format!("label it {label:?}"))?;
    }
    // The others it has from the beginning, but for what is deferred.
    binds::set_recursive_attributes(mounted.as_fd(), &step.options)?;
    binds::set_propagation(mounted.as_fd(), &step.options.propagation)?;
    Ok(deferred.then_some(mounted))
}

/// Where to mount, and whether that was there before. What shows the kernel must be at the very place that programs
/// (and we) will look for it: a link would leave the image's own files at `/proc`.
fn place(step: &MountPlan, root: &Root, shows_kernel: bool) -> Result<(OwnedFd, bool)> {
    let refuse = |errno: Errno| match errno {
        Errno::ELOOP | Errno::ENOTDIR => {
            Error::invalid(format!("{} must be mounted on ordinary directory", step.destination.display()))
        }
        other => other.into(),
    };
    if shows_kernel {
        return match target::find_without_links(root.as_fd(), &step.destination) {
            Err(Errno::ENOENT) => {
                target::find_or_make(root.as_fd(), &step.destination, Make::Directory)?;
                let made = target::find_without_links(root.as_fd(), &step.destination).map_err(refuse)?;
                Ok((made, false))
            }
            Ok(found) if !target::is_directory(found.as_fd())? => Err(refuse(Errno::ENOTDIR)),
            other => Ok((other.map_err(refuse)?, true)),
        };
    }
    match target::find(root.as_fd(), &step.destination, true) {
        Ok(found) => Ok((found, true)),
        Err(Errno::ENOENT) => Ok((target::make_missing(root.as_fd(), &step.destination, Make::Directory)?, false)),
        Err(_) => Ok((target::find_or_make(root.as_fd(), &step.destination, Make::Directory)?, false)),
    }
}

/// The words for fsconfig(2), or `None` where mount(2) has to do it.
fn words(
    step: &MountPlan,
    name: &str,
    covered: Option<BorrowedFd<'_>>,
    plan: &InitPlan,
) -> Result<Option<Vec<String>>> {
    let too_long = step.options.data.iter().any(|word| word.len() > MAX_WORD);
    if !CONFIGURED.contains(&name) || too_long {
        return Ok(None);
    }
    let mut words = step.options.data.clone();
    if name == "tmpfs"
        && let Some(covered) = covered
        && !words.iter().any(|word| word.starts_with("mode="))
    {
        // Not its owner: what is new is root's, whoever the image says has what it covers.
        words.push(format!("mode={:o}", fstat(covered)?.st_mode & 0o7777));
    }
    if let Some(label) = plan.mount_label.as_ref().filter(|_| matches!(name, "tmpfs" | "devpts")) {
        words.push(format!("{}={label}", plan.extensions.context_option.unwrap_or("context")));
    }
    Ok(Some(words))
}

/// Whether the options are words for the file system and attributes of the mount, and nothing else.
fn is_plain(options: &MountOptions) -> bool {
    options.superblock.is_empty()
        && options.propagation.is_empty()
        && !options.changes_recursively()
        && !options.data.iter().any(|word| word.contains(','))
}

/// mount(2) with the working directory as the target, which is the one way to give it a descriptor.
fn mount_here(name: &str, source: &Path, flags: u64, data: &str, place: &OwnedFd) -> Result<()> {
    nix::unistd::fchdir(place).doing(|| "change to the mount point")?;
    let source = if source.as_os_str().is_empty() { Path::new(name) } else { source };
    let data = (!data.is_empty()).then_some(data);
    Ok(mount::mount(Some(source), Path::new("."), Some(name), flags, data)?)
}

/// A mount whose options are one string, which may say anything.
fn mount_by_string(
    step: &MountPlan,
    name: &str,
    source: &Path,
    attributes: u64,
    place: &OwnedFd,
    plan: &InitPlan,
) -> Result<()> {
    let mut data = step.options.data.clone();
    if let Some(label) = &plan.mount_label {
        data.push(format!("{}=\"{label}\"", plan.extensions.context_option.unwrap_or("context")));
    }
    let (flags, words) = step.options.to_flags(attributes);
    data.extend(words.into_iter().map(str::to_owned));
    mount_here(name, source, flags, &data.join(","), place)
}
