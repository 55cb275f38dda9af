//! Plugins of the node resource interface, as a daemon sees them: they register, are told what happens, and answer.

use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, anyhow};
use gantry_proto::nri::pkg::api::v1alpha1 as api;
use gantry_proto::status::{Code, Status};
use gantry_proto::ttrpc::{Client, Context, Service, multiplex};
use prost::Message;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tokio::sync::watch;

use crate::{Result, wait};

/// What the daemon calls, and what a plugin calls.
const PLUGIN: &str = "nri.pkg.api.v1alpha1.Plugin";
const RUNTIME: &str = "nri.pkg.api.v1alpha1.Runtime";

/// A call of the daemon's as it came.
#[derive(Debug, Clone)]
pub struct Seen {
    /// `CreateContainer` and so on.
    pub method: String,
    /// The request, encoded.
    pub request: Vec<u8>,
}

impl Seen {
    /// The pod that it is about; empty: none.
    pub fn pod(&self) -> api::PodSandbox {
        self.both().pod.unwrap_or_default()
    }

    /// The container that it is about.
    pub fn container(&self) -> api::Container {
        self.both().container.unwrap_or_default()
    }

    fn both(&self) -> api::PostCreateContainerRequest {
        // The requests about pods and containers have these two in the same places.
        api::PostCreateContainerRequest::decode(self.request.as_slice()).unwrap_or_default()
    }
}

/// What a plugin does about a call.
#[derive(Debug)]
pub enum Answer {
    /// It answers with nothing in particular.
    Fine,
    /// It answers with this message.
    With(Vec<u8>),
    /// It refuses.
    Refuse(&'static str),
    /// It waits until it is let go on, see [`Plugin::go_on`].
    Wait,
    /// It never answers.
    Hang,
}

impl Answer {
    /// An answer with this message.
    pub fn message<M: Message>(message: &M) -> Self {
        Self::With(message.encode_to_vec())
    }
}

type Handler = Box<dyn Fn(&Seen) -> Answer + Send + Sync>;

struct Inside {
    seen: Mutex<Vec<Seen>>,
    handler: Handler,
    go: watch::Sender<bool>,
}

/// A plugin in the test's own process. It is gone when this is dropped.
pub struct Plugin {
    inside: Arc<Inside>,
    client: Client,
    /// Where it answers, whatever the test waits for.
    runtime: Runtime,
}

struct Answering(Arc<Inside>);

impl Service for Answering {
    async fn call(&self, service: &str, method: &str, payload: &[u8], _: &Context) -> Result<Vec<u8>, Status> {
        if service != PLUGIN {
            return Err(Status::unimplemented(service));
        }
        let seen = Seen { method: method.to_owned(), request: payload.to_vec() };
        let answer = (self.0.handler)(&seen);
        self.0.seen.lock().unwrap_or_else(PoisonError::into_inner).push(seen);
        match answer {
            Answer::Fine => {}
            Answer::With(message) => return Ok(message),
            Answer::Refuse(reason) => return Err(Status::new(Code::Unknown, reason)),
            Answer::Wait => {
                let _ = self.0.go.subscribe().wait_for(|go| *go).await;
            }
            Answer::Hang => std::future::pending().await,
        }
        match method {
            "Synchronize" => {
                let request = api::SynchronizeRequest::decode(payload).unwrap_or_default();
                let answer = api::SynchronizeResponse { more: request.more, ..Default::default() };
                Ok(answer.encode_to_vec())
            }
            _ => Ok(Vec::new()),
        }
    }
}

impl Plugin {
    /// Connects to the daemon's socket at `path` and registers as `index`-`name`. What it answers to each call, those of its
    /// registration included, is up to `handler`.
    pub fn connect(
        path: &Path,
        index: &str,
        name: &str,
        handler: impl Fn(&Seen) -> Answer + Send + Sync + 'static,
    ) -> Result<Self> {
        let socket = std::os::unix::net::UnixStream::connect(path);
        let plugin = Self::over(socket.with_context(|| format!("connect to {}", path.display()))?, Box::new(handler))?;
        plugin.register(index, name)?;
        Ok(plugin)
    }

