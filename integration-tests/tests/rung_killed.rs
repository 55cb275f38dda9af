//! The runtime, killed before each of its system calls in turn. Whatever it had done by then, `delete --force` removes it
//! all: the harness looks for processes, mounts, cgroups and files that are left.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use integration_tests::{Bundle, Env, Result, Test, tests, wait};
use serde_json::json;

pub(crate) const TESTS: &[Test] = tests![
    a_create_can_be_killed_anywhere[Root, Strace, Fast],
    a_run_can_be_killed_anywhere[Root, Strace, Fast],
    a_start_can_be_killed_anywhere[Root, Strace, Fast],
    a_delete_can_be_killed_anywhere[Root, Strace, Fast],
    a_pause_can_be_killed_anywhere[Root, Strace, Fast],
    an_exec_can_be_killed_anywhere[Root, Strace, Fast],
    a_run_in_one_hierarchy_can_be_killed_anywhere[Root, Strace, CgroupV2],
    a_run_under_systemd_can_be_killed_anywhere[Root, Strace, Systemd],
    force_is_enough_for_anything_in_the_state_directory[Root],
    force_finds_what_has_lost_its_records[Root],
];

/// A system call and its how-many-eth it is.
type Instant = (String, usize);

/// How many instants one test tries: all of them take too long for every day, so each run takes others.
const INSTANTS: usize = 24;

/// The same where each takes seconds, as in an emulated machine.
const FEW: usize = 3;

struct Killer<'a> {
    env: &'a Env,
    args: Vec<String>,
}

impl<'a> Killer<'a> {
    fn new(env: &'a Env, args: &[&str]) -> Self {
        Self { env, args: args.iter().map(|arg| (*arg).to_owned()).collect() }
    }

    fn strace(&self, options: &[&str]) -> Result<Command> {
        let mut command = Command::new("strace");
        self.env.prepare(&mut command);
        command.args(options).arg(self.env.program("rung")?).arg("--root").arg(self.env.path("rung")).args(&self.args);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(command)
    }

    /// The calls of an undisturbed run, a sample of them.
    fn instants(&self) -> Result<Vec<Instant>> {
        let trace = self.env.path("trace");
        let name = trace.to_str().context("a path")?;
        self.strace(&["--quiet=all", "-o", name])?.status()?;
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        let mut all = Vec::new();
        for line in fs::read_to_string(&trace)?.lines() {
            let Some((call, _)) = line.split_once('(') else { continue };
            if call.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_') {
                let count = seen.entry(call.to_owned()).or_default();
                *count += 1;
                all.push((call.to_owned(), *count));
            }
        }
        ensure!(all.len() > 20, "only {} system calls were seen", all.len());
        let most = if wait::patience() < 4 { INSTANTS } else { FEW };
        let step = all.len().div_ceil(most).max(1);
        let offset = usize::from(self.env.token().bytes().fold(0_u8, u8::wrapping_add)) % step;
        Ok(all.into_iter().skip(offset).step_by(step).collect())
    }

    /// Runs it and kills it on the way into this call.
    fn kill_at(&self, (call, nth): &Instant) -> Result<()> {
        let inject = format!("inject={call}:signal=KILL:when={nth}");
        let trace = format!("trace={call}");
        self.strace(&["--quiet=all", "-o", "/dev/null", "-e", &trace, "-e", &inject])?.status()?;
        Ok(())
    }
}

fn bundle(env: &Env, name: &str) -> Result<Bundle> {
    let mut bundle = Bundle::new(env, name, &["sleep", "600"])?;
    bundle.set("/linux/resources/pids/limit", 50);
    bundle.push("/hooks/createRuntime", json!({"path": "/bin/true"}));
    Ok(bundle)
}

/// `delete --force`, twice, with the container's name free again after it.
fn delete(env: &Env, id: &str, after: &Instant) -> Result<()> {
    for round in ["first", "second"] {
        let ran = env.run_rung(&["delete", "--force", id])?;
        ensure!(ran.code() == 0, "{round} delete after {after:?}: {}", ran.stderr);
    }
    ensure!(!env.path("rung").join(id).exists(), "the directory is left after {after:?}");
    wait::until(&format!("no process is left after {after:?}"), || no_process(id).then_some(()))?;
    // That of a unit goes when systemd gets to it.
    wait::until(&format!("no cgroup is left after {after:?}"), || cgroups(id).ok()?.is_empty().then_some(()))
}

