//! The ground the other tests stand on: registry, images and bundles are what they claim to be.

use std::process::Command;

use integration_tests::image::{self, Packing};
use integration_tests::tar::Tar;
use integration_tests::{Bundle, Env, Image, Registry, Result, Test, output, tests};

pub(crate) const TESTS: &[Test] = tests![
    registry_serves_what_was_pushed [],
    index_offers_each_platform [],
    bundle_runs_under_another_runtime [Root, CgroupV1],
];

fn registry_serves_what_was_pushed(env: &Env) -> Result<()> {
    let registry = Registry::start(env)?;
    let image = Image::busybox()?
        .layer(Tar::new().file("etc/motd", "zstd"), Packing::Zstd)?
        .layer(Tar::new().file("etc/issue", "plain"), Packing::Plain)?;
    let reference = image.push(&registry, "test/busybox", "latest")?;
    assert!(reference.ends_with("/test/busybox:latest"), "{reference}");
    let accept = [("accept", image::media::MANIFEST)];
    let manifest = registry.request("GET", "/v2/test/busybox/manifests/latest", &accept, b"")?.expect(200)?;
    assert_eq!(image::digest(&manifest.body), image.manifest()?.digest);
    for layer in image.layers() {
        assert_eq!(std::fs::read(registry.blob_path(&layer.digest)?)?, layer.bytes);
    }
    Ok(())
}

fn index_offers_each_platform(env: &Env) -> Result<()> {
    let registry = Registry::start(env)?;
    let images = [Image::busybox()?, Image::empty().on_platform("linux", "riscv64")];
    let reference = image::push_index(&images, &registry, "test/many", "v1")?;
    let copied =
        env.run("skopeo", &["inspect", "--raw", "--tls-verify=false", &format!("docker://{reference}")])?.ok()?;
    assert_eq!(image::digest(copied.stdout.as_bytes()), image::index(&images)?.digest);
    Ok(())
}

fn bundle_runs_under_another_runtime(env: &Env) -> Result<()> {
    let bundle = Bundle::new(env, "bundle", &["sh", "-c", "echo from; hostname"])?;
    let mut runc = Command::new("runc");
    env.prepare(&mut runc);
    runc.arg("--root").arg(env.path("runc")).args(["run", "--bundle", bundle.write()?, &env.id("one")]);
    let ran = output::run(runc)?.ok()?;
    assert_eq!(ran.text(), "from\nrunc");
    Ok(())
}
