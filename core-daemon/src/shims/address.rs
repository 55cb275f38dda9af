//! Where a shim listens, as its `start` says: protobuf, JSON or a bare address, from three generations of shims.

use std::path::{Path, PathBuf};

use gantry_proto::containerd::runtime::bootstrap::v1::BootstrapResult;
use prost::Message as _;
use serde::{Deserialize, Serialize};

use crate::error::{Doing, Error, Kind, Result};

/// Newest Task service this daemon speaks.
const NEWEST: u32 = 3;

/// How to reach a shim. This is also what `bootstrap.json` holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// Version of the Task service.
    pub version: u32,
    /// `unix://` and a path.
    pub address: String,
    /// `ttrpc` or `grpc`.
    #[serde(default)]
    pub protocol: String,
}

impl Address {
    /// Reads what `start` printed, or what a bundle's `bootstrap.json` or `address` holds.
    ///
    /// # Errors
    /// `Unimplemented` for a Task service newer than ours, `Unknown` where nothing sensible is there.
    pub fn parse(answer: &[u8]) -> Result<Self> {
        let text = std::str::from_utf8(answer).map(str::trim).unwrap_or_default();
        let address = if text.starts_with('{') {
            serde_json::from_str(text)
                .map_err(|error| Error::new(Kind::Unknown, format!("answer {text:?}: {error}")))?
        } else if text.starts_with("unix:") || text.starts_with('/') || text.starts_with("ttrpc+") {
            Self { version: 2, address: text.to_owned(), protocol: "ttrpc".to_owned() }
        } else {
            Self::from_result(answer)?
        };
        address.checked()
    }

    fn from_result(answer: &[u8]) -> Result<Self> {
        let shown = || String::from_utf8_lossy(&answer[..answer.len().min(512)]).trim().to_owned();
        let result = BootstrapResult::decode(answer)
            .map_err(|_| Error::new(Kind::Unknown, format!("answer {:?} is not an address", shown())))?;
        let version = u32::try_from(result.version)
            .map_err(|_| Error::new(Kind::Unknown, format!("version {} in the answer", result.version)))?;
        Ok(Self { version, address: result.address, protocol: result.protocol })
    }

    fn checked(mut self) -> Result<Self> {
        if self.address.is_empty() {
            return Err(Error::new(Kind::Unknown, "answer has no address"));
        }
        if self.version > NEWEST {
            return Err(Error::unimplemented(format!(
                "version {} of the task service; versions up to {NEWEST} are spoken",
                self.version
            )));
        }
        self.version = self.version.max(2);
        if self.protocol.is_empty() {
            "ttrpc".clone_into(&mut self.protocol);
        }
        self.socket()?;
        Ok(self)
    }

    /// The socket's path.
    ///
    /// # Errors
    /// `Unimplemented` for addresses that are not unix sockets.
    pub fn socket(&self) -> Result<PathBuf> {
        let address = self.address.strip_prefix("ttrpc+").unwrap_or(&self.address);
        let path = Path::new(address.strip_prefix("unix://").unwrap_or(address));
        if path.is_absolute() {
            Ok(path.to_owned())
        } else {
            Err(Error::unimplemented(format!("address {:?}: only unix sockets are spoken to", self.address)))
        }
    }

    /// Reads where the shim of a bundle listens; `None` where it never said.
    ///
    /// # Errors
    /// When a file is there but cannot be read or makes no sense.
    pub fn load(bundle: &Path) -> Result<Option<Self>> {
        // The shim itself writes `address`, so it is there even if the daemon died before it wrote bootstrap.json.
        for name in ["bootstrap.json", "address"] {
            let path = bundle.join(name);
            match std::fs::read(&path) {
                Ok(answer) if answer.is_empty() => {}
                Ok(answer) => return Self::parse(&answer).map(Some).doing(|| format!("read {}", path.display())),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(error).doing(|| format!("read {}", path.display())),
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_three_generations_of_answers() {
        let json = br#"{"version":3,"address":"unix:///run/s/a","protocol":"ttrpc"}"#;
        let want = Address { version: 3, address: "unix:///run/s/a".into(), protocol: "ttrpc".into() };
        assert_eq!(Address::parse(json).expect("json"), want);
        let result = BootstrapResult {
            version: 3,
            address: "unix:///run/s/a".into(),
            protocol: "ttrpc".into(),
            ..BootstrapResult::default()
        };
        assert_eq!(Address::parse(&result.encode_to_vec()).expect("protobuf"), want);
        let bare = Address::parse(b"unix:///run/s/a\n").expect("bare");
        assert_eq!((bare.version, bare.socket().expect("path")), (2, PathBuf::from("/run/s/a")));
    }

    #[test]
    fn answers_that_cannot_be_used() {
        let newer = Address::parse(br#"{"version":4,"address":"unix:///a","protocol":"ttrpc"}"#);
        assert_eq!(newer.expect_err("newer").kind(), Kind::Unimplemented);
        let vsock = Address::parse(br#"{"version":3,"address":"vsock://3:1024","protocol":"ttrpc"}"#);
        assert_eq!(vsock.expect_err("vsock").kind(), Kind::Unimplemented);
        assert!(Address::parse(b"").is_err());
        assert!(Address::parse(b"exec: rung: not found").is_err());
    }
}
