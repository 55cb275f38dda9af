//! Decisions, and signatures that openssl has made with keys of each kind.

use std::path::Path;

use super::*;
use crate::registry::fake::{Answer, Fake};
use crate::registry::{Access, Registry};

/// What is signed below: that `a.test/x:1` is the digest of "x".
const STATEMENT: &str = concat!(
    r#"{"critical":{"identity":{"docker-reference":"a.test/x:1"},"image":{"docker-manifest-digest":""#,
    "sha256:2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881",
    r#""},"type":"cosign container image signature"},"optional":{"by":"me"}}"#,
);

/// A key of each kind, and its signature.
const SIGNED: [(&str, &str); 4] = [
    (
        "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEK40YIxraSwWfrgZuUea74XvAsusO4qzAUFZqlys+VJkAJaGrclYdWfLrR+rL\
     bmJKZySH7sfC7S/9IiPo8TCyHA==",
        "MEQCIA8ym4bfBpMiIT4iWoah++VUhdOQKjTbGLec/wp1vRRqAiB2VluwfBkWm8B52sQjOKwbePJdJsrnoeaU/TcMpLF2PA==",
    ),
    (
        "MHYwEAYHKoZIzj0CAQYFK4EEACIDYgAE06PJdPCTEj9lveLrpBNoeJDE+hUk1TetSgByiWjVfjvgIWVvPmXcE5/GpmW4bRSb\
     +seniuIo68nuCqFqiFyrlY3Mr4dlh4p1Q6eD9tFTeyZ/aX7K0Q5CgZXSHg32MciT",
        "MGUCMQDAxjW0lhw+vzVfCGpg3sEz9TQxh/flu/Nfv9ji/4j97zHSTBEWMI0J48AhMMv+dw8CMGkcr+eebYv6/YjeFUjtjEXw\
     hWvPa+gvVY4rsuAr77BiTp9l49QqbWms624mK1bySg==",
    ),
    (
        "MCowBQYDK2VwAyEAdwwsj4Mzmbs/Gjy5bKzwJEQm4kKmxwGLLU/b34bjyj8=",
        "DKUYg+OrDeGQMTtfPSj9bFyWVM6RmXca3lNYKTK0u1ASdotRokSJq9ltvdZV1JqBseNcaBX5UtCRzBKgKwJkCA==",
    ),
    (
        "MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAmkpExJfvT41e4yiEtwMJj811fVuLs7cHVBByd2WtBmcEVW0SKaCc\
     PEl+fYgedrwWqMcCYrZu2NGsekeKhUy8KXmZVBFVIC6YctmiuvRCBJ7/cdV6SKLqTSpFVVRGAQqpIE/kkyPptMciC6WQpSZ+\
     g6NL0rGeIO7CYcK612oAez3DuDj7NWrutkQcm/PSQ4G0wPl8dWWyQpZuMq3XG42Dpbfl2LRA+wKjLqRTsSuzXjLmipbKvWjP\
     hgu/ue6BEQVcPorLueDx5nd/lYM784NYaBwXp2x0PIuwl3qdv2pGznkWmQm1TsQ0+Wo/yndxwI+gm8S94uI1Ou0EMJl7h7d0\
     wwIDAQAB",
        "Fkq02FIugyGZJS3YyqTtg6tX1MEiVQbbPlR/f0NjsXU6ix46Io4eLi1/L9vru2dH6r8cMG/C8OICmwRS+4NGnhvwrwxmqyrQ\
     gpX/i0oLdELbAgREuH4nSKr8Dw3+FWncVEk244WCCtX/epKlmeekQeWHTu911Ru2utqX2ufRDtxFbdUK+EjKl9F7qaSvzIq6\
     lntaQOXH5GPI83HO0kz/upf3JnpFQaCw7VgeXP+Iofbdhr4B2OKl+VmMRDQdC3fO6DnThgNmZp+a4JBEymUYxf99eZx8xKLI\
     ariGHbCvxe2SUvmYo8ykSCqi0lGmDP7KYXC4YhBpOxJbLmH2rPUqZA==",
    ),
];

fn pem(body: &str) -> String {
    format!("-----BEGIN PUBLIC KEY-----\n{body}\n-----END PUBLIC KEY-----\n")
}

#[test]
fn keys_of_each_kind_verify_what_they_signed_and_nothing_else() {
    let digest = Digest::of(b"x");
    for (number, (key, signature)) in SIGNED.into_iter().enumerate() {
        let key = || Key::parse(pem(key).as_bytes()).expect("key");
        let good = Signature::new(STATEMENT, signature);
        assert_eq!(good.check(&[key()], &digest).as_deref(), Ok("a.test/x:1"), "{number}");
        let of_another = good.check(&[key()], &Digest::of(b"y")).expect_err("another digest");
        assert!(of_another.contains(digest.as_str()), "{of_another}");
        let changed = Signature::new(&STATEMENT.replace("a.test", "b.test"), signature);
        assert!(changed.check(&[key()], &digest).expect_err("changed").contains("not of a key that is trusted"));
        let (other, _) = SIGNED[(number + 1) % SIGNED.len()];
        let other = || Key::parse(pem(other).as_bytes()).expect("key");
        assert!(good.check(&[other()], &digest).is_err(), "another key");
        assert!(good.check(&[other(), key()], &digest).is_ok(), "one of two");
        assert!(Signature::new(STATEMENT, "!").check(&[key()], &digest).expect_err("base64").contains("base64"));
    }
}

