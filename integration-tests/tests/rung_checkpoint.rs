//! Checkpoint and restore, and what is refused of checkpoints that come from elsewhere. criu does not work on every
//! kernel: where it cannot even check itself, the tests that need it are skipped.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, ensure};
use integration_tests::{Bundle, Env, Result, Test, output, tests, wait};
use serde_json::json;

pub(crate) const TESTS: &[Test] = tests![
    a_container_goes_on_where_it_was[Root, Criu],
    mounts_of_the_host_come_from_the_bundle[Root, Criu],
    a_mount_point_that_criu_would_misread_is_refused[Root, Criu],
    pipes_are_connected_again[Root, Criu],
    memory_is_written_in_steps[Root, Criu],
    a_user_namespace_comes_back[Root, Criu],
    namespaces_of_the_host_by_path_come_back[Root, Criu],
    cgroups_can_be_left_to_the_caller[Root, Criu],
    a_restore_that_fails_leaves_others_alone[Root],
    zombies_do_not_hinder_a_checkpoint[Root, Criu],
    a_bundle_that_hides_more_refuses_the_images[Root, Criu],
    a_bundle_that_allows_less_refuses_the_images[Root, Criu],
    archives_with_links_are_refused[Root],
    only_what_runs_can_be_checkpointed[Root],
    flags_are_checked[Root],
    without_criu_it_says_so[Root],
    criu_starts_where_the_container_will_be[Root],
];

fn counting(env: &Env, name: &str) -> Result<Bundle> {
    // Counts in memory, and answers with where it is.
    let script = "i=0; while true; do i=$((i+1)); echo $i > /count; sleep 0.05; done";
    let mut bundle = Bundle::new(env, name, &["sh", "-c", script])?;
    bundle.set("/root/readonly", false);
    Ok(bundle)
}

fn count(bundle: &Bundle) -> Option<u64> {
    fs::read_to_string(bundle.rootfs().join("count")).ok()?.trim().parse().ok()
}

/// Runs with nothing of ours open: a file of the host would be outside of what criu can write.
fn quietly(env: &Env, args: &[&str]) -> Result<()> {
    let log = env.path("rung.log");
    let log_text = log.to_str().context("a path")?;
    let mut all = vec!["--log", log_text];
    all.extend(args);
    let mut command = env.rung(&all)?;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let code = command.status()?;
    ensure!(code.success(), "{args:?}: {code}: {}", fs::read_to_string(&log).unwrap_or_default());
    Ok(())
}

fn wait_for_count(bundle: &Bundle, above: u64) -> Result<u64> {
    wait::until("it counts", || count(bundle).filter(|count| *count > above))
}

/// Starts, checkpoints (which removes the container), and gives the path of the images.
fn checkpointed(env: &Env, bundle: &Bundle, id: &str) -> Result<String> {
    quietly(env, &["run", "--detach", "--bundle", bundle.write()?, id])?;
    wait_for_count(bundle, 3)?;
    let images = env.path("images").to_str().context("a path")?.to_owned();
    quietly(env, &["checkpoint", "--image-path", &images, id])?;
    ensure!(env.run_rung(&["state", id])?.fails()?.contains("does not exist"), "the container is still there");
    Ok(images)
}

fn a_container_goes_on_where_it_was(env: &Env) -> Result<()> {
    let id = env.id("goes");
    let bundle = counting(env, "goes")?;
    let images = checkpointed(env, &bundle, &id)?;
    // The file may have been caught empty, between two counts.
    let before = count(&bundle).unwrap_or(3);
    quietly(env, &["restore", "--detach", "--bundle", bundle.write()?, "--image-path", &images, &id])?;
    ensure!(env.state(&id)?["status"] == "running");
    let after = wait_for_count(&bundle, before)?;
    ensure!(after < before + 1000, "it began anew");
    // criu 3.17 does not bring this back by itself.
    let status = env.run_rung(&["exec", &id, "cat", "/proc/1/status"])?.ok()?.stdout;
    env.run_rung(&["delete", "--force", &id])?.ok()?;
    ensure!(status.contains("NoNewPrivs:\t1"), "{status}");
    Ok(())
}

