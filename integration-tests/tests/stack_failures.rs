//! Bad input through the whole stack: one clear line that names the thing, a code that is not 0, and nothing half done.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use integration_tests::{Env, Result, Stack, Test, output, tests, wait};

pub(crate) const TESTS: &[Test] = tests![
    socket_is_not_for_everyone [Root],
    what_keeps_the_daemon_from_starting_is_said [Root],
    an_unknown_container_is_named [Root],
    errors_say_a_thing_once [Root, Overlay],
    start_and_rm_take_turns [Root, Overlay],
    a_delete_that_fails_is_tried_again [Root, Overlay],
];

fn socket_is_not_for_everyone(env: &Env) -> Result<()> {
    let daemon = env.daemon()?;
    // The build directory may be closed to other users.
    let program = env.path("gantry");
    fs::copy(env.program("gantry")?, &program)?;
    let mut command = Command::new(program);
    command.env("GANTRY_ADDRESS", daemon.socket()).arg("ps").uid(1000).gid(1000);
    let ran = output::run(command)?;
    let shown = ran.to_string();
    let said = ran.fails()?.to_lowercase();
    assert!(said.contains("permission denied") && said.contains("gantryd.sock"), "{shown}");
    Ok(())
}

fn what_keeps_the_daemon_from_starting_is_said(env: &Env) -> Result<()> {
    let program = env.path("gantryd");
    fs::copy(env.program("gantryd")?, &program)?;
    let start = |user: u32, args: &[&str]| -> Result<String> {
        let mut command = Command::new(&program);
        command.arg("--root").arg(env.path("root")).arg("--state").arg(env.path("state")).args(args);
        command.uid(user).gid(user);
        output::run(command)?.fails()
    };
    let missing = env.path("missing.toml").display().to_string();
    for (user, args, says) in [
        (1000, &[][..], "permission denied; gantryd must be started as root"),
        (0, &["--log-level", "inof"], "\"inof\" is no level"),
        (0, &["--config", &missing], "missing.toml: no such file or directory"),
    ] {
        let said = start(user, args)?;
        assert!(said.contains(says) && !said.contains("os error"), "{args:?}: {said}");
    }
    Ok(())
}

fn an_unknown_container_is_named(env: &Env) -> Result<()> {
    let daemon = env.daemon()?;
    for verb in ["exec", "logs", "stop", "kill", "rm", "inspect"] {
        let tail: &[&str] = if verb == "exec" { &["no-such", "true"] } else { &["no-such"] };
        let ran = daemon.gantry(&[&[verb], tail].concat())?;
        let shown = ran.to_string();
        assert!(ran.fails()?.contains("no-such"), "{shown}");
    }
    Ok(())
}

/// An error passes through four programs, and each of them knows the container.
fn errors_say_a_thing_once(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    stack.gantry(&["pull", "IMAGE"])?.ok()?;
    stack.gantry(&["run", "-d", "--name", "web", "IMAGE", "sleep", "600"])?.ok()?;
    for arguments in [&["run", "IMAGE", "no-such-program"][..], &["exec", "web", "no-such-program"]] {
        let said = stack.gantry(arguments)?.exits(127)?.stderr;
        assert_eq!(said.trim().lines().count(), 1, "{said}");
        let mut ids: Vec<&str> = said
            .split([' ', ':'])
            .filter(|word| word.len() >= 32 && word.chars().all(|letter| letter.is_ascii_hexdigit()))
            .collect();
        let all = ids.len();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(all, ids.len(), "names the same thing twice: {said}");
        assert_eq!(said.matches("failed: ").count(), 1, "{said}");
        assert!(said.contains("no-such-program"), "{said}");
    }
    Ok(())
}

/// Whichever comes first, no process may be left that nobody has a record of.
fn start_and_rm_take_turns(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    stack.gantry(&["pull", "IMAGE"])?.ok()?;
    for round in 0..12_u64 {
        let name = format!("web{round}");
        stack.gantry(&["create", "--name", &name, "IMAGE", "sleep", "600"])?.ok()?;
        let mut start = stack.command(&["start", &name])?.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        std::thread::sleep(Duration::from_millis(8 * round));
        let removed = stack.gantry(&["rm", &name])?;
        let started = start.wait()?;
        assert!(started.success() != (removed.code() == 0), "start {started}, rm {removed}");
    }
    let containers = stack.gantry(&["ps", "-aq", "--no-trunc"])?.ok()?.stdout;
    let tasks = stack.daemon.ctr(&["tasks", "ls", "-q"])?.ok()?.stdout;
    for task in tasks.split_whitespace() {
        assert!(containers.contains(task), "{task} runs without a container");
    }
    Ok(())
}

/// A runtime whose delete fails for a while, beside a shim of its own.
fn a_delete_that_fails_is_tried_again(env: &Env) -> Result<()> {
    let (bin, good) = (env.dir("bin")?, env.path("good"));
    let (shim, runtime) = (bin.join("containerd-shim-rung-v2"), bin.join("rung"));
    fs::copy(env.program("containerd-shim-rung-v2")?, &shim)?;
    let script = format!(
        "#!/bin/sh\nfor word; do case $word in delete) [ -e {} ] || exit 1;; esac; done\nexec {} \"$@\"\n",
        good.display(),
        env.program("rung")?.display()
    );
    fs::write(&runtime, script)?;
    fs::set_permissions(&runtime, fs::Permissions::from_mode(0o755))?;
    let stack = Stack::start_configured(env, &format!("[runtime]\ndefault = {shim:?}\n"))?;
    let kept = stack.gantry(&["run", "-d", "--name", "kept", "IMAGE", "true"])?.ok()?.text().to_owned();
    let going = stack.gantry(&["run", "-d", "--rm", "--name", "going", "IMAGE", "true"])?.ok()?.text().to_owned();
    let bundle = |id: &str| env.path("state/io.containerd.runtime.v2.task").join(env.namespace()).join(id);
    stack.gantry(&["wait", "kept"])?.ok()?;
    assert!(stack.gantry(&["rm", "kept"])?.fails()?.contains("delete"));
    assert!(bundle(&kept).exists() && bundle(&going).exists());
    fs::write(&good, "")?;
    wait::until("what is left is deleted", || (!bundle(&kept).exists() && !bundle(&going).exists()).then_some(()))?;
    // The one is removed at its end, however late; the other can be started again.
    wait::until("its name is free", || {
        stack.gantry(&["run", "--rm", "--name", "going", "IMAGE", "true"]).ok()?.ok().ok()
    })?;
    stack.gantry(&["start", "kept"])?.ok()?;
    stack.gantry(&["rm", "-f", "kept"])?.ok()?;
    Ok(())
}
