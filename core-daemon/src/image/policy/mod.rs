//! Whose images may be pulled, as containers-policy.json(5) says it: the file that podman and CRI-O have, read again for each
//! pull. Programs that are asked beside it are in `verify`.
//!
//! What is not known to be allowed is refused: a file that is missing or wrong refuses every image.

mod file;
mod identity;
mod keys;
mod signature;

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use rung_spec::digest::Digest;
use rung_spec::reference::Reference;

use self::file::{Policy, Requirement, Sigstore};
use self::keys::Key;
use self::signature::Signature;
use crate::blocking::blocking;
use crate::config::ImagePolicy;
use crate::error::{Doing, Error, Kind, Result};
use crate::registry::Repository;

/// Largest file of a policy, and of a key, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// Where the policies are.
#[derive(Debug, Clone, Default)]
pub struct Policies {
    file: PathBuf,
    tenants: PathBuf,
}

impl Policies {
    /// As they are configured.
    pub fn new(config: &ImagePolicy) -> Self {
        Self { file: config.file.clone(), tenants: config.namespaces_dir.clone() }
    }

    /// Finds out whether `image`, which stands for `digest` at its registry, may be pulled for `tenant`, a namespace of
    /// Kubernetes; an empty one has no policy of its own.
    ///
    /// # Errors
    /// `PermissionDenied`, a refusal with its reason; `FailedPrecondition` where a policy or a key cannot be read; what keeps
    /// the registry from giving the signatures.
    pub async fn check(&self, tenant: &str, image: &Reference, digest: &Digest, at: &Repository) -> Result<()> {
        let Some(path) = self.of(tenant)? else { return Ok(()) };
        let doing = || format!("image policy {}", path.display());
        let (from, wanted) = (path.clone(), image.clone());
        let rules = blocking(move || {
            let policy = Policy::parse(&read(&from)?)?;
            let (scope, requirements) = policy.of(&wanted);
            requirements.iter().map(|requirement| Rule::of(requirement, &scope)).collect::<Result<Vec<_>>>()
        });
        let rules = rules.await.doing(doing)?;
        let mut signatures = None;
        for rule in rules {
            let Rule::Signed(wanted) = rule else { continue };
            let signatures = match &mut signatures {
                Some(signatures) => signatures,
                none => none.insert(signature::all(at, digest).await.doing(doing)?),
            };
            wanted.check(image, digest, signatures).doing(doing)?;
        }
        Ok(())
    }

    /// The file that decides for `tenant`, if any does.
    fn of(&self, tenant: &str) -> Result<Option<PathBuf>> {
        if !self.tenants.as_os_str().is_empty() && !tenant.is_empty() {
            let is_name = tenant.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
            if !is_name {
                return Err(Error::invalid(format!("namespace {tenant:?}: not a name of a namespace of Kubernetes")));
            }
            let own = self.tenants.join(format!("{tenant}.json"));
            if own.try_exists().doing(|| format!("image policy {}", own.display()))? {
                return Ok(Some(own));
            }
        }
        Ok((!self.file.as_os_str().is_empty()).then(|| self.file.clone()))
    }
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
enum Rule {
    /// Anything goes.
    Nothing,
    Signed(Wanted),
}

/// A signature that is wanted.
struct Wanted {
    keys: Vec<Key>,
    identity: identity::Rule,
    scope: String,
}

impl Rule {
    fn of(requirement: &Requirement, scope: &str) -> Result<Self> {
        let refused = |why: &str| Err(Error::refused(format!("{scope}: {why}")));
        match requirement {
            Requirement::InsecureAcceptAnything {} => Ok(Self::Nothing),
            Requirement::Reject {} => refused("images are rejected"),
            Requirement::SignedBy {} => refused("wants signatures of GPG (signedBy), which gantryd does not verify"),
            Requirement::SignedBaseLayer {} => refused("wants a signed base layer, which nobody verifies"),
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
    for path in wanted.key_paths() {
        let doing = || format!("key {}", path.display());
        keys.push(Key::parse(&read(path).doing(doing)?).doing(doing)?);
    }
    for data in wanted.key_data() {
        keys.push(Key::parse_base64(data).doing(|| "keyData")?);
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
