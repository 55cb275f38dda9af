use std::collections::BTreeMap;
use std::sync::Arc as Shared;

use gantry_proto::containerd::services::containers::v1::Container;
use gantry_proto::containerd::services::images::v1::Image;
use gantry_proto::containerd::types::Descriptor;
use rung_spec::digest::Digest;

use super::*;
use crate::context::Context;
use crate::error::Kind;
use crate::labels::{self, Labels};
use crate::metadata;
use crate::records::{ImageRecords, Leases};
use crate::snapshots::overlay::Overlay;
use crate::snapshots::{Local, Snapshotter};

#[tokio::test]
async fn a_snapshot_that_somebody_runs_on_stays() {
    let it = fixture();
    it.committed("base", "");
    it.snapshots.prepare(&it.ctx, "rw", "base", Labels::new()).expect("prepare");
    let in_use = it.all.in_use(&it.ctx.namespace, "overlayfs", "rw");
    let also = it.all.in_use(&it.ctx.namespace, "", "rw");
    assert!(it.collect().await.is_empty());
    drop(in_use);
    assert!(it.collect().await.is_empty());
    drop(also);
    assert_eq!(it.collect().await.snapshots, 2);
}

#[tokio::test]
async fn where_a_record_cannot_be_read_nothing_goes() {
    let it = fixture();
    it.blob(b"lost", Labels::new());
    let broken = |bytes: &[u8]| it.db.write(|tx| tx.put(metadata::schema::IMAGES, "n", "broken", bytes));
    broken(b"\xff").expect("write");
    let error = it.gc.collect().await.expect_err("it may keep anything");
    assert!(error.kind() == Kind::DataLoss && error.to_string().contains("broken"), "{error}");
    assert_eq!(it.content.list(&it.ctx).expect("list").len(), 1);
    // It keeps nobody from seeing the others.
    it.image("i", &Digest::of(b"x"), Labels::new());
    let listed = it.images.list(&it.ctx, &crate::filter::Filter::everything()).expect("list");
    assert_eq!(listed.iter().map(|image| image.name.as_str()).collect::<Vec<_>>(), ["i"]);
    broken(b"").expect("write");
    assert_eq!(it.collect().await.blobs, 1);
}

#[tokio::test]
async fn a_condition_keeps_what_was_used_lately() {
    let it = fixture();
    for (name, used) in [("new", jiff::Timestamp::now()), ("old", jiff::Timestamp::UNIX_EPOCH)] {
        let labels = label(labels::GC_COND_USED_AT, &used.to_string());
        it.snapshots.prepare(&it.ctx, &format!("{name}-key"), "", Labels::new()).expect("prepare");
        it.snapshots.commit(&it.ctx, name, &format!("{name}-key"), labels, None).expect("commit");
    }
    let mut conditions = label("containerd.io/gc.cond.snapshot.overlayfs/1", "usedat<24h|new");
    conditions.extend(label("containerd.io/gc.cond.snapshot.overlayfs/2", "usedat<24h|old"));
    let target = it.blob(b"manifest", conditions);
    it.image("i", &target, Labels::new());
    it.collect().await;
    let left: Vec<String> = it.snapshots.list(&it.ctx).expect("list").into_iter().map(|info| info.name).collect();
    assert_eq!(left, ["new"]);
}

struct Fixture {
    _dir: tempfile::TempDir,
    db: Db,
    content: Content,
    images: ImageRecords,
    leases: Leases,
    snapshots: Shared<dyn Snapshotter>,
    all: Snapshotters,
    events: Events,
    gc: Gc,
    ctx: Context,
}

fn fixture() -> Fixture {
    let dir = tempfile::tempdir().expect("temporary directory");
    let db = Db::open(&dir.path().join("meta.redb")).expect("metadata");
    let events = Events::new();
    let content = Content::open(&dir.path().join("content"), db.clone(), events.clone()).expect("content");
    let overlay = Overlay::open(&dir.path().join("overlay")).expect("overlay");
    let local = Local::open("overlayfs", overlay, db.clone(), events.clone()).expect("snapshotter");
    let snapshots: Shared<dyn Snapshotter> = Shared::new(local);
    let all = BTreeMap::from([("overlayfs".to_owned(), snapshots.clone())]);
    let snapshotters = Snapshotters::new(all, "overlayfs").expect("snapshotters");
    let mounts = Mounts::open(&dir.path().join("state"), dir.path()).expect("mounts");
    Fixture {
        images: ImageRecords::new(db.clone(), events.clone()),
        leases: Leases::new(db.clone(), snapshotters.clone()),
        gc: Gc::new(db.clone(), content.clone(), snapshotters.clone(), mounts, events.clone()),
        all: snapshotters,
        events,
        ctx: Context::new(gantry_proto::namespace::Namespace::parse("n").expect("namespace")),
        _dir: dir,
        db,
        content,
        snapshots,
    }
}

