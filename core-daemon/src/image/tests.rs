use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex as StdMutex;
use std::sync::atomic::{AtomicU32, Ordering};

use gantry_proto::namespace::Namespace;
use rung_spec::image::media_types;
use rung_spec::reference::Reference;

use super::*;
use crate::diff::Processors;
use crate::error::Kind;
use crate::events::Events;
use crate::filter::Filter;
use crate::gc::Gc;
use crate::labels::Labels;
use crate::metadata::Db;
use crate::registry::fake::{Answer, Asked, Fake};
use crate::snapshots::overlay::Overlay;
use crate::snapshots::{Driver, Local, Snapshotter};

struct Fixture {
    _dir: tempfile::TempDir,
    images: Images,
    gc: Gc,
    ctx: Context,
}

fn fixture() -> Fixture {
    fixture_with(Registry::new(PathBuf::from("/nonexistent")))
}

fn fixture_with(registry: Registry) -> Fixture {
    let open = |dir: &Path| Overlay::open(&dir.join("overlay")).expect("overlay");
    fixture_on("overlayfs", open, registry)
}

fn fixture_on<D: Driver>(name: &str, driver: impl FnOnce(&Path) -> D, registry: Registry) -> Fixture {
    let dir = tempfile::tempdir().expect("temporary directory");
    let db = Db::open(&dir.path().join("meta.redb")).expect("metadata");
    let events = Events::new();
    let content = Content::open(&dir.path().join("content"), db.clone(), events.clone()).expect("content");
    let local: Arc<dyn Snapshotter> =
        Arc::new(Local::open(name, driver(dir.path()), db.clone(), events.clone()).expect("snapshotter"));
    let snapshotters = Snapshotters::new(BTreeMap::from([(name.to_owned(), local)]), name).expect("all");
    let mounts = crate::mounts::Mounts::open(&dir.path().join("state"), dir.path()).expect("mounts");
    let gc = Gc::new(db.clone(), content.clone(), snapshotters.clone(), mounts, events.clone());
    let images = Images::new(Parts {
        records: ImageRecords::new(db.clone(), events),
        content,
        leases: Leases::new(db, snapshotters.clone()),
        snapshotters,
        registry,
        at_once: AtOnce { downloads: 6, uploads: 4, slices: 4, large: 32 << 20 },
        policies: Policies::default(),
        verifiers: Verifiers::default(),
        features: Vec::new(),
        processors: Processors::default(),
        wake: gc.waker(),
    });
    Fixture { _dir: dir, images, gc, ctx: Context::new(Namespace::parse("n").expect("namespace")) }
}

/// A file of a ustar header and padded data.
fn file(path: &str, kind: u8, link: &str, data: &[u8]) -> Vec<u8> {
    let mut block = [0u8; 512];
    block[..path.len()].copy_from_slice(path.as_bytes());
    block[100..108].copy_from_slice(if kind == b'5' { b"0000755\0" } else { b"0000644\0" });
    block[108..116].copy_from_slice(b"0000000\0");
    block[116..124].copy_from_slice(b"0000000\0");
    block[124..136].copy_from_slice(format!("{:011o}\0", data.len()).as_bytes());
    block[136..148].copy_from_slice(b"00000000000\0");
    block[156] = kind;
    block[157..157 + link.len()].copy_from_slice(link.as_bytes());
    block[257..265].copy_from_slice(b"ustar\x0000");
    block[148..156].copy_from_slice(b"        ");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut entry = block.to_vec();
    entry.extend_from_slice(data);
    entry.resize(entry.len().next_multiple_of(512), 0);
    entry
}

fn tar(entries: &[Vec<u8>]) -> Vec<u8> {
    let mut tar = entries.concat();
    tar.resize(tar.len() + 1024, 0);
    tar
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("gzip");
    encoder.finish().expect("gzip")
}

/// Everything a registry has, by digest or tag.
#[derive(Clone, Default)]
struct Store(BTreeMap<String, (String, Vec<u8>)>);

impl Store {
    fn put(&mut self, media_type: &str, bytes: Vec<u8>) -> serde_json::Value {
        let digest = Digest::of(&bytes).to_string();
        let size = bytes.len();
        self.0.insert(digest.clone(), (media_type.to_owned(), bytes));
        serde_json::json!({"mediaType": media_type, "digest": digest, "size": size})
    }

