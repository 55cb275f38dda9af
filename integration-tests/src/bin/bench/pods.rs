//! Pods as a kubelet makes them, on `gantryd` beside containerd, and beside CRI-O where there is one: each of them whole,
//! one at a time and many at once, a command in one, and what many idle ones cost.

use std::cell::RefCell;
use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use futures_util::future::try_join_all;
use gantry_proto::runtime::v1;
use gantry_proto::runtime::v1::image_service_client::ImageServiceClient;
use gantry_proto::runtime::v1::runtime_service_client::RuntimeServiceClient;
use integration_tests::pods::spec;
use integration_tests::{Daemon, Env, Image, Registry, Result, daemon, leaks, output};
use tokio::runtime::Runtime;
use tonic::transport::Channel;

use crate::crio::Crio;
use crate::crowds::Use;
use crate::daemons::Containerd;
use crate::table::{self, Subject, interleave, interleave_without_rest, millis, note};
use crate::wire::Wire;

/// Pods that are made at once.
const AT_ONCE: usize = 20;
/// Plugins of the container network interface, as Debian installs them.
const PLUGINS: &str = "/usr/lib/cni";
/// Calls in a row that are one sample: of a single one, most of the time goes into waking a process, whoever's it is.
const IN_A_ROW: u32 = 20;
/// What a kubelet asks every second.
const LISTS: [&str; 2] = ["ListPodSandbox", "ListContainers"];
const AGAINST: &str = "containerd, runc";

/// A daemon that makes pods.
struct Node {
    name: &'static str,
    pid: u32,
    /// The program that watches over its containers.
    shim: &'static str,
    /// What is in the command lines of its shims and of nobody else.
    mark: String,
    wire: RefCell<Wire>,
    pods: RuntimeServiceClient<Channel>,
    image: v1::ImageSpec,
    parent: String,
}

/// Whether a pod has a network of its own, behind a bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Network {
    Host,
    Bridge,
}

/// The tables about pods.
pub(crate) fn measure(env: &Env, rounds: usize) -> Result<()> {
    let registry = Registry::start(env)?;
    let image = Image::busybox()?.push(&registry, "pods", "latest")?;
    let pause = Image::busybox()?.setting("Cmd", vec!["sleep", "1000000"]);
    let pause = pause.setting("Env", vec!["PATH=/bin"]).push(&registry, "pause", "latest")?;
    // One thread: several hand each answer on to one another, which takes longer than a daemon needs for a list.
    let runtime = daemon::runtime()?;
    let bridges = [Bridge::new(env, 0)?, Bridge::new(env, 1)?, Bridge::new(env, 2)?];
    let gantryd = start_gantryd(env, &bridges[0])?;
    let mut nodes = vec![Node::connect(&runtime, env, "gantryd", gantryd.pid(), gantryd.socket(), &image)?];
    let containerd = start_containerd(env, &bridges[1], &pause)?;
    match &containerd {
        Some(containerd) => {
            let socket = Path::new(containerd.address());
            nodes.push(Node::connect(&runtime, env, AGAINST, containerd.pid(), socket, &image)?);
        }
        None => note("containerd is not installed: not measured"),
    }
    let crio = Crio::start(env, &bridges[2].conf, PLUGINS, &pause)?;
    if let Some(crio) = &crio {
        let node = Node::connect(&runtime, env, "CRI-O, runc", crio.pid(), &crio.socket(), &image)?;
        nodes.push(Node { shim: "conmon", mark: crio.mark(), ..node });
    }
    let measured = tables(&runtime, &nodes, rounds);
    for node in &nodes {
        node.clear(&runtime)?;
    }
    measured
}

fn tables(runtime: &Runtime, nodes: &[Node], rounds: usize) -> Result<()> {
    for network in [Network::Bridge, Network::Host] {
        let shown = if network == Network::Bridge { "a bridge" } else { "the host's network" };
        let mut subjects: Vec<Subject<'_>> =
            nodes.iter().map(|node| Subject::new(node.name, || timed(runtime, node.whole(network, 0)))).collect();
        interleave(&mut subjects, rounds)?;
        table::print(
            &format!("a pod with a container, made, stopped and removed, {shown}"),
            "ms",
            &mut subjects,
            AGAINST,
        );
        let mut subjects: Vec<Subject<'_>> =
            nodes.iter().map(|node| Subject::new(node.name, || timed(runtime, node.many(network)))).collect();
        interleave(&mut subjects, rounds.div_ceil(5))?;
        table::print(&format!("the same, {AT_ONCE} at once"), "ms", &mut subjects, AGAINST);
    }
    exec(runtime, nodes, rounds)?;
    let count = std::env::var("BENCH_PODS").ok().and_then(|text| text.parse().ok()).unwrap_or(200);
    many_idle(runtime, nodes, rounds, count)
}

