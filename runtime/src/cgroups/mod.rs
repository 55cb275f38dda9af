//! The cgroup of a container: one handle for v1, v2, hybrid hosts and the systemd driver.
//!
//! ```text
//! plan      where it will be, decided once, before anything is made
//! create    directories, controllers, device rules, limits; undone as a whole when a step fails; in two steps (begin,
//!           complete) where the process is born in between
//! entry     what the child needs to put itself in; or `join`, by which another process is put in
//! apply     new limits for what runs                       freeze, thaw, kill, pids, stats
//! remove    directories, from what runs or from the record of what is dead
//! ```
//!
//! **How a process gets in matters more than anything else here.** Moving another process (`join`) makes the kernel
//! wait for a grace period in which no process of the host may fork: usually a tenth of a millisecond, but 15 ms for
//! one start in ten, on an idle machine; so does a process that writes `0` into the file of its v2 cgroup. One that is
//! cloned into that ([`Cgroup::clone_into`], [`Entry::take_birthplace`]) or that writes `0` into the `tasks` file of a
//! v1 cgroup ([`Entry::enter`]) never waits. `docs/decisions` has the numbers.

mod apply;
mod counters;
mod dbus;
mod delegate;
mod devices;
mod error;
mod gvariant;
mod legacy;
mod locate;
mod make;
mod managed;
mod mark;
mod oom;
mod processes;
mod properties;
mod settings;
pub mod stats;
mod systemd;
mod unified;
mod update;
mod view;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::Pid;
use rung_sys::beneath::lexical;
use rung_sys::cgroupfs::{CgroupDir, is_missing, memberships};

pub use error::{Error, Result};
pub use locate::is_unified;
pub use make::Wanted;
pub use oom::OomWatch;
pub use processes::Frozen;
pub use systemd::{Unit, session_of_ordinary_user};
pub use view::View;

use locate::Hierarchy;

/// Controllers whose v1 cgroup is made only when a limit of it is set or the container may make cgroups itself: nobody
/// looks at them for anything else, a cpuset is by far the most expensive cgroup to set up, and `update` can still make
/// them.
const ON_DEMAND: [&str; 5] = ["cpuset", "net_cls", "net_prio", "rdma", "misc"];

/// The place of a container in one hierarchy.
#[derive(Debug)]
struct Place {
    hierarchy: Hierarchy,
    path: PathBuf,
    /// Open once it is known to exist.
    dir: Option<CgroupDir>,
    /// Made by this handle, so to be removed when the rest fails.
    made: bool,
    /// Not made yet, and about to be.
    planned: bool,
}

/// The paths of `places` by controller, and under the empty name on v2.
fn paths_of<'a>(places: impl Iterator<Item = &'a Place>) -> BTreeMap<String, PathBuf> {
    let mut paths = BTreeMap::new();
    for place in places {
        for name in &place.hierarchy.controllers {
            paths.insert(name.clone(), place.path.clone());
        }
        if place.hierarchy.is_v2() {
            paths.insert(String::new(), place.path.clone());
        }
    }
    paths
}

impl Place {
    fn new(hierarchy: Hierarchy, path: PathBuf) -> Self {
        Self { hierarchy, path, dir: None, made: false, planned: false }
    }

    fn on_demand(&self) -> bool {
        let names = &self.hierarchy.controllers;
        !names.is_empty() && names.iter().all(|name| ON_DEMAND.contains(&name.as_str()))
    }

    /// The file through which a process of one thread puts itself in.
    fn way_in(&self) -> &'static str {
        if self.hierarchy.is_v2() { "cgroup.procs" } else { "tasks" }
    }

    fn gone(&self) -> Error {
        Error::Host(format!("cgroup {} is gone", self.path.display()))
    }

    /// The open directory, when the cgroup exists.
    fn open(&self) -> Result<Option<CgroupDir>> {
        match CgroupDir::open(&self.path) {
            Ok(dir) => Ok(Some(dir)),
            Err(e) if is_missing(&e) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }
}

