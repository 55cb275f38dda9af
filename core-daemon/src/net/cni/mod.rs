//! The container network interface: programs that connect a network namespace, called as its specification 1.1 says.
//!
//! What was begun is written down before the first plugin runs, and what was answered after the last, so a removal
//! always finds what there is to remove: after a crash, after a reboot, after a change of the configuration.

mod cache;
mod capabilities;
mod network;
mod plugin;
mod result;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

use cache::{Cache, Entry};
pub use capabilities::{Bandwidth, Capabilities, Port};
use network::Network;
use plugin::Call;

use crate::blocking::blocking;
use crate::config;
use crate::error::{Doing as _, Error, Kind, Result};
use crate::net::namespaces::is_bound;

/// The networks of this machine.
#[derive(Debug, Clone)]
pub struct Cni {
    config: config::Cni,
    others: Arc<Mutex<Vec<Source>>>,
    cache: Cache,
}

/// Where networks are configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// A directory of configurations.
    pub dir: PathBuf,
    /// How many of them are used; 0: all.
    pub max: usize,
}

/// A container that is connected.
#[derive(Debug, Clone, Default)]
pub struct Attachment {
    /// Its id.
    pub container: String,
    /// Its network namespace.
    pub netns: PathBuf,
    /// `KEY=VALUE` pairs for the plugins, joined by `;`.
    pub args: String,
    /// What plugins are told that can do something about it.
    pub capabilities: Map<String, Value>,
}

impl Cni {
    /// The networks that `config` describes, and those that some containers have instead.
    pub fn new(config: config::Cni, others: Vec<Source>) -> Self {
        let cache = Cache::new(&config.cache_dir);
        Self { config, others: Arc::new(Mutex::new(others)), cache }
    }

    /// Has these in place of those that some containers had until now; what is connected stays so.
    pub fn set_others(&self, others: Vec<Source>) {
        *self.others.lock().unwrap_or_else(PoisonError::into_inner) = others;
    }

