//! `containerd.services.snapshots.v1.Snapshots`.

use std::sync::Arc;

use futures_util::stream;
use gantry_proto::containerd::services::snapshots::v1::snapshots_server::Snapshots;
use gantry_proto::containerd::services::snapshots::v1::{
    CleanupRequest, CommitSnapshotRequest, ListSnapshotsRequest, ListSnapshotsResponse, MountsRequest, MountsResponse,
    PrepareSnapshotRequest, PrepareSnapshotResponse, RemoveSnapshotRequest, StatSnapshotRequest, StatSnapshotResponse,
    UpdateSnapshotRequest, UpdateSnapshotResponse, UsageRequest, UsageResponse, ViewSnapshotRequest,
    ViewSnapshotResponse,
};
use tonic::{Request, Response, Status};

use super::Answers;
use crate::blocking::blocking;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::filter::{Filter, label};
use crate::gc::Gc;
use crate::labels::SNAPSHOT_REF;
use crate::snapshots::{Info, Kind, Mount, Snapshotter, Snapshotters};

/// Snapshots in one message of a list.
const PAGE: usize = 100;

/// The service.
pub struct SnapshotsService {
    snapshotters: Snapshotters,
    gc: Gc,
}

impl SnapshotsService {
    /// The service over these snapshotters; what only a removed snapshot kept goes to `gc`.
    pub fn new(snapshotters: Snapshotters, gc: Gc) -> Self {
        Self { snapshotters, gc }
    }

    /// The call's snapshotter, which it must name.
    fn named(&self, name: &str) -> Result<Arc<dyn Snapshotter>> {
        if name.is_empty() {
            return Err(Error::invalid("snapshotter argument missing"));
        }
        self.snapshotters.get(name)
    }
}

fn wire(mounts: Vec<Mount>) -> Vec<gantry_proto::containerd::types::Mount> {
    mounts.into_iter().map(Into::into).collect()
}

fn field(info: &Info, path: &[String]) -> Option<String> {
    match path {
        [name] if name == "kind" => Some(match info.kind() {
            Kind::Active => "active".to_owned(),
            Kind::View => "view".to_owned(),
            Kind::Committed => "committed".to_owned(),
            Kind::Unknown => String::new(),
        }),
        [name] if name == "name" => Some(info.name.clone()),
        [name] if name == "parent" => Some(info.parent.clone()),
        [name, rest @ ..] if name == "labels" => label(&info.labels, rest),
        _ => None,
    }
}

#[tonic::async_trait]
impl Snapshots for SnapshotsService {
    type ListStream = Answers<ListSnapshotsResponse>;

    async fn prepare(
        &self,
        request: Request<PrepareSnapshotRequest>,
    ) -> Result<Response<PrepareSnapshotResponse>, Status> {
        let ctx = Context::of(request.metadata())?;
        let PrepareSnapshotRequest { snapshotter: name, key, parent, labels } = request.into_inner();
        let snapshotter = self.named(&name)?;
        let unpacks = self.snapshotters.unpacks();
        let target = labels.get(SNAPSHOT_REF).map(|target| (ctx.namespace.to_string(), name.clone(), target.clone()));
        if let Some(target) = &target {
            unpacks.take(target, &key).await;
        }
        let (namespace, its) = (ctx.namespace.clone(), key.clone());
        let mounts = match blocking(move || snapshotter.prepare(&ctx, &key, &parent, labels)).await {
            Ok(mounts) => mounts,
            Err(error) => {
                // By the key: another's work on the same target goes on.
                unpacks.end(&namespace, &name, &its, "");
                return Err(error.into());
            }
        };
        if let Some(target) = &target {
            unpacks.prepared(target, &mounts);
        }
        Ok(Response::new(PrepareSnapshotResponse { mounts: wire(mounts) }))
    }

    async fn view(&self, request: Request<ViewSnapshotRequest>) -> Result<Response<ViewSnapshotResponse>, Status> {
        let ctx = Context::of(request.metadata())?;
        let ViewSnapshotRequest { snapshotter, key, parent, labels } = request.into_inner();
        let snapshotter = self.named(&snapshotter)?;
        let mounts = wire(blocking(move || snapshotter.view(&ctx, &key, &parent, labels)).await?);
        Ok(Response::new(ViewSnapshotResponse { mounts }))
    }

