//! Plugins of the node resource interface: what they are told, and what they may change.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;

use anyhow::{Context as _, ensure};
use gantry_proto::nri::pkg::api::v1alpha1 as api;
use gantry_proto::runtime::v1;
use integration_tests::nri::{Answer, Plugin, Seen};
use integration_tests::pods::{Pods, spec};
use integration_tests::{Daemon, Env, Registry, Result, Test, tests, wait};
use prost::Message as _;

pub(crate) const TESTS: &[Test] = tests![
    a_plugin_is_told_everything_in_order [Root, Overlay],
    a_plugin_changes_a_container [Root, Overlay, EveryHost],
    what_plugins_refuse_is_not_made_and_can_be_tried_again [Root, Overlay],
    nothing_is_shown_while_plugins_are_asked [Root, Overlay],
    a_plugin_that_comes_later_misses_nothing [Root, Overlay],
    limits_are_changed_as_plugins_want [Root, Overlay],
];

/// A daemon with a registry that has busybox in it.
pub(crate) struct Scene<'env> {
    env: &'env Env,
    image: String,
    // Pods are removed while the daemon is there.
    pub(crate) pods: Pods<'env>,
    pub(crate) daemon: Daemon<'env>,
    _registry: Registry,
}

impl<'env> Scene<'env> {
    pub(crate) fn new(env: &'env Env, settings: &str) -> Result<Self> {
        let (registry, image) = Registry::with_busybox(env)?;
        let socket = env.path("nri.sock");
        let daemon = env.daemon_configured(&format!("[cri.nri]\nsocket = {socket:?}\n{settings}"))?;
        let mut pods = Pods::connect(env, &daemon)?;
        pods.pull(&image)?;
        Ok(Self { env, _registry: registry, image, daemon, pods })
    }

    /// A plugin that is registered.
    pub(crate) fn plugin(
        &self,
        name: (&str, &str),
        handler: impl Fn(&Seen) -> Answer + Send + Sync + 'static,
    ) -> Result<Plugin> {
        let plugin = Plugin::connect(&self.env.path("nri.sock"), name.0, name.1, handler)?;
        let whole = format!("plugin={}-{}", name.0, name.1);
        wait::until("the plugin is registered", || {
            let log = self.daemon.log();
            log.lines().any(|line| line.contains(&whole) && line.contains("is registered")).then_some(())
        })?;
        Ok(plugin)
    }

    pub(crate) fn pod(&mut self, name: &str) -> Result<(String, v1::PodSandboxConfig)> {
        let config = self.pods.pod_config(name);
        Ok((self.pods.run(&config)?, config))
    }

    pub(crate) fn container(
        &mut self,
        pod: &(String, v1::PodSandboxConfig),
        name: &str,
        script: &str,
    ) -> Result<String> {
        let image = self.image.clone();
        self.pods.start(&pod.0, &pod.1, &image, &["sh", "-c", script], |container| {
            container.metadata = Some(v1::ContainerMetadata { name: name.to_owned(), attempt: 0 });
        })
    }

    /// The request that makes a container.
    pub(crate) fn creation(&self, pod: &(String, v1::PodSandboxConfig), name: &str) -> v1::CreateContainerRequest {
        let config = v1::ContainerConfig {
            metadata: Some(v1::ContainerMetadata { name: name.to_owned(), attempt: 0 }),
            image: Some(spec(&self.image)),
            command: ["sleep", "600"].map(str::to_owned).to_vec(),
            ..Default::default()
        };
        v1::CreateContainerRequest {
            pod_sandbox_id: pod.0.clone(),
            config: Some(config),
            sandbox_config: Some(pod.1.clone()),
        }
    }

    pub(crate) fn create(&mut self, request: v1::CreateContainerRequest) -> Result<String, tonic::Status> {
        let answer = self.pods.runtime.block_on(self.pods.pods.create_container(request))?;
        Ok(answer.into_inner().container_id)
    }

    fn containers(&mut self) -> Result<Vec<String>> {
        let request = v1::ListContainersRequest::default();
        let answer = self.pods.runtime.block_on(self.pods.pods.list_containers(request))?.into_inner();
        Ok(answer.containers.into_iter().map(|container| container.id).collect())
    }

