//! Runtimes alone, on the bundle that `runc spec` writes: `rung`, `crun`, `runc`, and the floor below all of them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use integration_tests::{Bundle, Env, Result};
use serde_json::json;

use crate::table::{self, Subject, interleave, millis, note};

struct Runtime<'a> {
    name: &'a str,
    program: PathBuf,
    bundle: String,
    root: PathBuf,
    id: String,
}

/// All tables about runtimes.
pub(crate) fn measure(env: &Env, rounds: usize) -> Result<()> {
    let mut bundle = Bundle::new(env, "bundle", &["/bin/true"])?;
    // Every runtime then chooses its own default.
    if let Some(linux) = bundle.config["linux"].as_object_mut() {
        linux.remove("cgroupsPath");
    }
    let path = bundle.write()?.to_owned();
    let mut runtimes = Vec::new();
    for name in ["rung", "crun", "runc"] {
        match find(env, name) {
            Some(program) => runtimes.push(Runtime {
                name,
                program,
                bundle: path.clone(),
                root: env.path(&format!("{name}-state")),
                id: env.id(name),
            }),
            None => note(&format!("{name} is not installed: not measured")),
        }
    }
    let floor = env.program("examples/floor")?;
    let rootfs = bundle.rootfs();
    check(env, &mut bundle, &runtimes)?;
    run(env, &floor, &rootfs, &runtimes, rounds)?;
    steps(env, &runtimes, rounds)?;
    exec(env, &mut bundle, &runtimes, rounds)?;
    peak(env, &floor, &rootfs, &runtimes)
}

/// A runtime that runs nothing would win: each shows first that a command's output comes out of its container.
fn check(env: &Env, bundle: &mut Bundle, runtimes: &[Runtime<'_>]) -> Result<()> {
    bundle.config["process"]["args"] = json!(["sh", "-c", "echo process $$ of $(hostname)"]);
    bundle.write()?;
    for runtime in runtimes {
        let ran = integration_tests::output::run(runtime.run_command(env))?.ok()?;
        ensure!(ran.text() == "process 1 of runc", "{} does not make the container: {ran}", runtime.name);
    }
    bundle.config["process"]["args"] = json!(["/bin/true"]);
    bundle.write()?;
    Ok(())
}

fn run(env: &Env, floor: &Path, rootfs: &Path, runtimes: &[Runtime<'_>], rounds: usize) -> Result<()> {
    let mut subjects = vec![Subject::new("floor", || time(floor_command(floor, rootfs)))];
    for runtime in runtimes {
        subjects.push(Subject::new(runtime.name, || time(runtime.run_command(env))));
    }
    interleave(&mut subjects, rounds)?;
    table::print("run /bin/true: start to exit", "ms", &mut subjects, "crun");
    Ok(())
}

fn steps(env: &Env, runtimes: &[Runtime<'_>], rounds: usize) -> Result<()> {
    let mut subjects: Vec<_> = runtimes
        .iter()
        .map(|runtime| {
            Subject::new(runtime.name, || {
                let mut total = time(runtime.command(env, &["create", "--bundle", &runtime.bundle, &runtime.id]))?;
                total += time(runtime.command(env, &["start", &runtime.id]))?;
                total += time(runtime.command(env, &["delete", "--force", &runtime.id]))?;
                Ok(total)
            })
        })
        .collect();
    interleave(&mut subjects, rounds)?;
    table::print("create + start + delete --force", "ms", &mut subjects, "crun");
    Ok(())
}

fn exec(env: &Env, bundle: &mut Bundle, runtimes: &[Runtime<'_>], rounds: usize) -> Result<()> {
    bundle.config["process"]["args"] = json!(["sleep", "100000"]);
    bundle.write()?;
    let measured = (|| {
        for runtime in runtimes {
            time(runtime.command(env, &["create", "--bundle", &runtime.bundle, &runtime.id]))?;
            time(runtime.command(env, &["start", &runtime.id]))?;
        }
        let mut subjects: Vec<_> = runtimes
            .iter()
            .map(|runtime| {
                Subject::new(runtime.name, || time(runtime.command(env, &["exec", &runtime.id, "/bin/true"])))
            })
            .collect();
        interleave(&mut subjects, rounds)?;
        table::print("exec /bin/true", "ms", &mut subjects, "crun");
        Ok(())
    })();
    for runtime in runtimes {
        let _ = time(runtime.command(env, &["delete", "--force", &runtime.id]));
    }
    bundle.config["process"]["args"] = json!(["/bin/true"]);
    bundle.write()?;
    measured
}

fn peak(env: &Env, floor: &Path, rootfs: &Path, runtimes: &[Runtime<'_>]) -> Result<()> {
    let mut subjects = vec![Subject::new("floor", || peak_of(env, &floor_command(floor, rootfs)))];
    for runtime in runtimes {
        subjects.push(Subject::new(runtime.name, || peak_of(env, &runtime.run_command(env))));
    }
    interleave(&mut subjects, 5)?;
    table::print("peak memory of run /bin/true", "MB", &mut subjects, "crun");
    Ok(())
}

impl Runtime<'_> {
    fn command(&self, env: &Env, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        env.prepare(&mut command);
        command.arg("--root").arg(&self.root).args(args);
        command
    }

    fn run_command(&self, env: &Env) -> Command {
        self.command(env, &["run", "--bundle", &self.bundle, &self.id])
    }
}

fn floor_command(floor: &Path, rootfs: &Path) -> Command {
    let mut command = Command::new(floor);
    command.arg(rootfs).arg("/bin/true");
    command
}

/// Ours from where it was built, the others from PATH.
pub(crate) fn find(env: &Env, name: &str) -> Option<PathBuf> {
    env.program(name).ok().or_else(|| {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).map(|dir| dir.join(name)).find(|program| program.is_file())
    })
}

/// Milliseconds a command takes; its failure is an error that shows what it said.
pub(crate) fn time(mut command: Command) -> Result<f64> {
    let mut errors = tempfile::tempfile()?;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors.try_clone()?);
    let begun = Instant::now();
    let mut child = command.spawn().with_context(|| format!("start {command:?}"))?;
    let status = child.wait()?;
    let took = begun.elapsed();
    if !status.success() {
        let mut said = String::new();
        std::io::Seek::rewind(&mut errors)?;
        std::io::Read::read_to_string(&mut errors, &mut said)?;
        bail!("{command:?} ended with {status}: {said}");
    }
    Ok(millis(took))
}

/// Peak resident size of a command and what it waits for, in MB.
fn peak_of(env: &Env, command: &Command) -> Result<f64> {
    let mut asking = Command::new(env.program("examples/peak")?);
    env.prepare(&mut asking);
    asking.arg(command.get_program()).args(command.get_args());
    let ran = integration_tests::output::run(asking)?.ok()?;
    // Runtimes may warn before it.
    let last = ran.stderr.lines().last().unwrap_or_default();
    let kilobytes: f64 = last.parse().with_context(|| format!("not a size: {ran}"))?;
    Ok(kilobytes / 1024.0)
}
