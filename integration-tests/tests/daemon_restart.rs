//! The daemon goes and comes back: by request, by crash, at the worst moment. Containers do not notice, and nothing that
//! happened meanwhile is lost.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use integration_tests::{Daemon, Env, Ran, Registry, Result, Test, output, tests, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub(crate) const TESTS: &[Test] = tests![
    exits_while_no_daemon_runs_are_kept [Root, Overlay],
    a_dead_shim_takes_its_container_along [Root, Overlay],
    a_shim_that_dies_unseen_is_cleaned_up_after [Root, Overlay],
    a_crash_at_any_step_of_a_run_leaves_nothing_behind [Root, Overlay],
    a_crash_at_any_step_of_an_end_is_made_good [Root, Overlay],
    a_crash_at_any_step_of_a_removal_at_the_end_leaves_nothing [Root, Overlay],
    a_crash_in_a_removal_leaves_no_container_without_files [Root, Overlay],
    a_start_that_was_cut_short_is_undone [Root, Overlay],
    two_daemons_do_not_share_a_root [Root],
    many_containers_live_through_many_restarts [Root, Overlay],
    a_crash_at_any_step_of_an_exec_harms_nothing [Root, Overlay],
    a_followed_log_goes_on_after_a_restart [Root, Overlay],
    stopped_shims_hold_up_nobody_else [Root, Overlay],
    policies_say_what_is_started_again [Root, Overlay],
    restarts_go_on_after_a_restart_of_the_daemon [Root, Overlay],
    shims_are_found_without_their_bundles [Root, Overlay],
    a_crash_while_a_container_is_held_lets_it_go_on [Root, Overlay],
];

fn exits_while_no_daemon_runs_are_kept(env: &Env) -> Result<()> {
    let (_registry, image) = Registry::with_busybox(env)?;
    let daemon = env.daemon()?;
    let (place, go) = (env.dir("place")?, "until [ -e /place/go ]; do sleep 0.05; done");
    let volume = format!("{}:/place", place.display());
    let run = |kept: &[&str], name: &str, script: &str| -> Result<String> {
        let words = ["--name", name, "-v", &volume, &image, "sh", "-c", script];
        daemon.gantry(&[&["run", "-d"], kept, &words].concat())?.ok()?;
        let pid = daemon.gantry(&["inspect", "-f", "{{.State.Pid}}", name])?.ok()?;
        Ok(format!("/proc/{}", pid.text()))
    };
    let ends = [run(&[], "short", &format!("{go}; echo last; exit 7"))?, run(&["--rm"], "gone", go)?];
    daemon.crash()?;
    fs::write(place.join("go"), "")?;
    for process in ends {
        wait::until("both end", || (!Path::new(&process).exists()).then_some(()))?;
    }
    let daemon = env.daemon()?;
    assert_eq!(daemon.gantry(&["wait", "short"])?.ok()?.text(), "7");
    assert_eq!(daemon.gantry(&["logs", "short"])?.ok()?.text(), "last");
    wait::until("the container of --rm is gone", || {
        let listed = daemon.gantry(&["ps", "-a", "--format", "{{.Names}}"]).ok()?.stdout;
        (listed.trim() == "short").then_some(())
    })?;
    daemon.gantry(&["start", "short"])?.ok()?;
    assert_eq!(daemon.gantry(&["wait", "short"])?.ok()?.text(), "7");
    daemon.gantry(&["rm", "short"])?.ok()?;
    Ok(())
}

/// The shims that bundles of this test name.
fn shim_pids(env: &Env) -> Vec<Pid> {
    let tasks = env.path("state/io.containerd.runtime.v2.task").join(env.namespace());
    let bundles = fs::read_dir(tasks).into_iter().flatten().flatten().map(|entry| entry.path());
    let read = |bundle: PathBuf| fs::read_to_string(bundle.join("shim.pid")).ok()?.trim().parse().ok();
    bundles.filter_map(read).map(Pid::from_raw).collect()
}

