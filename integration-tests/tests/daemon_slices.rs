//! Large layers from a registry whose connections are slow each: they come over several.

use std::fs;
use std::time::Duration;

use anyhow::ensure;
use integration_tests::image::Packing;
use integration_tests::tar::Tar;
use integration_tests::{Env, Image, Registry, Result, Test, tests, wait};

use crate::daemon_registry::slowed;

pub(crate) const TESTS: &[Test] = tests![
    a_large_layer_comes_several_times_faster [Root, Overlay, Fast],
    a_large_layer_is_gone_on_with_after_a_kill [Root, Overlay, Fast],
];

const MIB: usize = 1 << 20;
/// Bytes that nothing packs, in the image's file.
const SIZE: usize = 28 * MIB;

/// An image with one large layer, and the address of a registry of which each connection brings 2.5 MiB a second.
fn slow(env: &Env) -> Result<(Registry, String)> {
    let registry = Registry::start(env)?;
    let mut state = 88_172_645_463_325_252_u64;
    let noise = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    let noise: Vec<u8> = noise.take(SIZE / 8).flatten().collect();
    Image::busybox()?.layer(Tar::new().file("noise", noise), Packing::Plain)?.push(&registry, "test/large", "1")?;
    let address = slowed(&registry, 256 << 10, Duration::from_millis(100), usize::MAX)?;
    Ok((registry, format!("{address}/test/large:1")))
}

fn config(connections: usize) -> String {
    format!("[registry]\nmax_layer_connections = {connections}\nlarge_layer = 8\n[log]\nlevel = \"debug\"\n")
}

fn a_large_layer_comes_several_times_faster(env: &Env) -> Result<()> {
    let (_registry, image) = slow(env)?;
    let pull = |connections: usize| -> Result<Duration> {
        let daemon = env.daemon_configured(&config(connections))?;
        let took = daemon.gantry(&["pull", "-q", &image])?.ok()?.took;
        let size = daemon.gantry(&["run", "--rm", &image, "stat", "-c", "%s", "/noise"])?.ok()?;
        ensure!(size.text() == SIZE.to_string(), "{size}");
        daemon.gantry(&["rmi", &image])?.ok()?;
        daemon.gantry(&["system", "gc"])?.ok()?;
        daemon.stop()?;
        Ok(took)
    };
    let (alone, together) = (pull(1)?, pull(6)?);
    // About three times as fast, on a machine that has other things to do as well.
    ensure!(together * 2 < alone, "{together:?} over several connections, {alone:?} over one");
    Ok(())
}

/// Bytes that are stored of the layer, in their order.
fn stored(env: &Env) -> Result<u64> {
    let ingests = fs::read_dir(env.path("root/io.containerd.content.v1.content/ingest"))?.flatten();
    Ok(ingests.filter_map(|dir| Some(fs::metadata(dir.path().join("data")).ok()?.len())).max().unwrap_or(0))
}

fn a_large_layer_is_gone_on_with_after_a_kill(env: &Env) -> Result<()> {
    let (_registry, image) = slow(env)?;
    let daemon = env.daemon_configured(&config(4))?;
    let mut pull = daemon.gantry_command(&["pull", "-q", &image])?.spawn()?;
    wait::until_within(wait::seconds(30), "half of the layer", || (stored(env).ok()? > SIZE as u64 / 2).then_some(()))?;
    daemon.crash()?;
    pull.wait()?;
    let daemon = env.daemon_configured(&config(4))?;
    ensure!(stored(env)? > SIZE as u64 / 2, "what had come is not there");
    daemon.gantry(&["pull", "-q", &image])?.ok()?;
    let sum = daemon.gantry(&["run", "--rm", &image, "sh", "-c", "wc -c < /noise"])?.ok()?;
    ensure!(sum.text() == SIZE.to_string(), "{sum}");
    daemon.is_whole()
}
