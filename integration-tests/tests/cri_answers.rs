//! Answers to what a kubelet seldom asks, each found where another runtime answered otherwise.

use gantry_proto::runtime::v1;
use integration_tests::pods::{self, Pods};
use integration_tests::{Env, Result, Stack, Test, tests, wait};
use tonic::Code;

pub(crate) const TESTS: &[Test] = tests![
    a_contradictory_configuration_names_its_field [Root, Overlay],
    a_limit_can_be_taken_back [Root, Overlay],
    described_devices_are_for_whom_the_container_runs_as [Root, Overlay],
    an_administrators_hooks_run_for_containers_of_their_kind [Root, Overlay],
];

type Spoil = fn(&mut v1::ContainerConfig);

fn security(config: &mut v1::ContainerConfig) -> &mut v1::LinuxContainerSecurityContext {
    config.linux.get_or_insert_default().security_context.get_or_insert_default()
}

fn a_contradictory_configuration_names_its_field(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    let mut pods = Pods::connect(env, &stack.daemon)?;
    pods.pull(&stack.image)?;
    let config = pods.pod_config("pod");
    let pod = pods.run(&config)?;
    let wrong: [(&str, Spoil); 9] = [
        ("namespace_options.pid", |config| {
            let own = v1::NamespaceOption { pid: v1::NamespaceMode::Node.into(), ..Default::default() };
            security(config).namespace_options = Some(own);
        }),
        ("run_as_username", |config| {
            security(config).run_as_user = Some(v1::Int64Value { value: 0 });
            security(config).run_as_username = "root".to_owned();
        }),
        ("config.image", |config| config.image = None),
        ("hugepage_limits", |config| {
            let limit = v1::HugepageLimit { page_size: "2 MB".to_owned(), limit: 0 };
            config.linux.get_or_insert_default().resources.get_or_insert_default().hugepage_limits = vec![limit];
        }),
        ("security_context.seccomp", |config| {
            let localhost_ref = "/profile.json".to_owned();
            security(config).seccomp = Some(v1::SecurityProfile { localhost_ref, ..Default::default() });
        }),
        ("masked_paths", |config| security(config).masked_paths = vec![String::new()]),
        ("readonly_paths", |config| security(config).readonly_paths = vec!["/proc".to_owned(), String::new()]),
        ("mounts.host_path", |config| {
            // Not there, and nothing that could be made a directory.
            let host_path = "/proc/none/x".to_owned();
            config.mounts = vec![v1::Mount { host_path, container_path: "/x".to_owned(), ..Default::default() }];
        }),
        ("mounts.image.image", |config| {
            let (image, container_path) = (Some(v1::ImageSpec::default()), "/x".to_owned());
            config.mounts = vec![v1::Mount { image, container_path, readonly: true, ..Default::default() }];
        }),
    ];
    for (field, spoil) in wrong {
        let refused = pods.start(&pod, &config, &stack.image, &["true"], spoil).expect_err(field);
        let refused = refused.downcast::<tonic::Status>()?;
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        assert!(refused.message().contains(field), "{refused}");
    }
    let container = pods.start(&pod, &config, &stack.image, &["sleep", "1000"], |_| {})?;
    let cmd = vec!["echo".to_owned(), "a\0b".to_owned()];
    let request = v1::ExecSyncRequest { container_id: container.clone(), cmd: cmd.clone(), timeout: 10 };
    let refused = pods.runtime.block_on(pods.pods.exec_sync(request)).expect_err("a NUL byte");
    assert_eq!((refused.code(), refused.message()), (Code::InvalidArgument, "cmd: contains a NUL byte"));
    let request = v1::ExecRequest { container_id: container, cmd, stdout: true, ..Default::default() };
    let refused = pods.runtime.block_on(pods.pods.exec(request)).expect_err("a NUL byte");
    assert_eq!((refused.code(), refused.message()), (Code::InvalidArgument, "cmd: contains a NUL byte"));
    // No id is not that of something which is gone.
    let request = v1::StopPodSandboxRequest::default();
    let refused = pods.runtime.block_on(pods.pods.stop_pod_sandbox(request)).expect_err("no id");
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    let request = v1::RemoveContainerRequest::default();
    let refused = pods.runtime.block_on(pods.pods.remove_container(request)).expect_err("no id");
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    // Whether or not there is a template that would be filled with it.
    let network_config = Some(v1::NetworkConfig { pod_cidr: "10.0.0.0/8,10.0.0.1".to_owned() });
    let request = v1::UpdateRuntimeConfigRequest { runtime_config: Some(v1::RuntimeConfig { network_config }) };
    let refused = pods.runtime.block_on(pods.pods.update_runtime_config(request)).expect_err("no range");
    assert!(refused.code() == Code::InvalidArgument && refused.message().contains("pod_cidr"), "{refused}");
    Ok(())
}

