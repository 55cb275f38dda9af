//! What is in manifests beside an image's layers.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_layer_is_fetched_and_not_unpacked() {
    let mut store = two_layers();
    let (media_type, manifest) = store.0["1"].clone();
    let mut manifest: serde_json::Value = serde_json::from_slice(&manifest).expect("manifest");
    for (place, name) in ["first", "second"].into_iter().enumerate() {
        let thing = store.put("application/x-thing", name.into());
        manifest["layers"].as_array_mut().expect("layers").insert(place * 2, thing);
    }
    store.0.insert("1".into(), (media_type.clone(), manifest.to_string().into()));
    store.put(&media_type, manifest.to_string().into());
    let fake = Fake::start(move |asked| store.answer(asked)).await;
    let it = fixture();
    let pulled = it.pull(&fake).await.expect("pull");
    let directories = it.directories(&pulled);
    assert_eq!((directories.len(), content_of(&directories[0].join("usr/lib/new")).as_str()), (2, "new"));
    assert!(it.images.content.has(&it.ctx, &Digest::of("second")).expect("has"));
    it.images.unpack(&it.ctx, &pulled.name, Some(&Platform::new("linux", "amd64", None)), "").expect("unpack");
}

/// An EROFS image begins with zeros, which read like the end of an archive: without a word its files would be missing.
#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_a_file_system_is_refused() {
    let mut store = two_layers();
    let image = vec![0; 8192];
    let layer = store.put("application/vnd.erofs.layer.v1", image.clone());
    let config = serde_json::json!({"architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [Digest::of(&image).to_string()]}});
    let config = store.put(media_types::OCI_CONFIG, config.to_string().into());
    let manifest = serde_json::json!({"schemaVersion": 2, "mediaType": media_types::OCI_MANIFEST,
        "config": config, "layers": [layer]});
    store.put(media_types::OCI_MANIFEST, manifest.to_string().into());
    store.0.insert("1".into(), (media_types::OCI_MANIFEST.into(), manifest.to_string().into()));
    let fake = Fake::start(move |asked| store.answer(asked)).await;
    let it = fixture();
    let refused = it.pull(&fake).await.expect_err("a layer that nobody reads");
    assert!(refused.kind() == Kind::Unimplemented && refused.to_string().contains("file system"), "{refused}");
}

#[test]
fn only_layers_are_applied_for_clients() {
    let it = fixture();
    let check = |media_type: &str| it.images.check_layer(&Descriptor::new(media_type, Digest::of("x"), 1));
    check(media_types::DOCKER_LAYER_GZIP).and_then(|()| check(media_types::OCI_LAYER)).expect("layers");
    for other in ["application/vnd.in-toto+json", media_types::OCI_CONFIG, media_types::EROFS_LAYER, "text/plain", ""] {
        assert_eq!(check(other).expect_err(other).kind(), Kind::Unimplemented, "{other}");
    }
}