/// Whether no process is in a cgroup with this name. One that has ended, and waits for the machine's init to take note, is none.
fn no_process(id: &str) -> bool {
    let Ok(processes) = fs::read_dir("/proc") else { return false };
    !processes.flatten().any(|process| {
        let read = |file: &str| fs::read_to_string(process.path().join(file)).unwrap_or_default();
        read("cgroup").contains(id) && !read("stat").rsplit(')').next().is_some_and(|rest| rest.starts_with(" Z"))
    })
}

fn cgroups(id: &str) -> Result<Vec<PathBuf>> {
    let mut roots = vec![PathBuf::from("/sys/fs/cgroup"), PathBuf::from("/sys/fs/cgroup/systemd/system.slice")];
    roots.extend(fs::read_dir("/sys/fs/cgroup")?.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()));
    // That of a unit is called `rung-ID.scope`.
    let below = roots.iter().flat_map(|root| fs::read_dir(root).into_iter().flatten().flatten());
    Ok(below.filter(|entry| entry.file_name().to_string_lossy().contains(id)).map(|entry| entry.path()).collect())
}

/// What is made must be made anew for each instant.
fn making(env: &Env, name: &str, verb: &[&str]) -> Result<()> {
    let id = env.id(name);
    making_of(env, &id, &bundle(env, name)?, verb)
}

fn making_of(env: &Env, id: &str, bundle: &Bundle, verb: &[&str]) -> Result<()> {
    let mut args = verb.to_vec();
    args.extend(["--bundle", bundle.write()?, id]);
    let killer = Killer::new(env, &args);
    let instants = killer.instants()?;
    delete(env, id, &("the undisturbed run".to_owned(), 0))?;
    for instant in &instants {
        killer.kill_at(instant)?;
        delete(env, id, instant)?;
    }
    // And the name is free for a container that works.
    env.run_rung(&args)?.ok()?;
    delete(env, id, &("the end".to_owned(), 0))
}

/// What is done to a container that exists, which `prepare` makes.
fn doing(env: &Env, name: &str, first: &[&str], verb: &[&str]) -> Result<()> {
    let id = env.id(name);
    let bundle = bundle(env, name)?;
    let path = bundle.write()?.to_owned();
    let prepare = || -> Result<()> { env.run_rung(&[first, &["--bundle", &path, &id]].concat())?.ok().map(drop) };
    let args: Vec<&str> = verb.iter().map(|word| if *word == "ID" { id.as_str() } else { word }).collect();
    let killer = Killer::new(env, &args);
    prepare()?;
    let instants = killer.instants()?;
    delete(env, &id, &("the undisturbed run".to_owned(), 0))?;
    for instant in &instants {
        prepare()?;
        killer.kill_at(instant)?;
        // Whatever it is by now, it can be asked, unless it is gone.
        if env.path("rung").join(&id).join("state.json").exists() {
            let found = env.state(&id)?["status"].take();
            ensure!(
                ["created", "running", "paused", "stopped"].iter().any(|one| found == *one),
                "{instant:?}: {found}"
            );
        }
        delete(env, &id, instant)?;
    }
    Ok(())
}

fn a_create_can_be_killed_anywhere(env: &Env) -> Result<()> {
    making(env, "create", &["create"])
}

fn a_run_can_be_killed_anywhere(env: &Env) -> Result<()> {
    making(env, "run", &["run", "--detach"])
}

fn a_run_in_one_hierarchy_can_be_killed_anywhere(env: &Env) -> Result<()> {
    making(env, "unified", &["run", "--detach"])
}

/// systemd makes the unit at once and the cgroup when it gets to it, which may be after the end of who asked for it.
fn a_run_under_systemd_can_be_killed_anywhere(env: &Env) -> Result<()> {
    let id = env.id("unit");
    let mut bundle = bundle(env, "unit")?;
    bundle.set("/linux/cgroupsPath", format!("system.slice:rung:{id}"));
    making_of(env, &id, &bundle, &["--systemd-cgroup", "run", "--detach"])
}

fn a_start_can_be_killed_anywhere(env: &Env) -> Result<()> {
    doing(env, "start", &["create"], &["start", "ID"])
}

