//! The file: containers-policy.json(5).

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use rung_spec::reference::Reference;
use serde::de::{Error as _, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::identity::SignedIdentity;
use crate::error::{Error, Kind, Result};

/// How images from registries are called there.
const TRANSPORT: &str = "docker";

/// What is wanted of which images.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Policy {
    default: Vec<Requirement>,
    #[serde(default)]
    transports: Named<Named<Vec<Requirement>>>,
}

/// Values by their names. One that is there twice is an error, as nobody could say which counts.
#[derive(Debug)]
struct Named<T>(BTreeMap<String, T>);

impl<T> Default for Named<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Named<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        struct Once<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Once<T> {
            type Value = Named<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
                let mut all = BTreeMap::new();
                while let Some((name, value)) = map.next_entry::<String, T>()? {
                    if all.insert(name.clone(), value).is_some() {
                        return Err(A::Error::custom(format!("{name:?} is there twice")));
                    }
                }
                Ok(Named(all))
            }
        }
        from.deserialize_map(Once(PhantomData))
    }
}

/// What is not looked at, as its image is refused anyway.
fn anything<'de, D: Deserializer<'de>>(from: D) -> std::result::Result<(), D::Error> {
    IgnoredAny::deserialize(from).map(drop)
}

/// All of a list must be met.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", deny_unknown_fields, rename_all = "camelCase")]
pub(super) enum Requirement {
    InsecureAcceptAnything {},
    Reject {},
    SigstoreSigned(Box<Sigstore>),
    #[serde(deserialize_with = "anything")]
    SignedBy(()),
    #[serde(deserialize_with = "anything")]
    SignedBaseLayer(()),
}

/// A signature made with one of some keys.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct Sigstore {
    key_path: Option<PathBuf>,
    key_paths: Vec<PathBuf>,
    key_data: Option<String>,
    key_datas: Vec<String>,
    pub(super) signed_identity: SignedIdentity,
    fulcio: Option<Value>,
    pki: Option<Value>,
    rekor_public_key_path: Option<Value>,
    rekor_public_key_paths: Option<Value>,
    rekor_public_key_data: Option<Value>,
    rekor_public_key_datas: Option<Value>,
}

impl Sigstore {
    /// Files of keys, by the fields that name them.
    pub(super) fn key_paths(&self) -> impl Iterator<Item = (String, &Path)> {
        let one = self.key_path.iter().map(|path| ("keyPath".to_owned(), path.as_path()));
        let list = self.key_paths.iter().enumerate();
        one.chain(list.map(|(place, path)| (format!("keyPaths[{place}]"), path.as_path())))
    }

    /// Keys in base64, by the fields that have them.
    pub(super) fn key_data(&self) -> impl Iterator<Item = (String, &str)> {
        let one = self.key_data.iter().map(|data| ("keyData".to_owned(), data.as_str()));
        let list = self.key_datas.iter().enumerate();
        one.chain(list.map(|(place, data)| (format!("keyDatas[{place}]"), data.as_str())))
    }

    /// A field that asks for more than keys can show.
    pub(super) fn beyond_keys(&self) -> Option<&'static str> {
        let fields = [
            ("fulcio", &self.fulcio),
            ("pki", &self.pki),
            ("rekorPublicKeyPath", &self.rekor_public_key_path),
            ("rekorPublicKeyPaths", &self.rekor_public_key_paths),
            ("rekorPublicKeyData", &self.rekor_public_key_data),
            ("rekorPublicKeyDatas", &self.rekor_public_key_datas),
        ];
        fields.into_iter().find_map(|(name, value)| value.is_some().then_some(name))
    }

    /// # Errors
    /// What no signature could ever meet.
    fn check(&self) -> std::result::Result<(), String> {
        if self.beyond_keys().is_some() {
            return Ok(());
        }
        if self.sources() != 1 {
            return Err("wants exactly one of keyPath, keyPaths, keyData and keyDatas".to_owned());
        }
        if let Some((field, path)) = self.key_paths().find(|(_, path)| !path.is_absolute()) {
            return Err(format!("{field}: {}: path must be absolute", path.display()));
        }
        self.signed_identity.check().map_err(|problem| format!("signedIdentity.{problem}"))
    }

    fn sources(&self) -> usize {
        let once = [self.key_path.is_some(), self.key_data.is_some()];
        let lists = [!self.key_paths.is_empty(), !self.key_datas.is_empty()];
        once.into_iter().chain(lists).filter(|is_there| *is_there).count()
    }
}

impl Policy {
    /// # Errors
    /// `FailedPrecondition` with the place that is wrong.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self> {
        let wrong = |text: String| Error::new(Kind::FailedPrecondition, text);
        let mut json = serde_json::Deserializer::from_slice(bytes);
        let policy: Self = serde_path_to_error::deserialize(&mut json).map_err(|error| wrong(error.to_string()))?;
        json.end().map_err(|error| wrong(error.to_string()))?;
        let scopes = policy.transports.0.iter().flat_map(|(name, scopes)| scopes.0.iter().map(move |it| (name, it)));
        let scopes = scopes.map(|(name, (scope, wanted))| (format!("transports.{name}.{scope:?}"), wanted));
        for (place, wanted) in [("default".to_owned(), &policy.default)].into_iter().chain(scopes) {
            if wanted.is_empty() {
                return Err(wrong(format!(
                    "{place}: must name what is wanted, or \"reject\" or \"insecureAcceptAnything\""
                )));
            }
            for (number, requirement) in wanted.iter().enumerate() {
                if let Requirement::SigstoreSigned(it) = requirement {
                    it.check().map_err(|problem| wrong(format!("{place}[{number}]: {problem}")))?;
                }
            }
        }
        Ok(policy)
    }

    /// What is wanted of an image, and where that is said: the narrowest scope it is in.
    pub(super) fn of(&self, image: &Reference) -> (String, &[Requirement]) {
        if let Some(Named(docker)) = self.transports.0.get(TRANSPORT) {
            for scope in scopes(image) {
                if let Some(wanted) = docker.get(&scope) {
                    return (format!("transports.{TRANSPORT}.{scope:?}"), wanted);
                }
            }
        }
        ("default".to_owned(), &self.default)
    }
}

