//! Containers of pods as a kubelet sees them: what is said of them, what they are given, and what a restart finds.

use gantry_proto::runtime::v1;
use integration_tests::image::Packing;
use integration_tests::pods::{Pods, network, spec};
use integration_tests::tar::Tar;
use integration_tests::{Daemon, Env, Image, Registry, Result, Test, leaks, tests, wait};

pub(crate) const TESTS: &[Test] = tests![
    events_carry_the_containers_status [Root, Overlay],
    what_a_container_is_given [Root, Overlay],
    limits_ends_and_volumes_are_told_as_kubelets_expect [Root, Overlay],
    settings_of_an_interface_are_made_once_it_is_there [Root, Overlay],
    pods_have_users_of_their_own [Root, Overlay, Userns],
    users_of_their_own_and_the_hosts_network_go_together [Root, Overlay, Userns],
    a_pod_that_cannot_be_taken_down_is_kept [Root, Overlay],
    a_pod_that_stops_at_the_second_try_is_told_of [Root, Overlay],
    why_a_pod_did_not_start_is_said_whatever_fails_after_it [Root],
    a_delete_that_fails_once_fails_no_stop [Root],
    a_pod_with_a_process_runs_under_runc [Root, Containerd],
    a_start_that_was_cut_short_was_none [Root, Overlay],
    a_container_that_ran_is_not_created_again [Root, Overlay],
];

/// A daemon whose only network is that of `plugin`, which may be a script in `bin`.
fn start<'env>(env: &'env Env, plugin: &serde_json::Value) -> Result<Daemon<'env>> {
    let (conf, bin) = (env.dir("net.d")?, env.dir("bin")?);
    env.daemon_configured(&network(env, &conf, &serde_json::json!([plugin]), &[&bin])?)
}

/// Runs a script in a container of its own to its end, and answers with its exit code and what it said.
fn script(
    env: &Env,
    pods: &mut Pods<'_>,
    pod: (&str, &v1::PodSandboxConfig),
    image: &str,
    text: &str,
    edit: impl FnOnce(&mut v1::ContainerConfig),
) -> Result<(i32, String)> {
    let log = format!("{}.log", text.len());
    let id = pods.start(pod.0, pod.1, image, &["/bin/sh", "-c", text], |container| {
        container.log_path.clone_from(&log);
        container.metadata = Some(v1::ContainerMetadata { name: log.clone(), attempt: 0 });
        edit(container);
    })?;
    let code = pods.exit_code(&id)?;
    Ok((code, std::fs::read_to_string(env.path("logs").join(log))?))
}

fn events_carry_the_containers_status(env: &Env) -> Result<()> {
    use v1::ContainerEventType::{ContainerCreatedEvent, ContainerDeletedEvent, ContainerStartedEvent};
    let (_registry, image) = Registry::with_busybox(env)?;
    let daemon = env.daemon()?;
    let mut pods = Pods::connect(env, &daemon)?;
    let image_id = pods.pull(&image)?;
    let config = pods.pod_config("pod");
    let pod = pods.run(&config)?;
    let mut events = pods.runtime.block_on(pods.pods.get_container_events(v1::GetEventsRequest {}))?.into_inner();
    let container = pods.start(&pod, &config, &image_id, &["sleep", "1000"], |_| {})?;
    let seen = pods.status(&container)?;
    assert_eq!(seen.image.map(|image| image.image), Some(image.clone()), "the name people know");
    assert!(seen.image_ref.contains("@sha256:"), "{}", seen.image_ref);
    assert_eq!(seen.image_id, image_id);
    let remove = v1::RemoveContainerRequest { container_id: container.clone() };
    pods.runtime.block_on(pods.pods.remove_container(remove))?;
    let mut told = Vec::new();
    while told.last() != Some(&ContainerDeletedEvent) {
        let event = pods.runtime.block_on(events.message())?.expect("an event");
        assert_eq!(event.container_id, container);
        assert_eq!(event.pod_sandbox_status.as_ref().map(|status| status.id.as_str()), Some(pod.as_str()));
        let state = event.containers_statuses.first().map(v1::ContainerStatus::state);
        match event.container_event_type() {
            ContainerCreatedEvent => assert_eq!(state, Some(v1::ContainerState::ContainerCreated)),
            ContainerStartedEvent => assert_eq!(state, Some(v1::ContainerState::ContainerRunning)),
            ContainerDeletedEvent => assert_eq!(state, None),
            _ => assert_eq!(state, Some(v1::ContainerState::ContainerExited)),
        }
        told.push(event.container_event_type());
    }
    assert_eq!(told.len(), 4, "{told:?}");
    Ok(())
}

