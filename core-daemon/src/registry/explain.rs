//! Which hosts stand for a registry, in which order, with which account, and what each says: for people who wonder.

use reqwest::{Method, StatusCode};

use super::hosts::Host;
use super::transport::{Ask, failure};
use super::{Access, Registry, Repository};
use crate::error::{Error, Kind, Result};

/// One host and what it said.
#[derive(Debug, Clone)]
pub struct Explained {
    /// Its address.
    pub url: String,
    /// It stands in for the registry that the reference names.
    pub mirror: bool,
    /// What it is asked for: `resolve`, `pull`, `push`.
    pub capabilities: Vec<&'static str>,
    /// The account it gets, without its secret; empty for none.
    pub account: String,
    /// The digest it has for the name, or why it has none.
    pub outcome: Result<String, String>,
}

impl Registry {
    /// Finds out whether the account of `access` is good at the registry `name`.
    ///
    /// # Errors
    /// `Unauthenticated` where it is not; what connecting fails with.
    pub async fn check_account(&self, name: &str, access: &Access) -> Result<()> {
        let repository = self.of(name, "", None, access)?;
        let mut last = None;
        for host in repository.hosts.iter().filter(|host| host.is_registry) {
            if host.stands_in && last.as_ref().is_some_and(|error: &Error| error.kind() != Kind::Unavailable) {
                continue;
            }
            match repository.send(host, &Ask::new(Method::GET, host.base.clone()), "").await {
                Ok(answer) if answer.status().is_success() || answer.status() == StatusCode::NOT_FOUND => return Ok(()),
                Ok(answer) => last = Some(failure(host, answer).await),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| {
            let others: Vec<String> = repository.hosts.iter().map(Host::name).collect();
            let others = others.join(", ");
            Error::not_found(format!("registry {name}: hosts.toml names {others} in its place; log in there"))
        }))
    }
}

impl Repository {
    /// Asks every host for what the tag or digest `object` stands for.
    pub async fn explain(&self, object: &str) -> Vec<Explained> {
        let mut all = Vec::new();
        for host in self.hosts.iter() {
            let can = [(host.resolves, "resolve"), (host.pulls, "pull"), (host.pushes, "push")];
            let account = match self.account(host, &[]).await {
                Ok(account) => account.map(|account| account.shown()).unwrap_or_default(),
                Err(error) => error.to_string(),
            };
            let outcome = self.resolve_at(host.clone(), object).await;
            all.push(Explained {
                url: host.base.to_string(),
                mirror: !host.is_registry,
                capabilities: can.into_iter().filter(|(can, _)| *can).map(|(_, what)| what).collect(),
                account,
                outcome: outcome.map(|found| found.descriptor.digest.to_string()).map_err(|error| error.to_string()),
            });
        }
        all
    }
}
