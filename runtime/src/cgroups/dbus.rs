//! Just enough D-Bus to speak with systemd: one connection, one call at a time, and waiting for one signal.
//!
//! Why it is written here (`docs/decisions` has the comparison): every step has to end by a deadline, the
//! authentication too, since a runtime that hangs on a stopped bus holds a frozen or half-made container.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rung_sys::fd_pass;

use super::error::{Error, Result};

/// Longest answer that is read; systemd's are below a kilobyte.
const LONGEST: usize = 1 << 20;

/// A value of a property.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Bool(bool),
    Byte(u8),
    I32(i32),
    U32(u32),
    I64(i64),
    U64(u64),
    Double(f64),
    Text(String),
    /// Elements of the type that the signature says.
    Array(String, Vec<Value>),
    Tuple(Vec<Value>),
}

impl Value {
    /// The D-Bus signature of the value.
    pub(super) fn signature(&self) -> String {
        match self {
            Self::Bool(_) => "b".into(),
            Self::Byte(_) => "y".into(),
            Self::I32(_) => "i".into(),
            Self::U32(_) => "u".into(),
            Self::I64(_) => "x".into(),
            Self::U64(_) => "t".into(),
            Self::Double(_) => "d".into(),
            Self::Text(_) => "s".into(),
            Self::Array(of, _) => format!("a{of}"),
            Self::Tuple(parts) => format!("({})", parts.iter().map(Self::signature).collect::<String>()),
        }
    }

    pub(super) fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Bool(value) => Self::U32(u32::from(*value)).write(out),
            Self::Byte(value) => out.push(*value),
            Self::I32(value) => aligned(out, 4).extend(value.to_le_bytes()),
            Self::U32(value) => aligned(out, 4).extend(value.to_le_bytes()),
            Self::I64(value) => aligned(out, 8).extend(value.to_le_bytes()),
            Self::U64(value) => aligned(out, 8).extend(value.to_le_bytes()),
            Self::Double(value) => aligned(out, 8).extend(value.to_le_bytes()),
            Self::Text(value) => {
                Self::U32(length(value.len())).write(out);
                out.extend(value.as_bytes());
                out.push(0);
            }
            Self::Array(of, items) => {
                let at = aligned(out, 4).len();
                out.extend([0; 4]);
                // The length counts from the first element, after its padding, which is there even without elements.
                let start = aligned(out, alignment(of)).len();
                items.iter().for_each(|item| item.write(out));
                let bytes = length(out.len() - start).to_le_bytes();
                out[at..at + 4].copy_from_slice(&bytes);
            }
            Self::Tuple(parts) => {
                aligned(out, 8);
                parts.iter().for_each(|part| part.write(out));
            }
        }
    }
}

/// A value that says its own type.
fn write_variant(value: &Value, out: &mut Vec<u8>) {
    write_signature(&value.signature(), out);
    value.write(out);
}

fn write_signature(signature: &str, out: &mut Vec<u8>) {
    // A signature is at most 255 bytes, and ours are a handful.
    out.push(u8::try_from(signature.len()).unwrap_or(u8::MAX));
    out.extend(signature.as_bytes());
    out.push(0);
}

fn alignment(signature: &str) -> usize {
    match signature.as_bytes().first() {
        Some(b'y' | b'g' | b'v') => 1,
        Some(b'x' | b't' | b'd' | b'(' | b'{') => 8,
        _ => 4,
    }
}

fn aligned(out: &mut Vec<u8>, to: usize) -> &mut Vec<u8> {
    out.resize(out.len().next_multiple_of(to), 0);
    out
}

