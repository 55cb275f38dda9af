//! Requests of a kubelet that are given up or repeated, and a node that was started anew.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use gantry_proto::runtime::v1;
use integration_tests::pods::{Pods, network};
use integration_tests::{Daemon, Env, Registry, Result, Test, leaks, tests, wait};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tonic::Code;

pub(crate) const TESTS: &[Test] = tests![
    a_request_that_is_given_up_leaves_nothing [Root, Overlay],
    a_repeat_joins_what_is_under_way [Root, Overlay],
    a_node_that_was_started_anew_knows_what_is_gone [Root, Overlay],
    a_volume_that_does_not_answer_is_named [Root, Overlay, Fuse],
    a_create_that_cannot_be_undone_is_undone_in_the_end [Root, Overlay],
    what_an_end_leaves_goes_before_the_record [Root, Overlay],
    one_that_cannot_be_killed_keeps_no_other_alive [Root, Overlay],
    a_container_is_taken_over_however_late_its_shim_answers [Root, Overlay],
];

/// A daemon whose plugin `scripted` does what `script` says.
fn start<'env>(env: &'env Env, plugins: &serde_json::Value, script: &str) -> Result<Daemon<'env>> {
    let (conf, bin) = (env.dir("net.d")?, env.dir("bin")?);
    env.script("bin/scripted", &format!("#!/bin/sh\n{script}\n"))?;
    env.daemon_configured(&network(env, &conf, plugins, &[&bin])?)
}

/// A plugin that says when it is called, and answers once there is a file.
fn slow(env: &Env) -> String {
    let (asked, go) = (env.path("asked"), env.path("go"));
    format!(
        "echo $CNI_COMMAND >> {asked}; [ $CNI_COMMAND = ADD ] || exit 0\n\
         while [ ! -e {go} ]; do sleep 0.05; done\n\
         echo '{{\"cniVersion\": \"1.0.0\", \"ips\": [{{\"address\": \"10.213.81.2/24\"}}]}}'",
        asked = asked.display(),
        go = go.display(),
    )
}

fn asked(env: &Env, what: &str) -> usize {
    fs::read_to_string(env.path("asked")).unwrap_or_default().lines().filter(|line| *line == what).count()
}

/// Waits for something while the calls under way go on.
fn until(pods: &Pods<'_>, what: &str, mut holds: impl FnMut() -> bool) -> Result<()> {
    wait::until(what, || {
        pods.runtime.block_on(async { tokio::time::sleep(std::time::Duration::from_millis(10)).await });
        holds().then_some(())
    })
}

fn names(dir: &Path) -> usize {
    fs::read_dir(dir).map_or(0, Iterator::count)
}

fn listed(pods: &mut Pods<'_>) -> Result<Vec<v1::PodSandbox>> {
    let all = v1::ListPodSandboxRequest::default();
    Ok(pods.runtime.block_on(pods.pods.list_pod_sandbox(all))?.into_inner().items)
}

fn a_request_that_is_given_up_leaves_nothing(env: &Env) -> Result<()> {
    let daemon = start(env, &serde_json::json!([{"type": "scripted"}]), &slow(env))?;
    let mut pods = Pods::connect(env, &daemon)?;
    let config = pods.networked_config("pod");
    // One client says until when it waits, the other just goes.
    let request = || v1::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
    let mut limited = tonic::Request::new(request());
    limited.set_timeout(std::time::Duration::from_millis(500));
    let late = pods.runtime.block_on(pods.pods.run_pod_sandbox(limited)).expect_err("too late");
    assert!(matches!(late.code(), Code::DeadlineExceeded | Code::Cancelled), "{late}");
    // Until it is taken back, another request for the same would join it.
    let gone = || asked(env, "DEL") >= asked(env, "ADD") && names(&env.path("state/cri/pods")) == 0;
    until(&pods, "it is taken back", gone)?;
    // On a busy machine its time may have been over before that.
    let before = asked(env, "ADD");
    let mut client = pods.pods.clone();
    let again = request();
    let call = pods.runtime.spawn(async move { client.run_pod_sandbox(again).await });
    until(&pods, "the plugin is asked again", || asked(env, "ADD") > before)?;
    call.abort();
    pods.runtime.block_on(call).expect_err("it was given up");
    until(&pods, "all is taken back", || asked(env, "DEL") > before && names(&env.path("netns")) == 0)?;
    until(&pods, "their files are gone", || names(&env.path("state/cri/pods")) == 0)?;
    assert!(listed(&mut pods)?.is_empty());
    // The name is free for another pod.
    fs::write(env.path("go"), "")?;
    let mut other = config.clone();
    other.hostname = "other".to_owned();
    let pod = pods.run(&other)?;
    assert_eq!(listed(&mut pods)?.len(), 1);
    pods.remove(&pod)?;
    Ok(())
}

