//! Pods on the kinds of hosts that clusters have: cgroups made by systemd, and AppArmor.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use gantry_proto::runtime::v1;
use integration_tests::pods::Pods;
use integration_tests::{Env, Registry, Result, Test, leaks, tests, wait};
use nix::unistd::Pid;
use tonic::Code;

pub(crate) const TESTS: &[Test] = tests![
    // When the last unit with a limit of some kind ends, systemd on v1 removes every empty cgroup of that controller: also
    // one that a container of another test is just about to enter.
    systemd_makes_the_cgroups_of_pods [Root, Overlay, Systemd, Alone],
    apparmor_confines_containers [Root, Overlay, Apparmor],
];

/// The cgroup of the container's first process that limits memory.
fn cgroup_of(pid: Pid) -> Result<PathBuf> {
    let table = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let paths = table.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
    let root = |controllers: &str| match controllers {
        "" => Some("/sys/fs/cgroup"),
        "memory" => Some("/sys/fs/cgroup/memory"),
        _ => None,
    };
    let mut found = paths.filter_map(|(names, path)| Some(Path::new(root(names)?).join(path.trim_start_matches('/'))));
    let limited = |dir: &PathBuf| dir.join("memory.max").exists() || dir.join("memory.limit_in_bytes").exists();
    found.find(limited).with_context(|| format!("no cgroup with memory in\n{table}"))
}

fn memory_limit(dir: &Path) -> Result<String> {
    let text =
        fs::read_to_string(dir.join("memory.max")).or_else(|_| fs::read_to_string(dir.join("memory.limit_in_bytes")));
    Ok(text?.trim().to_owned())
}

/// The slices of a test's pods: a kubelet's to remove, so here the test's, whatever has become of the pods.
struct Slices<'env>(&'env Env);

impl Drop for Slices<'_> {
    fn drop(&mut self) {
        let name = format!("{}.slice", self.0.token());
        let _ = self.0.run("systemctl", &["stop", &name]);
        // On v1 systemd does not look after all hierarchies.
        for hierarchy in leaks::hierarchies() {
            let slice = hierarchy.join(&name);
            let _ = fs::remove_dir(slice.join(format!("{}-pod1.slice", self.0.token())));
            let _ = fs::remove_dir(slice);
        }
    }
}

