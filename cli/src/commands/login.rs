//! `gantry login` and `logout`: accounts at registries, kept where docker keeps them.

use std::io::{self, IsTerminal, Read};

use gantry_proto::gantry::engine::v1::RegistryOptions;
use gantry_proto::gantry::images::v1::LoginRequest;
use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use tokio::signal::unix::{SignalKind, signal};

use super::Context;
use super::options::Registry;
use crate::client::reason;
use crate::credentials::{self, Account};
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::output;

const HUB: &str = "docker.io";
/// Longest password.
const MAX_PASSWORD: u64 = 64 << 10;

/// `gantry login`.
#[derive(Debug, clap::Args)]
pub struct Login {
    /// Name of the account
    #[arg(long, short, value_name = "NAME")]
    username: Option<String>,
    /// Password; everybody on this machine can read it while the command runs
    #[arg(long, short, value_name = "TEXT", conflicts_with = "password_stdin")]
    password: Option<String>,
    /// Read the password from standard input
    #[arg(long)]
    password_stdin: bool,
    #[command(flatten)]
    registry: Registry,
    /// Host of the registry; Docker Hub's where none is named
    #[arg(value_name = "SERVER")]
    server: Option<String>,
}

/// `gantry logout`.
#[derive(Debug, clap::Args)]
pub struct Logout {
    /// Host of the registry; Docker Hub's where none is named
    #[arg(value_name = "SERVER")]
    server: Option<String>,
}

impl Login {
    pub(super) async fn run(self, context: &Context) -> Result<Code> {
        let listen = signal(SignalKind::interrupt());
        let mut interrupt = listen.map_err(|error| Failure::new(format!("listen for signals: {}", reason(&error))))?;
        tokio::select! {
            code = self.act(context) => code,
            // Whoever was asked for a password has the terminal back as it was.
            _ = interrupt.recv() => Err(Failure::silent(Code::INTERRUPTED)),
        }
    }

    async fn act(self, context: &Context) -> Result<Code> {
        let host = host(self.server.as_deref())?;
        let username = match self.username {
            Some(name) => name,
            None if self.password_stdin => return Err(Failure::new("--password-stdin needs --username")),
            None => ask("Username: ", true).await?,
        };
        let password = match self.password {
            Some(password) => password,
            None if self.password_stdin => from_input()?,
            None => ask("Password: ", false).await?,
        };
        if username.is_empty() || password.is_empty() {
            return Err(Failure::new("login: name and password must not be empty"));
        }
        let registry = Some(RegistryOptions {
            plain_http: self.registry.plain_http,
            insecure: self.registry.insecure,
            username: username.clone(),
            password: password.clone(),
            ..RegistryOptions::default()
        });
        context.connect().await?.login(LoginRequest { host: host.clone(), registry }).await?;
        credentials::keep(&host, &Account { username, password }).await?;
        output::line("Login Succeeded")?;
        Ok(Code::SUCCESS)
    }
}

impl Logout {
    pub(super) async fn run(self) -> Result<Code> {
        let host = host(self.server.as_deref())?;
        let known = credentials::forget(&host).await?;
        output::line(format!("{} {host}", if known { "Removed the account for" } else { "There was no account for" }))?;
        Ok(Code::SUCCESS)
    }
}

/// A registry's host, however it is written.
fn host(server: Option<&str>) -> Result<String> {
    let server = server.unwrap_or(HUB);
    let rest = server.split_once("://").map_or(server, |(_, rest)| rest);
    let host = rest.split('/').next().unwrap_or_default();
    let host = if matches!(host, "index.docker.io" | "registry-1.docker.io") { HUB } else { host };
    if host.is_empty() || host.contains(char::is_whitespace) {
        return Err(Failure::new(format!("{server:?} names no registry")));
    }
    Ok(host.to_owned())
}

fn from_input() -> Result<String> {
    let mut text = String::new();
    let read = io::stdin().take(MAX_PASSWORD).read_to_string(&mut text);
    read.map_err(|error| Failure::new(format!("read the password: {}", reason(&error))))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

/// Asks whoever sits at the terminal; what is a secret is not shown.
async fn ask(question: &str, shown: bool) -> Result<String> {
    if !io::stdin().is_terminal() {
        return Err(Failure::new("nobody is there to be asked for a password")
            .hint("say --username, and pipe the password into --password-stdin"));
    }
    output::bytes(question.as_bytes())?;
    let hidden = if shown { None } else { Some(Hidden::begin()?) };
    let reading = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        io::stdin().read_line(&mut line).map(|_| line)
    });
    let read = reading.await.map_err(io::Error::other).flatten();
    drop(hidden);
    let line = read.map_err(|error| Failure::new(format!("read the answer: {}", reason(&error))))?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

/// The terminal does not show what is typed, until this is dropped.
struct Hidden {
    before: Termios,
}

impl Hidden {
    fn begin() -> Result<Self> {
        let stdin = io::stdin();
        let before = tcgetattr(&stdin).map_err(|error| Failure::new(format!("read the terminal: {error}")))?;
        let mut quiet = before.clone();
        quiet.local_flags.remove(LocalFlags::ECHO);
        let set = tcsetattr(&stdin, SetArg::TCSAFLUSH, &quiet);
        set.map_err(|error| Failure::new(format!("set the terminal: {error}")))?;
        Ok(Self { before })
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        // A terminal that cannot be set back shows it to the person.
        let _ = tcsetattr(io::stdin(), SetArg::TCSAFLUSH, &self.before);
        // The end of the line was not shown either.
        let _ = output::line("");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers() {
        for (server, wanted) in [
            (None, "docker.io"),
            (Some("https://index.docker.io/v1/"), "docker.io"),
            (Some("localhost:5000"), "localhost:5000"),
            (Some("https://r.example/v2/"), "r.example"),
        ] {
            assert_eq!(host(server).unwrap(), wanted);
        }
        assert!(host(Some("https://")).is_err());
    }
}
