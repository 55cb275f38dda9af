//! Whether the name that a signature gives is that of the image.

use std::fmt;

use rung_spec::reference::Reference;
use serde::Deserialize;

/// The `signedIdentity` of a requirement.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "type", deny_unknown_fields, rename_all = "camelCase")]
pub(super) enum SignedIdentity {
    /// The very name. An image that is named by its digest may have any tag: that the digest is signed says enough.
    // Braces, as fields of units are not looked at.
    MatchRepoDigestOrExact {},
    MatchExact {},
    MatchRepository {},
    #[serde(rename_all = "camelCase")]
    ExactReference {
        docker_reference: String,
    },
    #[serde(rename_all = "camelCase")]
    ExactRepository {
        docker_repository: String,
    },
    /// As the first, for an image from `prefix`, a mirror of `signed_prefix`.
    #[serde(rename_all = "camelCase")]
    RemapIdentity {
        prefix: String,
        signed_prefix: String,
    },
}

/// A name as a signature or a policy has it: none where it is no name, and whether it is more than a repository.
fn named(text: &str) -> Option<(Reference, bool)> {
    let reference = Reference::parse(text).ok()?;
    let last = text.rsplit('/').next().unwrap_or(text);
    let has_tag = reference.digest.is_some() || last.contains(':');
    Some((reference, has_tag))
}

impl Default for SignedIdentity {
    fn default() -> Self {
        Self::MatchRepoDigestOrExact {}
    }
}

