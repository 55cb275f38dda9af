//! A disk that fails: what the daemon says it has done is done, whatever else fails it does not panic, and when the disk works
//! again nothing is lost but what the disk has lost.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use gantry_proto::containerd::services::content::v1::content_client::ContentClient;
use gantry_proto::containerd::services::content::v1::{WriteAction, WriteContentRequest};
use integration_tests::disk::{Faults, NotedDisk, unmount};
use integration_tests::image::Packing;
use integration_tests::tar::Tar;
use integration_tests::{Chance, Daemon, Env, Image, Registry, Result, Test, daemon, tests, wait};
use rung_spec::digest::Digest;

pub(crate) const TESTS: &[Test] = tests![
    writes_that_fail_are_never_acknowledged [Root, Overlay, Fuse],
    reads_that_fail_lose_nothing_else [Root, Overlay, Fuse],
    an_ingest_is_resumed_from_the_disk [Root, Fuse],
];

/// Size of the disk.
const SIZE: u64 = 192 << 20;

/// A daemon's root on a disk that can fail, with an image that is here and one that is not.
struct Scene<'env> {
    env: &'env Env,
    disk: NotedDisk,
    root: PathBuf,
    _registry: Registry,
    kept: String,
    image: String,
}

impl<'env> Scene<'env> {
    fn new(env: &'env Env) -> Result<Self> {
        let (disk, root) = own_disk(env)?;
        let registry = Registry::start(env)?;
        let kept = Image::busybox()?.push(&registry, "test/kept", "1")?;
        let noise = Chance::new(1).bytes(1 << 19);
        let image = Image::busybox()?
            .layer(Tar::new().dir("etc").file("etc/noise", noise), Packing::Gzip)?
            .layer(Tar::new().file("etc/more", "more"), Packing::Zstd)?
            .push(&registry, "test/noise", "1")?;
        let scene = Self { env, disk, root, _registry: registry, kept, image };
        let daemon = env.daemon()?;
        does(&daemon, &["pull", "-q", &scene.kept])?;
        does(&daemon, &["create", "--name", "web", &scene.kept, "sh", "-c", "echo here > /here"])?;
        does(&daemon, &["start", "-a", "web"])?;
        has_ended(&daemon)?;
        daemon.stop()?;
        Ok(scene)
    }

    /// What was on the disk before it failed, as it is after the machine was started again.
    fn boot(&self) -> Result<()> {
        unmount(self.env, &self.root)?;
        self.disk.fail(Faults::default());
        // What the file system itself lost of its own is not what this is about.
        let ran = self.env.run("e2fsck", &["-fy", &self.env.path("disk").to_string_lossy()])?;
        ensure!(ran.code() < 4, "{ran}");
        self.mount()
    }

    fn mount(&self) -> Result<()> {
        let state = self.env.path("state");
        if state.exists() {
            fs::remove_dir_all(state)?;
        }
        self.disk.mount_again(self.env)
    }

    /// What was acknowledged before the disk failed.
    fn examine(&self, daemon: &Daemon<'_>) -> Result<()> {
        ensure!(!daemon.log().contains("panicked"), "{}", daemon.log());
        let ran = daemon.gantry(&["start", "-a", "web"])?.ok()?;
        ensure!(ran.text().is_empty(), "{ran}");
        has_ended(daemon)?;
        daemon.is_whole()
    }
}

/// A disk for the daemon's root, in a mount namespace of this test's own.
fn own_disk(env: &Env) -> Result<(NotedDisk, PathBuf)> {
    env.own_mounts()?;
    let root = env.dir("root")?;
    Ok((NotedDisk::mount(env, SIZE, &root)?, root))
}

fn does(daemon: &Daemon<'_>, args: &[&str]) -> Result<()> {
    daemon.gantry(args)?.ok().map(drop)
}

/// Waits for the container's task to be deleted: once the daemon is gone, nobody ends the shim, which keeps the disk busy.
fn has_ended(daemon: &Daemon<'_>) -> Result<()> {
    let listed = || daemon.ctr(&["tasks", "ls", "-q"]).ok()?.ok().ok();
    wait::until("the task was not deleted", || listed().filter(|listed| listed.text().is_empty())).map(drop)
}

/// What is done while the disk fails, what is true once that is acknowledged, and what makes it possible again.
struct Act<'a> {
    does: Vec<&'a str>,
    promises: Vec<&'a str>,
    answer: &'a str,
    undoes: Vec<&'a str>,
}

