//! What the daemon answers from its records, with one and with ten thousand of them.

use std::cell::RefCell;
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
use gantry_proto::containerd::types::Descriptor;
use integration_tests::{Env, Result, daemon};
use prost::Message;
use tonic::transport::Channel;

use crate::table::{self, Subject, interleave_without_rest, millis};
use crate::wire::Wire;

const MANY: usize = 10_000;
/// Calls at once while the records are made.
const AT_ONCE: usize = 64;

/// The table about records.
pub(crate) fn measure(env: &Env, rounds: usize) -> Result<()> {
    let own = Env::new(&format!("{}s", env.token()))?;
    let daemon = own.daemon()?;
    let runtime = daemon::runtime()?;
    let channel = runtime.block_on(daemon.channel())?;
    let calls = Calls { wire: RefCell::new(Wire::connect(daemon.socket(), Some(env.namespace()))?) };
    for (count, title) in [(1, "with 1 snapshot and 1 image"), (MANY, "with 10,000 snapshots and 10,000 images")] {
        let from = if count == 1 { 0 } else { 1 };
        runtime.block_on(fill(env, &channel, from, count)).with_context(|| format!("make records {title}"))?;
        let mut subjects = [
            subject("an empty call", || calls.version()),
            subject("stat of a snapshot", || calls.stat("key-0")),
            Subject::new("prepare of a snapshot", || {
                let took = timed(|| calls.prepare("another"))?;
                calls.remove("another")?;
                Ok(took)
            }),
            Subject::new("remove of a snapshot", || {
                calls.prepare("another")?;
                timed(|| calls.remove("another"))
            }),
            subject("get of an image", || calls.image("registry.test/image-0:1")),
            subject("update of an image", || calls.update("registry.test/image-0:1")),
            subject("list of all images", || calls.images()),
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

/// Makes these images and snapshots.
async fn fill(env: &Env, channel: &Channel, from: usize, to: usize) -> Result<()> {
    let one = |number: usize| async move {
        let snapshot = snapshot(&format!("key-{number}"));
        SnapshotsClient::new(channel.clone()).prepare(env.request(snapshot)).await?;
        let target = Descriptor {
            media_type: "application/vnd.oci.image.manifest.v1+json".into(),
            digest: format!("sha256:{number:064x}"),
            size: 1,
            ..Descriptor::default()
        };
        let name = format!("registry.test/image-{number}:1");
        let image = Some(Image { name, target: Some(target), ..Image::default() });
        let request = CreateImageRequest { image, ..CreateImageRequest::default() };
        ImagesClient::new(channel.clone()).create(env.request(request)).await?;
        anyhow::Ok(())
    };
    stream::iter(from..to).map(one).buffer_unordered(AT_ONCE).try_collect().await
}

fn snapshot(key: &str) -> PrepareSnapshotRequest {
    let (snapshotter, key) = ("overlayfs".into(), key.into());
    // A client's own labels say that it is not to be collected.
    let labels = [("containerd.io/gc.root".to_owned(), "bench".to_owned())].into();
    PrepareSnapshotRequest { snapshotter, key, labels, ..PrepareSnapshotRequest::default() }
}

/// The calls that are measured.
struct Calls {
    wire: RefCell<Wire>,
}

impl Calls {
    fn call(&self, method: &str, request: &impl Message) -> Result<()> {
        self.wire.borrow_mut().call(&format!("/containerd.services.{method}"), request)
    }

    fn prepare(&self, key: &str) -> Result<()> {
        self.call("snapshots.v1.Snapshots/Prepare", &snapshot(key))
    }

    fn remove(&self, key: &str) -> Result<()> {
        let request = RemoveSnapshotRequest { snapshotter: "overlayfs".into(), key: key.into() };
        self.call("snapshots.v1.Snapshots/Remove", &request)
    }

    fn stat(&self, key: &str) -> Result<()> {
        let request = StatSnapshotRequest { snapshotter: "overlayfs".into(), key: key.into() };
        self.call("snapshots.v1.Snapshots/Stat", &request)
    }

    fn image(&self, name: &str) -> Result<()> {
        self.call("images.v1.Images/Get", &GetImageRequest { name: name.into() })
    }

    fn update(&self, name: &str) -> Result<()> {
        let labels = [("note".to_owned(), "bench".to_owned())].into();
        let image = Some(Image { name: name.into(), labels, ..Image::default() });
        let update_mask = Some(prost_types::FieldMask { paths: vec!["labels.note".into()] });
        self.call(
            "images.v1.Images/Update",
            &UpdateImageRequest { image, update_mask, ..UpdateImageRequest::default() },
        )
    }

    /// What any call takes that asks for nothing.
    fn version(&self) -> Result<()> {
        self.call("version.v1.Version/Version", &())
    }

    fn images(&self) -> Result<()> {
        self.call("images.v1.Images/List", &ListImagesRequest::default())
    }
}