    /// An image of these tars, under the tag `1`.
    fn image(&mut self, tars: &[Vec<u8>]) {
        let ids: Vec<String> = tars.iter().map(|tar| Digest::of(tar).to_string()).collect();
        let config = serde_json::json!({"architecture": "amd64", "os": "linux", "config": {},
            "rootfs": {"type": "layers", "diff_ids": ids}});
        let config = self.put(media_types::OCI_CONFIG, config.to_string().into());
        let layers: Vec<_> = tars.iter().map(|tar| self.put(media_types::OCI_LAYER_GZIP, gzip(tar))).collect();
        let manifest = serde_json::json!({"schemaVersion": 2, "mediaType": media_types::OCI_MANIFEST,
            "config": config, "layers": layers});
        let manifest = manifest.to_string().into_bytes();
        self.put(media_types::OCI_MANIFEST, manifest.clone());
        self.0.insert("1".into(), (media_types::OCI_MANIFEST.into(), manifest));
    }

    fn layers(&self) -> Vec<String> {
        let is_layer = |(_, (kind, _)): &(&String, &(String, Vec<u8>))| kind == media_types::OCI_LAYER_GZIP;
        self.0.iter().filter(is_layer).map(|(digest, _)| digest.clone()).collect()
    }

    fn answer(&self, asked: &Asked) -> Answer {
        let path = asked.path.split('?').next().unwrap_or_default();
        let object = path.rsplit('/').next().unwrap_or_default();
        let Some((media_type, bytes)) = self.0.get(object) else { return Answer::new(404, "") };
        let range = asked.header("range").strip_prefix("bytes=").and_then(|range| range.split_once('-'));
        let (from, to) = range.unwrap_or_default();
        let from: usize = from.parse().unwrap_or(0);
        let end = to.parse().map_or(bytes.len(), |last: usize| last + 1);
        let digest = if object.contains(':') { object.to_owned() } else { Digest::of(bytes).to_string() };
        let answer = Answer::new(if range.is_some() { 206 } else { 200 }, &bytes[from..end])
            .with("content-type", media_type)
            .with("docker-content-digest", digest);
        if range.is_some() {
            answer.with("content-range", format!("bytes {from}-{}/{}", end - 1, bytes.len()))
        } else {
            answer
        }
    }
}

