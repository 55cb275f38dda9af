//! Containers of an ordinary user: namespaces by the kernel's leave, id ranges by newuidmap and newgidmap, limits by the
//! cgroup that systemd has given away or by the user's own service manager.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use integration_tests::bundle::busybox_root;
use integration_tests::{Bundle, Env, Pty, Result, Test, output, tests, wait};
use serde_json::{Value, json};

pub(crate) const TESTS: &[Test] = tests![
    what_spec_writes_runs[Rootless],
    a_configuration_without_a_user_namespace_gets_one[Rootless],
    a_container_lives_its_life[Rootless],
    clocks_of_its_own_are_set[Rootless],
    ranges_of_ids_are_mapped[Rootless],
    ids_of_others_are_refused[Rootless],
    inside_a_user_namespace_of_somebody_elses[Rootless],
    what_shares_process_ids_is_killed[Rootless],
    a_terminal_belongs_to_the_user[Rootless],
    limits_in_the_delegated_cgroup[Rootless, CgroupV2, Systemd],
    limits_through_the_users_systemd[Rootless, CgroupV2, Systemd],
    systemd_puts_in_who_is_out_of_reach[Rootless, CgroupV2, Systemd, Alone],
    a_cgroup_of_others_is_refused[Rootless, CgroupV2],
    memory_limit_kills[Rootless, CgroupV2, Systemd],
    cgroups_of_the_host_stay_read_only[Rootless, CgroupV2],
    podman_runs_as_an_ordinary_user[Rootless, CgroupV2, Systemd, Podman],
];

/// What a user namespace takes away from the usual configuration: the host's network stays, so its sysfs does, and the
/// terminals have no group of their own.
fn rootless(bundle: &mut Bundle, uids: Value, gids: Value) {
    let linux = &mut bundle.config["linux"];
    linux["uidMappings"] = uids;
    linux["gidMappings"] = gids;
    // By default it has no cgroup of its own.
    if let Some(linux) = linux.as_object_mut() {
        linux.remove("cgroupsPath");
    }
    bundle.share("network").push("/linux/namespaces", json!({"type": "user"}));
    for mount in bundle.config["mounts"].as_array_mut().into_iter().flatten() {
        if mount["destination"] == "/sys" {
            let options = ["rbind", "nosuid", "noexec", "nodev", "ro"];
            *mount = json!({"destination": "/sys", "type": "none", "source": "/sys", "options": options});
        }
        if let Some(options) = mount["options"].as_array_mut() {
            options.retain(|option| option != "gid=5");
        }
    }
}

fn own_ids() -> (u32, u32) {
    (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw())
}

/// A bundle whose root is the user himself, and where nobody else is.
fn alone(env: &Env, name: &str, args: &[&str]) -> Result<Bundle> {
    let mut bundle = Bundle::new(env, name, args)?;
    let map = |id| json!([{"containerID": 0, "hostID": id, "size": 1}]);
    rootless(&mut bundle, map(own_ids().0), map(own_ids().1));
    Ok(bundle)
}

/// As with crun: root inside is the user, the other ids are the granted ones.
fn a_configuration_without_a_user_namespace_gets_one(env: &Env) -> Result<()> {
    let mut bundle = Bundle::new(env, "given", &["sleep", "600"])?;
    if let Some(linux) = bundle.config["linux"].as_object_mut() {
        linux.remove("cgroupsPath");
    }
    let id = env.id("given");
    env.run_rung(&["run", "--detach", "--bundle", bundle.write()?, &id])?.ok()?;
    let ran = env.run_rung(&["exec", &id, "sh", "-c", "tr -s ' ' </proc/self/uid_map; id -u; cat /proc/1/comm"])?;
    env.run_rung(&["delete", "--force", &id])?.ok()?;
    let first = first_of_range("/etc/subuid")?;
    let said = ran.ok()?.text().to_owned();
    ensure!(said.starts_with(&format!("0 {} 1\n 1 {first} ", own_ids().0)), "{said}");
    ensure!(said.ends_with("0\nsleep"), "{said}");
    Ok(())
}

