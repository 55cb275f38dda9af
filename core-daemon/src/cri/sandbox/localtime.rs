//! The time zone of containers, which they have in `/etc/localtime`.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use crate::error::{Doing as _, Error, Result};

/// What stands for the machine's own.
const LOCAL: &str = "Local";
/// The machine's.
const MACHINE: &str = "/etc/localtime";
/// Where zones are, by their names.
const ZONES: &str = "/usr/share/zoneinfo";
/// What a machine has that says nothing of its zone.
const UTC: &str = "UTC";
/// How a file with a zone begins.
const MAGIC: &[u8] = b"TZif";
/// Largest such file that is read.
const MAX_ZONE: u64 = 1 << 20;

/// The rules of a zone; none where the configuration names none, or the machine's and that has no rules at all.
///
/// # Errors
/// `FailedPrecondition` for a zone that this machine does not have.
pub(in crate::cri) fn read(zone: &str) -> Result<Option<Vec<u8>>> {
    let doing = || format!("cri.timezone: {zone:?}");
    if zone.is_empty() {
        return Ok(None);
    }
    if !zone.eq_ignore_ascii_case(LOCAL) {
        return file(&Path::new(ZONES).join(zone))
            .and_then(|rules| rules.ok_or_else(|| Error::precondition(format!("is not in {ZONES}"))))
            .doing(doing)
            .map(Some);
    }
    for path in [PathBuf::from(MACHINE), Path::new(ZONES).join(UTC)] {
        if let Some(rules) = file(&path).doing(doing)? {
            return Ok(Some(rules));
        }
    }
    Ok(None)
}

/// A file with rules, if it is there.
fn file(path: &Path) -> Result<Option<Vec<u8>>> {
    let doing = || format!("read {}", path.display());
    let file = match std::fs::File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        file => file.doing(doing)?,
    };
    if !file.metadata().doing(doing)?.is_file() {
        return Err(Error::precondition("is not a plain file")).doing(doing);
    }
    let mut rules = Vec::new();
    file.take(MAX_ZONE).read_to_end(&mut rules).doing(doing)?;
    match rules.starts_with(MAGIC) {
        true => Ok(Some(rules)),
        false => Err(Error::precondition("has no time zone in it")).doing(doing),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones() {
        assert_eq!(read("").expect("none"), None);
        let error = read("Nowhere/Atall").expect_err("no such zone").to_string();
        assert!(error.contains("cri.timezone") && error.contains("Nowhere/Atall"), "{error}");
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("zone");
        assert_eq!(file(&path).expect("missing"), None);
        std::fs::write(&path, "TZif2 and so on").expect("write");
        assert_eq!(file(&path).expect("zone").expect("there"), b"TZif2 and so on");
        std::fs::write(&path, "root:x:0:0").expect("write");
        assert!(file(&path).is_err() && file(dir.path()).is_err());
    }
}
