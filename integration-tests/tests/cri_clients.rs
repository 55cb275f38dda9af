//! Pods as clients of containerd see them, the cAdvisor in a kubelet among them: a container and a task under the pod's id.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use gantry_proto::containerd::services::containers::v1::containers_client::ContainersClient;
use gantry_proto::containerd::services::containers::v1::*;
use gantry_proto::containerd::services::tasks::v1::tasks_client::TasksClient;
use gantry_proto::containerd::services::tasks::v1::*;
use gantry_proto::containerd::v1::types::{Process, Status as TaskStatus};
use gantry_proto::runtime::v1;
use integration_tests::pods::{Pods, network};
use integration_tests::{Daemon, Env, Registry, Result, Test, leaks, tests, wait};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

pub(crate) const TESTS: &[Test] = tests![
    a_pod_is_a_container_and_a_task [Root, Overlay],
    a_pod_with_a_process_or_the_machines_network_is_a_task [Root],
    who_knows_pods_as_tasks_cannot_harm_them [Root, Overlay],
    nothing_shows_a_pod_whose_shim_is_gone [Root, EveryHost],
];

/// A client of containerd in Kubernetes' namespace.
#[derive(Clone)]
struct Client {
    containers: ContainersClient<Channel>,
    tasks: TasksClient<Channel>,
}

fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("containerd-namespace", "k8s.io".parse().expect("a header"));
    request
}

impl Client {
    fn of(pods: &Pods<'_>, daemon: &Daemon<'_>) -> Result<Self> {
        let channel = pods.runtime.block_on(daemon.channel())?;
        Ok(Self { containers: ContainersClient::new(channel.clone()), tasks: TasksClient::new(channel) })
    }

    async fn container(&mut self, id: &str) -> Result<Container, Status> {
        let found = self.containers.get(request(GetContainerRequest { id: id.to_owned() })).await?.into_inner();
        found.container.ok_or_else(|| Status::internal("no container"))
    }

    async fn listed(&mut self, filter: &str) -> Result<Vec<String>, Status> {
        let filters = vec![filter.to_owned()];
        let listed = self.containers.list(request(ListContainersRequest { filters })).await?.into_inner();
        Ok(listed.containers.into_iter().map(|container| container.id).collect())
    }

    async fn task(&mut self, id: &str) -> Result<Process, Status> {
        let found = self.tasks.get(request(GetRequest { container_id: id.to_owned(), ..Default::default() })).await?;
        found.into_inner().process.ok_or_else(|| Status::internal("no process"))
    }
}

/// The interfaces of a process's network, without the loopback.
fn interfaces(pid: u32) -> Result<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/net/dev"))?;
    let names = text.lines().filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned()));
    Ok(names.filter(|name| name != "lo").collect())
}

fn network_of(pid: impl std::fmt::Display) -> Result<u64> {
    Ok(fs::metadata(format!("/proc/{pid}/ns/net"))?.ino())
}

/// A kubelet's part: the cgroup of the pod that it is about to make.
fn make_cgroups(env: &Env) -> Result<()> {
    for hierarchy in leaks::hierarchies() {
        fs::create_dir(hierarchy.join(env.id("pods")))?;
    }
    Ok(())
}

/// The cgroups of this name in the pod's.
fn cgroups(env: &Env, name: &str) -> Vec<PathBuf> {
    let all = leaks::hierarchies().into_iter().map(|dir| dir.join(env.id("pods")).join(name));
    all.filter(|dir| dir.is_dir()).collect()
}

/// A pod as a kubelet makes most of them: each container has a view of processes of its own, and so the pod has no process.
fn usual(mut config: v1::PodSandboxConfig) -> v1::PodSandboxConfig {
    let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    security.namespace_options.get_or_insert_default().pid = v1::NamespaceMode::Container.into();
    config
}

