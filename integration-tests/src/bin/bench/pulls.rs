//! Images in and out, between a registry on loopback and a store in memory: `gantry` into directories and into EROFS images, beside
//! containerd, podman, docker, and beside what no pull can do without: fetching and inflating every layer on all
//! processors. `BENCH_CONTAINERD` names the directory of another containerd and its `ctr`.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use integration_tests::image::Packing;
use integration_tests::tar::Tar;
use integration_tests::{Env, Image, Registry, Result, wait};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::clients::Client;
use crate::daemons::Containerd;
use crate::engines::Engine;
use crate::runtimes::time;
use crate::table::{self, Subject, interleave_warm, note};

const MB: u64 = 1 << 20;
/// Layers of one image: how many, and of how many bytes of files.
const SHAPES: [(&str, usize, u64); 3] =
    [("80 MB, 1 layer", 1, 80 * MB), ("400 MB, 8 layers", 8, 50 * MB), ("60 small layers", 60, MB / 2)];
const AGAINST: &str = "ctr (containerd)";

/// An image at the registry.
struct Pushed {
    title: String,
    reference: String,
    /// Fetches and inflates its layers.
    script: PathBuf,
}

/// The tables about images, of which some rounds take minutes: one for every 34 of others, after one that says who can do it.
pub(crate) fn measure(env: &Env, rounds: usize) -> Result<()> {
    let rounds = rounds.div_ceil(34);
    // Directories of their own, which nothing but the pulled image is in.
    let (own, beside) = (Env::new(&format!("{}d", env.token()))?, Env::new(&format!("{}e", env.token()))?);
    let memory: Vec<Memory> =
        [env, &own, &beside].map(|env| Memory::at(env.root())).into_iter().collect::<Result<_>>()?;
    let measured = in_memory(env, &own, &beside, rounds);
    drop(memory);
    [own, beside].iter().try_for_each(|env| fs::remove_dir_all(env.root())).context("remove what was pulled")?;
    measured
}

fn in_memory(env: &Env, own: &Env, beside: &Env, rounds: usize) -> Result<()> {
    let registry = Registry::start(env)?;
    let directories = own.daemon()?;
    let images = beside.daemon_configured("[runtime]\nsnapshotter = \"erofs\"\n").ok();
    if images.is_none() {
        note("erofs: not measured, this kernel does not mount its images");
    }
    let containerd = Containerd::start(env)?;
    let other = match std::env::var_os("BENCH_CONTAINERD") {
        Some(dir) => Containerd::start_from(env, Path::new(&dir))?,
        None => None,
    };
    let docker = containerd.as_ref().map_or(Ok(None), |containerd| Engine::docker(env, containerd.address()))?;
    let podman = Engine::podman(env)?;
    let mut clients = vec![Client::gantry("gantry", &directories, || is_gone(own))];
    clients.extend(images.as_ref().map(|images| Client::gantry("gantry (erofs)", images, || is_gone(beside))));
    clients.extend(containerd.as_ref().map(|containerd| Client::ctr(AGAINST, env, containerd)));
    clients.extend(other.as_ref().map(|containerd| Client::ctr(&containerd.name, env, containerd)));
    clients.extend([&podman, &docker].into_iter().flatten().map(Client::engine));
    let mut files = Files::new();
    let mut whole = None;
    for (name, layers, size) in SHAPES {
        for packing in [Packing::Gzip, Packing::Zstd] {
            let image = push_image(env, &registry, &mut files, (name, layers, size), packing)?;
            pulls(env, &clients, &image, rounds)?;
            if layers == 8 && packing == Packing::Gzip {
                whole = Some(image);
            }
        }
    }
    note(&format!("peak memory of gantryd over all pulls: {} MB", peak(directories.pid())?));
    if let Some(containerd) = &containerd {
        note(&format!("peak memory of containerd over all pulls: {} MB", peak(containerd.pid())?));
    }
    if let Some(image) = whole {
        archives(env, &clients, &image, rounds)?;
    }
    note(&format!("peak memory of gantryd over everything: {} MB", peak(directories.pid())?));
    Ok(())
}

/// A file system in memory, where the bench has mounts of its own. On a disk each round would pay for what the one before
/// removed: ext4 looks at every file that was removed in the last minutes before it makes a new one.
struct Memory(Option<PathBuf>);

impl Memory {
    fn at(dir: &Path) -> Result<Self> {
        if std::env::var_os("BENCH_STATE").is_none() {
            return Ok(Self(None));
        }
        mount(Some("bench"), dir, Some("tmpfs"), MsFlags::empty(), None::<&str>).context("mount a tmpfs")?;
        Ok(Self(Some(dir.to_owned())))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Some(dir) = &self.0 {
            let _ = umount2(dir, MntFlags::MNT_DETACH);
        }
    }
}

fn push_image(
    env: &Env,
    registry: &Registry,
    files: &mut Files,
    (name, layers, size): (&str, usize, u64),
    packing: Packing,
) -> Result<Pushed> {
    let mut image = Image::empty();
    for _ in 0..layers {
        image = image.layer(files.layer(size)?, packing)?;
    }
    let kind = if packing == Packing::Gzip { "gzip" } else { "zstd" };
    let repository = format!("bench/{kind}{layers}");
    let reference = image.push(registry, &repository, "1")?;
    let script = fetch_all(env, registry, &repository, &image, kind)?;
    let stored: usize = image.layers().iter().map(|layer| layer.bytes.len()).sum();
    Ok(Pushed { title: format!("{name}, {kind}, {} MB packed", stored >> 20), reference, script })
}

