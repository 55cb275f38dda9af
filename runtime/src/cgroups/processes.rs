//! The processes of a cgroup: putting in, listing, freezing, killing; and removing what is empty.

use std::collections::BTreeSet;
use std::os::fd::AsFd as _;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rung_sys::cgroupfs::{self, CgroupDir, Watched, is_denied, is_missing};

use super::error::{Error, Result};
use super::{Cgroup, Place};

/// How long the kernel may take to stop every process. One that sleeps uninterruptibly (a hung NFS mount) holds up v1.
const FREEZE_DEADLINE: Duration = Duration::from_secs(10);

/// Puts a process into one cgroup.
pub(super) fn put(dir: &CgroupDir, pid: Pid) -> Result<()> {
    let mut tries = 0;
    loop {
        match dir.write("cgroup.procs", &pid.to_string()) {
            Ok(()) => return Ok(()),
            // The process is being forked or its cgroup is being switched to threaded: it passes within moments.
            Err(e) if e.is(&[libc::EINVAL]) && tries < 5 => {
                tries += 1;
                sleep(Duration::from_millis(2));
            }
            Err(e) if e.is(&[libc::EBUSY]) => {
                return Err(Error::Occupied(format!(
                    "{e}: a cgroup that has limited cgroups below it cannot have processes of its own"
                )));
            }
            Err(e) => return Err(e.into()),
        }
    }
}

/// As [`put`]; a process that has ended meanwhile needs no cgroup.
pub(super) fn put_if_there(dir: &CgroupDir, pid: Pid) -> Result<()> {
    match put(dir, pid) {
        Err(Error::File(e)) if e.is(&[libc::ESRCH]) => Ok(()),
        other => other,
    }
}

/// All processes in and below a cgroup.
pub(super) fn pids_below(dir: &CgroupDir) -> Result<Vec<Pid>> {
    let mut found = Vec::new();
    dir.walk(&mut |dir| {
        match dir.procs() {
            Ok(pids) => found.extend(pids.into_iter().map(Pid::from_raw)),
            Err(e) if is_missing(&e) => {}
            Err(e) => return Err(e),
        }
        Ok(())
    })?;
    Ok(found)
}

/// Whether this cgroup is frozen or being frozen by its own switch. `false` where it has none.
pub(super) fn is_frozen(dir: &CgroupDir) -> Result<bool> {
    if let Some(state) = dir.read_optional("cgroup.freeze")? {
        return Ok(state.trim() == "1");
    }
    match dir.read_optional("freezer.state")?.as_deref().map(str::trim) {
        Some("FROZEN") => Ok(true),
        Some("FREEZING") => Ok(dir.read_optional("freezer.self_freezing")?.is_some_and(|own| own.trim() == "1")),
        _ => Ok(false),
    }
}

/// A cgroup that is frozen for a moment: it thaws when this is dropped, whatever happens in between.
#[derive(Debug)]
pub struct Frozen<'a> {
    place: &'a Place,
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        // It was opened to be frozen; when it cannot be thawed, it is gone.
        if let Ok(Some(dir)) = self.place.open() {
            let _ = thaw(&dir, self.place.hierarchy.is_v2());
        }
    }
}

fn freeze(dir: &CgroupDir, v2: bool) -> Result<()> {
    if v2 {
        dir.write("cgroup.freeze", "1")?;
        return wait_frozen_v2(dir);
    }
    let started = Instant::now();
    let mut pause = Duration::from_micros(50);
    while started.elapsed() < FREEZE_DEADLINE {
        // Written each time: a process forked while freezing is caught by the next write.
        dir.write("freezer.state", "FROZEN")?;
        if dir.read("freezer.state")?.trim() == "FROZEN" {
            return Ok(());
        }
        sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
    Err(not_frozen(dir))
}

fn wait_frozen_v2(dir: &CgroupDir) -> Result<()> {
    let started = Instant::now();
    let events = dir.watch("cgroup.events")?;
    loop {
        if cgroupfs::flat_value(&events.read()?, "frozen") == Some(1) {
            return Ok(());
        }
        let Some(left) = FREEZE_DEADLINE.checked_sub(started.elapsed()) else { return Err(not_frozen(dir)) };
        wait_event(&events, left.min(Duration::from_millis(200)));
    }
}

/// Waits for a change of an events file since it was read, or for `limit`.
fn wait_event(events: &Watched, limit: Duration) {
    let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::ZERO);
    let mut files = [PollFd::new(events.as_fd(), PollFlags::POLLPRI)];
    // A signal ends the wait early; the caller looks again.
    let _ = poll(&mut files, limit);
}