fn exec(runtime: &Runtime, nodes: &[Node], rounds: usize) -> Result<()> {
    let held = nodes.iter().map(|node| Ok((node, runtime.block_on(node.start(Network::Host, 0))?)));
    let held = held.collect::<Result<Vec<_>>>()?;
    let mut subjects: Vec<Subject<'_>> = held
        .iter()
        .map(|(node, (_, container))| Subject::new(node.name, || timed(runtime, node.exec(container))))
        .collect();
    interleave(&mut subjects, rounds)?;
    table::print("ExecSync of true in a running container", "ms", &mut subjects, AGAINST);
    held.iter().try_for_each(|(node, (pod, _))| runtime.block_on(node.remove(pod)))
}

fn many_idle(runtime: &Runtime, nodes: &[Node], rounds: usize, count: usize) -> Result<()> {
    for node in nodes {
        for some in (0..count).collect::<Vec<_>>().chunks(AT_ONCE) {
            runtime.block_on(try_join_all(some.iter().map(|number| node.start(Network::Bridge, *number))))?;
        }
    }
    nodes.iter().try_for_each(|node| runtime.block_on(node.count(count)))?;
    let mut subjects: Vec<Subject<'_>> =
        nodes.iter().map(|node| Subject::new(node.name, || node.answers(&LISTS))).collect();
    interleave_without_rest(&mut subjects, rounds)?;
    table::print(
        &format!("ListPodSandbox and ListContainers of {count} pods, {IN_A_ROW} times in a row"),
        "ms",
        &mut subjects,
        AGAINST,
    );
    let mut subjects: Vec<Subject<'_>> =
        nodes.iter().map(|node| Subject::new(node.name, || node.answers(&["Version"]))).collect();
    interleave_without_rest(&mut subjects, rounds)?;
    table::print(
        &format!("a call that asks for next to nothing (Version), {IN_A_ROW} times in a row"),
        "ms",
        &mut subjects,
        AGAINST,
    );
    let mut subjects: Vec<Subject<'_>> =
        nodes.iter().map(|node| Subject::new(node.name, || timed(runtime, node.stats(count)))).collect();
    interleave(&mut subjects, rounds)?;
    table::print(&format!("ListContainerStats of {count} pods"), "ms", &mut subjects, AGAINST);
    note(&format!("\nmemory of {count} pods with a container of `sleep` each, proportional"));
    for node in nodes {
        let (daemon, pods) = node.memory()?;
        let each = pods / u64::try_from(count.max(1)).unwrap_or(u64::MAX);
        note(&format!(
            "  {:<34} {:>6} MiB: daemon {} KiB, shims and processes of a pod {each} KiB",
            node.name,
            (daemon + pods) >> 10,
            daemon,
        ));
    }
    Ok(())
}

/// Milliseconds that something takes.
fn timed<T>(runtime: &Runtime, work: impl Future<Output = Result<T>>) -> Result<f64> {
    let begun = Instant::now();
    runtime.block_on(work)?;
    Ok(millis(begun.elapsed()))
}

impl Node {
    fn connect(runtime: &Runtime, env: &Env, name: &'static str, pid: u32, socket: &Path, image: &str) -> Result<Self> {
        let channel = runtime.block_on(daemon::connect(socket))?;
        let request = v1::PullImageRequest { image: Some(spec(image)), ..Default::default() };
        let pulled = runtime.block_on(ImageServiceClient::new(channel.clone()).pull_image(request))?.into_inner();
        Ok(Self {
            name,
            pid,
            shim: "containerd-shim",
            mark: socket.to_string_lossy().into_owned(),
            wire: RefCell::new(Wire::connect(socket, None)?),
            pods: RuntimeServiceClient::new(channel),
            image: v1::ImageSpec { user_specified_image: image.to_owned(), ..spec(&pulled.image_ref) },
            parent: format!("/{}", env.id("pods")),
        })
    }

