//! What `[cri]` of the configuration changes about pods, and what their verbose statuses show of it.

use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use gantry_proto::runtime::v1;
use integration_tests::pods::{Pods, spec};
use integration_tests::{Env, Image, Registry, Result, Test, output, tests};
use nix::mount::{MsFlags, mount};
use serde_json::{Value, json};
use tonic::Code;

pub(crate) const TESTS: &[Test] = tests![
    settings_change_what_containers_get [Root, Overlay],
    a_handler_has_a_snapshotter_of_its_own [Root, Overlay],
    mounts_may_be_of_file_systems_that_may_not_answer [Root, Overlay],
    classes_and_a_base_outlive_an_update [Root, Overlay],
    what_a_node_and_a_pod_are_told_later_is_kept [Root, Overlay],
];

pub(crate) fn exec(pods: &mut Pods<'_>, container: &str, script: &str) -> Result<String> {
    let cmd = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    let request = v1::ExecSyncRequest { container_id: container.to_owned(), cmd, timeout: 60 };
    let answer = pods.runtime.block_on(pods.pods.exec_sync(request))?.into_inner();
    ensure!(answer.exit_code == 0, "{script}: {}", String::from_utf8_lossy(&answer.stderr));
    Ok(String::from_utf8(answer.stdout)?.trim().to_owned())
}

/// A configuration with every setting, and a handler that has most of its own.
fn configured(env: &Env, image: &str) -> Result<PathBuf> {
    let (config, base) = (env.path("config.toml"), env.path("base.json"));
    let document = json!({
        "ociVersion": "1.0.2",
        "process": {"cwd": "/", "user": {"uid": 0, "gid": 0}, "env": ["FROM_BASE=yes"],
                    "rlimits": [{"type": "RLIMIT_CORE", "hard": 4096, "soft": 4096}]},
    });
    std::fs::write(&base, document.to_string())?;
    let text = format!(
        "[cri]\ndisable_apparmor = true\nignore_image_defined_volumes = true\nrestrict_oom_score_adj = true\n\
         device_ownership_from_security_context = true\npinned_images = [{image:?}]\n\
         [cri.runtimes.rung]\n[cri.runtimes.bare]\nprivileged_without_host_devices = true\n\
         privileged_without_host_devices_all_devices_allowed = true\npod_annotations = [\"example.org/*\"]\n\
         base_runtime_spec = {base:?}\n"
    );
    std::fs::write(&config, text)?;
    Ok(config)
}

/// With AppArmor off, nobody is run who wants to be confined by it.
fn confinement_is_refused(pods: &mut Pods<'_>, pod: &str, config: &v1::PodSandboxConfig, image: &str) -> Result<()> {
    let wanted = v1::SecurityProfile {
        profile_type: v1::security_profile::ProfileType::RuntimeDefault.into(),
        ..Default::default()
    };
    let context = v1::LinuxContainerSecurityContext { apparmor: Some(wanted), ..Default::default() };
    let refused = v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: "confined".to_owned(), attempt: 0 }),
        image: Some(spec(image)),
        linux: Some(v1::LinuxContainerConfig { security_context: Some(context), ..Default::default() }),
        ..Default::default()
    };
    let request = v1::CreateContainerRequest {
        pod_sandbox_id: pod.to_owned(),
        config: Some(refused),
        sandbox_config: Some(config.clone()),
    };
    let error = pods.runtime.block_on(pods.pods.create_container(request)).err().context("not refused")?;
    ensure!(error.code() == Code::InvalidArgument && error.message().contains("apparmor"), "{error}");
    Ok(())
}

