//! The restart monitor: containers whose labels ask for it are kept as they want to be, which is how nerdctl's `--restart`
//! works.
//!
//! | Label `containerd.io/restart.` | Meaning |
//! |---|---|
//! | `status` | `running` or `stopped`: what the container shall be; without it the container is left alone |
//! | `policy` | `always` (the default), `on-failure[:N]`, `unless-stopped` or `no` |
//! | `count` | how often it was restarted, kept here |
//! | `loguri` | where the output of a restarted process goes; a program only if `runtime.restart_loggers` has it |
//! | `explicitly-stopped` | `true`: somebody stopped it, which `unless-stopped` respects |

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::{StreamExt as _, stream};
use gantry_proto::containerd::services::containers::v1::Container;
use gantry_proto::containerd::v1::types::Status;
use gantry_proto::namespace::Namespace;
use gantry_proto::time;
use tokio_util::sync::CancellationToken;

use super::delete::DYING;
use super::{CreateTask, Task, Tasks};
use crate::blocking::blocking;
use crate::config::Timeouts;
use crate::context::Context;
use crate::error::{Error, Kind, Result};
use crate::filter::Filter;
use crate::id::ContainerId;
use crate::labels::Labels;
use crate::signals::SIGKILL;

/// Containers that are seen to at the same time.
const AT_ONCE: usize = 16;
const PREFIX: &str = "containerd.io/restart.";

impl Tasks {
    /// Sees to all containers that have such labels, over and over.
    pub async fn keep_as_labelled(self, stopping: CancellationToken) {
        let mut tick = tokio::time::interval(self.interval());
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // The version of the records at which no container had such labels.
        let mut none_at = None;
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                () = stopping.cancelled() => return,
            }
            let now = self.parts().containers.changes();
            if none_at == Some(now) {
                continue;
            }
            match self.labelled() {
                Ok(labelled) if labelled.is_empty() => none_at = Some(now),
                Ok(labelled) => stream::iter(labelled).for_each_concurrent(AT_ONCE, |one| self.keep(one)).await,
                Err(error) => tracing::warn!(%error, "look for containers to restart"),
            }
        }
    }

    fn interval(&self) -> Duration {
        Timeouts::of(self.parts().runtime.restart_interval)
    }

    fn labelled(&self) -> Result<Vec<(Namespace, Container)>> {
        let filter = Filter::parse(&[format!("labels.\"{PREFIX}status\"")])?;
        let mut labelled = Vec::new();
        for namespace in self.parts().containers.namespaces()? {
            let containers = self.parts().containers.list(&namespace, &filter)?;
            labelled.extend(containers.into_iter().map(|container| (namespace.clone(), container)));
        }
        Ok(labelled)
    }

    async fn keep(&self, (namespace, container): (Namespace, Container)) {
        if let Err(error) = self.reconcile(&namespace, &container).await {
            tracing::warn!(%namespace, id = container.id, %error, "keep a container as its labels say");
        }
    }

    async fn reconcile(&self, namespace: &Namespace, container: &Container) -> Result<()> {
        let id = ContainerId::parse(&container.id)?;
        let task = match self.get(namespace, &id) {
            Ok(task) => Some(task),
            // Somebody is creating it.
            Err(_) if self.holds(namespace, &id) => return Ok(()),
            Err(_) => None,
        };
        let state = match &task {
            Some(task) => Some(task.state(None).await?),
            None => None,
        };
        let status = state.as_ref().map(|state| state.status);
        match label(&container.labels, "status") {
            "running" => {
                let alive =
                    matches!(status, Some(Status::Running | Status::Paused | Status::Pausing | Status::Created));
                let exit_status = state.map_or(0, |state| state.exit_status);
                let waits = task.is_none() && is_young(container, self.interval());
                if alive || waits || !wants_restart(&container.labels, exit_status)? {
                    return Ok(());
                }
                if let Some(task) = &task {
                    self.end(task).await?;
                }
                self.start_again(&Context::new(namespace.clone()), &id, container).await
            }
            "stopped" => match task.filter(|_| status != Some(Status::Stopped)) {
                Some(task) => self.end(&task).await,
                None => Ok(()),
            },
            other => Err(Error::invalid(format!("label {PREFIX}status: {other:?} is neither running nor stopped"))),
        }
    }

    /// Kills and deletes a task.
    async fn end(&self, task: &Arc<Task>) -> Result<()> {
        task.kill_unless_ended(SIGKILL, true).await?;
        let _ = tokio::time::timeout(DYING, task.wait(None)).await;
        self.delete(task.namespace(), task.id()).await.map(drop)
    }

    async fn start_again(&self, context: &Context, id: &ContainerId, container: &Container) -> Result<()> {
        let count = label(&container.labels, "count").parse::<u64>().unwrap_or(0).saturating_add(1);
        let (records, of) = (self.parts().containers.clone(), (context.namespace.clone(), id.clone()));
        let noted = move || {
            records.edit(&of.0, &of.1, |container| {
                container.labels.insert(format!("{PREFIX}count"), count.to_string());
                Ok(())
            })
        };
        blocking(noted).await?;
        let spec =
            container.spec.as_ref().and_then(|spec| serde_json::from_slice::<serde_json::Value>(&spec.value).ok());
        let terminal = spec.as_ref().and_then(|spec| spec.pointer("/process/terminal")?.as_bool()).unwrap_or(false);
        let stdout = log_of(&container.labels, &self.parts().runtime.restart_loggers)?;
        let stderr = if terminal { String::new() } else { stdout.clone() };
        let request = CreateTask { stdout, stderr, terminal, ..CreateTask::default() };
        let task = self.create(context, id, request).await?;
        tracing::info!(namespace = %context.namespace, %id, count, "restarting a container as its labels say");
        if let Err(error) = task.start(None).await {
            self.discard(&task).await;
            return Err(error);
        }
        Ok(())
    }
}

