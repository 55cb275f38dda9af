//! What is stored survives: damage is found and mended, a crash at any step of a change leaves it before or after, and
//! a full disk only refuses.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use integration_tests::image::Packing;
use integration_tests::tar::Tar;
use integration_tests::{Daemon, Env, Image, Ran, Registry, Result, Stack, Test, tests, wait};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde_json::Value;

pub(crate) const TESTS: &[Test] = tests![
    damage_is_found_and_mended [Root, Overlay],
    space_is_accounted_for [Root, Overlay],
    lost_metadata_is_made_anew [Root, Overlay],
    a_crash_at_any_step_of_a_pull_harms_nothing [Root, Overlay],
    a_crash_at_any_step_of_a_load_harms_nothing [Root, Overlay],
    a_crash_at_any_step_of_a_commit_harms_nothing [Root, Overlay],
    a_crash_at_any_step_of_a_removal_harms_nothing [Root, Overlay],
    a_full_disk_refuses_archives_and_commits [Root, Overlay],
];

/// An image of two layers, which runs nothing.
fn small() -> Result<Image> {
    let lower = Tar::new().dir("etc").file("etc/one", "1").file("etc/two", "2");
    Image::empty()
        .layer(lower, Packing::Gzip)?
        .layer(Tar::new().file("etc/.wh.one", "").file("three", "3"), Packing::Zstd)
}

/// The kinds of what a check finds.
fn found(daemon: &Daemon<'_>, args: &[&str], code: i32) -> Result<Vec<String>> {
    let ran = daemon.gantry(&[&["system", "fsck", "--format", "json"], args].concat())?.exits(code)?;
    let kind = |line: &str| Ok(serde_json::from_str::<Value>(line)?["Kind"].as_str().unwrap_or_default().to_owned());
    ran.stdout.lines().map(kind).collect()
}

/// Nothing differs once the collection has run.
fn is_whole(daemon: &Daemon<'_>) -> Result<()> {
    daemon.gantry(&["system", "gc"])?.ok()?;
    daemon.gantry(&["system", "fsck", "--deep"])?.ok()?;
    Ok(())
}

fn blob(env: &Env, digest: &str) -> PathBuf {
    env.path("root/io.containerd.content.v1.content/blobs").join(digest.replace(':', "/"))
}

fn overwrite(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::remove_file(path)?;
    Ok(fs::write(path, bytes)?)
}

fn damage_is_found_and_mended(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    let (image, name) = (Image::busybox()?, stack.image.clone());
    stack.gantry(&["pull", "-q", "IMAGE"])?.ok()?;
    let said = stack.gantry(&["system", "fsck", "--deep"])?.ok()?;
    ensure!(said.stdout.contains("all is well"), "{said}");
    let layer = blob(env, &image.layers()[0].digest);
    let mut bytes = fs::read(&layer)?;
    bytes[100] ^= 1;
    overwrite(&layer, &bytes)?;
    ensure!(found(&stack.daemon, &[], 0)?.is_empty(), "it was read");
    ensure!(found(&stack.daemon, &["--deep"], 4)? == ["blob-digest"], "not found");
    ensure!(found(&stack.daemon, &["--deep", "--repair"], 1)? == ["blob-digest"], "not mended");
    ensure!(found(&stack.daemon, &["--repair"], 4)? == ["blob-missing"], "it is still there");
    stack.gantry(&["pull", "-q", "IMAGE"])?.ok()?;
    ensure!(found(&stack.daemon, &["--deep"], 0)?.is_empty(), "the pull has not fetched it again");
    for entry in fs::read_dir(env.path("root/io.containerd.snapshotter.v1.overlayfs/snapshots"))? {
        fs::remove_dir_all(entry?.path())?;
    }
    fs::write(blob(env, "sha256:stray"), "")?;
    let mut kinds = found(&stack.daemon, &["--repair"], 1)?;
    kinds.sort();
    ensure!(kinds == ["file-stray", "reference", "snapshot-files"], "{kinds:?}");
    ensure!(found(&stack.daemon, &["--deep"], 0)?.is_empty(), "not mended");
    stack.gantry(&["pull", "-q", "IMAGE"])?.ok()?;
    let ran = stack.gantry(&["run", "--rm", "--pull", "never", "IMAGE", "echo", "again"])?.ok()?;
    ensure!(ran.text() == "again", "{ran}");
    is_whole(&stack.daemon).context(name)?;
    let socket = env.path("nobody.sock");
    let mut command = env.command("gantry")?;
    command.env("GANTRY_ADDRESS", &socket).args(["system", "fsck"]);
    integration_tests::output::run(command)?.exits(8)?;
    Ok(())
}

