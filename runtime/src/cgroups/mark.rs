//! Whose a cgroup is, written on the cgroup itself: when all records of a container are lost, its processes are still found.
//!
//! The mark is an extended attribute. `trusted.` ones only root of the host can set; an ordinary user has `user.` ones,
//! which his containers can set too on cgroups that are delegated to them, so of those nothing but the place counts.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rung_sys::cgroupfs::CgroupDir;
use rung_sys::xattr;

use super::{Cgroup, Place, Result, locate};

const TRUSTED: &[u8] = b"trusted.rung.container";
const USER: &[u8] = b"user.rung.container";

impl Cgroup {
    /// Writes on one of the cgroups which state directory theirs is, and where the others are. A kernel that takes no
    /// such mark leaves the records as the only ones who know.
    pub fn mark(&self, owner: &Path) {
        let Some((place, dir)) = self.marked_place().and_then(|place| Some((place, place.dir.as_ref()?))) else {
            return;
        };
        let mut text = owner.as_os_str().as_bytes().to_vec();
        for other in self.places.iter().filter(|other| other.dir.is_some() && other.path != place.path) {
            for name in &other.hierarchy.controllers {
                text.extend_from_slice(format!("\n{name}:").as_bytes());
                text.extend_from_slice(other.path.as_os_str().as_bytes());
            }
        }
        let set = |name, text: &[u8]| xattr::set(dir.as_fd(), OsStr::new(""), name, text);
        if set(TRUSTED, &text).is_err() {
            drop(set(USER, owner.as_os_str().as_bytes()));
        }
    }

    /// The one that is marked: v2, where the host has it, since it takes all kinds of attributes.
    fn marked_place(&self) -> Option<&Place> {
        self.places.iter().find(|place| place.hierarchy.is_v2()).or(self.places.first())
    }

    /// Looks through all cgroups of the host for the one with the mark of a state directory.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub fn find_marked(owner: &Path) -> Result<Option<Self>> {
        let hierarchies = locate::hierarchies()?;
        let Some(hierarchy) = hierarchies.iter().find(|one| one.is_v2()).or(hierarchies.first()) else {
            return Ok(None);
        };
        let mut found = None;
        CgroupDir::open(&hierarchy.mount)?.walk(&mut |dir| {
            for name in [TRUSTED, USER] {
                let mark = xattr::get(dir.as_fd(), OsStr::new(""), name).ok().flatten();
                if let Some(paths) = mark.and_then(|mark| read(&mark, owner)) {
                    let own = hierarchy.controllers.first().cloned().unwrap_or_default();
                    let others = paths.into_iter().filter(|_| name == TRUSTED);
                    found = Some(others.chain([(own, dir.path().to_owned())]).collect::<BTreeMap<_, _>>());
                }
            }
            Ok(())
        })?;
        Ok(found.map(|paths| Self::from_paths(&paths)))
    }
}

/// The other cgroups that a mark names, if it is the mark of `owner`.
fn read(mark: &[u8], owner: &Path) -> Option<Vec<(String, PathBuf)>> {
    let mut lines = mark.split(|byte| *byte == b'\n');
    (lines.next()? == owner.as_os_str().as_bytes()).then_some(())?;
    let named = lines.filter_map(|line| std::str::from_utf8(line).ok()?.split_once(':'));
    Some(named.map(|(name, path)| (name.to_owned(), PathBuf::from(path))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_read() {
        let mark = b"/run/rung/web\ncpu:/sys/fs/cgroup/cpu/web\nname=systemd:/sys/fs/cgroup/systemd/web";
        let paths = read(mark, Path::new("/run/rung/web")).unwrap();
        assert_eq!(paths[0], ("cpu".to_owned(), PathBuf::from("/sys/fs/cgroup/cpu/web")));
        assert_eq!(paths[1].0, "name=systemd");
        assert_eq!(read(mark, Path::new("/run/rung/we")), None);
        assert_eq!(read(b"/r/web", Path::new("/r/web")), Some(Vec::new()));
    }
}
