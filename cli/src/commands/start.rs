//! `gantry start`: created or stopped containers, alone or with this terminal.

use super::attach::Streams;
use super::{Context, each};
use crate::client::Duplex;
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::parse::keys::DetachKeys;
use crate::session;

/// `gantry start`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Show what the container writes, and leave with its exit code
    #[arg(long, short)]
    attach: bool,
    /// Hand on standard input too
    #[arg(long, short)]
    interactive: bool,
    /// Keys that leave the session and let the process run on
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q", value_parser = DetachKeys::parse)]
    detach_keys: DetachKeys,
    /// Names or ids of containers
    #[arg(value_name = "CONTAINER", required = true)]
    containers: Vec<String>,
}

impl Args {
    pub(super) async fn run(self, context: &Context) -> Result<Code> {
        if self.attach || self.interactive {
            return self.attached(context).await;
        }
        let client = context.connect().await?;
        each(&self.containers, async |name| {
            if let Err(failure) = client.clone().start(&name).await {
                // As in docker, there is nothing to do where it runs already.
                match Streams::of(&mut client.clone(), &name).await {
                    Ok(streams) if streams.goes_on() => {}
                    _ => return Err(failure),
                }
            }
            Ok(name)
        })
        .await
    }

    async fn attached(self, context: &Context) -> Result<Code> {
        let [container] = &self.containers[..] else {
            return Err(Failure::new("only one container can be attached to"));
        };
        let mut client = context.connect().await?;
        let streams = Streams::of(&mut client, container).await?;
        streams.check_goes_on(container)?;
        let stdin = self.interactive && streams.stdin;
        session::check_input_is_terminal(stdin, streams.terminal)?;
        let Duplex { input, output } = client.attach(container, stdin, true).await?;
        let options =
            session::Options { terminal: streams.terminal, stdin, signals: true, detach: self.detach_keys.clone() };
        match session::drive(options, input, output).await? {
            session::End::Exit(exit) => Ok(Code::of_process(exit.code)),
            session::End::Detached => Ok(Code::SUCCESS),
        }
    }
}
