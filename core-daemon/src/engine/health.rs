//! Whether a container is well: a command in it is run every now and then, as the image or whoever made it says.
//!
//! It begins as `starting`. A success makes it `healthy`; so many failures one after another make it `unhealthy`, where
//! those within the start period do not count.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use gantry_proto::gantry::engine::v1 as api;
use gantry_proto::stdio::FrameKind;
use rung_spec::image::Healthcheck;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::inspect::text;
use super::{Engine, Live};
use crate::error::{Error, Result};
use crate::signals::SIGKILL;
use crate::tasks::streams::{self, OUTPUT_AFTER_END, until_end};
use crate::tasks::{Exit, StartedExec};

const INTERVAL: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(30);
const START_INTERVAL: Duration = Duration::from_secs(5);
const RETRIES: u32 = 3;
/// The shortest pause between two probes.
const SHORTEST: Duration = Duration::from_millis(1);
/// Probes that are remembered, and bytes of the output of each.
const LOG: usize = 5;
const MAX_OUTPUT: usize = 4096;
/// The exit code shown for a probe that could not be run or was ended.
const NO_CODE: i64 = -1;

/// What is run, and how often.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Check {
    /// `CMD` and the words of a command, or `CMD-SHELL` and a line for the shell.
    test: Vec<String>,
    interval: Duration,
    timeout: Duration,
    start_period: Duration,
    start_interval: Duration,
    retries: u32,
}

impl Check {
    /// The request's check, completed by the image's; `None` where there is none, or it is switched off.
    ///
    /// # Errors
    /// `InvalidArgument` for a command that is none, or a negative number.
    pub(super) fn of(wished: Option<&api::HealthCheck>, image: Option<&Healthcheck>) -> Result<Option<Self>> {
        let (wished, image) = (wished.cloned().unwrap_or_default(), image.cloned().unwrap_or_default());
        let test = if wished.test.is_empty() { image.test } else { wished.test };
        match test.first().map(String::as_str) {
            None | Some("NONE") => return Ok(None),
            Some("CMD" | "CMD-SHELL") if test.len() > 1 => {}
            Some(word) => return Err(Error::invalid(format!("health check {word:?}: is no command"))),
        }
        let length = |wished: i64, image: i64, usual: Duration| match if wished == 0 { image } else { wished } {
            0 => Ok(usual),
            nanos => match u64::try_from(nanos) {
                Ok(nanos) => Ok(Duration::from_nanos(nanos).max(SHORTEST)),
                Err(_) => Err(Error::invalid("health check: a time must not be negative")),
            },
        };
        let retries = if wished.retries == 0 { image.retries } else { wished.retries };
        Ok(Some(Self {
            test,
            interval: length(wished.interval, image.interval, INTERVAL)?,
            timeout: length(wished.timeout, image.timeout, TIMEOUT)?,
            start_period: length(wished.start_period, image.start_period, Duration::ZERO)?,
            start_interval: length(wished.start_interval, image.start_interval, START_INTERVAL)?,
            retries: match retries {
                0 => RETRIES,
                times => {
                    u32::try_from(times).map_err(|_| Error::invalid("health check: retries must not be negative"))?
                }
            },
        }))
    }

    /// In docker's words, where times are nanoseconds.
    pub(super) fn shown(&self) -> Value {
        let nanos = |length: Duration| u64::try_from(length.as_nanos()).unwrap_or(u64::MAX);
        json!({
            "Test": self.test,
            "Interval": nanos(self.interval),
            "Timeout": nanos(self.timeout),
            "StartPeriod": nanos(self.start_period),
            "StartInterval": nanos(self.start_interval),
            "Retries": self.retries,
        })
    }

    fn command(&self) -> Vec<String> {
        match self.test.split_first() {
            Some((kind, line)) if kind == "CMD-SHELL" => {
                vec!["/bin/sh".to_owned(), "-c".to_owned(), line.join(" ")]
            }
            Some((_, words)) => words.to_vec(),
            None => Vec::new(),
        }
    }
}

/// The health of one run of a container.
#[derive(Debug)]
pub(super) struct Health {
    pub(super) check: Check,
    known: Mutex<Known>,
}

