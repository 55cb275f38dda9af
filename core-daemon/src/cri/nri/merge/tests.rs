use super::*;

fn creation() -> Creation {
    let container = api::Container {
        id: "new".into(),
        env: vec!["A=1".into(), "B=2".into()],
        annotations: [("key".to_owned(), "old".to_owned())].into(),
        mounts: vec![mount("/data")],
        ..Default::default()
    };
    Creation::new(api::CreateContainerRequest { pod: None, container: Some(container) })
}

fn mount(destination: &str) -> api::Mount {
    api::Mount { destination: destination.into(), ..Default::default() }
}

fn answer(adjust: api::ContainerAdjustment) -> api::CreateContainerResponse {
    api::CreateContainerResponse { adjust: Some(adjust), ..Default::default() }
}

fn variable(key: &str, value: &str) -> api::KeyValue {
    api::KeyValue { key: key.into(), value: value.into() }
}

fn limit(value: i64) -> api::LinuxResources {
    let memory = api::LinuxMemory { limit: Some(api::OptionalInt64 { value }), ..Default::default() };
    api::LinuxResources { memory: Some(memory), ..Default::default() }
}

fn update(id: &str, resources: api::LinuxResources, ignore_failure: bool) -> api::ContainerUpdate {
    let linux = Some(api::LinuxContainerUpdate { resources: Some(resources) });
    api::ContainerUpdate { container_id: id.into(), linux, ignore_failure }
}

#[test]
fn each_plugin_sees_what_those_before_it_changed() {
    let mut creation = creation();
    let first = api::ContainerAdjustment {
        env: vec![variable("-A", ""), variable("B", "3"), variable("C", "4")],
        annotations: [("-key".to_owned(), String::new()), ("new".to_owned(), "x".to_owned())].into(),
        mounts: vec![mount("-/data"), mount("/other")],
        args: vec!["sh".into()],
        ..Default::default()
    };
    creation.add(answer(first), "10-a").expect("first");
    let shown = creation.shown.container.clone().expect("container");
    assert_eq!((shown.env.as_slice(), shown.args.as_slice()), (&["B=3".into(), "C=4".into()][..], &["sh".into()][..]));
    assert_eq!(shown.annotations.into_iter().collect::<Vec<_>>(), [("new".to_owned(), "x".to_owned())]);
    assert_eq!(shown.mounts, [mount("/other")]);
    let created = creation.done();
    assert_eq!(created.adjust.mounts, [mount("-/data"), mount("/other")]);
    assert_eq!(created.adjust.env.iter().map(|one| one.key.as_str()).collect::<Vec<_>>(), ["-A", "B", "C"]);
    assert!(created.adjust.annotations.contains_key("-key"));
    assert_eq!(created.owners.owners["new"].simple[&Field::Args.into()], "10-a");
}