fn settings_change_what_containers_get(env: &Env) -> Result<()> {
    let registry = Registry::start(env)?;
    let image = Image::busybox()?.setting("Volumes", json!({"/declared": {}}));
    let image = image.push(&registry, "test/settings", "latest")?;
    let config = configured(env, &image)?;
    let daemon = env.daemon_with(&["--config", &config.to_string_lossy()])?;
    let mut pods = Pods::connect(env, &daemon)?;
    pods.pull(&image)?;
    ensure!(pods.image(&image)?.context("image")?.pinned, "a pinned image is not");

    let mut config = pods.pod_config("pod");
    config.annotations.extend([("example.org/a", "1"), ("other.org/b", "2")].map(|(k, v)| (k.into(), v.into())));
    config.linux.get_or_insert_default().security_context.get_or_insert_default().privileged = true;
    let request = v1::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: "bare".to_owned() };
    let pod = pods.runtime.block_on(pods.pods.run_pod_sandbox(request))?.into_inner().pod_sandbox_id;

    let container = pods.start(&pod, &config, &image, &["/bin/sleep", "600"], |container| {
        let linux = container.linux.get_or_insert_default();
        linux.resources = Some(v1::LinuxContainerResources { oom_score_adj: -1000, ..Default::default() });
        let id = |value| Some(v1::Int64Value { value });
        let context = linux.security_context.get_or_insert_default();
        (context.run_as_user, context.run_as_group) = (id(1234), id(1235));
        let device = ("/dev/null".to_owned(), "/dev/mine".to_owned(), "rw".to_owned());
        container.devices = vec![v1::Device { host_path: device.0, container_path: device.1, permissions: device.2 }];
    })?;
    assert_eq!(exec(&mut pods, &container, "stat -c %u:%g /dev/mine")?, "1234:1235");
    assert_eq!(exec(&mut pods, &container, "grep -c /declared /proc/mounts || true")?, "0");
    let own: i64 = std::fs::read_to_string(format!("/proc/{}/oom_score_adj", daemon.pid()))?.trim().parse()?;
    assert_eq!(exec(&mut pods, &container, "cat /proc/self/oom_score_adj")?.parse::<i64>()?, own);
    assert_eq!(exec(&mut pods, &container, "echo $FROM_BASE $(ulimit -c)")?, "yes 8");
    let shown = pods.info(&container)?;
    assert_eq!(shown["runtimeSpec"]["annotations"]["example.org/a"], "1");
    assert_eq!(shown["runtimeSpec"]["annotations"]["other.org/b"], Value::Null);

    let privileged = pods.start(&pod, &config, &image, &["/bin/sleep", "600"], |container| {
        container.metadata = Some(v1::ContainerMetadata { name: "privileged".to_owned(), attempt: 0 });
        container.linux.get_or_insert_default().security_context.get_or_insert_default().privileged = true;
    })?;
    let linux = pods.info(&privileged)?["runtimeSpec"]["linux"].take();
    assert_eq!(linux["devices"], Value::Null, "devices of the host");
    let all = linux["resources"]["devices"].as_array().context("rules")?;
    ensure!(
        all.iter().any(|rule| rule["allow"] == true && rule["type"].as_str().is_none_or(|it| it == "a")),
        "{all:?}"
    );

    confinement_is_refused(&mut pods, &pod, &config, &image)?;
    let shown = pods.pod_info(&pod)?;
    assert_eq!((&shown["runtimeHandler"], &shown["processStatus"]), (&json!("bare"), &json!("running")));
    assert_eq!(shown["sandboxMetadata"]["Metadata"]["ID"], json!(pod));
    // The pod shares its view of processes, so there is one that holds it, in the cgroup of the pod.
    let path = shown["runtimeSpec"]["linux"]["cgroupsPath"].as_str().context("cgroup of the pod's process")?;
    ensure!(path.ends_with(&pod), "{path}");
    // One filter each that fits, and one that does not.
    let by = |id: &str| v1::ContainerFilter { pod_sandbox_id: id.to_owned(), ..Default::default() };
    for (id, count) in [(&pod[..10], 2), ("0000000000", 0)] {
        let request = v1::ListContainersRequest { filter: Some(by(id)) };
        let listed = pods.runtime.block_on(pods.pods.list_containers(request))?.into_inner().containers;
        assert_eq!(listed.len(), count, "{listed:?}");
        ensure!(listed.iter().all(|one| one.state() == v1::ContainerState::ContainerRunning), "{listed:?}");
    }
    pods.remove(&pod)
}