fn a_dead_shim_takes_its_container_along(env: &Env) -> Result<()> {
    let (_registry, image) = Registry::with_busybox(env)?;
    let daemon = env.daemon()?;
    daemon.gantry(&["run", "-d", "--name", "web", &image, "sleep", "1000"])?.ok()?;
    for pid in shim_pids(env) {
        kill(pid, Signal::SIGKILL).context("kill the shim")?;
    }
    assert_eq!(daemon.gantry(&["wait", "web"])?.ok()?.text(), "137");
    assert!(daemon.gantry(&["ps", "-a"])?.ok()?.stdout.contains("Exited (137)"));
    daemon.gantry(&["start", "web"])?.ok()?;
    daemon.gantry(&["rm", "-f", "web"])?.ok()?;
    Ok(())
}

fn a_shim_that_dies_unseen_is_cleaned_up_after(env: &Env) -> Result<()> {
    let (_registry, image) = Registry::with_busybox(env)?;
    let daemon = env.daemon()?;
    daemon.gantry(&["run", "-d", "--name", "web", &image, "sleep", "1000"])?.ok()?;
    daemon.crash()?;
    for pid in shim_pids(env) {
        kill(pid, Signal::SIGKILL).context("kill the shim")?;
    }
    let daemon = env.daemon()?;
    assert_eq!(daemon.gantry(&["wait", "web"])?.ok()?.text(), "137");
    daemon.gantry(&["rm", "web"])?.ok()?;
    assert!(shim_pids(env).is_empty());
    Ok(())
}

/// Steps of creating and starting a container.
const STEPS_OF_A_RUN: &[&str] = &[
    "engine.snapshot",
    "engine.record",
    "create.bundle",
    "create.shim",
    "create.connected",
    "create.done",
    "engine.created",
    "start.before",
    "start.after",
    "engine.started",
];

fn a_crash_at_any_step_of_a_run_leaves_nothing_behind(env: &Env) -> Result<()> {
    let (_registry, image) = Registry::with_busybox(env)?;
    env.daemon()?.gantry(&["pull", &image])?.ok()?;
    // One that stays attached has its shim before its record.
    let attached = ["create.bundle", "create.shim", "create.connected", "engine.record", "create.done"];
    let steps = STEPS_OF_A_RUN.iter().map(|step| (step, true)).chain(attached.iter().map(|step| (step, false)));
    for (step, detached) in steps {
        let mut daemon = env.daemon_dying_at(step)?;
        let words: &[&str] = if detached { &["run", "-d"] } else { &["run"] };
        daemon.gantry(&[words, &["--name", "web", &image, "sleep", "1000"]].concat())?;
        assert!(daemon.died(), "the daemon never came to {step}");
        let daemon = env.daemon()?;
        let listed = daemon.gantry(&["ps", "-a", "--format", "{{.Names}}"])?.ok()?.stdout;
        // It is there whole or not at all, and if it is there it can be removed; the name is free again either way.
        if listed.trim() == "web" {
            daemon.gantry(&["rm", "-f", "web"])?.ok().context(*step)?;
        }
        daemon.gantry(&["run", "--rm", "--name", "web", &image, "true"])?.ok().context(*step)?;
        assert_eq!(daemon.ctr(&["snapshots", "ls"])?.ok()?.stdout.matches("Active").count(), 0, "{step}");
        wait::until(&format!("no shim is left after {step}"), || shim_pids(env).is_empty().then_some(()))?;
    }
    Ok(())
}

