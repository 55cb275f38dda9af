//! The runtime itself: version, readiness, configuration.

use std::collections::BTreeMap;

use gantry_proto::runtime::v1;
use serde_json::json;

use super::settings;
use super::template::Ranges;
use super::{Cri, network_of};
use crate::blocking::blocking;
use crate::config::{CgroupDriver, RuntimeHandler};
use crate::error::{Doing as _, Error, Result};
use crate::shims::is_ours;
use crate::snapshots::REMAP_IDS;

/// The version of this interface that is spoken.
const API: &str = "v1";
/// What kubelets of all releases ask with and want back.
const KUBELET: &str = "0.1.0";

impl Cri {
    pub(super) async fn version(&self, _: v1::VersionRequest) -> Result<v1::VersionResponse> {
        Ok(v1::VersionResponse {
            version: KUBELET.to_owned(),
            runtime_name: "gantry".to_owned(),
            runtime_version: crate::VERSION.to_owned(),
            runtime_api_version: API.to_owned(),
        })
    }

    pub(super) async fn status(&self, request: v1::StatusRequest) -> Result<v1::StatusResponse> {
        let network = self.shared.cni.status(&self.shared.cni.usual()).await;
        let condition = |kind: &str, state: &Result<()>, reason: &str| v1::RuntimeCondition {
            r#type: kind.to_owned(),
            status: state.is_ok(),
            reason: if state.is_ok() { String::new() } else { reason.to_owned() },
            message: state.as_ref().err().map(ToString::to_string).unwrap_or_default(),
        };
        let conditions =
            vec![condition("RuntimeReady", &Ok(()), ""), condition("NetworkReady", &network, "NetworkPluginNotReady")];
        Ok(v1::StatusResponse {
            status: Some(v1::RuntimeStatus { conditions }),
            info: if request.verbose { self.runtime_info(&network).await? } else { BTreeMap::new() },
            runtime_handlers: self.handlers(),
            features: Some(v1::RuntimeFeatures {
                supplemental_groups_policy: true,
                user_namespaces_host_network: self.shared.host.maps_ids(),
                mount_options: false,
            }),
        })
    }

    /// The default handler under no name, and each under its own.
    fn handlers(&self) -> Vec<v1::RuntimeHandler> {
        let config = self.config();
        let default = config.runtimes.get(&config.default_runtime).map(|handler| (String::new(), handler));
        let all = config.runtimes.iter().map(|(name, handler)| (name.clone(), handler));
        default
            .into_iter()
            .chain(all)
            .map(|(name, handler)| v1::RuntimeHandler { name, features: Some(self.features(handler)) })
            .collect()
    }

    /// What pods of a handler can have: what the machine can do, where the runtime is the one we know.
    pub(super) fn features(&self, handler: &RuntimeHandler) -> v1::RuntimeHandlerFeatures {
        let known = self.runs_rung(handler);
        let host = &self.shared.host;
        let layers = || self.snapshotter(handler).is_ok_and(|it| it.capabilities().iter().any(|it| it == REMAP_IDS));
        v1::RuntimeHandlerFeatures {
            recursive_read_only_mounts: known && host.recursive_read_only(),
            user_namespaces: known && host.maps_ids() && layers(),
        }
    }

    /// Whether the runtime of a handler is `rung` under our shim.
    pub(super) fn runs_rung(&self, handler: &RuntimeHandler) -> bool {
        let ours = || self.parts().tasks.program(&handler.runtime).is_ok_and(|program| is_ours(&program));
        handler.binary.is_empty() && ours()
    }

    async fn runtime_info(&self, network: &Result<()>) -> Result<BTreeMap<String, String>> {
        let said = |state: &Result<()>| {
            json!(state.as_ref().err().map_or_else(|| "OK".to_owned(), ToString::to_string)).to_string()
        };
        let mut info = BTreeMap::from([
            ("config".to_owned(), settings::shown(&self.parts().config, &self.config()).to_string()),
            ("cniconfig".to_owned(), self.shared.cni.describe().await?.to_string()),
            ("lastCNILoadStatus".to_owned(), said(network)),
            ("lastCNILoadStatus.default".to_owned(), said(network)),
        ]);
        for (name, handler) in &self.config().runtimes {
            if let Some(own) = network_of(handler, &self.config().cni) {
                info.insert(format!("lastCNILoadStatus.{name}"), said(&self.shared.cni.status(&own).await));
            }
        }
        Ok(info)
    }

    pub(super) async fn runtime_config(&self, _: v1::RuntimeConfigRequest) -> Result<v1::RuntimeConfigResponse> {
        let driver = match self.config().cgroup_driver {
            CgroupDriver::Systemd => v1::CgroupDriver::Systemd,
            CgroupDriver::Cgroupfs => v1::CgroupDriver::Cgroupfs,
        };
        Ok(v1::RuntimeConfigResponse { linux: Some(v1::LinuxRuntimeConfiguration { cgroup_driver: driver.into() }) })
    }

    /// Writes the network configuration of a node whose addresses are known now, where a template says how.
    pub(super) async fn update_runtime_config(
        &self,
        request: v1::UpdateRuntimeConfigRequest,
    ) -> Result<v1::UpdateRuntimeConfigResponse> {
        let network = request.runtime_config.and_then(|config| config.network_config).unwrap_or_default();
        let cidrs: Vec<String> = network.pod_cidr.split(',').map(|text| text.trim().to_owned()).collect();
        let template = self.config().cni.conf_template.clone();
        if network.pod_cidr.is_empty() {
            return Ok(v1::UpdateRuntimeConfigResponse {});
        }
        let field = "runtime_config.network_config.pod_cidr";
        if let Some(wrong) = cidrs.iter().find(|cidr| !is_cidr(cidr)) {
            return Err(Error::invalid(format!("{field}: {wrong:?} is not a range of addresses")));
        }
        if template.as_os_str().is_empty() {
            return Ok(v1::UpdateRuntimeConfigResponse {});
        }
        let target = self.config().cni.conf_dir.join("10-gantry.conflist");
        let write = move || {
            let text = std::fs::read_to_string(&template).doing(|| format!("read {}", template.display()))?;
            let filled = Ranges { all: cidrs }.fill(&text);
            let text = filled.doing(|| format!("template {}", template.display()))?;
            serde_json::from_str::<serde_json::Value>(&text)
                .map_err(|error| Error::invalid(format!("template {}: {error}", template.display())))?;
            if let Some(parent) = target.parent() {
                std::fs::create_dir_all(parent).doing(|| format!("make {}", parent.display()))?;
            }
            let written = rung_sys::atomic_file::write(&target, text.as_bytes(), 0o644).map_err(std::io::Error::from);
            written.doing(|| format!("write {}", target.display()))
        };
        blocking(write).await?;
        Ok(v1::UpdateRuntimeConfigResponse {})
    }
}

fn is_cidr(text: &str) -> bool {
    let Some((address, length)) = text.split_once('/') else { return false };
    let (Ok(address), Ok(length)) = (address.parse::<std::net::IpAddr>(), length.parse::<u8>()) else { return false };
    length <= if address.is_ipv4() { 32 } else { 128 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_addresses() {
        assert!(is_cidr("10.0.0.0/24") && is_cidr("fd00::/64"));
        for text in ["", "10.0.0.0", "10.0.0.0/33", "x/24", "10.0.0.0/24\"", "fd00::/129"] {
            assert!(!is_cidr(text), "{text}");
        }
    }
}
