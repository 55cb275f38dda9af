//! What plugins can be told of a container, by the names that runtimes agreed on.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// A port of the host that leads to one of the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Of the host.
    pub host: u16,
    /// Of the container.
    pub container: u16,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: &'static str,
    /// Address of the host; empty: all of them.
    pub address: String,
}

/// Bits a second; 0: any.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bandwidth {
    /// To the container.
    pub ingress: u64,
    /// From the container.
    pub egress: u64,
}

/// What is known of a container.
#[derive(Debug, Clone, Default)]
pub struct Capabilities {
    /// Ports of the host.
    pub ports: Vec<Port>,
    /// Limits.
    pub bandwidth: Bandwidth,
    /// Name servers, search domains and options.
    pub dns: Option<(Vec<String>, Vec<String>, Vec<String>)>,
    /// Annotations of the pod.
    pub annotations: BTreeMap<String, String>,
    /// Its cgroup.
    pub cgroup: String,
}

/// Bits that may come at once: as many as the plugin can count.
const BURST: u64 = i32::MAX as u64;

impl Capabilities {
    /// As plugins read them; what says nothing is left out.
    pub fn to_json(&self) -> Map<String, Value> {
        let mut map = Map::new();
        if !self.ports.is_empty() {
            let ports: Vec<Value> = self
                .ports
                .iter()
                .map(|port| {
                    json!({
                        "hostPort": port.host, "containerPort": port.container, "protocol": port.protocol,
                        "hostIP": port.address,
                    })
                })
                .collect();
            map.insert("portMappings".to_owned(), json!(ports));
        }
        if self.bandwidth != Bandwidth::default() {
            let mut limits = Map::new();
            for (name, rate) in [("ingress", self.bandwidth.ingress), ("egress", self.bandwidth.egress)] {
                if rate > 0 {
                    limits.insert(format!("{name}Rate"), json!(rate));
                    limits.insert(format!("{name}Burst"), json!(BURST));
                }
            }
            map.insert("bandwidth".to_owned(), Value::Object(limits));
        }
        if let Some((servers, searches, options)) = &self.dns {
            map.insert("dns".to_owned(), json!({"servers": servers, "searches": searches, "options": options}));
        }
        if !self.annotations.is_empty() {
            map.insert("io.kubernetes.cri.pod-annotations".to_owned(), json!(self.annotations));
        }
        if !self.cgroup.is_empty() {
            map.insert("cgroupPath".to_owned(), json!(self.cgroup));
        }
        map
    }
}
