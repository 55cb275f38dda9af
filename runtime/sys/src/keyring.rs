//! Session keyrings.

use std::ffi::CString;

use crate::error::{Error, Result, check};

const JOIN_SESSION_KEYRING: i32 = 1;
const SET_PERMISSION: i32 = 5;
const DESCRIBE: i32 = 6;
/// The owner may search the keyring.
const OWNER_SEARCHES: u32 = 0x0008_0000;

/// Gives this process a new session keyring called `name`, or the one of that name if it may join it, and lets its
/// owner search it, which a joined keyring otherwise forbids once the user id has changed.
///
/// # Errors
/// `ENOSYS` on a kernel without keyrings, `EDQUOT` when the user has too many; both are for the caller to judge.
pub fn join_session(name: &str) -> Result<()> {
    let name_c = CString::new(name).map_err(|_| Error::new("keyctl", format!("{name:?}"), libc::EINVAL))?;
    // SAFETY: the name is a live, terminated string.
    let ring = unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, name_c.as_ptr()) };
    let ring = check(ring, "keyctl", || format!("KEYCTL_JOIN_SESSION_KEYRING, {name:?}"))?;
    let mut text = [0_u8; 512];
    // SAFETY: there is room for as many bytes as the call is told.
    let got = unsafe { libc::syscall(libc::SYS_keyctl, DESCRIBE, ring, text.as_mut_ptr(), text.len()) };
    let got = check(got, "keyctl", || format!("KEYCTL_DESCRIBE, {name:?}"))?;
    let described = &text[..usize::try_from(got).unwrap_or(0).min(text.len())];
    let Some(permission) = permission_in(&String::from_utf8_lossy(described)) else {
        return Err(Error::new("keyctl", format!("KEYCTL_DESCRIBE, {name:?}"), libc::EINVAL));
    };
    // SAFETY: numbers only.
    let set = unsafe { libc::syscall(libc::SYS_keyctl, SET_PERMISSION, ring, permission | OWNER_SEARCHES) };
    check(set, "keyctl", || format!("KEYCTL_SETPERM, {name:?}")).map(drop)
}

/// The permission in a description: `type;uid;gid;permission;name`, the permission in hexadecimal.
fn permission_in(description: &str) -> Option<u32> {
    u32::from_str_radix(description.split(';').nth(3)?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptions() {
        assert_eq!(permission_in("keyring;0;0;3f130000;_ses.web"), Some(0x3f13_0000));
        assert_eq!(permission_in("keyring;0"), None);
    }

    #[test]
    fn a_thread_joins_a_keyring() {
        std::thread::spawn(|| match join_session("_ses.unit") {
            Ok(()) => {
                let keys = std::fs::read_to_string("/proc/keys").unwrap_or_default();
                assert!(keys.is_empty() || keys.contains("_ses.unit"), "{keys}");
            }
            Err(e) => assert!(e.is(&[libc::ENOSYS, libc::EPERM, libc::EDQUOT]), "{e}"),
        })
        .join()
        .unwrap();
    }
}
