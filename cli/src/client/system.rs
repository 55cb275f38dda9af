//! The calls of our own service about what is stored.

use gantry_proto::gantry::system::v1 as api;
use gantry_proto::gantry::system::v1::system_client::SystemClient;
use tonic::transport::Channel;

use super::{Client, MAX_MESSAGE};
use crate::error::Result;

impl Client {
    fn system_service(&self) -> SystemClient<Channel> {
        SystemClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    /// Compares what is recorded with what is stored. However much there is, it is read to the end.
    pub async fn check(&mut self, request: api::CheckRequest) -> Result<api::CheckResponse> {
        let request = self.request(request);
        Ok(self.system_service().check(request).await?.into_inner())
    }

    /// What takes space.
    pub async fn disk_usage(&mut self) -> Result<Vec<api::Item>> {
        let request = self.request(api::DiskUsageRequest {});
        Ok(self.system_service().disk_usage(request).await?.into_inner().items)
    }

    /// Removes what nothing refers to.
    pub async fn collect(&mut self) -> Result<api::CollectResponse> {
        let request = self.request(api::CollectRequest {});
        Ok(self.system_service().collect(request).await?.into_inner())
    }

    /// Why a thing is kept.
    pub async fn explain_kept(&mut self, name: &str) -> Result<Vec<api::Explanation>> {
        let request = self.request(api::ExplainRequest { r#ref: name.to_owned() });
        Ok(self.system_service().explain(request).await?.into_inner().explanations)
    }
}
