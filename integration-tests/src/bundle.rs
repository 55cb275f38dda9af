//! OCI bundles: a root file system with busybox and the config.json that `runc spec` writes, changed as a test likes.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde_json::{Value, json};

use crate::{Env, Result};

/// Programs that a root file system offers as links to busybox.
pub const APPLETS: &[&str] = &[
    "cat", "chmod", "chown", "cut", "dd", "df", "echo", "env", "false", "find", "grep", "head", "hostname", "id", "ip",
    "kill", "ln", "ls", "mkdir", "mknod", "mount", "nc", "nproc", "ps", "pwd", "rm", "sed", "sh", "sleep", "sort",
    "stat", "stty", "sync", "tail", "test", "touch", "tr", "true", "tty", "umount", "uname", "wc", "wget", "yes",
];

/// A bundle directory. [`write`](Self::write) puts the config on disk; before that it is a value to change.
#[derive(Debug)]
pub struct Bundle {
    /// The bundle directory.
    pub path: PathBuf,
    /// What config.json will say.
    pub config: Value,
}

impl Bundle {
    /// A bundle `name` whose process is `args`, without a terminal.
    pub fn new(env: &Env, name: &str, args: &[&str]) -> Result<Self> {
        let path = env.dir(name)?;
        busybox_root(&path.join("rootfs"))?;
        let mut config = config();
        config["process"]["args"] = json!(args);
        config["linux"]["cgroupsPath"] = json!(format!("/{}", env.id(name)));
        Ok(Self { path, config })
    }

    /// Changes the config through a JSON pointer: `set("/process/user/uid", 1000)`. Missing parents are made.
    pub fn set(&mut self, pointer: &str, value: impl Into<Value>) -> &mut Self {
        let mut at = &mut self.config;
        for key in pointer.trim_start_matches('/').split('/') {
            at = match at {
                Value::Array(items) => match key.parse::<usize>() {
                    Ok(index) if index < items.len() => &mut items[index],
                    _ => {
                        items.push(Value::Null);
                        items.last_mut().expect("an item was just added")
                    }
                },
                other => &mut other[key],
            };
        }
        *at = value.into();
        self
    }

    /// Adds to a list of the config: `push("/mounts", json!({...}))`. A missing list is made.
    pub fn push(&mut self, pointer: &str, value: impl Into<Value>) -> &mut Self {
        match self.config.pointer_mut(pointer).and_then(Value::as_array_mut) {
            Some(items) => items.push(value.into()),
            None => {
                self.set(pointer, json!([value.into()]));
            }
        }
        self
    }

    /// Gives the process a capability.
    pub fn grant(&mut self, capability: &str) -> &mut Self {
        for set in ["bounding", "effective", "permitted"] {
            self.push(&format!("/process/capabilities/{set}"), capability);
        }
        self
    }

    /// Has the container share a kind of namespace (`pid`) with the host.
    pub fn share(&mut self, kind: &str) -> &mut Self {
        if let Some(namespaces) = self.config["linux"]["namespaces"].as_array_mut() {
            namespaces.retain(|namespace| namespace["type"] != kind);
        }
        self
    }

    /// Takes the mounts at and below a path out of the config: the image's own files are there.
    pub fn unmount(&mut self, path: &str) -> &mut Self {
        if let Some(mounts) = self.config["mounts"].as_array_mut() {
            mounts.retain(|mount| !mount["destination"].as_str().is_some_and(|at| Path::new(at).starts_with(path)));
        }
        self
    }

    /// Writes config.json; gives the bundle's path as text for a command line.
    pub fn write(&self) -> Result<&str> {
        let text = serde_json::to_vec_pretty(&self.config)?;
        fs::write(self.path.join("config.json"), text).context("write config.json")?;
        self.path.to_str().context("the bundle's path is not UTF-8")
    }

    /// The root file system's directory.
    pub fn rootfs(&self) -> PathBuf {
        self.path.join("rootfs")
    }
}

/// Fills a directory with busybox, its usual names, and the empty directories a container mounts on.
pub fn busybox_root(root: &Path) -> Result<()> {
    for dir in ["bin", "dev", "etc", "proc", "sys", "tmp", "root", "var"] {
        fs::create_dir_all(root.join(dir))?;
    }
    fs::copy(busybox()?, root.join("bin/busybox")).context("copy busybox")?;
    fs::set_permissions(root.join("bin/busybox"), fs::Permissions::from_mode(0o755))?;
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    for applet in APPLETS {
        symlink("busybox", root.join("bin").join(applet))?;
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/tmp:/bin/sh\n")?;
    fs::write(root.join("etc/group"), "root:x:0:\nuser:x:1000:\nstaff:x:50:user\n")?;
    Ok(())
}

/// Path of the machine's statically linked busybox (package `busybox-static`).
pub fn busybox() -> Result<PathBuf> {
    for path in ["/bin/busybox", "/usr/bin/busybox"] {
        if Path::new(path).is_file() {
            return Ok(PathBuf::from(path));
        }
    }
    bail!("no /bin/busybox; install busybox-static")
}

/// The configuration that `runc spec` writes, without a terminal.
fn config() -> Value {
    let caps = json!(["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    let mut kinds = vec!["pid", "network", "ipc", "uts", "mount"];
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        kinds.push("cgroup");
    }
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": {"uid": 0, "gid": 0},
            "args": ["true"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {"bounding": caps, "effective": caps, "permitted": caps, "ambient": caps},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": true
        },
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "runc",
        "mounts": mounts(),
        "linux": {
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": kinds.iter().map(|kind| json!({"type": kind})).collect::<Vec<_>>(),
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
                "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi"
            ],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
        }
    })
}

fn mounts() -> Value {
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": source, "options": options});
    json!([
        {"destination": "/proc", "type": "proc", "source": "proc"},
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount("/dev/pts", "devpts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"])
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_config_is_what_was_asked_for() {
        let mut bundle = Bundle { path: PathBuf::new(), config: config() };
        bundle.set("/process/user/uid", 7).set("/linux/resources/pids/limit", 9).set("/linux/namespaces/0/path", "/x");
        bundle.push("/mounts", json!({"destination": "/m"})).push("/linux/uidMappings", json!({"size": 1}));
        assert_eq!(bundle.config["process"]["user"], json!({"uid": 7, "gid": 0}));
        assert_eq!(bundle.config["linux"]["resources"]["pids"]["limit"], 9);
        assert_eq!(bundle.config["linux"]["namespaces"][0], json!({"type": "pid", "path": "/x"}));
        assert_eq!(bundle.config["mounts"].as_array().unwrap().len(), 8);
        assert_eq!(bundle.config["linux"]["uidMappings"][0]["size"], 1);
        bundle.grant("CAP_CHOWN").share("pid").unmount("/dev");
        assert_eq!(bundle.config["process"]["capabilities"]["effective"][3], "CAP_CHOWN");
        assert_ne!(bundle.config["linux"]["namespaces"][0]["type"], "pid");
        assert_eq!(bundle.config["mounts"].as_array().unwrap().len(), 4);
    }
}