fn writes_that_fail_are_never_acknowledged(env: &Env) -> Result<()> {
    let scene = Scene::new(env)?;
    let (archive, image) = (env.path("archive.tar").to_string_lossy().into_owned(), scene.image.as_str());
    let daemon = env.daemon()?;
    does(&daemon, &["pull", "-q", image])?;
    does(&daemon, &["save", "-o", &archive, image])?;
    does(&daemon, &["rmi", image])?;
    daemon.is_whole()?;
    daemon.stop()?;
    let runs = vec!["run", "--rm", "--pull", "never", image, "cat", "/etc/more"];
    let acts = [
        Act { does: vec!["pull", "-q", image], promises: runs.clone(), answer: "more", undoes: vec!["rmi", image] },
        Act { does: vec!["load", "-i", &archive], promises: runs, answer: "more", undoes: vec!["rmi", image] },
        Act {
            does: vec!["commit", "web", "made:1"],
            promises: vec!["run", "--rm", "--pull", "never", "made:1", "cat", "/here"],
            answer: "here",
            undoes: vec!["rmi", "made:1"],
        },
        Act {
            does: vec!["tag", &scene.kept, "other:1"],
            promises: vec!["run", "--rm", "--pull", "never", "other:1", "echo", "tagged"],
            answer: "tagged",
            undoes: vec!["rmi", "other:1"],
        },
        Act {
            does: vec!["system", "gc"],
            promises: vec!["inspect", "-f", "{{.Name}}", "web"],
            answer: "/web",
            undoes: vec!["system", "gc"],
        },
    ];
    let mut chance = Chance::anew();
    for act in &acts {
        let daemon = env.daemon()?;
        let begun = scene.disk.now();
        does(&daemon, &act.does)?;
        let count = scene.disk.now() - begun;
        does(&daemon, &act.undoes)?;
        daemon.is_whole()?;
        daemon.stop()?;
        for round in 0..wait::amount(2, 2 * count) {
            // Once and for all, or a single time, after which it is tried again.
            let (before, failing) = (chance.below(count), if round % 2 == 0 { usize::MAX } else { 1 });
            let shown = || format!("{:?}, where {failing} of {count} writes fail after {before}", act.does);
            try_it(&scene, act, Faults { writes: Some((before, failing)), reads: None }).with_context(shown)?;
        }
    }
    Ok(())
}

fn try_it(scene: &Scene<'_>, act: &Act<'_>, faults: Faults) -> Result<()> {
    let daemon = scene.env.daemon()?;
    scene.disk.fail(faults);
    let mut done = daemon.gantry(&act.does)?;
    if done.code() != 0 {
        done = daemon.gantry(&act.does)?;
    }
    ensure!(!daemon.log().contains("panicked"), "{}", daemon.log());
    daemon.crash()?;
    scene.boot()?;
    let daemon = scene.env.daemon().context("start on the disk that works again")?;
    scene.examine(&daemon)?;
    if done.code() != 0 {
        does(&daemon, &act.does)?;
    }
    let ran = daemon.gantry(&act.promises)?.ok().with_context(|| format!("it was acknowledged: {done}"))?;
    ensure!(ran.text() == act.answer, "it was acknowledged ({done}), but: {ran}");
    does(&daemon, &act.undoes)?;
    scene.examine(&daemon)?;
    daemon.stop()?;
    Ok(())
}

fn reads_that_fail_lose_nothing_else(env: &Env) -> Result<()> {
    let scene = Scene::new(env)?;
    let mut chance = Chance::anew();
    let (mut started, rounds) = (0, wait::amount(6, 200));
    for round in 0..rounds {
        let (number, one_of) = (chance.number(), [200, 50, 12][round % 3]);
        unmount(env, &scene.root)?;
        scene.disk.fail(Faults { reads: Some((number, one_of)), writes: None });
        let shown = || format!("one of {one_of} pages cannot be read, by the number {number}");
        // A file system that cannot even be mounted says nothing of the daemon.
        if scene.mount().is_ok() {
            started += usize::from(look(&scene).with_context(shown)?);
            scene.boot()?;
        } else {
            scene.disk.fail(Faults::default());
            scene.mount()?;
        }
        let daemon = env.daemon().with_context(shown)?;
        let listed = daemon.gantry(&["ps", "-a", "--format", "{{.Names}}"])?.ok()?;
        ensure!(listed.text() == "web", "{}: {listed}", shown());
        // What could not be read may have been put aside, to be fetched again: only a pull can mend that.
        let mended = daemon.gantry(&["system", "fsck", "--repair"])?;
        let mut left = mended.text().lines().filter(|line| line.contains(" left "));
        let waits = mended.code() == 4 && left.all(|line| line.starts_with("blob-missing "));
        ensure!(mended.code() <= 1 || waits, "{}: {mended}", shown());
        does(&daemon, &["pull", "-q", &scene.kept]).with_context(shown)?;
        scene.examine(&daemon).with_context(shown)?;
        daemon.stop()?;
    }
    ensure!(started > 0, "the daemon has not started in any of {rounds} rounds");
    Ok(())
}