fn space_is_accounted_for(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    stack.gantry(&["pull", "-q", "IMAGE"])?.ok()?;
    stack.gantry(&["create", "--name", "web", "IMAGE", "true"])?.ok()?;
    let layer = Image::busybox()?.layers()[0].clone();
    let listed =
        stack.gantry(&["system", "df", "-v", "--format", "{{.Type}} {{.Name}} {{.Bytes}} {{.KeptBy}}"])?.ok()?;
    let line = format!("blob {} {} image {}\n", layer.digest, layer.bytes.len(), stack.image);
    ensure!(listed.stdout.contains(&line), "no {line:?} in {listed}");
    ensure!(listed.stdout.contains(&format!("image {} ", stack.image)), "{listed}");
    ensure!(
        listed.stdout.lines().any(|line| line.starts_with("snapshot overlayfs/") && line.ends_with(" itself")),
        "{listed}"
    );
    let totals = stack.gantry(&["system", "df", "--format", "{{.Type}} {{.TotalCount}} {{.Active}}"])?.ok()?;
    for line in ["Images 1 1", "Containers 1 1", "Blobs 3 3", "Snapshots 2 2", "Ingests 0 0"] {
        ensure!(totals.stdout.lines().any(|it| it == line), "no {line:?} in {totals}");
    }
    let explain = |name: &str| Ok::<_, anyhow::Error>(stack.gantry(&["system", "gc", "--explain", name])?.ok()?.stdout);
    let way = explain(&layer.digest[7..20])?;
    let wanted = format!("image {}\n  target -> content ", stack.image);
    ensure!(way.starts_with(&wanted) && way.ends_with(&format!("content {}\n", layer.digest)), "{way}");
    ensure!(explain("web")?.contains("keeps itself"), "{}", explain("web")?);
    let json = stack.gantry(&["system", "gc", "--explain", &stack.image, "--format", "json"])?.ok()?;
    ensure!(serde_json::from_str::<Value>(json.text())?["Kept"] == Value::Bool(true), "{json}");
    ensure!(stack.gantry(&["system", "gc", "--explain", "no-such"])?.fails()?.contains("no-such"), "explained nothing");
    stack.gantry(&["rm", "web"])?.ok()?;
    stack.gantry(&["rmi", "IMAGE"])?.ok()?;
    stack.gantry(&["system", "gc"])?.ok()?;
    let left = stack.gantry(&["system", "df", "-v", "--format", "{{.Name}}"])?.ok()?;
    ensure!(left.text().is_empty(), "{left}");
    Ok(())
}

/// Databases that were put aside.
fn damaged(env: &Env) -> Result<usize> {
    let names = fs::read_dir(env.path("root"))?.flatten().map(|entry| entry.file_name());
    Ok(names.filter(|name| name.to_string_lossy().starts_with("meta.redb.damaged-")).count())
}

