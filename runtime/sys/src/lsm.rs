//! AppArmor profiles and SELinux labels of what is executed next.

use std::path::Path;

use crate::error::{Error, Result};
use crate::procfs::Procfs;

/// Whether AppArmor is on.
#[must_use]
pub fn apparmor_enabled() -> bool {
    std::fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.first() == Some(&b'Y'))
}

/// Whether SELinux is on.
#[must_use]
pub fn selinux_enabled() -> bool {
    Path::new("/sys/fs/selinux/status").exists()
}

/// Confines the next program this thread executes to AppArmor `profile`, and reads it back: one that did not arrive would
/// leave the program unconfined.
pub fn set_apparmor(proc: &Procfs, profile: &str) -> Result<()> {
    let own = proc.this_thread()?;
    let value = format!("exec {profile}");
    let mut file = format!("{own}/attr/apparmor/exec");
    match proc.write(&file, &value) {
        // Before Linux 5.1 the modules share one directory.
        Err(e) if e.is(&[libc::ENOENT]) => {
            file = format!("{own}/attr/exec");
            proc.write(&file, &value)?;
        }
        other => other?,
    }
    let found = proc.read(&file)?;
    if names_profile(&found, profile) { Ok(()) } else { Err(not_applied(&file, profile, &found)) }
}

/// Whether the kernel's `NAME (MODE)` is this profile. One of another namespace, or several stacked, is shown as it is seen
/// from ours.
fn names_profile(found: &str, profile: &str) -> bool {
    let found = found.trim_end_matches(['\0', '\n']);
    let name = found.rsplit_once(" (").map_or(found, |(name, _)| name);
    name == profile || (profile.contains([':', '&']) && !matches!(name, "" | "unconfined"))
}

fn not_applied(file: &str, label: &str, found: &str) -> Error {
    Error::new("write", format!("\"/proc/{file}\", {label:?} (reads back {found:?})"), libc::EIO)
}

/// Gives the next program this thread executes SELinux `label`, and reads it back: a label that did not arrive would
/// leave the program unconfined.
pub fn set_selinux(proc: &Procfs, label: &str) -> Result<()> {
    let file = format!("{}/attr/exec", proc.this_thread()?);
    proc.write(&file, label)?;
    let found = proc.read(&file)?;
    if found.trim_end_matches(['\0', '\n']) == label { Ok(()) } else { Err(not_applied(&file, label, &found)) }
}

/// Gives the keys that this thread makes SELinux `label`; empty for the default.
pub fn set_selinux_keys(proc: &Procfs, label: &str) -> Result<()> {
    proc.write(&format!("{}/attr/keycreate", proc.this_thread()?), label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_read_back() {
        for (found, profile) in [
            ("docker-default (enforce)\n", "docker-default"),
            ("a (b) (complain)\n", "a (b)"),
            ("unconfined\n", "unconfined"),
            ("web (enforce)\n", ":ns://web"),
            (":ns://web (enforce)\n", ":ns:web"),
        ] {
            assert!(names_profile(found, profile), "{found:?} {profile:?}");
        }
        for (found, profile) in [("", "web"), ("unconfined\n", "web"), ("web2 (enforce)\n", "web"), ("", ":ns:web")] {
            assert!(!names_profile(found, profile), "{found:?} {profile:?}");
        }
    }
}
