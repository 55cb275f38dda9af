//! The options that `run` and `create` share.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use gantry_proto::gantry::engine::v1 as api;
use rung_spec::platform::Platform;

use super::extras::Extras;
use super::health::Health;
use super::limits::Limits;
use crate::client::{Client, reason};
use crate::error::{Failure, Result};
use crate::parse::bind::Mount;
use crate::parse::{bind, env};
use crate::{credentials, session};

/// When an image is downloaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Pull {
    /// Every time.
    Always,
    /// When it is not here.
    #[value(alias = "")]
    Missing,
    /// Not at all.
    Never,
}

/// How to speak to the registry.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Registry {
    /// Speak HTTP to the registry instead of HTTPS
    #[arg(long)]
    pub plain_http: bool,
    /// Do not check the registry's certificate
    #[arg(long)]
    pub insecure: bool,
}

impl Registry {
    /// As the daemon takes it, with who we are to the registry of `image`.
    ///
    /// # Errors
    /// As [`credentials::fill`].
    pub async fn options(&self, image: &str) -> Result<api::RegistryOptions> {
        let mut options = api::RegistryOptions {
            plain_http: self.plain_http,
            insecure: self.insecure,
            ..api::RegistryOptions::default()
        };
        credentials::fill(&mut options, image).await?;
        Ok(options)
    }
}

