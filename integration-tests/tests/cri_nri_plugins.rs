//! Plugins of the node resource interface that do as they should not, that the daemon starts, and what they may not do.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use gantry_proto::nri::pkg::api::v1alpha1 as api;
use integration_tests::nri::{Answer, Plugin, Seen};
use integration_tests::{Env, Result, Test, tests, wait};
use prost::Message as _;

use crate::cri_nri::{Scene, fine, variable, wants};

pub(crate) const TESTS: &[Test] = tests![
    plugins_that_hang_or_die_or_talk_nonsense_are_dropped [Root, Overlay],
    plugins_of_the_directory_are_started_and_ended [Root, Overlay],
    the_validator_refuses_what_it_is_told_to [Root, Overlay],
];

fn plugins_that_hang_or_die_or_talk_nonsense_are_dropped(env: &Env) -> Result<()> {
    let mut scene = Scene::new(env, "request_timeout = 1\nregistration_timeout = 1\n")?;
    let of = |method: &'static str, answer: fn() -> Answer| {
        move |seen: &Seen| if seen.method == method { answer() } else { Answer::Fine }
    };
    let hangs = scene.plugin(("00", "hangs"), of("RunPodSandbox", || Answer::Hang))?;
    let nonsense = scene.plugin(("10", "nonsense"), of("CreateContainer", || Answer::With(vec![0xff; 3])))?;
    let dies = scene.plugin(("20", "dies"), fine)?;
    let stays = scene.plugin(("30", "stays"), fine)?;
    drop(dies);
    let pod = scene.pod("pod")?;
    hangs.dropped()?;
    let container = scene.container(&pod, "c", "exec sleep 600")?;
    nonsense.dropped()?;
    assert!(stays.methods_of(&container).contains(&"PostStartContainer".to_owned()));
    let log = scene.daemon.log();
    for (plugin, call) in [("00-hangs", "RunPodSandbox"), ("10-nonsense", "CreateContainer")] {
        let named = |line: &str| line.contains(plugin) && line.contains(call) && line.contains("is dropped");
        assert!(log.lines().any(named), "{plugin} is not named: {log}");
    }
    assert!(log.lines().any(|line| line.contains("20-dies") && line.contains("is gone")), "{log}");
    // Those that do not get as far as that.
    let socket = env.path("nri.sock");
    let silent = std::os::unix::net::UnixStream::connect(&socket)?;
    let noise = std::os::unix::net::UnixStream::connect(&socket)?;
    std::io::Write::write_all(&mut &noise, &[0, 0, 0, 2, 0xff, 0xff, 0xff, 0xff, 1, 2, 3])?;
    assert!(Plugin::connect(&socket, "5", "index", fine).is_err());
    let deaf = Plugin::connect(&socket, "00", "deaf", |seen| match seen.method.as_str() {
        "Synchronize" => Answer::Hang,
        _ => Answer::Fine,
    })?;
    deaf.dropped()?;
    for mut socket in [silent, noise] {
        socket.set_read_timeout(Some(wait::seconds(20)))?;
        // The daemon hangs up.
        assert_eq!(std::io::Read::read(&mut socket, &mut [0]).unwrap_or_default(), 0);
    }
    scene.pods.remove(&pod.0)?;
    Ok(())
}

/// A directory with a plugin in it that notes what it is told.
fn directory(env: &Env) -> Result<(String, PathBuf)> {
    let (dir, config, notes) = (env.dir("plugins")?, env.dir("conf.d")?, env.path("notes"));
    let program = std::env::current_exe()?;
    let script = format!("#!/bin/sh\nexec {program:?} nri-plugin {notes:?} <&3\n");
    std::fs::write(dir.join("10-noting"), script)?;
    std::fs::set_permissions(dir.join("10-noting"), std::fs::Permissions::from_mode(0o755))?;
    std::fs::write(dir.join("20-broken"), "#!/bin/sh\nexit 1\n")?;
    std::fs::set_permissions(dir.join("20-broken"), std::fs::Permissions::from_mode(0o755))?;
    std::fs::write(config.join("noting.conf"), "anything\n")?;
    Ok((format!("external = false\nplugin_dir = {dir:?}\nconfig_dir = {config:?}\n"), notes))
}

fn plugins_of_the_directory_are_started_and_ended(env: &Env) -> Result<()> {
    let (settings, notes) = directory(env)?;
    let mut scene = Scene::new(env, &settings)?;
    assert!(!env.path("nri.sock").exists(), "nobody else may connect");
    let said = || std::fs::read_to_string(&notes).unwrap_or_default();
    // The daemon is not ready before they are.
    assert_eq!(said().lines().take(2).collect::<Vec<_>>(), ["Configure anything", "Synchronize"]);
    let log = scene.daemon.log();
    assert!(log.lines().any(|line| line.contains("20-broken") && line.contains("is refused")), "{log}");
    let pod = scene.pod("pod")?;
    let container = scene.container(&pod, "web", "exec sleep 600")?;
    assert_eq!(scene.exec(&container, "echo $NRI_CONFIG")?, "anything");
    assert!(said().contains("RunPodSandbox\nCreateContainer web\n"), "{}", said());
    scene.pods.remove(&pod.0)?;
    drop(scene.pods);
    scene.daemon.stop()?;
    assert!(said().ends_with("Shutdown\n"), "{}", said());
    Ok(())
}

fn the_validator_refuses_what_it_is_told_to(env: &Env) -> Result<()> {
    let settings = "[cri.nri.validator]\nenable = true\nreject_hooks = true\nrequired_plugins = [\"needed\"]\n";
    let mut scene = Scene::new(env, settings)?;
    let pod = scene.pod("pod")?;
    let error = scene.create(scene.creation(&pod, "c")).expect_err("without it").message().to_owned();
    assert!(error.contains("\"needed\", which is required, is not there"), "{error}");
    let needed = scene.plugin(("50", "needed"), |seen| {
        let answer = api::ValidateContainerAdjustmentResponse { reject: true, reason: "I say so".to_owned() };
        let is_rejected = |request: &[u8]| {
            let request = api::ValidateContainerAdjustmentRequest::decode(request).unwrap_or_default();
            request.adjust.is_some_and(|adjust| !adjust.env.is_empty())
        };
        match seen.method.as_str() {
            "ValidateContainerAdjustment" if is_rejected(&seen.request) => Answer::message(&answer),
            _ => Answer::Fine,
        }
    })?;
    scene.create(scene.creation(&pod, "c"))?;
    let hook = api::Hook { path: "/bin/true".to_owned(), ..Default::default() };
    let hooks = Some(api::Hooks { poststop: vec![hook], ..Default::default() });
    let hooked = scene.plugin(("10", "hooks"), wants(api::ContainerAdjustment { hooks, ..Default::default() }))?;
    let error = scene.create(scene.creation(&pod, "d")).expect_err("hooks").message().to_owned();
    assert!(error.contains("10-hooks may not change hooks"), "{error}");
    drop(hooked);
    let env = vec![variable("A", "1")];
    let _variables = scene.plugin(("20", "env"), wants(api::ContainerAdjustment { env, ..Default::default() }))?;
    let error = scene.create(scene.creation(&pod, "e")).expect_err("rejected").message().to_owned();
    assert!(error.contains("50-needed") && error.contains("I say so"), "{error}");
    drop(needed);
    Ok(())
}
