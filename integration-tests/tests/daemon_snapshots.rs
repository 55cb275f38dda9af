//! Snapshotters other than the default: containers run on each of them, and nothing of them is left.

use std::fs::{self, File};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, ensure};
use gantry_proto::containerd::services::diff::v1::DiffRequest;
use gantry_proto::containerd::services::diff::v1::diff_client::DiffClient;
use gantry_proto::containerd::services::snapshots::v1::PrepareSnapshotRequest;
use gantry_proto::containerd::services::snapshots::v1::snapshots_client::SnapshotsClient;
use gantry_proto::containerd::types::Mount;
use integration_tests::changes::Changes;
use integration_tests::image::{Packing, push_index};
use integration_tests::tar::{Kind, Meta, Tar};
use integration_tests::{Daemon, Env, Image, Registry, Result, Test, output, tests, wait};

pub(crate) const TESTS: &[Test] = tests![
    layers_run_as_erofs_images [Root, Overlay, EveryHost],
    a_layer_that_is_an_erofs_image_runs_where_it_is_trusted [Root, Overlay],
    an_image_of_such_layers_is_for_hosts_that_take_them [Root, Overlay],
    containers_run_on_copies [Root],
    another_program_keeps_the_snapshots [Root, Containerd],
    layers_that_another_program_has_are_not_fetched [Root, Containerd],
    a_short_run_flushes_nothing_but_records [Root, Overlay, Fast],
    plugins_say_what_they_can_do [Root, Containerd],
    no_mounts_are_an_empty_directory [Root],
    a_writable_layer_has_its_size [Root, Overlay],
];

/// A daemon whose default snapshotter is `name`, with more lines of configuration.
fn daemon<'env>(env: &'env Env, name: &str, more: &str) -> Result<Daemon<'env>> {
    env.daemon_configured(&format!("[runtime]\nsnapshotter = {name:?}\n{more}"))
}

fn image(registry: &Registry) -> Result<String> {
    let tool = Meta { mode: 0o4755, uid: 5, gid: 6, mtime: 1_000_000_000, ..Meta::default() };
    Image::busybox()?
        .layer(Tar::new().dir("app").file("app/old", "1").file("gone", "1").file("kept", "low"), Packing::Zstd)?
        // Nothing but a link leads to the file below, and the opaque mark comes after what it must not hide.
        .layer(
            Tar::new()
                .file("app/new", "2")
                .file("app/.wh..wh..opq", "")
                .file(".wh.gone", "")
                .entry("same", Kind::Hardlink("kept".into()), &Meta::default())
                .entry("tool", Kind::File(b"x".to_vec()), &tool),
            Packing::Gzip,
        )?
        .push(registry, "test/layers", "v1")
}

const LOOK: &str = "ls app; ls gone 2>/dev/null; cat kept same; echo; stat -c '%h' same; stat -c '%a %u:%g %Y' tool; \
                    touch app/x && rm app/new && ls app";
const SEEN: &str = "new\nlowlow\n2\n4755 5:6 1000000000\nx\n";

const TRUSTING: &str = "[snapshotters.erofs]\ntrust_images = true\n";

/// An image with busybox in a layer that is an EROFS image, which the daemon makes.
fn native(env: &Env, it: &Daemon<'_>, registry: &Registry) -> Result<Image> {
    let tar = Image::busybox()?.push(registry, "test/tar", "1")?;
    it.gantry(&["pull", "-q", &tar])?.ok()?;
    let snapshots = fs::read_dir(env.path("root/io.containerd.snapshotter.v1.erofs/snapshots"))?.flatten();
    let images: Vec<_> = snapshots.map(|dir| dir.path().join("layer.erofs")).filter(|path| path.is_file()).collect();
    let bytes = fs::read(images.first().context("no image was made of the layer")?)?;
    it.gantry(&["rmi", &tar])?.ok()?;
    Ok(Image::empty().sealed_layer(&bytes, "application/vnd.erofs.layer.v1", bytes.clone()))
}

fn a_layer_that_is_an_erofs_image_runs_where_it_is_trusted(env: &Env) -> Result<()> {
    let registry = Registry::start(env)?;
    let it = daemon(env, "erofs", "")?;
    let native = native(env, &it, &registry)?;
    let native = native.layer(Tar::new().file("above", "a tar"), Packing::Gzip)?.push(&registry, "test/native", "1")?;
    let said = it.gantry(&["pull", &native])?.fails()?;
    assert!(said.contains("snapshotters.erofs.trust_images"), "{said}");
    it.stop()?;
    let it = daemon(env, "erofs", TRUSTING)?;
    let script = "cat /above; echo written > /bin/new; cat /bin/new";
    assert_eq!(it.gantry(&["run", "--rm", &native, "sh", "-c", script])?.ok()?.text(), "a tarwritten");
    it.is_whole()?;
    it.stop()?;
    // It is there, and runs, whatever is trusted by now.
    let it = daemon(env, "erofs", "")?;
    assert_eq!(it.gantry(&["run", "--rm", &native, "cat", "/above"])?.ok()?.text(), "a tar");
    it.stop()?;
    Ok(())
}