fn two_layers() -> Store {
    let noise: Vec<u8> = (0..300_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let mut store = Store::default();
    store.image(&[
        tar(&[
            file("./", b'5', "", b""),
            file("usr/", b'5', "", b""),
            file("usr/lib/", b'5', "", b""),
            file("lib", b'2', "usr/lib", b""),
            file("usr/lib/old", b'0', "", b"old"),
            file("usr/lib/big", b'0', "", &noise),
        ]),
        tar(&[
            file("lib/new", b'0', "", b"new"),
            file("usr/lib/.wh.old", b'0', "", b""),
            file("usr/also", b'1', "usr/lib/big", b""),
        ]),
    ]);
    store
}

impl Fixture {
    async fn pull(&self, fake: &Fake) -> Result<Pulled> {
        self.pull_with(fake, Access::default()).await
    }

    async fn pull_with(&self, fake: &Fake, access: Access) -> Result<Pulled> {
        let reference = Reference::parse(&format!("{}/a/b:1", fake.address)).expect("reference");
        let options = PullOptions {
            access: Access { plain_http: true, ..access },
            choice: Choice::platform(Some(Platform::new("linux", "amd64", None))),
            ..PullOptions::default()
        };
        self.images.pull(&self.ctx, &reference, options, Arc::new(Quiet)).await
    }

    /// That nothing of a failed pull can be seen, and nothing is left after a collection but what can be resumed.
    async fn check_nothing_left(&self) {
        assert!(self.images.records.list(&self.ctx, &Filter::everything()).expect("images").is_empty());
        assert!(self.images.content.list(&self.ctx).expect("content").is_empty());
        let snapshots = self.images.snapshotters.get("").expect("snapshotter");
        for _ in 0..100 {
            self.gc.collect().await.expect("collect");
            if snapshots.list(&self.ctx).expect("snapshots").is_empty() {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        assert!(snapshots.list(&self.ctx).expect("snapshots").is_empty());
        assert!(self.images.content.stored().expect("stored").is_empty());
    }

    fn directories(&self, pulled: &Pulled) -> Vec<PathBuf> {
        let amd64 = Platform::new("linux", "amd64", None);
        let image = self.images.resolve(&self.ctx, &pulled.name, Some(&amd64)).expect("resolve");
        let top = image.chain_id.expect("layers");
        let snapshots = self.images.snapshotters.get("").expect("snapshotter");
        let key = format!("test-{}", crate::id::random::<8>().expect("random"));
        let mounts = snapshots.view(&self.ctx, &key, top.as_str(), Labels::new()).expect("view");
        crate::diff::Target::directories(&mounts)
    }
}

fn content_of(path: &Path) -> String {
    std::fs::read_to_string(path).expect("read")
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_fit_together_without_being_mounted() {
    let store = two_layers();
    let fake = Fake::start(move |asked| store.answer(asked)).await;
    let it = fixture();
    let pulled = it.pull(&fake).await.expect("pull");
    assert!(!pulled.up_to_date);
    let directories = it.directories(&pulled);
    let [top, bottom] = &directories[..] else { panic!("{directories:?}") };
    // The file came through a link that only the layer below has.
    assert_eq!(content_of(&top.join("usr/lib/new")), "new");
    assert!(!top.join("lib").exists());
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let hidden = std::fs::symlink_metadata(top.join("usr/lib/old")).expect("whiteout");
    assert!(hidden.file_type().is_char_device() && hidden.rdev() == 0);
    assert_eq!(content_of(&bottom.join("usr/lib/old")), "old");
    let (one, other) = (top.join("usr/also"), top.join("usr/lib/big"));
    let inode = |path: &Path| std::fs::metadata(path).expect("linked file").ino();
    assert_eq!(inode(&one), inode(&other));
    assert_eq!(std::fs::read(&one).expect("copy"), std::fs::read(bottom.join("usr/lib/big")).expect("original"));
    let asked = fake.seen().len();
    assert!(it.pull(&fake).await.expect("pull again").up_to_date);
    assert_eq!(fake.seen().len(), asked + 1, "{:?}", fake.seen());
    it.gc.collect().await.expect("collect");
    assert_eq!(it.images.content.list(&it.ctx).expect("content").len(), 4);
}

/// A pull takes no longer than its slowest part: no layer waits for another, nor for its own end.
#[tokio::test(flavor = "multi_thread")]
async fn all_layers_are_unpacked_at_once_as_they_come() {
    let noise: Vec<u8> = (0..400_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let layer = |number: u32| {
        tar(&[file(&format!("first-{number}"), b'0', "", b"here"), file(&format!("noise-{number}"), b'0', "", &noise)])
    };
    let mut store = Store::default();
    store.image(&[0, 1, 2, 3].map(layer));
    let (open, gate) = tokio::sync::watch::channel(false);
    let layers = store.layers();
    let fake = Fake::start(move |asked| {
        let answer = store.answer(asked);
        let is_layer = layers.iter().any(|digest| asked.path.ends_with(digest.as_str()));
        Answer { held: is_layer.then(|| (answer.body.len() * 3 / 4, gate.clone())), ..answer }
    })
    .await;
    let it = fixture();
    let root = it.images.snapshotters.get("").expect("snapshotter").root().expect("root").join("snapshots");
    let unpacked = || {
        let directories = std::fs::read_dir(&root).expect("snapshots").flatten();
        directories.filter(|dir| (0..4).any(|n| dir.path().join(format!("fs/first-{n}")).exists())).count()
    };
    let watch = async {
        for _ in 0..1000 {
            if unpacked() == 4 {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        let before_the_end = unpacked();
        open.send(true).expect("the registry waits");
        before_the_end
    };
    let (pulled, before_the_end) = tokio::join!(it.pull(&fake), watch);
    assert_eq!(before_the_end, 4);
    assert_eq!(it.directories(&pulled.expect("pull")).len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_connections_are_resumed() {
    let store = two_layers();
    let fake = Fake::start(move |asked| {
        let answer = store.answer(asked);
        let is_long = asked.path.contains("/blobs/") && answer.body.len() > 200_000;
        Answer { cut: is_long.then_some(200_000), ..answer }
    })
    .await;
    let it = fixture();
    it.pull(&fake).await.expect("pull");
    let ranges = fake.requests().iter().filter(|asked| !asked.header("range").is_empty()).count();
    assert!(ranges >= 2, "{:?}", fake.seen());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_fetched_before_a_failure_is_not_fetched_again() {
    let store = two_layers();
    let broken = Arc::new(StdMutex::new(true));
    let state = broken.clone();
    let fake = Fake::start(move |asked| {
        let answer = store.answer(asked);
        let is_long = asked.path.contains("/blobs/") && answer.body.len() > 200_000;
        if !*state.lock().expect("lock") {
            return answer;
        }
        match is_long {
            true if asked.header("range").is_empty() => Answer { cut: Some(200_000), ..answer },
            true => Answer::new(404, ""),
            false => answer,
        }
    })
    .await;
    let it = fixture();
    let error = it.pull(&fake).await.expect_err("broken registry");
    assert_eq!(error.kind(), Kind::NotFound, "{error}");
    it.check_nothing_left().await;
    *broken.lock().expect("lock") = false;
    it.pull(&fake).await.expect("pull");
    let last = fake.requests().into_iter().rev().find(|asked| !asked.header("range").is_empty()).expect("resumed");
    assert_ne!(last.header("range"), "bytes=0-");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_are_refused_and_leave_nothing() {
    let good = two_layers();
    for damage in ["flip", "short", "long"] {
        let mut store = good.clone();
        for digest in store.layers() {
            let (_, bytes) = store.0.get_mut(&digest).expect("layer");
            let middle = bytes.len() / 2;
            match damage {
                "flip" => bytes[middle] ^= 0x40,
                "short" => bytes.truncate(middle),
                _ => bytes.push(0),
            }
        }
        let fake = Fake::start(move |asked| store.answer(asked)).await;
        let it = fixture();
        let error = it.pull(&fake).await.expect_err(damage);
        assert!(matches!(error.kind(), Kind::DataLoss | Kind::Unavailable), "{damage}: {error}");
        assert!(!error.to_string().contains('\n'), "{error}");
        it.check_nothing_left().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_that_lies_about_its_layers_is_refused() {
    let mut store = Store::default();
    store.image(&[tar(&[file("a", b'0', "", b"a")])]);
    let other = gzip(&tar(&[file("b", b'0', "", b"b")]));
    let (_, manifest) = store.0.get("1").cloned().expect("manifest");
    let mut manifest: serde_json::Value = serde_json::from_slice(&manifest).expect("json");
    manifest["layers"][0] = store.put(media_types::OCI_LAYER_GZIP, other);
    let manifest = manifest.to_string().into_bytes();
    store.put(media_types::OCI_MANIFEST, manifest.clone());
    store.0.insert("1".into(), (media_types::OCI_MANIFEST.into(), manifest));
    let fake = Fake::start(move |asked| store.answer(asked)).await;
    let it = fixture();
    let error = it.pull(&fake).await.expect_err("other layer");
    assert!(error.to_string().contains("the image's configuration says"), "{error}");
    it.check_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_has_images_for_other_machines_unpacked_but_not_for_other_systems() {
    let store = two_layers();
    let fake = Fake::start(move |asked| store.answer(asked)).await;
    let reference = Reference::parse(&format!("{}/a/b:1", fake.address)).expect("reference");
    for (os, architecture, layers) in [("linux", "arm64", 2), ("windows", "amd64", 0)] {
        let it = fixture();
        let platform = Platform::new(os, architecture, None);
        let unpack = Unpack { platform, snapshotter: "overlayfs".to_owned() };
        let access = Access { plain_http: true, ..Access::default() };
        let options = PullOptions { access, unpacks: Some(vec![unpack]), ..PullOptions::default() };
        it.images.pull(&it.ctx, &reference, options, Arc::new(Quiet)).await.expect("pull");
        let snapshots = it.images.snapshotters.get("").expect("snapshotter");
        assert_eq!(snapshots.list(&it.ctx).expect("snapshots").len(), layers, "{os}/{architecture}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_of_one_image_at_once_fetch_it_once() {
    let store = two_layers();
    let blobs = Arc::new(AtomicU32::new(0));
    let counter = blobs.clone();
    let fake = Fake::start(move |asked| {
        if asked.path.contains("/blobs/") {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        store.answer(asked)
    })
    .await;
    let it = fixture();
    let pulls = futures_util::future::join_all((0..8).map(|_| it.pull(&fake))).await;
    assert!(pulls.iter().all(Result::is_ok));
    assert_eq!(blobs.load(Ordering::Relaxed), 3);
}

/// How many times more often than usual tests of chances try them.
fn rounds(usual: u32) -> u32 {
    let more = std::env::var("GANTRY_TEST_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    usual * more
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn pulls_that_are_given_up_and_collections_take_nothing_from_others() {
    let store = two_layers();
    let fake = Fake::start(move |asked| store.answer(asked)).await;
    let it = fixture();
    let worker = async |number: u32| {
        for round in 0..rounds(12) {
            // Sooner or later, and now and then not at all.
            let patience = std::time::Duration::from_millis(u64::from((round * 7 + number * 13) % 40));
            if let Ok(pulled) = tokio::time::timeout(patience, it.pull(&fake)).await {
                pulled.unwrap_or_else(|error| panic!("round {round}: {error}"));
            }
            it.gc.collect().await.expect("collect");
            let pulled = it.pull(&fake).await.unwrap_or_else(|error| panic!("round {round}, again: {error}"));
            if number == 0 {
                it.images.records.delete(&it.ctx, &pulled.name, None).expect("remove");
            }
        }
    };
    tokio::join!(worker(0), worker(1), worker(2), worker(3));
    let pulled = it.pull(&fake).await.expect("pull");
    it.gc.collect().await.expect("collect");
    assert_eq!(content_of(&it.directories(&pulled)[0].join("usr/lib/new")), "new");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_layers_come_in_at_once_than_are_allowed() {
    for downloads in [1, 2] {
        let (store, under_way, most) = (two_layers(), AtomicU32::new(0), Arc::new(AtomicU32::new(0)));
        let (layers, seen) = (store.layers(), most.clone());
        let fake = Fake::start(move |asked| {
            if layers.iter().any(|digest| asked.path.ends_with(digest.as_str())) {
                seen.fetch_max(under_way.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                // Time for another to come, if it may.
                std::thread::sleep(std::time::Duration::from_millis(300));
                under_way.fetch_sub(1, Ordering::SeqCst);
            }
            store.answer(asked)
        })
        .await;
        let mut it = fixture();
        it.images.at_once.downloads = downloads;
        it.pull(&fake).await.expect("pull");
        let most = most.load(Ordering::SeqCst);
        assert!(most >= 1 && usize::try_from(most).expect("a few") <= downloads, "{most} of {downloads}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn indexes_that_lead_to_indexes_without_end_are_refused() {
    let mut store = two_layers();
    let platform = serde_json::json!({"os": "linux", "architecture": "amd64"});
    let index = |entry: &serde_json::Value| {
        let index = serde_json::json!({"schemaVersion": 2, "mediaType": media_types::OCI_INDEX, "manifests": [entry]});
        index.to_string().into_bytes()
    };
    let bytes = store.0["1"].1.clone();
    let mut entry = store.put(media_types::OCI_MANIFEST, bytes);
    for _ in 0..10 {
        entry["platform"] = platform.clone();
        entry = store.put(media_types::OCI_INDEX, index(&entry));
    }
    let top = store.0[entry["digest"].as_str().expect("digest")].clone();
    store.0.insert("1".into(), top);
    // One that leads to itself: whatever its digest is said to be, it is not that of an index that says so.
    let own = Digest::of(b"itself").to_string();
    let itself = index(&serde_json::json!({"mediaType": media_types::OCI_INDEX, "digest": own, "size": 300,
        "platform": platform}));
    let mut looping = two_layers();
    looping.0.insert("1".into(), (media_types::OCI_INDEX.into(), itself.clone()));
    looping.0.insert(own, (media_types::OCI_INDEX.into(), itself));
    for store in [store, looping] {
        let fake = Fake::start(move |asked| store.answer(asked)).await;
        let it = fixture();
        it.pull(&fake).await.expect_err("an index without end");
        it.check_nothing_left().await;
        assert!(fake.seen().len() < 20, "{:?}", fake.seen());
    }
}

mod archives;
mod damage;
mod mirrors;
mod natives;
mod others;
mod slices;
