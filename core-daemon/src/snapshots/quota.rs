//! The size that a snapshot's writable layer may have: a project quota of the file system below.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use rung_sys::project_quota;

use crate::error::{Doing, Error, Kind, Result};
use crate::labels::{self, Labels};

/// On a snapshot: the most that it may take, as bytes or with a unit (`10G`, `500MiB`).
const MAX_SIZE: &str = "containerd.io/snapshot/max-size";
/// Projects from here on are snapshots', by number; below are the administrator's own.
const FIRST_PROJECT: u32 = 0x4700_0000;

/// Limits what is in `dir`, which is empty yet, to what the labels `wanted` say.
///
/// # Errors
/// `InvalidArgument` for a size that is none; `FailedPrecondition` where the file system keeps no project quotas.
pub(super) fn apply(dir: &Path, number: u64, wanted: &Labels) -> Result<()> {
    let Some(text) = wanted.get(MAX_SIZE) else { return Ok(()) };
    let doing = || format!("label {MAX_SIZE}={text}");
    let bytes = labels::size(text).ok_or_else(|| Error::invalid(format!("{}: is not a size", doing())))?;
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

#[cfg(test)]
mod tests {
    use super::*;

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
