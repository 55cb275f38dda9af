//! The calls of our own service about images.

use std::io::{self, Read, Write};

use futures_util::StreamExt as _;
use gantry_proto::gantry::engine::v1::PullProgress;
use gantry_proto::gantry::images::v1 as api;
use gantry_proto::gantry::images::v1::images_client::ImagesClient;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use super::{Client, MAX_MESSAGE, reason};
use crate::error::{Failure, Result};

/// Bytes in one message, and messages that wait.
const PIECE: usize = 256 << 10;
const QUEUE: usize = 8;

impl Client {
    fn images_service(&self) -> ImagesClient<Channel> {
        ImagesClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    /// Pushes an image.
    pub async fn push(&mut self, request: api::PushRequest) -> Result<Streaming<PullProgress>> {
        let request = self.request(request);
        Ok(self.images_service().push(request).await?.into_inner())
    }

    /// Loads the images of an archive.
    pub async fn load(
        &mut self,
        options: api::LoadOptions,
        archive: impl Read + Send + 'static,
    ) -> Result<Vec<api::Loaded>> {
        use api::load_input::Event;
        let first = api::LoadInput { event: Some(Event::Options(options)) };
        let (messages, failed) = messages(first, archive, |data| api::LoadInput { event: Some(Event::Data(data)) });
        let mut service = self.images_service();
        Ok(failed.or(service.load(self.request(messages))).await?.into_inner().images)
    }

    /// Makes an image of a tar of files; gives its id.
    pub async fn import(&mut self, options: api::ImportOptions, archive: impl Read + Send + 'static) -> Result<String> {
        use api::import_input::Event;
        let first = api::ImportInput { event: Some(Event::Options(options)) };
        let (messages, failed) = messages(first, archive, |data| api::ImportInput { event: Some(Event::Data(data)) });
        let mut service = self.images_service();
        Ok(failed.or(service.import(self.request(messages))).await?.into_inner().id)
    }

    /// Unpacks a tar into a directory of a container.
    pub async fn copy_in(&mut self, options: api::CopyInOptions, archive: impl Read + Send + 'static) -> Result<()> {
        use api::copy_input::Event;
        let first = api::CopyInput { event: Some(Event::Options(options)) };
        let (messages, failed) = messages(first, archive, |data| api::CopyInput { event: Some(Event::Data(data)) });
        let mut service = self.images_service();
        failed.or(service.copy_in(self.request(messages))).await.map(drop)
    }

    /// Writes an archive of images to `to`.
    pub async fn save(&mut self, request: api::SaveRequest, to: &mut dyn Write) -> Result<()> {
        let request = self.request(request);
        let mut chunks = self.images_service().save(request).await?.into_inner();
        while let Some(chunk) = chunks.message().await? {
            write(to, &chunk.data)?;
        }
        Ok(())
    }

    /// Writes a container's files as a tar to `to`.
    pub async fn export(&mut self, container: &str, to: &mut dyn Write) -> Result<()> {
        let request = self.request(api::ExportRequest { r#ref: container.to_owned() });
        let mut chunks = self.images_service().export(request).await?.into_inner();
        while let Some(chunk) = chunks.message().await? {
            write(to, &chunk.data)?;
        }
        Ok(())
    }

    /// Writes what is at a path of a container as a tar to `to`.
    pub async fn copy_out(&mut self, request: api::CopyOutRequest, to: &mut dyn Write) -> Result<()> {
        use api::copy_output::Event;
        let request = self.request(request);
        let mut outputs = self.images_service().copy_out(request).await?.into_inner();
        while let Some(output) = outputs.message().await? {
            if let Some(Event::Data(data)) = output.event {
                write(to, &data)?;
            }
        }
        Ok(())
    }

    /// What is at a path of a container.
    pub async fn copy_stat(&mut self, request: api::CopyOutRequest) -> Result<api::PathStat> {
        use api::copy_output::Event;
        let request = self.request(request);
        let mut outputs = self.images_service().copy_out(request).await?.into_inner();
        match outputs.message().await?.and_then(|output| output.event) {
            Some(Event::Stat(stat)) => Ok(stat),
            _ => Err(Failure::new("gantryd does not say what is there")),
        }
    }

    /// Makes an image of a container; gives its id.
    pub async fn commit(&mut self, request: api::CommitRequest) -> Result<String> {
        let request = self.request(request);
        Ok(self.images_service().commit(request).await?.into_inner().id)
    }

    /// The steps of an image, newest first.
    pub async fn history(&mut self, image: &str) -> Result<Vec<api::Step>> {
        let request = self.request(api::HistoryRequest { image: image.to_owned() });
        Ok(self.images_service().history(request).await?.into_inner().steps)
    }

    /// Removes images that nobody needs.
    pub async fn prune_images(&mut self, request: api::PruneRequest) -> Result<api::PruneResponse> {
        let request = self.request(request);
        Ok(self.images_service().prune(request).await?.into_inner())
    }

    /// What a container has changed.
    pub async fn changes(&mut self, container: &str) -> Result<Vec<api::Change>> {
        let request = self.request(api::ChangesRequest { r#ref: container.to_owned() });
        Ok(self.images_service().changes(request).await?.into_inner().changes)
    }

    /// The hosts that stand for an image's registry.
    pub async fn explain(&mut self, request: api::ExplainRequest) -> Result<Vec<api::Host>> {
        let request = self.request(request);
        Ok(self.images_service().explain(request).await?.into_inner().hosts)
    }

    /// What a registry has that is about an image.
    pub async fn referrers(&mut self, request: api::ReferrersRequest) -> Result<api::ReferrersResponse> {
        let request = self.request(request);
        Ok(self.images_service().referrers(request).await?.into_inner())
    }

    /// Finds out whether an account is good at a registry.
    pub async fn login(&mut self, request: api::LoginRequest) -> Result<()> {
        let request = self.request(request);
        self.images_service().login(request).await?;
        Ok(())
    }
}

fn write(to: &mut dyn Write, data: &[u8]) -> Result<()> {
    to.write_all(data).map_err(|error| crate::output::write_failure(&error))
}

/// Tells of an error in reading the input. The call is then dropped, not ended: the daemon would take the end of the
/// messages for the end of the archive.
struct Failed<T>(oneshot::Receiver<(io::Error, mpsc::Sender<T>)>);

impl<T> Failed<T> {
    /// Makes a call whose messages come from the input.
    async fn or<A>(self, call: impl Future<Output = Result<A, tonic::Status>>) -> Result<A> {
        let failure = async {
            match self.0.await {
                // The sender is kept until the call is dropped, so that the daemon sees no end.
                Ok((error, _sender)) => Failure::new(format!("read the archive: {}", reason(&error))),
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            failure = failure => Err(failure),
            answer = call => Ok(answer?),
        }
    }
}

/// `first`, and then an input's bytes as messages.
fn messages<T: Send + 'static>(
    first: T,
    mut from: impl Read + Send + 'static,
    wrap: fn(Vec<u8>) -> T,
) -> (impl futures_util::Stream<Item = T> + Send, Failed<T>) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let (tell, failed) = oneshot::channel();
    std::thread::spawn(move || {
        let mut piece = vec![0; PIECE];
        loop {
            match from.read(&mut piece) {
                Ok(0) => return,
                Ok(length) => {
                    if sender.blocking_send(wrap(piece[..length].to_vec())).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let _ = tell.send((error, sender));
                    return;
                }
            }
        }
    });
    (futures_util::stream::iter([first]).chain(ReceiverStream::new(receiver)), Failed(failed))
}
