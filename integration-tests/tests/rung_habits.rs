//! What those who come from crun and runc are used to, where the specification leaves it open or came later.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use integration_tests::{Bundle, Env, Result, Test, output, tests, wait};
use serde_json::{Value, json};

pub(crate) const TESTS: &[Test] = tests![
    hooks_have_the_environment_and_the_bundle[Root],
    a_failed_poststart_hook_destroys_the_container[Root],
    a_start_waits_for_a_create_on_its_way[Root],
    a_container_is_deleted_while_it_is_made[Root, Fast],
    a_container_can_do_without_a_cgroup[Root],
    a_filter_comes_as_it_is[Root],
    a_device_has_another_name_in_a_user_namespace[Root, Userns],
    an_old_systemd_sees_its_hierarchy[Root],
    groups_are_the_named_ones[Root],
];

/// `rung` with no stream of ours in the container's hands.
fn silently(env: &Env, args: &[&str]) -> Result<Command> {
    let mut command = env.rung(args)?;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Ok(command)
}

fn hook(script: &str) -> Value {
    json!([{"path": "/bin/sh", "args": ["sh", "-c", script]}])
}

fn hooks_have_the_environment_and_the_bundle(env: &Env) -> Result<()> {
    let id = env.id("surroundings");
    let log = env.path("hooks.log");
    let script = format!("echo $MARK $(pwd) >> {}", log.display());
    let mut bundle = Bundle::new(env, "surroundings", &["true"])?;
    for point in ["prestart", "createRuntime", "poststart", "poststop"] {
        bundle.set(&format!("/hooks/{point}"), hook(&script));
    }
    let path = bundle.write()?;
    let mut command = env.rung(&["run", "--bundle", path, &id])?;
    command.env("MARK", "seen").current_dir("/");
    output::run(command)?.ok()?;
    let path = fs::canonicalize(path)?;
    assert_eq!(fs::read_to_string(&log)?, format!("seen {}\n", path.display()).repeat(4));
    Ok(())
}

fn a_failed_poststart_hook_destroys_the_container(env: &Env) -> Result<()> {
    let id = env.id("poststart");
    let log = env.path("hooks.log");
    let mut bundle = Bundle::new(env, "poststart", &["sleep", "100"])?;
    bundle
        .set("/hooks/poststart", hook("exit 3"))
        .set("/hooks/poststop", hook(&format!("echo last >> {}", log.display())));
    ensure!(silently(env, &["create", "--bundle", bundle.write()?, &id])?.status()?.success());
    let said = env.run_rung(&["start", &id])?.fails()?;
    ensure!(said.contains("poststart hook #0"), "{said}");
    let said = env.run_rung(&["state", &id])?.fails()?;
    ensure!(said.contains("does not exist"), "{said}");
    assert_eq!(fs::read_to_string(&log)?, "last\n");
    Ok(())
}

/// A `create` that stays in a hook until the file `go` is there.
fn slow_create(env: &Env, id: &str, go: &str) -> Result<Child> {
    let mut bundle = Bundle::new(env, id, &["sleep", "100"])?;
    let script = format!("while ! test -e {}; do sleep 0.01; done", env.path(go).display());
    bundle.set("/hooks/createRuntime", hook(&script));
    let child = silently(env, &["create", "--bundle", bundle.write()?, id])?.spawn()?;
    wait::until("the container is being made", || env.state(id).ok().filter(|state| state["status"] == "creating"))?;
    Ok(child)
}

fn a_start_waits_for_a_create_on_its_way(env: &Env) -> Result<()> {
    let id = env.id("early");
    let mut create = slow_create(env, &id, "go")?;
    let mut start = silently(env, &["start", &id])?.spawn()?;
    std::thread::sleep(Duration::from_millis(100));
    ensure!(start.try_wait()?.is_none(), "it waits");
    fs::write(env.path("go"), "")?;
    ensure!(create.wait()?.success() && start.wait()?.success());
    assert_eq!(env.state(&id)?["status"], "running");
    env.run_rung(&["delete", "--force", &id])?.ok()?;
    Ok(())
}

/// At whichever moment: the process is in none of the cgroups, in one of them, or in all.
fn a_container_is_deleted_while_it_is_made(env: &Env) -> Result<()> {
    let id = env.id("unmade");
    let bundle = Bundle::new(env, "unmade", &["sleep", "100"])?;
    let path = bundle.write()?;
    for step in 0..40_u64 {
        let mut create = silently(env, &["create", "--bundle", path, &id])?.spawn()?;
        std::thread::sleep(Duration::from_micros(step * 400));
        env.run_rung(&["delete", "--force", &id])?.ok()?;
        // Either may have been the first. What there is in the end, somebody has been told of.
        let made = create.wait()?.success();
        ensure!(made || env.run_rung(&["state", &id])?.fails().is_ok(), "step {step}");
        env.run_rung(&["delete", "--force", &id])?.ok()?;
    }
    Ok(())
}

