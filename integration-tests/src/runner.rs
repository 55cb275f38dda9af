//! Runs the tests: each in a process of its own, with a deadline, a visible skip where a need is unmet, and a look
//! afterwards for what it left behind.
//!
//! ```text
//! main [FILTER...] [--exact] [--needing NEED] [--host-matters] [--list] [--nocapture] [--test-threads N]
//! main summary FILE...         merges results files, see `summary`
//! main sweep                   removes and reports what the tests of a run have left, see `GANTRY_TEST_RUN`
//! main changes PID DIR ...     tells what a process changes, see `changes`
//! main nri-plugin FILE         is a plugin that a daemon has started, see `nri`
//! ```
//!
//! `GANTRY_TEST_RESULTS` names a file to which each result is added, `GANTRY_TEST_PLACE` the machine in it (`host`),
//! `GANTRY_TEST_RUN` six hexadecimal digits that all tokens of the run have in common.

use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal};

use crate::output::say;
use crate::summary::{Outcome, Record};
use crate::{Env, Need, Result, Test, changes, env, leaks, nri, requires, summary, wait};

/// Set for the process that runs a single test: the token it is to use.
const TOKEN: &str = "GANTRY_TEST_TOKEN";

/// Lines of a log that are told of a test that failed.
const LINES_OF_FAILED: usize = 40;

/// How long one test may take.
const DEADLINE_SECONDS: u64 = 120;
/// And how long on a machine that is slow: short enough that its other tests still run before the machine is ended.
const LONGEST: Duration = Duration::from_secs(300);
/// How long one may take that tries all it can.
const FULL_SECONDS: u64 = 4 * 3600;

/// The whole program: parses its arguments, runs the tests of all `modules`, prints and records the results.
pub fn main(modules: &[&[Test]]) -> ExitCode {
    let tests = modules.concat();
    let args: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match args.split_first() {
        Some((first, files)) if first == "summary" => summary::report(files),
        Some((first, _)) if first == "sweep" => sweep(),
        Some((first, rest)) if first == "changes" => changes::main(rest),
        Some((first, rest)) if first == "nri-plugin" => nri::main(rest),
        _ => Options::parse(&args).and_then(|options| match std::env::var(TOKEN) {
            Ok(token) => run_here(&tests, &options, &token).map(|()| true),
            Err(_) if options.list => {
                options.select(&tests).iter().for_each(|test| say(&format!("{}: test", test.full_name())));
                Ok(true)
            }
            Err(_) => run_all(&options.select(&tests), &options),
        }),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            say(&format!("error: {error:?}"));
            ExitCode::FAILURE
        }
    }
}

#[derive(Debug, Default)]
struct Options {
    filters: Vec<String>,
    exact: bool,
    needing: Option<Need>,
    host_matters: bool,
    list: bool,
    nocapture: bool,
    threads: Option<usize>,
}

impl Options {
    fn parse(args: &[String]) -> Result<Self> {
        let mut options = Self::default();
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--exact" => options.exact = true,
                "--needing" => options.needing = Some(args.next().context("--needing wants a name")?.parse()?),
                "--host-matters" => options.host_matters = true,
                "--list" => options.list = true,
                "--nocapture" | "--no-capture" => options.nocapture = true,
                "--test-threads" => options.threads = args.next().and_then(|number| number.parse().ok()),
                other => match other.strip_prefix("--test-threads=") {
                    Some(number) => options.threads = number.parse().ok(),
                    None if other.starts_with('-') => bail!("unknown option {other}"),
                    None => options.filters.push(other.to_owned()),
                },
            }
        }
        Ok(options)
    }

    fn select(&self, tests: &[Test]) -> Vec<Test> {
        let wanted = |name: &str| match self.exact {
            true => self.filters.iter().any(|filter| filter == name),
            false => self.filters.is_empty() || self.filters.iter().any(|filter| name.contains(filter.as_str())),
        };
        let needing = |test: &Test| self.needing.is_none_or(|need| test.needs.contains(&need));
        let here = |test: &Test| !self.host_matters || test.host_matters();
        tests.iter().copied().filter(|test| wanted(&test.full_name()) && needing(test) && here(test)).collect()
    }
}

