//! Mirrors that have a layer, and do not send it.

use super::*;
use crate::registry::fake::patiently;

/// What makes `mirror` stand in for `upstream`.
fn mirrored(dir: &Path, upstream: &Fake, mirror: &Fake) -> Access {
    let of_host = dir.join(&upstream.address);
    std::fs::create_dir(&of_host).expect("directory");
    let text = format!("server = \"http://{}\"\n[host.\"http://{}\"]\n", upstream.address, mirror.address);
    std::fs::write(of_host.join("hosts.toml"), text).expect("hosts.toml");
    Access { config_path: Some(dir.to_owned()), ..Access::default() }
}

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
        let access = mirrored(dir.path(), &upstream, &mirror);
        let it = fixture();
        let pulled = it.pull_with(&upstream, access).await.unwrap_or_else(|error| panic!("{fault}: {error}"));
        assert_eq!(it.directories(&pulled).len(), 2, "{fault}");
        let layers = |fake: &Fake| fake.seen().iter().filter(|asked| asked.contains("/blobs/")).count();
        assert!(layers(&mirror) >= 3, "{fault}: {:?}", mirror.seen());
        assert!((2..=8).contains(&layers(&upstream)), "{fault}: {:?}", upstream.seen());
    }
}

/// A registry that sends a few bytes of a layer, and breaks off, each time that it is asked.
async fn trickling(store: &Store) -> Fake {
    let (store, layers) = (store.clone(), store.layers());
    Fake::start(move |asked| {
        let mut answer = store.answer(asked);
        let path = asked.path.split('?').next().unwrap_or_default();
        answer.cut = layers.iter().any(|digest| path.ends_with(digest.as_str())).then_some(10);
        answer
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_sends_a_byte_now_and_then_is_not_waited_for_for_ever() {
    patiently(async |patience| {
        let store = two_layers();
        let slow = trickling(&store).await;
        let registry = || Registry::new(PathBuf::from("/nonexistent")).with_patience(patience);
        let pull = async |it: &Fixture, from: &Fake, access: Access| {
            let pulling = it.pull_with(from, access);
            tokio::time::timeout(patience * 60, pulling).await.map_err(|_| "it is not given up".to_owned())
        };
        let error = pull(&fixture_with(registry()), &slow, Access::default()).await?.err().ok_or("it was pulled")?;
        if !error.to_string().contains("sends too slowly") {
            return Err(error.to_string());
        }
        let upstream = Fake::start(move |asked| store.answer(asked)).await;
        let dir = tempfile::tempdir().expect("directory");
        let it = fixture_with(registry());
        let pulled = pull(&it, &upstream, mirrored(dir.path(), &upstream, &slow)).await?;
        let pulled = pulled.map_err(|error| format!("from the registry: {error}"))?;
        assert_eq!(it.directories(&pulled).len(), 2);
        Ok(())
    })
    .await;
}
