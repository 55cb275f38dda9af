//! New limits for what runs.

use std::path::PathBuf;

use nix::unistd::Pid;
use oci_spec::runtime::{LinuxMemory, LinuxResources};
use rung_sys::cgroupfs::CgroupDir;

use super::error::{Error, Result};
use super::locate::{self, Hierarchy};
use super::settings::Setting;
use super::{Cgroup, Place, processes};

impl Cgroup {
    /// Sets new limits. Device rules stay as they are; a v1 cgroup that was not needed before is made now, and the
    /// container's processes are put in.
    ///
    /// # Errors
    /// When a limit is invalid or refused; those before it are set then.
    pub fn apply(&mut self, resources: &LinuxResources) -> Result<()> {
        let settings = self.settings(resources)?;
        self.open_all()?;
        if let Some(memory) = resources.memory().filter(|m| m.check_before_update() == Some(true)) {
            self.check_usage(&memory)?;
        }
        self.update_unit(resources)?;
        self.make_missing(&settings)?;
        self.write(&settings)
    }

    pub(super) fn open_all(&mut self) -> Result<()> {
        for place in self.places.iter_mut().filter(|place| place.dir.is_none()) {
            place.dir = place.open()?;
        }
        Ok(())
    }

    /// Makes the v1 cgroups that `settings` need and that do not exist yet.
    fn make_missing(&mut self, settings: &[Setting]) -> Result<()> {
        let known: Vec<Hierarchy> = self.places.iter().map(|place| place.hierarchy.clone()).collect();
        if !self.is_unified() && settings.iter().any(|s| !known.iter().any(|h| h.has(&s.controller))) {
            self.add_unrecorded()?;
        }
        let pids = self.pids()?;
        let mut filled = Vec::new();
        for place in &mut self.places {
            if place.dir.is_some() || !settings.iter().any(|s| place.hierarchy.has(&s.controller)) {
                continue;
            }
            let (dir, made) = CgroupDir::create(&place.hierarchy.mount, &place.path)?;
            place.dir = Some(dir);
            place.made = made;
            place.prepare(settings)?;
            if let Some(dir) = &place.dir {
                for pid in &pids {
                    processes::put_if_there(dir, *pid)?;
                }
            }
            filled.push(place.path.clone());
        }
        self.put_the_rest(&filled, pids)
    }

    /// Puts what was forked meanwhile into the places too, until there is nothing new: who is forked by one that is in
    /// there is born in there.
    fn put_the_rest(&self, filled: &[PathBuf], mut known: Vec<Pid>) -> Result<()> {
        while !filled.is_empty() {
            let new: Vec<Pid> = self.pids()?.into_iter().filter(|pid| !known.contains(pid)).collect();
            if new.is_empty() {
                break;
            }
            for dir in self.places.iter().filter(|place| filled.contains(&place.path)).filter_map(|p| p.dir.as_ref()) {
                new.iter().try_for_each(|pid| processes::put_if_there(dir, *pid))?;
            }
            known.extend(new);
        }
        Ok(())
    }

    /// Adds the hierarchies that a record does not name, at the path the container has in the others.
    fn add_unrecorded(&mut self) -> Result<()> {
        let Some(model) = self.places.iter().find(|place| !place.hierarchy.is_v2()) else { return Ok(()) };
        let inner = model.path.strip_prefix(&model.hierarchy.mount).unwrap_or(&model.path).to_owned();
        for hierarchy in locate::hierarchies()? {
            let known = |place: &Place| {
                place.hierarchy.is_v2() == hierarchy.is_v2()
                    && hierarchy.controllers.iter().all(|name| place.hierarchy.has(name))
            };
            if !self.places.iter().any(known) {
                let path = hierarchy.mount.join(&inner);
                self.places.push(Place::new(hierarchy, path));
            }
        }
        Ok(())
    }

    /// Refuses limits that would kill at once (`checkBeforeUpdate`).
    fn check_usage(&self, memory: &LinuxMemory) -> Result<()> {
        let limits = [("memory+swap", "swap", memory.swap()), ("memory", "limit", memory.limit())];
        for dir in self.places.iter().filter_map(|place| place.dir.as_ref()) {
            for file in ["memory.current", "memory.usage_in_bytes"] {
                let read = dir.read_optional(file)?;
                let Some(usage) = read.as_deref().and_then(rung_sys::cgroupfs::single) else { continue };
                for (what, field, limit) in limits {
                    let Some(limit) = limit.and_then(|limit| u64::try_from(limit).ok()) else { continue };
                    if limit > 0 && limit <= usage {
                        let reason = format!("rejecting {what} limit {limit} <= usage {usage}");
                        return Err(Error::invalid(format!("linux.resources.memory.{field}"), reason));
                    }
                }
            }
        }
        Ok(())
    }
}
