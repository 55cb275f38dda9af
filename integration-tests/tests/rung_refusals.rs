//! What the runtime refuses, in one clear line: nothing is ignored silently, and nothing is left behind.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;

use integration_tests::{Bundle, Env, Result, Test, output, tests, wait};
use serde_json::json;

pub(crate) const TESTS: &[Test] = tests![
    missing_arguments_are_named[],
    an_unknown_command_has_a_code_of_its_own[],
    an_unknown_flag_is_told_in_the_words_of_go[],
    long_ids_are_refused[],
    failures_name_their_command[],
    exec_makes_no_directory [Root],
    bundles_without_their_parts_are_refused [Root],
    what_the_search_finds_is_a_program [Root],
    every_last_hook_runs_and_is_told_by_its_number [Root],
    words_are_read_as_by_runc [Root],
    a_silent_bus_keeps_nobody_waiting_for_ever [Root],
];

fn missing_arguments_are_named(env: &Env) -> Result<()> {
    let said = env.run_rung(&["kill"])?.fails()?;
    let logged = said.lines().find(|line| line.contains("level=error")).unwrap_or_default();
    assert!(logged.contains("requires a minimum of 1 argument(s)"), "the logged line does not say it: {said}");
    Ok(())
}

fn an_unknown_command_has_a_code_of_its_own(env: &Env) -> Result<()> {
    for line in [&["no-such-command"][..], &["help", "no-such-command"], &["no-such-command", "--help"]] {
        let said = env.run_rung(line)?.exits(3)?.stderr;
        assert!(said.contains("No help topic for 'no-such-command'"), "{line:?}: {said}");
    }
    Ok(())
}

fn an_unknown_flag_is_told_in_the_words_of_go(env: &Env) -> Result<()> {
    for (line, flag) in [(["list", "--nonsense"], "-nonsense"), (["state", "-z"], "-z")] {
        let said = env.run_rung(&line)?.exits(1)?.stderr;
        assert!(said.contains(&format!("flag provided but not defined: {flag}")), "{line:?}: {said}");
    }
    Ok(())
}

fn long_ids_are_refused(env: &Env) -> Result<()> {
    let id = "a".repeat(1000);
    let said = env.run_rung(&["state", &id])?.fails()?;
    assert!(said.contains("1000 characters") && !said.contains(&id), "{said}");
    Ok(())
}

/// Whatever fails: callers look for these words.
fn failures_name_their_command(env: &Env) -> Result<()> {
    for (command, words) in [("create", "runc create failed: "), ("run", "runc run failed: ")] {
        for id in ["", "../x", "."] {
            let said = env.run_rung(&[command, id])?.exits(1)?.stderr;
            assert!(said.contains(words) && said.contains("container"), "{command} {id:?}: {said}");
        }
    }
    Ok(())
}

/// A file of that name which may not be executed is none, in the words and with the meaning that callers of runc know.
fn what_the_search_finds_is_a_program(env: &Env) -> Result<()> {
    let mut bundle = Bundle::new(env, "search", &["data"])?;
    fs::write(bundle.rootfs().join("bin/data"), "")?;
    let said = env.run_rung(&["run", "--bundle", bundle.write()?, &env.id("search")])?.exits(1)?.stderr;
    assert!(said.contains("exec: \\\"data\\\": executable file not found in $PATH"), "{said}");
    bundle.set("/process/args", ["/bin/data"].as_slice());
    let said = env.run_rung(&["run", "--bundle", bundle.write()?, &env.id("search")])?.exits(1)?.stderr;
    assert!(said.contains("permission denied"), "{said}");
    Ok(())
}

/// Of a container that is gone nothing depends on them, as the specification says.
fn every_last_hook_runs_and_is_told_by_its_number(env: &Env) -> Result<()> {
    let mark = env.dir("marks")?.join("mark");
    let hook = |script: &str| json!({"path": "/bin/sh", "args": ["sh", "-c", script]});
    let touch = format!("touch {}", mark.display());
    let mut bundle = Bundle::new(env, "last", &["true"])?;
    bundle.set("/hooks", json!({"poststop": [hook("true"), hook("exit 3"), hook(&touch)]}));
    let said = env.run_rung(&["run", "--bundle", bundle.write()?, &env.id("last")])?.ok()?.stderr;
    assert!(said.contains("error running poststop hook #1: exit status 3"), "{said}");
    assert!(mark.exists(), "a hook after one that failed did not run");
    Ok(())
}

