//! The files of an archive, read once from beginning to end: each becomes a blob, the few that matter are remembered.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rung_spec::digest::Digest;
use rung_spec::image::Descriptor;
use rung_sys::beneath;

use super::{DOCKER_FILE, INDEX_FILE, LAYOUT_FILE};
use crate::content::{Content, Ingest, Sealed};
use crate::context::Context;
use crate::diff;
use crate::diff::tar::{Entry, Kind as TarKind, Reader};
use crate::error::{Doing, Error, Kind, Result};
use crate::id;
use crate::image::disks::Disks;
use crate::image::walk::MAX_DOCUMENT;
use crate::labels::Labels;

/// Most files of an archive, most bytes of their names and of where links lead, which are held until all is read, and most
/// bytes of all.
const MAX_FILES: usize = 100_000;
const MAX_NAMES: usize = 32 << 20;
const MAX_BYTES: u64 = 1 << 44;
/// Blobs that are flushed together.
const BATCH: usize = 64;

/// What an archive holds.
#[derive(Default)]
pub(super) struct Files {
    /// Regular files by their path.
    pub(super) blobs: HashMap<PathBuf, Descriptor>,
    /// Symbolic links by their path, with the path they lead to.
    pub(super) links: HashMap<PathBuf, PathBuf>,
    /// The small files that say what the rest is.
    pub(super) layout: Option<Vec<u8>>,
    pub(super) docker: Option<Vec<u8>>,
    pub(super) index: Option<Vec<u8>>,
}

/// Takes an archive's files into the content store, under the call's lease.
pub(super) fn read(content: &Content, ctx: &Context, archive: impl Read + Send) -> Result<Files> {
    let mut archive = BufReader::with_capacity(256 << 10, archive);
    if archive.fill_buf().doing(|| "read archive")?.is_empty() {
        return Err(Error::invalid("nothing came: it is no archive"));
    }
    let plain = BufReader::with_capacity(256 << 10, diff::decompress_archive(archive)?);
    let mut reader = Reader::new(plain, MAX_BYTES);
    let (prefix, disks) = (format!("import-{}", id::random::<8>()?), Disks::of(content)?);
    let mut taking = Taking { content, ctx, prefix, waiting: Vec::new(), disks };
    let mut files = Files::default();
    let (mut count, mut names) = (0, 0);
    while let Some(entry) = reader.next_entry().doing(|| "read archive")? {
        count += 1;
        names += entry.path.len() + entry.link.len();
        if count > MAX_FILES || names > MAX_NAMES {
            return Err(Error::invalid(format!(
                "archive of more than {MAX_FILES} files, or {MAX_NAMES} bytes of names"
            )));
        }
        let path = beneath::lexical(Path::new(OsStr::from_bytes(&entry.path)));
        let doing = || format!("import {:?}", path.display().to_string());
        match entry.kind {
            TarKind::Symlink => {
                let target = Path::new(OsStr::from_bytes(&entry.link));
                let target = beneath::lexical(&path.parent().unwrap_or(Path::new("")).join(target));
                files.links.insert(path, target);
            }
            TarKind::HardLink => {
                let target = beneath::lexical(Path::new(OsStr::from_bytes(&entry.link)));
                files.links.insert(path, target);
            }
            TarKind::File if entry.pieces.is_some() => return Err(Error::invalid("sparse file").context(doing())),
            TarKind::File => match path.to_str() {
                Some(LAYOUT_FILE) => files.layout = Some(small(&mut reader, &entry).doing(doing)?),
                Some(DOCKER_FILE) => files.docker = Some(small(&mut reader, &entry).doing(doing)?),
                Some(INDEX_FILE) => files.index = Some(small(&mut reader, &entry).doing(doing)?),
                _ => {
                    if let Some(blob) = taking.file(&mut reader, &entry, &path).doing(doing)? {
                        files.blobs.insert(path, blob);
                    }
                }
            },
            _ => {}
        }
    }
    reader.finish().doing(|| "read archive")?;
    taking.publish()?;
    Ok(files)
}

fn small<R: BufRead>(reader: &mut Reader<R>, entry: &Entry) -> Result<Vec<u8>> {
    if entry.size > MAX_DOCUMENT {
        let text = format!("document of {} bytes, more than {MAX_DOCUMENT}", entry.size);
        return Err(Error::new(Kind::ResourceExhausted, text));
    }
    let mut bytes = Vec::new();
    reader.data(entry.size, &mut |piece| {
        bytes.extend_from_slice(piece);
        Ok(())
    })?;
    Ok(bytes)
}

