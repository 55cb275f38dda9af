//! Mounts by descriptor: the new mount calls, and mount(2) where only it will do.

use std::ffi::{CStr, CString, c_int};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::error::{Error, Result, check, describe_fd};
use crate::pidfd::owned;

/// Attributes of a mount (not of its file system).
pub mod attribute {
    /// Nothing can be written.
    pub const RDONLY: u64 = 0x1;
    /// Set-id bits have no effect.
    pub const NOSUID: u64 = 0x2;
    /// Device nodes have no effect.
    pub const NODEV: u64 = 0x4;
    /// Nothing can be executed.
    pub const NOEXEC: u64 = 0x8;
    /// The mask of the access time kinds; zero is relatime.
    pub const ATIME: u64 = 0x70;
    /// Access times are kept now and then.
    pub const RELATIME: u64 = 0;
    /// Access times are not kept.
    pub const NOATIME: u64 = 0x10;
    /// Access times are kept exactly.
    pub const STRICTATIME: u64 = 0x20;
    /// Access times of directories are not kept.
    pub const NODIRATIME: u64 = 0x80;
    /// Ids are translated through a user namespace.
    pub const IDMAP: u64 = 0x10_0000;
    /// Symbolic links are not followed.
    pub const NOSYMFOLLOW: u64 = 0x20_0000;
}

/// How mounts and unmounts travel between copies of a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// Both ways.
    Shared,
    /// Only in.
    Slave,
    /// Not at all.
    Private,
    /// Not at all, and it cannot be bound elsewhere.
    Unbindable,
}

impl Propagation {
    /// The `MS_*` flag.
    pub fn flag(self) -> u64 {
        match self {
            Self::Shared => libc::MS_SHARED,
            Self::Slave => libc::MS_SLAVE,
            Self::Private => libc::MS_PRIVATE,
            Self::Unbindable => libc::MS_UNBINDABLE,
        }
    }
}

/// A change of mount attributes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Change<'fd> {
    /// Attributes to set; wins over `clear`.
    pub set: u64,
    /// Attributes to clear.
    pub clear: u64,
    /// New propagation.
    pub propagation: Option<Propagation>,
    /// With [`attribute::IDMAP`] in `set`: the user namespace whose maps translate.
    pub user_namespace: Option<BorrowedFd<'fd>>,
}

/// The attributes of a mount, except whether it follows symbolic links.
pub fn attributes(mount: BorrowedFd<'_>) -> Result<u64> {
    /// Not a constant of every C library.
    const ST_RELATIME: u64 = 0x1000;
    // SAFETY: `statvfs` is plain data, for which all zeroes is a value.
    let mut found: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: `found` is live for the call and of the type that it fills.
    let returned = unsafe { libc::fstatvfs(mount.as_raw_fd(), &raw mut found) };
    check(returned, "fstatvfs", || describe_fd(mount))?;
    let found = found.f_flag;
    let plain = [
        (libc::ST_RDONLY, attribute::RDONLY),
        (libc::ST_NOSUID, attribute::NOSUID),
        (libc::ST_NODEV, attribute::NODEV),
        (libc::ST_NOEXEC, attribute::NOEXEC),
        (libc::ST_NODIRATIME, attribute::NODIRATIME),
    ];
    let times = match found {
        _ if found & libc::ST_NOATIME != 0 => attribute::NOATIME,
        _ if found & ST_RELATIME != 0 => attribute::RELATIME,
        _ => attribute::STRICTATIME,
    };
    Ok(plain.iter().filter(|(flag, _)| found & flag != 0).fold(times, |all, (_, attribute)| all | attribute))
}

/// Makes a detached copy of the mount at `path` below `directory` (an empty path means the descriptor itself).
pub fn open_tree(directory: BorrowedFd<'_>, path: &Path, recursive: bool) -> Result<OwnedFd> {
    let name = c_path(path, "open_tree")?;
    let mut flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | at_flag(libc::AT_EMPTY_PATH);
    if recursive {
        flags |= at_flag(libc::AT_RECURSIVE);
    }
    // SAFETY: `name` is a C string that outlives the call; the result is a new descriptor or an error.
    let returned = unsafe { libc::syscall(libc::SYS_open_tree, directory.as_raw_fd(), name.as_ptr(), flags) };
    owned(check(returned, "open_tree", || format!("{}, {path:?}", describe_fd(directory)))?, "open_tree")
}

/// Makes a detached copy of the mount at a path resolved from the current directory.
pub fn open_tree_at_path(path: &Path, recursive: bool) -> Result<OwnedFd> {
    // SAFETY: AT_FDCWD is not an owned descriptor, and every call takes it in place of one.
    open_tree(unsafe { BorrowedFd::borrow_raw(libc::AT_FDCWD) }, path, recursive)
}

