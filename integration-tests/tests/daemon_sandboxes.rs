//! Sandboxes: one shim for a pod, which needs no image, by the services that clients of containerd use.

use std::cell::Cell;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, bail};
use gantry_proto::any;
use gantry_proto::containerd::services::containers::v1::containers_client::ContainersClient;
use gantry_proto::containerd::services::containers::v1::{
    Container, CreateContainerRequest, DeleteContainerRequest, container,
};
use gantry_proto::containerd::services::sandbox::v1::controller_client::ControllerClient;
use gantry_proto::containerd::services::sandbox::v1::*;
use gantry_proto::containerd::services::tasks::v1::tasks_client::TasksClient;
use gantry_proto::containerd::services::tasks::v1::{
    CreateTaskRequest, DeleteTaskRequest, KillRequest, StartRequest, WaitRequest,
};
use gantry_proto::containerd::types::{Mount, Sandbox, sandbox};
use integration_tests::daemon::{self, WITHOUT_ALIASES};
use integration_tests::{Bundle, Daemon, Env, Result, Test, tests, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tonic::transport::Channel;
use tonic::{Code, Status};

pub(crate) const TESTS: &[Test] = tests![
    a_pod_has_one_shim_and_needs_no_image [Root],
    a_pod_outlives_the_daemon [Root],
    the_death_of_a_pods_shim_is_told [Root],
    what_comes_late_for_a_dead_pod_does_not_meet_the_next_of_its_name [Root],
    a_shim_without_sandboxes_holds_a_pod_as_a_task [Root, Containerd],
    sandboxes_are_refused_with_the_codes_clients_know [Root],
];

/// A pod and the connection it is handled by.
struct Pod<'env> {
    env: &'env Env,
    channel: Channel,
    id: String,
    sandboxer: &'static str,
    runtime: String,
    made: Cell<u32>,
}

impl<'env> Pod<'env> {
    async fn new(env: &'env Env, daemon: &Daemon<'_>) -> Result<Self> {
        let channel = daemon.channel().await?;
        let (id, runtime) = (env.id("pod"), "io.containerd.rung.v2".to_owned());
        Ok(Self { env, channel, id, sandboxer: "shim", runtime, made: Cell::default() })
    }

    fn controller(&self) -> ControllerClient<Channel> {
        ControllerClient::new(self.channel.clone())
    }

    async fn create(&self) -> Result<(), Status> {
        let name = format!("made{}", self.made.replace(self.made.get() + 1));
        let mut config = Bundle::new(self.env, &name, &["/pause"]).map_err(failed)?.config;
        config["annotations"] = json!({ "io.kubernetes.cri.sandbox-id": self.id });
        let request = self.env.request(ControllerCreateRequest {
            sandbox_id: self.id.clone(),
            sandboxer: self.sandboxer.to_owned(),
            sandbox: Some(Sandbox {
                sandbox_id: self.id.clone(),
                runtime: Some(sandbox::Runtime { name: self.runtime.clone(), options: None }),
                spec: Some(any::json(any::SPEC, config.to_string().into_bytes())),
                ..Sandbox::default()
            }),
            ..ControllerCreateRequest::default()
        });
        self.controller().create(request).await.map(drop)
    }

    async fn start(&self) -> Result<u32, Status> {
        let (sandbox_id, sandboxer) = (self.id.clone(), self.sandboxer.to_owned());
        let request = self.env.request(ControllerStartRequest { sandbox_id, sandboxer });
        Ok(self.controller().start(request).await?.into_inner().pid)
    }

    async fn status(&self) -> Result<ControllerStatusResponse, Status> {
        let (sandbox_id, sandboxer) = (self.id.clone(), self.sandboxer.to_owned());
        let request = self.env.request(ControllerStatusRequest { sandbox_id, sandboxer, verbose: true });
        Ok(self.controller().status(request).await?.into_inner())
    }

    async fn stop(&self) -> Result<(), Status> {
        let (sandbox_id, sandboxer) = (self.id.clone(), self.sandboxer.to_owned());
        let request = self.env.request(ControllerStopRequest { sandbox_id, sandboxer, timeout_secs: 5 });
        self.controller().stop(request).await.map(drop)
    }

