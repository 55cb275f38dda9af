use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use gantry_proto::containerd::services::containers::v1::Container;
use gantry_proto::containerd::services::images::v1::Image;
use gantry_proto::containerd::services::leases::v1::Lease;
use gantry_proto::containerd::types::Descriptor;
use rung_spec::digest::Digest;

use super::*;
use crate::events::Events;
use crate::labels::{GC_REF_CONTENT, GC_REF_SNAPSHOT, Labels};
use crate::metadata::schema::{
    CONTAINERS, CONTENT, IMAGES, LEASE_RESOURCES, LEASES, NAMESPACES, SANDBOXES, SNAPSHOT_CHILDREN, SNAPSHOTS, join,
};
use crate::metadata::{containers, images, leases, namespaces, snapshots as table};
use crate::snapshots::overlay::Overlay;
use crate::snapshots::{Local, Snapshotter};

struct Fixture {
    dir: tempfile::TempDir,
    db: Db,
    content: Content,
    snapshots: Arc<dyn Snapshotter>,
    storage: Storage,
    ctx: Context,
}

fn fixture() -> Fixture {
    let dir = tempfile::tempdir().expect("temporary directory");
    let db = Db::open(&dir.path().join("meta.redb")).expect("metadata");
    let events = Events::new();
    let content = Content::open(&dir.path().join("content"), db.clone(), events.clone()).expect("content");
    let overlay = Overlay::open(&dir.path().join("overlay")).expect("overlay");
    let snapshots: Arc<dyn Snapshotter> =
        Arc::new(Local::open("overlayfs", overlay, db.clone(), events.clone()).expect("snapshotter"));
    let all = BTreeMap::from([("overlayfs".to_owned(), snapshots.clone())]);
    let snapshotters = Snapshotters::new(all, "overlayfs").expect("snapshotters");
    let mounts = crate::mounts::Mounts::open(&dir.path().join("state"), dir.path()).expect("mounts");
    let gc = Gc::new(db.clone(), content.clone(), snapshotters.clone(), mounts, events);
    let logs = Logs::new(dir.path().join("engine"), 0);
    let storage = Storage::new(Parts { db: db.clone(), content: content.clone(), snapshotters, gc, logs });
    let ctx = Context::new(gantry_proto::namespace::Namespace::parse("n").expect("namespace"));
    Fixture { dir, db, content, snapshots, storage, ctx }
}

impl Fixture {
    /// An image of a manifest, a layer and a snapshot, and a container that writes.
    fn filled() -> (Self, Digest) {
        let it = fixture();
        let layer = it.content.put(&it.ctx, b"layer", Labels::new()).expect("layer");
        let labels = Labels::from([
            (format!("{GC_REF_CONTENT}.l.0"), layer.to_string()),
            (format!("{GC_REF_SNAPSHOT}overlayfs"), "base".to_owned()),
            (format!("{GC_REF_CONTENT}.m.0"), Digest::of(b"of another platform").to_string()),
        ]);
        let manifest = it.content.put(&it.ctx, b"manifest", labels).expect("manifest");
        it.snapshots.prepare(&it.ctx, "key", "", Labels::new()).expect("prepare");
        it.snapshots.commit(&it.ctx, "base", "key", Labels::new(), None).expect("commit");
        it.snapshots.prepare(&it.ctx, "rw", "base", Labels::new()).expect("prepare");
        let target = Descriptor { digest: manifest.to_string(), size: 8, ..Descriptor::default() };
        let image = Image { name: "i".into(), target: Some(target), ..Image::default() };
        let (snapshotter, snapshot_key) = ("overlayfs".to_owned(), "rw".to_owned());
        let container = Container { id: "c".into(), snapshotter, snapshot_key, ..Container::default() };
        it.db
            .write(|tx| {
                images::put(tx, "n", &image)?;
                containers::put(tx, "n", &container)
            })
            .expect("records");
        (it, layer)
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.dir.path().join("content/blobs/sha256").join(digest.hex())
    }

    /// Kinds of findings with what became of them.
    fn found(&self, repair: bool, deep: bool) -> Vec<(&'static str, Outcome)> {
        let report = self.storage.check(repair, deep).expect("check");
        assert!(report.checked > 0);
        let mut found: Vec<_> = report.findings.iter().map(|it| (it.kind, it.outcome)).collect();
        found.dedup();
        found
    }

