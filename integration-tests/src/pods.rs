//! Pods through the container runtime interface, as a kubelet makes them.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

use anyhow::Context as _;
use gantry_proto::runtime::v1;
use gantry_proto::runtime::v1::image_service_client::ImageServiceClient;
use gantry_proto::runtime::v1::runtime_service_client::RuntimeServiceClient;
use nix::unistd::Pid;
use serde_json::{Value, json};
use tonic::transport::Channel;

use crate::{Daemon, Env, Result, daemon, leaks, wait};

/// Largest message that a kubelet takes.
const MAX_MESSAGE: usize = 16 << 20;

/// A kubelet's view of a daemon. Pods of the test are removed when it is dropped.
#[derive(Debug)]
pub struct Pods<'env> {
    env: &'env Env,
    /// Where calls run.
    pub runtime: tokio::runtime::Runtime,
    /// Pods and containers.
    pub pods: RuntimeServiceClient<Channel>,
    /// Images.
    pub images: ImageServiceClient<Channel>,
}

impl<'env> Pods<'env> {
    /// Connects to a daemon.
    pub fn connect(env: &'env Env, daemon: &Daemon<'_>) -> Result<Self> {
        let runtime = daemon::runtime()?;
        let channel = runtime.block_on(daemon.channel())?;
        Ok(Self {
            env,
            runtime,
            pods: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE),
            images: ImageServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE),
        })
    }

    /// Pulls an image and answers with its id.
    pub fn pull(&mut self, image: &str) -> Result<String> {
        let request = v1::PullImageRequest { image: Some(spec(image)), ..Default::default() };
        Ok(self.runtime.block_on(self.images.pull_image(request))?.into_inner().image_ref)
    }

    /// What is known of an image, if there is one.
    pub fn image(&mut self, image: &str) -> Result<Option<v1::Image>> {
        let request = v1::ImageStatusRequest { image: Some(spec(image)), verbose: false };
        Ok(self.runtime.block_on(self.images.image_status(request))?.into_inner().image)
    }

    /// A pod with the machine's network, which needs no plugin.
    pub fn pod_config(&self, name: &str) -> v1::PodSandboxConfig {
        let options = v1::NamespaceOption { network: v1::NamespaceMode::Node.into(), ..Default::default() };
        let security = v1::LinuxSandboxSecurityContext { namespace_options: Some(options), ..Default::default() };
        v1::PodSandboxConfig {
            metadata: Some(v1::PodSandboxMetadata {
                name: self.env.id(name),
                uid: self.env.id("uid"),
                namespace: self.env.token().to_owned(),
                attempt: 0,
            }),
            log_directory: self.env.path("logs").to_string_lossy().into_owned(),
            labels: BTreeMap::from([("test".to_owned(), self.env.token().to_owned())]),
            linux: Some(v1::LinuxPodSandboxConfig {
                security_context: Some(security),
                cgroup_parent: format!("/{}", self.env.id("pods")),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    /// A pod with a network of its own, for a daemon that has one ([`network`]).
    pub fn networked_config(&self, name: &str) -> v1::PodSandboxConfig {
        let mut config = self.pod_config(name);
        config.linux.get_or_insert_default().security_context = None;
        config
    }

    /// Runs a pod and answers with its id.
    pub fn run(&mut self, config: &v1::PodSandboxConfig) -> Result<String> {
        let request = v1::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
        Ok(self.runtime.block_on(self.pods.run_pod_sandbox(request))?.into_inner().pod_sandbox_id)
    }

    /// Creates and starts a container, changed by `edit`, and answers with its id.
    pub fn start(
        &mut self,
        pod: &str,
        sandbox: &v1::PodSandboxConfig,
        image: &str,
        command: &[&str],
        edit: impl FnOnce(&mut v1::ContainerConfig),
    ) -> Result<String> {
        let mut config = v1::ContainerConfig {
            metadata: Some(v1::ContainerMetadata { name: self.env.id("container"), attempt: 0 }),
            image: Some(spec(image)),
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            linux: Some(v1::LinuxContainerConfig::default()),
            ..Default::default()
        };
        edit(&mut config);
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: pod.to_owned(),
            config: Some(config),
            sandbox_config: Some(sandbox.clone()),
        };
        let id = self.runtime.block_on(self.pods.create_container(request))?.into_inner().container_id;
        let request = v1::StartContainerRequest { container_id: id.clone() };
        self.runtime.block_on(self.pods.start_container(request))?;
        Ok(id)
    }

    /// What is said of a container.
    pub fn status(&mut self, container: &str) -> Result<v1::ContainerStatus> {
        let request = v1::ContainerStatusRequest { container_id: container.to_owned(), verbose: false };
        let answer = self.runtime.block_on(self.pods.container_status(request))?.into_inner();
        answer.status.context("no status")
    }

    /// What is said of a container for people.
    pub fn info(&mut self, container: &str) -> Result<Value> {
        let request = v1::ContainerStatusRequest { container_id: container.to_owned(), verbose: true };
        parsed(&self.runtime.block_on(self.pods.container_status(request))?.into_inner().info)
    }

    /// What is said of a pod for people.
    pub fn pod_info(&mut self, pod: &str) -> Result<Value> {
        let request = v1::PodSandboxStatusRequest { pod_sandbox_id: pod.to_owned(), verbose: true };
        parsed(&self.runtime.block_on(self.pods.pod_sandbox_status(request))?.into_inner().info)
    }

    /// A container's first process, and the shim that holds it.
    pub fn processes(&mut self, container: &str) -> Result<(Pid, Pid)> {
        let info = self.info(container)?;
        let first = info["pid"].as_i64().with_context(|| format!("no pid in {info}"))?;
        let status = std::fs::read_to_string(format!("/proc/{first}/status"))?;
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).context("no parent")?;
        Ok((Pid::from_raw(first.try_into()?), Pid::from_raw(parent.trim().parse()?)))
    }

    /// Waits until a container has ended, and answers with its exit code.
    pub fn exit_code(&mut self, container: &str) -> Result<i32> {
        wait::until("the container ends", || {
            let status = self.status(container).ok()?;
            (status.state() == v1::ContainerState::ContainerExited).then_some(status.exit_code)
        })
    }

    /// Stops and removes a pod with everything in it.
    pub fn remove(&mut self, pod: &str) -> Result<()> {
        let stop = v1::StopPodSandboxRequest { pod_sandbox_id: pod.to_owned() };
        self.runtime.block_on(self.pods.stop_pod_sandbox(stop)).context("stop the pod")?;
        let remove = v1::RemovePodSandboxRequest { pod_sandbox_id: pod.to_owned() };
        self.runtime.block_on(self.pods.remove_pod_sandbox(remove)).context("remove the pod")?;
        Ok(())
    }
}

impl Drop for Pods<'_> {
    fn drop(&mut self) {
        let all = self.runtime.block_on(self.pods.list_pod_sandbox(v1::ListPodSandboxRequest { filter: None }));
        for pod in all.map(|all| all.into_inner().items).unwrap_or_default() {
            // What this cannot remove, the search for leaks reports; this says why.
            if let Err(error) = self.remove(&pod.id) {
                let _ = writeln!(std::io::stderr(), "pod {}: {error:#}", pod.id);
            }
        }
        for hierarchy in leaks::hierarchies() {
            let _ = std::fs::remove_dir(hierarchy.join(self.env.id("pods")));
        }
    }
}

/// The JSON in what a status says for people.
fn parsed(info: &BTreeMap<String, String>) -> Result<Value> {
    Ok(serde_json::from_str(info.get("info").context("no verbose information")?)?)
}

/// Puts a network of these plugins into `dir`; gives the lines of a daemon's configuration by which its pods have that one, and
/// no other. Plugins are looked for in `programs` first.
pub fn network(env: &Env, dir: &Path, plugins: &Value, programs: &[&Path]) -> Result<String> {
    let network = json!({"cniVersion": "1.0.0", "name": env.token(), "plugins": plugins});
    std::fs::write(dir.join("10-test.conflist"), network.to_string())?;
    let usual = ["/usr/lib/cni", "/opt/cni/bin"].map(Path::new);
    let programs = [programs, &usual].concat();
    let netns = env.path("netns");
    Ok(format!("[cri.cni]\nconf_dir = {dir:?}\nbin_dirs = {programs:?}\nnetns_dir = {netns:?}\n"))
}

/// An image by name or id.
pub fn spec(image: &str) -> v1::ImageSpec {
    v1::ImageSpec { image: image.to_owned(), ..Default::default() }
}