#[derive(Debug)]
struct Known {
    status: api::Health,
    /// Failures that count, one after another.
    streak: u32,
    log: VecDeque<Probe>,
}

#[derive(Debug, Clone)]
struct Probe {
    begun: SystemTime,
    ended: SystemTime,
    code: i64,
    output: String,
}

impl Health {
    pub(super) fn of(check: Check) -> Self {
        let known = Known { status: api::Health::Starting, streak: 0, log: VecDeque::new() };
        Self { check, known: Mutex::new(known) }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn status(&self) -> api::Health {
        self.known().status
    }

    /// In docker's words.
    pub(super) fn shown(&self) -> Value {
        let known = self.known();
        let probe = |probe: &Probe| {
            let (begun, ended) = (text(Some(probe.begun)), text(Some(probe.ended)));
            json!({ "Start": begun, "End": ended, "ExitCode": probe.code, "Output": probe.output })
        };
        let log: Vec<Value> = known.log.iter().map(probe).collect();
        json!({ "Status": named(known.status), "FailingStreak": known.streak, "Log": log })
    }

    /// How long until the next probe, `age` after the start.
    fn pause(&self, age: Duration) -> Duration {
        let is_starting = self.known().status == api::Health::Starting && age < self.check.start_period;
        if is_starting { self.check.start_interval } else { self.check.interval }
    }

    /// Notes a probe that was begun `age` after the start; returns the status if it has changed.
    fn note(&self, probe: Probe, age: Duration) -> Option<api::Health> {
        let mut known = self.known();
        let before = known.status;
        if probe.code == 0 {
            (known.status, known.streak) = (api::Health::Healthy, 0);
        } else if known.status != api::Health::Starting || age >= self.check.start_period {
            known.streak = known.streak.saturating_add(1);
            if known.streak >= self.check.retries {
                known.status = api::Health::Unhealthy;
            }
        }
        known.log.push_back(probe);
        while known.log.len() > LOG {
            known.log.pop_front();
        }
        (known.status != before).then_some(known.status)
    }
}

impl Engine {
    /// Probes a run until it ends.
    pub(super) async fn watch_health(&self, live: &Arc<Live>) {
        let Some(health) = &live.health else { return };
        let mut ended = live.ended.subscribe();
        let age = || SystemTime::now().duration_since(live.started_at).unwrap_or_default();
        let probes = async {
            loop {
                tokio::time::sleep(health.pause(age())).await;
                // Nothing in a frozen container answers.
                if !live.task.paused() {
                    let begun = age();
                    if let Some(health) = health.note(self.probe(live, &health.check).await, begun) {
                        let namespace = live.task.namespace();
                        if let Ok(known) = self.known(namespace, live.task.id()) {
                            self.note(namespace, &known, &format!("health_status: {}", named(health)), &[]);
                        }
                    }
                }
            }
        };
        tokio::select! {
            () = probes => {}
            _ = ended.wait_for(Option::is_some) => {}
        }
    }

    async fn probe(&self, live: &Arc<Live>, check: &Check) -> Probe {
        let begun = SystemTime::now();
        let mut output = Vec::new();
        let ended = |code: i64, output: &[u8]| {
            let output = String::from_utf8_lossy(output).into_owned();
            Probe { begun, ended: SystemTime::now(), code, output }
        };
        // The timeout does not cover the start: a start that is given up half-way would leave a process that nobody
        // ends.
        let mut started = match self.begin_probe(live, check.command()).await {
            Ok(started) => started,
            Err(error) => return ended(NO_CODE, error.to_string().as_bytes()),
        };
        match tokio::time::timeout(check.timeout, collect(&mut started, &mut output)).await {
            Ok(Ok(exit)) => ended(i64::from(exit.status), &output),
            Ok(Err(error)) => ended(NO_CODE, error.to_string().as_bytes()),
            Err(_) => {
                // It may have ended just now.
                if let Err(error) = live.task.kill(Some(&started.id), SIGKILL, false).await {
                    tracing::debug!(id = %live.task.id(), %error, "end a health check");
                }
                ended(NO_CODE, format!("Health check exceeded timeout ({:?})", check.timeout).as_bytes())
            }
        }
    }

