//! Tasks for a client that knows nothing of Gantry: Debian's `ctr` 1.6.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Child, Stdio};

use anyhow::Context;
use integration_tests::daemon::WITHOUT_ALIASES;
use integration_tests::pty::Pty;
use integration_tests::{Bundle, Daemon, Env, Registry, Result, Test, tests, wait};

pub(crate) const TESTS: &[Test] = tests![
    a_task_from_start_to_delete [Root, Overlay, EveryHost],
    events_come_in_order [Root, Overlay],
    clients_find_the_parts_they_look_for [Root],
    refusals_have_the_codes_clients_branch_on [Root, Overlay],
    another_shim_holds_tasks_too [Root, Overlay, Containerd],
    who_names_no_runtime_gets_ours [Root, Overlay, Containerd],
    labels_keep_a_container_running [Root, Overlay],
    a_terminal_for_a_person_with_ctr [Root, Overlay],
    a_shim_answers_whoever_finds_its_socket [Root, Overlay],
    a_plain_program_can_be_a_hook [Root],
];

const RUN: [&str; 3] = ["run", "--runtime", "io.containerd.rung.v2"];

fn pulled(env: &Env, daemon: &Daemon<'_>) -> Result<(Registry, String)> {
    let (registry, image) = Registry::with_busybox(env)?;
    daemon.ctr(&["images", "pull", "--plain-http", &image])?.ok()?;
    Ok((registry, image))
}

fn a_task_from_start_to_delete(env: &Env) -> Result<()> {
    let daemon = env.daemon()?;
    let (_registry, image) = pulled(env, &daemon)?;
    let id = env.id("task");
    daemon.ctr(&[&RUN[..], &["-d", &image, &id, "sleep", "1000"]].concat())?.ok()?;
    let status = |wanted: &str| -> Result<()> {
        let listed = daemon.ctr(&["tasks", "ls"])?.ok()?;
        assert!(listed.stdout.lines().any(|line| line.contains(&id) && line.contains(wanted)), "{listed}");
        Ok(())
    };
    status("RUNNING")?;
    daemon.ctr(&["tasks", "pause", &id])?.ok()?;
    status("PAUSED")?;
    daemon.ctr(&["tasks", "resume", &id])?.ok()?;
    status("RUNNING")?;
    let exec = daemon.ctr(&["tasks", "exec", "--exec-id", "e", &id, "sh", "-c", "echo $$; exit 5"])?;
    assert_eq!(exec.code(), 5, "{exec}");
    assert!(daemon.ctr(&["tasks", "ps", &id])?.ok()?.stdout.lines().count() >= 2);
    assert!(daemon.ctr(&["tasks", "metrics", &id])?.ok()?.stdout.contains("memory"));
    daemon.ctr(&["tasks", "kill", "-s", "KILL", &id])?.ok()?;
    wait::until("the task stops", || daemon.ctr(&["tasks", "ls"]).ok()?.stdout.contains("STOPPED").then_some(()))?;
    let deleted = daemon.ctr(&["tasks", "rm", &id])?;
    assert!(deleted.stderr.contains("137"), "the exit code is told: {deleted}");
    daemon.ctr(&["containers", "rm", &id])?.ok()?;
    assert!(!daemon.ctr(&["containers", "ls"])?.ok()?.stdout.contains(&id));
    Ok(())
}

/// Ends the process when dropped.
struct Listener(Child);

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn events_come_in_order(env: &Env) -> Result<()> {
    let daemon = env.daemon()?;
    let (_registry, image) = pulled(env, &daemon)?;
    let log = env.path("events");
    let mut command = std::process::Command::new("ctr");
    env.prepare(&mut command);
    command.arg("--address").arg(daemon.socket()).args(["--namespace", env.namespace(), "events"]);
    let file = std::fs::File::create(&log).context("events")?;
    let listener = Listener(command.stdin(Stdio::null()).stdout(file).stderr(Stdio::null()).spawn()?);
    let id = env.id("events");
    let seen = || std::fs::read_to_string(&log).unwrap_or_default();
    // A subscription has no beginning that shows, so containers are run until one is seen whole.
    wait::until("all events of a container", || {
        daemon.ctr(&[&RUN[..], &["--rm", &image, &id, "true"]].concat()).ok()?.ok().ok()?;
        seen().contains("/containers/delete").then_some(())
    })?;
    drop(listener);
    let text = seen();
    let wanted =
        ["/containers/create", "/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete", "/containers/delete"];
    let last = text.rfind(wanted[0]).context("no container was created")?;
    let places: Option<Vec<usize>> = wanted.iter().map(|topic| text[last..].find(topic)).collect();
    let places = places.with_context(|| format!("events are missing:\n{text}"))?;
    assert!(places.is_sorted(), "{text}");
    Ok(())
}

