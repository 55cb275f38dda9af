//! Bits that flip and ends that are missing, in any file of the daemon's: it starts, says what is damaged, mends what it
//! can, and what it cannot is fetched again.

use std::fs;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use gantry_proto::containerd::services::tasks::v1::tasks_client::TasksClient;
use gantry_proto::containerd::services::tasks::v1::{DeleteTaskRequest, KillRequest, WaitRequest};
use gantry_proto::runtime::v1;
use integration_tests::image::Packing;
use integration_tests::pods::Pods;
use integration_tests::tar::Tar;
use integration_tests::{Chance, Daemon, Env, Image, Registry, Result, Test, daemon, tests, wait};

pub(crate) const TESTS: &[Test] = tests![
    random_damage_of_any_file_is_survived [Root, Overlay],
    damage_is_found_in_the_background [Root, Overlay],
    a_damaged_image_harms_no_other [Root, Overlay],
    an_older_copy_of_the_records_takes_nothing_from_who_runs [Root, Overlay],
];

/// Flips some bits of a file, or takes its end away, and says what was done.
fn damage(path: &Path, chance: &mut Chance) -> Result<String> {
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    let file = fs::File::options().read(true).write(true).open(path)?;
    let length = usize::try_from(file.metadata()?.len())?;
    if chance.below(3) == 0 {
        let left = chance.below(length);
        file.set_len(left as u64)?;
        return Ok(format!("{} has {left} of {length} bytes", path.display()));
    }
    let count = 1 + chance.below(64);
    for _ in 0..count {
        let (at, mut byte) = (chance.below(length) as u64, [0]);
        file.read_exact_at(&mut byte, at)?;
        byte[0] ^= 1 << chance.below(8);
        file.write_all_at(&byte, at)?;
    }
    Ok(format!("{} has {count} flipped bits", path.display()))
}

/// Every file of the daemon's own below a directory: what is in layers is the images'.
fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir)?.flatten() {
        let (path, metadata) = (entry.path(), entry.metadata()?);
        let is_layer = path.ends_with("fs") || path.ends_with("work");
        if metadata.is_dir() && !is_layer {
            all.extend(files(&path)?);
        } else if metadata.is_file() && metadata.len() > 0 && !path.to_string_lossy().contains(".damaged-") {
            all.push(path);
        }
    }
    all.sort();
    Ok(all)
}

fn random_damage_of_any_file_is_survived(env: &Env) -> Result<()> {
    let registry = Registry::start(env)?;
    let image = Image::busybox()?.layer(Tar::new().file("etc/more", "more"), Packing::Zstd)?;
    let name = image.push(&registry, "test/busybox", "1")?;
    let mut chance = Chance::anew();
    let seed = chance.seed;
    for round in 0..wait::rounds(8) {
        let daemon = env.daemon()?;
        daemon.gantry(&["pull", "-q", &name])?.ok()?;
        // An ingest that nobody finishes.
        daemon.ctr(&["content", "ingest", "--expected-size", "100", "unfinished"])?;
        daemon.crash()?;
        let all = files(&env.path("root"))?;
        // The database more often than any other.
        let file = match chance.below(3) {
            0 => env.path("root/meta.redb"),
            _ => all[chance.below(all.len())].clone(),
        };
        let what = format!("seed {seed}, round {round}: {}", damage(&file, &mut chance)?);
        survives(env, &name).context(what)?;
    }
    Ok(())
}

fn survives(env: &Env, name: &str) -> Result<()> {
    let daemon = env.daemon()?;
    // What differs is mended, or is for a pull to mend.
    daemon.gantry(&["system", "fsck", "--deep", "--repair"])?;
    daemon.gantry(&["pull", "-q", name])?.ok()?;
    let ran = daemon.gantry(&["run", "--rm", "--pull", "never", name, "cat", "/etc/more"])?.ok()?;
    ensure!(ran.text() == "more", "{ran}");
    daemon.gantry(&["system", "gc"])?.ok()?;
    daemon.gantry(&["system", "fsck", "--deep"])?.ok()?;
    ensure!(!daemon.log().contains("panicked"), "{}", daemon.log());
    Ok(())
}

