//! Messages of the interface as JSON, for people and for their tools: each field under the interface's name, and none that
//! says nothing.

use serde::Serialize;
use serde_json::{Value, json};

/// Fields that are maps, whose entries say something even where they are empty.
const MAPS: &[&str] = &["labels", "annotations", "sysctls", "unified"];

pub(super) fn shown(message: &impl Serialize) -> Value {
    // Every field of a message has a form in JSON.
    let mut value = serde_json::to_value(message).unwrap_or_default();
    prune(&mut value);
    value
}

fn prune(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            let unset = [Value::Null, json!(0), json!(""), json!(false), json!([])];
            let empty = |name: &str, value: &Value| MAPS.contains(&name) && *value == json!({});
            fields.retain(|name, value| !unset.contains(value) && !empty(name, value));
            let messages = fields.iter_mut().filter(|(name, _)| !MAPS.contains(&name.as_str()));
            messages.for_each(|(_, value)| prune(value));
        }
        Value::Array(items) => items.iter_mut().for_each(prune),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use gantry_proto::runtime::v1;

    use super::*;

    #[test]
    fn a_configuration_has_the_names_of_the_interface() {
        let context = v1::LinuxContainerSecurityContext {
            run_as_user: Some(v1::Int64Value { value: 0 }),
            run_as_group: Some(v1::Int64Value { value: 7 }),
            ..Default::default()
        };
        let map = || vec![v1::IdMapping { container_id: 0, host_id: 7, length: 1 }];
        let config = v1::ContainerConfig {
            metadata: Some(v1::ContainerMetadata { name: "web".into(), attempt: 0 }),
            envs: vec![v1::KeyValue { key: "A".into(), value: b"b".to_vec() }],
            labels: [("empty".to_owned(), String::new())].into(),
            mounts: vec![v1::Mount { host_path: "/x".into(), uid_mappings: map(), ..Default::default() }],
            cdi_devices: vec![v1::CdiDevice { name: "a/b=c".into() }],
            linux: Some(v1::LinuxContainerConfig { security_context: Some(context), ..Default::default() }),
            ..Default::default()
        };
        let wanted = json!({
            "metadata": {"name": "web"},
            "envs": [{"key": "A", "value": "Yg=="}],
            "labels": {"empty": ""},
            "mounts": [{"host_path": "/x", "uidMappings": [{"host_id": 7, "length": 1}]}],
            "CDI_devices": [{"name": "a/b=c"}],
            "linux": {"security_context": {"run_as_user": {}, "run_as_group": {"value": 7}}},
        });
        assert_eq!(shown(&config), wanted);
    }
}
