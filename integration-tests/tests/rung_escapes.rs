//! Attacks of the past on runtimes, performed on ours. Each test names the advisory it repeats.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::process::Stdio;

use anyhow::{Context as _, ensure};
use integration_tests::{Bundle, Env, Result, Test, output, tests, wait};
use serde_json::json;

pub(crate) const TESTS: &[Test] = tests![
    the_log_says_how_the_executable_is_protected[Root],
    the_executable_cannot_be_overwritten[Root],
    a_container_cannot_run_the_runtime_as_its_program[Root],
    a_read_only_disk_makes_the_runtime_no_program[Root],
    working_directories_stay_inside[Root],
    descriptors_of_the_host_do_not_leak[Root],
    proc_and_sys_must_be_directories[Root],
    dev_must_not_be_a_link[Root],
    mount_targets_stay_inside[Root],
    a_false_null_device_masks_nothing[Root],
    settings_of_the_host_are_refused[Root],
    capabilities_are_never_inherited[Root],
    user_names_are_not_numbers[Root],
    an_exec_stays_inside_too[Root],
    a_console_that_is_a_link_is_refused[Root],
    a_null_device_that_is_a_link_gives_nothing_away[Root],
    a_false_proc_does_not_keep_the_root_writable[Root],
    long_texts_forge_no_messages[Root],
    nothing_is_mounted_over_proc[Root],
];

fn detached(env: &Env, bundle: &Bundle, id: &str) -> Result<()> {
    env.run_rung(&["run", "--detach", "--bundle", bundle.write()?, id])?.ok().map(drop)
}

/// CVE-2019-5736: the file behind `/proc/<pid>/exe` of an exec, held open for reading and opened again for writing once
/// nobody executes it any more.
fn the_executable_cannot_be_overwritten(env: &Env) -> Result<()> {
    let id = env.id("exe");
    let program = env.program("rung")?;
    let before = fs::metadata(&program)?;
    let attack = "exec 9</proc/self/exe; sleep 1; echo x > /proc/self/fd/9";
    let mut bundle = Bundle::new(env, "exe", &["sleep", "100"])?;
    bundle.set("/root/readonly", false);
    // A script whose interpreter is the runtime itself: the first container keeps what it can open of it.
    let watcher = "while :; do for p in /proc/[0-9]*; do case \"$(readlink $p/exe 2>/dev/null)\" in /|/rung) \
                   exec 9<$p/exe; while :; do echo x 2>/dev/null >/proc/self/fd/9 && touch /won; done;; esac; done; done";
    bundle.set("/process/args", json!(["sh", "-c", watcher]));
    detached(env, &bundle, &id)?;
    for _ in 0..if wait::patience() < 4 { 20 } else { 5 } {
        // The outcome of each does not matter; what the watcher can make of it does.
        env.run_rung(&["exec", &id, "/proc/self/exe", "--version"])?;
    }
    env.run_rung(&["exec", &id, "sh", "-c", attack])?;
    ensure!(!bundle.rootfs().join("won").exists(), "the executable was written to");
    let after = fs::metadata(&program)?;
    ensure!((before.len(), before.mtime(), before.ino()) == (after.len(), after.mtime(), after.ino()));
    env.run_rung(&["delete", "--force", &id])?.ok()?;
    Ok(())
}

/// With `--debug` the log says how the executable is protected, in the words that runc's own tests look for.
fn the_log_says_how_the_executable_is_protected(env: &Env) -> Result<()> {
    let bundle = Bundle::new(env, "seal", &["echo", "hi"])?;
    let ran = env.run_rung(&["--debug", "run", "--bundle", bundle.write()?, &env.id("seal")])?.ok()?;
    ensure!(ran.stdout == "hi\n", "{}", ran.text());
    for said in ["using /proc/self/exe clone", "using overlayfs for sealed /proc/self/exe"] {
        ensure!(ran.stderr.contains(&format!("runc exeseal: {said}")), "{}", ran.stderr);
    }
    Ok(())
}

