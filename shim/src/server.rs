//! The supervisor's process: detach from the daemon, serve the socket, end when there is nothing left to supervise.

use std::fs::OpenOptions;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener as StdListener;
use std::sync::Arc;
use std::time::Duration;

use gantry_proto::ttrpc::serve_connection;
use rung_sys::process;
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::bootstrap::Setting;
use crate::lifetime::Lifetime;
use crate::service::Services;
use crate::{Doing, Result, log};

/// How long the shim tries to deliver its last events before it ends. A daemon that is away learns the same when it
/// comes back and finds no shim.
const LAST_EVENTS: Duration = Duration::from_secs(1);
/// Connections served at once; containerd's CRI makes one for each stream of each process.
const MAX_CLIENTS: usize = 512;
/// Pause after a connection that could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves `listener` until the shim's work is done.
///
/// # Errors
/// Where the process cannot be set up.
pub fn run(listener: StdListener, setting: Setting) -> Result<()> {
    detach().doing(|| "detach the supervisor")?;
    rung_sys::spawn::without_copying();
    log::to_bundle(&setting.bundle, setting.debug);
    process::set_child_subreaper(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.doing(|| "start the event loop")?.block_on(serve(listener, setting))
}

/// Leaves the daemon's session, terminal, outputs and working directory. The daemon waits for its outputs to close.
fn detach() -> Result<()> {
    process::new_session()?;
    // The bundle is removed while the shim lives; a working directory there would be in the way.
    std::env::set_current_dir("/")?;
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    nix::unistd::dup2_stdin(null.as_fd())?;
    nix::unistd::dup2_stdout(null.as_fd())?;
    nix::unistd::dup2_stderr(null.as_fd())?;
    Ok(())
}

struct Signals {
    child: Signal,
    terminate: Signal,
    interrupt: Signal,
    dump: Signal,
}

impl Signals {
    fn open() -> std::io::Result<Self> {
        Ok(Self {
            child: signal(SignalKind::child())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            dump: signal(SignalKind::user_defined1())?,
        })
    }
}

async fn serve(listener: StdListener, setting: Setting) -> Result<()> {
    let mut signals = Signals::open().doing(|| "watch signals")?;
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener).doing(|| "serve the socket")?;
    tracing::debug!(id = setting.id, pid = std::process::id(), "supervisor started");
    let services = Arc::new(Services::new(setting));
    let lifetime = services.lifetime().clone();
    let over = lifetime.over();
    tokio::pin!(over);
    loop {
        tokio::select! {
            () = &mut over => break,
            _ = signals.child.recv() => services.reaper().collect(),
            _ = signals.terminate.recv() => stop_if_idle(&services),
            _ = signals.interrupt.recv() => stop_if_idle(&services),
            _ = signals.dump.recv() => services.dump(),
            stream = accept(&listener, &lifetime) => {
                // This may be the daemon after a restart: events that could not be sent are sent now.
                services.events().nudge();
                let hold = lifetime.client();
                let services = services.clone();
                tokio::spawn(async move {
                    if let Err(error) = serve_connection(stream, services).await {
                        tracing::debug!(%error, "connection ended");
                    }
                    drop(hold);
                });
            },
        }
    }
    services.leave();
    // The answer to the call that ends the shim still passes through two tasks, which get their turns here.
    for _ in 0..16 {
        tokio::task::yield_now().await;
    }
    if tokio::time::timeout(LAST_EVENTS, services.events().drained()).await.is_err() {
        tracing::warn!("the daemon did not take the last events");
    }
    Ok(())
}

/// The next connection, once there is room for it.
async fn accept(listener: &UnixListener, lifetime: &Lifetime) -> UnixStream {
    loop {
        lifetime.room_below(MAX_CLIENTS).await;
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            // Out of descriptors or memory. The connection stays in the socket's queue and is accepted later.
            Err(error) => tracing::error!(%error, "accept a connection"),
        }
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
}

fn stop_if_idle(services: &Services) {
    if services.lifetime().is_empty() {
        services.leave();
    } else {
        tracing::info!("a signal asks the supervisor to end, but it has containers");
    }
}
