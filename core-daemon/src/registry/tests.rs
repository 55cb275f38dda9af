use rung_spec::digest::Digest;
use rung_spec::image::{Descriptor, media_types};
use rung_spec::reference::Reference;

use super::fake::{Answer, Fake};
use super::*;
use crate::error::Kind;

fn repository(fake: &Fake, access: &Access) -> Repository {
    let reference = Reference::parse(&format!("{}/a/b:1", fake.address)).expect("reference");
    Registry::new(PathBuf::from("/nonexistent")).repository(&reference, access).expect("repository")
}

fn plain() -> Access {
    Access { plain_http: true, ..Access::default() }
}

fn account() -> Access {
    let credentials = Some(Credentials::password("u", "p"));
    Access { credentials, ..plain() }
}

async fn read(mut blob: BlobStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Some(piece) = blob.next().await.expect("piece") {
        bytes.extend_from_slice(&piece);
    }
    bytes
}

#[tokio::test]
async fn a_tag_is_resolved_by_its_headers_alone() {
    let digest = Digest::of(b"manifest");
    let wanted = digest.to_string();
    let fake = Fake::start(move |_| {
        Answer::new(200, *b"manifest")
            .with("content-type", media_types::OCI_MANIFEST)
            .with("docker-content-digest", wanted.clone())
    })
    .await;
    let resolved = repository(&fake, &plain()).resolve("1").await.expect("resolve");
    assert_eq!(resolved.descriptor, Descriptor::new(media_types::OCI_MANIFEST, digest, 8));
    assert!(resolved.bytes.is_none());
    assert_eq!(fake.seen(), ["HEAD /v2/a/b/manifests/1"]);
}

#[tokio::test]
async fn without_a_digest_header_the_document_is_hashed() {
    let fake = Fake::start(|_| Answer::new(200, *b"manifest").with("content-type", media_types::OCI_MANIFEST)).await;
    let repository = repository(&fake, &plain());
    let resolved = repository.resolve("1").await.expect("resolve");
    assert_eq!(resolved.descriptor.digest, Digest::of(b"manifest"));
    assert_eq!(resolved.bytes.as_deref(), Some(&b"manifest"[..]));
    let wrong = Digest::of(b"other").to_string();
    let error = repository.document(&Descriptor::new("", Digest::parse(&wrong).expect("digest"), 8)).await;
    assert_eq!(error.expect_err("wrong document").kind(), Kind::DataLoss);
}

#[tokio::test]
async fn who_speaks_no_tls_is_asked_once_whether_he_does() {
    let fake = Fake::start(|_| Answer::new(200, *b"document").with("content-type", media_types::OCI_MANIFEST)).await;
    let repository = repository(&fake, &Access::default());
    let document = Descriptor::new("", Digest::of(b"document"), 8);
    for _ in 0..10 {
        repository.document(&document).await.expect("document");
    }
    let connections = fake.connections.load(std::sync::atomic::Ordering::Relaxed);
    assert!((2..6).contains(&connections), "{connections} connections for ten documents");
}

