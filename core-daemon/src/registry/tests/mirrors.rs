//! What a mirror's answers lead to, and who gets which account.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::error::Error;
use crate::registry::fake::patiently;

/// A reference at a registry that `mirror` stands in for, as hosts.toml says.
fn mirrored(dir: &std::path::Path, mirror: &str, upstream: &Fake, access: &Access) -> Repository {
    let host = dir.join(&upstream.address);
    std::fs::create_dir_all(&host).expect("directory");
    let text = format!("server = \"http://{}\"\n[host.\"{mirror}\"]\n", upstream.address);
    std::fs::write(host.join("hosts.toml"), text).expect("hosts.toml");
    let access = Access { config_path: Some(dir.to_owned()), ..access.clone() };
    repository(upstream, &access)
}

async fn upstream() -> Fake {
    Fake::start(|asked| match asked.header("authorization") {
        "Basic dTpw" => Answer::new(200, *b"manifest").with("content-type", media_types::OCI_MANIFEST),
        _ => Answer::new(401, "").with("www-authenticate", "Basic realm=x"),
    })
    .await
}

#[tokio::test]
async fn every_failure_of_a_mirror_leads_on_and_no_account_goes_there() {
    let upstream = upstream().await;
    let dir = tempfile::tempdir().expect("directory");
    for status in [401_u16, 403, 404, 429, 500, 502, 503] {
        let mirror = Fake::start(move |asked| {
            assert_eq!(asked.header("authorization"), "", "an account went to the mirror");
            let answer = Answer::new(status, "{}").with("retry-after", "0");
            if status == 401 { answer.with("www-authenticate", "Basic realm=mirror") } else { answer }
        })
        .await;
        let repository = mirrored(dir.path(), &format!("http://{}", mirror.address), &upstream, &account());
        let resolved = repository.resolve("1").await;
        assert_eq!(resolved.expect("upstream").descriptor.digest, Digest::of(b"manifest"), "{status}");
        assert!(mirror.seen()[0].contains("ns="), "{:?}", mirror.seen());
    }
    // Nobody there, and somebody who does not speak TLS.
    let silent = Fake::start(|_| Answer::new(200, "")).await;
    for mirror in ["http://127.0.0.1:1".to_owned(), format!("https://{}", silent.address)] {
        let repository = mirrored(dir.path(), &mirror, &upstream, &account());
        repository.resolve("1").await.expect(&mirror);
    }
}

#[tokio::test]
async fn a_broken_mirror_is_waited_for_only_where_all_are() {
    let upstream = upstream().await;
    let dir = tempfile::tempdir().expect("directory");
    let mirror = Fake::start(|_| Answer::new(503, "")).await;
    let repository = mirrored(dir.path(), &format!("http://{}", mirror.address), &upstream, &account());
    repository.resolve("1").await.expect("upstream");
    assert_eq!(mirror.seen().len(), 2, "by HEAD, and by GET for what is wrong");

    let upstream = Fake::start(|_| Answer::new(500, "").with("retry-after", "0")).await;
    let again = AtomicBool::new(false);
    let mirror = Fake::start(move |asked| match asked.method.as_str() {
        "GET" if !again.swap(true, Ordering::Relaxed) => Answer::new(503, ""),
        "HEAD" => Answer::new(503, "").with("retry-after", "0"),
        _ => Answer::new(200, *b"manifest").with("content-type", media_types::OCI_MANIFEST),
    })
    .await;
    let repository = mirrored(dir.path(), &format!("http://{}", mirror.address), &upstream, &account());
    repository.resolve("1").await.expect("the mirror has recovered");
}

#[tokio::test]
async fn wrong_documents_of_a_mirror_lead_on() {
    let answer = |bytes: &str| Answer::new(200, bytes).with("content-type", media_types::OCI_MANIFEST);
    let upstream = Fake::start(move |_| answer("document")).await;
    let dir = tempfile::tempdir().expect("directory");
    for sent in ["", "docu", "d0cument", "document and more"] {
        let mirror = Fake::start(move |_| answer(sent)).await;
        let repository = mirrored(dir.path(), &format!("http://{}", mirror.address), &upstream, &plain());
        let descriptor = Descriptor::new(media_types::OCI_MANIFEST, Digest::of(b"document"), 8);
        assert_eq!(repository.document(&descriptor).await.expect(sent), &b"document"[..]);
        assert_eq!(repository.small(&descriptor, 8).await.expect(sent), &b"document"[..]);
        assert_eq!(mirror.seen().len(), 2, "{sent:?}");
    }
}

