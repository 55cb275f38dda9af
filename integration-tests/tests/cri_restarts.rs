//! A kubelet whose daemon dies in the middle of a call, or whose calls are given up at any moment: what it finds then is
//! the truth, a repeat of the call does what the first did not, and at the end nothing is left.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use gantry_proto::runtime::v1;
use gantry_proto::runtime::v1::ContainerState::{ContainerCreated, ContainerExited, ContainerRunning};
use gantry_proto::runtime::v1::image_service_client::ImageServiceClient;
use gantry_proto::runtime::v1::runtime_service_client::RuntimeServiceClient;
use integration_tests::pods::{Pods, network, spec};
use integration_tests::{Daemon, Env, Registry, Result, Test, leaks, tests, wait};
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::daemon_checkpoints::stand_in;

pub(crate) const TESTS: &[Test] = tests![
    a_crash_in_making_a_pod_is_made_good [Root, Overlay],
    a_crash_in_a_start_is_made_good [Root, Overlay],
    a_crash_while_it_runs_is_made_good [Root, Overlay],
    a_crash_in_taking_down_is_made_good [Root, Overlay],
    calls_that_are_given_up_at_any_moment_are_repeated [Root, Overlay],
];

/// A step of a call at which the daemon dies, and the call that the kubelet sees it die in.
type Step = (&'static str, &'static str);

fn a_crash_in_making_a_pod_is_made_good(env: &Env) -> Result<()> {
    crash_at(
        env,
        84,
        &[
            ("cri.pulled", "PullImage"),
            ("cri.namespaces", "RunPodSandbox"),
            ("cri.network", "RunPodSandbox"),
            ("cri.shim", "RunPodSandbox"),
            ("cri.pod", "RunPodSandbox"),
        ],
    )
}

fn a_crash_in_a_start_is_made_good(env: &Env) -> Result<()> {
    crash_at(
        env,
        85,
        &[
            ("cri.snapshot", "CreateContainer"),
            ("cri.container", "CreateContainer"),
            ("create.shim", "StartContainer"),
            ("create.done", "StartContainer"),
            ("cri.created", "StartContainer"),
            ("cri.noted", "StartContainer"),
            ("start.after", "StartContainer"),
            ("cri.started", "StartContainer"),
        ],
    )
}

fn a_crash_while_it_runs_is_made_good(env: &Env) -> Result<()> {
    crash_at(
        env,
        86,
        &[
            ("cri.limited", "UpdateContainerResources"),
            ("exec.before", "ExecSync"),
            ("exec.after", "ExecSync"),
            ("start.after:2", "ExecSync"),
            ("cri.frozen", "CheckpointContainer"),
            ("kill.before", "StopContainer"),
            ("kill.after", "StopContainer"),
            ("cri.ended", "StopContainer"),
        ],
    )
}

fn a_crash_in_taking_down_is_made_good(env: &Env) -> Result<()> {
    crash_at(
        env,
        87,
        &[
            ("snapshot.removing:2", "RemoveContainer"),
            ("cri.removed.files", "RemoveContainer"),
            ("cri.stopping", "StopPodSandbox"),
            ("cri.disconnected", "StopPodSandbox"),
            ("cri.unmade", "StopPodSandbox"),
            ("cri.removed", "RemovePodSandbox"),
            ("cri.image.removing", "RemoveImage"),
        ],
    )
}

fn crash_at(env: &Env, network: u8, steps: &[Step]) -> Result<()> {
    let machine = Machine::new(env, network)?;
    for (index, (step, call)) in steps.iter().enumerate() {
        let mut kubelet = machine.kubelet(Some(step), &[])?;
        kubelet.has_process = index % 2 == 1;
        kubelet.life().and_then(|()| kubelet.nothing_is_left()).with_context(|| format!("daemon dies at {step}"))?;
        assert_eq!(kubelet.died_in, Some(*call), "the daemon was to die at {step}");
        kubelet.end();
    }
    Ok(())
}

fn calls_that_are_given_up_at_any_moment_are_repeated(env: &Env) -> Result<()> {
    let machine = Machine::new(env, 88)?;
    for milliseconds in [&[1, 4, 9][..], &[2, 16, 60], &[0, 30, 120]].into_iter().take(wait::rounds(2)) {
        let deadlines: Vec<Duration> = milliseconds.iter().map(|time| Duration::from_millis(*time)).collect();
        let mut kubelet = machine.kubelet(None, &deadlines)?;
        let lived = kubelet.life().and_then(|()| kubelet.nothing_is_left());
        lived.with_context(|| format!("given up after {deadlines:?}"))?;
        kubelet.end();
    }
    Ok(())
}

