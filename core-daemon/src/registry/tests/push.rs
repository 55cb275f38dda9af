//! Writing to registries that do as the specification says, and to some that do not.

use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

use super::*;

fn blob(bytes: &[u8]) -> (Descriptor, Arc<std::fs::File>) {
    let mut file = tempfile::tempfile().expect("file");
    file.write_all(bytes).expect("write");
    (Descriptor::new("", Digest::of(bytes), bytes.len() as u64), Arc::new(file))
}

fn nobody() -> Sent {
    Arc::new(|_| {})
}

async fn upload(pusher: &Pusher, bytes: &[u8]) -> Result<()> {
    let (descriptor, file) = blob(bytes);
    match pusher.room(&descriptor.digest, None).await? {
        Room::At(url) => pusher.upload(url, &descriptor, &file, &nobody()).await,
        Room::Mounted => panic!("mounted from nowhere"),
    }
}

#[tokio::test]
async fn a_blob_is_sent_whole_to_where_the_registry_says() {
    let fake = Fake::start(|asked| match asked.method.as_str() {
        "POST" => Answer::new(202, "").with("location", "/v2/a/b/blobs/uploads/1?state=x%2By"),
        "PUT" => {
            assert_eq!(asked.body, b"some bytes");
            assert!(asked.path.contains("state=x%2By") && asked.path.contains("digest=sha256%3A"), "{}", asked.path);
            Answer::new(201, "")
        }
        "HEAD" => Answer::new(404, ""),
        _ => Answer::new(200, ""),
    })
    .await;
    let pusher = repository(&fake, &plain()).pusher().await.expect("pusher");
    assert!(!pusher.has(&Digest::of(b"some bytes")).await.expect("look"));
    upload(&pusher, b"some bytes").await.expect("upload");
}

#[tokio::test]
async fn a_blob_is_mounted_or_else_there_is_room_for_it() {
    let fake = Fake::start(|asked| match (asked.method.as_str(), asked.path.as_str()) {
        ("POST", path) if path.contains("from=has%2Fit") => Answer::new(201, ""),
        ("POST", path) if path.contains("from=is%2Fsecret") => Answer::new(401, ""),
        ("POST", _) => Answer::new(202, "").with("location", "/v2/a/b/blobs/uploads/1"),
        _ => Answer::new(200, ""),
    })
    .await;
    let pusher = repository(&fake, &plain()).pusher().await.expect("pusher");
    let digest = Digest::of(b"x");
    assert!(matches!(pusher.room(&digest, Some("has/it")).await.expect("mount"), Room::Mounted));
    assert!(matches!(pusher.room(&digest, Some("is/secret")).await.expect("room"), Room::At(_)));
}

#[tokio::test]
async fn a_registry_that_wants_a_pause_before_an_upload_gets_it() {
    let (asked_for, put) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let fake = Fake::start(move |asked| match asked.method.as_str() {
        "POST" => match asked_for.fetch_add(1, Ordering::Relaxed) {
            0 => Answer::new(429, "").with("retry-after", "0"),
            1 => Answer::new(503, "").with("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT"),
            _ => Answer::new(202, "").with("location", "/v2/a/b/blobs/uploads/1"),
        },
        "PUT" if put.fetch_add(1, Ordering::Relaxed) == 0 => Answer::new(429, "").with("retry-after", "1"),
        "PUT" => Answer::new(201, ""),
        _ => Answer::new(200, ""),
    })
    .await;
    let pusher = repository(&fake, &plain()).pusher().await.expect("pusher");
    let begun = std::time::Instant::now();
    upload(&pusher, b"x").await.expect("upload");
    assert!(begun.elapsed().as_secs() >= 1, "it did not wait as long as it was told to");
    assert_eq!(count(&fake, "POST"), 3, "{:?}", fake.seen());
    // To where there was room before.
    assert_eq!(count(&fake, "PUT"), 2, "{:?}", fake.seen());
}

fn count(fake: &Fake, method: &str) -> usize {
    fake.seen().iter().filter(|line| line.starts_with(method)).count()
}

#[tokio::test]
async fn an_upload_elsewhere_gets_no_account() {
    let elsewhere = Fake::start(|asked| {
        assert_eq!(asked.header("authorization"), "");
        Answer::new(201, "")
    })
    .await;
    let to = format!("http://{}/up", elsewhere.address);
    let fake = Fake::start(move |asked| match (asked.header("authorization"), asked.method.as_str()) {
        ("Basic dTpw", "POST") => Answer::new(202, "").with("location", to.clone()),
        ("Basic dTpw", _) => Answer::new(200, ""),
        _ => Answer::new(401, "").with("www-authenticate", "Basic realm=x"),
    })
    .await;
    let pusher = repository(&fake, &account()).pusher().await.expect("pusher");
    upload(&pusher, b"x").await.expect("upload");
    assert!(elsewhere.seen()[0].starts_with("PUT /up?digest="), "{:?}", elsewhere.seen());
}

