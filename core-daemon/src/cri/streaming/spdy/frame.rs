//! The frames of SPDY/3.1: eight bytes that say what follows and how long, and what follows.
//!
//! Parsing takes bytes and gives values; reading is `connection`'s.

use bytes::{BufMut as _, Bytes, BytesMut};

use super::headers::{Deflater, Headers, Inflater};

/// Bytes before every frame's content.
pub(super) const HEADER: usize = 8;
/// Longest control frame that is read. The longest sensible one is a stream's headers.
const MAX_CONTROL: u32 = 64 << 10;
const VERSION: u16 = 3;
/// Flags of frames.
const FIN: u8 = 1;
/// The setting that is the size of streams' windows.
const INITIAL_WINDOW: u32 = 7;
/// Settings read of one frame.
const MAX_SETTINGS: usize = 64;
/// Ids and window sizes have 31 bits.
const MASK: u32 = 0x7fff_ffff;

/// What is wrong with what a peer sent. The connection cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed(pub(super) &'static str);

/// Why a stream is refused or ended early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reset {
    Protocol = 1,
    InvalidStream = 2,
    Refused = 3,
    Cancelled = 5,
}

/// The first eight bytes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Head {
    Data { stream: u32, is_last: bool, length: u32 },
    Control { kind: u16, flags: u8, length: u32 },
}

/// A control frame. Frames that say nothing of use here are `Other`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Control {
    SynStream { stream: u32, is_last: bool, headers: Headers },
    SynReply { stream: u32, is_last: bool },
    Rst { stream: u32 },
    Settings { initial_window: Option<u32> },
    Ping { id: u32 },
    GoAway,
    WindowUpdate { stream: u32, delta: u32 },
    Other,
}

impl Head {
    pub(super) fn parse(bytes: [u8; HEADER]) -> Result<Self, Malformed> {
        let [a, b, c, d, flags, length @ ..] = bytes;
        let length = u32::from_be_bytes([0, length[0], length[1], length[2]]);
        if a & 0x80 == 0 {
            let stream = u32::from_be_bytes([a, b, c, d]);
            return Ok(Self::Data { stream, is_last: flags & FIN != 0, length });
        }
        if u16::from_be_bytes([a & 0x7f, b]) != VERSION {
            return Err(Malformed("it speaks another version of SPDY"));
        }
        if length > MAX_CONTROL {
            return Err(Malformed("its control frame is too long"));
        }
        Ok(Self::Control { kind: u16::from_be_bytes([c, d]), flags, length })
    }
}

impl Control {
    pub(super) fn parse(kind: u16, flags: u8, content: &[u8], inflater: &mut Inflater) -> Result<Self, Malformed> {
        let mut rest = content;
        let is_last = flags & FIN != 0;
        Ok(match kind {
            1 => {
                let stream = number(&mut rest)? & MASK;
                let _associated = number(&mut rest)?;
                let block = rest.get(2..).ok_or(SHORT)?;
                Self::SynStream { stream, is_last, headers: inflater.headers(block)? }
            }
            2 => {
                let stream = number(&mut rest)? & MASK;
                inflater.headers(rest)?;
                Self::SynReply { stream, is_last }
            }
            3 => Self::Rst { stream: number(&mut rest)? & MASK },
            4 => Self::Settings { initial_window: settings(rest)? },
            6 => Self::Ping { id: number(&mut rest)? },
            7 => Self::GoAway,
            8 => {
                number(&mut rest)?;
                inflater.headers(rest)?;
                Self::Other
            }
            9 => Self::WindowUpdate { stream: number(&mut rest)? & MASK, delta: number(&mut rest)? & MASK },
            _ => Self::Other,
        })
    }
}

const SHORT: Malformed = Malformed("its frame ends too early");

fn number(rest: &mut &[u8]) -> Result<u32, Malformed> {
    let (bytes, tail) = rest.split_first_chunk().ok_or(SHORT)?;
    *rest = tail;
    Ok(u32::from_be_bytes(*bytes))
}

fn settings(mut rest: &[u8]) -> Result<Option<u32>, Malformed> {
    let count = usize::try_from(number(&mut rest)?).unwrap_or(usize::MAX);
    if count > MAX_SETTINGS {
        return Err(Malformed("it has too many settings"));
    }
    let mut window = None;
    for _ in 0..count {
        let id = number(&mut rest)? & 0x00ff_ffff;
        let value = number(&mut rest)?;
        if id == INITIAL_WINDOW {
            window = Some(value & MASK);
        }
    }
    Ok(window)
}

