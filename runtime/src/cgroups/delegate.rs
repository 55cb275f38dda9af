//! Giving a cgroup to the user of a container that manages cgroups of its own below it.

use nix::unistd::Pid;
use rung_sys::cgroupfs::{CgroupDir, is_missing};

use super::{Cgroup, Error, Result, processes};

/// Where the kernel says which files of a cgroup belong to whoever it is given to.
const FILES: &str = "/sys/kernel/cgroup/delegate";

impl Cgroup {
    /// Makes `uid` the owner of the v2 cgroup, as far as the kernel means a cgroup to be given away: its processes and
    /// its children, not its limits. Means nothing on v1, where nothing can be given away safely.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn delegate(&self, uid: u32) -> Result<()> {
        let [place] = &self.places[..] else { return Ok(()) };
        let Some(dir) = place.dir.as_ref().filter(|_| place.hierarchy.is_v2()) else { return Ok(()) };
        give(dir, uid)
    }

    /// Puts the container's process one cgroup further down, which has no limits of its own, and is its `owner`'s. A
    /// cgroup namespace that was made before shows it from here.
    ///
    /// # Errors
    /// When the cgroup cannot be made, or the process is gone.
    pub fn descend(&self, name: &str, pid: Pid, owner: Option<u32>) -> Result<()> {
        let [place] = &self.places[..] else { return Ok(()) };
        let (dir, _) = CgroupDir::create(&place.hierarchy.mount, &place.path.join(name))?;
        owner.map_or(Ok(()), |owner| give(&dir, owner))?;
        processes::put(&dir, pid)
    }
}

fn give(dir: &CgroupDir, uid: u32) -> Result<()> {
    let listed = std::fs::read_to_string(FILES);
    let listed = listed.unwrap_or_else(|_| "cgroup.procs\ncgroup.subtree_control\ncgroup.threads".to_owned());
    dir.give(None, uid)?;
    for file in listed.lines().filter(|file| !file.is_empty() && !file.contains('/')) {
        match dir.give(Some(file), uid) {
            // The list is of all controllers, those that are not on included.
            Err(error) if is_missing(&error) => {}
            other => other.map_err(Error::from)?,
        }
    }
    Ok(())
}
