//! Whose images may be pulled, as containers-policy.json(5) says it: the file that podman and CRI-O have, read again for each
//! pull. Programs that are asked beside it are in `verify`.
//!
//! What is not known to be allowed is refused: a file that is missing or wrong refuses every image.

mod file;
mod identity;
mod keys;
mod signature;

use std::collections::HashSet;
use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rung_spec::digest::Digest;
use rung_spec::reference::Reference;

use self::file::{Policy, Requirement, Sigstore};
use self::identity::SignedIdentity;
use self::keys::Key;
use self::signature::Signature;
use crate::blocking::blocking;
use crate::config::ImagePolicy;
use crate::error::{Doing, Error, Kind, Result};
use crate::registry::Repository;

/// Largest file of a policy, and of a key, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// Most decisions that are remembered.
const REMEMBERED: usize = 4096;

/// Where the policies are.
#[derive(Debug, Clone, Default)]
pub struct Policies {
    file: PathBuf,
    tenants: PathBuf,
    /// What was found good: the digests of a policy, the keys it names, an image's name and its digest.
    good: Arc<Mutex<HashSet<Digest>>>,
}

/// Whether an earlier decision by the same policy about the same image counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// It does not: a signature may be gone by now.
    Anew,
    /// It does.
    Once,
}

impl Policies {
    /// As they are configured.
    pub fn new(config: &ImagePolicy) -> Self {
        Self { file: config.file.clone(), tenants: config.namespaces_dir.clone(), good: Arc::default() }
    }

    /// Finds out whether `image`, which stands for `digest` at its registry, may be had by `tenant`, a namespace of
    /// Kubernetes; an empty one has no policy of its own.
    ///
    /// # Errors
    /// `PermissionDenied`, a refusal with its reason; `FailedPrecondition` where a policy or a key cannot be read; what keeps
    /// the registry from giving the signatures.
    pub async fn check(
        &self,
        tenant: &str,
        image: &Reference,
        digest: &Digest,
        at: &Repository,
        ask: Ask,
    ) -> Result<()> {
        let (policies, tenant) = (self.clone(), tenant.to_owned());
        let Some(path) = blocking(move || policies.of(&tenant)).await? else { return Ok(()) };
        let doing = || format!("image policy {}", path.display());
        let (from, wanted, pinned) = (path.clone(), image.clone(), digest.clone());
        let demands = blocking(move || {
            let text = read(&from)?;
            let policy = Policy::parse(&text)?;
            let (scope, requirements) = policy.of(&wanted);
            let demands: Vec<_> =
                requirements.iter().map(|wanted| Demand::of(wanted, &scope)).collect::<Result<_>>()?;
            let case = case(&text, &wanted, &pinned, &demands);
            Ok((demands, case))
        });
        let (demands, case) = demands.await.doing(doing)?;
        let good = || self.good.lock().unwrap_or_else(PoisonError::into_inner);
        if ask == Ask::Once && good().contains(&case) {
            return Ok(());
        }
        let mut signatures = None;
        for demand in demands {
            let Demand::Signed(wanted) = demand else { continue };
            let signatures = match &mut signatures {
                Some(signatures) => signatures,
                none => none.insert(signature::all(at, digest).await.doing(doing)?),
            };
            wanted.check(image, digest, signatures).doing(doing)?;
        }
        let mut good = good();
        if good.len() >= REMEMBERED {
            good.clear();
        }
        good.insert(case);
        Ok(())
    }

    /// Whether anybody may have a policy of its own.
    pub fn has_tenants(&self) -> bool {
        !self.tenants.as_os_str().is_empty()
    }

    /// Whether `tenant` has a policy of its own. It waits for the disk.
    ///
    /// # Errors
    /// `FailedPrecondition` where that cannot be found out, `InvalidArgument` for what is no namespace.
    pub fn has_own(&self, tenant: &str) -> Result<bool> {
        self.own(tenant).map(|own| own.is_some())
    }

    /// The file that decides for `tenant`, if any does.
    fn of(&self, tenant: &str) -> Result<Option<PathBuf>> {
        let own = self.own(tenant)?;
        Ok(own.or_else(|| (!self.file.as_os_str().is_empty()).then(|| self.file.clone())))
    }

