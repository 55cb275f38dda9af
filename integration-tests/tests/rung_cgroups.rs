//! Limits and devices of a container, as the kernel keeps them; and that nothing of a cgroup stays behind.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use integration_tests::{Bundle, Env, Result, Test, tests, wait};
use serde_json::json;

pub(crate) const TESTS: &[Test] = tests![
    limits_are_in_the_files [Root],
    every_process_is_in_the_cgroup [Root],
    memory_limit_kills [Root],
    a_limit_that_is_too_low_for_a_start_is_told [Root],
    four_mebibytes_are_enough [Root],
    pids_limit_holds [Root],
    a_full_cgroup_lets_an_exec_in [Root],
    an_exec_goes_where_the_first_process_is [Root],
    cpuset_is_kept [Root],
    devices_are_denied [Root],
    a_device_that_no_rule_allows_is_denied [Root],
    keys_are_read_in_any_case [Root],
    a_writable_view_shows_nothing_of_the_runtimes [Root, CgroupV1],
    events_are_waited_for_asleep [Root, CgroupV2],
    occupied_cgroup_is_refused [Root],
    refused_limit_leaves_nothing [Root],
    cgroups_below_are_removed_too [Root],
    what_is_removed_before_anybody_is_in_it_is_made_again [Root, CgroupV1, Fast],
    unified_is_refused_on_v1 [Root, CgroupV1],
    unified_is_written [Root, CgroupV2],
    below_a_threaded_cgroup_it_is_threaded [Root, CgroupV2],
    // As in cri_hosts: systemd on v1 may take the empty cgroup of another test's container away.
    systemd_knows_the_limits [Root, Systemd, Alone],
    a_cgroup_below_the_units_is_the_containers_to_manage [Root, CgroupV2, Systemd],
    systemd_path_of_another_form_is_refused [Root],
    statistics_are_in_the_known_form [Root],
];

/// Whether the host has nothing but v2.
pub(crate) fn unified() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// The directory of a container's cgroup for a v1 controller, or its only one.
fn directory(env: &Env, name: &str, controller: &str) -> PathBuf {
    let root = Path::new("/sys/fs/cgroup");
    if unified() { root.join(env.id(name)) } else { root.join(controller).join(env.id(name)) }
}

pub(crate) fn value(env: &Env, name: &str, controller: &str, v1: &str, v2: &str) -> Result<String> {
    let file = directory(env, name, controller).join(if unified() { v2 } else { v1 });
    Ok(fs::read_to_string(&file).map_err(|e| anyhow::anyhow!("{}: {e}", file.display()))?.trim().to_owned())
}

/// A container that sleeps, with `resources`; deleted by [`Sleeper::drop`].
pub(crate) struct Sleeper<'a> {
    env: &'a Env,
    pub(crate) id: String,
}

impl<'a> Sleeper<'a> {
    pub(crate) fn start(env: &'a Env, name: &str, resources: serde_json::Value) -> Result<Self> {
        let mut bundle = Bundle::new(env, name, &["sleep", "600"])?;
        bundle.set("/linux/resources", resources);
        let id = env.id(name);
        env.run_rung(&["run", "--detach", "--bundle", bundle.write()?, &id])?.ok()?;
        Ok(Self { env, id })
    }
}

impl Drop for Sleeper<'_> {
    fn drop(&mut self) {
        let _ = self.env.run_rung(&["delete", "--force", &self.id]);
    }
}

fn limits_are_in_the_files(env: &Env) -> Result<()> {
    let resources = json!({
        "memory": {"limit": 50_331_648, "reservation": 25_165_824},
        "cpu": {"shares": 512, "quota": 30_000, "period": 60_000},
        "pids": {"limit": 77}
    });
    let _sleeper = Sleeper::start(env, "limits", resources)?;
    let found = |controller, v1, v2| value(env, "limits", controller, v1, v2);
    assert_eq!(found("memory", "memory.limit_in_bytes", "memory.max")?, "50331648");
    assert_eq!(found("memory", "memory.soft_limit_in_bytes", "memory.low")?, "25165824");
    assert_eq!(found("pids", "pids.max", "pids.max")?, "77");
    if unified() {
        assert_eq!(found("cpu", "", "cpu.max")?, "30000 60000");
        assert_eq!(found("cpu", "", "cpu.weight")?, "59");
    } else {
        assert_eq!(found("cpu", "cpu.cfs_quota_us", "")?, "30000");
        assert_eq!(found("cpu", "cpu.cfs_period_us", "")?, "60000");
        assert_eq!(found("cpu", "cpu.shares", "")?, "512");
    }
    Ok(())
}

