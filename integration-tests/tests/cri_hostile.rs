//! Pods and images that are made to harm: each is refused with the field that is wrong, or stays within its pod.

use std::fs;
use std::os::unix::fs::symlink;

use gantry_proto::runtime::v1;
use integration_tests::image::Packing;
use integration_tests::pods::Pods;
use integration_tests::tar::Tar;
use integration_tests::{Env, Image, Registry, Result, Test, tests, wait};
use serde_json::json;
use tonic::Code;

use crate::rung_races::Watcher;

pub(crate) const TESTS: &[Test] = tests![
    links_among_the_logs_lead_nowhere [Root, Overlay],
    what_an_image_says_stays_with_its_containers [Root, Overlay],
    invalid_users_are_refused [Root, Overlay],
    what_a_pod_says_reaches_no_further_than_the_pod [Root, Overlay],
    who_makes_the_users_of_a_pod_is_not_open_to_root [Root, Overlay, Userns],
    the_process_of_a_pod_is_no_way_out [Root, Overlay, Containerd],
];

/// A container that sees the directory of its logs puts a link to somewhere else there.
fn links_among_the_logs_lead_nowhere(env: &Env) -> Result<()> {
    let (_registry, image) = Registry::with_busybox(env)?;
    let daemon = env.daemon()?;
    let mut pods = Pods::connect(env, &daemon)?;
    pods.pull(&image)?;
    let config = pods.pod_config("pod");
    let pod = pods.run(&config)?;
    let (outside, logs) = (env.dir("outside")?, env.dir("logs")?);
    symlink(&outside, logs.join("web"))?;
    let command = ["sh", "-c", "echo first; while [ ! -e /logs/again ]; do sleep 0.1; done; echo second; sleep 1000"];
    let container = pods.start(&pod, &config, &image, &command, |container| {
        container.log_path = "web/0.log".to_owned();
        container.mounts = vec![v1::Mount {
            container_path: "/logs".to_owned(),
            host_path: logs.to_string_lossy().into_owned(),
            ..Default::default()
        }];
    })?;
    let inside = logs.join(outside.strip_prefix("/")?).join("0.log");
    let says = |path: &std::path::Path, text: &str| fs::read_to_string(path).ok().filter(|said| said.contains(text));
    wait::until("the first line", || says(&inside, "first"))?;
    // As after a rotation, with another link in the place of the directory.
    fs::remove_file(logs.join("web"))?;
    symlink("../outside", logs.join("web"))?;
    let reopen = v1::ReopenContainerLogRequest { container_id: container.clone() };
    pods.runtime.block_on(pods.pods.reopen_container_log(reopen))?;
    fs::write(logs.join("again"), "")?;
    wait::until("the second line", || says(&logs.join("outside/0.log"), "second"))?;
    assert_eq!(fs::read_dir(&outside)?.count(), 0, "nothing was written outside");
    // And a log that is a link itself is none.
    symlink(outside.join("made"), logs.join("1.log"))?;
    let refused = pods.start(&pod, &config, &image, &["true"], |container| {
        container.metadata = Some(v1::ContainerMetadata { name: "second".to_owned(), attempt: 0 });
        container.log_path = "1.log".to_owned();
    });
    assert!(format!("{:#}", refused.expect_err("a link")).contains("1.log"));
    assert!(!outside.join("made").exists());
    Ok(())
}