    /// It is found, and mended when asked to, and then all is well.
    fn is_mended(&self, kind: &'static str) {
        assert_eq!(self.found(false, true), [(kind, Outcome::Found)]);
        assert_eq!(self.found(true, true), [(kind, Outcome::Repaired)], "{kind}");
        assert_eq!(self.found(false, true), [], "{kind}");
    }
}

#[test]
fn what_is_whole_has_no_findings() {
    let (it, _) = Fixture::filled();
    assert_eq!(it.found(true, true), []);
}

#[test]
fn damaged_blobs_are_set_aside_and_wait_for_a_pull() {
    let (it, layer) = Fixture::filled();
    for (bytes, kind) in [(&b"la"[..], "blob-size"), (b"LAYER", "blob-digest")] {
        let path = it.blob(&layer);
        drop(std::fs::remove_file(&path));
        std::fs::write(&path, bytes).expect("damage");
        assert_eq!(it.found(false, false).len(), usize::from(kind == "blob-size"));
        assert_eq!(it.found(false, true), [(kind, Outcome::Found)]);
        assert_eq!(it.found(true, true), [(kind, Outcome::Repaired)]);
        assert!(!path.exists());
        assert_eq!(it.found(true, false), [("blob-missing", Outcome::Left)]);
    }
    let aside = std::fs::read_dir(it.dir.path().join("content/damaged")).expect("damaged").count();
    assert!(aside > 0, "nothing was set aside");
    it.content.put(&it.ctx, b"layer", Labels::new()).expect("fetched again");
    assert_eq!(it.found(false, true), []);
}

#[test]
fn what_has_no_record_goes() {
    let (it, _) = Fixture::filled();
    let content = it.dir.path().join("content");
    std::fs::write(it.blob(&Digest::of(b"x")), b"x").expect("write");
    it.is_mended("blob-orphan");
    std::fs::write(content.join("blobs/sha256/readme"), b"x").expect("write");
    it.is_mended("file-stray");
    std::fs::create_dir(content.join("ingest/0000")).expect("directory");
    it.is_mended("ingest-broken");
    std::fs::create_dir_all(it.dir.path().join("overlay/snapshots/99/fs")).expect("directory");
    it.is_mended("snapshot-orphan");
}

#[test]
fn records_that_disagree_are_corrected() {
    let (it, _) = Fixture::filled();
    let write = |change: &dyn Fn(&crate::metadata::WriteTx) -> Result<()>| it.db.write(change).expect("write");
    write(&|tx| tx.delete(NAMESPACES, "", "n").map(drop));
    it.is_mended("namespace-missing");
    write(&|tx| tx.put(NAMESPACES, "", "n", &[0xff]));
    it.is_mended("record");
    let all = [(CONTENT, "sha256:0"), (SNAPSHOTS, "overlayfs\0wrong")];
    let all = all.into_iter().chain([IMAGES, LEASES, CONTAINERS, SANDBOXES].map(|table| (table, "wrong")));
    for (table, key) in all {
        write(&|tx| tx.put(table, "n", key, &[0xff]));
        it.is_mended("record");
    }
    write(&|tx| tx.put(SNAPSHOT_CHILDREN, "n", &join(&["overlayfs", "base", "nobody"]), &[]));
    it.is_mended("snapshot-lineage");
    write(&|tx| tx.delete(SNAPSHOT_CHILDREN, "n", &join(&["overlayfs", "base", "rw"])).map(drop));
    it.is_mended("snapshot-lineage");
    write(&|tx| tx.put(LEASE_RESOURCES, "n", &join(&["nobody", "content", "sha256:0"]), &[]));
    it.is_mended("lease-resource");
    write(&|tx| leases::put(tx, "n", &Lease { id: "l".into(), ..Lease::default() }));
    for kind in ["content", "images", "ingests", "snapshots/overlayfs"] {
        write(&|tx| leases::hold(tx, "n", "l", kind, "gone"));
        it.is_mended("lease-resource");
    }
}

