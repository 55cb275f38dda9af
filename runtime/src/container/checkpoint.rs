//! Writing a container's processes to disk.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Component, Path};

use oci_spec::runtime::Spec;
use rung_sys::namespace::Namespace;

use super::status::Status;
use super::{Container, delete};
use crate::cgroups::Cgroup;
use crate::criu::external;
use crate::criu::images::DESCRIPTORS;
use crate::criu::options::{Directories, Options, PageServer, write_ready};
use crate::criu::session::{self, Feature, PATIENCE, Session, Verb};
use crate::criu::wire::Message;
use crate::error::{Doing as _, Error, Kind, Result};
use crate::launch;
use crate::log;
use crate::plan::{InitPlan, Wishes};

const LOG: &str = "dump.log";

/// What is asked of a checkpoint beyond [`Options`].
#[derive(Debug, Default)]
pub struct Wanted {
    /// What restores have too.
    pub common: Options,
    /// The container goes on.
    pub leave_running: bool,
    /// Connections that are just being made are left out.
    pub tcp_skip_in_flight: bool,
    /// Files that have lost their name get one back.
    pub link_remap: bool,
    /// Older images, relative to these, to which these only add.
    pub parent: Option<String>,
    /// Who takes the pages.
    pub page_server: Option<PageServer>,
    /// Memory only, and the container goes on.
    pub pre_dump: bool,
    /// Told when pages can be asked for.
    pub status_fd: Option<OwnedFd>,
}

/// `checkpoint`.
pub fn checkpoint(container: &Container, wanted: &Wanted) -> Result<()> {
    let status = container.status();
    if matches!(status, Status::Creating | Status::Created | Status::Stopped) {
        let message = format!("Container cannot be checkpointed in {status} state");
        return Err(Error::new(Kind::WrongState, message));
    }
    let directories = Directories::open(&wanted.common, LOG, true)?;
    if let Some(parent) = &wanted.parent {
        require_parent(&wanted.common.images, parent)?;
    }
    let version = session::version()?;
    log::debug(|| format!("criu {version}"));
    if wanted.pre_dump {
        session::require(Feature::MemoryTracking)?;
    }
    if wanted.common.lazy_pages {
        session::require(Feature::LazyPages)?;
    }
    let spec = container.record.spec()?;
    let message = request(container, &spec, wanted, &directories)?;
    let verb = if wanted.pre_dump { Verb::PreDump } else { Verb::Dump };
    let mut session = Session::start()?;
    // Pages that are fetched from here are fetched when others want them.
    let patience = (!wanted.common.lazy_pages).then_some(PATIENCE);
    let mut ready = wanted.status_fd.as_ref().map(OwnedFd::as_fd);
    let asked = session.ask(verb, &Message::default().message(2, &message), patience, |notification| {
        if notification.point == "status-ready" {
            write_ready(ready.take());
        }
        Ok(())
    });
    asked.inspect_err(|_| directories.quote_errors())?;
    // After a pre-dump criu waits for the next one, and is not pleased that there is none.
    session.finish()?;
    if wanted.leave_running || wanted.pre_dump {
        return Ok(());
    }
    delete::destroy(container)
}

/// `--parent-path` is a link in the images, so it has to lead somewhere from there.
fn require_parent(images: &Path, parent: &str) -> Result<()> {
    let path = Path::new(parent);
    if path.is_absolute() || path.components().all(|part| part == Component::CurDir) {
        return Err(Error::invalid("--parent-path must be relative"));
    }
    let found = std::fs::metadata(images.join(path)).doing(|| format!("invalid --parent-path: {parent}"))?;
    if found.is_dir() {
        Ok(())
    } else {
        Err(Error::invalid(format!("invalid --parent-path: {parent}: not a directory")))
    }
}

fn request(container: &Container, spec: &Spec, wanted: &Wanted, directories: &Directories) -> Result<Message> {
    let record = &container.record;
    let rootfs = record.config.rootfs.clone();
    let plan = InitPlan::new(&record.id, record.bundle(), rootfs, spec, Wishes::default())?;
    let mut message = wanted
        .common
        .request(directories, LOG, spec)
        .text(13, &record.config.rootfs.to_string_lossy())
        .signed(2, record.init_process_pid)
        .flag(3, wanted.leave_running)
        .flag(18, wanted.link_remap)
        .flag(46, wanted.tcp_skip_in_flight);
    if let Some(parent) = &wanted.parent {
        message = message.text(14, parent).flag(15, true);
    }
    if let Some(server) = &wanted.page_server {
        let inner = Message::default().text(1, &server.address).number(2, server.port.into());
        message = message.message(11, &inner);
    }
    for (kind, path) in plan.namespaces.join.iter().filter(|(kind, _)| has_external_form(*kind)) {
        let found = nix::sys::stat::stat(path).doing(|| format!("look at {}", path.display()))?;
        message = message.text(37, &format!("{}[{}]:{}", kind.proc_name(), found.st_ino, external_name(*kind)));
    }
    let cgroup = container.cgroup();
    if let Some(freezer) = freezer(&cgroup) {
        message = message.text(44, &freezer);
    }
    if wanted.pre_dump {
        return Ok(message);
    }
    write_descriptors(directories.images.as_fd(), &record.external_descriptors)?;
    // Those of its record are the ones that were made for it; mounted are those of all hierarchies.
    let views = Cgroup::of(container.pid()).map_err(launch::cgroup_error)?.existing_views();
    let list = external::all(&plan, &views, &container.entry.readiness());
    external::name_all(message, &list, container.pid())
}

/// The namespaces that criu leaves to whoever made them.
pub fn has_external_form(kind: Namespace) -> bool {
    matches!(kind, Namespace::Network | Namespace::Pid)
}

/// The name of such a namespace in the images; runc's.
pub fn external_name(kind: Namespace) -> &'static str {
    if kind == Namespace::Network { "extRootNetNS" } else { "extRootPidNS" }
}

/// Where criu freezes the container, so that it need not stop each process.
fn freezer(cgroup: &Cgroup) -> Option<String> {
    let paths = cgroup.paths();
    let path = if cgroup.is_unified() { paths.get("") } else { paths.get("freezer") };
    path.map(|path| path.to_string_lossy().into_owned())
}

fn write_descriptors(images: BorrowedFd<'_>, names: &[String]) -> Result<()> {
    let doing = || format!("write {DESCRIPTORS}");
    let text = serde_json::to_vec(names).map_err(|error| Error::invalid(error.to_string())).doing(doing)?;
    let flags = nix::fcntl::OFlag::O_WRONLY
        | nix::fcntl::OFlag::O_CREAT
        | nix::fcntl::OFlag::O_TRUNC
        | nix::fcntl::OFlag::O_NOFOLLOW
        | nix::fcntl::OFlag::O_CLOEXEC;
    let mode = nix::sys::stat::Mode::from_bits_truncate(0o600);
    let file = nix::fcntl::openat(images, DESCRIPTORS, flags, mode).doing(doing)?;
    std::io::Write::write_all(&mut std::fs::File::from(file), &text).doing(doing)
}

/// Opens `--status-fd` anew, so that closing ours leaves nobody waiting.
pub fn status_fd(number: i32) -> Result<OwnedFd> {
    let doing = || format!("invalid --status-fd argument {number}");
    let path = format!("/proc/self/fd/{number}");
    let opened = std::fs::OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(path).doing(doing)?;
    nix::unistd::close(number).doing(doing)?;
    Ok(opened.into())
}
