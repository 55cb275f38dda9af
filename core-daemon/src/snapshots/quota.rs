//! The size that a snapshot's writable layer may have: a project quota of the file system below.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use rung_sys::project_quota;

use crate::error::{Doing, Error, Kind, Result};
use crate::labels::Labels;

/// On a snapshot: the most that it may take, as bytes or with a unit (`10G`, `500MiB`).
const MAX_SIZE: &str = "containerd.io/snapshot/max-size";
/// Projects from here on are snapshots', by number; below are the administrator's own.
const FIRST_PROJECT: u32 = 0x4700_0000;

/// Limits what is in `dir`, which is empty yet, to what the labels say.
///
/// # Errors
/// `InvalidArgument` for a size that is none; `FailedPrecondition` where the file system keeps no project quotas.
pub(super) fn apply(dir: &Path, number: u64, labels: &Labels) -> Result<()> {
    let Some(text) = labels.get(MAX_SIZE) else { return Ok(()) };
    let doing = || format!("label {MAX_SIZE}={text}");
    let bytes = parse(text).ok_or_else(|| Error::invalid(format!("{}: is not a size", doing())))?;
    let project = u32::try_from(number).ok().and_then(|number| FIRST_PROJECT.checked_add(number));
    let project = project.ok_or_else(|| Error::internal(format!("{}: snapshot {number} has no project", doing())))?;
    let open = File::open(dir).doing(doing)?;
    let limited = project_quota::limit(open.as_fd(), project, bytes)
        .and_then(|()| project_quota::assign(open.as_fd(), project))
        // The kernel answers even where it does not count: only a limit that is there is one.
        .and_then(|()| project_quota::usage(open.as_fd(), project));
    match limited {
        Ok((limit, _)) if limit >= bytes => Ok(()),
        Ok(_) => Err(unsupported(dir, "it does not keep the limit").context(doing())),
        Err(error) => Err(unsupported(dir, &error.to_string()).context(doing())),
    }
}

fn unsupported(dir: &Path, problem: &str) -> Error {
    let remedy = "mount it with prjquota, or leave the label out";
    let text = format!("the file system of {} has no project quotas ({problem}); {remedy}", dir.display());
    Error::new(Kind::FailedPrecondition, text)
}

/// A number of bytes; units are powers of 1024, with or without `i` and `B`.
fn parse(text: &str) -> Option<u64> {
    let digits = text.trim().trim_end_matches(|character: char| character.is_ascii_alphabetic());
    let unit = text.trim()[digits.len()..].to_ascii_lowercase();
    let shift = match unit.trim_end_matches('b').trim_end_matches('i') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return None,
    };
    let number: u64 = digits.trim().parse().ok()?;
    (number > 0).then(|| number.checked_mul(1 << shift)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let good = [("1", 1), ("10g", 10 << 30), ("500MiB", 500 << 20), ("1 KB", 1 << 10), ("2T", 2 << 40)];
        for (text, bytes) in good {
            assert_eq!(parse(text), Some(bytes), "{text}");
        }
        for text in ["", "0", "-1", "g", "1x", "1.5g", "99999999999t"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_file_system_without_quotas_is_named() {
        let dir = tempfile::tempdir().expect("directory");
        let labels = Labels::from([(MAX_SIZE.to_owned(), "1g".to_owned())]);
        // A machine with quotas on its temporary directory shows nothing here.
        if let Err(error) = apply(dir.path(), 1, &labels) {
            assert_eq!(error.kind(), Kind::FailedPrecondition);
            assert!(error.to_string().contains("prjquota"), "{error}");
        }
    }
}
