//! From a plan to a process that waits for nothing but `go`, and a record that says so.

use std::os::fd::AsFd as _;

use oci_spec::runtime::Spec;
use rung_sys::namespace::Namespace;

use super::alive::ProcessStat;
use super::create::{self, Options, complete, enter_resctrl};
use super::readiness::{self, Readiness};
use super::record::Record;
use super::sockets;
use super::store::{Draft, Entry};
use crate::cgroups::{self, Cgroup, Wanted};
use crate::error::{Doing as _, Error, Kind, Result};
use crate::hooks::HookState;
use crate::launch::{self, Answers, Launch, Started, gate};
use crate::log;
use crate::plan::InitPlan;
use crate::plan::extensions::is_filtered;
use crate::resctrl::Resctrl;

/// A container whose name is claimed, and whose cgroup is begun.
pub(super) struct Birth<'a> {
    pub(super) spec: &'a Spec,
    pub(super) plan: &'a mut InitPlan,
    pub(super) options: &'a Options,
    /// Made without root.
    pub(super) rootless: bool,
    pub(super) entry: &'a Entry,
    pub(super) cgroup: &'a mut Cgroup,
    /// What is still to be done to the cgroup.
    pub(super) wanted: &'a Wanted,
    pub(super) resctrl: Option<&'a mut Resctrl>,
    pub(super) record: &'a mut Record,
    pub(super) state: &'a HookState,
    /// Whether the process was let go on. Before that nobody else knows of the container.
    pub(super) begun: bool,
}

impl Birth<'_> {
    /// Carries it all out. On failure the process is gone, and the caller takes back everything else.
    pub(super) fn run(&mut self) -> Result<(Started, Option<Readiness>)> {
        let readiness = prepare_readiness(self.entry, self.plan, self.options)?;
        let gate = if self.options.gated { Some(gate::make(&self.entry.fifo())?) } else { None };
        let hooks = self.spec.hooks().as_ref();
        let filtered = is_filtered(self.spec);
        let launch = Launch { plan: self.plan, state: self.state, hooks, gate, rootless: self.rootless, filtered };
        let (spec, plan, entry) = (self.spec, &*self.plan, self.entry);
        let (rootless, wanted, begun) = (self.rootless, self.wanted, &mut self.begun);
        let provide = |cgroup: &mut Cgroup, cloned_into| {
            let way_in = finish_cgroup(cgroup.complete(wanted, cloned_into), cgroup, entry, plan, rootless)?;
            warn_of_escape(plan, cgroup);
            Ok(way_in)
        };
        let compile = || create::filter(spec).inspect(|_| *begun = true);
        let (mut started, listener) = launch::start_init(launch, self.cgroup, provide, compile)?;
        let answers = Answers { hooks, state: self.state, listener };
        self.settle(&mut started, &answers).inspect_err(|_| started.abort())?;
        Ok((started, readiness))
    }

    /// Answers what the process asks until it is ready, and lets it go.
    fn settle(&mut self, started: &mut Started, answers: &Answers<'_>) -> Result<()> {
        // The record is written while the process works, unless hooks or a terminal may still change what goes into it.
        let quiet = !self.plan.stops_for_runtime_hooks && !self.plan.process.terminal();
        let early = if quiet { Some(self.draft(started)?) } else { None };
        let renew = || {
            let renewed = self.cgroup.renew(self.wanted);
            finish_cgroup(renewed, self.cgroup, self.entry, self.plan, self.rootless)
        };
        started.converse(answers, renew).doing(|| launch::IN_INIT)?;
        self.cgroup.settled();
        if let Some(name) = &self.plan.extensions.delegated {
            let descended = self.cgroup.descend(name, started.pid, self.plan.cgroup_owner());
            descended.map_err(launch::cgroup_error).doing(|| format!("put the container into {name:?}"))?;
        }
        self.announce(started)?;
        // Whoever finds the record may join the container, so it is published only after the change of root.
        let draft = early.map_or_else(|| self.draft(started), Ok)?;
        draft.publish()?;
        if let Some(path) = &self.options.pid_file {
            create::write_pid_file(path, started.pid.as_raw())?;
        }
        started.go()
    }

    fn draft(&mut self, started: &Started) -> Result<Draft> {
        enter_resctrl(self.resctrl.as_deref_mut(), &[started.pid], self.record)?;
        let stat = ProcessStat::read(started.pid)
            .ok_or_else(|| Error::new(Kind::Internal, "the container's process is gone before it was ready"))?;
        complete(self.record, started.pid, stat.start_time, self.cgroup);
        self.entry.draft(self.record)
    }

    /// Hands over what others wait for.
    fn announce(&self, started: &Started) -> Result<()> {
        if let Some(socket) = &self.options.console_socket {
            let console = started.console.as_ref().ok_or_else(|| Error::new(Kind::Internal, "no terminal was made"))?;
            sockets::send_console(socket, console)?;
        } else if let Some(console) = &started.console {
            // Before the program writes its first line.
            rung_sys::tty::clear_newline_translation(console.as_fd()).doing(|| "set the terminal up")?;
        }
        // An annotation may name one more.
        let receivers = self.options.pidfd_socket.iter().chain(&self.plan.extensions.pidfd_receiver);
        for socket in receivers {
            sockets::send_pidfd(socket, &started.pidfd, "standard")?;
        }
        Ok(())
    }
}

/// The socket must be there before the program is; a gated program waits for `start` to make it.
fn prepare_readiness(entry: &Entry, plan: &mut InitPlan, options: &Options) -> Result<Option<Readiness>> {
    let Some(manager) = &options.readiness else { return Ok(None) };
    let directory = entry.readiness();
    readiness::make_directory(&directory)?;
    let bound = (!options.gated).then(|| Readiness::bind(&directory, manager.clone())).transpose()?;
    plan.show_readiness(directory);
    Ok(bound)
}

/// Without a pid namespace and without a cgroup nothing holds the processes of a container together.
fn warn_of_escape(plan: &InitPlan, cgroup: &Cgroup) {
    if !plan.namespaces.makes(Namespace::Pid) && cgroup.paths().is_empty() {
        log::warning(
            "the container has neither a cgroup nor a pid namespace of its own. Such configuration is strongly discouraged: \
             its processes cannot be told from others, and `delete` may leave some of them running",
        );
    }
}

/// What is still to be done to a cgroup once it is `made`.
fn finish_cgroup(
    made: cgroups::Result<cgroups::Entry>,
    cgroup: &Cgroup,
    entry: &Entry,
    plan: &InitPlan,
    rootless: bool,
) -> Result<cgroups::Entry> {
    let way_in = made.map_err(launch::cgroup_not_made)?;
    cgroup.mark(entry.path());
    plan.cgroup_owner().map_or(Ok(()), |owner| delegate(cgroup, owner, rootless))?;
    Ok(way_in)
}

/// Gives the cgroup to the container's user. A runtime without rights over other ids cannot, and then that user can
/// make no cgroups.
fn delegate(cgroup: &Cgroup, owner: u32, rootless: bool) -> Result<()> {
    match cgroup.delegate(owner) {
        Err(error) if rootless && error.is_denied() => Ok(()),
        other => other.map_err(launch::cgroup_error),
    }
}
