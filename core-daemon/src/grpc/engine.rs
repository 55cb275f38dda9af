//! `gantry.engine.v1.Engine`.

use std::sync::Arc;

use futures_util::{Stream, StreamExt as _};
use gantry_proto::gantry::engine::v1 as api;
use gantry_proto::gantry::engine::v1::engine_server::Engine;
use gantry_proto::stdio::STDIN_TAKEN_HEADER;
use rung_spec::digest::Digest;
use rung_spec::image::Descriptor;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataValue;
use tonic::{Request, Response, Status, Streaming};

use super::Answers;
use crate::blocking::blocking;
use crate::context::Context;
use crate::engine::{self, Output};
use crate::error::Result;
use crate::image::{Progress, Pulled, Step};

/// Messages that may wait for a client that does not read.
const QUEUE: usize = 16;

/// The service.
pub struct EngineService {
    engine: engine::Engine,
}

impl EngineService {
    /// The service over this engine.
    pub fn new(engine: engine::Engine) -> Self {
        Self { engine }
    }
}

/// Starts `work`, whose messages the answer carries; its error ends the answer.
pub(super) fn answer<T: Send + 'static, F>(work: impl FnOnce(mpsc::Sender<Result<T>>) -> F) -> Response<Answers<T>>
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(QUEUE);
    let done = work(sender.clone());
    tokio::spawn(async move {
        if let Err(error) = done.await {
            let _ = sender.send(Err(error)).await;
        }
    });
    let answers = ReceiverStream::new(receiver).map(|message| message.map_err(Status::from));
    Response::new(Box::pin(answers))
}

/// As [`answer`], of a session, whose client is told what is taken of its standard input.
fn session<T: Send + 'static, F>(work: impl FnOnce(mpsc::Sender<Result<T>>) -> F) -> Response<Answers<T>>
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let mut answer = answer(work);
    answer.metadata_mut().insert(STDIN_TAKEN_HEADER, MetadataValue::from_static("yes"));
    answer
}

/// As [`answer`], but given up where the client goes away before it is done.
pub(super) fn answer_while_there<T: Send + 'static, F>(
    work: impl FnOnce(mpsc::Sender<Result<T>>) -> F,
) -> Response<Answers<T>>
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    answer(|sender| {
        let done = work(sender.clone());
        async move {
            tokio::select! {
                done = done => done,
                () = sender.closed() => Ok(()),
            }
        }
    })
}

/// The messages of a client's stream that mean something, until it ends or breaks.
fn inputs<T: Send + 'static>(
    input: Streaming<T>,
    session: fn(T) -> Option<api::SessionInput>,
) -> impl Stream<Item = api::SessionInput> + Send + Unpin {
    let messages = input.take_while(|message| std::future::ready(message.is_ok()));
    Box::pin(messages.filter_map(move |message| std::future::ready(message.ok().and_then(session))))
}

async fn first<T>(input: &mut Streaming<T>, what: &str) -> Result<T, Status> {
    let message = input.message().await?;
    message.ok_or_else(|| Status::invalid_argument(format!("the first message must be {what}")))
}

/// Tells a client how a pull goes. Layers report often, so what does not fit the queue is left out: the next report says
/// more.
pub(super) struct Report<T> {
    pub(super) sender: mpsc::Sender<Result<T>>,
    pub(super) wrap: fn(api::PullProgress) -> T,
}

impl<T: Send> Report<T> {
    fn tell(&self, event: api::pull_progress::Event) {
        let _ = self.sender.try_send(Ok((self.wrap)(api::PullProgress { event: Some(event) })));
    }
}

impl<T: Send> Progress for Report<T> {
    fn resolving(&self, reference: &str) {
        self.tell(api::pull_progress::Event::Resolving(reference.to_owned()));
    }

    fn warning(&self, text: &str) {
        self.tell(api::pull_progress::Event::Warning(text.to_owned()));
    }

    fn layer(&self, digest: &Digest, step: Step, current: u64, total: u64) {
        let state = match step {
            Step::Waiting => api::LayerState::Waiting,
            Step::Downloading => api::LayerState::Downloading,
            Step::Extracting => api::LayerState::Extracting,
            Step::Complete => api::LayerState::Complete,
            Step::Exists => api::LayerState::Exists,
            Step::Uploading => api::LayerState::Uploading,
            Step::Mounted => api::LayerState::Mounted,
        };
        let layer = api::LayerProgress { digest: digest.to_string(), state: state.into(), current, total };
        self.tell(api::pull_progress::Event::Layer(layer));
    }
}

fn pulled(pulled: Pulled) -> api::PullProgress {
    done(pulled.name, &pulled.target, pulled.up_to_date)
}