/// Labels, volumes and the working directory of an image.
fn what_an_image_says_stays_with_its_containers(env: &Env) -> Result<()> {
    let registry = Registry::start(env)?;
    let secret = env.path("secret");
    fs::create_dir(&secret)?;
    fs::write(secret.join("file"), "of the host")?;
    let (host, up) = (secret.to_string_lossy().into_owned(), format!("/../../../../..{}", secret.display()));
    let labels = json!({
        "io.cri-containerd.kind": "sandbox", "containerd.io/restart.loguri": "binary:///bin/false",
        "containerd.io/restart.status": "running", "io.kubernetes.pod.uid": "another",
    });
    let image = Image::busybox()?
        .layer(
            Tar::new().symlink("volume", &host).symlink("inner", &up).dir("kept").file("kept/file", "own"),
            Packing::Gzip,
        )?
        .setting("Labels", labels)
        .setting("Volumes", json!({"/volume": {}, "/inner": {}, "/kept": {}, up.clone(): {}}))
        .push(&registry, "test/hostile", "latest")?;
    let daemon = env.daemon()?;
    let mut pods = Pods::connect(env, &daemon)?;
    pods.pull(&image)?;
    let config = pods.pod_config("pod");
    let pod = pods.run(&config)?;
    let container = pods.start(
        &pod,
        &config,
        &image,
        &["sh", "-c", "cat /kept/file; cat /volume/file /inner/file"],
        |container| {
            container.log_path = "c.log".to_owned();
        },
    )?;
    pods.exit_code(&container)?;
    let said = fs::read_to_string(env.path("logs/c.log"))?;
    assert!(said.contains("own") && !said.contains("of the host"), "{said}");
    let record = daemon.ctr(&["--namespace", "k8s.io", "containers", "info", &container])?.ok()?.text().to_owned();
    let record: serde_json::Value = serde_json::from_str(&record)?;
    let labels = record["Labels"].as_object().expect("labels");
    assert_eq!(labels["io.cri-containerd.kind"], "container");
    assert!(
        !labels.keys().any(|key| key.starts_with("containerd.io/restart") || key == "io.kubernetes.pod.uid"),
        "{record}"
    );
    let image = Image::busybox()?.setting("WorkingDir", "/proc/self/fd/7").push(&registry, "test/cwd", "latest")?;
    pods.pull(&image)?;
    pods.start(&pod, &config, &image, &["true"], |container| {
        container.metadata = Some(v1::ContainerMetadata { name: "cwd".to_owned(), attempt: 0 });
    })
    .expect_err("a directory of the runtime's");
    assert_eq!(fs::read_to_string(secret.join("file"))?, "of the host");
    Ok(())
}

/// A number that is too large for an id is not one, nor a name that the image may give to root.
fn invalid_users_are_refused(env: &Env) -> Result<()> {
    let registry = Registry::start(env)?;
    let users = ["4294967296", "4294967295", "-1", "18446744073709551616", "0x0", "1000:4294967296"];
    let passwd: String = users.iter().map(|name| format!("{name}:x:0:0::/:/bin/sh\n")).collect();
    let daemon = env.daemon()?;
    let mut pods = Pods::connect(env, &daemon)?;
    let config = pods.pod_config("pod");
    let pod = pods.run(&config)?;
    for (number, user) in users.into_iter().enumerate() {
        let layer = Tar::new().file("etc/passwd", passwd.as_str());
        let image = Image::busybox()?.layer(layer, Packing::Gzip)?.setting("User", user);
        let image = image.push(&registry, "test/user", &number.to_string())?;
        pods.pull(&image)?;
        let name = v1::ContainerMetadata { name: format!("c{number}"), attempt: 0 };
        let started = pods.start(&pod, &config, &image, &["id"], |container| {
            container.metadata = Some(name.clone());
            container.log_path = format!("{number}.log");
        });
        match started {
            Err(error) => {
                let code = error.downcast_ref::<tonic::Status>().map(tonic::Status::code);
                assert_eq!(code, Some(Code::InvalidArgument), "{error:#}");
            }
            // A name that only looks like a number is the image's to give away; kubelets know that it is a name.
            Ok(container) => {
                pods.exit_code(&container)?;
                assert!(["-1", "0x0"].contains(&user), "{user}");
            }
        }
    }
    Ok(())
}

type Spoil = fn(&mut v1::PodSandboxConfig);

