//! Reading a log that its writer rotates: `PATH`, before it `PATH.1`, before that `PATH.2` or `PATH.2.gz`, and so on.
//!
//! Files are told apart by their inodes, because their names move on while they are read.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek as _, SeekFrom};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use flate2::read::MultiGzDecoder;
use serde::Deserialize;

use crate::error::{Doing, Result};

/// Rotated files that are looked for.
const MAX_FILES: u32 = 1000;
/// Bytes read at once.
const CHUNK: usize = 64 * 1024;
/// Bytes of a line at most. Our shim writes no longer ones; they are skipped.
const MAX_LINE: usize = 4 << 20;

/// Reads a log from a chosen line on, across rotations.
pub(super) struct Reader {
    path: PathBuf,
    /// The file being read first, then those written after it.
    files: VecDeque<Segment>,
    /// The beginning of a line whose end is not there yet.
    partial: Vec<u8>,
    /// The inode of the last file, to notice a rotation by.
    last: Option<u64>,
    /// Lines were left out at the beginning.
    skipped: bool,
}

struct Segment {
    source: Source,
    inode: u64,
}

enum Source {
    Plain { file: File, offset: u64 },
    Compressed(Box<MultiGzDecoder<File>>),
}

/// Lines, and whether they are the last for now.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) lines: Vec<Line>,
    pub(super) end: bool,
}

/// A line of output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) at: SystemTime,
    pub(super) stderr: bool,
    pub(super) text: String,
}

/// A line of the file.
#[derive(Deserialize)]
struct Stored {
    log: String,
    stream: String,
    time: jiff::Timestamp,
}

impl Reader {
    /// Opens the log at `path`, to be read from its beginning or from its last `tail` lines. A log that is not there yet
    /// is empty.
    pub(super) fn open(path: &Path, tail: Option<u64>) -> Result<Self> {
        let mut reader =
            Self { path: path.to_owned(), files: VecDeque::new(), partial: Vec::new(), last: None, skipped: false };
        reader.files = reader.segments()?;
        reader.last = reader.files.back().map(|segment| segment.inode);
        if let Some(tail) = tail {
            reader.skip_to_tail(tail)?;
        }
        Ok(reader)
    }

    /// The files that are there, oldest first. The newest is opened first: one that is renamed meanwhile is then found
    /// twice, not missed.
    fn segments(&self) -> Result<VecDeque<Segment>> {
        let mut segments: VecDeque<Segment> = VecDeque::new();
        if let Some(newest) = open_plain(&self.path)? {
            segments.push_front(newest);
        }
        for number in 1..MAX_FILES {
            let plain = numbered(&self.path, number);
            let found = match open_plain(&plain)? {
                Some(segment) => Some(segment),
                None => open_compressed(&with_suffix(&plain, ".gz"))?,
            };
            let Some(segment) = found else { break };
            if segments.iter().all(|other| other.inode != segment.inode) {
                segments.push_front(segment);
            }
        }
        Ok(segments)
    }

    /// Moves on to the last `tail` lines.
    fn skip_to_tail(&mut self, tail: u64) -> Result<()> {
        let mut wanted = tail;
        let mut kept = VecDeque::new();
        while let Some(mut segment) = self.files.pop_back() {
            if wanted == 0 && !kept.is_empty() {
                continue;
            }
            let skip_all = segment.keep_last(&mut wanted).doing(|| format!("read {}", self.path.display()))?;
            if !skip_all || kept.is_empty() {
                kept.push_front(segment);
            }
        }
        self.files = kept;
        // Where there are fewer than wanted, all are shown.
        self.skipped = wanted == 0;
        Ok(())
    }

    /// Whether everything that is there is shown.
    pub(super) fn is_from_the_beginning(&self) -> bool {
        !self.skipped
    }

    /// Reads on.
    pub(super) fn read(&mut self) -> Result<Batch> {
        let mut lines = Vec::new();
        let mut buffer = vec![0; CHUNK];
        loop {
            let Some(segment) = self.files.front_mut() else {
                self.files = self.newer()?;
                if self.files.is_empty() {
                    return Ok(Batch { lines, end: true });
                }
                continue;
            };
            let read = segment.read(&mut buffer).doing(|| format!("read {}", self.path.display()))?;
            if read > 0 {
                self.take(&buffer[..read], &mut lines);
                if lines.is_empty() {
                    continue;
                }
                return Ok(Batch { lines, end: false });
            }
            if self.files.len() > 1 {
                self.files.pop_front();
                self.partial.clear();
                continue;
            }
            let newer = self.newer()?;
            if newer.is_empty() {
                return Ok(Batch { lines, end: true });
            }
            // The last line may have been written between the read above and the rotation.
            let rest = self.files.front_mut().map(|segment| segment.read(&mut buffer)).transpose();
            let rest = rest.doing(|| format!("read {}", self.path.display()))?.unwrap_or_default();
            if rest > 0 {
                self.take(&buffer[..rest], &mut lines);
                return Ok(Batch { lines, end: false });
            }
            self.last = newer.back().map(|segment| segment.inode);
            self.files = newer;
            self.partial.clear();
        }
    }