impl SignedIdentity {
    /// # Errors
    /// The field that no signature can match, and why.
    pub(super) fn check(&self) -> Result<(), String> {
        let has_tag = |field: &str, text: &str| match named(text) {
            Some((_, has_tag)) => Ok(has_tag),
            None => Err(format!("{field}: {text:?} is no name of an image")),
        };
        match self {
            Self::ExactReference { docker_reference } if !has_tag("dockerReference", docker_reference)? => {
                Err(format!("dockerReference: {docker_reference:?} has no tag and no digest"))
            }
            Self::ExactRepository { docker_repository } if has_tag("dockerRepository", docker_repository)? => {
                Err(format!("dockerRepository: {docker_repository:?} has a tag or a digest"))
            }
            Self::RemapIdentity { prefix, signed_prefix } => {
                let all = [("prefix", prefix), ("signedPrefix", signed_prefix)];
                match all.into_iter().find(|(_, text)| text.is_empty() || text.ends_with('/')) {
                    Some((field, text)) => Err(format!("{field}: {text:?} is no name of a host or a namespace")),
                    None => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }

    /// Whether `signed`, the name in a good signature, stands for `image`.
    pub(super) fn accepts(&self, image: &Reference, signed: &str) -> bool {
        let Some((signed, has_tag)) = named(signed) else { return false };
        let is_exact = |image: &Reference| has_tag && signed.to_string() == image.to_string();
        let is_repo_or_exact = |image: &Reference| match image.digest {
            Some(_) => signed.name() == image.name(),
            None => is_exact(image),
        };
        match self {
            Self::MatchRepoDigestOrExact {} => is_repo_or_exact(image),
            Self::MatchExact {} => is_exact(image),
            Self::MatchRepository {} => signed.name() == image.name(),
            Self::ExactReference { docker_reference } => {
                named(docker_reference).is_some_and(|(wanted, has_tag)| has_tag && is_exact(&wanted))
            }
            Self::ExactRepository { docker_repository } => {
                named(docker_repository).is_some_and(|(wanted, has_tag)| !has_tag && signed.name() == wanted.name())
            }
            Self::RemapIdentity { prefix, signed_prefix } => match remapped(image, prefix, signed_prefix) {
                Some(image) => is_repo_or_exact(&image),
                None => false,
            },
        }
    }
}

/// The image as it was called where it was signed; none where that is no name.
fn remapped(image: &Reference, prefix: &str, signed_prefix: &str) -> Option<Reference> {
    let name = image.name();
    let Some(rest) = name.strip_prefix(prefix).filter(|rest| rest.is_empty() || rest.starts_with('/')) else {
        return Some(image.clone());
    };
    let (renamed, has_tag) = named(&format!("{signed_prefix}{rest}"))?;
    (!has_tag).then(|| Reference { tag: image.tag.clone(), digest: image.digest.clone(), ..renamed })
}

impl fmt::Display for SignedIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MatchRepoDigestOrExact {} => f.write_str("matchRepoDigestOrExact"),
            Self::MatchExact {} => f.write_str("matchExact"),
            Self::MatchRepository {} => f.write_str("matchRepository"),
            Self::ExactReference { docker_reference } => write!(f, "exactReference {docker_reference:?}"),
            Self::ExactRepository { docker_repository } => write!(f, "exactRepository {docker_repository:?}"),
            Self::RemapIdentity { prefix, signed_prefix } => {
                write!(f, "remapIdentity of {prefix:?} to {signed_prefix:?}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_compared_as_the_rule_says() {
        let rule = |text: &str| serde_json::from_str::<SignedIdentity>(text).expect(text);
        let image = |text: &str| Reference::parse(text).expect("name");
        let (tagged, pinned) = (image("a.test/x:1"), image(&format!("a.test/x@sha256:{}", "a".repeat(64))));
        let either = rule(r#"{"type": "matchRepoDigestOrExact"}"#);
        assert!(
            either == SignedIdentity::default()
                && either.accepts(&tagged, "a.test/x:1")
                && either.accepts(&pinned, "a.test/x:7")
        );
        assert!(
            !either.accepts(&tagged, "a.test/x:2")
                && !either.accepts(&tagged, "a.test/x")
                && !either.accepts(&pinned, "a.test/y")
        );
        let latest = image("a.test/x");
        assert!(!either.accepts(&latest, "a.test/x") && either.accepts(&latest, "a.test/x:latest"), "no tag is none");
        let exact = rule(r#"{"type": "matchExact"}"#);
        assert!(exact.accepts(&tagged, "a.test/x:1") && !exact.accepts(&pinned, "a.test/x:1"));
        let repository = rule(r#"{"type": "matchRepository"}"#);
        assert!(repository.accepts(&tagged, "a.test/x") && repository.accepts(&pinned, "a.test/x:5"));
        assert!(!repository.accepts(&tagged, "a.test/xx") && !repository.accepts(&tagged, "A/B C"));
        let other = rule(r#"{"type": "exactReference", "dockerReference": "b.test/y:3"}"#);
        assert!(other.accepts(&tagged, "b.test/y:3") && !other.accepts(&tagged, "b.test/y:4"));
        let other = rule(r#"{"type": "exactRepository", "dockerRepository": "b.test/y"}"#);
        assert!(other.accepts(&tagged, "b.test/y:3") && !other.accepts(&tagged, "b.test/z:3"));
        let mirror = rule(r#"{"type": "remapIdentity", "prefix": "a.test", "signedPrefix": "b.test/z"}"#);
        assert!(mirror.accepts(&tagged, "b.test/z/x:1") && !mirror.accepts(&tagged, "a.test/x:1"));
        assert!(mirror.accepts(&image("a.testing/x:1"), "a.testing/x:1"), "no prefix of a part");
        for wrong in [r#"{"type": "exactReference"}"#, r#"{"type": "matchRepository", "dockerRepository": "a.test/x"}"#]
        {
            assert!(serde_json::from_str::<SignedIdentity>(wrong).is_err(), "{wrong}");
        }
        for (wrong, field) in [
            (r#"{"type": "exactReference", "dockerReference": "a.test/x"}"#, "dockerReference"),
            (r#"{"type": "exactRepository", "dockerRepository": "a.test/x:1"}"#, "dockerRepository"),
            (r#"{"type": "exactRepository", "dockerRepository": "A B"}"#, "dockerRepository"),
            (r#"{"type": "remapIdentity", "prefix": "", "signedPrefix": "a.test"}"#, "prefix"),
            (r#"{"type": "remapIdentity", "prefix": "a.test", "signedPrefix": "b.test/"}"#, "signedPrefix"),
        ] {
            assert!(rule(wrong).check().expect_err(wrong).starts_with(field), "{wrong}");
        }
        assert_eq!((other.check(), mirror.check(), either.check()), (Ok(()), Ok(()), Ok(())));
    }
}
