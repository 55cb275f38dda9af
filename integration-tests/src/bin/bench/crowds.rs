//! Many containers: a hundred started at once, and what hundreds of idle ones cost.

use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use integration_tests::{Daemon, Env, Image, Registry, Result};

use crate::daemons::Containerd;
use crate::table::{millis, note};

/// Containers that start at once.
const AT_ONCE: usize = 100;
/// How long idle containers are watched.
const WATCH: Duration = Duration::from_secs(30);

/// Both.
pub(crate) fn measure(env: &Env) -> Result<()> {
    let idle = std::env::var("BENCH_IDLE").ok().and_then(|text| text.parse().ok()).unwrap_or(500);
    let registry = Registry::start(env)?;
    let image = Image::busybox()?.push(&registry, "crowd", "latest")?;
    let daemon = env.daemon()?;
    daemon.gantry(&["pull", &image])?.ok()?;
    note("");
    note(&format!("{AT_ONCE} containers of `sleep` started at once, until all run"));
    let names: Vec<String> = (0..AT_ONCE).map(|number| format!("at-once-{number}")).collect();
    let took = together(
        names.iter().map(|name| daemon.gantry_command(&["run", "-d", "--name", name, &image, "sleep", "1000"])),
    )?;
    note(&format!("  {:<34} {took:>10.0} ms", "gantry run -d (gantryd)"));
    remove(&daemon, &names)?;
    if let Some(containerd) = Containerd::start(env)? {
        let took = containerd_at_once(env, &containerd, &image)?;
        note(&format!("  {:<34} {took:>10.0} ms", "ctr run -d (containerd, runc)"));
    }
    many_idle(env, &daemon, &image, idle)
}

fn containerd_at_once(env: &Env, containerd: &Containerd, image: &str) -> Result<f64> {
    let run = |args: &[&str]| integration_tests::output::run(containerd.ctr(env, args)).and_then(|ran| ran.ok());
    run(&["images", "pull", "--plain-http", image])?;
    let ids: Vec<String> = (0..AT_ONCE).map(|number| env.id(&format!("at-once-{number}"))).collect();
    let took =
        together(ids.iter().map(|id| Ok(containerd.ctr(env, &["run", "-d", "--null-io", image, id, "sleep", "1000"]))));
    for id in &ids {
        let _ = run(&["tasks", "rm", "--force", id]);
        let _ = run(&["containers", "rm", id]);
    }
    took
}

