//! A stock containerd (the machine's own package) with our shim and runtime: `io.containerd.rung.v2`.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command};

use anyhow::Context;
use integration_tests::bundle::busybox_root;
use integration_tests::{Env, Image, Ran, Registry, Result, Test, output, tests, wait};

pub(crate) const TESTS: &[Test] = tests![
    a_container_runs_under_stock_containerd [Root, Containerd, EveryHost],
    tasks_survive_a_restart_of_stock_containerd [Root, Containerd],
    a_container_goes_on_under_stock_containerd [Root, Containerd, Overlay, Criu],
];

const RUNTIME: &str = "io.containerd.rung.v2";

/// What containerd allows shims by itself, and more where the machine is slow.
fn patient_timeouts() -> String {
    let usual = [("task.state", 2), ("shim.load", 5), ("shim.cleanup", 5), ("shim.shutdown", 3)];
    let line = |(name, seconds)| format!("\"io.containerd.timeout.{name}\" = \"{}s\"\n", seconds * wait::patience());
    format!("[timeouts]\n{}", usual.map(line).concat())
}

/// A private containerd: everything of it is in the test's directory.
struct Stock<'env> {
    env: &'env Env,
    child: Child,
    rootfs: PathBuf,
}

impl<'env> Stock<'env> {
    fn start(env: &'env Env) -> Result<Self> {
        let rootfs = env.dir("rootfs")?;
        busybox_root(&rootfs)?;
        let root = env.root().display();
        let config = format!(
            "version = 2\nroot = \"{root}/r\"\nstate = \"{root}/st\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = \"{root}/c.sock\"\n[ttrpc]\naddress = \"{root}/c.sock.ttrpc\"\n{}",
            patient_timeouts()
        );
        fs::write(env.path("config.toml"), config)?;
        let child = Self::spawn(env)?;
        let stock = Self { env, child, rootfs };
        stock.ready()?;
        Ok(stock)
    }

    fn spawn(env: &Env) -> Result<Child> {
        let mut command = Command::new("containerd");
        env.prepare(&mut command);
        let log = fs::File::options().create(true).append(true).open(env.path("containerd.log"))?;
        command.arg("-c").arg(env.path("config.toml")).stdout(log.try_clone()?).stderr(log);
        command.spawn().context("start containerd")
    }

    fn ready(&self) -> Result<()> {
        let answers = || self.ctr(&["version"]).ok().filter(|ran| ran.code() == 0).map(drop);
        wait::until_within(wait::seconds(20), "containerd to answer", answers)
    }

    fn restart(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        self.child = Self::spawn(self.env)?;
        self.ready()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("ctr");
        self.env.prepare(&mut command);
        command.arg("--address").arg(self.env.path("c.sock")).args(["--namespace", self.env.namespace()]).args(args);
        command
    }

    fn ctr(&self, args: &[&str]) -> Result<Ran> {
        output::run(self.command(args))
    }

    fn run(&self, flags: &[&str], id: &str, args: &[&str]) -> Result<Ran> {
        let rootfs = self.rootfs.to_string_lossy().into_owned();
        let cgroup = format!("/{}", self.env.id(id));
        let fixed = ["run", "--rootfs", "--runtime", RUNTIME, "--cgroup", &cgroup];
        let id = self.env.id(id);
        self.ctr(&[&fixed[..], flags, &[&rootfs, &id], args].concat())
    }
}

impl Stock<'_> {
    /// Ends a task, and removes it and its container.
    fn end(&self, id: &str) -> Result<()> {
        self.ctr(&["task", "kill", "-s", "9", id])?.ok()?;
        // Whoever is attached to it removes it as well.
        let gone = || (!self.ctr(&["task", "ls"]).ok()?.text().contains("RUNNING")).then_some(());
        wait::until("the task to end", gone)?;
        self.ctr(&["task", "rm", id])?;
        self.ctr(&["container", "rm", id]).map(drop)
    }
}

