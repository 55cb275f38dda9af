//! Checkpoints of containers in pods: archives, and containers that go on from them.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::Context as _;
use gantry_proto::runtime::v1;
use integration_tests::pods::Pods;
use integration_tests::tar::Tar;
use integration_tests::{Daemon, Env, Image, Registry, Result, Test, tests, wait};

use crate::daemon_checkpoints::stand_in;

pub(crate) const TESTS: &[Test] = tests![
    a_checkpoint_is_an_archive_and_is_restored_from [Root, Overlay],
    a_container_goes_on_from_its_archive [Root, Overlay, Criu, EveryHost],
];

/// A daemon that restores, or does not; with another runtime than its own, or not.
fn start<'env>(env: &'env Env, restores: bool, runtime: Option<&Path>) -> Result<Daemon<'env>> {
    let config = env.path("config.toml");
    let runtime = runtime.map(|path| format!("[cri.runtimes.rung]\nbinary = {path:?}\n")).unwrap_or_default();
    fs::write(&config, format!("[cri]\nrestore_checkpoints = {restores}\n{runtime}"))?;
    env.daemon_with(&["--config", &config.to_string_lossy()])
}

fn logged(env: &Env, log: &str, text: &str) -> Result<()> {
    let path = env.path("logs").join(log);
    wait::until("it says so", || fs::read_to_string(&path).ok()?.contains(text).then_some(()))
}

fn checkpoint(pods: &mut Pods<'_>, container: &str, location: &str) -> std::result::Result<(), tonic::Status> {
    let request = v1::CheckpointContainerRequest {
        container_id: container.to_owned(),
        location: location.to_owned(),
        timeout: 0,
    };
    pods.runtime.block_on(pods.pods.checkpoint_container(request)).map(drop)
}

fn a_checkpoint_is_an_archive_and_is_restored_from(env: &Env) -> Result<()> {
    let (registry, runtime) = (Registry::start(env)?, stand_in(env)?);
    let image = Image::busybox()?.layer(Tar::new().file("gone", ""), integration_tests::image::Packing::Gzip)?;
    let image = image.push(&registry, "test/busybox", "latest")?;
    let daemon = start(env, false, Some(&runtime))?;
    let mut pods = Pods::connect(env, &daemon)?;
    pods.pull(&image)?;
    let config = pods.pod_config("pod");
    let pod = pods.run(&config)?;
    let script = "echo changed > /file; rm /gone; echo ready; sleep 1000";
    let first = pods.start(&pod, &config, &image, &["sh", "-c", script], |container| {
        container.log_path = "first.log".into();
    })?;
    logged(env, "first.log", "ready")?;
    let archive = env.path("first.tar").to_string_lossy().into_owned();
    let refused = checkpoint(&mut pods, &first, "first.tar").expect_err("nobody knows where that is");
    assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{refused}");
    checkpoint(&mut pods, &first, &archive)?;
    let list = env.run("tar", &["-tf", &archive])?.ok()?.text().to_owned();
    let names = [
        "checkpoint/pages-1.img",
        "rootfs-diff.tar",
        "spec.dump",
        "config.dump",
        "status.dump",
        "status",
        "container.log",
    ];
    for name in names {
        assert!(list.lines().any(|line| line == name), "{name}: {list}");
    }
    assert_eq!(fs::metadata(&archive)?.permissions().mode() & 0o777, 0o600);
    let dump = env.run("tar", &["-xOf", &archive, "config.dump"])?.ok()?.text().to_owned();
    let dump: serde_json::Value = serde_json::from_str(&dump)?;
    assert_eq!(dump["rootfsImage"], image.as_str());
    let goes_on = |container: &mut v1::ContainerConfig, name: &str| {
        container.metadata = Some(v1::ContainerMetadata { name: name.to_owned(), attempt: 0 });
        container.log_path = format!("{name}.log");
    };
    let command = ["sh", "-c", "cat /file; [ -e /gone ] || echo removed; sleep 1000"];
    let refused = pods.start(&pod, &config, &archive, &command, |container| goes_on(container, "second"));
    assert!(format!("{:#}", refused.expect_err("it is off")).contains("restore_checkpoints"));
    std::mem::forget(pods);
    daemon.stop()?;
    let daemon = start(env, true, Some(&runtime))?;
    let mut pods = Pods::connect(env, &daemon)?;
    pods.start(&pod, &config, &archive, &command, |container| goes_on(container, "second"))?;
    logged(env, "second.log", "changed")?;
    logged(env, "second.log", "removed")?;
    let kept = || fs::read_dir(env.path("root/cri/containers")).map_or(0, |all| all.count());
    let copies = || fs::read_dir(env.path("root/cri/containers")).into_iter().flatten().flatten();
    let no_copy = || copies().all(|container| !container.path().join("checkpoint").exists()).then_some(());
    wait::until("the copy of its memory to be removed", no_copy)?;
    let before = kept();
    // Links would be followed.
    let hostile = Tar::new().file("config.dump", dump.to_string()).symlink("checkpoint/pages-1.img", "/etc/shadow");
    fs::write(env.path("hostile.tar"), hostile.finish())?;
    let hostile = env.path("hostile.tar").to_string_lossy().into_owned();
    let refused = pods.start(&pod, &config, &hostile, &command, |container| goes_on(container, "third"));
    assert!(format!("{:#}", refused.expect_err("it has a link")).contains("is not a plain file"));
    assert_eq!(kept(), before, "nothing is left of what could not be made");
    Ok(())
}

fn a_container_goes_on_from_its_archive(env: &Env) -> Result<()> {
    let registry = Registry::start(env)?;
    let image = Image::busybox()?.push(&registry, "test/busybox", "latest")?;
    let daemon = start(env, true, None)?;
    let mut pods = Pods::connect(env, &daemon)?;
    pods.pull(&image)?;
    let config = pods.pod_config("pod");
    let pod = pods.run(&config)?;
    let edit = |container: &mut v1::ContainerConfig, name: &str| {
        let options = v1::NamespaceOption {
            network: v1::NamespaceMode::Node.into(),
            pid: v1::NamespaceMode::Container.into(),
            ..Default::default()
        };
        let context = v1::LinuxContainerSecurityContext { namespace_options: Some(options), ..Default::default() };
        container.linux.get_or_insert_default().security_context = Some(context);
        container.metadata = Some(v1::ContainerMetadata { name: name.to_owned(), attempt: 0 });
        container.log_path = format!("{name}.log");
    };
    let command = ["sh", "-c", "i=0; while true; do i=$((i+1)); echo count $i; sleep 0.05; done"];
    let first = pods.start(&pod, &config, &image, &command, |container| edit(container, "first"))?;
    logged(env, "first.log", "count 30\n")?;
    let archive = env.path("first.tar").to_string_lossy().into_owned();
    checkpoint(&mut pods, &first, &archive).context("checkpoint")?;
    let lines = || fs::read_to_string(env.path("logs/first.log")).map_or(0, |log| log.lines().count());
    let then = lines();
    wait::until("the first goes on", || (lines() > then).then_some(()))?;
    pods.start(&pod, &config, &archive, &command, |container| edit(container, "second"))?;
    let log = env.path("logs/second.log");
    let said =
        wait::until("the second says something", || fs::read_to_string(&log).ok().filter(|log| log.contains('\n')))?;
    let count: u64 = said.lines().next().and_then(|line| line.rsplit(' ').next()?.parse().ok()).context("a count")?;
    assert!(count >= 30, "it began anew: {said}");
    Ok(())
}