fn a_delete_can_be_killed_anywhere(env: &Env) -> Result<()> {
    doing(env, "delete", &["run", "--detach"], &["delete", "--force", "ID"])
}

fn a_pause_can_be_killed_anywhere(env: &Env) -> Result<()> {
    doing(env, "pause", &["run", "--detach"], &["pause", "ID"])
}

fn an_exec_can_be_killed_anywhere(env: &Env) -> Result<()> {
    doing(env, "exec", &["run", "--detach"], &["exec", "--detach", "ID", "sleep", "600"])
}

/// Half-written, empty, damaged, or not even a directory of ours: `delete --force` ends with nothing there.
fn force_is_enough_for_anything_in_the_state_directory(env: &Env) -> Result<()> {
    let root = env.dir("rung")?;
    for (name, content) in [("empty", None), ("half", Some("{\"id\":\"ha")), ("null", Some("null")), ("zero", Some(""))]
    {
        let id = env.id(name);
        fs::create_dir_all(root.join(&id).join("notify"))?;
        if let Some(content) = content {
            fs::write(root.join(&id).join("state.json"), content)?;
        }
        fs::write(root.join(&id).join(".state.json.new"), "x")?;
        delete(env, &id, &(name.to_owned(), 0))?;
    }
    // A run that was killed before it had made anything.
    let id = env.id("planned");
    fs::create_dir_all(root.join(&id))?;
    let record = format!("{{\"id\":\"{id}\",\"init_process_pid\":0,\"init_process_start\":0,\"created\":\"\",
        \"config\":{{\"rootfs\":\"/r\",\"spec\":{{\"ociVersion\":\"1.0.2\",\"process\":{{\"args\":[\"x\"],\"cwd\":\"/\"}}}}}}}}");
    fs::write(root.join(&id).join("planned.json"), record)?;
    assert_eq!(env.state(&id)?["status"], "creating");
    assert!(env.run_rung(&["exec", &id, "x"])?.fails()?.contains("cannot exec in a stopped container"));
    assert!(env.run_rung(&["kill", &id, "KILL"])?.fails()?.contains("container not running"));
    delete(env, &id, &("planned".to_owned(), 0))?;
    // Another runtime's record, of a process that lives.
    let id = env.id("foreign");
    fs::create_dir_all(root.join(&id))?;
    let record = format!("{{\"id\":\"x\",\"init_process_pid\":{},\"config\":0}}", std::process::id());
    fs::write(root.join(&id).join("state.json"), record)?;
    let said = env.run_rung(&["delete", "--force", &id])?.fails()?;
    assert!(said.contains("read the record"), "{said}");
    assert!(root.join(&id).join("state.json").exists());
    Ok(fs::remove_dir_all(root.join(&id))?)
}

/// The state directory is in memory, and may be gone with a mount namespace or by somebody's hand. The cgroup still says
/// whose it is.
fn force_finds_what_has_lost_its_records(env: &Env) -> Result<()> {
    let root = env.dir("rung")?;
    for lost in ["half", "both", "all"] {
        let id = env.id(lost);
        env.run_rung(&["run", "--detach", "--bundle", bundle(env, lost)?.write()?, &id])?.ok()?;
        let state = env.state(&id)?;
        let entry = root.join(&id);
        match lost {
            "all" => fs::remove_dir_all(&entry)?,
            _ => {
                fs::remove_file(entry.join("planned.json"))?;
                fs::remove_file(entry.join("state.json"))?;
            }
        }
        if lost == "half" {
            fs::write(entry.join("state.json"), format!("{{\"init_process_pid\":{},", state["pid"]))?;
        }
        // Another of the same name is not meant.
        let other = env.path("other");
        env.run_rung(&["--root", &other.to_string_lossy(), "delete", "--force", &id])?.ok()?;
        // What has ended and is not waited for has no command line any more.
        let line = format!("/proc/{}/cmdline", state["pid"]);
        let runs = || fs::read(&line).is_ok_and(|line| !line.is_empty());
        ensure!(runs(), "{lost}: ended by another's name");
        env.run_rung(&["delete", "--force", &id])?.ok()?;
        wait::until("its end", || (!runs()).then_some(()))?;
        ensure!(!entry.exists(), "{lost}: the name is taken");
    }
    Ok(())
}