/// The first id of the user's range in `/etc/subuid` or `/etc/subgid`.
fn first_of_range(file: &str) -> Result<u32> {
    let name = Command::new("id").arg("--user").arg("--name").output()?.stdout;
    let name = format!("{}:", String::from_utf8(name)?.trim());
    let table = fs::read_to_string(file)?;
    let line = table.lines().find_map(|line| line.strip_prefix(&name)).with_context(|| format!("{name} in {file}"))?;
    Ok(line.split(':').next().unwrap_or_default().parse()?)
}

/// A bundle with the user's whole range of ids.
fn ranged(env: &Env, name: &str, args: &[&str]) -> Result<Bundle> {
    let mut bundle = Bundle::new(env, name, args)?;
    let map = |own, range: u32| json!([{"containerID": 0, "hostID": own, "size": 1}, {"containerID": 1, "hostID": range, "size": 65535}]);
    let uids = map(own_ids().0, first_of_range("/etc/subuid")?);
    let gids = map(own_ids().1, first_of_range("/etc/subgid")?);
    rootless(&mut bundle, uids, gids);
    Ok(bundle)
}

/// The rights that this takes are those of the new user namespace.
fn clocks_of_its_own_are_set(env: &Env) -> Result<()> {
    let mut bundle = alone(env, "clocks", &["cat", "/proc/self/timens_offsets"])?;
    bundle.push("/linux/namespaces", json!({"type": "time"}));
    bundle.set("/linux/timeOffsets", json!({"monotonic": {"secs": 7881, "nanosecs": 42}}));
    let said = env.run_rung(&["run", "--bundle", bundle.write()?, &env.id("clocks")])?.ok()?.stdout;
    let first = said.lines().next().unwrap_or_default();
    ensure!(first.split_whitespace().eq(["monotonic", "7881", "42"]), "{said}");
    Ok(())
}

/// Deletes a container when dropped.
struct Deleted<'a>(&'a Env, String);

impl Drop for Deleted<'_> {
    fn drop(&mut self) {
        let _ = self.0.run_rung(&["delete", "--force", &self.1]);
    }
}

/// Whether the container has a cgroup of its own: that of a user whom nobody has given one stays where the user is.
fn own_cgroup(env: &Env, id: &str) -> Result<bool> {
    let table = fs::read_to_string(format!("/proc/{}/cgroup", env.state(id)?["pid"]))?;
    Ok(table.lines().any(|line| line.ends_with(id)))
}

fn cgroup_of(pid: &Value) -> Result<PathBuf> {
    let pid = pid.as_str().map_or_else(|| pid.to_string(), str::to_owned);
    let table = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let path = table.trim().strip_prefix("0::/").context("not in a cgroup v2")?;
    Ok(Path::new("/sys/fs/cgroup").join(path))
}

fn read(dir: &Path, file: &str) -> Result<String> {
    let text = fs::read_to_string(dir.join(file)).with_context(|| format!("{}/{file}", dir.display()))?;
    Ok(text.trim().to_owned())
}

fn what_spec_writes_runs(env: &Env) -> Result<()> {
    let bundle = env.dir("spec")?;
    busybox_root(&bundle.join("rootfs"))?;
    let path = bundle.to_str().context("path")?;
    env.run_rung(&["spec", "--rootless", "--bundle", path])?.ok()?;
    let file = bundle.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&file)?)?;
    config["process"]["terminal"] = json!(false);
    config["process"]["args"] = json!(["sh", "-c", "id -u; cat /proc/self/uid_map; echo x >/dev/null && ls /dev/pts"]);
    fs::write(&file, config.to_string())?;
    let ran = env.run_rung(&["run", "--bundle", path, &env.id("spec")])?.ok()?;
    let words: Vec<&str> = ran.text().split_whitespace().collect();
    assert_eq!(words, ["0", "0", &own_ids().0.to_string(), "1", "ptmx"]);
    Ok(())
}

