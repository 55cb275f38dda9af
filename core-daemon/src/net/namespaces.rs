//! Namespaces that live without a process: each is bound to a file, and ends when that is unbound.
//!
//! They are made by a thread of their own, which enters them, sets them up, binds them, and ends. Those of a user
//! namespace belong to it only if they are made in it, and a thread cannot enter one; there, a process makes them
//! ([`hold`]), and the thread enters only the others.

use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::statfs::{NSFS_MAGIC, statfs};
use nix::unistd::Pid;
use rung_spec::validate::Parameter;
use rung_sys::idmap::{self, Range};
use rung_sys::namespace::{self, Namespace};
use rung_sys::procfs::Procfs;
use rung_sys::{mount, network};
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, Command};

use crate::blocking::blocking;
use crate::error::{Doing as _, Error, Kind, Result};

/// Name of the command that [`hold`] is the body of.
pub const HOLD: &str = "hold-namespaces";
/// How long the process may take to make its namespaces.
const PATIENCE: Duration = Duration::from_secs(10);

/// Which namespaces are made, and how they begin.
#[derive(Debug, Clone, Default)]
pub struct Wishes {
    /// Each kind and the file it is bound to.
    pub bound: Vec<(Namespace, PathBuf)>,
    /// Maps of a new user namespace which the others belong to: users and groups. Its own file is among `bound`.
    pub user: Option<(Vec<Range>, Vec<Range>)>,
    /// Name of the machine, in a new namespace for that.
    pub hostname: String,
    /// Settings of the kernel, in the new namespaces; those of an interface are set once it is there: [`set`].
    pub sysctls: Vec<(String, String)>,
}

impl Wishes {
    fn flags(&self) -> u64 {
        self.bound.iter().fold(0, |flags, (kind, _)| flags | kind.flag())
    }
}

/// Makes namespaces. On failure nothing is left of them.
///
/// # Errors
/// Names the step, and the setting the kernel refuses.
pub async fn make(wishes: Wishes, daemon: &Path) -> Result<()> {
    let holder = match &wishes.user {
        Some((users, groups)) => Some(Holder::start(daemon, wishes.flags(), users, groups).await?),
        None => None,
    };
    let pid = holder.as_ref().map(|holder| holder.pid);
    let undo = wishes.clone();
    let made = blocking(move || in_thread(move || enter_and_bind(&wishes, pid))).await;
    if made.is_err() {
        for (_, path) in &undo.bound {
            let _ = remove(path);
        }
    }
    made
}

/// Whether a namespace is bound to a file.
pub fn is_bound(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == NSFS_MAGIC)
}

/// Whether two paths lead to the same namespace.
pub fn is_same(one: &Path, other: &Path) -> bool {
    let place = |path| std::fs::metadata(path).map(|found| (found.dev(), found.ino())).ok();
    place(one).is_some_and(|found| place(other) == Some(found))
}

/// Ends the namespace that is bound to a file. One that is gone is no error.
///
/// # Errors
/// When it cannot be unbound.
pub fn remove(path: &Path) -> Result<()> {
    match mount::detach(path).map_err(std::io::Error::from) {
        // Not bound: the machine was started anew, or the work was cut short.
        Err(error) if matches!(error.raw_os_error(), Some(nix::libc::EINVAL | nix::libc::ENOENT)) => {}
        detached => detached.doing(|| format!("unbind the namespace at {}", path.display()))?,
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).doing(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Body of the process that makes namespaces inside a new user namespace: says when they are there, and stays until
/// its input ends. It has one thread, as the kernel wants it of whoever makes a user namespace.
///
/// # Errors
/// When the namespaces cannot be made.
pub fn hold(flags: u64) -> Result<()> {
    // Its root is the host's, and a container that sees the host's processes may be root of the host's user namespace: to
    // that one a process of a new user namespace is its own, even without a capability.
    rung_sys::process::set_dumpable(false).map_err(std::io::Error::from).doing(|| "make namespaces")?;
    namespace::leave(flags).map_err(std::io::Error::from).doing(|| "make namespaces")?;
    std::io::stdout().write_all(b".").doing(|| "answer")?;
    std::io::stdout().flush().doing(|| "answer")?;
    std::io::stdin().read_to_end(&mut Vec::new()).map(drop).doing(|| "wait")
}

/// Changes settings of the kernel in the network namespace that is bound to a file.
///
/// # Errors
/// Names the setting the kernel refuses.
pub async fn set(network: PathBuf, sysctls: Vec<(String, String)>) -> Result<()> {
    let work = move || {
        let doing = || format!("network namespace {}", network.display());
        let file = std::fs::File::open(&network).doing(doing)?;
        namespace::enter(file.as_fd(), Namespace::Network.flag()).map_err(std::io::Error::from).doing(doing)?;
        write_sysctls(&sysctls)
    };
    blocking(move || in_thread(work)).await
}

fn in_thread(work: impl FnOnce() -> Result<()> + Send) -> Result<()> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("namespaces".into()).spawn_scoped(scope, work);
        let joined = thread.doing(|| "start a thread")?.join();
        joined.map_err(|_| Error::internal("make namespaces: thread panicked"))?
    })
}

