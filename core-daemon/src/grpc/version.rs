//! `containerd.services.version.v1.Version`.

use gantry_proto::containerd::services::version::v1::VersionResponse;
use gantry_proto::containerd::services::version::v1::version_server::Version;
use tonic::{Request, Response, Status};

/// The service.
pub struct VersionService;

#[tonic::async_trait]
impl Version for VersionService {
    async fn version(&self, _request: Request<()>) -> Result<Response<VersionResponse>, Status> {
        // Clients decide by this number what they may ask, so it is that of the API, not of this program.
        let version = crate::CONTAINERD_VERSION.to_owned();
        Ok(Response::new(VersionResponse { version, revision: format!("gantryd-{}", crate::VERSION) }))
    }
}
