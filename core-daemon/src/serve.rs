//! Sockets, readiness and the end.
//!
//! The daemon stops when it is told to: calls under way may finish, for a while; containers keep running, because their
//! shims hold them.

mod authority;
mod clients;
mod debug;
mod gather;
mod quiet;
mod remote;
mod size;
mod whole;

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use gantry_proto::ttrpc::{Service, serve_connection};
use nix::fcntl::{Flock, FlockArg};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tower::ServiceBuilder;

use crate::config::{Config, Grpc, Timeouts};
use crate::error::{Doing, Error, Result};
use crate::observe::Observer;
pub use debug::debug;
pub use remote::Remote;

/// Connections of shims that are served at once.
const MAX_SHIM_CONNECTIONS: usize = 4096;
/// Pause after a connection that could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Makes the daemon's directories and sees to it that no other daemon uses them.
///
/// # Errors
/// `FailedPrecondition` when another daemon does.
pub fn claim(config: &Config) -> Result<Claim> {
    let claim = |key: &str, dir: &Path, mode: u32| {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(dir)
            .doing(|| format!("make {key} directory {}", dir.display()))?;
        restrict(dir, mode).doing(|| format!("restrict {key} directory {}", dir.display()))?;
        let path = dir.join("gantryd.lock");
        let doing = || format!("lock {}", path.display());
        let mut options = fs::OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).mode(0o600).open(&path).doing(doing)?;
        // Whoever can open it could lock it, and keep the daemon from starting.
        restrict(&path, 0o600).doing(doing)?;
        Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
            nix::errno::Errno::EWOULDBLOCK => Error::precondition(format!(
                "{key} directory {} is in use by another gantryd; stop that one, or give this one its own with --{key}",
                dir.display()
            )),
            errno => Error::from(std::io::Error::from(errno)).context(doing()),
        })
    };
    Ok(Claim { _root: claim("root", &config.root, 0o711)?, _state: claim("state", &config.state, 0o711)? })
}

/// Removes permissions beyond `mode` from a file or directory that somebody may have made with wider ones.
fn restrict(path: &Path, mode: u32) -> std::io::Result<()> {
    let has = fs::symlink_metadata(path)?.permissions().mode() & 0o7777;
    if has & !mode == 0 { Ok(()) } else { fs::set_permissions(path, fs::Permissions::from_mode(has & mode)) }
}

/// The locks on the daemon's directories. They end with the process, however it ends.
#[derive(Debug)]
pub struct Claim {
    _root: Flock<fs::File>,
    _state: Flock<fs::File>,
}

/// A listening socket, whose file is removed with it.
#[derive(Debug)]
pub struct Socket {
    listener: Option<UnixListener>,
    path: PathBuf,
}

impl Socket {
    /// Listens at `path`, replacing what a daemon that was killed left there.
    ///
    /// # Errors
    /// `FailedPrecondition` when somebody listens there, or something else than a socket is there.
    pub fn bind(path: &Path, owner: &Grpc) -> Result<Self> {
        Self::listen(path, (owner.uid, owner.gid), 0o660)
    }

    /// The same for another owner, and for a group where it is not root's.
    ///
    /// # Errors
    /// As [`Socket::bind`].
    pub fn bind_for(path: &Path, (uid, gid): (u32, u32)) -> Result<Self> {
        Self::listen(path, (uid, gid), if gid == 0 { 0o600 } else { 0o660 })
    }

    fn listen(path: &Path, (uid, gid): (u32, u32), mode: u32) -> Result<Self> {
        let doing = || format!("listen at {}", path.display());
        if let Some(parent) = path.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o711).create(parent).doing(doing)?;
        }
        remove_stale(path).doing(doing)?;
        let listener = UnixListener::bind(path).doing(doing)?;
        // Until here only the daemon's own user could connect.
        std::os::unix::fs::chown(path, Some(uid), Some(gid)).doing(doing)?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).doing(doing)?;
        Ok(Self { listener: Some(listener), path: path.to_owned() })
    }

    fn listener(&mut self) -> Result<UnixListener> {
        self.listener.take().ok_or_else(|| Error::internal(format!("{}: is served already", self.path.display())))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn remove_stale(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.into()),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(Error::precondition("something that is not a socket is in the way"));
        }
        Ok(_) => {}
    }
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(Error::precondition(
            "another daemon listens there; stop that one, or give this one its own with --address",
        ));
    }
    fs::remove_file(path)?;
    Ok(())
}