fn a_container_lives_its_life(env: &Env) -> Result<()> {
    let bundle = alone(env, "life", &["sleep", "600"])?;
    let id = env.id("life");
    let _deleted = Deleted(env, id.clone());
    env.run_rung(&["create", "--bundle", bundle.write()?, &id])?.ok()?;
    assert_eq!(env.state(&id)?["status"], "created");
    // A runtime that the user may change hides what waits from the container, and so from an exec.
    if fs::metadata(env.program("rung")?)?.uid() != nix::unistd::geteuid().as_raw() {
        env.run_rung(&["exec", &id, "true"])?.ok()?;
    }
    env.run_rung(&["start", &id])?.ok()?;
    assert_eq!(env.state(&id)?["status"], "running");
    let inside = env.run_rung(&["exec", &id, "sh", "-c", "id -u; hostname; cat /proc/1/cmdline"])?.ok()?;
    assert_eq!(inside.text(), "0\nrunc\nsleep\u{0}600\u{0}");
    env.run_rung(&["exec", &id, "sh", "-c", "exit 9"])?.exits(9)?;
    let processes = env.run_rung(&["ps", &id])?;
    if own_cgroup(env, &id)? {
        ensure!(processes.ok()?.text().contains("sleep 600"));
    } else {
        ensure!(processes.fails()?.contains("no cgroup of its own"));
    }
    ensure!(env.run_rung(&["list", "--quiet"])?.ok()?.text() == id);
    env.run_rung(&["kill", &id, "KILL"])?.ok()?;
    wait::until("the container stops", || (env.state(&id).ok()?["status"] == "stopped").then_some(()))?;
    env.run_rung(&["delete", &id])?.ok()?;
    env.run_rung(&["state", &id])?.fails().map(drop)
}

fn ranges_of_ids_are_mapped(env: &Env) -> Result<()> {
    let script = "id -u; id -g; id -G; touch /tmp/of-1000; grep Groups /proc/self/status";
    let mut bundle = ranged(env, "ranges", &["sh", "-c", script])?;
    bundle.set("/process/user", json!({"uid": 1000, "gid": 1000, "additionalGids": [50]}));
    bundle.set("/root/readonly", false);
    let ran = env.run_rung(&["run", "--bundle", bundle.write()?, &env.id("ranges")])?.ok()?;
    assert_eq!(ran.text().lines().take(3).collect::<Vec<_>>(), ["1000", "1000", "1000 50"]);
    let made = fs::metadata(bundle.rootfs().join("tmp/of-1000"))?;
    let host = (first_of_range("/etc/subuid")? + 999, first_of_range("/etc/subgid")? + 999);
    assert_eq!((made.uid(), made.gid()), host);
    // The file is another's on the host, so only from inside it can be removed.
    bundle.set("/process/args", json!(["rm", "/tmp/of-1000"]));
    env.run_rung(&["run", "--bundle", bundle.write()?, &env.id("clean")])?.ok()?;

    bundle.set("/process/args", json!(["sleep", "600"]));
    let id = env.id("long");
    let _deleted = Deleted(env, id.clone());
    env.run_rung(&["run", "--detach", "--bundle", bundle.write()?, &id])?.ok()?;
    let who = |user: &str| -> Result<String> {
        let words = ["exec", "--user", user, &id, "sh", "-c", "echo $(id -u) $(id -g)"];
        Ok(env.run_rung(&words)?.ok()?.text().to_owned())
    };
    assert_eq!(who("0:0")?, "0 0");
    assert_eq!(who("33:44")?, "33 44");
    env.run_rung(&["delete", "--force", &id])?.ok().map(drop)
}