/// Attaches a detached mount on top of the file or directory behind `target`.
pub fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<()> {
    let flags = libc::MOVE_MOUNT_F_EMPTY_PATH | libc::MOVE_MOUNT_T_EMPTY_PATH;
    // SAFETY: both paths are empty C strings; the flags make the kernel use the descriptors themselves.
    let returned = unsafe {
        libc::syscall(libc::SYS_move_mount, mount.as_raw_fd(), c"".as_ptr(), target.as_raw_fd(), c"".as_ptr(), flags)
    };
    check(returned, "move_mount", || format!("{}, {}", mount.as_raw_fd(), describe_fd(target))).map(drop)
}

/// Attaches a detached mount on top of what is called `name` in `directory`; a link there is not followed.
pub fn attach_at(mount: BorrowedFd<'_>, directory: BorrowedFd<'_>, name: &Path) -> Result<()> {
    let text = c_path(name, "move_mount")?;
    let (mount, into, flags) = (mount.as_raw_fd(), directory.as_raw_fd(), libc::MOVE_MOUNT_F_EMPTY_PATH);
    // SAFETY: both paths are C strings that outlive the call, the first of them empty.
    let returned = unsafe { libc::syscall(libc::SYS_move_mount, mount, c"".as_ptr(), into, text.as_ptr(), flags) };
    check(returned, "move_mount", || format!("{mount}, {}, {name:?}", describe_fd(directory))).map(drop)
}

/// Checks that the kernel can make a mount read-only with everything that is mounted below it.
///
/// # Errors
/// What the kernel says to it.
pub fn check_read_only_below() -> Result<()> {
    let tree = open_tree_at_path(Path::new("/"), false)?;
    set_attributes(tree.as_fd(), true, &Change { set: attribute::RDONLY, ..Change::default() })
}

/// Changes the attributes of the mount behind `mount`, and of all below it when `recursive`.
pub fn set_attributes(mount: BorrowedFd<'_>, recursive: bool, change: &Change<'_>) -> Result<()> {
    let attributes = libc::mount_attr {
        attr_set: change.set,
        // The kernel wants the whole access time mask cleared before one kind is set.
        attr_clr: change.clear | if change.set & attribute::ATIME != 0 { attribute::ATIME } else { 0 },
        propagation: change.propagation.map_or(0, Propagation::flag),
        userns_fd: change.user_namespace.map_or(0, |fd| u64::from(fd.as_raw_fd().unsigned_abs())),
    };
    let flags = at_flag(libc::AT_EMPTY_PATH) | if recursive { at_flag(libc::AT_RECURSIVE) } else { 0 };
    // SAFETY: the path is an empty C string and `attributes` is a live mount_attr of the size that is passed.
    let returned = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    check(returned, "mount_setattr", || {
        format!(
            "{}, set {:#x}, clear {:#x}, propagation {:?}{}",
            describe_fd(mount),
            attributes.attr_set,
            attributes.attr_clr,
            change.propagation,
            if recursive { ", AT_RECURSIVE" } else { "" }
        )
    })
    .map(drop)
}

/// A file system being configured before it is mounted.
#[derive(Debug)]
pub struct FileSystem {
    context: OwnedFd,
    kind: String,
}

impl FileSystem {
    /// Starts configuring a file system of this type.
    pub fn open(kind: &str) -> Result<Self> {
        let name = c_text(kind, "fsopen")?;
        // SAFETY: `name` is a C string that outlives the call; the result is a new descriptor or an error.
        let returned = unsafe { libc::syscall(libc::SYS_fsopen, name.as_ptr(), FSOPEN_CLOEXEC) };
        let context = owned(check(returned, "fsopen", || format!("{kind:?}"))?, "fsopen")?;
        Ok(Self { context, kind: kind.to_owned() })
    }

    /// Sets an option with a value; the kernel takes at most 255 bytes.
    pub fn set(&self, key: &str, value: &str) -> Result<()> {
        let (name, text) = (c_text(key, "fsconfig")?, c_text(value, "fsconfig")?);
        self.configure(FSCONFIG_SET_STRING, Some(&name), Some(&text), || format!("{key}={value}"))
    }

    /// Sets an option without a value.
    pub fn set_flag(&self, key: &str) -> Result<()> {
        let name = c_text(key, "fsconfig")?;
        self.configure(FSCONFIG_SET_FLAG, Some(&name), None, || key.to_owned())
    }

    /// Sets an option that is an open file or directory.
    pub fn set_fd(&self, key: &str, value: BorrowedFd<'_>) -> Result<()> {
        let name = c_text(key, "fsconfig")?;
        let (context, number) = (self.context.as_raw_fd(), value.as_raw_fd());
        // SAFETY: the name is a C string that outlives the call; this command takes no value but the descriptor.
        let returned = unsafe {
            libc::syscall(
                libc::SYS_fsconfig,
                context,
                FSCONFIG_SET_FD,
                name.as_ptr(),
                std::ptr::null::<libc::c_void>(),
                number,
            )
        };
        let what = || format!("{}, {key}={}{}", self.kind, describe_fd(value), self.complaint());
        check(returned, "fsconfig", what).map(drop)
    }

