//! One way through all four programs, and the same way for a client that knows nothing of Gantry.

use anyhow::Context;
use integration_tests::{Env, Image, Registry, Result, Test, tests, wait};

pub(crate) const TESTS: &[Test] = tests![
    pulls_and_runs [Root, Overlay],
    detached_container_logs_limits_and_execs [Root, Overlay],
    exit_codes_are_dockers [Root, Overlay],
    ctr_pulls_runs_and_lists [Root, Overlay],
    container_outlives_a_crash_of_the_daemon [Root, Overlay],
    daemon_stops_when_asked [Root],
];

/// Prints the memory limit, wherever the cgroup version puts it.
const LIMIT: &str = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max";

fn pushed(env: &Env) -> Result<(Registry, String)> {
    let registry = Registry::start(env)?;
    let image = Image::busybox()?.push(&registry, "test/busybox", "latest")?;
    Ok((registry, image))
}

fn pulls_and_runs(env: &Env) -> Result<()> {
    let (_registry, image) = pushed(env)?;
    let daemon = env.daemon()?;
    daemon.gantry(&["pull", &image])?.ok()?;
    assert!(daemon.gantry(&["images"])?.ok()?.stdout.contains("test/busybox"));
    let ran =
        daemon.gantry(&["run", "--rm", "-e", "WHO=world", &image, "sh", "-c", "echo hello $WHO; pwd; id -u"])?.ok()?;
    assert_eq!(ran.stdout, "hello world\n/\n0\n");
    assert_eq!(daemon.gantry(&["ps", "-aq"])?.ok()?.text(), "", "--rm left the container");
    daemon.gantry(&["rmi", &image])?.ok()?;
    assert!(!daemon.gantry(&["images"])?.ok()?.stdout.contains("test/busybox"));
    Ok(())
}

fn detached_container_logs_limits_and_execs(env: &Env) -> Result<()> {
    let (_registry, image) = pushed(env)?;
    let daemon = env.daemon()?;
    let script = format!("{LIMIT}; echo problem >&2; exec sleep 1000");
    let run = ["run", "-d", "--name", "web", "--memory", "64m", "--pids-limit", "50", &image, "sh", "-c", &script];
    let id = daemon.gantry(&run)?.ok()?;
    assert_eq!(id.text().lines().count(), 1, "{id}");
    wait::until("the log has both lines", || {
        let logs = daemon.gantry(&["logs", "web"]).ok()?;
        (logs.stdout == "67108864\n" && logs.stderr == "problem\n").then_some(())
    })?;
    assert!(daemon.gantry(&["ps"])?.ok()?.stdout.contains("web"));
    let inside = daemon.gantry(&["exec", "-e", "A=b", "web", "sh", "-c", "echo $A; ps | grep -c sleep"])?.ok()?;
    assert!(inside.stdout.starts_with("b\n"), "{inside}");
    daemon.gantry(&["exec", "web", "sh", "-c", "exit 7"])?.exits(7)?;
    daemon.gantry(&["stop", "--time", "1", "web"])?.ok()?;
    assert!(!daemon.gantry(&["ps"])?.ok()?.stdout.contains("web"));
    daemon.gantry(&["rm", "web"])?.ok()?;
    Ok(())
}

fn exit_codes_are_dockers(env: &Env) -> Result<()> {
    let (_registry, image) = pushed(env)?;
    let daemon = env.daemon()?;
    let run = |args: &[&str]| daemon.gantry(&[&["run", "--rm", &image], args].concat());
    run(&["sh", "-c", "exit 42"])?.exits(42)?;
    daemon.gantry(&["run", "-d", "--name", "killed", &image, "sleep", "1000"])?.ok()?;
    daemon.gantry(&["kill", "killed"])?.ok()?;
    assert_eq!(daemon.gantry(&["wait", "killed"])?.ok()?.text(), "137");
    daemon.gantry(&["rm", "killed"])?.ok()?;
    let missing = run(&["no-such-program"])?.exits(127)?;
    assert!(missing.stderr.contains("no-such-program"), "{missing}");
    run(&["/etc/passwd"])?.exits(126)?;
    daemon.gantry(&["run", "--no-such-option", &image])?.exits(125)?;
    assert_eq!(daemon.gantry(&["ps", "-aq"])?.ok()?.text(), "", "a failed run left its container");
    Ok(())
}

