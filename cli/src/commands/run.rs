//! `gantry run`, from the command line to the exit code.

use gantry_proto::gantry::engine::v1::{CreateRequest, RunOutput, SessionOutput, run_output};
use tokio_stream::StreamExt;

use super::Context;
use super::create::{self, PullReport};
use super::options::{IdFile, Options};
use crate::client::{Client, Duplex};
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::parse::keys::DetachKeys;
use crate::{output, session};

/// `gantry run`.
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub struct Args {
    /// Leave the container running and print its id
    #[arg(long, short)]
    detach: bool,
    #[command(flatten)]
    session: SessionOptions,
    #[command(flatten)]
    options: Options,
}

/// How our terminal is attached.
#[derive(Debug, Clone, clap::Args)]
pub struct SessionOptions {
    /// Keys that leave the session and let the process run on
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q", value_parser = DetachKeys::parse)]
    pub detach_keys: DetachKeys,
    /// Hand signals on to the process
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1,
          require_equals = true, default_missing_value = "true")]
    pub sig_proxy: bool,
}

impl Args {
    pub(super) async fn run(self, context: &Context) -> Result<Code> {
        self.act(context).await.map_err(Failure::of_run)
    }

    async fn act(self, context: &Context) -> Result<Code> {
        if !self.detach {
            session::check_input_is_terminal(self.options.interactive, self.options.tty)?;
        }
        let mut client = context.connect().await?;
        let request = self.options.request(&mut client).await?;
        let mut id_file = IdFile::create(self.options.cidfile.as_deref())?;
        if self.detach {
            return self.detached(&mut client, request, &mut id_file).await;
        }
        let Duplex { input, mut output } = client.run(request).await?;
        self.until_started(&mut output, &mut id_file).await?;
        let options = session::Options {
            terminal: self.options.tty,
            stdin: self.options.interactive,
            signals: self.session.sig_proxy,
            detach: self.session.detach_keys,
        };
        match session::drive(options, input, output.filter_map(session_output)).await? {
            session::End::Exit(exit) => Ok(Code::of_process(exit.code)),
            session::End::Detached => Ok(Code::SUCCESS),
        }
    }

    /// Follows the pull and the creation up to the moment the process runs.
    async fn until_started(
        &self,
        output: &mut tonic::Streaming<RunOutput>,
        id_file: &mut Option<IdFile>,
    ) -> Result<()> {
        let mut pull = PullReport::new(&self.options);
        while let Some(message) = output.message().await? {
            match message.event {
                Some(run_output::Event::Pull(progress)) => pull.update(progress)?,
                Some(run_output::Event::Created(created)) => create::announce(&created, id_file)?,
                Some(run_output::Event::Started(_)) => return Ok(()),
                Some(run_output::Event::Session(_)) => {
                    return Err(Failure::new("run: gantryd sent output before the process had started"));
                }
                None => {}
            }
        }
        Err(Failure::new("run: gantryd ended before the process had started"))
    }

    async fn detached(
        &self,
        client: &mut Client,
        request: CreateRequest,
        id_file: &mut Option<IdFile>,
    ) -> Result<Code> {
        let created = create::create(client, request, &self.options, id_file).await?;
        if let Err(failure) = client.start(&created.id).await {
            if self.options.rm
                && let Err(left) = client.remove(&created.id, true).await
            {
                left.context(format!("remove {}", created.name)).print();
            }
            return Err(failure);
        }
        output::line(created.id)?;
        Ok(Code::SUCCESS)
    }
}

/// The part of a run's messages that a session is about.
fn session_output(message: Result<RunOutput, tonic::Status>) -> Option<Result<SessionOutput, tonic::Status>> {
    match message {
        Ok(RunOutput { event: Some(run_output::Event::Session(output)) }) => Some(Ok(output)),
        Ok(_) => None,
        Err(status) => Some(Err(status)),
    }
}