/// Serves gRPC on `socket`, and at the address of `remote`, until `stopping`, and then for as long as calls under way take,
/// within bounds.
///
/// # Errors
/// When the socket fails.
pub async fn grpc(
    mut socket: Socket,
    remote: Option<Remote>,
    routes: Routes,
    observer: &Observer,
    stopping: CancellationToken,
    config: &Config,
) -> Result<()> {
    let listener = socket.listener()?;
    let service = ServiceBuilder::new()
        .layer(observer.clone())
        .layer(whole::Whole)
        .layer(size::MaxMessage(config.grpc.max_message))
        .service(routes.prepare());
    let others = remote.map(|remote| remote.serve(service.clone(), stopping.clone()));
    let served = async {
        tokio::join!(clients::serve(listener, service, stopping.clone()), async {
            if let Some(others) = others {
                others.await;
            }
        })
    };
    let drained = async {
        stopping.cancelled().await;
        tokio::time::sleep(Timeouts::of(config.timeouts.drain)).await;
    };
    tokio::select! {
        _ = served => {}
        () = drained => tracing::warn!("calls were still under way; ending them"),
    }
    Ok(())
}

/// Serves ttrpc on `socket` until `stopping`.
///
/// # Errors
/// When the socket fails.
pub async fn ttrpc(mut socket: Socket, service: impl Service, stopping: CancellationToken) -> Result<()> {
    let listener = socket.listener()?;
    let service = Arc::new(service);
    let slots = Arc::new(tokio::sync::Semaphore::new(MAX_SHIM_CONNECTIONS));
    loop {
        let next = async {
            let slot = slots.clone().acquire_owned().await;
            (slot, accept(&listener, "a shim").await)
        };
        let (slot, stream) = tokio::select! {
            next = next => next,
            () = stopping.cancelled() => return Ok(()),
        };
        let (service, stopping) = (service.clone(), stopping.clone());
        tokio::spawn(async move {
            let _slot = slot;
            tokio::select! {
                served = serve_connection(stream, service) => {
                    if let Err(error) = served {
                        tracing::debug!(%error, "connection of a shim");
                    }
                }
                () = stopping.cancelled() => {}
            }
        });
    }
}

/// The next connection. For want of descriptors or memory it may have to wait: until then it stays in the socket's queue.
async fn accept(listener: &UnixListener, whose: &str) -> UnixStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(error) => tracing::warn!(%error, "accept a connection of {whose}; trying again"),
        }
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
}

/// Watches for SIGTERM and SIGINT from now on. The future resolves at the first of them.
///
/// # Errors
/// When the signals cannot be watched.
pub fn stop_signals() -> Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).doing(|| "watch for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).doing(|| "watch for SIGINT")?;
    Ok(async move {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        tracing::info!(signal = name, "stopping; containers keep running");
    })
}

/// Tells a service manager that waits for it that the daemon is ready.
pub fn notify_ready() {
    notify("READY=1");
}

/// Tells a service manager that the configuration is read again, until [`notify_ready`]; it wants to know since when.
pub fn notify_reloading() {
    let Ok(now) = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC) else { return };
    let micros = i128::from(now.tv_sec()) * 1_000_000 + i128::from(now.tv_nsec()) / 1_000;
    notify(&format!("RELOADING=1\nMONOTONIC_USEC={micros}"));
}

fn notify(text: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let sent = std::os::unix::net::UnixDatagram::unbound().and_then(|socket| match path.as_encoded_bytes() {
        [b'@', name @ ..] => {
            let address =
                <std::os::unix::net::SocketAddr as std::os::linux::net::SocketAddrExt>::from_abstract_name(name)?;
            socket.send_to_addr(text.as_bytes(), &address)
        }
        _ => socket.send_to(text.as_bytes(), Path::new(&path)),
    });
    if let Err(error) = sent {
        tracing::warn!(%error, "notify the service manager");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[tokio::test]
    async fn a_socket_replaces_a_dead_one_but_not_a_live_one() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("s");
        let owner =
            Grpc { uid: nix::unistd::getuid().as_raw(), gid: nix::unistd::getgid().as_raw(), ..Grpc::default() };
        drop(std::os::unix::net::UnixListener::bind(&path).expect("dead socket"));
        let socket = Socket::bind(&path, &owner).expect("replace the dead one");
        assert_eq!(fs::metadata(&path).expect("socket").permissions().mode() & 0o777, 0o660);
        assert_eq!(Socket::bind(&path, &owner).expect_err("live").kind(), Kind::FailedPrecondition);
        drop(socket);
        assert!(!path.exists());
        fs::create_dir(&path).expect("something else");
        assert_eq!(Socket::bind(&path, &owner).expect_err("directory").kind(), Kind::FailedPrecondition);
    }

    #[test]
    fn a_directory_belongs_to_one_daemon() {
        let dir = tempfile::tempdir().expect("directory");
        let config =
            |state: &str| Config { root: dir.path().join("root"), state: dir.path().join(state), ..Config::default() };
        let held = claim(&config("one")).expect("first");
        let error = claim(&config("two")).expect_err("same root");
        assert!(error.to_string().contains("--root"), "{error}");
        drop(held);
        claim(&config("two")).expect("after the first ended");
    }
}