/// What all lives have in common.
struct Machine<'env> {
    env: &'env Env,
    _registry: Registry,
    image: String,
    config: PathBuf,
}

impl<'env> Machine<'env> {
    /// `third` is the third part of its pods' addresses.
    fn new(env: &'env Env, third: u8) -> Result<Self> {
        let (registry, image) = Registry::with_busybox(env)?;
        let runtime = stand_in(env)?;
        let ipam = serde_json::json!({
            "type": "host-local", "dataDir": env.path("ipam"), "subnet": format!("10.213.{third}.0/24"),
        });
        let plugins = serde_json::json!([{"type": "ptp", "ipam": ipam}]);
        let (dir, config) = (env.dir("net.d")?, env.path("config.toml"));
        let network = network(env, &dir, &plugins, &[])?;
        fs::write(&config, format!("[cri.runtimes.rung]\nbinary = {runtime:?}\n{network}"))?;
        Ok(Self { env, _registry: registry, image, config })
    }

    /// A kubelet whose daemon dies at a step, or that gives each call up after these times and then makes it once more.
    fn kubelet(&self, dies_at: Option<&str>, deadlines: &[Duration]) -> Result<Kubelet<'_>> {
        let config = self.config.to_string_lossy();
        let args = ["--config", &*config];
        let daemon = match dies_at {
            Some(step) => self.env.daemon_dying_with(step, &args)?,
            None => self.env.daemon_with(&args)?,
        };
        let pods = Pods::connect(self.env, &daemon)?;
        // A kubelet makes the cgroup of a pod before the pod.
        for hierarchy in leaks::hierarchies() {
            fs::create_dir_all(hierarchy.join(self.env.id("pods")))?;
        }
        Ok(Kubelet { machine: self, daemon, pods, deadlines: deadlines.to_vec(), has_process: true, died_in: None })
    }
}

struct Kubelet<'env> {
    machine: &'env Machine<'env>,
    daemon: Daemon<'env>,
    pods: Pods<'env>,
    deadlines: Vec<Duration>,
    /// Its pods have a process.
    has_process: bool,
    died_in: Option<&'static str>,
}