fn a_start_that_was_cut_short_is_undone(env: &Env) -> Result<()> {
    let (_registry, image) = Registry::with_busybox(env)?;
    env.daemon()?.gantry(&["pull", &image])?.ok()?;
    for (policy, becomes) in [("no", "0 false 255"), ("always", "1 true 0")] {
        let mut daemon = env.daemon_dying_at("engine.created")?;
        daemon.gantry(&["run", "-d", "--restart", policy, "--name", policy, &image, "sleep", "1000"])?;
        assert!(daemon.died(), "the daemon never came to start it");
        let daemon = env.daemon()?;
        let state = "{{.RestartCount}} {{.State.Running}} {{.State.ExitCode}}";
        let shown = || daemon.gantry(&["inspect", "--format", state, policy]).ok();
        wait::until(policy, || shown().filter(|ran| ran.text() == becomes))
            .with_context(|| format!("{:?}", shown()))?;
        daemon.gantry(&["rm", "-f", policy])?.ok()?;
    }
    Ok(())
}

fn policies_say_what_is_started_again(env: &Env) -> Result<()> {
    let (_registry, image) = Registry::with_busybox(env)?;
    let daemon = env.daemon()?;
    let run = |policy: &str, name: &str, script: &str| {
        let args = ["run", "-d", "--restart", policy, "--name", name, &image, "sh", "-c", script];
        daemon.gantry(&args)?.ok()
    };
    run("on-failure:2", "fails", "echo once; exit 3")?;
    let count = |daemon: &Daemon<'_>, name: &str| {
        let ran = daemon.gantry(&["inspect", "--format", "{{.RestartCount}} {{.State.Running}}", name]).ok()?;
        Some(ran.text().to_owned())
    };
    // It is counted before it runs.
    let said = || Some(daemon.gantry(&["logs", "fails"]).ok()?.ok().ok()?.stdout);
    wait::until("two restarts", || (said()? == "once\nonce\nonce\n").then_some(()))?;
    wait::until("the last end", || (count(&daemon, "fails")? == "2 false").then_some(()))?;
    run("always", "always", "sleep 1000")?;
    run("unless-stopped", "unless", "sleep 1000")?;
    run("unless-stopped", "stays", "sleep 1000")?;
    for name in ["always", "unless"] {
        daemon.gantry(&["stop", "-t", "0", name])?.ok()?;
        assert_eq!(count(&daemon, name).as_deref(), Some("0 false"), "{name} was stopped by hand");
    }
    daemon.gantry(&["restart", "-t", "0", "stays"])?.ok()?;
    assert_eq!(count(&daemon, "stays").as_deref(), Some("0 true"));
    let refused = daemon.gantry(&["run", "--rm", "--restart", "always", &image, "true"])?.fails()?;
    assert!(refused.contains("--restart"), "{refused}");
    daemon.crash()?;
    for pid in shim_pids(env) {
        kill(pid, Signal::SIGKILL)?;
    }
    let daemon = env.daemon()?;
    for (name, running) in [("always", true), ("stays", true), ("unless", false), ("fails", false)] {
        let wanted = format!("{running}");
        let state = || (count(&daemon, name)?.ends_with(&wanted)).then_some(());
        wait::until(&format!("{name} is {running} after a restart of the daemon"), state)?;
    }
    daemon.gantry(&["rm", "-f", "always", "stays", "unless", "fails"])?.ok()?;
    Ok(())
}

/// Of a container that waits for its next start, and of one whose shim is found dead only later.
fn restarts_go_on_after_a_restart_of_the_daemon(env: &Env) -> Result<()> {
    let (_registry, image) = Registry::with_busybox(env)?;
    let daemon = env.daemon()?;
    let run = |policy: &str, name: &str, script: &str| {
        daemon.gantry(&["run", "-d", "--restart", policy, "--name", name, &image, "sh", "-c", script])?.ok()
    };
    run("always", "web", "exec sleep 1000")?;
    let shims = shim_pids(env);
    run("on-failure:20", "fails", "exit 3")?;
    let count = |daemon: &Daemon<'_>, name: &str| {
        let ran = daemon.gantry(&["inspect", "--format", "{{.RestartCount}} {{.State.Running}}", name]).ok()?;
        Some(ran.text().to_owned())
    };
    let restarts = |daemon: &Daemon<'_>| -> Option<u32> { count(daemon, "fails")?.split(' ').next()?.parse().ok() };
    // The pause before the next is more than a second by now.
    let before = wait::until("four restarts", || restarts(&daemon).filter(|restarts| *restarts >= 4))?;
    // A restart is counted before it is carried out.
    std::thread::sleep(wait::seconds(1) / 2);
    daemon.crash()?;
    shims.iter().try_for_each(|pid| kill(*pid, Signal::SIGSTOP))?;
    let daemon = env.daemon()?;
    wait::until_within(wait::seconds(30), "another", || (restarts(&daemon)? > before).then_some(()))?;
    shims.iter().try_for_each(|pid| kill(*pid, Signal::SIGKILL))?;
    wait::until_within(wait::seconds(60), "a new run", || (count(&daemon, "web")? == "1 true").then_some(()))?;
    daemon.gantry(&["rm", "-f", "web", "fails"])?.ok()?;
    Ok(())
}

