use super::*;

/// A configuration that holds all rules.
fn spec() -> Spec {
    let text = serde_json::json!({
        "ociVersion": "1.2.0",
        "root": {"path": "rootfs"},
        "process": {"cwd": "/", "args": ["a"], "env": ["A=1", "B=2"], "user": {"uid": 0, "gid": 0},
                    "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}]},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"},
                   {"destination": "/data", "type": "bind", "source": "/x", "options": ["rbind"]}],
        "annotations": {"old": "1"},
        "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}], "resources": {}},
    });
    serde_json::from_value(text).expect("configuration")
}

fn settings() -> config::Cri {
    config::Cri { cdi_dirs: Vec::new(), ..config::Cri::default() }
}

fn adjusted(wanted: api::ContainerAdjustment) -> Result<serde_json::Value> {
    let mut spec = spec();
    adjust(&mut spec, &wanted, &settings())?;
    Ok(serde_json::to_value(spec).expect("JSON"))
}

fn of_linux(linux: api::LinuxContainerAdjustment) -> api::ContainerAdjustment {
    api::ContainerAdjustment { linux: Some(linux), ..Default::default() }
}

fn variable(key: &str, value: &str) -> api::KeyValue {
    api::KeyValue { key: key.into(), value: value.into() }
}

#[test]
fn what_every_process_has_is_changed() {
    let hook = api::Hook {
        path: "/hook".into(),
        args: vec!["hook".into()],
        timeout: Some(api::OptionalInt { value: 5 }),
        ..Default::default()
    };
    let changed = adjusted(api::ContainerAdjustment {
        annotations: [("-old".to_owned(), String::new()), ("new".to_owned(), "2".to_owned())].into(),
        env: vec![variable("-A", ""), variable("B", "3"), variable("C", "4")],
        args: vec!["b".into(), "c".into()],
        rlimits: vec![api::PosixRlimit { r#type: "RLIMIT_NOFILE".into(), hard: 5, soft: 4 }],
        hooks: Some(api::Hooks { prestart: vec![hook.clone()], poststop: vec![hook], ..Default::default() }),
        mounts: vec![
            api::Mount { destination: "-/data".into(), ..Default::default() },
            api::Mount {
                destination: "/deep/down".into(),
                r#type: "bind".into(),
                source: "/y".into(),
                options: vec!["rbind".into(), "rslave".into()],
            },
        ],
        ..Default::default()
    })
    .expect("adjust");
    assert_eq!(changed["annotations"], serde_json::json!({"new": "2"}));
    assert_eq!(changed["process"]["env"], serde_json::json!(["B=3", "C=4"]));
    assert_eq!(changed["process"]["args"], serde_json::json!(["b", "c"]));
    assert_eq!(changed["process"]["rlimits"], serde_json::json!([{"type": "RLIMIT_NOFILE", "hard": 5, "soft": 4}]));
    assert_eq!(changed["hooks"]["prestart"][0]["path"], "/hook");
    assert_eq!(changed["hooks"]["poststop"][0]["timeout"], 5);
    let places: Vec<_> = changed["mounts"].as_array().expect("list").iter().map(|one| &one["destination"]).collect();
    assert_eq!(places, ["/proc", "/deep/down"]);
    assert_eq!(changed["linux"]["rootfsPropagation"], "rslave");
}

#[test]
fn what_is_linuxs_is_changed() {
    let device = api::LinuxDevice {
        path: "/dev/x".into(),
        r#type: "c".into(),
        major: 1,
        minor: 3,
        file_mode: Some(api::OptionalFileMode { value: 0o600 }),
        ..Default::default()
    };
    let namespace = |kind: &str, path: &str| api::LinuxNamespace { r#type: kind.into(), path: path.into() };
    let filter = api::LinuxSeccomp {
        default_action: "SCMP_ACT_ALLOW".into(),
        architectures: vec!["SCMP_ARCH_X86_64".into()],
        syscalls: vec![api::LinuxSyscall {
            names: vec!["mkdir".into()],
            action: "SCMP_ACT_ERRNO".into(),
            errno_ret: Some(api::OptionalUInt32 { value: 1 }),
            ..Default::default()
        }],
        ..Default::default()
    };
    let changed = adjusted(of_linux(api::LinuxContainerAdjustment {
        devices: vec![device],
        cgroups_path: "/other/c".into(),
        oom_score_adj: Some(api::OptionalInt { value: 100 }),
        io_priority: Some(api::LinuxIoPriority { class: api::IoPrioClass::IoprioClassIdle.into(), priority: 0 }),
        seccomp_policy: Some(filter),
        namespaces: vec![namespace("-ipc", ""), namespace("network", "/run/netns/x")],
        sysctl: [("net.ipv4.ip_forward".to_owned(), "1".to_owned())].into(),
        net_devices: [("eth7".to_owned(), api::LinuxNetDevice { name: "eth0".into() })].into(),
        scheduler: Some(api::LinuxScheduler {
            policy: api::LinuxSchedulerPolicy::SchedBatch.into(),
            nice: 5,
            ..Default::default()
        }),
        rdt: Some(api::LinuxRdt { clos_id: Some(api::OptionalString { value: "group".into() }), ..Default::default() }),
        memory_policy: Some(api::LinuxMemoryPolicy {
            mode: api::MpolMode::MpolBind.into(),
            nodes: "0".into(),
            flags: vec![api::MpolFlag::MpolFStaticNodes.into()],
        }),
        ..Default::default()
    }))
    .expect("adjust");
    let linux = &changed["linux"];
    assert_eq!(linux["devices"][0]["path"], "/dev/x");
    assert_eq!(linux["resources"]["devices"][0]["access"], "rw");
    assert_eq!((&linux["cgroupsPath"], &changed["process"]["oomScoreAdj"]), (&"/other/c".into(), &100.into()));
    assert_eq!(changed["process"]["ioPriority"]["class"], "IOPRIO_CLASS_IDLE");
    assert_eq!(changed["process"]["scheduler"]["policy"], "SCHED_BATCH");
    assert_eq!(linux["seccomp"]["syscalls"][0]["errnoRet"], 1);
    let kinds: Vec<_> = linux["namespaces"].as_array().expect("list").iter().map(|one| &one["type"]).collect();
    assert_eq!(kinds, ["pid", "mount", "network"]);
    assert_eq!(linux["sysctl"]["net.ipv4.ip_forward"], "1");
    assert_eq!(linux["netDevices"]["eth7"]["name"], "eth0");
    assert_eq!((&linux["intelRdt"]["closID"], &linux["memoryPolicy"]["mode"]), (&"group".into(), &"MPOL_BIND".into()));
}

#[test]
fn limits_are_laid_over_limits() {
    let number = |value| Some(api::OptionalInt64 { value });
    let unsigned = |value| Some(api::OptionalUInt64 { value });
    let resources = api::LinuxResources {
        memory: Some(api::LinuxMemory { limit: number(1 << 27), reservation: number(1 << 26), ..Default::default() }),
        cpu: Some(api::LinuxCpu { shares: unsigned(512), quota: number(0), cpus: "0".into(), ..Default::default() }),
        hugepage_limits: vec![api::HugepageLimit { page_size: "2MB".into(), limit: 4 << 20 }],
        unified: [("memory.high".to_owned(), "max".to_owned())].into(),
        pids: Some(api::LinuxPids { limit: 77 }),
        devices: vec![api::LinuxDeviceCgroup { allow: false, access: "rwm".into(), ..Default::default() }],
        ..Default::default()
    };
    let changed =
        adjusted(of_linux(api::LinuxContainerAdjustment { resources: Some(resources), ..Default::default() }));
    let resources = changed.expect("adjust")["linux"]["resources"].clone();
    assert_eq!(
        (&resources["memory"]["limit"], &resources["memory"]["reservation"]),
        (&(1 << 27).into(), &(1 << 26).into())
    );
    assert_eq!((&resources["cpu"]["shares"], &resources["cpu"]["cpus"]), (&512.into(), &"0".into()));
    assert!(resources["cpu"]["quota"].is_null(), "0 says nothing");
    assert_eq!((&resources["pids"]["limit"], &resources["unified"]["memory.high"]), (&77.into(), &"max".into()));
    assert_eq!(
        (&resources["hugepageLimits"][0]["limit"], &resources["devices"][0]["allow"]),
        (&(4 << 20).into(), &false.into())
    );
}

#[test]
fn nonsense_is_named() {
    let device = |path: &str, kind: &str| {
        of_linux(api::LinuxContainerAdjustment {
            devices: vec![api::LinuxDevice { path: path.into(), r#type: kind.into(), ..Default::default() }],
            ..Default::default()
        })
    };
    let resources =
        |resources| of_linux(api::LinuxContainerAdjustment { resources: Some(resources), ..Default::default() });
    let class = |value: &str| Some(api::OptionalString { value: value.into() });
    for (wanted, field) in [
        (api::ContainerAdjustment { env: vec![variable("", "x")], ..Default::default() }, "env"),
        (
            api::ContainerAdjustment {
                mounts: vec![api::Mount { destination: "/a/../b".into(), ..Default::default() }],
                ..Default::default()
            },
            "mounts.destination",
        ),
        (
            api::ContainerAdjustment {
                rlimits: vec![api::PosixRlimit { r#type: "X".into(), ..Default::default() }],
                ..Default::default()
            },
            "rlimits.type",
        ),
        (
            api::ContainerAdjustment {
                hooks: Some(api::Hooks {
                    poststart: vec![api::Hook { path: "x".into(), ..Default::default() }],
                    ..Default::default()
                }),
                ..Default::default()
            },
            "hooks.poststart.path",
        ),
        (
            api::ContainerAdjustment {
                cdi_devices: vec![api::CdiDevice { name: "v/c=none".into() }],
                ..Default::default()
            },
            "CDI_devices",
        ),
        (device("/dev/x", "z"), "linux.devices.type"),
        (device("x", "c"), "linux.devices.path"),
        (
            of_linux(api::LinuxContainerAdjustment {
                seccomp_policy: Some(api::LinuxSeccomp { default_action: "no".into(), ..Default::default() }),
                ..Default::default()
            }),
            "linux.seccomp_policy.default_action",
        ),
        (
            of_linux(api::LinuxContainerAdjustment {
                namespaces: vec![api::LinuxNamespace { r#type: "none".into(), path: String::new() }],
                ..Default::default()
            }),
            "linux.namespaces.type",
        ),
        (
            of_linux(api::LinuxContainerAdjustment {
                oom_score_adj: Some(api::OptionalInt { value: 5000 }),
                ..Default::default()
            }),
            "linux.oom_score_adj",
        ),
        (resources(api::LinuxResources { blockio_class: class("none"), ..Default::default() }), "blockio_class"),
        (resources(api::LinuxResources { rdt_class: class("../none"), ..Default::default() }), "rdt_class"),
        (
            of_linux(api::LinuxContainerAdjustment {
                sysctl: [("kernel.panic".to_owned(), "1".to_owned())].into(),
                ..Default::default()
            }),
            "linux.sysctl",
        ),
    ] {
        let error = adjusted(wanted).expect_err(field).to_string();
        assert!(error.contains(field), "{field}: {error}");
    }
}
