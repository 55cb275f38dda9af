//! What the logs of all containers may take together (`container_log.max_total`).

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::ensure;
use integration_tests::{Daemon, Env, Registry, Result, Stack, Test, http, tests, wait};

pub(crate) const TESTS: &[Test] = tests![
    all_logs_together_have_one_bound [Root, Overlay],
    a_cut_that_a_crash_has_cut_short_ends [Root, Overlay],
];

const LIMIT: u64 = 8 << 20;
/// After so many bytes a log is rotated.
const CHUNK: u64 = 512 << 10;
/// Lines of each container that prints, some 7 MB in its log.
const LINES: usize = 50_000;

/// Bytes of all logs of the test's daemon.
fn size_of_logs(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => size_of_logs(&entry.path()),
        Ok(meta) if entry.file_name().to_string_lossy().starts_with("log.json") => meta.len(),
        _ => 0,
    };
    entries.map(size).sum()
}

/// The most that all logs took at any moment, until it is asked for.
struct Peak {
    bytes: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
    looking: thread::JoinHandle<()>,
}

impl Peak {
    fn watch(directory: PathBuf) -> Self {
        let (bytes, over) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let (seen, stop) = (bytes.clone(), over.clone());
        let looking = thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                seen.fetch_max(size_of_logs(&directory), Ordering::Relaxed);
                thread::sleep(Duration::from_millis(5));
            }
        });
        Self { bytes, over, looking }
    }

    fn take(self) -> u64 {
        self.over.store(true, Ordering::Relaxed);
        self.looking.join().expect("looks");
        self.bytes.load(Ordering::Relaxed)
    }
}

fn metric(address: SocketAddr, name: &str) -> Result<u64> {
    let text = String::from_utf8(http::request(address, "GET", "/v1/metrics", &[], &[])?.expect(200)?.body)?;
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("gantryd_logs_{name} ")));
    line.and_then(|value| value.parse().ok()).ok_or_else(|| anyhow::anyhow!("no {name} in {text}"))
}

fn all_logs_together_have_one_bound(env: &Env) -> Result<()> {
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let config = format!(
        "[metrics]\naddress = \"{address}\"\n[container_log]\nmax_size = {CHUNK}\nmax_files = 100\ncompress = false\n\
         max_total = {LIMIT}\n"
    );
    let stack = Stack::start_configured(env, &config)?;
    let prints = |lines: usize| {
        // Pauses, so that the daemon gets its turn on a machine with few processors, whatever else runs there.
        let thousand = "j=0; while [ $j -lt 1000 ]; do echo line $((i+j)) $x; j=$((j+1)); done";
        let all = format!("while [ $i -lt {lines} ]; do {thousand}; i=$((i+1000)); sleep 0.05; done");
        format!("x={}; i=0; {all}; echo end", "x".repeat(60))
    };
    let peak = Peak::watch(env.path("root/engine"));
    // Of one that does not run the rotated files are the oldest there are.
    stack.gantry(&["run", "--name", "old", "IMAGE", "sh", "-c", &prints(5_000)])?.ok()?;
    let wordy = prints(LINES);
    for name in ["a", "b", "c"] {
        stack.gantry(&["run", "-d", "--name", name, "IMAGE", "sh", "-c", &wordy])?.ok()?;
    }
    let followed = env.path("followed");
    let mut follow = stack.command(&["logs", "-f", "a"])?;
    let mut follow = follow.stdout(fs::File::create(&followed)?).stderr(Stdio::null()).spawn()?;
    for name in ["a", "b", "c"] {
        stack.gantry(&["wait", name])?.ok()?;
    }
    ensure!(follow.wait()?.success(), "the follower went on to the end");
    ensure!(fs::read_to_string(&followed)?.ends_with("\nend\n"), "and saw the last line");
    let peak = peak.take();
    ensure!(peak > LIMIT / 2 && peak <= LIMIT + CHUNK, "at most {peak} bytes of {LIMIT}");
    for name in ["a", "b", "c", "old"] {
        let all = stack.gantry(&["logs", name])?.ok()?;
        let told = all.stderr.contains("was dropped") && all.stderr.contains("container_log.max_total");
        ensure!(told && all.stdout.ends_with("end\n") && !all.stdout.starts_with("line 0 "), "{name}: {}", all.stderr);
        let last = stack.gantry(&["logs", "-n", "1", name])?.ok()?;
        ensure!(last.stdout == "end\n" && last.stderr.is_empty(), "{last}");
    }
    let dropped = metric(address, "dropped_bytes_total")?;
    ensure!(dropped > LIMIT && metric(address, "dropped_files_total")? >= dropped / (CHUNK + CHUNK / 2), "{dropped}");
    wait::until("what is left is reckoned", || (metric(address, "bytes").ok()? <= LIMIT).then_some(()))?;
    ensure!(stack.daemon.log().contains("dropped the oldest of a container's log"), "the daemon's log says it");
    let logs = stack.gantry(&["system", "df", "--format", "{{.Type}} {{.TotalCount}} {{.Active}}"])?.ok()?;
    ensure!(logs.stdout.lines().any(|line| line == "Logs 4 4"), "{logs}");
    Ok(())
}