    async fn wait(&self) -> Result<u32, Status> {
        let (sandbox_id, sandboxer) = (self.id.clone(), self.sandboxer.to_owned());
        let request = self.env.request(ControllerWaitRequest { sandbox_id, sandboxer });
        Ok(self.controller().wait(request).await?.into_inner().exit_status)
    }

    async fn shutdown(&self) -> Result<(), Status> {
        let (sandbox_id, sandboxer) = (self.id.clone(), self.sandboxer.to_owned());
        let request = self.env.request(ControllerShutdownRequest { sandbox_id, sandboxer });
        self.controller().shutdown(request).await.map(drop)
    }

    /// Runs `args` in a container of the pod, in the namespaces of its first process.
    async fn run(&self, name: &str, pod: u32, args: &[&str]) -> Result<(), Status> {
        let mut bundle = Bundle::new(self.env, name, args).map_err(failed)?;
        bundle.set("/annotations", json!({ "io.kubernetes.cri.sandbox-id": self.id }));
        let kinds = [("pid", "pid"), ("network", "net"), ("ipc", "ipc"), ("uts", "uts")];
        let mut namespaces: Vec<Value> = kinds
            .iter()
            .map(|(kind, file)| json!({ "type": kind, "path": format!("/proc/{pod}/ns/{file}") }))
            .collect();
        namespaces.push(json!({ "type": "mount" }));
        bundle.set("/linux/namespaces", namespaces);
        bundle.set("/hostname", Value::Null);
        let id = self.env.id(name);
        let container = Container {
            id: id.clone(),
            runtime: Some(container::Runtime { name: self.runtime.clone(), options: None }),
            spec: Some(any::json(any::SPEC, bundle.config.to_string().into_bytes())),
            sandbox: self.id.clone(),
            ..Container::default()
        };
        let request = self.env.request(CreateContainerRequest { container: Some(container) });
        ContainersClient::new(self.channel.clone()).create(request).await?;
        let rootfs = Mount {
            r#type: "bind".into(),
            source: bundle.rootfs().to_string_lossy().into_owned(),
            options: vec!["rbind".into(), "ro".into()],
            ..Mount::default()
        };
        let request =
            CreateTaskRequest { container_id: id.clone(), rootfs: vec![rootfs], ..CreateTaskRequest::default() };
        let mut tasks = TasksClient::new(self.channel.clone());
        tasks.create(self.env.request(request)).await?;
        tasks.start(self.env.request(StartRequest { container_id: id, exec_id: String::new() })).await.map(drop)
    }

    async fn exit_of(&self, name: &str) -> Result<u32, Status> {
        let request = self.env.request(WaitRequest { container_id: self.env.id(name), exec_id: String::new() });
        Ok(TasksClient::new(self.channel.clone()).wait(request).await?.into_inner().exit_status)
    }

    async fn remove(&self, name: &str) -> Result<(), Status> {
        let id = self.env.id(name);
        let mut tasks = TasksClient::new(self.channel.clone());
        let request = KillRequest { container_id: id.clone(), signal: 9, ..KillRequest::default() };
        let _ = tasks.kill(self.env.request(request)).await;
        let _ = self.exit_of(name).await;
        let _ = tasks.delete(self.env.request(DeleteTaskRequest { container_id: id.clone() })).await;
        ContainersClient::new(self.channel.clone())
            .delete(self.env.request(DeleteContainerRequest { id }))
            .await
            .map(drop)
    }

    fn bundle(&self, id: &str) -> PathBuf {
        self.env.path("state/io.containerd.runtime.v2.task").join(self.env.namespace()).join(id)
    }

    /// Processes of shims that the bundles name.
    fn shims(&self) -> Vec<i32> {
        let bundles = fs::read_dir(self.bundle("")).into_iter().flatten().flatten();
        let read = |bundle: PathBuf| fs::read_to_string(bundle.join("shim.pid")).ok()?.trim().parse().ok();
        bundles.filter_map(|entry| read(entry.path())).collect()
    }
}