/// A daemon whose pods have a network of their own, all of it in a network of the test's own.
fn networked(env: &Env) -> Result<String> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    env.run("ip", &["link", "set", "lo", "up"])?.ok()?;
    let ipam = serde_json::json!({"type": "host-local", "dataDir": env.path("ipam"), "subnet": "10.213.89.0/24"});
    let plugins = serde_json::json!([{"type": "bridge", "bridge": "pods0", "isGateway": true, "ipam": ipam}]);
    network(env, &env.dir("net.d")?, &plugins, &[])
}

fn a_pod_is_a_container_and_a_task(env: &Env) -> Result<()> {
    let settings = networked(env)?;
    make_cgroups(env)?;
    let (_registry, image) = Registry::with_busybox(env)?;
    let daemon = env.daemon_configured(&settings)?;
    let mut pods = Pods::connect(env, &daemon)?;
    pods.pull(&image)?;
    let mut config = usual(pods.networked_config("pod"));
    config.labels.insert("io.kubernetes.pod.name".into(), "web".into());
    let pod = pods.run(&config)?;
    let member = pods.start(&pod, &config, &image, &["sleep", "1000"], |_| {})?;
    let mut client = Client::of(&pods, &daemon)?;
    let (container, task) = pods.runtime.block_on(async {
        let container = client.container(&pod).await?;
        assert_eq!(client.listed("labels.\"io.cri-containerd.kind\"==sandbox").await?, [pod.as_str()]);
        assert_eq!(client.listed("labels.\"io.cri-containerd.kind\"==container").await?, [member.as_str()]);
        let mut both = [pod.clone(), member.clone()];
        both.sort();
        assert_eq!(client.listed("").await?, both);
        let listed = client.tasks.list(request(ListTasksRequest::default())).await?.into_inner().tasks;
        assert_eq!(listed.len(), 2, "{listed:?}");
        let task = client.task(&pod).await?;
        assert!(listed.contains(&task), "{listed:?}");
        Ok::<_, Status>((container, task))
    })?;
    described(&container, &pod, env)?;
    assert_eq!((task.id.as_str(), task.status()), (pod.as_str(), TaskStatus::Running));
    assert_eq!(interfaces(task.pid)?, ["eth0"]);
    let (first, shim) = pods.processes(&member)?;
    assert_eq!(network_of(task.pid)?, network_of(first)?);
    assert_ne!(network_of(task.pid)?, network_of(shim)?, "the shim itself is outside");
    let found = cgroups(env, &pod);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(fs::read_to_string(found[0].join("cgroup.procs"))?, "");
    // cAdvisor remembers the number.
    daemon.crash()?;
    let daemon = env.daemon_configured(&settings)?;
    let mut pods = Pods::connect(env, &daemon)?;
    let mut client = Client::of(&pods, &daemon)?;
    assert_eq!(pods.runtime.block_on(client.task(&pod))?, task);
    assert!(pods.runtime.block_on(client.container(&pod))? == container, "it has changed");
    assert_eq!(cgroups(env, &pod), found);
    let mut waiting = client.clone();
    let wait_for = request(WaitRequest { container_id: pod.clone(), ..Default::default() });
    let waited = pods.runtime.spawn(async move { waiting.tasks.wait(wait_for).await });
    let stop = v1::StopPodSandboxRequest { pod_sandbox_id: pod.clone() };
    pods.runtime.block_on(pods.pods.stop_pod_sandbox(stop))?;
    pods.runtime.block_on(waited)??;
    assert_eq!(pods.runtime.block_on(client.task(&pod)).expect_err("stopped").code(), Code::NotFound);
    assert_eq!(pods.runtime.block_on(client.container(&pod))?.labels, container.labels);
    assert!(cgroups(env, &pod).is_empty());
    assert!(!Path::new(&format!("/proc/{}", task.pid)).exists());
    pods.remove(&pod)?;
    assert_eq!(pods.runtime.block_on(client.container(&pod)).expect_err("removed").code(), Code::NotFound);
    Ok(())
}

