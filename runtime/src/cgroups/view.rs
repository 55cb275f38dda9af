//! What a container sees of its cgroups: the directories to bind below its `/sys/fs/cgroup`.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use rung_sys::beneath::lexical;
use rung_sys::cgroupfs::{self, CgroupDir, is_missing};

use super::{Cgroup, Entry, Error, Result};

/// One hierarchy as a container sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// The name of the hierarchy's directory, such as `memory` or `cpu,cpuacct`; empty on a pure v2 host.
    pub name: String,
    /// Its v1 controllers; those that are not `name` itself become links to it.
    pub controllers: Vec<String>,
    /// The directory on the host that is the container's own: its cgroup where it has one, else the runtime's.
    pub directory: PathBuf,
    /// Where the whole hierarchy is mounted.
    pub mount: PathBuf,
}

/// Controllers that can distribute to threads, and so to processes beside cgroups.
pub(super) const THREADED: [&str; 4] = ["cpu", "cpuset", "perf_event", "pids"];

fn has_populated_child(path: &Path) -> bool {
    let children = std::fs::read_dir(path).into_iter().flatten().flatten();
    let populated = |child: std::fs::DirEntry| {
        let read = |file: &str| std::fs::read_to_string(child.path().join(file)).unwrap_or_default();
        read("cgroup.events").contains("populated 1") && read("cgroup.type").starts_with("domain")
    };
    children.filter(|child| child.file_type().is_ok_and(|kind| kind.is_dir())).any(populated)
}

impl Cgroup {
    /// Where the cgroups will be, by controller, whether they are made yet or not: for a record that is written first.
    #[must_use]
    pub fn planned_paths(&self) -> BTreeMap<String, PathBuf> {
        super::paths_of(self.places.iter())
    }

    /// All hierarchies, once the cgroups are made or about to be. Of those in which there is none, the runtime's own one.
    #[must_use]
    pub fn views(&self) -> Vec<View> {
        if self.absent {
            let unmade = Self::plan(None, "none", false, true);
            return unmade.map_or_else(|_| Vec::new(), |unmade| unmade.views());
        }
        let unified = self.is_unified();
        let view = |place: &super::Place| {
            let mount = place.hierarchy.mount.clone();
            let name = mount.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let directory = if place.dir.is_some() || place.planned {
                place.path.clone()
            } else {
                mount.join(place.hierarchy.own.strip_prefix("/").unwrap_or(&place.hierarchy.own))
            };
            View {
                name: if unified { String::new() } else { name },
                controllers: place.hierarchy.controllers.clone(),
                directory,
                mount,
            }
        };
        self.places.iter().map(view).collect()
    }
}

impl Cgroup {
    /// As [`Cgroup::views`], for cgroups that were made by an earlier run.
    #[must_use]
    pub fn existing_views(mut self) -> Vec<View> {
        for place in &mut self.places {
            // One that is gone is shown nowhere.
            place.dir = place.open().ok().flatten();
        }
        self.views()
    }

    /// As [`Cgroup::entry`], for cgroups that were made by an earlier run.
    ///
    /// # Errors
    /// When they are gone or may not be entered.
    pub fn open_entry(self) -> Result<Entry> {
        let mut entry = Entry::default();
        for place in &self.places {
            let opened = match place.hierarchy.is_v2() {
                true => CgroupDir::open(&place.path).and_then(|dir| {
                    entry.file_v2 = Some(dir.open_to_write(place.way_in())?);
                    entry.birthplace = Some(dir.into());
                    Ok(())
                }),
                false => cgroupfs::open_to_write(&place.path, place.way_in()).map(|file| entry.files.push(file)),
            };
            match opened {
                Err(error) if !is_missing(&error) => return Err(error.into()),
                _ => {}
            }
        }
        if entry.descriptors().is_empty() && !self.places.is_empty() {
            return Err(self.places[0].gone());
        }
        Ok(entry)
    }

    /// Whether there is no place that this could be.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        self.places.is_empty()
    }

    /// Whether this v2 cgroup has handed its controllers down so that it can have no processes of its own. Those that
    /// count threads may be handed down beside processes, as long as no cgroup below has processes.
    #[must_use]
    pub fn is_divided(&self) -> bool {
        let divided = |place: &super::Place| -> Option<bool> {
            let dir = place.open().ok().flatten()?;
            let list = dir.read_optional("cgroup.subtree_control").ok().flatten()?;
            let mut names = list.split_ascii_whitespace().peekable();
            if names.peek().is_none() {
                return Some(false);
            }
            Some(names.any(|name| !THREADED.contains(&name)) || has_populated_child(&place.path))
        };
        self.is_unified() && self.places.iter().any(|place| divided(place) == Some(true))
    }

    /// The cgroups below this one: one path for all, or paths for controllers, `controller,…:path`.
    ///
    /// # Errors
    /// When a path leads out of the container's cgroup or does not exist, or when it is not clear whose it is.
    pub fn sub_cgroups(mut self, wishes: &[String]) -> Result<Self> {
        let mut named = Vec::new();
        for wish in wishes {
            let refuse = |reason: String| Error::invalid(format!("invalid --cgroup argument: {wish}"), reason);
            let (controllers, path): (Vec<&str>, _) = match wish.split_once(':') {
                Some((controllers, path)) => (controllers.split(',').collect(), path),
                None if wishes.len() > 1 => return Err(refuse("missing <controller>: prefix".to_owned())),
                None => (Vec::new(), wish.as_str()),
            };
            for controller in &controllers {
                if controller.is_empty() {
                    return Err(refuse("empty <controller> prefix".to_owned()));
                }
                if named.contains(controller) {
                    return Err(refuse(format!("controller {controller} specified multiple times")));
                }
                named.push(controller);
            }
            let inner = lexical(Path::new(path));
            if Path::new(path).components().any(|part| part == Component::ParentDir) {
                return Err(refuse(format!("bad sub cgroup path: {path}")));
            }
            if let Some(unknown) = controllers.iter().find(|name| !self.places.iter().any(|p| p.hierarchy.has(name))) {
                return Err(refuse(format!("unknown controller {unknown} in SubCgroupPaths")));
            }
            for place in &mut self.places {
                if controllers.is_empty() || controllers.iter().any(|name| place.hierarchy.has(name)) {
                    place.path = place.path.join(&inner);
                }
            }
        }
        for place in &self.places {
            if !place.path.is_dir() {
                let reason = format!("adding pid to cgroups: {}: no such file or directory", place.path.display());
                return Err(Error::invalid("--cgroup", reason));
            }
        }
        Ok(self)
    }
}