fn label(key: &str, value: &str) -> Labels {
    Labels::from([(key.to_owned(), value.to_owned())])
}

impl Fixture {
    fn blob(&self, bytes: &[u8], labels: Labels) -> Digest {
        self.content.put(&self.ctx, bytes, labels).expect("put")
    }

    fn image(&self, name: &str, target: &Digest, labels: Labels) {
        let target =
            Descriptor { media_type: "m".into(), digest: target.to_string(), size: 1, ..Descriptor::default() };
        let image = Image { name: name.into(), target: Some(target), labels, ..Image::default() };
        self.images.create(&self.ctx, image).expect("image");
    }

    fn committed(&self, name: &str, parent: &str) {
        let key = format!("{name}-key");
        self.snapshots.prepare(&self.ctx, &key, parent, Labels::new()).expect("prepare");
        self.snapshots.commit(&self.ctx, name, &key, Labels::new(), None).expect("commit");
    }

    async fn collect(&self) -> Swept {
        self.gc.collect().await.expect("collect")
    }
}

#[tokio::test]
async fn what_an_image_leads_to_stays_and_the_rest_goes() {
    let it = fixture();
    it.committed("base", "");
    it.committed("top", "base");
    it.committed("lost", "base");
    let layer = it.blob(b"layer", Labels::new());
    let config = it.blob(b"config", label("containerd.io/gc.ref.snapshot.overlayfs", "top"));
    let mut children = label("containerd.io/gc.ref.content.l.0", layer.as_str());
    children.extend(label("containerd.io/gc.ref.content.config", config.as_str()));
    let manifest = it.blob(b"manifest", children);
    let lost = it.blob(b"lost", Labels::new());
    it.image("i", &manifest, Labels::new());
    let swept = it.collect().await;
    assert_eq!((swept.blobs, swept.bytes, swept.snapshots), (1, 4, 1));
    for digest in [&layer, &config, &manifest] {
        assert!(it.content.has(&it.ctx, digest).expect("has"));
    }
    assert!(!it.content.has(&it.ctx, &lost).expect("has"));
    assert_eq!(it.snapshots.list(&it.ctx).expect("list").len(), 2);
    let way = it.gc.kept().expect("kept").way(&Node::Snapshot("n".into(), "overlayfs".into(), "base".into()));
    let by: Vec<&str> = way.iter().map(|step| step.by.as_str()).collect();
    let expected =
        ["", "target", "containerd.io/gc.ref.content.config", "containerd.io/gc.ref.snapshot.overlayfs", "parent"];
    assert_eq!(by, expected);
    it.images.delete(&it.ctx, "i", None).expect("delete");
    let swept = it.collect().await;
    assert_eq!((swept.blobs, swept.snapshots), (3, 2));
    assert!(it.collect().await.is_empty());
}

#[tokio::test]
async fn a_lease_keeps_what_is_made_under_it_until_it_ends() {
    let it = fixture();
    it.leases.create(&it.ctx, "l", Labels::new()).expect("lease");
    let held = it.ctx.clone().with_lease("l");
    let child = it.blob(b"child", Labels::new());
    let parent = it.content.put(&held, b"parent", label("containerd.io/gc.ref.content", child.as_str())).expect("put");
    it.snapshots.prepare(&held, "active", "", Labels::new()).expect("prepare");
    assert!(it.collect().await.is_empty());
    assert!(it.content.has(&it.ctx, &child).expect("has"));
    it.leases.delete(&it.ctx, "l").expect("delete");
    let swept = it.collect().await;
    assert_eq!((swept.blobs, swept.snapshots), (2, 1));
    assert!(!it.content.has(&it.ctx, &parent).expect("has"));
    let mut metrics = String::new();
    it.gc.write_metrics(&mut metrics);
    for line in ["collections_total 2", "collected_blobs_total 2", "collected_bytes_total 11", "uncollectable 0"] {
        assert!(metrics.lines().any(|found| found == format!("gantryd_gc_{line}")), "{line}: {metrics}");
    }
}