/// An index offers the same once more in the usual form, after it.
fn an_image_of_such_layers_is_for_hosts_that_take_them(env: &Env) -> Result<()> {
    let registry = Registry::start(env)?;
    let it = daemon(env, "erofs", "")?;
    let native = native(env, &it, &registry)?.layer(Tar::new().file("form", "native"), Packing::Gzip)?.needing("erofs");
    let plain = Image::busybox()?.layer(Tar::new().file("form", "plain"), Packing::Gzip)?;
    let image = push_index(&[native, plain], &registry, "test/both", "1")?;
    let shows = |it: &Daemon<'_>| -> Result<String> {
        Ok(it.gantry(&["run", "--rm", &image, "cat", "/form"])?.ok()?.text().to_owned())
    };
    assert_eq!(shows(&it)?, "plain");
    it.gantry(&["rmi", &image])?.ok()?;
    it.stop()?;
    // Trust in what the snapshotter does not take is none.
    let it = daemon(env, "overlayfs", TRUSTING)?;
    assert_eq!(shows(&it)?, "plain");
    let said = it.gantry(&["pull", "--platform", "linux(+erofs)", &image])?.fails()?;
    assert!(said.contains("only the snapshotter erofs"), "{said}");
    it.gantry(&["rmi", &image])?.ok()?;
    it.gantry(&["system", "gc"])?.ok()?;
    it.stop()?;
    let it = daemon(env, "erofs", TRUSTING)?;
    assert_eq!(shows(&it)?, "native");
    it.is_whole()?;
    it.stop()?;
    // It is there, and runs, whatever is trusted by now; and the other one comes when it is asked for.
    let it = daemon(env, "erofs", "")?;
    assert_eq!(shows(&it)?, "native");
    it.gantry(&["pull", "-q", &image])?.ok()?;
    assert_eq!(shows(&it)?, "plain");
    it.is_whole()?;
    it.stop()?;
    Ok(())
}

fn layers_run_as_erofs_images(env: &Env) -> Result<()> {
    let registry = Registry::start(env)?;
    let image = image(&registry)?;
    let it = daemon(env, "erofs", "")?;
    let ran = it.gantry(&["run", "--rm", &image, "sh", "-c", LOOK])?.ok()?;
    ensure!(ran.stdout == SEEN, "{ran}");
    let snapshots = env.path("root/io.containerd.snapshotter.v1.erofs/snapshots");
    let layers = fs::read_dir(&snapshots)?.flatten().filter(|it| it.path().join("layer.erofs").is_file()).count();
    ensure!(layers == 3, "{layers} images in {}", snapshots.display());
    // A layer that a client unpacks itself becomes an image at the commit.
    it.gantry(&["rmi", &image])?.ok()?;
    it.ctr(&["images", "pull", "--plain-http", "--snapshotter", "erofs", &image])?.ok()?;
    let id = env.id("erofs");
    let runtime = ["run", "--rm", "--snapshotter", "erofs", "--runtime", "io.containerd.rung.v2"];
    let ran = it.ctr(&[&runtime[..], &[&image, &id, "sh", "-c", LOOK]].concat())?.ok()?;
    ensure!(ran.stdout == SEEN, "{ran}");
    it.stop()?;
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    ensure!(!mounts.contains(env.token()), "a stopped daemon leaves its images mounted");
    Ok(())
}

fn containers_run_on_copies(env: &Env) -> Result<()> {
    let registry = Registry::start(env)?;
    let image = image(&registry)?;
    let it = daemon(env, "native", "")?;
    let ran = it.gantry(&["run", "--rm", &image, "sh", "-c", LOOK])?.ok()?;
    ensure!(ran.stdout == SEEN, "{ran}");
    Ok(())
}

/// Debian's containerd, for its snapshot service.
struct Other(Child);

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts it, and answers with its address.
fn other(env: &Env) -> Result<(Other, String)> {
    let root = env.dir("other")?;
    let shown = root.display();
    let config = format!(
        "version = 2\nroot = \"{shown}/root\"\nstate = \"{shown}/state\"\ndisabled_plugins = \
         [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = \"{shown}/sock\"\n[ttrpc]\naddress = \"{shown}/sock.ttrpc\"\n"
    );
    fs::write(root.join("config.toml"), config)?;
    let log = File::create(root.join("log"))?;
    let mut command = Command::new("containerd");
    env.prepare(&mut command);
    command.arg("-c").arg(root.join("config.toml")).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let other = Other(command.spawn().context("start containerd")?);
    let address = root.join("sock").display().to_string();
    wait::until_within(wait::seconds(20), "containerd answers", || {
        let mut asked = Command::new("ctr");
        asked.args(["--address", &address, "version"]);
        output::run(asked).ok()?.ok().ok()
    })?;
    Ok((other, address))
}

