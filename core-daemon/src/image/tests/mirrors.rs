//! Mirrors that have a layer, and do not send it.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn what_a_mirror_fails_to_send_comes_from_the_registry() {
    let store = two_layers();
    for fault in ["cut", "flip", "short", "long", "text"] {
        let (whole, faulty, layers) = (store.clone(), store.clone(), store.layers());
        let upstream = Fake::start(move |asked| whole.answer(asked)).await;
        let mirror = Fake::start(move |asked| {
            let mut answer = faulty.answer(asked);
            let path = asked.path.split('?').next().unwrap_or_default();
            if !layers.iter().any(|digest| path.ends_with(digest.as_str())) {
                return answer;
            }
            let middle = answer.body.len() / 2;
            match fault {
                "cut" => answer.cut = Some(0),
                "flip" => answer.body[middle] ^= 0x40,
                "short" if !asked.header("range").is_empty() => return Answer::new(416, ""),
                "short" => answer.body.truncate(10),
                "long" => answer.body.push(0),
                _ => answer = Answer::new(200, *b"<html>Sign in</html>"),
            }
            answer
        })
        .await;
        let dir = tempfile::tempdir().expect("directory");
        let of_host = dir.path().join(&upstream.address);
        std::fs::create_dir(&of_host).expect("directory");
        let text = format!("server = \"http://{}\"\n[host.\"http://{}\"]\n", upstream.address, mirror.address);
        std::fs::write(of_host.join("hosts.toml"), text).expect("hosts.toml");
        let access = Access { config_path: Some(dir.path().to_owned()), ..Access::default() };
        let it = fixture();
        let pulled = it.pull_with(&upstream, access).await.unwrap_or_else(|error| panic!("{fault}: {error}"));
        assert_eq!(it.directories(&pulled).len(), 2, "{fault}");
        let layers = |fake: &Fake| fake.seen().iter().filter(|asked| asked.contains("/blobs/")).count();
        assert!(layers(&mirror) >= 3, "{fault}: {:?}", mirror.seen());
        assert!((2..=8).contains(&layers(&upstream)), "{fault}: {:?}", upstream.seen());
    }
}