    async fn mounts(&self, request: Request<MountsRequest>) -> Result<Response<MountsResponse>, Status> {
        let ctx = Context::of(request.metadata())?;
        let MountsRequest { snapshotter, key } = request.into_inner();
        let snapshotter = self.named(&snapshotter)?;
        let mounts = wire(blocking(move || snapshotter.mounts(&ctx, &key)).await?);
        Ok(Response::new(MountsResponse { mounts }))
    }

    async fn commit(&self, request: Request<CommitSnapshotRequest>) -> Result<Response<()>, Status> {
        let ctx = Context::of(request.metadata())?;
        let CommitSnapshotRequest { snapshotter: its, name, key, labels, parent } = request.into_inner();
        let snapshotter = self.named(&its)?;
        let unpacks = self.snapshotters.unpacks().clone();
        let commit = move || {
            snapshotter.commit(&ctx, &name, &key, labels, Some(&parent))?;
            unpacks.end(&ctx.namespace, &its, &key, &name);
            Ok(())
        };
        blocking(commit).await?;
        Ok(Response::new(()))
    }

    async fn remove(&self, request: Request<RemoveSnapshotRequest>) -> Result<Response<()>, Status> {
        let ctx = Context::of(request.metadata())?;
        let RemoveSnapshotRequest { snapshotter: its, key } = request.into_inner();
        let snapshotter = self.named(&its)?;
        let unpacks = self.snapshotters.unpacks().clone();
        let remove = move || {
            snapshotter.remove(&ctx, &key)?;
            unpacks.end(&ctx.namespace, &its, &key, "");
            Ok(())
        };
        blocking(remove).await?;
        self.gc.changed();
        Ok(Response::new(()))
    }

    async fn stat(&self, request: Request<StatSnapshotRequest>) -> Result<Response<StatSnapshotResponse>, Status> {
        let ctx = Context::of(request.metadata())?;
        let StatSnapshotRequest { snapshotter, key } = request.into_inner();
        let snapshotter = self.named(&snapshotter)?;
        let info = Some(blocking(move || snapshotter.stat(&ctx, &key)).await?);
        Ok(Response::new(StatSnapshotResponse { info }))
    }

    async fn update(
        &self,
        request: Request<UpdateSnapshotRequest>,
    ) -> Result<Response<UpdateSnapshotResponse>, Status> {
        let ctx = Context::of(request.metadata())?;
        let UpdateSnapshotRequest { snapshotter, info, update_mask } = request.into_inner();
        let snapshotter = self.named(&snapshotter)?;
        let wanted = info.ok_or_else(|| Error::invalid("info is required"))?;
        let mask = update_mask.unwrap_or_default().paths;
        let info = Some(blocking(move || snapshotter.update(&ctx, wanted, &mask)).await?);
        Ok(Response::new(UpdateSnapshotResponse { info }))
    }

    async fn list(&self, request: Request<ListSnapshotsRequest>) -> Result<Response<Self::ListStream>, Status> {
        let ctx = Context::of(request.metadata())?;
        let ListSnapshotsRequest { snapshotter, filters } = request.into_inner();
        let snapshotter = self.named(&snapshotter)?;
        let filter = Filter::parse(&filters)?;
        let mut all = blocking(move || snapshotter.list(&ctx)).await?;
        all.retain(|info| filter.matches(|path| field(info, path)));
        let pages: Vec<_> = all.chunks(PAGE).map(|page| Ok(ListSnapshotsResponse { info: page.to_vec() })).collect();
        Ok(Response::new(Box::pin(stream::iter(pages))))
    }

    async fn usage(&self, request: Request<UsageRequest>) -> Result<Response<UsageResponse>, Status> {
        let ctx = Context::of(request.metadata())?;
        let UsageRequest { snapshotter, key } = request.into_inner();
        let snapshotter = self.named(&snapshotter)?;
        let usage = blocking(move || snapshotter.usage(&ctx, &key)).await?;
        let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        Ok(Response::new(UsageResponse { size: number(usage.size), inodes: number(usage.inodes) }))
    }

    async fn cleanup(&self, request: Request<CleanupRequest>) -> Result<Response<()>, Status> {
        Context::of(request.metadata())?;
        let snapshotter = self.named(&request.get_ref().snapshotter)?;
        blocking(move || snapshotter.cleanup()).await?;
        Ok(Response::new(()))
    }
}