fn length(bytes: usize) -> u32 {
    // Nothing written here comes near 4 GiB.
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// The body of a call, and its signature.
#[derive(Debug, Default)]
pub(super) struct Body {
    signature: String,
    bytes: Vec<u8>,
}

impl Body {
    pub(super) fn with(mut self, value: &Value) -> Self {
        self.signature.push_str(&value.signature());
        value.write(&mut self.bytes);
        self
    }

    /// Adds `a(sv)`: properties.
    pub(super) fn with_properties(mut self, properties: &[(String, Value)]) -> Self {
        self.signature.push_str("a(sv)");
        let at = aligned(&mut self.bytes, 4).len();
        self.bytes.extend([0; 4]);
        let start = aligned(&mut self.bytes, 8).len();
        for (name, value) in properties {
            aligned(&mut self.bytes, 8);
            Value::text(name).write(&mut self.bytes);
            write_variant(value, &mut self.bytes);
        }
        let bytes = length(self.bytes.len() - start).to_le_bytes();
        self.bytes[at..at + 4].copy_from_slice(&bytes);
        self
    }

    /// Adds `a(sa(sv))` without elements: the auxiliary units of `StartTransientUnit`.
    pub(super) fn with_no_units(mut self) -> Self {
        self.signature.push_str("a(sa(sv))");
        Value::U32(0).write(&mut self.bytes);
        aligned(&mut self.bytes, 8);
        self
    }
}

/// Where a call goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target<'a> {
    pub(super) destination: &'a str,
    pub(super) path: &'a str,
    pub(super) interface: &'a str,
}

/// Something that arrived.
#[derive(Debug, Default)]
pub(super) struct Message {
    kind: u8,
    reply_to: u32,
    error: Option<String>,
    member: Option<String>,
    body: Vec<u8>,
}

const CALL: u8 = 1;
const RETURN: u8 = 2;
const SIGNAL: u8 = 4;

impl Message {
    /// The texts in the body, for bodies whose shape is known: `skip` bytes, then as many as are asked for.
    pub(super) fn texts<const N: usize>(&self, skip: usize) -> Option<[String; N]> {
        let mut at = skip;
        let mut found = [const { String::new() }; N];
        for text in &mut found {
            *text = read_text(&self.body, &mut at)?;
        }
        Some(found)
    }

    /// The text in a variant, which is the whole body.
    pub(super) fn variant_text(&self) -> Option<String> {
        if self.body.get(..3) != Some(b"\x01s\0") {
            return None;
        }
        read_text(&self.body, &mut 3)
    }
}

fn read_u32(bytes: &[u8], at: &mut usize) -> Option<u32> {
    let from = at.next_multiple_of(4);
    let word = bytes.get(from..from.checked_add(4)?)?;
    *at = from + 4;
    Some(u32::from_le_bytes(word.try_into().ok()?))
}

fn read_text(bytes: &[u8], at: &mut usize) -> Option<String> {
    let size = usize::try_from(read_u32(bytes, at)?).ok()?;
    let text = bytes.get(*at..at.checked_add(size)?)?;
    *at += size + 1;
    String::from_utf8(text.to_vec()).ok()
}

/// A connection to a bus, or to systemd itself.
#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    serial: u32,
    deadline: Instant,
    is_bus: bool,
}

/// The bus itself.
const BUS: Target<'static> =
    Target { destination: "org.freedesktop.DBus", path: "/org/freedesktop/DBus", interface: "org.freedesktop.DBus" };

impl Connection {
    /// Connects to `address` and authenticates as `uid`. Everything on the connection ends within `limit`. On a bus
    /// (not at systemd's own socket) the connection introduces itself.
    pub(super) fn open(address: &str, uid: u32, is_bus: bool, limit: Duration) -> Result<Self> {
        let failed = |e: std::io::Error| {
            let cause = e.raw_os_error().map_or_else(|| e.to_string(), rung_sys::error::describe);
            Error::Systemd(format!("connect to {address}: {cause}; does systemd run here?"))
        };
        let deadline = Instant::now() + limit;
        let stream = fd_pass::connect(Path::new(address), limit).map_err(failed)?;
        let mut connection = Self { stream, serial: 0, deadline, is_bus };
        connection.authenticate(uid)?;
        if is_bus {
            connection.call(BUS, "Hello", Body::default())?;
        } else {
            connection.wait_until_read()?;
        }
        Ok(connection)
    }

    /// Has the signals that `rule` describes delivered. Who is connected directly gets them all anyway.
    pub(super) fn listen(&mut self, rule: &str) -> Result<()> {
        if self.is_bus {
            self.call(BUS, "AddMatch", Body::default().with(&Value::text(rule)))?;
        }
        Ok(())
    }

    /// Gives what follows `limit` from now, whatever it had before.
    pub(super) fn limit(&mut self, limit: Duration) {
        self.deadline = Instant::now() + limit;
    }

