//! What moves with a node that used CRI-O: annotations that a handler allows, workloads, and settings of all containers.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use gantry_proto::runtime::v1;
use integration_tests::pods::Pods;
use integration_tests::{Env, Registry, Result, Test, http, tests, wait};
use nix::mount::{MsFlags, mount};
use serde_json::json;
use tonic::{Code, Status};

use crate::cri_settings::exec;

pub(crate) const TESTS: &[Test] = tests![
    annotations_count_where_a_handler_allows_them [Root, Overlay],
    pods_have_users_by_annotation [Root, Overlay, Userns],
    workloads_stand_over_the_kubelets_limits [Root, Overlay],
    pods_with_processors_of_their_own_lose_their_limit [Root, Overlay, CgroupV1],
    settings_of_all_containers [Root, Overlay],
    forbidden_system_calls_are_heard_of [Root, Overlay],
    a_pods_logs_are_in_its_volume [Root, Overlay],
    interrupts_keep_off_processors [Root, Overlay],
];

const SLEEP: [&str; 2] = ["/bin/sleep", "600"];

fn annotated(mut config: v1::PodSandboxConfig, annotations: &[(&str, &str)]) -> v1::PodSandboxConfig {
    config.annotations.extend(annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
    config
}

fn run(pods: &mut Pods<'_>, handler: &str, config: &v1::PodSandboxConfig) -> std::result::Result<String, Box<Status>> {
    let request = v1::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: handler.to_owned() };
    let ran = pods.runtime.block_on(pods.pods.run_pod_sandbox(request)).map_err(Box::new)?;
    Ok(ran.into_inner().pod_sandbox_id)
}

/// A refusal for what the annotation or field says, and not for another reason.
fn refused<T>(asked: std::result::Result<T, Box<Status>>, code: Code, what: &str) -> Result<()> {
    let status = asked.err().with_context(|| format!("{what}: not refused"))?;
    ensure!(status.code() == code && status.message().contains(what), "{what}: {status}");
    Ok(())
}

/// The same of a container, which is not made.
fn refused_start(started: Result<String>, what: &str) -> Result<()> {
    let error = started.err().with_context(|| format!("{what}: not refused"))?;
    let status = error.downcast::<Status>()?;
    refused::<String>(Err(Box::new(status)), Code::InvalidArgument, what)
}

fn annotations_count_where_a_handler_allows_them(env: &Env) -> Result<()> {
    let (_registry, image) = Registry::with_busybox(env)?;
    let daemon = env.daemon_configured(
        "[cri]\nallowed_devices = [\"/dev/null\", \"/dev/none\"]\n[cri.runtimes.rung]\n[cri.runtimes.open]\nallowed_annotations = \
         [\"io.kubernetes.cri-o.Devices\", \"shm-size.crio.io\", \"umask.crio.io\", \"unified-cgroup.crio.io\", \
         \"cgroup2-mount-hierarchy-rw.crio.io\"]\n",
    )?;
    let mut pods = Pods::connect(env, &daemon)?;
    pods.pull(&image)?;
    let wishes = [
        ("devices.crio.io", "/dev/null:/dev/mine:rw"),
        ("io.kubernetes.cri-o.ShmSize", "128Mi"),
        ("umask.crio.io", "027"),
    ];
    let look =
        "umask; grep ' /dev/shm ' /proc/mounts | grep -o 'size=[0-9]*k'; test -c /dev/mine && echo device || true";
    for (handler, seen) in [("rung", "0022\nsize=65536k"), ("open", "0027\nsize=131072k\ndevice")] {
        let config = annotated(pods.pod_config(handler), &wishes);
        let before = daemon.log().len();
        let pod = run(&mut pods, handler, &config).map_err(|status| *status)?;
        let told = daemon.log()[before..].matches("is not allowed, and changes nothing").count();
        assert_eq!(told, if handler == "rung" { wishes.len() } else { 0 }, "{}", daemon.log());
        let container = pods.start(&pod, &config, &image, &SLEEP, |_| {})?;
        assert_eq!(exec(&mut pods, &container, look)?, seen, "{handler}");
    }
    let (before, config) =
        (daemon.log().len(), annotated(pods.pod_config("older"), &[("io.kubernetes.cri-o.LinkLogs", "x")]));
    run(&mut pods, "open", &config).map_err(|status| *status)?;
    ensure!(daemon.log()[before..].contains("io.kubernetes.cri-o.LinkLogs"), "{}", daemon.log());
    for (name, value) in [
        ("umask.crio.io", "9"),
        ("shm-size.crio.io", "0"),
        ("io.kubernetes.cri-o.Devices", "/dev/kmsg"),
        ("unified-cgroup.crio.io/web", "cgroup.procs=1"),
    ] {
        let config = annotated(pods.pod_config("bad"), &[(name, value)]);
        refused(run(&mut pods, "open", &config), Code::InvalidArgument, &format!("annotation {name}: "))?;
    }
    let key = "io.kubernetes.cri-o.Devices";
    let config = annotated(pods.pod_config("none"), &[(key, "/dev/none")]);
    let pod = run(&mut pods, "open", &config).map_err(|status| *status)?;
    let started = pods.start(&pod, &config, &image, &SLEEP, |_| {});
    refused_start(started, &format!("annotation {key}: /dev/none"))?;

    let unified = format!("unified-cgroup.crio.io/{}", env.id("container"));
    let wishes = [("cgroup2-mount-hierarchy-rw.crio.io", "true"), (unified.as_str(), "pids.max=77")];
    let config = annotated(pods.pod_config("unified"), &wishes);
    let ran = run(&mut pods, "open", &config);
    if !Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        return refused(ran, Code::InvalidArgument, "annotation cgroup2-mount-hierarchy-rw.crio.io: ");
    }
    let container = pods.start(&ran.map_err(|status| *status)?, &config, &image, &SLEEP, |_| {})?;
    let look = "cat /sys/fs/cgroup/pids.max; mkdir /sys/fs/cgroup/own && rmdir /sys/fs/cgroup/own && echo made";
    assert_eq!(exec(&mut pods, &container, look)?, "77\nmade");
    Ok(())
}

