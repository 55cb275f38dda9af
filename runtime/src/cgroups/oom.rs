//! Being told when a container runs out of memory.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::poll::PollFlags;
use nix::sys::eventfd::{EfdFlags, EventFd};
use rung_sys::cgroupfs::{CgroupDir, Watched, flat_value, is_missing};

use super::Cgroup;
use super::error::Result;

/// A watch on the memory of a container.
#[derive(Debug)]
pub struct OomWatch {
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// v1: the kernel counts into a descriptor of its own.
    Counter { dir: CgroupDir, counter: EventFd },
    /// v2: the events file announces a change, and says how often it has happened.
    Events { file: Watched, seen: u64 },
}

impl Cgroup {
    /// Watches the memory of the container; `None` where it has no cgroup for it.
    ///
    /// # Errors
    /// When the kernel refuses the watch.
    pub fn watch_oom(&self) -> Result<Option<OomWatch>> {
        for place in &self.places {
            let v2 = self.is_unified();
            if !v2 && !place.hierarchy.has("memory") {
                continue;
            }
            let Some(dir) = place.open()? else { continue };
            if v2 {
                if !dir.has("memory.events") {
                    return Ok(None);
                }
                let file = dir.watch("memory.events")?;
                let mut watch = OomWatch { kind: Kind::Events { file, seen: 0 } };
                watch.happened()?;
                return Ok(Some(watch));
            }
            let control = dir.open_to_read("memory.oom_control")?;
            let counter = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
                .map_err(|errno| rung_sys::Error::new("eventfd", String::new(), errno as i32))?;
            let line = format!("{} {}", counter.as_fd().as_raw_fd(), control.as_raw_fd());
            dir.write("cgroup.event_control", &line)?;
            return Ok(Some(OomWatch { kind: Kind::Counter { dir, counter } }));
        }
        Ok(None)
    }
}

impl Cgroup {
    /// Whether a process of it was killed for want of memory.
    #[must_use]
    pub fn ran_out_of_memory(&self) -> bool {
        let files = ["memory.events", "memory.oom_control"];
        let dirs = self.places.iter().filter_map(|place| place.dir.as_ref());
        let mut texts =
            dirs.flat_map(|dir| files.iter().filter_map(move |file| dir.read_optional(file).ok().flatten()));
        texts.any(|text| flat_value(&text, "oom_kill").is_some_and(|count| count > 0))
    }
}

impl OomWatch {
    /// What to wait for, with [`Self::flags`].
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        match &self.kind {
            Kind::Counter { counter, .. } => counter.as_fd(),
            Kind::Events { file, .. } => file.as_fd(),
        }
    }

    /// The kind of readiness to wait for.
    #[must_use]
    pub const fn flags(&self) -> PollFlags {
        match &self.kind {
            Kind::Counter { .. } => PollFlags::POLLIN,
            Kind::Events { .. } => PollFlags::POLLPRI,
        }
    }

    /// Whether it has happened since the last call. On v1 the kernel also tells when the cgroup is removed; that is not
    /// taken for it.
    ///
    /// # Errors
    /// When the events cannot be read.
    pub fn happened(&mut self) -> Result<bool> {
        match &mut self.kind {
            Kind::Counter { dir, counter } => {
                Ok(counter.read().is_ok_and(|count| count > 0) && dir.has("cgroup.event_control"))
            }
            Kind::Events { file, seen } => {
                // Reading takes the announcement back.
                let text = match file.read() {
                    Err(error) if is_missing(&error) => return Ok(false),
                    other => other?,
                };
                let count = flat_value(&text, "oom_kill").unwrap_or(0);
                let more = count > *seen;
                *seen = count;
                Ok(more)
            }
        }
    }
}