    pub(crate) fn exec(&mut self, container: &str, script: &str) -> Result<String> {
        let cmd = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        let request = v1::ExecSyncRequest { container_id: container.to_owned(), cmd, timeout: 60 };
        let answer = self.pods.runtime.block_on(self.pods.pods.exec_sync(request))?.into_inner();
        ensure!(answer.exit_code == 0, "{script}: {}", String::from_utf8_lossy(&answer.stderr));
        Ok(String::from_utf8(answer.stdout)?.trim().to_owned())
    }
}

pub(crate) fn fine(_: &Seen) -> Answer {
    Answer::Fine
}

/// A plugin that wants these changes of every container.
pub(crate) fn wants(adjust: api::ContainerAdjustment) -> impl Fn(&Seen) -> Answer + Send + Sync + 'static {
    move |seen| match seen.method.as_str() {
        "CreateContainer" => Answer::message(&api::CreateContainerResponse {
            adjust: Some(adjust.clone()),
            ..api::CreateContainerResponse::default()
        }),
        _ => Answer::Fine,
    }
}

pub(crate) fn variable(key: &str, value: &str) -> api::KeyValue {
    api::KeyValue { key: key.to_owned(), value: value.to_owned() }
}

fn memory(limit: i64) -> api::LinuxResources {
    let limit = Some(api::OptionalInt64 { value: limit });
    api::LinuxResources { memory: Some(api::LinuxMemory { limit, ..Default::default() }), ..Default::default() }
}

fn update(container: &str, resources: api::LinuxResources) -> api::ContainerUpdate {
    let linux = Some(api::LinuxContainerUpdate { resources: Some(resources) });
    api::ContainerUpdate { container_id: container.to_owned(), linux, ignore_failure: false }
}

