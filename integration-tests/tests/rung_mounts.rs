//! Mounts of a container, as callers of runc know them.

use std::fs;
use std::path::Path;

use anyhow::ensure;
use integration_tests::{Bundle, Env, Result, Test, output, tests};
use serde_json::{Value, json};

pub(crate) const TESTS: &[Test] = tests![
    a_source_may_be_an_earlier_mount[Root],
    a_source_in_the_root_of_a_user_namespace[Root, Userns],
    named_attributes_replace_those_of_the_source[Root],
    a_user_namespace_keeps_locked_attributes[Root, Userns],
    hooks_in_the_container_start_in_its_root[Root],
    without_a_mount_namespace_nothing_stays_mounted[Root],
    a_mount_by_string_is_found_through_a_link[Root],
    a_shared_root_gives_its_mounts_and_takes_none[Root],
    no_propagation_of_the_root_touches_the_hosts_mounts[Root],
    a_view_of_cgroups_holds_no_programs[Root, CgroupV1],
    message_queues_belong_to_root[Root],
    a_mount_that_is_there_is_remounted[Root],
];

fn bind(source: &Path, destination: &str, options: &[&str]) -> Value {
    json!({"source": source, "destination": destination, "type": "bind", "options": options})
}

/// The root file system belongs to the root of the new user namespace.
pub(crate) fn add_user_namespace(env: &Env, bundle: &mut Bundle) -> Result<()> {
    bundle.push("/linux/namespaces", json!({"type": "user"}));
    for ids in ["/linux/uidMappings", "/linux/gidMappings"] {
        bundle.push(ids, json!({"containerID": 0, "hostID": 100_000, "size": 65_536}));
    }
    env.run("chown", &["-hR", "100000:100000", &bundle.rootfs().to_string_lossy()])?.ok()?;
    for path in [env.root(), &bundle.path] {
        env.run("chmod", &["a+x", &path.to_string_lossy()])?.ok()?;
    }
    Ok(())
}

/// Three directories; the second is mounted in the first, and what that makes is mounted as a whole.
fn chain(env: &Env, bundle: &mut Bundle, options: &[&str]) -> Result<()> {
    let sources = env.dir("sources")?;
    for name in ["a", "b"] {
        fs::create_dir_all(sources.join(name).join("sub"))?;
        fs::write(sources.join(name).join("file"), name)?;
    }
    for place in ["mnt", "final"] {
        fs::create_dir(bundle.rootfs().join(place))?;
    }
    bundle.push("/mounts", bind(&sources.join("a"), "/mnt", &["bind"]));
    bundle.push("/mounts", bind(&sources.join("b"), "/mnt/sub", &["bind"]));
    // Both the source and the place are told by the path that the root has on the host.
    let place = bundle.rootfs().join("final");
    let mut whole = bind(&bundle.rootfs().join("mnt"), &place.to_string_lossy(), options);
    if options.contains(&"idmap") {
        for ids in ["uidMappings", "gidMappings"] {
            whole[ids] = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
        }
    }
    bundle.push("/mounts", whole);
    Ok(())
}

fn a_source_may_be_an_earlier_mount(env: &Env) -> Result<()> {
    let mut bundle = Bundle::new(env, "chain", &["cat", "/final/file", "/final/sub/file"])?;
    // As CRI-O says it: `bind` does not take `rbind` back.
    chain(env, &mut bundle, &["rbind", "bind"])?;
    let ran = env.run_rung(&["run", "--bundle", bundle.write()?, &env.id("chain")])?.ok()?;
    assert_eq!(ran.text(), "ab");
    Ok(())
}

fn a_source_in_the_root_of_a_user_namespace(env: &Env) -> Result<()> {
    let mut bundle = Bundle::new(env, "mapped", &["sh", "-c", "cat /final/file /final/sub/file; stat -c :%u /final"])?;
    chain(env, &mut bundle, &["rbind", "idmap"])?;
    add_user_namespace(env, &mut bundle)?;
    let ran = env.run_rung(&["run", "--bundle", bundle.write()?, &env.id("mapped")])?.ok()?;
    // Owned by root of the host; as the mount maps it, by root of the container.
    assert_eq!(ran.text(), "ab:0");
    Ok(())
}

