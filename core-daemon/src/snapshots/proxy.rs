//! Snapshotters that are other programs, asked over gRPC by containerd's own service.
//!
//! ```text
//! <root>/snapshots/<number>/name     what the program calls the snapshot, where that is not `gantry/<number>`
//! ```
//!
//! The records are ours, as of every snapshotter; the program knows snapshots by number. It may have the snapshot that a
//! prepare is to become (the label `containerd.io/snapshot.ref`) from elsewhere: then it answers that it exists, and it is
//! looked for under the name that the program gave it. That is how layers come that nobody has to fetch or unpack; labels say
//! where the program finds them, see `image/origin.rs`.

use std::collections::BTreeMap;
use std::future::Future;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gantry_proto::containerd::services::snapshots::v1 as api;
use gantry_proto::containerd::services::snapshots::v1::snapshots_client::SnapshotsClient;
use gantry_proto::namespace::NAMESPACE_HEADER;
use hyper_util::rt::TokioIo;
use rung_sys::atomic_file;
use tokio::net::UnixStream;
use tokio::runtime::Handle;
use tonic::transport::{Channel, Endpoint};

use super::overlay::make;
use super::{Driver, Kind, Made, Mount, Unpacking, Usage};
use crate::config::ProxyPlugin;
use crate::error::{Doing, Error, Kind as ErrorKind, Result};
use crate::labels::{GC_ROOT, Labels, SNAPSHOT, SNAPSHOT_REF};

/// A program may fetch what it is asked for from far away.
const DEADLINE: Duration = Duration::from_secs(600);
/// Removing and cleaning up is tried again later where it takes longer: somebody may wait for a collection.
const REMOVAL: Duration = Duration::from_secs(10);
/// The namespace of our snapshots in the program: ours are told apart by number.
const NAMESPACE: &str = "gantry";

/// Asks a program.
pub struct Proxy {
    root: PathBuf,
    /// The program may be several snapshotters, told apart by name.
    name: String,
    client: SnapshotsClient<Channel>,
    runtime: Handle,
    plugin: ProxyPlugin,
}

impl Proxy {
    /// Asks the program that `plugin` names, when there is something to ask; it need not run yet. `root` is for what has
    /// to be remembered of it. Must be called from within a runtime.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn open(root: &Path, name: &str, plugin: &ProxyPlugin) -> Result<Self> {
        let snapshots = root.join("snapshots");
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(&snapshots).doing(|| format!("make {}", snapshots.display()))?;
        let address = plugin.address.clone();
        let connector = tower::service_fn(move |_| {
            let address = address.clone();
            async move { UnixStream::connect(address).await.map(TokioIo::new) }
        });
        // The name only fills the request's authority.
        let channel =
            Endpoint::from_static("http://snapshotter").timeout(DEADLINE).connect_with_connector_lazy(connector);
        let runtime = Handle::try_current().map_err(|error| Error::internal(error.to_string()))?;
        let (root, name) = (root.to_owned(), name.to_owned());
        Ok(Self { root, name, client: SnapshotsClient::new(channel), runtime, plugin: plugin.clone() })
    }

    /// One call, waited for on a thread of its own: the caller's may be one that must not wait.
    fn ask<T: Send, F>(&self, call: impl FnOnce(SnapshotsClient<Channel>) -> F + Send) -> Result<T>
    where
        F: Future<Output = Result<tonic::Response<T>, tonic::Status>> + Send,
    {
        let answered =
            std::thread::scope(|scope| scope.spawn(|| self.runtime.block_on(call(self.client.clone()))).join());
        let address = self.plugin.address.display();
        match answered {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => {
                let status = gantry_proto::status::Status::from(status);
                Err(Error::from(status).context(format!("snapshotter at {address}")))
            }
            Err(_) => Err(Error::internal(format!("snapshotter at {address}: the call was given up"))),
        }
    }

    /// What the program calls an active snapshot or a view.
    fn key(number: u64) -> String {
        format!("{NAMESPACE}/{number}/active")
    }

    /// What the program calls a committed snapshot.
    fn committed(&self, number: u64) -> Result<String> {
        let path = self.dir(number).join("name");
        match std::fs::read_to_string(&path) {
            Ok(name) => Ok(name),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(format!("{NAMESPACE}/{number}")),
            Err(error) => Err(error).doing(|| format!("read {}", path.display())),
        }
    }

    /// What the program has for a label `containerd.io/snapshot.ref`: it has that too, or is called so.
    fn find(&self, target: &str, parent: &str) -> Result<Option<String>> {
        let filters = [format!("labels.{SNAPSHOT_REF:?}"), "name".to_owned()];
        let filters = filters.map(|field| format!("{field}=={target},parent=={parent:?}")).to_vec();
        let request = api::ListSnapshotsRequest { filters, snapshotter: self.name.clone() };
        self.ask(|mut client| async move {
            let mut pages = client.list(of_namespace(request)).await?.into_inner();
            let mut found = None;
            while let Some(page) = pages.message().await? {
                // Not every program obeys filters.
                let is_it = |info: &api::Info| {
                    info.kind() == Kind::Committed
                        && info.parent == parent
                        && [Some(&info.name), info.labels.get(SNAPSHOT_REF)].contains(&Some(&target.to_owned()))
                };
                found = found.or(page.info.into_iter().find(is_it).map(|info| info.name));
            }
            Ok(tonic::Response::new(found))
        })
    }

    fn remove_from_program(&self, key: String) -> Result<()> {
        let request = api::RemoveSnapshotRequest { key, snapshotter: self.name.clone() };
        match self.ask(|mut client| async move { client.remove(soon(request)).await }) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }
}