/// CVE-2026-119101, CVE-2026-115520: through a link in the image, under a name full of what criu gives a meaning, and
/// read-only.
fn mounts_of_the_host_come_from_the_bundle(env: &Env) -> Result<()> {
    let id = env.id("mounts");
    let mut bundle = counting(env, "mounts")?;
    let (first, second) = (env.dir("first")?, env.dir("second")?);
    fs::write(first.join("who"), "first")?;
    fs::write(second.join("who"), "second")?;
    fs::create_dir_all(bundle.rootfs().join("real/conf"))?;
    symlink("/real/conf", bundle.rootfs().join("conf"))?;
    for (destination, options) in [("/conf", json!(["bind", "ro", "private"])), ("/a:b c", json!(["bind", "private"]))]
    {
        bundle.push("/mounts", json!({"source": first, "destination": destination, "options": options}));
    }
    let images = checkpointed(env, &bundle, &id)?;
    // What is mounted is up to whoever restores.
    for mount in bundle.config["mounts"].as_array_mut().context("mounts")? {
        if mount["destination"] == "/conf" {
            mount["source"] = json!(second);
        }
    }
    quietly(env, &["restore", "--detach", "--bundle", bundle.write()?, "--image-path", &images, &id])?;
    let outcome = || -> Result<()> {
        ensure!(env.run_rung(&["exec", &id, "cat", "/real/conf/who"])?.ok()?.text() == "second");
        ensure!(env.run_rung(&["exec", &id, "cat", "/a:b c/who"])?.ok()?.text() == "first");
        ensure!(env.run_rung(&["exec", &id, "touch", "/conf/x"])?.fails()?.contains("Read-only"));
        Ok(())
    }();
    env.run_rung(&["delete", "--force", &id])?.ok()?;
    outcome
}

/// In what criu is told of a mount, these two characters end the name.
fn a_mount_point_that_criu_would_misread_is_refused(env: &Env) -> Result<()> {
    let id = env.id("misread");
    let mut bundle = counting(env, "misread")?;
    let mount = json!({"source": env.dir("data")?, "destination": "/a]:b", "options": ["bind", "private"]});
    bundle.push("/mounts", mount);
    quietly(env, &["run", "--detach", "--bundle", bundle.write()?, &id])?;
    let images = env.path("images");
    let refused = env.run_rung(&["checkpoint", "--image-path", &images.to_string_lossy(), &id])?.fails();
    let state = env.state(&id);
    env.run_rung(&["delete", "--force", &id])?.ok()?;
    ensure!(refused?.contains("criu cannot express the mount point /a]:b"));
    ensure!(state?["status"] == "running");
    Ok(())
}

fn pipes_are_connected_again(env: &Env) -> Result<()> {
    let id = env.id("pipes");
    let bundle = Bundle::new(env, "pipes", &["sh", "-c", "while read line; do echo got $line; done"])?;
    let images = env.path("images").to_str().context("a path")?.to_owned();
    let (mut input, mut output) = (std::io::pipe()?, std::io::pipe()?);
    let rung = |args: &[&str]| -> Result<()> {
        let log = env.path("pipes.log");
        let mut command = env.rung(&[&["--log", log.to_str().context("a path")?], args].concat())?;
        command.stdin(input.0.try_clone()?).stdout(output.1.try_clone()?).stderr(output.1.try_clone()?);
        ensure!(command.status()?.success(), "{args:?}: {}", fs::read_to_string(&log).unwrap_or_default());
        Ok(())
    };
    rung(&["run", "--detach", "--bundle", bundle.write()?, &id])?;
    quietly(env, &["checkpoint", "--image-path", &images, &id])?;
    rung(&["restore", "--detach", "--bundle", bundle.write()?, "--image-path", &images, &id])?;
    drop((input.0, output.1));
    input.1.write_all(b"one\n")?;
    drop(input.1);
    let mut said = String::new();
    output.0.read_to_string(&mut said)?;
    env.run_rung(&["delete", "--force", &id])?.ok()?;
    ensure!(said.contains("got one"), "{said}");
    Ok(())
}

