//! What is stored is accounted for and survives: damage is found and mended.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use integration_tests::{Daemon, Env, Image, Registry, Result, Stack, Test, tests};
use serde_json::Value;

pub(crate) const TESTS: &[Test] = tests![
    damage_is_found_and_mended [Root, Overlay],
    space_is_accounted_for [Root, Overlay],
    nobody_else_sees_what_is_stored [Root, Overlay],
    lost_metadata_is_made_anew [Root, Overlay],
];

/// The kinds of what a check finds.
fn found(daemon: &Daemon<'_>, args: &[&str], code: i32) -> Result<Vec<String>> {
    let ran = daemon.gantry(&[&["system", "fsck", "--format", "json"], args].concat())?.exits(code)?;
    let kind = |line: &str| Ok(serde_json::from_str::<Value>(line)?["Kind"].as_str().unwrap_or_default().to_owned());
    ran.stdout.lines().map(kind).collect()
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
    stack.daemon.is_whole().context(name)?;
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

/// What a user who has no part in it can list, read or connect to, below a directory.
fn open_to_others(path: &Path, open: &mut Vec<String>) -> Result<()> {
    let metadata = fs::symlink_metadata(path)?;
    if metadata.is_symlink() {
        return Ok(());
    }
    if metadata.mode() & 0o006 != 0 {
        open.push(format!("{} has mode {:o}", path.display(), metadata.mode() & 0o7777));
    }
    if metadata.is_dir() && metadata.mode() & 0o001 != 0 {
        for entry in fs::read_dir(path)? {
            open_to_others(&entry?.path(), open)?;
        }
    }
    Ok(())
}

/// CVE-2021-41103, CVE-2021-41091, CVE-2024-25621: setuid programs, volumes and records in directories that anybody can go
/// through.
fn nobody_else_sees_what_is_stored(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    stack.gantry(&["run", "-d", "--name", "web", "--user", "1000", "IMAGE", "sleep", "1000"])?.ok()?;
    stack.gantry(&["run", "-d", "--name", "tty", "-t", "IMAGE", "sleep", "1000"])?.ok()?;
    stack.gantry(&["exec", "web", "true"])?.ok()?;
    let mut open = Vec::new();
    for directory in ["root", "state"] {
        open_to_others(&env.path(directory), &mut open)?;
    }
    ensure!(open.is_empty(), "{}", open.join("; "));
    Ok(())
}

/// Databases that were put aside.
fn damaged(env: &Env) -> Result<usize> {
    let names = fs::read_dir(env.path("root"))?.flatten().map(|entry| entry.file_name());
    Ok(names.filter(|name| name.to_string_lossy().starts_with("meta.redb.damaged-")).count())
}

fn lost_metadata_is_made_anew(env: &Env) -> Result<()> {
    let (registry, name) = Registry::with_busybox(env)?;
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
        daemon.is_whole()?;
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
