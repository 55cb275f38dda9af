//! Checkpoints of containers in pods: archives, and containers that go on from them.

use std::collections::BTreeMap;
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
    a_pod_is_written_down_whole_or_not_at_all [Root, Overlay],
    a_pod_goes_on_from_its_checkpoint [Root, Overlay, Criu, EveryHost],
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

/// The two containers of a pod, each with a log of its own.
fn two(image: &str, script: &str) -> Vec<v1::ContainerConfig> {
    let options = v1::NamespaceOption {
        network: v1::NamespaceMode::Node.into(),
        pid: v1::NamespaceMode::Container.into(),
        ..Default::default()
    };
    let context = v1::LinuxContainerSecurityContext { namespace_options: Some(options), ..Default::default() };
    let config = |name: &str| v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: name.to_owned(), attempt: 0 }),
        image: Some(integration_tests::pods::spec(image)),
        command: ["sh", "-c", script].map(str::to_owned).to_vec(),
        log_path: format!("{name}.log"),
        linux: Some(v1::LinuxContainerConfig { security_context: Some(context.clone()), ..Default::default() }),
        ..Default::default()
    };
    vec![config("one"), config("two")]
}

/// Runs a pod with these containers.
fn run(
    pods: &mut Pods<'_>,
    pod: &v1::PodSandboxConfig,
    configs: &[v1::ContainerConfig],
) -> Result<(String, Vec<String>)> {
    let id = pods.run(pod)?;
    let start = |config: &v1::ContainerConfig| pods.start(&id, pod, "", &[], |made| *made = config.clone());
    let containers = configs.iter().map(start).collect::<Result<_>>()?;
    Ok((id, containers))
}

fn checkpoint_pod(
    pods: &mut Pods<'_>,
    pod: &str,
    path: &Path,
    containers: &[String],
) -> std::result::Result<(), tonic::Status> {
    let request = v1::CheckpointPodRequest {
        pod_sandbox_id: pod.to_owned(),
        output_path: path.to_string_lossy().into_owned(),
        container_ids: containers.to_vec(),
        options: BTreeMap::new(),
    };
    pods.runtime.block_on(pods.pods.checkpoint_pod(request)).map(drop)
}

fn restore_pod(
    pods: &mut Pods<'_>,
    path: &Path,
    pod: &v1::PodSandboxConfig,
    containers: &[v1::ContainerConfig],
) -> std::result::Result<v1::RestorePodResponse, tonic::Status> {
    let request = v1::RestorePodRequest {
        checkpoint_path: path.to_string_lossy().into_owned(),
        config: Some(pod.clone()),
        container_configs: containers.to_vec(),
        ..Default::default()
    };
    pods.runtime.block_on(pods.pods.restore_pod(request)).map(tonic::Response::into_inner)
}

/// The pod that a restore makes, with logs of its own.
fn another(env: &Env, pod: &v1::PodSandboxConfig) -> v1::PodSandboxConfig {
    let mut pod = pod.clone();
    pod.metadata.get_or_insert_default().uid = env.id("other");
    pod.log_directory = env.path("logs/other").to_string_lossy().into_owned();
    pod
}

fn start_restored(pods: &mut Pods<'_>, restored: &v1::RestorePodResponse) -> Result<()> {
    for container in &restored.restored_containers {
        let request = v1::ContainerStatusRequest { container_id: container.container_id.clone(), verbose: false };
        let status = pods.runtime.block_on(pods.pods.container_status(request))?.into_inner().status;
        assert_eq!(status.map(|status| status.state()), Some(v1::ContainerState::ContainerCreated));
        let request = v1::StartContainerRequest { container_id: container.container_id.clone() };
        pods.runtime.block_on(pods.pods.start_container(request)).with_context(|| container.name.clone())?;
    }
    Ok(())
}

/// Names in a directory.
fn names(path: &Path) -> Result<Vec<String>> {
    let mut names: Vec<String> = fs::read_dir(path)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    names.sort();
    Ok(names)
}