    fn authenticate(&mut self, uid: u32) -> Result<()> {
        let hex: String = uid.to_string().bytes().map(|digit| format!("{digit:02x}")).collect();
        self.send(format!("\0AUTH EXTERNAL {hex}\r\n").as_bytes())?;
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            // A byte at a time: what follows the line belongs to the first message.
            let mut byte = [0];
            self.receive(&mut byte)?;
            line.push(byte[0]);
            if line.len() > 512 {
                return Err(Error::Systemd("the bus answers the authentication with nonsense".into()));
            }
        }
        if !line.starts_with(b"OK ") {
            let answer = String::from_utf8_lossy(&line).trim().to_owned();
            return Err(Error::Systemd(format!("the bus refuses user {uid}: {answer}")));
        }
        self.send(b"BEGIN\r\n")
    }

    /// Waits until the other side has read everything. Systemd does not look at a message that it reads together with the
    /// end of the authentication until the next one comes; buses do.
    fn wait_until_read(&self) -> Result<()> {
        let failed = |e: rung_sys::Error| Error::Systemd(format!("look at what is unread: {e}"));
        while fd_pass::unread(&self.stream).map_err(failed)? > 0 {
            std::thread::sleep(Duration::from_millis(1).min(self.left()?));
        }
        Ok(())
    }

    fn left(&self) -> Result<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(Error::Silent) } else { Ok(left) }
    }

    fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let failed = |e: std::io::Error| Error::Systemd(format!("write to the bus: {e}"));
        self.stream.set_write_timeout(Some(self.left()?)).map_err(failed)?;
        self.stream.write_all(bytes).map_err(failed)
    }

    fn receive(&mut self, into: &mut [u8]) -> Result<()> {
        let failed = |e: std::io::Error| Error::Systemd(format!("read from the bus: {e}"));
        let mut filled = 0;
        while filled < into.len() {
            self.stream.set_read_timeout(Some(self.left()?)).map_err(failed)?;
            match self.stream.read(&mut into[filled..]) {
                Ok(0) => return Err(Error::Systemd("the bus closed the connection".into())),
                Ok(got) => filled += got,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                // The deadline says it better.
                Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {}
                Err(e) => return Err(failed(e)),
            }
        }
        Ok(())
    }

    /// Calls a method and waits for its answer.
    pub(super) fn call(&mut self, target: Target<'_>, member: &str, body: Body) -> Result<Message> {
        let serial = self.post(target, member, body)?;
        loop {
            let message = self.next()?;
            if message.answers(serial, member)? {
                return Ok(message);
            }
        }
    }

    /// Sends a call without waiting; the answer carries the number that is returned.
    pub(super) fn post(&mut self, target: Target<'_>, member: &str, body: Body) -> Result<u32> {
        self.serial += 1;
        let message = encode(target, member, &body, self.serial);
        self.send(&message)?;
        Ok(self.serial)
    }

    /// The next message, whatever it is.
    pub(super) fn next(&mut self) -> Result<Message> {
        let mut fixed = [0; 16];
        self.receive(&mut fixed)?;
        let nonsense = || Error::Systemd("the bus sent nonsense".into());
        let word = |at: usize| u32::from_le_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]);
        let size = |n: u32| usize::try_from(n).ok().filter(|&n| n <= LONGEST);
        // Both ends are on this machine, so the byte order is the same; that of big machines is not written here.
        if fixed[0] != b'l' {
            return Err(nonsense());
        }
        let (body, fields) = (size(word(4)).ok_or_else(nonsense)?, size(word(12)).ok_or_else(nonsense)?);
        let mut header = vec![0; fields.next_multiple_of(8)];
        self.receive(&mut header)?;
        let mut message = Message { kind: fixed[1], body: vec![0; body], ..Message::default() };
        self.receive(&mut message.body)?;
        read_fields(&header[..fields], &mut message).ok_or_else(nonsense)?;
        Ok(message)
    }
}

impl Message {
    /// Whether this is the signal `member`.
    pub(super) fn is_signal(&self, member: &str) -> bool {
        self.kind == SIGNAL && self.member.as_deref() == Some(member)
    }