fn not_frozen(dir: &CgroupDir) -> Error {
    // A half-frozen container is worse than a running one.
    let _ = thaw(dir, dir.has("cgroup.freeze"));
    Error::Deadline {
        doing: format!("freeze {}", dir.path().display()),
        seconds: FREEZE_DEADLINE.as_secs(),
        hint: "; a process in it is in an uninterruptible sleep".into(),
    }
}

fn thaw(dir: &CgroupDir, v2: bool) -> Result<()> {
    let (file, value) = if v2 { ("cgroup.freeze", "0") } else { ("freezer.state", "THAWED") };
    Ok(dir.write(file, value)?)
}

fn send(pid: Pid, signal: Signal) -> Result<()> {
    // Zero stands for one of another process namespace. To the kernel it would be us and our group.
    if pid.as_raw() == 0 {
        return Ok(());
    }
    match kill(pid, signal) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(errno) => {
            let reason = rung_sys::error::describe(errno as i32);
            Err(Error::Occupied(format!("signal process {pid}: {reason}")))
        }
    }
}

/// Kills what is in and below a v2 cgroup by its own switch. That leaves alone whose first thread has ended, as the
/// signal is for that thread; so they are signalled as processes, until none has been forked meanwhile.
fn kill_below(dir: &CgroupDir) -> Result<()> {
    let mut signalled = BTreeSet::new();
    loop {
        dir.write("cgroup.kill", "1")?;
        let mut left = pids_below(dir)?;
        left.retain(|pid| signalled.insert(*pid));
        if left.is_empty() {
            return Ok(());
        }
        for pid in left {
            // Whom we may not signal the switch has reached, or the removal names.
            let _ = send(pid, Signal::SIGKILL);
        }
    }
}

impl Cgroup {
    /// The place whose switch freezes the container: the v1 freezer where there is one, as runc chooses.
    fn freezer(&self) -> Result<&Place> {
        let v1 = self.places.iter().find(|place| place.hierarchy.has("freezer"));
        v1.or_else(|| self.v2_place()).ok_or_else(|| Error::Host("the freezer controller is not available".into()))
    }

    fn v2_place(&self) -> Option<&Place> {
        self.places.iter().find(|place| place.hierarchy.is_v2())
    }

    /// Stops every process of the container where it is.
    ///
    /// # Errors
    /// When there is no freezer, the cgroup is gone, or a process cannot be stopped in time (it is thawed again then).
    pub fn freeze(&self) -> Result<()> {
        let place = self.freezer()?;
        freeze(&CgroupDir::open(&place.path)?, place.hierarchy.is_v2())
    }

