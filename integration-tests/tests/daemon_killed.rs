//! The daemon, killed before each change that it makes to what it stores. Started again it has lost nothing that was there,
//! has nothing that belongs to nobody, and what was interrupted can be done again.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use integration_tests::changes::Changes;
use integration_tests::image::Packing;
use integration_tests::tar::Tar;
use integration_tests::{Daemon, Env, Image, Registry, Result, Test, tests, wait};

pub(crate) const TESTS: &[Test] = tests![
    a_pull_can_be_killed_anywhere [Root, Overlay, Fast],
    a_pull_into_images_can_be_killed_anywhere [Root, Overlay, Fast],
    a_pull_by_a_client_can_be_killed_anywhere [Root, Overlay, Fast],
    a_load_can_be_killed_anywhere [Root, Overlay, Fast],
    a_commit_can_be_killed_anywhere [Root, Overlay, Fast],
    a_removal_can_be_killed_anywhere [Root, Overlay, Fast],
    a_start_that_mends_can_be_killed_anywhere [Root, Overlay, Fast],
];

type Act<'a> = &'a dyn Fn(&Daemon<'_>) -> Result<()>;

/// A registry, with an image that is here, which nothing may harm, and one that is not.
struct Scene<'env> {
    env: &'env Env,
    args: Vec<String>,
    _registry: Registry,
    image: String,
}

impl<'env> Scene<'env> {
    fn new(env: &'env Env, config: &str) -> Result<Self> {
        let registry = Registry::start(env)?;
        let kept = Image::busybox()?.push(&registry, "test/kept", "1")?;
        let lower = Tar::new().dir("etc").file("etc/one", "1").file("etc/two", "2");
        let upper = Tar::new().file("etc/.wh.one", "").file("three", "3");
        let image = Image::empty().layer(lower, Packing::Gzip)?.layer(upper, Packing::Zstd)?;
        let image = image.push(&registry, "test/small", "1")?;
        let path = env.path("killed.toml");
        fs::write(&path, config)?;
        let args = vec!["--config".to_owned(), path.display().to_string()];
        let scene = Self { env, args, _registry: registry, image };
        scene.daemon()?.gantry(&["pull", "-q", &kept])?.ok()?;
        Ok(scene)
    }

    fn daemon(&self) -> Result<Daemon<'env>> {
        let mut daemon = self.daemon_begun()?;
        daemon.wait_ready()?;
        Ok(daemon)
    }

    fn daemon_begun(&self) -> Result<Daemon<'env>> {
        self.env.daemon_begun(&self.args.iter().map(String::as_str).collect::<Vec<_>>(), &[])
    }

    fn watch(&self, daemon: &Daemon<'_>, fatal: Option<(&str, usize)>) -> Result<Changes> {
        Changes::watch(daemon.pid(), &self.env.path("root"), fatal)
    }

    /// What is there must be whole, and the image that was there is.
    fn examine(&self, daemon: &Daemon<'_>) -> Result<()> {
        daemon.is_whole()?;
        ensure!(!daemon.log().contains("panicked"), "{}", daemon.log());
        let listed = daemon.gantry(&["images", "--format", "{{.Repository}}"])?.ok()?;
        ensure!(listed.stdout.contains("test/kept"), "an image is lost: {listed}");
        Ok(())
    }

    /// Whether a database was taken for damaged.
    fn is_mended(&self) -> Result<bool> {
        let names = fs::read_dir(self.env.path("root"))?.flatten().map(|entry| entry.file_name());
        Ok(names.into_iter().any(|name| name.to_string_lossy().contains(".damaged-")))
    }

    /// Kills the daemon before changes that `act` makes, which `undo` makes possible again.
    fn anywhere(&self, act: Act<'_>, undo: Act<'_>) -> Result<()> {
        let daemon = self.daemon()?;
        let changes = self.watch(&daemon, None)?;
        act(&daemon)?;
        daemon.crash()?;
        let all = changes.all()?;
        undo(&self.daemon()?)?;
        let (instants, mut missed) = (instants(self.env, &all), 0);
        for (kind, nth) in &instants {
            let mut daemon = self.daemon()?;
            let changes = self.watch(&daemon, Some((kind, *nth)))?;
            let done = act(&daemon);
            // It does not come so often each time.
            if done.is_ok() {
                missed += 1;
                daemon.crash()?;
            } else {
                ensure!(daemon.died(), "{done:?}, though not killed before {kind} {nth}: {}", daemon.log());
            }
            drop(changes);
            let daemon = self.daemon().with_context(|| format!("start after {kind} {nth}"))?;
            self.examine(&daemon).with_context(|| format!("killed before {kind} {nth}"))?;
            if done.is_err() {
                act(&daemon).with_context(|| format!("again after {kind} {nth}"))?;
                self.examine(&daemon).with_context(|| format!("again after {kind} {nth}"))?;
            }
            undo(&daemon)?;
        }
        ensure!(!self.is_mended()?, "the metadata was taken for damaged");
        ensure!(instants.len() > 6 && missed * 2 < instants.len(), "missed {missed} of {instants:?}");
        Ok(())
    }

    /// Takes away what a pull or a load has brought.
    fn forget(&self, daemon: &Daemon<'_>) -> Result<()> {
        does(daemon, &["rmi", &self.image])?;
        does(daemon, &["system", "gc"])
    }
}