#[test]
fn what_is_no_key_is_refused() {
    let wrong = |text: &[u8]| Key::parse(text).expect_err("no key").to_string();
    assert!(wrong(b"").contains("PEM"));
    let (key, _) = SIGNED[0];
    for length in 0..key.trim_end_matches('=').len() {
        assert!(Key::parse(pem(&key[..length]).as_bytes()).is_err(), "{length}");
    }
    // X25519 signs nothing.
    let other = wrong(pem("MCowBQYDK2VuAyEAdwwsj4Mzmbs/Gjy5bKzwJEQm4kKmxwGLLU/b34bjyj8=").as_bytes());
    assert!(other.contains("must be a key of ECDSA"), "{other}");
    assert!(Key::parse_base64("?").is_err());
}

fn policies(dir: &Path, requirement: &str) -> Policies {
    let text = format!(
        r#"{{"default": [{{"type": "reject"}}], "transports": {{"docker": {{"a.test/x": [{requirement}]}}}}}}"#
    );
    std::fs::write(dir.join("policy.json"), text).expect("policy");
    std::fs::create_dir_all(dir.join("tenants")).expect("directory");
    Policies::new(&ImagePolicy { file: dir.join("policy.json"), namespaces_dir: dir.join("tenants") })
}

/// A registry whose image has the signatures that `layers` describes.
async fn registry(layers: String) -> Fake {
    let digest = Digest::of(b"x");
    let (tag, statement) = (signature::tag(&digest), format!("/blobs/{}", Digest::of(STATEMENT.as_bytes())));
    Fake::start(move |asked| {
        let config = Digest::of(b"{}");
        let manifest = format!(
            r#"{{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config":
            {{"mediaType": "application/vnd.oci.image.config.v1+json", "digest": "{config}", "size": 2}}, "layers": [{layers}]}}"#
        );
        if !layers.is_empty() && asked.path.contains(&tag) {
            return Answer::new(200, manifest).with("content-type", "application/vnd.oci.image.manifest.v1+json");
        }
        if asked.path.ends_with(&statement) { Answer::new(200, STATEMENT) } else { Answer::new(404, "") }
    })
    .await
}

fn layer(signature: &str) -> String {
    let digest = Digest::of(STATEMENT.as_bytes());
    format!(
        r#"{{"mediaType": "application/vnd.dev.cosign.simplesigning.v1+json", "digest": "{digest}", "size": {},
        "annotations": {{"dev.cosignproject.cosign/signature": "{signature}"}}}}"#,
        STATEMENT.len()
    )
}

