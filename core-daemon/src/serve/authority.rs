//! Connections of clients that name the socket by its path.
//!
//! Clients in Go, Java, Python, C++ and more that dial a path send that path, some with `%2F` for each slash, as HTTP/2's
//! `:authority`. It is no host name, and the HTTP/2 library would refuse every call. The daemon does not use the authority,
//! so each is replaced by a valid name of the same length: client and server both keep a table of headers (HPACK, RFC 7541),
//! whose size is counted in those bytes.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{self, AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that a client sends before its first frame (RFC 9113, section 3.4).
const PREFACE: usize = 24;
/// Bytes of a frame's header (RFC 9113, section 4.1).
const FRAME_HEADER: usize = 9;
/// Type of the frames that begin a block of headers.
const HEADERS: u8 = 1;
/// Flags of such frames.
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// Bytes of a frame's payload at most, unless the server allows more.
const MAX_FRAME: usize = 16 << 10;
/// Index of `:authority` in the static table (RFC 7541, appendix A).
const AUTHORITY: usize = 1;
/// The name itself, plain and packed. gRPC's core, and so its clients in Python, C++ and Ruby, writes it out.
const AUTHORITY_NAMES: [&[u8]; 2] = [b":authority", &[0xb8, 0x3b, 0x53, 0x39, 0xec, 0x32, 0x7d, 0x7f]];
/// Bytes read at once.
const CHUNK: usize = 16 << 10;

/// A client's connection.
#[derive(Debug)]
pub(super) struct Connection<S> {
    inner: S,
    rewriter: Rewriter,
    /// Rewritten and not taken yet, from `taken` on.
    ready: Vec<u8>,
    taken: usize,
}