fn memory_is_written_in_steps(env: &Env) -> Result<()> {
    let id = env.id("steps");
    let bundle = counting(env, "steps")?;
    quietly(env, &["run", "--detach", "--bundle", bundle.write()?, &id])?;
    let (first, second) = (env.path("first"), env.path("second"));
    let (first, second) = (first.to_str().context("a path")?, second.to_str().context("a path")?);
    let dumped = env.run_rung(&["checkpoint", "--pre-dump", "--image-path", first, &id])?;
    if dumped.stderr.contains("missing features") {
        // This kernel cannot track memory; that it is said is all there is to see.
        env.run_rung(&["delete", "--force", &id])?.ok()?;
        return Ok(());
    }
    dumped.ok()?;
    ensure!(env.state(&id)?["status"] == "running");
    quietly(env, &["checkpoint", "--parent-path", "../first", "--image-path", second, &id])?;
    ensure!(Path::new(second).join("parent").exists(), "the second step does not refer to the first");
    quietly(env, &["restore", "--detach", "--bundle", bundle.write()?, "--image-path", second, &id])?;
    ensure!(env.state(&id)?["status"] == "running");
    env.run_rung(&["delete", "--force", &id])?.ok()?;
    Ok(())
}

fn a_user_namespace_comes_back(env: &Env) -> Result<()> {
    let id = env.id("user");
    let mut bundle = counting(env, "user")?;
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
    bundle.push("/linux/namespaces", json!({"type": "user"}));
    bundle.set("/linux/uidMappings", map.clone()).set("/linux/gidMappings", map);
    env.run("chown", &["-R", "100000:100000", bundle.rootfs().to_str().context("a path")?])?.ok()?;
    let images = checkpointed(env, &bundle, &id)?;
    quietly(env, &["restore", "--detach", "--bundle", bundle.write()?, "--image-path", &images, &id])?;
    let user = env.run_rung(&["exec", &id, "cat", "/proc/1/uid_map"])?.ok()?.stdout;
    env.run_rung(&["delete", "--force", &id])?.ok()?;
    ensure!(user.contains("100000"), "{user}");
    Ok(())
}

/// A path may lead to what the host has. That was taken for an escape.
fn namespaces_of_the_host_by_path_come_back(env: &Env) -> Result<()> {
    let id = env.id("joined");
    let mut bundle = counting(env, "joined")?;
    for namespace in bundle.config["linux"]["namespaces"].as_array_mut().context("namespaces")? {
        let file = match namespace["type"].as_str().context("a type")? {
            "network" => "net",
            kind @ ("ipc" | "uts") => kind,
            _ => continue,
        };
        namespace["path"] = json!(format!("/proc/{}/ns/{file}", std::process::id()));
    }
    let images = checkpointed(env, &bundle, &id)?;
    quietly(env, &["restore", "--detach", "--bundle", bundle.write()?, "--image-path", &images, &id])?;
    let state = env.state(&id);
    env.run_rung(&["delete", "--force", &id])?.ok()?;
    ensure!(state?["status"] == "running");
    Ok(())
}

/// As podman restores: criu has nothing to do with cgroups then, and the namespace of them is ours to make.
fn cgroups_can_be_left_to_the_caller(env: &Env) -> Result<()> {
    let (id, ignore) = (env.id("left"), ["--manage-cgroups-mode", "ignore"]);
    let mut bundle = counting(env, "left")?;
    bundle.share("cgroup").push("/linux/namespaces", json!({"type": "cgroup"}));
    quietly(env, &["run", "--detach", "--bundle", bundle.write()?, &id])?;
    wait_for_count(&bundle, 3)?;
    let images = env.path("images").to_str().context("a path")?.to_owned();
    quietly(env, &[&["checkpoint", "--image-path", &images], &ignore[..], &[&id]].concat())?;
    let restore = ["restore", "--detach", "--bundle", bundle.write()?, "--image-path", &images];
    quietly(env, &[&restore[..], &ignore, &[&id]].concat())?;
    let state = env.state(&id)?;
    let pid = &state["pid"];
    let outside = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let seen = env.run_rung(&["exec", &id, "cat", "/proc/1/cgroup"])?;
    env.run_rung(&["delete", "--force", &id])?.ok()?;
    let seen = seen.ok()?.text().to_owned();
    ensure!(outside.contains(&id), "{outside}");
    ensure!(seen.lines().all(|line| line.ends_with(":/")), "{seen}");
    Ok(())
}

