//! The API for clients on other machines. Whoever may use it is root here, so both sides show a certificate.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::body::Body;
use tower::{Service, ServiceExt as _};

use super::authority::Connection;
use super::{ACCEPT_PAUSE, clients};
use crate::config::Remote as Configured;
use crate::error::{Doing, Error, Result};

/// Connections at once. Those of strangers, which show no certificate, end soon.
const MAX_CONNECTIONS: usize = 1024;
/// How long a client may take to show who it is.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// A listening address.
pub struct Remote {
    listener: TcpListener,
    tls: TlsAcceptor,
}

impl Remote {
    /// Listens as configured; `None` where nothing is.
    ///
    /// # Errors
    /// Names the address that is taken, or the file that is no certificate or key.
    pub async fn bind(config: &Configured) -> Result<Option<Self>> {
        if config.address.is_empty() {
            return Ok(None);
        }
        let tls = acceptor(config).doing(|| "grpc.remote")?;
        let listener = TcpListener::bind(&config.address).await;
        let listener = listener.doing(|| format!("listen for clients at {}", config.address))?;
        Ok(Some(Self { listener, tls }))
    }

    /// Serves all who connect until `stopping`, and then those who have calls under way.
    pub(super) async fn serve<S>(self, service: S, stopping: CancellationToken)
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + Sync + 'static,
        S::Future: Send,
    {
        let (connections, room) = (TaskTracker::new(), Arc::new(Semaphore::new(MAX_CONNECTIONS)));
        loop {
            let next = async {
                let slot = room.clone().acquire_owned().await;
                (slot, self.listener.accept().await)
            };
            let (slot, accepted) = tokio::select! {
                next = next => next,
                () = stopping.cancelled() => break,
            };
            let socket = match accepted {
                Ok((socket, _)) => socket,
                Err(error) => {
                    tracing::warn!(%error, "accept a connection of a client; trying again");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let (tls, service, stopping) = (self.tls.clone(), service.clone(), stopping.clone());
            connections.spawn(async move {
                let _slot = slot;
                if let Err(error) = connection(socket, tls, service, stopping).await {
                    tracing::debug!(%error, "connection of a client on another machine");
                }
            });
        }
        connections.close();
        connections.wait().await;
    }
}

async fn connection<S>(
    socket: TcpStream,
    tls: TlsAcceptor,
    service: S,
    stopping: CancellationToken,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    socket.set_nodelay(true)?;
    let stream = tokio::time::timeout(HANDSHAKE, tls.accept(socket)).await??;
    let calls =
        hyper::service::service_fn(|request: Request<Incoming>| service.clone().oneshot(request.map(Body::new)));
    let connection = clients::protocol().serve_connection(TokioIo::new(Connection::new(stream)), calls);
    let mut connection = pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return Ok(ended?),
        () = stopping.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    Ok(connection.await?)
}

fn acceptor(config: &Configured) -> Result<TlsAcceptor> {
    let certificates = |path: &std::path::Path| {
        let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let read = read.map_err(|error| Error::invalid(format!("{}: {error}", path.display())))?;
        match read.is_empty() {
            true => Err(Error::invalid(format!("{}: has no certificate in it", path.display()))),
            false => Ok(read),
        }
    };
    let (chain, authorities) = (certificates(&config.certificate)?, certificates(&config.client_authority)?);
    let secret = PrivateKeyDer::from_pem_file(&config.key)
        .map_err(|error| Error::invalid(format!("{}: {error}", config.key.display())))?;
    let wrong = |error: &dyn std::fmt::Display| Error::invalid(error.to_string());
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(authority).map_err(|error| wrong(&error))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    let verifier = verifier.build().map_err(|error| wrong(&error))?;
    let builder = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| wrong(&error))?.with_client_cert_verifier(verifier);
    let mut server = builder.with_single_cert(chain, secret).map_err(|error| wrong(&error))?;
    server.alpn_protocols = vec![b"h2".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(server)))
}
