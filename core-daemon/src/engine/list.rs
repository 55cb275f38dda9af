//! Listing containers. Nothing here asks a shim: what runs is known from the waits that are in place.

use gantry_proto::gantry::engine::v1 as api;
use gantry_proto::namespace::Namespace;
use gantry_proto::time;

use super::health::Health;
use super::{Ended, Engine, Known, Live, Record, start};
use crate::context::Context;
use crate::error::Result;
use crate::filter::Filter;
use crate::id::ContainerId;

/// How a container is now.
pub(super) struct Now {
    pub(super) state: api::State,
    pub(super) pid: u32,
    pub(super) started_at: Option<std::time::SystemTime>,
    pub(super) ended: Option<Ended>,
    pub(super) health: api::Health,
}

impl Engine {
    /// The running containers of a namespace, or all of them, newest first.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub fn list(&self, context: &Context, all: bool) -> Result<Vec<api::Container>> {
        let mut listed = Vec::new();
        for container in self.parts().containers.list(&context.namespace, &Filter::everything())? {
            let record = match Record::of(&container) {
                Ok(Some(record)) => record,
                Ok(None) => continue,
                Err(error) => {
                    tracing::error!(id = container.id, %error, "list containers");
                    continue;
                }
            };
            let known = Known { id: ContainerId::parse(&container.id)?, container, record };
            let now = self.now(&context.namespace, &known);
            // A container that is removed at its end is gone to people the moment it ends.
            let going = now.state == api::State::Exited && known.record.auto_remove;
            if !going && (all || now.is_up()) {
                listed.push(message(known, &now));
            }
        }
        listed.sort_by_key(|container| std::cmp::Reverse(container.created_at.map(|at| (at.seconds, at.nanos))));
        Ok(listed)
    }

    /// How a container is now.
    pub(super) fn now(&self, namespace: &Namespace, known: &Known) -> Now {
        let live = self.live().get(&(namespace.clone(), known.id.clone())).cloned();
        let record = &known.record;
        let ended = |ended: Ended| Now {
            // Whether it is about to be started again follows from what is recorded.
            state: match !record.stopped && record.restart.wants(ended.code, record.restarts) {
                true => api::State::Restarting,
                false => api::State::Exited,
            },
            pid: 0,
            started_at: Some(ended.started_at),
            ended: Some(ended),
            health: api::Health::None,
        };
        match live {
            Some(live) => match *live.ended.borrow() {
                None => running(&live),
                Some(end) => ended(end),
            },
            None => match record.ended {
                Some(end) => ended(end),
                None => {
                    Now { state: api::State::Created, pid: 0, started_at: None, ended: None, health: api::Health::None }
                }
            },
        }
    }
}

impl Now {
    /// The exit code that people see: that of a start that failed, where none has succeeded since.
    pub(super) fn exit_code(&self, record: &Record) -> u32 {
        match self.is_up() || record.error.is_empty() {
            true => self.ended.map_or(0, |ended| ended.code),
            false => record.error_code.into(),
        }
    }

    /// Whether people take it for running: it is, or will be again without their doing.
    pub(super) fn is_up(&self) -> bool {
        matches!(self.state, api::State::Running | api::State::Paused | api::State::Restarting)
    }
}

fn running(live: &Live) -> Now {
    Now {
        state: if start::is_paused(live) { api::State::Paused } else { api::State::Running },
        pid: live.task.pid(),
        started_at: Some(live.started_at),
        ended: None,
        health: live.health.as_ref().map_or(api::Health::None, Health::status),
    }
}

fn message(known: Known, now: &Now) -> api::Container {
    let Known { container, record, .. } = known;
    let code = now.exit_code(&record);
    api::Container {
        id: container.id,
        name: record.name,
        image: record.image,
        image_id: record.image_id,
        command: record.command,
        created_at: container.created_at,
        state: now.state.into(),
        pid: now.pid,
        started_at: now.started_at.map(time::timestamp),
        exit: now.ended.map(|ended| Ended { code, ..ended }).map(api::Exit::from),
        labels: container.labels,
        terminal: record.terminal,
        health: now.health.into(),
        mounts: record.binds.iter().filter_map(|bind| bind.split(':').next()).map(str::to_owned).collect(),
        network: network_name(record.host_network).to_owned(),
    }
}

/// What people call a container's network.
pub(super) fn network_name(is_host: bool) -> &'static str {
    if is_host { "host" } else { "none" }
}