fn ids_of_others_are_refused(env: &Env) -> Result<()> {
    let mut bundle = alone(env, "others", &["true"])?;
    bundle.set("/linux/uidMappings", json!([{"containerID": 0, "hostID": 0, "size": 1}]));
    let refused = env.run_rung(&["run", "--bundle", bundle.write()?, &env.id("others")])?.fails()?;
    assert!(refused.contains("newuidmap") && refused.contains("/etc/subuid"), "{refused}");
    let mut bundle = Bundle::new(env, "plain", &["true"])?;
    bundle.set("/linux/cgroupsPath", Value::Null);
    bundle.set("/linux/uidMappings", json!([{"containerID": 0, "hostID": own_ids().0, "size": 1}]));
    let refused = env.run_rung(&["run", "--bundle", bundle.write()?, &env.id("plain")])?.fails()?;
    assert!(refused.contains("linux.uidMappings") && refused.contains("isn't enabled"), "{refused}");
    Ok(())
}

/// Leaves the host's process ids, and their procfs.
fn share_process_ids(bundle: &mut Bundle) {
    bundle.share("pid");
    for mount in bundle.config["mounts"].as_array_mut().into_iter().flatten() {
        if mount["destination"] == "/proc" {
            let options = ["rbind", "nosuid", "noexec", "nodev"];
            *mount = json!({"destination": "/proc", "type": "bind", "source": "/proc", "options": options});
        }
    }
}

/// Also where there is no cgroup to find its processes by.
fn what_shares_process_ids_is_killed(env: &Env) -> Result<()> {
    let mut bundle = alone(env, "shares", &["sleep", "600"])?;
    share_process_ids(&mut bundle);
    let id = env.id("shares");
    let _deleted = Deleted(env, id.clone());
    env.run_rung(&["run", "--detach", "--bundle", bundle.write()?, &id])?.ok()?;
    env.run_rung(&["kill", &id, "KILL"])?.ok()?;
    wait::until("the container to stop", || (env.state(&id).ok()?["status"] == "stopped").then_some(()))
}

/// As podman starts it, which has made a user namespace with all ids of the user before.
fn inside_a_user_namespace_of_somebody_elses(env: &Env) -> Result<()> {
    let before = |first: &[&str], bundle: &mut Bundle, name: &str| {
        let rung = env.rung(&["run", "--bundle", bundle.write()?, &env.id(name)])?;
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--map-auto", "--"]).args(first);
        command.arg(rung.get_program()).args(rung.get_args());
        command.envs(rung.get_envs().filter_map(|(name, value)| Some((name, value?))));
        output::run(command)?.ok()
    };
    let run = |bundle: &mut Bundle, name: &str| before(&[], bundle, name);
    // `--userns keep-id`: the user is himself inside too, with groups.
    let mut bundle = Bundle::new(env, "keep-id", &["sh", "-c", "echo $(id -u) $(id -G); cat /proc/self/setgroups"])?;
    let map = || {
        json!([
            {"containerID": 0, "hostID": 1, "size": 1000},
            {"containerID": 1000, "hostID": 0, "size": 1},
            {"containerID": 1001, "hostID": 1001, "size": 1000},
        ])
    };
    rootless(&mut bundle, map(), map());
    bundle.set("/process/user", json!({"uid": 1000, "gid": 1000, "additionalGids": [1000, 50]}));
    assert_eq!(run(&mut bundle, "keep-id")?.text(), "1000 1000 50\nallow");

    // `--pid host`: a procfs of those ids is the host's to make.
    let mut bundle = Bundle::new(env, "pids", &["cat", "/proc/sys/kernel/msgmax"])?;
    rootless(&mut bundle, Value::Null, Value::Null);
    bundle.share("user");
    share_process_ids(&mut bundle);
    bundle.set("/linux/sysctl", json!({"kernel.msgmax": "1234"}));
    assert_eq!(run(&mut bundle, "pids")?.text(), "1234");

    // `--pid container:…`: from the process ids of another there is no way back to the host's.
    let path = env.path("pid").to_string_lossy().into_owned();
    let mut bundle = Bundle::new(env, "joined", &["cat", "/proc/1/comm"])?;
    rootless(&mut bundle, Value::Null, Value::Null);
    bundle.share("pid").share("user").push("/linux/namespaces", json!({"type": "pid", "path": path}));
    let beside = r#"own=$(readlink /proc/self/ns/pid); unshare --pid --fork --kill-child sleep 60 & other=$!
        until there=$(readlink /proc/$other/ns/pid_for_children) && [ "$there" != "$own" ]; do sleep 0.01; done
        ln -s /proc/$other/ns/pid_for_children "$0"; "$@"; code=$?; kill -9 $other; exit $code"#;
    assert_eq!(before(&["sh", "-c", beside, &path], &mut bundle, "joined")?.text(), "sleep");
    Ok(())
}

