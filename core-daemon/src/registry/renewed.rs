//! What is made of files, and made anew once they are others: certificates are rotated and networks change under a daemon
//! that runs for months.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// What shows that a file is another, or was written: device, inode, length, and the time of its last change.
#[derive(PartialEq)]
struct Stamp(Option<(u64, u64, u64, i64, i64)>);

impl Stamp {
    fn of(path: &Path) -> Self {
        let metadata = std::fs::metadata(path).ok();
        Self(metadata.map(|it| (it.dev(), it.ino(), it.len(), it.ctime(), it.ctime_nsec())))
    }
}

/// A value made of files.
pub(super) struct Renewed<T>(Mutex<Option<(Vec<Stamp>, T)>>);

impl<T> Default for Renewed<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Clone> Renewed<T> {
    /// What `make` makes of `files`, or has made of them as they are.
    ///
    /// # Errors
    /// What `make` fails with.
    pub(super) fn get<E>(&self, files: &[&Path], make: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        // Before they are read: what changes meanwhile is seen the next time.
        let stamps: Vec<Stamp> = files.iter().copied().map(Stamp::of).collect();
        let mut made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*made {
            Some((of, value)) if *of == stamps => Ok(value.clone()),
            _ => {
                let value = make()?;
                *made = Some((stamps, value.clone()));
                Ok(value)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_of_a_file_is_made_anew_when_it_changes() {
        let dir = tempfile::tempdir().expect("directory");
        let file = dir.path().join("file");
        let renewed = Renewed::default();
        let get = || renewed.get(&[&file], || std::fs::read_to_string(&file).or(Ok::<_, ()>(String::new())));
        assert_eq!(get(), Ok(String::new()));
        for text in ["one", "other"] {
            std::fs::write(&file, text).expect("write");
            assert_eq!(get(), Ok(text.to_owned()));
        }
        let fresh = dir.path().join("fresh");
        std::fs::write(&fresh, "again").and_then(|()| std::fs::rename(&fresh, &file)).expect("replace");
        assert_eq!(get(), Ok("again".to_owned()));
        assert_eq!(renewed.get(&[&file], || Err::<String, _>("not asked")), Ok("again".to_owned()));
    }
}