/// CVE-2019-5736, the entry point: `/proc/self/exe` as the program of a container is the runtime.
fn a_container_cannot_run_the_runtime_as_its_program(env: &Env) -> Result<()> {
    let bundle = Bundle::new(env, "entry", &["/proc/self/exe", "--version"])?;
    let ran = env.run_rung(&["run", "--bundle", bundle.write()?, &env.id("entry")])?;
    ensure!(ran.code() != 0 && !ran.stdout.contains("version"), "it ran: {}", ran.text());
    Ok(())
}

/// The same with the runtime on a disk that cannot be written: harmless, and still nothing a container may run.
fn a_read_only_disk_makes_the_runtime_no_program(env: &Env) -> Result<()> {
    env.own_mounts()?;
    let (program, disk) = (env.program("rung")?, env.dir("disk")?);
    let directory = program.parent().and_then(std::path::Path::to_str).context("a path")?;
    let place = disk.to_str().context("a path")?;
    env.run("mount", &["--bind", directory, place])?.ok()?;
    env.run("mount", &["-o", "remount,bind,ro", place])?.ok()?;
    let bundle = Bundle::new(env, "disk-entry", &["/proc/self/exe", "--version"])?;
    let mut command = std::process::Command::new(disk.join("rung"));
    command.arg("--root").arg(env.path("rung")).args(["run", "--bundle", bundle.write()?, &env.id("disk-entry")]);
    let ran = output::run(command)?;
    ensure!(ran.code() != 0 && !ran.stdout.contains("version"), "it ran: {}", ran.text());
    ensure!(ran.stderr.contains("refused"), "{}", ran.stderr);
    Ok(())
}

/// CVE-2024-21626: a working directory, or the way to the program, that leads through a descriptor of the runtime.
fn working_directories_stay_inside(env: &Env) -> Result<()> {
    let mut bundle = Bundle::new(env, "cwd", &["pwd"])?;
    symlink("/proc/self/fd/7", bundle.rootfs().join("sneaky"))?;
    for number in 3..24 {
        bundle.set("/process/cwd", format!("/proc/self/fd/{number}"));
        env.run_rung(&["run", "--bundle", bundle.write()?, &env.id("cwd")])?.fails()?;
    }
    bundle.set("/process/cwd", "/sneaky");
    env.run_rung(&["run", "--bundle", bundle.write()?, &env.id("cwd")])?.fails()?;
    bundle.set("/process/cwd", "/");
    for number in 3..24 {
        bundle.set("/process/args", json!([format!("/proc/self/fd/{number}/bin/sh"), "-c", "true"]));
        env.run_rung(&["run", "--bundle", bundle.write()?, &env.id("cwd")])?.fails()?;
    }
    Ok(())
}

/// CVE-2024-21626, CVE-2016-9962: what is open in a container is what it was given.
fn descriptors_of_the_host_do_not_leak(env: &Env) -> Result<()> {
    let id = env.id("fds");
    let mut bundle = Bundle::new(env, "fds", &["sh", "-c", "for f in /proc/self/fd/*; do echo ${f##*/}; done"])?;
    let seen = env.run_rung(&["run", "--bundle", bundle.write()?, &id])?.ok()?.stdout;
    // One more is the directory that the shell reads.
    ensure!(seen.split_whitespace().filter(|number| number.parse().is_ok_and(|n: u32| n > 3)).count() == 0, "{seen}");
    bundle.set("/process/args", json!(["sleep", "100"]));
    let mut command = env.rung(&["create", "--bundle", bundle.write()?, &id])?;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    ensure!(command.status()?.success());
    let state = env.state(&id)?;
    let waiting = format!("/proc/{}/fd", state["pid"]);
    for entry in fs::read_dir(waiting)? {
        let target = fs::read_link(entry?.path())?;
        let text = target.to_str().context("UTF-8")?;
        let fine =
            ["/dev/null", "socket:", "pipe:"].iter().any(|good| text.starts_with(good)) || text.ends_with("exec.fifo");
        ensure!(fine, "a waiting process holds {text}");
    }
    env.run_rung(&["delete", "--force", &id])?.ok()?;
    Ok(())
}

