//! Runtimes alone, on the bundle that `runc spec` writes: `rung`, `crun`, `runc`, `youki`, and the floor below all of them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, anyhow, bail, ensure};
use integration_tests::{Bundle, Env, Result};
use rung_spec::defaults::seccomp;
use serde_json::json;

use crate::table::{self, Subject, interleave, millis, note};

/// How many are at it together in the tables of many.
const TOGETHER: usize = 8;

/// What is measured of a runtime.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Work {
    Run,
    Steps,
    Exec,
}

impl Work {
    const ALL: [Self; 3] = [Self::Run, Self::Steps, Self::Exec];

    fn title(self) -> &'static str {
        match self {
            Self::Run => "run /bin/true",
            Self::Steps => "create + start + delete --force",
            Self::Exec => "exec /bin/true",
        }
    }
}

struct Runtime {
    name: &'static str,
    program: PathBuf,
    bundle: String,
    root: PathBuf,
    id: String,
}

/// The floors are no runtimes: they can run a program, and that is all. One for each C library, whose own start counts.
const FLOORS: [&str; 2] = ["floor", "floor-musl"];

struct Bench<'a> {
    env: &'a Env,
    bundle: Bundle,
    floors: Vec<Runtime>,
    runtimes: Vec<Runtime>,
}

/// All tables about runtimes.
pub(crate) fn measure(env: &Env, rounds: usize) -> Result<()> {
    let mut bundle = Bundle::new(env, "bundle", &["/bin/true"])?;
    // Every runtime then chooses its own default.
    if let Some(linux) = bundle.config["linux"].as_object_mut() {
        linux.remove("cgroupsPath");
    }
    let path = bundle.write()?.to_owned();
    let state = std::env::var_os("BENCH_STATE").map_or_else(|| env.path("runtimes"), PathBuf::from);
    let entry = |name, program| {
        let root = state.join(name);
        Runtime { name, program, bundle: path.clone(), root, id: env.id(name) }
    };
    let mut runtimes = Vec::new();
    for name in ["rung", "crun", "runc", "youki"] {
        match find(env, name) {
            Some(program) => runtimes.push(entry(name, program)),
            None => note(&format!("{name} is not installed: not measured")),
        }
    }
    let floors = FLOORS.iter().filter_map(|name| Some(entry(name, env.program(&format!("examples/{name}")).ok()?)));
    let mut bench = Bench { env, floors: floors.collect(), bundle, runtimes };
    bench.check()?;
    bench.own_start(rounds)?;
    bench.tables("", rounds)?;
    bench.bundle.config["linux"]["seccomp"] = serde_json::to_value(seccomp::default(&Default::default()))?;
    bench.bundle.write()?;
    bench.tables(" with docker's default seccomp profile", rounds)
}

