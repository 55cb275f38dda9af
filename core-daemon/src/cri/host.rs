//! The machine: what it has to give, how its file systems are mounted, and paths on it that may not answer.

use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::libc;
use oci_spec::runtime::Capabilities;
use rung_sys::beneath::Root;
use rung_sys::idmap::{self, Range};
use rung_sys::mount::{self, Change, attribute};
use rung_sys::mountinfo::{self, Mounted};
use tokio::process::Command;

use crate::blocking::blocking;
use crate::error::{Doing as _, Error, Kind, Result};
use crate::oom_score;

/// Name of the command whose body is [`look_at_path`].
pub const LOOK: &str = "look-at-path";
/// How long a path may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// File systems that answer without a server.
const LOCAL: &[&str] = &[
    "ext2",
    "ext3",
    "ext4",
    "xfs",
    "btrfs",
    "zfs",
    "f2fs",
    "tmpfs",
    "ramfs",
    "devtmpfs",
    "overlay",
    "erofs",
    "squashfs",
    "vfat",
    "proc",
    "sysfs",
    "cgroup",
    "cgroup2",
    "devpts",
    "mqueue",
    "hugetlbfs",
    "bpf",
    "rootfs",
    "iso9660",
];

/// Number of the capability to lower one's score.
const SYS_RESOURCE: u32 = 24;

/// What the daemon itself has, which is the most it can give.
#[derive(Debug, Clone)]
pub(super) struct Host {
    bounding: Option<u64>,
    /// Lowest score that its children may have among those the kernel ends for want of memory.
    lowest_oom_score: i32,
    /// The daemon's own.
    own_oom_score: i32,
    /// The kernel can make a mount read-only with everything that is mounted below it.
    recursive_read_only: bool,
    /// Ids of files where the daemon keeps its own can be translated by a mount.
    maps_ids: bool,
}

impl Host {
    /// Looks at the machine; `dirs` is where the daemon has its files.
    pub(super) fn look(dirs: &[&Path]) -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let bounding = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
        let mask = |text: Option<&str>| text.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
        let effective = mask(status.lines().find_map(|line| line.strip_prefix("CapEff:")));
        let own_oom_score = oom_score::own();
        // Shims are one above the daemon, and without this capability nobody gets below where he is.
        let lowest_oom_score = match effective.is_none_or(|bits| bits >> SYS_RESOURCE & 1 == 1) {
            true => -1000,
            false => own_oom_score + 1,
        };
        let maps_ids = dirs.iter().all(|dir| maps_ids(dir).is_ok());
        let recursive_read_only = mount::check_read_only_below().is_ok();
        Self { bounding: mask(bounding), lowest_oom_score, own_oom_score, recursive_read_only, maps_ids }
    }

    /// Whether mounts can be read-only with everything below them.
    pub(super) fn recursive_read_only(&self) -> bool {
        self.recursive_read_only
    }

    /// Whether pods can have users of their own.
    pub(super) fn maps_ids(&self) -> bool {
        self.maps_ids
    }

    /// The score nearest to `wanted` that this daemon can give.
    pub(super) fn oom_score(&self, wanted: i32) -> i32 {
        wanted.max(self.lowest_oom_score)
    }

    /// The score nearest to `wanted` that is not below the daemon's own.
    pub(super) fn restricted_oom_score(&self, wanted: i32) -> i32 {
        wanted.max(self.own_oom_score)
    }

    /// The score of a container of which nothing is said.
    pub(super) fn usual_oom_score(&self) -> Option<i32> {
        oom_score::usual(self.own_oom_score)
    }

    /// All capabilities that a container can get.
    pub(super) fn capabilities(&self) -> Capabilities {
        let all = rung_spec::defaults::capabilities::ALL.iter().copied().zip(0_u32..);
        all.filter(|(_, number)| self.bounding.is_none_or(|bits| bits >> number & 1 == 1)).map(|(one, _)| one).collect()
    }
}

fn maps_ids(dir: &Path) -> rung_sys::Result<()> {
    let range = [Range { inside: 0, outside: 1, count: 1 }];
    let ids = idmap::empty_namespace(&range, &range)?;
    let tree = mount::open_tree_at_path(dir, false)?;
    let change = Change { set: attribute::IDMAP, user_namespace: Some(ids.as_fd()), ..Change::default() };
    mount::set_attributes(tree.as_fd(), false, &change)
}

