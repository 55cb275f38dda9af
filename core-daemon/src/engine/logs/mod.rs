//! A container's log: what its shim wrote, across rotated files, and what it goes on writing.

mod cap;
mod files;
mod watch;

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use gantry_proto::gantry::engine::v1 as api;
use gantry_proto::time;
use tokio::sync::mpsc;

use super::{Engine, Live};
use crate::blocking::blocking;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::storage::logs::Dropped;
pub(super) use cap::Cap;
use files::{Batch, Reader};
use watch::Watch;

/// Which lines are wanted.
#[derive(Debug, Clone, Copy, Default)]
struct Wanted {
    since: Option<SystemTime>,
    until: Option<SystemTime>,
}

/// Where lines go.
type Lines = mpsc::Sender<Result<api::LogRecord>>;

impl Engine {
    /// Sends the lines of a container's log, and with `follow` those that come until it ends or the client goes.
    ///
    /// # Errors
    /// `NotFound` without such a container.
    pub async fn logs(&self, context: &Context, request: &api::LogsRequest, lines: Lines) -> Result<()> {
        let known = self.find(context, &request.r#ref)?;
        let path = self.log_path(&context.namespace, &known.id);
        let wanted = Wanted {
            since: request.since.as_ref().map(time::system_time),
            until: request.until.as_ref().map(time::system_time),
        };
        let live = self.live().get(&(context.namespace.clone(), known.id.clone())).cloned();
        // The watch comes before the first look, so that nothing written in between is slept over.
        let watch = match (&live, request.follow) {
            (Some(_), true) => Some(Watch::directory(path.parent().unwrap_or(Path::new("/")))?),
            _ => None,
        };
        let (tail, logs, of) = (request.tail, self.parts().logs.clone(), (context.namespace.clone(), known.id.clone()));
        // What is dropped between the two is said, and shown all the same.
        let opened = blocking(move || Ok((Reader::open(&path, tail)?, logs.dropped(&of))));
        let (reader, dropped) = opened.await?;
        if let Some(dropped) = dropped.filter(|_| reader.is_from_the_beginning()) {
            send_what_is_missing(dropped, &wanted, &lines).await;
        }
        let follow = Follow { reader: Some(reader), wanted, lines };
        tokio::select! {
            result = follow.run(watch, live) => result,
            () = self.parts().stopping.cancelled() => {
                Err(Error::unavailable("the daemon is stopping; ask for the log again later"))
            }
        }
    }
}

/// Says, where a log that was dropped would be, that it was.
async fn send_what_is_missing(dropped: Dropped, wanted: &Wanted, lines: &Lines) {
    let Dropped { until, bytes, .. } = dropped;
    if !matches!(wanted.judge(until), Judgement::Wanted) {
        return;
    }
    let line = format!(
        "gantry: what was written before was dropped, {bytes} bytes on disk: the logs of all containers together had \
         reached container_log.max_total\n"
    );
    // Whoever has gone wants no lines either.
    let _ = lines.send(Ok(api::LogRecord { at: Some(time::timestamp(until)), stderr: true, line: line.into() })).await;
}

struct Follow {
    /// `None` while it reads on another thread.
    reader: Option<Reader>,
    wanted: Wanted,
    lines: Lines,
}

impl Follow {
    async fn run(mut self, watch: Option<Watch>, live: Option<Arc<Live>>) -> Result<()> {
        loop {
            // Looked at before reading: what was written before the end is read after this.
            let over = live.as_ref().is_none_or(|live| *live.settled.borrow());
            if !self.send_what_is_there().await? {
                return Ok(());
            }
            let (Some(watch), Some(live), false) = (&watch, &live, over) else { return Ok(()) };
            tokio::select! {
                changed = watch.changed() => changed?,
                () = live.settled() => {}
                () = self.lines.closed() => return Ok(()),
            }
        }
    }

    /// Sends lines up to the present end of the log. False once nobody wants more.
    async fn send_what_is_there(&mut self) -> Result<bool> {
        loop {
            let Some(mut reader) = self.reader.take() else { return Ok(false) };
            let (reader, batch) = blocking(move || reader.read().map(|batch| (reader, batch))).await?;
            self.reader = Some(reader);
            let Batch { lines, end } = batch;
            for line in lines {
                match self.wanted.judge(line.at) {
                    Judgement::TooEarly => continue,
                    Judgement::TooLate => return Ok(false),
                    Judgement::Wanted => {}
                }
                let record =
                    api::LogRecord { at: Some(time::timestamp(line.at)), stderr: line.stderr, line: line.text.into() };
                if self.lines.send(Ok(record)).await.is_err() {
                    return Ok(false);
                }
            }
            if end {
                return Ok(true);
            }
        }
    }
}

enum Judgement {
    TooEarly,
    Wanted,
    TooLate,
}

impl Wanted {
    fn judge(&self, at: SystemTime) -> Judgement {
        if self.since.is_some_and(|since| at < since) {
            Judgement::TooEarly
        } else if self.until.is_some_and(|until| at > until) {
            Judgement::TooLate
        } else {
            Judgement::Wanted
        }
    }
}