fn enter_and_bind(wishes: &Wishes, holder: Option<Pid>) -> Result<()> {
    let others = || wishes.bound.iter().filter(|(kind, _)| *kind != Namespace::User);
    match holder {
        None => namespace::leave(wishes.flags()).map_err(std::io::Error::from).doing(|| "make namespaces")?,
        Some(pid) => {
            for (kind, _) in others() {
                let path = format!("/proc/{pid}/ns/{}", kind.proc_name());
                let file = std::fs::File::open(&path).doing(|| format!("open {path}"))?;
                namespace::enter(file.as_fd(), kind.flag())
                    .map_err(std::io::Error::from)
                    .doing(|| format!("enter {path}"))?;
            }
        }
    }
    set_up(wishes)?;
    for (kind, path) in &wishes.bound {
        let source = match (kind, holder) {
            (Namespace::User, Some(pid)) => format!("/proc/{pid}/ns/user"),
            _ => format!("/proc/thread-self/ns/{}", kind.proc_name()),
        };
        bind(Path::new(&source), path)?;
    }
    Ok(())
}

/// Called inside the namespaces.
fn set_up(wishes: &Wishes) -> Result<()> {
    let makes = |kind| wishes.bound.iter().any(|(made, _)| *made == kind);
    if makes(Namespace::Network) {
        network::bring_loopback_up().map_err(std::io::Error::from).doing(|| "bring up loopback")?;
    }
    if makes(Namespace::Uts) && !wishes.hostname.is_empty() {
        let named = nix::unistd::sethostname(&wishes.hostname).map_err(std::io::Error::from);
        named.doing(|| format!("set hostname {:?}", wishes.hostname))?;
    }
    write_sysctls(&wishes.sysctls)
}

fn write_sysctls(sysctls: &[(String, String)]) -> Result<()> {
    if sysctls.is_empty() {
        return Ok(());
    }
    let proc = Procfs::open().map_err(std::io::Error::from).doing(|| "open /proc")?;
    for (name, value) in sysctls {
        let parameter = Parameter::named(name).map_err(|why| Error::invalid(format!("sysctl {name}: {why}")))?;
        let written = proc.write(&format!("sys/{}", parameter.path), value).map_err(std::io::Error::from);
        written.map_err(|error| Error::invalid(format!("sysctl {name}={value}: {error}")))?;
    }
    Ok(())
}

fn bind(source: &Path, target: &Path) -> Result<()> {
    let doing = || format!("bind a namespace to {}", target.display());
    if let Some(parent) = target.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(parent).doing(doing)?;
    }
    std::fs::OpenOptions::new().write(true).create_new(true).mode(0o444).open(target).doing(doing)?;
    let flags = nix::mount::MsFlags::MS_BIND.bits();
    mount::mount(Some(source), target, None, flags, None).map_err(std::io::Error::from).doing(doing)
}

/// The process that keeps namespaces until they are bound.
struct Holder {
    pid: Pid,
    /// Dropped with this, the process reads the end of its input, or is killed.
    _child: Child,
}

impl Holder {
    async fn start(daemon: &Path, flags: u64, users: &[Range], groups: &[Range]) -> Result<Self> {
        let mut command = Command::new(daemon);
        command.arg(HOLD).arg(flags.to_string()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.kill_on_drop(true).spawn().doing(|| format!("run {}", daemon.display()))?;
        let (mut said, mut byte) = (String::new(), [0_u8]);
        let answer = async {
            let Some(stdout) = child.stdout.as_mut() else { return Ok(false) };
            let there = stdout.read(&mut byte).await? == 1;
            if !there && let Some(stderr) = child.stderr.as_mut() {
                stderr.take(4096).read_to_string(&mut said).await?;
            }
            Ok::<_, Error>(there)
        };
        let late = |_| Error::new(Kind::DeadlineExceeded, "make namespaces: no answer");
        if !tokio::time::timeout(PATIENCE, answer).await.map_err(late)?? {
            return Err(Error::new(Kind::Unknown, format!("make a user namespace: {}", said.trim())));
        }
        let pid = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
        let pid = pid.ok_or_else(|| Error::internal("make a user namespace: the process is gone"))?;
        idmap::write_uids(pid, users).map_err(std::io::Error::from).doing(|| "map user ids")?;
        idmap::write_gids(pid, groups).map_err(std::io::Error::from).doing(|| "map group ids")?;
        Ok(Self { pid, _child: child })
    }
}