/// Runs a container with one bind mount whose source is a tmpfs with `attributes`; the answer is what `/mnt` has there.
fn attributes(env: &Env, attributes: &str, options: &[&str], user_namespace: bool) -> Result<output::Ran> {
    let source = env.path("tmpfs");
    fs::create_dir_all(&source)?;
    let path = source.to_string_lossy().into_owned();
    env.run("mount", &["-t", "tmpfs", "-o", "mode=755", "tmpfs", &path])?.ok()?;
    let attempt = || -> Result<output::Ran> {
        env.run("mount", &["-o", &format!("remount,bind,{attributes}"), &path])?.ok()?;
        let name = "attributes";
        if env.path(name).exists() {
            fs::remove_dir_all(env.path(name))?;
        }
        let mut bundle = Bundle::new(env, name, &["sh", "-c", "grep ' /mnt ' /proc/self/mounts | cut -d' ' -f4"])?;
        fs::create_dir(bundle.rootfs().join("mnt"))?;
        if user_namespace {
            add_user_namespace(env, &mut bundle)?;
        }
        bundle.push("/mounts", bind(&source, "/mnt", options));
        env.run_rung(&["run", "--bundle", bundle.write()?, &env.id(name)])
    };
    let ran = attempt();
    env.run("umount", &[&path])?.ok()?;
    ran
}

/// Whether all of the first are there, and none of the second.
fn check(ran: &output::Ran, has: &[&str], lacks: &[&str]) -> Result<()> {
    let text = ran.text();
    let words: Vec<&str> = text.split(',').collect();
    ensure!(has.iter().all(|word| words.contains(word)), "{text} lacks one of {has:?}");
    ensure!(!lacks.iter().any(|word| words.contains(word)), "{text} has one of {lacks:?}");
    Ok(())
}

fn named_attributes_replace_those_of_the_source(env: &Env) -> Result<()> {
    let source = "ro,nosuid,noexec,noatime";
    let without = attributes(env, source, &["bind"], false)?.ok()?;
    check(&without, &["ro", "nosuid", "noexec", "noatime"], &["nodev"])?;
    let named = attributes(env, source, &["bind", "nodev"], false)?.ok()?;
    check(&named, &["rw", "nodev", "noatime"], &["ro", "nosuid", "noexec"])?;
    // A word that takes back what was not asked for changes nothing; a kind of access times replaces the other.
    check(&attributes(env, source, &["bind", "atime"], false)?.ok()?, &["rw", "noatime"], &[])?;
    check(&attributes(env, source, &["bind", "relatime"], false)?.ok()?, &["relatime"], &["noatime"])
}

fn a_user_namespace_keeps_locked_attributes(env: &Env) -> Result<()> {
    let source = "nosuid,nodev,noatime";
    check(&attributes(env, source, &["bind", "ro"], true)?.ok()?, &["ro", "nosuid", "nodev", "noatime"], &[])?;
    for words in [&["bind", "dev"][..], &["bind", "relatime"]] {
        let refused = attributes(env, source, words, true)?.fails()?;
        ensure!(refused.contains("error mounting") && refused.contains("operation not permitted"), "{refused}");
    }
    Ok(())
}

/// A file system that takes its options as one string, with a word that is for the mount.
fn a_mount_by_string_is_found_through_a_link(env: &Env) -> Result<()> {
    let mut bundle = Bundle::new(env, "linked", &["grep", "-o", "/real/place .* - ramfs", "/proc/self/mountinfo"])?;
    fs::create_dir_all(bundle.rootfs().join("real/place"))?;
    std::os::unix::fs::symlink("real/place", bundle.rootfs().join("link"))?;
    let options = ["nodev", "shared"];
    bundle.push("/mounts", json!({"destination": "/link", "type": "ramfs", "source": "ramfs", "options": options}));
    let ran = env.run_rung(&["run", "--bundle", bundle.write()?, &env.id("linked")])?.ok()?;
    ensure!(ran.text().contains("nodev") && ran.text().contains("shared:"), "{}", ran.text());
    Ok(())
}