fn ctr_pulls_runs_and_lists(env: &Env) -> Result<()> {
    let (_registry, image) = pushed(env)?;
    let daemon = env.daemon()?;
    daemon.ctr(&["images", "pull", "--plain-http", &image])?.ok()?;
    let id = env.id("ctr");
    // Debian's ctr would ask for runc's shim: the runtime is named.
    let run = ["run", "--runtime", "io.containerd.rung.v2"];
    let once = daemon.ctr(&[&run[..], &["--rm", &image, &id, "echo", "from ctr"]].concat())?.ok()?;
    assert_eq!(once.text(), "from ctr");
    daemon.ctr(&[&run[..], &["--detach", &image, &id, "sleep", "1000"]].concat())?.ok()?;
    let tasks = daemon.ctr(&["tasks", "ls"])?.ok()?;
    assert!(tasks.stdout.contains(&id) && tasks.stdout.contains("RUNNING"), "{tasks}");
    assert!(daemon.ctr(&["snapshots", "ls"])?.ok()?.stdout.contains("Committed"));
    assert!(daemon.ctr(&["content", "ls"])?.ok()?.stdout.contains("sha256:"));
    let inside = daemon.ctr(&["tasks", "exec", "--exec-id", "one", &id, "hostname"])?.ok()?;
    assert!(!inside.text().is_empty());
    daemon.ctr(&["tasks", "kill", "--signal", "SIGKILL", &id])?.ok()?;
    wait::until("the task is stopped", || daemon.ctr(&["tasks", "ls"]).ok()?.stdout.contains("STOPPED").then_some(()))?;
    daemon.ctr(&["tasks", "rm", &id])?;
    daemon.ctr(&["containers", "rm", &id])?.ok()?;
    Ok(())
}

fn container_outlives_a_crash_of_the_daemon(env: &Env) -> Result<()> {
    let (_registry, image) = pushed(env)?;
    let daemon = env.daemon()?;
    let count = "i=0; while :; do echo $i; i=$((i + 1)); sleep 0.1; done";
    daemon.gantry(&["run", "-d", "--name", "web", &image, "sh", "-c", count])?.ok()?;
    let lines = |text: &str| text.lines().count();
    wait::until("the first lines", || (lines(&daemon.gantry(&["logs", "web"]).ok()?.stdout) > 2).then_some(()))?;
    daemon.crash()?;
    std::thread::sleep(wait::seconds(1));

    let daemon = env.daemon()?;
    assert!(daemon.gantry(&["ps"])?.ok()?.stdout.contains("web"), "{}", daemon.log());
    let logs = daemon.gantry(&["logs", "web"])?.ok()?;
    let numbers: Vec<usize> = logs.stdout.lines().map(str::parse).collect::<Result<_, _>>().context("log lines")?;
    assert!(numbers.iter().copied().eq(0..numbers.len()) && numbers.len() > 8, "lost or repeated lines: {logs}");
    assert_eq!(daemon.gantry(&["exec", "web", "echo", "still here"])?.ok()?.text(), "still here");
    daemon.gantry(&["stop", "--time", "1", "web"])?.ok()?;
    daemon.gantry(&["rm", "web"])?.ok()?;
    Ok(())
}

fn daemon_stops_when_asked(env: &Env) -> Result<()> {
    let daemon = env.daemon()?;
    let socket = daemon.socket().to_owned();
    assert!(daemon.stop()?.success());
    assert!(!socket.exists(), "the socket is still there");
    Ok(())
}
