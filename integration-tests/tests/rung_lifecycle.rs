//! The runtime alone: a container from its making to its removal, and what is left when it is killed on the way.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use integration_tests::output::{self, Ran};
use integration_tests::{Bundle, Env, Pty, Result, Test, tests, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::rung_cgroups::Sleeper;

pub(crate) const TESTS: &[Test] = tests![
    create_start_kill_delete[Root],
    a_created_container_can_be_told_to_end[Root],
    a_bad_program_fails_create[Root],
    a_name_is_taken_once[Root],
    exec_has_its_own_exit_code[Root],
    exec_says_that_the_container_has_ended_meanwhile[Root, Fast],
    children_count_whatever_the_caller_ignores[Root],
    exec_works_in_a_user_namespace_that_the_container_shares[Root],
    hooks_see_the_states_of_the_specification[Root],
    a_talkative_program_on_a_terminal_is_heard_and_ends[Root],
    a_pid_file_is_written_whatever_lies_beside_it[Root],
    a_killed_runtime_leaves_what_delete_removes[Root],
    a_lost_record_does_not_hide_what_runs[Root],
    force_ends_a_container_in_any_state[Root],
    an_error_in_the_log_has_its_kind[Root],
    debug_messages_tell_the_phases[Root],
    a_program_that_cannot_run_is_told_in_one_line[Root],
    an_exec_has_the_root_of_its_mount_namespace[Root],
    the_program_has_the_name_it_is_called_by[],
];

fn create(env: &Env, bundle: &Bundle, id: &str) -> Result<()> {
    env.run_rung(&["create", "--bundle", bundle.write()?, id])?.ok().map(drop)
}

fn has_stopped(env: &Env, id: &str) -> Result<()> {
    wait::until(&format!("{id} stops"), || (env.state(id).ok()?["status"] == "stopped").then_some(()))
}

fn create_start_kill_delete(env: &Env) -> Result<()> {
    let id = env.id("life");
    let mut bundle = Bundle::new(env, "life", &["sleep", "100"])?;
    // A name that the record has for something else.
    bundle.set("/annotations", json!({"bundle": "elsewhere"}));
    create(env, &bundle, &id)?;
    let state = env.state(&id)?;
    ensure!(state["status"] == "created" && state["bundle"] == json!(bundle.path), "{state}");
    env.run_rung(&["start", &id])?.ok()?;
    ensure!(env.state(&id)?["status"] == "running");
    ensure!(env.run_rung(&["start", &id])?.fails()?.contains("cannot start an already running container"));
    ensure!(env.run_rung(&["delete", &id])?.fails()?.contains("that is not stopped: running"));
    env.run_rung(&["kill", &id, "KILL"])?.ok()?;
    has_stopped(env, &id)?;
    ensure!(env.run_rung(&["kill", &id])?.fails()?.contains("container not running"));
    env.run_rung(&["delete", &id])?.ok()?;
    ensure!(env.run_rung(&["delete", &id])?.fails()?.contains("does not exist"));
    env.run_rung(&["delete", "--force", &id])?.ok()?;
    Ok(())
}

/// The kernel spares the first process of a process number namespace what it does not handle.
fn a_created_container_can_be_told_to_end(env: &Env) -> Result<()> {
    let id = env.id("told");
    create(env, &Bundle::new(env, "told", &["sleep", "100"])?, &id)?;
    env.run_rung(&["kill", &id, "TERM"])?.ok()?;
    let ended = has_stopped(env, &id);
    env.run_rung(&["delete", "--force", &id])?.ok()?;
    ended
}

fn a_bad_program_fails_create(env: &Env) -> Result<()> {
    let id = env.id("bad");
    let bundle = Bundle::new(env, "bad", &["/no/such/program"])?;
    let told = env.run_rung(&["create", "--bundle", bundle.write()?, &id])?.exits(1)?;
    let words = "runc create failed: unable to start container process: error during container init: exec: ";
    ensure!(told.stderr.contains(words) && told.stderr.contains("no such file or directory"), "{}", told.stderr);
    ensure!(env.run_rung(&["list", "-q"])?.ok()?.stdout.is_empty());
    let bundle = Bundle::new(env, "run", &["no-such-program"])?;
    let told = env.run_rung(&["run", "--bundle", bundle.write()?, &id])?.exits(1)?.stderr;
    let words = words.replace("create", "run");
    ensure!(told.contains(&words) && told.contains("executable file not found in $PATH"), "{told}");
    Ok(())
}

fn a_name_is_taken_once(env: &Env) -> Result<()> {
    let id = env.id("name");
    let bundle = Bundle::new(env, "name", &["sleep", "100"])?;
    create(env, &bundle, &id)?;
    let told = env.run_rung(&["create", "--bundle", bundle.write()?, &id])?.fails()?;
    ensure!(told.contains("container with given ID already exists"), "{told}");
    ensure!(env.state(&id)?["status"] == "created", "the first one is untouched");
    env.run_rung(&["delete", "--force", &id])?.ok()?;
    Ok(())
}

/// Whatever a full disk or a careless hand has made of the record, `delete --force` ends what it was about.
fn a_lost_record_does_not_hide_what_runs(env: &Env) -> Result<()> {
    for (name, damage) in [("lost", None), ("emptied", Some("")), ("halved", Some("{\"id\":"))] {
        let id = env.id(name);
        let bundle = Bundle::new(env, name, &["sleep", "100"])?;
        env.run_rung(&["run", "--detach", "--bundle", bundle.write()?, &id])?.ok()?;
        let state = env.state(&id)?;
        let record = env.path("rung").join(&id).join("state.json");
        match damage {
            None => fs::remove_file(&record)?,
            Some(text) => fs::write(&record, text)?,
        }
        env.run_rung(&["delete", "--force", &id])?.ok()?;
        let process = std::path::PathBuf::from(format!("/proc/{}", state["pid"]));
        wait::until("the program to end", || (!process.exists()).then_some(()))?;
        ensure!(env.run_rung(&["list", "-q"])?.ok()?.stdout.is_empty());
    }
    Ok(())
}

/// With process numbers of its own or the host's.
fn force_ends_a_container_in_any_state(env: &Env) -> Result<()> {
    for shared in [false, true] {
        let mut bundle = Bundle::new(env, &format!("force{shared}"), &["sh", "-c", "sleep 600 & exec sleep 601"])?;
        if shared {
            bundle.share("pid");
        }
        let path = bundle.write()?;
        for state in ["running", "paused", "dead", "lost", "paused-lost"] {
            let name = format!("{state}-{shared}");
            let id = env.id(&name);
            env.run_rung(&["run", "--detach", "--bundle", path, &id])?.ok()?;
            let processes = || -> Option<Vec<i32>> {
                let listed = env.run_rung(&["ps", "--format", "json", &id]).ok()?;
                serde_json::from_str(listed.text()).ok().filter(|pids: &Vec<i32>| pids.len() == 2)
            };
            let pids = wait::until("both processes", processes)?;
            if state.contains("paused") {
                env.run_rung(&["pause", &id])?.ok()?;
            }
            if state.contains("lost") {
                fs::remove_file(env.path("rung").join(&id).join("state.json"))?;
            }
            if state == "dead" {
                env.run("kill", &["-KILL", &env.state(&id)?["pid"].to_string()])?.ok()?;
                has_stopped(env, &id)?;
            }
            env.run_rung(&["delete", "--force", &id])?.ok().with_context(|| format!("{name}: delete"))?;
            let gone = || pids.iter().all(|pid| !Path::new(&format!("/proc/{pid}")).exists()).then_some(());
            wait::until(&format!("{name}: the end of its processes"), gone)?;
            ensure!(env.run_rung(&["list", "-q"])?.ok()?.stdout.is_empty());
        }
    }
    Ok(())
}

fn exec_has_its_own_exit_code(env: &Env) -> Result<()> {
    let id = env.id("exec");
    create(env, &Bundle::new(env, "exec", &["sleep", "100"])?, &id)?;
    env.run_rung(&["start", &id])?.ok()?;
    env.run_rung(&["exec", &id, "sh", "-c", "exit 7"])?.exits(7)?;
    let told = env.run_rung(&["exec", &id, "no-such-program"])?.exits(255)?.stderr;
    ensure!(told.contains("exec failed: unable to start container process: exec: "), "{told}");
    ensure!(told.contains("executable file not found in $PATH"), "{told}");
    env.run_rung(&["exec", &id, "sh", "-c", "kill -TERM $$"])?.exits(143)?;
    // What a process document leaves out is as for the container's own process, not nothing.
    let status = ["sh", "-c", "grep -E '^(CapEff|CapBnd|NoNewPrivs)' /proc/self/status; ulimit -n"];
    let document = json!({"args": status, "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}});
    let file = env.path("process.json");
    fs::write(&file, document.to_string())?;
    let given = env.run_rung(&["exec", "--process", &file.to_string_lossy(), &id])?.ok()?.text().to_owned();
    let usual = env.run_rung(&[&["exec", &id][..], &status[..]].concat())?.ok()?.text().to_owned();
    ensure!(given == usual && given.contains("CapEff"), "{given}\n{usual}");
    env.run_rung(&["delete", "--force", &id])?.ok()?;
    Ok(())
}

/// At whatever moment of the exec it ends.
fn exec_says_that_the_container_has_ended_meanwhile(env: &Env) -> Result<()> {
    for moment in 0..24 {
        let sleeper = Sleeper::start(env, &format!("ends{moment}"), json!({}))?;
        let pid = env.state(&sleeper.id)?["pid"].as_i64().context("a process")?;
        let mut exec = env.rung(&["exec", &sleeper.id, "true"])?;
        let exec = exec.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        std::thread::sleep(Duration::from_micros(moment * 250));
        kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGKILL)?;
        let ended = exec.wait_with_output()?;
        let said = String::from_utf8_lossy(&ended.stderr);
        // None of a process that was there, and was killed with the others.
        let mut errors = said.lines().filter(|line| line.contains("level=error"));
        ensure!(errors.all(|line| line.contains("cannot exec in a stopped container")), "moment {moment}: {said}");
    }
    Ok(())
}

/// The kernel tells a program nothing of its children whose caller ignores SIGCHLD.
fn children_count_whatever_the_caller_ignores(env: &Env) -> Result<()> {
    let ignoring = |args: &[&str]| -> Result<Ran> {
        let rung = env.rung(args)?;
        let mut ignoring = Command::new("env");
        env.prepare(&mut ignoring);
        ignoring.arg("--ignore-signal=CHLD").arg(rung.get_program()).args(rung.get_args()).stdin(Stdio::null());
        output::run(ignoring)
    };
    let mut bundle = Bundle::new(env, "ignored", &["sh", "-c", "exit 4"])?;
    bundle.set("/hooks", json!({"createRuntime": [{"path": "/bin/true"}]}));
    ignoring(&["run", "--bundle", bundle.write()?, &env.id("ignored")])?.exits(4)?;
    let sleeper = Sleeper::start(env, "sleeper", json!({}))?;
    ignoring(&["exec", &sleeper.id, "sh", "-c", "exit 5"])?.exits(5)?;
    Ok(())
}

/// As under podman of an ordinary user, where the runtime is root of podman's namespace and the container has none.
fn exec_works_in_a_user_namespace_that_the_container_shares(env: &Env) -> Result<()> {
    let mut bundle = Bundle::new(env, "shared", &["sleep", "100"])?;
    // The group of terminals has no number in there.
    bundle.set("/mounts", json!([{"destination": "/proc", "type": "proc", "source": "proc"}]));
    let id = env.id("shared");
    let rung = env.rung(&[])?;
    let words = rung.get_args().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
    let rung = format!("{} {words}", rung.get_program().to_string_lossy());
    let script = format!(
        "{rung} run --detach --bundle {} {id} </dev/null >/dev/null 2>&1 || exit 9
         {rung} exec {id} sh -c 'exit 7'; code=$?
         {rung} delete --force {id} && exit $code",
        bundle.write()?
    );
    env.run("unshare", &["--user", "--map-root-user", "--mount", "sh", "-c", &script])?.exits(7)?;
    Ok(())
}

/// It writes faster than its output is taken, for ever: what is typed and who ends must not wait for that.
fn a_talkative_program_on_a_terminal_is_heard_and_ends(env: &Env) -> Result<()> {
    let id = env.id("loud");
    let bundle = Bundle::new(env, "loud", &["sleep", "600"])?;
    env.run_rung(&["run", "--detach", "--bundle", bundle.write()?, &id])?.ok()?;
    let talk = |script: &str, keys: &str| -> Result<Option<i32>> {
        let mut terminal = Pty::start(&env.rung(&["exec", "--tty", &id, "sh", "-c", script])?)?;
        terminal.expect("yy")?;
        terminal.types(keys)?;
        Ok(terminal.end()?.code())
    };
    let interrupted = talk("exec yes yy", "\x03");
    // Who goes on holds the terminal after the end of the program.
    let ended = talk("trap '' HUP; yes yy & sleep 1; exit 3", "");
    // From the first moment on it has the size of the caller's terminal.
    let sized = talk("test $(stty size | tr ' ' x) != 0x0 && echo yy && sleep 1", "");
    env.run_rung(&["delete", "--force", &id])?.ok()?;
    assert_eq!((interrupted?, ended?, sized?), (Some(130), Some(3), Some(0)));
    Ok(())
}

/// A run that was killed may have left what it wrote first.
fn a_pid_file_is_written_whatever_lies_beside_it(env: &Env) -> Result<()> {
    let (id, file) = (env.id("pid"), env.path("init.pid"));
    fs::write(env.path(".init.pid"), "")?;
    let bundle = Bundle::new(env, "pid", &["sleep", "100"])?;
    let args = ["create", "--pid-file", &*file.to_string_lossy(), "--bundle", bundle.write()?, &id];
    env.run_rung(&args)?.ok()?;
    env.run_rung(&["delete", "--force", &id])?.ok()?;
    ensure!(fs::read_to_string(&file)?.parse::<i32>().is_ok());
    Ok(())
}

fn hooks_see_the_states_of_the_specification(env: &Env) -> Result<()> {
    let id = env.id("hooks");
    let log = env.path("hooks.log");
    let append = |point: &str| {
        let line = format!("printf '%s ' {point} >> {0}; cat >> {0}; echo >> {0}", log.display());
        json!([{"path": "/bin/sh", "args": ["sh", "-c", line]}])
    };
    let mut bundle = Bundle::new(env, "hooks", &["true"])?;
    for point in ["createRuntime", "createContainer", "poststart", "poststop"] {
        bundle.set(&format!("/hooks/{point}"), append(point));
    }
    env.run_rung(&["run", "--bundle", bundle.write()?, &id])?.ok()?;
    let text = fs::read_to_string(&log)?;
    let seen: Vec<(String, String)> = text
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(point, state)| {
            let state: Value = serde_json::from_str(state).unwrap_or_default();
            (point.to_owned(), state["status"].as_str().unwrap_or_default().to_owned())
        })
        .collect();
    let expected = [
        ("createRuntime", "creating"),
        ("createContainer", "creating"),
        ("poststart", "running"),
        ("poststop", "stopped"),
    ];
    ensure!(seen == expected.map(|(point, status)| (point.to_owned(), status.to_owned())), "{seen:?}");
    Ok(())
}

/// At many instants of a start the runtime is killed; `delete --force` then removes everything, and a second start with
/// the same name works. That nothing else is left (process, mount, cgroup) is checked by the harness.
fn a_killed_runtime_leaves_what_delete_removes(env: &Env) -> Result<()> {
    let id = env.id("killed");
    let bundle = Bundle::new(env, "killed", &["sleep", "100"])?;
    let path = bundle.write()?;
    for step in 0..40_u64 {
        let mut command = env.rung(&["create", "--bundle", path, &id])?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn()?;
        std::thread::sleep(Duration::from_micros(step * 500));
        // It may have finished already, which is one of the instants.
        child.kill().ok();
        child.wait()?;
        env.run_rung(&["delete", "--force", &id])?.ok()?;
    }
    env.run_rung(&["run", "--detach", "--bundle", path, &id])?.ok()?;
    env.run_rung(&["delete", "--force", &id])?.ok()?;
    Ok(())
}

fn an_error_in_the_log_has_its_kind(env: &Env) -> Result<()> {
    let log = env.path("log.json");
    let log = log.to_str().context("UTF-8")?;
    let said = env.run_rung(&["--log", log, "--log-format", "json", "state", "nobody"])?.exits(1)?.stderr;
    // For whoever reads both, without what the log has besides.
    ensure!(said == "container \"nobody\": container does not exist\n", "{said}");
    let line: Value = serde_json::from_str(fs::read_to_string(log)?.lines().last().context("a line")?)?;
    ensure!(line["level"] == "error" && line["kind"] == "not-found", "{line}");
    Ok(())
}

/// The phases have the names of runc's log.
fn debug_messages_tell_the_phases(env: &Env) -> Result<()> {
    let mut bundle = Bundle::new(env, "phases", &["sleep", "100"])?;
    bundle.set("/process/execCPUAffinity", json!({"initial": "0"}));
    let id = env.id("phases");
    let log = env.path("log");
    let log = log.to_str().context("UTF-8")?;
    let phases = |args: &[&str], expected: &[&str]| -> Result<()> {
        env.run_rung(&[&["--debug", "--log", log], args].concat())?.ok()?;
        let text = fs::read_to_string(log)?;
        ensure!(expected.iter().all(|phase| text.contains(phase)), "{text}");
        Ok(fs::remove_file(log)?)
    };
    let (born, inside) = ("nsexec container setup", "child process in init()");
    let ready = "init: closing the pipe to signal completion";
    phases(&["run", "--detach", "--bundle", bundle.write()?, &id], &[born, inside, ready])?;
    let about = "setns_init: about to exec";
    let execed = phases(&["exec", &id, "true"], &[born, "affinity: 0x1", inside, about]);
    env.run_rung(&["delete", "--force", &id])?.ok()?;
    execed
}

/// As a shell would: what reads the container's output finds nothing else in it.
fn a_program_that_cannot_run_is_told_in_one_line(env: &Env) -> Result<()> {
    let mut bundle = Bundle::new(env, "script", &["/script"])?;
    bundle.set("/process/capabilities/ambient", json!([]));
    env.script("script/rootfs/script", "#!/nowhere\n")?;
    let path = bundle.write()?;
    let told = env.run_rung(&["run", "--bundle", path, &env.id("script")])?.exits(1)?;
    assert_eq!(told.stderr.trim_end(), "exec /script: no such file or directory");
    let log = env.path("log");
    let log = log.to_str().context("UTF-8")?;
    env.run_rung(&["--log", log, "run", "--bundle", path, &env.id("script")])?.exits(1)?;
    let text = fs::read_to_string(log)?;
    ensure!(text.contains("interpreter") && text.contains("/nowhere"), "{text}");
    Ok(())
}

/// As with runc: where the mounts are the host's, so is the root of whoever joins, and only the first process has changed
/// its own.
fn an_exec_has_the_root_of_its_mount_namespace(env: &Env) -> Result<()> {
    let id = env.id("mounts");
    let mut bundle = Bundle::new(env, "mounts", &["sleep", "100"])?;
    bundle.share("mount");
    for list in ["/mounts", "/linux/maskedPaths", "/linux/readonlyPaths"] {
        bundle.set(list, json!([]));
    }
    bundle.set("/root/readonly", false);
    create(env, &bundle, &id)?;
    let file = env.path("canary");
    fs::write(&file, "seen")?;
    let state = env.state(&id)?;
    let root = fs::read_link(format!("/proc/{}/root", state["pid"]));
    let seen = env.run_rung(&["exec", &id, "/bin/cat", file.to_str().context("a path")?]);
    env.run_rung(&["delete", "--force", &id])?.ok()?;
    ensure!(root? == bundle.rootfs(), "the first process is not in its root");
    ensure!(seen?.ok()?.stdout == "seen");
    Ok(())
}

fn the_program_has_the_name_it_is_called_by(env: &Env) -> Result<()> {
    let runc = env.path("runc");
    std::os::unix::fs::symlink(env.program("rung")?, &runc)?;
    let runc = runc.to_str().context("UTF-8")?;
    ensure!(env.run(runc, &["--version"])?.ok()?.stdout.starts_with("runc version "));
    let version = env.run_rung(&["--version"])?.ok()?.stdout;
    ensure!(
        version.starts_with("rung version ")
            && version.lines().next().is_some_and(|line| line.contains("runc version 1."))
    );
    let bundle = env.dir("spec")?;
    env.run(runc, &["spec", "--bundle", bundle.to_str().context("UTF-8")?])?.ok()?;
    ensure!(fs::read_to_string(bundle.join("config.json"))?.contains("\"hostname\": \"runc\""));
    let help = env.run(runc, &["kill", "--help"])?.ok()?.stdout;
    ensure!(help.starts_with("NAME:\n   runc kill - "), "{help}");
    ensure!(env.run(runc, &["dance", "-h"])?.fails()?.contains("No help topic for 'dance'"));
    Ok(())
}
