//! System call filters of containers, as the kernel applies them.

use std::io::{IoSliceMut, Read};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};

use integration_tests::{Bundle, Env, Result, Test, tests};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use serde_json::json;

pub(crate) const TESTS: &[Test] = tests![
    answer_of_the_profile[Root],
    killed_by_the_profile[Root],
    condition_on_an_argument[Root],
    without_new_privileges_too[Root],
    default_profile_runs_programs[Root],
    an_old_profile_hides_no_program[Root],
    an_old_profile_stops_no_hook[Root],
    exec_is_filtered[Root],
    listener_gets_the_descriptor[Root],
    listener_that_is_not_there_is_named[Root],
    bad_profile_names_its_path[Root],
];

fn run(env: &Env, name: &str, script: &str, profile: serde_json::Value) -> Result<integration_tests::output::Ran> {
    let mut bundle = Bundle::new(env, name, &["sh", "-c", script])?;
    bundle.set("/linux/seccomp", profile).set("/root/readonly", false);
    env.run_rung(&["run", "--bundle", bundle.write()?, &env.id(name)])
}

fn refusing(calls: &[&str], action: &str) -> serde_json::Value {
    json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": calls, "action": action}]})
}

fn answer_of_the_profile(env: &Env) -> Result<()> {
    let mut profile = refusing(&["mkdir", "mkdirat"], "SCMP_ACT_ERRNO");
    profile["syscalls"][0]["errnoRet"] = json!(71);
    let ran = run(env, "errno", "mkdir /tmp/x; echo $?; rmdir /nowhere 2>/dev/null; echo on", profile)?.ok()?;
    assert!(ran.stderr.contains("Protocol error"), "{}", ran.stderr);
    assert_eq!(ran.text(), "1\non");
    Ok(())
}

fn killed_by_the_profile(env: &Env) -> Result<()> {
    let ran = run(env, "killed", "mkdir /tmp/x", refusing(&["mkdir", "mkdirat"], "SCMP_ACT_KILL_PROCESS"))?;
    // SIGSYS of the program that the shell runs, or of the shell that is it.
    assert_eq!(ran.code(), 159, "{}", ran.stderr);
    Ok(())
}

fn condition_on_an_argument(env: &Env) -> Result<()> {
    let profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{
        "names": ["kill"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95,
        "args": [{"index": 1, "value": 10, "op": "SCMP_CMP_EQ"}]
    }]});
    let script = "trap : USR1 USR2; kill -USR2 $$ && echo usr2; kill -USR1 $$ || echo refused";
    let ran = run(env, "argument", script, profile)?.ok()?;
    assert_eq!(ran.text(), "usr2\nrefused");
    Ok(())
}

/// Profiles older than the first two calls forbid them, and programs are looked up under the filter. The third asks
/// where the working directory is, which is known already.
fn an_old_profile_hides_no_program(env: &Env) -> Result<()> {
    let ran = run(env, "old", "echo on", refusing(&["statx", "faccessat2", "getcwd"], "SCMP_ACT_ERRNO"))?.ok()?;
    assert_eq!(ran.text(), "on");
    Ok(())
}

/// Hooks in the container run under its filter, and profiles older than these calls forbid them.
fn an_old_profile_stops_no_hook(env: &Env) -> Result<()> {
    let mut bundle = Bundle::new(env, "hook", &["cat", "/tmp/told"])?;
    bundle.set("/linux/seccomp", refusing(&["memfd_create", "pidfd_open"], "SCMP_ACT_ERRNO"));
    bundle.set("/root/readonly", false).set("/annotations", json!({"long": "x".repeat(100_000)}));
    let script = "sleep 0.1; cat >/tmp/state; grep -o '\"status\":\"[a-z]*' /tmp/state >/tmp/told";
    bundle.set("/hooks/startContainer", json!([{"path": "/bin/sh", "args": ["sh", "-c", script]}]));
    let id = env.id("hook");
    let told = env.run_rung(&["run", "--bundle", bundle.write()?, &id])?.ok()?;
    assert_eq!(told.text(), "\"status\":\"created");
    bundle.set("/hooks/startContainer/0/args/2", "exit 3");
    let said = env.run_rung(&["run", "--bundle", bundle.write()?, &id])?.fails()?;
    assert!(said.contains("startContainer hook #0: exit status 3"), "{said}");
    bundle.set("/hooks/startContainer/0/args/2", "sleep 100").set("/hooks/startContainer/0/timeout", 1);
    let said = env.run_rung(&["run", "--bundle", bundle.write()?, &id])?.fails()?;
    assert!(said.contains("hook ran past specified timeout"), "{said}");
    Ok(())
}

/// Without no-new-privileges the filter goes in while the process is still root.
fn without_new_privileges_too(env: &Env) -> Result<()> {
    let mut bundle = Bundle::new(env, "privileged", &["sh", "-c", "id -u; mkdir /tmp/x"])?;
    bundle.set("/process/noNewPrivileges", false).set("/process/user", json!({"uid": 1000, "gid": 1000}));
    bundle.set("/linux/seccomp", refusing(&["mkdir", "mkdirat"], "SCMP_ACT_ERRNO"));
    let ran = env.run_rung(&["run", "--bundle", bundle.write()?, &env.id("privileged")])?;
    assert_eq!(ran.text(), "1000");
    assert!(ran.stderr.contains("Operation not permitted"), "{}", ran.stderr);
    Ok(())
}