/// The last message of a pull or push.
pub(super) fn done(image: String, target: &Descriptor, up_to_date: bool) -> api::PullProgress {
    let done = api::Pulled { image, digest: target.digest.to_string(), up_to_date };
    api::PullProgress { event: Some(api::pull_progress::Event::Done(done)) }
}

#[tonic::async_trait]
impl Engine for EngineService {
    type CreateStream = Answers<api::CreateProgress>;
    type RunStream = Answers<api::RunOutput>;
    type AttachStream = Answers<api::SessionOutput>;
    type ExecStream = Answers<api::SessionOutput>;
    type LogsStream = Answers<api::LogRecord>;
    type EventsStream = Answers<api::Event>;
    type PullStream = Answers<api::PullProgress>;

    async fn create(&self, request: Request<api::CreateRequest>) -> Result<Response<Self::CreateStream>, Status> {
        use api::create_progress::Event;
        let context = Context::of(request.metadata())?;
        let (engine, request) = (self.engine.clone(), request.into_inner());
        Ok(answer(move |sender| async move {
            let wrap = |pull| api::CreateProgress { event: Some(Event::Pull(pull)) };
            let report = Arc::new(Report { sender: sender.clone(), wrap });
            let created = engine.create(&context, request, report, sender.closed()).await?;
            let _ = sender.send(Ok(api::CreateProgress { event: Some(Event::Created(created.into())) })).await;
            Ok(())
        }))
    }

    async fn run(&self, request: Request<Streaming<api::RunInput>>) -> Result<Response<Self::RunStream>, Status> {
        use api::{run_input, run_output};
        let context = Context::of(request.metadata())?;
        let mut input = request.into_inner();
        let Some(run_input::Event::Create(create)) = first(&mut input, "create").await?.event else {
            return Err(Status::invalid_argument("the first message must be create"));
        };
        let input = inputs(input, |message| match message.event {
            Some(run_input::Event::Session(input)) => Some(input),
            _ => None,
        });
        let engine = self.engine.clone();
        Ok(session(move |sender| async move {
            let wrap = |pull| api::RunOutput { event: Some(run_output::Event::Pull(pull)) };
            let report = Arc::new(Report { sender: sender.clone(), wrap });
            let wrap = |output| api::RunOutput { event: Some(run_output::Event::Session(output)) };
            engine.run(&context, create, report, input, Output { sender, wrap }).await
        }))
    }