    /// The files written after the one being read; none while it is the last. Where that one is not to be found any
    /// more, everything there is was written after it.
    fn newer(&mut self) -> Result<VecDeque<Segment>> {
        let current = match std::fs::symlink_metadata(&self.path) {
            Ok(metadata) => Some(metadata.ino()),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(error).doing(|| format!("look at {}", self.path.display())),
        };
        if current.is_none() || current == self.last {
            return Ok(VecDeque::new());
        }
        let mut all = self.segments()?;
        if let Some(place) = all.iter().position(|segment| Some(segment.inode) == self.last) {
            all.drain(..=place);
        }
        if self.files.is_empty() {
            self.last = all.back().map(|segment| segment.inode);
        }
        Ok(all)
    }

    fn take(&mut self, bytes: &[u8], lines: &mut Vec<Line>) {
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            self.partial.extend_from_slice(&rest[..end]);
            lines.extend(parse(&self.partial));
            self.partial.clear();
            rest = &rest[end + 1..];
        }
        if self.partial.len() + rest.len() <= MAX_LINE {
            self.partial.extend_from_slice(rest);
        }
    }
}

impl Segment {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match &mut self.source {
            Source::Compressed(decoder) => decoder.read(buffer),
            Source::Plain { file, offset } => {
                if file.metadata()?.len() < *offset {
                    // Cut short by its writer, which starts again at its beginning.
                    *offset = 0;
                }
                let read = file.read_at(buffer, *offset)?;
                *offset += u64::try_from(read).unwrap_or(0);
                Ok(read)
            }
        }
    }

    /// Skips all but the last `wanted` lines, and takes those off `wanted`. True where nothing is left to read.
    fn keep_last(&mut self, wanted: &mut u64) -> std::io::Result<bool> {
        match &mut self.source {
            Source::Plain { file, offset } => {
                let length = file.metadata()?.len();
                *offset = last_lines(file, length, wanted)?;
                Ok(*offset >= length)
            }
            Source::Compressed(decoder) => {
                let total = count_lines(decoder)?;
                let skip = total.saturating_sub(*wanted);
                *wanted -= total - skip;
                let mut file = decoder.get_ref().try_clone()?;
                file.seek(SeekFrom::Start(0))?;
                **decoder = MultiGzDecoder::new(file);
                skip_lines(decoder, skip)?;
                Ok(skip >= total)
            }
        }
    }
}

/// Where the last `wanted` lines of a file begin; the lines found are taken off `wanted`.
fn last_lines(file: &File, length: u64, wanted: &mut u64) -> std::io::Result<u64> {
    let mut buffer = vec![0; CHUNK];
    let mut end = length;
    let mut seen = 0;
    while end > 0 {
        let start = end.saturating_sub(u64::try_from(CHUNK).unwrap_or(u64::MAX));
        let size = usize::try_from(end - start).unwrap_or(CHUNK);
        file.read_exact_at(&mut buffer[..size], start)?;
        for (index, byte) in buffer[..size].iter().enumerate().rev() {
            if *byte != b'\n' {
                continue;
            }
            // The newline before the first wanted line; each one after it ends a wanted line.
            if seen == *wanted {
                *wanted = 0;
                return Ok(start + u64::try_from(index).unwrap_or(0) + 1);
            }
            seen += 1;
        }
        end = start;
    }
    *wanted -= seen;
    Ok(0)
}

fn count_lines(read: &mut impl Read) -> std::io::Result<u64> {
    let mut buffer = vec![0; CHUNK];
    let mut count = 0;
    loop {
        match read.read(&mut buffer)? {
            0 => return Ok(count),
            length => {
                let newlines = buffer[..length].iter().filter(|byte| **byte == b'\n').count();
                count += u64::try_from(newlines).unwrap_or(0);
            }
        }
    }
}

fn skip_lines(read: &mut impl Read, mut count: u64) -> std::io::Result<()> {
    // Byte by byte, so that nothing of the line after the last skipped one is taken.
    let mut byte = [0];
    while count > 0 && read.read(&mut byte)? > 0 {
        if byte[0] == b'\n' {
            count -= 1;
        }
    }
    Ok(())
}

