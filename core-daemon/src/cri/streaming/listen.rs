//! The address of the streams' server, with or without TLS.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::{Backend, Streaming, Times, http};
use crate::config;
use crate::error::{Doing, Error, Result};

/// Requests that are served at once; streams that are open have their own bounds.
const MAX_CONNECTIONS: usize = 4096;
/// How long a client may take for its request, and for TLS before it.
const REQUEST: Duration = Duration::from_secs(30);

/// A server that listens and is to be run.
pub(in crate::cri) struct Listener {
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    streaming: Streaming,
}

impl Listener {
    /// Listens as configured.
    ///
    /// # Errors
    /// Names the address that is taken, or the file that is no certificate or key.
    pub(in crate::cri) async fn bind(config: &config::Streaming, stopping: &CancellationToken) -> Result<Self> {
        let doing = || format!("listen for streams at {}", config.address);
        let listener = TcpListener::bind(&config.address).await.doing(doing)?;
        let address = listener.local_addr().doing(doing)?;
        let tls = match (config.certificate.as_os_str().is_empty(), config.key.as_os_str().is_empty()) {
            (true, true) => None,
            (false, false) => Some(acceptor(&config.certificate, &config.key)?),
            _ => return Err(Error::invalid("cri.streaming: certificate and key belong together")),
        };
        let scheme = if tls.is_some() { "https" } else { "http" };
        let times = Times {
            idle: Duration::from_secs(config.idle_timeout.max(1)),
            creation: Duration::from_secs(config.creation_timeout.max(1)),
        };
        let streaming = Streaming::new(format!("{scheme}://{address}"), times, stopping.clone());
        Ok(Self { listener, tls, streaming })
    }

    /// Gives out URLs that lead here.
    pub(in crate::cri) fn streaming(&self) -> &Streaming {
        &self.streaming
    }

    /// Serves until the daemon stops.
    pub(in crate::cri) async fn run(self, backend: impl Backend) {
        let stopping = self.streaming.shared.stopping.clone();
        let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(slot) = room.clone().acquire_owned().await else { return };
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = stopping.cancelled() => return,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "accept a connection for streams");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            // Keystrokes are small, and shall not wait for more.
            let _ = stream.set_nodelay(true);
            let (tls, streaming, backend) = (self.tls.clone(), self.streaming.clone(), backend.clone());
            tokio::spawn(async move {
                let _slot = slot;
                match tls {
                    None => serve(stream, &streaming, &backend).await,
                    Some(tls) => match tokio::time::timeout(REQUEST, tls.accept(stream)).await {
                        Ok(Ok(stream)) => serve(stream, &streaming, &backend).await,
                        Ok(Err(error)) => tracing::debug!(%error, "TLS of a connection for streams"),
                        Err(_) => {}
                    },
                }
            });
        }
    }
}

async fn serve<B, T>(transport: T, streaming: &Streaming, backend: &B)
where
    B: Backend,
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(|request| {
        let answer = http::answer(streaming, backend, request);
        async move { Ok::<_, std::convert::Infallible>(answer) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST)
        .serve_connection(TokioIo::new(transport), service)
        .with_upgrades();
    tokio::select! {
        served = served => {
            if let Err(error) = served {
                tracing::debug!(%error, "connection for streams");
            }
        }
        () = streaming.shared.stopping.cancelled() => {}
    }
}

fn acceptor(certificate: &Path, key: &Path) -> Result<TlsAcceptor> {
    let invalid = |path: &Path, error: &dyn std::fmt::Display| {
        Error::invalid(format!("cri.streaming: {}: {error}", path.display()))
    };
    let certificates = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| invalid(certificate, &error))?;
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| invalid(key, &error))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(certificates, secret))
        .map_err(|error| invalid(certificate, &error))?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}