/// The scopes that an image is in, the narrowest first.
fn scopes(image: &Reference) -> Vec<String> {
    // With a digest, the tag says nothing about what is pulled.
    let whole = match &image.digest {
        Some(digest) => image.at(digest.clone()),
        None => image.clone(),
    };
    let mut scopes = vec![whole.to_string()];
    let mut rest = image.name();
    while let Some((shorter, _)) = rest.rsplit_once('/') {
        let shorter = shorter.to_owned();
        scopes.push(std::mem::replace(&mut rest, shorter));
    }
    scopes.push(rest);
    // Patterns are of hosts without their ports, and of names.
    let mut host = match image.host.as_str() {
        address if address.starts_with('[') => "",
        host => host.split(':').next().unwrap_or_default(),
    };
    while let Some((_, domain)) = host.split_once('.') {
        scopes.push(format!("*.{domain}"));
        host = domain;
    }
    scopes.push(String::new());
    scopes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_narrowest_scope_decides() {
        let image = |text: &str| Reference::parse(text).expect("name");
        let all = scopes(&image("reg.a.test:5000/x/y:1"));
        let expected = [
            "reg.a.test:5000/x/y:1",
            "reg.a.test:5000/x/y",
            "reg.a.test:5000/x",
            "reg.a.test:5000",
            "*.a.test",
            "*.test",
            "",
        ];
        assert_eq!(all, expected);
        let digest = format!("sha256:{}", "a".repeat(64));
        assert_eq!(scopes(&image(&format!("a.test/x:1@{digest}")))[0], format!("a.test/x@{digest}"), "not the tag's");
        assert_eq!(scopes(&image("busybox"))[1], "docker.io/library/busybox");
        let text = r#"{"default": [{"type": "reject"}], "transports": {"docker": {
            "a.test": [{"type": "insecureAcceptAnything"}], "a.test/x": [{"type": "reject"}], "": [{"type": "reject"}]}}}"#;
        let policy = Policy::parse(text.as_bytes()).expect("policy");
        let of = |text: &str| policy.of(&image(text)).0;
        assert_eq!(of("a.test/y/z:1"), "transports.docker.\"a.test\"");
        assert_eq!(of("a.test/x/z:1"), "transports.docker.\"a.test/x\"");
        assert_eq!(of("a.test/xx:1"), "transports.docker.\"a.test\"", "no prefix of a part");
        assert_eq!(of("b.test/x:1"), "transports.docker.\"\"");
        let policy = Policy::parse(br#"{"default": [{"type": "reject"}]}"#).expect("policy");
        assert_eq!(policy.of(&image("b.test/x:1")).0, "default");
    }

    #[test]
    fn a_wrong_file_says_where() {
        let wrong = |text: &str| Policy::parse(text.as_bytes()).expect_err(text).to_string();
        assert!(wrong("{}").contains("default"), "{}", wrong("{}"));
        assert!(wrong(r#"{"default": []}"#).contains("default"));
        assert!(wrong(r#"{"default": [{"type": "reject"}], "more": 1}"#).contains("more"));
        let kind = wrong(r#"{"default": [{"type": "accept"}]}"#);
        assert!(kind.contains("accept"), "{kind}");
        let keys = wrong(r#"{"default": [{"type": "sigstoreSigned"}]}"#);
        assert!(keys.contains("default[0]: wants exactly one of keyPath"), "{keys}");
        let both = r#"{"default": [{"type": "sigstoreSigned", "keyPath": "/a", "keyData": "b"}]}"#;
        assert!(wrong(both).contains("exactly one"));
        let field = wrong(r#"{"default": [{"type": "sigstoreSigned", "keyPaht": "/a"}]}"#);
        assert!(field.contains("keyPaht"), "{field}");
        let half = wrong(r#"{"default": [{"type": "insecureAcceptAnything", "keyPath": "/k"}]}"#);
        assert!(half.contains("keyPath"), "{half}");
        let relative = wrong(r#"{"default": [{"type": "sigstoreSigned", "keyPaths": ["/a", "b"]}]}"#);
        assert!(relative.contains("default[0]: keyPaths[1]: b: path must be absolute"), "{relative}");
        let identity = r#"{"type": "exactRepository", "dockerRepository": "a.test/x:1"}"#;
        let identity = wrong(&format!(
            r#"{{"default": [{{"type": "sigstoreSigned", "keyPath": "/a", "signedIdentity": {identity}}}]}}"#
        ));
        assert!(identity.contains("default[0]: signedIdentity.dockerRepository: "), "{identity}");
        let one = r#""a.test": [{"type": "reject"}]"#;
        let twice =
            wrong(&format!(r#"{{"default": [{{"type": "reject"}}], "transports": {{"docker": {{{one}, {one}}}}}}}"#));
        assert!(twice.contains("transports.docker: \"a.test\" is there twice"), "{twice}");
        let gpg = r#"{"default": [{"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/a"}]}"#;
        assert!(Policy::parse(gpg.as_bytes()).is_ok(), "it refuses only its own images");
        let scope = r#"{"default": [{"type": "reject"}], "transports": {"docker": {"a.test": []}}}"#;
        assert!(wrong(scope).contains("transports.docker.\"a.test\""));
    }
}
