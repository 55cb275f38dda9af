//! Work inside a pod's network namespace, on threads of its own: a thread that has entered one is good for nothing else.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use gantry_proto::runtime::v1;
use rung_sys::namespace::{self, Namespace};
use tokio::net::{TcpSocket, TcpStream};

use super::{Cri, Sandbox};
use crate::blocking::blocking;
use crate::error::{Doing, Error, Result};

impl Cri {
    /// The network of a pod that is up; `None` for the machine's own.
    ///
    /// # Errors
    /// `NotFound` without such a pod, `FailedPrecondition` for one that is not up.
    pub(super) fn running_network(&self, sandbox: &str) -> Result<Option<PathBuf>> {
        let sandbox = self.store().sandbox(sandbox)?;
        if sandbox.state() != v1::PodSandboxState::SandboxReady {
            return Err(Error::precondition(format!("sandbox {}: is not ready", sandbox.id())));
        }
        Ok(self.own_network(&sandbox))
    }

    /// The network namespace of a pod that has one.
    pub(super) fn own_network(&self, sandbox: &Sandbox) -> Option<PathBuf> {
        let own = sandbox.record().network.as_ref().is_some_and(|network| !network.removed);
        own.then(|| self.places(sandbox.id().as_str()).namespace(Namespace::Network))
    }

    /// Connects to a port as a process of the pod would: by the fourth version's loopback address, else the sixth's.
    ///
    /// # Errors
    /// `FailedPrecondition` for a pod that does not run; why neither address answers.
    pub(super) async fn dial_pod(&self, sandbox: &str, port: u16) -> Result<TcpStream> {
        let namespace = self.running_network(sandbox)?;
        let first = match connect(namespace.as_deref(), ([127, 0, 0, 1], port).into()).await {
            Ok(stream) => return Ok(stream),
            Err(error) => error,
        };
        connect(namespace.as_deref(), (std::net::Ipv6Addr::LOCALHOST, port).into())
            .await
            .map_err(|second| Error::unavailable(format!("connect to port {port}: {first}; {second}")))
    }
}

/// A socket belongs to the namespace in which it was made, wherever it is used.
async fn connect(namespace: Option<&Path>, address: std::net::SocketAddr) -> Result<TcpStream> {
    let socket = move || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
        socket.doing(|| "make a socket")
    };
    let socket = match namespace.map(Path::to_owned) {
        None => socket()?,
        Some(path) => blocking(move || thread(move || open_and_enter(&path).and_then(|()| socket()))).await?,
    };
    socket.connect(address).await.doing(|| address.to_string())
}

fn open_and_enter(path: &PathBuf) -> Result<()> {
    let doing = || format!("network namespace {}", path.display());
    let file = File::open(path).doing(doing)?;
    enter(&file).doing(doing)
}

/// Enters a network namespace with the thread that calls.
pub(super) fn enter(namespace: &File) -> Result<()> {
    namespace::enter(namespace.as_fd(), Namespace::Network.flag()).map_err(|error| std::io::Error::from(error).into())
}

/// Runs `work` on a thread that ends with it.
pub(super) fn thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("pod network".into()).spawn_scoped(scope, work);
        let joined = thread.doing(|| "start a thread")?.join();
        joined.map_err(|_| Error::internal("pod network: thread panicked"))?
    })
}