    fn config(&self, network: Network, number: usize) -> v1::PodSandboxConfig {
        let options = v1::NamespaceOption {
            network: if network == Network::Host { v1::NamespaceMode::Node } else { v1::NamespaceMode::Pod }.into(),
            pid: v1::NamespaceMode::Container.into(),
            ..Default::default()
        };
        let context = v1::LinuxSandboxSecurityContext { namespace_options: Some(options), ..Default::default() };
        let linux = v1::LinuxPodSandboxConfig {
            security_context: Some(context),
            cgroup_parent: self.parent.clone(),
            ..Default::default()
        };
        let metadata = v1::PodSandboxMetadata {
            name: format!("pod-{number}"),
            uid: format!("uid-{number}"),
            namespace: "bench".to_owned(),
            attempt: 0,
        };
        v1::PodSandboxConfig { metadata: Some(metadata), linux: Some(linux), ..Default::default() }
    }

    /// A pod with a running container: the ids of both.
    async fn start(&self, network: Network, number: usize) -> Result<(String, String)> {
        let (mut client, config) = (self.pods.clone(), self.config(network, number));
        let request = v1::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
        let pod = client.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id;
        let context = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
        let options = context.and_then(|context| context.namespace_options.clone());
        let context = v1::LinuxContainerSecurityContext { namespace_options: options, ..Default::default() };
        let linux = v1::LinuxContainerConfig { security_context: Some(context), ..Default::default() };
        let container = v1::ContainerConfig {
            metadata: Some(v1::ContainerMetadata { name: "one".to_owned(), attempt: 0 }),
            image: Some(self.image.clone()),
            command: vec!["sleep".to_owned(), "1000000".to_owned()],
            linux: Some(linux),
            ..Default::default()
        };
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: pod.clone(),
            config: Some(container),
            sandbox_config: Some(config),
        };
        let container_id = client.create_container(request).await?.into_inner().container_id;
        client.start_container(v1::StartContainerRequest { container_id: container_id.clone() }).await?;
        Ok((pod, container_id))
    }

    /// A pod with a container from its beginning to its end, as a kubelet goes through it.
    async fn whole(&self, network: Network, number: usize) -> Result<()> {
        let (pod, container_id) = self.start(network, number).await?;
        let mut client = self.pods.clone();
        client.stop_container(v1::StopContainerRequest { container_id: container_id.clone(), timeout: 0 }).await?;
        client.remove_container(v1::RemoveContainerRequest { container_id }).await?;
        self.remove(&pod).await
    }

    async fn many(&self, network: Network) -> Result<()> {
        try_join_all((0..AT_ONCE).map(|number| self.whole(network, number))).await.map(drop)
    }

    async fn remove(&self, pod: &str) -> Result<()> {
        let mut client = self.pods.clone();
        client.stop_pod_sandbox(v1::StopPodSandboxRequest { pod_sandbox_id: pod.to_owned() }).await?;
        client.remove_pod_sandbox(v1::RemovePodSandboxRequest { pod_sandbox_id: pod.to_owned() }).await?;
        Ok(())
    }

    async fn exec(&self, container: &str) -> Result<()> {
        let request =
            v1::ExecSyncRequest { container_id: container.to_owned(), cmd: vec!["true".to_owned()], timeout: 10 };
        let answer = self.pods.clone().exec_sync(request).await?.into_inner();
        ensure!(answer.exit_code == 0, "true ended with {}", answer.exit_code);
        Ok(())
    }

    async fn count(&self, count: usize) -> Result<()> {
        let mut client = self.pods.clone();
        let pods = client.list_pod_sandbox(v1::ListPodSandboxRequest::default()).await?.into_inner().items.len();
        let all = client.list_containers(v1::ListContainersRequest::default()).await?.into_inner().containers.len();
        ensure!(pods == count && all == count, "{pods} pods and {all} containers of {count}");
        Ok(())
    }

    /// Milliseconds until the last byte of the answers is there, on average of [`IN_A_ROW`].
    fn answers(&self, methods: &[&str]) -> Result<f64> {
        let mut wire = self.wire.borrow_mut();
        let begun = Instant::now();
        for method in (0..IN_A_ROW).flat_map(|_| methods) {
            wire.call(&format!("/runtime.v1.RuntimeService/{method}"), &())?;
        }
        Ok(millis(begun.elapsed() / IN_A_ROW))
    }

    async fn stats(&self, count: usize) -> Result<()> {
        let request = v1::ListContainerStatsRequest::default();
        let all = self.pods.clone().list_container_stats(request).await?.into_inner().stats.len();
        ensure!(all == count, "statistics of {all} containers of {count}");
        Ok(())
    }

    /// KiB of the daemon, and of all shims with their children.
    fn memory(&self) -> Result<(u64, u64)> {
        let mut pods = 0;
        for entry in fs::read_dir("/proc")?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
            let line = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
            if pid == self.pid || !line.contains(self.shim) || !line.contains(&self.mark) {
                continue;
            }
            pods += Use::of(pid)?.proportional;
            for task in fs::read_dir(entry.path().join("task"))?.flatten() {
                let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
                for child in children.split_whitespace() {
                    pods += Use::of(child.parse().context("a pid")?)?.proportional;
                }
            }
        }
        Ok((Use::of(self.pid)?.proportional, pods))
    }

    /// Removes all pods.
    fn clear(&self, runtime: &Runtime) -> Result<()> {
        let mut client = self.pods.clone();
        let pods = runtime.block_on(client.list_pod_sandbox(v1::ListPodSandboxRequest::default()))?.into_inner().items;
        for some in pods.chunks(AT_ONCE) {
            runtime.block_on(try_join_all(some.iter().map(|pod| self.remove(&pod.id))))?;
        }
        for hierarchy in leaks::hierarchies() {
            let _ = fs::remove_dir(hierarchy.join(self.parent.trim_start_matches('/')));
        }
        Ok(())
    }
}