/// The digest that a file of a layout is called by.
fn digest_of(path: &Path) -> Result<Option<Digest>> {
    let parts: Vec<&str> = path.iter().filter_map(OsStr::to_str).collect();
    match parts[..] {
        ["blobs", algorithm, hex] => {
            let digest = Digest::parse(&format!("{algorithm}:{hex}"));
            digest.map(Some).map_err(|error| Error::invalid(error.to_string()))
        }
        _ => Ok(None),
    }
}

struct Taking<'a> {
    content: &'a Content,
    ctx: &'a Context,
    prefix: String,
    waiting: Vec<(Sealed, Labels)>,
    disks: Disks,
}

impl Taking<'_> {
    /// Makes a file a blob. None for an empty one, which no image needs, but where a digest names it: that is a layer of
    /// no files, without even the end of a tar.
    fn file<R: BufRead>(&mut self, reader: &mut Reader<R>, entry: &Entry, path: &Path) -> Result<Option<Descriptor>> {
        let expected = digest_of(path)?;
        if entry.size == 0 && expected.is_none() {
            return Ok(None);
        }
        let reference = format!("{}-{}", self.prefix, path.display());
        let mut ingest = match self.content.writer(self.ctx, &reference, entry.size, expected.as_ref()) {
            // It is here, and the reader skips what nobody takes.
            Err(error) if error.kind() == Kind::AlreadyExists => {
                return Ok(expected.map(|digest| Descriptor::new("", digest, entry.size)));
            }
            other => other?,
        };
        // A blob that another namespace has need not be written again.
        let written = match ingest.offset() == entry.size && expected.is_some() {
            true => Ok(()),
            false => fill(&mut ingest, reader, entry.size),
        };
        if let Err(error) = written {
            ingest.abort();
            return Err(error);
        }
        let sealed = ingest.seal(entry.size, expected.as_ref()).map_err(|(ingest, error)| {
            ingest.abort();
            Error::new(Kind::DataLoss, error.to_string())
        })?;
        let blob = Descriptor::new("", sealed.digest().clone(), entry.size);
        self.waiting.push((sealed, Labels::new()));
        if self.waiting.len() >= BATCH {
            self.publish()?;
        }
        Ok(Some(blob))
    }

    fn publish(&mut self) -> Result<()> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let waiting = std::mem::take(&mut self.waiting);
        if let Err(error) = self.disks.flush() {
            // Nobody comes back to them: another try has references of its own.
            waiting.into_iter().for_each(|(sealed, _)| sealed.discard());
            return Err(error);
        }
        self.content.publish(self.ctx, waiting).map(drop)
    }
}

fn fill<R: BufRead>(ingest: &mut Ingest, reader: &mut Reader<R>, size: u64) -> Result<()> {
    ingest.truncate(0)?;
    reader.data(size, &mut |piece| ingest.write(piece))
}

impl Files {
    /// The file at a path that the archive itself says.
    pub(super) fn find(&self, path: &str) -> Option<&Descriptor> {
        let path = beneath::lexical(Path::new(path));
        self.blobs.get(&path).or_else(|| self.blobs.get(self.links.get(&path)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diff::tar::Writer;

    fn empty(path: String) -> Entry {
        let (path, link, xattrs) = (path.into_bytes(), Vec::new(), Vec::new());
        let (size, mtime, device, pieces) = (0, (0, 0), (0, 0), None);
        Entry { path, link, kind: TarKind::File, mode: 0o644, uid: 0, gid: 0, size, mtime, device, xattrs, pieces }
    }

    #[test]
    fn names_do_not_fill_the_memory() {
        let (_dir, content, ctx) = super::super::store();
        let mut tar = Writer::new(Vec::new());
        for number in 0..=MAX_NAMES / 1_000_000 {
            tar.entry(&empty(format!("{number}/{}", "n".repeat(1_000_000))), &mut std::io::empty()).expect("entry");
        }
        let read = read(&content, &ctx, &tar.finish().expect("archive")[..]);
        let error = read.err().expect("too many names");
        assert!(error.to_string().contains("bytes of names"), "{error}");
    }

    #[test]
    fn an_empty_file_is_a_blob_where_a_digest_names_it() {
        let (_dir, content, ctx) = super::super::store();
        let digest = Digest::of(b"");
        let mut tar = Writer::new(Vec::new());
        for path in [format!("blobs/{}", digest.as_str().replace(':', "/")), "empty/VERSION".to_owned()] {
            tar.entry(&empty(path), &mut std::io::empty()).expect("entry");
        }
        let files = read(&content, &ctx, &tar.finish().expect("archive")[..]).expect("read");
        let blobs: Vec<_> = files.blobs.values().map(|blob| (blob.digest.clone(), blob.size)).collect();
        assert_eq!(blobs, [(digest.clone(), 0)]);
        assert_eq!(content.read(&ctx, &digest, 1).expect("blob"), b"");
    }
}