fn a_repeat_joins_what_is_under_way(env: &Env) -> Result<()> {
    let daemon = start(env, &serde_json::json!([{"type": "scripted"}]), &slow(env))?;
    let mut pods = Pods::connect(env, &daemon)?;
    let config = pods.networked_config("pod");
    let begin = |pods: &Pods<'_>, config: &v1::PodSandboxConfig| {
        let request = v1::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
        let mut client = pods.pods.clone();
        pods.runtime.spawn(async move { client.run_pod_sandbox(request).await })
    };
    let first = begin(&pods, &config);
    until(&pods, "the plugin is asked", || asked(env, "ADD") == 1)?;
    let second = begin(&pods, &config);
    let mut other = config.clone();
    other.hostname = "other".to_owned();
    let refused = pods.runtime.block_on(begin(&pods, &other))?.expect_err("another pod of that name");
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    // The first client goes; the second one's pod is made all the same.
    first.abort();
    pods.runtime.block_on(first).expect_err("it was given up");
    fs::write(env.path("go"), "")?;
    let pod = pods.runtime.block_on(second)??.into_inner().pod_sandbox_id;
    assert_eq!(asked(env, "ADD"), 1, "one pod was made");
    assert_eq!(pods.run(&config)?, pod, "a later repeat has the same answer");
    assert_eq!(listed(&mut pods)?.len(), 1);
    Ok(())
}

/// A file system whose server never answers: whoever asks it waits until this is dropped.
struct Unanswering {
    path: PathBuf,
    device: Option<fs::File>,
}

impl Unanswering {
    fn mount(path: PathBuf) -> Result<Self> {
        use std::os::fd::AsRawFd as _;
        let device = fs::File::options().read(true).write(true).open("/dev/fuse")?;
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
        mount(Some("unanswering"), &path, Some("fuse"), MsFlags::empty(), Some(options.as_str()))?;
        Ok(Self { path, device: Some(device) })
    }
}

impl Drop for Unanswering {
    fn drop(&mut self) {
        // All who wait are told that there is nobody.
        drop(self.device.take());
        let _ = umount2(&self.path, MntFlags::MNT_DETACH);
    }
}

fn a_volume_that_does_not_answer_is_named(env: &Env) -> Result<()> {
    let (_registry, image) = Registry::with_busybox(env)?;
    let daemon = env.daemon()?;
    let mut pods = Pods::connect(env, &daemon)?;
    pods.pull(&image)?;
    let config = pods.pod_config("pod");
    let pod = pods.run(&config)?;
    let place = env.dir("volume")?;
    let unanswering = Unanswering::mount(place.clone())?;
    let start = |pods: &mut Pods<'_>| {
        pods.start(&pod, &config, &image, &["sh", "-c", "exit 7"], |container| {
            let host_path = place.join("data").to_string_lossy().into_owned();
            let container_path = "/data".to_owned();
            container.mounts.push(v1::Mount { host_path, container_path, ..v1::Mount::default() });
        })
    };
    let refused = format!("{:#}", start(&mut pods).expect_err("it never answers"));
    assert!(refused.contains("did not answer within") && refused.contains(&*place.to_string_lossy()), "{refused}");
    drop(unanswering);
    let container = start(&mut pods)?;
    assert_eq!(pods.exit_code(&container)?, 7);
    Ok(())
}

