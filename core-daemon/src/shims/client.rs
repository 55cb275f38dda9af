//! Talking to a running shim.
//!
//! Calls have deadlines, except Wait and those that move a container's memory, and only a limited number of calls is
//! sent to a shim at once: behind a frozen shim neither callers nor memory may pile up.

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use gantry_proto::containerd::task::v3::{ConnectRequest, ConnectResponse};
use gantry_proto::exit::EXIT_CODE_TTRPC;
use gantry_proto::namespace::Namespace;
use gantry_proto::status::Status;
use gantry_proto::ttrpc::{Client, Context};
use prost::Message;
use tokio::sync::Semaphore;

use super::address::Address;
use crate::config::Timeouts;
use crate::error::{Error, Kind, Result};

/// A connection to a shim.
#[derive(Debug)]
pub struct Shim {
    client: Client,
    version: AtomicU32,
    namespace: Namespace,
    limit: Arc<Semaphore>,
    timeouts: Timeouts,
}

/// How long a call may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// It changes something and may run the runtime, or it goes to one shim only: `timeouts.shim_call`.
    Change,
    /// It moves the memory of a container, which may take any time: without a deadline, the caller decides when to give
    /// up.
    Work,
    /// It only reads, and may belong to a list that must not wait for one frozen shim: `timeouts.shim_state`.
    Look,
    /// It finds out whether a shim of an earlier daemon still answers: `timeouts.shim_load`.
    Load,
    /// It asks the shim to leave: `timeouts.shim_shutdown`.
    Leave,
}

impl Shim {
    /// Connects to the shim that listens at `address`.
    ///
    /// # Errors
    /// `Unavailable` where certainly nobody listens, `DeadlineExceeded` where the connection is not accepted, and another kind
    /// where neither is certain, for example if the daemon has no file descriptor left.
    pub async fn connect(
        address: &Address,
        namespace: &Namespace,
        timeouts: &Timeouts,
        max_calls: usize,
    ) -> Result<Self> {
        if address.protocol != "ttrpc" {
            return Err(Error::unimplemented(format!("shim protocol {:?}: only ttrpc is spoken", address.protocol)));
        }
        let path = address.socket()?;
        let limit = Timeouts::of(timeouts.shim_load);
        let client = match tokio::time::timeout(limit, Client::connect(&path)).await {
            Ok(Ok(client)) => client,
            Ok(Err(error)) => {
                let is_gone = matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound);
                let kind = if is_gone { Kind::Unavailable } else { Kind::Unknown };
                return Err(Error::new(kind, format!("connect to shim at {}: {error}", path.display())));
            }
            Err(_) => {
                let message = format!("connect to shim at {}: not accepted", path.display());
                return Err(Error::new(Kind::DeadlineExceeded, message));
            }
        };
        Ok(Self {
            client,
            version: AtomicU32::new(address.version),
            namespace: namespace.clone(),
            limit: Arc::new(Semaphore::new(max_calls)),
            timeouts: timeouts.clone(),
        })
    }

    /// Calls a method of the Task service.
    ///
    /// # Errors
    /// What the shim answers; `DeadlineExceeded` after the patience is over, `Unavailable` once the shim is gone.
    pub async fn call<Req: Message, Resp: Message + Default>(
        &self,
        method: &str,
        request: &Req,
        patience: Patience,
    ) -> Result<Resp> {
        let mut context = self.context();
        let limit = self.limit_of(patience);
        if let Some(limit) = limit {
            context = context.with_timeout(limit);
        }
        let call = async {
            let _permit = self.limit.acquire().await.map_err(|_| Error::unavailable("shim connection is closed"))?;
            self.dispatch(method, request, context).await
        };
        let Some(limit) = limit else { return call.await };
        // The outer limit counts the time spent waiting for a turn.
        tokio::time::timeout(limit, call).await.unwrap_or_else(|_| {
            let message = format!("shim: {method}: no answer within {} s", limit.as_secs());
            Err(Error::new(Kind::DeadlineExceeded, message))
        })
    }

    /// Calls a method that answers when something happens. It has no deadline and does not count among the limited
    /// calls.
    ///
    /// # Errors
    /// What the shim answers; `Unavailable` once the shim is gone.
    pub async fn wait<Req: Message, Resp: Message + Default>(&self, method: &str, request: &Req) -> Result<Resp> {
        self.dispatch(method, request, self.context()).await
    }

    /// Calls a method of another service of the shim.
    ///
    /// # Errors
    /// As [`Shim::call`].
    pub async fn call_service<Req: Message, Resp: Message + Default>(
        &self,
        service: &str,
        method: &str,
        request: &Req,
        limit: Option<Duration>,
    ) -> Result<Resp> {
        let mut context = self.context();
        if let Some(limit) = limit {
            context = context.with_timeout(limit);
        }
        self.client.call(service, method, request, &context).await.map_err(failed)
    }

    /// Returns once the connection is closed: the shim is gone.
    pub async fn closed(&self) {
        self.client.closed().await;
    }

    /// Whether the connection is closed.
    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// A call in the shim's namespace. That its answer may carry an exit code has to be said: other daemons show what they
    /// cannot read of a status as one more error.
    fn context(&self) -> Context {
        Context::in_namespace(&self.namespace).with(EXIT_CODE_TTRPC, "yes")
    }

    async fn dispatch<Req: Message, Resp: Message + Default>(
        &self,
        method: &str,
        request: &Req,
        context: Context,
    ) -> Result<Resp> {
        let version = self.version.load(Ordering::Relaxed);
        match self.client.call(service(version), method, request, &context).await.map_err(failed) {
            // A shim that was started by an older program may announce a service it does not have. That is found out: what
            // the runtime cannot do has the same code, and is not to be tried twice.
            Err(error) if error.kind() == Kind::Unimplemented && version > 2 => {
                if self.serves(version).await {
                    return Err(error);
                }
                let answer = self.client.call(service(2), method, request, &context).await.map_err(failed);
                if !matches!(&answer, Err(error) if error.kind() == Kind::Unimplemented) {
                    self.version.store(2, Ordering::Relaxed);
                }
                answer
            }
            answer => answer,
        }
    }

    /// Whether the shim has the service, asked by the method that every shim answers, whichever containers it has.
    async fn serves(&self, version: u32) -> bool {
        let context = self.context().with_timeout(Timeouts::of(self.timeouts.shim_state));
        let answer: std::result::Result<ConnectResponse, Status> =
            self.client.call(service(version), "Connect", &ConnectRequest::default(), &context).await;
        !matches!(answer.map_err(failed), Err(error) if error.kind() == Kind::Unimplemented)
    }

    fn limit_of(&self, patience: Patience) -> Option<Duration> {
        Some(Timeouts::of(match patience {
            Patience::Work => return None,
            Patience::Change => self.timeouts.shim_call,
            Patience::Look => self.timeouts.shim_state,
            Patience::Load => self.timeouts.shim_load,
            Patience::Leave => self.timeouts.shim_shutdown,
        }))
    }
}