/// A frame to be sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Send {
    Data {
        stream: u32,
        is_last: bool,
        bytes: Bytes,
    },
    #[cfg(test)]
    SynStream {
        stream: u32,
        headers: Headers,
    },
    SynReply {
        stream: u32,
    },
    Rst {
        stream: u32,
        why: Reset,
    },
    Ping {
        id: u32,
    },
    GoAway {
        last: u32,
    },
    WindowUpdate {
        stream: u32,
        delta: u32,
    },
}

impl Send {
    pub(super) fn encode(self, deflater: &mut Deflater, out: &mut BytesMut) {
        match self {
            Self::Data { stream, is_last, bytes } => {
                out.put_u32(stream & MASK);
                out.put_u32(u32::from(is_last) << 24 | length(bytes.len()));
                out.put_slice(&bytes);
            }
            #[cfg(test)]
            Self::SynStream { stream, headers } => {
                let block = deflater.block(&headers);
                control(out, 1, 10 + block.len());
                out.put_u32(stream);
                out.put_u32(0);
                out.put_u16(0);
                out.put_slice(&block);
            }
            Self::SynReply { stream } => {
                let block = deflater.block(&Headers::default());
                control(out, 2, 4 + block.len());
                out.put_u32(stream);
                out.put_slice(&block);
            }
            Self::Rst { stream, why } => {
                control(out, 3, 8);
                out.put_u32(stream);
                out.put_u32(why as u32);
            }
            Self::Ping { id } => {
                control(out, 6, 4);
                out.put_u32(id);
            }
            Self::GoAway { last } => {
                control(out, 7, 8);
                out.put_u32(last);
                out.put_u32(0);
            }
            Self::WindowUpdate { stream, delta } => {
                control(out, 9, 8);
                out.put_u32(stream);
                out.put_u32(delta & MASK);
            }
        }
    }
}

fn control(out: &mut BytesMut, kind: u16, content: usize) {
    out.put_u16(0x8000 | VERSION);
    out.put_u16(kind);
    out.put_u32(length(content));
}

/// A length as its 24 bits; what is sent is always far shorter.
fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX) & 0x00ff_ffff
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(frame: Send) -> (Head, Result<Control, Malformed>) {
        let mut out = BytesMut::new();
        frame.encode(&mut Deflater::new(), &mut out);
        let head = Head::parse(*out.first_chunk().expect("header")).expect("head");
        let control = match head {
            Head::Control { kind, flags, .. } => Control::parse(kind, flags, &out[HEADER..], &mut Inflater::new()),
            Head::Data { .. } => Ok(Control::Other),
        };
        (head, control)
    }

    #[test]
    fn frames_survive_the_wire() {
        let data = Send::Data { stream: 3, is_last: true, bytes: Bytes::from_static(b"hello") };
        assert_eq!(parsed(data).0, Head::Data { stream: 3, is_last: true, length: 5 });
        let headers = Headers(vec![("streamtype".into(), "error".into())]);
        let syn = Send::SynStream { stream: 1, headers: headers.clone() };
        assert_eq!(parsed(syn).1, Ok(Control::SynStream { stream: 1, is_last: false, headers }));
        assert_eq!(parsed(Send::SynReply { stream: 1 }).1, Ok(Control::SynReply { stream: 1, is_last: false }));
        assert_eq!(parsed(Send::Rst { stream: 5, why: Reset::Refused }).1, Ok(Control::Rst { stream: 5 }));
        assert_eq!(parsed(Send::Ping { id: 9 }).1, Ok(Control::Ping { id: 9 }));
        assert_eq!(parsed(Send::GoAway { last: 7 }).1, Ok(Control::GoAway));
        let update = Control::WindowUpdate { stream: 1, delta: 4096 };
        assert_eq!(parsed(Send::WindowUpdate { stream: 1, delta: 4096 }).1, Ok(update));
    }

    #[test]
    fn settings_name_the_window() {
        let mut content = vec![0, 0, 0, 2, 0, 0, 0, 4, 0, 0, 0, 100, 0, 0, 0, 7, 0, 1, 0, 0];
        let parse = |content: &[u8]| Control::parse(4, 0, content, &mut Inflater::new());
        assert_eq!(parse(&content), Ok(Control::Settings { initial_window: Some(65536) }));
        content.truncate(12);
        parse(&content).expect_err("too short");
        parse(&[0xff, 0xff, 0xff, 0xff]).expect_err("too many");
    }

    #[test]
    fn hostile_frames_are_refused() {
        Head::parse([0x80, 2, 0, 1, 0, 0, 0, 10]).expect_err("version 2");
        Head::parse([0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff]).expect_err("too long");
        for kind in [1, 2, 3, 4, 6, 8, 9] {
            for length in 0..4 {
                Control::parse(kind, 0, &[0; 4][..length], &mut Inflater::new()).expect_err("too short");
            }
        }
    }
}
