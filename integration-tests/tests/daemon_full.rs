//! A full disk refuses what needs space, at whatever step it is met, loses nothing, and does not keep anybody from what
//! frees space.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use integration_tests::image::Packing;
use integration_tests::tar::Tar;
use integration_tests::{Chance, Daemon, Env, Image, Ran, Registry, Result, Test, tests, wait};
use nix::mount::{MsFlags, mount};

pub(crate) const TESTS: &[Test] = tests![
    what_needs_space_is_refused_at_any_step [Root, Overlay],
    archives_and_commits_are_refused_at_any_step [Root, Overlay],
    a_full_daemon_starts_lists_and_frees [Root, Overlay],
    an_end_without_space_is_recorded [Root, Overlay],
];

/// A small disk for the daemon's root. The mount is this process's alone and goes with it.
pub(crate) fn small_disk(env: &Env) -> Result<PathBuf> {
    env.own_mounts()?;
    let root = env.dir("root")?;
    mount(Some("small"), &root, Some("tmpfs"), MsFlags::empty(), Some("size=64m"))?;
    Ok(root)
}

/// Takes all space but `left` bytes.
pub(crate) fn fill(root: &Path, left: u64) -> Result<()> {
    use std::io::Write as _;
    let mut file = fs::File::create(root.join("filler"))?;
    let piece = vec![0; 64 << 10];
    while file.write_all(&piece).is_ok() {}
    // The last pages, which are less than a piece.
    while file.write_all(&piece[..4096]).is_ok() {}
    let length = file.metadata()?.len();
    Ok(file.set_len(length.saturating_sub(left))?)
}

pub(crate) fn free(root: &Path) -> Result<()> {
    fs::remove_file(root.join("filler")).context("free the disk")
}

/// Bytes that are left, from nothing to more than any step needs. With many rounds, many of them.
fn amounts() -> Vec<u64> {
    let pages =
        if wait::amount(0, 1) == 1 { (0..24).chain((24..1000).step_by(37)).collect() } else { vec![0, 5, 40, 700] };
    pages.into_iter().map(|page: u64| page << 12).collect()
}

