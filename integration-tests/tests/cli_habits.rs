//! What people and scripts have the habit of doing, since it works with docker.

use std::fs;
use std::process::Stdio;

use anyhow::Context as _;
use integration_tests::{Env, Result, Stack, Test, output, tests, wait};

pub(crate) const TESTS: &[Test] = tests![
    a_restart_keeps_what_is_removed_at_its_end [Root, Overlay],
    a_program_that_dies_of_a_reload_is_restarted [Root, Overlay],
    names_are_found_by_expressions [Root, Overlay],
    mounts_are_written_in_every_way [Root, Overlay],
    containers_know_their_names [Root, Overlay],
    a_local_image_needs_no_account [Root, Overlay],
    the_code_is_right_where_the_error_cannot_be_written [Root],
    inspect_says_what_was_written [Root, Overlay],
    a_start_that_fails_early_is_remembered [Root, Overlay],
    a_name_goes_with_its_container [Root, Overlay],
];

fn a_restart_keeps_what_is_removed_at_its_end(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    let script = "echo run >> /runs; cat /runs; sleep 1000";
    stack.gantry(&["run", "-d", "--rm", "--name", "web", "IMAGE", "sh", "-c", script])?.ok()?;
    stack.gantry(&["restart", "-t", "0", "web"])?.ok()?;
    let runs = || stack.gantry(&["exec", "web", "cat", "/runs"]).ok().filter(|ran| ran.text() == "run\nrun");
    wait::until("the second run, on the files of the first", runs)?;
    stack.gantry(&["stop", "-t", "0", "web"])?.ok()?;
    assert_eq!(stack.gantry(&["ps", "-aq"])?.ok()?.text(), "");
    // One that cannot be started again is gone, and its name is free.
    stack.gantry(&["run", "-d", "--rm", "--name", "web", "IMAGE", "sleep", "1000"])?.ok()?;
    stack.gantry(&["exec", "web", "rm", "/bin/sleep"])?.ok()?;
    assert!(stack.gantry(&["restart", "-t", "0", "web"])?.fails()?.contains("sleep"));
    stack.gantry(&["run", "--rm", "--name", "web", "IMAGE", "true"])?.ok()?;
    // One that does not run is started, and one that is not there is not made up.
    stack.gantry(&["create", "--name", "other", "IMAGE", "sleep", "1000"])?.ok()?;
    stack.gantry(&["restart", "other"])?.ok()?;
    assert_eq!(stack.gantry(&["ps", "--format", "{{.Names}}"])?.ok()?.text(), "other");
    assert!(stack.gantry(&["restart", "nobody"])?.fails()?.contains("no such container"));
    Ok(())
}

/// A program that is told to read its configuration again, and falls over it, is started again.
fn a_program_that_dies_of_a_reload_is_restarted(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    let script = "trap 'exit 1' HUP; echo up; while :; do sleep 0.1; done";
    let run = |name: &str| -> Result<()> {
        stack.gantry(&["run", "-d", "--restart", "always", "--name", name, "IMAGE", "sh", "-c", script])?.ok()?;
        let up = || stack.gantry(&["logs", name]).ok().filter(|logs| logs.stdout == "up\n");
        wait::until("it listens", up).map(drop)
    };
    let count = |name: &str| stack.gantry(&["inspect", "-f", "{{.RestartCount}} {{.State.Running}}", name])?.ok();
    run("reloaded")?;
    run("killed")?;
    stack.gantry(&["kill", "-s", "KILL", "killed"])?.ok()?;
    stack.gantry(&["kill", "-s", "HUP", "reloaded"])?.ok()?;
    wait::until("another run", || count("reloaded").ok().filter(|count| count.text() == "1 true"))
        .with_context(|| format!("{:?}", count("reloaded")))?;
    assert_eq!(count("killed")?.text(), "0 false");
    Ok(())
}

fn names_are_found_by_expressions(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    for name in ["web", "webs"] {
        stack.gantry(&["create", "--name", name, "--label", "kind=site", "IMAGE", "true"])?.ok()?;
    }
    let found = |filter: &str| stack.gantry(&["ps", "-a", "--format", "{{.Names}}", "-f", filter])?.ok();
    for (filter, names) in [("name=^web$", "web"), ("name=^/web$", "web"), ("name=eb", "webs\nweb"), ("name=^eb", "")] {
        assert_eq!(found(filter)?.text(), names, "{filter}");
    }
    assert!(stack.gantry(&["ps", "-f", "name=["])?.fails()?.contains("regular expression"));
    stack.gantry(&["rm", "-fv", "web", "webs"])?.ok()?;
    assert_eq!(stack.gantry(&["ps", "-aq"])?.ok()?.text(), "");
    let images = |filter: &str| stack.gantry(&["images", "-aq", "-f", filter])?.ok();
    assert_eq!(images("dangling=true")?.text(), "");
    assert_eq!(images(&format!("reference={}/*/busybox", stack.registry.host()))?.stdout.lines().count(), 1);
    assert_eq!(images("reference=busybox")?.text(), "");
    assert!(stack.gantry(&["images", "-f", "colour=red"])?.fails()?.contains("colour"));
    Ok(())
}

