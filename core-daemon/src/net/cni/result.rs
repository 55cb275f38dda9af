//! What plugins answer, of any version.

use std::net::IpAddr;

use serde_json::{Value, json};

/// The addresses of the container, without the length of the network.
pub(super) fn addresses(result: &Value) -> Vec<String> {
    let current = result.get("ips").and_then(Value::as_array).into_iter().flatten();
    let current = current.filter(|ip| belongs_to_container(result, ip)).filter_map(|ip| ip.get("address"));
    // Before version 0.3.
    let old = ["ip4", "ip6"].into_iter().filter_map(|key| result.get(key)?.get("ip"));
    let texts = current.chain(old).filter_map(Value::as_str);
    texts.filter_map(address).map(|address| address.to_string()).collect()
}

/// An address, without the length of its network.
fn address(text: &str) -> Option<IpAddr> {
    text.split('/').next()?.parse().ok()
}

/// An interface of the container as containerd shows it: its addresses, and where it is.
pub(super) fn shown(result: &Value, name: &str) -> Value {
    let mut interfaces = result.get("interfaces").and_then(Value::as_array).into_iter().flatten();
    let own = interfaces.find(|interface| interface.get("name").is_some_and(|it| it == name));
    let of = |key: &str| own.and_then(|interface| interface.get(key)).cloned().unwrap_or_default();
    let all = result.get("ips").and_then(Value::as_array).into_iter().flatten();
    let addresses: Vec<Value> = all
        .filter(|ip| belongs_to_container(result, ip))
        .filter_map(|ip| {
            let address = address(ip.get("address")?.as_str()?)?;
            Some(json!({"IP": address, "Gateway": ip.get("gateway").and_then(Value::as_str).unwrap_or_default()}))
        })
        .collect();
    json!({"IPConfigs": addresses, "Mac": of("mac"), "Sandbox": of("sandbox")})
}

/// An address may be of an interface of the host's.
fn belongs_to_container(result: &Value, ip: &Value) -> bool {
    let Some(number) = ip.get("interface").and_then(Value::as_u64).and_then(|number| usize::try_from(number).ok())
    else {
        return true;
    };
    let interface = result.get("interfaces").and_then(|interfaces| interfaces.get(number));
    interface.is_none_or(|interface| {
        interface.get("sandbox").and_then(Value::as_str).is_some_and(|sandbox| !sandbox.is_empty())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_versions() {
        let new = json!({
            "interfaces": [{"name": "br0"}, {"name": "eth0", "sandbox": "/run/netns/x"}],
            "ips": [{"address": "10.0.0.2/24", "interface": 1}, {"address": "fd00::2/64", "interface": 1},
                    {"address": "10.0.0.1/24", "interface": 0}, {"address": "rubbish"}],
        });
        assert_eq!(addresses(&new), ["10.0.0.2", "fd00::2"]);
        let shown = shown(&new, "eth0");
        assert_eq!((&shown["Sandbox"], &shown["IPConfigs"][1]["IP"]), (&json!("/run/netns/x"), &json!("fd00::2")));
        assert_eq!(shown["IPConfigs"].as_array().map(Vec::len), Some(2));
        assert_eq!(
            addresses(&json!({"ip4": {"ip": "10.1.0.2/16"}, "ip6": {"ip": "fd01::2/64"}})),
            ["10.1.0.2", "fd01::2"]
        );
        assert!(addresses(&Value::Null).is_empty());
    }
}