fn label<'a>(labels: &'a std::collections::BTreeMap<String, String>, name: &str) -> &'a str {
    labels.get(&format!("{PREFIX}{name}")).map(String::as_str).unwrap_or_default()
}

/// Where the output goes. Labels may come from an image, which must not choose what runs on this machine.
fn log_of(labels: &Labels, loggers: &[PathBuf]) -> Result<String> {
    let uri = label(labels, "loguri");
    let scheme = uri.split("://").next().unwrap_or_default();
    if scheme == "binary" || scheme == "binary-v2" {
        let path = uri.split("://").nth(1).unwrap_or_default().split(['?', '#']).next().unwrap_or_default();
        if !loggers.iter().any(|logger| logger.as_os_str() == path) {
            let text = format!("label {PREFIX}loguri: {path:?} is not among runtime.restart_loggers");
            return Err(Error::new(Kind::PermissionDenied, text));
        }
    }
    Ok(uri.to_owned())
}

/// Whether a container was made so recently that its client may still be about to create the first task itself.
fn is_young(container: &Container, grace: Duration) -> bool {
    let made = container.created_at.as_ref().map(time::system_time);
    made.and_then(|made| SystemTime::now().duration_since(made).ok()).is_some_and(|age| age < grace)
}

/// What the policy says of a container that does not run.
fn wants_restart(labels: &Labels, exit_status: u32) -> Result<bool> {
    let policy = label(labels, "policy");
    let (name, limit) = policy.split_once(':').unwrap_or((policy, ""));
    Ok(match name {
        "" | "always" => true,
        "no" => false,
        "unless-stopped" => !matches!(label(labels, "explicitly-stopped"), "true" | "1"),
        "on-failure" => {
            let number = |what: &str, text: &str| match text {
                "" => Ok(0),
                text => text.parse::<u64>().map_err(|_| Error::invalid(format!("label {PREFIX}{what}: {text:?}"))),
            };
            let (limit, count) = (number("policy", limit)?, number("count", label(labels, "count"))?);
            exit_status != 0 && (limit == 0 || count < limit)
        }
        _ => return Err(Error::invalid(format!("label {PREFIX}policy: {policy:?} is not known"))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wants(labels: &[(&str, &str)], exit_status: u32) -> Option<bool> {
        let labels = labels.iter().map(|(name, value)| (format!("{PREFIX}{name}"), (*value).to_owned())).collect();
        wants_restart(&labels, exit_status).ok()
    }

    #[test]
    fn labels_choose_only_loggers_that_are_configured() {
        let log = |uri: &str| {
            let labels = Labels::from([(format!("{PREFIX}loguri"), uri.to_owned())]);
            log_of(&labels, &[PathBuf::from("/usr/bin/logger")])
        };
        for good in ["", "file:///var/log/x", "binary:///usr/bin/logger?a=b", "binary-v2:///usr/bin/logger"] {
            assert_eq!(log(good).as_deref().ok(), Some(good));
        }
        for bad in ["binary:///bin/sh?-c=x", "binary:///usr/bin/../../bin/sh", "binary://", "binary-v2:///bin/sh"] {
            assert_eq!(log(bad).expect_err(bad).kind(), Kind::PermissionDenied);
        }
    }

    #[test]
    fn policies() {
        assert_eq!(wants(&[], 0), Some(true));
        assert_eq!(wants(&[("policy", "no")], 1), Some(false));
        assert_eq!(wants(&[("policy", "on-failure")], 0), Some(false));
        assert_eq!(wants(&[("policy", "on-failure:2"), ("count", "1")], 3), Some(true));
        assert_eq!(wants(&[("policy", "on-failure:2"), ("count", "2")], 3), Some(false));
        assert_eq!(wants(&[("policy", "unless-stopped")], 0), Some(true));
        assert_eq!(wants(&[("policy", "unless-stopped"), ("explicitly-stopped", "true")], 0), Some(false));
        assert_eq!(wants(&[("policy", "sometimes")], 0), None);
    }
}