    async fn begin_probe(&self, live: &Arc<Live>, args: Vec<String>) -> Result<StartedExec> {
        let known = self.known(live.task.namespace(), live.task.id())?;
        self.begin_exec(&known, live, &api::ExecRequest { args, ..api::ExecRequest::default() }).await
    }
}

fn named(status: api::Health) -> &'static str {
    match status {
        api::Health::Healthy => "healthy",
        api::Health::Unhealthy => "unhealthy",
        api::Health::Starting | api::Health::None => "starting",
    }
}

/// Reads what a probe writes until it ends.
async fn collect(started: &mut StartedExec, output: &mut Vec<u8>) -> Result<Exit> {
    // Its standard input is empty, and held by nobody.
    let (frames, _input) = streams::split(started.take_stream()?);
    let collect = async |mut frames: streams::Frames| {
        while let Some((kind, bytes)) = frames.next().await {
            if matches!(kind, FrameKind::Stdout | FrameKind::Stderr) {
                let room = MAX_OUTPUT.saturating_sub(output.len()).min(bytes.len());
                output.extend_from_slice(&bytes[..room]);
            }
        }
    };
    until_end(frames, collect, started.end(), OUTPUT_AFTER_END).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(wished: &api::HealthCheck) -> Check {
        let image = Healthcheck {
            test: vec!["CMD".into(), "true".into()],
            interval: 2_000_000_000,
            retries: 2,
            ..Healthcheck::default()
        };
        Check::of(Some(wished), Some(&image)).expect("check").expect("there is one")
    }

    #[test]
    fn wishes_stand_over_the_image() {
        let own = check(&api::HealthCheck::default());
        assert_eq!((own.command(), own.interval), (vec!["true".to_owned()], Duration::from_secs(2)));
        assert_eq!((own.timeout, own.retries), (TIMEOUT, 2));
        let line = vec!["CMD-SHELL".into(), "test -e /ok".into()];
        let wished = check(&api::HealthCheck { test: line, interval: 5_000_000, retries: 7, ..Default::default() });
        assert_eq!(wished.command(), ["/bin/sh", "-c", "test -e /ok"]);
        assert_eq!((wished.interval, wished.retries), (Duration::from_millis(5), 7));
        let none = api::HealthCheck { test: vec!["NONE".into()], ..Default::default() };
        assert_eq!(Check::of(Some(&none), None).expect("none"), None);
        assert_eq!(Check::of(None, None).expect("none"), None);
        for bad in [vec!["CMD".to_owned()], vec!["sh".to_owned(), "-c".to_owned()]] {
            assert!(Check::of(Some(&api::HealthCheck { test: bad, ..Default::default() }), None).is_err());
        }
    }

    #[test]
    fn failures_count_one_after_another_and_after_the_start() {
        let start_period = 10_000_000_000;
        let health = Health::of(check(&api::HealthCheck { start_period, ..Default::default() }));
        let probe = |code, age| {
            let (begun, ended) = (SystemTime::now(), SystemTime::now());
            let before = health.status();
            let changed = health.note(Probe { begun, ended, code, output: String::new() }, Duration::from_secs(age));
            assert_eq!(changed, Some(health.status()).filter(|status| *status != before));
            health.status()
        };
        assert_eq!(health.pause(Duration::ZERO), START_INTERVAL);
        assert_eq!(probe(1, 1), api::Health::Starting);
        assert_eq!(probe(1, 2), api::Health::Starting, "it is still about to start");
        assert_eq!(probe(1, 11), api::Health::Starting);
        assert_eq!(probe(1, 12), api::Health::Unhealthy);
        assert_eq!(probe(0, 13), api::Health::Healthy);
        assert_eq!(health.pause(Duration::ZERO), Duration::from_secs(2));
        assert_eq!(probe(1, 1), api::Health::Healthy, "it has started, so this counts");
        assert_eq!(probe(-1, 2), api::Health::Unhealthy);
        assert_eq!(health.shown()["Log"].as_array().map(Vec::len), Some(LOG));
        assert_eq!(health.shown()["FailingStreak"], 2);
    }
}