/// What the status says of a container's limits, and how much memory its statistics say there is left.
fn limits(pods: &mut Pods<'_>, container: &str) -> Result<(v1::LinuxContainerResources, u64)> {
    let request = v1::ContainerStatusRequest { container_id: container.to_owned(), verbose: false };
    let status = pods.runtime.block_on(pods.pods.container_status(request))?.into_inner().status.expect("status");
    let told = status.resources.and_then(|resources| resources.linux).expect("limits");
    let request = v1::ContainerStatsRequest { container_id: container.to_owned() };
    let stats = pods.runtime.block_on(pods.pods.container_stats(request))?.into_inner().stats.expect("statistics");
    let left = stats.memory.and_then(|memory| memory.available_bytes).expect("memory");
    Ok((told, left.value))
}

fn a_limit_can_be_taken_back(env: &Env) -> Result<()> {
    const LIMIT: i64 = 64 << 20;
    let stack = Stack::start(env)?;
    let mut pods = Pods::connect(env, &stack.daemon)?;
    pods.pull(&stack.image)?;
    let config = pods.pod_config("pod");
    let pod = pods.run(&config)?;
    let container = pods.start(&pod, &config, &stack.image, &["sleep", "1000"], |container| {
        let limits =
            v1::LinuxContainerResources { memory_limit_in_bytes: LIMIT, oom_score_adj: 300, ..Default::default() };
        container.linux.get_or_insert_default().resources = Some(limits);
    })?;
    let (told, left) = limits(&mut pods, &container)?;
    assert_eq!((told.memory_limit_in_bytes, told.memory_swap_limit_in_bytes), (LIMIT, LIMIT));
    assert!((1..=64 << 20).contains(&left), "{left}");
    let update = |linux| v1::UpdateContainerResourcesRequest {
        container_id: container.clone(),
        linux: Some(linux),
        ..Default::default()
    };
    let none = v1::LinuxContainerResources { memory_limit_in_bytes: -1, oom_score_adj: 700, ..Default::default() };
    pods.runtime.block_on(pods.pods.update_container_resources(update(none)))?;
    // Statistics may be a moment old.
    wait::until("the limit is gone", || limits(&mut pods, &container).ok().filter(|(_, left)| *left == 0))?;
    let (told, _) = limits(&mut pods, &container)?;
    assert_eq!((told.memory_limit_in_bytes, told.oom_score_adj), (-1, 300), "no more is said than was done");
    let wrong = v1::LinuxContainerResources { memory_limit_in_bytes: -2, ..Default::default() };
    let refused = pods.runtime.block_on(pods.pods.update_container_resources(update(wrong))).expect_err("negative");
    assert!(refused.code() == Code::InvalidArgument && refused.message().contains("memory_limit"), "{refused}");
    Ok(())
}

