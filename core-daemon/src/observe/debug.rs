//! What people who look for a fault are told: under the paths at which programs of containerd's clients look for it, and only
//! as far as a program has it that is not written in Go.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::StatusCode;
use serde_json::json;

use super::Observer;
use crate::config::Config;

/// Calls that are listed; more are only counted.
const MAX_LISTED: usize = 1024;
/// Longest path of a call that is listed, in bytes: clients choose it.
const MAX_PATH: usize = 200;

/// The calls that have not ended.
pub(super) struct UnderWay {
    since: Instant,
    calls: Mutex<Calls>,
}

#[derive(Default)]
struct Calls {
    /// How many have been noted.
    count: u64,
    /// How many of them have not ended.
    alive: u64,
    /// By number, with their beginning.
    listed: BTreeMap<u64, (String, Instant)>,
}

impl UnderWay {
    pub(super) fn new() -> Self {
        Self { since: Instant::now(), calls: Mutex::default() }
    }

    /// Notes a call, and answers with its number for [`UnderWay::ended`].
    pub(super) fn begun(&self, path: &str) -> u64 {
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        calls.count += 1;
        calls.alive += 1;
        let number = calls.count;
        if calls.listed.len() < MAX_LISTED {
            calls.listed.insert(number, (path.chars().take(MAX_PATH).collect(), Instant::now()));
        }
        number
    }

    /// Notes the end of a call, once.
    pub(super) fn ended(&self, number: u64) {
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        calls.alive = calls.alive.saturating_sub(1);
        calls.listed.remove(&number);
    }

    /// How many are under way.
    fn alive(&self) -> u64 {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).alive
    }

    /// How many are under way, and of those that are listed what they are and for how long, the oldest first.
    fn list(&self) -> (u64, Vec<(String, Duration)>) {
        let calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        let listed = calls.listed.values().map(|(path, begun)| (path.clone(), begun.elapsed())).collect();
        (calls.alive, listed)
    }
}

/// The answer for a path: what it is of, and the text. It reads a few files of the kernel's.
pub fn answer(observer: &Observer, in_force: &Config, path: &str) -> (StatusCode, &'static str, String) {
    let text = |text| (StatusCode::OK, "text/plain; charset=utf-8", text);
    match path {
        "/debug/vars" => (StatusCode::OK, "application/json; charset=utf-8", vars(observer)),
        "/debug/config" => match in_force.to_commented_toml() {
            Ok(config) => text(config),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, "text/plain; charset=utf-8", error.to_string()),
        },
        "/debug/pprof" | "/debug/pprof/" => text(INDEX.to_owned()),
        "/debug/pprof/cmdline" => text(command_line().join("\0")),
        "/debug/pprof/goroutine" => text(dump(observer)),
        path if path.starts_with("/debug/pprof/") => {
            let none = format!("gantryd is not written in Go and has no such profile\n{INDEX}");
            (StatusCode::NOT_IMPLEMENTED, "text/plain; charset=utf-8", none)
        }
        _ => (StatusCode::NOT_FOUND, "text/plain; charset=utf-8", format!("not found\n{INDEX}")),
    }
}

const INDEX: &str = "/debug/config: the configuration in force\n\
    /debug/vars: counters of this process\n\
    /debug/pprof/goroutine: calls under way, and what the threads wait for\n\
    /debug/pprof/cmdline: the command line\n";

/// The daemon's arguments, which may be anything.
fn command_line() -> Vec<String> {
    std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect()
}

fn vars(observer: &Observer) -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let of = |key: &str| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    };
    let (uptime, under_way) = match &observer.under_way {
        Some(calls) => (calls.since.elapsed().as_secs(), calls.alive()),
        None => (0, 0),
    };
    let runtime = tokio::runtime::Handle::current().metrics();
    let document = json!({
        "cmdline": command_line(),
        "version": crate::VERSION,
        "uptime_seconds": uptime,
        "calls": {"begun": observer.calls(), "under_way": under_way},
        "memory": {"resident_bytes": of("VmRSS") * 1024, "most_resident_bytes": of("VmHWM") * 1024,
                   "virtual_bytes": of("VmSize") * 1024, "data_bytes": of("VmData") * 1024},
        "threads": of("Threads"),
        "open_files": std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count),
        "tasks": {"alive": runtime.num_alive_tasks(), "queued": runtime.global_queue_depth(),
                  "workers": runtime.num_workers()},
    });
    format!("{document:#}\n")
}

/// Calls and threads. What a call waits for inside of the daemon is not known to it: a debugger shows that.
fn dump(observer: &Observer) -> String {
    let mut out = String::new();
    let (alive, calls) = observer.under_way.as_ref().map(|calls| calls.list()).unwrap_or_default();
    // Writing to a string does not fail.
    let _ = writeln!(out, "{alive} calls under way, {} listed", calls.len());
    for (path, age) in calls {
        let _ = writeln!(out, "{:.3}s {path:?}", age.as_secs_f64());
    }
    let threads = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten().map(|entry| entry.path());
    let threads: Vec<_> = threads.collect();
    let _ = writeln!(out, "\n{} threads", threads.len());
    for thread in threads {
        let read = |name: &str| std::fs::read_to_string(thread.join(name)).unwrap_or_default();
        let status = read("status");
        let state = status.lines().find_map(|line| line.strip_prefix("State:")).unwrap_or_default().trim();
        let number = thread.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let _ = writeln!(out, "\nthread {number} {:?} [{state}]", read("comm").trim());
        read("stack").lines().for_each(|line| {
            let _ = writeln!(out, "\t{line}");
        });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_listed_until_they_end() {
        let calls = UnderWay::new();
        let (first, second) = (calls.begun("/a"), calls.begun(&"é".repeat(2 * MAX_PATH)));
        let (_, listed) = calls.list();
        assert!(listed.len() == 2 && listed[0].0 == "/a" && listed[1].0.chars().count() == MAX_PATH);
        calls.ended(first);
        assert_eq!((calls.alive(), calls.list().1.len()), (1, 1));
        calls.ended(second);
        let all: Vec<u64> = (0..2 * MAX_LISTED).map(|_| calls.begun("/b")).collect();
        assert_eq!((calls.alive(), calls.list().1.len()), (2 * MAX_LISTED as u64, MAX_LISTED));
        all.into_iter().for_each(|number| calls.ended(number));
        assert_eq!(calls.list(), (0, Vec::new()));
    }

    #[tokio::test]
    async fn what_there_is_not_is_said_to_be_missing() {
        let (observer, config) = (Observer::default(), Config::default());
        let (status, _, text) = answer(&observer, &config, "/debug/pprof/heap");
        assert!(status == StatusCode::NOT_IMPLEMENTED && text.contains("no such profile"), "{text}");
        assert_eq!(answer(&observer, &config, "/etc/passwd").0, StatusCode::NOT_FOUND);
        let (status, _, text) = answer(&observer, &config, "/debug/config");
        assert!(status == StatusCode::OK && text.contains("max_log_line = 16384"), "{text}");
        let (status, _, text) = answer(&observer, &config, "/debug/vars");
        let vars: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert!(status == StatusCode::OK && vars["memory"]["resident_bytes"].as_u64() > Some(0), "{vars}");
        assert!(answer(&observer, &config, "/debug/pprof/goroutine").2.contains("threads\n\nthread "));
    }
}
