use super::*;

fn image() -> ContainerConfig {
    ContainerConfig {
        entrypoint: vec!["/entry".into()],
        cmd: vec!["default".into()],
        env: vec!["PATH=/bin".into(), "A=1".into(), "B=2".into()],
        ..ContainerConfig::default()
    }
}

fn texts(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn json(options: &Options) -> serde_json::Value {
    serde_json::to_value(build(&image(), options).unwrap()).unwrap()
}

fn limits(limits: Limits) -> Result<Spec, InvalidOptions> {
    build(&image(), &Options { limits, ..Options::default() })
}

fn binds(pairs: &[(&str, &str)]) -> Options {
    let bind = |(source, destination): &(&str, &str)| Bind {
        source: (*source).into(),
        destination: (*destination).into(),
        ..Bind::default()
    };
    Options { binds: pairs.iter().map(bind).collect(), ..Options::default() }
}

#[test]
fn command_rules() {
    let line = |entrypoint: Option<&[&str]>, args: &[&str]| {
        let options = Options { entrypoint: entrypoint.map(texts), args: texts(args), ..Options::default() };
        command_line(&image(), &options)
    };
    assert_eq!(line(None, &[]).unwrap(), ["/entry", "default"]);
    assert_eq!(line(None, &["x"]).unwrap(), ["/entry", "x"]);
    assert_eq!(line(Some(&["sh"]), &[]).unwrap(), ["sh"]);
    assert_eq!(line(Some(&["sh"]), &["-c", "x"]).unwrap(), ["sh", "-c", "x"]);
    assert_eq!(line(Some(&[]), &["x"]).unwrap(), ["x"]);
    assert_eq!(line(Some(&[]), &[]), Err(InvalidOptions::NoCommand));
    assert_eq!(line(Some(&[""]), &["x"]), Err(InvalidOptions::NoCommand));
    assert_eq!(line(Some(&[]), &["", "x"]).unwrap(), ["", "x"]);
}

#[test]
fn environment_is_merged_by_name() {
    let options = Options {
        env: texts(&["A=x=y", "B", "C=", "TERM=dumb"]),
        terminal: true,
        hostname: Some("box".into()),
        ..Options::default()
    };
    let env = environment(&image(), &options).unwrap();
    assert_eq!(env, ["PATH=/bin", "HOSTNAME=box", "TERM=dumb", "A=x=y", "C=", "HOME=/root"]);
    assert!(environment(&image(), &Options { env: texts(&["=x"]), ..Options::default() }).is_err());
    let nul = Options { env: texts(&["A=\0"]), ..Options::default() };
    assert_eq!(build(&image(), &nul), Err(InvalidOptions::Nul("environment")));
    assert_eq!(merge_environment(&texts(&["A=1", "B=2"]), &texts(&["B=3", "C=4"])), ["A=1", "B=3", "C=4"]);
    assert_eq!(merge_environment(&texts(&["A=1", "B=2"]), &texts(&["A", "A=3"])), ["B=2", "A=3"]);
}

#[test]
fn tens_of_thousands_of_variables_take_no_time() {
    let many: Vec<String> = (0..50_000).map(|number| format!("V{number}=x")).collect();
    let begun = std::time::Instant::now();
    assert_eq!(merge_environment(&many, &many).len(), many.len());
    assert!(begun.elapsed() < std::time::Duration::from_secs(20), "{:?}", begun.elapsed());
}

#[test]
fn the_default_profile_is_dockers() {
    let spec = json(&Options::default());
    assert_eq!(spec["ociVersion"], "1.2.0");
    assert_eq!(spec["process"]["capabilities"]["bounding"].as_array().unwrap().len(), 14);
    assert_eq!(spec["process"]["capabilities"]["effective"].as_array().unwrap().len(), 14);
    assert!(spec["process"]["capabilities"].get("inheritable").is_none());
    assert!(spec["process"]["capabilities"].get("ambient").is_none());
    assert_eq!(spec["process"]["rlimits"][0]["hard"], 524_288);
    assert_eq!(spec["process"]["noNewPrivileges"], false);
    assert_eq!(spec["linux"]["resources"]["devices"][0]["allow"], false);
    assert_eq!(spec["linux"]["seccomp"]["defaultAction"], "SCMP_ACT_ERRNO");
    assert_eq!(spec["linux"]["namespaces"].as_array().unwrap().len(), 6);
    assert_eq!(spec["root"]["path"], "rootfs");
    assert!(spec.get("hostname").is_none() && spec.get("hooks").is_none());
    assert!(spec["linux"]["resources"].get("memory").is_none());
    assert_eq!(spec["linux"]["sysctl"]["net.ipv4.ip_unprivileged_port_start"], "0");
}

#[test]
fn another_user_starts_without_capabilities() {
    let user = User { uid: 1000, gid: 100, additional_gids: vec![100, 4], home: Some("/home/u".into()) };
    let spec = json(&Options { user, nofile_ceiling: Some(4096), ..Options::default() });
    assert!(spec["process"]["capabilities"].get("effective").is_none());
    assert_eq!(spec["process"]["capabilities"]["bounding"].as_array().unwrap().len(), 14);
    assert_eq!(spec["process"]["user"]["additionalGids"], serde_json::json!([100, 4]));
    assert_eq!(spec["process"]["rlimits"][0]["hard"], 4096);
    assert!(spec["process"]["env"].as_array().unwrap().contains(&"HOME=/home/u".into()));
}

#[test]
fn privileged_lifts_every_fence() {
    let spec = json(&Options { privileged: true, ..Options::default() });
    assert_eq!(spec["process"]["capabilities"]["bounding"].as_array().unwrap().len(), 41);
    assert!(spec["linux"].get("seccomp").is_none() && spec["linux"].get("maskedPaths").is_none());
    assert_eq!(spec["linux"]["resources"]["devices"], serde_json::json!([{"allow": true, "access": "rwm"}]));
    let sys = spec["mounts"].as_array().unwrap().iter().find(|mount| mount["destination"] == "/sys").unwrap();
    assert_eq!(sys["options"], serde_json::json!(["nosuid", "noexec", "nodev"]));
}

#[test]
fn host_network_keeps_the_hosts_name() {
    let options = Options { network: Network::Host, ..Options::default() };
    let spec = json(&options);
    assert!(spec.get("hostname").is_none() && spec["linux"].get("sysctl").is_none());
    let kinds: Vec<_> = spec["linux"]["namespaces"].as_array().unwrap().iter().map(|n| n["type"].clone()).collect();
    assert_eq!(kinds, ["mount", "pid", "ipc", "cgroup"]);
    let named = json(&Options { hostname: Some("x".into()), ..options });
    assert_eq!((&named["hostname"], &named["linux"]["namespaces"][4]["type"]), (&"x".into(), &"uts".into()));
    let joined = json(&Options { network: Network::Join("/run/netns/a".into()), ..Options::default() });
    assert_eq!(joined["linux"]["namespaces"][4]["path"], "/run/netns/a");
}

#[test]
fn binds_replace_defaults_and_nest() {
    let destinations = |options: &Options| -> Vec<String> {
        let spec = build(&image(), options).unwrap();
        let mounts = spec.mounts().as_ref().unwrap();
        mounts.iter().map(|mount| mount.destination().display().to_string()).collect()
    };
    let options = binds(&[("/h/inner", "/a/b/c"), ("/h/shm", "/dev/shm/"), ("/h", "//a/./b")]);
    let places = destinations(&options);
    assert_eq!(places.iter().filter(|place| *place == "/dev/shm").count(), 1);
    assert_eq!(places[6..], ["/dev/shm", "/a/b", "/a/b/c"]);
    assert!(!destinations(&binds(&[("/dev", "/dev")])).contains(&"/dev/pts".to_owned()));
    for bad in [("h", "/a"), ("/h", "a"), ("/h", "/"), ("/h", "/a/../b"), ("/h", "/./"), ("/h\0", "/a")] {
        assert!(matches!(build(&image(), &binds(&[bad])), Err(InvalidOptions::Bind { .. })), "{bad:?}");
    }
    assert!(build(&image(), &binds(&[("/x", "/a"), ("/y", "/a/")])).is_err());
    let mut options = binds(&[("/x", "/a")]);
    options.binds[0].read_only = true;
    options.binds[0].propagation = "rslave".into();
    let spec = json(&options);
    assert_eq!(spec["mounts"][7]["options"], serde_json::json!(["rbind", "rslave", "ro"]));
    (options.binds[0].shallow, options.binds[0].all_read_only) = (true, true);
    assert_eq!(json(&options)["mounts"][7]["options"], serde_json::json!(["bind", "rslave", "rro"]));
}

#[test]
fn limits_become_resources() {
    let none = Limits::default();
    let spec = limits(Limits { memory: 64 << 20, nano_cpus: 1_500_000_000, pids: 50, ..none }).unwrap();
    let spec = serde_json::to_value(spec).unwrap();
    let resources = &spec["linux"]["resources"];
    assert_eq!(resources["memory"], serde_json::json!({"limit": 64 << 20, "swap": 128 << 20}));
    assert_eq!(resources["cpu"], serde_json::json!({"quota": 150_000, "period": 100_000}));
    assert_eq!(resources["pids"]["limit"], 50);
    assert!(limits(Limits { memory: 64 << 20, memory_swap: -1, ..none }).is_ok());
    for bad in [
        Limits { memory: 1024, ..none },
        Limits { memory: -1, ..none },
        Limits { memory_swap: 1 << 30, ..none },
        Limits { memory: 64 << 20, memory_swap: 32 << 20, ..none },
        Limits { nano_cpus: -1, ..none },
        Limits { pids: -2, ..none },
    ] {
        assert!(matches!(limits(bad), Err(InvalidOptions::Limit(_))), "{bad:?}");
    }
}

#[test]
fn workdir_and_user_come_from_the_wish_first() {
    let image = ContainerConfig { working_dir: "/app".into(), user: "web".into(), ..image() };
    let cwd = |wish: Option<&str>| workdir(&image, &Options { workdir: wish.map(str::to_owned), ..Options::default() });
    assert_eq!(cwd(None), Ok("/app".into()));
    assert_eq!(cwd(Some("/x")), Ok("/x".into()));
    assert_eq!(cwd(Some("")), Ok("/app".into()));
    assert!(cwd(Some("x")).is_err());
    assert_eq!((user_text(&image, ""), user_text(&image, "7")), ("web", "7"));
}