fn mounts_are_written_in_every_way(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    let made = env.path("made/by/the/daemon");
    let volume = format!("{}:/data:cached", made.display());
    stack.script(&["-v", &volume], "echo here > /data/file")?.ok()?;
    assert_eq!(fs::read_to_string(made.join("file"))?, "here\n");
    if !std::path::Path::new("/sys/fs/selinux/enforce").exists() {
        let labelled = format!("{}:/data:ro,z", made.display());
        assert_eq!(stack.script(&["-v", &labelled], "cat /data/file")?.ok()?.text(), "here");
    }
    let absent = format!("type=bind,src={},dst=/data", env.path("absent").display());
    let refused = stack.script(&["--mount", &absent], "true")?.exits(125)?;
    assert!(refused.stderr.contains("absent"), "{}", refused.stderr);
    let tmpfs = ["--mount", "type=tmpfs,dst=/scratch,tmpfs-size=1m,tmpfs-mode=1700", "--tmpfs", "/other"];
    let shown = "df -k /scratch | tail -n 1 | tr -s ' ' | cut -d ' ' -f 2; stat -c %a /scratch; grep -c ' /other ' /proc/mounts";
    assert_eq!(stack.script(&tmpfs, shown)?.ok()?.text(), "1024\n1700\n1");
    Ok(())
}

fn containers_know_their_names(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    let shown = "cat /etc/hostname; grep -c '127.0.0.1.*localhost' /etc/hosts; grep -w box /etc/hosts | cut -f 1";
    assert_eq!(stack.script(&["--hostname", "box"], shown)?.ok()?.text(), "box\n1\n127.0.1.1");
    let host = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let names = ["/etc/resolv.conf", "/etc/hosts"];
    for path in names {
        let inside = stack.script(&["--network", "host"], &format!("cat {path}"))?.ok()?;
        assert_eq!(inside.text(), host(path).trim(), "{path}");
    }
    // One's own stands, and nothing is put into a directory of the host.
    let own = env.dir("etc")?;
    fs::write(own.join("hosts"), "own\n")?;
    let volume = format!("{}:/etc", own.display());
    assert_eq!(stack.script(&["-v", &volume], "ls /etc; cat /etc/hosts")?.ok()?.text(), "hosts\nown");
    // They are no change of the container's, and are there again after a restart.
    stack.gantry(&["run", "-d", "--name", "web", "--add-host", "db:10.1.2.3", "IMAGE", "sleep", "1000"])?.ok()?;
    assert_eq!(stack.gantry(&["diff", "web"])?.ok()?.text(), "");
    stack.gantry(&["exec", "web", "sh", "-c", "echo gone > /etc/hosts; echo kept > /kept"])?.ok()?;
    stack.gantry(&["commit", "web", "made/of:it"])?.ok()?;
    let files = stack.gantry(&["create", "made/of:it"])?.ok()?;
    let tar = env.path("made.tar");
    stack.gantry(&["export", "-o", &tar.display().to_string(), files.text()])?.ok()?;
    let listed = env.run("tar", &["tf", &tar.display().to_string()])?.ok()?;
    let has = |name: &str| listed.stdout.lines().any(|line| line == name);
    assert!(has("kept") && !has("etc/hosts") && !has("etc/hostname"), "{}", listed.stdout);
    stack.gantry(&["restart", "-t", "0", "web"])?.ok()?;
    let hosts = stack.gantry(&["exec", "web", "cat", "/etc/hosts"])?.ok()?;
    assert!(hosts.text().starts_with("127.0.0.1\tlocalhost") && hosts.text().ends_with("10.1.2.3\tdb"), "{hosts}");
    Ok(())
}

