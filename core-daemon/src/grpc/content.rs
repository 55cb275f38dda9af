//! `containerd.services.content.v1.Content`.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use gantry_proto::containerd::services::content::v1::content_server::Content as Service;
use gantry_proto::containerd::services::content::v1::{
    AbortRequest, DeleteContentRequest, Info, InfoRequest, InfoResponse, ListContentRequest, ListContentResponse,
    ListStatusesRequest, ListStatusesResponse, ReadContentRequest, ReadContentResponse, Status as WireStatus,
    StatusRequest, StatusResponse, UpdateRequest, UpdateResponse, WriteAction, WriteContentRequest,
    WriteContentResponse,
};
use rung_spec::digest::Digest;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::Answers;
use crate::blocking::blocking;
use crate::content::{self, Content, Ingest};
use crate::context::Context;
use crate::error::{Doing as _, Error, Kind, Result};
use crate::filter::{Filter, label};
use crate::gc::Gc;

/// Blobs in one message of a list.
const PAGE: usize = 100;
/// Bytes in one message of a blob.
const CHUNK: u64 = 1 << 20;
/// Bytes that are read at once: manifests and configurations, of which clients read many.
const SMALL: u64 = 64 << 10;

/// The service.
pub struct ContentService {
    content: Content,
    gc: Gc,
}

impl ContentService {
    /// The service over this store; bytes that nobody refers to any more go to `gc`.
    pub fn new(content: Content, gc: Gc) -> Self {
        Self { content, gc }
    }
}

