//! A plugin's connection from its first byte to its last, and the calls that come over it.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use gantry_proto::nri::pkg::api::v1alpha1 as api;
use gantry_proto::status::{Code, Status};
use gantry_proto::ttrpc::server::{decode, unknown};
use gantry_proto::ttrpc::{Client, Context, Service, multiplex};
use prost::Message as _;
use tokio::net::UnixStream;
use tokio::sync::oneshot;

use super::launch::Launched;
use super::plugin::{Name, Plugin, Welcome};
use crate::cri::Cri;
use crate::error::{Doing as _, Error, Kind, Result};

/// Numbers of the connections over a plugin's socket: the one over which it is called, and the one over which it calls.
const TO_PLUGIN: u32 = 1;
const FROM_PLUGIN: u32 = 2;
/// What a plugin calls.
const SERVICE: &str = "nri.pkg.api.v1alpha1.Runtime";
/// How long a plugin may take to note that the daemon stops.
pub(super) const FAREWELL: Duration = Duration::from_secs(1);
/// Most changes that a plugin may ask for at once.
const MOST_UPDATES: usize = 4096;

/// Serves a plugin to its end. `ready` is dropped once it is registered, or cannot be.
pub(super) async fn attend(
    cri: Cri,
    socket: UnixStream,
    mut launched: Option<Launched>,
    ready: Option<oneshot::Sender<()>>,
) {
    let pid = socket.peer_cred().ok().and_then(|peer| peer.pid());
    let (tell, registered) = oneshot::channel();
    let name = launched.as_ref().map(|launched| launched.name.clone());
    let shown = name.as_ref().map_or_else(|| "external".to_owned(), Name::to_string);
    let service = Runtime { cri: cri.clone(), given: name, tell: Mutex::new(Some(tell)), name: OnceLock::new() };
    let (client, work) = multiplex(socket, TO_PLUGIN, FROM_PLUGIN, Arc::new(service));
    let config = launched.as_mut().map(|launched| std::mem::take(&mut launched.config)).unwrap_or_default();
    let served = async {
        let plugin = match cri.admit(client, registered, config).await {
            Ok(plugin) => plugin,
            Err(error) => {
                return tracing::warn!(plugin = shown, pid, %error, "plugin of the node resource interface is refused");
            }
        };
        tracing::info!(plugin = %plugin.name, pid, "plugin of the node resource interface is registered");
        drop(ready);
        tokio::select! {
            () = plugin.client.closed() => {}
            () = plugin.dropped.cancelled() => {}
            () = cri.parts().stopping.cancelled() => plugin.shut_down(FAREWELL).await,
        }
        cri.nri().remove(&plugin);
        plugin.dropped.cancel();
        tracing::info!(plugin = %plugin.name, pid, "plugin of the node resource interface is gone");
    };
    // The client is told when the socket closes, and `served` ends then.
    let carried = async {
        if let Err(error) = work.await {
            tracing::debug!(%error, pid, "connection of a plugin");
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = served => {}
        () = carried => {}
    }
    if let Some(launched) = launched {
        launched.end().await;
    }
}

impl Cri {
    /// Registers a plugin that has connected.
    async fn admit(
        &self,
        client: Client,
        registered: oneshot::Receiver<Result<Name>>,
        config: String,
    ) -> Result<Arc<Plugin>> {
        let nri = self.nri();
        let (registration, patience) = (nri.registration(), nri.patience());
        let late = |_| Error::new(Kind::DeadlineExceeded, format!("has not registered within {registration:?}"));
        let name = tokio::select! {
            name = tokio::time::timeout(registration, registered) => {
                name.map_err(late)?.map_err(|_| Error::unavailable("has closed its connection"))??
            }
            () = client.closed() => return Err(Error::unavailable("has closed its connection")),
        };
        let shown = name.to_string();
        let plugin = Plugin::configure(name, client, Welcome { config, registration, patience }).await;
        let plugin = Arc::new(plugin.doing(|| format!("plugin {shown}"))?);
        let updates = {
            let _alone = nri.alone().await?;
            let (pods, containers) = self.nri_everything().await?;
            let ids: Vec<String> = containers.iter().map(|container| container.id.clone()).collect();
            let told = plugin.synchronize(pods, containers, registration).await;
            let updates = told.doing(|| format!("plugin {shown}"))?;
            nri.add(plugin.clone());
            self.nri_is_told(ids);
            updates
        };
        // In the background: a container may have its turn elsewhere for long.
        self.nri_apply_later(shown, updates, Vec::new());
        Ok(plugin)
    }
}

/// What a plugin may call.
struct Runtime {
    cri: Cri,
    /// Its name, where the daemon has given it one.
    given: Option<Name>,
    /// Tells under which name it has registered.
    tell: Mutex<Option<oneshot::Sender<Result<Name>>>>,
    name: OnceLock<Name>,
}

impl Service for Runtime {
    async fn call(&self, service: &str, method: &str, payload: &[u8], _: &Context) -> Result<Vec<u8>, Status> {
        match (service, method) {
            (SERVICE, "RegisterPlugin") => self.register(&decode(payload)?),
            (SERVICE, "UpdateContainers") => self.update(decode(payload)?).await,
            _ => Err(unknown(service, method)),
        }
    }
}

impl Runtime {
    fn register(&self, request: &api::RegisterPluginRequest) -> Result<Vec<u8>, Status> {
        let tell = self.tell.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(tell) = tell else {
            return Err(Status::new(Code::FailedPrecondition, "the plugin has registered already"));
        };
        let name = match &self.given {
            Some(name) => Ok(name.clone()),
            None => Name::new(&request.plugin_idx, &request.plugin_name),
        };
        let answer = match &name {
            Ok(name) => {
                let _ = self.name.set(name.clone());
                Ok(api::Empty {}.encode_to_vec())
            }
            Err(error) => Err(Status::invalid(error.to_string())),
        };
        // Fails where it has taken too long.
        let _ = tell.send(name);
        answer
    }

    async fn update(&self, request: api::UpdateContainersRequest) -> Result<Vec<u8>, Status> {
        let Some(name) = self.name.get() else {
            return Err(Status::new(Code::FailedPrecondition, "the plugin has not registered"));
        };
        if request.update.len() + request.evict.len() > MOST_UPDATES {
            return Err(Status::new(Code::ResourceExhausted, format!("more than {MOST_UPDATES} updates at once")));
        }
        // To its end, also where the plugin does not wait for it.
        let (cri, plugin) = (self.cri.clone(), name.to_string());
        let work = tokio::spawn(async move { cri.nri_apply(&plugin, request.update, request.evict).await });
        let failed = work.await.map_err(|error| Status::new(Code::Internal, error.to_string()))?;
        Ok(api::UpdateContainersResponse { failed }.encode_to_vec())
    }
}
