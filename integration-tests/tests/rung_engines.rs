//! The container engines of Debian with our runtime in place of runc: podman and dockerd.

use std::path::Path;

use anyhow::ensure;
use integration_tests::engines::{Dockerd, Engine, Server, words};
use integration_tests::pty::Pty;
use integration_tests::{Env, Need, Result, Test, tests, wait};

pub(crate) const TESTS: &[Test] = tests![
    podman_runs_its_containers[Root, Podman],
    dockerd_runs_its_containers[Root, Dockerd],
];

/// What people do with an engine, from the first container to the last.
fn everyday(engine: &Engine<'_>) -> Result<()> {
    engine.import()?;
    assert_eq!(engine.run(&["--rm"], &["echo", "hi"])?.ok()?.text(), "hi");
    let name = engine.env.id("web");
    engine.run(&["--detach", "--name", &name, "--memory", "64m", "--pids-limit", "50"], &["sleep", "600"])?.ok()?;
    let limit = "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null";
    let limit = engine.call(&["exec", &name, "sh", "-c", limit])?;
    ensure!(limit.stdout.contains(&(64 << 20).to_string()), "the limit is not in force: {limit:?}");
    // Each call of an engine takes an emulated machine ten seconds.
    if Need::Fast.unmet().is_none() {
        exits(engine, &name)?;
        looks_and_changes(engine, &name)?;
    }
    engine.call(&["stop", "--time", "1", &name])?.ok()?;
    engine.call(&["rm", &name])?.ok()?;
    ensure!(!engine.call(&["ps", "--all", "--quiet"])?.ok()?.text().contains(char::is_alphanumeric));
    Ok(())
}

fn exits(engine: &Engine<'_>, name: &str) -> Result<()> {
    engine.run(&["--rm"], &["sh", "-c", "exit 7"])?.exits(7)?;
    engine.run(&["--rm"], &["no-such-program"])?.exits(127)?;
    engine.call(&["exec", name, "sh", "-c", "exit 3"])?.exits(3)?;
    engine.call(&["exec", name, "/bin"])?.exits(126)?;
    let mut terminal = Pty::start(&engine.command(&["exec", "--interactive", "--tty", name, "sh"]))?;
    terminal.types("tty; exit 5\n")?;
    terminal.expect("/dev/pts/0")?;
    ensure!(terminal.end()?.code() == Some(5), "{}", terminal.shown());
    Ok(())
}

fn looks_and_changes(engine: &Engine<'_>, name: &str) -> Result<()> {
    ensure!(engine.call(&["top", name])?.ok()?.text().contains("sleep 600"));
    ensure!(engine.call(&["stats", "--no-stream", name])?.ok()?.text().lines().count() == 2);
    let paused = || -> Result<bool> {
        let filter = ["ps", "--filter", "status=paused", "--format", "{{.Names}}"];
        Ok(engine.call(&filter)?.ok()?.text().contains(name))
    };
    engine.call(&["pause", name])?.ok()?;
    ensure!(paused()?, "not paused");
    engine.call(&["unpause", name])?.ok()?;
    ensure!(!paused()?, "paused for ever");
    if engine.program == "docker" {
        engine.call(&["update", "--memory", "96m", "--memory-swap", "96m", name])?.ok()?;
    }
    Ok(())
}

fn podman_runs_its_containers(env: &Env) -> Result<()> {
    let (root, runtime) = (env.root().display(), env.program("rung")?);
    let global = format!(
        "--root {root}/root --runroot {root}/run --tmpdir {root}/tmp --storage-driver vfs --events-backend file \
         --cgroup-manager cgroupfs --runtime {}",
        runtime.display()
    );
    // Podman raises these limits beyond what a machine may allow, and leaves a cgroup of its monitor behind.
    let run = format!("/{} --cgroups no-conmon --ulimit nofile=1024:1024 --ulimit nproc=1024:1024", env.token());
    let engine = Engine { env, program: "podman", global: words(&global), run: words(&run) };
    let outcome = everyday(&engine);
    engine.call(&["rm", "--all", "--force", "--time", "0"])?.ok()?;
    outcome
}

fn containerd(env: &Env, socket: &Path) -> Result<Server> {
    let root = env.root().display();
    let config = format!(
        "version = 2\nroot = \"{root}/cr\"\nstate = \"{root}/cs\"\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
         [grpc]\naddress = \"{}\"\n[ttrpc]\naddress = \"{root}/c.ttrpc\"\n",
        socket.display()
    );
    std::fs::write(env.path("containerd.toml"), config)?;
    Server::start(env, "containerd", &words(&format!("--config {root}/containerd.toml")))
}

fn dockerd_runs_its_containers(env: &Env) -> Result<()> {
    let socket = env.path("c.sock");
    let mut containerd = containerd(env, &socket)?;
    wait::until_within(wait::seconds(20), "containerd's socket", || socket.exists().then_some(()))?;
    let runtime = format!("--add-runtime rung={} --default-runtime rung", env.program("rung")?.display());
    let dockerd = Dockerd::start(env, &socket, &runtime)?;
    let outcome = everyday(&dockerd.engine);
    dockerd.stop()?;
    containerd.stop(env)?;
    outcome
}