fn field(info: &Info, path: &[String]) -> Option<String> {
    match path {
        [name] if name == "digest" => Some(info.digest.clone()),
        [name, rest @ ..] if name == "labels" => label(&info.labels, rest),
        _ => None,
    }
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn status(it: &content::Status) -> WireStatus {
    WireStatus {
        started_at: Some(it.started.into()),
        updated_at: Some(it.updated.into()),
        r#ref: it.reference.clone(),
        offset: signed(it.offset),
        total: signed(it.total),
        expected: it.expected.as_ref().map(Digest::to_string).unwrap_or_default(),
    }
}

#[tonic::async_trait]
impl Service for ContentService {
    type ListStream = Answers<ListContentResponse>;
    type ReadStream = Answers<ReadContentResponse>;
    type WriteStream = Answers<WriteContentResponse>;

    async fn info(&self, request: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        let ctx = Context::of(request.metadata())?;
        let info = Some(self.content.info(&ctx, &content::parse(&request.get_ref().digest)?)?);
        Ok(Response::new(InfoResponse { info }))
    }

    async fn update(&self, request: Request<UpdateRequest>) -> Result<Response<UpdateResponse>, Status> {
        let ctx = Context::of(request.metadata())?;
        let UpdateRequest { info, update_mask } = request.into_inner();
        let wanted = info.ok_or_else(|| Error::invalid("info is required"))?;
        let mask = update_mask.unwrap_or_default().paths;
        let content = self.content.clone();
        let info = Some(blocking(move || content.update(&ctx, &wanted, &mask)).await?);
        Ok(Response::new(UpdateResponse { info }))
    }

    async fn list(&self, request: Request<ListContentRequest>) -> Result<Response<Self::ListStream>, Status> {
        let ctx = Context::of(request.metadata())?;
        let filter = Filter::parse(&request.get_ref().filters)?;
        let mut all = self.content.list(&ctx)?;
        all.retain(|info| filter.matches(|path| field(info, path)));
        let pages: Vec<_> = all.chunks(PAGE).map(|page| Ok(ListContentResponse { info: page.to_vec() })).collect();
        Ok(Response::new(Box::pin(stream::iter(pages))))
    }

    async fn delete(&self, request: Request<DeleteContentRequest>) -> Result<Response<()>, Status> {
        let ctx = Context::of(request.metadata())?;
        let digest = content::parse(&request.get_ref().digest)?;
        let content = self.content.clone();
        blocking(move || content.delete(&ctx, &digest)).await?;
        self.gc.changed();
        Ok(Response::new(()))
    }

    async fn read(&self, request: Request<ReadContentRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let ctx = Context::of(request.metadata())?;
        let ReadContentRequest { digest, offset, size } = request.into_inner();
        let digest = content::parse(&digest)?;
        let blob = self.content.reader(&ctx, &digest)?;
        let offset = u64::try_from(offset).unwrap_or(0);
        if offset > blob.size {
            return Err(Error::new(Kind::OutOfRange, format!("read past object length {} bytes", blob.size)).into());
        }
        let size = u64::try_from(size).unwrap_or(0);
        let end = if size == 0 { blob.size } else { offset.saturating_add(size).min(blob.size) };
        if end - offset <= SMALL {
            let all = blocking(move || (offset < end).then(|| piece(&blob.file, offset, end)).transpose()).await?;
            return Ok(Response::new(Box::pin(stream::iter(all.map(Ok)))));
        }
        let file = Arc::new(blob.file);
        // A piece is read when the client has room for it.
        let pieces = stream::try_unfold(offset, move |offset| {
            let (file, next) = (file.clone(), end.min(offset + CHUNK));
            async move {
                let read = (offset < next).then(|| blocking(move || piece(&file, offset, next)));
                match read {
                    Some(piece) => Ok(Some((piece.await?, next))),
                    None => Ok(None),
                }
            }
        });
        Ok(Response::new(Box::pin(pieces)))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let ctx = Context::of(request.metadata())?;
        let found = self.content.status(&ctx, &request.get_ref().r#ref)?;
        Ok(Response::new(StatusResponse { status: Some(status(&found)) }))
    }

    async fn list_statuses(
        &self,
        request: Request<ListStatusesRequest>,
    ) -> Result<Response<ListStatusesResponse>, Status> {
        let ctx = Context::of(request.metadata())?;
        let filter = Filter::parse(&request.get_ref().filters)?;
        let reference = |it: &content::Status, path: &[String]| (path == ["ref"]).then(|| it.reference.clone());
        let mut all = self.content.statuses(&ctx)?;
        all.retain(|it| filter.matches(|path| reference(it, path)));
        Ok(Response::new(ListStatusesResponse { statuses: all.iter().map(status).collect() }))
    }

    async fn write(
        &self,
        request: Request<Streaming<WriteContentRequest>>,
    ) -> Result<Response<Self::WriteStream>, Status> {
        let ctx = Context::of(request.metadata())?;
        let mut requests = request.into_inner();
        let (sender, receiver) = mpsc::channel(4);
        let content = self.content.clone();
        tokio::spawn(async move {
            let mut session = Session { content, ctx, ingest: None, total: 0, expected: None };
            if let Err(error) = session.run(&mut requests, &sender).await {
                drop(sender.send(Err(error)).await);
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn abort(&self, request: Request<AbortRequest>) -> Result<Response<()>, Status> {
        let ctx = Context::of(request.metadata())?;
        let content = self.content.clone();
        blocking(move || content.abort(&ctx, &request.get_ref().r#ref)).await?;
        Ok(Response::new(()))
    }
}

fn piece(file: &std::fs::File, offset: u64, end: u64) -> Result<ReadContentResponse> {
    let mut data = vec![0; usize::try_from(end - offset).unwrap_or(0)];
    file.read_exact_at(&mut data, offset).doing(|| "read content")?;
    Ok(ReadContentResponse { offset: signed(offset), data: Bytes::from(data) })
}

/// One Write call: from the first message, which opens the ingest, to a commit or the end of the stream.
struct Session {
    content: Content,
    ctx: Context,
    ingest: Option<Ingest>,
    total: u64,
    expected: Option<Digest>,
}

impl Session {
    async fn run(
        &mut self,
        requests: &mut Streaming<WriteContentRequest>,
        to: &mpsc::Sender<Result<WriteContentResponse, Status>>,
    ) -> Result<(), Status> {
        while let Some(request) = requests.message().await? {
            let answer = self.step(request).await?;
            let done = answer.action() == WriteAction::Commit;
            if to.send(Ok(answer)).await.is_err() || done {
                break;
            }
        }
        Ok(())
    }

    async fn step(&mut self, request: WriteContentRequest) -> Result<WriteContentResponse> {
        if request.total > 0 {
            self.total = u64::try_from(request.total).unwrap_or(0);
        }
        let first = self.ingest.is_none();
        if !request.expected.is_empty() {
            let expected = content::parse(&request.expected)?;
            if !first {
                self.stop_if_there(&expected, &request).await?;
            }
            self.expected = Some(expected);
        }
        let mut ingest = match self.ingest.take() {
            Some(ingest) => ingest,
            None => self.open(request.r#ref.clone()).await?,
        };
        let action = request.action();
        let (total, expected) = (self.total, self.expected.clone());
        let (answer, ingest) = blocking(move || match action {
            WriteAction::Stat => Ok((answer(&ingest, action, total), Some(ingest))),
            WriteAction::Write => {
                append(&mut ingest, &request)?;
                Ok((answer(&ingest, action, total), Some(ingest)))
            }
            WriteAction::Commit => {
                append(&mut ingest, &request)?;
                let answer = answer(&ingest, action, total);
                ingest.commit(total, expected.as_ref(), request.labels)?;
                Ok((answer, None))
            }
        })
        .await?;
        self.ingest = ingest;
        Ok(answer)
    }

    async fn open(&self, reference: String) -> Result<Ingest> {
        let (content, ctx) = (self.content.clone(), self.ctx.clone());
        let (total, expected) = (self.total, self.expected.clone());
        blocking(move || {
            if reference.is_empty() {
                return Err(Error::invalid("first message must have a reference"));
            }
            content.writer(&ctx, &reference, total, expected.as_ref())
        })
        .await
    }

    /// Ends the call when it turns out that what is being written is there already.
    async fn stop_if_there(&mut self, expected: &Digest, request: &WriteContentRequest) -> Result<()> {
        let (content, ctx, digest) = (self.content.clone(), self.ctx.clone(), expected.clone());
        if blocking(move || content.hold(&ctx, &digest)).await? {
            if let Some(ingest) = self.ingest.take() {
                ingest.abort();
            }
            return Err(Error::already_exists(format!("blob with expected digest {} exists", request.expected)));
        }
        Ok(())
    }
}

/// Writes the data of a message where it says.
fn append(ingest: &mut Ingest, request: &WriteContentRequest) -> Result<()> {
    let offset = u64::try_from(request.offset).map_err(|_| Error::new(Kind::OutOfRange, "negative offset"))?;
    let at = ingest.offset();
    if offset > 0 && offset != at {
        let problem = format!("write @{offset} must occur at current offset {at}");
        return Err(Error::new(Kind::OutOfRange, problem));
    }
    // A commit that brings nothing is of what is there.
    let is_bare = request.action() == WriteAction::Commit && request.data.is_empty();
    let begins_anew = offset == 0 && at > 0 && !is_bare;
    if begins_anew {
        ingest.truncate(0)?;
    }
    if request.data.is_empty() { Ok(()) } else { ingest.write(&request.data) }
}

fn answer(ingest: &Ingest, action: WriteAction, total: u64) -> WriteContentResponse {
    let status = ingest.status();
    let is_stat = action == WriteAction::Stat;
    WriteContentResponse {
        action: action.into(),
        started_at: is_stat.then(|| status.started.into()),
        updated_at: is_stat.then(|| status.updated.into()),
        offset: signed(status.offset),
        total: if is_stat { signed(total) } else { 0 },
        digest: ingest.digest().to_string(),
    }
}