/// What the state directory does not say, the processes do.
fn shims_are_found_without_their_bundles(env: &Env) -> Result<()> {
    let (_registry, image) = Registry::with_busybox(env)?;
    let daemon = env.daemon()?;
    for name in ["damaged", "lost"] {
        daemon.gantry(&["run", "-d", "--name", name, &image, "sleep", "1000"])?.ok()?;
    }
    let inspect = |daemon: &Daemon<'_>, what: &str, name: &str| -> Result<String> {
        Ok(daemon.gantry(&["inspect", "--format", what, name])?.ok()?.text().to_owned())
    };
    let pids = [inspect(&daemon, "{{.State.Pid}}", "damaged")?, inspect(&daemon, "{{.State.Pid}}", "lost")?];
    let bundles = env.path("state/io.containerd.runtime.v2.task").join(env.namespace());
    let damaged = bundles.join(inspect(&daemon, "{{.Id}}", "damaged")?);
    let lost = bundles.join(inspect(&daemon, "{{.Id}}", "lost")?);
    daemon.crash()?;
    fs::write(damaged.join("bootstrap.json"), "{\"version\":")?;
    for name in ["address", "shim-binary-path"] {
        fs::remove_file(damaged.join(name))?;
    }
    env.run("umount", &["--lazy", &lost.join("rootfs").to_string_lossy()])?.ok()?;
    fs::remove_dir_all(&lost)?;
    let daemon = env.daemon()?;
    for (name, pid) in ["damaged", "lost"].iter().zip(&pids) {
        assert_eq!(inspect(&daemon, "{{.State.Pid}}", name)?, *pid, "{name}: {}", daemon.log());
        assert_eq!(daemon.gantry(&["exec", name, "echo", "inside"])?.ok()?.text(), "inside");
        daemon.gantry(&["stop", "-t", "0", name])?.ok()?;
        assert_eq!(daemon.gantry(&["wait", name])?.ok()?.text(), "137");
        daemon.gantry(&["start", name])?.ok()?;
        daemon.gantry(&["rm", "-f", name])?.ok()?;
    }
    Ok(())
}

fn a_crash_while_a_container_is_held_lets_it_go_on(env: &Env) -> Result<()> {
    let (_registry, image) = Registry::with_busybox(env)?;
    for step in ["hold.noted", "hold.paused"] {
        let mut daemon = env.daemon_dying_at(step)?;
        daemon.gantry(&["run", "-d", "--name", "web", &image, "sleep", "1000"])?.ok()?;
        daemon.gantry(&["commit", "web", "test/web"])?.fails()?;
        assert!(daemon.died(), "{step}: was not reached");
        let daemon = env.daemon()?;
        wait::until(&format!("{step}: it goes on"), || {
            let status = daemon.gantry(&["inspect", "-f", "{{.State.Status}}", "web"]).ok()?;
            (status.text() == "running").then_some(())
        })?;
        assert_eq!(daemon.gantry(&["exec", "web", "echo", "inside"])?.ok()?.text(), "inside", "{step}");
        // What a person has frozen stays so.
        daemon.gantry(&["pause", "web"])?.ok()?;
        daemon.gantry(&["commit", "web", "test/web"])?.ok()?;
        daemon.crash()?;
        let daemon = env.daemon()?;
        let status = daemon.gantry(&["inspect", "-f", "{{.State.Status}}", "web"])?.ok()?;
        assert_eq!(status.text(), "paused", "{step}");
        daemon.gantry(&["rm", "-f", "web"])?.ok()?;
    }
    Ok(())
}

