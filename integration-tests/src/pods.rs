//! Pods through the container runtime interface, as a kubelet makes them.

use std::collections::BTreeMap;
use std::io::Write as _;

use anyhow::Context as _;
use gantry_proto::runtime::v1;
use gantry_proto::runtime::v1::image_service_client::ImageServiceClient;
use gantry_proto::runtime::v1::runtime_service_client::RuntimeServiceClient;
use tonic::transport::Channel;

use crate::{Daemon, Env, Result, daemon, wait};

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

    /// Waits until a container has ended, and answers with its exit code.
    pub fn exit_code(&mut self, container: &str) -> Result<i32> {
        wait::until("the container ends", || {
            let request = v1::ContainerStatusRequest { container_id: container.to_owned(), verbose: false };
            let status = self.runtime.block_on(self.pods.container_status(request)).ok()?.into_inner().status?;
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
        let parent = self.env.id("pods");
        let mounts = std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
        for mount in mounts.map(|entry| entry.path()).chain(["/sys/fs/cgroup".into()]) {
            let _ = std::fs::remove_dir(mount.join(&parent));
        }
    }
}

/// An image by name or id.
pub fn spec(image: &str) -> v1::ImageSpec {
    v1::ImageSpec { image: image.to_owned(), ..Default::default() }
}