fn described_devices_are_for_whom_the_container_runs_as(env: &Env) -> Result<()> {
    let (descriptions, file) = (env.dir("cdi")?, env.path("config.toml"));
    let description = serde_json::json!({"cdiVersion": "0.6.0", "kind": "vendor.test/device", "devices": [
        {"name": "one", "containerEdits": {"deviceNodes": [
            {"path": "/dev/one", "hostPath": "/dev/null"}, {"path": "/dev/pipe", "type": "p"}]}}]});
    std::fs::write(descriptions.join("one.json"), description.to_string())?;
    for name in ["two.json", "three.json"] {
        let twice = serde_json::json!({"cdiVersion": "0.6.0", "kind": "vendor.test/twice", "devices": [
            {"name": "d", "containerEdits": {"env": [format!("FROM={name}")]}}]});
        std::fs::write(descriptions.join(name), twice.to_string())?;
    }
    std::fs::write(&file, format!("[cri]\ncdi_dirs = [{descriptions:?}]\n"))?;
    let registry = integration_tests::Registry::start(env)?;
    let image = integration_tests::Image::busybox()?.push(&registry, "test/busybox", "latest")?;
    let daemon = env.daemon_with(&["--config", &file.to_string_lossy()])?;
    let mut pods = Pods::connect(env, &daemon)?;
    pods.pull(&image)?;
    let config = pods.pod_config("pod");
    let pod = pods.run(&config)?;
    let look = "stat -c %u:%g:%F /dev/one /dev/pipe && echo used > /dev/one";
    let container = pods.start(&pod, &config, &image, &["sh", "-c", look], |container| {
        container.log_path = "look.log".to_owned();
        container.cdi_devices = vec![v1::CdiDevice { name: "vendor.test/device=one".to_owned() }];
        security(container).run_as_user = Some(v1::Int64Value { value: 1000 });
        security(container).run_as_group = Some(v1::Int64Value { value: 1001 });
    })?;
    let code = pods.exit_code(&container)?;
    let said = std::fs::read_to_string(env.path("logs").join("look.log"))?;
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("1000:1001:character special file") && said.contains("1000:1001:fifo"), "{said}");
    let refused = pods.start(&pod, &config, &image, &["true"], |container| {
        container.metadata = Some(v1::ContainerMetadata { name: "twice".to_owned(), attempt: 0 });
        container.image = Some(pods::spec(&image));
        container.annotations.insert("cdi.k8s.io/test".to_owned(), "vendor.test/twice=d".to_owned());
    });
    let refused = refused.expect_err("two files describe it").downcast::<tonic::Status>()?;
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    for part in ["annotations.cdi.k8s.io/test", "two.json", "three.json"] {
        assert!(refused.message().contains(part), "{refused}");
    }
    Ok(())
}

/// A file of hooks counts without a restart; one that cannot be understood keeps containers from being made.
fn an_administrators_hooks_run_for_containers_of_their_kind(env: &Env) -> Result<()> {
    let (hooks, file, seen) = (env.dir("hooks")?, env.path("config.toml"), env.path("seen"));
    std::fs::write(&file, format!("[cri]\nhooks_dirs = [{hooks:?}]\n"))?;
    let registry = integration_tests::Registry::start(env)?;
    let image = integration_tests::Image::busybox()?.push(&registry, "test/busybox", "latest")?;
    let daemon = env.daemon_with(&["--config", &file.to_string_lossy()])?;
    let mut pods = Pods::connect(env, &daemon)?;
    pods.pull(&image)?;
    let config = pods.pod_config("pod");
    let pod = pods.run(&config)?;
    let script = format!("cat > {}; echo \"$KIND\" >> {}", seen.display(), seen.display());
    let hook = serde_json::json!({
        "version": "1.0.0", "stages": ["createRuntime"],
        "hook": {"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["KIND=wanted", "PATH=/bin:/usr/bin"]},
        "when": {"annotations": {"^example\\.org/kind$": "^hooked$"}, "commands": ["true$"]},
    });
    std::fs::write(hooks.join("10-seen.json"), hook.to_string())?;
    let run = |pods: &mut Pods<'_>, name: &str, kind: &str| {
        pods.start(&pod, &config, &image, &["true"], |container| {
            container.metadata = Some(v1::ContainerMetadata { name: name.to_owned(), attempt: 0 });
            container.annotations.insert("example.org/kind".to_owned(), kind.to_owned());
        })
    };
    let other = run(&mut pods, "other", "plain")?;
    assert_eq!((pods.exit_code(&other)?, seen.exists()), (0, false));
    let hooked = run(&mut pods, "one", "hooked")?;
    assert_eq!(pods.exit_code(&hooked)?, 0);
    let told = std::fs::read_to_string(&seen)?;
    assert!(told.contains(&hooked) && told.ends_with("wanted\n"), "{told}");
    std::fs::write(hooks.join("20-wrong.json"), hook.to_string().replace("createRuntime", "whenever"))?;
    let refused = run(&mut pods, "two", "plain").expect_err("a stage that nobody knows").downcast::<tonic::Status>()?;
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert!(refused.message().contains("20-wrong.json") && refused.message().contains("whenever"), "{refused}");
    Ok(())
}