/// Steps of running one more process.
const STEPS_OF_AN_EXEC: &[&str] = &["exec.before", "exec.after", "start.before:2", "start.after:2"];

fn a_crash_at_any_step_of_an_exec_harms_nothing(env: &Env) -> Result<()> {
    let (_registry, image) = Registry::with_busybox(env)?;
    for step in STEPS_OF_AN_EXEC {
        let mut daemon = env.daemon_dying_at(step)?;
        daemon.gantry(&["run", "-d", "--name", "web", &image, "sleep", "1000"])?.ok()?;
        daemon.gantry(&["exec", "web", "sleep", "1"])?.fails()?;
        assert!(daemon.died(), "the daemon never came to {step}");
        let daemon = env.daemon()?;
        let said = daemon.gantry(&["exec", "web", "echo", "again"])?.ok().context(*step)?;
        assert_eq!(said.text(), "again");
        wait::until(&format!("the exec is over after {step}"), || {
            let listed = daemon.gantry(&["top", "web"]).ok()?.stdout;
            (listed.lines().count() == 2).then_some(())
        })?;
        daemon.gantry(&["rm", "-f", "web"])?.ok().context(*step)?;
        wait::until(&format!("no shim is left after {step}"), || shim_pids(env).is_empty().then_some(()))?;
    }
    Ok(())
}

fn a_followed_log_goes_on_after_a_restart(env: &Env) -> Result<()> {
    let (_registry, image) = Registry::with_busybox(env)?;
    let daemon = env.daemon()?;
    let count = "i=0; while test $i -lt 40; do echo $i; i=$((i+1)); sleep 0.1; done";
    daemon.gantry(&["run", "-d", "--name", "web", &image, "sh", "-c", count])?.ok()?;
    let (output, log) = (env.path("followed"), env.path("complaints"));
    let mut follow = daemon.gantry_command(&["logs", "-f", "web"])?;
    let mut follow = follow.stdout(fs::File::create(&output)?).stderr(fs::File::create(&log)?).spawn()?;
    let read = || fs::read_to_string(&output).unwrap_or_default();
    wait::until("the first lines", || read().contains("3\n").then_some(()))?;
    daemon.crash()?;
    let daemon = env.daemon()?;
    let ended = wait::until_within(wait::seconds(60), "the log to end", || follow.try_wait().transpose());
    let complaints = fs::read_to_string(&log)?;
    assert!(ended??.success(), "{complaints}");
    let wanted: String = (0..40).map(|number| format!("{number}\n")).collect();
    assert_eq!(read(), wanted, "{complaints}");
    assert!(complaints.contains("waiting for it to come back"), "{complaints}");
    daemon.gantry(&["rm", "web"])?.ok()?;
    Ok(())
}