#[tokio::test]
async fn a_bearer_token_is_fetched_once_and_renewed_when_refused() {
    let fake = Fake::start(|asked| match (asked.path.as_str(), asked.header("authorization")) {
        (path, _) if path.starts_with("/token") => Answer::new(200, *br#"{"access_token":"t","expires_in":300}"#),
        (_, "Bearer t") => Answer::new(200, *b"blob"),
        _ => {
            let realm = format!("http://{}/token", asked.header("host"));
            Answer::new(401, "").with("www-authenticate", format!("Bearer realm=\"{realm}\",service=\"s\""))
        }
    })
    .await;
    let repository = repository(&fake, &plain());
    let descriptor = Descriptor::new("", Digest::of(b"blob"), 4);
    for _ in 0..2 {
        assert_eq!(read(repository.blob(&descriptor, 0, 0).await.expect("blob")).await, b"blob");
    }
    let seen = fake.seen();
    assert_eq!(seen.iter().filter(|line| line.contains("/token")).count(), 1, "{seen:?}");
    assert!(seen[1].contains("scope=repository%3Aa%2Fb%3Apull"), "{seen:?}");
}

#[tokio::test]
async fn an_account_is_tried_by_form_and_then_by_header() {
    let fake = Fake::start(|asked| match (asked.method.as_str(), asked.path.as_str()) {
        ("POST", "/token") => Answer::new(404, ""),
        ("GET", path) if path.starts_with("/token") => {
            assert_eq!(asked.header("authorization"), "Basic dTpw");
            Answer::new(200, *br#"{"token":"t"}"#)
        }
        _ if asked.header("authorization") == "Bearer t" => Answer::new(200, *b"blob"),
        _ => {
            let realm = format!("http://{}/token", asked.header("host"));
            Answer::new(401, "").with("www-authenticate", format!("Bearer realm=\"{realm}\""))
        }
    })
    .await;
    let repository = repository(&fake, &account());
    read(repository.blob(&Descriptor::new("", Digest::of(b"blob"), 4), 0, 0).await.expect("blob")).await;
    let form = String::from_utf8(fake.requests()[1].body.clone()).expect("form");
    assert!(form.contains("grant_type=password") && form.contains("username=u"), "{form}");
}

#[tokio::test]
async fn credentials_do_not_follow_a_redirect_to_another_host() {
    let elsewhere = Fake::start(|asked| {
        assert_eq!(asked.header("authorization"), "");
        Answer::new(200, *b"blob")
    })
    .await;
    let to = format!("http://{}/x", elsewhere.address);
    let fake = Fake::start(move |asked| match asked.header("authorization") {
        "Basic dTpw" => Answer::new(307, "").with("location", to.clone()),
        _ => Answer::new(401, "").with("www-authenticate", "Basic realm=x"),
    })
    .await;
    let repository = repository(&fake, &account());
    let blob = repository.blob(&Descriptor::new("", Digest::of(b"blob"), 4), 0, 0).await.expect("blob");
    assert_eq!(read(blob).await, b"blob");
    assert_eq!(elsewhere.seen(), ["GET /x"]);
}

#[tokio::test]
async fn a_blob_is_first_looked_for_where_its_descriptor_says() {
    let elsewhere = Fake::start(|asked| {
        assert_eq!(asked.header("authorization"), "");
        if asked.path == "/gone" { Answer::new(404, "") } else { Answer::new(200, *b"blob") }
    })
    .await;
    let fake = Fake::start(|asked| match asked.header("authorization") {
        "Basic dTpw" => Answer::new(200, *b"blob"),
        _ => Answer::new(401, "").with("www-authenticate", "Basic realm=x"),
    })
    .await;
    let repository = repository(&fake, &account());
    let mut descriptor = Descriptor::new("", Digest::of(b"blob"), 4);
    let at = |path: &str| format!("http://{}{path}", elsewhere.address);
    descriptor.urls = vec!["file:///etc/passwd".into(), "http://169.254.169.254/x".into(), at("/gone"), at("/there")];
    assert_eq!(read(repository.blob(&descriptor, 0, 0).await.expect("blob")).await, b"blob");
    assert_eq!((elsewhere.seen(), fake.seen()), (vec!["GET /gone".to_owned(), "GET /there".to_owned()], vec![]));
    descriptor.urls = vec![at("/gone")];
    assert_eq!(read(repository.blob(&descriptor, 0, 0).await.expect("blob")).await, b"blob");
    assert_eq!(fake.seen().len(), 2, "asked without and with an account");
}

#[test]
fn public_registries_do_not_lead_to_private_addresses() {
    let url = |text: &str| text.parse::<reqwest::Url>().expect("address");
    let may = |from: &str, to: &str| {
        let from = url(from);
        reach::check_elsewhere(&from, reach::is_private(&from), &url(to)).is_ok()
    };
    assert!(may("https://r.io/v2/", "https://cdn.io/x"));
    assert!(may("http://127.0.0.1:5000/v2/", "http://127.0.0.1:5001/x"));
    for to in [
        "https://127.0.0.1/x",
        "https://10.0.0.1/x",
        "https://169.254.169.254/x",
        "https://[::1]/x",
        "https://[::ffff:127.0.0.1]/x",
        "https://localhost/x",
        "http://cdn.io/x",
        "ftp://cdn.io/x",
        "https://0.0.0.0/x",
        "https://2130706433/x",
        "https://[fd00::1]/x",
        "https://localhost./x",
        "https://100.64.0.1/x",
        "https://[64:ff9b::7f00:1]/x",
    ] {
        assert!(!may("https://r.io/v2/", to), "{to}");
    }
    assert!(!may("http://10.0.0.1/v2/", "http://169.254.169.254/x"));
    assert!(may("http://169.254.169.254/v2/", "http://169.254.169.254/x"));
}

#[tokio::test]
async fn failures_say_what_to_do() {
    let fake = Fake::start(|asked| match asked.path.as_str() {
        "/v2/a/b/manifests/none" => Answer::new(404, ""),
        "/v2/a/b/manifests/secret" => Answer::new(403, *br#"{"errors":[{"code":"DENIED","message":"not yours"}]}"#),
        _ => Answer::new(401, "").with("www-authenticate", "Basic realm=x"),
    })
    .await;
    let repository = repository(&fake, &plain());
    for (object, kind, text) in [
        ("none", Kind::NotFound, "check the name"),
        ("secret", Kind::PermissionDenied, "not yours"),
        ("login", Kind::Unauthenticated, "wants a user name"),
    ] {
        let error = repository.resolve(object).await.expect_err(object);
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(text), "{error}");
    }
    let closed = Reference::parse("127.0.0.1:1/a:1").expect("reference");
    let repository = Registry::new(PathBuf::new()).repository(&closed, &plain()).expect("repository");
    let error = repository.resolve("1").await.expect_err("nobody listens");
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.to_string().contains("connection refused; check that it is running"), "{error}");
}

#[tokio::test]
async fn loopback_registries_without_tls_are_found() {
    let fake = Fake::start(|_| Answer::new(200, *b"m").with("content-type", media_types::OCI_MANIFEST)).await;
    repository(&fake, &Access::default()).resolve("1").await.expect("resolve");
}

#[tokio::test]
async fn a_mirror_is_tried_first_without_the_account_and_the_registry_after_it() {
    let mirror = Fake::start(|asked| {
        assert_eq!(asked.header("authorization"), "");
        let ask = || Answer::new(401, "").with("www-authenticate", "Basic realm=x");
        if asked.path.contains("manifests") { ask() } else { Answer::new(200, *b"blob") }
    })
    .await;
    let fake = Fake::start(|asked| match asked.header("authorization") {
        "Basic dTpw" => Answer::new(200, *b"m").with("content-type", media_types::OCI_MANIFEST),
        _ => Answer::new(401, "").with("www-authenticate", "Basic realm=x"),
    })
    .await;
    let dir = tempfile::tempdir().expect("temporary directory");
    let of_host = dir.path().join(&fake.address);
    std::fs::create_dir(&of_host).expect("directory");
    let text = format!("[host.\"http://{}/cache\"]\n", mirror.address);
    std::fs::write(of_host.join("hosts.toml"), text).expect("file");
    let access = Access { config_path: Some(dir.path().to_owned()), ..account() };
    let repository = repository(&fake, &access);
    repository.resolve("1").await.expect("resolve");
    let blob = repository.blob(&Descriptor::new("", Digest::of(b"blob"), 4), 0, 0).await.expect("blob");
    assert_eq!(read(blob).await, b"blob");
    let seen = mirror.seen();
    assert!(seen[0].starts_with("HEAD /cache/v2/a/b/manifests/1?ns=127.0.0.1"), "{seen:?}");
    assert!(!fake.seen().iter().any(|line| line.contains("/blobs/")), "{:?}", fake.seen());
}

#[tokio::test]
async fn a_busy_registry_is_asked_again() {
    let tries = std::sync::atomic::AtomicU32::new(0);
    let fake = Fake::start(move |_| match tries.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
        0 => Answer::new(429, "").with("retry-after", "0"),
        1 => Answer::new(503, "").with("retry-after", "0"),
        _ => Answer::new(200, *b"blob"),
    })
    .await;
    let blob = repository(&fake, &plain()).blob(&Descriptor::new("", Digest::of(b"blob"), 4), 0, 0).await;
    assert_eq!(read(blob.expect("blob")).await, b"blob");
    assert_eq!(fake.seen().len(), 3);
}

mod hostile;
mod mirrors;
mod parts;
mod push;
mod slices;
