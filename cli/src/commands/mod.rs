//! The verbs, one file each, and docker's noun forms of them.

pub mod archives;
pub mod attach;
pub mod commit;
pub mod completion;
pub mod copy;
pub mod create;
pub mod events;
pub mod exec;
pub mod extras;
pub mod health;
pub mod history;
pub mod image_prune;
pub mod images;
pub mod info;
pub mod inspect;
pub mod kill;
pub mod limits;
pub mod login;
pub mod logs;
pub mod options;
pub mod pause;
pub mod prune;
pub mod ps;
pub mod pull;
pub mod push;
pub mod registry;
pub mod rm;
pub mod rmi;
pub mod run;
pub mod start;
pub mod stats;
pub mod stop;
pub mod system;
pub mod tag;
pub mod top;
pub mod update;
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
    /// One on containers.
    #[command(flatten)]
    OnContainers(ContainerVerb),
    /// List containers
    Ps(ps::Args),
    /// Remove containers
    Rm(rm::Args),
    /// One on images.
    #[command(flatten)]
    OnImages(ImageVerb),
    /// List images
    Images(images::Args),
    /// Remove images
    Rmi(rmi::Args),
    /// Keep an account at a registry
    Login(login::Login),
    /// Forget an account at a registry
    Logout(login::Logout),
    /// Show everything about containers or images
    Inspect(inspect::Args),
    /// One on all of it.
    #[command(flatten)]
    OnSystem(SystemVerb),
    /// Show the versions of gantry and gantryd
    Version(version::Args),
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
    /// Commands on registries
    #[command(subcommand)]
    Registry(RegistryCommand),
    /// Commands on gantryd
    #[command(subcommand)]
    System(SystemCommand),
}

/// What `gantry …` and `gantry container …` do alike.
#[derive(Debug, Subcommand)]
pub enum ContainerVerb {
    /// Create and start a container
    Run(Box<run::Args>),
    /// Run a command in a running container
    Exec(exec::Args),
    /// Show what containers have written
    Logs(logs::Args),
    /// Stop running containers
    Stop(stop::Args),
    /// Stop containers and start them again
    Restart(stop::Args),
    /// Send a signal to running containers
    Kill(kill::Args),
    /// Create a container without starting it
    Create(Box<create::Args>),
    /// Start created or stopped containers
    Start(start::Args),
    /// Join the streams of a running container
    Attach(attach::Args),
    /// Wait until containers end and print their exit codes
    Wait(wait::Args),
    /// Change the limits of containers
    Update(update::Update),
    /// Give a container another name
    Rename(update::Rename),
    /// Stop every process of containers where it is
    Pause(pause::Args),
    /// Let paused containers go on
    Unpause(pause::Args),
    /// Show the processes of a container
    Top(top::Args),
    /// Show what containers use
    Stats(stats::Args),
    /// Write a container's files as a tar
    Export(archives::Export),
    /// Make an image of a container's changes
    Commit(commit::Commit),
    /// List what a container has changed
    Diff(commit::Diff),
    /// Copy files from and to a container
    Cp(copy::Args),
}

/// `gantry container …`.
#[derive(Debug, Subcommand)]
pub enum ContainerCommand {
    /// One that stands alone too.
    #[command(flatten)]
    Verb(ContainerVerb),
    /// List containers
    #[command(visible_aliases = ["ps", "list"])]
    Ls(ps::Args),
    /// Remove containers
    #[command(visible_alias = "remove")]
    Rm(rm::Args),
    /// Show everything about containers
    Inspect(inspect::ContainerArgs),
    /// Remove all containers that do not run
    Prune(prune::Containers),
}

/// What `gantry …` and `gantry image …` do alike.
#[derive(Debug, Subcommand)]
pub enum ImageVerb {
    /// Download an image
    Pull(pull::Args),
    /// Upload an image
    Push(push::Args),
    /// Give an image one more name
    Tag(tag::Args),
    /// Load images from an archive
    Load(archives::Load),
    /// Save images into an archive
    Save(archives::Save),
    /// Make an image of a tar of files
    Import(archives::Import),
    /// Show the steps that made an image
    History(history::Args),
}

/// `gantry image …`.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// One that stands alone too.
    #[command(flatten)]
    Verb(ImageVerb),
    /// List images
    #[command(visible_alias = "list")]
    Ls(images::Args),
    /// Remove images
    #[command(visible_alias = "remove")]
    Rm(rmi::Args),
    /// Show everything about images
    Inspect(inspect::ImageArgs),
    /// Remove images that nobody needs
    Prune(image_prune::Args),
    /// List what a registry has that is about an image
    Referrers(registry::Referrers),
}

/// `gantry registry …`.
#[derive(Debug, Subcommand)]
pub enum RegistryCommand {
    /// Show which hosts stand for an image's registry, and what each says
    Explain(registry::Explain),
}

/// What `gantry …` and `gantry system …` do alike.
#[derive(Debug, Subcommand)]
pub enum SystemVerb {
    /// Show what happens to containers and images
    Events(events::Args),
    /// Show what gantryd says of itself and its machine
    Info(info::Args),
}