fn lost_metadata_is_made_anew(env: &Env) -> Result<()> {
    let registry = Registry::start(env)?;
    let name = Image::busybox()?.push(&registry, "test/busybox", "latest")?;
    let daemon = env.daemon()?;
    daemon.gantry(&["pull", "-q", &name])?.ok()?;
    daemon.gantry(&["create", "--name", "web", &name, "echo", "still here"])?.ok()?;
    let metadata = env.path("root/meta.redb");
    let journal = metadata.with_extension("journal");
    daemon.crash()?;
    // What runs again is what was here.
    drop(registry);
    let length = usize::try_from(fs::metadata(&metadata)?.len())?;
    let noise = |length: usize| (0..length).map(|at| at.to_le_bytes()[at % 3] ^ 0x5a).collect::<Vec<u8>>();
    for (round, damage) in [Vec::new(), vec![0x5a; length], noise(length)].into_iter().enumerate() {
        fs::write(&metadata, &damage)?;
        let daemon = env.daemon()?;
        ensure!(!daemon.log().contains("panicked"), "{}", daemon.log());
        ensure!(daemon.log().contains("made anew"), "{}", daemon.log());
        ensure!(damaged(env)? == 1, "round {round}: the damaged one is not put aside");
        let ran = daemon.gantry(&["start", "-a", "web"])?.ok()?;
        ensure!(ran.text() == "still here", "{ran}");
        is_whole(&daemon)?;
        daemon.crash()?;
        for entry in fs::read_dir(env.path("root"))?.flatten() {
            if entry.file_name().to_string_lossy().contains(".damaged-") {
                fs::remove_file(entry.path())?;
            }
        }
    }
    // Without the journal nothing is begun anew over what is there.
    let (backup, kept) = (fs::read(&metadata)?, fs::read(&journal)?);
    for damage in [Vec::new(), vec![0x5a; length], noise(length)] {
        fs::remove_file(&journal).or_else(|error| if journal.exists() { Err(error) } else { Ok(()) })?;
        fs::write(&metadata, &damage)?;
        let error = env.daemon().err().map(|error| format!("{error:#}")).unwrap_or_default();
        for part in ["meta.redb", "backup", "gantryd ended with"] {
            ensure!(error.contains(part), "does not say {part:?}: {error}");
        }
        ensure!(fs::read(&metadata)? == damage, "what is left of the metadata was changed");
    }
    fs::write(&metadata, &backup)?;
    fs::write(&journal, &kept)?;
    let daemon = env.daemon()?;
    daemon.gantry(&["rm", "web"])?.ok()?;
    let ran = daemon.gantry(&["run", "--rm", "--pull", "never", &name, "echo", "still here"])?.ok()?;
    ensure!(ran.text() == "still here", "{ran}");
    Ok(())
}

/// The steps; for many rounds, each of them the first time it comes, the second, and so on.
fn points(steps: &[&str]) -> Vec<String> {
    let times = wait::rounds(1).min(12);
    if times == 1 {
        return steps.iter().map(|step| (*step).to_owned()).collect();
    }
    let names = steps.iter().map(|step| step.split(':').next().unwrap_or(step));
    names.flat_map(|name| (1..=times).map(move |time| format!("{name}:{time}"))).collect()
}

