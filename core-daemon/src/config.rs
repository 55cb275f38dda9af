//! Configuration: a TOML file over built-in defaults, and flags over the file.
//!
//! An unknown key is an error: a setting that is misspelt and silently ignored is found out too late. Only a file of
//! containerd's is read leniently, see `containerd`.

mod annotations;
mod containerd;
mod cri;
mod images;
mod nri;
mod observe;
mod print;
mod reload;
mod snapshotters;
mod workloads;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::annotations::{Annotation, SECCOMP_PROFILE};
pub use self::cri::{CgroupDriver, Cni, Cri, IpPreference, RuntimeHandler, Streaming};
pub use self::images::{ContentStore, ImagePolicy, ImageVerifier, Registry, SharingPolicy, StreamProcessor};
pub use self::nri::{Nri, NriValidator};
pub use self::observe::{Debug, Metrics, Tracing};
pub use self::reload::Reloaded;
pub use self::snapshotters::{Erofs, Overlayfs, ProxyPlugin, Snapshotters, Volatile};
pub use self::workloads::{LEAST_QUOTA, PERIOD, Workload, WorkloadResources};
use crate::error::{Doing, Error, Kind, Result};

/// The configuration file that is read where no other is named.
pub const DEFAULT_FILE: &str = "/etc/gantry/config.toml";

/// Everything that can be configured, one struct for each part of the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Directory of what outlives a reboot: content, snapshots, metadata.
    pub root: PathBuf,
    /// Directory of what does not: bundles and sockets.
    pub state: PathBuf,
    /// How ready the kernel is to end the daemon when memory runs out, from -1000 to 1000; 0: as whoever starts it has set it.
    pub oom_score: i32,
    /// The API's socket.
    pub grpc: Grpc,
    /// The shims' socket.
    pub ttrpc: Ttrpc,
    /// The daemon's own log.
    pub log: Log,
    /// How containers are run.
    pub runtime: Runtime,
    /// What the daemon waits for, and how long.
    pub timeouts: Timeouts,
    /// Containers' logs.
    pub container_log: ContainerLog,
    /// Blobs.
    pub content: ContentStore,
    /// Registries.
    pub registry: Registry,
    /// Whose images may be pulled.
    pub image_policy: ImagePolicy,
    /// Programs that are asked whether an image may be pulled.
    pub image_verifier: ImageVerifier,
    /// Programs that layers go through before they are unpacked, by name.
    pub stream_processors: BTreeMap<String, StreamProcessor>,
    /// Kubernetes' container runtime interface.
    pub cri: Cri,
    /// Counters of calls.
    pub metrics: Metrics,
    /// A socket for people who look for a fault.
    pub debug: Debug,
    /// Traces of calls.
    pub tracing: Tracing,
    /// Snapshotters that are part of the daemon.
    pub snapshotters: Snapshotters,
    /// Programs that are plugins, by name, as containerd configures them.
    pub proxy_plugins: BTreeMap<String, ProxyPlugin>,
    /// The file that this was read from; none where there is none.
    #[serde(skip)]
    pub file: Option<PathBuf>,
    /// What whoever starts the daemon should know of that file.
    #[serde(skip)]
    pub notes: Vec<String>,
}

/// The API's socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Grpc {
    /// Path of the socket.
    pub address: PathBuf,
    /// Owner of the socket.
    pub uid: u32,
    /// Group of the socket, whose members may use the API.
    pub gid: u32,
    /// Largest message accepted and sent, in bytes.
    pub max_message: usize,
    /// The API for other machines, whose clients are as good as root here.
    pub remote: Remote,
}

/// Where clients on other machines find the API, by TLS.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Remote {
    /// Address and port; empty: nowhere.
    pub address: String,
    /// The daemon's certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Certificates of those who may sign clients' certificates. A client without one is refused.
    pub client_authority: PathBuf,
}

/// The socket on which shims report events.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Ttrpc {
    /// Path of the socket; empty: the API's with `.ttrpc` added.
    pub address: PathBuf,
}

/// The daemon's own log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// `error`, `warn`, `info`, `debug` or `trace`, or an expression such as `gantryd::tasks=debug`.
    pub level: String,
    /// How lines are written.
    pub format: LogFormat,
}