impl Kubelet<'_> {
    /// A pod with a container, from the pull of its image to the removal of that, every call of it repeated as needed.
    fn life(&mut self) -> Result<()> {
        let image = self.machine.image.clone();
        let pull = v1::PullImageRequest { image: Some(spec(&image)), ..Default::default() };
        self.image_call("PullImage", pull, async |mut images, request| images.pull_image(request).await)?;
        let mut config = self.pods.networked_config("pod");
        if !self.has_process {
            let linux = config.linux.get_or_insert_default().security_context.get_or_insert_default();
            linux.namespace_options.get_or_insert_default().pid = v1::NamespaceMode::Container.into();
        }
        let request = v1::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
        let made =
            self.call("RunPodSandbox", request, async |mut pods, request| pods.run_pod_sandbox(request).await)?;
        let pod = made.pod_sandbox_id;
        ensure!(self.listed()? == [(pod.clone(), true)], "{:?}", self.listed()?);
        let container = self.run_container(&pod, &config)?;
        self.use_container(&container)?;
        self.end_container(&container)?;
        let request = v1::StopPodSandboxRequest { pod_sandbox_id: pod.clone() };
        self.call("StopPodSandbox", request, async |mut pods, request| pods.stop_pod_sandbox(request).await)?;
        ensure!(self.listed()? == [(pod.clone(), false)], "{:?}", self.listed()?);
        let cgroups = || leaks::hierarchies().into_iter().map(|dir| dir.join(self.machine.env.id("pods")).join(&pod));
        ensure!(!cgroups().any(|dir| dir.exists()), "the cgroup by which the pod is found is left");
        let request = v1::RemovePodSandboxRequest { pod_sandbox_id: pod };
        self.call("RemovePodSandbox", request, async |mut pods, request| pods.remove_pod_sandbox(request).await)?;
        ensure!(self.listed()?.is_empty(), "{:?}", self.listed()?);
        let remove = v1::RemoveImageRequest { image: Some(spec(&image)) };
        self.image_call("RemoveImage", remove, async |mut images, request| images.remove_image(request).await)?;
        ensure!(self.pods.image(&image)?.is_none(), "the image is left");
        Ok(())
    }

    fn run_container(&mut self, pod: &str, config: &v1::PodSandboxConfig) -> Result<String> {
        let script = "trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done";
        let container = v1::ContainerConfig {
            metadata: Some(v1::ContainerMetadata { name: "container".to_owned(), attempt: 0 }),
            image: Some(spec(&self.machine.image)),
            command: ["sh", "-c", script].map(str::to_owned).to_vec(),
            log_path: "container.log".to_owned(),
            ..Default::default()
        };
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: pod.to_owned(),
            config: Some(container),
            sandbox_config: Some(config.clone()),
        };
        let made = self.call("CreateContainer", request, async |mut pods, r| pods.create_container(r).await)?;
        let id = made.container_id;
        ensure!(self.containers()? == [(id.clone(), ContainerCreated)], "{:?}", self.containers()?);
        let log = self.machine.env.path("logs/container.log");
        let _ = fs::remove_file(&log);
        let request = v1::StartContainerRequest { container_id: id.clone() };
        self.call("StartContainer", request, async |mut pods, request| pods.start_container(request).await)?;
        ensure!(self.containers()? == [(id.clone(), ContainerRunning)], "{:?}", self.containers()?);
        let ready = || fs::read_to_string(&log).ok().filter(|text| text.contains("ready"));
        let said = wait::until("it is ready", ready)?;
        ensure!(said.lines().count() == 1, "it was started twice: {said}");
        Ok(id)
    }

    fn use_container(&mut self, id: &str) -> Result<()> {
        let limits = v1::LinuxContainerResources { cpu_shares: 512, ..Default::default() };
        let request = v1::UpdateContainerResourcesRequest {
            container_id: id.to_owned(),
            linux: Some(limits),
            ..Default::default()
        };
        let update =
            async |mut pods: RuntimeServiceClient<Channel>, request| pods.update_container_resources(request).await;
        self.call("UpdateContainerResources", request, update)?;
        let cmd = ["sh", "-c", "sleep 0.2; echo said"].map(str::to_owned).to_vec();
        let request = v1::ExecSyncRequest { container_id: id.to_owned(), cmd, timeout: 60 };
        let answer = self.call("ExecSync", request, async |mut pods, request| pods.exec_sync(request).await)?;
        assert_eq!((answer.exit_code, answer.stdout.as_slice()), (0, &b"said\n"[..]));
        wait::until("no command is left that was given up", || {
            let cmd = ["ps", "-o", "args"].map(str::to_owned).to_vec();
            let request = v1::ExecSyncRequest { container_id: id.to_owned(), cmd, timeout: 60 };
            let answer = self.pods.runtime.block_on(self.pods.pods.exec_sync(request)).ok()?.into_inner();
            (!String::from_utf8_lossy(&answer.stdout).contains("echo said")).then_some(())
        })?;
        let location = self.machine.env.path("archive.tar").to_string_lossy().into_owned();
        let request = v1::CheckpointContainerRequest { container_id: id.to_owned(), location, timeout: 0 };
        let checkpoint =
            async |mut pods: RuntimeServiceClient<Channel>, request| pods.checkpoint_container(request).await;
        self.call("CheckpointContainer", request, checkpoint)?;
        Ok(())
    }

    fn end_container(&mut self, id: &str) -> Result<()> {
        let request = v1::StopContainerRequest { container_id: id.to_owned(), timeout: 60 };
        self.call("StopContainer", request, async |mut pods, request| pods.stop_container(request).await)?;
        ensure!(self.containers()? == [(id.to_owned(), ContainerExited)], "{:?}", self.containers()?);
        assert_eq!(self.pods.exit_code(id)?, 3, "it ended by itself");
        let request = v1::RemoveContainerRequest { container_id: id.to_owned() };
        self.call("RemoveContainer", request, async |mut pods, request| pods.remove_container(request).await)?;
        ensure!(self.containers()?.is_empty(), "{:?}", self.containers()?);
        Ok(())
    }

    /// Makes a call, at last without a deadline; once more where the daemon dies of it.
    fn call<Q: Clone, A>(
        &mut self,
        name: &'static str,
        request: Q,
        call: impl AsyncFn(RuntimeServiceClient<Channel>, Request<Q>) -> Result<Response<A>, Status>,
    ) -> Result<A> {
        self.repeated(name, request, async |pods, request| call(pods.pods.clone(), request).await)
    }

    fn image_call<Q: Clone, A>(
        &mut self,
        name: &'static str,
        request: Q,
        call: impl AsyncFn(ImageServiceClient<Channel>, Request<Q>) -> Result<Response<A>, Status>,
    ) -> Result<A> {
        self.repeated(name, request, async |pods, request| call(pods.images.clone(), request).await)
    }

    fn repeated<Q: Clone, A>(
        &mut self,
        name: &'static str,
        request: Q,
        call: impl AsyncFn(&Pods<'_>, Request<Q>) -> Result<Response<A>, Status>,
    ) -> Result<A> {
        for deadline in &self.deadlines {
            let mut limited = Request::new(request.clone());
            limited.set_timeout(*deadline);
            // It may be done in time, or not.
            let _ = self.pods.runtime.block_on(call(&self.pods, limited));
        }
        let answer = self.pods.runtime.block_on(call(&self.pods, Request::new(request.clone())));
        match answer {
            Ok(answer) => return Ok(answer.into_inner()),
            Err(error) if !self.daemon.died() => return Err(error).context(name),
            Err(_) => {}
        }
        ensure!(self.died_in.is_none(), "{name}: the daemon died twice, first in {:?}", self.died_in);
        self.died_in = Some(name);
        let config = self.machine.config.to_string_lossy();
        self.daemon = self.machine.env.daemon_with(&["--config", &config])?;
        let pods = Pods::connect(self.machine.env, &self.daemon)?;
        std::mem::forget(std::mem::replace(&mut self.pods, pods));
        self.what_is_found_is_true(name).with_context(|| format!("found after a crash in {name}"))?;
        let again = self.pods.runtime.block_on(call(&self.pods, Request::new(request)));
        Ok(again.with_context(|| format!("{name} again"))?.into_inner())
    }

    /// There is no half of anything: each state is the one before the call, or the one after it.
    fn what_is_found_is_true(&mut self, name: &str) -> Result<()> {
        let (pods, containers) = (self.listed()?, self.containers()?);
        let states: Vec<v1::ContainerState> = containers.iter().map(|(_, state)| *state).collect();
        let ready: Vec<bool> = pods.iter().map(|(_, ready)| *ready).collect();
        let fits = match name {
            "PullImage" | "RemoveImage" => pods.is_empty(),
            "RunPodSandbox" => matches!(ready[..], [] | [true]),
            "CreateContainer" => ready == [true] && matches!(states[..], [] | [ContainerCreated]),
            "StartContainer" => ready == [true] && matches!(states[..], [ContainerCreated | ContainerRunning]),
            "StopContainer" => ready == [true] && matches!(states[..], [ContainerRunning | ContainerExited]),
            "RemoveContainer" => ready == [true] && matches!(states[..], [] | [ContainerExited]),
            "StopPodSandbox" | "RemovePodSandbox" => matches!(ready[..], [] | [false]) && states.is_empty(),
            _ => ready == [true] && states == [ContainerRunning],
        };
        ensure!(fits, "{pods:?}, {containers:?}");
        Ok(())
    }

    /// All pods, and whether they are ready.
    fn listed(&mut self) -> Result<Vec<(String, bool)>> {
        let all = self.pods.runtime.block_on(self.pods.pods.list_pod_sandbox(v1::ListPodSandboxRequest::default()))?;
        let ready = |pod: &v1::PodSandbox| pod.state() == v1::PodSandboxState::SandboxReady;
        Ok(all.into_inner().items.into_iter().map(|pod| (pod.id.clone(), ready(&pod))).collect())
    }

    fn containers(&mut self) -> Result<Vec<(String, v1::ContainerState)>> {
        let all = self.pods.runtime.block_on(self.pods.pods.list_containers(v1::ListContainersRequest::default()))?;
        Ok(all.into_inner().containers.into_iter().map(|one| (one.id.clone(), one.state())).collect())
    }

    /// No file, namespace, address, snapshot or shim is left of what was there.
    fn nothing_is_left(&mut self) -> Result<()> {
        let env = self.machine.env;
        let names = |dir: PathBuf| -> Vec<String> {
            let entries = fs::read_dir(dir).into_iter().flatten().flatten();
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
        };
        for place in ["netns", "state/cri/pods", "state/cri/streams", "root/cri/containers", "root/cni/results"] {
            let left = names(env.path(place));
            ensure!(left.is_empty(), "{place}: {left:?}");
        }
        let addresses = names(env.path("ipam").join(env.token()));
        ensure!(addresses.iter().all(|name| !name.starts_with("10.")), "{addresses:?}");
        let shims = || names(env.path("state/io.containerd.runtime.v2.task/k8s.io"));
        wait::until("no shim is left", || shims().is_empty().then_some(()))?;
        // What a pull had begun that was given up goes with the next collection.
        wait::until("no active snapshot is left", || {
            let listed = self.daemon.ctr(&["--namespace", "k8s.io", "snapshots", "ls"]).ok()?.ok().ok()?.stdout;
            (!listed.contains("Active")).then_some(())
        })
    }

    /// The next one has the same directories.
    fn end(self) {
        let Self { daemon, pods, .. } = self;
        drop(pods);
        drop(daemon);
    }
}