/// Everything of a run of the machine goes: processes, mounts, and what is kept in memory.
fn start_anew(env: &Env, pids: &[Pid]) -> Result<()> {
    for pid in pids {
        // One may have gone with the other.
        let _ = kill(*pid, Signal::SIGKILL);
        wait::until("the process is gone", || (!Path::new(&format!("/proc/{pid}")).exists()).then_some(()))?;
    }
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let places = mounts.lines().rev().filter_map(|line| line.split(' ').nth(1)).map(PathBuf::from);
    let volatile = [env.path("state"), env.path("netns")];
    for place in places.filter(|place| volatile.iter().any(|dir| place.starts_with(dir))) {
        umount2(&place, MntFlags::MNT_DETACH)?;
    }
    // A boot empties `/run`, where the sockets of shims are.
    let bundles = env.path("state/io.containerd.runtime.v2.task/k8s.io");
    for bundle in fs::read_dir(&bundles)?.flatten() {
        let address = fs::read_to_string(bundle.path().join("address")).unwrap_or_default();
        let _ = address.strip_prefix("unix://").map(fs::remove_file);
    }
    for dir in volatile {
        fs::remove_dir_all(dir)?;
    }
    for hierarchy in leaks::hierarchies() {
        let parent = hierarchy.join(env.id("pods"));
        for group in fs::read_dir(&parent).into_iter().flatten().flatten() {
            let _ = fs::remove_dir(group.path());
        }
        let _ = fs::remove_dir(parent);
    }
    let boot = env.path("boot_id");
    fs::write(&boot, "11111111-2222-3333-4444-555555555555\n")?;
    mount(Some(&boot), "/proc/sys/kernel/random/boot_id", None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    Ok(())
}

/// The processes of a pod with one container: the shim, and all of its children.
fn processes(pods: &mut Pods<'_>, container: &str) -> Result<Vec<Pid>> {
    let (_, shim) = pods.processes(container)?;
    let children = fs::read_to_string(format!("/proc/{shim}/task/{shim}/children"))?;
    let children =
        children.split_whitespace().map(|pid| Ok(Pid::from_raw(pid.parse()?))).collect::<Result<Vec<_>>>()?;
    Ok([vec![shim], children].concat())
}

/// Whether a pod's network namespace is gone, as tools are told.
fn network_is_closed(pods: &mut Pods<'_>, pod: &str) -> Result<bool> {
    Ok(pods.pod_info(pod)?["netNamespaceClosed"] == true)
}

fn a_node_that_was_started_anew_knows_what_is_gone(env: &Env) -> Result<()> {
    env.own_mounts()?;
    let (_registry, image) = Registry::with_busybox(env)?;
    let ipam = serde_json::json!({"type": "host-local", "dataDir": env.path("ipam"), "subnet": "10.213.82.0/24"});
    let plugins = serde_json::json!([{"type": "ptp", "ipam": ipam}]);
    let daemon = start(env, &plugins, "exit 1")?;
    let mut pods = Pods::connect(env, &daemon)?;
    pods.pull(&image)?;
    let config = pods.networked_config("pod");
    let pod = pods.run(&config)?;
    let container = pods.start(&pod, &config, &image, &["sleep", "1000"], |_| {})?;
    assert!(!network_is_closed(&mut pods, &pod)?);
    let pids = processes(&mut pods, &container)?;
    std::mem::forget(pods);
    daemon.crash()?;
    start_anew(env, &pids)?;
    let daemon = env.daemon_with(&["--config", &env.path("config.toml").to_string_lossy()])?;
    let mut pods = Pods::connect(env, &daemon)?;
    let all = listed(&mut pods)?;
    assert_eq!(all.len(), 1);
    assert_eq!((all[0].id.as_str(), all[0].state()), (pod.as_str(), v1::PodSandboxState::SandboxNotready));
    assert!(network_is_closed(&mut pods, &pod)?, "it went with the machine");
    let seen = pods.status(&container)?;
    assert_eq!(seen.state(), v1::ContainerState::ContainerExited);
    assert_eq!((seen.exit_code, seen.reason.as_str()), (255, "Unknown"));
    assert!(pods.image(&image)?.is_some(), "images stay");
    // As a kubelet does: the next attempt, and then the former one goes with its address.
    let mut next = config.clone();
    next.metadata.as_mut().expect("metadata").attempt = 1;
    let second = pods.run(&next)?;
    let container = pods.start(&second, &next, &image, &["true"], |_| {})?;
    assert_eq!(pods.exit_code(&container)?, 0);
    pods.remove(&pod)?;
    let taken = fs::read_dir(env.path("ipam").join(env.token()))?.flatten();
    assert_eq!(taken.filter(|entry| entry.file_name().to_string_lossy().starts_with("10.")).count(), 1);
    pods.remove(&second)?;
    assert!(listed(&mut pods)?.is_empty());
    Ok(())
}

/// A daemon whose containers run under `rung` behind `script`, which knows the verb.
fn behind<'env>(env: &'env Env, script: &str, more: &str) -> Result<Daemon<'env>> {
    let text = format!(
        "#!/bin/sh\nrung={}\nfor word; do case $word in create|kill|delete) verb=$word; esac; done\n{script}\n\
         exec $rung \"$@\"\n",
        env.program("rung")?.display(),
    );
    let runtime = env.script("runtime.sh", &text)?;
    env.daemon_configured(&format!("{more}[cri.runtimes.rung]\nbinary = {runtime:?}\n"))
}