impl<S> Connection<S> {
    pub(super) fn new(inner: S) -> Self {
        Self { inner, rewriter: Rewriter::Pass(PREFACE), ready: Vec::new(), taken: 0 }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.taken == this.ready.len() {
            let mut chunk = [0; CHUNK];
            let mut read = ReadBuf::new(&mut chunk);
            ready!(Pin::new(&mut this.inner).poll_read(context, &mut read))?;
            if read.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            this.ready.clear();
            this.taken = 0;
            this.rewriter.push(read.filled(), &mut this.ready);
        }
        let count = into.remaining().min(this.ready.len() - this.taken);
        into.put_slice(&this.ready[this.taken..this.taken + count]);
        this.taken += count;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[std::io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

/// Where in the stream of frames the next byte is.
#[derive(Debug)]
enum Rewriter {
    /// So many bytes that do not matter.
    Pass(usize),
    /// The header of a frame.
    Header(Vec<u8>),
    /// A frame of headers: its header and what is there of the rest, and how long both will be.
    Block(Vec<u8>, usize),
}

impl Rewriter {
    fn push(&mut self, mut input: &[u8], out: &mut Vec<u8>) {
        while !input.is_empty() {
            let missing = match self {
                Self::Pass(left) => *left,
                Self::Header(held) => FRAME_HEADER - held.len(),
                Self::Block(held, whole) => *whole - held.len(),
            };
            let (taken, rest) = input.split_at(missing.min(input.len()));
            input = rest;
            let is_whole = taken.len() == missing;
            match self {
                Self::Pass(left) => {
                    out.extend_from_slice(taken);
                    *left -= taken.len();
                }
                Self::Header(held) | Self::Block(held, _) => held.extend_from_slice(taken),
            }
            if is_whole {
                self.advance(out);
            }
        }
    }

    /// Goes on after something that is whole.
    fn advance(&mut self, out: &mut Vec<u8>) {
        *self = match std::mem::replace(self, Self::Pass(0)) {
            Self::Pass(_) => Self::Header(Vec::with_capacity(FRAME_HEADER)),
            Self::Header(header) => {
                let length = header[..3].iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
                if header[3] == HEADERS && (1..=MAX_FRAME).contains(&length) {
                    return *self = Self::Block(header, FRAME_HEADER + length);
                }
                out.extend_from_slice(&header);
                if length > 0 { Self::Pass(length) } else { Self::Header(Vec::with_capacity(FRAME_HEADER)) }
            }
            Self::Block(frame, _) => {
                let rewritten = rewrite(frame[4], &frame[FRAME_HEADER..]).filter(|block| block.len() <= MAX_FRAME);
                match rewritten {
                    Some(block) => {
                        out.extend_from_slice(&block.len().to_be_bytes()[size_of::<usize>() - 3..]);
                        out.extend_from_slice(&frame[3..FRAME_HEADER]);
                        out.extend_from_slice(&block);
                    }
                    None => out.extend_from_slice(&frame),
                }
                Self::Header(Vec::with_capacity(FRAME_HEADER))
            }
        };
    }
}

/// A frame of headers with another authority; none where it has none written out.
fn rewrite(flags: u8, frame: &[u8]) -> Option<Vec<u8>> {
    let padded = flags & PADDED != 0;
    let mut at = usize::from(padded) + if flags & PRIORITY != 0 { 5 } else { 0 };
    let end = frame.len().checked_sub(if padded { usize::from(*frame.first()?) } else { 0 })?;
    while at < end {
        let first = *frame.get(at)?;
        let index_bits = match first {
            0x80.. => 7,
            0x40.. => 6,
            0x20.. => 5,
            _ => 4,
        };
        let (index, after) = integer(frame, at, index_bits)?;
        at = after;
        // Headers that the tables have whole, and changes of the tables' size.
        if index_bits == 7 || index_bits == 5 {
            continue;
        }
        let mut is_authority = index == AUTHORITY;
        if index == 0 {
            let name = text(frame, at)?;
            is_authority = frame.get(name.begin..name.end)? == AUTHORITY_NAMES[usize::from(name.packed)];
            at = name.end;
        }
        let value = text(frame, at)?;
        if is_authority {
            let bytes = frame.get(value.begin..value.end)?;
            let length = if value.packed { symbols(bytes)? } else { bytes.len() };
            let mut block = frame[..at].to_vec();
            push_integer(length, &mut block);
            block.resize(block.len() + length, b'a');
            block.extend_from_slice(&frame[value.end..]);
            return Some(block);
        }
        at = value.end;
    }
    None
}

struct Text {
    packed: bool,
    begin: usize,
    end: usize,
}

fn text(frame: &[u8], at: usize) -> Option<Text> {
    let packed = frame.get(at)? & 0x80 != 0;
    let (length, begin) = integer(frame, at, 7)?;
    let end = begin.checked_add(length).filter(|end| *end <= frame.len())?;
    Some(Text { packed, begin, end })
}

/// A number that begins in the low bits of a byte, and where it ends.
fn integer(frame: &[u8], at: usize, bits: u32) -> Option<(usize, usize)> {
    let most = (1 << bits) - 1;
    let mut value = usize::from(*frame.get(at)?) & most;
    let mut at = at + 1;
    if value < most {
        return Some((value, at));
    }
    for shift in [0, 7, 14] {
        let byte = *frame.get(at)?;
        at += 1;
        value += usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((value, at));
        }
    }
    None
}

fn push_integer(value: usize, into: &mut Vec<u8>) {
    let low = |value: usize| value.to_le_bytes()[0] & 0x7f;
    if value < 0x7f {
        return into.push(low(value));
    }
    into.push(0x7f);
    let mut value = value - 0x7f;
    while value >= 0x80 {
        into.push(low(value) | 0x80);
        value >>= 7;
    }
    into.push(low(value));
}

/// How many characters have a Huffman code of each length, from one bit on (RFC 7541, appendix B). The code is
/// canonical: the codes of one length are consecutive numbers, and those of the next length follow.
const CODES: [u32; 30] =
    [0, 0, 0, 0, 10, 26, 32, 6, 0, 5, 3, 2, 6, 2, 3, 0, 0, 0, 3, 8, 13, 26, 29, 12, 4, 15, 19, 29, 0, 3];

/// How many characters a Huffman-coded text has.
fn symbols(packed: &[u8]) -> Option<usize> {
    let (mut count, mut code, mut first, mut length) = (0, 0, 0, 0);
    for bit in packed.iter().flat_map(|byte| (0..8).rev().map(move |at| u32::from(byte >> at & 1))) {
        code = code << 1 | bit;
        first <<= 1;
        let here = *CODES.get(length)?;
        if code - first < here {
            count += 1;
            (code, first, length) = (0, 0, 0);
        } else {
            first += here;
            length += 1;
        }
    }
    Some(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `www.example.com` as RFC 7541 packs it.
    const PACKED: [u8; 12] = [0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff];

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u8::try_from(payload.len()).expect("short");
        [&[0, 0, length, kind, flags, 0, 0, 0, 1], payload].concat()
    }

    #[test]
    fn characters_of_packed_texts_are_counted() {
        assert_eq!(symbols(&PACKED), Some(15));
        // `no-cache`, `custom-key`, and `302` of the same document.
        assert_eq!(symbols(&[0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf]), Some(8));
        assert_eq!(symbols(&[0x25, 0xa8, 0x49, 0xe9, 0x5b, 0xa9, 0x7d, 0x7f]), Some(10));
        assert_eq!(symbols(&[0x64, 0x02]), Some(3));
        assert_eq!(symbols(&[0xff; 8]), None);
    }

    #[test]
    fn an_authority_becomes_a_name_of_its_length() {
        // POST, a path that is not in the tables, then the authority: plain and packed.
        let before = [&[0x83, 0x44, 2][..], b"/x"].concat();
        for value in [[&[9][..], b"%2Fa.sock"].concat(), [&[0x8c][..], &PACKED].concat()] {
            let length = if value[0] == 9 { 9 } else { 15 };
            let block = [&before[..], &[0x41], &value, &[0x86]].concat();
            let wanted = [&before[..], &[0x41, length], &vec![b'a'; usize::from(length)], &[0x86]].concat();
            assert_eq!(rewrite(0, &block), Some(wanted));
        }
        // With the name written out, plain and packed.
        for name in [&[&[10][..], b":authority"].concat(), &[&[0x88][..], AUTHORITY_NAMES[1]].concat()] {
            let written = |value: &[u8]| [&before[..], &[0x40], name, &[3], value, &[0x86]].concat();
            assert_eq!(rewrite(0, &written(b"%2F")), Some(written(b"aaa")));
        }
        assert_eq!(symbols(AUTHORITY_NAMES[1]), Some(10));
        assert_eq!(rewrite(0, &[0x40, 1, b'x', 1, b'/']), None);
        // Later ones are in the table; and a frame may end anywhere.
        assert_eq!(rewrite(0, &[0x83, 0xbe, 0x86]), None);
        assert_eq!(rewrite(0, &[0x41, 9, b'a']), None);
        assert_eq!(rewrite(PADDED, &[200, 0x83]), None);
        let padded = rewrite(PADDED | PRIORITY, &[1, 0, 0, 0, 0, 0, 0x41, 1, b'%', 0]).expect("it has one");
        assert_eq!(padded, [1, 0, 0, 0, 0, 0, 0x41, 1, b'a', 0]);
    }

    #[test]
    fn frames_are_found_wherever_they_are_cut() {
        let headers = frame(HEADERS, 4, &[0x41, 3, b'/', b'%', b'x', 0x86]);
        let sent = [&[b'p'; PREFACE][..], &frame(4, 0, &[]), &headers, &frame(0, 1, b"/%x")].concat();
        let wanted =
            [&[b'p'; PREFACE][..], &frame(4, 0, &[]), &frame(HEADERS, 4, b"\x41\x03aaa\x86"), &frame(0, 1, b"/%x")];
        for size in 1..sent.len() {
            let (mut rewriter, mut out) = (Rewriter::Pass(PREFACE), Vec::new());
            sent.chunks(size).for_each(|chunk| rewriter.push(chunk, &mut out));
            assert_eq!(out, wanted.concat(), "{size}");
        }
    }

    #[test]
    fn long_numbers() {
        for value in [0, 126, 127, 128, 254, 255, 300, 16_000] {
            let mut bytes = Vec::new();
            push_integer(value, &mut bytes);
            assert_eq!(integer(&bytes, 0, 7), Some((value, bytes.len())));
        }
        assert_eq!(integer(&[0x1f, 0x9a, 0x0a], 0, 5), Some((1337, 3)));
    }
}