/// What clients read of a pod's container.
fn described(container: &Container, pod: &str, env: &Env) -> Result<()> {
    assert_eq!(container.labels["io.cri-containerd.kind"], "sandbox");
    assert_eq!(container.labels["io.kubernetes.pod.name"], "web");
    assert!(container.created_at.is_some_and(|at| at.seconds > 1_600_000_000), "{:?}", container.created_at);
    let spec: Value = serde_json::from_slice(&container.spec.as_ref().context("no specification")?.value)?;
    assert_eq!(spec["annotations"]["io.kubernetes.cri.sandbox-id"], pod);
    assert_eq!(spec["linux"]["cgroupsPath"], format!("/{}/{pod}", env.id("pods")));
    assert!(spec["process"]["env"].is_array(), "cAdvisor reads it unasked: {spec}");
    let metadata = &container.extensions["io.cri-containerd.sandbox.metadata"];
    assert_eq!(metadata.type_url, "github.com/containerd/cri/pkg/store/sandbox/Metadata");
    let metadata: Value = serde_json::from_slice(&metadata.value)?;
    let metadata = &metadata["Metadata"];
    assert_eq!((&metadata["ID"], &metadata["Config"]["metadata"]["name"]), (&pod.into(), &env.id("pod").into()));
    assert!(metadata["IP"].as_str().is_some_and(|ip| ip.starts_with("10.213.89.")), "{metadata}");
    assert!(metadata["NetNSPath"].as_str().is_some_and(|path| Path::new(path).exists()), "{metadata}");
    Ok(())
}

fn a_pod_with_a_process_or_the_machines_network_is_a_task(env: &Env) -> Result<()> {
    let config = networked(env)?;
    make_cgroups(env)?;
    let daemon = env.daemon_configured(&config)?;
    let mut pods = Pods::connect(env, &daemon)?;
    let mut client = Client::of(&pods, &daemon)?;
    let host = usual(pods.pod_config("host"));
    let host = pods.run(&host)?;
    // What nobody says anything of is shared.
    let shared = pods.networked_config("shared");
    let shared = pods.run(&shared)?;
    let task = pods.runtime.block_on(client.task(&host))?;
    assert_eq!(network_of(task.pid)?, network_of("self")?);
    assert_eq!(cgroups(env, &host).len(), 1);
    let task = pods.runtime.block_on(client.task(&shared))?;
    assert_eq!(interfaces(task.pid)?, ["eth0"]);
    // The cgroup is its process's, in every hierarchy that the runtime uses.
    let with_process = |dir: &PathBuf| fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    let found = cgroups(env, &shared);
    assert!(found.iter().any(|dir| with_process(dir).trim() == task.pid.to_string()), "{found:?}");
    let spec = pods.runtime.block_on(client.container(&shared))?.spec.context("no specification")?;
    let spec: Value = serde_json::from_slice(&spec.value)?;
    assert_eq!(spec["process"]["args"][0], "/pause");
    for pod in [host, shared] {
        pods.remove(&pod)?;
        assert!(cgroups(env, &pod).is_empty());
    }
    Ok(())
}

