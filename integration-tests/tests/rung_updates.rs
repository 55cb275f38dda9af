//! New limits for a container that runs: what they change, and what they leave.

use std::fs;

use integration_tests::{Bundle, Env, Result, Test, tests};
use serde_json::json;

use crate::rung_cgroups::{Sleeper, unified, value};

pub(crate) const TESTS: &[Test] = tests![
    an_update_keeps_what_it_does_not_name [Root],
    an_idle_container_has_no_weight [Root, CgroupV2],
    systemd_is_not_told_what_it_cannot_change [Root, CgroupV2, Systemd],
];

fn an_update_keeps_what_it_does_not_name(env: &Env) -> Result<()> {
    let resources = json!({"cpu": {"quota": 30_000, "period": 60_000}, "memory": {"limit": 50_331_648}});
    let sleeper = Sleeper::start(env, "update", resources)?;
    let file = env.path("update.json");
    fs::write(&file, r#"{"cpu":{"period":50000,"quota":null}}"#)?;
    env.run_rung(&["update", "--resources", &file.to_string_lossy(), &sleeper.id])?.ok()?;
    let cpu = || -> Result<(String, String)> {
        let found = |v1| value(env, "update", "cpu", v1, "cpu.max");
        Ok((found("cpu.cfs_quota_us")?, found("cpu.cfs_period_us")?))
    };
    let expected = |quota: &str, period: &str| match unified() {
        true => (format!("{quota} {period}"), format!("{quota} {period}")),
        false => (quota.to_owned(), period.to_owned()),
    };
    env.run_rung(&["update", "--cpu-quota", "0", &sleeper.id])?.ok()?;
    assert_eq!(cpu()?, expected("30000", "50000"));
    // What was written before a refusal is set back.
    fs::write(&file, r#"{"cpu":{"quota":20000,"cpus":"4000"}}"#)?;
    env.run_rung(&["update", "--resources", &file.to_string_lossy(), &sleeper.id])?.fails()?;
    assert_eq!(cpu()?, expected("30000", "50000"));
    fs::write(&file, r#"{"memory":{"limit":4096,"checkBeforeUpdate":true}}"#)?;
    let said = env.run_rung(&["update", "--resources", &file.to_string_lossy(), &sleeper.id])?.fails()?;
    assert!(said.contains("rejecting memory limit 4096 <= usage"), "{said}");
    let said = env.run_rung(&["update", "--blkio-weight", "9", &sleeper.id])?.fails()?;
    assert!(said.contains("blockIO.weight: 9 is not between 10 and 1000"), "{said}");
    fs::write(&file, "[]")?;
    let said = env.run_rung(&["update", "--resources", &file.to_string_lossy(), &sleeper.id])?.fails()?;
    assert!(said.contains("no JSON object"), "{said}");
    assert_eq!(value(env, "update", "memory", "memory.limit_in_bytes", "memory.max")?, "50331648");
    Ok(())
}

fn an_idle_container_has_no_weight(env: &Env) -> Result<()> {
    let sleeper = Sleeper::start(env, "idle", json!({"cpu": {"shares": 100}}))?;
    let ran = env.run_rung(&["update", "--cpu-share", "200", "--cpu-idle", "1", &sleeper.id])?.ok()?;
    assert!(ran.stderr.contains("unable to apply both"), "{}", ran.stderr);
    assert_eq!(value(env, "idle", "", "", "cpu.idle")?, "1");
    env.run_rung(&["update", "--cpu-idle", "0", &sleeper.id])?.ok()?;
    assert_eq!(value(env, "idle", "", "", "cpu.weight")?, "29");
    Ok(())
}

fn systemd_is_not_told_what_it_cannot_change(env: &Env) -> Result<()> {
    let id = env.id("policy");
    let mut bundle = Bundle::new(env, "policy", &["sleep", "600"])?;
    // As in `systemd_knows_the_limits`, but said in another place.
    bundle.set("/linux/resources", json!({"unified": {"pids.max": "1"}}));
    bundle.set("/linux/cgroupsPath", format!("system.slice:rung:{id}"));
    env.run_rung(&["--systemd-cgroup", "run", "--detach", "--bundle", bundle.write()?, &id])?.ok()?;
    let file = env.path("policy.json");
    fs::write(&file, r#"{"unified":{"memory.oom.group":"1"},"pids":{"limit":44}}"#)?;
    let updated = env.run_rung(&["update", "--resources", &file.to_string_lossy(), &id]);
    let written = fs::read_to_string(format!("/sys/fs/cgroup/system.slice/rung-{id}.scope/memory.oom.group"));
    env.run_rung(&["delete", "--force", &id])?.ok()?;
    updated?.ok()?;
    assert_eq!(written?.trim(), "1");
    Ok(())
}