fn a_container_can_do_without_a_cgroup(env: &Env) -> Result<()> {
    let id = env.id("nowhere");
    let mut bundle = Bundle::new(env, "nowhere", &["sleep", "100"])?;
    let path = bundle.write()?.to_owned();
    let run = ["--cgroup-manager", "disabled", "run", "--detach", "--bundle", &path, &id];
    ensure!(silently(env, &run)?.status()?.success());
    let pid = env.state(&id)?["pid"].as_i64().context("a pid")?;
    let cgroups = |process: &str| fs::read_to_string(format!("/proc/{process}/cgroup"));
    assert_eq!(cgroups(&pid.to_string())?, cgroups("self")?);
    assert_eq!(env.run_rung(&["exec", &id, "echo", "here"])?.ok()?.text(), "here");
    env.run_rung(&["kill", &id, "KILL"])?.ok()?;
    wait::until("it ends", || env.state(&id).ok().filter(|state| state["status"] == "stopped"))?;
    env.run_rung(&["delete", &id])?.ok()?;
    bundle.set("/linux/namespaces", json!([{"type": "mount"}, {"type": "uts"}]));
    bundle.write()?;
    let said = env.run_rung(&run)?.fails()?;
    ensure!(said.contains("--cgroup-manager disabled") && said.contains("pid namespace"), "{said}");
    Ok(())
}

fn a_filter_comes_as_it_is(env: &Env) -> Result<()> {
    // Whoever calls sethostname(2) gets the error ENOANO: load the number, compare, answer.
    let call = u32::try_from(nix::libc::SYS_sethostname)?;
    let program: [(u16, u8, u8, u32); 4] =
        [(0x20, 0, 0, 0), (0x15, 0, 1, call), (0x06, 0, 0, 0x5_0037), (0x06, 0, 0, 0x7fff_0000)];
    let bytes: Vec<u8> = program
        .iter()
        .flat_map(|(code, yes, no, operand)| [&code.to_ne_bytes()[..], &[*yes, *no], &operand.to_ne_bytes()].concat())
        .collect();
    let encode = |bytes: &[u8]| base64::Engine::encode(&base64::engine::general_purpose::STANDARD, bytes);
    let mut bundle = Bundle::new(env, "raw", &["sh", "-c", "grep Seccomp: /proc/self/status; hostname other"])?;
    bundle.set("/annotations", json!({"run.oci.seccomp_bpf_data": encode(&bytes)}));
    let ran = env.run_rung(&["run", "--bundle", bundle.write()?, &env.id("raw")])?;
    assert_eq!(ran.stdout.split_whitespace().last(), Some("2"));
    ensure!(ran.fails()?.contains("anode"));
    for (wrong, reason) in [(encode(&bytes[1..]), "instructions"), (encode(&[0; 8]), "seccomp"), ("?".into(), "base64")]
    {
        bundle.set("/annotations", json!({"run.oci.seccomp_bpf_data": wrong}));
        let said = env.run_rung(&["run", "--bundle", bundle.write()?, &env.id("raw")])?.fails()?;
        ensure!(said.contains(reason), "{said}");
    }
    Ok(())
}

/// As with `--device /dev/zero:/dev/random`. A node cannot be made there, and the host's of that name is another device.
fn a_device_has_another_name_in_a_user_namespace(env: &Env) -> Result<()> {
    let id = env.id("device");
    let mut bundle = Bundle::new(env, "device", &["sh", "-c", "head -c 2 /dev/random | tr '\\0' z"])?;
    let device = |path: &str, minor: u32| json!({"path": path, "type": "c", "major": 1, "minor": minor});
    bundle.push("/linux/namespaces", json!({"type": "user"})).set("/linux/devices", json!([device("/dev/random", 5)]));
    for field in ["uidMappings", "gidMappings"] {
        bundle.set(&format!("/linux/{field}"), json!([{"containerID": 0, "hostID": 0, "size": 4_000_000}]));
    }
    assert_eq!(env.run_rung(&["run", "--bundle", bundle.write()?, &id])?.ok()?.text(), "zz");
    bundle.set("/linux/devices", json!([device("/dev/null", 250)]));
    let said = env.run_rung(&["run", "--bundle", bundle.write()?, &id])?.fails()?;
    ensure!(said.contains("/dev/null") && said.contains("no node of char device 1:250"), "{said}");
    Ok(())
}

fn an_old_systemd_sees_its_hierarchy(env: &Env) -> Result<()> {
    let mut bundle = Bundle::new(env, "old", &["grep", "cgroup", "/proc/self/mountinfo"])?;
    let mut run = |place: &str| {
        bundle.set("/annotations", json!({"run.oci.systemd.force_cgroup_v1": place}));
        env.run_rung(&["run", "--bundle", bundle.write()?, &env.id("old")])
    };
    let said = run("/nowhere")?.fails()?;
    ensure!(said.contains("nothing is mounted on /nowhere"), "{said}");
    // With a cgroup namespace only a hierarchy that is there already can be mounted; on v1 it is.
    let named = env.dir("named")?;
    let named = named.to_str().context("UTF-8")?;
    env.run("mount", &["-t", "cgroup", "-o", "none,name=systemd,xattr", "cgroup", named])?.ok()?;
    let ran = run("/sys/fs/cgroup");
    env.run("umount", &[named])?.ok()?;
    let table = ran?.ok()?.stdout;
    let places: Vec<_> = table.lines().filter_map(|line| line.split(' ').nth(4)).collect();
    assert_eq!(places, ["/sys/fs/cgroup", "/sys/fs/cgroup/systemd"]);
    ensure!(table.contains("name=systemd"), "{table}");
    Ok(())
}

/// Those that the configuration has and no others.
fn groups_are_the_named_ones(env: &Env) -> Result<()> {
    let mut bundle = Bundle::new(env, "groups", &["grep", "^Groups:", "/proc/self/status"])?;
    bundle.set("/process/user", json!({"uid": 3, "gid": 7, "additionalGids": [5, 9]}));
    let shown = env.run_rung(&["run", "--bundle", bundle.write()?, &env.id("groups")])?.ok()?.stdout;
    ensure!(shown.split_whitespace().eq(["Groups:", "5", "9"]), "{shown}");
    Ok(())
}
