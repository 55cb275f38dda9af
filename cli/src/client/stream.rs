//! The calls that go both ways: a first message, then what a terminal sends, against what a process sends back.

use gantry_proto::gantry::engine::v1::{self as api, attach_input, exec_input, run_input};
use gantry_proto::stdio::{STDIN_AHEAD, STDIN_TAKEN_HEADER};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::Streaming;
use tonic::metadata::MetadataMap;

use super::Client;
use crate::error::Result;

/// Inputs on their way to the daemon; a full queue makes the terminal wait.
const QUEUE: usize = 8;

/// Both directions of a session.
#[derive(Debug)]
pub struct Duplex<T> {
    /// To the process.
    pub input: Input,
    /// From the process.
    pub output: Streaming<T>,
}

/// The way to the process.
#[derive(Debug)]
pub struct Input {
    /// Where it begins.
    pub queue: mpsc::Sender<api::SessionInput>,
    /// Pieces of standard input that may be sent before the daemon has taken them; any number with a daemon that does
    /// not report what it has taken.
    pub ahead: usize,
}

impl<T> Duplex<T> {
    fn of(queue: mpsc::Sender<api::SessionInput>, answer: tonic::Response<Streaming<T>>) -> Self {
        let ahead = ahead(answer.metadata());
        Self { input: Input { queue, ahead }, output: answer.into_inner() }
    }
}

/// How many pieces may be on their way to whoever answers with these headers.
fn ahead(headers: &MetadataMap) -> usize {
    if headers.contains_key(STDIN_TAKEN_HEADER) { STDIN_AHEAD } else { Semaphore::MAX_PERMITS }
}

/// A queue's sending end, and `first` followed by what is queued.
fn outgoing<T>(
    first: T,
    wrap: fn(api::SessionInput) -> T,
) -> (mpsc::Sender<api::SessionInput>, impl Stream<Item = T> + use<T>) {
    let (input, queued) = mpsc::channel(QUEUE);
    (input, tokio_stream::once(first).chain(ReceiverStream::new(queued).map(wrap)))
}

impl Client {
    /// Creates, attaches to and starts a container.
    pub async fn run(&mut self, create: api::CreateRequest) -> Result<Duplex<api::RunOutput>> {
        let first = api::RunInput { event: Some(run_input::Event::Create(create)) };
        let wrap = |input| api::RunInput { event: Some(run_input::Event::Session(input)) };
        let (input, stream) = outgoing(first, wrap);
        let request = self.request(stream);
        Ok(Duplex::of(input, self.engine.run(request).await?))
    }

    /// Joins a container's streams; with `start`, of one that does not run yet.
    pub async fn attach(&mut self, container: &str, stdin: bool, start: bool) -> Result<Duplex<api::SessionOutput>> {
        let attach = api::AttachRequest { r#ref: container.to_owned(), stdin, start };
        let first = api::AttachInput { event: Some(attach_input::Event::Attach(attach)) };
        let wrap = |input| api::AttachInput { event: Some(attach_input::Event::Session(input)) };
        let (input, stream) = outgoing(first, wrap);
        let request = self.request(stream);
        Ok(Duplex::of(input, self.engine.attach(request).await?))
    }

    /// Runs one more process in a container.
    pub async fn exec(&mut self, exec: api::ExecRequest) -> Result<Duplex<api::SessionOutput>> {
        let first = api::ExecInput { event: Some(exec_input::Event::Exec(exec)) };
        let wrap = |input| api::ExecInput { event: Some(exec_input::Event::Session(input)) };
        let (input, stream) = outgoing(first, wrap);
        let request = self.request(stream);
        Ok(Duplex::of(input, self.engine.exec(request).await?))
    }
}

#[cfg(test)]
mod tests {
    use tonic::metadata::MetadataValue;

    use super::*;

    #[test]
    fn a_daemon_that_gives_no_word_is_not_waited_for() {
        let mut headers = MetadataMap::new();
        assert!(ahead(&headers) > STDIN_AHEAD);
        headers.insert(STDIN_TAKEN_HEADER, MetadataValue::from_static("yes"));
        assert_eq!(ahead(&headers), STDIN_AHEAD);
    }
}
