//! What `events` tells of a container's resource control, in runc's form.

use std::path::Path;

use serde_json::{Map, Value, json};

/// The part of a container whose group is at `path`; of a group that is gone nothing is said.
pub fn read(path: &Path, id: &str) -> Map<String, Value> {
    read_below(Path::new(super::ROOT), path, id)
}

fn read_below(root: &Path, path: &Path, id: &str) -> Map<String, Value> {
    let mut found = Map::new();
    let lines = |directory: &Path| -> Vec<String> {
        let text = std::fs::read_to_string(directory.join("schemata")).unwrap_or_default();
        text.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect()
    };
    let (whole, own) = (lines(root), lines(path));
    let mut add = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            found.insert(key.to_owned(), value);
        }
    };
    let of = |list: &[String], kind: &str| list.iter().find(|line| line.starts_with(kind)).cloned().map(Value::from);
    add("l3_cache_info", info(&root.join("info/L3"), &["cbm_mask", "min_cbm_bits", "num_closids"]));
    add("l3_cache_schema_root", of(&whole, "L3"));
    add("l3_cache_schema", of(&own, "L3"));
    let bandwidth = ["bandwidth_gran", "delay_linear", "min_bandwidth", "num_closids"];
    add("mem_bw_info", info(&root.join("info/MB"), &bandwidth));
    add("mem_bw_schema_root", of(&whole, "MB"));
    add("mem_bw_schema", of(&own, "MB"));
    add("schemata", (!own.is_empty()).then(|| Value::from(own)));
    // A group of its own for counting tells of the container; that of its class also of others in it.
    let counted = path.join("mon_groups").join(id);
    let counted = if counted.is_dir() { counted } else { path.to_owned() };
    add("mbm_stats", counters(&counted, &["mbm_total_bytes", "mbm_local_bytes"]));
    add("cmt_stats", counters(&counted, &["llc_occupancy"]));
    found
}

/// Files of a directory as an object: numbers as such, masks as text.
fn info(directory: &Path, names: &[&str]) -> Option<Value> {
    let mut object = Map::new();
    for name in names {
        let Ok(text) = std::fs::read_to_string(directory.join(name)) else { continue };
        let text = text.trim();
        let number = (*name != "cbm_mask").then(|| text.parse::<u64>().ok()).flatten();
        object.insert((*name).to_owned(), number.map_or_else(|| json!(text), Value::from));
    }
    (!object.is_empty()).then_some(Value::Object(object))
}

/// The counters of each memory node.
fn counters(directory: &Path, names: &[&str]) -> Option<Value> {
    let mut nodes: Vec<_> = std::fs::read_dir(directory.join("mon_data")).ok()?.filter_map(Result::ok).collect();
    nodes.sort_by_key(std::fs::DirEntry::file_name);
    let list: Vec<Value> = nodes.iter().filter_map(|node| info(&node.path(), names)).collect();
    (!list.is_empty()).then_some(Value::Array(list))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_told_in_runcs_form() {
        let root = tempfile::tempdir().unwrap();
        let put = |file: &str, text: &str| {
            let path = root.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        put("schemata", "    L3:0=fffff\n    MB:0=100\n");
        put("web/schemata", "    L3:0=f\n    MB:0=20\n");
        put("info/L3/cbm_mask", "fffff\n");
        put("info/L3/min_cbm_bits", "1\n");
        put("web/mon_groups/web/mon_data/mon_L3_00/llc_occupancy", "4096\n");
        let found = read_below(root.path(), &root.path().join("web"), "web");
        let expected = json!({
            "l3_cache_info": {"cbm_mask": "fffff", "min_cbm_bits": 1},
            "l3_cache_schema_root": "L3:0=fffff", "l3_cache_schema": "L3:0=f",
            "mem_bw_schema_root": "MB:0=100", "mem_bw_schema": "MB:0=20",
            "schemata": ["L3:0=f", "MB:0=20"],
            "cmt_stats": [{"llc_occupancy": 4096}],
        });
        assert_eq!(Value::Object(found), expected);
        assert!(read_below(&root.path().join("none"), &root.path().join("none"), "x").is_empty());
    }
}
