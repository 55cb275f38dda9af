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

/// Confines the next program this thread executes to AppArmor `profile`.
pub fn set_apparmor(proc: &Procfs, profile: &str) -> Result<()> {
    let own = proc.this_thread()?;
    let value = format!("exec {profile}");
    match proc.write(&format!("{own}/attr/apparmor/exec"), &value) {
        // Before Linux 5.1 the modules share one directory.
        Err(e) if e.is(&[libc::ENOENT]) => proc.write(&format!("{own}/attr/exec"), &value),
        other => other,
    }
}

/// Gives the next program this thread executes SELinux `label`, and reads it back: a label that did not arrive would
/// leave the program unconfined.
pub fn set_selinux(proc: &Procfs, label: &str) -> Result<()> {
    let file = format!("{}/attr/exec", proc.this_thread()?);
    proc.write(&file, label)?;
    let found = proc.read(&file)?;
    if found.trim_end_matches(['\0', '\n']) == label {
        Ok(())
    } else {
        Err(Error::new("write", format!("\"/proc/{file}\", {label:?} (reads back {found:?})"), libc::EIO))
    }
}

/// Gives the keys that this thread makes SELinux `label`; empty for the default.
pub fn set_selinux_keys(proc: &Procfs, label: &str) -> Result<()> {
    proc.write(&format!("{}/attr/keycreate", proc.this_thread()?), label)
}
