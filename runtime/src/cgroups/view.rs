//! What a container sees of its cgroups: the directories to bind below its `/sys/fs/cgroup`.

use std::path::PathBuf;

use super::Cgroup;

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

impl Cgroup {
    /// All hierarchies, once the cgroups are made.
    #[must_use]
    pub fn views(&self) -> Vec<View> {
        let unified = self.is_unified();
        let view = |place: &super::Place| {
            let mount = place.hierarchy.mount.clone();
            let name = mount.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let directory = if place.dir.is_some() { place.path.clone() } else { mount.join(&place.hierarchy.own) };
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
