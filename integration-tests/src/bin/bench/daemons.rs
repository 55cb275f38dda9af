//! Whole stacks: `gantry run` and `ctr run` on `gantryd`, beside `ctr run` on containerd with runc, and podman and docker.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::Context;
use integration_tests::{Daemon, Env, Image, Registry, Result, output, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::engines::Engine;
use crate::runtimes::{find, time};
use crate::table::{self, Subject, interleave, note};

/// The table about stacks.
pub(crate) fn measure(env: &Env, rounds: usize) -> Result<()> {
    let registry = Registry::start(env)?;
    let image = Image::busybox()?.push(&registry, "bench", "latest")?;
    let daemon = env.daemon()?;
    daemon.gantry(&["pull", &image])?.ok()?;
    let ctr = find(env, "ctr").is_some();
    let containerd = if ctr { Containerd::start(env)? } else { None };
    let id = env.id("containerd");
    let docker = match &containerd {
        Some(containerd) => Engine::docker(env, &containerd.address)?,
        None => None,
    };
    let podman = Engine::podman(env)?;
    let mut subjects = vec![Subject::new("gantry run --rm (gantryd)", || {
        time(daemon.gantry_command(&["run", "--rm", &image, "true"])?)
    })];
    if ctr {
        subjects.push(Subject::new("ctr run --rm (gantryd)", || time(ctr_run(env, &daemon, &image)?)));
    }
    match &containerd {
        Some(containerd) => {
            let pulled = containerd.ctr(env, &["images", "pull", "--plain-http", &image]);
            output::run(pulled)?.ok()?;
            subjects.push(Subject::new("ctr run --rm (containerd, runc)", || {
                time(containerd.ctr(env, &["run", "--rm", &image, &id, "true"]))
            }));
            if find(env, "crun").is_some() {
                subjects.push(Subject::new("ctr run --rm (containerd, crun)", || {
                    time(containerd.ctr(env, &["run", "--rm", "--runc-binary", "crun", &image, &id, "true"]))
                }));
            }
        }
        None => note("containerd or ctr is not installed: not measured"),
    }
    for (name, engine) in [("podman run --rm", &podman), ("docker run --rm", &docker)] {
        if let Some(engine) = engine {
            subjects.push(Subject::new(name, || time(engine.run())));
        }
    }
    interleave(&mut subjects, rounds)?;
    table::print("run --rm true, image pulled", "ms", &mut subjects, "ctr run --rm (containerd, runc)");
    drop(subjects);
    exec(env, &daemon, containerd.as_ref(), &[("podman exec", podman), ("docker exec", docker)], &image, rounds)
}

/// One more process in a container that runs.
fn exec(
    env: &Env,
    daemon: &Daemon<'_>,
    containerd: Option<&Containerd>,
    engines: &[(&str, Option<Engine<'_>>)],
    image: &str,
    rounds: usize,
) -> Result<()> {
    let name = env.id("exec");
    daemon.gantry(&["run", "-d", "--name", &name, image, "sleep", "100000"])?.ok()?;
    let mut ids = Vec::new();
    let engines: Vec<_> = engines.iter().filter_map(|(title, engine)| Some((title, engine.as_ref()?))).collect();
    let mut subjects =
        vec![Subject::new("gantry exec (gantryd)", || time(daemon.gantry_command(&["exec", &name, "true"])?))];
    if let Some(containerd) = containerd {
        ids.push(("ctr tasks exec (containerd, runc)", "runc", env.id("exec-runc")));
        if find(env, "crun").is_some() {
            ids.push(("ctr tasks exec (containerd, crun)", "crun", env.id("exec-crun")));
        }
        for (_, runtime, id) in &ids {
            output::run(containerd.detached(env, runtime, image, id))?.ok()?;
        }
        for (title, _, id) in &ids {
            subjects.push(Subject::new(title, || {
                time(containerd.ctr(env, &["tasks", "exec", "--exec-id", "e", id, "true"]))
            }));
        }
    }
    for (title, engine) in &engines {
        output::run(engine.detached(&name))?.ok()?;
        subjects.push(Subject::new(title, || time(engine.exec(&name))));
    }
    let measured = interleave(&mut subjects, rounds);
    table::print("exec true in a running container", "ms", &mut subjects, "ctr tasks exec (containerd, runc)");
    daemon.gantry(&["rm", "-f", &name])?.ok()?;
    if let Some(containerd) = containerd {
        ids.iter().try_for_each(|(_, _, id)| containerd.remove(env, id))?;
    }
    engines.iter().try_for_each(|(_, engine)| engine.remove(std::slice::from_ref(&name)))?;
    measured
}

fn ctr_run(env: &Env, daemon: &Daemon<'_>, image: &str) -> Result<Command> {
    let mut command = Command::new("ctr");
    env.prepare(&mut command);
    command.arg("--address").arg(daemon.socket()).args(["--namespace", env.namespace(), "run", "--rm"]);
    command.args([image, &env.id("ctr"), "true"]);
    Ok(command)
}

/// A containerd with state of its own.
pub(crate) struct Containerd {
    /// What it is called in a table.
    pub(crate) name: String,
    child: Child,
    address: String,
    ctr: PathBuf,
}

impl Containerd {
    pub(crate) fn start(env: &Env) -> Result<Option<Self>> {
        Self::start_with(env, "containerd", "disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n", "")
    }

    /// The same with more lines of configuration: before the first table, and after the last.
    pub(crate) fn start_with(env: &Env, name: &str, before: &str, after: &str) -> Result<Option<Self>> {
        if find(env, "containerd").is_none() || find(env, "ctr").is_none() {
            note("containerd: not measured, it is not installed");
            return Ok(None);
        }
        Self::start_program(env, Path::new(""), name, before, after).map(Some)
    }

    /// Another one, whose programs are in `dir`.
    pub(crate) fn start_from(env: &Env, dir: &Path) -> Result<Option<Self>> {
        let version = env.run(&dir.join("ctr").display().to_string(), &["--version"])?.ok()?;
        let mut containerd = Self::start_program(env, dir, "containerd-other", "", "")?;
        containerd.name = format!("ctr ({})", version.text().rsplit(' ').next().unwrap_or("other"));
        Ok(Some(containerd))
    }

    fn start_program(env: &Env, programs: &Path, name: &str, before: &str, after: &str) -> Result<Self> {
        let dir = env.dir(name)?;
        let address = dir.join("sock").to_str().context("path is not UTF-8")?.to_owned();
        let config = dir.join("config.toml");
        let shown = dir.display();
        fs::write(
            &config,
            format!(
                "version = 2\nroot = \"{shown}/root\"\nstate = \"{shown}/state\"\n{before}\
                 [grpc]\naddress = \"{address}\"\n{after}"
            ),
        )?;
        let log = fs::File::create(dir.join("log"))?;
        let mut command = Command::new(programs.join("containerd"));
        env.prepare(&mut command);
        command.arg("--config").arg(&config).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().context("start containerd")?;
        let containerd = Self { name: "containerd".to_owned(), child, address, ctr: programs.join("ctr") };
        wait::until_within(wait::seconds(20), "containerd answers", || {
            output::run(containerd.ctr(env, &["version"])).ok()?.ok().ok()
        })?;
        Ok(containerd)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// The command that leaves a container running with runc or crun.
    pub(crate) fn detached(&self, env: &Env, runtime: &str, image: &str, id: &str) -> Command {
        let args = ["run", "-d", "--null-io", "--runc-binary", runtime, image, id, "sleep", "100000"];
        self.ctr(env, &args)
    }

    /// Removes a container that runs.
    pub(crate) fn remove(&self, env: &Env, id: &str) -> Result<()> {
        // ctr leaves with the status of the task that it removes.
        let _ = output::run(self.ctr(env, &["tasks", "rm", "--force", id]))?;
        output::run(self.ctr(env, &["containers", "rm", id]))?.ok().map(drop)
    }

    pub(crate) fn ctr(&self, env: &Env, args: &[&str]) -> Command {
        let mut command = Command::new(&self.ctr);
        env.prepare(&mut command);
        command.args(["--address", &self.address, "--namespace", env.namespace()]).args(args);
        command
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // Asked first, so that it unmounts what it mounted.
        if let Ok(pid) = i32::try_from(self.child.id()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let ended = wait::until("containerd ends", || self.child.try_wait().ok().flatten());
        if ended.is_err() {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}