fn what_a_pod_says_reaches_no_further_than_the_pod(env: &Env) -> Result<()> {
    let daemon = env.daemon()?;
    let mut pods = Pods::connect(env, &daemon)?;
    let core = fs::read_to_string("/proc/sys/kernel/core_pattern")?;
    let wrong: [(&str, Spoil); 7] = [
        ("sysctls", |config| sysctl(config, "kernel.shm_rmid_forced=1+kernel.core_pattern", "x")),
        ("sysctl", |config| sysctl(config, "kernel.shm_rmid_forced", "1+kernel.core_pattern=|/x")),
        ("sysctls", |config| sysctl(config, "kernel/../vm/swappiness", "1")),
        // Of the machine, as this pod has its network.
        ("sysctls", |config| sysctl(config, "net.ipv4.ip_forward", "1")),
        ("cgroup_parent", |config| config.linux.get_or_insert_default().cgroup_parent = "/a/../../b".to_owned()),
        ("uid", |config| config.metadata.get_or_insert_default().uid = "a;K8S_POD_NAME=b".to_owned()),
        ("name", |config| config.metadata.get_or_insert_default().name = "a\nb".to_owned()),
    ];
    for (field, spoil) in wrong {
        let mut config = pods.pod_config("pod");
        spoil(&mut config);
        let request = v1::RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() };
        let refused = pods.runtime.block_on(pods.pods.run_pod_sandbox(request)).expect_err(field);
        assert!(refused.message().contains(field), "{refused}");
    }
    assert_eq!(fs::read_to_string("/proc/sys/kernel/core_pattern")?, core);
    // Kubernetes allows 256 KiB of annotations; ten times that is still one pod's own business.
    let mut config = pods.pod_config("large");
    config.annotations.insert("large".to_owned(), "x".repeat(2_500_000));
    let pod = pods.run(&config)?;
    let request = v1::PodSandboxStatusRequest { pod_sandbox_id: pod, verbose: false };
    let status = pods.runtime.block_on(pods.pods.pod_sandbox_status(request))?.into_inner().status.expect("status");
    assert_eq!(status.annotations, config.annotations);
    // More than a message may have is nobody's.
    let mut config = pods.pod_config("larger");
    config.annotations.insert("large".to_owned(), "x".repeat(40_000_000));
    let request = v1::RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() };
    let refused = pods.runtime.block_on(pods.pods.run_pod_sandbox(request)).expect_err("too large");
    assert!(matches!(refused.code(), Code::OutOfRange | Code::ResourceExhausted), "{refused}");
    let list = v1::ListPodSandboxRequest::default();
    assert_eq!(pods.runtime.block_on(pods.pods.list_pod_sandbox(list))?.into_inner().items.len(), 1);
    Ok(())
}

fn sysctl(config: &mut v1::PodSandboxConfig, name: &str, value: &str) {
    config.linux.get_or_insert_default().sysctls.insert(name.to_owned(), value.to_owned());
}

/// The daemon makes user namespaces for pods and for mounts, by processes that have its root.
fn who_makes_the_users_of_a_pod_is_not_open_to_root(env: &Env) -> Result<()> {
    let watcher = Watcher::start(env)?;
    let daemon = env.daemon()?;
    let mut pods = Pods::connect(env, &daemon)?;
    let mapping = || vec![v1::IdMapping { container_id: 0, host_id: 100_000, length: 65_536 }];
    for round in 0..10 {
        let mut config = pods.pod_config(&format!("pod{round}"));
        let context = config.linux.get_or_insert_default().security_context.get_or_insert_default();
        let users = v1::UserNamespace { mode: v1::NamespaceMode::Pod.into(), uids: mapping(), gids: mapping() };
        context.namespace_options.get_or_insert_default().userns_options = Some(users);
        pods.run(&config)?;
    }
    let seen = watcher.seen()?;
    assert!(seen.is_empty(), "a container saw the root of the host:\n{seen}");
    Ok(())
}

/// Root of a container that shares its pod's processes has the first one's root, and can make it do what it likes.
fn the_process_of_a_pod_is_no_way_out(env: &Env) -> Result<()> {
    let (_registry, image) = Registry::with_busybox(env)?;
    let handlers = "[cri.runtimes.rung]\n[cri.runtimes.other]\nbinary = \"runc\"\n";
    let daemon = env.daemon_configured(&format!("[cri]\nrestrict_oom_score_adj = true\n{handlers}"))?;
    let mut pods = Pods::connect(env, &daemon)?;
    pods.pull(&image)?;
    for handler in ["rung", "other"] {
        let mut config = pods.pod_config(handler);
        let context = config.linux.get_or_insert_default().security_context.get_or_insert_default();
        context.seccomp = Some(v1::SecurityProfile::default());
        let request = v1::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: handler.to_owned() };
        let pod = pods.runtime.block_on(pods.pods.run_pod_sandbox(request))?.into_inner().pod_sandbox_id;
        // It is opened, and nothing is written.
        let script = "test -e /proc/1/root/pause || exit 9; (: >> /proc/1/root/proc/sys/kernel/core_pattern) && exit 8; \
             grep -q '^Seccomp:.2$' /proc/1/status || exit 7";
        let container = pods.start(&pod, &config, &image, &["sh", "-c", script], |_| {})?;
        assert_eq!(pods.exit_code(&container)?, 0, "{handler}");
        pods.remove(&pod)?;
    }
    Ok(())
}