/// How the daemon's log lines are written, to standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

/// How containers are run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Runtime {
    /// Runtime of containers that name none, as containerd spells it.
    pub default: String,
    /// Runtimes that stand in for others: clients ask for runc's by name although nobody told them to. A path names a
    /// program whatever stands here.
    pub aliases: BTreeMap<String, String>,
    /// Snapshotter of containers that name none.
    pub snapshotter: String,
    /// Calls a shim may have to answer at once; more wait for their turn.
    pub shim_calls: usize,
    /// Variables that shims are started with, as `NAME=VALUE`: `SCHED_CORE=1` has containers share no processor core.
    pub shim_env: Vec<String>,
    /// Seconds between two looks at containers whose labels want them restarted.
    pub restart_interval: u64,
    /// Programs that such labels may have read the output of a restarted container: labels may come from an image.
    pub restart_loggers: Vec<PathBuf>,
}

/// What the daemon waits for, in seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// For a shim's `start` to answer.
    pub shim_start: u64,
    /// For a shim that was running before the daemon to answer.
    pub shim_load: u64,
    /// For a shim to create, start, kill or delete a process.
    pub shim_call: u64,
    /// For a shim to say how a process is.
    pub shim_state: u64,
    /// For a shim to leave.
    pub shim_shutdown: u64,
    /// For a shim's `delete` to clean up what a dead one left.
    pub shim_cleanup: u64,
    /// For calls under way when the daemon stops.
    pub drain: u64,
}

/// Containers' logs as the engine keeps them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ContainerLog {
    /// Bytes after which a log file is rotated.
    pub max_size: u64,
    /// Files kept of one container, the current one included.
    pub max_files: u32,
    /// Bytes that the logs of all containers may take together; 0: any number. Close to that the oldest rotated files are
    /// dropped, those of containers that do not run too. Pods' logs are the kubelet's and do not count.
    pub max_total: u64,
    /// Rotated files are packed with gzip.
    pub compress: bool,
    /// What happens to output that cannot be written as fast as it comes.
    pub policy: LogPolicy,
}

/// What happens to output that cannot be written as fast as it comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogPolicy {
    /// The container waits.
    Block,
    /// It is dropped, and how much is noted in the log.
    Drop,
}

/// Flags that take precedence over the configuration file.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Overrides {
    /// Configuration file [default: /etc/gantry/config.toml, which may be absent]
    #[arg(long, short, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// Socket of the API [default: gantryd.sock in the state directory]
    #[arg(long, short, value_name = "PATH", global = true)]
    pub address: Option<PathBuf>,
    /// Directory of what outlives a reboot: content, snapshots, metadata [default: /var/lib/gantry]
    #[arg(long, value_name = "DIR", global = true)]
    pub root: Option<PathBuf>,
    /// Directory of what does not: bundles and sockets [default: /run/gantry]
    #[arg(long, value_name = "DIR", global = true)]
    pub state: Option<PathBuf>,
    /// error, warn, info, debug or trace, or an expression such as "gantryd::tasks=debug" [default: info]
    #[arg(long, short, value_name = "LEVEL", global = true)]
    pub log_level: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            root: "/var/lib/gantry".into(),
            state: "/run/gantry".into(),
            oom_score: 0,
            grpc: Grpc::default(),
            ttrpc: Ttrpc::default(),
            log: Log::default(),
            runtime: Runtime::default(),
            timeouts: Timeouts::default(),
            container_log: ContainerLog::default(),
            content: ContentStore::default(),
            registry: Registry::default(),
            image_policy: ImagePolicy::default(),
            image_verifier: ImageVerifier::default(),
            stream_processors: BTreeMap::new(),
            cri: Cri::default(),
            metrics: Metrics::default(),
            debug: Debug::default(),
            tracing: Tracing::default(),
            snapshotters: Snapshotters::default(),
            proxy_plugins: BTreeMap::new(),
            file: None,
            notes: Vec::new(),
        }
    }
}

