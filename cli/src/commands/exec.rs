//! `gantry exec`: one more process in a running container.

use std::path::PathBuf;

use gantry_proto::gantry::engine::v1::{ExecRequest, session_output};

use super::Context;
use super::options::environment;
use crate::client::Duplex;
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::parse::keys::DetachKeys;
use crate::session;

/// `gantry exec`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Leave the process running
    #[arg(long, short)]
    detach: bool,
    /// Keep standard input open
    #[arg(long, short)]
    interactive: bool,
    /// Give the process a terminal
    #[arg(long, short)]
    tty: bool,
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
    /// Give the process every capability
    #[arg(long)]
    privileged: bool,
    /// Keys that leave the session and let the process run on
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q", value_parser = DetachKeys::parse)]
    detach_keys: DetachKeys,
    /// Name or id of the container
    #[arg(value_name = "CONTAINER")]
    container: String,
    /// Command and its arguments
    #[arg(value_name = "COMMAND", required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

impl Args {
    pub(super) async fn run(self, context: &Context) -> Result<Code> {
        if !self.detach {
            session::check_input_is_terminal(self.interactive, self.tty)?;
        }
        let request = ExecRequest {
            r#ref: self.container,
            args: self.args,
            env: environment(&self.env_file, &self.env).map_err(Failure::of_run)?,
            workdir: self.workdir.unwrap_or_default(),
            user: self.user.unwrap_or_default(),
            terminal: self.tty,
            open_stdin: self.interactive && !self.detach,
            detach: self.detach,
            privileged: self.privileged,
            console_size: if self.tty { session::size() } else { None },
        };
        let Duplex { input, mut output } = context.connect().await?.exec(request).await?;
        if self.detach {
            // The end of the stream says that the process runs; an exit that comes first is its own.
            while let Some(message) = output.message().await? {
                if let Some(session_output::Event::Exit(_)) = message.event {
                    break;
                }
            }
            return Ok(Code::SUCCESS);
        }
        let options = session::Options {
            terminal: self.tty,
            stdin: self.interactive,
            // docker hands no signals on to an exec, but then ctrl-c leaves the process behind without a master.
            signals: true,
            detach: self.detach_keys,
        };
        match session::drive(options, input, output).await? {
            session::End::Exit(exit) => Ok(Code::of_process(exit.code)),
            session::End::Detached => Ok(Code::SUCCESS),
        }
    }
}
