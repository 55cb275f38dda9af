//! Where a process's standard streams go, as the daemon tells the shim in the `stdin`, `stdout` and `stderr` fields.
//!
//! containerd's clients send FIFO paths, `file://` and `binary://`. gantryd's engine and CRI send `log://`:
//! the shim writes the log itself, so nothing is lost while the daemon restarts, and listens on a socket for whoever
//! wants to be attached. A process with `log://` in `stdout` carries all three streams there; `stdin` is the same text
//! where standard input is to be kept open for attached clients, else empty, and `stderr` is empty.
//!
//! # The attach socket
//! A unix stream socket that the shim makes before its Create or Exec call returns. Each connection gets what the
//! process writes from then on and may send input. Both directions carry frames: one byte of [`FrameKind`], a big-endian
//! `u32` length of at most [`MAX_FRAME`], and that many bytes. Connections made before Start see every byte. The shim
//! closes the connections after the last output of the process.
//!
//! containerd's CRI may send [`StreamUri`]s instead: it opens a stream of containerd's `Streaming` service for each of the three,
//! at the shim itself, which carries bytes in messages that the receiving end makes room for.

/// Largest payload of an attach frame, in bytes.
pub const MAX_FRAME: usize = 64 * 1024;

/// Pieces of standard input that a session's client sends before it waits for word that one was taken.
pub const STDIN_AHEAD: usize = 4;
/// The header of a session's answer by which a daemon says that it gives that word: those of before do not.
pub const STDIN_TAKEN_HEADER: &str = "gantry-stdin-taken";

/// Bytes of a line's text that are one record of a log, unless told otherwise: what docker and the kubelet expect.
pub const MAX_LINE: usize = 16 << 10;
/// The least that can be asked for.
pub const MIN_LINE: usize = 64;

/// What a frame of the attach socket carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// To the process.
    Stdin = 0,
    /// From the process; all of its output where it has a terminal.
    Stdout = 1,
    /// From the process.
    Stderr = 2,
    /// To the process: its standard input ends here. No payload.
    CloseStdin = 3,
}

impl FrameKind {
    /// The kind a frame's first byte stands for.
    pub fn from_byte(byte: u8) -> Option<Self> {
        [Self::Stdin, Self::Stdout, Self::Stderr, Self::CloseStdin].into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// How a log file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// docker's json-file: one object a line with `log`, `stream` and `time`.
    Json,
    /// Kubernetes CRI: `time stream P|F text`.
    Cri,
}

/// What happens to output that cannot be written now: the disk is full, or an attached client does not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogPolicy {
    /// The process waits; nothing is lost.
    #[default]
    Block,
    /// The process runs on; lost bytes are counted, and the log says how many where they are missing.
    Drop,
}

/// A `log://` destination.
///
/// A file that reaches `max_size` becomes `PATH.1`, what was `PATH.1` becomes `PATH.2`, and so on; with `compress` a rotated
/// file turns into `PATH.N.gz` some time later. Where both are there, the plain one is whole and the other to be ignored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogUri {
    /// Absolute path of the log file; empty: no log is kept.
    pub path: String,
    /// Absolute path of a directory that the log is in, and that no link in it leads out of; empty: the file's own.
    pub root: String,
    /// How the file is written.
    pub format: LogFormat,
    /// Absolute path of the attach socket; empty: none.
    pub attach: String,
    /// What the container is called in the journal of the system, to which its lines go too; empty: they do not.
    pub journal: String,
    /// Bytes of a line's text after which it is cut into pieces.
    pub max_line: usize,
    /// Bytes after which the file is rotated; 0: never.
    pub max_size: u64,
    /// Files kept, the current one included.
    pub max_files: u32,
    /// Rotated files are compressed.
    pub compress: bool,
    /// What happens to output that cannot be written now.
    pub policy: LogPolicy,
}

impl LogUri {
    const SCHEME: &str = "log://";

    /// A JSON log at `path`, never rotated, without an attach socket.
    pub fn new(path: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            root: String::new(),
            format: LogFormat::Json,
            attach: String::new(),
            journal: String::new(),
            max_line: MAX_LINE,
            max_size: 0,
            max_files: 1,
            compress: false,
            policy: LogPolicy::Block,
        }
    }

    /// Parses `log://PATH?format=…&root=…&attach=…&max-size=…&max-files=…`; `None` where the text has another scheme.
    ///
    /// # Errors
    /// Names the parameter that is unknown or malformed.
    pub fn parse(text: &str) -> Option<Result<Self, String>> {
        text.strip_prefix(Self::SCHEME).map(Self::parse_rest)
    }

    fn parse_rest(rest: &str) -> Result<Self, String> {
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut uri = Self::new(decode(path)?);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').ok_or_else(|| format!("log parameter {pair:?} has no value"))?;
            let number = |what: &str| format!("log parameter {what}: {value:?} is not a number");
            match key {
                "format" => {
                    uri.format = match value {
                        "json" => LogFormat::Json,
                        "cri" => LogFormat::Cri,
                        _ => return Err(format!("log parameter format: {value:?} is neither json nor cri")),
                    };
                }
                "root" => uri.root = decode(value)?,
                "attach" => uri.attach = decode(value)?,
                "journal" => uri.journal = decode(value)?,
                "max-line" => match value.parse() {
                    Ok(length) if length >= MIN_LINE => uri.max_line = length,
                    _ => return Err(format!("log parameter max-line: {value:?} is not a number from {MIN_LINE} on")),
                },
                "max-size" => uri.max_size = value.parse().map_err(|_| number("max-size"))?,
                "max-files" => uri.max_files = value.parse().map_err(|_| number("max-files"))?,
                "compress" => {
                    uri.compress = match value {
                        "yes" => true,
                        "no" => false,
                        _ => return Err(format!("log parameter compress: {value:?} is neither yes nor no")),
                    };
                }
                "policy" => {
                    uri.policy = match value {
                        "block" => LogPolicy::Block,
                        "drop" => LogPolicy::Drop,
                        _ => return Err(format!("log parameter policy: {value:?} is neither block nor drop")),
                    };
                }
                _ => return Err(format!("unknown log parameter {key:?}")),
            }
        }
        Ok(uri)
    }
}