/// What a line of the file says; none where it is damaged, as the last line before a power cut may be.
fn parse(line: &[u8]) -> Option<Line> {
    let stored: Stored = serde_json::from_slice(line).ok()?;
    Some(Line { at: stored.time.into(), stderr: stored.stream == "stderr", text: stored.log })
}

fn numbered(path: &Path, number: u32) -> PathBuf {
    with_suffix(path, &format!(".{number}"))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn open(path: &Path) -> Result<Option<(File, u64)>> {
    let doing = || format!("open {}", path.display());
    let mut options = std::fs::OpenOptions::new();
    let file = match options.read(true).custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).doing(doing),
    };
    let inode = file.metadata().doing(doing)?.ino();
    Ok(Some((file, inode)))
}

fn open_plain(path: &Path) -> Result<Option<Segment>> {
    let opened = open(path)?;
    Ok(opened.map(|(file, inode)| Segment { source: Source::Plain { file, offset: 0 }, inode }))
}

fn open_compressed(path: &Path) -> Result<Option<Segment>> {
    let opened = open(path)?;
    Ok(opened.map(|(file, inode)| Segment { source: Source::Compressed(Box::new(MultiGzDecoder::new(file))), inode }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    struct Log {
        dir: tempfile::TempDir,
        next: u32,
    }

    impl Log {
        fn new() -> Self {
            Self { dir: tempfile::tempdir().expect("directory"), next: 0 }
        }

        fn path(&self) -> PathBuf {
            self.dir.path().join("log.json")
        }

        fn write(&mut self, count: u32) {
            let mut options = std::fs::OpenOptions::new();
            let mut file = options.create(true).append(true).open(self.path()).expect("open");
            for _ in 0..count {
                let number = self.next;
                writeln!(file, r#"{{"log":"{number}\n","stream":"stdout","time":"2026-01-02T03:04:05.000000006Z"}}"#)
                    .expect("write");
                self.next += 1;
            }
        }

        fn rotate(&self) {
            for number in (1..9).rev() {
                let _ = std::fs::rename(numbered(&self.path(), number), numbered(&self.path(), number + 1));
            }
            std::fs::rename(self.path(), numbered(&self.path(), 1)).expect("rotate");
        }

        fn compress(&self, number: u32) {
            let plain = numbered(&self.path(), number);
            let file = File::create(with_suffix(&plain, ".gz")).expect("create");
            let mut encoder = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
            encoder.write_all(&std::fs::read(&plain).expect("read")).expect("compress");
            encoder.finish().expect("compress");
            std::fs::remove_file(plain).expect("remove");
        }
    }

    fn rest(reader: &mut Reader) -> Vec<u32> {
        let mut numbers = Vec::new();
        loop {
            let batch = reader.read().expect("read");
            numbers.extend(batch.lines.iter().map(|line| line.text.trim().parse::<u32>().expect("number")));
            if batch.end {
                return numbers;
            }
        }
    }

    #[test]
    fn rotated_and_compressed_files_are_one_log() {
        let mut log = Log::new();
        log.write(3);
        log.rotate();
        log.write(3);
        log.rotate();
        log.compress(2);
        log.write(3);
        let all: Vec<u32> = (0..9).collect();
        assert_eq!(rest(&mut Reader::open(&log.path(), None).expect("open")), all);
        for tail in 0..=10_usize {
            let mut reader = Reader::open(&log.path(), Some(u64::try_from(tail).expect("tail"))).expect("open");
            assert_eq!(rest(&mut reader), all[9_usize.saturating_sub(tail)..], "tail {tail}");
        }
    }

    #[test]
    fn following_survives_rotation_and_truncation() {
        let mut log = Log::new();
        let mut reader = Reader::open(&log.path(), None).expect("a log that is not there yet");
        assert!(rest(&mut reader).is_empty());
        log.write(2);
        assert_eq!(rest(&mut reader), [0, 1]);
        log.write(1);
        log.rotate();
        log.write(2);
        log.rotate();
        log.write(1);
        assert_eq!(rest(&mut reader), [2, 3, 4, 5]);
        File::options().write(true).open(log.path()).expect("open").set_len(0).expect("truncate");
        assert!(rest(&mut reader).is_empty());
        log.write(1);
        assert_eq!(rest(&mut reader), [6]);
    }

    #[test]
    fn half_a_line_waits_for_its_other_half() {
        let mut log = Log::new();
        log.write(1);
        let whole = std::fs::read(log.path()).expect("read");
        std::fs::write(log.path(), &whole[..20]).expect("half");
        let mut reader = Reader::open(&log.path(), None).expect("open");
        assert!(rest(&mut reader).is_empty());
        File::options().append(true).open(log.path()).expect("open").write_all(&whole[20..]).expect("rest");
        assert_eq!(rest(&mut reader), [0]);
    }
}
