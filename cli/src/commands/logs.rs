//! `gantry logs`: what a container has written, and writes.

use futures_util::FutureExt;
use gantry_proto::gantry::engine::v1::{LogRecord, LogsRequest};
use jiff::Timestamp;
use tokio_stream::StreamExt;

use super::Context;
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::output;
use crate::parse::time::point;

/// `gantry logs`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Go on until the container ends
    #[arg(long, short)]
    follow: bool,
    /// Only so many lines from the end, or all
    #[arg(long, short = 'n', value_name = "LINES", default_value = "all", value_parser = tail, allow_hyphen_values = true)]
    tail: Tail,
    /// Only what was written after a time, or in the last while, such as 10m
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Only what was written before a time, or until a while ago
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Show when each line was written
    #[arg(long, short)]
    timestamps: bool,
    /// Name or id of the container
    #[arg(value_name = "CONTAINER")]
    container: String,
}

/// How much of the past.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tail(Option<u64>);

fn tail(text: &str) -> Result<Tail, String> {
    match text {
        "all" | "-1" => Ok(Tail(None)),
        _ => text.parse().map(|lines| Tail(Some(lines))).map_err(|_| format!("{text:?} is neither a number nor all")),
    }
}

/// Written at once at most.
const BATCH: usize = 64 << 10;

impl Args {
    pub(super) async fn run(self, context: &Context) -> Result<Code> {
        let now = Timestamp::now();
        let time = |text: &Option<String>| -> Result<Option<prost_types::Timestamp>> {
            let Some(text) = text else { return Ok(None) };
            let time = point(text, now).map_err(Failure::new)?;
            Ok(Some(prost_types::Timestamp { seconds: time.as_second(), nanos: time.subsec_nanosecond() }))
        };
        let request = LogsRequest {
            r#ref: self.container.clone(),
            follow: self.follow,
            tail: self.tail.0,
            since: time(&self.since)?,
            until: time(&self.until)?,
        };
        let mut records = context.connect().await?.logs(request).await?;
        let mut lines = Lines { timestamps: self.timestamps, ..Lines::default() };
        loop {
            // What is there is gathered; once nothing more is, it is shown.
            let next = match records.next().now_or_never() {
                Some(next) => next,
                None => {
                    lines.flush()?;
                    records.next().await
                }
            };
            match next {
                Some(Ok(record)) => lines.add(&record)?,
                Some(Err(status)) => {
                    lines.flush()?;
                    return Err(status.into());
                }
                None => break,
            }
        }
        lines.flush()?;
        Ok(Code::SUCCESS)
    }
}

/// Lines of both streams, in order.
#[derive(Default)]
struct Lines {
    timestamps: bool,
    gathered: Vec<u8>,
    gathered_is_error: bool,
    /// Whether each stream is in the middle of a line.
    inside: [bool; 2],
}

impl Lines {
    fn add(&mut self, record: &LogRecord) -> Result<()> {
        if record.stderr != self.gathered_is_error || self.gathered.len() >= BATCH {
            self.flush()?;
            self.gathered_is_error = record.stderr;
        }
        let inside = &mut self.inside[usize::from(record.stderr)];
        if self.timestamps && !*inside {
            self.gathered.extend_from_slice(stamp(record).as_bytes());
        }
        *inside = !record.line.ends_with(b"\n");
        self.gathered.extend_from_slice(&record.line);
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        let gathered = std::mem::take(&mut self.gathered);
        match (gathered.is_empty(), self.gathered_is_error) {
            (true, _) => Ok(()),
            (false, true) => {
                output::error_bytes(&gathered);
                Ok(())
            }
            (false, false) => output::bytes(&gathered),
        }
    }
}

/// The time with nine digits after the second, so that lines stay aligned.
fn stamp(record: &LogRecord) -> String {
    let time =
        record.at.as_ref().and_then(|at| Timestamp::new(at.seconds, at.nanos).ok()).unwrap_or(Timestamp::UNIX_EPOCH);
    format!("{time:.9} ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_stand_before_lines_not_pieces() {
        let at = Some(prost_types::Timestamp { seconds: 0, nanos: 5 });
        let record = |line: &str| LogRecord { at, stderr: false, line: line.to_owned().into() };
        let mut lines = Lines { timestamps: true, ..Lines::default() };
        for piece in ["one", " line\n", "two\n"] {
            lines.add(&record(piece)).unwrap();
        }
        let expected = "1970-01-01T00:00:00.000000005Z one line\n1970-01-01T00:00:00.000000005Z two\n";
        assert_eq!(String::from_utf8_lossy(&lines.gathered), expected);
    }

    #[test]
    fn tails() {
        assert_eq!(tail("all"), Ok(Tail(None)));
        assert_eq!(tail("5"), Ok(Tail(Some(5))));
        assert!(tail("x").is_err() && tail("-2").is_err());
    }
}