/// Those are looked at by a process of their own, as is everything that is not known to be local.
fn mounts_may_be_of_file_systems_that_may_not_answer(env: &Env) -> Result<()> {
    env.own_mounts()?;
    let host = env.dir("host")?;
    for name in ["file", "of-the-kernel"] {
        std::fs::write(host.join(name), "")?;
    }
    // A file system that every kernel has, and that is none of a disk.
    let file = host.join("of-the-kernel");
    mount(Some("/proc/self/ns/uts"), &file, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    let look = |words: &[&str]| -> Result<String> {
        let mut command = env.command("gantryd")?;
        command.arg("look-at-path").args(words);
        Ok(output::run(command)?.ok()?.stdout)
    };
    let found = file.to_string_lossy();
    assert_eq!(look(&[&found])?, found);
    let prefix = host.to_string_lossy();
    assert_eq!(look(&["/of-the-kernel", "--prefix", &prefix, "--existing"])?, found);

    let (_registry, image) = Registry::with_busybox(env)?;
    for prefix in ["", &prefix] {
        let daemon = env.daemon_configured(&format!("[cri]\nbind_mount_prefix = {prefix:?}\n"))?;
        let mut pods = Pods::connect(env, &daemon)?;
        pods.pull(&image)?;
        let config = pods.pod_config(&format!("pod{}", prefix.len()));
        let pod = pods.run(&config)?;
        let host_path = if prefix.is_empty() { found.clone().into_owned() } else { "/of-the-kernel".to_owned() };
        let container = pods.start(&pod, &config, &image, &["/bin/sleep", "600"], |container| {
            container.mounts.push(v1::Mount { host_path, container_path: "/volume".into(), ..Default::default() });
        })?;
        assert_eq!(exec(&mut pods, &container, "grep -c ' /volume ' /proc/mounts")?, "1");
        pods.remove(&pod)?;
        drop(pods);
        daemon.stop()?;
    }
    Ok(())
}

fn a_handler_has_a_snapshotter_of_its_own(env: &Env) -> Result<()> {
    let registry = Registry::start(env)?;
    let image = Image::busybox()?.push(&registry, "test/copies", "latest")?;
    let config = env.path("config.toml");
    std::fs::write(&config, "[cri.runtimes.rung]\n[cri.runtimes.copies]\nsnapshotter = \"native\"\n")?;
    let daemon = env.daemon_with(&["--config", &config.to_string_lossy()])?;
    let mut pods = Pods::connect(env, &daemon)?;
    // Into the default snapshotter; the other gets it when it is needed.
    pods.pull(&image)?;
    let config = pods.pod_config("pod");
    let request = v1::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: "copies".to_owned() };
    let pod = pods.runtime.block_on(pods.pods.run_pod_sandbox(request))?.into_inner().pod_sandbox_id;
    let container = pods.start(&pod, &config, &image, &["/bin/sleep", "600"], |_| {})?;
    assert_eq!(pods.info(&container)?["snapshotter"], "native");
    let root = exec(&mut pods, &container, "echo new > /new; grep ' / ' /proc/mounts")?;
    ensure!(!root.contains("overlay"), "{root}");
    let snapshots =
        || Ok(daemon.ctr(&["--namespace", "k8s.io", "snapshots", "--snapshotter", "native", "list"])?.ok()?.stdout);
    let listed: Result<String> = snapshots();
    ensure!(listed?.contains(&container), "no snapshot of the container");
    let request = v1::ContainerStatsRequest { container_id: container.clone() };
    let stats = pods.runtime.block_on(pods.pods.container_stats(request))?.into_inner().stats.context("statistics")?;
    ensure!(stats.writable_layer.is_some(), "what the container wrote");
    let request = v1::RemoveContainerRequest { container_id: container.clone() };
    pods.runtime.block_on(pods.pods.remove_container(request))?;
    let listed: Result<String> = snapshots();
    ensure!(!listed?.contains(&container), "the snapshot is left");

    let of = |handler: &str, image: &str| {
        let image = v1::ImageSpec { runtime_handler: handler.to_owned(), ..spec(image) };
        v1::PullImageRequest { image: Some(image), ..Default::default() }
    };
    pods.runtime.block_on(pods.images.pull_image(of("copies", &image)))?;
    let error = pods.runtime.block_on(pods.images.pull_image(of("none", &image))).err().context("not refused")?;
    ensure!(error.code() == Code::InvalidArgument && error.message().contains("runtime_handler"), "{error}");
    // As kubelets look for it.
    let nowhere = pods.runtime.block_on(pods.images.pull_image(of("", "127.0.0.1:1/no/registry:1")));
    let error = nowhere.err().context("pulled from nowhere")?;
    ensure!(error.code() == Code::Unknown && error.message().starts_with("RegistryUnavailable"), "{error}");
    pods.remove(&pod)
}

