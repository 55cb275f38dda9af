//! `gantry.images.v1.Images`.

use std::io::{self, Write};
use std::sync::Arc;

use bytes::Bytes;
use gantry_proto::gantry::engine::v1::PullProgress;
use gantry_proto::gantry::images::v1 as api;
use gantry_proto::gantry::images::v1::images_server::Images as Service;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status, Streaming};

use super::Answers;
use super::engine::{Report, answer, answer_while_there, done};
use super::incoming::Incoming;
use crate::blocking::blocking;
use crate::context::Context;
use crate::engine::Engine;
use crate::error::Result;

/// Bytes in one message.
const PIECE: usize = 256 << 10;
/// Messages that wait.
const QUEUE: usize = 8;

/// The service.
pub struct GantryImagesService {
    engine: Engine,
}

impl GantryImagesService {
    /// The service over this engine.
    pub fn new(engine: Engine) -> Self {
        Self { engine }
    }
}

/// Sends bytes as messages, from a thread that may block.
struct Outgoing<T> {
    sender: mpsc::Sender<Result<T>>,
    wrap: fn(Vec<u8>) -> T,
    waiting: Vec<u8>,
}

impl<T> Outgoing<T> {
    fn new(sender: mpsc::Sender<Result<T>>, wrap: fn(Vec<u8>) -> T) -> Self {
        Self { sender, wrap, waiting: Vec::with_capacity(PIECE) }
    }
}

impl<T> Write for Outgoing<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = bytes.len().min(PIECE - self.waiting.len());
        self.waiting.extend_from_slice(&bytes[..length]);
        if self.waiting.len() == PIECE {
            self.flush()?;
        }
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.waiting, Vec::with_capacity(PIECE));
        self.sender.blocking_send(Ok((self.wrap)(piece))).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// The bytes in a client's messages. A stream that breaks is no archive that ends.
fn incoming<T: Send + 'static, O: 'static>(mut messages: Streaming<T>, part: fn(T) -> Option<Part<O>>) -> Incoming {
    let (sender, pieces) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        loop {
            let piece = match messages.message().await {
                Ok(Some(message)) => match part(message) {
                    Some(Part::Data(data)) => Ok(Bytes::from(data)),
                    _ => continue,
                },
                Ok(None) => return,
                Err(status) => Err(io::Error::new(io::ErrorKind::ConnectionReset, status.message().to_owned())),
            };
            let is_end = piece.is_err();
            if sender.send(piece).await.is_err() || is_end {
                return;
            }
        }
    });
    Incoming::new(pieces)
}

/// What one message of a client says.
enum Part<O> {
    Options(O),
    Data(Vec<u8>),
}

/// The options that come first, and the bytes after them.
async fn options_and_bytes<T: Send + 'static, O: 'static>(
    mut messages: Streaming<T>,
    part: fn(T) -> Option<Part<O>>,
) -> Result<(O, Incoming), Status> {
    match messages.message().await?.and_then(part) {
        Some(Part::Options(options)) => Ok((options, incoming(messages, part))),
        _ => Err(Status::invalid_argument("the first message must be options")),
    }
}

#[tonic::async_trait]
impl Service for GantryImagesService {
    type PushStream = Answers<PullProgress>;
    type SaveStream = Answers<api::Chunk>;
    type ExportStream = Answers<api::Chunk>;
    type CopyOutStream = Answers<api::CopyOutput>;

    async fn push(&self, request: Request<api::PushRequest>) -> Result<Response<Self::PushStream>, Status> {
        let context = Context::of(request.metadata())?;
        let (engine, request) = (self.engine.clone(), request.into_inner());
        Ok(answer_while_there(move |sender| async move {
            let report = Arc::new(Report { sender: sender.clone(), wrap: |push| push });
            let image = request.image.clone();
            let pushed = engine.push(&context, request, report).await?;
            // In a push "up to date" says that all of the index was pushed.
            let _ = sender.send(Ok(done(image, &pushed.target, !pushed.is_part))).await;
            Ok(())
        }))
    }

    async fn load(&self, request: Request<Streaming<api::LoadInput>>) -> Result<Response<api::LoadResponse>, Status> {
        use api::load_input::Event;
        let context = Context::of(request.metadata())?;
        let (options, archive) = options_and_bytes(request.into_inner(), |message| match message.event? {
            Event::Options(options) => Some(Part::Options(options)),
            Event::Data(data) => Some(Part::Data(data)),
        })
        .await?;
        let images = self.engine.load(&context, options, archive).await?;
        Ok(Response::new(api::LoadResponse { images }))
    }

