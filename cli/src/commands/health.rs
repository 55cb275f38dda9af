//! The options of `run` and `create` that say how it is seen whether a container is well.

use gantry_proto::gantry::engine::v1 as api;

use crate::error::{Failure, Result};
use crate::parse::time;

/// How it is seen whether a container is well; what is not said is as the image says.
#[derive(Debug, Default, clap::Args)]
pub struct Health {
    /// Line for the shell that fails where the container is not well
    #[arg(long, value_name = "COMMAND")]
    health_cmd: Option<String>,
    /// Pause between two looks, such as 30s
    #[arg(long, value_name = "TIME", value_parser = nanos)]
    health_interval: Option<i64>,
    /// How long a look may take, such as 30s
    #[arg(long, value_name = "TIME", value_parser = nanos)]
    health_timeout: Option<i64>,
    /// How long failures do not count after the start, such as 1m
    #[arg(long, value_name = "TIME", value_parser = nanos)]
    health_start_period: Option<i64>,
    /// Pause between two looks meanwhile, such as 5s
    #[arg(long, value_name = "TIME", value_parser = nanos)]
    health_start_interval: Option<i64>,
    /// Failures one after another with which it is not well
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(i64).range(0..))]
    health_retries: Option<i64>,
    /// Do not look, whatever the image says
    #[arg(long)]
    no_healthcheck: bool,
}

impl Health {
    /// As the daemon takes it.
    ///
    /// # Errors
    /// Where it says both how to look and not to.
    pub(super) fn check(&self) -> Result<Option<api::HealthCheck>> {
        let numbers = [
            self.health_interval,
            self.health_timeout,
            self.health_start_period,
            self.health_start_interval,
            self.health_retries,
        ];
        let is_said = self.health_cmd.is_some() || numbers.iter().any(Option::is_some);
        if self.no_healthcheck && is_said {
            return Err(Failure::new("--no-healthcheck conflicts with the --health options"));
        }
        if self.no_healthcheck {
            return Ok(Some(api::HealthCheck { test: vec!["NONE".to_owned()], ..api::HealthCheck::default() }));
        }
        let test = |line: &String| vec!["CMD-SHELL".to_owned(), line.clone()];
        let [interval, timeout, start_period, start_interval, retries] = numbers.map(|number| number.unwrap_or(0));
        let check = api::HealthCheck {
            test: self.health_cmd.as_ref().filter(|line| !line.is_empty()).map(test).unwrap_or_default(),
            interval,
            timeout,
            start_period,
            start_interval,
            retries,
        };
        Ok(is_said.then_some(check))
    }
}

fn nanos(text: &str) -> Result<i64, String> {
    let length = if text == "0" { Some(jiff::SignedDuration::ZERO) } else { time::duration(text) };
    let nanos = length.and_then(|length| i64::try_from(length.as_nanos()).ok());
    nanos.ok_or_else(|| format!("{text:?} is not a time such as 30s or 1m30s"))
}