fn failed(error: anyhow::Error) -> Status {
    Status::internal(format!("{error:#}"))
}

fn memory_of(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).context("no Pss")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

fn a_pod_has_one_shim_and_needs_no_image(env: &Env) -> Result<()> {
    let daemon = env.daemon()?;
    daemon::runtime()?.block_on(async {
        let pod = Pod::new(env, &daemon).await?;
        pod.create().await?;
        assert_eq!(pod.status().await?.state, "SANDBOX_NOTREADY", "before it is started");
        let pid = pod.start().await?;
        let status = pod.status().await?;
        assert_eq!((status.state.as_str(), status.pid, status.version), ("SANDBOX_READY", pid, 3));
        assert!(memory_of(pid)? <= 64, "the pause program takes {} KiB", memory_of(pid)?);
        // Its process namespace is the pod's: the pause program is process 1 and buries what others leave.
        let orphan = "(sleep 0.2 &) ; test $(cat /proc/1/comm) = pause && exit 7";
        pod.run("one", pid, &["sh", "-c", orphan]).await?;
        pod.run("two", pid, &["sleep", "1000"]).await?;
        assert_eq!(pod.exit_of("one").await?, 7);
        let children = || {
            let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
            text.trim().is_empty().then_some(())
        };
        wait::until("the orphan to be buried", children)?;
        assert_eq!(pod.shims().len(), 1, "one shim for all");
        let address = |id: &str| fs::read_to_string(pod.bundle(id).join("bootstrap.json"));
        assert_eq!(address(&env.id("two"))?, address(&pod.id)?);
        pod.remove("one").await?;
        let metrics = ControllerMetricsRequest { sandbox_id: pod.id.clone(), sandboxer: "shim".into() };
        let metrics = pod.controller().metrics(env.request(metrics)).await?.into_inner().metrics.context("metrics")?;
        assert!(metrics.data.is_some());
        let (stopped, waited) = tokio::join!(pod.stop(), pod.wait());
        stopped?;
        assert_eq!(waited?, 0, "the pause program ends by itself");
        assert_eq!(pod.status().await?.state, "SANDBOX_NOTREADY");
        pod.stop().await.context("a second stop")?;
        pod.remove("two").await?;
        pod.shutdown().await?;
        assert_eq!(pod.status().await.expect_err("gone").code(), Code::NotFound);
        assert!(!pod.bundle(&pod.id).exists());
        Ok(())
    })
}

fn a_pod_outlives_the_daemon(env: &Env) -> Result<()> {
    let first = env.daemon()?;
    let pid = daemon::runtime()?.block_on(async {
        let pod = Pod::new(env, &first).await?;
        pod.create().await?;
        let pid = pod.start().await?;
        pod.run("one", pid, &["sh", "-c", "while true; do sleep 1; done"]).await?;
        // A container of the pod's shim, which no process's command line names.
        fs::write(pod.bundle(&env.id("one")).join("bootstrap.json"), "{")?;
        anyhow::Ok(pid)
    })?;
    first.crash()?;
    let second = env.daemon()?;
    daemon::runtime()?.block_on(async {
        let pod = Pod::new(env, &second).await?;
        let status = pod.status().await?;
        assert_eq!((status.state.as_str(), status.pid), ("SANDBOX_READY", pid));
        pod.run("two", pid, &["true"]).await.context("a container for a pod of an earlier daemon")?;
        assert_eq!(pod.exit_of("two").await?, 0);
        assert_eq!(pod.shims().len(), 1);
        for name in ["one", "two"] {
            pod.remove(name).await?;
        }
        let (stopped, waited) = tokio::join!(pod.stop(), pod.wait());
        stopped?;
        waited?;
        Ok(pod.shutdown().await?)
    })
}

