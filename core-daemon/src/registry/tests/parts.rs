//! Answers that break off, and parts that are not what was asked for.

use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine as _;

use super::*;

#[tokio::test]
async fn what_is_small_is_asked_for_again_where_it_breaks_off() {
    let asked = AtomicUsize::new(0);
    let fake = Fake::start(move |_| {
        let answer = Answer::new(200, *b"document").with("content-type", media_types::OCI_MANIFEST);
        let cut = asked.fetch_add(1, Ordering::Relaxed).is_multiple_of(2).then_some(3);
        Answer { cut, ..answer }
    })
    .await;
    let repository = repository(&fake, &plain());
    let descriptor = Descriptor::new(media_types::OCI_MANIFEST, Digest::of(b"document"), 8);
    assert_eq!(repository.document(&descriptor).await.expect("document"), &b"document"[..]);
    assert_eq!(repository.small(&descriptor, 8).await.expect("blob"), &b"document"[..]);
    assert_eq!(fake.seen().len(), 4);
    let error = repository.small(&descriptor, 7).await.expect_err("too long");
    assert_eq!(error.kind(), Kind::DataLoss, "{error}");
}

/// Else what is stored of a blob would keep it from ever being fetched.
#[tokio::test]
async fn a_registry_that_gives_another_part_is_asked_for_the_whole() {
    for (status, range) in [(416, ""), (206, ""), (206, "bytes 0-3/4"), (206, "bytes 3-3/4")] {
        let fake = Fake::start(move |asked| match asked.header("range") {
            "" => Answer::new(200, *b"blob"),
            _ => Answer::new(status, *b"blob").with("content-range", range),
        })
        .await;
        let descriptor = Descriptor::new("", Digest::of(b"blob"), 4);
        let blob = repository(&fake, &plain()).blob(&descriptor, 2, 0).await.expect("blob");
        assert_eq!(blob.offset, 0, "{status} {range}");
        assert_eq!(read(blob).await, b"blob");
        let mut elsewhere = descriptor.clone();
        elsewhere.urls = vec![format!("http://{}/there", fake.address)];
        let blob = repository(&fake, &plain()).blob(&elsewhere, 2, 0).await.expect("blob");
        assert_eq!((blob.offset, read(blob).await), (0, b"blob".to_vec()), "{status} {range}");
        assert_eq!(fake.seen()[2..], ["GET /there"; 2]);
    }
}

#[tokio::test]
async fn what_a_descriptor_has_in_itself_is_not_fetched() {
    let fake = Fake::start(|_| Answer::new(200, *b"blob")).await;
    let repository = repository(&fake, &plain());
    let mut descriptor = Descriptor::new("", Digest::of(b"blob"), 4);
    descriptor.data = base64::engine::general_purpose::STANDARD.encode("blob");
    assert_eq!(read(repository.blob(&descriptor, 2, 0).await.expect("blob")).await, b"blob");
    assert_eq!(repository.document(&descriptor).await.expect("document"), &b"blob"[..]);
    assert!(fake.seen().is_empty(), "{:?}", fake.seen());
    for lie in ["", "!", "YmxvYg", "YmxvYi4=", "YmxvYw=="] {
        lie.clone_into(&mut descriptor.data);
        assert_eq!(read(repository.blob(&descriptor, 0, 0).await.expect("blob")).await, b"blob", "{lie}");
    }
    assert_eq!(fake.seen().len(), 5);
}

/// A registry of one's own network has a name too, and its storage or its token service may have none.
#[test]
fn a_registry_that_is_near_may_send_to_private_addresses() {
    let may = |is_near: bool, to: &str| {
        let url = |text: &str| text.parse::<reqwest::Url>().expect("address");
        reach::check_elsewhere(&url("http://registry.lan/v2/"), is_near, &url(to)).is_ok()
    };
    assert!(may(true, "http://10.0.0.5:9000/bucket/blob") && !may(false, "http://10.0.0.5:9000/bucket/blob"));
    assert!(!may(true, "http://169.254.169.254/latest"));
}
