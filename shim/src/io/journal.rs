//! Lines of a process in the journal of the system, with the fields that conmon gives them: CRI-O's `log_to_journald`.
//!
//! A process never waits for the journal. What it does not take is lost, and how much is said by the next record that it takes;
//! one that is away is looked for again a second later.

use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use gantry_proto::stdio::{LogFormat, MAX_LINE};
use nix::errno::Errno;

use crate::io::lines::{self, Lines};
use crate::io::output::Stream;

/// Where the journal takes records.
const SOCKET: &str = "/run/systemd/journal/socket";
/// How long a journal that is away is not looked for.
const PAUSE: Duration = Duration::from_secs(1);
/// Characters of a short id.
const SHORT: usize = 12;
/// As in syslog(3): what standard output and standard error are.
const INFO: u8 = 6;
const ERROR: u8 = 3;

/// One process's way to the journal.
#[derive(Debug)]
pub struct Journal {
    link: Link,
    /// The fields that all records have.
    fields: Vec<u8>,
    /// Bytes of a line's text after which it is cut.
    most: usize,
    stdout: Lines,
    stderr: Lines,
    /// Records given up since the last one taken.
    dropped: u64,
}

#[derive(Debug)]
enum Link {
    Open(UnixDatagram),
    /// There was none at this time.
    Away(Option<Instant>),
}

impl Journal {
    /// A way for the container `id`, which people know as `name`.
    pub fn new(id: &str, name: &str, max_line: usize) -> Self {
        let short = id.get(..SHORT).unwrap_or(id);
        let mut fields = Vec::new();
        let all =
            [("CONTAINER_ID_FULL", id), ("CONTAINER_ID", short), ("CONTAINER_NAME", name), ("SYSLOG_IDENTIFIER", name)];
        all.iter().for_each(|(key, value)| field(&mut fields, key, value.as_bytes()));
        let (stdout, stderr) = (Lines::default(), Lines::default());
        // A datagram has no more room than the kernel gives its socket.
        Self { link: Link::Away(None), fields, most: max_line.min(MAX_LINE), stdout, stderr, dropped: 0 }
    }

    /// Takes output.
    pub fn push(&mut self, stream: Stream, chunk: &[u8]) {
        let lines = match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        let mut records = Vec::new();
        lines.push(LogFormat::Cri, self.most, chunk, |line, partial| {
            records.push(record(&self.fields, stream, lines::text(line), partial));
        });
        records.iter().for_each(|record| self.send(record));
    }

    /// Sends lines that their process never finished.
    pub fn end_lines(&mut self) {
        for (stream, rest) in [(Stream::Stdout, self.stdout.end()), (Stream::Stderr, self.stderr.end())] {
            if !rest.is_empty() {
                self.send(&record(&self.fields, stream, &rest, true));
            }
        }
    }

    fn send(&mut self, record: &[u8]) {
        if !self.is_open() {
            self.dropped += 1;
            return;
        }
        let Link::Open(socket) = &self.link else { return };
        let note = (self.dropped > 0).then(|| {
            let text = format!("gantry: {} records were dropped here: the journal did not take them", self.dropped);
            self::record(&self.fields, Stream::Stderr, text.as_bytes(), false)
        });
        let mut sent = Ok(0);
        for record in note.iter().map(Vec::as_slice).chain([record]) {
            sent = sent.and_then(|_| socket.send(record));
        }
        match sent {
            Ok(_) => self.dropped = 0,
            Err(error) => {
                self.dropped += 1;
                if !is_of_record(&error) {
                    self.link = Link::Away(Some(Instant::now()));
                }
            }
        }
    }

    /// Whether there is a journal, which may be found now.
    fn is_open(&mut self) -> bool {
        match &self.link {
            Link::Open(_) => return true,
            Link::Away(Some(since)) if since.elapsed() < PAUSE => return false,
            Link::Away(_) => {}
        }
        self.link = match open() {
            Ok(socket) => Link::Open(socket),
            Err(error) => {
                tracing::debug!(%error, "the journal is away");
                Link::Away(Some(Instant::now()))
            }
        };
        matches!(self.link, Link::Open(_))
    }
}