fn hooks_in_the_container_start_in_its_root(env: &Env) -> Result<()> {
    let mut bundle = Bundle::new(env, "hook", &["cat", "/made"])?;
    bundle.set("/root/readonly", false);
    let hook = json!({"path": "/bin/sh", "args": ["sh", "-c", "umask >made"]});
    bundle.push("/hooks/createContainer", hook);
    let rung = env.rung(&["run", "--bundle", bundle.write()?, &env.id("hook")])?;
    let mut command = std::process::Command::new("sh");
    env.prepare(&mut command);
    command.args(["-c", "umask 027; \"$@\"", "sh"]).arg(rung.get_program()).args(rung.get_args());
    // The caller's: what such a hook makes must not be everybody's to write.
    assert_eq!(output::run(command)?.ok()?.text(), "0027");
    Ok(())
}

fn without_a_mount_namespace_nothing_stays_mounted(env: &Env) -> Result<()> {
    let mut bundle = Bundle::new(env, "host", &["true"])?;
    let kinds = bundle.config["linux"]["namespaces"].as_array().into_iter().flatten();
    let kinds: Vec<Value> = kinds.filter(|kind| kind["type"] != "mount").cloned().collect();
    bundle.set("/linux/namespaces", kinds).set("/linux/maskedPaths", json!([])).set("/linux/readonlyPaths", json!([]));
    env.run_rung(&["run", "--bundle", bundle.write()?, &env.id("host")])?.ok()?;
    let mounts = || -> Result<bool> { Ok(fs::read_to_string("/proc/self/mounts")?.contains(env.token())) };
    ensure!(!mounts()?, "the mounts of a container are left");
    // Nor after a start that failed when they were made already.
    bundle.set("/process/args/0", "no-such-program");
    env.run_rung(&["run", "--bundle", bundle.write()?, &env.id("host")])?.fails()?;
    ensure!(!mounts()?, "the mounts of a container that never ran are left");
    Ok(())
}

/// In a mount namespace of the test's own, whose mounts are shared, as the host's are under systemd.
fn a_shared_root_gives_its_mounts_and_takes_none(env: &Env) -> Result<()> {
    let source = env.dir("source")?;
    let mut bundle = Bundle::new(env, "shared", &["sh", "-c", "mkdir /mnt/new && mount -o bind /bin /mnt/new"])?;
    fs::create_dir(bundle.rootfs().join("mnt"))?;
    for set in ["bounding", "effective", "permitted"] {
        bundle.push(&format!("/process/capabilities/{set}"), "CAP_SYS_ADMIN");
    }
    bundle.set("/linux/rootfsPropagation", "rshared");
    bundle.push("/mounts", bind(&source, "/mnt", &["rbind", "rshared"]));
    let script = "mount --make-rshared /; mount --bind $0 $0; mount --make-shared $0; \"$@\"; ls $0/new; \
        grep -c ' /proc ' /proc/self/mountinfo";
    let rung = env.rung(&["run", "--bundle", bundle.write()?, &env.id("shared")])?;
    let mut command = std::process::Command::new("unshare");
    env.prepare(&mut command);
    command.args(["--mount", "sh", "-ec", script]).arg(&source).arg(rung.get_program()).args(rung.get_args());
    let ran = output::run(command)?.ok()?;
    let lines: Vec<&str> = ran.text().lines().collect();
    ensure!(lines.contains(&"busybox"), "what the container mounted is not seen outside: {lines:?}");
    ensure!(lines.last() == Some(&"1"), "the host's mounts went with the container's old root: {lines:?}");
    Ok(())
}

