//! The ground the other tests stand on: registry, images and bundles are what they claim to be.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Context;
use integration_tests::image::{self, Packing};
use integration_tests::tar::Tar;
use integration_tests::{Bundle, Env, Image, Registry, Result, Test, output, tests};

pub(crate) const TESTS: &[Test] = tests![
    registry_serves_what_was_pushed [],
    index_offers_each_platform [],
    bundle_runs_under_another_runtime [Root],
    ordinary_user_owns_a_delegated_cgroup [Rootless, Systemd, CgroupV2],
    apparmor_confines [Root, Apparmor],
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
        assert_eq!(fs::read(registry.blob_path(&layer.digest)?)?, layer.bytes);
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

/// What rootless containers with limits stand on: a cgroup of one's own with the controllers in it.
fn ordinary_user_owns_a_delegated_cgroup(_: &Env) -> Result<()> {
    let own = fs::read_to_string("/proc/self/cgroup")?;
    let path = own.trim().strip_prefix("0::").context("not in a cgroup v2")?;
    let dir = Path::new("/sys/fs/cgroup").join(path.trim_start_matches('/'));
    let controllers = fs::read_to_string(dir.join("cgroup.controllers"))?;
    assert!(controllers.contains("memory") && controllers.contains("pids"), "{path}: {controllers}");
    let child = dir.join("child");
    fs::create_dir(&child).context("make a cgroup")?;
    Ok(fs::remove_dir(&child)?)
}

fn apparmor_confines(env: &Env) -> Result<()> {
    let profile = env.path("profile");
    let name = env.id("profile");
    fs::write(&profile, format!("profile {name} {{ file, deny /etc/hostname r, }}"))?;
    let file = profile.to_str().context("path is not UTF-8")?;
    env.run("apparmor_parser", &["--replace", "--skip-cache", file])?.ok()?;
    let read = env.run("aa-exec", &["-p", &name, "cat", "/etc/hostname"]);
    env.run("apparmor_parser", &["--remove", file])?.ok()?;
    assert!(read?.fails()?.contains("Permission denied"));
    Ok(())
}
