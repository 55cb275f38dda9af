//! The daemon as a unit of systemd, as `make install` installs it.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use integration_tests::{Env, Image, Ran, Registry, Result, Test, output, tests, wait};

pub(crate) const TESTS: &[Test] = tests![containers_outlive_the_unit [Root, Overlay, Systemd]];

/// `gantryd.service` under a name of the test's own.
struct Unit<'env> {
    env: &'env Env,
    name: String,
    file: PathBuf,
}

impl<'env> Unit<'env> {
    fn install(env: &'env Env) -> Result<Self> {
        let unit = include_str!("../../core-daemon/gantryd.service");
        let program = env.program("gantryd")?;
        let shown = |name: &str| env.path(name).display().to_string();
        let run = format!(
            "ExecStart={} --address {} --root {} --state {}",
            program.display(),
            shown("sock"),
            shown("root"),
            shown("state")
        );
        let installed = unit.replace("ExecStart=/usr/local/bin/gantryd", &run);
        ensure!(installed.contains(&run), "the unit does not start /usr/local/bin/gantryd");
        let name = format!("{}.service", env.token());
        let file = PathBuf::from("/run/systemd/system").join(&name);
        fs::write(&file, installed).with_context(|| format!("write {}", file.display()))?;
        let unit = Self { env, name, file };
        env.run("systemctl", &["daemon-reload"])?.ok()?;
        Ok(unit)
    }

    /// Has systemd do something with it; `start` comes back when the daemon has said that it is ready.
    fn systemctl(&self, verb: &str) -> Result<()> {
        self.env.run("systemctl", &[verb, &self.name])?.ok().map(drop)
    }

    fn main_pid(&self) -> Result<String> {
        let shown = self.env.run("systemctl", &["show", "--property=MainPID", "--value", &self.name])?.ok()?;
        Ok(shown.text().to_owned())
    }

    fn gantry(&self, args: &[&str]) -> Result<Ran> {
        let mut command = self.env.command("gantry")?;
        command.env("GANTRY_ADDRESS", self.env.path("sock")).env("GANTRY_NAMESPACE", self.env.namespace());
        command.args(args);
        output::run(command)
    }
}

impl Drop for Unit<'_> {
    fn drop(&mut self) {
        let _ = self.systemctl("stop");
        let _ = fs::remove_file(&self.file);
        let _ = self.env.run("systemctl", &["daemon-reload"]);
    }
}

fn containers_outlive_the_unit(env: &Env) -> Result<()> {
    let registry = Registry::start(env)?;
    let image = Image::busybox()?.push(&registry, "test/busybox", "latest")?;
    let unit = Unit::install(env)?;
    unit.systemctl("start")?;
    // Ready is what it said, so nothing is waited for.
    unit.gantry(&["run", "-d", "--name", "web", &image, "sleep", "1000"])?.ok()?;
    let pid = || -> Result<String> {
        Ok(unit.gantry(&["inspect", "--format", "{{.State.Pid}}", "web"])?.ok()?.text().to_owned())
    };
    let begun = pid()?;
    unit.systemctl("reload")?;
    // The unit keeps the daemon from being ended for want of memory, not what runs in containers.
    let score = |pid: &str| fs::read_to_string(format!("/proc/{pid}/oom_score_adj"));
    assert_eq!((score(&unit.main_pid()?)?.trim(), score(&begun)?.trim()), ("-999", "0"));

    unit.systemctl("restart")?;
    assert_eq!(pid()?, begun, "after a restart");
    unit.gantry(&["exec", "web", "true"])?.ok()?;

    unit.systemctl("stop")?;
    ensure!(PathBuf::from(format!("/proc/{begun}")).exists(), "the container ended with the unit");
    unit.systemctl("start")?;
    assert_eq!(pid()?, begun, "after a stop and a start");

    // A daemon that dies is started again.
    let died = unit.main_pid()?;
    env.run("kill", &["-KILL", &died])?.ok()?;
    wait::until("the daemon is started again", || {
        let pid = unit.main_pid().ok()?;
        (pid != "0" && pid != died && unit.gantry(&["version"]).ok()?.ok().is_ok()).then_some(())
    })?;
    assert_eq!(pid()?, begun, "after the daemon was killed");
    unit.gantry(&["rm", "-f", "web"])?.ok()?;
    ensure!(!PathBuf::from(format!("/proc/{begun}")).exists(), "the container is still there");
    Ok(())
}