    /// Whether this is the good answer to call `serial`; an error for a bad one.
    pub(super) fn answers(&self, serial: u32, doing: &str) -> Result<bool> {
        if self.reply_to != serial {
            return Ok(false);
        }
        if self.kind == RETURN {
            return Ok(true);
        }
        let [text] = self.texts(0).unwrap_or_default();
        Err(Error::Refused { doing: doing.to_owned(), name: self.error.clone().unwrap_or_default(), text })
    }
}

/// Takes what is of interest from the header fields: an array of (number, variant).
fn read_fields(header: &[u8], message: &mut Message) -> Option<()> {
    let mut at = 0_usize;
    loop {
        at = at.next_multiple_of(8);
        if at >= header.len() {
            return Some(());
        }
        let field = *header.get(at)?;
        let signature = *header.get(at + 2)?;
        // Every field has a type of one letter, so its signature takes three bytes.
        at += 4;
        match signature {
            b'u' => {
                let number = read_u32(header, &mut at)?;
                if field == 5 {
                    message.reply_to = number;
                }
            }
            b'g' => at += usize::from(*header.get(at)?) + 2,
            _ => {
                let text = read_text(header, &mut at)?;
                match field {
                    3 => message.member = Some(text),
                    4 => message.error = Some(text),
                    _ => {}
                }
            }
        }
    }
}

fn encode(target: Target<'_>, member: &str, body: &Body, serial: u32) -> Vec<u8> {
    let mut out = vec![b'l', CALL, 0, 1];
    out.extend(length(body.bytes.len()).to_le_bytes());
    out.extend(serial.to_le_bytes());
    let at = out.len();
    out.extend([0; 4]);
    let start = out.len();
    let mut field = |number: u8, kind: &str, value: &str| {
        aligned(&mut out, 8).push(number);
        write_signature(kind, &mut out);
        if kind == "g" {
            write_signature(value, &mut out);
        } else {
            Value::text(value).write(&mut out);
        }
    };
    field(1, "o", target.path);
    field(2, "s", target.interface);
    field(3, "s", member);
    field(6, "s", target.destination);
    if !body.signature.is_empty() {
        field(8, "g", &body.signature);
    }
    let bytes = length(out.len() - start).to_le_bytes();
    out[at..at + 4].copy_from_slice(&bytes);
    aligned(&mut out, 8).extend(&body.bytes);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_told_by_their_names() {
        let mut body = Vec::new();
        Value::text("Unit org.freedesktop.systemd1.NoSuchUnit exists.").write(&mut body);
        let error = Some("org.freedesktop.systemd1.UnitExists".to_owned());
        let message = Message { kind: 3, reply_to: 7, error, body, ..Message::default() };
        assert!(!message.answers(6, "StopUnit").unwrap());
        let refused = message.answers(7, "StopUnit").unwrap_err();
        assert!(refused.is_named("org.freedesktop.systemd1.UnitExists"));
        assert!(!refused.is_named("org.freedesktop.systemd1.NoSuchUnit"));
    }

    #[test]
    fn a_bus_that_does_not_answer_is_given_up() {
        let path = std::env::temp_dir().join(format!("rung-silent-bus-{}", std::process::id()));
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let address = path.to_str().unwrap();
        let opened = Connection::open(address, 0, true, Duration::from_millis(50));
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(opened, Err(Error::Silent)), "{opened:?}");
    }

    #[test]
    fn the_first_call_does_not_arrive_with_the_authentication() {
        let path = std::env::temp_dir().join(format!("rung-direct-{}", std::process::id()));
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let systemd = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut bytes = [0; 256];
            assert!(stream.read(&mut bytes).unwrap() > 0);
            stream.write_all(b"OK 00\r\n").unwrap();
            // As where it has other things to do.
            std::thread::sleep(Duration::from_millis(50));
            let got = stream.read(&mut bytes).unwrap();
            (bytes[..got].to_vec(), stream)
        });
        let opened = Connection::open(path.to_str().unwrap(), 0, false, Duration::from_secs(20));
        let posted = opened.and_then(|mut opened| opened.post(BUS, "Ping", Body::default()));
        std::fs::remove_file(&path).unwrap();
        let (got, _stream) = systemd.join().unwrap();
        assert_eq!(String::from_utf8(got).unwrap(), "BEGIN\r\n");
        posted.unwrap();
    }
}
