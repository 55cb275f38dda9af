//! The engine's calls with a single request.

use std::future::Future;

use gantry_proto::gantry::engine::v1 as api;
use tonic::{Response, Status, Streaming};

use super::{Client, QUERY_DEADLINE};
use crate::error::{Failure, Result};

/// Waits for an answer that should come at once.
async fn soon<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T> {
    match tokio::time::timeout(QUERY_DEADLINE, call).await {
        Ok(answer) => Ok(answer?.into_inner()),
        Err(_) => Err(Failure::new(format!("gantryd did not answer in {} s", QUERY_DEADLINE.as_secs()))
            .hint("see gantryd's log; containers keep running while it is stuck or restarts")),
    }
}

impl Client {
    /// Makes a container; the stream ends with its id.
    pub async fn create(&mut self, request: api::CreateRequest) -> Result<Streaming<api::CreateProgress>> {
        let request = self.request(request);
        Ok(self.engine.create(request).await?.into_inner())
    }

    /// Starts a container.
    pub async fn start(&mut self, container: &str) -> Result<()> {
        let request = self.request(api::StartRequest { r#ref: container.to_owned() });
        self.engine.start(request).await?;
        Ok(())
    }

    /// Stops a container, which takes as long as it takes to end plus the time it is given.
    pub async fn stop(&mut self, container: &str, timeout: Option<u32>, signal: &str) -> Result<()> {
        let request = api::StopRequest { r#ref: container.to_owned(), timeout, signal: signal.to_owned() };
        let request = self.request(request);
        self.engine.stop(request).await?;
        Ok(())
    }

    /// Stops a container where it runs, and starts it.
    pub async fn restart(&mut self, container: &str, timeout: Option<u32>, signal: &str) -> Result<()> {
        let request = api::RestartRequest { r#ref: container.to_owned(), timeout, signal: signal.to_owned() };
        let request = self.request(request);
        self.engine.restart(request).await?;
        Ok(())
    }

    /// Sends a signal to a container.
    pub async fn kill(&mut self, container: &str, signal: &str) -> Result<()> {
        let request = self.request(api::KillRequest { r#ref: container.to_owned(), signal: signal.to_owned() });
        self.engine.kill(request).await?;
        Ok(())
    }

    /// Changes a container's limits and restart policy.
    pub async fn update(&mut self, wanted: api::UpdateRequest) -> Result<()> {
        let request = self.request(wanted);
        self.engine.update(request).await?;
        Ok(())
    }

    /// Gives a container another name.
    pub async fn rename(&mut self, container: &str, name: &str) -> Result<()> {
        let request = self.request(api::RenameRequest { r#ref: container.to_owned(), name: name.to_owned() });
        self.engine.rename(request).await?;
        Ok(())
    }

    /// Removes a container.
    pub async fn remove(&mut self, container: &str, force: bool) -> Result<()> {
        let request = self.request(api::RemoveRequest { r#ref: container.to_owned(), force });
        self.engine.remove(request).await?;
        Ok(())
    }

    /// Waits for a container's end.
    pub async fn wait(&mut self, container: &str) -> Result<api::Exit> {
        let request = self.request(api::WaitRequest { r#ref: container.to_owned() });
        let answer = self.engine.wait(request).await?.into_inner();
        answer.exit.ok_or_else(|| Failure::new(format!("wait {container}: gantryd gave no exit code")))
    }

    /// The running containers, or all of them.
    pub async fn list(&mut self, all: bool) -> Result<Vec<api::Container>> {
        let request = self.request(api::ListRequest { all });
        Ok(soon(self.engine.list(request)).await?.containers)
    }

    /// One container as JSON.
    pub async fn inspect(&mut self, container: &str) -> Result<serde_json::Value> {
        let request = self.request(api::InspectRequest { r#ref: container.to_owned() });
        json(&soon(self.engine.inspect(request)).await?.json)
    }

    /// What a container wrote.
    pub async fn logs(&mut self, request: api::LogsRequest) -> Result<Streaming<api::LogRecord>> {
        let request = self.request(request);
        Ok(self.engine.logs(request).await?.into_inner())
    }

    /// What happens, and has happened.
    pub async fn events(&mut self, request: api::EventsRequest) -> Result<Streaming<api::Event>> {
        let request = self.request(request);
        Ok(self.engine.events(request).await?.into_inner())
    }

    /// Pulls an image.
    pub async fn pull(&mut self, request: api::PullRequest) -> Result<Streaming<api::PullProgress>> {
        let request = self.request(request);
        Ok(self.engine.pull(request).await?.into_inner())
    }

    /// The images.
    pub async fn images(&mut self) -> Result<Vec<api::Image>> {
        let request = self.request(api::ListImagesRequest {});
        Ok(soon(self.engine.list_images(request)).await?.images)
    }

    /// One image as JSON.
    pub async fn inspect_image(&mut self, image: &str) -> Result<serde_json::Value> {
        let request = self.request(api::InspectImageRequest { image: image.to_owned() });
        json(&soon(self.engine.inspect_image(request)).await?.json)
    }

    /// Whether the daemon has an image.
    pub async fn has_image(&mut self, image: &str) -> Result<bool> {
        match self.inspect_image(image).await {
            Ok(_) => Ok(true),
            Err(failure) if failure.is_not_found() => Ok(false),
            Err(failure) => Err(failure),
        }
    }

    /// Removes a name, and what nothing else names.
    pub async fn remove_image(&mut self, image: &str, force: bool) -> Result<api::RemoveImageResponse> {
        let request = self.request(api::RemoveImageRequest { image: image.to_owned(), force });
        Ok(self.engine.remove_image(request).await?.into_inner())
    }

    /// What the daemon says of itself and its machine.
    pub async fn info(&mut self) -> Result<api::InfoResponse> {
        let request = self.request(api::InfoRequest {});
        soon(self.engine.info(request)).await
    }

    /// The daemon's version.
    pub async fn version(&mut self) -> Result<api::VersionResponse> {
        let request = self.request(api::VersionRequest {});
        soon(self.engine.version(request)).await
    }
}

fn json(text: &str) -> Result<serde_json::Value> {
    serde_json::from_str(text).map_err(|error| Failure::new(format!("gantryd's answer is not JSON: {error}")))
}