    /// As [`Self::freeze`], for as long as the guard lives.
    ///
    /// # Errors
    /// As [`Self::freeze`].
    pub fn frozen(&self) -> Result<Frozen<'_>> {
        let guard = Frozen { place: self.freezer()? };
        self.freeze()?;
        Ok(guard)
    }

    /// Lets the processes of the container run again. One that is gone or has no freezer is not frozen.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn thaw(&self) -> Result<()> {
        let Ok(place) = self.freezer() else { return Ok(()) };
        match place.open()?.map(|dir| thaw(&dir, place.hierarchy.is_v2())) {
            Some(Err(e)) if !e.is_missing() => Err(e),
            _ => Ok(()),
        }
    }

    /// Whether the container is frozen. One that is gone is not.
    ///
    /// # Errors
    /// When the state cannot be read.
    pub fn is_frozen(&self) -> Result<bool> {
        let Ok(place) = self.freezer() else { return Ok(false) };
        place.open()?.map_or(Ok(false), |dir| is_frozen(&dir))
    }

    /// The place that is asked for the processes of the container.
    fn listed(&self) -> Option<&Place> {
        let preferred = ["devices", "freezer", "pids", "memory"];
        let v1 = preferred.iter().find_map(|name| self.places.iter().find(|place| place.hierarchy.has(name)));
        v1.or_else(|| self.v2_place()).or(self.places.first())
    }

    /// Removes the cgroup that [`Self::pids`] would read, if it is empty. A success shows in one call that there are no
    /// processes and will be none.
    pub fn remove_if_vacant(&self) -> bool {
        let ours = !self.foreign && self.managed.is_none();
        ours && self.listed().is_some_and(|place| cgroupfs::remove(&place.path).is_ok())
    }

    /// All processes of the container, in the runtime's pid namespace. None when it is gone.
    ///
    /// # Errors
    /// When a list cannot be read.
    pub fn pids(&self) -> Result<Vec<Pid>> {
        let Some(place) = self.listed() else { return Ok(Vec::new()) };
        let mut found = place.open()?.map_or_else(|| Ok(Vec::new()), |dir| pids_below(&dir))?;
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    /// The processes in any of the hierarchies: one that is being born is in some of them before it is in the others.
    #[must_use]
    pub fn pids_anywhere(&self) -> Vec<Pid> {
        let of = |place: &Place| place.open().ok().flatten().map(|dir| pids_below(&dir).unwrap_or_default());
        let mut found: Vec<Pid> = self.places.iter().filter_map(of).flatten().collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Kills every process of the container, also those that fork meanwhile, and leaves it thawed. After a
    /// [`Cgroup::create`] that failed there are none: what is there belongs to others.
    ///
    /// # Errors
    /// When the processes cannot be listed or signalled.
    pub fn kill(&self) -> Result<()> {
        if self.foreign {
            return Ok(());
        }
        if let Some(dir) = self.v2_place().map(Place::open).transpose()?.flatten() {
            match kill_below(&dir) {
                Ok(()) => return self.thaw(),
                // Before Linux 5.14, or not the owner, or threaded.
                Err(Error::File(e)) if is_missing(&e) || is_denied(&e) || e.is(&[libc::EOPNOTSUPP]) => {}
                Err(e) => return Err(e),
            }
        }
        self.signal_all(Signal::SIGKILL)
    }

    /// Signals every process of the container. Frozen meanwhile, so that none can escape by forking, and thawed again
    /// in any case: on v1 a frozen process does not even die.
    ///
    /// # Errors
    /// When the processes cannot be listed or signalled.
    pub fn signal_all(&self, signal: Signal) -> Result<()> {
        // A container that cannot be frozen can still be signalled.
        let guard = self.frozen();
        let mut outcome = Ok(());
        for pid in self.pids()? {
            if let Err(error) = send(pid, signal) {
                outcome = Err(error);
            }
        }
        drop(guard);
        if signal == Signal::SIGKILL {
            // It may have been paused by an earlier command.
            self.thaw()?;
        }
        outcome
    }

    /// Removes the cgroup and those below it. What is gone already is fine, so this works from the record of a dead
    /// container, and twice.
    ///
    /// # Errors
    /// When it still has processes at the deadline.
    pub fn remove(&self, deadline: Duration) -> Result<()> {
        if self.foreign {
            return Ok(());
        }
        let started = Instant::now();
        let mut outcome = self.stop_unit();
        for place in &self.places {
            // One that stays must not keep the others.
            let removed = remove_one(place, started, deadline);
            outcome = outcome.and(removed);
        }
        outcome
    }
}

fn remove_one(place: &Place, started: Instant, deadline: Duration) -> Result<()> {
    let mut pause = Duration::from_micros(500);
    loop {
        let refused = match cgroupfs::remove(&place.path) {
            Ok(()) => return Ok(()),
            Err(e) if e.is(&[libc::EBUSY]) => e,
            // A read-only cgroup file system (in a container) is not ours to clean.
            Err(e) if e.is(&[libc::EROFS]) => return Ok(()),
            Err(e) => return Err(e.into()),
        };
        let Some(dir) = place.open()? else { return Ok(()) };
        dir.remove_below()?;
        if cgroupfs::remove(&place.path).is_ok() {
            return Ok(());
        }
        let Some(left) = deadline.checked_sub(started.elapsed()) else {
            let pids = pids_below(&dir).unwrap_or_default();
            let hint = match &pids[..] {
                [] => format!(": {refused}"),
                [first, ..] => format!(": {} process(es) still in it, the first is {first}", pids.len()),
            };
            let doing = format!("remove cgroup {}", place.path.display());
            return Err(Error::Deadline { doing, seconds: deadline.as_secs(), hint });
        };
        // A last process that went before the read is not announced again: then the pause ends the wait.
        match dir.watch("cgroup.events").and_then(|events| events.read().map(|_| events)) {
            Ok(events) => wait_event(&events, left.min(pause)),
            Err(_) => sleep(left.min(pause)),
        }
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}