/// CVE-2019-16884, CVE-2023-27561, CVE-2023-28642: a link where the kernel's own file system belongs.
fn proc_and_sys_must_be_directories(env: &Env) -> Result<()> {
    for name in ["proc", "sys"] {
        let bundle = Bundle::new(env, name, &["true"])?;
        let place = bundle.rootfs().join(name);
        fs::remove_dir(&place).ok();
        symlink("/tmp", &place)?;
        let told = env.run_rung(&["run", "--bundle", bundle.write()?, &env.id(name)])?.fails()?;
        ensure!(told.contains("must be mounted on ordinary directory"), "{told}");
    }
    Ok(())
}

/// CVE-2026-41579: device nodes in a directory of the image's choice.
fn dev_must_not_be_a_link(env: &Env) -> Result<()> {
    let mut bundle = Bundle::new(env, "dev", &["true"])?;
    let outside = env.dir("outside")?;
    bundle.unmount("/dev");
    fs::remove_dir(bundle.rootfs().join("dev")).ok();
    symlink(&outside, bundle.rootfs().join("dev"))?;
    env.run_rung(&["run", "--bundle", bundle.write()?, &env.id("dev")])?.fails()?;
    ensure!(fs::read_dir(&outside)?.count() == 0, "something was made outside");
    Ok(())
}

/// CVE-2021-30465, CVE-2024-45310: links on the way to a mount point, absolute, relative and dangling, and in a circle.
fn mount_targets_stay_inside(env: &Env) -> Result<()> {
    let (outside, dangling) = (env.dir("victim")?, env.path("no-such"));
    let up = format!("../../../../../../../..{}", dangling.display());
    for (name, target) in [("abs", outside.clone()), ("rel", up.into())] {
        let mut bundle = Bundle::new(env, name, &["true"])?;
        symlink(&target, bundle.rootfs().join("volume"))?;
        let options = json!(["nosuid"]);
        bundle.push(
            "/mounts",
            json!({"destination": "/volume/made", "type": "tmpfs", "source": "tmpfs", "options": options}),
        );
        env.run_rung(&["run", "--bundle", bundle.write()?, &env.id(name)])?.ok()?;
    }
    let mut bundle = Bundle::new(env, "circle", &["true"])?;
    symlink("volume", bundle.rootfs().join("volume"))?;
    bundle.push("/mounts", json!({"destination": "/volume/made", "type": "tmpfs", "source": "tmpfs"}));
    env.run_rung(&["run", "--bundle", bundle.write()?, &env.id("circle")])?.fails()?;
    ensure!(fs::read_dir(&outside)?.count() == 0, "a mount point was made outside");
    ensure!(!dangling.exists(), "a directory was made where a link dangled");
    Ok(())
}

/// CVE-2025-31133, CVE-2025-62161: a mask made of whatever the image calls `/dev/null`.
fn a_false_null_device_masks_nothing(env: &Env) -> Result<()> {
    let mut bundle = Bundle::new(env, "null", &["true"])?;
    // The image's own /dev, with something else in the place of the device.
    bundle.unmount("/dev");
    let dev = bundle.rootfs().join("dev");
    fs::create_dir_all(&dev)?;
    let null = dev.join("null");
    symlink("/proc/sysrq-trigger", &null)?;
    env.run_rung(&["run", "--bundle", bundle.write()?, &env.id("null")])?.fails()?;
    fs::remove_file(&null)?;
    fs::write(&null, "")?;
    env.run_rung(&["run", "--bundle", bundle.write()?, &env.id("null")])?.fails()?;
    fs::remove_file(&null)?;
    nix::unistd::mkfifo(&null, nix::sys::stat::Mode::S_IRWXU)?;
    env.run_rung(&["run", "--bundle", bundle.write()?, &env.id("null")])?.fails()?;
    Ok(())
}

/// CVE-2022-0811: settings that are not the container's, or that smuggle others.
fn settings_of_the_host_are_refused(env: &Env) -> Result<()> {
    let mut bundle = Bundle::new(env, "sysctl", &["true"])?;
    for key in ["kernel.core_pattern", "kernel.shm_rmid_forced=1+kernel.core_pattern", "net/../kernel/core_pattern"] {
        bundle.config["linux"]["sysctl"] = json!({key: "|/bin/false"});
        env.run_rung(&["run", "--bundle", bundle.write()?, &env.id("sysctl")])?.fails()?;
    }
    ensure!(!fs::read_to_string("/proc/sys/kernel/core_pattern")?.contains("/bin/false"));
    Ok(())
}