/// An image that is here, whose registry is gone.
fn pull(env: &Env, pods: &mut Pods<'_>) -> Result<String> {
    let (_registry, image) = Registry::with_busybox(env)?;
    pods.pull(&image)?;
    Ok(image)
}

/// A pod without a process of its own.
fn without_process(pods: &Pods<'_>) -> v1::PodSandboxConfig {
    let mut config = pods.pod_config("pod");
    let context = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    context.namespace_options.get_or_insert_default().pid = v1::NamespaceMode::Container.into();
    config
}

fn start_in(pods: &mut Pods<'_>, pod: &str, config: &v1::PodSandboxConfig, image: &str, name: &str) -> Result<String> {
    pods.start(pod, config, image, &["sleep", "1000"], |container| {
        container.metadata.get_or_insert_default().name = name.to_owned();
        let context = container.linux.get_or_insert_default().security_context.get_or_insert_default();
        context.namespace_options =
            config.linux.as_ref().and_then(|linux| linux.security_context.clone()?.namespace_options);
    })
}

/// A runtime whose create hangs although the process is there, and whose delete fails for a while.
fn a_create_that_cannot_be_undone_is_undone_in_the_end(env: &Env) -> Result<()> {
    let good = env.path("good");
    let script = format!(
        "case $verb in create) $rung \"$@\"; exec sleep 1000;; delete) [ -e {} ] || exit 1;; esac",
        good.display()
    );
    let daemon = behind(env, &script, "[timeouts]\nshim_call = 2\n")?;
    let mut pods = Pods::connect(env, &daemon)?;
    let image = pull(env, &mut pods)?;
    let config = without_process(&pods);
    let pod = pods.run(&config)?;
    start_in(&mut pods, &pod, &config, &image, "one").expect_err("the runtime's create does not return");
    let containers = pods.runtime.block_on(pods.pods.list_containers(v1::ListContainersRequest::default()))?;
    let id = containers.into_inner().containers.pop().expect("the container").id;
    let bundle = env.path("state/io.containerd.runtime.v2.task/k8s.io").join(id);
    let pid = fs::read_to_string(bundle.join("init.pid"))?;
    until(&pods, "its process is ended", || !Path::new("/proc").join(pid.trim()).exists())?;
    assert!(bundle.exists(), "what is left of it is found by a later daemon");
    fs::write(&good, "")?;
    until(&pods, "it is undone", || !bundle.exists())?;
    pods.remove(&pod)
}

/// The runtime's delete fails for a while.
fn what_an_end_leaves_goes_before_the_record(env: &Env) -> Result<()> {
    let good = env.path("good");
    let script = format!("[ \"$verb\" != delete ] || [ -e {} ] || exit 1", good.display());
    let daemon = behind(env, &script, "")?;
    let mut pods = Pods::connect(env, &daemon)?;
    let image = pull(env, &mut pods)?;
    let config = without_process(&pods);
    let pod = pods.run(&config)?;
    let containers = ["one", "two"].map(|name| start_in(&mut pods, &pod, &config, &image, name));
    let [one, two] = containers.map(|id| id.expect("a container"));
    let bundle = |id: &str| env.path("state/io.containerd.runtime.v2.task/k8s.io").join(id);
    for container_id in [&one, &two] {
        let stop = v1::StopContainerRequest { container_id: container_id.clone(), timeout: 0 };
        pods.runtime.block_on(pods.pods.stop_container(stop))?;
        assert_eq!(pods.exit_code(container_id)?, 137);
    }
    let remove = || v1::RemoveContainerRequest { container_id: one.clone() };
    let refused = pods.runtime.block_on(pods.pods.remove_container(remove())).expect_err("it is not deleted");
    assert!(refused.message().contains(&one), "{refused}");
    assert!(bundle(&one).exists());
    fs::write(&good, "")?;
    pods.runtime.block_on(pods.pods.remove_container(remove()))?;
    assert!(!bundle(&one).exists());
    // Nobody asks for the other one to be removed.
    until(&pods, "it is deleted all the same", || !bundle(&two).exists())?;
    pods.remove(&pod)
}