fn what_a_container_is_given(env: &Env) -> Result<()> {
    let (_registry, image) = Registry::with_busybox(env)?;
    let daemon = env.daemon()?;
    let mut pods = Pods::connect(env, &daemon)?;
    pods.pull(&image)?;
    let config = pods.pod_config("pod");
    let pod = pods.run(&config)?;
    let all = vec!["ALL".to_owned()];
    let (code, said) = script(env, &mut pods, (&pod, &config), &image, "grep Cap /proc/self/status", |container| {
        let capabilities =
            v1::Capability { add_capabilities: all.clone(), drop_capabilities: all, ..Default::default() };
        let context = v1::LinuxContainerSecurityContext { capabilities: Some(capabilities), ..Default::default() };
        container.linux.get_or_insert_default().security_context = Some(context);
    })?;
    assert_eq!(code, 0, "{said}");
    let nothing = said.lines().filter(|line| line.ends_with("0000000000000000")).count();
    assert_eq!((nothing, said.lines().count()), (5, 5), "everything and nothing is nothing: {said}");
    // A kubelet's `/dev` does not hide the pod's shared memory.
    let dev = env.dir("dev")?;
    std::fs::create_dir(dev.join("shm"))?;
    let (code, said) = script(env, &mut pods, (&pod, &config), &image, "grep ' /dev' /proc/mounts", |container| {
        container.mounts = vec![v1::Mount {
            container_path: "/dev".to_owned(),
            host_path: dev.to_string_lossy().into_owned(),
            ..Default::default()
        }];
    })?;
    assert_eq!(code, 0, "{said}");
    assert!(said.contains(" /dev/shm tmpfs ") && !said.contains("devpts"), "{said}");
    let refused = script(env, &mut pods, (&pod, &config), &image, "true", |container| {
        container.annotations.insert("io.kubernetes.cri.rdt-class".to_owned(), "gold".to_owned());
    });
    assert!(format!("{:#}", refused.expect_err("there is no such class")).contains("rdt class"));
    Ok(())
}

fn limits_ends_and_volumes_are_told_as_kubelets_expect(env: &Env) -> Result<()> {
    let (_registry, image) = Registry::with_busybox(env)?;
    let daemon = env.daemon()?;
    let mut pods = Pods::connect(env, &daemon)?;
    pods.pull(&image)?;
    let config = pods.pod_config("pod");
    let pod = pods.run(&config)?;
    let free = pods.start(&pod, &config, &image, &["true"], |container| container.linux = None)?;
    let limits = |status: v1::ContainerStatus| status.resources.and_then(|resources| resources.linux);
    assert_eq!(limits(pods.status(&free)?), Some(v1::LinuxContainerResources::default()));
    let limited = pods.start(&pod, &config, &image, &["true"], |container| {
        container.metadata = Some(v1::ContainerMetadata { name: "limited".to_owned(), attempt: 0 });
        let resources = v1::LinuxContainerResources { memory_limit_in_bytes: 64 << 20, ..Default::default() };
        container.linux.get_or_insert_default().resources = Some(resources);
    })?;
    let told = limits(pods.status(&limited)?).expect("limits");
    assert_eq!((told.memory_limit_in_bytes, told.memory_swap_limit_in_bytes), (64 << 20, 64 << 20));
    // What an ended container wrote is still there, and it uses nothing else.
    pods.exit_code(&free)?;
    let filter = v1::ContainerStatsFilter { id: free, ..Default::default() };
    let request = v1::ListContainerStatsRequest { filter: Some(filter) };
    let stats = pods.runtime.block_on(pods.pods.list_container_stats(request))?.into_inner().stats;
    assert!(stats.len() == 1 && stats[0].writable_layer.is_some() && stats[0].cpu.is_none(), "{stats:?}");
    for (name, readonly) in [("nowhere.test/nothing", true), (image.as_str(), false)] {
        let refused = pods.start(&pod, &config, &image, &["true"], |container| {
            container.metadata = Some(v1::ContainerMetadata { name: "volume".to_owned(), attempt: 0 });
            let container_path = "/volume".to_owned();
            container.mounts =
                vec![v1::Mount { image: Some(spec(name)), container_path, readonly, ..Default::default() }];
        });
        assert!(format!("{:#}", refused.expect_err(name)).contains("ImageVolumeMountFailed"));
    }
    Ok(())
}

