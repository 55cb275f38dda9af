//! Who is asking: the namespace and lease of a call, passed explicitly to everything that acts for it.

use gantry_proto::namespace::{LEASE_HEADER, NAMESPACE_HEADER, Namespace};
use tonic::metadata::MetadataMap;

use crate::error::{Error, Result};

/// The namespace a call acts in, and the lease that holds what it makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Context {
    /// Every name the call uses is a name in this namespace.
    pub namespace: Namespace,
    /// What the call makes is added to this lease in the same transaction.
    pub lease: Option<String>,
}

impl Context {
    /// A call in `namespace` without a lease.
    pub fn new(namespace: Namespace) -> Self {
        Self { namespace, lease: None }
    }

    /// The same call under `lease`.
    #[must_use]
    pub fn with_lease(mut self, lease: impl Into<String>) -> Self {
        self.lease = Some(lease.into());
        self
    }

    /// Reads the headers of a gRPC call.
    ///
    /// # Errors
    /// `FailedPrecondition` without a namespace header, `InvalidArgument` where a header is malformed.
    pub fn of(headers: &MetadataMap) -> Result<Self> {
        let text = |name: &str| match headers.get(name) {
            Some(value) => match value.to_str() {
                Ok(text) => Ok(Some(text.to_owned())),
                Err(_) => Err(Error::invalid(format!("header {name}: not text"))),
            },
            None => Ok(None),
        };
        let namespace = match text(NAMESPACE_HEADER)? {
            Some(name) if !name.is_empty() => {
                Namespace::parse(&name).map_err(|error| Error::invalid(format!("namespace: {error}")))?
            }
            _ => return Err(Error::precondition("namespace is required")),
        };
        Ok(Self { namespace, lease: text(LEASE_HEADER)?.filter(|lease| !lease.is_empty()) })
    }
}
