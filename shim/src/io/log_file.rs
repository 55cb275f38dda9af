//! The log file of a process: lines in docker's or in Kubernetes' format.
//!
//! A line that is longer than a record may be is in pieces that readers can join again: in JSON a piece's text has no final
//! newline, in CRI it carries `P`. In CRI a last line that its process never finished carries `P` too.

use std::fs::{DirBuilder, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use gantry_proto::stdio::{LogFormat, LogPolicy, LogUri, MAX_LINE};
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use rung_sys::beneath::Root;

use crate::io::lines::{self, Lines};
use crate::io::output::Stream;
use crate::io::rotate::Rotation;
use crate::reaper::Reaper;
use crate::{Doing, Result};

/// An open log.
#[derive(Debug)]
pub struct LogFile {
    uri: LogUri,
    file: File,
    size: u64,
    rotation: Rotation,
    /// Unfinished lines of the two streams.
    stdout: Lines,
    stderr: Lines,
    /// Records that are not in the file yet.
    pending: Vec<u8>,
    /// Records given up since the last one written.
    dropped: u64,
}

impl LogFile {
    /// Opens the log of `uri`, making it and its directory.
    ///
    /// # Errors
    /// Where it cannot be opened.
    pub fn open(uri: LogUri, reaper: Reaper) -> Result<Self> {
        let (file, size) = open(&uri)?;
        let rotation = Rotation::new(&uri, reaper);
        let (stdout, stderr) = (Lines::default(), Lines::default());
        Ok(Self { uri, file, size, rotation, stdout, stderr, pending: Vec::new(), dropped: 0 })
    }

    /// Takes output; `false` where records are left that could not be written.
    pub fn push(&mut self, stream: Stream, chunk: &[u8]) -> bool {
        let time = format!("{:.9}", jiff::Timestamp::now());
        let lines = match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        let (format, pending) = (self.uri.format, &mut self.pending);
        lines.push(format, self.uri.max_line, chunk, |line, partial| {
            record(pending, format, stream, &time, line, partial);
        });
        self.flush()
    }

    /// Writes lines that their process never finished.
    pub fn end_lines(&mut self) {
        let time = format!("{:.9}", jiff::Timestamp::now());
        for (stream, line) in [(Stream::Stdout, self.stdout.end()), (Stream::Stderr, self.stderr.end())] {
            if !line.is_empty() {
                let partial = self.uri.format == LogFormat::Cri;
                record(&mut self.pending, self.uri.format, stream, &time, &line, partial);
            }
        }
        self.flush();
    }

    /// Writes what is pending; `false` where some of it is left and the process must wait.
    pub fn flush(&mut self) -> bool {
        let marker = self.marker();
        self.pending.splice(..0, marker.iter().copied());
        let mut written = 0;
        let outcome = loop {
            if written == self.pending.len() {
                break Ok(());
            }
            match (&self.file).write(&self.pending[written..]) {
                Ok(0) => break Err(ErrorKind::WriteZero),
                Ok(count) => written += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => break Err(error.kind()),
            }
        };
        if outcome.is_err() {
            written = self.untear(written);
        }
        self.size += u64::try_from(written).unwrap_or(0);
        // What is written ends with a record, so that it holds the whole marker or nothing of it.
        if written >= marker.len() {
            self.pending.drain(..written);
            self.dropped = 0;
        } else {
            self.pending.drain(..marker.len());
        }
        let settled = match outcome {
            Ok(()) => {
                // A burst leaves its buffer; a quiet process shall not keep it.
                self.pending.shrink_to(MAX_LINE);
                true
            }
            Err(_) if self.uri.policy == LogPolicy::Drop => {
                self.drop_pending();
                true
            }
            Err(_) => false,
        };
        if self.uri.max_size > 0 && self.size >= self.uri.max_size && self.pending.is_empty() {
            self.rotate();
        }
        settled
    }

    /// Opens the file again under its path, after somebody renamed it.
    ///
    /// # Errors
    /// Where it cannot be opened; the old file stays in use.
    pub fn reopen(&mut self) -> Result<()> {
        (self.file, self.size) = open(&self.uri)?;
        Ok(())
    }

    /// Takes the beginning of a half-written record off the file again, so that no reader ever finds one. Gives the bytes
    /// of `pending` that stay written.
    fn untear(&self, written: usize) -> usize {
        let whole = self.pending[..written].iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let torn = u64::try_from(written - whole).unwrap_or(0);
        let length = self.file.metadata().map(|meta| meta.len()).unwrap_or(0);
        // We are the file's only writer, so that its last bytes are ours.
        if torn == 0 || length < torn || self.file.set_len(length - torn).is_err() {
            return written;
        }
        whole
    }

    /// Gives up what could not be written.
    fn drop_pending(&mut self) {
        let lost = self.pending.iter().filter(|byte| **byte == b'\n').count();
        self.dropped += u64::try_from(lost).unwrap_or(u64::MAX);
        self.pending.clear();
    }

    /// The record that says how many are missing at this place; nothing where none are.
    fn marker(&self) -> Vec<u8> {
        let mut marker = Vec::new();
        if self.dropped > 0 {
            let text = format!("gantry: {} log records were dropped here: they could not be written\n", self.dropped);
            let time = format!("{:.9}", jiff::Timestamp::now());
            record(&mut marker, self.uri.format, Stream::Stderr, &time, text.as_bytes(), false);
        }
        marker
    }

    fn rotate(&mut self) {
        let opened = self.rotation.rotate(&self.file).and_then(|()| self.reopen());
        if let Err(error) = opened {
            // The old file goes on; the next record tries again.
            tracing::error!(%error, path = self.uri.path, "rotate the log");
        }
    }
}

/// Opens the file, making it and its directory. What a container can change beneath the root does not lead out of it.
fn open(uri: &LogUri) -> Result<(File, u64)> {
    let path = Path::new(&uri.path);
    let doing = || format!("open log {}", path.display());
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(crate::Error::invalid(format!("log {}: is not the path of a file", path.display())));
    };
    let root = if uri.root.is_empty() { dir } else { Path::new(&uri.root) };
    let Ok(inside) = dir.strip_prefix(root) else {
        return Err(crate::Error::invalid(format!("log {}: is not in {}", path.display(), root.display())));
    };
    let made = DirBuilder::new().recursive(true).mode(0o750).create(root);
    // What exists is no container, but something else in the directory's place.
    let other = |error: std::io::Error| match error.kind() {
        ErrorKind::AlreadyExists => ErrorKind::NotADirectory.into(),
        _ => error,
    };
    made.map_err(other).doing(doing)?;
    let dir = Root::open(root).and_then(|root| root.make_directories(inside, &mut |_| {})).doing(doing)?;
    let flags = OFlag::O_RDWR | OFlag::O_APPEND | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let opened = openat(&dir, name, flags | OFlag::O_CLOEXEC, Mode::from_bits_truncate(0o640));
    let file = File::from(opened.map_err(std::io::Error::from).doing(doing)?);
    let meta = file.metadata().doing(doing)?;
    if !meta.is_file() {
        return Err(crate::Error::invalid(format!("log {} is not a file", path.display())));
    }
    Ok((file, meta.len()))
}