fn of_namespace<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.metadata_mut().insert(NAMESPACE_HEADER, tonic::metadata::MetadataValue::from_static(NAMESPACE));
    request
}

/// The same, of which the answer is not waited for long.
fn soon<T>(message: T) -> tonic::Request<T> {
    let mut request = of_namespace(message);
    request.set_timeout(REMOVAL);
    request
}

fn inherited(labels: &Labels) -> Labels {
    let is_for_it = |key: &String| key.starts_with(SNAPSHOT) || key == SNAPSHOT_REF;
    let theirs = labels.iter().filter(|(key, _)| is_for_it(key)).map(|(key, value)| (key.clone(), value.clone()));
    // What we have a record of is not the program's to collect, should it be one that collects.
    theirs.chain([(GC_ROOT.to_owned(), NAMESPACE.to_owned())]).collect()
}

impl Driver for Proxy {
    fn root(&self) -> &Path {
        &self.root
    }

    fn create(&self, number: u64, kind: Kind, parents: &[u64], labels: &Labels) -> Result<Made> {
        let dir = self.dir(number);
        // Before the program has anything, so that a crash leaves what finds it.
        make(&dir, 0o700)?;
        let parent = parents.first().map(|parent| self.committed(*parent)).transpose()?.unwrap_or_default();
        let (key, labels, snapshotter) = (Self::key(number), inherited(labels), self.name.clone());
        let target = labels.get(SNAPSHOT_REF).cloned();
        let made = if kind == Kind::View {
            let request = api::ViewSnapshotRequest { snapshotter, key, parent: parent.clone(), labels };
            self.ask(|mut client| async move { client.view(of_namespace(request)).await }).map(drop)
        } else {
            let request = api::PrepareSnapshotRequest { snapshotter, key, parent: parent.clone(), labels };
            self.ask(|mut client| async move { client.prepare(of_namespace(request)).await }).map(drop)
        };
        match (made, target) {
            (Err(error), Some(target)) if error.kind() == ErrorKind::AlreadyExists => {
                let missing = || Error::not_found(format!("snapshotter has {target}, but does not list it"));
                let name = self.find(&target, &parent)?.ok_or_else(missing)?;
                atomic_file::write(&dir.join("name"), name.as_bytes(), 0o600).map_err(std::io::Error::from)?;
                Ok(Made::Committed)
            }
            (made, _) => made.map(|()| Made::Fresh),
        }
    }