fn service(version: u32) -> &'static str {
    if version >= 3 { "containerd.task.v3.Task" } else { "containerd.task.v2.Task" }
}

fn failed(status: Status) -> Error {
    Error::from(status)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use gantry_proto::ttrpc::server::unknown;
    use gantry_proto::ttrpc::{Service, serve_connection};

    use super::*;

    /// A shim that has one version of the service, and a runtime that can make nothing.
    struct Unable {
        version: u32,
        calls: Mutex<Vec<String>>,
    }

    impl Service for Unable {
        async fn call(&self, name: &str, method: &str, _: &[u8], _: &Context) -> Result<Vec<u8>, Status> {
            self.calls.lock().expect("lock").push(format!("{} {method}", &name[17..18]));
            match method {
                _ if name != service(self.version) => Err(unknown(name, method)),
                "Create" => Err(Status::unimplemented("no such feature")),
                _ => Ok(Vec::new()),
            }
        }
    }

    #[tokio::test]
    async fn an_older_service_is_found_and_nothing_is_tried_twice() {
        for (version, calls) in [(3, ["3 Create", "3 Connect"].as_slice()), (2, &["3 Create", "3 Connect", "2 Create"])]
        {
            let (ours, theirs) = tokio::net::UnixStream::pair().expect("sockets");
            let shim = Arc::new(Unable { version, calls: Mutex::default() });
            tokio::spawn(serve_connection(theirs, shim.clone()));
            let client = Shim {
                client: Client::new(ours),
                version: AtomicU32::new(3),
                namespace: Namespace::parse("n").expect("namespace"),
                limit: Arc::new(Semaphore::new(1)),
                timeouts: Timeouts::default(),
            };
            let create =
                client.call::<_, ConnectResponse>("Create", &ConnectRequest::default(), Patience::Change).await;
            let error = create.expect_err("its runtime can make nothing");
            assert!(error.to_string().contains("no such feature"), "{error}");
            assert_eq!(*shim.calls.lock().expect("lock"), calls);
        }
    }

    #[tokio::test]
    async fn only_where_nobody_listens_a_shim_is_gone() {
        let dir = tempfile::tempdir().expect("directory");
        let kind = async |name: &str| {
            let address = format!("unix://{}", dir.path().join(name).display());
            let address = Address::parse(address.as_bytes()).expect("address");
            let namespace = Namespace::parse("n").expect("namespace");
            let error = Shim::connect(&address, &namespace, &Timeouts::default(), 1).await.expect_err("nobody");
            error.kind()
        };
        assert_eq!(kind("none").await, Kind::Unavailable);
        drop(std::os::unix::net::UnixListener::bind(dir.path().join("closed")).expect("bind"));
        assert_eq!(kind("closed").await, Kind::Unavailable);
        // What is no socket, like what cannot be tried, says nothing.
        assert_eq!(kind(&"long".repeat(100)).await, Kind::Unknown);
    }
}