/// The process of a single test.
fn run_here(tests: &[Test], options: &Options, token: &str) -> Result<()> {
    // The runner blocks signals for its own sake, and a mask is inherited. A runner that was killed takes its tests along.
    SigSet::empty().thread_set_mask().context("unblock signals")?;
    set_pdeathsig(Signal::SIGKILL).context("end with the runner")?;
    let selected = options.select(tests);
    let [test] = selected.as_slice() else { bail!("a test process runs one test, not {}", selected.len()) };
    let env = Env::new(token)?;
    let mut logs = LogsOfFailed { env: &env, failed: true };
    let outcome = (test.body)(&env);
    logs.failed = outcome.is_err();
    outcome
}

/// Where a test fails, the last that the daemons of it have logged is told; in the end its directory is gone.
struct LogsOfFailed<'a> {
    env: &'a Env,
    failed: bool,
}

impl Drop for LogsOfFailed<'_> {
    fn drop(&mut self) {
        if !self.failed {
            return;
        }
        for entry in fs::read_dir(self.env.root()).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|kind| kind == "log") {
                let text = String::from_utf8_lossy(&fs::read(&path).unwrap_or_default()).into_owned();
                let lines: Vec<&str> = text.lines().collect();
                let last = lines[lines.len().saturating_sub(LINES_OF_FAILED)..].join("\n");
                let _ = writeln!(std::io::stderr(), "--- the end of {}\n{last}", path.display());
            }
        }
    }
}

fn run_all(tests: &[Test], options: &Options) -> Result<bool> {
    if tests.is_empty() && !options.filters.is_empty() && options.needing.is_none() {
        bail!("no test matches {:?}", options.filters);
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = options.threads.unwrap_or(cores).max(1);
    let (alone, together): (Vec<Test>, Vec<Test>) = tests.iter().partition(|test| test.needs.contains(&Need::Alone));
    say(&format!("running {} tests, {threads} at a time", tests.len()));
    let begun = Instant::now();
    let stopped = stop_on_signals()?;
    let run = Run { numbers: AtomicUsize::new(0), records: Mutex::default(), nocapture: options.nocapture, stopped };
    run.batch(&together, threads);
    run.batch(&alone, 1);
    if run.is_stopped() {
        bail!("stopped by a signal");
    }
    let records = run.records.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    summary::append(&records)?;
    let failed: Vec<&Record> = records.iter().filter(|record| record.outcome == Outcome::Failed).collect();
    for record in &failed {
        say(&format!("FAILED {}", record.name));
    }
    say(&format!("{} in {:.1} s", summary::Counts::of(records.iter()), begun.elapsed().as_secs_f64()));
    Ok(failed.is_empty())
}

struct Run {
    numbers: AtomicUsize,
    records: Mutex<Vec<Record>>,
    nocapture: bool,
    stopped: Arc<AtomicBool>,
}

/// Lets the returned flag rise when somebody wants this program to end, so that it can clean up first.
fn stop_on_signals() -> Result<Arc<AtomicBool>> {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    signals.thread_block().context("block signals")?;
    let stopped = Arc::new(AtomicBool::new(false));
    let flag = stopped.clone();
    std::thread::spawn(move || {
        let _ = signals.wait();
        flag.store(true, Ordering::Relaxed);
    });
    Ok(stopped)
}

/// Removes what tests of this run have left although their runner should have seen to it: it was killed.
fn sweep() -> Result<bool> {
    let run = env::run().context("GANTRY_TEST_RUN is not set")?;
    let left = leaks::settle_and_clear(&env::token_prefix(&run));
    left.iter().for_each(|line| say(&format!("left behind: {line}")));
    Ok(left.is_empty())
}

impl Run {
    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// Runs `tests`, `threads` at a time.
    fn batch(&self, tests: &[Test], threads: usize) {
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..threads.min(tests.len()) {
                scope.spawn(|| {
                    while let Some(test) = tests.get(next.fetch_add(1, Ordering::Relaxed)) {
                        if self.is_stopped() {
                            break;
                        }
                        let record = self.one(test);
                        self.records.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(record);
                    }
                });
            }
        });
    }

    fn one(&self, test: &Test) -> Record {
        let name = test.full_name();
        let begun = Instant::now();
        let (outcome, reason) = match requires::first_unmet(test.needs) {
            Some(reason) => {
                say(&format!("SKIP {name}: {reason}"));
                (Outcome::Skipped, reason)
            }
            None => {
                let token = env::new_token(self.numbers.fetch_add(1, Ordering::Relaxed));
                match self.in_process(&name, &token) {
                    Ok(()) => {
                        say(&format!("ok {name} ({:.2} s)", begun.elapsed().as_secs_f64()));
                        (Outcome::Passed, String::new())
                    }
                    Err(error) => {
                        say(&format!("FAILED {name} ({:.2} s)\n{error:#}\n", begun.elapsed().as_secs_f64()));
                        (Outcome::Failed, error.to_string())
                    }
                }
            }
        };
        Record { place: summary::place(), name, outcome, took: begun.elapsed(), reason }
    }

    /// Runs one test in a process of its own, then clears away what it left; leaving something is a failure too.
    fn in_process(&self, name: &str, token: &str) -> Result<()> {
        let said = tempfile::tempfile().context("make a file for the test's output")?;
        let mut command = Command::new(std::env::current_exe().context("find the test program")?);
        command.args(["--exact", name]).env(TOKEN, token).stdin(Stdio::null());
        if !self.nocapture {
            command.stdout(said.try_clone()?).stderr(said.try_clone()?);
        }
        let mut child = command.spawn().context("start the test's process")?;
        let limit = match wait::is_full() {
            true => Duration::from_secs(FULL_SECONDS),
            false => wait::seconds(DEADLINE_SECONDS).min(LONGEST),
        };
        let ended = self.finish(&mut child, limit);
        let left = leaks::settle_and_clear(token);
        let text = read_all(said)?;
        if let Err(reason) = ended {
            bail!("{reason}{}\n{}", left_lines(&left), text.trim_end());
        }
        if !left.is_empty() {
            bail!("the test left something behind{}\n{}", left_lines(&left), text.trim_end());
        }
        Ok(())
    }

    /// Waits for a test's process, and ends it where it takes too long or everything is to end.
    fn finish(&self, child: &mut Child, limit: Duration) -> Result<()> {
        let ended = wait::until_within(limit, "the test's end", || match self.is_stopped() {
            true => Some(None),
            false => child.try_wait().transpose().map(Some),
        });
        let reason = match ended {
            Ok(Some(status)) => match status? {
                status if status.success() => return Ok(()),
                status => bail!("the test's process ended with {status}"),
            },
            Ok(None) => "stopped".to_owned(),
            Err(_) => format!("no end after {} s; killed", limit.as_secs()),
        };
        child.kill().context("kill the test's process")?;
        child.wait()?;
        bail!(reason)
    }
}

