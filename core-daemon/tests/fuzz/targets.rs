//! What is tried, and what must be true whatever the input is.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::BufReader;
use std::path::Path;
use std::sync::Arc;

use gantry_proto::namespace::Namespace;
use gantryd::content::Content;
use gantryd::context::Context;
use gantryd::diff::{self, Mode, Processors};
use gantryd::events::Events;
use gantryd::filter::Filter;
use gantryd::gc::Gc;
use gantryd::image::archive::ImportOptions;
use gantryd::image::{AtOnce, Images, Parts, Policies, Quiet, Verifiers};
use gantryd::metadata::Db;
use gantryd::mounts::Mounts;
use gantryd::records::{ImageRecords, Leases};
use gantryd::registry::{Registry, challenge};
use gantryd::snapshots::overlay::Overlay;
use gantryd::snapshots::{Local, Snapshotter, Snapshotters};
use rung_spec::digest::Digest;
use rung_spec::image::{Document, ImageConfig, media_types};
use rung_spec::reference::Reference;
use rung_sys::beneath::{self, Root};

use super::tars::{self, entry, tar};
use super::{corpus, fuzz};

/// Most bytes that a layer may unpack to here.
const LIMIT: u64 = 8 << 20;

fn as_it_is(_: &mut [u8]) {}

#[test]
fn references() {
    fuzz("references", &corpus("references"), 20_000, as_it_is, &|input| {
        let Ok(text) = std::str::from_utf8(input) else { return };
        if let Ok(reference) = Reference::parse(text) {
            let whole = reference.to_string();
            let again = Reference::parse(&whole).expect("what was understood is understood again");
            assert_eq!(again.to_string(), whole);
            assert!(!whole.contains("..") || text.contains(".."), "{whole}");
        }
    });
}

#[test]
fn challenges() {
    fuzz("challenges", &corpus("challenges"), 20_000, as_it_is, &|input| {
        let Ok(text) = std::str::from_utf8(input) else { return };
        for it in challenge::parse(text) {
            assert!(!it.scheme.is_empty() && it.parameters.len() <= 32, "{it:?}");
        }
    });
}

#[test]
fn manifests() {
    let kinds = [media_types::OCI_MANIFEST, media_types::OCI_INDEX, media_types::DOCKER_MANIFEST, ""];
    fuzz("manifests", &corpus("manifests"), 20_000, as_it_is, &|input| {
        for kind in kinds {
            if let Ok(Document::Manifest(manifest)) = Document::parse(kind, input) {
                let _ = manifest.stored_size();
            }
        }
        if let Ok(config) = ImageConfig::parse(input) {
            let _ = rung_spec::image::chain_ids(&config.rootfs.diff_ids);
        }
    });
}