fn a_terminal_belongs_to_the_user(env: &Env) -> Result<()> {
    let mut bundle = ranged(env, "terminal", &["sh", "-c", "tty; stat -c %u /dev/pts/0; read line; exit 4"])?;
    bundle.set("/process/terminal", true).set("/process/user", json!({"uid": 7, "gid": 7}));
    let mut terminal = Pty::start(&env.rung(&["run", "--bundle", bundle.write()?, &env.id("terminal")])?)?;
    terminal.expect("/dev/pts/0")?;
    terminal.expect("7")?;
    terminal.types("\n")?;
    ensure!(terminal.end()?.code() == Some(4), "{}", terminal.shown());
    Ok(())
}

const LIMITS: &str = r#"{"memory": {"limit": 50331648}, "pids": {"limit": 40}, "cpu": {"quota": 30000, "period": 60000},
    "devices": [{"allow": false, "access": "rwm"}]}"#;

fn limits_in_the_delegated_cgroup(env: &Env) -> Result<()> {
    let mut bundle = alone(env, "direct", &["sleep", "600"])?;
    bundle.set("/linux/resources", serde_json::from_str::<Value>(LIMITS)?);
    // Beside the cgroup of this process, which is the user's own too.
    bundle.set("/linux/cgroupsPath", env.id("direct"));
    let id = env.id("direct");
    let _deleted = Deleted(env, id.clone());
    env.run_rung(&["run", "--detach", "--bundle", bundle.write()?, &id])?.ok()?;
    let cgroup = cgroup_of(&env.state(&id)?["pid"])?;
    ensure!(cgroup.ends_with(&id), "{}", cgroup.display());
    assert_eq!(read(&cgroup, "memory.max")?, "50331648");
    assert_eq!(read(&cgroup, "pids.max")?, "40");
    assert_eq!(read(&cgroup, "cpu.max")?, "30000 60000");
    env.run_rung(&["update", "--pids-limit", "30", &id])?.ok()?;
    assert_eq!(read(&cgroup, "pids.max")?, "30");
    paused_and_resumed(env, &id)?;
    env.run_rung(&["delete", "--force", &id])?.ok()?;
    ensure!(!cgroup.exists(), "the cgroup is left");
    Ok(())
}

fn paused_and_resumed(env: &Env, id: &str) -> Result<()> {
    env.run_rung(&["pause", id])?.ok()?;
    assert_eq!(env.state(id)?["status"], "paused");
    env.run_rung(&["resume", id])?.ok()?;
    assert_eq!(env.state(id)?["status"], "running");
    Ok(())
}

