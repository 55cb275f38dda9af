//! Extended attributes of an entry of an open directory, never through a symbolic link.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

/// Sets an attribute of `entry`, which is one name in `directory`, or empty for the directory itself.
///
/// # Errors
/// What the kernel says, such as `ENOTSUP` where the file system has none of that kind.
pub fn set(directory: BorrowedFd<'_>, entry: &OsStr, name: &[u8], value: &[u8]) -> io::Result<()> {
    let (path, name) = (proc_path(directory, entry)?, c_string(name)?);
    // SAFETY: both strings end with NUL and outlive the call; pointer and length describe `value`.
    let result = unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The value of an attribute of `entry`; `None` where it has none of that name.
///
/// # Errors
/// What the kernel says.
pub fn get(directory: BorrowedFd<'_>, entry: &OsStr, name: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let (path, name) = (proc_path(directory, entry)?, c_string(name)?);
    let call = |buffer: *mut libc::c_void, size: usize| {
        // SAFETY: both strings end with NUL and outlive the call; `read` passes a buffer of `size` bytes, or null and 0.
        unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), buffer, size) }
    };
    match read(call) {
        Err(error) if error.raw_os_error() == Some(libc::ENODATA) => Ok(None),
        other => other.map(Some),
    }
}

/// The names of the attributes of `entry`.
///
/// # Errors
/// What the kernel says.
pub fn list(directory: BorrowedFd<'_>, entry: &OsStr) -> io::Result<Vec<Vec<u8>>> {
    let path = proc_path(directory, entry)?;
    let call = |buffer: *mut libc::c_void, size: usize| {
        // SAFETY: the path ends with NUL and outlives the call; `read` passes a buffer of `size` bytes, or null and 0.
        unsafe { libc::llistxattr(path.as_ptr(), buffer.cast(), size) }
    };
    let names = read(call)?;
    Ok(names.split(|byte| *byte == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect())
}

/// Asks for the size, then for that much; again where it grew in between.
fn read(call: impl Fn(*mut libc::c_void, usize) -> isize) -> io::Result<Vec<u8>> {
    loop {
        let Ok(size) = usize::try_from(call(std::ptr::null_mut(), 0)) else { return Err(io::Error::last_os_error()) };
        if size == 0 {
            return Ok(Vec::new());
        }
        let mut buffer = vec![0u8; size];
        match usize::try_from(call(buffer.as_mut_ptr().cast(), size)) {
            Ok(length) => {
                buffer.truncate(length);
                return Ok(buffer);
            }
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.raw_os_error() != Some(libc::ERANGE) {
                    return Err(error);
                }
            }
        }
    }
}

/// The entry by its directory's descriptor: the calls that take one (`setxattrat`) are newer than the kernels we run on.
fn proc_path(directory: BorrowedFd<'_>, entry: &OsStr) -> io::Result<CString> {
    let bytes = entry.as_bytes();
    if bytes.contains(&b'/') || bytes == b".." {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // "/." keeps the last step from being the link in /proc itself, which is not followed.
    let entry = if bytes.is_empty() { b"." } else { bytes };
    let mut path = format!("/proc/self/fd/{}/", directory.as_raw_fd()).into_bytes();
    path.extend_from_slice(entry);
    c_string(&path)
}

fn c_string(bytes: &[u8]) -> io::Result<CString> {
    CString::new(bytes).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn user_attributes_round_trip() {
        let dir = tempfile::tempdir().expect("temporary directory");
        std::fs::write(dir.path().join("f"), b"").expect("file");
        let fd = std::fs::File::open(dir.path()).expect("open");
        match set(fd.as_fd(), OsStr::new("f"), b"user.a", b"value") {
            // A file system without attributes proves nothing either way.
            Err(error) if error.raw_os_error() == Some(libc::ENOTSUP) => return,
            other => other.expect("set"),
        }
        assert_eq!(get(fd.as_fd(), OsStr::new("f"), b"user.a").expect("get").as_deref(), Some(&b"value"[..]));
        assert_eq!(get(fd.as_fd(), OsStr::new("f"), b"user.b").expect("get"), None);
        assert!(list(fd.as_fd(), OsStr::new("f")).expect("list").contains(&b"user.a".to_vec()));
        set(fd.as_fd(), OsStr::new(""), b"user.d", b"").expect("set on the directory");
        assert_eq!(get(fd.as_fd(), OsStr::new("."), b"user.d").expect("get").as_deref(), Some(&b""[..]));
        assert!(set(fd.as_fd(), OsStr::new("a/b"), b"user.a", b"").is_err());
        assert!(get(fd.as_fd(), OsStr::new("none"), b"user.a").is_err());
    }
}