fn the_death_of_a_pods_shim_is_told(env: &Env) -> Result<()> {
    let daemon = env.daemon()?;
    daemon::runtime()?.block_on(async {
        let pod = Pod::new(env, &daemon).await?;
        pod.create().await?;
        let pid = pod.start().await?;
        pod.run("one", pid, &["sleep", "1000"]).await?;
        let [shim] = pod.shims()[..] else { bail!("not one shim") };
        let death = async {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            kill(Pid::from_raw(shim), Signal::SIGKILL)
        };
        let (killed, waited, exited) = tokio::join!(death, pod.wait(), pod.exit_of("one"));
        killed?;
        assert_eq!((waited?, exited?), (137, 137));
        assert_eq!(pod.status().await?.state, "SANDBOX_NOTREADY");
        pod.remove("one").await?;
        pod.shutdown().await?;
        // Nobody may have buried it yet.
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        assert!(command.is_empty(), "the pause program is left");
        Ok(())
    })
}

fn what_comes_late_for_a_dead_pod_does_not_meet_the_next_of_its_name(env: &Env) -> Result<()> {
    // The first cleaning up after a dead shim takes its time.
    let begun = env.path("begun");
    let text = format!(
        "#!/bin/sh\nfor word; do case $word in delete) [ -e {begun} ] || {{ : > {begun}; sleep 1; }};; esac; done\n\
         exec {} \"$@\"\n",
        env.program("containerd-shim-rung-v2")?.display(),
        begun = begun.display()
    );
    let program = env.script("containerd-shim-slow-v2", &text)?;
    let daemon = env.daemon()?;
    daemon::runtime()?.block_on(async {
        let mut pod = Pod::new(env, &daemon).await?;
        pod.runtime = program.to_string_lossy().into_owned();
        pod.create().await?;
        pod.start().await?;
        let [shim] = pod.shims()[..] else { bail!("not one shim") };
        kill(Pid::from_raw(shim), Signal::SIGKILL)?;
        wait::until("the daemon cleans up", || begun.exists().then_some(()))?;
        pod.shutdown().await?;
        pod.create().await?;
        let pid = pod.start().await?;
        tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
        let status = pod.status().await?;
        assert_eq!((status.state.as_str(), status.pid), ("SANDBOX_READY", pid));
        Ok(pod.shutdown().await?)
    })
}

fn a_shim_without_sandboxes_holds_a_pod_as_a_task(env: &Env) -> Result<()> {
    let daemon = env.daemon_configured(WITHOUT_ALIASES)?;
    daemon::runtime()?.block_on(async {
        let mut pod = Pod::new(env, &daemon).await?;
        pod.runtime = "io.containerd.runc.v2".to_owned();
        let refused = pod.create().await.expect_err("the shim knows no sandboxes");
        assert_eq!(refused.code(), Code::Unimplemented, "{refused}");
        pod.sandboxer = "podsandbox";
        pod.id = env.id("task");
        pod.create().await?;
        let pid = pod.start().await?;
        let status = pod.status().await?;
        assert_eq!((status.state.as_str(), status.pid), ("SANDBOX_READY", pid));
        pod.run("one", pid, &["sh", "-c", "exit 7"]).await?;
        assert_eq!(pod.exit_of("one").await?, 7);
        pod.remove("one").await?;
        let (stopped, waited) = tokio::join!(pod.stop(), pod.wait());
        stopped?;
        assert_eq!(waited?, 0);
        Ok(pod.shutdown().await?)
    })
}

fn sandboxes_are_refused_with_the_codes_clients_know(env: &Env) -> Result<()> {
    let daemon = env.daemon()?;
    daemon::runtime()?.block_on(async {
        let mut pod = Pod::new(env, &daemon).await?;
        assert_eq!(pod.start().await.expect_err("nobody").code(), Code::NotFound);
        pod.stop().await.context("stop of nobody")?;
        pod.sandboxer = "";
        assert_eq!(pod.create().await.expect_err("no sandboxer").code(), Code::InvalidArgument);
        pod.sandboxer = "other";
        assert_eq!(pod.create().await.expect_err("unknown sandboxer").code(), Code::NotFound);
        pod.sandboxer = "shim";
        pod.create().await?;
        assert_eq!(pod.create().await.expect_err("twice").code(), Code::AlreadyExists);
        pod.start().await?;
        assert_eq!(pod.start().await.expect_err("twice").code(), Code::FailedPrecondition);
        Ok(pod.shutdown().await?)
    })
}