/// The cgroup of a container.
#[derive(Debug, Default)]
pub struct Cgroup {
    places: Vec<Place>,
    /// The caller is an ordinary user.
    rootless: bool,
    /// Permission errors are fine as long as nothing was asked for that needs the permission.
    lenient: bool,
    /// The unit, with the systemd driver.
    managed: Option<managed::Managed>,
    /// Every hierarchy gets one, limited or not.
    everywhere: bool,
    /// It could not be made: what is at its place, if anything, is another's.
    foreign: bool,
    /// The container has none, and sees the runtime's own.
    absent: bool,
}

impl Cgroup {
    /// Decides where the cgroup of container `id` will be. Nothing is made yet.
    ///
    /// # Errors
    /// When the host has no cgroups, or `cgroups_path` is not one for the driver.
    pub fn plan(cgroups_path: Option<&Path>, id: &str, systemd: bool, rootless: bool) -> Result<Self> {
        if systemd {
            return Self::plan_managed(cgroups_path, id, rootless);
        }
        let mut places = Vec::new();
        for hierarchy in locate::hierarchies()? {
            let path = locate::container_dir(&hierarchy, cgroups_path, id)?;
            places.push(Place::new(hierarchy, path));
        }
        let lenient = rootless && cgroups_path.is_none();
        Ok(Self { places, rootless, lenient, ..Self::default() })
    }

    /// No cgroup: what is started stays where the runtime is.
    #[must_use]
    pub fn none() -> Self {
        Self { absent: true, ..Self::default() }
    }

    /// Says whether the container may write where its cgroups are shown. Of a hierarchy in which it had none it would be
    /// shown the runtime's own.
    #[must_use]
    pub fn shown_writable(mut self, writable: bool) -> Self {
        self.everywhere = writable;
        self
    }

    /// The handle of a cgroup that exists or existed, from the paths that [`Self::paths`] once said.
    #[must_use]
    pub fn from_paths(paths: &BTreeMap<String, PathBuf>) -> Self {
        let unified = is_unified();
        let mut places: Vec<Place> = Vec::new();
        for (name, path) in paths {
            let controllers = if name.is_empty() { Vec::new() } else { vec![name.clone()] };
            // Controllers that share a hierarchy share the directory.
            match places.iter_mut().find(|place| place.path == *path) {
                Some(place) => place.hierarchy.controllers.extend(controllers),
                None => {
                    let hierarchy = Hierarchy { controllers, mount: mount_of(path, unified), own: PathBuf::new() };
                    places.push(Place::new(hierarchy, path.clone()));
                }
            }
        }
        Self { places, ..Self::default() }
    }