fn classes_and_a_base_outlive_an_update(env: &Env) -> Result<()> {
    let (_registry, image) = Registry::with_busybox(env)?;
    let (config, base, classes) = (env.path("config.toml"), env.path("base.json"), env.path("classes.yaml"));
    let document = json!({
        "ociVersion": "1.0.2",
        "linux": {"resources": {"pids": {"limit": 77}, "unified": {"memory.high": "max"}}},
    });
    std::fs::write(&base, document.to_string())?;
    std::fs::write(&classes, "Classes:\n  slow:\n  - Weight: 20\n")?;
    let text = format!("[cri]\nblockio_config = {classes:?}\n[cri.runtimes.rung]\nbase_runtime_spec = {base:?}\n");
    std::fs::write(&config, text)?;
    let daemon = env.daemon_with(&["--config", &config.to_string_lossy()])?;
    let mut pods = Pods::connect(env, &daemon)?;
    pods.pull(&image)?;
    let mut config = pods.pod_config("pod");
    config.annotations.insert("blockio.resources.beta.kubernetes.io/container.disks".to_owned(), "slow".to_owned());
    config.annotations.insert("rdt.resources.beta.kubernetes.io/container.caches".to_owned(), "../x".to_owned());
    let pod = pods.run(&config)?;
    let create = |name: &str, class: Option<&str>| {
        let own = class.map(|class| ("io.kubernetes.cri.blockio-class".to_owned(), class.to_owned()));
        let container = v1::ContainerConfig {
            metadata: Some(v1::ContainerMetadata { name: name.to_owned(), attempt: 0 }),
            image: Some(spec(&image)),
            command: ["sleep", "600"].map(str::to_owned).to_vec(),
            annotations: own.into_iter().collect(),
            ..Default::default()
        };
        v1::CreateContainerRequest {
            pod_sandbox_id: pod.clone(),
            config: Some(container),
            sandbox_config: Some(config.clone()),
        }
    };
    for (name, class, said) in [("other", Some("fast"), "blockio class \"fast\""), ("caches", None, "rdt class")] {
        let refused = pods.runtime.block_on(pods.pods.create_container(create(name, class)));
        let error = refused.err().with_context(|| format!("{name}: not refused"))?;
        ensure!(error.code() == Code::InvalidArgument && error.message().contains(said), "{error}");
    }
    let made = pods.runtime.block_on(pods.pods.create_container(create("disks", None)))?;
    let container = made.into_inner().container_id;
    let request = v1::UpdateContainerResourcesRequest {
        container_id: container.clone(),
        linux: Some(v1::LinuxContainerResources { cpu_shares: 512, ..Default::default() }),
        ..Default::default()
    };
    pods.runtime.block_on(pods.pods.update_container_resources(request))?;
    let shown = pods.info(&container)?;
    let limits = &shown["runtimeSpec"]["linux"]["resources"];
    assert_eq!((&limits["cpu"]["shares"], &limits["blockIO"]["weight"]), (&json!(512), &json!(20)), "{limits}");
    assert_eq!((&limits["pids"]["limit"], &limits["unified"]["memory.high"]), (&json!(77), &json!("max")), "{limits}");
    ensure!(limits["devices"].as_array().is_some_and(|rules| rules.len() > 1), "{limits}");
    // As the interface and containerd's clients have it.
    assert_eq!(shown["config"]["metadata"], json!({"name": "disks"}));
    let record = daemon.ctr(&["--namespace", "k8s.io", "containers", "info", &container])?.ok()?.stdout;
    let record: Value = serde_json::from_str(&record)?;
    let extension = &record["Extensions"]["io.cri-containerd.container.metadata"];
    assert_eq!(extension["type_url"], "github.com/containerd/cri/pkg/store/container/Metadata", "{record}");
    pods.remove(&pod)
}

