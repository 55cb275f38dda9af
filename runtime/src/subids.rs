//! The user namespace of an ordinary user whose configuration has none: as with crun, root in there is the user, and the
//! other ids are those that `/etc/subuid` and `/etc/subgid` grant.

use std::path::Path;

use serde_json::{Value, json};

use crate::bundle::{self, Bundle};
use crate::error::{Error, Result};
use crate::log;

/// Adds the namespace, to the text of the configuration too: that is what the container's record keeps.
pub(crate) fn add_user_namespace(bundle: &mut Bundle) -> Result<()> {
    let mut document: Value = serde_json::from_str(&bundle.text).map_err(|error| Error::invalid(error.to_string()))?;
    let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    let name = name_of(&host_text("/etc/passwd"), uid);
    let linux = &mut document["linux"];
    // Groups are granted to users, by the same name.
    for (field, own, file) in [("uidMappings", uid, "/etc/subuid"), ("gidMappings", gid, "/etc/subgid")] {
        linux[field] = mappings(own, &granted(&host_text(file), name.as_deref(), uid));
    }
    match linux["namespaces"].as_array_mut() {
        Some(list) => list.push(json!({"type": "user"})),
        None => linux["namespaces"] = json!([{"type": "user"}]),
    }
    log::debug(|| format!("the configuration gets a user namespace: {}", linux["uidMappings"]));
    bundle.text = document.to_string();
    bundle.spec = bundle::parse(&bundle.text, Path::new("config.json"))?;
    Ok(())
}

fn mappings(own: u32, granted: &[(u32, u32)]) -> Value {
    let mut list = vec![json!({"containerID": 0, "hostID": own, "size": 1})];
    let mut inside = 1_u32;
    for (first, count) in granted {
        let Some(next) = inside.checked_add(*count) else { break };
        list.push(json!({"containerID": inside, "hostID": first, "size": count}));
        inside = next;
    }
    Value::Array(list)
}

/// The ranges of a user, by name or by number: lines of `USER:FIRST:COUNT`.
fn granted(text: &str, name: Option<&str>, uid: u32) -> Vec<(u32, u32)> {
    let number = uid.to_string();
    let range = |line: &str| {
        let mut fields = line.split(':');
        let user = fields.next()?;
        let (first, count) = (fields.next()?.parse().ok()?, fields.next()?.trim().parse().ok()?);
        (user == number || Some(user) == name).then_some((first, count)).filter(|(_, count)| *count > 0)
    };
    text.lines().filter_map(range).collect()
}

/// A file of the host, nothing where there is none. A person's name in it may be in any encoding.
pub(crate) fn host_text(path: &str) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
}

/// The name of a user, as `/etc/passwd` has it.
pub(crate) fn name_of(passwd: &str, uid: u32) -> Option<String> {
    let mut entries = passwd.lines().map(|line| line.split(':'));
    entries.find_map(|mut fields| {
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_follow_one_another() {
        let text = "web:100000:65536\nother:1:2\n1000:300000:10\nweb:x:1\nweb:5:0\n";
        let found = granted(text, Some("web"), 1000);
        assert_eq!(found, [(100_000, 65_536), (300_000, 10)]);
        assert_eq!(mappings(1000, &found)[2], json!({"containerID": 65_537, "hostID": 300_000, "size": 10}));
        assert_eq!(mappings(7, &[]), json!([{"containerID": 0, "hostID": 7, "size": 1}]));
        assert_eq!(name_of("root:x:0:0\nweb:x:1000:1000::/:/bin/sh\n", 1000).as_deref(), Some("web"));
    }
}