/// Before it has made its cgroup, what is at that place is another container.
fn a_restore_that_fails_leaves_others_alone(env: &Env) -> Result<()> {
    let bundle = Bundle::new(env, "neighbour", &["sleep", "600"])?;
    let (id, path) = (env.id("neighbour"), bundle.write()?.to_owned());
    quietly(env, &["create", "--bundle", &path, &id])?;
    let (images, other) = (env.path("none").display().to_string(), env.id("other"));
    env.run_rung(&["restore", "--bundle", &path, "--image-path", &images, &other])?.fails()?;
    assert_eq!(env.state(&id)?["status"], "created");
    env.run_rung(&["delete", &id])?.ok()?;
    Ok(())
}

/// A process that has ended and is not waited for has neither namespaces nor rights that could be wrong.
fn zombies_do_not_hinder_a_checkpoint(env: &Env) -> Result<()> {
    let id = env.id("dead");
    let mut bundle = counting(env, "dead")?;
    let dead = "(until grep -q sleep /proc/1/comm; do :; done) & dead=$!; \
                (until grep -q ' Z ' /proc/$dead/stat; do :; done; echo 4 > /count) & exec sleep 600";
    bundle.set("/process/args", json!(["sh", "-c", dead]));
    let images = checkpointed(env, &bundle, &id)?;
    quietly(env, &["restore", "--detach", "--bundle", bundle.write()?, "--image-path", &images, &id])?;
    let shown = env.run_rung(&["exec", &id, "sh", "-c", "grep -h ^State: /proc/[0-9]*/status"])?.ok()?.stdout;
    env.run_rung(&["delete", "--force", &id])?.ok()?;
    ensure!(shown.contains("Z (zombie)"), "{shown}");
    Ok(())
}

/// Images of a container without masks must not become a container that should have them.
fn a_bundle_that_hides_more_refuses_the_images(env: &Env) -> Result<()> {
    let id = env.id("hides");
    let mut bundle = counting(env, "hides")?;
    let (masked, locked) =
        (bundle.config["linux"]["maskedPaths"].clone(), bundle.config["linux"]["readonlyPaths"].clone());
    bundle.set("/linux/maskedPaths", json!([])).set("/linux/readonlyPaths", json!([]));
    let images = checkpointed(env, &bundle, &id)?;
    bundle.set("/linux/maskedPaths", masked).set("/linux/readonlyPaths", locked);
    let said = restore_fails(env, &bundle, &images, &id)?;
    ensure!(said.contains("the checkpoint does not match the bundle"), "{said}");
    Ok(())
}

fn a_bundle_that_allows_less_refuses_the_images(env: &Env) -> Result<()> {
    let id = env.id("less");
    let mut bundle = counting(env, "less")?;
    bundle.grant("CAP_NET_ADMIN");
    let images = checkpointed(env, &bundle, &id)?;
    for set in ["bounding", "effective", "permitted"] {
        bundle.set(&format!("/process/capabilities/{set}"), json!(["CAP_KILL"]));
    }
    let said = restore_fails(env, &bundle, &images, &id)?;
    ensure!(said.contains("capabilities that the configuration does not give"), "{said}");
    Ok(())
}

/// The restore fails, and nothing of it is left.
fn restore_fails(env: &Env, bundle: &Bundle, images: &str, id: &str) -> Result<String> {
    let mut command = env.rung(&["restore", "--detach", "--bundle", bundle.write()?, "--image-path", images, id])?;
    command.stdin(Stdio::null());
    let said = output::run(command)?.fails()?;
    ensure!(env.run_rung(&["state", id])?.fails()?.contains("does not exist"), "something is left");
    Ok(said)
}

/// criu runs as root, follows links and writes its log beside the images.
fn archives_with_links_are_refused(env: &Env) -> Result<()> {
    let bundle = Bundle::new(env, "links", &["true"])?;
    let canary = env.path("canary");
    fs::write(&canary, "unharmed")?;
    for name in ["restore.log", "pages-1.img", "descriptors.json"] {
        let images = env.dir(&format!("images-{name}"))?;
        symlink(&canary, images.join(name))?;
        let said = restore_fails(env, &bundle, images.to_str().context("a path")?, &env.id("links"))?;
        ensure!(said.contains("is refused") && said.contains(name), "{said}");
    }
    let images = env.dir("images-parent")?;
    symlink("/etc", images.join("parent"))?;
    let said = restore_fails(env, &bundle, images.to_str().context("a path")?, &env.id("links"))?;
    ensure!(said.contains("older images"), "{said}");
    ensure!(fs::read_to_string(&canary)? == "unharmed");
    Ok(())
}