/// Everything that reads, on a disk that cannot. Says whether the daemon has started at all.
fn look(scene: &Scene<'_>) -> Result<bool> {
    let log = scene.env.path("gantryd.log");
    let daemon = scene.env.daemon();
    let is_started = daemon.is_ok();
    if let Ok(daemon) = daemon {
        let (kept, image) = (scene.kept.as_str(), scene.image.as_str());
        let archive = scene.env.path("archive.tar").to_string_lossy().into_owned();
        let calls: [&[&str]; 8] = [
            &["images"],
            &["ps", "-a"],
            &["system", "gc"],
            &["save", "-o", &archive, kept],
            &["pull", "-q", kept],
            &["pull", "-q", image],
            &["system", "fsck", "--deep"],
            &["system", "df", "-v"],
        ];
        for call in calls {
            // Whatever it answers.
            daemon.gantry(call)?;
        }
        daemon.crash()?;
    }
    ensure!(!read(&log)?.contains("panicked"), "{}", read(&log)?);
    Ok(is_started)
}

fn read(path: &Path) -> Result<String> {
    Ok(fs::read_to_string(path)?)
}

/// What the kernel still shows of an ingest after it could not write it is not what a client is told to be there.
fn an_ingest_is_resumed_from_the_disk(env: &Env) -> Result<()> {
    let (disk, root) = own_disk(env)?;
    let bytes = Chance::new(1).bytes(1 << 20);
    let digest = Digest::of(&bytes).to_string();
    let message = |action: WriteAction, offset: i64, data: &[u8]| WriteContentRequest {
        action: action.into(),
        r#ref: "half".to_owned(),
        total: 1 << 20,
        expected: digest.clone(),
        offset,
        data: data.to_vec().into(),
        labels: [("containerd.io/gc.root".to_owned(), "1".to_owned())].into(),
    };
    let daemon = env.daemon()?;
    write(env, &daemon, message(WriteAction::Write, 0, &bytes[..1 << 19]))?;
    let ingests = root.join("io.containerd.content.v1.content/ingest");
    let ingest = fs::read_dir(&ingests)?.next().context("no ingest")??.path();
    let data = fs::File::open(ingest.join("data"))?;
    disk.fail(Faults { writes: Some((0, usize::MAX)), reads: None });
    ensure!(data.sync_data().is_err(), "the disk did not fail");
    disk.fail(Faults::default());
    drop(data);
    if let Err(error) = write(env, &daemon, message(WriteAction::Commit, 1 << 19, &bytes[1 << 19..])) {
        ensure!(error.to_string().contains("digest"), "{error:#}");
        write(env, &daemon, message(WriteAction::Write, 0, &bytes))?;
        write(env, &daemon, message(WriteAction::Commit, 1 << 20, b""))?;
    }
    daemon.stop()?;
    unmount(env, &root)?;
    disk.mount_again(env)?;
    let daemon = env.daemon()?;
    let kept = fs::read(root.join("io.containerd.content.v1.content/blobs/sha256").join(&digest["sha256:".len()..]))?;
    ensure!(Digest::of(&kept).to_string() == digest, "a blob was acknowledged that the disk does not have");
    daemon.is_whole()?;
    daemon.stop()?;
    Ok(())
}

fn write(env: &Env, daemon: &Daemon<'_>, message: WriteContentRequest) -> Result<()> {
    daemon::runtime()?.block_on(async {
        let request = env.request(futures_util::stream::iter([message]));
        let mut answers = ContentClient::new(daemon.channel().await?).write(request).await?.into_inner();
        while answers.message().await?.is_some() {}
        Ok(())
    })
}
