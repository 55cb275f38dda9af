//! The containers of this shim, by identifier. The lock is short and never held across a wait.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::task::Mailbox;
use crate::{Error, Result};

/// Every container's mailbox.
#[derive(Debug, Clone, Default)]
pub struct Containers {
    mailboxes: Arc<Mutex<BTreeMap<String, Mailbox>>>,
}

impl Containers {
    /// The mailbox of `id`.
    ///
    /// # Errors
    /// `NotFound` where there is no such container.
    pub fn get(&self, id: &str) -> Result<Mailbox> {
        self.lock().get(id).cloned().ok_or_else(|| Error::not_found(format!("container {id} is not created")))
    }

    /// Takes `id` for a new container.
    ///
    /// # Errors
    /// `AlreadyExists` where it is taken.
    pub fn insert(&self, id: &str, make: impl FnOnce() -> Mailbox) -> Result<Mailbox> {
        let mut mailboxes = self.lock();
        if mailboxes.contains_key(id) {
            return Err(Error::already_exists(format!("container {id} already exists")));
        }
        let mailbox = make();
        mailboxes.insert(id.to_owned(), mailbox.clone());
        Ok(mailbox)
    }

    /// Forgets `id`.
    pub fn remove(&self, id: &str) {
        self.lock().remove(id);
    }

    /// Every identifier.
    pub fn ids(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Mailbox>> {
        self.mailboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
