//! Images as people see them: pull, list, inspect, remove.

use integration_tests::image::{self, Packing};
use integration_tests::tar::Tar;
use integration_tests::{Env, Image, Result, Stack, Test, output, tests};
use serde_json::Value;

pub(crate) const TESTS: &[Test] = tests![
    pull_says_what_it_does [Root, Overlay],
    images_are_listed_and_inspected [Root, Overlay],
    images_are_removed_by_name_and_id [Root, Overlay],
    a_failed_pull_names_what_is_wrong [Root, Overlay],
    daemon_and_client_say_who_they_are [Root],
];

fn pull_says_what_it_does(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    let host = stack.registry.host();
    let image = Image::busybox()?
        .layer(Tar::new().file("etc/motd", "zstd"), Packing::Zstd)?
        .layer(Tar::new().file("etc/issue", "plain"), Packing::Plain)?;
    let name = image.push(&stack.registry, "test/three", "v1")?;
    let pulled = stack.gantry(&["pull", &name])?.ok()?;
    let lines: Vec<&str> = pulled.stdout.lines().collect();
    assert_eq!(lines[0], format!("v1: Pulling from {host}/test/three"));
    assert_eq!(lines.iter().filter(|line| line.ends_with(": Pull complete")).count(), 3, "{}", pulled.stdout);
    let digest = image.manifest()?.digest;
    let end = [format!("Digest: {digest}"), format!("Status: Downloaded newer image for {name}"), name.clone()];
    assert_eq!(lines[lines.len() - 3..], end);
    let again = stack.gantry(&["pull", &name])?.ok()?;
    assert!(again.stdout.contains(&format!("Status: Image is up to date for {name}")), "{}", again.stdout);
    assert_eq!(stack.gantry(&["pull", "-q", &format!("{host}/test/three@{digest}")])?.ok()?.stdout.lines().count(), 1);
    let files = stack.gantry(&["run", "--rm", &name, "cat", "/etc/motd", "/etc/issue"])?.ok()?;
    assert_eq!(files.stdout, "zstdplain");
    Ok(())
}

fn images_are_listed_and_inspected(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    assert_eq!(stack.gantry(&["images"])?.ok()?.stdout, "REPOSITORY   TAG       IMAGE ID   CREATED   SIZE\n");
    stack.gantry(&["pull", "-q", "IMAGE"])?.ok()?;
    let config = Image::busybox()?.config()?.digest;
    let short = &config["sha256:".len()..][..12];
    let format = "{{.Repository}} {{.Tag}} {{.ID}}";
    let listed = stack.gantry(&["images", "--format", format])?.ok()?;
    assert_eq!(listed.text(), format!("{}/test/busybox latest {short}", stack.registry.host()));
    assert_eq!(stack.gantry(&["image", "ls", "-q"])?.ok()?.text(), short);
    assert_eq!(stack.gantry(&["images", "-q", "--no-trunc", "IMAGE"])?.ok()?.text(), config);
    let manifest = Image::busybox()?.manifest()?.digest;
    assert!(stack.gantry(&["images", "--digests"])?.ok()?.stdout.contains(&manifest));
    let inspected: Value = serde_json::from_str(&stack.gantry(&["inspect", "IMAGE"])?.ok()?.stdout)?;
    assert_eq!(inspected[0]["Id"], config.as_str());
    assert_eq!(inspected[0]["Config"]["Cmd"], serde_json::json!(["sh"]));
    assert_eq!(inspected[0]["RootFS"]["Layers"].as_array().map(Vec::len), Some(1));
    let command = stack.gantry(&["image", "inspect", "-f", "{{json .Config.Cmd}}", short])?.ok()?;
    assert_eq!(command.text(), "[\"sh\"]");
    let nothing = stack.gantry(&["inspect", "no-such-thing"])?.exits(1)?;
    assert_eq!(nothing.text(), "[]");
    assert!(nothing.stderr.contains("no such container or image"), "{}", nothing.stderr);
    Ok(())
}

fn images_are_removed_by_name_and_id(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    stack.gantry(&["create", "--name", "user", "IMAGE"])?.ok()?;
    let used = stack.gantry(&["rmi", "IMAGE"])?.exits(1)?;
    assert!(used.stderr.contains("container user is made of it"), "{}", used.stderr);
    stack.gantry(&["rm", "user"])?.ok()?;
    let removed = stack.gantry(&["rmi", "IMAGE"])?.ok()?;
    assert!(removed.stdout.contains("Untagged: "), "{}", removed.stdout);
    assert_eq!(stack.gantry(&["images", "-q"])?.ok()?.text(), "");
    stack.gantry(&["rmi", "IMAGE"])?.exits(1)?;
    // With -f, what is not there is reported, and no failure.
    for forced in [["rmi", "-f", "IMAGE"], ["rm", "-f", "user"]] {
        assert!(!stack.gantry(&forced)?.ok()?.stderr.is_empty(), "{forced:?}");
    }
    stack.gantry(&["rm", "user"])?.exits(1)?;
    stack.gantry(&["pull", "-q", "IMAGE"])?.ok()?;
    let id = stack.gantry(&["images", "-q"])?.ok()?;
    stack.gantry(&["image", "rm", id.text()])?.ok()?;
    assert_eq!(stack.gantry(&["images", "-q"])?.ok()?.text(), "");
    Ok(())
}

fn a_failed_pull_names_what_is_wrong(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    let host = stack.registry.host().to_owned();
    for (name, word) in [
        (format!("{host}/test/busybox:no-such-tag"), "no-such-tag"),
        (format!("{host}/no/such/image"), "no/such/image"),
        ("Upper/Case".to_owned(), "lower-case"),
        ("127.0.0.1:9/test".to_owned(), "127.0.0.1:9"),
    ] {
        let failed = stack.gantry(&["pull", &name])?.exits(1)?;
        assert!(failed.stderr.contains(word), "{name}: {}", failed.stderr);
        assert_eq!(failed.stderr.lines().filter(|line| line.starts_with("gantry: ")).count(), 1, "{}", failed.stderr);
    }
    let other = Image::empty().on_platform("linux", "riscv64");
    let many = image::push_index(&[other], &stack.registry, "test/other", "v1")?;
    let failed = stack.gantry(&["pull", &many])?.exits(1)?;
    assert!(failed.stderr.contains("riscv64"), "the error says what there is: {}", failed.stderr);
    assert_eq!(stack.gantry(&["images", "-q"])?.ok()?.text(), "");
    Ok(())
}

fn daemon_and_client_say_who_they_are(env: &Env) -> Result<()> {
    let daemon = env.daemon()?;
    let versions = daemon.gantry(&["version", "--format", "{{.Client.Version}} {{.Server.Version}}"])?.ok()?;
    let (client, server) = versions.text().split_once(' ').unwrap_or_default();
    assert_eq!(client, server);
    let info = daemon.gantry(&["info"])?.ok()?.stdout;
    assert!(info.contains("Snapshotter:") && info.contains(&env.path("root").display().to_string()), "{info}");
    let cpus: u32 = daemon.gantry(&["info", "-f", "{{.NCPU}}"])?.ok()?.text().parse()?;
    assert!(cpus > 0);
    let socket = daemon.socket().to_owned();
    assert!(daemon.stop()?.success());
    assert!(!socket.exists(), "the socket is still there");
    let mut gone = env.command("gantry")?;
    gone.arg("--address").arg(&socket).arg("ps");
    let gone = output::run(gone)?.exits(1)?;
    assert!(gone.stderr.contains("gantryd.sock") && gone.stderr.contains("hint: "), "{}", gone.stderr);
    Ok(())
}
