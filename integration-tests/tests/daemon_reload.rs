//! Reading the configuration again while the daemon runs.

use std::os::unix::net::UnixDatagram;
use std::path::Path;

use anyhow::ensure;
use gantry_proto::runtime::v1;
use integration_tests::pods::Pods;
use integration_tests::{Daemon, Env, Registry, Result, Test, tests, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub(crate) const TESTS: &[Test] = tests![
    a_changed_configuration_is_taken_over [Root, Overlay],
    a_configuration_that_is_gone_changes_nothing [Root, Overlay],
    limits_can_be_changed_where_less_is_allowed_by_now [Root, Overlay],
    a_service_manager_is_told_of_a_reload [Root],
];

/// Has the daemon read a configuration with this in it, and answers with what it logs of that.
fn reload(daemon: &Daemon<'_>, path: &Path, from: &str, to: &str) -> Result<String> {
    let text = std::fs::read_to_string(path)?;
    ensure!(text.contains(from), "{from:?} is not in {text}");
    std::fs::write(path, text.replace(from, to))?;
    read_again(daemon)
}

fn read_again(daemon: &Daemon<'_>) -> Result<String> {
    let before = daemon.log().len();
    kill(Pid::from_raw(daemon.pid().try_into()?), Signal::SIGHUP)?;
    wait::until("the configuration is read", || {
        let log = daemon.log();
        let new = log.get(before..)?;
        (new.contains("configuration read again") && new.ends_with('\n')).then(|| new.to_owned())
    })
}

fn handlers(pods: &mut Pods<'_>) -> Result<Vec<String>> {
    let status = pods.runtime.block_on(pods.pods.status(v1::StatusRequest::default()))?.into_inner();
    Ok(status.runtime_handlers.into_iter().map(|handler| handler.name).collect())
}

fn a_changed_configuration_is_taken_over(env: &Env) -> Result<()> {
    let (_registry, image) = Registry::with_busybox(env)?;
    let text = format!(
        "[log]\nlevel = \"info\"\n[grpc]\nmax_message = 16777216\n[cri]\npinned_images = []\n[cri.runtimes.rung]\n\
         [cri.nri]\nsocket = {:?}\n",
        env.path("nri.sock")
    );
    let daemon = env.daemon_configured(&text)?;
    let path = env.path("config.toml");
    let mut pods = Pods::connect(env, &daemon)?;
    pods.pull(&image)?;
    let config = pods.pod_config("pod");
    let pod = pods.run(&config)?;
    let container = pods.start(&pod, &config, &image, &["sleep", "1000"], |_| {})?;
    let process = pods.processes(&container)?;
    assert_eq!(handlers(&mut pods)?, ["", "rung"]);

    // What is wrong changes nothing, of what is right beside it neither.
    let (good, bad) = ("[cri.runtimes.rung]\n", "[cri.runtimes.rung]\n[cri.runtimes.other]\nsnapshotter = \"none\"\n");
    let said = reload(&daemon, &path, good, bad)?;
    assert!(said.contains("ERROR") && said.contains("cri.runtimes.other.snapshotter"), "{said}");
    let said = reload(&daemon, &path, "level = \"info\"", "level = \"inof\"")?;
    assert!(said.contains("ERROR") && said.contains("is no level"), "{said}");
    let said = reload(&daemon, &path, "max_message = ", "max_massage = ")?;
    assert!(said.contains("ERROR") && said.contains("max_massage") && said.contains("config.toml"), "{said}");
    assert_eq!(handlers(&mut pods)?, ["", "rung"]);

    std::fs::write(&path, &text)?;
    let new = format!("pinned_images = [{image:?}]\n{}", bad.replace("\"none\"", "\"native\""));
    let said = reload(&daemon, &path, "pinned_images = []\n[cri.runtimes.rung]\n", &new)?;
    assert!(said.contains("taken over") && said.contains("cri.pinned_images, cri.runtimes.other"), "{said}");
    assert!(!said.contains("restart"), "{said}");
    assert_eq!(handlers(&mut pods)?, ["", "other", "rung"]);
    let (usual, other) = ("[cri]\n", "[cri]\ndefault_runtime = \"other\"\n");
    let said = reload(&daemon, &path, usual, other)?;
    assert!(said.contains("needs a restart") && said.contains("cri.default_runtime"), "{said}");
    reload(&daemon, &path, other, usual)?;
    assert!(pods.image(&image)?.is_some_and(|image| image.pinned), "pinned since then");
    let said = reload(&daemon, &path, "max_message = 16777216", "max_message = 8388608")?;
    assert!(said.contains("needs a restart") && said.contains("grpc.max_message"), "{said}");
    reload(&daemon, &path, "level = \"info\"", "level = \"debug\"")?;
    let request = v1::VersionRequest { version: "v1".to_owned() };
    pods.runtime.block_on(pods.pods.version(request))?;
    wait::until("more is logged", || daemon.log().contains("DEBUG").then_some(()))?;
    let said = reload(&daemon, &path, "max_message = 8388608", "max_message = 16777216")?;
    assert!(said.contains("nothing has changed"), "{said}");

    // What ran goes on, and what is made now is made as it is configured now.
    assert_eq!(pods.processes(&container)?, process);
    let mut other = pods.pod_config("other");
    other.labels.clear();
    let request = v1::RunPodSandboxRequest { config: Some(other), runtime_handler: "other".to_owned() };
    let other = pods.runtime.block_on(pods.pods.run_pod_sandbox(request))?.into_inner().pod_sandbox_id;
    pods.remove(&other)?;
    pods.remove(&pod)
}

/// Nothing said is everything as by default, which may be more than an administrator has allowed.
fn a_configuration_that_is_gone_changes_nothing(env: &Env) -> Result<()> {
    env.own_etc()?;
    let path = Path::new("/etc/gantry/config.toml");
    let text = format!("[cri]\nrestore_checkpoints = true\n[cri.nri]\nsocket = {:?}\n", env.path("nri.sock"));
    let daemon = env.daemon_with_default_file(path, &text)?;
    std::fs::remove_file(path)?;
    let said = read_again(&daemon)?;
    assert!(said.contains("ERROR") && said.contains("config.toml: is not there any more"), "{said}");
    std::fs::write(path, text.replace("true", "false"))?;
    let said = read_again(&daemon)?;
    assert!(said.contains("taken over") && said.contains("cri.restore_checkpoints"), "{said}");
    Ok(())
}

fn limits_can_be_changed_where_less_is_allowed_by_now(env: &Env) -> Result<()> {
    let (_registry, image) = Registry::with_busybox(env)?;
    let handler = "[cri.runtimes.open]\nallowed_annotations = [\"devices.crio.io\"]\n";
    let text = format!(
        "[cri]\nallowed_devices = [\"/dev/null\"]\n[cri.runtimes.rung]\n{handler}[cri.nri]\nsocket = {:?}\n",
        env.path("nri.sock")
    );
    let daemon = env.daemon_configured(&text)?;
    let path = env.path("config.toml");
    let mut pods = Pods::connect(env, &daemon)?;
    pods.pull(&image)?;
    let mut config = pods.pod_config("pod");
    config.annotations.insert("devices.crio.io".to_owned(), "/dev/null:/dev/mine".to_owned());
    let request = v1::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: "open".to_owned() };
    let pod = pods.runtime.block_on(pods.pods.run_pod_sandbox(request))?.into_inner().pod_sandbox_id;
    let container = pods.start(&pod, &config, &image, &["sleep", "1000"], |_| {})?;
    for (cpu_shares, from, to) in [(300, "[\"/dev/null\"]", "[]"), (400, handler, "")] {
        let said = reload(&daemon, &path, from, to)?;
        assert!(said.contains("taken over"), "{said}");
        let linux = Some(v1::LinuxContainerResources { cpu_shares, ..Default::default() });
        let update =
            v1::UpdateContainerResourcesRequest { container_id: container.clone(), linux, ..Default::default() };
        pods.runtime.block_on(pods.pods.update_container_resources(update))?;
        let limits = pods.status(&container)?.resources.and_then(|limits| limits.linux);
        assert_eq!(limits.map(|limits| limits.cpu_shares), Some(cpu_shares));
    }
    pods.remove(&pod)
}

fn a_service_manager_is_told_of_a_reload(env: &Env) -> Result<()> {
    let path = env.path("notify.sock");
    let manager = UnixDatagram::bind(&path)?;
    manager.set_read_timeout(Some(wait::seconds(30)))?;
    let heard = || -> Result<String> {
        let mut bytes = [0; 256];
        let length = manager.recv(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes[..length]).into_owned())
    };
    let mut daemon = env.daemon_begun(&[], &[("NOTIFY_SOCKET", &path.to_string_lossy())])?;
    daemon.wait_ready()?;
    assert_eq!(heard()?, "READY=1");
    for _ in 0..2 {
        let now = || -> Result<i64> {
            let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)?;
            Ok(now.tv_sec() * 1_000_000 + now.tv_nsec() / 1_000)
        };
        let before = now()?;
        kill(Pid::from_raw(daemon.pid().try_into()?), Signal::SIGHUP)?;
        let said = heard()?;
        let since = said.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").and_then(|rest| rest.parse::<i64>().ok());
        assert!(since.is_some_and(|since| (before..=now().unwrap_or(0)).contains(&since)), "{said}");
        assert_eq!(heard()?, "READY=1");
    }
    Ok(())
}
