//! CRI-O, of which no distribution has a package that this machine could install: its programs are where `BENCH_CRIO` says.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::Context as _;
use integration_tests::{Env, Result, wait};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A CRI-O with state of its own, and runc below it.
pub(crate) struct Crio {
    child: Child,
    dir: PathBuf,
}

impl Crio {
    /// Starts `crio`, which wants `pinns` beside it and conmon and runc installed, where the machine has one.
    pub(crate) fn start(env: &Env, networks: &str, plugins: &str, pause: &str) -> Result<Option<Self>> {
        let Some(programs) = std::env::var_os("BENCH_CRIO").map(PathBuf::from) else { return Ok(None) };
        let dir = env.dir("crio")?;
        let config = dir.join("crio.conf");
        fs::write(&config, settings(&dir, &programs.join("pinns"), networks, plugins, pause))?;
        fs::write(dir.join("policy.json"), r#"{"default": [{"type": "insecureAcceptAnything"}]}"#)?;
        let registry = pause.split('/').next().unwrap_or_default();
        fs::write(dir.join("registries.conf"), format!("[[registry]]\nlocation = {registry:?}\ninsecure = true\n"))?;
        let log = fs::File::create(dir.join("log"))?;
        let mut command = Command::new(programs.join("crio"));
        env.prepare(&mut command);
        command.arg("--config").arg(&config).arg("--config-dir").arg(env.dir("crio/none")?);
        command.arg("--registries-conf").arg(dir.join("registries.conf"));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let crio = Self { child: command.spawn().context("start crio")?, dir };
        let socket = crio.socket();
        wait::until_within(wait::seconds(20), "crio's socket", || socket.exists().then_some(()))?;
        Ok(Some(crio))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.join("s")
    }

    /// What is in the command line of each of its monitors, and of nobody else.
    pub(crate) fn mark(&self) -> String {
        self.dir.join("run").to_string_lossy().into_owned()
    }
}

fn settings(dir: &Path, pinns: &Path, networks: &str, plugins: &str, pause: &str) -> String {
    let at = |name: &str| dir.join(name).to_string_lossy().into_owned();
    format!(
        "[crio]\nroot = {:?}\nrunroot = {:?}\nstorage_driver = \"overlay\"\nlog_dir = {:?}\nversion_file = {:?}\n\
         clean_shutdown_file = {:?}\n[crio.api]\nlisten = {:?}\nstream_port = \"0\"\n\
         [crio.runtime]\ncgroup_manager = \"cgroupfs\"\nconmon_cgroup = \"pod\"\ncontainer_exits_dir = {:?}\n\
         container_attach_socket_dir = {:?}\nnamespaces_dir = {:?}\npinns_path = {pinns:?}\nhooks_dir = []\n\
         default_runtime = \"runc\"\n[crio.runtime.runtimes.runc]\nmonitor_cgroup = \"pod\"\nruntime_root = {:?}\n\
         [crio.image]\npause_image = {pause:?}\nsignature_policy = {:?}\n\
         [crio.network]\nnetwork_dir = {networks:?}\nplugin_dirs = [{plugins:?}]\n",
        at("root"),
        at("run"),
        at("logs"),
        at("version"),
        at("clean"),
        at("s"),
        at("exits"),
        at("attach"),
        at("ns"),
        at("rt"),
        at("policy.json"),
    )
}

impl Drop for Crio {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        if wait::until("crio ends", || self.child.try_wait().ok().flatten()).is_err() {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
        // It leaves its storage mounted, for the next one to find.
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(Path::new);
        for point in points.filter(|point| point.starts_with(&self.dir)) {
            let _ = umount2(point, MntFlags::MNT_DETACH);
        }
    }
}