/// CVE-2022-29162, CVE-2022-27650 and their kin: nothing inheritable, nothing ambient, in run and exec.
fn capabilities_are_never_inherited(env: &Env) -> Result<()> {
    let id = env.id("caps");
    let bundle = Bundle::new(env, "caps", &["sleep", "100"])?;
    detached(env, &bundle, &id)?;
    for file in ["/proc/1/status", "/proc/self/status"] {
        let status = env.run_rung(&["exec", &id, "cat", file])?.ok()?.stdout;
        for set in ["CapInh", "CapAmb"] {
            ensure!(status.contains(&format!("{set}:\t0000000000000000\n")), "{file}: {status}");
        }
    }
    env.run_rung(&["delete", "--force", &id])?.ok()?;
    Ok(())
}

/// CVE-2026-30892, CVE-2016-3697, CVE-2024-40635: user texts that become another user.
fn user_names_are_not_numbers(env: &Env) -> Result<()> {
    let id = env.id("users");
    let mut bundle = Bundle::new(env, "users", &["sleep", "100"])?;
    // An image whose list of users has numbers for names.
    fs::create_dir_all(bundle.rootfs().join("etc"))?;
    fs::write(bundle.rootfs().join("etc/passwd"), "1000:x:0:0::/:/bin/sh\n4294967296:x:0:0::/:/bin/sh\n")?;
    bundle.set("/root/readonly", true);
    detached(env, &bundle, &id)?;
    let who = env.run_rung(&["exec", "--user", "1000", &id, "id", "-u"])?.ok()?.stdout;
    ensure!(who.trim() == "1000", "{who}");
    for bad in ["4294967296", "4294967295", "+0", "0x0", "root", "-1"] {
        env.run_rung(&["exec", &format!("--user={bad}"), &id, "id", "-u"])?.exits(255)?;
    }
    env.run_rung(&["delete", "--force", &id])?.ok()?;
    // To the kernel this one says that nothing is to change, and what there is before is root.
    for part in ["uid", "gid"] {
        let mut bundle = Bundle::new(env, part, &["id"])?;
        bundle.set(&format!("/process/user/{part}"), u32::MAX);
        let said = env.run_rung(&["run", "--bundle", bundle.write()?, &env.id(part)])?.fails()?;
        ensure!(said.contains(&format!("process.user.{part}")), "{said}");
    }
    Ok(())
}

/// CVE-2024-21626, by `exec`.
fn an_exec_stays_inside_too(env: &Env) -> Result<()> {
    let id = env.id("inside");
    let bundle = Bundle::new(env, "inside", &["sleep", "100"])?;
    symlink("/proc/self/fd/7", bundle.rootfs().join("sneaky"))?;
    detached(env, &bundle, &id)?;
    let outcome = || -> Result<()> {
        for directory in (3..24).map(|number| format!("/proc/self/fd/{number}")).chain(["/sneaky".to_owned()]) {
            let ran = env.run_rung(&["exec", "--cwd", &directory, &id, "pwd"])?;
            ensure!(ran.code() != 0, "{directory}: {}", ran.text());
        }
        Ok(())
    }();
    env.run_rung(&["delete", "--force", &id])?.ok()?;
    outcome
}

/// CVE-2026-88264, CVE-2025-52565: the place of the console, or of the terminals, is a link to a file of the host.
fn a_console_that_is_a_link_is_refused(env: &Env) -> Result<()> {
    let victim = env.path("victim");
    fs::write(&victim, "unharmed")?;
    for name in ["console", "pts"] {
        let mut bundle = Bundle::new(env, name, &["sh", "-c", "echo attack > /dev/console"])?;
        bundle.unmount("/dev").set("/process/terminal", true).set("/root/readonly", false);
        fs::create_dir_all(bundle.rootfs().join("dev"))?;
        symlink(&victim, bundle.rootfs().join("dev").join(name))?;
        env.run_rung(&["run", "--bundle", bundle.write()?, &env.id(name)])?.fails()?;
    }
    ensure!(fs::read_to_string(&victim)? == "unharmed");
    Ok(())
}

