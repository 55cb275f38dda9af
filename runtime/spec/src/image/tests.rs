use super::*;
use crate::digest::Digest;
use crate::platform::Platform;

const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn manifest(extra: &str) -> String {
    format!(r#"{{"schemaVersion":2,"config":{{"mediaType":"c","digest":"{D}","size":7}},"layers":null{extra}}}"#)
}

#[test]
fn manifest_tolerates_go_and_refuses_ambiguity() {
    let parsed = Manifest::parse("", manifest("").as_bytes()).unwrap();
    assert_eq!((parsed.layers.len(), parsed.stored_size()), (0, 7));
    let both = manifest(r#","manifests":[]"#);
    for media_type in [media_types::OCI_MANIFEST, media_types::OCI_INDEX, "application/json"] {
        assert!(matches!(Document::parse(media_type, both.as_bytes()), Err(InvalidDocument::Ambiguous(_))));
    }
    let typed = manifest(&format!(r#","mediaType":"{}""#, media_types::OCI_INDEX));
    let error = Document::parse(media_types::OCI_MANIFEST, typed.as_bytes()).unwrap_err();
    assert!(matches!(error, InvalidDocument::MediaType { .. }), "{error}");
}

#[test]
fn an_artifact_is_known_by_its_configuration_or_its_kind_and_layers() {
    let is_artifact = |kind: &str, config: &str, layers: &[&str]| {
        let layer = |media_type: &&str| format!(r#"{{"mediaType":"{media_type}","digest":"{D}","size":1}}"#);
        let layers: Vec<String> = layers.iter().map(layer).collect();
        let text = format!(
            r#"{{"schemaVersion":2,{kind}"config":{{"mediaType":"{config}","digest":"{D}","size":7}},"layers":[{}]}}"#,
            layers.join(",")
        );
        Manifest::parse("", text.as_bytes()).unwrap().is_artifact()
    };
    let (kind, empty) = (r#""artifactType":"a/b","#, "application/vnd.oci.empty.v1+json");
    for image in [media_types::OCI_CONFIG, media_types::DOCKER_CONFIG, "application/octet-stream", ""] {
        assert!(!is_artifact("", image, &["text/plain"]), "{image}");
        assert!(is_artifact(kind, image, &[media_types::OCI_LAYER, "text/plain"]), "{image}");
        assert!(!is_artifact(kind, image, &[media_types::OCI_LAYER_GZIP]), "an image of a kind: {image}");
        assert!(!is_artifact(r#""artifactType":"","#, image, &["text/plain"]), "{image}");
    }
    assert!(is_artifact(kind, empty, &[]) && is_artifact("", "application/vnd.cncf.helm.config.v1+json", &["x"]));
    assert!(is_artifact("", empty, &[media_types::OCI_LAYER_GZIP]), "a packed directory is a file");
}

#[test]
fn document_kind_comes_from_the_media_type_or_the_fields() {
    let index = br#"{"schemaVersion":2,"manifests":[]}"#;
    for media_type in ["application/vnd.oci.image.index.v1+json; charset=utf-8", "application/json", ""] {
        assert!(matches!(Document::parse(media_type, index), Ok(Document::Index(_))), "{media_type}");
    }
    assert!(matches!(Document::parse("", manifest("").as_bytes()), Ok(Document::Manifest(_))));
    assert!(matches!(Document::parse("text/html", index), Err(InvalidDocument::Kind(_))));
    assert!(matches!(Document::parse("", b"<html>"), Err(InvalidDocument::Json { .. })));
    let schema1 = br#"{"schemaVersion":1,"name":"a","fsLayers":[]}"#;
    assert!(matches!(Document::parse("", schema1), Err(InvalidDocument::SchemaVersion(1))));
}

#[test]
fn sizes_and_digests_are_strict() {
    for bad in [r#"{"digest":"sha256:xx","size":1}"#.to_owned(), format!(r#"{{"digest":"{D}","size":-1}}"#)] {
        assert!(serde_json::from_str::<Descriptor>(&bad).is_err(), "{bad}");
    }
}

#[test]
fn index_selects_by_platform_and_skips_attestations() {
    let entry = |os: &str, architecture: &str, size: u64| {
        let mut entry = Descriptor::new(media_types::OCI_MANIFEST, Digest::of(architecture), size);
        entry.platform = Some(Platform::new(os, architecture, None));
        entry
    };
    let bare = Descriptor::new(media_types::OCI_MANIFEST, Digest::of("bare"), 4);
    let blob = Descriptor::new("application/octet-stream", Digest::of("blob"), 5);
    let index = Index::of(vec![
        bare,
        blob,
        entry("linux", "arm64", 1),
        entry("linux", "amd64", 2),
        entry("unknown", "unknown", 3),
    ]);
    let sizes = |wanted: &str| -> Vec<u64> {
        index.select(&Platform::parse(wanted).unwrap()).iter().map(|entry| entry.size).collect()
    };
    assert_eq!(sizes("linux/amd64"), [2, 4]);
    assert_eq!(sizes("linux/arm64/v8"), [1, 4]);
    assert_eq!(sizes("linux/s390x"), [4]);
    assert_eq!(index.platforms(), ["linux/arm64", "linux/amd64"]);
}

#[test]
fn config_reads_old_and_new_images() {
    let json = format!(
        r#"{{"architecture":"arm64","os":"linux","variant":"v8","created":null,
        "config":{{"Entrypoint":"/bin/app","Cmd":null,"Env":["A=1"],"Volumes":null,"ExposedPorts":{{"80/tcp":{{}}}}}},
        "rootfs":{{"type":"layers","diff_ids":["{D}"]}},"history":[{{"empty_layer":true}}]}}"#
    );
    let config = ImageConfig::parse(json.as_bytes()).unwrap();
    assert_eq!(config.config.entrypoint, ["/bin/app"]);
    assert_eq!(config.platform.variant.as_deref(), Some("v8"));
    assert_eq!(config.rootfs.diff_ids, [Digest::parse(D).unwrap()]);
    let none = ImageConfig::parse(br#"{"architecture":"amd64","os":"linux","config":null,"rootfs":null}"#).unwrap();
    assert_eq!(none.config, ContainerConfig::default());
    assert!(ImageConfig::parse(b"[]").is_err());
}

#[test]
fn chain_ids_build_on_their_parent() {
    let layers = [Digest::of("a"), Digest::of("b"), Digest::of("c")];
    let chain = chain_ids(&layers);
    assert_eq!(chain[0], layers[0]);
    assert_eq!(chain[1], Digest::of(format!("{} {}", layers[0], layers[1])));
    assert_eq!(chain[2], Digest::of(format!("{} {}", chain[1], layers[2])));
}

#[test]
fn media_types_classify() {
    let layer = |compression, foreign| Kind::Layer(Layer { compression, foreign });
    for (text, kind) in [
        (media_types::OCI_LAYER_ZSTD, layer(Compression::Zstd, false)),
        (media_types::DOCKER_LAYER_GZIP, layer(Compression::Gzip, false)),
        (media_types::DOCKER_FOREIGN_GZIP, layer(Compression::Gzip, true)),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", layer(Compression::Gzip, true)),
        ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", Kind::Encrypted),
        ("application/vnd.erofs.layer.v1+zstd", Kind::Erofs(Some(Compression::Zstd))),
        (media_types::EROFS, Kind::Erofs(Some(Compression::None))),
        ("application/vnd.erofs+lz4", Kind::Erofs(None)),
        ("application/vnd.erofs.chunk-index.v1", Kind::Other),
        (media_types::DOCKER_CONFIG, Kind::Config),
        ("application/vnd.in-toto+json", Kind::Other),
        (media_types::DOCKER_LIST, Kind::Index),
    ] {
        assert_eq!(Kind::of(text), kind, "{text}");
    }
    assert_eq!(Compression::sniff(&[0x1f, 0x8b, 8, 0]), Compression::Gzip);
    assert_eq!(Compression::sniff(&[0x28, 0xb5, 0x2f, 0xfd]), Compression::Zstd);
    assert_eq!(Compression::sniff(&[0x51, 0x2a, 0x4d, 0x18]), Compression::Zstd);
    assert_eq!(Compression::sniff(b"etc/"), Compression::None);
}