#[tokio::test]
async fn signatures_decide() {
    let dir = tempfile::tempdir().expect("directory");
    let (key, signature) = SIGNED[0];
    std::fs::write(dir.path().join("key.pub"), pem(key)).expect("key");
    let keyed = format!(r#"{{"type": "sigstoreSigned", "keyPath": {:?}}}"#, dir.path().join("key.pub"));
    let image = Reference::parse("a.test/x:1").expect("name");
    let ask = async |policies: &Policies, tenant: &str, image: &Reference, layers: String| {
        let at = registry(layers).await;
        let there = Reference { host: at.address.clone(), ..image.clone() };
        let at = Registry::new(PathBuf::new()).repository(&there, &Access { plain_http: true, ..Access::default() });
        policies.check(tenant, image, &Digest::of(b"x"), &at.expect("repository"), Ask::Anew).await
    };
    let signed = policies(dir.path(), &keyed);
    ask(&signed, "", &image, layer(signature)).await.expect("signed");
    ask(&signed, "team", &image, format!("{}, {}", layer("AAAA"), layer(signature))).await.expect("one of two");
    let refused = async |policies: &Policies, image: &Reference, layers: String| {
        let error = ask(policies, "", image, layers).await.expect_err("refused");
        assert!(error.is_refusal(), "{error}");
        error.to_string()
    };
    let none = refused(&signed, &image, String::new()).await;
    assert!(none.contains("has no signature") && none.contains("policy.json") && none.contains("a.test/x"), "{none}");
    let forged = refused(&signed, &image, layer("AAAA")).await;
    assert!(forged.contains("not of a key that is trusted"), "{forged}");
    let named = refused(&signed, &Reference::parse("a.test/x:2").expect("name"), layer(signature)).await;
    assert!(named.contains("\"a.test/x:1\", which matchRepoDigestOrExact does not accept"), "{named}");
    let elsewhere = refused(&signed, &Reference::parse("b.test/x:1").expect("name"), layer(signature)).await;
    assert!(elsewhere.contains("default: images are rejected"), "{elsewhere}");
    let two = policies(dir.path(), &format!(r#"{keyed}, {{"type": "reject"}}"#));
    assert!(refused(&two, &image, layer(signature)).await.contains("rejected"), "all must be met");
    for (kind, word) in [("signedBy", "GPG"), ("sigstoreSigned\", \"fulcio\": {}, \"x\": \"", "unknown field")] {
        let policies = policies(dir.path(), &format!(r#"{{"type": "{kind}"}}"#));
        let error = ask(&policies, "", &image, layer(signature)).await.expect_err(kind).to_string();
        assert!(error.contains(word), "{error}");
    }
    let more = policies(dir.path(), r#"{"type": "sigstoreSigned", "fulcio": {}}"#);
    assert!(refused(&more, &image, layer(signature)).await.contains("wants fulcio"));
}

#[tokio::test]
async fn a_namespace_may_have_a_policy_of_its_own_and_what_is_not_read_refuses() {
    let dir = tempfile::tempdir().expect("directory");
    let image = Reference::parse("a.test/x:1").expect("name");
    let at = Registry::new(PathBuf::new()).repository(&image, &Access::default()).expect("repository");
    let ask = async |policies: &Policies, tenant: &str| {
        policies.check(tenant, &image, &Digest::of(b"x"), &at, Ask::Anew).await
    };
    ask(&Policies::default(), "team").await.expect("no policy");
    let all = policies(dir.path(), r#"{"type": "insecureAcceptAnything"}"#);
    std::fs::write(dir.path().join("tenants/team.json"), r#"{"default": [{"type": "reject"}]}"#).expect("policy");
    ask(&all, "other").await.expect("the one for all");
    let own = ask(&all, "team").await.expect_err("its own");
    assert!(own.is_refusal() && own.to_string().contains("team.json"), "{own}");
    assert_eq!(ask(&all, "../policy").await.expect_err("no name").kind(), Kind::InvalidArgument);
    std::os::unix::fs::symlink("nowhere", dir.path().join("tenants/swapped.json")).expect("link");
    let swapped = ask(&all, "swapped").await.expect_err("a link that leads nowhere");
    assert!(swapped.kind() == Kind::FailedPrecondition && swapped.to_string().contains("swapped.json"), "{swapped}");
    std::fs::remove_file(dir.path().join("policy.json")).expect("remove");
    let missing = ask(&all, "other").await.expect_err("missing");
    assert!(missing.kind() == Kind::FailedPrecondition && missing.to_string().contains("policy.json"), "{missing}");
    std::fs::remove_dir_all(dir.path().join("tenants")).expect("remove");
    let lost = ask(&all, "other").await.expect_err("nobody knows");
    assert!(lost.kind() == Kind::FailedPrecondition && lost.to_string().contains("namespaces_dir"), "{lost}");
}

#[tokio::test]
async fn what_strangers_put_beside_a_good_signature_changes_nothing() {
    let dir = tempfile::tempdir().expect("directory");
    let (key, signature) = SIGNED[0];
    std::fs::write(dir.path().join("key.pub"), pem(key)).expect("key");
    let signed =
        policies(dir.path(), &format!(r#"{{"type": "sigstoreSigned", "keyPath": {:?}}}"#, dir.path().join("key.pub")));
    let image = Reference::parse("a.test/x:1").expect("name");
    let ask = async |layers: String, ask: Ask| {
        let at = registry(layers).await;
        let there = Reference { host: at.address.clone(), ..image.clone() };
        let at = Registry::new(PathBuf::new()).repository(&there, &Access { plain_http: true, ..Access::default() });
        signed.check("", &image, &Digest::of(b"x"), &at.expect("repository"), ask).await
    };
    let good = layer(signature);
    let lost = good.replace(Digest::of(STATEMENT.as_bytes()).as_str(), Digest::of(b"lost").as_str());
    let large = good.replace(&format!("\"size\": {}", STATEMENT.len()), "\"size\": 1000000");
    assert!(lost != good && large != good);
    ask(format!("{lost}, {large}, {good}"), Ask::Anew).await.expect("one is good");
    ask(String::new(), Ask::Once).await.expect("it was decided before");
    ask(String::new(), Ask::Anew).await.expect_err("and is decided anew");
    let other = good.replace("application/vnd.dev.cosign.simplesigning.v1+json", "text/plain");
    let reason = ask(other, Ask::Anew).await.expect_err("no statement").to_string();
    assert!(reason.contains("has no signature"), "{reason}");
    // However many are not signed at all, no more than the bound are fetched.
    let unsigned = good.replace("dev.cosignproject.cosign/signature", "other");
    let many = [vec![lost; 64], vec![unsigned], vec![good]].concat().join(", ");
    let reason = ask(many, Ask::Anew).await.expect_err("beyond the bound").to_string();
    assert_eq!(reason.matches("one cannot be had").count(), 64, "{reason}");
}
