//! What the daemon has acknowledged is there after a power failure at any moment: blocks of a disk under its root are
//! written again up to a moment, with any part of what was not flushed by then, and a daemon is started on that.

use std::cell::RefCell;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, ensure};
use integration_tests::disk::{NotedDisk, mount_image, unmount};
use integration_tests::image::Packing;
use integration_tests::tar::Tar;
use integration_tests::{Chance, Daemon, Env, Image, Registry, Result, Test, tests, wait};

pub(crate) const TESTS: &[Test] = tests![
    a_power_failure_at_any_moment_loses_nothing_acknowledged [Root, Overlay, Fuse],
    a_power_failure_while_snapshots_are_made_leaves_whole_ones [Root, Overlay, Fuse],
];

/// Size of the disk.
const SIZE: u64 = 192 << 20;

/// What can be asked of the daemon after a power failure in a span of time.
struct Promise {
    what: String,
    from: usize,
    until: usize,
    asked: Vec<String>,
    /// What is answered; `None` where it must be refused.
    answer: Option<&'static str>,
}

/// What is done on the disk, and what holds since when.
struct Story<'a> {
    daemon: Daemon<'a>,
    disk: &'a NotedDisk,
    promises: RefCell<Vec<Promise>>,
}

impl Story<'_> {
    fn act(&self, args: &[&str]) -> Result<()> {
        self.daemon.gantry(args)?.ok().map(drop)
    }

    /// From now on `asked` has this answer.
    fn holds(&self, what: &str, asked: &[&str], answer: Option<&'static str>) {
        let asked = asked.iter().map(|word| (*word).to_owned()).collect();
        let promise = Promise { what: what.to_owned(), from: self.disk.now(), until: usize::MAX, asked, answer };
        self.promises.borrow_mut().push(promise);
    }

    /// From now on nothing is said of `what`.
    fn no_longer(&self, what: &str) {
        let now = self.disk.now();
        let mut promises = self.promises.borrow_mut();
        promises.iter_mut().filter(|it| it.what == what && it.until == usize::MAX).for_each(|it| it.until = now);
    }

    fn tell(&self, image: &str, unpacked: &str, archive: &str) -> Result<()> {
        self.act(&["pull", "-q", image])?;
        self.holds("image", &["run", "--rm", "--pull", "never", image, "echo", "here"], Some("here"));
        self.act(&["save", "-o", archive, image])?;
        self.act(&["create", "--name", "web", image, "sh", "-c", "echo new > /etc/new; rm /bin/ls"])?;
        self.holds("container", &["inspect", "-f", "{{.Name}}", "web"], Some("/web"));
        self.act(&["start", "-a", "web"])?;
        self.act(&["commit", "web", "made:1"])?;
        let look = "cat /etc/new; test -e /bin/ls || echo gone";
        self.holds("made", &["run", "--rm", "--pull", "never", "made:1", "sh", "-c", look], Some("new\ngone"));
        self.act(&["tag", "made:1", "other:1"])?;
        self.holds("tag", &["run", "--rm", "--pull", "never", "other:1", "cat", "/etc/new"], Some("new"));
        self.no_longer("container");
        self.act(&["rm", "web"])?;
        self.holds("no container", &["inspect", "web"], None);
        self.no_longer("made");
        self.act(&["rmi", "made:1"])?;
        self.holds("not made", &["run", "--rm", "--pull", "never", "made:1", "true"], None);
        self.no_longer("image");
        self.act(&["rmi", image])?;
        self.act(&["system", "gc"])?;
        // A client that has each layer applied and commits the snapshots itself.
        self.daemon.ctr(&["images", "pull", "--plain-http", unpacked])?.ok()?;
        self.holds("unpacked", &["run", "--rm", "--pull", "never", unpacked, "cat", "/etc/layer"], Some("client's"));
        self.act(&["load", "-i", archive])?;
        self.holds("image", &["run", "--rm", "--pull", "never", image, "echo", "here"], Some("here"));
        Ok(())
    }
}