/// Kills the daemon at a step of what `act` does, and looks what is there then.
fn crash(env: &Env, step: &str, kept: &str, act: &dyn Fn(&Daemon<'_>) -> Result<Ran>) -> Result<()> {
    let mut daemon = match env.daemon_dying_at(step) {
        // With many rounds some come while it starts.
        Err(_) if wait::rounds(1) > 1 => {
            return is_whole(&env.daemon()?).with_context(|| format!("after {step} of a start"));
        }
        other => other?,
    };
    let ran = act(&daemon)?;
    if ran.code() == 0 && wait::rounds(1) > 1 {
        // It does not come so often.
        return daemon.crash();
    }
    ensure!(daemon.died(), "the daemon never came to {step}");
    let daemon = env.daemon()?;
    is_whole(&daemon).with_context(|| format!("after {step}"))?;
    let listed = daemon.gantry(&["images", "--format", "{{.Repository}}"])?.ok()?;
    ensure!(listed.stdout.contains(kept), "{kept} is lost after {step}: {listed}");
    ensure!(damaged(env)? == 0, "the metadata was taken for damaged after {step}");
    act(&daemon)?.ok().with_context(|| format!("again after {step}"))?;
    is_whole(&daemon).with_context(|| format!("again after {step}"))
}

/// Removes an image with all that only it needs.
fn forget(env: &Env, image: &str) -> Result<()> {
    let daemon = env.daemon()?;
    daemon.gantry(&["rmi", image])?.ok()?;
    daemon.gantry(&["system", "gc"])?.ok()?;
    Ok(())
}

/// A registry, an image that is here, and one that is not.
fn two_images(env: &Env) -> Result<(Registry, String)> {
    let registry = Registry::start(env)?;
    let kept = Image::empty().layer(Tar::new().file("kept", "1"), Packing::Gzip)?.push(&registry, "test/kept", "1")?;
    let image = small()?.push(&registry, "test/small", "1")?;
    env.daemon()?.gantry(&["pull", "-q", &kept])?.ok()?;
    Ok((registry, image))
}

const STEPS_OF_A_PULL: &[&str] = &[
    "content.begun",
    "content.empty:2",
    "content.written:2",
    "layer.entry:2",
    "snapshot.made:2",
    "snapshot.recorded",
    "pull.flushed",
    "content.placed:2",
    "content.placed.synced",
    "content.recorded",
    "layers.committing",
    "layers.committed",
    "pull.stored",
    "pull.named",
    "metadata.commit:4",
    "metadata.committed:5",
];

fn a_crash_at_any_step_of_a_pull_harms_nothing(env: &Env) -> Result<()> {
    let (_registry, image) = two_images(env)?;
    for step in &points(STEPS_OF_A_PULL) {
        crash(env, step, "test/kept", &|daemon| daemon.gantry(&["pull", "-q", &image]))?;
        forget(env, &image)?;
    }
    Ok(())
}

const STEPS_OF_A_LOAD: &[&str] = &[
    "content.begun",
    "content.written:2",
    "content.placed",
    "content.recorded",
    "unpack.applied",
    "unpack.flushed",
    "layers.committing",
    "layers.committed",
    "metadata.commit:2",
    "metadata.committed:3",
];

fn a_crash_at_any_step_of_a_load_harms_nothing(env: &Env) -> Result<()> {
    let (_registry, image) = two_images(env)?;
    let archive = env.path("archive.tar").to_string_lossy().into_owned();
    let daemon = env.daemon()?;
    daemon.gantry(&["pull", "-q", &image])?.ok()?;
    daemon.gantry(&["save", "-o", &archive, &image])?.ok()?;
    daemon.gantry(&["rmi", &image])?.ok()?;
    daemon.gantry(&["system", "gc"])?.ok()?;
    drop(daemon);
    for step in &points(STEPS_OF_A_LOAD) {
        crash(env, step, "test/kept", &|daemon| daemon.gantry(&["load", "-i", &archive]))?;
        forget(env, &image)?;
    }
    Ok(())
}

const STEPS_OF_A_COMMIT: &[&str] = &[
    "content.written",
    "content.synced",
    "content.placed",
    "content.recorded",
    "unpack.flushed",
    "layers.committed",
    "metadata.commit:2",
    "metadata.committed:3",
];

fn a_crash_at_any_step_of_a_commit_harms_nothing(env: &Env) -> Result<()> {
    let (registry, _) = two_images(env)?;
    let image = Image::busybox()?.push(&registry, "test/busybox", "1")?;
    let daemon = env.daemon()?;
    daemon.gantry(&["run", "--name", "web", &image, "sh", "-c", "echo new > /etc/new; rm /etc/group"])?.ok()?;
    drop(daemon);
    for step in &points(STEPS_OF_A_COMMIT) {
        crash(env, step, "test/kept", &|daemon| daemon.gantry(&["commit", "web", "test/made:1"]))?;
        forget(env, "test/made:1")?;
    }
    env.daemon()?.gantry(&["rm", "web"])?.ok()?;
    Ok(())
}

/// The first collection is that of the start.
const STEPS_OF_A_REMOVAL: &[&str] =
    &["gc.begun", "gc.records", "gc.snapshots:2", "content.removed", "content.removed:3"];

fn a_crash_at_any_step_of_a_removal_harms_nothing(env: &Env) -> Result<()> {
    let (_registry, image) = two_images(env)?;
    for step in &points(STEPS_OF_A_REMOVAL) {
        env.daemon()?.gantry(&["pull", "-q", &image])?.ok()?;
        let remove = |daemon: &Daemon<'_>| {
            // Gone already or not: both are right after a crash.
            daemon.gantry(&["rmi", &image])?;
            daemon.gantry(&["system", "gc"])
        };
        crash(env, step, "test/kept", &remove)?;
        let left = env.daemon()?.gantry(&["system", "df", "-v", "--format", "{{.KeptBy}}"])?.ok()?;
        ensure!(!left.stdout.contains("test/small") && !left.stdout.contains("nothing"), "after {step}: {left}");
    }
    for step in ["snapshot.removing", "snapshot.removed"] {
        let daemon = env.daemon()?;
        daemon.gantry(&["create", "--name", "web", &image, "true"])?.ok()?;
        drop(daemon);
        let mut daemon = env.daemon_dying_at(step)?;
        // The files go beside the answer.
        daemon.gantry(&["rm", "web"])?;
        ensure!(daemon.died(), "the daemon never came to {step}");
        let daemon = env.daemon()?;
        daemon.gantry(&["rm", "-f", "web"])?;
        is_whole(&daemon).context(step)?;
        let left = daemon.ctr(&["snapshots", "ls"])?.ok()?;
        ensure!(!left.stdout.contains("Active"), "after {step}: {left}");
    }
    Ok(())
}

