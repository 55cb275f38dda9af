//! Bringing a container back from disk.
//!
//! criu makes the processes as children of this program and holds them until it has looked at them. Everything that
//! criu needs to see mounted is mounted in a mount namespace that ends with it, so that nothing is left on the host
//! whatever happens.

use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use rung_sys::mount::{self, Change, Propagation, attribute};
use rung_sys::namespace::{self, Namespace};
use rung_sys::process::Pid;
use serde_json::json;

use super::alive::ProcessStat;
use super::checkpoint::{external_name, has_external_form};
use super::create::{self, Made, Options};
use super::id::ContainerId;
use super::readiness;
use super::record::{Json, Record};
use super::store::Entry;
use super::{Settings, sockets};
use crate::bundle::Bundle;
use crate::cgroups::Cgroup;
use crate::criu::external::External;
use crate::criu::options::{self, Directories, FIRST_INHERITED, inherited};
use crate::criu::session::{Bequest, LAST_HELD, Notification, PATIENCE, Session, Verb};
use crate::criu::wire::Message;
use crate::criu::{external, images, verify};
use crate::error::{Doing as _, Error, Kind, Result};
use crate::hooks::{self, HookState};
use crate::launch::{self, Started};
use crate::log;
use crate::plan::InitPlan;
use crate::resctrl::Resctrl;

const LOG: &str = "restore.log";

/// What is asked of a restore beyond the flags of `create`.
#[derive(Debug, Default)]
pub struct Wanted {
    /// What checkpoints have too.
    pub common: options::Options,
    /// `TYPE:NAME` of another profile than the one in the images.
    pub lsm_profile: Option<String>,
    /// Another SELinux label of mounts than the one in the images.
    pub lsm_mount_context: Option<String>,
}

/// A restore under way.
struct Restore<'a> {
    bundle: Bundle,
    plan: InitPlan,
    state: HookState,
    entry: Entry,
    cgroup: Cgroup,
    options: &'a Options,
    record: Record,
    resctrl: Option<Resctrl>,
    cgroup_mode: options::CgroupMode,
    pid: Option<Pid>,
    verified: bool,
    /// The cgroup is ours by now: what is at its place before that, perhaps another container, must not be touched.
    begun: bool,
    console: Option<OwnedFd>,
}

/// `restore`. On failure nothing of the container is left.
pub fn restore(settings: &Settings, id: &ContainerId, options: &Options, wanted: &Wanted) -> Result<Made> {
    let bundle = Bundle::open(&options.bundle, options.config.as_deref())?;
    let plan = InitPlan::new(id.as_str(), &bundle.path, bundle.rootfs()?, &bundle.spec, options.wishes)?;
    create::check(&plan, options, settings.rootless)?;
    if plan.extensions.delegated.is_some() {
        let reason = "not supported by restore: criu puts the processes where their images say";
        return Err(Error::unsupported(format!("annotations[\"run.oci.delegate-cgroup\"]: {reason}")));
    }
    if settings.without_cgroup {
        let reason = "not supported by restore: criu puts the processes where their images say";
        return Err(Error::unsupported(format!("--cgroup-manager disabled: {reason}")));
    }
    let cgroups_path = bundle.spec.linux().as_ref().and_then(|linux| linux.cgroups_path().as_deref());
    let cgroup = Cgroup::plan(cgroups_path, id.as_str(), settings.systemd, settings.rootless)
        .map_err(launch::cgroup_error)?
        .with_annotations(bundle.spec.annotations().as_ref())
        .below(plan.extensions.subgroup.as_deref())
        .shown_writable(plan.shows_cgroups_writable());
    let resctrl = create::plan_resctrl(&bundle.spec, id)?;
    let state = create::hook_state(id, &bundle, &plan)?;
    let record = create::first_record(settings, id, &bundle, &plan, &cgroup, cgroups_path)?;
    let entry = settings.store.claim(id)?;
    let mut restore = Restore {
        bundle,
        plan,
        state,
        entry,
        cgroup,
        resctrl,
        cgroup_mode: wanted.common.cgroups,
        options,
        record,
        pid: None,
        verified: false,
        begun: false,
        console: None,
    };
    match restore.attempt(wanted) {
        Ok(started) => {
            let Restore { bundle, state, entry, cgroup, record, .. } = restore;
            Ok(Made { entry, record, started, cgroup, spec: bundle.spec, state, readiness: None })
        }
        Err(error) => {
            if restore.begun {
                create::undo(&restore.entry, &restore.cgroup, Some(&restore.bundle.spec), &restore.state);
            } else if let Err(error) = restore.entry.remove() {
                log::warning(&error.to_string());
            }
            if let Some(group) = &mut restore.resctrl {
                group.take_back();
            }
            Err(error)
        }
    }
}

