//! Each rule is broken once, alone, and must be the only one that complains, at the path that is wrong.

use super::*;
use crate::config::parse;

/// A configuration that is right, with `changes` (JSON pointer, value) made to it.
fn changed(changes: &[(&str, serde_json::Value)]) -> Spec {
    let mut document = serde_json::json!({
        "ociVersion": "1.2.0",
        "root": {"path": "rootfs"},
        "hostname": "h",
        "process": {"cwd": "/", "args": ["sh"], "env": ["A=b"], "user": {"uid": 0, "gid": 0}},
        "mounts": [{"destination": "/data", "source": "/src", "options": ["rbind"]}],
        "hooks": {"poststop": [{"path": "/bin/true"}]},
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "uts"}, {"type": "ipc"}, {"type": "network"}],
            "maskedPaths": ["/proc/kcore"],
            "sysctl": {"net.ipv4.ip_forward": "1", "kernel.sem": "1 2 3 4", "fs/mqueue/queues_max": "3"},
            "resources": {"memory": {"limit": 100, "swap": 200}, "devices": [{"allow": false, "access": "rwm"}]}
        }
    });
    for (pointer, value) in changes {
        let (above, key) = pointer.rsplit_once('/').unwrap();
        let target = document.pointer_mut(above).unwrap();
        match target {
            serde_json::Value::Array(list) => list.push(value.clone()),
            other => other[key] = value.clone(),
        }
    }
    parse(&document.to_string()).unwrap().value
}

fn paths(changes: &[(&str, serde_json::Value)]) -> Vec<String> {
    check(&changed(changes)).err().unwrap_or_default().into_iter().map(|violation| violation.path).collect()
}

macro_rules! broken {
    ($($name:ident: $pointer:expr, $value:tt => $path:expr;)*) => { $(
        #[test]
        fn $name() {
            assert_eq!(paths(&[($pointer, serde_json::json!($value))]), [$path]);
        }
    )* };
}