/// Takes all space but `left` bytes.
fn fill(path: &Path, left: u64) -> Result<()> {
    use std::io::Write as _;
    let mut file = fs::File::create(path)?;
    let piece = vec![0; 64 << 10];
    while file.write_all(&piece).is_ok() {}
    let length = file.metadata()?.len();
    Ok(file.set_len(length.saturating_sub(left))?)
}

fn a_full_disk_refuses_archives_and_commits(env: &Env) -> Result<()> {
    // The mount is this process's alone and goes with it.
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    let root = env.dir("root")?;
    mount(Some("small"), &root, Some("tmpfs"), MsFlags::empty(), Some("size=64m"))?;
    let registry = Registry::start(env)?;
    let name = Image::busybox()?.push(&registry, "test/busybox", "1")?;
    let archive = env.path("archive.tar").to_string_lossy().into_owned();
    let daemon = env.daemon()?;
    // More than what is set aside for the metadata, and then given up.
    let write = ["run", "--name", "web", &name, "dd", "if=/dev/urandom", "of=/noise", "bs=1M", "count=12"];
    daemon.gantry(&write)?.ok()?;
    let filler = root.join("filler");
    let refused = |act: &[&str]| -> Result<()> {
        for left in [0, 64 << 10, 512 << 10, 3 << 20] {
            fill(&filler, left)?;
            let ran = daemon.gantry(act)?;
            fs::remove_file(&filler)?;
            let shown = format!("{act:?} with {left} bytes left: {ran}");
            let said = ran.fails().context(shown.clone())?;
            ensure!(said.contains("no space left"), "{shown}");
            is_whole(&daemon).context(shown)?;
        }
        daemon.gantry(act)?.ok()?;
        is_whole(&daemon)
    };
    refused(&["commit", "web", "test/made:1"])?;
    daemon.gantry(&["save", "-o", &archive, "test/made:1"])?.ok()?;
    daemon.gantry(&["rm", "web"])?.ok()?;
    daemon.gantry(&["rmi", "test/made:1", &name])?.ok()?;
    daemon.gantry(&["system", "gc"])?.ok()?;
    refused(&["load", "-i", &archive])?;
    Ok(())
}
