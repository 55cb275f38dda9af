//! Frames: ten bytes of header, then at most four mebibytes of message.

use std::io;

use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::status::{Code, Status};

/// Bytes of a header.
pub const HEADER_LENGTH: usize = 10;
/// Largest message, in bytes.
pub const MAX_MESSAGE: usize = 4 << 20;

/// Type of a frame that starts a call.
pub const REQUEST: u8 = 1;
/// Type of the frame that ends a call.
pub const RESPONSE: u8 = 2;
/// Type of a streaming call's messages.
pub const DATA: u8 = 3;

/// Flag: the sender sends nothing more on this stream.
pub const REMOTE_CLOSED: u8 = 1;
/// Flag: the sender sends more on this stream.
pub const REMOTE_OPEN: u8 = 2;
/// Flag: this frame carries no message, not even an empty one.
pub const NO_DATA: u8 = 4;

/// The first ten bytes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Bytes of message that follow.
    pub length: u32,
    /// The call this frame belongs to.
    pub stream: u32,
    /// [`REQUEST`], [`RESPONSE`] or [`DATA`]; others are to be ignored.
    pub kind: u8,
    /// [`REMOTE_CLOSED`], [`REMOTE_OPEN`], [`NO_DATA`].
    pub flags: u8,
}

impl Header {
    /// The header on the wire.
    pub fn encode(self) -> [u8; HEADER_LENGTH] {
        let mut bytes = [0; HEADER_LENGTH];
        bytes[..4].copy_from_slice(&self.length.to_be_bytes());
        bytes[4..8].copy_from_slice(&self.stream.to_be_bytes());
        bytes[8] = self.kind;
        bytes[9] = self.flags;
        bytes
    }

    /// A header of the wire. Every ten bytes are one; the length is the reader's to judge.
    pub fn decode(bytes: [u8; HEADER_LENGTH]) -> Self {
        let [a, b, c, d, e, f, g, h, kind, flags] = bytes;
        Self { length: u32::from_be_bytes([a, b, c, d]), stream: u32::from_be_bytes([e, f, g, h]), kind, flags }
    }
}

/// What a reader found.
#[derive(Debug)]
pub enum Incoming {
    /// A whole frame.
    Frame(Header, Vec<u8>),
    /// A frame above [`MAX_MESSAGE`]; its message was read and thrown away, so that only this call fails.
    Oversize(Header),
}

/// The next frame; none where the peer closed between frames.
///
/// # Errors
/// Those of `reader`, and `UnexpectedEof` within a frame.
pub async fn read<R: AsyncRead + Unpin>(reader: &mut R) -> io::Result<Option<Incoming>> {
    let mut header = [0; HEADER_LENGTH];
    let mut filled = 0;
    while filled < HEADER_LENGTH {
        match reader.read(&mut header[filled..]).await? {
            0 if filled == 0 => return Ok(None),
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => filled += count,
        }
    }
    let header = Header::decode(header);
    let length = u64::from(header.length);
    let wanted = usize::try_from(header.length).unwrap_or(usize::MAX);
    if wanted > MAX_MESSAGE {
        let skipped = tokio::io::copy(&mut reader.take(length), &mut tokio::io::sink()).await?;
        if skipped < length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        return Ok(Some(Incoming::Oversize(header)));
    }
    // Memory is taken as bytes come, not as the header promises.
    let mut message = Vec::with_capacity(wanted.min(64 << 10));
    if reader.take(length).read_to_end(&mut message).await? < wanted {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some(Incoming::Frame(header, message)))
}

/// The bytes of a frame that carries `message`.
///
/// # Errors
/// `ResourceExhausted` above [`MAX_MESSAGE`].
pub fn encode<M: Message>(stream: u32, kind: u8, flags: u8, message: &M) -> Result<Vec<u8>, Status> {
    let mut frame = start(stream, kind, flags, message.encoded_len())?;
    // A Vec grows as needed, so that encoding into it cannot fail.
    message.encode_raw(&mut frame);
    Ok(frame)
}

fn start(stream: u32, kind: u8, flags: u8, length: usize) -> Result<Vec<u8>, Status> {
    let small = u32::try_from(length).ok().filter(|_| length <= MAX_MESSAGE);
    let length32 = small.ok_or_else(|| oversize(length))?;
    let mut frame = Vec::with_capacity(HEADER_LENGTH + length);
    frame.extend_from_slice(&Header { length: length32, stream, kind, flags }.encode());
    Ok(frame)
}

/// The status of a message of `length` bytes.
pub(super) fn oversize(length: usize) -> Status {
    let text = format!("ttrpc: message of {length} bytes exceeds the limit of {MAX_MESSAGE}");
    Status::new(Code::ResourceExhausted, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ttrpc::Request;

    fn encode_bytes(stream: u32, kind: u8, flags: u8, payload: &[u8]) -> Result<Vec<u8>, Status> {
        let mut frame = start(stream, kind, flags, payload.len())?;
        frame.extend_from_slice(payload);
        Ok(frame)
    }

    #[tokio::test]
    async fn round_trip() {
        let request = Request { service: "s".into(), method: "m".into(), ..Request::default() };
        let bytes = encode(3, REQUEST, REMOTE_OPEN, &request).expect("small");
        assert_eq!(&bytes[..10], &[0, 0, 0, 6, 0, 0, 0, 3, 1, 2]);
        let mut reader = bytes.as_slice();
        let Some(Incoming::Frame(header, message)) = read(&mut reader).await.expect("read") else { panic!("no frame") };
        assert_eq!(header, Header { length: 6, stream: 3, kind: REQUEST, flags: REMOTE_OPEN });
        assert_eq!(Request::decode(message.as_slice()).expect("decode"), request);
        assert!(read(&mut reader).await.expect("end").is_none());
    }

    #[tokio::test]
    async fn an_oversize_frame_is_skipped_whole() {
        let length = MAX_MESSAGE + 1;
        let mut bytes = Header { length: 4_194_305, stream: 1, kind: REQUEST, flags: 0 }.encode().to_vec();
        bytes.resize(HEADER_LENGTH + length, 7);
        bytes.extend(encode_bytes(5, RESPONSE, 0, b"x").expect("small"));
        let mut reader = bytes.as_slice();
        assert!(
            matches!(read(&mut reader).await.expect("first"), Some(Incoming::Oversize(header)) if header.stream == 1)
        );
        assert!(
            matches!(read(&mut reader).await.expect("second"), Some(Incoming::Frame(header, _)) if header.stream == 5)
        );
        assert_eq!(encode_bytes(1, DATA, 0, &vec![0; length]).expect_err("too large").code, Code::ResourceExhausted);
    }

    #[tokio::test]
    async fn torn_frames_are_errors() {
        let bytes = encode_bytes(1, REQUEST, 0, b"payload").expect("small");
        for cut in 1..bytes.len() {
            let mut reader = &bytes[..cut];
            let error = read(&mut reader).await.expect_err("torn");
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "cut at {cut}");
        }
    }
}
