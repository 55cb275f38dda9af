//! The daemon goes and comes back: by request, by crash, at the worst moment. Containers do not notice, and nothing that
//! happened meanwhile is lost.

use std::fs;
use std::path::PathBuf;

use anyhow::Context;
use integration_tests::{Env, Image, Registry, Result, Test, output, tests, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub(crate) const TESTS: &[Test] = tests![
    exits_while_no_daemon_runs_are_kept [Root, Overlay],
    a_dead_shim_takes_its_container_along [Root, Overlay],
    a_shim_that_dies_unseen_is_cleaned_up_after [Root, Overlay],
    a_crash_at_any_step_of_a_run_leaves_nothing_behind [Root, Overlay],
    a_crash_at_any_step_of_an_end_is_made_good [Root, Overlay],
    two_daemons_do_not_share_a_root [Root],
    many_containers_live_through_many_restarts [Root, Overlay],
];

fn pushed(env: &Env) -> Result<(Registry, String)> {
    let registry = Registry::start(env)?;
    let image = Image::busybox()?.push(&registry, "test/busybox", "latest")?;
    Ok((registry, image))
}

fn exits_while_no_daemon_runs_are_kept(env: &Env) -> Result<()> {
    let (_registry, image) = pushed(env)?;
    let daemon = env.daemon()?;
    daemon.gantry(&["run", "-d", "--name", "short", &image, "sh", "-c", "sleep 1; echo last; exit 7"])?.ok()?;
    daemon.gantry(&["run", "-d", "--rm", "--name", "gone", &image, "sleep", "1"])?.ok()?;
    daemon.crash()?;
    std::thread::sleep(wait::seconds(2));
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
    let (_registry, image) = pushed(env)?;
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
    let (_registry, image) = pushed(env)?;
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
    let (_registry, image) = pushed(env)?;
    env.daemon()?.gantry(&["pull", &image])?.ok()?;
    for step in STEPS_OF_A_RUN {
        let mut daemon = env.daemon_dying_at(step)?;
        daemon.gantry(&["run", "-d", "--name", "web", &image, "sleep", "1000"])?;
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

/// Steps that follow from the end of a container, and of its removal.
const STEPS_OF_AN_END: &[&str] = &[
    "kill.before",
    "kill.after",
    "engine.ended",
    "engine.recorded",
    "delete.process",
    "delete.shim",
    "delete.done",
    "engine.removed.snapshot",
];

fn a_crash_at_any_step_of_an_end_is_made_good(env: &Env) -> Result<()> {
    let (_registry, image) = pushed(env)?;
    for step in STEPS_OF_AN_END {
        let mut daemon = env.daemon_dying_at(step)?;
        daemon
            .gantry(&["run", "-d", "--name", "web", &image, "sh", "-c", "trap 'exit 3' TERM; sleep 1000 & wait"])?
            .ok()?;
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
    let (_registry, image) = pushed(env)?;
    let mut daemon = env.daemon()?;
    let count = 8;
    for number in 0..count {
        daemon.gantry(&["run", "-d", "--name", &format!("c{number}"), &image, "sleep", "1000"])?.ok()?;
    }
    let pids = |daemon: &integration_tests::Daemon<'_>| -> Result<Vec<String>> {
        let format = ["inspect", "--format", "{{.State.Pid}}"];
        (0..count)
            .map(|number| Ok(daemon.gantry(&[&format[..], &[&format!("c{number}")]].concat())?.ok()?.stdout))
            .collect()
    };
    let before = pids(&daemon)?;
    for round in 0..5 {
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