/// Also the one that is started later, and in every hierarchy that has a cgroup of the container.
fn every_process_is_in_the_cgroup(env: &Env) -> Result<()> {
    let sleeper = Sleeper::start(env, "inside", json!({}))?;
    let state = env.state(&sleeper.id)?;
    let table = fs::read_to_string(format!("/proc/{}/cgroup", state["pid"]))?;
    let path = format!("/{}", sleeper.id);
    let inside = table.lines().filter(|line| line.ends_with(&path)).count();
    assert!(inside >= if unified() { 1 } else { 5 }, "{table}");
    env.run_rung(&["exec", "--detach", &sleeper.id, "sleep", "500"])?.ok()?;
    let pids = fs::read_to_string(directory(env, "inside", "pids").join("cgroup.procs"))?;
    assert_eq!(pids.lines().count(), 2, "{pids}");
    Ok(())
}

fn memory_limit_kills(env: &Env) -> Result<()> {
    let mut bundle = Bundle::new(env, "oom", &["tail", "-c", "300m", "/dev/zero"])?;
    bundle.set("/linux/resources", json!({"memory": {"limit": 20_971_520, "swap": 20_971_520}}));
    env.run_rung(&["run", "--bundle", bundle.write()?, &env.id("oom")])?.exits(137)?;
    Ok(())
}

fn a_limit_that_is_too_low_for_a_start_is_told(env: &Env) -> Result<()> {
    let mut bundle = Bundle::new(env, "low", &["true"])?;
    bundle.set("/linux/resources", json!({"memory": {"limit": 8192, "swap": 8192}}));
    let said = env.run_rung(&["create", "--bundle", bundle.write()?, &env.id("low")])?.exits(1)?.stderr;
    assert!(said.contains("container init was OOM-killed (memory limit too low?)"), "{said}");
    Ok(())
}

/// Nothing of the runtime counts as the container's.
fn four_mebibytes_are_enough(env: &Env) -> Result<()> {
    let mut bundle = Bundle::new(env, "small", &["true"])?;
    bundle.set("/linux/resources", json!({"memory": {"limit": 4 << 20, "swap": 4 << 20}}));
    let path = bundle.write()?;
    for round in 0..wait::amount(5, 100) {
        env.run_rung(&["run", "--bundle", path, &env.id(&format!("small{round}"))])?.ok()?;
    }
    Ok(())
}

fn pids_limit_holds(env: &Env) -> Result<()> {
    let script = "for i in 1 2 3 4 5 6 7 8; do sleep 1 & done; wait";
    let mut bundle = Bundle::new(env, "pids", &["sh", "-c", script])?;
    bundle.set("/linux/resources", json!({"pids": {"limit": 4}}));
    let ran = env.run_rung(&["run", "--bundle", bundle.write()?, &env.id("pids")])?;
    assert!(ran.stderr.contains("can't fork"), "{} {}", ran.stdout, ran.stderr);
    Ok(())
}

/// The kernel lets nobody be born there, but whoever enters; nor two where there is room for one.
fn a_full_cgroup_lets_an_exec_in(env: &Env) -> Result<()> {
    for (limit, name) in [(1, "full"), (2, "nearly-full")] {
        let sleeper = Sleeper::start(env, name, json!({"pids": {"limit": limit}}))?;
        env.run_rung(&["exec", "--detach", &sleeper.id, "sleep", "500"])?.ok()?;
        let pids = fs::read_to_string(directory(env, name, "pids").join("cgroup.procs"))?;
        assert_eq!(pids.lines().count(), 2, "{pids}");
    }
    Ok(())
}

/// Of a record that does not know where the cgroups are, it is not left in those of the runtime's caller.
fn an_exec_goes_where_the_first_process_is(env: &Env) -> Result<()> {
    let sleeper = Sleeper::start(env, "lost", json!({"pids": {"limit": 20}}))?;
    let file = env.path("rung").join(&sleeper.id).join("state.json");
    let whole = fs::read_to_string(&file)?;
    let mut record: serde_json::Value = serde_json::from_str(&whole)?;
    record["cgroup_paths"] = json!({});
    fs::write(&file, record.to_string())?;
    let same = r#"[ "$(cat /proc/1/cgroup)" = "$(cat /proc/self/cgroup)" ]"#;
    let ran = env.run_rung(&["exec", &sleeper.id, "sh", "-c", same]);
    fs::write(&file, whole)?;
    ran?.ok().map(drop)
}

