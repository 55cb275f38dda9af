//! The options of a container that are kept only for `inspect`, in the form of docker's `HostConfig`.

use gantry_proto::gantry::engine::v1 as api;
use serde_json::{Map, Value, json};

/// Bytes of `/dev/shm` by default.
const SHM_SIZE: i64 = 64 << 20;

/// The options of a request that differ from the defaults; [`whole`] adds the others.
pub(super) fn of(request: &api::CreateRequest) -> Map<String, Value> {
    let usual = all(&api::CreateRequest::default());
    let mut wished = all(request);
    wished.retain(|name, value| usual.get(name) != Some(value));
    wished
}

/// These options and the defaults of all others.
pub(super) fn whole(wished: &Map<String, Value>) -> Map<String, Value> {
    let mut whole = all(&api::CreateRequest::default());
    whole.extend(wished.clone());
    whole
}

fn all(request: &api::CreateRequest) -> Map<String, Value> {
    let mode = |name: &str, own: &str| {
        let is_host = request.host_namespaces.iter().any(|shared| shared == name);
        Value::from(if is_host { "host" } else { own })
    };
    let or = |text: &str, usual: &str| if text.is_empty() { usual.to_owned() } else { text.to_owned() };
    let devices = request.devices.iter().map(|device| {
        json!({
            "PathOnHost": device.source,
            "PathInContainer": or(&device.destination, &device.source),
            "CgroupPermissions": or(&device.access, "rwm"),
        })
    });
    let ulimits =
        request.ulimits.iter().map(|limit| json!({ "Name": limit.name, "Soft": limit.soft, "Hard": limit.hard }));
    let dns = request.dns.clone().unwrap_or_default();
    let tmpfs = request.tmpfs.iter().map(|one| (one.destination.clone(), Value::from(one.options.join(","))));
    Map::from_iter([
        ("CapAdd".to_owned(), json!(request.cap_add)),
        ("CapDrop".to_owned(), json!(request.cap_drop)),
        ("PidMode".to_owned(), mode("pid", "")),
        ("IpcMode".to_owned(), mode("ipc", "private")),
        ("UTSMode".to_owned(), mode("uts", "")),
        ("CgroupnsMode".to_owned(), mode("cgroup", "private")),
        ("ShmSize".to_owned(), json!(if request.shm_size == 0 { SHM_SIZE } else { request.shm_size })),
        ("Devices".to_owned(), devices.collect()),
        ("Ulimits".to_owned(), ulimits.collect()),
        ("Tmpfs".to_owned(), Value::Object(tmpfs.collect())),
        ("ExtraHosts".to_owned(), json!(request.extra_hosts)),
        ("GroupAdd".to_owned(), json!(request.group_add)),
        ("Sysctls".to_owned(), json!(request.sysctls)),
        ("Annotations".to_owned(), json!(request.annotations)),
        ("OomScoreAdj".to_owned(), json!(request.oom_score_adj.unwrap_or(0))),
        ("DeviceCgroupRules".to_owned(), json!(request.device_cgroup_rules)),
        ("Dns".to_owned(), json!(dns.servers)),
        ("DnsOptions".to_owned(), json!(dns.options)),
        ("DnsSearch".to_owned(), json!(dns.search)),
        ("Init".to_owned(), json!(request.init)),
        ("MemorySwappiness".to_owned(), json!(request.memory_swappiness)),
        ("VolumesFrom".to_owned(), json!(request.volumes_from)),
        ("SecurityOpt".to_owned(), json!(security(request.security.as_ref()))),
    ])
}

fn security(security: Option<&api::Security>) -> Vec<String> {
    let Some(security) = security else { return Vec::new() };
    let named = |key: &str, value: &str| (!value.is_empty()).then(|| format!("{key}={value}"));
    let flag = |on: bool, text: &str| on.then(|| text.to_owned());
    [
        flag(security.no_new_privileges, "no-new-privileges"),
        named("seccomp", &security.seccomp),
        named("apparmor", &security.apparmor),
        flag(security.open_system_paths, "systempaths=unconfined"),
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_wishes_are_kept_and_the_rest_is_added_again() {
        assert!(of(&api::CreateRequest::default()).is_empty());
        let device = api::Device { source: "/dev/fuse".into(), ..api::Device::default() };
        let request = api::CreateRequest {
            cap_add: vec!["NET_ADMIN".into()],
            host_namespaces: vec!["pid".into()],
            devices: vec![device],
            security: Some(api::Security { no_new_privileges: true, apparmor: "mine".into(), ..Default::default() }),
            ..api::CreateRequest::default()
        };
        let wished = of(&request);
        let names: Vec<&str> = wished.keys().map(String::as_str).collect();
        assert_eq!(names, ["CapAdd", "Devices", "PidMode", "SecurityOpt"]);
        let whole = whole(&wished);
        assert_eq!(whole["PidMode"], "host");
        assert_eq!(whole["IpcMode"], "private");
        assert_eq!(whole["ShmSize"], 67_108_864);
        assert_eq!(whole["Devices"][0]["CgroupPermissions"], "rwm");
        assert_eq!(whole["SecurityOpt"], json!(["no-new-privileges", "apparmor=mine"]));
    }
}
