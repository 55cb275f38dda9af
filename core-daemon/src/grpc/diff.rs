//! `containerd.services.diff.v1.Diff`.

use gantry_proto::containerd::services::diff::v1::diff_server::Diff;
use gantry_proto::containerd::services::diff::v1::{ApplyRequest, ApplyResponse, DiffRequest, DiffResponse};
use tonic::{Request, Response, Status};

use crate::blocking::blocking;
use crate::context::Context;
use crate::error::Error;
use crate::image::layers::NewLayer;
use crate::image::{Images, walk};
use crate::snapshots::Mount;

/// The service.
pub struct DiffService {
    images: Images,
}

impl DiffService {
    /// The service over these stores.
    pub fn new(images: Images) -> Self {
        Self { images }
    }
}

#[tonic::async_trait]
impl Diff for DiffService {
    async fn apply(&self, request: Request<ApplyRequest>) -> Result<Response<ApplyResponse>, Status> {
        let ctx = Context::of(request.metadata())?;
        let ApplyRequest { diff, mounts, payloads, sync_fs } = request.into_inner();
        let layer = walk::descriptor(&diff.ok_or_else(|| Error::invalid("diff is required"))?)?;
        let mounts: Vec<Mount> = mounts.into_iter().map(Into::into).collect();
        let images = self.images.clone();
        let apply = move || {
            images.check_layer(&layer)?;
            let _applying = images.snapshotters.unpacks().applying(&mounts);
            images.apply(&ctx, &layer, &mounts, &payloads, sync_fs)
        };
        let applied = blocking(apply).await?;
        Ok(Response::new(ApplyResponse { applied: Some(walk::to_wire(&applied)) }))
    }

    async fn diff(&self, request: Request<DiffRequest>) -> Result<Response<DiffResponse>, Status> {
        let ctx = Context::of(request.metadata())?;
        let DiffRequest { left, right, media_type, r#ref: reference, labels, source_date_epoch } = request.into_inner();
        let latest = source_date_epoch.map(|time| time.seconds);
        let wanted = NewLayer { media_type, reference, labels, latest, ..NewLayer::default() };
        let (left, right): (Vec<Mount>, Vec<Mount>) =
            (left.into_iter().map(Into::into).collect(), right.into_iter().map(Into::into).collect());
        let images = self.images.clone();
        let diff = blocking(move || images.diff(&ctx, &left, &right, &wanted)).await?;
        Ok(Response::new(DiffResponse { diff: Some(walk::to_wire(&diff)) }))
    }
}