#[tokio::test]
async fn expired_leases_and_images_keep_nothing() {
    let it = fixture();
    it.leases.create(&it.ctx, "l", label(labels::GC_EXPIRE, "2020-01-01T00:00:00Z")).expect("lease");
    it.leases.create(&it.ctx, "flat", label(labels::GC_FLAT, "true")).expect("lease");
    it.content.put(&it.ctx.clone().with_lease("l"), b"old", Labels::new()).expect("put");
    let child = it.blob(b"child", Labels::new());
    let flat = it.ctx.clone().with_lease("flat");
    let parent = it.content.put(&flat, b"flat", label("containerd.io/gc.ref.content", child.as_str())).expect("put");
    let target = it.blob(b"target", Labels::new());
    it.image("i", &target, label(labels::GC_EXPIRE, "2020-01-01T00:00:00Z"));
    it.snapshots.prepare(&it.ctx, "lost", "", Labels::new()).expect("prepare");
    let mut events = it.events.subscribe(crate::filter::Filter::everything());
    let swept = it.collect().await;
    assert_eq!((swept.blobs, swept.expired), (3, 2));
    // Swept content is not announced, as by containerd.
    let mut topics = [events.next().await.expect("event"), events.next().await.expect("event")];
    topics.sort_by(|one, other| one.topic.cmp(&other.topic));
    assert_eq!(topics.iter().map(|it| it.topic.as_str()).collect::<Vec<_>>(), ["/images/delete", "/snapshot/remove"]);
    assert!(it.content.has(&it.ctx, &parent).expect("has"));
    assert_eq!(it.images.get(&it.ctx, "i").expect_err("expired").kind(), Kind::NotFound);
}

#[tokio::test]
async fn what_expires_is_collected_when_it_does() {
    let it = fixture();
    let soon = || jiff::Timestamp::now() + jiff::SignedDuration::from_millis(400);
    let lease = |id: &str| {
        let labels = label(labels::GC_EXPIRE, &soon().to_string());
        it.gc.made(&it.leases.create(&it.ctx, id, labels).expect("lease").labels);
    };
    let has = |id: &str| {
        let all = it.leases.list(&it.ctx, &crate::filter::Filter::everything()).expect("list");
        all.iter().any(|lease| lease.id == id)
    };
    let gone = async |id: &str| {
        let begun = std::time::Instant::now();
        while has(id) {
            assert!(begun.elapsed() < Duration::from_secs(60), "{id} is still there");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    // One that was there before the daemon is found by the first collection, and one that comes later is told of.
    it.leases.create(&it.ctx, "late", label(labels::GC_EXPIRE, "2999-01-01T00:00:00Z")).expect("lease");
    it.leases.create(&it.ctx, "old", label(labels::GC_EXPIRE, &soon().to_string())).expect("lease");
    it.collect().await;
    let stop = tokio_util::sync::CancellationToken::new();
    let schedule = tokio::spawn(it.gc.clone().run(Schedule::default(), stop.clone()));
    gone("old").await;
    lease("new");
    gone("new").await;
    assert!(has("late"));
    stop.cancel();
    schedule.await.expect("schedule");
}

#[tokio::test]
async fn containers_roots_and_other_namespaces_keep() {
    let it = fixture();
    it.committed("base", "");
    it.snapshots.prepare(&it.ctx, "rw", "base", Labels::new()).expect("prepare");
    let container = Container {
        id: "c".into(),
        snapshotter: "overlayfs".into(),
        snapshot_key: "rw".into(),
        ..Container::default()
    };
    it.db.write(|tx| metadata::containers::put(tx, "n", &container)).expect("container");
    let root = it.blob(b"root", label(labels::GC_ROOT, "yes"));
    assert!(it.collect().await.is_empty());
    it.db.write(|tx| metadata::containers::delete(tx, "n", "c")).expect("delete");
    assert_eq!(it.collect().await.snapshots, 2);
    let mut other = it.ctx.clone();
    other.namespace = gantry_proto::namespace::Namespace::parse("other").expect("namespace");
    it.content.put(&other, b"root", label(labels::GC_ROOT, "yes")).expect("put");
    it.content.delete(&it.ctx, &root).expect("delete");
    assert!(it.collect().await.is_empty());
    assert!(it.content.has(&other, &root).expect("has"));
}

#[tokio::test]
async fn a_flat_lease_keeps_what_its_own_cannot_be_without() {
    let it = fixture();
    it.leases.create(&it.ctx, "flat", label(labels::GC_FLAT, "true")).expect("lease");
    let flat = it.ctx.clone().with_lease("flat");
    it.committed("base", "");
    it.committed("middle", "base");
    it.snapshots.prepare(&flat, "top", "middle", Labels::new()).expect("prepare");
    let child = it.blob(b"child", Labels::new());
    let target = it.blob(b"target", label("containerd.io/gc.ref.content", child.as_str()));
    it.image("i", &target, label(labels::GC_EXPIRE, "2020-01-01T00:00:00Z"));
    let held = gantry_proto::containerd::services::leases::v1::Resource { r#type: "images".into(), id: "i".into() };
    it.leases.add(&it.ctx, "flat", &held).expect("add");
    let swept = it.collect().await;
    assert_eq!((swept.blobs, swept.snapshots, swept.expired), (1, 0, 0));
    assert!(it.content.has(&it.ctx, &target).expect("has"));
}
