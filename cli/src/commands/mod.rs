//! The verbs, one file each, and docker's noun forms of them.

pub mod attach;
pub mod completion;
pub mod create;
pub mod events;
pub mod exec;
pub mod images;
pub mod info;
pub mod inspect;
pub mod kill;
pub mod logs;
pub mod options;
pub mod pause;
pub mod ps;
pub mod pull;
pub mod restart;
pub mod rm;
pub mod rmi;
pub mod run;
pub mod start;
pub mod stats;
pub mod stop;
pub mod tag;
pub mod top;
pub mod version;
pub mod wait;

use std::path::PathBuf;

use clap::Subcommand;
use futures_util::StreamExt;
use gantry_proto::namespace::Namespace;

use crate::client::{self, Client};
use crate::error::{Failure, Result};
use crate::exit::Code;

/// A verb with its options.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create and start a container
    Run(Box<run::Args>),
    /// Run a command in a running container
    Exec(exec::Args),
    /// List containers
    Ps(ps::Args),
    /// Show what containers have written
    Logs(logs::Args),
    /// Stop running containers
    Stop(stop::Args),
    /// Stop containers and start them again
    Restart(restart::Args),
    /// Send a signal to running containers
    Kill(kill::Args),
    /// Remove containers
    Rm(rm::Args),
    /// Create a container without starting it
    Create(Box<create::Args>),
    /// Start created or stopped containers
    Start(start::Args),
    /// Join the streams of a running container
    Attach(attach::Args),
    /// Wait until containers end and print their exit codes
    Wait(wait::Args),
    /// Stop every process of containers where it is
    Pause(pause::Args),
    /// Let paused containers go on
    Unpause(pause::Args),
    /// Show the processes of a container
    Top(top::Args),
    /// Show what containers use
    Stats(stats::Args),
    /// Download an image
    Pull(pull::Args),
    /// Give an image one more name
    Tag(tag::Args),
    /// List images
    Images(images::Args),
    /// Remove images
    Rmi(rmi::Args),
    /// Show everything about containers or images
    Inspect(inspect::Args),
    /// Show what happens as it happens
    Events(events::Args),
    /// Show the versions of gantry and gantryd
    Version(version::Args),
    /// Show what gantryd says of itself and its machine
    Info(info::Args),
    /// Print a completion script for a shell
    Completion(completion::Args),
    /// Write manual pages
    Man(completion::ManArgs),
    /// Commands on containers
    #[command(subcommand)]
    Container(ContainerCommand),
    /// Commands on images
    #[command(subcommand)]
    Image(ImageCommand),
    /// Commands on gantryd
    #[command(subcommand)]
    System(SystemCommand),
}

/// `gantry container …`.
#[derive(Debug, Subcommand)]
#[allow(missing_docs, reason = "the same verbs as above")]
pub enum ContainerCommand {
    /// Create and start a container
    Run(Box<run::Args>),
    /// Run a command in a running container
    Exec(exec::Args),
    /// List containers
    #[command(visible_aliases = ["ps", "list"])]
    Ls(ps::Args),
    /// Show what containers have written
    Logs(logs::Args),
    /// Stop running containers
    Stop(stop::Args),
    /// Stop containers and start them again
    Restart(restart::Args),
    /// Send a signal to running containers
    Kill(kill::Args),
    /// Remove containers
    #[command(visible_alias = "remove")]
    Rm(rm::Args),
    /// Create a container without starting it
    Create(Box<create::Args>),
    /// Start created or stopped containers
    Start(start::Args),
    /// Join the streams of a running container
    Attach(attach::Args),
    /// Wait until containers end and print their exit codes
    Wait(wait::Args),
    /// Stop every process of containers where it is
    Pause(pause::Args),
    /// Let paused containers go on
    Unpause(pause::Args),
    /// Show the processes of a container
    Top(top::Args),
    /// Show what containers use
    Stats(stats::Args),
    /// Show everything about containers
    Inspect(inspect::ContainerArgs),
}

/// `gantry image …`.
#[derive(Debug, Subcommand)]
#[allow(missing_docs, reason = "the same verbs as above")]
pub enum ImageCommand {
    /// Download an image
    Pull(pull::Args),
    /// Give an image one more name
    Tag(tag::Args),
    /// List images
    #[command(visible_alias = "list")]
    Ls(images::Args),
    /// Remove images
    #[command(visible_alias = "remove")]
    Rm(rmi::Args),
    /// Show everything about images
    Inspect(inspect::ImageArgs),
}

/// `gantry system …`.
#[derive(Debug, Subcommand)]
#[allow(missing_docs, reason = "the same verb as above")]
pub enum SystemCommand {
    /// Show what happens as it happens
    Events(events::Args),
    /// Show what gantryd says of itself and its machine
    Info(info::Args),
}