impl Bench<'_> {
    /// A runtime that runs nothing would win: each shows first that a command's output comes out of its container. One
    /// of others that cannot do it on this machine is named and left out.
    fn check(&mut self) -> Result<()> {
        self.set_args(&["sh", "-c", "echo process $$ of $(hostname)"])?;
        for runtime in std::mem::take(&mut self.runtimes) {
            let ran = integration_tests::output::run(runtime.run_command(self.env, 0))?;
            if ran.code() == 0 && ran.text() == "process 1 of runc" {
                self.runtimes.push(runtime);
                continue;
            }
            ensure!(runtime.name != "rung", "rung does not make the container: {ran}");
            note(&format!("{} does not make the container here: not measured: {ran}", runtime.name));
        }
        self.set_args(&["/bin/true"])
    }

    fn set_args(&mut self, args: &[&str]) -> Result<()> {
        self.bundle.config["process"]["args"] = json!(args);
        self.bundle.write().map(drop)
    }

    /// From exec to exit of a program that has nothing to do.
    fn own_start(&self, rounds: usize) -> Result<()> {
        let command = |runtime: &Runtime| runtime.command(self.env, &["--version"]);
        let mut subjects: Vec<_> =
            self.runtimes.iter().map(|runtime| Subject::new(runtime.name, || time(command(runtime)))).collect();
        interleave(&mut subjects, rounds)?;
        table::print("--version: the program's own start", "ms", &mut subjects, "crun");
        Ok(())
    }

    /// One at a time, many together, and the memory it takes.
    fn tables(&mut self, with: &str, rounds: usize) -> Result<()> {
        for work in Work::ALL {
            if work == Work::Exec {
                self.set_args(&["sleep", "100000"])?;
            }
            let measured = self.hold(work).and_then(|()| self.measure(work, with, rounds));
            self.let_go(work);
            measured?;
        }
        self.set_args(&["/bin/true"])
    }

    fn measure(&self, work: Work, with: &str, rounds: usize) -> Result<()> {
        let title = format!("{}{with}", work.title());
        let mut alone = self.subjects(work, |runtime| self.time(runtime, work, 0));
        interleave(&mut alone, rounds)?;
        table::print(&title, "ms", &mut alone, "crun");
        let mut many = self.subjects(work, |runtime| together(|number| self.time(runtime, work, number)));
        interleave(&mut many, rounds.div_ceil(5))?;
        table::print(&format!("{title}, {TOGETHER} at a time, until the last is done"), "ms", &mut many, "crun");
        let mut peaks = self.subjects(work, |runtime| self.peak(runtime, work));
        interleave(&mut peaks, 5)?;
        table::print(&format!("{title}: peak memory"), "MB", &mut peaks, "crun");
        Ok(())
    }

    /// Every runtime, and the floors where they can do the work.
    fn subjects<'s>(&'s self, work: Work, sample: impl Fn(&Runtime) -> Result<f64> + Copy + 's) -> Vec<Subject<'s>> {
        let floors = self.floors.iter().filter(|_| work == Work::Run);
        let all = floors.chain(&self.runtimes);
        all.map(|runtime| Subject::new(runtime.name, move || sample(runtime))).collect()
    }

    /// Milliseconds of one piece of work; `number` keeps those that are done together apart.
    fn time(&self, runtime: &Runtime, work: Work, number: usize) -> Result<f64> {
        runtime.commands(self.env, work, number).into_iter().map(time).sum()
    }

    /// The most memory any command of a piece of work takes.
    fn peak(&self, runtime: &Runtime, work: Work) -> Result<f64> {
        let commands = runtime.commands(self.env, work, 0);
        commands.iter().map(|command| peak_of(self.env, command)).try_fold(0.0, |most, peak| Ok(peak?.max(most)))
    }

    /// Starts the containers that are executed in.
    fn hold(&self, work: Work) -> Result<()> {
        for runtime in self.runtimes.iter().filter(|_| work == Work::Exec) {
            time(runtime.command(self.env, &["create", "--bundle", &runtime.bundle, &runtime.id]))?;
            time(runtime.command(self.env, &["start", &runtime.id]))?;
        }
        Ok(())
    }

    fn let_go(&self, work: Work) {
        for runtime in self.runtimes.iter().filter(|_| work == Work::Exec) {
            let _ = time(runtime.command(self.env, &["delete", "--force", &runtime.id]));
        }
    }
}

impl Runtime {
    fn command(&self, env: &Env, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        env.prepare(&mut command);
        command.arg("--root").arg(&self.root).args(args);
        command
    }

    fn run_command(&self, env: &Env, number: usize) -> Command {
        if FLOORS.contains(&self.name) {
            let mut command = Command::new(&self.program);
            command.arg(Path::new(&self.bundle).join("rootfs")).arg("/bin/true");
            return command;
        }
        self.command(env, &["run", "--bundle", &self.bundle, &self.numbered(number)])
    }

    fn commands(&self, env: &Env, work: Work, number: usize) -> Vec<Command> {
        let id = &self.numbered(number);
        match work {
            Work::Run => vec![self.run_command(env, number)],
            Work::Steps => vec![
                self.command(env, &["create", "--bundle", &self.bundle, id]),
                self.command(env, &["start", id]),
                self.command(env, &["delete", "--force", id]),
            ],
            Work::Exec => vec![self.command(env, &["exec", &self.id, "/bin/true"])],
        }
    }

    fn numbered(&self, number: usize) -> String {
        format!("{}-{number}", self.id)
    }
}

/// Milliseconds until the last of many that are started at once is done.
fn together(sample: impl Fn(usize) -> Result<f64> + Sync) -> Result<f64> {
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let sample = &sample;
        let all: Vec<_> = (0..TOGETHER).map(|number| scope.spawn(move || sample(number))).collect();
        all.into_iter().try_for_each(|one| one.join().map_err(|_| anyhow!("a sample panicked"))?.map(drop))
    })?;
    Ok(millis(begun.elapsed()))
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
