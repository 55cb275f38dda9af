//! Pods and their containers, with networks made by real plugins.

use gantry_proto::runtime::v1;
use integration_tests::pods::{Pods, network, spec};
use integration_tests::{Daemon, Env, Registry, Result, Test, tests, wait};
use tonic::Code;

pub(crate) const TESTS: &[Test] = tests![
    a_pod_outlives_the_daemon_and_leaves_nothing [Root, Overlay, EveryHost],
    names_belong_to_pods_and_repeats_find_them [Root, Overlay],
    a_wrong_pod_configuration_names_its_field [Root, Overlay],
];

/// A daemon whose pods get addresses of a network of the test's own.
fn start(env: &Env) -> Result<Daemon<'_>> {
    let ipam = serde_json::json!({"type": "host-local", "dataDir": env.path("ipam"), "subnet": "10.213.77.0/24"});
    let plugins = serde_json::json!([{"type": "ptp", "ipam": ipam}]);
    env.daemon_configured(&network(env, &env.dir("net.d")?, &plugins, &[])?)
}

fn addresses_taken(env: &Env) -> usize {
    let all = std::fs::read_dir(env.path("ipam").join(env.token())).into_iter().flatten().flatten();
    all.filter(|entry| entry.file_name().to_string_lossy().starts_with("10.")).count()
}

fn a_pod_outlives_the_daemon_and_leaves_nothing(env: &Env) -> Result<()> {
    let (_registry, image) = Registry::with_busybox(env)?;
    let daemon = start(env)?;
    let mut pods = Pods::connect(env, &daemon)?;
    pods.pull(&image)?;
    let mut config = pods.networked_config("pod");
    let linux = config.linux.get_or_insert_default();
    linux.sysctls.insert("kernel.domainname".to_owned(), "domain.test".to_owned());
    let pod = pods.run(&config)?;
    let look = "cat /proc/sys/kernel/domainname; ip addr; exec sleep 1000";
    let container = pods.start(&pod, &config, &image, &["sh", "-c", look], |container| {
        container.log_path = "c.log".to_owned();
    })?;
    let request = v1::PodSandboxStatusRequest { pod_sandbox_id: pod.clone(), verbose: false };
    let status = pods.runtime.block_on(pods.pods.pod_sandbox_status(request))?.into_inner().status.expect("status");
    let address = status.network.expect("network").ip;
    assert!(address.starts_with("10.213.77."), "{address}");
    let log = env.path("logs").join("c.log");
    let said = wait::until("the address is in the log", || {
        std::fs::read_to_string(&log).ok().filter(|text| text.contains(&address))
    })?;
    assert!(said.contains("domain.test"), "{said}");
    assert_eq!(addresses_taken(env), 1);
    // The shim holds the pod while the daemon is away.
    std::mem::forget(pods);
    daemon.crash()?;
    let daemon = start(env)?;
    let mut pods = Pods::connect(env, &daemon)?;
    assert_eq!(pods.status(&container)?.state(), v1::ContainerState::ContainerRunning);
    let stop = || v1::StopContainerRequest { container_id: container.clone(), timeout: 0 };
    pods.runtime.block_on(pods.pods.stop_container(stop()))?;
    pods.runtime.block_on(pods.pods.stop_container(stop()))?;
    assert_eq!(pods.exit_code(&container)?, 137);
    pods.remove(&pod)?;
    pods.remove(&pod)?;
    assert_eq!(addresses_taken(env), 0);
    assert_eq!(std::fs::read_dir(env.path("netns"))?.count(), 0);
    drop(pods);
    daemon.stop()?;
    Ok(())
}

fn names_belong_to_pods_and_repeats_find_them(env: &Env) -> Result<()> {
    let daemon = start(env)?;
    let mut pods = Pods::connect(env, &daemon)?;
    let config = pods.networked_config("pod");
    let pod = pods.run(&config)?;
    assert_eq!(pods.run(&config)?, pod, "a repeat finds what there is");
    let mut other = config.clone();
    other.hostname = "other".to_owned();
    let request = v1::RunPodSandboxRequest { config: Some(other), runtime_handler: String::new() };
    let refused = pods.runtime.block_on(pods.pods.run_pod_sandbox(request)).expect_err("name is taken");
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    pods.remove(&pod)?;
    assert_ne!(pods.run(&config)?, pod, "the name is free again");
    Ok(())
}

type Spoil = fn(&mut v1::PodSandboxConfig);

fn a_wrong_pod_configuration_names_its_field(env: &Env) -> Result<()> {
    let daemon = start(env)?;
    let mut pods = Pods::connect(env, &daemon)?;
    let good = pods.networked_config("pod");
    let wrong: [(&str, Spoil); 7] = [
        ("hostname", |config| config.hostname = "a b".to_owned()),
        ("config.hostname", |config| {
            config.hostname = "web".to_owned();
            let context = config.linux.get_or_insert_default().security_context.get_or_insert_default();
            context.namespace_options.get_or_insert_default().network = v1::NamespaceMode::Node.into();
        }),
        ("log_directory", |config| config.log_directory = "logs".to_owned()),
        ("log_directory", |config| config.log_directory.push_str("/../../etc")),
        ("metadata", |config| config.metadata = None),
        ("selinux_options.level", |config| {
            let context = config.linux.get_or_insert_default().security_context.get_or_insert_default();
            // As on every machine, whether or not it has SELinux.
            context.selinux_options = Some(v1::SeLinuxOption { level: "s0,c4,c5".to_owned(), ..Default::default() });
        }),
        ("sysctls", |config| {
            let linux = config.linux.get_or_insert_default();
            linux.sysctls.insert("kernel.panic".to_owned(), "1".to_owned());
        }),
    ];
    for (field, spoil) in wrong {
        let mut config = good.clone();
        spoil(&mut config);
        let request = v1::RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() };
        let refused = pods.runtime.block_on(pods.pods.run_pod_sandbox(request)).expect_err(field);
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        assert!(refused.message().contains(field), "{refused}");
    }
    let request = v1::RunPodSandboxRequest { config: Some(good.clone()), runtime_handler: "none".to_owned() };
    let refused = pods.runtime.block_on(pods.pods.run_pod_sandbox(request)).expect_err("handler");
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    let pod = pods.run(&good)?;
    let request = v1::CreateContainerRequest {
        pod_sandbox_id: pod,
        config: Some(v1::ContainerConfig {
            metadata: Some(v1::ContainerMetadata { name: "c".to_owned(), attempt: 0 }),
            image: Some(spec("nowhere.test/nothing")),
            ..Default::default()
        }),
        sandbox_config: Some(good),
    };
    let refused = pods.runtime.block_on(pods.pods.create_container(request)).expect_err("image");
    assert_eq!(refused.code(), Code::NotFound, "{refused}");
    Ok(())
}
