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
    a_service_manager_is_told_of_a_reload [Root],
];

/// Has the daemon read a configuration with this in it, and answers with what it logs of that.
fn reload(daemon: &Daemon<'_>, path: &Path, from: &str, to: &str) -> Result<String> {
    let text = std::fs::read_to_string(path)?;
    ensure!(text.contains(from), "{from:?} is not in {text}");
    std::fs::write(path, text.replace(from, to))?;
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
