//! A running `gantryd` with state, root and socket in the test's own directory.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::{Context, anyhow};
use gantry_proto::containerd::services::version::v1::version_client::VersionClient;
use gantry_proto::namespace::NAMESPACE_HEADER;
use hyper_util::rt::TokioIo;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tonic::Request;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::{Env, Ran, Result, output, wait};

/// A configuration with which clients that ask for containerd's own shim get it.
pub const WITHOUT_ALIASES: &str = "[runtime.aliases]\n";

/// A daemon, killed when dropped (its shims and containers live on: ending them is the test's part).
#[derive(Debug)]
pub struct Daemon<'env> {
    env: &'env Env,
    child: Child,
    socket: PathBuf,
    log: PathBuf,
}

impl Env {
    /// Starts `gantryd` and waits until it answers. Stopped and started again it finds its old state.
    pub fn daemon(&self) -> Result<Daemon<'_>> {
        self.daemon_with(&[])
    }

    /// Starts `gantryd` with more arguments.
    pub fn daemon_with(&self, args: &[&str]) -> Result<Daemon<'_>> {
        self.daemon_from(args, &[])
    }

    /// Starts `gantryd` with this configuration.
    pub fn daemon_configured(&self, config: &str) -> Result<Daemon<'_>> {
        let path = self.path("config.toml");
        fs::write(&path, config).context("write the daemon's configuration")?;
        self.daemon_with(&["--config", &path.to_string_lossy()])
    }

    /// Starts a `gantryd` that dies at a failpoint, as if by SIGKILL. Debug builds have them.
    pub fn daemon_dying_at(&self, failpoint: &str) -> Result<Daemon<'_>> {
        self.daemon_dying_with(failpoint, &[])
    }

    /// The same with more arguments.
    pub fn daemon_dying_with(&self, failpoint: &str, args: &[&str]) -> Result<Daemon<'_>> {
        self.daemon_from(args, &[("GANTRYD_FAILPOINT", failpoint)])
    }

    fn daemon_from(&self, args: &[&str], variables: &[(&str, &str)]) -> Result<Daemon<'_>> {
        let mut daemon = self.daemon_begun(args, variables)?;
        daemon.wait_ready()?;
        Ok(daemon)
    }

    /// Starts `gantryd` with more arguments and variables, and does not wait for anything. `--state` may be among them.
    pub fn daemon_begun(&self, args: &[&str], variables: &[(&str, &str)]) -> Result<Daemon<'_>> {
        let completed = self.completed_config(args)?.map(|path| path.to_string_lossy().into_owned());
        let config = completed.iter().flat_map(|path| ["--config", path]);
        self.daemon_spawned(&config.chain(args.iter().copied()).collect::<Vec<_>>(), variables)
    }

    /// Starts `gantryd` with this configuration at `path`, where it looks for one by itself, and waits until it answers.
    pub fn daemon_with_default_file(&self, path: &Path, config: &str) -> Result<Daemon<'_>> {
        path.parent().map_or(Ok(()), fs::create_dir_all)?;
        fs::write(path, config).context("write the daemon's configuration")?;
        let mut daemon = self.daemon_spawned(&[], &[])?;
        daemon.wait_ready()?;
        Ok(daemon)
    }

    fn daemon_spawned(&self, args: &[&str], variables: &[(&str, &str)]) -> Result<Daemon<'_>> {
        let (socket, log) = (self.path("gantryd.sock"), self.path("gantryd.log"));
        let file = File::options().create(true).append(true).open(&log).context("open the daemon's log")?;
        let state = self.path("state");
        let state = [OsStr::new("--state"), state.as_os_str()];
        let child = self
            .command("gantryd")?
            .arg("--address")
            .arg(&socket)
            .arg("--root")
            .arg(self.path("root"))
            .args(state.iter().filter(|_| !args.contains(&"--state")))
            .args(args)
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .context("start gantryd")?;
        Ok(Daemon { env: self, child, socket, log })
    }

    /// A gRPC request in the test's namespace.
    ///
    /// # Panics
    /// Never: a token is letters and digits.
    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let namespace = self.namespace().parse().expect("letters and digits are a header");
        request.metadata_mut().insert(NAMESPACE_HEADER, namespace);
        request
    }

    /// Adds to the configuration among `args`, or gives one of its own: plugins of the node resource interface connect in the
    /// test's directory, and on a slow machine the daemon waits longer for its shims.
    fn completed_config(&self, args: &[&str]) -> Result<Option<PathBuf>> {
        let own = args.iter().skip_while(|arg| **arg != "--config").nth(1).map(PathBuf::from);
        if own.as_ref().is_some_and(|path| !path.starts_with(self.root()) || !path.is_file()) {
            return Ok(None);
        }
        let path = own.clone().unwrap_or_else(|| self.path("harness.toml"));
        let text = fs::read_to_string(&path).unwrap_or_default();
        let mut more = String::new();
        if !text.contains("nri") {
            match text.lines().any(|line| line.starts_with("version = ")) {
                true => more.push_str("\n[plugins.\"io.containerd.nri.v1.nri\"]\ndisable = true\n"),
                false => more.push_str(&format!("\n[cri.nri]\nsocket = {:?}\n", self.path("nri.sock"))),
            }
        }
        if wait::patience() > 1 && !text.contains("[timeouts]") {
            let waits =
                [("shim_start", 30), ("shim_load", 5), ("shim_call", 120), ("shim_state", 2), ("shim_cleanup", 10)];
            let lines = waits.map(|(name, seconds)| format!("{name} = {}\n", seconds * wait::patience()));
            more.push_str(&format!("\n[timeouts]\n{}", lines.concat()));
        }
        if !more.is_empty() {
            fs::write(&path, text + &more).context("write the daemon's configuration")?;
        }
        Ok(own.is_none().then_some(path))
    }
}