/// Starts commands side by side and waits for all of them; milliseconds.
fn together(commands: impl Iterator<Item = Result<Command>>) -> Result<f64> {
    let begun = Instant::now();
    let mut children = Vec::new();
    for command in commands {
        let mut command = command?;
        children.push(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
    }
    for child in &mut children {
        ensure!(child.wait()?.success(), "one of the containers did not start");
    }
    Ok(millis(begun.elapsed()))
}

fn remove(daemon: &Daemon<'_>, names: &[String]) -> Result<()> {
    for some in names.chunks(50) {
        let some: Vec<&str> = some.iter().map(String::as_str).collect();
        daemon.gantry(&[&["rm", "-f"], &some[..]].concat())?.ok()?;
    }
    Ok(())
}

fn many_idle(env: &Env, daemon: &Daemon<'_>, image: &str, count: usize) -> Result<()> {
    let before = Use::of(daemon.pid())?;
    let names: Vec<String> = (0..count).map(|number| format!("idle-{number}")).collect();
    for some in names.chunks(25) {
        together(
            some.iter().map(|name| daemon.gantry_command(&["run", "-d", "--name", name, image, "sleep", "10000"])),
        )?;
    }
    let shims = shims(env)?;
    ensure!(shims.len() == count, "{} shims of {count} containers", shims.len());
    let watched = (|| {
        // What the starts left to do is done then.
        std::thread::sleep(Duration::from_secs(5));
        let daemon_before = Use::of(daemon.pid())?;
        let shims_before = Use::of_all(&shims)?;
        std::thread::sleep(WATCH);
        let (daemon_after, shims_after) = (Use::of(daemon.pid())?, Use::of_all(&shims)?);
        anyhow::Ok((daemon_before, shims_before, daemon_after, shims_after))
    })();
    remove(daemon, &names)?;
    let (daemon_before, shims_before, daemon_after, shims_after) = watched?;
    let seconds = WATCH.as_secs();
    note("");
    note(&format!("{count} idle containers"));
    note(&format!("  gantryd without any: {} KiB proportional, {} KiB private", before.proportional, before.private));
    note(&format!("  gantryd: {} KiB proportional, {} KiB private", daemon_after.proportional, daemon_after.private));
    let each = |total: u64| total / u64::try_from(count.max(1)).unwrap_or(u64::MAX);
    let (proportional, private) = (each(shims_after.proportional), each(shims_after.private));
    note(&format!("  a shim: {proportional} KiB proportional, {private} KiB private"));
    note(&format!("  all of it: {} MiB proportional", (daemon_after.proportional + shims_after.proportional) >> 10));
    let ticks = daemon_after.ticks - daemon_before.ticks;
    let switches = daemon_after.switches - daemon_before.switches;
    note(&format!("  gantryd in {seconds} s: {ticks} clock ticks, {switches} wake-ups"));
    let ticks = shims_after.ticks - shims_before.ticks;
    let switches = shims_after.switches - shims_before.switches;
    note(&format!("  all shims in {seconds} s: {ticks} clock ticks, {switches} wake-ups"));
    Ok(())
}

/// The shims that the bundles of the bench's daemon name.
fn shims(env: &Env) -> Result<Vec<u32>> {
    let bundles = env.path("state/io.containerd.runtime.v2.task").join(env.namespace());
    let mut pids = Vec::new();
    for bundle in fs::read_dir(bundles)? {
        pids.push(fs::read_to_string(bundle?.path().join("shim.pid"))?.trim().parse()?);
    }
    Ok(pids)
}

/// What a process has and does.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Use {
    /// KiB, what is shared divided among those who share it.
    pub(crate) proportional: u64,
    /// KiB of its own.
    private: u64,
    /// Processor time.
    ticks: u64,
    /// Times it was woken up.
    switches: u64,
}

impl Use {
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let read = |name: &str| read(&Path::new("/proc").join(pid.to_string()).join(name));
        let memory = read("smaps_rollup")?;
        let kib = |key: &str| -> u64 {
            let value = |line: &str| line.strip_prefix(key)?.split_whitespace().next()?.parse::<u64>().ok();
            memory.lines().find_map(value).unwrap_or(0)
        };
        let stat = read("stat")?;
        let times: Vec<u64> = stat
            .rsplit_once(") ")
            .map(|(_, rest)| rest.split(' ').skip(11).take(2).filter_map(|word| word.parse().ok()).collect())
            .unwrap_or_default();
        let mut switches = 0;
        for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
            let status = fs::read_to_string(thread?.path().join("status"))?;
            let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            switches += line.and_then(|line| line.trim().parse::<u64>().ok()).unwrap_or(0);
        }
        Ok(Self {
            proportional: kib("Pss:"),
            private: kib("Private_Clean:") + kib("Private_Dirty:"),
            ticks: times.iter().sum(),
            switches,
        })
    }

    fn of_all(pids: &[u32]) -> Result<Self> {
        let mut all = Self::default();
        for pid in pids {
            let one = Self::of(*pid)?;
            all.proportional += one.proportional;
            all.private += one.private;
            all.ticks += one.ticks;
            all.switches += one.switches;
        }
        Ok(all)
    }
}

fn read(path: &Path) -> Result<String> {
    let text: io::Result<String> = fs::read_to_string(path);
    text.with_context(|| format!("read {}", path.display()))
}