fn pods_have_users_by_annotation(env: &Env) -> Result<()> {
    env.own_mounts()?;
    let ids = env.path("ids");
    std::fs::write(&ids, "containers:300000:3000\n")?;
    for file in ["/etc/subuid", "/etc/subgid"] {
        mount(Some(&ids), file, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    }
    let (_registry, image) = Registry::with_busybox(env)?;
    let config = "[cri.runtimes.rung]\nallowed_annotations = [\"userns-mode.crio.io\"]\n";
    let daemon = env.daemon_configured(config)?;
    let mut pods = Pods::connect(env, &daemon)?;
    pods.pull(&image)?;
    let volume = env.dir("volume")?;
    std::fs::write(volume.join("file"), "")?;
    nix::unistd::chown(&volume.join("file"), Some(7.into()), None)?;
    for (name, first) in [("one", "300000"), ("other", "301000")] {
        let config = annotated(pods.pod_config(name), &[("userns-mode.crio.io", "auto:size=1000")]);
        let pod = run(&mut pods, "", &config).map_err(|status| *status)?;
        let container = pods.start(&pod, &config, &image, &SLEEP, |container| {
            let host_path = volume.to_string_lossy().into_owned();
            container.mounts.push(v1::Mount { host_path, container_path: "/volume".into(), ..Default::default() });
        })?;
        let look = "cat /proc/self/uid_map /proc/self/gid_map; touch /root-file; stat -c %u /root-file /volume/file";
        let seen = exec(&mut pods, &container, look)?;
        let seen: Vec<&str> = seen.split_whitespace().collect();
        assert_eq!(seen, ["0", first, "1000", "0", first, "1000", "0", "7"], "{name}");
    }
    for (value, code) in [
        ("auto:size=1001", Code::ResourceExhausted),
        ("private:uidmapping=0:0:1", Code::InvalidArgument),
        ("host", Code::InvalidArgument),
    ] {
        let config = annotated(pods.pod_config("bad"), &[("userns-mode.crio.io", value)]);
        refused(run(&mut pods, "", &config), code, "annotation userns-mode.crio.io: ")?;
    }
    // Who has gone leaves his ids to others.
    let all = pods.runtime.block_on(pods.pods.list_pod_sandbox(v1::ListPodSandboxRequest::default()))?.into_inner();
    all.items.iter().try_for_each(|pod| pods.remove(&pod.id))?;
    let config = annotated(pods.pod_config("all"), &[("userns-mode.crio.io", "auto:size=3000")]);
    run(&mut pods, "", &config).map_err(|status| *status)?;
    Ok(())
}

fn workloads_stand_over_the_kubelets_limits(env: &Env) -> Result<()> {
    let (_registry, image) = Registry::with_busybox(env)?;
    let daemon = env.daemon_configured(
        "[cri.workloads.kept]\nactivation_annotation = \"kept.example.org\"\nannotation_prefix = \"limits.example.org\"\n\
         allowed_annotations = [\"umask.crio.io\"]\n[cri.workloads.kept.resources]\ncpushares = 300\ncpuset = \"0\"\n",
    )?;
    let mut pods = Pods::connect(env, &daemon)?;
    pods.pull(&image)?;
    let own = format!("limits.example.org/{}", env.id("container"));
    let wishes = [("kept.example.org", ""), ("umask.crio.io", "077"), (own.as_str(), "{\"cpulimit\": 500}")];
    let config = annotated(pods.pod_config("pod"), &wishes);
    let pod = run(&mut pods, "", &config).map_err(|status| *status)?;
    let container = pods.start(&pod, &config, &image, &SLEEP, |container| {
        let limits = v1::LinuxContainerResources { cpu_shares: 700, cpu_quota: 9_000, ..Default::default() };
        container.linux.get_or_insert_default().resources = Some(limits);
    })?;
    assert_eq!(exec(&mut pods, &container, "umask; grep Cpus_allowed_list /proc/self/status | cut -f2")?, "0077\n0");
    let update = v1::UpdateContainerResourcesRequest {
        container_id: container.clone(),
        linux: Some(v1::LinuxContainerResources { cpu_shares: 900, cpuset_cpus: "1".into(), ..Default::default() }),
        ..Default::default()
    };
    pods.runtime.block_on(pods.pods.update_container_resources(update))?;
    let cpu = pods.info(&container)?["runtimeSpec"]["linux"]["resources"]["cpu"].take();
    assert_eq!((&cpu["shares"], &cpu["quota"], &cpu["cpus"]), (&json!(300), &json!(50_000), &json!("0")), "{cpu}");

    let config = annotated(pods.pod_config("bad"), &[("kept.example.org", ""), (&own, "{\"cpushares\": 1}")]);
    let pod = run(&mut pods, "", &config).map_err(|status| *status)?;
    refused_start(pods.start(&pod, &config, &image, &SLEEP, |_| {}), &format!("annotation {own}: cpushares"))
}

fn pods_with_processors_of_their_own_lose_their_limit(env: &Env) -> Result<()> {
    let (_registry, image) = Registry::with_busybox(env)?;
    let daemon = env.daemon_configured("[cri.runtimes.rung]\nallowed_annotations = [\"cpu-quota.crio.io\"]\n")?;
    let mut pods = Pods::connect(env, &daemon)?;
    pods.pull(&image)?;
    let config = annotated(pods.pod_config("pod"), &[("cpu-quota.crio.io", "disable")]);
    let pod = run(&mut pods, "", &config).map_err(|status| *status)?;
    // As a kubelet makes it.
    let parent = Path::new("/sys/fs/cgroup/cpu").join(env.id("pods"));
    let quota = parent.join("cpu.cfs_quota_us");
    std::fs::create_dir_all(&parent)?;
    std::fs::write(&quota, "50000")?;
    for (cpu_shares, told, of_pod) in [(512, 20_000, "50000"), (1024, -1, "-1")] {
        let container = pods.start(&pod, &config, &image, &SLEEP, |container| {
            container.metadata.get_or_insert_default().name = format!("with-{cpu_shares}");
            let limits = v1::LinuxContainerResources { cpu_shares, cpu_quota: 20_000, ..Default::default() };
            container.linux.get_or_insert_default().resources = Some(limits);
        })?;
        let limits = pods.status(&container)?.resources.and_then(|limits| limits.linux).context("no limits")?;
        assert_eq!((limits.cpu_quota, std::fs::read_to_string(&quota)?.trim()), (told, of_pod), "{cpu_shares}");
    }
    // Whole processors by an update are as good.
    std::fs::write(&quota, "50000")?;
    let container = pods.start(&pod, &config, &image, &SLEEP, |container| {
        let limits = v1::LinuxContainerResources { cpu_shares: 512, cpu_quota: 20_000, ..Default::default() };
        container.linux.get_or_insert_default().resources = Some(limits);
    })?;
    let linux = Some(v1::LinuxContainerResources { cpu_shares: 1024, cpu_quota: 30_000, ..Default::default() });
    let update = v1::UpdateContainerResourcesRequest { container_id: container, linux, ..Default::default() };
    pods.runtime.block_on(pods.pods.update_container_resources(update))?;
    assert_eq!(std::fs::read_to_string(&quota)?.trim(), "-1");
    Ok(())
}

fn settings_of_all_containers(env: &Env) -> Result<()> {
    env.own_etc()?;
    let (_registry, image) = Registry::with_busybox(env)?;
    let host = env.dir("host")?;
    std::fs::create_dir(host.join("data"))?;
    // A machine may have none, and the link of one leads out of /etc.
    let _ = std::fs::remove_file("/etc/localtime");
    for zone in [Path::new("/etc/localtime"), &host.join("data/zone")] {
        std::fs::write(zone, "TZif2 of this test")?;
    }
    std::os::unix::fs::symlink("/data", host.join("link"))?;
    let daemon = env.daemon_configured(&format!(
        "[cri]\nread_only = true\ntimezone = \"local\"\nabsent_mount_sources_to_reject = [\"/none\"]\n\
         bind_mount_prefix = {host:?}\n[cri.runtimes.rung]\ncontainer_min_memory = 8388608\n"
    ))?;
    let mut pods = Pods::connect(env, &daemon)?;
    pods.pull(&image)?;
    let config = pods.pod_config("pod");
    let pod = pods.run(&config)?;
    let of = |host_path: &str| v1::Mount {
        host_path: host_path.to_owned(),
        container_path: "/volume".into(),
        ..Default::default()
    };
    let container = pods.start(&pod, &config, &image, &SLEEP, |container| container.mounts.push(of("/link")))?;
    let look = "busybox cmp /etc/localtime /volume/zone && touch /tmp/new /run/new /var/tmp/new && ! touch /new";
    exec(&mut pods, &container, look)?;

    let started = pods.start(&pod, &config, &image, &SLEEP, |container| {
        container.metadata.get_or_insert_default().name = "absent".to_owned();
        container.mounts.push(of("/none/"));
    });
    refused_start(started, "absent_mount_sources_to_reject")?;
    ensure!(!host.join("none").exists(), "the path was made");
    let low = || v1::LinuxContainerResources { memory_limit_in_bytes: 4 << 20, ..Default::default() };
    let started = pods.start(&pod, &config, &image, &SLEEP, |container| {
        container.metadata.get_or_insert_default().name = "low".to_owned();
        container.linux.get_or_insert_default().resources = Some(low());
    });
    refused_start(started, "config.linux.resources.memory_limit_in_bytes: 4194304 is less than")?;
    let update =
        v1::UpdateContainerResourcesRequest { container_id: container, linux: Some(low()), ..Default::default() };
    let updated = pods.runtime.block_on(pods.pods.update_container_resources(update)).map_err(Box::new);
    refused(updated, Code::InvalidArgument, ": linux.memory_limit_in_bytes: 4194304 is less than")
}

/// The value of a counter of forbidden calls.
fn counted(address: SocketAddr, syscall: &str) -> Result<u64> {
    let text = String::from_utf8(http::request(address, "GET", "/v1/metrics", &[], &[])?.expect(200)?.body)?;
    let name = format!("gantryd_forbidden_syscalls_total{{syscall=\"{syscall}\"}} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&name));
    Ok(line.map_or(Ok(0), str::parse)?)
}

fn forbidden_system_calls_are_heard_of(env: &Env) -> Result<()> {
    let (_registry, image) = Registry::with_busybox(env)?;
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let config = format!(
        "[metrics]\naddress = \"{address}\"\n[cri]\nunset_seccomp_profile = \"runtime/default\"\nseccomp_stop_delay = 1\n\
         [cri.runtimes.rung]\nallowed_annotations = [\"seccomp-notifier-action.crio.io\"]\n"
    );
    let daemon = env.daemon_configured(&config)?;
    let mut pods = Pods::connect(env, &daemon)?;
    pods.pull(&image)?;
    let config = annotated(pods.pod_config("ended"), &[("seccomp-notifier-action.crio.io", "stop")]);
    let pod = run(&mut pods, "", &config).map_err(|status| *status)?;
    let script = "busybox mount -t tmpfs x /tmp; busybox mount -t tmpfs x /tmp; exec busybox sleep 600";
    let ended = pods.start(&pod, &config, &image, &["/bin/sh", "-c", script], |_| {})?;

    let config = annotated(pods.pod_config("told"), &[("seccomp-notifier-action.crio.io", "log")]);
    let pod = run(&mut pods, "", &config).map_err(|status| *status)?;
    let told = pods.start(&pod, &config, &image, &SLEEP, |_| {})?;
    let look = "busybox swapoff /x 2>&1 | grep -o 'not permitted'";
    assert_eq!(exec(&mut pods, &told, look)?, "not permitted");
    ensure!(daemon.log().contains("swapoff"), "nothing in the log");
    assert_eq!(counted(address, "swapoff")?, 1);
    // After a hundred in a second each of them waits: there is no room for two hundred more in what is left of it.
    let begun = Instant::now();
    let many = "i=0; while [ $i -lt 300 ]; do busybox swapoff /x 2>/dev/null; i=$((i + 1)); done";
    exec(&mut pods, &told, many)?;
    ensure!(begun.elapsed() > Duration::from_secs(1), "{:?}", begun.elapsed());
    assert_eq!(counted(address, "swapoff")?, 301);

    assert_eq!(pods.exit_code(&ended)?, 137);
    let status = pods.status(&ended)?;
    assert_eq!(status.reason, "seccomp killed");
    ensure!(status.message.contains("mount (2x)"), "{}", status.message);

    // A process waits for no daemon that is not there, and the next one hears of those that are started then.
    std::mem::forget(pods);
    daemon.crash()?;
    let daemon = env.daemon_with(&["--config", &env.path("config.toml").to_string_lossy()])?;
    let mut pods = Pods::connect(env, &daemon)?;
    assert_eq!(pods.status(&told)?.state(), v1::ContainerState::ContainerRunning);
    assert_eq!(exec(&mut pods, &told, look)?, "not permitted");
    assert_eq!(counted(address, "swapoff")?, 1);
    Ok(())
}

fn a_pods_logs_are_in_its_volume(env: &Env) -> Result<()> {
    env.own_mounts()?;
    let (_registry, image) = Registry::with_busybox(env)?;
    let kubelet = env.dir("kubelet")?;
    let allowed = "allowed_annotations = [\"link-logs.crio.io\"]";
    let daemon =
        env.daemon_configured(&format!("[cri]\nkubelet_dir = {kubelet:?}\n[cri.runtimes.rung]\n{allowed}\n"))?;
    let mut pods = Pods::connect(env, &daemon)?;
    pods.pull(&image)?;
    let mut config = annotated(pods.pod_config("linked"), &[("io.kubernetes.cri-o.LinkLogs", "own")]);
    config.log_directory = env.dir("pod-logs")?.display().to_string();
    let uid = config.metadata.clone().expect("metadata").uid;
    let volume = kubelet.join("pods").join(uid).join("volumes/kubernetes.io~empty-dir/own");
    std::fs::create_dir_all(&volume)?;
    // As an earlier container may have left it.
    std::os::unix::fs::symlink("/etc", volume.join("logs"))?;
    let mounted = || -> Result<Vec<_>> {
        let all = std::fs::read_to_string("/proc/self/mountinfo")?;
        let points = all.lines().filter_map(|line| line.split(' ').nth(4).map(str::to_owned));
        Ok(points.filter(|point| point.starts_with(kubelet.to_str().expect("text"))).collect())
    };
    let pod = run(&mut pods, "", &config).map_err(|status| *status)?;
    let start = |pods: &mut Pods<'_>, name: &str| {
        let host_path = volume.to_string_lossy().into_owned();
        let script = ["/bin/sh", "-c", "echo said; exec sleep 600"];
        pods.start(&pod, &config, &image, &script, |container| {
            container.metadata = Some(v1::ContainerMetadata { name: name.to_owned(), attempt: 0 });
            container.log_path = format!("{name}/0.log");
            container.mounts.push(v1::Mount { host_path, container_path: "/volume".into(), ..Default::default() });
        })
    };
    refused_start(start(&mut pods, "none"), "annotation link-logs.crio.io: volume own: logs: ")?;
    assert!(mounted()?.is_empty(), "{:?}", mounted()?);
    std::fs::remove_file(volume.join("logs"))?;
    let (first, second) = (start(&mut pods, "one")?, start(&mut pods, "other")?);
    assert_eq!(mounted()?, [volume.join("logs").display().to_string()], "once");
    for container in [&first, &second] {
        let own = format!("grep -o said /volume/{container}.log");
        wait::until("the container's log is there", || {
            exec(&mut pods, &second, &own).ok().filter(|said| said == "said")
        })?;
    }
    assert_eq!(exec(&mut pods, &first, "echo x 2>/dev/null >> /volume/logs/one/0.log || echo no")?, "no");
    pods.runtime.block_on(pods.pods.remove_container(v1::RemoveContainerRequest { container_id: first.clone() }))?;
    assert!(volume.join(format!("{first}.log")).symlink_metadata().is_err(), "it leads nowhere now");
    let stop = v1::StopPodSandboxRequest { pod_sandbox_id: pod.clone() };
    pods.runtime.block_on(pods.pods.stop_pod_sandbox(stop))?;
    assert!(mounted()?.is_empty(), "a stopped pod has no mounts: {:?}", mounted()?);
    assert!(Path::new(&config.log_directory).join("other/0.log").is_file());
    pods.remove(&pod)?;

    let config = annotated(pods.pod_config("missing"), &[("link-logs.crio.io", "missing")]);
    let config = v1::PodSandboxConfig { log_directory: env.dir("pod-logs")?.display().to_string(), ..config };
    let pod = run(&mut pods, "", &config).map_err(|status| *status)?;
    let started = pods.start(&pod, &config, &image, &SLEEP, |container| container.log_path = "0.log".into());
    refused_start(started, "annotation link-logs.crio.io: volume missing")
}

fn interrupts_keep_off_processors(env: &Env) -> Result<()> {
    env.own_mounts()?;
    let place = Path::new("/proc/irq");
    mount(Some("tmpfs"), place, Some("tmpfs"), MsFlags::empty(), None::<&str>)?;
    let files = ["default_smp_affinity", "24/smp_affinity", "25/smp_affinity"].map(|file| place.join(file));
    for (file, mask) in files.iter().zip(["3", "3", "2"]) {
        std::fs::create_dir_all(file.parent().expect("a directory"))?;
        std::fs::write(file, mask)?;
    }
    let masks = || files.each_ref().map(|file| std::fs::read_to_string(file).unwrap_or_default().trim().to_owned());
    let (_registry, image) = Registry::with_busybox(env)?;
    let allowed = "[cri.runtimes.rung]\nallowed_annotations = [\"irq-load-balancing.crio.io\"]\n";
    let daemon = env.daemon_configured(allowed)?;
    let mut pods = Pods::connect(env, &daemon)?;
    pods.pull(&image)?;
    let config = annotated(pods.pod_config("pod"), &[("irq-load-balancing.crio.io", "disable")]);
    let pod = run(&mut pods, "", &config).map_err(|status| *status)?;
    let start = |pods: &mut Pods<'_>, name: &str, cpu_shares: i64| {
        pods.start(&pod, &config, &image, &SLEEP, |container| {
            container.metadata.get_or_insert_default().name = name.to_owned();
            let limits = v1::LinuxContainerResources { cpu_shares, cpuset_cpus: "1".into(), ..Default::default() };
            container.linux.get_or_insert_default().resources = Some(limits);
        })
    };
    start(&mut pods, "sharing", 500)?;
    assert_eq!(masks(), ["3", "3", "2"], "who has half a processor has none for himself");
    let container = start(&mut pods, "own", 1024)?;
    assert_eq!(masks(), ["1", "1", "2"], "one that has no other processor left stays");
    // Whoever is the daemon when it ends gives back what there was.
    daemon.crash()?;
    let daemon = env.daemon_configured(allowed)?;
    let mut pods = Pods::connect(env, &daemon)?;
    assert_eq!(masks(), ["1", "1", "2"]);
    let stop = v1::StopContainerRequest { container_id: container.clone(), timeout: 0 };
    pods.runtime.block_on(pods.pods.stop_container(stop))?;
    assert_eq!(pods.exit_code(&container)?, 137);
    wait::until("the masks are as before", || (masks() == ["3", "3", "2"]).then_some(()))?;
    pods.remove(&pod)
}