/// A daemon that dies at a failpoint, as soon as it has looked at the logs.
fn dies_at(env: &Env, point: &str, config: &str) -> Result<()> {
    let mut daemon = env.daemon_begun(&["--config", config], &[("GANTRYD_FAILPOINT", point)])?;
    ensure!(daemon.died(), "{point}: the daemon did not die: {}", daemon.log());
    Ok(())
}

fn a_cut_that_a_crash_has_cut_short_ends(env: &Env) -> Result<()> {
    let (_registry, image) = Registry::with_busybox(env)?;
    let (free, bound) = (env.path("free.toml"), env.path("bound.toml"));
    fs::write(&free, "[container_log]\nmax_size = 1000000\nmax_files = 100\ncompress = false\nmax_total = 0\n")?;
    fs::write(&bound, "[container_log]\nmax_total = 1048576\n")?;
    let (free, bound) = (free.to_string_lossy(), bound.to_string_lossy());
    for point in ["logs.noted", "logs.dropped", "logs.cut"] {
        // A whole file and most of another, which is cut too: it is larger than what may stay.
        let script = format!(
            "yes {} | head -n 15000; touch /printed; until [ -e /go ]; do sleep 0.05; done; echo late",
            "x".repeat(60)
        );
        let daemon = env.daemon_with(&["--config", &free])?;
        daemon.gantry(&["run", "-d", "--name", "web", &image, "sh", "-c", &script])?.ok()?;
        wait::until("it has printed", || daemon.gantry(&["exec", "web", "ls", "/printed"]).ok()?.ok().ok())?;
        daemon.stop()?;
        dies_at(env, point, &bound)?;
        let daemon = env.daemon_with(&["--config", &bound])?;
        let logs = env.path("root/engine");
        wait::until("what is too much has gone", || (size_of_logs(&logs) < 1 << 20).then_some(()))?;
        ends_well(&daemon, &logs, point)?;
        daemon.stop()?;
    }
    Ok(())
}

/// The container goes on to write to its log, and nothing of the cut is left.
fn ends_well(daemon: &Daemon<'_>, logs: &Path, point: &str) -> Result<()> {
    daemon.gantry(&["exec", "web", "touch", "/go"])?.ok()?;
    daemon.gantry(&["wait", "web"])?.ok()?;
    let all = daemon.gantry(&["logs", "web"])?.ok()?;
    ensure!(all.stdout.ends_with("late\n") && all.stderr.contains("was dropped"), "{point}: {all}");
    let left = wait::until("no part of a cut is left", || {
        let spaces = fs::read_dir(logs).ok()?.flatten();
        let containers = spaces.flat_map(|space| fs::read_dir(space.path()).into_iter().flatten().flatten());
        let files = containers.flat_map(|it| fs::read_dir(it.path()).into_iter().flatten().flatten());
        let names: Vec<_> = files.map(|file| file.file_name().to_string_lossy().into_owned()).collect();
        names.iter().all(|name| !name.ends_with(".cut")).then_some(names)
    })?;
    ensure!(left.iter().any(|name| name == "log.json"), "{point}: {left:?}");
    daemon.gantry(&["rm", "web"])?.ok()?;
    Ok(())
}