    fn own(&self, tenant: &str) -> Result<Option<PathBuf>> {
        if !self.has_tenants() || tenant.is_empty() {
            return Ok(None);
        }
        let is_name = tenant.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        if !is_name {
            return Err(Error::invalid(format!("namespace {tenant:?}: not a name of a namespace of Kubernetes")));
        }
        let unreadable = |path: &Path, why: String| {
            Error::new(Kind::FailedPrecondition, format!("image_policy.namespaces_dir: {}: {why}", path.display()))
        };
        // Without the directory nobody knows who has one.
        match std::fs::metadata(&self.tenants) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => return Err(unreadable(&self.tenants, "not a directory".to_owned())),
            Err(error) => return Err(unreadable(&self.tenants, error.to_string())),
        }
        let own = self.tenants.join(format!("{tenant}.json"));
        // A link that leads nowhere is a policy that cannot be read, and not none.
        match std::fs::symlink_metadata(&own) {
            Ok(_) => Ok(Some(own)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(unreadable(&own, error.to_string())),
        }
    }
}

/// What a decision is about.
fn case(policy: &[u8], image: &Reference, digest: &Digest, demands: &[Demand]) -> Digest {
    let mut text = format!("{}\n{image}\n{digest}\n", Digest::of(policy)).into_bytes();
    for demand in demands {
        if let Demand::Signed(wanted) = demand {
            wanted.keys.iter().for_each(|key| text.extend_from_slice(Digest::of(key.bits()).as_str().as_bytes()));
        }
    }
    Digest::of(&text)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let unreadable = |error: std::io::Error| Error::new(Kind::FailedPrecondition, format!("read: {error}"));
    File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes)).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(Error::new(Kind::FailedPrecondition, format!("larger than {MAX_FILE} bytes")));
    }
    Ok(bytes)
}

/// What one requirement comes to.
enum Demand {
    /// Anything goes.
    Nothing,
    Signed(Wanted),
}

/// A signature that is wanted.
struct Wanted {
    keys: Vec<Key>,
    identity: SignedIdentity,
    scope: String,
}

impl Demand {
    fn of(requirement: &Requirement, scope: &str) -> Result<Self> {
        let refused = |why: &str| Err(Error::refused(format!("{scope}: {why}")));
        match requirement {
            Requirement::InsecureAcceptAnything {} => Ok(Self::Nothing),
            Requirement::Reject {} => refused("images are rejected"),
            Requirement::SignedBy(()) => refused("wants signatures of GPG (signedBy), which gantryd does not verify"),
            Requirement::SignedBaseLayer(()) => refused("wants a signed base layer, which nobody verifies"),
            Requirement::SigstoreSigned(wanted) => {
                if let Some(field) = wanted.beyond_keys() {
                    return refused(&format!(
                        "wants {field} of sigstoreSigned, which gantryd does not verify: only keys"
                    ));
                }
                let keys = keys_of(wanted).doing(|| format!("{scope}: sigstoreSigned"))?;
                Ok(Self::Signed(Wanted { keys, identity: wanted.signed_identity.clone(), scope: scope.to_owned() }))
            }
        }
    }
}

fn keys_of(wanted: &Sigstore) -> Result<Vec<Key>> {
    let mut keys = Vec::new();
    for (field, path) in wanted.key_paths() {
        let doing = || format!("{field} {}", path.display());
        keys.push(Key::parse(&read(path).doing(doing)?).doing(doing)?);
    }
    for (field, data) in wanted.key_data() {
        keys.push(Key::parse_base64(data).doing(|| field)?);
    }
    match keys.is_empty() {
        true => Err(Error::new(Kind::FailedPrecondition, "no key")),
        false => Ok(keys),
    }
}

impl Wanted {
    /// Fails unless one signature is good.
    fn check(&self, image: &Reference, digest: &Digest, signatures: &[Signature]) -> Result<()> {
        let mut reasons = Vec::new();
        for signature in signatures {
            match signature.check(&self.keys, digest) {
                Ok(signed) if self.identity.accepts(image, &signed) => return Ok(()),
                Ok(signed) => reasons.push(format!("one is for {signed:?}, which {} does not accept", self.identity)),
                Err(reason) => reasons.push(reason),
            }
        }
        let reason = match reasons.is_empty() {
            true => format!("{digest} has no signature (tag {})", signature::tag(digest)),
            false => format!("no signature of {digest} is good: {}", reasons.join("; ")),
        };
        Err(Error::refused(format!("{}: {reason}", self.scope)))
    }
}

#[cfg(test)]
mod tests;
