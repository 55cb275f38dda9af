//! Layers that go through other programs before they are unpacked, as encrypted ones do.

use std::fs;

use integration_tests::image::{Image, Packing, gzip};
use integration_tests::tar::Tar;
use integration_tests::{Daemon, Env, Registry, Result, Test, tests};
use serde_json::Value;

pub(crate) const TESTS: &[Test] = tests![an_encrypted_layer_is_unpacked_by_who_can_decrypt_it[Root],];

const ENCRYPTED: &str = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted";

/// A daemon with a program that decrypts: it takes eight bytes off, and keeps what it was sent along.
fn daemon<'env>(env: &'env Env, key: &str) -> Result<Daemon<'env>> {
    let sent = env.path("sent");
    let script = format!(
        r#"test \"$KEY\" = open || {{ echo no key; exit 1; }} >&2
           test \"$STREAM_PROCESSOR_MEDIATYPE\" = {ENCRYPTED} || exit 2
           cat <&3 >{}
           exec tail -c +9"#,
        sent.display()
    );
    env.daemon_configured(&format!(
        "[stream_processors.\"io.containerd.ocicrypt.decoder.v1.tar.gzip\"]\n\
         accepts = [\"{ENCRYPTED}\"]\nreturns = \"application/vnd.oci.image.layer.v1.tar+gzip\"\n\
         path = \"sh\"\nargs = [\"-c\", \"\"\"{script}\"\"\"]\nenv = [\"KEY={key}\"]\n"
    ))
}

fn an_encrypted_layer_is_unpacked_by_who_can_decrypt_it(env: &Env) -> Result<()> {
    let registry = Registry::start(env)?;
    let plain = Tar::new().file("secret", "it is").finish();
    let stored = [b"ENCRYPT!".to_vec(), gzip(&plain)?].concat();
    let image = Image::busybox()?.sealed_layer(&plain, ENCRYPTED, stored);
    let image = image.layer(Tar::new().file("above", "x"), Packing::Zstd)?;
    let name = image.push(&registry, "test/encrypted", "1")?;
    let reads = |daemon: &Daemon<'_>| -> Result<()> {
        assert_eq!(daemon.gantry(&["run", "--rm", &name, "cat", "/secret", "/above"])?.ok()?.text(), "it isx");
        Ok(())
    };
    let alone = env.daemon()?;
    let said = alone.gantry(&["pull", &name])?.fails()?;
    assert!(said.contains("encrypted") && said.contains("stream_processors"), "{said}");
    alone.stop()?;
    let locked = daemon(env, "wrong")?;
    let said = locked.gantry(&["pull", &name])?.fails()?;
    assert!(said.contains("io.containerd.ocicrypt.decoder") && said.contains("no key"), "{said}");
    assert_eq!(locked.gantry(&["images", "-q"])?.ok()?.text(), "");
    locked.stop()?;
    let opened = daemon(env, "open")?;
    reads(&opened)?;
    // What is sent along names the layer.
    let sent = fs::read(env.path("sent"))?;
    let begin = sent.iter().position(|byte| *byte == b'{').unwrap_or(0);
    let payload: Value = serde_json::from_slice(&sent[begin..])?;
    assert_eq!(payload["Descriptor"]["digest"], image.layers()[1].digest.as_str(), "{payload}");
    // From the content store it is no different, and neither for a client that unpacks by itself.
    opened.gantry(&["rmi", &name])?.ok()?;
    opened.gantry(&["pull", "-q", &name])?.ok()?;
    opened.ctr(&["image", "pull", "--plain-http", "--snapshotter", "native", &name])?.ok()?;
    reads(&opened)
}
