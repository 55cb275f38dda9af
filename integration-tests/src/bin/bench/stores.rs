//! What the daemon answers from its records, with one and with ten thousand of them.

use std::time::Instant;

use anyhow::Context;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use gantry_proto::containerd::services::images::v1::images_client::ImagesClient;
use gantry_proto::containerd::services::images::v1::{
    CreateImageRequest, GetImageRequest, Image, ListImagesRequest, UpdateImageRequest,
};
use gantry_proto::containerd::services::snapshots::v1::snapshots_client::SnapshotsClient;
use gantry_proto::containerd::services::snapshots::v1::{
    PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
};
use gantry_proto::containerd::services::version::v1::version_client::VersionClient;
use gantry_proto::containerd::types::Descriptor;
use integration_tests::{Env, Result, daemon};
use tonic::transport::Channel;

use crate::table::{self, Subject, interleave_without_rest, millis};

const MANY: usize = 10_000;
/// Calls at once while the records are made.
const AT_ONCE: usize = 64;

/// The table about records.
pub(crate) fn measure(env: &Env, rounds: usize) -> Result<()> {
    let own = Env::new(&format!("{}s", env.token()))?;
    let daemon = own.daemon()?;
    let runtime = daemon::runtime()?;
    let channel = runtime.block_on(daemon.channel())?;
    let calls = Calls { channel, env };
    for (count, title) in [(1, "with 1 snapshot and 1 image"), (MANY, "with 10,000 snapshots and 10,000 images")] {
        let from = if count == 1 { 0 } else { 1 };
        runtime.block_on(calls.fill(from, count)).with_context(|| format!("make records {title}"))?;
        let mut subjects = [
            subject("an empty call", || runtime.block_on(calls.version())),
            subject("stat of a snapshot", || runtime.block_on(calls.stat("key-0"))),
            Subject::new("prepare of a snapshot", || {
                let took = timed(|| runtime.block_on(calls.prepare("another")))?;
                runtime.block_on(calls.remove("another"))?;
                Ok(took)
            }),
            Subject::new("remove of a snapshot", || {
                runtime.block_on(calls.prepare("another"))?;
                timed(|| runtime.block_on(calls.remove("another")))
            }),
            subject("get of an image", || runtime.block_on(calls.image("registry.test/image-0:1"))),
            subject("update of an image", || runtime.block_on(calls.update("registry.test/image-0:1"))),
            subject("list of all images", || runtime.block_on(calls.images())),
        ];
        interleave_without_rest(&mut subjects, rounds)?;
        table::print(title, "ms", &mut subjects, "");
    }
    drop(daemon);
    std::fs::remove_dir_all(own.root()).context("remove the records")
}

fn subject<'a>(name: &'static str, call: impl Fn() -> Result<()> + 'a) -> Subject<'a> {
    Subject::new(name, move || timed(&call).context(name))
}

fn timed(call: impl FnOnce() -> Result<()>) -> Result<f64> {
    let begun = Instant::now();
    call()?;
    Ok(millis(begun.elapsed()))
}

struct Calls<'env> {
    channel: Channel,
    env: &'env Env,
}

impl Calls<'_> {
    fn snapshots(&self) -> SnapshotsClient<Channel> {
        SnapshotsClient::new(self.channel.clone())
    }

    fn images_client(&self) -> ImagesClient<Channel> {
        ImagesClient::new(self.channel.clone()).max_decoding_message_size(64 << 20)
    }

    async fn fill(&self, from: usize, to: usize) -> Result<()> {
        let one = |number: usize| async move {
            self.prepare(&format!("key-{number}")).await?;
            let target = Descriptor {
                media_type: "application/vnd.oci.image.manifest.v1+json".into(),
                digest: format!("sha256:{number:064x}"),
                size: 1,
                ..Descriptor::default()
            };
            let name = format!("registry.test/image-{number}:1");
            let image = Some(Image { name, target: Some(target), ..Image::default() });
            let request = CreateImageRequest { image, ..CreateImageRequest::default() };
            self.images_client().create(self.env.request(request)).await?;
            anyhow::Ok(())
        };
        stream::iter(from..to).map(one).buffer_unordered(AT_ONCE).try_collect().await
    }

    async fn prepare(&self, key: &str) -> Result<()> {
        let (snapshotter, key) = ("overlayfs".into(), key.into());
        // A client's own labels say that it is not to be collected.
        let labels = [("containerd.io/gc.root".to_owned(), "bench".to_owned())].into();
        let request = PrepareSnapshotRequest { snapshotter, key, labels, ..PrepareSnapshotRequest::default() };
        self.snapshots().prepare(self.env.request(request)).await?;
        Ok(())
    }

    async fn remove(&self, key: &str) -> Result<()> {
        let request = RemoveSnapshotRequest { snapshotter: "overlayfs".into(), key: key.into() };
        self.snapshots().remove(self.env.request(request)).await?;
        Ok(())
    }

    async fn stat(&self, key: &str) -> Result<()> {
        let request = StatSnapshotRequest { snapshotter: "overlayfs".into(), key: key.into() };
        self.snapshots().stat(self.env.request(request)).await?;
        Ok(())
    }

    async fn image(&self, name: &str) -> Result<()> {
        self.images_client().get(self.env.request(GetImageRequest { name: name.into() })).await?;
        Ok(())
    }

    async fn update(&self, name: &str) -> Result<()> {
        let labels = [("note".to_owned(), "bench".to_owned())].into();
        let image = Some(Image { name: name.into(), labels, ..Image::default() });
        let update_mask = Some(prost_types::FieldMask { paths: vec!["labels.note".into()] });
        let request = UpdateImageRequest { image, update_mask, ..UpdateImageRequest::default() };
        self.images_client().update(self.env.request(request)).await?;
        Ok(())
    }

    /// What any call takes that asks for nothing.
    async fn version(&self) -> Result<()> {
        VersionClient::new(self.channel.clone()).version(()).await?;
        Ok(())
    }

    async fn images(&self) -> Result<()> {
        self.images_client().list(self.env.request(ListImagesRequest::default())).await?;
        Ok(())
    }
}
