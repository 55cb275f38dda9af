//! Committed blobs: opening, presence, and the removal that only the collection does.

use std::collections::HashSet;
use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::sync::atomic::Ordering;

use nix::errno::Errno;
use rung_spec::digest::{Algorithm, Digest, Hasher};

use super::{Blob, Content, Store};
use crate::error::{Doing, Result};
use crate::metadata::schema::CONTENT;
use crate::metadata::{Db, Tx};

impl Store {
    pub(super) fn open_blob(&self, digest: &Digest) -> Result<Option<Blob>> {
        let path = self.blob(digest);
        // What is no file is no blob, and must not be waited for.
        match File::options().read(true).custom_flags(nix::libc::O_NONBLOCK).open(&path) {
            Ok(file) => {
                let metadata = file.metadata().doing(|| format!("read {}", path.display()))?;
                Ok(Some(Blob { file, size: metadata.len() }).filter(|_| metadata.is_file()))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).doing(|| format!("open {}", path.display())),
        }
    }

    /// Whether a file that was read is still the blob's. What has come under its name meanwhile is another's work.
    pub(super) fn is_stored(&self, digest: &Digest, read: &File) -> Result<bool> {
        let read = read.metadata().doing(|| format!("read content {digest}"))?;
        let is_same = |now: std::fs::Metadata| (now.dev(), now.ino()) == (read.dev(), read.ino());
        Ok(std::fs::metadata(self.blob(digest)).is_ok_and(is_same))
    }

    /// Has the kernel check a blob whenever it is read, where the file system can. The first that says no is not asked
    /// again.
    pub(super) fn seal_for_good(&self, digest: &Digest) {
        if self.without_verity.load(Ordering::Relaxed) {
            return;
        }
        let Ok(Some(blob)) = self.open_blob(digest) else { return };
        if let Err(error) = rung_sys::verity::enable(blob.file.as_fd()) {
            let has_none = error.is(&[Errno::ENOTTY as i32, Errno::EOPNOTSUPP as i32]);
            self.without_verity.store(has_none, Ordering::Relaxed);
            tracing::debug!(%digest, %error, "content is not checked by the kernel");
        }
    }
}

impl Content {
    /// The blobs on disk, whoever's they are.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn stored(&self) -> Result<Vec<Digest>> {
        let mut all = Vec::new();
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let dir = self.0.blobs(algorithm);
            for entry in std::fs::read_dir(&dir).doing(|| format!("list {}", dir.display()))?.flatten() {
                let name = entry.file_name();
                let digest = name.to_str().and_then(|hex| Digest::parse(&format!("{algorithm}:{hex}")).ok());
                all.extend(digest);
            }
        }
        Ok(all)
    }

    /// Removes the bytes of a blob that are not what its digest says, so that they are fetched again, and says whether
    /// they were not. Its records stay: they say what is wanted.
    ///
    /// # Errors
    /// When the file cannot be read or removed.
    pub fn drop_damaged(&self, digest: &Digest) -> Result<bool> {
        let Some(blob) = self.0.open_blob(digest)? else { return Ok(false) };
        self.drop_if_damaged(digest, &blob.file)
    }

    fn drop_if_damaged(&self, digest: &Digest, file: &File) -> Result<bool> {
        if is_whole(file, digest)? || !self.0.is_stored(digest, file)? {
            return Ok(false);
        }
        tracing::warn!(%digest, "content is damaged and is removed");
        let path = self.0.blob(digest);
        std::fs::remove_file(&path).doing(|| format!("remove {}", path.display()))?;
        Ok(true)
    }

    /// Removes the bytes of a blob that no namespace records, and says how many there were. A blob that is recorded,
    /// or about to be, stays.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn reclaim(&self, digest: &Digest) -> Result<Option<u64>> {
        // A commit enters the digest into `pending` before it puts the file in place, so under this lock either its
        // entry or its record is seen, or its file comes after.
        let pending = self.0.pending();
        if pending.contains_key(digest) || recorded(&self.0.db, digest)? {
            return Ok(None);
        }
        let path = self.0.blob(digest);
        let size = match std::fs::metadata(&path) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).doing(|| format!("read {}", path.display())),
        };
        std::fs::remove_file(&path).doing(|| format!("remove {}", path.display()))?;
        drop(pending);
        Ok(Some(size))
    }
}

/// Whether the bytes of a blob are what its digest says. What cannot be read is not.
pub(super) fn is_whole(mut file: &File, digest: &Digest) -> Result<bool> {
    let mut hasher = Hasher::new(digest.algorithm());
    match std::io::copy(&mut file, &mut HashWriter(&mut hasher)) {
        Err(error) if is_lost(&error) => Ok(false),
        read => read.doing(|| format!("read content {digest}")).map(|_| hasher.finish() == *digest),
    }
}

/// Whether the disk, or the kernel that checks what it reads, has lost what was to be read.
pub(super) fn is_lost(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(Errno::EIO as i32)
}

/// The digests that any namespace records.
pub(super) fn all_recorded(db: &Db) -> Result<HashSet<String>> {
    let mut recorded = HashSet::new();
    db.read(|tx| {
        tx.scan_all(CONTENT, &mut |_, digest, _| {
            recorded.insert(digest.to_owned());
            Ok(())
        })
    })?;
    Ok(recorded)
}

/// Hashes what is written to it.
pub(super) struct HashWriter<'a>(pub(super) &'a mut Hasher);

impl std::io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn recorded(db: &Db, digest: &Digest) -> Result<bool> {
    db.read(|tx| {
        for namespace in crate::metadata::namespaces::names(tx)? {
            if tx.get(CONTENT, &namespace, digest.as_str())?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{ctx, fixture};
    use crate::labels::Labels;

    #[test]
    fn what_took_a_damaged_blobs_place_is_not_removed() {
        let it = fixture();
        let digest = it.content.put(&ctx("a"), b"bytes", Labels::new()).expect("put");
        let path = it.content.0.blob(&digest);
        let replace = |bytes: &[u8]| {
            std::fs::remove_file(&path).and_then(|()| std::fs::write(&path, bytes)).expect("replace");
        };
        replace(b"byteX");
        let read = it.content.0.open_blob(&digest).expect("open").expect("there").file;
        replace(b"bytes");
        assert!(!it.content.drop_if_damaged(&digest, &read).expect("mended by another"));
        assert!(it.content.has(&ctx("a"), &digest).expect("look"));
        replace(b"byteX");
        assert!(it.content.drop_damaged(&digest).expect("damaged") && !path.exists());
    }
}
