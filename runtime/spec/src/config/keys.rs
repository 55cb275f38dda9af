//! Keys of `linux.resources` in another case than the specification's.
//!
//! Readers written in Go do not tell cases apart, and so there are files and clients that write `CPU` or `pagesize`. A
//! limit that is written so must not be dropped as an unknown property.

use serde_json::{Map, Value};

/// Every key below `linux.resources`, sorted without regard to case.
const KNOWN: &[&str] = &[
    "access",
    "allow",
    "blockIO",
    "burst",
    "checkBeforeUpdate",
    "classID",
    "cpu",
    "cpus",
    "devices",
    "disableOOMKiller",
    "hcaHandles",
    "hcaObjects",
    "hugepageLimits",
    "idle",
    "kernel",
    "kernelTCP",
    "leafWeight",
    "limit",
    "major",
    "memory",
    "mems",
    "minor",
    "name",
    "network",
    "pageSize",
    "period",
    "pids",
    "priorities",
    "priority",
    "quota",
    "rate",
    "rdma",
    "realtimePeriod",
    "realtimeRuntime",
    "reservation",
    "shares",
    "swap",
    "swappiness",
    "throttleReadBpsDevice",
    "throttleReadIOPSDevice",
    "throttleWriteBpsDevice",
    "throttleWriteIOPSDevice",
    "type",
    "unified",
    "useHierarchy",
    "weight",
    "weightDevice",
];

/// The key that is meant by one in another case.
fn meant(key: &str) -> Option<&'static str> {
    let order = |known: &&str| {
        let (one, other) = (known.bytes(), key.bytes());
        one.map(|byte| byte.to_ascii_lowercase()).cmp(other.map(|byte| byte.to_ascii_lowercase()))
    };
    let found = KNOWN.binary_search_by(order).ok()?;
    Some(KNOWN[found]).filter(|known| *known != key)
}

/// Gives keys of resources that differ from known ones in nothing but case their usual form. Objects that are there in both
/// forms become one.
pub fn fold_resource_keys(resources: &mut Value) {
    match resources {
        Value::Array(list) => list.iter_mut().for_each(fold_resource_keys),
        Value::Object(object) => fold_object(object),
        _ => {}
    }
}

fn fold_object(object: &mut Map<String, Value>) {
    let strange: Vec<_> = object.keys().filter_map(|key| Some((key.clone(), meant(key)?))).collect();
    for (key, known) in strange {
        let Some(mut value) = object.remove(&key) else { continue };
        match (object.get_mut(known), &mut value) {
            (None, _) => drop(object.insert(known.to_owned(), value)),
            (Some(Value::Object(there)), Value::Object(more)) => {
                fold_object(there);
                fold_object(more);
                for (key, value) in std::mem::take(more) {
                    there.entry(key).or_insert(value);
                }
            }
            _ => drop(object.insert(key, value)),
        }
    }
    for (key, value) in object {
        match (key.as_str(), value) {
            // The keys in there are names of files and devices.
            ("unified", _) => {}
            ("rdma", Value::Object(devices)) => devices.values_mut().for_each(fold_resource_keys),
            (_, value) => fold_resource_keys(value),
        }
    }
}

/// Whether the text of a configuration may have such a key. It is asked at every start: one search for the resources,
/// which come before what is long, and one look at the strings in them.
pub(super) fn may_be_folded(text: &str) -> bool {
    // A key in another case could be `resources` itself, which nobody is known to write.
    let mut after = text.match_indices("\"resources\"").map(|(at, name)| text[at + name.len()..].trim_start());
    after.find_map(|rest| rest.strip_prefix(':')).is_some_and(has_folded_key)
}

/// Looks at the keys up to the end of the first object.
fn has_folded_key(text: &str) -> bool {
    let bytes = text.as_bytes();
    let (mut at, mut depth) = (0, 0_usize);
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'{' => depth += 1,
            b'}' if depth <= 1 => return false,
            b'}' => depth -= 1,
            b'"' => {
                let start = at + 1;
                at = start;
                while bytes.get(at).is_some_and(|byte| *byte != b'"') {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
                let is_key = text.get(at + 1..).is_some_and(|rest| rest.trim_start().starts_with(':'));
                if is_key && text.get(start..at).is_some_and(|key| meant(key).is_some()) {
                    return true;
                }
            }
            _ => {}
        }
        at += 1;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn known_keys_are_sorted_for_the_search() {
        assert!(KNOWN.is_sorted_by_key(|key| key.to_ascii_lowercase()));
    }

    #[test]
    fn keys_of_another_case_get_their_usual_form() {
        let mut value = json!({
            "CPU": {"Cpus": "0", "mems": "1"}, "hugepageLimits": [{"pagesize": "2MB", "limit": 1}],
            "unified": {"CPU": "1"}, "rdma": {"CPU": {"hcahandles": 1}}, "pids": {"limit": 1, "LIMIT": 2},
            "memory": {"limit": 1}, "Memory": {"LIMIT": 2, "Swap": 3},
        });
        fold_resource_keys(&mut value);
        let expected = json!({
            "cpu": {"cpus": "0", "mems": "1"}, "hugepageLimits": [{"pageSize": "2MB", "limit": 1}],
            "unified": {"CPU": "1"}, "rdma": {"CPU": {"hcaHandles": 1}}, "pids": {"limit": 1, "LIMIT": 2},
            "memory": {"limit": 1, "swap": 3},
        });
        assert_eq!(value, expected);
    }

    #[test]
    fn only_keys_of_resources_are_looked_at() {
        let doubtful = |linux: &str| may_be_folded(&format!(r#"{{"CPU":1,"linux":{{{linux},"CPU":1}}}}"#));
        assert!(doubtful(r#""resources" : {"a":"\"","memory":{"x":{}},"CPU" : {}}"#));
        assert!(!doubtful(r#""resources":{"memory":{"limit":1},"x":"CPU","devices":[{"type":"A"}]}"#));
        assert!(!may_be_folded("\"resources\":{\"cpu\\"));
        assert!(!may_be_folded("\"resources\":{\"ü\\ü"));
    }
}