fn cpuset_is_kept(env: &Env) -> Result<()> {
    let mut bundle = Bundle::new(env, "cpuset", &["grep", "Cpus_allowed_list", "/proc/self/status"])?;
    bundle.set("/linux/resources", json!({"cpu": {"cpus": "0", "mems": "0"}}));
    let ran = env.run_rung(&["run", "--bundle", bundle.write()?, &env.id("cpuset")])?.ok()?;
    assert_eq!(ran.text().split_whitespace().last(), Some("0"));
    Ok(())
}

fn devices_are_denied(env: &Env) -> Result<()> {
    // A node may be made, what it stands for may not be used.
    let script =
        "mknod /dev/mem2 c 1 1 && cat /dev/mem2 >/dev/null 2>/tmp/why; cat /tmp/why; head -c 2 /dev/zero | wc -c";
    let mut bundle = Bundle::new(env, "devices", &["sh", "-c", script])?;
    bundle.set("/root/readonly", false);
    bundle.set("/linux/resources", json!({"devices": [{"allow": false, "access": "rwm"}]}));
    bundle.grant("CAP_MKNOD");
    let ran = env.run_rung(&["run", "--bundle", bundle.write()?, &env.id("devices")])?.ok()?;
    assert!(ran.text().contains("Operation not permitted"), "{} {}", ran.stdout, ran.stderr);
    assert!(ran.text().ends_with('2'), "{}", ran.stdout);
    Ok(())
}

/// GHSA-g54h-m393-cpwq: a list that only allows is one of exceptions, and not a list of all that is allowed beside everything.
fn a_device_that_no_rule_allows_is_denied(env: &Env) -> Result<()> {
    let script = "mknod /dev/kmsg2 c 1 11 && head -c 1 /dev/kmsg2 2>&1; head -c 2 /dev/zero | wc -c";
    let mut bundle = Bundle::new(env, "exceptions", &["sh", "-c", script])?;
    bundle.set("/root/readonly", false);
    let rule = json!({"allow": true, "type": "c", "major": 1, "minor": 5, "access": "rwm"});
    bundle.set("/linux/resources", json!({"devices": [rule]}));
    bundle.grant("CAP_MKNOD");
    let ran = env.run_rung(&["run", "--bundle", bundle.write()?, &env.id("exceptions")])?.ok()?;
    assert!(
        ran.text().contains("Operation not permitted") && ran.text().ends_with('2'),
        "{} {}",
        ran.stdout,
        ran.stderr
    );
    Ok(())
}

