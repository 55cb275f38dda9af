//! Named requirements of a test. A name that does not exist does not compile; one the machine lacks is a visible skip.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::str::FromStr;

use crate::wait;

/// Something a test needs of the machine it runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// The effective user is root, with the right to mount.
    Root,
    /// An ordinary user with what rootless containers need: user namespaces, id ranges and a runtime directory.
    Rootless,
    /// Controllers (memory and pids at least) are on cgroup v1.
    CgroupV1,
    /// `/sys/fs/cgroup` is a cgroup v2 tree with memory and pids controllers.
    CgroupV2,
    /// systemd is process 1.
    Systemd,
    /// The kernel enforces AppArmor profiles and `apparmor_parser` can load them.
    Apparmor,
    /// The kernel can mount overlay file systems.
    Overlay,
    /// A process may make a user namespace.
    Userns,
    /// containerd and its `ctr` are installed.
    Containerd,
    /// podman is installed.
    Podman,
    /// dockerd, its client and containerd are installed.
    Dockerd,
    /// A machine that is not emulated: for tests that repeat something hundreds of times to catch a race.
    Fast,
    /// The `openssl` program is installed, for certificates.
    Openssl,
    /// The `strace` program is installed, and may trace.
    Strace,
    /// The kernel has FUSE and loop devices.
    Fuse,
    /// The `criu` program is installed and works with this kernel.
    Criu,
    /// Not a property of the machine: no other test runs at the same time.
    Alone,
    /// Not a property of the machine: worth its time on every kind of host, see [`Test::host_matters`](crate::Test).
    EveryHost,
}

impl FromStr for Need {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> anyhow::Result<Self> {
        Self::ALL
            .iter()
            .copied()
            .find(|need| format!("{need:?}") == name)
            .ok_or_else(|| anyhow::anyhow!("unknown need {name}; there are {:?}", Self::ALL))
    }
}

impl Need {
    const ALL: &[Self] = &[
        Self::Root,
        Self::Rootless,
        Self::CgroupV1,
        Self::CgroupV2,
        Self::Systemd,
        Self::Apparmor,
        Self::Overlay,
        Self::Userns,
        Self::Containerd,
        Self::Podman,
        Self::Dockerd,
        Self::Fast,
        Self::Openssl,
        Self::Criu,
        Self::Strace,
        Self::Fuse,
        Self::Alone,
        Self::EveryHost,
    ];

    /// Whether only some kinds of host meet it: a test that asks for one is worth its time on all that do.
    pub fn is_kind_of_host(self) -> bool {
        // criu knows few kernels of containers and sandboxes, and the machines' one.
        matches!(self, Self::Rootless | Self::CgroupV1 | Self::CgroupV2 | Self::Systemd | Self::Apparmor | Self::Criu)
    }

    /// Why this machine does not meet the need, or `None` when it does.
    pub fn unmet(self) -> Option<String> {
        let (met, reason) = match self {
            Self::Root => (is_root(), "not running as root"),
            Self::Rootless => return rootless_unmet(),
            Self::CgroupV1 => (v1_controllers(), "memory and pids controllers are not on cgroup v1"),
            Self::CgroupV2 => (v2_controllers(), "/sys/fs/cgroup is not cgroup v2 with memory and pids controllers"),
            Self::Systemd => (Path::new("/run/systemd/system").is_dir(), "systemd is not process 1"),
            Self::Apparmor => (apparmor(), "AppArmor is not enforced by this kernel"),
            Self::Overlay => (overlay(), "the kernel has no overlay file system"),
            Self::Userns => (succeeds("unshare", &["--user", "true"]), "a user namespace cannot be made"),
            Self::Containerd => (
                succeeds("containerd", &["--version"]) && succeeds("ctr", &["--version"]),
                "containerd is not installed",
            ),
            Self::Podman => (succeeds("podman", &["--version"]), "podman is not installed"),
            Self::Dockerd => (
                ["dockerd", "docker", "containerd"].iter().all(|program| succeeds(program, &["--version"])),
                "dockerd is not installed",
            ),
            Self::Fast => (wait::patience() < 4, "this machine is too slow for a test of so many repetitions"),
            Self::Openssl => (succeeds("openssl", &["version"]), "openssl is not installed"),
            Self::Criu => (succeeds("criu", &["check"]), "criu is missing or does not work with this kernel"),
            Self::Strace => {
                (succeeds("strace", &["-qq", "-o", "/dev/null", "true"]), "strace is missing or may not trace")
            }
            Self::Fuse => (
                ["/dev/fuse", "/dev/loop-control"].iter().all(|path| Path::new(path).exists()),
                "the kernel has no FUSE or no loop devices",
            ),
            Self::Alone | Self::EveryHost => return None,
        };
        (!met).then(|| reason.to_owned())
    }
}

/// The first need in the list that this machine does not meet, as a reason to skip.
pub fn first_unmet(needs: &[Need]) -> Option<String> {
    needs.iter().find_map(|need| need.unmet())
}

/// Whether the effective user is root.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

fn rootless_unmet() -> Option<String> {
    if is_root() {
        return Some("running as root, not as an ordinary user".to_owned());
    }
    let Some(name) = own_name() else { return Some("this user has no name in /etc/passwd".to_owned()) };
    let range = format!("{name}:");
    for file in ["/etc/subuid", "/etc/subgid"] {
        if !fs::read_to_string(file).unwrap_or_default().lines().any(|line| line.starts_with(&range)) {
            return Some(format!("{file} has no range for {name}"));
        }
    }
    if std::env::var_os("XDG_RUNTIME_DIR").is_none() {
        return Some("XDG_RUNTIME_DIR is not set".to_owned());
    }
    Need::Userns.unmet()
}

/// The user's name, read from the file itself: a static program has no name service.
fn own_name() -> Option<String> {
    let uid = nix::unistd::geteuid().to_string();
    let passwd = fs::read_to_string("/etc/passwd").ok()?;
    let line = passwd.lines().find(|line| line.split(':').nth(2) == Some(&uid))?;
    Some(line.split(':').next()?.to_owned())
}

fn v1_controllers() -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mounted = |controller: &str| {
        mounts.lines().filter_map(|line| line.split_once(" - cgroup ")).any(|(_, tail)| {
            tail.rsplit_once(' ').is_some_and(|(_, options)| options.split(',').any(|option| option == controller))
        })
    };
    mounted("memory") && mounted("pids")
}

fn v2_controllers() -> bool {
    let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    ["memory", "pids"].iter().all(|wanted| controllers.split_whitespace().any(|have| have == *wanted))
}

fn apparmor() -> bool {
    fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.trim() == "Y")
        && (!is_root() || succeeds("apparmor_parser", &["--version"]))
}

fn overlay() -> bool {
    let listed =
        || fs::read_to_string("/proc/filesystems").unwrap_or_default().lines().any(|it| it == "nodev\toverlay");
    // The module may not be loaded yet.
    listed() || (succeeds("modprobe", &["overlay"]) && listed())
}

fn succeeds(program: &str, args: &[&str]) -> bool {
    Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