#[test]
fn a_record_that_cannot_be_read_hides_no_other() {
    let (it, _) = Fixture::filled();
    let broken = join(&["overlayfs", "broken"]);
    let damaged = it.db.write(|tx| {
        tx.put(SNAPSHOTS, "n", &broken, &[0xff])?;
        tx.put(NAMESPACES, "", "n", &[0xff])?;
        namespaces::touch(tx, "other")
    });
    damaged.expect("damage");
    let names: Vec<_> = it.snapshots.list(&it.ctx).expect("the others").into_iter().map(|info| info.name).collect();
    assert_eq!(names, ["base", "rw"]);
    let namespaces = crate::records::namespaces::Namespaces::new(it.db.clone(), Events::new());
    assert_eq!(namespaces.list().expect("the others").len(), 1);
    let containers = crate::records::containers::Containers::new(it.db.clone(), Events::new());
    assert_eq!(containers.namespaces().expect("all").len(), 2, "nobody takes on what runs in one that is not seen");
    assert!(it.storage.usage().expect("usage").iter().any(|it| it.name == "overlayfs/rw"));
    // A daemon starts with it.
    let overlay = Overlay::open(&it.dir.path().join("overlay")).expect("overlay");
    let again = Local::open("overlayfs", overlay, it.db.clone(), Events::new()).expect("open again");
    again.prepare(&it.ctx, "next", "base", Labels::new()).expect("a number of its own");
    assert!(again.orphans().is_err(), "whose files are whose is not known");
}

#[test]
fn snapshots_without_files_are_forgotten_unless_somebody_stands_on_them() {
    let (it, _) = Fixture::filled();
    it.snapshots.prepare(&it.ctx, "key", "base", Labels::new()).expect("prepare");
    it.snapshots.commit(&it.ctx, "upper", "key", Labels::new(), None).expect("commit");
    let number =
        |name: &str| it.db.read(|tx| table::get(tx, "n", "overlayfs", name)).expect("read").expect("there").number;
    let dir = |name: &str| it.dir.path().join("overlay/snapshots").join(number(name).to_string());
    std::fs::remove_dir_all(dir("upper")).expect("remove");
    it.is_mended("snapshot-files");
    let base = dir("base");
    std::fs::rename(&base, base.with_extension("away")).expect("rename");
    assert_eq!(it.found(true, false), [("snapshot-files", Outcome::Left)]);
    it.db.write(|tx| containers::delete(tx, "n", "c")).expect("delete");
    assert_eq!(it.found(true, false), [("snapshot-files", Outcome::Left)], "it is written to");
    it.snapshots.remove(&it.ctx, "rw").expect("remove");
    // The label of the configuration goes with what it names.
    let found = it.found(true, false);
    assert_eq!(found, [("snapshot-files", Outcome::Repaired), ("reference", Outcome::Repaired)]);
    std::fs::remove_dir_all(base.with_extension("away")).expect("remove");
    assert_eq!(it.found(false, false), []);
}

#[test]
fn what_cannot_be_mended_says_what_to_do() {
    let (it, layer) = Fixture::filled();
    it.db.write(|tx| tx.delete(CONTENT, "n", layer.as_str())).expect("delete");
    std::fs::remove_file(it.blob(&layer)).expect("remove");
    it.db
        .write(|tx| {
            images::put(
                tx,
                "n",
                &Image {
                    name: "j".into(),
                    target: Some(Descriptor { digest: layer.to_string(), ..Descriptor::default() }),
                    ..Image::default()
                },
            )
        })
        .expect("image");
    let report = it.storage.check(true, false).expect("check");
    let kinds: Vec<_> = report.findings.iter().map(|it| (it.kind, it.outcome)).collect();
    assert_eq!(kinds, [("image-target", Outcome::Left), ("reference", Outcome::Left)]);
    assert!(report.findings.iter().all(|it| it.remedy.contains("pull")), "{:?}", report.findings);
}

#[test]
fn everything_is_counted_and_says_what_keeps_it() {
    let (it, layer) = Fixture::filled();
    it.content.put(&it.ctx, b"nobody's", Labels::new()).expect("put");
    let items = it.storage.usage().expect("usage");
    let of = |kind: Kind, name: &str| items.iter().find(|it| it.kind == kind && it.name == name).expect("item").clone();
    let image = of(Kind::Image, "i");
    assert_eq!((of(Kind::Blob, layer.as_str()).size, of(Kind::Blob, layer.as_str()).kept_by.as_str()), (5, "image i"));
    assert!(image.size >= 13 && image.kept_by == "itself", "{image:?}");
    assert_eq!(of(Kind::Snapshot, "overlayfs/rw").kept_by, "container c");
    assert_eq!(of(Kind::Container, "c").size, of(Kind::Snapshot, "overlayfs/rw").size);
    assert_eq!(of(Kind::Blob, Digest::of(b"nobody's").as_str()).kept_by, "");
    let found = it.storage.explain(&it.ctx, &[layer.hex()[..12].to_owned()]).expect("explain");
    assert_eq!(found[0].1.len(), 3, "{found:?}");
    assert_eq!(
        it.storage.explain(&it.ctx, &["nobody".to_owned()]).expect_err("nobody").kind(),
        crate::error::Kind::NotFound
    );
}
