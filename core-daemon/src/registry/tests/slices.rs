//! Slices: only what was asked for counts.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

/// The right answer to who asks for bytes 2 and 3 of four.
fn right() -> Answer {
    Answer::new(206, *b"ob").with("content-range", "bytes 2-3/4").with("etag", "\"one\"")
}

/// What a server sends as a slice, that answers so where a slice is wanted.
async fn slice(first: bool, answer: impl Fn(usize) -> Answer + Send + Sync + 'static) -> (Result<bytes::Bytes>, usize) {
    let asked_for = AtomicUsize::new(0);
    let fake = Fake::start(move |asked| match asked.header("range") {
        "" => Answer::new(200, *b"blob").with("etag", "\"one\""),
        range => {
            assert!(["bytes=2-3", "bytes=3-3"].contains(&range), "{range}");
            answer(asked_for.fetch_add(1, Ordering::Relaxed))
        }
    })
    .await;
    let blob = repository(&fake, &plain()).blob(&Descriptor::new("", Digest::of(b"blob"), 4), 0, 0).await;
    let slices = blob.expect("blob").slices().expect("slices");
    (slices.fetch(2..4, first).await, fake.seen().len() - 1)
}

#[tokio::test]
async fn what_was_asked_for_is_a_slice_and_nothing_else_is() {
    let (bytes, _) = slice(true, |_| right()).await;
    assert_eq!(bytes.expect("slice"), &b"ob"[..]);
    let range = |range: &str| Answer::new(206, *b"ob").with("content-range", range);
    let wrong = [
        Answer::new(200, *b"blob"),
        Answer::new(200, *b"ob").with("content-range", "bytes 2-3/4"),
        Answer::new(416, ""),
        Answer::new(404, ""),
        Answer::new(206, *b"ob"),
        range("bytes 1-2/4"),
        range("bytes 2-2/4"),
        range("bytes 2-3/5"),
        range("bytes 2-3/*"),
        range("bytes 2-3/4").with("etag", "\"other\""),
        range("bytes 2-3/4").with("content-encoding", "gzip"),
        Answer { body: b"obl".to_vec(), ..right() },
    ];
    for answer in wrong {
        for first in [true, false] {
            let (told, sent) = (format!("{answer:?}"), answer.clone());
            let (bytes, asked) = slice(first, move |_| sent.clone()).await;
            assert!(bytes.is_err() && asked == 1, "{told}: {bytes:?}, asked {asked} times");
        }
    }
}

#[tokio::test]
async fn a_slice_that_breaks_off_is_gone_on_with_unless_it_is_the_first() {
    let broken = |number: usize| match number {
        0 => Answer { cut: Some(1), ..right() },
        1 => Answer::new(503, "").with("retry-after", "0"),
        2 => Answer::new(429, "").with("retry-after", "0"),
        _ => Answer::new(206, *b"b").with("content-range", "bytes 3-3/4"),
    };
    let (bytes, asked) = slice(false, broken).await;
    assert_eq!((bytes.expect("slice"), asked), (bytes::Bytes::from_static(b"ob"), 4));
    for number in 0..3 {
        let (bytes, asked) = slice(true, move |_| broken(number)).await;
        assert!(bytes.is_err() && asked == 1, "{number}: {bytes:?}, asked {asked} times");
    }
}

/// Where they come from is asked with the account; where that sends us is not.
#[tokio::test]
async fn slices_take_no_account_along_a_redirect() {
    let storage = Fake::start(|asked| match asked.header("range") {
        "" => Answer::new(200, *b"blob"),
        _ => right(),
    })
    .await;
    let to = format!("http://{}/x?signature=1", storage.address);
    let fake = Fake::start(move |asked| match asked.header("authorization") {
        "" => Answer::new(401, "").with("www-authenticate", "Basic realm=r"),
        _ => Answer::new(307, "").with("location", to.clone()),
    })
    .await;
    let blob = repository(&fake, &account()).blob(&Descriptor::new("", Digest::of(b"blob"), 4), 0, 0).await;
    let slices = blob.expect("blob").slices().expect("slices");
    assert_eq!(slices.fetch(2..4, false).await.expect("slice"), &b"ob"[..]);
    assert_eq!(fake.requests().last().expect("request").header("authorization"), "Basic dTpw");
    assert_eq!(storage.seen(), ["GET /x?signature=1"; 2]);
    assert!(storage.requests().iter().all(|asked| asked.header("authorization").is_empty()));
}

#[tokio::test]
async fn who_gives_no_slices_is_not_asked_for_any() {
    let whole = || Answer::new(200, *b"blob");
    for (answer, size) in [
        (whole(), 5),
        (whole().with("accept-ranges", "none"), 4),
        (whole().with("content-encoding", "gzip"), 4),
        (Answer::new(206, *b"blob").with("content-range", "bytes 0-3/9"), 4),
    ] {
        let told = format!("{answer:?}");
        let fake = Fake::start(move |_| answer.clone()).await;
        let blob = repository(&fake, &plain()).blob(&Descriptor::new("", Digest::of(b"blob"), size), 0, 0).await;
        assert!(blob.expect("blob").slices().is_none(), "{told}");
    }
}
