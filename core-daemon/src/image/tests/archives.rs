//! Archives of images.

use super::*;
use crate::image::archive::{ExportOptions, Exported};

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_not_archived_for_a_platform_that_it_is_not_for() {
    let store = two_layers();
    let fake = Fake::start(move |asked| store.answer(asked)).await;
    let it = fixture();
    let pulled = it.pull(&fake).await.expect("pull");
    let image = [Exported { name: Some(pulled.name.clone()), target: pulled.target.clone() }];
    let export = async |platforms: &[&str]| {
        let platforms = platforms.iter().map(|text| Platform::parse(text).expect("platform")).collect();
        let choice = Choice { platforms, ..Choice::default() };
        let options = ExportOptions { choice, ..ExportOptions::default() };
        it.images.export(&it.ctx, &image, &options, std::io::sink()).await
    };
    for platforms in [&[][..], &["linux/amd64"], &["linux/amd64/v3"], &["linux/arm64", "linux/amd64"]] {
        export(platforms).await.unwrap_or_else(|error| panic!("{platforms:?}: {error}"));
    }
    let error = export(&["linux/arm64", "linux/s390x"]).await.expect_err("other platforms");
    assert_eq!(error.kind(), Kind::NotFound, "{error}");
    assert!(error.to_string().ends_with("is for linux/amd64, not linux/arm64 or linux/s390x"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_index_has_for_no_platform_is_archived_if_it_is_here() {
    let mut store = two_layers();
    let (kind, manifest) = store.0["1"].clone();
    let mut image = store.put(&kind, manifest);
    image["platform"] = serde_json::json!({"os": "linux", "architecture": "amd64"});
    let (empty, thing) = (store.put("application/vnd.oci.empty.v1+json", b"{}".into()), store.put("x/y", b"z".into()));
    let artifact = serde_json::json!({"schemaVersion": 2, "mediaType": kind, "artifactType": "x/z", "config": empty,
        "layers": [thing]});
    let artifact = store.put(&kind, artifact.to_string().into());
    let index = serde_json::json!({"schemaVersion": 2, "mediaType": media_types::OCI_INDEX,
        "manifests": [image, artifact]});
    let index = index.to_string().into_bytes();
    store.put(media_types::OCI_INDEX, index.clone());
    store.0.insert("1".into(), (media_types::OCI_INDEX.into(), index));
    let here = store.clone();
    let fake = Fake::start(move |asked| store.answer(asked)).await;
    let it = fixture();
    let pulled = it.pull(&fake).await.expect("pull");
    let image = [Exported { name: None, target: pulled.target.clone() }];
    let has = async |digest: &str| {
        let file = tempfile::NamedTempFile::new().expect("file");
        let choice = Choice { unplaced: true, ..Choice::platform(Some(Platform::new("linux", "amd64", None))) };
        let options = ExportOptions { choice, ..ExportOptions::default() };
        let to = file.reopen().expect("open");
        it.images.export(&it.ctx, &image, &options, to).await.expect("export");
        let path = digest.replace("sha256:", "blobs/sha256/");
        std::fs::read(file.path()).expect("archive").windows(path.len()).any(|at| at == path.as_bytes())
    };
    let digests = [&artifact, &thing].map(|it| it["digest"].as_str().expect("digest").to_owned());
    assert!(!has(&digests[0]).await && has(pulled.target.digest.as_str()).await);
    for (digest, (_, bytes)) in here.0.iter().filter(|(name, _)| *name != "1") {
        if !it.images.content.has(&it.ctx, &Digest::parse(digest).expect("digest")).expect("has") {
            it.images.content.put(&it.ctx, bytes, Labels::new()).expect("put");
        }
    }
    assert!(has(&digests[0]).await && has(&digests[1]).await);
}