fn settings_of_an_interface_are_made_once_it_is_there(env: &Env) -> Result<()> {
    let (_registry, image) = Registry::with_busybox(env)?;
    let ipam = serde_json::json!({"type": "host-local", "dataDir": env.path("ipam"), "subnet": "10.213.78.0/24"});
    let daemon = start(env, &serde_json::json!({"type": "ptp", "ipam": ipam}))?;
    let mut pods = Pods::connect(env, &daemon)?;
    pods.pull(&image)?;
    let mut config = pods.networked_config("pod");
    let sysctls = [("net.ipv4.conf.eth0.rp_filter", "2"), ("net/ipv4/conf/eth0/log_martians", "1")];
    let linux = config.linux.get_or_insert_default();
    linux.sysctls = sysctls.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let pod = pods.run(&config)?;
    let text = "cd /proc/sys/net/ipv4; cat conf/eth0/rp_filter conf/eth0/log_martians ip_unprivileged_port_start";
    let (_, said) = script(env, &mut pods, (&pod, &config), &image, text, |_| {})?;
    let said: Vec<&str> = said.lines().filter_map(|line| line.split(' ').next_back()).collect();
    assert_eq!(said, ["2", "1", "0"]);
    Ok(())
}

fn pods_have_users_of_their_own(env: &Env) -> Result<()> {
    let (registry, image) = Registry::with_busybox(env)?;
    let ipam = serde_json::json!({"type": "host-local", "dataDir": env.path("ipam"), "subnet": "10.213.79.0/24"});
    let daemon = start(env, &serde_json::json!({"type": "ptp", "ipam": ipam}))?;
    let mut pods = Pods::connect(env, &daemon)?;
    pods.pull(&image)?;
    let layer = |name: &str| Tar::new().dir("d").file(&format!("d/{name}"), name);
    let two = Image::empty().layer(layer("one"), Packing::Gzip)?.layer(layer("two"), Packing::Gzip)?;
    let two = two.push(&registry, "test/two", "latest")?;
    pods.pull(&two)?;
    let mapping = || vec![v1::IdMapping { container_id: 0, host_id: 100_000, length: 65_536 }];
    let users = v1::UserNamespace { mode: v1::NamespaceMode::Pod.into(), uids: mapping(), gids: mapping() };
    let options = v1::NamespaceOption { userns_options: Some(users), ..Default::default() };
    let mut config = pods.networked_config("pod");
    let context = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    context.namespace_options = Some(options.clone());
    context.privileged = true;
    let pod = pods.run(&config)?;
    let all = v1::LinuxContainerSecurityContext {
        namespace_options: Some(options.clone()),
        privileged: true,
        ..Default::default()
    };
    // It has the host's devices, but terminals of its own.
    let text = "test -c /dev/kmsg && test -L /dev/ptmx && exec 3<>/dev/ptmx";
    let (code, said) = script(env, &mut pods, (&pod, &config), &image, text, |container| {
        container.linux.get_or_insert_default().security_context = Some(all);
    })?;
    assert_eq!(code, 0, "{said}");
    let text = "echo said > /proc/self/fd/2 || exit; cat /proc/self/uid_map; touch /new /dev/shm/new; stat -c %u /bin/busybox /new /dev/shm/new /etc/hosts \
                /volume/d/one /volume/d/two";
    let (code, said) = script(env, &mut pods, (&pod, &config), &image, text, |container| {
        let context = v1::LinuxContainerSecurityContext { namespace_options: Some(options), ..Default::default() };
        container.linux.get_or_insert_default().security_context = Some(context);
        container.mounts.push(v1::Mount {
            container_path: "/volume".into(),
            image: Some(spec(&two)),
            readonly: true,
            ..Default::default()
        });
    })?;
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("stderr F said"), "the root opens its streams: {said}");
    let words: Vec<&str> =
        said.lines().filter(|line| !line.ends_with(" said")).flat_map(|line| line.split_whitespace().skip(3)).collect();
    assert_eq!(words, ["0", "100000", "65536", "0", "0", "0", "0", "0", "0"], "{said}");
    // One that says nothing of it is not of this pod.
    let refused = script(env, &mut pods, (&pod, &config), &image, "true", |_| {}).expect_err("other users");
    assert!(format!("{refused:#}").contains("userns_options"), "{refused:#}");
    Ok(())
}

