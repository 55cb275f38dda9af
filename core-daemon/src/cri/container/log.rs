//! A container's log.

use std::path::{Component, Path};

use gantry_proto::runtime::v1;

use crate::cri::Cri;
use crate::error::{Doing as _, Error, Result};

impl Cri {
    /// Has the shim open the log under its path again, after the kubelet renamed it.
    pub(in crate::cri) async fn reopen_container_log(
        &self,
        request: v1::ReopenContainerLogRequest,
    ) -> Result<v1::ReopenContainerLogResponse> {
        let container = self.store().container(&request.container_id)?;
        let doing = || format!("reopen the log of container {}", container.id());
        container.task().doing(doing)?.reopen_log().await.doing(doing)?;
        Ok(v1::ReopenContainerLogResponse {})
    }
}

/// Where the container's log is; empty: none.
pub(super) fn log_path(pod: &v1::PodSandboxConfig, config: &v1::ContainerConfig) -> Result<String> {
    if pod.log_directory.is_empty() || config.log_path.is_empty() {
        return Ok(String::new());
    }
    let path = Path::new(&config.log_path);
    let plain = |part| matches!(part, Component::Normal(_) | Component::CurDir);
    if !path.components().all(plain) {
        let shown = path.display();
        return Err(Error::invalid(format!("config.log_path: {shown}: leads out of the pod's directory")));
    }
    Ok(Path::new(&pod.log_directory).join(path).to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_stay_in_the_pods_directory() {
        let pod = v1::PodSandboxConfig { log_directory: "/var/log/pods/x".into(), ..Default::default() };
        let config = |path: &str| v1::ContainerConfig { log_path: path.into(), ..Default::default() };
        assert_eq!(log_path(&pod, &config("web/0.log")).expect("path"), "/var/log/pods/x/web/0.log");
        assert_eq!(log_path(&pod, &config("")).expect("none"), "");
        assert!(log_path(&pod, &config("../0.log")).is_err() && log_path(&pod, &config("/etc/x")).is_err());
    }
}