impl std::fmt::Display for LogUri {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let format = match self.format {
            LogFormat::Json => "json",
            LogFormat::Cri => "cri",
        };
        write!(f, "{}{}?format={format}", Self::SCHEME, encode(&self.path))?;
        for (name, text) in [("root", &self.root), ("attach", &self.attach), ("journal", &self.journal)] {
            if !text.is_empty() {
                write!(f, "&{name}={}", encode(text))?;
            }
        }
        write!(f, "&max-size={}&max-files={}", self.max_size, self.max_files)?;
        if self.max_line != MAX_LINE {
            write!(f, "&max-line={}", self.max_line)?;
        }
        if self.compress {
            f.write_str("&compress=yes")?;
        }
        match self.policy {
            LogPolicy::Block => Ok(()),
            LogPolicy::Drop => f.write_str("&policy=drop"),
        }
    }
}

/// A stream that the process's client opens to the shim itself: `ttrpc+unix://SOCKET?streaming_id=ID`, which containerd's CRI
/// gives where its `io_type` is `streaming`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamUri {
    /// Path of the socket on which the stream is opened.
    pub socket: String,
    /// The name under which it is opened.
    pub id: String,
}

impl StreamUri {
    const SCHEME: &str = "ttrpc+unix://";
    /// Bytes of a stream's name at most.
    pub const MAX_ID: usize = 256;

    /// Parses it; `None` where the text has another scheme.
    ///
    /// # Errors
    /// Says what of it is missing or malformed.
    pub fn parse(text: &str) -> Option<Result<Self, String>> {
        text.strip_prefix(Self::SCHEME).map(Self::parse_rest)
    }

    fn parse_rest(rest: &str) -> Result<Self, String> {
        let (socket, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (socket, mut id) = (decode(socket)?, None);
        for pair in query.split('&') {
            match pair.split_once('=') {
                Some(("streaming_id", value)) if id.is_none() => id = Some(decode(value)?),
                _ => return Err(format!("stream parameter {pair:?}: expected one streaming_id=ID and nothing else")),
            }
        }
        let id = id.filter(|id| !id.is_empty() && id.len() <= Self::MAX_ID);
        let id = id.ok_or_else(|| format!("stream parameter streaming_id: must have 1 to {} bytes", Self::MAX_ID))?;
        Ok(Self { socket, id })
    }
}

fn encode(text: &str) -> String {
    text.replace('%', "%25").replace('?', "%3F").replace('&', "%26")
}

fn decode(text: &str) -> Result<String, String> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        if byte != b'%' {
            out.push(byte);
            rest = tail;
            continue;
        }
        let hex = tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        let value = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok());
        out.push(value.ok_or_else(|| format!("log path {text:?}: '%' is not followed by two hex digits"))?);
        rest = &tail[2..];
    }
    String::from_utf8(out).map_err(|_| format!("log path {text:?} is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_uri_round_trips() {
        let uri = LogUri {
            path: "/var/lib/a?b&c%d/log.json".into(),
            root: "/var/lib/a?b&c%d".into(),
            format: LogFormat::Cri,
            attach: "/run/x y.sock".into(),
            journal: "k8s_a&b".into(),
            max_line: 4096,
            max_size: 20 << 20,
            max_files: 5,
            compress: true,
            policy: LogPolicy::Drop,
        };
        assert_eq!(LogUri::parse(&uri.to_string()), Some(Ok(uri)));
        assert_eq!(LogUri::parse("/run/fifo"), None);
        assert!(LogUri::parse("log:///x?format=xml").is_some_and(|parsed| parsed.is_err()));
        assert!(LogUri::parse("log:///x%4").is_some_and(|parsed| parsed.is_err()));
    }

    #[test]
    fn stream_uris() {
        let parsed = StreamUri::parse("ttrpc+unix:///run/s/a%20b?streaming_id=web-stdout").expect("a stream");
        assert_eq!(parsed, Ok(StreamUri { socket: "/run/s/a b".into(), id: "web-stdout".into() }));
        assert_eq!(StreamUri::parse("grpc+vsock://3:10?streaming_id=x"), None);
        for wrong in ["", "?", "?streaming_id=", "?id=x", "?streaming_id=x&streaming_id=y", "?streaming_id=%zz"] {
            let parsed = StreamUri::parse(&format!("ttrpc+unix:///s{wrong}")).expect("a stream");
            assert!(parsed.is_err(), "{wrong}: {parsed:?}");
        }
        let long = format!("ttrpc+unix:///s?streaming_id={}", "x".repeat(StreamUri::MAX_ID + 1));
        assert!(StreamUri::parse(&long).is_some_and(|parsed| parsed.is_err()));
    }
}