fn users_of_their_own_and_the_hosts_network_go_together(env: &Env) -> Result<()> {
    let (_registry, image) = Registry::with_busybox(env)?;
    let config = env.path("config.toml");
    std::fs::write(&config, "[cri.runtimes.rung]\n[cri.runtimes.other]\nruntime = \"io.containerd.runc.v2\"\n")?;
    let daemon = env.daemon_with(&["--config", &config.to_string_lossy()])?;
    let mut pods = Pods::connect(env, &daemon)?;
    pods.pull(&image)?;
    let told = pods.runtime.block_on(pods.pods.status(v1::StatusRequest { verbose: true }))?.into_inner();
    assert!(told.features.expect("features").user_namespaces_host_network);
    // Whoever asks for runc's shim gets ours, and what it can do.
    let [usual, others @ ..] = &told.runtime_handlers[..] else { panic!("no handlers") };
    assert!(!others.is_empty() && others.iter().all(|other| other.features == usual.features), "{others:?}");
    let settings: serde_json::Value = serde_json::from_str(&told.info["config"])?;
    assert_eq!(settings["containerd"]["defaultRuntimeName"], "rung", "{settings}");
    assert_eq!(settings["containerd"]["runtimes"]["rung"]["runtimeType"], "io.containerd.rung.v2", "{settings}");
    assert_eq!(settings["maxContainerLogLineSize"], 16 << 10, "{settings}");
    assert_eq!(settings["stateDir"], env.path("state").to_string_lossy().as_ref(), "{settings}");
    let mapping = || vec![v1::IdMapping { container_id: 0, host_id: 100_000, length: 65_536 }];
    let users = v1::UserNamespace { mode: v1::NamespaceMode::Pod.into(), uids: mapping(), gids: mapping() };
    let mut config = pods.pod_config("pod");
    let context = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    let options = context.namespace_options.get_or_insert_default();
    options.userns_options = Some(users);
    let options = options.clone();
    let pod = pods.run(&config)?;
    let text = "cat /proc/self/uid_map; readlink /proc/self/ns/net; test -d /sys/class/net/lo && ! touch /sys/x && touch /new && \
         ! grep -E ' /sys(/[^ ]*)? rw,' /proc/self/mountinfo";
    let (code, said) = script(env, &mut pods, (&pod, &config), &image, text, |container| {
        let context = v1::LinuxContainerSecurityContext { namespace_options: Some(options), ..Default::default() };
        container.linux.get_or_insert_default().security_context = Some(context);
    })?;
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("100000"), "{said}");
    let own = std::fs::read_link("/proc/self/ns/net")?;
    assert!(said.contains(&*own.to_string_lossy()), "the network is the host's: {said}");
    Ok(())
}

fn a_pod_that_cannot_be_taken_down_is_kept(env: &Env) -> Result<()> {
    let (_, good) = (env.dir("bin")?, env.path("good"));
    let text = format!("#!/bin/sh\n[ $CNI_COMMAND = DEL ] && [ -e {} ] && exit 0\nexit 1\n", good.display());
    env.script("bin/stubborn", &text)?;
    let daemon = start(env, &serde_json::json!({"type": "stubborn"}))?;
    let mut pods = Pods::connect(env, &daemon)?;
    let config = pods.networked_config("pod");
    pods.run(&config).expect_err("the plugin makes nothing");
    let all = v1::ListPodSandboxRequest::default();
    let left = pods.runtime.block_on(pods.pods.list_pod_sandbox(all.clone()))?.into_inner().items;
    assert_eq!(left.len(), 1, "a pod whose network is still to be taken back");
    assert_eq!(left[0].state(), v1::PodSandboxState::SandboxNotready);
    assert_eq!(left[0].metadata, config.metadata);
    assert_eq!(std::fs::read_dir(env.path("netns"))?.count(), 1);
    pods.remove(&left[0].id).expect_err("the plugin still fails");
    std::fs::write(good, "")?;
    pods.remove(&left[0].id)?;
    assert_eq!(std::fs::read_dir(env.path("netns"))?.count(), 0);
    assert!(pods.runtime.block_on(pods.pods.list_pod_sandbox(all))?.into_inner().items.is_empty());
    Ok(())
}

