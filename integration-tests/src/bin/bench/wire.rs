//! A client that writes a call and reads the bytes of its answer, and nothing else: a client's own threads, buffers and
//! decoding take longer than the daemons need for a list, whoever answers.
//!
//! It writes the frames of RFC 9113 itself, one call at a time, and blocks.

use std::io::{BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use integration_tests::Result;
use prost::Message;

/// How long an answer may take at most.
const PATIENCE: Duration = Duration::from_secs(60);
/// The largest window there is, so that no server ever waits for room.
const WINDOW: u32 = 0x7fff_ffff;
/// The window of a connection before anybody says anything.
const FIRST_WINDOW: u32 = 0xffff;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GO_AWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

/// A connection to a server.
pub(crate) struct Wire {
    stream: BufReader<UnixStream>,
    next: u32,
    /// The namespace that every call is in, if any.
    namespace: Option<String>,
    answer: Vec<u8>,
}

impl Wire {
    pub(crate) fn connect(socket: &Path, namespace: Option<&str>) -> Result<Self> {
        let stream = UnixStream::connect(socket).with_context(|| format!("connect to {}", socket.display()))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        let initial_window = [&4_u16.to_be_bytes()[..], &WINDOW.to_be_bytes()].concat();
        frame(&mut hello, SETTINGS, 0, 0, &initial_window);
        frame(&mut hello, WINDOW_UPDATE, 0, 0, &(WINDOW - FIRST_WINDOW).to_be_bytes());
        (&stream).write_all(&hello)?;
        let namespace = namespace.map(str::to_owned);
        Ok(Self { stream: BufReader::with_capacity(256 << 10, stream), next: 1, namespace, answer: Vec::new() })
    }

    /// A call of `method`, a path, up to the last byte of its answer.
    pub(crate) fn call(&mut self, method: &str, request: &impl Message) -> Result<()> {
        let stream = self.next;
        self.next += 2;
        let mut message = vec![0];
        message.extend(u32::try_from(request.encoded_len())?.to_be_bytes());
        request.encode(&mut message)?;
        let mut frames = Vec::new();
        frame(&mut frames, HEADERS, END_HEADERS, stream, &headers(method, self.namespace.as_deref())?);
        frame(&mut frames, DATA, END_STREAM, stream, &message);
        self.stream.get_mut().write_all(&frames)?;
        self.answer.clear();
        while !self.turn(stream)? {}
        // Where a call fails there is a status and no message.
        let [0, a, b, c, d, message @ ..] = &self.answer[..] else { bail!("{method} was refused") };
        let length = u32::from_be_bytes([*a, *b, *c, *d]);
        ensure!(usize::try_from(length)? == message.len(), "{method}: {} of {length} bytes", message.len());
        Ok(())
    }

    /// Takes a frame: whether it was the last one of this call.
    fn turn(&mut self, stream: u32) -> Result<bool> {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head)?;
        let [a, b, c, kind, flags, of @ ..] = head;
        let length = usize::try_from(u32::from_be_bytes([0, a, b, c]))?;
        let of = u32::from_be_bytes(of);
        let begin = self.answer.len();
        self.answer.resize(begin + length, 0);
        self.stream.read_exact(&mut self.answer[begin..])?;
        if kind == DATA && of == stream {
            return Ok(flags & END_STREAM != 0);
        }
        let payload = self.answer.split_off(begin);
        let mut reply = Vec::new();
        match kind {
            HEADERS if of == stream => return Ok(flags & END_STREAM != 0),
            SETTINGS if flags & ACK == 0 => frame(&mut reply, SETTINGS, ACK, 0, &[]),
            PING if flags & ACK == 0 => frame(&mut reply, PING, ACK, 0, &payload),
            RESET | GO_AWAY => bail!("the server ended the call"),
            _ => {}
        }
        self.stream.get_mut().write_all(&reply)?;
        Ok(false)
    }
}

fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
    out.extend([length[1], length[2], length[3], kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend(payload);
}

/// The headers of a call as RFC 7541 writes them without compression: names from its table where they are there.
fn headers(method: &str, namespace: Option<&str>) -> Result<Vec<u8>> {
    const POST: u8 = 0x83;
    const HTTP: u8 = 0x86;
    const AUTHORITY: u8 = 1;
    const PATH: u8 = 4;
    let mut out = vec![POST, HTTP];
    let mut text = |index: Option<u8>, name: &str, value: &str| {
        out.push(index.unwrap_or(0));
        for part in [name, value].into_iter().skip(usize::from(index.is_some())) {
            // Longer ones have another form.
            out.push(u8::try_from(part.len()).ok().filter(|length| *length < 127).context("a header is too long")?);
            out.extend(part.as_bytes());
        }
        anyhow::Ok(())
    };
    text(Some(PATH), ":path", method)?;
    text(Some(AUTHORITY), ":authority", "localhost")?;
    text(None, "content-type", "application/grpc")?;
    text(None, "te", "trailers")?;
    namespace.map_or(Ok(()), |namespace| text(None, "containerd-namespace", namespace))?;
    Ok(out)
}
