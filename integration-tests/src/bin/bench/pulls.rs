//! Pulls from a registry on loopback: `gantry pull` into directories and into EROFS images, beside containerd and beside
//! what no pull can do without: fetching and inflating every layer on all processors.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use integration_tests::image::Packing;
use integration_tests::tar::Tar;
use integration_tests::{Daemon, Env, Image, Registry, Result, output, wait};

use crate::daemons::Containerd;
use crate::runtimes::{find, time};
use crate::table::{self, Subject, interleave, note};

const MB: u64 = 1 << 20;
/// Layers of one image: how many, and of how many bytes of files.
const SHAPES: [(&str, usize, u64); 3] =
    [("80 MB, 1 layer", 1, 80 * MB), ("400 MB, 8 layers", 8, 50 * MB), ("60 small layers", 60, MB / 2)];

/// The tables about pulls.
pub(crate) fn measure(env: &Env, rounds: usize) -> Result<()> {
    let registry = Registry::start(env)?;
    // Directories of their own, which nothing but the pulled image is in.
    let (own, beside) = (Env::new(&format!("{}d", env.token()))?, Env::new(&format!("{}e", env.token()))?);
    let directories = own.daemon()?;
    let config = beside.path("gantryd.toml");
    fs::write(&config, "[runtime]\nsnapshotter = \"erofs\"\n")?;
    let images = beside.daemon_with(&["--config", &config.display().to_string()]).ok();
    let containerd = if find(env, "ctr").is_some() { Containerd::start(env)? } else { None };
    let mut files = Files::new();
    for (name, layers, size) in SHAPES {
        for packing in [Packing::Gzip, Packing::Zstd] {
            let mut image = Image::empty();
            for _ in 0..layers {
                image = image.layer(files.layer(size)?, packing)?;
            }
            let kind = if packing == Packing::Gzip { "gzip" } else { "zstd" };
            let repository = format!("bench/{kind}{layers}");
            let reference = image.push(&registry, &repository, "1")?;
            let script = fetch_all(env, &registry, &repository, &image, kind)?;
            let mut subjects = vec![Subject::new("curl and inflate", || time(shell(env, &script)))];
            subjects.push(Subject::new("gantry pull", || pull(&directories, &own, &reference)));
            match &images {
                Some(images) => {
                    subjects.push(Subject::new("gantry pull (erofs)", || pull(images, &beside, &reference)))
                }
                None => note("erofs: not measured, this kernel does not mount its images"),
            }
            match &containerd {
                Some(containerd) => subjects.push(Subject::new("ctr images pull (containerd)", || {
                    let took = time(containerd.ctr(env, &["images", "pull", "--plain-http", &reference]))?;
                    output::run(containerd.ctr(env, &["images", "rm", "--sync", &reference]))?.ok()?;
                    Ok(took)
                })),
                None => note("containerd: not measured, it is not installed"),
            }
            interleave(&mut subjects, rounds)?;
            table::print(&format!("pull {name}, {kind}"), "ms", &mut subjects, "ctr images pull (containerd)");
        }
    }
    note(&format!("peak memory of gantryd over all pulls: {} MB", peak(&directories)?));
    drop(images);
    drop(directories);
    [own, beside].iter().try_for_each(|env| fs::remove_dir_all(env.root())).context("remove what was pulled")
}

/// Milliseconds that a pull takes. What was pulled is removed, and gone from the disk, before the next one.
fn pull(daemon: &Daemon<'_>, env: &Env, reference: &str) -> Result<f64> {
    let took = time(daemon.gantry_command(&["pull", "-q", reference])?)?;
    daemon.gantry(&["rmi", reference])?.ok()?;
    let blobs = env.path("root/io.containerd.content.v1.content/blobs/sha256");
    wait::until_within(wait::seconds(60), "the image is gone", || {
        (fs::read_dir(&blobs).ok()?.next().is_none()).then_some(())
    })?;
    Ok(took)
}

/// A script that fetches and inflates every layer, as many at once as there are processors.
fn fetch_all(env: &Env, registry: &Registry, repository: &str, image: &Image, kind: &str) -> Result<PathBuf> {
    let inflate = if kind == "gzip" { "gzip -dc" } else { "zstd -dcq" };
    let urls: Vec<String> = image
        .layers()
        .iter()
        .map(|layer| format!("http://{}/v2/{repository}/blobs/{}", registry.host(), layer.digest))
        .collect();
    let list = env.path("urls");
    fs::write(&list, urls.join("\n"))?;
    let script = env.path("fetch.sh");
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

/// The most memory that the daemon ever had, in MB.
fn peak(daemon: &Daemon<'_>) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid()))?;
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