/// `gantry system …`.
#[derive(Debug, Subcommand)]
pub enum SystemCommand {
    /// One that stands alone too.
    #[command(flatten)]
    Verb(SystemVerb),
    /// Show what takes space on the disk, and what keeps it
    Df(system::Df),
    /// Look whether everything stored is whole, and mend it
    Fsck(system::Fsck),
    /// Remove what nothing refers to, or say why a thing is kept
    Gc(system::Gc),
    /// Remove containers that do not run, and images that nobody needs
    Prune(prune::System),
}

impl Command {
    /// Does it.
    ///
    /// # Errors
    /// What went wrong, for the one printer of errors.
    pub async fn run(self, context: &Context) -> Result<Code> {
        match self {
            Self::OnContainers(verb) | Self::Container(ContainerCommand::Verb(verb)) => verb.run(context).await,
            Self::OnImages(verb) | Self::Image(ImageCommand::Verb(verb)) => verb.run(context).await,
            Self::OnSystem(verb) | Self::System(SystemCommand::Verb(verb)) => verb.run(context).await,
            Self::Ps(args) | Self::Container(ContainerCommand::Ls(args)) => args.run(context).await,
            Self::Rm(args) | Self::Container(ContainerCommand::Rm(args)) => args.run(context).await,
            Self::Container(ContainerCommand::Inspect(args)) => args.run(context).await,
            Self::Container(ContainerCommand::Prune(args)) => args.run(context).await,
            Self::Images(args) | Self::Image(ImageCommand::Ls(args)) => args.run(context).await,
            Self::Rmi(args) | Self::Image(ImageCommand::Rm(args)) => args.run(context).await,
            Self::Image(ImageCommand::Inspect(args)) => args.run(context).await,
            Self::Image(ImageCommand::Prune(args)) => args.run(context).await,
            Self::Image(ImageCommand::Referrers(args)) => args.run(context).await,
            Self::Inspect(args) => args.run(context).await,
            Self::Login(args) => args.run(context).await,
            Self::Logout(args) => args.run().await,
            Self::Registry(RegistryCommand::Explain(args)) => args.run(context).await,
            Self::Version(args) => args.run(context).await,
            Self::Completion(args) => args.run(),
            Self::Man(args) => args.run(),
            Self::System(SystemCommand::Df(args)) => args.run(context).await,
            Self::System(SystemCommand::Fsck(args)) => args.run(context).await,
            Self::System(SystemCommand::Gc(args)) => args.run(context).await,
            Self::System(SystemCommand::Prune(args)) => args.run(context).await,
        }
    }
}

impl ContainerVerb {
    async fn run(self, context: &Context) -> Result<Code> {
        match self {
            Self::Run(args) => args.run(context).await,
            Self::Exec(args) => args.run(context).await,
            Self::Logs(args) => args.run(context).await,
            Self::Stop(args) => args.stop(context).await,
            Self::Restart(args) => args.restart(context).await,
            Self::Kill(args) => args.run(context).await,
            Self::Create(args) => args.run(context).await,
            Self::Start(args) => args.run(context).await,
            Self::Attach(args) => args.run(context).await,
            Self::Wait(args) => args.run(context).await,
            Self::Update(args) => args.run(context).await,
            Self::Rename(args) => args.run(context).await,
            Self::Pause(args) => args.pause(context).await,
            Self::Unpause(args) => args.unpause(context).await,
            Self::Top(args) => args.run(context).await,
            Self::Stats(args) => args.run(context).await,
            Self::Export(args) => args.run(context).await,
            Self::Commit(args) => args.run(context).await,
            Self::Diff(args) => args.run(context).await,
            Self::Cp(args) => args.run(context).await,
        }
    }
}

impl ImageVerb {
    async fn run(self, context: &Context) -> Result<Code> {
        match self {
            Self::Pull(args) => args.run(context).await,
            Self::Push(args) => args.run(context).await,
            Self::Tag(args) => args.run(context).await,
            Self::Load(args) => args.run(context).await,
            Self::Save(args) => args.run(context).await,
            Self::Import(args) => args.run(context).await,
            Self::History(args) => args.run(context).await,
        }
    }
}

impl SystemVerb {
    async fn run(self, context: &Context) -> Result<Code> {
        match self {
            Self::Events(args) => args.run(context).await,
            Self::Info(args) => args.run(context).await,
        }
    }
}

/// Which daemon to ask, and in which namespace.
#[derive(Debug)]
pub struct Context {
    /// The daemon's socket.
    pub address: PathBuf,
    /// The namespace of all calls.
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

/// Calls in flight at once, so that many containers stop in the time of the slowest.
const AT_ONCE: usize = 16;

/// Does the same to each of `names` and prints the results in their order. A failure is reported, and the others are
/// still tried.
async fn each(names: &[String], act: impl AsyncFn(String) -> Result<String>) -> Result<Code> {
    each_but(names, act, |_| false).await
}

/// As [`each`], but failures for which `harmless` holds do not change the exit code.
async fn each_but(
    names: &[String],
    act: impl AsyncFn(String) -> Result<String>,
    harmless: impl Fn(&Failure) -> bool,
) -> Result<Code> {
    let mut outcomes = futures_util::stream::iter(names.iter().cloned()).map(|name| act(name)).buffered(AT_ONCE);
    let mut code = Code::SUCCESS;
    while let Some(outcome) = outcomes.next().await {
        match outcome {
            Ok(text) => crate::output::line(text)?,
            Err(failure) => {
                failure.print();
                if !harmless(&failure) {
                    code = Code::FAILURE;
                }
            }
        }
    }
    Ok(code)
}