fn one_that_cannot_be_killed_keeps_no_other_alive(env: &Env) -> Result<()> {
    let bad = env.path("bad");
    let script = format!(
        "[ \"$verb\" != kill ] || [ ! -e {bad} ] || for word; do [ \"$word\" != $(cat {bad}) ] || exit 1; done",
        bad = bad.display()
    );
    let daemon = behind(env, &script, "")?;
    let mut pods = Pods::connect(env, &daemon)?;
    let image = pull(env, &mut pods)?;
    let config = without_process(&pods);
    let pod = pods.run(&config)?;
    let containers = ["one", "two", "three"].map(|name| start_in(&mut pods, &pod, &config, &image, name));
    let mut containers = containers.into_iter().collect::<Result<Vec<_>>>()?;
    // The daemon's own order.
    containers.sort();
    fs::write(&bad, &containers[0])?;
    let stop = || v1::StopPodSandboxRequest { pod_sandbox_id: pod.clone() };
    let failed = pods.runtime.block_on(pods.pods.stop_pod_sandbox(stop())).expect_err("one of them runs on");
    assert!(failed.message().contains(&containers[0]), "{failed}");
    for other in &containers[1..] {
        let request = v1::ContainerStatusRequest { container_id: other.clone(), verbose: false };
        let seen = pods.runtime.block_on(pods.pods.container_status(request))?.into_inner().status.expect("status");
        assert_eq!((seen.state(), seen.exit_code), (v1::ContainerState::ContainerExited, 137));
    }
    fs::remove_file(&bad)?;
    pods.remove(&pod)
}

/// Puts somebody before a shim that passes on what is said, but a second look at a process, and what comes after it, only once
/// `go` is there.
fn hold_looks_back(env: &Env, bundle: &Path, go: PathBuf) -> Result<()> {
    let (file, between) = (bundle.join("bootstrap.json"), env.path("between.sock"));
    let mut bootstrap: serde_json::Value = serde_json::from_slice(&fs::read(&file)?)?;
    let shim = bootstrap["address"].as_str().unwrap_or_default().trim_start_matches("unix://").to_owned();
    bootstrap["address"] = format!("unix://{}", between.display()).into();
    fs::write(file, bootstrap.to_string())?;
    let (listener, looks) = (UnixListener::bind(between)?, Arc::new(AtomicUsize::new(0)));
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let Ok(server) = UnixStream::connect(&shim) else { return };
            let (Ok(mut answers), Ok(mut answered)) = (server.try_clone(), client.try_clone()) else { return };
            std::thread::spawn(move || {
                // A shim may leave before it has answered: its end is passed on too.
                let _ = io::copy(&mut answers, &mut answered);
                answered.shutdown(Shutdown::Both)
            });
            let (mut client, mut server, mut bytes) = (client, server, vec![0; 64 << 10]);
            let (looks, go) = (looks.clone(), go.clone());
            std::thread::spawn(move || {
                while let Ok(length @ 1..) = client.read(&mut bytes) {
                    let is_look = bytes[..length].windows(5).any(|word| word == b"State");
                    let is_held = is_look && looks.fetch_add(1, Ordering::Relaxed) > 0;
                    while is_held && !go.exists() {
                        std::thread::sleep(std::time::Duration::from_millis(20));
                    }
                    if server.write_all(&bytes[..length]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    Ok(())
}

/// The daemon finds it, and then has to wait for what it says longer than a start may take.
fn a_container_is_taken_over_however_late_its_shim_answers(env: &Env) -> Result<()> {
    let patient = "[timeouts]\nshim_state = 100\n";
    let daemon = env.daemon_configured(patient)?;
    let mut pods = Pods::connect(env, &daemon)?;
    let image = pull(env, &mut pods)?;
    let config = without_process(&pods);
    let pod = pods.run(&config)?;
    let container = start_in(&mut pods, &pod, &config, &image, "late")?;
    let (first, _) = pods.processes(&container)?;
    std::mem::forget(pods);
    daemon.crash()?;
    let bundle = env.path("state/io.containerd.runtime.v2.task/k8s.io").join(&container);
    hold_looks_back(env, &bundle, env.path("go"))?;
    let daemon = env.daemon_configured(patient)?;
    assert!(daemon.log().contains("container is not settled yet"), "{}", daemon.log());
    let mut pods = Pods::connect(env, &daemon)?;
    fs::write(env.path("go"), "")?;
    kill(first, Signal::SIGKILL)?;
    assert_eq!(pods.exit_code(&container)?, 137, "nobody waits for its end");
    pods.remove(&pod)
}
