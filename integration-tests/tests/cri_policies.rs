//! Policies of containers-policy.json(5) about whose images may be pulled, and sigstore's signatures of them.

use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use gantry_proto::runtime::v1;
use integration_tests::image::{Blob, media};
use integration_tests::pods::{Pods, spec};
use integration_tests::{Env, Image, Registry, Result, Test, tests};
use serde_json::json;
use tonic::Code;

pub(crate) const TESTS: &[Test] = tests![
    only_signed_images_are_pulled [Root, Overlay, Openssl],
    a_policy_that_cannot_be_read_refuses_all [Root, Overlay],
];

/// A pair of keys of ECDSA: where the private and the public one are.
fn keys(env: &Env, name: &str) -> Result<(PathBuf, PathBuf)> {
    let (private, public) = (env.path(&format!("{name}.key")), env.path(&format!("{name}.pub")));
    let (key, shown) = (private.to_string_lossy(), public.to_string_lossy());
    let curve = ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"];
    env.run("openssl", &[&["genpkey", "-out", &key][..], &curve].concat())?.ok()?;
    env.run("openssl", &["pkey", "-in", &key, "-pubout", "-out", &shown])?.ok()?;
    Ok((private, public))
}

/// Signs as cosign does that `digest` is called `name`, and pushes that where pullers look for it.
fn sign(env: &Env, registry: &Registry, key: &Path, name: &str, digest: &str) -> Result<()> {
    let statement = json!({"optional": null, "critical": {
        "identity": {"docker-reference": name},
        "image": {"docker-manifest-digest": digest},
        "type": "cosign container image signature",
    }});
    let statement = Blob::new("application/vnd.dev.cosign.simplesigning.v1+json", statement.to_string().into_bytes());
    let (signed, signature) = (env.path("statement"), env.path("signature"));
    fs::write(&signed, &statement.bytes)?;
    let [key, signed, output] = [key, &signed, &signature].map(Path::to_string_lossy);
    env.run("openssl", &["dgst", "-sha256", "-sign", &key, "-out", &output, &signed])?.ok()?;
    let mut layer = statement.descriptor();
    layer["annotations"] = json!({"dev.cosignproject.cosign/signature": STANDARD.encode(fs::read(&signature)?)});
    let config = Blob::new(media::CONFIG, b"{}".to_vec());
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": media::MANIFEST,
        "config": config.descriptor(),
        "layers": [layer],
    });
    for blob in [&statement, &config] {
        registry.put_blob("signed/box", blob)?;
    }
    let tag = format!("{}.sig", digest.replace(':', "-"));
    registry.put_manifest("signed/box", &tag, &Blob::new(media::MANIFEST, manifest.to_string().into_bytes()))
}

/// Pulls as a kubelet does for a pod in `namespace`.
fn pull(pods: &mut Pods<'_>, image: &str, namespace: &str) -> Result<String, tonic::Status> {
    let metadata = v1::PodSandboxMetadata { namespace: namespace.to_owned(), ..Default::default() };
    let sandbox_config = Some(v1::PodSandboxConfig { metadata: Some(metadata), ..Default::default() });
    let request = v1::PullImageRequest { image: Some(spec(image)), sandbox_config, ..Default::default() };
    pods.runtime.block_on(pods.images.pull_image(request)).map(|pulled| pulled.into_inner().image_ref)
}

/// The reason why a kubelet does not get an image, in the words that it looks for.
fn refused(pods: &mut Pods<'_>, image: &str, namespace: &str) -> Result<String> {
    let refused = pull(pods, image, namespace).expect_err("it is refused");
    assert_eq!(refused.code(), Code::Unknown, "{refused}");
    let reason = refused.message().strip_prefix("SignatureValidationFailed: ");
    let reason = reason.unwrap_or_else(|| panic!("{refused}")).to_owned();
    assert_eq!(pods.image(image)?, None, "nothing of it is here");
    Ok(reason)
}