fn pulls(env: &Env, clients: &[Client<'_>], image: &Pushed, rounds: usize) -> Result<()> {
    let mut subjects = vec![Subject::new("curl and inflate", || time(shell(env, &image.script)))];
    for client in clients.iter().filter(|client| client.can_pull(&image.reference)) {
        subjects.push(Subject::new(&client.name, || client.pull(&image.reference)));
    }
    interleave_warm(&mut subjects, rounds)?;
    table::print(&format!("pull {}", image.title), "ms", &mut subjects, AGAINST);
    Ok(())
}

/// Out of the store into an archive, in again, and to a registry that has nothing of it.
fn archives(env: &Env, clients: &[Client<'_>], image: &Pushed, rounds: usize) -> Result<()> {
    let registry = Registry::start_with(env, "registry-pushed", "")?;
    let file = |client: usize| env.path(&format!("archive-{client}.tar"));
    clients.iter().try_for_each(|client| client.have(&image.reference))?;
    let each = |sample: &dyn Fn(usize, &Client<'_>) -> Result<f64>, title: &str| -> Result<()> {
        let subject = |(number, client)| {
            let client: &Client<'_> = client;
            Subject::new(&client.name, move || sample(number, client))
        };
        // What one of them cannot do does not keep the others.
        let can = |(number, client): &(usize, &Client<'_>)| {
            let tried = sample(*number, client);
            tried.inspect_err(|error| note(&format!("{}: not measured: {error:#}", client.name))).is_ok()
        };
        let mut subjects: Vec<Subject<'_>> = clients.iter().enumerate().filter(can).map(subject).collect();
        interleave_warm(&mut subjects, rounds)?;
        table::print(&format!("{title} {}", image.title), "ms", &mut subjects, AGAINST);
        Ok(())
    };
    each(&|number, client| client.export(&image.reference, &file(number)), "export")?;
    let pushed = Cell::new(0);
    let push = |_: usize, client: &Client<'_>| {
        pushed.set(pushed.get() + 1);
        client.push(&image.reference, &format!("{}/pushed/{}:1", registry.host(), pushed.get()))
    };
    each(&push, "push")?;
    clients.iter().try_for_each(|client| client.remove(&image.reference))?;
    each(&|number, client| client.import(&image.reference, &file(number)), "import")?;
    (0..clients.len()).for_each(|number| drop(fs::remove_file(file(number))));
    Ok(())
}

/// Waits until nothing of an image is on disk any more.
fn is_gone(env: &Env) -> Result<()> {
    let blobs = env.path("root/io.containerd.content.v1.content/blobs/sha256");
    wait::until_within(wait::seconds(60), "the image is gone", || {
        (fs::read_dir(&blobs).ok()?.next().is_none()).then_some(())
    })
}

/// A script that fetches and inflates every layer, as many at once as there are processors.
fn fetch_all(env: &Env, registry: &Registry, repository: &str, image: &Image, kind: &str) -> Result<PathBuf> {
    let inflate = if kind == "gzip" { "gzip -dc" } else { "zstd -dcq" };
    let urls: Vec<String> = image
        .layers()
        .iter()
        .map(|layer| format!("http://{}/v2/{repository}/blobs/{}", registry.host(), layer.digest))
        .collect();
    let list = env.path(&format!("{}.urls", repository.replace('/', "-")));
    fs::write(&list, urls.join("\n"))?;
    let script = list.with_extension("sh");
    let one = format!("curl -sf {{}} | {inflate} > /dev/null");
    fs::write(&script, format!("xargs -P $(nproc) -I{{}} sh -c '{one}' < {}\n", list.display()))?;
    Ok(script)
}

fn shell(env: &Env, script: &Path) -> Command {
    let mut command = Command::new("sh");
    env.prepare(&mut command);
    command.arg(script);
    command
}

/// The most memory that a process ever had, in MB.
fn peak(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no peak in /proc")?;
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kilobytes / 1024)
}

/// Files of this machine, which are like those of images.
struct Files {
    waiting: Vec<PathBuf>,
    found: Vec<PathBuf>,
}

impl Files {
    fn new() -> Self {
        Self { waiting: vec![PathBuf::from("/usr")], found: Vec::new() }
    }

    /// A layer of the next files that together have `size` bytes.
    fn layer(&mut self, size: u64) -> Result<Tar> {
        let (mut tar, mut total, mut known) = (Tar::new(), 0, BTreeSet::new());
        while total < size {
            let file = self.next().context("/usr has too few files for an image of this size")?;
            let Ok(content) = fs::read(&file) else { continue };
            total += content.len() as u64;
            // As those who build images do: every directory has its entry before what is in it.
            let mut above: Vec<&Path> = file.ancestors().skip(1).filter(|dir| dir.parent().is_some()).collect();
            above.reverse();
            for dir in above {
                if known.insert(dir.to_owned()) {
                    tar = tar.dir(&dir.display().to_string()[1..]);
                }
            }
            tar = tar.file(&file.display().to_string()[1..], content);
        }
        Ok(tar)
    }

    fn next(&mut self) -> Option<PathBuf> {
        while self.found.is_empty() {
            let Some(dir) = self.waiting.pop() else {
                // All were used: from the beginning, which the registry does not mind.
                *self = Self::new();
                continue;
            };
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                match entry.file_type() {
                    Ok(kind) if kind.is_dir() => self.waiting.push(entry.path()),
                    Ok(kind) if kind.is_file() => self.found.push(entry.path()),
                    _ => {}
                }
            }
        }
        self.found.pop()
    }
}