    /// The handle of the cgroup that process `pid` is in.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn of(pid: Pid) -> Result<Self> {
        let table = locate::read_proc(&format!("/proc/{pid}/cgroup"))?;
        let memberships: Vec<_> = memberships(&table).collect();
        let mut places = Vec::new();
        for hierarchy in locate::hierarchies()? {
            if let Some((_, path)) = memberships.iter().find(|(names, _)| *names == hierarchy.controllers) {
                let path = hierarchy.mount.join(lexical(path));
                places.push(Place::new(hierarchy, path));
            }
        }
        Ok(Self { places, ..Self::default() })
    }

    /// Where the cgroup is: by v1 controller, and under the empty name on v2; the form of `cgroup_paths` in runc's
    /// record. What was not made (see `ON_DEMAND`) is left out.
    #[must_use]
    pub fn paths(&self) -> BTreeMap<String, PathBuf> {
        paths_of(self.places.iter().filter(|place| place.dir.is_some() || place.path.is_dir()))
    }

    /// Whether there is nothing but v2.
    #[must_use]
    pub fn is_unified(&self) -> bool {
        matches!(&self.places[..], [only] if only.hierarchy.is_v2())
    }

    /// Puts a process in, everywhere. A process that is being started should rather put itself in: [`Self::entry`].
    ///
    /// # Errors
    /// When the process or the cgroup is gone, or the kernel refuses.
    pub fn join(&self, pid: Pid) -> Result<()> {
        for place in &self.places {
            let opened;
            let dir = match &place.dir {
                Some(dir) => dir,
                None => match place.open()? {
                    Some(dir) => {
                        opened = dir;
                        &opened
                    }
                    None => continue,
                },
            };
            processes::put(dir, pid)?;
        }
        Ok(())
    }

    /// The v2 cgroup of any host that has one, to clone a process into (`CLONE_INTO_CGROUP`). On a hybrid host the v1
    /// ones remain, for [`Self::entry`]. None where the limit of processes counts clones: it lets in whoever enters.
    #[must_use]
    pub fn clone_into(&self) -> Option<BorrowedFd<'_>> {
        if self.managed.as_ref().is_some_and(|managed| managed.full) {
            return None;
        }
        self.places.iter().find(|place| place.hierarchy.is_v2())?.dir.as_ref().map(CgroupDir::as_fd)
    }

    /// What a new, still single-threaded process needs to put itself into all cgroups, or into the v1 ones only, when
    /// it is `cloned_into` the v2 one. It has to happen before the process gets its own cgroup namespace.
    ///
    /// # Errors
    /// When the cgroup is gone or may not be entered.
    pub fn entry(&self, cloned_into: bool) -> Result<Entry> {
        let mut files = Vec::new();
        for place in &self.places {
            let v2 = place.hierarchy.is_v2();
            if let Some(dir) = place.dir.as_ref().filter(|_| !(v2 && cloned_into)) {
                files.push(dir.open_to_write(place.way_in())?);
            }
        }
        Ok(Entry { files, ..Entry::default() })
    }
}

/// The descriptors through which a new process puts itself into its cgroups.
#[derive(Debug, Default)]
pub struct Entry {
    files: Vec<OwnedFd>,
    /// The file of a v2 cgroup that a process can be born in, too, and that cgroup.
    file_v2: Option<OwnedFd>,
    birthplace: Option<OwnedFd>,
}

impl Entry {
    /// The one whose [`Self::descriptors`] were passed to this process.
    #[must_use]
    pub fn received(files: Vec<OwnedFd>) -> Self {
        Self { files, ..Self::default() }
    }

    /// The v2 cgroup, whose directory leads to those of the host, for a process that is born in it. The kernel may refuse
    /// that, where it lets in who enters: over the limit of processes.
    pub fn take_birthplace(&mut self) -> Option<OwnedFd> {
        self.birthplace.take()
    }

    /// Puts the calling process in, which may be `born` in the v2 one. Allocates nothing unless it fails, and holds no
    /// lock of the kernel that others wait for, as long as the process has one thread and need not enter a v2 cgroup.
    ///
    /// # Errors
    /// The cgroup file and the errno of the first refusal.
    pub fn enter(&self, born: bool) -> std::result::Result<(), (PathBuf, Errno)> {
        for file in self.file_v2.iter().filter(|_| !born).chain(&self.files) {
            loop {
                match nix::unistd::write(file, b"0") {
                    Ok(_) => break,
                    Err(Errno::EINTR) => {}
                    Err(errno) => return Err((rung_sys::file::path_of(file).unwrap_or_default(), errno)),
                }
            }
        }
        Ok(())
    }

    /// The descriptors, for a caller that closes or passes them.
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.file_v2.iter().chain(&self.files).map(OwnedFd::as_fd).collect()
    }
}

/// The mount point a recorded path is below.
fn mount_of(path: &Path, unified: bool) -> PathBuf {
    let root = Path::new(locate::ROOT);
    let Ok(inner) = path.strip_prefix(root) else { return root.to_owned() };
    let first = inner.components().next().filter(|_| !unified);
    first.map_or_else(|| root.to_owned(), |first| root.join(first))
}

#[cfg(test)]
mod tests;