/// An account is asked for only where something is pulled: whoever keeps them may be broken.
fn a_local_image_needs_no_account(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    stack.gantry(&["pull", "-q", "IMAGE"])?.ok()?;
    let config = env.dir("docker")?;
    fs::write(config.join("config.json"), r#"{"credsStore": "there-is-no-such-program"}"#)?;
    let run = |args: &[&str]| {
        let mut command = stack.command(args)?;
        command.env("DOCKER_CONFIG", &config);
        output::run(command)
    };
    run(&["run", "--rm", "IMAGE", "true"])?.ok()?;
    let refused = run(&["run", "--rm", "--pull", "always", "IMAGE", "true"])?.exits(125)?;
    assert!(refused.stderr.contains("there-is-no-such-program"), "{}", refused.stderr);
    Ok(())
}

/// Where nobody can read an error, the code says it all the same.
fn the_code_is_right_where_the_error_cannot_be_written(env: &Env) -> Result<()> {
    let daemon = env.daemon()?;
    for (args, code) in [(&["inspect", "nobody"][..], 1), (&["run", "--no-such-option", "x"], 125)] {
        let mut command = daemon.gantry_command(args)?;
        command.stdout(Stdio::null()).stderr(fs::File::options().write(true).open("/dev/full")?);
        assert_eq!(command.status()?.code(), Some(code), "{args:?}");
    }
    Ok(())
}

fn inspect_says_what_was_written(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    let words = ["--entrypoint", "echo", "-u", "root", "-l", "a=b", "--stop-signal", "INT", "--name", "said"];
    stack.gantry(&[&["create"], &words[..], &["IMAGE", "one", "two"]].concat())?.ok()?;
    let shown = |format: &str| stack.gantry(&["inspect", "-f", format, "said"])?.ok();
    let format = "{{json .Config.Entrypoint}} {{json .Config.Cmd}} {{.Config.User}} {{.Config.StopSignal}}";
    assert_eq!(shown(format)?.text(), r#"["echo"] ["one","two"] root SIGINT"#);
    assert_eq!(shown("<{{.NetworkSettings.IPAddress}}> {{json .Mounts}}")?.text(), "<> []");
    // All of it goes into an image, and out of that into a container.
    stack.gantry(&["commit", "said", "made/of:it"])?.ok()?;
    let format = "{{json .Config.Entrypoint}} {{json .Config.Cmd}} {{.Config.User}} {{json .Config.Labels}}";
    let image = stack.gantry(&["image", "inspect", "-f", format, "made/of:it"])?.ok()?;
    assert_eq!(image.text(), r#"["echo"] ["one","two"] root {"a":"b"}"#);
    assert_eq!(stack.gantry(&["run", "--rm", "made/of:it"])?.ok()?.text(), "one two");
    Ok(())
}

/// Also what keeps a container from being started before there is a shim is in its state.
fn a_start_that_fails_early_is_remembered(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    stack.gantry(&["create", "--name", "web", "IMAGE", "true"])?.ok()?;
    let id = stack.gantry(&["inspect", "-f", "{{.Id}}", "web"])?.ok()?.text().to_owned();
    let directories = env.path("root/engine").join(env.namespace());
    let directory = directories.join(id);
    // Its log is to be made in it.
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directories)?;
    fs::write(&directory, "")?;
    stack.gantry(&["start", "web"])?.fails()?;
    let inspect = |name: &str| stack.gantry(&["inspect", "-f", "{{.State.ExitCode}} {{.State.Error}}", name])?.ok();
    let error = inspect("web")?;
    fs::remove_file(&directory)?;
    assert!(error.text().starts_with("128 "), "{error:?}");
    assert!(error.text().contains(&*directory.to_string_lossy()), "{error:?}");
    stack.gantry(&["create", "--name", "none", "IMAGE", "/no-such-program"])?.ok()?;
    stack.gantry(&["start", "none"])?.fails()?;
    assert!(inspect("none")?.text().starts_with("127 "), "{:?}", inspect("none")?);
    // Once it runs the failure is past.
    stack.gantry(&["start", "web"])?.ok()?;
    stack.gantry(&["wait", "web"])?.ok()?;
    assert_eq!(inspect("web")?.text(), "0");
    // One that fails after a run is what a list tells of, too.
    fs::remove_dir_all(&directory)?;
    fs::write(&directory, "")?;
    stack.gantry(&["start", "web"])?.fails()?;
    fs::remove_file(&directory)?;
    let listed = stack.gantry(&["ps", "-a", "--filter", "exited=128", "--format", "{{.Names}} {{.Status}}"])?.ok()?;
    assert!(listed.text().starts_with("web Exited (128) "), "{listed:?}");
    Ok(())
}

/// Another client of containerd removes containers, of which the engine is not told.
fn a_name_goes_with_its_container(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    let create = |name: &str| stack.gantry(&["create", "--name", name, "IMAGE", "true"])?.ok();
    for name in ["web", "other"] {
        stack.daemon.ctr(&["containers", "rm", create(name)?.text()])?.ok()?;
    }
    create("web")?;
    stack.gantry(&["rename", "web", "other"])?.ok()?;
    assert!(stack.gantry(&["create", "--name", "other", "IMAGE", "true"])?.fails()?.contains("in use"));
    Ok(())
}