fn clients_find_the_parts_they_look_for(env: &Env) -> Result<()> {
    let daemon = env.daemon()?;
    let plugins = daemon.ctr(&["plugins", "ls"])?.ok()?.stdout;
    for (kind, id) in [
        ("io.containerd.snapshotter.v1", "overlayfs"),
        ("io.containerd.runtime.v2", "task"),
        ("io.containerd.grpc.v1", "tasks"),
        ("io.containerd.differ.v1", "walking"),
    ] {
        let found = plugins.lines().any(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            words.first() == Some(&kind) && words.get(1) == Some(&id) && words.last() == Some(&"ok")
        });
        assert!(found, "{kind} {id} is not in\n{plugins}");
    }
    let first = daemon.ctr(&["version"])?.ok()?.stdout;
    assert!(daemon.stop()?.success());
    let second = env.daemon()?.ctr(&["version"])?.ok()?.stdout;
    let uuid = |text: &str| text.lines().find(|line| line.contains("UUID")).map(str::to_owned);
    assert!(uuid(&first).is_some());
    assert_eq!(uuid(&first), uuid(&second), "the daemon's identity outlives it");
    Ok(())
}

fn refusals_have_the_codes_clients_branch_on(env: &Env) -> Result<()> {
    let daemon = env.daemon()?;
    let (_registry, image) = pulled(env, &daemon)?;
    let id = env.id("twice");
    daemon.ctr(&[&RUN[..], &["-d", &image, &id, "sleep", "1000"]].concat())?.ok()?;
    let refused = |args: &[&str], word: &str| -> Result<()> {
        let message = daemon.ctr(args)?.fails()?;
        assert!(message.contains(word), "ctr {}: {message}", args.join(" "));
        Ok(())
    };
    refused(&["tasks", "kill", "nobody"], "not found")?;
    refused(&["containers", "info", "nobody"], "not found")?;
    refused(&[&RUN[..], &["-d", &image, &id, "true"]].concat(), "already exists")?;
    refused(&["tasks", "rm", &id], "failed precondition")?;
    refused(&["tasks", "exec", "--exec-id", "e", &id, "no-such-program"], "no-such-program")?;
    daemon.ctr(&["tasks", "rm", "-f", &id])?;
    daemon.ctr(&["containers", "rm", &id])?.ok()?;
    Ok(())
}

/// containerd's own shim, with runc.
fn another_shim_holds_tasks_too(env: &Env) -> Result<()> {
    const RUNC: [&str; 3] = ["run", "--runtime", "io.containerd.runc.v2"];
    let daemon = env.daemon_configured(WITHOUT_ALIASES)?;
    let (_registry, image) = pulled(env, &daemon)?;
    let (id, short) = (env.id("runc"), env.id("short"));
    let cgroup = format!("/{}", env.id("runc"));
    let fixed = [&RUNC[..], &["--cgroup", &cgroup]].concat();
    let ran = daemon.ctr(&[&fixed[..], &["--rm", &image, &short, "sh", "-c", "echo hi; exit 4"]].concat())?.exits(4)?;
    assert_eq!(ran.text(), "hi");
    daemon.ctr(&[&fixed[..], &["-d", &image, &id, "sleep", "1000"]].concat())?.ok()?;
    daemon.crash()?;
    // One that would have ours hold it now goes on with the shim that it has.
    let daemon = env.daemon()?;
    assert!(daemon.ctr(&["tasks", "ls"])?.ok()?.stdout.contains("RUNNING"), "found again after a crash");
    daemon.ctr(&["tasks", "exec", "--exec-id", "e", &id, "sh", "-c", "exit 5"])?.exits(5)?;
    assert!(daemon.ctr(&["tasks", "metrics", &id])?.ok()?.stdout.contains("pids.current"));
    daemon.ctr(&["tasks", "kill", "-s", "KILL", &id])?.ok()?;
    wait::until("the task stops", || daemon.ctr(&["tasks", "ls"]).ok()?.stdout.contains("STOPPED").then_some(()))?;
    daemon.ctr(&["tasks", "rm", &id])?;
    daemon.ctr(&["containers", "rm", &id])?.ok()?;
    Ok(())
}

/// Clients ask for containerd's shim although nobody told them to. They have what they came for, and a path of its own is
/// still the way to the other.
fn who_names_no_runtime_gets_ours(env: &Env) -> Result<()> {
    let daemon = env.daemon()?;
    let (_registry, image) = pulled(env, &daemon)?;
    for (id, runtime, shim) in [
        ("plain", &[][..], "containerd-shim-rung-v2"),
        ("path", &["--runtime", "/usr/bin/containerd-shim-runc-v2"], "containerd-shim-runc-v2"),
    ] {
        let (id, cgroup) = (env.id(id), format!("/{}", env.id(id)));
        daemon.ctr(&[&["run", "-d", "--cgroup", &cgroup], runtime, &[&image, &id, "sleep", "1000"]].concat())?.ok()?;
        let bundle = env.path("state/io.containerd.runtime.v2.task").join(env.namespace()).join(&id);
        let held_by = std::fs::read_to_string(bundle.join("shim-binary-path"))?;
        assert_eq!(Path::new(held_by.trim_end()).file_name(), Some(OsStr::new(shim)), "{id}");
        daemon.ctr(&["tasks", "rm", "--force", &id])?.ok()?;
        daemon.ctr(&["containers", "rm", &id])?.ok()?;
    }
    Ok(())
}

