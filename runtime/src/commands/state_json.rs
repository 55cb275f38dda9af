//! The state of a container as `state` and `list` print it.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use crate::container::Container;

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct State<'a> {
    oci_version: &'a str,
    pub(super) id: &'a str,
    pub(super) pid: i32,
    pub(super) status: &'static str,
    pub(super) bundle: &'a Path,
    rootfs: &'a Path,
    pub(super) created: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<&'a str, &'a str>,
    pub(super) owner: String,
}

impl<'a> State<'a> {
    pub(super) fn of(container: &'a Container, owner: String) -> Self {
        let record = &container.record;
        let status = container.status();
        State {
            oci_version: &record.config.version,
            id: &record.id,
            pid: if status.is_alive() { record.init_process_pid } else { 0 },
            status: status.name(),
            bundle: record.bundle(),
            rootfs: &record.config.rootfs,
            created: &record.created,
            annotations: record.annotations(),
            owner,
        }
    }
}