fn systemd_makes_the_cgroups_of_pods(env: &Env) -> Result<()> {
    const MIB: i64 = 1 << 20;
    let (_registry, image) = Registry::with_busybox(env)?;
    let _slices = Slices(env);
    let daemon = env.daemon_configured("[cri]\ncgroup_driver = \"systemd\"\n")?;
    let mut pods = Pods::connect(env, &daemon)?;
    let told = pods.runtime.block_on(pods.pods.runtime_config(v1::RuntimeConfigRequest {}))?.into_inner();
    assert_eq!(told.linux.context("linux")?.cgroup_driver(), v1::CgroupDriver::Systemd);
    pods.pull(&image)?;
    // As a kubelet names it: a dash is a level.
    let slice = format!("{0}.slice/{0}-pod1.slice", env.token());
    let mut config = pods.pod_config("pod");
    let linux = config.linux.as_mut().context("linux")?;
    linux.cgroup_parent = format!("/{slice}");
    let namespaces = &mut linux.security_context.as_mut().context("security")?.namespace_options;
    namespaces.get_or_insert_default().pid = v1::NamespaceMode::Container.into();
    // Which it has made before, with a time of its own.
    let is_of_time = |dir: &&str| Path::new(dir).join("cgroup.procs").exists();
    let hierarchy = ["/sys/fs/cgroup", "/sys/fs/cgroup/cpu"].into_iter().find(is_of_time).context("a hierarchy")?;
    fs::create_dir_all(Path::new(hierarchy).join(&slice))?;
    let pod = pods.run(&config)?;
    let scopes = || {
        let scope = format!("{slice}/cri-containerd-{pod}.scope");
        leaks::hierarchies().into_iter().filter(|dir| dir.join(&scope).is_dir()).count()
    };
    assert_eq!(scopes(), 1, "cgroups by which the pod is found");
    let limits = |memory| v1::LinuxContainerResources { memory_limit_in_bytes: memory, ..Default::default() };
    let container = pods.start(&pod, &config, &image, &["sleep", "600"], |container| {
        container.linux.get_or_insert_default().resources = Some(limits(64 * MIB));
    })?;
    let cgroup = cgroup_of(pods.processes(&container)?.0)?;
    let unit = format!("cri-containerd-{container}.scope");
    ensure!(cgroup.ends_with(format!("{slice}/{unit}")), "{}", cgroup.display());
    assert_eq!(memory_limit(&cgroup)?, (64 * MIB).to_string());
    let shown = env.run("systemctl", &["show", &unit, "--property=ActiveState,Delegate,Slice"])?.ok()?;
    for line in
        ["ActiveState=active".to_owned(), "Delegate=yes".to_owned(), format!("Slice={}-pod1.slice", env.token())]
    {
        ensure!(shown.stdout.lines().any(|found| found == line), "{line} is missing:\n{}", shown.stdout);
    }
    let request = v1::UpdateContainerResourcesRequest {
        container_id: container.clone(),
        linux: Some(limits(96 * MIB)),
        ..Default::default()
    };
    pods.runtime.block_on(pods.pods.update_container_resources(request))?;
    assert_eq!(memory_limit(&cgroup)?, (96 * MIB).to_string());
    // A reload makes systemd write everything anew that it knows.
    env.run("systemctl", &["daemon-reload"])?.ok()?;
    assert_eq!(memory_limit(&cgroup)?, (96 * MIB).to_string());
    assert_eq!(scopes(), 1, "cgroups by which the pod is found");
    let request = v1::PodSandboxStatsRequest { pod_sandbox_id: pod.clone() };
    let stats =
        pods.runtime.block_on(pods.pods.pod_sandbox_stats(request))?.into_inner().stats.context("statistics")?;
    let linux = stats.linux.context("linux")?;
    ensure!(linux.memory.and_then(|memory| memory.usage_bytes).is_some_and(|used| used.value > 0), "the pod's memory");
    ensure!(linux.containers.len() == 1);
    pods.remove(&pod)?;
    ensure!(!cgroup.exists() && scopes() == 0, "a scope is left");
    wait::until("systemd forgets the scope", || {
        let shown = env.run("systemctl", &["show", &unit, "--property=ActiveState"]).ok()?;
        (shown.text() == "ActiveState=inactive").then_some(())
    })
}

fn apparmor_confines_containers(env: &Env) -> Result<()> {
    use v1::security_profile::ProfileType;
    let (_registry, image) = Registry::with_busybox(env)?;
    let daemon = env.daemon()?;
    let mut pods = Pods::connect(env, &daemon)?;
    pods.pull(&image)?;
    let config = pods.pod_config("pod");
    let pod = pods.run(&config)?;
    let profile = |kind: ProfileType, name: &str| {
        Some(v1::SecurityProfile { profile_type: kind.into(), localhost_ref: name.to_owned() })
    };
    // A mount is what the profile denies although the capability is there.
    let script = "cat /proc/self/attr/current; mount -t tmpfs none /tmp && echo mounted; echo end";
    let mut said = |name: &str, profile: Option<v1::SecurityProfile>| -> Result<String> {
        let container = pods.start(&pod, &config, &image, &["sh", "-c", script], |container| {
            container.metadata.get_or_insert_default().name = env.id(name);
            container.log_path = format!("{name}.log");
            let context = container.linux.get_or_insert_default().security_context.get_or_insert_default();
            context.apparmor = profile;
            let capabilities = context.capabilities.get_or_insert_default();
            capabilities.add_capabilities.push("SYS_ADMIN".to_owned());
        })?;
        assert_eq!(pods.exit_code(&container)?, 0);
        Ok(fs::read_to_string(env.path("logs").join(format!("{name}.log")))?)
    };
    for (name, wanted) in [("unset", None), ("default", profile(ProfileType::RuntimeDefault, ""))] {
        let text = said(name, wanted)?;
        ensure!(text.contains("gantry-default (enforce)") && !text.contains("mounted"), "{name}: {text}");
    }
    let text = said("unconfined", profile(ProfileType::Unconfined, ""))?;
    ensure!(text.contains(" unconfined") && text.contains("mounted"), "{text}");
    let missing = said("missing", profile(ProfileType::Localhost, &env.id("none"))).expect_err("no such profile");
    let code = missing.downcast_ref::<tonic::Status>().map(tonic::Status::code);
    assert_eq!(code, Some(Code::InvalidArgument), "{missing:#}");
    pods.remove(&pod)
}