fn does(daemon: &Daemon<'_>, args: &[&str]) -> Result<()> {
    daemon.gantry(args)?.ok().map(drop)
}

/// When to kill: before one change of each kind, another one in each run; or before every change, where there is time.
fn instants(env: &Env, all: &[String]) -> Vec<(String, usize)> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for kind in all {
        *counts.entry(kind).or_default() += 1;
    }
    let chance = env.token().bytes().fold(0, |sum, byte| sum * 31 % 1_000_003 + usize::from(byte));
    let of = |(kind, count): (&str, usize)| -> Vec<(String, usize)> {
        let nth = if wait::is_full() { 1..=count } else { chance % count + 1..=chance % count + 1 };
        nth.map(|nth| (kind.to_owned(), nth)).collect()
    };
    counts.into_iter().flat_map(of).collect()
}

fn a_pull_can_be_killed_anywhere(env: &Env) -> Result<()> {
    let scene = Scene::new(env, "")?;
    scene.anywhere(&|daemon| does(daemon, &["pull", "-q", &scene.image]), &|daemon| scene.forget(daemon))
}

fn a_pull_into_images_can_be_killed_anywhere(env: &Env) -> Result<()> {
    let scene = Scene::new(env, "[runtime]\nsnapshotter = \"erofs\"\n")?;
    scene.anywhere(&|daemon| does(daemon, &["pull", "-q", &scene.image]), &|daemon| scene.forget(daemon))
}

/// containerd's client writes content, applies layers and commits snapshots by itself.
fn a_pull_by_a_client_can_be_killed_anywhere(env: &Env) -> Result<()> {
    let scene = Scene::new(env, "")?;
    let pull = |daemon: &Daemon<'_>| -> Result<()> {
        let (socket, log) = (daemon.socket().display().to_string(), env.path("ctr.log"));
        let args =
            ["--address", &socket, "--namespace", env.namespace(), "image", "pull", "--plain-http", &scene.image];
        let output = fs::File::create(&log)?;
        let mut client = Command::new("ctr");
        env.prepare(&mut client);
        let mut client = client.args(args).stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).spawn()?;
        // It waits for ever for a daemon that is gone.
        let ended = wait::until_within(wait::seconds(30), "ctr or the daemon ends", || {
            let state = fs::read_to_string(format!("/proc/{}/stat", daemon.pid())).unwrap_or_default();
            client.try_wait().ok().flatten().map(|status| status.success()).or(state.contains(") Z ").then_some(false))
        });
        let _ = client.kill();
        client.wait()?;
        ensure!(ended?, "{}", fs::read_to_string(&log)?);
        Ok(())
    };
    scene.anywhere(&pull, &|daemon| {
        // What it held when it ended with the daemon.
        for lease in daemon.ctr(&["leases", "ls", "-q"])?.ok()?.stdout.lines() {
            daemon.ctr(&["leases", "rm", lease])?.ok()?;
        }
        scene.forget(daemon)
    })
}

