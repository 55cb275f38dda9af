//! Processes of pods: those that a kubelet runs for probes, how they end, and what one that hangs does to the others.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use gantry_proto::runtime::v1;
use integration_tests::image::CHILD_WANTS_MEMORY;
use integration_tests::pods::Pods;
use integration_tests::{Daemon, Env, Image, Registry, Result, Test, tests, wait};
use nix::sys::signal::{Signal, kill};
use tonic::Code;

pub(crate) const TESTS: &[Test] = tests![
    probes_end_with_their_process_their_time_or_their_output [Root, Overlay],
    limits_hold_and_what_they_end_says_so [Root, Overlay],
    groups_are_those_of_the_image_and_the_pod [Root, Overlay],
    a_shim_that_hangs_holds_up_nobody_else [Root, Overlay],
    a_stop_asks_once_and_finds_who_is_asked [Root, Overlay],
];

const SLEEP: &[&str] = &["sleep", "1000"];

/// A daemon with a pod, and the image of its containers.
struct Node<'env> {
    pods: Pods<'env>,
    _daemon: Daemon<'env>,
    registry: Registry,
    image: String,
    config: v1::PodSandboxConfig,
    pod: String,
}

impl<'env> Node<'env> {
    fn start(env: &'env Env, settings: &str) -> Result<Self> {
        let (registry, image) = Registry::with_busybox(env)?;
        let daemon = env.daemon_configured(settings)?;
        let mut pods = Pods::connect(env, &daemon)?;
        pods.pull(&image)?;
        let config = pods.pod_config("pod");
        let pod = pods.run(&config)?;
        Ok(Self { pods, _daemon: daemon, registry, image, config, pod })
    }

    fn container(
        &mut self,
        name: &str,
        command: &[&str],
        edit: impl FnOnce(&mut v1::ContainerConfig),
    ) -> Result<String> {
        let metadata = v1::ContainerMetadata { name: name.to_owned(), attempt: 0 };
        self.pods.start(&self.pod, &self.config, &self.image, command, |container| {
            container.metadata = Some(metadata);
            container.log_path = format!("{name}.log");
            edit(container);
        })
    }

    fn exec(&mut self, container: &str, script: &str, timeout: i64) -> Result<v1::ExecSyncResponse, tonic::Status> {
        let cmd = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        let request = v1::ExecSyncRequest { container_id: container.to_owned(), cmd, timeout };
        Ok(self.pods.runtime.block_on(self.pods.pods.exec_sync(request))?.into_inner())
    }
}

/// CVE-2022-23471 and its kin: whatever a probe leaves behind or says, its call ends, and holds no more than it may.
fn probes_end_with_their_process_their_time_or_their_output(env: &Env) -> Result<()> {
    let mut node = Node::start(env, "[cri]\nexec_drain = 3\n")?;
    let container = node.container("c", SLEEP, |_| {})?;
    let answer = node.exec(&container, "echo out; echo err >&2; exit 42", 60)?;
    assert_eq!((answer.exit_code, &answer.stdout[..], &answer.stderr[..]), (42, &b"out\n"[..], &b"err\n"[..]));
    // A child that keeps the stream open is not waited for, and is not what the time is for, which is over when it is left.
    let answer = node.exec(&container, "sleep 500 & echo begun", 3)?;
    assert_eq!((answer.exit_code, &answer.stdout[..]), (0, &b"begun\n"[..]));
    // One whose time is over is killed.
    let late = node.exec(&container, "exec sleep 777", 1).expect_err("its time is over");
    assert_eq!(late.code(), Code::DeadlineExceeded, "{late}");
    wait::until("it is gone", || {
        let left = node.exec(&container, "ps | grep -c '[s]leep 777'", 60).ok()?;
        (left.stdout == b"0\n").then_some(())
    })?;
    // Of more output than fits into an answer there is as much as fits.
    let answer = node.exec(&container, "echo said >&2; dd if=/dev/zero bs=1M count=20 2>/dev/null", 60)?;
    let (out, err) = (answer.stdout.len(), answer.stderr.len());
    ensure!(answer.exit_code == 0 && err == 5 && ((16 << 20) - 1100..16 << 20).contains(&out), "{out} and {err} bytes");
    let missing = v1::ExecSyncRequest { container_id: container, cmd: vec!["/none".to_owned()], timeout: 60 };
    node.pods.runtime.block_on(node.pods.pods.exec_sync(missing)).expect_err("no such program");
    Ok(())
}

