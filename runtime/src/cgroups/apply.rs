//! Writing settings into the cgroups they belong to.

use nix::errno::Errno;
use rung_sys::cgroupfs::{self, CgroupDir};

use super::error::{Error, Result};
use super::settings::{Absent, Setting};

/// Writes `settings`, which all belong into `dir`. One that is refused with EINVAL is tried again after the others of
/// its controller: memory and swap, quota and period, quota and burst bound each other, and which order is right
/// depends on the values that stand there.
pub(super) fn write_all(dir: &CgroupDir, settings: &[&Setting]) -> Result<()> {
    let mut again: Vec<(&Setting, rung_sys::Error)> = Vec::new();
    for (at, setting) in settings.iter().enumerate() {
        match write(dir, setting) {
            Ok(()) => {}
            Err(e) if e.is(&[libc::EINVAL]) && others_follow(settings, at) => again.push((setting, e)),
            Err(e) => return Err(explain(dir, setting, e)),
        }
    }
    for (setting, _) in again {
        write(dir, setting).map_err(|e| explain(dir, setting, e))?;
    }
    Ok(())
}

fn others_follow(settings: &[&Setting], at: usize) -> bool {
    settings[at + 1..].iter().any(|later| later.controller == settings[at].controller)
}

fn write(dir: &CgroupDir, setting: &Setting) -> std::result::Result<(), rung_sys::Error> {
    match (dir.write(&setting.file, &setting.value), &setting.absent) {
        (Err(e), Absent::Ignore) if e.is(&[libc::ENOENT]) => Ok(()),
        (Err(e), Absent::Instead(other)) if e.is(&[libc::ENOENT]) => write(dir, other),
        (result, _) => result,
    }
}

/// The refusals whose bare errno would send people searching.
fn explain(dir: &CgroupDir, setting: &Setting, e: rung_sys::Error) -> Error {
    let number = |file: &str| dir.read(file).ok().and_then(|text| cgroupfs::single(&text));
    match (Errno::from_raw(e.errno()), &*setting.file) {
        (Errno::EBUSY | Errno::EINVAL, "memory.limit_in_bytes") => {
            let (usage, peak) = (number("memory.usage_in_bytes"), number("memory.max_usage_in_bytes"));
            let known = |value: Option<u64>| value.map_or_else(|| "unknown".to_owned(), |n| n.to_string());
            let (usage, peak) = (known(usage), known(peak));
            let reason = format!(
                "unable to set memory limit to {} (current usage: {usage}, peak usage: {peak}): {e}",
                setting.value
            );
            Error::invalid("linux.resources.memory.limit", reason)
        }
        (Errno::ENOENT, file) if file.starts_with("hugetlb.") => {
            let sizes = libcgroups::stats::supported_page_sizes().unwrap_or_default().join(", ");
            Error::invalid("linux.resources.hugepageLimits", format!("{e}; this host has page sizes {sizes}"))
        }
        (Errno::EOPNOTSUPP, "io.bfq.weight" | "io.weight") => {
            let reason = format!("{e}; neither the scheduler bfq nor the controller io.cost weighs this device");
            Error::invalid("linux.resources.blockIO", reason)
        }
        (Errno::ENOENT, file) => {
            let reason = format!("{e}; the controller {} or this file of it is not available here", setting.controller);
            Error::invalid(format!("linux.resources ({file})"), reason)
        }
        _ => e.into(),
    }
}