fn a_plugin_is_told_everything_in_order(env: &Env) -> Result<()> {
    let mut scene = Scene::new(env, "")?;
    let mode = std::fs::metadata(env.path("nri.sock"))?.permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let plugin = scene.plugin(("00", "watcher"), fine)?;
    let pod = scene.pod("pod")?;
    let container = scene.container(&pod, "web", "exit 3")?;
    assert_eq!(scene.pods.exit_code(&container)?, 3);
    // Without anybody who stops it.
    let stopped = plugin.first("StopContainer")?.container();
    assert_eq!((stopped.exit_code, stopped.state()), (3, api::ContainerState::ContainerStopped));
    let resize = v1::UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: pod.0.clone(),
        resources: Some(v1::LinuxContainerResources { cpu_shares: 77, ..Default::default() }),
        ..Default::default()
    };
    scene.pods.runtime.block_on(scene.pods.pods.update_pod_sandbox_resources(resize))?;
    let stop = || v1::StopPodSandboxRequest { pod_sandbox_id: pod.0.clone() };
    for _ in 0..2 {
        scene.pods.runtime.block_on(scene.pods.pods.stop_pod_sandbox(stop()))?;
    }
    scene.pods.remove(&pod.0)?;
    let events = ["RunPodSandbox", "UpdatePodSandbox", "PostUpdatePodSandbox", "StopPodSandbox", "RemovePodSandbox"];
    assert_eq!(plugin.methods_of(&pod.0), events);
    let events = ["CreateContainer", "PostCreateContainer", "StartContainer", "PostStartContainer"];
    let events = [&events[..], &["StopContainer", "RemoveContainer"]].concat();
    assert_eq!(plugin.methods_of(&container), events);
    let told = plugin.first("RunPodSandbox")?.pod();
    let metadata = pod.1.metadata.clone().context("metadata")?;
    assert_eq!((told.name, told.uid, told.namespace), (metadata.name, metadata.uid, metadata.namespace));
    assert_eq!(told.labels.get("test").map(String::as_str), Some(env.token()));
    assert_eq!(told.linux.context("linux")?.cgroup_parent, format!("/{}", env.id("pods")));
    let told = plugin.first("CreateContainer")?;
    assert_eq!((told.pod().id, told.container().name.as_str()), (pod.0.clone(), "web"));
    let told = told.container();
    assert_eq!((told.pod_sandbox_id, told.args.join(" ")), (pod.0.clone(), "sh -c exit 3".to_owned()));
    assert!(told.mounts.iter().any(|mount| mount.destination == "/proc"), "{:?}", told.mounts);
    assert_eq!(told.image.context("image")?.name, scene.image);
    let linux = told.linux.context("linux")?;
    assert!(linux.namespaces.iter().any(|namespace| namespace.r#type == "mount"), "{:?}", linux.namespaces);
    assert!(plugin.first("PostStartContainer")?.container().pid > 0);
    let resized = plugin.first("UpdatePodSandbox")?;
    let resized = api::UpdatePodSandboxRequest::decode(resized.request.as_slice())?;
    let shares = resized.linux_resources.and_then(|limits| limits.cpu?.shares).map(|shares| shares.value);
    assert_eq!(shares, Some(77));
    // The daemon's end is told, and the socket goes with it.
    drop(scene.pods);
    scene.daemon.stop()?;
    plugin.first("Shutdown")?;
    assert!(!env.path("nri.sock").exists());
    Ok(())
}

fn a_plugin_changes_a_container(env: &Env) -> Result<()> {
    let mut scene = Scene::new(env, "")?;
    std::fs::write(env.path("shared"), "from the plugin")?;
    let device = api::LinuxDevice {
        path: "/dev/mine".to_owned(),
        r#type: "c".to_owned(),
        major: 1,
        minor: 5,
        file_mode: Some(api::OptionalFileMode { value: 0o666 }),
        ..Default::default()
    };
    let linux = api::LinuxContainerAdjustment {
        devices: vec![device],
        oom_score_adj: Some(api::OptionalInt { value: 321 }),
        resources: Some(memory(64 << 20)),
        ..Default::default()
    };
    let mount = api::Mount {
        destination: "/shared".to_owned(),
        r#type: "bind".to_owned(),
        source: env.path("shared").to_string_lossy().into_owned(),
        options: ["bind", "ro"].map(str::to_owned).to_vec(),
    };
    let adjust = api::ContainerAdjustment {
        annotations: BTreeMap::from([("example.org/plugin".to_owned(), "yes".to_owned())]),
        env: vec![variable("FIRST", "1"), variable("BOTH", "1")],
        mounts: vec![mount],
        rlimits: vec![api::PosixRlimit { r#type: "RLIMIT_CORE".to_owned(), hard: 4096, soft: 4096 }],
        linux: Some(linux),
        ..Default::default()
    };
    let first = scene.plugin(("10", "first"), wants(adjust))?;
    let again =
        api::ContainerAdjustment { env: vec![variable("-BOTH", ""), variable("BOTH", "2")], ..Default::default() };
    let second = scene.plugin(("20", "second"), wants(again))?;
    let pod = scene.pod("pod")?;
    let container = scene.container(&pod, "changed", "exec sleep 600")?;
    assert_eq!(scene.exec(&container, "echo $FIRST $BOTH $(cat /shared) $(ulimit -c)")?, "1 2 from the plugin 8");
    assert_eq!(scene.exec(&container, "head -c 3 /dev/mine | wc -c; cat /proc/self/oom_score_adj")?, "3\n321");
    let shown = scene.pods.info(&container)?["runtimeSpec"].take();
    assert_eq!(shown["annotations"]["example.org/plugin"], "yes");
    assert_eq!(shown["linux"]["resources"]["memory"]["limit"], 64 << 20);
    let limits = scene.pods.status(&container)?.resources.and_then(|all| all.linux).context("limits")?;
    assert_eq!((limits.memory_limit_in_bytes, limits.oom_score_adj), (64 << 20, 321));
    // The second was shown what the first had changed.
    let told = second.first("CreateContainer")?.container();
    assert!(told.env.contains(&"FIRST=1".to_owned()) && told.annotations.contains_key("example.org/plugin"));
    // Two that set the same make no container.
    let third = api::ContainerAdjustment { env: vec![variable("FIRST", "3")], ..Default::default() };
    let third = scene.plugin(("30", "third"), wants(third))?;
    let request = scene.creation(&pod, "conflict");
    let error = scene.create(request).expect_err("both set FIRST").message().to_owned();
    assert!(error.contains("10-first") && error.contains("30-third") && error.contains("Env FIRST"), "{error}");
    assert_eq!(scene.containers()?, [container]);
    // And what makes no sense is named.
    drop((first, third));
    let wrong = api::ContainerAdjustment { env: vec![variable("A=B", "3")], ..Default::default() };
    let _wrong = scene.plugin(("40", "wrong"), wants(wrong))?;
    let request = scene.creation(&pod, "wrong");
    let error = scene.create(request).expect_err("no variable").message().to_owned();
    assert!(error.contains("env: \"A=B\""), "{error}");
    Ok(())
}

fn what_plugins_refuse_is_not_made_and_can_be_tried_again(env: &Env) -> Result<()> {
    let mut scene = Scene::new(env, "")?;
    let left = std::sync::Mutex::new(vec!["RunPodSandbox", "CreateContainer", "StartContainer"]);
    let plugin = scene.plugin(("00", "refuses"), move |seen| {
        let mut left = left.lock().expect("no panic");
        match left.iter().position(|method| *method == seen.method) {
            Some(at) => {
                left.remove(at);
                Answer::Refuse("not this time")
            }
            None => Answer::Fine,
        }
    })?;
    let config = scene.pods.pod_config("pod");
    let error = scene.pods.run(&config).expect_err("refused").to_string();
    assert!(error.contains("00-refuses") && error.contains("not this time"), "{error}");
    let refused = plugin.first("RunPodSandbox")?.pod().id;
    assert_eq!(plugin.methods_of(&refused), ["RunPodSandbox", "StopPodSandbox", "RemovePodSandbox"]);
    let list = v1::ListPodSandboxRequest::default();
    let pods = scene.pods.runtime.block_on(scene.pods.pods.list_pod_sandbox(list))?.into_inner().items;
    assert!(pods.is_empty(), "{pods:?}");
    let pod = (scene.pods.run(&config)?, config);
    let error = scene.create(scene.creation(&pod, "c")).expect_err("refused").message().to_owned();
    assert!(error.contains("not this time"), "{error}");
    assert!(scene.containers()?.is_empty());
    let container = scene.create(scene.creation(&pod, "c"))?;
    let start = || v1::StartContainerRequest { container_id: container.clone() };
    let refused = scene.pods.runtime.block_on(scene.pods.pods.start_container(start())).expect_err("refused");
    assert!(refused.message().contains("not this time"), "{refused}");
    assert_eq!(scene.pods.status(&container)?.state(), v1::ContainerState::ContainerExited);
    let again = scene.container(&pod, "again", "exec sleep 600")?;
    scene.pods.remove(&pod.0)?;
    let events = ["CreateContainer", "PostCreateContainer", "StartContainer", "StopContainer", "RemoveContainer"];
    assert_eq!(plugin.methods_of(&container), events);
    assert!(plugin.methods_of(&again).contains(&"PostStartContainer".to_owned()));
    Ok(())
}

fn nothing_is_shown_while_plugins_are_asked(env: &Env) -> Result<()> {
    let mut scene = Scene::new(env, "request_timeout = 60\n")?;
    let pod = scene.pod("pod")?;
    let plugin = scene.plugin(("00", "waits"), |seen| match seen.method.as_str() {
        "CreateContainer" | "StopPodSandbox" => Answer::Wait,
        _ => Answer::Fine,
    })?;
    let request = scene.creation(&pod, "c");
    let mut client = scene.pods.pods.clone();
    let made = scene.pods.runtime.spawn(async move { client.create_container(request).await });
    // The client sends only while somebody waits on its runtime.
    let asked = wait::until("the plugin is asked", || {
        scene.containers().ok()?;
        plugin.seen().into_iter().find(|seen| seen.method == "CreateContainer")
    })?;
    let id = asked.container().id;
    assert!(scene.containers()?.is_empty() && scene.pods.status(&id).is_err());
    plugin.go_on();
    let made = scene.pods.runtime.block_on(made)??.into_inner().container_id;
    assert_eq!((made.as_str(), scene.containers()?), (id.as_str(), vec![id.clone()]));
    Ok(())
}

fn a_plugin_that_comes_later_misses_nothing(env: &Env) -> Result<()> {
    let mut scene = Scene::new(env, "")?;
    let pod = scene.pod("pod")?;
    let before = scene.container(&pod, "before", "exec sleep 600")?;
    let ended = scene.container(&pod, "ended", "exit 0")?;
    scene.pods.exit_code(&ended)?;
    // While it is told what there is, a container is made.
    let socket = env.path("nri.sock");
    let late = Plugin::connect(&socket, "00", "late", |seen| match seen.method.as_str() {
        "Synchronize" => Answer::Wait,
        _ => Answer::Fine,
    })?;
    let told = late.first("Synchronize")?;
    let told = api::SynchronizeRequest::decode(told.request.as_slice())?;
    assert_eq!(told.pods.iter().map(|pod| pod.id.as_str()).collect::<Vec<_>>(), [pod.0.as_str()]);
    let ids: Vec<_> = told.containers.iter().map(|container| container.id.as_str()).collect();
    assert_eq!(ids, [before.as_str()], "the one that has ended is none");
    assert_eq!(told.containers[0].state(), api::ContainerState::ContainerRunning);
    let request = scene.creation(&pod, "meanwhile");
    let mut client = scene.pods.pods.clone();
    let made = scene.pods.runtime.spawn(async move { client.create_container(request).await });
    assert_eq!(scene.containers()?.len(), 2, "lists are not kept waiting");
    late.go_on();
    let meanwhile = scene.pods.runtime.block_on(made)??.into_inner().container_id;
    assert_eq!(late.methods_of(&meanwhile), ["CreateContainer", "PostCreateContainer"]);
    // What it was told then is told to the end, once.
    scene.pods.remove(&pod.0)?;
    assert_eq!(late.methods_of(&before), ["StopContainer", "RemoveContainer"]);
    assert_eq!(late.methods_of(&pod.0), ["StopPodSandbox", "RemovePodSandbox"]);
    assert!(late.methods_of(&ended).is_empty(), "{:?}", late.methods_of(&ended));
    Ok(())
}

fn limits_are_changed_as_plugins_want(env: &Env) -> Result<()> {
    let mut scene = Scene::new(env, "")?;
    let pod = scene.pod("pod")?;
    let other = scene.container(&pod, "other", "exec sleep 600")?;
    let limit_of = |scene: &mut Scene<'_>, container: &str| -> Result<i64> {
        let limits = scene.pods.status(container)?.resources.and_then(|all| all.linux);
        Ok(limits.context("limits")?.memory_limit_in_bytes)
    };
    let other_id = other.clone();
    let plugin = scene.plugin(("00", "limits"), move |seen| match seen.method.as_str() {
        "Synchronize" => Answer::message(&api::SynchronizeResponse {
            update: vec![update(&other_id, memory(100 << 20))],
            more: false,
        }),
        "CreateContainer" => Answer::message(&api::CreateContainerResponse {
            update: vec![update(&other_id, memory(101 << 20))],
            ..Default::default()
        }),
        "UpdateContainer" => Answer::message(&api::UpdateContainerResponse {
            update: vec![update(&seen.container().id, memory(103 << 20)), update(&other_id, memory(102 << 20))],
            ..Default::default()
        }),
        _ => Answer::Fine,
    })?;
    wait::until("the answer to what there is counts", || {
        (limit_of(&mut scene, &other).ok()? == 100 << 20).then_some(())
    })?;
    let container = scene.container(&pod, "c", "exec sleep 600")?;
    assert_eq!(limit_of(&mut scene, &other)?, 101 << 20);
    let wanted = v1::LinuxContainerResources { memory_limit_in_bytes: 50 << 20, cpu_shares: 500, ..Default::default() };
    let request = v1::UpdateContainerResourcesRequest {
        container_id: container.clone(),
        linux: Some(wanted),
        ..Default::default()
    };
    scene.pods.runtime.block_on(scene.pods.pods.update_container_resources(request))?;
    assert_eq!((limit_of(&mut scene, &container)?, limit_of(&mut scene, &other)?), (103 << 20, 102 << 20));
    assert!(plugin.methods_of(&container).ends_with(&["UpdateContainer".into(), "PostUpdateContainer".into()]));
    // By itself, with one of a container that cannot be, and one of a container that is none.
    let pids = api::LinuxResources { pids: Some(api::LinuxPids { limit: 55 }), ..Default::default() };
    let bad = api::LinuxResources { rdt_class: Some(api::OptionalString { value: "x".into() }), ..Default::default() };
    let request = api::UpdateContainersRequest {
        update: vec![update(&other, pids), update(&container, bad), update("none", memory(1))],
        evict: Vec::new(),
    };
    let answer: api::UpdateContainersResponse = plugin.call("UpdateContainers", &request)?;
    assert_eq!(answer.failed.iter().map(|one| one.container_id.as_str()).collect::<Vec<_>>(), [container.as_str()]);
    let shown = scene.pods.info(&other)?["runtimeSpec"]["linux"]["resources"].take();
    assert_eq!((&shown["pids"]["limit"], &shown["memory"]["limit"]), (&55.into(), &(102 << 20).into()));
    let evict = vec![api::ContainerEviction { container_id: other.clone(), reason: "in the way".to_owned() }];
    let request = api::UpdateContainersRequest { update: Vec::new(), evict };
    let _: api::UpdateContainersResponse = plugin.call("UpdateContainers", &request)?;
    assert_eq!(scene.pods.exit_code(&other)?, 137);
    Ok(())
}