fn left_lines(left: &[String]) -> String {
    left.iter().map(|line| format!("\n  left: {line}")).collect()
}

fn read_all(mut file: File) -> Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Adds text to a file that several programs write to.
pub(crate) fn append_to(path: &std::ffi::OsStr, text: &str) -> Result<()> {
    let mut file = fs::OpenOptions::new().create(true).append(true).open(path)?;
    Ok(file.write_all(text.as_bytes())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nothing(_: &Env) -> Result<()> {
        Ok(())
    }

    const SAMPLES: &[Test] = crate::tests![nothing [Root, Overlay], nothing [Systemd]];

    fn parse(args: &[&str]) -> Result<Options> {
        Options::parse(&args.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    #[test]
    fn selects_by_part_of_a_name_or_exactly() {
        let count = |args: &[&str]| parse(args).unwrap().select(SAMPLES).len();
        let name = SAMPLES[0].full_name();
        assert_eq!(name, "runner::tests::nothing");
        assert_eq!(count(&["noth"]), 2);
        assert_eq!(count(&["noth", "--exact"]), 0);
        assert_eq!(count(&[&name, "--exact"]), 2);
        assert_eq!(parse(&["--test-threads=3"]).unwrap().threads, Some(3));
        assert_eq!(count(&["--needing", "Overlay"]), 1);
        assert_eq!(count(&["--needing", "Rootless"]), 0);
        assert_eq!(count(&["--host-matters"]), 1, "the one that asks for systemd");
        assert!(parse(&["--wrong"]).is_err() && parse(&["--needing", "Luck"]).is_err());
        assert_eq!(SAMPLES[0].needs, [Need::Root, Need::Overlay]);
    }
}
