//! `gantry stop` and `gantry restart`: the stop signal, then a while, then SIGKILL; and a start.

use super::{Context, each};
use crate::error::Result;
use crate::exit::Code;

/// `gantry stop` and `gantry restart`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Seconds until the container is killed, or -1 to wait for its end: its own, else 10, unless given
    #[arg(long, short = 't', visible_alias = "time", value_name = "SECONDS", value_parser = grace, allow_hyphen_values = true)]
    timeout: Option<u32>,
    /// Signal to send first, instead of the container's own
    #[arg(long, short, value_name = "SIGNAL")]
    signal: Option<String>,
    /// Names or ids of containers
    #[arg(value_name = "CONTAINER", required = true)]
    containers: Vec<String>,
}

/// As long as there are numbers for it.
const FOR_EVER: u32 = u32::MAX;

/// Seconds until a kill, of which -1 means any number.
pub(super) fn grace(text: &str) -> Result<u32, String> {
    match text {
        "-1" => Ok(FOR_EVER),
        _ => text.parse().map_err(|_| format!("{text:?} is neither a number of seconds nor -1")),
    }
}

impl Args {
    pub(super) async fn stop(self, context: &Context) -> Result<Code> {
        let client = context.connect().await?;
        let signal = self.signal.unwrap_or_default();
        each(&self.containers, async |name| {
            client.clone().stop(&name, self.timeout, &signal).await?;
            Ok(name)
        })
        .await
    }

    pub(super) async fn restart(self, context: &Context) -> Result<Code> {
        let client = context.connect().await?;
        let signal = self.signal.unwrap_or_default();
        each(&self.containers, async |name| {
            client.clone().restart(&name, self.timeout, &signal).await?;
            Ok(name)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        assert_eq!((grace("0"), grace("-1")), (Ok(0), Ok(FOR_EVER)));
        assert!(grace("-2").is_err() && grace("x").is_err());
    }
}
