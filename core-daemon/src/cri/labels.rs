//! What records say in the words of containerd's own interface, for its clients.

use std::collections::BTreeMap;

use gantry_proto::any;
use gantry_proto::gantry::cri::v1::ContainerRecord;
use prost_types::Any;
use serde_json::json;

use super::shown::shown;
use crate::error::{Error, Result};
use crate::labels::Labels;

/// On a record: which of the two it is.
const KIND: &str = "io.cri-containerd.kind";
/// A pod sandbox.
pub(super) const SANDBOX: &str = "sandbox";
/// A container of a pod.
pub(super) const CONTAINER: &str = "container";

/// Extension of a container's record in which clients look for its log.
pub(super) const METADATA: &str = "io.cri-containerd.container.metadata";
const METADATA_TYPE: &str = "github.com/containerd/cri/pkg/store/container/Metadata";

/// Extension of the container that is a pod.
pub(super) const SANDBOX_METADATA: &str = "io.cri-containerd.sandbox.metadata";
pub(super) const SANDBOX_METADATA_TYPE: &str = "github.com/containerd/cri/pkg/store/sandbox/Metadata";

/// What that extension says of a container.
pub(super) fn metadata(id: &str, record: &ContainerRecord) -> Result<Any> {
    let document = json!({
        "Version": "v1",
        "Metadata": {
            "ID": id,
            "Name": record.name,
            "SandboxID": record.sandbox_id,
            "Config": record.config.as_ref().map(shown),
            "ImageRef": record.image_id,
            "LogPath": record.log_path,
            "StopSignal": record.stop_signal.to_string(),
        },
    });
    let document = serde_json::to_vec(&document).map_err(|error| Error::internal(format!("encode: {error}")))?;
    Ok(any::json(METADATA_TYPE, document))
}

/// The kubelet's labels, and ours. One that is too long for a record is only in the extension.
pub(super) fn of(wanted: &BTreeMap<String, String>, kind: &str) -> Labels {
    let fits = |key: &String, value: &String| {
        let one = Labels::from([(key.clone(), value.clone())]);
        // What the daemon itself reads is not for clients of this interface to write.
        crate::labels::check(&one).is_ok() && !key.starts_with("containerd.io/") && !key.starts_with("io.containerd.")
    };
    let mut labels: Labels =
        wanted.iter().filter(|(key, value)| fits(key, value)).map(|(k, v)| (k.clone(), v.clone())).collect();
    labels.insert(KIND.to_owned(), kind.to_owned());
    labels
}
