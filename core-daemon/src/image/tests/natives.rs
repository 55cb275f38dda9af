//! Layers that are EROFS images, and are taken as they are.

use super::*;
use crate::diff::Target;
use crate::snapshots::erofs::Erofs;

/// A layer as a registry has it: its media type, its bytes, and what they are without their packing.
struct Native {
    media_type: &'static str,
    stored: Vec<u8>,
    plain: Vec<u8>,
}

impl Native {
    fn of(media_type: &'static str, plain: Vec<u8>) -> Self {
        let stored = match media_type.rsplit('+').next() {
            Some("zstd") => zstd::encode_all(&plain[..], 1).expect("zstd"),
            Some("gzip") => gzip(&plain),
            _ => plain.clone(),
        };
        Self { media_type, stored, plain }
    }
}

/// An image, written by us, of what `make` makes in a directory.
fn written(make: impl FnOnce(&Path)) -> Vec<u8> {
    let dir = tempfile::tempdir().expect("directory");
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    std::fs::create_dir(&from).expect("directory");
    make(&from);
    crate::erofs::from_directory(&from, &to).expect("image");
    std::fs::read(to).expect("read")
}

/// A registry's image of these layers, each with the digest of its plain bytes, and `role` said of them all.
fn store(layers: &[Native], role: Option<&str>) -> Store {
    let mut store = Store::default();
    let ids: Vec<String> = layers.iter().map(|layer| Digest::of(&layer.plain).to_string()).collect();
    let config = serde_json::json!({"architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": ids}});
    let config = store.put(media_types::OCI_CONFIG, config.to_string().into());
    let layer = |layer: &Native, store: &mut Store| {
        let mut descriptor = store.put(layer.media_type, layer.stored.clone());
        if let Some(role) = role {
            descriptor["annotations"] = serde_json::json!({"org.erofs.role": role});
        }
        descriptor
    };
    let layers: Vec<_> = layers.iter().map(|it| layer(it, &mut store)).collect();
    let manifest = serde_json::json!({"schemaVersion": 2, "mediaType": media_types::OCI_MANIFEST,
        "config": config, "layers": layers});
    store.put(media_types::OCI_MANIFEST, manifest.to_string().into());
    store.0.insert("1".into(), (media_types::OCI_MANIFEST.into(), manifest.to_string().into()));
    store
}

fn lower() -> Vec<u8> {
    written(|dir| {
        std::fs::write(dir.join("kept"), "kept").expect("file");
        std::fs::write(dir.join("gone"), "gone").expect("file");
    })
}

/// Removes what is below, as an overlay has it.
fn upper() -> Vec<u8> {
    use nix::sys::stat::{Mode, SFlag, mknod};
    written(|dir| {
        mknod(&dir.join("gone"), SFlag::S_IFCHR, Mode::empty(), 0).expect("whiteout");
        std::fs::write(dir.join("new"), "new").expect("file");
    })
}

/// A daemon's part that keeps images, where those of others are taken.
fn trusting() -> Fixture {
    let open = |dir: &Path| Erofs::open(&dir.join("erofs")).expect("erofs");
    let mut it = fixture_on("erofs", open, Registry::new(PathBuf::from("/nonexistent")));
    it.images.processors = Processors::default().taking_images(true);
    it
}

impl Fixture {
    async fn pull_native(&self, store: &Store) -> (Result<Pulled>, Vec<String>) {
        let store = store.clone();
        let fake = Fake::start(move |asked| store.answer(asked)).await;
        (self.pull(&fake).await, fake.seen())
    }

