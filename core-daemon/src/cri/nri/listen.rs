//! The socket to which plugins connect that somebody else starts.

use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use super::attend::attend;
use crate::blocking::blocking;
use crate::cri::Cri;
use crate::error::{Doing as _, Error, Result};

/// Plugins that are connected at once; more wait until one has gone.
const MOST: usize = 64;
/// Pause after a connection that could not be accepted.
const PAUSE: Duration = Duration::from_millis(100);

impl Cri {
    /// Listens for plugins. Where that cannot be, pods do without them: whoever starts one finds that it cannot connect.
    pub(super) async fn listen_for_plugins(&self) {
        let path = self.nri().settings.socket.clone();
        let bound = blocking(move || Socket::bind(&path)).await;
        let listener = bound.and_then(|socket| Ok((UnixListener::from_std(socket.listener.try_clone()?)?, socket)));
        match listener {
            Ok((listener, socket)) => {
                let cri = self.clone();
                self.nri().tasks.spawn(async move { cri.accept_plugins(listener, socket).await });
            }
            Err(error) => tracing::warn!(%error, "plugins of the node resource interface cannot connect"),
        }
    }

    async fn accept_plugins(&self, listener: UnixListener, _socket: Socket) {
        let (room, stopping) = (Arc::new(Semaphore::new(MOST)), self.parts().stopping.clone());
        loop {
            let next = async {
                // The semaphore is never closed.
                let place = room.clone().acquire_owned().await.ok();
                (listener.accept().await, place)
            };
            let (accepted, place) = tokio::select! {
                next = next => next,
                () = stopping.cancelled() => return,
            };
            match accepted {
                Ok((socket, _)) => self.serve_plugin(socket, place),
                Err(error) => {
                    tracing::warn!(%error, "accept a plugin of the node resource interface");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    fn serve_plugin(&self, socket: UnixStream, place: impl Send + 'static) {
        let cri = self.clone();
        self.nri().tasks.spawn(async move {
            attend(cri, socket, None, None).await;
            drop(place);
        });
    }
}

/// The socket, whose file is removed with it.
struct Socket {
    listener: std::os::unix::net::UnixListener,
    path: PathBuf,
}

impl Socket {
    /// Listens at `path` for the daemon's own user alone, replacing what a daemon that was killed left there.
    fn bind(path: &Path) -> Result<Self> {
        let doing = || format!("listen at {}", path.display());
        if let Some(parent) = path.parent() {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(parent).doing(doing)?;
        }
        match std::fs::symlink_metadata(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).doing(doing),
            Ok(metadata) if !metadata.file_type().is_socket() => {
                return Err(Error::precondition("something that is not a socket is in the way")).doing(doing);
            }
            Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => {
                let text = "another program listens there; stop that one, or give this one its own with cri.nri.socket";
                return Err(Error::precondition(text)).doing(doing);
            }
            Ok(_) => std::fs::remove_file(path).doing(doing)?,
        }
        let listener = std::os::unix::net::UnixListener::bind(path).doing(doing)?;
        // Connecting takes the right to write, which nobody else has had until here, as the daemon's mask sees to.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).doing(doing)?;
        listener.set_nonblocking(true).doing(doing)?;
        Ok(Self { listener, path: path.to_owned() })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
