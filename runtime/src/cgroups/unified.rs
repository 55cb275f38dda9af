//! What only the unified hierarchy has: controllers that must be enabled from above, and device programs.

use std::path::Path;

use rung_sys::bpf::{self, device::Rule};
use rung_sys::cgroupfs::{CgroupDir, is_denied};

use super::error::{Error, Result};
use super::locate::Hierarchy;
use super::settings::Setting;
use super::view::THREADED;

impl Hierarchy {
    /// Whether this is the v2 hierarchy and `setting` is in the form for it.
    pub(super) fn is_v2_of(&self, setting: &Setting) -> bool {
        self.is_v2() && !setting.legacy
    }
}

/// Enables all controllers that the host has in every cgroup between the mount point and its own. When the cgroup above
/// has them already, which is so for every container but the first of its parent, that is one read.
pub(super) fn enable_controllers(hierarchy: &Hierarchy, dir: &CgroupDir, settings: &[Setting]) -> Result<()> {
    let here = dir.read("cgroup.controllers")?;
    let has = |list: &str, name: &str| list.split_ascii_whitespace().any(|found| found == name);
    let needed: Vec<&str> = settings.iter().filter(|s| !s.legacy).map(|s| &*s.controller).collect();
    let root = CgroupDir::open(&hierarchy.mount)?;
    let offered = root.read("cgroup.controllers")?;
    let missing: Vec<&str> = offered.split_ascii_whitespace().filter(|name| !has(&here, name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    require_possible(dir, &needed)?;
    let inner = dir.path().strip_prefix(&hierarchy.mount).unwrap_or(Path::new(""));
    let mut current = root;
    for name in inner.components() {
        enable(&current, &missing, &needed)?;
        current = current.child(name.as_os_str())?;
        if kind(&current)? == "domain invalid" {
            current.write("cgroup.type", "threaded")?;
        }
    }
    Ok(())
}

/// Below a threaded cgroup a new one lets no process in unless it is threaded too, and then has no limits of controllers
/// that count no threads.
fn require_possible(dir: &CgroupDir, needed: &[&str]) -> Result<()> {
    let limited = needed.iter().find(|name| !THREADED.contains(name));
    match (kind(dir)?.as_str(), limited) {
        ("domain invalid" | "threaded", Some(name)) => Err(Error::Occupied(format!(
            "{} is below a threaded cgroup, where there are no limits of {name}: choose another cgroupsPath",
            dir.path().display()
        ))),
        _ => Ok(()),
    }
}

fn kind(dir: &CgroupDir) -> Result<String> {
    Ok(dir.read_optional("cgroup.type")?.unwrap_or_default().trim().to_owned())
}

fn enable(dir: &CgroupDir, missing: &[&str], needed: &[&str]) -> Result<()> {
    let together: String = missing.iter().map(|name| format!("+{name} ")).collect();
    if dir.write("cgroup.subtree_control", together.trim_end()).is_ok() {
        return Ok(());
    }
    // One controller that cannot be enabled here (a realtime process, a threaded cgroup) must not cost the others.
    for name in missing {
        match dir.write("cgroup.subtree_control", &format!("+{name}")) {
            Ok(()) => {}
            Err(_) if !needed.contains(name) => {}
            // To an ordinary user only what is further below belongs, where the controller may be enabled already.
            // Where it is not, that is told when the limit is written.
            Err(e) if is_denied(&e) => {}
            Err(e) if e.is(&[libc::EBUSY]) => {
                return Err(Error::Occupied(format!(
                    "{e}: a cgroup with processes of its own cannot have limited cgroups below it; move them into a \
                     cgroup of their own or choose another cgroupsPath"
                )));
            }
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// Makes `rules` the device rules of the cgroup.
pub(super) fn set_devices(dir: &CgroupDir, rules: &[Rule]) -> Result<()> {
    let program = bpf::device::program(rules);
    let set = || -> std::result::Result<(), rung_sys::Error> {
        bpf::set_device_program(dir, bpf::load_device_program(&program)?)
    };
    set().map_err(|e| match is_denied(&e) {
        true => e.into(),
        false => Error::invalid("linux.resources.devices", e.to_string()),
    })
}