/// Where file systems are mounted, as the daemon sees it.
#[derive(Debug, Default)]
pub(super) struct MountTable {
    mounts: Vec<Mounted>,
}

impl MountTable {
    pub(super) fn read() -> Result<Self> {
        Ok(Self { mounts: mountinfo::read("self").doing(|| "read the mounts")? })
    }

    /// The mount that a path is on.
    fn of(&self, path: &Path) -> Option<&Mounted> {
        // Of two in one place, the later one hides the earlier one.
        self.mounts
            .iter()
            .filter(|mount| path.starts_with(&mount.point))
            .max_by_key(|mount| mount.point.components().count())
    }

    /// Whether mounts there are seen elsewhere.
    pub(super) fn is_shared(&self, path: &Path) -> bool {
        self.propagates(path, "shared:")
    }

    /// Whether mounts elsewhere are seen there.
    pub(super) fn is_slave(&self, path: &Path) -> bool {
        self.propagates(path, "master:")
    }

    fn propagates(&self, path: &Path, how: &str) -> bool {
        self.of(path).is_some_and(|mount| mount.propagation.iter().any(|tag| tag.starts_with(how)))
    }

    fn is_local(&self, path: &Path) -> bool {
        self.of(path).is_some_and(|mount| LOCAL.contains(&mount.kind.as_str()))
    }
}