fn who_knows_pods_as_tasks_cannot_harm_them(env: &Env) -> Result<()> {
    make_cgroups(env)?;
    let daemon = env.daemon()?;
    let mut pods = Pods::connect(env, &daemon)?;
    let config = usual(pods.pod_config("pod"));
    let pod = pods.run(&config)?;
    let client = Client::of(&pods, &daemon)?;
    let before = pods.runtime.block_on(client.clone().task(&pod))?;
    let id = || pod.clone();
    pods.runtime.block_on(async {
        let (mut tasks, mut containers) = (client.tasks.clone(), client.containers.clone());
        let container = client.clone().container(&pod).await.expect("the container");
        let pids = tasks.list_pids(request(ListPidsRequest { container_id: id() })).await.expect("pids").into_inner();
        assert_eq!(pids.processes.iter().map(|process| process.pid).collect::<Vec<_>>(), [before.pid]);
        let metrics = tasks.metrics(request(MetricsRequest { filters: vec![format!("id=={pod}")] })).await;
        assert!(metrics.expect("metrics").into_inner().metrics.is_empty());
        let kill = KillRequest { container_id: id(), signal: 9, all: true, ..Default::default() };
        let exec = ExecProcessRequest { container_id: id(), exec_id: "e".into(), ..Default::default() };
        let update = UpdateTaskRequest { container_id: id(), ..Default::default() };
        let change = UpdateContainerRequest { container: Some(container.clone()), update_mask: None };
        let refused = [
            tasks.kill(request(kill)).await.err(),
            tasks.delete(request(DeleteTaskRequest { container_id: id() })).await.err(),
            tasks.exec(request(exec)).await.err(),
            tasks.update(request(update)).await.err(),
            tasks.pause(request(PauseTaskRequest { container_id: id() })).await.err(),
            tasks.start(request(StartRequest { container_id: id(), ..Default::default() })).await.err(),
            tasks.create(request(CreateTaskRequest { container_id: id(), ..Default::default() })).await.err(),
            containers.delete(request(DeleteContainerRequest { id: id() })).await.err(),
            containers.update(request(change)).await.err(),
        ];
        for refused in refused {
            let refused = refused.expect("refused");
            assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
            assert!(refused.message().contains(&pod) && refused.message().contains("is a pod"), "{refused}");
        }
        let again = CreateContainerRequest { container: Some(container) };
        let refused = containers.create(request(again)).await.expect_err("it is there");
        assert_eq!(refused.code(), Code::AlreadyExists, "{refused}");
        // In other namespaces there is nothing of the kind.
        let elsewhere = tasks.get(env.request(GetRequest { container_id: id(), ..Default::default() })).await;
        assert_eq!(elsewhere.expect_err("no task").code(), Code::NotFound);
        // A part of an id is none to these clients.
        assert_eq!(client.clone().task(&pod[..12]).await.expect_err("no task").code(), Code::NotFound);
    });
    let state = v1::PodSandboxStatusRequest { pod_sandbox_id: pod.clone(), verbose: false };
    let status = pods.runtime.block_on(pods.pods.pod_sandbox_status(state))?.into_inner().status.context("status")?;
    assert_eq!(status.state(), v1::PodSandboxState::SandboxReady);
    assert_eq!(pods.runtime.block_on(client.clone().task(&pod))?, before);
    pods.remove(&pod)
}

fn nothing_shows_a_pod_whose_shim_is_gone(env: &Env) -> Result<()> {
    make_cgroups(env)?;
    let daemon = env.daemon()?;
    let mut pods = Pods::connect(env, &daemon)?;
    let config = usual(pods.pod_config("pod"));
    let pod = pods.run(&config)?;
    let mut client = Client::of(&pods, &daemon)?;
    let task = pods.runtime.block_on(client.task(&pod))?;
    assert_eq!(cgroups(env, &pod).len(), 1);
    kill(Pid::from_raw(task.pid.try_into()?), Signal::SIGKILL)?;
    wait::until("the pod is not shown any more", || {
        let refused = pods.runtime.block_on(client.task(&pod)).err()?;
        (refused.code() == Code::NotFound && cgroups(env, &pod).is_empty()).then_some(())
    })?;
    assert_eq!(pods.runtime.block_on(client.container(&pod))?.id, pod);
    // A daemon that finds it so shows it no more either.
    daemon.crash()?;
    let daemon = env.daemon()?;
    let mut pods = Pods::connect(env, &daemon)?;
    let mut client = Client::of(&pods, &daemon)?;
    assert_eq!(pods.runtime.block_on(client.task(&pod)).expect_err("no task").code(), Code::NotFound);
    assert_eq!(pods.runtime.block_on(client.container(&pod))?.id, pod);
    assert!(cgroups(env, &pod).is_empty());
    pods.remove(&pod)
}