/// One record. `partial` says that the line goes on in the next record of its stream.
fn record(out: &mut Vec<u8>, format: LogFormat, stream: Stream, time: &str, line: &[u8], partial: bool) {
    // Writing to a Vec cannot fail.
    match format {
        LogFormat::Json => {
            out.extend_from_slice(b"{\"log\":");
            let _ = serde_json::to_writer(&mut *out, &String::from_utf8_lossy(line));
            let _ = writeln!(out, ",\"stream\":\"{}\",\"time\":\"{time}\"}}", stream.name());
        }
        LogFormat::Cri => {
            let tag = if partial { 'P' } else { 'F' };
            let _ = write!(out, "{time} {} {tag} ", stream.name());
            out.extend_from_slice(lines::text(line));
            out.push(b'\n');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(format: LogFormat) -> (tempfile::TempDir, LogFile) {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("sub/log").to_string_lossy().into_owned();
        let uri = LogUri { format, ..LogUri::new(path) };
        let log = LogFile::open(uri, Reaper::default()).expect("open");
        (dir, log)
    }

    fn lines(dir: &tempfile::TempDir) -> Vec<String> {
        let text = std::fs::read_to_string(dir.path().join("sub/log")).expect("read");
        text.lines().map(str::to_owned).collect()
    }

    fn texts(dir: &tempfile::TempDir) -> Vec<(String, String)> {
        let object = |line: &String| serde_json::from_str::<serde_json::Value>(line).expect("JSON");
        let text = |value: &serde_json::Value| value.as_str().expect("text").to_owned();
        lines(dir).iter().map(object).map(|object| (text(&object["stream"]), text(&object["log"]))).collect()
    }

    #[test]
    fn a_file_in_the_directorys_place_is_not_a_container_that_exists() {
        let file = tempfile::NamedTempFile::new().expect("file");
        let uri = LogUri::new(file.path().join("0.log").to_string_lossy().into_owned());
        let error = LogFile::open(uri, Reaper::default()).expect_err("no directory");
        assert_eq!(error.kind(), crate::error::Kind::Internal, "{error}");
        assert!(error.to_string().contains("not a directory"), "{error}");
    }

    #[test]
    fn links_do_not_lead_out_of_the_root() {
        let (outside, pod) = (tempfile::tempdir().expect("outside"), tempfile::tempdir().expect("pod"));
        let text = |path: &Path| path.to_string_lossy().into_owned();
        std::os::unix::fs::symlink(outside.path(), pod.path().join("web")).expect("link");
        let uri = LogUri { root: text(pod.path()), ..LogUri::new(text(&pod.path().join("web/0.log"))) };
        let mut log = LogFile::open(uri, Reaper::default()).expect("open");
        assert!(log.push(Stream::Stdout, b"line\n"));
        assert_eq!(outside.path().read_dir().expect("outside").count(), 0);
        // The link was followed as one of a file system whose root is the pod's directory.
        let inside = outside.path().strip_prefix("/").expect("absolute");
        assert!(pod.path().join(inside).join("0.log").is_file());
        std::os::unix::fs::symlink(outside.path().join("file"), pod.path().join("1.log")).expect("link");
        let uri = LogUri { root: text(pod.path()), ..LogUri::new(text(&pod.path().join("1.log"))) };
        LogFile::open(uri, Reaper::default()).expect_err("the file itself is a link");
        let uri = LogUri { root: text(pod.path()), ..LogUri::new("/elsewhere/0.log") };
        LogFile::open(uri, Reaper::default()).expect_err("is not in the root");
    }

    #[test]
    fn json_lines() {
        let (dir, mut log) = log(LogFormat::Json);
        assert!(log.push(Stream::Stdout, b"one\ntw"));
        assert!(log.push(Stream::Stderr, b"err\xff\n"));
        assert!(log.push(Stream::Stdout, b"o\n\nlast"));
        log.end_lines();
        let expected = [("stdout", "one\n"), ("stderr", "err\u{fffd}\n"), ("stdout", "two\n"), ("stdout", "\n")];
        let mut expected: Vec<_> = expected.map(|(stream, text)| (stream.to_owned(), text.to_owned())).into();
        expected.push(("stdout".to_owned(), "last".to_owned()));
        assert_eq!(texts(&dir), expected);
    }

    #[test]
    fn long_lines_are_cut_between_characters_and_join_again() {
        let (dir, mut log) = log(LogFormat::Json);
        let text = "€".repeat(20_000);
        for chunk in text.as_bytes().chunks(7000) {
            assert!(log.push(Stream::Stdout, chunk));
        }
        assert!(log.push(Stream::Stdout, b"\n"));
        let pieces = texts(&dir);
        assert!(pieces.len() > 3 && pieces.iter().all(|(_, piece)| piece.len() <= MAX_LINE));
        let joined: String = pieces.into_iter().map(|(_, piece)| piece).collect();
        assert_eq!(joined, text + "\n");
    }

    #[test]
    fn cri_lines() {
        let (dir, mut log) = log(LogFormat::Cri);
        assert!(log.push(Stream::Stdout, b"hello\n"));
        assert!(log.push(Stream::Stderr, &[b'x'; MAX_LINE + 5]));
        assert!(log.push(Stream::Stderr, b"\n"));
        assert!(log.push(Stream::Stderr, &[b'x'; MAX_LINE]));
        assert!(log.push(Stream::Stderr, b"\n"));
        let lines = lines(&dir);
        let fields = |line: &String| line.splitn(4, ' ').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(fields(&lines[0])[1..], ["stdout", "F", "hello"]);
        assert_eq!((fields(&lines[1])[2].as_str(), fields(&lines[1])[3].len()), ("P", MAX_LINE));
        assert_eq!(fields(&lines[2])[1..], ["stderr", "F", "xxxxx"]);
        assert_eq!((fields(&lines[3])[2].as_str(), fields(&lines[3])[3].len()), ("F", MAX_LINE), "it just fits");
        let time: jiff::Timestamp = fields(&lines[0])[0].parse().expect("RFC 3339");
        assert!(time.as_second() > 1_700_000_000);
    }

    #[test]
    fn cri_lines_end_where_their_process_ended_them() {
        let (dir, mut log) = log(LogFormat::Cri);
        assert!(log.push(Stream::Stdout, b"dos\r\na\rb\n\r\n"));
        let long = [&[b'x'; MAX_LINE - 1][..], b"\r\nlast\r"].concat();
        assert!(log.push(Stream::Stdout, &long));
        log.end_lines();
        let tags = |line: &String| line.splitn(4, ' ').skip(2).map(str::to_owned).collect::<Vec<_>>();
        let text = std::fs::read_to_string(dir.path().join("sub/log")).expect("read");
        let lines: Vec<_> = text.split_terminator('\n').map(|line| tags(&line.to_owned())).collect();
        let long = "x".repeat(MAX_LINE - 1);
        assert_eq!(lines, [["F", "dos"], ["F", "a\rb"], ["F", ""], ["F", &long], ["P", "last\r"]]);
    }

    #[test]
    fn rotation_bounds_the_files() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("log").to_string_lossy().into_owned();
        let uri = LogUri { max_size: 200, max_files: 3, ..LogUri::new(path.clone()) };
        let mut log = LogFile::open(uri, Reaper::default()).expect("open");
        for number in 0..20 {
            assert!(log.push(Stream::Stdout, format!("line {number}\n").as_bytes()));
        }
        let mut names: Vec<_> =
            std::fs::read_dir(dir.path()).expect("list").map(|entry| entry.expect("entry").file_name()).collect();
        names.sort();
        assert_eq!(names, ["log", "log.1", "log.2"]);
        let read = |name: &str| std::fs::read_to_string(format!("{path}{name}")).expect("read");
        let all = read(".2") + &read(".1") + &read("");
        let last = all.lines().last().expect("a line").to_owned();
        assert!(last.contains("line 19"), "{last}");
    }

    #[test]
    fn as_many_files_as_there_are_numbers_take_no_longer() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("log").to_string_lossy().into_owned();
        let uri = LogUri { max_size: 1, max_files: u32::MAX, ..LogUri::new(path.clone()) };
        let mut log = LogFile::open(uri, Reaper::default()).expect("open");
        let push = |log: &mut LogFile, text: &str| assert!(log.push(Stream::Stdout, text.as_bytes()));
        ["1\n", "2\n", "3\n"].iter().for_each(|text| push(&mut log, text));
        // Where one was removed there is room.
        std::fs::remove_file(format!("{path}.2")).expect("remove");
        push(&mut log, "4\n");
        let read = |name: &str| std::fs::read_to_string(format!("{path}{name}")).expect("read");
        let found = [".1", ".2", ".3"].map(read);
        assert!(found.iter().zip(["4\\n", "3\\n", "1\\n"]).all(|(found, text)| found.contains(text)), "{found:?}");
    }

    #[test]
    fn a_removed_log_costs_no_older_one() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("log").to_string_lossy().into_owned();
        let uri = LogUri { max_size: 100, max_files: 3, ..LogUri::new(path.clone()) };
        let mut log = LogFile::open(uri, Reaper::default()).expect("open");
        for older in [".1", ".2"] {
            std::fs::write(format!("{path}{older}"), older).expect("write");
        }
        std::fs::remove_file(&path).expect("remove");
        let long = format!("{}\n", "x".repeat(100));
        assert!(log.push(Stream::Stdout, long.as_bytes()));
        // It goes on in a new file.
        assert!(log.push(Stream::Stdout, b"end\n"));
        let read = |name: &str| std::fs::read_to_string(format!("{path}{name}")).expect("read");
        assert_eq!((read(".1").as_str(), read(".2").as_str()), (".1", ".2"));
        assert!(read("").contains("end"));
    }

    #[test]
    fn one_file_is_cut_instead() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("log").to_string_lossy().into_owned();
        let uri = LogUri { max_size: 300, max_files: 1, ..LogUri::new(path.clone()) };
        let mut log = LogFile::open(uri, Reaper::default()).expect("open");
        for number in 0..100 {
            assert!(log.push(Stream::Stdout, format!("line {number}\n").as_bytes()));
            assert!(std::fs::metadata(&path).expect("metadata").len() < 400);
        }
    }

    #[test]
    fn a_reopened_log_goes_on_under_its_path() {
        let (dir, mut log) = log(LogFormat::Json);
        assert!(log.push(Stream::Stdout, b"old\n"));
        std::fs::rename(dir.path().join("sub/log"), dir.path().join("sub/moved")).expect("rename");
        log.reopen().expect("reopen");
        assert!(log.push(Stream::Stdout, b"new\n"));
        assert_eq!(texts(&dir), [("stdout".to_owned(), "new\n".to_owned())]);
    }
}
