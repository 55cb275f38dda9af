//! Calls of containerd's own services, where those do all that is needed.

use gantry_proto::containerd::services::images::v1 as images;
use gantry_proto::containerd::services::images::v1::images_client::ImagesClient;
use gantry_proto::containerd::services::tasks::v1 as tasks;
use gantry_proto::containerd::services::tasks::v1::tasks_client::TasksClient;
use gantry_proto::containerd::types::Metric;
use tonic::Code;

use super::Client;
use crate::error::{Failure, Result};

impl Client {
    /// The full id of the container that `reference` names.
    pub async fn container_id(&mut self, reference: &str) -> Result<String> {
        let details = self.inspect(reference).await?;
        let id = details.get("Id").and_then(serde_json::Value::as_str);
        id.map(str::to_owned).ok_or_else(|| Failure::new(format!("inspect {reference}: gantryd gave no id")))
    }

    /// Stops every process of a container where it is.
    pub async fn pause(&mut self, id: String) -> Result<()> {
        let request = self.request(tasks::PauseTaskRequest { container_id: id });
        TasksClient::new(self.channel.clone()).pause(request).await?;
        Ok(())
    }

    /// Lets every process of a container go on.
    pub async fn resume(&mut self, id: String) -> Result<()> {
        let request = self.request(tasks::ResumeTaskRequest { container_id: id });
        TasksClient::new(self.channel.clone()).resume(request).await?;
        Ok(())
    }

    /// Process ids of a container, as this machine has them.
    pub async fn pids(&mut self, id: String) -> Result<Vec<u32>> {
        let request = self.request(tasks::ListPidsRequest { container_id: id });
        let answer = TasksClient::new(self.channel.clone()).list_pids(request).await?.into_inner();
        Ok(answer.processes.into_iter().map(|process| process.pid).collect())
    }

    /// Counters of the running ones of these containers.
    pub async fn metrics(&mut self, ids: &[String]) -> Result<Vec<Metric>> {
        let filters = ids.iter().map(|id| format!("id=={id}")).collect();
        let request = self.request(tasks::MetricsRequest { filters });
        Ok(TasksClient::new(self.channel.clone()).metrics(request).await?.into_inner().metrics)
    }

    /// Gives an image one more name, or lets the name stand for it from now on.
    pub async fn tag(&mut self, from: &str, to: &str) -> Result<()> {
        let mut client = ImagesClient::new(self.channel.clone());
        let request = self.request(images::GetImageRequest { name: from.to_owned() });
        let held = client.get(request).await?.into_inner().image;
        let held = held.ok_or_else(|| Failure::new(format!("image {from}: gantryd gave no record")))?;
        let image = images::Image { name: to.to_owned(), ..held };
        let create = self.request(images::CreateImageRequest { image: Some(image.clone()), source_date_epoch: None });
        match client.create(create).await {
            Err(status) if status.code() == Code::AlreadyExists => {}
            other => return other.map(drop).map_err(Failure::from),
        }
        let update = images::UpdateImageRequest { image: Some(image), update_mask: None, source_date_epoch: None };
        let update = self.request(update);
        client.update(update).await?;
        Ok(())
    }
}