impl Drop for Stock<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn a_container_runs_under_stock_containerd(env: &Env) -> Result<()> {
    let stock = Stock::start(env)?;
    let ran = stock.run(&["--rm"], "short", &["/bin/sh", "-c", "echo said; echo complained >&2; exit 7"])?.exits(7)?;
    assert_eq!((ran.text(), ran.stderr.trim()), ("said", "complained"));
    // What went wrong is told to who asked, and not to who reads the container's output.
    for program in ["/bin/none", "/"] {
        let said = stock.run(&["--rm"], "wrong", &[program])?.fails()?;
        assert!(!said.contains("level="), "{said}");
    }
    let id = env.id("long");
    stock.run(&["-d"], "long", &["/bin/sleep", "600"])?.ok()?;
    assert_eq!(stock.ctr(&["task", "exec", "--exec-id", "one", &id, "/bin/echo", "inside"])?.ok()?.text(), "inside");
    stock.ctr(&["task", "exec", "--exec-id", "two", &id, "/bin/sh", "-c", "exit 3"])?.exits(3)?;
    let said = stock.ctr(&["task", "exec", "--exec-id", "none", &id, "/bin/none"])?.fails()?;
    assert!(!said.contains("level="), "{said}");
    assert!(stock.ctr(&["task", "metrics", &id])?.ok()?.text().contains("pids.current"));
    assert!(stock.ctr(&["task", "ps", &id])?.ok()?.text().lines().count() == 2);
    assert!(stock.ctr(&["task", "rm", &id])?.fails()?.contains("running"));
    for (verb, state) in [("pause", "PAUSED"), ("resume", "RUNNING")] {
        stock.ctr(&["task", verb, &id])?.ok()?;
        assert!(stock.ctr(&["task", "ls"])?.ok()?.text().contains(state), "after {verb}");
    }
    stock.ctr(&["task", "kill", "-s", "9", &id])?.ok()?;
    let stopped = || stock.ctr(&["task", "ls"]).ok()?.text().contains("STOPPED").then_some(());
    wait::until("the task to stop", stopped)?;
    // ctr leaves with the task's own status.
    stock.ctr(&["task", "rm", &id])?;
    stock.ctr(&["container", "rm", &id])?.ok()?;
    let talks = "for i in 1 2 3 4 5 6 7 8 9 10; do echo talks; sleep 0.2; done; exit 5";
    stock.run(&["-d"], "talks", &["/bin/sh", "-c", talks])?.ok()?;
    let attached = stock.ctr(&["task", "attach", &env.id("talks")])?.exits(5)?;
    assert!(attached.stdout.contains("talks"), "{attached}");
    stock.ctr(&["container", "rm", &env.id("talks")])?.ok()?;
    Ok(())
}

fn tasks_survive_a_restart_of_stock_containerd(env: &Env) -> Result<()> {
    let mut stock = Stock::start(env)?;
    let id = env.id("stays");
    stock.run(&["-d"], "stays", &["/bin/sleep", "600"])?.ok()?;
    let listed = stock.ctr(&["task", "ls"])?.ok()?;
    stock.restart()?;
    assert_eq!(stock.ctr(&["task", "ls"])?.ok()?.text(), listed.text());
    assert_eq!(stock.ctr(&["task", "exec", "--exec-id", "one", &id, "/bin/echo", "again"])?.ok()?.text(), "again");
    stock.ctr(&["task", "kill", "-s", "9", &id])?.ok()?;
    let stopped = || stock.ctr(&["task", "ls"]).ok()?.text().contains("STOPPED").then_some(());
    wait::until("the task to stop", stopped)?;
    stock.ctr(&["task", "rm", &id])?;
    stock.ctr(&["container", "rm", &id])?.ok()?;
    Ok(())
}

/// With ctr's own commands: a checkpoint is an image, of which another container is made that goes on.
fn a_container_goes_on_under_stock_containerd(env: &Env) -> Result<()> {
    let registry = Registry::start(env)?;
    let image = Image::busybox()?.push(&registry, "test/busybox", "latest")?;
    let stock = Stock::start(env)?;
    stock.ctr(&["image", "pull", "--plain-http", &image])?.ok()?;
    let (first, second, checkpoint) = (env.id("first"), env.id("second"), env.id("checkpoint"));
    let log = |name: &str| env.path(name);
    let said = |name: &str| fs::read_to_string(log(name)).unwrap_or_default();
    let uri = format!("file://{}", log("first").display());
    let cgroup = format!("/{first}");
    let flags = ["run", "-d", "--runtime", RUNTIME, "--cgroup", &cgroup, "--log-uri", &uri, &image, &first];
    let script = "echo changed > /file; i=0; while true; do i=$((i+1)); echo count $i; sleep 0.05; done";
    stock.ctr(&[&flags[..], &["/bin/sh", "-c", script]].concat())?.ok()?;
    wait::until("it counts", || said("first").contains("count 30\n").then_some(()))?;
    stock.ctr(&["container", "checkpoint", "--rw", "--image", "--task", &first, &checkpoint])?.ok()?;
    let then = said("first").lines().count();
    wait::until("it goes on", || (said("first").lines().count() > then).then_some(()))?;
    stock.end(&first)?;
    // ctr leaves as soon as it goes on; whoever attaches has its output.
    stock.ctr(&["container", "restore", "--rw", "--live", &second, &checkpoint])?.ok()?;
    let mut attached = stock.command(&["task", "attach", &second]);
    let output = fs::File::create(log("second"))?;
    let mut attached = attached.stdout(output.try_clone()?).stderr(output).spawn()?;
    let counted = wait::until("the second counts", || said("second").contains('\n').then_some(()));
    let counted = counted.and_then(|()| {
        let line = said("second").lines().next().unwrap_or_default().to_owned();
        let count = line.strip_prefix("count ").and_then(|count| count.parse::<u64>().ok());
        assert!(count.with_context(|| line.clone())? >= 30, "it began anew: {line}");
        assert_eq!(stock.ctr(&["task", "exec", "--exec-id", "file", &second, "cat", "/file"])?.ok()?.text(), "changed");
        stock.end(&second)
    });
    // It leaves with the task.
    if counted.is_err() {
        let _ = attached.kill();
    }
    attached.wait()?;
    counted
}