/// A bridge and its addresses, for one daemon.
struct Bridge<'env> {
    env: &'env Env,
    name: String,
    conf: String,
}

impl<'env> Bridge<'env> {
    fn new(env: &'env Env, number: u8) -> Result<Self> {
        let (name, dir) = (format!("gtb{number}{:07x}", std::process::id()), env.dir(&format!("net{number}"))?);
        let ipam = serde_json::json!({
            "type": "host-local",
            "dataDir": env.path(&format!("ipam{number}")),
            "ranges": [[{"subnet": format!("10.{}.0.0/16", 214 + number)}]],
        });
        let plugin = serde_json::json!({"type": "bridge", "bridge": name, "isGateway": true, "ipam": ipam});
        let network = serde_json::json!({"cniVersion": "1.0.0", "name": name, "plugins": [plugin]});
        fs::write(dir.join("10-bench.conflist"), network.to_string())?;
        Ok(Self { env, name, conf: dir.to_string_lossy().into_owned() })
    }
}

impl Drop for Bridge<'_> {
    fn drop(&mut self) {
        let _ = self.env.run("ip", &["link", "delete", &self.name]);
    }
}

fn start_gantryd<'env>(env: &'env Env, bridge: &Bridge<'_>) -> Result<Daemon<'env>> {
    let netns = env.path("netns");
    let text = format!("[cri.cni]\nconf_dir = {:?}\nbin_dirs = [{PLUGINS:?}]\nnetns_dir = {netns:?}\n", bridge.conf);
    env.daemon_configured(&text)
}

fn start_containerd(env: &Env, bridge: &Bridge<'_>, pause: &str) -> Result<Option<Containerd>> {
    let cri = "plugins.\"io.containerd.grpc.v1.cri\"";
    // A machine may not let a daemon lower scores; the other one finds out by itself.
    let after = format!(
        "[{cri}]\nsandbox_image = {pause:?}\nrestrict_oom_score_adj = true\nstream_server_port = \"0\"\n\
         [{cri}.cni]\nbin_dir = {PLUGINS:?}\nconf_dir = {:?}\n",
        bridge.conf
    );
    let started = Containerd::start_with(env, "containerd-pods", "", &after)?;
    if let Some(containerd) = &started {
        let pull = containerd.ctr(env, &["--namespace", "k8s.io", "images", "pull", "--plain-http", pause]);
        output::run(pull)?.ok()?;
    }
    Ok(started)
}