    async fn save(&self, request: Request<api::SaveRequest>) -> Result<Response<Self::SaveStream>, Status> {
        let context = Context::of(request.metadata())?;
        let (engine, request) = (self.engine.clone(), request.into_inner());
        Ok(answer(move |sender| async move {
            engine.save(&context, request, Outgoing::new(sender, |data| api::Chunk { data })).await
        }))
    }

    async fn import(&self, request: Request<Streaming<api::ImportInput>>) -> Result<Response<api::ImageId>, Status> {
        use api::import_input::Event;
        let context = Context::of(request.metadata())?;
        let (options, archive) = options_and_bytes(request.into_inner(), |message| match message.event? {
            Event::Options(options) => Some(Part::Options(options)),
            Event::Data(data) => Some(Part::Data(data)),
        })
        .await?;
        let id = self.engine.import_files(&context, options, archive).await?;
        Ok(Response::new(api::ImageId { id }))
    }

    async fn export(&self, request: Request<api::ExportRequest>) -> Result<Response<Self::ExportStream>, Status> {
        let context = Context::of(request.metadata())?;
        let (engine, request) = (self.engine.clone(), request.into_inner());
        Ok(answer(move |sender| async move {
            engine.export_files(&context, &request.r#ref, Outgoing::new(sender, |data| api::Chunk { data })).await
        }))
    }

    async fn commit(&self, request: Request<api::CommitRequest>) -> Result<Response<api::ImageId>, Status> {
        let context = Context::of(request.metadata())?;
        let id = self.engine.commit(&context, request.into_inner()).await?;
        Ok(Response::new(api::ImageId { id }))
    }

    async fn history(&self, request: Request<api::HistoryRequest>) -> Result<Response<api::HistoryResponse>, Status> {
        let context = Context::of(request.metadata())?;
        let (engine, image) = (self.engine.clone(), request.into_inner().image);
        let steps = blocking(move || engine.history(&context, &image)).await?;
        Ok(Response::new(api::HistoryResponse { steps }))
    }

    async fn prune(&self, request: Request<api::PruneRequest>) -> Result<Response<api::PruneResponse>, Status> {
        let context = Context::of(request.metadata())?;
        Ok(Response::new(self.engine.prune_images(&context, request.into_inner()).await?))
    }

    async fn changes(&self, request: Request<api::ChangesRequest>) -> Result<Response<api::ChangesResponse>, Status> {
        let context = Context::of(request.metadata())?;
        let changes = self.engine.changes(&context, &request.get_ref().r#ref).await?;
        Ok(Response::new(api::ChangesResponse { changes }))
    }

    async fn copy_out(&self, request: Request<api::CopyOutRequest>) -> Result<Response<Self::CopyOutStream>, Status> {
        use api::copy_output::Event;
        let context = Context::of(request.metadata())?;
        let (engine, request) = (self.engine.clone(), request.into_inner());
        Ok(answer(move |sender| async move {
            let first = sender.clone();
            let stat = move |stat| {
                // A client that is gone is noticed with the first bytes.
                let _ = first.blocking_send(Ok(api::CopyOutput { event: Some(Event::Stat(stat)) }));
                Ok(())
            };
            let to = Outgoing::new(sender, |data| api::CopyOutput { event: Some(Event::Data(data)) });
            engine.copy_out(&context, request, stat, to).await
        }))
    }

    async fn copy_in(
        &self,
        request: Request<Streaming<api::CopyInput>>,
    ) -> Result<Response<api::CopyInResponse>, Status> {
        use api::copy_input::Event;
        let context = Context::of(request.metadata())?;
        let (options, archive) = options_and_bytes(request.into_inner(), |message| match message.event? {
            Event::Options(options) => Some(Part::Options(options)),
            Event::Data(data) => Some(Part::Data(data)),
        })
        .await?;
        self.engine.copy_in(&context, options, archive).await?;
        Ok(Response::new(api::CopyInResponse {}))
    }

    async fn explain(&self, request: Request<api::ExplainRequest>) -> Result<Response<api::ExplainResponse>, Status> {
        Context::of(request.metadata())?;
        let hosts = self.engine.explain_registry(request.into_inner()).await?;
        Ok(Response::new(api::ExplainResponse { hosts }))
    }

    async fn referrers(
        &self,
        request: Request<api::ReferrersRequest>,
    ) -> Result<Response<api::ReferrersResponse>, Status> {
        Context::of(request.metadata())?;
        Ok(Response::new(self.engine.referrers(request.into_inner()).await?))
    }

    async fn login(&self, request: Request<api::LoginRequest>) -> Result<Response<api::LoginResponse>, Status> {
        Context::of(request.metadata())?;
        self.engine.check_account(request.into_inner()).await?;
        Ok(Response::new(api::LoginResponse {}))
    }
}
