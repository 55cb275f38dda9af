//! `events`: counters at intervals, and every time the container ran out of memory.

use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rung_sys::pidfd;
use serde::Serialize;

use crate::cgroups::stats::Stats;
use crate::cgroups::{Cgroup, OomWatch};
use crate::cli::EventsArgs;
use crate::container::id::ContainerId;
use crate::container::{Container, Settings};
use crate::error::{Error, Kind, Result};
use crate::launch::cgroup_error;
use crate::log;

#[derive(Serialize)]
struct Event<'a, T> {
    #[serde(rename = "type")]
    kind: &'a str,
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<T>,
}

pub(super) fn run(settings: &Settings, args: &EventsArgs) -> Result<()> {
    let interval = duration(&args.interval)?;
    let container = Container::load(&settings.store, &ContainerId::parse(&args.id)?)?;
    if !container.is_alive() {
        return Err(Error::new(Kind::NotRunning, format!("container with id {} is not running", container.record.id)));
    }
    if args.stats {
        return print_stats(&container, stats(&container)?);
    }
    let process = pidfd::open(container.pid())
        .map_err(|_| Error::new(Kind::NotRunning, format!("container with id {} is not running", args.id)))?;
    let mut memory = container.cgroup().watch_oom().map_err(cgroup_error)?;
    // An interval that no clock has is none.
    let mut next = Instant::now().checked_add(interval);
    loop {
        let mut watched = vec![PollFd::new(process.as_fd(), PollFlags::POLLIN)];
        watched.extend(memory.as_ref().map(|watch| PollFd::new(watch.descriptor(), watch.flags())));
        let left = next.map(|next| next.saturating_duration_since(Instant::now()).as_millis().saturating_add(1));
        let timeout = left.map_or(PollTimeout::NONE, |left| PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX));
        match poll(&mut watched, timeout) {
            Err(Errno::EINTR) => continue,
            other => other?,
        };
        let woken = |index: usize| watched.get(index).and_then(PollFd::any).unwrap_or(false);
        let (ended, short) = (woken(0), woken(1));
        if short && happened(memory.as_mut())? {
            print(&Event::<()> { kind: "oom", id: &container.record.id, data: None })?;
        }
        if ended {
            return Ok(());
        }
        if next.is_some_and(|next| Instant::now() >= next) {
            // The cgroup may be gone a moment before the end is seen.
            match stats(&container) {
                Ok(stats) => print_stats(&container, stats)?,
                Err(error) => log::warning(&error.to_string()),
            }
            next = next.and_then(|next| next.checked_add(interval));
        }
    }
}

fn happened(memory: Option<&mut OomWatch>) -> Result<bool> {
    memory.map_or(Ok(false), |watch| watch.happened().map_err(cgroup_error))
}

fn stats(container: &Container) -> Result<Stats> {
    let mut stats = container.cgroup().stats().map_err(cgroup_error)?;
    if stats.cpuset.cpus.is_empty()
        && let Ok(own) = Cgroup::of(container.pid()).and_then(|cgroup| cgroup.stats())
    {
        // On v1 none may have been made for it: it has that of whoever made the container.
        stats.cpuset = own.cpuset;
    }
    let record = &container.record;
    if !record.intel_rdt_path.is_empty() {
        stats.intel_rdt = crate::resctrl::stats::read(Path::new(&record.intel_rdt_path), &record.id);
    }
    Ok(stats)
}

fn print_stats(container: &Container, stats: Stats) -> Result<()> {
    print(&Event { kind: "stats", id: &container.record.id, data: Some(stats) })
}

fn print<T: Serialize>(event: &Event<'_, T>) -> Result<()> {
    let text = serde_json::to_string(event).map_err(|error| Error::invalid(error.to_string()))?;
    super::print(&(text + "\n"))
}

/// `5s`, `1.5s`, `100ms`, `1m30s`, as Go reads them: more than nothing.
fn duration(text: &str) -> Result<Duration> {
    let invalid = || Error::invalid(format!("duration interval must be greater than 0: {text:?}"));
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(invalid)?;
        let number: f64 = rest[..digits].parse().map_err(|_| invalid())?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let seconds = match &rest[..unit] {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(invalid()),
        };
        let one = Duration::try_from_secs_f64(number * seconds).map_err(|_| invalid())?;
        total = total.saturating_add(one);
        rest = &rest[unit..];
    }
    if total.is_zero() { Err(invalid()) } else { Ok(total) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(duration("1m30s").expect("valid"), Duration::from_secs(90));
        assert_eq!(duration("100ms").expect("valid"), Duration::from_millis(100));
        assert_eq!(duration("+1.5s").expect("valid"), Duration::from_millis(1500));
        assert_eq!(duration("250µs").expect("valid"), Duration::from_micros(250));
        for bad in ["", "1.2.3s", "99999999999999999999h", "0s", "5", "5x", "s", "-1s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