#[test]
fn two_plugins_that_set_the_same_are_an_error_that_names_both() {
    let rdt = |group: &str| {
        let rdt = api::LinuxRdt { clos_id: Some(api::OptionalString { value: group.into() }), ..Default::default() };
        api::LinuxContainerAdjustment { rdt: Some(rdt), ..Default::default() }
    };
    let of_linux = |linux| api::ContainerAdjustment { linux: Some(linux), ..Default::default() };
    let cases = [
        (api::ContainerAdjustment { env: vec![variable("X", "1")], ..Default::default() }, "Env X"),
        (api::ContainerAdjustment { args: vec!["a".into()], ..Default::default() }, "Args"),
        (api::ContainerAdjustment { mounts: vec![mount("/x")], ..Default::default() }, "Mounts /x"),
        (
            api::ContainerAdjustment { annotations: [("k".to_owned(), "v".to_owned())].into(), ..Default::default() },
            "Annotations k",
        ),
        (
            api::ContainerAdjustment {
                rlimits: vec![api::PosixRlimit { r#type: "RLIMIT_CPU".into(), hard: 1, soft: 1 }],
                ..Default::default()
            },
            "Rlimits RLIMIT_CPU",
        ),
        (
            api::ContainerAdjustment {
                cdi_devices: vec![api::CdiDevice { name: "v/c=d".into() }],
                ..Default::default()
            },
            "CdiDevices v/c=d",
        ),
        (of_linux(rdt("a")), "RdtClosID"),
        (of_linux(api::LinuxContainerAdjustment { cgroups_path: "/x".into(), ..Default::default() }), "CgroupsPath"),
        (of_linux(api::LinuxContainerAdjustment { resources: Some(limit(5)), ..Default::default() }), "MemLimit"),
        (
            of_linux(api::LinuxContainerAdjustment {
                namespaces: vec![api::LinuxNamespace { r#type: "-ipc".into(), path: String::new() }],
                ..Default::default()
            }),
            "Namespace ipc",
        ),
        (
            of_linux(api::LinuxContainerAdjustment {
                oom_score_adj: Some(api::OptionalInt { value: 0 }),
                ..Default::default()
            }),
            "OomScoreAdj",
        ),
    ];
    for (adjust, field) in cases {
        let mut creation = creation();
        creation.add(answer(adjust.clone()), "10-a").expect(field);
        let error = creation.add(answer(adjust), "20-b").expect_err(field).to_string();
        assert!(error.contains("10-a") && error.contains("20-b") && error.contains(field), "{error}");
    }
}

#[test]
fn what_is_removed_first_may_be_set_again() {
    let mut creation = creation();
    let set = |value: &str, and: &[api::KeyValue]| {
        let env = [and, &[variable("X", value)]].concat();
        answer(api::ContainerAdjustment { env, ..Default::default() })
    };
    creation.add(set("1", &[]), "10-a").expect("first");
    creation.add(set("2", &[variable("-X", "")]), "20-b").expect("it removes the other's");
    assert!(creation.add(set("3", &[]), "30-c").is_err(), "it does not");
    let args = |words: &[&str]| {
        let args = words.iter().map(|word| (*word).to_owned()).collect();
        answer(api::ContainerAdjustment { args, ..Default::default() })
    };
    creation.add(args(&["a"]), "10-a").expect("first");
    creation.add(args(&["", "b", "c"]), "20-b").expect("it replaces the other's");
    let env = creation.shown.container.clone().expect("container").env;
    assert_eq!(env, ["A=1", "B=2", "X=2"]);
    let created = creation.done();
    assert_eq!(created.adjust.args, ["b", "c"]);
    let values: Vec<_> = created.adjust.env.iter().map(|one| (one.key.as_str(), one.value.as_str())).collect();
    assert_eq!(values, [("-X", ""), ("X", "2")]);
}

#[test]
fn several_may_add_hooks_and_rules() {
    let mut creation = creation();
    let one = || {
        let hooks =
            api::Hooks { poststop: vec![api::Hook { path: "/h".into(), ..Default::default() }], ..Default::default() };
        let rule = api::LinuxDeviceCgroup { allow: true, access: "r".into(), ..Default::default() };
        let resources = Some(api::LinuxResources { devices: vec![rule], ..Default::default() });
        let linux = Some(api::LinuxContainerAdjustment { resources, ..Default::default() });
        answer(api::ContainerAdjustment { hooks: Some(hooks), linux, ..Default::default() })
    };
    creation.add(one(), "10-a").expect("first");
    creation.add(one(), "20-b").expect("second");
    let created = creation.done();
    assert_eq!(created.adjust.hooks.expect("hooks").poststop.len(), 2);
    assert_eq!(created.adjust.linux.expect("linux").resources.expect("resources").devices.len(), 2);
    assert_eq!(created.owners.owners["new"].simple[&Field::OciHooks.into()], "10-a,20-b");
}

#[test]
fn updates_of_others_come_together() {
    let mut creation = creation();
    let of =
        |updates: Vec<api::ContainerUpdate>| api::CreateContainerResponse { update: updates, ..Default::default() };
    assert!(creation.add(of(vec![update("new", limit(5), false)]), "10-a").is_err(), "it is being made");
    creation.add(of(vec![update("x", limit(5), false)]), "10-a").expect("first");
    assert!(creation.add(of(vec![update("x", limit(6), false)]), "20-b").is_err(), "both set it");
    creation.add(of(vec![update("x", limit(6), true)]), "20-b").expect("ignored");
    let cpus = api::LinuxCpu { cpus: "1".into(), ..Default::default() };
    let cpus = api::LinuxResources { cpu: Some(cpus), ..Default::default() };
    creation.add(of(vec![update("x", cpus, false)]), "20-b").expect("another field");
    let updates = creation.done().updates;
    let [update] = updates.as_slice() else { panic!("{updates:?}") };
    let resources = update.linux.clone().expect("linux").resources.expect("resources");
    assert_eq!(resources.memory.expect("memory").limit, Some(api::OptionalInt64 { value: 5 }));
    assert_eq!((resources.cpu.expect("cpu").cpus.as_str(), update.ignore_failure), ("1", false));
}
