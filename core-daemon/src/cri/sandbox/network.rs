//! A pod's network: what plugins are told of it.

use gantry_proto::gantry::cri::v1::Network;
use gantry_proto::runtime::v1;
use rung_sys::namespace::Namespace;

use super::check;
use crate::config::{IpPreference, RuntimeHandler};
use crate::cri::flights::Stage;
use crate::cri::quantity::quantity;
use crate::cri::{Cri, network_of};
use crate::error::{Error, Result};
use crate::net::cni::{Attachment, Bandwidth, Capabilities, Port};

/// Annotations of a pod with limits of its network.
const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
const EGRESS: &str = "kubernetes.io/egress-bandwidth";

impl Cri {
    /// Connects a pod's network namespace, unless nobody waits for that any more.
    pub(super) async fn connect(
        &self,
        id: &str,
        config: &v1::PodSandboxConfig,
        handler: &RuntimeHandler,
        stage: &Stage,
    ) -> Result<Network> {
        let attachment = self.attachment(id, config)?;
        let source = network_of(handler, &self.config().cni).unwrap_or_else(|| self.shared.cni.usual());
        let mut addresses = self.shared.cni.connect(&source, &attachment, stage.given_up()).await?;
        if addresses.is_empty() {
            self.shared.cni.disconnect(id).await?;
            return Err(Error::unavailable(format!("network of pod {id}: the plugins gave it no address")));
        }
        prefer(&mut addresses, self.config().cni.ip_preference);
        Ok(Network { addresses, removed: false })
    }

    fn attachment(&self, id: &str, config: &v1::PodSandboxConfig) -> Result<Attachment> {
        let metadata = check::metadata(config)?;
        let dns = config.dns_config.as_ref();
        let capabilities = Capabilities {
            ports: config.port_mappings.iter().filter_map(port).collect(),
            bandwidth: Bandwidth { ingress: rate(config, INGRESS)?, egress: rate(config, EGRESS)? },
            dns: dns.map(|dns| (dns.servers.clone(), dns.searches.clone(), dns.options.clone())),
            annotations: config.annotations.clone(),
            cgroup: config.linux.as_ref().map(|linux| linux.cgroup_parent.clone()).unwrap_or_default(),
        };
        Ok(Attachment {
            container: id.to_owned(),
            netns: self.places(id).namespace(Namespace::Network),
            args: format!(
                "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={id};K8S_POD_UID={}",
                metadata.namespace, metadata.name, metadata.uid
            ),
            capabilities: capabilities.to_json(),
        })
    }
}

/// A mapping that there is something to do for.
fn port(port: &v1::PortMapping) -> Option<Port> {
    let host = u16::try_from(port.host_port).ok().filter(|host| *host > 0)?;
    let protocol = match port.protocol() {
        v1::Protocol::Tcp => "tcp",
        v1::Protocol::Udp => "udp",
        v1::Protocol::Sctp => "sctp",
    };
    let container = u16::try_from(port.container_port).ok().filter(|container| *container > 0)?;
    Some(Port { host, container, protocol, address: port.host_ip.clone() })
}

/// Bits a second in a pod's annotation.
fn rate(config: &v1::PodSandboxConfig, annotation: &str) -> Result<u64> {
    let Some(text) = config.annotations.get(annotation) else { return Ok(0) };
    quantity(text).ok_or_else(|| Error::invalid(format!("config.annotations.{annotation}: {text:?} is not a quantity")))
}

/// Puts the first address of the preferred kind first.
fn prefer(addresses: &mut [String], preference: IpPreference) {
    let fits = |address: &String| match preference {
        IpPreference::Cni => true,
        IpPreference::Ipv4 => !address.contains(':'),
        IpPreference::Ipv6 => address.contains(':'),
    };
    if let Some(at) = addresses.iter().position(fits) {
        addresses[..=at].rotate_right(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_preferred_address_comes_first() {
        let mut addresses = vec!["fd00::2".to_owned(), "fd00::3".to_owned(), "10.0.0.2".to_owned()];
        prefer(&mut addresses, IpPreference::Cni);
        assert_eq!(addresses[0], "fd00::2");
        prefer(&mut addresses, IpPreference::Ipv4);
        assert_eq!(addresses, ["10.0.0.2", "fd00::2", "fd00::3"]);
        prefer(&mut addresses, IpPreference::Ipv6);
        assert_eq!(addresses[0], "fd00::2");
    }

    #[test]
    fn ports_without_one_of_the_host_are_nothing_to_do() {
        let mapping = |host_port, container_port| v1::PortMapping { host_port, container_port, ..Default::default() };
        assert_eq!(port(&mapping(0, 80)), None);
        assert_eq!(port(&mapping(-1, 80)), None);
        assert_eq!(port(&mapping(8080, 80)).map(|port| (port.host, port.container)), Some((8080, 80)));
    }
}
