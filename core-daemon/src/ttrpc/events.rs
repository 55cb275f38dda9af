//! `containerd.services.events.ttrpc.v1.Events`: shims report what happens to their containers.

use gantry_proto::containerd::services::events::ttrpc::v1::ForwardRequest;
use gantry_proto::status::{Code, Status};
use gantry_proto::ttrpc::server::{decode, unknown};
use gantry_proto::ttrpc::{Context, Service};

use crate::tasks::Tasks;

/// The service.
pub struct ForwardService {
    tasks: Tasks,
}

impl ForwardService {
    /// The service over these tasks, which are told first.
    pub fn new(tasks: Tasks) -> Self {
        Self { tasks }
    }
}

impl Service for ForwardService {
    async fn call(&self, service: &str, method: &str, payload: &[u8], _context: &Context) -> Result<Vec<u8>, Status> {
        // Shims of containerd 1.0 to 1.6 name the service without its ttrpc part.
        let known = ["containerd.services.events.ttrpc.v1.Events", "containerd.services.events.v1.Events"];
        if !known.contains(&service) || method != "Forward" {
            return Err(unknown(service, method));
        }
        let request: ForwardRequest = decode(payload)?;
        let envelope = request.envelope.ok_or_else(|| Status::invalid("envelope is required"))?;
        self.tasks.observe(envelope).map_err(|error| Status::new(Code::InvalidArgument, error.to_string()))?;
        Ok(Vec::new())
    }
}