fn a_load_can_be_killed_anywhere(env: &Env) -> Result<()> {
    let scene = Scene::new(env, "")?;
    let archive = env.path("archive.tar").to_string_lossy().into_owned();
    let daemon = scene.daemon()?;
    daemon.gantry(&["pull", "-q", &scene.image])?.ok()?;
    daemon.gantry(&["save", "-o", &archive, &scene.image])?.ok()?;
    scene.forget(&daemon)?;
    drop(daemon);
    scene.anywhere(&|daemon| does(daemon, &["load", "-q", "-i", &archive]), &|daemon| scene.forget(daemon))
}

fn a_commit_can_be_killed_anywhere(env: &Env) -> Result<()> {
    let scene = Scene::new(env, "")?;
    let daemon = scene.daemon()?;
    let kept = daemon.gantry(&["images", "--format", "{{.Repository}}:{{.Tag}}"])?.ok()?.text().to_owned();
    daemon.gantry(&["run", "--name", "web", &kept, "sh", "-c", "echo new > /etc/new; rm /etc/group"])?.ok()?;
    drop(daemon);
    scene.anywhere(&|daemon| does(daemon, &["commit", "web", "test/made:1"]), &|daemon| {
        does(daemon, &["rmi", "test/made:1"])?;
        does(daemon, &["system", "gc"])
    })?;
    does(&scene.daemon()?, &["rm", "web"])
}

fn a_removal_can_be_killed_anywhere(env: &Env) -> Result<()> {
    let scene = Scene::new(env, "")?;
    let make = |daemon: &Daemon<'_>| does(daemon, &["create", "--name", "web", &scene.image, "true"]);
    make(&scene.daemon()?)?;
    let remove = |daemon: &Daemon<'_>| {
        // Gone already or not: both are right after a crash.
        daemon.gantry(&["rm", "-f", "web"])?;
        daemon.gantry(&["rmi", &scene.image])?;
        does(daemon, &["system", "gc"])
    };
    scene.anywhere(&remove, &|daemon| {
        let left = daemon.gantry(&["system", "df", "-v", "--format", "{{.KeptBy}}"])?.ok()?;
        ensure!(!left.stdout.contains("test/small") && !left.stdout.contains("nothing"), "{left}");
        ensure!(!daemon.ctr(&["snapshots", "ls"])?.ok()?.stdout.contains("Active"), "a snapshot is left");
        make(daemon)
    })?;
    remove(&scene.daemon()?)
}

/// Each time with a database that must be made anew from its journal.
fn a_start_that_mends_can_be_killed_anywhere(env: &Env) -> Result<()> {
    let scene = Scene::new(env, "")?;
    let database = env.path("root/meta.redb");
    let damage = || -> Result<()> {
        let length = usize::try_from(fs::metadata(&database)?.len())?;
        Ok(fs::write(&database, vec![0x5a; length])?)
    };
    damage()?;
    let mut daemon = scene.daemon_begun()?;
    let changes = scene.watch(&daemon, None)?;
    daemon.wait_ready()?;
    daemon.crash()?;
    let instants = instants(env, &changes.all()?);
    ensure!(instants.len() > 8, "{instants:?}");
    for (kind, nth) in instants {
        damage()?;
        let mut daemon = scene.daemon_begun()?;
        let changes = scene.watch(&daemon, Some((&kind, nth)))?;
        if daemon.wait_ready().is_ok() {
            daemon.died_within(2);
        }
        drop((changes, daemon));
        let daemon = scene.daemon().with_context(|| format!("start after {kind} {nth}"))?;
        scene.examine(&daemon).with_context(|| format!("killed before {kind} {nth}"))?;
    }
    Ok(())
}