/// A daemon whose snapshots the other program keeps.
fn over<'env>(env: &'env Env, address: &str) -> Result<Daemon<'env>> {
    daemon(env, "native", &format!("[proxy_plugins.native]\ntype = \"snapshot\"\naddress = {address:?}\n"))
}

fn another_program_keeps_the_snapshots(env: &Env) -> Result<()> {
    let (_other, address) = other(env)?;
    let registry = Registry::start(env)?;
    let image = image(&registry)?;
    let it = over(env, &address)?;
    let ran = it.gantry(&["run", "--rm", &image, "sh", "-c", LOOK])?.ok()?;
    ensure!(ran.stdout == SEEN, "{ran}");
    let snapshots = ["--address", &address, "--namespace", "gantry", "snapshots", "--snapshotter", "native"];
    // containerd removes the files in its own time: what counts is what it lists.
    let listed = || -> Option<Vec<String>> {
        let listing = env.run("ctr", &[&snapshots[..], &["ls"]].concat()).ok()?.ok().ok()?.stdout;
        Some(listing.lines().skip(1).filter_map(|line| line.split_whitespace().next().map(str::to_owned)).collect())
    };
    let layers = wait::until("only the layers are there", || listed().filter(|listed| listed.len() == 3))?;
    // It is told what a program needs that fetches layers by itself.
    for layer in layers {
        let info = env.run("ctr", &[&snapshots[..], &["info", &layer]].concat())?.ok()?;
        let info: serde_json::Value = serde_json::from_str(&info.stdout)?;
        let label = |name: &str| info["Labels"][format!("containerd.io/snapshot/cri.{name}")].as_str().unwrap_or("");
        assert_eq!(label("image-ref"), image, "{info}");
        ensure!(
            label("image-layers").starts_with(label("layer-digest")) && label("layer-digest").len() == 71,
            "{info}"
        );
        ensure!(label("manifest-digest").starts_with("sha256:"), "{info}");
    }
    Ok(())
}

fn layers_that_another_program_has_are_not_fetched(env: &Env) -> Result<()> {
    let (_other, address) = other(env)?;
    let registry = Registry::start(env)?;
    let image = image(&registry)?;
    let theirs =
        ["--address", &address, "--namespace", "gantry", "images", "pull", "--plain-http", "--snapshotter", "native"];
    env.run("ctr", &[&theirs[..], &[&image]].concat())?.ok()?;
    let it = over(env, &address)?;
    for _ in 0..2 {
        it.gantry(&["pull", "-q", &image])?.ok()?;
        // A manifest and a configuration.
        let blobs = fs::read_dir(env.path("root/io.containerd.content.v1.content/blobs/sha256"))?.count();
        ensure!(blobs == 2, "{blobs} blobs");
    }
    let ran = it.gantry(&["run", "--rm", &image, "sh", "-c", LOOK])?.ok()?;
    ensure!(ran.stdout == SEEN, "{ran}");
    // Nor is what was not fetched missed.
    it.is_whole()
}

fn a_short_run_flushes_nothing_but_records(env: &Env) -> Result<()> {
    let registry = Registry::start(env)?;
    let image = Image::busybox()?.push(&registry, "test/busybox", "1")?;
    let daemon = env.daemon()?;
    daemon.gantry(&["pull", "-q", &image])?.ok()?;
    let changes = Changes::watch(daemon.pid(), &env.path("root"), None)?;
    // Unmounting another overlay flushes the whole file system below it, whoever's what is dirty there is.
    let ran = daemon.gantry(&["run", "--rm", &image, "grep", " / / .* overlay ", "/proc/self/mountinfo"])?.ok()?;
    assert!(ran.stdout.contains("volatile"), "{ran}");
    daemon.crash()?;
    let all = changes.all()?;
    assert!(all.iter().any(|kind| kind == "sync meta.redb"), "{all:?}");
    let others: Vec<_> = all.iter().filter(|kind| kind.starts_with("sync") && !kind.ends_with(" meta.redb")).collect();
    assert!(others.is_empty(), "{others:?}");
    Ok(())
}

