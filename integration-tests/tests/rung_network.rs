//! Network devices that a configuration hands to its container. Every test has the "host" to itself: a network namespace
//! that it makes.

use std::process::Command;

use anyhow::{Context as _, ensure};
use integration_tests::{Bundle, Env, Result, Test, output, tests};
use nix::sched::{CloneFlags, unshare};
use serde_json::json;

pub(crate) const TESTS: &[Test] = tests![
    a_device_moves_with_what_it_has[Root],
    a_device_moves_into_a_joined_namespace[Root],
    a_name_that_is_taken_fails_the_start[Root],
    templates_take_free_names[Root],
    devices_need_what_the_specification_says[Root],
];

fn ip(line: &str) -> Result<String> {
    let mut command = Command::new("ip");
    command.args(line.split(' '));
    Ok(output::run(command)?.ok()?.stdout)
}

/// A namespace of the test's own with a pair of devices, `gt0` and `gt1`.
fn own_network() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace")?;
    ip("link add gt0 type veth peer name gt1")?;
    Ok(())
}

fn bundle(env: &Env, name: &str, script: &str) -> Result<Bundle> {
    let mut bundle = Bundle::new(env, name, &["sh", "-c", script])?;
    let kinds = ["network", "mount", "pid", "uts", "ipc"].map(|kind| json!({"type": kind}));
    bundle.set("/linux/namespaces", json!(kinds));
    Ok(bundle)
}

fn a_device_moves_with_what_it_has(env: &Env) -> Result<()> {
    own_network()?;
    ip("link set gt0 mtu 1789 address 00:11:22:33:44:55 up")?;
    ip("address add 198.51.100.7/24 dev gt0")?;
    ip("address add 2001:db8::7/64 dev gt0 nodad")?;
    ip("address add 127.9.9.9/32 scope host dev gt0")?;
    let mut bundle = bundle(env, "moves", "ip address show dev inside")?;
    bundle.set("/linux/netDevices", json!({"gt0": {"name": "inside"}}));
    let id = env.id("moves");
    let shown = env.run_rung(&["run", "--bundle", bundle.write()?, &id])?.ok()?.stdout;
    for part in ["mtu 1789", "00:11:22:33:44:55", "198.51.100.7/24", "2001:db8::7/64", "UP"] {
        ensure!(shown.contains(part), "{part} is missing: {shown}");
    }
    ensure!(!shown.contains("127.9.9.9"), "an address of the host's own scope came along: {shown}");
    ensure!(ip("link show").is_ok_and(|links| !links.contains("gt0")), "it is still here");
    Ok(())
}

fn a_device_moves_into_a_joined_namespace(env: &Env) -> Result<()> {
    own_network()?;
    let namespace = env.token();
    ip(&format!("netns add {namespace}"))?;
    let outcome = || -> Result<()> {
        let mut bundle = bundle(env, "joined", "ip address show dev gt0")?;
        let path = format!("/run/netns/{namespace}");
        bundle.set("/linux/namespaces/0/path", path).set("/linux/netDevices", json!({"gt0": {}}));
        let id = env.id("joined");
        ensure!(env.run_rung(&["run", "--bundle", bundle.write()?, &id])?.ok()?.text().contains("gt0"));
        // The namespace is its owner's: the device stays there when the container is gone.
        ip(&format!("-n {namespace} link show gt0"))?;
        Ok(())
    }();
    ip(&format!("netns del {namespace}"))?;
    outcome
}

fn a_name_that_is_taken_fails_the_start(env: &Env) -> Result<()> {
    own_network()?;
    ip("link set gt0 up")?;
    ip("address add 198.51.100.7/24 dev gt0")?;
    let mut bundle = bundle(env, "taken", "true")?;
    let id = env.id("taken");
    bundle.set("/linux/netDevices", json!({"gt0": {"name": "lo"}}));
    let said = env.run_rung(&["run", "--bundle", bundle.write()?, &id])?.fails()?;
    ensure!(
        said.contains("linux.netDevices.gt0: move it to the container as lo: ") && said.contains("file exists"),
        "{said}"
    );
    ensure!(ip("address show dev gt0")?.contains("198.51.100.7/24"), "the host has lost its device");
    bundle.set("/linux/netDevices", json!({"missing": {}}));
    let said = env.run_rung(&["run", "--bundle", bundle.write()?, &id])?.fails()?;
    ensure!(said.contains("linux.netDevices.missing: find the device on the host"), "{said}");
    ensure!(env.run_rung(&["list", "-q"])?.ok()?.stdout.is_empty(), "something is left");
    Ok(())
}

fn templates_take_free_names(env: &Env) -> Result<()> {
    own_network()?;
    let mut bundle = bundle(env, "template", "ip -o link show")?;
    bundle.set("/linux/netDevices", json!({"gt0": {"name": "net%d"}, "gt1": {"name": "net%d"}}));
    let shown = env.run_rung(&["run", "--bundle", bundle.write()?, &env.id("template")])?.ok()?.stdout;
    ensure!(shown.contains("net0") && shown.contains("net1"), "{shown}");
    Ok(())
}

fn devices_need_what_the_specification_says(env: &Env) -> Result<()> {
    let mut bundle = bundle(env, "refused", "true")?;
    let id = env.id("refused");
    bundle.set("/linux/netDevices", json!({"gt0": {}}));
    let path = bundle.write()?;
    let said = env.run_rung(&["--rootless", "true", "run", "--bundle", path, &id])?.fails()?;
    ensure!(said.contains("network devices are not supported for rootless containers"), "{said}");
    bundle.set("/linux/namespaces/0/type", "cgroup");
    let said = env.run_rung(&["run", "--bundle", bundle.write()?, &id])?.fails()?;
    ensure!(said.contains("linux.netDevices") && said.contains("without a NET namespace"), "{said}");
    Ok(())
}