/// What scripts pass when a variable is unset, and what they look for in an answer.
fn words_are_read_as_by_runc(env: &Env) -> Result<()> {
    let id = env.id("words");
    let bundle = Bundle::new(env, "words", &["sleep", "600"])?;
    env.run_rung(&["run", "--detach", "--bundle", bundle.write()?, &id])?.ok()?;
    let user = env.run_rung(&["exec", "--user", "", &id, "id", "-u"]);
    let nameless = env.run_rung(&["exec", "--env", "nameless", &id, "true"]);
    let killed = env.run_rung(&["kill", &id, ""]);
    env.run_rung(&["delete", "--force", &id])?.ok()?;
    assert_eq!(user?.ok()?.text(), "0");
    let said = nameless?.exits(255)?.stderr;
    assert!(said.contains("invalid environment variable: missing '='"), "{said}");
    killed?.ok()?;
    // `delete --force etc` would remove that directory.
    for root in ["/", "/tmp/..", "/tmp/../."] {
        let said = env.run_rung(&["--root", root, "list"])?.exits(1)?.stderr;
        assert!(said.contains("Option --root argument should not be set to /"), "{root}: {said}");
    }
    Ok(())
}

/// A mistyped directory of an exec must not appear in the container's files.
fn exec_makes_no_directory(env: &Env) -> Result<()> {
    let mut bundle = Bundle::new(env, "cwd", &["sleep", "600"])?;
    bundle.set("/root/readonly", false).set("/process/cwd", "/made/by/run");
    let id = env.id("cwd");
    env.run_rung(&["run", "--detach", "--bundle", bundle.write()?, &id])?.ok()?;
    let said = env.run_rung(&["exec", "--cwd", "/mistyped", &id, "true"]);
    let made = [bundle.rootfs().join("made/by/run").is_dir(), bundle.rootfs().join("mistyped").exists()];
    env.run_rung(&["delete", "--force", &id])?.ok()?;
    let said = said?.fails()?;
    assert!(said.contains("/mistyped") && said.contains("no such file or directory"), "{said}");
    assert_eq!(made, [true, false]);
    Ok(())
}

fn bundles_without_their_parts_are_refused(env: &Env) -> Result<()> {
    let (empty, broken, rootless) = (env.dir("empty")?, env.dir("broken")?, env.dir("rootless")?);
    fs::write(broken.join("config.json"), "{\"ociVersion\":")?;
    let mut whole = Bundle::new(env, "whole", &["true"])?;
    whole.set("/root/path", "rootfs");
    fs::copy(format!("{}/config.json", whole.write()?), rootless.join("config.json"))?;
    for (bundle, named) in [(&empty, "config.json"), (&broken, "config.json"), (&rootless, "rootfs")] {
        let id = env.id("refused");
        let path = bundle.to_string_lossy();
        let said = env.run_rung(&["run", "--bundle", &path, &id])?.fails()?;
        assert!(said.contains(&*path) && said.contains(named), "{said}");
        assert_eq!(said.trim().lines().count(), 1, "{said}");
        assert!(env.run_rung(&["state", &id])?.fails()?.contains("does not exist"), "something is left of {path}");
    }
    Ok(())
}

/// Starts that are many at a time end when the answer is overdue, and leave neither a process nor a cgroup: who looks
/// after the test finds them.
fn a_silent_bus_keeps_nobody_waiting_for_ever(env: &Env) -> Result<()> {
    let socket = env.path("bus");
    // Connections wait in its queue, as where the bus is stopped.
    let _bus = UnixListener::bind(&socket)?;
    let mut starts = Vec::new();
    for number in 0..wait::amount(10, 100) {
        let name = format!("silent{number}");
        let mut bundle = Bundle::new(env, &name, &["true"])?;
        bundle.set("/linux/cgroupsPath", format!("system.slice:rung:{}", env.id(&name)));
        let path = bundle.write()?.to_owned();
        let mut command = env.rung(&["--systemd-cgroup", "run", "--bundle", &path, &env.id(&name)])?;
        command.env("DBUS_SYSTEM_BUS_ADDRESS", format!("unix:path={}", socket.display()));
        starts.push(std::thread::spawn(move || output::run_within(command, wait::seconds(50), "")));
    }
    for start in starts {
        let ran = start.join().map_err(|_| anyhow::anyhow!("a start panicked"))??;
        // Where there is systemd, it can be asked without the bus.
        if Path::new("/run/systemd/private").exists() {
            ran.ok()?;
        } else {
            let said = ran.fails()?;
            assert!(said.contains("no answer in time"), "{said}");
        }
    }
    assert_eq!(env.run_rung(&["list", "--quiet"])?.text(), "");
    Ok(())
}