/// The options of a container to be made.
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub struct Options {
    /// Print help
    #[arg(long, action = clap::ArgAction::HelpShort)]
    help: Option<bool>,
    /// Name of the container; one is made up otherwise
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Keep standard input open
    #[arg(long, short)]
    pub interactive: bool,
    /// Give the process a terminal
    #[arg(long, short)]
    pub tty: bool,
    /// Remove the container once it has ended
    #[arg(long)]
    pub rm: bool,
    /// Set a variable: KEY=VALUE, or KEY with its value here
    #[arg(long, short, value_name = "KEY[=VALUE]")]
    env: Vec<String>,
    /// Set the variables of a file, one KEY=VALUE a line
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Directory the process starts in
    #[arg(long, short, value_name = "DIR")]
    workdir: Option<String>,
    /// Who the process runs as: a name or number, and a group after ':'
    #[arg(long, short, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Replace the image's entrypoint; "" clears it
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    /// Name of the machine, as the container sees it
    #[arg(long, short = 'h', value_name = "NAME")]
    hostname: Option<String>,
    #[command(flatten)]
    limits: Limits,
    /// Show a file or directory of this machine in the container
    #[arg(long, short, value_name = "HOST_PATH:PATH[:ro]")]
    volume: Vec<String>,
    /// The same in longer words: type=bind,source=…,target=…
    #[arg(long, value_name = "FIELDS")]
    mount: Vec<String>,
    /// Network: none (loopback only) or host
    #[arg(long, visible_alias = "net", value_name = "NETWORK", default_value = "none")]
    network: String,
    /// Allow no writing to the root file system
    #[arg(long)]
    read_only: bool,
    /// Lift every restriction
    #[arg(long)]
    privileged: bool,
    /// Add a capability
    #[arg(long, value_name = "NAME")]
    cap_add: Vec<String>,
    /// Take a capability away
    #[arg(long, value_name = "NAME")]
    cap_drop: Vec<String>,
    /// Note something about the container
    #[arg(long, short, value_name = "KEY=VALUE")]
    label: Vec<String>,
    /// When to download the image
    #[arg(long, value_enum, default_value = "missing", value_name = "WHEN")]
    pub pull: Pull,
    /// Platform of the image: os/arch[/variant]
    #[arg(long, value_name = "PLATFORM", value_parser = platform)]
    platform: Option<String>,
    /// Signal that stops the container first
    #[arg(long, value_name = "SIGNAL")]
    stop_signal: Option<String>,
    /// When to start it again: no, always, unless-stopped or on-failure[:TIMES]
    #[arg(long, value_name = "POLICY")]
    restart: Option<String>,
    /// Runtime, as containerd names it
    #[arg(long, value_name = "NAME")]
    runtime: Option<String>,
    /// Write the container's id to a new file
    #[arg(long, value_name = "FILE")]
    pub cidfile: Option<String>,
    #[command(flatten)]
    extras: Extras,
    #[command(flatten)]
    health: Health,
    #[command(flatten)]
    registry: Registry,
    /// Do not report the download
    #[arg(long, short)]
    pub quiet: bool,
    /// Image to run
    #[arg(value_name = "IMAGE")]
    pub image: String,
    /// Command and its arguments
    #[arg(value_name = "COMMAND", trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

/// A platform, checked here so that a slip is seen before anything is downloaded.
pub(crate) fn platform(text: &str) -> Result<String, String> {
    // Scripts write --platform "$PLATFORM" where there may be none.
    if text.is_empty() {
        return Ok(String::new());
    }
    Platform::parse(text).map(|platform| platform.to_string()).map_err(|error| error.to_string())
}

impl Options {
    /// As the daemon takes it.
    ///
    /// # Errors
    /// Names the option that cannot be.
    pub async fn request(&self, client: &mut Client) -> Result<api::CreateRequest> {
        let entrypoint = self.entrypoint.as_ref().map(|program| api::Entrypoint {
            args: if program.is_empty() { Vec::new() } else { vec![program.clone()] },
        });
        let text = |option: &Option<String>| option.clone().unwrap_or_default();
        if self.rm && !matches!(self.restart.as_deref(), None | Some("" | "no")) {
            return Err(Failure::new("--restart and --rm cannot be given together"));
        }
        let (cpuset_cpus, cpuset_mems) = self.limits.sets();
        let mut request = api::CreateRequest {
            image: self.image.clone(),
            name: text(&self.name),
            args: self.args.clone(),
            entrypoint,
            env: environment(&self.env_file, &self.env)?,
            workdir: text(&self.workdir),
            user: text(&self.user),
            hostname: text(&self.hostname),
            labels: labels(&self.label)?,
            terminal: self.tty,
            open_stdin: self.interactive,
            auto_remove: self.rm,
            limits: Some(self.limits.numbers()),
            cpuset_cpus,
            cpuset_mems,
            network: network(&self.network)?.into(),
            pull_policy: match self.pull {
                Pull::Always => api::PullPolicy::Always,
                Pull::Missing => api::PullPolicy::Missing,
                Pull::Never => api::PullPolicy::Never,
            }
            .into(),
            read_only: self.read_only,
            privileged: self.privileged,
            cap_add: self.cap_add.clone(),
            cap_drop: self.cap_drop.clone(),
            platform: text(&self.platform),
            stop_signal: text(&self.stop_signal),
            console_size: if self.tty { session::size() } else { None },
            registry: self.registry(client).await?,
            runtime: text(&self.runtime),
            restart: text(&self.restart),
            ..api::CreateRequest::default()
        };
        self.mounts(&mut request)?;
        self.extras.fill(&mut request)?;
        request.health = self.health.check()?;
        Ok(request)
    }

    /// How to speak to the registry, if the image may have to be pulled. If not, credential programs are not run: they
    /// may be slow or broken.
    async fn registry(&self, client: &mut Client) -> Result<Option<api::RegistryOptions>> {
        let is_needed = match self.pull {
            Pull::Never => false,
            Pull::Always => true,
            Pull::Missing => {
                self.platform.is_some() || !credentials::are_configured() || !client.has_image(&self.image).await?
            }
        };
        Ok(if is_needed { Some(self.registry.options(&self.image).await?) } else { None })
    }

    /// Adds what `-v` and `--mount` say to a request.
    fn mounts(&self, request: &mut api::CreateRequest) -> Result<()> {
        if self.volume.is_empty() && self.mount.is_empty() {
            return Ok(());
        }
        let here =
            std::env::current_dir().map_err(|error| Failure::new(format!("current directory: {}", reason(&error))))?;
        for text in &self.volume {
            let bind = bind::volume(text, &here).map_err(|error| Failure::new(format!("-v {error}")))?;
            request.binds.push(bind);
        }
        for text in &self.mount {
            match bind::mount(text, &here).map_err(|error| Failure::new(format!("--mount {error}")))? {
                Mount::Bind(bind) => request.binds.push(bind),
                Mount::Tmpfs(tmpfs) => request.tmpfs.push(tmpfs),
            }
        }
        Ok(())
    }
}

/// Files first, so that `-e` has the last word.
///
/// # Errors
/// Names the file or variable.
pub(crate) fn environment(files: &[PathBuf], variables: &[String]) -> Result<Vec<String>> {
    let own = |name: &str| std::env::var_os(name);
    let mut all = Vec::new();
    for path in files {
        let failed = |cause: String| Failure::new(format!("--env-file {}: {cause}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|error| failed(reason(&error)))?;
        all.extend(env::file(&text, own).map_err(failed)?);
    }
    for text in variables {
        all.push(env::variable(text, own).map_err(|error| Failure::new(format!("-e {error}")))?);
    }
    Ok(all)
}

fn labels(texts: &[String]) -> Result<BTreeMap<String, String>> {
    let pair = |text: &String| {
        let (key, value) = text.split_once('=').unwrap_or((text, ""));
        if key.is_empty() {
            return Err(Failure::new(format!("--label {text:?} has no name")));
        }
        Ok((key.to_owned(), value.to_owned()))
    };
    texts.iter().map(pair).collect()
}

fn network(text: &str) -> Result<api::Network> {
    match text {
        "host" => Ok(api::Network::Host),
        "none" | "private" => Ok(api::Network::Private),
        _ => Err(Failure::new(format!("--network {text}: not supported yet"))
            .hint("networks are none (a network of its own with loopback) and host")),
    }
}

/// The file of `--cidfile`: made new before anything else, gone again if there is no container to name.
#[derive(Debug)]
pub(crate) struct IdFile {
    file: std::fs::File,
    path: PathBuf,
    written: bool,
}

impl IdFile {
    pub(crate) fn create(path: Option<&str>) -> Result<Option<Self>> {
        let Some(path) = path.filter(|path| !path.is_empty()).map(Path::new) else { return Ok(None) };
        let opened = std::fs::OpenOptions::new().write(true).create_new(true).open(path);
        let file = opened.map_err(|error| {
            let failure = Failure::new(format!("--cidfile {}: {}", path.display(), reason(&error)));
            match error.kind() {
                std::io::ErrorKind::AlreadyExists => {
                    failure.hint("the container it names may still run; remove the file if not")
                }
                _ => failure,
            }
        })?;
        Ok(Some(Self { file, path: path.to_owned(), written: false }))
    }

    pub(crate) fn write(&mut self, id: &str) -> Result<()> {
        let written = self.file.write_all(id.as_bytes());
        written.map_err(|error| Failure::new(format!("--cidfile {}: {}", self.path.display(), reason(&error))))?;
        self.written = true;
        Ok(())
    }
}

impl Drop for IdFile {
    fn drop(&mut self) {
        if !self.written {
            // It is ours and empty; if it cannot be removed, the next run says that it is there.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
