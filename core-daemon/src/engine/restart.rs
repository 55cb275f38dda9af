//! Restart policies: what follows when a container has ended by itself.

use std::time::{Duration, SystemTime};

use gantry_proto::namespace::Namespace;
use serde::{Deserialize, Serialize};

use super::{Ended, Engine, Known, Record};
use crate::blocking::blocking;
use crate::context::Context;
use crate::error::{Error, Kind, Result};
use crate::id::ContainerId;

/// The pause before the first restart; every further one doubles it.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// After a run of at least this length the pauses begin again with the first.
const GOOD_RUN: Duration = Duration::from_secs(10);

/// When a container is started again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Policy {
    /// Never.
    #[default]
    No,
    /// Whenever it has ended by itself, and when the daemon starts.
    Always,
    /// As `Always`, unless somebody has stopped it.
    UnlessStopped,
    /// If it has failed, at most so many times; 0 means without a limit.
    OnFailure(u32),
}

impl Policy {
    /// Reads docker's `no`, `always`, `unless-stopped` and `on-failure[:N]`.
    ///
    /// # Errors
    /// `InvalidArgument` for anything else.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let (name, limit) = text.split_once(':').unwrap_or((text, ""));
        match (name, limit) {
            ("" | "no", "") => Ok(Self::No),
            ("always", "") => Ok(Self::Always),
            ("unless-stopped", "") => Ok(Self::UnlessStopped),
            ("on-failure", "") => Ok(Self::OnFailure(0)),
            ("on-failure", limit) => limit
                .parse()
                .map(Self::OnFailure)
                .map_err(|_| Error::invalid(format!("restart policy {text:?}: {limit:?} is not a number"))),
            _ => Err(Error::invalid(format!(
                "restart policy {text:?}: expected no, always, unless-stopped or on-failure[:N]"
            ))),
        }
    }

    /// Its name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::Always => "always",
            Self::UnlessStopped => "unless-stopped",
            Self::OnFailure(_) => "on-failure",
        }
    }

    /// How often it may restart; 0 is without a limit.
    pub(super) fn limit(self) -> u32 {
        if let Self::OnFailure(limit) = self { limit } else { 0 }
    }

    /// Whether a run that ended with `code`, after so many restarts, is followed by another.
    pub(super) fn wants(self, code: u32, restarts: u32) -> bool {
        match self {
            Self::No => false,
            Self::Always | Self::UnlessStopped => true,
            Self::OnFailure(limit) => code != 0 && (limit == 0 || restarts < limit),
        }
    }
}

fn is_good(run: &Ended) -> bool {
    run.at.duration_since(run.started_at).unwrap_or_default() >= GOOD_RUN
}

/// The pause after a run that ended, where so many restarts came one after another since the last good run.
fn pause(ended: &Ended, in_a_row: u32) -> Duration {
    if is_good(ended) {
        return FIRST_PAUSE;
    }
    FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(in_a_row)).min(LONGEST_PAUSE)
}

/// Notes a restart.
fn count(record: &mut Record) {
    record.restarts = record.restarts.saturating_add(1);
    let begins_anew = record.ended.as_ref().is_some_and(is_good);
    record.restarts_in_a_row = if begins_anew { 1 } else { record.restarts_in_a_row.saturating_add(1) };
}

impl Engine {
    /// Starts a container again some time after its end, where its policy says so.
    pub(super) fn restart_later(&self, namespace: &Namespace, id: &ContainerId, ended: Ended) {
        self.restart_after(namespace, id, ended, 0);
    }