/// Names in a directory.
fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .expect("list")
        .flatten()
        .map(|it| it.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn layers() {
    let dir = tempfile::tempdir().expect("directory");
    let (root, canary, image) = (dir.path().join("root"), dir.path().join("canary"), dir.path().join("image"));
    std::fs::write(&canary, "sings").expect("canary");
    let turn = Cell::new(0_u32);
    fuzz("layers", &tars::layers(), 600, tars::repair, &|input| {
        std::fs::create_dir(&root).expect("root");
        turn.set(turn.get() + 1);
        let mode = if turn.get().is_multiple_of(2) { Mode::Overlay } else { Mode::Direct };
        if let Ok((plain, _)) = diff::decompress(input) {
            let plain = BufReader::new(plain);
            let _ = Root::open(&root).map_err(Into::into).and_then(|root| diff::apply(root, plain, mode, LIMIT));
        }
        beneath::remove(&root).expect("what was made can be removed");
        if turn.get().is_multiple_of(4)
            && let Ok((plain, _)) = diff::decompress(input)
        {
            let _ = diff::convert(&image, BufReader::new(plain), Mode::Overlay, LIMIT);
            beneath::remove(&image).expect("remove the image");
        }
        assert_eq!(std::fs::read_to_string(&canary).expect("canary"), "sings");
        assert_eq!(names(dir.path()), ["canary"], "something was made outside");
    });
}

#[test]
fn packed() {
    fuzz("packed", &corpus("packed"), 3000, as_it_is, &|input| {
        if let Ok(plain) = diff::decompress_archive(input) {
            let _ = std::io::copy(&mut std::io::Read::take(plain, LIMIT), &mut std::io::sink());
        }
    });
}

/// Archives of both kinds with one small image.
fn archives() -> Vec<Vec<u8>> {
    let layer = tar(&[entry(b'0', "file", "", b"x")]);
    let config = format!(
        r#"{{"os":"linux","architecture":"amd64","rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
        Digest::of(&layer)
    );
    let described = |kind: &str, bytes: &[u8]| {
        format!(r#"{{"mediaType":"{kind}","digest":"{}","size":{}}}"#, Digest::of(bytes), bytes.len())
    };
    let manifest = format!(
        r#"{{"schemaVersion":2,"config":{},"layers":[{}]}}"#,
        described(media_types::OCI_CONFIG, config.as_bytes()),
        described(media_types::OCI_LAYER, &layer)
    );
    let target = described(media_types::OCI_MANIFEST, manifest.as_bytes());
    let index = format!(r#"{{"schemaVersion":2,"manifests":[{target}]}}"#);
    let blob = |bytes: &[u8]| entry(b'0', &format!("blobs/sha256/{}", Digest::of(bytes).hex()), "", bytes);
    let docker = br#"[{"Config":"config.json","RepoTags":["a:1"],"Layers":["layer.tar"]}]"#;
    vec![
        tar(&[
            entry(b'0', "oci-layout", "", br#"{"imageLayoutVersion":"1.0.0"}"#),
            blob(&layer),
            blob(config.as_bytes()),
            blob(manifest.as_bytes()),
            entry(b'0', "index.json", "", index.as_bytes()),
        ]),
        tar(&[
            entry(b'0', "config.json", "", config.as_bytes()),
            entry(b'0', "layer.tar", "", &layer),
            entry(b'2', "other.tar", "layer.tar", b""),
            entry(b'0', "manifest.json", "", docker),
        ]),
    ]
}

/// A store of images, empty.
fn images(dir: &Path) -> (Images, Gc) {
    let db = Db::open(&dir.join("meta.redb")).expect("metadata");
    let events = Events::new();
    let content = Content::open(&dir.join("content"), db.clone(), events.clone()).expect("content");
    let overlay = Overlay::open(&dir.join("overlay")).expect("overlay");
    let local: Arc<dyn Snapshotter> =
        Arc::new(Local::open("overlayfs", overlay, db.clone(), events.clone()).expect("snapshotter"));
    let snapshotters = Snapshotters::new(BTreeMap::from([("overlayfs".into(), local)]), "overlayfs").expect("all");
    let mounts = Mounts::open(&dir.join("state"), dir).expect("mounts");
    let gc = Gc::new(db.clone(), content.clone(), snapshotters.clone(), mounts, events.clone());
    let images = Images::new(Parts {
        records: ImageRecords::new(db.clone(), events),
        content,
        leases: Leases::new(db, snapshotters.clone()),
        snapshotters,
        registry: Registry::new("/nonexistent".into()),
        at_once: AtOnce { downloads: 6, uploads: 4, slices: 4, large: 32 << 20 },
        policies: Policies::default(),
        verifiers: Verifiers::default(),
        features: Vec::new(),
        processors: Processors::default(),
        wake: gc.waker(),
    });
    (images, gc)
}

#[test]
fn archives_of_images() {
    let dir = tempfile::tempdir().expect("directory");
    let (images, gc) = images(dir.path());
    let context = Context::new(Namespace::parse("fuzz").expect("namespace"));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("threads");
    fuzz("archives", &archives(), 150, tars::repair, &|input| {
        let archive = std::io::Cursor::new(input.to_vec());
        let _ = runtime.block_on(images.import(&context, archive, ImportOptions::default(), Arc::new(Quiet)));
        // Its lease ends behind its back.
        while !images.leases.list(&context, &Filter::everything()).expect("leases").is_empty() {
            std::thread::sleep(std::time::Duration::from_micros(200));
        }
        for record in images.records.list(&context, &Filter::everything()).expect("list") {
            images.records.delete(&context, &record.name, None).expect("delete");
        }
        runtime.block_on(gc.collect()).expect("collect");
        assert_eq!(images.content.stored().expect("stored"), [], "something was left");
    });
}