    fn over(socket: std::os::unix::net::UnixStream, handler: Handler) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        socket.set_nonblocking(true)?;
        let inside = Arc::new(Inside { seen: Mutex::default(), handler, go: watch::Sender::new(false) });
        let (client, work) = {
            let _inside = runtime.enter();
            multiplex(UnixStream::from_std(socket)?, 2, 1, Arc::new(Answering(inside.clone())))
        };
        runtime.spawn(async move { drop(work.await) });
        Ok(Self { inside, client, runtime })
    }

    fn register(&self, index: &str, name: &str) -> Result<()> {
        let request = api::RegisterPluginRequest {
            plugin_name: name.to_owned(),
            plugin_idx: index.to_owned(),
            nri_version: "test".to_owned(),
        };
        self.call::<_, api::Empty>("RegisterPlugin", &request).map(drop)
    }

    /// Calls the daemon.
    pub fn call<Q: Message, A: Message + Default>(&self, method: &str, request: &Q) -> Result<A> {
        let context = Context::new().with_timeout(wait::seconds(20));
        let answer = self.runtime.block_on(self.client.call(RUNTIME, method, request, &context));
        answer.map_err(|status| anyhow!("{method}: {status}"))
    }

    /// Everything that has come, in order.
    pub fn seen(&self) -> Vec<Seen> {
        self.inside.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The events of a pod or container, in order.
    pub fn methods_of(&self, id: &str) -> Vec<String> {
        let is_about = |seen: &Seen| match seen.container().id.as_str() {
            "" => seen.pod().id == id,
            container => container == id,
        };
        let is_none = ["Synchronize", "ValidateContainerAdjustment"];
        let of_events = self.seen().into_iter().filter(|seen| !is_none.contains(&seen.method.as_str()));
        of_events.filter(is_about).map(|seen| seen.method).collect()
    }

    /// The first call of a method, once it has come.
    pub fn first(&self, method: &str) -> Result<Seen> {
        wait::until(method, || self.seen().into_iter().find(|seen| seen.method == method))
    }

    /// Lets all calls go on that wait, those of the future too.
    pub fn go_on(&self) {
        self.inside.go.send_replace(true);
    }

    /// Returns once the daemon has closed the connection.
    pub fn dropped(&self) -> Result<()> {
        wait::until("the plugin is dropped", || self.client.is_closed().then_some(()))
    }
}

/// `main nri-plugin FILE`: a plugin that a daemon starts, with its socket for standard input. It writes what it is told into the
/// file, a line each, and gives containers a variable with its configuration.
pub fn main(args: &[String]) -> Result<bool> {
    let file = args.first().context("nri-plugin wants a file")?.clone();
    let socket = std::os::unix::net::UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    let config = Mutex::new(String::new());
    let note = move |line: String| {
        let mut options = std::fs::OpenOptions::new();
        let written = options.create(true).append(true).open(&file).and_then(|mut file| writeln!(file, "{line}"));
        // The test waits for the line, and says that it does not come.
        drop(written);
    };
    let handler = move |seen: &Seen| match seen.method.as_str() {
        "Configure" => {
            let request = api::ConfigureRequest::decode(seen.request.as_slice()).unwrap_or_default();
            note(format!("Configure {}", request.config.trim()));
            *config.lock().unwrap_or_else(PoisonError::into_inner) = request.config.trim().to_owned();
            Answer::message(&api::ConfigureResponse { events: 0 })
        }
        "CreateContainer" => {
            note(format!("CreateContainer {}", seen.container().name));
            let value = config.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let env = vec![api::KeyValue { key: "NRI_CONFIG".to_owned(), value }];
            let adjust = Some(api::ContainerAdjustment { env, ..Default::default() });
            Answer::message(&api::CreateContainerResponse { adjust, ..Default::default() })
        }
        method => {
            note(method.to_owned());
            Answer::Fine
        }
    };
    let [name, index] = ["NRI_PLUGIN_NAME", "NRI_PLUGIN_IDX"].map(|name| std::env::var(name).unwrap_or_default());
    let plugin = Plugin::over(socket, Box::new(handler))?;
    plugin.register(&index, &name)?;
    plugin.runtime.block_on(plugin.client.closed());
    Ok(true)
}
