//! Registries that are after accounts, private addresses and memory.

use super::*;

fn blob() -> Descriptor {
    Descriptor::new("", Digest::of(b"blob"), 4)
}

/// A server that wants an account for everything.
async fn greedy() -> Fake {
    Fake::start(|_| Answer::new(401, "").with("www-authenticate", "Basic realm=evil")).await
}

#[tokio::test]
async fn only_the_registry_itself_may_ask_for_its_account() {
    let greedy = greedy().await;
    let to = format!("http://{}/x", greedy.address);
    let fake = Fake::start(move |asked| match asked.method.as_str() {
        "POST" => Answer::new(202, "").with("location", to.clone()),
        _ if asked.path == "/v2/" => Answer::new(200, ""),
        _ => Answer::new(307, "").with("location", to.clone()),
    })
    .await;
    let repository = repository(&fake, &account());
    let error = repository.blob(&blob(), 0, 0).await.err().expect("no account");
    assert_eq!(error.kind(), Kind::Unauthenticated);
    repository.resolve("1").await.expect_err("no account");
    let pusher = repository.pusher().await.expect("pusher");
    let Room::At(url) = pusher.room(&Digest::of(b"blob"), None).await.expect("room") else { panic!("mounted") };
    let file = Arc::new(tempfile::tempfile().expect("file"));
    let empty = Descriptor::new("", Digest::of(b""), 0);
    pusher.upload(url, &empty, &file, &(Arc::new(|_| {}) as Sent)).await.expect_err("no account");
    for server in [&greedy, &fake] {
        assert!(server.requests().iter().all(|asked| asked.header("authorization").is_empty()));
    }
}

#[tokio::test]
async fn a_token_request_is_not_redirected() {
    let greedy = greedy().await;
    let to = format!("http://{}/token", greedy.address);
    for method in ["GET", "POST"] {
        let to = to.clone();
        let fake = Fake::start(move |asked| match asked.path.split('?').next() {
            Some("/token") if asked.method == method => Answer::new(307, "").with("location", to.clone()),
            Some("/token") => Answer::new(404, ""),
            _ => {
                let realm = format!("http://{}/token", asked.header("host"));
                Answer::new(401, "").with("www-authenticate", format!("Bearer realm=\"{realm}\""))
            }
        })
        .await;
        let error = repository(&fake, &account()).blob(&blob(), 0, 0).await.err().expect("redirected");
        assert_eq!(error.kind(), Kind::PermissionDenied, "{method}: {error}");
    }
    assert_eq!(greedy.seen(), [""; 0]);
}

/// A token is for whom it was given to: another account at the same repository gets its own.
#[tokio::test]
async fn a_token_is_nobody_elses() {
    let fake = Fake::start(|asked| match (asked.path.as_str(), asked.header("authorization")) {
        ("/token", _) if asked.method == "POST" => {
            let good = String::from_utf8_lossy(&asked.body).contains("password=p");
            if good { Answer::new(200, *br#"{"token":"t"}"#) } else { Answer::new(401, "") }
        }
        (path, _) if path.starts_with("/token") => Answer::new(401, ""),
        (_, "Bearer t") => Answer::new(200, *b"blob"),
        _ => {
            let realm = format!("http://{}/token", asked.header("host"));
            Answer::new(401, "").with("www-authenticate", format!("Bearer realm=\"{realm}\""))
        }
    })
    .await;
    let reference = Reference::parse(&format!("{}/a/b:1", fake.address)).expect("reference");
    let registry = Registry::new(PathBuf::from("/nonexistent"));
    let ask =
        async |access: &Access| registry.repository(&reference, access).expect("repository").blob(&blob(), 0, 0).await;
    assert_eq!(read(ask(&account()).await.expect("blob")).await, b"blob");
    let other = Access { credentials: Some(Credentials::password("u", "wrong")), ..plain() };
    for access in [other, plain()] {
        ask(&access).await.err().expect("no right to it");
    }
    assert_eq!(read(ask(&account()).await.expect("blob")).await, b"blob");
}

#[tokio::test]
async fn after_see_other_nothing_is_sent_once_more() {
    let fake = Fake::start(|asked| match (asked.method.as_str(), asked.path.as_str()) {
        ("PUT", _) => Answer::new(303, "").with("location", "/there"),
        ("GET", "/there") => Answer::new(200, ""),
        _ => Answer::new(if asked.path == "/v2/" { 200 } else { 500 }, ""),
    })
    .await;
    let pusher = repository(&fake, &plain()).pusher().await.expect("pusher");
    let document = Descriptor::new(media_types::OCI_MANIFEST, Digest::of(b"document"), 8);
    pusher.put("1", &document, bytes::Bytes::from_static(b"document")).await.expect("put");
    assert!(fake.requests().last().expect("request").body.is_empty());
}

#[tokio::test]
async fn a_token_may_say_that_it_lasts_for_ever() {
    let fake = Fake::start(|asked| match (asked.path.as_str(), asked.header("authorization")) {
        (path, _) if path.starts_with("/token") => {
            Answer::new(200, *br#"{"token":"t","expires_in":18446744073709551615}"#)
        }
        (_, "Bearer t") => Answer::new(200, *b"blob"),
        _ => {
            let realm = format!("http://{}/token", asked.header("host"));
            Answer::new(401, "").with("www-authenticate", format!("Bearer realm=\"{realm}\""))
        }
    })
    .await;
    let read_it = read(repository(&fake, &plain()).blob(&blob(), 0, 0).await.expect("blob"));
    assert_eq!(read_it.await, b"blob");
}

#[tokio::test]
async fn a_document_is_as_long_as_its_descriptor_says() {
    let fake = Fake::start(|_| Answer::new(200, *b"manifest").with("content-type", media_types::OCI_MANIFEST)).await;
    let repository = repository(&fake, &plain());
    for (size, good) in [(8, true), (7, false), (9, false)] {
        let document = repository.document(&Descriptor::new("", Digest::of(b"manifest"), size)).await;
        assert_eq!(document.is_ok(), good, "{size}");
    }
}

#[tokio::test]
async fn a_server_takes_the_place_of_the_registry() {
    let public = Fake::start(|_| Answer::new(200, *b"m").with("content-type", media_types::OCI_MANIFEST)).await;
    let server = Fake::start(|_| Answer::new(404, "")).await;
    let dir = tempfile::tempdir().expect("directory");
    let of_host = dir.path().join(&public.address);
    std::fs::create_dir(&of_host).expect("directory");
    std::fs::write(of_host.join("hosts.toml"), format!("server = \"http://{}\"\n", server.address)).expect("file");
    let access = Access { config_path: Some(dir.path().to_owned()), ..plain() };
    let error = repository(&public, &access).resolve("1").await.expect_err("not at the server");
    assert_eq!(error.kind(), Kind::NotFound);
    assert_eq!((server.seen().len(), public.seen().len()), (1, 0));
}
