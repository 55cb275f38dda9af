//! What `gantry` asks for: containers with names, logs and exit codes, made from images in one step.
//!
//! A container is a container record like any other client's; what only the engine knows of it is an extension of that
//! record. While it runs, the engine waits for its end in the shim, so an exit is never missed: not by a lost event, and
//! not by a daemon that was away, because the shim keeps the exit until it is deleted.

mod archives;
mod attach;
mod binds;
mod create;
mod etc;
mod events;
mod exec;
mod extras;
mod files;
mod health;
mod history;
mod images;
mod info;
mod inspect;
mod instructions;
mod list;
mod logs;
mod make;
mod names;
mod record;
mod remove;
mod restart;
mod restore;
mod run;
mod start;
mod stop;
mod turns;
mod update;
mod wishes;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use gantry_proto::containerd::services::containers::v1::Container;
use gantry_proto::namespace::Namespace;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use attach::{Input, Output};
pub use create::Created;
use names::Names;
pub use record::Ended;
use record::Record;

use crate::config::Config;
use crate::context::Context;
use crate::error::{Error, Kind, Result};
use crate::events::Events;
use crate::gc::Gc;
use crate::id::ContainerId;
use crate::image::Images;
use crate::records::Containers;
use crate::snapshots::Snapshotters;
use crate::storage::logs::{self as stored, Logs};
use crate::tasks::{Task, Tasks};

/// The engine; clones are the same.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

/// Where the engine keeps what outlives a reboot, below the daemon's root.
pub const DIRECTORY: &str = "engine";

/// What the engine is made of.
pub struct Parts {
    /// The daemon's configuration.
    pub config: Config,
    /// Container records.
    pub containers: Containers,
    /// Tasks.
    pub tasks: Tasks,
    /// Images.
    pub images: Images,
    /// Where root file systems come from.
    pub snapshotters: Snapshotters,
    /// Frees what nothing refers to any more.
    pub gc: Gc,
    /// Where logs are, and what they may take together.
    pub logs: Logs,
    /// Where it is told what happens.
    pub events: Events,
    /// Cancelled when the daemon stops; sessions end then, containers do not.
    pub stopping: CancellationToken,
}

struct Shared {
    parts: Parts,
    names: Names,
    live: Mutex<HashMap<Key, Arc<Live>>>,
    turns: turns::Turns,
    journal: Arc<events::Journal>,
    cap: logs::Cap,
    host: create::Host,
}

type Key = (Namespace, ContainerId);

/// A container whose process runs, or has just ended.
struct Live {
    task: Arc<Task>,
    started_at: SystemTime,
    /// How it is, where that is looked at.
    health: Option<health::Health>,
    /// Set once its start has been told of.
    told: watch::Sender<bool>,
    ended: watch::Sender<Option<Ended>>,
    /// It is about to be started again: its end is followed neither by its removal nor by a restart of its policy.
    goes_on: AtomicBool,
    /// Set once everything that follows from the end is done.
    settled: watch::Sender<bool>,
}

/// A container of the engine: its record, and the part only the engine reads.
struct Known {
    id: ContainerId,
    container: Container,
    record: Record,
}

impl Engine {
    /// An engine that knows no containers yet; [`Engine::restore`] finds them.
    ///
    /// # Errors
    /// When its directories cannot be made.
    pub fn new(parts: Parts) -> Result<Self> {
        let host = create::Host::look();
        let (names, live, turns) = (Names::default(), Mutex::default(), turns::Turns::default());
        let journal = Arc::new(events::Journal::default());
        let seen = journal.clone();
        parts.events.observe(move |envelope| seen.observe(envelope));
        let cap = logs::Cap::new(parts.logs.clone());
        let engine = Self { shared: Arc::new(Shared { parts, names, live, turns, journal, cap, host }) };
        engine.make_directories()?;
        Ok(engine)
    }

    fn make_directories(&self) -> Result<()> {
        use std::os::unix::fs::DirBuilderExt as _;
        for dir in [self.root(), self.sockets()] {
            let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir);
            crate::error::Doing::doing(made, || format!("make {}", dir.display()))?;
        }
        Ok(())
    }

    fn parts(&self) -> &Parts {
        &self.shared.parts
    }

    fn live(&self) -> MutexGuard<'_, HashMap<Key, Arc<Live>>> {
        self.shared.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The container's run that is going on, if one is.
    fn running(&self, namespace: &Namespace, id: &ContainerId) -> Option<Arc<Live>> {
        let live = self.live().get(&(namespace.clone(), id.clone())).cloned()?;
        let runs = live.ended.borrow().is_none();
        runs.then_some(live)
    }

    /// Where what outlives a reboot is kept of containers, such as logs.
    fn root(&self) -> PathBuf {
        self.parts().config.root.join(DIRECTORY)
    }

    fn directory(&self, namespace: &Namespace, id: &ContainerId) -> PathBuf {
        self.root().join(namespace.as_str()).join(id.as_str())
    }

    /// The container's log.
    fn log_path(&self, namespace: &Namespace, id: &ContainerId) -> PathBuf {
        self.directory(namespace, id).join(stored::NAME)
    }

    /// Where the sockets are on which shims let clients attach. The names are short, because a socket's path must be.
    fn sockets(&self) -> PathBuf {
        self.parts().config.state.join("attach")
    }

    /// The attach socket of a container's own process.
    fn socket(&self, id: &ContainerId) -> PathBuf {
        self.sockets().join(id.as_str().get(..SOCKET_NAME).unwrap_or(id.as_str()))
    }

    /// The id of the container that `reference` names, where it names one.
    pub fn id_of(&self, context: &Context, reference: &str) -> Option<String> {
        self.find(context, reference).ok().map(|known| known.id.to_string())
    }

    /// The container that `reference` names: by name, by id, or by a prefix of an id that fits no other.
    fn find(&self, context: &Context, reference: &str) -> Result<Known> {
        let id = self.shared.names.resolve(&context.namespace, reference)?;
        self.known(&context.namespace, &id)
            .map_err(|error| if error.kind() == Kind::NotFound { missing(reference) } else { error })
    }

    /// The container of this id, as it is recorded now.
    fn known(&self, namespace: &Namespace, id: &ContainerId) -> Result<Known> {
        let container = self.parts().containers.get(namespace, id).inspect_err(|error| {
            // Another client removed it.
            if error.kind() == Kind::NotFound {
                self.shared.names.forget(namespace, id);
            }
        })?;
        let record = Record::of(&container)?.ok_or_else(|| missing(id.as_str()))?;
        Ok(Known { id: id.clone(), container, record })
    }

    /// Frees a name whose container another client has removed.
    fn free_if_gone(&self, namespace: &Namespace, name: &str) {
        if let Ok(holder) = self.shared.names.resolve(namespace, name) {
            let _ = self.known(namespace, &holder);
        }
    }
}

fn missing(reference: &str) -> Error {
    Error::not_found(format!("no such container: {reference}"))
}

/// Characters of an id in the name of its socket; ids are random, so these tell them apart.
const SOCKET_NAME: usize = 16;