fn plugins_say_what_they_can_do(env: &Env) -> Result<()> {
    let it = daemon(env, "overlayfs", "")?;
    let listed = it.ctr(&["plugins", "ls", "--detailed", "type==io.containerd.snapshotter.v1"])?.ok()?;
    for wanted in ["overlayfs", "native", "erofs", "rebase", "remap-ids", "io.containerd.snapshotter.v1.overlayfs"] {
        ensure!(listed.stdout.contains(wanted), "{wanted}: {listed}");
    }
    let refused = it.ctr(&["snapshots", "--snapshotter", "btrfs", "ls"])?.fails()?;
    ensure!(refused.contains("snapshotter not loaded: btrfs"), "{refused}");
    it.ctr(&["snapshots", "--snapshotter", "native", "prepare", "key"])?.ok()?;
    let none = it.ctr(&["snapshots", "ls"])?.ok()?;
    let one = it.ctr(&["snapshots", "--snapshotter", "native", "ls"])?.ok()?;
    ensure!(!none.stdout.contains("key") && one.stdout.contains("key"), "{none} {one}");
    Ok(())
}

/// A client such as BuildKit that compares with nothing, or nothing with something, has no mounts for nothing.
fn no_mounts_are_an_empty_directory(env: &Env) -> Result<()> {
    let it = daemon(env, "native", "")?;
    let dir = env.dir("low")?;
    fs::write(dir.join("old"), "1")?;
    let source = dir.display().to_string();
    let some = vec![Mount { r#type: "bind".into(), source, options: vec!["rbind".into()], ..Default::default() }];
    let layer = |left: &[Mount], right: &[Mount]| -> Result<String> {
        let media_type = "application/vnd.oci.image.layer.v1.tar".into();
        let labels = [("containerd.io/gc.root".to_owned(), "now".to_owned())].into();
        let (left, right) = (left.to_vec(), right.to_vec());
        let request = env.request(DiffRequest { left, right, media_type, labels, ..Default::default() });
        let made = integration_tests::daemon::runtime()?.block_on(async {
            anyhow::Ok(DiffClient::new(it.channel().await?).diff(request).await?.into_inner().diff)
        })?;
        let digest = made.context("no layer")?.digest.replace(':', "/");
        let blob = fs::read(env.path("root/io.containerd.content.v1.content/blobs").join(digest))?;
        Ok(String::from_utf8_lossy(&blob).replace('\0', ""))
    };
    ensure!(layer(&[], &some)?.starts_with("old"), "{}", layer(&[], &some)?);
    ensure!(layer(&some, &[])?.starts_with(".wh.old"), "{}", layer(&some, &[])?);
    ensure!(layer(&[], &[])?.is_empty(), "{}", layer(&[], &[])?);
    Ok(())
}

/// On a file system of its own that keeps project quotas, where this kernel has one; elsewhere the limit is refused.
fn a_writable_layer_has_its_size(env: &Env) -> Result<()> {
    let (file, root) = (env.path("disk"), env.dir("root")?);
    File::create(&file)?.set_len(256 << 20)?;
    let (file, root) = (file.display().to_string(), root.display().to_string());
    env.run("mkfs.ext4", &["-q", "-O", "quota,project", "-E", "quotatype=prjquota", &file])?.ok()?;
    let has_quotas = env.run("mount", &["-o", "loop,prjquota", &file, &root])?.ok().is_ok();
    let tried = daemon(env, "overlayfs", "").and_then(|it| limited(env, &it, has_quotas));
    if has_quotas {
        env.run("umount", &["--lazy", &root])?.ok()?;
    }
    tried
}

fn limited(env: &Env, daemon: &Daemon<'_>, has_quotas: bool) -> Result<()> {
    let request = |size: &str| {
        let labels = [("containerd.io/snapshot/max-size".to_owned(), size.to_owned())].into();
        let (snapshotter, key) = ("overlayfs".into(), "limited".into());
        env.request(PrepareSnapshotRequest { snapshotter, key, labels, ..Default::default() })
    };
    let (wrong, right) = integration_tests::daemon::runtime()?.block_on(async {
        let mut client = SnapshotsClient::new(daemon.channel().await?);
        let wrong = client.prepare(request("much")).await;
        anyhow::Ok((wrong, client.prepare(request("8MiB")).await))
    })?;
    ensure!(wrong.as_ref().is_err_and(|status| status.code() == tonic::Code::InvalidArgument), "{wrong:?}");
    if !has_quotas {
        let status = right.err().context("a limit that nobody keeps is accepted")?;
        ensure!(status.code() == tonic::Code::FailedPrecondition && status.message().contains("prjquota"), "{status}");
        return Ok(());
    }
    right?;
    let snapshots = env.path("root/io.containerd.snapshotter.v1.overlayfs/snapshots");
    let dir = fs::read_dir(&snapshots)?.flatten().next().context("the snapshot is not there")?.path().join("fs");
    fs::write(dir.join("small"), vec![1; 4 << 20])?;
    let error = fs::write(dir.join("large"), vec![1; 8 << 20]).err().context("4 MiB and 8 MiB fit into 8 MiB")?;
    let number = error.raw_os_error();
    ensure!(number == Some(nix::libc::EDQUOT) || number == Some(nix::libc::ENOSPC), "{error}");
    Ok(())
}