fn what_a_node_and_a_pod_are_told_later_is_kept(env: &Env) -> Result<()> {
    let (conf, template, file) = (env.path("net.d"), env.path("template"), env.path("config.toml"));
    let network = json!({"cniVersion": "1.0.0", "name": env.token(), "plugins": [
        {"type": "ptp", "ipam": {"type": "host-local", "dataDir": env.path("ipam"), "subnet": "{{.PodCIDR}}"}}]});
    std::fs::write(&template, network.to_string())?;
    let text = format!("[cri.cni]\nconf_dir = {conf:?}\nconf_template = {template:?}\nbin_dirs = [\"/usr/lib/cni\"]\n");
    std::fs::write(&file, text)?;
    let daemon = env.daemon_with(&["--config", &file.to_string_lossy()])?;
    let mut pods = Pods::connect(env, &daemon)?;
    let ready = |pods: &mut Pods<'_>| -> Result<bool> {
        let told = pods.runtime.block_on(pods.pods.status(v1::StatusRequest { verbose: false }))?.into_inner();
        let conditions = told.status.context("status")?.conditions;
        Ok(conditions.iter().any(|condition| condition.r#type == "NetworkReady" && condition.status))
    };
    let tell = |pods: &mut Pods<'_>, pod_cidr: &str| {
        let network_config = Some(v1::NetworkConfig { pod_cidr: pod_cidr.to_owned() });
        let request = v1::UpdateRuntimeConfigRequest { runtime_config: Some(v1::RuntimeConfig { network_config }) };
        pods.runtime.block_on(pods.pods.update_runtime_config(request))
    };
    ensure!(!ready(&mut pods)?, "without a network");
    tell(&mut pods, "")?;
    let refused = tell(&mut pods, "10.213.80.0/99").expect_err("no range");
    ensure!(refused.code() == Code::InvalidArgument && refused.message().contains("pod_cidr"), "{refused}");
    ensure!(!conf.exists(), "nothing is written");
    tell(&mut pods, "10.213.80.0/24")?;
    ensure!(std::fs::read_to_string(conf.join("10-gantry.conflist"))?.contains("\"10.213.80.0/24\""));
    integration_tests::wait::until("the network is there", || ready(&mut pods).ok()?.then_some(()))?;
    // What a kubelet says of a pod's cgroup, which is its own to change.
    let config = pods.pod_config("pod");
    let pod = pods.run(&config)?;
    let limits = |shares| Some(v1::LinuxContainerResources { cpu_shares: shares, ..Default::default() });
    let update = |pods: &mut Pods<'_>, pod: &str, resources, overhead| {
        let request = v1::UpdatePodSandboxResourcesRequest { pod_sandbox_id: pod.to_owned(), resources, overhead };
        pods.runtime.block_on(pods.pods.update_pod_sandbox_resources(request)).map_err(|error| error.code()).err()
    };
    ensure!(
        update(&mut pods, &pod, limits(512), limits(64)).is_none()
            && update(&mut pods, &pod, limits(256), None).is_none()
    );
    let told = pods.pod_info(&pod)?;
    let shares = |what: &str| told[what]["linux"]["cpu_shares"].as_i64();
    assert_eq!((shares("resources"), shares("overhead")), (Some(256), Some(64)), "{told}");
    assert_eq!(update(&mut pods, "none", limits(1), None), Some(Code::NotFound));
    let stop = v1::StopPodSandboxRequest { pod_sandbox_id: pod.clone() };
    pods.runtime.block_on(pods.pods.stop_pod_sandbox(stop))?;
    assert_eq!(update(&mut pods, &pod, limits(1), None), Some(Code::FailedPrecondition));
    Ok(())
}
