//! Device nodes of a container.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Linux, LinuxDeviceType};

use super::mounts::{MountKind, MountPlan};
use crate::error::{Error, Result};

/// All nodes to make.
#[derive(Debug)]
pub struct DevicePlan {
    /// The nodes, each path once.
    pub nodes: Vec<Node>,
}

/// One node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Where, in the container.
    pub path: PathBuf,
    /// What.
    pub kind: NodeKind,
    /// Permission bits.
    pub mode: u32,
    /// Owner, as the container counts.
    pub uid: u32,
    /// Group, as the container counts.
    pub gid: u32,
}

/// The kinds of nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeKind {
    /// A character device.
    Character(u32, u32),
    /// A block device.
    Block(u32, u32),
    /// A named pipe.
    Fifo,
}

const ALWAYS: &[(&str, u32, u32)] = &[
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// The nodes every container has and those of the configuration, which win; `None` when `/dev` is the host's.
pub fn plan(linux: Option<&Linux>, mounts: &[MountPlan]) -> Result<Option<DevicePlan>> {
    let is_bound =
        |mount: &MountPlan| mount.destination == Path::new("/dev") && matches!(mount.kind, MountKind::Bind { .. });
    if mounts.iter().any(is_bound) {
        return Ok(None);
    }
    let mut nodes: Vec<Node> = ALWAYS
        .iter()
        .map(|(path, major, minor)| Node {
            path: PathBuf::from(path),
            kind: NodeKind::Character(*major, *minor),
            mode: 0o666,
            uid: 0,
            gid: 0,
        })
        .collect();
    let configured = linux.and_then(|linux| linux.devices().as_ref());
    for (index, device) in configured.into_iter().flatten().enumerate() {
        let refuse = |why: &str| Error::invalid(format!("linux.devices[{index}]: {why}"));
        if !device.path().is_absolute() {
            return Err(refuse("path is not absolute"));
        }
        // That of the container leads to its own terminals, and where the host's would be bound it could not be replaced.
        if device.path() == Path::new("/dev/ptmx") {
            continue;
        }
        let number = |value: i64| u32::try_from(value).map_err(|_| refuse("device number out of range"));
        let kind = match device.typ() {
            LinuxDeviceType::C | LinuxDeviceType::U => {
                NodeKind::Character(number(device.major())?, number(device.minor())?)
            }
            LinuxDeviceType::B => NodeKind::Block(number(device.major())?, number(device.minor())?),
            LinuxDeviceType::P => NodeKind::Fifo,
            LinuxDeviceType::A => return Err(refuse("type a stands for rules, not for a device")),
        };
        let node = Node {
            path: device.path().clone(),
            kind,
            mode: device.file_mode().unwrap_or(0o666) & 0o7777,
            uid: device.uid().unwrap_or(0),
            gid: device.gid().unwrap_or(0),
        };
        nodes.retain(|known| known.path != node.path);
        nodes.push(node);
    }
    Ok(Some(DevicePlan { nodes }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configured_nodes_replace_the_usual_ones() {
        let json = r#"{"devices":[{"path":"/dev/null","type":"c","major":1,"minor":3,"fileMode":384,"uid":7},
            {"path":"/dev/ptmx","type":"c","major":5,"minor":2}]}"#;
        let linux: Linux = serde_json::from_str(json).expect("valid JSON");
        let plan = plan(Some(&linux), &[]).expect("plan").expect("devices");
        assert_eq!(plan.nodes.len(), ALWAYS.len());
        let null = plan.nodes.iter().find(|node| node.path == Path::new("/dev/null")).expect("null");
        assert_eq!((null.mode, null.uid), (0o600, 7));
    }
}