    async fn start(&self, request: Request<api::StartRequest>) -> Result<Response<api::StartResponse>, Status> {
        let context = Context::of(request.metadata())?;
        let pid = self.engine.start(&context, &request.get_ref().r#ref).await?;
        Ok(Response::new(api::StartResponse { pid }))
    }

    async fn attach(
        &self,
        request: Request<Streaming<api::AttachInput>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        use api::attach_input::Event;
        let context = Context::of(request.metadata())?;
        let mut input = request.into_inner();
        let Some(Event::Attach(attach)) = first(&mut input, "attach").await?.event else {
            return Err(Status::invalid_argument("the first message must be attach"));
        };
        let input = inputs(input, |message| match message.event {
            Some(Event::Session(input)) => Some(input),
            _ => None,
        });
        let engine = self.engine.clone();
        Ok(session(move |sender| async move {
            engine.attach(&context, &attach, input, Output { sender, wrap: |output| output }).await
        }))
    }

    async fn exec(&self, request: Request<Streaming<api::ExecInput>>) -> Result<Response<Self::ExecStream>, Status> {
        use api::exec_input::Event;
        let context = Context::of(request.metadata())?;
        let mut input = request.into_inner();
        let Some(Event::Exec(exec)) = first(&mut input, "exec").await?.event else {
            return Err(Status::invalid_argument("the first message must be exec"));
        };
        let input = inputs(input, |message| match message.event {
            Some(Event::Session(input)) => Some(input),
            _ => None,
        });
        let engine = self.engine.clone();
        Ok(session(move |sender| async move {
            engine.exec(&context, exec, input, Output { sender, wrap: |output| output }).await
        }))
    }

    async fn stop(&self, request: Request<api::StopRequest>) -> Result<Response<api::StopResponse>, Status> {
        let context = Context::of(request.metadata())?;
        self.engine.stop(&context, request.get_ref()).await?;
        Ok(Response::new(api::StopResponse {}))
    }

    async fn restart(&self, request: Request<api::RestartRequest>) -> Result<Response<api::RestartResponse>, Status> {
        let context = Context::of(request.metadata())?;
        self.engine.restart(&context, request.get_ref()).await?;
        Ok(Response::new(api::RestartResponse {}))
    }

    async fn kill(&self, request: Request<api::KillRequest>) -> Result<Response<api::KillResponse>, Status> {
        let context = Context::of(request.metadata())?;
        self.engine.kill(&context, request.get_ref()).await?;
        Ok(Response::new(api::KillResponse {}))
    }

    async fn update(&self, request: Request<api::UpdateRequest>) -> Result<Response<api::UpdateResponse>, Status> {
        let context = Context::of(request.metadata())?;
        self.engine.update(&context, request.get_ref()).await?;
        Ok(Response::new(api::UpdateResponse {}))
    }

    async fn rename(&self, request: Request<api::RenameRequest>) -> Result<Response<api::RenameResponse>, Status> {
        let context = Context::of(request.metadata())?;
        self.engine.rename(&context, request.get_ref()).await?;
        Ok(Response::new(api::RenameResponse {}))
    }

    async fn remove(&self, request: Request<api::RemoveRequest>) -> Result<Response<api::RemoveResponse>, Status> {
        let context = Context::of(request.metadata())?;
        let id = self.engine.remove(&context, request.get_ref()).await?;
        Ok(Response::new(api::RemoveResponse { id: id.to_string() }))
    }

    async fn wait(&self, request: Request<api::WaitRequest>) -> Result<Response<api::WaitResponse>, Status> {
        let context = Context::of(request.metadata())?;
        let ended = self.engine.wait(&context, &request.get_ref().r#ref).await?;
        Ok(Response::new(api::WaitResponse { exit: Some(ended.into()) }))
    }

    async fn list(&self, request: Request<api::ListRequest>) -> Result<Response<api::ListResponse>, Status> {
        let context = Context::of(request.metadata())?;
        Ok(Response::new(api::ListResponse { containers: self.engine.list(&context, request.get_ref().all)? }))
    }

    async fn inspect(&self, request: Request<api::InspectRequest>) -> Result<Response<api::InspectResponse>, Status> {
        let context = Context::of(request.metadata())?;
        Ok(Response::new(api::InspectResponse { json: self.engine.inspect(&context, &request.get_ref().r#ref)? }))
    }

    async fn logs(&self, request: Request<api::LogsRequest>) -> Result<Response<Self::LogsStream>, Status> {
        let context = Context::of(request.metadata())?;
        let (engine, request) = (self.engine.clone(), request.into_inner());
        Ok(answer(move |sender| async move { engine.logs(&context, &request, sender).await }))
    }

    async fn events(&self, request: Request<api::EventsRequest>) -> Result<Response<Self::EventsStream>, Status> {
        let context = Context::of(request.metadata())?;
        let (engine, request) = (self.engine.clone(), request.into_inner());
        Ok(answer(move |sender| async move { engine.events(&context, &request, sender).await }))
    }

    async fn pull(&self, request: Request<api::PullRequest>) -> Result<Response<Self::PullStream>, Status> {
        let context = Context::of(request.metadata())?;
        let (engine, request) = (self.engine.clone(), request.into_inner());
        Ok(answer_while_there(move |sender| async move {
            let report = Arc::new(Report { sender: sender.clone(), wrap: |pull| pull });
            let done = engine.pull(&context, request, report).await?;
            let _ = sender.send(Ok(pulled(done))).await;
            Ok(())
        }))
    }

    async fn list_images(
        &self,
        request: Request<api::ListImagesRequest>,
    ) -> Result<Response<api::ListImagesResponse>, Status> {
        let context = Context::of(request.metadata())?;
        let engine = self.engine.clone();
        let images = blocking(move || engine.list_images(&context)).await?;
        Ok(Response::new(api::ListImagesResponse { images }))
    }

    async fn inspect_image(
        &self,
        request: Request<api::InspectImageRequest>,
    ) -> Result<Response<api::InspectImageResponse>, Status> {
        let context = Context::of(request.metadata())?;
        let (engine, request) = (self.engine.clone(), request.into_inner());
        let json = blocking(move || engine.inspect_image(&context, &request.image)).await?;
        Ok(Response::new(api::InspectImageResponse { json }))
    }

    async fn remove_image(
        &self,
        request: Request<api::RemoveImageRequest>,
    ) -> Result<Response<api::RemoveImageResponse>, Status> {
        let context = Context::of(request.metadata())?;
        let (engine, request) = (self.engine.clone(), request.into_inner());
        let removed = blocking(move || engine.remove_image(&context, &request)).await?;
        Ok(Response::new(removed))
    }

    async fn info(&self, request: Request<api::InfoRequest>) -> Result<Response<api::InfoResponse>, Status> {
        let context = Context::of(request.metadata())?;
        Ok(Response::new(self.engine.info(&context)?))
    }

    async fn version(&self, _request: Request<api::VersionRequest>) -> Result<Response<api::VersionResponse>, Status> {
        Ok(Response::new(self.engine.version()))
    }
}
