//! What a program of a container, or anybody on the machine, can be called or look like so that a runtime stumbles.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::ensure;
use integration_tests::{Bundle, Env, Result, Test, output, tests, wait};
use serde_json::Value;

pub(crate) const TESTS: &[Test] = tests![
    a_process_may_have_a_name_that_is_no_text[Root],
    a_process_lives_on_without_its_first_thread[Root],
    a_mount_may_have_a_name_that_is_no_text[Root],
    a_cgroup_may_have_a_name_that_is_no_text[Root],
];

/// Not the start of any character.
const NO_TEXT: &[u8] = b"\xff";

fn state(env: &Env, id: &str) -> Result<Value> {
    Ok(serde_json::from_str(&env.run_rung(&["state", id])?.ok()?.stdout)?)
}

fn add_program(bundle: &Bundle, path: &str, content: &[u8]) -> Result<()> {
    let path = bundle.rootfs().join(path.trim_start_matches('/'));
    fs::write(&path, content)?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
}

/// The kernel cuts the name of a program after 15 bytes, here in the middle of a letter.
fn a_process_may_have_a_name_that_is_no_text(env: &Env) -> Result<()> {
    let path = "/bin/abcdefghijklmné";
    let mut bundle = Bundle::new(env, "name", &[path])?;
    add_program(&bundle, path, b"#!/bin/sh\nwhile :; do sleep 1; done\n")?;
    bundle.set("/root/readonly", false);
    let id = env.id("name");
    env.run_rung(&["run", "--detach", "--bundle", bundle.write()?, &id])?.ok()?;
    let found = state(env, &id);
    let exec = env.run_rung(&["exec", &id, "echo", "inside"]);
    let refused = env.run_rung(&["delete", &id]);
    let killed = env.run_rung(&["kill", &id, "KILL"]);
    env.run_rung(&["delete", "--force", &id])?.ok()?;
    assert_eq!(found?["status"], "running");
    assert_eq!(exec?.ok()?.text(), "inside");
    ensure!(refused?.fails()?.contains("running"), "what runs was deleted");
    killed?.ok()?;
    Ok(())
}

/// A program in the machine's own language, for the shell cannot do this: it starts a thread that sleeps for ever, and
/// ends its first thread alone.
fn leaderless() -> Vec<u8> {
    let code: &[u8] = &[
        0xb8, 56, 0, 0, 0, // clone(
        0xbf, 0x00, 0x0f, 0x05, 0x00, // CLONE_VM | _FS | _FILES | _SIGHAND | _THREAD | _SYSVSEM,
        0x31, 0xf6, 0x0f, 0x05, // on the same stack, which nobody uses)
        0x85, 0xc0, 0x74, 0x09, // in the first thread:
        0xb8, 60, 0, 0, 0, 0x31, 0xff, 0x0f, 0x05, // exit(0)
        0xb8, 34, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7, // in the other: pause() for ever
    ];
    let (base, headers) = (0x40_0000_u64, 64 + 56_u64);
    let size = headers + code.len() as u64;
    let mut program = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    program.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    program.extend([base + headers, 64, 0].map(u64::to_le_bytes).concat());
    program.extend([0, 0, 64, 56, 1, 0, 0, 0].map(u16::to_le_bytes).concat());
    program.extend([1, 5].map(u32::to_le_bytes).concat());
    program.extend([0, base, base, size, size, 4096].map(u64::to_le_bytes).concat());
    [&program, code].concat()
}

/// Its `/proc/<pid>/stat` says "zombie". Where it shares process numbers with the host, only a signal of its own ends it.
fn a_process_lives_on_without_its_first_thread(env: &Env) -> Result<()> {
    if !cfg!(target_arch = "x86_64") {
        return Ok(());
    }
    for shared in [false, true] {
        let name = if shared { "shared" } else { "own" };
        let mut bundle = Bundle::new(env, name, &["/bin/leaderless"])?;
        add_program(&bundle, "/bin/leaderless", &leaderless())?;
        if shared {
            let kinds = bundle.config["linux"]["namespaces"].as_array().into_iter().flatten();
            let kinds: Vec<Value> = kinds.filter(|kind| kind["type"] != "pid").cloned().collect();
            bundle.set("/linux/namespaces", kinds);
        }
        let id = env.id(name);
        env.run_rung(&["run", "--detach", "--bundle", bundle.write()?, &id])?.ok()?;
        let pid = state(env, &id)?["pid"].clone();
        let proc = PathBuf::from(format!("/proc/{pid}"));
        let first_ended = || fs::read_to_string(proc.join("stat")).ok()?.contains(") Z ").then_some(());
        wait::until("the first thread has ended", first_ended)?;
        let found = state(env, &id);
        let killed = if shared { None } else { Some(env.run_rung(&["kill", &id, "KILL"])) };
        let deleted = env.run_rung(&["delete", "--force", &id]);
        assert_eq!(found?["status"], "running");
        killed.transpose()?.map(output::Ran::ok).transpose()?;
        deleted?.ok()?;
        let threads = fs::read_dir(proc.join("task")).map_or(0, Iterator::count);
        ensure!(threads <= 1, "process {pid} is left");
    }
    Ok(())
}

/// Whoever may mount with FUSE can make one. Here it is in a table of mounts that only this run reads.
fn a_mount_may_have_a_name_that_is_no_text(env: &Env) -> Result<()> {
    let mut bundle = Bundle::new(env, "mounts", &["echo", "inside"])?;
    bundle.set("/linux/rootfsPropagation", "shared");
    for (number, flags) in [&["--no-pivot"][..], &[]].into_iter().enumerate() {
        let id = env.id(&format!("mounts{number}"));
        let rung = env.rung(&[&["run", "--bundle", bundle.write()?], flags, &[&id]].concat())?;
        let mut command = Command::new("unshare");
        env.prepare(&mut command);
        let script = "mkdir -p \"$0\" && mount -t tmpfs none \"$0\" && exec \"$@\"";
        command.args(["--mount", "sh", "-c", script]).arg(env.root().join(OsStr::from_bytes(NO_TEXT)));
        command.arg(rung.get_program()).args(rung.get_args());
        assert_eq!(output::run(command)?.ok()?.text(), "inside");
    }
    Ok(())
}

/// The runtime is in it here. A container that may make cgroups can be as well.
fn a_cgroup_may_have_a_name_that_is_no_text(env: &Env) -> Result<()> {
    let root = Path::new("/sys/fs/cgroup");
    let mount = if root.join("cgroup.controllers").exists() { root.to_owned() } else { root.join("pids") };
    let strange = mount.join(OsStr::from_bytes(&[env.id("").as_bytes(), NO_TEXT].concat()));
    let id = env.id("inside");
    let mut bundle = Bundle::new(env, "inside", &["echo", "inside"])?;
    bundle.set("/linux/cgroupsPath", format!("/{id}"));
    let rung = env.rung(&["run", "--bundle", bundle.write()?, &id])?;
    let mut command = Command::new("sh");
    env.prepare(&mut command);
    command.args(["-c", "mkdir \"$0\" && echo $$ >\"$0\"/cgroup.procs && exec \"$@\""]).arg(&strange);
    command.arg(rung.get_program()).args(rung.get_args());
    let ran = output::run(command);
    wait::until("the cgroup is empty", || fs::remove_dir(&strange).ok())?;
    assert_eq!(ran?.ok()?.text(), "inside");
    Ok(())
}