/// Whether a failure is one of a single record: there is no room now, or never any for so large a one.
fn is_of_record(error: &std::io::Error) -> bool {
    let codes = [Errno::EAGAIN, Errno::EMSGSIZE, Errno::ENOBUFS];
    codes.iter().any(|code| error.raw_os_error() == Some(*code as i32))
}

fn open() -> std::io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.connect(SOCKET)?;
    Ok(socket)
}

fn record(fields: &[u8], stream: Stream, text: &[u8], partial: bool) -> Vec<u8> {
    let priority = match stream {
        Stream::Stdout => INFO,
        Stream::Stderr => ERROR,
    };
    let mut record = format!("PRIORITY={priority}\n").into_bytes();
    if partial {
        record.extend_from_slice(b"CONTAINER_PARTIAL_MESSAGE=true\n");
    }
    record.extend_from_slice(fields);
    field(&mut record, "MESSAGE", text);
    record
}

/// A field in the form in which its value may hold anything, since its length stands before it.
fn field(out: &mut Vec<u8>, key: &str, value: &[u8]) {
    out.extend_from_slice(key.as_bytes());
    out.push(b'\n');
    out.extend_from_slice(&(value.len() as u64).to_le_bytes());
    out.extend_from_slice(value);
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A journal in this process, and a way to it.
    fn pair() -> (UnixDatagram, Journal) {
        let (ours, theirs) = UnixDatagram::pair().expect("pair");
        theirs.set_nonblocking(true).expect("non-blocking");
        ours.set_nonblocking(true).expect("non-blocking");
        let journal = Journal { link: Link::Open(theirs), ..Journal::new("0123456789abcdef", "k8s_web", 64) };
        (ours, journal)
    }

    fn next(journal: &UnixDatagram) -> Option<String> {
        let mut buffer = vec![0; 1 << 16];
        let count = journal.recv(&mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..count]).replace(|c: char| c.is_control() && c != '\n', "."))
    }

    #[test]
    fn a_line_is_a_record_with_conmons_fields() {
        let (ours, mut journal) = pair();
        journal.push(Stream::Stdout, b"hel");
        assert_eq!(next(&ours), None);
        journal.push(Stream::Stdout, b"lo\r\n");
        let record = next(&ours).expect("a record");
        let parts = ["PRIORITY=6\n", "CONTAINER_ID_FULL\n", "0123456789abcdef\n", "CONTAINER_ID\n", "0123456789ab\n"];
        for part in
            parts.iter().chain(&["CONTAINER_NAME\n", "SYSLOG_IDENTIFIER\n", "k8s_web\n", "MESSAGE\n", "hello\n"])
        {
            assert!(record.contains(part), "{part}: {record}");
        }
        assert!(!record.contains("PARTIAL"), "{record}");
        journal.push(Stream::Stderr, &[b'x'; 100]);
        journal.end_lines();
        let (first, last) = (next(&ours).expect("a piece"), next(&ours).expect("the rest"));
        for (record, length) in [(first, 64), (last, 36)] {
            assert!(record.starts_with("PRIORITY=3\nCONTAINER_PARTIAL_MESSAGE=true\n"), "{record}");
            assert!(record.ends_with(&format!("{}\n", "x".repeat(length))), "{record}");
        }
    }

    #[test]
    fn a_journal_that_takes_nothing_is_not_waited_for() {
        let (ours, mut journal) = pair();
        for number in 0..5000 {
            journal.push(Stream::Stdout, format!("{number}\n").as_bytes());
        }
        let lost = journal.dropped;
        assert!(lost > 0, "it took them all");
        while next(&ours).is_some() {}
        journal.push(Stream::Stdout, b"again\n");
        assert!(next(&ours).expect("a note").contains(&format!("gantry: {lost} records were dropped")));
        assert!(next(&ours).expect("the record").contains("again"));
        // One that goes away is looked for later.
        drop(ours);
        journal.push(Stream::Stdout, b"lost\n");
        assert!(matches!(journal.link, Link::Away(Some(_))) && journal.dropped == 1);
        journal.push(Stream::Stdout, b"lost\n");
        assert_eq!(journal.dropped, 2);
    }
}