fn limits_through_the_users_systemd(env: &Env) -> Result<()> {
    let id = env.id("unit");
    let mut bundle = alone(env, "unit", &["sleep", "600"])?;
    bundle.set("/linux/cgroupsPath", format!("user.slice:rung:{id}"));
    bundle.set("/linux/resources", serde_json::from_str::<Value>(LIMITS)?);
    let _deleted = Deleted(env, id.clone());
    env.run_rung(&["--systemd-cgroup", "run", "--detach", "--bundle", bundle.write()?, &id])?.ok()?;
    let unit = format!("rung-{id}.scope");
    let shown = env.run("systemctl", &["--user", "show", &unit])?.ok()?;
    for line in ["ActiveState=active", "Delegate=yes", "TasksMax=40", "MemoryMax=50331648"] {
        ensure!(shown.stdout.lines().any(|found| found == line), "{line} is missing:\n{}", shown.stdout);
    }
    let cgroup = cgroup_of(&env.state(&id)?["pid"])?;
    let own = format!("user@{}.service", own_ids().0);
    ensure!(cgroup.iter().any(|part| part == own.as_str()), "{}", cgroup.display());
    ensure!(cgroup.ends_with(format!("user.slice/{unit}")), "{}", cgroup.display());
    assert_eq!(read(&cgroup, "memory.max")?, "50331648");
    assert_eq!(read(&cgroup, "pids.max")?, "40");
    assert_eq!(read(&cgroup, "cpu.max")?, "30000 60000");
    let inside = env.run_rung(&["exec", &id, "cat", "/proc/self/cgroup", "/sys/fs/cgroup/pids.max"])?.ok()?;
    assert_eq!(inside.text(), "0::/\n40", "a cgroup namespace of its own");
    env.run_rung(&["update", "--memory", "67108864", &id])?.ok()?;
    assert_eq!(read(&cgroup, "memory.max")?, "67108864");
    let shown = env.run("systemctl", &["--user", "show", "--property=MemoryMax", &unit])?.ok()?;
    assert_eq!(shown.text(), "MemoryMax=67108864");
    paused_and_resumed(env, &id)?;
    let stats: Value = serde_json::from_str(env.run_rung(&["events", "--stats", &id])?.ok()?.text())?;
    assert_eq!(stats["data"]["pids"], json!({"current": 1, "limit": 40}));
    env.run_rung(&["kill", &id, "KILL"])?.ok()?;
    wait::until("the container stops", || (env.state(&id).ok()?["status"] == "stopped").then_some(()))?;
    env.run_rung(&["delete", &id])?.ok()?;
    let gone = env.run("systemctl", &["--user", "show", "--property=ActiveState", &unit])?.ok()?;
    assert_eq!(gone.text(), "ActiveState=inactive");
    ensure!(!cgroup.exists(), "the cgroup is left");
    Ok(())
}

/// As for somebody who has logged in, and so is not in what his service manager runs: he may put nobody in there.
fn systemd_puts_in_who_is_out_of_reach(env: &Env) -> Result<()> {
    let id = env.id("reach");
    let mut bundle = alone(env, "reach", &["sleep", "600"])?;
    bundle.set("/linux/cgroupsPath", format!("user.slice:rung:{id}"));
    let uid = own_ids().0;
    let above = format!("/sys/fs/cgroup/user.slice/user-{uid}.slice/user@{uid}.service/cgroup.procs");
    let _deleted = Deleted(env, id.clone());
    let run = ["--systemd-cgroup", "run", "--detach", "--bundle", bundle.write()?, &id];
    let enter = || -> Result<PathBuf> {
        env.run_rung(&run)?.ok()?;
        env.run_rung(&["exec", "--detach", &id, "sleep", "500"])?.ok()?;
        let cgroup = cgroup_of(&env.state(&id)?["pid"])?;
        fs::create_dir(cgroup.join("below"))?;
        env.run_rung(&["exec", "--detach", "--cgroup", "below", &id, "sleep", "500"])?.ok()?;
        Ok(cgroup)
    };
    fs::set_permissions(&above, fs::Permissions::from_mode(0o444))?;
    let cgroup = enter();
    fs::set_permissions(&above, fs::Permissions::from_mode(0o644))?;
    let cgroup = cgroup?;
    ensure!(cgroup.ends_with(format!("user.slice/rung-{id}.scope")), "{}", cgroup.display());
    assert_eq!(read(&cgroup, "cgroup.procs")?.lines().count(), 2);
    assert_eq!(read(&cgroup.join("below"), "cgroup.procs")?.lines().count(), 1);
    Ok(())
}