    fn others(&self) -> Vec<Source> {
        self.others.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The networks of containers that have no others.
    pub fn usual(&self) -> Source {
        Source { dir: self.config.conf_dir.clone(), max: self.config.max_networks }
    }

    /// Connects a container to all networks of `source`, and returns its addresses, those of the first network first. On failure
    /// everything that was connected is taken back.
    ///
    /// # Errors
    /// `Unavailable` where no network is configured, `Canceled` where it was given up while a plugin ran, else what the
    /// plugin says.
    pub async fn connect(
        &self,
        source: &Source,
        attachment: &Attachment,
        given_up: &CancellationToken,
    ) -> Result<Vec<String>> {
        let networks = source.networks().await?;
        if networks.is_empty() {
            return Err(source.unconfigured());
        }
        let calls = networks.iter().enumerate().map(|(number, network)| {
            let interface = format!("eth{number}");
            async move { self.add(network, attachment, &interface, given_up).await }
        });
        let mut results = Vec::new();
        if self.config.serially {
            for call in calls {
                results.push(call.await);
                if results.last().is_some_and(Result::is_err) {
                    break;
                }
            }
        } else {
            results = futures_util::future::join_all(calls).await;
        }
        match results.into_iter().collect::<Result<Vec<_>>>() {
            Ok(results) => Ok(results.iter().flat_map(result::addresses).collect()),
            Err(error) => {
                if let Err(left) = self.disconnect(&attachment.container).await {
                    tracing::warn!(container = attachment.container, error = %left, "take back a network");
                }
                Err(error)
            }
        }
    }

    /// Disconnects a container from everything it was connected to. May be repeated.
    ///
    /// # Errors
    /// What plugins say, all of them; what could not be removed is found by a repeat.
    pub async fn disconnect(&self, container: &str) -> Result<()> {
        let (cache, id) = (self.cache.clone(), container.to_owned());
        let entries = blocking(move || cache.of(&id)).await?;
        let mut errors = Vec::new();
        for entry in entries.iter().rev() {
            if let Err(error) = self.delete(entry).await {
                errors.push(error);
            }
        }
        together(errors)
    }

    /// Whether networks of `source` can be made: one is configured, and its plugins say that they are ready.
    ///
    /// # Errors
    /// `Unavailable` saying what is missing.
    pub async fn status(&self, source: &Source) -> Result<()> {
        let networks = source.networks().await?;
        if networks.is_empty() {
            return Err(source.unconfigured());
        }
        for network in &networks {
            for config in &network.plugins {
                let program = self.program(config)?;
                if network::at_least(&network.version, "1.1.0") {
                    let call = Call { command: "STATUS", container: "", netns: String::new(), interface: "", args: "" };
                    self.call(&program, &call, &request(network, config, &Map::new(), &Value::Null)).await?;
                }
            }
        }
        Ok(())
    }

    /// Asks whether a container's networks are as they were made.
    ///
    /// # Errors
    /// What the plugin says.
    pub async fn check(&self, container: &str) -> Result<()> {
        let (cache, id) = (self.cache.clone(), container.to_owned());
        for entry in blocking(move || cache.of(&id)).await? {
            let network = entry.network()?;
            if network.disable_check || !network::at_least(&network.version, "0.4.0") {
                continue;
            }
            for config in &network.plugins {
                self.call_for(&entry, &network, config, "CHECK").await?;
            }
        }
        Ok(())
    }

    /// Removes what belongs to containers that are not `valid`, and tells `left` of those that still have something. Where
    /// the networks are ours alone, plugins are told which containers there are, so that they remove what only they know
    /// of.
    ///
    /// # Errors
    /// Where what was written down cannot be read.
    pub async fn collect(&self, valid: impl Fn(&str) -> bool, left: impl Fn(String)) -> Result<()> {
        let cache = self.cache.clone();
        let (entries, lost) = blocking(move || cache.all()).await?;
        let (kept, stale): (Vec<Entry>, Vec<Entry>) = entries.into_iter().partition(|entry| valid(&entry.container_id));
        for entry in stale {
            let (container, network) = (&entry.container_id, &entry.network_name);
            tracing::info!(container, network, "network of nobody; removing it");
            if let Err(error) = self.delete(&entry).await {
                tracing::warn!(container, network, %error, "network of nobody is not removed");
                left(entry.container_id);
            }
        }
        for network in self.collected().await {
            if network.disable_gc || !network::at_least(&network.version, "1.1.0") {
                continue;
            }
            // What cannot be read may be of a container that runs: its addresses are not for others.
            if lost.iter().any(|name| name.starts_with(&format!("{}-", network.name))) {
                continue;
            }
            let of = kept.iter().filter(|entry| entry.network_name == network.name);
            let attachments: Vec<Value> =
                of.map(|entry| json!({"containerID": entry.container_id, "ifname": entry.if_name})).collect();
            for config in &network.plugins {
                let mut request = request(&network, config, &Map::new(), &Value::Null);
                request["cni.dev/valid-attachments"] = json!(attachments);
                // The name it had while the specification was made.
                request["cni.dev/attachments"] = json!(attachments);
                let call = Call { command: "GC", container: "", netns: String::new(), interface: "", args: "" };
                let called = match self.program(config) {
                    Ok(program) => self.call(&program, &call, &request).await.map(drop),
                    Err(error) => Err(error),
                };
                if let Err(error) = called {
                    tracing::warn!(network = network.name, %error, "tell a plugin which containers there are");
                }
            }
        }
        Ok(())
    }

    /// The networks whose plugins are told what there is, each once.
    async fn collected(&self) -> Vec<Network> {
        if self.config.collect { self.networks().await } else { Vec::new() }
    }

    /// All that are configured, each once.
    async fn networks(&self) -> Vec<Network> {
        let mut all: Vec<Network> = Vec::new();
        for source in self.others().into_iter().chain([self.usual()]) {
            match source.networks().await {
                Ok(mut networks) => {
                    networks.retain(|network| all.iter().all(|known| known != network));
                    all.append(&mut networks);
                }
                // Those of one handler keep nobody from the others.
                Err(error) => tracing::warn!(%error, "networks of a handler cannot be read"),
            }
        }
        all
    }

    /// The configurations that are used, as people look at them.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub async fn describe(&self) -> Result<Value> {
        let networks = self.usual().networks().await?;
        let networks: Vec<Value> = networks
            .iter()
            .enumerate()
            .map(|(number, network)| {
                json!({
                    "Config": {"Name": network.name, "CNIVersion": network.version, "Plugins": network.plugins},
                    "IFName": format!("eth{number}"),
                })
            })
            .collect();
        Ok(json!({
            "PluginDirs": self.config.bin_dirs, "PluginConfDir": self.config.conf_dir,
            "PluginMaxConfNum": self.config.max_networks, "Prefix": "eth", "Networks": networks,
        }))
    }

    /// What plugins answered when a container was connected, as people look at it. It waits for the disk.
    ///
    /// # Errors
    /// When the directory of answers cannot be read.
    pub fn describe_container(&self, container: &str) -> Result<Value> {
        let entries = self.cache.of(container)?;
        let interfaces: Map<String, Value> =
            entries.iter().map(|entry| (entry.if_name.clone(), result::shown(&entry.result, &entry.if_name))).collect();
        Ok(json!({ "Interfaces": interfaces }))
    }