/// Where a path on the host leads, links followed; a directory is made where there is nothing, if it may be. With a `prefix`,
/// the host's files are those below that.
///
/// A path that needs a server to answer is looked at by a process of its own, which can be ended when it does not: a
/// thread of the daemon's could not.
///
/// # Errors
/// `DeadlineExceeded` naming the path that does not answer, `InvalidArgument` naming one that leads nowhere.
pub(super) async fn resolve(
    path: &Path,
    (prefix, may_make): (&Path, bool),
    table: &MountTable,
    daemon: &Path,
) -> Result<PathBuf> {
    let doing = || format!("config.mounts.host_path: {}", path.display());
    if table.is_local(&below(prefix, path)) {
        let (path, prefix) = (path.to_owned(), prefix.to_owned());
        let late = |_| no_answer();
        return tokio::time::timeout(PATIENCE, blocking(move || look(&path, &prefix, may_make)))
            .await
            .map_err(late)
            .doing(doing)?
            .doing(doing);
    }
    let mut command = Command::new(daemon);
    command.arg(LOOK).arg(path);
    // An empty value is none to the command line.
    if !prefix.as_os_str().is_empty() {
        command.arg("--prefix").arg(prefix);
    }
    if !may_make {
        command.arg("--existing");
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let run = async { command.spawn()?.wait_with_output().await };
    let output = tokio::time::timeout(PATIENCE, run).await.map_err(|_| no_answer()).doing(doing)?.doing(doing)?;
    if output.status.success() {
        use std::os::unix::ffi::OsStringExt as _;
        return Ok(PathBuf::from(std::ffi::OsString::from_vec(output.stdout)));
    }
    Err(Error::new(Kind::Unknown, String::from_utf8_lossy(&output.stderr).trim().to_owned())).doing(doing)
}

fn no_answer() -> Error {
    Error::new(Kind::DeadlineExceeded, format!("its file system did not answer within {} s", PATIENCE.as_secs()))
}

/// Body of the process that looks at a path: prints where it leads.
///
/// # Errors
/// What the file system says.
pub fn look_at_path(path: &Path, prefix: &Path, may_make: bool) -> Result<()> {
    use std::io::Write as _;
    use std::os::unix::ffi::OsStrExt as _;
    let resolved = look(path, prefix, may_make)?;
    std::io::stdout().write_all(resolved.as_os_str().as_bytes()).doing(|| "answer")
}

/// A path below another, whether or not it begins with a slash.
pub(super) fn below(prefix: &Path, path: &Path) -> PathBuf {
    if prefix.as_os_str().is_empty() { path.to_owned() } else { prefix.join(path.strip_prefix("/").unwrap_or(path)) }
}

fn look(path: &Path, prefix: &Path, may_make: bool) -> Result<PathBuf> {
    look_now(path, prefix, may_make).map_err(|error| match error.kind() {
        // Not of the container, nor of its pod, which exist or not: a link to nothing, a file among its directories.
        Kind::AlreadyExists | Kind::NotFound | Kind::Internal => Error::invalid(error.to_string()),
        _ => error,
    })
}

fn look_now(path: &Path, prefix: &Path, may_make: bool) -> Result<PathBuf> {
    // Links of the host's lead to the host's files.
    let root = match prefix.as_os_str().is_empty() {
        true => None,
        false => Some(Root::open(prefix).doing(|| format!("cri.bind_mount_prefix {}", prefix.display()))?),
    };
    let open = || match &root {
        None => std::fs::OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path).map(OwnedFd::from),
        Some(root) => root.resolve(path, OFlag::O_PATH),
    };
    let file = match open() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !may_make => {
            return Err(Error::invalid("is not there, and cri.absent_mount_sources_to_reject names it"));
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            match &root {
                None => std::fs::DirBuilder::new().recursive(true).mode(0o755).create(path),
                Some(root) => root.make_directories(path, &mut |_| {}).map(drop),
            }
            .doing(|| "make it a directory")?;
            open()?
        }
        opened => opened?,
    };
    // The kernel's own answer: what the descriptor is of, not what the text may mean by now.
    Ok(std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: [&[u8]; 3] = [
        b"22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw",
        b"30 22 0:5 / /data\\040x rw master:7 - nfs server:/x rw",
        b"31 22 0:6 / /tmp rw - tmpfs tmpfs rw",
    ];

    #[test]
    fn the_mount_of_a_path() {
        let table = MountTable { mounts: TABLE.iter().filter_map(|line| mountinfo::parse(line)).collect() };
        assert!(table.is_shared(Path::new("/etc")) && table.is_local(Path::new("/etc")));
        let data = Path::new("/data x/y");
        assert!(table.is_slave(data) && !table.is_shared(data) && !table.is_local(data));
        assert!(!table.is_shared(Path::new("/tmp/a")) && !table.is_slave(Path::new("/tmp/a")));
        assert!(table.is_shared(Path::new("/tmpx")));
    }

    #[test]
    fn links_are_followed_and_what_is_missing_is_made() {
        let dir = tempfile::tempdir().expect("directory");
        let look = |path: &Path| look(path, Path::new(""), true);
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        std::fs::create_dir(&real).expect("make");
        std::os::unix::fs::symlink(&real, &link).expect("link");
        assert_eq!(look(&link).expect("link"), look(&real).expect("real"));
        assert!(look(&dir.path().join("new/deep")).expect("made").is_dir());
        std::os::unix::fs::symlink(dir.path().join("none"), dir.path().join("dangling")).expect("link");
        std::os::unix::fs::symlink("loop", dir.path().join("loop")).expect("link");
        std::fs::write(dir.path().join("file"), "").expect("write");
        for nowhere in ["/proc/self/none/x", "dangling", "loop", "file/x"] {
            let error = look(&dir.path().join(nowhere)).expect_err(nowhere);
            assert_eq!(error.kind(), Kind::InvalidArgument, "{error}");
        }
    }

    #[test]
    fn links_below_a_prefix_stay_below_it() {
        let dir = tempfile::tempdir().expect("directory");
        let prefix = dir.path().canonicalize().expect("path");
        std::fs::create_dir_all(prefix.join("var/data")).expect("make");
        std::os::unix::fs::symlink("/var/data", prefix.join("link")).expect("link");
        let found = |path: &str| look(Path::new(path), &prefix, true);
        assert_eq!(found("/link").expect("link"), prefix.join("var/data"));
        assert_eq!(found("/../../link/../x/y").expect("made"), prefix.join("var/x/y"));
        assert!(prefix.join("var/x/y").is_dir());
        let error = look(Path::new("/none"), &prefix, false).expect_err("missing");
        assert_eq!(error.kind(), Kind::InvalidArgument);
        assert!(error.to_string().contains("absent_mount_sources_to_reject"), "{error}");
        assert!(!prefix.join("none").exists(), "made all the same");
    }
}