impl Restore<'_> {
    fn attempt(&mut self, wanted: &Wanted) -> Result<Started> {
        self.entry.plan(&self.record)?;
        readiness::make_directory(&self.entry.readiness())?;
        let root = self.entry.criu_root();
        let away = Away::begin()?;
        let begun = self.begin(&root, wanted);
        away.end()?;
        let (directories, message, mut session) = begun?;
        let message = self.place(message.text(13, &root.to_string_lossy()), session.pid())?;
        let request = Message::default().message(2, &message);
        let patience = (!wanted.common.lazy_pages).then_some(PATIENCE);
        session.ask(Verb::Restore, &request, patience, |notification| self.notified(notification)).inspect_err(
            |_| {
                directories.quote_errors();
                // What criu had made it takes back, unless it is gone itself.
                self.kill();
            },
        )?;
        session.finish()?;
        if !self.verified {
            // An older criu may not have asked.
            self.verify()?;
        }
        self.finish()
    }

    /// What is done in criu's mount namespace: it works in the directories it is given, so they are opened there, and looked
    /// at there.
    fn begin(&mut self, root: &Path, wanted: &Wanted) -> Result<(Directories, Message, Session)> {
        let mut directories = Directories::open(&wanted.common, LOG, false)?;
        images::check(directories.images.as_fd(), &wanted.common.images)?;
        let descriptors = images::descriptors(directories.images.as_fd(), &wanted.common.images)?;
        if self.plan.namespaces.has(Namespace::User) {
            directories.expose()?;
        }
        let mut message = wanted.common.request(&directories, LOG, &self.bundle.spec).flag(6, true).flag(26, true);
        for (field, value) in [(53, &wanted.lsm_profile), (63, &wanted.lsm_mount_context)] {
            message = value.iter().fold(message, |message, value| message.text(field, value));
        }
        let (mut message, joined) = self.join_namespaces(message)?;
        for (number, name) in (0..).zip(descriptors) {
            if name.contains("pipe:") {
                message = inherited(message, &name, number);
            }
        }
        self.prepare_root(root)?;
        let own = self.cgroup_mode == options::CgroupMode::Ignore && self.plan.namespaces.makes(Namespace::Cgroup);
        let bequest = Bequest {
            descriptors: joined.iter().map(File::as_fd).collect(),
            no_new_privileges: verify::no_new_privileges(&self.plan),
            // Told to ignore cgroups, criu makes no namespace of them: it is one of its own that what it restores stays in.
            namespaces: if own { Namespace::Cgroup.flag() } else { 0 },
        };
        let resources = self.bundle.spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
        let session = Session::start_for(&bequest, |criu| {
            self.cgroup.create(resources, Some(criu)).map_err(launch::cgroup_error)?;
            self.begun = true;
            self.cgroup.mark(self.entry.path());
            Ok(())
        })?;
        Ok((directories, message, session))
    }

    /// Namespaces that are joined by path: criu gets the descriptors of some, and the paths of others.
    fn join_namespaces(&self, mut message: Message) -> Result<(Message, Vec<File>)> {
        let mut joined = Vec::new();
        for (kind, path) in &self.plan.namespaces.join {
            match kind {
                kind if has_external_form(*kind) => {
                    let number = FIRST_INHERITED + i32::try_from(joined.len()).unwrap_or_default();
                    joined.push(File::open(path).doing(|| format!("open {}", path.display()))?);
                    message = inherited(message, external_name(*kind), number);
                }
                Namespace::Cgroup | Namespace::Time => {
                    let name = kind.proc_name();
                    return Err(Error::unsupported(format!("criu cannot restore into a {name} namespace that exists")));
                }
                kind => {
                    let inner = Message::default().text(1, kind.proc_name()).text(2, &path.to_string_lossy());
                    message = message.message(39, &inner);
                }
            }
        }
        Ok((message, joined))
    }

    /// criu wants a root that is a mount point of its own. Mount points below it are made as `create` makes them, in a
    /// first tree that goes again, for criu puts the mounts there itself.
    fn prepare_root(&self, root: &Path) -> Result<()> {
        std::fs::create_dir(root).doing(|| format!("make {}", root.display()))?;
        let bind = || -> Result<OwnedFd> {
            let tree = mount::open_tree_at_path(&self.plan.root.path, true)?;
            let place = open(root, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
            mount::attach(tree.as_fd(), place.as_fd())?;
            Ok(tree)
        };
        let first = bind().doing(|| format!("bind the root at {}", root.display()))?;
        external::make_mount_points(&first, &self.plan)?;
        drop(first);
        mount::detach(root).doing(|| format!("unmount {}", root.display()))?;
        bind().map(drop).doing(|| format!("bind the root at {}", root.display()))
    }

    fn external(&self) -> Vec<External> {
        external::all(&self.plan, &self.cgroup.views(), &self.entry.readiness())
    }

    /// What of the host the container gets, and in which cgroups it is.
    fn place(&self, message: Message, criu: Pid) -> Result<Message> {
        let mut message = external::supply_all(message, &self.external())?;
        let path = format!("/proc/{criu}/cgroup");
        for line in std::fs::read_to_string(&path).doing(|| format!("read {path}"))?.lines() {
            let mut parts = line.splitn(3, ':').skip(1);
            if let (Some(controller), Some(inner)) = (parts.next(), parts.next()) {
                message = message.message(25, &Message::default().text(1, controller).text(2, inner));
            }
        }
        Ok(message)
    }

    fn notified(&mut self, notification: Notification) -> Result<()> {
        match notification.point.as_str() {
            "setup-namespaces" => {
                let hooks = self.bundle.spec.hooks().as_ref();
                #[allow(deprecated, reason = "prestart hooks are deprecated for authors of bundles, not for runtimes")]
                let prestart = hooks.and_then(|hooks| hooks.prestart().as_deref()).unwrap_or_default();
                let create_runtime = hooks.and_then(|hooks| hooks.create_runtime().as_deref()).unwrap_or_default();
                let pid = Some(notification.pid);
                hooks::run("prestart", prestart, &self.state, "creating", pid)?;
                hooks::run("createRuntime", create_runtime, &self.state, "creating", pid)
            }
            "orphan-pts-master" => {
                self.console = notification.fds.into_iter().next();
                Ok(())
            }
            "post-restore" => self.restored(Pid::from_raw(notification.pid)),
            LAST_HELD => self.verify(),
            _ => Ok(()),
        }
    }

    /// The processes are there, and held.
    fn restored(&mut self, pid: Pid) -> Result<()> {
        self.pid = Some(pid);
        let stat = ProcessStat::read(pid).ok_or_else(|| Error::new(Kind::Internal, "the restored process is gone"))?;
        create::complete(&mut self.record, pid, stat.start_time, &self.cgroup);
        self.note_time_namespace(pid)?;
        self.entry.save(&self.record)
    }

    /// Only now do the processes have their rights and filters; they are still held. What must not run is killed before
    /// criu is, for that would let it go.
    fn verify(&mut self) -> Result<()> {
        let pid = self.pid.ok_or_else(|| Error::new(Kind::Internal, "criu has not said which process it restored"))?;
        let protected = self.protect_root(pid).doing(|| "make the root read-only");
        let all = protected.and_then(|()| verify::family(pid).doing(|| "look for the restored processes"));
        let checked = all.and_then(|all| {
            verify::check(&self.plan, &self.bundle.spec, &self.external(), pid, &all)?;
            self.enter_resctrl(&all)
        });
        self.verified = checked.is_ok();
        checked.inspect_err(|_| self.kill())
    }

    /// criu knows nothing of these groups, and the processes are where it was.
    fn enter_resctrl(&mut self, all: &[Pid]) -> Result<()> {
        if self.resctrl.is_none() {
            return Ok(());
        }
        create::enter_resctrl(self.resctrl.as_mut(), all, &mut self.record)?;
        self.entry.save(&self.record)
    }

    /// criu leaves the root as it was given, and has to write there.
    fn protect_root(&self, pid: Pid) -> Result<()> {
        if !self.plan.root.read_only || !self.plan.namespaces.makes(Namespace::Mount) {
            return Ok(());
        }
        let namespace = File::open(format!("/proc/{pid}/ns/mnt"))?;
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let root = open(format!("/proc/{pid}/root").as_str(), flags, Mode::empty())?;
        let home = Away::from_here()?;
        namespace::enter(namespace.as_fd(), Namespace::Mount.flag())?;
        let change = Change { set: attribute::RDONLY, ..Change::default() };
        let changed = mount::set_attributes(root.as_fd(), false, &change);
        home.end()?;
        Ok(changed?)
    }

    /// Each one: what is in a process namespace ends with its first process, but not at once.
    fn kill(&self) {
        let Some(first) = self.pid else { return };
        for pid in verify::family(first).unwrap_or_else(|_| vec![first]).into_iter().rev() {
            drop(rung_sys::signal::send(pid, libc::SIGKILL));
        }
    }

    /// criu keeps the clocks going with a time namespace, which a later `exec` has to join.
    fn note_time_namespace(&mut self, pid: Pid) -> Result<()> {
        let identity = |path: String| nix::sys::stat::stat(path.as_str()).map(|found| found.st_ino).ok();
        let made = identity(format!("/proc/{pid}/ns/time")) != identity("/proc/self/ns/time".to_owned());
        if !made || self.plan.namespaces.has(Namespace::Time) {
            return Ok(());
        }
        let wrong = |error: serde_json::Error| Error::invalid(error.to_string());
        let mut document: serde_json::Value = serde_json::from_str(self.record.config.spec.get()).map_err(wrong)?;
        if let Some(list) = document.pointer_mut("/linux/namespaces").and_then(serde_json::Value::as_array_mut) {
            list.push(json!({"type": "time"}));
        }
        self.record.config.spec = Json::new(&document.to_string());
        Ok(())
    }

    fn finish(&mut self) -> Result<Started> {
        let pid = self.pid.ok_or_else(|| Error::new(Kind::Internal, "criu has not said which process it restored"))?;
        let pidfd = rung_sys::pidfd::open(pid).doing(|| "open the restored process")?;
        std::fs::remove_dir(self.entry.criu_root()).doing(|| "remove the directory of the root")?;
        let mut console = self.console.take();
        if let (Some(socket), Some(master)) = (&self.options.console_socket, &console) {
            sockets::send_console(socket, master)?;
            console = None;
        }
        if let Some(path) = &self.options.pid_file {
            create::write_pid_file(path, pid.as_raw())?;
        }
        Started::adopted(pid, pidfd, console)
    }
}

/// This program, in another mount namespace than its own.
struct Away {
    namespace: File,
    directory: OwnedFd,
}

impl Away {
    /// Notes where to return to.
    fn from_here() -> Result<Self> {
        let namespace = File::open("/proc/self/ns/mnt").doing(|| "open /proc/self/ns/mnt")?;
        let directory = open(".", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
        Ok(Self { namespace, directory })
    }

    fn begin() -> Result<Self> {
        let away = Self::from_here()?;
        namespace::leave(Namespace::Mount.flag()).doing(|| "make a mount namespace for criu")?;
        let root = open("/", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
        let change = Change { propagation: Some(Propagation::Slave), ..Change::default() };
        match mount::set_attributes(root.as_fd(), true, &change).doing(|| "cut the mount tree off from the host's") {
            Ok(()) => Ok(away),
            Err(error) => away.end().and(Err(error)),
        }
    }

    fn end(self) -> Result<()> {
        namespace::enter(self.namespace.as_fd(), Namespace::Mount.flag()).doing(|| "return from criu's mounts")?;
        nix::unistd::fchdir(&self.directory).doing(|| "return to the working directory")
    }
}
