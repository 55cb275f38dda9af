//! podman and dockerd as subjects: each with an image of its own and everything in the bench's directory.

use std::fs::File;
use std::process::{Child, Command, Stdio};

use anyhow::Context as _;
use integration_tests::bundle::busybox_root;
use integration_tests::{Env, Result, output, wait};
use nix::mount::{MntFlags, umount2};

use crate::runtimes::find;
use crate::table::note;

/// An engine that can run `true` in its image `box`.
pub(crate) struct Engine<'env> {
    env: &'env Env,
    pub(crate) program: &'static str,
    global: Vec<String>,
    run: Vec<String>,
    server: Option<Child>,
}

impl<'env> Engine<'env> {
    /// podman with its own choice of runtime; none where it is not installed.
    pub(crate) fn podman(env: &'env Env) -> Result<Option<Self>> {
        let root = env.path("podman");
        let root = root.display();
        let global = format!(
            "--root {root}/root --runroot {root}/run --tmpdir {root}/tmp --storage-driver overlay \
             --events-backend file --cgroup-manager cgroupfs"
        );
        // It raises these limits beyond what a machine may allow, and leaves a cgroup of its monitor behind.
        let run = format!(
            "--cgroup-parent /{} --cgroups no-conmon --ulimit nofile=1024:1024 --ulimit nproc=1024:1024",
            env.token()
        );
        Self { env, program: "podman", global: words(&global), run: words(&run), server: None }.ready()
    }

    /// dockerd on the containerd at `containerd`.
    pub(crate) fn docker(env: &'env Env, containerd: &str) -> Result<Option<Self>> {
        if find(env, "dockerd").is_none() {
            note("docker: not measured, dockerd is not installed");
            return Ok(None);
        }
        let root = env.dir("docker")?;
        let log = File::create(root.join("log"))?;
        let root = root.display();
        let args = format!(
            "--host unix://{root}/sock --containerd {containerd} --pidfile {root}/pid --data-root {root}/data \
             --exec-root {root}/exec --storage-driver overlay2 --iptables=false --ip-forward=false --bridge=none \
             --exec-opt native.cgroupdriver=cgroupfs"
        );
        let mut command = Command::new("dockerd");
        env.prepare(&mut command);
        let server = command.args(words(&args)).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn();
        let server = Some(server.context("start dockerd")?);
        let run = format!("--cgroup-parent /{}", env.token());
        let global = format!("--host unix://{root}/sock");
        let engine = Self { env, program: "docker", global: words(&global), run: words(&run), server };
        let answers = || output::run(engine.command(&["version"])).ok()?.ok().ok();
        wait::until_within(wait::seconds(40), "dockerd answers", answers)?;
        engine.ready()
    }

    /// Makes the image. A machine on which an engine does not work is told of, and measured without it.
    fn ready(self) -> Result<Option<Self>> {
        if find(self.env, self.program).is_none() {
            note(&format!("{}: not measured, it is not installed", self.program));
            return Ok(None);
        }
        let root = self.env.dir("engine-image")?;
        if !root.join("bin").exists() {
            busybox_root(&root)?;
        }
        let archive = self.env.path("engine-image.tar").to_string_lossy().into_owned();
        self.env.run("tar", &["-C", &root.to_string_lossy(), "-cf", &archive, "."])?.ok()?;
        let tried = output::run(self.command(&["import", &archive, "box"]))
            .and_then(|ran| ran.ok())
            .and_then(|_| output::run(self.run()).and_then(|ran| ran.ok()));
        match tried {
            Ok(_) => Ok(Some(self)),
            Err(error) => {
                note(&format!("{}: not measured, it does not work here: {error:#}", self.program));
                Ok(None)
            }
        }
    }

    /// The command that runs `true` in a new container and removes it.
    pub(crate) fn run(&self) -> Command {
        let mut command = self.command(&["run", "--rm", "--network", "none"]);
        command.args(&self.run).args(["box", "true"]);
        command
    }

    /// The command that leaves a container called `name` running.
    pub(crate) fn detached(&self, name: &str) -> Command {
        // podman would give each of them ten seconds to end at its removal.
        let mut command = self.command(&["run", "-d", "--name", name, "--network", "none", "--stop-signal", "KILL"]);
        command.args(&self.run).args(["box", "sleep", "100000"]);
        command
    }

    /// The command that runs `true` in that container.
    pub(crate) fn exec(&self, name: &str) -> Command {
        self.command(&["exec", name, "true"])
    }

    /// Removes containers.
    pub(crate) fn remove(&self, names: &[String]) -> Result<()> {
        let mut command = self.command(&["rm", "-f"]);
        command.args(names);
        output::run(command)?.ok().map(drop)
    }

    /// Its command line, with everything in the bench's directory.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.program);
        self.env.prepare(&mut command);
        command.args(&self.global).args(args);
        command
    }
}

impl Drop for Engine<'_> {
    fn drop(&mut self) {
        if self.program == "podman" {
            // It binds its storage onto itself, and counts wrong when to undo that where many end at once.
            let _ = umount2(&self.env.path("podman/root/overlay"), MntFlags::MNT_DETACH);
        }
        let Some(server) = &mut self.server else { return };
        // Asked first, so that it unmounts what it mounted.
        let _ = self.env.run("kill", &[&server.id().to_string()]);
        if wait::until("dockerd ends", || server.try_wait().ok().flatten()).is_err() {
            let _ = server.kill();
        }
        let _ = server.wait();
    }
}

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}