impl Daemon<'_> {
    /// Path of its socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// A command that runs `gantry` against it, in the test's namespace.
    pub fn gantry_command(&self, args: &[&str]) -> Result<Command> {
        let mut command = self.env.command("gantry")?;
        command.env("GANTRY_ADDRESS", &self.socket).env("GANTRY_NAMESPACE", self.env.namespace()).args(args);
        Ok(command)
    }

    /// Runs `gantry` against it to its end.
    pub fn gantry(&self, args: &[&str]) -> Result<Ran> {
        output::run(self.gantry_command(args)?)
    }

    /// Runs Debian's `ctr` against it to its end, in the test's namespace.
    pub fn ctr(&self, args: &[&str]) -> Result<Ran> {
        let mut command = Command::new("ctr");
        self.env.prepare(&mut command);
        command.arg("--address").arg(&self.socket).args(["--namespace", self.env.namespace()]).args(args);
        output::run(command)
    }

    /// A gRPC connection to it, for the current runtime.
    pub async fn channel(&self) -> Result<Channel> {
        connect(&self.socket).await
    }

    /// Collects, and wants every record and file to be as the others say.
    pub fn is_whole(&self) -> Result<()> {
        self.gantry(&["system", "gc"])?.ok()?;
        self.gantry(&["system", "fsck", "--deep"])?.ok().map(drop)
    }

    /// Ends it as an operator does (SIGTERM) and waits; fails if it does not end.
    pub fn stop(mut self) -> Result<ExitStatus> {
        kill(self.raw_pid(), Signal::SIGTERM).context("send SIGTERM to gantryd")?;
        let ended = wait::until("gantryd ends after SIGTERM", || self.child.try_wait().transpose());
        ended.and_then(|status| Ok(status?)).map_err(|error| anyhow!("{error:#}\n--- its log\n{}", self.log()))
    }

    /// Waits until it has died by itself, at a failpoint. False if it does not.
    pub fn died(&mut self) -> bool {
        self.died_within(10)
    }

    /// As [`Daemon::died`], where it need not die.
    pub fn died_within(&mut self, seconds: u64) -> bool {
        wait::until_within(wait::seconds(seconds), "gantryd dies", || self.child.try_wait().ok().flatten()).is_ok()
    }

    /// Ends it as a crash does (SIGKILL).
    pub fn crash(mut self) -> Result<()> {
        self.child.kill().context("kill gantryd")?;
        self.child.wait()?;
        Ok(())
    }

    fn raw_pid(&self) -> Pid {
        // Process ids fit: the kernel's limit is 2^22.
        Pid::from_raw(i32::try_from(self.child.id()).unwrap_or(i32::MAX))
    }

    /// Waits until it answers.
    pub fn wait_ready(&mut self) -> Result<()> {
        let runtime = runtime()?;
        let socket = self.socket.clone();
        let ready = wait::until_within(wait::seconds(20), "gantryd answers", || match self.child.try_wait() {
            Ok(Some(status)) => Some(Err(anyhow!("gantryd ended with {status}"))),
            _ => {
                UnixStream::connect(&socket).ok()?;
                runtime.block_on(version(&socket)).ok().map(Ok)
            }
        });
        ready.and_then(|answer| answer).map_err(|error| anyhow!("{error:#}\n--- its log\n{}", self.log()))
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A runtime for a test that speaks gRPC: `runtime()?.block_on(async { ... })`.
pub fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// A gRPC connection to a unix socket.
pub async fn connect(socket: &Path) -> Result<Channel> {
    let socket = socket.to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { tokio::net::UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    Ok(Endpoint::from_static("http://localhost").timeout(wait::seconds(30)).connect_with_connector(connector).await?)
}

async fn version(socket: &Path) -> Result<()> {
    VersionClient::new(connect(socket).await?).version(()).await?;
    Ok(())
}