fn a_damaged_image_harms_no_other(env: &Env) -> Result<()> {
    let registry = Registry::start(env)?;
    let broken = Image::busybox()?.setting("User", "1000");
    let (good, bad) = (Image::busybox()?.push(&registry, "good", "1")?, broken.push(&registry, "broken", "1")?);
    let daemon = env.daemon()?;
    let mut pods = Pods::connect(env, &daemon)?;
    for name in [&good, &bad] {
        daemon.gantry(&["pull", "-q", name])?.ok()?;
        pods.pull(name)?;
    }
    daemon.gantry(&["create", "--name", "web", &bad, "true"])?.ok()?;
    let config =
        env.path("root/io.containerd.content.v1.content/blobs").join(broken.config()?.digest.replace(':', "/"));
    let flip = || -> Result<()> {
        let mut bytes = fs::read(&config)?;
        bytes[7] ^= 1;
        fs::remove_file(&config)?;
        Ok(fs::write(&config, bytes)?)
    };
    let kubelets = |pods: &mut Pods<'_>| -> Result<Vec<String>> {
        let listed = pods.runtime.block_on(pods.images.list_images(v1::ListImagesRequest { filter: None }))?;
        Ok(listed.into_inner().images.into_iter().flat_map(|image| image.repo_tags).collect())
    };
    flip()?;
    // What it knew of the image is gone with it.
    daemon.stop()?;
    let daemon = env.daemon()?;
    let mut pods = Pods::connect(env, &daemon)?;
    let listed = daemon.gantry(&["images", "--format", "{{.Repository}} {{.ID}}"])?.ok()?;
    let line = |name: &str| listed.stdout.lines().find(|line| line.contains(name)).unwrap_or_default();
    ensure!(
        line("broken").ends_with(" <damaged>") && line("good").contains(' ') && !line("good").contains('<'),
        "{listed}"
    );
    ensure!(daemon.gantry(&["images", "-q"])?.ok()?.stdout.lines().count() == 1, "one without an id");
    ensure!(daemon.gantry(&["ps", "-a"])?.ok()?.stdout.contains("web"), "its container is not listed");
    daemon.ctr(&["images", "ls", "-q"])?.ok()?;
    ensure!(kubelets(&mut pods)? == [good.clone()] && pods.image(&bad)?.is_none(), "a kubelet sees it");
    pods.pull(&bad)?;
    ensure!(kubelets(&mut pods)?.len() == 2, "the pull has not mended it");
    daemon.gantry(&["run", "--rm", "--pull", "never", &bad, "true"])?.ok()?;
    flip()?;
    daemon.gantry(&["rm", "web"])?.ok()?;
    daemon.gantry(&["rmi", &bad])?.ok().context("remove the damaged image")?;
    ensure!(!daemon.gantry(&["images"])?.ok()?.stdout.contains("broken"), "it is still there");
    Ok(())
}

/// The daemon, with blobs that are verified every second.
fn verifying(env: &Env) -> Result<Daemon<'_>> {
    env.daemon_configured("[content]\nverify_rate = 64\nverify_interval = 1\n")
}

fn damage_is_found_in_the_background(env: &Env) -> Result<()> {
    let registry = Registry::start(env)?;
    let image = Image::busybox()?;
    let name = image.push(&registry, "test/busybox", "1")?;
    let daemon = verifying(env)?;
    daemon.gantry(&["pull", "-q", &name])?.ok()?;
    let content = env.path("root/io.containerd.content.v1.content");
    let layer = content.join("blobs").join(image.layers()[0].digest.replace(':', "/"));
    let mut bytes = fs::read(&layer)?;
    bytes[1000] ^= 4;
    fs::write(&layer, bytes)?;
    wait::until_within(wait::seconds(30), "the damaged blob is put aside", || (!layer.exists()).then_some(()))?;
    ensure!(fs::read_dir(content.join("damaged"))?.count() == 1, "it is nowhere");
    ensure!(daemon.log().contains("content is damaged"), "{}", daemon.log());
    daemon.gantry(&["pull", "-q", &name])?.ok()?;
    ensure!(layer.exists(), "the pull has not fetched it again");
    daemon.gantry(&["system", "fsck", "--deep"])?.ok()?;
    Ok(())
}

fn an_older_copy_of_the_records_takes_nothing_from_who_runs(env: &Env) -> Result<()> {
    let registry = Registry::start(env)?;
    let name = Image::busybox()?.push(&registry, "test/busybox", "1")?;
    env.daemon()?.stop()?;
    let (records, older) = (env.path("root/meta.redb"), env.path("older.redb"));
    fs::copy(&records, &older)?;
    let daemon = env.daemon()?;
    let id = daemon.gantry(&["run", "-d", &name, "sleep", "1000"])?.ok()?.text().to_owned();
    let pid = daemon.gantry(&["inspect", "-f", "{{.State.Pid}}", &id])?.ok()?.text().to_owned();
    daemon.stop()?;
    fs::copy(&older, &records)?;
    let daemon = env.daemon()?;
    daemon.gantry(&["system", "gc"])?.ok()?;
    ensure!(daemon.log().contains("are mounted, and are left"), "{}", daemon.log());
    let program = format!("/proc/{pid}/root/bin/busybox");
    ensure!(fs::read(&program).is_ok_and(|bytes| !bytes.is_empty()), "the container has lost its files");
    // Nobody knows the container any more, but its task is there.
    daemon::runtime()?.block_on(async {
        let mut tasks = TasksClient::new(daemon.channel().await?);
        let container_id = || id.clone();
        let kill = KillRequest { container_id: container_id(), signal: 9, ..KillRequest::default() };
        tasks.kill(env.request(kill)).await?;
        let ended = WaitRequest { container_id: container_id(), ..WaitRequest::default() };
        tasks.wait(env.request(ended)).await?;
        tasks.delete(env.request(DeleteTaskRequest { container_id: container_id() })).await?;
        anyhow::Ok(())
    })?;
    let snapshots = env.path("root/io.containerd.snapshotter.v1.overlayfs/snapshots");
    wait::until("its snapshots are gone too", || {
        let collected = daemon.gantry(&["system", "gc"]).and_then(|ran| ran.ok());
        let is_empty = || fs::read_dir(&snapshots).is_ok_and(|mut left| left.next().is_none());
        (collected.is_ok() && is_empty()).then_some(())
    })
}