/// Resident memory of a process, in KiB.
fn resident(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

fn stopped_shims_hold_up_nobody_else(env: &Env) -> Result<()> {
    let (_registry, image) = Registry::with_busybox(env)?;
    let daemon = env.daemon()?;
    let names: Vec<String> = (0..wait::amount(6, 50)).map(|number| format!("c{number}")).collect();
    for name in &names {
        daemon.gantry(&["run", "-d", "--name", name, &image, "sleep", "100000"])?.ok()?;
    }
    let stopped: Vec<Pid> = shim_pids(env).into_iter().take(wait::amount(2, 10)).collect();
    for pid in &stopped {
        kill(*pid, Signal::SIGSTOP)?;
    }
    let before = resident(daemon.pid())?;
    let outcome = (0..wait::amount(wait::rounds(2), 60)).try_for_each(|_| -> Result<()> {
        let begun = std::time::Instant::now();
        let listed = daemon.ctr(&["tasks", "ls"])?.ok()?.stdout;
        assert_eq!(listed.matches("RUNNING").count(), names.len() - stopped.len(), "{listed}");
        assert_eq!(listed.lines().count(), names.len() + 1, "those that do not answer are listed too: {listed}");
        let stats = daemon.gantry(&["stats", "--no-stream", "--format", "{{.Name}}"])?.ok()?.stdout;
        assert!(stats.lines().count() >= names.len() - stopped.len(), "{stats}");
        daemon.gantry(&["run", "--rm", &image, "true"])?.ok()?;
        // Once a second, and no oftener.
        std::thread::sleep(std::time::Duration::from_secs(1).saturating_sub(begun.elapsed()));
        Ok(())
    });
    let after = resident(daemon.pid())?;
    daemon.crash()?;
    let daemon = env.daemon()?;
    let unknown = daemon.ctr(&["tasks", "ls"]).and_then(Ran::ok);
    let silent = unknown.iter().flat_map(|it| it.stdout.lines()).find(|line| line.contains("UNKNOWN"));
    let silent = silent.and_then(|line| line.split_whitespace().next()).unwrap_or("nobody").to_owned();
    let asked = daemon.ctr(&["tasks", "kill", &silent]).and_then(Ran::fails);
    for pid in &stopped {
        kill(*pid, Signal::SIGCONT)?;
    }
    outcome?;
    assert!(after < before + (20 << 10), "the daemon grew from {before} to {after} KiB");
    let unknown = unknown?.stdout;
    assert_eq!(unknown.matches("UNKNOWN").count(), stopped.len(), "a new daemon knows of them: {unknown}");
    assert!(asked?.contains("unavailable"), "who asks is not told that they are gone");
    wait::until_within(wait::seconds(60), "all to be found", || {
        let listed = daemon.ctr(&["tasks", "ls"]).ok()?.stdout;
        (listed.matches("RUNNING").count() == names.len()).then_some(())
    })?;
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    daemon.gantry(&[&["rm", "-f"], &names[..]].concat())?.ok()?;
    Ok(())
}

/// Steps that follow from the end of a container, and of its removal.
const STEPS_OF_AN_END: &[&str] =
    &["kill.before", "kill.after", "engine.ended", "engine.recorded", "delete.process", "delete.shim", "delete.done"];

fn a_crash_at_any_step_of_an_end_is_made_good(env: &Env) -> Result<()> {
    let (_registry, image) = Registry::with_busybox(env)?;
    for step in STEPS_OF_AN_END {
        let mut daemon = env.daemon_dying_at(step)?;
        let script = "trap 'exit 3' TERM; echo ready; sleep 1000 & wait";
        daemon.gantry(&["run", "-d", "--name", "web", &image, "sh", "-c", script])?.ok()?;
        // Without its trap the first process of a container ignores the signal.
        let said = || Some(daemon.gantry(&["logs", "web"]).ok()?.ok().ok()?.stdout);
        wait::until("the trap", || (said()? == "ready\n").then_some(()))?;
        daemon.gantry(&["stop", "web"])?;
        daemon.gantry(&["rm", "web"])?;
        assert!(daemon.died(), "the daemon never came to {step}");
        let daemon = env.daemon()?;
        daemon.gantry(&["stop", "web"])?.ok().context(*step)?;
        let code = daemon.gantry(&["wait", "web"])?.ok().context(*step)?;
        assert_eq!(code.text(), "3", "exit code after {step}");
        daemon.gantry(&["rm", "web"])?.ok().context(*step)?;
        wait::until(&format!("no shim is left after {step}"), || shim_pids(env).is_empty().then_some(()))?;
    }
    Ok(())
}

/// Steps that follow from the end of a container that is removed then. Some are taken side by side.
const STEPS_OF_A_REMOVAL: &[&str] = &[
    "engine.recorded",
    "delete.process",
    "delete.shim",
    "snapshot.removing",
    "snapshot.removed",
    "engine.removed.record",
];

fn a_crash_at_any_step_of_a_removal_at_the_end_leaves_nothing(env: &Env) -> Result<()> {
    let (_registry, image) = Registry::with_busybox(env)?;
    env.daemon()?.gantry(&["pull", &image])?.ok()?;
    let entries = |path: PathBuf| fs::read_dir(path).map_or(0, Iterator::count);
    let snapshots = || entries(env.path("root/io.containerd.snapshotter.v1.overlayfs/snapshots"));
    let before = snapshots();
    for step in STEPS_OF_A_REMOVAL {
        let mut daemon = env.daemon_dying_at(step)?;
        daemon.gantry(&["run", "--rm", "--name", "web", &image, "true"])?;
        assert!(daemon.died(), "the daemon never came to {step}");
        let daemon = env.daemon()?;
        wait::until(&format!("nothing is left after {step}"), || {
            let listed = daemon.gantry(&["ps", "-aq"]).ok()?.ok().ok()?.stdout;
            let directories = entries(env.path("root/engine").join(env.namespace()));
            let left = (listed.is_empty(), directories, snapshots(), shim_pids(env).len());
            (left == (true, 0, before, 0)).then_some(())
        })?;
    }
    Ok(())
}

fn a_crash_in_a_removal_leaves_no_container_without_files(env: &Env) -> Result<()> {
    let (_registry, image) = Registry::with_busybox(env)?;
    let mut daemon = env.daemon_dying_at("snapshot.removing")?;
    daemon.gantry(&["create", "--name", "web", &image])?.ok()?;
    daemon.gantry(&["rm", "web"])?;
    assert!(daemon.died(), "the daemon never removed the snapshot");
    let daemon = env.daemon()?;
    daemon.gantry(&["inspect", "web"])?.fails()?;
    daemon.gantry(&["system", "gc"])?.ok()?;
    daemon.gantry(&["system", "fsck"])?.ok()?;
    Ok(())
}

fn two_daemons_do_not_share_a_root(env: &Env) -> Result<()> {
    let daemon = env.daemon()?;
    let mut second = env.command("gantryd")?;
    second.arg("--root").arg(env.path("root")).arg("--state").arg(env.path("other"));
    let refused = output::run(second)?.fails()?;
    assert!(refused.contains("in use by another gantryd") && refused.contains("--root"), "{refused}");
    assert!(daemon.stop()?.success());
    Ok(())
}

fn many_containers_live_through_many_restarts(env: &Env) -> Result<()> {
    let (_registry, image) = Registry::with_busybox(env)?;
    let mut daemon = env.daemon()?;
    let count = wait::amount(8, 200);
    for number in 0..count {
        daemon.gantry(&["run", "-d", "--name", &format!("c{number}"), &image, "sleep", "100000"])?.ok()?;
    }
    let pids = |daemon: &Daemon<'_>| -> Result<Vec<String>> {
        let format = ["inspect", "--format", "{{.State.Pid}}"];
        (0..count)
            .map(|number| Ok(daemon.gantry(&[&format[..], &[&format!("c{number}")]].concat())?.ok()?.stdout))
            .collect()
    };
    let before = pids(&daemon)?;
    for round in 0..wait::amount(wait::rounds(5), 50) {
        if round % 2 == 0 {
            daemon.crash()?
        } else {
            assert!(daemon.stop()?.success());
        }
        daemon = env.daemon()?;
        assert_eq!(pids(&daemon)?, before, "round {round}");
    }
    let names: Vec<String> = (0..count).map(|number| format!("c{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    daemon.gantry(&[&["rm", "-f"], &names[..]].concat())?.ok()?;
    Ok(())
}
