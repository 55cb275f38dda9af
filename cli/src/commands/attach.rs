//! `gantry attach`: this terminal, joined to a container's.

use serde_json::Value;

use super::Context;
use super::run::SessionOptions;
use crate::client::{Client, Duplex};
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::session;

/// `gantry attach`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Do not hand on standard input
    #[arg(long)]
    no_stdin: bool,
    #[command(flatten)]
    session: SessionOptions,
    /// Name or id of the container
    #[arg(value_name = "CONTAINER")]
    container: String,
}

impl Args {
    pub(super) async fn run(self, context: &Context) -> Result<Code> {
        let mut client = context.connect().await?;
        let streams = Streams::of(&mut client, &self.container).await?;
        if !streams.running {
            return Err(Failure::new(format!("attach {}: the container is not running", self.container))
                .hint(format!("gantry start -ai {} starts it and attaches", self.container)));
        }
        streams.check_goes_on(&self.container)?;
        let stdin = streams.stdin && !self.no_stdin;
        session::check_input_is_terminal(stdin, streams.terminal)?;
        let Duplex { input, output } = client.attach(&self.container, stdin, false).await?;
        let options = session::Options {
            terminal: streams.terminal,
            stdin,
            signals: self.session.sig_proxy,
            detach: self.session.detach_keys,
        };
        match session::drive(options, input, output).await? {
            session::End::Exit(exit) => Ok(Code::of_process(exit.code)),
            session::End::Detached => Ok(Code::SUCCESS),
        }
    }
}

/// What a container's process reads and writes.
pub(super) struct Streams {
    pub(super) terminal: bool,
    pub(super) stdin: bool,
    pub(super) running: bool,
    paused: bool,
}

impl Streams {
    pub(super) async fn of(client: &mut Client, container: &str) -> Result<Self> {
        let details = client.inspect(container).await?;
        let flag = |pointer: &str| details.pointer(pointer).and_then(Value::as_bool).unwrap_or(false);
        Ok(Self {
            terminal: flag("/Config/Tty"),
            stdin: flag("/Config/OpenStdin"),
            running: flag("/State/Running"),
            paused: flag("/State/Paused"),
        })
    }

    /// Refuses a container that would neither write nor read nor end.
    pub(super) fn check_goes_on(&self, container: &str) -> Result<()> {
        if !self.paused {
            return Ok(());
        }
        Err(Failure::new(format!("attach {container}: the container is paused"))
            .hint(format!("gantry unpause {container} lets it go on")))
    }

    /// Whether it runs and is not paused.
    pub(super) fn goes_on(&self) -> bool {
        self.running && !self.paused
    }
}