fn only_what_runs_can_be_checkpointed(env: &Env) -> Result<()> {
    let id = env.id("created");
    let bundle = Bundle::new(env, "created", &["sleep", "100"])?;
    quietly(env, &["create", "--bundle", bundle.write()?, &id])?;
    let said =
        env.run_rung(&["checkpoint", "--image-path", env.path("x").to_str().context("a path")?, &id])?.fails()?;
    ensure!(said.contains("cannot be checkpointed in created state"), "{said}");
    env.run_rung(&["delete", "--force", &id])?.ok()?;
    let said = env.run_rung(&["checkpoint", &id])?.fails()?;
    ensure!(said.contains("does not exist"), "{said}");
    Ok(())
}

fn flags_are_checked(env: &Env) -> Result<()> {
    let id = env.id("flags");
    let bundle = Bundle::new(env, "flags", &["sleep", "100"])?;
    quietly(env, &["run", "--detach", "--bundle", bundle.write()?, &id])?;
    let images = env.path("images").to_str().context("a path")?.to_owned();
    let outcome = || -> Result<()> {
        for (flags, text) in [
            (&["--parent-path", "/absolute"][..], "--parent-path must be relative"),
            (&["--parent-path", "../missing"], "--parent-path"),
            (&["--page-server", "nowhere"], "ADDRESS:PORT"),
            (&["--manage-cgroups-mode", "loose"], "invalid manage-cgroups-mode value"),
            (&["--empty-ns", "pid"], "is not supported"),
            (&["--status-fd", "99"], "invalid --status-fd argument 99"),
        ] {
            let mut args = vec!["checkpoint", "--image-path", &images];
            args.extend(flags);
            args.push(&id);
            let said = env.run_rung(&args)?.fails()?;
            ensure!(said.contains(text), "{flags:?}: {said}");
        }
        ensure!(env.state(&id)?["status"] == "running", "a refused checkpoint changed the container");
        Ok(())
    }();
    env.run_rung(&["delete", "--force", &id])?.ok()?;
    outcome
}

fn without_criu_it_says_so(env: &Env) -> Result<()> {
    let id = env.id("without");
    let bundle = Bundle::new(env, "without", &["sleep", "100"])?;
    quietly(env, &["run", "--detach", "--bundle", bundle.write()?, &id])?;
    let mut command = env.rung(&["checkpoint", "--image-path", env.path("x").to_str().context("a path")?, &id])?;
    command.env("PATH", env.dir("empty")?);
    let said = output::run(command);
    env.run_rung(&["delete", "--force", &id])?.ok()?;
    ensure!(said?.fails()?.contains("criu is not installed"));
    Ok(())
}

/// A stand-in for criu, which works on few kernels, tells in which cgroups it was started: with `ignore` that is where what
/// it restores stays, so they are the roots of a namespace there.
fn criu_starts_where_the_container_will_be(env: &Env) -> Result<()> {
    let (programs, images, said) = (env.dir("programs")?, env.dir("images")?, env.path("said"));
    let id = env.id("where");
    env.script("programs/criu", &format!("#!/bin/sh\nexec cat /proc/self/cgroup > {}\n", said.display()))?;
    fs::write(images.join("descriptors.json"), "[]")?;
    let mut bundle = counting(env, "where")?;
    bundle.share("cgroup").push("/linux/namespaces", json!({"type": "cgroup"}));
    let path = std::env::join_paths(std::iter::once(programs).chain(std::env::split_paths(&std::env::var("PATH")?)))?;
    for (mode, inside) in [("ignore", true), ("soft", false)] {
        let images = images.to_str().context("a path")?;
        let restore =
            ["restore", "--bundle", bundle.write()?, "--image-path", images, "--manage-cgroups-mode", mode, &id];
        let mut command = env.rung(&restore)?;
        command.env("PATH", &path);
        output::run(command)?.fails()?;
        let seen = fs::read_to_string(&said)?;
        let line = seen.lines().last().unwrap_or_default();
        ensure!(line.ends_with(":/") == inside && line.contains(&id) != inside, "{mode}: {seen}");
    }
    Ok(())
}