/// What is limited is the container itself, in its pod's cgroup, and a kubelet reads there why it ended.
fn limits_hold_and_what_they_end_says_so(env: &Env) -> Result<()> {
    let mut node = Node::start(env, "")?;
    let limited = |memory: i64, container: &mut v1::ContainerConfig| {
        let resources = v1::LinuxContainerResources { memory_limit_in_bytes: memory, ..Default::default() };
        container.linux.get_or_insert_default().resources = Some(resources);
        // Of other runtimes: what lets a pod choose its cgroup, and units say what systemd is to run.
        for (name, value) in [
            ("io.kubernetes.cri-o.workload", "x"),
            ("target.workload.openshift.io/management", "{}"),
            ("org.systemd.property.ExecStartPre", "'/bin/false'"),
            ("run.oci.systemd.subgroup", "other"),
        ] {
            container.annotations.insert(name.to_owned(), value.to_owned());
        }
    };
    let kept = node.container("kept", SLEEP, |container| limited(64 << 20, container))?;
    let info = node.pods.info(&kept)?;
    let annotations = info["runtimeSpec"]["annotations"].as_object().context("annotations")?;
    let foreign: Vec<_> = annotations.keys().filter(|key| !key.starts_with("io.kubernetes.cri.")).collect();
    ensure!(foreign.is_empty(), "{foreign:?}");
    let place = std::fs::read_to_string(format!("/proc/{}/cgroup", info["pid"]))?;
    let wanted = format!("/{}/{kept}", env.id("pods"));
    ensure!(place.lines().any(|line| line.ends_with(&wanted)), "{wanted} is not among {place}");
    let script = "x=$(head -c 60000000 /dev/zero | tr '\\0' x); echo \"$x$x\" >/dev/null; echo done";
    let ended = node.container("ended", &["sh", "-c", script], |container| limited(24 << 20, container))?;
    assert_eq!(node.pods.exit_code(&ended)?, 137);
    let status = node.pods.status(&ended)?;
    assert_eq!(status.reason, "OOMKilled", "{status:?}");
    assert_eq!(status.message, format!("the container reached its memory limit of {} bytes", 24 << 20));
    // Whichever word of the shim comes first, and however the first process ends: here a child of it is killed.
    for round in 0..4 {
        let name = format!("child{round}");
        let ended =
            node.container(&name, &["sh", "-c", CHILD_WANTS_MEMORY], |container| limited(24 << 20, container))?;
        assert_eq!(node.pods.exit_code(&ended)?, 0);
        assert_eq!(node.pods.status(&ended)?.reason, "OOMKilled", "{name}");
    }
    assert_eq!(node.pods.status(&kept)?.state(), v1::ContainerState::ContainerRunning);
    // Where it is the pods' limit that is too low, that is said; there the kernel may choose another first.
    let (pods, limit) = (env.id("pods"), 32 << 20);
    let files = [format!("memory/{pods}/memory.limit_in_bytes"), format!("{pods}/memory.max")];
    let file = files.iter().map(|file| Path::new("/sys/fs/cgroup").join(file)).find(|file| file.exists());
    std::fs::write(file.context("a limit of the pods")?, limit.to_string())?;
    let ended = node.container("others", &["sh", "-c", script], |_| {})?;
    assert_eq!(node.pods.exit_code(&ended)?, 137);
    let status = node.pods.status(&ended)?;
    let wanted = format!("cgroup /{pods}, which the container is in, reached its memory limit of {limit} bytes");
    assert_eq!((&status.reason[..], status.message), ("OOMKilled", wanted));
    Ok(())
}

/// CVE-2023-25173: the first group is among the others, in the container and in what is run in it.
fn groups_are_those_of_the_image_and_the_pod(env: &Env) -> Result<()> {
    let mut node = Node::start(env, "")?;
    let files = integration_tests::tar::Tar::new()
        .file("etc/passwd", "root:x:0:0::/:/bin/sh\nweb:x:1000:50::/:/bin/sh\n")
        .file("etc/group", "own:x:50:\nmore:x:60:web\nothers:x:70:root\n");
    let image = Image::busybox()?.layer(files, integration_tests::image::Packing::Gzip)?;
    node.image = image.setting("User", "web").push(&node.registry, "test/groups", "latest")?;
    let (image, policies) = (node.image.clone(), [("Merge", 0, "50 60 80"), ("Strict", 1, "50 80")]);
    node.pods.pull(&image)?;
    for (name, policy, groups) in policies {
        let container = node.container(name, SLEEP, |container| {
            let context = v1::LinuxContainerSecurityContext {
                namespace_options: Some(v1::NamespaceOption {
                    network: v1::NamespaceMode::Node.into(),
                    pid: v1::NamespaceMode::Container.into(),
                    ..Default::default()
                }),
                supplemental_groups: vec![80],
                supplemental_groups_policy: policy,
                ..Default::default()
            };
            container.linux.get_or_insert_default().security_context = Some(context);
        })?;
        let script = "id -G; for p in 1 self; do grep ^Groups: /proc/$p/status; \
                      grep -cE '^Cap(Inh|Amb):[[:space:]]*0*[1-9a-f]' /proc/$p/status; done";
        let said = String::from_utf8(node.exec(&container, script, 60)?.stdout)?;
        let lines: Vec<String> =
            said.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        let held = format!("Groups: {groups}");
        assert_eq!(lines, [groups, &held, "0", &held, "0"], "{name}");
        let user = node.pods.status(&container)?.user.and_then(|user| user.linux).context("user")?;
        let told: Vec<String> = user.supplemental_groups.iter().map(ToString::to_string).collect();
        assert_eq!((user.uid, user.gid, told.join(" ")), (1000, 50, groups.to_owned()));
    }
    Ok(())
}

