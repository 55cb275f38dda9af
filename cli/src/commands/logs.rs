//! `gantry logs`: what a container has written, and writes.

use std::time::Duration;

use futures_util::FutureExt;
use gantry_proto::gantry::engine::v1::{LogRecord, LogsRequest};
use jiff::Timestamp;
use tokio::time::Instant;
use tokio_stream::StreamExt;
use tonic::Streaming;

use super::Context;
use crate::error::{Result, is_transport, warn};
use crate::exit::Code;
use crate::output;
use crate::parse::time;

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
    /// Show what is noted beside lines, which is nothing in our logs, and a space
    #[arg(long)]
    details: bool,
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
/// How long a log that is followed waits for a daemon that is being restarted.
const AWAY: Duration = Duration::from_secs(60);
/// How often it looks.
const AGAIN: Duration = Duration::from_millis(200);

impl Args {
    pub(super) async fn run(self, context: &Context) -> Result<Code> {
        let mut request = LogsRequest {
            r#ref: self.container.clone(),
            follow: self.follow,
            tail: self.tail.0,
            since: time::wire_point("--since", self.since.as_deref())?,
            until: time::wire_point("--until", self.until.as_deref())?,
        };
        let mut records = context.connect().await?.logs(request.clone()).await?;
        let mut lines = Lines { timestamps: self.timestamps, details: self.details, ..Lines::default() };
        let mut place = Place::default();
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
                Some(Ok(record)) if place.is_new(&record) => lines.add(&record)?,
                Some(Ok(_)) => {}
                // The daemon is being restarted, which is nothing to the container.
                Some(Err(status)) if self.follow && is_gone(&status) => {
                    lines.flush()?;
                    place.resume(&mut request);
                    records = come_back(context, &request).await?;
                }
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

/// Whether the daemon has left, or is about to.
fn is_gone(status: &tonic::Status) -> bool {
    is_transport(status) || status.code() == tonic::Code::Unavailable
}

/// Asks again until the daemon is back.
async fn come_back(context: &Context, request: &LogsRequest) -> Result<Streaming<LogRecord>> {
    warn("lost the connection to gantryd; waiting for it to come back");
    let limit = Instant::now() + AWAY;
    loop {
        tokio::time::sleep(AGAIN).await;
        let asked = match context.connect().await {
            Ok(mut client) => client.logs(request.clone()).await,
            Err(failure) => Err(failure),
        };
        match asked {
            Err(failure) if failure.is_not_found() || Instant::now() >= limit => return Err(failure),
            Err(_) => {}
            asked => return asked,
        }
    }
}

/// How far a log has been read: the time of its last record, and how many records of that time came.
#[derive(Debug, Default)]
struct Place {
    at: Option<prost_types::Timestamp>,
    count: usize,
    /// Records of that time that come again after a resumption.
    again: usize,
}

impl Place {
    /// Counts a record; `false` where it has come before.
    fn is_new(&mut self, record: &LogRecord) -> bool {
        if record.at != self.at {
            (self.at, self.count, self.again) = (record.at, 0, 0);
        }
        if self.again > 0 {
            self.again -= 1;
            return false;
        }
        self.count += 1;
        true
    }

    /// Has the log sent from here on.
    fn resume(&mut self, request: &mut LogsRequest) {
        if self.at.is_some() {
            (request.since, request.tail) = (self.at, None);
            self.again = self.count;
        }
    }
}

/// Lines of both streams, in order.
#[derive(Default)]
struct Lines {
    timestamps: bool,
    details: bool,
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
        if self.details && !*inside {
            self.gathered.push(b' ');
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
        let mut detailed = Lines { details: true, ..Lines::default() };
        ["one", " line\n", "two\n"].iter().for_each(|piece| detailed.add(&record(piece)).unwrap());
        assert_eq!(String::from_utf8_lossy(&detailed.gathered), " one line\n two\n");
        let expected = "1970-01-01T00:00:00.000000005Z one line\n1970-01-01T00:00:00.000000005Z two\n";
        assert_eq!(String::from_utf8_lossy(&lines.gathered), expected);
    }

    #[test]
    fn a_resumed_log_repeats_nothing() {
        let record =
            |nanos| LogRecord { at: Some(prost_types::Timestamp { seconds: 1, nanos }), ..LogRecord::default() };
        let mut place = Place::default();
        assert!([1, 2, 2].into_iter().all(|nanos| place.is_new(&record(nanos))));
        let mut request = LogsRequest { tail: Some(1), ..LogsRequest::default() };
        place.resume(&mut request);
        assert_eq!((request.tail, request.since), (None, record(2).at));
        let new: Vec<bool> = [2, 2, 2, 3].into_iter().map(|nanos| place.is_new(&record(nanos))).collect();
        assert_eq!(new, [false, false, true, true]);
    }

    #[test]
    fn tails() {
        assert_eq!(tail("all"), Ok(Tail(None)));
        assert_eq!(tail("5"), Ok(Tail(Some(5))));
        assert!(tail("x").is_err() && tail("-2").is_err());
    }
}