    /// Takes one word of a mount option string: `key=value` or `key`.
    pub fn set_word(&self, word: &str) -> Result<()> {
        match word.split_once('=') {
            Some((key, value)) => self.set(key, value),
            None => self.set_flag(word),
        }
    }

    /// Makes (or finds) the file system and returns a detached mount of it.
    pub fn mount(&self, attributes: u64) -> Result<OwnedFd> {
        self.configure(FSCONFIG_CMD_CREATE, None, None, || "FSCONFIG_CMD_CREATE".into())?;
        let fd = self.context.as_raw_fd();
        // SAFETY: fsmount takes three numbers and returns a new descriptor or an error.
        let returned = unsafe { libc::syscall(libc::SYS_fsmount, fd, FSMOUNT_CLOEXEC, attributes) };
        owned(check(returned, "fsmount", || format!("{}, {attributes:#x}", self.kind))?, "fsmount")
    }

    fn configure(
        &self,
        command: c_int,
        key: Option<&CStr>,
        value: Option<&CStr>,
        what: impl FnOnce() -> String,
    ) -> Result<()> {
        let pointer = |text: Option<&CStr>| text.map_or(std::ptr::null(), CStr::as_ptr);
        // SAFETY: key and value are C strings that outlive the call, or null where the command takes none.
        let returned = unsafe {
            libc::syscall(libc::SYS_fsconfig, self.context.as_raw_fd(), command, pointer(key), pointer(value), 0)
        };
        check(returned, "fsconfig", || format!("{}, {}{}", self.kind, what(), self.complaint())).map(drop)
    }

    /// What the file system itself says about the last failure.
    fn complaint(&self) -> String {
        let mut text = [0_u8; 256];
        match nix::unistd::read(self.context.as_fd(), &mut text) {
            Ok(length) if length > 2 => format!(", {:?}", String::from_utf8_lossy(&text[2..length]).trim()),
            _ => String::new(),
        }
    }
}

const FSOPEN_CLOEXEC: c_int = 1;
const FSMOUNT_CLOEXEC: c_int = 1;
const FSCONFIG_SET_FLAG: c_int = 0;
const FSCONFIG_SET_STRING: c_int = 1;
const FSCONFIG_SET_FD: c_int = 5;
const FSCONFIG_CMD_CREATE: c_int = 6;

/// mount(2): for what the newer calls cannot do.
pub fn mount(source: Option<&Path>, target: &Path, kind: Option<&str>, flags: u64, data: Option<&str>) -> Result<()> {
    let source_text = source.map(|path| c_path(path, "mount")).transpose()?;
    let target_text = c_path(target, "mount")?;
    let kind_text = kind.map(|text| c_text(text, "mount")).transpose()?;
    let data_text = data.map(|text| c_text(text, "mount")).transpose()?;
    let pointer = |text: &Option<CString>| text.as_ref().map_or(std::ptr::null(), |text| text.as_ptr());
    // SAFETY: every pointer is a C string that outlives the call, or null, which mount(2) takes for "none".
    let returned = unsafe {
        libc::mount(pointer(&source_text), target_text.as_ptr(), pointer(&kind_text), flags, pointer(&data_text).cast())
    };
    check(returned, "mount", || {
        format!("{}, {target:?}, {}, {flags:#x}, {:?}", show(source), kind.unwrap_or("-"), data.unwrap_or(""))
    })
    .map(drop)
}

fn show(path: Option<&Path>) -> String {
    path.map_or_else(|| "-".into(), |path| format!("{path:?}"))
}

/// The kernel's number of the mount that a descriptor is on.
pub fn number_of(fd: BorrowedFd<'_>) -> Result<u64> {
    let path = format!("/proc/self/fdinfo/{}", fd.as_raw_fd());
    let text = crate::file::read_to_string(&path).map_err(|e| Error::from_io("read", format!("{path:?}"), &e))?;
    let number = text.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
    number.ok_or_else(|| Error::new("read", format!("{path:?}"), libc::ENODATA))
}

/// Detaches the mount at `path` without following a last symbolic link.
pub fn detach(path: &Path) -> Result<()> {
    let name = c_path(path, "umount2")?;
    // SAFETY: `name` is a C string that outlives the call.
    let returned = unsafe { libc::umount2(name.as_ptr(), libc::MNT_DETACH | libc::UMOUNT_NOFOLLOW) };
    check(returned, "umount2", || format!("{path:?}, MNT_DETACH")).map(drop)
}

/// Makes the current directory the root and stacks the old root on top of it; detach "." next.
pub fn pivot_root_here() -> Result<()> {
    // SAFETY: both paths are C strings.
    let returned = unsafe { libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) };
    check(returned, "pivot_root", || "\".\", \".\"".into()).map(drop)
}

fn at_flag(flag: c_int) -> u32 {
    flag.unsigned_abs()
}

fn c_path(path: &Path, call: &'static str) -> Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| Error::new(call, format!("{path:?}"), libc::EINVAL))
}

fn c_text(text: &str, call: &'static str) -> Result<CString> {
    CString::new(text).map_err(|_| Error::new(call, format!("{text:?}"), libc::EINVAL))
}