fn a_terminal_for_a_person_with_ctr(env: &Env) -> Result<()> {
    let daemon = env.daemon()?;
    let (_registry, image) = pulled(env, &daemon)?;
    let id = env.id("tty");
    let mut command = std::process::Command::new("ctr");
    env.prepare(&mut command);
    command.arg("--address").arg(daemon.socket()).args(["--namespace", env.namespace()]);
    command.args([&RUN[..], &["--rm", "--tty", &image, &id, "sh"]].concat());
    let mut pty = Pty::start(&command)?;
    pty.types("tty\n")?;
    pty.expect("/dev/pts/0")?;
    // ctr hands sizes on a moment after the process has started.
    let shows = |pty: &mut Pty, size: &str| {
        wait::until(size, || {
            pty.types("stty size\n").ok()?;
            std::thread::sleep(std::time::Duration::from_millis(100));
            pty.shown().contains(size).then_some(())
        })
    };
    shows(&mut pty, "24 80")?;
    pty.resize(40, 100)?;
    shows(&mut pty, "40 100")?;
    pty.types("exit 7\n")?;
    assert_eq!(pty.end()?.code(), Some(7));
    Ok(())
}

/// `gantryd oci-hook`, which tells a program what runtimes tell hooks only.
fn a_plain_program_can_be_a_hook(env: &Env) -> Result<()> {
    let mut bundle = Bundle::new(env, "hooked", &["true"])?;
    let (said, id) = (env.path("said"), env.id("hooked"));
    let script =
        format!("test {{{{pid}}}} -gt 0 && echo {{{{id}}}} {{{{ annotation \"note\" }}}} > {}", said.display());
    let path = env.command("gantryd")?.get_program().to_string_lossy().into_owned();
    bundle.set("/annotations", serde_json::json!({ "note": "kept" }));
    let args = ["gantryd", "oci-hook", "--", "/bin/sh", "-c", &script];
    bundle.set("/hooks", serde_json::json!({ "createRuntime": [{ "path": path, "args": args }] }));
    env.run_rung(&["run", "--bundle", bundle.write()?, &id])?.ok()?;
    assert_eq!(std::fs::read_to_string(&said)?.trim(), format!("{id} kept"));
    Ok(())
}

fn a_shim_answers_whoever_finds_its_socket(env: &Env) -> Result<()> {
    let daemon = env.daemon()?;
    let (_registry, image) = pulled(env, &daemon)?;
    let id = env.id("direct");
    daemon.ctr(&[&RUN[..], &["-d", &image, &id, "sleep", "1000"]].concat())?.ok()?;
    // ctr makes the socket's name from the daemon's address, the namespace and the container.
    let state = daemon.ctr(&["shim", "--id", &id, "state"])?.ok()?.stdout;
    assert!(state.contains(&id) && state.contains("\"status\": 2"), "{state}");
    daemon.ctr(&["tasks", "rm", "-f", &id])?;
    daemon.ctr(&["containers", "rm", &id])?.ok()?;
    Ok(())
}

/// What nerdctl's `--restart` stands on.
fn labels_keep_a_container_running(env: &Env) -> Result<()> {
    let daemon = env.daemon_configured("[runtime]\nrestart_interval = 1\n")?;
    let (_registry, image) = pulled(env, &daemon)?;
    let (id, log) = (env.id("kept"), env.path("kept.log"));
    let labels = [
        "--label=containerd.io/restart.status=running".to_owned(),
        "--label=containerd.io/restart.policy=on-failure:2".to_owned(),
        format!("--label=containerd.io/restart.loguri=file://{}", log.display()),
    ];
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    let args = [&RUN[..], &labels, &["-d", "--null-io", &image, &id, "sh", "-c", "echo once more; exit 3"]].concat();
    daemon.ctr(&args)?.ok()?;
    let lines = || std::fs::read_to_string(&log).unwrap_or_default().lines().count();
    wait::until_within(wait::seconds(60), "two restarts", || (lines() == 2).then_some(()))?;
    let info = daemon.ctr(&["containers", "info", &id])?.ok()?.stdout;
    assert!(info.contains("\"containerd.io/restart.count\": \"2\""), "{info}");
    daemon.ctr(&["containers", "label", &id, "containerd.io/restart.status=stopped"])?.ok()?;
    daemon.ctr(&["tasks", "rm", &id])?;
    daemon.ctr(&["containers", "rm", &id])?.ok()?;
    Ok(())
}