impl Default for Grpc {
    fn default() -> Self {
        Self {
            address: "/run/gantry/gantryd.sock".into(),
            uid: 0,
            gid: 0,
            max_message: 16 << 20,
            remote: Remote::default(),
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".into(), format: LogFormat::Text }
    }
}

impl Default for Runtime {
    fn default() -> Self {
        Self {
            default: "io.containerd.rung.v2".into(),
            // What clients ask for who care for no runtime in particular.
            aliases: [("io.containerd.runc.v2".to_owned(), "io.containerd.rung.v2".to_owned())].into(),
            snapshotter: "overlayfs".into(),
            shim_calls: 32,
            shim_env: Vec::new(),
            restart_interval: 10,
            restart_loggers: ["/usr/local/bin/nerdctl", "/usr/bin/nerdctl"].map(PathBuf::from).to_vec(),
        }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            shim_start: 30,
            shim_load: 5,
            shim_call: 120,
            shim_state: 2,
            shim_shutdown: 3,
            // More than a shim gives the runtime.
            shim_cleanup: 35,
            drain: 5,
        }
    }
}

impl Default for ContainerLog {
    fn default() -> Self {
        Self { max_size: 16 << 20, max_files: 5, max_total: 4 << 30, compress: true, policy: LogPolicy::Block }
    }
}

