//! A cgroup and all that are below it.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;

use nix::fcntl::openat;
use nix::sys::stat::Mode;

use super::{CgroupDir, DIRECTORY, failed, is_missing};
use crate::Result;

impl CgroupDir {
    /// Visits this cgroup and those below it, however deep they are; ones that vanish meanwhile are passed over.
    ///
    /// # Errors
    /// When a cgroup cannot be opened or listed, and what `visit` answers.
    pub fn walk(&self, visit: &mut dyn FnMut(&Self) -> Result<()>) -> Result<()> {
        self.descend(visit, &mut |_, _| Ok(()))
    }

    /// Removes what is empty below this cgroup, deepest first. What is not empty yet stays, and what it lies in.
    ///
    /// # Errors
    /// When a cgroup cannot be opened, listed or removed.
    pub fn remove_below(&self) -> Result<()> {
        self.descend(&mut |_| Ok(()), &mut |above, name| match above.remove_child(name) {
            Err(error) if error.is(&[libc::EBUSY]) => Ok(()),
            other => other,
        })
    }

    /// Calls `enter` for this cgroup and each below it, and `leave` with what a cgroup lies in and its name after those
    /// below it. A container makes them as deep as it likes, so that there is one descriptor open and not one for each
    /// level: the way back is `..`, which always leads to the same place, for cgroups do not move.
    fn descend(
        &self,
        enter: &mut dyn FnMut(&Self) -> Result<()>,
        leave: &mut dyn FnMut(&Self, &OsStr) -> Result<()>,
    ) -> Result<()> {
        let names_in = |dir: &Self| match dir.children() {
            Err(error) if is_missing(&error) => Ok(Vec::new()),
            other => other,
        };
        enter(self)?;
        let mut pending = vec![names_in(self)?];
        let mut way: Vec<OsString> = Vec::new();
        let mut here = Self { fd: self.reopen(".")?, path: self.path.clone() };
        while let Some(names) = pending.last_mut() {
            if let Some(name) = names.pop() {
                match here.child(&name) {
                    Ok(child) => {
                        enter(&child)?;
                        pending.push(names_in(&child)?);
                        way.push(name);
                        here = child;
                    }
                    Err(error) if is_missing(&error) => {}
                    Err(error) => return Err(error),
                }
                continue;
            }
            pending.pop();
            if let Some(name) = way.pop() {
                let fd = here.reopen("..")?;
                here.fd = fd;
                here.path.pop();
                leave(&here, &name)?;
            }
        }
        Ok(())
    }

    fn reopen(&self, name: &str) -> Result<OwnedFd> {
        openat(&self.fd, name, DIRECTORY, Mode::empty()).map_err(|errno| failed("open", self.path.join(name), errno))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroupfs::remove;
    use crate::cgroupfs::tests::own_cgroup;
    use nix::sys::stat::mkdirat;

    #[test]
    fn cgroups_are_found_and_removed_however_deep_they_are() {
        let Some(dir) = own_cgroup("deep") else { return };
        let mut deepest = CgroupDir { fd: dir.reopen(".").unwrap(), path: dir.path.clone() };
        for _ in 0..80 {
            for name in ["a", "b"] {
                mkdirat(&deepest.fd, name, Mode::from_bits_truncate(0o755)).unwrap();
            }
            deepest = deepest.child(OsStr::new("a")).unwrap();
        }
        let mut found = 0;
        dir.walk(&mut |_| {
            found += 1;
            Ok(())
        })
        .unwrap();
        assert_eq!(found, 161);
        dir.remove_below().unwrap();
        assert!(dir.children().unwrap().is_empty());
        remove(dir.path()).unwrap();
    }
}