    fn end(&self) {
        self.images.snapshotters.get("").expect("snapshotter").close();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn images_of_others_are_layers_where_they_are_trusted() {
    let tar = tar(&[file("above", b'0', "", b"a tar")]);
    let tar = Native { media_type: media_types::OCI_LAYER_GZIP, stored: gzip(&tar), plain: tar };
    let layers = [
        Native::of("application/vnd.erofs.layer.v1", lower()),
        Native::of("application/vnd.erofs+zstd", upper()),
        tar,
        Native::of(
            "application/vnd.erofs.layer.v1+gzip",
            written(|dir| {
                std::fs::write(dir.join("last"), "last").expect("file");
            }),
        ),
    ];
    let it = trusting();
    let (pulled, _) = it.pull_native(&store(&layers, Some("overlay-lower"))).await;
    let pulled = pulled.expect("pull");
    let amd64 = Platform::new("linux", "amd64", None);
    let top = it.images.resolve(&it.ctx, &pulled.name, Some(&amd64)).expect("resolve").chain_id.expect("layers");
    let snapshots = it.images.snapshotters.get("").expect("snapshotter");
    let mounts = snapshots.view(&it.ctx, "look", top.as_str(), Labels::new()).expect("view");
    let shown = Target::to_read(&mounts).expect("mount");
    let mut names: Vec<_> = std::fs::read_dir(&shown.path).expect("list").flatten().map(|it| it.file_name()).collect();
    names.sort_unstable();
    assert_eq!(names, ["above", "kept", "last", "new"]);
    assert_eq!(content_of(&shown.path.join("kept")), "kept");
    let mounted = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    let root = snapshots.root().expect("root");
    let ours: Vec<&str> = mounted.lines().filter(|line| line.contains(root.to_str().expect("utf-8"))).collect();
    assert_eq!(ours.len(), 4, "{mounted}");
    assert!(ours.iter().all(|line| line.contains(" ro,nodev")), "{ours:?}");
    drop(shown);
    it.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_trust_or_the_snapshotter_they_are_refused_before_they_come() {
    let store = store(&[Native::of("application/vnd.erofs.layer.v1", lower())], None);
    let (mut untrusting, mut stacking) = (trusting(), fixture());
    untrusting.images.processors = Processors::default();
    stacking.images.processors = Processors::default().taking_images(true);
    for (it, says) in [(untrusting, "snapshotters.erofs.trust_images"), (stacking, "only the snapshotter erofs")] {
        let (pulled, seen) = it.pull_native(&store).await;
        let error = pulled.expect_err("refused");
        assert!(error.kind() == Kind::Unimplemented && error.to_string().contains(says), "{error}");
        let blobs = seen.iter().filter(|asked| asked.contains("/blobs/")).count();
        assert_eq!(blobs, 1, "the configuration alone: {seen:?}");
        it.end();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn images_that_are_not_right_leave_nothing() {
    let kind = "application/vnd.erofs";
    let changed = |at: usize, value: u8| {
        let mut bytes = lower();
        bytes[at] = value;
        bytes
    };
    let cut = |mut bytes: Vec<u8>| {
        bytes.truncate(bytes.len() - 1);
        bytes
    };
    let mut other = Native::of(kind, lower());
    other.plain = upper();
    let cases = [
        (Native::of(kind, changed(1024, 0)), None, Kind::InvalidArgument, "has no superblock"),
        (Native::of(kind, changed(1024 + 86, 1)), None, Kind::InvalidArgument, "other devices"),
        (Native::of(kind, cut(lower())), None, Kind::InvalidArgument, "and says that it has"),
        // Bounds are right, and what is there is no inode.
        (Native::of(kind, changed(1024 + 14, 0)), None, Kind::InvalidArgument, "mount erofs"),
        (Native::of(kind, lower()), Some("device"), Kind::Unimplemented, "has the role \"device\""),
        (Native::of("application/vnd.erofs+xz", lower()), None, Kind::Unimplemented, "not known"),
        (other, None, Kind::DataLoss, "but the image's configuration says"),
    ];
    for (layer, role, kind, says) in cases {
        let it = trusting();
        let (pulled, _) = it.pull_native(&store(&[layer], role)).await;
        let error = pulled.expect_err(says);
        assert!(error.kind() == kind && error.to_string().contains(says), "{says}: {error}");
        it.check_nothing_left().await;
        it.end();
    }
}
