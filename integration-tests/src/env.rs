//! What one test has to itself: a token, a temporary directory, names, and the built programs.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde_json::Value;

use crate::{Ran, Result, output};

/// The surroundings of one test.
///
/// The token is in every name a test gives to anything (directory, container, namespace, cgroup), and in the environment
/// of every process it starts, so that whatever is left after the test can be found and laid at its door.
#[derive(Debug)]
pub struct Env {
    token: String,
    root: PathBuf,
    programs: PathBuf,
}

impl Env {
    /// Makes the temporary directory of the test that carries `token`.
    pub fn new(token: &str) -> Result<Self> {
        // Short: a socket's path has room for 107 bytes.
        let root = std::env::temp_dir().join(token);
        fs::create_dir(&root).with_context(|| format!("create {}", root.display()))?;
        Ok(Self { token: token.to_owned(), root, programs: program_dir()? })
    }

    /// The token: lower-case letters and digits.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// The test's own directory, removed after it.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A path in the test's own directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Makes a directory in the test's own directory.
    pub fn dir(&self, name: &str) -> Result<PathBuf> {
        let path = self.path(name);
        fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(path)
    }

    /// Writes a script that can be executed into the test's own directory.
    pub fn script(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.path(name);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(path)
    }

    /// Gives this process mounts of its own: what it mounts from now on goes with it, and nobody else sees it.
    pub fn own_mounts(&self) -> Result<()> {
        unshare(CloneFlags::CLONE_NEWNS).context("make a mount namespace")?;
        let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).context("make the mounts private")
    }

    /// Gives this process mounts of its own and an `/etc` that begins as the machine's: what is written there goes with it.
    pub fn own_etc(&self) -> Result<()> {
        self.own_mounts()?;
        let (upper, work) = (self.dir("etc")?, self.dir("etc.work")?);
        let options = format!("lowerdir=/etc,upperdir={},workdir={}", upper.display(), work.display());
        mount(Some("overlay"), "/etc", Some("overlay"), MsFlags::empty(), Some(options.as_str())).context("mount /etc")
    }

    /// A container id that no other test uses.
    pub fn id(&self, name: &str) -> String {
        format!("{}-{name}", self.token)
    }

    /// A containerd namespace that no other test uses.
    pub fn namespace(&self) -> &str {
        &self.token
    }

    /// Path of one of our programs (`rung`, `containerd-shim-rung-v2`, `gantryd`, `gantry`) or test programs.
    pub fn program(&self, name: &str) -> Result<PathBuf> {
        let path = self.programs.join(name);
        if !path.is_file() {
            bail!("{} is not built; run `cargo build` first, or set GANTRY_BIN_DIR", path.display());
        }
        Ok(path)
    }

    /// A command that runs one of our programs, with the directory of all of them first in PATH.
    pub fn command(&self, name: &str) -> Result<Command> {
        let mut command = Command::new(self.program(name)?);
        self.prepare(&mut command);
        Ok(command)
    }

    /// Gives a command the token and our programs first in PATH.
    pub fn prepare(&self, command: &mut Command) {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let dirs = std::iter::once(self.programs.clone()).chain(std::env::split_paths(&path));
        // `join_paths` fails only on a directory with a colon in its name, which PATH cannot express anyway.
        command.env("PATH", std::env::join_paths(dirs).unwrap_or(path)).env("TMPDIR", &self.root);
    }

    /// `rung` with the test's own state directory.
    pub fn rung(&self, args: &[&str]) -> Result<Command> {
        let mut command = self.command("rung")?;
        command.arg("--root").arg(self.path("rung")).args(args);
        Ok(command)
    }

    /// Runs `rung` with the test's own state directory to its end.
    pub fn run_rung(&self, args: &[&str]) -> Result<Ran> {
        output::run(self.rung(args)?)
    }

    /// What `rung state` says of a container.
    pub fn state(&self, id: &str) -> Result<Value> {
        let ran = self.run_rung(&["state", id])?.ok()?;
        serde_json::from_str(ran.text()).with_context(|| format!("read the state of {id}"))
    }

    /// Runs a program of the machine (`ctr`, `nft`, `ip`, ...) to its end.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<Ran> {
        let mut command = Command::new(program);
        self.prepare(&mut command);
        command.args(args);
        output::run(command)
    }
}

/// A token for a new test: unique on this machine, of one length, so that none is part of another.
pub(crate) fn new_token(number: usize) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().subsec_nanos();
    let run = run().unwrap_or_else(|| format!("{:06x}", std::process::id() & 0xff_ffff));
    format!("{}{:04x}{:03x}", token_prefix(&run), now & 0xffff, number & 0xfff)
}

/// What the tokens of a run have in common.
pub(crate) fn token_prefix(run: &str) -> String {
    format!("gt{run}")
}

/// `GANTRY_TEST_RUN`: six hexadecimal digits by which everything of a run can be found afterwards.
pub(crate) fn run() -> Option<String> {
    let run = std::env::var("GANTRY_TEST_RUN").ok()?;
    (run.len() == 6 && run.bytes().all(|digit| digit.is_ascii_hexdigit())).then_some(run)
}

/// `GANTRY_BIN_DIR`, else the directory cargo put the programs in: the parent of the test program's own `deps`.
fn program_dir() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("GANTRY_BIN_DIR") {
        return Ok(PathBuf::from(dir));
    }
    let own = std::env::current_exe().context("find the test program's own path")?;
    let deps = own.parent().unwrap_or(Path::new("/"));
    let dir = if deps.ends_with("deps") { deps.parent().unwrap_or(deps) } else { deps };
    Ok(dir.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_token_is_part_of_another() {
        let (one, ten) = (new_token(1), new_token(16));
        assert_eq!(one.len(), ten.len());
        assert_ne!(one, ten);
        assert!(one.chars().all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit()));
    }
}
