//! Many containers: a hundred started at once, and what hundreds of idle ones cost.

use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use integration_tests::{Daemon, Env, Image, Registry, Result, output};

use crate::daemons::Containerd;
use crate::engines::Engine;
use crate::runtimes::find;
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
    let names = names("at-once", AT_ONCE);
    let started = |name: &str, took: f64| note(&format!("  {name:<34} {took:>10.0} ms"));
    started("gantry run -d (gantryd)", together(names.iter().map(|name| detached(&daemon, name, &image)))?);
    remove(&daemon, &names)?;
    let containerd = Containerd::start(env)?;
    let mut docker = None;
    if let Some(containerd) = &containerd {
        output::run(containerd.ctr(env, &["images", "pull", "--plain-http", &image]))?.ok()?;
        for runtime in ["runc", "crun"].into_iter().filter(|runtime| find(env, runtime).is_some()) {
            let ids: Vec<String> = names.iter().map(|name| env.id(name)).collect();
            let took = together(ids.iter().map(|id| Ok(containerd.detached(env, runtime, &image, id))));
            ids.iter().try_for_each(|id| containerd.remove(env, id))?;
            started(&format!("ctr run -d (containerd, {runtime})"), took?);
        }
        docker = Engine::docker(env, containerd.address())?;
    }
    for (title, engine) in [("podman run -d", Engine::podman(env)?), ("docker run -d", docker)] {
        if let Some(engine) = engine {
            let took = together(names.iter().map(|name| Ok(engine.detached(name))));
            engine.remove(&names)?;
            started(title, took?);
        }
    }
    many_idle(env, &daemon, &image, idle)?;
    match &containerd {
        Some(containerd) => idle_on_containerd(env, containerd, &image, idle),
        None => Ok(()),
    }
}

fn names(what: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{what}-{number}")).collect()
}

fn detached(daemon: &Daemon<'_>, name: &str, image: &str) -> Result<Command> {
    daemon.gantry_command(&["run", "-d", "--name", name, image, "sleep", "100000"])
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

/// What an idle daemon and its shims take, and what they do in a while.
fn many_idle(env: &Env, daemon: &Daemon<'_>, image: &str, count: usize) -> Result<()> {
    let before = Use::of(daemon.pid())?;
    let names = names("idle", count);
    for some in names.chunks(25) {
        together(some.iter().map(|name| detached(daemon, name, image)))?;
    }
    let shims = shims(env)?;
    ensure!(shims.len() == count, "{} shims of {count} containers", shims.len());
    let watched = watch(daemon.pid(), &shims);
    remove(daemon, &names)?;
    note("");
    note(&format!("{count} idle containers"));
    tell("gantryd", before, count, &watched?);
    Ok(())
}

/// The same of containerd with runc.
fn idle_on_containerd(env: &Env, containerd: &Containerd, image: &str, count: usize) -> Result<()> {
    let before = Use::of(containerd.pid())?;
    let ids: Vec<String> = names("idle", count).iter().map(|name| env.id(name)).collect();
    for some in ids.chunks(25) {
        together(some.iter().map(|id| Ok(containerd.detached(env, "runc", image, id))))?;
    }
    let watched = shims_of(containerd.address()).and_then(|shims| watch(containerd.pid(), &shims));
    ids.iter().try_for_each(|id| containerd.remove(env, id))?;
    tell("containerd", before, count, &watched?);
    Ok(())
}

/// What a daemon and its shims are at the beginning and the end of a while.
struct Watched {
    daemon: [Use; 2],
    shims: [Use; 2],
}

fn watch(daemon: u32, shims: &[u32]) -> Result<Watched> {
    // What the starts left to do is done then.
    std::thread::sleep(Duration::from_secs(5));
    let (daemon_before, shims_before) = (Use::of(daemon)?, Use::of_all(shims)?);
    std::thread::sleep(WATCH);
    Ok(Watched { daemon: [daemon_before, Use::of(daemon)?], shims: [shims_before, Use::of_all(shims)?] })
}

fn tell(name: &str, before: Use, count: usize, watched: &Watched) {
    let (daemon, shims) = (watched.daemon[1], watched.shims[1]);
    note(&format!("  {name} without any: {} KiB proportional, {} KiB private", before.proportional, before.private));
    note(&format!("  {name}: {} KiB proportional, {} KiB private", daemon.proportional, daemon.private));
    let each = |total: u64| total / u64::try_from(count.max(1)).unwrap_or(u64::MAX);
    let (proportional, private) = (each(shims.proportional), each(shims.private));
    note(&format!("  a shim of {name}: {proportional} KiB proportional, {private} KiB private"));
    note(&format!("  all of it: {} MiB proportional", (daemon.proportional + shims.proportional) >> 10));
    let seconds = WATCH.as_secs();
    for (who, [before, after]) in [(name, watched.daemon), ("all its shims", watched.shims)] {
        let (ticks, switches) = (after.ticks - before.ticks, after.switches - before.switches);
        note(&format!("  {who} in {seconds} s: {ticks} clock ticks, {switches} wake-ups"));
    }
}

/// The shims of the containerd at `address`.
fn shims_of(address: &str) -> Result<Vec<u32>> {
    let mut pids = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // It may have ended since.
        let words = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let mut words = words.split(|byte| *byte == 0);
        let is_shim = words.next().is_some_and(|program| program.ends_with(b"containerd-shim-runc-v2"));
        if is_shim && words.any(|word| word == address.as_bytes()) {
            pids.push(pid);
        }
    }
    Ok(pids)
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