impl Config {
    /// Reads the file that `flags` name, or the default one if it is there, and puts `flags` over it.
    ///
    /// # Errors
    /// Names the file and the key that is wrong.
    pub fn load(flags: &Overrides) -> Result<Self> {
        let path = flags.config.as_deref().unwrap_or(Path::new(DEFAULT_FILE));
        let mut config = match std::fs::read_to_string(path) {
            Ok(text) => {
                let read = Self::read(&text, path).doing(|| format!("read configuration {}", path.display()))?;
                Self { file: Some(path.to_owned()), ..read }
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && flags.config.is_none() => Self::default(),
            Err(error) => return Err(error).doing(|| format!("read configuration {}", path.display())),
        };
        config.put_over(flags);
        config.check()?;
        // Its blobs would be ours to collect, because no record of ours names them.
        if config.root.join("io.containerd.metadata.v1.bolt/meta.db").exists() {
            let root = config.root.display();
            return Err(Error::precondition(format!(
                "root {root}: has data of containerd; choose another with --root"
            )));
        }
        Ok(config)
    }

    fn read(text: &str, path: &Path) -> Result<Self> {
        match text.parse::<toml::Table>() {
            Ok(table) if containerd::is_theirs(&table) => containerd::read(table, path),
            // What is wrong is said below, with the place.
            _ => Self::parse(text),
        }
    }

    fn parse(text: &str) -> Result<Self> {
        toml::from_str(text).map_err(|error| Error::new(Kind::InvalidArgument, error.to_string().trim_end()))
    }

    fn put_over(&mut self, flags: &Overrides) {
        if let Some(state) = &flags.state {
            // A daemon with its own state directory has its socket there, unless something says otherwise.
            if self.grpc.address == Grpc::default().address {
                self.grpc.address = state.join("gantryd.sock");
            }
            self.state.clone_from(state);
        }
        if let Some(root) = &flags.root {
            self.root.clone_from(root);
        }
        if let Some(address) = &flags.address {
            self.grpc.address.clone_from(address);
        }
        if let Some(level) = &flags.log_level {
            self.log.level.clone_from(level);
        }
        if self.ttrpc.address.as_os_str().is_empty() {
            let mut address = self.grpc.address.clone().into_os_string();
            address.push(".ttrpc");
            self.ttrpc.address = address.into();
        }
    }

    fn check(&self) -> Result<()> {
        let paths = [
            ("root", &self.root),
            ("state", &self.state),
            ("grpc.address", &self.grpc.address),
            ("ttrpc.address", &self.ttrpc.address),
        ];
        for (key, path) in paths {
            if !path.is_absolute() {
                return Err(Error::invalid(format!("{key}: {}: path must be absolute", path.display())));
            }
            if path.to_str().is_none() {
                return Err(Error::invalid(format!("{key}: {}: path is not UTF-8", path.display())));
            }
        }
        let debug = [("debug.address", &self.debug.address)];
        let debug = debug.iter().filter(|(_, path)| !path.as_os_str().is_empty());
        if let Some((key, path)) = debug.clone().find(|(_, path)| !path.is_absolute()) {
            return Err(Error::invalid(format!("{key}: {}: path must be absolute", path.display())));
        }
        for (key, path) in paths[2..].iter().chain(debug) {
            if path.as_os_str().len() > MAX_SOCKET_PATH {
                let path = path.display();
                return Err(Error::invalid(format!("{key}: {path}: longer than {MAX_SOCKET_PATH} bytes")));
            }
        }
        self.image_policy.check()?;
        self.cri.check()?;
        if self.root == self.state {
            return Err(Error::invalid("root and state must be different directories"));
        }
        if self.grpc.max_message < 4 << 20 {
            return Err(Error::invalid("grpc.max_message: clients need at least 4 MiB"));
        }
        let remote = &self.grpc.remote;
        for (key, path) in
            [("certificate", &remote.certificate), ("key", &remote.key), ("client_authority", &remote.client_authority)]
        {
            if !remote.address.is_empty() && !path.is_absolute() {
                return Err(Error::invalid(format!("grpc.remote.{key}: a file is needed, by its absolute path")));
            }
        }
        if !(-1000..=1000).contains(&self.oom_score) {
            return Err(Error::invalid("oom_score: must be between -1000 and 1000"));
        }
        if self.runtime.shim_calls == 0 {
            return Err(Error::invalid("runtime.shim_calls: must be at least 1"));
        }
        let is_variable = |text: &String| text.split_once('=').is_some_and(|(name, _)| !name.is_empty());
        if let Some(text) = self.runtime.shim_env.iter().find(|text| !is_variable(text)) {
            return Err(Error::invalid(format!("runtime.shim_env: {text:?}: expected NAME=VALUE")));
        }
        self.stream_processors.iter().try_for_each(|(name, processor)| processor.check(name))?;
        for (name, plugin) in &self.proxy_plugins {
            if plugin.kind != "snapshot" {
                let kind = &plugin.kind;
                return Err(Error::invalid(format!("proxy_plugins.{name}.type: {kind:?}: only \"snapshot\" is there")));
            }
            if !plugin.address.is_absolute() {
                return Err(Error::invalid(format!("proxy_plugins.{name}.address: path must be absolute")));
            }
        }
        self.registry.check()?;
        if self.container_log.max_files == 0 {
            return Err(Error::invalid("container_log.max_files: must be at least 1"));
        }
        if (1..1 << 20).contains(&self.container_log.max_total) {
            return Err(Error::invalid("container_log.max_total: must be 0 or at least 1 MiB (1048576)"));
        }
        Ok(())
    }
}

/// What fits into a socket address.
const MAX_SOCKET_PATH: usize = 107;

impl Timeouts {
    /// A number of seconds of this configuration as a duration.
    pub fn of(seconds: u64) -> Duration {
        Duration::from_secs(seconds.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_survive_the_file_format() {
        let config = Config::default();
        let text = toml::to_string(&config).expect("encode");
        assert_eq!(Config::parse(&text).expect("decode"), config);
    }

    #[test]
    fn flags_stand_over_the_file_and_the_socket_follows_the_state() {
        let mut config = Config::parse("[log]\nlevel = \"debug\"\n").expect("file");
        config.put_over(&Overrides { state: Some("/run/other".into()), ..Overrides::default() });
        assert_eq!(config.grpc.address, Path::new("/run/other/gantryd.sock"));
        assert_eq!(config.ttrpc.address, Path::new("/run/other/gantryd.sock.ttrpc"));
        assert_eq!(config.log.level, "debug");
    }

    #[test]
    fn unknown_keys_and_relative_paths_are_errors_that_name_them() {
        let error = Config::parse("[grpc]\nadress = \"/x\"\n").expect_err("misspelt key");
        assert!(error.to_string().contains("adress"), "{error}");
        let config = Config { root: "data".into(), ..Config::default() };
        assert!(config.check().expect_err("relative").to_string().contains("root"));
        let mut config = Config::parse("[cri.nri]\nrequest_timeout = 0\n").expect("well formed");
        config.put_over(&Overrides::default());
        assert!(config.check().expect_err("no time at all").to_string().contains("cri.nri.request_timeout"));
    }
}
