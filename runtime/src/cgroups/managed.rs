//! What a cgroup needs beyond its files when systemd manages it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{AccessFlags, Pid, faccessat};
use oci_spec::runtime::LinuxResources;
use rung_sys::beneath::lexical;
use rung_sys::bpf::device::Rule;
use rung_sys::process::{CloneRequest, Forked, Target, clone, exit_now, set_parent_death_signal, wait};

use super::dbus::Value;
use super::error::{Error, Result};
use super::systemd::{self, Systemd, Unit};
use super::{Cgroup, Place, devices, locate};

/// Annotations that set properties of the unit.
const ANNOTATION: &str = "org.systemd.property.";

/// The unit of a cgroup, and what is needed to make it.
#[derive(Debug)]
pub(super) struct Managed {
    pub(super) unit: Unit,
    id: String,
    annotations: Vec<(String, String)>,
    placeholder: Option<Placeholder>,
    /// That one takes the only place of a cgroup that may have one process.
    pub(super) full: bool,
    /// The process the unit was made with, while the container's cgroup is one below the unit's: see [`Cgroup::below`].
    pub(super) passed_down: Option<Pid>,
    below: bool,
    /// This run has made the unit, or a record says that an earlier one did.
    ours: bool,
}

impl Cgroup {
    /// As [`Cgroup::plan`], for the systemd driver.
    pub(super) fn plan_managed(cgroups_path: Option<&Path>, id: &str, rootless: bool) -> Result<Self> {
        let unit = Unit::parse(cgroups_path, id, rootless)?;
        // The cgroups of the system's manager start at the root; where those of a user start, only his manager knows.
        let root = if unit.user { Systemd::connect(true)?.root()? } else { PathBuf::new() };
        let inner = lexical(&root).join(unit.path()?);
        let mut places = Vec::new();
        for hierarchy in locate::hierarchies()? {
            let path = hierarchy.mount.join(&inner);
            places.push(Place::new(hierarchy, path));
        }
        let managed = Managed::new(unit, id.to_owned(), false);
        Ok(Self { places, rootless, managed: Some(managed), ..Self::default() })
    }

    /// Makes the cgroup one of this name below that of the unit, where systemd manages it. Where it does not there is no
    /// unit that a cgroup could be below of.
    #[must_use]
    pub fn below(mut self, name: Option<&str>) -> Self {
        if let (Some(managed), Some(name)) = (&mut self.managed, name) {
            managed.below = true;
            for place in &mut self.places {
                place.path.push(name);
            }
        }
        self
    }

    /// Says what annotations ask of the unit: `org.systemd.property.<name>`. Means nothing without systemd.
    #[must_use]
    pub fn with_annotations(mut self, annotations: Option<&HashMap<String, String>>) -> Self {
        if let Some(managed) = &mut self.managed {
            let named = annotations.into_iter().flatten();
            let mut list: Vec<_> = named
                .filter_map(|(key, value)| Some((key.strip_prefix(ANNOTATION)?.to_owned(), value.clone())))
                .collect();
            list.sort();
            managed.annotations = list;
        }
        self
    }

    /// The unit that systemd manages the cgroup by, for the record.
    #[must_use]
    pub fn unit(&self) -> Option<&Unit> {
        self.managed.as_ref().map(|managed| &managed.unit)
    }

    /// Says that a cgroup from a record is managed by a unit, which [`Self::remove`] then stops.
    #[must_use]
    pub fn managed_by(mut self, unit: Option<Unit>) -> Self {
        self.managed = unit.map(|unit| {
            let id = unit.name.clone();
            Managed::new(unit, id, true)
        });
        self
    }

    /// Has systemd make the unit. A scope cannot be without a process: when none is given, one that does nothing
    /// stands in for the container's until [`Cgroup::settled`].
    pub(super) fn start_unit(
        &mut self,
        resources: Option<&LinuxResources>,
        rules: &[Rule],
        pid: Option<Pid>,
    ) -> Result<()> {
        let unified = self.is_unified();
        let Some(managed) = &mut self.managed else { return Ok(()) };
        let mut list = devices::properties(rules);
        list.extend(systemd::wanted(resources, unified, &managed.annotations)?);
        if pid.is_none() && !managed.unit.is_slice() {
            managed.placeholder = Some(Placeholder::new()?);
            // Whether `pids`, a file of the unified hierarchy or an annotation asks for that.
            let limit = list.iter().rfind(|(name, _)| name == "TasksMax").map(|(_, value)| value);
            managed.full = matches!(limit, Some(Value::U64(0 | 1)));
        }
        let pid = pid.or(managed.placeholder.as_ref().map(|placeholder| placeholder.0));
        Systemd::connect(managed.unit.user)?.start(&managed.unit, &managed.id, pid, &list)?;
        managed.ours = true;
        managed.passed_down = pid.filter(|_| managed.below);
        Ok(())
    }

