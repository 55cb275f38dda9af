//! Making a cgroup: its directories, device rules and limits.

use nix::unistd::Pid;
use oci_spec::runtime::LinuxResources;
use rung_sys::bpf::device::Rule;
use rung_sys::cgroupfs::{CgroupDir, is_denied};

use super::error::{Error, Result};
use super::settings::{self, Setting};
use super::{Cgroup, Entry, Place, apply, devices, legacy, processes, properties, unified};
use crate::log;

/// How often a cgroup that somebody removes while it is prepared is made again.
const RENEWALS: usize = 5;

/// What is asked of a cgroup, in the form in which it is written.
#[derive(Debug)]
pub struct Wanted {
    settings: Vec<Setting>,
    rules: Vec<Rule>,
}

impl Cgroup {
    /// Makes the cgroup with its device rules and limits, and puts `pid` in, if one is given. When a step fails, what
    /// was made is removed.
    ///
    /// # Errors
    /// When a limit is invalid or refused, the cgroup is occupied by processes, or the caller lacks permission.
    pub fn create(&mut self, resources: Option<&LinuxResources>, pid: Option<Pid>) -> Result<()> {
        let wanted = self.begin(resources, pid)?;
        let outcome = self.finish(&wanted).and_then(|()| pid.map_or(Ok(()), |pid| self.join(pid)));
        self.or_undo(outcome)
    }

    /// The part of [`Self::create`] that a process needs to be born: what [`Self::clone_into`] then names. All
    /// directories where systemd makes them, or where an ordinary user may find that some cannot be made.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub fn begin(&mut self, resources: Option<&LinuxResources>, pid: Option<Pid>) -> Result<Wanted> {
        let outcome = self.make_first(resources, pid);
        self.or_undo(outcome)
    }

    /// The rest, for which the process waits before it goes on, and its way in (see [`Self::entry`]). When it fails, what
    /// was made stays until it is removed with the process; what was not belongs to others and is forgotten.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub fn complete(&mut self, wanted: &Wanted, cloned_into: bool) -> Result<Entry> {
        let mut outcome = self.finish(wanted).and_then(|()| self.entry(cloned_into));
        for _ in 0..RENEWALS {
            let Err(error) = &outcome else { break };
            // One that could not even be made lacks the one above it.
            let missing = error.is_missing();
            if !(self.plan_again() || missing) {
                break;
            }
            outcome = self.finish(wanted).and_then(|()| self.entry(cloned_into));
        }
        if outcome.is_err() {
            self.places.retain(|place| place.made);
        }
        outcome
    }

    /// Makes again what somebody has removed since [`Self::complete`]: systemd, on a host with v1, takes away any cgroup
    /// that is empty when it looks.
    ///
    /// # Errors
    /// As [`Self::create`], and when nothing was removed.
    pub fn renew(&mut self, wanted: &Wanted) -> Result<Entry> {
        if !self.plan_again() {
            return Err(Error::Host("it was removed, and is there".into()));
        }
        // Where the process is already it stays.
        self.complete(wanted, false)
    }

    /// Plans the v1 cgroups again that are not there any more. Whether there are such.
    fn plan_again(&mut self) -> bool {
        let of_systemd = |place: &Place| self.managed.is_some() && place.hierarchy.has("name=systemd");
        let mut found = false;
        for place in self.places.iter_mut().filter(|place| !place.hierarchy.is_v2() && !of_systemd(place)) {
            if place.dir.is_some() && matches!(place.open(), Ok(None)) {
                (place.dir, place.made, place.planned) = (None, false, true);
                found = true;
            }
        }
        found
    }

    fn or_undo<T>(&mut self, outcome: Result<T>) -> Result<T> {
        if outcome.is_err() {
            self.undo();
            self.foreign = true;
        }
        outcome
    }

    fn make_first(&mut self, resources: Option<&LinuxResources>, pid: Option<Pid>) -> Result<Wanted> {
        let settings = resources.map(|wanted| self.settings(wanted)).transpose()?.unwrap_or_default();
        let rules = devices::rules(resources.and_then(|wanted| wanted.devices().as_deref()))?;
        let managed = self.managed.is_some();
        if managed {
            // Before the unit is made: the process that systemd puts in is the container's own.
            for place in &mut self.places {
                place.dir = place.open()?;
                place.require_vacant()?;
                place.dir = None;
            }
        }
        self.start_unit(resources, &rules, pid)?;
        for place in &mut self.places {
            let limited = settings.iter().any(|setting| place.hierarchy.has(&setting.controller));
            place.planned = limited || self.everywhere || !place.on_demand();
        }
        let wanted = Wanted { settings, rules };
        let all = managed || self.rootless;
        self.make(&wanted, |place| all || place.hierarchy.is_v2())?;
        Ok(wanted)
    }

    /// Makes those of the planned directories that are `due`.
    fn make(&mut self, wanted: &Wanted, due: impl Fn(&Place) -> bool) -> Result<()> {
        let lenient = self.lenient && wanted.settings.is_empty();
        let passed_down = self.managed.as_ref().and_then(|managed| managed.passed_down);
        for place in self.places.iter_mut().filter(|place| place.planned && due(place)) {
            match CgroupDir::create(&place.hierarchy.mount, &place.path) {
                Ok((dir, made)) => {
                    place.dir = Some(dir);
                    place.made = made;
                    place.planned = false;
                }
                Err(e) if lenient && is_denied(&e) => {
                    place.planned = false;
                    continue;
                }
                Err(e) if self.lenient && is_denied(&e) => return Err(Error::Rootless(e)),
                Err(e) => return Err(e.into()),
            }
            if self.managed.is_none() {
                place.require_vacant()?;
            }
            if let (Some(pid), Some(dir), true) = (passed_down, &place.dir, place.hierarchy.is_v2()) {
                // While the unit's own cgroup has a process, none below it can have controllers.
                processes::put(dir, pid)?;
            }
            place.prepare(&wanted.settings)?;
        }
        Ok(())
    }

    fn finish(&mut self, wanted: &Wanted) -> Result<()> {
        self.make(wanted, |_| true)?;
        let hybrid = !self.is_unified();
        for place in &self.places {
            match place.restrict_devices(&wanted.rules, hybrid) {
                // An ordinary user may not load the program, but can neither make a node of a device, nor open one
                // that he may not open anyway.
                Err(e) if self.rootless && e.is_denied() => {}
                other => other?,
            }
        }
        self.write(&wanted.settings)
    }

    pub(super) fn settings(&self, resources: &LinuxResources) -> Result<Vec<Setting>> {
        let rounded = self.managed.is_some().then(|| properties::rounded(resources));
        let resources = rounded.as_ref().unwrap_or(resources);
        if !self.is_unified() {
            return legacy::settings(resources);
        }
        if settings::is_idle(resources) && settings::has_weight(resources) {
            log::warning("unable to apply both cpu.weight and cpu.idle, ignoring cpu.weight");
        }
        settings::unified(resources)
    }

    /// Writes every setting where it belongs.
    pub(super) fn write(&self, settings: &[Setting]) -> Result<()> {
        let mut written = 0;
        for place in &self.places {
            let mine: Vec<&Setting> = settings.iter().filter(|s| place.holds(s)).collect();
            if mine.is_empty() {
                continue;
            }
            let Some(dir) = &place.dir else { continue };
            apply::write_all(dir, &mine)?;
            written += mine.len();
        }
        if written == settings.len() {
            return Ok(());
        }
        let missing = settings.iter().find(|s| !self.places.iter().any(|p| p.dir.is_some() && p.holds(s)));
        missing.map_or(Ok(()), |setting| {
            let reason = format!("this host has no cgroup controller {}", setting.controller);
            Err(Error::invalid(format!("linux.resources ({})", setting.file), reason))
        })
    }

    fn undo(&mut self) {
        self.settled();
        let _ = self.stop_unit();
        for place in self.places.iter_mut().filter(|place| place.made) {
            place.dir = None;
            place.made = false;
            // Only the failure that led here is worth reporting; a leftover directory is found by `delete`.
            let _ = rung_sys::cgroupfs::remove(&place.path);
        }
    }
}

