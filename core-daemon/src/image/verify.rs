//! Programs that are asked whether an image may be pulled: every one in a directory must agree. Each is run as
//!
//! ```text
//! PROGRAM -name NAME -digest DIGEST -stdin-media-type application/vnd.oci.descriptor.v1+json
//! ```
//!
//! with the image's descriptor on its standard input. It agrees by exiting with 0; what it prints is the reason.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rung_spec::image::Descriptor;
use tokio::process::Command;

use crate::config::{ImageVerifier, Timeouts};
use crate::error::{Doing, Error, Result};
use crate::program;

/// Media type of what is on standard input.
const DESCRIPTOR: &str = "application/vnd.oci.descriptor.v1+json";
/// Most characters of a reason.
const MAX_REASON: usize = 4 << 10;

/// Those who are asked.
#[derive(Debug, Clone, Default)]
pub struct Verifiers {
    directory: PathBuf,
    most: Option<usize>,
    patience: Duration,
}

impl Verifiers {
    /// As they are configured.
    pub fn new(config: &ImageVerifier) -> Self {
        Self {
            directory: config.bin_dir.clone(),
            most: usize::try_from(config.max_verifiers).ok(),
            patience: Timeouts::of(config.per_verifier_timeout),
        }
    }

    /// Asks all of them about an image.
    ///
    /// # Errors
    /// `PermissionDenied` with the reason of the one that refuses; what keeps one from answering.
    pub async fn ask(&self, name: &str, image: &Descriptor) -> Result<()> {
        let programs = self.programs()?;
        let asked = self.most.unwrap_or(usize::MAX);
        if programs.len() > asked {
            let (directory, there) = (self.directory.display(), programs.len());
            tracing::warn!(%directory, there, asked, "not all image verifiers are asked");
        }
        for program in programs.iter().take(asked) {
            let doing = || format!("image verifier {}", program.display());
            let (agrees, reason) = self.converse(program, name, image).await.doing(doing)?;
            if !agrees {
                return Err(Error::refused(format!("refuses the image: {reason}"))).doing(doing);
            }
            tracing::debug!(program = %program.display(), name, reason, "image verifier agrees");
        }
        Ok(())
    }

    /// Whether a program agrees, and what it says.
    async fn converse(&self, path: &Path, name: &str, image: &Descriptor) -> Result<(bool, String)> {
        let descriptor = serde_json::to_vec(image).map_err(|error| Error::internal(error.to_string()))?;
        let mut command = Command::new(path);
        command.args(["-name", name, "-digest", image.digest.as_str(), "-stdin-media-type", DESCRIPTOR]);
        let answer = program::ask(command, &descriptor, self.patience, drop).await?;
        let reason: String = String::from_utf8_lossy(&answer.output).trim().chars().take(MAX_REASON).collect();
        Ok((answer.status.success(), if reason.is_empty() { answer.status.to_string() } else { reason }))
    }

    /// The programs by name; none where there is no directory.
    fn programs(&self) -> Result<Vec<PathBuf>> {
        if self.directory.as_os_str().is_empty() {
            return Ok(Vec::new());
        }
        let doing = || format!("image verifiers in {}", self.directory.display());
        let entries = match std::fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).doing(doing),
        };
        let mut programs = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>().doing(doing)?;
        programs.sort();
        Ok(programs)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::error::Kind;

    #[tokio::test]
    async fn all_must_agree() {
        let dir = tempfile::tempdir().expect("directory");
        let config = |most: i64, patience: u64| ImageVerifier {
            bin_dir: dir.path().join("bin"),
            max_verifiers: most,
            per_verifier_timeout: patience,
        };
        let image = Descriptor::new("application/x", rung_spec::digest::Digest::of(b"x"), 1);
        let ask = async |most, patience| {
            let asked = Verifiers::new(&config(most, patience)).ask("a.test/b:1", &image).await;
            asked.map_err(|error| (error.kind(), error.to_string()))
        };
        assert_eq!(ask(-1, 5).await, Ok(()), "no directory");
        let write = |name: &str, script: &str| {
            std::fs::create_dir_all(dir.path().join("bin")).expect("bin");
            let path = dir.path().join("bin").join(name);
            std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("program");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("mode");
        };
        let digest = image.digest.to_string();
        write(
            "1",
            &format!(
                "grep -q {digest} && test \"$*\" = '-name a.test/b:1 -digest {digest} -stdin-media-type {DESCRIPTOR}'"
            ),
        );
        assert_eq!(ask(-1, 5).await, Ok(()));
        write("2", "echo not signed; exit 1");
        let (kind, text) = ask(-1, 5).await.expect_err("the second refuses");
        assert!(kind == Kind::PermissionDenied && text.contains("not signed"), "{text}");
        assert_eq!(ask(1, 5).await, Ok(()), "the second is not asked");
        write("1", "exec sleep 60");
        assert_eq!(ask(1, 1).await.expect_err("hangs").0, Kind::DeadlineExceeded);
    }
}