type Act<'a> = &'a dyn Fn(&Daemon<'_>) -> Result<Ran>;

/// Tries `act` with ever more space, until it has enough, and once more without any limit. `undo` makes it possible
/// again. Returns how often it was refused: what is set aside for the metadata is enough for small things.
fn refused(root: &Path, daemon: &Daemon<'_>, what: &str, act: Act<'_>, undo: Act<'_>) -> Result<usize> {
    let mut refusals = 0;
    for left in amounts() {
        fill(root, left)?;
        let ran = act(daemon);
        free(root)?;
        let ran = ran?;
        let shown = format!("{what} with {left} bytes left: {ran}");
        ensure!(!daemon.log().contains("panicked"), "{shown}: {}", daemon.log());
        if ran.code() == 0 {
            undo(daemon)?.ok().context(shown.clone())?;
        } else {
            ensure!(ran.stderr.contains("no space left") || ran.stderr.contains("locked"), "{shown}");
            refusals += 1;
        }
        daemon.is_whole().context(shown)?;
    }
    act(daemon)?.ok().with_context(|| format!("{what} with space"))?;
    daemon.is_whole().with_context(|| format!("after {what}"))?;
    let images = daemon.gantry(&["images", "--format", "{{.Repository}}"])?.ok()?;
    ensure!(images.stdout.contains("test/kept"), "{what} lost an image: {images}");
    Ok(refusals)
}

fn what_needs_space_is_refused_at_any_step(env: &Env) -> Result<()> {
    let root = small_disk(env)?;
    let registry = Registry::start(env)?;
    let kept = Image::busybox()?.push(&registry, "test/kept", "1")?;
    let noise = Chance::new(1).bytes(1 << 20);
    let image = Image::empty()
        .layer(Tar::new().dir("etc").file("etc/noise", noise.clone()), Packing::Gzip)?
        .layer(Tar::new().file("etc/.wh.noise", "").file("more", noise), Packing::Zstd)?
        .push(&registry, "test/noise", "1")?;
    let daemon = env.daemon()?;
    daemon.gantry(&["pull", "-q", &kept])?.ok()?;
    let parent = daemon.ctr(&["snapshots", "ls"])?.ok()?;
    let parent =
        parent.stdout.lines().find(|line| line.trim_end().ends_with("Committed")).context("no snapshot")?.to_owned();
    let parent = parent.split_whitespace().next().context("no name")?.to_owned();
    let archive = env.path("archive.tar").to_string_lossy().into_owned();
    let forget = |daemon: &Daemon<'_>| daemon.gantry(&["rmi", &image]);
    let try_it = |what: &str, act: Act<'_>, undo: Act<'_>| refused(&root, &daemon, what, act, undo);
    let refusals = try_it("pull", &|daemon| daemon.gantry(&["pull", "-q", &image]), &forget)?;
    ensure!(refusals > 0, "pull was never refused");
    daemon.gantry(&["save", "-o", &archive, &image])?.ok()?;
    forget(&daemon)?.ok()?;
    let refusals = try_it("ctr import", &|daemon| daemon.ctr(&["images", "import", &archive]), &forget)?;
    ensure!(refusals > 0, "ctr import was never refused");
    forget(&daemon)?.ok()?;
    let remove = |key: &'static str| move |daemon: &Daemon<'_>| daemon.ctr(&["snapshots", "rm", key]);
    try_it("prepare", &|daemon| daemon.ctr(&["snapshots", "prepare", "key", &parent]), &remove("key"))?;
    let mounts = daemon.ctr(&["snapshots", "mounts", "/nowhere", "key"])?.ok()?;
    let upper =
        mounts.stdout.split("upperdir=").nth(1).and_then(|rest| rest.split(',').next()).context("no upperdir")?;
    fs::write(Path::new(upper).join("new"), "new").context("write into the snapshot")?;
    try_it("diff", &|daemon| daemon.ctr(&["snapshots", "diff", "--keep", "key"]), &|daemon| {
        daemon.gantry(&["system", "gc"])
    })?;
    let again = |daemon: &Daemon<'_>| {
        daemon.ctr(&["snapshots", "rm", "name"])?.ok()?;
        daemon.ctr(&["snapshots", "prepare", "key", &parent])
    };
    try_it("commit", &|daemon| daemon.ctr(&["snapshots", "commit", "name", "key"]), &again)?;
    remove("name")(&daemon)?.ok()?;
    daemon.is_whole()
}

fn archives_and_commits_are_refused_at_any_step(env: &Env) -> Result<()> {
    let root = small_disk(env)?;
    let registry = Registry::start(env)?;
    let kept = Image::busybox()?.push(&registry, "test/kept", "1")?;
    let archive = env.path("archive.tar").to_string_lossy().into_owned();
    let daemon = env.daemon()?;
    // More than what is set aside for the metadata, and then given up.
    let write = ["run", "--name", "web", &kept, "dd", "if=/dev/urandom", "of=/noise", "bs=1M", "count=12"];
    daemon.gantry(&write)?.ok()?;
    let forget = |daemon: &Daemon<'_>| daemon.gantry(&["rmi", "test/made:1"]);
    let commit = |daemon: &Daemon<'_>| daemon.gantry(&["commit", "web", "test/made:1"]);
    ensure!(refused(&root, &daemon, "commit", &commit, &forget)? > 0, "commit was never refused");
    daemon.gantry(&["save", "-o", &archive, "test/made:1"])?.ok()?;
    daemon.gantry(&["rm", "web"])?.ok()?;
    forget(&daemon)?.ok()?;
    let load = |daemon: &Daemon<'_>| daemon.gantry(&["load", "-i", &archive]);
    ensure!(refused(&root, &daemon, "load", &load, &forget)? > 0, "load was never refused");
    Ok(())
}