broken! {
    version_two: "/ociVersion", "2.0.0" => "ociVersion";
    version_words: "/ociVersion", "latest" => "ociVersion";
    root_missing: "/root", null => "root";
    root_unnamed: "/root/path", "" => "root.path";
    annotation_without_key: "/annotations", {"": "x"} => "annotations";
    hook_path: "/hooks/poststop/-", {"path": "bin/true"} => "hooks.poststop[1].path";
    hook_timeout: "/hooks/poststop/-", {"path": "/x", "timeout": 0} => "hooks.poststop[1].timeout";
    hook_env: "/hooks/poststop/-", {"path": "/x", "env": ["A"]} => "hooks.poststop[1].env[0]";
    args: "/process/args", [] => "process.args";
    cwd_empty: "/process/cwd", "" => "process.cwd";
    cwd_relative: "/process/cwd", "tmp" => "process.cwd";
    env: "/process/env/-", "=x" => "process.env[1]";
    limit_twice: "/process/rlimits", [{"type":"RLIMIT_CPU","soft":1,"hard":1},{"type":"RLIMIT_CPU","soft":1,"hard":1}] => "process.rlimits[1].type";
    limit_soft: "/process/rlimits", [{"type":"RLIMIT_CPU","soft":2,"hard":1}] => "process.rlimits[0].soft";
    oom_score: "/process/oomScoreAdj", 1001 => "process.oomScoreAdj";
    no_user: "/process/user/uid", 4_294_967_295_u32 => "process.user.uid";
    no_group: "/process/user/gid", 4_294_967_295_u32 => "process.user.gid";
    no_other_group: "/process/user/additionalGids", [0, 4_294_967_295_u32] => "process.user.additionalGids[1]";
    umask: "/process/user/umask", 512 => "process.user.umask";
    io_priority: "/process/ioPriority", {"class":"IOPRIO_CLASS_BE","priority":8} => "process.ioPriority.priority";
    nice: "/process/scheduler", {"policy":"SCHED_OTHER","nice":20} => "process.scheduler.nice";
    priority_of_other: "/process/scheduler", {"policy":"SCHED_OTHER","priority":1} => "process.scheduler.priority";
    priority_range: "/process/scheduler", {"policy":"SCHED_RR","priority":100} => "process.scheduler.priority";
    runtime_of_other: "/process/scheduler", {"policy":"SCHED_BATCH","runtime":1} => "process.scheduler.runtime";
    mount_over_root: "/mounts/-", {"destination":"/a/..","type":"tmpfs"} => "mounts[1].destination";
    bind_source: "/mounts/-", {"destination":"/a","options":["bind"]} => "mounts[1].source";
    half_mapping: "/mounts/-", {"destination":"/a","source":"/b","options":["bind"],"uidMappings":[{"size":1}]} => "mounts[1].gidMappings";
    mapped_tmpfs: "/mounts/-", {"destination":"/a","type":"tmpfs","uidMappings":[{"size":1}],"gidMappings":[{"size":1}]} => "mounts[1]";
    idmap_without_user: "/mounts/-", {"destination":"/a","source":"/b","options":["bind","idmap"]} => "mounts[1].options";
    namespace_twice: "/linux/namespaces/-", {"type":"pid"} => "linux.namespaces[5].type";
    namespace_path: "/linux/namespaces/-", {"type":"cgroup","path":"proc/1/ns/cgroup"} => "linux.namespaces[5].path";
    mapping_size: "/linux/uidMappings", [{"size":0}] => "linux.uidMappings[0].size";
    offsets_without_time: "/linux/timeOffsets", {"monotonic":{"secs":1}} => "linux.timeOffsets";
    device_name: "/linux/netDevices", {"a/b":{}} => "linux.netDevices.a/b";
    device_new_name: "/linux/netDevices", {"eth0":{"name":"a name"}} => "linux.netDevices.eth0.name";
    sysctl_of_the_host: "/linux/sysctl", {"vm.swappiness":"1"} => "linux.sysctl[\"vm.swappiness\"]";
    sysctl_hostname: "/linux/sysctl", {"kernel/hostname":"1"} => "linux.sysctl[\"kernel/hostname\"]";
    sysctl_user: "/linux/sysctl", {"user.max_user_namespaces":"1"} => "linux.sysctl[\"user.max_user_namespaces\"]";
    propagation: "/linux/rootfsPropagation", "sideways" => "linux.rootfsPropagation";
    device_path: "/linux/devices", [{"path":"dev/x","type":"c","major":1,"minor":1}] => "linux.devices[0].path";
    device_dots: "/linux/devices", [{"path":"/dev/../x","type":"c","major":1,"minor":1}] => "linux.devices[0].path";
    device_type: "/linux/devices", [{"path":"/dev/x","type":"a","major":1,"minor":1}] => "linux.devices[0].type";
    device_number: "/linux/devices", [{"path":"/dev/x","type":"b","major":-1,"minor":1}] => "linux.devices[0].major";
    device_major: "/linux/devices", [{"path":"/dev/x","type":"c","major":4096,"minor":3}] => "linux.devices[0].major";
    device_minor: "/linux/devices", [{"path":"/dev/x","type":"c","major":1,"minor":1_048_579}] => "linux.devices[0].minor";
    policy_nodes: "/linux/memoryPolicy", {"mode":"MPOL_DEFAULT","nodes":"0"} => "linux.memoryPolicy.nodes";
    policy_needs_nodes: "/linux/memoryPolicy", {"mode":"MPOL_BIND"} => "linux.memoryPolicy.nodes";
    policy_node_list: "/linux/memoryPolicy", {"mode":"MPOL_BIND","nodes":"3-1"} => "linux.memoryPolicy.nodes";
    policy_flags: "/linux/memoryPolicy", {"mode":"MPOL_BIND","nodes":"0","flags":["MPOL_F_STATIC_NODES","MPOL_F_RELATIVE_NODES"]} => "linux.memoryPolicy.flags";
    rdt_class: "/linux/intelRdt", {"closID":"../x"} => "linux.intelRdt.closID";
    rdt_schemata: "/linux/intelRdt", {"schemata":["L3"]} => "linux.intelRdt.schemata[0]";
    rule_access: "/linux/resources/devices/-", {"allow":true,"type":"c","access":"x"} => "linux.resources.devices[1].access";
    rule_type: "/linux/resources/devices/-", {"allow":true,"type":"p","access":"r"} => "linux.resources.devices[1].type";
    swap: "/linux/resources/memory", {"limit":100,"swap":50} => "linux.resources.memory.swap";
    swappiness: "/linux/resources/memory", {"swappiness":101} => "linux.resources.memory.swappiness";
    idle: "/linux/resources/cpu", {"idle":2} => "linux.resources.cpu.idle";
    cpus: "/linux/resources/cpu", {"cpus":"0;1"} => "linux.resources.cpu.cpus";
    weight: "/linux/resources/blockIO", {"weight":5} => "linux.resources.blockIO.weight";
    page_size: "/linux/resources/hugepageLimits", [{"pageSize":"2mb","limit":1}] => "linux.resources.hugepageLimits[0].pageSize";
    unified: "/linux/resources/unified", {"../memory.max":"1"} => "linux.resources.unified[\"../memory.max\"]";
    unified_freezer: "/linux/resources/unified", {"cgroup.freeze":"1"} => "linux.resources.unified[\"cgroup.freeze\"]";
    unified_processes: "/linux/resources/unified", {"cgroup.procs":"1"} => "linux.resources.unified[\"cgroup.procs\"]";
}

#[test]
fn a_right_configuration_passes() {
    assert_eq!(check(&changed(&[])), Ok(()));
    assert_eq!(check(&changed(&[("/ociVersion", "1.0.2-dev".into())])), Ok(()));
}

#[test]
fn what_needs_a_namespace_says_so() {
    let none = serde_json::json!([{"type": "ipc"}, {"type": "network"}]);
    assert_eq!(paths(&[("/linux/namespaces", none)]), ["hostname", "linux.maskedPaths"]);
    let user = serde_json::json!([{"type": "pid"}, {"type": "mount"}, {"type": "uts"}, {"type": "user"}]);
    let found = paths(&[("/linux/namespaces", user)]);
    assert!(found.contains(&"linux.uidMappings".to_owned()) && found.contains(&"linux.gidMappings".to_owned()));
    assert!(found.contains(&"linux.sysctl[\"kernel.sem\"]".to_owned()), "{found:?}");
}

#[test]
fn all_mistakes_are_shown_at_once() {
    let found =
        paths(&[("/process/cwd", "x".into()), ("/process/args", serde_json::json!([])), ("/ociVersion", "3".into())]);
    assert_eq!(found, ["ociVersion", "process.args", "process.cwd"]);
}