fn a_cgroup_of_others_is_refused(env: &Env) -> Result<()> {
    let mut bundle = alone(env, "foreign", &["true"])?;
    bundle.set("/linux/cgroupsPath", format!("/{}", env.id("foreign")));
    let refused = env.run_rung(&["run", "--bundle", bundle.write()?, &env.id("foreign")])?.fails()?;
    assert!(refused.contains("ermission denied"), "{refused}");
    ensure!(env.run_rung(&["list", "--quiet"])?.ok()?.text().is_empty(), "something is left");
    Ok(())
}

fn memory_limit_kills(env: &Env) -> Result<()> {
    let mut bundle = alone(env, "oom", &["tail", "-c", "300m", "/dev/zero"])?;
    bundle.set("/linux/cgroupsPath", format!(":rung:{}", env.id("oom")));
    bundle.set("/linux/resources", json!({"memory": {"limit": 20_971_520, "swap": 20_971_520}}));
    let run = ["--systemd-cgroup", "run", "--bundle", bundle.write()?, &env.id("oom")];
    env.run_rung(&run)?.exits(137).map(drop)
}

/// CVE-2023-25809: the cgroups that the host gave to the user, seen without a cgroup namespace.
fn cgroups_of_the_host_stay_read_only(env: &Env) -> Result<()> {
    let own = cgroup_of(&json!("self"))?;
    let canary = env.id("canary");
    let attack = format!("mkdir $d/{canary} && echo made; echo 0 > $d/cgroup.procs && echo moved");
    let script = format!("for d in {} /sys/fs/cgroup; do {attack}; done; echo tried", own.display());
    let mut bundle = alone(env, "cgroups", &["sh", "-c", &script])?;
    bundle.share("cgroup");
    let ran = env.run_rung(&["run", "--bundle", bundle.write()?, &env.id("cgroups")])?.ok()?;
    ensure!(ran.text() == "tried", "{}", ran.stdout);
    ensure!(!own.join(&canary).exists(), "a cgroup was made outside");
    Ok(())
}

/// With podman's own choices for such a user: his service manager, his ranges of ids.
fn podman_runs_as_an_ordinary_user(env: &Env) -> Result<()> {
    let (root, runtime) = (env.root().display(), env.program("rung")?);
    let global = format!(
        "--root {root}/root --runroot {root}/run --tmpdir {root}/tmp --storage-driver vfs --events-backend file \
         --cgroup-manager systemd --runtime {}",
        runtime.display()
    );
    let podman = |words: &[&str]| {
        let mut command = Command::new("podman");
        env.prepare(&mut command);
        output::run({
            command.args(global.split_whitespace()).args(words);
            command
        })
    };
    let image = env.dir("image")?;
    busybox_root(&image)?;
    let archive = env.path("image.tar").to_string_lossy().into_owned();
    env.run("tar", &["-C", &image.to_string_lossy(), "-cf", &archive, "."])?.ok()?;
    podman(&["import", &archive, "box"])?.ok()?;
    let outcome = (|| {
        let run = ["run", "--rm", "--network", "none", "--memory", "64m", "--user", "1000", "box", "sh", "-c"];
        let ran = podman(&[&run[..], &["id -u; cat /sys/fs/cgroup/memory.max; exit 6"]].concat())?.exits(6)?;
        assert_eq!(ran.text(), "1000\n67108864");
        let name = env.id("web");
        podman(&["run", "--detach", "--network", "none", "--name", &name, "box", "sleep", "600"])?.ok()?;
        podman(&["exec", &name, "sh", "-c", "exit 3"])?.exits(3)?;
        podman(&["stop", "--time", "0", &name])?.ok().map(drop)
    })();
    podman(&["rm", "--all", "--force", "--time", "0"])?.ok()?;
    // Its files belong to ids of the range, so they go from inside.
    podman(&["unshare", "rm", "-rf", &format!("{root}/root"), &format!("{root}/run")])?.ok()?;
    // Ends the process that holds podman's user namespace.
    podman(&["system", "migrate"])?.ok()?;
    outcome
}