impl Place {
    fn holds(&self, setting: &Setting) -> bool {
        self.hierarchy.is_v2_of(setting) || self.hierarchy.has(&setting.controller)
    }

    /// A cgroup that was there already must be empty and not frozen: processes in it would share the limits and die
    /// with the container, and in a frozen one the container would never start.
    fn require_vacant(&self) -> Result<()> {
        let Some(dir) = self.dir.as_ref().filter(|_| !self.made) else { return Ok(()) };
        let found = processes::pids_below(dir)?;
        if !found.is_empty() {
            let (path, n) = (self.path.display(), found.len());
            return Err(Error::Occupied(format!(
                "container's cgroup is not empty: {n} process(es) found in {path}; choose another cgroupsPath"
            )));
        }
        if processes::is_frozen(dir)? {
            let path = self.path.display();
            return Err(Error::Occupied(format!("container's cgroup unexpectedly frozen: {path}; thaw or remove it")));
        }
        Ok(())
    }

    /// What has to be done before limits can be written or a process can get in.
    pub(super) fn prepare(&self, settings: &[Setting]) -> Result<()> {
        let Some(dir) = &self.dir else { return Ok(()) };
        if self.hierarchy.is_v2() {
            return unified::enable_controllers(&self.hierarchy, dir, settings);
        }
        if self.hierarchy.has("cpuset") {
            legacy::inherit_cpuset(&self.hierarchy.mount, &self.path)?;
        }
        Ok(())
    }

    fn restrict_devices(&self, rules: &[Rule], hybrid: bool) -> Result<()> {
        let Some(dir) = &self.dir else { return Ok(()) };
        if self.hierarchy.has("devices") {
            for lines in devices::legacy_writes(rules)?.chunk_by(|one, next| one.0 == next.0) {
                dir.write_each(lines[0].0, lines.iter().map(|(_, value)| value.as_str()))?;
            }
        } else if self.hierarchy.is_v2() && !hybrid {
            unified::set_devices(dir, rules)?;
        }
        Ok(())
    }
}