fn only_signed_images_are_pulled(env: &Env) -> Result<()> {
    let registry = Registry::start(env)?;
    let (host, tenants) = (registry.host(), env.dir("tenants")?);
    let ((key, public), (stranger, _)) = (keys(env, "ours")?, keys(env, "theirs")?);
    let policy = json!({"default": [{"type": "reject"}], "transports": {"docker": {
        format!("{host}/open"): [{"type": "insecureAcceptAnything"}],
        format!("{host}/signed"): [{"type": "sigstoreSigned", "keyPath": public}],
    }}});
    fs::write(env.path("policy.json"), policy.to_string())?;
    fs::write(tenants.join("closed.json"), r#"{"default": [{"type": "reject"}]}"#)?;
    let settings = format!("[image_policy]\nfile = {:?}\nnamespaces_dir = {tenants:?}\n", env.path("policy.json"));
    let daemon = env.daemon_configured(&settings)?;
    let mut pods = Pods::connect(env, &daemon)?;

    let open = Image::busybox()?.push(&registry, "open/box", "1")?;
    let other = Image::busybox()?.push(&registry, "other/box", "1")?;
    let reason = refused(&mut pods, &other, "default")?;
    assert!(reason.contains("default: images are rejected"), "{reason}");
    let reason = refused(&mut pods, &open, "closed")?;
    assert!(reason.contains("closed.json"), "{reason}");
    pull(&mut pods, &open, "default")?;

    let built = Image::busybox()?.setting("User", "7");
    let signed = built.push(&registry, "signed/box", "1")?;
    let digest = built.manifest()?.digest;
    let reason = refused(&mut pods, &signed, "default")?;
    assert!(reason.contains(&format!("{digest} has no signature")), "{reason}");
    sign(env, &registry, &stranger, &signed, &digest)?;
    let reason = refused(&mut pods, &signed, "default")?;
    assert!(reason.contains("not of a key that is trusted"), "{reason}");
    sign(env, &registry, &key, &open, &digest)?;
    let reason = refused(&mut pods, &signed, "default")?;
    assert!(reason.contains(&open) && reason.contains("matchRepoDigestOrExact"), "{reason}");
    // The same goes for whoever else has the daemon pull.
    let pulled = daemon.gantry(&["pull", &signed])?;
    assert!(pulled.code() != 0 && pulled.stderr.contains("matchRepoDigestOrExact"), "{pulled:?}");
    sign(env, &registry, &key, &signed, &digest)?;
    let id = pull(&mut pods, &signed, "default")?;
    assert_eq!(pods.image(&signed)?.map(|image| image.id).as_ref(), Some(&id));

    // What is here already is asked about for namespaces that have a policy of their own.
    let start = |pods: &mut Pods<'_>, namespace: &str| -> Result<()> {
        let mut config = pods.pod_config(namespace);
        config.metadata.get_or_insert_default().namespace = namespace.to_owned();
        let pod = pods.run(&config)?;
        let named = |container: &mut v1::ContainerConfig| {
            container.image.get_or_insert_default().user_specified_image.clone_from(&signed);
        };
        pods.start(&pod, &config, &id, &["true"], named).map(drop)
    };
    start(&mut pods, "default")?;
    let error = start(&mut pods, "closed").expect_err("its policy rejects all");
    assert!(error.to_string().contains("images are rejected"), "{error:?}");
    let by_key = json!({"default": [{"type": "sigstoreSigned", "keyPath": public}]});
    fs::write(tenants.join("keyed.json"), by_key.to_string())?;
    start(&mut pods, "keyed")?;

    // Who moves the tag has no signature for what it names now.
    let moved = Image::busybox()?.setting("User", "8").push(&registry, "signed/box", "1")?;
    let error = pull(&mut pods, &moved, "default").expect_err("it is another image");
    assert!(error.message().contains("has no signature"), "{error}");
    // The digest that was signed may be pulled whatever its tag is.
    pull(&mut pods, &format!("{host}/signed/box@{digest}"), "default")?;
    Ok(())
}

fn a_policy_that_cannot_be_read_refuses_all(env: &Env) -> Result<()> {
    let (_registry, image) = Registry::with_busybox(env)?;
    let policy = env.path("policy.json");
    let daemon = env.daemon_configured(&format!("[image_policy]\nfile = {policy:?}\n"))?;
    let mut pods = Pods::connect(env, &daemon)?;
    let mut fails = |word: &str| {
        let error = pull(&mut pods, &image, "default").expect_err("no policy");
        assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
        assert!(error.message().contains("policy.json") && error.message().contains(word), "{error}");
    };
    fails("No such file");
    fs::write(&policy, r#"{"default": [{"type": "insecureAcceptAnything"}], "transport": {}}"#)?;
    fails("transport");
    let keyless = r#"{"default": [{"type": "sigstoreSigned", "keyPath": "/nonexistent"}]}"#;
    fs::write(&policy, keyless)?;
    fails("/nonexistent");
    // It is read again for each pull.
    fs::write(&policy, r#"{"default": [{"type": "insecureAcceptAnything"}]}"#)?;
    pull(&mut pods, &image, "default")?;
    Ok(())
}