#[tokio::test]
async fn a_page_in_place_of_a_manifest_leads_on() {
    let upstream =
        Fake::start(|_| Answer::new(200, *b"manifest").with("content-type", media_types::OCI_MANIFEST)).await;
    let dir = tempfile::tempdir().expect("directory");
    let digest = Digest::of(b"manifest").to_string();
    for (kind, page) in [("text/html", "<html>Sign in</html>"), ("application/json", r#"{"sign":"in"}"#), ("", "x")] {
        for status in [200, 405] {
            let mirror = Fake::start(move |asked| match asked.method.as_str() {
                "HEAD" => Answer::new(status, page).with("content-type", kind),
                _ => Answer::new(200, page).with("content-type", kind),
            })
            .await;
            let repository = mirrored(dir.path(), &format!("http://{}", mirror.address), &upstream, &plain());
            for object in ["1", &digest] {
                let resolved = repository.resolve(object).await.unwrap_or_else(|error| panic!("{kind}: {error}"));
                assert_eq!(resolved.descriptor.digest.to_string(), digest, "{kind}");
            }
        }
    }
    let page = Fake::start(|_| Answer::new(200, "<html>").with("content-type", "text/html")).await;
    let error = repository(&page, &plain()).resolve("1").await.expect_err("a page").to_string();
    assert!(error.contains("no manifest") && error.contains("text/html"), "{error}");
}

#[tokio::test]
async fn a_mirror_that_hangs_is_waited_for_once() {
    patiently(async |patience| {
        let (_open, gate) = tokio::sync::watch::channel(false);
        let mirror = Fake::start(move |asked| {
            let held = (asked.method == "GET").then(|| (0, gate.clone()));
            Answer { held, ..Answer::new(200, "document") }
        })
        .await;
        let document = || Answer::new(200, "document").with("content-type", media_types::OCI_MANIFEST);
        let upstream = Fake::start(move |_| document()).await;
        let dir = tempfile::tempdir().expect("directory");
        mirrored(dir.path(), &format!("http://{}", mirror.address), &upstream, &plain());
        let reference = Reference::parse(&format!("{}/a/b:1", upstream.address)).expect("reference");
        let registry = Registry::new(dir.path().to_owned()).with_patience(patience);
        let repository = registry.repository(&reference, &plain()).expect("repository");
        let asked = async |most: usize, pull: &Repository, descriptor: &Descriptor| -> Result<(), String> {
            let said = |error: Error| error.to_string();
            for _ in 0..5 {
                pull.document(descriptor).await.map_err(said)?;
                read(pull.blob(descriptor, 0, 0).await.map_err(said)?).await;
            }
            let seen = mirror.seen();
            if seen.len() == most { Ok(()) } else { Err(format!("{seen:?} instead of {most}")) }
        };
        let descriptor = repository.resolve("1").await.map_err(|error| error.to_string())?.descriptor;
        asked(2, &repository, &descriptor).await?;
        // Another pull asks it anew.
        asked(3, &registry.repository(&reference, &plain()).expect("repository"), &descriptor).await
    })
    .await;
}

#[tokio::test]
async fn a_mirror_that_has_it_is_enough() {
    let upstream = Fake::start(|_| Answer::new(500, "")).await;
    let mirror = Fake::start(|_| Answer::new(200, *b"manifest").with("content-type", media_types::OCI_MANIFEST)).await;
    let dir = tempfile::tempdir().expect("directory");
    let repository = mirrored(dir.path(), &format!("http://{}", mirror.address), &upstream, &account());
    repository.resolve("1").await.expect("mirror");
    assert_eq!(upstream.seen(), [""; 0]);
}

#[tokio::test]
async fn where_all_fail_the_registry_itself_is_heard() {
    let upstream = Fake::start(|_| Answer::new(404, "").with("retry-after", "0")).await;
    let mirror = Fake::start(|_| Answer::new(403, "")).await;
    let dir = tempfile::tempdir().expect("directory");
    let repository = mirrored(dir.path(), &format!("http://{}", mirror.address), &upstream, &account());
    assert_eq!(repository.resolve("1").await.expect_err("nowhere").kind(), Kind::NotFound);
}

#[derive(Debug)]
struct Known {
    host: String,
    /// Whether it was asked with the challenge of a registry that has refused a call.
    challenged: AtomicBool,
}

#[tonic::async_trait]
impl Keyring for Known {
    async fn account(&self, host: &str, challenges: &[String]) -> Result<Option<Credentials>> {
        // None where nobody has answered yet: the account that would be used is to be shown.
        assert!(challenges.iter().all(|challenge| challenge.starts_with("Basic")), "{challenges:?}");
        self.challenged.fetch_or(!challenges.is_empty(), Ordering::Relaxed);
        Ok((host == self.host).then(|| Credentials::password("m", "n")))
    }
}

#[tokio::test]
async fn a_cache_has_an_account_of_its_own() {
    let upstream = Fake::start(|_| Answer::new(404, "")).await;
    let mirror = Fake::start(|asked| match asked.header("authorization") {
        "Basic bTpu" => Answer::new(200, *b"manifest").with("content-type", media_types::OCI_MANIFEST),
        _ => Answer::new(401, "").with("www-authenticate", "Basic realm=cache"),
    })
    .await;
    let dir = tempfile::tempdir().expect("directory");
    let known = Arc::new(Known { host: mirror.address.clone(), challenged: AtomicBool::new(false) });
    let access = Access { keyring: Some(Arc::clone(&known) as Arc<dyn Keyring>), ..account() };
    let repository = mirrored(dir.path(), &format!("http://{}", mirror.address), &upstream, &access);
    repository.resolve("1").await.expect("cache");
    assert!(known.challenged.load(Ordering::Relaxed), "asked without a challenge");
    let shown = repository.explain("1").await;
    assert!(shown[0].mirror && shown[0].outcome.is_ok() && !shown[1].mirror && shown[1].outcome.is_err());
    assert_eq!(shown[1].account, "user u");
}