/// CVE-2026-88265: the image's null device is a link to a mounted file of the host, and the streams are the null device.
fn a_null_device_that_is_a_link_gives_nothing_away(env: &Env) -> Result<()> {
    let victim = env.path("victim");
    fs::write(&victim, "unharmed")?;
    let mut bundle = Bundle::new(env, "stdio", &["sh", "-c", "echo attack; echo attack >&2; cat > /dev/null"])?;
    bundle.unmount("/dev").set("/process/user/uid", 1000).set("/linux/maskedPaths", json!([]));
    bundle.push("/mounts", json!({"destination": "/host", "source": victim, "options": ["bind", "ro"]}));
    fs::create_dir_all(bundle.rootfs().join("dev"))?;
    symlink("/host", bundle.rootfs().join("dev/null"))?;
    let mut command = env.rung(&["run", "--bundle", bundle.write()?, &env.id("stdio")])?;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
    ensure!(fs::read_to_string(&victim)? == "unharmed");
    ensure!(fs::metadata(&victim)?.uid() == 0, "a file of the host changed its owner");
    Ok(())
}

/// CVE-2026-115521: what is made read-only is found through the image's own idea of `/proc/self/fd`.
fn a_false_proc_does_not_keep_the_root_writable(env: &Env) -> Result<()> {
    let mut bundle = Bundle::new(env, "proc", &["touch", "/written"])?;
    bundle.unmount("/proc").set("/root/readonly", true).set("/linux/maskedPaths", json!([]));
    bundle.set("/linux/readonlyPaths", json!(["/etc"]));
    let elsewhere = bundle.rootfs().join("elsewhere");
    fs::create_dir_all(&elsewhere)?;
    fs::create_dir_all(bundle.rootfs().join("proc/self/fd"))?;
    fs::create_dir_all(bundle.rootfs().join("etc"))?;
    for number in 0..64 {
        symlink("/elsewhere", bundle.rootfs().join(format!("proc/self/fd/{number}")))?;
    }
    for file in ["/written", "/etc/written"] {
        bundle.set("/process/args", json!(["touch", file]));
        let said = env.run_rung(&["run", "--bundle", bundle.write()?, &env.id("proc")])?.fails()?;
        ensure!(said.contains("Read-only file system"), "{file}: {said}");
    }
    Ok(())
}

/// CVE-2021-43784: a text as long as a narrow length field wraps at.
fn long_texts_forge_no_messages(env: &Env) -> Result<()> {
    let mut bundle = Bundle::new(env, "long", &["true"])?;
    bundle.push("/mounts", json!({"destination": "/x", "source": "", "options": ["bind"]}));
    let last = bundle.config["mounts"].as_array().map_or(0, Vec::len) - 1;
    for length in [4095, 65_535, 65_536 + 16, 1 << 20] {
        bundle.set(&format!("/mounts/{last}/source"), format!("/{}", "a".repeat(length)));
        let said = env.run_rung(&["run", "--bundle", bundle.write()?, &env.id("long")])?.fails()?;
        ensure!(
            said.contains("name too long") || said.contains("no such file"),
            "{length}: {}",
            &said[..300.min(said.len())]
        );
    }
    Ok(())
}

/// CVE-2019-16884, CVE-2025-52881, CVE-2025-62596: a volume where labels and settings are written through.
fn nothing_is_mounted_over_proc(env: &Env) -> Result<()> {
    let volume = env.dir("volume")?;
    let mut bundle = Bundle::new(env, "over", &["true"])?;
    bundle.push("/mounts", json!({"destination": "", "source": volume, "options": ["bind"]}));
    let last = bundle.config["mounts"].as_array().map_or(0, Vec::len) - 1;
    // The last one is a link of the image's.
    symlink("/proc/self/attr", bundle.rootfs().join("attr"))?;
    for destination in ["/proc", "/proc/self/attr", "/proc/sys", "/proc/self", "/proc/../proc/self/attr/exec", "/attr"]
    {
        bundle.set(&format!("/mounts/{last}/destination"), destination);
        env.run_rung(&["run", "--bundle", bundle.write()?, &env.id("over")])?.fails()?;
    }
    ensure!(fs::read_dir(&volume)?.count() == 0);
    Ok(())
}