fn a_pod_is_written_down_whole_or_not_at_all(env: &Env) -> Result<()> {
    let (registry, runtime) = (Registry::start(env)?, stand_in(env)?);
    let image = Image::busybox()?.push(&registry, "test/busybox", "latest")?;
    let daemon = start(env, true, Some(&runtime))?;
    let mut pods = Pods::connect(env, &daemon)?;
    pods.pull(&image)?;
    let pod = pods.pod_config("pod");
    let configs = two(&image, "[ -e /file ] && echo went on; echo changed > /file; echo ready; sleep 1000");
    let (id, containers) = run(&mut pods, &pod, &configs)?;
    logged(env, "one.log", "ready")?;
    logged(env, "two.log", "ready")?;
    let path = env.path("checkpoint");
    let refused = checkpoint_pod(&mut pods, &id, &path, &containers).expect_err("there is no such directory");
    assert_eq!(refused.code(), tonic::Code::NotFound, "{refused}");
    fs::create_dir(&path)?;
    for ids in [&[][..], &[containers[0].clone(), containers[0].clone()]] {
        let refused = checkpoint_pod(&mut pods, &id, &path, ids).expect_err("not these");
        assert!(refused.message().contains("container_ids"), "{refused}");
    }
    // The second one cannot be, so the first is not either, and both go on.
    let refuses = format!("{}-refuses-{}", runtime.display(), containers[1]);
    fs::write(&refuses, "")?;
    checkpoint_pod(&mut pods, &id, &path, &containers).expect_err("one of them cannot be");
    assert!(names(&path)?.is_empty(), "{:?}", names(&path)?);
    for container in &containers {
        let request = v1::ExecSyncRequest { container_id: container.clone(), cmd: vec!["true".into()], timeout: 20 };
        assert_eq!(pods.runtime.block_on(pods.pods.exec_sync(request))?.into_inner().exit_code, 0);
    }
    fs::remove_file(&refuses)?;
    checkpoint_pod(&mut pods, &id, &path, &containers)?;
    let mut wanted: Vec<String> = containers.iter().map(|id| format!("{id}.tar")).collect();
    wanted.push("pod.checkpoint".to_owned());
    wanted.sort();
    assert_eq!(names(&path)?, wanted);
    for name in &wanted {
        assert_eq!(fs::metadata(path.join(name))?.permissions().mode() & 0o777, 0o600, "{name}");
    }
    let refused = checkpoint_pod(&mut pods, &id, &path, &containers).expect_err("there is one already");
    assert!(refused.message().contains("is not empty"), "{refused}");

    what_does_not_fit_is_refused(env, &mut pods, &path, &configs)?;
    let other = another(env, &pod);
    let restored = restore_pod(&mut pods, &path, &other, &configs)?;
    let restored_names: Vec<&str> = restored.restored_containers.iter().map(|one| one.name.as_str()).collect();
    assert_eq!(restored_names, ["one", "two"]);
    assert_eq!(restore_pod(&mut pods, &path, &other, &configs)?, restored, "the answer may have been lost");
    std::mem::forget(pods);
    daemon.stop()?;
    let daemon = start(env, false, Some(&runtime))?;
    let mut pods = Pods::connect(env, &daemon)?;
    let refused = restore_pod(&mut pods, &path, &other, &configs).expect_err("it is off");
    assert!(refused.message().contains("restore_checkpoints"), "{refused}");
    start_restored(&mut pods, &restored)?;
    logged(env, "other/one.log", "went on")?;
    logged(env, "other/two.log", "went on")?;
    assert_eq!(names(&path)?, wanted, "it can be restored from again");
    Ok(())
}

/// Requests and files that a checkpoint does not fit; nothing of them is left.
fn what_does_not_fit_is_refused(
    env: &Env,
    pods: &mut Pods<'_>,
    path: &Path,
    configs: &[v1::ContainerConfig],
) -> Result<()> {
    let pod = another(env, &pods.pod_config("pod"));
    let mut refused = |configs: &[v1::ContainerConfig], why: &str| {
        let refused = restore_pod(pods, path, &pod, configs).expect_err(why);
        assert!(refused.message().contains(why), "{why}: {refused}");
    };
    refused(&configs[..1], "lacks two");
    refused(&[configs[0].clone(), configs[0].clone()], "container_configs[1].metadata.name");
    let mut changed = configs.to_vec();
    changed[1].command.push("-x".into());
    refused(&changed, "container_configs[1].command");
    changed = configs.to_vec();
    changed[0].metadata.get_or_insert_default().name = "three".into();
    refused(&changed, "has no container three");
    // What somebody did to the files meanwhile.
    let archives: Vec<String> = names(path)?.into_iter().filter(|name| name.ends_with(".tar")).collect();
    let archive = path.join(&archives[1]);
    let whole = fs::read(&archive)?;
    fs::write(&archive, &whole[..whole.len() - 512])?;
    refused(configs, "it was changed");
    fs::rename(&archive, env.path("aside"))?;
    std::os::unix::fs::symlink(env.path("aside"), &archive)?;
    refused(configs, &archives[1]);
    fs::remove_file(&archive)?;
    fs::write(&archive, &whole)?;
    let all = pods.runtime.block_on(pods.pods.list_pod_sandbox(v1::ListPodSandboxRequest { filter: None }))?;
    assert_eq!(all.into_inner().items.len(), 1, "nothing is left of what was refused");
    Ok(())
}

fn a_pod_goes_on_from_its_checkpoint(env: &Env) -> Result<()> {
    let registry = Registry::start(env)?;
    let image = Image::busybox()?.push(&registry, "test/busybox", "latest")?;
    let daemon = start(env, true, None)?;
    let mut pods = Pods::connect(env, &daemon)?;
    pods.pull(&image)?;
    let pod = pods.pod_config("pod");
    let configs = two(&image, "i=0; while true; do i=$((i+1)); echo count $i; sleep 0.05; done");
    let (id, containers) = run(&mut pods, &pod, &configs)?;
    logged(env, "one.log", "count 30\n")?;
    logged(env, "two.log", "count 30\n")?;
    let path = env.path("checkpoint");
    fs::create_dir(&path)?;
    checkpoint_pod(&mut pods, &id, &path, &containers)?;
    for log in ["one.log", "two.log"] {
        let lines = || fs::read_to_string(env.path("logs").join(log)).map_or(0, |log| log.lines().count());
        let then = lines();
        wait::until("it goes on", || (lines() > then).then_some(()))?;
    }
    let restored = restore_pod(&mut pods, &path, &another(env, &pod), &configs)?;
    start_restored(&mut pods, &restored)?;
    for log in ["other/one.log", "other/two.log"] {
        let log = env.path("logs").join(log);
        let said = wait::until("it says something", || fs::read_to_string(&log).ok().filter(|log| log.contains('\n')))?;
        let count = said.lines().next().and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
        assert!(count.context("a count")? >= 30, "it began anew: {said}");
    }
    Ok(())
}