fn a_pod_that_stops_at_the_second_try_is_told_of(env: &Env) -> Result<()> {
    use v1::ContainerEventType::{ContainerDeletedEvent, ContainerStoppedEvent};
    let (_, good) = (env.dir("bin")?, env.path("good"));
    let text = format!(
        "#!/bin/sh\n[ $CNI_COMMAND = DEL ] && [ ! -e {} ] && exit 1\n\
         echo '{{\"cniVersion\":\"1.0.0\",\"ips\":[{{\"address\":\"10.9.0.2/24\"}}]}}'\n",
        good.display()
    );
    env.script("bin/stubborn", &text)?;
    let daemon = start(env, &serde_json::json!({"type": "stubborn"}))?;
    let mut pods = Pods::connect(env, &daemon)?;
    let pod = pods.run(&pods.networked_config("pod"))?;
    let mut events = pods.runtime.block_on(pods.pods.get_container_events(v1::GetEventsRequest {}))?.into_inner();
    let stop = v1::StopPodSandboxRequest { pod_sandbox_id: pod.clone() };
    pods.runtime.block_on(pods.pods.stop_pod_sandbox(stop.clone())).expect_err("the plugin fails");
    std::fs::write(good, "")?;
    pods.runtime.block_on(pods.pods.stop_pod_sandbox(stop))?;
    pods.remove(&pod)?;
    let mut told = Vec::new();
    while told.last() != Some(&ContainerDeletedEvent) {
        let event = pods.runtime.block_on(events.message())?.expect("an event");
        told.push(event.container_event_type());
    }
    assert_eq!(told, [ContainerStoppedEvent, ContainerDeletedEvent]);
    Ok(())
}

fn why_a_pod_did_not_start_is_said_whatever_fails_after_it(env: &Env) -> Result<()> {
    let good = env.path("good");
    let script = format!(
        "[ -e {} ] || case $verb in start) echo no start today >&2; exit 1;; \
         delete) echo no end today >&2; exit 1;; state) [ ! -e {} ] || exit 1;; esac",
        good.display(),
        env.path("worse").display(),
    );
    let daemon = under(env, &script)?;
    let mut pods = Pods::connect(env, &daemon)?;
    // The second time the runtime cannot even say that the container is there.
    for _ in 0..2 {
        let failed = pods.run(&pods.pod_config("pod")).expect_err("the runtime starts nothing");
        anyhow::ensure!(format!("{failed:?}").contains("no start today"), "{failed:?}");
        std::fs::write(&good, "")?;
        let all = || v1::ListPodSandboxRequest::default();
        let left = pods.runtime.block_on(pods.pods.list_pod_sandbox(all()))?.into_inner().items;
        assert_eq!(left.len(), 1, "what could not be removed is the kubelet's to remove");
        pods.remove(&left[0].id)?;
        anyhow::ensure!(pods.runtime.block_on(pods.pods.list_pod_sandbox(all()))?.into_inner().items.is_empty());
        std::fs::remove_file(&good)?;
        std::fs::write(env.path("worse"), "")?;
    }
    Ok(())
}

/// A daemon whose pods run under `rung` after `script`, which knows the verb.
fn under<'env>(env: &'env Env, script: &str) -> Result<Daemon<'env>> {
    let text = format!(
        "#!/bin/sh\nfor word; do case $word in start|delete|state) verb=$word;; esac; done\n{script}\nexec {} \"$@\"\n",
        env.program("rung")?.display()
    );
    let runtime = env.script("runtime.sh", &text)?;
    env.daemon_configured(&format!("[cri.runtimes.rung]\nbinary = {runtime:?}\n"))
}