    async fn add(
        &self,
        network: &Network,
        attachment: &Attachment,
        interface: &str,
        given_up: &CancellationToken,
    ) -> Result<Value> {
        self.keep(network, attachment, interface, Value::Null).await?;
        let call = Call {
            command: "ADD",
            container: &attachment.container,
            netns: attachment.netns.display().to_string(),
            interface,
            args: &attachment.args,
        };
        let mut result = Value::Null;
        for config in &network.plugins {
            let request = request(network, config, &attachment.capabilities, &result);
            let program = self.program(config)?;
            // Only a plugin is left alone: what is being written down is there before anybody looks for what to undo.
            let answer = tokio::select! {
                answer = self.call(&program, &call, &request) => answer,
                () = given_up.cancelled() => Err(Error::new(Kind::Canceled, "nobody waits for it any more")),
            };
            result = answer.doing(|| format!("network {}", network.name))?;
        }
        self.keep(network, attachment, interface, result.clone()).await?;
        Ok(result)
    }

    async fn keep(&self, network: &Network, attachment: &Attachment, interface: &str, result: Value) -> Result<()> {
        let (cache, network, attachment) = (self.cache.clone(), network.clone(), attachment.clone());
        let interface = interface.to_owned();
        blocking(move || cache.put(&network, &attachment, &interface, &result)).await
    }

    /// Undoes one connection, from the last plugin to the first. All are asked, whatever one of them says.
    async fn delete(&self, entry: &Entry) -> Result<()> {
        let network = match entry.is_lost() {
            false => Some(entry.network()?),
            // As it is now is the best there is.
            true => self.networks().await.into_iter().find(|network| network.name == entry.network_name),
        };
        if let Some(network) = network {
            let mut errors = Vec::new();
            for config in network.plugins.iter().rev() {
                errors.extend(self.call_for(entry, &network, config, "DEL").await.err());
            }
            together(errors)?;
        } else {
            // Nobody will ever know more of it: no pod has to wait for that.
            tracing::warn!(network = entry.network_name, "what was made in a network cannot be taken back");
        }
        let (cache, entry) = (self.cache.clone(), entry.clone());
        blocking(move || cache.remove(&entry)).await
    }

    async fn call_for(
        &self,
        entry: &Entry,
        network: &Network,
        config: &Map<String, Value>,
        command: &'static str,
    ) -> Result<()> {
        // A file that nothing is bound to any more is no namespace, and plugins would fail over it for ever.
        let there = is_bound(entry.netns());
        let args = entry.args();
        let call = Call {
            command,
            container: &entry.container_id,
            netns: if there { entry.netns().display().to_string() } else { String::new() },
            interface: &entry.if_name,
            args: &args,
        };
        let known = network::at_least(&network.version, "0.4.0");
        let result = if known { entry.result.clone() } else { Value::Null };
        let request = request(network, config, &entry.capability_args, &result);
        self.call(&self.program(config)?, &call, &request).await.map(drop).doing(|| format!("network {}", network.name))
    }

    fn program(&self, config: &Map<String, Value>) -> Result<PathBuf> {
        plugin::find(config.get("type").and_then(Value::as_str).unwrap_or_default(), &self.config.bin_dirs)
    }

    async fn call(&self, program: &std::path::Path, call: &Call<'_>, request: &Value) -> Result<Value> {
        let timeout = Duration::from_secs(self.config.timeout.max(1));
        plugin::run(program, call, &self.config.bin_dirs, request, timeout).await
    }
}

impl Source {
    fn unconfigured(&self) -> Error {
        Error::unavailable(format!("no network is configured in {}", self.dir.display()))
    }

    async fn networks(&self) -> Result<Vec<Network>> {
        let Self { dir, max } = self.clone();
        blocking(move || network::load(&dir, max)).await
    }
}

/// What a plugin reads: its own configuration, with what the network adds.
fn request(
    network: &Network,
    config: &Map<String, Value>,
    capabilities: &Map<String, Value>,
    previous: &Value,
) -> Value {
    let mut request = config.clone();
    request.insert("name".to_owned(), json!(network.name));
    request.insert("cniVersion".to_owned(), json!(network.version));
    let can = |name: &String| config.get("capabilities").and_then(|can| can.get(name)) == Some(&Value::Bool(true));
    let told: Map<String, Value> =
        capabilities.iter().filter(|(name, _)| can(name)).map(|(name, value)| (name.clone(), value.clone())).collect();
    if !told.is_empty() {
        request.insert("runtimeConfig".to_owned(), Value::Object(told));
    }
    if !previous.is_null() {
        request.insert("prevResult".to_owned(), previous.clone());
    }
    // The runtime's, not the plugin's.
    request.remove("capabilities");
    Value::Object(request)
}

fn together(errors: Vec<Error>) -> Result<()> {
    let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
    match errors.into_iter().next() {
        None => Ok(()),
        Some(error) if texts.len() == 1 => Err(error),
        Some(error) => Err(Error::new(
            if error.kind() == Kind::Unavailable { Kind::Unavailable } else { Kind::Unknown },
            texts.join("; "),
        )),
    }
}

#[cfg(test)]
mod tests;