/// A pod's shim that does not answer is that pod's trouble.
fn a_shim_that_hangs_holds_up_nobody_else(env: &Env) -> Result<()> {
    let mut node = Node::start(env, "")?;
    let stuck = node.container("stuck", SLEEP, |_| {})?;
    let other = node.pods.pod_config("other");
    let pod = node.pods.run(&other)?;
    let well = node.pods.start(&pod, &other, &node.image.clone(), SLEEP, |_| {})?;
    let (_, shim) = node.pods.processes(&stuck)?;
    kill(shim, Signal::SIGSTOP)?;
    let waiting = {
        let (mut client, cmd) = (node.pods.pods.clone(), vec!["true".to_owned()]);
        let request = v1::ExecSyncRequest { container_id: stuck.clone(), cmd, timeout: 120 };
        node.pods.runtime.spawn(async move { client.exec_sync(request).await })
    };
    let looked = {
        let (client, runtime) = (&mut node.pods.pods.clone(), &node.pods.runtime);
        let begun = Instant::now();
        let mut look = || -> Result<usize> {
            let stats = runtime.block_on(client.list_container_stats(v1::ListContainerStatsRequest::default()))?;
            let pods = runtime.block_on(client.list_pod_sandbox_stats(v1::ListPodSandboxStatsRequest::default()))?;
            let metrics = runtime.block_on(client.list_pod_sandbox_metrics(v1::ListPodSandboxMetricsRequest {}))?;
            let all = runtime.block_on(client.list_containers(v1::ListContainersRequest::default()))?;
            ensure!(pods.into_inner().stats.len() == 2 && metrics.into_inner().pod_metrics.len() == 2);
            ensure!(all.into_inner().containers.iter().all(|it| it.state() == v1::ContainerState::ContainerRunning));
            Ok(stats.into_inner().stats.iter().filter(|stats| stats.cpu.is_some()).count())
        };
        let looked = (0..10).map(|_| look()).collect::<Result<Vec<usize>>>();
        looked.map(|looked| (looked, begun.elapsed()))
    };
    let executed = node.exec(&well, "echo well", 60);
    kill(shim, Signal::SIGCONT)?;
    let (looked, took) = looked?;
    assert_eq!(looked, [2; 10], "the counters of both are read");
    ensure!(took < wait::seconds(20), "ten looks took {took:?}");
    assert_eq!(executed?.stdout, b"well\n");
    let answer = node.pods.runtime.block_on(waiting)??.into_inner();
    assert_eq!(answer.exit_code, 0, "what waited goes on");
    Ok(())
}

/// A kubelet repeats a stop that takes long. The process is asked once, by the signal that was chosen for it.
fn a_stop_asks_once_and_finds_who_is_asked(env: &Env) -> Result<()> {
    let mut node = Node::start(env, "")?;
    let script = "trap 'echo asked' USR1; trap 'echo wrong' TERM; echo ready; while :; do sleep 0.1; done";
    let container = node.container("c", &["sh", "-c", script], |container| {
        container.stop_signal = v1::Signal::Sigusr1.into();
    })?;
    let log = env.path("logs/c.log");
    let count = |word: &str| std::fs::read_to_string(&log).unwrap_or_default().matches(word).count();
    wait::until("it listens", || (count("ready") == 1).then_some(()))?;
    let stops: Vec<_> = (0..3)
        .map(|_| {
            let mut client = node.pods.pods.clone();
            let request = v1::StopContainerRequest { container_id: container.clone(), timeout: 3 };
            node.pods.runtime.spawn(async move { client.stop_container(request).await })
        })
        .collect();
    for stop in stops {
        node.pods.runtime.block_on(stop)??;
    }
    let status = node.pods.status(&container)?;
    assert_eq!((status.state(), status.exit_code), (v1::ContainerState::ContainerExited, 137), "{status:?}");
    assert_eq!((status.reason.as_str(), status.stop_signal()), ("Error", v1::Signal::Sigusr1));
    assert_eq!((count("asked"), count("wrong")), (1, 0));
    // A removed container's log is the kubelet's to remove.
    let request = v1::RemoveContainerRequest { container_id: container };
    node.pods.runtime.block_on(node.pods.pods.remove_container(request))?;
    ensure!(log.exists());
    Ok(())
}
