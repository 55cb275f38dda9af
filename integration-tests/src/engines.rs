//! The container engines of Debian, podman and docker, and the programs that they are made of.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command};

use anyhow::Context as _;

use crate::bundle::busybox_root;
use crate::{Env, Ran, Result, output, wait};

/// An engine's command line, with what every call of it needs.
#[derive(Debug)]
pub struct Engine<'env> {
    /// The test.
    pub env: &'env Env,
    /// Its program: `docker` or `podman`.
    pub program: &'static str,
    /// Arguments before the command.
    pub global: Vec<String>,
    /// Arguments of `run`, of which the first is the parent cgroup.
    pub run: Vec<String>,
}

impl Engine<'_> {
    /// A call of it.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.program);
        self.env.prepare(&mut command);
        command.args(&self.global).args(args);
        command
    }

    /// Calls it to its end.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn call(&self, args: &[&str]) -> Result<Ran> {
        output::run(self.command(args))
    }

    /// Runs a container of the image `box` to its end.
    ///
    /// # Errors
    /// When the engine cannot be started.
    pub fn run(&self, flags: &[&str], program: &[&str]) -> Result<Ran> {
        let fixed: Vec<&str> = self.run.iter().map(String::as_str).collect();
        self.call(&[&["run", "--network", "none", "--cgroup-parent"], &fixed[..], flags, &["box"], program].concat())
    }

    /// Makes the image `box`, whose files are busybox.
    ///
    /// # Errors
    /// When the engine refuses it.
    pub fn import(&self) -> Result<()> {
        let root = self.env.dir("image")?;
        busybox_root(&root)?;
        let archive = self.env.path("image.tar").to_string_lossy().into_owned();
        self.env.run("tar", &["-C", &root.to_string_lossy(), "-cf", &archive, "."])?.ok()?;
        self.call(&["import", &archive, "box"])?.ok().map(drop)
    }
}

/// A program that serves until it is told to end.
#[derive(Debug)]
pub struct Server(Child);

impl Server {
    /// Starts it, with its output in a file of its name.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(env: &Env, program: &str, args: &[String]) -> Result<Self> {
        let mut command = Command::new(program);
        env.prepare(&mut command);
        let log = File::create(env.path(&format!("{program}.log")))?;
        let child = command.args(args).stdout(log.try_clone()?).stderr(log).spawn();
        Ok(Self(child.with_context(|| format!("start {program}"))?))
    }

    /// Ends it as an operator does.
    ///
    /// # Errors
    /// When it cannot be told.
    pub fn stop(&mut self, env: &Env) -> Result<()> {
        env.run("kill", &[&self.0.id().to_string()])?.ok()?;
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Debian's dockerd on a containerd, or what passes for one, with nothing of the machine's own.
#[derive(Debug)]
pub struct Dockerd<'env> {
    /// Docker's command line, for it.
    pub engine: Engine<'env>,
    server: Server,
    args: Vec<String>,
}

impl<'env> Dockerd<'env> {
    /// Starts it on the containerd at `socket`, with more arguments, and waits until it answers.
    ///
    /// # Errors
    /// When it does not.
    pub fn start(env: &'env Env, socket: &Path, more: &str) -> Result<Self> {
        let root = env.root().display();
        let host = format!("unix://{root}/d.sock");
        let args = words(&format!(
            "--host {host} --containerd {} --pidfile {root}/d.pid --data-root {root}/data --exec-root {root}/exec \
             --storage-driver vfs --iptables=false --ip-forward=false --bridge=none \
             --exec-opt native.cgroupdriver=cgroupfs {more}",
            socket.display(),
        ));
        let run = vec![format!("/{}", env.token())];
        let engine = Engine { env, program: "docker", global: words(&format!("--host {host}")), run };
        let server = Server::start(env, "dockerd", &args)?;
        let dockerd = Self { engine, server, args };
        dockerd.answers()?;
        Ok(dockerd)
    }

    fn answers(&self) -> Result<()> {
        let answer = || self.engine.call(&["version"]).ok().filter(|ran| ran.code() == 0).map(drop);
        wait::until_within(wait::seconds(40), "dockerd to answer", answer)
    }

    /// Ends it and starts it again.
    ///
    /// # Errors
    /// When it does not answer then.
    pub fn restart(&mut self) -> Result<()> {
        self.server.stop(self.engine.env)?;
        self.server = Server::start(self.engine.env, "dockerd", &self.args)?;
        self.answers()
    }

    /// Ends it, with all of its containers.
    ///
    /// # Errors
    /// When it cannot be told.
    pub fn stop(mut self) -> Result<()> {
        let env = self.engine.env;
        // A failed test must not leave containers behind; that there are none is no other failure.
        if let Ok(all) = self.engine.call(&["ps", "--all", "--quiet"]) {
            for id in all.text().split_whitespace() {
                let _ = self.engine.call(&["rm", "--force", id]);
            }
        }
        self.server.stop(env)
    }
}

/// The words of a command line; the test's own directory has no spaces in its name.
#[must_use]
pub fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}