/// What must be written down when a container ends is, sooner or later, and it is not taken for one that runs.
fn an_end_without_space_is_recorded(env: &Env) -> Result<()> {
    let root = small_disk(env)?;
    let registry = Registry::start(env)?;
    let image = Image::busybox()?.push(&registry, "test/kept", "1")?;
    let daemon = env.daemon()?;
    let names: Vec<String> = (0..4).map(|number| format!("c{number}")).collect();
    for name in &names {
        daemon.gantry(&["run", "-d", "--name", name, &image, "sleep", "100000"])?.ok()?;
    }
    let status = |daemon: &Daemon<'_>| -> Result<Vec<String>> {
        let listed = daemon.gantry(&["ps", "-a", "--format", "{{.Status}}"])?.ok()?;
        Ok(listed.stdout.lines().map(str::to_owned).collect())
    };
    for name in &names {
        fill(&root, 0)?;
        daemon.gantry(&["kill", name])?.ok().context("kill without space")?;
        daemon.gantry(&["wait", name])?.ok().context("wait without space")?;
    }
    free(&root)?;
    wait::until_within(wait::seconds(60), "all tasks are gone", || {
        (daemon.ctr(&["tasks", "ls"]).ok()?.stdout.lines().count() == 1).then_some(())
    })?;
    ensure!(status(&daemon)?.iter().all(|it| it.starts_with("Exited (137)")), "{:?}", status(&daemon)?);
    daemon.crash()?;
    let daemon = env.daemon()?;
    ensure!(status(&daemon)?.iter().all(|it| it.starts_with("Exited (137)")), "{:?}", status(&daemon)?);
    daemon.gantry(&["start", "c0"])?.ok()?;
    daemon.gantry(&["rm", "-f", "c0", "c1", "c2", "c3"])?.ok()?;
    daemon.is_whole()
}

fn a_full_daemon_starts_lists_and_frees(env: &Env) -> Result<()> {
    let root = small_disk(env)?;
    let registry = Registry::start(env)?;
    let kept = Image::busybox()?.push(&registry, "test/kept", "1")?;
    let spare = Image::empty().layer(Tar::new().file("a", "1"), Packing::Gzip)?.push(&registry, "test/spare", "1")?;
    let unused = Image::empty().layer(Tar::new().file("b", "1"), Packing::Gzip)?.push(&registry, "test/unused", "1")?;
    let daemon = env.daemon()?;
    for image in [&kept, &spare, &unused] {
        daemon.gantry(&["pull", "-q", image])?.ok()?;
    }
    daemon.gantry(&["create", "--name", "web", &kept, "true"])?.ok()?;
    daemon.stop()?;
    fill(&root, 0)?;
    // After an end that was asked for, and after one that was not.
    let daemon = env.daemon().context("start without space")?;
    daemon.crash()?;
    fill(&root, 0)?;
    let daemon = env.daemon().context("start without space after a crash")?;
    let listed = daemon.gantry(&["images", "--format", "{{.Repository}}"])?.ok()?;
    for name in ["test/kept", "test/spare", "test/unused"] {
        ensure!(listed.stdout.contains(name), "{listed}");
    }
    ensure!(daemon.gantry(&["ps", "-a"])?.ok()?.stdout.contains("web"), "the container is not listed");
    for list in [["containers", "ls"], ["snapshots", "ls"], ["content", "ls"], ["leases", "ls"]] {
        daemon.ctr(&list)?.ok().context("list without space")?;
    }
    fill(&root, 0)?;
    daemon.gantry(&["rmi", &spare])?.ok().context("remove an image without space")?;
    fill(&root, 0)?;
    daemon.gantry(&["rm", "web"])?.ok().context("remove a container without space")?;
    fill(&root, 0)?;
    daemon.gantry(&["image", "prune", "-a", "-f"])?.ok().context("prune without space")?;
    fill(&root, 0)?;
    daemon.gantry(&["system", "gc"])?.ok().context("collect without space")?;
    let left = daemon.gantry(&["images", "-q"])?.ok()?;
    ensure!(left.text().is_empty(), "{left}");
    free(&root)?;
    daemon.is_whole()?;
    daemon.gantry(&["pull", "-q", &spare])?.ok().context("pull with space again")?;
    daemon.is_whole()
}