fn default_profile_runs_programs(env: &Env) -> Result<()> {
    let profile = serde_json::to_value(rung_spec::defaults::seccomp::default(&Default::default()))?;
    let script = "ls / >/dev/null && echo listed; mount -t tmpfs x /tmp 2>&1; grep Seccomp: /proc/self/status";
    let ran = run(env, "default", script, profile)?.ok()?;
    assert!(ran.text().starts_with("listed\n"), "{} {}", ran.stdout, ran.stderr);
    assert!(
        ran.stdout.contains("Operation not permitted") || ran.stdout.contains("permission denied"),
        "{}",
        ran.stdout
    );
    assert_eq!(ran.text().split_whitespace().last(), Some("2"));
    Ok(())
}

fn exec_is_filtered(env: &Env) -> Result<()> {
    let id = env.id("exec");
    let mut bundle = Bundle::new(env, "exec", &["sleep", "600"])?;
    bundle.set("/linux/seccomp", refusing(&["mkdir", "mkdirat"], "SCMP_ACT_ERRNO")).set("/root/readonly", false);
    env.run_rung(&["run", "--detach", "--bundle", bundle.write()?, &id])?.ok()?;
    let ran = env.run_rung(&["exec", &id, "mkdir", "/tmp/x"])?;
    env.run_rung(&["delete", "--force", &id])?.ok()?;
    assert_eq!(ran.code(), 1);
    assert!(ran.stderr.contains("Operation not permitted"), "{}", ran.stderr);
    Ok(())
}

fn notifying(env: &Env) -> Result<(serde_json::Value, UnixListener)> {
    let socket = env.path("listener");
    let listener = UnixListener::bind(&socket)?;
    let mut profile = refusing(&["mkdir", "mkdirat"], "SCMP_ACT_NOTIFY");
    profile["listenerPath"] = json!(socket);
    profile["listenerMetadata"] = json!("for the listener");
    Ok((profile, listener))
}

fn listener_gets_the_descriptor(env: &Env) -> Result<()> {
    let id = env.id("notify");
    let (profile, listener) = notifying(env)?;
    let mut bundle = Bundle::new(env, "notify", &["sleep", "600"])?;
    bundle.set("/linux/seccomp", profile);
    env.run_rung(&["run", "--detach", "--bundle", bundle.write()?, &id])?.ok()?;
    let (socket, _) = listener.accept()?;
    let (message, descriptors) = receive(socket)?;
    let state = env.run_rung(&["state", &id])?.ok()?;
    env.run_rung(&["delete", "--force", &id])?.ok()?;
    let state: serde_json::Value = serde_json::from_str(state.text())?;
    assert_eq!(descriptors, 1);
    assert_eq!(message["fds"], json!(["seccompFd"]));
    assert_eq!(message["pid"], state["pid"]);
    assert_eq!(message["metadata"], "for the listener");
    assert_eq!(message["state"]["status"], "creating");
    assert_eq!(message["state"]["id"], json!(id));
    Ok(())
}

/// The message, and how many descriptors came with it.
fn receive(mut socket: UnixStream) -> Result<(serde_json::Value, usize)> {
    let mut text = vec![0; 8192];
    let mut space = nix::cmsg_space!([i32; 4]);
    let (got, descriptors) = {
        let mut parts = [IoSliceMut::new(&mut text)];
        let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
        let count = message.cmsgs()?.map(|one| match one {
            ControlMessageOwned::ScmRights(list) => list.len(),
            _ => 0,
        });
        (message.bytes, count.sum())
    };
    text.truncate(got);
    socket.read_to_end(&mut text)?;
    Ok((serde_json::from_slice(&text)?, descriptors))
}

fn listener_that_is_not_there_is_named(env: &Env) -> Result<()> {
    let (profile, listener) = notifying(env)?;
    drop(listener);
    let mut bundle = Bundle::new(env, "nobody", &["true"])?;
    bundle.set("/linux/seccomp", profile);
    let refused = env.run_rung(&["run", "--bundle", bundle.write()?, &env.id("nobody")])?.fails()?;
    assert!(refused.contains("listener"), "{refused}");
    Ok(())
}

fn bad_profile_names_its_path(env: &Env) -> Result<()> {
    let profile = refusing(&["write"], "SCMP_ACT_NOTIFY");
    let refused = run(env, "bad", "true", profile)?.fails()?;
    assert!(refused.contains("linux.seccomp.syscalls[0]"), "{refused}");
    let profile = refusing(&["mkdir"], "SCMP_ACT_SHRUG");
    let refused = run(env, "unknown", "true", profile)?.fails()?;
    assert!(refused.contains("linux.seccomp.syscalls[0].action"), "{refused}");
    Ok(())
}