    /// Whether only systemd may put a process in: its caller is outside of what the service manager of the user runs, as
    /// everybody is who has logged in. The kernel asks who owns the cgroup that is above both.
    #[must_use]
    pub fn is_out_of_reach(&self) -> bool {
        let [place] = &self.places[..] else { return false };
        if !place.hierarchy.is_v2() || !self.managed.as_ref().is_some_and(|managed| managed.unit.user) {
            return false;
        }
        let own = locate::hierarchies().ok().and_then(|list| list.into_iter().find(locate::Hierarchy::is_v2));
        let own = own.map(|own| own.mount.join(lexical(&own.own))).unwrap_or_default();
        let above: PathBuf = own.iter().zip(place.path.iter()).take_while(|(a, b)| a == b).map(|(a, _)| a).collect();
        let denied = faccessat(AT_FDCWD, &above.join("cgroup.procs"), AccessFlags::W_OK, AtFlags::AT_EACCESS);
        denied.is_err()
    }

    /// Has systemd put a process in.
    ///
    /// # Errors
    /// When there is no unit, or systemd refuses.
    pub fn attach(&self, pid: Pid) -> Result<()> {
        let (Some(managed), Some(place)) = (&self.managed, self.places.first()) else {
            return Err(Error::Systemd("attach a process: there is no unit".into()));
        };
        let below: PathBuf = place.path.iter().skip_while(|part| *part != managed.unit.name.as_str()).skip(1).collect();
        Systemd::connect(managed.unit.user)?.attach(&managed.unit, &below, pid)
    }

    /// Tells systemd about new limits.
    pub(super) fn update_unit(&self, resources: &LinuxResources) -> Result<()> {
        let Some(managed) = &self.managed else { return Ok(()) };
        let mut list: Vec<(String, Value)> = systemd::wanted(Some(resources), self.is_unified(), &[])?;
        // Of a unit that is there systemd refuses to change it; the file itself is written anyway.
        list.retain(|(name, _)| name != "OOMPolicy");
        Systemd::connect(managed.unit.user)?.set(&managed.unit, &list)
    }

    /// Has systemd forget the unit, unless it is another's. Its cgroup may be gone already, and systemd too.
    pub(super) fn stop_unit(&self) -> Result<()> {
        let Some(managed) = self.managed.as_ref().filter(|managed| managed.ours) else { return Ok(()) };
        let stopped = Systemd::connect(managed.unit.user).and_then(|mut systemd| systemd.stop(&managed.unit));
        // Without systemd the directories can still be removed, which is what matters.
        if self.places.iter().any(|place| place.path.is_dir()) { stopped } else { Ok(()) }
    }

    /// Says that the container's process is in: what held the cgroup open for it goes.
    pub fn settled(&mut self) {
        if let Some(managed) = &mut self.managed {
            managed.placeholder = None;
        }
    }
}

impl Managed {
    fn new(unit: Unit, id: String, ours: bool) -> Self {
        let (annotations, placeholder) = (Vec::new(), None);
        Self { unit, id, annotations, placeholder, full: false, passed_down: None, below: false, ours }
    }
}

/// A process that does nothing, and ends with the runtime.
#[derive(Debug)]
struct Placeholder(Pid);

impl Placeholder {
    fn new() -> Result<Self> {
        let failed = |e: rung_sys::Error| Error::Systemd(format!("make a process to start the scope with: {e}"));
        let maker = Pid::this();
        match clone(&CloneRequest::default()).map_err(failed)? {
            Forked::Parent { pid, .. } => Ok(Self(pid)),
            Forked::Child => {
                // A maker that ended before the wish is no parent any more.
                if set_parent_death_signal(Signal::SIGKILL as i32).is_err() || Pid::parent() != maker {
                    exit_now(1);
                }
                loop {
                    nix::unistd::pause();
                }
            }
        }
    }
}

impl Drop for Placeholder {
    fn drop(&mut self) {
        // It is our own child, so its number is not another's.
        let _ = kill(self.0, Signal::SIGKILL);
        let _ = wait(Target::Pid(self.0), true);
    }
}