    fn mounts(&self, number: u64, _kind: Kind, _parents: &[u64], _labels: &Labels) -> Result<Vec<Mount>> {
        let request = api::MountsRequest { key: Self::key(number), snapshotter: self.name.clone() };
        let answer = self.ask(|mut client| async move { client.mounts(of_namespace(request)).await })?;
        Ok(answer.mounts.into_iter().map(Into::into).collect())
    }

    fn commit(&self, number: u64, parents: &[u64], labels: &Labels) -> Result<()> {
        let name = self.committed(number)?;
        let parent = parents.first().map(|parent| self.committed(*parent)).transpose()?.unwrap_or_default();
        // A program that knows no parent at the commit gets none: it has it from the prepare.
        let parent = if self.capabilities().iter().any(|name| name == super::REBASE) { parent } else { String::new() };
        let request = api::CommitSnapshotRequest {
            name: name.clone(),
            key: Self::key(number),
            labels: inherited(labels),
            parent,
            snapshotter: self.name.clone(),
        };
        match self.ask(|mut client| async move { client.commit(of_namespace(request)).await }) {
            // Committed before, and the record of it was lost.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::AlreadyExists) => {
                let request = api::StatSnapshotRequest { key: name, snapshotter: self.name.clone() };
                self.ask(|mut client| async move { client.stat(of_namespace(request)).await })
                    .map_err(|_| error)
                    .map(drop)
            }
            other => other,
        }
    }

    fn damage(&self, number: u64, kind: Kind) -> Option<String> {
        let asked = (|| {
            let key = if kind == Kind::Committed { self.committed(number)? } else { Self::key(number) };
            let request = api::StatSnapshotRequest { key, snapshotter: self.name.clone() };
            self.ask(|mut client| async move { client.stat(of_namespace(request)).await })
        })();
        match asked {
            // A program that cannot be asked has lost nothing by that.
            Err(error) if error.kind() == ErrorKind::NotFound => Some(format!("the program lacks it: {error}")),
            _ => None,
        }
    }

    /// What stands on a snapshot the program stands on its own, whatever is lost.
    fn is_lost(&self, _number: u64) -> bool {
        false
    }

    fn usage(&self, number: u64) -> Result<Usage> {
        let usage = |key: String| {
            let request = api::UsageRequest { key, snapshotter: self.name.clone() };
            self.ask(|mut client| async move { client.usage(of_namespace(request)).await })
        };
        let answer = match usage(Self::key(number)) {
            Err(error) if error.kind() == ErrorKind::NotFound => usage(self.committed(number)?)?,
            other => other?,
        };
        let unsigned = |number: i64| u64::try_from(number).unwrap_or(0);
        Ok(Usage { size: unsigned(answer.size), inodes: unsigned(answer.inodes) })
    }

    fn remove(&self, number: u64) -> Result<()> {
        self.remove_from_program(Self::key(number))?;
        self.remove_from_program(self.committed(number)?)?;
        let dir = self.dir(number);
        rung_sys::beneath::remove(&dir).doing(|| format!("remove {}", dir.display()))
    }

    fn cleanup(&self) -> Result<()> {
        let request = api::CleanupRequest { snapshotter: self.name.clone() };
        match self.ask(|mut client| async move { client.cleanup(soon(request)).await }) {
            // Not every program has something to clean.
            Err(error) if error.kind() == ErrorKind::Unimplemented => Ok(()),
            other => other,
        }
    }

    fn unpacking(&self) -> Unpacking {
        Unpacking::Foreign
    }

    fn capabilities(&self) -> Vec<String> {
        self.plugin.capabilities.clone()
    }

    fn exports(&self) -> BTreeMap<String, String> {
        self.plugin.exports.clone()
    }
}