/// As above. The words that say nothing of the mounts below leave those the peers of the host's.
fn no_propagation_of_the_root_touches_the_hosts_mounts(env: &Env) -> Result<()> {
    let source = env.dir("source")?;
    fs::create_dir(source.join("in"))?;
    let mut bundle = Bundle::new(env, "kept", &["true"])?;
    for word in ["slave", "private", "unbindable", "shared", "rprivate"] {
        bundle.set("/linux/rootfsPropagation", word);
        let script = "mount --make-rshared /; mount --bind $0 $0; mount --make-shared $0; mount --bind /bin $0/in; \
            \"$@\"; ls $0/in; grep -c /kept/ /proc/self/mountinfo || true";
        let rung = env.rung(&["run", "--bundle", bundle.write()?, &env.id("kept")])?;
        let mut command = std::process::Command::new("unshare");
        env.prepare(&mut command);
        command.args(["--mount", "sh", "-ec", script]).arg(&source).arg(rung.get_program()).args(rung.get_args());
        let ran = output::run(command)?.ok()?;
        let lines: Vec<&str> = ran.text().lines().collect();
        ensure!(lines.contains(&"sh"), "{word}: the host's mount went with the container's old root: {lines:?}");
        ensure!(lines.last() == Some(&"0"), "{word}: a mount of the container's is the host's: {lines:?}");
    }
    Ok(())
}

/// Of v2 there is one mount, which has the options that it is given.
fn a_view_of_cgroups_holds_no_programs(env: &Env) -> Result<()> {
    let script =
        "grep ' /view' /proc/self/mountinfo | grep -v nosuid,nodev,noexec; grep -c ' /view/' /proc/self/mountinfo";
    let mut bundle = Bundle::new(env, "view", &["sh", "-c", script])?;
    let kinds = bundle.config["linux"]["namespaces"].as_array().into_iter().flatten();
    let mut kinds: Vec<Value> = kinds.filter(|kind| kind["type"] != "cgroup").cloned().collect();
    kinds.push(json!({"type": "cgroup"}));
    bundle.set("/linux/namespaces", kinds);
    bundle.push("/mounts", json!({"destination": "/view", "type": "cgroup", "source": "cgroup"}));
    let ran = env.run_rung(&["run", "--bundle", bundle.write()?, &env.id("view")])?.ok()?;
    ensure!(ran.text().parse::<u32>().is_ok_and(|count| count > 0), "{}", ran.text());
    Ok(())
}

/// Whoever makes an IPC namespace owns its message queues.
fn message_queues_belong_to_root(env: &Env) -> Result<()> {
    let mut bundle = Bundle::new(env, "queues", &["sleep", "600"])?;
    add_user_namespace(env, &mut bundle)?;
    let (id, owner) = (env.id("queues"), ["stat", "-c", "%u:%g", "/dev/mqueue"]);
    env.run_rung(&["run", "--detach", "--bundle", bundle.write()?, &id])?.ok()?;
    let made = env.run_rung(&[&["exec", &id], &owner[..]].concat());
    let state: Value = serde_json::from_str(env.run_rung(&["state", &id])?.ok()?.text())?;
    let mut other = Bundle::new(env, "joins", &owner)?;
    let path = format!("/proc/{}/ns/user", state["pid"]);
    other.push("/linux/namespaces", json!({"type": "user", "path": path}));
    env.run("chown", &["-hR", "100000:100000", &other.rootfs().to_string_lossy()])?.ok()?;
    env.run("chmod", &["a+x", &other.path.to_string_lossy()])?.ok()?;
    let joined = env.run_rung(&["run", "--bundle", other.write()?, &env.id("joins")]);
    env.run_rung(&["delete", "--force", &id])?.ok()?;
    assert_eq!((made?.ok()?.text(), joined?.ok()?.text()), ("0:0", "0:0"));
    Ok(())
}

/// As the words say it to mount(8): the source does not matter then.
fn a_mount_that_is_there_is_remounted(env: &Env) -> Result<()> {
    let script = "echo x 2>/dev/null >/mnt/file || echo refused; grep -c ' /mnt ' /proc/self/mountinfo; ls /mnt";
    let mut bundle = Bundle::new(env, "remount", &["sh", "-c", script])?;
    let (first, other) = (env.dir("first")?, env.dir("other")?);
    fs::create_dir(bundle.rootfs().join("mnt"))?;
    fs::write(first.join("kept"), "")?;
    bundle.push("/mounts", bind(&first, "/mnt", &["bind"]));
    bundle.push("/mounts", bind(&other, "/mnt", &["bind", "remount", "ro"]));
    let ran = env.run_rung(&["run", "--bundle", bundle.write()?, &env.id("remount")])?.ok()?;
    assert_eq!(ran.text(), "refused\n1\nkept");
    Ok(())
}