#[tokio::test]
async fn a_large_blob_goes_on_in_pieces_where_the_connection_broke() {
    let bytes: Vec<u8> = (0..5_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let stored = Arc::new(Mutex::new(Vec::new()));
    let (kept, patches) = (stored.clone(), AtomicUsize::new(0));
    let fake = Fake::start(move |asked| {
        let mut kept = kept.lock().expect("lock");
        let place = "/v2/a/b/blobs/uploads/1";
        let range = |length: usize| format!("0-{}", length.saturating_sub(1));
        match asked.method.as_str() {
            "POST" => Answer::new(202, "").with("location", place).with("oci-chunk-min-length", "18000000"),
            // Whole it never arrives.
            "PUT" if !asked.body.is_empty() => Answer::new(503, ""),
            "PUT" => Answer::new(201, ""),
            "PATCH" => {
                let half = asked.body.len() / 2;
                let nth = patches.fetch_add(1, Ordering::Relaxed);
                if nth == 1 {
                    return Answer::new(429, "").with("retry-after", "0");
                }
                // The first piece arrives by half, and its answer not at all.
                let first = nth == 0;
                kept.extend_from_slice(if first { &asked.body[..half] } else { &asked.body });
                if first {
                    return Answer::new(503, "");
                }
                Answer::new(202, "").with("location", place).with("range", range(kept.len()))
            }
            "GET" if asked.path == place => {
                Answer::new(204, "").with("location", place).with("range", range(kept.len()))
            }
            _ => Answer::new(200, ""),
        }
    })
    .await;
    let pusher = repository(&fake, &plain()).pusher().await.expect("pusher");
    upload(&pusher, &bytes).await.expect("upload");
    assert!(*stored.lock().expect("lock") == bytes, "the registry has something else");
    assert_eq!(count(&fake, "PATCH"), 3, "{:?}", fake.seen());
    let requests = fake.requests();
    let first = requests.iter().find(|asked| asked.method == "PATCH").map_or(0, |asked| asked.body.len());
    assert_eq!(first, 18_000_000, "as large as the registry wants them");
}

#[tokio::test]
async fn a_registry_that_loses_what_it_took_is_not_sent_it_for_ever() {
    let bytes = vec![7; 20_000_000];
    for range in ["0-0", "0-18446744073709551615"] {
        let patches = AtomicUsize::new(0);
        let fake = Fake::start(move |asked| {
            let place = "/v2/a/b/blobs/uploads/1";
            match asked.method.as_str() {
                "POST" => Answer::new(202, "").with("location", place),
                "PUT" => Answer::new(503, ""),
                // Every other piece is taken, and then there is nothing.
                "PATCH" if patches.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) => {
                    Answer::new(202, "").with("location", place).with("range", format!("0-{}", asked.body.len() - 1))
                }
                "PATCH" => Answer::new(416, ""),
                "GET" if asked.path == place => Answer::new(204, "").with("location", place).with("range", range),
                _ => Answer::new(200, ""),
            }
        })
        .await;
        let pusher = repository(&fake, &plain()).pusher().await.expect("pusher");
        let error = upload(&pusher, &bytes).await.expect_err("it keeps nothing");
        assert!(error.to_string().contains("does not keep what it is sent"), "{error}");
        assert!(count(&fake, "PATCH") <= 10, "{:?}", fake.seen());
    }
}

#[tokio::test]
async fn a_document_must_be_stored_as_it_is() {
    let fake = Fake::start(|asked| match asked.method.as_str() {
        "PUT" if asked.path.ends_with("/changed") => {
            Answer::new(201, "").with("docker-content-digest", Digest::of(b"another").to_string())
        }
        "PUT" => {
            assert_eq!(asked.header("content-type"), media_types::OCI_MANIFEST);
            Answer::new(201, "").with("oci-subject", "x")
        }
        _ => Answer::new(200, ""),
    })
    .await;
    let pusher = repository(&fake, &plain()).pusher().await.expect("pusher");
    let bytes = Bytes::from_static(b"document");
    let document = Descriptor::new(media_types::OCI_MANIFEST, Digest::of(&bytes), bytes.len() as u64);
    assert!(pusher.put("1", &document, bytes.clone()).await.expect("put"));
    assert_eq!(pusher.put("changed", &document, bytes).await.expect_err("changed").kind(), Kind::DataLoss);
}

#[tokio::test]
async fn referrers_are_listed_and_entered_by_tag_where_the_registry_keeps_none() {
    let subject = Digest::of(b"image");
    let tag = format!("/v2/a/b/manifests/sha256-{}", subject.hex());
    let index = Arc::new(Mutex::new(None::<Vec<u8>>));
    let kept = index.clone();
    let fake = Fake::start(move |asked| match (asked.method.as_str(), asked.path.as_str()) {
        (_, path) if path.contains("/referrers/") => Answer::new(404, ""),
        ("GET", path) if path == tag => match kept.lock().expect("lock").clone() {
            Some(index) => Answer::new(200, index).with("content-type", media_types::OCI_INDEX),
            None => Answer::new(404, ""),
        },
        ("PUT", path) if path == tag => {
            *kept.lock().expect("lock") = Some(asked.body.clone());
            Answer::new(201, "")
        }
        _ => Answer::new(200, ""),
    })
    .await;
    let repository = repository(&fake, &plain());
    assert!(repository.referrers(&subject, None).await.expect("none").is_empty());
    let pusher = repository.pusher().await.expect("pusher");
    let mut artifact = Descriptor::new(media_types::OCI_MANIFEST, Digest::of(b"signature"), 9);
    artifact.artifact_type = Some("a/signature".to_owned());
    for _ in 0..2 {
        pusher.refer(&subject, &artifact).await.expect("enter");
    }
    assert_eq!(repository.referrers(&subject, Some("a/signature")).await.expect("one"), [artifact]);
    assert!(repository.referrers(&subject, Some("other")).await.expect("none").is_empty());
}
