//! `gantry.system.v1.System`.

use gantry_proto::gantry::system::v1 as api;
use gantry_proto::gantry::system::v1::system_server::System as Service;
use rung_spec::reference::Reference;
use tonic::{Request, Response, Status};

use crate::blocking::blocking;
use crate::context::Context;
use crate::engine::Engine;
use crate::error::Result;
use crate::gc::{Gc, Node, Reason};
use crate::storage::{Finding, Item, Kind, Outcome, Storage};

/// The service.
pub struct SystemService {
    storage: Storage,
    gc: Gc,
    engine: Engine,
}

impl SystemService {
    /// The service over what is stored; `engine` knows what people call things.
    pub fn new(storage: Storage, gc: Gc, engine: Engine) -> Self {
        Self { storage, gc, engine }
    }
}

#[tonic::async_trait]
impl Service for SystemService {
    async fn check(&self, request: Request<api::CheckRequest>) -> Result<Response<api::CheckResponse>, Status> {
        let (storage, api::CheckRequest { repair, deep }) = (self.storage.clone(), request.into_inner());
        let report = blocking(move || storage.check(repair, deep)).await?;
        let findings = report.findings.into_iter().map(finding).collect();
        Ok(Response::new(api::CheckResponse { findings, checked: report.checked }))
    }

    async fn disk_usage(
        &self,
        _request: Request<api::DiskUsageRequest>,
    ) -> Result<Response<api::DiskUsageResponse>, Status> {
        let storage = self.storage.clone();
        let items = blocking(move || storage.usage()).await?.into_iter().map(item).collect();
        Ok(Response::new(api::DiskUsageResponse { items }))
    }

    async fn collect(&self, _request: Request<api::CollectRequest>) -> Result<Response<api::CollectResponse>, Status> {
        let swept = self.gc.collect().await?;
        let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        Ok(Response::new(api::CollectResponse {
            blobs: count(swept.blobs),
            snapshots: count(swept.snapshots),
            expired: count(swept.expired),
            bytes: swept.bytes,
            failed: count(swept.failed),
        }))
    }

    async fn explain(&self, request: Request<api::ExplainRequest>) -> Result<Response<api::ExplainResponse>, Status> {
        let context = Context::of(request.metadata())?;
        let (storage, engine, text) = (self.storage.clone(), self.engine.clone(), request.into_inner().r#ref);
        let found = blocking(move || {
            let image = Reference::parse(&text).ok().map(|reference| reference.to_string());
            let container = engine.id_of(&context, &text);
            let names: Vec<String> = [Some(text), image, container].into_iter().flatten().collect();
            storage.explain(&context, &names)
        });
        let explanations = found.await?.into_iter().map(explanation).collect();
        Ok(Response::new(api::ExplainResponse { explanations }))
    }
}

fn finding(it: Finding) -> api::Finding {
    let outcome = match it.outcome {
        Outcome::Found => api::Outcome::Found,
        Outcome::Repaired => api::Outcome::Repaired,
        Outcome::Left => api::Outcome::Left,
    };
    let (kind, outcome) = (it.kind.to_owned(), outcome.into());
    api::Finding { kind, namespace: it.namespace, object: it.object, problem: it.problem, outcome, remedy: it.remedy }
}

fn item(it: Item) -> api::Item {
    let kind = match it.kind {
        Kind::Image => api::Kind::Image,
        Kind::Container => api::Kind::Container,
        Kind::Blob => api::Kind::Blob,
        Kind::Snapshot => api::Kind::Snapshot,
        Kind::Ingest => api::Kind::Ingest,
        Kind::Log => api::Kind::Log,
    };
    let kind = kind.into();
    api::Item { kind, namespace: it.namespace, name: it.name, size: it.size, kept_by: it.kept_by }
}

fn explanation((node, way): (Node, Vec<Reason>)) -> api::Explanation {
    let step = |reason: Reason| api::Step { by: reason.by, object: reason.node.to_string() };
    api::Explanation { object: node.to_string(), way: way.into_iter().map(step).collect() }
}