/// The daemon after a boot, on what is left of the disk.
fn examine(env: &Env, moment: usize, promises: &[Promise], image: &str) -> Result<()> {
    fs::remove_dir_all(env.path("state"))
        .or_else(|error| if env.path("state").exists() { Err(error) } else { Ok(()) })?;
    let daemon = env.daemon()?;
    ensure!(!daemon.log().contains("panicked"), "{}", daemon.log());
    daemon.is_whole()?;
    for promise in promises.iter().filter(|it| (it.from..it.until).contains(&moment)) {
        let asked: Vec<&str> = promise.asked.iter().map(String::as_str).collect();
        let ran = daemon.gantry(&asked)?;
        match promise.answer {
            Some(answer) => ensure!(ran.code() == 0 && ran.text() == answer, "{}: {asked:?}: {ran}", promise.what),
            None => drop(ran.fails().with_context(|| promise.what.clone())?),
        }
    }
    daemon.gantry(&["pull", "-q", image])?.ok()?;
    daemon.gantry(&["run", "--rm", image, "true"])?.ok()?;
    daemon.is_whole()?;
    daemon.stop()?;
    Ok(())
}

fn a_power_failure_at_any_moment_loses_nothing_acknowledged(env: &Env) -> Result<()> {
    env.own_mounts()?;
    let registry = Registry::start(env)?;
    let image = Image::busybox()?.push(&registry, "test/busybox", "1")?;
    let layer = Tar::new().dir("etc").file("etc/layer", "client's");
    let unpacked = Image::busybox()?.layer(layer, Packing::Gzip)?.push(&registry, "test/unpacked", "1")?;
    let (root, archive) = (env.dir("root")?, env.path("archive.tar").to_string_lossy().into_owned());
    let disk = NotedDisk::mount(env, SIZE, &root)?;
    let begun = disk.now();
    let story = Story { daemon: env.daemon()?, disk: &disk, promises: RefCell::default() };
    story.tell(&image, &unpacked, &archive)?;
    let Story { daemon, promises, .. } = story;
    daemon.crash()?;
    unmount(env, &root)?;
    let (promises, ended, cut) = (promises.into_inner(), disk.now(), env.path("cut"));
    let mut chance = Chance::anew();
    let rounds = wait::amount(3, 200);
    for round in 0..rounds {
        // Spread over the story, and now and then right after something was acknowledged.
        let span = (ended - begun) / rounds;
        let aimed = begun + round * span + chance.below(span + 1);
        let moment = promises.iter().map(|it| it.from).find(|from| round % 2 == 1 && *from >= aimed).unwrap_or(aimed);
        disk.cut(moment, &cut, || chance.below(2) == 0)?;
        mount_image(env, &cut, &root)?;
        let failed = || format!("the power failed at {moment} of {begun}..{ended}");
        examine(env, moment, &promises, &image).with_context(failed)?;
        unmount(env, &root)?;
    }
    Ok(())
}

/// To whoever starts from now on, the machine has been started anew.
fn boot_anew(env: &Env, round: usize) -> Result<()> {
    let boot = env.path(&format!("boot-{round}"));
    fs::write(&boot, format!("00000000-0000-0000-0000-{round:012}\n"))?;
    env.run("mount", &["--bind", &boot.to_string_lossy(), "/proc/sys/kernel/random/boot_id"])?.ok()?;
    Ok(())
}

/// Does something with what a snapshot shows.
fn shown(env: &Env, daemon: &Daemon<'_>, key: &str, act: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let target = env.dir("shown")?;
    let mounts = daemon.ctr(&["snapshots", "mounts", &target.to_string_lossy(), key])?.ok()?;
    env.run("sh", &["-ec", mounts.text()])?.ok()?;
    let done = act(&target).with_context(|| key.to_owned());
    unmount(env, &target)?;
    done
}

/// What is told of snapshots that are made, and since when.
struct Made<'a> {
    env: &'a Env,
    disk: &'a NotedDisk,
    told: Vec<(usize, String)>,
    written: Vec<(usize, String)>,
}

