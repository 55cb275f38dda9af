//! What travels beside a call's message: metadata and the time left.

use std::time::Duration;

use crate::namespace::{NAMESPACE_TTRPC, Namespace};
use crate::time;
use crate::ttrpc::{KeyValue, Request};

/// Metadata and timeout of one call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Context {
    metadata: Vec<(String, String)>,
    timeout: Option<Duration>,
}

impl Context {
    /// No metadata, no timeout.
    pub fn new() -> Self {
        Self::default()
    }

    /// A call in `namespace`.
    pub fn in_namespace(namespace: &Namespace) -> Self {
        Self::new().with(NAMESPACE_TTRPC, namespace.as_str())
    }

    /// Adds a metadata pair; a key may occur several times.
    #[must_use]
    pub fn with(mut self, key: &str, value: &str) -> Self {
        self.metadata.push((key.to_owned(), value.to_owned()));
        self
    }

    /// The call fails with `DeadlineExceeded` after `timeout`, here and at the server.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// First value of `key`; keys are compared without regard to case.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.metadata.iter().find(|(name, _)| name.eq_ignore_ascii_case(key)).map(|(_, value)| value.as_str())
    }

    /// The namespace the call acts in, where it names one.
    pub fn namespace(&self) -> Option<&str> {
        self.get(NAMESPACE_TTRPC)
    }

    /// How long the call may take.
    pub fn timeout(&self) -> Option<Duration> {
        self.timeout
    }

    pub(super) fn of(request: &Request) -> Self {
        let metadata = request.metadata.iter().map(|pair| (pair.key.clone(), pair.value.clone())).collect();
        Self { metadata, timeout: time::duration(request.timeout_nano) }
    }

    pub(super) fn request(&self, service: &str, method: &str, payload: Vec<u8>) -> Request {
        let pair = |(key, value): &(String, String)| KeyValue { key: key.clone(), value: value.clone() };
        Request {
            service: service.to_owned(),
            method: method.to_owned(),
            payload,
            timeout_nano: self.timeout.map_or(0, time::nanoseconds),
            metadata: self.metadata.iter().map(pair).collect(),
        }
    }
}
