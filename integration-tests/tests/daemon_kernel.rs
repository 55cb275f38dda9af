//! What the kernel says of a container counts, whatever the daemon or a shim has missed; and what others see of the
//! daemon's files keeps nobody from removing them.

use std::fs;
use std::process::Stdio;

use anyhow::{Context, ensure};
use integration_tests::{Daemon, Env, Registry, Result, Stack, Test, tests, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub(crate) const TESTS: &[Test] = tests![
    an_end_that_nobody_saw_is_an_end [Root, Overlay],
    a_container_in_cgroups_of_its_own_is_found_again [Root, Overlay, EveryHost],
    who_sees_the_root_directory_keeps_nobody_from_removing [Root, Overlay],
];

fn inspect(daemon: &Daemon<'_>, what: &str, name: &str) -> Result<String> {
    Ok(daemon.gantry(&["inspect", "-f", &format!("{{{{.{what}}}}}"), name])?.ok()?.text().to_owned())
}

fn pid(daemon: &Daemon<'_>, name: &str) -> Result<Pid> {
    Ok(Pid::from_raw(inspect(daemon, "State.Pid", name)?.parse()?))
}

/// A process that is stopped, until this is dropped.
struct Stopped(Pid);

impl Stopped {
    fn new(pid: Pid) -> Result<Self> {
        kill(pid, Signal::SIGSTOP).context("stop a process")?;
        Ok(Self(pid))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

/// The first process of `name` was killed; that is known soon, and it can be removed without force.
fn has_ended(daemon: &Daemon<'_>, name: &str) -> Result<()> {
    wait::until(&format!("the end of {name} is known"), || {
        (inspect(daemon, "State.Status", name).ok()? == "exited").then_some(())
    })?;
    assert_eq!(inspect(daemon, "State.ExitCode", name)?, "137");
    daemon.gantry(&["rm", name])?.ok()?;
    Ok(())
}

fn an_end_that_nobody_saw_is_an_end(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    let deaf = "trap '' TERM; while :; do sleep 1; done";
    for name in ["daemon", "shim", "stop"] {
        stack.gantry(&["run", "-d", "--name", name, "IMAGE", "sh", "-c", deaf])?.ok()?;
    }
    let first = pid(&stack.daemon, "daemon")?;
    let stopped = Stopped::new(Pid::from_raw(stack.daemon.pid().try_into()?))?;
    kill(first, Signal::SIGKILL)?;
    drop(stopped);
    has_ended(&stack.daemon, "daemon")?;

    let first = pid(&stack.daemon, "shim")?;
    let bundle = env.path("state/io.containerd.runtime.v2.task").join(env.namespace());
    let bundle = bundle.join(inspect(&stack.daemon, "Id", "shim")?);
    let shim = Pid::from_raw(fs::read_to_string(bundle.join("shim.pid"))?.trim().parse()?);
    let stopped = Stopped::new(shim)?;
    kill(first, Signal::SIGKILL)?;
    drop(stopped);
    has_ended(&stack.daemon, "shim")?;

    // In the middle of a stop that would take long.
    let first = pid(&stack.daemon, "stop")?;
    let mut stop = stack.command(&["stop", "-t", "100", "stop"])?.stdout(Stdio::null()).spawn()?;
    std::thread::sleep(std::time::Duration::from_millis(300));
    kill(first, Signal::SIGKILL)?;
    let ended = wait::until("the stop ends", || stop.try_wait().transpose());
    stop.kill()?;
    ensure!(ended??.success(), "the stop failed");
    has_ended(&stack.daemon, "stop")
}

/// Processes that the container has put into cgroups below its own are its processes.
fn a_container_in_cgroups_of_its_own_is_found_again(env: &Env) -> Result<()> {
    let (_registry, image) = Registry::with_busybox(env)?;
    let mut daemon = env.daemon()?;
    let script = "for dir in /sys/fs/cgroup /sys/fs/cgroup/*; do
            mkdir $dir/own && echo $$ > $dir/own/cgroup.procs
        done 2>/dev/null
        cat /proc/self/cgroup; exec sleep 100000";
    daemon.gantry(&["run", "-d", "--name", "web", "--privileged", &image, "sh", "-c", script])?.ok()?;
    wait::until("it is in a cgroup of its own", || {
        daemon.gantry(&["logs", "web"]).ok()?.stdout.contains("/own").then_some(())
    })?;
    let (id, first) = (inspect(&daemon, "Id", "web")?, inspect(&daemon, "State.Pid", "web")?);
    for _ in 0..wait::rounds(2) {
        daemon.crash()?;
        daemon = env.daemon()?;
        assert_eq!(inspect(&daemon, "State.Pid", "web")?, first);
        let listed = daemon.ctr(&["tasks", "ps", &id])?.ok()?;
        ensure!(listed.stdout.contains(&first), "its process is not among its processes: {listed}");
        assert_eq!(daemon.gantry(&["exec", "web", "echo", "inside"])?.ok()?.text(), "inside");
    }
    // Whether a cgroup is left is looked at after every test.
    daemon.gantry(&["rm", "-f", "web"])?.ok()?;
    Ok(())
}

fn who_sees_the_root_directory_keeps_nobody_from_removing(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    stack.gantry(&["run", "-d", "--name", "early", "IMAGE", "sleep", "100000"])?.ok()?;
    let mut watching = 0;
    for mode in ["rw", "rshared", "rslave"] {
        for (option, path) in [("root", env.path("root")), ("state", env.path("state"))] {
            let volume = format!("{}:/seen:{mode}", path.display());
            let name = format!("{option}-{mode}");
            let run = ["run", "-d", "--name", &name, "--privileged", "-v", &volume, "IMAGE", "sleep", "100000"];
            stack.gantry(&run)?.ok().with_context(|| name.clone())?;
            watching += 1;
        }
    }
    stack.gantry(&["run", "-d", "--name", "late", "IMAGE", "sleep", "100000"])?.ok()?;
    stack.gantry(&["rm", "-f", "early", "late"])?.ok()?;
    stack.gantry(&["run", "--rm", "IMAGE", "true"])?.ok()?;
    stack.gantry(&["system", "gc"])?.ok()?;
    let snapshots = env.path("root/io.containerd.snapshotter.v1.overlayfs/snapshots");
    let directories = || fs::read_dir(&snapshots).map(Iterator::count).unwrap_or(0);
    // One for each that looks on, and the image's.
    wait::until("the files of the others are gone", || (directories() == watching + 1).then_some(()))
        .with_context(|| format!("{} directories are left", directories()))
}