/// As readers written in Go take them.
fn keys_are_read_in_any_case(env: &Env) -> Result<()> {
    let sleeper = Sleeper::start(env, "case", json!({"cpu": {}, "CPU": {"Cpus": "0"}, "Pids": {"limit": 33}}))?;
    assert_eq!(value(env, "case", "cpuset", "cpuset.cpus", "cpuset.cpus")?, "0");
    assert_eq!(value(env, "case", "pids", "pids.max", "pids.max")?, "33");
    let file = env.path("case.json");
    fs::write(&file, r#"{"PIDS":{"Limit":44}}"#)?;
    env.run_rung(&["update", "--resources", &file.to_string_lossy(), &sleeper.id])?.ok()?;
    assert_eq!(value(env, "case", "pids", "pids.max", "pids.max")?, "44");
    // An empty value changes nothing.
    env.run_rung(&["update", "--pids-limit=", "--cpu-quota=", "--memory", "64m", &sleeper.id])?.ok()?;
    assert_eq!(value(env, "case", "pids", "pids.max", "pids.max")?, "44");
    Ok(())
}

/// In a hierarchy in which the container has no cgroup it would see, and could write to, the runtime's.
fn a_writable_view_shows_nothing_of_the_runtimes(env: &Env) -> Result<()> {
    let mut bundle = Bundle::new(env, "writable", &["sh", "-c", "cut -d: -f3 /proc/self/cgroup | sort -u"])?;
    let mounts = bundle.config["mounts"].as_array_mut().into_iter().flatten();
    for mount in mounts.filter(|mount| mount["type"] == "cgroup") {
        mount["options"] = json!(["nosuid", "noexec", "nodev", "relatime"]);
    }
    bundle.share("cgroup");
    if !bundle.config["mounts"].as_array().into_iter().flatten().any(|mount| mount["type"] == "cgroup") {
        bundle.push("/mounts", json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup"}));
    }
    let ran = env.run_rung(&["run", "--bundle", bundle.write()?, &env.id("writable")])?.ok()?;
    assert_eq!(ran.text(), format!("/{}", env.id("writable")));
    Ok(())
}

/// As systemd does with any v1 cgroup that is empty when it looks.
fn what_is_removed_before_anybody_is_in_it_is_made_again(env: &Env) -> Result<()> {
    let id = env.id("swept");
    let mut bundle = Bundle::new(env, "swept", &["sleep", "600"])?;
    bundle.set("/linux/cgroupsPath", format!("/{id}")).set("/linux/resources", json!({"pids": {"limit": 33}}));
    let path = bundle.write()?;
    let mut swept = 0;
    for controller in ["pids", "freezer"].into_iter().cycle().take(12) {
        let place = Path::new("/sys/fs/cgroup").join(controller).join(&id);
        let sweeper = std::thread::spawn(move || {
            let end = Instant::now() + wait::seconds(10);
            while Instant::now() < end {
                match fs::remove_dir(&place) {
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    removed => return removed.is_ok(),
                }
            }
            false
        });
        let ran = env.run_rung(&["run", "--detach", "--bundle", path, &id]);
        swept += usize::from(sweeper.join().is_ok_and(|swept| swept));
        let limit = fs::read_to_string(format!("/sys/fs/cgroup/pids/{id}/pids.max"));
        let inside = fs::read_to_string(format!("/sys/fs/cgroup/{controller}/{id}/tasks"));
        env.run_rung(&["delete", "--force", &id])?.ok()?;
        ran?.ok()?;
        assert_eq!(limit?.trim(), "33");
        assert!(!inside?.is_empty(), "nobody is in the cgroup of {controller}");
    }
    assert!(swept > 0, "nothing was removed in time");
    Ok(())
}

fn occupied_cgroup_is_refused(env: &Env) -> Result<()> {
    let first = Sleeper::start(env, "shared", json!({}))?;
    let mut bundle = Bundle::new(env, "second", &["true"])?;
    bundle.set("/linux/cgroupsPath", format!("/{}", first.id));
    let refused = env.run_rung(&["run", "--bundle", bundle.write()?, &env.id("second")])?.fails()?;
    assert!(refused.contains("cgroup is not empty"), "{refused}");
    // The first one is not hurt by the cleaning up after the second.
    assert_eq!(env.state(&first.id)?["status"], "running");
    Ok(())
}

fn refused_limit_leaves_nothing(env: &Env) -> Result<()> {
    let mut bundle = Bundle::new(env, "refused", &["true"])?;
    bundle.set("/linux/resources", json!({"cpu": {"cpus": "4000"}}));
    let refused = env.run_rung(&["run", "--bundle", bundle.write()?, &env.id("refused")])?.fails()?;
    assert!(refused.contains("cpuset.cpus"), "{refused}");
    for controller in ["pids", "memory", "cpuset", "devices"] {
        assert!(!directory(env, "refused", controller).exists());
    }
    Ok(())
}

fn cgroups_below_are_removed_too(env: &Env) -> Result<()> {
    let sleeper = Sleeper::start(env, "nested", json!({}))?;
    let own = directory(env, "nested", "pids");
    // As a container with a writable view may: deeper than anybody needs.
    fs::create_dir_all(own.join(["d"; 60].join("/")))?;
    env.run_rung(&["delete", "--force", &sleeper.id])?.ok()?;
    assert!(!own.exists());
    // Twice is as good as once.
    env.run_rung(&["delete", "--force", &sleeper.id])?.ok()?;
    Ok(())
}

/// A watch that is told of the same change again and again never sleeps.
fn events_are_waited_for_asleep(env: &Env) -> Result<()> {
    let sleeper = Sleeper::start(env, "events", json!({"memory": {"limit": 50_331_648}}))?;
    let mut events = env.rung(&["events", "--interval", "1h", &sleeper.id])?.stdout(Stdio::null()).spawn()?;
    let state = || -> Option<String> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", events.id())).ok()?;
        Some(stat.rsplit_once(')')?.1.trim_start().chars().take(1).collect())
    };
    let ready = wait::until("the watch", || state().filter(|state| state == "S"));
    let looks = (0..20).map(|_| {
        std::thread::sleep(Duration::from_millis(20));
        state()
    });
    let asleep = looks.filter(|state| state.as_deref() == Some("S")).count();
    events.kill()?;
    events.wait()?;
    ready?;
    assert!(asleep > 15, "asleep {asleep} times of 20");
    Ok(())
}

fn unified_is_refused_on_v1(env: &Env) -> Result<()> {
    let mut bundle = Bundle::new(env, "unified", &["true"])?;
    bundle.set("/linux/resources", json!({"unified": {"memory.high": "1000000"}}));
    let refused = env.run_rung(&["run", "--bundle", bundle.write()?, &env.id("unified")])?.fails()?;
    assert!(refused.contains("linux.resources.unified"), "{refused}");
    Ok(())
}

fn unified_is_written(env: &Env) -> Result<()> {
    let memory = json!({"limit": -1, "swap": 104_857_600});
    let resources = json!({"memory": memory, "unified": {"memory.high": "30000000", "pids.max": "9"}});
    let sleeper = Sleeper::start(env, "unified", resources)?;
    // The kernel counts pages.
    assert_eq!(value(env, "unified", "", "", "memory.high")?, (30_000_000 / 4096 * 4096).to_string());
    assert_eq!(value(env, "unified", "", "", "pids.max")?, "9");
    // Swap beside memory without a limit is swap alone, and an update that lifts memory's lifts it.
    assert_eq!(value(env, "unified", "", "", "memory.swap.max")?, "104857600");
    let file = env.path("unified.json");
    fs::write(&file, r#"{"memory":{"limit":-1}}"#)?;
    env.run_rung(&["update", "--resources", &file.to_string_lossy(), &sleeper.id])?.ok()?;
    assert_eq!(value(env, "unified", "", "", "memory.swap.max")?, "max");
    Ok(())
}

fn systemd_knows_the_limits(env: &Env) -> Result<()> {
    let id = env.id("unit");
    let mut bundle = Bundle::new(env, "unit", &["sleep", "600"])?;
    bundle.set("/linux/cgroupsPath", format!("system.slice:rung:{id}"));
    // One process, and systemd wants one of us in there first. A quota that systemd rounds to 560 ms a second.
    let cpu = json!({"quota": 500_000, "period": 900_000});
    bundle.set("/linux/resources", json!({"memory": {"limit": 50_331_648}, "pids": {"limit": 0}, "cpu": cpu}));
    bundle.set("/annotations", json!({"org.systemd.property.TimeoutStopUSec": "uint64 7000000"}));
    env.run_rung(&["--systemd-cgroup", "run", "--detach", "--bundle", bundle.write()?, &id])?.ok()?;
    let unit = format!("rung-{id}.scope");
    let shown = env.run("systemctl", &["show", &unit])?.ok()?;
    let memory = if unified() { "MemoryMax=50331648" } else { "MemoryLimit=50331648" };
    let quota = "CPUQuotaPerSecUSec=560ms";
    for line in ["ActiveState=active", "Delegate=yes", "TasksMax=1", "TimeoutStopUSec=7s", memory, quota] {
        assert!(shown.stdout.lines().any(|found| found == line), "{line} is missing:\n{}", shown.stdout);
    }
    let state = env.state(&id)?;
    let table = fs::read_to_string(format!("/proc/{}/cgroup", state["pid"]))?;
    assert!(table.contains(&format!("system.slice/{unit}")), "{table}");
    if unified() {
        let written = fs::read_to_string(format!("/sys/fs/cgroup/system.slice/{unit}/cpu.max"))?;
        assert_eq!(written.trim(), "504000 900000");
    }
    env.run_rung(&["delete", "--force", &id])?.ok()?;
    let gone = env.run("systemctl", &["show", "--property=ActiveState", &unit])?.ok()?;
    assert_eq!(gone.text(), "ActiveState=inactive");
    Ok(())
}

/// As with crun: the limits are one cgroup below the unit, and the container is in one more below those.
fn a_cgroup_below_the_units_is_the_containers_to_manage(env: &Env) -> Result<()> {
    let id = env.id("below");
    let mut bundle = Bundle::new(env, "below", &["sleep", "600"])?;
    bundle.set("/linux/cgroupsPath", format!("system.slice:rung:{id}"));
    bundle.set("/linux/resources", json!({"memory": {"limit": 50_331_648}, "pids": {"limit": 1}}));
    bundle.set("/annotations", json!({"run.oci.systemd.subgroup": "limited", "run.oci.delegate-cgroup": "own"}));
    let said = env.run_rung(&["run", "--bundle", bundle.write()?, &id])?.fails()?;
    assert!(said.contains("run.oci.delegate-cgroup") && said.contains("--systemd-cgroup"), "{said}");
    env.run_rung(&["--systemd-cgroup", "run", "--detach", "--bundle", bundle.write()?, &id])?.ok()?;
    let state = env.state(&id)?;
    let table = fs::read_to_string(format!("/proc/{}/cgroup", state["pid"]))?;
    let unit = format!("/system.slice/rung-{id}.scope");
    let limits =
        ["memory.max", "pids.max"].map(|file| fs::read_to_string(format!("/sys/fs/cgroup{unit}/limited/{file}")));
    env.run_rung(&["update", "--pids-limit", "9", &id])?.ok()?;
    let seen = env.run_rung(&["exec", &id, "cat", "/proc/1/cgroup"]);
    env.run_rung(&["delete", "--force", &id])?.ok()?;
    assert_eq!(table.trim(), format!("0::{unit}/limited/own"));
    for (limit, expected) in limits.into_iter().zip(["50331648", "1"]) {
        assert_eq!(limit?.trim(), expected);
    }
    assert_eq!(seen?.ok()?.text(), "0::/own");
    assert!(!Path::new(&format!("/sys/fs/cgroup{unit}/limited")).exists());
    Ok(())
}

/// Below a threaded cgroup a container's is threaded too, unless it is to have limits that only whole processes have.
fn below_a_threaded_cgroup_it_is_threaded(env: &Env) -> Result<()> {
    let parent = format!("/sys/fs/cgroup/{}", env.id("threaded"));
    fs::create_dir_all(format!("{parent}/sibling"))?;
    fs::write(format!("{parent}/sibling/cgroup.type"), "threaded")?;
    let mut bundle = Bundle::new(env, "inner", &["sleep", "600"])?;
    bundle.set("/linux/cgroupsPath", format!("/{}/inner/one", env.id("threaded")));
    bundle.set("/linux/resources", json!({"pids": {"limit": 12}}));
    let id = env.id("inner");
    let ran = env.run_rung(&["run", "--detach", "--bundle", bundle.write()?, &id])?;
    let kind = fs::read_to_string(format!("{parent}/inner/one/cgroup.type"));
    let deleted = env.run_rung(&["delete", "--force", &id])?;
    bundle.set("/linux/resources", json!({"memory": {"limit": 50_331_648}}));
    let refused = env.run_rung(&["run", "--bundle", bundle.write()?, &env.id("other")])?;
    for directory in ["inner/one", "inner", "sibling", ""] {
        drop(fs::remove_dir(format!("{parent}/{directory}")));
    }
    ran.ok()?;
    deleted.ok()?;
    assert_eq!(kind?.trim(), "threaded");
    assert!(refused.fails()?.contains("below a threaded cgroup"));
    Ok(())
}

fn systemd_path_of_another_form_is_refused(env: &Env) -> Result<()> {
    let bundle = Bundle::new(env, "form", &["true"])?;
    let refused = env.run_rung(&["--systemd-cgroup", "run", "--bundle", bundle.write()?, &env.id("form")])?.fails()?;
    assert!(refused.contains("expected cgroupsPath to be of format"), "{refused}");
    Ok(())
}

fn statistics_are_in_the_known_form(env: &Env) -> Result<()> {
    let sleeper = Sleeper::start(env, "stats", json!({"pids": {"limit": 55}}))?;
    let line = env.run_rung(&["events", "--stats", &sleeper.id])?.ok()?;
    let event: serde_json::Value = serde_json::from_str(line.text())?;
    assert_eq!(event["type"], "stats");
    assert_eq!(event["id"], json!(sleeper.id));
    let data = &event["data"];
    assert_eq!(data["pids"], json!({"current": 1, "limit": 55}));
    assert!(data["memory"]["usage"]["usage"].as_u64() > Some(0), "{data}");
    assert!(data["cpu"]["usage"]["total"].as_u64() > Some(0), "{data}");
    assert!(data["cpuset"]["cpus"].as_array().is_some_and(|list| !list.is_empty()), "{data}");
    assert_eq!(data["network_interfaces"], serde_json::Value::Null);
    env.run_rung(&["kill", &sleeper.id, "KILL"])?.ok()?;
    wait::until("the container stops", || (env.state(&sleeper.id).ok()?["status"] == "stopped").then_some(()))?;
    let refused = env.run_rung(&["events", "--stats", &sleeper.id])?.fails()?;
    assert!(refused.contains("is not running"), "{refused}");
    Ok(())
}