impl Command {
    /// Does it.
    ///
    /// # Errors
    /// What went wrong, for the one printer of errors.
    pub async fn run(self, context: &Context) -> Result<Code> {
        match self {
            Self::Run(args) | Self::Container(ContainerCommand::Run(args)) => args.run(context).await,
            Self::Exec(args) | Self::Container(ContainerCommand::Exec(args)) => args.run(context).await,
            Self::Ps(args) | Self::Container(ContainerCommand::Ls(args)) => args.run(context).await,
            Self::Logs(args) | Self::Container(ContainerCommand::Logs(args)) => args.run(context).await,
            Self::Stop(args) | Self::Container(ContainerCommand::Stop(args)) => args.run(context).await,
            Self::Restart(args) | Self::Container(ContainerCommand::Restart(args)) => args.run(context).await,
            Self::Kill(args) | Self::Container(ContainerCommand::Kill(args)) => args.run(context).await,
            Self::Rm(args) | Self::Container(ContainerCommand::Rm(args)) => args.run(context).await,
            Self::Create(args) | Self::Container(ContainerCommand::Create(args)) => args.run(context).await,
            Self::Start(args) | Self::Container(ContainerCommand::Start(args)) => args.run(context).await,
            Self::Attach(args) | Self::Container(ContainerCommand::Attach(args)) => args.run(context).await,
            Self::Wait(args) | Self::Container(ContainerCommand::Wait(args)) => args.run(context).await,
            Self::Pause(args) | Self::Container(ContainerCommand::Pause(args)) => args.pause(context).await,
            Self::Unpause(args) | Self::Container(ContainerCommand::Unpause(args)) => args.unpause(context).await,
            Self::Top(args) | Self::Container(ContainerCommand::Top(args)) => args.run(context).await,
            Self::Stats(args) | Self::Container(ContainerCommand::Stats(args)) => args.run(context).await,
            Self::Events(args) | Self::System(SystemCommand::Events(args)) => args.run(context).await,
            Self::Tag(args) | Self::Image(ImageCommand::Tag(args)) => args.run(context).await,
            Self::Pull(args) | Self::Image(ImageCommand::Pull(args)) => args.run(context).await,
            Self::Images(args) | Self::Image(ImageCommand::Ls(args)) => args.run(context).await,
            Self::Rmi(args) | Self::Image(ImageCommand::Rm(args)) => args.run(context).await,
            Self::Inspect(args) => args.run(context).await,
            Self::Container(ContainerCommand::Inspect(args)) => args.run(context).await,
            Self::Image(ImageCommand::Inspect(args)) => args.run(context).await,
            Self::Completion(args) => args.run(),
            Self::Man(args) => args.run(),
            Self::Version(args) => args.run(context).await,
            Self::Info(args) | Self::System(SystemCommand::Info(args)) => args.run(context).await,
        }
    }
}

/// Where the daemon is and what we are to it.
#[derive(Debug)]
pub struct Context {
    /// The socket.
    pub address: PathBuf,
    /// Whose containers.
    pub namespace: Namespace,
}

impl Context {
    /// From the global options, else the environment, else the defaults.
    ///
    /// # Errors
    /// Where either is malformed.
    pub fn new(address: Option<String>, namespace: Option<String>) -> Result<Self> {
        let environment = || std::env::var("GANTRY_NAMESPACE").ok().filter(|name| !name.is_empty());
        let namespace = namespace.or_else(environment).unwrap_or_else(|| "default".to_owned());
        let namespace = Namespace::parse(&namespace).map_err(|error| Failure::new(format!("namespace: {error}")))?;
        Ok(Self { address: client::socket_path(address.as_deref())?, namespace })
    }

    /// Connects to the daemon.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub async fn connect(&self) -> Result<Client> {
        Client::connect(&self.address, &self.namespace).await
    }
}

/// Asked for at once, so that many containers stop in the time of the slowest.
const AT_ONCE: usize = 16;

/// Does the same to each of `names` and prints what each gives, in order. One failure is reported and does not keep the
/// others from being tried.
async fn each(names: &[String], act: impl AsyncFn(String) -> Result<String>) -> Result<Code> {
    let mut outcomes = futures_util::stream::iter(names.iter().cloned()).map(|name| act(name)).buffered(AT_ONCE);
    let mut code = Code::SUCCESS;
    while let Some(outcome) = outcomes.next().await {
        match outcome {
            Ok(text) => crate::output::line(text)?,
            Err(failure) => {
                failure.print();
                code = Code::FAILURE;
            }
        }
    }
    Ok(code)
}
