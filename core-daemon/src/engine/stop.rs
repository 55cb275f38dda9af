//! Stopping, restarting, killing and waiting.

use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use gantry_proto::gantry::engine::v1 as api;

use super::attach::not_running;
use super::{Ended, Engine, Known, Live, start};
use crate::context::Context;
use crate::error::{Error, Kind, Result};
use crate::signals::{self, SIGKILL};

/// How long a container has to stop by itself, unless the request or the container says.
const GRACE: u32 = 10;
/// How long a killed container may take to end.
const AFTER_KILL: Duration = Duration::from_secs(30);

impl Engine {
    /// Asks a container to stop, and kills it if it does not in time. One that does not run is stopped already.
    ///
    /// # Errors
    /// `NotFound` without such a container, `DeadlineExceeded` when even SIGKILL does not end it.
    pub async fn stop(&self, context: &Context, request: &api::StopRequest) -> Result<()> {
        let known = self.find(context, &request.r#ref)?;
        let (signal, grace) = wanted(&known, &request.signal, request.timeout)?;
        // A start in progress is waited for: its container is the one to stop.
        let turn = self.shared.turns.take((context.namespace.clone(), known.id.clone())).await;
        let known = match self.known(&context.namespace, &known.id) {
            // It was removed meanwhile.
            Err(error) if error.kind() == Kind::NotFound => return Ok(()),
            known => known?,
        };
        self.mark_stopped(&context.namespace, &known).await?;
        let live = self.running(&context.namespace, &known.id);
        // Without the turn, so that another client can remove the container by force during the grace period.
        drop(turn);
        let Some(live) = live else { return Ok(()) };
        self.end_run(&known, &live, signal, grace).await?;
        self.note(&context.namespace, &known, "stop", &[]);
        Ok(())
    }

    /// Stops a container if it runs, and starts it. It is not marked as stopped by a person, so if the daemon ends in
    /// between, the next one starts it again as its policy says.
    ///
    /// # Errors
    /// As [`Engine::stop`] and [`Engine::start`]; where it cannot be stopped, it runs on.
    pub async fn restart(&self, context: &Context, request: &api::RestartRequest) -> Result<()> {
        let known = self.find(context, &request.r#ref)?;
        let (signal, grace) = wanted(&known, &request.signal, request.timeout)?;
        // As for a stop.
        drop(self.shared.turns.take((context.namespace.clone(), known.id.clone())).await);
        if let Some(live) = self.running(&context.namespace, &known.id) {
            live.goes_on.store(true, Ordering::Relaxed);
            let ended = self.end_run(&known, &live, signal, grace).await;
            ended.inspect_err(|_| live.goes_on.store(false, Ordering::Relaxed))?;
            self.note(&context.namespace, &known, "stop", &[]);
        }
        self.start_known(&context.namespace, &known.id, false).await?;
        self.note(&context.namespace, &known, "restart", &[]);
        Ok(())
    }

    /// Ends a run: asks the process, and kills it if it has not ended after `grace`.
    pub(super) async fn end_run(&self, known: &Known, live: &Live, signal: u32, grace: Duration) -> Result<()> {
        if start::is_paused(live) {
            // A frozen process cannot answer a signal.
            live.task.thaw().await?;
        }
        let namespace = live.task.namespace();
        if !grace.is_zero() {
            self.note(namespace, known, "kill", &[("signal", &signal.to_string())]);
            live.task.kill_unless_ended(signal, false).await?;
            if tokio::time::timeout(grace, live.settled()).await.is_ok() {
                return Ok(());
            }
        }
        self.note(namespace, known, "kill", &[("signal", &SIGKILL.to_string())]);
        live.task.kill_unless_ended(SIGKILL, true).await?;
        tokio::time::timeout(AFTER_KILL, live.settled()).await.map_err(|_| {
            let (name, waited) = (&known.record.name, AFTER_KILL.as_secs());
            Error::new(Kind::DeadlineExceeded, format!("stop container {name}: still there {waited} s after SIGKILL"))
        })
    }

    /// Sends a signal to a container's process.
    ///
    /// # Errors
    /// `FailedPrecondition` when it does not run.
    pub async fn kill(&self, context: &Context, request: &api::KillRequest) -> Result<()> {
        let known = self.find(context, &request.r#ref)?;
        let signal = match request.signal.as_str() {
            "" => SIGKILL,
            text => signals::parse(text)?,
        };
        let live = self.running(&context.namespace, &known.id).ok_or_else(|| not_running(&known.record.name))?;
        // Other signals are messages to the program: its end after them is its own.
        if signal == SIGKILL || signal == known.record.stop_signal {
            self.mark_stopped(&context.namespace, &known).await?;
        }
        self.note(&context.namespace, &known, "kill", &[("signal", &signal.to_string())]);
        match live.task.kill(None, signal, false).await {
            Err(error) if error.kind() == Kind::NotFound => Err(not_running(&known.record.name)),
            killed => killed,
        }
    }

    /// Waits until a container does not run, and says how its last run ended.
    ///
    /// # Errors
    /// `NotFound` without such a container, `Unavailable` when the daemon stops before it does.
    pub async fn wait(&self, context: &Context, reference: &str) -> Result<Ended> {
        let known = self.find(context, reference)?;
        let live = self.live().get(&(context.namespace.clone(), known.id.clone())).cloned();
        let Some(live) = live else {
            let never = Ended { started_at: SystemTime::now(), at: SystemTime::now(), code: 0, oom_killed: false };
            return Ok(known.record.ended.unwrap_or(never));
        };
        tokio::select! {
            ended = live.end() => ended,
            () = self.parts().stopping.cancelled() => Err(Error::unavailable("the daemon is stopping; wait again later")),
        }
    }
}

/// The signal that asks a container to stop, and how long it has to, where the request may say otherwise.
fn wanted(known: &Known, signal: &str, timeout: Option<u32>) -> Result<(u32, Duration)> {
    let signal = match signal {
        "" => known.record.stop_signal,
        text => signals::parse(text)?,
    };
    let grace = timeout.or(known.record.stop_timeout).unwrap_or(GRACE);
    Ok((signal, Duration::from_secs(u64::from(grace))))
}
