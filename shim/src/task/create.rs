//! Create: mounts, standard streams, `rung create`.

use std::ffi::OsString;
use std::sync::atomic::Ordering;

use gantry_proto::containerd::events::{TaskCreate, TaskIo};
use gantry_proto::containerd::task::v3::CreateTaskRequest;
use rung_sys::process::Pid;

use crate::arguments;
use crate::bundle::{self, Config};
use crate::io::terminal::Console;
use crate::io::{Io, Opened, Owner, Stdio};
use crate::reaper::Reaper;
use crate::rung::{Ends, flag};
use crate::stats::cgroup::Cgroup;
use crate::task::Container;
use crate::{Doing, Result, oom, rootfs};

/// What Start needs where it restores from a checkpoint instead of starting.
#[derive(Debug)]
pub struct Restore {
    pub(super) checkpoint: String,
    pub(super) ends: Ends,
    pub(super) console: Option<Console>,
}

impl Container {
    /// Makes the container; its first process waits for Start. What was done is undone where it fails.
    ///
    /// # Errors
    /// Of mounting, of opening the streams, and what the runtime says.
    pub async fn create(&mut self, request: CreateTaskRequest) -> Result<u32> {
        let root = self.bundle.join("rootfs");
        rootfs::mount_all(&request.rootfs, &root)?;
        let made = self.make(&request).await;
        if let Err(error) = made {
            self.init.io = None;
            if !request.rootfs.is_empty() {
                rootfs::unmount(&root);
            }
            return Err(error.context(format_args!("create container {}", self.id)));
        }
        let stdio = &self.init.stdio;
        let io = TaskIo {
            stdin: stdio.stdin.clone(),
            stdout: stdio.stdout.clone(),
            stderr: stdio.stderr.clone(),
            terminal: stdio.terminal,
        };
        let event = TaskCreate {
            container_id: self.id.clone(),
            bundle: request.bundle,
            rootfs: request.rootfs,
            io: Some(io),
            checkpoint: request.checkpoint,
            pid: self.init.wire_pid(),
        };
        self.shim.events.publish("/tasks/create", &event);
        if self.init.pid > 0 {
            self.claim("", self.init.pid);
        }
        Ok(self.init.wire_pid())
    }

    /// Undoes a Create that was stopped half-way: the client went away, or its time ran out.
    ///
    /// # Errors
    /// When the runtime cannot delete the container, which is still there then.
    pub async fn abandon(&mut self) -> Result<()> {
        self.init.io = None;
        self.init.starting = false;
        self.restore = None;
        let deleted = self.delete_by_runtime().await;
        // Whoever cannot end the container at least holds nobody's layers.
        rootfs::unmount(&self.bundle.join("rootfs"));
        deleted.inspect_err(|_| self.keep())
    }

    /// Notes that the runtime could not delete what a Create has made, and ends the process: the container stays known, and
    /// with it this shim, until somebody's Delete succeeds.
    pub(super) fn keep(&mut self) {
        self.left = true;
        if self.init.pid == 0 {
            // There is one unless the runtime was stopped before it had made it.
            let made = bundle::read_pid(&self.bundle.join("init.pid")).unwrap_or(0);
            self.init.pid = if Reaper::collects(made) { made } else { 0 };
        }
        if self.init.is_alive() && !self.init_is_gone {
            self.claim("", self.init.pid);
            // Nothing else may have the number.
            if Reaper::collects(self.init.pid) {
                let _ = rung_sys::signal::send(Pid::from_raw(self.init.pid), nix::libc::SIGKILL);
            }
        }
    }

    /// Whether something is left of a Create that failed.
    pub fn has_leftovers(&self) -> bool {
        self.left
    }

    async fn make(&mut self, request: &CreateTaskRequest) -> Result<()> {
        // Nobody shall take the process of an earlier attempt for that of this one.
        let _ = std::fs::remove_file(self.bundle.join("init.pid"));
        self.private_pids = Config::read(&self.bundle)?.has_private_pids();
        self.options.save(&self.bundle)?;
        self.init.stdio = Stdio {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        let Opened { ends, console, io } = self.open_io(&self.init.stdio).await?;
        self.init.io = Some(io);
        if !request.checkpoint.is_empty() {
            self.restore = Some(Restore { checkpoint: request.checkpoint.clone(), ends, console });
            return Ok(());
        }
        let _expecting = self.shim.reaper.expect();
        let mut arguments = arguments!["create"];
        self.init_arguments(&mut arguments, console.as_ref());
        arguments.push(OsString::from(&self.id));
        self.init.starting = true;
        let made = self.run(&arguments, ends).await;
        self.init.starting = false;
        self.take_made(made, console).await
    }

    /// Takes over the container that the runtime was to make; on failure nothing of it stays. A runtime that reports an
    /// error itself has cleaned up, and is not asked to delete: a container of that name may then be somebody else's.
    pub(super) async fn take_made(&mut self, made: Result<()>, console: Option<Console>) -> Result<()> {
        if let Err(error) = made {
            if error.is_cut_short() {
                self.force_delete().await;
            }
            return Err(error);
        }
        let taken = self.take_init(console);
        if taken.is_err() {
            self.force_delete().await;
        }
        taken
    }

    /// The arguments that `create` and `restore` have in common.
    pub(super) fn init_arguments(&self, arguments: &mut Vec<OsString>, console: Option<&Console>) {
        arguments.extend(arguments!["--bundle", &self.bundle, "--pid-file", self.bundle.join("init.pid")]);
        if let Some(console) = console {
            arguments.extend(arguments!["--console-socket", console.path()]);
        }
        flag(arguments, self.options.no_pivot_root, "--no-pivot");
        // Only `create` knows the flag: a restored process has the keyring of its image.
        flag(arguments, self.options.no_new_keyring && self.restore.is_none(), "--no-new-keyring");
    }

    /// Takes over what the runtime has made: the terminal, the process, its cgroup.
    fn take_init(&mut self, console: Option<Console>) -> Result<()> {
        let master = console.map(Console::receive).transpose()?;
        self.init.pid = bundle::read_pid(&self.bundle.join("init.pid"))?;
        if let Some(io) = &mut self.init.io {
            io.begin(master)?;
        }
        self.cgroup = Cgroup::of(self.init.pid);
        let (events, id, killed) = (self.shim.events.clone(), self.id.clone(), self.oom_killed.clone());
        let report = move || {
            killed.store(true, Ordering::Relaxed);
            super::exit::publish_oom(&events, &id);
        };
        self.oom = self.cgroup.as_ref().and_then(|cgroup| oom::Watch::start(cgroup, report));
        Ok(())
    }

    /// Opens the standard streams of a process of this container.
    pub(super) async fn open_io(&self, stdio: &Stdio) -> Result<Opened> {
        let mut opened = self.open_streams(stdio)?;
        opened.io.logger_ready().await.doing(|| "start output")?;
        Ok(opened)
    }

    /// The same without waiting for a logger program.
    pub(super) fn open_streams(&self, stdio: &Stdio) -> Result<Opened> {
        let owner = Owner {
            namespace: &self.shim.setting.namespace,
            id: &self.id,
            bundle: &self.bundle,
            uid: self.options.io_uid,
            gid: self.options.io_gid,
            reaper: &self.shim.reaper,
            streams: &self.shim.streams,
            socket: &self.shim.setting.socket,
        };
        Io::open(stdio, &owner)
    }
}