    /// As [`Engine::restart_later`], after so many restarts that failed. They may not be recorded: the disk may be full.
    fn restart_after(&self, namespace: &Namespace, id: &ContainerId, ended: Ended, failed: u32) {
        let Ok(known) = self.find(&Context::new(namespace.clone()), id.as_str()) else { return };
        let record = &known.record;
        if record.stopped || !record.restart.wants(ended.code, record.restarts) {
            return;
        }
        let pause = pause(&ended, record.restarts_in_a_row.max(failed));
        let (engine, namespace, id) = (self.clone(), namespace.clone(), id.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = engine.parts().stopping.cancelled() => return,
            }
            engine.restart_now(&namespace, &id, ended.code, failed).await;
        });
    }

    async fn restart_now(&self, namespace: &Namespace, id: &ContainerId, code: u32, failed: u32) {
        match self.try_restart(namespace, id, code).await {
            // It was removed.
            Err(error) if error.kind() == Kind::NotFound => {}
            Err(error) => {
                tracing::warn!(%namespace, %id, %error, "restart a container");
                let at = SystemTime::now();
                let ended = Ended { started_at: at, at, code: 127, oom_killed: false };
                self.restart_after(namespace, id, ended, failed.saturating_add(1));
            }
            Ok(()) => {}
        }
    }

    /// Starts a container that ended with `code` again, unless that is not wanted any more.
    async fn try_restart(&self, namespace: &Namespace, id: &ContainerId, code: u32) -> Result<()> {
        // In the container's turn: what clients have changed until now counts, and later changes wait.
        let _turn = self.shared.turns.take((namespace.clone(), id.clone())).await;
        let known = self.known(namespace, id)?;
        let record = &known.record;
        let runs = self.live().contains_key(&(namespace.clone(), id.clone()));
        if runs || record.stopped || !record.restart.wants(code, record.restarts) {
            return Ok(());
        }
        let (engine, of) = (self.clone(), (namespace.clone(), id.clone()));
        blocking(move || engine.edit_record(&of.0, &of.1, count)).await?;
        self.start_held(namespace, &known, false, None).await.map(drop)
    }

    /// Notes that somebody wants the container stopped, which a restart policy respects.
    pub(super) async fn mark_stopped(&self, namespace: &Namespace, known: &Known) -> Result<()> {
        if known.record.restart == Policy::No {
            return Ok(());
        }
        let (engine, of) = (self.clone(), (namespace.clone(), known.id.clone()));
        blocking(move || engine.edit_record(&of.0, &of.1, |record| record.stopped = true)).await
    }

    /// Notes a start by hand: policies begin anew. The caller has the container's turn, and read `known` in it.
    pub(super) async fn mark_started(&self, namespace: &Namespace, known: &Known) -> Result<()> {
        if known.record.restarts == 0 && !known.record.stopped {
            return Ok(());
        }
        let (engine, of) = (self.clone(), (namespace.clone(), known.id.clone()));
        let edit = |record: &mut Record| (record.restarts, record.restarts_in_a_row, record.stopped) = (0, 0, false);
        blocking(move || engine.edit_record(&of.0, &of.1, edit)).await
    }

    /// Starts what ran before the daemon and its machine went down, where the policies say so.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub(super) fn restart_after_restore(&self) -> Result<()> {
        for (namespace, known) in self.everything()? {
            let record = &known.record;
            let Some(ended) = record.ended else { continue };
            // A failure may have been about to be followed by a restart when the daemon ended.
            let wanted = record.restart.wants(ended.code, record.restarts)
                && (!record.stopped || record.restart == Policy::Always);
            if wanted && !self.parts().tasks.holds(&namespace, &known.id) {
                let (engine, stopped) = (self.clone(), record.stopped);
                tokio::spawn(async move {
                    if stopped && let Err(error) = engine.mark_started(&namespace, &known).await {
                        tracing::warn!(%namespace, id = %known.id, %error, "restart a container");
                    }
                    engine.restart_now(&namespace, &known.id, ended.code, 0).await;
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_docker_s() {
        for (text, policy) in [
            ("", Policy::No),
            ("no", Policy::No),
            ("always", Policy::Always),
            ("unless-stopped", Policy::UnlessStopped),
            ("on-failure", Policy::OnFailure(0)),
            ("on-failure:3", Policy::OnFailure(3)),
        ] {
            assert_eq!(Policy::parse(text).expect(text), policy);
        }
        for text in ["sometimes", "always:3", "on-failure:x"] {
            assert_eq!(Policy::parse(text).expect_err(text).kind(), Kind::InvalidArgument);
        }
        assert!(Policy::OnFailure(2).wants(1, 1) && !Policy::OnFailure(2).wants(1, 2));
        assert!(!Policy::OnFailure(0).wants(0, 0) && Policy::Always.wants(0, 100));
    }

    #[test]
    fn pauses_grow_until_a_run_is_good() {
        let now = SystemTime::now();
        let short = Ended { started_at: now, at: now, code: 1, oom_killed: false };
        assert_eq!((pause(&short, 0), pause(&short, 3)), (FIRST_PAUSE, FIRST_PAUSE * 8));
        assert_eq!(pause(&short, 40), LONGEST_PAUSE);
        let good = Ended { at: now + GOOD_RUN, ..short };
        assert_eq!(pause(&good, 40), FIRST_PAUSE);
        let mut record = Record::default();
        for ended in [short, short, good, short] {
            record.ended = Some(ended);
            count(&mut record);
        }
        assert_eq!((record.restarts, record.restarts_in_a_row), (4, 2));
    }
}