/// Removing a cgroup, for one, may fail for a moment.
fn a_delete_that_fails_once_fails_no_stop(env: &Env) -> Result<()> {
    let tried = env.path("tried");
    let script = format!("[ \"$verb\" != delete ] || [ -e {0} ] || {{ touch {0}; exit 1; }}", tried.display());
    let daemon = under(env, &script)?;
    let mut pods = Pods::connect(env, &daemon)?;
    let pod = pods.run(&pods.pod_config("pod"))?;
    pods.remove(&pod)?;
    anyhow::ensure!(tried.exists(), "the pod has no process");
    Ok(())
}

/// Debian's runc looks into `/proc` also for a process that needs none.
fn a_pod_with_a_process_runs_under_runc(env: &Env) -> Result<()> {
    let daemon =
        env.daemon_configured("[cri]\nrestrict_oom_score_adj = true\n[cri.runtimes.rung]\nbinary = \"runc\"\n")?;
    let mut pods = Pods::connect(env, &daemon)?;
    let pod = pods.run(&pods.pod_config("pod"))?;
    pods.remove(&pod)
}

fn a_start_that_was_cut_short_was_none(env: &Env) -> Result<()> {
    let (_registry, image) = Registry::with_busybox(env)?;
    let mut daemon = env.daemon_dying_at("cri.noted")?;
    let mut pods = Pods::connect(env, &daemon)?;
    pods.pull(&image)?;
    let config = pods.pod_config("pod");
    let pod = pods.run(&config)?;
    pods.start(&pod, &config, &image, &["true"], |_| {}).expect_err("the daemon dies");
    assert!(daemon.died());
    std::mem::forget(pods);
    let daemon = env.daemon()?;
    let mut pods = Pods::connect(env, &daemon)?;
    let all = pods.runtime.block_on(pods.pods.list_containers(v1::ListContainersRequest::default()))?.into_inner();
    let container = all.containers.first().expect("the container");
    assert_eq!(container.state(), v1::ContainerState::ContainerCreated);
    let request = v1::StartContainerRequest { container_id: container.id.clone() };
    pods.runtime.block_on(pods.pods.start_container(request))?;
    assert_eq!(pods.exit_code(&container.id)?, 0);
    Ok(())
}

fn a_container_that_ran_is_not_created_again(env: &Env) -> Result<()> {
    let (_registry, image) = Registry::with_busybox(env)?;
    let daemon = env.daemon()?;
    let mut pods = Pods::connect(env, &daemon)?;
    pods.pull(&image)?;
    let config = pods.pod_config("pod");
    let pod = pods.run(&config)?;
    let container = pods.start(&pod, &config, &image, &["sleep", "1000"], |_| {})?;
    let started_at = pods.status(&container)?.started_at;
    // Its record is written after that of the start.
    let other = v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: "other".to_owned(), attempt: 0 }),
        image: Some(spec(&image)),
        command: vec!["true".to_owned()],
        ..Default::default()
    };
    let request = v1::CreateContainerRequest {
        pod_sandbox_id: pod.clone(),
        config: Some(other),
        sandbox_config: Some(config.clone()),
    };
    pods.runtime.block_on(pods.pods.create_container(request))?;
    let (first, shim) = pods.processes(&container)?;
    std::mem::forget(pods);
    daemon.crash()?;
    for pid in [shim, first] {
        // One may have gone with the other.
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        wait::until("the process is gone", || (!std::path::Path::new(&format!("/proc/{pid}")).exists()).then_some(()))?;
    }
    let bundle = env.path("state/io.containerd.runtime.v2.task/k8s.io").join(&container);
    let _ = nix::mount::umount2(&bundle.join("rootfs"), nix::mount::MntFlags::MNT_DETACH);
    std::fs::remove_dir_all(&bundle)?;
    // As after a boot, there is no cgroup of it either.
    for hierarchy in leaks::hierarchies() {
        let _ = std::fs::remove_dir(hierarchy.join(env.id("pods")).join(&container));
    }
    let daemon = env.daemon()?;
    let mut pods = Pods::connect(env, &daemon)?;
    let seen = pods.status(&container)?;
    assert_eq!(seen.state(), v1::ContainerState::ContainerExited);
    assert_eq!((seen.started_at, seen.exit_code, seen.reason.as_str()), (started_at, 255, "Unknown"));
    Ok(())
}