impl Made<'_> {
    fn make(&mut self, daemon: &Daemon<'_>, keys: std::ops::Range<usize>) -> Result<()> {
        // Once the metadata is written over pages that have their place on the disk, a flush of it takes nothing else along.
        for change in 0..24 {
            daemon.ctr(&["snapshots", "label", "layer", &format!("change={change}")])?.ok()?;
        }
        for number in keys {
            let key = format!("key-{number}");
            daemon.ctr(&["snapshots", "prepare", &key, "layer"])?.ok()?;
            self.told.push((self.disk.now(), key));
        }
        Ok(())
    }

    /// Writes a file into the last, as a container does that wants it to last.
    fn write(&mut self, daemon: &Daemon<'_>) -> Result<()> {
        let (_, key) = self.told.last().context("none was made")?.clone();
        shown(self.env, daemon, &key, |dir| {
            fs::write(dir.join("file"), &key)?;
            Ok(fs::File::open(dir.join("file"))?.sync_all()?)
        })?;
        self.written.push((self.disk.now(), key));
        Ok(())
    }

    /// After a power failure all that was told is so.
    fn examine(&self, daemon: &Daemon<'_>, moment: usize) -> Result<()> {
        daemon.is_whole()?;
        for (_, key) in self.told.iter().filter(|(since, _)| *since <= moment) {
            let is_written = self.written.iter().any(|(since, other)| *since <= moment && other == key);
            shown(self.env, daemon, key, |dir| {
                ensure!(!is_written || fs::read_to_string(dir.join("file"))? == *key, "its file is lost");
                Ok(fs::write(dir.join("another"), "")?)
            })?;
        }
        // One that nobody was told of is there or not, and can be used or made.
        let next = self.told.iter().find(|(since, _)| *since > moment).map_or("another", |(_, key)| key);
        if daemon.ctr(&["snapshots", "info", next])?.code() != 0 {
            daemon.ctr(&["snapshots", "prepare", next, "layer"])?.ok()?;
        }
        shown(self.env, daemon, next, |_| Ok(()))?;
        daemon.is_whole()
    }
}

/// Who makes them is told once they are recorded: what is not on the disk by then is made again.
fn a_power_failure_while_snapshots_are_made_leaves_whole_ones(env: &Env) -> Result<()> {
    env.own_mounts()?;
    let root = env.dir("root")?;
    let disk = NotedDisk::mount(env, SIZE, &root)?;
    let daemon = env.daemon()?;
    daemon.ctr(&["snapshots", "prepare", "below"])?.ok()?;
    daemon.ctr(&["snapshots", "commit", "layer", "below"])?.ok()?;
    let begun = disk.now();
    let mut made = Made { env, disk: &disk, told: Vec::new(), written: Vec::new() };
    made.make(&daemon, 0..3)?;
    daemon.crash()?;
    let daemon = env.daemon()?;
    made.make(&daemon, 3..6)?;
    made.write(&daemon)?;
    made.make(&daemon, 6..10)?;
    let last = disk.now();
    wait::until("new snapshots are flushed", || (disk.now() > last).then_some(()))?;
    made.make(&daemon, 10..11)?;
    daemon.crash()?;
    unmount(env, &root)?;
    let (ended, cut, mut chance) = (disk.now(), env.path("cut"), Chance::anew());
    for round in 0..wait::amount(4, 300) {
        // At any moment, and every other time right after something was told.
        let moment = match round % 2 {
            0 => begun + chance.below(ended - begun + 1),
            _ => made.told[chance.below(made.told.len())].0,
        };
        disk.cut(moment, &cut, || chance.below(2) == 0)?;
        mount_image(env, &cut, &root)?;
        boot_anew(env, round)?;
        fs::remove_dir_all(env.path("state"))
            .or_else(|error| if env.path("state").exists() { Err(error) } else { Ok(()) })?;
        let daemon = env.daemon()?;
        let failed = || format!("the power failed at {moment} of {begun}..{ended}");
        made.examine(&daemon, moment).with_context(failed)?;
        daemon.stop()?;
        env.run("umount", &["/proc/sys/kernel/random/boot_id"])?.ok()?;
        unmount(env, &root)?;
    }
    Ok(())
}
